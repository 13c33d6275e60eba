//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"net/url"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	customheaderv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/original_ip_detection/custom_header/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	detectorsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	// Read from static files, where every type must be known.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func (r *run) httpManager(path string, m *hcmv3.HttpConnectionManager) *model.HTTPManager {
	r.only(path, m, `codec_type stat_prefix rds route_config http_filters add_user_agent tracing common_http_protocol_options
		http_protocol_options http2_protocol_options server_name server_header_transformation scheme_header_transformation
		max_request_headers_kb stream_idle_timeout request_timeout request_headers_timeout drain_timeout
		delayed_close_timeout access_log access_log_options use_remote_address xff_num_trusted_hops internal_address_config
		skip_xff_append via generate_request_id preserve_external_request_id always_set_request_id_in_response
		forward_client_cert_details set_current_client_cert_details proxy_100_continue upgrade_configs normalize_path
		merge_slashes path_with_escaped_slashes_action request_id_extension local_reply_config strip_matching_host_port
		strip_any_host_port stream_error_on_invalid_http_message strip_trailing_host_dot append_x_forwarded_port
		append_local_overload original_ip_detection_extensions`,
		// There is no HTTP/3. A connection whose time is over finishes its requests either way. Times are kept without jitter.
		`http3_protocol_options http1_safe_max_connection_duration drain_timeout_jitter
		add_proxy_protocol_connection_state record_route_resolution_stats`)
	invalid := m.GetStreamErrorOnInvalidHttpMessage().GetValue()
	h := &model.HTTPManager{
		StatPrefix: m.GetStatPrefix(),
		HTTP1:      r.http1(join(path, "http_protocol_options"), m.GetHttpProtocolOptions(), invalid),
		HTTP2:      r.http2(join(path, "http2_protocol_options"), m.GetHttp2ProtocolOptions(), invalid),
		Filters:    r.httpFilters(join(path, "http_filters"), m.GetHttpFilters()),

		MaxHeaderBytes:    int(u32(m.GetMaxRequestHeadersKb(), model.DefaultMaxRequestHeaders>>10)) << 10,
		StreamIdleTimeout: r.duration(join(path, "stream_idle_timeout"), m.GetStreamIdleTimeout(), model.DefaultStreamIdleTimeout),
		RequestTimeout:    r.duration(join(path, "request_timeout"), m.GetRequestTimeout(), 0),
		HeadersTimeout:    r.duration(join(path, "request_headers_timeout"), m.GetRequestHeadersTimeout(), 0),
		DrainTimeout:      r.duration(join(path, "drain_timeout"), m.GetDrainTimeout(), model.DefaultDrainTimeout),
		DelayedClose:      r.duration(join(path, "delayed_close_timeout"), m.GetDelayedCloseTimeout(), model.DefaultDelayedClose),

		ServerName: m.GetServerName(),
		Via:        m.GetVia(),

		UseRemoteAddress: m.GetUseRemoteAddress().GetValue(),
		TrustedHops:      m.GetXffNumTrustedHops(),
		SkipXFF:          m.GetSkipXffAppend(),
		AppendXFPort:     m.GetAppendXForwardedPort(),

		NormalizePath:    m.GetNormalizePath().GetValue(),
		MergeSlashes:     m.GetMergeSlashes(),
		StripTrailingDot: m.GetStripTrailingHostDot(),

		GenerateRequestID:         boolean(m.GetGenerateRequestId(), true),
		PreserveExternalRequestID: m.GetPreserveExternalRequestId(),
		AlwaysSetRequestID:        m.GetAlwaysSetRequestIdInResponse(),
		PackTraceReason:           true,
		TraceReasonForSampling:    true,

		Proxy100Continue:    m.GetProxy_100Continue(),
		AddUserAgent:        m.GetAddUserAgent().GetValue(),
		AccessLogs:          r.accessLogs(join(path, "access_log"), m.GetAccessLog()),
		Tracing:             r.tracing(join(path, "tracing"), m.GetTracing()),
		LocalReply:          r.localReply(join(path, "local_reply_config"), m.GetLocalReplyConfig()),
		AppendLocalOverload: m.GetAppendLocalOverload(),
		ClientHeaders:       r.clientHeaders(path, m),
	}
	if h.ServerName == "" {
		h.ServerName = model.DefaultServerName
	}
	switch m.GetCodecType() {
	case hcmv3.HttpConnectionManager_AUTO:
	case hcmv3.HttpConnectionManager_HTTP1:
		h.Codec = model.CodecHTTP1
	case hcmv3.HttpConnectionManager_HTTP2:
		h.Codec = model.CodecHTTP2
	default:
		r.errorf(join(path, "codec_type"), "%v is not supported", m.GetCodecType())
	}
	r.routeSource(path, m, h)
	r.connectionHTTP(join(path, "common_http_protocol_options"), m.GetCommonHttpProtocolOptions(), h)
	r.only(join(path, "access_log_options"), m.GetAccessLogOptions(), "", "")
	r.addresses(path, m, h)
	r.hygiene(path, m, h)
	if x := m.GetRequestIdExtension().GetTypedConfig(); x != nil {
		var u uuidv3.UuidRequestIdConfig
		if r.extension(join(path, "request_id_extension"), x, &u) {
			h.PackTraceReason = boolean(u.GetPackTraceReason(), true)
			h.TraceReasonForSampling = boolean(u.GetUseRequestIdForTraceSampling(), true)
		}
	}
	seen := map[string]bool{}
	for i, u := range m.GetUpgradeConfigs() {
		p := index(join(path, "upgrade_configs"), i)
		r.only(p, u, "upgrade_type filters enabled", "")
		x := model.Upgrade{Name: strings.ToLower(u.GetUpgradeType()), Enabled: boolean(u.GetEnabled(), true)}
		if seen[x.Name] {
			r.errorf(p, "Error: multiple upgrade configs with the same name: '%s'", x.Name)
		}
		seen[x.Name] = true
		if len(u.GetFilters()) > 0 {
			x.Filters = r.httpFilters(join(p, "filters"), u.GetFilters())
		}
		h.Upgrades = append(h.Upgrades, x)
	}
	return h
}

// clientHeaders decodes the fields that tell the client's address.
func (r *run) clientHeaders(path string, m *hcmv3.HttpConnectionManager) []model.ClientHeader {
	list := m.GetOriginalIpDetectionExtensions()
	path = join(path, "original_ip_detection_extensions")
	if len(list) > 0 && (m.GetUseRemoteAddress().GetValue() || m.GetXffNumTrustedHops() > 0) {
		r.errorf(path, "may not be mixed with use_remote_address or xff_num_trusted_hops")
	}
	var out []model.ClientHeader
	for i, x := range list {
		p := join(index(path, i), "typed_config")
		if t := typeOf(x.GetTypedConfig()); t != "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig" {
			r.errorf(p, "%q is not supported here", t)
			continue
		}
		var c customheaderv3.CustomHeaderConfig
		if r.extension(p, x.GetTypedConfig(), &c) {
			r.only(p, &c, "header_name allow_extension_to_set_address_as_trusted", "")
			out = append(out, model.ClientHeader{Name: strings.ToLower(c.GetHeaderName()), Trusted: c.GetAllowExtensionToSetAddressAsTrusted()})
		}
	}
	return out
}

func (r *run) routeSource(path string, m *hcmv3.HttpConnectionManager, h *model.HTTPManager) {
	switch s := m.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_RouteConfig:
		h.Routes = r.routeConfig(join(path, "route_config"), s.RouteConfig, true)
	case *hcmv3.HttpConnectionManager_Rds:
		p := join(path, "rds")
		r.only(p, s.Rds, "config_source route_config_name", "")
		r.adsOnly(join(p, "config_source"), s.Rds.GetConfigSource())
		if h.RouteName = s.Rds.GetRouteConfigName(); h.RouteName == "" {
			r.errorf(join(p, "route_config_name"), "empty")
		}
	}
}

func (r *run) connectionHTTP(path string, m *corev3.HttpProtocolOptions, h *model.HTTPManager) {
	r.only(path, m, "idle_timeout max_connection_duration max_headers_count max_stream_duration headers_with_underscores_action max_requests_per_connection",
		// Of responses of hosts; and times are kept without jitter.
		"max_response_headers_kb max_connection_duration_jitter")
	h.IdleTimeout = r.duration(join(path, "idle_timeout"), m.GetIdleTimeout(), model.DefaultHTTPIdleTimeout)
	h.MaxDuration = r.duration(join(path, "max_connection_duration"), m.GetMaxConnectionDuration(), 0)
	h.MaxStreamDuration = r.duration(join(path, "max_stream_duration"), m.GetMaxStreamDuration(), 0)
	h.MaxHeaders = int(u32(m.GetMaxHeadersCount(), model.DefaultMaxHeaders))
	h.MaxRequests = u32(m.GetMaxRequestsPerConnection(), 0)
	h.Underscores = r.underscores(join(path, "headers_with_underscores_action"), m.GetHeadersWithUnderscoresAction())
}

func (r *run) underscores(path string, a corev3.HttpProtocolOptions_HeadersWithUnderscoresAction) model.UnderscoreAction {
	switch a {
	case corev3.HttpProtocolOptions_ALLOW:
	case corev3.HttpProtocolOptions_REJECT_REQUEST:
		return model.UnderscoreReject
	case corev3.HttpProtocolOptions_DROP_HEADER:
		return model.UnderscoreDrop
	default:
		r.errorf(path, "%d is unknown", a)
	}
	return model.UnderscoreAllow
}

// addresses decodes what concerns where a request came from.
func (r *run) addresses(path string, m *hcmv3.HttpConnectionManager, h *model.HTTPManager) {
	if c := m.GetInternalAddressConfig(); c != nil {
		p := join(path, "internal_address_config")
		r.only(p, c, "unix_sockets cidr_ranges", "")
		h.Internal = r.prefixes(join(p, "cidr_ranges"), c.GetCidrRanges())
		h.InternalUnix = c.GetUnixSockets()
	}
	switch m.GetForwardClientCertDetails() {
	case hcmv3.HttpConnectionManager_SANITIZE:
	case hcmv3.HttpConnectionManager_FORWARD_ONLY:
		h.XFCC = model.XFCCForwardOnly
	case hcmv3.HttpConnectionManager_APPEND_FORWARD:
		h.XFCC = model.XFCCAppendForward
	case hcmv3.HttpConnectionManager_SANITIZE_SET:
		h.XFCC = model.XFCCSanitizeSet
	case hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
		h.XFCC = model.XFCCAlwaysForwardOnly
	default:
		r.errorf(join(path, "forward_client_cert_details"), "%d is unknown", m.GetForwardClientCertDetails())
	}
	if c := m.GetSetCurrentClientCertDetails(); c != nil {
		r.only(join(path, "set_current_client_cert_details"), c, "subject cert chain dns uri", "")
		h.XFCCSubject, h.XFCCCert, h.XFCCChain = c.GetSubject().GetValue(), c.GetCert(), c.GetChain()
		h.XFCCDNS, h.XFCCURI = c.GetDns(), c.GetUri()
	}
	switch m.GetServerHeaderTransformation() {
	case hcmv3.HttpConnectionManager_OVERWRITE:
	case hcmv3.HttpConnectionManager_APPEND_IF_ABSENT:
		h.ServerHeader = model.ServerIfAbsent
	case hcmv3.HttpConnectionManager_PASS_THROUGH:
		h.ServerHeader = model.ServerPassThrough
	default:
		r.errorf(join(path, "server_header_transformation"), "%d is unknown", m.GetServerHeaderTransformation())
	}
}

// hygiene decodes how path, host and scheme of requests get their one form.
func (r *run) hygiene(path string, m *hcmv3.HttpConnectionManager, h *model.HTTPManager) {
	switch m.GetPathWithEscapedSlashesAction() {
	case hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3.HttpConnectionManager_KEEP_UNCHANGED:
	case hcmv3.HttpConnectionManager_REJECT_REQUEST:
		h.EscapedSlashes = model.EscapedReject
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		h.EscapedSlashes = model.EscapedRedirect
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		h.EscapedSlashes = model.EscapedForward
	default:
		r.errorf(join(path, "path_with_escaped_slashes_action"), "%d is unknown", m.GetPathWithEscapedSlashesAction())
	}
	switch {
	case m.GetStripMatchingHostPort() && m.GetStripAnyHostPort():
		r.errorf(path, "Cannot enable both `strip_matching_host_port` and `strip_any_host_port`.")
	case m.GetStripMatchingHostPort():
		h.StripPort = model.PortMatching
	case m.GetStripAnyHostPort():
		h.StripPort = model.PortAny
	}
	if s := m.GetSchemeHeaderTransformation(); s != nil {
		r.only(join(path, "scheme_header_transformation"), s, "scheme_to_overwrite match_upstream", "")
		h.SchemeOverwrite, h.SchemeMatchUpstream = s.GetSchemeToOverwrite(), s.GetMatchUpstream()
	}
}

// http1 decodes the options of HTTP/1. Invalid is whether a bad message leaves the connection open if that is possible,
// when they don't say.
func (r *run) http1(path string, m *corev3.Http1ProtocolOptions, invalid bool) model.HTTP1Options {
	r.only(path, m, `allow_absolute_url accept_http_10 default_host_for_http_10 header_key_format enable_trailers
		allow_chunked_length override_stream_error_on_invalid_http_message`,
		// There is one parser, which takes any method.
		"use_balsa_parser allow_custom_methods")
	o := model.HTTP1Options{
		AcceptHTTP10:       m.GetAcceptHttp_10(),
		DefaultHost:        m.GetDefaultHostForHttp_10(),
		EnableTrailers:     m.GetEnableTrailers(),
		AllowChunkedLength: m.GetAllowChunkedLength(),
		DenyAbsoluteURL:    !boolean(m.GetAllowAbsoluteUrl(), true),
		OverrideError:      boolean(m.GetOverrideStreamErrorOnInvalidHttpMessage(), invalid),
	}
	if f := m.GetHeaderKeyFormat(); f != nil {
		p := join(path, "header_key_format")
		r.only(p, f, "proper_case_words stateful_formatter", "")
		o.ProperCase = f.GetProperCaseWords() != nil
		if s := f.GetStatefulFormatter(); s != nil {
			if typeOf(s.GetTypedConfig()) == "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig" {
				o.PreserveCase = true
			} else {
				r.errorf(join(p, "stateful_formatter"), "%q of type %q is not supported", s.GetName(), s.GetTypedConfig().GetTypeUrl())
			}
		}
	}
	return o
}

// http2 decodes the options of HTTP/2. Invalid is whether a bad message ends its stream only, when they don't say.
func (r *run) http2(path string, m *corev3.Http2ProtocolOptions, invalid bool) model.HTTP2Options {
	r.only(path, m, `hpack_table_size max_concurrent_streams initial_stream_window_size initial_connection_window_size
		allow_connect max_outbound_frames max_outbound_control_frames max_consecutive_inbound_frames_with_empty_payload
		max_inbound_priority_frames_per_stream max_inbound_window_update_frames_per_data_frame_sent
		stream_error_on_invalid_http_messaging override_stream_error_on_invalid_http_message connection_keepalive`,
		// There is one implementation, without METADATA frames.
		"use_oghttp2_codec max_metadata_size enable_huffman_encoding")
	if m.GetStreamErrorOnInvalidHttpMessaging() {
		invalid = true
	}
	o := model.HTTP2Options{
		HPACKTable:          optionalU32(m.GetHpackTableSize()),
		ConcurrentStreams:   u32(m.GetMaxConcurrentStreams(), 0),
		StreamWindow:        u32(m.GetInitialStreamWindowSize(), 0),
		ConnectionWindow:    u32(m.GetInitialConnectionWindowSize(), 0),
		AllowConnect:        m.GetAllowConnect(),
		MaxOutbound:         u32(m.GetMaxOutboundFrames(), 0),
		MaxOutboundControl:  u32(m.GetMaxOutboundControlFrames(), 0),
		EmptyFrames:         optionalU32(m.GetMaxConsecutiveInboundFramesWithEmptyPayload()),
		PriorityPerStream:   optionalU32(m.GetMaxInboundPriorityFramesPerStream()),
		WindowUpdatePerData: optionalU32(m.GetMaxInboundWindowUpdateFramesPerDataFrameSent()),
		OverrideError:       boolean(m.GetOverrideStreamErrorOnInvalidHttpMessage(), invalid),
	}
	if k := m.GetConnectionKeepalive(); k != nil {
		p := join(path, "connection_keepalive")
		r.only(p, k, "interval timeout interval_jitter connection_idle_interval", "")
		o.Keepalive = &model.HTTP2Keepalive{
			Interval:     r.duration(join(p, "interval"), k.GetInterval(), 0),
			Timeout:      r.duration(join(p, "timeout"), k.GetTimeout(), 0),
			Jitter:       15,
			IdleInterval: r.duration(join(p, "connection_idle_interval"), k.GetConnectionIdleInterval(), 0),
		}
		if k.GetIntervalJitter() != nil {
			o.Keepalive.Jitter = k.GetIntervalJitter().GetValue()
		}
	}
	return o
}

func optionalU32(v *wrapperspb.UInt32Value) *uint32 {
	if v == nil {
		return nil
	}
	n := v.GetValue()
	return &n
}

// optionalDuration returns nil if d is not set.
func (r *run) optionalDuration(path string, d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	v := r.duration(path, d, 0)
	return &v
}

// Defaults of tracing.
const (
	maxPathTag      = 256
	unknownService  = "unknown_service:envoy"
	otlpTracesPath  = "/v1/traces"
	zipkinSpansPath = "/api/v2/spans"
)

func (r *run) tracing(path string, m *hcmv3.HttpConnectionManager_Tracing) *model.Tracing {
	if m == nil {
		return nil
	}
	r.only(path, m, `client_sampling random_sampling overall_sampling verbose max_path_tag_length custom_tags provider
		spawn_upstream_span`, "")
	t := &model.Tracing{
		Provider:          r.traceProvider(join(path, "provider"), m.GetProvider()),
		Client:            percent(m.GetClientSampling()),
		Random:            percent(m.GetRandomSampling()),
		Overall:           percent(m.GetOverallSampling()),
		Verbose:           m.GetVerbose(),
		MaxPath:           u32(m.GetMaxPathTagLength(), maxPathTag),
		CustomTags:        r.customTags(path, m.GetCustomTags()),
		SpawnUpstreamSpan: m.GetSpawnUpstreamSpan().GetValue(),
	}
	return t
}

// percent returns a share; all if it is not set.
func percent(p *typev3.Percent) float64 {
	if p == nil {
		return 100
	}
	return p.GetValue()
}

func (r *run) customTags(path string, list []*tracingv3.CustomTag) []model.CustomTag {
	var out []model.CustomTag
	for i, m := range list {
		p := index(join(path, "custom_tags"), i)
		t := model.CustomTag{Tag: m.GetTag()}
		switch s := m.GetType().(type) {
		case *tracingv3.CustomTag_Literal_:
			t.Literal = s.Literal.GetValue()
		case *tracingv3.CustomTag_Environment_:
			t.Env, t.Default = s.Environment.GetName(), s.Environment.GetDefaultValue()
		case *tracingv3.CustomTag_RequestHeader:
			t.RequestHeader, t.Default = strings.ToLower(s.RequestHeader.GetName()), s.RequestHeader.GetDefaultValue()
		case *tracingv3.CustomTag_Metadata_:
			t.Metadata = metadataKey(s.Metadata.GetMetadataKey(), "", s.Metadata.GetDefaultValue())
			switch k := s.Metadata.GetKind(); {
			case k.GetRoute() != nil:
				t.MetadataOf = model.MetadataOfRoute
			case k.GetCluster() != nil:
				t.MetadataOf = model.MetadataOfCluster
			case k.GetHost() != nil:
				t.MetadataOf = model.MetadataOfHost
			}
			t.Default = s.Metadata.GetDefaultValue()
		default:
			r.errorf(p, "custom tag %T is not supported", s)
		}
		out = append(out, t)
	}
	return out
}

// traceProvider decodes where spans go; nil is nowhere.
func (r *run) traceProvider(path string, m *tracev3.Tracing_Http) model.TraceProvider {
	if m == nil {
		return nil
	}
	r.only(path, m, "name typed_config", "")
	path = join(path, "typed_config")
	switch typeOf(m.GetTypedConfig()) {
	case "envoy.config.trace.v3.OpenTelemetryConfig":
		var c tracev3.OpenTelemetryConfig
		if r.extension(path, m.GetTypedConfig(), &c) {
			return r.openTelemetry(path, &c)
		}
		return nil
	case "envoy.config.trace.v3.ZipkinConfig":
		var c tracev3.ZipkinConfig
		if r.extension(path, m.GetTypedConfig(), &c) {
			return r.zipkin(path, &c)
		}
		return nil
	}
	r.errorf(path, "trace provider %q of type %q is not supported", m.GetName(), m.GetTypedConfig().GetTypeUrl())
	return nil
}

func (r *run) openTelemetry(path string, m *tracev3.OpenTelemetryConfig) *model.OpenTelemetry {
	r.only(path, m, "grpc_service http_service service_name resource_detectors sampler",
		// Names of the exporter itself.
		"max_cache_size set_telemetry_sdk_resource_attributes set_service_name_resource_attribute set_instrumentation_scope")
	out := &model.OpenTelemetry{Service: m.GetServiceName(), Resource: map[string]string{}}
	if out.Service == "" {
		out.Service = unknownService
	}
	switch {
	case m.GetGrpcService() != nil && m.GetHttpService() != nil:
		r.errorf(path, "OpenTelemetry Tracer cannot have both gRPC and HTTP exporters configured. OpenTelemetry tracer will be disabled.")
	case m.GetGrpcService() != nil:
		s, p := m.GetGrpcService(), join(path, "grpc_service")
		r.only(p, s, "envoy_grpc timeout initial_metadata", "")
		r.only(join(p, "envoy_grpc"), s.GetEnvoyGrpc(), "cluster_name authority", "")
		out.Cluster, out.Authority = s.GetEnvoyGrpc().GetClusterName(), s.GetEnvoyGrpc().GetAuthority()
		out.Timeout = r.duration(join(p, "timeout"), s.GetTimeout(), 0)
		for _, v := range s.GetInitialMetadata() {
			out.Headers = append(out.Headers, model.HeaderEdit{Name: strings.ToLower(v.GetKey()), Value: strings.ReplaceAll(v.GetValue(), "%", "%%")})
		}
	case m.GetHttpService() != nil:
		s, p := m.GetHttpService(), join(path, "http_service")
		r.only(p, s, "http_uri request_headers_to_add", "")
		r.only(join(p, "http_uri"), s.GetHttpUri(), "uri cluster timeout", "")
		out.Cluster, out.HTTPPath = s.GetHttpUri().GetCluster(), otlpTracesPath
		out.Timeout = r.duration(join(p, "http_uri.timeout"), s.GetHttpUri().GetTimeout(), 0)
		out.Headers = r.additions(join(p, "request_headers_to_add"), s.GetRequestHeadersToAdd())
		u, err := url.Parse(s.GetHttpUri().GetUri())
		if err != nil {
			r.errorf(join(p, "http_uri.uri"), "%w", err)
			break
		}
		out.Authority = u.Host
		if u.RequestURI() != "/" {
			out.HTTPPath = u.RequestURI()
		}
	}
	for i, x := range m.GetResourceDetectors() {
		p := index(join(path, "resource_detectors"), i)
		switch typeOf(x.GetTypedConfig()) {
		case "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig":
			var c detectorsv3.StaticConfigResourceDetectorConfig
			if r.extension(p, x.GetTypedConfig(), &c) {
				for k, v := range c.GetAttributes() {
					out.Resource[k] = v
				}
			}
		case "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig":
			if r.d.opt.Getenv == nil {
				r.errorf(p, "the environment may not be read here")
				break
			}
			for _, kv := range strings.Split(r.d.opt.Getenv("OTEL_RESOURCE_ATTRIBUTES"), ",") {
				if k, v, ok := strings.Cut(kv, "="); ok && strings.TrimSpace(k) != "" {
					out.Resource[strings.TrimSpace(k)] = strings.TrimSpace(v)
				}
			}
		default:
			r.errorf(p, "%q of type %q is not supported", x.GetName(), x.GetTypedConfig().GetTypeUrl())
		}
	}
	if s := m.GetSampler(); s != nil && typeOf(s.GetTypedConfig()) != "envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig" {
		r.errorf(join(path, "sampler"), "%q of type %q is not supported", s.GetName(), s.GetTypedConfig().GetTypeUrl())
	}
	return out
}

func (r *run) zipkin(path string, m *tracev3.ZipkinConfig) *model.Zipkin {
	r.only(path, m, `collector_cluster collector_endpoint trace_id_128bit shared_span_context collector_endpoint_version
		collector_hostname split_spans_for_request trace_context_option`, "timestamp_trace_ids")
	if v := m.GetCollectorEndpointVersion(); v != tracev3.ZipkinConfig_HTTP_JSON {
		r.errorf(join(path, "collector_endpoint_version"), "%v is not supported", v)
	}
	if o := m.GetTraceContextOption(); o != tracev3.ZipkinConfig_USE_B3 {
		r.errorf(join(path, "trace_context_option"), "%v is not supported", o)
	}
	z := &model.Zipkin{
		Cluster:    m.GetCollectorCluster(),
		Endpoint:   m.GetCollectorEndpoint(),
		Host:       m.GetCollectorHostname(),
		TraceID128: m.GetTraceId_128Bit(),
		SharedSpan: boolean(m.GetSharedSpanContext(), true),
		SplitSpans: m.GetSplitSpansForRequest(),
	}
	if z.Host == "" {
		z.Host = z.Cluster
	}
	if z.Endpoint == "" {
		z.Endpoint = zipkinSpansPath
	}
	return z
}

func (r *run) localReply(path string, m *hcmv3.LocalReplyConfig) *model.LocalReply {
	if m == nil {
		return nil
	}
	r.only(path, m, "mappers body_format", "")
	out := &model.LocalReply{}
	out.Text, out.JSON, out.ContentType = r.bodyFormat(join(path, "body_format"), m.GetBodyFormat())
	for i, x := range m.GetMappers() {
		p := index(join(path, "mappers"), i)
		r.only(p, x, "filter status_code body body_format_override headers_to_add", "")
		rm := model.ReplyMapper{
			Filter: r.logFilter(join(p, "filter"), x.GetFilter()),
			Status: int(u32(x.GetStatusCode(), 0)),
			Edits:  r.additions(join(p, "headers_to_add"), x.GetHeadersToAdd()),
		}
		// Compiling the log checks its filter.
		if _, err := accesslog.Compile(&model.AccessLog{Filter: rm.Filter}, nil); err != nil {
			r.errorf(join(p, "filter"), "%w", err)
		}
		if b, ok := r.source(join(p, "body"), x.GetBody()); ok {
			s := string(b)
			rm.Body = &s
		}
		rm.Text, rm.JSON, rm.ContentType = r.bodyFormat(join(p, "body_format_override"), x.GetBodyFormatOverride())
		out.Mappers = append(out.Mappers, rm)
	}
	return out
}
