package proxy_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/adsclient"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// A pair is both sidecars of a call in one proxy: a plain listener whose requests go over mutual TLS to a second
// listener, which asks the policy and passes them on to the application.
type pair struct {
	t           *testing.T
	p           *proxy.Proxy
	ca, next    *testkit.CA
	front, back int // ports of the listeners
	apps        [3]int
	version     int

	// What is said now, each time with something else about it.
	deny      string // the path that the policy denies
	endpoints []int
	tweak     int
}

func newPair(t *testing.T) *pair {
	c := &pair{t: t, ca: testkit.NewCA(t, "one"), next: testkit.NewCA(t, "two"), deny: "/never"}
	for i := range c.apps {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%s %d", r.URL.Path, n)
		})}
		go srv.Serve(ln)
		t.Cleanup(func() { srv.Close() })
		c.apps[i] = ln.Addr().(*net.TCPAddr).Port
	}
	c.endpoints = c.apps[:]
	ports, err := testkit.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	c.front, c.back = ports[0], ports[1]
	c.p, err = proxy.New(proxy.Config{Bootstrap: &decode.Bootstrap{}, ShutdownTime: time.Millisecond, DrainTime: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- c.p.Run(context.Background()) }()
	t.Cleanup(func() {
		c.p.Quit()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, change := range []func(){c.clusters, c.instances, c.inbound, c.outbound, c.routes, c.leaf, c.roots} {
		change()
	}
	for end := time.Now().Add(time.Minute); len(c.p.Listeners()) < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			listeners, clusters := c.p.Warming()
			t.Fatalf("still waiting: listeners %v, clusters %v", listeners, clusters)
		}
	}
	return c
}

// set puts a resource into force, given as JSON with its name.
func (c *pair) set(typeURL, text string, into proto.Message) {
	c.t.Helper()
	if err := protojson.Unmarshal([]byte(text), into); err != nil {
		c.t.Fatalf("%v in %s", err, text)
	}
	a, err := anypb.New(into)
	if err != nil {
		c.t.Fatal(err)
	}
	name, err := decode.NameOf(a)
	if err != nil {
		c.t.Fatal(err)
	}
	c.version++
	for name, err := range c.p.Update(typeURL, []adsclient.Resource{{Name: name, Version: fmt.Sprint(c.version), Any: a}}, nil, false) {
		c.t.Fatalf("%s refused: %v", name, err)
	}
}

func (c *pair) clusters() {
	c.tweak++
	lb := []string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"}[c.tweak%5]
	c.set(decode.TypeCluster, fmt.Sprintf(`{"name": "mesh", "type": "STATIC", "connect_timeout": "%ds", "lb_policy": %q,
		"circuit_breakers": {"thresholds": [{"max_connections": %d}]},
		"load_assignment": {"cluster_name": "mesh", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}}]}]},
		"transport_socket": {"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": "web",
			"common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "leaf", "sds_config": {"ads": {}}}],
			"combined_validation_context": {"default_validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "spiffe://td/ns/default/dc/dc1/svc/web"}}]},
			"validation_context_sds_secret_config": {"name": "roots", "sds_config": {"ads": {}}}}}}}}`, 5+c.tweak%3, lb, 100+c.tweak, c.back), new(clusterv3.Cluster))
	c.set(decode.TypeCluster, fmt.Sprintf(`{"name": "app", "type": "EDS", "connect_timeout": "5s", "lb_policy": %q, "eds_cluster_config": {"eds_config": {"ads": {}}},
		"circuit_breakers": {"thresholds": [{"max_requests": %d}]}}`, lb, 1000+c.tweak), new(clusterv3.Cluster))
}

// instances takes one of the application's instances away and brings another back.
func (c *pair) instances() {
	c.tweak++
	var hosts []string
	for i, p := range c.apps {
		if i != c.tweak%len(c.apps) {
			hosts = append(hosts, fmt.Sprintf(`{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}, "load_balancing_weight": %d}`, p, 1+c.tweak%7))
		}
	}
	c.set(decode.TypeEndpoints, fmt.Sprintf(`{"cluster_name": "app", "endpoints": [{"lb_endpoints": [%s]}]}`, strings.Join(hosts, ",")), new(endpointv3.ClusterLoadAssignment))
}

// policy changes the rules of the inbound listener.
func (c *pair) policy() { c.tweak++; c.inbound() }

func (c *pair) inbound() {
	c.set(decode.TypeListener, fmt.Sprintf(`{"name": "in", "address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}, "traffic_direction": "INBOUND", "filter_chains": [{
		"transport_socket": {"name": "tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "require_client_certificate": true,
			"common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "leaf", "sds_config": {"ads": {}}}], "validation_context_sds_secret_config": {"name": "roots", "sds_config": {"ads": {}}}}}},
		"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
		"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "in",
		"http_filters": [
			{"name": "envoy.filters.http.rbac", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"action": "DENY", "policies": {"p-%d": {
				"permissions": [{"url_path": {"path": {"exact": %q}}}], "principals": [{"any": true}]}}}}},
			{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
		"route_config": {"name": "in", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]}}}]}]}`,
		c.back, c.tweak, c.deny), new(listenerv3.Listener))
}

// outbound changes the filters of the outbound listener.
func (c *pair) outbound() {
	c.tweak++
	extra := ""
	if c.tweak%2 == 0 {
		extra = fmt.Sprintf(`{"name": "more", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
			"mutations": {"response_mutations": [{"append": {"header": {"key": "x-tweak", "value": "%d"}}}]}}},`, c.tweak)
	}
	c.set(decode.TypeListener, fmt.Sprintf(`{"name": "out", "address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}, "traffic_direction": "OUTBOUND", "filter_chains": [{
		"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
		"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "out",
		"http_filters": [%s{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
		"rds": {"route_config_name": "out", "config_source": {"ads": {}}}}}]}]}`, c.front, extra), new(listenerv3.Listener))
}

func (c *pair) routes() {
	c.tweak++
	c.set(decode.TypeRoute, fmt.Sprintf(`{"name": "out", "virtual_hosts": [{"name": "all-%d", "domains": ["*"], "routes": [
		{"match": {"prefix": "/path-%d"}, "direct_response": {"status": 404}},
		{"match": {"prefix": "/"}, "route": {"cluster": "mesh", "timeout": "%ds"}, "response_headers_to_add": [{"header": {"key": "x-version", "value": "%d"}}]}]}]}`,
		c.tweak, c.tweak, 10+c.tweak%5, c.tweak), new(routev3.RouteConfiguration))
}

// leaf renews the certificate.
func (c *pair) leaf() {
	cert := c.ca.Issue("web", "spiffe://td/ns/default/dc/dc1/svc/web")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		c.t.Fatal(err)
	}
	var chain strings.Builder
	for _, der := range cert.Certificate {
		pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	c.set(decode.TypeSecret, fmt.Sprintf(`{"name": "leaf", "tls_certificate": {"certificate_chain": {"inline_string": %q}, "private_key": {"inline_string": %q}}}`,
		chain.String(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), new(tlsv3.Secret))
}

// roots trusts one more authority, or one less.
func (c *pair) roots() {
	c.tweak++
	all := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Certificate().Raw})
	if c.tweak%2 == 0 {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.next.Certificate().Raw})...)
	}
	c.set(decode.TypeSecret, fmt.Sprintf(`{"name": "roots", "validation_context": {"trusted_ca": {"inline_string": %q}}}`, all), new(tlsv3.Secret))
}

// load sends requests from many clients until it is stopped, and tells how many there were.
func (c *pair) load() (stop func() int64) {
	var n atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	h1 := &http.Transport{MaxIdleConnsPerHost: 8}
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	anew := &http.Transport{DisableKeepAlives: true}
	for i, tr := range []*http.Transport{h1, h1, h2, h2, h2, anew} {
		wg.Go(func() {
			client := &http.Client{Transport: tr, Timeout: time.Minute}
			for j := 0; ctx.Err() == nil; j++ {
				method, body := "GET", ""
				if j%3 == 0 { // with a body, which is not sent twice
					method, body = "POST", strings.Repeat("x", j%5000)
				}
				path := fmt.Sprintf("/c%d/r%d", i, j)
				r, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", c.front, path), io.NopCloser(strings.NewReader(body)))
				if err != nil {
					c.t.Error(err)
					return
				}
				r.ContentLength = int64(len(body))
				resp, err := client.Do(r)
				if err != nil {
					c.t.Errorf("client %d, request %d: %v", i, j, err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if want := fmt.Sprintf("%s %d", path, len(body)); err != nil || resp.StatusCode != 200 || string(got) != want {
					c.t.Errorf("client %d, request %d: %d %q %v", i, j, resp.StatusCode, got, err)
					return
				}
				n.Add(1)
				time.Sleep(time.Millisecond)
			}
		})
	}
	return func() int64 {
		cancel()
		wg.Wait()
		for _, tr := range []*http.Transport{h1, h2, anew} {
			tr.CloseIdleConnections()
		}
		return n.Load()
	}
}

// held is what the process holds: goroutines, file descriptors, bytes of the heap.
func held() (goroutines, files int, heap uint64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	list, _ := os.ReadDir("/proc/self/fd")
	return runtime.NumGoroutine(), len(list), m.HeapAlloc
}

// TestChangesUnderLoad makes 1,000 changes of every kind while clients send requests over HTTP/1, HTTP/2 and connections
// of their own. No request fails, what is denied is denied with the next request on every open connection, and nothing is
// left behind.
func TestChangesUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	c := newPair(t)
	open := map[string]*http.Transport{"HTTP/1": {MaxConnsPerHost: 1}, "HTTP/2": {Protocols: new(http.Protocols)}}
	open["HTTP/2"].Protocols.SetUnencryptedHTTP2(true)
	dials := 0
	for _, tr := range open {
		tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials++
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
		defer tr.CloseIdleConnections()
	}
	secret := func(want int) {
		t.Helper()
		for proto, tr := range open {
			resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Get(fmt.Sprintf("http://127.0.0.1:%d/secret", c.front))
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want || want == 403 && string(body) != "RBAC: access denied" {
				t.Fatalf("%s: %d %q, want %d", proto, resp.StatusCode, body, want)
			}
		}
	}
	changes := []func(){c.routes, c.policy, c.clusters, c.instances, c.leaf, c.outbound, c.roots, c.instances}
	run := func(n int) int64 {
		stop := c.load()
		for i := range n {
			changes[i%len(changes)]()
			switch i % 50 {
			case 20:
				c.deny = "/secret"
				c.inbound()
				secret(403)
			case 45:
				c.deny = "/never"
				c.inbound()
				secret(200)
			}
			if i%2 == 0 {
				time.Sleep(3 * time.Millisecond)
			}
			if t.Failed() {
				break
			}
		}
		return stop()
	}
	run(100)
	// quiet lets go of the connections to hosts, of which there are as many as requests happened to go at a time.
	quiet := func() {
		c.clusters()
		time.Sleep(2 * time.Second) // what drains is over
	}
	quiet()
	goroutines, files, heap := held()
	settle := func(enough int) (int, int, uint64) {
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if g, f, _ := held(); g <= enough && f <= files+5 {
				break
			}
		}
		return held()
	}
	requests := run(900)
	if t.Failed() {
		return
	}
	t.Logf("%d requests during 900 changes; %d goroutines, %d files, %d KiB before", requests, goroutines, files, heap>>10)
	if requests < 1000 {
		t.Errorf("only %d requests: the changes were not under load", requests)
	}
	if dials != len(open) {
		t.Errorf("the open connections were made %d times, want once each", dials)
	}
	quiet()
	g, f, h := settle(goroutines + 5)
	t.Logf("%d goroutines, %d files, %d KiB after", g, f, h>>10)
	if g > goroutines+10 {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before\n%s", g, goroutines, buf[:runtime.Stack(buf, true)])
	}
	if files > 0 && f > files+10 {
		t.Errorf("%d files, %d before", f, files)
	}
	if h > heap+heap/4+4<<20 {
		t.Errorf("%d KiB of heap, %d before", h>>10, heap>>10)
	}
}
