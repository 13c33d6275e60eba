package ca

import (
	"context"
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

// CheckRoot returns an error unless cert can sign for the trust domain of the cluster with key: a certificate authority
// in its time of validity whose key that is, and whose name, if it has a SPIFFE one, is the trust domain.
func CheckRoot(cert *x509.Certificate, key crypto.Signer, clusterID string, now time.Time) error {
	switch {
	case !cert.IsCA || !cert.BasicConstraintsValid:
		return errors.New("the root certificate is not a certificate authority")
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("the root certificate may not sign certificates")
	case now.Before(cert.NotBefore) || now.After(cert.NotAfter):
		return errors.New("the root certificate is not valid at this time")
	}
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return errors.New("the private key does not belong to the root certificate")
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

// ErrNoCrossSigning reports a provider that cannot sign another's root.
var ErrNoCrossSigning = errors.New("the provider does not support cross-signing")

// A Provider signs under one root. The built-in one is made with NewBuiltIn; one that speaks to an outside authority
// does so in its methods, which may block until ctx ends.
type Provider interface {
	// Root returns the root certificate in PEM.
	Root() string
	// Issuer returns the certificate that signs leaves: the root, or an intermediate under it.
	Issuer() *x509.Certificate
	// Intermediates returns, in PEM, what leaves are sent with so that the root verifies them; none when it signs itself.
	Intermediates() []string
	// Sign makes a certificate from a template for a public key, signed by the issuer, in DER.
	Sign(ctx context.Context, template *x509.Certificate, key crypto.PublicKey) ([]byte, error)
	// CrossSign makes a certificate for another root's name and key, signed by this provider, in DER; or returns
	// ErrNoCrossSigning.
	CrossSign(ctx context.Context, template *x509.Certificate, key crypto.PublicKey) ([]byte, error)
}

// NewBuiltIn returns a provider that signs with a root's own key. Signatures take randomness from random.
func NewBuiltIn(rootPEM string, key crypto.Signer, random io.Reader) (Provider, error) {
	cert, err := ParseCertificate(rootPEM)
	if err != nil {
		return nil, fmt.Errorf("error parsing root cert: %w", err)
	}
	return &builtIn{rootPEM, cert, key, random}, nil
}

type builtIn struct {
	pem    string
	cert   *x509.Certificate
	key    crypto.Signer
	random io.Reader
}

func (b *builtIn) Root() string              { return b.pem }
func (b *builtIn) Issuer() *x509.Certificate { return b.cert }
func (b *builtIn) Intermediates() []string   { return nil }

func (b *builtIn) Sign(_ context.Context, template *x509.Certificate, key crypto.PublicKey) ([]byte, error) {
	return x509.CreateCertificate(b.random, template, b.cert, key, b.key)
}

func (b *builtIn) CrossSign(ctx context.Context, template *x509.Certificate, key crypto.PublicKey) ([]byte, error) {
	return b.Sign(ctx, template, key)
}

// CrossSign lets the old provider vouch for a new root: it returns, in PEM, a certificate with the new root's name and
// key under the old root, valid for CrossSignedTTL. Those who know only the old root verify new leaves with it.
func CrossSign(ctx context.Context, old Provider, newRoot string, serial uint64, now time.Time) (string, error) {
	cert, err := ParseCertificate(newRoot)
	if err != nil {
		return "", fmt.Errorf("error parsing root cert: %w", err)
	}
	issuer := old.Issuer()
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetUint64(serial),
		RawSubject:            cert.RawSubject,
		URIs:                  cert.URIs,
		SignatureAlgorithm:    signatureAlgorithm(issuer.PublicKey),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              cert.KeyUsage,
		NotBefore:             now.Add(-backdate),
		NotAfter:              earlier(now.Add(CrossSignedTTL), earlier(issuer.NotAfter, cert.NotAfter)),
		SubjectKeyId:          cert.SubjectKeyId,
		AuthorityKeyId:        issuer.SubjectKeyId,
	}
	der, err := old.CrossSign(ctx, template, cert.PublicKey)
	if err != nil {
		return "", err
	}
	return EncodeCertificate(der), nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
