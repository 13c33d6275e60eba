package ads

import (
	"sync"
	"time"
)

// turns spread over time how many streams are told of changes. The zero value lets all of them go at once.
type turns struct {
	mu    sync.Mutex
	every time.Duration // between two of them; 0 for none
	next  time.Time
}

// burst is how far turns may run ahead of their times: a few changes go out at once.
const burst = 100 * time.Millisecond

func (t *turns) set(perSecond float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.every = 0
	if perSecond > 0 {
		t.every = time.Duration(min(float64(time.Second)/perSecond, float64(time.Hour)))
	}
	t.next = time.Time{}
}

// take takes a turn and returns how long it is until it comes.
func (t *turns) take(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.every == 0 {
		return 0
	}
	if early := now.Add(-burst); t.next.Before(early) {
		t.next = early
	}
	wait := max(0, t.next.Sub(now))
	t.next = t.next.Add(t.every)
	return wait
}
