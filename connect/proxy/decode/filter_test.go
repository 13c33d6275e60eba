package decode_test

import (
	"fmt"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/filter/all"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// managerJSON is a listener whose manager has a filter, and a route that changes it unless route is empty.
func managerJSON(config, route string) string {
	per := ""
	if route != "" {
		per = `,"typed_per_filter_config":{"f":` + route + `}`
	}
	filters := `{"name":"router","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}`
	if config != "" {
		filters = `{"name":"f","typed_config":` + config + `},` + filters
	}
	return `{"name":"l","address":{"socket_address":{"address":"127.0.0.1","port_value":1}},"filter_chains":[{"filters":[{"name":"hcm","typed_config":{
		"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"s",
		"http_filters":[` + filters + `],
		"route_config":{"name":"r","virtual_hosts":[{"name":"v","domains":["*"],"routes":[{"match":{"prefix":"/"},"route":{"cluster":"c"}` + per + `}]}]}}}]}]}`
}

func httpType(message, rest string) string {
	if rest != "" {
		rest = "," + rest
	}
	return `{"@type":"type.googleapis.com/envoy.extensions.filters.http.` + message + `"` + rest + `}`
}

func decodeManager(t *testing.T, config, route string) (*model.HTTPManager, error) {
	t.Helper()
	l, err := decode.New(decode.Options{}).Listener(pack(t, &listenerv3.Listener{}, managerJSON(config, route)))
	if err != nil {
		return nil, err
	}
	return l.Chains[0].Terminal.(*model.HTTPManager), nil
}

func TestHTTPFilters(t *testing.T) {
	const (
		rule   = `"permissions":[{"any":true}]`
		bucket = `"token_bucket":{"max_tokens":2,"fill_interval":"1s"}`
		keys   = `{\"keys\":[{\"kty\":\"oct\",\"k\":\"YQ\"}]}`
	)
	policy := func(permission, principal string) string {
		return `"rules":{"policies":{"p":{"permissions":[` + permission + `],"principals":[` + principal + `]}}}`
	}
	provider := func(rest string) string {
		return `"providers":{"p":{"issuer":"i","local_jwks":{"inline_string":"` + keys + `"}` + rest + `}}`
	}
	remote := func(rest string) string {
		return `"providers":{"p":{"remote_jwks":{"http_uri":{"uri":"https://a.b/k?x","cluster":"c","timeout":"1s"}` + rest + `}}}`
	}
	requirement := func(rest string) string { return `"rules":[{"match":{"prefix":"/"},"requires":` + rest + `}]` }
	any := `{"any":true}`
	tests := []struct {
		message, config string
		routeMessage    string
		route           string
		err             string // empty: it is good
	}{
		{message: "rbac.v3.RBAC", routeMessage: "rbac.v3.RBACPerRoute", route: `"rbac":{}`},
		{message: "rbac.v3.RBAC", config: policy(`{"header":{"name":"X-A","string_match":{"exact":"1"},"invert_match":true}},{"url_path":{"path":{"prefix":"/a"}}},{"not_rule":{"metadata":{"filter":"f","path":[{"key":"a"}],"value":{"present_match":true}}}},{"sourced_metadata":{"metadata_matcher":{"filter":"f","path":[{"key":"a"}],"value":{"bool_match":true}},"metadata_source":"ROUTE"}}`,
			`{"header":{"name":"a","present_match":true}},{"url_path":{"path":{"exact":"/"}}},{"filter_state":{"key":"k","string_match":{"exact":"v"}}},{"source_ip":{"address_prefix":"10.0.0.0","prefix_len":8}}`) +
			`,"shadow_rules":{"action":"LOG"},"shadow_rules_stat_prefix":"s","track_per_rule_stats":true`},
		{message: "rbac.v3.RBAC", config: `"matcher":{}`, err: "matcher: not supported"},
		{message: "rbac.v3.RBAC", config: `"rules":{"policies":{"p":{` + rule + `,"principals":[{"any":true}],"condition":{}}}}`, err: "rules.policies[p].condition: not supported"},
		{message: "rbac.v3.RBAC", config: policy(`{"header":{"name":":path2","present_match":true}}`, any), err: "is no header"},
		{message: "rbac.v3.RBAC", config: policy(`{"matcher":{"name":"x","typed_config":{"@type":"type.googleapis.com/google.protobuf.Empty"}}}`, any), err: "not supported"},
		{message: "rbac.v3.RBAC", config: policy(`{"url_path":{"path":{"safe_regex":{"regex":"("}}}}`, any), err: "url_path.path"},

		{message: "fault.v3.HTTPFault", config: `"delay":{"fixed_delay":"1s","percentage":{"numerator":5}},"abort":{"grpc_status":14,"percentage":{"numerator":1,"denominator":"MILLION"}},"max_active_faults":3,"headers":[{"name":"a","present_match":true}],"downstream_nodes":["n"],"response_rate_limit":{"fixed_limit":{"limit_kbps":"9"},"percentage":{"numerator":100}},"filter_metadata":{"a":1}`,
			routeMessage: "fault.v3.HTTPFault", route: `"abort":{"header_abort":{}}`},
		{message: "fault.v3.HTTPFault", config: `"abort":{"http_status":99}`, err: "HttpStatus"},

		{message: "local_ratelimit.v3.LocalRateLimit", config: `"stat_prefix":"s"`, routeMessage: "local_ratelimit.v3.LocalRateLimit", route: `"stat_prefix":"s",` + bucket},
		{message: "local_ratelimit.v3.LocalRateLimit", config: `"stat_prefix":"s",` + bucket + `,"filter_enabled":{"default_value":{"numerator":100}},"response_headers_to_add":[{"header":{"key":"X-L","value":"1"}}],"descriptors":[{"entries":[{"key":"a","value":"b"}],"token_bucket":{"max_tokens":1,"fill_interval":"60s"}}],"rate_limits":[{"actions":[{"remote_address":{}}]}],"enable_x_ratelimit_headers":"DRAFT_VERSION_03","vh_rate_limits":"INCLUDE","status":{"code":"ServiceUnavailable"}`},
		{message: "local_ratelimit.v3.LocalRateLimit", config: `"stat_prefix":"s","token_bucket":{"max_tokens":2,"fill_interval":"0.049s"}`, err: "fill timer must be >= 50ms"},
		{message: "local_ratelimit.v3.LocalRateLimit", config: `"stat_prefix":"s","local_cluster_rate_limit":{}`, err: "local_cluster_rate_limit: not supported"},
		{message: "local_ratelimit.v3.LocalRateLimit", config: `"stat_prefix":"s"`, routeMessage: "local_ratelimit.v3.LocalRateLimit", route: `"stat_prefix":"s"`, err: "must be set for per filter configs"},

		{message: "jwt_authn.v3.JwtAuthentication", config: provider(`,"from_headers":[{"name":"X-T","value_prefix":"t "}],"forward":true,"claim_to_headers":[{"header_name":"X-C","claim_name":"a.b"}],"payload_in_metadata":"m"`) + `,` + requirement(`{"requires_all":{"requirements":[{"requires_any":{"requirements":[{"provider_name":"p"},{"allow_missing_or_failed":{}}]}},{"provider_and_audiences":{"provider_name":"p","audiences":["a"]}}]}}`) + `,"requirement_map":{"r":{"provider_name":"p"}}`,
			routeMessage: "jwt_authn.v3.PerRouteConfig", route: `"requirement_name":"r"`},
		{message: "jwt_authn.v3.JwtAuthentication", config: remote(`,"async_fetch":{"fast_listener":true},"cache_duration":"60s","retry_policy":{"num_retries":2,"retry_back_off":{"base_interval":"1s"}}`)},
		{message: "jwt_authn.v3.JwtAuthentication", config: remote(`,"retry_policy":{"retry_on":"5xx"}`), err: "retry_policy.retry_on: not supported"},
		{message: "jwt_authn.v3.JwtAuthentication", config: provider(`,"failed_status_in_metadata":"x"`), err: "failed_status_in_metadata: not supported"},
		{message: "jwt_authn.v3.JwtAuthentication", config: provider(`,"forward_payload_header":"content-length"`), err: "is no header that can be set"},
		{message: "jwt_authn.v3.JwtAuthentication", config: `"providers":{"p":{"local_jwks":{"inline_string":"{}"}}}`, err: "Jwks doesn't have any valid public key"},
		{message: "jwt_authn.v3.JwtAuthentication", config: provider("") + `,` + requirement(`{"provider_name":"q"}`), err: `no provider "q"`},
		{message: "jwt_authn.v3.JwtAuthentication", config: provider("") + `,"rules":[{"match":{"prefix":"/"},"requirement_name":"x"}]`, err: `no requirement "x"`},
		{message: "jwt_authn.v3.JwtAuthentication", config: provider("") + `,` + requirement(`{"extract_only_without_validation":{}}`), err: "not supported"},

		{message: "ext_authz.v3.ExtAuthz", config: `"transport_api_version":"V3","grpc_service":{"envoy_grpc":{"cluster_name":"c"}},"with_request_body":{"max_request_bytes":9},"clear_route_cache":true`,
			routeMessage: "ext_authz.v3.ExtAuthzPerRoute", route: `"check_settings":{"context_extensions":{"a":"b"}}`},
		{message: "ext_authz.v3.ExtAuthz", config: `"http_service":{"server_uri":{"uri":"http://a","cluster":"c","timeout":"1s"},"authorization_request":{"headers_to_add":[{"key":"X-A","value":"1"}]},"authorization_response":{"allowed_client_headers":{"patterns":[{"prefix":"x-"}]}}}`},
		{message: "ext_authz.v3.ExtAuthz", config: `"grpc_service":{"google_grpc":{"target_uri":"a","stat_prefix":"b"}}`, err: "google_grpc: not supported"},
		{message: "ext_authz.v3.ExtAuthz", config: `"grpc_service":{"envoy_grpc":{"cluster_name":"c"}},"shadow_mode":true`, err: "shadow_mode: not supported"},

		{message: "health_check.v3.HealthCheck", config: `"pass_through_mode":false,"cluster_min_healthy_percentages":{"c":{"value":50}},"headers":[{"name":":path","string_match":{"exact":"/h"}}]`},
		{message: "health_check.v3.HealthCheck", config: `"pass_through_mode":false,"cache_time":"1s"`, err: "cache_time"},
		{message: "header_to_metadata.v3.Config", config: `"request_rules":[{"header":"X-A","on_header_present":{"metadata_namespace":"n","key":"k","type":"STRING","regex_value_rewrite":{"pattern":{"regex":"(.*)b"},"substitution":"\\1"}},"remove":true}]`},
		{message: "header_to_metadata.v3.Config", config: `"request_rules":[{"header":"a","cookie":"b","on_header_present":{"key":"k"}}]`, err: "One of Cookie or Header"},
		{message: "header_to_metadata.v3.Config", config: `"request_rules":[{"header":"a","on_header_missing":{"key":"k"}}]`, err: "empty value"},
		{message: "header_to_metadata.v3.Config", config: `"request_rules":[{"header":"a","on_header_present":{"key":"k","type":"PROTOBUF_VALUE"}}]`, err: "not supported"},
		{message: "set_metadata.v3.Config", config: `"metadata":[{"metadata_namespace":"n","value":{"a":1},"allow_overwrite":true}]`},
		{message: "set_metadata.v3.Config", config: `"metadata":[{"metadata_namespace":"n","typed_value":{"@type":"type.googleapis.com/google.protobuf.Empty"}}]`, err: "typed_value: not supported"},
		{message: "buffer.v3.Buffer", config: `"max_request_bytes":10`, routeMessage: "buffer.v3.BufferPerRoute", route: `"disabled":true`},
		{message: "cors.v3.Cors", routeMessage: "cors.v3.CorsPolicy", route: `"allow_origin_string_match":[{"exact":"*"}],"allow_methods":"GET"`},
		{message: "header_mutation.v3.HeaderMutation", config: `"mutations":{"request_mutations":[{"remove":"X-A"},{"append":{"header":{"key":"X-B","value":"%PROTOCOL%"},"append_action":"ADD_IF_ABSENT"}}],"query_parameter_mutations":[{"append":{"record":{"key":"a","value":"b"}}}]}`,
			routeMessage: "header_mutation.v3.HeaderMutationPerRoute", route: `"mutations":{"response_mutations":[{"remove":"x"}]}`},
		{message: "header_mutation.v3.HeaderMutation", config: `"mutations":{"request_mutations":[{"append":{"header":{"key":"transfer-encoding","value":"x"}}}]}`, err: "belongs to the connection"},

		{message: "compressor.v3.Compressor", config: `"compressor_library":{"name":"text","typed_config":{"@type":"type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip","compression_level":"BEST_SPEED","window_bits":12}},"response_direction_config":{"common_config":{"min_content_length":100,"content_type":["text/html"]}}`,
			routeMessage: "compressor.v3.CompressorPerRoute", route: `"disabled":true`},
		{message: "compressor.v3.Compressor", config: `"compressor_library":{"name":"x","typed_config":{"@type":"type.googleapis.com/google.protobuf.Empty"}}`, err: "is not supported"},
		{message: "compressor.v3.Compressor", config: `"request_direction_config":{"common_config":{"enabled":{"default_value":true,"runtime_key":"k"}}},"compressor_library":{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip"}}`, err: "requests are not compressed"},
		{message: "grpc_stats.v3.FilterConfig", config: `"individual_method_stats_allowlist":{"services":[{"name":"s","method_names":["m"]}]}`},
		{message: "grpc_stats.v3.FilterConfig", config: `"emit_filter_state":true`, err: "emit_filter_state: not supported"},
		{message: "grpc_http1_bridge.v3.Config"},
		{message: "grpc_http1_bridge.v3.Config", config: `"upgrade_protobuf_to_grpc":true`, err: "upgrade_protobuf_to_grpc: not supported"},
		{message: "grpc_web.v3.GrpcWeb"},

		{message: "ratelimit.v3.RateLimit", config: `"domain":"d","rate_limit_service":{"transport_api_version":"V3","grpc_service":{"envoy_grpc":{"cluster_name":"c"}}},"request_type":"internal","enable_x_ratelimit_headers":"DRAFT_VERSION_03"`,
			routeMessage: "ratelimit.v3.RateLimitPerRoute", route: `"vh_rate_limits":"INCLUDE"`},
		{message: "ratelimit.v3.RateLimit", config: `"domain":"d","rate_limit_service":{"transport_api_version":"V3","grpc_service":{"envoy_grpc":{"cluster_name":"c"}}},"failure_mode_deny_percent":{"default_value":{"numerator":1}}`, err: "failure_mode_deny_percent: not supported"},
		{message: "basic_auth.v3.BasicAuth", config: `"users":{"inline_string":"bob:{SHA}2kuSN7rMzfGcB2DKt67EqDWQELA="}`, routeMessage: "basic_auth.v3.BasicAuthPerRoute", route: `"users":{"inline_string":"bob:{SHA}2kuSN7rMzfGcB2DKt67EqDWQELA="}`},
		{message: "basic_auth.v3.BasicAuth", config: `"users":{"inline_string":"bob:secret"}`, err: "not a SHA hash"},
		{message: "csrf.v3.CsrfPolicy", config: `"filter_enabled":{"default_value":{"numerator":100}},"additional_origins":[{"exact":"a"}]`, routeMessage: "csrf.v3.CsrfPolicy", route: `"filter_enabled":{"default_value":{"numerator":0}}`},
		{message: "admission_control.v3.AdmissionControl", config: `"success_criteria":{"http_criteria":{"http_success_status":[{"start":100,"end":400}]},"grpc_criteria":{"grpc_success_status":[0]}},"sr_threshold":{"default_value":{"value":90},"runtime_key":"k"}`},
		{message: "admission_control.v3.AdmissionControl", config: `"success_criteria":{},"sampling_window":"0.5s"`, err: "sampling_window"},
	}
	for i, tt := range tests {
		t.Run(fmt.Sprint(i, tt.message), func(t *testing.T) {
			route := ""
			if tt.routeMessage != "" {
				route = httpType(tt.routeMessage, tt.route)
			}
			m, err := decodeManager(t, httpType(tt.message, tt.config), route)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// What was decoded is what the filter takes.
			c := m.Filters[0].Config
			b := filtertest.New(t, all.Types()[c.FilterType()], c)
			if p := m.Routes.VirtualHosts[0].Routes[0].PerFilter["f"]; p.Config != nil {
				b.Route(p.Config)
			} else if route != "" {
				t.Error("the configuration of the route is lost")
			}
		})
	}
}

func TestDumpHidesSecretsOfFilters(t *testing.T) {
	for _, config := range []string{
		httpType("jwt_authn.v3.JwtAuthentication", `"providers":{"p":{"local_jwks":{"inline_string":"{\"keys\":[{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}]}"}}}`),
		httpType("basic_auth.v3.BasicAuth", `"users":{"inline_string":"bob:{SHA}c2VjcmV0"}`),
		httpType("ext_authz.v3.ExtAuthz", `"grpc_service":{"envoy_grpc":{"cluster_name":"c"},"initial_metadata":[{"key":"x-api-key","value":"c2VjcmV0"}]}`),
	} {
		b, err := decode.JSON(pack(t, &listenerv3.Listener{}, managerJSON(config, "")))
		if err != nil || strings.Contains(string(b), "c2VjcmV0") || !strings.Contains(string(b), "[redacted]") {
			t.Errorf("%v: %s", err, b)
		}
	}
}
