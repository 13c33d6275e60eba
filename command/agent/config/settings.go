package config

import (
	"net/netip"
	"time"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// Settings is the whole configuration of an agent after defaults, files and flags were merged, addresses expanded and
// every value checked. It is not changed after Load returns it.
//
// A field with a `key` tag is read from that configuration key; a struct without one only groups keys. Fields without a
// tag are computed by Load. The tag `reload:"yes"` marks what a reload applies; everything else needs a restart.
type Settings struct {
	Dev   bool   // started with -dev: nothing is kept on disk
	Files []File // the files that were read, in order

	Server          bool   `key:"server"`           // server or client agent
	Bootstrap       bool   `key:"bootstrap"`        // elect itself as a single server
	BootstrapExpect int    `key:"bootstrap_expect"` // servers to wait for before the first election; 0 never
	ReadReplica     bool   `key:"read_replica"`     // a server that never votes
	DataDir         string `key:"data_dir"`         // empty only in dev mode
	PIDFile         string `key:"pid_file"`         // written at start, removed at exit
	Protocol        int    `key:"protocol"`         // gossip protocol, 2 or 3

	LeaveOnTerminate     bool `key:"leave_on_terminate"`      // on SIGTERM; default true on clients
	SkipLeaveOnInterrupt bool `key:"skip_leave_on_interrupt"` // on SIGINT; default true on servers
	RejoinAfterLeave     bool `key:"rejoin_after_leave"`      // rejoin known members after having left

	EnableDebug               bool          `key:"enable_debug" reload:"yes"` // serve /debug/pprof without a token
	DisableUpdateCheck        bool          `key:"disable_update_check"`
	StatedVersion             string        `key:"version"` // given by test kits; the agent tells its own
	DisableAnonymousSignature bool          `key:"disable_anonymous_signature"`
	DisableRemoteExec         bool          `key:"disable_remote_exec"` // refuse the exec command
	DisableCoordinates        bool          `key:"disable_coordinates"`
	DisableKVKeyValidation    bool          `key:"disable_kv_key_validation"` // allow path traversal and blanks at the ends of keys
	EnableCentralConfig       bool          `key:"enable_central_service_config"`
	DefaultIntentionPolicy    string        `key:"default_intention_policy"` // allow, deny, or empty to follow ACLs
	AutoReload                bool          `key:"auto_reload_config"`       // watch files and reload on change
	ServerRejoinAgeMax        time.Duration `key:"server_rejoin_age_max"`    // a server offline longer refuses to start
	TranslateWANAddrs         bool          `key:"translate_wan_addrs"`      // prefer WAN addresses of other datacenters
	UseStreamingBackend       bool          `key:"use_streaming_backend"`
	EnableRPCStreaming        bool          `key:"rpc.enable_streaming"` // default true on servers
	PeeringEnabled            bool          `key:"peering.enabled"`

	Node        Node
	Check       Check
	Query       Query
	Join        Join
	Ports       Ports `key:"ports"`
	Addresses   Addresses
	ACL         ACL `key:"acl"`
	Gossip      Gossip
	TLS         TLS
	AutoEncrypt AutoEncrypt `key:"auto_encrypt"`
	AutoConfig  AutoConfig  `key:"auto_config"`
	JoinTokens  JoinTokens  `key:"join_tokens"`
	Connect     Connect     `key:"connect"`
	DNS         DNS
	HTTP        HTTP
	Limits      Limits      `key:"limits"`
	Performance Performance `key:"performance"`
	Raft        Raft
	Autopilot   Autopilot `key:"autopilot"`
	UI          UI        `key:"ui_config"`
	Telemetry   Telemetry `key:"telemetry"`
	Log         Log
	XDS         XDS         `key:"xds"`
	Cache       Cache       `key:"cache"`
	UnixSockets UnixSockets `key:"unix_sockets"`
	WorkloadAPI WorkloadAPI `key:"workload_api"`

	// ConfigEntries are seeds the leader writes where absent, normalized and valid.
	ConfigEntries []entry.Entry
	// Watches are handlers the agent runs on changes; see CheckStart for what is verified about them.
	Watches []map[string]any `key:"watches" reload:"yes"`

	Services []Service    // every service block of the sources, in order
	Checks   []CheckBlock // every check block of the sources that stands outside a service

	doc *document // what it was made of; nil for settings not made by Load
}

// A File is one configuration file that was read.
type File struct {
	Path   string
	Format string // "hcl" or "json"
}

// A Pos is a place in a configuration source. Line and Column count from 1; both are 0 for flags.
type Pos struct {
	File         string
	Line, Column int
}

// Node describes the node the agent runs on.
type Node struct {
	Name              string            `key:"node_name"` // default the host name
	ID                string            `key:"node_id"`   // a UUID in lower case; empty makes or reads one
	DisableHostID     bool              `key:"disable_host_node_id"`
	Meta              map[string]string `key:"node_meta" reload:"yes"`
	TaggedAddresses   map[string]string `key:"tagged_addresses"` // lan, wan and their _ipv4/_ipv6 forms are filled in
	Region            string            `key:"locality.region"`
	Zone              string            `key:"locality.zone"`
	Datacenter        string            `key:"datacenter"`
	PrimaryDatacenter string            `key:"primary_datacenter"` // default Datacenter
}

// Check rules the running of health checks.
type Check struct {
	EnableScripts      bool          `key:"enable_script_checks"`       // scripts from API and files
	EnableLocalScripts bool          `key:"enable_local_script_checks"` // scripts from files only; default EnableScripts
	UpdateInterval     time.Duration `key:"check_update_interval"`      // how long output-only changes are held back
	OutputMaxSize      int           `key:"check_output_max_size"`      // bytes
	DiscardOutput      bool          `key:"discard_check_output" reload:"yes"`
	AgentTLS           bool          `key:"enable_agent_tls_for_checks"` // client certificate in HTTPS and gRPC checks
}

// Query rules reads and sessions.
type Query struct {
	DefaultTime       time.Duration `key:"default_query_time"`  // wait of a blocking query that names none
	MaxTime           time.Duration `key:"max_query_time"`      // longest wait
	DiscoveryMaxStale time.Duration `key:"discovery_max_stale"` // 0 forces nothing
	SessionTTLMin     time.Duration `key:"session_ttl_min"`     // never 0
}

// Join says whom to find at start.
type Join struct {
	LAN             []string      // retry_join: addresses, or "provider=…" strings
	WAN             []string      // retry_join_wan
	Interval        time.Duration `key:"retry_interval"`
	IntervalWAN     time.Duration `key:"retry_interval_wan"`
	Max             int           `key:"retry_max"` // attempts; 0 for ever
	MaxWAN          int           `key:"retry_max_wan"`
	Gateways        []string      // primary_gateways
	GatewayInterval time.Duration `key:"primary_gateways_interval"`
}

// Ports are TCP (and UDP, where the protocol uses it) ports. A listener whose port is 0 or less is off.
type Ports struct {
	DNS        int `key:"dns"`
	HTTP       int `key:"http"`
	HTTPS      int `key:"https"`
	GRPC       int `key:"grpc"`     // plaintext gRPC and xDS
	GRPCTLS    int `key:"grpc_tls"` // default 8503 on servers, off on clients
	Server     int `key:"server"`   // RPC and Raft
	SerfLAN    int `key:"serf_lan"`
	SerfWAN    int `key:"serf_wan"`
	SidecarMin int `key:"sidecar_min_port"`
	SidecarMax int `key:"sidecar_max_port"`
	ExposeMin  int `key:"expose_min_port"`
	ExposeMax  int `key:"expose_max_port"`
	ProxyMin   int `key:"proxy_min_port"` // accepted, unused
	ProxyMax   int `key:"proxy_max_port"`
}

// A Listen is an address to listen on, in the form net.Listen takes.
type Listen struct {
	Network string // "tcp" or "unix"
	Address string // "127.0.0.1:8500", or the path of a socket
}

// Addresses are all computed: templates expanded, defaults derived from one another, ports joined.
type Addresses struct {
	Bind netip.Addr // cluster traffic; may be unspecified

	Advertise        netip.Addr // never unspecified
	AdvertiseWAN     netip.Addr // never unspecified
	AdvertiseIPv4    netip.Addr // invalid if unknown
	AdvertiseIPv6    netip.Addr // invalid if unknown
	AdvertiseWANIPv4 netip.Addr // invalid if unknown
	AdvertiseWANIPv6 netip.Addr // invalid if unknown

	Client  []netip.Addr     // client_addr; empty means no client listeners
	DNS     []netip.AddrPort // both TCP and UDP
	HTTP    []Listen
	HTTPS   []Listen
	GRPC    []Listen
	GRPCTLS []Listen

	Server           netip.AddrPort // where the server port listens
	ServerAdvertise  netip.AddrPort // what it is told to others as
	SerfLAN          netip.AddrPort
	SerfLANAdvertise netip.AddrPort
	SerfWAN          netip.AddrPort // invalid if WAN gossip is off
	SerfWANAdvertise netip.AddrPort // invalid if WAN gossip is off

	SerfLANAllowed []netip.Prefix // nil allows any
	SerfWANAllowed []netip.Prefix // nil allows any
}

// ACL holds the access-control settings.
type ACL struct {
	Enabled                bool          `key:"enabled"`
	DefaultPolicy          string        `key:"default_policy"` // allow or deny; verified by CheckStart
	DownPolicy             string        `key:"down_policy"`    // allow, deny, extend-cache or async-cache
	TokenTTL               time.Duration `key:"token_ttl"`
	PolicyTTL              time.Duration `key:"policy_ttl"`
	RoleTTL                time.Duration `key:"role_ttl"` // 0 means PolicyTTL
	EnableTokenReplication bool          `key:"enable_token_replication"`
	EnableKeyListPolicy    bool          `key:"enable_key_list_policy"`
	EnableTokenPersistence bool          `key:"enable_token_persistence"`
	Tokens                 Tokens        `key:"tokens"`
}

// Tokens are secrets. Tokens persisted over the API win over them.
type Tokens struct {
	InitialManagement string `key:"initial_management" secret:"yes"` // made a global-management token at first leadership
	Default           string `key:"default" reload:"yes" secret:"yes"`
	Agent             string `key:"agent" reload:"yes" secret:"yes"`
	AgentRecovery     string `key:"agent_recovery" reload:"yes" secret:"yes"`
	Replication       string `key:"replication" reload:"yes" secret:"yes"`
	FileRegistration  string `key:"config_file_service_registration" reload:"yes" secret:"yes"`
	DNS               string `key:"dns" reload:"yes" secret:"yes"`
}

// Gossip tunes Serf and its encryption.
type Gossip struct {
	Key                       string        `key:"encrypt" secret:"yes"` // base64 of 16, 24 or 32 bytes; a secret
	VerifyIncoming            bool          `key:"encrypt_verify_incoming"`
	VerifyOutgoing            bool          `key:"encrypt_verify_outgoing"`
	DisableKeyringFile        bool          `key:"disable_keyring_file"`
	LAN                       GossipPool    `key:"gossip_lan"`
	WAN                       GossipPool    `key:"gossip_wan"`
	ReconnectTimeout          time.Duration `key:"reconnect_timeout"`           // reap failed LAN members
	ReconnectTimeoutWAN       time.Duration `key:"reconnect_timeout_wan"`       // reap failed WAN members
	AdvertiseReconnectTimeout time.Duration `key:"advertise_reconnect_timeout"` // clients; 0 uses the servers' own
	CoordinateUpdatePeriod    time.Duration // how often coordinates go to the servers
}

// A GossipPool tunes one gossip pool.
type GossipPool struct {
	Nodes          int           `key:"gossip_nodes"`
	Interval       time.Duration `key:"gossip_interval"`
	ProbeInterval  time.Duration `key:"probe_interval"`
	ProbeTimeout   time.Duration `key:"probe_timeout"`
	SuspicionMult  int           `key:"suspicion_mult"`
	RetransmitMult int           `key:"retransmit_mult"`
}

// TLS holds one stanza per listener, each completed from Defaults.
type TLS struct {
	Defaults    TLSStanza `key:"tls.defaults" reload:"yes"`
	InternalRPC TLSStanza `key:"tls.internal_rpc" reload:"yes"`
	HTTPS       TLSStanza `key:"tls.https" reload:"yes"`
	GRPC        TLSStanza `key:"tls.grpc" reload:"yes"`
	ServerName  string    `key:"server_name"` // overrides the name presented when this agent connects
}

// A TLSStanza configures the TLS of one kind of connection.
type TLSStanza struct {
	CAFile               string `key:"ca_file"`
	CAPath               string `key:"ca_path"`
	CertFile             string `key:"cert_file"`
	KeyFile              string `key:"key_file"`
	MinVersion           string `key:"tls_min_version"`        // TLS_AUTO, TLSv1_0 … TLSv1_3
	CipherSuites         string `key:"tls_cipher_suites"`      // comma-separated; empty is Go's choice
	VerifyIncoming       bool   `key:"verify_incoming"`        // demand client certificates
	VerifyOutgoing       bool   `key:"verify_outgoing"`        // use TLS and verify the server
	VerifyServerHostname bool   `key:"verify_server_hostname"` // implies VerifyOutgoing
	UseAutoCert          bool   `key:"use_auto_cert"`          // grpc only
}

// AutoEncrypt distributes certificates from servers to clients.
type AutoEncrypt struct {
	TLS      bool     `key:"tls"`       // clients: ask for one
	AllowTLS bool     `key:"allow_tls"` // servers: answer; turns connect on
	DNSSAN   []string `key:"dns_san"`
	IPSAN    []string `key:"ip_san"` // only those that parse
}

// AutoConfig fetches a client's configuration from the servers with a JWT.
type AutoConfig struct {
	Enabled         bool           `key:"enabled"`
	IntroToken      string         `key:"intro_token" secret:"yes"` // a secret; the environment wins
	IntroTokenFile  string         `key:"intro_token_file"`
	ServerAddresses []string       // server_addresses, expanded
	DNSSANs         []string       `key:"dns_sans"`
	IPSANs          []string       `key:"ip_sans"`
	Authorization   bool           `key:"authorization.enabled"`
	Static          AutoConfigAuth `key:"authorization.static"`
}

// JoinTokens let machines join by tokens that this server's cluster makes.
type JoinTokens struct {
	// CAKeyFile is the key of the authority in tls.internal_rpc.ca_file. A server that has it signs its own certificate,
	// keeps that current in cert_file, and tells the key to servers that join. Empty turns join tokens off.
	CAKeyFile string `key:"ca_key_file"`
}

// AutoConfigAuth says which JWTs a server accepts for AutoConfig.
type AutoConfigAuth struct {
	OIDCDiscoveryURL     string            `key:"oidc_discovery_url"`
	OIDCDiscoveryCACert  string            `key:"oidc_discovery_ca_cert"`
	JWKSURL              string            `key:"jwks_url"`
	JWKSCACert           string            `key:"jwks_ca_cert"`
	JWTValidationPubKeys []string          `key:"jwt_validation_pub_keys"`
	BoundAudiences       []string          `key:"bound_audiences"`
	BoundIssuer          string            `key:"bound_issuer"`
	JWTSupportedAlgs     []string          `key:"jwt_supported_algs"`
	ClaimMappings        map[string]string `key:"claim_mappings"`
	ListClaimMappings    map[string]string `key:"list_claim_mappings"`
	ClaimAssertions      []string          `key:"claim_assertions"` // may use ${node}
	AllowReuse           bool              `key:"allow_reuse"`
	ExpirationLeeway     time.Duration     `key:"expiration_leeway"`
	NotBeforeLeeway      time.Duration     `key:"not_before_leeway"`
	ClockSkewLeeway      time.Duration     `key:"clock_skew_leeway"`
}

// WorkloadAPI holds the settings of the SPIFFE Workload API.
type WorkloadAPI struct {
	Socket string         `key:"socket"`            // path of the UNIX socket; empty is off
	Rules  []WorkloadRule `key:"rule" reload:"yes"` // which processes are which services
}

// A WorkloadRule says which processes are a service; all that is set must fit, and something must be.
type WorkloadRule struct {
	Service string `key:"service"`
	UID     *int   `key:"uid"`    // user of the process
	GID     *int   `key:"gid"`    // its group
	Path    string `key:"path"`   // of its executable
	Cgroup  string `key:"cgroup"` // its control group, or one above it
}

// Connect holds the mesh settings.
type Connect struct {
	Enabled           bool           `key:"enabled"`
	CAProvider        string         `key:"ca_provider"` // consul, vault, aws-pca or plugin:NAME
	CAConfig          map[string]any `key:"ca_config"`   // as written; first bootstrap only
	MeshGatewayWANFed bool           `key:"enable_mesh_gateway_wan_federation"`
	Sidecars          bool           `key:"sidecars"`   // start and supervise a sidecar for each local service that declares one
	NodeProxy         bool           `key:"node_proxy"` // the same, but all in one process
}

// DNS holds the settings of the DNS server.
type DNS struct {
	Domain             string                   `key:"domain"`     // with a final dot
	AltDomain          string                   `key:"alt_domain"` // with a final dot; default "sarn."
	Recursors          []string                 `reload:"yes"`     // host:port each
	AllowStale         bool                     `key:"dns_config.allow_stale" reload:"yes"`
	MaxStale           time.Duration            `key:"dns_config.max_stale" reload:"yes"`
	NodeTTL            time.Duration            `key:"dns_config.node_ttl" reload:"yes"`
	ServiceTTL         map[string]time.Duration `key:"dns_config.service_ttl" reload:"yes"` // a "*" suffix makes a name a prefix
	OnlyPassing        bool                     `key:"dns_config.only_passing" reload:"yes"`
	UDPAnswerLimit     int                      `key:"dns_config.udp_answer_limit" reload:"yes"`
	UDPAnswerRate      int                      `key:"dns_config.udp_answer_rate" reload:"yes"`
	TrustedNetworks    []netip.Prefix           // dns_config.trusted_networks; nil means dns.TrustedNetworks
	AllowRecursionFrom []netip.Prefix           // dns_config.allow_recursion_from; nil allows any
	ARecordLimit       int                      `key:"dns_config.a_record_limit" reload:"yes"`
	EnableTruncate     bool                     `key:"dns_config.enable_truncate" reload:"yes"`
	DisableCompression bool                     `key:"dns_config.disable_compression" reload:"yes"`
	RecursorStrategy   string                   `key:"dns_config.recursor_strategy" reload:"yes"` // sequential or random
	RecursorTimeout    time.Duration            `key:"dns_config.recursor_timeout" reload:"yes"`
	NodeMetaTXT        bool                     `key:"dns_config.enable_additional_node_meta_txt" reload:"yes"`
	SOARefresh         int                      `key:"dns_config.soa.refresh" reload:"yes"` // seconds, like the next three
	SOARetry           int                      `key:"dns_config.soa.retry" reload:"yes"`
	SOAExpire          int                      `key:"dns_config.soa.expire" reload:"yes"`
	SOAMinTTL          int                      `key:"dns_config.soa.min_ttl" reload:"yes"`
	UseCache           bool                     `key:"dns_config.use_cache" reload:"yes"`
	CacheMaxAge        time.Duration            `key:"dns_config.cache_max_age" reload:"yes"`
}

// HTTP holds the settings of the HTTP API.
type HTTP struct {
	ResponseHeaders          map[string]string `key:"http_config.response_headers"`
	BlockEndpoints           []string          `key:"http_config.block_endpoints"` // path prefixes
	AllowWriteFrom           []netip.Prefix    // http_config.allow_write_http_from; nil allows any
	UseCache                 bool              `key:"http_config.use_cache"`        // honour ?cached
	MaxHeaderBytes           int               `key:"http_config.max_header_bytes"` // 0 is Go's 1 MiB
	DisableUnprintableFilter bool              `key:"disable_http_unprintable_char_filter"`
}

// Limits protect the agent. Rates are per second; a negative rate is no limit.
type Limits struct {
	HTTPMaxConnsPerClient int           `key:"http_max_conns_per_client" reload:"yes"`
	HTTPSHandshakeTimeout time.Duration `key:"https_handshake_timeout"`
	RPCHandshakeTimeout   time.Duration `key:"rpc_handshake_timeout"`
	RPCClientTimeout      time.Duration `key:"rpc_client_timeout" reload:"yes"`
	RPCRate               float64       `key:"rpc_rate" reload:"yes"`
	RPCMaxBurst           int           `key:"rpc_max_burst" reload:"yes"`
	RPCMaxConnsPerClient  int           `key:"rpc_max_conns_per_client" reload:"yes"`
	RequestMode           string        `key:"request_limits.mode" reload:"yes"` // disabled, permissive or enforcing
	RequestReadRate       float64       `key:"request_limits.read_rate" reload:"yes"`
	RequestWriteRate      float64       `key:"request_limits.write_rate" reload:"yes"`
	KVMaxValueSize        int           `key:"kv_max_value_size"` // bytes
	TxnMaxReqLen          int           `key:"txn_max_req_len"`   // bytes; the larger of the two applies to transactions
}

// Performance scales timeouts.
type Performance struct {
	RaftMultiplier         int           `key:"raft_multiplier" reload:"yes"` // 1 to 10, of 1 s heartbeat, 1 s election, 500 ms lease
	LeaveDrainTime         time.Duration `key:"leave_drain_time"`
	RPCHoldTimeout         time.Duration `key:"rpc_hold_timeout"` // retry while there is no leader
	GRPCKeepaliveInterval  time.Duration `key:"grpc_keepalive_interval"`
	GRPCKeepaliveTimeout   time.Duration `key:"grpc_keepalive_timeout"`
	EnableXDSLoadBalancing bool          `key:"enable_xds_load_balancing"`
}

// Raft tunes consensus and its log.
type Raft struct {
	ProtocolVersion      int           `key:"raft_protocol"`
	SnapshotThreshold    int           `key:"raft_snapshot_threshold" reload:"yes"` // log entries
	SnapshotInterval     time.Duration `key:"raft_snapshot_interval" reload:"yes"`
	TrailingLogs         int           `key:"raft_trailing_logs" reload:"yes"`
	PrevoteDisabled      bool          `key:"raft_prevote_disabled"`
	Backend              string        `key:"raft_logstore.backend"` // boltdb, wal, or empty for the default
	DisableLogCache      bool          `key:"raft_logstore.disable_log_cache"`
	VerificationEnabled  bool          `key:"raft_logstore.verification.enabled"`
	VerificationInterval time.Duration `key:"raft_logstore.verification.interval"`
	NoFreelistSync       bool          `key:"raft_logstore.boltdb.no_freelist_sync"`
	SegmentSizeMB        int           `key:"raft_logstore.wal.segment_size_mb"` // 1 to 1024

	// Timeouts after RaftMultiplier was applied.
	HeartbeatTimeout   time.Duration
	ElectionTimeout    time.Duration
	LeaderLeaseTimeout time.Duration
}

// Autopilot holds initial values; afterwards the operator API rules.
type Autopilot struct {
	CleanupDeadServers      bool          `key:"cleanup_dead_servers"`
	LastContactThreshold    time.Duration `key:"last_contact_threshold"`
	MaxTrailingLogs         int           `key:"max_trailing_logs"`
	MinQuorum               int           `key:"min_quorum"`
	ServerStabilizationTime time.Duration `key:"server_stabilization_time"`
	RedundancyZoneTag       string        `key:"redundancy_zone_tag"`
	DisableUpgradeMigration bool          `key:"disable_upgrade_migration"`
	UpgradeVersionTag       string        `key:"upgrade_version_tag"`
}

// UI configures the web console.
type UI struct {
	Enabled                    bool              `key:"enabled"`
	Dir                        string            `key:"dir"`          // not together with Enabled
	ContentPath                string            `key:"content_path"` // begins and ends with a slash
	MetricsProvider            string            `key:"metrics_provider"`
	MetricsProviderFiles       []string          `key:"metrics_provider_files"`
	MetricsProviderOptionsJSON string            `key:"metrics_provider_options_json"`
	MetricsProxyURL            string            `key:"metrics_proxy.base_url"`
	MetricsProxyPaths          []string          `key:"metrics_proxy.path_allowlist"`
	MetricsProxyHeaders        []Header          `key:"metrics_proxy.add_headers"`
	DashboardURLTemplates      map[string]string `key:"dashboard_url_templates"`
}

// A Header is one HTTP header added to a proxied request.
type Header struct {
	Name  string `key:"name"`
	Value string `key:"value"`
}

// Telemetry configures metrics and where they go.
type Telemetry struct {
	Prefix                     string            `key:"metrics_prefix"`
	DisableHostname            bool              `key:"disable_hostname"`
	FilterDefault              bool              `key:"filter_default"`
	PrefixFilter               []string          `key:"prefix_filter" reload:"yes"`
	Allowed                    []string          // prefixes of PrefixFilter that begin with +
	Blocked                    []string          // prefixes of PrefixFilter that begin with -
	PrometheusRetention        time.Duration     `key:"prometheus_retention_time"` // 0 turns the Prometheus form off
	StatsiteAddr               string            `key:"statsite_address" reload:"yes"`
	StatsdAddr                 string            `key:"statsd_address" reload:"yes"`
	DogstatsdAddr              string            `key:"dogstatsd_addr" reload:"yes"`
	DogstatsdTags              []string          `key:"dogstatsd_tags" reload:"yes"`
	RetryFailedConnection      bool              `key:"retry_failed_connection"`
	DisablePerTenancyUsage     bool              `key:"disable_per_tenancy_usage_metrics"`
	EnableHostMetrics          bool              `key:"enable_host_metrics"`
	OTLPEndpoint               string            `key:"otlp.endpoint" reload:"yes"` // URL of a collector, without /v1/metrics and /v1/traces
	OTLPHeaders                map[string]string `key:"otlp.headers" reload:"yes"`  // they may be secrets
	OTLPCAFile                 string            `key:"otlp.ca_file" reload:"yes"`
	OTLPMetrics                bool              `key:"otlp.metrics" reload:"yes"`
	OTLPTraces                 bool              `key:"otlp.traces" reload:"yes"`
	OTLPTraceSampling          float64           `key:"otlp.trace_sampling" reload:"yes"` // share of requests, 0 to 1
	CirconusAPIToken           string            `key:"circonus_api_token" secret:"yes"`
	CirconusAPIApp             string            `key:"circonus_api_app"`
	CirconusAPIURL             string            `key:"circonus_api_url"`
	CirconusSubmissionInterval string            `key:"circonus_submission_interval"`
	CirconusSubmissionURL      string            `key:"circonus_submission_url"`
	CirconusCheckID            string            `key:"circonus_check_id"`
	CirconusForceMetric        string            `key:"circonus_check_force_metric_activation"`
	CirconusCheckInstanceID    string            `key:"circonus_check_instance_id"`
	CirconusCheckSearchTag     string            `key:"circonus_check_search_tag"`
	CirconusCheckTags          string            `key:"circonus_check_tags"`
	CirconusCheckDisplayName   string            `key:"circonus_check_display_name"`
	CirconusBrokerID           string            `key:"circonus_broker_id"`
	CirconusBrokerSelectTag    string            `key:"circonus_broker_select_tag"`
}

// Log says where log lines go and which.
type Log struct {
	Level          string        `key:"log_level" reload:"yes"` // as written; ParseLevel checks it
	JSON           bool          `key:"log_json"`
	File           string        `key:"log_file"` // a final slash means a default name in that folder
	RotateBytes    int           `key:"log_rotate_bytes"`
	RotateDuration time.Duration `key:"log_rotate_duration"`
	RotateMaxFiles int           `key:"log_rotate_max_files"` // 0 keeps all, -1 none
	Syslog         bool          `key:"enable_syslog"`
	SyslogFacility string        `key:"syslog_facility"`
}

// XDS limits the configuration streams of proxies.
type XDS struct {
	UpdateMaxPerSecond float64 `key:"update_max_per_second" reload:"yes"`
}

// Cache limits how fast one cache entry is refreshed.
type Cache struct {
	EntryFetchMaxBurst int     `key:"entry_fetch_max_burst" reload:"yes"`
	EntryFetchRate     float64 `key:"entry_fetch_rate" reload:"yes"` // per second; default unlimited (+Inf)
}

// UnixSockets applies to every unix listener. Empty fields change nothing.
type UnixSockets struct {
	User  string `key:"user"`
	Group string `key:"group"`
	Mode  string `key:"mode"` // octal
}
