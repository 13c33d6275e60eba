package access

import (
	"context"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A pace lets so many through in a time, and the rest wait for their turn.
type pace struct {
	every time.Duration // between two, once the burst is used up
	burst int

	mu   sync.Mutex
	next time.Time // when one more is due
}

// wait waits for a turn. The turn may be given back when it turns out not to have been needed. Who would wait too long
// is refused at once.
func (p *pace) wait(ctx context.Context) (giveBack func(), err error) {
	now := time.Now()
	p.mu.Lock()
	if earliest := now.Add(-time.Duration(p.burst) * p.every); p.next.Before(earliest) {
		p.next = earliest
	}
	due := p.next.Add(p.every)
	if due.Sub(now) > maxQueued {
		p.mu.Unlock()
		return nil, wireerr.ErrRateLimited
	}
	p.next = due
	p.mu.Unlock()
	giveBack = func() {
		p.mu.Lock()
		p.next = p.next.Add(-p.every)
		p.mu.Unlock()
	}
	if d := due.Sub(now); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			giveBack()
			return nil, ctx.Err()
		}
	}
	return giveBack, nil
}
