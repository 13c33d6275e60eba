package mvcc

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Who waits is found by the keys that a transaction has changed, never by the shape of the trees: so a write wakes those
// who watch one of its keys, or a prefix of one, and nobody else, whether what they watch is there or not. Nothing is
// registered until somebody waits, and all who wait at one place share one channel.

// A place is one key of an index, or all that begin with it, as it was when it was read.
type place struct {
	slot  int
	key   []byte
	exact bool
	leaf  *leaf // of an exact place, nil if there is none
	node  *node // the deepest one that is replaced by every change of the place, unless there is a leaf
}

// changed reports whether the place may be another in these trees. Neighbours that have come or gone since can make it
// look so.
func (p *place) changed(roots []*node) bool {
	if !p.exact {
		_, n := roots[p.slot].under(p.key)
		return n != p.node
	}
	l, n := roots[p.slot].get(p.key)
	return l != p.leaf || l == nil && n != p.node
}

func (p *place) same(slot int, key []byte, exact bool) bool {
	return p.slot == slot && p.exact == exact && string(p.key) == string(key)
}

// name tells places apart.
func (p *place) name() string {
	kind := byte(0)
	if p.exact {
		kind = 1
	}
	return string(append([]byte{kind, byte(p.slot), byte(p.slot >> 8)}, p.key...))
}

// manyPlaces is the number of places from which on a transaction finds by name those it has.
const manyPlaces = 16

// watch records that a place was read.
func (t *Txn) watch(slot int, key []byte, exact bool) {
	if t.seen == nil && slices.ContainsFunc(t.places, func(p place) bool { return p.same(slot, key, exact) }) {
		return
	}
	p := place{slot: slot, key: slices.Clone(key), exact: exact}
	if len(t.places) >= manyPlaces {
		if t.seen == nil {
			t.seen = map[string]struct{}{}
			for i := range t.places {
				t.seen[t.places[i].name()] = struct{}{}
			}
		}
		name := p.name()
		if _, there := t.seen[name]; there {
			return
		}
		t.seen[name] = struct{}{}
	}
	if exact {
		if p.leaf, p.node = t.roots[slot].get(key); p.leaf != nil {
			p.node = nil
		}
	} else {
		_, p.node = t.roots[slot].under(key)
	}
	t.places = append(t.places, p)
}

// Watch adds a channel whose closing ends Wait.
func (t *Txn) Watch(ch <-chan struct{}) {
	if t.watching && !slices.Contains(t.watched, ch) {
		t.watched = append(t.watched, ch)
	}
}

// Wait blocks until something read through t has changed and returns nil, or until ctx ends and returns its error. A
// change that came first wins.
func (t *Txn) Wait(ctx context.Context) error {
	w := t.Waiter()
	defer w.Close()
	return w.Wait(ctx)
}

// A Waiter waits for a change of what a transaction has read, and keeps nothing of that. Close it when it is done with.
type Waiter struct {
	db      *DB
	spots   []*spot
	watched []<-chan struct{} // of the spots and of the caller's
}

// Waiter returns what waits for a change of what was read through t so far.
func (t *Txn) Waiter() *Waiter {
	w := &Waiter{db: t.db}
	if n := len(t.watched) + len(t.places); n > 0 {
		w.watched = append(make([]<-chan struct{}, 0, n), t.watched...)
	}
	if len(t.places) == 0 {
		return w
	}
	if len(t.places) > manyWaits {
		t.widen()
	}
	w.spots = make([]*spot, 0, len(t.places))
	t.db.watches.enter(w, t.places)
	// What has changed before that is seen in the trees, what changes after it tells the spots.
	roots := *t.db.roots.Load()
	if &roots[0] == &t.roots[0] {
		return w
	}
	for i := range t.places {
		if t.places[i].changed(roots) {
			w.Close()
			w.watched = append(w.watched[:0], closed)
			break
		}
	}
	return w
}

// manyWaits is the number of places from which on a transaction waits for whole indexes.
const manyWaits = 1 << 15

// widen puts the whole indexes in the place of their parts.
func (t *Txn) widen() {
	narrow := t.places
	t.places, t.seen = nil, nil
	for _, p := range narrow {
		t.watch(p.slot, nil, false)
	}
}

var closed = func() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}()

// Wait blocks until there is a change and returns nil, or until ctx ends and returns its error. A change that came first
// wins. It may be called again.
func (w *Waiter) Wait(ctx context.Context) error {
	if w.Until(ctx.Done(), nil) {
		return nil
	}
	return ctx.Err()
}

// Until is Wait for those who have no context of their own for each wait: it reports whether there was a change before done
// was closed or late has sent.
func (w *Waiter) Until(done <-chan struct{}, late <-chan time.Time) bool {
	if w.Changed() {
		return true
	}
	// A nil channel never fires.
	var few [6]<-chan struct{}
	if copy(few[:], w.watched) == len(w.watched) {
		select {
		case <-done:
			return false
		case <-late:
			return false
		case <-few[0]:
		case <-few[1]:
		case <-few[2]:
		case <-few[3]:
		case <-few[4]:
		case <-few[5]:
		}
		return true
	}
	return untilMany(w.watched, done, late)
}

// untilMany is Until for more than a select statement has cases.
func untilMany(watched []<-chan struct{}, done <-chan struct{}, late <-chan time.Time) bool {
	cases := make([]reflect.SelectCase, 0, len(watched)+2)
	cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(done)},
		reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(late)})
	for _, ch := range watched {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ch)})
	}
	i, _, _ := reflect.Select(cases)
	return i > 1
}

// Changed reports whether there is a change. Unlike the other methods, any number of goroutines may call it.
func (w *Waiter) Changed() bool {
	for _, ch := range w.watched {
		select {
		case <-ch:
			return true
		default:
		}
	}
	return false
}

// Close ends the watches.
func (w *Waiter) Close() {
	if w.spots != nil {
		w.db.watches.leave(w.spots)
		w.spots = nil
	}
}

// watches are the places where somebody waits.
type watches struct {
	places atomic.Int64 // how many, changed under mu

	mu    sync.Mutex
	spots []*node // a tree for each index, changed in place; its values are *spots
}

// Spots are those who wait at one place: for the key itself, and for all that begin with it.
type spots struct{ exact, prefix *spot }

func (s *spots) at(exact bool) **spot {
	if exact {
		return &s.exact
	}
	return &s.prefix
}

// A spot is a place with at least one waiter.
type spot struct {
	place
	waiters int
	ch      chan struct{} // closed by a change
	fired   bool
}

// inPlace owns every node of the trees of spots.
var inPlace = edits{id: 1}

// enter adds w to the spots of the places.
func (x *watches) enter(w *Waiter, places []place) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range places {
		p := &places[i]
		if p.slot >= len(x.spots) {
			x.spots = append(x.spots, make([]*node, p.slot+1-len(x.spots))...)
		}
		root := x.spots[p.slot]
		if root == nil {
			root = &node{owner: inPlace.id}
			x.spots[p.slot] = root
		}
		l, _ := root.get(p.key)
		if l == nil {
			inPlace.insert(root, p.key, &spots{})
			l, _ = root.get(p.key)
		}
		at := l.value.(*spots).at(p.exact)
		if *at == nil {
			*at = &spot{place: place{slot: p.slot, key: p.key, exact: p.exact}, ch: make(chan struct{})}
			x.places.Add(1)
		}
		(*at).waiters++
		w.spots = append(w.spots, *at)
		w.watched = append(w.watched, (*at).ch)
	}
}

func (x *watches) leave(all []*spot) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range all {
		if s.waiters--; s.waiters == 0 && !s.fired {
			x.remove(s)
		}
	}
}

// remove takes a spot out of its tree.
func (x *watches) remove(s *spot) {
	x.places.Add(-1)
	root := x.spots[s.slot]
	l, _ := root.get(s.key)
	both := l.value.(*spots)
	*both.at(s.exact) = nil
	if both.exact == nil && both.prefix == nil {
		inPlace.remove(root, s.key, true)
	}
}

// dirty are the keys that a transaction has changed, one after another.
type dirty struct {
	keys []byte
	ends []dirtyKey
}

type dirtyKey struct {
	slot int
	end  int // in keys
}

// keepDirty is the size up to which the memory of a transaction's keys is used again.
const keepDirty = 64 << 10

// reset empties d, and reports whether its memory is to be used again.
func (d *dirty) reset() bool {
	if d.keys = d.keys[:0]; cap(d.keys) > keepDirty {
		d.keys = nil
	}
	d.ends = d.ends[:0]
	return d.keys != nil
}

// touched notes a change of a key. What is undone later counts as well.
func (t *Txn) touched(slot int, key []byte) {
	if t.quiet {
		return
	}
	t.dirty.keys = append(t.dirty.keys, key...)
	t.dirty.ends = append(t.dirty.ends, dirtyKey{slot, len(t.dirty.keys)})
}

// fire wakes those who wait for one of the keys. The changes must be visible already: who begins to wait from now on
// sees them.
func (x *watches) fire(d *dirty) {
	if x.places.Load() == 0 {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var woken []*spot
	begin := 0
	for _, k := range d.ends {
		key := d.keys[begin:k.end]
		begin = k.end
		if k.slot >= len(x.spots) || x.spots[k.slot] == nil {
			continue
		}
		x.spots[k.slot].path(key, func(l *leaf) bool {
			both := l.value.(*spots)
			if both.prefix != nil && !both.prefix.fired {
				both.prefix.fired = true
				woken = append(woken, both.prefix)
			}
			if s := both.exact; s != nil && !s.fired && len(s.key) == len(key) {
				s.fired = true
				woken = append(woken, s)
			}
			return true
		})
	}
	for _, s := range woken {
		x.remove(s)
		close(s.ch)
	}
}
