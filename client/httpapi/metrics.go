package httpapi

import (
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-metrics"
)

// metricRequests is a summary of the milliseconds that requests take, those that wait included. Labels: method; path, that
// of the endpoint with "_" for "/" and without its argument.
var metricRequests = []string{"api", "http"}

// label makes the labels of a route ahead, since every request needs some.
func (rt *route) label() {
	path := strings.ReplaceAll(strings.TrimPrefix(rt.prefix+rt.suffix, "/"), "/", "_")
	for _, m := range rt.methods {
		rt.tallies = append(rt.tallies, &tally{method: m, path: path})
	}
}

// measure notes a request by one of the methods that the route knows.
func (rt *route) measure(s *Server, method string, began time.Time) {
	for _, t := range rt.tallies {
		if t.method == method {
			t.add(s.tallyEvery, began)
			return
		}
	}
}

// A tally sums up the requests of one method and path: telling the metrics of each costs more than many a request. The
// first of an interval is told, so that the metrics have a line with the name that they give it, and have none where a
// filter wants none; the figures in that line are then those of the tally.
type tally struct {
	method, path string

	mu   sync.Mutex
	now  tallied
	last tallied // the interval before
}

// A tallied interval has what metrics.AggregateSample has.
type tallied struct {
	at              int64 // when it began, in nanoseconds
	count           int
	sum, sumSquares float64 // of milliseconds
	min, max        float64
}

// add notes a request; interval is that of the metrics, 0 to tell them of each.
func (t *tally) add(interval time.Duration, began time.Time) {
	now := time.Now()
	ms := float64(now.Sub(began).Nanoseconds()) / float64(time.Millisecond)
	first := true
	if interval > 0 {
		at := now.Truncate(interval).UnixNano()
		t.mu.Lock()
		if first = t.now.at != at; first {
			t.now, t.last = tallied{at: at, min: ms}, t.now
		}
		t.now.count++
		t.now.sum += ms
		t.now.sumSquares += ms * ms
		t.now.min, t.now.max = min(t.now.min, ms), max(t.now.max, ms)
		t.mu.Unlock()
	}
	if first {
		metrics.AddSampleWithLabels(metricRequests, float32(ms), []metrics.Label{{Name: "method", Value: t.method}, {Name: "path", Value: t.path}})
	}
}

// fill puts the figures of the tallies into the lines of a summary that are about requests.
func (s *Server) fill(m *metrics.MetricsSummary) {
	if s.tallyEvery == 0 {
		return
	}
	lines := map[[2]string]*metrics.SampledValue{}
	for i := range m.Samples {
		if v := &m.Samples[i]; strings.HasSuffix(v.Name, strings.Join(metricRequests, ".")) && v.AggregateSample != nil && len(v.DisplayLabels) == 2 {
			lines[[2]string{v.DisplayLabels["method"], v.DisplayLabels["path"]}] = v
		}
	}
	for _, table := range []map[string]*route{s.exact, s.prefixes} {
		for _, rt := range table {
			rt.fill(m.Timestamp, lines)
			for _, n := range rt.nested {
				n.fill(m.Timestamp, lines)
			}
		}
	}
}

func (rt *route) fill(timestamp string, lines map[[2]string]*metrics.SampledValue) {
	for _, t := range rt.tallies {
		v := lines[[2]string{t.method, t.path}]
		if v == nil {
			continue
		}
		t.mu.Lock()
		now, last := t.now, t.last
		t.mu.Unlock()
		for _, x := range []tallied{now, last} {
			// The form that go-metrics gives the beginning of an interval.
			if x.count == 0 || time.Unix(0, x.at).Round(time.Second).UTC().String() != timestamp {
				continue
			}
			a := *v.AggregateSample
			if a.Sum > 0 {
				a.Rate *= x.sum / a.Sum
			}
			a.Count, a.Sum, a.SumSq, a.Min, a.Max = x.count, x.sum, x.sumSquares, x.min, x.max
			v.AggregateSample, v.Mean, v.Stddev = &a, a.Mean(), a.Stddev()
		}
	}
}
