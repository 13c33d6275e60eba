package aclrpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/aclrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// root is the secret of the token that test servers begin with.
const root = "e95b599e-166e-7d80-08ad-aee76e7ddf19"

// A server has access control.
type server struct {
	*rpctest.Server
	control *aclrpc.Control
	t       testing.TB
}

// newServer returns a server with these settings, and with access control on, as its leader has set it up.
func newServer(t testing.TB, cfg aclrpc.Config) *server {
	t.Helper()
	cfg.Enabled, cfg.Datacenter, cfg.Node = true, "dc1", "node1"
	if cfg.DefaultPolicy == "" {
		cfg.DefaultPolicy = aclrpc.Deny
	}
	s := bareServer(t, cfg)
	if err := s.control.Initialize(t.Context(), s.Store, s.Apply); err != nil {
		t.Fatal(err)
	}
	return s
}

func bareServer(t testing.TB, cfg aclrpc.Config) *server {
	srv := rpctest.New()
	s := &server{srv, aclrpc.New(cfg, srv.Store), t}
	s.control.Register(&s.Registry, &s.Appliers)
	s.Resolve = func(token string) (*acl.Authorizer, error) { return s.control.Resolve(context.Background(), token) }
	return s
}

// newRooted returns a server whose first token has the secret root.
func newRooted(t testing.TB) *server {
	t.Helper()
	return newServer(t, aclrpc.Config{InitialManagement: root})
}

// setToken, setPolicy and so on make or change an object with the token that has this secret.
func (s *server) setToken(secret string, req access.TokenSetRequest) (*acl.Token, error) {
	req.Target.Token = secret
	reply, err := access.TokenSetCall.Call(s.t.Context(), s.Caller(), &req)
	if err != nil {
		return nil, err
	}
	return reply.Token, nil
}

func (s *server) createToken(k acl.Token) *acl.Token {
	s.t.Helper()
	return must(s.setToken(root, access.TokenSetRequest{Create: true, Token: k}))(s.t)
}

func (s *server) setPolicy(secret string, p acl.Policy) (*acl.Policy, error) {
	req := &access.PolicySetRequest{Policy: p}
	req.Token = secret
	reply, err := access.PolicySetCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return nil, err
	}
	return reply.Policy, nil
}

func (s *server) setRole(secret string, r acl.Role) (*acl.Role, error) {
	req := &access.RoleSetRequest{Role: r}
	req.Token = secret
	reply, err := access.RoleSetCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return nil, err
	}
	return reply.Role, nil
}

func (s *server) setMethod(secret string, m acl.AuthMethod) (*acl.AuthMethod, error) {
	req := &access.AuthMethodSetRequest{AuthMethod: m}
	req.Token = secret
	reply, err := access.AuthMethodSetCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return nil, err
	}
	return reply.AuthMethod, nil
}

func (s *server) setRule(secret string, r acl.BindingRule) (*acl.BindingRule, error) {
	req := &access.BindingRuleSetRequest{BindingRule: r}
	req.Token = secret
	reply, err := access.BindingRuleSetCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return nil, err
	}
	return reply.BindingRule, nil
}

func (s *server) deleteToken(secret, id string) error {
	req := &access.DeleteRequest{ID: id}
	req.Token = secret
	_, err := access.TokenDeleteCall.Call(s.t.Context(), s.Caller(), req)
	return err
}

func (s *server) deletePolicy(secret, id string) error {
	req := &access.DeleteRequest{ID: id}
	req.Token = secret
	_, err := access.PolicyDeleteCall.Call(s.t.Context(), s.Caller(), req)
	return err
}

func (s *server) deleteRole(secret, id string) error {
	req := &access.DeleteRequest{ID: id}
	req.Token = secret
	_, err := access.RoleDeleteCall.Call(s.t.Context(), s.Caller(), req)
	return err
}

func (s *server) deleteMethod(secret, name string) error {
	req := &access.DeleteRequest{ID: name}
	req.Token = secret
	_, err := access.AuthMethodDeleteCall.Call(s.t.Context(), s.Caller(), req)
	return err
}

func (s *server) deleteRule(secret, id string) error {
	req := &access.DeleteRequest{ID: id}
	req.Token = secret
	_, err := access.BindingRuleDeleteCall.Call(s.t.Context(), s.Caller(), req)
	return err
}

func (s *server) readToken(secret string, req access.TokenReadRequest) (*access.TokenReply, error) {
	req.Token = secret
	return access.TokenReadCall.Call(s.t.Context(), s.Caller(), &req)
}

func (s *server) listTokens(secret string, req access.TokenListRequest) ([]*acl.Token, error) {
	req.Token = secret
	reply, err := access.TokenListCall.Call(s.t.Context(), s.Caller(), &req)
	if err != nil {
		return nil, err
	}
	return reply.Tokens, nil
}

func (s *server) cloneToken(secret, accessor, description string) (*acl.Token, error) {
	req := &access.TokenCloneRequest{AccessorID: accessor, Description: description}
	req.Token = secret
	reply, err := access.TokenCloneCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return nil, err
	}
	return reply.Token, nil
}

func (s *server) readPolicy(secret, id, name string) (*acl.Policy, error) {
	req := &access.ReadRequest{ID: id, Name: name}
	req.Token = secret
	reply, err := access.PolicyReadCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return nil, err
	}
	return reply.Policy, nil
}

func (s *server) readRole(secret, id, name string) (*acl.Role, error) {
	req := &access.ReadRequest{ID: id, Name: name}
	req.Token = secret
	reply, err := access.RoleReadCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return nil, err
	}
	return reply.Role, nil
}

func (s *server) bootstrap(secret string) (*acl.Token, error) {
	reply, err := access.BootstrapCall.Call(s.t.Context(), s.Caller(), &access.BootstrapRequest{Secret: secret})
	if err != nil {
		return nil, err
	}
	return reply.Token, nil
}

func (s *server) login(method, bearer string, meta map[string]string) (*acl.Token, error) {
	reply, err := access.LoginCall.Call(s.t.Context(), s.Caller(), &access.LoginRequest{AuthMethod: method, BearerToken: bearer, Meta: meta})
	if err != nil {
		return nil, err
	}
	return reply.Token, nil
}

func (s *server) logout(secret string) error {
	req := &access.LogoutRequest{}
	req.Token = secret
	_, err := access.LogoutCall.Call(s.t.Context(), s.Caller(), req)
	return err
}

// may reports whether the token with this secret has a right.
func (s *server) may(secret string, r acl.Resource, a acl.Access, name string) bool {
	s.t.Helper()
	return must(s.control.Resolve(s.t.Context(), secret))(s.t).May(r, a, name)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// drop keeps the error of a call.
func drop[T any](_ T, err error) error { return err }

// An expectation is the error a call is to give.
type expectation struct {
	name   string
	err    error
	status int
	text   string // all of it; "…" at the end stands for more
}

func check(t *testing.T, all []expectation) {
	t.Helper()
	for _, x := range all {
		if x.err == nil {
			t.Errorf("%s: no error, want %q", x.name, x.text)
			continue
		}
		got, want := x.err.Error(), x.text
		ok := got == want
		if cut, begins := strings.CutSuffix(want, "…"); begins {
			ok = strings.HasPrefix(got, cut)
		}
		if !ok || wireerr.Status(x.err) != x.status {
			t.Errorf("%s: status %d, error\n%s\nwant %d\n%s", x.name, wireerr.Status(x.err), got, x.status, want)
		}
	}
}

// A signer makes JSON Web Tokens.
type signer struct {
	key *ecdsa.PrivateKey
	pem string
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
}

// method returns an auth method that believes the signer.
func (g *signer) method(name string) acl.AuthMethod {
	return acl.AuthMethod{Name: name, Type: acl.MethodJWT, Config: map[string]any{
		"JWTValidationPubKeys": []any{g.pem}, "BoundIssuer": "test-iss", "BoundAudiences": []any{"consul-test"},
		"JWTSupportedAlgs": []any{"ES256"},
		"ClaimMappings":    map[string]any{"name": "n", "/nested/team": "team", "num": "num"}, "ListClaimMappings": map[string]any{"groups": "g"},
	}}
}

// token signs claims, beside those that the method asks for.
func (g *signer) token(t testing.TB, claims map[string]any) string {
	t.Helper()
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: g.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	all := map[string]any{"iss": "test-iss", "aud": []string{"consul-test"}, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	for k, v := range claims {
		all[k] = v
	}
	text, err := jwt.Signed(sig).Claims(all).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}
