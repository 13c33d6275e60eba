package proxycmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"
)

func TestFlagsAreChecked(t *testing.T) {
	tests := []struct {
		args string
		want string
	}{
		{"", "-service or -proxy-id must be specified so that proxy can configure itself."},
		{"-proxy-id a -sidecar-for b", "Only one of -bootstrap, -proxy-id, -sidecar-for, -gateway and -service may be specified"},
		{"-gateway a", "Gateway must be one of: api, terminating, mesh, or ingress"},
		{"-gateway ingress -sidecar-for b", "Only one of -bootstrap"},
		{"-gateway ingress -address 127.0.0.1:1", "need -register with -gateway"},
		{"-gateway ingress -register -expose-servers", "'-expose-servers' can only be used for mesh gateways with '-register'"},
		{"-gateway mesh -register -bind-address x", "-bind-address should be name=ip:port, not \"x\""},
		{"-proxy-id a -wan-address 1.2.3.4:1", "may only be specified with -gateway"},
		{"-register -proxy-id a", "-register may only be specified with -service and -listen"},
		{"-proxy-id a -upstream x:1", "may only be specified with -service"},
		{"-service a -listen :1", "-listen requires -service-addr"},
		{"-service a -upstream nope", `Upstream value should be name:addr in "nope"`},
		{"-service a -upstream nope:http", `Upstream value should be name:addr in "nope:http": "http" is no port`},
		{"-proxy-id a -log-level loud", "Invalid log level: loud"},
		{"-proxy-id a more", "Too many arguments: more"},
		{"-nope", "flag provided but not defined: -nope"},
		{"--bootstrap /no/such.yaml", "no such file"},
	}
	for _, tt := range tests {
		ui := cli.NewMockUi()
		if code := New(ui).Run(strings.Fields(tt.args)); code != 1 || !strings.Contains(ui.ErrorWriter.String(), tt.want) {
			t.Errorf("%q: code %d, says %q, want %q", tt.args, code, ui.ErrorWriter, tt.want)
		}
	}
}

func TestHelpNamesEveryFlag(t *testing.T) {
	c := New(cli.NewMockUi()).(*command)
	help := c.Help()
	for _, name := range []string{"-sidecar-for", "-proxy-id", "-bootstrap", "-http-addr", "-grpc-addr", "-token-file", "-admin-bind", "-admin-socket", "-state-dir", "-log-level"} {
		if !strings.Contains(help, "  "+name+" ") {
			t.Errorf("help does not tell of %s", name)
		}
	}
}

// fake is an agent that answers from a table.
func fake(t *testing.T, answers map[string]any, args ...string) *agent {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if want := "secret"; r.Header.Get("X-Consul-Token") != want {
			t.Errorf("%s came with token %q", r.URL.Path, r.Header.Get("X-Consul-Token"))
		}
		switch a := answers[r.URL.Path].(type) {
		case nil:
			http.Error(w, "unknown service ID", http.StatusNotFound)
		case int:
			http.Error(w, "Permission denied", a)
		default:
			json.NewEncoder(w).Encode(a)
		}
	}))
	t.Cleanup(srv.Close)
	c := &command{ui: cli.NewMockUi()}
	if err := c.set().Parse(append([]string{"-http-addr", srv.URL, "-token", "secret"}, args...)); err != nil {
		t.Fatal(err)
	}
	a, err := c.agent(hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSidecarIsFound(t *testing.T) {
	proxy := func(id, dest string) map[string]any {
		return map[string]any{"ID": id, "Kind": "connect-proxy", "Proxy": map[string]any{"DestinationServiceID": dest}}
	}
	list := map[string]any{"a": proxy("a", "web"), "b": proxy("b", "db"), "c": proxy("c", "db"), "web": map[string]any{"ID": "web"}}
	a := fake(t, map[string]any{"/v1/agent/services": list})
	if id, err := a.sidecarFor(t.Context(), "web"); err != nil || id != "a" {
		t.Errorf("for web: %q, %v", id, err)
	}
	for service, want := range map[string]string{
		"none": "No sidecar proxy registered for none",
		"db":   "More than one sidecar proxy registered for db.\n    Start proxy with -proxy-id and one of the following IDs: b, c",
	} {
		if _, err := a.sidecarFor(t.Context(), service); err == nil || err.Error() != want || !errors.Is(err, errFinal) {
			t.Errorf("for %s: %v, want %q for good", service, err, want)
		}
	}
	a = fake(t, map[string]any{"/v1/agent/services": 403})
	if _, err := a.sidecarFor(t.Context(), "web"); !errors.Is(err, errFinal) {
		t.Errorf("without the right to ask: %v, want an end", err)
	}
}

func TestUnreachableAgentIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, n := time.Now(), 0
		id, err := retry(t.Context(), hclog.NewNullLogger(), func() (string, error) {
			if n++; n < 6 {
				return "", errors.New("connection refused")
			}
			return "x", nil
		})
		if d := time.Since(start); id != "x" || err != nil || d != 30*time.Second { // 1+2+4+8+15
			t.Errorf("got %q, %v after %v", id, err, d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := retry(ctx, hclog.NewNullLogger(), func() (string, error) { return "", errors.New("refused") }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("told to stop: %v", err)
		}
	})
}

func TestGRPCAddressComesFromTheAgent(t *testing.T) {
	self := func(tls, plain, debug int) map[string]any {
		return map[string]any{"/v1/agent/self": map[string]any{"xDS": map[string]any{"Ports": map[string]int{"TLS": tls, "Plaintext": plain}}, "DebugConfig": map[string]int{"GRPCPort": debug, "GRPCTLSPort": -1}}}
	}
	tests := []struct {
		name    string
		answers map[string]any
		args    []string
		want    string
	}{
		{"plaintext", self(-1, 8502, 8502), nil, "127.0.0.1:8502"},
		{"both, no CA given", self(8503, 8502, 8502), nil, "127.0.0.1:8502"},
		{"both, CA given", self(8503, 8502, 8502), []string{"-grpc-ca-file", "/ca"}, "https://127.0.0.1:8503"},
		{"only the old key", self(0, 0, 9502), nil, "127.0.0.1:9502"},
		{"may not ask", map[string]any{"/v1/agent/self": 403}, nil, "127.0.0.1:8502"},
		{"only TLS, no CA given", self(8503, -1, -1), nil, ""},
		{"none", self(-1, -1, -1), nil, ""},
	}
	for _, tt := range tests {
		got, told, err := fake(t, tt.answers, tt.args...).discover(t.Context())
		if got != tt.want || (err == nil) != (tt.want != "") || told != (tt.want != "" && tt.name != "may not ask") {
			t.Errorf("%s: %q, told %v, %v; want %q", tt.name, got, told, err, tt.want)
		}
	}
}

func TestTokenFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	c := &command{ui: cli.NewMockUi()}
	t.Setenv("CONSUL_HTTP_TOKEN", "")
	if err := c.set().Parse([]string{"-token-file", path}); err != nil {
		t.Fatal(err)
	}
	a := &agent{flags: &c.flags, log: hclog.NewNullLogger()}
	for _, want := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if md := a.metadata(); len(md) != 1 || md[0].Value != want {
			t.Errorf("metadata %v, want %q", md, want)
		}
	}
}

func TestEndsWhenDeregisteredForLong(t *testing.T) {
	answers := map[string]any{"/v1/agent/service/p": map[string]any{"ID": "p"}}
	a := fake(t, answers)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.watchRegistration(ctx, "p", time.Minute, 5*time.Millisecond); err != nil {
		t.Errorf("registered: %v", err)
	}
	a = fake(t, nil)
	if err := a.watchRegistration(t.Context(), "p", 50*time.Millisecond, 5*time.Millisecond); !errors.Is(err, errDeregistered) {
		t.Errorf("not registered: %v", err)
	}
	a = fake(t, map[string]any{"/v1/agent/service/p": 500})
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := a.watchRegistration(ctx, "p", 10*time.Millisecond, 5*time.Millisecond); err != nil {
		t.Errorf("an agent in trouble: %v", err)
	}
}

func TestExplicitModeRegisters(t *testing.T) {
	c := &command{ui: cli.NewMockUi()}
	if err := c.set().Parse([]string{"-service", "web", "-service-addr", "127.0.0.1:8080", "-listen", "10.0.0.1:8443", "-upstream", "db:127.0.0.1:9191", "-upstream", "cache::9192", "-upstream", "api:9193", "-register-id", "x"}); err != nil {
		t.Fatal(err)
	}
	reg, err := c.flags.registration()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintln(reg.ID, reg.Name, reg.Address, reg.Port, reg.Proxy.DestinationServiceName, reg.Proxy.LocalServiceAddress, reg.Proxy.LocalServicePort, reg.Proxy.Upstreams[0].DestinationName, reg.Proxy.Upstreams[0].LocalBindPort, reg.Proxy.Upstreams[1].LocalBindPort,
		reg.Proxy.Upstreams[2].DestinationName, reg.Proxy.Upstreams[2].LocalBindAddress, reg.Proxy.Upstreams[2].LocalBindPort)
	if want := fmt.Sprintln("web-proxy-x", "web-proxy", "10.0.0.1", 8443, "web", "127.0.0.1", 8080, "db", 9191, 9192, "api", "127.0.0.1", 9193); got != want {
		t.Errorf("registers %s, want %s", got, want)
	}
}

func TestFileNames(t *testing.T) {
	for id, want := range map[string]string{"web-sidecar-proxy": "web-sidecar-proxy", "../x": "_.._x", "a/b": "a_b", ".x": "_.x"} {
		if got := fileName(id); got != want {
			t.Errorf("%q is kept as %q, want %q", id, got, want)
		}
	}
}

func TestAdminSocketIsThereByDefault(t *testing.T) {
	dir, err := os.MkdirTemp("", "pc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	c := &command{ui: cli.NewMockUi()}
	if err := c.set().Parse(nil); err != nil {
		t.Fatal(err)
	}
	ln, _, err := c.openAdmin(t.Context(), "web", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	path := filepath.Join(dir, "sarn", "web.sock")
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", p, fi.Mode().Perm(), err, want)
		}
	}
	if _, _, err := c.openAdmin(t.Context(), "web", nil); err == nil {
		t.Error("two proxies share a socket")
	}
	c.flags.adminSocket = "none"
	if ln, _, err := c.openAdmin(t.Context(), "web", nil); ln != nil || err != nil {
		t.Errorf("none: %v, %v", ln, err)
	}
}

func TestRunsFromAFileAndServes(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	defer app.Close()
	dir, err := os.MkdirTemp("", "pc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	_, port, _ := net.SplitHostPort(app.Listener.Addr().String())
	file := filepath.Join(dir, "edge.yaml")
	text := `
node: {id: edge}
static_resources:
  listeners:
  - name: in
    address: {pipe: {path: ` + dir + `/in.sock, mode: 384}}
    filter_chains: [{filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: in, cluster: app}}]}]
  clusters:
  - {name: app, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ` + port + `}}}}]}]}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &command{ui: cli.NewMockUi()}
	if err := c.set().Parse([]string{"-bootstrap", file, "-admin-socket", dir + "/adm.sock"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.run(ctx, hclog.NewNullLogger()) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", dir+"/in.sock")
	}}}
	var resp *http.Response
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if resp, err = client.Get("http://app/"); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if fi, err := os.Stat(dir + "/in.sock"); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the listener's socket has mode %v", fi.Mode())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
