package behaviour

var routing = group{
	name: "routing",
	listeners: []listener{
		{},
		{name: "hosts", table: `
virtual_hosts:
- {name: exact, domains: [www.foo.com], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: exact}}}]}
- {name: port, domains: ['www.foo.com:8080'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: port}}}]}
- {name: suffix, domains: ['*.foo.com'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: suffix}}}]}
- {name: longer, domains: ['*.bar.foo.com'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: longer suffix}}}]}
- {name: dash, domains: ['*-bar.foo.com'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: dash suffix}}}]}
- {name: prefix, domains: ['foo.*'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: prefix}}}]}
- {name: both, domains: ['foo.com'], routes: [{match: {prefix: /only}, direct_response: {status: 200, body: {inline_string: never}}}]}
`},
		{name: "anyport", table: `
ignore_port_in_host_matching: true
virtual_hosts:
- {name: exact, domains: [www.foo.com], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: exact}}}]}
`},
		{name: "strip", hcm: `{strip_matching_host_port: true}`},
		{name: "stripany", hcm: `{strip_any_host_port: true}`},
		{name: "stripdot", hcm: `{strip_trailing_host_dot: true}`},
	},
	cases: []testCase{
		{name: "a plain request", differs: apartFields, do: h1("GET {p}/x?y=1", "x-foo: bar", "accept: a", "accept: b")},
		{name: "a plain request over h2", differs: apartFields, do: h2("GET {p}/x?y=1", "x-foo: bar", "accept: a", "accept: b")},
		{name: "no route", route: `{match: {path: /nowhere}}`, do: steps(h1("GET /elsewhere"), h2Anew("GET /elsewhere"))},
		{name: "the first route that matches", route: `[{direct_response: {status: 201}}, {direct_response: {status: 202}}]`, do: h1("GET {p}")},

		{name: "hosts: exact", on: "hosts", do: h1("GET /", "host: www.foo.com")},
		{name: "hosts: case does not matter", on: "hosts", do: h1("GET /", "host: WWW.Foo.COM")},
		{name: "hosts: with a port", on: "hosts", do: steps(h1("GET /", "host: www.foo.com:8080"), h1("GET /", "host: www.foo.com:9090"))},
		{name: "hosts: suffixes, longest first", on: "hosts", do: steps(h1("GET /", "host: x.foo.com"), h1("GET /", "host: x.bar.foo.com"), h1("GET /", "host: x-bar.foo.com"), h1("GET /", "host: .foo.com"))},
		{name: "hosts: a prefix", on: "hosts", do: steps(h1("GET /", "host: foo.org"), h1("GET /", "host: foo."))},
		{name: "hosts: no going back to another host", on: "hosts", do: h1("GET /", "host: foo.com")},
		{name: "hosts: nobody's", on: "hosts", do: h1("GET /", "host: bar.org")},
		{name: "hosts: trailing dot", on: "hosts", do: h1("GET /", "host: www.foo.com.")},
		{name: "hosts: the port is ignored", on: "anyport", do: steps(h1("GET /", "host: www.foo.com:1234"), h1("GET /", "host: www.foo.com"))},
		{name: "hosts: the listener's port is stripped", on: "strip", do: steps(h1("GET {p}", "host: x:{{lstrip}}"), h1("GET {p}", "host: x:1"))},
		{name: "hosts: any port is stripped", on: "stripany", do: steps(h1("GET {p}", "host: x:123"), h1("GET {p}", "host: [::1]:123"))},
		{name: "hosts: a trailing dot is stripped", on: "stripdot", do: steps(h1("GET {p}", "host: x."), h1("GET {p}", "host: x.:80"))},

		{name: "path: prefix", route: `{match: {prefix: "{p}/a"}}`, do: steps(h1("GET {p}/a"), h1("GET {p}/abc"), h1("GET {p}/b"), h1("GET {p}"))},
		{name: "path: exact", route: `{match: {path: "{p}/a"}}`, do: steps(h1("GET {p}/a"), h1("GET {p}/a?x"), h1("GET {p}/a/"), h1("GET {p}/A"))},
		{name: "path: a whole segment", route: `{match: {path_separated_prefix: "{p}/a"}}`, do: steps(h1("GET {p}/a"), h1("GET {p}/a/b"), h1("GET {p}/a?x=/"), h1("GET {p}/ab"))},
		{name: "path: an expression matches in full", route: `{match: {safe_regex: {regex: "{p}/[0-9]+"}}}`, do: steps(h1("GET {p}/12"), h1("GET {p}/12?q"), h1("GET {p}/12/"), h1("GET {p}/x12"))},
		{name: "path: case does not matter", route: `{match: {prefix: "{p}/Abc", case_sensitive: false}}`, do: steps(h1("GET {p}/aBC/x"), h1("GET {p}/ab"))},
		{name: "path: exact without case", route: `{match: {path: "{p}/Abc", case_sensitive: false}}`, do: steps(h1("GET {p}/aBC"), h1("GET {p}/abcd"))},

		{name: "header: exact", route: `{match: {prefix: "{p}", headers: [{name: x-a, string_match: {exact: one}}]}}`, do: steps(h1("GET {p}", "x-a: one"), h1("GET {p}", "X-A: one"), h1("GET {p}", "x-a: One"), h1("GET {p}"))},
		{name: "header: prefix suffix contains", route: `{match: {prefix: "{p}", headers: [{name: x-a, string_match: {prefix: ab}}, {name: x-a, string_match: {suffix: yz}}, {name: x-a, string_match: {contains: MM, ignore_case: true}}]}}`, do: steps(h1("GET {p}", "x-a: abmmyz"), h1("GET {p}", "x-a: abyz"))},
		{name: "header: expression", route: `{match: {prefix: "{p}", headers: [{name: x-a, string_match: {safe_regex: {regex: "a.c"}}}]}}`, do: steps(h1("GET {p}", "x-a: abc"), h1("GET {p}", "x-a: xabc"))},
		{name: "header: range", route: `{match: {prefix: "{p}", headers: [{name: x-n, range_match: {start: -2, end: 5}}]}}`, do: steps(h1("GET {p}", "x-n: -2"), h1("GET {p}", "x-n: 4"), h1("GET {p}", "x-n: 5"), h1("GET {p}", "x-n: 4x"))},
		{name: "header: present", route: `{match: {prefix: "{p}", headers: [{name: x-a, present_match: true}]}}`, do: steps(h1("GET {p}", "x-a: "), h1("GET {p}"))},
		{name: "header: absent", route: `{match: {prefix: "{p}", headers: [{name: x-a, present_match: false}]}}`, do: steps(h1("GET {p}", "x-a: 1"), h1("GET {p}"))},
		{name: "header: inverted", route: `{match: {prefix: "{p}", headers: [{name: x-a, string_match: {exact: one}, invert_match: true}]}}`, do: steps(h1("GET {p}", "x-a: one"), h1("GET {p}", "x-a: two"), h1("GET {p}"))},
		{name: "header: inverted presence", route: `{match: {prefix: "{p}", headers: [{name: x-a, present_match: true, invert_match: true}]}}`, do: steps(h1("GET {p}", "x-a: one"), h1("GET {p}"))},
		{name: "header: missing as empty", route: `{match: {prefix: "{p}", headers: [{name: x-a, string_match: {exact: one}, invert_match: true, treat_missing_header_as_empty: true}]}}`, do: steps(h1("GET {p}", "x-a: one"), h1("GET {p}"))},
		{name: "header: several values are one", route: `{match: {prefix: "{p}", headers: [{name: x-a, string_match: {exact: "one,two"}}]}}`, do: steps(h1("GET {p}", "x-a: one", "x-a: two"), h1("GET {p}", "x-a: two", "x-a: one"))},
		{name: "header: method and authority", route: `[{match: {prefix: "{p}", headers: [{name: ":method", string_match: {exact: POST}}]}, direct_response: {status: 201}}, {match: {prefix: "{p}", headers: [{name: ":authority", string_match: {prefix: special}}]}, direct_response: {status: 202}}]`, do: steps(h1("POST {p}", "body=x"), h1("GET {p}", "host: special.x"), h1("GET {p}"))},
		{name: "header: host in place of authority", route: `{match: {prefix: "{p}", headers: [{name: host, string_match: {exact: special}}]}}`, do: steps(h1("GET {p}", "host: special"), h2Anew("GET {p}", ":authority: special"))},

		{name: "query: a value", route: `{match: {prefix: "{p}", query_parameters: [{name: a, string_match: {exact: "1"}}]}}`, do: steps(h1("GET {p}?a=1"), h1("GET {p}?b=2&a=1&c"), h1("GET {p}?a=2"), h1("GET {p}?a=2&a=1"), h1("GET {p}"))},
		{name: "query: present", route: `{match: {prefix: "{p}", query_parameters: [{name: a, present_match: true}]}}`, do: steps(h1("GET {p}?a"), h1("GET {p}?a=x"), h1("GET {p}?b"))},
		{name: "query: escapes stay", route: `{match: {prefix: "{p}", query_parameters: [{name: a, string_match: {exact: "x y"}}]}}`, do: steps(h1("GET {p}?a=x%20y"), h1("GET {p}?a=x+y"))},
		{name: "grpc only", route: `{match: {prefix: "{p}", grpc: {}}}`, do: steps(h1("POST {p}", "content-type: application/grpc"), h1("POST {p}", "content-type: application/grpc+proto"), h1("POST {p}", "content-type: application/grpc-web"), h1("POST {p}", "content-type: text/plain"))},
		{name: "a share of requests", route: `[{match: {prefix: "{p}", runtime_fraction: {default_value: {numerator: 0}}}, direct_response: {status: 201}}, {match: {prefix: "{p}", runtime_fraction: {default_value: {numerator: 100}}}, direct_response: {status: 202}}]`, do: h1("GET {p}")},

		{name: "weights of one", route: `{route: {weighted_clusters: {clusters: [{name: b, weight: 0}, {name: c, weight: 5}]}}}`, do: repeat(3, h1("GET {p}"))},
		{name: "weights by a header's value", route: `{route: {weighted_clusters: {header_name: x-n, clusters: [{name: a, weight: 30}, {name: b, weight: 70}]}}}`, do: steps(h1("GET {p}", "x-n: 0"), h1("GET {p}", "x-n: 29"), h1("GET {p}", "x-n: 30"), h1("GET {p}", "x-n: 99"), h1("GET {p}", "x-n: 100"), h1("GET {p}", "x-n: 135"))},
		{name: "weighted cluster with headers", route: `{route: {weighted_clusters: {clusters: [{name: b, weight: 1, host_rewrite_literal: b.test, request_headers_to_add: [{header: {key: x-w, value: req}}], response_headers_to_add: [{header: {key: x-w, value: resp}}], response_headers_to_remove: [x-gone]}]}}}`, up: []answer{status(200, "x-gone: 1")}, do: h1("GET {p}")},
		{name: "cluster named by a header", route: `{route: {cluster_header: x-to}}`, do: steps(h1("GET {p}", "x-to: b"), h1("GET {p}", "x-to: nobody"), h1("GET {p}"))},
		{name: "a cluster that does not exist", route: `{route: {cluster_header: x-to, cluster_not_found_response_code: NOT_FOUND}}`, do: h1("GET {p}", "x-to: nobody")},
		{name: "a cluster without hosts", route: `{route: {cluster: none}}`, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "direct response", route: `{direct_response: {status: 418, body: {inline_string: "short and stout"}}}`, do: steps(h1("GET {p}"), h1("HEAD {p}"), h1("POST {p}", "body=abc"), h2Anew("GET {p}"))},
		{name: "direct response without a body", route: `{direct_response: {status: 200}}`, do: h1("GET {p}")},
		{name: "direct response with headers", route: `{direct_response: {status: 200, body: {inline_string: "{}"}}, response_headers_to_add: [{header: {key: content-type, value: application/json}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-a, value: b}}]}`, do: h1("GET {p}")},
		{name: "non-forwarding", route: `{non_forwarding_action: {}}`, do: h1("GET {p}")},
		{name: "a chosen endpoint by metadata", cluster: `
hosts: [{host: a, metadata: {filter_metadata: {envoy.lb: {v: "1"}}}}, {host: b, metadata: {filter_metadata: {envoy.lb: {v: "2"}}}}]
lb_subset_config: {fallback_policy: NO_FALLBACK, subset_selectors: [{keys: [v]}]}`,
			route: `[{match: {prefix: "{p}/1"}, route: {metadata_match: {filter_metadata: {envoy.lb: {v: "1"}}}}}, {match: {prefix: "{p}/2"}, route: {metadata_match: {filter_metadata: {envoy.lb: {v: "2"}}}}}, {match: {prefix: "{p}/3"}, route: {metadata_match: {filter_metadata: {envoy.lb: {v: "3"}}}}}]`,
			do:    steps(repeat(2, h1("GET {p}/1")), repeat(2, h1("GET {p}/2")), h1("GET {p}/3"))},
		{name: "priorities: the second when the first is down", cluster: `{hosts: [{host: a, priority: 0, health_status: UNHEALTHY}, {host: b, priority: 1}]}`, do: repeat(3, h1("GET {p}"))},
		{name: "panic: all are down", cluster: `{hosts: [{host: b, health_status: UNHEALTHY}]}`, do: h1("GET {p}")},
		{name: "no panic: none is up", cluster: `{hosts: [{host: b, health_status: UNHEALTHY}], common_lb_config: {healthy_panic_threshold: {value: 0}}}`, do: h1("GET {p}")},
		{name: "draining hosts get nothing", cluster: `{hosts: [{host: a, health_status: DRAINING}, b], common_lb_config: {healthy_panic_threshold: {value: 0}}}`, do: repeat(3, h1("GET {p}"))},
		{name: "internal redirect", route: `[{match: {path: "{p}"}, route: {internal_redirect_policy: {}}}, {match: {prefix: "{p}/"}}]`, up: []answer{status(302, "location: http://test/internal-redirect_/next?x=1"), ok}, do: h1("GET {p}")},
		{name: "internal redirect: not twice", route: `[{match: {prefix: "{p}"}, route: {internal_redirect_policy: {}}}]`, up: []answer{status(302, "location: http://test/internal-redirect-not-twice_/next"), status(302, "location: http://test/internal-redirect-not-twice_/more")}, do: h1("GET {p}")},
		{name: "require tls", vhost: `{require_tls: ALL}`, do: steps(h1("GET /x?y=1"), h1("POST /x", "body=a"))},
		{name: "require tls from outside", vhost: `{require_tls: EXTERNAL_ONLY}`, do: h1("GET /x")},
	},
}

// h2Anew sends a request over HTTP/2 on a connection of its own.
func h2Anew(line string, fields ...string) action {
	return steps(anew, h2(line, fields...), anew)
}

var rewriting = group{
	name: "rewriting",
	cases: []testCase{
		{name: "prefix", route: `{match: {prefix: "{p}/a"}, route: {prefix_rewrite: /new}}`, do: steps(h1("GET {p}/a"), h1("GET {p}/a/b?c=d"), h1("GET {p}/abc"))},
		{name: "prefix to the root", route: `{match: {prefix: "{p}/"}, route: {prefix_rewrite: /}}`, do: steps(h1("GET {p}/"), h1("GET {p}/b"), h1("GET {p}//b"))},
		{name: "prefix of a whole path", route: `{match: {path: "{p}/a"}, route: {prefix_rewrite: /new}}`, do: h1("GET {p}/a?x=y")},
		{name: "prefix of a segment", route: `{match: {path_separated_prefix: "{p}"}, route: {prefix_rewrite: /new}}`, do: steps(h1("GET {p}"), h1("GET {p}/a?x"))},
		{name: "expression", route: `{route: {regex_rewrite: {pattern: {regex: "/([0-9]+)/"}, substitution: "/n\\1-\\0/"}}}`, do: steps(h1("GET {p}/12/x/34/y?q=/5/"), h1("GET {p}/none"))},
		{name: "host literal", route: `{route: {host_rewrite_literal: other.test}}`, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "host literal, forwarded", route: `{route: {host_rewrite_literal: other.test, append_x_forwarded_host: true}}`, do: steps(h1("GET {p}"), h1("GET {p}", "x-forwarded-host: before"))},
		{name: "host from a header", route: `{route: {host_rewrite_header: x-to}}`, do: steps(h1("GET {p}", "x-to: there"), h1("GET {p}"))},
		{name: "host from the path", route: `{route: {host_rewrite_path_regex: {pattern: {regex: "^/.*/(.+)$"}, substitution: "\\1.test"}}}`, do: h1("GET {p}/abc?x=/y")},
		{name: "host of the endpoint", cluster: `{type: STRICT_DNS, hosts: [{host: a, hostname: ep.test}]}`, route: `{route: {auto_host_rewrite: true}}`, do: h1("GET {p}")},
		{name: "rewrite at h2", route: `{match: {prefix: "{p}"}, route: {cluster: h2, prefix_rewrite: /new, host_rewrite_literal: other}}`, do: h2("GET {p}/x")},
		{name: "original path from outside is kept", route: `{match: {prefix: "{p}"}, route: {prefix_rewrite: /new}}`, do: h1("GET {p}", "x-envoy-original-path: /forged")},

		{name: "redirect: https", differs: noFramingForHead, route: `{redirect: {https_redirect: true}}`, do: steps(h1("GET {p}/x?y=z"), h1("GET {p}", "host: h:80"), h1("GET {p}", "host: h:8080"), h1("HEAD {p}"))},
		{name: "redirect: host", route: `{redirect: {host_redirect: new.test}}`, do: steps(h1("GET {p}?a=b"), h1("GET {p}", "host: h:8080"))},
		{name: "redirect: port", route: `{redirect: {port_redirect: 8443}}`, do: steps(h1("GET {p}"), h1("GET {p}", "host: h:1"))},
		{name: "redirect: scheme", route: `{redirect: {scheme_redirect: ftp, response_code: FOUND}}`, do: h1("GET {p}")},
		{name: "redirect: path", route: `{redirect: {path_redirect: /new, response_code: SEE_OTHER}}`, do: h1("GET {p}/x?a=b")},
		{name: "redirect: path with a query", route: `{redirect: {path_redirect: "/new?q=1"}}`, do: h1("GET {p}?a=b")},
		{name: "redirect: prefix", route: `{match: {prefix: "{p}/a"}, redirect: {prefix_rewrite: /new, response_code: TEMPORARY_REDIRECT}}`, do: h1("GET {p}/a/b?c=d")},
		{name: "redirect: expression", route: `{redirect: {regex_rewrite: {pattern: {regex: "/([a-z])/"}, substitution: "/<\\1>/"}, response_code: PERMANENT_REDIRECT}}`, do: h1("GET {p}/q/x?c=d")},
		{name: "redirect: without the query", route: `{redirect: {host_redirect: new.test, strip_query: true}}`, do: h1("GET {p}?a=b")},
		{name: "redirect: same place", route: `{redirect: {}}`, do: h1("GET {p}?a=b")},
		{name: "redirect: headers", route: `{redirect: {host_redirect: x}, response_headers_to_add: [{header: {key: x-a, value: b}}]}`, do: h2("GET {p}")},
		{name: "redirect: at https asked by header", route: `{match: {prefix: "{p}"}, redirect: {https_redirect: true}}`, do: h1("GET {p}", "x-forwarded-proto: https")},
		{name: "redirect: grpc", route: `{redirect: {host_redirect: x}}`, do: h2("POST {p}", "content-type: application/grpc")},
	},
}

var headers = group{
	name: "headers",
	listeners: []listener{
		{
			vhost: `
request_headers_to_add: [{header: {key: x-order, value: vhost}}, {header: {key: x-vhost, value: "1"}, append_action: ADD_IF_ABSENT}]
request_headers_to_remove: [x-secret]
response_headers_to_add: [{header: {key: x-order, value: vhost}}]
response_headers_to_remove: [x-internal]`,
			table: `
request_headers_to_add: [{header: {key: x-order, value: table}}]
response_headers_to_add: [{header: {key: x-order, value: table}}]
request_headers_to_remove: [x-table-secret]`,
		},
		{name: "specific", table: `{most_specific_header_mutations_wins: true, request_headers_to_add: [{header: {key: x-order, value: table}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}], response_headers_to_add: [{header: {key: x-order, value: table}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]}`,
			vhost: `{request_headers_to_add: [{header: {key: x-order, value: vhost}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}], response_headers_to_add: [{header: {key: x-order, value: vhost}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]}`},
		{name: "via", hcm: `{via: sarn, server_name: mesh, server_header_transformation: OVERWRITE}`},
		{name: "absent", hcm: `{server_name: mesh, server_header_transformation: APPEND_IF_ABSENT}`},
		{name: "through", hcm: `{server_name: mesh, server_header_transformation: PASS_THROUGH}`},
		{name: "agent", hcm: `{add_user_agent: true, via: v}`},
		{name: "proper", hcm: `{http_protocol_options: {header_key_format: {proper_case_words: {}}}}`},
		{name: "attempts", vhost: `{include_request_attempt_count: true, include_attempt_count_in_response: true}`},
	},
	cases: []testCase{
		{name: "order of levels", route: `{request_headers_to_add: [{header: {key: x-order, value: route}}], response_headers_to_add: [{header: {key: x-order, value: route}}]}`, do: h1("GET {p}", "x-order: client", "x-secret: 1", "x-table-secret: 2"), up: []answer{status(200, "x-order: upstream", "x-internal: 1")}},
		{name: "most specific wins", on: "specific", route: `{request_headers_to_add: [{header: {key: x-order, value: route}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}], response_headers_to_add: [{header: {key: x-order, value: route}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]}`, do: h1("GET {p}")},
		{name: "append actions on requests", route: `{request_headers_to_add: [
{header: {key: x-a, value: new}, append_action: APPEND_IF_EXISTS_OR_ADD}, {header: {key: x-b, value: new}, append_action: ADD_IF_ABSENT},
{header: {key: x-c, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-d, value: new}, append_action: OVERWRITE_IF_EXISTS}]}`, do: steps(h1("GET {p}"), h1("GET {p}", "x-a: old", "x-b: old", "x-c: old", "x-d: old"))},
		{name: "append actions on responses", route: `{response_headers_to_add: [
{header: {key: x-a, value: new}, append_action: APPEND_IF_EXISTS_OR_ADD}, {header: {key: x-b, value: new}, append_action: ADD_IF_ABSENT},
{header: {key: x-c, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-d, value: new}, append_action: OVERWRITE_IF_EXISTS}]}`, up: []answer{ok, status(200, "x-a: old", "x-b: old", "x-c: old", "x-d: old")}, do: repeat(2, h1("GET {p}"))},
		{name: "removed after it was added", route: `{request_headers_to_add: [{header: {key: x-gone, value: a}}], request_headers_to_remove: [x-gone]}`, do: h1("GET {p}")},
		{name: "empty values", route: `{request_headers_to_add: [{header: {key: x-empty, value: ""}}, {header: {key: x-kept, value: ""}, keep_empty_value: true}, {header: {key: x-none, value: "%REQ(x-missing)%"}}]}`, do: h1("GET {p}")},
		{name: "operators on requests", route: `{name: r1, request_headers_to_add: [
{header: {key: x-proto, value: "%PROTOCOL%"}}, {header: {key: x-req, value: "%REQ(x-in)%-%REQ(x-none?x-in)%"}}, {header: {key: x-cut, value: "%REQ(x-in):3%"}}, {header: {key: x-percent, value: "100%%"}},
{header: {key: x-cluster, value: "%UPSTREAM_CLUSTER%"}}, {header: {key: x-route, value: "%ROUTE_NAME%"}}, {header: {key: x-addr, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}, {header: {key: x-method, value: "%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)%"}}]}`, do: h1("GET {p}", "x-in: abcdef")},
		{name: "operators on responses", route: `{name: r2, response_headers_to_add: [
{header: {key: x-code, value: "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%"}}, {header: {key: x-req, value: "%REQ(x-in)%"}}, {header: {key: x-resp, value: "%RESP(x-up)%"}},
{header: {key: x-host, value: "%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %ROUTE_NAME%"}}, {header: {key: x-path, value: "%PATH(NQ)% %PATH(WQ)%"}}]}`, up: []answer{status(201, "x-up: yes")}, do: h1("GET {p}?a=b", "x-in: abcdef")},
		{name: "operators on local replies", differs: ownStatus, route: `{direct_response: {status: 403}, response_headers_to_add: [{header: {key: x-code, value: "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS%"}}]}`, do: h1("GET {p}")},
		{name: "headers of unknown clusters", route: `{route: {cluster_header: x-to}, response_headers_to_add: [{header: {key: x-r, value: "1"}}]}`, do: h1("GET {p}")},
		{name: "hop by hop", do: h1("GET {p}", "connection: keep-alive, x-mine", "x-mine: 1", "keep-alive: timeout=5", "proxy-connection: keep-alive", "te: trailers", "x-other: 1")},
		{name: "te named by connection", do: steps(h1("GET {p}", "connection: te", "te: trailers, gzip"), h1("GET {p}", "connection: te, close", "te: gzip"))},
		{name: "te without connection", do: h1("GET {p}", "te: gzip")},
		{name: "hop by hop in responses", differs: namedByConnection, up: []answer{status(200, "connection: x-mine", "x-mine: 1", "keep-alive: timeout=5", "proxy-connection: x", "upgrade: foo")}, do: h1("GET {p}")},
		{name: "hop by hop in responses to h2", differs: namedByConnection, up: []answer{status(200, "connection: x-mine", "x-mine: 1", "keep-alive: timeout=5", "proxy-connection: x", "upgrade: foo")}, do: h2("GET {p}")},
		{name: "connection names what must stay", do: h1("GET {p}", "connection: host, x-forwarded-for, content-length", "x-forwarded-for: 1.2.3.4", "body=abc")},
		{name: "client asks for close", do: h1("GET {p}", "connection: close")},
		{name: "server is overwritten", up: []answer{status(200, "server: nginx", "date: Mon, 01 Jan 2024 00:00:00 GMT")}, do: h1("GET {p}")},
		{name: "server name and via", on: "via", up: []answer{status(200, "server: nginx", "via: 1.1 before")}, do: steps(h1("GET {p}", "via: 1.0 first"), h1("GET /no-such-route"))},
		{name: "server if absent", on: "absent", up: []answer{status(200, "server: nginx"), ok}, do: repeat(2, h1("GET {p}"))},
		{name: "server passes through", on: "through", up: []answer{status(200, "server: nginx"), ok}, do: steps(repeat(2, h1("GET {p}")), h1("GET /no-such-route"))},
		{name: "user agent and cluster", on: "agent", do: steps(h1("GET {p}"), h1("GET {p}", "user-agent: curl"))},
		{name: "proper case", on: "proper", up: []answer{status(200, "x-my-header: a")}, do: h1("GET {p}", "x-my-header: a")},
		{name: "attempt counts", on: "attempts", route: `{route: {retry_policy: {retry_on: 5xx, num_retries: 2}}}`, up: []answer{status(500), ok}, do: h1("GET {p}")},
		{name: "attempt counts on local replies", on: "attempts", route: `{direct_response: {status: 200}}`, do: h1("GET {p}")},
		{name: "names are lower case upstream", do: h1("GET {p}", "X-Upper-Case: Value")},
		{name: "response names are lower case", up: []answer{status(200, "X-Upper: Value", "ETag: x")}, do: h1("GET {p}")},
		{name: "white space around values", do: h1("GET {p}", "x-a:   b c  ", "x-b:\tt\t", "x-c:")},
		{name: "many values stay apart", do: h1("GET {p}", "x-a: 1", "x-b: 2", "x-a: 3"), up: []answer{status(200, "set-cookie: a", "set-cookie: b", "x-c: 1", "x-c: 2")}},
		{name: "cookies at h2 are joined", do: h2("GET {p}", "cookie: a=1", "cookie: b=2")},
		{name: "envoy headers from the client", do: h1("GET {p}", "x-envoy-internal: true", "x-envoy-max-retries: 5", "x-envoy-retry-on: 5xx", "x-envoy-decorator-operation: op", "x-envoy-external-address: 1.1.1.1", "x-envoy-force-trace: 1", "x-envoy-upstream-rq-timeout-ms: 3000")},
		{name: "envoy headers from the upstream", up: []answer{status(200, "x-envoy-upstream-service-time: 77", "x-envoy-degraded: 1", "x-envoy-decorator-operation: x", "x-envoy-upstream-canary: true")}, do: h1("GET {p}")},
	},
}
