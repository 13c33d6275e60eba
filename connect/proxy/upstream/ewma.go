package upstream

import (
	"math"
	"sync/atomic"
	"time"
)

// ewma is a moving average of latency that rises at once and falls slowly, as
// one word: a float32 in seconds, and when it was so, in milliseconds. The zero ewma has measured nothing.
type ewma struct{ v atomic.Uint64 }

func (e *ewma) load() (seconds float64, at uint32, measured bool) {
	v := e.v.Load()
	return float64(math.Float32frombits(uint32(v >> 32))), uint32(v), v != 0
}

// observe adds a latency.
func (e *ewma) observe(d, decay time.Duration) {
	x := d.Seconds()
	for {
		old := e.v.Load()
		now := clock()
		value, at, measured := math.Float32frombits(uint32(old>>32)), uint32(old), old != 0
		if !measured || x >= float64(value) {
			value = float32(x)
		} else {
			keep := math.Exp(-float64(elapsed(at, now)) / float64(decay))
			value = float32(float64(value)*keep + x*(1-keep))
		}
		if e.v.CompareAndSwap(old, uint64(math.Float32bits(value))<<32|uint64(now)) {
			return
		}
	}
}

// seconds returns the average, decayed to now, or start if nothing was measured.
func (e *ewma) seconds(decay, start time.Duration) float64 {
	value, at, measured := e.load()
	if !measured {
		return start.Seconds()
	}
	return value * math.Exp(-float64(elapsed(at, clock()))/float64(decay))
}

// clock returns the time in milliseconds, never 0, wrapping after seven weeks.
func clock() uint32 { return uint32(time.Now().UnixMilli()) | 1 }

func elapsed(from, to uint32) time.Duration {
	return time.Duration(max(0, int32(to-from))) * time.Millisecond
}

// Defaults of peak EWMA.
const (
	ewmaDecay = 10 * time.Second
	ewmaStart = 30 * time.Millisecond
	// ewmaPenalty is the latency that an answer counts for which says that the
	// host is overloaded or broken and not for how long.
	ewmaPenalty = time.Second
	// maxPenalty bounds what a host may ask for.
	maxPenalty = time.Minute
)
