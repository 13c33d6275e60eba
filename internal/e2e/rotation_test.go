//go:build unix

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// callers is a steady, light load on a mesh.
type callers struct {
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	done   atomic.Int64
	mu     sync.Mutex
	failed []string
}

func newCallers() *callers {
	c := new(callers)
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// every does something again and again until the end.
func (c *callers) every(what string, f func() error) {
	c.wg.Go(func() {
		for c.ctx.Err() == nil {
			if err := f(); err != nil {
				c.mu.Lock()
				c.failed = append(c.failed, fmt.Sprintf("%s %s: %v", time.Now().UTC().Format("15:04:05.000"), what, err))
				c.mu.Unlock()
			}
			c.done.Add(1)
			time.Sleep(50 * time.Millisecond)
		}
	})
}

// http sends requests, over a connection that is kept or over new ones.
func (c *callers) http(what string, port int, keep bool) {
	tr := &http.Transport{DisableKeepAlives: !keep}
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	n := 0
	c.every(what, func() error {
		n++
		path := fmt.Sprintf("/load/%d", n)
		method, body := "GET", ""
		if n%3 == 0 {
			method, body = "POST", strings.Repeat("x", 1+n%1000)
		}
		return one(client, method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), path, body, true)
	})
}

// tcp sends lines, over a connection that is kept or over new ones.
func (c *callers) tcp(what string, port int, keep bool) {
	var conn net.Conn
	var in *bufio.Reader
	n := 0
	c.every(what, func() (err error) {
		if conn == nil {
			if conn, err = net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second); err != nil {
				return err
			}
			in = bufio.NewReader(conn)
		}
		defer func() {
			if err != nil || !keep {
				conn.Close()
				conn = nil
			}
		}()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		n++
		line := fmt.Sprintf("line %d\n", n)
		if _, err := io.WriteString(conn, line); err != nil {
			return err
		}
		if got, err := in.ReadString('\n'); err != nil || got != line {
			return fmt.Errorf("got %q: %w", got, errors.Join(err))
		}
		return nil
	})
}

// end stops the load; the test has failed if anything of it did.
func (c *callers) end(t *testing.T, least int64) {
	t.Helper()
	c.stop()
	c.wg.Wait()
	t.Logf("%d requests", c.done.Load())
	if len(c.failed) > 0 {
		t.Errorf("%d of %d requests failed:\n%s", len(c.failed), c.done.Load(), strings.Join(c.failed[:min(len(c.failed), 20)], "\n"))
	}
	if c.done.Load() < least {
		t.Errorf("only %d requests were made, want %d", c.done.Load(), least)
	}
}

// rotationOf is how far the rotation is.
type rotationOf struct {
	Phase, NewRootID    string
	OldRootIDs          []string
	Required, Confirmed int
	Nodes               []struct {
		Node      string
		Confirmed bool
		Missing   int
		Waiting   []string
	}
}

// awaited returns what proxies are awaited, by node.
func (r *rotationOf) awaited() (list []string) {
	for _, n := range r.Nodes {
		for _, w := range n.Waiting {
			list = append(list, n.Node+": "+w)
		}
	}
	return list
}

// decode reads a JSON answer into v, which stays as it is when there is none with status 200.
func (a *agent) decode(path string, v any) {
	if code, body, err := a.call("GET", path, ""); err == nil && code == 200 {
		json.Unmarshal([]byte(body), v)
	}
}

func (a *agent) rotation() *rotationOf {
	r := new(rotationOf)
	a.decode("/v1/connect/ca/rotation", r)
	return r
}

// issuer returns the key that signed the certificate of a sidecar.
func issuer(port int) string {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", fmt.Sprintf("127.0.0.1:%d", port), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // only looks
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return fmt.Sprintf("%x", conn.ConnectionState().PeerCertificates[0].AuthorityKeyId)
}

// activeKey returns the key of the active root as issuer has it, and its type.
func (a *agent) activeKey() (id, keyType string) {
	var r struct {
		Roots []struct {
			SigningKeyID, PrivateKeyType string
			Active                       bool
		}
	}
	a.decode("/v1/connect/ca/roots", &r)
	for _, root := range r.Roots {
		if root.Active {
			return strings.ReplaceAll(root.SigningKeyID, ":", ""), root.PrivateKeyType
		}
	}
	return "", ""
}

// meshed is a service with a sidecar that counts as healthy from the beginning, so that no call fails for want of one.
func meshed(name string, port, public int, upstreams ...any) map[string]any {
	return map[string]any{"name": name, "port": port, "connect": map[string]any{"sidecar_service": map[string]any{
		"port": public, "proxy": map[string]any{"upstreams": upstreams},
		"checks": []any{map[string]any{"name": "alias", "alias_service": name}},
	}}}
}

// phases are what is shown of a rotation on two nodes.
var phases = regexp.MustCompile(`(?s)spreading: root .* of 2 nodes trust it.*signing: root .* of 2 nodes have replaced theirs.*retiring: root `)

// TestNoRequestFailsWhileTheRootRotates rotates the root from EC to RSA and back while requests and connections go
// through built-in proxies and Envoy, each calling both, on two nodes. Not one fails.
func TestNoRequestFailsWhileTheRootRotates(t *testing.T) {
	binary(t)
	kinds := []string{"sarn", "envoy"}
	envoyPath := tool(t, "envoy")
	web := &instance{t: t, name: "web", addr: "127.0.0.1:0"}
	web.start()
	t.Cleanup(func() { web.srv.Close() })
	_, port, _ := net.SplitHostPort(web.addr)
	var webPort int
	fmt.Sscan(port, &webPort)
	dbPort := echoBytes(t, "127.0.0.1:0")

	free := freePorts(2 + 4 + 8)
	take := func() int { p := free[0]; free = free[1:]; return p }
	public := map[string]int{}
	service := func(name string, port int, upstreams ...any) map[string]any {
		public[name] = take()
		return meshed(name, port, public[name], upstreams...)
	}
	var callees, shops []any
	for _, k := range kinds {
		callees = append(callees, service("web-"+k, webPort), service("db-"+k, dbPort))
	}
	upstreams := map[string]int{}
	for _, by := range kinds {
		var list []any
		for _, to := range []string{"web-sarn", "web-envoy", "db-sarn", "db-envoy"} {
			upstreams[by+" calls "+to] = take()
			list = append(list, map[string]any{"destination_name": to, "local_bind_port": upstreams[by+" calls "+to]})
		}
		shops = append(shops, service("shop-"+by, 1, list...))
	}
	s := newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true, "services": callees})
	s.run(t)
	c := newAgent(t, "c1", map[string]any{"retry_join": []string{s.lan()}, "services": shops})
	c.run(t)
	eventually(t, 30*time.Second, "the services are registered", func() bool {
		known, _ := s.get("/v1/catalog/services").(map[string]any)
		return known["shop-envoy-sidecar-proxy"] != nil && known["db-envoy-sidecar-proxy"] != nil
	})
	m := &mesh{TB: t, agent: s}
	m.write(`{"Kind": "service-defaults", "Name": "web-sarn", "Protocol": "http"}`, `{"Kind": "service-defaults", "Name": "web-envoy", "Protocol": "http"}`)
	for name := range public {
		a := s
		if strings.HasPrefix(name, "shop") {
			a = c
		}
		env := []string{"CONSUL_HTTP_ADDR=" + a.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", a.ports["grpc"])}
		if strings.HasSuffix(name, "sarn") {
			start(t, name+"-sidecar", env, binary(t), "connect", "proxy", "-sidecar-for", name, "-admin-socket", "none")
			continue
		}
		out, code := a.cli(t, "connect", "envoy", "-sidecar-for", name, "-bootstrap", "-admin-bind", "127.0.0.1:0")
		if code != 0 {
			t.Fatalf("bootstrap: %s", out)
		}
		file := filepath.Join(t.TempDir(), name+".json")
		if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
		start(t, name+"-sidecar", nil, envoyPath, "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	}
	for what, port := range upstreams {
		eventually(t, 40*time.Second, what, func() bool {
			if strings.Contains(what, "web") {
				return ask(fmt.Sprintf("http://127.0.0.1:%d/x", port), "GET").code == 200
			}
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return false
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(2 * time.Second))
			fmt.Fprintln(conn, "x")
			got, _ := bufio.NewReader(conn).ReadString('\n')
			return got == "x\n"
		})
	}

	load := newCallers()
	for what, port := range upstreams {
		for _, keep := range []bool{true, false} {
			if strings.Contains(what, "web") {
				load.http(fmt.Sprintf("%s, kept %v", what, keep), port, keep)
			} else {
				load.tcp(fmt.Sprintf("%s, kept %v", what, keep), port, keep)
			}
		}
	}
	for _, keyType := range []string{"rsa", "ec"} {
		out, code := s.cli(t, "connect", "ca", "rotate", "-key-type", keyType, "-watch")
		if code != 0 {
			t.Fatalf("rotate: %d %s", code, out)
		}
		t.Log(out)
		if !phases.MatchString(out) {
			t.Errorf("shown: %s", out)
		}
		key, active := s.activeKey()
		if active != keyType {
			t.Errorf("the active root is %s", active)
		}
		for name, port := range public {
			eventually(t, 30*time.Second, name+" shows a certificate of the new root", func() bool { return issuer(port) == key })
		}
		time.Sleep(time.Second)
	}
	load.end(t, 3000)
}

// TestRotationRidesOutTheLossOfItsLeader stops a sidecar so that it accepts nothing, begins a rotation, and kills the
// leader: the next one goes on waiting for the sidecar, and lets the new root sign once it accepts.
func TestRotationRidesOutTheLossOfItsLeader(t *testing.T) {
	list := servers(t, 3)
	ports := freePorts(2)
	c := newAgent(t, "c1", map[string]any{
		"retry_join": []string{list[0].lan(), list[1].lan(), list[2].lan()},
		"services":   []any{meshed("web", ports[0], ports[1])},
	})
	c.run(t)
	eventually(t, 30*time.Second, "the sidecar is registered", func() bool { all, _ := c.get("/v1/catalog/service/web-sidecar-proxy").([]any); return len(all) == 1 })
	env := []string{"CONSUL_HTTP_ADDR=" + c.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", c.ports["grpc"])}
	sidecar := start(t, "sidecar", env, binary(t), "connect", "proxy", "-sidecar-for", "web", "-admin-socket", "none")
	old, _ := c.activeKey()
	eventually(t, 30*time.Second, "the sidecar serves", func() bool { return issuer(ports[1]) == old })
	time.Sleep(5 * time.Second) // until the agent takes what the sidecar has for all it has

	sidecar.cmd.Process.Signal(syscall.SIGSTOP)
	resumed := false
	defer func() {
		if !resumed {
			sidecar.cmd.Process.Signal(syscall.SIGCONT)
		}
	}()
	if out, code := c.cli(t, "connect", "ca", "rotate"); code != 0 || !strings.Contains(out, "spreading: root ") {
		t.Fatalf("rotate: %d %s", code, out)
	}
	waits := func() bool {
		r := c.rotation()
		return r.Phase == "spreading" && slices.Equal(r.awaited(), []string{"c1: web-sidecar-proxy"})
	}
	eventually(t, 20*time.Second, "the sidecar is awaited", waits)
	pending := c.rotation().NewRootID
	leader := leaderOf(t, list)
	leader.end(syscall.SIGKILL)
	list = slices.DeleteFunc(list, func(a *agent) bool { return a == leader })
	leaderOf(t, list)
	eventually(t, 30*time.Second, "the next leader awaits the sidecar", waits)
	if now, _ := c.activeKey(); now != old || c.rotation().NewRootID != pending {
		t.Errorf("the root that signs is %s, was %s; %+v", now, old, c.rotation())
	}
	leader.run(t) // comes back with what it had
	sidecar.cmd.Process.Signal(syscall.SIGCONT)
	resumed = true
	eventually(t, 30*time.Second, "the new root signs", func() bool {
		r := c.rotation()
		return r.NewRootID == pending && r.Phase != "spreading" && r.Phase != ""
	})
	key, _ := c.activeKey()
	eventually(t, 50*time.Second, "the sidecar shows a certificate of the new root", func() bool { return key != old && issuer(ports[1]) == key })
	eventually(t, 30*time.Second, "the rotation ends", func() bool { r := c.rotation(); return r.Phase == "retiring" })
	if out, code := c.cli(t, "connect", "ca", "rotate", "-watch"); code != 0 || !strings.Contains(out, "retiring: root ") {
		t.Errorf("rotate -watch: %d %s", code, out)
	}
}

// TestNoCallFailsWhileTheRootRotatesWithoutProxy has a gRPC client that does without a proxy call while the root rotates.
// It looks for roots by itself, and is given the time for that.
func TestNoCallFailsWhileTheRootRotatesWithoutProxy(t *testing.T) {
	binary(t)
	grpcxds := tool(t, "grpcxds")
	ports := freePorts(4)
	start(t, "web", nil, grpcxds, "serve", fmt.Sprintf("127.0.0.1:%d", ports[0]), "web")
	a := newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true, "services": []any{
		meshed("web", ports[0], ports[1]),
		meshed("shop", 1, ports[2], map[string]any{"destination_name": "web", "local_bind_port": ports[3]}),
	}})
	a.run(t)
	eventually(t, 20*time.Second, "the sidecars are registered", func() bool {
		all, _ := a.get("/v1/catalog/service/web-sidecar-proxy").([]any)
		return len(all) == 1
	})
	a.must(t, "PUT", "/v1/config", `{"Kind": "service-defaults", "Name": "web", "Protocol": "grpc"}`)
	env := []string{"CONSUL_HTTP_ADDR=" + a.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", a.ports["grpc"])}
	start(t, "sidecar", env, binary(t), "connect", "proxy", "-sidecar-for", "web", "-admin-socket", "none")
	c := newGRPCCaller(t, env, binary(t), "connect", "grpc", "-sidecar-for", "shop", "--", grpcxds, "call", "xds:///web")
	eventually(t, 30*time.Second, "calls arrive", func() bool { o := c.call(10, "who"); return o.failed() == 0 && o.Answers["web"] == 10 })

	type result struct {
		out  string
		code int
	}
	done := make(chan result, 1)
	before, _ := a.activeKey()
	go func() {
		out, code := a.cli(t, "connect", "ca", "rotate", "-key-type", "ec", "-watch")
		done <- result{out, code}
	}()
	calls := 0
	var r *result
	var until time.Time
	for ; r == nil || time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		o := c.call(5, "who")
		if calls += 5; o.failed() > 0 {
			t.Fatalf("after %d calls: %v", calls, o)
		}
		select {
		case x := <-done:
			r, until = &x, time.Now().Add(12*time.Second) // until the client has looked at its files
		default:
		}
	}
	t.Logf("%d calls\n%s", calls, r.out)
	if r.code != 0 || !strings.Contains(r.out, "a gRPC client, which looks for roots by itself") || !strings.Contains(r.out, "retiring: root ") {
		t.Errorf("rotate -watch: %d", r.code)
	}
	if now, _ := a.activeKey(); now == before || issuer(ports[1]) != now {
		t.Errorf("the active root is %s, was %s; the sidecar's certificate is of %s", now, before, issuer(ports[1]))
	}
}
