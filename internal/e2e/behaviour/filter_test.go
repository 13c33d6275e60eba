package behaviour

import "strings"

// rules is a route with RBAC rules of its own.
func rules(conf string) string {
	return `{typed_per_filter_config: {envoy.filters.http.rbac: {"@type": T/filters.http.rbac.v3.RBACPerRoute, rbac: {` + conf + `}}}}`
}

// permit allows what one permission, and anybody, says.
func permit(permission string) string {
	return rules(`rules: {action: ALLOW, policies: {p1: {permissions: [` + permission + `], principals: [{any: true}]}}}`)
}

func principal(p string) string {
	return rules(`rules: {action: ALLOW, policies: {p1: {permissions: [{any: true}], principals: [` + p + `]}}}`)
}

var rbacs = group{
	name:        "rbac",
	statsDiffer: headerTwice,
	stats:       `rbac\.`,
	listeners: []listener{{filters: `[{name: envoy.filters.http.rbac, typed_config: {"@type": T/filters.http.rbac.v3.RBAC}}]`},
		{name: "ip", hcm: `{use_remote_address: false, xff_num_trusted_hops: 0}`, filters: `[{name: envoy.filters.http.rbac, typed_config: {"@type": T/filters.http.rbac.v3.RBAC}}]`},
		{name: "tls", chain: tlsChain(`require_client_certificate: true`), filters: `[{name: envoy.filters.http.rbac, typed_config: {"@type": T/filters.http.rbac.v3.RBAC, rules: {action: ALLOW, policies: {client: {permissions: [{any: true}], principals: [{authenticated: {principal_name: {exact: "spiffe://td/svc/client"}}}]}}}}}]`},
		{name: "tlsdeny", chain: tlsChain(`require_client_certificate: true`), filters: `[{name: envoy.filters.http.rbac, typed_config: {"@type": T/filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {client: {permissions: [{any: true}], principals: [{authenticated: {principal_name: {prefix: "spiffe://td/"}}}]}}}}}]`},
	},
	cases: []testCase{
		{name: "allow by path", route: permit(`{url_path: {path: {prefix: "{p}/ok"}}}`), do: steps(h1("GET {p}/ok"), h1("GET {p}/no"), h1("GET {p}/ok?x"))},
		{name: "the query is not the path", route: permit(`{url_path: {path: {exact: "{p}"}}}`), do: steps(h1("GET {p}?a=/b"), h1("GET {p}/"))},
		{name: "allow by method", route: permit(`{header: {name: ":method", string_match: {exact: GET}}}`), do: steps(h1("GET {p}"), h1("POST {p}", "body=a"))},
		{name: "allow by header", differs: headerTwice, route: permit(`{header: {name: x-a, string_match: {exact: "1"}}}`), do: steps(h1("GET {p}", "x-a: 1"), h1("GET {p}"), h1("GET {p}", "x-a: 1", "x-a: 1"))},
		{name: "and or not", route: permit(`{and_rules: {rules: [{or_rules: {rules: [{header: {name: x-a, present_match: true}}, {header: {name: x-b, present_match: true}}]}}, {not_rule: {header: {name: x-c, present_match: true}}}]}}`), do: steps(h1("GET {p}", "x-a: 1"), h1("GET {p}", "x-b: 1"), h1("GET {p}", "x-a: 1", "x-c: 1"), h1("GET {p}"))},
		{name: "deny by path", sorted: true, route: rules(`rules: {action: DENY, policies: {admin: {permissions: [{url_path: {path: {suffix: /admin}}}], principals: [{any: true}]}}}`), do: steps(h1("GET {p}/admin"), h1("GET {p}/user"), h2Anew("GET {p}/admin"))},
		{name: "no policy at all", route: rules(`rules: {action: ALLOW, policies: {}}`), do: h1("GET {p}")},
		{name: "no rules", route: rules(``), do: h1("GET {p}")},
		{name: "no policy denies", route: rules(`rules: {action: DENY, policies: {}}`), do: h1("GET {p}")},
		{name: "log only", route: rules(`rules: {action: LOG, policies: {p1: {permissions: [{any: true}], principals: [{any: true}]}}}`), do: h1("GET {p}")},
		{name: "shadow", route: rules(`shadow_rules: {action: ALLOW, policies: {}}`), do: h1("GET {p}")},
		{name: "shadow beside rules", route: rules(`rules: {action: ALLOW, policies: {p1: {permissions: [{any: true}], principals: [{any: true}]}}}, shadow_rules: {action: DENY, policies: {p2: {permissions: [{any: true}], principals: [{any: true}]}}}, shadow_rules_stat_prefix: "sh_"`), do: h1("GET {p}")},
		{name: "the first policy by name", route: rules(`rules: {action: DENY, policies: {b: {permissions: [{any: true}], principals: [{any: true}]}, a: {permissions: [{any: true}], principals: [{any: true}]}}}`), do: h1("GET {p}")},
		{name: "destination port", route: permit(`{destination_port: {{l}}}`), do: h1("GET {p}")},
		{name: "destination port range", route: permit(`{destination_port_range: {start: 1, end: 2}}`), do: h1("GET {p}")},
		{name: "destination address", route: permit(`{destination_ip: {address_prefix: 127.0.0.0, prefix_len: 8}}`), do: h1("GET {p}")},
		{name: "server name", route: permit(`{requested_server_name: {exact: x}}`), do: h1("GET {p}")},
		{name: "principal: direct address", route: principal(`{direct_remote_ip: {address_prefix: 127.0.0.1, prefix_len: 32}}`), do: h1("GET {p}", "x-forwarded-for: 9.9.9.9")},
		{name: "principal: address of the client", route: principal(`{remote_ip: {address_prefix: 9.9.9.9, prefix_len: 32}}`), do: steps(h1("GET {p}", "x-forwarded-for: 9.9.9.9"), h1("GET {p}"), h1("GET {p}", "x-forwarded-for: 9.9.9.9, 8.8.8.8"))},
		{name: "principal: header", route: principal(`{header: {name: x-a, string_match: {prefix: ab}}}`), do: steps(h1("GET {p}", "x-a: abc"), h1("GET {p}"))},
		{name: "principal: path", route: principal(`{url_path: {path: {contains: ok}}}`), do: steps(h1("GET {p}/ok"), h1("GET {p}/no"))},
		{name: "principal: authenticated", route: principal(`{authenticated: {}}`), do: h1("GET {p}")},
		{name: "principal: not", route: principal(`{not_id: {authenticated: {principal_name: {exact: x}}}}`), do: h1("GET {p}")},
		{name: "principal: and or", route: principal(`{and_ids: {ids: [{any: true}, {or_ids: {ids: [{header: {name: x-a, present_match: true}}]}}]}}`), do: steps(h1("GET {p}", "x-a: 1"), h1("GET {p}"))},
		{name: "denied grpc", route: rules(`rules: {action: ALLOW, policies: {}}`), do: h2("POST {p}", "content-type: application/grpc", "body=x")},
		{name: "denied with a body", route: rules(`rules: {action: ALLOW, policies: {}}`), do: steps(h1("POST {p}", "body=abc"), h1("GET {p}"))},
		{name: "an escaped path is what it is", route: rules(`rules: {action: DENY, policies: {admin: {permissions: [{url_path: {path: {exact: "{p}/admin"}}}], principals: [{any: true}]}}}`), do: steps(h1("GET {p}/%61dmin"), h1("GET {p}/./admin"), h1("GET {p}//admin"), h1("GET {p}/ADMIN"))},
		{name: "mtls: allowed", on: "tls", do: over(mtls, h1("GET {p}"))},
		{name: "mtls: allowed at h2", on: "tls", do: over(mtlsH2, h2("GET {p}"))},
		{name: "mtls: denied", on: "tlsdeny", do: over(mtls, h1("GET {p}"))},
	},
}

const jwtFilter = `[{name: envoy.filters.http.jwt_authn, typed_config: {"@type": T/filters.http.jwt_authn.v3.JwtAuthentication,
providers: {
 idp: {issuer: "https://idp", audiences: [web], local_jwks: {inline_string: '{{jwks}}'}},
 fwd: {issuer: "https://idp", audiences: [web], local_jwks: {inline_string: '{{jwks}}'}, forward: true, forward_payload_header: x-payload, payload_in_metadata: p},
 second: {issuer: "https://second", local_jwks: {inline_string: '{{jwks}}'}},
 places: {issuer: "https://idp", local_jwks: {inline_string: '{{jwks}}'}, from_headers: [{name: x-token, value_prefix: "Token "}], from_params: [t], from_cookies: [session]},
 claims: {issuer: "https://idp", local_jwks: {inline_string: '{{jwks}}'}, claim_to_headers: [{header_name: x-sub, claim_name: sub}, {header_name: x-team, claim_name: team.name}]},
 expiring: {issuer: "https://idp", local_jwks: {inline_string: '{{jwks}}'}, require_expiration: true},
 remote: {issuer: "https://idp", remote_jwks: {http_uri: {uri: "http://jwks/keys", cluster: refused, timeout: 0.2s}}}
},
requirement_map: {
 idp: {provider_name: idp}, fwd: {provider_name: fwd}, places: {provider_name: places}, claims: {provider_name: claims}, expiring: {provider_name: expiring}, remote: {provider_name: remote},
 other: {provider_and_audiences: {provider_name: idp, audiences: [other]}},
 any: {requires_any: {requirements: [{provider_name: idp}, {provider_name: second}]}},
 all: {requires_all: {requirements: [{provider_name: places}, {provider_name: second}]}},
 maybe: {requires_any: {requirements: [{provider_name: idp}, {allow_missing: {}}]}},
 whatever: {requires_any: {requirements: [{provider_name: idp}, {allow_missing_or_failed: {}}]}},
 none: {allow_missing_or_failed: {}}
}}}]`

func needs(name string) string {
	return `{typed_per_filter_config: {envoy.filters.http.jwt_authn: {"@type": T/filters.http.jwt_authn.v3.PerRouteConfig, requirement_name: ` + name + `}}}`
}

func bearer(name string) string { return "authorization: Bearer {{jwt." + name + "}}" }

var jwts = group{
	name:        "jwt",
	statsDiffer: tokensKept,
	stats:       `jwt_authn\.`,
	listeners:   []listener{{filters: jwtFilter}},
	cases: []testCase{
		{name: "missing", route: needs("idp"), do: steps(h1("GET {p}"), h2Anew("GET {p}"), h1("GET {p}", "authorization: Basic abc"))},
		{name: "good", route: needs("idp"), do: h1("GET {p}", bearer("good"), "x-payload: forged")},
		{name: "one audience of several", route: needs("idp"), do: h1("GET {p}", bearer("audiences"))},
		{name: "expired", route: needs("idp"), do: h1("GET {p}", bearer("expired"))},
		{name: "not yet", route: needs("idp"), do: h1("GET {p}", bearer("early"))},
		{name: "for others", route: needs("idp"), do: h1("GET {p}", bearer("audience"))},
		{name: "of another issuer", route: needs("idp"), do: h1("GET {p}", bearer("stranger"))},
		{name: "without an issuer", route: needs("idp"), do: h1("GET {p}", bearer("noissuer"))},
		{name: "forged", route: needs("idp"), do: h1("GET {p}", bearer("forged"))},
		{name: "without a signature", route: needs("idp"), do: h1("GET {p}", bearer("none"))},
		{name: "of an unknown key", route: needs("idp"), do: h1("GET {p}", bearer("kid"))},
		{name: "nonsense", route: needs("idp"), do: steps(h1("GET {p}", "authorization: Bearer abc"), h1("GET {p}", "authorization: Bearer a.b.c"), h1("GET {p}", "authorization: Bearer "))},
		{name: "for ever", route: needs("idp"), do: h1("GET {p}", bearer("noexpiry"))},
		{name: "for ever where an end is asked", route: needs("expiring"), do: h1("GET {p}", bearer("noexpiry"))},
		{name: "in the query", route: needs("idp"), do: h1("GET {p}?a=1&access_token={{jwt.good}}&b=2")},
		{name: "forwarded with its payload", route: needs("fwd"), do: h1("GET {p}", bearer("good"), "x-payload: forged")},
		{name: "in a header of its own", route: needs("places"), do: steps(h1("GET {p}", "x-token: Token {{jwt.good}}"), h1("GET {p}", "x-token: {{jwt.good}}"), h1("GET {p}", bearer("good")))},
		{name: "in a parameter", route: needs("places"), do: h1("GET {p}?t={{jwt.good}}")},
		{name: "in a cookie", differs: cookieRemoved, route: needs("places"), do: h1("GET {p}", "cookie: a=b; session={{jwt.good}}; c=d")},
		{name: "claims as headers", route: needs("claims"), do: h1("GET {p}", bearer("nested"), "x-sub: forged", "x-team: forged")},
		{name: "claims that are missing", route: needs("claims"), do: h1("GET {p}", bearer("good"), "x-team: forged")},
		{name: "another audience", route: needs("other"), do: steps(h1("GET {p}", bearer("audience")), h1("GET {p}", bearer("good")))},
		{name: "any", route: needs("any"), do: steps(h1("GET {p}", bearer("good")), h1("GET {p}", bearer("second")), h1("GET {p}", bearer("stranger")), h1("GET {p}"))},
		{name: "all", route: needs("all"), do: steps(h1("GET {p}", "x-token: Token {{jwt.good}}", bearer("second")), h1("GET {p}", bearer("second")), h1("GET {p}", "x-token: Token {{jwt.good}}"))},
		{name: "allow missing", route: needs("maybe"), do: steps(h1("GET {p}"), h1("GET {p}", bearer("good")), h1("GET {p}", bearer("expired")))},
		{name: "allow missing or failed", route: needs("whatever"), do: steps(h1("GET {p}"), h1("GET {p}", bearer("expired")))},
		{name: "no requirement", do: h1("GET {p}", bearer("expired"))},
		{name: "switched off", route: `{typed_per_filter_config: {envoy.filters.http.jwt_authn: {"@type": T/filters.http.jwt_authn.v3.PerRouteConfig, disabled: true}}}`, do: h1("GET {p}")},
		{name: "keys cannot be fetched", route: needs("remote"), do: h1("GET {p}", bearer("good"))},
		{name: "two tokens", differs: noTokenInRealm, route: needs("idp"), do: steps(h1("GET {p}?access_token={{jwt.expired}}", bearer("good")), h1("GET {p}?access_token={{jwt.good}}", bearer("expired")))},
		{name: "a grpc call", route: needs("idp"), do: h2("POST {p}", "content-type: application/grpc", "body=x")},
		{name: "lower case scheme", route: needs("idp"), do: h1("GET {p}", "authorization: bearer {{jwt.good}}")},
		{name: "a preflight passes", route: needs("idp"), do: h1("OPTIONS {p}", "origin: http://x", "access-control-request-method: GET")},
	},
}

const (
	authzClusters = `{authz-http: {hosts: [authz-http]}, authz-grpc: {hosts: [authz-grpc], h2: true}}`
	checkHTTP     = `http_service: {server_uri: {uri: "http://authz", cluster: authz-http, timeout: 0.4s}, path_prefix: /check, authorization_request: {allowed_headers: {patterns: [{prefix: x-}]}, headers_to_add: [{key: x-added, value: "1"}]}, authorization_response: {allowed_upstream_headers: {patterns: [{exact: x-user}]}, allowed_client_headers: {patterns: [{exact: x-why}]}}}`
	checkGRPC     = `grpc_service: {envoy_grpc: {cluster_name: authz-grpc}, timeout: 0.4s}`
)

func asks(conf string) string {
	return `[{name: envoy.filters.http.ext_authz, typed_config: {"@type": T/filters.http.ext_authz.v3.ExtAuthz, transport_api_version: V3, ` + conf + `}}]`
}

var authz = group{
	name:     "ext-authz",
	clusters: authzClusters,
	stats:    `ext_authz\.`,
	listeners: []listener{
		{filters: asks(checkGRPC)},
		{name: "http", filters: asks(checkHTTP)},
		{name: "open", filters: asks(checkGRPC + `, failure_mode_allow: true, failure_mode_allow_header_add: true`)},
		{name: "status", filters: asks(checkGRPC + `, status_on_error: {code: ServiceUnavailable}`)},
		{name: "down", filters: asks(`grpc_service: {envoy_grpc: {cluster_name: refused}, timeout: 0.4s}`)},
		{name: "body", filters: asks(checkGRPC + `, with_request_body: {max_request_bytes: 8}`)},
		{name: "partial", filters: asks(checkGRPC + `, with_request_body: {max_request_bytes: 8, allow_partial_message: true}`)},
		{name: "httpbody", filters: asks(checkHTTP + `, with_request_body: {max_request_bytes: 8}`)},
		{name: "clear", filters: asks(checkGRPC + `, clear_route_cache: true`)},
	},
	cases: []testCase{
		{name: "grpc: allowed", do: h1("GET {p}?q=1", "x-drop: 1", "x-user: forged", "x-list: one")},
		{name: "grpc: denied", do: steps(h1("GET {p}", "x-decide: deny"), h2Anew("GET {p}", "x-decide: deny"))},
		{name: "grpc: denied plainly", do: h1("GET {p}", "x-decide: deny plainly")},
		{name: "grpc: a broken service", do: h1("GET {p}", "x-decide: fail")},
		{name: "grpc: no answer in time", do: h1("GET {p}", "x-decide: hang")},
		{name: "grpc: a denied call", differs: unknownSize, do: h2("POST {p}", "content-type: application/grpc", "x-decide: deny plainly", "body=x")},
		{name: "grpc: nobody there", on: "down", do: h1("GET {p}")},
		{name: "open: a broken service", on: "open", do: h1("GET {p}", "x-decide: fail")},
		{name: "open: no answer in time", on: "open", do: h1("GET {p}", "x-decide: hang")},
		{name: "open: still denied", on: "open", do: h1("GET {p}", "x-decide: deny")},
		{name: "another status when broken", on: "status", do: h1("GET {p}", "x-decide: fail")},
		{name: "body: sent along", on: "body", do: h1("POST {p}", "body=12345")},
		{name: "body: too large", on: "body", do: h1("POST {p}", "body=123456789")},
		{name: "body: a part", on: "partial", do: h1("POST {p}", "body=123456789")},
		{name: "http: allowed", on: "http", do: h1("GET {p}?q=1", "x-user: forged", "cookie: secret", "authorization: tell")},
		{name: "http: denied", differs: authzType, on: "http", do: h1("GET {p}", "x-decide: deny")},
		{name: "http: a broken service", on: "http", do: h1("GET {p}", "x-decide: fail")},
		{name: "http: no answer in time", on: "http", do: h1("GET {p}", "x-decide: hang")},
		{name: "http: with a body left out", on: "http", do: h1("POST {p}", "body=abc")},
		{name: "http: with a body", on: "httpbody", do: h1("POST {p}", "body=abc")},
		{name: "route: switched off", route: `{typed_per_filter_config: {envoy.filters.http.ext_authz: {"@type": T/filters.http.ext_authz.v3.ExtAuthzPerRoute, disabled: true}}}`, do: h1("GET {p}", "x-decide: deny")},
		{name: "route: with extensions", route: `{typed_per_filter_config: {envoy.filters.http.ext_authz: {"@type": T/filters.http.ext_authz.v3.ExtAuthzPerRoute, check_settings: {context_extensions: {team: blue}}}}}`, do: h1("GET {p}")},
		{name: "the route is looked up again", on: "clear", route: `[{match: {prefix: "{p}", headers: [{name: x-user, string_match: {exact: ada}}]}, direct_response: {status: 202}}, {direct_response: {status: 201}}]`, do: h1("GET {p}")},
		{name: "the route stays", route: `[{match: {prefix: "{p}", headers: [{name: x-user, string_match: {exact: ada}}]}, direct_response: {status: 202}}, {direct_response: {status: 201}}]`, do: h1("GET {p}")},
	},
}

func cors(conf string) string {
	return perRoute("envoy.filters.http.cors", "filters.http.cors.v3.CorsPolicy", conf)
}

var edge = group{
	name: "edge-filters",
	listeners: []listener{
		{filters: `[{name: envoy.filters.http.cors, typed_config: {"@type": T/filters.http.cors.v3.Cors}}]`},
		{name: "buffer", filters: `[{name: envoy.filters.http.buffer, typed_config: {"@type": T/filters.http.buffer.v3.Buffer, max_request_bytes: 10}}]`},
		{name: "gzip", filters: `[{name: envoy.filters.http.compressor, typed_config: {"@type": T/filters.http.compressor.v3.Compressor, compressor_library: {name: gzip, typed_config: {"@type": T/compression.gzip.compressor.v3.Gzip}}}}]`},
		{name: "mutation", filters: `[{name: envoy.filters.http.header_mutation, typed_config: {"@type": T/filters.http.header_mutation.v3.HeaderMutation, mutations: {
request_mutations: [{append: {header: {key: x-in, value: "%REQ(:method)%"}}}, {remove: x-bad}, {append: {header: {key: x-over, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}],
response_mutations: [{append: {header: {key: x-out, value: "%RESPONSE_CODE%"}}}, {remove: x-inside}],
query_parameter_mutations: [{remove: drop}, {append: {record: {key: added, value: "1"}}}]}}}]`},
		{name: "health", filters: `[{name: envoy.filters.http.health_check, typed_config: {"@type": T/filters.http.health_check.v3.HealthCheck, pass_through_mode: false, headers: [{name: ":path", string_match: {exact: /healthz}}]}},
{name: envoy.filters.http.health_check, typed_config: {"@type": T/filters.http.health_check.v3.HealthCheck, pass_through_mode: false, headers: [{name: ":path", string_match: {exact: /half}}], cluster_min_healthy_percentages: {none: {value: 50}}}},
{name: envoy.filters.http.health_check, typed_config: {"@type": T/filters.http.health_check.v3.HealthCheck, pass_through_mode: false, headers: [{name: ":path", string_match: {exact: /well}}], cluster_min_healthy_percentages: {a: {value: 50}}}},
{name: envoy.filters.http.health_check, typed_config: {"@type": T/filters.http.health_check.v3.HealthCheck, pass_through_mode: true, headers: [{name: ":path", string_match: {prefix: /passes}}]}}]`},
		{name: "meta", filters: `[{name: envoy.filters.http.header_to_metadata, typed_config: {"@type": T/filters.http.header_to_metadata.v3.Config,
request_rules: [{header: x-version, on_header_present: {metadata_namespace: envoy.lb, key: v}, on_header_missing: {metadata_namespace: envoy.lb, key: v, value: "1"}, remove: true},
{header: x-path, on_header_present: {metadata_namespace: m, key: part, regex_value_rewrite: {pattern: {regex: "^/([a-z]+)/.*"}, substitution: "\\1"}}},
{cookie: user, on_header_present: {metadata_namespace: m, key: user}}]}}]`,
			vhost: `{request_headers_to_add: [{header: {key: x-meta, value: "%DYNAMIC_METADATA(envoy.lb:v)% %DYNAMIC_METADATA(m:part)% %DYNAMIC_METADATA(m:user)% %DYNAMIC_METADATA(m)%"}}]}`},
		{name: "order", filters: `[{name: one, typed_config: {"@type": T/filters.http.header_mutation.v3.HeaderMutation, mutations: {request_mutations: [{append: {header: {key: x-order, value: "1"}}}], response_mutations: [{append: {header: {key: x-order, value: "1"}}}]}}},
{name: two, typed_config: {"@type": T/filters.http.header_mutation.v3.HeaderMutation, mutations: {request_mutations: [{append: {header: {key: x-order, value: "2"}}}], response_mutations: [{append: {header: {key: x-order, value: "2"}}}]}}},
{name: three, disabled: true, typed_config: {"@type": T/filters.http.header_mutation.v3.HeaderMutation, mutations: {request_mutations: [{append: {header: {key: x-order, value: "3"}}}]}}},
{name: nobody.knows, is_optional: true, typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/nobody.knows, value: {}}}]`},
	},
	cases: []testCase{
		{name: "cors: a simple request", route: cors(`allow_origin_string_match: [{exact: "http://a.test"}], allow_methods: "GET,POST", allow_headers: x-a, expose_headers: x-b, max_age: "100", allow_credentials: true`), do: steps(h1("GET {p}", "origin: http://a.test"), h1("GET {p}", "origin: http://b.test"), h1("GET {p}"))},
		{name: "cors: a preflight", differs: noEmptyLength, route: cors(`allow_origin_string_match: [{exact: "http://a.test"}], allow_methods: "GET,POST", allow_headers: x-a, expose_headers: x-b, max_age: "100", allow_credentials: true`), do: steps(h1("OPTIONS {p}", "origin: http://a.test", "access-control-request-method: GET"), h1("OPTIONS {p}", "origin: http://b.test", "access-control-request-method: GET"), h1("OPTIONS {p}", "origin: http://a.test"))},
		{name: "cors: preflights of others are kept", route: cors(`allow_origin_string_match: [{prefix: "http://a"}], forward_not_matching_preflights: false`), do: h1("OPTIONS {p}", "origin: http://b.test", "access-control-request-method: GET")},
		{name: "cors: an expression", route: cors(`allow_origin_string_match: [{safe_regex: {regex: "http://[a-c]\\.test"}}]`), do: steps(h1("GET {p}", "origin: http://c.test"), h1("GET {p}", "origin: http://c.test.evil"))},
		{name: "cors: the upstream's own", route: cors(`allow_origin_string_match: [{exact: "http://a.test"}]`), up: []answer{status(200, "access-control-allow-origin: *")}, do: h1("GET {p}", "origin: http://a.test")},
		{name: "cors: none", differs: noEmptyLength, do: h1("OPTIONS {p}", "origin: http://a.test", "access-control-request-method: GET")},
		{name: "cors: private network", route: cors(`allow_origin_string_match: [{exact: "http://a.test"}], allow_private_network_access: true`), do: h1("OPTIONS {p}", "origin: http://a.test", "access-control-request-method: GET", "access-control-request-private-network: true")},
		{name: "buffer: small", on: "buffer", do: h1("POST {p}", "body=12345")},
		{name: "buffer: small and chunked", on: "buffer", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")},
		{name: "buffer: too large", on: "buffer", do: h1("POST {p}", "body=123456789012")},
		{name: "buffer: too large at h2", on: "buffer", do: h2("POST {p}", "body=123456", "body=789012345")},
		{name: "buffer: a route's own limit", on: "buffer", route: `{typed_per_filter_config: {envoy.filters.http.buffer: {"@type": T/filters.http.buffer.v3.BufferPerRoute, buffer: {max_request_bytes: 20}}}}`, do: h1("POST {p}", "body=123456789012")},
		{name: "buffer: switched off", on: "buffer", route: `{typed_per_filter_config: {envoy.filters.http.buffer: {"@type": T/filters.http.buffer.v3.BufferPerRoute, disabled: true}}}`, do: h1("POST {p}", "body=123456789012345678901234567890")},
		{name: "gzip: text", on: "gzip", up: []answer{status(200, "content-type: text/plain", "body="+strings.Repeat("a", 500))}, noLog: true, do: gunzip(h1("GET {p}", "accept-encoding: gzip"))},
		{name: "gzip: not asked", on: "gzip", up: []answer{status(200, "content-type: text/plain", "body="+strings.Repeat("a", 500))}, do: h1("GET {p}")},
		{name: "gzip: refused by weight", on: "gzip", up: []answer{status(200, "content-type: text/plain", "body="+strings.Repeat("a", 500))}, do: h1("GET {p}", "accept-encoding: gzip;q=0, deflate")},
		{name: "gzip: too short", on: "gzip", up: []answer{status(200, "content-type: text/plain", "body="+strings.Repeat("a", 29))}, do: h1("GET {p}", "accept-encoding: gzip")},
		{name: "gzip: pictures", on: "gzip", up: []answer{status(200, "content-type: image/png", "body="+strings.Repeat("a", 500))}, do: h1("GET {p}", "accept-encoding: gzip")},
		{name: "gzip: done already", on: "gzip", up: []answer{status(200, "content-type: text/plain", "content-encoding: br", "body="+strings.Repeat("a", 500))}, do: h1("GET {p}", "accept-encoding: gzip")},
		{name: "gzip: no-transform", on: "gzip", up: []answer{status(200, "content-type: text/plain", "cache-control: no-transform", "body="+strings.Repeat("a", 500))}, do: h1("GET {p}", "accept-encoding: gzip")},
		{name: "gzip: a strong etag", on: "gzip", up: []answer{status(200, "content-type: text/plain", `etag: "abc"`, "body="+strings.Repeat("a", 500))}, noLog: true, do: gunzip(h1("GET {p}", "accept-encoding: gzip"))},
		{name: "mutation", differs: queryOrder, on: "mutation", up: []answer{status(201, "x-inside: 1", "x-keep: 1")}, do: h1("GET {p}?a=1&drop=2&b=3", "x-bad: 1", "x-over: old")},
		{name: "mutation of the route too", on: "mutation", route: `{typed_per_filter_config: {envoy.filters.http.header_mutation: {"@type": T/filters.http.header_mutation.v3.HeaderMutationPerRoute, mutations: {request_mutations: [{append: {header: {key: x-route, value: "1"}}}]}}}}`, do: h1("GET {p}")},
		{name: "mutation of local replies", on: "mutation", route: `{direct_response: {status: 202}}`, do: h1("GET {p}")},
		{name: "health: well", on: "health", do: steps(h1("GET /healthz"), h1("GET /healthz?x"), h2Anew("GET /healthz"))},
		{name: "health: too few", on: "health", do: h1("GET /half")},
		{name: "health: enough", on: "health", do: h1("GET /well")},
		{name: "health: passes through", on: "health", route: `{match: {prefix: /passes}}`, do: h1("GET /passes")},
		{name: "metadata: present", on: "meta", do: h1("GET {p}", "x-version: 2", "x-path: /abc/def", "cookie: a=b; user=ada")},
		{name: "metadata: missing", on: "meta", do: h1("GET {p}")},
		{name: "metadata: chooses the endpoint", on: "meta", cluster: `
hosts: [{host: a, metadata: {filter_metadata: {envoy.lb: {v: "1"}}}}, {host: b, metadata: {filter_metadata: {envoy.lb: {v: "2"}}}}]
lb_subset_config: {fallback_policy: NO_FALLBACK, subset_selectors: [{keys: [v]}]}`, do: steps(h1("GET {p}", "x-version: 2"), h1("GET {p}"), h1("GET {p}", "x-version: 3"))},
		{name: "order of filters", on: "order", do: h1("GET {p}")},
		{name: "a filter that a route switches on", on: "order", route: `{typed_per_filter_config: {three: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {}}}}`, do: h1("GET {p}")},
		{name: "a filter that a route switches off", on: "order", route: `{typed_per_filter_config: {two: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}}`, do: h1("GET {p}")},
	},
}

var grpcEdge = group{
	name:  "grpc-filters",
	stats: `grpc\.`,
	listeners: []listener{
		{filters: `[{name: envoy.filters.http.grpc_web, typed_config: {"@type": T/filters.http.grpc_web.v3.GrpcWeb}}]`},
		{name: "stats", filters: `[{name: envoy.filters.http.grpc_stats, typed_config: {"@type": T/filters.http.grpc_stats.v3.FilterConfig, stats_for_all_methods: true, enable_upstream_stats: false}}]`},
		{name: "bridge", filters: `[{name: envoy.filters.http.grpc_http1_bridge, typed_config: {"@type": T/filters.http.grpc_http1_bridge.v3.Config}}]`},
	},
	cases: []testCase{
		{name: "web: binary", route: `{route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc"}, "\x00\x00\x00\x00\x02ok", "grpc-status: 0", "x-t: 1")}, do: h1("POST {p}", "content-type: application/grpc-web", "body=\x00\x00\x00\x00\x01a")},
		{name: "web: with a message format", route: `{route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc+proto"}, "\x00\x00\x00\x00\x02ok", "grpc-status: 0")}, do: h1("POST {p}", "content-type: application/grpc-web+proto", "body=\x00\x00\x00\x00\x01a")},
		{name: "web: text", route: `{route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc"}, "\x00\x00\x00\x00\x02ok", "grpc-status: 0")}, do: h1("POST {p}", "content-type: application/grpc-web-text", "accept: application/grpc-web-text", "body=AAAAAAFh")},
		{name: "web: text that is none", route: `{route: {cluster: h2}}`, noUp: true, do: h1("POST {p}", "content-type: application/grpc-web-text", "body=!!!!")},
		{name: "web: trailers only", route: `{route: {cluster: h2}}`, up: []answer{headersOnly(200, "content-type: application/grpc", "grpc-status: 5", "grpc-message: not here")}, do: h1("POST {p}", "content-type: application/grpc-web", "body=\x00\x00\x00\x00\x01a")},
		{name: "web: an upstream that fails", differs: unreadBody, route: `{route: {cluster: refused}}`, do: h1("POST {p}", "content-type: application/grpc-web", "body=\x00\x00\x00\x00\x01a")},
		{name: "web: plain grpc passes", route: `{route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc"}, "\x00\x00\x00\x00\x02ok", "grpc-status: 0")}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=\x00\x00\x00\x00\x01a")},
		{name: "stats: a call", on: "stats", route: `{match: {prefix: /pkg.Greeter/}, route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc"}, "\x00\x00\x00\x00\x02ok", "grpc-status: 0"), stream(200, []string{"content-type: application/grpc"}, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "grpc-status: 5"), headersOnly(200, "content-type: application/grpc", "grpc-status: 14")}, do: steps(
			h2("POST /pkg.Greeter/Hello", "content-type: application/grpc", "te: trailers", "body=\x00\x00\x00\x00\x01a\x00\x00\x00\x00\x00"), h2("POST /pkg.Greeter/Hello", "content-type: application/grpc", "te: trailers", "body=\x00\x00\x00\x00\x01a"), h2("POST /pkg.Greeter/Bye", "content-type: application/grpc", "te: trailers", "body=\x00\x00\x00\x00\x01a"))},
		{name: "bridge: a good answer", on: "bridge", route: `{route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc"}, "\x00\x00\x00\x00\x02ok", "grpc-status: 0", "grpc-message: fine")}, do: h1("POST {p}", "content-type: application/grpc", "body=\x00\x00\x00\x00\x01a")},
		{name: "bridge: an error", on: "bridge", route: `{route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc"}, "", "grpc-status: 5", "grpc-message: nope")}, do: h1("POST {p}", "content-type: application/grpc", "body=\x00\x00\x00\x00\x01a")},
	},
}
