package behaviour

import (
	"fmt"
	"strings"
	"time"
)

const ms = time.Millisecond

// policy is a route's retry policy.
func policy(p string) string { return `{route: {retry_policy: {` + p + `}}}` }

func policyAt(cluster, p string) string {
	return `{route: {cluster: ` + cluster + `, retry_policy: {` + p + `}}}`
}

var grpcFailed = headersOnly(200, "content-type: application/grpc", "grpc-status: 14", "grpc-message: busy")

var retries = group{
	name:  "retries",
	stats: `^cluster\.(a|b|h2|refused|budget|overflow)\.upstream_rq_retry`,
	listeners: []listener{{}, {name: "vhost", vhost: `{retry_policy: {retry_on: 5xx, num_retries: 3}}`},
		{name: "small", vhost: `{per_request_buffer_limit_bytes: 10}`}, {name: "internal", hcm: `{use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}}`},
		{name: "edge", hcm: `{use_remote_address: true}`}},
	cases: []testCase{
		{name: "5xx: a bad status", route: policy(`retry_on: 5xx`), up: []answer{status(500), ok}, do: h1("GET {p}")},
		{name: "5xx: one retry unless told otherwise", route: policy(`retry_on: 5xx`), up: []answer{status(500)}, do: h1("GET {p}")},
		{name: "5xx: as many as are told", route: policy(`retry_on: 5xx, num_retries: 3`), up: []answer{status(500), status(501), status(502), status(503)}, do: h1("GET {p}")},
		{name: "5xx: none", route: policy(`retry_on: 5xx, num_retries: 0`), up: []answer{status(500)}, do: h1("GET {p}")},
		{name: "5xx: not a 4xx", route: policy(`retry_on: 5xx`), up: []answer{status(404)}, do: h1("GET {p}")},
		{name: "5xx: the connection is closed", route: policy(`retry_on: 5xx`), cluster: `{type: STATIC}`, up: []answer{hangUp, ok}, do: h1("GET {p}")},
		{name: "5xx: the connection is reset", route: policy(`retry_on: 5xx`), cluster: `{type: STATIC}`, up: []answer{reset, ok}, do: h1("GET {p}")},
		{name: "5xx: nobody listens", route: policyAt("refused", `retry_on: 5xx, num_retries: 2`), do: h1("GET {p}")},
		{name: "5xx: an overloaded upstream is left alone", route: policy(`retry_on: 5xx`), up: []answer{status(503, "x-envoy-overloaded: true"), ok}, do: h1("GET {p}")},
		{name: "5xx: with a body", route: policy(`retry_on: 5xx`), up: []answer{status(500), ok}, do: h1("POST {p}", "body=abc")},
		{name: "5xx: with a chunked body and trailers", route: policyAt("h2", `retry_on: 5xx`), up: []answer{status(500), ok}, do: h2("POST {p}", "body=abc", "body=def", "trailer=x-t: 1")},
		{name: "5xx: a body over the limit", on: "small", route: policy(`retry_on: 5xx`), up: []answer{status(500), ok}, do: h1("POST {p}", "body=0123456789abcdef")},
		{name: "gateway-error: 503", route: policy(`retry_on: gateway-error`), up: []answer{status(503), ok}, do: h1("GET {p}")},
		{name: "gateway-error: not 500", route: policy(`retry_on: gateway-error`), up: []answer{status(500), ok}, do: h1("GET {p}")},
		{name: "reset: closed", route: policy(`retry_on: reset`), cluster: `{type: STATIC}`, up: []answer{hangUp, ok}, do: h1("GET {p}")},
		{name: "reset: not a status", route: policy(`retry_on: reset`), up: []answer{status(503), ok}, do: h1("GET {p}")},
		{name: "reset: not after the answer began", differs: cutOff, route: policy(`retry_on: "reset,5xx"`), cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"), ok}, do: h1("GET {p}")},
		{name: "connect-failure: nobody listens", route: policyAt("refused", `retry_on: connect-failure`), do: h1("GET {p}")},
		{name: "connect-failure: another host", cluster: `{hosts: [refused, {host: b, priority: 1}]}`, route: policy(`retry_on: connect-failure, num_retries: 1, retry_priority: {name: envoy.retry_priorities.previous_priorities, typed_config: {"@type": T/retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 1}}`), do: h1("GET {p}")},
		{name: "connect-failure: not a close", route: policy(`retry_on: connect-failure`), cluster: `{type: STATIC}`, up: []answer{hangUp, ok}, do: h1("GET {p}")},
		{name: "connect-failure: a timeout", route: policyAt("silent", `retry_on: connect-failure`), do: h1("GET {p}")},
		{name: "reset-before-request: not once it was sent", route: policy(`retry_on: reset-before-request`), cluster: `{type: STATIC}`, up: []answer{hangUp, ok}, do: h1("GET {p}")},
		{name: "retriable-4xx: 409", route: policy(`retry_on: retriable-4xx`), up: []answer{status(409), ok}, do: h1("GET {p}")},
		{name: "retriable-4xx: not 404", route: policy(`retry_on: retriable-4xx`), up: []answer{status(404), ok}, do: h1("GET {p}")},
		{name: "envoy-ratelimited", route: policy(`retry_on: envoy-ratelimited`), up: []answer{status(429, "x-envoy-ratelimited: true"), ok}, do: h1("GET {p}")},
		{name: "envoy-ratelimited: not a plain 429", route: policy(`retry_on: envoy-ratelimited`), up: []answer{status(429), ok}, do: h1("GET {p}")},
		{name: "5xx: a rate limited answer", route: policy(`retry_on: 5xx`), up: []answer{status(503, "x-envoy-ratelimited: true"), ok}, do: h1("GET {p}")},
		{name: "refused-stream", route: policyAt("h2", `retry_on: refused-stream`), up: []answer{refuse, ok}, do: h1("GET {p}")},
		{name: "refused-stream: not another reset", route: policyAt("h2", `retry_on: refused-stream`), cluster: `{type: STATIC}`, up: []answer{reset, ok}, do: h1("GET {p}")},
		{name: "retriable-status-codes", route: policy(`retry_on: retriable-status-codes, retriable_status_codes: [418, 404], num_retries: 2`), up: []answer{status(418), status(404), status(503)}, do: h1("GET {p}")},
		{name: "retriable-headers", route: policy(`retry_on: retriable-headers, retriable_headers: [{name: x-again, string_match: {exact: "yes"}}], num_retries: 2`), up: []answer{status(200, "x-again: yes"), status(200, "x-again: no")}, do: h1("GET {p}")},
		{name: "only some requests", route: policy(`retry_on: 5xx, retriable_request_headers: [{name: ":method", string_match: {exact: GET}}]`), up: []answer{status(500), ok, status(500), ok}, do: steps(h1("GET {p}"), h1("POST {p}", "body=a"))},
		{name: "grpc: unavailable", route: policyAt("h2", `retry_on: unavailable`), up: []answer{grpcFailed, stream(200, []string{"content-type: application/grpc"}, "m", "grpc-status: 0")}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "grpc: another code", route: policyAt("h2", `retry_on: "cancelled,deadline-exceeded,internal,resource-exhausted"`), up: []answer{grpcFailed, ok}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "grpc: every listed code", route: policyAt("h2", `retry_on: "cancelled,deadline-exceeded,internal,resource-exhausted", num_retries: 4`),
			up: []answer{headersOnly(200, "content-type: application/grpc", "grpc-status: 1"), headersOnly(200, "content-type: application/grpc", "grpc-status: 4"), headersOnly(200, "content-type: application/grpc", "grpc-status: 13"), headersOnly(200, "content-type: application/grpc", "grpc-status: 8"), headersOnly(200, "content-type: application/grpc", "grpc-status: 0")},
			do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "grpc: not when it is in the trailers", route: policyAt("h2", `retry_on: unavailable`), up: []answer{stream(200, []string{"content-type: application/grpc"}, "m", "grpc-status: 14"), ok}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "per try timeout", route: policy(`retry_on: 5xx, per_try_timeout: 0.15s`), up: []answer{noAnswer, ok}, do: h1("GET {p}")},
		{name: "per try timeout: the last", route: policy(`retry_on: 5xx, per_try_timeout: 0.1s`), up: []answer{noAnswer}, do: h1("GET {p}")},
		{name: "per try timeout: without retries", route: policy(`per_try_timeout: 0.1s`), up: []answer{noAnswer}, do: h1("GET {p}")},
		{name: "per try idle timeout", route: policy(`retry_on: 5xx, per_try_idle_timeout: 0.1s`), up: []answer{noAnswer, ok}, do: h1("GET {p}")},
		{name: "the route's timeout ends it", route: `{route: {timeout: 0.25s, retry_policy: {retry_on: 5xx, per_try_timeout: 0.1s, num_retries: 9, retry_back_off: {base_interval: 0.001s}}}}`, up: []answer{noAnswer}, noUp: true, noLog: true, do: h1("GET {p}")},
		{name: "back off", route: policy(`retry_on: 5xx, num_retries: 4, retry_back_off: {base_interval: 0.01s, max_interval: 0.02s}`), up: []answer{status(500)}, do: took(0, 500*ms, h1("GET {p}"))},
		{name: "back off as the upstream says", route: policy(`retry_on: 5xx, rate_limited_retry_back_off: {reset_headers: [{name: retry-after, format: SECONDS}]}`), cluster: `{type: STATIC}`, up: []answer{status(503, "retry-after: 1"), ok}, do: took(1000*ms, 2500*ms, h1("GET {p}"))},
		{name: "the virtual host's policy", on: "vhost", up: []answer{status(500), status(500), ok}, do: h1("GET {p}")},
		{name: "the route's policy replaces it", on: "vhost", route: policy(`retry_on: reset`), up: []answer{status(500), ok}, do: h1("GET {p}")},
		{name: "other hosts first", cluster: `{hosts: [a, b]}`, route: policy(`retry_on: 5xx, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {"@type": T/retry.host.previous_hosts.v3.PreviousHostsPredicate}}], host_selection_retry_max_attempts: 20`), up: []answer{status(500), ok}, sorted: true, noUp: true, noLog: true, do: h1("GET {p}")},
		{name: "hosts with metadata are left out", cluster: `{hosts: [a, {host: b, metadata: {filter_metadata: {envoy.lb: {old: true}}}}]}`, route: policy(`retry_on: 5xx, num_retries: 5, retry_host_predicate: [{name: envoy.retry_host_predicates.omit_host_metadata, typed_config: {"@type": T/retry.host.omit_host_metadata.v3.OmitHostMetadataConfig, metadata_match: {filter_metadata: {envoy.lb: {old: true}}}}}], host_selection_retry_max_attempts: 30`), up: []answer{status(500)}, noUp: true, noLog: true, do: h1("GET {p}")},
		{name: "asked by headers from inside", on: "internal", up: []answer{status(503), status(503), ok}, do: h1("GET {p}", "x-envoy-retry-on: 5xx", "x-envoy-max-retries: 2")},
		{name: "asked by headers with codes", on: "internal", up: []answer{status(418), ok}, do: h1("GET {p}", "x-envoy-retry-on: retriable-status-codes", "x-envoy-retriable-status-codes: 418,419")},
		{name: "asked by headers with header names", on: "internal", up: []answer{status(200, "x-again: 1"), ok}, do: h1("GET {p}", "x-envoy-retry-on: retriable-headers", "x-envoy-retriable-header-names: x-again")},
		{name: "asked by headers for grpc", on: "internal", route: `{route: {cluster: h2}}`, up: []answer{grpcFailed, headersOnly(200, "content-type: application/grpc", "grpc-status: 0")}, do: h2("POST {p}", "content-type: application/grpc", "x-envoy-retry-grpc-on: unavailable")},
		{name: "asked by headers from outside", on: "edge", up: []answer{status(503), ok}, do: h1("GET {p}", "x-envoy-retry-on: 5xx", "x-envoy-max-retries: 2")},
		{name: "budget", cluster: `{circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 0}, min_retry_concurrency: 0}}]}}`, route: policy(`retry_on: 5xx`), up: []answer{status(500), ok}, do: h1("GET {p}")},
		{name: "no retries left in the breaker", cluster: `{circuit_breakers: {thresholds: [{max_retries: 0}]}}`, route: policy(`retry_on: 5xx`), up: []answer{status(500), ok}, do: h1("GET {p}")},
		{name: "no healthy host is not retried into life", route: policyAt("none", `retry_on: 5xx`), do: h1("GET {p}")},
		{name: "goaway and close", cluster: `{h2: true}`, route: policy(`retry_on: 5xx`), up: []answer{hangUp, ok}, do: h1("GET {p}")},
		{name: "an early answer while the body is on its way", route: policy(`retry_on: 5xx`), up: []answer{early(status(500)), ok}, do: h1("POST {p}", "body="+strings.Repeat("x", 400))},
		{name: "unknown conditions are passed over", route: policy(`retry_on: "5xx,strange"`), up: []answer{status(500), ok}, do: h1("GET {p}")},
	},
}

var timeouts = group{
	name: "timeouts",
	listeners: []listener{{},
		{name: "idle", hcm: `{stream_idle_timeout: 0.2s}`},
		{name: "request", hcm: `{request_timeout: 0.2s}`},
		{name: "headers", hcm: `{request_headers_timeout: 0.2s}`},
		{name: "duration", hcm: `{common_http_protocol_options: {max_stream_duration: 0.2s}}`},
		{name: "connidle", hcm: `{common_http_protocol_options: {idle_timeout: 0.2s}}`},
		{name: "connlife", hcm: `{common_http_protocol_options: {max_connection_duration: 0.3s}, drain_timeout: 0.1s}`},
		{name: "reqs", hcm: `{common_http_protocol_options: {max_requests_per_connection: 2}}`},
		{name: "internal", hcm: `{use_remote_address: true, internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}}`},
		{name: "edge", hcm: `{use_remote_address: true}`},
	},
	cases: []testCase{
		{name: "route", route: `{route: {timeout: 0.15s}}`, up: []answer{noAnswer}, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "route: grpc", route: `{route: {cluster: h2, timeout: 0.15s}}`, up: []answer{noAnswer}, do: h2("POST {p}", "content-type: application/grpc", "body=x")},
		{name: "route: off", route: `{route: {timeout: 0s}}`, up: []answer{after(300*ms, ok)}, do: h1("GET {p}")},
		{name: "route: begins after the body", route: `{route: {timeout: 0.3s}}`, do: steps(send("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 3\r\n\r\na"), wait(450*ms), send("bc"), receive)},
		{name: "route: the answer began", route: `{route: {timeout: 0.2s}}`, up: []answer{{do: func(x exchange) { x.head(200, "content-length: 10"); x.body("abc"); noAnswer.do(x) }}}, do: h1("GET {p}")},
		{name: "route: the answer began at h2", route: `{route: {cluster: h2, timeout: 0.2s}}`, up: []answer{{do: func(x exchange) { x.head(200); x.body("abc"); noAnswer.do(x) }}}, do: h2("GET {p}")},
		{name: "route idle", route: `{route: {timeout: 0s, idle_timeout: 0.2s}}`, up: []answer{noAnswer}, do: h1("GET {p}")},
		{name: "route idle: the answer began", route: `{route: {timeout: 0s, idle_timeout: 0.2s}}`, up: []answer{{do: func(x exchange) { x.head(200); x.body("abc"); noAnswer.do(x) }}}, do: h1("GET {p}")},
		{name: "stream idle", on: "idle", route: `{route: {timeout: 0s}}`, up: []answer{noAnswer}, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "stream idle: the route may have more time", on: "idle", route: `{route: {timeout: 0s, idle_timeout: 1s}}`, up: []answer{after(400*ms, ok)}, do: h1("GET {p}")},
		{name: "stream idle: data keeps it alive", on: "idle", route: `{route: {timeout: 0s}}`, up: []answer{{do: func(x exchange) {
			x.head(200)
			for range 8 {
				time.Sleep(40 * ms)
				x.body("x")
			}
			x.end()
		}}}, do: h1("GET {p}")},
		{name: "stream idle: the client does not go on", on: "idle", do: steps(send("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 3\r\n\r\na"), receive)},
		{name: "request", on: "request", noUp: true, do: steps(send("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 3\r\n\r\na"), receive)},
		{name: "request: in time", on: "request", up: []answer{after(400*ms, ok)}, do: h1("POST {p}", "body=abc")},
		{name: "request headers", on: "headers", do: steps(send("GET {p} HTTP/1.1\r\nhost: x\r\n"), receive)},
		{name: "stream duration of the listener", on: "duration", route: `{route: {timeout: 0s}}`, up: []answer{noAnswer}, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "stream duration: the answer began", on: "duration", route: `{route: {timeout: 0s}}`, up: []answer{{do: func(x exchange) { x.head(200); x.body("abc"); noAnswer.do(x) }}}, do: h1("GET {p}")},
		{name: "stream duration of the route", route: `{route: {max_stream_duration: {max_stream_duration: 0.2s}}}`, up: []answer{noAnswer}, do: h1("GET {p}")},
		{name: "stream duration off by the route", on: "duration", route: `{route: {max_stream_duration: {max_stream_duration: 0s}}}`, up: []answer{after(350*ms, ok)}, do: h1("GET {p}")},
		{name: "grpc-timeout as it is", route: `{route: {cluster: h2, max_stream_duration: {grpc_timeout_header_max: 0s}}}`, up: []answer{noAnswer}, do: h2("POST {p}", "content-type: application/grpc", "grpc-timeout: 150m", "body=x")},
		{name: "grpc-timeout capped", route: `{route: {cluster: h2, max_stream_duration: {grpc_timeout_header_max: 0.15s}}}`, up: []answer{noAnswer}, do: took(100*ms, 1500*ms, h2("POST {p}", "content-type: application/grpc", "grpc-timeout: 5S", "body=x"))},
		{name: "grpc-timeout less an offset", route: `{route: {cluster: h2, max_stream_duration: {grpc_timeout_header_max: 10s, grpc_timeout_header_offset: 0.9s}}}`, up: []answer{noAnswer}, do: took(50*ms, 900*ms, h2("POST {p}", "content-type: application/grpc", "grpc-timeout: 1S", "body=x"))},
		{name: "grpc-timeout of the old form", route: `{route: {cluster: h2, max_grpc_timeout: 0.2s}}`, up: []answer{noAnswer}, do: h2("POST {p}", "content-type: application/grpc", "grpc-timeout: 5S", "body=x")},
		{name: "grpc-timeout alone changes nothing", route: `{route: {cluster: h2}}`, up: []answer{after(200*ms, headersOnly(200, "content-type: application/grpc", "grpc-status: 0"))}, do: h2("POST {p}", "content-type: application/grpc", "grpc-timeout: 100m", "body=x")},
		{name: "by header from inside", on: "internal", up: []answer{noAnswer}, do: h1("GET {p}", "x-envoy-upstream-rq-timeout-ms: 150")},
		{name: "by header from outside", on: "edge", up: []answer{after(300*ms, ok)}, do: h1("GET {p}", "x-envoy-upstream-rq-timeout-ms: 100")},
		{name: "per try by header", on: "internal", route: policy(`retry_on: 5xx`), up: []answer{noAnswer, ok}, do: h1("GET {p}", "x-envoy-upstream-rq-per-try-timeout-ms: 150")},
		{name: "per try as long as the whole", on: "internal", route: `{route: {timeout: 0.2s, retry_policy: {retry_on: 5xx, per_try_timeout: 0.5s}}}`, up: []answer{noAnswer}, do: h1("GET {p}")},
		{name: "another status by header", on: "internal", route: `{route: {timeout: 0.15s}}`, up: []answer{noAnswer}, do: h1("GET {p}", "x-envoy-upstream-rq-timeout-alt-response: 1")},
		{name: "an idle connection is closed", on: "connidle", do: steps(h1("GET {p}"), took(100*ms, 1500*ms, eof))},
		{name: "an idle connection is closed at h2", on: "connidle", do: steps(h2("GET {p}"), took(100*ms, 6500*ms, h2Raw(func(*h2Client) {})))},
		{name: "a busy connection is not idle", on: "connidle", up: []answer{after(400*ms, ok)}, do: h1("GET {p}")},
		{name: "a connection's life ends", differs: oneMore, on: "connlife", do: steps(h1("GET {p}"), wait(500*ms), h1("GET {p}"))},
		{name: "as many requests as a connection may have", on: "reqs", do: steps(repeat(2, h1("GET {p}")), anew, repeat(2, h2("GET {p}")))},
		{name: "upstream connections have a number of requests", cluster: `{typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": T/upstreams.http.v3.HttpProtocolOptions, common_http_protocol_options: {max_requests_per_connection: 1}, explicit_http_config: {http_protocol_options: {}}}}}`, do: repeat(2, h1("GET {p}"))},
		{name: "upstream stream duration", cluster: `{typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": T/upstreams.http.v3.HttpProtocolOptions, common_http_protocol_options: {max_stream_duration: 0.15s}, explicit_http_config: {http_protocol_options: {}}}}}`, up: []answer{noAnswer}, do: h1("GET {p}")},
	},
}

func thresholds(t string) string { return `{circuit_breakers: {thresholds: [{` + t + `}]}}` }

var breakers = group{
	name: "breakers",
	cases: []testCase{
		{name: "no request is let in", cluster: thresholds(`max_requests: 0`), do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "no request may wait", cluster: thresholds(`max_pending_requests: 0`), do: h1("GET {p}")},
		{name: "no connection: one is allowed", cluster: thresholds(`max_connections: 0`), do: h1("GET {p}")},
		{name: "overflow for grpc", cluster: `{h2: true, circuit_breakers: {thresholds: [{max_requests: 0}]}}`, do: h2("POST {p}", "content-type: application/grpc", "body=x")},
		{name: "one request at a time", cluster: thresholds(`max_requests: 1`), up: []answer{after(400*ms, ok)}, noLog: true, do: atOnce(h1("GET {p}"), steps(wait(150*ms), h1("GET {p}")))},
		{name: "one connection, one waits", cluster: thresholds(`max_connections: 1, max_pending_requests: 1`), up: []answer{after(300*ms, ok)}, noLog: true, do: atOnce(h1("GET {p}"), steps(wait(100*ms), h1("GET {p}")), steps(wait(200*ms), h1("GET {p}")))},
		{name: "another priority has its own", cluster: `{circuit_breakers: {thresholds: [{max_requests: 0}, {priority: HIGH, max_requests: 5}]}}`, route: `[{match: {prefix: "{p}/high"}, route: {priority: HIGH}}, {match: {prefix: "{p}"}}]`, do: steps(h1("GET {p}/high"), h1("GET {p}"))},
		{name: "one request at a time at h2", cluster: `{h2: true, circuit_breakers: {thresholds: [{max_requests: 1}]}}`, up: []answer{after(400*ms, ok)}, noLog: true, do: atOnce(h1("GET {p}"), steps(wait(150*ms), h1("GET {p}")))},
		{name: "overflow is not retried forever", cluster: thresholds(`max_requests: 0`), route: policy(`retry_on: 5xx, num_retries: 3`), do: h1("GET {p}")},
	},
}

func outlier(o string) string {
	return `{hosts: [a], common_lb_config: {healthy_panic_threshold: {value: 0}}, outlier_detection: {interval: 30s, max_ejection_percent: 100, ` + o + `}}`
}

var outliers = group{
	name:  "outliers",
	stats: `outlier_detection\.ejections_(enforced|detected)|membership_`,
	cases: []testCase{
		{name: "five times 5xx", cluster: outlier(``), up: []answer{status(500)}, do: calmly(6, h1("GET {p}"))},
		{name: "a success begins anew", cluster: outlier(`consecutive_5xx: 2`), up: []answer{status(500), ok, status(500), ok}, do: calmly(4, h1("GET {p}"))},
		{name: "as many as are told", cluster: outlier(`consecutive_5xx: 2`), up: []answer{status(500)}, do: calmly(3, h1("GET {p}"))},
		{name: "gateway failures count when told", cluster: outlier(`consecutive_5xx: 0, enforcing_consecutive_5xx: 0, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100`), up: []answer{status(503)}, do: calmly(3, h1("GET {p}"))},
		{name: "gateway failures are not enforced by themselves", cluster: outlier(`consecutive_5xx: 100, consecutive_gateway_failure: 2`), up: []answer{status(503)}, do: calmly(3, h1("GET {p}"))},
		{name: "closed connections count", cluster: outlier(`consecutive_5xx: 2`), up: []answer{hangUp}, do: calmly(3, h1("GET {p}"))},
		{name: "failed connections count", differs: lastResort, cluster: `{hosts: [refused], common_lb_config: {healthy_panic_threshold: {value: 0}}, outlier_detection: {interval: 30s, max_ejection_percent: 100, consecutive_5xx: 2}}`, do: calmly(3, h1("GET {p}"))},
		{name: "local failures apart", cluster: outlier(`consecutive_5xx: 1, split_external_local_origin_errors: true, consecutive_local_origin_failure: 2`), up: []answer{hangUp}, do: calmly(3, h1("GET {p}"))},
		{name: "timeouts count", cluster: outlier(`consecutive_5xx: 1`), route: `{route: {timeout: 0.1s}}`, up: []answer{noAnswer}, do: calmly(2, h1("GET {p}"))},
		{name: "4xx does not count", cluster: outlier(`consecutive_5xx: 1`), up: []answer{status(429)}, do: calmly(2, h1("GET {p}"))},
		{name: "enforced for no share", cluster: outlier(`consecutive_5xx: 1, enforcing_consecutive_5xx: 0`), up: []answer{status(500)}, do: calmly(2, h1("GET {p}"))},
		{name: "one of one is not ejected under the usual share", cluster: `{hosts: [a], common_lb_config: {healthy_panic_threshold: {value: 0}}, outlier_detection: {interval: 30s, consecutive_5xx: 1}}`, up: []answer{status(500)}, do: calmly(2, h1("GET {p}"))},
		{name: "one of one is ejected if always one may be", cluster: `{hosts: [a], common_lb_config: {healthy_panic_threshold: {value: 0}}, outlier_detection: {interval: 30s, consecutive_5xx: 1, always_eject_one_host: true}}`, up: []answer{status(500)}, do: calmly(2, h1("GET {p}"))},
		{name: "the others take over", cluster: `{hosts: [a, b], outlier_detection: {interval: 30s, max_ejection_percent: 50, consecutive_5xx: 1}}`, route: policy(`retry_on: 5xx, num_retries: 5`), up: []answer{status(500), ok}, noUp: true, noLog: true, do: calmly(4, h1("GET {p}"))},
		{name: "it comes back", differs: backInTime, cluster: `{common_lb_config: {healthy_panic_threshold: {value: 0}}, outlier_detection: {interval: 0.1s, base_ejection_time: 0.5s, max_ejection_percent: 100, consecutive_5xx: 1}}`, up: []answer{status(500), ok}, do: steps(calmly(2, h1("GET {p}")), wait(1200*ms), h1("GET {p}"))},
		{name: "grpc failures count", cluster: `{h2: true, common_lb_config: {healthy_panic_threshold: {value: 0}}, outlier_detection: {interval: 30s, max_ejection_percent: 100, consecutive_5xx: 2}}`, up: []answer{grpcFailed}, do: calmly(3, h2("POST {p}", "content-type: application/grpc", "body=x"))},
		{name: "a panicking cluster is used", cluster: `{outlier_detection: {interval: 30s, max_ejection_percent: 100, consecutive_5xx: 1}}`, up: []answer{status(500), ok}, do: calmly(2, h1("GET {p}"))},
	},
}

// perRoute is a route with a filter's configuration of its own.
func perRoute(filter, typ, conf string) string {
	return fmt.Sprintf(`{typed_per_filter_config: {%s: {"@type": T/%s, %s}}}`, filter, typ, conf)
}

func fault(conf string) string {
	return perRoute("envoy.filters.http.fault", "filters.http.fault.v3.HTTPFault", conf)
}

var all = `percentage: {numerator: 100}`

var faults = group{
	name: "faults",
	listeners: []listener{{filters: `[{name: envoy.filters.http.fault, typed_config: {"@type": T/filters.http.fault.v3.HTTPFault}}]`},
		{name: "headers", filters: `[{name: envoy.filters.http.fault, typed_config: {"@type": T/filters.http.fault.v3.HTTPFault, delay: {header_delay: {}, percentage: {numerator: 100}}, abort: {header_abort: {}, percentage: {numerator: 100}}}}]`}},
	stats: `\.fault\.`,
	cases: []testCase{
		{name: "abort", route: fault(`abort: {http_status: 418, ` + all + `}`), do: steps(h1("GET {p}"), h2Anew("GET {p}"), h1("HEAD {p}"))},
		{name: "abort none", route: fault(`abort: {http_status: 418, percentage: {numerator: 0}}`), do: h1("GET {p}")},
		{name: "abort grpc", route: fault(`abort: {grpc_status: 8, ` + all + `}`), do: steps(h2("POST {p}", "content-type: application/grpc", "body=x"), anew, h1("GET {p}"))},
		{name: "abort a grpc call by status", route: fault(`abort: {http_status: 503, ` + all + `}`), do: h2("POST {p}", "content-type: application/grpc", "body=x")},
		{name: "delay", route: fault(`delay: {fixed_delay: 0.2s, ` + all + `}`), do: took(190*ms, 1500*ms, h1("GET {p}"))},
		{name: "delay and abort", route: fault(`delay: {fixed_delay: 0.1s, ` + all + `}, abort: {http_status: 500, ` + all + `}`), do: took(90*ms, 1500*ms, h1("GET {p}"))},
		{name: "only some headers", route: fault(`headers: [{name: x-user, string_match: {exact: ada}}], abort: {http_status: 500, ` + all + `}`), do: steps(h1("GET {p}"), h1("GET {p}", "x-user: ada"))},
		{name: "only some cluster", route: fault(`upstream_cluster: b, abort: {http_status: 500, ` + all + `}`), do: h1("GET {p}")},
		{name: "none at a time", route: fault(`max_active_faults: 0, abort: {http_status: 500, ` + all + `}`), do: h1("GET {p}")},
		{name: "by header: nothing asked", on: "headers", do: h1("GET {p}")},
		{name: "by header: abort", on: "headers", do: h1("GET {p}", "x-envoy-fault-abort-request: 418")},
		{name: "by header: abort for a share", on: "headers", do: h1("GET {p}", "x-envoy-fault-abort-request: 418", "x-envoy-fault-abort-request-percentage: 0")},
		{name: "by header: grpc", on: "headers", do: h2("POST {p}", "content-type: application/grpc", "x-envoy-fault-abort-grpc-request: 5", "body=x")},
		{name: "by header: delay", on: "headers", do: took(190*ms, 1500*ms, h1("GET {p}", "x-envoy-fault-delay-request: 200"))},
		{name: "by header: no status", on: "headers", do: h1("GET {p}", "x-envoy-fault-abort-request: 999")},
		{name: "the delay is no part of the timeout", route: `{route: {timeout: 0.2s}, typed_per_filter_config: {envoy.filters.http.fault: {"@type": T/filters.http.fault.v3.HTTPFault, delay: {fixed_delay: 0.4s, ` + all + `}}}}`, do: h1("GET {p}")},
		{name: "the client leaves while it is delayed", route: fault(`delay: {fixed_delay: 0.3s, ` + all + `}`), noUp: true, do: steps(send("GET {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n"), wait(50*ms), anew, wait(100*ms))},
	},
}

func bucket(conf string) string {
	return perRoute("envoy.filters.http.local_ratelimit", "filters.http.local_ratelimit.v3.LocalRateLimit", `stat_prefix: rl, `+conf)
}

const enforced = `filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}, `

var limits = group{
	name:      "limits",
	listeners: []listener{{filters: `[{name: envoy.filters.http.local_ratelimit, typed_config: {"@type": T/filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: rl}}]`}},
	stats:     `^rl\.`,
	cases: []testCase{
		{name: "over the limit", route: bucket(enforced + `token_bucket: {max_tokens: 2, fill_interval: 60s}`), do: repeat(3, h1("GET {p}"))},
		{name: "over the limit at h2 with grpc", route: bucket(enforced + `token_bucket: {max_tokens: 1, fill_interval: 60s}`), do: repeat(2, h2("POST {p}", "content-type: application/grpc", "body=x"))},
		{name: "resource exhausted for grpc", route: bucket(enforced + `rate_limited_as_resource_exhausted: true, token_bucket: {max_tokens: 1, fill_interval: 60s}`), do: repeat(2, h2("POST {p}", "content-type: application/grpc", "body=x"))},
		{name: "not enforced", route: bucket(`filter_enabled: {default_value: {numerator: 100}}, token_bucket: {max_tokens: 1, fill_interval: 60s}`), do: repeat(2, h1("GET {p}"))},
		{name: "not enabled", route: bucket(`filter_enforced: {default_value: {numerator: 100}}, token_bucket: {max_tokens: 1, fill_interval: 60s}`), do: repeat(2, h1("GET {p}"))},
		{name: "another status and headers", route: bucket(enforced + `status: {code: ServiceUnavailable}, token_bucket: {max_tokens: 1, fill_interval: 60s}, response_headers_to_add: [{header: {key: x-limited, value: "yes"}}], request_headers_to_add_when_not_enforced: [{header: {key: x-soft, value: "1"}}]`), do: repeat(2, h1("GET {p}"))},
		{name: "soft", route: bucket(`filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 0}}, token_bucket: {max_tokens: 1, fill_interval: 60s}, request_headers_to_add_when_not_enforced: [{header: {key: x-soft, value: "1"}}]`), do: repeat(2, h1("GET {p}"))},
		{name: "it fills again", route: bucket(enforced + `token_bucket: {max_tokens: 1, fill_interval: 0.2s}`), do: steps(repeat(2, h1("GET {p}")), wait(350*ms), h1("GET {p}"))},
		{name: "each connection its own", route: bucket(enforced + `local_rate_limit_per_downstream_connection: true, token_bucket: {max_tokens: 1, fill_interval: 60s}`), do: steps(repeat(2, h1("GET {p}")), anew, h1("GET {p}"))},
		{name: "descriptors", route: `{route: {rate_limits: [{actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]}]}, typed_per_filter_config: {envoy.filters.http.local_ratelimit: {"@type": T/filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: rl, ` + enforced + `token_bucket: {max_tokens: 10, fill_interval: 60s}, descriptors: [{entries: [{key: user, value: ada}], token_bucket: {max_tokens: 1, fill_interval: 60s}}]}}}`, do: steps(repeat(2, h1("GET {p}", "x-user: ada")), repeat(2, h1("GET {p}", "x-user: bob")))},
		{name: "headers that tell the rest", route: bucket(enforced + `enable_x_ratelimit_headers: DRAFT_VERSION_03, token_bucket: {max_tokens: 2, fill_interval: 3600s}`), do: repeat(3, h1("GET {p}"))},
	},
}
