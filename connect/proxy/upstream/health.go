package upstream

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// health is what active health checks say about a host, and how long it has
// been in use.
type health struct {
	bits  atomic.Uint32 // of the check constants
	since atomic.Int64  // UNIX nanoseconds when slow start began; 0 is long ago
}

const (
	checkFailed   = 1 << iota // or not passed for the first time yet
	checkWaits                // for its first result
	checkDegraded             // it says of itself that it is
	leaving                   // no longer configured, but kept while it passes
)

// checkBad are the bits with which a host may not be chosen.
const checkBad = checkFailed | checkWaits

func (x *health) load() uint32 { return x.bits.Load() }

// set changes the bits of the mask and reports whether any was different.
func (x *health) set(mask, bits uint32) bool {
	for {
		old := x.bits.Load()
		if x.bits.CompareAndSwap(old, old&^mask|bits) {
			return old&mask != bits
		}
	}
}

// usable reports whether the host may be chosen by itself.
func (h *Host) usable() bool {
	return h.endpoint.Load().Health != model.Unhealthy && h.health.load()&checkBad == 0 && !h.isEjected()
}

func (h *Host) isEjected() bool {
	c := h.owner.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	return h.outlier.ejected
}

// restarted begins the slow start of a host, if its cluster has that.
func (h *Host) restarted(c *Cluster) {
	if c.conf.SlowStart != nil {
		h.health.since.Store(time.Now().UnixNano())
	}
}

// factor returns the share of its weight that a host has reached.
func (h *Host) factor(s *model.SlowStart, now time.Time) float64 {
	since := h.health.since.Load()
	if since == 0 {
		return 1
	}
	age := max(now.Sub(time.Unix(0, since)), time.Millisecond)
	if age >= s.Window {
		return 1
	}
	share := float64(age) / float64(s.Window)
	if s.Aggression != 1 {
		share = math.Pow(share, 1/s.Aggression)
	}
	return max(share, s.MinPercent/100)
}
