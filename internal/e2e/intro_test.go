//go:build unix

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sarnmesh/sarn/internal/testkit"
)

const introSecret = "6d0f0f5e-2f57-4b0b-9d0e-6a1c5a6f0a11"

// introServer is a server that demands certificates of everybody, with access control and gossip encryption, and signs
// those of agents.
func introServer(t *testing.T, more map[string]any) (a *agent, caFile string) {
	t.Helper()
	binary(t)
	dir := t.TempDir()
	authority := testkit.NewCA(t, "cluster")
	caFile = writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", authority.Certificate().Raw)
	cert := authority.Issue("server.dc1.consul", "localhost", "127.0.0.1")
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	conf := map[string]any{
		"server": true, "bootstrap": true, "encrypt": "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=",
		"acl": map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]any{"initial_management": introSecret, "agent": introSecret}},
		"tls": map[string]any{
			"defaults": map[string]any{
				"ca_file": caFile, "cert_file": writePEM(t, filepath.Join(dir, "s.crt"), "CERTIFICATE", cert.Certificate...),
				"key_file": writePEM(t, filepath.Join(dir, "s.key"), "PRIVATE KEY", der), "verify_incoming": true, "verify_outgoing": true,
			},
			"internal_rpc": map[string]any{"verify_server_hostname": true},
		},
	}
	for k, v := range more {
		conf[k] = v
	}
	a = newAgent(t, "s1", conf)
	a.run(t)
	eventually(t, 30*time.Second, "the server leads", func() bool { return a.leader() != "" })
	return a, caFile
}

// known reports whether the catalog has a node.
func (a *agent) known(node string) bool {
	code, body, err := a.call("GET", "/v1/catalog/nodes?token="+introSecret, "")
	return err == nil && code == 200 && strings.Contains(body, `"`+node+`"`)
}

// TestAutoEncryptBringsAgentsIn starts an agent that has no certificate where everybody needs one, twice, and one whose
// token is none.
func TestAutoEncryptBringsAgentsIn(t *testing.T) {
	s, caFile := introServer(t, map[string]any{"auto_encrypt": map[string]any{"allow_tls": true}})
	client := func(name, token string) *agent {
		c := newAgent(t, name, map[string]any{
			"encrypt": "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=", "retry_join": []string{s.lan()}, "ports": map[string]int{"server": s.ports["server"]},
			"acl":          map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]any{"agent": token}},
			"tls":          map[string]any{"defaults": map[string]any{"ca_file": caFile, "verify_outgoing": true}},
			"auto_encrypt": map[string]any{"tls": true},
		})
		c.run(t)
		return c
	}
	c := client("c1", introSecret)
	eventually(t, 30*time.Second, "the agent registers its node", func() bool { return s.known("c1") })
	c.must(t, "PUT", "/v1/kv/a?token="+introSecret, "1")
	c.end(os.Kill)
	c.run(t)
	eventually(t, 30*time.Second, "the agent is back", func() bool {
		code, body, err := c.call("GET", "/v1/kv/a?raw&token="+introSecret, "")
		return err == nil && code == 200 && body == "1"
	})
	bad := client("c2", "11111111-2222-3333-4444-555555555555")
	eventually(t, 30*time.Second, "the other agent is told why not", func() bool {
		return strings.Contains(bad.output(), "no server has given this agent a certificate yet")
	})
	if s.known("c2") {
		t.Error("an agent without a token of this cluster is in it")
	}
}

// TestAutoConfigBringsAgentsIn gives an agent nothing but a web token, the authority and an address.
func TestAutoConfigBringsAgentsIn(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(map[string]any{"node": "c1", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	s, caFile := introServer(t, map[string]any{"auto_config": map[string]any{"authorization": map[string]any{
		"enabled": true, "static": map[string]any{
			"jwt_validation_pub_keys": []string{string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))},
			"claim_mappings":          map[string]string{"node": "node"}, "claim_assertions": []string{`value.node == "${node}"`},
		},
	}}})
	client := func(name string) *agent {
		c := newAgent(t, name, map[string]any{
			"tls": map[string]any{"defaults": map[string]any{"ca_file": caFile, "verify_outgoing": true}},
			"auto_config": map[string]any{
				"enabled": true, "intro_token": token, "server_addresses": []string{s.serverAddr()},
			},
		})
		c.run(t)
		return c
	}
	c := client("c1")
	eventually(t, 30*time.Second, "the agent registers its node", func() bool { return s.known("c1") })
	if code, _, err := c.call("GET", "/v1/agent/members", ""); err != nil || code != 200 {
		t.Errorf("members: %d, %v", code, err)
	}
	other := client("c2") // with the token of c1
	eventually(t, 30*time.Second, "the other agent is refused", func() bool {
		return strings.Contains(other.output(), "the intro token is not accepted")
	})
	if s.known("c2") {
		t.Error("an agent is in with the token of another")
	}
	for _, p := range []*agent{s, c, other} {
		if strings.Contains(p.output(), token) {
			t.Errorf("the intro token is in the log of %s", p.name)
		}
	}
}
