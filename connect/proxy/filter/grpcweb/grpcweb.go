// Package grpcweb translates between gRPC-Web, which browsers speak, and gRPC: trailers become the last message of a
// body, which may be in base64.
package grpcweb

import (
	"encoding/base64"
	"encoding/binary"
	"io"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter}

const (
	name  = "envoy.filters.http.grpc_web"
	plain = "application/grpc-web"
	text  = "application/grpc-web-text"
)

// Config is the filter.
type Config struct{}

// FilterType returns "envoy.filters.http.grpc_web".
func (*Config) FilterType() string { return name }

type webFilter struct{}

func newFilter(string, model.FilterConfig, *filter.Env) (filter.Filter, error) {
	return &webFilter{}, nil
}

// asText and asBinary are states: how the response is to be written.
type form bool

func (f *webFilter) Request(x *filter.Exchange) *filter.Reply {
	h := &x.Request.Header
	inText := false
	switch h.Get("content-type") {
	case plain, plain + "+proto":
	case text, text + "+proto":
		inText = true
	default:
		return nil
	}
	accept := h.Get("accept")
	x.SetState(f, form(strings.Contains(accept, text)))
	h.Set("content-type", "application/grpc")
	h.Set("te", "trailers")
	h.Set("grpc-accept-encoding", "identity")
	h.Del("content-length")
	x.Request.ContentLength = -1
	if inText && x.Body != message.NoBody {
		x.Body = &decoded{Source: x.Body}
	}
	return nil
}

func (f *webFilter) Response(x *filter.Exchange) *filter.Reply {
	inText, web := x.State(f).(form)
	if !web || x.Response.Status != 200 || !route.IsGRPC(&x.Response.Header) {
		return nil
	}
	h := &x.Response.Header
	if inText {
		h.Set("content-type", text+"+proto")
	} else {
		h.Set("content-type", plain+"+proto")
	}
	h.Del("content-length")
	x.Response.ContentLength = -1
	if x.ResponseBody != message.NoBody {
		x.ResponseBody = &framed{Source: x.ResponseBody, text: bool(inText)}
	}
	return nil
}

// decoded is a body that came in base64. Every four characters stand for themselves, so pieces may have been padded.
type decoded struct {
	message.Source
	left [4]byte
	n    int
	buf  []byte
}

func (d *decoded) Read() ([]byte, error) {
	p, err := d.Source.Read()
	d.buf = d.buf[:0]
	for _, c := range p {
		d.left[d.n] = c
		if d.n++; d.n < 4 {
			continue
		}
		d.n = 0
		var b error
		if d.buf, b = base64.StdEncoding.AppendDecode(d.buf, d.left[:]); b != nil {
			return nil, &message.StreamError{Reason: message.ProtocolError, Detail: "grpc_base_64_decode_failed"}
		}
	}
	if err == io.EOF && d.n != 0 {
		return nil, &message.StreamError{Reason: message.ProtocolError, Detail: "grpc_base_64_decode_failed_bad_size"}
	}
	return d.buf, err
}

// framed is a body that ends with its trailers.
type framed struct {
	message.Source
	text bool
	buf  []byte
}

func (f *framed) Read() ([]byte, error) {
	p, err := f.Source.Read()
	if err == io.EOF {
		if t := f.Source.Trailer(); t != nil {
			f.buf = append(append(f.buf[:0], p...), 0x80, 0, 0, 0, 0)
			head := len(f.buf)
			for i := range t.Len() {
				h := t.At(i)
				f.buf = append(append(append(append(f.buf, h.Name...), ':'), h.Value...), "\r\n"...)
			}
			binary.BigEndian.PutUint32(f.buf[head-4:], uint32(len(f.buf)-head))
			p = f.buf
		}
	}
	if f.text && len(p) > 0 {
		p = base64.StdEncoding.AppendEncode(nil, p)
	}
	return p, err
}

func (*framed) Trailer() *message.Header { return nil }
