package caprovider_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/caprovider"
)

const clusterID = "11111111-2222-3333-4444-555555555555"

var domain = connect.TrustDomain(clusterID)

// A subject is a provider that the contract is held against.
type subject struct {
	provider string // its name
	kind     caprovider.Kind
	config   map[string]any
	another  map[string]any // a configuration for another root; nil where New makes one
	secrets  []string       // what only ProviderState may have
	left     func() string  // tells what is left outside after Cleanup; nil where there is nothing outside
}

func (s *subject) establish(t *testing.T, config map[string]any, current *trust.ProviderState, again bool) *trust.ProviderState {
	t.Helper()
	kept, err := s.try(t, config, current, again)
	if err != nil {
		t.Fatal(err)
	}
	return kept
}

// try does what the leader does with a configuration.
func (s *subject) try(t *testing.T, config map[string]any, current *trust.ProviderState, again bool) (*trust.ProviderState, error) {
	t.Helper()
	settings, err := ca.ParseSettings(s.provider, config)
	if err != nil {
		return nil, err
	}
	w := caprovider.Wanted{Config: config, Settings: settings, ClusterID: clusterID, Current: current, New: again}
	if current != nil {
		w.Root = describe(t, current)
	}
	kept, err := s.kind.Establish(t.Context(), w)
	if err != nil {
		return nil, err
	}
	if err := ca.CheckEstablished(kept, clusterID, time.Now()); err != nil {
		t.Fatalf("what was established cannot sign: %v", err)
	}
	kept.Provider, kept.ID = s.provider, describe(t, kept).ID
	if s.provider != ca.BuiltIn {
		kept.Config = config
	}
	return kept, nil
}

func describe(t *testing.T, kept *trust.ProviderState) *trust.Root {
	t.Helper()
	root, err := ca.DescribeRoot(kept.RootCert, "test", clusterID)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// open opens a provider from what has been through the log.
func (s *subject) open(t *testing.T, kept *trust.ProviderState) ca.Provider {
	t.Helper()
	text, err := rpc.Marshal(kept)
	if err != nil {
		t.Fatal(err)
	}
	replicated := new(trust.ProviderState)
	if err := rpc.Unmarshal(text, replicated); err != nil {
		t.Fatal(err)
	}
	p, err := s.kind.Open(replicated, clusterID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func newKey(t testing.TB, keyType string, bits int) crypto.Signer {
	t.Helper()
	key, err := ca.GenerateKey(rand.Reader, keyType, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func leaf(t *testing.T, p ca.Provider, root *trust.Root, id connect.ID, key crypto.Signer, ttl time.Duration, hosts ...string) (*ca.Leaf, error) {
	t.Helper()
	text, err := ca.NewCSR(id, key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ca.ParseCSR(text, domain, "dc1")
	if err != nil {
		t.Fatal(err)
	}
	serial := make([]byte, 16)
	_, _ = rand.Read(serial)
	serial[0] = 0x40
	return ca.SignLeaf(t.Context(), r, ca.LeafParams{Provider: p, Root: root, Serial: serial, Now: time.Now(), TTL: ttl, Hosts: hosts})
}

func mustLeaf(t *testing.T, p ca.Provider, root *trust.Root, id connect.ID, key crypto.Signer, ttl time.Duration, hosts ...string) *x509.Certificate {
	t.Helper()
	l, err := leaf(t, p, root, id, key, ttl, hosts...)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, l.CertPEM, root.RootCert)
	cert, err := ca.ParseCertificate(l.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// verify checks the first certificate of a chain against one root, with what else the chain brings.
func verify(t *testing.T, chain, root string) {
	t.Helper()
	certs, err := ca.ParseCertificates(chain)
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(root))
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Errorf("not verified: %v", err)
		}
	}
}

// contract is what every provider keeps to.
func contract(t *testing.T, s *subject) {
	kept := s.establish(t, s.config, nil, true)
	root := describe(t, kept)
	web := connect.ServiceID(domain, "dc1", "web")
	key := newKey(t, ca.KeyEC, 256)

	t.Run("the root is an authority for the trust domain", func(t *testing.T) {
		cert, err := ca.ParseCertificate(kept.RootCert)
		if err != nil {
			t.Fatal(err)
		}
		if err := ca.CheckAuthority(cert, clusterID, time.Now()); err != nil {
			t.Error(err)
		}
	})
	t.Run("leaves have the names, key and life that were asked for", func(t *testing.T) {
		p := s.open(t, kept)
		for _, k := range []struct {
			typ  string
			bits int
		}{{ca.KeyEC, 256}, {ca.KeyEC, 384}, {ca.KeyRSA, 2048}} {
			key, ttl := newKey(t, k.typ, k.bits), 30*time.Hour
			before := time.Now()
			cert := mustLeaf(t, p, root, web, key, ttl)
			if len(cert.URIs) != 1 || cert.URIs[0].String() != web.String() || cert.IsCA || len(cert.Subject.Names) != 0 || len(cert.DNSNames) != 0 {
				t.Errorf("%s %d: signed %v %v, %q, IsCA %v", k.typ, k.bits, cert.URIs, cert.DNSNames, cert.Subject, cert.IsCA)
			}
			if !cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
				t.Errorf("%s %d: for another key", k.typ, k.bits)
			}
			if life := cert.NotAfter.Sub(before); life < ttl-time.Minute || life > ttl+time.Minute {
				t.Errorf("%s %d: valid for %v, want %v", k.typ, k.bits, life, ttl)
			}
			if !cert.NotBefore.Before(before) {
				t.Errorf("%s %d: valid from %v, after it was asked for", k.typ, k.bits, cert.NotBefore)
			}
		}
	})
	t.Run("every identity and host names", func(t *testing.T) {
		p := s.open(t, kept)
		for _, id := range []connect.ID{connect.AgentID(domain, "dc1", "node1"), connect.MeshGatewayID(domain, "dc1"), connect.ServiceID(domain, "dc1", "a b/ü%")} {
			if cert := mustLeaf(t, p, root, id, key, 30*time.Hour); cert.URIs[0].String() != id.String() {
				t.Errorf("signed %v, want %v", cert.URIs, id)
			}
		}
		server := mustLeaf(t, p, root, connect.ServerID(domain, "dc1"), key, 30*time.Hour)
		if len(server.DNSNames) != 1 {
			t.Errorf("a server's leaf has names %v", server.DNSNames)
		}
		gateway := mustLeaf(t, p, root, web, key, 30*time.Hour, "*.ingress.consul", "shop.example.com")
		if strings.Join(gateway.DNSNames, " ") != "*.ingress.consul shop.example.com" {
			t.Errorf("a gateway's leaf has names %v", gateway.DNSNames)
		}
	})
	t.Run("what else a request says goes nowhere", func(t *testing.T) {
		p := s.open(t, kept)
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			URIs: []*url.URL{web.URL()}, Subject: pkix.Name{CommonName: "admin", Organization: []string{"operators"}},
		}, key)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ca.ParseCSR(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), domain, "dc1")
		if err != nil {
			t.Fatal(err)
		}
		l, err := ca.SignLeaf(t.Context(), r, ca.LeafParams{Provider: p, Root: root, Serial: []byte{0x40, 5}, Now: time.Now(), TTL: 30 * time.Hour})
		if s.provider == ca.AWSPCA {
			if err == nil || !strings.Contains(err.Error(), "must have none") {
				t.Errorf("AWS would copy the subject: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if cert, err := ca.ParseCertificate(l.CertPEM); err != nil || len(cert.Subject.Names) != 0 {
			t.Errorf("subject %q, %v", cert.Subject, err)
		}
	})
	t.Run("other settings leave the root as it is", func(t *testing.T) {
		config := map[string]any{}
		for k, v := range s.config {
			config[k] = v
		}
		config["LeafCertTTL"], config["IntermediateCertTTL"] = "31h", "8000h"
		again := s.establish(t, config, kept, false)
		if again.ID != kept.ID || again.Intermediate != kept.Intermediate {
			t.Errorf("root %s, was %s; the same intermediate: %v", again.ID, kept.ID, again.Intermediate == kept.Intermediate)
		}
		mustLeaf(t, s.open(t, again), root, web, key, 31*time.Hour)
	})
	t.Run("a restart goes on with what is kept", func(t *testing.T) {
		first := s.open(t, kept)
		before := mustLeaf(t, first, root, web, key, 30*time.Hour)
		first.Close()
		s.kind.Close()
		second := s.open(t, kept)
		after := mustLeaf(t, second, root, web, key, 30*time.Hour)
		if string(before.AuthorityKeyId) != string(after.AuthorityKeyId) || before.SerialNumber.Cmp(after.SerialNumber) == 0 {
			t.Error("another authority signs after the restart, or a serial number came twice")
		}
	})
	t.Run("calls at the same time", func(t *testing.T) {
		p := s.open(t, kept)
		text, err := ca.NewCSR(web, key, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		errs := make(chan error)
		for i := range 8 {
			go func() {
				r, err := ca.ParseCSR(text, domain, "dc1")
				if err == nil {
					_, err = ca.SignLeaf(t.Context(), r, ca.LeafParams{Provider: p, Root: root, Serial: []byte{0x40, byte(i)}, Now: time.Now(), TTL: 30 * time.Hour})
				}
				errs <- err
			}()
		}
		for range 8 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("a call ends with its context", func(t *testing.T) {
		if s.provider == ca.BuiltIn {
			t.Skip("it waits for nobody")
		}
		p := s.open(t, kept)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		text, _ := ca.NewCSR(web, key, rand.Reader)
		r, err := ca.ParseCSR(text, domain, "dc1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ca.SignLeaf(ctx, r, ca.LeafParams{Provider: p, Root: root, Serial: []byte{0x40}, Now: time.Now(), TTL: 30 * time.Hour}); err == nil {
			t.Error("signed after the end")
		}
	})
	t.Run("the signing certificate of another datacenter", func(t *testing.T) {
		p := s.open(t, kept)
		secondary := newKey(t, ca.KeyEC, 256)
		text, err := ca.NewCSR(connect.CAID(domain), secondary, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ca.ParseIntermediateCSR(text, domain)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := ca.SignIntermediate(t.Context(), r, ca.IntermediateParams{Provider: p, Datacenter: "dc2", Serial: []byte{0x40, 9}, Now: time.Now(), TTL: 1000 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		// It signs leaves with it, and nothing else.
		keyPEM, err := ca.EncodeKey(secondary)
		if err != nil {
			t.Fatal(err)
		}
		there := &trust.ProviderState{RootCert: root.RootCert, Intermediate: cert, PrivateKey: keyPEM}
		if err := ca.CheckEstablished(there, clusterID, time.Now()); err != nil {
			t.Error(err)
		}
		other, err := caprovider.BuiltIn{Random: rand.Reader}.Open(there, clusterID)
		if err != nil {
			t.Fatal(err)
		}
		signed := mustLeaf(t, other, root, web, key, 20*time.Hour)
		if other.CrossSigns() || string(signed.AuthorityKeyId) != string(other.Issuer().SubjectKeyId) {
			t.Error("another authority signed, or the secondary would sign roots")
		}
		if _, err := ca.SignIntermediate(t.Context(), r, ca.IntermediateParams{Provider: other, Datacenter: "dc3", Serial: []byte{0x40, 9}, Now: time.Now(), TTL: time.Hour}); err == nil {
			t.Error("it signed for yet another datacenter")
		}
	})
	t.Run("cross-signing", func(t *testing.T) {
		p := s.open(t, kept)
		nextKey := newKey(t, ca.KeyRSA, 2048)
		next, err := ca.NewRoot(ca.RootParams{Key: nextKey, Serial: 8, ClusterID: clusterID, Label: "next", Now: time.Now(), TTL: 2000 * time.Hour, Random: rand.Reader})
		if err != nil {
			t.Fatal(err)
		}
		crossed, err := ca.CrossSign(t.Context(), p, next, 9, time.Now())
		if !p.CrossSigns() {
			if !errors.Is(err, ca.ErrNoCrossSigning) {
				t.Errorf("cross-signed: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		nextProvider, err := ca.NewBuiltIn(next, nextKey, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		nextRoot, err := ca.DescribeRoot(next, "next", clusterID)
		if err != nil {
			t.Fatal(err)
		}
		nextRoot.IntermediateCerts = []string{crossed}
		l, err := leaf(t, nextProvider, nextRoot, web, key, 30*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		verify(t, l.CertPEM, root.RootCert)
		verify(t, l.CertPEM, next)
	})
	t.Run("renewing the intermediate", func(t *testing.T) {
		p := s.open(t, kept)
		old := mustLeaf(t, p, root, web, key, 30*time.Hour)
		next, err := p.Renew(t.Context())
		if kept.Intermediate == "" {
			if !errors.Is(err, ca.ErrNoIntermediate) {
				t.Errorf("renewed: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if next.RootCert != kept.RootCert || next.Intermediate == kept.Intermediate {
			t.Fatal("the root changed, or the intermediate did not")
		}
		renewed := mustLeaf(t, s.open(t, next), root, web, key, 30*time.Hour)
		if string(renewed.AuthorityKeyId) == string(old.AuthorityKeyId) {
			t.Error("the old intermediate signs")
		}
		if next.State != nil { // it is told which one: the old one goes on until the new one is replicated
			mustLeaf(t, p, root, web, key, 30*time.Hour)
		}
		kept = next
	})
	t.Run("secrets are in no certificate and no state shown", func(t *testing.T) {
		shown, err := json.Marshal(map[string]any{"Config": ca.Redact(s.config), "State": kept.State, "Root": describe(t, kept)})
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range append([]string{"PRIVATE KEY"}, s.secrets...) {
			if strings.Contains(string(shown), secret) {
				t.Errorf("%q is shown", secret)
			}
		}
	})
	t.Run("another root", func(t *testing.T) {
		config := s.config
		if s.another != nil {
			if _, err := s.try(t, s.config, kept, true); err == nil {
				t.Error("another root was made in the same place")
			}
			config = s.another
		}
		next := s.establish(t, config, kept, true)
		if next.ID == kept.ID {
			t.Fatal("the root stayed")
		}
		mustLeaf(t, s.open(t, next), describe(t, next), web, key, 30*time.Hour)
		// What the old one needed goes, and the new one does not notice.
		if err := s.open(t, kept).Cleanup(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		mustLeaf(t, s.open(t, next), describe(t, next), web, key, 30*time.Hour)
		if err := s.open(t, next).Cleanup(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if s.left != nil {
			if left := s.left(); left != "" {
				t.Errorf("left behind: %s", left)
			}
		}
	})
}

// serve serves a stand-in over a real connection and returns its address.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

func TestContractOfTheBuiltInProvider(t *testing.T) {
	for _, config := range []map[string]any{{}, {"PrivateKeyType": "rsa", "PrivateKeyBits": 2048}} {
		contract(t, &subject{provider: ca.BuiltIn, kind: caprovider.BuiltIn{Random: rand.Reader}, config: config})
	}
}
