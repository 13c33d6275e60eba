// Package balance chooses hosts: by priority, health, locality and one of the
// balancing policies. It starts nothing and reads no clock; randomness and the
// number of active requests come from the caller, so that the same input gives
// the same choice.
package balance

import (
	"math"
	"sync"
	"sync/atomic"
)

// A Host is one candidate.
type Host struct {
	Weight   uint32 // at least 1
	Priority int    // 0 is the first choice
	Locality int    // index into Options.Localities; unused if those are empty
	Health   Health
}

// A Health says whether a host may be used.
type Health uint8

// The states of health.
const (
	Healthy Health = iota
	Degraded
	Unhealthy
)

// A Policy is a way to choose among equals.
type Policy uint8

// The policies.
const (
	RoundRobin Policy = iota
	LeastRequest
	Random
)

// Options tune a Table.
type Options struct {
	Policy             Policy
	Choices            int     // hosts that LeastRequest compares; at least 2
	ActiveBias         float64 // exponent of active requests in weighted LeastRequest
	Overprovisioning   int     // percent; 0 means 140
	PanicThreshold     float64 // percent; 0 never panics
	FailTrafficOnPanic bool
	Localities         []Locality // set to draw a locality by weight first
}

// A Locality gets traffic by its weight.
type Locality struct{ Weight uint32 }

// A Pick is the outcome of choosing.
type Pick struct {
	Host  int  // index into the hosts
	OK    bool // false: there is no host to use
	Panic bool // health was ignored
}

// A Table chooses among a fixed list of hosts. It is safe for concurrent use.
type Table struct {
	opt    Options
	levels []level

	healthyLoad  []int // percent of each level that goes to healthy hosts
	degradedLoad []int
	totalPanic   bool // nothing is healthy anywhere: loads are by the number of hosts
}

// A level is the hosts of one priority.
type level struct {
	total    int
	panic    bool
	healthy  group // usable hosts
	degraded group
	all      group
}

// A group is hosts that one policy chooses among.
type group struct {
	weights []Host
	index   []int // into the caller's hosts
	equal   bool

	localities []locality // not empty: draw one first
	localSum   float64

	turn atomic.Uint64 // of round robin
	ring []int32       // one period of weighted turns; nil if all weights are equal
	edf  *schedule     // weighted least request
}

type locality struct {
	share float64
	g     *group
}

// NewTable prepares choosing among hosts. Seed is a random number that makes
// tables start their turns at different hosts.
func NewTable(hosts []Host, opt Options, seed uint64) *Table {
	if opt.Overprovisioning <= 0 {
		opt.Overprovisioning = 140
	}
	opt.Choices = max(opt.Choices, 2)
	t := &Table{opt: opt}
	n := 0
	for _, h := range hosts {
		n = max(n, h.Priority+1)
	}
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
		l.total = len(all)
		t.fill(&l.healthy, hosts, healthy, all, seed)
		t.fill(&l.degraded, hosts, degraded, all, seed)
		t.fill(&l.all, hosts, all, all, seed)
	}
	t.spread()
	return t
}

// fill makes g the hosts with the given indexes. All of the level's hosts are
// needed to weigh localities by how much of them is usable.
func (t *Table) fill(g *group, hosts []Host, index, all []int, seed uint64) {
	g.index = index
	g.equal = true
	g.turn.Store(seed)
	for _, i := range index {
		g.weights = append(g.weights, hosts[i])
		if hosts[i].Weight != hosts[index[0]].Weight {
			g.equal = false
		}
	}
	if len(t.opt.Localities) > 0 && len(index) > 0 {
		for n, loc := range t.opt.Localities {
			total := 0
			for _, i := range all {
				if hosts[i].Locality == n {
					total++
				}
			}
			var mine []int
			for _, i := range index {
				if hosts[i].Locality == n {
					mine = append(mine, i)
				}
			}
			if len(mine) == 0 || loc.Weight == 0 {
				continue
			}
			usable := min(1, float64(t.opt.Overprovisioning)/100*float64(len(mine))/float64(total))
			sub := &group{}
			plain := *t
			plain.opt.Localities = nil
			plain.fill(sub, hosts, mine, mine, seed)
			share := float64(loc.Weight) * usable
			g.localSum += share
			g.localities = append(g.localities, locality{g.localSum, sub})
		}
		if len(g.localities) > 0 {
			return
		}
	}
	if g.equal {
		return
	}
	switch t.opt.Policy {
	case RoundRobin:
		g.ring = turns(g.weights)
	case LeastRequest:
		g.edf = newSchedule(len(g.weights))
	}
}

// spread works out the load of each priority as whole percents.
func (t *Table) spread() {
	n := len(t.levels)
	t.healthyLoad, t.degradedLoad = make([]int, n), make([]int, n)
	healthy, degraded := make([]int, n), make([]int, n)
	sum := 0
	for p := range t.levels {
		l := &t.levels[p]
		if l.total == 0 {
			continue
		}
		healthy[p] = min(100, t.opt.Overprovisioning*len(l.healthy.index)/l.total)
		degraded[p] = min(100, t.opt.Overprovisioning*len(l.degraded.index)/l.total)
		sum += healthy[p] + degraded[p]
		usable := 100 * float64(len(l.healthy.index)+len(l.degraded.index)) / float64(l.total)
		l.panic = t.opt.PanicThreshold > 0 && usable < t.opt.PanicThreshold
	}
	normal := min(100, sum)
	if normal == 0 {
		t.totalPanic = true
		t.spreadPanic()
		return
	}
	left := 100
	share := func(load, health []int) {
		for p := range health {
			load[p] = min(left, health[p]*100/normal)
			left -= load[p]
		}
	}
	share(t.healthyLoad, healthy)
	share(t.degradedLoad, degraded)
	if left > 0 { // rounding; belongs to the first that has any
		for p := range healthy {
			if healthy[p] > 0 {
				t.healthyLoad[p] += left
				return
			}
		}
		for p := range degraded {
			if degraded[p] > 0 {
				t.degradedLoad[p] += left
				return
			}
		}
	}
}

// spreadPanic gives each priority its share of hosts.
func (t *Table) spreadPanic() {
	total := 0
	for p := range t.levels {
		total += t.levels[p].total
	}
	if total == 0 {
		return
	}
	left := 100
	for p := range t.levels {
		t.healthyLoad[p] = 100 * t.levels[p].total / total
		left -= t.healthyLoad[p]
	}
	for p := range t.levels {
		if t.levels[p].total > 0 {
			t.healthyLoad[p] += left
			return
		}
	}
}

// Loads returns the percentage of traffic that healthy and degraded hosts of
// each priority get.
func (t *Table) Loads() (healthy, degraded []int) { return t.healthyLoad, t.degradedLoad }

// Usable reports whether any host may be used without panic.
func (t *Table) Usable() bool {
	for p := range t.levels {
		if len(t.levels[p].healthy.index)+len(t.levels[p].degraded.index) > 0 {
			return true
		}
	}
	return false
}

// Pick chooses a host. The function rnd returns uniform random numbers; active
// returns the requests that a host, given by its index, has in progress, and
// may be nil unless the policy is LeastRequest.
func (t *Table) Pick(rnd func() uint64, active func(int) int64) Pick {
	if len(t.levels) == 0 {
		return Pick{}
	}
	p, degraded := t.level(rnd)
	if p < 0 {
		return Pick{}
	}
	l := &t.levels[p]
	g, inPanic := &l.healthy, false
	if degraded {
		g = &l.degraded
	}
	if l.panic || t.totalPanic && t.opt.PanicThreshold > 0 {
		inPanic = true
		if t.opt.FailTrafficOnPanic {
			return Pick{Panic: true}
		}
		g = &l.all
	}
	if len(g.index) == 0 {
		return Pick{Panic: inPanic}
	}
	return Pick{Host: g.pick(t, rnd, active), OK: true, Panic: inPanic}
}

// level draws a priority by load, or -1 if none has any.
func (t *Table) level(rnd func() uint64) (p int, degraded bool) {
	if t.healthyLoad[0] == 100 {
		return 0, false
	}
	n := int(rnd() % 100)
	for p, load := range t.healthyLoad {
		if n < load {
			return p, false
		}
		n -= load
	}
	for p, load := range t.degradedLoad {
		if n < load {
			return p, true
		}
		n -= load
	}
	return -1, false
}

func (g *group) pick(t *Table, rnd func() uint64, active func(int) int64) int {
	if len(g.localities) > 0 {
		x := float64(rnd()>>11) / (1 << 53) * g.localSum
		for _, l := range g.localities {
			if x < l.share {
				return l.g.pick(t, rnd, active)
			}
		}
		return g.localities[len(g.localities)-1].g.pick(t, rnd, active)
	}
	n := uint64(len(g.index))
	if n == 1 {
		return g.index[0]
	}
	switch t.opt.Policy {
	case Random:
		return g.index[rnd()%n]
	case LeastRequest:
		if g.edf != nil {
			return g.index[g.edf.next(func(i int) float64 {
				a := float64(active(g.index[i]) + 1)
				if t.opt.ActiveBias != 1 {
					a = math.Pow(a, t.opt.ActiveBias)
				}
				return float64(g.weights[i].Weight) / a
			})]
		}
		best := g.index[rnd()%n]
		least := active(best)
		for range t.opt.Choices - 1 {
			i := g.index[rnd()%n]
			if a := active(i); a < least {
				best, least = i, a
			}
		}
		return best
	}
	turn := g.turn.Add(1)
	if g.ring != nil {
		return g.index[g.ring[turn%uint64(len(g.ring))]]
	}
	return g.index[turn%n]
}

// maxTurns bounds the memory of a period of weighted turns.
const maxTurns = 1 << 16

// turns returns one period of the earliest-deadline-first order in which a host
// of weight w comes w times, spread as evenly as can be. Weights are first
// divided by what they have in common, and rounded if the period would be huge.
func turns(hosts []Host) []int32 {
	common, sum := uint64(0), uint64(0)
	for _, h := range hosts {
		common = gcd(common, uint64(h.Weight))
		sum += uint64(h.Weight)
	}
	weights := make([]float64, len(hosts))
	period := 0
	for i, h := range hosts {
		w := uint64(h.Weight) / common
		if s := sum / common; s > maxTurns {
			w = max(1, w*maxTurns/s)
		}
		weights[i] = float64(w)
		period += int(w)
	}
	s := newSchedule(len(hosts))
	out := make([]int32, period)
	for i := range out {
		out[i] = int32(s.next(func(i int) float64 { return weights[i] }))
	}
	return out
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// A schedule is an earliest-deadline-first queue: who has weight w comes back
// 1/w later.
type schedule struct {
	mu    sync.Mutex
	n     int
	queue []entry // binary heap, earliest first
	now   float64
	order uint64
}

type entry struct {
	at    float64
	order uint64 // first come first served among equals
	host  int
}

func newSchedule(n int) *schedule { return &schedule{n: n} }

// next takes the host whose turn it is and puts it back by its weight.
func (s *schedule) next(weight func(int) float64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue == nil {
		for i := range s.n {
			s.push(entry{at: 1 / weight(i), host: i})
		}
	}
	e := s.queue[0]
	s.now = e.at
	e.at = s.now + 1/weight(e.host)
	s.order++
	e.order = s.order
	s.queue[0] = e
	s.down(0)
	return e.host
}

func (s *schedule) push(e entry) {
	s.order++
	e.order = s.order
	s.queue = append(s.queue, e)
	for i := len(s.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !before(s.queue[i], s.queue[up]) {
			break
		}
		s.queue[i], s.queue[up] = s.queue[up], s.queue[i]
		i = up
	}
}

func (s *schedule) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(s.queue) {
			return
		}
		if c+1 < len(s.queue) && before(s.queue[c+1], s.queue[c]) {
			c++
		}
		if !before(s.queue[c], s.queue[i]) {
			return
		}
		s.queue[i], s.queue[c] = s.queue[c], s.queue[i]
		i = c
	}
}

func before(a, b entry) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	return a.order < b.order
}
