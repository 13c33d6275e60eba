// Package telemetry keeps an agent's metrics, shows them and sends them to others: the summary of the API, the text form
// of Prometheus, statsd, statsite, dogstatsd and OTLP.
package telemetry

import (
	"cmp"
	"context"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
)

// Interval is the time that metrics are summed up over.
const Interval = 10 * time.Second

// maxSeries bounds the series that are kept. Labels take few values, so an agent has hundreds of them; what would be
// more is left out and counted.
const maxSeries = 16384

// A kind says what the values of a series mean.
type kind uint8

const (
	gauge kind = iota
	counter
	summary
)

func (k kind) String() string { return [...]string{"gauge", "counter", "summary"}[k] }

// A series is one metric with one set of labels.
type series struct {
	kind   kind
	name   string // parts separated by dots
	labels []metrics.Label
	known  bool // from the start, and for good

	value float64 // of a gauge, or since the start of a counter
	count int64   // of a summary, since the start
	sum   float64
	used  time.Time
	born  time.Time

	now, last interval // the last two in which something was measured
}

// An interval is what was measured in one.
type interval struct {
	at    int64 // its beginning in Unix nanoseconds; 0 for none
	value float64
	batch measure.Batch
	end   time.Time // of the last measurement
}

// A Store keeps the metrics of the process. It is a metrics.MetricSink. Make one with NewStore.
type Store struct {
	retention time.Duration
	born      time.Time
	started   int64 // the interval in which it was made

	mu      sync.Mutex
	series  map[string]*series
	key     []byte // scratch
	swept   time.Time
	dropped int64 // measurements that were left out
}

// NewStore returns a store that forgets what has not been measured for the retention, of six intervals at least.
func NewStore(retention time.Duration) *Store {
	now := time.Now()
	return &Store{retention: max(retention, 6*Interval), born: now, started: beginning(now), series: map[string]*series{}, swept: now}
}

// beginning returns when the interval of a moment began.
func beginning(t time.Time) int64 { return t.Truncate(Interval).UnixNano() }

// Dropped returns how many measurements were left out since there would be too many series.
func (s *Store) Dropped() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// KnownGauge has the text form show a gauge from the start, as 0, and one that tells when something ends as not a number,
// so that nobody is warned of what there is not.
func (s *Store) KnownGauge(name string) {
	s.known(gauge, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.find(gauge, []string{name}, nil, time.Now()); x != nil && strings.HasSuffix(name, ".expiry") {
		x.value = math.NaN()
	}
}

// KnownCounter has the text form show a counter from the start.
func (s *Store) KnownCounter(name string) { s.known(counter, name) }

// KnownSummary has the text form show a summary from the start, with quantiles that are not a number.
func (s *Store) KnownSummary(name string) { s.known(summary, name) }

func (s *Store) known(k kind, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.find(k, []string{name}, nil, time.Now()); x != nil {
		x.known = true
	}
}

// nameBytes are what stands for others in a name, as go-metrics has it.
func nameByte(c byte) byte {
	switch c {
	case ' ', ':', '|', '\n', '\r':
		return '_'
	}
	return c
}

// find returns a series, made if there is none and there is room; nil for no room. The caller holds mu.
func (s *Store) find(k kind, parts []string, labels []metrics.Label, now time.Time) *series {
	key := append(s.key[:0], byte('0'+k))
	for i, p := range parts {
		if i > 0 {
			key = append(key, '.')
		}
		for j := range len(p) {
			key = append(key, nameByte(p[j]))
		}
	}
	name := len(key)
	for _, l := range labels {
		key = append(append(append(append(key, ';'), l.Name...), '='), l.Value...)
	}
	s.key = key
	if x := s.series[string(key)]; x != nil {
		return x
	}
	if len(s.series) >= maxSeries {
		if now.Sub(s.swept) >= Interval {
			s.sweep(now)
		}
		if len(s.series) >= maxSeries {
			s.dropped++
			return nil
		}
	}
	x := &series{kind: k, name: string(key[1:name]), labels: slices.Clone(labels), born: now}
	s.series[string(key)] = x
	return x
}

// sweep forgets what has not been measured for long. The caller holds mu.
func (s *Store) sweep(now time.Time) {
	s.swept = now
	for key, x := range s.series {
		if !x.known && now.Sub(x.used) > s.retention {
			delete(s.series, key)
		}
	}
}

// current returns the interval that a moment belongs to.
func (x *series) current(now time.Time) *interval {
	x.used = now
	if at := beginning(now); x.now.at != at {
		spare := x.last.batch.Values[:0]
		x.last = x.now
		x.now = interval{at: at, batch: measure.Batch{Values: spare}}
	}
	x.now.end = now
	return &x.now
}

// SetGauge implements metrics.MetricSink.
func (s *Store) SetGauge(key []string, v float32) {
	s.SetPrecisionGaugeWithLabels(key, float64(v), nil)
}

// SetGaugeWithLabels implements metrics.MetricSink.
func (s *Store) SetGaugeWithLabels(key []string, v float32, labels []metrics.Label) {
	s.SetPrecisionGaugeWithLabels(key, float64(v), labels)
}

// SetPrecisionGauge implements metrics.PrecisionGaugeMetricSink.
func (s *Store) SetPrecisionGauge(key []string, v float64) {
	s.SetPrecisionGaugeWithLabels(key, v, nil)
}

// SetPrecisionGaugeWithLabels implements metrics.PrecisionGaugeMetricSink.
func (s *Store) SetPrecisionGaugeWithLabels(key []string, v float64, labels []metrics.Label) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.find(gauge, key, labels, now); x != nil {
		x.value = v
		x.current(now).value = v
	}
}

// EmitKey implements metrics.MetricSink. Nothing emits any.
func (s *Store) EmitKey([]string, float32) {}

// IncrCounter implements metrics.MetricSink.
func (s *Store) IncrCounter(key []string, v float32) { s.IncrCounterWithLabels(key, v, nil) }

// IncrCounterWithLabels implements metrics.MetricSink.
func (s *Store) IncrCounterWithLabels(key []string, v float32, labels []metrics.Label) {
	if v < 0 || v != v {
		return
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.find(counter, key, labels, now); x != nil {
		x.value += float64(v)
		x.current(now).batch.Add(float64(v))
	}
}

// AddSample implements metrics.MetricSink.
func (s *Store) AddSample(key []string, v float32) { s.AddSampleWithLabels(key, v, nil) }

// AddSampleWithLabels implements metrics.MetricSink.
func (s *Store) AddSampleWithLabels(key []string, v float32, labels []metrics.Label) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.find(summary, key, labels, now); x != nil {
		x.count++
		x.sum += float64(v)
		x.current(now).batch.Add(float64(v))
	}
}

// AddBatch adds many samples of a summary.
func (s *Store) AddBatch(key []string, b measure.Batch, labels []metrics.Label) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.find(summary, key, labels, now); x != nil {
		x.count += b.Count
		x.sum += b.Sum
		x.current(now).batch.Merge(b)
	}
}

// A point is a series as it was at one moment or in one interval. Its values and labels are nobody else's to change.
type point struct {
	kind   kind
	name   string
	labels []metrics.Label
	born   time.Time

	value float64       // of a gauge; of a counter since the start
	count int64         // of a summary, since the start
	sum   float64       // of a summary, since the start
	batch measure.Batch // of the interval; of counters, what was counted
	end   time.Time     // of the last measurement
}

// in returns what was measured in the interval that began at a time, in order of names and labels.
func (s *Store) in(at int64) []point {
	s.mu.Lock()
	var list []point
	for _, x := range s.series {
		for _, i := range []*interval{&x.now, &x.last} {
			if i.at == at && i.at != 0 {
				p := point{kind: x.kind, name: x.name, labels: x.labels, born: x.born, value: x.value, count: x.count, sum: x.sum, batch: i.batch, end: i.end}
				if x.kind == gauge {
					p.value = i.value
				}
				p.batch.Values = slices.Clone(i.batch.Values)
				list = append(list, p)
			}
		}
	}
	s.mu.Unlock()
	sortPoints(list)
	return list
}

func sortPoints(list []point) {
	slices.SortFunc(list, func(a, b point) int {
		return cmp.Or(strings.Compare(a.name, b.name), slices.CompareFunc(a.labels, b.labels, func(a, b metrics.Label) int {
			return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Value, b.Value))
		}))
	})
}

// DisplayMetrics returns a metrics.MetricsSummary of the last interval that is over, or of the first one while it lasts
// (spec/registry.md section 7.3).
func (s *Store) DisplayMetrics(http.ResponseWriter, *http.Request) (any, error) {
	measure.Report()
	at := beginning(time.Now())
	if at != s.started {
		at -= int64(Interval)
	}
	return s.summary(at), nil
}

func (s *Store) summary(at int64) metrics.MetricsSummary {
	out := metrics.MetricsSummary{Timestamp: time.Unix(0, at).UTC().String()}
	for _, p := range s.in(at) {
		labels := make(map[string]string, len(p.labels))
		for _, l := range p.labels {
			labels[l.Name] = l.Value
		}
		if p.kind == gauge {
			out.Gauges = append(out.Gauges, metrics.GaugeValue{Name: p.name, Value: float32(p.value), DisplayLabels: labels})
			continue
		}
		b := p.batch
		a := &metrics.AggregateSample{Count: int(b.Count), Rate: b.Sum / Interval.Seconds(), Sum: b.Sum, SumSq: b.SumSquares, Min: b.Min, Max: b.Max, LastUpdated: p.end}
		v := metrics.SampledValue{Name: p.name, AggregateSample: a, Mean: a.Mean(), Stddev: deviation(b), DisplayLabels: labels}
		if p.kind == counter {
			out.Counters = append(out.Counters, v)
		} else {
			out.Samples = append(out.Samples, v)
		}
	}
	return out
}

// deviation is the standard deviation, of a sample.
func deviation(b measure.Batch) float64 {
	n := float64(b.Count)
	if n < 2 {
		return 0
	}
	square := (n*b.SumSquares - b.Sum*b.Sum) / (n * (n - 1))
	return math.Sqrt(max(square, 0)) // rounding may make it negative
}

// Stream gives an encoder the summary of each interval when it is over, until ctx ends or the encoder fails.
func (s *Store) Stream(ctx context.Context, e metrics.Encoder) {
	for {
		at := beginning(time.Now())
		end := time.NewTimer(time.Until(time.Unix(0, at).Add(Interval)))
		select {
		case <-ctx.Done():
			end.Stop()
			return
		case <-end.C:
		}
		if e.Encode(s.summary(at)) != nil {
			return
		}
	}
}
