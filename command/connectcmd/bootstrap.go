package connectcmd

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // names a socket, as the other side computes it
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// GRPC is where the control plane is, as bootstrap templates see it.
type GRPC struct {
	AgentAddress, AgentPort string
	AgentTLS                bool
	AgentSocket             string
}

// bootstrapArgs are the facts a bootstrap configuration is made of. Those with exported names are the fields that users'
// templates (envoy_bootstrap_json_tpl) refer to.
type bootstrapArgs struct {
	GRPC                            GRPC
	ProxyCluster, ProxyID, NodeName string
	ProxySourceService              string
	AgentCAPEM                      string // newlines as \n, to stand in a JSON string
	AdminAccessLogConfig            string
	AdminAccessLogPath              string
	AdminBindAddress, AdminBindPort string
	LocalAgentClusterName           string
	Token                           string
	StaticClustersJSON              string
	StaticListenersJSON             string
	StatsSinksJSON                  string
	StatsConfigJSON                 string
	StaticSecretsJSON               string
	StatsFlushInterval              string
	TracingConfigJSON               string
	Namespace, Partition            string
	Datacenter                      string
	PrometheusBackendPort           string
	PrometheusScrapePath            string
	PrometheusCAFile                string
	PrometheusCAPath                string
	PrometheusCertFile              string
	PrometheusKeyFile               string

	caPEM                   string
	omitDeprecated, central bool
	readyAddress, readyPort string
}

// dict is a JSON object.
type dict = map[string]any

// typed is the JSON form of a protobuf Any.
func typed(name string, fields dict) dict {
	out := dict{"@type": "type.googleapis.com/" + name}
	for k, v := range fields {
		out[k] = v
	}
	return out
}

// A bootstrapper collects the parts of one document.
type bootstrapper struct {
	*bootstrapArgs
	conf map[string]any // of the proxy, empty if it is not to be used

	clusters, listeners, secrets, sinks []any
	statsConfig, tracing                any
	flush                               string
}

// bootstrap makes the configuration.
func (a *bootstrapArgs) bootstrap(p *proxyService) ([]byte, error) {
	b := &bootstrapper{bootstrapArgs: a, conf: map[string]any{}}
	if a.central && p.proxy.Config != nil {
		b.conf = p.proxy.Config
	}
	b.clusters = []any{b.agentCluster()}
	b.statsConfig = b.stats()
	b.flush = b.text("envoy_stats_flush_interval")
	for _, part := range []func() error{b.extras, b.sinksFromURLs, b.metricsListeners, b.telemetry} {
		if err := part(); err != nil {
			return nil, err
		}
	}
	if tpl := b.text("envoy_bootstrap_json_tpl"); tpl != "" {
		return b.fromTemplate(tpl, p)
	}
	static := dict{"clusters": b.clusters}
	if len(b.listeners) > 0 {
		static["listeners"] = b.listeners
	}
	if len(b.secrets) > 0 {
		static["secrets"] = b.secrets
	}
	metadata := dict{"namespace": a.Namespace, "partition": a.Partition}
	if a.NodeName != "" {
		metadata["node_name"] = a.NodeName
	}
	ads := func() dict { return dict{"ads": dict{}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"} }
	doc := dict{
		"admin": dict{
			"access_log": b.adminLogs(p),
			"address":    socketAddress(a.AdminBindAddress, a.AdminBindPort),
		},
		"node": dict{"cluster": a.ProxyCluster, "id": a.ProxyID, "metadata": metadata},
		"layered_runtime": dict{"layers": []any{
			dict{"name": "base", "static_layer": dict{"re2.max_program_size.error_level": 1048576}},
		}},
		"static_resources": static,
		"stats_config":     b.statsConfig,
		"dynamic_resources": dict{
			"lds_config": ads(),
			"cds_config": ads(),
			"ads_config": dict{
				"api_type":              "DELTA_GRPC",
				"transport_api_version": "V3",
				"grpc_services": dict{
					"initial_metadata": []any{dict{"key": "x-consul-token", "value": a.Token}},
					"envoy_grpc":       dict{"cluster_name": a.LocalAgentClusterName},
				},
			},
		},
	}
	if len(b.sinks) > 0 {
		doc["stats_sinks"] = b.sinks
	}
	if b.flush != "" {
		doc["stats_flush_interval"] = b.flush
	}
	if b.tracing != nil {
		doc["tracing"] = b.tracing
	}
	return encode(doc)
}

// encode is json.MarshalIndent without escapes for HTML.
func encode(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, verb.Errorf("Error encoding the bootstrap configuration: %w", err)
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}

// text is a key of the proxy's configuration, where numbers may stand for text.
func (b *bootstrapper) text(key string) string {
	switch v := b.conf[key].(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	default:
		return fmt.Sprint(v)
	}
}

// fragments parses JSON values written one after another with commas between them.
func (b *bootstrapper) fragments(key string) ([]any, error) {
	text := strings.TrimSpace(b.text(key))
	if text == "" {
		return nil, nil
	}
	var out []any
	if err := json.Unmarshal([]byte("["+strings.Trim(text, ",\n\t ")+"]"), &out); err != nil {
		return nil, verb.Errorf("Failed to parse %s: %w", key, err)
	}
	return out, nil
}

// extras adds what users write out in full.
func (b *bootstrapper) extras() error {
	for _, to := range []struct {
		key  string
		list *[]any
	}{
		{"envoy_extra_static_clusters_json", &b.clusters},
		{"envoy_extra_static_listeners_json", &b.listeners},
		{"envoy_extra_stats_sinks_json", &b.sinks},
	} {
		more, err := b.fragments(to.key)
		if err != nil {
			return err
		}
		*to.list = append(*to.list, more...)
	}
	for key, to := range map[string]*any{"envoy_stats_config_json": &b.statsConfig, "envoy_tracing_json": &b.tracing} {
		one, err := b.fragments(key)
		if err != nil {
			return err
		}
		if len(one) > 0 {
			*to = one[0]
		}
	}
	return nil
}

func socketAddress(host, port string) dict {
	n, _ := strconv.Atoi(port)
	return dict{"socket_address": dict{"address": host, "port_value": n}}
}

// cluster is a static cluster with one endpoint.
func cluster(name, timeout string, address dict, more dict) dict {
	out := dict{
		"name": name, "connect_timeout": timeout, "type": "STATIC", "ignore_health_on_host_removal": false,
		"loadAssignment": dict{"clusterName": name, "endpoints": []any{dict{"lbEndpoints": []any{
			dict{"endpoint": dict{"address": address}},
		}}}},
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

// http2 makes a cluster speak HTTP/2.
func http2() dict {
	return dict{"typed_extension_protocol_options": dict{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", dict{
			"explicit_http_config": dict{"http2_protocol_options": dict{}},
		}),
	}}
}

// agentCluster is the way to the control plane.
func (b *bootstrapper) agentCluster() dict {
	address := socketAddress(b.GRPC.AgentAddress, b.GRPC.AgentPort)
	if b.GRPC.AgentSocket != "" {
		address = dict{"pipe": dict{"path": b.GRPC.AgentSocket}}
	}
	more := http2()
	if b.GRPC.AgentTLS {
		more["transport_socket"] = dict{"name": "tls", "typed_config": typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", dict{
			"common_tls_context": dict{"validation_context": dict{"trusted_ca": dict{"inline_string": b.caPEM}}},
		})}
	}
	return cluster(b.LocalAgentClusterName, "1s", address, more)
}

// accessLogKeys are the fields of an access log line with their operators, where proxy-defaults asks for JSON without
// saying which.
var accessLogKeys = map[string]string{
	"start_time": "START_TIME", "route_name": "ROUTE_NAME", "method": "REQ(:METHOD)", "path": "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)",
	"protocol": "PROTOCOL", "response_code": "RESPONSE_CODE", "response_flags": "RESPONSE_FLAGS",
	"response_code_details": "RESPONSE_CODE_DETAILS", "connection_termination_details": "CONNECTION_TERMINATION_DETAILS",
	"bytes_received": "BYTES_RECEIVED", "bytes_sent": "BYTES_SENT", "duration": "DURATION",
	"upstream_service_time": "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)", "x_forwarded_for": "REQ(X-FORWARDED-FOR)",
	"user_agent": "REQ(USER-AGENT)", "request_id": "REQ(X-REQUEST-ID)", "authority": "REQ(:AUTHORITY)",
	"upstream_host": "UPSTREAM_HOST", "upstream_cluster": "UPSTREAM_CLUSTER", "upstream_local_address": "UPSTREAM_LOCAL_ADDRESS",
	"downstream_local_address": "DOWNSTREAM_LOCAL_ADDRESS", "downstream_remote_address": "DOWNSTREAM_REMOTE_ADDRESS",
	"requested_server_name":             "REQUESTED_SERVER_NAME",
	"upstream_transport_failure_reason": "UPSTREAM_TRANSPORT_FAILURE_REASON",
}

// adminLogs are the access logs of the admin interface: those of proxy-defaults, or the file of the flag.
func (b *bootstrapper) adminLogs(p *proxyService) []any {
	const loggers = "envoy.extensions.access_loggers."
	logs := p.proxy.AccessLogs
	if logs == nil || !logs.Enabled {
		return []any{dict{"name": "envoy.access_loggers.file", "typed_config": typed(loggers+"file.v3.FileAccessLog", dict{"path": b.AdminAccessLogPath})}}
	}
	fields := dict{}
	switch {
	case logs.TextFormat != "":
		fields["text_format_source"] = dict{"inline_string": strings.TrimSuffix(logs.TextFormat, "\n") + "\n"}
	case logs.JSONFormat != "":
		var format any
		if err := json.Unmarshal([]byte(logs.JSONFormat), &format); err == nil {
			fields["json_format"] = format
		}
	default:
		format := dict{}
		for k, op := range accessLogKeys {
			format[k] = "%" + op + "%"
		}
		fields["json_format"] = format
	}
	kind, conf := "stream.v3.StdoutAccessLog", dict{"log_format": fields}
	switch logs.Type {
	case api.StdErrLogSinkType:
		kind = "stream.v3.StderrAccessLog"
	case api.FileLogSinkType:
		kind, conf["path"] = "file.v3.FileAccessLog", logs.Path
	}
	return []any{dict{"name": "Consul Listener Filter Log", "typed_config": typed(loggers+kind, conf)}}
}

// ---------------------------------------------------------------- stats

// stats is the configuration of stats tags: the user's, the rules that take names apart, and what this proxy is.
func (b *bootstrapper) stats() dict {
	var tags []any
	fixed := func(name, value string) { tags = append(tags, dict{"tag_name": name, "fixed_value": value}) }
	if list, ok := b.conf["envoy_stats_tags"].([]any); ok {
		for _, t := range list {
			name, value, ok := strings.Cut(fmt.Sprint(t), "=")
			if !ok {
				value = "1"
			}
			fixed(strings.ToLower(name), value)
		}
	}
	for _, r := range tagRules(b.omitDeprecated) {
		tags = append(tags, dict{"tag_name": r.name, "regex": r.regex})
	}
	fixed("local_cluster", b.ProxyCluster)
	fixed("consul.source.service", b.ProxySourceService)
	fixed("consul.source.namespace", b.Namespace)
	fixed("consul.source.partition", b.Partition)
	fixed("consul.source.datacenter", b.Datacenter)
	return dict{"stats_tags": tags, "use_all_default_tags": true}
}

// A tagRule takes a tag out of stat names: its regex's outer group is cut from the name, the inner one is the value.
type tagRule struct{ name, regex string }

// segments of a cluster's name, in order. A name is
//
//	[hash~][subset.]service.namespace.[partition.]datacenter.routing.domain.consul.
//
// and each is optional where its text ends in a question mark. %s stands for one part of the name.
var segments = []struct{ tag, text string }{
	{"custom_hash", `(?:%s~)?`},
	{"service_subset", `(?:%s\.)?`},
	{"service", `%s\.`},
	{"namespace", `%s\.`},
	{"partition", `(?:%s\.)?`},
	{"datacenter", `%s\.`},
	{"routing_type", `%s\.`},
	{"trust_domain", `%s\.consul\.`},
}

const part = `[^.]+`

// clusterRegex matches the name of a cluster with the given prefix and captures one segment, or all from the first to the
// one given when through is set. Only names inside the mesh, whose routing begins with "internal", tell a datacenter.
func clusterRegex(prefix, tag string, through bool) string {
	var b strings.Builder
	b.WriteString("^" + prefix + "(")
	if through {
		b.WriteByte('(')
	}
	for _, s := range segments {
		inner := part
		switch {
		case s.tag == "custom_hash":
			inner = `[^.~]+`
		case s.tag == "routing_type" && tag == "datacenter":
			inner = `internal[^.]*`
		}
		if s.tag == tag && through {
			// The group ends before the dot that ends the segment.
			b.WriteString(strings.TrimSuffix(strings.TrimSuffix(fmt.Sprintf(s.text, inner), `\.`), `\.consul`))
			b.WriteString(`)`)
			b.WriteString(strings.TrimPrefix(fmt.Sprintf(s.text, ""), "(?:"))
			continue
		}
		if s.tag == tag {
			inner = "(" + inner + ")"
		}
		fmt.Fprintf(&b, s.text, inner)
	}
	b.WriteByte(')')
	return b.String()
}

// tagRules lists the rules, those with the old names last.
func tagRules(omitDeprecated bool) []tagRule {
	const (
		now = `cluster\.(?:passthrough~)?`
		old = `cluster\.`
	)
	var out []tagRule
	add := func(name, regex string) { out = append(out, tagRule{name, regex}) }
	for _, s := range segments {
		add("consul.destination."+s.tag, clusterRegex(now, s.tag, false))
	}
	add("consul.destination.peer", `^`+now+`(`+part+`\.(?:`+part+`\.)?(`+part+`)\.external\.`+part+`\.consul\.)`)
	add("consul.destination.target", clusterRegex(now, "datacenter", true))
	add("consul.destination.full_target", clusterRegex(now, "trust_domain", true))

	const (
		any    = `^(?:tcp|http)\.upstream(?:_peered)?\.`
		mine   = `^(?:tcp|http)\.upstream\.`
		peered = `^(?:tcp|http)\.upstream_peered\.`
	)
	add("consul.upstream.service", any+`((`+part+`)(?:\.`+part+`)?(?:\.`+part+`)?\.`+part+`\.)`)
	add("consul.upstream.datacenter", mine+`(`+part+`(?:\.`+part+`)?(?:\.`+part+`)?\.(`+part+`)\.)`)
	add("consul.upstream.peer", peered+`(`+part+`(?:\.`+part+`)?\.(`+part+`)\.)`)
	add("consul.upstream.namespace", any+`(`+part+`(?:\.(`+part+`))?(?:\.`+part+`)?\.`+part+`\.)`)
	add("consul.upstream.partition", mine+`(`+part+`(?:\.`+part+`)?(?:\.(`+part+`))?\.`+part+`\.)`)
	if omitDeprecated {
		return out
	}
	for _, tag := range []string{"custom_hash", "service_subset", "service", "namespace", "datacenter", "routing_type", "trust_domain"} {
		add("consul."+tag, clusterRegex(old, tag, false))
	}
	add("consul.target", clusterRegex(old, "datacenter", true))
	add("consul.full_target", clusterRegex(old, "trust_domain", true))
	return out
}

// ---------------------------------------------------------------- where stats go

// sinksFromURLs adds the statsd and dogstatsd sinks.
func (b *bootstrapper) sinksFromURLs() error {
	for _, s := range []struct{ key, name, kind string }{
		{"envoy_statsd_url", "envoy.stat_sinks.statsd", "envoy.config.metrics.v3.StatsdSink"},
		{"envoy_dogstatsd_url", "envoy.stat_sinks.dog_statsd", "envoy.config.metrics.v3.DogStatsdSink"},
	} {
		text := b.text(s.key)
		if text == "" {
			continue
		}
		address, err := sinkAddress(text, s.key == "envoy_dogstatsd_url")
		if err != nil {
			return verb.Errorf("Invalid %s: %w", s.key, err)
		}
		if address != nil {
			b.sinks = append(b.sinks, dict{"name": s.name, "typedConfig": typed(s.kind, dict{"address": address})})
		}
	}
	return nil
}

// sinkAddress reads udp://host:port or, where allowed, unix:///path. The whole may be the name of an environment variable
// after a dollar sign; ${HOST_IP} is replaced by that variable. It is nil if the variable is empty.
func sinkAddress(text string, unix bool) (dict, error) {
	if name, ok := strings.CutPrefix(text, "$"); ok && !strings.HasPrefix(name, "{") {
		if text = os.Getenv(name); text == "" {
			return nil, nil
		}
	}
	text = strings.ReplaceAll(text, "${HOST_IP}", os.Getenv("HOST_IP"))
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, err
	case u.Scheme == "udp":
		if _, err := strconv.ParseUint(u.Port(), 10, 16); err != nil {
			return nil, fmt.Errorf("port %q: %w", u.Port(), err)
		}
		return socketAddress(u.Hostname(), u.Port()), nil
	case u.Scheme == "unix" && unix:
		return dict{"pipe": dict{"path": u.Path}}, nil
	}
	return nil, fmt.Errorf("unsupported address %q", text)
}

// adminListener serves one path of the admin interface on an address of its own.
func adminListener(name, address, port, cluster string, match, action dict) dict {
	action["cluster"] = cluster
	return dict{
		"name": name, "address": socketAddress(address, port),
		"filter_chains": []any{dict{"filters": []any{dict{
			"name": "envoy.filters.network.http_connection_manager",
			"typedConfig": typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", dict{
				"stat_prefix": strings.TrimSuffix(name, "_listener"),
				"codec_type":  "HTTP1",
				"route_config": dict{"name": "self_admin_route", "virtual_hosts": []any{dict{
					"name": "self_admin", "domains": []any{"*"},
					"routes": []any{
						dict{"match": match, "route": action},
						dict{"match": dict{"prefix": "/"}, "direct_response": dict{"status": 404}},
					},
				}}},
				"http_filters": []any{dict{
					"name":        "envoy.filters.http.router",
					"typedConfig": typed("envoy.extensions.filters.http.router.v3.Router", nil),
				}},
			}),
		}}}},
	}
}

// metricsListeners adds the listeners for Prometheus, for stats and for readiness, with the cluster they lead to.
func (b *bootstrapper) metricsListeners() error {
	backend := "self_admin"
	used := false
	if addr := b.text("envoy_prometheus_bind_addr"); addr != "" {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return verb.Errorf("Invalid prometheus_bind_addr: %w", err)
		}
		target := backend
		if b.PrometheusBackendPort != "" {
			target = "prometheus_backend"
			b.clusters = append(b.clusters, cluster(target, "5s", socketAddress("127.0.0.1", b.PrometheusBackendPort), nil))
		} else {
			used = true
		}
		l := adminListener("envoy_prometheus_metrics_listener", host, port, target,
			dict{"path": b.PrometheusScrapePath}, dict{"prefix_rewrite": "/stats/prometheus"})
		if b.PrometheusCertFile != "" {
			b.secure(l)
		}
		b.listeners = append(b.listeners, l)
	}
	if addr := b.text("envoy_stats_bind_addr"); addr != "" {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return verb.Errorf("Invalid stats_bind_addr: %w", err)
		}
		used = true
		b.listeners = append(b.listeners, adminListener("envoy_metrics_listener", host, port, backend,
			dict{"prefix": "/stats"}, dict{"prefix_rewrite": "/stats"}))
	}
	if b.readyAddress != "" {
		used = true
		b.listeners = append(b.listeners, adminListener("envoy_ready_listener", b.readyAddress, b.readyPort, backend,
			dict{"path": "/ready"}, dict{"prefix_rewrite": "/ready"}))
	}
	if used {
		host := b.AdminBindAddress
		if host == "0.0.0.0" || host == "::" {
			host = "127.0.0.1"
		}
		b.clusters = slices.Insert(b.clusters, 1, any(cluster(backend, "5s", socketAddress(host, b.AdminBindPort), dict{"http_protocol_options": dict{}})))
	}
	return nil
}

// secure makes a listener demand TLS with client certificates. Envoy reads the files again when they change.
func (b *bootstrapper) secure(listener dict) {
	chain := listener["filter_chains"].([]any)[0].(dict)
	source := func(name string) dict { return dict{"name": name} }
	chain["transport_socket"] = dict{"name": "tls", "typedConfig": typed("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", dict{
		"common_tls_context": dict{
			"tls_certificate_sds_secret_configs":   []any{source("prometheus_cert")},
			"validation_context_sds_secret_config": source("prometheus_validation_context"),
		},
		"require_client_certificate": true,
	})}
	trusted := dict{"trusted_ca": dict{"filename": b.PrometheusCAFile}}
	if b.PrometheusCAFile == "" {
		trusted = dict{"watched_directory": dict{"path": b.PrometheusCAPath}}
		if files, err := filepath.Glob(filepath.Join(b.PrometheusCAPath, "*")); err == nil && len(files) > 0 {
			trusted["trusted_ca"] = dict{"filename": files[0]}
		}
	}
	b.secrets = append(b.secrets,
		dict{"name": "prometheus_cert", "tls_certificate": dict{
			"certificate_chain": dict{"filename": b.PrometheusCertFile},
			"private_key":       dict{"filename": b.PrometheusKeyFile},
		}},
		dict{"name": "prometheus_validation_context", "validation_context": trusted},
	)
}

// telemetry sends stats to a collector in the mesh, through a socket the proxy listens on itself.
func (b *bootstrapper) telemetry() error {
	dir := b.text("envoy_telemetry_collector_bind_socket_dir")
	if dir == "" {
		return nil
	}
	const name = "consul_telemetry_collector_loopback"
	sum := sha1.Sum([]byte(b.Namespace + "_" + b.ProxyID)) //nolint:gosec // names a socket
	socket := filepath.Join(dir, base64.RawURLEncoding.EncodeToString(sum[:])+".sock")
	b.clusters = append(b.clusters, cluster(name, "5s", dict{"pipe": dict{"path": socket}}, http2()))
	b.sinks = append(b.sinks, dict{"name": "envoy.stat_sinks.metrics_service", "typedConfig": typed("envoy.config.metrics.v3.MetricsServiceConfig", dict{
		"transport_api_version":     "V3",
		"grpc_service":              dict{"envoy_grpc": dict{"cluster_name": name}},
		"emit_tags_as_labels":       true,
		"report_counters_as_deltas": true,
	})})
	if b.flush == "" {
		b.flush = "60s"
	}
	return nil
}

// fromTemplate fills a user's own template with the facts.
func (b *bootstrapper) fromTemplate(text string, p *proxyService) ([]byte, error) {
	list := func(v []any) string {
		var parts []string
		for _, e := range v {
			data, err := encode(e)
			if err == nil {
				parts = append(parts, string(data))
			}
		}
		return strings.Join(parts, ",\n")
	}
	one := func(v any) string {
		if v == nil {
			return ""
		}
		return list([]any{v})
	}
	args := *b.bootstrapArgs
	args.AdminAccessLogConfig = list(b.adminLogs(p))
	args.StaticClustersJSON = list(b.clusters[1:]) // without the agent's, which templates write themselves
	args.StaticListenersJSON = list(b.listeners)
	args.StaticSecretsJSON = list(b.secrets)
	args.StatsConfigJSON = one(b.statsConfig)
	args.StatsFlushInterval = b.flush
	args.TracingConfigJSON = one(b.tracing)
	if len(b.sinks) > 0 {
		args.StatsSinksJSON = list(b.sinks)
	}
	t, err := template.New("bootstrap").Parse(text)
	if err != nil {
		return nil, verb.Errorf("Failed to parse envoy_bootstrap_json_tpl: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, &args); err != nil {
		return nil, verb.Errorf("Failed to fill envoy_bootstrap_json_tpl: %w", err)
	}
	var doc json.RawMessage
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		return nil, verb.Errorf("envoy_bootstrap_json_tpl does not make JSON: %w", err)
	}
	return encode(doc)
}
