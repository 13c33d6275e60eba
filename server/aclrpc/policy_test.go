package aclrpc_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

// recorder stands for the primary datacenter: it notes the calls.
func recorder(asked *[]string) func(context.Context, rpc.Descriptor, any, any) error {
	return func(_ context.Context, d rpc.Descriptor, req, _ any) error {
		*asked = append(*asked, d.Name+" in "+req.(interface{ RequestTarget() *read.Target }).RequestTarget().Datacenter)
		return nil
	}
}

func TestPolicyErrorsHaveTheTextsThatClientsMatch(t *testing.T) {
	s := newRooted(t)
	p := must(s.setPolicy(root, acl.Policy{Name: "taken"}))(t)
	set := func(p acl.Policy) error { return drop(s.setPolicy(root, p)) }
	const characters = "Invalid Policy: invalid Name. Only alphanumeric characters, a single '/', '-' and '_' are allowed"
	const prefixes = "Invalid Policy: invalid Name. Names cannot be prefixed with '/' or 'builtin/'"
	management := must(s.readPolicy(root, acl.ManagementID, ""))(t)
	check(t, []expectation{
		{"no name", set(acl.Policy{}), 500, "Invalid Policy: no Name is set"},
		{"space", set(acl.Policy{Name: "a b"}), 500, characters},
		{"two slashes", set(acl.Policy{Name: "a/b/c"}), 500, characters},
		{"slash first", set(acl.Policy{Name: "/a"}), 500, prefixes},
		{"builtin", set(acl.Policy{Name: "builtin/a"}), 500, prefixes},
		{"long", set(acl.Policy{Name: strings.Repeat("x", 129)}), 500, "Invalid Policy: invalid Name. Length must be greater than 0 and less than 128"},
		{"taken", set(acl.Policy{Name: "taken"}), 500, `Invalid Policy: A Policy with Name "taken" already exists`},
		{"taken by another, in another case", set(acl.Policy{ID: acl.ManagementID, Name: "TAKEN", Rules: management.Rules}), 500, `Invalid Policy: A Policy with Name "TAKEN" already exists`},
		{"no UUID", set(acl.Policy{ID: "x", Name: "n"}), 500, "Policy ID invalid UUID"},
		{"unknown", set(acl.Policy{ID: unused, Name: "n"}), 500, "cannot find policy " + unused},
		{"rules", set(acl.Policy{Name: "n", Rules: `acl = "list"`}), 500, `Invalid acl policy: "list"`},
		{"syntax", set(acl.Policy{Name: "n", Rules: `key "a" {`}), 500, "Failed to parse ACL rules: …"},
		{"read missing", drop(s.readPolicy(root, unused, "")), 404, "Requested policy does not exist: ACL not found"},
		{"read missing name", drop(s.readPolicy(root, "", "nope")), 404, "Requested policy does not exist: ACL not found"},
		{"read no UUID", drop(s.readPolicy(root, "x", "")), 500, "failed acl policy lookup: …"},
		{"delete missing", s.deletePolicy(root, unused), 404, "Cannot find policy to delete"},
		{"delete management", s.deletePolicy(root, acl.ManagementID), 500, "Delete operation not permitted on the builtin global-management policy"},
		{"delete read-only", s.deletePolicy(root, acl.ReadOnlyID), 500, "Delete operation not permitted on the builtin builtin/global-read-only policy"},
		{"management rules", set(acl.Policy{ID: acl.ManagementID, Name: management.Name, Rules: `acl = "read"`}), 500, "Changing the Rules for the builtin global-management policy is not permitted"},
		{"management datacenters", set(acl.Policy{ID: acl.ManagementID, Name: management.Name, Rules: management.Rules, Datacenters: []string{"dc1"}}), 500, "Changing the Datacenters of the builtin global-management policy is not permitted"},
	})
	if _, err := s.setPolicy(root, acl.Policy{Name: strings.Repeat("x", 128)}); err != nil {
		t.Errorf("the longest name: %v", err)
	}
	renamed := must(s.setPolicy(root, acl.Policy{ID: acl.ManagementID, Name: "all-powers", Rules: management.Rules}))(t)
	if renamed.Name != "all-powers" || must(s.readToken(root, access.TokenReadRequest{Self: true}))(t).Token.Policies[0].Name != "all-powers" {
		t.Error("the built-in policy has kept its name")
	}

	again := must(s.setPolicy(root, acl.Policy{ID: p.ID, Name: p.Name}))(t)
	if again.ModifyIndex != p.ModifyIndex {
		t.Errorf("equal content moved the index from %d to %d", p.ModifyIndex, again.ModifyIndex)
	}
	changed := must(s.setPolicy(root, acl.Policy{ID: p.ID, Name: "free", Datacenters: []string{"dc1"}}))(t)
	if changed.ModifyIndex <= p.ModifyIndex || changed.CreateIndex != p.CreateIndex || cmp.Equal(changed.Hash, p.Hash) {
		t.Errorf("changed to %+v", changed)
	}
	if must(s.readPolicy(root, "", "FREE"))(t).ID != p.ID {
		t.Error("not found by name")
	}
}

func TestRoleErrorsHaveTheTextsThatClientsMatch(t *testing.T) {
	s := newRooted(t)
	r := must(s.setRole(root, acl.Role{Name: "taken", Policies: []acl.Link{{ID: acl.ReadOnlyID}, {Name: acl.ReadOnlyName}}}))(t)
	if diff := cmp.Diff([]acl.Link{{ID: acl.ReadOnlyID, Name: acl.ReadOnlyName}}, r.Policies); diff != "" {
		t.Errorf("links: %s", diff)
	}
	set := func(r acl.Role) error { return drop(s.setRole(root, r)) }
	service := func(i acl.ServiceIdentity) error {
		return set(acl.Role{Name: "n", ServiceIdentities: []acl.ServiceIdentity{i}})
	}
	node := func(i acl.NodeIdentity) error { return set(acl.Role{Name: "n", NodeIdentities: []acl.NodeIdentity{i}}) }
	template := func(p acl.TemplatedPolicy) error {
		return set(acl.Role{Name: "n", TemplatedPolicies: []acl.TemplatedPolicy{p}})
	}
	const names = " Only lowercase alphanumeric characters, '-' and '_' are allowed"
	const characters = "Invalid Role: invalid Name. Only alphanumeric characters, '-' and '_' are allowed"
	check(t, []expectation{
		{"no name", set(acl.Role{}), 500, "Invalid Role: no Name is set"},
		{"slash", set(acl.Role{Name: "a/b"}), 500, characters},
		{"long", set(acl.Role{Name: strings.Repeat("x", 257)}), 500, characters},
		{"taken", set(acl.Role{Name: "taken"}), 500, `Invalid Role: A Role with Name "taken" already exists`},
		{"no UUID", set(acl.Role{ID: "x", Name: "n"}), 500, "Role ID invalid UUID"},
		{"unknown", set(acl.Role{ID: unused, Name: "n"}), 500, "cannot find role " + unused},
		{"policy by name", set(acl.Role{Name: "n", Policies: []acl.Link{{Name: "nope"}}}), 500, `No such ACL policy with name "nope"`},
		{"policy by ID", set(acl.Role{Name: "n", Policies: []acl.Link{{ID: unused}}}), 500, "No such policy with ID: " + unused},
		{"service without name", service(acl.ServiceIdentity{}), 500, "Service identity is missing the service name field on this role"},
		{"service name", service(acl.ServiceIdentity{ServiceName: "A"}), 500, "Service identity has an invalid name." + names},
		{"node without name", node(acl.NodeIdentity{Datacenter: "dc1"}), 500, "Node identity is missing the node name field on this role"},
		{"node without datacenter", node(acl.NodeIdentity{NodeName: "n"}), 500, "Node identity is missing the datacenter field on this role"},
		{"node name", node(acl.NodeIdentity{NodeName: "N", Datacenter: "dc1"}), 500, "Node identity has an invalid name." + names},
		{"template without name", template(acl.TemplatedPolicy{}), 500, "templated policy is missing the template name field on this role"},
		{"unknown template", template(acl.TemplatedPolicy{TemplateName: "nope"}), 500, "templated policy with an invalid templated name: nope for this role"},
		{"template variables", template(acl.TemplatedPolicy{TemplateName: "builtin/node"}), 500, "encountered role with invalid templated policy: …"},
		{"read missing", drop(s.readRole(root, unused, "")), 404, "Requested role does not exist: ACL not found"},
		{"read missing name", drop(s.readRole(root, "", "nope")), 404, "Requested role does not exist: ACL not found"},
		{"delete missing", s.deleteRole(root, unused), 404, "Cannot find role to delete"},
	})
	list := func(policy string) []*acl.Role {
		t.Helper()
		req := &access.RoleListRequest{Policy: policy}
		req.Token = root
		return must(access.RoleListCall.Call(t.Context(), s.Caller(), req))(t).Roles
	}
	must(s.setRole(root, acl.Role{Name: "other"}))(t)
	if len(list("")) != 2 || len(list(acl.ReadOnlyID)) != 1 || len(list(acl.ManagementID)) != 0 {
		t.Error("lists of roles")
	}
	again := must(s.setRole(root, acl.Role{ID: r.ID, Name: "taken", Policies: r.Policies}))(t)
	if again.ModifyIndex != r.ModifyIndex {
		t.Error("equal content moved the index")
	}
	if got := must(s.setRole(root, acl.Role{ID: r.ID, Name: "free"}))(t); got.Policies != nil || got.ModifyIndex <= r.ModifyIndex {
		t.Errorf("replaced by %+v", got)
	}
}

func TestBootstrapOnceAndAfterAReset(t *testing.T) {
	dir := t.TempDir()
	s := newServer(t, aclrpc.Config{DataDir: dir})
	check(t, []expectation{
		{"unknown token before", drop(s.listTokens(unused, access.TokenListRequest{})), 403, "ACL system must be bootstrapped before making any requests that require authorization: ACL not found"},
		{"no UUID", drop(s.bootstrap("x")), 500, "Invalid Token: SecretID - not a valid UUID"},
	})
	first := must(s.bootstrap(secret))(t)
	if first.SecretID != secret || first.Description != "Bootstrap Token (Global Management)" || first.Local || first.Policies[0].Name != "global-management" {
		t.Errorf("token %+v", first)
	}
	refusal := fmt.Sprintf("Permission denied: ACL bootstrap no longer allowed (reset index: %d)", first.CreateIndex)
	reset := func(text string) error {
		if err := os.WriteFile(filepath.Join(dir, "acl-bootstrap-reset"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return drop(s.bootstrap(""))
	}
	check(t, []expectation{
		{"again", drop(s.bootstrap("")), 403, refusal},
		{"unknown token", drop(s.listTokens(unused, access.TokenListRequest{})), 403, "ACL not found"},
		{"no number", reset("soon"), 403, refusal},
		{"wrong number", reset("1\n"), 500, fmt.Sprintf("Invalid bootstrap reset index (specified 1, reset index: %d)", first.CreateIndex)},
	})
	if err := reset(fmt.Sprintf(" %d\n", first.CreateIndex)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "acl-bootstrap-reset")); !os.IsNotExist(err) {
		t.Errorf("the reset file is still there: %v", err)
	}
	if !s.may(first.SecretID, acl.ACL, acl.Write, "") {
		t.Error("the earlier token is gone")
	}
	all := must(s.listTokens(first.SecretID, access.TokenListRequest{}))(t)
	if len(all) != 3 {
		t.Errorf("%d tokens", len(all))
	}
	if err := reset(fmt.Sprint(first.CreateIndex)); err == nil {
		t.Error("one number allowed two resets")
	}
}

func TestInitialManagementSpendsTheBootstrap(t *testing.T) {
	s := newRooted(t)
	k := must(s.readToken(root, access.TokenReadRequest{Self: true}))(t).Token
	if k.SecretID != root || k.Description != "Initial Management Token" {
		t.Errorf("token %+v", k)
	}
	if _, err := s.bootstrap(""); wireerr.Status(err) != 403 {
		t.Errorf("bootstrap: %v", err)
	}
	// Another leader changes nothing, also when somebody has deleted the token.
	before := s.Index()
	if err := s.control.Initialize(t.Context(), s.Store, s.Apply); err != nil || s.Index() != before {
		t.Errorf("again: error %v, %d commands", err, s.Index()-before)
	}
	other := s.createToken(acl.Token{Policies: []acl.Link{{ID: acl.ManagementID}}})
	if err := s.deleteToken(other.SecretID, k.AccessorID); err != nil {
		t.Fatal(err)
	}
	if err := s.control.Initialize(t.Context(), s.Store, s.Apply); err != nil {
		t.Fatal(err)
	}
	if _, err := s.control.Resolve(t.Context(), root); err == nil {
		t.Error("a deleted token has come back")
	}
}

// While ACLs are off, everything is granted and every call refused.
func TestDisabled(t *testing.T) {
	s := bareServer(t, aclrpc.Config{Datacenter: "dc1"})
	if !s.may("whatever", acl.Operator, acl.Write, "") {
		t.Error("a right is missing")
	}
	for name, err := range map[string]error{
		"bootstrap": drop(s.bootstrap("")), "login": drop(s.login("m", "", nil)), "logout": s.logout("x"),
		"tokens": drop(s.listTokens("", access.TokenListRequest{})), "policy": drop(s.setPolicy("", acl.Policy{})),
		"resolve":     drop(access.ResolveCall.Call(t.Context(), s.Caller(), &access.ResolveRequest{})),
		"authorize":   drop(access.AuthorizeCall.Call(t.Context(), s.Caller(), &access.AuthorizeRequest{})),
		"templates":   drop(access.TemplateListCall.Call(t.Context(), s.Caller(), &access.TemplateListRequest{})),
		"replication": drop(access.ReplicationCall.Call(t.Context(), s.Caller(), &access.ReplicationRequest{})),
	} {
		if wireerr.Status(err) != 401 || err.Error() != "ACL support disabled" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAuthorize(t *testing.T) {
	s := newRooted(t)
	p := must(s.setPolicy(root, acl.Policy{Name: "p", Rules: "key \"a\" { policy = \"read\" }\nservice_prefix \"web\" { policy = \"write\" }\noperator = \"read\""}))(t)
	k := s.createToken(acl.Token{Policies: []acl.Link{{ID: p.ID}}})
	ask := func(secret string, checks ...access.Check) ([]access.Check, error) {
		req := &access.AuthorizeRequest{Checks: checks}
		req.Token = secret
		reply, err := access.AuthorizeCall.Call(t.Context(), s.Caller(), req)
		if err != nil {
			return nil, err
		}
		return reply.Checks, nil
	}
	for _, x := range must(ask(k.SecretID,
		access.Check{Resource: "key", Access: "read", Segment: "a", Allow: true}, access.Check{Resource: "key", Access: "WRITE", Segment: "a"},
		access.Check{Resource: "key", Access: "list", Segment: "a"}, access.Check{Resource: "key", Access: "write-prefix", Segment: "a", Allow: true},
		access.Check{Resource: "service", Access: "write", Segment: "web-1", Allow: true}, access.Check{Resource: "operator", Access: "read"},
		access.Check{Resource: "operator", Access: "write"}, access.Check{Resource: "intention", Access: "read", Segment: "web"},
		access.Check{Resource: "intention", Access: "write", Segment: "web"}, access.Check{Resource: "acl", Access: "read"},
	))(t) {
		want := map[string]bool{"key read": true, "service write": true, "operator read": true, "intention read": true}[string(x.Resource)+" "+x.Access]
		if x.Allow != want {
			t.Errorf("%+v, want %v", x, want)
		}
	}
	if got := must(ask(root))(t); got == nil || len(got) != 0 {
		t.Errorf("no checks: %v", got)
	}
	many := make([]access.Check, 65)
	check(t, []expectation{
		{"resource", drop(ask(root, access.Check{Resource: "x", Access: "read"})), 400, `Invalid ACL resource requested: "x"`},
		{"identity", drop(ask(root, access.Check{Resource: "identity", Access: "read"})), 400, `Invalid ACL resource requested: "identity"`},
		{"access", drop(ask(root, access.Check{Resource: "key", Access: "x"})), 400, "Invalid access level for key resource: x"},
		{"list of services", drop(ask(root, access.Check{Resource: "service", Access: "list"})), 400, "Invalid access level for service resource: list"},
		{"many", drop(ask(root, many...)), 400, "Refusing to process more than 64 authorizations at once"},
		{"unknown token", drop(ask(unused, access.Check{Resource: "key", Access: "read"})), 403, "ACL not found"},
	})
}

func TestTemplates(t *testing.T) {
	s := newRooted(t)
	preview := func(name string, vars acl.TemplateVariables) (*acl.Policy, error) {
		req := &access.TemplatePreviewRequest{Name: name, Variables: vars}
		req.Token = root
		reply, err := access.TemplatePreviewCall.Call(t.Context(), s.Caller(), req)
		if err != nil {
			return nil, err
		}
		return reply.Policy, nil
	}
	read := func(secret, name string) error {
		req := &access.TemplateReadRequest{Name: name}
		req.Token = secret
		return drop(access.TemplateReadCall.Call(t.Context(), s.Caller(), req))
	}
	if err := read(root, "builtin/dns"); err != nil {
		t.Error(err)
	}
	p := must(preview("builtin/service", acl.TemplateVariables{Name: "web"}))(t)
	if !strings.HasPrefix(p.Name, "synthetic-policy-") || p.Description != "synthetic policy generated from templated policy: builtin/service" || !strings.Contains(p.Rules, `service "web"`) {
		t.Errorf("preview %+v", p)
	}
	check(t, []expectation{
		{"unknown", read(root, "nope"), 400, "Invalid templated policy Name: nope"},
		{"no right", read("", "builtin/dns"), 403, "Permission denied: anonymous token lacks permission 'acl:read'…"},
		{"preview of unknown", drop(preview("nope", acl.TemplateVariables{})), 400, `templated policy "nope" does not exist`},
		{"preview without name", drop(preview("builtin/service", acl.TemplateVariables{})), 400, `validation error for templated policy: "builtin/service": …`},
	})
}
