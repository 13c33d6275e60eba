package ca_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
)

// liar signs what it is asked for with other alternative names, given in the form they have in a certificate.
type liar struct {
	ca.Provider
	names []byte
}

func (l liar) Sign(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	t := *template
	t.URIs, t.DNSNames = nil, nil
	t.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: l.names}}
	return l.Provider.Sign(ctx, &t, csr)
}

// sequence encodes alternative names of one tag.
func sequence(tag byte, names ...string) []byte {
	var values []asn1.RawValue
	for _, n := range names {
		values = append(values, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: int(tag), Bytes: []byte(n)})
	}
	out, err := asn1.Marshal(values)
	if err != nil {
		panic(err)
	}
	return out
}

// Class 18 of spec/threats.md: names that are nearly the right ones.
func TestThreat18NamesAreComparedByteByByte(t *testing.T) {
	root, p := authority(t, ca.KeyEC, 256)
	key := newKey(t, ca.KeyEC, 256)
	text, err := ca.NewCSR(connect.ServiceID(domain, "dc1", "web"), key, entropy)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ca.ParseCSR(text, domain, "dc1")
	if err != nil {
		t.Fatal(err)
	}
	right := r.ID().String()
	try := func(names []byte) error {
		_, err := ca.SignLeaf(t.Context(), r, ca.LeafParams{Provider: liar{p, names}, Root: root, Serial: []byte{0x40}, Now: now, TTL: time.Hour})
		return err
	}
	if err := try(sequence(6, right)); err != nil {
		t.Fatalf("the right name: %v", err)
	}
	wrong := map[string][]byte{
		"a NUL at the end":         sequence(6, right+"\x00"),
		"a NUL within":             sequence(6, strings.Replace(right, "web", "web\x00db", 1)),
		"another letter case":      sequence(6, strings.Replace(right, "web", "Web", 1)),
		"an escaped letter":        sequence(6, strings.Replace(right, "web", "%77eb", 1)),
		"a slash more":             sequence(6, right+"/"),
		"a wildcard":               sequence(6, strings.Replace(right, "web", "*", 1)),
		"a prefix":                 sequence(6, strings.TrimSuffix(right, "b")),
		"a query":                  sequence(6, right+"?x"),
		"twice":                    sequence(6, right, right),
		"one more":                 sequence(6, right, connect.ServiceID(domain, "dc1", "db").String()),
		"as a DNS name":            sequence(2, right),
		"none":                     sequence(6),
		"beside a registered ID":   slices.Concat([]byte{0x30, byte(len(sequence(6, right)[2:]) + 5)}, sequence(6, right)[2:], []byte{0x88, 3, 0x2a, 3, 4}),
		"trailing bytes of a name": append(sequence(6, right), 0),
	}
	for name, names := range wrong {
		if err := try(names); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	for _, uri := range []string{
		strings.Replace(right, domain, domain+".", 1), strings.Replace(right, domain, "x."+domain, 1),
		strings.Replace(right, domain, domain+":443", 1), strings.Replace(right, "spiffe://", "spiffe://user@", 1),
		right + "#x", right + "?x", right + "/", strings.Replace(right, "/svc/", "//svc/", 1), strings.Replace(right, "/svc/web", "/svc/../svc/web", 1),
	} {
		if r, err := ca.ParseCSR(rawCSR(t, key, sequence(6, uri)), domain, "dc1"); err == nil {
			t.Errorf("%s passed as %v", uri, r.ID())
		}
	}
}

// rawCSR makes a request with alternative names as they are given.
func rawCSR(t testing.TB, key any, names []byte, more ...pkix.Extension) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(entropy, &x509.CertificateRequest{
		ExtraExtensions: append([]pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}}, more...),
	}, key)
	if err != nil {
		t.Skip(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// Whatever names and extensions a request that is signed as it should be has: if it passes, it gets a leaf for the one
// identity that it passed for, and nothing else; and as the request of another datacenter, an authority for leaves.
func FuzzCSRContent(f *testing.F) {
	key := newKey(f, ca.KeyEC, 256)
	root, p := authority(f, ca.KeyEC, 256)
	f.Add(sequence(6, connect.ServiceID(domain, "dc1", "web").String()), byte(19), []byte{0x30, 0x03, 0x01, 0x01, 0xff})
	f.Add(sequence(6, connect.CAID(domain).String()), byte(15), []byte{0x03, 0x02, 0x02, 0x04})
	f.Add(sequence(6, connect.AgentID(domain, "dc1", "a b").String(), "spiffe://x"), byte(30), []byte{})
	f.Add(sequence(2, "a.b"), byte(17), sequence(6, "spiffe://x"))
	f.Add([]byte{0x30, 0x80}, byte(37), []byte{0x30})
	f.Fuzz(func(t *testing.T, names []byte, id byte, value []byte) {
		text := rawCSR(t, key, names, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, int(id)}, Value: value})
		if r, err := ca.ParseCSR(text, domain, "dc1"); err == nil {
			leaf, err := ca.SignLeaf(t.Context(), r, ca.LeafParams{Provider: p, Root: root, Serial: []byte{1}, Now: now, TTL: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			c := parse(t, leaf.CertPEM)
			if len(c.URIs) != 1 || c.URIs[0].String() != r.ID().String() || c.IsCA || len(c.DNSNames) != 0 && r.ID().Kind() != connect.Server ||
				r.ID().Datacenter() != "dc1" || !connect.SameTrustDomain(r.ID().TrustDomain(), domain) || r.ID().Kind() == connect.CA {
				t.Fatalf("signed %v, IsCA %v, for %v", c.URIs, c.IsCA, r.ID())
			}
		} else if !errors.Is(err, ca.ErrCSR) {
			t.Fatalf("error of another kind: %v", err)
		}
		if r, err := ca.ParseIntermediateCSR(text, domain); err == nil {
			cert, err := ca.SignIntermediate(t.Context(), r, ca.IntermediateParams{Provider: p, Datacenter: "dc2", Serial: []byte{1}, Now: now, TTL: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			c := parse(t, cert)
			if !c.IsCA || !c.MaxPathLenZero || len(c.URIs) != 1 || c.URIs[0].String() != connect.CAID(domain).String() || len(c.DNSNames) != 0 {
				t.Fatalf("signed %v, IsCA %v", c.URIs, c.IsCA)
			}
		} else if !errors.Is(err, ca.ErrCSR) {
			t.Fatalf("error of another kind: %v", err)
		}
	})
}

func TestParseIntermediateCSRRefuses(t *testing.T) {
	key, weak := newKey(t, ca.KeyEC, 256), newKey(t, ca.KeyEC, 224)
	right := connect.CAID(domain).String()
	tests := []struct{ name, csr, want string }{
		{"a leaf", rawCSR(t, key, sequence(6, connect.ServiceID(domain, "dc1", "web").String())), "must be the trust domain"},
		{"another trust domain", rawCSR(t, key, sequence(6, "spiffe://x.consul")), "different trust domain"},
		{"two names", rawCSR(t, key, sequence(6, right, right)), "invalid number of URIs: 2"},
		{"a weak key", rawCSR(t, weak, sequence(6, right)), "at least 256 bits"},
		{"rubbish", "x", "not one PEM block"},
	}
	for _, tt := range tests {
		if _, err := ca.ParseIntermediateCSR(tt.csr, domain); !errors.Is(err, ca.ErrCSR) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// An old provider that signs another key than the new root's is found out.
func TestCrossSigningIsChecked(t *testing.T) {
	_, old := authority(t, ca.KeyEC, 256)
	next, _ := authority(t, ca.KeyEC, 256)
	other, _ := authority(t, ca.KeyEC, 256)
	if _, err := ca.CrossSign(t.Context(), swap{old, parse(t, other.RootCert)}, next.RootCert, 9, now); err == nil || !strings.Contains(err.Error(), "not for the new root") {
		t.Errorf("another root was signed: %v", err)
	}
}

// swap cross-signs another root than it was asked for.
type swap struct {
	ca.Provider
	other *x509.Certificate
}

func (s swap) CrossSign(ctx context.Context, template, _ *x509.Certificate) ([]byte, error) {
	t := *template
	t.SerialNumber = big.NewInt(77)
	return s.Provider.CrossSign(ctx, &t, s.other)
}
