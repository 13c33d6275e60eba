//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A steadyLoad makes requests until it is stopped: over connections that are kept, in HTTP/1 and HTTP/2, and over new ones.
type steadyLoad struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	made   map[string]int
	failed []string
}

func startSteadyLoad(t testing.TB, url string) *steadyLoad {
	l := &steadyLoad{stop: make(chan struct{}), made: map[string]int{}}
	two := new(http.Protocols)
	two.SetUnencryptedHTTP2(true)
	for kind, transport := range map[string]*http.Transport{
		"HTTP/1 kept": {MaxIdleConnsPerHost: 8},
		"HTTP/1 new":  {DisableKeepAlives: true},
		"HTTP/2":      {Protocols: two},
	} {
		client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
		for range 3 {
			l.wg.Go(func() {
				defer client.CloseIdleConnections()
				for i := 0; ; i++ {
					select {
					case <-l.stop:
						return
					case <-time.After(2 * time.Millisecond):
					}
					l.count(kind, askWeb(client, url, i))
				}
			})
		}
	}
	t.Cleanup(func() { l.end() })
	return l
}

// askWeb makes one request. One in two is of a kind that no client sends again behind our back once it may have been
// served.
func askWeb(client *http.Client, url string, i int) error {
	path := fmt.Sprintf("/%d", i)
	method, body := http.MethodGet, io.Reader(nil)
	if i%2 == 0 {
		method, body = http.MethodPost, strings.NewReader("something")
	}
	req, err := http.NewRequest(method, url+path, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || string(answer) != "web "+path {
		return fmt.Errorf("%d %q %w", resp.StatusCode, answer, err)
	}
	return nil
}

func (l *steadyLoad) count(kind string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made[kind]++
	if err != nil {
		l.failed = append(l.failed, time.Now().Format("05.000 ")+kind+": "+err.Error())
	}
}

// end stops the load and waits for it.
func (l *steadyLoad) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// clean ends the load and reports requests that failed.
func (l *steadyLoad) clean(t *testing.T) {
	t.Helper()
	l.end()
	for _, kind := range slices.Sorted(maps.Keys(l.made)) {
		t.Logf("%s: %d requests", kind, l.made[kind])
		if l.made[kind] < 50 {
			t.Errorf("%s: only %d requests", kind, l.made[kind])
		}
	}
	if n := len(l.failed); n > 0 {
		t.Errorf("%d requests failed, such as:\n%s", n, strings.Join(l.failed[:min(n, 10)], "\n"))
	}
}

// echoBytes is a TCP service that sends back what comes.
func echoBytes(t testing.TB, addr string) int {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

// answers reports whether what is sent comes back.
func answers(c net.Conn, word string) bool {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, len(word))
	if _, err := c.Write([]byte(word)); err != nil {
		return false
	}
	_, err := io.ReadFull(c, b)
	return err == nil && string(b) == word
}

// upgradable is an agent with a service for HTTP and one for TCP, which "shop" calls.
func upgradable(t *testing.T, supervised bool) (a *agent, toWeb, toRaw int) {
	t.Helper()
	p := freePorts(6)
	sidecar := func(port int, upstreams ...any) map[string]any {
		return map[string]any{"sidecar_service": map[string]any{"port": port, "proxy": map[string]any{"upstreams": upstreams}}}
	}
	toWeb, toRaw = p[3], p[4]
	log := filepath.Join(t.TempDir(), "access.log")
	t.Cleanup(func() {
		data, _ := os.ReadFile(log)
		for line := range strings.Lines(string(data)) {
			if t.Failed() && !strings.HasPrefix(line, "200 ") {
				t.Log(line)
			}
		}
	})
	a = newAgent(t, "s1", map[string]any{
		"server": true, "bootstrap": true, "connect": map[string]any{"enabled": true, "sidecars": supervised},
		"config_entries": map[string]any{"bootstrap": []any{
			map[string]any{"kind": "service-defaults", "name": "web", "protocol": "http"},
			map[string]any{"kind": "proxy-defaults", "name": "global", "access_logs": map[string]any{"enabled": true, "type": "file", "path": log,
				"text_format": "%RESPONSE_CODE% %RESPONSE_FLAGS% %START_TIME% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %RESPONSE_CODE_DETAILS% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n"}},
		}},
		"services": []any{
			map[string]any{"name": "web", "port": echo(t, "web"), "connect": sidecar(p[0])},
			map[string]any{"name": "raw", "port": echoBytes(t, "127.0.0.1:0"), "connect": sidecar(p[1])},
			map[string]any{"name": "shop", "port": 1, "connect": sidecar(p[2],
				map[string]any{"destination_name": "web", "local_bind_port": toWeb},
				map[string]any{"destination_name": "raw", "local_bind_port": toRaw},
			)},
		},
	})
	a.run(t)
	return a, toWeb, toRaw
}

// TestUpgradeLosesNoRequest replaces each proxy between a client and a service twice under load, by a process that takes
// its sockets over.
func TestUpgradeLosesNoRequest(t *testing.T) {
	bin := binary(t)
	a, toWeb, toRaw := upgradable(t, false)
	eventually(t, 20*time.Second, "the sidecars are registered", func() bool {
		services, _ := a.get("/v1/catalog/services").(map[string]any)
		return services["web-sidecar-proxy"] != nil && services["shop-sidecar-proxy"] != nil
	})
	env := []string{"CONSUL_HTTP_ADDR=" + a.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", a.ports["grpc"])}
	dir, err := os.MkdirTemp("", "up") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	proxy := func(service string) *process {
		return start(t, service+"-sidecar", env, bin, "connect", "proxy", "-sidecar-for", service, "-take-over", "-drain-time", "5s",
			"-state-dir", dir, "-admin-socket", filepath.Join(dir, service+".admin"), "-parent-shutdown-time", "20s")
	}
	running := map[string]*process{}
	for _, service := range []string{"web", "raw", "shop"} {
		running[service] = proxy(service)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", toWeb)
	one := &http.Client{Timeout: 5 * time.Second}
	eventually(t, 30*time.Second, "shop reaches web", func() bool { return askWeb(one, url, 1) == nil })
	var long net.Conn
	eventually(t, 30*time.Second, "shop reaches raw", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", toRaw))
		if err == nil && !answers(c, "hello") {
			c.Close()
			return false
		}
		long = c
		return err == nil
	})
	defer long.Close()
	eventually(t, 30*time.Second, "the proxies can be taken over", func() bool {
		list, _ := filepath.Glob(filepath.Join(dir, "*.handover"))
		return len(list) == 3
	})

	l := startSteadyLoad(t, url)
	time.Sleep(500 * time.Millisecond)
	for round := range 2 {
		for _, service := range []string{"web", "shop"} {
			old := running[service]
			next := proxy(service)
			eventually(t, 20*time.Second, "the new process takes over", func() bool { return strings.Contains(next.output(), "took over") })
			running[service] = next
			if service == "web" || round > 0 {
				// No connection is left that does not end by itself.
				if code, ended := old.exit(40 * time.Second); !ended || code != 0 {
					t.Errorf("the old process of %s: ended %v with %d\n%s", service, ended, code, tail(old.output(), 10))
				}
			} else if _, ended := old.exit(time.Second); ended {
				t.Errorf("the old process of %s has ended with a connection open", service)
			}
			if !answers(long, "still there") && round == 0 {
				t.Errorf("round %d, %s: the connection that was open before is broken", round, service)
			}
			if round == 0 && service == "shop" {
				long.Close()
			}
			eventually(t, 30*time.Second, "the admin socket answers for the new process", func() bool {
				out, err := adminGet(filepath.Join(dir, service+".admin"), "/ready")
				return err == nil && out == "LIVE\n"
			})
		}
	}
	time.Sleep(500 * time.Millisecond)
	l.clean(t)
}

// adminGet asks an admin server behind a UNIX socket.
func adminGet(socket, path string) (string, error) {
	c := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) },
	}}
	resp, err := c.Get("http://localhost" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// TestAgentReplacesSidecarsWithoutLoss kills an agent and starts it with other arguments for its sidecars, under load.
// A sidecar that is killed is started again as ever.
func TestAgentReplacesSidecarsWithoutLoss(t *testing.T) {
	binary(t)
	a, toWeb, _ := upgradable(t, true)
	t.Cleanup(func() { endSidecars([]*agent{a}) })
	url := fmt.Sprintf("http://127.0.0.1:%d", toWeb)
	one := &http.Client{Timeout: 5 * time.Second}
	eventually(t, 30*time.Second, "shop reaches web", func() bool { return askWeb(one, url, 1) == nil })
	var before []int
	eventually(t, 30*time.Second, "there are three sidecars", func() bool { before = sidecarPIDs(a); return len(before) == 3 })
	time.Sleep(4 * time.Second) // until they have saved what they know
	l := startSteadyLoad(t, url)

	a.cmd.Process.Signal(syscall.SIGKILL)
	<-a.done
	data, err := os.ReadFile(a.conf)
	if err != nil {
		t.Fatal(err)
	}
	a.ports["http"] = freePorts(1)[0]
	var conf map[string]any
	if err := json.Unmarshal(data, &conf); err != nil {
		t.Fatal(err)
	}
	conf["ports"].(map[string]any)["http"] = a.ports["http"]
	if data, err = json.Marshal(conf); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.conf, data, 0o600); err != nil {
		t.Fatal(err)
	}
	a.run(t)
	eventually(t, 30*time.Second, "all sidecars are replaced", func() bool {
		now := sidecarPIDs(a)
		return len(now) == 3 && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(before, pid) })
	})
	time.Sleep(500 * time.Millisecond)
	l.clean(t)

	now := sidecarPIDs(a)
	syscall.Kill(now[0], syscall.SIGKILL)
	eventually(t, 20*time.Second, "the killed sidecar is back", func() bool {
		list := sidecarPIDs(a)
		return len(list) == 3 && !slices.Contains(list, now[0]) && askWeb(one, url, 1) == nil
	})
}

// TestShutdownDrains tells a proxy to stop while requests are under way: it is not ready any more, tells clients to go
// elsewhere, and ends when nobody is left.
func TestShutdownDrains(t *testing.T) {
	var slow atomic.Int64
	answer := make(chan struct{})
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			slow.Add(1)
			<-answer
		}
		io.WriteString(w, "done")
	})}
	go srv.Serve(app)
	t.Cleanup(func() { srv.Close() })
	port := freePorts(1)[0]
	dir := t.TempDir()
	file := filepath.Join(dir, "b.yaml")
	text := fmt.Sprintf(`node: {id: edge, cluster: edge}
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains: [{filters: [{name: envoy.filters.network.http_connection_manager, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: in,
      route_config: {name: r, virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: app}}]}]},
      http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  clusters:
  - {name: app, type: STATIC, load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}}
`, port, app.Addr().(*net.TCPAddr).Port)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "dr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	socket := filepath.Join(sockets, "a")
	p := start(t, "edge", nil, binary(t), "connect", "proxy", "-bootstrap", file, "-admin-socket", socket, "-drain-time", "90s")
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	eventually(t, 30*time.Second, "the proxy is ready", func() bool { out, _ := adminGet(socket, "/ready"); return out == "LIVE\n" })

	kept := &http.Client{Transport: &http.Transport{}}
	get := func(path string) (*http.Response, string, error) {
		resp, err := kept.Get(url + path)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	if resp, body, err := get("/"); err != nil || body != "done" || resp.Close {
		t.Fatalf("%q %v, closes %v", body, err, resp != nil && resp.Close)
	}

	// Told to fail health checks, it sends clients away and takes them as before.
	admin := func(path string) {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
		resp, err := c.Post("http://localhost"+path, "", nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v %v", path, resp, err)
		}
		resp.Body.Close()
	}
	admin("/healthcheck/fail")
	if resp, _, err := get("/"); err != nil || !resp.Close {
		t.Errorf("failing: %v, the response does not close the connection", err)
	}
	if out, _ := adminGet(socket, "/ready"); out != "DRAINING\n" {
		t.Errorf("failing: ready says %q", out)
	}
	admin("/healthcheck/ok")
	if resp, _, err := get("/"); err != nil || resp.Close {
		t.Errorf("well again: %v, the response closes the connection", err)
	}

	type result struct {
		closes bool
		body   string
		err    error
	}
	done := make(chan result, 1)
	go func() {
		resp, body, err := get("/slow")
		done <- result{resp != nil && resp.Close, body, err}
	}()
	eventually(t, 30*time.Second, "the slow request is under way", func() bool { return slow.Load() == 1 })
	began := time.Now()
	p.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, 30*time.Second, "the proxy is not ready any more", func() bool { out, _ := adminGet(socket, "/ready"); return out == "DRAINING\n" })
	// Those who have not heard of it yet are served.
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if err := func() error {
		resp, err := fresh.Get(url + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		return err
	}(); err != nil {
		t.Errorf("a new connection right after the signal: %v", err)
	}
	close(answer)
	r := <-done
	if r.err != nil || r.body != "done" || !r.closes {
		t.Errorf("the slow request: %q %v, closes %v", r.body, r.err, r.closes)
	}
	if code, ended := p.exit(30 * time.Second); !ended || code != 0 {
		t.Errorf("not ended when nobody was left (%v, %d), after %v", ended, code, time.Since(began))
	}
}
