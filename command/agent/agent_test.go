package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/hostinfo"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// sources reads fragments on a machine that has nothing of its own.
func sources(fragments ...string) config.Sources {
	return config.Sources{
		Dev: true, Fragments: fragments,
		LookupEnv:  func(string) (string, bool) { return "", false },
		Hostname:   func() (string, error) { return "machine", nil },
		Interfaces: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil },
		MaxFiles:   func() (uint64, error) { return 0, nil },
	}
}

func load(t testing.TB, src config.Sources) *config.Settings {
	t.Helper()
	s, _, err := config.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const marker = "a-secret-of-"

// fillSecrets sets every text that is tagged as a secret to one that names its field, and returns how many there are.
// What looks like a secret and is not tagged is reported.
func fillSecrets(t *testing.T, v reflect.Value, path string) (n int) {
	t.Helper()
	public := regexp.MustCompile(`(?i)file$|ttl$|policy|PersistToken|TokenPersistence|PubKeys$|KeyValidation|InitialManagement.*TTL`)
	suspect := regexp.MustCompile(`(?i)token|secret|password|key`)
	for i := range v.NumField() {
		f, name := v.Type().Field(i), path+"."+v.Type().Field(i).Name
		switch {
		case !f.IsExported():
		case f.Tag.Get("secret") == "yes":
			v.Field(i).SetString(marker + name)
			n++
		case f.Type.Kind() == reflect.Struct:
			n += fillSecrets(t, v.Field(i), name)
		case f.Type.Kind() == reflect.String && suspect.MatchString(f.Name) && !public.MatchString(f.Name):
			t.Errorf("%s looks like a secret and is not tagged as one", name)
		}
	}
	return n
}

func TestDebugConfigHidesEverySecret(t *testing.T) {
	s := load(t, sources(`node_name = "visible"`))
	if n := fillSecrets(t, reflect.ValueOf(s).Elem(), ""); n < 10 {
		t.Errorf("found %d secrets, want at least those of the ACL tokens, gossip and auto-config", n)
	}
	s.Connect.CAConfig = map[string]any{"Token": marker + "vault", "private_key": marker + "ca"}
	s.UI.MetricsProxyHeaders = []config.Header{{Name: "Authorization", Value: marker + "metrics"}}
	s.Watches = []map[string]any{{"type": "key", "token": marker + "watch"}}
	s.ConfigEntries = []entry.Entry{&entry.ProxyDefaults{Config: map[string]any{"x": marker + "entry"}}}
	check := definition.Check{Name: "visible-check", Token: marker + "check", Body: marker + "body", Header: map[string][]string{"Authorization": {marker + "header"}}}
	s.Checks = []config.CheckBlock{{Check: &check}}
	s.Services = []config.Service{{Service: &definition.Service{Name: "visible-service", Token: marker + "service", Checks: []definition.Check{check}}}}

	data, err := json.Marshal(redact(reflect.ValueOf(*s)))
	if err != nil {
		t.Fatal(err)
	}
	for _, leak := range regexp.MustCompile(marker+`[\w.-]*`).FindAllString(string(data), -1) {
		t.Errorf("shown: %s", leak)
	}
	for _, want := range []string{`"visible"`, `"visible-check"`, `"visible-service"`, `"Default":"hidden"`, `"Key":"hidden"`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("%s is not shown", want)
		}
	}
	s = load(t, sources())
	if got := redact(reflect.ValueOf(*s)).(map[string]any)["ACL"].(map[string]any)["Tokens"].(map[string]any)["Default"]; got != "" {
		t.Errorf("a token that is not set is shown as %v", got)
	}
}

// A configuration that asks for what this version cannot do is refused, in words without secrets.
func TestUnsupportedSettingsAreRefused(t *testing.T) {
	tests := []struct{ name, hcl, want string }{
		{"nothing", "", ""},
		{"plain addresses", `retry_join = ["10.0.0.1", "db.example.net:8301"]`, ""},
		{"acls", "acl { enabled = true }", ""},
		{"auto-encrypt", "auto_encrypt { allow_tls = true }", ""},
		{"syslog", "enable_syslog = true", ""},
		{"built-in authority", `connect { ca_provider = "consul" }`, ""},
		{"vault", `connect { ca_provider = "vault" ca_config { token = "` + marker + `" } }`, ""},
		{"an authority without its program", `server = true connect { ca_provider = "plugin:x" ca_config { token = "` + marker + `" } }`,
			`connect.ca_provider: ca_provider "plugin:x" needs ca_config { plugin { path, sha256 } }`},
		{"cloud", `retry_join = ["secret_access_key=` + marker + `aws provider=aws tag_key=x"]`, "retry_join with provider=aws is not supported by this version: name the servers by address, or by a DNS name that has the addresses of all of them"},
		{"two", `retry_join = ["provider=os", "provider=gce"]`, "retry_join with provider=os is not supported by this version: name the servers by address, or by a DNS name that has the addresses of all of them\nretry_join with provider=gce is not supported by this version: name the servers by address, or by a DNS name that has the addresses of all of them"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := sources(tt.hcl)
			s := load(t, src)
			got := ""
			if err := unsupported(s); err != nil {
				got = err.Error()
			}
			if got != tt.want || strings.Contains(got, marker) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.want == "" {
				return
			}
			if a, err := newAgent(src, s, hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Off})); err == nil {
				a.sockets.close()
				t.Error("an agent was made")
			}
		})
	}
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestNodeIDIsKept(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "node-id")
	s := &config.Settings{DataDir: dir}
	first, err := nodeID(s)
	if err != nil || catalog.CheckUUID(first) != nil {
		t.Fatalf("a new node is %q, %v", first, err)
	}
	if got := mode(t, file); got != 0o600 {
		t.Errorf("mode %o", got)
	}
	if again, err := nodeID(s); err != nil || again != first {
		t.Errorf("after a restart %q, %v; want %q", again, err, first)
	}
	s.Node.ID = "ADF4238A-882B-9DDC-4A9D-5B6758E4159E"
	if got, err := nodeID(s); err != nil || got != "adf4238a-882b-9ddc-4a9d-5b6758e4159e" {
		t.Errorf("configured: %q, %v", got, err)
	}
	s.Node.ID = ""
	if got, err := nodeID(s); err != nil || got != "adf4238a-882b-9ddc-4a9d-5b6758e4159e" {
		t.Errorf("no longer configured: %q, %v", got, err)
	}
	if err := os.WriteFile(file, []byte("ADF4238A-882B-9DDC-4A9D-5B6758E4159E\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := nodeID(s); err != nil || got != "adf4238a-882b-9ddc-4a9d-5b6758e4159e" {
		t.Errorf("in another spelling: %q, %v", got, err)
	}
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := nodeID(s); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("with a damaged file: %q, %v", got, err)
	}
	if data, _ := os.ReadFile(file); string(data) != "mine" {
		t.Errorf("the damaged file was changed to %q", data)
	}
	random := config.Settings{Node: config.Node{DisableHostID: true}}
	a, err1 := nodeID(&random)
	b, err2 := nodeID(&random)
	if err1 != nil || err2 != nil || a == b || catalog.CheckUUID(a) != nil {
		t.Errorf("without a data folder: %q and %q, %v, %v", a, b, err1, err2)
	}
	if hostNodeID() == "" {
		t.Skip("this host has no ID")
	}
	a, err1 = nodeID(&config.Settings{})
	b, err2 = nodeID(&config.Settings{})
	if err1 != nil || err2 != nil || a != b || catalog.CheckUUID(a) != nil || a == hostinfo.Collect("").Host.HostID {
		t.Errorf("made of the host's: %q and %q, %v, %v", a, b, err1, err2)
	}
}

func TestWriteFileIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "folder")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(path, []byte("x")); err == nil {
		t.Error("wrote a file in place of a folder")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestTokens(t *testing.T) {
	configured := func(dir string, persist bool) *config.Settings {
		s := &config.Settings{DataDir: dir}
		s.ACL.EnableTokenPersistence = persist
		s.ACL.Tokens = config.Tokens{Default: "file-default", FileRegistration: "file-registration"}
		return s
	}
	make := func(t *testing.T, s *config.Settings) *tokens {
		t.Helper()
		k, err := newTokens(s, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	t.Run("what stands in for what", func(t *testing.T) {
		k := make(t, configured("", false))
		if k.Agent() != "file-default" || k.dns() != "file-default" || k.Registration() != "file-registration" || k.get(httpapi.TokenReplication) != "" {
			t.Errorf("agent %q, DNS %q, registration %q", k.Agent(), k.dns(), k.Registration())
		}
		k.put(httpapi.TokenAgent, "api-agent")
		k.put(httpapi.TokenDNS, "api-dns")
		k.put(httpapi.TokenRegistration, "")
		if k.Agent() != "api-agent" || k.dns() != "api-dns" || k.Registration() != "" || k.Default() != "file-default" {
			t.Errorf("after setting them: agent %q, DNS %q, registration %q", k.Agent(), k.dns(), k.Registration())
		}
	})
	t.Run("not kept", func(t *testing.T) {
		dir := t.TempDir()
		s := configured(dir, false)
		k := make(t, s)
		k.put(httpapi.TokenDefault, "api")
		k.put(httpapi.TokenAgent, "api-agent")
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("written: %v", left)
		}
		k.configure(s) // a reload
		if k.Default() != "file-default" || k.Agent() != "file-default" {
			t.Errorf("after a reload: default %q, agent %q", k.Default(), k.Agent())
		}
	})
	t.Run("kept", func(t *testing.T) {
		dir := t.TempDir()
		s := configured(dir, true)
		k := make(t, s)
		if err := k.put(httpapi.TokenDefault, "api"); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "acl-tokens.json")
		if got := mode(t, file); got != 0o600 {
			t.Errorf("mode %o", got)
		}
		k.configure(s)
		if k.Default() != "api" || make(t, s).Default() != "api" {
			t.Errorf("after a reload %q, after a restart %q", k.Default(), make(t, s).Default())
		}
		if got := make(t, configured(dir, false)).Default(); got != "file-default" {
			t.Errorf("without persistence the kept token is used: %q", got)
		}
		if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := newTokens(s, hclog.NewNullLogger()); err == nil || strings.Contains(err.Error(), "api") {
			t.Errorf("a damaged file: %v", err)
		}
	})
	t.Run("what cannot be kept is not taken", func(t *testing.T) {
		dir := t.TempDir()
		s := configured(dir, true)
		k := make(t, s)
		if err := os.MkdirAll(filepath.Join(dir, "acl-tokens.json", "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := k.put(httpapi.TokenDefault, "api"); err == nil || k.Default() != "file-default" {
			t.Errorf("error %v, default %q", err, k.Default())
		}
	})
}

// freePorts returns ports that nobody else has.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	ports, err := testkit.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	return ports
}

// A client agent that is put together and does not run.
func newTestAgent(t *testing.T, dir string) *Agent {
	t.Helper()
	p := freePorts(t, 2)
	src := sources(fmt.Sprintf("ports { serf_lan = %d\n http = %d\n dns = -1\n grpc = -1\n grpc_tls = -1 }", p[0], p[1]))
	src.Dev = false
	src.Paths = []string{dir}
	s := load(t, src)
	if err := s.CheckStart(); err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(src, s, hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Off}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.sockets.close)
	services, checks := definitions(s)
	if err := a.local.Load(t.Context(), services, checks); err != nil {
		t.Fatal(err)
	}
	return a
}

// The banner names ports only where something listens.
func TestBannerShowsWhatListens(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "agent.hcl"), fmt.Sprintf("server = false\nbind_addr = \"127.0.0.1\"\ndata_dir = %q\n", t.TempDir()))
	a := newTestAgent(t, dir)
	s := *a.settings
	s.Ports.GRPCTLS = 8503
	for want, listeners := range map[string][]config.Listen{"gRPC-TLS: -1,": nil, "gRPC-TLS: 8503,": {{Network: "tcp", Address: "127.0.0.1:8503"}}} {
		s.Addresses.GRPCTLS = listeners
		if got := banner(&s, a); !strings.Contains(got, want) || !strings.Contains(got, "WAN: -1)") {
			t.Errorf("with gRPC-TLS on %v the banner is\n%s", listeners, got)
		}
	}
	a.sockets.wan, s.Ports.SerfWAN = a.sockets.lan, 8302 // as a server has it
	defer func() { a.sockets.wan = nil }()
	if got := banner(&s, a); !strings.Contains(got, "WAN: 8302)") {
		t.Errorf("with gossip over the WAN the banner is\n%s", got)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	base := fmt.Sprintf("server = false\nbind_addr = \"127.0.0.1\"\ndata_dir = %q\n", data)
	file := filepath.Join(dir, "agent.hcl")
	write(t, file, base+`
log_level = "info"
service { name = "stays"
  port = 1
  check { id = "c"
    ttl = "1h"
    status = "passing" } }
service { name = "goes"
  port = 2 }
acl { tokens { default = "one" } }`)
	a := newTestAgent(t, dir)
	state := func() string {
		var names []string
		for _, s := range a.local.Services() {
			names = append(names, fmt.Sprintf("%s:%d", s.Given.ID, s.Given.Port))
		}
		status := ""
		if c := a.local.Check("c"); c != nil {
			status = c.Record.Status
		}
		return fmt.Sprintf("%v c=%s level=%v token=%s dns=%v", names, status, a.log.GetLevel(), a.tokens.Default(), a.current().DNS.NodeTTL)
	}
	const first = "[goes:2 stays:1] c=passing level=off token=one dns=0s"
	if got := state(); got != first {
		t.Fatalf("at the start: %s", got)
	}
	if err := a.local.UpdateTTL(t.Context(), "c", catalog.Warning, "busy"); err != nil {
		t.Fatal(err)
	}

	write(t, file, base+`
log_level = "debug"
node_name = "other"
dns_config { node_ttl = "7s" }
service { name = "stays"
  port = 1
  check { id = "c"
    ttl = "1h"
    status = "passing" } }
service { name = "comes"
  port = 3 }
acl { tokens { default = "two" } }`)
	if err := a.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	const second = "[comes:3 stays:1] c=warning level=debug token=two dns=7s"
	if got := state(); got != second {
		t.Errorf("after a reload: %s", got)
	}
	if got := a.current().Node.Name; got != "machine" {
		t.Errorf("the node calls itself %s although only a restart would change that", got)
	}

	for name, text := range map[string]string{
		"syntax":  base + "service {",
		"service": base + "service { name = \"comes\"\n port = \"many\" }",
		"value":   base + `dns_config { node_ttl = "soon" }`,
		"key":     base + `no_such_key = 1`,
		"certificate": base + fmt.Sprintf("tls { https { cert_file = %q\n key_file = %q } }\nservice { name = \"x\"\n port = 1 }",
			filepath.Join(dir, "none.pem"), filepath.Join(dir, "none.pem")),
	} {
		write(t, file, text)
		if err := a.Reload(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), "agent.hcl") && name != "certificate" {
			t.Errorf("%s: the error does not name the file: %v", name, err)
		}
		if got := state(); got != second {
			t.Errorf("%s: a refused configuration has changed the agent: %s", name, got)
		}
	}
}

// A taken port ends the start, and what was opened before it is closed again.
func TestTakenPort(t *testing.T) {
	p := freePorts(t, 2)
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := load(t, sources(fmt.Sprintf("server = false\nports { serf_lan = %d\n http = %d\n dns = -1\n grpc = -1\n grpc_tls = -1 }", p[0], p[1])))
	if _, err := listen(s); err == nil || !strings.Contains(err.Error(), "HTTP port") || !strings.Contains(err.Error(), fmt.Sprint(p[1])) {
		t.Errorf("error %v, want one that names the port", err)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p[0]))
	if err != nil {
		t.Errorf("the other port is still held: %v", err)
	} else {
		l.Close()
	}
}

func TestSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "http.sock")
	write(t, path, "left by a process that is dead")
	o := &sockets{}
	l, err := o.open(config.Listen{Network: "unix", Address: path}, config.UnixSockets{Mode: "660"})
	if err != nil {
		t.Fatal(err)
	}
	if got := mode(t, path); got != 0o660 {
		t.Errorf("mode %o", got)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Close()
	o.close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	for _, u := range []config.UnixSockets{{User: "no such user"}, {Group: "no such group"}} {
		if l, err := o.open(config.Listen{Network: "unix", Address: path}, u); err == nil {
			l.Close()
			t.Errorf("%+v: no error", u)
		}
	}
}

func TestAddressesAreCompleted(t *testing.T) {
	got := fmt.Sprint(withPort([]string{"10.0.0.1", "10.0.0.1:9", "[::1]:9", "::1", "[::1]", "db.example.net", "db.example.net:9"}, 8301))
	if want := "[10.0.0.1:8301 10.0.0.1:9 [::1]:9 [::1]:8301 [::1]:8301 db.example.net:8301 db.example.net:9]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for from, want := range map[config.Listen]string{
		{Network: "tcp", Address: "0.0.0.0:8500"}:  "127.0.0.1:8500",
		{Network: "tcp", Address: "[::]:8500"}:     "[::1]:8500",
		{Network: "tcp", Address: "10.0.0.1:8500"}: "10.0.0.1:8500",
		{Network: "unix", Address: "/run/s"}:       "unix:///run/s",
	} {
		if got := reach([]config.Listen{from}); got != want {
			t.Errorf("%v is reached at %q, want %q", from, got, want)
		}
	}
}
