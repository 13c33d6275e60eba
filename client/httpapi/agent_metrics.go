package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

var errNoMetrics = wireerr.Errorf(http.StatusNotImplemented, "this agent keeps no metrics")

// metricsSummary is the form of spec/registry.md section 7.3.
type metricsSummary struct {
	Timestamp string
	Gauges    []metrics.GaugeValue
	Points    []metrics.PointValue
	Counters  []metrics.SampledValue
	Samples   []metrics.SampledValue
}

func (s *Server) summarize(v any) any {
	m, ok := v.(metrics.MetricsSummary)
	if !ok {
		return v
	}
	out := metricsSummary{m.Timestamp, m.Gauges, m.Points, m.Counters, m.Samples}
	for _, g := range m.PrecisionGauges {
		out.Gauges = append(out.Gauges, metrics.GaugeValue{Name: g.Name, Value: float32(g.Value), DisplayLabels: g.DisplayLabels})
	}
	if out.Gauges == nil {
		out.Gauges = []metrics.GaugeValue{}
	}
	if out.Points == nil {
		out.Points = []metrics.PointValue{}
	}
	if out.Counters == nil {
		out.Counters = []metrics.SampledValue{}
	}
	if out.Samples == nil {
		out.Samples = []metrics.SampledValue{}
	}
	return &out
}

// wantsPrometheus reports whether a request asks for the text form.
func wantsPrometheus(w http.ResponseWriter, r *http.Request) bool {
	if query(w).get("format") == "prometheus" {
		return true
	}
	for part := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		kind, rest, _ := strings.Cut(part, ";")
		first, _, _ := strings.Cut(rest, ";")
		switch strings.TrimSpace(kind) {
		case "application/openmetrics-text":
			return true
		case "text/plain":
			if strings.TrimSpace(first) == "version=0.4.0" {
				return true
			}
		}
	}
	return false
}

func (s *Server) agentMetrics(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.ownAgent(w, r, acl.Read)
	if err != nil {
		return refused(err)
	}
	if wantsPrometheus(w, r) {
		if a.Prometheus == nil {
			w.Header().Set("X-Consul-Reason", "Prometheus is not enabled since its retention time is not positive")
			return done(p, nil)
		}
		plain := r.Clone(r.Context())
		plain.Header.Del("Accept") // one text form is offered
		a.Prometheus.ServeHTTP(w, plain)
		return done(p, nil)
	}
	if a.Metrics == nil {
		return refused(errNoMetrics)
	}
	v, err := a.Metrics.DisplayMetrics(w, r)
	return s.summarize(v), p, err
}

// metricsEncoder sends each summary at once.
type metricsEncoder struct {
	s     *Server
	json  *json.Encoder
	flush func()
}

// Encode sends one summary.
func (e metricsEncoder) Encode(v any) error {
	defer e.flush()
	return e.json.Encode(e.s.summarize(v))
}

func (s *Server) agentMetricsStream(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.ownAgent(w, r, acl.Read)
	if err != nil {
		return refused(err)
	}
	if a.Metrics == nil {
		return refused(errNoMetrics)
	}
	w.Header()["Content-Type"] = typeJSON
	w.WriteHeader(http.StatusOK)
	flush := func() { http.NewResponseController(w).Flush() }
	flush()
	ctx, stop := s.whileAllowed(w, r, acl.Read)
	defer stop()
	a.Metrics.Stream(ctx, metricsEncoder{s, json.NewEncoder(w), flush})
	return done(p, nil)
}

const (
	monitorFlush = 200 * time.Millisecond
	monitorLines = 512 // kept for a client that reads slowly
)

// A lineQueue takes log lines without ever waiting: those a client is too slow for are dropped and counted.
type lineQueue struct {
	lines   chan []byte
	dropped atomic.Int64
}

// Write takes one line.
func (q *lineQueue) Write(p []byte) (int, error) {
	select {
	case q.lines <- append([]byte(nil), p...):
	default:
		q.dropped.Add(1)
	}
	return len(p), nil
}

func (s *Server) agentMonitor(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.ownAgent(w, r, acl.Read)
	if err != nil {
		return refused(err)
	}
	q := query(w)
	name := q.get("loglevel")
	if name == "" {
		name = "INFO"
	}
	level := hclog.LevelFromString(name)
	if strings.EqualFold(name, "err") {
		level = hclog.Error
	}
	if level == hclog.NoLevel || level == hclog.Off {
		return refused(wireerr.BadRequest("Unknown log level: %s", name))
	}
	if a.Logs == nil {
		return refused(wireerr.Errorf(http.StatusNotImplemented, "this agent's log cannot be followed"))
	}
	lines := &lineQueue{lines: make(chan []byte, monitorLines)}
	sink := hclog.NewSinkAdapter(&hclog.LoggerOptions{Level: level, JSONFormat: q.has("logjson"), Output: lines})
	a.Logs.RegisterSink(sink)
	defer a.Logs.DeregisterSink(sink)
	s.monitors.Add(1)
	defer s.monitors.Add(-1)
	w.Header()["Content-Type"] = typeText
	w.WriteHeader(http.StatusOK)
	ctx, stop := s.whileAllowed(w, r, acl.Read)
	defer stop()
	lines.copyTo(ctx, w)
	return done(p, nil)
}

// copyTo sends lines until the client has gone, flushed a few times a second.
func (q *lineQueue) copyTo(ctx context.Context, w http.ResponseWriter) {
	ctl := http.NewResponseController(w)
	ctl.Flush()
	tick := time.NewTicker(monitorFlush)
	defer tick.Stop()
	pending := false
	for {
		select {
		case <-ctx.Done():
			return
		case line := <-q.lines:
			if _, err := w.Write(line); err != nil {
				return
			}
			pending = true
		case <-tick.C:
			if pending {
				if ctl.Flush() != nil {
					return
				}
				pending = false
			}
		}
	}
}
