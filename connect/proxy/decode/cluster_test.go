package decode_test

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

const eds = `"type":"EDS","eds_cluster_config":{"eds_config":{"ads":{}}}`

func cluster(t *testing.T, rest string) *model.Cluster {
	t.Helper()
	c, err := decode.New(decode.Options{}).Cluster(pack(t, new(clusterv3.Cluster), clusterJSON(eds+rest)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

func TestBreakersAndBudgets(t *testing.T) {
	c := cluster(t, `,"circuit_breakers":{"thresholds":[
		{"max_pending_requests":2,"retry_budget":{"budget_percent":{"value":25}},"track_remaining":true},
		{"priority":"HIGH","max_connections":5,"max_requests":6,"max_retries":7}],
		"per_host_thresholds":[{"max_connections":9}]}`)
	equal(t, "default", c.Breakers[0], model.Breaker{MaxConnections: 1024, MaxPending: 2, MaxRequests: 1024, MaxRetries: 3, TrackRemaining: true, MaxHostConnections: 9,
		Budget: &model.RetryBudget{Percent: 25, Min: 3}})
	equal(t, "high", c.Breakers[1], model.Breaker{MaxConnections: 5, MaxPending: 1024, MaxRequests: 6, MaxRetries: 7})
}

func TestOutlierDefaults(t *testing.T) {
	equal(t, "outlier detection", *cluster(t, `,"outlier_detection":{}`).Outlier, model.Outlier{
		Consecutive5xx: 5, EnforceConsecutive5xx: 100, ConsecutiveGateway: 5, ConsecutiveLocal: 5, EnforceConsecutiveLocal: 100,
		Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjection: 300 * time.Second, MaxEjectionPercent: 10,
		SuccessRate:       model.OutlierRate{MinHosts: 5, MinRequests: 100, Factor: 1.9, Enforce: 100, EnforceLocal: 100},
		FailurePercentage: model.OutlierRate{MinHosts: 5, MinRequests: 50, Factor: 85},
	})
}

// options is a cluster with typed HTTP options.
func options(o string) string {
	return `,"typed_extension_protocol_options":{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{"@type":"type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",` + o + `}}`
}

func TestHTTPProtocol(t *testing.T) {
	tls := `,"transport_socket":{"name":"tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}}`
	for _, tt := range []struct {
		name, json string
		want       model.UpstreamProtocol
	}{
		{"default", ``, model.UpstreamHTTP1},
		{"old HTTP/2", `,"http2_protocol_options":{}`, model.UpstreamHTTP2},
		{"old as the client", `,"protocol_selection":"USE_DOWNSTREAM_PROTOCOL"`, model.UpstreamAsClient},
		{"explicit HTTP/1", options(`"explicit_http_config":{"http_protocol_options":{}}`), model.UpstreamHTTP1},
		{"explicit HTTP/2", options(`"explicit_http_config":{"http2_protocol_options":{}}`), model.UpstreamHTTP2},
		{"typed beats old", `,"http2_protocol_options":{}` + options(`"explicit_http_config":{"http_protocol_options":{}}`), model.UpstreamHTTP1},
		{"as the client", options(`"use_downstream_protocol_config":{"http2_protocol_options":{}}`), model.UpstreamAsClient},
		{"by ALPN", tls + options(`"auto_config":{}`), model.UpstreamALPN},
	} {
		t.Run(tt.name, func(t *testing.T) { equal(t, "protocol", cluster(t, tt.json).HTTP.Protocol, tt.want) })
	}
	h := cluster(t, options(`"explicit_http_config":{"http2_protocol_options":{"max_concurrent_streams":10,"connection_keepalive":{"interval":"30s","timeout":"5s"}}},
		"common_http_protocol_options":{"idle_timeout":"60s","max_requests_per_connection":3,"max_connection_duration":"300s","max_headers_count":50},
		"upstream_http_protocol_options":{"auto_sni":true},
		"http_filters":[{"name":"c","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"}}]`)).HTTP
	equal(t, "HTTP/2", []any{h.HTTP2.ConcurrentStreams, h.HTTP2.Keepalive.Interval, h.HTTP2.Keepalive.Timeout}, []any{uint32(10), 30 * time.Second, 5 * time.Second})
	equal(t, "common", []any{h.IdleTimeout, h.MaxRequests, h.MaxDuration, h.MaxHeaders, h.AutoSNI}, []any{time.Minute, uint32(3), 5 * time.Minute, 50, true})
	equal(t, "old limit", cluster(t, `,"max_requests_per_connection":4`).HTTP.MaxRequests, uint32(4))
	equal(t, "idle by default", cluster(t, ``).HTTP.IdleTimeout, time.Hour)
}

func typed(name, fields string) string {
	if fields != "" {
		fields = "," + fields
	}
	return `,"load_balancing_policy":{"policies":[{"typed_extension_config":{"name":"unknown","typed_config":{"@type":"type.googleapis.com/envoy.config.core.v3.Address"}}},
		{"typed_extension_config":{"name":"x","typed_config":{"@type":"type.googleapis.com/` + name + `"` + fields + `}}}]}`
}

func TestBalancingPolicies(t *testing.T) {
	const pkg = "envoy.extensions.load_balancing_policies."
	for _, tt := range []struct {
		name, json string
		want       func(*model.Cluster)
	}{
		{"ring", `,"lb_policy":"RING_HASH","ring_hash_lb_config":{"minimum_ring_size":7,"hash_function":"MURMUR_HASH_2"}`, func(c *model.Cluster) {
			c.LB, c.Ring = model.RingHash, model.Ring{Min: 7, Max: 8 << 20, Murmur: true}
		}},
		{"Maglev", `,"lb_policy":"MAGLEV","maglev_lb_config":{"table_size":251},"common_lb_config":{"consistent_hashing_lb_config":{"use_hostname_for_hashing":true,"hash_balance_factor":120}}`, func(c *model.Cluster) {
			c.LB, c.MaglevTable, c.HashHostname, c.HashBalance = model.Maglev, 251, true, 120
		}},
		{"slow start", `,"round_robin_lb_config":{"slow_start_config":{"slow_start_window":"30s","aggression":{"default_value":2,"runtime_key":"x"},"min_weight_percent":{"value":5}}}`, func(c *model.Cluster) {
			c.SlowStart = &model.SlowStart{Window: 30 * time.Second, Aggression: 2, MinPercent: 5}
		}},
		{"localities, health", `,"common_lb_config":{"locality_weighted_lb_config":{},"healthy_panic_threshold":{"value":10},"ignore_new_hosts_until_first_hc":true}`, func(c *model.Cluster) {
			c.LocalityLB, c.PanicThreshold, c.IgnoreNewUntilChecked = true, 10, true
		}},
		{"typed round robin", typed(pkg+"round_robin.v3.RoundRobin", `"locality_lb_config":{"locality_weighted_lb_config":{}}`), func(c *model.Cluster) { c.LocalityLB = true }},
		{"typed least request", typed(pkg+"least_request.v3.LeastRequest", `"choice_count":5,"selection_method":"FULL_SCAN"`), func(c *model.Cluster) {
			c.LB, c.Choices, c.FullScan = model.LeastRequest, 5, true
		}},
		{"typed random", typed(pkg+"random.v3.Random", ``), func(c *model.Cluster) { c.LB = model.Random }},
		{"typed ring", typed(pkg+"ring_hash.v3.RingHash", `"maximum_ring_size":2048`), func(c *model.Cluster) { c.LB, c.Ring = model.RingHash, model.Ring{Min: 1024, Max: 2048} }},
		{"weights of localities", typed(pkg+"wrr_locality.v3.WrrLocality", `"endpoint_picking_policy":{"policies":[{"typed_extension_config":{"name":"r","typed_config":{"@type":"type.googleapis.com/`+pkg+`random.v3.Random"}}}]}`), func(c *model.Cluster) {
			c.LB, c.LocalityLB = model.Random, true
		}},
		{"peak EWMA", typed("xds.type.v3.TypedStruct", `"type_url":"`+decode.TypePeakEWMA+`","value":{"decay":"5s","start":"20ms"}`), func(c *model.Cluster) {
			c.LB, c.PeakEWMA = model.PeakEWMAPolicy, model.PeakEWMA{Decay: 5 * time.Second, Start: 20 * time.Millisecond}
		}},
		{"subsets", `,"lb_subset_config":{"fallback_policy":"DEFAULT_SUBSET","default_subset":{"stage":"prod"},"subset_selectors":[{"keys":["version","stage"],"fallback_policy":"KEYS_SUBSET","fallback_keys_subset":["stage"]},{"keys":["stage"]}]}`, func(c *model.Cluster) {
			c.Subsets = &model.Subsets{Fallback: model.FallbackDefault, Default: []model.MetadataMatch{{Key: "stage", Value: `"prod"`}}, Selectors: []model.SubsetSelector{
				{Keys: []string{"stage", "version"}, Fallback: model.FallbackKeySubset, FallbackKeys: []string{"stage"}}, {Keys: []string{"stage"}, Fallback: model.FallbackCluster}}}
		}},
		{"typed subsets", typed(pkg+"subset.v3.Subset", `"list_as_any":true,"subset_selectors":[{"keys":["a"],"fallback_policy":"ANY_ENDPOINT"}],"subset_lb_policy":{"policies":[{"typed_extension_config":{"name":"r","typed_config":{"@type":"type.googleapis.com/`+pkg+`random.v3.Random"}}}]}`), func(c *model.Cluster) {
			c.LB = model.Random
			c.Subsets = &model.Subsets{ListAsAny: true, Selectors: []model.SubsetSelector{{Keys: []string{"a"}, Fallback: model.FallbackAny}}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := cluster(t, ``)
			tt.want(want)
			got := cluster(t, tt.json)
			for _, c := range []*model.Cluster{got, want} {
				if s := c.Subsets; s != nil { // nil and empty are the same
					for i := range s.Selectors {
						if len(s.Selectors[i].FallbackKeys) == 0 {
							s.Selectors[i].FallbackKeys = nil
						}
					}
				}
			}
			equal(t, "cluster", got, want)
		})
	}
}

func TestHealthChecks(t *testing.T) {
	base := `"timeout":"1s","interval":"10s","unhealthy_threshold":3,"healthy_threshold":2`
	h := cluster(t, `,"health_checks":[{`+base+`,"http_health_check":{"path":"/ok","host":"h","expected_statuses":[{"start":200,"end":300}],"codec_client_type":"HTTP2"}}]`).HealthCheck
	equal(t, "HTTP", *h.HTTP, model.HTTPCheck{Method: "GET", Path: "/ok", Host: "h", Expected: []model.StatusRange{{Start: 200, End: 300}}, HTTP2: true, MaxBody: 1024})
	equal(t, "times", []any{h.Timeout, h.Interval, h.NoTraffic, h.NoTrafficHealthy, h.UnhealthyInterval, h.UnhealthyEdge, h.HealthyEdge, h.Unhealthy, h.Healthy, h.NoReuse},
		[]any{time.Second, 10 * time.Second, time.Minute, time.Minute, 10 * time.Second, 10 * time.Second, 10 * time.Second, uint32(3), uint32(2), false})
	h = cluster(t, `,"health_checks":[{`+base+`,"reuse_connection":false,"unhealthy_interval":"5s","alt_port":81,"tcp_health_check":{"send":{"text":"50494e47"},"receive":[{"text":"504f"},{"binary":"Tkc="}]}}]`).HealthCheck
	equal(t, "TCP", *h.TCP, model.TCPCheck{Send: []byte("PING"), Receive: [][]byte{[]byte("PO"), []byte("NG")}})
	equal(t, "more", []any{h.NoReuse, h.UnhealthyInterval, h.UnhealthyEdge, h.AltPort}, []any{true, 5 * time.Second, 5 * time.Second, uint16(81)})
	h = cluster(t, `,"health_checks":[{`+base+`,"grpc_health_check":{"service_name":"s","authority":"a"}}]`).HealthCheck
	equal(t, "gRPC", *h.GRPC, model.GRPCCheck{Service: "s", Authority: "a"})
}

func TestBadClusterDetails(t *testing.T) {
	check := func(s string) string {
		return `,"health_checks":[{"timeout":"1s","interval":"1s","unhealthy_threshold":1,"healthy_threshold":1,` + s + `}]`
	}
	for _, tt := range []struct{ name, json, want string }{
		{"Maglev table not prime", `,"lb_policy":"MAGLEV","maglev_lb_config":{"table_size":65536}`, "is not a prime"},
		{"ring too large", `,"lb_policy":"RING_HASH","ring_hash_lb_config":{"maximum_ring_size":8388609}`, "constraint"},
		{"ring upside down", `,"lb_policy":"RING_HASH","ring_hash_lb_config":{"minimum_ring_size":9,"maximum_ring_size":8}`, "ring of 9 to 8 points"},
		{"ALPN without TLS", options(`"auto_config":{}`), "auto_config needs a TLS transport socket"},
		{"HTTP/3", options(`"explicit_http_config":{"http3_protocol_options":{}}`), "http3_protocol_options: not supported"},
		{"filters of upstreams", options(`"explicit_http_config":{"http_protocol_options":{}},"http_filters":[{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]`), "not supported for upstreams"},
		{"SAN without trust", `,"transport_socket":{"name":"tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}},"upstream_http_protocol_options":{"auto_sni":true,"auto_san_validation":true}`, "needs a trusted_ca"},
		{"two health checks", `,"health_checks":[{"timeout":"1s","interval":"1s","unhealthy_threshold":1,"healthy_threshold":1,"tcp_health_check":{}},{"timeout":"1s","interval":"1s","unhealthy_threshold":1,"healthy_threshold":1,"tcp_health_check":{}}]`, "more than one"},
		{"health check without its kind", check(`"reuse_connection":true`), "HealthChecker"},
		{"path with a line break", check(`"http_health_check":{"path":"/a\r\nx: y"}`), "constraint"},
		{"path with a space", check(`"http_health_check":{"path":"/a b"}`), "has spaces"},
		{"path without a slash", check(`"http_health_check":{"path":"a"}`), "does not begin with a slash"},
		{"bad hexadecimal", check(`"tcp_health_check":{"send":{"text":"xyz"}}`), "send.text"},
		{"statuses out of range", check(`"http_health_check":{"path":"/","expected_statuses":[{"start":99,"end":600}]}`), "is not within"},
		{"subset without keys", `,"lb_subset_config":{"subset_selectors":[{}]}`, "keys: missing"},
		{"fallback keys that are none", `,"lb_subset_config":{"subset_selectors":[{"keys":["a","b"],"fallback_policy":"KEYS_SUBSET","fallback_keys_subset":["c"]}]}`, `"c" is none of the keys`},
		{"no policy known", `,"load_balancing_policy":{"policies":[{"typed_extension_config":{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.config.core.v3.Address"}}}]}`, "none of the policies"},
		{"peak EWMA with junk", typed("xds.type.v3.TypedStruct", `"type_url":"`+decode.TypePeakEWMA+`","value":{"decay":5}`), "not a positive duration"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decode.New(decode.Options{}).Cluster(pack(t, new(clusterv3.Cluster), clusterJSON(eds+tt.json)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want it to say %q", err, tt.want)
			}
		})
	}
}

func TestEndpointDetails(t *testing.T) {
	la, err := decode.New(decode.Options{}).LoadAssignment(pack(t, new(endpointv3.ClusterLoadAssignment), `{"cluster_name":"c",
		"policy":{"drop_overloads":[{"category":"a","drop_percentage":{"numerator":50,"denominator":"TEN_THOUSAND"}}],"endpoint_stale_after":"60s","weighted_priority_health":true},
		"endpoints":[{"lb_endpoints":[{"metadata":{"filter_metadata":{"envoy.lb":{"version":"v1","n":1}}},
			"endpoint":{"address":{"socket_address":{"address":"10.0.0.1","port_value":1}},"additional_addresses":[{"address":{"socket_address":{"address":"::1","port_value":1}}}],
			"health_check_config":{"port_value":99,"hostname":"h"}}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "policy", []any{la.Drops, la.StaleAfter, la.PriorityByWeight},
		[]any{[]model.DropOverload{{Category: "a", Fraction: model.Fraction{Numerator: 50, Denominator: 10000}}}, time.Minute, true})
	e := la.Endpoints[0]
	equal(t, "metadata", e.Metadata, model.Metadata{"envoy.lb": {"version": "v1", "n": 1.0}})
	equal(t, "more", []any{e.Additional, e.Check}, []any{[]model.Address{{Host: "::1", Port: 1}}, model.EndpointCheck{Port: 99, Hostname: "h"}})
}

func TestEqualMetadataIsCanonical(t *testing.T) {
	a := model.NewMetadataMatches(map[string]any{"b": map[string]any{"y": 1.0, "x": []any{"z", nil}}, "a": true})
	b := model.NewMetadataMatches(map[string]any{"a": true, "b": map[string]any{"x": []any{"z", nil}, "y": 1.0}})
	equal(t, "matches", a, b)
	if a[0].Key != "a" || a[0].Value != "true" || model.CanonicalValue("1") == model.CanonicalValue(1.0) || model.CanonicalValue(math.NaN()) != "" {
		t.Errorf("matches %+v", a)
	}
}
