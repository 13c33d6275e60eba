package upstream

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/balance"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// A Cluster connects to the hosts of one cluster. It is one version of its
// configuration; hosts and counts outlive it.
type Cluster struct {
	m          *Manager
	conf       *model.Cluster
	tls        *tlscontext.Client   // nil connects in plaintext
	tlsMatches []*tlscontext.Client // of conf.TLSMatches
	scope      *stats.Scope
	stats      *Stats
	static     bool
	*shared

	hosts     atomic.Pointer[hostSet]
	aggregate atomic.Pointer[aggregate]

	// Guarded by shared.mu.
	closed     bool
	assignment *model.LoadAssignment // nil: none arrived
	tick       *time.Timer           // next look at the record of hosts
	fetch      *time.Timer           // gives up waiting for an assignment
	stale      *time.Timer           // drops an assignment that is too old
	ramp       *time.Timer           // end of the slow start of the youngest host
	checks     map[*Host]check
	built      built
	stop       context.CancelFunc // ends lookups
}

// shared is what all versions of a cluster have in common, besides hosts.
type shared struct {
	breakers breakers
	codes    codes
	ticking  atomic.Bool // some version has a tick
	dst      destinations
	mu       sync.Mutex // guards membership, and the records of hosts
}

// destinations are the hosts of an ORIGINAL_DST cluster.
type destinations struct {
	mu     sync.RWMutex
	hosts  map[model.Address]*Host
	timer  *time.Timer
	closed bool
}

type hostSet struct {
	hosts   []*Host
	table   *balance.Table // nil: nothing is known
	drops   []model.DropOverload
	subsets *subsets // nil chooses from all

	once  sync.Once
	byKey map[string]*Host // made when it is first needed
}

// built is what the last table was made from.
type built struct {
	set              *hostSet
	in               []balance.Host
	localities       []balance.Locality
	overprovisioning int
	byWeight, ramp   bool
}

// find returns the host with the address, or nil.
func (s *hostSet) find(key string) *Host {
	s.once.Do(func() {
		s.byKey = make(map[string]*Host, len(s.hosts))
		for _, h := range s.hosts {
			s.byKey[h.key] = h
		}
	})
	return s.byKey[key]
}

// Model returns the configuration of the cluster.
func (c *Cluster) Model() *model.Cluster { return c.conf }

// Stats returns the counters of the cluster.
func (c *Cluster) Stats() *Stats { return c.stats }

// Scope returns where the cluster counts, for those who count more.
func (c *Cluster) Scope() *stats.Scope { return c.scope }

// Breaker returns the circuit breaker of a priority.
func (c *Cluster) Breaker(p model.RoutingPriority) *Breaker { return &c.breakers[p] }

// setAssignment replaces the hosts, keeping those whose address stays. It
// returns what is to do once no lock is held.
func (c *Cluster) setAssignment(la *model.LoadAssignment) (after func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return func() {}
	}
	gone := c.merge(c.hosts.Load().hosts, la)
	return func() {
		for _, h := range gone {
			h.leave()
		}
	}
}

// merge makes the hosts those of the assignment, taking over what is known of
// old ones. It returns those that are no longer hosts. The caller holds c.mu.
func (c *Cluster) merge(old []*Host, la *model.LoadAssignment) (gone []*Host) {
	c.assignment = la
	if c.stale != nil {
		c.stale.Stop()
	}
	if la.StaleAfter > 0 {
		c.stale = time.AfterFunc(la.StaleAfter, func() {
			c.stats.AssignmentStale.Inc()
			c.m.cfg.Logger.Warn("endpoints are too old, dropping them", "cluster", c.conf.Name, "after", la.StaleAfter)
			c.setAssignment(&model.LoadAssignment{Cluster: la.Cluster, Overprovisioning: la.Overprovisioning})()
		})
	}
	known := make(map[string]*Host, len(old))
	for _, h := range old {
		known[h.key] = h
	}
	seen := make(map[string]bool, len(la.Endpoints))
	hosts := make([]*Host, 0, len(la.Endpoints))
	changed := false
	for i := range la.Endpoints {
		e := &la.Endpoints[i]
		key := e.Address.String()
		if seen[key] {
			continue // the first of two counts
		}
		seen[key] = true
		h := known[key]
		if h == nil {
			h = newHost(c, e)
			h.restarted(c)
			changed = true
		} else {
			was := h.endpoint.Swap(e)
			h.health.set(leaving, 0)
			if was.Health != model.Healthy && e.Health == model.Healthy {
				h.restarted(c)
			}
			if len(c.conf.TLSMatches) > 0 && c.tlsFor(was.Metadata) != c.tlsFor(e.Metadata) {
				h.dropPool()
			}
		}
		c.startCheck(h)
		hosts = append(hosts, h)
	}
	for _, h := range old {
		switch {
		case seen[h.key]:
		case c.lingers(h):
			h.health.set(leaving, leaving)
			seen[h.key] = true
			hosts = append(hosts, h)
			c.startCheck(h)
		default:
			seen[h.key] = true
			c.stopCheck(h)
			gone = append(gone, h)
			changed = true
		}
	}
	if changed {
		c.stats.MembershipChange.Inc()
	} else {
		c.stats.UpdateNoRebuild.Inc()
	}
	c.rebuildWith(hosts)
	return gone
}

// lingers reports whether a host is kept that is no longer configured: what
// passes its health checks may rather be missing from a bad list than be gone.
func (c *Cluster) lingers(h *Host) bool {
	return c.conf.HealthCheck != nil && !c.conf.ForgetAtOnce && c.conf.Type != model.Static && !h.endpoint.Load().Check.Disabled &&
		h.endpoint.Load().Health != model.Unhealthy && h.health.known.Load() && h.health.load()&checkBad == 0
}

// rebuild works out afresh who may be chosen. The caller holds c.mu.
func (c *Cluster) rebuild() { c.rebuildWith(c.hosts.Load().hosts) }

// rebuildWith makes these the hosts. Until all is worked out, choices are made from those before. The caller holds c.mu.
func (c *Cluster) rebuildWith(hosts []*Host) {
	in := make([]balance.Host, len(hosts))
	healthy, degraded, excluded, ejected, checked := 0, 0, 0, 0, 0
	heaviest := uint32(0)
	for i, h := range hosts {
		e, bits := h.endpoint.Load(), h.health.load()
		in[i] = balance.Host{Weight: max(e.Weight, 1), Priority: int(min(e.Priority, maxPriority)), Locality: e.Locality, Key: c.hashKey(e)}
		heaviest = max(heaviest, in[i].Weight)
		if h.outlier.ejected {
			ejected++
		}
		if bits&checkBad == 0 {
			checked++
		}
		switch {
		case bits&checkWaits != 0 && c.conf.IgnoreNewUntilChecked:
			in[i].Health = balance.Excluded
			excluded++
		case h.outlier.ejected || bits&checkBad != 0 || e.Health == model.Unhealthy:
			in[i].Health = balance.Unhealthy
		case e.Health == model.Degraded || bits&checkDegraded != 0:
			in[i].Health = balance.Degraded
			degraded++
		default:
			healthy++
		}
	}
	set := &hostSet{hosts: hosts}
	opt := c.options(hosts)
	if la := c.assignment; la != nil {
		set.drops = la.Drops
		opt.Overprovisioning = int(la.Overprovisioning)
		opt.ByWeight = la.PriorityByWeight
		if c.conf.LocalityLB {
			for _, l := range la.Localities {
				opt.Localities = append(opt.Localities, balance.Locality{Weight: l.Weight})
			}
		}
	}
	if b := &c.built; b.set != nil && opt.Factor == nil && !b.ramp && slices.Equal(b.in, in) && slices.Equal(b.set.hosts, hosts) &&
		slices.Equal(b.localities, opt.Localities) && b.overprovisioning == opt.Overprovisioning && b.byWeight == opt.ByWeight {
		set.table = b.set.table // keeps its turns, and saves the work
	} else {
		set.table = balance.NewTable(in, opt, c.m.cfg.Rand())
	}
	c.built = built{set, in, opt.Localities, opt.Overprovisioning, opt.ByWeight, opt.Factor != nil}
	if c.conf.Subsets != nil {
		set.subsets = newSubsets(c, hosts, in, opt)
	}
	c.hosts.Store(set)
	c.armRamp(hosts)
	c.m.gen.Add(1)
	s := c.stats
	s.MembershipTotal.Set(int64(len(hosts)))
	s.MembershipHealthy.Set(int64(healthy))
	s.MembershipDegraded.Set(int64(degraded))
	s.MembershipExcluded.Set(int64(excluded))
	s.EjectionsActive.Set(int64(ejected))
	s.MaxHostWeight.Set(int64(heaviest))
	if c.conf.HealthCheck != nil {
		s.CheckHealthy.Set(int64(checked))
	}
	switch least, most, all := set.table.Spread(); c.conf.LB {
	case model.RingHash:
		s.RingSize.Set(int64(all))
		s.RingMin.Set(int64(least))
		s.RingMax.Set(int64(most))
	case model.Maglev:
		s.MaglevMin.Set(int64(least))
		s.MaglevMax.Set(int64(most))
	}
}

// options returns how to choose among the hosts. The caller holds c.mu.
func (c *Cluster) options(hosts []*Host) balance.Options {
	conf := c.conf
	opt := balance.Options{
		Choices:            conf.Choices,
		FullScan:           conf.FullScan,
		ActiveBias:         conf.ActiveBias,
		PanicThreshold:     conf.PanicThreshold,
		FailTrafficOnPanic: conf.FailTrafficOnPanic,
		RingMin:            conf.Ring.Min,
		RingMax:            conf.Ring.Max,
		Murmur:             conf.Ring.Murmur,
		MaglevSize:         conf.MaglevTable,
		HashBalance:        conf.HashBalance,
	}
	switch conf.LB {
	case model.RoundRobin:
		opt.Policy = balance.RoundRobin
	case model.LeastRequest:
		opt.Policy = balance.LeastRequest
	case model.RingHash:
		opt.Policy = balance.RingHash
	case model.Maglev:
		opt.Policy = balance.Maglev
	case model.PeakEWMAPolicy:
		opt.Policy = balance.PeakEWMA
	default:
		opt.Policy = balance.Random
	}
	c.bind(&opt, hosts)
	return opt
}

// bind makes the table ask the hosts how they are.
func (c *Cluster) bind(opt *balance.Options, hosts []*Host) {
	opt.Active = func(i int) int64 { return hosts[i].Stats.RqActive.Value() }
	opt.Cost = func(i int) float64 { return c.cost(hosts[i]) }
	opt.Factor = nil
	s := c.conf.SlowStart
	if s == nil {
		return
	}
	now := time.Now()
	for _, h := range hosts {
		if h.factor(s, now) < 1 {
			opt.Factor = func(i int) float64 { return hosts[i].factor(s, time.Now()) }
			return
		}
	}
}

// armRamp makes the hosts be looked at again when the last of them has its full
// weight. The caller holds c.mu.
func (c *Cluster) armRamp(hosts []*Host) {
	if c.ramp != nil {
		c.ramp.Stop()
		c.ramp = nil
	}
	s, now, longest := c.conf.SlowStart, time.Now(), time.Duration(0)
	for _, h := range hosts {
		if since := h.health.since.Load(); s != nil && since != 0 {
			longest = max(longest, s.Window-now.Sub(time.Unix(0, since)))
		}
	}
	if longest <= 0 || c.closed {
		return
	}
	c.ramp = time.AfterFunc(longest, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closed {
			c.rebuild()
		}
	})
}

// hashKey returns what hashing policies place an endpoint by.
func (c *Cluster) hashKey(e *model.Endpoint) string {
	if k, ok := e.Metadata["envoy.lb"]["hash_key"].(string); ok && k != "" {
		return k
	}
	if c.conf.HashHostname && e.Hostname != "" {
		return e.Hostname
	}
	return e.Address.String()
}

// maxPriority bounds priorities, which cost memory even if nobody has them.
const maxPriority = 127

// wire is what the connections of a cluster depend on.
func (c *Cluster) wire() any {
	type wire struct {
		tls        *tlscontext.Client
		tlsMatches []model.TLSMatch
		http       model.UpstreamHTTP
		keepalive  *model.Keepalive
		buffer     int
		close      bool
	}
	return wire{c.tls, c.conf.TLSMatches, c.conf.HTTP, c.conf.Keepalive, c.conf.BufferLimit, c.conf.CloseOnFailure}
}

// takeOver makes c the version that its hosts belong to, after old, which may
// be nil. It returns what is to do once no lock is held.
func (c *Cluster) takeOver(old *Cluster) (after func()) {
	var rewired bool
	var before []*Host
	if old != nil {
		rewired = !reflect.DeepEqual(c.wire(), old.wire())
		before = old.hosts.Load().hosts
	}
	c.mu.Lock()
	now := make(map[*Host]bool)
	hosts := c.hosts.Load().hosts
	for _, h := range hosts {
		now[h] = true
		h.owner.Store(c)
	}
	if hosts != nil {
		c.rebuild()
	}
	c.ticking.Store(false)
	if o := c.conf.Outlier; o != nil {
		for _, h := range hosts {
			if h.outlier.ejected || h.outlier.times > 0 {
				c.armTick(o)
				break
			}
		}
	}
	c.mu.Unlock()
	var dropped []*Host
	c.dst.mu.Lock()
	for _, h := range c.dst.hosts {
		h.owner.Store(c)
		dropped = append(dropped, h)
	}
	c.dst.mu.Unlock()
	return func() {
		for _, h := range before {
			if !now[h] {
				h.leave()
			}
		}
		if rewired {
			for h := range now {
				h.dropPool()
			}
			for _, h := range dropped {
				h.dropPool()
			}
		}
	}
}

// close ends what the cluster does by itself. Its connections stay.
func (c *Cluster) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for h := range c.checks {
		c.stopCheck(h)
	}
	for _, t := range []*time.Timer{c.tick, c.fetch, c.stale, c.ramp} {
		if t != nil {
			t.Stop()
		}
	}
	if c.stop != nil {
		c.stop()
	}
	c.scope.Close()
}

// remove drains the hosts of a cluster that is no longer configured.
func (c *Cluster) remove() {
	c.close()
	hosts := c.hosts.Load().hosts
	c.dst.mu.Lock()
	c.dst.closed = true
	if c.dst.timer != nil {
		c.dst.timer.Stop()
	}
	for _, h := range c.dst.hosts {
		hosts = append(hosts[:len(hosts):len(hosts)], h)
	}
	c.dst.hosts = nil
	c.dst.mu.Unlock()
	for _, h := range hosts {
		h.leave()
	}
}
