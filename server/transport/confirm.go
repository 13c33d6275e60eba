package transport

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/span"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A server that does not lead answers a read as the leader would when its state has everything the leader's has. It asks
// the leader for the index of its state, one question for all reads that have come in since the one before, and only
// where it is behind has the leader answer the read.

// indexMethod is the name under which servers ask each other for the index of their state.
const indexMethod = forwardedPrefix + "Index"

type (
	indexRequest struct{}
	indexReply   struct{ Index uint64 }
)

// serveIndex tells another server the index of this one's state, while this one leads.
func (d *Dispatcher) serveIndex(_ context.Context, p rpcwire.Peer, decode func(any) error) (any, error) {
	if err := d.admit(&route{}, true, p); err != nil {
		return nil, err
	}
	if err := decode(&indexRequest{}); err != nil {
		return nil, err
	}
	// Who leads has applied all that was acknowledged to anybody: the order of the two matters.
	if s, _ := d.cfg.Log.Status(); !s.Leading || d.refused.Err() != nil {
		return nil, wireerr.ErrNoLeader
	}
	return &indexReply{d.cfg.Applied()}, nil
}

// leaderIndex finds the index of the leader's state for those who ask at the same time.
type leaderIndex struct {
	mu      sync.Mutex
	asking  bool      // a question is under way
	next    *question // of those who have come since, nil when nobody has
	forward time.Time // until when this server is taken to be behind
}

// A question is asked once for all who wait for done.
type question struct {
	address string
	done    chan struct{}
	index   uint64
	err     error
}

// forwardFor is how long reads go to the leader at once when this server was found to be behind. Others follow the leader
// within that time, unless more is written.
const forwardFor = 20 * time.Millisecond

// askIndex returns an index that the state of the leader at the address has had since askIndex was called.
func (d *Dispatcher) askIndex(ctx context.Context, address string) (uint64, error) {
	x := &d.index
	x.mu.Lock()
	if x.next != nil && x.next.address != address {
		x.mu.Unlock()
		return 0, errLedNoMore
	}
	if x.next == nil {
		x.next = &question{address: address, done: make(chan struct{})}
	}
	q := x.next
	if !x.asking {
		x.asking = true
		go d.ask()
	}
	x.mu.Unlock()
	select {
	case <-q.done:
		return q.index, q.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// ask puts one question after another while somebody waits for an answer.
func (d *Dispatcher) ask() {
	x := &d.index
	for {
		x.mu.Lock()
		q := x.next
		if x.next = nil; q == nil {
			x.asking = false
			x.mu.Unlock()
			return
		}
		x.mu.Unlock()
		ctx, cancel := context.WithTimeout(d.refused, d.clientTimeout())
		stop := d.cancelWhenLeaderChanges(ctx, cancel)
		var reply indexReply
		q.err = d.cfg.Remote.Call(ctx, q.address, indexMethod, &indexRequest{}, &reply)
		if q.err != nil && errors.Is(context.Cause(ctx), context.Canceled) {
			q.err = errLedNoMore
		}
		stop()
		cancel()
		q.index = reply.Index
		close(q.done)
	}
}

// mayConfirm reports whether a read that is the leader's to answer may be answered here once the leader has told its
// index.
func (d *Dispatcher) mayConfirm(r request, until time.Time) bool {
	o := r.options()
	if !r.rt.fromState || o == nil || o.Mode != read.Default || !until.IsZero() {
		return false
	}
	d.index.mu.Lock()
	defer d.index.mu.Unlock()
	return d.index.forward.IsZero() || time.Now().After(d.index.forward)
}

// confirmed answers a read from this server's state if that has all the leader's has; ok is false when the leader is to
// answer.
func (d *Dispatcher) confirmed(ctx context.Context, r request, address string) (reply any, ok bool, err error) {
	_, asking := span.Start(ctx, span.Internal, "ask the leader for its index")
	index, err := d.askIndex(ctx, address)
	asking.Finish()
	switch {
	case err != nil && (ctx.Err() != nil || retriable(r.rt.Kind, err)):
		return nil, true, err
	case err != nil: // a leader that does not know the question
		d.keepForwarding(time.Minute)
		return nil, false, nil
	case d.cfg.Applied() < index:
		d.keepForwarding(forwardFor)
		return nil, false, nil
	}
	v := d.cfg.Store.View()
	if d.cfg.Applied() < index { // Raft restores a snapshot meanwhile
		return nil, false, nil
	}
	c, err := d.call(ctx, r)
	if err != nil {
		return nil, true, err
	}
	d.counts.queries.Add(1)
	reply, err = r.rt.answer(ctx, c, v, r.req)
	if err != nil {
		return nil, true, err
	}
	d.finish(reply.(interface{ ReadMeta() *read.Meta }).ReadMeta(), true)
	return reply, true, nil
}

func (d *Dispatcher) keepForwarding(long time.Duration) {
	d.index.mu.Lock()
	defer d.index.mu.Unlock()
	d.index.forward = time.Now().Add(long)
}
