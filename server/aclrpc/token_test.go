package aclrpc_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

const (
	accessor = "7f6a3e10-5a52-4d8b-9c1f-0d7c5f0a1101"
	secret   = "9b1c7a44-2d1e-4a57-8f3a-6c1a2b3d1101"
	unused   = "11111111-2222-3333-4444-555555555555"
)

func TestTokenErrorsHaveTheTextsThatClientsMatch(t *testing.T) {
	s := newRooted(t)
	s.createToken(acl.Token{AccessorID: accessor, SecretID: secret})
	create := func(k acl.Token) error { return drop(s.setToken(root, access.TokenSetRequest{Create: true, Token: k})) }
	update := func(k acl.Token) error { return drop(s.setToken(root, access.TokenSetRequest{Token: k})) }
	service := func(local bool, i acl.ServiceIdentity) error {
		return create(acl.Token{Local: local, ServiceIdentities: []acl.ServiceIdentity{i}})
	}
	node := func(i acl.NodeIdentity) error { return create(acl.Token{NodeIdentities: []acl.NodeIdentity{i}}) }
	template := func(p acl.TemplatedPolicy) error {
		return create(acl.Token{TemplatedPolicies: []acl.TemplatedPolicy{p}})
	}
	past, far := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)
	soon := time.Now().Add(30 * time.Second)
	ttl := func(d time.Duration, at *time.Time) error {
		return drop(s.setToken(root, access.TokenSetRequest{Create: true, TTL: d, Token: acl.Token{ExpirationTime: at}}))
	}
	own := must(s.readToken(root, access.TokenReadRequest{Self: true}))(t).Token.AccessorID
	const names = " Only lowercase alphanumeric characters, '-' and '_' are allowed"
	reserved := func(field string) string {
		return "Invalid Token: " + field + ` - UUIDs with the prefix "00000000-0000-0000-0000-0000000000" are reserved`
	}
	check(t, []expectation{
		{"accessor in use", create(acl.Token{AccessorID: accessor}), 500, "Invalid Token: AccessorID is already in use"},
		{"accessor is a secret", create(acl.Token{AccessorID: secret}), 500, "Invalid Token: AccessorID is already in use"},
		{"secret in use", create(acl.Token{SecretID: secret}), 500, "Invalid Token: SecretID is already in use"},
		{"secret is an accessor", create(acl.Token{SecretID: accessor}), 500, "Invalid Token: SecretID is already in use"},
		{"both alike", create(acl.Token{AccessorID: unused, SecretID: unused}), 500, "Invalid Token: SecretID is already in use"},
		{"accessor no UUID", create(acl.Token{AccessorID: "x"}), 500, "Invalid Token: AccessorID - not a valid UUID"},
		{"secret no UUID", create(acl.Token{SecretID: "x"}), 500, "Invalid Token: SecretID - not a valid UUID"},
		{"accessor reserved", create(acl.Token{AccessorID: acl.ReservedPrefix + "aa"}), 500, reserved("AccessorID")},
		{"secret reserved", create(acl.Token{SecretID: acl.ReservedPrefix + "aa"}), 500, reserved("SecretID")},
		{"method", create(acl.Token{AuthMethod: "m"}), 500, "AuthMethod field is disallowed outside of login"},
		{"policy by name", create(acl.Token{Policies: []acl.Link{{Name: "nope"}}}), 500, `No such ACL policy with name "nope"`},
		{"policy by ID", create(acl.Token{Policies: []acl.Link{{ID: unused}}}), 500, `No such ACL policy with ID "` + unused + `"`},
		{"role by name", create(acl.Token{Roles: []acl.Link{{Name: "nope"}}}), 500, `No such ACL role with name "nope"`},
		{"role by ID", create(acl.Token{Roles: []acl.Link{{ID: unused}}}), 500, `No such ACL role with ID "` + unused + `"`},

		{"both expirations", ttl(time.Hour, &far), 500, "Token Expiration TTL and Expiration Time cannot both be set"},
		{"negative TTL", ttl(-10*time.Second, nil), 500, "Token Expiration TTL '-10s' should be > 0"},
		{"short TTL", ttl(10*time.Second, nil), 500, "ExpirationTime cannot be less than 1m0s in the future (was 10s)"},
		{"past", ttl(0, &past), 500, "ExpirationTime cannot be before CreateTime"},
		{"soon", ttl(0, &soon), 500, "ExpirationTime cannot be less than 1m0s in the future (was …"},

		{"service without name", service(false, acl.ServiceIdentity{}), 500, "Service identity is missing the service name field on this token"},
		{"service name", service(false, acl.ServiceIdentity{ServiceName: "Web"}), 500, `Service identity "Web" has an invalid name.` + names},
		{"service of a local token", service(true, acl.ServiceIdentity{ServiceName: "web", Datacenters: []string{"dc1"}}), 500, `Service identity "web" cannot specify a list of datacenters on a local token`},
		{"node without name", node(acl.NodeIdentity{Datacenter: "dc1"}), 500, "Node identity is missing the node name field on this token"},
		{"node without datacenter", node(acl.NodeIdentity{NodeName: "n"}), 500, "Node identity is missing the datacenter field on this token"},
		{"node name", node(acl.NodeIdentity{NodeName: "N1", Datacenter: "dc1"}), 500, "Node identity has an invalid name." + names},
		{"template without name", template(acl.TemplatedPolicy{TemplateVariables: &acl.TemplateVariables{Name: "a"}}), 500, "templated policy is missing the template name field on this token"},
		{"unknown template", template(acl.TemplatedPolicy{TemplateName: "nope"}), 500, `no such ACL templated policy with Name "nope"`},
		{"template without variable", template(acl.TemplatedPolicy{TemplateName: "builtin/service"}), 500, `validation error for templated policy "builtin/service": …`},
		{"template with a bad name", template(acl.TemplatedPolicy{TemplateName: "builtin/service", TemplateVariables: &acl.TemplateVariables{Name: "Web"}}), 500, `validation error for templated policy "builtin/service": service identity "Web" has an invalid name.` + names},
		{"name with rules in it", template(acl.TemplatedPolicy{TemplateName: "builtin/service", TemplateVariables: &acl.TemplateVariables{Name: "a\" {policy=\"write\"}\nacl=\"write\"\n#"}}), 500, `validation error for templated policy "builtin/service": …`},

		{"update of no UUID", update(acl.Token{AccessorID: "x"}), 500, "AccessorID is not a valid UUID"},
		{"update of nothing", update(acl.Token{AccessorID: unused}), 500, `Cannot find token "` + unused + `"`},
		{"secret changed", update(acl.Token{AccessorID: accessor, SecretID: unused}), 500, "Changing a token's SecretID is not permitted"},
		{"locality changed", update(acl.Token{AccessorID: accessor, Local: true}), 500, "Cannot toggle local mode of " + accessor},
		{"method changed", update(acl.Token{AccessorID: accessor, AuthMethod: "m"}), 500, "Cannot change AuthMethod of " + accessor},
		{"expiration changed", update(acl.Token{AccessorID: accessor, ExpirationTime: &far}), 500, "Cannot change expiration time of " + accessor},
		{"TTL changed", drop(s.setToken(root, access.TokenSetRequest{TTL: time.Hour, Token: acl.Token{AccessorID: accessor}})), 500, "Cannot change expiration time of " + accessor},

		{"read missing", drop(s.readToken(root, access.TokenReadRequest{AccessorID: unused})), 403, "token does not exist: ACL not found"},
		{"read no UUID", drop(s.readToken(root, access.TokenReadRequest{AccessorID: "x"})), 500, "failed acl token lookup: …"},
		{"self of nobody", drop(s.readToken("", access.TokenReadRequest{Self: true})), 403, "token does not exist: ACL not found"},
		{"clone missing", drop(s.cloneToken(root, unused, "")), 403, "token does not exist: ACL not found"},
		{"clone no UUID", drop(s.cloneToken(root, "x", "")), 500, "AccessorID is not a valid UUID"},
		{"delete missing", s.deleteToken(root, unused), 404, "Cannot find token to delete"},
		{"delete no UUID", s.deleteToken(root, "x"), 500, "Token ID is missing or an invalid UUID"},
		{"delete anonymous", s.deleteToken(root, acl.AnonymousID), 500, "Delete operation not permitted on the anonymous token"},
		{"delete own", s.deleteToken(root, own), 500, "Deletion of the request's authorization token is not permitted"},
		{"list by policy name", drop(s.listTokens(root, access.TokenListRequest{Policy: "x"})), 500, "failed acl policy lookup: …"},
		{"list by role name", drop(s.listTokens(root, access.TokenListRequest{Role: "x"})), 500, "failed acl role lookup: …"},

		{"create without right", drop(s.setToken(secret, access.TokenSetRequest{Create: true})), 403, "Permission denied: token with AccessorID '" + accessor + "' lacks permission 'acl:write'"},
		{"read without right", drop(s.readToken("", access.TokenReadRequest{AccessorID: accessor})), 403, "Permission denied: anonymous token lacks permission 'acl:read'. The anonymous token is used implicitly when a request does not specify a token."},
		{"unknown token", drop(s.listTokens(unused, access.TokenListRequest{})), 403, "ACL not found"},
		{"root word", drop(s.listTokens("manage", access.TokenListRequest{})), 500, "Cannot resolve root ACL"},
	})
}

func TestTokenLife(t *testing.T) {
	s := newRooted(t)
	p1 := must(s.setPolicy(root, acl.Policy{Name: "p1", Rules: `key_prefix "" { policy = "read" }`}))(t)
	p2 := must(s.setPolicy(root, acl.Policy{Name: "p2"}))(t)
	r1 := must(s.setRole(root, acl.Role{Name: "r1", Policies: []acl.Link{{Name: "p2"}}}))(t)
	k := s.createToken(acl.Token{
		AccessorID: accessor, SecretID: secret, Description: "d",
		Policies: []acl.Link{{Name: "p1"}, {ID: p1.ID}, {ID: p2.ID}}, Roles: []acl.Link{{Name: "r1"}, {ID: r1.ID}},
		ServiceIdentities: []acl.ServiceIdentity{{ServiceName: "web", Datacenters: []string{"dc2", "dc1"}}, {ServiceName: "web", Datacenters: []string{"dc3"}}, {ServiceName: "db", Datacenters: []string{"dc1"}}, {ServiceName: "db"}},
		NodeIdentities:    []acl.NodeIdentity{{NodeName: "n", Datacenter: "dc1"}, {NodeName: "n", Datacenter: "dc1"}},
		TemplatedPolicies: []acl.TemplatedPolicy{{TemplateName: "builtin/dns"}, {TemplateName: "builtin/dns", TemplateVariables: &acl.TemplateVariables{Name: "x"}}},
	})
	want := &acl.Token{
		AccessorID: accessor, SecretID: secret, Description: "d",
		Policies: []acl.Link{{ID: p1.ID, Name: "p1"}, {ID: p2.ID, Name: "p2"}}, Roles: []acl.Link{{ID: r1.ID, Name: "r1"}},
		ServiceIdentities: []acl.ServiceIdentity{{ServiceName: "web", Datacenters: []string{"dc1", "dc2", "dc3"}}, {ServiceName: "db"}},
		NodeIdentities:    []acl.NodeIdentity{{NodeName: "n", Datacenter: "dc1"}},
		TemplatedPolicies: []acl.TemplatedPolicy{{TemplateName: "builtin/dns", TemplateID: "00000000-0000-0000-0000-000000000005"}},
		CreateTime:        k.CreateTime, Hash: k.Hash, CreateIndex: s.Index(), ModifyIndex: s.Index(),
	}
	if diff := cmp.Diff(want, k); diff != "" || len(k.Hash) != 32 || time.Since(k.CreateTime) > time.Minute {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	read := func() *acl.Token {
		t.Helper()
		return must(s.readToken(root, access.TokenReadRequest{AccessorID: strings.ToUpper(accessor)}))(t).Token
	}
	if diff := cmp.Diff(want, read()); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	if !s.may(secret, acl.Key, acl.Read, "a") || s.may(secret, acl.Key, acl.Write, "a") || !s.may(secret, acl.Service, acl.Write, "web-sidecar-proxy") {
		t.Error("rights of the new token")
	}

	// A new name shows through; what is deleted is gone from the token at once, and its rights with it.
	must(s.setPolicy(root, acl.Policy{ID: p1.ID, Name: "p1-renamed", Rules: p1.Rules}))(t)
	if got := read().Policies[0].Name; got != "p1-renamed" {
		t.Errorf("policy is called %q", got)
	}
	if err := s.deletePolicy(root, p1.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.deleteRole(root, r1.ID); err != nil {
		t.Fatal(err)
	}
	got := read()
	if diff := cmp.Diff([]acl.Link{{ID: p2.ID, Name: "p2"}}, got.Policies); diff != "" || got.Roles != nil || s.may(secret, acl.Key, acl.Read, "a") {
		t.Errorf("after deletions: roles %v, policies %s", got.Roles, diff)
	}
	if got.ModifyIndex != s.Index() || cmp.Equal(got.Hash, k.Hash) {
		t.Error("the token was not marked as changed")
	}

	// An update replaces the links; what is equal changes nothing.
	k = must(s.setToken(root, access.TokenSetRequest{Token: acl.Token{AccessorID: accessor, Description: "two"}}))(t)
	if k.SecretID != secret || k.ServiceIdentities != nil || k.Policies != nil || k.Description != "two" || k.CreateIndex != want.CreateIndex {
		t.Errorf("updated to %+v", k)
	}
	before := k.ModifyIndex
	k = must(s.setToken(root, access.TokenSetRequest{Token: acl.Token{AccessorID: accessor, Description: "two"}}))(t)
	if k.ModifyIndex != before || s.Store.View().ACLIndex() != before {
		t.Errorf("an equal update moved the index from %d to %d", before, k.ModifyIndex)
	}

	if err := s.deleteToken(root, accessor); err != nil {
		t.Fatal(err)
	}
	if _, err := s.control.Resolve(t.Context(), secret); err == nil || wireerr.Status(err) != 403 || err.Error() != "ACL not found" {
		t.Errorf("the deleted token: %v", err)
	}
}

func TestTokenListsAndRedaction(t *testing.T) {
	s := newRooted(t)
	p := must(s.setPolicy(root, acl.Policy{Name: "p", Rules: `acl = "read"`}))(t)
	r := must(s.setRole(root, acl.Role{Name: "r"}))(t)
	reader := s.createToken(acl.Token{Policies: []acl.Link{{ID: p.ID}}})
	s.createToken(acl.Token{AccessorID: accessor, Roles: []acl.Link{{ID: r.ID}}, Local: true})
	web := s.createToken(acl.Token{ServiceIdentities: []acl.ServiceIdentity{{ServiceName: "web"}}})
	count := func(req access.TokenListRequest) (ids []string) {
		t.Helper()
		for _, k := range must(s.listTokens(root, req))(t) {
			ids = append(ids, k.AccessorID)
		}
		return ids
	}
	if got := count(access.TokenListRequest{}); len(got) != 5 {
		t.Errorf("all tokens: %v", got)
	}
	if got := count(access.TokenListRequest{GlobalOnly: true}); len(got) != 4 {
		t.Errorf("global tokens: %v", got)
	}
	for name, tt := range map[string]struct {
		req  access.TokenListRequest
		want []string
	}{
		"policy":     {access.TokenListRequest{Policy: p.ID}, []string{reader.AccessorID}},
		"role":       {access.TokenListRequest{Role: r.ID}, []string{accessor}},
		"service":    {access.TokenListRequest{ServiceName: "web"}, []string{web.AccessorID}},
		"no service": {access.TokenListRequest{ServiceName: "none"}, nil},
		"no method":  {access.TokenListRequest{AuthMethod: "none"}, nil},
	} {
		if diff := cmp.Diff(tt.want, count(tt.req)); diff != "" {
			t.Errorf("by %s: %s", name, diff)
		}
	}
	for _, req := range []access.TokenListRequest{{Policy: p.ID, Role: r.ID}, {ServiceName: "web", AuthMethod: "m"}} {
		if _, err := s.listTokens(root, req); err == nil || !strings.Contains(err.Error(), "can only filter by one of") {
			t.Errorf("%+v: %v", req, err)
		}
	}
	for _, k := range must(s.listTokens(reader.SecretID, access.TokenListRequest{}))(t) {
		if k.SecretID != acl.Hidden {
			t.Errorf("a reader is shown the secret of %s", k.AccessorID)
		}
	}
	if k := must(s.readToken(reader.SecretID, access.TokenReadRequest{AccessorID: web.AccessorID}))(t).Token; k.SecretID != acl.Hidden {
		t.Error("a reader is shown a secret")
	}
	if k := must(s.readToken(web.SecretID, access.TokenReadRequest{Self: true}))(t).Token; k.SecretID != web.SecretID {
		t.Error("one's own secret is hidden")
	}
}

func TestTokenClone(t *testing.T) {
	s := newRooted(t)
	far := time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)
	k := s.createToken(acl.Token{Description: "orig", Local: true, ExpirationTime: &far, Policies: []acl.Link{{ID: acl.ReadOnlyID}}})
	got := must(s.cloneToken(root, k.AccessorID, ""))(t)
	if got.AccessorID == k.AccessorID || got.SecretID == k.SecretID || !got.Local || got.Description != "orig" || !got.ExpirationTime.Equal(far) {
		t.Errorf("clone %+v", got)
	}
	if diff := cmp.Diff(k.Policies, got.Policies); diff != "" {
		t.Errorf("links of the clone: %s", diff)
	}
	if got := must(s.cloneToken(root, k.AccessorID, "copy"))(t); got.Description != "copy" {
		t.Errorf("described as %q", got.Description)
	}
}

func TestTokenReadExpanded(t *testing.T) {
	s := newRooted(t)
	p1 := must(s.setPolicy(root, acl.Policy{Name: "p1", Rules: `operator = "read"`}))(t)
	must(s.setPolicy(root, acl.Policy{Name: "p2", Rules: `mesh = "read"`}))(t)
	must(s.setPolicy(root, acl.Policy{Name: "there", Datacenters: []string{"dc2"}}))(t)
	must(s.setRole(root, acl.Role{Name: "r1", Policies: []acl.Link{{Name: "p2"}}}))(t)
	k := s.createToken(acl.Token{
		Policies: []acl.Link{{ID: p1.ID}, {Name: "there"}}, Roles: []acl.Link{{Name: "r1"}}, ServiceIdentities: []acl.ServiceIdentity{{ServiceName: "web"}},
	})
	x := must(s.readToken(root, access.TokenReadRequest{AccessorID: k.AccessorID, Expanded: true}))(t).Expanded
	if len(x.Policies) != 3 || x.Policies[0].Name != "p1" || x.Policies[1].Name != "p2" || !strings.Contains(x.Policies[2].Rules, `service "web-sidecar-proxy"`) {
		t.Errorf("policies %+v", x.Policies)
	}
	if len(x.Roles) != 1 || x.Roles[0].Policies[0].Name != "p2" || x.DefaultPolicy != "deny" || x.DownPolicy != "extend-cache" || x.Node != "node1" {
		t.Errorf("expanded %+v", x)
	}
	if must(s.readToken(root, access.TokenReadRequest{AccessorID: k.AccessorID}))(t).Expanded != nil {
		t.Error("expanded unasked")
	}
}

// An expired token is refused from the moment on, and deleted a little later.
func TestTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRooted(t)
		k := must(s.setToken(root, access.TokenSetRequest{Create: true, TTL: time.Hour}))(t)
		local := must(s.setToken(root, access.TokenSetRequest{Create: true, TTL: 2 * time.Hour, Token: acl.Token{Local: true}}))(t)
		time.Sleep(time.Hour - time.Nanosecond)
		if _, err := s.control.Resolve(t.Context(), k.SecretID); err != nil {
			t.Errorf("before its end: %v", err)
		}
		time.Sleep(time.Nanosecond)
		if _, err := s.control.Resolve(t.Context(), k.SecretID); err == nil || err.Error() != "ACL not found" {
			t.Errorf("at its end: %v", err)
		}
		if _, err := s.readToken(root, access.TokenReadRequest{AccessorID: k.AccessorID}); err == nil {
			t.Error("it can be read")
		}
		if got := must(s.listTokens(root, access.TokenListRequest{}))(t); len(got) != 3 {
			t.Errorf("%d tokens are listed", len(got))
		}
		if _, err := s.cloneToken(root, k.AccessorID, ""); err == nil {
			t.Error("it can be cloned")
		}
		if _, err := s.setToken(root, access.TokenSetRequest{Token: acl.Token{AccessorID: k.AccessorID}}); err == nil {
			t.Error("it can be changed")
		}
		if err := s.control.Reap(t.Context(), s.Store, s.Apply); err != nil {
			t.Fatal(err)
		}
		if _, gone := s.Store.View().ACLToken(k.AccessorID); gone != nil {
			t.Error("it was not deleted")
		}
		if _, there := s.Store.View().ACLToken(local.AccessorID); there == nil {
			t.Error("a good token was deleted")
		}
		before := s.Index()
		if err := s.control.Reap(t.Context(), s.Store, s.Apply); err != nil || s.Index() != before {
			t.Errorf("nothing to delete: error %v, %d commands", err, s.Index()-before)
		}
	})
}

func TestSecondaryDatacenters(t *testing.T) {
	var asked []string
	cfg := aclrpc.Config{Enabled: true, Datacenter: "dc1", PrimaryDatacenter: "dc0", DefaultPolicy: aclrpc.Allow}
	s := bareServer(t, cfg)
	// The right to write comes from the primary's management policy, which is replicated.
	s.Resolve = func(string) (*acl.Authorizer, error) { return acl.Everything(), nil }
	check(t, []expectation{
		{"local token", drop(s.setToken("", access.TokenSetRequest{Create: true, Token: acl.Token{Local: true}})), 500, "Local tokens are disabled"},
		{"auth method", drop(s.setMethod("", acl.AuthMethod{Name: "m", Type: acl.MethodJWT})), 500, "Token replication is required for auth methods to function"},
		{"login", drop(s.login("m", "x", nil)), 500, "Token replication is required for auth methods to function"},
		{"primary out of reach", drop(s.setPolicy("", acl.Policy{Name: "p"})), 500, "No path to datacenter"},
	})

	cfg.TokenReplication = true
	cfg.Primary = recorder(&asked)
	s = bareServer(t, cfg)
	s.Resolve = func(string) (*acl.Authorizer, error) { return acl.Everything(), nil }
	k := must(s.setToken("", access.TokenSetRequest{Create: true, Token: acl.Token{Local: true}}))(t)
	if k.AccessorID == "" || len(asked) != 0 {
		t.Errorf("local token %+v, asked %v", k, asked)
	}
	for name, err := range map[string]error{
		"create":    drop(s.setToken("", access.TokenSetRequest{Create: true})),
		"update":    drop(s.setToken("", access.TokenSetRequest{Token: acl.Token{AccessorID: unused}})),
		"policy":    drop(s.setPolicy("", acl.Policy{Name: "p"})),
		"role":      drop(s.setRole("", acl.Role{Name: "r"})),
		"delete":    s.deleteToken("", unused),
		"bootstrap": drop(s.bootstrap("")),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(asked) != 6 || slices.ContainsFunc(asked, func(a string) bool { return !strings.HasSuffix(a, " in dc0") }) {
		t.Errorf("the primary was asked %v", asked)
	}
	if err := s.deleteToken("", k.AccessorID); err != nil || len(asked) != 6 {
		t.Errorf("delete a local token: %v, asked %v", err, asked)
	}
}
