package cache

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A result is the present state of a view. Results are immutable and replaced as a whole.
type result struct {
	value any    // *Resp, nil before the first answer and after a refusal
	index uint64 // of value
	err   error  // of the last fetch, nil when it succeeded
	lost  time.Time
	// streamed says that value came by a stream.
	streamed bool
}

func (r *result) info(hit bool) Info {
	i := Info{Hit: hit, Index: r.index, Streamed: r.streamed}
	if r.err != nil {
		i.Age = time.Since(r.lost)
	}
	return i
}

// An entry is one view: its goroutine (run) fetches and publishes, everybody else reads current.
type entry struct {
	c     *Cache
	key   string
	fetch func(ctx context.Context, minIndex uint64) (value any, index uint64, err error)
	// open returns the stream that gives the answers, nil if there is none; what that cannot is fetched.
	open func() Stream

	current atomic.Pointer[result] // never nil
	used    atomic.Int64           // time of the last use, since Cache.start
	watched atomic.Int32           // len(watchers), readable without the lock
	kicked  chan struct{}          // holds one token when a back-off is to end

	mu          sync.Mutex
	changed     chan struct{} // closed by the next publish; nil while nobody waits
	watchers    []*watcher
	dirty       []*watcher // to be called with current
	dispatching bool       // somebody is calling watchers
	retired     bool       // out of the cache; takes no watchers any more
	cancel      context.CancelFunc
	ended       bool
	forget      []func() // told when the view leaves the cache

	counts *counts // of its method
}

type watcher struct {
	f         func(any, error)
	cancelled atomic.Bool
	served    bool // got an answer; used by whoever dispatches
}

func newEntry[Req, Resp any](c *Cache, key string, m rpc.Method[Req, Resp], req *Req) *entry {
	e := &entry{c: c, key: key, kicked: make(chan struct{}, 1), counts: countsOf(m.Name)}
	e.current.Store(&result{})
	own := *req
	e.open = func() Stream {
		if c.cfg.Streams == nil {
			return nil
		}
		return c.cfg.Streams.Open(m.Descriptor, &own)
	}
	e.fetch = func(ctx context.Context, minIndex uint64) (any, uint64, error) {
		r := own
		if o := optionsOf(&r); o != nil {
			o.Mode, o.MaxStale, o.MinIndex, o.MaxWait = read.Stale, 0, minIndex, c.cfg.MaxWait
		}
		if minIndex > 0 {
			ctx = rpc.Impatient(ctx) // so that the age of the answer tells when contact was lost
		}
		resp, err := m.Call(ctx, c.caller, &r)
		if err != nil {
			return nil, 0, err
		}
		return resp, indexOf(resp), nil
	}
	return e
}

func (e *entry) touch() { e.used.Store(int64(time.Since(e.c.start))) }

func (e *entry) kick() {
	select {
	case e.kicked <- struct{}{}:
	default:
	}
}

// Pauses of a view that makes no progress: a server that answers blocking queries at once, without news, is not asked
// more often than this.
const (
	fruitlessPause = time.Second
	fruitlessQuick = 100 * time.Millisecond
	fruitlessMax   = 3
)

// streamPause is the most between two looks at a stream that has told an error.
const streamPause = time.Second

// run keeps the view fresh until ctx ends or the view leaves the cache.
func (e *entry) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.mu.Lock()
	e.cancel = cancel
	ended := e.ended
	e.mu.Unlock()
	if ended {
		e.fail(errEvicted)
		return
	}
	stream := e.open()
	if stream != nil {
		defer stream.Close()
	}
	bound := e.c.rate.Load()
	bucket := newBucket(bound.perSecond, bound.burst)
	failures, fruitless := 0, 0
	for {
		if now := e.c.rate.Load(); now != bound {
			bound, bucket = now, newBucket(now.perSecond, now.burst)
		}
		if !pause.For(ctx, bucket.take(time.Now())) {
			break
		}
		last := e.current.Load()
		began := time.Now()
		since := last.index
		if failures > 0 {
			since = 0 // answered at once, which tells that the servers are back
		}
		value, index, streamed, err := e.next(ctx, stream, since)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			metricFetchError.Add(1)
			e.counts.fetchError.Add(1)
			failures++
			fruitless = 0
			e.publishError(err)
			if e.current.Load().value == nil && e.c.drop(e) {
				return // nobody watches, and end has told those who asked
			}
			if failures == 1 {
				e.c.cfg.Logger.Debug("view not refreshed, will retry", "error", err)
			}
			wait := backoff(failures)
			if streamed && !refused(err) { // it waits by itself for what comes next
				wait = min(wait, streamPause)
			}
			if !pause.Until(ctx, wait, e.kicked) {
				break
			}
			continue
		}
		failures = 0
		e.counts.fetched(since != 0 && index == since)
		if !streamed && since != 0 && index == since && time.Since(began) < fruitlessQuick {
			fruitless++
		} else {
			fruitless = 0
		}
		e.publish(value, index, streamed)
		if fruitless > fruitlessMax && !pause.For(ctx, fruitlessPause) {
			break
		}
	}
	e.mu.Lock()
	ended = e.ended
	e.mu.Unlock()
	if ended {
		e.fail(errEvicted)
	} else {
		e.fail(ErrStopped)
	}
}

// next waits for the next answer, from the stream if there is one and it can tell.
func (e *entry) next(ctx context.Context, stream Stream, since uint64) (value any, index uint64, streamed bool, err error) {
	if stream != nil {
		value, index, err = stream.Next(ctx, since)
		if !errors.Is(err, ErrNoStream) {
			return value, index, true, err
		}
	}
	value, index, err = e.fetch(ctx, since)
	return value, index, false, err
}

// publish makes an answer current and tells who waits, unless it is the one they have.
func (e *entry) publish(value any, index uint64, streamed bool) {
	last := e.current.Load()
	e.current.Store(&result{value: value, index: index, streamed: streamed})
	if last.value != nil && last.index == index && last.err == nil && !streamed { // a stream has none twice
		return
	}
	e.notify(true)
}

// publishError records a failed fetch. The answer stays unless the servers refused the request.
func (e *entry) publishError(err error) {
	last := e.current.Load()
	next := &result{value: last.value, index: last.index, err: err, lost: last.lost, streamed: last.streamed}
	if last.err == nil {
		next.lost = time.Now()
	}
	if refused(err) {
		next.value, next.index = nil, 0
	}
	e.current.Store(next)
	e.notify(last.err == nil || last.err.Error() != err.Error())
}

// fail ends the view with an error for all who wait.
func (e *entry) fail(err error) {
	e.current.Store(&result{err: err, lost: time.Now()})
	e.notify(true)
}

// notify wakes who waits in first and after; watchers too if tell is set.
func (e *entry) notify(tell bool) {
	e.mu.Lock()
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
	if tell {
		e.dirty = append(e.dirty[:0:0], e.watchers...)
	}
	e.mu.Unlock()
	e.dispatch()
}

// dispatch calls the dirty watchers. One goroutine at a time does, so that a watcher never sees an older answer after a
// newer one; others leave their work to it.
func (e *entry) dispatch() {
	e.mu.Lock()
	if e.dispatching {
		e.mu.Unlock()
		return
	}
	e.dispatching = true
	for len(e.dirty) > 0 {
		w := e.dirty[0]
		e.dirty = e.dirty[1:]
		r := e.current.Load()
		e.mu.Unlock()
		switch {
		case w.cancelled.Load() || r.value == nil && r.err == nil:
		case r.err == nil, r.value != nil && !w.served:
			w.served = true
			w.f(r.value, nil)
		default:
			w.f(nil, r.err)
		}
		e.mu.Lock()
	}
	e.dispatching = false
	e.mu.Unlock()
}

// add registers a watcher and has it called with what there is. It reports false when the view has left the cache.
func (e *entry) add(w *watcher) bool {
	e.touch()
	e.mu.Lock()
	if e.retired {
		e.mu.Unlock()
		return false
	}
	e.watchers = append(e.watchers, w)
	e.watched.Store(int32(len(e.watchers)))
	e.dirty = append(e.dirty, w)
	e.mu.Unlock()
	if r := e.current.Load(); r.value == nil && r.err != nil {
		e.kick()
	}
	e.dispatch()
	return true
}

func (e *entry) remove(w *watcher) {
	w.cancelled.Store(true)
	e.touch()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watchers = slices.DeleteFunc(e.watchers, func(x *watcher) bool { return x == w })
	e.watched.Store(int32(len(e.watchers)))
}

// retire takes the view out of use, unless it is watched.
func (e *entry) retire() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.watchers) > 0 {
		return false
	}
	e.retired = true
	return true
}

// end stops the goroutine of a retired view.
func (e *entry) end() {
	e.mu.Lock()
	e.ended = true
	cancel, forget := e.cancel, e.forget
	e.forget = nil
	if e.changed != nil { // whoever waits finds the view retired
		close(e.changed)
		e.changed = nil
	}
	e.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	for _, f := range forget {
		f()
	}
}

// change returns the present result and a channel closed by the next publish, nil when there will be none.
func (e *entry) change() (*result, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return e.current.Load(), nil
	}
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return e.current.Load(), e.changed
}

// first waits for an answer, or for the failure of a fetch. Having failed before, the view is made to try again.
func (e *entry) first(ctx context.Context) (*result, error) {
	r, changed := e.change()
	for waited := false; ; waited = true {
		switch {
		case r.value != nil:
			return r, nil
		case r.err == errEvicted, r.err == ErrStopped, r.err != nil && (waited || changed == nil):
			return nil, r.err
		case changed == nil:
			return nil, errEvicted
		case r.err != nil:
			e.kick()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		r, changed = e.change()
	}
}

// after waits until the index passes min, at most for wait, and returns what there is then.
func (e *entry) after(ctx context.Context, min uint64, wait time.Duration) (*result, error) {
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		r, changed := e.change()
		switch {
		case r.value == nil && r.err != nil:
			return nil, r.err
		case r.value != nil && r.index > min:
			return r, nil
		case changed == nil:
			return nil, errEvicted
		}
		select {
		case <-changed:
		case <-limit.C:
			if r = e.current.Load(); r.value != nil {
				return r, nil
			}
			return nil, r.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// backoff is the pause after a number of failures in a row: hardly any for three, then 2 s, 4 s and so on up to a
// minute, at random up to twice that.
func backoff(failures int) time.Duration {
	if failures <= 3 {
		d := 50 * time.Millisecond << failures
		return d/2 + jitter(d/2)
	}
	d := time.Minute
	if n := failures - 3; n < 6 {
		d = time.Second << n
	}
	return d + jitter(d)
}

// jitter returns a random duration in [0, d).
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

// A bucket limits how often something happens.
type bucket struct {
	interval time.Duration // 0 for no limit
	burst    int
	next     time.Time // when the bucket is full again
}

func newBucket(rate float64, burst int) *bucket {
	b := &bucket{burst: burst}
	if rate > 0 {
		b.interval = time.Duration(float64(time.Second) / rate)
	}
	return b
}

// take returns how long to wait before the next may happen at now, and counts it.
func (b *bucket) take(now time.Time) time.Duration {
	if b.interval == 0 {
		return 0
	}
	if b.next.Before(now) {
		b.next = now
	}
	b.next = b.next.Add(b.interval)
	return b.next.Sub(now) - time.Duration(b.burst)*b.interval
}
