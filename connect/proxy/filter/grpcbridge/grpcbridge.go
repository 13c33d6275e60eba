// Package grpcbridge lets clients of HTTP/1 call gRPC services: what such a client can't read, trailers, goes into
// headers.
package grpcbridge

import (
	"strconv"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/held"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter}

const name = "envoy.filters.http.grpc_http1_bridge"

// Config is the filter.
type Config struct{}

// FilterType returns "envoy.filters.http.grpc_http1_bridge".
func (*Config) FilterType() string { return name }

type bridge struct{}

func newFilter(string, model.FilterConfig, *filter.Env) (filter.Filter, error) { return &bridge{}, nil }

func (f *bridge) Request(x *filter.Exchange) *filter.Reply {
	if x.Request.Version != message.HTTP2 && x.GRPC() {
		x.SetState(f, true)
	}
	return nil
}

func (f *bridge) Response(x *filter.Exchange) *filter.Reply {
	if x.State(f) == nil || x.ResponseBody == message.NoBody {
		return nil
	}
	b, err := held.Read(x.ResponseBody, x.BufferLimit)
	if err != nil {
		return filter.Deny(503, "upstream connect error or disconnect/reset before headers. reset reason: "+message.ReasonOf(err).String(), "grpc_bridge_response_incomplete", 0)
	}
	if len(b.Bytes) > x.BufferLimit {
		return filter.Deny(500, "Internal Server Error", "response_payload_too_large", 0)
	}
	r := x.Response
	if t := x.ResponseBody.Trailer(); t != nil {
		if s := t.Get("grpc-status"); s != "" {
			if s != "0" {
				r.Status = 503
			}
			r.Header.Set("grpc-status", r.Arena.String(s))
		}
		if m := t.Get("grpc-message"); m != "" {
			r.Header.Set("grpc-message", r.Arena.String(m))
		}
	}
	r.ContentLength = int64(len(b.Bytes))
	r.Header.Set("content-length", r.Arena.End(strconv.AppendInt(r.Arena.Begin(), r.ContentLength, 10)))
	x.ResponseBody = b.WithoutTrailer()
	return nil
}
