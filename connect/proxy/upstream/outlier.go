package upstream

import (
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// outlier is what a host's record says against it. It is guarded by the mutex
// that all versions of the cluster share.
type outlier struct {
	fails5xx, failsLocal uint32
	ejected              bool
	until                time.Time // when an ejected host may come back
	times                uint32    // ejections that are not forgiven yet
}

// report tells how connecting to a host went. A connection that could not be
// made counts like an answer 503, unless the two are told apart.
func (c *Cluster) report(h *Host, ok bool) {
	// A newer version may have taken the host over meanwhile.
	if cur := c.m.Get(c.conf.Name); cur != nil {
		c = cur
	}
	o := c.conf.Outlier
	if o == nil {
		return
	}
	if ok && h.spotless.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok {
		h.outlier.fails5xx, h.outlier.failsLocal = 0, 0
		h.spotless.Store(h.outlier.times == 0 && !h.outlier.ejected)
		return
	}
	h.spotless.Store(false)
	if o.SplitLocalErrors {
		if h.outlier.failsLocal++; o.ConsecutiveLocal > 0 && h.outlier.failsLocal == o.ConsecutiveLocal {
			h.outlier.failsLocal = 0
			c.stats.DetectedLocalFailure.Inc()
			if c.eject(h, o, o.EnforceConsecutiveLocal) {
				c.stats.EnforcedLocalFailure.Inc()
			}
		}
		return
	}
	if h.outlier.fails5xx++; o.Consecutive5xx > 0 && h.outlier.fails5xx == o.Consecutive5xx {
		h.outlier.fails5xx = 0
		c.stats.Detected5xx.Inc()
		if c.eject(h, o, o.EnforceConsecutive5xx) {
			c.stats.Enforced5xx.Inc()
		}
	}
}

// eject takes the host out if the limits allow it. The caller holds c.mu.
func (c *Cluster) eject(h *Host, o *model.Outlier, enforce uint32) bool {
	if h.outlier.ejected || c.m.cfg.Rand()%100 >= uint64(enforce) {
		return false
	}
	hosts := c.hosts.Load().hosts
	out := 0
	for _, x := range hosts {
		if x.outlier.ejected {
			out++
		}
	}
	if (out+1)*100 > int(o.MaxEjectionPercent)*len(hosts) && !(o.AlwaysEjectOne && out == 0) {
		c.stats.EjectionsOverflow.Inc()
		return false
	}
	h.outlier.times++
	d := min(o.BaseEjection*time.Duration(h.outlier.times), max(o.MaxEjection, o.BaseEjection))
	if o.EjectionJitter > 0 {
		d += time.Duration(c.m.cfg.Rand() % uint64(o.EjectionJitter))
	}
	h.outlier.ejected, h.outlier.until = true, time.Now().Add(d)
	c.stats.EjectionsTotal.Inc()
	c.m.cfg.Logger.Info("host ejected", "cluster", c.conf.Name, "host", h.key, "for", d)
	c.rebuild()
	c.armTick(o)
	return true
}

// armTick makes the next look at ejected hosts happen. Nothing ticks while no
// host has a record. The caller holds c.mu.
func (c *Cluster) armTick(o *model.Outlier) {
	if c.tick != nil || c.closed {
		return
	}
	c.tick = time.AfterFunc(o.Interval, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tick = nil
		if c.closed {
			return
		}
		now, more, changed := time.Now(), false, false
		for _, h := range c.hosts.Load().hosts {
			r := &h.outlier
			switch {
			case r.ejected && !now.Before(r.until):
				r.ejected, changed = false, true
				c.m.cfg.Logger.Info("host is back after ejection", "cluster", c.conf.Name, "host", h.key)
			case !r.ejected && r.times > 0:
				r.times--
			}
			more = more || r.ejected || r.times > 0
		}
		if changed {
			c.rebuild()
		}
		if more {
			c.armTick(o)
		}
	})
}
