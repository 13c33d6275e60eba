package decode

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

func TestMetricsOfABootstrap(t *testing.T) {
	b, err := New(FromSystem()).Bootstrap("x.yaml", []byte(`
stats_flush_interval: 2s
stats_config:
  stats_matcher: {inclusion_list: {patterns: [{prefix: cluster.}, {exact: server.live}]}}
  histogram_bucket_settings:
  - {match: {suffix: upstream_rq_time}, buckets: [20, 1]}
stats_sinks:
- name: envoy.stat_sinks.statsd
  typed_config: {"@type": type.googleapis.com/envoy.config.metrics.v3.StatsdSink, address: {socket_address: {address: 127.0.0.1, port_value: 8125}}, prefix: edge}
- name: envoy.stat_sinks.dog_statsd
  typed_config: {"@type": type.googleapis.com/envoy.config.metrics.v3.DogStatsdSink, address: {pipe: {path: /run/dog}}, max_bytes_per_datagram: 1400}
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"cluster.a.x": true, "server.live": true, "server.liver": false, "http.cluster.": false} {
		if b.Keep(name) != want {
			t.Errorf("%s is kept: %v, want %v", name, !want, want)
		}
	}
	if len(b.Buckets) != 1 || !b.Buckets[0].Match("cluster.a.upstream_rq_time") || b.Buckets[0].Match("x") || !cmp.Equal(b.Buckets[0].Bounds, []float64{1, 20}) {
		t.Errorf("buckets %+v", b.Buckets)
	}
	want := []StatsD{
		{Address: model.Address{Host: "127.0.0.1", Port: 8125}, StatsDConfig: stats.StatsDConfig{Prefix: "edge", Interval: 2 * time.Second}},
		{Address: model.Address{Path: "/run/dog"}, StatsDConfig: stats.StatsDConfig{Interval: 2 * time.Second, Tags: true, MaxDatagram: 1400}},
	}
	if d := cmp.Diff(want, b.Sinks); d != "" {
		t.Error(d)
	}
}

func TestMetricsThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`stats_sinks: [{name: s, typed_config: {"@type": type.googleapis.com/envoy.config.metrics.v3.StatsdSink, tcp_cluster_name: x}}]`: "tcp_cluster_name",
		`stats_sinks: [{name: s, typed_config: {"@type": type.googleapis.com/envoy.config.metrics.v3.HystrixSink}}]`:                     "not supported",
		`stats_config: {histogram_bucket_settings: [{match: {exact: a}, buckets: [-1]}]}`:                                                "Buckets[0]",
		`stats_config: {stats_matcher: {exclusion_list: {patterns: [{safe_regex: {regex: "("}}]}}}`:                                      "missing closing )",
	} {
		if _, err := New(FromSystem()).Bootstrap("x.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want it to say %q", text, err, want)
		}
	}
}
