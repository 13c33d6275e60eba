package upstream

import (
	"errors"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/balance"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A Choice is what the choice of a host depends on. The zero Choice takes any.
type Choice struct {
	Hash     uint64 // for ring hash and Maglev
	HasHash  bool   // false takes a random one
	Metadata []model.MetadataMatch
	// Destination is where the client wanted to go; clusters of type
	// ORIGINAL_DST go there.
	Destination model.Address
	// Avoid are hosts not to take, unless Repicks more draws find no other.
	Avoid   []*Host
	Repicks int
	// AvoidCanary and AvoidMetadata avoid hosts as Avoid does, by what their
	// metadata says.
	AvoidCanary   bool
	AvoidMetadata []model.Metadata
	// AvoidPriorities leaves out the priorities of the hosts to avoid, if there is another.
	AvoidPriorities bool
	// OverrideHost is the address of a host to take if it is fit.
	OverrideHost string

	level int // 1 + priority to choose from, which an aggregate drew
}

// Errors of choosing.
var (
	ErrNoHealthyUpstream = errors.New("no healthy upstream")
	ErrDropped           = errors.New("dropped, as the control plane wants it because of overload")
)

// Choose returns a host for a request and the cluster that it belongs to, which
// differs from c for an aggregate. It fails with ErrNoHealthyUpstream or
// ErrDropped.
func (c *Cluster) Choose(ch *Choice) (owner *Cluster, h *Host, err error) {
	if set := c.hosts.Load(); set.drops != nil && c.drop(set) {
		return c, nil, ErrDropped
	}
	switch c.conf.Type {
	case model.OriginalDst:
		if h = c.destination(ch.Destination); h == nil {
			c.stats.CxNoneHealthy.Inc()
			return c, nil, ErrNoHealthyUpstream
		}
		return c, h, nil
	case model.Aggregate:
		return c.chooseMember(ch)
	}
	if h = c.choose(ch); h == nil {
		c.stats.CxNoneHealthy.Inc()
		return c, nil, ErrNoHealthyUpstream
	}
	return c, h, nil
}

// drop draws whether to drop a request.
func (c *Cluster) drop(set *hostSet) bool {
	for _, d := range set.drops {
		if d.Fraction.Hit(c.m.cfg.Rand()) {
			c.stats.RqDropOverload.Inc()
			return true
		}
	}
	return false
}

// choose returns a host of the cluster's own, or nil.
func (c *Cluster) choose(ch *Choice) *Host {
	set := c.hosts.Load()
	if ch.OverrideHost != "" {
		if h := set.find(ch.OverrideHost); h != nil && h.usable() {
			return h
		}
	}
	table, hosts := set.table, set.hosts
	if set.subsets != nil {
		table, hosts = set.subsets.choose(c, set, ch.Metadata)
	}
	if table == nil {
		return nil
	}
	in := balance.Input{Rand: c.m.cfg.Rand, Hash: ch.Hash, HasHash: ch.HasHash, Level: ch.level}
	if ch.AvoidPriorities {
		for _, h := range ch.Avoid {
			in.Avoid.Add(int(h.endpoint.Load().Priority))
		}
	}
	for {
		p := table.Pick(&in)
		if p.Panic {
			c.stats.LBPanic.Inc()
		}
		if !p.OK {
			return set.lastResort(c, ch.Avoid)
		}
		h := hosts[p.Host]
		if in.Attempt >= ch.Repicks || !ch.avoids(h) {
			return h
		}
		in.Attempt++
	}
}

func (ch *Choice) avoids(h *Host) bool {
	if contains(ch.Avoid, h) {
		return true
	}
	if !ch.AvoidCanary && len(ch.AvoidMetadata) == 0 {
		return false
	}
	md := h.endpoint.Load().Metadata
	if ch.AvoidCanary && md["envoy.lb"]["canary"] == true {
		return true
	}
	for _, avoid := range ch.AvoidMetadata {
		if covers(md, avoid) {
			return true
		}
	}
	return false
}

// covers reports whether metadata has all values of some other.
func covers(md, some model.Metadata) bool {
	if len(some) == 0 {
		return false
	}
	for ns, values := range some {
		for k, v := range values {
			got, ok := md[ns][k]
			if !ok || model.CanonicalValue(got) != model.CanonicalValue(v) {
				return false
			}
		}
	}
	return true
}

func contains(hosts []*Host, h *Host) bool {
	for _, x := range hosts {
		if x == h {
			return true
		}
	}
	return false
}

// lastResort returns a host that is only out because connections to it failed. When nobody else is left, trying it is
// better than to refuse: a cluster of one instance that was restarted is back as soon as the instance is.
func (s *hostSet) lastResort(c *Cluster, avoid []*Host) *Host {
	for _, h := range s.hosts {
		if h.outlier.unreachable.Load() && h.health.load()&checkBad == 0 && h.endpoint.Load().Health != model.Unhealthy && !contains(avoid, h) {
			c.stats.LBPanic.Inc()
			return h
		}
	}
	return nil
}

// destination returns the host of an ORIGINAL_DST cluster at the address.
func (c *Cluster) destination(a model.Address) *Host {
	if a == (model.Address{}) {
		return nil
	}
	if port := c.conf.OriginalDst.Port; port != 0 {
		a.Port = port
	}
	now := time.Now().UnixNano()
	c.dst.mu.RLock()
	h := c.dst.hosts[a]
	if h != nil {
		h.lastPick.Store(now)
	}
	c.dst.mu.RUnlock()
	if h == nil {
		h = c.addDestination(a, now)
	}
	return h
}

// maxDestinations bounds the hosts that clients can make an ORIGINAL_DST
// cluster keep. Beyond it, a connection is made for each request.
const maxDestinations = 1 << 16

func (c *Cluster) addDestination(a model.Address, now int64) *Host {
	c.dst.mu.Lock()
	defer c.dst.mu.Unlock()
	if h := c.dst.hosts[a]; h != nil {
		return h
	}
	h := newHost(c, &model.Endpoint{Address: a, Weight: 1})
	h.lastPick.Store(now)
	if len(c.dst.hosts) >= maxDestinations || c.dst.closed {
		h.leave()
		return h
	}
	if c.dst.hosts == nil {
		c.dst.hosts = map[model.Address]*Host{}
	}
	c.dst.hosts[a] = h
	c.stats.MembershipTotal.Set(int64(len(c.dst.hosts)))
	c.armCleanup()
	return h
}

// armCleanup makes the next look at unused destinations happen. The caller
// holds c.dst.mu.
func (c *Cluster) armCleanup() {
	if c.dst.timer != nil || len(c.dst.hosts) == 0 || c.dst.closed {
		return
	}
	interval := c.conf.OriginalDst.Cleanup
	if interval <= 0 {
		interval = 5 * time.Second
	}
	c.dst.timer = time.AfterFunc(interval, func() {
		var gone []*Host
		c.dst.mu.Lock()
		c.dst.timer = nil
		now := time.Now().UnixNano()
		for a, h := range c.dst.hosts {
			if h.Stats.RqActive.Value() == 0 && now-h.lastPick.Load() >= int64(interval) {
				delete(c.dst.hosts, a)
				gone = append(gone, h)
			}
		}
		c.stats.MembershipTotal.Set(int64(len(c.dst.hosts)))
		c.armCleanup()
		c.dst.mu.Unlock()
		for _, h := range gone {
			h.leave()
		}
	})
}

// An aggregate is how an aggregate cluster divides requests among its members:
// their priorities one after the other, as if they were those of one cluster.
type aggregate struct {
	gen    uint64 // of the manager when this was worked out
	levels []memberLevel
	loads  balance.Loads
}

type memberLevel struct {
	member *Cluster
	level  int
}

// maxNesting bounds aggregates of aggregates.
const maxNesting = 8

// members returns the division, worked out anew if a member changed.
func (c *Cluster) members() *aggregate {
	gen := c.m.gen.Load()
	if a := c.aggregate.Load(); a != nil && a.gen == gen {
		return a
	}
	a := &aggregate{gen: gen}
	var counts []balance.Count
	var add func(c *Cluster, depth int)
	add = func(c *Cluster, depth int) {
		for _, name := range c.conf.Members {
			m := c.m.Get(name)
			switch {
			case m == nil:
			case m.conf.Type == model.Aggregate:
				if depth < maxNesting && len(a.levels) < maxPriority {
					add(m, depth+1)
				}
			default:
				if t := m.hosts.Load().table; t != nil {
					for p, n := range t.Counts() {
						a.levels = append(a.levels, memberLevel{m, p})
						counts = append(counts, n)
					}
				}
			}
		}
	}
	add(c, 0)
	a.loads = balance.NewLoads(counts, model.DefaultOverprovisioning, c.conf.PanicThreshold)
	c.aggregate.Store(a)
	return a
}

// chooseMember returns a host of a member of an aggregate.
func (c *Cluster) chooseMember(ch *Choice) (*Cluster, *Host, error) {
	a := c.members()
	hash := ch.Hash
	if !ch.HasHash {
		hash = c.m.cfg.Rand()
	}
	var avoid balance.Levels
	if ch.AvoidPriorities {
		for _, h := range ch.Avoid {
			for p, l := range a.levels {
				if l.member == h.owner.Load() && l.level == int(h.endpoint.Load().Priority) {
					avoid.Add(p)
				}
			}
		}
	}
	if p, _ := a.loads.Draw(hash, avoid); p >= 0 {
		l := &a.levels[p]
		one := *ch
		one.level = l.level + 1
		if h := l.member.choose(&one); h != nil {
			return l.member, h, nil
		}
	}
	// Nobody is fit; a member may panic by itself, or try a host that could not be reached.
	for i := range a.levels {
		if l := &a.levels[i]; l.level == 0 {
			if h := l.member.choose(ch); h != nil {
				return l.member, h, nil
			}
		}
	}
	c.stats.CxNoneHealthy.Inc()
	return c, nil, ErrNoHealthyUpstream
}
