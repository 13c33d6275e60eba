// Package subscription keeps instances of services up to date by feeds from the servers (package feed): one feed for an
// agent, with a subscription for each subject and token, which all views of that share whatever they select from it.
//
// A feed that breaks is opened anew at whichever server answers, and goes on from the state there is. Where the servers
// know no feeds, or one turns out not to work, streams say so and the views ask instead.
package subscription

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A Dialer opens feeds: a *router.Router.
type Dialer interface {
	Duplex(ctx context.Context, d rpc.Descriptor, req, resp any) (io.ReadWriteCloser, error)
}

// Config tunes a Client. A zero field takes its default.
type Config struct {
	Datacenter string        // of the agent; requests for others are not covered
	Rebalance  time.Duration // how long a feed lasts before it is opened at the server that is then asked first; default 10m
	Logger     hclog.Logger  // default discards
}

// A Client has the feed of an agent. It implements cache.Streams.
type Client struct {
	dial Dialer
	cfg  Config
	wake chan struct{} // holds one token when Run is to look what there is to do

	mu     sync.Mutex
	all    map[key]*subscription
	last   uint64 // number of a subscription
	feed   *session
	down   error     // of the last attempt to open a feed; nil since there is one
	downs  uint64    // how many attempts have failed
	unable time.Time // until when there are no feeds to be had
}

// A key tells subscriptions apart.
type key struct {
	subject feed.Subject
	token   string
}

// A subscription is shared by the streams of one subject and token. The lock of the client guards it.
type subscription struct {
	key
	users int
	floor uint64 // the greatest index that was shown

	id     uint64      // in the feed, 0 while it is in none
	state  *feed.State // nil before the first
	coming *feed.State // between the events that belong together
	meta   read.Meta   // of state
	live   bool        // state is what the server has
	began  time.Time   // when it was asked for

	refused  error  // what it was ended with, nil while it goes on
	refusals uint64 // how many there were
	changed  chan struct{}
}

// New returns a client that opens its feeds with d. It opens none before Run.
func New(d Dialer, cfg Config) *Client {
	if cfg.Rebalance <= 0 {
		cfg.Rebalance = 10 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Client{dial: d, cfg: cfg, wake: make(chan struct{}, 1), all: map[key]*subscription{}}
}

// Covers implements cache.Streams.
func (c *Client) Covers(d rpc.Descriptor, req any) bool {
	if _, ok := c.covers(d, req); !ok {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down == nil && !time.Now().Before(c.unable)
}

func (c *Client) covers(d rpc.Descriptor, req any) (k key, ok bool) {
	r, ok := req.(*catalog.InstancesRequest)
	if !ok || d.Name != catalog.InstancesCall.Name || r.Datacenter != "" && r.Datacenter != c.cfg.Datacenter {
		return key{}, false
	}
	subject, ok := feed.Of(r)
	return key{subject, r.Token}, ok
}

// Open implements cache.Streams.
func (c *Client) Open(d rpc.Descriptor, req any) cache.Stream {
	k, ok := c.covers(d, req)
	if !ok {
		return nil
	}
	r := req.(*catalog.InstancesRequest)
	f, err := filter.Compile[*catalog.Instance](r.Filter)
	if err != nil { // the servers say it
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.all[k]
	if s == nil {
		s = &subscription{key: k, changed: make(chan struct{})}
		c.all[k] = s
		c.ask(s)
		c.kick()
	} else if s.refused != nil {
		c.ask(s)
	}
	s.users++
	return &stream{c: c, s: s, req: r, filter: f}
}

// Retry implements cache.Streams.
func (c *Client) Retry() { c.kick() }

func (c *Client) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// ask asks for a subscription in the feed that there is. The client is locked.
func (c *Client) ask(s *subscription) {
	s.live, s.refused, s.coming = false, nil, nil
	if c.feed == nil {
		return
	}
	c.endLocked(s)
	c.last++
	s.id, s.began = c.last, time.Now()
	a := feed.Ask{ID: s.id, Subject: s.subject, Token: s.token, Floor: s.floor}
	if s.state != nil {
		a.Have = s.state.Version()
	}
	c.feed.ids[s.id] = s
	c.feed.put(a)
}

// endLocked ends a subscription in the feed.
func (c *Client) endLocked(s *subscription) {
	if s.id != 0 && c.feed != nil && c.feed.ids[s.id] != nil {
		delete(c.feed.ids, s.id)
		c.feed.put(feed.Ask{ID: s.id, End: true})
		c.feed.used = time.Now()
	}
	s.id = 0
}

// tell wakes those who wait for a subscription. The client is locked.
func (s *subscription) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// A stream is one view's use of a subscription. One goroutine uses it.
type stream struct {
	c      *Client
	s      *subscription
	req    *catalog.InstancesRequest
	filter *filter.Filter[*catalog.Instance]

	seen     *feed.State // returned last, nil when something else was shown since
	again    uint64      // the index of what was shown, since the state is older than which it was asked for again
	refusals uint64      // that were returned, or were there before
	downs    uint64      // likewise
}

// Close implements cache.Stream.
func (t *stream) Close() {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if t.s.users--; t.s.users == 0 {
		delete(t.c.all, t.s.key)
		t.c.endLocked(t.s)
	}
}

// Next implements cache.Stream.
func (t *stream) Next(ctx context.Context, since uint64) (any, uint64, error) {
	s, meta, err := t.next(ctx, since)
	if err != nil {
		return nil, 0, err
	}
	return t.answer(s, meta), s.Index, nil
}

// next waits for a state.
func (t *stream) next(ctx context.Context, since uint64) (*feed.State, read.Meta, error) {
	c, s := t.c, t.s
	none := read.Meta{}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.floor = max(s.floor, since)
	if s.refused != nil && t.refusals == s.refusals { // it was told; try again
		c.ask(s)
	}
	for {
		switch {
		case time.Now().Before(c.unable):
			t.seen = nil // what is asked for meanwhile may be another
			return nil, none, cache.ErrNoStream
		case s.refused != nil:
			t.refusals, t.seen = s.refusals, nil
			return nil, none, s.refused
		case s.live && t.seen == nil && s.state.Index < since && t.again < since:
			t.again = since
			c.ask(s) // with the floor that it now has
			continue
		case s.live && (s.state != t.seen || since == 0):
			t.seen, t.again = s.state, 0
			s.floor = max(s.floor, s.state.Index)
			return s.state, s.meta, nil
		case !s.live && c.down != nil && t.downs != c.downs:
			t.downs = c.downs
			return nil, none, c.down
		}
		changed := s.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return nil, none, ctx.Err()
		}
	}
}

// answer selects from a state.
func (t *stream) answer(s *feed.State, meta read.Meta) *catalog.InstancesReply {
	resp := &catalog.InstancesReply{Meta: meta, Instances: s.Instances}
	resp.Index, resp.Filtered = s.Index, s.Filtered
	if len(t.req.Tags) == 0 && len(t.req.NodeMeta) == 0 && !t.req.PassingOnly && t.filter == nil {
		return resp
	}
	resp.Instances = []*catalog.Instance{}
	for _, i := range s.Instances {
		if t.req.Wants(i) && t.filter.Match(i) {
			resp.Instances = append(resp.Instances, i)
		}
	}
	return resp
}

// Times of a client.
const (
	openTimeout = 15 * time.Second
	// minPause and maxPause are between attempts to open a feed that fail.
	minPause = 100 * time.Millisecond
	maxPause = 10 * time.Second
	// unknownFor is how long servers that know no feeds are not asked for one; faultyFor how long after one did not work.
	unknownFor = 5 * time.Minute
	faultyFor  = time.Minute
	// A feed is taken not to work when maxShort in a row have not lasted for shortLife, or maxBroken where it was connections
	// that broke and servers that left, or when maxFaults events of one were not as they must be.
	shortLife = 5 * time.Second
	maxShort  = 3
	maxBroken = 12
	maxFaults = 5
	// A feed is also taken not to work when it owes an answer and says nothing for silentFor. Servers answer, or refuse, in
	// a quarter of that.
	silentFor = 30 * time.Second
	// unusedFor is how long a feed stays that nobody uses.
	unusedFor = time.Minute
	lookEvery = 10 * time.Second
)

// errFaulty ends a feed that does not work.
var errFaulty = errors.New("the feed is faulty")

// errUnused ends a feed that nobody uses.
var errUnused = errors.New("the feed is not used")

// errOver ends a feed that has lasted long enough.
var errOver = errors.New("the feed has lasted long enough")

// Run keeps a feed open while there are streams, until ctx ends, and then returns nil.
func (c *Client) Run(ctx context.Context) error {
	var watching sync.WaitGroup
	watching.Go(func() { c.watch(ctx) })
	defer watching.Wait()
	failures, short := 0, 0
	for ctx.Err() == nil {
		c.mu.Lock()
		idle, wait := len(c.all) == 0, time.Until(c.unable)
		if idle {
			c.down = nil // nobody tries any more whether it is still so
		}
		c.mu.Unlock()
		switch {
		case idle:
			select {
			case <-c.wake:
			case <-ctx.Done():
			}
			continue
		case wait > 0:
			pause.For(ctx, wait)
			continue
		}
		opened, life, err := c.serve(ctx)
		if ctx.Err() != nil {
			break
		}
		if failures++; opened {
			failures = 0
		}
		if short++; !opened || life >= shortLife {
			short = 0
		}
		most := maxShort
		if _, lost := errors.AsType[*rpcwire.LostError](err); lost || errors.Is(err, errGoodbye) {
			most = maxBroken
		}
		switch {
		case errors.Is(err, errUnused):
		case errors.Is(err, rpcwire.ErrUnknownMethod):
			c.cfg.Logger.Debug("the servers know no feeds, asking instead")
			c.without(unknownFor + rand.N(unknownFor/4))
		case errors.Is(err, errFaulty), short >= most:
			c.cfg.Logger.Warn("the feed from the servers does not work, asking instead for a while", "error", err)
			c.without(faultyFor + rand.N(faultyFor/2))
			short = 0
		case opened:
			// Those who have lost the same server do not come to the next at once.
			pause.For(ctx, rand.N(minPause<<min(short, 6)))
		default:
			c.mu.Lock()
			c.down = err
			c.downs++
			c.tellAll()
			c.mu.Unlock()
			d := min(maxPause, minPause<<min(failures, 10))
			if pause.For(ctx, minPause+rand.N(minPause)) {
				pause.Until(ctx, d/2+rand.N(d/2), c.wake)
			}
		}
	}
	return nil
}

// without has everything asked for instead.
func (c *Client) without(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unable, c.down = time.Now().Add(d), nil
	c.tellAll()
}

// tellAll wakes all who wait. The client is locked.
func (c *Client) tellAll() {
	for _, s := range c.all {
		s.tell()
	}
}

// A session is one feed. The lock of the client guards what of it changes.
type session struct {
	both   io.ReadWriteCloser
	began  time.Time
	lasts  time.Duration // after which it is opened at the server that is then asked first
	heard  time.Time     // when a frame came last
	used   time.Time     // when there was a subscription last
	why    error         // of the client to end it, nil for none
	ids    map[uint64]*subscription
	asks   []feed.Ask // to be sent
	more   chan struct{}
	faults int
}

func (x *session) put(a feed.Ask) {
	x.asks = append(x.asks, a)
	select {
	case x.more <- struct{}{}:
	default:
	}
}

// serve opens a feed and keeps it until it ends. It reports whether there was one, and how long.
func (c *Client) serve(ctx context.Context) (opened bool, life time.Duration, err error) {
	octx, cancel := context.WithTimeout(ctx, openTimeout)
	both, err := c.dial.Duplex(octx, feed.OpenCall.Descriptor, &feed.OpenRequest{}, &feed.OpenReply{})
	cancel()
	if err != nil {
		return false, 0, err
	}
	metricOpened.Add(1)
	now := time.Now()
	x := &session{
		both: both, began: now, lasts: c.cfg.Rebalance + rand.N(c.cfg.Rebalance/2), heard: now, used: now,
		ids: map[uint64]*subscription{}, more: make(chan struct{}, 1),
	}
	c.mu.Lock()
	c.feed, c.down = x, nil
	for _, s := range c.all {
		c.ask(s)
	}
	c.mu.Unlock()
	defer context.AfterFunc(ctx, func() { both.Close() })()
	wctx, cancel := context.WithCancel(ctx)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		x.write(wctx, &c.mu)
		both.Close() // reading ends too
	}()
	err = c.read(x)
	cancel()
	both.Close()
	<-wrote
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.why != nil {
		err = x.why
	}
	c.feed = nil
	for _, s := range c.all {
		s.id, s.live, s.coming = 0, false, nil
	}
	return true, time.Since(x.began), err
}

// write sends what is asked for, until ctx ends or nothing can be sent any more. The lock is the client's.
func (x *session) write(ctx context.Context, mu *sync.Mutex) {
	w := bufio.NewWriterSize(x.both, 16<<10)
	for {
		select {
		case <-x.more:
		case <-ctx.Done():
			return
		}
		mu.Lock()
		asks := x.asks
		x.asks = nil
		mu.Unlock()
		for i := range asks {
			if feed.WriteAsk(w, &asks[i]) != nil {
				return
			}
		}
		if w.Flush() != nil {
			return
		}
	}
}

// watch ends feeds that are to end, and tells the metrics, until ctx ends.
func (c *Client) watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		c.report()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		c.mu.Lock()
		x, ends := c.feed, false
		if x != nil && x.why == nil {
			x.why = c.look(x)
			ends = x.why != nil
		}
		c.mu.Unlock()
		if ends {
			x.both.Close()
		}
	}
}

// look reports why a feed is to end; nil for not. The client is locked.
func (c *Client) look(x *session) error {
	if len(c.all) > 0 {
		x.used = time.Now()
	}
	switch {
	case time.Since(x.used) >= unusedFor:
		return errUnused
	case time.Since(x.heard) >= silentFor:
		for _, s := range x.ids {
			if !s.live && time.Since(s.began) >= silentFor {
				return errFaulty
			}
		}
	}
	if time.Since(x.began) >= x.lasts {
		return errOver
	}
	return nil
}

// errGoodbye ends a feed whose server is about to go.
var errGoodbye = errors.New("the server leaves")

// read takes what the server sends until the feed ends.
func (c *Client) read(x *session) error {
	r := bufio.NewReaderSize(x.both, 4<<10)
	for {
		f, err := feed.ReadFrame(r)
		if err != nil {
			return err
		}
		if f.Kind == feed.Goodbye {
			return errGoodbye
		}
		if err := c.take(x, &f); err != nil {
			return err
		}
	}
}

// take takes a frame about a subscription.
func (c *Client) take(x *session, f *feed.Frame) error {
	c.mu.Lock()
	x.heard = time.Now()
	s := x.ids[f.ID]
	if s == nil { // it has ended
		c.mu.Unlock()
		return nil
	}
	from := s.coming
	if from == nil {
		from = s.state
	}
	c.mu.Unlock()
	var next *feed.State
	var err error
	if f.Kind == feed.Event {
		next, err = from.Follow(f.Event)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.ids[f.ID] != s {
		return nil
	}
	meta := read.Meta{KnownLeader: f.KnownLeader, LastContact: f.Contact}
	switch {
	case err != nil, f.Kind == feed.Current && (s.state == nil || s.coming != nil):
		if x.faults++; x.faults > maxFaults {
			return errors.Join(errFaulty, err)
		}
		c.cfg.Logger.Warn("asking anew for what came wrong", "service", s.subject.Service, "error", err)
		s.state = nil
		c.ask(s)
		return nil
	case f.Kind == feed.Refused:
		delete(x.ids, s.id)
		s.id, s.live, s.coming = 0, false, nil
		s.refused = wireerr.Remote(f.Status, f.Text)
		if f.Status == http.StatusServiceUnavailable { // it has too many
			s.refused = cache.ErrNoStream
		}
		if status := wireerr.Status(s.refused); status == http.StatusForbidden {
			s.state = nil
		}
		s.refusals++
		s.tell()
		return nil
	case f.Kind == feed.Event && !f.Last:
		s.coming = next
		return nil
	case f.Kind == feed.Event:
		s.state, s.coming = next, nil
	}
	s.meta, s.live = meta, true
	s.tell()
	return nil
}
