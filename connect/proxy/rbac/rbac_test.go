package rbac

import (
	"net/netip"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func mustMatch(t *testing.T, k model.StringMatchKind, p string) model.StringMatch {
	t.Helper()
	m, err := model.NewStringMatch(k, p, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEvaluate(t *testing.T) {
	const web = "spiffe://td.consul/ns/default/dc/dc1/svc/web"
	webOnly := model.Rule{Kind: model.RulePrincipal, Match: mustMatch(t, model.MatchRegex, `^spiffe://td\.consul/ns/default/dc/[^/]+/svc/web$`)}
	anyone := []model.Rule{{Kind: model.RuleAny}}
	not := func(r model.Rule) model.Rule { return model.Rule{Kind: model.RuleNot, Rules: []model.Rule{r}} }
	policy := func(principals ...model.Rule) []model.Policy {
		return []model.Policy{{Name: "p", Permissions: anyone, Principals: principals}}
	}
	peer := func(uris ...string) *Facts { return &Facts{Authenticated: true, URIs: uris} }

	tests := []struct {
		name    string
		rules   *model.RBAC
		facts   *Facts
		allowed bool
		policy  string
	}{
		{"no rules admit", nil, &Facts{}, true, ""},
		{"allow without policies refuses all", &model.RBAC{}, peer(web), false, ""},
		{"deny without policies admits all", &model.RBAC{Action: model.Deny}, peer(web), true, ""},
		{"allow on match", &model.RBAC{Policies: policy(webOnly)}, peer(web), true, "p"},
		{"deny on match", &model.RBAC{Action: model.Deny, Policies: policy(webOnly)}, peer(web), false, "p"},
		{"any of several names may match", &model.RBAC{Policies: policy(webOnly)}, peer("spiffe://other/x", web), true, "p"},
		{"a longer name does not match", &model.RBAC{Policies: policy(webOnly)}, peer(web + "2"), false, ""},
		{"a name with a line end does not match", &model.RBAC{Policies: policy(webOnly)}, peer(web + "\n"), false, ""},
		{"letter case counts", &model.RBAC{Policies: policy(webOnly)}, peer("spiffe://TD.consul/ns/default/dc/dc1/svc/web"), false, ""},
		{"an unauthenticated name is none", &model.RBAC{Policies: policy(webOnly)}, &Facts{URIs: []string{web}}, false, ""},
		{"DNS names are looked at only without URIs", &model.RBAC{Policies: policy(model.Rule{Kind: model.RulePrincipal, Match: mustMatch(t, model.MatchExact, "a.b")})}, &Facts{Authenticated: true, URIs: []string{web}, DNS: []string{"a.b"}}, false, ""},
		{"the subject comes last", &model.RBAC{Policies: policy(model.Rule{Kind: model.RulePrincipal, Match: mustMatch(t, model.MatchExact, "CN=a")})}, &Facts{Authenticated: true, Subject: "CN=a"}, true, "p"},
		{"and not", &model.RBAC{Policies: policy(model.Rule{Kind: model.RuleAnd, Rules: []model.Rule{{Kind: model.RuleAuthenticated}, not(webOnly)}})}, peer(web), false, ""},
		{"unknown rule never allows", &model.RBAC{Policies: policy(model.Rule{})}, peer(web), false, ""},
		{"unknown rule under not never allows", &model.RBAC{Policies: policy(not(model.Rule{}))}, peer(web), false, ""},
		{"unknown rule always denies", &model.RBAC{Action: model.Deny, Policies: policy(model.Rule{})}, peer(web), false, "p"},
		{"unknown rule under not always denies", &model.RBAC{Action: model.Deny, Policies: policy(not(model.Rule{}))}, peer(web), false, "p"},
		{"log never refuses", &model.RBAC{Action: model.LogAll}, peer(web), true, ""},
		{"source address", &model.RBAC{Policies: policy(model.Rule{Kind: model.RuleDirectRemoteIP, Prefix: netip.MustParsePrefix("10.0.0.0/8")})}, &Facts{DirectRemote: netip.MustParseAddr("::ffff:10.1.2.3")}, true, "p"},
		{"unknown address is in no range", &model.RBAC{Policies: policy(model.Rule{Kind: model.RuleRemoteIP, Prefix: netip.MustParsePrefix("0.0.0.0/0")})}, &Facts{}, false, ""},
		{"port after the range", &model.RBAC{Policies: policy(model.Rule{Kind: model.RuleDestinationPort, Port: 80, End: 90})}, &Facts{Local: netip.MustParseAddrPort("1.2.3.4:90")}, false, ""},
		{"the last port there is", &model.RBAC{Policies: policy(model.Rule{Kind: model.RuleDestinationPort, Port: 65535, End: 65536})}, &Facts{Local: netip.MustParseAddrPort("1.2.3.4:65535")}, true, "p"},
		{"port in the range", &model.RBAC{Policies: policy(model.Rule{Kind: model.RuleDestinationPort, Port: 80, End: 90})}, &Facts{Local: netip.MustParseAddrPort("1.2.3.4:89")}, true, "p"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Evaluate(tt.rules, tt.facts)
			if got.Allowed != tt.allowed || got.Policy != tt.policy {
				t.Errorf("got %+v, want allowed %v by %q", got, tt.allowed, tt.policy)
			}
		})
	}
}

func TestRulesAboutRequestsAreUndecidableOfConnections(t *testing.T) {
	path := mustMatch(t, model.MatchPrefix, "/")
	for _, rule := range []model.Rule{
		{Kind: model.RulePath, Match: path},
		{Kind: model.RuleHeader, Header: &model.HeaderMatch{Name: "x-a", Kind: model.HeaderAbsent}},
		{Kind: model.RuleHeader, Header: &model.HeaderMatch{Name: "x-a", Invert: true}},
		{Kind: model.RuleRouteMetadata, Metadata: &model.MetadataMatcher{Invert: true}},
		{Kind: model.RuleFilterState, Key: "k", Match: path},
		{Kind: model.RuleConnectionIP, Prefix: netip.MustParsePrefix("0.0.0.0/0")},
	} {
		for _, r := range []model.Rule{rule, {Kind: model.RuleNot, Rules: []model.Rule{rule}}} {
			for _, action := range []model.Action{model.Allow, model.Deny} {
				policies := []model.Policy{{Name: "p", Permissions: []model.Rule{r}, Principals: []model.Rule{{Kind: model.RuleAny}}}}
				if d := Evaluate(&model.RBAC{Action: action, Policies: policies}, &Facts{Authenticated: true}); d.Allowed {
					t.Errorf("action %d lets a connection in by %+v", action, r)
				}
			}
		}
	}
	// Metadata that is not there is no doubt, but never lets anybody in.
	inverted := model.Rule{Kind: model.RuleMetadata, Metadata: &model.MetadataMatcher{Invert: true}}
	if d := Evaluate(&model.RBAC{Policies: []model.Policy{{Permissions: []model.Rule{inverted}, Principals: []model.Rule{{Kind: model.RuleAny}}}}}, &Facts{}); d.Allowed {
		t.Error("inverted metadata let a connection in")
	}
}
