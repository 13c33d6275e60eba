package ca

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/sarnmesh/sarn/connect"
)

// An IntermediateRequest is a certificate request of another datacenter's servers that passed ParseIntermediateCSR.
type IntermediateRequest struct {
	id  connect.ID
	csr *x509.CertificateRequest
}

// ParseIntermediateCSR reads the request for the signing certificate of a secondary datacenter: signed with its own key,
// which is strong enough, and naming the trust domain, nothing else.
func ParseIntermediateCSR(text, trustDomain string) (*IntermediateRequest, error) {
	csr, err := readCSR(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	id, err := connect.ParseID(csr.URIs[0].String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if id.Kind() != connect.CA {
		return nil, fmt.Errorf("%w: SPIFFE ID in the CSR of an intermediate must be the trust domain", ErrCSR)
	}
	if !connect.SameTrustDomain(id.TrustDomain(), trustDomain) {
		return nil, fmt.Errorf("%w: SPIFFE ID in CSR from a different trust domain: %s, we are %s", ErrCSR, id.TrustDomain(), trustDomain)
	}
	return &IntermediateRequest{connect.CAID(trustDomain), csr}, nil
}

// IntermediateParams are what the signing certificate of another datacenter is made of beside the request.
type IntermediateParams struct {
	Provider   Provider
	Datacenter string // it is for
	Serial     []byte // as in LeafParams
	Now        time.Time
	TTL        time.Duration
}

// SignIntermediate makes the signing certificate of another datacenter, in PEM: an authority for leaves only, in the trust
// domain, whatever else the request says.
func SignIntermediate(ctx context.Context, r *IntermediateRequest, p IntermediateParams) (string, error) {
	root, err := ParseCertificate(p.Provider.Root())
	if err != nil {
		return "", fmt.Errorf("error parsing root cert: %w", err)
	}
	keyID, err := KeyID(r.csr.PublicKey)
	if err != nil {
		return "", err
	}
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(p.Serial),
		Subject:               pkix.Name{CommonName: IntermediateName(r.id.TrustDomain(), p.Datacenter)},
		URIs:                  []*url.URL{r.id.URL()},
		SignatureAlgorithm:    signatureAlgorithm(root.PublicKey),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		NotBefore:             p.Now.Add(-backdate),
		NotAfter:              earlier(p.Now.Add(p.TTL), root.NotAfter),
		AuthorityKeyId:        root.SubjectKeyId,
		SubjectKeyId:          keyID,
	}
	if !template.NotAfter.After(p.Now) {
		return "", errors.New("the root certificate has expired")
	}
	der, err := p.Provider.SignIntermediate(ctx, template, r.csr)
	if err != nil {
		return "", fmt.Errorf("sign intermediate certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", fmt.Errorf("read signed certificate: %w", err)
	}
	if err := checkSigned(cert, template, r.csr.PublicKey, root); err != nil {
		return "", fmt.Errorf("the CA provider signed something else than it was asked for: %w", err)
	}
	return EncodeCertificate(der), nil
}

// IntermediateName is the common name of a datacenter's signing certificate, at most 64 characters long.
func IntermediateName(trustDomain, datacenter string) string {
	short := trustDomain
	if len(short) > 8 {
		short = short[:8]
	}
	if len(datacenter) > 24 {
		datacenter = datacenter[:24]
	}
	return fmt.Sprintf("int-%s.consul.ca.%s.consul", datacenter, short)
}
