package decode_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// toJSON turns the YAML of a test into JSON.
func toJSON(t testing.TB, y string) string {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(y), &v); err != nil {
		t.Fatalf("%v in\n%s", err, y)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func indent(s, by string) string { return by + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n"+by) }

const routerFilter = `
- name: r
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}`

// manager decodes a connection manager of a few fields beside those that it needs. A field "http_filters" stands for itself.
func manager(t testing.TB, fields string) (*model.HTTPManager, error) {
	t.Helper()
	y := "'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\nstat_prefix: p\n"
	if !strings.Contains(fields, "http_filters:") {
		y += "http_filters:" + routerFilter + "\n"
	}
	if !strings.Contains(fields, "rds:") && !strings.Contains(fields, "route_config:") && !strings.Contains(fields, "scoped_routes:") {
		y += "route_config: {}\n"
	}
	y += strings.TrimSpace(fields)
	y = `
name: l
address: {socket_address: {address: 127.0.0.1, port_value: 80}}
filter_chains:
- filters:
  - name: h
    typed_config:
` + indent(y, "      ")
	l, err := decode.New(decode.Options{Getenv: func(string) string { return "a=b, c=d,e" }}).Listener(pack(t, new(listenerv3.Listener), toJSON(t, y)))
	if err != nil {
		return nil, err
	}
	return l.Chains[0].Terminal.(*model.HTTPManager), nil
}

func table(t testing.TB, y string) (*model.RouteConfig, error) {
	t.Helper()
	return decode.New(decode.Options{}).RouteConfig(pack(t, new(routev3.RouteConfiguration), toJSON(t, y)))
}

var comparable = cmp.Options{
	cmp.Comparer(func(a, b *regexp.Regexp) bool {
		return (a == nil) == (b == nil) && (a == nil || a.String() == b.String())
	}),
	cmp.Comparer(func(a, b model.StringMatch) bool { return a.Equal(b) }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func defaults() *model.HTTPManager {
	return &model.HTTPManager{
		StatPrefix: "p", Routes: &model.RouteConfig{MaxDirectBody: 4096, ValidateClusters: true},
		Filters:        []model.HTTPFilter{{Name: "r", Config: &model.Router{}}},
		MaxHeaderBytes: 60 << 10, MaxHeaders: 100, IdleTimeout: time.Hour, StreamIdleTimeout: 5 * time.Minute,
		DrainTimeout: 5 * time.Second, DelayedClose: time.Second, ServerName: "envoy",
		GenerateRequestID: true, PackTraceReason: true, TraceReasonForSampling: true,
	}
}

func ptr[T any](v T) *T { return &v }

func TestManagers(t *testing.T) {
	tests := []struct {
		name, yaml string
		want       func(*model.HTTPManager)
	}{
		{"defaults", "", func(*model.HTTPManager) {}},
		{"codec", "codec_type: HTTP2", func(m *model.HTTPManager) { m.Codec = model.CodecHTTP2 }},
		{"routes of the control plane", "rds: {route_config_name: web, config_source: {ads: {}, resource_api_version: V3}}", func(m *model.HTTPManager) { m.Routes, m.RouteName = nil, "web" }},
		{"limits", `
max_request_headers_kb: 8192
common_http_protocol_options: {idle_timeout: 0s, max_connection_duration: 3s, max_headers_count: 7, max_stream_duration: 4s, max_requests_per_connection: 9, headers_with_underscores_action: DROP_HEADER}
stream_idle_timeout: 0s
request_timeout: 1s
request_headers_timeout: 2s
drain_timeout: 6s
delayed_close_timeout: 0s`, func(m *model.HTTPManager) {
			m.MaxHeaderBytes, m.MaxHeaders, m.IdleTimeout, m.MaxDuration, m.MaxStreamDuration, m.MaxRequests = 8<<20, 7, 0, 3*time.Second, 4*time.Second, 9
			m.StreamIdleTimeout, m.RequestTimeout, m.HeadersTimeout, m.DrainTimeout, m.DelayedClose = 0, time.Second, 2*time.Second, 6*time.Second, 0
			m.Underscores = model.UnderscoreDrop
		}},
		{"protocols", `
stream_error_on_invalid_http_message: true
http_protocol_options:
  accept_http_10: true
  default_host_for_http_10: h
  enable_trailers: true
  allow_chunked_length: true
  allow_absolute_url: false
  override_stream_error_on_invalid_http_message: false
  header_key_format: {stateful_formatter: {name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}
http2_protocol_options:
  hpack_table_size: 0
  max_concurrent_streams: 100
  initial_stream_window_size: 65535
  initial_connection_window_size: 65536
  allow_connect: true
  connection_keepalive: {interval: 30s, timeout: 5s, connection_idle_interval: 10s}`, func(m *model.HTTPManager) {
			m.HTTP1 = model.HTTP1Options{AcceptHTTP10: true, DefaultHost: "h", EnableTrailers: true, AllowChunkedLength: true, DenyAbsoluteURL: true, PreserveCase: true}
			m.HTTP2 = model.HTTP2Options{HPACKTable: ptr[uint32](0), ConcurrentStreams: 100, StreamWindow: 65535, ConnectionWindow: 65536, AllowConnect: true, OverrideError: true,
				Keepalive: &model.HTTP2Keepalive{Interval: 30 * time.Second, Timeout: 5 * time.Second, Jitter: 15, IdleInterval: 10 * time.Second}}
		}},
		{"where requests come from", `
use_remote_address: true
xff_num_trusted_hops: 2
skip_xff_append: true
append_x_forwarded_port: true
internal_address_config: {unix_sockets: true, cidr_ranges: [{address_prefix: 10.1.2.3, prefix_len: 8}]}
forward_client_cert_details: SANITIZE_SET
set_current_client_cert_details: {subject: true, uri: true}`, func(m *model.HTTPManager) {
			m.UseRemoteAddress, m.TrustedHops, m.SkipXFF, m.AppendXFPort = true, 2, true, true
			m.InternalUnix, m.Internal = true, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			m.XFCC, m.XFCCSubject, m.XFCCURI = model.XFCCSanitizeSet, true, true
		}},
		{"what becomes of them", `
server_name: s
server_header_transformation: PASS_THROUGH
via: v
normalize_path: true
merge_slashes: true
path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT
strip_any_host_port: true
strip_trailing_host_dot: true
scheme_header_transformation: {scheme_to_overwrite: https}
generate_request_id: false
preserve_external_request_id: true
always_set_request_id_in_response: true
request_id_extension: {typed_config: {"@type": type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, pack_trace_reason: false}}
proxy_100_continue: true
add_user_agent: true
append_local_overload: true`, func(m *model.HTTPManager) {
			m.ServerName, m.ServerHeader, m.Via = "s", model.ServerPassThrough, "v"
			m.NormalizePath, m.MergeSlashes, m.EscapedSlashes, m.StripPort, m.StripTrailingDot = true, true, model.EscapedRedirect, model.PortAny, true
			m.SchemeOverwrite = "https"
			m.GenerateRequestID, m.PreserveExternalRequestID, m.AlwaysSetRequestID, m.PackTraceReason = false, true, true, false
			m.Proxy100Continue, m.AddUserAgent, m.AppendLocalOverload = true, true, true
		}},
		{"upgrades", "upgrade_configs:\n- upgrade_type: WebSocket\n- upgrade_type: other\n  enabled: false\n  filters:" + strings.ReplaceAll(routerFilter, "\n", "\n  "), func(m *model.HTTPManager) {
			m.Upgrades = []model.Upgrade{{Name: "websocket", Enabled: true}, {Name: "other", Filters: m.Filters}}
		}},
		{"router", `
http_filters:
- name: envoy.router
  typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, value: {dynamic_stats: false, suppress_envoy_headers: true, strict_check_headers: [x-envoy-retry-on]}}`, func(m *model.HTTPManager) {
			m.Filters = []model.HTTPFilter{{Name: "envoy.router", Config: &model.Router{NoDynamicStats: true, SuppressHeaders: true, StrictHeaders: []string{"x-envoy-retry-on"}}}}
		}},
		{"router of old", "http_filters: [{name: envoy.router}]", func(m *model.HTTPManager) {
			m.Filters = []model.HTTPFilter{{Name: "envoy.router", Config: &model.Router{}}}
		}},
		{"an unknown filter that is optional", `
http_filters:
- name: x
  is_optional: true
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}` + routerFilter, func(*model.HTTPManager) {}},
		{"an unknown filter that is off", `
http_filters:
- name: x
  disabled: true
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}` + routerFilter, func(*model.HTTPManager) {}},
		{"tracing", `
tracing:
  client_sampling: {value: 1}
  random_sampling: {value: 0.5}
  spawn_upstream_span: true
  custom_tags:
  - {tag: l, literal: {value: v}}
  - {tag: e, environment: {name: E, default_value: d}}
  - {tag: h, request_header: {name: X-H}}
  - {tag: m, metadata: {kind: {host: {}}, metadata_key: {key: n, path: [{key: k}]}, default_value: d}}
  provider:
    name: o
    typed_config:
      "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
      service_name: web
      grpc_service: {envoy_grpc: {cluster_name: c, authority: a}, timeout: 1s, initial_metadata: [{key: X-K, value: 50%}]}
      resource_detectors:
      - {name: e, typed_config: {"@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig}}
      - {name: s, typed_config: {"@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig, attributes: {x: y}}}
      sampler: {name: a, typed_config: {"@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig}}`, func(m *model.HTTPManager) {
			m.Tracing = &model.Tracing{Client: 1, Random: 0.5, Overall: 100, MaxPath: 256, SpawnUpstreamSpan: true,
				CustomTags: []model.CustomTag{{Tag: "l", Literal: "v"}, {Tag: "e", Env: "E", Default: "d"}, {Tag: "h", RequestHeader: "x-h"},
					{Tag: "m", Metadata: &model.MetadataKey{Namespace: "n", Path: []string{"k"}, Default: "d"}, MetadataOf: model.MetadataOfHost, Default: "d"}},
				Provider: &model.OpenTelemetry{Cluster: "c", Authority: "a", Timeout: time.Second, Service: "web", Resource: map[string]string{"a": "b", "c": "d", "x": "y"},
					Headers: []model.HeaderEdit{{Name: "x-k", Value: "50%%"}}}}
		}},
		{"OTLP over HTTP", `
tracing:
  provider:
    name: o
    typed_config:
      "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
      http_service: {http_uri: {uri: "http://collector:4318/v1/x", cluster: c, timeout: 1s}, request_headers_to_add: [{header: {key: a, value: b}}]}`, func(m *model.HTTPManager) {
			m.Tracing = &model.Tracing{Client: 100, Random: 100, Overall: 100, MaxPath: 256,
				Provider: &model.OpenTelemetry{Cluster: "c", Authority: "collector:4318", HTTPPath: "/v1/x", Timeout: time.Second, Service: "unknown_service:envoy", Headers: []model.HeaderEdit{{Name: "a", Value: "b"}}}}
		}},
		{"Zipkin", `
tracing:
  provider:
    name: z
    typed_config: {"@type": type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, collector_cluster: c, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON, trace_id_128bit: true}`, func(m *model.HTTPManager) {
			m.Tracing = &model.Tracing{Client: 100, Random: 100, Overall: 100, MaxPath: 256, Provider: &model.Zipkin{Cluster: "c", Endpoint: "/api/v2/spans", Host: "c", TraceID128: true, SharedSpan: true}}
		}},
		{"replies", `
local_reply_config:
  body_format: {json_format: {status: "%RESPONSE_CODE%"}, content_type: application/problem+json}
  mappers:
  - filter: {status_code_filter: {comparison: {op: GE, value: {default_value: 500, runtime_key: k}}}}
    status_code: 502
    body: {inline_string: ""}
    body_format_override: {text_format_source: {inline_string: "%LOCAL_REPLY_BODY%!"}}
    headers_to_add: [{header: {key: X-A, value: b}, append_action: ADD_IF_ABSENT}]`, func(m *model.HTTPManager) {
			m.LocalReply = &model.LocalReply{JSON: map[string]any{"status": "%RESPONSE_CODE%"}, ContentType: "application/problem+json", Mappers: []model.ReplyMapper{{
				Filter: &model.LogFilter{Status: &model.Comparison{Op: model.CompareAtLeast, Value: 500}}, Status: 502, Body: ptr(""), Text: "%LOCAL_REPLY_BODY%!",
				Edits: []model.HeaderEdit{{Name: "x-a", Value: "b", Action: model.AddIfAbsent}}}}}
		}},
		{"filters of logs", `
access_log:
- name: a
  typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}
  filter:
    or_filter:
      filters:
      - header_filter: {header: {name: X-H, present_match: false}}
      - grpc_status_filter: {statuses: [INTERNAL, 14], exclude: true}
      - not_health_check_filter: {}
      - traceable_filter: {}
      - metadata_filter: {matcher: {filter: n, path: [{key: k}], value: {bool_match: true}}, match_if_key_not_found: false}
      - runtime_filter: {runtime_key: k, percent_sampled: {numerator: 1, denominator: MILLION}, use_independent_randomness: true}
      - log_type_filter: {types: [DownstreamEnd], exclude: true}`, func(m *model.HTTPManager) {
			m.AccessLogs = []model.AccessLog{{Name: "a", Sink: model.SinkStdout, Filter: &model.LogFilter{Or: []*model.LogFilter{
				{Header: &model.HeaderMatch{Name: "x-h", Kind: model.HeaderAbsent}}, {GRPC: &model.GRPCStatuses{Statuses: []uint32{13, 14}, Exclude: true}},
				{NotHealthCheck: true}, {Traceable: true},
				{Metadata: &model.MetadataLogFilter{Match: model.MetadataMatcher{Namespace: "n", Path: []string{"k"}, Value: model.ValueMatch{Bool: ptr(true)}}}},
				{Fraction: &model.LogFraction{Fraction: model.Fraction{Numerator: 1, Denominator: 1e6}, Independent: true}},
				{Types: &model.LogTypes{Types: []string{"DownstreamEnd"}, Exclude: true}},
			}}}}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := manager(t, tt.yaml)
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			tt.want(want)
			if d := cmp.Diff(want, got, comparable); d != "" {
				t.Errorf("want - got +\n%s", d)
			}
		})
	}
}

func TestBadManagers(t *testing.T) {
	const at = "filter_chains[0].filters[0].typed_config."
	tests := []struct{ name, yaml, want string }{
		{"HTTP/3", "codec_type: HTTP3", at + "codec_type: HTTP3 is not supported"},
		{"scoped routes", "scoped_routes: {name: x, scope_key_builder: {fragments: [{header_value_extractor: {name: x, index: 0}}]}, scoped_route_configurations_list: {scoped_route_configurations: [{name: x, key: {fragments: [{string_key: x}]}}]}}", at + "scoped_routes: not supported"},
		{"routes of elsewhere", "rds: {route_config_name: web, config_source: {path_config_source: {path: /x}}}", "only the source ads is supported"},
		{"routes without a name", "rds: {config_source: {ads: {}}}", "route_config_name: empty"},
		{"no filters", "http_filters: []", "the last one must be the router"},
		{"no router", `http_filters: [{name: x, is_optional: true, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}]`, "the last filter must be the router"},
		{"filter after the router", "http_filters:" + routerFilter + routerFilter, at + "http_filters[0]: the router must be the last filter"},
		{"router that is off", "http_filters:" + routerFilter + "\n  disabled: true", "the router can't be disabled"},
		{"unknown filter", `http_filters: [{name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}]`, `HTTP filter "x" of type "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua" is not supported`},
		{"filter without a type", "http_filters: [{name: x}]", `HTTP filter "x" has no typed_config`},
		{"filter of the control plane", `http_filters: [{name: x, config_discovery: {config_source: {ads: {}}, type_urls: [x]}}]`, "http_filters[0].config_discovery: not supported"},
		{"strict check of any header", `http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, strict_check_headers: [x-envoy-retry-on, x]}}]`, "StrictCheckHeaders[1]"},
		{"filters of hosts", `http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, upstream_http_filters: [{name: x}]}}]`, "upstream_http_filters: not supported"},
		{"both ports", "strip_any_host_port: true\nstrip_matching_host_port: true", "Cannot enable both"},
		{"upgrade twice", "upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: WebSocket}]", "multiple upgrade configs with the same name: 'websocket'"},
		{"header size", "max_request_headers_kb: 8193", "MaxRequestHeadersKb"},
		{"negative time", "stream_idle_timeout: -1s", "stream_idle_timeout: negative duration"},
		{"detection of addresses", `original_ip_detection_extensions: [{name: x, typed_config: {"@type": type.googleapis.com/envoy.config.core.v3.Address}}]`, "original_ip_detection_extensions[0].typed_config: \"envoy.config.core.v3.Address\" is not supported here"},
		{"rejection of addresses", `original_ip_detection_extensions: [{name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: x, reject_with_status: {code: 403}}}]`, "reject_with_status: not supported"},
		{"detection of addresses beside the peer's", "use_remote_address: true\n" + `original_ip_detection_extensions: [{name: x, typed_config: {"@type": type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: x}}]`, "may not be mixed"},
		{"another request id", `request_id_extension: {typed_config: {"@type": type.googleapis.com/envoy.config.core.v3.Address}}`, `request_id_extension: is a "envoy.config.core.v3.Address"`},
		{"logs in between", "access_log_options: {flush_access_log_on_new_request: true}", "access_log_options.flush_access_log_on_new_request: not supported"},
		{"trace provider", `tracing: {provider: {name: x, typed_config: {"@type": type.googleapis.com/envoy.config.core.v3.Address}}}`, `trace provider "x" of type`},
		{"two exporters", `tracing: {provider: {name: x, typed_config: {"@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, grpc_service: {envoy_grpc: {cluster_name: c}}, http_service: {http_uri: {uri: "http://x", cluster: c, timeout: 1s}}}}}`, "cannot have both gRPC and HTTP exporters"},
		{"Zipkin in protobuf", `tracing: {provider: {name: x, typed_config: {"@type": type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, collector_cluster: c, collector_endpoint: /, collector_endpoint_version: HTTP_PROTO}}}`, "HTTP_PROTO is not supported"},
		{"too many percent", "tracing: {random_sampling: {value: 101}}", "RandomSampling"},
		{"log flag of a reply", "local_reply_config: {mappers: [{filter: {response_flag_filter: {flags: [XX]}}}]}", "Flags"},
		{"format of a reply", `local_reply_config: {body_format: {text_format_source: {inline_string: "%NOPE%"}}}`, "body_format: unknown operator NOPE"},
		{"log by expression", `access_log: [{name: a, filter: {extension_filter: {name: cel}}, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}]`, "access log filter *accesslogv3.AccessLogFilter_ExtensionFilter is not supported"},
		{"a problem of an inline table", "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: c, hedge_policy: {hedge_on_per_try_timeout: true}}}]}]}", at + "route_config.virtual_hosts[0].routes[0].route.hedge_policy.hedge_on_per_try_timeout: not supported"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := manager(t, tt.yaml); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want it to say %q", err, tt.want)
			}
		})
	}
}

// oneRoute is a table with a single route.
func oneRoute(fields string) string {
	return "name: t\nvirtual_hosts:\n- name: v\n  domains: ['*']\n  routes:\n  - " + strings.TrimSpace(strings.ReplaceAll(strings.TrimSpace(fields), "\n", "\n    "))
}

const fullTable = `
name: t
internal_only_headers: [X-In]
request_headers_to_add: [{header: {key: X-A, value: '%DYNAMIC_METADATA(["n", "k"])%'}, append_action: OVERWRITE_IF_EXISTS, keep_empty_value: true}]
request_headers_to_remove: [X-B]
most_specific_header_mutations_wins: true
validate_clusters: true
max_direct_response_body_size_bytes: 5
ignore_port_in_host_matching: true
ignore_path_parameters_in_path_matching: true
vhost_header: X-Host
request_mirror_policies: [{cluster: m}]
metadata: {filter_metadata: {n: {k: 1}}}
virtual_hosts:
- name: v
  domains: [Foo.com, '*.foo.com']
  require_tls: EXTERNAL_ONLY
  include_request_attempt_count: true
  include_attempt_count_in_response: true
  include_is_timeout_retry_header: true
  per_request_buffer_limit_bytes: 10
  request_body_buffer_limit: 0
  response_headers_to_add: [{header: {key: x, value: y}, append: false}]
  virtual_clusters: [{name: x, headers: [{name: x, present_match: true}]}]
  typed_per_filter_config:
    off: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}
    unknown: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, is_optional: true, config: {"@type": type.googleapis.com/envoy.config.core.v3.Address}}
  retry_policy:
    retry_on: 5xx, connect-failure,cancelled
    num_retries: 3
    per_try_timeout: 1s
    per_try_idle_timeout: 2s
    retriable_status_codes: [502]
    retriable_headers: [{name: X-R, present_match: true}]
    retriable_request_headers: [{name: ':method', string_match: {exact: GET}}]
    retry_back_off: {base_interval: 0.0001s}
    rate_limited_retry_back_off: {reset_headers: [{name: Retry-After}, {name: X-Reset, format: UNIX_TIMESTAMP}]}
    host_selection_retry_max_attempts: 5
    retry_host_predicate:
    - {name: p, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}
    - {name: envoy.retry_host_predicates.omit_canary_hosts}
    - {name: m, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig, metadata_match: {filter_metadata: {envoy.lb: {v: "1"}}}}}
    retry_priority: {name: p, typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 2}}
  rate_limits:
  - stage: 1
    actions:
    - source_cluster: {}
    - destination_cluster: {}
    - remote_address: {}
    - masked_remote_address: {v4_prefix_mask_len: 24}
    - request_headers: {header_name: X-U, descriptor_key: u, skip_if_absent: true}
    - query_parameters: {query_parameter_name: q, descriptor_key: k}
    - generic_key: {descriptor_value: g}
    - header_value_match: {descriptor_value: d, expect_match: false, headers: [{name: x}]}
    - metadata: {descriptor_key: m, metadata_key: {key: n, path: [{key: k}]}, default_value: d}
  routes:
  - name: forward
    match:
      path_separated_prefix: /API
      case_sensitive: false
      runtime_fraction: {default_value: {numerator: 5, denominator: TEN_THOUSAND}, runtime_key: k}
      headers:
      - {name: X-H, range_match: {start: 1, end: 5}, invert_match: true, treat_missing_header_as_empty: true}
      - {name: a, exact_match: ''}
      - {name: b, prefix_match: p}
      - {name: c, safe_regex_match: {regex: 'x+'}}
      - {name: d, string_match: {suffix: S, ignore_case: true}}
      query_parameters: [{name: q, string_match: {exact: '1'}}, {name: p, present_match: true}, {name: n, present_match: false}]
      cookies: [{name: c, string_match: {exact: v}, invert_match: true}]
      grpc: {}
      tls_context: {presented: true, validated: false}
      dynamic_metadata: [{filter: n, path: [{key: k}], value: {or_match: {value_matchers: [{double_match: {range: {start: 1, end: 2}}}, {list_match: {one_of: {null_match: {}}}}]}}, invert: true}]
      filter_state: [{key: s, address_match: {ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}}]
    decorator: {operation: op, propagate: false}
    tracing: {random_sampling: {numerator: 5, denominator: TEN_THOUSAND}}
    stat_prefix: sp
    route:
      weighted_clusters:
        header_name: X-Random
        total_weight: 3
        clusters:
        - {name: a, weight: 1, host_rewrite_literal: h, metadata_match: {filter_metadata: {envoy.lb: {v: "1"}}}}
        - {cluster_header: X-C, weight: 2, request_headers_to_add: [{header: {key: w, value: 'a'}}]}
      cluster_not_found_response_code: NOT_FOUND
      prefix_rewrite: /v1
      host_rewrite_path_regex: {pattern: {regex: '^/(.+)/'}, substitution: '\1.$\\'}
      append_x_forwarded_host: true
      timeout: 0s
      idle_timeout: 0s
      max_grpc_timeout: 3s
      grpc_timeout_offset: 1s
      max_stream_duration: {grpc_timeout_header_max: 0s}
      priority: HIGH
      include_vh_rate_limits: true
      metadata_match: {filter_metadata: {envoy.lb: {s: x}, other: {}}}
      hash_policy:
      - {header: {header_name: X-U, regex_rewrite: {pattern: {regex: a}, substitution: ''}}, terminal: true}
      - {cookie: {name: c, ttl: 0s, path: /, attributes: [{name: SameSite, value: Lax}, {name: Secure}]}}
      - {connection_properties: {source_ip: true}}
      - {connection_properties: {}}
      - {query_parameter: {name: q}}
      - {filter_state: {key: s}}
      upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}, {upgrade_type: WebSocket, enabled: false}]
      internal_redirect_policy: {redirect_response_codes: [303], allow_cross_scheme_redirect: true}
      request_mirror_policies: [{cluster_header: X-M, runtime_fraction: {default_value: {numerator: 1}}, trace_sampled: false, disable_shadow_host_suffix_append: true, request_headers_mutations: [{remove: X-Y}, {append: {header: {key: z, value: z}}}]}]
  - match: {safe_regex: {regex: '/a|/b'}}
    redirect: {https_redirect: true, host_redirect: h, port_redirect: 8443, prefix_rewrite: /p, response_code: PERMANENT_REDIRECT, strip_query: true}
  - match: {path: /d}
    direct_response: {status: 403, body: {inline_string: 12345}, body_format: {json_format: {a: b}}}
  - match: {connect_matcher: {}}
    non_forwarding_action: {}
`

var fullRouteConfig = func() string {
	var v any
	if err := yaml.Unmarshal([]byte(fullTable), &v); err != nil {
		panic(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(string(b), `"inline_string":12345`, `"inline_string":"12345"`)
}()

func match(kind model.StringMatchKind, s string, fold bool) model.StringMatch {
	m, err := model.NewStringMatch(kind, s, fold)
	if err != nil {
		panic(err)
	}
	return m
}

func TestTable(t *testing.T) {
	got, err := decode.New(decode.Options{}).RouteConfig(pack(t, new(routev3.RouteConfiguration), fullRouteConfig))
	if err != nil {
		t.Fatal(err)
	}
	second := time.Second
	forward := &model.Forward{
		WeightHeader: "x-random", NotFoundStatus: 404, PrefixRewrite: "/v1",
		Weighted: []model.WeightedRoute{
			{Cluster: "a", Weight: 1, HostRewrite: "h", MetadataMatch: map[string]any{"v": "1"}},
			{ClusterHeader: "x-c", Weight: 2, RequestEdits: []model.HeaderEdit{{Name: "w", Value: "a"}}},
		},
		HostPathRegex: &model.RegexRewrite{Pattern: regexp.MustCompile("^/(.+)/"), Substitution: `${1}.$$\`},
		AppendXFH:     true, IdleTimeout: new(time.Duration), MaxGRPC: ptr(3 * second), GRPCOffset: second,
		MaxStream: &model.MaxStream{GRPCMax: new(time.Duration)}, Priority: model.PriorityHigh, IncludeVHLimits: true,
		MetadataMatch: map[string]any{"s": "x"},
		Hash: []model.HashPolicy{
			{Header: "x-u", HeaderRewrite: &model.RegexRewrite{Pattern: regexp.MustCompile("a")}, Terminal: true},
			{Cookie: &model.HashCookie{Name: "c", TTL: new(time.Duration), Path: "/", Attributes: []string{"SameSite=Lax", "Secure"}}},
			{SourceIP: true}, {Query: "q"}, {FilterState: "s"},
		},
		Upgrades: map[string]model.UpgradeOverride{"connect": {Enabled: true}, "websocket": {}}, ConnectTerminate: true,
		InternalRedirect: &model.InternalRedirect{Max: 1, Statuses: []int{303}, CrossScheme: true},
		Mirrors: []model.Mirror{{ClusterHeader: "x-m", Fraction: &model.Fraction{Numerator: 1, Denominator: 100}, TraceSampled: ptr(false), NoShadowHost: true,
			RequestEdits: []model.HeaderEdit{{Name: "x-y", Remove: true}, {Name: "z", Value: "z"}}}},
	}
	want := &model.RouteConfig{
		Name: "t", InternalOnly: []string{"x-in"}, MostSpecificWins: true, ValidateClusters: true, MaxDirectBody: 5, IgnorePort: true,
		IgnorePathParameters: true, HostHeader: "x-host", Mirrors: []model.Mirror{{Cluster: "m"}}, Metadata: model.Metadata{"n": {"k": 1.0}},
		RequestEdits: []model.HeaderEdit{{Name: "x-b", Remove: true}, {Name: "x-a", Value: "%DYNAMIC_METADATA(n:k)%", Action: model.OverwriteIfExists, KeepEmpty: true}},
		VirtualHosts: []model.VirtualHost{{
			Name: "v", Domains: []string{"foo.com", "*.foo.com"}, RequireTLS: model.TLSExternalOnly, AttemptCount: true, AttemptCountResponse: true, TimeoutRetry: true,
			BufferLimit: 1, ResponseEdits: []model.HeaderEdit{{Name: "x", Value: "y", Action: model.OverwriteOrAdd}},
			PerFilter: map[string]model.PerFilter{"off": {Disabled: true}},
			Retry: &model.RetryPolicy{On: model.Retry5xx | model.RetryConnectFailure | model.RetryGRPCCancelled, NumRetries: 3, PerTry: second, PerTryIdle: 2 * second,
				Statuses: []int{502}, Headers: []model.HeaderMatch{{Name: "x-r"}}, BaseBackOff: time.Millisecond, MaxBackOff: 10 * time.Millisecond,
				RequestHeaders: []model.HeaderMatch{{Name: ":method", Kind: model.HeaderString, Match: match(model.MatchExact, "GET", false)}},
				RateLimited:    &model.RateLimitedBackOff{Max: 300 * second, Headers: []model.ResetHeader{{Name: "retry-after"}, {Name: "x-reset", Unix: true}}},
				HostAttempts:   5, AvoidHosts: true, AvoidCanary: true, AvoidMetadata: []model.Metadata{{"envoy.lb": {"v": "1"}}}, AvoidPriorities: true, PriorityEvery: 2},
			RateLimits: []model.RateLimit{{Stage: 1, Actions: []model.RateLimitAction{
				{SourceCluster: true}, {DestinationCluster: true}, {RemoteAddress: true}, {MaskV4: 24, MaskV6: 128}, {Header: "x-u", HeaderKey: "u", SkipIfAbsent: true},
				{Query: "q", HeaderKey: "k"}, {Generic: "g"}, {HeaderValue: &model.HeaderValueMatch{Value: "d", Headers: []model.HeaderMatch{{Name: "x"}}}},
				{Metadata: &model.MetadataKey{Key: "m", Namespace: "n", Path: []string{"k"}, Default: "d"}},
			}}},
			Routes: []model.Route{
				{Name: "forward", Decorator: "op", StatPrefix: "sp", Tracing: &model.RouteTracing{Client: 100, Random: 0.05, Overall: 100}, Forward: forward, Match: model.RouteMatch{
					Kind: model.PathSeparatedPrefix, Path: "/api", IgnoreCase: true, Fraction: &model.Fraction{Numerator: 5, Denominator: 1e4}, GRPC: true,
					Headers: []model.HeaderMatch{
						{Name: "x-h", Kind: model.HeaderRange, Start: 1, End: 5, Invert: true, MissingAsEmpty: true}, {Name: "a"},
						{Name: "b", Kind: model.HeaderString, Match: match(model.MatchPrefix, "p", false)}, {Name: "c", Kind: model.HeaderString, Match: match(model.MatchRegex, "x+", false)},
						{Name: "d", Kind: model.HeaderString, Match: match(model.MatchSuffix, "s", true)}},
					Query:   []model.QueryMatch{{Name: "q", Match: match(model.MatchExact, "1", false)}, {Name: "p", Present: true}, {Name: "n", Absent: true}},
					Cookies: []model.CookieMatch{{Name: "c", Match: match(model.MatchExact, "v", false), Invert: true}}, TLSPresented: ptr(true), TLSValidated: ptr(false),
					Metadata: []model.MetadataMatcher{{Namespace: "n", Path: []string{"k"}, Invert: true, Value: model.ValueMatch{Or: []model.ValueMatch{
						{Number: &model.NumberMatch{Start: 1, End: 2}}, {Any: &model.ValueMatch{Null: true}}}}}},
					FilterState: []model.FilterStateMatcher{{Key: "s", Address: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
				}},
				{Match: model.RouteMatch{Kind: model.PathRegex, Path: "/a|/b", Regex: regexp.MustCompile(`\A(?:/a|/b)\z`)},
					Redirect: &model.Redirect{HTTPS: true, Host: "h", Port: 8443, Prefix: ptr("/p"), Status: 308, StripQuery: true}},
				{Match: model.RouteMatch{Kind: model.PathExact, Path: "/d"}, Direct: &model.DirectResponse{Status: 403, Body: "12345", JSON: map[string]any{"a": "b"}}},
				{Match: model.RouteMatch{Kind: model.PathConnect}, NonForwarding: true},
			},
		}},
	}
	if d := cmp.Diff(want, got, comparable); d != "" {
		t.Errorf("want - got +\n%s", d)
	}
}

func TestDefaultsOfRoutes(t *testing.T) {
	got, err := table(t, oneRoute("{match: {prefix: /}, route: {cluster: c, retry_policy: {}, internal_redirect_action: HANDLE_INTERNAL_REDIRECT}}"))
	if err != nil {
		t.Fatal(err)
	}
	want := []model.Route{{Forward: &model.Forward{
		Cluster: "c", NotFoundStatus: 503, Timeout: 15 * time.Second, InternalRedirect: &model.InternalRedirect{Max: 1, Statuses: []int{302}},
		Retry: &model.RetryPolicy{NumRetries: 1, BaseBackOff: 25 * time.Millisecond, MaxBackOff: 250 * time.Millisecond, HostAttempts: 1},
	}, Match: model.RouteMatch{Path: "/"}}}
	if d := cmp.Diff(want, got.VirtualHosts[0].Routes, comparable); d != "" {
		t.Errorf("want - got +\n%s", d)
	}
	if got.ValidateClusters {
		t.Error("a table of the control plane must not wait for its clusters")
	}
}

func TestBadTables(t *testing.T) {
	route := func(s string) string { return oneRoute("{match: {prefix: /}, route: {" + s + "}}") }
	retry := func(s string) string { return route("cluster: c, retry_policy: {" + s + "}") }
	matching := func(s string) string { return oneRoute("{match: {" + s + "}, route: {cluster: c}}") }
	hosts := func(s string) string { return "name: t\nvirtual_hosts: [" + s + "]" }
	const r0 = "virtual_hosts[0].routes[0]."
	tests := []struct{ name, yaml, want string }{
		{"no name", "virtual_hosts: []", "name: empty"},
		{"same domain", hosts("{name: a, domains: [x.com, X.com]}"), "virtual_hosts[0].domains[1]: Only unique values for domains are permitted. Duplicate entry of domain x.com in route t"},
		{"same domain of two", hosts("{name: a, domains: ['*.x']}, {name: b, domains: ['*.x']}"), "virtual_hosts[1].domains[0]: Only unique"},
		{"two for all", hosts("{name: a, domains: ['*']}, {name: b, domains: ['*']}"), "Only a single wildcard domain is permitted in route t"},
		{"no domain", hosts("{name: a}"), "Domains"},
		{"virtual hosts on demand", "name: t\nvhds: {config_source: {ads: {}}}", "vhds: not supported"},
		{"matcher", hosts("{name: a, domains: [x], matcher: {}}"), "virtual_hosts[0].matcher: not supported"},
		{"old CORS", hosts("{name: a, domains: [x], cors: {}}"), "virtual_hosts[0].cors: not supported"},
		{"no action", oneRoute("{match: {prefix: /}}"), "Action"},
		{"filter action", oneRoute("{match: {prefix: /}, filter_action: {}}"), r0 + "filter_action: not supported"},
		{"no path", matching(""), "PathSpecifier"},
		{"separated prefix with a slash", matching("path_separated_prefix: /a/"), "PathSeparatedPrefix"},
		{"template", matching("path_match_policy: {name: x, typed_config: {}}"), r0 + "match.path_match_policy: not supported"},
		{"broken expression", matching("safe_regex: {regex: '('}"), r0 + "match.safe_regex: error parsing regexp"},
		{"expression that leaves its anchors", matching("safe_regex: {regex: 'a)|(b'}"), "unexpected )"},
		{"long expression", matching("safe_regex: {regex: '" + strings.Repeat("a", 65537) + "'}"), "regular expression of 65537 bytes"},
		{"expression of a header", matching("prefix: /, headers: [{name: x, string_match: {safe_regex: {regex: '['}}}]"), "match.headers[0].string_match"},
		{"header that is none", matching("prefix: /, headers: [{name: ':x', present_match: true}]"), `":x" is no header`},
		{"empty prefix of a header", matching("prefix: /, headers: [{name: x, prefix_match: ''}]"), "PrefixMatch"},
		{"no cluster", route("cluster: ''"), "Cluster"},
		{"plugin", route("cluster_specifier_plugin: x"), r0 + "route.cluster_specifier_plugin: not supported"},
		{"no weight", route("weighted_clusters: {clusters: [{name: a}]}"), "weighted_clusters.clusters[0].weight: missing"},
		{"weights of nothing", route("weighted_clusters: {clusters: [{name: a, weight: 0}]}"), "Sum of weights in the weighted_cluster must be greater than 0."},
		{"weights beyond measure", route("weighted_clusters: {clusters: [{name: a, weight: 4294967295}, {name: b, weight: 1}]}"), "exceeds 4294967295"},
		{"weight of whom", route("weighted_clusters: {clusters: [{name: a, cluster_header: x, weight: 1}]}"), "exactly one of name and cluster_header"},
		{"two rewrites", route("cluster: c, prefix_rewrite: /, regex_rewrite: {pattern: {regex: a}, substitution: b}"), "Specify only one of prefix_rewrite, regex_rewrite"},
		{"rewrite with a space", route("cluster: c, prefix_rewrite: '/a b'"), "prefix_rewrite: \"/a b\" has a space"},
		{"substitution of no group", route(`cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: '\1'}`), "the pattern has only 0 groups"},
		{"substitution that ends", route(`cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: 'a\'}`), `a \ is followed by neither`},
		{"template rewrite", route("cluster: c, path_rewrite_policy: {name: x, typed_config: {}}"), "path_rewrite_policy: not supported"},
		{"hedging", route("cluster: c, hedge_policy: {hedge_on_per_try_timeout: true}"), "hedge_policy.hedge_on_per_try_timeout: not supported"},
		{"same upgrade", route("cluster: c, upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]"), "Duplicate upgrade A"},
		{"terminated upgrade", route("cluster: c, upgrade_configs: [{upgrade_type: a, connect_config: {}}]"), "Non-CONNECT upgrade type a has ConnectConfig"},
		{"redirect to nowhere", route("cluster: c, internal_redirect_policy: {redirect_response_codes: [200]}"), "200 is no redirect"},
		{"redirect predicates", route("cluster: c, internal_redirect_policy: {predicates: [{name: x, typed_config: {}}]}"), "predicates: not supported"},
		{"two cookies", route("cluster: c, hash_policy: [{cookie: {name: a, ttl: 1s}}, {cookie: {name: b, ttl: 1s}}]"), "a route can make only one cookie"},
		{"cookie that breaks out", route("cluster: c, hash_policy: [{cookie: {name: a, ttl: 1s, path: '/; Secure'}}]"), "can't stand in a cookie"},
		{"negative timeout", route("cluster: c, timeout: -1s"), "route.timeout: negative duration"},
		{"mirror of whom", route("cluster: c, request_mirror_policies: [{}]"), "Exactly one of cluster or cluster_header"},
		{"back-off", retry("retry_back_off: {base_interval: 2s, max_interval: 1s}"), "max_interval must greater than or equal"},
		{"status", retry("retriable_status_codes: [42]"), "42 is no status"},
		{"predicate", retry("retry_host_predicate: [{name: x}]"), `"x" of type "" is not supported`},
		{"priority", retry(`retry_priority: {name: x, typed_config: {"@type": type.googleapis.com/envoy.config.core.v3.Address}}`), "retry_priority"},
		{"retry options", retry("retry_options_predicates: [{name: x, typed_config: {}}]"), "retry_options_predicates: not supported"},
		{"port", oneRoute("{match: {prefix: /}, redirect: {port_redirect: 65536}}"), "redirect.port_redirect: 65536 is no port"},
		{"long body", oneRoute("{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: " + strings.Repeat("a", 4097) + "}}}"), "response body size is 4097 bytes; maximum is 4096"},
		{"status of a response", oneRoute("{match: {prefix: /}, direct_response: {status: 600}}"), "Status"},
		{"path of a request", oneRoute("{match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: ':path', value: x}}]}"), ":-prefixed or host headers may not be modified"},
		{"host of a request", oneRoute("{match: {prefix: /}, route: {cluster: c}, request_headers_to_remove: [Host]}"), ":-prefixed or host headers may not be removed"},
		{"framing", oneRoute("{match: {prefix: /}, route: {cluster: c}, response_headers_to_add: [{header: {key: Transfer-Encoding, value: x}}]}"), "transfer-encoding belongs to the connection"},
		{"both forms of appending", oneRoute("{match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: x, value: x}, append: true, append_action: ADD_IF_ABSENT}]}"), "Both append and append_action are set"},
		{"operator of a header", oneRoute("{match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: x, value: '%NOPE%'}}]}"), "request_headers_to_add[0].header.value: unknown operator NOPE"},
		{"filter of a route", oneRoute(`{match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: {"@type": type.googleapis.com/envoy.config.core.v3.Address}}}`), r0 + `typed_per_filter_config[x]: configuration of type "type.googleapis.com/envoy.config.core.v3.Address" for filter "x" is not supported here`},
		{"router of a route", oneRoute(`{match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}`), "is not supported here"},
		{"filter of a route that says nothing", oneRoute(`{match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig}}}`), "neither a configuration nor disabled"},
		{"limit", hosts("{name: a, domains: [x], rate_limits: [{actions: [{extension: {name: x, typed_config: {}}}]}]}"), "rate_limits[0].actions[0]: action"},
		{"limit of a prefix", hosts("{name: a, domains: [x], rate_limits: [{actions: [{masked_remote_address: {v4_prefix_mask_len: 33}}]}]}"), "V4PrefixMaskLen"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := table(t, tt.yaml); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want it to say %q", err, tt.want)
			}
		})
	}
}

func TestWhatListenersWaitFor(t *testing.T) {
	hcm := func(rest string) string {
		return fmt.Sprintf(`{"name":"h","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"p","http_filters":[{"name":"envoy.router"}],%s}}`, rest)
	}
	j := listenerJSON(`"filter_chains":[
		{"filter_chain_match":{"destination_port":1},"filters":[` + hcm(`"rds":{"route_config_name":"a","config_source":{"ads":{}}}`) + `]},
		{"filter_chain_match":{"destination_port":2},"filters":[` + hcm(`"route_config":{"virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},"route":{"cluster":"later"}}]}]}`) + `]},
		{"filter_chain_match":{"destination_port":3},"filters":[` + tcp("") + `]}]`)
	l, err := decode.New(decode.Options{}).Listener(pack(t, new(listenerv3.Listener), j))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(l.RouteNames(), l.Clusters()); got != "[a] [c]" {
		t.Errorf("routes and clusters %s", got)
	}
}
