package rpcwire

import (
	"context"
	"errors"
	"net"
	"strconv"

	"github.com/sarnmesh/sarn/internal/span"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A call for a request that is recorded is a span on either side. It goes with the headers of W3C Trace Context, which a
// server that does not know them ignores; other calls have none. It does not go on a lane, whose frames have no headers.

// callSpan begins the span of a call to a server. It returns ctx and nil if the call is for no request that is recorded.
func callSpan(ctx context.Context, address, method string) (context.Context, *span.Span) {
	if span.From(ctx) == nil {
		return ctx, nil
	}
	ctx, s := span.Start(ctx, span.Client, service+"/"+method)
	describe(s, method)
	if host, port, err := net.SplitHostPort(address); err == nil {
		s.Text("server.address", host)
		if n, err := strconv.Atoi(port); err == nil {
			s.Int("server.port", n)
		}
	}
	return s.Outgoing(ctx), s
}

func describe(s *span.Span, method string) {
	s.Text("rpc.system", "grpc")
	s.Text("rpc.service", service)
	s.Text("rpc.method", method)
}

// Trace has calls recorded by t that come for requests which are recorded where they come from. Call it before Serve.
func (s *Server) Trace(t *span.Tracer) { s.tracer = t }

// servedSpan begins the span of a call that came from elsewhere; nil if it is not recorded.
func (s *Server) servedSpan(ctx context.Context, method string) (context.Context, *span.Span) {
	if !s.tracer.On() {
		return ctx, nil
	}
	from := span.Incoming(ctx)
	if !from.Sampled {
		return ctx, nil
	}
	ctx, sp := s.tracer.Begin(ctx, from, span.Server, service+"/"+method)
	describe(sp, method)
	return ctx, sp
}

// finish ends the span of a call. Errors tell what users keep, so that only their kind is told. What is the caller's fault
// is none of the server.
func finish(s *span.Span, err error) {
	if s == nil {
		return
	}
	if err != nil {
		if how := failure(err); s.Kind == span.Client || how[0] != '4' {
			s.Fail(how)
		} else {
			s.Text("error.type", how)
		}
	}
	s.Finish()
}

// failure is the kind of an error, one of few words or a status of HTTP.
func failure(err error) string {
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline_exceeded"
	}
	if _, ok := errors.AsType[*DialError](err); ok {
		return "unreachable"
	}
	if _, ok := errors.AsType[*LostError](err); ok {
		return "connection_lost"
	}
	return strconv.Itoa(wireerr.Status(err))
}
