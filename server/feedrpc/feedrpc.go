// Package feedrpc gives agents feeds of the instances of services (package feed), from the state of whichever server they
// ask. What is subscribed to is a topic, looked at once after each change however many subscribe to it: what follows from
// the change is encoded once, and the same bytes go to all.
//
// Nothing waits in memory for a subscriber. One has the version of the state that it was sent; when its feed can take
// more, it is sent the events from there on, of which a topic keeps a few, or else the whole state as it is then. So a slow
// reader gets fewer and greater steps.
//
// What a token may see is asked again after the events were taken that are about to be sent, and before they are. Who may
// read every node and service shares a topic; others have a topic of their own, of what they may see.
package feedrpc

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config tunes a Hub. A zero field takes its default.
type Config struct {
	Store *state.Store
	// Candidates returns the instances that a request is about.
	Candidates func(v *state.View, req *catalog.InstancesRequest) (uint64, []*catalog.Instance)
	// Keep is how long a topic stays that nobody subscribes to; default 1m.
	Keep   time.Duration
	Logger hclog.Logger // default discards
}

// A Desk answers for this server: a *transport.Dispatcher.
type Desk interface {
	Stale() (read.Meta, bool)
	Applied() uint64
	Refused() <-chan struct{}
	Admit(m rpc.Descriptor) error
}

// A Hub has the topics and feeds of a server. Topics are looked at while Run runs.
type Hub struct {
	cfg  Config
	log  hclog.Logger
	desk Desk
	wake chan struct{} // holds one token while pending is not empty

	mu      sync.Mutex
	topics  map[topicKey]*topic
	pending []*topic // made, not yet started by Run
	feeds   map[*subscriber]struct{}
	stopped bool
}

// New returns a hub. Connect it before it is used.
func New(cfg Config) *Hub {
	if cfg.Keep <= 0 {
		cfg.Keep = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Hub{
		cfg: cfg, log: cfg.Logger.Named("feed"), wake: make(chan struct{}, 1),
		topics: map[topicKey]*topic{}, feeds: map[*subscriber]struct{}{},
	}
}

// Connect has the hub ask d, which answers the calls that Register adds.
func (h *Hub) Connect(d Desk) { h.desk = d }

// Register adds the handler of feeds.
func (h *Hub) Register(r *transport.Registry) { transport.HandleStream(r, feed.OpenCall, h.open) }

// Times of a hub.
const (
	tickEvery = time.Second
	// reportEvery is between two reports of the gauges.
	reportEvery = 5 * time.Second
	// recheckEvery is how often tokens are looked at whether anything has changed or not: they expire.
	recheckEvery = 30 * time.Second
	// keepSnapshot is how long an encoded state is kept for who may ask for it next.
	keepSnapshot = 10 * time.Second
	// floorWait is how long a subscription waits for this server to have what its agent has shown.
	floorWait = 5 * time.Second
	// readyWait is how long it waits for this server to answer at all; as long as that a server gives no answers before it
	// sends its agents to others: after a restore, it is until the next write.
	readyWait = 7 * time.Second
)

// Run looks at topics until ctx ends, then returns nil. Every goroutine of a topic has ended by then, and feeds have been
// told to end.
func (h *Hub) Run(ctx context.Context) error {
	var topics sync.WaitGroup
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	refused := h.desk.Refused()
	version, checked := h.cfg.Store.ACLVersion(), time.Now()
	able := time.Now() // when this server answered last
	var reported time.Time
	for {
		h.mu.Lock()
		starting := h.pending
		h.pending = nil
		h.mu.Unlock()
		for _, t := range starting {
			topics.Go(func() { t.run(ctx) })
		}
		select {
		case <-h.wake:
		case <-refused:
			refused = nil
			h.each((*subscriber).leave)
		case <-tick.C:
			if _, ok := h.desk.Stale(); ok {
				able = time.Now()
			} else if time.Since(able) >= readyWait {
				h.each((*subscriber).leave)
			}
			now := h.cfg.Store.ACLVersion()
			all := now != version || time.Since(checked) >= recheckEvery
			if all {
				version, checked = now, time.Now()
			}
			h.each(func(f *subscriber) { f.recheck(all) })
			h.sweep()
			if time.Since(reported) >= reportEvery {
				reported = time.Now()
				h.report()
			}
		case <-ctx.Done():
			h.mu.Lock()
			h.stopped, h.pending = true, nil
			h.mu.Unlock()
			h.each((*subscriber).leave)
			topics.Wait()
			return nil
		}
	}
}

func (h *Hub) each(do func(*subscriber)) {
	h.mu.Lock()
	all := make([]*subscriber, 0, len(h.feeds))
	for f := range h.feeds {
		all = append(all, f)
	}
	h.mu.Unlock()
	for _, f := range all {
		do(f)
	}
}

// sweep drops what is not used any more.
func (h *Hub) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, t := range h.topics {
		if t.sweep(h.cfg.Keep) {
			delete(h.topics, k)
			close(t.done)
		}
	}
}

// Stats tells how much a hub has.
type Stats struct{ Feeds, Subscriptions, Topics int }

// Stats returns current figures.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	s := Stats{Feeds: len(h.feeds), Topics: len(h.topics)}
	h.mu.Unlock()
	h.each(func(f *subscriber) {
		f.mu.Lock()
		defer f.mu.Unlock()
		s.Subscriptions += len(f.all)
	})
	return s
}

// A topicKey tells topics apart.
type topicKey struct {
	subject feed.Subject
	// authorizer is of who may not see everything; nil for all who may.
	authorizer *acl.Authorizer
}

// A topic is the state of a subject.
type topic struct {
	h    *Hub
	key  topicKey
	done chan struct{} // closed when the topic is dropped
	// again holds one token when the state is to be looked at though it has not changed: the index of what is not there, or
	// of a kind, rises with what concerns nobody who waits.
	again chan struct{}

	mu          sync.Mutex
	state       *feed.State // nil before the first
	looked      time.Time   // when the look began that has shown it
	err         error       // of the last attempt to look
	history     []event     // that led to state, the oldest first
	size        int         // of history, in bytes
	snapshot    []byte      // leads to state; nil while nobody has asked for it
	snapshotAt  time.Time   // when it was asked for last
	subscribers map[*subscription]struct{}
	unused      time.Time // since when there are none
}

// An event leads from a version to the next.
type event struct {
	from feed.Version
	data []byte
}

// How much of its history a topic keeps.
const (
	maxHistory     = 64
	maxHistorySize = 512 << 10
)

// join adds a subscription to the topic of what it is about and may see.
func (h *Hub) join(s *subscription, key topicKey) (*topic, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return nil, wireerr.ErrNoLeader
	}
	t := h.topics[key]
	if t == nil {
		t = &topic{h: h, key: key, done: make(chan struct{}), again: make(chan struct{}, 1), subscribers: map[*subscription]struct{}{}}
		h.topics[key] = t
		h.pending = append(h.pending, t)
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.subscribers[s] = struct{}{}
	return t, nil
}

func (t *topic) leave(s *subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.subscribers, s)
	if len(t.subscribers) == 0 {
		t.unused = time.Now()
	}
}

// sweep forgets what is kept for others, and reports whether the topic is to be dropped. The hub is locked.
func (t *topic) sweep(keep time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.snapshot != nil && time.Since(t.snapshotAt) > keepSnapshot {
		t.snapshot = nil
	}
	return len(t.subscribers) == 0 && time.Since(t.unused) >= keep
}

// Pauses of a topic.
const (
	// notReady is between two looks at a state from which this server does not answer.
	notReady = 50 * time.Millisecond
	// perSubscriber is, for each, between telling them of one change and looking for the next: under a load of changes the
	// processor has time for others, and several go together.
	perSubscriber = 20 * time.Microsecond
	maxSpread     = 100 * time.Millisecond
)

// run looks at the state after each change of it, until ctx ends or the topic is dropped.
func (t *topic) run(ctx context.Context) {
	for asked := false; ; {
		if _, ok := t.h.desk.Stale(); !ok {
			if !t.pause(ctx, notReady) {
				return
			}
			continue
		}
		began := time.Now()
		v := t.h.cfg.Store.WatchView()
		index, filtered, all, err := t.look(v)
		w := v.Waiter(ctx.Done(), t.done)
		if _, ok := t.h.desk.Stale(); !ok {
			w.Close()
			continue
		}
		told := t.publish(began, asked, index, filtered, all, err)
		if !t.pause(ctx, min(time.Duration(told)*perSubscriber, maxSpread)) {
			w.Close()
			return
		}
		asked = !w.Until(t.again, nil)
		w.Close()
		if !t.pause(ctx, 0) {
			return
		}
	}
}

// pause reports whether the topic is to go on.
func (t *topic) pause(ctx context.Context, d time.Duration) bool {
	if d > 0 && !pause.For(ctx, d) {
		return false
	}
	select {
	case <-t.done:
		return false
	case <-ctx.Done():
		return false
	default:
		return true
	}
}

// look reads what the topic is about, as far as it may be seen. A panic is an error.
func (t *topic) look(v *state.View) (index uint64, filtered bool, all []*catalog.Instance, err error) {
	defer func() {
		if p := recover(); p != nil {
			t.h.log.Error("feed panicked", "subject", fmt.Sprintf("%+v", t.key.subject), "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("feed of %s failed unexpectedly", t.key.subject.Service)
		}
	}()
	index, all = t.h.cfg.Candidates(v, t.key.subject.Request())
	if z := t.key.authorizer; z != nil {
		visible := slices.DeleteFunc(slices.Clone(all), func(i *catalog.Instance) bool { return !catalogrpc.MayReadInstance(z, i) })
		filtered, all = len(visible) < len(all) && !z.Anonymous(), visible
	}
	return max(index, 1), filtered, all, nil
}

// publish makes what was seen since began the state and wakes those who subscribe if it is another, or they have asked. It
// returns how many it woke.
func (t *topic) publish(began time.Time, asked bool, index uint64, filtered bool, all []*catalog.Instance, err error) int {
	t.mu.Lock()
	old := t.state
	t.looked = began
	var next *feed.State
	var data []byte
	switch {
	case err != nil:
	case old == nil:
		next, data, err = feed.Begin(index, filtered, all)
	case old.Index == index && old.Filtered == filtered && slices.Equal(old.Instances, all):
		t.err = nil
		if !asked {
			t.mu.Unlock()
			return 0
		}
		next = old
	default:
		next, data, err = old.Next(index, filtered, all)
	}
	if t.err = err; err == nil && next != old {
		t.state, t.snapshot = next, nil
		if old == nil {
			t.snapshot, t.snapshotAt = data, time.Now()
		} else {
			t.remember(event{old.Version(), data})
		}
	}
	woken := make([]*subscription, 0, len(t.subscribers))
	for s := range t.subscribers {
		woken = append(woken, s)
	}
	t.mu.Unlock()
	for _, s := range woken {
		s.of.wake(s)
	}
	return len(woken)
}

// remember adds to the history. The topic is locked.
func (t *topic) remember(e event) {
	t.history = append(t.history, e)
	t.size += len(e.data)
	drop := 0
	for len(t.history)-drop > maxHistory || t.size > maxHistorySize && len(t.history)-drop > 1 {
		t.size -= len(t.history[drop].data)
		drop++
	}
	if drop > 0 {
		t.history = append([]event(nil), t.history[drop:]...)
	}
}

// take returns the events that lead from a version to the state, and the state's version. There is none yet while ok is
// false, or none that was looked at since a time and may be so because of that, if the index is below floor.
func (t *topic) take(have feed.Version, floor uint64, since time.Time) (events [][]byte, now feed.Version, ok bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == nil || t.err != nil {
		return nil, now, false, t.err
	}
	if t.state.Index < floor && !t.looked.After(since) {
		select {
		case t.again <- struct{}{}:
		default:
		}
		return nil, now, false, nil
	}
	now = t.state.Version()
	if have == now {
		return nil, now, true, nil
	}
	for i := len(t.history) - 1; i >= 0; i-- {
		if t.history[i].from != have {
			continue
		}
		for _, e := range t.history[i:] {
			events = append(events, e.data)
		}
		return events, now, true, nil
	}
	if t.snapshot == nil {
		if t.snapshot, err = t.state.Snapshot(); err != nil {
			return nil, now, false, err
		}
	}
	t.snapshotAt = time.Now()
	return [][]byte{t.snapshot}, now, true, nil
}

// open serves a feed until its agent ends it.
func (h *Hub) open(ctx context.Context, c *transport.Call, _ *feed.OpenRequest, in io.Reader, reply func(acl.Permit, *feed.OpenReply) error, out io.Writer) error {
	if _, ok := h.desk.Stale(); !ok {
		return wireerr.ErrNoLeader
	}
	// Nothing is shown by this; each subscription is for a token of its own.
	if err := reply(acl.Open(), &feed.OpenReply{}); err != nil {
		return err
	}
	f := &subscriber{h: h, resolve: c.Resolve, out: out, all: map[uint64]*subscription{}}
	f.idle.L = &f.mu
	h.mu.Lock()
	if h.stopped {
		h.mu.Unlock()
		return wireerr.ErrNoLeader
	}
	h.feeds[f] = struct{}{}
	h.mu.Unlock()
	metricOpened.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	f.ctx = ctx
	defer f.end(cancel)
	r := bufio.NewReaderSize(in, 512)
	for {
		ask, err := feed.ReadAsk(r)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f.ask(ask); err != nil {
			return err
		}
	}
}

// A partsWriter takes bytes that lie in several places as they are.
type partsWriter interface{ WriteParts(all ...[]byte) error }

// send sends what is in several places.
func send(out io.Writer, all [][]byte) error {
	if w, ok := out.(partsWriter); ok {
		return w.WriteParts(all...)
	}
	_, err := out.Write(bytes.Join(all, nil))
	return err
}
