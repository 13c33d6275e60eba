// Package stats counts what the proxy does, under the names that Envoy's
// dashboards use. Counting is one atomic operation; names, tags and sorting
// cost something only when somebody reads.
package stats

import (
	"cmp"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// A Store holds every metric of a proxy.
type Store struct {
	rules   []TagRule
	keep    func(name string) bool // nil shows all
	buckets []BucketRule

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

// Keep shows only metrics whose full names f wants. It is called before anything is counted.
func (st *Store) Keep(f func(name string) bool) { st.keep = f }

// A BucketRule gives the histograms whose full names it matches the upper bounds of their buckets.
type BucketRule struct {
	Match  func(name string) bool
	Bounds []float64 // rising, in milliseconds
}

// Buckets sets rules for histograms, of which the first that matches counts. It is called before anything is counted.
func (st *Store) Buckets(rules []BucketRule) { st.buckets = rules }

// boundsOf returns the bounds of a histogram; nil for the default.
func (st *Store) boundsOf(name string) *bounds {
	for i := range st.buckets {
		if r := &st.buckets[i]; r.Match(name) {
			return newBounds(r.Bounds)
		}
	}
	return nil
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
	g := group{layoutOf(v.Type()), v}
	if len(sc.store.buckets) > 0 {
		for _, f := range g.layout {
			if h, ok := v.Field(f.index).Addr().Interface().(*Histogram); ok {
				h.bounds = sc.store.boundsOf(sc.s.prefix + f.name)
			}
		}
	}
	sc.s.groups = append(sc.s.groups, g)
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
	Bounds    []float64 // of a histogram's buckets, in milliseconds
	Buckets   []uint64  // cumulative; one more than Bounds, for all that is above

	bare   string
	labels []label
	kind   kind
	fine   *buckets // of a histogram
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
			st.keep != nil && !st.keep(full),
			q.Kind == "Counters" && k != kindCounter,
			q.Kind == "Gauges" && k != kindGauge,
			q.Kind == "Histograms" && k != kindHistogram,
			q.Kind == "TextReadouts":
			return
		}
		smp := Sample{Name: full, Value: value, labels: s.labels, kind: k}
		smp.bare, smp.labels = cutCode(s.bare+name, s.labels)
		if h != nil {
			smp.Histogram = true
			b := h.p.Load()
			if b == nil {
				if q.UsedOnly {
					return
				}
				b = (&Histogram{bounds: h.bounds}).first()
			}
			smp.Bounds, smp.fine = b.bounds.ms, b
			smp.Sum = float64(b.micros.Load()) / 1000
			for i := range b.counts {
				smp.Count += b.counts[i].Load()
				smp.Buckets = append(smp.Buckets, smp.Count)
			}
			if smp.Count > 0 {
				smp.Quantiles = b.quantiles(Quantiles[:]...)
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

// cutCode makes a label of the status that stands at the end of a name, as "upstream_rq_200" and "upstream_rq_2xx" have
// it.
func cutCode(name string, labels []label) (string, []label) {
	digit := func(i int) bool { return name[i] >= '0' && name[i] <= '9' }
	n := len(name)
	if n < 7 || name[n-7:n-3] != "_rq_" || !digit(n-3) {
		return name, labels
	}
	labels = slices.Clip(labels)
	switch {
	case digit(n-2) && digit(n-1):
		return name[:n-4], append(labels, label{"envoy_response_code", name[n-3:]})
	case name[n-2:] == "xx":
		return name[:n-3] + "xx", append(labels, label{"envoy_response_code_class", name[n-3 : n-2]})
	}
	return name, labels
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
