package connectrpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/internal/pause"
)

// errRateLimit is matched by agents, which try again later.
var errRateLimit = errors.New("Rate limit reached, try again later")

// maxLimitWait is how long a request waits for its turn.
const maxLimitWait = 500 * time.Millisecond

// A limiter spaces requests evenly, or bounds how many run at once. The zero limiter is ready for use.
type limiter struct {
	mu      sync.Mutex
	next    time.Time     // when the next request may start
	running int           // by the concurrent limit
	freed   chan struct{} // closed and replaced when one ends; nil before the first wait
}

// acquire waits for a turn under whichever limit is set, perSecond before concurrent, and returns what ends the turn.
func (l *limiter) acquire(ctx context.Context, perSecond float64, concurrent int) (done func(), err error) {
	switch {
	case perSecond > 0:
		return func() {}, l.wait(ctx, perSecond)
	case concurrent > 0:
		return l.enter(ctx, concurrent)
	}
	return func() {}, nil
}

func (l *limiter) wait(ctx context.Context, perSecond float64) error {
	now := time.Now()
	l.mu.Lock()
	turn := l.next
	if turn.Before(now) {
		turn = now
	}
	if turn.Sub(now) > maxLimitWait {
		l.mu.Unlock()
		return errRateLimit
	}
	l.next = turn.Add(time.Duration(float64(time.Second) / perSecond))
	l.mu.Unlock()
	if turn.Equal(now) {
		return nil
	}
	if !pause.For(ctx, turn.Sub(now)) {
		return ctx.Err()
	}
	return nil
}

func (l *limiter) enter(ctx context.Context, limit int) (func(), error) {
	timeout := time.NewTimer(maxLimitWait)
	defer timeout.Stop()
	for {
		l.mu.Lock()
		if l.running < limit {
			l.running++
			l.mu.Unlock()
			return l.leave, nil
		}
		if l.freed == nil {
			l.freed = make(chan struct{})
		}
		freed := l.freed
		l.mu.Unlock()
		select {
		case <-freed:
		case <-timeout.C:
			return nil, errRateLimit
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *limiter) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	if l.freed != nil {
		close(l.freed)
		l.freed = nil
	}
}
