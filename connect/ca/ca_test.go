package ca_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
)

const clusterID = "11111111-2222-3333-4444-555555555555"

var (
	entropy = rand.Reader
	domain  = connect.TrustDomain(clusterID)
	now     = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
)

func newKey(t testing.TB, keyType string, bits int) crypto.Signer {
	t.Helper()
	k, err := ca.GenerateKey(entropy, keyType, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// authority makes a root with its provider.
func authority(t testing.TB, keyType string, bits int) (*ca.Root, ca.Provider) {
	t.Helper()
	key := newKey(t, keyType, bits)
	text, err := ca.NewRoot(ca.RootParams{
		Key: key, Serial: 7, ClusterID: clusterID, Label: "abcd1234", Now: now, TTL: 87600 * time.Hour, Random: entropy,
	})
	if err != nil {
		t.Fatal(err)
	}
	root, err := ca.DescribeRoot(text, "test", clusterID)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ca.NewBuiltIn(text, key, entropy)
	if err != nil {
		t.Fatal(err)
	}
	return root, p
}

func parse(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	c, err := ca.ParseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRootIsAnAuthorityForTheTrustDomain(t *testing.T) {
	root, p := authority(t, ca.KeyEC, 256)
	cert := p.Issuer()
	if want := "pri-abcd1234.consul.ca.11111111.consul"; cert.Subject.CommonName != want {
		t.Errorf("common name %q, want %q", cert.Subject.CommonName, want)
	}
	if !cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("IsCA %v, usage %b", cert.IsCA, cert.KeyUsage)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://"+domain {
		t.Errorf("URIs %v", cert.URIs)
	}
	if !regexp.MustCompile(`^([0-9a-f]{2}:){19}[0-9a-f]{2}$`).MatchString(root.ID) {
		t.Errorf("ID %q is no SHA-1", root.ID)
	}
	if root.SerialNumber != 7 || root.PrivateKeyType != "ec" || root.PrivateKeyBits != 256 || root.ExternalTrustDomain != clusterID {
		t.Errorf("described as %+v", root)
	}
}

func TestLeafContent(t *testing.T) {
	for _, alg := range []struct {
		name string
		typ  string
		bits int
	}{{"ec 256", ca.KeyEC, 256}, {"ec 384", ca.KeyEC, 384}, {"ec 521", ca.KeyEC, 521}, {"rsa 2048", ca.KeyRSA, 2048}} {
		t.Run(alg.name, func(t *testing.T) {
			root, p := authority(t, alg.typ, alg.bits)
			id := connect.ServiceID(domain, "dc1", "web")
			key := newKey(t, ca.KeyEC, 256)
			leaf := sign(t, root, p, id, key, 72*time.Hour)
			cert := parse(t, leaf.CertPEM)
			if len(cert.URIs) != 1 || cert.URIs[0].String() != id.String() || len(cert.DNSNames)+len(cert.EmailAddresses)+len(cert.IPAddresses) != 0 {
				t.Errorf("names: %v %v %v %v", cert.URIs, cert.DNSNames, cert.EmailAddresses, cert.IPAddresses)
			}
			if cert.Subject.String() != "" || cert.IsCA {
				t.Errorf("subject %q, IsCA %v", cert.Subject, cert.IsCA)
			}
			want := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment | x509.KeyUsageKeyAgreement
			if cert.KeyUsage != want || len(cert.ExtKeyUsage) != 2 {
				t.Errorf("usage %b %v", cert.KeyUsage, cert.ExtKeyUsage)
			}
			critical := false
			for _, e := range cert.Extensions {
				if e.Id.String() == "2.5.29.17" {
					critical = e.Critical
				}
			}
			if !critical {
				t.Error("the URI is not critical")
			}
			if !cert.NotBefore.Equal(now.Add(-time.Minute)) || !cert.NotAfter.Equal(now.Add(72*time.Hour)) {
				t.Errorf("valid from %v to %v", cert.NotBefore, cert.NotAfter)
			}
			if leaf.Service != "web" || leaf.ServiceURI != id.String() || leaf.RootID != root.ID || leaf.PrivateKeyPEM != "" {
				t.Errorf("leaf %+v", leaf)
			}
			verify(t, leaf.CertPEM, root.RootCert)
		})
	}
}

func sign(t testing.TB, root *ca.Root, p ca.Provider, id connect.ID, key crypto.Signer, ttl time.Duration) *ca.Leaf {
	t.Helper()
	csr, err := ca.NewCSR(id, key, entropy)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ca.ParseCSR(csr, domain, "dc1")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.SignLeaf(context.Background(), r, ca.LeafParams{
		Provider: p, Root: root, Serial: []byte{0x40, 1, 2, 3, 4, 5, 6, 7}, Now: now, TTL: ttl,
	})
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// verify checks the first certificate of a chain against one root, as a proxy does.
func verify(t testing.TB, chainPEM, rootPEM string) {
	t.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(rootPEM))
	between.AppendCertsFromPEM([]byte(chainPEM))
	_, err := parse(t, chainPEM).Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		t.Errorf("not verified: %v", err)
	}
}

func TestLeafNeverOutlivesItsIssuer(t *testing.T) {
	key := newKey(t, ca.KeyEC, 256)
	text, err := ca.NewRoot(ca.RootParams{Key: key, Serial: 1, ClusterID: clusterID, Label: "x", Now: now, TTL: time.Hour, Random: entropy})
	if err != nil {
		t.Fatal(err)
	}
	p, err := ca.NewBuiltIn(text, key, entropy)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := ca.DescribeRoot(text, "x", clusterID)
	leaf := sign(t, root, p, connect.ServiceID(domain, "dc1", "web"), newKey(t, ca.KeyEC, 256), 72*time.Hour)
	if want := now.Add(time.Hour); !leaf.ValidBefore.Equal(want) {
		t.Errorf("valid before %v, want %v", leaf.ValidBefore, want)
	}
}

func TestOtherIdentities(t *testing.T) {
	root, p := authority(t, ca.KeyEC, 256)
	key := newKey(t, ca.KeyEC, 256)
	agent := sign(t, root, p, connect.AgentID(domain, "dc1", "node1"), key, time.Hour)
	if agent.Agent != "node1" || agent.AgentURI == "" || agent.Service != "" {
		t.Errorf("agent leaf %+v", agent)
	}
	gw := sign(t, root, p, connect.MeshGatewayID(domain, "dc1"), key, time.Hour)
	if gw.Kind != "mesh-gateway" || gw.KindURI == "" {
		t.Errorf("gateway leaf %+v", gw)
	}
	server := sign(t, root, p, connect.ServerID(domain, "dc1"), key, time.Hour)
	if names := parse(t, server.CertPEM).DNSNames; server.ServerURI == "" || len(names) != 1 || names[0] != "server.dc1.peering."+domain {
		t.Errorf("server leaf %+v with names %v", server, names)
	}
}

func TestParseCSRRefuses(t *testing.T) {
	key := newKey(t, ca.KeyEC, 256)
	web := connect.ServiceID(domain, "dc1", "web").URL()
	csr := func(c x509.CertificateRequest, key crypto.Signer) string {
		der, err := x509.CreateCertificateRequest(entropy, &c, key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	}
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	good := csr(x509.CertificateRequest{URIs: []*url.URL{web}}, key)
	broken := []byte(good)
	at := strings.LastIndex(good, "\n-----END") - 8
	broken[at] ^= 1
	tests := []struct{ name, in, want string }{
		{"text", "x", "not one PEM block"},
		{"empty", "", "not one PEM block"},
		{"two blocks", good + good, "not one PEM block"},
		{"a certificate", strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"), "not one PEM block"},
		{"too large", good + strings.Repeat("\n", 20<<10), "larger than"},
		{"broken signature", string(broken), ""},
		{"no name", csr(x509.CertificateRequest{}, key), "invalid number of URIs: 0"},
		{"two names", csr(x509.CertificateRequest{URIs: []*url.URL{web, web}}, key), "invalid number of URIs: 2"},
		{"two different names", csr(x509.CertificateRequest{URIs: []*url.URL{web, connect.ServiceID(domain, "dc1", "db").URL()}}, key), "invalid number of URIs: 2"},
		{"e-mail", csr(x509.CertificateRequest{URIs: []*url.URL{web}, EmailAddresses: []string{"a@b"}}, key), "email"},
		{"DNS name", csr(x509.CertificateRequest{URIs: []*url.URL{web}, DNSNames: []string{"a.b"}}, key), "DNS names"},
		{"IP address", csr(x509.CertificateRequest{URIs: []*url.URL{web}, IPAddresses: []net.IP{{1, 2, 3, 4}}}, key), "IP addresses"},
		{"not SPIFFE", csr(x509.CertificateRequest{URIs: uri("https://" + domain + "/ns/default/dc/dc1/svc/web")}, key), "not a valid Connect identifier"},
		{"the authority itself", csr(x509.CertificateRequest{URIs: uri("spiffe://" + domain)}, key), "must be a service"},
		{"another trust domain", csr(x509.CertificateRequest{URIs: uri("spiffe://x.consul/ns/default/dc/dc1/svc/web")}, key), "SPIFFE ID in CSR from a different trust domain: x.consul"},
		{"another datacenter", csr(x509.CertificateRequest{URIs: uri("spiffe://" + domain + "/ns/default/dc/dc2/svc/web")}, key), "SPIFFE ID in CSR from a different datacenter: dc2"},
		{"the CA bit", csr(x509.CertificateRequest{URIs: []*url.URL{web}, ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}},
		}}, key), "asks for a certificate authority"},
		{"a CA bit that cannot be read", csr(x509.CertificateRequest{URIs: []*url.URL{web}, ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Value: []byte{0x30, 0x03, 0x01, 0x01}},
		}}, key), "asks for a certificate authority"},
		{"weak key", csr(x509.CertificateRequest{URIs: []*url.URL{web}}, newKey(t, ca.KeyEC, 224)), "at least 256 bits"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ca.ParseCSR(tt.in, domain, "dc1")
			if r != nil || !errors.Is(err, ca.ErrCSR) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ParseCSR = %v, %v; want ErrCSR with %q", r, err, tt.want)
			}
		})
	}
	// The subject and other extensions of a request go nowhere.
	sly := csr(x509.CertificateRequest{
		URIs: []*url.URL{web}, Subject: pkix.Name{CommonName: "admin"},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 30}, Critical: true, Value: []byte{0x30, 0x00}}},
	}, key)
	r, err := ca.ParseCSR(sly, domain, "dc1")
	if err != nil {
		t.Fatal(err)
	}
	root, p := authority(t, ca.KeyEC, 256)
	leaf, err := ca.SignLeaf(t.Context(), r, ca.LeafParams{Provider: p, Root: root, Serial: []byte{1}, Now: now, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if c := parse(t, leaf.CertPEM); c.IsCA || c.Subject.CommonName != "" {
		t.Errorf("what the request said came through: IsCA %v, %q", c.IsCA, c.Subject)
	}
}

func TestRightsToIdentities(t *testing.T) {
	z := acl.New(none{}, "acc")
	tests := []struct {
		id   connect.ID
		want acl.DeniedError
	}{
		{connect.ServiceID(domain, "dc1", "web"), acl.DeniedError{Accessor: "acc", Resource: acl.Service, Access: acl.Write, Name: "web"}},
		{connect.AgentID(domain, "dc1", "n"), acl.DeniedError{Accessor: "acc", Resource: acl.Node, Access: acl.Write, Name: "n"}},
		{connect.MeshGatewayID(domain, "dc1"), acl.DeniedError{Accessor: "acc", Resource: acl.Mesh, Access: acl.Write}},
		{connect.ServerID(domain, "dc1"), acl.DeniedError{Accessor: "acc", Resource: acl.ACL, Access: acl.Write}},
	}
	for _, tt := range tests {
		_, err := ca.Authorize(z, tt.id)
		denied, ok := errors.AsType[*acl.DeniedError](err)
		if !ok || *denied != tt.want {
			t.Errorf("%v: denied with %+v, want %+v", tt.id, denied, tt.want)
		}
		if _, err := ca.Authorize(acl.Everything(), tt.id); err != nil {
			t.Errorf("%v: %v", tt.id, err)
		}
	}
	if _, err := ca.Authorize(acl.Everything(), connect.CAID(domain)); err == nil {
		t.Error("somebody may be the authority")
	}
}

type none struct{}

func (none) Allows(acl.Resource, acl.Access, string) bool { return false }

func TestRotationKeepsEverybodyTrusted(t *testing.T) {
	oldRoot, oldProvider := authority(t, ca.KeyEC, 256)
	newRoot, newProvider := authority(t, ca.KeyRSA, 2048)
	oldRoot.Active = true
	id := connect.ServiceID(domain, "dc1", "web")
	oldLeaf := sign(t, oldRoot, oldProvider, id, newKey(t, ca.KeyEC, 256), 72*time.Hour)

	cross, err := ca.CrossSign(t.Context(), oldProvider, newRoot.RootCert, 9, now)
	if err != nil {
		t.Fatal(err)
	}
	newRoot.IntermediateCerts = []string{cross}
	if c := parse(t, cross); !c.NotAfter.Equal(now.Add(7*24*time.Hour)) || c.Subject.String() != parse(t, newRoot.RootCert).Subject.String() {
		t.Errorf("cross-signed certificate of %q valid until %v", c.Subject, c.NotAfter)
	}
	roots := ca.Rotate([]*ca.Root{oldRoot}, newRoot, now, 72*time.Hour)
	if len(roots) != 2 || ca.ActiveRoot(roots).ID != newRoot.ID || !oldRoot.Active {
		t.Fatalf("rotated to %+v", roots)
	}
	newLeaf := sign(t, ca.ActiveRoot(roots), newProvider, id, newKey(t, ca.KeyEC, 256), 72*time.Hour)
	if n := strings.Count(newLeaf.CertPEM, "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("the new leaf brings %d certificates", n)
	}
	// Old and new leaves, seen by those who know one root or the other.
	verify(t, oldLeaf.CertPEM, oldRoot.RootCert)
	verify(t, newLeaf.CertPEM, oldRoot.RootCert)
	verify(t, newLeaf.CertPEM, newRoot.RootCert)

	if kept, pruned := ca.Prune(roots, now.Add(143*time.Hour)); pruned || len(kept) != 2 {
		t.Errorf("pruned too early: %d left", len(kept))
	}
	if kept, pruned := ca.Prune(roots, now.Add(145*time.Hour)); !pruned || len(kept) != 1 || kept[0].ID != newRoot.ID {
		t.Errorf("pruned %v: %d left", pruned, len(kept))
	}
}

func TestKeyNeeded(t *testing.T) {
	root := &ca.Root{PrivateKeyType: "ec", PrivateKeyBits: 256}
	generated, given := &ca.ProviderState{PrivateKey: "k", RootCert: "r"}, &ca.ProviderState{PrivateKey: "k", RootCert: "r", Given: true}
	tests := []struct {
		name   string
		state  *ca.ProviderState
		config map[string]any
		want   bool
	}{
		{"nothing", generated, nil, false},
		{"lifetimes", generated, map[string]any{"LeafCertTTL": "24h"}, false},
		{"size", generated, map[string]any{"PrivateKeyBits": 384}, true},
		{"type", generated, map[string]any{"PrivateKeyType": "rsa", "PrivateKeyBits": 2048}, true},
		{"another key", generated, map[string]any{"PrivateKey": "z"}, true},
		{"the same key", given, map[string]any{"PrivateKey": "k\n"}, false},
		{"a given key is kept when it is not repeated", given, map[string]any{"LeafCertTTL": "24h"}, false},
		{"another size replaces a given key", given, map[string]any{"PrivateKeyBits": 384}, true},
		{"another root", given, map[string]any{"PrivateKey": "k", "RootCert": "q"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ca.ParseSettings(ca.BuiltIn, tt.config)
			if err != nil {
				t.Fatal(err)
			}
			if got := ca.KeyNeeded(root, tt.state, s); got != tt.want {
				t.Errorf("KeyNeeded = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	s, err := ca.ParseSettings(ca.BuiltIn, map[string]any{"leafcertttl": "24h", "CSRMaxPerSecond": 100.0, "Unknown": 1})
	if err != nil || s.LeafCertTTL != 24*time.Hour || s.CSRMaxPerSecond != 100 || s.PrivateKeyBits != 256 {
		t.Errorf("got %+v, %v", s, err)
	}
	tests := []struct {
		name, provider string
		config         map[string]any
		want           string
	}{
		{"short leaf", ca.BuiltIn, map[string]any{"LeafCertTTL": "59m"}, "leaf cert TTL must be greater or equal than 1h0m0s"},
		{"long leaf", ca.BuiltIn, map[string]any{"LeafCertTTL": "8760h"}, "leaf cert TTL must be less than 8760h0m0s"},
		{"short intermediate", ca.BuiltIn, map[string]any{"LeafCertTTL": "1h", "IntermediateCertTTL": "2h"}, "Intermediate Cert TTL must be greater or equal than 3h"},
		{"key type", ca.BuiltIn, map[string]any{"PrivateKeyType": "dsa"}, "private key type must be either 'ec' or 'rsa'"},
		{"rsa needs bits", ca.BuiltIn, map[string]any{"PrivateKeyType": "rsa"}, "RSA key length must be 2048 or 4096 bits"},
		{"undecodable", ca.BuiltIn, map[string]any{"RootCertTTL": true}, "error decoding config: 'RootCertTTL' expected a number, got bool"},
		{"vault", ca.Vault, map[string]any{}, "must provide a Vault token or configure a Vault auth method"},
	}
	for _, tt := range tests {
		if _, err := ca.ParseSettings(tt.provider, tt.config); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if got := ca.NormalizeConfig(map[string]any{"leaf_cert_ttl": "1h", "csr_max_per_second": 1, "private_key": "x"}); got["LeafCertTTL"] != "1h" || got["CSRMaxPerSecond"] != 1 || got["PrivateKey"] != "x" {
		t.Errorf("normalized to %v", got)
	}
	blocks := ca.NormalizeConfig(map[string]any{
		"auth_method": map[string]any{"type": "approle", "mount_path": "m", "params": map[string]any{"role_id": "r"}},
		"plugin":      []any{map[string]any{"sha256": "s", "path": "/p"}},
	})
	if got, want := fmt.Sprint(blocks), "map[AuthMethod:map[MountPath:m Params:map[role_id:r] Type:approle] Plugin:map[Path:/p SHA256:s]]"; got != want {
		t.Errorf("normalized to %v, want %v", got, want)
	}
	hidden := ca.Redact(map[string]any{
		"db_password": "hide", "Block": map[string]any{"Client-Secret": "hide", "PrivateKeyBits": 2, "List": []any{map[string]any{"ApiKey": "hide"}}},
		"Other": "-----BEGIN EC PRIVATE KEY-----\nhide",
	})
	if got := fmt.Sprint(hidden); strings.Contains(got, "hide") || !strings.Contains(got, "PrivateKeyBits:2") {
		t.Errorf("redacted to %v", got)
	}
	if got := ca.Redact(map[string]any{"private_key": "x", "PRIVATEKEY": "y", "Token": "z", "LeafCertTTL": "1h"}); len(got) != 1 {
		t.Errorf("redacted to %v", got)
	}
}

// A request that passes is for exactly one identity of this domain and datacenter, and gives a leaf for just that.
func FuzzParseCSR(f *testing.F) {
	key := newKey(f, ca.KeyEC, 256)
	for _, id := range []connect.ID{
		connect.ServiceID(domain, "dc1", "web"), connect.AgentID(domain, "dc1", "n"), connect.ServerID(domain, "dc1"),
		connect.ServiceID("x.consul", "dc1", "web"), connect.CAID(domain),
	} {
		text, err := ca.NewCSR(id, key, entropy)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	root, p := authority(f, ca.KeyEC, 256)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ca.ParseCSR(text, domain, "dc1")
		if err != nil {
			if !errors.Is(err, ca.ErrCSR) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if id := r.ID(); id.TrustDomain() != domain || id.Datacenter() != "dc1" || id.Kind() == connect.CA {
			t.Fatalf("passed for %v", id)
		}
		leaf, err := ca.SignLeaf(t.Context(), r, ca.LeafParams{Provider: p, Root: root, Serial: []byte{1}, Now: now, TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		c := parse(t, leaf.CertPEM)
		if len(c.URIs) != 1 || c.URIs[0].String() != r.ID().String() || c.IsCA || len(c.EmailAddresses)+len(c.IPAddresses) != 0 {
			t.Fatalf("signed %v %v", c.URIs, c.IsCA)
		}
	})
}
