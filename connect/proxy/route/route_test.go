package route_test

import (
	"fmt"
	"math/bits"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

func compile(t testing.TB, c *model.RouteConfig) *route.Table {
	t.Helper()
	table, err := route.Compile(c, func(_ string, c model.FilterConfig) (any, error) { return c, nil })
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// request makes one from a line such as "GET http://host/path?query" and header lines.
func request(line string, header ...string) *message.Request {
	r := &message.Request{}
	r.Reset()
	method, target, _ := strings.Cut(line, " ")
	r.Version, r.Method = message.HTTP11, method
	if scheme, rest, ok := strings.Cut(target, "://"); ok {
		r.Scheme, target = scheme, rest
	}
	if i := strings.IndexByte(target, '/'); i >= 0 {
		r.Authority, r.Path = target[:i], target[i:]
	} else {
		r.Authority = target
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func to(cluster string, m model.RouteMatch) model.Route {
	return model.Route{Name: cluster, Match: m, Forward: &model.Forward{Cluster: cluster}}
}

func prefix(p string) model.RouteMatch { return model.RouteMatch{Path: p} }

func pattern(p string) model.RouteMatch {
	return model.RouteMatch{Kind: model.PathRegex, Path: p, Regex: regexp.MustCompile(`\A(?:` + p + `)\z`)}
}

func exactly(s string) model.StringMatch { return text(model.MatchExact, s) }

func text(k model.StringMatchKind, s string) model.StringMatch {
	m, err := model.NewStringMatch(k, s, false)
	if err != nil {
		panic(err)
	}
	return m
}

func TestVirtualHostOfAuthority(t *testing.T) {
	vh := func(name string, domains ...string) model.VirtualHost {
		return model.VirtualHost{Name: name, Domains: domains, Routes: []model.Route{to("c", prefix("/"))}}
	}
	hosts := []model.VirtualHost{
		vh("any", "*"), vh("exact", "foo.com", "foo.com:8080"), vh("suffix", "*.foo.com"), vh("longer suffix", "*-bar.foo.com"),
		vh("prefix", "foo.*"), vh("longer prefix", "foo.bar.*"), vh("v6", "[::1]"),
	}
	tests := []struct {
		authority  string
		ignorePort bool
		want       string
	}{
		{"foo.com", false, "exact"}, {"FOO.com", false, "exact"}, {"foo.com:8080", false, "exact"},
		{"foo.com:81", false, "prefix"}, {"foo.com:81", true, "exact"}, {"[::1]:80", true, "v6"}, {"[::1]", true, "v6"},
		{"a.foo.com", false, "suffix"}, {"a-bar.foo.com", false, "longer suffix"}, {".foo.com", false, "any"}, {"-bar.foo.com", false, "suffix"},
		{"foo.org", false, "prefix"}, {"foo.bar.org", false, "longer prefix"}, {"foo.", false, "any"},
		{"other", false, "any"}, {"", false, "any"}, {strings.Repeat("A", 300) + ".foo.com", false, "suffix"},
		{strings.Repeat("B", 200) + ".FOO.com", false, "suffix"},
	}
	for _, tt := range tests {
		table := compile(t, &model.RouteConfig{VirtualHosts: hosts, IgnorePort: tt.ignorePort})
		m := table.Match(&route.Facts{Request: request("GET http://" + tt.authority + "/")})
		if m.VirtualHost == nil || m.VirtualHost.Name != tt.want {
			t.Errorf("%q (ignore port: %v) went to %v, want %q", tt.authority, tt.ignorePort, m.VirtualHost, tt.want)
		}
	}
	table := compile(t, &model.RouteConfig{VirtualHosts: hosts[1:], HostHeader: "x-host"})
	if m := table.Match(&route.Facts{Request: request("GET http://other/", "x-host: foo.com")}); m.VirtualHost == nil || m.VirtualHost.Name != "exact" {
		t.Errorf("by header: %v", m.VirtualHost)
	}
	if m := table.Match(&route.Facts{Request: request("GET http://foo.com/", "x-host: other")}); m.VirtualHost != nil || m.Route != nil || m.Cluster != "" {
		t.Errorf("no host has the domain, yet the match is %v", m.VirtualHost)
	}
}

func TestRouteMatches(t *testing.T) {
	yes, no := true, false
	header := func(m model.HeaderMatch) model.RouteMatch { return model.RouteMatch{Headers: []model.HeaderMatch{m}} }
	value := func(s string) model.HeaderMatch {
		return model.HeaderMatch{Name: "x", Kind: model.HeaderString, Match: exactly(s)}
	}
	num := model.HeaderMatch{Name: "x", Kind: model.HeaderRange, Start: -1, End: 10}
	inverted := func(m model.HeaderMatch) model.HeaderMatch { m.Invert = true; return m }
	empty := func(m model.HeaderMatch) model.HeaderMatch { m.MissingAsEmpty = true; return m }
	query := func(q model.QueryMatch) model.RouteMatch { return model.RouteMatch{Query: []model.QueryMatch{q}} }
	cookie := func(c model.CookieMatch) model.RouteMatch { return model.RouteMatch{Cookies: []model.CookieMatch{c}} }
	exact := model.RouteMatch{Kind: model.PathExact, Path: "/a"}
	below := model.RouteMatch{Kind: model.PathSeparatedPrefix, Path: "/a"}
	folded := model.RouteMatch{Path: "/abk", IgnoreCase: true}
	tests := []struct {
		name  string
		match model.RouteMatch
		line  string
		head  []string
		want  bool
	}{
		{name: "prefix", match: prefix("/a"), line: "GET h/ab", want: true},
		{name: "prefix does not look at the query", match: prefix("/a?"), line: "GET h/a?b"},
		{name: "case counts", match: prefix("/a"), line: "GET h/A"},
		{name: "case does not count", match: folded, line: "GET h/aBKc", want: true},
		{name: "only the case of ASCII letters is ignored", match: folded, line: "GET h/ab\u212a"},
		{name: "exact path", match: exact, line: "GET h/a?q=1", want: true},
		{name: "exact path, and more", match: exact, line: "GET h/a/"},
		{name: "path itself", match: below, line: "GET h/a?x", want: true},
		{name: "below", match: below, line: "GET h/a/b", want: true},
		{name: "beside", match: below, line: "GET h/ab"},
		{name: "expression", match: pattern("/a|/b"), line: "GET h/b?x", want: true},
		{name: "expression matches all of the path", match: pattern("/a|/b"), line: "GET h/bc"},
		{name: "expression with anchors of its own", match: pattern("^/(ab)+$"), line: "GET h/abab", want: true},
		{name: "connect", match: model.RouteMatch{Kind: model.PathConnect}, line: "CONNECT h:1", want: true},
		{name: "only connect", match: model.RouteMatch{Kind: model.PathConnect}, line: "GET h/"},
		{name: "a prefix is no match for connect", match: prefix(""), line: "CONNECT h:1"},
		{name: "every expression needs a path", match: pattern(".*"), line: "CONNECT h:1"},

		{name: "value", match: header(value("1")), line: "GET h/", head: []string{"x: 1"}, want: true},
		{name: "values are not joined", match: header(value("1,2")), line: "GET h/", head: []string{"x: 1", "x: 2"}},
		{name: "one of several values", match: header(value("2")), line: "GET h/", head: []string{"x: 1", "x: 2"}, want: true},
		{name: "none of several values", match: header(inverted(value("3"))), line: "GET h/", head: []string{"x: 1", "x: 2"}, want: true},
		{name: "one too many of several values", match: header(inverted(value("2"))), line: "GET h/", head: []string{"x: 1", "x: 2"}},
		{name: "one of several numbers", match: header(num), line: "GET h/", head: []string{"x: 11", "x: 1"}, want: true},
		{name: "inverted value", match: header(inverted(value("1"))), line: "GET h/", head: []string{"x: 2"}, want: true},
		{name: "a missing header never has a value", match: header(value("")), line: "GET h/"},
		{name: "nor inverted", match: header(inverted(value("1"))), line: "GET h/"},
		{name: "missing as empty", match: header(empty(value(""))), line: "GET h/", want: true},
		{name: "missing as empty, inverted", match: header(inverted(empty(num))), line: "GET h/", want: true},
		{name: "in range", match: header(num), line: "GET h/", head: []string{"x: -1"}, want: true},
		{name: "end of range", match: header(num), line: "GET h/", head: []string{"x: 10"}},
		{name: "no number", match: header(num), line: "GET h/", head: []string{"x: 1a"}},
		{name: "present", match: header(model.HeaderMatch{Name: "x"}), line: "GET h/", head: []string{"x: "}, want: true},
		{name: "not present", match: header(model.HeaderMatch{Name: "x"}), line: "GET h/"},
		{name: "inverted presence", match: header(inverted(model.HeaderMatch{Name: "x"})), line: "GET h/", want: true},
		{name: "absent", match: header(model.HeaderMatch{Name: "x", Kind: model.HeaderAbsent}), line: "GET h/", want: true},
		{name: "not absent", match: header(model.HeaderMatch{Name: "x", Kind: model.HeaderAbsent}), line: "GET h/", head: []string{"x: "}},
		{name: "inverted absence", match: header(inverted(model.HeaderMatch{Name: "x", Kind: model.HeaderAbsent})), line: "GET h/", head: []string{"x: "}, want: true},
		{name: "method", match: header(model.HeaderMatch{Name: ":method", Kind: model.HeaderString, Match: exactly("PUT")}), line: "PUT h/", want: true},
		{name: "path with query", match: header(model.HeaderMatch{Name: ":path", Kind: model.HeaderString, Match: exactly("/?a")}), line: "GET h/?a", want: true},
		{name: "host", match: header(model.HeaderMatch{Name: "host", Kind: model.HeaderString, Match: exactly("h")}), line: "GET h/", want: true},
		{name: "scheme", match: header(model.HeaderMatch{Name: ":scheme", Kind: model.HeaderString, Match: exactly("https")}), line: "GET https://h/", want: true},

		{name: "parameter", match: query(model.QueryMatch{Name: "q", Match: exactly("1")}), line: "GET h/?p=2&q=1&q=3", want: true},
		{name: "the first parameter counts", match: query(model.QueryMatch{Name: "q", Match: exactly("3")}), line: "GET h/?q=1&q=3"},
		{name: "parameter without a value", match: query(model.QueryMatch{Name: "q", Match: exactly("")}), line: "GET h/?q", want: true},
		{name: "no parameter", match: query(model.QueryMatch{Name: "q", Match: exactly("")}), line: "GET h/?"},
		{name: "parameter is there", match: query(model.QueryMatch{Name: "q", Present: true}), line: "GET h/?q=", want: true},
		{name: "parameter is not there", match: query(model.QueryMatch{Name: "q", Absent: true}), line: "GET h/?qq=1", want: true},
		{name: "parameter must not be there", match: query(model.QueryMatch{Name: "q", Absent: true}), line: "GET h/?q"},

		{name: "cookie", match: cookie(model.CookieMatch{Name: "c", Match: exactly("1")}), line: "GET h/", head: []string{`cookie: b=2; c="1"`}, want: true},
		{name: "cookie of a second field", match: cookie(model.CookieMatch{Name: "c", Match: exactly("1")}), line: "GET h/", head: []string{"cookie: b=2", "cookie: c=1"}, want: true},
		{name: "no cookie", match: cookie(model.CookieMatch{Name: "c", Match: exactly("1")}), line: "GET h/", head: []string{"cookie: c"}},
		{name: "no cookie, inverted", match: cookie(model.CookieMatch{Name: "c", Match: exactly("1"), Invert: true}), line: "GET h/", want: true},

		{name: "gRPC", match: model.RouteMatch{GRPC: true}, line: "POST h/", head: []string{"content-type: application/grpc+proto"}, want: true},
		{name: "gRPC-Web is not gRPC", match: model.RouteMatch{GRPC: true}, line: "POST h/", head: []string{"content-type: application/grpc-web"}},
		{name: "share", match: model.RouteMatch{Fraction: &model.Fraction{Numerator: 43, Denominator: 100}}, line: "GET h/", want: true},
		{name: "not in the share", match: model.RouteMatch{Fraction: &model.Fraction{Numerator: 42, Denominator: 100}}, line: "GET h/"},
		{name: "certificate", match: model.RouteMatch{TLSPresented: &yes, TLSValidated: &no}, line: "GET h/", want: true},
		{name: "good certificate", match: model.RouteMatch{TLSValidated: &yes}, line: "GET h/"},
		{name: "metadata", match: model.RouteMatch{Metadata: []model.MetadataMatcher{{Namespace: "n", Path: []string{"k"}, Value: model.ValueMatch{Bool: &yes}}}}, line: "GET h/", want: true},
		{name: "other metadata", match: model.RouteMatch{Metadata: []model.MetadataMatcher{{Namespace: "n", Path: []string{"k"}, Value: model.ValueMatch{Bool: &no}}}}, line: "GET h/"},
		{name: "state", match: model.RouteMatch{FilterState: []model.FilterStateMatcher{{Key: "s", Match: exactly("v")}}}, line: "GET h/", want: true},
		{name: "address in state", match: model.RouteMatch{FilterState: []model.FilterStateMatcher{{Key: "a", Address: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}, line: "GET h/", want: true},
		{name: "no address in state", match: model.RouteMatch{FilterState: []model.FilterStateMatcher{{Key: "s", Address: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}, line: "GET h/"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := compile(t, &model.RouteConfig{VirtualHosts: []model.VirtualHost{{Domains: []string{"*"}, Routes: []model.Route{to("c", tt.match)}}}})
			m := table.Match(&route.Facts{
				Request: request(tt.line, tt.head...), Random: 1042, TLSPresented: true,
				Metadata: model.Metadata{"n": {"k": true}}, FilterState: map[string]string{"s": "v", "a": "10.1.2.3:80"},
			})
			if got := m.Route != nil; got != tt.want || got != (m.Cluster == "c") {
				t.Errorf("matched: %v (cluster %q), want %v", got, m.Cluster, tt.want)
			}
		})
	}
}

func TestFirstRouteWins(t *testing.T) {
	routes := []model.Route{
		to("exact", model.RouteMatch{Kind: model.PathExact, Path: "/api/v1/users"}),
		to("header", model.RouteMatch{Path: "/api", Headers: []model.HeaderMatch{{Name: "x"}}}),
		to("regex", pattern("/api/v[0-9]+/.*")),
		to("folded", model.RouteMatch{Path: "/api/v1", IgnoreCase: true}),
		to("long", prefix("/api/v1/users/")),
		to("short", prefix("/api/v1")),
		to("connect", model.RouteMatch{Kind: model.PathConnect}),
		to("params", model.RouteMatch{Kind: model.PathExact, Path: "/p"}),
		to("rest", prefix("/")),
	}
	table := compile(t, &model.RouteConfig{IgnorePathParameters: true, VirtualHosts: []model.VirtualHost{{Domains: []string{"*"}, Routes: routes}}})
	for line, want := range map[string]string{
		"GET h/api/v1/users": "exact", "GET h/api/v1/users?x": "exact", "GET h/api/v1/users/1": "regex", "GET h/api/v1": "folded",
		"GET h/API/v1/users/": "folded", "GET h/api/vx/users": "rest", "GET h/p;a=b": "params", "GET h/": "rest", "CONNECT h:1": "connect",
	} {
		if m := table.Match(&route.Facts{Request: request(line)}); m.Cluster != want {
			t.Errorf("%s went to %q, want %q", line, m.Cluster, want)
		}
	}
	if m := table.Match(&route.Facts{Request: request("GET h/api/v1/users/1", "x: 1")}); m.Cluster != "header" {
		t.Errorf("with the header: %q", m.Cluster)
	}
}

func TestTLSIsDemanded(t *testing.T) {
	tests := []struct {
		req      model.TLSRequirement
		line     string
		proto    string
		internal bool
		want     string
	}{
		{req: model.TLSAlways, line: "GET http://h:8080/a?b", want: "https://h:8080/a?b"},
		{req: model.TLSAlways, line: "GET http://h/", internal: true, want: "https://h/"},
		{req: model.TLSAlways, line: "GET http://h/", proto: "https"},
		{req: model.TLSAlways, line: "GET https://h/"},
		{req: model.TLSAlways, line: "GET https://h/", proto: "http", want: "https://h/"},
		{req: model.TLSExternalOnly, line: "GET http://h/", want: "https://h/"},
		{req: model.TLSExternalOnly, line: "GET http://h/", internal: true},
		{req: model.TLSNotRequired, line: "GET http://h/"},
	}
	for _, tt := range tests {
		table := compile(t, &model.RouteConfig{VirtualHosts: []model.VirtualHost{{Domains: []string{"*"}, RequireTLS: tt.req, Routes: []model.Route{to("c", prefix("/"))}}}})
		r := request(tt.line)
		if tt.proto != "" {
			r.Header.Add("x-forwarded-proto", tt.proto)
		}
		m := table.Match(&route.Facts{Request: r, Internal: tt.internal})
		switch {
		case m.TLSRedirect != (tt.want != "") || m.TLSRedirect == (m.Route != nil):
			t.Errorf("%+v: redirect %v, route %v", tt, m.TLSRedirect, m.Route)
		case m.TLSRedirect && m.Location(r, false) != tt.want:
			t.Errorf("%+v: redirected to %q", tt, m.Location(r, false))
		}
	}
}

func one(r model.Route) *model.RouteConfig {
	return &model.RouteConfig{VirtualHosts: []model.VirtualHost{{Domains: []string{"*"}, Routes: []model.Route{r}}}}
}

func TestClusterOfRequest(t *testing.T) {
	split := model.Route{Match: prefix("/"), Forward: &model.Forward{
		WeightHeader: "x-random", MetadataMatch: map[string]any{"v": "1", "z": "1"},
		Weighted: []model.WeightedRoute{{Cluster: "a", Weight: 10}, {Cluster: "none", Weight: 0}, {ClusterHeader: "x-c", Weight: 30, MetadataMatch: map[string]any{"v": "2"}}},
	}}
	table := compile(t, one(split))
	for _, tt := range []struct {
		random uint64
		header string
		want   string
	}{{9, "", "a"}, {10, "", "b"}, {39, "", "b"}, {40, "", "a"}, {0, "25", "b"}, {25, "5", "a"}, {25, "x", "b"}} {
		r := request("GET h/", "x-c: b", "x-c: c")
		if tt.header != "" {
			r.Header.Add("x-random", tt.header)
		}
		m := table.Match(&route.Facts{Request: r, Random: tt.random})
		if m.Cluster != tt.want || m.Weighted == nil {
			t.Errorf("random %d, header %q: cluster %q, want %q", tt.random, tt.header, m.Cluster, tt.want)
		}
		subset := map[string]string{"a": `[{v "1"} {z "1"}]`, "b": `[{v "2"} {z "1"}]`}[tt.want]
		if fmt.Sprint(m.Subset()) != subset {
			t.Errorf("cluster %q gets the subset %v", tt.want, m.Subset())
		}
	}
	if m := table.Match(&route.Facts{Request: request("GET h/"), Random: 10}); m.Cluster != "" || m.Route == nil {
		t.Errorf("without the header: cluster %q", m.Cluster)
	}

	split.Forward.WeightByHash, split.Forward.Hash = true, []model.HashPolicy{{SourceIP: true}}
	table = compile(t, one(split))
	clusters := map[string]int{}
	for i := range 200 {
		f := route.Facts{Request: request("GET h/", "x-c: b"), SourceIP: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}
		first := table.Match(&f)
		f.Random = uint64(i)
		if again := table.Match(&f); again.Cluster != first.Cluster {
			t.Fatalf("the same address went to %q and %q", first.Cluster, again.Cluster)
		}
		clusters[first.Cluster]++
	}
	if clusters["a"] < 20 || clusters["a"] > 90 {
		t.Errorf("a quarter should go to a: %v", clusters)
	}

	table = compile(t, one(model.Route{Match: prefix("/"), Forward: &model.Forward{ClusterHeader: "x-c"}}))
	if m := table.Match(&route.Facts{Request: request("GET h/", "x-c: web")}); m.Cluster != "web" {
		t.Errorf("cluster %q of the header", m.Cluster)
	}
}

func TestRewrite(t *testing.T) {
	sub := func(p, s string) *model.RegexRewrite {
		return &model.RegexRewrite{Pattern: regexp.MustCompile(p), Substitution: s}
	}
	tests := []struct {
		name     string
		match    model.RouteMatch
		forward  model.Forward
		weighted string // host rewrite of the weighted cluster
		line     string
		head     []string
		hostname string
		want     string // authority and path
		original string
		xfh      string
	}{
		{name: "nothing", match: prefix("/a"), line: "GET h/a?b", hostname: "x", want: "h/a?b"},
		{name: "prefix", match: prefix("/a"), forward: model.Forward{PrefixRewrite: "/b"}, line: "GET h/a/c?q=/a", want: "h/b/c?q=/a", original: "/a/c?q=/a"},
		{name: "prefix of a slash", match: prefix("/a/"), forward: model.Forward{PrefixRewrite: "/"}, line: "GET h/a/c", want: "h/c", original: "/a/c"},
		{name: "exact path", match: model.RouteMatch{Kind: model.PathExact, Path: "/a"}, forward: model.Forward{PrefixRewrite: "/b"}, line: "GET h/a?q", want: "h/b?q", original: "/a?q"},
		{name: "all that an expression matched", match: pattern("/a.*"), forward: model.Forward{PrefixRewrite: "/b"}, line: "GET h/abc?q", want: "h/b?q", original: "/abc?q"},
		{name: "ignoring case", match: model.RouteMatch{Path: "/a", IgnoreCase: true}, forward: model.Forward{PrefixRewrite: "/b"}, line: "GET h/Ac", want: "h/bc", original: "/Ac"},
		{name: "expression", match: prefix("/"), forward: model.Forward{RegexRewrite: sub("/([^/]+)/x", "/y/${1}")}, line: "GET h/a/x/b/x?/c/x", want: "h/y/a/y/b?/c/x", original: "/a/x/b/x?/c/x"},
		{name: "expression that does not match", match: prefix("/"), forward: model.Forward{RegexRewrite: sub("/b", "/c")}, line: "GET h/a", want: "h/a", original: "/a"},
		{name: "a path begins with a slash", match: prefix("/"), forward: model.Forward{RegexRewrite: sub("^/a", "")}, line: "GET h/a?q", want: "h/?q", original: "/a?q"},
		{name: "literal host", match: prefix("/"), forward: model.Forward{HostRewrite: "x"}, line: "GET h/", want: "x/"},
		{name: "host kept aside", match: prefix("/"), forward: model.Forward{HostRewrite: "x", AppendXFH: true}, line: "GET h/", want: "x/", xfh: "h"},
		{name: "host added to others", match: prefix("/"), forward: model.Forward{HostRewrite: "x", AppendXFH: true}, line: "GET h/", head: []string{"x-forwarded-host: a"}, want: "x/", xfh: "a,h"},
		{name: "host that stands there already", match: prefix("/"), forward: model.Forward{HostRewrite: "x", AppendXFH: true}, line: "GET h/", head: []string{"x-forwarded-host: a,h"}, want: "x/", xfh: "a,h"},
		{name: "host of the weighted cluster", match: prefix("/"), weighted: "w", line: "GET h/", want: "w/"},
		{name: "the route's host wins", match: prefix("/"), forward: model.Forward{HostRewrite: "x"}, weighted: "w", line: "GET h/", want: "x/"},
		{name: "host of a header", match: prefix("/"), forward: model.Forward{HostHeader: "x-h"}, line: "GET h/", head: []string{"x-h: y:80", "x-h: z"}, want: "y:80/"},
		{name: "no host in the header", match: prefix("/"), forward: model.Forward{HostHeader: "x-h"}, line: "GET h/", want: "h/"},
		{name: "what can't be a host", match: prefix("/"), forward: model.Forward{HostHeader: "x-h"}, line: "GET h/", head: []string{"x-h: a b"}, want: "h/"},
		{name: "host of the path", match: prefix("/"), forward: model.Forward{HostPathRegex: sub("^/([a-z]+)/.*$", "${1}.x")}, line: "GET h/web/a?b", want: "web.x/web/a?b"},
		{name: "no host in the path", match: prefix("/"), forward: model.Forward{HostPathRegex: sub("^/([a-z]+)/.*$", "${1}.x")}, line: "GET h/1", want: "h/1"},
		{name: "host of the host", match: prefix("/"), forward: model.Forward{AutoHost: true, AppendXFH: true}, line: "GET h/", hostname: "web1", want: "web1/", xfh: "h"},
		{name: "host without a name", match: prefix("/"), forward: model.Forward{AutoHost: true}, line: "GET h/", want: "h/"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.weighted != "" {
				tt.forward.Weighted = []model.WeightedRoute{{Cluster: "c", Weight: 1, HostRewrite: tt.weighted}}
			}
			table := compile(t, one(model.Route{Match: tt.match, Forward: &tt.forward}))
			r := request(tt.line, tt.head...)
			m := table.Match(&route.Facts{Request: r})
			m.Rewrite(r, tt.hostname)
			if got := r.Authority + r.Path; got != tt.want {
				t.Errorf("%s became %q, want %q", tt.line, got, tt.want)
			}
			if got := r.Header.Get("x-envoy-original-path"); got != tt.original {
				t.Errorf("original path %q, want %q", got, tt.original)
			}
			if got := r.Header.Get("x-forwarded-host"); got != tt.xfh {
				t.Errorf("x-forwarded-host %q, want %q", got, tt.xfh)
			}
		})
	}
}

func TestLocation(t *testing.T) {
	s := func(v string) *string { return &v }
	tests := []struct {
		name     string
		match    model.RouteMatch
		redirect model.Redirect
		line     string
		proto    string
		want     string
	}{
		{name: "https", redirect: model.Redirect{HTTPS: true}, line: "GET http://h/a?b", want: "https://h/a?b"},
		{name: "https without the usual port of http", redirect: model.Redirect{HTTPS: true}, line: "GET http://h:80/", want: "https://h/"},
		{name: "https with another port", redirect: model.Redirect{HTTPS: true}, line: "GET http://h:8080/", want: "https://h:8080/"},
		{name: "http", redirect: model.Redirect{Scheme: "http"}, line: "GET https://h:443/", want: "http://h/", proto: "https"},
		{name: "scheme stays", redirect: model.Redirect{Host: "x"}, line: "GET https://h:443/", proto: "https", want: "https://x/"},
		{name: "the usual port stays with its scheme", redirect: model.Redirect{Path: "/"}, line: "GET http://h:80/", want: "http://h:80/"},
		{name: "port", redirect: model.Redirect{Port: 8443}, line: "GET http://h:80/", want: "http://h:8443/"},
		{name: "port of an IPv6 address", redirect: model.Redirect{Port: 8443}, line: "GET http://[::1]:80/", want: "http://[::1]:8443/"},
		{name: "IPv6 address without a port", redirect: model.Redirect{Port: 8443}, line: "GET http://[::1]/", want: "http://[::1]:8443/"},
		{name: "host and port", redirect: model.Redirect{Host: "x", Port: 1}, line: "GET http://h/", want: "http://x:1/"},
		{name: "path keeps the query", redirect: model.Redirect{Path: "/x"}, line: "GET http://h/a?b", want: "http://h/x?b"},
		{name: "path with a query of its own", redirect: model.Redirect{Path: "/x?c", StripQuery: true}, line: "GET http://h/a?b", want: "http://h/x?c"},
		{name: "path without a slash", redirect: model.Redirect{Path: "x"}, line: "GET http://h/a", want: "http://h/x"},
		{name: "query stripped", redirect: model.Redirect{StripQuery: true, HTTPS: true}, line: "GET http://h/a?b", want: "https://h/a"},
		{name: "prefix", match: prefix("/a"), redirect: model.Redirect{Prefix: s("/b")}, line: "GET http://h/a/c?q", want: "http://h/b/c?q"},
		{name: "empty prefix changes nothing", match: prefix("/a"), redirect: model.Redirect{Prefix: s("")}, line: "GET http://h/a/c", want: "http://h/a/c"},
		{name: "expression", redirect: model.Redirect{Regex: &model.RegexRewrite{Pattern: regexp.MustCompile("^/(.*)$"), Substitution: "/x/${1}"}}, line: "GET http://h/a?q", want: "http://h/x/a?q"},
		{name: "unknown scheme", redirect: model.Redirect{Path: "/x"}, line: "GET h/a", want: "https://h/x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request(tt.line)
			if tt.proto != "" {
				r.Header.Add("x-forwarded-proto", tt.proto)
			}
			table := compile(t, one(model.Route{Match: tt.match, Redirect: &tt.redirect}))
			m := table.Match(&route.Facts{Request: r})
			if got := m.Location(r, r.Scheme != "http"); got != tt.want {
				t.Errorf("%s leads to %q, want %q", tt.line, got, tt.want)
			}
			if !strings.HasSuffix(tt.line, r.Path) {
				t.Errorf("the request was changed: %q", r.Path)
			}
		})
	}
}

func fields(h *message.Header) string {
	var b strings.Builder
	for i := range h.Len() {
		fmt.Fprintf(&b, "%s=%s ", h.At(i).Name, h.At(i).Value)
	}
	return strings.TrimSpace(b.String())
}

func TestEdits(t *testing.T) {
	entry := &accesslog.Entry{RouteName: "r\nx: y", UpstreamCluster: ""}
	tests := []struct {
		name  string
		edits []model.HeaderEdit
		want  string
	}{
		{"add", []model.HeaderEdit{{Name: "a", Value: "2"}, {Name: "n", Value: "100%%"}}, "a=1 b=1 a=2 n=100%"},
		{"add if absent", []model.HeaderEdit{{Name: "a", Value: "2", Action: model.AddIfAbsent}, {Name: "n", Value: "1", Action: model.AddIfAbsent}}, "a=1 b=1 n=1"},
		{"overwrite", []model.HeaderEdit{{Name: "a", Value: "2", Action: model.OverwriteOrAdd}, {Name: "n", Value: "1", Action: model.OverwriteOrAdd}}, "a=2 b=1 n=1"},
		{"overwrite only", []model.HeaderEdit{{Name: "a", Value: "2", Action: model.OverwriteIfExists}, {Name: "n", Value: "1", Action: model.OverwriteIfExists}}, "a=2 b=1"},
		{"remove", []model.HeaderEdit{{Name: "a", Remove: true}, {Name: "n", Remove: true}}, "b=1"},
		{"removals come first", []model.HeaderEdit{{Name: "a", Value: "2"}, {Name: "a", Remove: true}}, "b=1 a=2"},
		{"overwriting comes before adding", []model.HeaderEdit{{Name: "a", Value: "2"}, {Name: "a", Value: "3", Action: model.OverwriteOrAdd}}, "a=3 b=1 a=2"},
		{"edits do not see each other", []model.HeaderEdit{{Name: "n", Value: "1"}, {Name: "n", Value: "2", Action: model.AddIfAbsent}}, "a=1 b=1 n=1 n=2"},
		{"an empty value adds nothing", []model.HeaderEdit{{Name: "n", Value: ""}, {Name: "m", Value: "%UPSTREAM_CLUSTER%"}}, "a=1 b=1"},
		{"unless wanted", []model.HeaderEdit{{Name: "n", Value: "", KeepEmpty: true}, {Name: "m", Value: "%UPSTREAM_CLUSTER%", KeepEmpty: true}}, "a=1 b=1 n= m="},
		{"operators can't end the line", []model.HeaderEdit{{Name: "n", Value: "<%ROUTE_NAME%>"}}, `a=1 b=1 n=<r\nx: y>`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ed, err := route.NewEdits(tt.edits)
			if err != nil {
				t.Fatal(err)
			}
			r := request("GET h/", "a: 1", "b: 1")
			ed.Apply(&r.Header, &r.Arena, entry)
			if got := fields(&r.Header); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if _, err := route.NewEdits([]model.HeaderEdit{{Name: "a", Value: "%NOPE%"}}); err == nil {
		t.Error("an unknown operator was accepted")
	}
}

func TestOrderOfEdits(t *testing.T) {
	set := func(v string) []model.HeaderEdit {
		return []model.HeaderEdit{{Name: "x", Value: v}, {Name: "last", Value: v, Action: model.OverwriteOrAdd}}
	}
	for most, want := range map[bool]string{
		false: "last=table x=cluster x=route x=host x=table", true: "last=route x=cluster x=table x=host x=route",
	} {
		c := &model.RouteConfig{MostSpecificWins: most, RequestEdits: set("table"), ResponseEdits: set("table"), VirtualHosts: []model.VirtualHost{{
			Domains: []string{"*"}, RequestEdits: set("host"), ResponseEdits: set("host"),
			Routes: []model.Route{{Match: prefix("/a"), RequestEdits: set("route"), ResponseEdits: set("route"), Forward: &model.Forward{
				Weighted: []model.WeightedRoute{{Cluster: "c", Weight: 1, RequestEdits: set("cluster"), ResponseEdits: set("cluster")}},
			}}},
		}}}
		table := compile(t, c)
		r, resp := request("GET h/a"), &message.Response{}
		m := table.Match(&route.Facts{Request: r})
		m.EditRequest(r, &accesslog.Entry{})
		m.EditResponse(resp, &accesslog.Entry{})
		if got := fields(&r.Header); got != want {
			t.Errorf("most specific wins %v: %q, want %q", most, got, want)
		}
		if a, b := fields(&r.Header), fields(&resp.Header); a != b {
			t.Errorf("request %q and response %q differ", a, b)
		}
		r = request("GET h/b")
		m = table.Match(&route.Facts{Request: r})
		if m.EditRequest(r, &accesslog.Entry{}); r.Header.Len() != 0 {
			t.Errorf("edits without a route: %q", fields(&r.Header))
		}
	}
	var none route.Match
	r := request("GET h/")
	none.EditRequest(r, &accesslog.Entry{})
	none.Rewrite(r, "x")
	if r.Header.Len() != 0 || r.Authority != "h" {
		t.Error("a match of nothing changed a request")
	}
}

func TestHash(t *testing.T) {
	sum := func(seed uint64, s string) uint64 {
		d := xxhash.NewWithSeed(seed)
		d.WriteString(s)
		return d.Sum64()
	}
	ttl, session := time.Hour, time.Duration(0)
	tests := []struct {
		name   string
		policy []model.HashPolicy
		line   string
		head   []string
		want   uint64
		ok     bool
		cookie string
	}{
		{name: "header", policy: []model.HashPolicy{{Header: "x"}}, line: "GET h/", head: []string{"x: a"}, want: sum(0, "a"), ok: true},
		{name: "the values of a header in any order", policy: []model.HashPolicy{{Header: "x"}}, line: "GET h/", head: []string{"x: b", "x: a"}, want: sum(sum(0, "a"), "b"), ok: true},
		{name: "no header", policy: []model.HashPolicy{{Header: "x"}}, line: "GET h/"},
		{name: "path", policy: []model.HashPolicy{{Header: ":path"}}, line: "GET h/a?b", want: sum(0, "/a?b"), ok: true},
		{name: "part of a header", policy: []model.HashPolicy{{Header: "x", HeaderRewrite: &model.RegexRewrite{Pattern: regexp.MustCompile("-.*"), Substitution: ""}}}, line: "GET h/", head: []string{"x: a-b"}, want: sum(0, "a"), ok: true},
		{name: "cookie", policy: []model.HashPolicy{{Cookie: &model.HashCookie{Name: "c", TTL: &ttl}}}, line: "GET h/", head: []string{"cookie: c=v"}, want: sum(0, "v"), ok: true},
		{name: "no cookie", policy: []model.HashPolicy{{Cookie: &model.HashCookie{Name: "c"}}}, line: "GET h/"},
		{name: "made cookie", policy: []model.HashPolicy{{Cookie: &model.HashCookie{Name: "c", TTL: &ttl, Path: "/p", Attributes: []string{"SameSite=Lax", "Secure"}}}}, line: "GET h/", want: sum(0, "00000000000000ff"), ok: true, cookie: `c="00000000000000ff"; Max-Age=3600; Path=/p; SameSite=Lax; Secure; HttpOnly`},
		{name: "cookie of the session", policy: []model.HashPolicy{{Cookie: &model.HashCookie{Name: "c", TTL: &session}}}, line: "GET h/", want: sum(0, "00000000000000ff"), ok: true, cookie: `c="00000000000000ff"; HttpOnly`},
		{name: "address", policy: []model.HashPolicy{{SourceIP: true}}, line: "GET h/", want: sum(0, "10.0.0.1"), ok: true},
		{name: "parameter", policy: []model.HashPolicy{{Query: "q"}}, line: "GET h/?q=1", want: sum(0, "1"), ok: true},
		{name: "state", policy: []model.HashPolicy{{FilterState: "s"}}, line: "GET h/", want: sum(0, "state"), ok: true},
		{name: "two", policy: []model.HashPolicy{{SourceIP: true}, {Header: "y"}, {Query: "q"}}, line: "GET h/?q=1", want: bits.RotateLeft64(sum(0, "10.0.0.1"), 1) ^ sum(0, "1"), ok: true},
		{name: "enough", policy: []model.HashPolicy{{Header: "y", Terminal: true}, {SourceIP: true, Terminal: true}, {Query: "q"}}, line: "GET h/?q=1", want: sum(0, "10.0.0.1"), ok: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := compile(t, one(model.Route{Match: prefix("/"), Forward: &model.Forward{Cluster: "c", Hash: tt.policy}}))
			r := request(tt.line, tt.head...)
			m := table.Match(&route.Facts{Request: r})
			got, ok, cookie := m.Hash(r, netip.MustParseAddr("10.0.0.1"), func(string) string { return "state" }, func() uint64 { return 255 })
			if got != tt.want || ok != tt.ok || cookie != tt.cookie {
				t.Errorf("hash %x, %v, cookie %q; want %x, %v, %q", got, ok, cookie, tt.want, tt.ok, tt.cookie)
			}
		})
	}
	// The digest of the reference implementation.
	if sum(0, "foo") != 0x33bf00a859c4ba3f {
		t.Errorf("xxHash64 of foo is %x", sum(0, "foo"))
	}
}

type conf string

func (conf) FilterType() string { return "test" }

func TestFilterConfigOfLevels(t *testing.T) {
	pf := func(c conf) map[string]model.PerFilter { return map[string]model.PerFilter{"f": {Config: c}} }
	c := &model.RouteConfig{PerFilter: pf("table"), VirtualHosts: []model.VirtualHost{{Domains: []string{"*"}, PerFilter: pf("host"), Routes: []model.Route{
		{Match: prefix("/w"), PerFilter: pf("route"), Forward: &model.Forward{Weighted: []model.WeightedRoute{{Cluster: "c", Weight: 1, PerFilter: pf("cluster")}}}},
		{Match: prefix("/r"), PerFilter: pf("route"), Forward: &model.Forward{Cluster: "c"}},
		{Match: prefix("/off"), PerFilter: map[string]model.PerFilter{"f": {Disabled: true}}, Forward: &model.Forward{Cluster: "c"}},
		{Match: prefix("/h"), Forward: &model.Forward{Cluster: "c"}},
	}}}}
	table := compile(t, c)
	for path, want := range map[string]string{"/w": "[table host route cluster] cluster false", "/r": "[table host route] route false", "/off": "[table host] host true", "/h": "[table host] host false"} {
		m := table.Match(&route.Facts{Request: request("GET h" + path)})
		var all []any
		m.FilterConfigs("f", func(v any) { all = append(all, v) })
		if got := fmt.Sprintf("%v %v %v", all, m.FilterConfig("f"), m.Disabled("f", false)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
		if m.FilterConfig("g") != nil || m.Disabled("g", false) || !m.Disabled("g", true) {
			t.Errorf("%s says something about a filter that it does not name", path)
		}
	}
	_, err := route.Compile(c, func(name string, c model.FilterConfig) (any, error) {
		if c == conf("route") {
			return nil, fmt.Errorf("no good")
		}
		return c, nil
	})
	if err == nil || !strings.Contains(err.Error(), `filter "f": no good`) {
		t.Errorf("error %v", err)
	}
}

func TestWhatRoutesInherit(t *testing.T) {
	mirror := func(c string) []model.Mirror { return []model.Mirror{{Cluster: c}} }
	limit := func(s uint32) []model.RateLimit { return []model.RateLimit{{Stage: s}} }
	c := &model.RouteConfig{Mirrors: mirror("table"), VirtualHosts: []model.VirtualHost{
		{Domains: []string{"a"}, Retry: &model.RetryPolicy{NumRetries: 7}, Mirrors: mirror("host"), BufferLimit: 10, RateLimits: limit(1), Routes: []model.Route{
			{Match: prefix("/own"), BufferLimit: 5, Forward: &model.Forward{Retry: &model.RetryPolicy{NumRetries: 2}, Mirrors: mirror("route"), RateLimits: limit(2)}},
			{Match: prefix("/both"), Forward: &model.Forward{RateLimits: limit(2), IncludeVHLimits: true}},
			{Match: prefix("/"), Forward: &model.Forward{}},
		}},
		{Domains: []string{"b"}, Routes: []model.Route{{Match: prefix("/"), Forward: &model.Forward{}}}},
	}}
	table := compile(t, c)
	for target, want := range map[string]string{
		"a/own": "2 route 5 limits 1 0", "a/both": "7 host 10 limits 1 1", "a/": "7 host 10 limits 0 1", "b/": "0 table 0 limits 0 0", "c/": "0  0 limits 0 0",
	} {
		m := table.Match(&route.Facts{Request: request("GET " + target)})
		var retries uint32
		if r := m.Retry(); r != nil {
			retries = r.NumRetries
		}
		to := ""
		for _, x := range m.Mirrors() {
			to += x.Cluster
		}
		a, b := m.RateLimits()
		if got := fmt.Sprintf("%d %s %d limits %d %d", retries, to, m.BufferLimit(), len(a), len(b)); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
}

func TestResponseHeaders(t *testing.T) {
	r := &message.Response{Status: 503}
	r.Header.Add("x", "1")
	for name, tt := range map[string]struct {
		m    model.HeaderMatch
		want bool
	}{
		"status":       {model.HeaderMatch{Name: ":status", Kind: model.HeaderRange, Start: 500, End: 600}, true},
		"other status": {model.HeaderMatch{Name: ":status", Kind: model.HeaderString, Match: exactly("200")}, false},
		"header":       {model.HeaderMatch{Name: "x"}, true},
		"a request's":  {model.HeaderMatch{Name: ":method"}, false},
	} {
		if got := route.ResponseHeaders([]model.HeaderMatch{tt.m}, r); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
