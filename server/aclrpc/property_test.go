package aclrpc_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/aclrpc"
	"github.com/sarnmesh/sarn/server/fsm"
)

// dump returns the whole state.
func dump(t testing.TB, s *state.Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.View().Dump(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pick returns one of them.
func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// No sequence of calls with a token changes an object of access control that the token may not write, and none shows
// what the token may not read (threats, classes 5 and 6).
func TestNoTokenChangesWhatItMayNotWrite(t *testing.T) {
	for _, policy := range []string{aclrpc.Allow, aclrpc.Deny} {
		t.Run(policy, func(t *testing.T) {
			seed := testkit.Seed(t)
			changesAreAllowed(t, rand.New(rand.NewPCG(seed, 1)), policy)
		})
	}
}

func changesAreAllowed(t *testing.T, r *rand.Rand, policy string) {
	s := newServer(t, aclrpc.Config{InitialManagement: root, DefaultPolicy: policy})
	g := newSigner(t)
	must(s.setMethod(root, g.method("jm")))(t)
	rules := []string{
		``, `acl = "read"`, `acl = "write"`, `acl = "deny"`, `operator = "write"`, `service_prefix "" { policy = "write" intentions = "write" }`,
		`key_prefix "" { policy = "write" }`, "acl = \"write\"\nkey \"a\" { policy = \"deny\" }",
	}
	var secrets, accessors, policies, roles, bound []string
	for i, text := range rules {
		p := must(s.setPolicy(root, acl.Policy{Name: fmt.Sprintf("p%d", i), Rules: text}))(t)
		policies = append(policies, p.ID)
	}
	for i := range 3 {
		roles = append(roles, must(s.setRole(root, acl.Role{Name: fmt.Sprintf("r%d", i), Policies: []acl.Link{{ID: pick(r, policies)}}}))(t).ID)
		bound = append(bound, must(s.setRule(root, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: fmt.Sprintf("s%d", i), Selector: "value.n == nobody"}))(t).ID)
	}
	for range 12 {
		k := acl.Token{}
		for range r.IntN(3) {
			k.Policies = append(k.Policies, acl.Link{ID: pick(r, policies)})
		}
		if r.IntN(3) == 0 {
			k.Roles = append(k.Roles, acl.Link{ID: pick(r, roles)})
		}
		if r.IntN(6) == 0 {
			k.TemplatedPolicies = append(k.TemplatedPolicies, acl.TemplatedPolicy{TemplateName: "builtin/nomad-server"})
		}
		got := s.createToken(k)
		secrets, accessors = append(secrets, got.SecretID), append(accessors, got.AccessorID)
	}
	secrets = append(secrets, "", "anonymous", unused, "allow", root, root)
	policies, accessors = append(policies, unused, acl.ManagementID), append(accessors, unused, acl.AnonymousID)

	links := func() []acl.Link { return []acl.Link{{ID: pick(r, policies)}} }
	writes := map[string]func(secret string) error{
		"token create": func(x string) error {
			return drop(s.setToken(x, access.TokenSetRequest{Create: true, Token: acl.Token{Policies: links(), Local: r.IntN(2) == 0}}))
		},
		"token update": func(x string) error {
			return drop(s.setToken(x, access.TokenSetRequest{Token: acl.Token{AccessorID: pick(r, accessors), Policies: links()}}))
		},
		"token clone":   func(x string) error { return drop(s.cloneToken(x, pick(r, accessors), "c")) },
		"token delete":  func(x string) error { return s.deleteToken(x, pick(r, accessors)) },
		"policy create": func(x string) error { return drop(s.setPolicy(x, acl.Policy{Name: fmt.Sprintf("n%d", r.IntN(1000))})) },
		"policy update": func(x string) error {
			return drop(s.setPolicy(x, acl.Policy{ID: pick(r, policies), Name: "u", Rules: pick(r, rules)}))
		},
		"policy delete": func(x string) error { return s.deletePolicy(x, pick(r, policies)) },
		"role create": func(x string) error {
			return drop(s.setRole(x, acl.Role{Name: fmt.Sprintf("n%d", r.IntN(1000)), Policies: links()}))
		},
		"role update":   func(x string) error { return drop(s.setRole(x, acl.Role{ID: pick(r, roles), Name: "u"})) },
		"role delete":   func(x string) error { return s.deleteRole(x, pick(r, roles)) },
		"method set":    func(x string) error { return drop(s.setMethod(x, g.method(pick(r, []string{"jm", "new"})))) },
		"method delete": func(x string) error { return s.deleteMethod(x, pick(r, []string{"jm", "new"})) },
		"rule create": func(x string) error {
			return drop(s.setRule(x, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindPolicy, BindName: "p0"}))
		},
		"rule update": func(x string) error {
			return drop(s.setRule(x, acl.BindingRule{ID: pick(r, bound), BindType: acl.BindNode, BindName: "n"}))
		},
		"rule delete":         func(x string) error { return s.deleteRule(x, pick(r, bound)) },
		"bootstrap":           func(string) error { return drop(s.bootstrap("")) },
		"login without proof": func(string) error { return drop(s.login("jm", "x.y.z", nil)) },
		"logout":              s.logout,
	}
	read := func(f func(req *access.ReadRequest) error) func(string) error {
		return func(x string) error {
			req := &access.ReadRequest{}
			req.Token = x
			return f(req)
		}
	}
	reads := map[string]func(secret string) error{
		"tokens": func(x string) error { return drop(s.listTokens(x, access.TokenListRequest{})) },
		"token": func(x string) error {
			return drop(s.readToken(x, access.TokenReadRequest{AccessorID: acl.AnonymousID, Expanded: true}))
		},
		"policy":  func(x string) error { return drop(s.readPolicy(x, acl.ManagementID, "")) },
		"by name": func(x string) error { return drop(s.readPolicy(x, "", acl.ReadOnlyName)) },
		"role":    func(x string) error { return drop(s.readRole(x, "", "r0")) },
		"policies": read(func(q *access.ReadRequest) error {
			return drop(access.PolicyListCall.Call(t.Context(), s.Caller(), &access.ListRequest{Options: q.Options}))
		}),
		"roles": read(func(q *access.ReadRequest) error {
			return drop(access.RoleListCall.Call(t.Context(), s.Caller(), &access.RoleListRequest{Options: q.Options}))
		}),
		"methods": read(func(q *access.ReadRequest) error {
			return drop(access.AuthMethodListCall.Call(t.Context(), s.Caller(), &access.ListRequest{Options: q.Options}))
		}),
		"method": read(func(q *access.ReadRequest) error {
			q.Name = "jm"
			return drop(access.AuthMethodReadCall.Call(t.Context(), s.Caller(), q))
		}),
		"rules": read(func(q *access.ReadRequest) error {
			return drop(access.BindingRuleListCall.Call(t.Context(), s.Caller(), &access.BindingRuleListRequest{Options: q.Options}))
		}),
		"rule": read(func(q *access.ReadRequest) error {
			q.ID = unused
			return drop(access.BindingRuleReadCall.Call(t.Context(), s.Caller(), q))
		}),
		"templates": read(func(q *access.ReadRequest) error {
			return drop(access.TemplateListCall.Call(t.Context(), s.Caller(), &access.TemplateListRequest{Target: q.Target}))
		}),
	}
	names, readNames := slices.Sorted(maps.Keys(writes)), slices.Sorted(maps.Keys(reads)) // the seed alone decides what is called
	denied := func(err error) bool {
		_, is := errors.AsType[*acl.DeniedError](err)
		return is
	}
	allowed, refused := 0, 0
	for range 800 {
		secret := pick(r, secrets)
		z, err := s.control.Resolve(t.Context(), secret)
		name, readName := pick(r, names), pick(r, readNames)
		before := dump(t, s.Store)
		got := writes[name](secret)
		changed := !bytes.Equal(before, dump(t, s.Store))
		switch {
		case err != nil || !z.May(acl.ACL, acl.Write, ""):
			refused++
			if changed {
				t.Fatalf("%s by a token that may not write has changed something: %v", name, got)
			}
			if got == nil {
				t.Fatalf("%s was answered to a token that may not write", name)
			}
			if err == nil && name != "bootstrap" && name != "logout" && name != "login without proof" && !denied(got) {
				t.Fatalf("%s by a token that may not write: %v", name, got)
			}
		default:
			allowed++
			if denied(got) {
				t.Fatalf("%s by a token that may: %v", name, got)
			}
		}
		if z, err = s.control.Resolve(t.Context(), secret); err != nil {
			if got := reads[readName](secret); wireerr.Status(got) != wireerr.Status(err) {
				t.Fatalf("reading %s without a token: %v, want %v", readName, got, err)
			}
			continue
		}
		if got := reads[readName](secret); denied(got) == z.May(acl.ACL, acl.Read, "") {
			t.Fatalf("reading %s: %v, though the token may: %v", readName, got, !denied(got))
		}
	}
	if allowed < 50 || refused < 50 {
		t.Errorf("%d calls were allowed and %d refused: this tests little", allowed, refused)
	}
}

// A wireRecord is a command in a log entry.
type wireRecord struct {
	Kind    fsm.Kind `cbor:"k"`
	Version uint8    `cbor:"v"`
	Data    []byte   `cbor:"d"`
}

// FuzzAppliers applies commands that nobody checked: they fail, or leave a state that can be saved and restored, in
// which what must be unique is (threats, class 9).
func FuzzAppliers(f *testing.F) {
	seed := func(kind fsm.Kind, v any) {
		data, err := cbor.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint16(kind), data, uint16(fsm.ACLPolicies), data)
	}
	seed(fsm.ACLTokens, map[string]any{"Create": true, "Set": []any{map[string]any{"AccessorID": accessor, "SecretID": secret, "Policies": []any{map[string]any{"ID": acl.ManagementID}}}}})
	seed(fsm.ACLTokens, map[string]any{"Delete": []any{accessor, ""}, "Expired": "2020-01-01T00:00:00Z"})
	seed(fsm.ACLPolicies, map[string]any{"Create": true, "Set": []any{map[string]any{"ID": unused, "Name": "p", "Rules": "key {"}}})
	seed(fsm.ACLRoles, map[string]any{"Create": true, "Prune": true, "Set": []any{map[string]any{"ID": unused, "Name": "r", "TemplatedPolicies": []any{map[string]any{"TemplateName": "x"}}}}})
	seed(fsm.ACLAuthMethods, map[string]any{"Set": []any{map[string]any{"Name": "m", "Type": "jwt", "Config": map[string]any{"a": []any{1}}}}})
	seed(fsm.ACLBindingRules, map[string]any{"Set": []any{nil}})
	seed(fsm.ACLBootstrap, map[string]any{"Token": map[string]any{"AccessorID": accessor, "SecretID": secret}})
	seed(fsm.ACLBootstrap, map[string]any{})
	f.Fuzz(func(t *testing.T, kind1 uint16, data1 []byte, kind2 uint16, data2 []byte) {
		s := newRooted(t)
		entry, err := cbor.Marshal([]wireRecord{{fsm.Kind(kind1), 1, data1}, {fsm.Kind(kind2), 1, data2}})
		if err != nil {
			t.Fatal(err)
		}
		s.Appliers.Apply(s.Store, s.Index()+1, entry)
		first := dump(t, s.Store)
		copied := state.New()
		if err := copied.Restore(bytes.NewReader(first)); err != nil {
			t.Fatalf("the state cannot be restored: %v", err)
		}
		if !bytes.Equal(dump(t, copied), first) {
			t.Fatal("the restored state differs")
		}
		v := s.Store.View()
		_, all := v.ACLTokens()
		seen := map[string]bool{}
		for _, k := range all {
			if seen[k.SecretID] || v.ACLTokenBySecret(state.HashSecret(k.SecretID)) != k {
				t.Fatalf("secret of %s is another's too", k.AccessorID)
			}
			seen[k.SecretID] = true
			for _, l := range k.Policies {
				if _, p := v.ACLPolicy(l.ID); p == nil {
					t.Fatalf("token %s refers to no policy", k.AccessorID)
				}
			}
			_, _ = s.control.Resolve(t.Context(), k.SecretID)
		}
	})
}
