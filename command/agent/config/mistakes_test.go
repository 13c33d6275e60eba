package config_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// A mistake is one that people make in a file, with what is told about it: the text names the key, what is written there
// and what was expected, and the place is where it is written.
type mistake struct {
	name, text string // of the file; data_dir and bind_addr are set elsewhere
	says       string
	at         string // line:column; empty when nothing is written that could have a place
}

var inHCL = []mistake{
	{"unknown key", "portz { http = 1 }", "invalid config key portz, did you mean ports?", "1:1"},
	{"unknown key in a block", "ports {\n  htp = 1\n}", "invalid config key ports.htp, did you mean http?", "2:3"},
	{"unknown key in a list of blocks", "services = [{ name = \"a\" },\n { name = \"b\", prt = 1 }]", "invalid config key services[1].prt", "2:16"},
	{"key in the wrong block", "server = true\nca_provider = \"vault\"", "invalid config key ca_provider, did you mean connect.ca_provider?", "2:1"},
	{"key that several blocks have", "enabled = true", "invalid config key enabled (", "1:1"},
	{"namespace", `namespace = "x"`, "invalid config key namespace", "1:1"},
	{"text for a number", "ports {\n  http = \"8500\"\n}", "'ports.http' expected type 'int', got unconvertible type 'string', value: '8500'", "2:10"},
	{"text for a fact", `server = "true"`, "'server' expected type 'bool', got unconvertible type 'string', value: 'true'", "1:10"},
	{"number for a text", `node_name = 5`, "'node_name' expected type 'string', got unconvertible type 'int', value: '5'", "1:13"},
	{"number for a duration", `max_query_time = 600`, "'max_query_time' expected type 'string', got unconvertible type 'int', value: '600'", "1:18"},
	{"part of a number", `ports { http = 1.5 }`, "'ports.http' expected type 'int', got unconvertible type 'float64', value: '1.5'", "1:16"},
	{"text for a list", `recursors = "8.8.8.8"`, "'recursors': source data must be an array or slice, got string", "1:13"},
	{"list for a text", `node_name = ["a"]`, "'node_name' expected type 'string', got unconvertible type 'slice'", "1:13"},
	{"text for a block", `telemetry = "x"`, "'telemetry' expected a map, got 'string'", "1:13"},
	{"number in a list of texts", `retry_join = ["10.0.0.1", 5]`, "'retry_join[1]' expected type 'string', got unconvertible type 'int', value: '5'", "1:27"},
	{"number in a map of texts", `node_meta { a = 5 }`, "'node_meta[a]' expected type 'string', got unconvertible type 'int', value: '5'", "1:17"},
	{"unit of a duration", `session_ttl_min = "5x"`, `session_ttl_min: invalid duration: "5x": time: unknown unit "x" in duration "5x"`, "1:19"},
	{"duration without a unit", `raft_snapshot_interval = "30"`, `raft_snapshot_interval: invalid duration: "30": time: missing unit in duration "30"`, "1:26"},
	{"duration in a map", "dns_config { service_ttl {\n web = \"x\" } }", `dns_config.service_ttl["web"]: invalid duration: "x"`, "2:8"},
	{"port out of range", "ports {\n https = 99999\n}", "ports.https: invalid port: 99999", "2:10"},
	{"port of the servers", `ports { server = 0 }`, "server-port must be greater than zero", "1:18"},
	{"port of gossip", `ports { serf_lan = -1 }`, "serf-lan-port must be greater than zero", "1:20"},
	{"two listeners", "ports {\n http = 8600\n}", "HTTP address 127.0.0.1:8600 already configured for DNS", "2:9"},
	{"range of ports", `ports { sidecar_min_port = 5 sidecar_max_port = 4 }`, "sidecar_min_port must be less than sidecar_max_port. To disable, set both to zero.", "1:28"},
	{"address", `client_addr = "foo"`, "client_addr: invalid ip address: foo", "1:15"},
	{"two addresses", `serf_lan = "10.0.0.1 10.0.0.2"`, "serf_lan: multiple addresses found: 10.0.0.1 10.0.0.2", "1:12"},
	{"template", `client_addr = "{{ Bogus }}"`, `client_addr: error parsing "{{ Bogus }}":`, "1:15"},
	{"family", `advertise_addr_ipv4 = "::1"`, "advertise_addr_ipv4 must be an ipv4 address", "1:23"},
	{"unspecified address", `advertise_addr_wan = "0.0.0.0"`, "Advertise WAN address cannot be 0.0.0.0, :: or [::]", "1:22"},
	{"socket for DNS", `addresses { dns = "unix:///x" }`, "DNS address cannot be a unix socket", "1:19"},
	{"network", `serf_lan_allowed_cidrs = ["10.0.0.0/99"]`, "serf_lan_allowed_cidrs: invalid cidr: 10.0.0.0/99", "1:26"},
	{"network of writers", `http_config { allow_write_http_from = ["x"] }`, "allow_write_http_from: invalid cidr: x", "1:39"},
	{"network of DNS clients", `dns_config { trusted_networks = ["10.0.0.1"] }`, "dns_config.trusted_networks: invalid cidr: 10.0.0.1", "1:33"},
	{"network of those who may use recursors", `dns_config { allow_recursion_from = ["x"] }`, "dns_config.allow_recursion_from: invalid cidr: x", "1:37"},
	{"rate of answers", `dns_config { udp_answer_rate = -1 }`, "dns_config.udp_answer_rate cannot be -1. Must be greater than or equal to zero", "1:32"},
	{"recursor", `recursors = ["::"]`, "DNS recursor address cannot be 0.0.0.0, :: or [::]", "1:13"},
	{"socket as a recursor", `recursors = ["unix:///x"]`, "DNS Recursors cannot be unix sockets: unix:///x", "1:13"},
	{"datacenter", `datacenter = "d c"`, `datacenter can only contain lowercase alphanumeric, - or _ characters. received: "d c"`, "1:14"},
	{"no datacenter", `datacenter = ""`, "datacenter cannot be empty", "1:14"},
	{"primary datacenter", `primary_datacenter = "d.c"`, `primary_datacenter can only contain lowercase alphanumeric, - or _ characters. received: "d.c"`, "1:22"},
	{"share of traces", `telemetry { otlp { trace_sampling = 1.5 } }`, "telemetry.otlp.trace_sampling must be between 0 and 1. received: 1.5", "1:37"},
	{"negative share of traces", `telemetry { otlp { trace_sampling = -0.1 } }`, "telemetry.otlp.trace_sampling must be between 0 and 1. received: -0.1", "1:37"},
	{"traces for nobody", `telemetry { otlp { traces = true } }`, "telemetry.otlp.traces has no effect without telemetry.otlp.endpoint", "1:29"},
	{"node metadata", `node_meta { consul-a = "b" }`, "node_meta invalid: Couldn't load metadata pair ('consul-a', 'b'): Key prefix 'consul-' is reserved for internal use", "1:11"},
	{"zone", `locality { zone = "z" }`, "locality is invalid: zone cannot be set without region", "1:19"},
	{"role of a server", "bootstrap = true", "'bootstrap = true' requires 'server = true'", "1:13"},
	{"number of servers", "server = true\nbootstrap_expect = -1", "bootstrap_expect cannot be -1. Must be greater than or equal to zero", "2:20"},
	{"both ways to begin", "server = true\nbootstrap = true\nbootstrap_expect = 3", "'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive", "3:20"},
	{"setting of clients", "server = true\nadvertise_reconnect_timeout = \"1h\"", "advertise_reconnect_timeout can only be used on a client", "2:31"},
	{"age of servers", `server_rejoin_age_max = "1h"`, "server_rejoin_age_max: duration '1h' cannot be less than: 6h0m0s", "1:25"},
	{"gateways", `primary_gateways = ["10.0.0.1"]`, "'primary_gateways' requires 'server = true'", "1:20"},
	{"segment", `segment = "x"`, "Network segments are not supported in this version of Sarn", "1:11"},
	{"Raft", `raft_protocol = 2`, "raft_protocol version 2 is not supported by this version of Sarn", "1:17"},
	{"multiplier", `performance { raft_multiplier = 11 }`, "performance.raft_multiplier cannot be 11. Must be between 1 and 10", "1:33"},
	{"interval of verification", `raft_logstore { verification { interval = "-1s" } }`, "raft_logstore.verification.interval cannot be -1s. Must be greater than or equal to zero", "1:43"},
	{"log store", `raft_logstore { backend = "x" }`, "raft_logstore.backend must be one of 'boltdb' or 'wal'", "1:27"},
	{"keepalive", `performance { grpc_keepalive_timeout = "10ms" }`, "performance.grpc_keepalive_timeout: duration '10ms' cannot be less than: 1s", "1:40"},
	{"output of checks", `check_output_max_size = 0`, "check_output_max_size must be positive, to discard check output use the discard_check_output flag", "1:25"},
	{"gossip key", `encrypt = "???"`, "encrypt has invalid key: illegal base64 data at input byte 0", "1:11"},
	{"intentions", `default_intention_policy = "maybe"`, `default_intention_policy: invalid policy: "maybe"`, "1:28"},
	{"limits", `limits { request_limits { mode = "x" } }`, `limits.request_limits.mode: invalid mode: "x"`, "1:34"},
	{"cache", `cache { entry_fetch_rate = 0 }`, "cache.entry_fetch_rate must be strictly positive, was: 0", "1:28"},
	{"DNS", `dns_config { udp_answer_limit = -1 }`, "dns_config.udp_answer_limit cannot be -1. Must be greater than or equal to zero", "1:33"},
	{"order of recursors", `dns_config { recursor_strategy = "x" }`, `dns_config.recursor_strategy: invalid strategy: "x"`, "1:34"},
	{"second domain", `alt_domain = "service.x"`, "alt_domain cannot start with {service,connect,node,query,addr,dc1}", "1:14"},
	{"version of TLS", `tls { https { tls_min_version = "v" } }`, "tls.https.tls_min_version: invalid TLS version: no matching TLS version found for v, please specify one of [", "1:33"},
	{"cipher suites", `tls { defaults { tls_cipher_suites = "x" } }`, "tls.defaults.tls_cipher_suites: invalid TLS cipher suites: x", "1:38"},
	{"flag of another listener", `tls { grpc { verify_outgoing = true } }`, "verify_outgoing is not valid in the tls.grpc stanza", "1:32"},
	{"name of another listener", `tls { https { verify_server_hostname = true } }`, "verify_server_hostname is only valid in the tls.defaults and tls.internal_rpc stanzas", "1:40"},
	{"certificate of another listener", `tls { https { use_auto_cert = true } }`, "use_auto_cert is only valid in the tls.grpc stanza", "1:31"},
	{"TLS on the plain port", "tls { grpc { cert_file = \"x\" } }\nports { grpc = 8502 }", "the `ports.grpc` listener no longer supports TLS. Use `ports.grpc_tls` instead.", "2:16"},
	{"auto-encrypt", "server = true\nauto_encrypt { tls = true }", "auto_encrypt.tls can only be used on a client.", "2:22"},
	{"auto-config", "auto_config { enabled = true }", "auto_config.enabled cannot be set without configuring TLS for server communications", "1:25"},
	{"authority", `connect { ca_provider = "x" }`, "x is not a valid CA provider", "1:25"},
	{"life of certificates", "server = true\nconnect { ca_config { leaf_cert_ttl = \"1m\" } }", "leaf cert TTL must be greater or equal than 1h0m0s, got 1m0s", "2:39"},
	{"gateways between datacenters", `connect { enable_mesh_gateway_wan_federation = true }`, "'connect.enable_mesh_gateway_wan_federation = true' requires 'server = true'", "1:48"},
	{"seed", "config_entries {\n bootstrap = [{ kind = \"x\" }]\n}", "config_entries.bootstrap[0]: invalid config entry kind: x", "2:15"},
	{"second seed", "config_entries {\n bootstrap = [\n  { kind = \"mesh\" },\n  { kind = \"proxy-defaults\" name = \"x\" }\n ]\n}", "config_entries.bootstrap[1]: invalid name (\"x\"), only \"global\" is supported (", "4:3"},
	{"key of a seed", "config_entries {\n bootstrap = [{\n  kind = \"service-defaults\" name = \"x\"\n  upstream_config {\n   overrides = [{ name = \"a\" }, { nam = \"b\" }]\n  }\n }]\n}", "config_entries.bootstrap[0]: invalid config key \"upstream_config.overrides[1].nam\" (", "5:35"},
	{"value in a seed", "config_entries {\n bootstrap = [{\n  kind = \"service-defaults\" name = \"x\"\n  protocol = 5 }]\n}", "config_entries.bootstrap[0]: invalid value for protocol: 5 (", "4:3"},
	{"two consoles", `ui_config { enabled = true dir = "/x" }`, "Both the ui_config.enabled and ui_config.dir", "1:34"},
	{"path of the console", `ui_config { content_path = "/a b/" }`, "ui-content-path can only contain alphanumeric, -, _, or /.", "1:28"},
	{"metrics of the console", `ui_config { metrics_proxy { base_url = "x" } }`, "ui_config.metrics_proxy.base_url must be a valid http or https URL.", "1:40"},
	{"service", "service {\n name = \"x\"\n check { http = \"http://x\" }\n}", `service "x": check "": Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks`, "1:9"},
	{"duration of a check", "check {\n name = \"x\"\n interval = \"1y\"\n ttl = \"1s\" }", `"1y"`, "3:2"},
	{"no end of a text", `node_name = "x`, "literal not terminated", "1:15"},
	{"no end of a block", "ports {\n http = 1", "object expected closing RBRACE got: EOF", "2:10"},
	{"after the mark of a byte order", "\ufeffnode_name = 5", "'node_name' expected type 'string', got unconvertible type 'int', value: '5'", "1:13"},
	{"text over several lines for a number", "ports {\n http = <<EOF\n8500\nEOF\n}", "'ports.http' expected type 'int', got unconvertible type 'string', value: '8500\n", "2:9"},
	{"no end of a text over several lines", "node_name = <<EOF\nx\n", "heredoc not terminated", "3:1"},
	{"no value", "node_name =\nserver = true", "want a value, got server", "2:1"},
}

var inJSON = []mistake{
	{"unknown key", "{\n \"portz\": {}\n}", "invalid config key portz, did you mean ports?", "2:2"},
	{"text for a number", `{"ports": {"http": "8500"}}`, "'ports.http' expected type 'int', got unconvertible type 'string', value: '8500'", "1:20"},
	{"unit of a duration", "{\n \"session_ttl_min\":\n  \"5x\"}", `session_ttl_min: invalid duration: "5x"`, "3:3"},
	{"value", `{"ports": {"http": 99999}}`, "ports.http: invalid port: 99999", "1:20"},
	{"service", `{"service": {"name": "x", "prt": 1}}`, "invalid config key service.prt", "1:27"},
	{"comma too many", "{\n \"server\": true,\n}", "invalid character '}'", "3:1"},
	{"comma too few", "{\"server\": true\n\"ui\": true}", `invalid character '"' after object key:value pair`, "2:1"},
	{"comment", "// x\n{}", "invalid character '/' looking for beginning of value", "1:1"},
	{"no end", `{"server": true`, "unexpected end of JSON input", "1:16"},
	{"no object", `[1]`, "want an object, got a slice", "1:1"},
	{"more than one", `{} {}`, "data after the end of the object", "1:4"},
}

func TestMistakesAreTold(t *testing.T) {
	for format, mistakes := range map[string][]mistake{"hcl": inHCL, "json": inJSON} {
		for _, m := range mistakes {
			t.Run(format+"/"+m.name, func(t *testing.T) {
				file := write(t, "agent."+format, m.text)
				src := machine()
				src.Paths = []string{file}
				src.Fragments = []string{`data_dir = "` + t.TempDir() + `"`}
				_, _, err := config.Load(src)
				if err == nil {
					t.Fatalf("no error, want %q", m.says)
				}
				if !strings.Contains(err.Error(), m.says) {
					t.Errorf("error %v\nwant %q", err, m.says)
				}
				if !strings.Contains(err.Error(), file) {
					t.Errorf("error %v\ndoes not name the file", err)
				}
				line, column := place(err)
				if got := fmt.Sprintf("%d:%d", line, column); m.at != "" && got != m.at {
					t.Errorf("error %v\nat %s, want %s", err, got, m.at)
				}
			})
		}
	}
}

// place is where the first problem is.
func place(err error) (line, column int) {
	if k, ok := errors.AsType[*config.KeyError](err); ok {
		return k.Pos.Line, k.Pos.Column
	}
	if s, ok := errors.AsType[*config.SyntaxError](err); ok {
		return s.Pos.Line, s.Pos.Column
	}
	return 0, 0
}

// Every mistake that leaves the others readable is told together with them.
func TestAllMistakesAreToldAtOnce(t *testing.T) {
	together := []string{
		"unknown key in a block", "text for a fact", "unit of a duration", "datacenter", "node metadata", "zone", "multiplier", "limits", "cache",
		"DNS", "version of TLS", "authority", "intentions", "output of checks",
	}
	dir := t.TempDir()
	want := map[string]string{} // what is told, by file
	for i, name := range together {
		for _, m := range inHCL {
			if m.name != name || m.text == "" {
				continue
			}
			if m.name == "text for a fact" {
				m.text, m.says = `enable_debug = "true"`, "'enable_debug' expected type 'bool', got unconvertible type 'string', value: 'true'"
			}
			file := filepath.Join(dir, fmt.Sprintf("%02d.hcl", i))
			if err := os.WriteFile(file, []byte(m.text), 0o600); err != nil {
				t.Fatal(err)
			}
			want[file] = m.says
		}
	}
	if len(want) != len(together) {
		t.Fatalf("%d files for %d mistakes", len(want), len(together))
	}
	src := dev()
	src.Paths = []string{dir}
	_, _, err := config.Load(src)
	if err == nil {
		t.Fatal("no error")
	}
	for file, says := range want {
		if !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), file+":") && !strings.Contains(err.Error(), file+" ") {
			t.Errorf("the error lacks %q of %s", says, file)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

// What is wrong with the value of a flag is told with the name of the flag.
func TestMistakesInFlags(t *testing.T) {
	tests := []struct {
		name string
		args []string
		says []string
	}{
		{"number", []string{"-http-port", "x"}, []string{`invalid value "x" for flag -http-port`, "whole number"}},
		{"fact", []string{"-server=maybe"}, []string{`invalid boolean value "maybe" for -server`, "true or false"}},
		{"unknown", []string{"-prot=1"}, []string{"flag provided but not defined: -prot"}},
		{"no value", []string{"-node"}, []string{"flag needs an argument: -node"}},
		{"port", []string{"-http-port=99999"}, []string{"ports.http: invalid port: 99999", "-http-port"}},
		{"duration", []string{"-retry-interval=5x"}, []string{`retry_interval: invalid duration: "5x"`, "-retry-interval"}},
		{"address", []string{"-client=foo"}, []string{"client_addr: invalid ip address: foo", "-client"}},
		{"format", []string{"-config-format=yaml"}, []string{"-config-format must be either 'hcl' or 'json'"}},
		{"no file", []string{"-config-file=/does/not/exist.hcl"}, []string{"config: Open failed on /does/not/exist.hcl. open /does/not/exist.hcl: no such file or directory"}},
		{"fragment", []string{"-hcl", "bogus = 1", "-hcl", "node_name = 1"}, []string{
			"failed to parse flags-0.hcl", "invalid config key bogus (flags-0.hcl:1:1)", "failed to parse flags-1.hcl", "(flags-1.hcl:1:13)",
		}},
		{"several", []string{"-datacenter=a b", "-bind=x", "-node-meta=consul-a:b"}, []string{
			"datacenter can only contain", "(-datacenter)", "bind_addr: invalid ip address: x (-bind)", "reserved for internal use (-node-meta)",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := dev()
			fs := flag.NewFlagSet("agent", flag.ContinueOnError)
			fs.SetOutput(io.Discard)
			src.Register(fs)
			err := fs.Parse(tt.args)
			if err == nil {
				_, _, err = config.Load(src)
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, says := range tt.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("error %v\nlacks %q", err, says)
				}
			}
		})
	}
}
