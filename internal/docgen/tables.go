package main

const configurationHead = `# Configuration keys

An agent reads HCL and JSON files, folders of them, and flags; [Install](../install.md#configure) says how they add up. Keys are in
snake case, blocks are written with a dot here: ` + "`ports.http`" + ` is the key ` + "`http`" + ` of the block ` + "`ports`" + `. Durations are texts such as
` + "`\"10s\"`" + ` or ` + "`\"1h30m\"`" + `. An unknown key is an error that names the file, the line and, where there is one, the key you probably meant.

"Reload" marks what ` + "`sarn reload`" + ` (or SIGHUP) applies; everything else takes effect at the next start, and a reload warns about it.

Consul's keys are all known here, so that its files are read as they are. Where this version does nothing with a key, the
table says so in bold: **refused** stops the agent at its start rather than run with less protection than was asked for; **no effect
yet** accepts the value and does nothing.

A few templates are expanded in addresses, such as ` + "`bind_addr = \"{{ GetPrivateIP }}\"`" + ` or ` + "`\"{{ GetInterfaceIP \\\"eth0\\\" }}\"`" + `.
`

// computed are defaults that are not in the settings or depend on the machine.
var computed = map[string]string{
	"server":                           "`false`; `-dev` `true`",
	"cache.entry_fetch_rate":           "unlimited",
	"enable_local_script_checks":       "`enable_script_checks`",
	"http_config.max_header_bytes":     "1 MiB",
	"tls.grpc.verify_outgoing":         "",
	"tls.grpc.verify_server_hostname":  "",
	"tls.https.verify_server_hostname": "",
	"advertise_addr":                   "`bind_addr`, else the machine's private IPv4 address",
	"advertise_addr_wan":               "`advertise_addr`",
	"acl.role_ttl":                     "`acl.policy_ttl`",
	"addresses.dns":                    "`client_addr`",
	"addresses.grpc":                   "`client_addr`",
	"addresses.grpc_tls":               "`client_addr`",
	"addresses.http":                   "`client_addr`",
	"addresses.https":                  "`client_addr`",
	"bind_addr":                        "`0.0.0.0`; `-dev` `127.0.0.1`",
	"client_addr":                      "`127.0.0.1`",
	"data_dir":                         "none; needed but with `-dev`",
	"locality.region":                  "",
	"locality.zone":                    "",
	"node_id":                          "made once, kept in `data_dir`",
	"node_name":                        "the host name",
	"primary_datacenter":               "`datacenter`",
	"recursors":                        "none",
	"retry_join":                       "none",
	"serf_lan":                         "`bind_addr`",
	"serf_wan":                         "`bind_addr`",
	"tls.grpc.tls_min_version":         "that of `tls.defaults`",
	"tls.https.tls_min_version":        "that of `tls.defaults`",

	"tls.internal_rpc.tls_min_version": "that of `tls.defaults`",
}

// Texts that several keys share.
const (
	caFile   = "File with the certificates of the authorities to trust, PEM."
	caPath   = "Folder of such files."
	certFile = "This agent's certificate, PEM."
	keyFile  = "The key of cert_file, PEM."
)

// meanings say what keys are for, where the code's comments and flags do not.
var meanings = map[string]string{
	"alt_domain":                                               "Second domain, alike.",
	"read_replica":                                             "A server that never votes: it copies the state and [answers stale reads](../three-servers.md#servers-that-only-answer-reads).",
	"bootstrap_expect":                                         "Servers to wait for before the first election: the same number on all of them.",
	"cache.entry_fetch_rate":                                   "Refreshes of one cached answer per second.",
	"check_output_max_size":                                    "Most bytes kept of the output of a check.",
	"check_update_interval":                                    "How long a change of nothing but the output is held back.",
	"default_query_time":                                       "Wait of a blocking query that names none.",
	"disable_host_node_id":                                     "Make a random node ID. Sarn always does.",
	"discovery_max_stale":                                      "Age of answers that reads of `catalog` and `health` accept from any server when the request says nothing; 0 asks the leader.",
	"dns_config.recursor_strategy":                             "`sequential` or `random`.",
	"enable_agent_tls_for_checks":                              "Show the agent's certificate in HTTPS and gRPC checks.",
	"enable_local_script_checks":                               "Allow script checks from configuration files.",
	"enable_script_checks":                                     "Allow script checks from anywhere, also over the API.",
	"http_config.max_header_bytes":                             "Most bytes of the head of a request.",
	"http_config.use_cache":                                    "Answer requests with `?cached` from the agent's cache.",
	"leave_on_terminate":                                       "Leave the cluster on SIGTERM.",
	"limits.kv_max_value_size":                                 "Most bytes of a value.",
	"limits.request_limits.mode":                               "`disabled`, `permissive` or `enforcing`: see [limit requests](../rate-limits.md).",
	"limits.txn_max_req_len":                                   "Most bytes of a transaction, if this is more than `limits.kv_max_value_size`.",
	"log_file":                                                 "File to log to as well; with a final slash, `sarn.log` in that folder.",
	"max_query_time":                                           "Longest wait of a blocking query.",
	"node_id":                                                  "UUID of this node.",
	"node_name":                                                "Name of this node.",
	"peering.enabled":                                          "Let this cluster [peer with others](../peering.md).",
	"performance.rpc_hold_timeout":                             "How long a call waits for a leader.",
	"ports.proxy_min_port":                                     "Unused.",
	"ports.proxy_max_port":                                     "Unused.",
	"primary_datacenter":                                       "Datacenter with the certificate authority and the ACLs.",
	"protocol":                                                 "Version of the gossip protocol, 2 or 3.",
	"reconnect_timeout":                                        "How long a failed member is remembered.",
	"rejoin_after_leave":                                       "Rejoin the members known from before, also after having left.",
	"server":                                                   "Be a server rather than a client agent.",
	"server_rejoin_age_max":                                    "A server that was away for longer refuses to start: it may know what the others have long forgotten.",
	"session_ttl_min":                                          "Least TTL of a session.",
	"skip_leave_on_interrupt":                                  "Do not leave the cluster on SIGINT.",
	"tagged_addresses":                                         "Addresses to tell besides, by tag; `lan`, `wan` and their `_ipv4` and `_ipv6` forms are filled in.",
	"telemetry.prometheus_retention_time":                      "How long metrics are kept for `/v1/agent/metrics?format=prometheus`; 0 turns that form off.",
	"translate_wan_addrs":                                      "Answer about other datacenters with WAN addresses.",
	"tls.defaults.tls_min_version":                             "TLSv1_0, TLSv1_1, TLSv1_2 or TLSv1_3; TLS_AUTO is the default.",
	"tls.defaults.tls_cipher_suites":                           "Suites of TLS 1.2, separated by commas; empty leaves the choice to Go.",
	"tls.grpc.tls_min_version":                                 "As in `tls.defaults`.",
	"tls.grpc.tls_cipher_suites":                               "As in `tls.defaults`.",
	"tls.https.tls_min_version":                                "As in `tls.defaults`.",
	"tls.https.tls_cipher_suites":                              "As in `tls.defaults`.",
	"tls.internal_rpc.tls_min_version":                         "As in `tls.defaults`.",
	"tls.internal_rpc.tls_cipher_suites":                       "As in `tls.defaults`.",
	"tls.grpc.verify_incoming":                                 "Demand client certificates: of every proxy too.",
	"acl.default_policy":                                       "What a token without a matching rule may do: allow or deny.",
	"acl.enable_key_list_policy":                               "Make listing keys a right of its own.",
	"acl.enable_token_persistence":                             "Keep the agent's own tokens that were set over the API in `data_dir`.",
	"acl.enable_token_replication":                             "Copy tokens from the primary datacenter.",
	"acl.enabled":                                              "Turn [access control](../access-control.md) on.",
	"acl.policy_ttl":                                           "How long policies are cached.",
	"acl.token_ttl":                                            "How long tokens are cached.",
	"acl.tokens.agent":                                         "Token for what the agent does itself.",
	"acl.down_policy":                                          "What an agent does about tokens while it reaches no server: allow, deny, extend-cache or async-cache.",
	"acl.role_ttl":                                             "How long roles are cached; unset, as long as policies.",
	"acl.tokens.agent_recovery":                                "Token for the agent's own endpoints when the servers are away.",
	"acl.tokens.config_file_service_registration":              "Token to register what configuration files declare.",
	"acl.tokens.initial_management":                            "Secret, a UUID, of the token that a new cluster begins with.",
	"acl.tokens.default":                                       "Token of requests that bring none.",
	"acl.tokens.dns":                                           "Token of DNS questions.",
	"acl.tokens.replication":                                   "Token to copy from the primary datacenter with.",
	"addresses.dns":                                            "Addresses for DNS, separated by blanks.",
	"addresses.grpc":                                           "Addresses for plaintext gRPC; `unix:///path` for a socket.",
	"addresses.grpc_tls":                                       "Addresses for gRPC with TLS.",
	"addresses.http":                                           "Addresses for HTTP, separated by blanks; `unix:///path` for a socket.",
	"addresses.https":                                          "Addresses for HTTPS.",
	"advertise_addr":                                           "Address to tell the other members of the cluster.",
	"advertise_addr_ipv4":                                      "IPv4 address to tell besides.",
	"advertise_addr_ipv6":                                      "IPv6 address to tell besides.",
	"advertise_addr_wan":                                       "Address to tell other datacenters: the tagged address `wan` of the node.",
	"advertise_addr_wan_ipv4":                                  "IPv4 address of that kind.",
	"advertise_addr_wan_ipv6":                                  "IPv6 address of that kind.",
	"auto_config.authorization.enabled":                        "Servers: give agents [their configuration](../agent-certificates.md#auto-config) for a web token.",
	"auto_config.authorization.static.allow_reuse":             "Whether a token may be used more than once. It may, until it expires.",
	"auto_config.authorization.static.bound_audiences":         "Audiences of which a token must have one.",
	"auto_config.authorization.static.bound_issuer":            "Issuer that a token must have.",
	"auto_config.authorization.static.claim_mappings":          "Names that assertions know claims by.",
	"auto_config.authorization.static.clock_skew_leeway":       "Difference of clocks to put up with; default 60s, negative for none.",
	"auto_config.authorization.static.expiration_leeway":       "Life of a token that says no end; default 150s.",
	"auto_config.authorization.static.not_before_leeway":       "Life of a token, before its end, that says no beginning; default 150s.",
	"auto_config.authorization.static.jwks_ca_cert":            "Authority, PEM, to verify `jwks_url` with; empty for the system's.",
	"auto_config.authorization.static.jwks_url":                "URL of the keys that tokens are signed with.",
	"auto_config.authorization.static.jwt_supported_algs":      "Algorithms of signatures to accept; empty for all.",
	"auto_config.authorization.static.jwt_validation_pub_keys": "Keys, PEM, that tokens are signed with.",
	"auto_config.authorization.static.list_claim_mappings":     "Names that assertions know claims by that are lists.",
	"auto_config.authorization.static.oidc_discovery_ca_cert":  "Authority, PEM, to verify `oidc_discovery_url` with; empty for the system's.",
	"auto_config.authorization.static.oidc_discovery_url":      "Issuer whose keys are found by OIDC discovery.",
	"auto_config.dns_sans":                                     "DNS names to ask for in the certificate.",
	"auto_config.enabled":                                      "Fetch the configuration of this client from the servers.",
	"auto_config.intro_token":                                  "JWT to show to the servers.",
	"auto_config.intro_token_file":                             "File with that JWT.",
	"auto_config.ip_sans":                                      "IP addresses to ask for in the certificate.",
	"auto_config.server_addresses":                             "Servers to ask.",
	"auto_encrypt.allow_tls":                                   "Servers: sign certificates for clients that ask.",
	"auto_encrypt.dns_san":                                     "DNS names to ask for.",
	"auto_encrypt.ip_san":                                      "IP addresses to ask for.",
	"auto_encrypt.tls":                                         "Clients: ask the servers for [a certificate](../agent-certificates.md#auto-encrypt).",
	"autopilot.cleanup_dead_servers":                           "Take dead servers out of Raft when enough others are alive. Initial value: afterwards [`operator autopilot set-config`](cli.md#operator-autopilot-set-config) rules, as for the keys below.",

	"autopilot.last_contact_threshold":           "How long a healthy server may be out of contact with the leader.",
	"autopilot.max_trailing_logs":                "How many log entries a healthy server may be behind.",
	"autopilot.min_quorum":                       "Least number of servers that clean-up leaves.",
	"autopilot.disable_upgrade_migration":        "Let servers of all versions vote alike.",
	"autopilot.redundancy_zone_tag":              "Key of node metadata that says in which zone a server is: [one of each votes](../three-servers.md#zones).",
	"autopilot.upgrade_version_tag":              "Key of node metadata that says which version a server is of: [the newest take over](../three-servers.md#move-to-new-servers). Default the version of its build.",
	"autopilot.server_stabilization_time":        "How long a new server must be healthy before it votes.",
	"bind_addr":                                  "Address for traffic inside the cluster: server port and gossip.",
	"cache.entry_fetch_max_burst":                "How many refreshes of one cached answer may follow each other at once.",
	"check":                                      "Check of the node, or of a service with `service_id`: see [health checks](../health-checks.md).",
	"checks":                                     "List of such checks.",
	"client_addr":                                "Addresses for HTTP, HTTPS, gRPC and DNS, separated by blanks.",
	"config_entries.bootstrap":                   "Configuration entries that the leader writes where they are absent.",
	"connect.ca_config":                          "Settings of the certificate authority as [`connect ca set-config`](../certificates.md) takes them; used when the authority is first made, and by a new leader when they have changed. `plugin` names a [program](../ca-plugin.md).",
	"connect.ca_provider":                        "Provider of the certificate authority: `consul`, the built-in one, [`vault`](../ca-vault.md), [`aws-pca`](../ca-aws.md), or [`plugin:NAME`](../ca-plugin.md), a program of your own.",
	"connect.enabled":                            "Run the certificate authority and serve proxies.",
	"connect.node_proxy":                         "Run the sidecars of all local services that declare one, in [one process](../node-proxy.md); needs `ports.grpc`.",
	"connect.sidecars":                           "Run a sidecar proxy for each local service that declares one; needs `ports.grpc`.",
	"data_dir":                                   "Folder for what has to survive a restart; made if it is not there, closed to others.",
	"datacenter":                                 "Datacenter the agent belongs to.",
	"default_intention_policy":                   "What holds between services that no intention is about: `allow`, `deny`, or empty to follow the ACLs, which allows as long as there are none.",
	"disable_anonymous_signature":                "Leave out an ID from the update check. There is no update check.",
	"disable_coordinates":                        "Do not estimate round-trip times.",
	"disable_http_unprintable_char_filter":       "Allow control characters in paths of requests.",
	"disable_update_check":                       "Do not look for new versions. There is no update check.",
	"discard_check_output":                       "Do not keep the output of checks.",
	"dns_config.a_record_limit":                  "Most addresses in an answer; 0 does not limit.",
	"dns_config.allow_stale":                     "Let any server answer, not only the leader.",
	"dns_config.cache_max_age":                   "With `use_cache`, how long the agent may have been out of touch with the servers, or the server with the leader; 0 does not limit.",
	"dns_config.disable_compression":             "Do not compress names in answers.",
	"dns_config.enable_additional_node_meta_txt": "Add node metadata as TXT records.",
	"dns_config.enable_truncate":                 "Tell UDP clients when an answer was cut, so that they ask over TCP.",
	"dns_config.max_stale":                       "Oldest answer to take from a server that is not the leader.",
	"dns_config.node_ttl":                        "TTL of answers about nodes.",
	"dns_config.only_passing":                    "Leave out instances with a warning; critical ones are always left out.",
	"dns_config.recursor_timeout":                "How long to wait for a recursor.",
	"dns_config.service_ttl":                     "TTLs of answers by service name; a final `*` makes a name a prefix, `*` alone is the rest.",
	"dns_config.soa.expire":                      "Seconds.",
	"dns_config.soa.min_ttl":                     "Seconds that a negative answer may be kept.",
	"dns_config.soa.refresh":                     "Seconds.",
	"dns_config.soa.retry":                       "Seconds.",
	"dns_config.udp_answer_limit":                "Most records of an answer over UDP.",
	"dns_config.use_cache":                       "Answer from what this agent knows, even without `allow_stale`.",
	"domain":                                     "Domain to answer DNS questions under.",
	"enable_central_service_config":              "Complete registrations from `service-defaults` and `proxy-defaults`.",
	"encrypt":                                    "Gossip encryption key, base64 of 16, 24 or 32 bytes, from `sarn keygen`. Only for the first start: then the ring of keys in `data_dir` rules.",
	"encrypt_verify_incoming":                    "Refuse gossip that is not encrypted. Off only while encryption is brought in.",
	"encrypt_verify_outgoing":                    "Send encrypted gossip only.",
	"gossip_wan.gossip_interval":                 "Time between messages to random members.",
	"gossip_wan.gossip_nodes":                    "Members each of those goes to.",
	"gossip_wan.probe_interval":                  "Time between probes of a random member.",
	"gossip_wan.probe_timeout":                   "How long to wait for the answer to a probe.",
	"gossip_wan.retransmit_mult":                 "How often messages are sent again, times the logarithm of the cluster's size.",
	"gossip_wan.suspicion_mult":                  "How long a member is suspected before it counts as failed, times the logarithm of the cluster's size.",
	"gossip_lan.gossip_interval":                 "Time between messages to random members.",
	"gossip_lan.gossip_nodes":                    "Members each of those goes to.",
	"gossip_lan.probe_interval":                  "Time between probes of a random member.",
	"gossip_lan.probe_timeout":                   "How long to wait for the answer to a probe.",
	"gossip_lan.retransmit_mult":                 "How often messages are sent again, times the logarithm of the cluster's size.",
	"gossip_lan.suspicion_mult":                  "How long a member is suspected before it counts as failed, times the logarithm of the cluster's size.",
	"http_config.allow_write_http_from":          "Networks from which requests other than GET and HEAD are accepted; empty accepts all.",
	"http_config.block_endpoints":                "Paths, and all below them, to answer with 403.",
	"http_config.response_headers":               "Headers to add to every answer.",
	"limits.http_max_conns_per_client":           "Connections to the API from one address.",
	"limits.https_handshake_timeout":             "How long a TLS handshake with the API may take.",
	"limits.request_limits.read_rate":            "Reads per second a server takes.",
	"limits.request_limits.write_rate":           "Writes per second a server takes.",
	"limits.rpc_client_timeout":                  "How long a call to the servers may take beside the wait of a blocking query.",
	"limits.rpc_handshake_timeout":               "How long a TLS handshake with the server port may take.",
	"limits.rpc_max_burst":                       "Calls above `rpc_rate` that may come at once.",
	"limits.rpc_max_conns_per_client":            "Connections to the server port from one address.",
	"limits.rpc_rate":                            "Calls per second a client agent makes; -1 does not limit.",
	"locality.region":                            "Region of the node.",
	"locality.zone":                              "Zone of the node in its region.",
	"log_level":                                  "TRACE, DEBUG, INFO, WARN or ERROR.",
	"performance.enable_xds_load_balancing":      "Spread proxies' streams over the servers.",
	"performance.grpc_keepalive_interval":        "How often an idle gRPC connection is checked.",
	"performance.grpc_keepalive_timeout":         "How long that check may take.",
	"performance.leave_drain_time":               "How long an agent that left goes on answering before it stops.",
	"performance.raft_multiplier":                "Factor, 1 to 10, of the election timeouts: with 1 a lost leader is replaced in about two seconds, with 5 in about ten.",
	"ports.dns":                                  "DNS, UDP and TCP. A port of -1 turns a listener off, here and below.",
	"ports.expose_max_port":                      "Last port for checks that go through a proxy.",
	"ports.expose_min_port":                      "First port for checks that go through a proxy.",
	"ports.grpc_tls":                             "gRPC (xDS) with TLS; listens only where `tls.grpc` has a certificate.",
	"ports.http":                                 "HTTP API.",
	"ports.https":                                "HTTPS API.",
	"ports.serf_lan":                             "Gossip, UDP and TCP.",
	"ports.serf_wan":                             "Gossip between datacenters.",
	"ports.server":                               "Raft and calls to servers.",
	"ports.sidecar_max_port":                     "Last port for sidecars whose registration names none.",
	"ports.sidecar_min_port":                     "First port for sidecars whose registration names none.",
	"primary_gateways":                           "Mesh gateways of the primary datacenter.",
	"raft_logstore.backend":                      "Form of the log on disk. There is one: `wal`.",
	"raft_logstore.wal.segment_size_mb":          "Size of a file of the log, 1 to 1024.",
	"raft_prevote_disabled":                      "Elect without asking first whether an election can be won.",
	"raft_snapshot_interval":                     "How often a server looks whether to take a snapshot.",
	"raft_snapshot_threshold":                    "Log entries after which it takes one.",
	"raft_trailing_logs":                         "Log entries kept after a snapshot, for servers that are behind.",
	"recursors":                                  "DNS servers to ask about other domains.",
	"retry_join":                                 "Members to join, tried until one answers. Addresses only: `provider=…` is refused.",
	"retry_join_wan":                             "Servers of other datacenters to join.",
	"segment":                                    "Network segment.",
	"segments":                                   "Network segments.",
	"serf_lan":                                   "Address for gossip.",
	"serf_lan_allowed_cidrs":                     "Networks whose members may join; empty allows all.",
	"serf_wan":                                   "Address for gossip between datacenters.",
	"serf_wan_allowed_cidrs":                     "Networks whose members may join over the WAN.",
	"service":                                    "Service to register: see [register services](../register-services.md).",
	"services":                                   "List of such services.",
	"telemetry.disable_hostname":                 "Leave the host name out of the names of metrics.",
	"telemetry.filter_default":                   "Keep metrics that `prefix_filter` says nothing about.",
	"telemetry.metrics_prefix":                   "First part of the names of metrics.",
	"telemetry.dogstatsd_addr":                   "Where to [send metrics](../agent-metrics-export.md) as dogstatsd: `host:port`, or `unix:///path`.",
	"telemetry.dogstatsd_tags":                   "Tags, `name:value`, of all that is sent there.",
	"telemetry.enable_host_metrics":              "Measure the machine too: memory, processors, the disk of the data folder.",
	"telemetry.otlp.ca_file":                     "Authorities that the collector's certificate may be of, in place of the system's.",
	"telemetry.otlp.endpoint":                    "URL of an OpenTelemetry collector, without `/v1/metrics`, to [send metrics and traces](../agent-metrics-export.md) to.",
	"telemetry.otlp.headers":                     "Headers of what is sent to the collector.",
	"telemetry.otlp.metrics":                     "Send metrics to the collector.",
	"telemetry.otlp.trace_sampling":              "Share of the requests to the API to trace, from 0 to 1; those whose client traces them are traced in any case, unless it is 0.",
	"telemetry.retry_failed_connection":          "Start though a receiver of metrics cannot be reached. Once started, an agent tries again in any case.",
	"telemetry.statsd_address":                   "Where to [send metrics](../agent-metrics-export.md) as statsd: `host:port`, with `tcp://` before it for TCP.",
	"telemetry.statsite_address":                 "Where to [send metrics](../agent-metrics-export.md) as statsite, over TCP: `host:port`.",
	"telemetry.prefix_filter":                    "Prefixes of metrics to keep, with `+`, or to leave out, with `-`.",
	"tls.defaults.ca_file":                       caFile,
	"tls.defaults.ca_path":                       caPath,
	"tls.defaults.cert_file":                     certFile,
	"tls.defaults.key_file":                      keyFile,
	"tls.defaults.verify_server_hostname":        "Demand that servers show a certificate for `server.DATACENTER.DOMAIN`; implies verify_outgoing.",
	"tls.grpc.ca_file":                           caFile,
	"tls.grpc.ca_path":                           caPath,
	"tls.grpc.cert_file":                         certFile,
	"tls.grpc.key_file":                          keyFile,
	"tls.grpc.verify_outgoing":                   "Not valid here.",
	"tls.grpc.verify_server_hostname":            "Not valid here.",
	"tls.https.ca_file":                          caFile,
	"tls.https.ca_path":                          caPath,
	"tls.https.cert_file":                        certFile,
	"tls.https.key_file":                         keyFile,
	"tls.https.verify_server_hostname":           "Not valid here.",
	"tls.internal_rpc.ca_file":                   caFile,
	"tls.internal_rpc.ca_path":                   caPath,
	"tls.internal_rpc.cert_file":                 certFile,
	"tls.internal_rpc.key_file":                  keyFile,
	"tls.internal_rpc.verify_server_hostname":    "Demand that servers show a certificate for `server.DATACENTER.DOMAIN`; implies verify_outgoing.",
	"ui_config.metrics_provider":                 "`prometheus` lets [the proxy](../console.md#metrics-for-a-console-of-your-own) read the paths of its queries.",
	"ui_config.metrics_proxy.add_headers":        "Headers to set on what is passed on to the store of metrics.",
	"ui_config.metrics_proxy.base_url":           "URL of a store of metrics for [the console](../console.md#metrics-for-a-console-of-your-own) to read.",
	"ui_config.metrics_proxy.path_allowlist":     "Whole paths there that may be read; empty allows all below `base_url`.",
	"syslog_facility":                            "Facility of syslog: KERN, USER, DAEMON, …, LOCAL0 to LOCAL7.",
	"ui_config.enabled":                          "Serve the [console](../console.md).",
	"unix_sockets.group":                         "Group, name or number, of the sockets the agent listens on.",
	"unix_sockets.mode":                          "Their mode, octal.",
	"unix_sockets.user":                          "Their owner, name or number.",
	"version":                                    "What test kits write; an agent tells its own version.",
	"watches":                                    "[Programs to run and URLs to call](../watches.md) on changes.",
}

// absent lists what this version does not do, by what it says of each. A name that ends in * stands for all that begin
// so.
var absent = []struct{ says, keys string }{
	{"Refused.", `segment segments`},
	{"No effect; refused with a token or a submission URL: metrics are not sent to Circonus.", `telemetry.circonus_*`},
	{"No effect: there are no tenants to tell apart.", `telemetry.disable_per_tenancy_usage_metrics`},
	{"No effect yet: datacenters do not reach each other through gateways.", `primary_gateways primary_gateways_interval
		connect.enable_mesh_gateway_wan_federation`},
	{"No effect yet: the console does not link to metrics.", `ui_config.metrics_provider_files ui_config.metrics_provider_options_json
		ui_config.dashboard_url_templates`},
	{"No effect.", `auto_config.authorization.static.allow_reuse`},
	{"No effect yet.", `protocol disable_kv_key_validation use_streaming_backend
		rpc.enable_streaming disable_host_node_id advertise_reconnect_timeout
		performance.grpc_keepalive_timeout raft_protocol
		raft_logstore.backend raft_logstore.disable_log_cache raft_logstore.verification.* raft_logstore.boltdb.*
		xds.update_max_per_second ports.proxy_* disable_update_check disable_anonymous_signature version`},
}

// worked lists keys that the configuration itself works on, so that the agent needs not look at them.
const worked = `ui_config.metrics_provider tls.defaults.* tls.*.tls_cipher_suites tls.*.use_auto_cert telemetry.prefix_filter`

// shown lists keys without effect that are passed on all the same, to be shown or to find nothing to do.
const shown = `telemetry.circonus_api_token telemetry.circonus_submission_url ports.serf_wan acl.default_policy acl.enabled acl.tokens.replication`

const commandLineHead = `# Commands

Flags take one dash or two, and a value after ` + "`=`" + ` or a blank. Under the name ` + "`consul`" + ` the binary takes the same commands. A
mistyped command or flag is answered with the one you probably meant. The exit code is 0 for success, 1 for failure and 127 for
a command that does not exist; commands with others say so.

Completion: ` + "`sarn -autocomplete-install`" + ` adds it to the startup files of your shell (bash, zsh, fish).

<a id="reaching-an-agent"></a>
Commands that talk to an agent find it at ` + "`http://127.0.0.1:8500`" + ` unless flags or the environment say otherwise:

| flag | variable | meaning |
| --- | --- | --- |
| ` + "`-http-addr`" + ` | ` + "`SARN_HTTP_ADDR`" + ` | ` + "`host:port`, `http://…`, `https://…` or `unix:///path`" + ` |
| ` + "`-token`, `-token-file`" + ` | ` + "`SARN_HTTP_TOKEN`, `SARN_HTTP_TOKEN_FILE`" + ` | sent with each request; this version does not check tokens |
| ` + "`-ca-file`, `-ca-path`" + ` | ` + "`SARN_CACERT`, `SARN_CAPATH`" + ` | authorities to verify the agent with, for ` + "`https`" + ` |
| ` + "`-client-cert`, `-client-key`" + ` | ` + "`SARN_CLIENT_CERT`, `SARN_CLIENT_KEY`" + ` | this command's own certificate |
| ` + "`-tls-server-name`" + ` | ` + "`SARN_TLS_SERVER_NAME`" + ` | name to expect in the agent's certificate |
| ` + "`-datacenter`" + ` | | datacenter to ask; only that of the agent exists |
| ` + "`-stale`" + ` | | let any server answer, not only the leader |

` + "`CONSUL_…`" + ` is read where ` + "`SARN_…`" + ` is not set.
`
