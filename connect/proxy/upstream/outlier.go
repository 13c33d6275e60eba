package upstream

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// A Result is how a request went, as far as its host is to be judged by it.
type Result struct {
	Status     int           // of the response; 0 if none came
	GRPC       bool          // GRPCStatus counts rather than Status
	GRPCStatus int           // the code of grpc-status
	Local      Local         // what happened instead of a response
	Latency    time.Duration // until the response began; 0 unknown
	RetryAfter time.Duration // what the host asks for with a 503 or 429
}

// A Local is what happened with a request or connection on this side.
type Local uint8

// The cases.
const (
	LocalNone           Local = iota
	LocalConnected            // a connection was made, which is all there is to know
	LocalConnectFailure       // it could not be made
	LocalTimeout              // no response came in time
	LocalReset                // the host broke the exchange off
)

// code returns the status that the result counts as, or 0 for none.
func (r *Result) code() int {
	switch r.Local {
	case LocalConnected:
		return 200
	case LocalConnectFailure, LocalReset:
		return 503
	case LocalTimeout:
		return 504
	}
	if r.GRPC && (r.Status == 0 || r.Status == 200) {
		return grpcCode(r.GRPCStatus)
	}
	return r.Status
}

// grpcCode returns the HTTP status that stands for one of gRPC.
func grpcCode(s int) int {
	switch s {
	case 0:
		return 200
	case 1:
		return 499
	case 3, 9, 11:
		return 400
	case 4:
		return 504
	case 5:
		return 404
	case 6, 10:
		return 409
	case 7:
		return 403
	case 8:
		return 429
	case 12:
		return 501
	case 14:
		return 503
	case 16:
		return 401
	}
	return 500
}

// outlier is what a host's record says against it.
type outlier struct {
	fails5xx, failsGateway, failsLocal atomic.Uint32 // in a row
	answers, local                     tally         // of this interval
	unreachable                        atomic.Bool   // ejected since connections to it fail

	// Guarded by the mutex that all versions of the cluster share.
	ejected           bool
	until             time.Time // when an ejected host may come back
	times             uint32    // ejections that are not forgiven yet
	rate, localRate   float64   // percent of success in the last interval; see rated
	rated, localRated bool      // there were enough to tell
}

// tally counts how many were good.
type tally struct{ all, good atomic.Uint32 }

func (t *tally) add(good bool) {
	t.all.Add(1)
	if good {
		t.good.Add(1)
	}
}

// take returns the percentage of good ones and starts anew. It is not told
// apart from nothing if there were fewer than least.
func (t *tally) take(least uint32) (percent float64, enough bool) {
	all, good := t.all.Swap(0), t.good.Swap(0)
	if all == 0 || all < least {
		return 0, false
	}
	return 100 * float64(min(good, all)) / float64(all), true
}

// Report tells how a request to the host went. It is for whoever got the
// response, or waited for it, or for a connection that Dial could not make, in
// vain. Connect reports its failures itself.
func (c *Cluster) Report(h *Host, r Result) {
	// A newer version may have taken the host over meanwhile.
	c = h.owner.Load()
	code := r.code()
	if r.Local != LocalConnected {
		if code >= 200 && code < 500 {
			h.Stats.RqSuccess.Inc()
		} else {
			h.Stats.RqError.Inc()
		}
	}
	if c.conf.LB == model.PeakEWMAPolicy {
		c.observe(h, &r, code)
	}
	o := c.conf.Outlier
	if o == nil {
		return
	}
	if !c.ticking.Load() {
		c.mu.Lock()
		c.armTick(o)
		c.mu.Unlock()
	}
	if o.SplitLocalErrors && r.Local != LocalNone {
		c.local(h, o, r.Local == LocalConnected)
		return
	}
	x := &h.outlier
	if code < 500 {
		x.answers.add(true)
		if x.fails5xx.Load() != 0 {
			x.fails5xx.Store(0)
		}
		if x.failsGateway.Load() != 0 {
			x.failsGateway.Store(0)
		}
		return
	}
	x.answers.add(false)
	if code >= 502 && code <= 504 {
		c.strike(h, &x.failsGateway, o.ConsecutiveGateway, o.EnforceGateway, false, &c.stats.DetectedGateway, &c.stats.EnforcedGateway)
	} else if x.failsGateway.Load() != 0 {
		x.failsGateway.Store(0)
	}
	c.strike(h, &x.fails5xx, o.Consecutive5xx, o.EnforceConsecutive5xx, r.Local == LocalConnectFailure, &c.stats.Detected5xx, &c.stats.Enforced5xx)
}

// connected tells that a connection to the host was made which requests will use.
func (c *Cluster) connected(h *Host) {
	c = h.owner.Load()
	if o := c.conf.Outlier; o != nil && o.SplitLocalErrors {
		c.local(h, o, true)
	}
}

// local counts what happened on this side, where that is told apart from answers.
func (c *Cluster) local(h *Host, o *model.Outlier, good bool) {
	x := &h.outlier
	x.local.add(good)
	if good {
		if x.failsLocal.Load() != 0 {
			x.failsLocal.Store(0)
		}
		return
	}
	c.strike(h, &x.failsLocal, o.ConsecutiveLocal, o.EnforceConsecutiveLocal, true, &c.stats.DetectedLocalFailure, &c.stats.EnforcedLocalFailure)
}

// strike counts a failure, and ejects the host when there were so many in a row.
func (c *Cluster) strike(h *Host, fails *atomic.Uint32, limit, enforce uint32, unreachable bool, detected, enforced *stats.Counter) {
	if n := fails.Add(1); limit == 0 || n != limit {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fails.Store(0)
	c.convict(h, enforce, unreachable, detected, enforced)
}

// convict ejects a host that was detected. The caller holds c.mu.
func (c *Cluster) convict(h *Host, enforce uint32, unreachable bool, detected, enforced *stats.Counter) {
	o := c.conf.Outlier
	if o == nil || h.outlier.ejected {
		return
	}
	detected.Inc()
	if c.m.cfg.Rand()%100 < uint64(enforce) && c.eject(h, o, unreachable) {
		enforced.Inc()
	}
}

// eject takes the host out if the limits allow it. The caller holds c.mu.
func (c *Cluster) eject(h *Host, o *model.Outlier, unreachable bool) bool {
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
	x := &h.outlier
	x.times++
	d := min(o.BaseEjection*time.Duration(x.times), max(o.MaxEjection, o.BaseEjection))
	if o.EjectionJitter > 0 {
		d += time.Duration(c.m.cfg.Rand() % uint64(o.EjectionJitter))
	}
	x.ejected, x.until = true, time.Now().Add(d)
	x.unreachable.Store(unreachable)
	c.stats.EjectionsTotal.Inc()
	c.m.cfg.Logger.Info("host ejected", "cluster", c.conf.Name, "host", h.key, "for", d)
	c.rebuild()
	c.armTick(o)
	return true
}

// acquit ends the ejection of a host. The caller holds c.mu, and rebuilds.
func (c *Cluster) acquit(h *Host) {
	x := &h.outlier
	x.ejected = false
	x.unreachable.Store(false)
	x.fails5xx.Store(0)
	x.failsGateway.Store(0)
	x.failsLocal.Store(0)
	h.restarted(c)
	c.m.cfg.Logger.Info("host is back after ejection", "cluster", c.conf.Name, "host", h.key)
}

// armTick makes the next look at the record of hosts happen. Nothing ticks
// while there is none. The caller holds c.mu.
func (c *Cluster) armTick(o *model.Outlier) {
	if c.tick != nil || c.closed {
		return
	}
	c.ticking.Store(true)
	c.tick = time.AfterFunc(o.Interval, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tick = nil
		c.ticking.Store(false)
		if c.closed {
			return
		}
		if c.judge(o) {
			c.armTick(o)
		}
	})
}

// judge looks at the record of all hosts, as is done every interval. It reports
// whether there is anything to look at next time. The caller holds c.mu.
func (c *Cluster) judge(o *model.Outlier) (more bool) {
	now, changed := time.Now(), false
	hosts := c.hosts.Load().hosts
	for _, h := range hosts {
		x := &h.outlier
		switch {
		case x.ejected && !now.Before(x.until):
			c.acquit(h)
			changed = true
		case !x.ejected && x.times > 0:
			x.times--
		}
	}
	if changed {
		c.rebuild()
	}
	s := c.stats
	c.judgeRates(o, hosts, func(x *outlier) *tally { return &x.answers }, o.SuccessRate.Enforce, o.FailurePercentage.Enforce,
		&s.DetectedRate, &s.EnforcedRate, &s.DetectedPercent, &s.EnforcedPercent,
		func(x *outlier, rate float64, ok bool) { x.rate, x.rated = rate, ok })
	if o.SplitLocalErrors {
		c.judgeRates(o, hosts, func(x *outlier) *tally { return &x.local }, o.SuccessRate.EnforceLocal, o.FailurePercentage.EnforceLocal,
			&s.DetectedRateLocal, &s.EnforcedRateLocal, &s.DetectedPercentLocal, &s.EnforcedPercentLocal,
			func(x *outlier, rate float64, ok bool) { x.localRate, x.localRated = rate, ok })
	}
	for _, h := range hosts {
		more = more || h.outlier.ejected || h.outlier.times > 0
	}
	return more
}

// judgeRates ejects hosts by their share of good results in the last interval.
func (c *Cluster) judgeRates(o *model.Outlier, hosts []*Host, of func(*outlier) *tally, enforceRate, enforcePercent uint32,
	detectedRate, enforcedRate, detectedPercent, enforcedPercent *stats.Counter, show func(*outlier, float64, bool)) {
	type rated struct {
		h    *Host
		rate float64
	}
	var byRate, byPercent []rated
	sum := 0.0
	for _, h := range hosts {
		t := of(&h.outlier)
		all := t.all.Load()
		rate, enough := t.take(min(o.SuccessRate.MinRequests, o.FailurePercentage.MinRequests))
		show(&h.outlier, rate, enough && all >= o.SuccessRate.MinRequests)
		if !enough || h.outlier.ejected {
			continue
		}
		if all >= o.SuccessRate.MinRequests {
			byRate = append(byRate, rated{h, rate})
			sum += rate
		}
		if all >= o.FailurePercentage.MinRequests {
			byPercent = append(byPercent, rated{h, rate})
		}
	}
	if n := len(byRate); n > 0 && n >= int(o.SuccessRate.MinHosts) {
		mean, variance := sum/float64(n), 0.0
		for _, r := range byRate {
			variance += (r.rate - mean) * (r.rate - mean) / float64(n)
		}
		limit := mean - o.SuccessRate.Factor*math.Sqrt(variance)
		for _, r := range byRate {
			if r.rate < limit {
				c.convict(r.h, enforceRate, false, detectedRate, enforcedRate)
			}
		}
	}
	if n := len(byPercent); n > 0 && n >= int(o.FailurePercentage.MinHosts) {
		for _, r := range byPercent {
			if 100-r.rate >= o.FailurePercentage.Factor {
				c.convict(r.h, enforcePercent, false, detectedPercent, enforcedPercent)
			}
		}
	}
}

// observe takes a latency into account, for peak EWMA. Answers of a host that
// is overloaded or broken come fast and must not attract more.
func (c *Cluster) observe(h *Host, r *Result, code int) {
	d := r.Latency
	if code >= 500 || code == 429 {
		d = max(d, ewmaPenalty, min(r.RetryAfter, maxPenalty))
	}
	if d > 0 {
		h.ewma.observe(d, c.decay())
	}
}

func (c *Cluster) decay() time.Duration {
	if d := c.conf.PeakEWMA.Decay; d > 0 {
		return d
	}
	return ewmaDecay
}

// cost returns what another request to the host is expected to cost.
func (c *Cluster) cost(h *Host) float64 {
	start := c.conf.PeakEWMA.Start
	if start <= 0 {
		start = ewmaStart
	}
	return h.ewma.seconds(c.decay(), start) * float64(h.Stats.RqActive.Value()+1)
}
