// Package measure sums up what is measured on hot paths, where telling the metrics of each request would cost more than
// many a request: a Timer or a Counter takes tens of nanoseconds, and is told to the metrics now and then, by Report.
//
// Names and labels come from the program, never from requests, so that there are only so many series. They are kept for
// the whole process, as those of go-metrics are.
package measure

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-metrics"
)

// Kept is how many values a batch has at most.
const Kept = 64

// maxTold bounds the samples of a batch that are told one by one, where nobody takes batches.
const maxTold = 1000

// A Batch is of measurements of one series.
type Batch struct {
	Count                     int64
	Sum, SumSquares, Min, Max float64
	// Values are the measurements or, when there were many, some of them, chosen by chance.
	Values []float32
}

// Add adds one measurement.
func (b *Batch) Add(v float64) {
	if b.Count == 0 || v < b.Min {
		b.Min = v
	}
	if b.Count == 0 || v > b.Max {
		b.Max = v
	}
	b.Count++
	b.Sum += v
	b.SumSquares += v * v
	if len(b.Values) < Kept {
		b.Values = append(b.Values, float32(v))
	} else if i := rand.Int64N(b.Count); i < Kept {
		b.Values[i] = float32(v)
	}
}

// Merge adds the measurements of another batch.
func (b *Batch) Merge(o Batch) {
	if o.Count == 0 {
		return
	}
	if b.Count == 0 {
		b.Min, b.Max = o.Min, o.Max
	}
	b.Min, b.Max = min(b.Min, o.Min), max(b.Max, o.Max)
	b.Count += o.Count
	b.Sum += o.Sum
	b.SumSquares += o.SumSquares
	for _, v := range o.Values {
		if len(b.Values) < Kept {
			b.Values = append(b.Values, v)
		} else if i := rand.Int64N(b.Count); i < o.Count {
			b.Values[rand.IntN(Kept)] = v // a share of them as large as that of what was measured
		}
	}
}

// Same is a batch of n measurements that are alike.
func Same(n int64, v float64) Batch {
	b := Batch{Count: n, Sum: float64(n) * v, SumSquares: float64(n) * v * v, Min: v, Max: v}
	for range min(n, Kept) {
		b.Values = append(b.Values, float32(v))
	}
	return b
}

// taker takes batches, when it is set.
var taker atomic.Pointer[func(key []string, labels []metrics.Label, b Batch)]

// To has batches told to f, nil for one by one to go-metrics. f must not keep the values.
func To(f func(key []string, labels []metrics.Label, b Batch)) {
	if f == nil {
		taker.Store(nil)
		return
	}
	taker.Store(&f)
}

// Tell tells a batch of a summary.
func Tell(key []string, labels []metrics.Label, b Batch) {
	if b.Count == 0 {
		return
	}
	if f := taker.Load(); f != nil {
		(*f)(key, labels, b)
		return
	}
	for _, v := range b.Values {
		metrics.AddSampleWithLabels(key, v, labels)
	}
	mean := float32(b.Sum / float64(b.Count))
	for range min(b.Count, maxTold) - int64(len(b.Values)) {
		metrics.AddSampleWithLabels(key, mean, labels)
	}
}

// A Timer is a summary of milliseconds. It is safe for concurrent use.
type Timer struct {
	key    []string
	labels []metrics.Label

	mu    sync.Mutex
	batch Batch
}

// Since notes what began at a time and ends now.
func (t *Timer) Since(began time.Time) { t.Add(time.Since(began)) }

// Add notes what took d.
func (t *Timer) Add(d time.Duration) {
	t.mu.Lock()
	t.batch.Add(float64(d) / float64(time.Millisecond))
	t.mu.Unlock()
}

func (t *Timer) tell() {
	t.mu.Lock()
	b := t.batch
	t.batch = Batch{}
	t.mu.Unlock()
	Tell(t.key, t.labels, b)
	if b.Count == 0 || taker.Load() == nil {
		return
	}
	t.mu.Lock()
	if t.batch.Values == nil { // a busy series takes no new memory
		t.batch.Values = b.Values[:0]
	}
	t.mu.Unlock()
}

// A Counter counts. It is safe for concurrent use.
type Counter struct {
	key    []string
	labels []metrics.Label
	n      atomic.Int64
}

// Add counts n more.
func (c *Counter) Add(n int64) { c.n.Add(n) }

func (c *Counter) tell() {
	if n := c.n.Swap(0); n > 0 {
		metrics.IncrCounterWithLabels(c.key, float32(n), c.labels)
	}
}

// all has every timer and counter that was asked for, by name and labels.
var all struct {
	sync.Mutex
	timers   map[string]*Timer
	counters map[string]*Counter
}

// NewTimer returns the timer of a name, whose parts are separated by dots, and labels: the same for the same.
func NewTimer(name string, labels ...metrics.Label) *Timer {
	all.Lock()
	defer all.Unlock()
	if all.timers == nil {
		all.timers = map[string]*Timer{}
	}
	id := identity(name, labels)
	t := all.timers[id]
	if t == nil {
		t = &Timer{key: strings.Split(name, "."), labels: labels}
		all.timers[id] = t
	}
	return t
}

// NewCounter returns the counter of a name, whose parts are separated by dots, and labels: the same for the same.
func NewCounter(name string, labels ...metrics.Label) *Counter {
	all.Lock()
	defer all.Unlock()
	if all.counters == nil {
		all.counters = map[string]*Counter{}
	}
	id := identity(name, labels)
	c := all.counters[id]
	if c == nil {
		c = &Counter{key: strings.Split(name, "."), labels: labels}
		all.counters[id] = c
	}
	return c
}

func identity(name string, labels []metrics.Label) string {
	var b strings.Builder
	b.WriteString(name)
	for _, l := range labels {
		b.WriteString("\x00" + l.Name + "\x00" + l.Value)
	}
	return b.String()
}

// Report tells everything that was measured since it was last called.
func Report() {
	all.Lock()
	timers := make([]*Timer, 0, len(all.timers))
	for _, t := range all.timers {
		timers = append(timers, t)
	}
	counters := make([]*Counter, 0, len(all.counters))
	for _, c := range all.counters {
		counters = append(counters, c)
	}
	all.Unlock()
	for _, t := range timers {
		t.tell()
	}
	for _, c := range counters {
		c.tell()
	}
}
