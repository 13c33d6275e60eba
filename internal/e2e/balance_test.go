//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// TestHashingPlacesHostsAsEnvoyDoes sends requests with many hashes through a real Envoy and compares the hosts that
// it takes with those of the built-in proxy, for the same clusters.
func TestHashingPlacesHostsAsEnvoyDoes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real processes")
	}
	envoy := tool(t, "envoy")

	// Every host answers with its own address.
	const backends = 9
	var ports []int
	serve := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
	})}
	for range backends {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		go serve.Serve(l)
	}
	t.Cleanup(func() { serve.Close() })

	// host is an endpoint; more are further fields of it as JSON.
	host := func(i int, more string) string {
		if more != "" {
			more = "," + more
		}
		return fmt.Sprintf(`{"endpoint":{"hostname":"host-%d.example","address":{"socket_address":{"address":"127.0.0.1","port_value":%d}}}%s}`, i, ports[i], more)
	}
	some := func(from, to int) string {
		var list []string
		for i := from; i < to; i++ {
			list = append(list, host(i, ""))
		}
		return strings.Join(list, ",")
	}
	weights := func(w ...int) string {
		var list []string
		for i, w := range w {
			list = append(list, host(i, fmt.Sprintf(`"load_balancing_weight":%d`, w)))
		}
		return strings.Join(list, ",")
	}
	group := func(hosts, more string) string { return fmt.Sprintf(`{"lb_endpoints":[%s]%s}`, hosts, more) }
	sick := func(i int) string { return host(i, `"health_status":"UNHEALTHY"`) }
	tests := []struct{ name, lb, groups string }{
		{"ring of five", `"lb_policy":"RING_HASH"`, group(some(0, 5), "")},
		{"ring of one", `"lb_policy":"RING_HASH"`, group(some(3, 4), "")},
		{"ring of nine", `"lb_policy":"RING_HASH"`, group(some(0, 9), "")},
		{"weighted ring", `"lb_policy":"RING_HASH"`, group(weights(1, 2, 5, 128, 37), "")},
		{"small ring", `"lb_policy":"RING_HASH","ring_hash_lb_config":{"minimum_ring_size":3,"maximum_ring_size":7}`, group(weights(1, 2, 5, 11), "")},
		{"ring with MurmurHash", `"lb_policy":"RING_HASH","ring_hash_lb_config":{"minimum_ring_size":500,"hash_function":"MURMUR_HASH_2"}`, group(weights(3, 1, 4, 1, 5, 9), "")},
		{"ring by host names", `"lb_policy":"RING_HASH","common_lb_config":{"consistent_hashing_lb_config":{"use_hostname_for_hashing":true}}`, group(some(2, 8), "")},
		{"ring by metadata", `"lb_policy":"RING_HASH"`, group(host(0, `"metadata":{"filter_metadata":{"envoy.lb":{"hash_key":"a"}}}`)+","+host(1, `"metadata":{"filter_metadata":{"envoy.lb":{"hash_key":"b"}}}`)+","+some(2, 5), "")},
		{"ring with localities", `"lb_policy":"RING_HASH","common_lb_config":{"locality_weighted_lb_config":{}}`,
			group(some(0, 3), `,"locality":{"zone":"a"},"load_balancing_weight":3`) + "," + group(some(3, 8), `,"locality":{"zone":"b"},"load_balancing_weight":7`)},
		{"ring with sick hosts", `"lb_policy":"RING_HASH"`, group(some(0, 4)+","+sick(4)+","+sick(5), "")},
		{"ring with priorities", `"lb_policy":"RING_HASH"`, group(some(0, 2)+","+sick(2)+","+sick(3), "") + "," + group(some(4, 8), `,"priority":1`)},
		{"ring in panic", `"lb_policy":"RING_HASH"`, group(some(0, 1)+","+sick(1)+","+sick(2)+","+sick(3), "")},
		{"Maglev of five", `"lb_policy":"MAGLEV"`, group(some(0, 5), "")},
		{"Maglev of nine", `"lb_policy":"MAGLEV"`, group(some(0, 9), "")},
		{"weighted Maglev", `"lb_policy":"MAGLEV"`, group(weights(1, 2, 5, 128, 37), "")},
		{"small Maglev", `"lb_policy":"MAGLEV","maglev_lb_config":{"table_size":251}`, group(weights(7, 3, 2, 2), "")},
		{"Maglev by host names", `"lb_policy":"MAGLEV","common_lb_config":{"consistent_hashing_lb_config":{"use_hostname_for_hashing":true}}`, group(some(2, 8), "")},
		{"Maglev with localities", `"lb_policy":"MAGLEV","common_lb_config":{"locality_weighted_lb_config":{}}`,
			group(weights(1, 2, 3), `,"locality":{"zone":"a"},"load_balancing_weight":1`) + "," + group(some(3, 8), `,"locality":{"zone":"b"},"load_balancing_weight":2`)},
		{"typed Maglev", `"load_balancing_policy":{"policies":[{"typed_extension_config":{"name":"m","typed_config":{"@type":"type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev","table_size":1009}}}]}`, group(some(0, 6), "")},
		{"typed ring", `"load_balancing_policy":{"policies":[{"typed_extension_config":{"name":"m","typed_config":{"@type":"type.googleapis.com/envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash","minimum_ring_size":64,"hash_function":"XX_HASH"}}}]}`, group(some(0, 6), "")},
	}

	d := decode.New(decode.Options{})
	m := upstream.NewManager(upstream.Config{})
	go m.Run(t.Context())
	var clusters, routes []string
	for i, tt := range tests {
		name := fmt.Sprintf("c%d", i)
		kind := "STATIC"
		if strings.Contains(tt.lb, "use_hostname_for_hashing") {
			kind = "STRICT_DNS" // for which alone Envoy allows that
		}
		c := fmt.Sprintf(`{"name":%q,"type":%q,"connect_timeout":"5s",%s,"load_assignment":{"cluster_name":%q,"endpoints":[%s]}}`, name, kind, tt.lb, name, tt.groups)
		clusters = append(clusters, c)
		routes = append(routes, fmt.Sprintf(`{"match":{"prefix":"/%s/"},"route":{"cluster":%q,"hash_policy":[{"header":{"header_name":"x-key"}}]}}`, name, name))
		var pb clusterv3.Cluster
		if err := protojson.Unmarshal([]byte(c), &pb); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		a, err := anypb.New(&pb)
		if err != nil {
			t.Fatal(err)
		}
		conf, err := d.Cluster(a)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		m.Set(conf, true)
	}
	front, admin := freePorts(2)[0], freePorts(1)[0]
	bootstrap := fmt.Sprintf(`{"admin":{"address":{"socket_address":{"address":"127.0.0.1","port_value":%d}}},
		"static_resources":{"clusters":[%s],"listeners":[{"name":"l","address":{"socket_address":{"address":"127.0.0.1","port_value":%d}},
		"filter_chains":[{"filters":[{"name":"hcm","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix":"h","route_config":{"virtual_hosts":[{"name":"v","domains":["*"],"routes":[%s]}]},
		"http_filters":[{"name":"router","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}]}}`,
		admin, strings.Join(clusters, ","), front, strings.Join(routes, ","))
	if !json.Valid([]byte(bootstrap)) {
		t.Fatalf("bootstrap is no JSON: %s", bootstrap)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, []byte(bootstrap), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "envoy", nil, envoy, "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	ask := func(cluster, key string) (string, error) {
		r, _ := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/%s/", front, cluster), nil)
		r.Header.Set("x-key", key)
		resp, err := client.Do(r)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	for i := range tests {
		name := fmt.Sprintf("c%d", i)
		eventually(t, 30*time.Second, "the cluster is warm", func() bool { return m.Get(name) != nil })
	}
	eventually(t, 20*time.Second, "Envoy answers", func() bool { _, err := ask("c0", "x"); return err == nil })

	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := fmt.Sprintf("c%d", i)
			different, used := 0, map[string]bool{}
			for n := range 250 {
				key := fmt.Sprintf("key-%d", n)
				want, err := ask(name, key)
				if err != nil {
					t.Fatal(err)
				}
				used[want] = true
				_, h, err := m.Get(name).Choose(&upstream.Choice{Hash: xxhash.Sum64String(key), HasHash: true})
				if err != nil {
					t.Fatalf("%q: %v; Envoy takes %s", key, err, want)
				}
				if got := h.Address().String(); got != want {
					if different++; different <= 3 {
						t.Errorf("%q goes to %s, with Envoy to %s", key, got, want)
					}
				}
			}
			if different > 0 {
				t.Errorf("%d of 250 keys differ", different)
			}
			if len(used) < 2 && tt.name != "ring of one" {
				t.Errorf("all keys go to %v: nothing is compared", used)
			}
		})
	}
}
