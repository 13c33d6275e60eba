//go:build unix

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// An instance of a service can be stopped as deployments do it, and started again at the same port.
type instance struct {
	t    *testing.T
	name string
	addr string
	srv  *http.Server
	sick atomic.Bool
}

func (i *instance) start() {
	l, err := net.Listen("tcp", i.addr)
	if err != nil {
		i.t.Fatal(err)
	}
	i.addr = l.Addr().String()
	i.sick.Store(false)
	i.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" && i.sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %s %d", i.name, r.URL.Path, n)
	})}
	go i.srv.Serve(l)
}

// stop ends it when all requests are answered.
func (i *instance) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := i.srv.Shutdown(ctx); err != nil {
		i.t.Error(err)
	}
}

// A steady load of requests, over connections that are kept and over new ones.
type load struct {
	url     string
	stop    context.CancelFunc
	wg      sync.WaitGroup
	done    atomic.Int64
	mu      sync.Mutex
	failed  map[string]int
	details []string
}

func startLoad(url string, clients int, bodies bool) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{url: url, stop: cancel, failed: map[string]int{}}
	kept := &http.Transport{MaxIdleConnsPerHost: 4}
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	anew := &http.Transport{DisableKeepAlives: true}
	for i, tr := range []*http.Transport{kept, h2, anew, kept, h2}[:clients] {
		l.wg.Go(func() {
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr, Timeout: 10 * time.Second}
			for j := 0; ctx.Err() == nil; j++ {
				path := fmt.Sprintf("/load/%d/%d", i, j)
				method, body := "GET", ""
				if bodies && j%3 == 0 {
					method, body = "POST", strings.Repeat("x", 1+j%1000)
				}
				if err := one(c, method, url+path, path, body, bodies); err != nil {
					l.mu.Lock()
					l.failed[err.Error()]++
					if len(l.details) < 10 {
						l.details = append(l.details, fmt.Sprintf("%s client %d %s %s: %v", time.Now().UTC().Format("15:04:05.000"), i, method, path, err))
					}
					l.mu.Unlock()
				}
				l.done.Add(1)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return l
}

func one(c *http.Client, method, url, path, body string, bodies bool) error {
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		return err
	}
	// A request that may have a body, even if it is empty, ends later than its header, and its answer can come before.
	if bodies {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	resp, err := c.Do(r)
	if err != nil {
		if wrapped := errors.Unwrap(err); wrapped != nil {
			return wrapped
		}
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	switch want := fmt.Sprintf(" %s %d", path, len(body)); {
	case err != nil:
		return err
	case resp.StatusCode != 200:
		return fmt.Errorf("%d %s", resp.StatusCode, got)
	case !strings.HasSuffix(string(got), want):
		return fmt.Errorf("answered %q", got)
	}
	return nil
}

// end stops the load and fails the test if any request failed.
func (l *load) end(t *testing.T, least int64) {
	t.Helper()
	l.stop()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("%d requests", l.done.Load())
	if len(l.failed) > 0 {
		t.Errorf("of %d requests failed: %v\n%s", l.done.Load(), l.failed, strings.Join(l.details, "\n"))
	}
	if l.done.Load() < least {
		t.Errorf("only %d requests were made, want %d", l.done.Load(), least)
	}
}

// TestNoRequestFailsWhileThingsChange keeps requests going through a pair of sidecars while entries are written, the
// authority of the mesh rotates, sidecars and instances are restarted one by one. Not one fails. There are no retries but
// where it is said.
func TestNoRequestFailsWhileThingsChange(t *testing.T) {
	binary(t)
	free := freePorts(6)
	var services []any
	instances := make([]*instance, 2)
	for i := range instances {
		// Not a port of the system's choice: that could be a connection's own while nothing listens.
		instances[i] = &instance{t: t, name: fmt.Sprintf("web-%d", i+1), addr: fmt.Sprintf("127.0.0.1:%d", free[4+i])}
		instances[i].start()
		t.Cleanup(func() { instances[i].srv.Close() })
		_, port, _ := net.SplitHostPort(instances[i].addr)
		var n int
		fmt.Sscan(port, &n)
		services = append(services, map[string]any{
			"name": "web", "id": instances[i].name, "port": n,
			"check": map[string]any{"id": instances[i].name, "name": "health", "http": "http://" + instances[i].addr + "/health", "interval": "1s", "status": "passing"},
			"connect": map[string]any{"sidecar_service": map[string]any{
				"port": free[i],
				"checks": []any{
					map[string]any{"name": "sidecar", "tcp": fmt.Sprintf("127.0.0.1:%d", free[i]), "interval": "1s", "status": "passing"},
					map[string]any{"name": "alias", "alias_service": instances[i].name},
				},
			}},
		})
	}
	services = append(services, map[string]any{"name": "shop", "port": 1, "connect": map[string]any{"sidecar_service": map[string]any{
		"port": free[2], "proxy": map[string]any{"upstreams": []any{map[string]any{"destination_name": "web", "local_bind_port": free[3]}}},
	}}})
	a := newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true, "default_intention_policy": "deny", "services": services})
	a.run(t)
	eventually(t, 20*time.Second, "the services are registered", func() bool {
		known, _ := a.get("/v1/catalog/services").(map[string]any)
		return known["shop-sidecar-proxy"] != nil && known["web-sidecar-proxy"] != nil
	})
	m := &mesh{TB: t, agent: a, by: "sarn", ports: map[string]int{"web": free[3]}, sidecars: map[string]*process{}}
	allow := `{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "shop", "Action": "allow"}]}`
	m.write(`{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}`, allow,
		`{"Kind": "service-defaults", "Name": "shop", "Protocol": "http", "UpstreamConfig": {"Defaults": {"PassiveHealthCheck": {"BaseEjectionTime": "1s"}}}}`)
	for _, id := range []string{"web-1", "web-2", "shop"} {
		m.sidecar(t, id)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", free[3])
	both := func() bool {
		seen := map[string]bool{}
		for range 10 {
			who, _, _ := strings.Cut(ask(url+"/x", "GET").body, " ")
			seen[who] = true
		}
		return seen["web-1"] && seen["web-2"] && len(seen) == 2
	}
	eventually(t, 40*time.Second, "both instances answer", both)

	t.Run("configuration entries", func(t *testing.T) {
		l := startLoad(url, 5, true)
		for i := range 60 {
			m.write(
				fmt.Sprintf(`{"Kind": "service-router", "Name": "web", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/r%d"}}, "Destination": {"RequestTimeout": "%ds"}}]}`, i, 5+i%5),
				fmt.Sprintf(`{"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "%ds", "LoadBalancer": {"Policy": %q}}`, 5+i%3, []string{"least_request", "round_robin", "maglev", "random"}[i%4]),
				fmt.Sprintf(`{"Kind": "service-defaults", "Name": "web", "Protocol": "http", "MaxInboundConnections": %d, "LocalRequestTimeoutMs": %d}`, 1000+i, 15000+i),
				fmt.Sprintf(`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "shop", "Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/never-%d"}}, {"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}]}`, i),
			)
			if i%10 == 9 {
				m.write(fmt.Sprintf(`{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}, "AccessLogs": {"Enabled": %v}}`, i%20 == 9))
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		l.end(t, 200)
	})
	t.Run("rotation", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "ca.json")
		leaf := func() string {
			conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", free[0]), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // only looks
			if err != nil {
				return err.Error()
			}
			defer conn.Close()
			return conn.ConnectionState().PeerCertificates[0].Issuer.String() + conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
		}
		before := leaf()
		l := startLoad(url, 5, true)
		for _, bits := range []int{384, 256} {
			conf := fmt.Sprintf(`{"Provider": "consul", "Config": {"LeafCertTTL": "72h", "PrivateKeyType": "ec", "PrivateKeyBits": %d, "CSRMaxPerSecond": 1000}}`, bits)
			if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, code := a.cli(t, "connect", "ca", "set-config", "-config-file", file); code != 0 {
				t.Fatal(out)
			}
			eventually(t, 50*time.Second, "the sidecar shows a certificate of the new root", func() bool { now := leaf(); return now != before })
			before = leaf()
			time.Sleep(time.Second)
		}
		l.end(t, 200)
	})
	t.Run("instances", func(t *testing.T) {
		eventually(t, 20*time.Second, "both instances answer", both)
		l := startLoad(url, 5, true)
		for _, i := range instances {
			// As a deployment should do it: be sick, wait until nobody calls, stop, start, wait until one is called.
			i.sick.Store(true)
			eventually(t, 30*time.Second, i.name+" is not called", func() bool { return !strings.HasPrefix(ask(url+"/x", "GET").body, i.name) && healthy(a) == 1 })
			time.Sleep(500 * time.Millisecond)
			i.stop()
			time.Sleep(300 * time.Millisecond)
			i.start()
			eventually(t, 20*time.Second, i.name+" is back", func() bool { return healthy(a) == 2 })
			eventually(t, 30*time.Second, "both answer", both)
		}
		l.end(t, 200)
	})
	// A sidecar has no more than three retries to a cluster under way, as Envoy by default, and the entries can not change
	// it: two clients, and the one that looks who answers. Without bodies, since a request is not sent again whose answer
	// comes before its end.
	const retriers = 2
	retry := `{"Kind": "service-router", "Name": "web", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/known/"}}, "Destination": {"PrefixRewrite": "/yes/"}},
		{"Match": {"HTTP": {"PathPrefix": "/"}}, "Destination": {"NumRetries": 3, "RetryOnConnectFailure": true, "RetryOn": ["refused-stream", "reset"], "RetryOnStatusCodes": [503]}}]}`
	retries := func() {
		t.Helper()
		m.write(retry)
		eventually(t, 30*time.Second, "the caller's sidecar knows of retries", func() bool {
			return strings.Contains(ask(url+"/known/x", "GET").body, " /yes/x ")
		})
	}
	t.Run("instances without a warning", func(t *testing.T) {
		retries()
		l := startLoad(url, retriers, false)
		for _, i := range instances {
			i.stop()
			time.Sleep(2 * time.Second)
			i.start()
			eventually(t, 20*time.Second, i.name+" is back", func() bool { return healthy(a) == 2 })
			eventually(t, 40*time.Second, "both answer", both)
		}
		l.end(t, 200)
	})
	t.Run("sidecars", func(t *testing.T) {
		retries()
		// Between SIGTERM and its end a sidecar answers what it was asked.
		l := startLoad(url, retriers, false)
		for _, id := range []string{"web-1", "web-2"} {
			m.sidecars[id].end(os.Interrupt)
			m.sidecar(t, id)
			eventually(t, 20*time.Second, id+" is back", func() bool { return healthy(a) == 2 })
			eventually(t, 40*time.Second, "both answer", both)
		}
		l.end(t, 200)
	})
}

// healthy counts the instances of web that callers may use.
func healthy(a *agent) int {
	all, _ := a.get("/v1/health/connect/web?passing").([]any)
	return len(all)
}
