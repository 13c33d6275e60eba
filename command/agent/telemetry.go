package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/command/agent/telemetry"
	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/version"
)

// measures keeps the process's metrics.
type measures struct {
	store      *telemetry.Store
	pusher     *telemetry.Pusher
	global     *metrics.Metrics
	batches    *funnel
	prometheus http.Handler // nil when that form is off
	host       string       // in the names of gauges, empty for none
}

const (
	runtimeEvery = 5 * time.Second // between two looks at the process
	batchEvery   = time.Second     // between two reports of what is summed up
	hostEvery    = telemetry.Interval
	resolveLimit = 10 * time.Second // of the addresses that must be good at once
)

// A funnel passes batches through the names and filters of go-metrics, which knows only samples.
type funnel struct {
	metrics.BlackholeSink
	store *telemetry.Store

	mu    sync.Mutex
	names *metrics.Metrics
	batch measure.Batch // the one on its way
}

// AddSampleWithLabels gives the batch on its way to the store, if no filter is against it.
func (f *funnel) AddSampleWithLabels(key []string, _ float32, labels []metrics.Label) {
	f.store.AddBatch(key, f.batch, labels)
}

func (f *funnel) take(key []string, labels []metrics.Label, b measure.Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batch = b
	f.names.AddSampleWithLabels(key, 0, labels)
}

// newMeasures has the metrics of the process kept from now on. dial reaches those they are sent to.
func newMeasures(s *config.Settings, dial telemetry.Dial, log hclog.Logger) (*measures, error) {
	targets, err := metricTargets(s)
	if err != nil {
		return nil, err
	}
	if !s.Telemetry.RetryFailedConnection {
		if err := reachAll(targets, dial); err != nil {
			return nil, err
		}
	}
	m := &measures{store: telemetry.NewStore(s.Telemetry.PrometheusRetention)}
	conf := metrics.DefaultConfig(s.Telemetry.Prefix)
	conf.EnableHostname = !s.Telemetry.DisableHostname
	conf.EnableRuntimeMetrics = false // run sees to them
	conf.FilterDefault = s.Telemetry.FilterDefault
	conf.AllowedPrefixes, conf.BlockedPrefixes = s.Telemetry.Allowed, s.Telemetry.Blocked
	if host, err := os.Hostname(); err == nil {
		conf.HostName = host
	}
	if conf.EnableHostname {
		m.host = conf.HostName
	}
	known(m.store, conf.ServiceName, m.host)
	if s.Telemetry.PrometheusRetention > 0 {
		m.prometheus = m.store.Prometheus()
	}
	m.batches = &funnel{store: m.store}
	if m.batches.names, err = metrics.New(conf, m.batches); err != nil {
		return nil, err
	}
	if m.global, err = metrics.NewGlobal(conf, m.store); err != nil {
		return nil, err
	}
	measure.To(m.batches.take)
	m.pusher = telemetry.NewPusher(m.store, dial, log)
	m.pusher.Set(targets)
	return m, nil
}

// set says anew which metrics are kept and where they are sent.
func (m *measures) set(s *config.Settings) error {
	targets, err := metricTargets(s)
	if err != nil {
		return err
	}
	m.global.UpdateFilter(s.Telemetry.Allowed, s.Telemetry.Blocked)
	m.batches.names.UpdateFilter(s.Telemetry.Allowed, s.Telemetry.Blocked)
	m.pusher.Set(targets)
	return nil
}

// metricTargets lists where a configuration has metrics sent.
func metricTargets(s *config.Settings) ([]telemetry.Target, error) {
	t := &s.Telemetry
	var targets []telemetry.Target
	var errs []error
	add := func(key string, to telemetry.Target) {
		if to.Address == "" {
			return
		}
		if err := to.Check(); err != nil {
			errs = append(errs, fmt.Errorf("telemetry.%s: %w", key, err))
		}
		targets = append(targets, to)
	}
	add("statsd_address", telemetry.Target{Protocol: telemetry.Statsd, Address: t.StatsdAddr})
	add("statsite_address", telemetry.Target{Protocol: telemetry.Statsite, Address: t.StatsiteAddr})
	host, _ := os.Hostname()
	add("dogstatsd_addr", telemetry.Target{Protocol: telemetry.Dogstatsd, Address: t.DogstatsdAddr, Tags: t.DogstatsdTags, Host: host})
	if t.OTLPEndpoint != "" && t.OTLPMetrics {
		collector, err := otlpCollector(s)
		if err != nil {
			errs = append(errs, err)
		} else {
			add("otlp.endpoint", telemetry.Target{Protocol: telemetry.OTLPMetric, Address: t.OTLPEndpoint, OTLP: collector})
		}
	}
	return targets, errors.Join(errs...)
}

// otlpCollector is the collector of a configuration.
func otlpCollector(s *config.Settings) (*telemetry.OTLP, error) {
	t := &s.Telemetry
	host, _ := os.Hostname()
	o := &telemetry.OTLP{Endpoint: t.OTLPEndpoint, Headers: t.OTLPHeaders, Resource: map[string]string{
		"service.name": "sarn", "service.version": version.Number(), "service.instance.id": s.Node.Name, "host.name": host,
		"sarn.datacenter": s.Node.Datacenter, "sarn.server": fmt.Sprint(s.Server),
	}}
	if t.OTLPCAFile != "" {
		pem, err := os.ReadFile(t.OTLPCAFile)
		if err != nil {
			return nil, fmt.Errorf("telemetry.otlp.ca_file: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("telemetry.otlp.ca_file: no certificate in %s", t.OTLPCAFile)
		}
		o.CA = pem
	}
	return o, nil
}

// newTraces records requests as a configuration says. dial reaches the collector.
func newTraces(s *config.Settings, dial telemetry.Dial, log hclog.Logger) (*telemetry.Traces, error) {
	collector, err := traceCollector(s)
	if err != nil {
		return nil, err
	}
	if collector != nil && !s.Telemetry.RetryFailedConnection {
		ctx, cancel := context.WithTimeout(context.Background(), resolveLimit)
		defer cancel()
		if err := (&telemetry.Target{Protocol: telemetry.OTLPMetric, OTLP: collector}).Reach(ctx, dial); err != nil {
			return nil, fmt.Errorf("traces cannot be sent: %w", err)
		}
	}
	t := telemetry.NewTraces(dial, log)
	t.Set(collector, s.Telemetry.OTLPTraceSampling)
	return t, nil
}

// traceCollector is where a configuration has spans sent, nil for nowhere.
func traceCollector(s *config.Settings) (*telemetry.OTLP, error) {
	if s.Telemetry.OTLPEndpoint == "" || !s.Telemetry.OTLPTraces {
		return nil, nil
	}
	return otlpCollector(s)
}

// reachAll reports targets whose addresses cannot be reached: for retry_failed_connection = false.
func reachAll(targets []telemetry.Target, dial telemetry.Dial) error {
	ctx, cancel := context.WithTimeout(context.Background(), resolveLimit)
	defer cancel()
	var errs []error
	for i := range targets {
		if err := targets[i].Reach(ctx, dial); err != nil {
			errs = append(errs, fmt.Errorf("metrics cannot be sent by %s: %w", targets[i].Protocol, err))
		}
	}
	return errors.Join(errs...)
}

// run measures the process, has gauges set what else there is to measure, and sends metrics where they are to go, until ctx ends.
func (m *measures) run(ctx context.Context, enableHost bool, disk string, gauges func()) error {
	pushed := make(chan error, 1)
	go func() { pushed <- m.pusher.Run(ctx) }()
	process, batch := time.NewTicker(runtimeEvery), time.NewTicker(batchEvery)
	defer process.Stop()
	defer batch.Stop()
	var host telemetry.Host
	var looked time.Time
	look := func() {
		m.global.EmitRuntimeStats()
		metrics.SetGaugeWithLabels([]string{"version"}, 1, []metrics.Label{
			{Name: "version", Value: version.Number()}, {Name: "pre_release", Value: version.Prerelease()},
		})
		gauges()
		if enableHost && time.Since(looked) >= hostEvery-runtimeEvery/2 {
			looked = time.Now()
			host.Report(disk)
		}
	}
	look()
	for {
		select {
		case <-ctx.Done():
			return <-pushed
		case <-process.C:
			look()
		case <-batch.C:
			measure.Report()
		}
	}
}

// tell sets the gauges of the agent itself: agent.tls.cert.expiry, the seconds until the certificate of its calls to servers
// ends, and leaf-certs.entries_count, how many certificates of services it keeps.
func (a *Agent) tell() {
	if k := a.rpcTLS.now.Load(); k != nil && k.cert != nil && k.cert.Leaf != nil {
		metrics.SetGauge([]string{"agent", "tls", "cert", "expiry"}, float32(time.Until(k.cert.Leaf.NotAfter).Seconds()))
	} else if a.rpcTLS.auto != nil {
		if given := a.rpcTLS.auto(); given != nil && given.Certificate() != nil && given.Certificate().Leaf != nil {
			metrics.SetGauge([]string{"agent", "tls", "cert", "expiry"}, float32(time.Until(given.Certificate().Leaf.NotAfter).Seconds()))
		}
	}
	if a.leaves != nil {
		n, _ := a.leaves.Count("")
		metrics.SetGauge([]string{"leaf-certs", "entries_count"}, float32(n))
	}
}

// dialOut opens connections to those that metrics and traces are sent to.
func dialOut(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	return d.DialContext(ctx, network, address)
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
