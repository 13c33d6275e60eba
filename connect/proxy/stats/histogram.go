package stats

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// A Histogram is a distribution of durations in milliseconds. The zero
// Histogram is ready for use and small until something is recorded.
//
// It counts twice: by the bounds that are shown, exactly, and by powers of two
// in sixteen steps each, from which quantiles are estimated to 6 % at worst.
type Histogram struct {
	p      atomic.Pointer[buckets]
	bounds *bounds // nil takes the default; set before anything is recorded
}

// bounds are the upper bounds of the buckets of a histogram.
type bounds struct {
	ms    []float64
	nanos []time.Duration
}

func newBounds(ms []float64) *bounds {
	b := &bounds{ms: ms}
	for _, m := range ms {
		b.nanos = append(b.nanos, time.Duration(m*float64(time.Millisecond)))
	}
	return b
}

var defaultBounds = newBounds([]float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000})

const (
	steps   = 16 // within a power of two
	octaves = 33 // up to 2^36 microseconds, which is 19 hours
)

type octave [steps]atomic.Uint64

type buckets struct {
	bounds *bounds
	counts []atomic.Uint64 // one more than bounds
	micros atomic.Uint64
	fine   [octaves]atomic.Pointer[octave] // nil: nothing fell there
}

// Record adds a duration. It costs a few atomic operations.
func (h *Histogram) Record(d time.Duration) {
	b := h.p.Load()
	if b == nil {
		b = h.first()
	}
	d = max(d, 0)
	i := 0
	for i < len(b.bounds.nanos) && d > b.bounds.nanos[i] {
		i++
	}
	b.counts[i].Add(1)
	us := uint64(d / time.Microsecond)
	b.micros.Add(us)
	o, s := place(us)
	page := b.fine[o].Load()
	if page == nil {
		b.fine[o].CompareAndSwap(nil, new(octave))
		page = b.fine[o].Load()
	}
	page[s].Add(1)
}

// first makes the buckets, which Reset may take away again at any time.
func (h *Histogram) first() *buckets {
	at := h.bounds
	if at == nil {
		at = defaultBounds
	}
	b := &buckets{bounds: at, counts: make([]atomic.Uint64, len(at.ms)+1)}
	if h.p.CompareAndSwap(nil, b) {
		return b
	}
	if now := h.p.Load(); now != nil {
		return now
	}
	return b // reset just now: what is recorded counts as from before
}

// place returns where a number of microseconds is counted.
func place(us uint64) (o, step int) {
	n := bits.Len64(us)
	if n <= 4 {
		return 0, int(us)
	}
	if o = n - 4; o >= octaves {
		return octaves - 1, steps - 1
	}
	return o, int(us>>(n-5)) & (steps - 1)
}

// span returns the microseconds from which on a place counts, and how many it does.
func span(o, step int) (low, width uint64) {
	if o == 0 {
		return uint64(step), 1
	}
	width = 1 << (o - 1)
	return uint64(steps+step) * width, width
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() uint64 {
	n := uint64(0)
	if b := h.p.Load(); b != nil {
		for i := range b.counts {
			n += b.counts[i].Load()
		}
	}
	return n
}

// Quantile estimates the duration below which a share q of all lie; 0 if there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	b := h.p.Load()
	if b == nil {
		return 0
	}
	return time.Duration(b.quantiles(q)[0] * float64(time.Millisecond))
}

// quantiles estimates quantiles, given in rising order, in milliseconds.
func (b *buckets) quantiles(list ...float64) []float64 {
	var counts [octaves][steps]uint64
	total := uint64(0)
	for o := range b.fine {
		if page := b.fine[o].Load(); page != nil {
			for s := range page {
				counts[o][s] = page[s].Load()
				total += counts[o][s]
			}
		}
	}
	out := make([]float64, len(list))
	next, seen := 0, 0.0
	for o := range counts {
		for s, c := range counts[o] {
			if c == 0 {
				continue
			}
			low, width := span(o, s)
			for next < len(list) && seen+float64(c) >= list[next]*float64(total) {
				part := max(list[next]*float64(total)-seen, 0) / float64(c)
				out[next] = (float64(low) + part*float64(width)) / 1000
				next++
			}
			seen += float64(c)
		}
	}
	return out
}

// each calls f with every place where something was counted: its middle in milliseconds, and how often.
func (b *buckets) each(f func(o, step int, n uint64)) {
	for o := range b.fine {
		if page := b.fine[o].Load(); page != nil {
			for s := range page {
				if n := page[s].Load(); n > 0 {
					f(o, s, n)
				}
			}
		}
	}
}
