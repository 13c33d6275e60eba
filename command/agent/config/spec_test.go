package config_test

import (
	"flag"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// client is a Sources of a client agent with fragments.
func client(t *testing.T, fragments ...string) config.Sources {
	src := machine()
	src.Fragments = append([]string{`data_dir = "` + t.TempDir() + `"`}, fragments...)
	return src
}

// defaultValues are those of spec/config.md section 3: to write one changes nothing.
const defaultValues = `
server false
bootstrap false
bootstrap_expect 0
datacenter "dc1"
primary_datacenter "dc1"
node_name "host-1"
disable_host_node_id true
leave_on_terminate true
skip_leave_on_interrupt false
rejoin_after_leave false
enable_debug false
enable_syslog false
syslog_facility "LOCAL0"
disable_update_check false
disable_anonymous_signature false
disable_remote_exec true
disable_coordinates false
enable_script_checks false
enable_local_script_checks false
check_update_interval "5m"
check_output_max_size 4096
discard_check_output false
session_ttl_min "10s"
session_ttl_min "0s"
default_query_time "300s"
max_query_time "600s"
discovery_max_stale "0s"
translate_wan_addrs false
enable_central_service_config true
enable_agent_tls_for_checks false
default_intention_policy ""
auto_reload_config false
use_streaming_backend true
rpc.enable_streaming false
advertise_reconnect_timeout "0s"
reconnect_timeout "72h"
reconnect_timeout_wan "72h"
server_rejoin_age_max "168h"
protocol 2
peering.enabled true
xds.update_max_per_second 250
cache.entry_fetch_max_burst 2
ports.dns 8600
ports.http 8500
ports.https -1
ports.grpc -1
ports.grpc_tls -1
ports.server 8300
ports.serf_lan 8301
ports.serf_wan 8302
ports.sidecar_min_port 21000
ports.sidecar_max_port 21255
ports.expose_min_port 21500
ports.expose_max_port 21755
ports.proxy_min_port 20000
ports.proxy_max_port 20255
retry_join []
retry_join_wan []
retry_interval "30s"
retry_interval_wan "30s"
retry_max 0
retry_max_wan 0
primary_gateways_interval "30s"
acl.enabled false
acl.default_policy "allow"
acl.down_policy "extend-cache"
acl.token_ttl "30s"
acl.policy_ttl "30s"
acl.enable_token_replication false
acl.enable_key_list_policy false
acl.enable_token_persistence false
encrypt_verify_incoming true
encrypt_verify_outgoing true
disable_keyring_file false
gossip_lan.gossip_nodes 3
gossip_lan.gossip_interval "200ms"
gossip_lan.probe_interval "1s"
gossip_lan.probe_timeout "500ms"
gossip_lan.suspicion_mult 4
gossip_lan.retransmit_mult 4
gossip_wan.gossip_nodes 3
gossip_wan.gossip_interval "500ms"
gossip_wan.probe_interval "5s"
gossip_wan.probe_timeout "3s"
gossip_wan.suspicion_mult 6
gossip_wan.retransmit_mult 4
tls.defaults.tls_min_version "TLSv1_2"
tls.defaults.verify_incoming false
tls.defaults.verify_outgoing false
tls.defaults.verify_server_hostname false
tls.grpc.use_auto_cert false
connect.enabled true
connect.ca_provider "consul"
connect.enable_mesh_gateway_wan_federation false
domain "consul."
domain "consul"
dns_config.allow_stale true
dns_config.max_stale "87600h"
dns_config.node_ttl "0s"
dns_config.service_ttl {}
dns_config.only_passing false
dns_config.udp_answer_limit 3
dns_config.a_record_limit 0
dns_config.enable_truncate false
dns_config.disable_compression false
dns_config.recursor_strategy "sequential"
dns_config.recursor_timeout "2s"
dns_config.enable_additional_node_meta_txt true
dns_config.soa.refresh 3600
dns_config.soa.retry 600
dns_config.soa.expire 86400
dns_config.soa.min_ttl 0
dns_config.use_cache false
dns_config.cache_max_age "0s"
http_config.response_headers {}
http_config.block_endpoints []
http_config.allow_write_http_from []
http_config.use_cache true
http_config.max_header_bytes 0
disable_http_unprintable_char_filter false
limits.http_max_conns_per_client 200
limits.https_handshake_timeout "5s"
limits.rpc_handshake_timeout "5s"
limits.rpc_client_timeout "60s"
limits.rpc_rate -1
limits.rpc_max_burst 1000
limits.rpc_max_conns_per_client 100
limits.request_limits.mode "disabled"
limits.request_limits.read_rate -1
limits.request_limits.write_rate -1
limits.kv_max_value_size 524288
limits.txn_max_req_len 524288
performance.raft_multiplier 5
performance.leave_drain_time "5s"
performance.rpc_hold_timeout "7s"
performance.grpc_keepalive_interval "30s"
performance.grpc_keepalive_timeout "20s"
performance.enable_xds_load_balancing true
raft_protocol 3
raft_snapshot_threshold 16384
raft_snapshot_interval "30s"
raft_trailing_logs 10240
raft_prevote_disabled false
raft_logstore.wal.segment_size_mb 64
autopilot.cleanup_dead_servers true
autopilot.last_contact_threshold "200ms"
autopilot.max_trailing_logs 250
autopilot.min_quorum 0
autopilot.server_stabilization_time "10s"
ui_config.enabled false
ui_config.content_path "/ui/"
ui_config.content_path "ui"
telemetry.metrics_prefix "consul"
telemetry.disable_hostname false
telemetry.filter_default true
telemetry.prefix_filter []
telemetry.prometheus_retention_time "0s"
telemetry.retry_failed_connection true
telemetry.enable_host_metrics false
log_level "INFO"
log_json false
log_rotate_bytes 0
log_rotate_duration "24h"
log_rotate_max_files 0
`

// What differs on servers and in dev mode (section 4).
const serverValues = `
leave_on_terminate false
skip_leave_on_interrupt true
rpc.enable_streaming true
ports.grpc_tls 8503
`

const devValues = serverValues + `
server true
ui_config.enabled true
enable_debug true
log_level "DEBUG"
disable_keyring_file true
disable_anonymous_signature true
ports.grpc 8502
connect.enabled true
peering.enabled true
gossip_lan.gossip_interval "100ms"
gossip_wan.gossip_interval "100ms"
`

func TestDefaultsAreThoseOfTheSpecification(t *testing.T) {
	for _, role := range []struct {
		name, values string
		src          func(fragments ...string) config.Sources
	}{
		{"client", defaultValues, func(f ...string) config.Sources { return client(t, f...) }},
		{"server", serverValues, func(f ...string) config.Sources { return client(t, append(f, "server = true")...) }},
		{"dev", devValues, dev},
	} {
		for line := range strings.Lines(strings.TrimSpace(role.values)) {
			key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
			if !ok {
				continue
			}
			t.Run(role.name+"/"+key, func(t *testing.T) {
				base, given := load(t, role.src()), load(t, role.src(nest(key, value)))
				for _, c := range config.Diff(base, given) {
					if c.Key == key {
						t.Errorf("%s is not the default of %s", value, key)
					}
				}
			})
		}
	}
	if s := load(t, dev()); s.Raft.HeartbeatTimeout.Milliseconds() != 35 || s.Raft.ElectionTimeout.Milliseconds() != 52 || s.Performance.RaftMultiplier != 1 {
		t.Errorf("timeouts of dev mode: %+v", s.Raft)
	}
}

// flags are those of spec/config.md with the keys they set, and a value each.
const flags = `
server server true
bootstrap bootstrap true
bootstrap-expect bootstrap_expect 3
data-dir data_dir /tmp/x
datacenter datacenter dc7
node node_name other
node-id node_id 77777777-7777-7777-7777-777777777777
disable-host-node-id disable_host_node_id false
node-meta node_meta a:b:c
log-level log_level WARN
log-json log_json true
log-file log_file /tmp/x.log
log-rotate-bytes log_rotate_bytes 7
log-rotate-duration log_rotate_duration 7s
log-rotate-max-files log_rotate_max_files 7
pid-file pid_file /tmp/pid
rejoin rejoin_after_leave true
syslog enable_syslog true
enable-script-checks enable_script_checks true
enable-local-script-checks enable_local_script_checks true
check_output_max_size check_output_max_size 7
default-query-time default_query_time 7s
max-query-time max_query_time 7s
auto-reload-config auto_reload_config true
protocol protocol 3
bind bind_addr 127.0.0.7
advertise advertise_addr 127.0.0.7
advertise-wan advertise_addr_wan 127.0.0.7
client client_addr 127.0.0.7
serf-lan-bind serf_lan 127.0.0.7
serf-wan-bind serf_wan 127.0.0.7
serf-lan-allowed-cidrs serf_lan_allowed_cidrs 10.0.0.0/8
serf-wan-allowed-cidrs serf_wan_allowed_cidrs 10.0.0.0/8
dns-port ports.dns 7
http-port ports.http 7
https-port ports.https 7
grpc-port ports.grpc 7
grpc-tls-port ports.grpc_tls 7
server-port ports.server 7
serf-lan-port ports.serf_lan 7
serf-wan-port ports.serf_wan 7
retry-join retry_join 10.0.0.7
retry-join-wan retry_join_wan 10.0.0.7
join retry_join 10.0.0.7
join-wan retry_join_wan 10.0.0.7
retry-interval retry_interval 7s
retry-interval-wan retry_interval_wan 7s
retry-max retry_max 7
retry-max-wan retry_max_wan 7
primary-gateway primary_gateways 10.0.0.7
encrypt encrypt AAAAAAAAAAAAAAAAAAAAAA==
disable-keyring-file disable_keyring_file true
domain domain example.
alt-domain alt_domain example.
recursor recursors 8.8.8.8
allow-write-http-from http_config.allow_write_http_from 10.0.0.0/8
raft-protocol raft_protocol 3
ui ui_config.enabled true
ui-dir ui_config.dir /tmp/x
ui-content-path ui_config.content_path x
`

func TestEveryFlagSetsItsKey(t *testing.T) {
	parse := func(src config.Sources, args ...string) (*config.Settings, error) {
		fs := flag.NewFlagSet("agent", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		src.Register(fs)
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		s, _, err := config.Load(src)
		return s, err
	}
	needs := map[string][]string{ // what else must be said for the value to make sense
		"bootstrap": {"-server"}, "bootstrap-expect": {"-server"}, "primary-gateway": {"-server", "-hcl", `primary_datacenter = "dc0"`},
	}
	for line := range strings.Lines(strings.TrimSpace(flags)) {
		cells := strings.Fields(line)
		name, key, value := cells[0], cells[1], cells[2]
		t.Run(name, func(t *testing.T) {
			base, err := parse(client(t), needs[name]...)
			if err != nil {
				t.Fatal(err)
			}
			same := client(t)
			same.Fragments = []string{`data_dir = "` + base.DataDir + `"`}
			if name == "data-dir" {
				same.Fragments = nil
			}
			for _, dashes := range []string{"-", "--"} {
				s, err := parse(same, append([]string{dashes + name + "=" + value}, needs[name]...)...)
				if err != nil {
					t.Fatal(err)
				}
				set := slices.ContainsFunc(config.Diff(base, s), func(c config.Change) bool { return c.Key == key })
				if !set && name != "raft-protocol" { // which has one value
					t.Errorf("%s%s=%s does not set %s: %v", dashes, name, value, key, config.Diff(base, s))
				}
			}
		})
	}
	if _, err := parse(client(t), "-raft-protocol=2"); err == nil {
		t.Error("-raft-protocol=2 is accepted")
	}
	// Those without a key.
	s, err := parse(config.Sources{Hostname: machine().Hostname, LookupEnv: machine().LookupEnv},
		"-dev", "-config-format=hcl", "-config-file", write(t, "x.conf", `node_name = "a"`), "-config-dir", t.TempDir(), "-hcl", `log_level = "ERR"`)
	if err != nil || s.Node.Name != "a" || s.Log.Level != "ERR" || !s.Dev {
		t.Errorf("flags without a key: %v", err)
	}
}

// Keys of the paid edition and old ones are accepted with a warning that names them.
func TestWarnings(t *testing.T) {
	paid := func(key string) string {
		return `"` + key + `" is a Consul Enterprise configuration and will have no effect`
	}
	old := func(key, now string) string {
		return "The '" + key + "' field is deprecated. Use the '" + now + "' field instead."
	}
	server := "server = true\n"
	for _, tt := range []struct{ hcl, says string }{
		{`partition = "x"`, paid("partition")},
		{`license_path = "x"`, paid("license_path")},
		{`audit { enabled = true sink "x" { type = "file" } }`, paid("audit")},
		{`reporting { license { enabled = false } }`, paid("reporting.license.enabled")},
		{`acl { msp_disable_bootstrap = true }`, paid("acl.msp_disable_bootstrap")},
		{`acl { tokens { managed_service_provider = [{ accessor_id = "a" secret_id = "b" }] } }`, paid("acl.tokens.managed_service_provider")},
		{`dns_config { prefer_namespace = true }`, paid("dns_config.prefer_namespace")},
		{`acl_enforce_version_8 = true`, `config key "acl_enforce_version_8" is deprecated and should be removed`},
		{`acl_default_policy = "deny"`, old("acl_default_policy", "acl.default_policy")},
		{`acl_ttl = "1s"`, old("acl_ttl", "acl.token_ttl")},
		{`acl { tokens { agent_master = "x" } }`, old("acl.tokens.agent_master", "acl.tokens.agent_recovery")},
		{`cert_file = "x"`, old("cert_file", "tls.defaults.cert_file")},
		{`verify_incoming_rpc = true`, old("verify_incoming_rpc", "tls.internal_rpc.verify_incoming")},
		{`start_join = ["10.0.0.1"]`, old("start_join", "retry_join")},
		{`ui = true`, old("ui", "ui_config.enabled")},
		{`non_voting_server = true`, old("non_voting_server", "read_replica")},
		{`raft_boltdb { NoFreelistSync = true }`, old("raft_boltdb.nofreelistsync", "raft_logstore.boltdb.no_freelist_sync")},
		{server + `bootstrap = true`, "bootstrap = true: do not enable unless necessary"},
		{server + `bootstrap_expect = 1`, "BootstrapExpect is set to 1; this is the same as Bootstrap mode."},
		{server + `bootstrap_expect = 2`, "bootstrap_expect = 2: A cluster with 2 servers will provide no failure tolerance."},
		{server + `bootstrap_expect = 4`, "bootstrap_expect is even number"},
		{server + `bootstrap_expect = 3`, "bootstrap_expect > 0: expecting 3 servers"},
		{server + `auto_encrypt { allow_tls = true }`, "tls.internal_rpc.verify_incoming should be enabled"},
		{`datacenter = "a_b"`, `Datacenter name "a_b" will not be PKI X.509 compatible, as it contains the character '_'`},
		{`node_name = "a.b"`, `Node name "a.b" will not be discoverable via DNS due to invalid characters.`},
		{`node_name = "` + strings.Repeat("a", 64) + `"`, "will not be discoverable via DNS due to it being too long"},
		{`client_addr = ""`, "client_addr is empty, client services (DNS, HTTP, HTTPS, GRPC) will not be listening for connections"},
		{`enable_script_checks = true`, "using enable-script-checks without ACLs and without allow_write_http_from is DANGEROUS"},
		{`rpc { enable_streaming = true }`, "rpc.enable_streaming = true has no effect when not running in server mode"},
		{`client_addr = "0.0.0.0" recursors = ["8.8.8.8"]`, "whoever reaches the DNS port at 0.0.0.0:8600 may use them"},
		{`telemetry { prefix_filter = ["x"] }`, `Filter rule must begin with either '+' or '-': "x"`},
		{`auto_encrypt { ip_san = ["x"] }`, `Cannot parse ip "x"`},
	} {
		_, warnings, err := config.Load(client(t, tt.hcl))
		if err != nil {
			t.Errorf("%s: %v", tt.hcl, err)
		}
		if !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, tt.says) }) {
			t.Errorf("%s: warnings %q, want %q", tt.hcl, warnings, tt.says)
		}
	}
	for _, quiet := range []string{
		`snapshot_agent { x = 1 }`, `cloud { client_id = "x" }`, `experiments = ["x"]`, ``, `enable_script_checks = true acl { enabled = true }`,
		`recursors = ["8.8.8.8"]`, `client_addr = "192.168.7.7" recursors = ["8.8.8.8"]`,
		`client_addr = "0.0.0.0" recursors = ["8.8.8.8"] dns_config { allow_recursion_from = ["10.0.0.0/8"] }`,
		"enable_script_checks = true\nhttp_config { allow_write_http_from = [\"127.0.0.1/32\"] }",
	} {
		if _, warnings, err := config.Load(client(t, quiet)); err != nil || len(warnings) > 0 {
			t.Errorf("%s: warnings %q, error %v", quiet, warnings, err)
		}
	}
}

// The one thing the environment says is the intro token, and the name of this project's variable goes first. What
// configures commands does not configure agents.
func TestEnvironment(t *testing.T) {
	env := map[string]string{
		"CONSUL_INTRO_TOKEN": "old", "SARN_INTRO_TOKEN": "new", "CONSUL_HTTP_ADDR": "10.0.0.1:1", "SARN_HTTP_ADDR": "10.0.0.1:1",
		"CONSUL_HTTP_TOKEN": "x", "SARN_DATACENTER": "x", "CONSUL_HTTP_SSL": "true",
	}
	src := dev(`auto_config { intro_token = "file" }`)
	src.LookupEnv = func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	for _, want := range []string{"new", "old", "file"} {
		s := load(t, src)
		if s.AutoConfig.IntroToken != want {
			t.Errorf("intro token %q, want %q", s.AutoConfig.IntroToken, want)
		}
		for _, c := range config.Diff(load(t, dev()), s) {
			if c.Key != "auto_config.intro_token" {
				t.Errorf("the environment changes %s", c.Key)
			}
		}
		switch want {
		case "new":
			env["SARN_INTRO_TOKEN"] = ""
		case "old":
			delete(env, "CONSUL_INTRO_TOKEN")
		}
	}
}

// Templates of go-sockaddr stand in every key that takes addresses, and what they say is split at white space.
func TestTemplates(t *testing.T) {
	src := machine()
	src.Expand = func(s string) (string, error) {
		return strings.NewReplacer("{{ one }}", "10.9.9.1", "{{ two }}", " 10.9.9.1\n10.9.9.2 ").Replace(s), nil
	}
	src.Fragments = []string{`data_dir = "` + t.TempDir() + `"
server = true
primary_datacenter = "other"
bind_addr = "{{ one }}"
advertise_addr_wan = "{{ one }}"
client_addr = "{{ two }}"
addresses { http = "{{ one }} unix:///x/http.sock" grpc_tls = "{{ two }}" }
serf_wan = "{{ one }}"
recursors = ["{{ two }}", "8.8.8.8:53"]
retry_join = ["{{ two }}", "provider=aws tag_key=a tag_value=\"b c\"", "[::1]:8301"]
retry_join_wan = ["{{ two }}"]
primary_gateways = ["{{ two }}"]
auto_config { server_addresses = ["{{ two }}"] }`}
	s := load(t, src)
	two := []string{"10.9.9.1", "10.9.9.2"}
	for what, pair := range map[string][2][]string{
		"bind":      {{"10.9.9.1"}, {s.Addresses.Bind.String()}},
		"wan":       {{"10.9.9.1"}, {s.Addresses.AdvertiseWAN.String()}},
		"dns":       {{"10.9.9.1:8600", "10.9.9.2:8600"}, {s.Addresses.DNS[0].String(), s.Addresses.DNS[1].String()}},
		"http":      {{"10.9.9.1:8500", "unix:///x/http.sock"}, {s.Addresses.HTTP[0].String(), s.Addresses.HTTP[1].String()}},
		"grpc_tls":  {{"10.9.9.1:8503", "10.9.9.2:8503"}, {s.Addresses.GRPCTLS[0].String(), s.Addresses.GRPCTLS[1].String()}},
		"serf_wan":  {{"10.9.9.1:8302"}, {s.Addresses.SerfWAN.String()}},
		"recursors": {append(slices.Clone(two), "8.8.8.8:53"), s.DNS.Recursors},
		"join":      {append(slices.Clone(two), `provider=aws tag_key=a tag_value="b c"`, "[::1]:8301"), s.Join.LAN},
		"join wan":  {two, s.Join.WAN},
		"gateways":  {two, s.Join.Gateways},
		"introduce": {two, s.AutoConfig.ServerAddresses},
	} {
		if !slices.Equal(pair[0], pair[1]) {
			t.Errorf("%s: %q, want %q", what, pair[1], pair[0])
		}
	}
	real := machine()
	real.Fragments = []string{`data_dir = "` + t.TempDir() + `" client_addr = "{{ GetAllInterfaces | include \"flags\" \"loopback\" | include \"type\" \"ipv4\" | sort \"size\" | limit 1 | attr \"address\" }}"`}
	if s := load(t, real); len(s.Addresses.Client) != 1 || !s.Addresses.Client[0].IsLoopback() {
		t.Errorf("the loopback interface: %v", s.Addresses.Client)
	}
}
