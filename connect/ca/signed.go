package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// clockSlack is how far the clock of an outside authority may be ahead.
const clockSlack = 10 * time.Minute

// checkSigned compares what a provider has signed with what it was asked for: the key, the names byte by byte, that it is
// no authority itself, its end, and whose signature it bears (spec/threats.md classes 1 and 18).
func checkSigned(cert, template *x509.Certificate, key crypto.PublicKey, issuer *x509.Certificate) error {
	if !samePublic(cert.PublicKey, key) {
		return errors.New("the certificate is for another key")
	}
	got, err := alternativeNames(cert.Extensions)
	if err != nil {
		return err
	}
	var want []string
	for _, u := range template.URIs {
		want = append(want, string([]byte{tagURI})+u.String())
	}
	for _, name := range template.DNSNames {
		want = append(want, string([]byte{tagDNS})+name)
	}
	for _, ip := range template.IPAddresses {
		if v4 := ip.To4(); v4 != nil {
			ip = v4
		}
		want = append(want, string([]byte{tagIP})+string(ip))
	}
	slices.Sort(want)
	switch {
	case !slices.Equal(got, want):
		return fmt.Errorf("the certificate has other names: %q, want %q", got, want)
	case template.RawSubject == nil && len(template.Subject.Names) == 0 && template.Subject.CommonName == "" && len(cert.Subject.Names) != 0:
		return fmt.Errorf("the certificate has a subject, %q", cert.Subject)
	case cert.IsCA != template.IsCA:
		return fmt.Errorf("authority: %v, want %v", cert.IsCA, template.IsCA)
	case template.IsCA && template.MaxPathLenZero && (cert.MaxPathLen != 0 || !cert.MaxPathLenZero):
		return errors.New("the certificate may sign other authorities")
	case !template.IsCA && cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("the certificate may sign others")
	case cert.NotAfter.After(template.NotAfter.Add(clockSlack)):
		return fmt.Errorf("the certificate is valid until %v, want %v", cert.NotAfter, template.NotAfter)
	}
	for _, use := range template.ExtKeyUsage {
		if !slices.Contains(cert.ExtKeyUsage, use) && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) {
			return errors.New("the certificate is not for clients and servers")
		}
	}
	return cert.CheckSignatureFrom(issuer)
}

// Tags of alternative names (RFC 5280, section 4.2.1.6).
const (
	tagDNS = 2
	tagURI = 6
	tagIP  = 7
)

var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidAlternativeNames = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
)

// wantsAuthority returns an error if a request asks for a certificate that signs others. It would not get one, but who
// asks for it is up to something.
func wantsAuthority(csr *x509.CertificateRequest) error {
	for _, e := range csr.Extensions {
		switch {
		case e.Id.Equal(oidBasicConstraints):
			var c struct {
				IsCA       bool `asn1:"optional"`
				MaxPathLen int  `asn1:"optional,default:-1"`
			}
			if rest, err := asn1.Unmarshal(e.Value, &c); err != nil || len(rest) != 0 || c.IsCA {
				return errors.New("CSR asks for a certificate authority")
			}
		case e.Id.Equal(oidKeyUsage):
			var bits asn1.BitString
			if rest, err := asn1.Unmarshal(e.Value, &bits); err != nil || len(rest) != 0 || bits.At(usageCertSign) != 0 || bits.At(usageCRLSign) != 0 {
				return errors.New("CSR asks for the right to sign certificates")
			}
		}
	}
	return nil
}

// Bits of key usages (RFC 5280, section 4.2.1.3).
const (
	usageCertSign = 5
	usageCRLSign  = 6
)

// alternativeNames returns the alternative names of a certificate or request, sorted, each as the byte of its tag and its
// bytes; those of kinds that the standard library passes over too.
func alternativeNames(extensions []pkix.Extension) ([]string, error) {
	var out []string
	for _, e := range extensions {
		if !e.Id.Equal(oidAlternativeNames) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) != 0 {
			return nil, errors.New("the alternative names cannot be read")
		}
		for _, n := range names {
			out = append(out, string([]byte{byte(n.Tag)})+string(n.Bytes))
		}
	}
	slices.Sort(out)
	return out, nil
}
