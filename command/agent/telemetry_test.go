package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/command/agent/telemetry"
	"github.com/sarnmesh/sarn/internal/measure"
)

// exercised are metrics that the requests of the test below make; the others of documented are there from the start.
const exercised = `api_http client_api_catalog_register client_api_success_catalog_register client_rpc_error_catalog_register:0
	catalog_service_query health_service_query catalog_register catalog_deregister kvs_apply txn_apply session_apply
	acl_ResolveToken acl_token_upsert acl_token_delete acl_policy_upsert acl_policy_delete acl_role_upsert
	fsm_register fsm_deregister fsm_kvs fsm_txn fsm_session fsm_acl_token fsm_acl_policy fsm_acl_role fsm_ca fsm_system_metadata
	config_entry_apply intention_apply prepared_query_apply fsm_prepared_query fsm_config_entry cache_fetch_success cache_health_instances_hit
	cache_health_instances_miss_new raft_apply raft_commitTime raft_logstore_verifier_checkpoints_written
	raft_logstore_verifier_ranges_verified leader_barrier leader_reconcileMember runtime_num_goroutines
	runtime_alloc_bytes version rpc_consistentRead`

// inTime are gauges that are set every few seconds.
const inTime = `rpc_query server_isLeader raft_applied_index raft_last_index state_nodes state_services state_service_instances state_kv_entries
	state_config_entries members_servers mesh_active_root_ca_expiry mesh_active_signing_ca_expiry autopilot_healthy session_ttl_active
	cache_entries_count grpc_server_connections:0 leaf_certs_entries_count:0`

// documented returns the metrics that the specification of Consul's telemetry and its dashboards name, as the page about
// metrics lists them, and those that it says are not there.
func documentedMetrics(t *testing.T) (there, absent map[string]bool) {
	t.Helper()
	page, err := os.ReadFile("../../website/docs/agent-metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	all, without, ok := strings.Cut(string(page), "## Not there")
	if !ok {
		t.Fatal("no section of what is not there")
	}
	names := func(text string) map[string]bool {
		found := map[string]bool{}
		for _, m := range regexp.MustCompile("`consul_([A-Za-z0-9_]+)`").FindAllStringSubmatch(text, -1) {
			found[m[1]] = true
		}
		return found
	}
	var first strings.Builder // cells of the table; the others tell what there is instead
	for line := range strings.Lines(without) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			first.WriteString(cells[1])
		}
	}
	return names(all), names(first.String())
}

// promValues returns the values of all series of each name; of summaries, their counts.
func promValues(text string) map[string]float64 {
	values := map[string]float64{}
	summaries := map[string]bool{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" && f[3] == "summary" {
			summaries[f[2]] = true
		}
		name, rest, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || name == "#" {
			continue
		}
		if base, labels, ok := strings.Cut(line, "{"); ok {
			name = base
			if i := strings.LastIndex(labels, "} "); i >= 0 {
				rest = strings.TrimSpace(labels[i+2:])
			}
		}
		v, err := strconv.ParseFloat(rest, 64)
		if err != nil {
			continue
		}
		base, count := strings.CutSuffix(name, "_count")
		switch {
		case count && summaries[base]:
			name = base
		case summaries[strings.TrimSuffix(name, "_sum")], summaries[name], v != v:
			v = 0 // there
		}
		values[strings.TrimPrefix(name, "consul_")] += v
	}
	return values
}

func TestDocumentedMetricsAreThere(t *testing.T) {
	g := runServer(t, `telemetry { prometheus_retention_time = "1h" disable_hostname = true enable_host_metrics = true }
		raft_logstore { verification { enabled = true interval = "100ms" } }`)
	put := func(path, body string) string { return g.must("PUT", path, body) }
	put("/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Service":{"Service":"web","Port":80}}`)
	put("/v1/catalog/deregister", `{"Node":"n1"}`)
	put("/v1/kv/a", "x")
	put("/v1/txn", `[{"KV":{"Verb":"set","Key":"b","Value":"eA=="}}]`)
	put("/v1/session/create", `{"TTL":"60s"}`)
	policy := field(t, put("/v1/acl/policy", `{"Name":"p1"}`), "ID")
	token := field(t, put("/v1/acl/token", `{}`), "AccessorID")
	put("/v1/acl/role", `{"Name":"r1"}`)
	g.must("DELETE", "/v1/acl/token/"+token, "")
	g.must("DELETE", "/v1/acl/policy/"+policy, "")
	put("/v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`)
	put("/v1/connect/intentions/exact?source=a&destination=b", `{"Action":"allow"}`)
	g.must("POST", "/v1/query", `{"Name":"q","Service":{"Service":"web"}}`)
	g.must("GET", "/v1/catalog/service/web", "")
	g.must("GET", "/v1/catalog/nodes?consistent", "")
	g.must("GET", "/v1/health/service/web", "")
	g.must("GET", "/v1/health/service/web?cached", "")
	g.must("GET", "/v1/health/service/web?cached", "")

	read := func() map[string]float64 {
		return promValues(g.must("GET", "/v1/agent/metrics?format=prometheus", ""))
	}
	lacks := func(values map[string]float64, names string) (list []string) {
		for name := range strings.FieldsSeq(names) {
			name, zero := strings.CutSuffix(name, ":0")
			if v, ok := values[name]; !ok || !zero && v <= 0 {
				list = append(list, name)
			}
		}
		return list
	}
	wanted := exercised
	if !testing.Short() {
		wanted += " " + inTime
	}
	var missing []string
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if missing = lacks(read(), wanted); len(missing) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nothing was measured as %v", missing)
		}
	}
	values := read()
	there, absent := documentedMetrics(t)
	if len(there) < 100 {
		t.Errorf("only %d metrics are documented", len(there))
	}
	for name := range there {
		if _, ok := values[name]; !ok {
			t.Errorf("%s is documented and not there", name)
		}
	}
	for name := range absent {
		if _, ok := values[name]; ok {
			t.Errorf("%s is there, though it is documented not to be", name)
		}
	}
	for name := range strings.FieldsSeq(knownGauges + " " + knownCounters + " " + knownSummaries) {
		name = strings.NewReplacer(".", "_", "-", "_").Replace(name)
		if !there[name] {
			t.Errorf("%s is not documented", name)
		}
	}
}

// Names of services, keys and nodes in requests and questions make no series, however many there are.
func TestNamesMakeNoSeries(t *testing.T) {
	g := runServer(t, `telemetry { prometheus_retention_time = "1h" disable_hostname = true }`)
	ask := func(i int) {
		name := fmt.Sprintf("x%d-%d", i, time.Now().UnixNano())
		g.must("GET", "/v1/health/service/"+name, "")
		g.must("GET", "/v1/catalog/service/"+name, "")
		g.must("GET", "/v1/health/service/"+name+"?cached", "")
		g.must("GET", "/v1/catalog/node/"+name, "")
		g.must("PUT", "/v1/kv/"+name, "x")
		g.must("PUT", "/v1/catalog/register", `{"Node":"`+name+`","Address":"10.0.0.1","Service":{"Service":"`+name+`"}}`)
		g.do("GET", "/v1/kv/"+name, name, "")
		g.do("GET", "/v1/"+name, "", "")
	}
	count := func() map[string]bool {
		all := map[string]bool{}
		for line := range strings.Lines(g.must("GET", "/v1/agent/metrics?format=prometheus", "")) {
			if name, _, ok := strings.Cut(line, " "); ok && name != "#" && !strings.Contains(name, "raft_") && !strings.Contains(name, "runtime_") {
				all[name] = true
			}
		}
		return all
	}
	ask(0)
	ask(1)
	for i := range 200 {
		ask(i)
	}
	for name := range count() {
		if regexp.MustCompile(`x[0-9]+-[0-9]{10}`).MatchString(name) {
			t.Errorf("a name from a request is in %s", name)
		}
	}
}

// The settings of metrics: prefix, filters, host names; a reload changes the filter and where they are sent.
func TestMetricSettings(t *testing.T) {
	receiver, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody there") }
	host, err := os.Hostname()
	if err != nil {
		t.Skip(err)
	}
	show := func(m *measures) string {
		v, err := m.store.DisplayMetrics(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for _, tt := range []struct {
		name, hcl    string
		want, absent []string
	}{
		{"nothing", "", []string{`"consul.` + host + `.t.gauge"`, `"consul.t.counter"`, `"consul.t.timer"`}, nil},
		{"prefix", `telemetry { metrics_prefix = "x" disable_hostname = true }`, []string{`"x.t.gauge"`, `"x.t.counter"`, `"x.t.timer"`}, nil},
		{"filter", `telemetry { disable_hostname = true prefix_filter = ["-consul.t", "+consul.t.counter"] }`, []string{`"consul.t.counter"`}, []string{"t.gauge", "t.timer"}},
		{"filter default", `telemetry { disable_hostname = true filter_default = false prefix_filter = ["+consul.t.timer"] }`, []string{`"consul.t.timer"`}, []string{"t.gauge", "t.counter"}},
	} {
		var got string
		var began time.Time
		for time.Since(began) > time.Second { // once more, lest an interval ends meanwhile
			if left := time.Until(time.Now().Truncate(telemetry.Interval).Add(telemetry.Interval)); left < time.Second {
				time.Sleep(left)
			}
			began = time.Now()
			m, err := newMeasures(load(t, sources(tt.hcl)), dial, hclog.NewNullLogger())
			if err != nil {
				t.Fatal(err)
			}
			m.global.SetGauge([]string{"t", "gauge"}, 1)
			m.global.IncrCounter([]string{"t", "counter"}, 1)
			measure.Tell([]string{"t", "timer"}, nil, measure.Same(5, 1))
			got = show(m)
		}
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %s in %s", tt.name, want, got)
			}
		}
		for _, absent := range tt.absent {
			if strings.Contains(got, absent) {
				t.Errorf("%s: %s in %s", tt.name, absent, got)
			}
		}
	}
	for _, hcl := range []string{`statsd_address = "nowhere"`, `dogstatsd_addr = "x"`, `statsite_address = "udp:1:2"`, `otlp { endpoint = "http://h" ca_file = "/nonexistent" }`} {
		if _, err := newMeasures(load(t, sources("telemetry { "+hcl+" }")), dial, hclog.NewNullLogger()); err == nil {
			t.Errorf("%s was taken", hcl)
		}
	}
	away := `telemetry { statsd_address = "127.0.0.1:1" retry_failed_connection = `
	if _, err := newMeasures(load(t, sources(away+"false }")), dial, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "nobody there") {
		t.Errorf("retry_failed_connection = false: %v", err)
	}
	if _, err := newMeasures(load(t, sources(away+"true }")), dial, hclog.NewNullLogger()); err != nil {
		t.Errorf("retry_failed_connection = true: %v", err)
	}
	if err := unsupported(load(t, sources(`telemetry { circonus_api_token = "`+marker+`" }`))); err == nil || !strings.Contains(err.Error(), "Circonus") || strings.Contains(err.Error(), marker) {
		t.Errorf("Circonus: %v", err)
	}
}
