package localratelimit

import (
	"math"
	"sync/atomic"
	"time"
)

// A Bucket is the configuration of a token bucket.
type Bucket struct {
	Max          uint32        // tokens that it holds, and begins with; at least 1
	PerFill      uint32        // tokens that come in each interval; at least 1
	FillInterval time.Duration // at least 50ms
}

// tokens is a bucket that fills continuously. It is one number, the instant at which the bucket was or will be empty if
// nothing more is taken, so taking is one compare-and-swap.
type tokens struct {
	max   float64
	per   float64 // nanoseconds for a token
	since time.Time
	empty atomic.Uint64 // bits of a float64, nanoseconds after since
}

func newTokens(b Bucket) *tokens {
	t := &tokens{max: float64(b.Max), per: float64(b.FillInterval) / float64(b.PerFill), since: time.Now()}
	t.empty.Store(math.Float64bits(-t.max * t.per))
	return t
}

// take takes a token and reports whether there was one.
func (t *tokens) take() bool {
	now := float64(time.Since(t.since))
	for {
		old := t.empty.Load()
		next := max(math.Float64frombits(old), now-t.max*t.per) + t.per
		if next > now+t.per*1e-6 { // sums of fractions are not exact
			return false
		}
		if t.empty.CompareAndSwap(old, math.Float64bits(next)) {
			return true
		}
	}
}

// left returns how many tokens there are, with the part of one that is still to come.
func (t *tokens) left() float64 {
	now := float64(time.Since(t.since))
	return max(0, min((now-math.Float64frombits(t.empty.Load()))/t.per+1e-6, t.max))
}

// untilNext returns how long it takes until there is a token.
func (t *tokens) untilNext() time.Duration { return time.Duration(max(0, 1-t.left()) * t.per) }
