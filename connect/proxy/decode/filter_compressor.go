//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"compress/gzip"

	gzipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	compressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/compressor"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var compressorFilter = httpFilter{
	name:  "envoy.filters.http.compressor",
	proto: (*compressorv3.Compressor)(nil), config: with((*run).compressor),
	routeProto: (*compressorv3.CompressorPerRoute)(nil),
	route: with(func(r *run, path string, m *compressorv3.CompressorPerRoute) model.FilterConfig {
		o := m.GetOverrides()
		r.only(join(path, "overrides"), o, "response_direction_config", "")
		return &compressor.RouteConfig{Disabled: m.GetDisabled(), RemoveAccept: optionalBool(o.GetResponseDirectionConfig().GetRemoveAcceptEncodingHeader())}
	}),
}

func (r *run) compressor(path string, m *compressorv3.Compressor) model.FilterConfig {
	r.only(path, m, `content_length content_type disable_on_etag_header remove_accept_encoding_header runtime_enabled
		compressor_library request_direction_config response_direction_config`, "")
	if q := m.GetRequestDirectionConfig(); q.GetCommonConfig().GetEnabled().GetDefaultValue().GetValue() {
		r.errorf(join(path, "request_direction_config"), "requests are not compressed")
	}
	c := &compressor.Config{
		Library:      m.GetCompressorLibrary().GetName(),
		Disabled:     !boolean(m.GetRuntimeEnabled().GetDefaultValue(), true),
		MinLength:    int64(u32(m.GetContentLength(), compressor.DefaultMinLength)),
		ContentTypes: m.GetContentType(),
		SkipETag:     m.GetDisableOnEtagHeader(),
		RemoveAccept: m.GetRemoveAcceptEncodingHeader(),
	}
	if d := m.GetResponseDirectionConfig(); d != nil {
		p := join(path, "response_direction_config")
		r.only(p, d, "common_config disable_on_etag_header weaken_etag_on_compress remove_accept_encoding_header uncompressible_response_codes", "")
		common := d.GetCommonConfig()
		r.only(join(p, "common_config"), common, "enabled min_content_length content_type", "")
		c.Disabled = !boolean(common.GetEnabled().GetDefaultValue(), true)
		c.MinLength = int64(u32(common.GetMinContentLength(), compressor.DefaultMinLength))
		c.ContentTypes = common.GetContentType()
		c.SkipETag, c.WeakenETag, c.RemoveAccept = d.GetDisableOnEtagHeader(), d.GetWeakenEtagOnCompress(), d.GetRemoveAcceptEncodingHeader()
		for _, n := range d.GetUncompressibleResponseCodes() {
			c.Codes = append(c.Codes, int(n))
		}
	}
	if len(c.ContentTypes) == 0 {
		c.ContentTypes = compressor.DefaultContentTypes
	}
	p := join(path, "compressor_library.typed_config")
	if a := m.GetCompressorLibrary().GetTypedConfig(); typeOf(a) != "envoy.extensions.compression.gzip.compressor.v3.Gzip" {
		r.errorf(p, "compressor library of type %q is not supported", a.GetTypeUrl())
		return c
	}
	var g gzipv3.Gzip
	if !r.extension(p, m.GetCompressorLibrary().GetTypedConfig(), &g) {
		return c
	}
	// The memory that compressing takes is not to be chosen.
	r.only(p, &g, "compression_level compression_strategy", "memory_level window_bits chunk_size")
	switch l := g.GetCompressionLevel(); l {
	case gzipv3.Gzip_DEFAULT_COMPRESSION:
		c.Level = gzip.DefaultCompression
	default:
		c.Level = int(l) // 1 to 9
	}
	switch s := g.GetCompressionStrategy(); s {
	case gzipv3.Gzip_DEFAULT_STRATEGY:
	case gzipv3.Gzip_HUFFMAN_ONLY:
		c.Level = gzip.HuffmanOnly
	default:
		r.errorf(join(p, "compression_strategy"), "%v is not supported", s)
	}
	return c
}
