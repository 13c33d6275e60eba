package xds_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// allows evaluates rules on a connection of a caller as the protocol defines them.
func allows(t *testing.T, r *rbacv3.RBAC, caller string) bool {
	t.Helper()
	matched := false
	for _, p := range r.Policies {
		for _, x := range p.Principals {
			matched = matched || principal(t, x, caller)
		}
	}
	return matched == (r.Action == rbacv3.RBAC_ALLOW)
}

func principal(t *testing.T, p *rbacv3.Principal, caller string) bool {
	t.Helper()
	switch id := p.Identifier.(type) {
	case *rbacv3.Principal_Authenticated_:
		ok, err := regexp.MatchString(`\A(?:`+id.Authenticated.PrincipalName.GetSafeRegex().Regex+`)\z`, caller)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	case *rbacv3.Principal_AndIds:
		for _, x := range id.AndIds.Ids {
			if !principal(t, x, caller) {
				return false
			}
		}
		return true
	case *rbacv3.Principal_NotId:
		return !principal(t, id.NotId, caller)
	}
	t.Fatalf("principal %v", p)
	return false
}

// The rules of the public listener decide about every caller as package intention does, for any set of intentions.
func TestRulesDecideAsIntentionsDo(t *testing.T) {
	seed := testkit.Seed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	names := []string{"*", "api", "a.i", "a", "web", "api-2"}
	sources := func() []*entry.IntentionSource {
		var out []*entry.IntentionSource
		for _, n := range names {
			s := &entry.IntentionSource{Name: n}
			switch random.IntN(6) {
			case 0:
				s.Action = entry.Allow
			case 1:
				s.Action = entry.Deny
			case 2:
				s.Permissions = []*entry.IntentionPermission{{Action: entry.Allow, HTTP: &entry.IntentionHTTP{PathPrefix: "/"}}}
			default:
				continue
			}
			out = append(out, s)
		}
		random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	for range 100 {
		var all []entry.Entry
		for _, name := range []string{"web", "*"} {
			if from := sources(); len(from) > 0 {
				e := &entry.ServiceIntentions{Header: entry.Header{Kind: entry.KindServiceIntentions, Name: name}, Sources: from}
				e.Normalize()
				all = append(all, e)
			}
		}
		data, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		for _, defaultAllow := range []bool{false, true} {
			s := snapshotOf(t, map[string][]byte{
				"in/proxy.json":   fmt.Appendf(nil, `{"DefaultAllow": %t, "Service": {"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": {"DestinationServiceName": "web"}}}`, defaultAllow),
				"in/entries.json": data,
			})
			r, err := xds.Compile(s, xds.Envoy)
			if err != nil {
				t.Fatal(err)
			}
			rules := publicRules(t, r)
			for _, caller := range append(names[1:], "stranger") {
				def := intention.Default{Allow: defaultAllow}
				want := intention.Decide(s.Intentions().Matches[0], caller, "", def).Allowed
				for _, dc := range []string{"dc1", "dc2"} {
					if got := allows(t, rules, connect.ServiceID(trustDomain, dc, caller).String()); got != want {
						t.Fatalf("default allow %t, %s: the rules allow %s: %t, want %t", defaultAllow, data, caller, got, want)
					}
				}
			}
			other := connect.ServiceID("99999999-2222-3333-4444-555555555555.consul", "dc1", "api").String()
			if !defaultAllow && allows(t, rules, other) {
				t.Fatalf("%s: a caller of another trust domain is allowed", data)
			}
		}
	}
}

// A request is what rules for requests look at.
type request struct {
	caller, path string
	headers      map[string]string // with ":method"
}

func (r *request) header(t *testing.T, m *routev3.HeaderMatcher) bool {
	t.Helper()
	value, ok := r.headers[m.Name]
	switch x := m.HeaderMatchSpecifier.(type) {
	case *routev3.HeaderMatcher_PresentMatch:
		ok = ok == x.PresentMatch
	case *routev3.HeaderMatcher_StringMatch:
		if !ok {
			return false // a header that is missing never matches, inverted or not
		}
		ok = text(t, x.StringMatch, value)
	default:
		t.Fatalf("header matcher %v", m)
	}
	return ok != m.InvertMatch
}

func text(t *testing.T, m *matcherv3.StringMatcher, value string) bool {
	t.Helper()
	switch x := m.MatchPattern.(type) {
	case *matcherv3.StringMatcher_Exact:
		return value == x.Exact
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(value, x.Prefix)
	case *matcherv3.StringMatcher_SafeRegex:
		ok, err := regexp.MatchString(`\A(?:`+x.SafeRegex.Regex+`)\z`, value)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	t.Fatalf("string matcher %v", m)
	return false
}

func (r *request) permission(t *testing.T, p *rbacv3.Permission) bool {
	t.Helper()
	switch x := p.Rule.(type) {
	case *rbacv3.Permission_Any:
		return x.Any
	case *rbacv3.Permission_UrlPath:
		return text(t, x.UrlPath.GetPath(), r.path)
	case *rbacv3.Permission_Header:
		return r.header(t, x.Header)
	case *rbacv3.Permission_NotRule:
		return !r.permission(t, x.NotRule)
	case *rbacv3.Permission_AndRules:
		for _, q := range x.AndRules.Rules {
			if !r.permission(t, q) {
				return false
			}
		}
		return true
	}
	t.Fatalf("permission %v", p)
	return false
}

// The rules for requests decide as the first intention about the caller, and of its permissions the first that matches.
func TestRequestRulesDecideAsPermissionsDo(t *testing.T) {
	seed := testkit.Seed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	permissions := func() (out []*entry.IntentionPermission) {
		for range 1 + random.IntN(3) {
			h := &entry.IntentionHTTP{}
			switch random.IntN(4) {
			case 0:
				h.PathExact = pick("/a", "/b")
			case 1:
				h.PathPrefix = pick("/a", "/")
			case 2:
				h.PathRegex = pick("/[ab]", "/a.*")
			}
			if random.IntN(3) == 0 {
				h.Methods = []string{"GET"}
			}
			if random.IntN(3) == 0 {
				h.Header = []entry.IntentionHeader{{Name: "x", Exact: "1", Invert: random.IntN(2) == 0}}
			}
			out = append(out, &entry.IntentionPermission{Action: pick(entry.Allow, entry.Deny), HTTP: h})
		}
		return out
	}
	matches := func(p *entry.IntentionPermission, r *request) bool {
		h := p.HTTP
		switch {
		case h.PathExact != "" && r.path != h.PathExact,
			h.PathPrefix != "" && !strings.HasPrefix(r.path, h.PathPrefix),
			h.PathRegex != "" && !regexp.MustCompile(`\A(?:`+h.PathRegex+`)\z`).MatchString(r.path),
			len(h.Methods) > 0 && r.headers[":method"] != "GET":
			return false
		}
		for _, c := range h.Header {
			v, ok := r.headers[c.Name]
			if !ok || (v == c.Exact) == c.Invert {
				return false
			}
		}
		return true
	}
	for range 200 {
		var all []entry.Entry
		for _, name := range []string{"web", "*"} {
			e := &entry.ServiceIntentions{Header: entry.Header{Kind: entry.KindServiceIntentions, Name: name}}
			for _, from := range []string{"*", "api", "shop"} {
				s := &entry.IntentionSource{Name: from}
				switch random.IntN(4) {
				case 0:
					s.Action = pick(entry.Allow, entry.Deny)
				case 1, 2:
					s.Permissions = permissions()
				default:
					continue
				}
				e.Sources = append(e.Sources, s)
			}
			if len(e.Sources) > 0 {
				e.Normalize()
				all = append(all, e)
			}
		}
		data, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		for _, defaultAllow := range []bool{false, true} {
			s := snapshotOf(t, map[string][]byte{
				"in/proxy.json": fmt.Appendf(nil, `{"DefaultAllow": %t, "Service": {"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": {
					"DestinationServiceName": "web", "Config": {"protocol": "http"}}}}`, defaultAllow),
				"in/entries.json": data,
			})
			compiled, err := xds.Compile(s, xds.Own)
			if err != nil {
				t.Fatal(err)
			}
			rules := requestRules(t, compiled)
			for _, caller := range []string{"api", "shop", "other"} {
				for _, path := range []string{"/", "/a", "/ab", "/b"} {
					for _, headers := range []map[string]string{{":method": "GET"}, {":method": "PUT", "x": "1"}, {":method": "GET", "x": "2"}} {
						r := &request{caller, path, headers}
						want := defaultAllow
						for _, n := range s.Intentions().Matches[0] {
							if !n.Fits(caller, "") {
								continue
							}
							if len(n.Permissions) == 0 {
								want = n.Action == entry.Allow
							}
							for _, p := range n.Permissions {
								if matches(p, r) {
									want = p.Action == entry.Allow
									break
								}
							}
							break
						}
						matched := false
						for _, p := range rules.Policies {
							for _, id := range p.Principals {
								for _, q := range p.Permissions {
									matched = matched || principal(t, id, connect.ServiceID(trustDomain, "dc1", caller).String()) && r.permission(t, q)
								}
							}
						}
						if got := matched == (rules.Action == rbacv3.RBAC_ALLOW); got != want {
							t.Fatalf("default allow %t, %s: the rules allow %v: %t, want %t", defaultAllow, data, r, got, want)
						}
					}
				}
			}
		}
	}
}

func requestRules(t *testing.T, r *xds.Resources) *rbacv3.RBAC {
	t.Helper()
	for _, x := range r.Of(xds.Listener) {
		l, m := new(listenerv3.Listener), new(hcmv3.HttpConnectionManager)
		if err := x.Body.UnmarshalTo(l); err != nil {
			t.Fatal(err)
		}
		if err := l.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		rbac := new(httprbacv3.RBAC)
		if err := m.HttpFilters[0].GetTypedConfig().UnmarshalTo(rbac); err != nil {
			t.Fatal(err)
		}
		return rbac.Rules
	}
	t.Fatal("no rules")
	return nil
}

func publicRules(t *testing.T, r *xds.Resources) *rbacv3.RBAC {
	t.Helper()
	for _, x := range r.Of(xds.Listener) {
		l := new(listenerv3.Listener)
		if err := x.Body.UnmarshalTo(l); err != nil {
			t.Fatal(err)
		}
		for _, f := range l.FilterChains[0].Filters {
			rbac := new(netrbacv3.RBAC)
			if f.GetTypedConfig().MessageIs(rbac) {
				if err := f.GetTypedConfig().UnmarshalTo(rbac); err != nil {
					t.Fatal(err)
				}
				return rbac.Rules
			}
		}
	}
	t.Fatal("no rules")
	return nil
}
