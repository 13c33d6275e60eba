package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/span"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/fsm"
)

// A Resolver finds what a token may do.
type Resolver interface {
	// Resolve returns the authorizer for a token's secret, empty for the anonymous token. While what the token may do
	// stays the same, so should the authorizer.
	Resolve(ctx context.Context, token string) (*acl.Authorizer, error)
}

// A Log is what a Dispatcher asks of the replicated log: a *consensus.Raft.
type Log interface {
	Status() (consensus.Status, <-chan struct{})
	Leadership() context.Context
	LastContact() (time.Duration, bool)
	Verify(ctx context.Context) error
	Apply(ctx context.Context, kind fsm.Kind, req any) (any, error)
}

// Elsewhere makes calls to other datacenters: a *federation.Federation.
type Elsewhere interface {
	Call(ctx context.Context, datacenter, method string, req, resp any) error
	Stream(ctx context.Context, datacenter, method string, req any, in io.Reader, resp any) (io.ReadCloser, error)
}

// A Config tunes a Dispatcher. A zero field takes its default.
type Config struct {
	Datacenter string
	Registry   *Registry
	Store      *state.Store
	Log        Log
	// Applied returns the index of the last log entry that readers of Store can see; default 0.
	Applied func() uint64
	// AddressOf returns the address of a server's port by node ID.
	AddressOf func(id string) (string, bool)
	// Remote reaches other servers.
	Remote *rpcwire.Client
	// Elsewhere reaches other datacenters; nil knows none.
	Elsewhere Elsewhere
	// Security tells servers from agents.
	Security *rpcwire.Security
	Resolver Resolver // default grants everything

	HoldTimeout      time.Duration // how long a call waits for a leader; default 7s
	DefaultQueryTime time.Duration // how long a read blocks that does not say; default 300s
	MaxQueryTime     time.Duration // default 600s
	ClientTimeout    time.Duration // of a call to another server that does not block; default 60s

	Limits Limits // how many calls this server takes

	Logger hclog.Logger // default discards
}

// A Dispatcher answers calls here or has them answered by the leader. It implements rpc.Streamer for callers in this
// process, and gives the methods that serve others over the network.
type Dispatcher struct {
	cfg Config
	log hclog.Logger

	limiter limiter
	counts  counts
	timeout atomic.Int64 // of SetClientTimeout; 0 before

	refused context.Context // ends with Refuse
	refuse  context.CancelFunc
	// floor is the greatest index this server has shown in stale reads, from its own state or on behalf of the leader: it
	// answers none from an older state, so that what it shows never gets older. Its state may be behind that after a
	// start, and when Raft restores a snapshot whose copy arrives late.
	floor atomic.Uint64

	index leaderIndex
}

var _ rpc.Streamer = (*Dispatcher)(nil)

// NewDispatcher returns a dispatcher. The registry must be complete.
func NewDispatcher(cfg Config) *Dispatcher {
	if cfg.Resolver == nil {
		cfg.Resolver = everything{acl.Everything()}
	}
	if cfg.Security == nil {
		cfg.Security = &rpcwire.Security{}
	}
	if cfg.AddressOf == nil {
		cfg.AddressOf = func(string) (string, bool) { return "", false }
	}
	if cfg.Applied == nil {
		cfg.Applied = func() uint64 { return 0 }
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&cfg.HoldTimeout, 7 * time.Second}, {&cfg.DefaultQueryTime, 300 * time.Second},
		{&cfg.MaxQueryTime, 600 * time.Second}, {&cfg.ClientTimeout, 60 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	d := &Dispatcher{cfg: cfg, log: cfg.Logger.Named("rpc")}
	d.limiter.log = d.log
	d.limiter.set(cfg.Limits)
	d.refused, d.refuse = context.WithCancel(context.Background())
	return d
}

type everything struct{ z *acl.Authorizer }

func (e everything) Resolve(context.Context, string) (*acl.Authorizer, error) { return e.z, nil }

// Refuse makes every call fail from now on, as when there is no leader; blocked reads end with what they have. A
// leaving server calls it.
func (d *Dispatcher) Refuse() { d.refuse() }

// Call performs a call for this process.
func (d *Dispatcher) Call(ctx context.Context, m rpc.Descriptor, req, resp any) error {
	rt, err := d.route(m.Name)
	if err != nil {
		return err
	}
	reply, err := d.perform(ctx, request{rt: rt, req: req})
	if err != nil {
		return err
	}
	rt.copyReply(resp, reply)
	return nil
}

func (d *Dispatcher) route(name string) (*route, error) {
	rt, ok := d.cfg.Registry.routes[name]
	if !ok {
		return nil, fmt.Errorf("unknown call %q", name)
	}
	return rt, nil
}

// SetClientTimeout changes how long calls to come may take at another server; zero changes nothing.
func (d *Dispatcher) SetClientTimeout(t time.Duration) {
	if t > 0 {
		d.timeout.Store(int64(t))
	}
}

func (d *Dispatcher) clientTimeout() time.Duration {
	if t := d.timeout.Load(); t > 0 {
		return time.Duration(t)
	}
	return d.cfg.ClientTimeout
}

// Internal returns a caller for this server's own work: it has every right and is answered from here alone, so that a
// write fails when this server does not lead.
func (d *Dispatcher) Internal() rpc.Caller { return internal{d} }

type internal struct{ d *Dispatcher }

func (i internal) Call(ctx context.Context, m rpc.Descriptor, req, resp any) error {
	rt, err := i.d.route(m.Name)
	if err != nil {
		return err
	}
	var reply any
	if rt.view != nil {
		r := request{rt: rt, req: req, authorizer: acl.Everything()}
		reply, err = i.d.read(ctx, r, i.d.limit(r), true)
	} else {
		if s, _ := i.d.cfg.Log.Status(); !s.Leading && rt.Kind != rpc.KindLocal {
			return consensus.ErrNotLeader
		}
		reply, err = i.d.run(ctx, request{rt: rt, req: req, authorizer: acl.Everything()})
	}
	if err != nil {
		return err
	}
	rt.copyReply(resp, reply)
	return nil
}

// A request is one call on its way.
type request struct {
	rt  *route
	req any
	// forwarded calls come from a server that took this one for the leader: they go no further.
	forwarded bool
	// authorizer is set when the rights are known already.
	authorizer *acl.Authorizer
}

// target returns where the call is to go, nil when that is not part of the request.
func (r request) target() *read.Target {
	if t, ok := r.req.(interface{ RequestTarget() *read.Target }); ok {
		return t.RequestTarget()
	}
	return nil
}

func (r request) options() *read.Options {
	if o, ok := r.req.(interface{ ReadOptions() *read.Options }); ok {
		return o.ReadOptions()
	}
	return nil
}

// perform has a call answered by whoever must, and returns a pointer to its reply.
func (d *Dispatcher) perform(ctx context.Context, r request) (any, error) {
	if d.refused.Err() != nil {
		return nil, wireerr.ErrNoLeader
	}
	if err := d.admitRate(r); err != nil {
		return nil, err
	}
	if dc, err := d.elsewhere(r); err != nil {
		return nil, err
	} else if dc != "" {
		return d.away(ctx, r, dc)
	}
	switch {
	case r.rt.Kind == rpc.KindLocal:
		return d.run(ctx, r)
	case r.rt.Kind == rpc.KindRead && d.mayAnswerStale(r.options()):
		reply, err := d.read(ctx, r, d.limit(r), true)
		if !errors.Is(err, errBehind) {
			return reply, err
		}
	}
	return d.performAsLeader(ctx, r)
}

// performAsLeader has a call answered by the leader, or as it would. It is apart from perform to keep small the stack on which
// stale reads wait, of which a server of a large fleet has tens of thousands: one of more than 4 KiB stays in 16.
func (d *Dispatcher) performAsLeader(ctx context.Context, r request) (any, error) {
	until := time.Time{}
	if r.rt.Kind == rpc.KindRead {
		until = d.limit(r)
	}
	return hold(ctx, d, r,
		func() (any, error) {
			if r.rt.Kind == rpc.KindRead {
				return d.read(ctx, r, until, false)
			}
			return d.run(ctx, r)
		},
		func(address string) (any, error) {
			if d.mayConfirm(r, until) {
				if reply, ok, err := d.confirmed(ctx, r, address); ok {
					return reply, err
				}
			}
			return d.forward(ctx, r, address, until)
		})
}

// admitRate refuses a call over the request limits.
func (d *Dispatcher) admitRate(r request) error {
	s, _ := d.cfg.Log.Status()
	return d.limiter.admit(r.rt.Descriptor, s.Leading)
}

// elsewhere returns the datacenter that a call is for, empty for this one.
func (d *Dispatcher) elsewhere(r request) (string, error) {
	t := r.target()
	switch {
	case t == nil || t.Datacenter == "" || t.Datacenter == d.cfg.Datacenter:
		return "", nil
	case r.forwarded || d.cfg.Elsewhere == nil:
		return "", wireerr.ErrNoDatacenter
	}
	return t.Datacenter, nil
}

// away has a call answered in another datacenter.
func (d *Dispatcher) away(ctx context.Context, r request, datacenter string) (any, error) {
	timeout, req := d.clientTimeout(), r.req
	if until := d.limit(r); r.rt.Kind == rpc.KindRead && !until.IsZero() {
		req = r.rt.copyRequest(r.req)
		own := req.(interface{ ReadOptions() *read.Options }).ReadOptions()
		own.MaxWait = max(time.Until(until), time.Millisecond)
		timeout += own.MaxWait + own.MaxWait/8
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply := r.rt.newReply()
	defer d.countElsewhere(datacenter)
	if err := d.cfg.Elsewhere.Call(ctx, datacenter, r.rt.Name, req, reply); err != nil {
		return nil, err
	}
	return reply, nil
}

// mayAnswerStale reports whether this server answers a read from what it has: it was asked to, it leads or has heard
// from a leader, and it has all it has shown before.
func (d *Dispatcher) mayAnswerStale(o *read.Options) bool {
	if o == nil || o.Mode != read.Stale {
		return false
	}
	_, heard := d.cfg.Log.LastContact()
	if !heard {
		return false
	}
	return !d.behind()
}

// behind reports whether the state is older than what was shown before.
func (d *Dispatcher) behind() bool {
	floor := d.floor.Load()
	return floor != 0 && d.cfg.Applied() < floor
}

// limit returns when a blocking read ends, the zero time for one that does not block.
func (d *Dispatcher) limit(r request) time.Time {
	o := r.options()
	if o == nil || o.MinIndex == 0 {
		return time.Time{}
	}
	wait := o.MaxWait
	if r.forwarded && wait > 0 { // the server that forwards it has set the limit
		return time.Now().Add(min(wait, d.cfg.MaxQueryTime+d.cfg.MaxQueryTime/16))
	}
	if wait <= 0 {
		wait = d.cfg.DefaultQueryTime
	}
	wait = min(wait, d.cfg.MaxQueryTime)
	// Those that began together do not end together.
	return time.Now().Add(wait + time.Duration(rand.Int64N(int64(wait/16)+1)))
}

// hold has a call answered by the leader: here, or there. While there is none it waits, up to the hold timeout after
// the call has begun, or after a leader has failed that was answering a blocking read. What may have been done is not
// tried again.
func hold[T any](ctx context.Context, d *Dispatcher, r request, here func() (T, error), there func(address string) (T, error)) (none T, err error) {
	deadline := time.Now().Add(d.cfg.HoldTimeout)
	for {
		s, changed := d.cfg.Log.Status()
		var reply T
		switch {
		case s.Leading:
			reply, err = here()
		case s.Elected:
			err = errNotCaughtUp
		case r.forwarded:
			return none, wireerr.ErrNoLeader
		case s.Known():
			address := s.LeaderAddress
			if a, ok := d.cfg.AddressOf(s.LeaderID); ok {
				address = a
			}
			if address == "" {
				err = errLeaderAddress
			} else {
				reply, err = there(address)
			}
		default:
			err = wireerr.ErrNoLeader
		}
		if err == nil || !retriable(r.rt.Kind, err) {
			return reply, err
		}
		if brokeOff(err) {
			deadline = time.Now().Add(d.cfg.HoldTimeout)
		}
		wait := min(time.Until(deadline), time.Duration(rand.Int64N(int64(d.cfg.HoldTimeout/16)+1)))
		if wait <= 0 {
			return none, d.gaveUp(r, err)
		}
		if err := d.awaitLeader(ctx, wait, changed); err != nil {
			return none, err
		}
	}
}

// awaitLeader waits for a while, or until something has changed about who leads.
func (d *Dispatcher) awaitLeader(ctx context.Context, wait time.Duration, changed <-chan struct{}) error {
	_, s := span.Start(ctx, span.Internal, "wait for a leader")
	defer s.Finish()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	case <-d.refused.Done():
		return wireerr.ErrNoLeader
	}
	return nil
}

var (
	errNotCaughtUp   = errors.New("elected, but not caught up")
	errLeaderAddress = errors.New("Raft leader not found in server lookup mapping")
	errLedNoMore     = errors.New("no longer the leader")
	errBehind        = errors.New("the state is older than what was shown before")
)

// gaveUp is the error of a call that found no leader in time.
func (d *Dispatcher) gaveUp(r request, err error) error {
	switch {
	case errors.Is(err, errNotCaughtUp):
		if o := r.options(); o != nil && o.Mode == read.Consistent {
			return wireerr.ErrNotReady
		}
		return wireerr.ErrNoLeader
	case errors.Is(err, errLedNoMore), isNotLeader(err):
		return wireerr.ErrNoLeader
	}
	return err
}

// isNotLeader recognises the error of a write that was not made, also when it comes from another server.
func isNotLeader(err error) bool {
	return errors.Is(err, consensus.ErrNotLeader) || strings.Contains(err.Error(), "node is not the leader")
}

// brokeOff reports whether a call failed after a leader had taken it.
func brokeOff(err error) bool {
	_, lost := errors.AsType[*rpcwire.LostError](err)
	return lost || errors.Is(err, errLedNoMore)
}

// retriable reports whether a call that failed so has certainly not been done, or may be done twice.
func retriable(kind rpc.Kind, err error) bool {
	if _, final := errors.AsType[*finalError](err); final {
		return false
	}
	if errors.Is(err, wireerr.ErrNoLeader) || errors.Is(err, errNotCaughtUp) || errors.Is(err, errLedNoMore) ||
		errors.Is(err, errLeaderAddress) || isNotLeader(err) {
		return true
	}
	if dial, ok := errors.AsType[*rpcwire.DialError](err); ok {
		return !errors.Is(dial, rpcwire.ErrClosed)
	}
	_, lost := errors.AsType[*rpcwire.LostError](err)
	return lost && kind == rpc.KindRead
}

// forwardedPrefix begins the names under which servers call each other on behalf of a caller.
const forwardedPrefix = "Forwarded."

// forward has the leader at the address answer.
func (d *Dispatcher) forward(ctx context.Context, r request, address string, until time.Time) (any, error) {
	timeout := d.clientTimeout()
	req := r.req
	if o := r.options(); o != nil && (!until.IsZero() || o.Mode == read.Stale) {
		req = r.rt.copyRequest(r.req)
		own := req.(interface{ ReadOptions() *read.Options }).ReadOptions()
		if !until.IsZero() {
			own.MaxWait = max(time.Until(until), time.Millisecond)
			timeout = own.MaxWait + own.MaxWait/16 + d.cfg.HoldTimeout
		}
		if o.Mode == read.Stale { // this server cannot answer; nor should another that is as far behind
			own.Mode = read.Default
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if r.rt.Kind == rpc.KindRead {
		// A leader that is cut off does not answer: ask the next one when there is one.
		stop := d.cancelWhenLeaderChanges(ctx, cancel)
		defer stop()
	}
	reply := r.rt.newReply()
	call := d.cfg.Remote.Call
	if r.rt.Kind == rpc.KindWrite { // these come in crowds
		call = d.cfg.Remote.CallShort
	}
	err := call(ctx, address, forwardedPrefix+r.rt.Name, req, reply)
	if err != nil && errors.Is(context.Cause(ctx), context.Canceled) && r.rt.Kind == rpc.KindRead {
		return nil, errLedNoMore
	}
	if err != nil {
		return nil, err
	}
	if o := r.options(); o != nil && o.Mode == read.Stale {
		d.showed(reply.(interface{ ReadMeta() *read.Meta }).ReadMeta().Index)
	}
	return reply, nil
}

// showed raises the floor of stale reads.
func (d *Dispatcher) showed(index uint64) {
	for old := d.floor.Load(); index > old && !d.floor.CompareAndSwap(old, index); old = d.floor.Load() {
	}
}

// cancelWhenLeaderChanges calls cancel when another server has become the leader.
func (d *Dispatcher) cancelWhenLeaderChanges(ctx context.Context, cancel func()) (stop func()) {
	first, changed := d.cfg.Log.Status()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case <-ctx.Done():
				return
			case <-changed:
			}
			var s consensus.Status
			if s, changed = d.cfg.Log.Status(); s.Known() && s.LeaderID != first.LeaderID {
				cancel()
				return
			}
		}
	}()
	return func() { close(done) }
}

// call makes what a handler is given.
func (d *Dispatcher) call(ctx context.Context, r request) (*Call, error) {
	z := r.authorizer
	if z == nil {
		token := ""
		if t := r.target(); t != nil {
			token = t.Token
		}
		var err error
		if z, err = d.cfg.Resolver.Resolve(ctx, token); err != nil {
			return nil, err
		}
	}
	return &Call{Authorizer: z, Store: d.cfg.Store, Datacenter: d.cfg.Datacenter, Resolve: d.cfg.Resolver.Resolve}, nil
}

// run answers a call that is no read, here.
func (d *Dispatcher) run(ctx context.Context, r request) (any, error) {
	c, err := d.call(ctx, r)
	if err != nil {
		return nil, err
	}
	c.apply = d.cfg.Log.Apply
	if r.rt.timer != nil {
		defer r.rt.timer.Since(time.Now())
	}
	return r.rt.call(ctx, c, r.req)
}

// read answers a read from the local state; stale ones whoever leads, others only while this server does. It blocks
// until the given time by the rules of spec/state.md section 1.3.
func (d *Dispatcher) read(ctx context.Context, r request, until time.Time, stale bool) (any, error) {
	o := r.options()
	var lead context.Context
	if !stale {
		lead = d.cfg.Log.Leadership()
	}
	d.counts.queries.Add(1)
	// What the token may do is looked at after the state: nothing is shown that is newer than that.
	if until.IsZero() {
		v := d.cfg.Store.View()
		c, err := d.call(ctx, r)
		if err != nil {
			return nil, err
		}
		return d.readOnce(ctx, r, c, o, v, lead)
	}

	d.counts.blocking.Add(1)
	defer d.counts.blocking.Add(-1)
	minIndex, missing := o.MinIndex, false
	for {
		v := d.cfg.Store.WatchView()
		c, err := d.call(ctx, r)
		if err != nil {
			return nil, err
		}
		reply, err := d.readOnce(ctx, r, c, o, v, lead)
		if err != nil {
			return nil, err
		}
		meta := reply.(interface{ ReadMeta() *read.Meta }).ReadMeta()
		if meta.NotFound {
			if missing { // other objects changed; this one is still not there
				minIndex = max(minIndex, meta.Index)
			}
			missing = true
		}
		if meta.Index > minIndex || v.Replaced() {
			return reply, nil
		}
		replaced := v.Replaces()
		_, waiting := span.Start(ctx, span.Internal, "wait for a change")
		changed := d.await(ctx, r, c, v.Waiter(d.refused.Done(), doneOf(lead)), until)
		waiting.Finish()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case lead != nil && lead.Err() != nil:
			return nil, errLedNoMore
		case !changed || d.refused.Err() != nil || isClosed(replaced): // the limit, or another state
			v := d.cfg.Store.View()
			now, err := d.call(ctx, r)
			if err != nil {
				return nil, err
			}
			if now.Authorizer != c.Authorizer {
				return d.readOnce(ctx, r, now, o, v, lead)
			}
			d.finish(meta, lead != nil)
			return reply, nil
		}
	}
}

// recheckEvery is how often a blocked read looks whether its token may still do what it did.
const recheckEvery = 30 * time.Second

// await waits until the given time for a change, and closes w. It reports false when there was none, or when the token of
// the request may no longer do what it did.
func (d *Dispatcher) await(ctx context.Context, r request, c *Call, w *mvcc.Waiter, until time.Time) bool {
	defer w.Close()
	timer := time.NewTimer(min(recheckEvery, time.Until(until)))
	defer timer.Stop()
	for {
		if w.Until(ctx.Done(), timer.C) {
			return true
		}
		if ctx.Err() != nil || !time.Now().Before(until) {
			return false
		}
		if now, err := d.call(ctx, r); err != nil || now.Authorizer != c.Authorizer {
			return false
		}
		timer.Reset(min(recheckEvery, time.Until(until)))
	}
}

// doneOf returns the channel that is closed at the end of ctx, nil for no context.
func doneOf(ctx context.Context) <-chan struct{} {
	if ctx == nil {
		return nil
	}
	return ctx.Done()
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// readOnce runs a read on a view. Leadership is confirmed after the view was opened: who leads now led then, and had
// everything in its state that was answered to anybody before.
func (d *Dispatcher) readOnce(ctx context.Context, r request, c *Call, o *read.Options, v *state.View, lead context.Context) (any, error) {
	if lead != nil && o.Mode == read.Consistent {
		vctx, cancel := context.WithTimeout(ctx, d.cfg.HoldTimeout)
		_, verifying := span.Start(ctx, span.Internal, "raft verify leader")
		began := time.Now()
		err := d.cfg.Log.Verify(vctx)
		metricConsistent.Since(began)
		verifying.Finish()
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return nil, wireerr.ErrNotReady
		case err != nil:
			return nil, err
		}
	}
	switch {
	case lead != nil && lead.Err() != nil:
		return nil, errLedNoMore
	case lead == nil && r.authorizer == nil && d.behind(): // the view may be from after a restore
		return nil, errBehind
	}
	reply, err := r.rt.answer(ctx, c, v, r.req)
	if err != nil {
		return nil, err
	}
	if lead == nil {
		d.showed(d.cfg.Applied())
	}
	d.finish(reply.(interface{ ReadMeta() *read.Meta }).ReadMeta(), lead != nil)
	return reply, nil
}

// finish sets what the handler of a read leaves to the dispatcher.
func (d *Dispatcher) finish(m *read.Meta, leading bool) {
	m.Index = max(m.Index, 1)
	if leading {
		m.KnownLeader, m.LastContact = true, 0
		return
	}
	s, _ := d.cfg.Log.Status()
	m.KnownLeader = s.Known()
	m.LastContact, _ = d.cfg.Log.LastContact()
}
