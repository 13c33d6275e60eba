package telemetry

import (
	"bytes"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/sarnmesh/sarn/internal/measure"
)

// Prometheus answers with all series in Prometheus's text form, version 0.0.4. Counts and sums are since the start, the
// quantiles of the last ten to twenty seconds.
func (s *Store) Prometheus() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		measure.Report()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Write(s.text(time.Now()))
	})
}

// all returns every series that has not been forgotten, with what was measured of late.
func (s *Store) all(now time.Time) []point {
	s.mu.Lock()
	s.sweep(now)
	list := make([]point, 0, len(s.series))
	recent := beginning(now) - int64(Interval)
	for _, x := range s.series {
		p := point{kind: x.kind, name: x.name, labels: x.labels, born: x.born, value: x.value, count: x.count, sum: x.sum}
		if x.kind == summary {
			for _, i := range []*interval{&x.now, &x.last} {
				if i.at >= recent {
					p.batch.Values = append(p.batch.Values, i.batch.Values...)
				}
			}
		}
		list = append(list, p)
	}
	s.mu.Unlock()
	sortPoints(list)
	return list
}

// text renders the series.
func (s *Store) text(now time.Time) []byte {
	list := s.all(now)
	// One name may come from several, and has one kind.
	names := make([]string, len(list))
	order := make([]int, len(list))
	for i := range list {
		names[i], order[i] = string(appendName(nil, list[i].name, true)), i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		if names[a] != names[b] {
			return bytes.Compare([]byte(names[a]), []byte(names[b]))
		}
		return int(list[a].kind) - int(list[b].kind)
	})
	var b []byte
	last := -1
	for _, i := range order {
		p, name := &list[i], names[i]
		if last < 0 || names[last] != name {
			b = append(append(append(append(append(b, "# HELP "...), name...), ' '), name...), '\n')
			b = append(append(append(append(append(b, "# TYPE "...), name...), ' '), p.kind.String()...), '\n')
			last = i
		} else if list[last].kind != p.kind {
			continue
		}
		if p.kind != summary {
			b = appendLine(b, name, "", p, "", p.value)
			continue
		}
		slices.Sort(p.batch.Values)
		for _, q := range quantiles {
			b = appendLine(b, name, "", p, q.text, quantile(p.batch.Values, q.of))
		}
		b = appendLine(b, name, "_sum", p, "", p.sum)
		b = appendLine(b, name, "_count", p, "", float64(p.count))
	}
	return b
}

var quantiles = []struct {
	of   float64
	text string
}{{0.5, "0.5"}, {0.9, "0.9"}, {0.99, "0.99"}}

// quantile returns the value below which a share of the sorted values is; not a number for no values.
func quantile(sorted []float32, of float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return float64(sorted[min(int(math.Ceil(of*float64(len(sorted))))-1, len(sorted)-1)])
}

func appendLine(b []byte, name, suffix string, p *point, quantile string, v float64) []byte {
	b = append(append(b, name...), suffix...)
	if len(p.labels) > 0 || quantile != "" {
		b = append(b, '{')
		for _, l := range p.labels {
			b = appendName(b, l.Name, false)
			b = appendQuoted(append(b, '='), l.Value)
			b = append(b, ',')
		}
		if quantile != "" {
			b = appendQuoted(append(b, "quantile="...), quantile)
		} else {
			b = b[:len(b)-1]
		}
		b = append(b, '}')
	}
	b = append(b, ' ')
	switch {
	case math.IsNaN(v):
		b = append(b, "NaN"...)
	case math.IsInf(v, 0):
		b = strconv.AppendFloat(b, v, 'f', -1, 64) // +Inf, -Inf
	default:
		b = strconv.AppendFloat(b, v, 'g', -1, 64)
	}
	return append(b, '\n')
}

// appendName writes a name as Prometheus takes it: of a metric, where a colon is allowed, or of a label.
func appendName(b []byte, name string, metric bool) []byte {
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', metric && c == ':':
		case c >= '0' && c <= '9':
			if i == 0 {
				b = append(b, '_')
			}
		default:
			c = '_'
		}
		b = append(b, c)
	}
	return b
}

// appendQuoted writes the value of a label.
func appendQuoted(b []byte, v string) []byte {
	b = append(b, '"')
	for _, r := range v { // what is no UTF-8 becomes U+FFFD
		switch r {
		case '\\', '"':
			b = append(b, '\\', byte(r))
		case '\n':
			b = append(b, '\\', 'n')
		default:
			b = append(b, string(r)...)
		}
	}
	return append(b, '"')
}
