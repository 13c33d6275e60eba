// Package grpcweb translates between gRPC-Web, which browsers speak, and gRPC: trailers become the last message of a
// body, which may be in base64.
package grpcweb

import (
	"encoding/base64"
	"encoding/binary"
	"io"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/held"
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
	if !web {
		return nil
	}
	h := &x.Response.Header
	contentType := plain + "+proto"
	if inText {
		contentType = text + "+proto"
	}
	if x.Response.Status != 200 || !route.IsGRPC(h) {
		return wrap(x, contentType)
	}
	h.Set("content-type", contentType)
	h.Del("content-length")
	x.Response.ContentLength = -1
	if x.ResponseBody != message.NoBody {
		x.ResponseBody = &framed{Source: x.ResponseBody, text: bool(inText)}
	}
	return nil
}

// maxMessage bounds the message that another answer than one of gRPC becomes.
const maxMessage = 16 << 10

// wrap puts the body of an answer that is none of gRPC where a client of gRPC looks for it.
func wrap(x *filter.Exchange, contentType string) *filter.Reply {
	r := x.Response
	b, err := held.Read(x.ResponseBody, maxMessage)
	said := percentEncode(b.Bytes[:min(len(b.Bytes), maxMessage)])
	status := grpcStatus(r.Status)
	if err != nil || !b.Ended {
		// What is left is not worth waiting for.
		reply := filter.Deny(r.Status, "", x.Entry.HTTP.Details, 0)
		reply.Header = []message.Field{{Name: "content-type", Value: contentType}, {Name: "grpc-status", Value: status}, {Name: "grpc-message", Value: said}}
		return reply
	}
	h := &r.Header
	h.Set("content-type", contentType)
	h.Set("grpc-status", status)
	if said != "" {
		h.Set("grpc-message", said)
	}
	h.Del("content-length")
	r.ContentLength, x.ResponseBody = 0, message.NoBody
	return nil
}

// grpcStatus is the status of gRPC for a status of HTTP, as gRPC defines it.
func grpcStatus(status int) string {
	switch status {
	case 400:
		return "13"
	case 401:
		return "16"
	case 403:
		return "7"
	case 404:
		return "12"
	case 429, 502, 503, 504:
		return "14"
	}
	return "2"
}

// percentEncode encodes a message as gRPC wants it in a header.
func percentEncode(b []byte) string {
	const digits = "0123456789ABCDEF"
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c < ' ' || c > '~' || c == '%' {
			out = append(out, '%', digits[c>>4], digits[c&15])
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}

// bad is the error of a body that is not the base64 that it should be.
func bad(details string) error {
	return &filter.Refused{Reply: filter.Deny(400, "Bad gRPC-web request, invalid base64 data.", details, 0)}
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
			return nil, bad("grpc_base_64_decode_failed")
		}
	}
	if err == io.EOF && d.n != 0 {
		return nil, bad("grpc_base_64_decode_failed_bad_size")
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
	var tail []byte
	if err == io.EOF {
		if t := f.Source.Trailer(); t != nil {
			tail = append(tail, 0x80, 0, 0, 0, 0)
			for i := range t.Len() {
				h := t.At(i)
				tail = append(append(append(append(tail, h.Name...), ':'), h.Value...), "\r\n"...)
			}
			binary.BigEndian.PutUint32(tail[1:], uint32(len(tail)-5))
		}
	}
	if f.text {
		// Trailers are a piece of their own, however the body came.
		f.buf = base64.StdEncoding.AppendEncode(f.buf[:0], p)
		f.buf = base64.StdEncoding.AppendEncode(f.buf, tail)
		return f.buf, err
	}
	if len(tail) > 0 {
		f.buf = append(append(f.buf[:0], p...), tail...)
		p = f.buf
	}
	return p, err
}

func (*framed) Trailer() *message.Header { return nil }
