package stats

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A Detail says how histograms are shown.
type Detail uint8

// The details.
const (
	Summary    Detail = iota // quantiles
	Cumulative               // buckets with all that lies below their bounds
	Disjoint                 // buckets with what lies between their bounds
)

// WriteText writes samples one a line, as /stats shows them. What came since some last time is not known and shown as
// nan.
func WriteText(w io.Writer, samples []Sample, d Detail) error {
	var b []byte
	for i := range samples {
		s := &samples[i]
		b = append(b[:0], s.Name...)
		b = append(b, ':')
		switch {
		case !s.Histogram:
			b = strconv.AppendFloat(append(b, ' '), s.Value, 'f', -1, 64)
		case s.Count == 0:
			b = append(b, " No recorded values"...)
		case d == Summary:
			for i, f := range Quantiles {
				b = fmt.Appendf(b, " P%s(nan,%s)", short(f*100), short(s.Quantiles[i]))
			}
		default:
			for i, n := range s.buckets(d) {
				b = fmt.Appendf(b, " B%s(nan,%d)", s.bound(i), n)
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

// bound returns the upper bound of bucket i.
func (s *Sample) bound(i int) string {
	if i == len(s.Bounds) {
		return "+Inf"
	}
	return strconv.FormatFloat(s.Bounds[i], 'f', -1, 64)
}

// buckets returns the counts of the buckets.
func (s *Sample) buckets(d Detail) []uint64 {
	if d != Disjoint {
		return s.Buckets
	}
	out := slices.Clone(s.Buckets)
	for i := len(out) - 1; i > 0; i-- {
		out[i] -= out[i-1]
	}
	return out
}

// JSON returns samples in the form of Envoy's /stats?format=json.
func JSON(samples []Sample, d Detail) any {
	type histogram = map[string]any
	list, histograms := []any{}, []any{}
	for i := range samples {
		s := &samples[i]
		switch {
		case !s.Histogram:
			list = append(list, map[string]any{"name": s.Name, "value": s.Value})
		case d == Summary:
			values := []any{}
			for i := range Quantiles {
				v := map[string]any{"interval": nil, "cumulative": nil}
				if s.Count > 0 {
					v["cumulative"] = s.Quantiles[i]
				}
				values = append(values, v)
			}
			histograms = append(histograms, histogram{"name": s.Name, "values": values})
		default:
			buckets := []any{}
			for i, n := range s.buckets(d) {
				b := map[string]any{"upper_bound": nil, "interval": nil, "cumulative": n}
				if i < len(s.Bounds) {
					b["upper_bound"] = s.Bounds[i]
				}
				buckets = append(buckets, b)
			}
			histograms = append(histograms, histogram{"name": s.Name, "buckets": buckets, "count": s.Count, "sum": s.Sum})
		}
	}
	switch {
	case len(histograms) == 0:
	case d == Summary:
		var percent []float64
		for _, q := range Quantiles {
			percent = append(percent, math.Round(q*100_000)/1000)
		}
		list = append(list, map[string]any{"histograms": map[string]any{"supported_quantiles": percent, "computed_quantiles": histograms}})
	default:
		list = append(list, map[string]any{"histograms": histograms})
	}
	return map[string]any{"stats": list}
}

// WritePrometheus writes samples in Prometheus' text format: histograms with their buckets, or as summaries with
// quantiles.
func WritePrometheus(w io.Writer, samples []Sample, d Detail) error {
	samples = slices.Clone(samples)
	for i := range samples {
		samples[i].bare = "envoy_" + promName(samples[i].bare)
	}
	slices.SortStableFunc(samples, func(a, b Sample) int { return cmp.Compare(a.bare, b.bare) })
	var b []byte
	for len(samples) > 0 {
		n := 1
		for n < len(samples) && samples[n].bare == samples[0].bare {
			n++
		}
		b = appendFamily(b, samples[:n], d)
		samples = samples[n:]
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

// appendFamily adds the samples of one name. Of those that Prometheus could not tell apart, and of those that are of
// another kind than the first, it takes none: one of them would make it refuse everything.
func appendFamily(b []byte, samples []Sample, d Detail) []byte {
	first := &samples[0]
	kind := [...]string{"counter", "gauge", "histogram"}[first.kind]
	if first.Histogram && d == Summary {
		kind = "summary"
	}
	b = fmt.Appendf(b, "# TYPE %s %s\n", first.bare, kind)
	seen := map[string]bool{}
	var labels []byte
	for i := range samples {
		s := &samples[i]
		labels = appendLabels(labels[:0], s.labels, "", "")
		if s.kind != first.kind || len(samples) > 1 && seen[string(labels)] {
			continue
		}
		if len(samples) > 1 {
			seen[string(labels)] = true
		}
		line := func(suffix, extra, value, number string) {
			b = append(append(b, s.bare...), suffix...)
			if extra == "" {
				b = append(b, labels...)
			} else {
				b = appendLabels(b, s.labels, extra, value)
			}
			b = append(append(append(b, ' '), number...), '\n')
		}
		switch {
		case !s.Histogram:
			line("", "", "", strconv.FormatFloat(s.Value, 'f', -1, 64))
			continue
		case d == Summary:
			for i, q := range Quantiles {
				v := "NaN"
				if s.Count > 0 {
					v = strconv.FormatFloat(s.Quantiles[i], 'f', -1, 64)
				}
				line("", "quantile", strconv.FormatFloat(q, 'f', -1, 64), v)
			}
		default:
			for i, n := range s.Buckets {
				line("_bucket", "le", s.bound(i), strconv.FormatUint(n, 10))
			}
		}
		line("_sum", "", "", strconv.FormatFloat(s.Sum, 'f', -1, 64))
		line("_count", "", "", strconv.FormatUint(s.Count, 10))
	}
	return b
}

// appendLabels adds labels in their braces, with one more unless its name is empty.
func appendLabels(b []byte, labels []label, name, value string) []byte {
	b = append(b, '{')
	for i, l := range labels {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendLabel(b, l.name, l.value)
	}
	if name != "" {
		if len(labels) > 0 {
			b = append(b, ',')
		}
		b = appendLabel(b, name, value)
	}
	return append(b, '}')
}

func appendLabel(b []byte, name, value string) []byte {
	b = append(append(b, name...), '=', '"')
	for _, c := range bytes.ToValidUTF8([]byte(value), []byte("\uFFFD")) {
		switch c {
		case '\\', '"':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// promName replaces what may not stand in the name of a Prometheus metric.
func promName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, s)
	if s == "" || s[0] >= '0' && s[0] <= '9' {
		return "_" + s
	}
	return s
}
