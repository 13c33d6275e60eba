package dns

import (
	"context"

	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/internal/span"
)

// begin begins the span of a question, if it is to be recorded. One that came by gRPC is part of its call.
func (s *Server) begin(ctx context.Context, req *dns.Msg, tcp bool) (context.Context, *span.Span) {
	if !s.cfg.Tracer.On() || len(req.Question) != 1 {
		return ctx, nil
	}
	q := req.Question[0]
	name := "DNS"
	if t, ok := dns.TypeToString[q.Qtype]; ok {
		name += " " + t
	}
	ctx, sp := span.Start(ctx, span.Internal, name)
	if sp == nil {
		ctx, sp = s.cfg.Tracer.Begin(ctx, span.Context{}, span.Server, name)
	}
	if sp == nil {
		return ctx, nil
	}
	if _, ours := s.zone(q.Name); ours { // what others are asked is between them and who asks
		sp.Text("dns.question.name", q.Name)
	}
	transport := "udp"
	if tcp {
		transport = "tcp"
	}
	sp.Text("network.transport", transport)
	return ctx, sp
}

// finish ends the span of a question.
func finish(s *span.Span, resp *dns.Msg) {
	if s == nil {
		return
	}
	if resp != nil {
		code := dns.RcodeToString[resp.Rcode]
		s.Text("dns.response.code", code)
		if resp.Rcode == dns.RcodeServerFailure {
			s.Fail(code)
		}
	}
	s.Finish()
}
