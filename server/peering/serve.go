package peering

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/peeringrpc"
)

// Service is the name of the gRPC service that peers call.
const Service = "sarn.peering.v1.Peering"

const (
	exchangeMethod = "/" + Service + "/Exchange"
	streamMethod   = "/" + Service + "/Stream"
)

// leaderKey is where, in the trailer of an answer, the address of the leader is.
const leaderKey = "sarn-leader"

var description = grpc.ServiceDesc{
	ServiceName: Service, HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Exchange", Handler: func(srv any, ctx context.Context, dec func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.BytesValue)
		if err := dec(in); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, req any) (any, error) {
			return srv.(*Engine).serveExchange(ctx, req.(*wrapperspb.BytesValue))
		}
		if intercept == nil {
			return handle(ctx, in)
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: exchangeMethod}, handle)
	}}},
	Streams: []grpc.StreamDesc{{
		StreamName: "Stream", ServerStreams: true, ClientStreams: true,
		Handler: func(srv any, s grpc.ServerStream) error { return srv.(*Engine).serveStream(s) },
	}},
}

// Register adds what peers call to a gRPC server.
func (e *Engine) Register(r grpc.ServiceRegistrar) { r.RegisterService(&description, e) }

var (
	errSecret  = status.Error(codes.PermissionDenied, "the secret is not, or no longer, good")
	errPlain   = status.Error(codes.PermissionDenied, "peers call over TLS")
	errBusy    = status.Error(codes.ResourceExhausted, "too many calls of peers at once, try again later")
	errGarbled = status.Error(codes.InvalidArgument, "the message is not one that is known here")
)

// admit returns the present leadership, whose tasks count the call until it is over, or the error to answer a caller with.
func (e *Engine) admit(ctx context.Context, setTrailer func(metadata.MD)) (*leading, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errPlain
	}
	if _, ok := p.AuthInfo.(credentials.TLSInfo); !ok {
		return nil, errPlain
	}
	e.mu.Lock()
	now := e.lead
	if now != nil {
		now.tasks.Add(1)
	}
	e.mu.Unlock()
	if now == nil {
		if a := e.cfg.LeaderAddress(); a != "" {
			setTrailer(metadata.Pairs(leaderKey, a))
		}
		return nil, status.Error(codes.FailedPrecondition, errNotLeader.Error())
	}
	return now, nil
}

// serveExchange takes the secret of a token and gives one for streams.
func (e *Engine) serveExchange(ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
	now, err := e.admit(ctx, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
	if err != nil {
		return nil, err
	}
	defer now.tasks.Done()
	select {
	case e.greetings <- struct{}{}:
		defer func() { <-e.greetings }()
	default:
		return nil, errBusy
	}
	var req exchangeRequest
	if decode(in.Value, &req) != nil {
		return nil, errGarbled
	}
	v := now.l.Store.View()
	p, s := v.PeeringByID(req.Peering), v.PeeringSecrets(req.Peering)
	if s == nil {
		s = &peering.Secrets{}
	}
	if !peering.Matches(s.Establishment, req.Secret) || p == nil || p.Dials() || !p.Open() {
		e.log.Warn("a token that is not good was shown", "caller", caller(ctx))
		return nil, errSecret
	}
	secret, err := peeringrpc.NewSecret(e.cfg.Random)
	if err != nil {
		return nil, status.Error(codes.Internal, "no secret could be made")
	}
	next := &peering.Secrets{ID: p.ID, Active: s.Active, Pending: peering.Digest(secret)}
	_, err = now.l.Apply(ctx, fsm.Peering, &peering.Update{Secrets: next, Exchange: s.Establishment})
	if err != nil {
		e.log.Warn("the secret of a token could not be exchanged", "peer", p.Name, "error", err)
		return nil, status.Error(codes.Unavailable, "the secret could not be exchanged")
	}
	e.log.Info("a peer has taken its token", "peer", p.Name, "caller", caller(ctx))
	return pack(&exchangeReply{Secret: secret})
}

func caller(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// helloTime is how long a caller may take to say who it is.
const helloTime = 10 * time.Second

// serveStream talks with a peer that has called.
func (e *Engine) serveStream(gs grpc.ServerStream) error {
	ctx := gs.Context()
	now, err := e.admit(ctx, gs.SetTrailer)
	if err != nil {
		return err
	}
	defer now.tasks.Done()
	select {
	case e.greetings <- struct{}{}:
	default:
		return errBusy
	}
	p, other, err := e.greet(ctx, now, gs)
	<-e.greetings
	if err != nil {
		return err
	}
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(now.ctx, func() { cancel(errNotLeader) })()
	err = e.converse(own, now, p, gs, *other)
	e.ended(now, p, err)
	switch {
	case errors.Is(err, errNotLeader):
		return status.Error(codes.FailedPrecondition, errNotLeader.Error())
	case errors.Is(err, errEnded), errors.Is(err, errDeleted):
		return nil
	}
	return status.Error(codes.Aborted, "the stream has ended")
}

// soon runs f, which uses the stream, for as long as a caller may take to say who it is. When that is over, f ends with
// the stream.
func (e *Engine) soon(ctx context.Context, now *leading, f func() error) error {
	done := make(chan error, 1)
	now.tasks.Go(func() { done <- f() })
	t := time.NewTimer(helloTime)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return status.Error(codes.DeadlineExceeded, "nothing was said in time")
	case <-ctx.Done():
		return ctx.Err()
	case <-now.ctx.Done():
		return status.Error(codes.FailedPrecondition, errNotLeader.Error())
	}
}

// greet lets a caller say who it is.
func (e *Engine) greet(ctx context.Context, now *leading, gs grpc.ServerStream) (*peering.Peering, *hello, error) {
	var first *message
	said := make(chan *message, 1)
	err := e.soon(ctx, now, func() error {
		m, err := receive(gs)
		said <- m
		return err
	})
	if err == nil {
		first = <-said
	}
	if first == nil || first.Open == nil {
		return nil, nil, errGarbled
	}
	open := first.Open
	v := now.l.Store.View()
	p, s := v.PeeringByID(open.Peering), v.PeeringSecrets(open.Peering)
	if s == nil {
		s = &peering.Secrets{}
	}
	active, pending := peering.Matches(s.Active, open.Secret), peering.Matches(s.Pending, open.Secret)
	if !active && !pending || p == nil || p.Dials() {
		e.log.Warn("a stream was refused: its secret is not good", "caller", caller(ctx))
		return nil, nil, errSecret
	}
	if !p.Open() {
		_ = e.soon(ctx, now, func() error { return send(gs, &message{End: true}) }) // it will notice otherwise
		return nil, nil, status.Error(codes.NotFound, errDeleted.Error())
	}
	if pending {
		if _, err := now.l.Apply(ctx, fsm.Peering, &peering.Update{Promote: p.ID}); err != nil {
			return nil, nil, status.Error(codes.Unavailable, "the secret could not be put in force")
		}
	}
	welcome := &message{Welcome: &hello{Datacenter: e.cfg.Datacenter}}
	if err := e.soon(ctx, now, func() error { return send(gs, welcome) }); err != nil {
		return nil, nil, err
	}
	return p, open, nil
}

// ended notes why a stream has ended.
func (e *Engine) ended(now *leading, p *peering.Peering, err error) {
	switch {
	case errors.Is(err, errEnded):
		e.log.Info("the peer has deleted the peering", "peer", p.Name)
		e.setState(now.ctx, now, p, peering.Terminated)
	case now.ctx.Err() != nil:
	default:
		e.log.Info("the stream to the peer has ended", "peer", p.Name, "reason", err)
	}
}
