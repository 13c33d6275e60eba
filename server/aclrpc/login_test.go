package aclrpc_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func TestAuthMethodErrorsHaveTheTextsThatClientsMatch(t *testing.T) {
	s := newRooted(t)
	g := newSigner(t)
	must(s.setMethod(root, g.method("jm")))(t)
	set := func(change func(*acl.AuthMethod)) error {
		m := g.method("m")
		change(&m)
		return drop(s.setMethod(root, m))
	}
	read := func(name string) error {
		req := &access.ReadRequest{Name: name}
		req.Token = root
		return drop(access.AuthMethodReadCall.Call(t.Context(), s.Caller(), req))
	}
	deep := any("x")
	for range 200 {
		deep = []any{deep}
	}
	const types = "Invalid Auth Method: Type should be one of: [aws-iam jwt kubernetes]"
	check(t, []expectation{
		{"no name", set(func(m *acl.AuthMethod) { m.Name = "" }), 500, "Invalid Auth Method: no Name is set"},
		{"name", set(func(m *acl.AuthMethod) { m.Name = "a b" }), 500, "Invalid Auth Method: invalid Name. Only alphanumeric characters, '-' and '_' are allowed"},
		{"oidc", set(func(m *acl.AuthMethod) { m.Type = "oidc" }), 500, types},
		{"no type", set(func(m *acl.AuthMethod) { m.Type = "" }), 500, types},
		{"locality", set(func(m *acl.AuthMethod) { m.TokenLocality = "x" }), 500, "Invalid Auth Method: TokenLocality should be one of 'local' or 'global'"},
		{"TTL", set(func(m *acl.AuthMethod) { m.MaxTokenTTL = 5 * time.Second }), 500, "MaxTokenTTL 5s cannot be less than 1m0s"},
		{"negative TTL", set(func(m *acl.AuthMethod) { m.MaxTokenTTL = -time.Hour }), 500, "MaxTokenTTL -1h0m0s cannot be less than 1m0s"},
		{"empty config", set(func(m *acl.AuthMethod) { m.Config = nil }), 500, `Invalid Auth Method: exactly one of 'JWTValidationPubKeys', 'JWKSURL', or 'OIDCDiscoveryURL' must be set for type "jwt"`},
		{"unknown key", set(func(m *acl.AuthMethod) { m.Config["Bogus"] = 1 }), 500, "Invalid Auth Method: error decoding config: …"},
		{"deep config", set(func(m *acl.AuthMethod) { m.Config["BoundIssuer"] = deep }), 500, "Invalid Auth Method: error decoding config: …"},
		{"other type", drop(s.setMethod(root, acl.AuthMethod{Name: "jm", Type: acl.MethodKubernetes})), 500, "the Type field of an Auth Method is immutable"},
		{"read missing", read("nope"), 404, "Requested auth method does not exist: ACL not found"},
		{"delete missing", s.deleteMethod(root, "nope"), 404, "Cannot find auth method to delete"},
		{"no right", drop(s.setMethod("", g.method("x"))), 403, "Permission denied: anonymous token lacks permission 'acl:write'…"},
	})
	m := g.method("jm")
	m.Type, m.MaxTokenTTL = "", 10*time.Minute
	got := must(s.setMethod(root, m))(t)
	if got.Type != acl.MethodJWT || got.MaxTokenTTL != 10*time.Minute || got.ModifyIndex <= got.CreateIndex {
		t.Errorf("changed to %+v", got)
	}
	if again := must(s.setMethod(root, m))(t); again.ModifyIndex != got.ModifyIndex {
		t.Error("equal content moved the index")
	}
	req := &access.ListRequest{}
	req.Token = root
	if all := must(access.AuthMethodListCall.Call(t.Context(), s.Caller(), req))(t).AuthMethods; len(all) != 1 || all[0].Config != nil {
		t.Errorf("list %+v", all)
	}
}

// The credential of a method is shown to nobody who is not shown those of tokens.
func TestSecretsOfAuthMethodsAreHidden(t *testing.T) {
	s := newRooted(t)
	must(s.setPolicy(root, acl.Policy{Name: "reader", Rules: `acl = "read"`}))(t)
	reader := s.createToken(acl.Token{Policies: []acl.Link{{Name: "reader"}}})
	m := &acl.AuthMethod{Name: "k8s", Type: acl.MethodKubernetes, Config: map[string]any{"Host": "https://k", "ServiceAccountJWT": "credential"}}
	tx := s.Store.Write(s.Index() + 1)
	if err := tx.SetACLAuthMethod(m); err != nil {
		t.Fatal(err)
	}
	tx.Commit()
	for secret, hidden := range map[string]bool{reader.SecretID: true, root: false} {
		req := &access.ReadRequest{Name: "k8s"}
		req.Token = secret
		got := must(access.AuthMethodReadCall.Call(t.Context(), s.Caller(), req))(t).AuthMethod.Config
		if (got["ServiceAccountJWT"] != "credential") != hidden || got["Host"] != "https://k" {
			t.Errorf("shown %v, want it hidden: %v", got, hidden)
		}
	}
}

func TestBindingRuleErrorsHaveTheTextsThatClientsMatch(t *testing.T) {
	s := newRooted(t)
	g := newSigner(t)
	must(s.setMethod(root, g.method("jm")))(t)
	must(s.setMethod(root, g.method("jm2")))(t)
	good := acl.BindingRule{AuthMethod: "jm", Description: "d", Selector: `value.n == Web and "eng" in list.g`, BindType: acl.BindService, BindName: "svc-${value.n}"}
	r := must(s.setRule(root, good))(t)
	set := func(change func(*acl.BindingRule)) error {
		rule := acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: "a"}
		change(&rule)
		return drop(s.setRule(root, rule))
	}
	read := func(id string) error {
		req := &access.ReadRequest{ID: id}
		req.Token = root
		return drop(access.BindingRuleReadCall.Call(t.Context(), s.Caller(), req))
	}
	const bad = "Invalid Binding Rule: invalid BindName or BindVars: "
	service := bad + `failed to validate bindType "service": `
	check(t, []expectation{
		{"no method", set(func(r *acl.BindingRule) { r.AuthMethod = "" }), 500, "Invalid Binding Rule: no AuthMethod is set"},
		{"unknown method", set(func(r *acl.BindingRule) { r.AuthMethod = "nope" }), 500, `cannot find auth method with name "nope"`},
		{"no type", set(func(r *acl.BindingRule) { r.BindType = "" }), 500, "Invalid Binding Rule: no BindType is set"},
		{"no name", set(func(r *acl.BindingRule) { r.BindName = "" }), 500, "Invalid Binding Rule: no BindName is set"},
		{"type", set(func(r *acl.BindingRule) { r.BindType = "x" }), 500, bad + `invalid Binding Rule: unknown BindType "x"`},
		{"name", set(func(r *acl.BindingRule) { r.BindName = "A b" }), 500, service + `invalid bind name: "A b"`},
		{"role name", set(func(r *acl.BindingRule) { r.BindType, r.BindName = acl.BindRole, "a/b" }), 500, bad + `failed to validate bindType "role": invalid bind name: "a/b"`},
		{"policy name", set(func(r *acl.BindingRule) { r.BindType, r.BindName = acl.BindPolicy, "/a" }), 500, bad + `failed to validate bindType "policy": invalid bind name: "/a"`},
		{"variable", set(func(r *acl.BindingRule) { r.BindName = "${value.nope}" }), 500, service + "error interpreting template: …"},
		{"list as variable", set(func(r *acl.BindingRule) { r.BindName = "${list.g}" }), 500, service + "error interpreting template: …"},
		{"open brace", set(func(r *acl.BindingRule) { r.BindName = "${value.n" }), 500, service + "error interpreting template: …"},
		{"function", set(func(r *acl.BindingRule) { r.BindName = "${upper(value.n)}" }), 500, service + "error interpreting template: …"},
		{"template", set(func(r *acl.BindingRule) { r.BindType, r.BindName = acl.BindTemplatedPolicy, "x" }), 500, bad + `failed to validate bindType "templated-policy": Bind name for templated-policy bind type does not match existing template name: x`},
		{"template without name", set(func(r *acl.BindingRule) { r.BindType, r.BindName = acl.BindTemplatedPolicy, "builtin/service" }), 500, bad + `failed to validate bindType "templated-policy": …`},
		{"variables elsewhere", set(func(r *acl.BindingRule) { r.BindVars = &acl.TemplateVariables{Name: "x"} }), 500, "invalid Binding Rule: BindVars cannot be set when bind type is not templated-policy."},
		{"selector", set(func(r *acl.BindingRule) { r.Selector = "nope == 1" }), 500, "invalid Binding Rule: Selector is invalid: …"},
		{"selector syntax", set(func(r *acl.BindingRule) { r.Selector = "value.n ==" }), 500, "invalid Binding Rule: Selector is invalid: …"},
		{"update unknown", set(func(r *acl.BindingRule) { r.ID = unused }), 500, "cannot find binding rule " + unused},
		{"update no UUID", set(func(r *acl.BindingRule) { r.ID = "x" }), 500, "Binding Rule ID invalid UUID"},
		{"other method", set(func(rule *acl.BindingRule) { rule.ID, rule.AuthMethod = r.ID, "jm2" }), 500, "the AuthMethod field of an Binding Rule is immutable"},
		{"read missing", read(unused), 404, "Requested binding rule does not exist: ACL not found"},
		{"delete missing", s.deleteRule(root, unused), 404, "Cannot find binding rule to delete"},
	})
	good.ID = r.ID
	if again := must(s.setRule(root, good))(t); again.ModifyIndex != r.ModifyIndex {
		t.Error("equal content moved the index")
	}
	got := must(s.setRule(root, acl.BindingRule{ID: r.ID, BindType: acl.BindPolicy, BindName: "p"}))(t)
	if got.AuthMethod != "jm" || got.Selector != "" || got.Description != "" {
		t.Errorf("replaced by %+v", got)
	}
	list := func(method string) int {
		t.Helper()
		req := &access.BindingRuleListRequest{AuthMethod: method}
		req.Token = root
		return len(must(access.BindingRuleListCall.Call(t.Context(), s.Caller(), req))(t).BindingRules)
	}
	if list("") != 1 || list("jm") != 1 || list("jm2") != 0 || list("nope") != 0 {
		t.Error("lists of rules")
	}
	if err := s.deleteMethod(root, "jm"); err != nil || list("") != 0 {
		t.Errorf("the rules did not go with their method: %v", err)
	}
}

func TestLoginAddsUpTheRulesThatSelect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRooted(t)
		g := newSigner(t)
		m := g.method("jm")
		m.MaxTokenTTL = 5 * time.Minute
		must(s.setMethod(root, m))(t)
		must(s.setPolicy(root, acl.Policy{Name: "p1", Rules: `key_prefix "" { policy = "read" }`}))(t)
		must(s.setRole(root, acl.Role{Name: "r1"}))(t)
		for _, r := range []acl.BindingRule{
			{BindType: acl.BindService, BindName: "svc-${value.n}", Selector: "value.n == Web"},
			{BindType: acl.BindNode, BindName: "node-${ value.team }", Selector: `"eng" in list.g`},
			{BindType: acl.BindPolicy, BindName: "p1", Selector: "value.num == 7"},
			{BindType: acl.BindTemplatedPolicy, BindName: "builtin/service", BindVars: &acl.TemplateVariables{Name: "tp-${value.num}"}, Selector: "value.n == Web"},
			{BindType: acl.BindRole, BindName: "r1"},
			{BindType: acl.BindRole, BindName: "no-such-role"},
		} {
			r.AuthMethod = "jm"
			must(s.setRule(root, r))(t)
		}
		claims := map[string]any{"name": "Web", "nested": map[string]any{"team": "Blue"}, "num": 7, "groups": []string{"eng", "ops"}}
		k := must(s.login("jm", g.token(t, claims), map[string]string{"pod": "p", "a": "b"}))(t)
		now := time.Now()
		if k.Description != `token created via login: {"a":"b","pod":"p"}` || !k.Local || k.AuthMethod != "jm" || !k.ExpirationTime.Equal(now.Add(5*time.Minute)) || k.SecretID == "" {
			t.Errorf("token %+v", k)
		}
		if diff := cmp.Diff([]acl.ServiceIdentity{{ServiceName: "svc-web"}}, k.ServiceIdentities); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]acl.NodeIdentity{{NodeName: "node-blue", Datacenter: "dc1"}}, k.NodeIdentities); diff != "" {
			t.Error(diff)
		}
		if len(k.TemplatedPolicies) != 1 || k.TemplatedPolicies[0].TemplateVariables.Name != "tp-7" || k.Policies[0].Name != "p1" || len(k.Roles) != 1 || k.Roles[0].Name != "r1" {
			t.Errorf("links %+v %+v %+v", k.TemplatedPolicies, k.Policies, k.Roles)
		}
		if !s.may(k.SecretID, acl.Service, acl.Write, "tp-7") || !s.may(k.SecretID, acl.Key, acl.Read, "a") {
			t.Error("rights of the login")
		}
		other := must(s.login("jm", g.token(t, map[string]any{"name": "db"}), nil))(t)
		if other.Description != "token created via login" || other.ServiceIdentities != nil || other.Policies != nil {
			t.Errorf("another: %+v", other)
		}
		if got := must(s.listTokens(root, access.TokenListRequest{AuthMethod: "jm"}))(t); len(got) != 2 {
			t.Errorf("%d tokens of the method", len(got))
		}
		own := must(s.readToken(root, access.TokenReadRequest{Self: true}))(t).Token
		check(t, []expectation{
			{"clone", drop(s.cloneToken(root, k.AccessorID, "")), 500, "Cannot clone a token created from an auth method"},
			{"logout of nobody", s.logout(""), 401, "Supplied token does not exist"},
			{"logout of a token that is no login", s.logout(own.SecretID), 403, "Permission denied: token wasn't created via login"},
			{"logout of an unknown token", s.logout(unused), 403, "ACL not found"},
		})
		if err := s.logout(k.SecretID); err != nil {
			t.Fatal(err)
		}
		if err := s.logout(k.SecretID); wireerr.Status(err) != 403 || err.Error() != "ACL not found" {
			t.Errorf("second logout: %v", err)
		}
		if err := s.deleteMethod(root, "jm"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.control.Resolve(t.Context(), other.SecretID); err == nil {
			t.Error("the token of a deleted method is good")
		}
		if got := must(s.listTokens(root, access.TokenListRequest{AuthMethod: "jm"}))(t); len(got) != 0 {
			t.Errorf("%d tokens of the deleted method", len(got))
		}
	})
}

func TestLoginRefused(t *testing.T) {
	s := newRooted(t)
	g, stranger := newSigner(t), newSigner(t)
	must(s.setMethod(root, g.method("jm")))(t)
	bearer := g.token(t, map[string]any{"name": "Web"})
	check(t, []expectation{
		{"no rules", drop(s.login("jm", bearer, nil)), 403, "Permission denied"},
		{"unknown method", drop(s.login("nope", "x", nil)), 403, `ACL not found: auth method "nope" not found`},
		{"no method", drop(s.login("", "x", nil)), 403, `ACL not found: auth method "" not found`},
		{"no proof", drop(s.login("jm", "", nil)), 500, "missing jwt"},
		{"no token", drop(s.login("jm", "x", nil)), 500, "error parsing token: …"},
		{"stranger", drop(s.login("jm", stranger.token(t, nil), nil)), 500, "no known key successfully validated the token signature"},
		{"audience", drop(s.login("jm", g.token(t, map[string]any{"aud": "other"}), nil)), 500, "error validating claims: aud claim does not match any bound audience"},
	})
	must(s.setRule(root, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: "x", Selector: "value.n == nobody"}))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindRole, BindName: "no-such-role"}))(t)
	if err := drop(s.login("jm", bearer, nil)); wireerr.Status(err) != 403 || err.Error() != "Permission denied" {
		t.Errorf("nothing bound: %v", err)
	}
}

// What a proof says is only ever a value: it changes no selector and no rule, and makes no name that is not valid.
func TestHostileClaimsBindNothing(t *testing.T) {
	s := newRooted(t)
	g := newSigner(t)
	must(s.setMethod(root, g.method("jm")))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: "${value.n}", Selector: `value.team == "blue" and "eng" in list.g`}))(t)
	for _, name := range []string{
		`" or value.team == "`, `x" or 1 == 1`, `blue" and "eng" in list.g or "" == "`, `web" { policy = "write" } acl = "write"`,
		"${value.team}", "web\nacl = \"write\"", "a/b", "web ", "-web", "", "wéb", string(make([]byte, 2000)),
	} {
		// As a claim of the selector it selects nothing.
		err := drop(s.login("jm", g.token(t, map[string]any{"name": "x", "nested": map[string]any{"team": name}, "groups": []string{name}}), nil))
		if err == nil || err.Error() != "Permission denied" {
			t.Errorf("team %q: %v", name, err)
		}
		// As a name it is refused.
		err = drop(s.login("jm", g.token(t, map[string]any{"name": name, "nested": map[string]any{"team": "blue"}, "groups": []string{"eng"}}), nil))
		if err == nil {
			t.Errorf("name %q was bound", name)
		}
	}
	if all := must(s.listTokens(root, access.TokenListRequest{AuthMethod: "jm"}))(t); len(all) != 0 {
		t.Errorf("%d tokens were made", len(all))
	}
}
