package transport

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A LimitMode says what happens to calls over their rate.
type LimitMode string

const (
	LimitDisabled   LimitMode = "disabled"
	LimitPermissive LimitMode = "permissive" // they are counted and logged
	LimitEnforcing  LimitMode = "enforcing"  // they are refused
)

// Limits bound the calls that a server takes, those that other servers forward included (spec/state.md section 1.10).
// What operators ask about the servers themselves is not bounded. The zero Limits bound nothing.
type Limits struct {
	Mode LimitMode // empty means LimitDisabled
	// Reads and Writes are calls per second, negative for no bound. Ten times as many may come at once.
	Reads, Writes float64
}

// burstSeconds is for how long a bucket that nobody takes from fills.
const burstSeconds = 10

// limitLogEvery is the least time between two lines of the log about calls over their rate.
const limitLogEvery = time.Second

// A limiter applies Limits. It is safe for concurrent use.
type limiter struct {
	log hclog.Logger
	on  atomic.Bool // the mode is not LimitDisabled; changed under mu

	mu            sync.Mutex
	mode          LimitMode
	reads, writes bucket
	said          time.Time // when the log was last written to
	unsaid        int       // calls over their rate since then
}

// A bucket holds tokens that calls take.
type bucket struct {
	rate, most, tokens float64
	filled             time.Time
}

func newBucket(rate float64, now time.Time) bucket {
	most := rate * burstSeconds
	if rate > 0 {
		most = max(most, 1)
	}
	return bucket{rate, most, most, now}
}

func (b *bucket) take(now time.Time) bool {
	if b.rate < 0 {
		return true
	}
	b.tokens = min(b.most, b.tokens+now.Sub(b.filled).Seconds()*b.rate)
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// set changes the limits. Buckets whose rate stays the same keep what is in them.
func (l *limiter) set(to Limits) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mode = to.Mode
	l.on.Store(to.Mode == LimitPermissive || to.Mode == LimitEnforcing)
	if l.reads.rate != to.Reads || l.reads.filled.IsZero() {
		l.reads = newBucket(to.Reads, now)
	}
	if l.writes.rate != to.Writes || l.writes.filled.IsZero() {
		l.writes = newBucket(to.Writes, now)
	}
}

// limitedAs returns whether a call is bounded, and whether as a write.
func limitedAs(m rpc.Descriptor) (limited, write bool) {
	if strings.HasPrefix(m.Name, "Status.") || strings.HasPrefix(m.Name, "Operator.") {
		return false, false
	}
	switch m.Kind {
	case rpc.KindWrite, rpc.KindLeader:
		return true, true
	case rpc.KindLocal:
		return true, m.Name == "Event.Fire"
	}
	return true, false
}

// admit refuses a call over its rate, where that is asked for. Who is refused by the leader what only a leader can do
// need not ask another server.
func (l *limiter) admit(m rpc.Descriptor, leading bool) error {
	if !l.on.Load() {
		return nil
	}
	limited, write := limitedAs(m)
	if !limited {
		return nil
	}
	l.mu.Lock()
	mode, b, op := l.mode, &l.reads, "read"
	if write {
		b, op = &l.writes, "write"
	}
	if mode != LimitPermissive && mode != LimitEnforcing {
		l.mu.Unlock()
		return nil
	}
	now := time.Now()
	if b.take(now) {
		l.mu.Unlock()
		return nil
	}
	l.unsaid++
	unsaid := 0
	if now.Sub(l.said) >= limitLogEvery {
		unsaid, l.unsaid, l.said = l.unsaid, 0, now
	}
	l.mu.Unlock()
	metrics.IncrCounterWithLabels(metricLimited, 1, []metrics.Label{
		{Name: "limit_type", Value: "global/" + op}, {Name: "op", Value: m.Name}, {Name: "mode", Value: string(mode)},
	})
	if unsaid > 0 {
		l.log.Warn("calls exceed the request limits", "call", m.Name, "kind", op, "mode", mode, "calls", unsaid)
	} else {
		metrics.IncrCounter(metricLimitUnsaid, 1)
	}
	switch {
	case mode == LimitPermissive:
		return nil
	case leading && m.Kind != rpc.KindRead && m.Kind != rpc.KindLocal:
		return wireerr.ErrRateLimitedWrite
	}
	return wireerr.ErrRateLimited
}

// SetLimits changes how many calls this server takes.
func (d *Dispatcher) SetLimits(l Limits) { d.limiter.set(l) }
