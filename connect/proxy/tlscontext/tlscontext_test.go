package tlscontext

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/testkit"
)

const webID = "spiffe://td.consul/ns/default/dc/dc1/svc/web"

func exact(t *testing.T, s string) model.StringMatch {
	m, err := model.NewStringMatch(model.MatchExact, s, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// authority signs whatever a test asks for.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, parent *authority) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	if parent == nil {
		parent = a
	}
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{byte(time.Now().UnixNano())}}
	if parent != a {
		tmpl.Subject.CommonName = "intermediate"
	}
	signer := parent.cert
	if signer == nil {
		signer = tmpl
	}
	a.cert = a.sign(tmpl, signer, &key.PublicKey, parent.key)
	return a
}

func (a *authority) sign(tmpl, parent *x509.Certificate, pub any, key any) *x509.Certificate {
	a.t.Helper()
	if tmpl.SerialNumber == nil {
		tmpl.SerialNumber = big.NewInt(7)
	}
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(72*time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// leaf signs a leaf that edit may change.
func (a *authority) leaf(edit func(*x509.Certificate), uris ...string) *x509.Certificate {
	tmpl := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	if edit != nil {
		edit(tmpl)
	}
	return a.sign(tmpl, a.cert, &a.key.PublicKey, a.key)
}

func TestPeersAreCheckedAgainstTheValidationContext(t *testing.T) {
	root, other := newAuthority(t, nil), newAuthority(t, nil)
	inter := newAuthority(t, root)
	good := root.leaf(nil, webID)
	sum, spki := sha256.Sum256(good.Raw), sha256.Sum256(good.RawSubjectPublicKeyInfo)
	trust := func(edit func(*model.Validation)) *model.Validation {
		v := &model.Validation{Roots: []*x509.Certificate{root.cert}, MaxDepth: -1}
		if edit != nil {
			edit(v)
		}
		return v
	}
	sans := func(s string) *model.Validation {
		return trust(func(v *model.Validation) { v.SANs = []model.SANMatch{{Type: model.SANURI, Match: exact(t, s)}} })
	}
	dns := func(s string) *model.Validation {
		return trust(func(v *model.Validation) { v.SANs = []model.SANMatch{{Type: model.SANDNS, Match: exact(t, s)}} })
	}
	bundles := trust(func(v *model.Validation) {
		v.Roots = nil
		v.Bundles = map[string][]*x509.Certificate{"td.consul": {root.cert}, "peer.consul": {other.cert}}
	})
	named := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames = names }
	}
	revoke := func(serial int64) []*x509.RevocationList {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()}}}, root.cert, root.key)
		if err != nil {
			t.Fatal(err)
		}
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.RevocationList{l}
	}
	tests := []struct {
		name  string
		v     *model.Validation
		chain []*x509.Certificate
		fault Fault // 0: good
	}{
		{"good", trust(nil), []*x509.Certificate{good}, 0},
		{"no certificate", trust(nil), nil, FaultNoCert},
		{"another authority", trust(nil), []*x509.Certificate{other.leaf(nil, webID)}, FaultChain},
		{"another authority that sends its root along", trust(nil), []*x509.Certificate{other.leaf(nil, webID), other.cert}, FaultChain},
		{"intermediate sent along", trust(nil), []*x509.Certificate{inter.leaf(nil, webID), inter.cert}, 0},
		{"intermediate missing", trust(nil), []*x509.Certificate{inter.leaf(nil, webID)}, FaultChain},
		{"intermediate as anchor", trust(func(v *model.Validation) { v.Roots = []*x509.Certificate{inter.cert} }), []*x509.Certificate{inter.leaf(nil, webID)}, 0},
		{"too deep", trust(func(v *model.Validation) { v.MaxDepth = 0 }), []*x509.Certificate{inter.leaf(nil, webID), inter.cert}, FaultChain},
		{"expired", trust(nil), []*x509.Certificate{root.leaf(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}, webID)}, FaultChain},
		{"expired but allowed", trust(func(v *model.Validation) { v.AllowExpired = true }), []*x509.Certificate{root.leaf(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Minute)
		}, webID)}, 0},
		{"not for this use", trust(nil), []*x509.Certificate{root.leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, webID)}, FaultChain},
		{"nobody is trusted", &model.Validation{MaxDepth: -1}, []*x509.Certificate{good}, FaultChain},
		{"everybody is", &model.Validation{NoTrust: true}, []*x509.Certificate{other.leaf(nil, webID)}, 0},
		{"expected name", sans(webID), []*x509.Certificate{good}, 0},
		{"one of several names", sans(webID), []*x509.Certificate{root.leaf(nil, "spiffe://x/y", webID)}, 0},
		{"longer name", sans(webID), []*x509.Certificate{root.leaf(nil, webID+"/x")}, FaultSAN},
		{"name in another case", sans(webID), []*x509.Certificate{root.leaf(nil, "spiffe://TD.consul/ns/default/dc/dc1/svc/web")}, FaultSAN},
		{"name with an escape", sans(webID), []*x509.Certificate{root.leaf(nil, "spiffe://td.consul/ns/default/dc/dc1/svc/we%62")}, FaultSAN},
		{"name as another type", sans("db.example"), []*x509.Certificate{root.leaf(named("db.example"))}, FaultSAN},
		{"DNS wildcard", dns("db.example"), []*x509.Certificate{root.leaf(named("*.example"))}, 0},
		{"DNS wildcard is one label", dns("a.db.example"), []*x509.Certificate{root.leaf(named("*.example"))}, FaultSAN},
		{"DNS wildcard is a whole label", dns("db.example"), []*x509.Certificate{root.leaf(named("d*.example"))}, FaultSAN},
		{"bundle of the trust domain", bundles, []*x509.Certificate{good}, 0},
		{"bundle of another trust domain", bundles, []*x509.Certificate{root.leaf(nil, "spiffe://peer.consul/ns/default/dc/dc1/svc/web")}, FaultChain},
		{"unknown trust domain", bundles, []*x509.Certificate{root.leaf(nil, "spiffe://td.consul.evil/svc/web")}, FaultChain},
		{"two names", bundles, []*x509.Certificate{root.leaf(nil, webID, webID+"2")}, FaultSAN},
		{"no name", bundles, []*x509.Certificate{root.leaf(nil)}, FaultSAN},
		{"no SPIFFE ID", bundles, []*x509.Certificate{root.leaf(nil, "https://td.consul/x")}, FaultSAN},
		{"authority as a leaf", bundles, []*x509.Certificate{root.leaf(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, webID)}, FaultChain},
		{"hash of the certificate", trust(func(v *model.Validation) { v.CertHashes = [][]byte{sum[:]} }), []*x509.Certificate{good}, 0},
		{"hash of the key", trust(func(v *model.Validation) { v.SPKIHashes = [][]byte{make([]byte, 32), spki[:]} }), []*x509.Certificate{good}, 0},
		{"another hash", trust(func(v *model.Validation) { v.CertHashes = [][]byte{make([]byte, 32)} }), []*x509.Certificate{good}, FaultHash},
		{"revoked", trust(func(v *model.Validation) { v.CRLs = revoke(7) }), []*x509.Certificate{good}, FaultChain},
		{"not revoked", trust(func(v *model.Validation) { v.CRLs = revoke(8) }), []*x509.Certificate{good}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			vd := newValidator(tt.v, x509.ExtKeyUsageClientAuth)
			for range 2 { // the second answer may be remembered
				peer, err := vd.check(tt.chain)
				var ve *VerifyError
				errors.As(err, &ve)
				switch {
				case tt.fault == 0 && (err != nil || peer == nil):
					t.Errorf("refused: %v", err)
				case tt.fault != 0 && (ve == nil || ve.Fault != tt.fault):
					t.Errorf("got %v, %v; want fault %d", peer, err, tt.fault)
				}
			}
		})
	}
}

func TestVerdictsEndWithTheCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newAuthority(t, nil)
		vd := newValidator(&model.Validation{Roots: []*x509.Certificate{root.cert}, MaxDepth: -1}, x509.ExtKeyUsageClientAuth)
		chain := []*x509.Certificate{root.leaf(nil, webID)}
		if _, err := vd.check(chain); err != nil {
			t.Fatal(err)
		}
		time.Sleep(72*time.Hour + time.Second)
		if _, err := vd.check(chain); err == nil {
			t.Error("a leaf that has expired since is still good")
		}
	})
}

func TestNamesAreTheBytesOfTheCertificate(t *testing.T) {
	root := newAuthority(t, nil)
	for _, name := range []string{webID, "spiffe://td.consul/a%2fb", "spiffe://td.consul//x/../y", "spiffe://TD.consul/x?q#f"} {
		p, err := NewPeer(root.leaf(func(c *x509.Certificate) { c.DNSNames, c.EmailAddresses = []string{"a.b"}, []string{"x@y"} }, name))
		if err != nil || !reflect.DeepEqual(p.URIs, []string{name}) || !reflect.DeepEqual(p.DNS, []string{"a.b"}) || !reflect.DeepEqual(p.Emails, []string{"x@y"}) {
			t.Errorf("%s: got %+v, %v", name, p, err)
		}
	}
}

func TestSettingsChangeWithTheirSecretsOnly(t *testing.T) {
	ca := testkit.NewCA(t, "ca")
	s := NewSecrets()
	srv := NewServer(&model.DownstreamTLS{TLS: model.TLS{CertSecrets: []string{"leaf"}, ValidationSecret: "roots"}, RequireClientCertificate: true}, s)
	if _, err := srv.Config(); !errors.Is(err, ErrNoSecret) {
		t.Errorf("without secrets: %v", err)
	}
	roots := &model.Secret{Name: "roots", Validation: &model.Validation{Roots: []*x509.Certificate{ca.Certificate()}, MaxDepth: -1}}
	s.Set(&model.Secret{Name: "leaf", Certificate: &model.Certificate{TLS: *ca.Issue(webID)}}, roots)
	one, err := srv.Config()
	if err != nil {
		t.Fatal(err)
	}
	s.Set(&model.Secret{Name: "another", Certificate: &model.Certificate{TLS: *ca.Issue(webID)}})
	if two, _ := srv.Config(); two != one {
		t.Error("a secret that is not ours changed the settings, and with them the ticket keys")
	}
	s.Set(&model.Secret{Name: "leaf", Certificate: &model.Certificate{TLS: *ca.Issue(webID)}})
	if two, _ := srv.Config(); two == one {
		t.Error("a new leaf did not change the settings")
	}
}

func TestTrustComesFromTheSecretOfACombinedContext(t *testing.T) {
	ca := testkit.NewCA(t, "ca")
	base := &model.Validation{MaxDepth: -1, SANs: []model.SANMatch{{Type: model.SANURI, Match: exact(t, webID)}}}
	m := merge(base, &model.Validation{Roots: []*x509.Certificate{ca.Certificate()}, MaxDepth: -1})
	if len(m.Roots) != 1 || len(m.SANs) != 1 {
		t.Errorf("merged to %d roots and %d names", len(m.Roots), len(m.SANs))
	}
	// A secret without trust does not open the door.
	m = merge(base, &model.Validation{NoTrust: true, MaxDepth: -1})
	if m.NoTrust || len(m.Roots) != 0 {
		t.Errorf("merged with a secret without trust: %+v", m)
	}
	if _, err := newValidator(m, x509.ExtKeyUsageServerAuth).check([]*x509.Certificate{ca.Issue(webID).Leaf}); err == nil {
		t.Error("a peer was trusted by nobody's word")
	}
}

func FuzzNames(f *testing.F) {
	f.Add([]byte{0x30, 0x05, 0x86, 0x03, 'a', ':', 'b'})
	f.Fuzz(func(t *testing.T, der []byte) {
		p := &Peer{}
		if err := p.readNames(der); err != nil {
			return
		}
		n := 0
		for _, list := range [][]string{p.URIs, p.DNS, p.Emails} {
			for _, s := range list {
				n += len(s)
			}
		}
		if n > len(der) {
			t.Errorf("%d bytes of names from %d bytes", n, len(der))
		}
	})
}
