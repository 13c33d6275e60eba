package leader

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/server/fsm"
)

// Attempts to end a session whose time is over.
const (
	expiryRetry    = 10 * time.Second // the first wait; it doubles
	expiryAttempts = 6
)

// Sessions ends the sessions that are not renewed. A new leader gives each its full time again (spec/state.md section
// 4.2). It is safe for concurrent use; without leadership it does nothing.
type Sessions struct {
	mu      sync.Mutex
	leading bool
	byID    map[string]*expiry
	queue   expiries
	wake    chan struct{} // of capacity one: the first expiry has changed
}

// An expiry is when a session ends.
type expiry struct {
	id       string
	at       time.Time
	attempts int
	place    int // in the queue
}

// NewSessions returns a keeper of sessions.
func NewSessions() *Sessions {
	return &Sessions{byID: map[string]*expiry{}, wake: make(chan struct{}, 1)}
}

// Renew makes the session end after this time, counted from now, unless it is renewed again.
func (s *Sessions) Renew(id string, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leading {
		s.set(id, time.Now().Add(after), 0)
	}
}

// Forget tells that the session has ended.
func (s *Sessions) Forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.byID[id]; e != nil {
		heap.Remove(&s.queue, e.place)
		delete(s.byID, id)
	}
}

// set adds or moves an expiry. The lock is held.
func (s *Sessions) set(id string, at time.Time, attempts int) {
	if e := s.byID[id]; e != nil {
		e.at, e.attempts = at, attempts
		heap.Fix(&s.queue, e.place)
	} else {
		e = &expiry{id: id, at: at, attempts: attempts}
		s.byID[id] = e
		heap.Push(&s.queue, e)
	}
	if s.queue[0].id == id {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Duty watches the clock.
func (s *Sessions) Duty() Duty {
	return Duty{Name: "sessions", Run: func(ctx context.Context, l *Leader) error {
		s.begin(l)
		defer s.end()
		for {
			due, next := s.due()
			for _, e := range due {
				s.expire(ctx, l, e)
			}
			if len(due) > 0 {
				continue
			}
			var timer <-chan time.Time
			if !next.IsZero() {
				timer = time.After(time.Until(next))
			}
			select {
			case <-ctx.Done():
				return nil
			case <-timer:
			case <-s.wake:
			}
		}
	}}
}

// begin gives every session its full time. Those renewed from here on are known already.
func (s *Sessions) begin(l *Leader) {
	s.mu.Lock()
	s.leading = true
	s.mu.Unlock()
	_, all := l.Store.View().Sessions()
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range all {
		if after := session.ExpiresAfter(); after > 0 && s.byID[session.ID] == nil {
			s.set(session.ID, now.Add(after), 0)
		}
	}
}

func (s *Sessions) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leading = false
	clear(s.byID)
	s.queue = nil
}

// due takes out what is over and tells when the next is.
func (s *Sessions) due() (due []expiry, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.queue) > 0 {
		e := s.queue[0]
		if e.at.After(now) {
			return due, e.at
		}
		heap.Pop(&s.queue)
		delete(s.byID, e.id)
		due = append(due, *e)
	}
	return due, time.Time{}
}

func (s *Sessions) expire(ctx context.Context, l *Leader, e expiry) {
	if _, session := l.Store.View().Session(e.id); session == nil {
		return
	}
	defer metricInvalidate.Since(time.Now())
	_, err := l.Apply(ctx, fsm.SessionDestroy, &kv.SessionDestroyRequest{ID: e.id})
	switch {
	case err == nil:
		l.Log.Debug("session expired", "session", e.id)
		return
	case ctx.Err() != nil:
		return
	case e.attempts+1 >= expiryAttempts:
		l.Log.Error("cannot end an expired session, giving up until it is renewed or the leader changes", "session", e.id, "error", err)
		return
	}
	wait := expiryRetry << e.attempts
	l.Log.Warn("cannot end an expired session, will retry", "session", e.id, "wait", wait, "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leading && s.byID[e.id] == nil {
		s.set(e.id, time.Now().Add(wait), e.attempts+1)
	}
}

// expiries is a heap, the earliest first.
type expiries []*expiry

func (q expiries) Len() int           { return len(q) }
func (q expiries) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q expiries) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}
func (q *expiries) Push(x any) {
	e := x.(*expiry)
	e.place = len(*q)
	*q = append(*q, e)
}
func (q *expiries) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return e
}
