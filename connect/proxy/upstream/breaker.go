package upstream

import (
	"sync/atomic"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// A Resource is something of which a cluster may only have so much at a time.
type Resource uint8

// The resources.
const (
	Connections Resource = iota
	Pending              // requests that wait for a connection
	Requests             // requests on a connection
	Retries              // requests that are sent again
	resources
)

// A BreakerState says whether a resource is to be had.
type BreakerState uint8

// The states.
const (
	Closed   BreakerState = iota
	Open                  // all of it is in use
	HalfOpen              // somebody was refused, and more than half of it is still in use
)

// String returns the name in lower case.
func (s BreakerState) String() string { return [...]string{"closed", "open", "half-open"}[s] }

// A Breaker counts what a cluster has in progress for one priority, and
// refuses what goes beyond its limits. It outlives changes of the cluster. It
// is safe for concurrent use; limits are never exceeded, not even for a moment,
// and nobody is refused what there still is.
type Breaker struct {
	conf    atomic.Pointer[breakerConf]
	used    [resources]atomic.Int64
	tripped [resources]atomic.Bool
}

type breakerConf struct {
	model.Breaker
	stats *Stats
}

// Try takes one of the resource, which Done gives back, or reports that all of
// it is in use and counts that.
func (b *Breaker) Try(r Resource) bool {
	u := &b.used[r]
	for {
		n := u.Load()
		if n >= b.limit(r) {
			b.tripped[r].Store(true)
			b.overflow(r)
			return false
		}
		if u.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Force takes one of the resource though all of it may be in use, as a pool may
// that has no connection at all.
func (b *Breaker) Force(r Resource) { b.used[r].Add(1) }

// Done gives one of the resource back.
func (b *Breaker) Done(r Resource) {
	n := b.used[r].Add(-1)
	if b.tripped[r].Load() && n <= b.limit(r)/2 {
		b.tripped[r].Store(false)
	}
}

// Used returns how much of the resource is in use.
func (b *Breaker) Used(r Resource) int64 { return b.used[r].Load() }

// State returns whether the resource is to be had.
func (b *Breaker) State(r Resource) BreakerState {
	switch n, limit := b.used[r].Load(), b.limit(r); {
	case n >= limit:
		return Open
	case b.tripped[r].Load() && n > limit/2:
		return HalfOpen
	}
	return Closed
}

// Limits returns the limits in force.
func (b *Breaker) Limits() model.Breaker { return b.conf.Load().Breaker }

func (b *Breaker) limit(r Resource) int64 {
	c := b.conf.Load()
	switch r {
	case Connections:
		return int64(c.MaxConnections)
	case Pending:
		return int64(c.MaxPending)
	case Requests:
		return int64(c.MaxRequests)
	}
	if c.Budget == nil {
		return int64(c.MaxRetries)
	}
	busy := b.used[Requests].Load() + b.used[Pending].Load()
	return max(int64(c.Budget.Min), int64(float64(busy)*c.Budget.Percent/100))
}

func (b *Breaker) overflow(r Resource) {
	switch s := b.conf.Load().stats; r {
	case Connections:
		s.CxOverflow.Inc()
	case Retries:
		s.RqRetryOverflow.Inc()
	default:
		s.RqPendingOverflow.Inc()
	}
}

// breakers are those of all priorities.
type breakers [2]Breaker

// breakerStats are the names of gauges, made once for all clusters: whether a
// resource is used up, whether it recovers, and what is left.
var breakerStats = func() (names [2][resources][3]string) {
	for p, priority := range []string{"default", "high"} {
		for r, name := range []string{"cx", "rq_pending", "rq", "rq_retry"} {
			prefix := "circuit_breakers." + priority + "."
			left := []string{"cx", "pending", "rq", "retries"}[r]
			names[p][r] = [3]string{prefix + name + "_open", prefix + name + "_half_open", prefix + "remaining_" + left}
		}
	}
	return names
}()

// configure puts limits into force.
func (b *breakers) configure(conf *model.Cluster, s *Stats, sc *stats.Scope) {
	for p := range b {
		one := &b[p]
		one.conf.Store(&breakerConf{conf.Breakers[p], s})
		for r, names := range breakerStats[p] {
			r := Resource(r)
			sc.GaugeFunc(names[0], func() float64 { return one.is(r, Open) })
			sc.GaugeFunc(names[1], func() float64 { return one.is(r, HalfOpen) })
			if conf.Breakers[p].TrackRemaining {
				sc.GaugeFunc(names[2], func() float64 { return float64(max(0, one.limit(r)-one.Used(r))) })
			}
		}
	}
}

func (b *Breaker) is(r Resource, s BreakerState) float64 {
	if b.State(r) == s {
		return 1
	}
	return 0
}
