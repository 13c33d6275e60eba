package leaf

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// An entry is one leaf that is kept.
type entry struct {
	key     key
	hurried chan struct{} // asks for a new leaf now; holds one

	mu      sync.Mutex
	state   state
	used    time.Time // when somebody last asked
	waiters int
}

// A state is what those who ask see.
type state struct {
	leaf  *ca.Leaf
	index uint64
	roots uint64 // index of the servers' roots when it was signed
	err   error  // of the last attempt, nil when it succeeded
	busy  bool   // the servers were too busy: another attempt follows though there is no leaf
	since time.Time
	news  chan struct{} // closed when there is a newer state
}

func (s *state) result(hit bool) Result {
	r := Result{Leaf: s.leaf, Index: s.index, Hit: hit}
	if s.err != nil {
		r.Age = time.Since(s.since)
	}
	return r
}

func (e *entry) current() state {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

func (e *entry) enter() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waiters++
	e.used = time.Now()
}

func (e *entry) exit() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waiters--
	e.used = time.Now()
}

// idle reports whether nobody has asked for a time.
func (e *entry) idle(ttl time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.waiters == 0 && time.Since(e.used) >= ttl
}

// hurry asks for a new leaf without waiting for the moment it is due.
func (e *entry) hurry() {
	select {
	case e.hurried <- struct{}{}:
	default:
	}
}

// succeed publishes a leaf.
func (e *entry) succeed(leaf *ca.Leaf) {
	e.mu.Lock()
	defer e.mu.Unlock()
	roots := leaf.ModifyIndex
	index := max(roots, e.state.index+1)
	leaf.CreateIndex, leaf.ModifyIndex = index, index
	close(e.state.news)
	e.state = state{leaf: leaf, index: index, roots: roots, news: make(chan struct{})}
}

// fail publishes why there is no newer leaf.
func (e *entry) fail(err error, busy bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.state.news)
	since := e.state.since
	if e.state.err == nil {
		since = time.Now()
	}
	e.state.err, e.state.busy, e.state.since = err, busy, since
	e.state.news = make(chan struct{})
}

// keep makes and renews a leaf until ctx ends, nobody wants it, or the first one is refused.
func (k *Keeper) keep(ctx context.Context, e *entry) {
	defer k.forget(e)
	retry := minRetry
	for {
		leaf, err := k.fetch(ctx, e)
		switch {
		case ctx.Err() != nil:
			e.fail(ctx.Err(), false)
			return
		case err == nil:
			retry = minRetry
			e.succeed(leaf)
			k.log.Debug("signed", "kind", e.key.kind, "name", e.key.name, "expires", leaf.ValidBefore)
			if !k.untilDue(ctx, e) {
				return
			}
			continue
		}
		have := e.current().leaf != nil
		busy := wireerr.Status(err) == http.StatusTooManyRequests
		if !have && !busy {
			k.forget(e) // before those who wait learn of it, so that they can start anew
			e.fail(err, false)
			return
		}
		wait := k.jitter(retry)
		retry = min(2*retry, maxRetry)
		if have {
			k.log.Warn("certificate cannot be renewed, will retry", "kind", e.key.kind, "name", e.key.name,
				"expires", e.current().leaf.ValidBefore, "wait", wait, "error", err)
		}
		e.fail(err, busy)
		if k.retire(e) {
			return
		}
		pause.For(ctx, wait)
	}
}

// forget makes the next Get start a new entry.
func (k *Keeper) forget(e *entry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.entries[e.key] == e {
		delete(k.entries, e.key)
	}
}

// retire forgets an entry that nobody has asked for lately, and reports whether it did.
func (k *Keeper) retire(e *entry) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !e.idle(k.cfg.IdleTTL) {
		return false
	}
	if k.entries[e.key] == e {
		delete(k.entries, e.key)
	}
	return true
}

// rootsWait is how long a leaf waits for the roots when the servers could not be asked for them.
const rootsWait = 3 * time.Second

// fetch waits for the roots and has a leaf signed.
func (k *Keeper) fetch(ctx context.Context, e *entry) (*ca.Leaf, error) {
	patience := time.NewTimer(rootsWait)
	defer patience.Stop()
	impatient := false
	for {
		roots, news, err := k.Roots()
		if roots != nil {
			return k.sign(ctx, e.key, roots)
		}
		if impatient && err != nil {
			return nil, err
		}
		select {
		case <-news:
		case <-patience.C:
			impatient = true
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// untilDue waits for the moment to replace the leaf: a random one late in its life, or soon after the root has changed.
// It returns false when ctx has ended or nobody wants the leaf any more.
func (k *Keeper) untilDue(ctx context.Context, e *entry) bool {
	s := e.current()
	life := s.leaf.ValidBefore.Sub(s.leaf.ValidAfter)
	share := renewFrom + (renewTo-renewFrom)*k.cfg.Chance()
	at := s.leaf.ValidAfter.Add(time.Duration(share * float64(life)))
	due := time.NewTimer(time.Until(at))
	defer due.Stop()
	changed := false
	for {
		roots, news, _ := k.Roots()
		// Roots from before it was signed say nothing about it.
		if !changed && roots != nil && roots.Index >= s.roots && roots.ActiveRootID != s.leaf.RootID {
			changed = true
			if delay := time.Duration(k.cfg.Chance() * float64(rootChangeDelay)); delay < time.Until(at) {
				due.Reset(delay)
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-e.hurried:
			return true
		case <-due.C:
			return !k.retire(e)
		case <-news:
		}
	}
}
