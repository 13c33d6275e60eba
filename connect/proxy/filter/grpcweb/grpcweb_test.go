package grpcweb_test

import (
	"encoding/base64"
	"errors"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcweb"
)

func TestBothForms(t *testing.T) {
	const tail = "\x80\x00\x00\x00\x25grpc-status:0\r\ngrpc-message:it's ok\r\n"
	enc := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, tt := range []struct {
		name, contentType, accept string
		in                        []string
		out, outType              string
	}{
		{"binary", "application/grpc-web", "", []string{"abc"}, "xyz1234" + tail, "application/grpc-web+proto"},
		{"text", "application/grpc-web-text+proto", "application/grpc-web-text", []string{"YWJj"}, enc("xyz") + enc("1234") + enc(tail), "application/grpc-web-text+proto"},
		{"text in odd pieces", "application/grpc-web-text", "*/*", []string{"Y", "Q==Y", "mM", "="}, "xyz1234" + tail, "application/grpc-web+proto"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := filtertest.New(t, grpcweb.Type, &grpcweb.Config{})
			x := b.Exchange("POST", "/s/m", "content-type", tt.contentType, "accept", tt.accept, "content-length", "4")
			x.Body, x.Request.ContentLength = filtertest.Body(tt.in...), 4
			res := b.Run(x, func(x *filter.Exchange) {
				x.Response.Header.Add("content-type", "application/grpc")
				s := filtertest.Body("xyz", "1234")
				s.Tail = filtertest.Trailers("grpc-status", "0", "grpc-message", "it's ok")
				x.ResponseBody = s
			})
			if h := &x.Request.Header; res.Sent != "abc" || h.Get("content-type") != "application/grpc" || h.Get("te") != "trailers" || h.Has("content-length") || x.Request.ContentLength != -1 {
				t.Errorf("the host got %q\n%s", res.Sent, filtertest.Fields(h))
			}
			if res.Body != tt.out || res.Trailer != nil || res.Header.Get("content-type") != tt.outType {
				t.Errorf("the client got %q, want %q; %s", res.Body, tt.out, filtertest.Fields(&res.Header))
			}
		})
	}
}

func TestBadBase64BreaksOff(t *testing.T) {
	b := filtertest.New(t, grpcweb.Type, &grpcweb.Config{})
	for _, in := range []string{"a!!=", "YWJ"} {
		x := b.Exchange("POST", "/s/m", "content-type", "application/grpc-web-text")
		x.Body = filtertest.Body(in)
		res := b.Run(x, nil)
		if r, ok := errors.AsType[*filter.Refused](res.Err); !ok || r.Reply.Status != 400 {
			t.Errorf("%q: %v", in, res.Err)
		}
	}
}

func TestOtherResponsesBecomeMessages(t *testing.T) {
	b := filtertest.New(t, grpcweb.Type, &grpcweb.Config{})
	x := b.Exchange("POST", "/s/m", "content-type", "application/grpc-web")
	res := b.Run(x, func(x *filter.Exchange) {
		x.Response.Status = 502
		x.Response.Header.Add("content-type", "text/html")
		x.ResponseBody = filtertest.Body("oops\n")
	})
	if h := &res.Header; res.Body != "" || h.Get("content-type") != "application/grpc-web+proto" || h.Get("grpc-status") != "14" || h.Get("grpc-message") != "oops%0A" {
		t.Errorf("%q %s", res.Body, filtertest.Fields(h))
	}
	x = b.Exchange("POST", "/s/m", "content-type", "application/grpc")
	if b.Run(x, nil); x.Request.Header.Has("te") {
		t.Error("a call that is none of gRPC-Web was changed")
	}
}
