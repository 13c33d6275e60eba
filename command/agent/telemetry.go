package agent

import (
	"context"
	"net/http"
	"net/http/pprof"
	"os"
	"time"

	"github.com/hashicorp/go-metrics"
	metricsprom "github.com/hashicorp/go-metrics/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/version"
)

// telemetry keeps the process's metrics.
type telemetry struct {
	inmem      *metrics.InmemSink
	global     *metrics.Metrics
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
		opts := metricsprom.PrometheusOpts{Expiration: s.Telemetry.PrometheusRetention, Registerer: registry}
		host := conf.HostName
		if !conf.EnableHostname {
			host = ""
		}
		known(&opts, conf.ServiceName, host)
		sink, err := metricsprom.NewPrometheusSinkFrom(opts)
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, sink)
		t.prometheus = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	}
	var err error
	t.global, err = metrics.NewGlobal(conf, sinks)
	return t, err
}

// filter says anew which metrics are kept.
func (t *telemetry) filter(s *config.Settings) {
	t.global.UpdateFilter(s.Telemetry.Allowed, s.Telemetry.Blocked)
}

// run tells the version again and again, so that it does not expire, until ctx ends.
func (t *telemetry) run(ctx context.Context) error {
	tick := time.NewTicker(metricsInterval)
	defer tick.Stop()
	for {
		metrics.SetGaugeWithLabels([]string{"version"}, 1, []metrics.Label{
			{Name: "version", Value: version.Number()}, {Name: "pre_release", Value: version.Prerelease()},
		})
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
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
