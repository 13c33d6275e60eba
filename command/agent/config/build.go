package config

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"net/url"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// build decodes the merged tree, completes the settings and checks them.
func (b *builder) build() {
	root.decode(b.tree, reflect.ValueOf(b.doc).Elem(), "", func(n *node, key, format string, args ...any) {
		b.problems = append(b.problems, &KeyError{Key: key, Pos: n.pos, Text: fmt.Sprintf(format, args...)})
	})
	b.derive()
	b.definitions()
	b.checkServer()
	b.checkNode()
	b.checkConnect()
	b.checkWorkloads()
	b.checkTLS()
	b.checkAuto()
	b.checkJoinTokens()
	b.checkDNS()
	b.checkLimits()
	b.checkRaft()
	b.checkUI()
	b.checkTelemetry()
	b.checkRest()
	b.resolveAddresses()
	if len(b.problems) == 0 {
		b.doc.Settings.Node.TaggedAddresses = b.doc.Settings.taggedAddresses()
	}
}

// derive fills in defaults that depend on other settings, and brings values into the form they are used in.
func (b *builder) derive() {
	s := &b.doc.Settings
	if !b.has("leave_on_terminate") {
		s.LeaveOnTerminate = !s.Server
	}
	if !b.has("skip_leave_on_interrupt") {
		s.SkipLeaveOnInterrupt = s.Server
	}
	if !b.has("rpc.enable_streaming") {
		s.EnableRPCStreaming = s.Server
	}
	if !b.has("ports.grpc_tls") && s.Server {
		s.Ports.GRPCTLS = 8503
	}
	if !b.has("enable_local_script_checks") {
		s.Check.EnableLocalScripts = s.Check.EnableScripts
	}
	if s.Query.SessionTTLMin == 0 {
		s.Query.SessionTTLMin = 10 * time.Second
	}
	if s.ACL.RoleTTL == 0 {
		s.ACL.RoleTTL = s.ACL.PolicyTTL
	}
	s.Node.Name = strings.TrimSpace(s.Node.Name)
	if s.Node.Name == "" {
		name, err := b.src.Hostname()
		if err != nil {
			b.fail("node_name", "Error determining node name: %v", err)
		}
		s.Node.Name = name
	}
	s.Node.ID = strings.ToLower(s.Node.ID)
	s.Node.Datacenter = strings.ToLower(s.Node.Datacenter)
	s.Node.PrimaryDatacenter = strings.ToLower(s.Node.PrimaryDatacenter)
	if s.Node.PrimaryDatacenter == "" {
		s.Node.PrimaryDatacenter = s.Node.Datacenter
	}
	s.DNS.Domain = fqdn(s.DNS.Domain)
	if s.DNS.AltDomain != "" {
		s.DNS.AltDomain = fqdn(s.DNS.AltDomain)
	}
	s.UI.ContentPath = "/" + strings.Trim(s.UI.ContentPath, "/") + "/"
	if s.UI.ContentPath == "//" {
		s.UI.ContentPath = "/"
	}
	for _, name := range []string{"SARN_INTRO_TOKEN", "CONSUL_INTRO_TOKEN"} {
		if v, ok := b.src.LookupEnv(name); ok && v != "" {
			s.AutoConfig.IntroToken = v
			break
		}
	}
	if s.AutoEncrypt.AllowTLS || s.AutoConfig.Authorization {
		s.Connect.Enabled = true
	}
	if s.BootstrapExpect == 1 && !s.Dev && s.Server && !s.Bootstrap {
		s.Bootstrap, s.BootstrapExpect = true, 0
		b.warn("BootstrapExpect is set to 1; this is the same as Bootstrap mode.")
	}
	if s.Dev && !b.has("performance.raft_multiplier") {
		return // the timeouts of dev mode stand as they are
	}
	if b.has("performance.raft_multiplier") || !s.Dev {
		m := time.Duration(s.Performance.RaftMultiplier)
		s.Raft.HeartbeatTimeout, s.Raft.ElectionTimeout, s.Raft.LeaderLeaseTimeout = m*time.Second, m*time.Second, m*500*time.Millisecond
	}
}

func fqdn(s string) string { return strings.TrimSuffix(strings.ToLower(s), ".") + "." }

// atLeastZero reports a negative number.
func atLeastZero[N int | time.Duration](b *builder, key string, n N) {
	if n < 0 {
		b.fail(key, "%s cannot be %v. Must be greater than or equal to zero", key, n)
	}
}

func (b *builder) checkServer() {
	s := &b.doc.Settings
	if s.DataDir == "" && !s.Dev {
		b.fail("data_dir", "data_dir cannot be empty")
	}
	if s.DataDir != "" {
		if info, err := os.Stat(s.DataDir); err == nil && !info.IsDir() {
			b.fail("data_dir", "data_dir %q is not a directory", s.DataDir)
		} else if err != nil && !errors.Is(err, os.ErrNotExist) {
			b.fail("data_dir", "Error getting info on data_dir: %v", err)
		}
	}
	atLeastZero(b, "bootstrap_expect", s.BootstrapExpect)
	expect := s.BootstrapExpect > 0
	switch {
	case s.Bootstrap && !s.Server:
		b.fail("bootstrap", "'bootstrap = true' requires 'server = true'")
	case expect && s.Dev:
		b.fail("bootstrap_expect", "'bootstrap_expect > 0' not allowed in dev mode")
	case s.Bootstrap && s.ReadReplica && !s.Dev:
		b.fail("read_replica", "'bootstrap = true' and 'read_replica = true' are mutually exclusive")
	case expect && s.Bootstrap:
		b.fail("bootstrap_expect", "'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive")
	case expect && !s.Server:
		b.fail("bootstrap_expect", "'bootstrap_expect > 0' requires 'server = true'")
	case expect:
		if s.BootstrapExpect == 2 {
			b.warn("bootstrap_expect = 2: A cluster with 2 servers will provide no failure tolerance. See https://developer.hashicorp.com/consul/docs/architecture/consensus#deployment-table")
		} else if s.BootstrapExpect%2 == 0 {
			b.warn("bootstrap_expect is even number: A cluster with an even number of servers does not achieve optimum fault tolerance.")
		}
		b.warn("bootstrap_expect > 0: expecting %d servers", s.BootstrapExpect)
	case s.Bootstrap:
		b.warn("bootstrap = true: do not enable unless necessary")
	}
	if s.Dev && s.ReadReplica {
		b.warn("read_replica = true has no effect in dev mode: a server alone must vote")
		s.ReadReplica = false
	}
	for _, key := range []string{
		"read_replica", "autopilot.disable_upgrade_migration", "autopilot.redundancy_zone_tag", "autopilot.upgrade_version_tag",
	} {
		if !s.Server && b.has(key) {
			b.warn("%q is a setting of servers and will have no effect", key)
		}
	}
	if b.has("rpc.enable_streaming") && s.EnableRPCStreaming && !s.Server {
		b.warn("rpc.enable_streaming = true has no effect when not running in server mode")
	}
	if s.Gossip.AdvertiseReconnectTimeout != 0 && s.Server {
		b.fail("advertise_reconnect_timeout", "advertise_reconnect_timeout can only be used on a client")
	}
	if least := 6 * time.Hour; s.ServerRejoinAgeMax < least {
		b.fail("server_rejoin_age_max", "server_rejoin_age_max: duration '%s' cannot be less than: %s", b.tree.find("server_rejoin_age_max"), least)
	}
	if len(b.doc.Written.PrimaryGateways) > 0 {
		if !s.Server {
			b.fail("primary_gateways", "'primary_gateways' requires 'server = true'")
		} else if s.Node.PrimaryDatacenter == s.Node.Datacenter {
			b.fail("primary_gateways", "'primary_gateways' should only be configured in a secondary datacenter")
		}
	}
	if b.has("segment") || b.has("segments") {
		key := map[bool]string{true: "segment", false: "segments"}[b.has("segment")]
		b.fail(key, "Network segments are not supported in this version of Sarn")
	}
	if s.Check.EnableScripts && !s.ACL.Enabled && len(b.doc.Written.AllowWriteFrom) == 0 {
		b.warn("using enable-script-checks without ACLs and without allow_write_http_from is DANGEROUS, use enable-local-script-checks instead, see https://www.hashicorp.com/blog/protecting-consul-from-rce-risk-in-specific-configurations/")
	}
}

var (
	datacenterName = regexp.MustCompile(`^[a-z0-9_-]+$`)
	nodeName       = regexp.MustCompile(`^[A-Za-z0-9-]+$`)
	metaKey        = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)
)

func (b *builder) checkNode() {
	s := &b.doc.Settings
	switch dc := s.Node.Datacenter; {
	case dc == "":
		b.fail("datacenter", "datacenter cannot be empty")
	case !datacenterName.MatchString(dc):
		b.fail("datacenter", "datacenter can only contain lowercase alphanumeric, - or _ characters. received: %q", dc)
	case strings.Contains(dc, "_"):
		b.warn("Datacenter name %q will not be PKI X.509 compatible, as it contains the character '_'", dc)
	}
	if dc := s.Node.PrimaryDatacenter; dc != "" && dc != s.Node.Datacenter && !datacenterName.MatchString(dc) {
		b.fail("primary_datacenter", "primary_datacenter can only contain lowercase alphanumeric, - or _ characters. received: %q", dc)
	}
	switch name := s.Node.Name; {
	case !nodeName.MatchString(name):
		b.warn("Node name %q will not be discoverable via DNS due to invalid characters. Valid characters include all alpha-numerics and dashes.", name)
	case len(name) > 63:
		b.warn("Node name %q will not be discoverable via DNS due to it being too long. Valid lengths are between 1 and 63 bytes.", name)
	}
	if len(s.Node.Meta) > 64 {
		b.fail("node_meta", "node_meta invalid: Node metadata cannot contain more than 64 key/value pairs")
	}
	for _, k := range slices.Sorted(maps.Keys(s.Node.Meta)) {
		if why := metaProblem(k, s.Node.Meta[k]); why != "" {
			b.fail("node_meta", "node_meta invalid: Couldn't load metadata pair ('%s', '%s'): %s", k, s.Node.Meta[k], why)
		}
	}
	if s.Node.Zone != "" && s.Node.Region == "" {
		b.fail("locality.zone", "locality is invalid: zone cannot be set without region")
	}
}

// metaProblem says what is wrong with a pair of node metadata, empty if nothing is.
func metaProblem(k, v string) string {
	switch {
	case k == "":
		return "Key cannot be blank"
	case !metaKey.MatchString(k):
		return "Key contains invalid characters"
	case len(k) > 128:
		return "Key is too long (limit: 128 characters)"
	case strings.HasPrefix(k, "consul-"):
		return "Key prefix 'consul-' is reserved for internal use"
	case len(v) > 512:
		return "Value is too long (limit: 512 characters)"
	}
	return ""
}

func (b *builder) checkConnect() {
	s := &b.doc.Settings
	if p := s.Connect.CAProvider; !slices.Contains([]string{"consul", "vault", "aws-pca"}, p) && !strings.HasPrefix(p, "plugin:") {
		b.fail("connect.ca_provider", "%s is not a valid CA provider", p)
	}
	if s.Connect.CAProvider == "consul" && s.Server {
		for _, key := range []string{"leaf_cert_ttl", "LeafCertTTL"} {
			text, ok := s.Connect.CAConfig[key].(string)
			if !ok {
				continue
			}
			d, err := time.ParseDuration(text)
			if err != nil {
				b.fail("connect.ca_config."+key, "connect.ca_config.%s: invalid duration: %q: %v", key, text, err)
			} else if d < time.Hour {
				b.fail("connect.ca_config."+key, "leaf cert TTL must be greater or equal than 1h0m0s, got %s", d)
			}
		}
	}
	if s.Connect.MeshGatewayWANFed {
		if !s.Server {
			b.fail("connect.enable_mesh_gateway_wan_federation", "'connect.enable_mesh_gateway_wan_federation = true' requires 'server = true'")
		}
		if len(b.doc.Written.RetryJoinWAN) > 0 {
			b.fail("retry_join_wan", "'retry_join_wan' is incompatible with 'connect.enable_mesh_gateway_wan_federation = true'")
		}
		if strings.Contains(s.Node.Name, "/") {
			b.fail("node_name", "'connect.enable_mesh_gateway_wan_federation = true' requires that 'node_name' not contain '/' characters")
		}
	}
	for i, doc := range b.doc.Written.ConfigEntries {
		e, err := entry.Decode(doc)
		if err == nil {
			e.Normalize()
			err = e.Validate()
		}
		if err != nil {
			for _, err := range flatten(err) {
				b.failIn("config_entries.bootstrap", i, "config_entries.bootstrap[%d]: %v", i, err)
			}
			continue
		}
		s.ConfigEntries = append(s.ConfigEntries, e)
	}
}

// checkWorkloads checks the rules for workloads: one that says too little would make anybody a service.
func (b *builder) checkWorkloads() {
	w := &b.doc.Settings.WorkloadAPI
	if w.Socket == "" && len(w.Rules) > 0 {
		b.fail("workload_api.rule", "workload_api.rule has no effect without workload_api.socket")
	}
	for i, r := range w.Rules {
		if r.Service == "" || r.Service == "*" {
			b.fail("workload_api.rule", "workload_api.rule[%d] must name a service", i)
		}
		if r.UID == nil && r.GID == nil && r.Path == "" && r.Cgroup == "" {
			b.fail("workload_api.rule", "workload_api.rule[%d] must say at least one of uid, gid, path and cgroup", i)
		}
		for _, id := range []*int{r.UID, r.GID} {
			if id != nil && (*id < 0 || *id > math.MaxUint32) {
				b.fail("workload_api.rule", "workload_api.rule[%d]: %d is no user or group", i, *id)
			}
		}
	}
}

func (b *builder) checkDNS() {
	s := &b.doc.Settings
	atLeastZero(b, "dns_config.udp_answer_limit", s.DNS.UDPAnswerLimit)
	atLeastZero(b, "dns_config.a_record_limit", s.DNS.ARecordLimit)
	atLeastZero(b, "dns_config.udp_answer_rate", s.DNS.UDPAnswerRate)
	if st := s.DNS.RecursorStrategy; st != "" && st != "sequential" && st != "random" {
		b.fail("dns_config.recursor_strategy", "dns_config.recursor_strategy: invalid strategy: %q", st)
	}
	if s.DNS.RecursorStrategy == "" {
		s.DNS.RecursorStrategy = "sequential"
	}
	first, _, _ := strings.Cut(s.DNS.AltDomain, ".")
	reserved := []string{"service", "connect", "node", "query", "addr", s.Node.Datacenter}
	if s.DNS.AltDomain != "" && slices.Contains(reserved, first) {
		if !b.has("alt_domain") {
			s.DNS.AltDomain = "" // the default gives way to the name of the datacenter
			return
		}
		b.fail("alt_domain", "alt_domain cannot start with {%s}", strings.Join(reserved, ","))
	}
}

func (b *builder) checkLimits() {
	s := &b.doc.Settings
	if m := s.Limits.RequestMode; m != "disabled" && m != "permissive" && m != "enforcing" {
		b.fail("limits.request_limits.mode", "limits.request_limits.mode: invalid mode: %q", m)
	}
	if s.Cache.EntryFetchRate <= 0 {
		b.fail("cache.entry_fetch_rate", "cache.entry_fetch_rate must be strictly positive, was: %v", s.Cache.EntryFetchRate)
	}
	if s.Cache.EntryFetchMaxBurst <= 0 {
		b.fail("cache.entry_fetch_max_burst", "cache.entry_fetch_max_burst must be strictly positive, was: %v", s.Cache.EntryFetchMaxBurst)
	}
	atLeastZero(b, "http_config.max_header_bytes", s.HTTP.MaxHeaderBytes)
	const spare = 20 // for the log, the store, the listeners
	if most, err := b.src.MaxFiles(); err == nil && most > 0 && s.Limits.HTTPMaxConnsPerClient > 0 &&
		uint64(s.Limits.HTTPMaxConnsPerClient) > max(most, spare)-spare {
		b.fail("limits.http_max_conns_per_client", "system allows a max of %d file descriptors, but limits.http_max_conns_per_client: %d needs at least %d",
			most, s.Limits.HTTPMaxConnsPerClient, s.Limits.HTTPMaxConnsPerClient+spare)
	}
}

func (b *builder) checkRaft() {
	s := &b.doc.Settings
	if s.Raft.ProtocolVersion != 3 {
		b.fail("raft_protocol", "raft_protocol version %d is not supported by this version of Sarn", s.Raft.ProtocolVersion)
	}
	if m := s.Performance.RaftMultiplier; m < 1 || m > 10 {
		b.fail("performance.raft_multiplier", "performance.raft_multiplier cannot be %d. Must be between 1 and 10", m)
	}
	if be := s.Raft.Backend; be != "" && be != "boltdb" && be != "wal" {
		b.fail("raft_logstore.backend", "raft_logstore.backend must be one of 'boltdb' or 'wal'")
	}
	if mb := s.Raft.SegmentSizeMB; mb < 1 || mb > 1024 {
		b.fail("raft_logstore.wal.segment_size_mb", "raft_logstore.wal.segment_size_mb cannot be less than 1 or greater than 1024")
	}
	atLeastZero(b, "raft_logstore.verification.interval", s.Raft.VerificationInterval)
	atLeastZero(b, "autopilot.max_trailing_logs", s.Autopilot.MaxTrailingLogs)
	atLeastZero(b, "autopilot.min_quorum", s.Autopilot.MinQuorum)
	for key, d := range map[string]*time.Duration{
		"performance.grpc_keepalive_interval": &s.Performance.GRPCKeepaliveInterval,
		"performance.grpc_keepalive_timeout":  &s.Performance.GRPCKeepaliveTimeout,
	} {
		if *d < time.Second {
			b.fail(key, "%s: duration '%s' cannot be less than: 1s", key, *d)
		}
	}
}

var (
	contentPath     = regexp.MustCompile(`^[A-Za-z0-9/_-]+$`)
	versionedPath   = regexp.MustCompile(`^/v\d+/`)
	metricsProvider = regexp.MustCompile(`^[a-z0-9-_]+$`)
	dashboardMarks  = regexp.MustCompile(`\{\{[^}]*\}\}`)
	prometheusPaths = []string{"/api/v1/query", "/api/v1/query_range"}
)

func (b *builder) checkUI() {
	ui := &b.doc.Settings.UI
	if ui.Dir != "" && ui.Enabled {
		if b.has("ui_config.enabled") {
			b.fail("ui_config.dir", "Both the ui_config.enabled and ui_config.dir (or -ui and -ui-dir) were specified, please provide only one. If trying to use your own web UI resources, use ui_config.dir or the -ui-dir flag. The web UI is included in the binary so use ui_config.enabled or the -ui flag to enable it")
		}
		ui.Enabled = false // by dev mode only
	}
	if !contentPath.MatchString(ui.ContentPath) {
		b.fail("ui_config.content_path", "ui-content-path can only contain alphanumeric, -, _, or /. received: %q", ui.ContentPath)
	} else if versionedPath.MatchString(ui.ContentPath) {
		b.fail("ui_config.content_path", "ui-content-path cannot have 'v[0-9]'. received: %q", ui.ContentPath)
	}
	if p := ui.MetricsProvider; p != "" && !metricsProvider.MatchString(p) {
		b.fail("ui_config.metrics_provider", "ui_config.metrics_provider can only contain lowercase alphanumeric, - or _ characters. received: %q", p)
	}
	if o := ui.MetricsProviderOptionsJSON; o != "" {
		var any map[string]any
		if err := json.Unmarshal([]byte(o), &any); err != nil {
			b.fail("ui_config.metrics_provider_options_json", "ui_config.metrics_provider_options_json must be empty or a string containing a valid JSON object.")
		}
	}
	if u := ui.MetricsProxyURL; u != "" && !isHTTP(u) {
		b.fail("ui_config.metrics_proxy.base_url", "ui_config.metrics_proxy.base_url must be a valid http or https URL. received: %q", u)
	}
	for _, p := range ui.MetricsProxyPaths {
		if !strings.HasPrefix(p, "/") {
			b.fail("ui_config.metrics_proxy.path_allowlist", "ui_config.metrics_proxy.path_allowlist: path %q is not an absolute path", p)
		}
	}
	if ui.MetricsProxyURL != "" && len(ui.MetricsProxyPaths) == 0 && ui.MetricsProvider == "prometheus" {
		if base, err := url.Parse(ui.MetricsProxyURL); err == nil {
			for _, p := range prometheusPaths {
				ui.MetricsProxyPaths = append(ui.MetricsProxyPaths, path.Join("/", base.Path, p))
			}
		}
	}
	known := []string{"{{Service.Name}}", "{{Service.Namespace}}", "{{Service.Partition}}", "{{Datacenter}}"}
	for _, name := range slices.Sorted(maps.Keys(ui.DashboardURLTemplates)) {
		t := ui.DashboardURLTemplates[name]
		if !metricsProvider.MatchString(name) {
			b.fail("ui_config.dashboard_url_templates", "ui_config.dashboard_url_templates key names can only contain lowercase alphanumeric, - or _ characters. received: %q", name)
		}
		bad := !isHTTP(dashboardMarks.ReplaceAllString(t, "x"))
		for _, mark := range dashboardMarks.FindAllString(t, -1) {
			bad = bad || !slices.Contains(known, strings.ReplaceAll(mark, " ", ""))
		}
		if bad {
			b.fail("ui_config.dashboard_url_templates", "ui_config.dashboard_url_templates[%q] must be a valid http or https URL template. received: %q", name, t)
		}
	}
}

func isHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

func (b *builder) checkTelemetry() {
	t := &b.doc.Settings.Telemetry
	for _, rule := range t.PrefixFilter {
		switch {
		case rule == "":
			b.warn("Cannot have empty filter rule in prefix_filter")
		case rule[0] == '+':
			t.Allowed = append(t.Allowed, rule[1:])
		case rule[0] == '-':
			t.Blocked = append(t.Blocked, rule[1:])
		default:
			b.warn("Filter rule must begin with either '+' or '-': %q", rule)
		}
	}
	if t.PrometheusRetention < 0 {
		b.fail("telemetry.prometheus_retention_time", "telemetry.prometheus_retention_time: duration '%s' cannot be negative", t.PrometheusRetention)
	}
	if u := t.OTLPEndpoint; u != "" && !isHTTP(u) {
		b.fail("telemetry.otlp.endpoint", "telemetry.otlp.endpoint must be a valid http or https URL")
	}
	if t.OTLPTraces && t.OTLPEndpoint == "" {
		b.fail("telemetry.otlp.traces", "telemetry.otlp.traces has no effect without telemetry.otlp.endpoint")
	}
	if share := t.OTLPTraceSampling; !(share >= 0 && share <= 1) {
		b.fail("telemetry.otlp.trace_sampling", "telemetry.otlp.trace_sampling must be between 0 and 1. received: %v", share)
	}
}

func (b *builder) checkRest() {
	s := &b.doc.Settings
	if s.Check.OutputMaxSize < 1 {
		b.fail("check_output_max_size", "check_output_max_size must be positive, to discard check output use the discard_check_output flag")
	}
	if k := s.Gossip.Key; k != "" {
		if _, err := base64.StdEncoding.DecodeString(k); err != nil {
			b.fail("encrypt", "encrypt has invalid key: %v", err)
		}
	}
	if p := s.DefaultIntentionPolicy; p != "" && p != "allow" && p != "deny" {
		b.fail("default_intention_policy", "default_intention_policy: invalid policy: %q", p)
	}
	for _, r := range []struct {
		name     string
		min, max int
	}{
		{"sidecar", s.Ports.SidecarMin, s.Ports.SidecarMax},
		{"expose", s.Ports.ExposeMin, s.Ports.ExposeMax},
		{"proxy", s.Ports.ProxyMin, s.Ports.ProxyMax},
	} {
		b.port("ports."+r.name+"_min_port", r.min)
		b.port("ports."+r.name+"_max_port", r.max)
		if r.min > r.max {
			b.fail("ports."+r.name+"_min_port", "%s_min_port must be less than %s_max_port. To disable, set both to zero.", r.name, r.name)
		}
	}
	for name, addr := range s.Node.TaggedAddresses {
		if _, err := netip.ParseAddr(addr); err != nil && strings.Contains(name, "_ipv") {
			b.fail("tagged_addresses", "tagged_addresses.%s: invalid ip address: %s", name, addr)
		}
	}
}
