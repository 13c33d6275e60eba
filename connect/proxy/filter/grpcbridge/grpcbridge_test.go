package grpcbridge_test

import (
	"io"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcbridge"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

func TestTrailersBecomeHeaders(t *testing.T) {
	b := filtertest.New(t, grpcbridge.Type, &grpcbridge.Config{})
	run := func(v message.Version, limit int, tail *message.Header, err error) filtertest.Result {
		x := b.Exchange("POST", "/s/m", "content-type", "application/grpc+proto")
		x.Request.Version, x.BufferLimit = v, limit
		return b.Run(x, func(x *filter.Exchange) {
			x.ResponseBody = &filtertest.Stream{Pieces: []string{"abc", "de"}, Tail: tail, Err: err}
		})
	}
	res := run(message.HTTP11, 5, filtertest.Trailers("grpc-status", "0"), nil)
	if res.Status != 200 || res.Body != "abcde" || res.Trailer != nil || filtertest.Fields(&res.Header) != "grpc-status: 0\ncontent-length: 5\n" {
		t.Errorf("%+v\n%s", res, filtertest.Fields(&res.Header))
	}
	res = run(message.HTTP11, 5, filtertest.Trailers("grpc-status", "7", "grpc-message", "no"), nil)
	if res.Status != 503 || res.Header.Get("grpc-status") != "7" || res.Header.Get("grpc-message") != "no" {
		t.Errorf("%+v", res)
	}
	if res = run(message.HTTP2, 5, filtertest.Trailers("grpc-status", "7"), nil); res.Status != 200 || res.Trailer.Get("grpc-status") != "7" {
		t.Errorf("a client of HTTP/2 got %+v", res)
	}
	if res = run(message.HTTP11, 4, nil, nil); res.Status != 500 || res.Reply.Details != "response_payload_too_large" {
		t.Errorf("%+v", res)
	}
	if res = run(message.HTTP11, 100, nil, io.ErrUnexpectedEOF); res.Status != 503 {
		t.Errorf("%+v of half a response", res)
	}
	if res := b.Run(b.Exchange("GET", "/"), func(x *filter.Exchange) { x.ResponseBody = filtertest.Body("a") }); res.Header.Len() != 0 || res.Body != "a" {
		t.Errorf("%+v of another request", res)
	}
}
