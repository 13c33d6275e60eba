// Package cache keeps the answers of reads up to date: a view is one answer kept fresh by one standing blocking query, or a
// stream of what changes, however many ask for it. The HTTP API (?cached), DNS and the proxies share the views of their agent.
//
// A view belongs to a method and a request, the token included: nobody is served what was fetched with another token.
// It is asked for in stale mode, so any server answers. When the servers are lost it keeps its last answer, with
// growing age; when the servers refuse it (a token that was revoked) the answer is dropped at once. A view nobody used
// for Config.TTL ends.
package cache

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// ErrStopped is returned once Run has ended.
var ErrStopped = errors.New("the agent is shutting down")

// errEvicted ends the waits on a view that had to make way for others.
var errEvicted = errors.New("view evicted")

// Config tunes a Cache. A zero field takes its default.
type Config struct {
	TTL        time.Duration // a view unused for this long ends; default 72h
	MaxEntries int           // views and kept answers; beyond, the least recently used go; default 8192
	MaxWait    time.Duration // of one blocking query of a view; default 5m
	FetchRate  float64       // fetches per second of one view; default unlimited
	FetchBurst int           // fetches of one view that may come at once; default 2
	// DefaultWait and WaitLimit bound the blocking form of Get as default_query_time and max_query_time bound blocking
	// queries; defaults 5m and 10m.
	DefaultWait, WaitLimit time.Duration
	// Streams keep the answers that they cover; nil asks for all.
	Streams   Streams
	StreamTTL time.Duration // a view kept by a stream that is unused for this long ends; default 20m, at most TTL
	Logger    hclog.Logger  // default discards
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.TTL, 72*time.Hour)
	def(&c.StreamTTL, 20*time.Minute)
	c.StreamTTL = min(c.StreamTTL, c.TTL)
	def(&c.MaxWait, 5*time.Minute)
	def(&c.DefaultWait, 5*time.Minute)
	def(&c.WaitLimit, 10*time.Minute)
	if c.MaxEntries <= 0 {
		c.MaxEntries = 8192
	}
	if c.FetchBurst <= 0 {
		c.FetchBurst = 2
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return c
}

// A Cache holds views. Use Get, Peek, Watch, Keep and Index; all are safe for concurrent use.
type Cache struct {
	caller rpc.Caller
	cfg    Config
	start  time.Time     // times of use are kept relative to it
	wake   chan struct{} // holds one token while pending is not empty

	rate atomic.Pointer[rate]

	mu      sync.Mutex
	entries map[string]*entry // views by key
	kept    map[string]*keptEntry
	pending []*entry // made, not yet started by Run
	stopped bool
}

// A rate bounds the fetches of each view.
type rate struct {
	perSecond float64
	burst     int
}

// SetRate changes how often each view may fetch, as FetchRate and FetchBurst say it, from its next fetch on.
func (c *Cache) SetRate(perSecond float64, burst int) {
	if burst <= 0 {
		burst = 2
	}
	if old := c.rate.Load(); old.perSecond != perSecond || old.burst != burst {
		c.rate.Store(&rate{perSecond, burst})
	}
}

// New returns a cache that fetches through caller. Views start with Run; until then Get waits.
func New(caller rpc.Caller, cfg Config) *Cache {
	c := &Cache{
		caller: caller, cfg: cfg.withDefaults(), start: time.Now(), wake: make(chan struct{}, 1),
		entries: map[string]*entry{}, kept: map[string]*keptEntry{},
	}
	c.rate.Store(&rate{c.cfg.FetchRate, c.cfg.FetchBurst})
	return c
}

// Run keeps the views fresh until ctx ends, then returns nil. Every goroutine of the cache has ended by then; calls
// after that return ErrStopped.
func (c *Cache) Run(ctx context.Context) error {
	var views sync.WaitGroup
	tick := time.NewTicker(min(max(c.cfg.StreamTTL/64, time.Second), expireEvery))
	defer tick.Stop()
	for {
		c.mu.Lock()
		starting := c.pending
		c.pending = nil
		c.mu.Unlock()
		for _, e := range starting {
			views.Go(func() { e.run(ctx) })
		}
		select {
		case <-c.wake:
		case <-tick.C:
			c.expire()
		case <-ctx.Done():
			c.mu.Lock()
			c.stopped = true
			starting, c.pending = c.pending, nil
			c.mu.Unlock()
			for _, e := range starting {
				e.fail(ErrStopped)
			}
			views.Wait()
			return nil
		}
	}
}

// Retry ends the back-off of every view whose last fetch failed. Call it when servers may be reachable again.
func (c *Cache) Retry() {
	if c.cfg.Streams != nil {
		c.cfg.Streams.Retry()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		e.kick()
	}
}

// Stats tells how much a cache holds.
type Stats struct {
	Views   int // standing queries
	Kept    int // answers of Keep
	Watched int // views with at least one watcher
}

// Stats returns current figures.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{Views: len(c.entries), Kept: len(c.kept)}
	for _, e := range c.entries {
		if e.watched.Load() > 0 {
			s.Watched++
		}
	}
	return s
}

// Info tells how an answer came about.
type Info struct {
	Hit   bool          // a view with an answer stood when it was asked for
	Age   time.Duration // 0 while the view is in touch with the servers, else since that ended
	Index uint64        // of the answer, at least 1
	// Streamed says that the answer came by a stream.
	Streamed bool
}

// Get returns the answer of the view of req, making the view if there is none. The blocking form, with MinIndex set in
// the request, waits until the view's index passes it or MaxWait is over; its answers do not count as hits. Mode and
// MaxStale of the request do not matter. Neither the request nor the answer may be changed afterwards: both are shared.
func Get[Req, Resp any](ctx context.Context, c *Cache, m rpc.Method[Req, Resp], req *Req) (*Resp, Info, error) {
	key, opts, err := keyOf(m, req)
	if err != nil {
		return nil, Info{}, err
	}
	made := false // by us: what it fetches meanwhile does not make it a hit
	for {
		e, err := c.view(key, false, func() *entry {
			made = true
			return newEntry(c, key, m, req)
		})
		if err != nil {
			return nil, Info{}, err
		}
		if e == nil { // no room for another view
			metricBypass.Add(1)
			return direct(ctx, c, m, req)
		}
		resp, info, err := get[Resp](ctx, c, e, opts)
		if err == errEvicted {
			continue // to make way for others, while we waited
		}
		info.Hit = info.Hit && !made
		e.counts.got(err == nil && info.Hit, opts.MinIndex > 0)
		return resp, info, err
	}
}

func get[Resp any](ctx context.Context, c *Cache, e *entry, opts read.Options) (*Resp, Info, error) {
	e.touch()
	r := e.current.Load()
	hit := r.value != nil
	if !hit {
		var err error
		if r, err = e.first(ctx); err != nil {
			return nil, Info{}, err
		}
	}
	if opts.MinIndex > 0 {
		hit = false
		var err error
		if r, err = e.after(ctx, opts.MinIndex, c.waitFor(opts.MaxWait, r.streamed)); err != nil {
			return nil, Info{}, err
		}
	}
	return r.value.(*Resp), r.info(hit), nil
}

// direct asks without keeping a view.
func direct[Req, Resp any](ctx context.Context, c *Cache, m rpc.Method[Req, Resp], req *Req) (*Resp, Info, error) {
	r := *req
	if o := optionsOf(&r); o != nil {
		o.Mode, o.MaxStale = read.Stale, 0
	}
	resp, err := m.Call(ctx, c.caller, &r)
	if err != nil {
		return nil, Info{}, err
	}
	return resp, Info{Index: indexOf(resp)}, nil
}

// waitFor bounds a wait as the servers bound that of a blocking query; exactly where no server is asked.
func (c *Cache) waitFor(wait time.Duration, exactly bool) time.Duration {
	if wait <= 0 {
		wait = c.cfg.DefaultWait
	}
	wait = min(wait, c.cfg.WaitLimit)
	if exactly {
		return wait
	}
	return wait + jitter(wait/16)
}

// Peek returns the answer of the view of req if there is one already. It never waits, and does not make a view. Where
// the same few kinds of requests are looked up very often, an Index is cheaper.
func Peek[Req, Resp any](c *Cache, m rpc.Method[Req, Resp], req *Req) (*Resp, Info, bool) {
	key, _, err := keyOf(m, req)
	if err != nil {
		return nil, Info{}, false
	}
	c.mu.Lock()
	e := c.entries[key]
	c.mu.Unlock()
	if e == nil {
		return nil, Info{}, false
	}
	return peek[Resp](e)
}

func peek[Resp any](e *entry) (*Resp, Info, bool) {
	r := e.current.Load()
	if r.value == nil {
		return nil, Info{}, false
	}
	e.touch()
	return r.value.(*Resp), r.info(true), true
}

// Watch calls f with the answer of the view of req, making the view if there is none, and again with each new answer;
// a watched view does not expire. When fetching begins to fail, or fails in another way, f gets the error and no
// answer (after the kept answer, for a watch made meanwhile); whoever watches decides whether the last answer still serves. Calls of f come one after another and may
// skip answers that were superseded; the first may come before Watch returns. f must not block.
//
// After cancel returns f is not called again, save for a call already in progress. The watch of a cache whose Run has
// ended gets ErrStopped.
func Watch[Req, Resp any](c *Cache, m rpc.Method[Req, Resp], req *Req, f func(*Resp, error)) (cancel func()) {
	w := &watcher{f: func(v any, err error) {
		r, _ := v.(*Resp)
		f(r, err)
	}}
	key, _, err := keyOf(m, req)
	if err != nil {
		f(nil, err)
		return func() {}
	}
	for {
		e, err := c.view(key, true, func() *entry { return newEntry(c, key, m, req) })
		if err != nil {
			f(nil, err)
			return func() {}
		}
		if e.add(w) {
			return func() { e.remove(w) }
		}
		// Evicted in between: the next turn makes a new one.
	}
}

// view returns the view of key, made by fresh if there is none, or nil when there is no room. Watchers are as many as
// the things they serve, so they get a view beyond the limit: force.
func (c *Cache) view(key string, force bool, fresh func() *entry) (*entry, error) {
	c.mu.Lock()
	e := c.entries[key]
	if e != nil || c.stopped {
		stopped := c.stopped
		c.mu.Unlock()
		if stopped {
			return nil, ErrStopped
		}
		return e, nil
	}
	var gone []*entry
	if len(c.entries)+len(c.kept) >= c.cfg.MaxEntries {
		gone = c.makeRoomLocked()
		if len(c.entries)+len(c.kept) >= c.cfg.MaxEntries && !force {
			c.mu.Unlock()
			end(gone)
			return nil, nil
		}
	}
	e = fresh()
	e.touch()
	c.entries[key] = e
	c.pending = append(c.pending, e)
	c.mu.Unlock()
	end(gone)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return e, nil
}

// makeRoomLocked takes the least recently used sixteenth out of the cache and returns its views, to be ended once the
// lock is released.
func (c *Cache) makeRoomLocked() []*entry {
	type candidate struct {
		used int64
		key  string
		view *entry
	}
	var all []candidate
	for k, e := range c.entries {
		if e.watched.Load() == 0 {
			all = append(all, candidate{e.used.Load(), k, e})
		}
	}
	for k, e := range c.kept {
		all = append(all, candidate{e.used.Load(), k, nil})
	}
	slices.SortFunc(all, func(a, b candidate) int { return int(min(1, max(-1, a.used-b.used))) })
	var gone []*entry
	for _, x := range all[:min(len(all), max(1, c.cfg.MaxEntries/16))] {
		if x.view == nil {
			delete(c.kept, x.key)
		} else if x.view.retire() {
			delete(c.entries, x.key)
			gone = append(gone, x.view)
		}
	}
	return gone
}

// expire ends what was not used for the TTL.
func (c *Cache) expire() {
	now := time.Since(c.start)
	before, streamedBefore := int64(now-c.cfg.TTL), int64(now-c.cfg.StreamTTL)
	var gone []*entry
	c.mu.Lock()
	for k, e := range c.entries {
		end := before
		if e.current.Load().streamed {
			end = streamedBefore
		}
		if e.used.Load() <= end && e.retire() {
			delete(c.entries, k)
			gone = append(gone, e)
		}
	}
	metricExpired.Add(int64(len(gone)))
	metrics.SetGauge(metricEntries, float32(len(c.entries)+len(c.kept)))
	for k, e := range c.kept {
		if e.used.Load() <= before {
			delete(c.kept, k)
		}
	}
	c.mu.Unlock()
	end(gone)
}

// drop takes a view out of the cache, unless it is watched.
func (c *Cache) drop(e *entry) bool {
	c.mu.Lock()
	if !e.retire() {
		c.mu.Unlock()
		return false
	}
	if c.entries[e.key] == e {
		delete(c.entries, e.key)
	}
	c.mu.Unlock()
	end([]*entry{e})
	return true
}

func end(gone []*entry) {
	for _, e := range gone {
		e.end()
	}
}

// keyEncoding gives equal requests equal keys.
var keyEncoding = func() cbor.EncMode {
	m, err := cbor.EncOptions{Sort: cbor.SortBytewiseLexical}.EncMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// keyOf returns the key of a request and its options. What does not change the answer is not part of the key.
func keyOf[Req, Resp any](m rpc.Method[Req, Resp], req *Req) (string, read.Options, error) {
	r := *req
	var opts read.Options
	if o := optionsOf(&r); o != nil {
		opts = *o
		o.Mode, o.MinIndex, o.MaxWait, o.MaxStale = 0, 0, 0, 0
	}
	b, err := keyEncoding.Marshal(&r)
	if err != nil {
		return "", opts, fmt.Errorf("encode the request of %s: %w", m.Name, err)
	}
	return m.Name + "\x00" + string(b), opts, nil
}

// optionsOf returns the read options embedded in a request, nil if it has none.
func optionsOf(req any) *read.Options {
	if r, ok := req.(interface{ ReadOptions() *read.Options }); ok {
		return r.ReadOptions()
	}
	return nil
}

// indexOf returns the index of an answer, at least 1.
func indexOf(resp any) uint64 {
	if r, ok := resp.(interface{ ReadMeta() *read.Meta }); ok {
		return max(1, r.ReadMeta().Index)
	}
	return 1
}

// refused reports whether the servers refused the request itself, so that an answer fetched before serves no more.
func refused(err error) bool {
	return wireerr.Status(err) == http.StatusForbidden || errors.Is(err, wireerr.ErrTokenNotFound)
}
