// Package balance chooses hosts: by priority, health, locality and one of the
// balancing policies. It starts nothing and reads no clock; randomness and the
// number of active requests come from the caller, so that the same input gives
// the same choice.
package balance

import (
	"math"
	"sync/atomic"
)

// A Host is one candidate.
type Host struct {
	Weight   uint32 // at least 1
	Priority int    // 0 is the first choice
	Locality int    // index into Options.Localities; unused if those are empty
	Health   Health
	Key      string // what hashing policies place the host by
}

// A Health says whether a host may be used.
type Health uint8

// The states of health.
const (
	Healthy Health = iota
	Degraded
	Unhealthy
	Excluded // like Unhealthy, but its priority is no worse for it
)

// A Policy is a way to choose among equals.
type Policy uint8

// The policies.
const (
	RoundRobin Policy = iota
	LeastRequest
	Random
	RingHash
	Maglev
	PeakEWMA
)

// Options tune a Table. The functions are given the index of a host and must be
// safe for concurrent use.
type Options struct {
	Policy             Policy
	Choices            int     // hosts that LeastRequest compares; at least 2
	FullScan           bool    // LeastRequest compares all
	ActiveBias         float64 // exponent of active requests in weighted LeastRequest
	Overprovisioning   int     // percent; 0 means 140
	PanicThreshold     float64 // percent; 0 never panics
	FailTrafficOnPanic bool
	ByWeight           bool       // the health of a priority is that of its weights rather than hosts
	Localities         []Locality // set to draw a locality by weight first

	RingMin, RingMax uint64 // points of RingHash; 0 means 1024 and 8388608
	Murmur           bool   // RingHash uses MurmurHash 2
	MaglevSize       uint64 // a prime; 0 means 65537
	// HashBalance bounds the load of hashed hosts, in percent of the average; 0 does not.
	HashBalance uint32

	Active func(int) int64   // requests in progress; may be nil unless LeastRequest or HashBalance
	Cost   func(int) float64 // of another request, for PeakEWMA
	// Factor scales weights of hosts that start slowly. Nil if none does; else
	// round robin and least request ask it each time.
	Factor func(int) float64
}

// A Locality gets traffic by its weight.
type Locality struct{ Weight uint32 }

// An Input is what a choice depends on besides the table.
type Input struct {
	Rand    func() uint64 // uniform
	Hash    uint64        // for hashing policies
	HasHash bool          // false takes a random one
	Attempt int           // choices that were refused before: hashing policies take another host
	Avoid   Levels        // priorities to leave out if another one is fit
	Level   int           // 1 + priority to choose from, as if it had all load; 0 draws it
}

// Levels is a set of priorities below 128.
type Levels [2]uint64

// Add adds a priority.
func (s *Levels) Add(p int) {
	if p < 128 {
		s[p/64] |= 1 << (p % 64)
	}
}

// Has reports whether the priority is in the set.
func (s *Levels) Has(p int) bool { return p < 128 && s[p/64]>>(p%64)&1 == 1 }

// A Pick is the outcome of choosing.
type Pick struct {
	Host  int  // index into the hosts
	OK    bool // false: there is no host to use
	Panic bool // health was ignored
}

// A Table chooses among a fixed list of hosts. It is safe for concurrent use.
type Table struct {
	opt    Options
	count  []Count
	loads  Loads
	levels []level
}

// A level is the groups of one priority that may get traffic.
type level struct {
	healthy  group
	degraded group
	all      group // in panic
}

// A group is hosts that one policy chooses among.
type group struct {
	index   []int // into the caller's hosts
	weights []uint32
	equal   bool

	localities []locality // not empty: draw one first
	localSum   float64

	turn   atomic.Uint64 // of round robin
	ring   []int32       // one period of weighted turns; nil if all weights are equal
	edf    *schedule     // weights that change
	hashed *hashed
}

type locality struct {
	share float64
	g     *group
}

// NewTable prepares choosing among hosts. Seed is a random number that makes
// tables start their turns at different hosts.
func NewTable(hosts []Host, opt Options, seed uint64) *Table {
	opt.Overprovisioning = withDefault(opt.Overprovisioning, 140)
	opt.RingMin, opt.RingMax = withDefault(opt.RingMin, 1024), withDefault(opt.RingMax, 8<<20)
	opt.MaglevSize = withDefault(opt.MaglevSize, 65537)
	opt.Choices = max(opt.Choices, 2)
	t := &Table{opt: opt}
	n := 0
	for _, h := range hosts {
		n = max(n, h.Priority+1)
	}
	t.count = make([]Count, n)
	for _, h := range hosts {
		c, w := &t.count[h.Priority], 1
		if opt.ByWeight {
			w = int(h.Weight)
		}
		c.Any = true
		if h.Health != Excluded {
			c.Total += w
		}
		switch h.Health {
		case Healthy:
			c.Healthy += w
		case Degraded:
			c.Degraded += w
		}
	}
	t.loads = NewLoads(t.count, opt.Overprovisioning, opt.PanicThreshold)
	t.levels = make([]level, n)
	for p := range t.levels {
		l := &t.levels[p]
		var healthy, degraded, all []int
		for i, h := range hosts {
			if h.Priority != p {
				continue
			}
			all = append(all, i)
			switch h.Health {
			case Healthy:
				healthy = append(healthy, i)
			case Degraded:
				degraded = append(degraded, i)
			}
		}
		if t.loads.Panic[p] {
			t.fill(&l.all, hosts, all, all, seed)
			continue
		}
		t.fill(&l.healthy, hosts, healthy, all, seed)
		t.fill(&l.degraded, hosts, degraded, all, seed)
	}
	return t
}

func (t *Table) hashes() bool { return t.opt.Policy == RingHash || t.opt.Policy == Maglev }

func withDefault[T int | uint64](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// fill makes g the hosts with the given indexes. All of the level's hosts are
// needed to weigh localities by how much of them is usable.
func (t *Table) fill(g *group, hosts []Host, index, all []int, seed uint64) {
	g.index = index
	if len(index) == 0 {
		return
	}
	g.equal = true
	g.turn.Store(seed)
	for _, i := range index {
		g.weights = append(g.weights, hosts[i].Weight)
		if hosts[i].Weight != hosts[index[0]].Weight {
			g.equal = false
		}
	}
	if t.hashes() {
		g.hashed = newHashed(hosts, index, all, &t.opt)
		return
	}
	if len(t.opt.Localities) > 0 {
		in, of := make([][]int, len(t.opt.Localities)), make([]int, len(t.opt.Localities))
		for _, i := range all {
			of[hosts[i].Locality]++
		}
		for _, i := range index {
			in[hosts[i].Locality] = append(in[hosts[i].Locality], i)
		}
		for n, loc := range t.opt.Localities {
			if len(in[n]) == 0 || loc.Weight == 0 {
				continue
			}
			usable := min(1, float64(t.opt.Overprovisioning)/100*float64(len(in[n]))/float64(of[n]))
			sub := &group{}
			plain := *t
			plain.opt.Localities = nil
			plain.fill(sub, hosts, in[n], in[n], seed)
			g.localSum += float64(loc.Weight) * usable
			g.localities = append(g.localities, locality{g.localSum, sub})
		}
		if len(g.localities) > 0 {
			return
		}
	}
	switch {
	case t.opt.Policy == RoundRobin && t.opt.Factor == nil && !g.equal:
		g.ring = turns(g.weights)
	case t.opt.Policy == RoundRobin && t.opt.Factor != nil,
		t.opt.Policy == LeastRequest && (!g.equal || t.opt.Factor != nil):
		g.edf = newSchedule(len(g.weights))
	}
}

// Loads returns the shares of the priorities.
func (t *Table) Loads() Loads { return t.loads }

// Counts returns how many hosts the priorities have.
func (t *Table) Counts() []Count { return t.count }

// Usable reports whether any host may be used without panic.
func (t *Table) Usable() bool {
	for _, c := range t.count {
		if c.Healthy+c.Degraded > 0 {
			return true
		}
	}
	return false
}

// Pick chooses a host.
func (t *Table) Pick(in *Input) Pick {
	if len(t.levels) == 0 {
		return Pick{}
	}
	hash := in.Hash
	if !in.HasHash && (t.loads.Healthy[0] != 100 || t.hashes()) {
		hash = in.Rand()
	}
	var p int
	var degraded bool
	if in.Level > 0 {
		// As if the priority had all load: degraded hosts only if there are no others.
		if p = in.Level - 1; p >= len(t.levels) {
			return Pick{}
		}
		degraded = t.count[p].Healthy == 0
	} else if p, degraded = t.loads.Draw(hash, in.Avoid); p < 0 { // by the hash, as Envoy does
		return Pick{}
	}
	l := &t.levels[p]
	g, inPanic := &l.healthy, t.loads.Panic[p]
	switch {
	case inPanic:
		if t.opt.FailTrafficOnPanic {
			return Pick{Panic: true}
		}
		g = &l.all
	case degraded:
		g = &l.degraded
	}
	if len(g.index) == 0 {
		return Pick{Panic: inPanic}
	}
	return Pick{Host: g.pick(t, in, hash), OK: true, Panic: inPanic}
}

func (g *group) pick(t *Table, in *Input, hash uint64) int {
	if len(g.localities) > 0 {
		x := float64(in.Rand()>>11) / (1 << 53) * g.localSum
		for _, l := range g.localities {
			if x < l.share {
				return l.g.pick(t, in, hash)
			}
		}
		return g.localities[len(g.localities)-1].g.pick(t, in, hash)
	}
	n := uint64(len(g.index))
	if n == 1 {
		return g.index[0]
	}
	switch t.opt.Policy {
	case RingHash, Maglev:
		return g.index[g.hashed.pick(t, g, in.Attempt, hash)]
	case Random:
		return g.index[in.Rand()%n]
	case PeakEWMA:
		r := in.Rand()
		a := r % n
		b := (a + 1 + (r>>32)%(n-1)) % n
		if t.opt.Cost(g.index[b]) < t.opt.Cost(g.index[a]) {
			a = b
		}
		return g.index[a]
	case LeastRequest:
		return g.leastRequest(t, in)
	}
	if g.edf != nil {
		return g.index[g.edf.next(func(i int) float64 { return float64(g.weights[i]) * t.opt.Factor(g.index[i]) })]
	}
	turn := g.turn.Add(1)
	if g.ring != nil {
		return g.index[g.ring[turn%uint64(len(g.ring))]]
	}
	return g.index[turn%n]
}

func (g *group) leastRequest(t *Table, in *Input) int {
	n := uint64(len(g.index))
	switch {
	case g.edf != nil:
		return g.index[g.edf.next(func(i int) float64 {
			a := float64(t.opt.Active(g.index[i]) + 1)
			if t.opt.ActiveBias != 1 {
				a = math.Pow(a, t.opt.ActiveBias)
			}
			w := float64(g.weights[i]) / a
			if t.opt.Factor != nil {
				w *= t.opt.Factor(g.index[i])
			}
			return w
		})]
	case t.opt.FullScan:
		start := in.Rand() % n // ties go to anyone
		best := g.index[start]
		least := t.opt.Active(best)
		for k := range n - 1 {
			i := g.index[(start+1+k)%n]
			if a := t.opt.Active(i); a < least {
				best, least = i, a
			}
		}
		return best
	}
	best := g.index[in.Rand()%n]
	least := t.opt.Active(best)
	for range t.opt.Choices - 1 {
		i := g.index[in.Rand()%n]
		if a := t.opt.Active(i); a < least {
			best, least = i, a
		}
	}
	return best
}
