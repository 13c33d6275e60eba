//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"encoding/hex"
	"math"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	// Read from static files, where every type must be known.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// upstreamHTTP decodes how HTTP is spoken with the hosts: from the typed options, else from the old fields.
func (r *run) upstreamHTTP(m *clusterv3.Cluster, c *model.Cluster) {
	h := &c.HTTP
	h.IdleTimeout, h.MaxHeaders = model.DefaultHTTPIdleTimeout, model.DefaultMaxHeaders
	const name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	typed := m.GetTypedExtensionProtocolOptions()
	for key, a := range typed {
		p := `typed_extension_protocol_options["` + key + `"]`
		if key != name {
			r.errorf(p, "not supported")
			continue
		}
		var o httpv3.HttpProtocolOptions
		if r.extension(p, a, &o) {
			r.httpOptions(p, &o, h)
		}
	}
	if typed[name] == nil {
		if o := m.GetHttp2ProtocolOptions(); o != nil {
			h.Protocol, h.HTTP2 = model.UpstreamHTTP2, r.http2("http2_protocol_options", o, false)
		}
		if o := m.GetHttpProtocolOptions(); o != nil {
			h.HTTP1 = r.http1("http_protocol_options", o, false)
		}
		if m.GetProtocolSelection() == clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL {
			h.Protocol = model.UpstreamAsClient
		}
		r.commonHTTP("common_http_protocol_options", m.GetCommonHttpProtocolOptions(), h)
		r.autoTLS("upstream_http_protocol_options", m.GetUpstreamHttpProtocolOptions(), h)
	}
	if n := m.GetMaxRequestsPerConnection(); n != nil && h.MaxRequests == 0 {
		h.MaxRequests = n.GetValue()
	}
	if h.Protocol == model.UpstreamALPN && c.TLS == nil && len(m.GetTransportSocketMatches()) == 0 {
		r.errorf("typed_extension_protocol_options", "auto_config needs a TLS transport socket, by which the protocol is agreed")
	}
	if h.AutoSAN && c.TLS != nil && c.TLS.ValidationSecret == "" &&
		(c.TLS.Validation == nil || len(c.TLS.Validation.Roots) == 0 && len(c.TLS.Validation.Bundles) == 0) {
		r.errorf("auto_san_validation", "needs a trusted_ca: it would look like a check and be none")
	}
}

func (r *run) httpOptions(path string, o *httpv3.HttpProtocolOptions, h *model.UpstreamHTTP) {
	r.only(path, o, `common_http_protocol_options upstream_http_protocol_options explicit_http_config
		use_downstream_protocol_config auto_config http_filters`, "")
	r.commonHTTP(join(path, "common_http_protocol_options"), o.GetCommonHttpProtocolOptions(), h)
	r.autoTLS(join(path, "upstream_http_protocol_options"), o.GetUpstreamHttpProtocolOptions(), h)
	switch {
	case o.GetExplicitHttpConfig() != nil:
		e, p := o.GetExplicitHttpConfig(), join(path, "explicit_http_config")
		r.only(p, e, "http_protocol_options http2_protocol_options", "")
		if e.GetHttp2ProtocolOptions() != nil {
			h.Protocol, h.HTTP2 = model.UpstreamHTTP2, r.http2(join(p, "http2_protocol_options"), e.GetHttp2ProtocolOptions(), false)
		} else {
			h.Protocol, h.HTTP1 = model.UpstreamHTTP1, r.http1(join(p, "http_protocol_options"), e.GetHttpProtocolOptions(), false)
		}
	case o.GetUseDownstreamProtocolConfig() != nil:
		e, p := o.GetUseDownstreamProtocolConfig(), join(path, "use_downstream_protocol_config")
		r.only(p, e, "http_protocol_options http2_protocol_options", "")
		h.Protocol = model.UpstreamAsClient
		h.HTTP1 = r.http1(join(p, "http_protocol_options"), e.GetHttpProtocolOptions(), false)
		h.HTTP2 = r.http2(join(p, "http2_protocol_options"), e.GetHttp2ProtocolOptions(), false)
	case o.GetAutoConfig() != nil:
		e, p := o.GetAutoConfig(), join(path, "auto_config")
		r.only(p, e, "http_protocol_options http2_protocol_options", "")
		h.Protocol = model.UpstreamALPN
		h.HTTP1 = r.http1(join(p, "http_protocol_options"), e.GetHttpProtocolOptions(), false)
		h.HTTP2 = r.http2(join(p, "http2_protocol_options"), e.GetHttp2ProtocolOptions(), false)
	}
	for i, f := range o.GetHttpFilters() {
		// Only the codec: what other filters do for requests to a cluster is done for requests from a listener here.
		if typeOf(f.GetTypedConfig()) != "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec" {
			r.errorf(index(join(path, "http_filters"), i), "%q is not supported for upstreams", f.GetName())
		}
	}
}

func (r *run) commonHTTP(path string, m *corev3.HttpProtocolOptions, h *model.UpstreamHTTP) {
	if m == nil {
		return
	}
	r.only(path, m, `idle_timeout max_connection_duration max_headers_count max_response_headers_kb max_stream_duration
		headers_with_underscores_action max_requests_per_connection`, "")
	h.IdleTimeout = r.duration(join(path, "idle_timeout"), m.GetIdleTimeout(), model.DefaultHTTPIdleTimeout)
	h.MaxDuration = r.duration(join(path, "max_connection_duration"), m.GetMaxConnectionDuration(), 0)
	h.MaxStream = r.duration(join(path, "max_stream_duration"), m.GetMaxStreamDuration(), 0)
	h.MaxHeaders = int(min(u32(m.GetMaxHeadersCount(), model.DefaultMaxHeaders), 1<<16))
	h.MaxHeaderBytes = int(min(u32(m.GetMaxResponseHeadersKb(), 0), 8192)) << 10
	h.MaxRequests = u32(m.GetMaxRequestsPerConnection(), 0)
	switch m.GetHeadersWithUnderscoresAction() {
	case corev3.HttpProtocolOptions_REJECT_REQUEST:
		h.Underscores = model.UnderscoreReject
	case corev3.HttpProtocolOptions_DROP_HEADER:
		h.Underscores = model.UnderscoreDrop
	}
}

func (r *run) autoTLS(path string, m *corev3.UpstreamHttpProtocolOptions, h *model.UpstreamHTTP) {
	if m == nil {
		return
	}
	r.only(path, m, "auto_sni auto_san_validation override_auto_sni_header", "")
	h.AutoSNI, h.AutoSAN, h.SNIHeader = m.GetAutoSni(), m.GetAutoSanValidation(), strings.ToLower(m.GetOverrideAutoSniHeader())
}

func (r *run) healthChecks(list []*corev3.HealthCheck, c *model.Cluster) *model.HealthCheck {
	switch {
	case len(list) == 0:
		return nil
	case c.Type == model.OriginalDst || c.Type == model.Aggregate:
		r.errorf("health_checks", "not for a %v cluster", c.Type)
		return nil
	case len(list) > 1:
		r.errorf("health_checks", "more than one is not supported")
	}
	h := r.healthCheck(index("health_checks", 0), list[0])
	return &h
}

// minCheck bounds how often hosts are asked.
const minCheck = time.Millisecond

func (r *run) healthCheck(path string, m *corev3.HealthCheck) model.HealthCheck {
	r.only(path, m, `timeout interval initial_jitter interval_jitter interval_jitter_percent unhealthy_threshold healthy_threshold
		alt_port reuse_connection no_traffic_interval no_traffic_healthy_interval unhealthy_interval unhealthy_edge_interval
		healthy_edge_interval always_log_health_check_failures always_log_health_check_success tls_options transport_socket_match_criteria
		http_health_check tcp_health_check grpc_health_check`, "")
	h := model.HealthCheck{
		Timeout:       r.duration(join(path, "timeout"), m.GetTimeout(), 0),
		Interval:      r.duration(join(path, "interval"), m.GetInterval(), 0),
		InitialJitter: r.duration(join(path, "initial_jitter"), m.GetInitialJitter(), 0),
		Jitter:        r.duration(join(path, "interval_jitter"), m.GetIntervalJitter(), 0),
		JitterPercent: min(m.GetIntervalJitterPercent(), 100),
		Unhealthy:     max(1, u32(m.GetUnhealthyThreshold(), 1)),
		Healthy:       max(1, u32(m.GetHealthyThreshold(), 1)),
		NoReuse:       !boolean(m.GetReuseConnection(), true),
		ALPN:          m.GetTlsOptions().GetAlpnProtocols(),
		LogFailures:   m.GetAlwaysLogHealthCheckFailures(),
		LogGood:       m.GetAlwaysLogHealthCheckSuccess(),
	}
	if h.Timeout < minCheck || h.Interval < minCheck {
		r.errorf(path, "timeout %v and interval %v must be at least %v", h.Timeout, h.Interval, minCheck)
	}
	h.NoTraffic = r.duration(join(path, "no_traffic_interval"), m.GetNoTrafficInterval(), time.Minute)
	h.NoTrafficHealthy = r.duration(join(path, "no_traffic_healthy_interval"), m.GetNoTrafficHealthyInterval(), h.NoTraffic)
	h.UnhealthyInterval = r.duration(join(path, "unhealthy_interval"), m.GetUnhealthyInterval(), h.Interval)
	h.UnhealthyEdge = r.duration(join(path, "unhealthy_edge_interval"), m.GetUnhealthyEdgeInterval(), h.UnhealthyInterval)
	h.HealthyEdge = r.duration(join(path, "healthy_edge_interval"), m.GetHealthyEdgeInterval(), h.Interval)
	if p := u32(m.GetAltPort(), 0); p > math.MaxUint16 {
		r.errorf(join(path, "alt_port"), "%d is no port", p)
	} else {
		h.AltPort = uint16(p)
	}
	if s := m.GetTransportSocketMatchCriteria(); s != nil {
		h.TLSMatch = s.AsMap()
	}
	switch x := m.GetHealthChecker().(type) {
	case *corev3.HealthCheck_HttpHealthCheck_:
		h.HTTP = r.httpCheck(join(path, "http_health_check"), x.HttpHealthCheck)
	case *corev3.HealthCheck_TcpHealthCheck_:
		p := join(path, "tcp_health_check")
		r.only(p, x.TcpHealthCheck, "send receive", "")
		h.TCP = &model.TCPCheck{Send: r.payload(join(p, "send"), x.TcpHealthCheck.GetSend()), Receive: r.payloads(join(p, "receive"), x.TcpHealthCheck.GetReceive())}
	case *corev3.HealthCheck_GrpcHealthCheck_:
		p := join(path, "grpc_health_check")
		r.only(p, x.GrpcHealthCheck, "service_name authority initial_metadata", "")
		h.GRPC = &model.GRPCCheck{Service: x.GrpcHealthCheck.GetServiceName(), Authority: x.GrpcHealthCheck.GetAuthority(),
			Metadata: r.additions(join(p, "initial_metadata"), x.GrpcHealthCheck.GetInitialMetadata())}
	default:
		r.errorf(path, "none of HTTP, TCP and gRPC")
	}
	return h
}

func (r *run) httpCheck(path string, m *corev3.HealthCheck_HttpHealthCheck) *model.HTTPCheck {
	r.only(path, m, `host path send receive response_buffer_size request_headers_to_add request_headers_to_remove expected_statuses
		retriable_statuses codec_client_type service_name_matcher method`, "")
	h := &model.HTTPCheck{
		Method: "GET", Host: m.GetHost(), Path: m.GetPath(),
		Body: r.payload(join(path, "send"), m.GetSend()), Receive: r.payloads(join(path, "receive"), m.GetReceive()),
		Expected: r.statuses(join(path, "expected_statuses"), m.GetExpectedStatuses()),
		Retry:    r.statuses(join(path, "retriable_statuses"), m.GetRetriableStatuses()),
		HTTP2:    m.GetCodecClientType() == typev3.CodecClientType_HTTP2,
		MaxBody:  1024,
	}
	if !strings.HasPrefix(h.Path, "/") {
		r.errorf(join(path, "path"), "%q does not begin with a slash", h.Path)
	}
	for _, s := range []struct{ field, value string }{{"path", h.Path}, {"host", h.Host}} {
		for _, c := range []byte(s.value) {
			if c <= ' ' || c == 0x7f {
				r.errorf(join(path, s.field), "%q has spaces or control characters", s.value)
				break
			}
		}
	}
	if m.GetResponseBufferSize() != nil {
		h.MaxBody = min(m.GetResponseBufferSize().GetValue(), maxBuffer)
	}
	if n := m.GetMethod(); n != corev3.RequestMethod_METHOD_UNSPECIFIED {
		h.Method = n.String()
	}
	switch h.Method {
	case "CONNECT":
		r.errorf(join(path, "method"), "CONNECT asks for no answer")
	case "GET", "HEAD", "DELETE", "TRACE":
		if len(h.Body) > 0 {
			r.errorf(join(path, "send"), "%s has no body", h.Method)
		}
	}
	if m.GetCodecClientType() == typev3.CodecClientType_HTTP3 {
		r.errorf(join(path, "codec_client_type"), "HTTP3 is not supported")
	}
	if s := m.GetServiceNameMatcher(); s != nil {
		sm := r.stringMatch(join(path, "service_name_matcher"), s)
		h.Service = &sm
	}
	h.Edits = append(r.additions(join(path, "request_headers_to_add"), m.GetRequestHeadersToAdd()), r.removals(join(path, "request_headers_to_remove"), m.GetRequestHeadersToRemove())...)
	return h
}

func (r *run) statuses(path string, list []*typev3.Int64Range) []model.StatusRange {
	var out []model.StatusRange
	for i, s := range list {
		if s.GetStart() < 100 || s.GetEnd() > 600 || s.GetStart() >= s.GetEnd() {
			r.errorf(index(path, i), "[%d, %d) is not within [100, 600)", s.GetStart(), s.GetEnd())
			continue
		}
		out = append(out, model.StatusRange{Start: int(s.GetStart()), End: int(s.GetEnd())})
	}
	return out
}

func (r *run) payloads(path string, list []*corev3.HealthCheck_Payload) [][]byte {
	var out [][]byte
	for i, p := range list {
		out = append(out, r.payload(index(path, i), p))
	}
	return out
}

func (r *run) payload(path string, p *corev3.HealthCheck_Payload) []byte {
	switch p := p.GetPayload().(type) {
	case *corev3.HealthCheck_Payload_Text:
		b, err := hex.DecodeString(p.Text)
		if err != nil {
			r.errorf(join(path, "text"), "%w", err)
		}
		return b
	case *corev3.HealthCheck_Payload_Binary:
		return p.Binary
	}
	return nil
}
