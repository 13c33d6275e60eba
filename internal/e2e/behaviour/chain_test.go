package behaviour

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var (
	stamp    = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
	duration = regexp.MustCompile(`" (\d+ \S+ \d+ \d+) \d+ \d+ "`)
)

// tellLog writes down the lines that a listener's own log got since it was told last.
func tellLog(name string) action {
	return func(c *client) {
		path := filepath.Join(c.w.dir, name+".log")
		b, err := os.ReadFile(path)
		if err != nil {
			c.say("no log: %v", err)
			return
		}
		os.Truncate(path, 0)
		for l := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n"), "\n") {
			c.say("own log: %s", duration.ReplaceAllString(stamp.ReplaceAllString(l, "<time>"), `" $1 <ms> <ms> "`))
		}
	}
}

// says is a filter chain that answers with its name.
func says(name, match, more string) string {
	return `{name: ` + name + `, filter_chain_match: {` + match + `}, ` + more + sep(more) + ` filters: [{name: envoy.filters.network.http_connection_manager, typed_config: {"@type": T/filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: ` + name + `, http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": T/filters.http.router.v3.Router}}], route_config: {virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: "` + name + `"}}}]}]}}}]}`
}

func secure(name, match string) string {
	return says(name, match, strings.TrimSuffix(strings.TrimPrefix(tlsChain(``), "{"), "}"))
}

const inspector = `listener_filters: [{name: envoy.filters.listener.tls_inspector, typed_config: {"@type": T/filters.listener.tls_inspector.v3.TlsInspector}}]`

func chainsOf(list ...string) string {
	return `{` + inspector + `, filter_chains: [` + strings.Join(list, ",\n") + `]}`
}

var chains = group{
	name:  "filter-chains",
	stats: `no_filter_chain_match|tls_inspector\.`,
	listeners: []listener{
		{name: "sni", raw: chainsOf(secure("exact", `server_names: [a.foo.test]`), secure("wild", `server_names: ['*.foo.test']`), secure("longer", `server_names: ['*.bar.foo.test']`), secure("others", `transport_protocol: tls`), says("plain", `transport_protocol: raw_buffer`, ``))},
		{name: "alpn", raw: chainsOf(secure("h2", `application_protocols: [h2]`), secure("h1", `application_protocols: [http/1.1, http/1.0]`))},
		{name: "source", raw: chainsOf(says("loopback", `source_prefix_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]`, ``), says("host", `source_prefix_ranges: [{address_prefix: 127.0.0.1, prefix_len: 32}]`, ``), says("any", ``, ``))},
		{name: "type", raw: chainsOf(says("local", `source_type: SAME_IP_OR_LOOPBACK`, ``), says("external", `source_type: EXTERNAL`, ``))},
		{name: "back", raw: chainsOf(secure("wild", `server_names: ['*.foo.test']`), secure("exact-from-afar", `server_names: [a.foo.test], source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]`))},
		{name: "default", raw: `{` + inspector + `, filter_chains: [` + secure("only", `server_names: [a.foo.test]`) + `], default_filter_chain: ` + secure("default", ``) + `}`},
		{name: "destination", raw: chainsOf(says("other-port", `destination_port: 1`, ``), says("my-port", `destination_port: {{ldestination}}`, ``), says("address", `prefix_ranges: [{address_prefix: 127.0.0.1, prefix_len: 32}]`, ``))},
		{name: "wide", raw: chainsOf(says("narrow", `prefix_ranges: [{address_prefix: 127.0.0.0, prefix_len: 16}]`, ``), says("wide", `prefix_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]`, ``))},
		{name: "ports", raw: chainsOf(says("low", `source_ports: [1, 2]`, ``), says("rest", ``, ``))},
		{name: "direct", raw: chainsOf(says("near", `direct_source_prefix_ranges: [{address_prefix: 127.0.0.1, prefix_len: 32}]`, ``), says("far", ``, ``))},
		{name: "names-before-protocols", raw: chainsOf(secure("name", `server_names: [a.foo.test]`), secure("proto", `transport_protocol: tls, application_protocols: [h2]`))},
	},
	cases: []testCase{
		{name: "server name: exact", on: "sni", do: over(sni("a.foo.test"), h1("GET /"))},
		{name: "server name: in capitals", on: "sni", do: over(sni("A.Foo.Test"), h1("GET /"))},
		{name: "server name: wildcard", on: "sni", do: over(sni("b.foo.test"), h1("GET /"))},
		{name: "server name: the longest wildcard", on: "sni", do: over(sni("x.y.bar.foo.test"), h1("GET /"))},
		{name: "server name: a wildcard is no bare name", on: "sni", do: over(sni("foo.test"), h1("GET /"))},
		{name: "server name: none", on: "sni", do: over(noName, h1("GET /"))},
		{name: "plain text", on: "sni", do: h1("GET /")},
		{name: "alpn: h2", on: "alpn", do: over(sni("x", "h2"), h2("GET /"))},
		{name: "alpn: both, the first chain", on: "alpn", do: over(sni("x", "http/1.1", "h2"), h2("GET /"))},
		{name: "alpn: http/1.1", on: "alpn", do: over(sni("x", "http/1.1"), h1("GET /"))},
		{name: "alpn: none of these", on: "alpn", do: over(sni("x"), h1("GET /"))},
		{name: "source: the narrowest", on: "source", do: h1("GET /")},
		{name: "source type", on: "type", do: h1("GET /")},
		{name: "no way back from a name", on: "back", do: over(sni("a.foo.test"), h1("GET /"))},
		{name: "the way beside it", on: "back", do: over(sni("b.foo.test"), h1("GET /"))},
		{name: "the default chain", on: "default", do: steps(over(sni("z.test"), h1("GET /")), over(sni("a.foo.test"), h1("GET /")))},
		{name: "destination port before all", on: "destination", do: h1("GET /")},
		{name: "destination: the narrowest", on: "wide", do: h1("GET /")},
		{name: "source ports", on: "ports", do: h1("GET /")},
		{name: "direct source", on: "direct", do: h1("GET /")},
		{name: "names go before protocols", on: "names-before-protocols", do: steps(over(sni("a.foo.test", "h2"), h2("GET /")), over(sni("b.foo.test", "h2"), h2("GET /")), over(sni("b.foo.test", "http/1.1"), h1("GET /")))},
	},
}

func noName(w *world) *tls.Config {
	c := tlsPlain(w)
	c.ServerName = ""
	return c
}
