//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	fileaccessv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	otellogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	streamaccessv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	connlimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/connection_limit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	// Read from static files, where every type must be known.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Listener decodes a listener.
func (d *Decoder) Listener(a *anypb.Any) (*model.Listener, error) {
	var m listenerv3.Listener
	if err := resource(a, &m); err != nil {
		return nil, err
	}
	r := &run{d: d}
	l := r.listener(&m)
	return l, r.err()
}

func (r *run) listener(m *listenerv3.Listener) *model.Listener {
	r.only("", m, `name address additional_addresses stat_prefix filter_chains default_filter_chain use_original_dst
		per_connection_buffer_limit_bytes drain_type listener_filters listener_filters_timeout
		continue_on_listener_filters_timeout traffic_direction enable_reuse_port access_log tcp_backlog_size bind_to_port`,
		// Connections are balanced over threads by the runtime, whatever is asked; fast open only saves time.
		`metadata connection_balance_config reuse_port max_connections_to_accept_per_socket_event ignore_global_conn_limit
		bypass_overload_manager tcp_fast_open_queue_length per_connection_buffer_high_watermark_timeout deprecated_v1`)
	l := &model.Listener{
		Name:              m.GetName(),
		Address:           r.address("address", m.GetAddress(), false),
		StatPrefix:        m.GetStatPrefix(),
		BindToPort:        boolean(m.GetBindToPort(), true),
		ReusePort:         boolean(m.GetEnableReusePort(), true),
		Backlog:           int(min(m.GetTcpBacklogSize().GetValue(), math.MaxInt32)),
		InspectTimeout:    r.duration("listener_filters_timeout", m.GetListenerFiltersTimeout(), model.DefaultInspectTimeout),
		ContinueOnTimeout: m.GetContinueOnListenerFiltersTimeout(),
		BufferLimit:       r.bufferLimit("per_connection_buffer_limit_bytes", m.GetPerConnectionBufferLimitBytes()),
		DrainModifyOnly:   m.GetDrainType() == listenerv3.Listener_MODIFY_ONLY,
		AccessLogs:        r.accessLogs("access_log", m.GetAccessLog()),
	}
	if l.Name == "" {
		r.errorf("name", "empty")
	}
	for i, a := range m.GetAdditionalAddresses() {
		p := index("additional_addresses", i)
		r.only(p, a, "address", "")
		l.Additional = append(l.Additional, r.address(join(p, "address"), a.GetAddress(), false))
	}
	switch m.GetTrafficDirection() {
	case corev3.TrafficDirection_INBOUND:
		l.Direction = model.Inbound
	case corev3.TrafficDirection_OUTBOUND:
		l.Direction = model.Outbound
	}
	for i, f := range m.GetListenerFilters() {
		p := index("listener_filters", i)
		r.only(p, f, "name typed_config", "")
		switch typeOf(f.GetTypedConfig()) {
		case "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":
			l.Inspectors = append(l.Inspectors, model.InspectTLS)
		case "envoy.extensions.filters.listener.original_dst.v3.OriginalDst":
			l.Inspectors = append(l.Inspectors, model.InspectOriginalDst)
		case "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector":
			l.Inspectors = append(l.Inspectors, model.InspectHTTP)
		default:
			r.errorf(p, "listener filter %q of type %q is not supported", f.GetName(), f.GetTypedConfig().GetTypeUrl())
		}
	}
	if m.GetUseOriginalDst().GetValue() && !slices.Contains(l.Inspectors, model.InspectOriginalDst) {
		l.Inspectors = append([]model.Inspector{model.InspectOriginalDst}, l.Inspectors...)
	}
	for i, c := range m.GetFilterChains() {
		l.Chains = append(l.Chains, r.filterChain(index("filter_chains", i), c))
	}
	if m.GetDefaultFilterChain() != nil {
		l.Default = r.filterChain("default_filter_chain", m.GetDefaultFilterChain())
	}
	if len(l.Chains) == 0 && l.Default == nil {
		r.errorf("filter_chains", "no filter chain")
	}
	seen := map[string]int{}
	for i, c := range l.Chains {
		key := matchKey(&c.Match)
		if first, twice := seen[key]; twice {
			r.errorf(index("filter_chains", i), "multiple filter chains with the same matching rules are defined: it equals filter_chains[%d]", first)
		}
		seen[key] = i
		// Server names and protocols are only known of connections that were
		// inspected; Envoy adds the inspector by itself, and so does this.
		if m := &c.Match; (len(m.ServerNames) > 0 || m.TransportProtocol != "" || len(m.ApplicationProtocols) > 0) && !slices.Contains(l.Inspectors, model.InspectTLS) {
			l.Inspectors = append(l.Inspectors, model.InspectTLS)
		}
	}
	return l
}

// matchKey is equal for matches that accept the same connections for the same reasons.
func matchKey(m *model.ChainMatch) string {
	sorted := func(n int, f func(int) string) string {
		list := make([]string, n)
		for i := range list {
			list[i] = f(i)
		}
		slices.Sort(list)
		return strings.Join(slices.Compact(list), ",")
	}
	return fmt.Sprintf("%d|%s|%s|%s|%s|%s|%d|%s|%s",
		m.DestinationPort,
		sorted(len(m.DestinationPrefixes), func(i int) string { return m.DestinationPrefixes[i].String() }),
		sorted(len(m.ServerNames), func(i int) string { return m.ServerNames[i] }),
		m.TransportProtocol,
		sorted(len(m.ApplicationProtocols), func(i int) string { return m.ApplicationProtocols[i] }),
		sorted(len(m.DirectSourcePrefixes), func(i int) string { return m.DirectSourcePrefixes[i].String() }),
		m.SourceType,
		sorted(len(m.SourcePrefixes), func(i int) string { return m.SourcePrefixes[i].String() }),
		sorted(len(m.SourcePorts), func(i int) string { return fmt.Sprint(m.SourcePorts[i]) }))
}

func (r *run) filterChain(path string, m *listenerv3.FilterChain) *model.FilterChain {
	r.only(path, m, "filter_chain_match filters transport_socket transport_socket_connect_timeout name", "metadata")
	c := &model.FilterChain{
		Name:             m.GetName(),
		Match:            r.chainMatch(join(path, "filter_chain_match"), m.GetFilterChainMatch()),
		TLS:              r.downstreamTLS(path, m.GetTransportSocket()),
		HandshakeTimeout: r.duration(join(path, "transport_socket_connect_timeout"), m.GetTransportSocketConnectTimeout(), model.DefaultHandshakeTimeout),
	}
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = model.DefaultHandshakeTimeout
	}
	for i, f := range m.GetFilters() {
		p := index(join(path, "filters"), i)
		r.only(p, f, "name typed_config", "")
		filter, terminal := r.networkFilter(p, f)
		switch {
		case c.Terminal != nil:
			r.errorf(p, "filter %q comes after the terminal filter", f.GetName())
		case terminal != nil:
			c.Terminal = terminal
		case filter != nil:
			c.Filters = append(c.Filters, filter)
		}
	}
	if c.Terminal == nil && r.count == 0 {
		r.errorf(join(path, "filters"), "the last filter must be a terminal one, such as tcp_proxy")
	}
	return c
}

func (r *run) chainMatch(path string, m *listenerv3.FilterChainMatch) model.ChainMatch {
	r.only(path, m, "destination_port prefix_ranges direct_source_prefix_ranges source_type source_prefix_ranges source_ports server_names transport_protocol application_protocols", "")
	cm := model.ChainMatch{
		DestinationPrefixes:  r.prefixes(join(path, "prefix_ranges"), m.GetPrefixRanges()),
		DirectSourcePrefixes: r.prefixes(join(path, "direct_source_prefix_ranges"), m.GetDirectSourcePrefixRanges()),
		SourcePrefixes:       r.prefixes(join(path, "source_prefix_ranges"), m.GetSourcePrefixRanges()),
		TransportProtocol:    m.GetTransportProtocol(),
		ApplicationProtocols: m.GetApplicationProtocols(),
	}
	if p := u32(m.GetDestinationPort(), 0); p > math.MaxUint16 {
		r.errorf(join(path, "destination_port"), "%d is no port", p)
	} else {
		cm.DestinationPort = uint16(p)
	}
	switch m.GetSourceType() {
	case listenerv3.FilterChainMatch_SAME_IP_OR_LOOPBACK:
		cm.SourceType = model.SourceLocal
	case listenerv3.FilterChainMatch_EXTERNAL:
		cm.SourceType = model.SourceExternal
	}
	for i, p := range m.GetSourcePorts() {
		if p == 0 || p > math.MaxUint16 {
			r.errorf(index(join(path, "source_ports"), i), "%d is no port", p)
			continue
		}
		cm.SourcePorts = append(cm.SourcePorts, uint16(p))
	}
	for i, n := range m.GetServerNames() {
		n = strings.ToLower(n)
		if rest := strings.TrimPrefix(n, "*."); rest == "" || strings.Contains(rest, "*") {
			r.errorf(index(join(path, "server_names"), i), "%q: a wildcard stands for whole labels on the left, as in *.example.com", n)
		}
		cm.ServerNames = append(cm.ServerNames, n)
	}
	return cm
}

// networkFilter decodes a filter; one of the results is not nil unless there was a problem.
func (r *run) networkFilter(path string, f *listenerv3.Filter) (model.NetworkFilter, model.Terminal) {
	a := f.GetTypedConfig()
	path = join(path, "typed_config")
	switch typeOf(a) {
	case "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":
		var m tcpproxyv3.TcpProxy
		if r.extension(path, a, &m) {
			return nil, r.tcpProxy(path, &m)
		}
	case "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager":
		var m hcmv3.HttpConnectionManager
		if r.extension(path, a, &m) {
			return nil, r.httpManager(path, &m)
		}
	case "envoy.extensions.filters.network.rbac.v3.RBAC":
		var m netrbacv3.RBAC
		if r.extension(path, a, &m) {
			return r.networkRBAC(path, f.GetName(), &m), nil
		}
	case "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit":
		var m connlimitv3.ConnectionLimit
		if r.extension(path, a, &m) {
			r.only(path, &m, "stat_prefix max_connections delay", "runtime_enabled")
			return &model.ConnectionLimit{
				StatPrefix: m.GetStatPrefix(),
				Max:        m.GetMaxConnections().GetValue(),
				Delay:      r.duration(join(path, "delay"), m.GetDelay(), 0),
			}, nil
		}
	case "envoy.extensions.filters.network.sni_cluster.v3.SniCluster":
		return &model.SNICluster{}, nil
	default:
		r.errorf(path, "network filter %q of type %q is not supported", f.GetName(), a.GetTypeUrl())
	}
	return nil, nil
}

func (r *run) tcpProxy(path string, m *tcpproxyv3.TcpProxy) *model.TCPProxy {
	r.only(path, m, "stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts max_downstream_connection_duration hash_policy access_log_options access_log_flush_interval flush_access_log_on_connected", "")
	r.only(join(path, "access_log_options"), m.GetAccessLogOptions(), "", "")
	t := &model.TCPProxy{
		StatPrefix:  m.GetStatPrefix(),
		Cluster:     m.GetCluster(),
		IdleTimeout: r.duration(join(path, "idle_timeout"), m.GetIdleTimeout(), model.DefaultTCPIdleTimeout),
		MaxDuration: r.duration(join(path, "max_downstream_connection_duration"), m.GetMaxDownstreamConnectionDuration(), 0),
		AccessLogs:  r.accessLogs(join(path, "access_log"), m.GetAccessLog()),
	}
	if m.GetFlushAccessLogOnConnected() || m.GetAccessLogFlushInterval() != nil {
		r.errorf(path, "access logs are only written when a connection ends")
	}
	if a := m.GetMaxConnectAttempts(); a != nil {
		t.MaxConnectAttempts = min(a.GetValue(), 100)
	}
	for i, h := range m.GetHashPolicy() {
		p := index(join(path, "hash_policy"), i)
		r.only(p, h, "source_ip", "")
		t.HashSource = h.GetSourceIp() != nil
	}
	total := uint64(0)
	for i, w := range m.GetWeightedClusters().GetClusters() {
		p := index(join(path, "weighted_clusters.clusters"), i)
		r.only(p, w, "name weight", "")
		total += uint64(w.GetWeight())
		t.Weighted = append(t.Weighted, model.WeightedCluster{Name: w.GetName(), Weight: w.GetWeight()})
	}
	if total > math.MaxUint32 {
		r.errorf(join(path, "weighted_clusters"), "weights add up to more than %d", uint32(math.MaxUint32))
	}
	return t
}

func (r *run) networkRBAC(path, name string, m *netrbacv3.RBAC) *model.NetworkRBAC {
	r.only(path, m, "rules shadow_rules shadow_rules_stat_prefix stat_prefix enforcement_type", "")
	if m.GetEnforcementType() != netrbacv3.RBAC_ONE_TIME_ON_FIRST_BYTE {
		r.errorf(join(path, "enforcement_type"), "%v is not supported", m.GetEnforcementType())
	}
	f := &model.NetworkRBAC{Name: name, StatPrefix: m.GetStatPrefix(), ShadowStatPrefix: m.GetShadowRulesStatPrefix()}
	if m.GetRules() != nil {
		f.Rules = r.rbac(join(path, "rules"), m.GetRules(), false)
	}
	if m.GetShadowRules() != nil {
		f.Shadow = r.rbac(join(path, "shadow_rules"), m.GetShadowRules(), false)
	}
	return f
}

func (r *run) accessLogs(path string, list []*accesslogv3.AccessLog) []model.AccessLog {
	var out []model.AccessLog
	for i, m := range list {
		p := index(path, i)
		r.only(p, m, "name filter typed_config", "")
		l := model.AccessLog{Name: m.GetName(), Filter: r.logFilter(join(p, "filter"), m.GetFilter())}
		a, p := m.GetTypedConfig(), join(p, "typed_config")
		switch typeOf(a) {
		case "envoy.extensions.access_loggers.file.v3.FileAccessLog":
			var f fileaccessv3.FileAccessLog
			if !r.extension(p, a, &f) {
				continue
			}
			l.Sink, l.Path = model.SinkFile, f.GetPath()
			switch {
			case f.GetLogFormat() != nil:
				r.logFormat(join(p, "log_format"), f.GetLogFormat(), &l)
			case f.GetJsonFormat() != nil:
				l.JSON = f.GetJsonFormat().AsMap()
			case f.GetTypedJsonFormat() != nil:
				l.JSON = f.GetTypedJsonFormat().AsMap()
			default:
				l.Text = f.GetFormat()
			}
		case "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog":
			var s streamaccessv3.StdoutAccessLog
			if !r.extension(p, a, &s) {
				continue
			}
			l.Sink = model.SinkStdout
			r.logFormat(join(p, "log_format"), s.GetLogFormat(), &l)
		case "envoy.extensions.access_loggers.stream.v3.StderrAccessLog":
			var s streamaccessv3.StderrAccessLog
			if !r.extension(p, a, &s) {
				continue
			}
			l.Sink = model.SinkStderr
			r.logFormat(join(p, "log_format"), s.GetLogFormat(), &l)
		case "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig":
			var g grpclogv3.HttpGrpcAccessLogConfig
			if !r.extension(p, a, &g) {
				continue
			}
			l.Sink, l.Collector = model.SinkCollector, r.accessLogService(join(p, "common_config"), model.EnvoyHTTPLogs, g.GetCommonConfig())
			l.Collector.RequestHeaders = lowered(g.GetAdditionalRequestHeadersToLog())
			l.Collector.ResponseHeaders = lowered(g.GetAdditionalResponseHeadersToLog())
			l.Collector.ResponseTrailers = lowered(g.GetAdditionalResponseTrailersToLog())
		case "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig":
			var g grpclogv3.TcpGrpcAccessLogConfig
			if !r.extension(p, a, &g) {
				continue
			}
			l.Sink, l.Collector = model.SinkCollector, r.accessLogService(join(p, "common_config"), model.EnvoyTCPLogs, g.GetCommonConfig())
		case "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig":
			var o otellogv3.OpenTelemetryAccessLogConfig
			if !r.extension(p, a, &o) {
				continue
			}
			l.Sink, l.Collector = model.SinkCollector, r.logCollector(p, &o)
		default:
			r.errorf(p, "access logger %q of type %q is not supported", m.GetName(), a.GetTypeUrl())
			continue
		}
		if _, err := accesslog.Compile(&l, nil); err != nil {
			r.errorf(p, "%w", err)
		}
		out = append(out, l)
	}
	return out
}

func (r *run) logFormat(path string, f *corev3.SubstitutionFormatString, l *model.AccessLog) {
	if f == nil {
		return
	}
	r.only(path, f, "text_format text_format_source json_format omit_empty_values", "content_type json_format_options")
	l.OmitEmpty = f.GetOmitEmptyValues()
	switch {
	case f.GetJsonFormat() != nil:
		l.JSON = f.GetJsonFormat().AsMap()
	case f.GetTextFormatSource() != nil:
		b, _ := r.source(join(path, "text_format_source"), f.GetTextFormatSource())
		l.Text = string(b)
	default:
		l.Text = f.GetTextFormat()
	}
	// NaN and infinities have no JSON; a format with one is not one.
	if _, err := json.Marshal(l.JSON); err != nil {
		r.errorf(path, "%w", err)
	}
}

func (r *run) logFilter(path string, m *accesslogv3.AccessLogFilter) *model.LogFilter {
	if m == nil {
		return nil
	}
	comparison := func(c *accesslogv3.ComparisonFilter) *model.Comparison {
		out := &model.Comparison{Value: uint64(c.GetValue().GetDefaultValue())}
		switch c.GetOp() {
		case accesslogv3.ComparisonFilter_EQ:
			out.Op = model.CompareEqual
		case accesslogv3.ComparisonFilter_GE:
			out.Op = model.CompareAtLeast
		case accesslogv3.ComparisonFilter_LE:
			out.Op = model.CompareAtMost
		case accesslogv3.ComparisonFilter_NE:
			out.Op = model.CompareNotEqual
		}
		return out
	}
	switch f := m.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_ResponseFlagFilter:
		flags := f.ResponseFlagFilter.GetFlags()
		return &model.LogFilter{Flags: &flags}
	case *accesslogv3.AccessLogFilter_DurationFilter:
		return &model.LogFilter{Duration: comparison(f.DurationFilter.GetComparison())}
	case *accesslogv3.AccessLogFilter_AndFilter:
		out := &model.LogFilter{And: []*model.LogFilter{}}
		for i, x := range f.AndFilter.GetFilters() {
			out.And = append(out.And, r.logFilter(index(path, i), x))
		}
		return out
	case *accesslogv3.AccessLogFilter_OrFilter:
		out := &model.LogFilter{Or: []*model.LogFilter{}}
		for i, x := range f.OrFilter.GetFilters() {
			out.Or = append(out.Or, r.logFilter(index(path, i), x))
		}
		return out
	case *accesslogv3.AccessLogFilter_NotHealthCheckFilter:
		return &model.LogFilter{NotHealthCheck: true}
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		return &model.LogFilter{Status: comparison(f.StatusCodeFilter.GetComparison())}
	case *accesslogv3.AccessLogFilter_TraceableFilter:
		return &model.LogFilter{Traceable: true}
	case *accesslogv3.AccessLogFilter_HeaderFilter:
		h := r.headerMatch(join(path, "header_filter.header"), f.HeaderFilter.GetHeader())
		return &model.LogFilter{Header: &h}
	case *accesslogv3.AccessLogFilter_GrpcStatusFilter:
		g := &model.GRPCStatuses{Exclude: f.GrpcStatusFilter.GetExclude()}
		for _, s := range f.GrpcStatusFilter.GetStatuses() {
			g.Statuses = append(g.Statuses, uint32(s))
		}
		return &model.LogFilter{GRPC: g}
	case *accesslogv3.AccessLogFilter_MetadataFilter:
		p := join(path, "metadata_filter")
		r.only(p, f.MetadataFilter, "matcher match_if_key_not_found", "")
		md := &model.MetadataLogFilter{IfMissing: boolean(f.MetadataFilter.GetMatchIfKeyNotFound(), true)}
		if f.MetadataFilter.GetMatcher() != nil {
			md.Match = r.metadataMatch(join(p, "matcher"), f.MetadataFilter.GetMatcher())
		}
		return &model.LogFilter{Metadata: md}
	case *accesslogv3.AccessLogFilter_RuntimeFilter:
		p := join(path, "runtime_filter")
		r.only(p, f.RuntimeFilter, "percent_sampled use_independent_randomness", "runtime_key")
		return &model.LogFilter{Fraction: &model.LogFraction{
			Fraction:    r.fraction(join(p, "percent_sampled"), f.RuntimeFilter.GetPercentSampled()),
			Independent: f.RuntimeFilter.GetUseIndependentRandomness(),
		}}
	case *accesslogv3.AccessLogFilter_LogTypeFilter:
		t := &model.LogTypes{Exclude: f.LogTypeFilter.GetExclude()}
		for _, x := range f.LogTypeFilter.GetTypes() {
			t.Types = append(t.Types, x.String())
		}
		return &model.LogFilter{Types: t}
	}
	r.errorf(path, "access log filter %T is not supported", m.GetFilterSpecifier())
	return nil
}
