package transport

import (
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Those who answer stale reads by themselves, over streams of bytes, ask this of the dispatcher.

// Stale returns what a stale answer tells about itself that comes from the state here, as it was a moment ago at the
// earliest. It is false while this server gives none: it refuses calls, has not heard from a leader yet, or has shown more
// than it has now and does not lead. Once it is true, a view that was opened before may be shown.
func (d *Dispatcher) Stale() (m read.Meta, ok bool) {
	if d.refused.Err() != nil {
		return m, false
	}
	s, _ := d.cfg.Log.Status()
	if !s.Leading && !d.mayAnswerStale(&read.Options{Mode: read.Stale}) {
		return m, false
	}
	d.showed(d.cfg.Applied())
	d.finish(&m, s.Leading)
	return m, true
}

// Applied returns the index of the last log entry that readers of the state can see.
func (d *Dispatcher) Applied() uint64 { return d.cfg.Applied() }

// Refused returns the channel that is closed by Refuse.
func (d *Dispatcher) Refused() <-chan struct{} { return d.refused.Done() }

// Admit counts what is asked for as a call, and refuses it over the request limits.
func (d *Dispatcher) Admit(m rpc.Descriptor) error {
	s, _ := d.cfg.Log.Status()
	return d.limiter.admit(m, s.Leading)
}
