package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// errServersOnly is answered to an agent that calls what only servers may.
var errServersOnly = fmt.Errorf("%w: only servers may make this call", wireerr.ErrPermissionDenied)

// Methods returns what serves callers over the network.
func (d *Dispatcher) Methods() (methods []rpcwire.Method, streams []rpcwire.StreamMethod) {
	for name, rt := range d.cfg.Registry.routes {
		if rt.stream != nil {
			streams = append(streams,
				rpcwire.StreamMethod{Name: name, Handle: d.serveStream(rt, false)},
				rpcwire.StreamMethod{Name: forwardedPrefix + name, Handle: d.serveStream(rt, true)})
			continue
		}
		methods = append(methods,
			rpcwire.Method{Name: name, Handle: d.serve(rt, false)},
			rpcwire.Method{Name: forwardedPrefix + name, Handle: d.serve(rt, true)})
	}
	return append(methods, rpcwire.Method{Name: indexMethod, Handle: d.serveIndex}), streams
}

// Calls returns the calls that have a handler, ordered by name.
func (d *Dispatcher) Calls() []rpc.Descriptor {
	var list []rpc.Descriptor
	for _, rt := range d.cfg.Registry.routes {
		list = append(list, rt.Descriptor)
	}
	slices.SortFunc(list, func(a, b rpc.Descriptor) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// admit reports whether a peer may make the call.
func (d *Dispatcher) admit(rt *route, forwarded bool, p rpcwire.Peer) error {
	if (rt.serversOnly || forwarded) && d.cfg.Security.RestrictsServers() && !p.Is(d.cfg.Security.ServerName(d.cfg.Datacenter)) {
		return errServersOnly
	}
	return nil
}

// guard turns a panic of a handler into an error of its call.
func (d *Dispatcher) guard(rt *route, err *error) {
	if p := recover(); p != nil {
		d.log.Error("call panicked", "call", rt.Name, "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("call %s failed unexpectedly", rt.Name)
	}
}

func (d *Dispatcher) serve(rt *route, forwarded bool) func(context.Context, rpcwire.Peer, func(any) error) (any, error) {
	return func(ctx context.Context, p rpcwire.Peer, decode func(any) error) (reply any, err error) {
		d.counts.requests.Add(1)
		defer func() {
			if err != nil {
				d.counts.errors.Add(1)
			}
		}()
		defer d.guard(rt, &err)
		if err := d.admit(rt, forwarded, p); err != nil {
			return nil, err
		}
		req := rt.newRequest()
		if err := decode(req); err != nil {
			return nil, err
		}
		return d.perform(ctx, request{rt: rt, req: req, forwarded: forwarded})
	}
}

func (d *Dispatcher) serveStream(rt *route, forwarded bool) func(context.Context, rpcwire.Peer, func(any) error, io.Reader, func(any) error, io.Writer) error {
	return func(ctx context.Context, p rpcwire.Peer, decode func(any) error, in io.Reader, reply func(any) error, out io.Writer) (err error) {
		defer d.guard(rt, &err)
		if err := d.admit(rt, forwarded, p); err != nil {
			return err
		}
		req := rt.newRequest()
		if err := decode(req); err != nil {
			return err
		}
		return d.performStream(ctx, request{rt: rt, req: req, forwarded: forwarded}, in, reply, out)
	}
}

// performStream has a call with byte streams answered by whoever must.
func (d *Dispatcher) performStream(ctx context.Context, r request, in io.Reader, reply func(any) error, out io.Writer) error {
	if err := d.admitRate(r); err != nil {
		return err
	}
	if dc, err := d.elsewhere(r); err != nil {
		return err
	} else if dc != "" {
		resp := r.rt.newReply()
		body, err := d.cfg.Elsewhere.Stream(ctx, dc, r.rt.Name, r.req, in, resp)
		if err != nil {
			return err
		}
		defer body.Close()
		if err := reply(resp); err != nil {
			return err
		}
		_, err = io.Copy(out, body)
		return err
	}
	here := func() error {
		c, err := d.call(ctx, r)
		if err != nil {
			return err
		}
		c.apply = d.cfg.Log.Apply
		return r.rt.stream(ctx, c, r.req, in, reply, out)
	}
	if r.rt.Kind == rpc.KindLocal || r.rt.Kind == rpc.KindRead && d.mayAnswerStale(r.options()) {
		return here()
	}
	// Once bytes have been taken or given there is no second try.
	used := &tracked{in: in, out: out, reply: reply}
	in, out, reply = used, writerFunc(used.write), used.send
	_, err := hold(ctx, d, r,
		func() (struct{}, error) { return struct{}{}, used.final(here()) },
		func(address string) (struct{}, error) {
			resp := r.rt.newReply()
			body, err := d.cfg.Remote.Stream(ctx, address, forwardedPrefix+r.rt.Name, r.req, in, resp)
			if err != nil {
				return struct{}{}, used.final(err)
			}
			defer body.Close()
			if err := reply(resp); err != nil {
				return struct{}{}, used.final(err)
			}
			_, err = io.Copy(out, body)
			return struct{}{}, used.final(err)
		})
	if f, ok := errors.AsType[*finalError](err); ok {
		return f.error
	}
	return err
}

// A tracked call notes whether its streams were used.
type tracked struct {
	in    io.Reader
	out   io.Writer
	reply func(any) error
	used  bool
}

func (t *tracked) Read(b []byte) (int, error) {
	t.used = true
	return t.in.Read(b)
}

func (t *tracked) write(b []byte) (int, error) {
	t.used = true
	return t.out.Write(b)
}

func (t *tracked) send(resp any) error {
	t.used = true
	return t.reply(resp)
}

// final marks an error after which there is no second try.
func (t *tracked) final(err error) error {
	if err != nil && t.used {
		return &finalError{err}
	}
	return err
}

// A finalError is not to be retried, whatever it wraps.
type finalError struct{ error }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Stream performs a call with byte streams for this process.
func (d *Dispatcher) Stream(ctx context.Context, m rpc.Descriptor, req any, in io.Reader, resp any) (io.ReadCloser, error) {
	rt, err := d.route(m.Name)
	if err != nil {
		return nil, err
	}
	if rt.stream == nil {
		return nil, fmt.Errorf("call %q has no stream", m.Name)
	}
	if in == nil {
		in = strings.NewReader("")
	}
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	replied := make(chan error, 1)
	var once sync.Once
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := d.performStream(ctx, request{rt: rt, req: req}, in, func(reply any) error {
			once.Do(func() {
				rt.copyReply(resp, reply)
				replied <- nil
			})
			return nil
		}, pw)
		once.Do(func() {
			if err == nil {
				err = fmt.Errorf("call %s gave no reply", rt.Name)
			}
			replied <- err
		})
		pw.CloseWithError(err)
	}()
	if err := <-replied; err != nil {
		cancel()
		<-done
		return nil, err
	}
	return &localBody{pr, cancel, done}, nil
}

// A localBody is the stream after the reply of a call in process.
type localBody struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

func (b *localBody) Close() error {
	b.cancel()
	b.PipeReader.Close()
	<-b.done
	return nil
}
