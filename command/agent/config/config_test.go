package config_test

import (
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// machine is a Sources on a machine with one private address.
func machine() config.Sources {
	return config.Sources{
		LookupEnv: func(string) (string, bool) { return "", false },
		Hostname:  func() (string, error) { return "host-1", nil },
		Interfaces: func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("127.0.0.1")}, nil
		},
		MaxFiles: func() (uint64, error) { return 1 << 20, nil },
	}
}

// dev is a Sources in dev mode with fragments.
func dev(fragments ...string) config.Sources {
	src := machine()
	src.Dev, src.Fragments = true, fragments
	return src
}

func load(t *testing.T, src config.Sources) *config.Settings {
	t.Helper()
	s, _, err := config.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nest writes a dotted key and its value as HCL.
func nest(key, value string) string {
	parts := strings.Split(key, ".")
	text := parts[len(parts)-1] + " = " + value
	for _, p := range slices.Backward(parts[:len(parts)-1]) {
		text = p + " {\n" + text + "\n}"
	}
	return text
}

// Every key of the specification is read: its value shows in the settings, or a warning tells what became of it. The third
// column of the data is the error for keys that dev mode refuses with good reason.
func TestEveryKeyIsRead(t *testing.T) {
	data, err := os.ReadFile("testdata/keys.tsv")
	if err != nil {
		t.Fatal(err)
	}
	base := load(t, dev())
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.TrimSpace(line), "\t")
		key, value, refusal := cells[0], cells[1], ""
		if len(cells) > 2 {
			refusal = cells[2]
		}
		t.Run(key, func(t *testing.T) {
			s, warnings, err := config.Load(dev(nest(key, value)))
			if refusal != "" {
				if err == nil || !strings.Contains(err.Error(), refusal) {
					t.Errorf("%s = %s: error %v, want %q", key, value, err, refusal)
				}
				return
			}
			if err != nil {
				t.Fatalf("%s = %s: %v", key, value, err)
			}
			changed := slices.ContainsFunc(config.Diff(base, s), func(c config.Change) bool { return c.Key == key })
			if !changed && len(warnings) == 0 && !ignored[key] {
				t.Errorf("%s = %s changed nothing and warned of nothing", key, value)
			}
		})
	}
}

// ignored are the keys that are accepted for the sake of existing files and mean nothing.
var ignored = map[string]bool{
	"snapshot_agent": true, "experiments": true, "connect.enable_serverless_plugin": true, "cloud.resource_id": true,
	"cloud.client_id": true, "cloud.client_secret": true, "cloud.hostname": true, "cloud.auth_url": true, "cloud.scada_address": true,
}

func TestDefaultsMatchTheSpecification(t *testing.T) {
	src := machine()
	if err := src.Set("data_dir", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	s := load(t, src)
	got := map[string]any{
		"datacenter": s.Node.Datacenter, "node_name": s.Node.Name, "server": s.Server, "advertise": s.Addresses.Advertise.String(),
		"bind": s.Addresses.Bind.String(), "http": s.Addresses.HTTP[0].Address, "dns": s.Addresses.DNS[0].String(),
		"grpc": len(s.Addresses.GRPC), "grpc_tls": len(s.Addresses.GRPCTLS), "leave_on_terminate": s.LeaveOnTerminate,
		"skip_leave_on_interrupt": s.SkipLeaveOnInterrupt, "raft election": s.Raft.ElectionTimeout.String(), "lan": s.Node.TaggedAddresses["lan_ipv4"],
		"log": s.Log.Level, "domain": s.DNS.Domain, "connect": s.Connect.Enabled, "sidecars": s.Connect.Sidecars,
	}
	want := map[string]any{
		"datacenter": "dc1", "node_name": "host-1", "server": false, "advertise": "10.1.2.3", "bind": "0.0.0.0", "http": "127.0.0.1:8500",
		"dns": "127.0.0.1:8600", "grpc": 0, "grpc_tls": 0, "leave_on_terminate": true, "skip_leave_on_interrupt": false,
		"raft election": "5s", "lan": "10.1.2.3", "log": "INFO", "domain": "consul.", "connect": true, "sidecars": false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings of a client (-want +got):\n%s", diff)
	}

	s = load(t, dev())
	got = map[string]any{
		"server": s.Server, "bind": s.Addresses.Bind.String(), "grpc": s.Addresses.GRPC[0].Address, "grpc_tls": s.Addresses.GRPCTLS[0].Address,
		"ui": s.UI.Enabled, "debug": s.EnableDebug, "log": s.Log.Level, "lease": s.Raft.LeaderLeaseTimeout.String(),
		"leave_on_terminate": s.LeaveOnTerminate, "data_dir": s.DataDir,
	}
	want = map[string]any{
		"server": true, "bind": "127.0.0.1", "grpc": "127.0.0.1:8502", "grpc_tls": "127.0.0.1:8503", "ui": true, "debug": true,
		"log": "DEBUG", "lease": "20ms", "leave_on_terminate": false, "data_dir": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings of dev mode (-want +got):\n%s", diff)
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLaterSourcesWin(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"10.json":  `{"node_name": "from-10", "node_meta": {"a": "10", "b": "10"}, "recursors": ["127.0.0.9:1"], "ports": {"http": 1, "dns": 2}, "service": {"name": "s10"}}`,
		"20.hcl":   "node_name = \"from-20\"\nnode_meta {\n b = \"20\"\n c = \"20\"\n}\nrecursors = [\"127.0.0.9:2\"]\nports { http = 3 }\nservice { name = \"s20\" }\nservices = [{ name = \"s21\" }]\n",
		"05.conf":  "bogus",
		"skip.txt": "bogus",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	src := dev()
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	src.Register(fs)
	if err := fs.Parse([]string{
		"-config-dir", dir, "-config-file", write(t, "two.hcl", `node_name = "from-two"
node_meta { d = "two" }`), "--node=from-flag", "-node-meta", "e:flag", "-recursor=127.0.0.9:3", "-http-port", "4", "-hcl", `node_meta { f = "hcl" }`,
	}); err != nil {
		t.Fatal(err)
	}
	s, warnings, err := config.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	var services []string
	for _, b := range s.Services {
		services = append(services, b.Name)
	}
	got := []any{s.Node.Name, s.Node.Meta, s.DNS.Recursors, s.Ports.HTTP, s.Ports.DNS, services}
	want := []any{
		"from-flag", map[string]string{"a": "10", "b": "20", "c": "20", "d": "two", "e": "flag", "f": "hcl"},
		[]string{"127.0.0.9:3", "127.0.0.9:1", "127.0.0.9:2"}, 4, 2, []string{"s10", "s20", "s21"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("merged (-want +got):\n%s", diff)
	}
	skipped := "skipping file " + filepath.Join(dir, "05.conf") + ", extension must be .hcl or .json, or config format must be set"
	if !slices.Contains(warnings, skipped) {
		t.Errorf("warnings %q do not have %q", warnings, skipped)
	}

	src.Fragments = append(src.Fragments, `node_name = "from-hcl"`)
	if s := load(t, src); s.Node.Name != "from-hcl" {
		t.Errorf("node name %q, want from-hcl: fragments beat flags", s.Node.Name)
	}
}

// All problems with the form of all files are told at once, each with its place.
func TestProblemsHaveTheirPlace(t *testing.T) {
	src := dev()
	a := write(t, "a.hcl", "servr = true\nports {\n  http = \"x\"\n  zzz = 1\n}\nservice {\n  name = \"web\"\n  check {\n    name = \"c\"\n    bogus = 1\n  }\n}\n")
	b := write(t, "b.json", "{\n  \"telemetry\": {\"statsd_adress\": \"x\"},\n  \"services\": [{\"name\": \"a\"}, {\"nme\": \"b\"}]\n}")
	c := write(t, "c.hcl", "a = \"x\nb = 2")
	src.Paths = []string{a, b, c}
	_, _, err := config.Load(src)
	want := []string{
		"invalid config key servr, did you mean server? (" + a + ":1:1)",
		"'ports.http' expected type 'int', got unconvertible type 'string', value: 'x' (" + a + ":3:10)",
		"invalid config key ports.zzz (" + a + ":4:3)",
		"invalid config key service.check.bogus (" + a + ":10:5)",
		"invalid config key telemetry.statsd_adress, did you mean statsd_address? (" + b + ":2:17)",
		"invalid config key services[1].nme (" + b + ":3:32)",
		"failed to parse " + c + ": line 1, column 7: literal not terminated",
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("error lacks %q:\n%s", w, text)
		}
	}
	if k, ok := errors.AsType[*config.KeyError](err); !ok || k.Key != "servr" || k.Pos.Line != 1 {
		t.Errorf("first key error is %+v, want servr on line 1", k)
	}
}

func TestValuesAreChecked(t *testing.T) {
	tests := []struct{ name, hcl, err string }{
		{"durations", `dns_config { node_ttl = "5x" }`, `dns_config.node_ttl: invalid duration: "5x": time: unknown unit "x" in duration "5x"`},
		{"durations in maps", `dns_config { service_ttl { "*" = "5x" } }`, `dns_config.service_ttl["*"]: invalid duration: "5x"`},
		{"several at once", "session_ttl_min = \"x\"\ncheck_output_max_size = 0", "2 errors occurred:\n\t* session_ttl_min"},
		{"a list is no single value", `recursors = "8.8.8.8"`, "'recursors': source data must be an array or slice, got string"},
		{"an object is no list", `ports = 1`, "'ports' expected a map, got 'int'"},
		{"secrets are not shown", `encrypt = 12345`, "'encrypt' expected type 'string', got unconvertible type 'int' ("},
		{"node meta", `node_meta { consul-x = "a" }`, "Couldn't load metadata pair ('consul-x', 'a'): Key prefix 'consul-' is reserved for internal use"},
		{"zone without region", `locality { zone = "z" }`, "locality is invalid: zone cannot be set without region"},
		{"seeds", `config_entries { bootstrap = [{ kind = "nope" }] }`, "config_entries.bootstrap[0]: invalid config entry kind: nope"},
		{"checks", `service { name = "x" check { http = "http://x" } }`, `service "x": check "": Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks`},
		{"port range", `ports { http = 99999 }`, "ports.http: invalid port: 99999"},
		{"two listeners", `ports { http = 8600 }`, "HTTP address 127.0.0.1:8600 already configured for DNS"},
		{"file limit", `limits { http_max_conns_per_client = 2000000 }`, "system allows a max of 1048576 file descriptors"},
		{"cipher suites", `tls { https { tls_cipher_suites = "foo" } }`, "tls.https.tls_cipher_suites: invalid TLS cipher suites: foo"},
		{"content path", `ui_config { content_path = "/a b/" }`, "ui-content-path can only contain alphanumeric"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := config.Load(dev(tt.hcl))
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestAdvertiseAddressComesFromTheMachine(t *testing.T) {
	tests := []struct {
		name, hcl string
		addrs     []string
		want, err string
	}{
		{"the one private IPv4", "", []string{"127.0.0.1", "10.0.0.1", "8.8.8.8", "fe80::1"}, "10.0.0.1", ""},
		{"none", "", []string{"127.0.0.1", "8.8.8.8"}, "", "No private IPv4 address found"},
		{"two", "", []string{"10.0.0.1", "192.168.0.1"}, "", "Multiple private IPv4 addresses found. Please configure one with 'bind' and/or 'advertise'."},
		{"the one public IPv6", `bind_addr = "::"`, []string{"10.0.0.1", "2001:db8::1", "fd00::1", "::1"}, "2001:db8::1", ""},
		{"given", `advertise_addr = "10.9.9.9"`, nil, "10.9.9.9", ""},
		{"bound", `bind_addr = "10.8.8.8"`, nil, "10.8.8.8", ""},
		{"unspecified", `advertise_addr = "::"`, nil, "", "Advertise address cannot be 0.0.0.0, :: or [::]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := machine()
			src.Fragments = []string{`data_dir = "` + t.TempDir() + `"`, tt.hcl}
			src.Interfaces = func() ([]netip.Addr, error) {
				var out []netip.Addr
				for _, a := range tt.addrs {
					out = append(out, netip.MustParseAddr(a))
				}
				return out, nil
			}
			s, _, err := config.Load(src)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Addresses.Advertise.String(); got != tt.want {
				t.Errorf("advertises %s, want %s", got, tt.want)
			}
		})
	}
}

// What existing files are written like must mean the same.
func TestFormsOfHCL(t *testing.T) {
	s := load(t, dev(`
# a comment
node_name = "n" // another
service { name = "a" meta { x = "1" } tags = ["t1", "t2",] }
service { name = "b" }
services = [{ name = "c", port = 0x10 }, { name = "d" }]
Ports { HTTP = 1234 }
ports { dns = 1235 }
node_meta = { k = <<EOF
two
lines
EOF
}
connect { ca_config { leaf_cert_ttl = "80h" nested { a = [1, 2] } many { a = 1 } many { a = 2 } } }
tls = [{ defaults = [{ verify_incoming = true }] }]
check { id = "c1" name = "c1" ScriptArgs = ["true"] interval = "1s" }
`))
	var names []string
	for _, b := range s.Services {
		names = append(names, b.Name)
	}
	got := []any{
		s.Node.Name, names, s.Services[2].Port, s.Ports.HTTP, s.Ports.DNS, s.Node.Meta["k"], s.Connect.CAConfig,
		s.TLS.GRPC.VerifyIncoming, s.Checks[0].ScriptArgs, s.Services[1].Pos.Line,
	}
	want := []any{
		"n", []string{"a", "b", "c", "d"}, 16, 1234, 1235, "two\nlines\n",
		map[string]any{
			"leaf_cert_ttl": "80h", "nested": map[string]any{"a": []any{1, 2}},
			"many": []any{map[string]any{"a": 1}, map[string]any{"a": 2}},
		},
		true, []string{"true"}, 5,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func TestOldKeysAreTranslated(t *testing.T) {
	s, warnings, err := config.Load(dev(`
acl_datacenter = "DC1"
acl_replication_token = "r"
acl { tokens { master = "m" } }
verify_incoming = true
verify_outgoing = true
ca_file = "ca.pem"
tls_min_version = "tls13"
start_join = ["10.0.0.1"]
retry_join = ["10.0.0.2"]
ui_content_path = "x"
`))
	if err != nil {
		t.Fatal(err)
	}
	got := []any{
		s.ACL.Enabled, s.ACL.EnableTokenReplication, s.ACL.Tokens.Replication, s.ACL.Tokens.InitialManagement, s.Node.PrimaryDatacenter,
		s.TLS.InternalRPC.VerifyIncoming, s.TLS.GRPC.VerifyIncoming, s.TLS.HTTPS.CAFile, s.TLS.GRPC.VerifyOutgoing, s.TLS.HTTPS.MinVersion,
		s.Join.LAN, s.UI.ContentPath,
	}
	want := []any{true, true, "r", "m", "dc1", true, false, "ca.pem", false, "TLSv1_3", []string{"10.0.0.2", "10.0.0.1"}, "/x/"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	for _, w := range []string{
		"The 'acl_datacenter' field is deprecated. Use the 'primary_datacenter' field instead.",
		"The 'acl.tokens.master' field is deprecated. Use the 'acl.tokens.initial_management' field instead.",
		"'tls_min_version' value 'tls13' is deprecated, please specify 'TLSv1_3' instead",
	} {
		if !slices.Contains(warnings, w) {
			t.Errorf("warnings %q lack %q", warnings, w)
		}
	}
}

func TestDiffTellsWhatNeedsARestart(t *testing.T) {
	a := load(t, dev(`service { name = "web" }`))
	b := load(t, dev(`
service { name = "web" port = 1 }
log_level = "warn"
node_name = "other"
dns_config { only_passing = true }
recursors = ["8.8.8.8"]
tls { defaults { verify_incoming = true } }
ports { http = 1 }`))
	want := []config.Change{
		{Key: "dns_config.only_passing"}, {Key: "log_level"}, {Key: "node_name", Restart: true}, {Key: "ports.http", Restart: true},
		{Key: "recursors"}, {Key: "service"},
		{Key: "tls.defaults.verify_incoming"}, {Key: "tls.grpc.verify_incoming"}, {Key: "tls.https.verify_incoming"}, {Key: "tls.internal_rpc.verify_incoming"},
	}
	if diff := cmp.Diff(want, config.Diff(a, b)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if d := config.Diff(a, load(t, dev("\n\nservice {\n  name = \"web\"\n}"))); len(d) > 0 {
		t.Errorf("changes %v between equal settings", d)
	}
}

func TestStartChecks(t *testing.T) {
	tests := []struct{ name, hcl, err string }{
		{"nothing wrong", `watches = [{ type = "key", key = "a", args = ["true"] }, { type = "services", handler_type = "http", http_handler_config { path = "http://x" } }]`, ""},
		{"default policy", "acl { enabled = true\n default_policy = \"x\" }", "Unsupported default ACL policy: x"},
		{"policies do not matter without ACLs", `acl { default_policy = "x" }`, ""},
		{"key size", `encrypt = "YWJj"`, "key size must be 16, 24 or 32 bytes"},
		{"protocol", "protocol = 9", "Protocol version '9' too high. Must be in range: [2, 3]"},
		{"watch type", `watches = [{ type = "bogus" }]`, "Unsupported watch type: bogus"},
		{"no handler", `watches = [{ type = "key", key = "a" }]`, "Must define a watch handler"},
		{"two handlers", `watches = [{ type = "key", key = "a", args = ["x"], handler = "y" }]`, "Only one watch handler allowed"},
		{"missing parameter", `watches = [{ type = "key", args = ["x"] }]`, "Must specify a single key to watch"},
		{"unknown parameter", `watches = [{ type = "key", key = "a", args = ["x"], foo = 1 }]`, "Invalid parameters: [foo]"},
		{"service without a name", `service { name = "" }`, "Service name missing"},
		{"socket mode", `unix_sockets { mode = "9" }`, `unix_sockets.mode: invalid mode: "9"`},
		{"verification without a CA", `tls { defaults { verify_incoming = true } }`, "VerifyIncoming set but no CA certificates were provided"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := load(t, dev(tt.hcl)).CheckStart()
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
	if err := load(t, dev(`node_id = "x"`)).CheckNodeID(); err == nil || !strings.HasPrefix(err.Error(), "specified NodeID is invalid: ") {
		t.Errorf("node ID x: error %v", err)
	}
	if _, err := config.ParseLevel("bogus"); err == nil || err.Error() != "Invalid log level: bogus. Valid log levels are: [TRACE DEBUG INFO WARN ERR ERROR]" {
		t.Errorf("level bogus: error %v", err)
	}
}

func TestIntroTokenFromTheEnvironmentWins(t *testing.T) {
	src := dev(`auto_config { intro_token = "file" }`)
	src.LookupEnv = func(name string) (string, bool) { return "env", name == "CONSUL_INTRO_TOKEN" }
	if got := load(t, src).AutoConfig.IntroToken; got != "env" {
		t.Errorf("intro token %q, want env", got)
	}
}
