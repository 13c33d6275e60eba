//go:build unix

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// teller is an HTTP service, of HTTP/1.1 and HTTP/2, that tells about requests: its name, the protocol, the method, the
// path, and the fields that begin with "x-test-". Some paths make it misbehave.
func teller(t testing.TB, name string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var failed sync.Map // by path, *atomic.Int32
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
			select {
			case <-time.After(d):
			case <-r.Context().Done():
				return
			}
		}
		if n, err := strconv.Atoi(r.URL.Query().Get("fail")); err == nil { // so often, then no more
			c, _ := failed.LoadOrStore(r.URL.Path, new(atomic.Int32))
			if c.(*atomic.Int32).Add(1) <= int32(n) {
				w.WriteHeader(503)
				return
			}
		}
		w.Header().Set("x-who", name)
		if code, err := strconv.Atoi(r.URL.Query().Get("status")); err == nil {
			w.WriteHeader(code)
		}
		var fields []string
		for k, v := range r.Header {
			if k = strings.ToLower(k); strings.HasPrefix(k, "x-test-") {
				fields = append(fields, " "+k+"="+strings.Join(v, ","))
			}
		}
		slices.Sort(fields)
		fmt.Fprintf(w, "%s %s %s %s%s", name, r.Proto, r.Method, r.URL.Path, strings.Join(fields, ""))
	})}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// A mesh is an agent with services and their sidecars, which "shop" calls.
type mesh struct {
	*agent
	testing.TB
	by       string         // who the sidecars are: "sarn" or "envoy"
	ports    map[string]int // where shop's sidecar listens, by upstream
	sidecars map[string]*process
}

// A response is what a caller of the mesh sees.
type response struct {
	code   int
	body   string
	header http.Header
	err    error
}

// String is the status and the body, or the error.
func (r response) String() string {
	if r.err != nil {
		return r.err.Error()
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", r.code, r.body))
}

// ask sends a request to an upstream; header is a list of names and values.
func (m *mesh) ask(upstream, method, path string, header ...string) response {
	return ask(fmt.Sprintf("http://127.0.0.1:%d%s", m.ports[upstream], path), method, header...)
}

func ask(url, method string, header ...string) response {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return response{err: err}
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return response{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, string(body), resp.Header, err}
}

// write writes configuration entries.
func (m *mesh) write(entries ...string) {
	m.Helper()
	for _, e := range entries {
		m.must(m, "PUT", "/v1/config", e)
	}
}

// sidecar runs the sidecar of a service, by its ID.
func (m *mesh) sidecar(t *testing.T, id string) {
	t.Helper()
	env := []string{"CONSUL_HTTP_ADDR=" + m.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", m.agent.ports["grpc"])}
	if m.by == "sarn" {
		m.sidecars[id] = start(t, id+"-sidecar", env, binary(t), "connect", "proxy", "-sidecar-for", id, "-drain-time", "100ms", "-admin-socket", "none")
		return
	}
	out, code := m.cli(t, "connect", "envoy", "-sidecar-for", id, "-bootstrap", "-admin-bind", "127.0.0.1:0")
	if code != 0 {
		t.Fatalf("bootstrap: %s", out)
	}
	file := filepath.Join(t.TempDir(), id+".json")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	m.sidecars[id] = start(t, id+"-envoy", nil, tool(t, "envoy"), "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "warning",
		// Or else open connections would keep the old rules for ten minutes.
		"--drain-time-s", "1", "--drain-strategy", "immediate")
}

// A token is signed with a key of the test's.
type signer struct{ key *ecdsa.PrivateKey }

func newSigner(t testing.TB) *signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key}
}

// keys is the set of public keys, as a jwt-provider has it.
func (s *signer) keys(t testing.TB) string {
	p, err := s.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	set := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":%q,"y":%q}]}`, b64(p[1:33]), b64(p[33:]))
	return base64.StdEncoding.EncodeToString([]byte(set))
}

func (s *signer) token(t testing.TB, claims map[string]any) string {
	data, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64([]byte(`{"alg":"ES256","kid":"k","typ":"JWT"}`)) + "." + b64(data)
	sum := sha256.Sum256([]byte(text))
	a, b, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	a.FillBytes(sig[:32])
	b.FillBytes(sig[32:])
	return text + "." + b64(sig)
}

// A collector takes spans as OTLP over HTTP.
type collector struct {
	mu    sync.Mutex
	spans []string // trace ID and kind
}

func (c *collector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	var m tracev1.TracesData // which has the form of the request
	if proto.Unmarshal(data, &m) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range m.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, fmt.Sprintf("%x", s.TraceId))
			}
		}
	}
}

func (c *collector) count(trace string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s == trace {
			n++
		}
	}
	return n
}

// publicListener is a listener as users write it, with faults on demand and three requests a minute under /rated.
const publicListener = `{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "filter_chains": [{"filters": [{
	"name": "envoy.filters.network.http_connection_manager", "typed_config": {
	"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
	"stat_prefix": "public_listener",
	"http_filters": [
		{"name": "envoy.filters.http.fault", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
			"abort": {"header_abort": {}, "percentage": {"numerator": 100}}}},
		{"name": "envoy.filters.http.local_ratelimit", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", "stat_prefix": "all"}},
		{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
	"route_config": {"name": "public_listener", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
		{"match": {"prefix": "/rated"}, "route": {"cluster": "local_app"}, "typed_per_filter_config": {"envoy.filters.http.local_ratelimit": {
			"@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", "stat_prefix": "rated",
			"token_bucket": {"max_tokens": 3, "tokens_per_fill": 3, "fill_interval": "60s"},
			"filter_enabled": {"default_value": {"numerator": 100}}, "filter_enforced": {"default_value": {"numerator": 100}}}}},
		{"match": {"prefix": "/"}, "route": {"cluster": "local_app"}}]}]}}}]}]}`

func quote(s string) string {
	data, _ := json.Marshal(s)
	return string(data)
}

// TestRequestsInTheMesh runs one set of services twice, with the built-in proxy and with Envoy as sidecars, under the same
// entries, and wants the same answers: routes, splits, subsets, failover, stickiness, limits, intentions about requests,
// tokens, logs, spans, exposed paths and extensions.
func TestRequestsInTheMesh(t *testing.T) {
	binary(t)
	for _, by := range []string{"sarn", "envoy"} {
		t.Run(by, func(t *testing.T) {
			if by == "envoy" {
				tool(t, "envoy")
			}
			m := &mesh{TB: t, by: by, ports: map[string]int{}, sidecars: map[string]*process{}}
			spans := &collector{}
			spanServer := httptest.NewServer(spans)
			t.Cleanup(spanServer.Close)
			authz := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "open sesame" {
					w.WriteHeader(http.StatusForbidden)
					io.WriteString(w, "who are you?")
				}
			}))
			t.Cleanup(authz.Close)
			rpc, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			rpcServer := grpc.NewServer()
			healthv1.RegisterHealthServer(rpcServer, health.NewServer())
			go rpcServer.Serve(rpc)
			t.Cleanup(rpcServer.Stop)

			names := []string{"web", "routed", "split", "first", "vault", "asked", "frail", "h2", "rpc", "custom"}
			free := freePorts(len(names) + 11) // one call, so that no two are equal
			next := func() int { p := free[0]; free = free[1:]; return p }
			exposed := next()
			asked := teller(t, "asked")
			services := []any{}
			var ids []string
			service := func(name, id string, port int, meta map[string]string, proxy map[string]any) {
				ids = append(ids, id)
				services = append(services, map[string]any{
					"name": name, "id": id, "port": port, "meta": meta,
					"connect": map[string]any{"sidecar_service": map[string]any{"port": next(), "proxy": proxy}},
				})
			}
			service("web", "web-1", teller(t, "v1"), map[string]string{"version": "1"}, nil)
			service("web", "web-2", teller(t, "v2"), map[string]string{"version": "2"}, nil)
			service("vault", "vault", teller(t, "vault"), nil, nil)
			service("asked", "asked", asked, nil, map[string]any{"expose": map[string]any{"paths": []any{
				map[string]any{"path": "/health", "local_path_port": asked, "listener_port": exposed, "protocol": "http"},
			}}})
			service("frail", "frail", teller(t, "frail"), nil, nil)
			service("h2", "h2", teller(t, "h2"), nil, nil)
			service("rpc", "rpc", rpc.Addr().(*net.TCPAddr).Port, nil, nil)
			service("custom", "custom", teller(t, "custom"), nil, map[string]any{"config": map[string]any{"envoy_public_listener_json": publicListener}})
			var upstreams []any
			for _, name := range names {
				m.ports[name] = next()
				upstreams = append(upstreams, map[string]any{"destination_name": name, "local_bind_port": m.ports[name]})
			}
			service("shop", "shop", 1, nil, map[string]any{"upstreams": upstreams})

			m.agent = newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true, "default_intention_policy": "deny", "services": services})
			m.run(t)
			eventually(t, 20*time.Second, "the services are registered", func() bool {
				known, _ := m.get("/v1/catalog/services").(map[string]any)
				return known["shop-sidecar-proxy"] != nil && known["custom-sidecar-proxy"] != nil
			})

			sign := newSigner(t)
			trace := fmt.Sprintf(`{"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing",
				"random_sampling": {"value": 100}, "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
				"service_name": "mesh", "http_service": {"http_uri": {"uri": "%s/v1/traces", "cluster": "collector", "timeout": "1s"}}}}}`, spanServer.URL)
			collectorCluster := fmt.Sprintf(`{"name": "collector", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "collector", "endpoints": [{"lb_endpoints": [
				{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %s}}}}]}]}}`, spanServer.URL[strings.LastIndex(spanServer.URL, ":")+1:])
			allow := func(name string) string {
				return fmt.Sprintf(`{"Kind": "service-intentions", "Name": %q, "Sources": [{"Name": "shop", "Action": "allow"}]}`, name)
			}
			m.write(
				fmt.Sprintf(`{"Kind": "proxy-defaults", "Name": "global", "AccessLogs": {"Enabled": true},
					"Config": {"protocol": "http", "envoy_listener_tracing_json": %s, "envoy_extra_static_clusters_json": %s}}`, quote(trace), quote(collectorCluster)),
				`{"Kind": "service-defaults", "Name": "h2", "Protocol": "http2"}`,
				`{"Kind": "service-defaults", "Name": "rpc", "Protocol": "grpc"}`,
				fmt.Sprintf(`{"Kind": "service-defaults", "Name": "asked", "Protocol": "http", "EnvoyExtensions": [{"Name": "builtin/ext-authz", "Required": true, "Arguments": {
					"ProxyType": "connect-proxy", "Config": {"HttpService": {"Target": {"URI": %q}}}}}]}`, strings.TrimPrefix(authz.URL, "http://")),
				`{"Kind": "service-defaults", "Name": "shop", "Protocol": "http",
					"EnvoyExtensions": [{"Name": "builtin/property-override", "Arguments": {"ProxyType": "connect-proxy", "Patches": [
						{"ResourceFilter": {"ResourceType": "route", "TrafficDirection": "outbound", "Services": [{"Name": "split"}]}, "Op": "add", "Path": "/response_headers_to_remove", "Value": ["x-who"]}]}}],
					"UpstreamConfig": {"Overrides": [
						{"Name": "frail", "PassiveHealthCheck": {"Interval": "500ms", "MaxFailures": 3, "EnforcingConsecutive5xx": 100, "MaxEjectionPercent": 100, "BaseEjectionTime": "5s"}},
						{"Name": "h2", "Limits": {"MaxConcurrentRequests": 2}}]}}`,
				`{"Kind": "service-resolver", "Name": "web",
					"Subsets": {"v1": {"Filter": "Service.Meta.version == 1"}, "v2": {"Filter": "Service.Meta.version == 2"}},
					"Failover": {"v1": {"ServiceSubset": "v2"}},
					"LoadBalancer": {"Policy": "ring_hash", "HashPolicies": [
						{"Field": "header", "FieldValue": "x-user", "Terminal": true},
						{"Field": "cookie", "FieldValue": "seat", "CookieConfig": {"TTL": "1m", "Path": "/"}}]}}`,
				`{"Kind": "service-resolver", "Name": "routed", "Redirect": {"Service": "web", "ServiceSubset": "v1"}}`,
				`{"Kind": "service-resolver", "Name": "first", "Failover": {"*": {"Targets": [{"Service": "absent"}, {"Service": "web", "ServiceSubset": "v2"}]}}}`,
				`{"Kind": "service-splitter", "Name": "split", "Splits": [
					{"Weight": 90, "Service": "web", "ServiceSubset": "v1", "RequestHeaders": {"Set": {"x-test-split": "old"}}},
					{"Weight": 10, "Service": "web", "ServiceSubset": "v2", "ResponseHeaders": {"Set": {"x-split": "new"}}}]}`,
				`{"Kind": "service-router", "Name": "routed", "Routes": [
					{"Match": {"HTTP": {"PathExact": "/exact"}}, "Destination": {"Service": "web", "ServiceSubset": "v2"}},
					{"Match": {"HTTP": {"PathPrefix": "/old/"}}, "Destination": {"Service": "web", "ServiceSubset": "v1", "PrefixRewrite": "/new/"}},
					{"Match": {"HTTP": {"PathRegex": "/item/[0-9]+"}}, "Destination": {"Service": "web", "ServiceSubset": "v2"}},
					{"Match": {"HTTP": {"PathPrefix": "/Loud", "CaseInsensitive": true}}, "Destination": {"Service": "web", "ServiceSubset": "v2"}},
					{"Match": {"HTTP": {"Header": [{"Name": "x-version", "Exact": "2"}]}}, "Destination": {"Service": "web", "ServiceSubset": "v2"}},
					{"Match": {"HTTP": {"Header": [{"Name": "x-beta", "Present": true}, {"Name": "x-tester", "Regex": "no.*", "Invert": true}]}}, "Destination": {"Service": "web", "ServiceSubset": "v2"}},
					{"Match": {"HTTP": {"Header": [{"Name": "x-file", "Suffix": ".png"}]}}, "Destination": {"Service": "web", "ServiceSubset": "v2"}},
					{"Match": {"HTTP": {"QueryParam": [{"Name": "debug", "Exact": "1"}]}}, "Destination": {"Service": "web", "ServiceSubset": "v2"}},
					{"Match": {"HTTP": {"Methods": ["DELETE", "PUT"]}}, "Destination": {"Service": "web", "ServiceSubset": "v2"}},
					{"Match": {"HTTP": {"PathPrefix": "/edit"}}, "Destination": {"Service": "web", "ServiceSubset": "v1",
						"RequestHeaders": {"Set": {"x-test-set": "1"}, "Add": {"x-test-add": "2"}, "Remove": ["x-test-gone"]}, "ResponseHeaders": {"Set": {"x-edited": "yes"}, "Remove": ["x-who"]}}},
					{"Match": {"HTTP": {"PathPrefix": "/retried"}}, "Destination": {"Service": "web", "ServiceSubset": "v1", "NumRetries": 3, "RetryOnStatusCodes": [503]}},
					{"Match": {"HTTP": {"PathPrefix": "/timed"}}, "Destination": {"Service": "web", "ServiceSubset": "v1", "RequestTimeout": "2s"}}]}`,
				fmt.Sprintf(`{"Kind": "jwt-provider", "Name": "issuer", "Issuer": "https://issuer.example", "Audiences": ["vault"], "JSONWebKeySet": {"Local": {"JWKS": %q}},
					"Locations": [{"Header": {"Name": "authorization", "ValuePrefix": "Bearer "}}], "Forwarding": {"HeaderName": "x-test-payload"}}`, sign.keys(t)),
				`{"Kind": "service-intentions", "Name": "vault", "Sources": [{"Name": "shop", "Permissions": [
					{"Action": "deny", "HTTP": {"PathPrefix": "/admin/keys"}},
					{"Action": "allow", "HTTP": {"PathPrefix": "/admin", "Methods": ["GET"], "Header": [{"Name": "x-role", "Exact": "admin"}]}},
					{"Action": "allow", "HTTP": {"PathExact": "/open"}},
					{"Action": "allow", "HTTP": {"PathRegex": "/item/[0-9]+", "Methods": ["GET", "PUT"]}},
					{"Action": "allow", "HTTP": {"PathPrefix": "/token"}, "JWT": {"Providers": [{"Name": "issuer", "VerifyClaims": [{"Path": ["role"], "Value": "admin"}]}]}}]}]}`,
				allow("web"), allow("asked"), allow("frail"), allow("h2"), allow("rpc"), allow("custom"),
			)
			for _, id := range ids {
				m.sidecar(t, id)
			}
			for _, u := range []string{"web", "routed", "split", "first", "frail", "h2", "custom"} {
				var last response
				defer func() {
					if t.Failed() && last.code != 200 {
						t.Logf("%s: %v", u, last)
					}
				}()
				eventually(t, 40*time.Second, u+" answers", func() bool { last = m.ask(u, "GET", "/"); return last.code == 200 })
			}
			eventually(t, 40*time.Second, "both instances are known to be healthy", func() bool {
				return strings.HasPrefix(m.ask("routed", "GET", "/").body, "v1") && strings.HasPrefix(m.ask("routed", "GET", "/exact").body, "v2")
			})
			eventually(t, 20*time.Second, "vault answers", func() bool { return m.ask("vault", "GET", "/open").code == 200 })
			eventually(t, 20*time.Second, "asked answers", func() bool { return m.ask("asked", "GET", "/", "Authorization", "open sesame").code == 200 })
			requestCases(t, m, sign)
			requestBehaviours(t, m, spans, exposed)
		})
	}
}

// requestCases are single requests and their answers.
func requestCases(t *testing.T, m *mesh, sign *signer) {
	now := time.Now().Unix()
	bearer := func(change map[string]any) string {
		claims := map[string]any{"iss": "https://issuer.example", "aud": "vault", "sub": "a", "role": "admin", "exp": now + 3600}
		for k, v := range change {
			claims[k] = v
		}
		return "Bearer " + sign.token(t, claims)
	}
	const denied = "403 RBAC: access denied"
	for _, c := range []struct {
		name, upstream, method, path string
		header                       []string
		want                         string
	}{
		{"no route fits", "routed", "GET", "/else", nil, "200 v1 HTTP/1.1 GET /else"},
		{"exact path", "routed", "GET", "/exact", nil, "200 v2 HTTP/1.1 GET /exact"},
		{"exact path, not below", "routed", "GET", "/exact/x", nil, "200 v1 HTTP/1.1 GET /exact/x"},
		{"prefix rewritten", "routed", "GET", "/old/a", nil, "200 v1 HTTP/1.1 GET /new/a"},
		{"regular expression", "routed", "GET", "/item/12", nil, "200 v2 HTTP/1.1 GET /item/12"},
		{"regular expression, whole path", "routed", "GET", "/item/12/x", nil, "200 v1 HTTP/1.1 GET /item/12/x"},
		{"any case", "routed", "GET", "/lOUD/x", nil, "200 v2 HTTP/1.1 GET /lOUD/x"},
		{"header", "routed", "GET", "/", []string{"x-version", "2"}, "200 v2 HTTP/1.1 GET /"},
		{"header, other value", "routed", "GET", "/", []string{"x-version", "3"}, "200 v1 HTTP/1.1 GET /"},
		{"two headers, one inverted", "routed", "GET", "/", []string{"x-beta", "1", "x-tester", "yes"}, "200 v2 HTTP/1.1 GET /"},
		{"two headers, the inverted is missing", "routed", "GET", "/", []string{"x-beta", "1"}, "200 v1 HTTP/1.1 GET /"},
		{"two headers, the inverted fits", "routed", "GET", "/", []string{"x-beta", "1", "x-tester", "nobody"}, "200 v1 HTTP/1.1 GET /"},
		{"end of a header", "routed", "GET", "/", []string{"x-file", "a.png"}, "200 v2 HTTP/1.1 GET /"},
		{"query", "routed", "GET", "/?debug=1", nil, "200 v2 HTTP/1.1 GET /"},
		{"query, other value", "routed", "GET", "/?debug=11", nil, "200 v1 HTTP/1.1 GET /"},
		{"method", "routed", "PUT", "/", nil, "200 v2 HTTP/1.1 PUT /"},
		{"other method", "routed", "POST", "/", nil, "200 v1 HTTP/1.1 POST /"},
		{"edited request", "routed", "GET", "/edit", []string{"x-test-gone", "1", "x-test-add", "1", "x-test-set", "0"}, "200 v1 HTTP/1.1 GET /edit x-test-add=1,2 x-test-set=1"},
		{"retried", "routed", "GET", "/retried/1?fail=3", nil, "200 v1 HTTP/1.1 GET /retried/1"},
		{"retried too seldom", "routed", "GET", "/retried/2?fail=4", nil, "503"},
		{"in time", "routed", "GET", "/timed?sleep=10ms", nil, "200 v1 HTTP/1.1 GET /timed"}, // before five failures in a row
		{"not retried", "routed", "GET", "/else/3?fail=1", nil, "503"},
		{"too slow", "routed", "GET", "/timed?sleep=5s", nil, "504 upstream request timeout"},
		{"failover to the second target", "first", "GET", "/x", nil, "200 v2 HTTP/1.1 GET /x"},
		{"HTTP/2 to the service", "h2", "GET", "/x", nil, "200 h2 HTTP/2.0 GET /x"},

		{"allowed path", "vault", "GET", "/open", nil, "200 vault HTTP/1.1 GET /open"},
		{"path of no rule", "vault", "GET", "/open/x", nil, denied},
		{"query is no path", "vault", "GET", "/open?x=/admin", nil, "200 vault HTTP/1.1 GET /open"},
		{"path made to look allowed", "vault", "GET", "/x/../open", nil, "200 vault HTTP/1.1 GET /open"},
		{"header of the rule", "vault", "GET", "/admin/x", []string{"x-role", "admin"}, "200 vault HTTP/1.1 GET /admin/x"},
		{"header of the rule is missing", "vault", "GET", "/admin/x", nil, denied},
		{"other method than the rule's", "vault", "POST", "/admin/x", []string{"x-role", "admin"}, denied},
		{"denied before it is allowed", "vault", "GET", "/admin/keys/1", []string{"x-role", "admin"}, denied},
		{"denied by another way to write it", "vault", "GET", "/admin/x/../keys/1", []string{"x-role", "admin"}, denied},
		{"regular expression of the rule", "vault", "PUT", "/item/7", nil, "200 vault HTTP/1.1 PUT /item/7"},
		{"regular expression, whole path only", "vault", "GET", "/item/7/x", nil, denied},

		{"no token", "vault", "GET", "/token", nil, denied},
		{"token", "vault", "GET", "/token", []string{"Authorization", bearer(nil)}, "200 vault HTTP/1.1 GET /token x-test-payload=*"},
		{"token without the claim", "vault", "GET", "/token", []string{"Authorization", bearer(map[string]any{"role": "user"})}, denied},
		{"token of the past", "vault", "GET", "/token", []string{"Authorization", bearer(map[string]any{"exp": now - 3600})}, denied},
		{"token for somebody else", "vault", "GET", "/token", []string{"Authorization", bearer(map[string]any{"aud": "bank"})}, denied},
		{"token from somebody else", "vault", "GET", "/token", []string{"Authorization", bearer(map[string]any{"iss": "https://other.example"})}, denied},
		{"token of another key", "vault", "GET", "/token", []string{"Authorization", "Bearer " + newSigner(t).token(t, map[string]any{
			"iss": "https://issuer.example", "aud": "vault", "role": "admin", "exp": now + 3600})}, denied},
		{"payload made up", "vault", "GET", "/open", []string{"x-test-payload", "made-up"}, "200 vault HTTP/1.1 GET /open"},

		{"authorized by a server", "asked", "GET", "/x", []string{"Authorization", "open sesame"}, "200 asked HTTP/1.1 GET /x"},
		{"refused by a server", "asked", "GET", "/x", nil, "403 who are you?"},
		{"fault on demand", "custom", "GET", "/x", []string{"x-envoy-fault-abort-request", "418"}, "418 fault filter abort"},
		{"no fault", "custom", "GET", "/x", nil, "200 custom HTTP/1.1 GET /x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := m.ask(c.upstream, c.method, c.path, c.header...).String()
			if before, _, ok := strings.Cut(c.want, "*"); got != c.want && (!ok || !strings.HasPrefix(got, before)) {
				t.Errorf("%s %s: got %q, want %q", c.method, c.path, got, c.want)
			}
		})
	}
}

// requestBehaviours are what takes more than one request to see.
func requestBehaviours(t *testing.T, m *mesh, spans *collector, exposed int) {
	t.Run("edited response", func(t *testing.T) {
		r := m.ask("routed", "GET", "/edit")
		if r.header.Get("x-edited") != "yes" || r.header.Get("x-who") != "" {
			t.Errorf("fields %v, want x-edited and no x-who", r.header)
		}
	})
	t.Run("split", func(t *testing.T) {
		const n = 500
		fresh := 0
		for range n {
			r := m.ask("split", "GET", "/x")
			switch {
			case r.header.Get("x-who") != "":
				t.Fatalf("the extension did not remove x-who: %v", r.header)
			case r.String() == "200 v1 HTTP/1.1 GET /x x-test-split=old" && r.header.Get("x-split") == "":
			case r.String() == "200 v2 HTTP/1.1 GET /x" && r.header.Get("x-split") == "new":
				fresh++
			default:
				t.Fatalf("%v with %v", r, r.header)
			}
		}
		if fresh < n*4/100 || fresh > n*18/100 {
			t.Errorf("%d of %d requests went to the new version, want about 10 %%", fresh, n)
		}
	})
	sticky := func(t *testing.T) {
		used := map[string]bool{}
		for user := range 20 {
			key := fmt.Sprintf("user-%d", user)
			who := m.ask("web", "GET", "/", "x-user", key).body
			used[who] = true
			for range 5 {
				if r := m.ask("web", "GET", "/", "x-user", key); r.body != who {
					t.Errorf("%s went to %q, then to %q", key, who, r.body)
				}
			}
		}
		if len(used) != 2 {
			t.Errorf("all users are with %v", used)
		}
	}
	t.Run("sticky by header", sticky)
	t.Run("sticky by cookie", func(t *testing.T) {
		used := map[string]bool{}
		for range 20 {
			first := m.ask("web", "GET", "/", "Connection", "close") // the address may make the cookie
			cookie, _, _ := strings.Cut(first.header.Get("Set-Cookie"), ";")
			if !strings.HasPrefix(cookie, "seat=") {
				t.Fatalf("no cookie: %v", first.header)
			}
			used[first.body] = true
			for range 3 {
				if r := m.ask("web", "GET", "/", "Cookie", cookie); r.body != first.body || r.header.Get("Set-Cookie") != "" {
					t.Errorf("%s went to %q, then to %q with %v", cookie, first.body, r.body, r.header)
				}
			}
		}
		if len(used) != 2 {
			t.Errorf("all cookies lead to %v", used)
		}
	})
	t.Run("sticky by Maglev", func(t *testing.T) {
		m.write(`{"Kind": "service-resolver", "Name": "web",
			"Subsets": {"v1": {"Filter": "Service.Meta.version == 1"}, "v2": {"Filter": "Service.Meta.version == 2"}},
			"Failover": {"v1": {"ServiceSubset": "v2"}},
			"LoadBalancer": {"Policy": "maglev", "HashPolicies": [{"Field": "header", "FieldValue": "x-user"}]}}`)
		eventually(t, 30*time.Second, "no cookie is set any more", func() bool {
			r := m.ask("web", "GET", "/")
			return r.code == 200 && r.header.Get("Set-Cookie") == ""
		})
		sticky(t)
	})
	t.Run("gRPC", func(t *testing.T) {
		conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", m.ports["rpc"]), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var r *healthv1.HealthCheckResponse
		eventually(t, 20*time.Second, "rpc answers", func() bool { // its sidecar's check may still be failing
			r, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
			return err == nil
		})
		if r.Status != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%v, %v", r, err)
		}
	})
	t.Run("limit of requests", func(t *testing.T) {
		var mu sync.Mutex
		got := map[string]int{}
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				r := m.ask("h2", "GET", "/?sleep=3s").String()
				mu.Lock()
				defer mu.Unlock()
				got[r]++
			})
		}
		wg.Wait()
		if got["200 h2 HTTP/2.0 GET /"] != 2 || got["503 upstream connect error or disconnect/reset before headers. reset reason: overflow"] != 4 {
			t.Errorf("six at once: %v, want two answers and four overflows", got)
		}
	})
	t.Run("ejection", func(t *testing.T) {
		for range 3 {
			if r := m.ask("frail", "GET", "/?status=503"); r.code != 503 || r.header.Get("x-who") != "frail" {
				t.Fatalf("%v: want the service's own answer", r)
			}
		}
		if r := m.ask("frail", "GET", "/").String(); r != "503 no healthy upstream" {
			t.Errorf("after three failures: %q", r)
		}
		eventually(t, 30*time.Second, "the instance is back", func() bool { return m.ask("frail", "GET", "/").code == 200 })
	})
	t.Run("rate limit", func(t *testing.T) {
		var got []string
		for range 4 {
			got = append(got, m.ask("custom", "GET", "/rated").String())
		}
		if want := "200 custom HTTP/1.1 GET /rated"; got[0] != want || got[2] != want || got[3] != "429 local_rate_limited" {
			t.Errorf("%q", got)
		}
		if r := m.ask("custom", "GET", "/other"); r.code != 200 {
			t.Errorf("a path without a limit: %v", r)
		}
	})
	t.Run("exposed path", func(t *testing.T) {
		for path, want := range map[string]string{"/health": "200 asked HTTP/1.1 GET /health", "/other": "404", "/health/x": "404"} {
			if got := ask(fmt.Sprintf("http://127.0.0.1:%d%s", exposed, path), "GET").String(); got != want {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
		}
	})
	t.Run("access log", func(t *testing.T) {
		type line struct {
			Path         string  `json:"path"`
			Method       string  `json:"method"`
			Code         float64 `json:"response_code"`
			Flags        string  `json:"response_flags"`
			Details      string  `json:"response_code_details"`
			UpstreamHost string  `json:"upstream_host"`
		}
		logged := func(id, path string) (found []line) {
			for l := range strings.Lines(m.sidecars[id].output()) {
				var v line
				if json.Unmarshal([]byte(l), &v) == nil && v.Path == path {
					found = append(found, v)
				}
			}
			return found
		}
		for _, c := range []struct{ id, upstream, path, flags, details string }{
			{"shop", "routed", "/timed?sleep=6s", "UT", "response_timeout"},
			{"shop", "routed", "/else/logged", "-", "via_upstream"},
			{"vault", "vault", "/admin/logged", "-", "rbac_access_denied_matched_policy[none]"},
			{"asked", "asked", "/logged", "UAEX", "ext_authz_denied"},
		} {
			m.ask(c.upstream, "GET", c.path)
			var last line
			eventually(t, 20*time.Second, "a line about "+c.path, func() bool {
				all := logged(c.id, c.path)
				if len(all) > 0 {
					last = all[len(all)-1]
				}
				return len(all) > 0
			})
			if last.Flags == "" {
				last.Flags = "-"
			}
			if last.Flags != c.flags || last.Details != c.details || last.Method != "GET" || last.Code == 0 {
				t.Errorf("%s: %+v, want flags %s and details %s", c.path, last, c.flags, c.details)
			}
		}
	})
	t.Run("spans", func(t *testing.T) {
		const id = "4bf92f3577b34da6a3ce929d0e0e4736"
		m.ask("routed", "GET", "/traced", "traceparent", "00-"+id+"-00f067aa0ba902b7-01")
		eventually(t, 20*time.Second, "both sidecars told of the request", func() bool { return spans.count(id) >= 2 })
	})
	t.Run("failover and back", func(t *testing.T) {
		to := func(who string) func() bool {
			return func() bool { return m.ask("routed", "GET", "/x").String() == "200 "+who+" HTTP/1.1 GET /x" }
		}
		m.must(t, "PUT", "/v1/agent/service/maintenance/web-1?enable=true", "")
		eventually(t, 30*time.Second, "requests go to the other subset", to("v2"))
		m.must(t, "PUT", "/v1/agent/service/maintenance/web-1?enable=false", "")
		eventually(t, 30*time.Second, "requests come back", to("v1"))
	})
	t.Run("denied at once", func(t *testing.T) {
		m.write(`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "shop", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/still"}}]}]}`)
		eventually(t, 30*time.Second, "requests are refused", func() bool { return m.ask("routed", "GET", "/x").String() == "403 RBAC: access denied" })
		if r := m.ask("routed", "GET", "/still").String(); r != "200 v1 HTTP/1.1 GET /still" {
			t.Errorf("what is allowed still: %q", r)
		}
	})
}
