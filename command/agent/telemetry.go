package agent

import (
	"net/http"
	"net/http/pprof"
	"os"
	"time"

	"github.com/hashicorp/go-metrics"
	metricsprom "github.com/hashicorp/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// telemetry keeps the process's metrics.
type telemetry struct {
	inmem      *metrics.InmemSink
	prometheus http.Handler // nil when that form is off
}

// Intervals of the metrics kept in memory.
const (
	metricsInterval = 10 * time.Second
	metricsRetained = time.Minute
)

func newTelemetry(s *config.Settings) (*telemetry, error) {
	t := &telemetry{inmem: metrics.NewInmemSink(metricsInterval, metricsRetained)}
	conf := metrics.DefaultConfig(s.Telemetry.Prefix)
	conf.EnableHostname = !s.Telemetry.DisableHostname
	conf.FilterDefault = s.Telemetry.FilterDefault
	conf.AllowedPrefixes, conf.BlockedPrefixes = s.Telemetry.Allowed, s.Telemetry.Blocked
	if host, err := os.Hostname(); err == nil {
		conf.HostName = host
	}
	sinks := metrics.FanoutSink{t.inmem}
	if s.Telemetry.PrometheusRetention > 0 {
		registry := prometheus.NewRegistry()
		sink, err := metricsprom.NewPrometheusSinkFrom(metricsprom.PrometheusOpts{Expiration: s.Telemetry.PrometheusRetention, Registerer: registry})
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, sink)
		t.prometheus = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	}
	if _, err := metrics.NewGlobal(conf, sinks); err != nil {
		return nil, err
	}
	return t, nil
}

// profiles answers below /debug/pprof/ with profiles of this process: for enable_debug.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
