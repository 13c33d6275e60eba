package upstream

import (
	"context"
	"crypto/tls"
	"math"
	"net"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/healthcheck"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// health is what active health checks say about a host, and how long it has
// been in use.
type health struct {
	bits  atomic.Uint32 // of the check constants
	known atomic.Bool   // a check told
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

// A check is the active health check of a host.
type check struct {
	*healthcheck.Checker
	stop context.CancelFunc
}

// startCheck begins to check a host, unless that goes on already or is not
// wanted. The caller holds c.mu.
func (c *Cluster) startCheck(h *Host) {
	hc := c.conf.HealthCheck
	if hc == nil || h.endpoint.Load().Check.Disabled {
		c.stopCheck(h)
		h.health.set(checkBad|checkDegraded|leaving, 0)
		return
	}
	if _, ok := c.checks[h]; ok || c.closed {
		return
	}
	e := h.endpoint.Load()
	hostname := e.Check.Hostname
	if hostname == "" {
		hostname = e.Hostname
	}
	to := healthcheck.Target{Cluster: c.conf.Name, Hostname: hostname, Dial: func(ctx context.Context, alpn []string) (net.Conn, bool, error) {
		return c.dialCheck(ctx, h, alpn)
	}}
	used := func() bool { return c.stats.CxTotal.Value() > 0 }
	k := healthcheck.New(hc, to, used, c.m.cfg.Rand)
	if bits := h.health.load(); h.health.known.Load() && bits&checkWaits == 0 {
		k.Resume(bits&checkFailed == 0)
	} else {
		h.health.set(checkBad, checkBad)
	}
	ctx, stop := context.WithCancel(context.Background())
	if c.checks == nil {
		c.checks = map[*Host]check{}
	}
	c.checks[h] = check{k, stop}
	c.m.spawn(func(parent context.Context) {
		defer stop()
		defer context.AfterFunc(parent, stop)()
		k.Run(ctx, func(r healthcheck.Report) { c.checked(h, r) })
	})
}

// stopCheck ends the check of a host. The caller holds c.mu.
func (c *Cluster) stopCheck(h *Host) {
	if k, ok := c.checks[h]; ok {
		k.stop()
		delete(c.checks, h)
	}
}

// unchecked reports whether a host waits for its first check. The caller holds
// c.mu.
func (c *Cluster) unchecked() bool {
	for h := range c.checks {
		if h.health.load()&checkWaits != 0 {
			return true
		}
	}
	return false
}

// checked takes note of what a check found.
func (c *Cluster) checked(h *Host, r healthcheck.Report) {
	s, log := c.stats, c.m.cfg.Logger
	s.CheckAttempt.Inc()
	switch r.Result {
	case healthcheck.Passed:
		s.CheckSuccess.Inc()
	case healthcheck.NetworkFailure:
		s.CheckFailure.Inc()
		s.CheckNetwork.Inc()
	case healthcheck.WrongService:
		s.CheckFailure.Inc()
		s.CheckCluster.Inc()
	default:
		s.CheckFailure.Inc()
	}
	switch hc := c.conf.HealthCheck; {
	case r.Changed || r.First && !r.Healthy:
		log.Info("host health changed", "cluster", c.conf.Name, "host", h.key, "healthy", r.Healthy, "error", r.Err)
	case r.Err != nil && hc.LogFailures:
		log.Info("health check failed", "cluster", c.conf.Name, "host", h.key, "error", r.Err)
	case r.Err == nil && hc.LogGood:
		log.Info("health check passed", "cluster", c.conf.Name, "host", h.key)
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	bits := uint32(0)
	if !r.Healthy {
		bits |= checkFailed
	}
	if r.Degraded {
		bits |= checkDegraded
	}
	h.health.known.Store(true)
	waited := h.health.load()&checkWaits != 0
	changed := h.health.set(checkBad|checkDegraded, bits)
	if r.Changed && r.Healthy {
		h.restarted(c)
	}
	if o := c.conf.Outlier; r.Result == healthcheck.Passed && h.outlier.ejected && (o == nil || !o.KeepDespiteCheck) {
		c.acquit(h)
		changed = true
	}
	left := !r.Healthy && h.health.load()&leaving != 0
	switch {
	case left:
		c.discard(h)
	case changed:
		c.rebuild()
	}
	warm := waited && !c.unchecked()
	c.mu.Unlock()
	if warm {
		c.m.ready(c)
	}
	if left {
		h.leave()
	}
	if r.Changed && !r.Healthy && c.conf.CloseOnFailure {
		h.disconnect()
	}
}

// discard takes a host out of the list. The caller holds c.mu.
func (c *Cluster) discard(h *Host) {
	c.stopCheck(h)
	var hosts []*Host
	for _, x := range c.hosts.Load().hosts {
		if x != h {
			hosts = append(hosts, x)
		}
	}
	c.rebuildWith(hosts)
	c.stats.MembershipChange.Inc()
}

// FailHealth makes a host unhealthy until it passes its health checks, as it
// may ask for by "x-envoy-immediate-health-check-fail" in any response. Without
// health checks, nothing happens.
func (c *Cluster) FailHealth(h *Host) {
	c = h.owner.Load()
	c.mu.Lock()
	k, ok := c.checks[h]
	ok = ok && k.Fail()
	if ok {
		c.stats.CheckPassive.Inc()
		h.health.set(checkBad, checkFailed)
		c.rebuild()
	}
	c.mu.Unlock()
	if ok && c.conf.CloseOnFailure {
		h.disconnect()
	}
}

// dialCheck makes a connection for a health check. It counts nowhere.
func (c *Cluster) dialCheck(ctx context.Context, h *Host, alpn []string) (net.Conn, bool, error) {
	e, hc := h.endpoint.Load(), c.conf.HealthCheck
	a := e.Address
	if e.Check.Address != (model.Address{}) {
		a = e.Check.Address
	}
	switch {
	case hc.AltPort != 0:
		a.Port = hc.AltPort
	case e.Check.Port != 0:
		a.Port = e.Check.Port
	}
	client := c.tlsFor(e.Metadata)
	if hc.TLSMatch != nil {
		client = c.tls
		if i := matchTLS(c.conf.TLSMatches, hc.TLSMatch); i >= 0 {
			client = c.tlsMatches[i]
		}
	}
	var cfg *tls.Config
	if client != nil {
		var err error
		if cfg, err = h.sessions.Config(client); err != nil {
			return nil, false, err
		}
		if len(hc.ALPN) > 0 {
			cfg = cfg.Clone()
			cfg.NextProtos = hc.ALPN
		}
	}
	raw, err := c.m.cfg.Dial(ctx, a.Network(), a.String())
	if err != nil {
		return nil, false, err
	}
	conn, _, err := c.secure(ctx, raw, cfg, Request{ALPN: alpn})
	return conn, cfg != nil, err
}
