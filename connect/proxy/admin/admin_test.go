package admin_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/admin"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

const document = `{"node":{"id":"edge","cluster":"edges"},"static_resources":{
 "listeners":[{"name":"in","traffic_direction":"INBOUND","address":{"socket_address":{"address":"127.0.0.1","port_value":0}},"filter_chains":[{
   "transport_socket":{"name":"tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
     "common_tls_context":{"tls_certificates":[{"certificate_chain":{"filename":"LEAF"},"private_key":{"inline_string":"KEY"}}]}}},
   "filters":[{"name":"t","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"x","cluster":"app"}}]}]},
  {"name":"web","address":{"socket_address":{"address":"127.0.0.1","port_value":0}},"filter_chains":[{"filters":[{"name":"h","typed_config":{
   "@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"w","route_config":{"name":"inline"},
   "http_filters":[{"name":"r","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}],
 "clusters":[{"name":"app","type":"STATIC","connect_timeout":"1s","load_assignment":{"cluster_name":"app","endpoints":[{"lb_endpoints":[
   {"endpoint":{"address":{"socket_address":{"address":"127.0.0.1","port_value":1}}}},{"health_status":"UNHEALTHY","endpoint":{"address":{"pipe":{"path":"/s"}}}}]}]}}]}}`

// start runs a proxy of the document and returns it with a function that stops it.
func start(t *testing.T) (*proxy.Proxy, func()) {
	t.Helper()
	key, err := os.ReadFile("../decode/testdata/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	enc, _ := json.Marshal(string(key))
	text := strings.ReplaceAll(strings.ReplaceAll(document, `"KEY"`, string(enc)), "LEAF", "../decode/testdata/leaf.pem")
	d := decode.New(decode.FromSystem())
	b, err := d.Bootstrap("x.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{Bootstrap: b, Decoder: d, Version: "1.2.3", ShutdownTime: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.Run(context.Background()) }()
	for end := time.Now().Add(time.Minute); !p.Ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not ready")
		}
	}
	return p, func() {
		p.Quit()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func ask(s http.Handler, method, target string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://localhost"+target, nil)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func TestPages(t *testing.T) {
	p, stop := start(t)
	defer stop()
	s := admin.New(p, admin.Config{})
	tests := []struct{ target, want string }{
		{"/", "<form method=post action=\"/quitquitquit\">"},
		{"/help", "  /stats/prometheus: "},
		{"/ready", "LIVE\n"},
		{"/server_info", `"version": "1.2.3"`},
		{"/server_info", `"id": "edge"`},
		{"/stats", "listener_manager.listener_added: 1\n"},
		{"/stats?filter=^server.live$", "server.live: 1\n"},
		{"/stats?format=json&filter=^server.live$", `{"name":"server.live","value":1}`},
		{"/stats?format=prometheus&filter=live", "envoy_server_live{} 1\n"},
		{"/stats/prometheus", `envoy_cluster_membership_total{envoy_cluster_name="app"} 2`},
		{"/clusters", "app::127.0.0.1:1::health_flags::healthy\n"},
		{"/clusters", "app::/s::health_flags::/failed_eds_health\n"},
		{"/clusters", "app::added_via_api::false\n"},
		{"/clusters?format=json", `"eds_health_status": "UNHEALTHY"`},
		{"/listeners", "in::127.0.0.1:"},
		{"/listeners?format=json", `"address": "127.0.0.1"`},
		{"/certs", `"uri": "spiffe://td.consul/ns/default/dc/dc1/svc/web"`},
		{"/config_dump", `"static_listeners"`},
		{"/config_dump", `[redacted]`},
		{"/config_dump?resource=static_clusters", `"name":"app"`},
		{"/config_dump", `"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump"`},
		{"/config_dump?resource=static_clusters&mask=cluster.name", "{\n \"configs\": [\n  {\n   \"cluster\": {\n    \"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\",\n    \"name\":\"app\"\n   }\n  }\n ]\n}\n"},
		{"/config_dump?resource=static_clusters&name_regex=^b", `"configs": []`},
		{"/config_dump?resource=static_route_configs", `"name": "inline"`},
		{"/stats?format=json&filter=upstream_cx_length_ms", `"computed_quantiles"`},
		{"/stats?format=json&filter=upstream_cx_length_ms&histogram_buckets=disjoint", `{"cumulative":0,"interval":null,"upper_bound":0.5}`},
		{"/stats?format=html&filter=^server.live$", "<pre>server.live: 1\n</pre>"},
		{"/stats/prometheus?histogram_buckets=summary&filter=upstream_cx_length_ms", `quantile="0.99"} NaN`},
		{"/clusters", "app::default_priority::max_requests::1024\n"},
		{"/clusters", "app::high_priority::requests::closed, 0 in use\n"},
		{"/clusters", "app::127.0.0.1:1::success_rate::-1\n"},
		{"/clusters?format=json", `"state": "closed"`},
		{"/init_dump", `"unready_targets_dumps"`},
		{"/memory", `"allocated"`},
		{"/debug/pprof/goroutine?debug=1", "goroutine profile"},
	}
	for _, tt := range tests {
		w := ask(s, "GET", tt.target)
		body := strings.ReplaceAll(w.Body.String(), `"name": "app"`, `"name":"app"`)
		if w.Code != 200 || !strings.Contains(body, tt.want) {
			t.Errorf("%s: %d, no %q in\n%s", tt.target, w.Code, tt.want, body)
		}
		if strings.Contains(body, "PRIVATE KEY") {
			t.Errorf("%s shows a private key", tt.target)
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s may be sniffed", tt.target)
		}
	}
	for target, want := range map[string]int{"/nope": 404, "/stats?filter=(": 400, "/stats?format=yaml": 400, "/stats?type=Some": 400, "/stats?histogram_buckets=all": 400, "/config_dump?resource=nope": 404, "/config_dump?name_regex=(": 400, "/logging": 405, "/quitquitquit": 405, "/drain_listeners": 405} {
		if w := ask(s, "GET", target); w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
}

func TestHealthAndDraining(t *testing.T) {
	p, stop := start(t)
	defer stop()
	s := admin.New(p, admin.Config{})
	ready := func(code int, text string) {
		t.Helper()
		if w := ask(s, "GET", "/ready"); w.Code != code || w.Body.String() != text {
			t.Errorf("ready: %d %q, want %d %q", w.Code, w.Body, code, text)
		}
	}
	ask(s, "POST", "/healthcheck/fail")
	ready(503, "DRAINING\n")
	ask(s, "POST", "/healthcheck/ok")
	ready(200, "LIVE\n")
	addr := p.Listeners()[0].Addresses[0]
	if w := ask(s, "POST", "/drain_listeners?inboundonly"); w.Code != 200 {
		t.Errorf("drain: %d", w.Code)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("a drained listener takes connections")
	}
	ask(s, "POST", "/reset_counters")
	if w := ask(s, "GET", "/stats?filter=listener_added"); w.Body.String() != "listener_manager.listener_added: 0\n" {
		t.Errorf("after a reset: %q", w.Body)
	}
}

func TestLogLevelChanges(t *testing.T) {
	p, stop := start(t)
	defer stop()
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: io.Discard})
	s := admin.New(p, admin.Config{Logger: log})
	if ask(s, "POST", "/logging?level=debug"); log.GetLevel() != hclog.Debug {
		t.Errorf("level is %v, want debug", log.GetLevel())
	}
	if w := ask(s, "POST", "/logging?level=loud"); w.Code != 400 || log.GetLevel() != hclog.Debug {
		t.Errorf("an unknown level: %d, now %v", w.Code, log.GetLevel())
	}
}

func TestForeignNamesAndOtherPathsAreRefused(t *testing.T) {
	p, stop := start(t)
	defer stop()
	m, err := model.NewStringMatch(model.MatchExact, "/ready", false)
	if err != nil {
		t.Fatal(err)
	}
	s := admin.New(p, admin.Config{Allow: []model.StringMatch{m}})
	if w := ask(s, "GET", "/stats"); w.Code != 403 {
		t.Errorf("a path that is not allowed: %d", w.Code)
	}
	for host, want := range map[string]int{"127.0.0.1:19000": 200, "[::1]:19000": 200, "localhost:19000": 200, "evil.example:19000": 403, "127.0.0.1.evil.example": 403} {
		r := httptest.NewRequest("GET", "http://"+host+"/ready", nil)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("asked as %s: %d, want %d", host, w.Code, want)
		}
	}
}

func TestServesOnASocketUntilTold(t *testing.T) {
	p, stop := start(t)
	dir, err := os.MkdirTemp("", "adm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- admin.New(p, admin.Config{}).Serve(ctx, ln) }()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(dir, "s"))
	}}}
	resp, err := c.Get("http://any.name/ready")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || string(b) != "LIVE\n" {
		t.Errorf("over the socket: %d %q", resp.StatusCode, b)
	}
	stop()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSocketFolderMustBeClosedToOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := admin.SocketFolder(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := admin.SocketFolder(dir); err == nil {
		t.Error("an open folder was accepted")
	}
}
