// Package stats counts what the proxy does, under the names that Envoy's
// dashboards use. Counting is one atomic operation; names, tags and sorting
// cost something only when somebody reads.
package stats

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Counter only grows. The zero Counter is ready for use.
type Counter struct{ v atomic.Uint64 }

// Inc adds one.
func (c *Counter) Inc() { c.v.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) { c.v.Add(n) }

// Value returns the count.
func (c *Counter) Value() uint64 { return c.v.Load() }

// A Gauge goes up and down. The zero Gauge is ready for use.
type Gauge struct{ v atomic.Int64 }

// Inc adds one.
func (g *Gauge) Inc() { g.v.Add(1) }

// Dec subtracts one.
func (g *Gauge) Dec() { g.v.Add(-1) }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) { g.v.Add(n) }

// Set replaces the value.
func (g *Gauge) Set(n int64) { g.v.Store(n) }

// Value returns the value.
func (g *Gauge) Value() int64 { return g.v.Load() }

// bounds are the upper bounds of the buckets of every histogram, in milliseconds.
var bounds = [...]float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// A Histogram is a distribution of durations in milliseconds. The zero
// Histogram is ready for use and small until something is recorded.
type Histogram struct{ p atomic.Pointer[buckets] }

type buckets struct {
	counts [len(bounds) + 1]atomic.Uint64
	micros atomic.Uint64
}

// Record adds a duration.
func (h *Histogram) Record(d time.Duration) {
	b := h.p.Load()
	if b == nil {
		h.p.CompareAndSwap(nil, new(buckets))
		b = h.p.Load()
	}
	d = max(d, 0)
	ms := float64(d) / float64(time.Millisecond)
	i := 0
	for i < len(bounds) && ms > bounds[i] {
		i++
	}
	b.counts[i].Add(1)
	b.micros.Add(uint64(d / time.Microsecond))
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

// quantile estimates a quantile by interpolating within a bucket.
func (b *buckets) quantile(q float64) float64 {
	var counts [len(bounds) + 1]uint64
	total := uint64(0)
	for i := range b.counts {
		counts[i] = b.counts[i].Load()
		total += counts[i]
	}
	rank := q * float64(total)
	seen := 0.0
	for i, c := range counts {
		if c == 0 {
			continue
		}
		if seen+float64(c) >= rank {
			if i == len(bounds) {
				return bounds[i-1]
			}
			low := 0.0
			if i > 0 {
				low = bounds[i-1]
			}
			return low + (bounds[i]-low)*(rank-seen)/float64(c)
		}
		seen += float64(c)
	}
	return 0
}

// A Store holds every metric of a proxy.
type Store struct {
	rules []TagRule

	mu     sync.Mutex
	scopes map[string]*scope
}

// A TagRule cuts a piece out of the names of metrics and makes it a label.
type TagRule struct {
	Name string
	// Regexp's first group is cut from the name; the second, or the first if
	// there is none, is the value. Nil gives every metric Fixed as the value.
	Regexp *regexp.Regexp
	Fixed  string
}

// NewStore returns a store. The rules are applied to the prefix of each scope,
// which is what names their instances.
func NewStore(rules []TagRule) *Store {
	return &Store{rules: rules, scopes: map[string]*scope{}}
}

// A Part is a piece of the prefix of a scope, between dots.
type Part struct {
	label, text string
}

// Text is a fixed piece of a prefix.
func Text(s string) Part { return Part{text: s} }

// Label is a piece of a prefix that is a label for those systems that have labels.
func Label(name, value string) Part { return Part{label: name, text: value} }

type label struct{ name, value string }

// scope is shared by all who ask for the same prefix.
type scope struct {
	prefix string // with the last dot
	bare   string // without labels, with the last dot
	labels []label
	refs   int

	groups []group
	funcs  []funcMetric
	byName map[string]any // metrics made one by one
}

type group struct {
	layout []field
	base   reflect.Value
}

type funcMetric struct {
	name string
	kind kind
	f    func() float64
}

type kind uint8

const (
	kindCounter kind = iota
	kindGauge
	kindHistogram
)

type field struct {
	name  string
	index int
	kind  kind
}

// A Scope adds metrics with a common prefix. Close forgets them once everybody
// who opened the same prefix has closed it.
type Scope struct {
	store *Store
	s     *scope
	once  sync.Once
}

// Scope opens the prefix made of the parts.
func (st *Store) Scope(parts ...Part) *Scope {
	var prefix strings.Builder
	type span struct{ from, to int }
	var cut []span
	var labels []label
	for _, p := range parts {
		from := prefix.Len()
		prefix.WriteString(p.text)
		prefix.WriteByte('.')
		if p.label != "" {
			cut = append(cut, span{from, prefix.Len()})
			labels = append(labels, label{p.label, p.text})
		}
	}
	name := prefix.String()

	st.mu.Lock()
	defer st.mu.Unlock()
	if s := st.scopes[name]; s != nil {
		s.refs++
		return &Scope{store: st, s: s}
	}
	for _, r := range st.rules {
		if r.Regexp == nil {
			labels = append(labels, label{r.Name, r.Fixed})
			continue
		}
		m := r.Regexp.FindStringSubmatchIndex(name)
		if len(m) < 4 || m[2] < 0 {
			continue
		}
		value := name[m[2]:m[3]]
		if len(m) >= 6 && m[4] >= 0 {
			value = name[m[4]:m[5]]
		}
		cut = append(cut, span{m[2], m[3]})
		labels = append(labels, label{r.Name, value})
	}
	slices.SortFunc(cut, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var bare strings.Builder
	at := 0
	for _, c := range cut {
		if c.from > at {
			bare.WriteString(name[at:c.from])
		}
		at = max(at, c.to)
	}
	bare.WriteString(name[at:])
	for i := range labels {
		labels[i].name = promName(labels[i].name)
	}
	slices.SortStableFunc(labels, func(a, b label) int { return cmp.Compare(a.name, b.name) })
	labels = slices.CompactFunc(labels, func(a, b label) bool { return a.name == b.name })
	s := &scope{prefix: name, bare: bare.String(), labels: labels, refs: 1}
	st.scopes[name] = s
	return &Scope{store: st, s: s}
}

// Close gives the prefix up. Metrics may still be counted afterwards.
func (sc *Scope) Close() {
	sc.once.Do(func() {
		sc.store.mu.Lock()
		defer sc.store.mu.Unlock()
		if sc.s.refs--; sc.s.refs == 0 && sc.store.scopes[sc.s.prefix] == sc.s {
			delete(sc.store.scopes, sc.s.prefix)
		}
	})
}

var layouts sync.Map // reflect.Type to []field; a cache, never changed once filled

// Struct returns the metrics of the scope as a *T, whose Counter, Gauge and
// Histogram fields are named by their "stat" tags. Those who open the same
// prefix share one T.
func Struct[T any](sc *Scope) *T {
	sc.store.mu.Lock()
	defer sc.store.mu.Unlock()
	for _, g := range sc.s.groups {
		if p, ok := g.base.Addr().Interface().(*T); ok {
			return p
		}
	}
	p := new(T)
	v := reflect.ValueOf(p).Elem()
	sc.s.groups = append(sc.s.groups, group{layoutOf(v.Type()), v})
	return p
}

func layoutOf(t reflect.Type) []field {
	if l, ok := layouts.Load(t); ok {
		return l.([]field)
	}
	var l []field
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("stat")
		if name == "" {
			continue
		}
		switch f.Type {
		case reflect.TypeFor[Counter]():
			l = append(l, field{name, i, kindCounter})
		case reflect.TypeFor[Gauge]():
			l = append(l, field{name, i, kindGauge})
		case reflect.TypeFor[Histogram]():
			l = append(l, field{name, i, kindHistogram})
		default:
			panic(fmt.Sprintf("stats: field %s of %v is no metric", f.Name, t))
		}
	}
	layouts.Store(t, l)
	return l
}

// Counter returns the counter with the name, made if need be.
func (sc *Scope) Counter(name string) *Counter { return named[Counter](sc, name) }

// Gauge returns the gauge with the name, made if need be.
func (sc *Scope) Gauge(name string) *Gauge { return named[Gauge](sc, name) }

func named[T any](sc *Scope, name string) *T {
	sc.store.mu.Lock()
	defer sc.store.mu.Unlock()
	if sc.s.byName == nil {
		sc.s.byName = map[string]any{}
	}
	if p, ok := sc.s.byName[name].(*T); ok {
		return p
	}
	p := new(T)
	sc.s.byName[name] = p
	return p
}

// GaugeFunc adds a gauge that is worked out when it is read. The function must
// be safe for concurrent use and must not use the store.
func (sc *Scope) GaugeFunc(name string, f func() float64) {
	sc.store.mu.Lock()
	defer sc.store.mu.Unlock()
	for i := range sc.s.funcs {
		if sc.s.funcs[i].name == name {
			sc.s.funcs[i].f = f
			return
		}
	}
	sc.s.funcs = append(sc.s.funcs, funcMetric{name, kindGauge, f})
}

// A Query selects metrics. The zero Query selects all.
type Query struct {
	Filter   *regexp.Regexp // on the full name
	UsedOnly bool           // leaves out what is zero
	Kind     string         // "Counters", "Gauges", "Histograms"; empty for all
}

// A Sample is the state of one metric.
type Sample struct {
	Name      string // as Envoy has it, dots and all
	Value     float64
	Histogram bool
	Quantiles []float64 // of a histogram with anything in it, by Quantiles
	Count     uint64
	Sum       float64
	Buckets   []uint64 // cumulative, by Bounds

	bare   string
	labels []label
	kind   kind
}

// With returns the sample with one more label for those systems that have labels.
func (s Sample) With(name, value string) Sample {
	s.labels = append(s.labels[:len(s.labels):len(s.labels)], label{promName(name), value})
	return s
}

// Quantiles are those that samples of histograms tell.
var Quantiles = [...]float64{0, .25, .5, .75, .9, .95, .99, .995, .999, 1}

// Samples returns the selected metrics, sorted by name.
func (st *Store) Samples(q Query) []Sample {
	st.mu.Lock()
	var out []Sample
	add := func(s *scope, name string, k kind, value float64, h *Histogram) {
		full := s.prefix + name
		switch {
		case q.Filter != nil && !q.Filter.MatchString(full),
			q.Kind == "Counters" && k != kindCounter,
			q.Kind == "Gauges" && k != kindGauge,
			q.Kind == "Histograms" && k != kindHistogram,
			q.Kind == "TextReadouts":
			return
		}
		smp := Sample{Name: full, Value: value, bare: s.bare + name, labels: s.labels, kind: k}
		if h != nil {
			smp.Histogram = true
			b := h.p.Load()
			if b == nil {
				if q.UsedOnly {
					return
				}
				b = new(buckets)
			}
			smp.Sum = float64(b.micros.Load()) / 1000
			for i := range b.counts {
				smp.Count += b.counts[i].Load()
				smp.Buckets = append(smp.Buckets, smp.Count)
			}
			if smp.Count > 0 {
				for _, f := range Quantiles {
					smp.Quantiles = append(smp.Quantiles, b.quantile(f))
				}
			}
		} else if q.UsedOnly && value == 0 {
			return
		}
		out = append(out, smp)
	}
	var funcs []func()
	for _, s := range st.scopes {
		for _, g := range s.groups {
			for _, f := range g.layout {
				switch p := g.base.Field(f.index).Addr().Interface().(type) {
				case *Counter:
					add(s, f.name, f.kind, float64(p.Value()), nil)
				case *Gauge:
					add(s, f.name, f.kind, float64(p.Value()), nil)
				case *Histogram:
					add(s, f.name, f.kind, 0, p)
				}
			}
		}
		for name, p := range s.byName {
			switch p := p.(type) {
			case *Counter:
				add(s, name, kindCounter, float64(p.Value()), nil)
			case *Gauge:
				add(s, name, kindGauge, float64(p.Value()), nil)
			}
		}
		for _, f := range s.funcs {
			funcs = append(funcs, func() { add(s, f.name, f.kind, f.f(), nil) })
		}
	}
	st.mu.Unlock()
	for _, f := range funcs { // callbacks run without the lock
		f()
	}
	slices.SortFunc(out, func(a, b Sample) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Value returns the value of the counter or gauge with the full name, or 0.
func (st *Store) Value(name string) float64 {
	s := st.Samples(Query{Filter: regexp.MustCompile("^" + regexp.QuoteMeta(name) + "$")})
	if len(s) == 0 {
		return 0
	}
	return s[0].Value
}

// Reset sets every counter and histogram to zero.
func (st *Store) Reset() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, s := range st.scopes {
		for _, g := range s.groups {
			for _, f := range g.layout {
				switch p := g.base.Field(f.index).Addr().Interface().(type) {
				case *Counter:
					p.v.Store(0)
				case *Histogram:
					p.p.Store(nil)
				}
			}
		}
		for _, p := range s.byName {
			if c, ok := p.(*Counter); ok {
				c.v.Store(0)
			}
		}
	}
}

// WriteText writes samples one a line, as /stats shows them.
func WriteText(w io.Writer, samples []Sample) error {
	var b []byte
	for _, s := range samples {
		b = append(b[:0], s.Name...)
		b = append(b, ": "...)
		switch {
		case !s.Histogram:
			b = strconv.AppendFloat(b, s.Value, 'f', -1, 64)
		case s.Count == 0:
			b = append(b, "No recorded values"...)
		default:
			for i, f := range Quantiles {
				if i > 0 {
					b = append(b, ' ')
				}
				b = fmt.Appendf(b, "P%s(nan,%s)", short(f*100), short(s.Quantiles[i]))
			}
		}
		b = append(b, '\n')
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func short(f float64) string { return strconv.FormatFloat(math.Round(f*1000)/1000, 'f', -1, 64) }

// WritePrometheus writes samples in Prometheus' text format.
func WritePrometheus(w io.Writer, samples []Sample) error {
	slices.SortStableFunc(samples, func(a, b Sample) int { return cmp.Compare(a.bare, b.bare) })
	var b []byte
	last := ""
	for _, s := range samples {
		name := "envoy_" + promName(s.bare)
		if s.bare != last {
			last = s.bare
			b = fmt.Appendf(b, "# TYPE %s %s\n", name, [...]string{"counter", "gauge", "histogram"}[s.kind])
		}
		if !s.Histogram {
			b = append(b, name...)
			b = appendLabels(b, s.labels, "")
			b = append(b, ' ')
			b = strconv.AppendFloat(b, s.Value, 'f', -1, 64)
			b = append(b, '\n')
		} else {
			for i, n := range s.Buckets {
				le := "+Inf"
				if i < len(bounds) {
					le = strconv.FormatFloat(bounds[i], 'f', -1, 64)
				}
				b = append(b, name...)
				b = append(b, "_bucket"...)
				b = appendLabels(b, s.labels, le)
				b = append(b, ' ')
				b = strconv.AppendUint(b, n, 10)
				b = append(b, '\n')
			}
			b = append(b, name...)
			b = append(b, "_sum"...)
			b = appendLabels(b, s.labels, "")
			b = append(b, ' ')
			b = strconv.AppendFloat(b, s.Sum, 'f', -1, 64)
			b = append(b, '\n')
			b = append(b, name...)
			b = append(b, "_count"...)
			b = appendLabels(b, s.labels, "")
			b = append(b, ' ')
			b = strconv.AppendUint(b, s.Count, 10)
			b = append(b, '\n')
		}
		if len(b) > 32<<10 {
			if _, err := w.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	_, err := w.Write(b)
	return err
}

func appendLabels(b []byte, labels []label, le string) []byte {
	b = append(b, '{')
	sep := false
	one := func(name, value string) {
		if sep {
			b = append(b, ',')
		}
		sep = true
		b = append(b, name...)
		b = append(b, '=', '"')
		for _, c := range []byte(value) {
			switch c {
			case '\\', '"':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			default:
				b = append(b, c)
			}
		}
		b = append(b, '"')
	}
	for _, l := range labels {
		one(l.name, l.value)
	}
	if le != "" {
		one("le", le)
	}
	return append(b, '}')
}

// promName replaces what may not stand in the name of a Prometheus metric.
func promName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, s)
}
