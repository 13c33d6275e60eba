package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"time"

	"github.com/sarnmesh/sarn/connect"
)

// backdate is how long before it is made a certificate becomes valid, for clocks that run slow.
const backdate = time.Minute

// CrossSignedTTL is how long a cross-signed certificate is valid: the time in which everybody has learnt the new root.
const CrossSignedTTL = 7 * 24 * time.Hour

// RootParams are what a new self-signed root is made of.
type RootParams struct {
	Key       crypto.Signer
	Serial    uint64 // positive
	ClusterID string
	Label     string // 8 characters of [a-z0-9] that tell roots apart
	Now       time.Time
	TTL       time.Duration
	Random    io.Reader // for the signature
}

// NewRoot makes a self-signed root and returns it in PEM.
func NewRoot(p RootParams) (string, error) {
	keyID, err := KeyID(p.Key.Public())
	if err != nil {
		return "", err
	}
	id := connect.CAID(connect.TrustDomain(p.ClusterID))
	short := p.ClusterID
	if len(short) > 8 {
		short = short[:8]
	}
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetUint64(p.Serial),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("pri-%s.consul.ca.%s.consul", p.Label, short)},
		URIs:                  []*url.URL{id.URL()},
		SignatureAlgorithm:    signatureAlgorithm(p.Key.Public()),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		NotBefore:             p.Now.Add(-backdate),
		NotAfter:              p.Now.Add(p.TTL),
		AuthorityKeyId:        keyID,
		SubjectKeyId:          keyID,
	}
	der, err := x509.CreateCertificate(p.Random, template, template, p.Key.Public(), p.Key)
	if err != nil {
		return "", fmt.Errorf("sign root certificate: %w", err)
	}
	return EncodeCertificate(der), nil
}

// DescribeRoot returns the Root of a root certificate in PEM. name is what operators call its provider.
func DescribeRoot(certPEM, name, clusterID string) (*Root, error) {
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("error parsing root cert: %w", err)
	}
	if !cert.IsCA {
		return nil, errors.New("the root certificate is not a certificate authority")
	}
	keyType, bits := KeyInfo(cert.PublicKey)
	keyID := cert.SubjectKeyId
	if len(keyID) == 0 {
		if keyID, err = KeyID(cert.PublicKey); err != nil {
			return nil, err
		}
	}
	return &Root{
		ID:                  Fingerprint(cert.Raw),
		Name:                name,
		SerialNumber:        cert.SerialNumber.Uint64(),
		SigningKeyID:        Hex(keyID),
		ExternalTrustDomain: clusterID,
		NotBefore:           cert.NotBefore,
		NotAfter:            cert.NotAfter,
		RootCert:            certPEM,
		PrivateKeyType:      keyType,
		PrivateKeyBits:      bits,
	}, nil
}

// CheckRoot returns an error unless cert can be a root of the cluster's trust domain, as CheckAuthority has it, and key is
// its key.
func CheckRoot(cert *x509.Certificate, key crypto.Signer, clusterID string, now time.Time) error {
	if err := CheckAuthority(cert, clusterID, now); err != nil {
		return err
	}
	if !samePublic(cert.PublicKey, key.Public()) {
		return errors.New("the private key does not belong to the root certificate")
	}
	return nil
}

// CheckAuthority returns an error unless cert can be a root of the cluster's trust domain: a certificate authority in its
// time of validity, whose name, if it has a SPIFFE one, is the trust domain.
func CheckAuthority(cert *x509.Certificate, clusterID string, now time.Time) error {
	switch {
	case !cert.IsCA || !cert.BasicConstraintsValid:
		return errors.New("the root certificate is not a certificate authority")
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("the root certificate may not sign certificates")
	case now.Before(cert.NotBefore) || now.After(cert.NotAfter):
		return errors.New("the root certificate is not valid at this time")
	}
	for _, u := range cert.URIs {
		if id, err := connect.ParseID(u.String()); err == nil {
			if id.Kind() != connect.CA || !connect.SameTrustDomain(id.TrustDomain(), connect.TrustDomain(clusterID)) {
				return fmt.Errorf("the root certificate is for %s, not for the trust domain of this cluster", u)
			}
		}
	}
	return nil
}

// SameAuthority tells whether two certificates in PEM are of the same authority: its name and its key, whoever signed them.
func SameAuthority(a, b string) bool {
	x, err := ParseCertificate(a)
	if err != nil {
		return false
	}
	y, err := ParseCertificate(b)
	return err == nil && bytes.Equal(x.RawSubject, y.RawSubject) && samePublic(x.PublicKey, y.PublicKey)
}

func samePublic(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
