package introrpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	authjwt "github.com/sarnmesh/sarn/server/authmethod/jwt"
	"github.com/sarnmesh/sarn/server/introrpc"
)

const (
	serverSecret = "the-secret-of-the-servers"
	gossipKey    = "the-gossip-key"
	agentToken   = "the-token-of-the-agent"
	nodeToken    = "may-write-the-node"
)

// signatory stands for the other servers: it signs for a token, admits for the secret of the servers, and notes what it is
// asked.
type signatory struct{ asked []string }

func (l *signatory) Call(_ context.Context, d rpc.Descriptor, req, resp any) error {
	l.asked = append(l.asked, d.Name)
	switch req := req.(type) {
	case *ca.RootsRequest:
		resp.(*ca.RootsReply).TrustDomain = "x.consul"
	case *ca.SignRequest:
		if req.Token != nodeToken {
			return errors.New("Permission denied")
		}
		resp.(*ca.SignReply).Leaf = ca.Leaf{CertPEM: "cert", Agent: strings.TrimPrefix(req.CSR, "for ")}
	case *intro.AdmitRequest:
		if req.Secret != serverSecret {
			return errors.New("Permission denied")
		}
		*resp.(*intro.AdmitReply) = intro.AdmitReply{CertPEM: "cert", Token: agentToken}
	default:
		return errors.New("not asked for")
	}
	return nil
}

// signer makes web tokens.
type signer struct {
	key    *ecdsa.PrivateKey
	public string // PEM
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

func (s *signer) sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(sig).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// claims are those of a good token for a node, with changes.
func claims(node string, changes ...any) map[string]any {
	c := map[string]any{"iss": "us", "aud": "sarn", "sub": node, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "node": node}
	for i := 0; i < len(changes); i += 2 {
		c[changes[i].(string)] = changes[i+1]
	}
	return c
}

// introducer returns an introducer that gives out everything it can, and the leader behind it.
func introducer(t testing.TB, s *signer, sign bool) (*introrpc.Introducer, *signatory) {
	t.Helper()
	cfg := introrpc.Config{
		Datacenter: "dc1", Sign: sign, ServerRoots: func() []string { return []string{"root"} }, VerifyServerHostname: func() bool { return true },
		Settings: func() intro.Settings {
			return intro.Settings{Datacenter: "dc1", ACL: intro.ACL{Enabled: true}, Gossip: intro.Gossip{Key: gossipKey}}
		},
	}
	if s != nil {
		cfg.Tokens = &authjwt.Config{
			JWTValidationPubKeys: []string{s.public}, BoundIssuer: "us", BoundAudiences: []string{"sarn"}, ClaimMappings: map[string]string{"node": "node"},
		}
		cfg.Assertions = []string{`value.node == "${node}"`}
	}
	in, err := introrpc.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := &signatory{}
	in.Connect(l, l, func() string { return serverSecret })
	return in, l
}

// call makes a call as it comes off the wire.
func call(in *introrpc.Introducer, name string, data []byte) (any, error) {
	methods := in.Methods()
	i := slices.IndexFunc(methods, func(m rpcwire.Method) bool { return m.Name == name })
	return methods[i].Handle(context.Background(), rpcwire.Peer{}, func(v any) error { return rpc.Unmarshal(data, v) })
}

func encoded(t testing.TB, v any) []byte {
	t.Helper()
	data, err := rpc.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func applicant(node string) intro.Applicant {
	return intro.Applicant{Datacenter: "dc1", Node: node, CSR: "for " + node}
}

// A certificate is for the one who may write the node, and no other node's.
func TestSign(t *testing.T) {
	in, _ := introducer(t, nil, true)
	off, _ := introducer(t, nil, false)
	change := func(f func(*intro.SignRequest)) *intro.SignRequest {
		r := &intro.SignRequest{Applicant: applicant("n1"), Token: nodeToken}
		f(r)
		return r
	}
	for _, tt := range []struct {
		name string
		in   *introrpc.Introducer
		req  *intro.SignRequest
		err  string
	}{
		{"good", in, change(func(*intro.SignRequest) {}), ""},
		{"turned off", off, change(func(*intro.SignRequest) {}), "auto_encrypt.allow_tls must be enabled on the servers"},
		{"no right", in, change(func(r *intro.SignRequest) { r.Token = "" }), "Permission denied"},
		{"another datacenter", in, change(func(r *intro.SignRequest) { r.Datacenter = "dc2" }), `this is datacenter "dc1", not "dc2"`},
		{"no name", in, change(func(r *intro.SignRequest) { r.Node = "" }), "invalid node name"},
		{"more than a name", in, change(func(r *intro.SignRequest) { r.Node = `n1" or "a" == "a` }), "invalid node name"},
		{"another node's certificate", in, change(func(r *intro.SignRequest) { r.CSR = "for n2" }), "not for the agent of the node"},
	} {
		reply, err := call(tt.in, intro.SignName, encoded(t, tt.req))
		if tt.err == "" {
			if id, ok := reply.(*intro.Identity); err != nil || !ok || id.CertPEM != "cert" || !id.VerifyServerHostname || !slices.Equal(id.ServerRoots, []string{"root"}) {
				t.Errorf("%s: %+v, %v", tt.name, reply, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.err) || reply != nil {
			t.Errorf("%s: %+v, %v; want %q", tt.name, reply, err, tt.err)
		}
	}
}

// A configuration is for the node that a web token names; what is wrong with another token is not told.
func TestConfigure(t *testing.T) {
	ours, theirs := newSigner(t), newSigner(t)
	in, l := introducer(t, ours, false)
	off, _ := introducer(t, nil, true)
	const refused = "Permission denied: the intro token is not accepted"
	for _, tt := range []struct {
		name, node, token, err string
		in                     *introrpc.Introducer
	}{
		{"good", "n1", ours.sign(t, claims("n1")), "", in},
		{"good once more", "n1", ours.sign(t, claims("n1")), "", in},
		{"turned off", "n1", ours.sign(t, claims("n1")), "auto_config.authorization must be enabled on the servers", off},
		{"no token", "n1", "", refused, in},
		{"no web token", "n1", "a.b.c", refused, in},
		{"of somebody else", "n1", theirs.sign(t, claims("n1")), refused, in},
		{"for another node", "n2", ours.sign(t, claims("n1")), refused, in},
		{"for nobody", "n1", ours.sign(t, map[string]any{"iss": "us", "aud": "sarn", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()}), refused, in},
		{"old", "n1", ours.sign(t, claims("n1", "exp", time.Now().Add(-time.Hour).Unix())), refused, in},
		{"not yet", "n1", ours.sign(t, claims("n1", "nbf", time.Now().Add(time.Hour).Unix())), refused, in},
		{"of another issuer", "n1", ours.sign(t, claims("n1", "iss", "them")), refused, in},
		{"for another audience", "n1", ours.sign(t, claims("n1", "aud", "x")), refused, in},
		{"more than a name", `n1" or value.node != "`, ours.sign(t, claims("n1")), "invalid node name", in},
	} {
		l.asked = nil
		reply, err := call(tt.in, intro.ConfigureName, encoded(t, &intro.ConfigureRequest{Applicant: applicant(tt.node), JWT: tt.token}))
		if tt.err == "" {
			r, ok := reply.(*intro.ConfigureReply)
			if err != nil || !ok || r.Identity.CertPEM != "cert" || r.Settings.NodeName != tt.node || r.Settings.ACL.AgentToken != agentToken || r.Settings.Gossip.Key != gossipKey {
				t.Errorf("%s: %+v, %v", tt.name, reply, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.err) || reply != nil || len(l.asked) > 0 {
			t.Errorf("%s: %+v, %v, the leader was asked for %v; want %q", tt.name, reply, err, l.asked, tt.err)
		}
	}
}

// Assertions that no token could meet are refused before anybody shows one.
func TestAssertionsAreChecked(t *testing.T) {
	s := newSigner(t)
	for _, a := range []string{`value.node ==`, `value.node == "${node}" and`} {
		_, err := introrpc.New(introrpc.Config{
			Tokens: &authjwt.Config{JWTValidationPubKeys: []string{s.public}, ClaimMappings: map[string]string{"node": "node"}}, Assertions: []string{a},
		})
		if err == nil || !strings.Contains(err.Error(), "auto_config.authorization.static.claim_assertions") {
			t.Errorf("%s: %v", a, err)
		}
	}
}

// Whatever somebody without a certificate sends, a server gives nothing away without a proof.
func FuzzIntroductions(f *testing.F) {
	ours, theirs := newSigner(f), newSigner(f)
	names := []string{intro.HelloName, intro.SignName, intro.ConfigureName, intro.JoinName}
	for _, v := range []any{
		&intro.SignRequest{Applicant: applicant("n1"), Token: "x"}, &intro.ConfigureRequest{Applicant: applicant("n1"), JWT: theirs.sign(f, claims("n1"))},
		&intro.ConfigureRequest{Applicant: applicant("n2"), JWT: ours.sign(f, claims("n1"))}, &intro.JoinRequest{Secret: make([]byte, intro.SecretSize), Node: "n1"},
		&intro.HelloRequest{}, map[string]any{"Node": []any{1, nil}, "JWT": map[string]any{}}, nil,
	} {
		for which := range names {
			f.Add(byte(which), encoded(f, v))
		}
	}
	f.Add(byte(2), []byte{0x9f, 0xff, 0xa1})
	in, _ := introducer(f, ours, true)
	f.Fuzz(func(t *testing.T, which byte, data []byte) {
		name := names[int(which)%len(names)]
		reply, err := call(in, name, data)
		if err != nil {
			if text := err.Error(); strings.Contains(text, serverSecret) || strings.Contains(text, gossipKey) || strings.Contains(text, agentToken) {
				t.Fatalf("%s: the error shows a secret: %v", name, err)
			}
			return
		}
		if name == intro.HelloName {
			return // says whose authority it is, to everybody
		}
		var req intro.SignRequest
		if name == intro.SignName && rpc.Unmarshal(data, &req) == nil && req.Token == nodeToken && intro.CheckNode(req.Node) == nil && req.CSR == "for "+req.Node {
			return
		}
		t.Fatalf("%s gave %+v for %x", name, reply, data)
	})
}
