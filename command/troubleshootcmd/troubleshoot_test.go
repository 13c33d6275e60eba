package troubleshootcmd

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/command/verb"
)

// A sidecar with an upstream over TCP, one over HTTP that splits, and a transparent one of two addresses.
const dump = `{"configs": [
 {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [
  {"cluster": {"name": "web.c"}}, {"cluster": {"name": "v1.api.c"}}, {"cluster": {"name": "v2.api.c"}}, {"cluster": {"name": "files.c"}}]},
 {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [
  {"name": "public_listener:0.0.0.0:1", "active_state": {"listener": {"traffic_direction": "INBOUND", "filter_chains": [{"filters": [{"typed_config": {"cluster": "local_app"}}]}]}}},
  {"name": "web:127.0.0.1:2", "active_state": {"listener": {"traffic_direction": "OUTBOUND", "filter_chains": [{"filters": [{"typed_config": {"cluster": "web.c"}}]}]}}},
  {"name": "api:127.0.0.1:3", "active_state": {"listener": {"traffic_direction": "OUTBOUND", "filter_chains": [{"filters": [{"typed_config": {"rds": {"route_config_name": "api"},
    "access_log": [{"cluster": "logs"}]}}]}]}}},
  {"name": "lost:127.0.0.1:4", "active_state": {"listener": {"traffic_direction": "OUTBOUND", "filter_chains": [{"filters": [{"typed_config": {"rds": {"route_config_name": "lost"}}}]}]}}},
  {"name": "outbound_listener:127.0.0.1:15001", "active_state": {"listener": {"traffic_direction": "OUTBOUND", "filter_chains": [
    {"filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.0.0.9", "prefix_len": 32}, {"address_prefix": "240.0.0.3", "prefix_len": 32}]}, "filters": [{"typed_config": {"cluster": "files.c"}}]},
    {"filters": [{"typed_config": {"cluster": "original-destination"}}]}]}}}]},
 {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump", "dynamic_route_configs": [
  {"route_config": {"name": "api", "virtual_hosts": [{"routes": [{"route": {"weighted_clusters": {"clusters": [{"name": "v1.api.c", "weight": 9}, {"name": "v2.api.c", "weight": 1}]}}}]}]}}]}]}`

const statuses = `{"cluster_statuses": [
  {"name": "web.c", "host_statuses": [{"health_status": {"eds_health_status": "HEALTHY"}}]},
  {"name": "v1.api.c", "host_statuses": [{"health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": true}}, {"health_status": {"eds_health_status": "HEALTHY"}}]},
  {"name": "v2.api.c", "host_statuses": [{"health_status": {"eds_health_status": "UNHEALTHY"}}]},
  {"name": "files.c"}]}`

const stats = `{"stats": [{"name": "cluster.web.c.upstream_cx_connect_fail", "value": 3}, {"name": "listener_manager.lds.update_rejected", "value": 1}, {"histograms": {}}]}`

func certsUntil(until time.Time) string {
	return `{"certificates": [{"ca_cert": [], "cert_chain": [{"serial_number": "ab", "valid_from": "2020-01-01T00:00:00Z", "expiration_time": "` + until.Format(time.RFC3339) + `"}]}]}`
}

// serve answers like an admin server.
func serve(t *testing.T, ln net.Listener) string {
	mux := http.NewServeMux()
	for path, body := range map[string]string{"/config_dump": dump, "/certs": certsUntil(time.Now().Add(time.Hour)), "/stats": stats, "/clusters": statuses} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(body)) })
	}
	s := httptest.NewUnstartedServer(mux)
	if ln != nil {
		s.Listener.Close()
		s.Listener = ln
	}
	s.Start()
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// run runs a command.
func run(t *testing.T, path string, args ...string) (code int, out, errs string) {
	t.Helper()
	for _, v := range Verbs() {
		if v.Path != path {
			continue
		}
		var o, e bytes.Buffer
		c, err := v.Factory(t.Context(), verb.Streams{In: strings.NewReader(""), Out: &o, Err: &e})()
		if err != nil {
			t.Fatal(err)
		}
		code = c.Run(args)
		return code, o.String(), e.String()
	}
	t.Fatalf("no command %s", path)
	return 0, "", ""
}

func TestUpstreams(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "a.sock")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln)
	code, out, errs := run(t, "troubleshoot upstreams", "-envoy-admin-endpoint", "unix://"+sock)
	want := "==> Upstreams (explicit upstreams only) (3)\napi\nlost\nweb\n\n==> Upstream IPs (transparent proxy only) (1)\n" +
		"IPs                  Virtual  Clusters\n10.0.0.9, 240.0.0.3  true     files.c\n"
	if code != 0 || !strings.HasPrefix(out, want) {
		t.Errorf("exit %d, %s\n%s", code, errs, cmp.Diff(want, out))
	}
}

func TestProxy(t *testing.T) {
	endpoint := serve(t, nil)
	const head = "==> Validation\n ✓ Certificates are valid\n ! Envoy has 1 rejected configurations\n" +
		"  -> Look for the reason in the logs of the proxy and of the agent\n ✓ Envoy has detected 3 connection failure(s)\n"
	tests := []struct{ name, flag, value, want string }{
		{"over TCP", "-upstream-envoy-id", "web", ` ✓ Listener for upstream "web" found
 ✓ Cluster "web.c" for upstream "web" found
 ✓ Healthy endpoints for cluster "web.c" for upstream "web" found
`},
		{"split", "-upstream-envoy-id", "api", ` ✓ Listener for upstream "api" found
 ✓ Route for upstream "api" found
 ✓ Cluster "v1.api.c" for upstream "api" found
 ✓ Healthy endpoints for cluster "v1.api.c" for upstream "api" found
 ✓ Cluster "v2.api.c" for upstream "api" found
 ! No healthy endpoints for cluster "v2.api.c" for upstream "api" found
  -> Check that an instance of the service is registered and passes its checks, and its sidecar too
`},
		{"without its route", "-upstream-envoy-id", "lost", ` ✓ Listener for upstream "lost" found
 ! No route "lost" for upstream "lost" found
  -> Check the routers and splitters of the service
 ! No cluster for upstream "lost" found
  -> Check that the service, and what its configuration entries lead to, exists
`},
		{"unknown", "-upstream-envoy-id", "public_listener", ` ! No listener for upstream "public_listener" found
  -> Check that the upstream is written as the registration of the sidecar has it: see troubleshoot upstreams
`},
		{"by address", "-upstream-ip", "240.0.0.3", ` ✓ Listener for upstream "240.0.0.3" found
 ✓ Cluster "files.c" for upstream "240.0.0.3" found
 ! No healthy endpoints for cluster "files.c" for upstream IP 240.0.0.3 found
  -> Check that an instance of the service is registered and passes its checks, and its sidecar too
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out, errs := run(t, "troubleshoot proxy", "-envoy-admin-endpoint", endpoint, tt.flag, tt.value)
			if diff := cmp.Diff(head+tt.want, out); code != 0 || diff != "" {
				t.Errorf("exit %d, %s (-want +got):\n%s", code, errs, diff)
			}
		})
	}
	t.Run("as JSON", func(t *testing.T) {
		_, out, _ := run(t, "troubleshoot proxy", "-envoy-admin-endpoint", endpoint, "-upstream-envoy-id", "web", "-format", "json")
		var got []finding
		if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 6 || got[1].Success || !got[5].Success {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func TestCertificates(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	tests := []struct{ name, doc, want string }{
		{"none", `{}`, "The proxy has no certificates"},
		{"valid", certsUntil(now.Add(time.Second)), ""},
		{"expired", certsUntil(now.Add(-time.Second)), "Certificate ab expired at 2025-12-31T23:59:59Z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c certificates
			if err := json.Unmarshal([]byte(tt.doc), &c); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(c.invalid(now), "; "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Setenv("CONSUL_HTTP_ADDR", "")
	tests := []struct {
		name, command string
		args          []string
		want          string
	}{
		{"no upstream", "troubleshoot proxy", nil, "-upstream-envoy-id OR -upstream-ip is required."},
		{"no admin server", "troubleshoot upstreams", []string{"-envoy-admin-endpoint", "127.0.0.1:1"}, "connection refused"},
		{"no port", "troubleshoot upstreams", []string{"-envoy-admin-endpoint", "host"}, "should be host:port"},
		{"no host", "troubleshoot ports", nil, "-host is required. or set environment variable CONSUL_HTTP_ADDR"},
		{"bad port", "troubleshoot ports", []string{"-host", "h", "-ports", "1,x"}, `Invalid port: "x"`},
		{"bad format", "troubleshoot ports", []string{"-host", "h", "-format", "x"}, "Unknown format: x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, _, errs := run(t, tt.command, tt.args...)
			if code != 1 || !strings.Contains(errs, tt.want) {
				t.Errorf("exit %d, %q; want 1, %q", code, errs, tt.want)
			}
		})
	}
}

func TestPorts(t *testing.T) {
	open, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	p := strconv.Itoa(open.Addr().(*net.TCPAddr).Port)
	for _, host := range []string{"127.0.0.1", "127.0.0.1:8500", "http://127.0.0.1:8500"} {
		t.Setenv("CONSUL_HTTP_ADDR", host)
		code, out, errs := run(t, "troubleshoot ports", "-ports", p+",1")
		want := "TCP: Port " + p + " on 127.0.0.1 is open.\nTCP: Port 1 on 127.0.0.1 is closed, unreachable, or the connection timed out.\n"
		if code != 0 || out != want {
			t.Errorf("%s: exit %d, %s%s", host, code, errs, cmp.Diff(want, out))
		}
	}
}

// Whatever an admin server answers, the first things are always told, and each finding says something.
func FuzzExamine(f *testing.F) {
	f.Add(dump, certsUntil(time.Unix(0, 0)), stats, statuses, "web", "240.0.0.3")
	f.Add(`{}`, `{}`, `{}`, `{}`, "", "")
	f.Fuzz(func(t *testing.T, d, c, s, h, name, ip string) {
		var (
			dump     configDump
			certs    certificates
			stats    statistics
			clusters clusterStatuses
		)
		json.Unmarshal([]byte(d), &dump) // what is wrong stays empty
		json.Unmarshal([]byte(c), &certs)
		json.Unmarshal([]byte(s), &stats)
		json.Unmarshal([]byte(h), &clusters)
		dump.upstreams()
		found := examine(&dump, &certs, &stats, &clusters, name, ip, time.Unix(1, 0))
		if len(found) < 4 {
			t.Errorf("only %d findings", len(found))
		}
		for _, one := range found {
			if one.Message == "" {
				t.Error("a finding without a message")
			}
		}
	})
}
