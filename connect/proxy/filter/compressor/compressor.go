// Package compressor compresses responses for clients that accept it.
package compressor

import (
	"bytes"
	"compress/gzip"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.compressor"

// Config says which responses are compressed, by gzip.
type Config struct {
	Level        int    // of package gzip
	Library      string // its name, for counters
	Disabled     bool
	MinLength    int64 // bytes of a body whose length is known
	ContentTypes []string
	// A response with a strong ETag: is not compressed, or gets a weak one; else it loses it.
	SkipETag, WeakenETag bool
	RemoveAccept         bool // the service does not see "accept-encoding"
	Codes                []int
}

// FilterType returns "envoy.filters.http.compressor".
func (*Config) FilterType() string { return name }

// A RouteConfig is what a route says.
type RouteConfig struct {
	Disabled     bool
	RemoveAccept *bool // nil leaves it
}

// FilterType returns "envoy.filters.http.compressor".
func (*RouteConfig) FilterType() string { return name }

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*RouteConfig), nil }

// DefaultMinLength and DefaultContentTypes say what is worth it.
const DefaultMinLength = 30

var DefaultContentTypes = []string{
	"application/javascript", "application/json", "application/xhtml+xml", "image/svg+xml", "text/css", "text/html",
	"text/plain", "text/xml", "application/graphql-response+json", "application/wasm", "font/ttf", "font/otf", "application/xml",
}

type compressFilter struct {
	name                                                          string
	conf                                                          *Config
	writers                                                       *sync.Pool
	compressed, not, in, out, noAccept, identity, accepted, small *stats.Counter
}

func newFilter(filterName string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	c := conf.(*Config)
	if _, err := gzip.NewWriterLevel(io.Discard, c.Level); err != nil {
		return nil, err
	}
	base := "compressor." + c.Library + ".gzip.response."
	s := func(n string) *stats.Counter { return env.Stats.Counter(base + n) }
	return &compressFilter{
		name: filterName, conf: c,
		writers: &sync.Pool{New: func() any {
			w, _ := gzip.NewWriterLevel(io.Discard, c.Level)
			return w
		}},
		compressed: s("compressed"), not: s("not_compressed"), in: s("total_uncompressed_bytes"), out: s("total_compressed_bytes"),
		noAccept: s("no_accept_header"), identity: s("header_identity"), accepted: s("header_compressor_used"), small: s("content_length_too_small"),
	}, nil
}

// asked are the values of a request's "accept-encoding".
type asked string

func (f *compressFilter) Request(x *filter.Exchange) *filter.Reply {
	disabled, remove := f.conf.Disabled, f.conf.RemoveAccept
	if r, isRoute := x.RouteConfig(f.name).(*RouteConfig); isRoute {
		disabled = disabled || r.Disabled
		if r.RemoveAccept != nil {
			remove = *r.RemoveAccept
		}
	}
	if disabled {
		return nil
	}
	h := &x.Request.Header
	v, _ := h.Lookup("accept-encoding", &x.Request.Arena)
	x.SetState(f, asked(v))
	if remove {
		h.Del("accept-encoding")
	}
	return nil
}

func (f *compressFilter) Response(x *filter.Exchange) *filter.Reply {
	accept, enabled := x.State(f).(asked)
	if !enabled || x.ResponseBody == message.NoBody || x.Request.Method == "HEAD" || x.Response.Status < 200 || x.Request.Upgrade != "" {
		return nil
	}
	r := x.Response
	h := &r.Header
	if !f.worth(r) {
		f.not.Inc()
		return nil
	}
	if vary, _ := h.Lookup("vary", &r.Arena); !lists(vary, "accept-encoding") && strings.TrimSpace(vary) != "*" {
		if vary == "" {
			h.Set("vary", "Accept-Encoding")
		} else {
			h.Set("vary", r.Arena.Concat(vary, ", Accept-Encoding"))
		}
	}
	switch {
	case accept == "":
		f.noAccept.Inc()
	case !Accepts(string(accept)):
		f.identity.Inc()
	default:
		f.accepted.Inc()
		f.compressed.Inc()
		if tag := h.Get("etag"); tag != "" && !weak(tag) {
			if f.conf.WeakenETag {
				h.Set("etag", r.Arena.Concat("W/", tag))
			} else {
				h.Del("etag")
			}
		}
		h.Del("content-length")
		r.ContentLength = -1
		h.Set("content-encoding", "gzip")
		w := f.writers.Get().(*gzip.Writer)
		z := &zipped{Source: x.ResponseBody, f: f, w: w}
		w.Reset(&z.buf)
		x.ResponseBody = z
		return nil
	}
	f.not.Inc()
	return nil
}

// Finish gives up what the response needed, if its body was not read to the end.
func (f *compressFilter) Finish(x *filter.Exchange) {
	if z, ok := x.ResponseBody.(*zipped); ok {
		z.close()
	}
}

// worth reports whether a response may be compressed and gains by it.
func (f *compressFilter) worth(r *message.Response) bool {
	h := &r.Header
	if r.Status == 204 || r.Status == 206 || r.Status == 304 || slices.Contains(f.conf.Codes, r.Status) || h.Has("content-encoding") {
		return false
	}
	if cc, _ := h.Lookup("cache-control", &r.Arena); lists(cc, "no-transform") {
		return false
	}
	if r.ContentLength >= 0 && r.ContentLength < f.conf.MinLength {
		f.small.Inc()
		return false
	}
	if tag := h.Get("etag"); f.conf.SkipETag && tag != "" && !weak(tag) {
		return false
	}
	if !h.Has("content-type") {
		return true
	}
	t, _, _ := strings.Cut(h.Get("content-type"), ";")
	t = strings.TrimSpace(t)
	return slices.ContainsFunc(f.conf.ContentTypes, func(s string) bool { return strings.EqualFold(s, t) })
}

func weak(tag string) bool { return strings.HasPrefix(tag, "W/") || strings.HasPrefix(tag, "w/") }

// lists reports whether a list of tokens has one.
func lists(list, token string) bool {
	for t := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(t), token) {
			return true
		}
	}
	return false
}

// Accepts reports whether "accept-encoding" prefers gzip to no coding, or does not mind.
func Accepts(v string) bool {
	zip, identity, other := -1.0, -1.0, -1.0
	for item := range strings.SplitSeq(v, ",") {
		coding, params, _ := strings.Cut(item, ";")
		q := 1.0
		if k, n, ok := strings.Cut(strings.TrimSpace(params), "="); ok && strings.EqualFold(strings.TrimSpace(k), "q") {
			var err error
			if q, err = strconv.ParseFloat(strings.TrimSpace(n), 64); err != nil || !(q >= 0 && q <= 1) {
				continue
			}
		}
		switch strings.ToLower(strings.TrimSpace(coding)) {
		case "gzip", "x-gzip":
			zip = max(zip, q)
		case "identity":
			identity = max(identity, q)
		case "*":
			other = max(other, q)
		}
	}
	if zip < 0 {
		zip = other
	}
	return zip > 0 && zip >= identity
}

// zipped is a body in gzip.
type zipped struct {
	message.Source
	f   *compressFilter
	w   *gzip.Writer // nil once it was given back
	buf bytes.Buffer
	end bool
}

func (z *zipped) Read() ([]byte, error) {
	if z.end {
		return nil, io.EOF
	}
	z.buf.Reset()
	for z.buf.Len() == 0 {
		p, err := z.Source.Read()
		z.f.in.Add(uint64(len(p)))
		if _, werr := z.w.Write(p); werr != nil {
			return nil, werr
		}
		switch {
		case err == io.EOF:
			z.end = true
			err = z.w.Close()
			z.close()
			if err != nil {
				return nil, err
			}
			z.f.out.Add(uint64(z.buf.Len()))
			return z.buf.Bytes(), io.EOF
		case err != nil:
			return nil, err
		case !z.Source.Ready():
			// Nothing more for now: who waits for this gets it.
			if err := z.w.Flush(); err != nil {
				return nil, err
			}
		}
	}
	z.f.out.Add(uint64(z.buf.Len()))
	return z.buf.Bytes(), nil
}

func (z *zipped) Ready() bool { return z.end || z.Source.Ready() }

func (z *zipped) close() {
	if z.w != nil {
		z.f.writers.Put(z.w)
		z.w, z.end = nil, true
	}
}
