// Package transport carries calls: between the agents and the servers, between servers, and inside one. One TLS port
// serves Raft and RPC, told apart by ALPN. A Dispatcher answers a call here, or forwards it to the leader or to
// another datacenter, and runs blocking reads.
package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/fsm"
)

// A Call is what a handler may use beside its request.
type Call struct {
	// Authorizer answers for the request's token. A handler asks it before it reads or writes anything, leaves out of
	// lists what it does not grant, and shows the Permit it was given: no reply goes out and no command into the log
	// without one.
	Authorizer *acl.Authorizer
	// Store is the local state.
	Store *state.Store
	// Datacenter is this server's.
	Datacenter string
	// Resolve finds what another token may do.
	Resolve func(ctx context.Context, token string) (*acl.Authorizer, error)

	apply func(ctx context.Context, k fsm.Kind, req any) (any, error) // nil for reads
}

// Apply writes a command that was permitted to the Raft log and returns its applier's reply once it is applied here.
// Only on the leader, and not for reads.
func (c *Call) Apply(ctx context.Context, p acl.Permit, k fsm.Kind, req any) (any, error) {
	if !p.Given() {
		return nil, errNoPermit
	}
	return c.apply(ctx, k, req)
}

// errNoPermit reports a fault of a handler: it asked nobody.
var errNoPermit = errors.New("the call was not authorized")

// permitted lets a handler's reply out.
func permitted[Resp any](resp *Resp, p acl.Permit, err error) (any, error) {
	switch {
	case err != nil:
		return nil, err
	case !p.Given():
		return nil, errNoPermit
	case resp == nil:
		resp = new(Resp)
	}
	return resp, nil
}

// A Registry maps method names to handlers. Fill it before it is used; it is then read only.
type Registry struct{ routes map[string]*route }

// A route is one method with its handler behind a form free of type parameters.
type route struct {
	rpc.Descriptor
	newRequest, newReply func() any
	// Exactly one of these and stream is set.
	view func(ctx context.Context, c *Call, v *state.View, req any) (any, error)
	call func(ctx context.Context, c *Call, req any) (any, error)
	// stream is set for calls with a stream of bytes on either side, and only it.
	stream func(ctx context.Context, c *Call, req any, in io.Reader, reply func(any) error, out io.Writer) error
	// copyReply sets *dst = *src.
	copyReply func(dst, src any)
	// copyRequest returns a shallow copy.
	copyRequest func(req any) any
	// serversOnly keeps agents out where certificates tell servers apart.
	serversOnly bool
	// fromState: the answer follows from the state and the token alone.
	fromState bool
	timer     *measure.Timer // of calls done here, nil for those that are not measured
}

// newRoute fills in what every kind of handler has.
func newRoute[Req, Resp any](m rpc.Method[Req, Resp]) *route {
	return &route{
		Descriptor: m.Descriptor, timer: measured[m.Name], newRequest: func() any { return new(Req) }, newReply: func() any { return new(Resp) },
		copyReply:   func(dst, src any) { *dst.(*Resp) = *src.(*Resp) },
		copyRequest: func(req any) any { c := *req.(*Req); return &c },
	}
}

// answer runs the handler of a read.
func (rt *route) answer(ctx context.Context, c *Call, v *state.View, req any) (any, error) {
	if rt.timer != nil {
		defer rt.timer.Since(time.Now())
	}
	return rt.view(ctx, c, v, req)
}

// HandleRead registers the handler of a read. It sets Index (and Filtered, NotFound) of the reply's Meta; it is called
// again, on a newer view, while a blocking read's index has not passed the one asked for.
func HandleRead[Req, Resp any](r *Registry, m rpc.Method[Req, Resp], f func(c *Call, v *state.View, req *Req) (*Resp, acl.Permit, error)) {
	HandleReadContext(r, m, func(_ context.Context, c *Call, v *state.View, req *Req) (*Resp, acl.Permit, error) {
		return f(c, v, req)
	})
}

// HandleStateRead is HandleRead for a read whose answer follows from the request, the token and the state alone, whichever
// server has that. One that does not lead may answer it as the leader does: see confirm.go.
func HandleStateRead[Req, Resp any](r *Registry, m rpc.Method[Req, Resp], f func(c *Call, v *state.View, req *Req) (*Resp, acl.Permit, error)) {
	HandleRead(r, m, f)
	r.routes[m.Name].fromState = true
}

// HandleReadContext is HandleRead for a read that goes beyond the local state: it asks others, or for another token's
// rights.
func HandleReadContext[Req, Resp any](r *Registry, m rpc.Method[Req, Resp], f func(ctx context.Context, c *Call, v *state.View, req *Req) (*Resp, acl.Permit, error)) {
	if m.Kind != rpc.KindRead {
		panic(fmt.Sprintf("transport: %s is not a read", m.Name))
	}
	rt := newRoute(m)
	rt.view = func(ctx context.Context, c *Call, v *state.View, req any) (any, error) {
		return permitted(f(ctx, c, v, req.(*Req)))
	}
	r.add(rt)
	// Both sides of a read must carry what the dispatcher needs.
	if _, ok := any(new(Req)).(interface{ ReadOptions() *read.Options }); !ok {
		panic(fmt.Sprintf("transport: the request of %s embeds no read.Options", m.Name))
	}
	if _, ok := any(new(Resp)).(interface{ ReadMeta() *read.Meta }); !ok {
		panic(fmt.Sprintf("transport: the reply of %s embeds no read.Meta", m.Name))
	}
}

// Handle registers the handler of any other call.
func Handle[Req, Resp any](r *Registry, m rpc.Method[Req, Resp], f func(ctx context.Context, c *Call, req *Req) (*Resp, acl.Permit, error)) {
	if m.Kind == rpc.KindRead {
		panic(fmt.Sprintf("transport: %s is a read", m.Name))
	}
	rt := newRoute(m)
	rt.call = func(ctx context.Context, c *Call, req any) (any, error) {
		return permitted(f(ctx, c, req.(*Req)))
	}
	r.add(rt)
}

// HandleServers is Handle for calls that only servers may make of one another.
func HandleServers[Req, Resp any](r *Registry, m rpc.Method[Req, Resp], f func(ctx context.Context, c *Call, req *Req) (*Resp, acl.Permit, error)) {
	Handle(r, m, f)
	r.routes[m.Name].serversOnly = true
}

// HandleStream registers the handler of a call that takes or gives a stream of bytes: it reads what follows the request
// from in, replies once, and then writes what follows the reply to out.
func HandleStream[Req, Resp any](r *Registry, m rpc.Method[Req, Resp], f func(ctx context.Context, c *Call, req *Req, in io.Reader, reply func(acl.Permit, *Resp) error, out io.Writer) error) {
	rt := newRoute(m)
	rt.stream = func(ctx context.Context, c *Call, req any, in io.Reader, reply func(any) error, out io.Writer) error {
		return f(ctx, c, req.(*Req), in, func(p acl.Permit, resp *Resp) error {
			if !p.Given() {
				return errNoPermit
			}
			return reply(resp)
		}, out)
	}
	r.add(rt)
}

func (r *Registry) add(rt *route) {
	if r.routes == nil {
		r.routes = map[string]*route{}
	}
	if _, taken := r.routes[rt.Name]; taken {
		panic("transport: " + rt.Name + " registered twice")
	}
	r.routes[rt.Name] = rt
}
