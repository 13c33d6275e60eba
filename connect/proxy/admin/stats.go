package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"regexp"

	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// A statsQuery says what of the metrics to show, and how.
type statsQuery struct {
	stats.Query
	format string // "text", "json", "html" or "prometheus"
	detail stats.Detail
}

func parseStatsQuery(r *http.Request) (*statsQuery, error) {
	v := r.URL.Query()
	q := &statsQuery{Query: stats.Query{UsedOnly: v.Has("usedonly"), Kind: v.Get("type")}, format: v.Get("format")}
	switch q.Kind {
	case "All":
		q.Kind = ""
	case "", "Counters", "Gauges", "Histograms", "TextReadouts":
	default:
		return nil, fmt.Errorf("invalid &type= param %q, use one of All, Counters, Gauges, Histograms, TextReadouts", q.Kind)
	}
	switch q.format {
	case "":
		q.format = "text"
	case "active":
		q.format = "html"
	case "text", "json", "html", "prometheus":
	default:
		return nil, fmt.Errorf("usage: /stats?format=(html|active|json|prometheus|text)")
	}
	switch h := v.Get("histogram_buckets"); h {
	case "":
		if q.format == "prometheus" {
			q.detail = stats.Cumulative
		}
	case "none", "summary":
	case "cumulative":
		q.detail = stats.Cumulative
	case "disjoint":
		q.detail = stats.Disjoint
	default:
		return nil, fmt.Errorf("usage: /stats?histogram_buckets=(cumulative|disjoint|none|summary)")
	}
	if f := v.Get("filter"); f != "" {
		if len(f) > maxPattern {
			return nil, fmt.Errorf("Invalid regex: longer than %d bytes", maxPattern) //nolint:staticcheck // shown as it is
		}
		re, err := regexp.Compile(f)
		if err != nil {
			return nil, fmt.Errorf("Invalid regex: %w", err) //nolint:staticcheck // shown as it is
		}
		q.Filter = re
	}
	return q, nil
}

// maxPattern bounds the patterns that a query may have.
const maxPattern = 4 << 10

// asPrometheus returns the request as one for Prometheus' format.
func asPrometheus(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	v := r.URL.Query()
	v.Set("format", "prometheus")
	r.URL.RawQuery = v.Encode()
	return r
}

// serveStats answers with what render makes of the query.
func serveStats(w http.ResponseWriter, r *http.Request, render func(*statsQuery, *bytes.Buffer) error) {
	q, err := parseStatsQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var b bytes.Buffer
	if err := render(q, &b); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	switch q.format {
	case "prometheus":
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	case "json":
		w.Header().Set("Content-Type", "application/json")
	case "html":
		w.Header().Set("Content-Type", "text/html; charset=UTF-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		fmt.Fprintf(w, "<!doctype html><title>Stats</title><h1>Stats</h1><pre>%s</pre>", template.HTMLEscapeString(b.String()))
		return
	default:
		text(w)
	}
	w.Write(b.Bytes())
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request) {
	serveStats(w, r, func(q *statsQuery, b *bytes.Buffer) error {
		samples := s.p.Stats().Samples(q.Query)
		switch q.format {
		case "prometheus":
			return stats.WritePrometheus(b, samples, q.detail)
		case "json":
			return json.NewEncoder(b).Encode(stats.JSON(samples, q.detail))
		}
		return stats.WriteText(b, samples, q.detail)
	})
}

func (s *Server) prometheus(w http.ResponseWriter, r *http.Request) { s.stats(w, asPrometheus(r)) }
