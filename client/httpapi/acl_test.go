package httpapi

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// What can be refused without asking the servers is, in the words that clients know.
func TestACLRequestsThatAreRefusedHere(t *testing.T) {
	s, f := newServer(t, Config{ACLEnabled: true}, nil)
	run(t, s, []step{
		{"PUT", "/v1/acl/token", "", 400, "Token decoding failed: EOF"},
		{"PUT", "/v1/acl/token", `{"Rules":"x"}`, 400, `Token decoding failed: json: unknown field "Rules"`},
		{"GET", "/v1/acl/token/", "", 400, "Missing token AccessorID"},
		{"PUT", "/v1/acl/token/a", `{"AccessorID":"b"}`, 400, "Token Accessor ID in URL and payload do not match"},
		{"PUT", "/v1/acl/token/a/clone", "", 400, "Token decoding failed: EOF"},
		{"POST", "/v1/acl/token", `{}`, 405, "method POST not allowed"},
		{"PUT", "/v1/acl/policy", `{"ID":"x"}`, 400, "Cannot specify the ID when creating a new policy"},
		{"PUT", "/v1/acl/policy/a", `{"ID":"b"}`, 400, "Policy ID in URL and payload do not match"},
		{"PUT", "/v1/acl/policy", `{`, 400, "Policy decoding failed: unexpected EOF"},
		{"GET", "/v1/acl/policy/", "", 400, "Missing policy ID"},
		{"GET", "/v1/acl/policy/name/", "", 400, "Missing policy Name"},
		{"GET", "/v1/acl/role/", "", 400, "Missing role ID"},
		{"GET", "/v1/acl/role/name/", "", 400, "Missing role Name"},
		{"PUT", "/v1/acl/role/a", `{"ID":"b"}`, 400, "Role ID in URL and payload do not match"},
		{"GET", "/v1/acl/auth-method/", "", 400, "Missing auth method name"},
		{"PUT", "/v1/acl/auth-method/a", `{"Name":"b"}`, 400, "AuthMethod Name in URL and payload do not match"},
		{"GET", "/v1/acl/binding-rule/", "", 400, "Missing binding rule ID"},
		{"PUT", "/v1/acl/binding-rule", `{"ID":"b"}`, 400, "BindingRule ID in URL and payload do not match"},
		{"GET", "/v1/acl/templated-policy/name/", "", 400, "Missing templated policy Name"},
		{"PUT", "/v1/acl/bootstrap", `{"x":1}`, 400, `Request decoding failed: json: unknown field "x"`},
		{"POST", "/v1/acl/login", "", 400, "Failed to decode request body: EOF"},
		{"POST", "/v1/acl/logout", "", 401, "Supplied token does not exist"},
		{"POST", "/v1/internal/acl/authorize", "", 400, "Failed to decode request body: EOF"},
		{"POST", "/v1/internal/acl/authorize", "[]", 200, "[]"},
		{"POST", "/v1/internal/acl/authorize", "[" + strings.Repeat("{},", 64) + "{}]", 400, "Refusing to process more than 64 authorizations at once"},
	})
	if len(f.calls) != 0 {
		t.Errorf("the servers were asked: %v", f.calls)
	}
	s, _ = newServer(t, Config{}, nil)
	run(t, s, []step{
		{"GET", "/v1/acl/tokens", "", 401, "ACL support disabled"}, {"PUT", "/v1/acl/bootstrap", "", 401, "ACL support disabled"},
		{"POST", "/v1/internal/acl/authorize", "[]", 401, "ACL support disabled"},
	})
}

// Neither a bootstrap nor a login is made on behalf of the agent's default token.
func TestLoginsCarryNoToken(t *testing.T) {
	s, f := newServer(t, Config{ACLEnabled: true, DefaultToken: func() string { return "default" }}, map[string]any{
		access.LoginCall.Name:     &access.TokenReply{Token: &acl.Token{SecretID: "s"}},
		access.BootstrapCall.Name: &access.TokenReply{Token: &acl.Token{SecretID: "s"}},
		access.TokenReadCall.Name: &access.TokenReply{Token: &acl.Token{SecretID: "s"}},
	})
	do(s, "POST", "/v1/acl/login", `{"AuthMethod":"m","BearerToken":"b","Meta":{"k":"v"}}`)
	if w := do(s, "PUT", "/v1/acl/bootstrap", ""); !strings.HasPrefix(w.Body.String(), `{"ID":"s",`) {
		t.Errorf("bootstrap: %s", w.Body)
	}
	do(s, "GET", "/v1/acl/token/self", "")
	want := []any{
		&access.LoginRequest{AuthMethod: "m", BearerToken: "b", Meta: map[string]string{"k": "v"}}, &access.BootstrapRequest{},
		func() any {
			r := &access.TokenReadRequest{Self: true}
			r.Token = "default"
			return r
		}(),
	}
	var got []any
	for _, c := range f.calls {
		got = append(got, c.req)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAuthMethodsShowTheirTTLAsText(t *testing.T) {
	m := &acl.AuthMethod{Name: "m", Type: "jwt", MaxTokenTTL: 5 * 60e9, Config: map[string]any{"BoundIssuer": "x"}, CreateIndex: 1, ModifyIndex: 2}
	s, f := newServer(t, Config{ACLEnabled: true}, map[string]any{
		access.AuthMethodReadCall.Name: &access.AuthMethodReply{AuthMethod: m},
		access.AuthMethodListCall.Name: &access.AuthMethodListReply{AuthMethods: []*acl.AuthMethod{m}},
		access.AuthMethodSetCall.Name:  &access.AuthMethodReply{AuthMethod: m},
	})
	run(t, s, []step{
		{"GET", "/v1/acl/auth-method/m", "", 200, `{"Name":"m","Type":"jwt","MaxTokenTTL":"5m0s","Config":{"BoundIssuer":"x"},"CreateIndex":1,"ModifyIndex":2}`},
		{"GET", "/v1/acl/auth-methods", "", 200, `[{"Name":"m","Type":"jwt","MaxTokenTTL":"5m0s","CreateIndex":1,"ModifyIndex":2}]`},
		{"PUT", "/v1/acl/auth-method", `{"Name":"m","MaxTokenTTL":"1h"}`, 200, `{"Name":"m",…`},
		{"PUT", "/v1/acl/auth-method", `{"Name":"m","MaxTokenTTL":60000000000}`, 200, `{"Name":"m",…`},
	})
	for i, want := range []int64{3600e9, 60e9} {
		if got := f.calls[2+i].req.(*access.AuthMethodSetRequest).AuthMethod.MaxTokenTTL; int64(got) != want {
			t.Errorf("request %d has TTL %v", i, got)
		}
	}
}

// Only who presented a token is told which rule is missing, whether the agent or a server refused.
func TestRefusalsNameTheMissingRule(t *testing.T) {
	denied := &acl.DeniedError{Accessor: "a1", Resource: acl.Key, Access: acl.Write, Name: "app/x"}
	anonymous := &acl.DeniedError{Resource: acl.Key, Access: acl.Write, Name: "app/x"}
	var fail error
	s, _ := newAgent(t, Config{
		ACLEnabled: true, Caller: &fakeCaller{answer: map[string]any{
			kv.ApplyCall.Name: func(any) (any, error) { return nil, fail },
		}},
		Authorize: func(context.Context, string) (*acl.Authorizer, error) { return acl.New(nothing{}, "a1"), nil },
	})
	t.Run("a transaction", func(t *testing.T) {
		s, _ := newServer(t, Config{ACLEnabled: true}, map[string]any{kv.TxnCall.Name: &kv.TxnReply{Errors: []kv.TxnError{
			{OpIndex: 0, What: denied.Error()}, {OpIndex: 1, What: denied.Error()},
			{OpIndex: 2, What: (&acl.DeniedError{Accessor: "a1", Resource: acl.Node, Access: acl.Write, Name: "n"}).Error()}, {OpIndex: 3, What: "stale"},
		}}})
		w := do(s, "PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"app/x","Value":""}}]`, "X-Consul-Token", "t")
		want := []string{`key "app/x" { policy = "write" }`, `node "n" { policy = "write" }`}
		if diff := cmp.Diff(want, w.Header().Values("X-Sarn-Missing-Rule")); w.Code != 409 || diff != "" {
			t.Errorf("%d %s (-want +got):\n%s", w.Code, w.Body, diff)
		}
	})
	for _, tt := range []struct {
		name, method, target, token string
		err                         error
		want                        string
	}{
		{"by a server", "PUT", "/v1/kv/app/x", "t", denied, `key "app/x" { policy = "write" }`},
		{"by another server", "PUT", "/v1/kv/app/x", "t", wireerr.Remote(403, denied.Error()), `key "app/x" { policy = "write" }`},
		{"a tree", "DELETE", "/v1/kv/app/?recurse", "t", wireerr.Remote(0, strings.ReplaceAll(denied.Error(), "app/x", "app/")), `key_prefix "app/" { policy = "write" }`},
		{"by the agent", "GET", "/v1/agent/self", "t", nil, `agent "node1" { policy = "read" }`},
		{"anonymous", "PUT", "/v1/kv/app/x", "", anonymous, ""},
		{"anonymous in spite of a token", "PUT", "/v1/kv/app/x", "anonymous", anonymous, ""},
		{"no reason", "PUT", "/v1/kv/app/x", "t", wireerr.ErrPermissionDenied, ""},
		{"unknown token", "PUT", "/v1/kv/app/x", "t", wireerr.ErrTokenNotFound, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fail = tt.err
			w := do(s, tt.method, tt.target, "", "X-Consul-Token", tt.token)
			if got := w.Header().Get("X-Sarn-Missing-Rule"); w.Code != 403 || got != tt.want {
				t.Errorf("%d %s\ngot  %s\nwant %s", w.Code, w.Body, got, tt.want)
			}
		})
	}
}
