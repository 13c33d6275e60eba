package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// inside reads a field, by its path, that a part of the agent keeps to itself.
func inside(part any, path string) any {
	v := reflect.ValueOf(part)
	for name := range strings.SplitSeq(path, ".") {
		for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
			v = v.Elem()
		}
		v = v.FieldByName(name)
		v = reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
		if load := v.Addr().MethodByName("Load"); load.IsValid() && load.Type().NumIn() == 0 { // an atomic value
			v = load.Call(nil)[0]
			if v.Kind() != reflect.Pointer {
				v = settable(v)
			}
		}
	}
	for v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct && !v.Type().Implements(reflect.TypeFor[fmt.Stringer]()) {
		v = v.Elem()
	}
	return v.Interface()
}

func settable(v reflect.Value) reflect.Value {
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p.Elem()
}

// asText is a value as text, to be compared.
func asText(v any) string { return fmt.Sprintf("%+v", v) }

// An observation tells what is in force of a setting, by what the agent does or what its parts hold.
type observation func(g *guardedAgent) string

func token(kind httpapi.AgentToken) observation {
	return func(g *guardedAgent) string { return g.Agent.tokens.get(kind) }
}

func part(of func(*Agent) any, path string) observation {
	return func(g *guardedAgent) string { return asText(inside(of(g.Agent), path)) }
}

func tlsOf(parts ...func(*Agent) *material) observation {
	return func(g *guardedAgent) string {
		text := ""
		for _, p := range parts {
			k := p(g.Agent).now.Load()
			text += asText(k.stanza) + asText(k.pem)
			if k.cert != nil {
				text += asText(k.cert.Certificate)
			}
		}
		return text
	}
}

var (
	dnsServer  = func(a *Agent) any { return a.dns }
	rpcTLSOf   = func(a *Agent) *material { return &a.rpcTLS }
	httpTLSOf  = func(a *Agent) *material { return &a.httpTLS }
	grpcTLSOf  = func(a *Agent) *material { return &a.grpcTLS }
	dispatcher = func(a *Agent) any { return a.server }
	tracesOf   = func(a *Agent) any { return a.traces }
)

// observations are of every key that a reload applies. A name that ends in * stands for all that begin so.
var observations = map[string]observation{
	"enable_debug": func(g *guardedAgent) string {
		code, _ := g.do("GET", "/debug/pprof/cmdline", "", "")
		return asText(code)
	},
	"node_meta": func(g *guardedAgent) string {
		self, err := g.Self(context.Background())
		return asText(self.Meta) + asText(err)
	},
	"discard_check_output": part(func(a *Agent) any { return a.local }, "discard"),
	"acl.tokens.default":   token(httpapi.TokenDefault), "acl.tokens.agent": token(httpapi.TokenAgent),
	"acl.tokens.agent_recovery": token(httpapi.TokenRecovery), "acl.tokens.replication": token(httpapi.TokenReplication),
	"acl.tokens.config_file_service_registration": token(httpapi.TokenRegistration), "acl.tokens.dns": token(httpapi.TokenDNS),
	"tls.defaults.*":     tlsOf(rpcTLSOf, httpTLSOf, grpcTLSOf),
	"tls.internal_rpc.*": tlsOf(rpcTLSOf), "tls.https.*": tlsOf(httpTLSOf), "tls.grpc.*": tlsOf(grpcTLSOf),
	"dns_config.*": part(dnsServer, "settings"), "recursors": part(dnsServer, "settings"),
	"limits.http_max_conns_per_client": func(g *guardedAgent) string { return asText(inside(&g.conns, "max")) },
	"limits.rpc_client_timeout":        part(dispatcher, "dispatcher.timeout"),
	"limits.rpc_rate":                  func(g *guardedAgent) string { return asText(inside(&g.rate, "rate")) },
	"limits.rpc_max_burst":             func(g *guardedAgent) string { return asText(inside(&g.rate, "burst")) },
	"limits.rpc_max_conns_per_client":  part(dispatcher, "port.max"),
	"limits.request_limits.mode":       part(dispatcher, "dispatcher.limiter.mode"),
	"limits.request_limits.read_rate":  part(dispatcher, "dispatcher.limiter.reads.rate"),
	"limits.request_limits.write_rate": part(dispatcher, "dispatcher.limiter.writes.rate"),
	"performance.raft_multiplier":      raftSetting("HeartbeatTimeout"),
	"raft_snapshot_interval":           raftSetting("SnapshotInterval"),
	"raft_snapshot_threshold":          raftSetting("SnapshotThreshold"),
	"raft_trailing_logs":               raftSetting("TrailingLogs"),
	"cache.*":                          part(func(a *Agent) any { return a.cache }, "rate"),
	"xds.update_max_per_second":        part(func(a *Agent) any { return a.xds }, "turns.every"),
	"workload_api.rule":                func(g *guardedAgent) string { return asText(len(workloadRules(g.current()))) },
	"watches":                          part(func(a *Agent) any { return a.watches }, "wanted"),
	"service":                          registered, "services": registered, "check": registered, "checks": registered,
	"log_level":                func(g *guardedAgent) string { return g.Agent.log.GetLevel().String() },
	"telemetry.prefix_filter":  func(g *guardedAgent) string { return asText(g.metrics.global.BlockedPrefixes) },
	"telemetry.statsd_address": pushed, "telemetry.statsite_address": pushed, "telemetry.dogstatsd_addr": pushed, "telemetry.dogstatsd_tags": pushed,
	"telemetry.otlp.*": pushed, "telemetry.otlp.traces": part(tracesOf, "to"), "telemetry.otlp.trace_sampling": part(tracesOf, "share"),
	"config_entries.bootstrap": func(g *guardedAgent) string {
		code, _ := g.do("GET", "/v1/config/service-defaults/reloaded", managementSecret, "")
		return asText(code)
	},
}

func raftSetting(field string) observation {
	return func(g *guardedAgent) string {
		running := reflect.ValueOf(g.server).Elem().FieldByName("raft")
		running = reflect.NewAt(running.Type(), unsafe.Pointer(running.UnsafeAddr())).Elem()
		pointer := running.Elem().FieldByName("raft")
		pointer = reflect.NewAt(pointer.Type(), unsafe.Pointer(pointer.UnsafeAddr()))
		c := pointer.MethodByName("Load").Call(nil)[0].MethodByName("ReloadableConfig").Call(nil)[0]
		return asText(c.FieldByName(field).Interface())
	}
}

// pushed is where metrics are sent.
func pushed(g *guardedAgent) string {
	targets, err := json.Marshal(inside(g.metrics.pusher, "targets"))
	return string(targets) + asText(err)
}

func registered(g *guardedAgent) string {
	return g.must("GET", "/v1/agent/services", "") + g.must("GET", "/v1/agent/checks", "")
}

// observing finds the observation of a key.
func observing(key string) observation {
	if o := observations[key]; o != nil {
		return o
	}
	for name, o := range observations {
		if prefix, ok := strings.CutSuffix(name, "*"); ok && strings.HasPrefix(key, prefix) {
			return o
		}
	}
	return nil
}

// A reload applies each key that is said to be reloadable, and takes it back; of each other one it says that it needs a
// restart. What is refused is refused by its name and changes nothing.
func TestReloadOfEveryKey(t *testing.T) {
	data, err := os.ReadFile("config/testdata/keys.tsv")
	if err != nil {
		t.Fatal(err)
	}
	ca := testkit.NewCA(t, "ours")
	cert, key := files(t, ca.Issue("reloaded.example"))
	authority := authorityFile(t, ca)
	pair := fmt.Sprintf("cert_file = %q\nkey_file = %q\n", cert, key)
	values := map[string]string{ // of keys that need another value here, as HCL
		"config_entries.bootstrap":    `config_entries { bootstrap = [{ kind = "service-defaults" name = "reloaded" protocol = "http" }] }`,
		"telemetry.prefix_filter":     `telemetry { prefix_filter = ["-consul.reloaded"] }`,
		"raft_logstore.backend":       `raft_logstore { backend = "boltdb" }`,
		"watches":                     `watches = [{ type = "key" key = "reloaded" args = ["true"] }]`,
		"enable_debug":                `enable_debug = false`,
		"ui_config.dir":               `ui_config { enabled = false dir = "x" }`,
		"ui_dir":                      "ui_config { enabled = false }\nui_dir = \"x\"",
		"telemetry.dogstatsd_tags":    `telemetry { dogstatsd_addr = "127.0.0.1:1" dogstatsd_tags = ["x"] }`,
		"telemetry.otlp.ca_file":      fmt.Sprintf(`telemetry { otlp { ca_file = %q } }`, authority),
		"workload_api.rule":           `workload_api { socket = "/tmp/s" rule { service = "web" uid = 1 } }`,
		"telemetry.statsd_address":    `telemetry { statsd_address = "127.0.0.1:1" }`,
		"telemetry.statsite_address":  `telemetry { statsite_address = "127.0.0.1:1" }`,
		"telemetry.dogstatsd_addr":    `telemetry { dogstatsd_addr = "127.0.0.1:1" }`,
		"locality.zone":               `locality { region = "r" zone = "z" }`,
		"performance.raft_multiplier": `performance { raft_multiplier = 7 }`,
	}
	for _, stanza := range []string{"defaults", "internal_rpc", "https", "grpc"} {
		for name, text := range map[string]string{
			"ca_file": fmt.Sprintf("ca_file = %q", authority), "ca_path": fmt.Sprintf("ca_path = %q", filepath.Dir(authority)), "cert_file": pair, "key_file": pair,
		} {
			values["tls."+stanza+"."+name] = "tls { " + stanza + " {\n" + text + "\n} }"
			values[name] = text // its old name
		}
	}
	g := runServerWith(t, nil, `telemetry { otlp { endpoint = "http://127.0.0.1:1" } }`)
	base := slices.Clone(g.sources.Fragments)
	reload := func(more ...string) (string, error) {
		before := len(g.log.String())
		g.sources.Fragments = append(slices.Clone(base), more...)
		err := g.Reload(t.Context())
		return g.log.String()[before:], err
	}
	if _, err := reload(); err != nil {
		t.Fatal(err)
	}
	applied, restarts := 0, 0
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.TrimSpace(line), "\t")
		name, text := cells[0], values[cells[0]]
		if text == "" {
			text = nested(cells[0], cells[1])
		}
		t.Run(name, func(t *testing.T) {
			src := g.sources
			src.Fragments = append(slices.Clone(base), text)
			s, _, err := config.Load(src)
			if err != nil {
				if len(cells) < 3 {
					t.Fatalf("%s: %v", text, err)
				}
				if _, err := reload(text); err == nil || !strings.Contains(err.Error(), cells[2]) {
					t.Errorf("a reload with %s: %v, want %q", text, err, cells[2])
				}
				return
			}
			changes := config.Diff(g.current(), s)
			var before []string
			for _, c := range changes {
				o := observing(c.Key)
				switch {
				case !c.Restart && o == nil:
					t.Fatalf("%s is said to be reloadable, and nothing observes it", c.Key)
				case c.Restart && o != nil:
					t.Fatalf("%s is said to need a restart, and something observes it", c.Key)
				case o != nil:
					before = append(before, o(g))
				}
			}
			log, err := reload(text)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			for _, c := range changes {
				said := regexp.MustCompile(`only after a restart: key=` + regexp.QuoteMeta(c.Key) + `\b`).MatchString(log)
				if said != c.Restart {
					t.Errorf("%s: needs a restart %v, said to %v:\n%s", c.Key, c.Restart, said, log)
				}
				if c.Restart {
					restarts++
					continue
				}
				if c.Key != name {
					continue // follows from it, and has a turn of its own
				}
				applied++
				if c.Key == "config_entries.bootstrap" {
					g.eventually("the entry is written", func() bool { return observing(c.Key)(g) != before[0] })
					continue
				}
				i := slices.IndexFunc(slices.DeleteFunc(slices.Clone(changes), func(c config.Change) bool { return c.Restart }), func(d config.Change) bool { return d == c })
				if now := observing(c.Key)(g); now == before[i] {
					t.Errorf("%s has changed nothing: %s", text, now)
				}
				if _, err := reload(); err != nil {
					t.Fatal(err)
				}
				if now := observing(c.Key)(g); now != before[i] {
					t.Errorf("without %s there is %s, and was %s before it", text, now, before[i])
				}
			}
			if _, err := reload(); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Logf("%d keys applied, %d warnings of a restart", applied, restarts)
	if applied < 70 || restarts < 150 {
		t.Errorf("%d keys were applied and %d need a restart: some have no turn", applied, restarts)
	}
}

// The limits of calls to the servers are those of the router where there is no server.
func TestReloadOfTheLimitsOfAClient(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.hcl")
	base := fmt.Sprintf("bind_addr = \"127.0.0.1\"\ndata_dir = %q\n", t.TempDir())
	write(t, file, base)
	a := newTestAgent(t, dir)
	limits := func() string {
		return asText([]any{inside(a.router, "timeout"), inside(a.router, "rate.rate"), inside(a.router, "rate.burst")})
	}
	before := limits()
	for _, text := range []string{`rpc_client_timeout = "9s"`, `rpc_rate = 7`, `rpc_max_burst = 5`} {
		write(t, file, base+"limits {\n"+text+"\n}\n")
		if err := a.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := limits(); now == before {
			t.Errorf("%s has changed nothing: %s", text, now)
		}
		write(t, file, base)
		if err := a.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := limits(); now != before {
			t.Errorf("without %s there is %s, and was %s before it", text, now, before)
		}
	}
}

// What was changed and needs a restart is told at every reload until there was one, and no more when it is taken back.
func TestReloadsGoOnTellingWhatNeedsARestart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.hcl")
	base := fmt.Sprintf("bind_addr = \"127.0.0.1\"\ndata_dir = %q\n", t.TempDir())
	write(t, file, base)
	a := newTestAgent(t, dir)
	log := &logBuffer{}
	a.log = hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Warn, Output: log})
	for i, want := range []struct {
		text string
		said int
	}{{"domain = \"x\"", 1}, {"domain = \"x\"", 2}, {"domain = \"x\"\nlog_level = \"WARN\"", 3}, {"", 3}} {
		write(t, file, base+want.text)
		if err := a.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), "only after a restart: key=domain"); n != want.said {
			t.Errorf("after reload %d it was said %d times, want %d", i, n, want.said)
		}
	}
}

// nested writes a dotted key and its value as HCL.
func nested(key, value string) string {
	parts := strings.Split(key, ".")
	text := parts[len(parts)-1] + " = " + value
	for _, p := range slices.Backward(parts[:len(parts)-1]) {
		text = p + " {\n" + text + "\n}"
	}
	return text
}
