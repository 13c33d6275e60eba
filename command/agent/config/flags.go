package config

import (
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
)

// A flagKind is how a flag's text becomes a value.
type flagKind int

const (
	flagString flagKind = iota
	flagBool
	flagInt
	flagList // repeatable
	flagMap  // repeatable key:value
)

// keyFlags are the flags that set a key.
var keyFlags = []struct {
	name, key string
	kind      flagKind
	usage     string
}{
	{"advertise", "advertise_addr", flagString, "address to tell the other members of the cluster"},
	{"advertise-wan", "advertise_addr_wan", flagString, "address to tell the servers of other datacenters"},
	{"allow-write-http-from", "http_config.allow_write_http_from", flagList, "network (CIDR) from which write requests are accepted; repeatable"},
	{"alt-domain", "alt_domain", flagString, "second domain to answer DNS queries under"},
	{"auto-reload-config", "auto_reload_config", flagBool, "watch the configuration files and reload when they change"},
	{"bind", "bind_addr", flagString, "address for traffic inside the cluster"},
	{"bootstrap", "bootstrap", flagBool, "elect this server as a cluster of one"},
	{"bootstrap-expect", "bootstrap_expect", flagInt, "number of servers to wait for before the first election"},
	{"check_output_max_size", "check_output_max_size", flagInt, "most bytes kept of the output of a check"},
	{"client", "client_addr", flagString, "addresses for HTTP, HTTPS, gRPC and DNS"},
	{"data-dir", "data_dir", flagString, "folder for what has to survive a restart"},
	{"datacenter", "datacenter", flagString, "datacenter the agent belongs to"},
	{"default-query-time", "default_query_time", flagString, "wait of a blocking query that names none"},
	{"disable-host-node-id", "disable_host_node_id", flagBool, "make a random node ID rather than one derived from the host's"},
	{"disable-keyring-file", "disable_keyring_file", flagBool, "keep the gossip keyring in memory only"},
	{"dns-port", "ports.dns", flagInt, "DNS port"},
	{"domain", "domain", flagString, "domain to answer DNS queries under"},
	{"enable-local-script-checks", "enable_local_script_checks", flagBool, "allow script checks from configuration files"},
	{"enable-script-checks", "enable_script_checks", flagBool, "allow script checks, also over the API"},
	{"encrypt", "encrypt", flagString, "gossip encryption key, base64"},
	{"grpc-port", "ports.grpc", flagInt, "plaintext gRPC (xDS) port"},
	{"grpc-tls-port", "ports.grpc_tls", flagInt, "gRPC (xDS) port with TLS"},
	{"http-port", "ports.http", flagInt, "HTTP port"},
	{"https-port", "ports.https", flagInt, "HTTPS port"},
	{"join", "start_join", flagList, "old name of -retry-join"},
	{"join-wan", "start_join_wan", flagList, "old name of -retry-join-wan"},
	{"log-file", "log_file", flagString, "file to log to as well"},
	{"log-json", "log_json", flagBool, "log as JSON"},
	{"log-level", "log_level", flagString, "TRACE, DEBUG, INFO, WARN or ERROR"},
	{"log-rotate-bytes", "log_rotate_bytes", flagInt, "size at which the log file is rotated"},
	{"log-rotate-duration", "log_rotate_duration", flagString, "age at which the log file is rotated"},
	{"log-rotate-max-files", "log_rotate_max_files", flagInt, "rotated log files to keep; 0 all, -1 none"},
	{"max-query-time", "max_query_time", flagString, "longest wait of a blocking query"},
	{"node", "node_name", flagString, "name of this node; default the host name"},
	{"node-id", "node_id", flagString, "UUID of this node"},
	{"node-meta", "node_meta", flagMap, "metadata of this node, key:value; repeatable"},
	{"non-voting-server", "non_voting_server", flagBool, "old name of -read-replica"},
	{"pid-file", "pid_file", flagString, "file to write the process ID to"},
	{"primary-gateway", "primary_gateways", flagList, "mesh gateway of the primary datacenter; repeatable"},
	{"protocol", "protocol", flagInt, "gossip protocol version"},
	{"raft-protocol", "raft_protocol", flagInt, "Raft protocol version"},
	{"read-replica", "read_replica", flagBool, "a server that never votes: it copies the state and answers stale reads"},
	{"recursor", "recursors", flagList, "DNS server to ask about other domains; repeatable"},
	{"rejoin", "rejoin_after_leave", flagBool, "rejoin the cluster after having left it"},
	{"retry-interval", "retry_interval", flagString, "wait between attempts to join"},
	{"retry-interval-wan", "retry_interval_wan", flagString, "wait between attempts to join over the WAN"},
	{"retry-join", "retry_join", flagList, "address to join, tried until it answers; repeatable"},
	{"retry-join-wan", "retry_join_wan", flagList, "address to join over the WAN, tried until it answers; repeatable"},
	{"retry-max", "retry_max", flagInt, "attempts to join; 0 for ever"},
	{"retry-max-wan", "retry_max_wan", flagInt, "attempts to join over the WAN; 0 for ever"},
	{"serf-lan-allowed-cidrs", "serf_lan_allowed_cidrs", flagList, "network (CIDR) allowed to join; repeatable"},
	{"serf-lan-bind", "serf_lan", flagString, "address for LAN gossip"},
	{"serf-lan-port", "ports.serf_lan", flagInt, "LAN gossip port"},
	{"serf-wan-allowed-cidrs", "serf_wan_allowed_cidrs", flagList, "network (CIDR) allowed to join over the WAN; repeatable"},
	{"serf-wan-bind", "serf_wan", flagString, "address for WAN gossip"},
	{"serf-wan-port", "ports.serf_wan", flagInt, "WAN gossip port"},
	{"server", "server", flagBool, "be a server"},
	{"server-port", "ports.server", flagInt, "port of RPC and Raft"},
	{"sidecars", "connect.sidecars", flagBool, "run a sidecar proxy for every local service that declares one"},
	{"syslog", "enable_syslog", flagBool, "log to syslog as well"},
	{"ui", "ui_config.enabled", flagBool, "serve the web console"},
	{"ui-content-path", "ui_config.content_path", flagString, "path of the web console"},
	{"ui-dir", "ui_config.dir", flagString, "folder to serve as the web console"},
}

// Register adds the flags of the agent to a flag set. Parsing it fills the sources.
func (src *Sources) Register(fs *flag.FlagSet) {
	path := func(p string) error { src.Paths = append(src.Paths, p); return nil }
	fs.BoolVar(&src.Dev, "dev", src.Dev, "start a server in memory for trying things out")
	fs.Func("config-file", "configuration file, or folder of them, to read; repeatable", path)
	fs.Func("config-dir", "folder of configuration files to read; repeatable", path)
	fs.StringVar(&src.Format, "config-format", src.Format, "format of all configuration files: hcl or json")
	fs.Func("hcl", "piece of configuration in HCL; repeatable", func(s string) error {
		src.Fragments = append(src.Fragments, s)
		return nil
	})
	for _, f := range keyFlags {
		fs.Var(&keyFlag{src: src, key: f.key, name: f.name, kind: f.kind}, f.name, f.usage)
	}
}

// Set gives a key a value as a flag would: a list or map is added to what files say, anything else beats them. It is an
// error if the key does not exist or takes no text.
func (src *Sources) Set(key, value string) error {
	for _, f := range keyFlags {
		if f.key == key {
			return (&keyFlag{src: src, key: key, name: f.name, kind: f.kind}).Set(value)
		}
	}
	return fmt.Errorf("no flag sets %s", key)
}

// A keyFlag is the flag.Value that sets one key.
type keyFlag struct {
	src       *Sources
	key, name string
	kind      flagKind
}

func (f *keyFlag) String() string { return "" }

// IsBoolFlag lets a boolean stand without a value.
func (f *keyFlag) IsBoolFlag() bool { return f.kind == flagBool }

func (f *keyFlag) Set(s string) error {
	pos := Pos{File: "-" + f.name}
	n := &node{shape: text, text: s, pos: pos}
	switch f.kind {
	case flagBool:
		v, err := strconv.ParseBool(s)
		if err != nil {
			return errors.New("want true or false")
		}
		n = &node{shape: boolean, boolean: v, pos: pos}
	case flagInt:
		v, err := strconv.ParseInt(s, 0, 64)
		if err != nil {
			return errors.New("want a whole number")
		}
		n = &node{shape: integer, integer: v, pos: pos}
	case flagList:
		n = &node{shape: list, list: []*node{n}, pos: pos}
	case flagMap:
		k, v, _ := strings.Cut(s, ":")
		n = &node{shape: object, pos: pos}
		n.set(k, &node{shape: text, text: v, pos: pos})
	}
	f.src.set = append(f.src.set, setting{key: f.key, value: n})
	return nil
}
