package aclrpc_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/aclrpc"
	"github.com/sarnmesh/sarn/server/authmethod"
)

// newReaching returns a rooted server whose logins reach this machine.
func newReaching(t *testing.T) *server {
	return newServer(t, aclrpc.Config{InitialManagement: root, Methods: authmethod.Env{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}})
}

func (s *server) readMethod(secret, name string) (*acl.AuthMethod, error) {
	req := &access.ReadRequest{Name: name}
	req.Token = secret
	reply, err := access.AuthMethodReadCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return nil, err
	}
	return reply.AuthMethod, nil
}

func TestLoginAtAnOpenIDConnectProvider(t *testing.T) {
	i, s := testkit.NewIssuer(t), newReaching(t)
	must(s.setMethod(root, acl.AuthMethod{Name: "office", Type: acl.MethodJWT, Config: map[string]any{
		"OIDCDiscoveryURL": i.URL, "BoundAudiences": []any{"sarn"}, "ClaimMappings": map[string]any{"team": "team"}, "ListClaimMappings": map[string]any{"groups": "groups"},
	}}))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "office", BindType: acl.BindService, BindName: "${value.team}-api", Selector: `"dev" in list.groups`}))(t)
	dev := map[string]any{"aud": "sarn", "team": "Blue", "groups": []any{"dev"}}
	for range 3 {
		k := must(s.login("office", i.Sign(dev), nil))(t)
		if len(k.ServiceIdentities) != 1 || k.ServiceIdentities[0].ServiceName != "blue-api" {
			t.Errorf("got %+v", k)
		}
	}
	if n := i.Asked("/keys"); n != 2 { // when the method was written, and at the first login
		t.Errorf("keys were fetched %d times", n)
	}
	// A method that changes is asked for anew.
	must(s.setMethod(root, acl.AuthMethod{Name: "office", Type: acl.MethodJWT, Config: map[string]any{"OIDCDiscoveryURL": i.URL, "BoundAudiences": []any{"other"}}}))(t)
	if _, err := s.login("office", i.Sign(dev), nil); err == nil || err.Error() != "error validating claims: aud claim does not match any bound audience" {
		t.Errorf("got %v", err)
	}
}

// Class 8, injection by claims: what a token says becomes a name only if it is one.
func TestThreat08ClaimsBindNamesAlone(t *testing.T) {
	i, s := testkit.NewIssuer(t), newReaching(t)
	must(s.setMethod(root, acl.AuthMethod{Name: "office", Type: acl.MethodJWT, Config: map[string]any{
		"JWTValidationPubKeys": []any{i.PEM()}, "ClaimMappings": map[string]any{"team": "team"},
	}}))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "office", BindType: acl.BindService, BindName: "team-${value.team}"}))(t)
	for _, team := range []string{
		``, `x" { policy = "write" } key_prefix "`, "x\nkey_prefix \"\" { policy = \"write\" }", `../admin`, `a b`, `*`, `${value.team}`, `é`, "x\x00", `x,y`, strings.Repeat("x", 300),
	} {
		if k, err := s.login("office", i.Sign(map[string]any{"team": team}), nil); err == nil {
			t.Errorf("team %q gave %+v", team, k)
		}
	}
	if _, err := s.login("office", i.Sign(map[string]any{"team": "x-1"}), nil); err != nil {
		t.Error(err)
	}
}

func TestLoginOfAServiceAccount(t *testing.T) {
	i, s := testkit.NewIssuer(t), newReaching(t)
	own, pod := i.Sign(map[string]any{"sub": "sarn"}), i.Sign(map[string]any{"sub": "pod"})
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review struct{ Spec struct{ Token string } }
		switch {
		case r.Header.Get("Authorization") != "Bearer "+own:
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodGet:
			_, _ = io.WriteString(w, `{"metadata":{"uid":"u1"}}`)
		case json.NewDecoder(r.Body).Decode(&review) == nil && review.Spec.Token == pod:
			_, _ = io.WriteString(w, `{"status":{"authenticated":true,"user":{"username":"system:serviceaccount:shop:web","uid":"u1"}}}`)
		default:
			_, _ = io.WriteString(w, `{"status":{"authenticated":false}}`)
		}
	}))
	defer api.Close()
	must(s.setMethod(root, acl.AuthMethod{Name: "k8s", Type: acl.MethodKubernetes, Config: map[string]any{
		"Host": api.URL, "ServiceAccountJWT": own, "CACert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})),
	}}))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "k8s", BindType: acl.BindService, BindName: "${serviceaccount.name}", Selector: "serviceaccount.namespace == shop"}))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "k8s", BindType: acl.BindNode, BindName: "n", Selector: "serviceaccount.namespace != shop"}))(t)
	k := must(s.login("k8s", pod, nil))(t)
	if len(k.ServiceIdentities) != 1 || k.ServiceIdentities[0].ServiceName != "web" || k.NodeIdentities != nil {
		t.Errorf("got %+v", k)
	}
	if _, err := s.login("k8s", i.Sign(map[string]any{"sub": "other"}), nil); err == nil || err.Error() != "lookup failed: service account jwt not valid" {
		t.Errorf("got %v", err)
	}

	// Class 4, secrets readable with a read right.
	must(s.setPolicy(root, acl.Policy{Name: "reader", Rules: `acl = "read"`}))(t)
	reader := s.createToken(acl.Token{Policies: []acl.Link{{Name: "reader"}}})
	if m := must(s.readMethod(reader.SecretID, "k8s"))(t); m.Config["ServiceAccountJWT"] != acl.Hidden || m.Config["Host"] != api.URL {
		t.Errorf("a reader sees %v", m.Config)
	}
	if m := must(s.readMethod(root, "k8s"))(t); m.Config["ServiceAccountJWT"] != own {
		t.Errorf("who may write sees %v", m.Config)
	}
}
