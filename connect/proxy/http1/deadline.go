package http1

import (
	"sync"
	"time"
)

// A deadline is when waiting ends. Setting that of a connection costs more than to remember it, so the connection's
// is only ever set if it would come too late; one that comes too early is noticed when it passes, and set anew.
type deadline struct {
	set   func(time.Time) error // of the connection
	exact bool                  // one that comes too early does harm

	mu    sync.Mutex
	want  time.Time // zero never
	armed time.Time // what the connection was told last
}

// to sets the deadline.
func (d *deadline) to(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.want = t
	switch {
	case d.exact:
		if t.Equal(d.armed) {
			return
		}
	case t.IsZero(), !d.armed.IsZero() && !t.Before(d.armed):
		return
	}
	d.arm()
}

// arm tells the connection. A failure means that it is closed, which whoever uses it finds out. The caller holds d.mu.
func (d *deadline) arm() {
	d.armed = d.want
	_ = d.set(d.want)
}

// passed reports, after the connection said that its deadline has passed, whether the one that is wanted has. If not
// the connection is good again.
func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.want.IsZero() && !time.Now().Before(d.want) {
		return true
	}
	if d.exact {
		return true
	}
	d.arm()
	return false
}
