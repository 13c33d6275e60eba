package rbac_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/rbac"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

func match(t testing.TB, k model.StringMatchKind, p string) model.StringMatch {
	t.Helper()
	m, err := model.NewStringMatch(k, p, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func path(t testing.TB, k model.StringMatchKind, p string) model.Rule {
	return model.Rule{Kind: model.RulePath, Match: match(t, k, p)}
}

func header(t testing.TB, name string, k model.StringMatchKind, p string) model.Rule {
	return model.Rule{Kind: model.RuleHeader, Header: &model.HeaderMatch{Name: name, Kind: model.HeaderString, Match: match(t, k, p)}}
}

func inverted(r model.Rule) model.Rule {
	h := *r.Header
	h.Invert = true
	r.Header = &h
	return r
}

func not(r model.Rule) model.Rule { return model.Rule{Kind: model.RuleNot, Rules: []model.Rule{r}} }

func rules(a model.Action, permission model.Rule, principals ...model.Rule) *model.RBAC {
	if principals == nil {
		principals = []model.Rule{{Kind: model.RuleAny}}
	}
	return &model.RBAC{Action: a, Policies: []model.Policy{{Name: "the policy", Permissions: []model.Rule{permission}, Principals: principals}}}
}

func TestRequests(t *testing.T) {
	admin := path(t, model.MatchPrefix, "/admin")
	h := func(name, value string) model.Rule { return header(t, name, model.MatchExact, value) }
	claim := func(invert bool) model.Rule {
		m := match(t, model.MatchExact, "ops")
		return model.Rule{Kind: model.RuleMetadata, Metadata: &model.MetadataMatcher{
			Namespace: "envoy.filters.http.jwt_authn", Path: []string{"jwt_payload_a", "role"}, Value: model.ValueMatch{String: &m}, Invert: invert,
		}}
	}
	state := model.Rule{Kind: model.RuleFilterState, Key: "ip", Prefix: netip.MustParsePrefix("10.0.0.0/8")}
	number := model.Rule{Kind: model.RuleHeader, Header: &model.HeaderMatch{Name: "x-n", Kind: model.HeaderRange, Start: 1, End: 9}}
	absent := model.Rule{Kind: model.RuleHeader, Header: &model.HeaderMatch{Name: "x-a", Kind: model.HeaderAbsent}}

	tests := []struct {
		name   string
		rules  *model.RBAC
		method string
		path   string
		fields []string
		denied bool
	}{
		{"path", rules(model.Allow, admin), "GET", "/admin/x", nil, false},
		{"the query is no part of the path", rules(model.Allow, path(t, model.MatchExact, "/a")), "GET", "/a?b=/admin", nil, false},
		{"a query does not hide a path", rules(model.Deny, path(t, model.MatchExact, "/a")), "GET", "/a?", nil, true},
		{"other path", rules(model.Allow, admin), "GET", "/?/admin", nil, true},
		{"no path is in doubt", rules(model.Deny, admin), "CONNECT", "", nil, true},
		{"no path is in doubt under allow", rules(model.Allow, not(admin)), "CONNECT", "", nil, true},
		{"a path with odd bytes is in doubt", rules(model.Deny, admin), "GET", "/x\xff", nil, true},
		{"method", rules(model.Allow, header(t, ":method", model.MatchRegex, "GET|PUT")), "PUT", "/", nil, false},
		{"other method", rules(model.Allow, header(t, ":method", model.MatchRegex, "GET|PUT")), "PUTX", "/", nil, true},
		{"authority", rules(model.Allow, h("host", "web.test")), "GET", "/", nil, false},
		{"unknown pseudo header", rules(model.Deny, h(":x", "y")), "GET", "/", nil, true},
		{"header", rules(model.Allow, h("x-a", "1")), "GET", "/", []string{"x-a", "1"}, false},
		{"header missing", rules(model.Allow, h("x-a", "1")), "GET", "/", nil, true},
		{"an inverted match needs the header", rules(model.Allow, inverted(h("x-a", "1"))), "GET", "/", nil, true},
		{"inverted", rules(model.Allow, inverted(h("x-a", "1"))), "GET", "/", []string{"x-a", "2"}, false},
		{"joined values are none of them", rules(model.Allow, h("x-a", "1")), "GET", "/", []string{"x-a", "1", "x-a", "2"}, true},
		{"joined values can match", rules(model.Allow, h("x-a", "1,2")), "GET", "/", []string{"x-a", "1", "x-a", "2"}, false},
		{"a second value hides no denied one", rules(model.Deny, h("x-a", "1")), "GET", "/", []string{"x-a", "2", "x-a", "1"}, true},
		{"a second value hides no inverted one", rules(model.Allow, inverted(h("x-a", "1"))), "GET", "/", []string{"x-a", "2", "x-a", "1"}, true},
		{"nor one under not", rules(model.Allow, not(h("x-a", "1"))), "GET", "/", []string{"x-a", "2", "x-a", "1"}, true},
		{"bytes that are no text never allow", rules(model.Allow, inverted(h("x-a", "1"))), "GET", "/", []string{"x-a", "2\xff"}, true},
		{"bytes that are no text always deny", rules(model.Deny, h("x-a", "1")), "GET", "/", []string{"x-a", "\x00"}, true},
		{"no number never allows", rules(model.Allow, number), "GET", "/", []string{"x-n", "x"}, true},
		{"number", rules(model.Allow, number), "GET", "/", []string{"x-n", "8"}, false},
		{"number out of range", rules(model.Allow, number), "GET", "/", []string{"x-n", "9"}, true},
		{"absent", rules(model.Allow, absent), "GET", "/", nil, false},
		{"not absent", rules(model.Allow, absent), "GET", "/", []string{"x-a", ""}, true},
		{"metadata", rules(model.Allow, claim(false)), "GET", "/", []string{"meta", "ops"}, false},
		{"other metadata", rules(model.Allow, claim(false)), "GET", "/", []string{"meta", "dev"}, true},
		{"no metadata", rules(model.Allow, claim(false)), "GET", "/", nil, true},
		{"no metadata, inverted", rules(model.Allow, claim(true)), "GET", "/", nil, false},
		{"filter state", rules(model.Allow, state), "GET", "/", []string{"state", "10.1.2.3:80"}, false},
		{"filter state that is no address", rules(model.Allow, state), "GET", "/", []string{"state", "x"}, true},
		{"the same under not", rules(model.Allow, not(state)), "GET", "/", []string{"state", "x"}, true},
		{"client address by headers", rules(model.Allow, model.Rule{Kind: model.RuleAny}, model.Rule{Kind: model.RuleRemoteIP, Prefix: netip.MustParsePrefix("203.0.113.0/24")}), "GET", "/", nil, false},
		{"client address of the connection", rules(model.Allow, model.Rule{Kind: model.RuleAny}, model.Rule{Kind: model.RuleConnectionIP, Prefix: netip.MustParsePrefix("192.0.2.1/32")}), "GET", "/", nil, false},
		{"nobody by default", &model.RBAC{}, "GET", "/", nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := filtertest.New(t, rbac.Type, &rbac.Config{Rules: tt.rules})
			var fields []string
			var meta, st string
			for i := 0; i < len(tt.fields); i += 2 {
				switch tt.fields[i] {
				case "meta":
					meta = tt.fields[i+1]
				case "state":
					st = tt.fields[i+1]
				default:
					fields = append(fields, tt.fields[i:i+2]...)
				}
			}
			x := b.Exchange(tt.method, tt.path, fields...)
			x.Remote = netip.MustParseAddr("203.0.113.9")
			if meta != "" {
				x.SetMetadata("envoy.filters.http.jwt_authn", "jwt_payload_a", map[string]any{"role": meta})
			}
			if st != "" {
				x.Entry.HTTP.FilterState = map[string]string{"ip": st}
			}
			res := b.Run(x, nil)
			if (res.Reply != nil) != tt.denied {
				t.Fatalf("reply %+v, want a denial: %v", res.Reply, tt.denied)
			}
			if tt.denied && (res.Status != 403 || res.Body != "RBAC: access denied") {
				t.Errorf("%d %q", res.Status, res.Body)
			}
		})
	}
}

func TestDecisionIsTold(t *testing.T) {
	b := filtertest.New(t, rbac.Type, &rbac.Config{
		Rules:  rules(model.Deny, path(t, model.MatchPrefix, "/admin")),
		Shadow: rules(model.Allow, path(t, model.MatchPrefix, "/admin")), ShadowPrefix: "new_", PerPolicy: true,
	})
	x := b.Exchange("GET", "/admin")
	res := b.Run(x, nil)
	if r := res.Reply; r == nil || r.Details != "rbac_access_denied_matched_policy[the_policy]" || r.Rule != "the policy" {
		t.Errorf("reply %+v", res.Reply)
	}
	m := x.Entry.HTTP.Metadata["envoy.filters.http.rbac"]
	if m["new_shadow_engine_result"] != "allowed" || m["new_shadow_effective_policy_id"] != "the policy" {
		t.Errorf("metadata %v", m)
	}
	x = b.Exchange("GET", "/")
	if res := b.Run(x, nil); res.Reply != nil {
		t.Errorf("reply %+v", res.Reply)
	}
	if m := x.Entry.HTTP.Metadata["envoy.filters.http.rbac"]; m["new_shadow_engine_result"] != "denied" || len(m) != 1 {
		t.Errorf("metadata %v", m)
	}
	want := "http.test.rbac.allowed 1\nhttp.test.rbac.denied 1\nhttp.test.rbac.new_.policy.the policy.shadow_allowed 1\nhttp.test.rbac.new_.shadow_allowed 1\nhttp.test.rbac.new_.shadow_denied 1\nhttp.test.rbac.policy.the policy.denied 1\n"
	if got := b.Counters(); got != want {
		t.Errorf("counters\n%s", got)
	}
	b = filtertest.New(t, rbac.Type, &rbac.Config{Rules: &model.RBAC{}})
	if r := b.Run(b.Exchange("GET", "/"), nil).Reply; r == nil || r.Details != "rbac_access_denied_matched_policy[none]" || r.Rule != "default" {
		t.Errorf("reply %+v", r)
	}
}

func TestLogOnlyLeavesAHint(t *testing.T) {
	b := filtertest.New(t, rbac.Type, &rbac.Config{Rules: rules(model.LogAll, path(t, model.MatchPrefix, "/admin"))})
	for p, want := range map[string]bool{"/admin": true, "/": false} {
		x := b.Exchange("GET", p)
		if res := b.Run(x, nil); res.Reply != nil || x.Entry.HTTP.Metadata["envoy.common"]["access_log_hint"] != want {
			t.Errorf("%s: reply %+v, metadata %v", p, res.Reply, x.Entry.HTTP.Metadata)
		}
	}
}

func TestRouteReplacesRules(t *testing.T) {
	b := filtertest.New(t, rbac.Type, &rbac.Config{Rules: &model.RBAC{}})
	b.Route(&rbac.Config{})
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Reply != nil {
		t.Errorf("reply %+v from a route without rules", res.Reply)
	}
	b.Route(nil)
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Reply == nil {
		t.Error("a route that says nothing let a request through")
	}
}

// services are intentions as the control plane writes them: each policy asks for a name and a path.
func services(t testing.TB, n int) *model.RBAC {
	r := &model.RBAC{}
	for i := range n {
		r.Policies = append(r.Policies, model.Policy{
			Name:        fmt.Sprint("p", i),
			Permissions: []model.Rule{{Kind: model.RuleAnd, Rules: []model.Rule{path(t, model.MatchPrefix, "/v1/"), header(t, ":method", model.MatchExact, "GET")}}},
			Principals:  []model.Rule{{Kind: model.RulePrincipal, Match: match(t, model.MatchRegex, fmt.Sprintf(`^spiffe://td\.consul/ns/default/dc/[^/]+/svc/web%d$`, i))}},
		})
	}
	return r
}

func caller(b *filtertest.Bench, n int) {
	b.Conn.Peer = &tlscontext.Peer{URIs: []string{fmt.Sprintf("spiffe://td.consul/ns/default/dc/dc1/svc/web%d", n-1)}}
}

func TestAllowedRequestsDoNotAllocate(t *testing.T) {
	b := filtertest.New(t, rbac.Type, &rbac.Config{Rules: services(t, 10)})
	caller(b, 10)
	x := b.Exchange("GET", "/v1/x")
	if n := testing.AllocsPerRun(100, func() {
		if b.Filter.Request(x) != nil {
			t.Fatal("denied")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n, "policies"), func(b *testing.B) {
			f := filtertest.New(b, rbac.Type, &rbac.Config{Rules: services(b, n)})
			caller(f, n)
			x := f.Exchange("GET", "/v1/x")
			b.ReportAllocs()
			for b.Loop() {
				if f.Filter.Request(x) != nil {
					b.Fatal("denied")
				}
			}
		})
	}
}

// FuzzHeaderValue looks for a value that gets past a rule which denies it and past one that allows all others.
func FuzzHeaderValue(f *testing.F) {
	f.Add("a", "b", "secret")
	f.Add("secret", "x", "secret")
	f.Fuzz(func(t *testing.T, v1, v2, pattern string) {
		if pattern == "" {
			return
		}
		r := header(t, "x-a", model.MatchContains, pattern)
		deny := filtertest.New(t, rbac.Type, &rbac.Config{Rules: rules(model.Deny, r)})
		allow := filtertest.New(t, rbac.Type, &rbac.Config{Rules: rules(model.Allow, inverted(r))})
		hit := strings.Contains(v1, pattern) || strings.Contains(v2, pattern)
		for _, b := range []*filtertest.Bench{deny, allow} {
			var reply *filter.Reply = b.Filter.Request(b.Exchange("GET", "/", "x-a", v1, "x-a", v2))
			if hit && reply == nil {
				t.Errorf("%q and %q got past a rule against %q", v1, v2, pattern)
			}
		}
	})
}
