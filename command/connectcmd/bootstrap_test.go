package connectcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/command/verb"
)

// The rules cut from the names of clusters and upstreams what they are told to, and no more.
func TestTagRules(t *testing.T) {
	const domain = "e5b08d03-bfc3-c870-1833-baddb116e648"
	tests := []struct {
		name, stat string
		want       map[string]string // tag without "consul." → value; others must not match
		deprecated map[string]string
	}{
		{
			name: "plain cluster", stat: "cluster.pong.default.dc2.internal." + domain + ".consul.bind_errors",
			want: map[string]string{
				"destination.service": "pong", "destination.namespace": "default", "destination.datacenter": "dc2",
				"destination.routing_type": "internal", "destination.trust_domain": domain,
				"destination.target":      "pong.default.dc2",
				"destination.full_target": "pong.default.dc2.internal." + domain,
			},
			deprecated: map[string]string{
				"service": "pong", "namespace": "default", "datacenter": "dc2", "routing_type": "internal", "trust_domain": domain,
				"target": "pong.default.dc2", "full_target": "pong.default.dc2.internal." + domain,
			},
		},
		{
			name: "hash, subset and partition", stat: "cluster.f8f8f8f8~v2.pong.default.part.dc2.internal-v1." + domain + ".consul.x",
			want: map[string]string{
				"destination.custom_hash": "f8f8f8f8", "destination.service_subset": "v2", "destination.service": "pong",
				"destination.namespace": "default", "destination.partition": "part", "destination.datacenter": "dc2",
				"destination.routing_type": "internal-v1", "destination.trust_domain": domain,
				"destination.target":      "f8f8f8f8~v2.pong.default.part.dc2",
				"destination.full_target": "f8f8f8f8~v2.pong.default.part.dc2.internal-v1." + domain,
			},
		},
		{
			name: "peer", stat: "cluster.pong.default.cloud.external." + domain + ".consul.x",
			want: map[string]string{"destination.peer": "cloud", "destination.service": "pong", "destination.routing_type": "external"},
		},
		{
			name: "upstream", stat: "http.upstream.db.default.part.dc1.downstream_cx_total",
			want: map[string]string{
				"upstream.service": "db", "upstream.namespace": "default", "upstream.partition": "part", "upstream.datacenter": "dc1",
			},
		},
		{
			name: "peered upstream", stat: "tcp.upstream_peered.db.default.cloud.x",
			want: map[string]string{"upstream.service": "db", "upstream.peer": "cloud"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := map[string]string{}
			for _, r := range tagRules(false) {
				m := regexp.MustCompile(r.regex).FindStringSubmatch(tt.stat)
				if m == nil {
					continue
				}
				if len(m) != 3 {
					t.Errorf("%s has %d groups, want 2: %s", r.name, len(m)-1, r.regex)
					continue
				}
				if m[2] != "" {
					got[strings.TrimPrefix(r.name, "consul.")] = m[2]
				}
			}
			for _, want := range []map[string]string{tt.want, tt.deprecated} {
				for tag, value := range want {
					if got[tag] != value {
						t.Errorf("consul.%s = %q, want %q", tag, got[tag], value)
					}
				}
			}
		})
	}
	if all, few := len(tagRules(false)), len(tagRules(true)); all-few != 9 {
		t.Errorf("%d rules, %d without the old ones: want 9 old ones", all, few)
	}
}

// fakeAgent answers as an agent with a sidecar for api would.
func fakeAgent(t *testing.T, config map[string]any) string {
	t.Helper()
	sidecar := map[string]any{
		"ID": "api-sidecar-proxy", "Service": "api-sidecar-proxy", "Kind": "connect-proxy", "Port": 21000, "Datacenter": "dc1",
		"Proxy": map[string]any{"DestinationServiceName": "api", "DestinationServiceID": "api", "Config": config},
	}
	plain := map[string]any{"ID": "plain", "Service": "plain"}
	answers := map[string]any{
		"/v1/agent/services":                  map[string]any{"api-sidecar-proxy": sidecar, "plain": plain},
		"/v1/agent/service/api-sidecar-proxy": sidecar,
		"/v1/agent/service/plain":             plain,
		"/v1/agent/self":                      map[string]any{"xDS": map[string]any{"Ports": map[string]any{"Plaintext": 8502, "TLS": 8503}}},
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		if !ok {
			http.Error(w, "unknown service ID", http.StatusNotFound)
			return
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// runEnvoy runs connect envoy and returns its exit code and output.
func runEnvoy(t *testing.T, args ...string) (int, string, string) {
	t.Helper()
	var out, errs bytes.Buffer
	for _, v := range Verbs() {
		if v.Path == "connect envoy" {
			c, err := v.Factory(context.Background(), verb.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})()
			if err != nil {
				t.Fatal(err)
			}
			return c.Run(args), out.String(), errs.String()
		}
	}
	t.Fatal("no such command")
	return 0, "", ""
}

func TestBootstrap(t *testing.T) {
	addr := fakeAgent(t, map[string]any{
		"envoy_prometheus_bind_addr": "0.0.0.0:20200", "envoy_stats_tags": []any{"Team=blue", "bare"},
		"envoy_statsd_url": "udp://127.0.0.1:9125", "envoy_extra_static_clusters_json": `{"name":"a"},{"name":"b"}`,
		"envoy_stats_flush_interval": "10s",
	})
	code, out, errs := runEnvoy(t, "-http-addr", addr, "-token=secret", "-sidecar-for=api", "-bootstrap", "-grpc-addr=127.0.0.1:8502")
	if code != 0 || errs != "" {
		t.Fatalf("exit %d: %s", code, errs)
	}
	var doc struct {
		Node struct {
			ID, Cluster string
			Metadata    map[string]string
		}
		StaticResources struct {
			Clusters  []struct{ Name string }
			Listeners []struct{ Name string }
		} `json:"static_resources"`
		StatsSinks []struct{ Name string } `json:"stats_sinks"`
		Flush      string                  `json:"stats_flush_interval"`
		Stats      struct {
			Tags []struct {
				Name  string `json:"tag_name"`
				Value string `json:"fixed_value"`
			} `json:"stats_tags"`
		} `json:"stats_config"`
		Dynamic struct {
			ADS struct {
				GRPC struct {
					Metadata []struct{ Key, Value string } `json:"initial_metadata"`
				} `json:"grpc_services"`
			} `json:"ads_config"`
		} `json:"dynamic_resources"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	var clusters, listeners []string
	for _, c := range doc.StaticResources.Clusters {
		clusters = append(clusters, c.Name)
	}
	for _, l := range doc.StaticResources.Listeners {
		listeners = append(listeners, l.Name)
	}
	got := []any{
		doc.Node.ID, doc.Node.Cluster, clusters, listeners, doc.StatsSinks[0].Name, doc.Flush,
		doc.Stats.Tags[0].Name + "=" + doc.Stats.Tags[0].Value, doc.Stats.Tags[1].Name + "=" + doc.Stats.Tags[1].Value,
		doc.Dynamic.ADS.GRPC.Metadata[0].Key + "=" + doc.Dynamic.ADS.GRPC.Metadata[0].Value,
	}
	want := []any{
		"api-sidecar-proxy", "api", []string{"local_agent", "self_admin", "a", "b"}, []string{"envoy_prometheus_metrics_listener"},
		"envoy.stat_sinks.statsd", "10s", "team=blue", "bare=1", "x-consul-token=secret",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bootstrap (-want +got):\n%s", diff)
	}
}

func TestBootstrapTemplate(t *testing.T) {
	addr := fakeAgent(t, map[string]any{
		"envoy_bootstrap_json_tpl": `{"id": "{{ .ProxyID }}", "at": "{{ .GRPC.AgentAddress }}:{{ .GRPC.AgentPort }}", "tls": {{ .GRPC.AgentTLS }}, "ca": "{{ .AgentCAPEM }}"}`,
	})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte("line 1\nline 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := runEnvoy(t, "-http-addr", addr, "-proxy-id=api-sidecar-proxy", "-bootstrap", "-grpc-addr=https://127.0.0.1:9", "-grpc-ca-file", ca)
	want := map[string]any{"id": "api-sidecar-proxy", "at": "127.0.0.1:9", "tls": true, "ca": "line 1\nline 2\n"}
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s", code, err, errs)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bootstrap (-want +got):\n%s", diff)
	}
}

func TestEnvoyRefuses(t *testing.T) {
	addr := fakeAgent(t, nil)
	tests := []struct {
		name string
		args []string
		err  string
	}{
		{"no proxy", nil, "No proxy ID specified. One of -proxy-id, -sidecar-for, or -gateway is required\n"},
		{"kind of gateway", []string{"-gateway=bogus"}, "Gateway must be one of: api, terminating, mesh, or ingress\n"},
		{"no such sidecar", []string{"-sidecar-for=none"}, "No sidecar proxy registered for none\n"},
		{"no gateway", []string{"-gateway=mesh"}, "No mesh-gateway services registered with this agent\n"},
		{"no proxy at all", []string{"-proxy-id=plain"}, "service is not a Connect proxy or gateway\n"},
		{"node without proxy", []string{"-node-name=x"}, "'-node-name' requires '-proxy-id'\n"},
		{"registering a sidecar", []string{"-proxy-id=x", "-register"}, "Auto-Registration can only be used for gateways\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out, errs := runEnvoy(t, append([]string{"-http-addr", addr, "-bootstrap"}, tt.args...)...)
			if code != 1 || out != "" || errs != tt.err {
				t.Errorf("exit %d, stdout %q, stderr %q; want 1, nothing, %q", code, out, errs, tt.err)
			}
		})
	}
}
