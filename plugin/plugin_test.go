package plugin_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/plugin"
)

func publicKey(t testing.TB) (crypto.Signer, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// A certificate made from the template of a request has what the request says.
func TestTemplate(t *testing.T) {
	key, public := publicKey(t)
	now := time.Now().Truncate(time.Second).UTC()
	for _, authority := range []bool{false, true} {
		r := &plugin.SignRequest{
			PublicKey: public, Serial: "4fab", URIs: []string{"spiffe://x.consul/ns/default/dc/dc1/svc/a%20b"}, DNSNames: []string{"*.ingress.consul"},
			NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour), IsCA: authority,
		}
		template, k, err := r.Template()
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, k, key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := plugin.ParseCertificate(plugin.EncodeCertificate(der))
		if err != nil {
			t.Fatal(err)
		}
		if cert.SerialNumber.Text(16) != "4fab" || len(cert.URIs) != 1 || cert.URIs[0].String() != r.URIs[0] || !slices.Equal(cert.DNSNames, r.DNSNames) ||
			!cert.NotAfter.Equal(r.NotAfter) || !cert.NotBefore.Equal(r.NotBefore) || cert.IsCA != authority || cert.MaxPathLenZero != authority || len(cert.Subject.Names) != 0 {
			t.Errorf("made %v %v %v from %v to %v, IsCA %v", cert.SerialNumber, cert.URIs, cert.DNSNames, cert.NotBefore, cert.NotAfter, cert.IsCA)
		}
		if !key.Public().(*ecdsa.PublicKey).Equal(cert.PublicKey) {
			t.Error("for another key")
		}
		if signs := cert.KeyUsage&x509.KeyUsageCertSign != 0; signs != authority || (len(cert.ExtKeyUsage) == 2) == authority {
			t.Errorf("authority %v: usage %b %v", authority, cert.KeyUsage, cert.ExtKeyUsage)
		}
	}
}

func TestTemplateRefuses(t *testing.T) {
	_, public := publicKey(t)
	for name, r := range map[string]plugin.SignRequest{
		"no key":            {Serial: "1"},
		"no serial":         {PublicKey: public},
		"a negative serial": {PublicKey: public, Serial: "-1"},
		"no URI":            {PublicKey: public, Serial: "1", URIs: []string{"spiffe://%zz"}},
		"a private key":     {PublicKey: strings.ReplaceAll(public, "PUBLIC", "PRIVATE")[:30], Serial: "1"},
	} {
		if _, _, err := r.Template(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, r := range map[string]plugin.CrossSignRequest{
		"no root": {Serial: "1"}, "not a certificate": {Root: public, Serial: "1"},
	} {
		if _, _, err := r.Template(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Whatever a request is, its template has its names and no others, and signs others only when that is asked for.
func FuzzSignRequest(f *testing.F) {
	_, public := publicKey(f)
	seed, err := json.Marshal(&plugin.SignRequest{PublicKey: public, Serial: "4fab", URIs: []string{"spiffe://x/y"}, NotAfter: time.Unix(1e9, 0)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"IsCA":true,"Serial":"0"}`))
	f.Add([]byte(`{"Config":{"a":[{}]},"Kept":{"State":{"a":"b"}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var r plugin.SignRequest
		if json.Unmarshal(text, &r) != nil {
			return
		}
		template, _, err := r.Template()
		if err != nil {
			return
		}
		if template.IsCA != r.IsCA || len(template.URIs) != len(r.URIs) || len(template.DNSNames) != len(r.DNSNames) ||
			!r.IsCA && template.KeyUsage&x509.KeyUsageCertSign != 0 || template.SerialNumber.Sign() <= 0 {
			t.Errorf("template %+v of %+v", template, r)
		}
	})
}
