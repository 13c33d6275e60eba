package transport

import (
	"context"
	"errors"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A Standing tells whether a read would still be answered the same. It is safe for concurrent use. Close it when nobody
// asks any more.
type Standing struct {
	d          *Dispatcher
	waiter     *mvcc.Waiter
	token      string
	authorizer *acl.Authorizer
	maxStale   time.Duration
}

// Follow performs a read for this process, as Call does. If it is a stale one that was answered from the state here, it
// also returns what tells whether it would be answered the same again; else nil: only another call can tell.
func (d *Dispatcher) Follow(ctx context.Context, m rpc.Descriptor, req, resp any) (*Standing, error) {
	rt, err := d.route(m.Name)
	if err != nil {
		return nil, err
	}
	r := request{rt: rt, req: req}
	o := r.options()
	if o == nil || o.MinIndex != 0 || d.refused.Err() != nil || !d.mayAnswerStale(o) {
		return nil, d.Call(ctx, m, req, resp)
	}
	if dc, err := d.elsewhere(r); dc != "" || err != nil {
		return nil, d.Call(ctx, m, req, resp)
	}
	if err := d.admitRate(r); err != nil {
		return nil, err
	}
	c, err := d.call(ctx, r)
	if err != nil {
		return nil, err
	}
	v := d.cfg.Store.WatchView()
	d.counts.queries.Add(1)
	reply, err := d.readOnce(ctx, r, c, o, v, nil)
	switch {
	case errors.Is(err, errBehind):
		return nil, d.Call(ctx, m, req, resp)
	case err != nil:
		return nil, err
	}
	rt.copyReply(resp, reply)
	return &Standing{d, v.Waiter(), o.Token, c.Authorizer, o.MaxStale}, nil
}

// ended is a context that keeps nobody waiting.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// outOfTouch is the time without word from the leader from which on every read is to be made for itself, and counted.
const outOfTouch = 5 * time.Second

// Current reports whether nothing has changed that the read has shown, its token may do what it could, and this server
// has heard from the leader as the read demands. It waits for nobody.
func (s *Standing) Current() bool {
	if s.waiter.Changed() || s.d.refused.Err() != nil || s.d.behind() {
		return false
	}
	if contact, heard := s.d.cfg.Log.LastContact(); !heard || contact > outOfTouch || s.maxStale > 0 && contact > s.maxStale {
		return false
	}
	z, err := s.d.cfg.Resolver.Resolve(ended, s.token)
	return err == nil && z == s.authorizer
}

// Close ends it.
func (s *Standing) Close() { s.waiter.Close() }
