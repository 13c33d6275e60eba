package xds_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/xds"
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
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
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
