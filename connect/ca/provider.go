package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"time"

	"github.com/sarnmesh/sarn/catalog/trust"
)

var (
	// ErrNoCrossSigning reports a provider that cannot sign another's root.
	ErrNoCrossSigning = errors.New("the provider does not support cross-signing")
	// ErrNoIntermediate reports a provider whose signing certificate cannot be renewed: its root signs.
	ErrNoIntermediate = errors.New("the provider signs with its root")
)

// A Provider signs under one root. The built-in one is made with NewBuiltIn; one that speaks to an outside authority
// does so in its methods, which may block until ctx ends. Its methods may be called at the same time.
//
// A provider never decides about names. It is given the certificate that is wanted as a template, and what it returns is
// compared with it before anybody gets to see it.
type Provider interface {
	// Root returns the root certificate in PEM.
	Root() string
	// Issuer returns the certificate that signs leaves: the root, or an intermediate under it.
	Issuer() *x509.Certificate
	// Intermediates returns, in PEM, what leaves are sent with so that the root verifies them, the issuer first; none when
	// the root signs itself.
	Intermediates() []string
	// Sign makes the certificate of a leaf from a template, signed by the issuer, in DER. csr has the key; it is what the
	// requester signed, for authorities that want to see that. Its names are not to be used unless they are the template's.
	Sign(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error)
	// SignIntermediate makes the signing certificate of another datacenter from a template, signed by the root, in DER.
	SignIntermediate(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error)
	// CrossSigns tells whether CrossSign works.
	CrossSigns() bool
	// CrossSign makes a certificate for the name and key of another root, signed by this root, in DER; or returns
	// ErrNoCrossSigning. The template says what it should be like, as far as the authority can be told.
	CrossSign(ctx context.Context, template, root *x509.Certificate) ([]byte, error)
	// Renew makes another intermediate under the same root and returns what is to be kept from now on; this provider goes
	// on with the intermediate it has. It returns ErrNoIntermediate where there is none, or somebody else looks after it.
	Renew(ctx context.Context) (*ProviderState, error)
	// Cleanup removes, at the outside authority, what only this root needed, which signs nothing any more. next is what
	// the provider of the active root keeps: what that one uses too stays.
	Cleanup(ctx context.Context, next *ProviderState) error
	// Close ends what the provider runs, without waiting for calls in progress.
	Close()
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
func (b *builtIn) CrossSigns() bool          { return true }

func (b *builtIn) Sign(_ context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	return x509.CreateCertificate(b.random, template, b.cert, csr.PublicKey, b.key)
}

func (b *builtIn) SignIntermediate(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	return b.Sign(ctx, template, csr)
}

func (b *builtIn) CrossSign(_ context.Context, template, root *x509.Certificate) ([]byte, error) {
	return x509.CreateCertificate(b.random, template, b.cert, root.PublicKey, b.key)
}

func (b *builtIn) Renew(context.Context) (*ProviderState, error) { return nil, ErrNoIntermediate }
func (b *builtIn) Cleanup(context.Context, *ProviderState) error { return nil }
func (b *builtIn) Close()                                        {}

// NewSecondary returns the provider of a datacenter whose signing certificate the primary one has signed: chain has it,
// then those between it and the root. It signs leaves and nothing else; another certificate comes from the primary.
func NewSecondary(rootPEM, chain string, key crypto.Signer, random io.Reader) (Provider, error) {
	between, issuer, err := SigningChain(&ProviderState{RootCert: rootPEM, Intermediate: chain})
	switch {
	case err != nil:
		return nil, fmt.Errorf("error parsing intermediate cert: %w", err)
	case between == nil:
		return nil, errors.New("there is no intermediate certificate")
	case !samePublic(issuer.PublicKey, key.Public()):
		return nil, errors.New("the private key does not belong to the intermediate certificate")
	}
	return &secondary{builtIn{rootPEM, issuer, key, random}, between}, nil
}

type secondary struct {
	builtIn
	between []string
}

func (s *secondary) Intermediates() []string { return s.between }
func (s *secondary) CrossSigns() bool        { return false }

func (s *secondary) SignIntermediate(context.Context, *x509.Certificate, *x509.CertificateRequest) ([]byte, error) {
	return nil, errors.New("only the primary datacenter signs the certificates of others")
}

func (s *secondary) CrossSign(context.Context, *x509.Certificate, *x509.Certificate) ([]byte, error) {
	return nil, ErrNoCrossSigning
}

// CrossSign lets the old provider vouch for a new root: it returns, in PEM, a certificate with the new root's name and
// key under the old root, valid for CrossSignedTTL where the provider can be told. Those who know only the old root
// verify new leaves with it.
func CrossSign(ctx context.Context, old Provider, newRoot string, serial uint64, now time.Time) (string, error) {
	cert, err := ParseCertificate(newRoot)
	if err != nil {
		return "", fmt.Errorf("error parsing root cert: %w", err)
	}
	issuer, err := ParseCertificate(old.Root())
	if err != nil {
		return "", fmt.Errorf("error parsing root cert: %w", err)
	}
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
	der, err := old.CrossSign(ctx, template, cert)
	if err != nil {
		return "", err
	}
	crossed, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		return "", fmt.Errorf("read cross-signed certificate: %w", err)
	case !crossed.IsCA || !samePublic(crossed.PublicKey, cert.PublicKey) || string(crossed.RawSubject) != string(cert.RawSubject):
		return "", errors.New("the cross-signed certificate is not for the new root")
	}
	if err := crossed.CheckSignatureFrom(issuer); err != nil {
		return "", fmt.Errorf("the cross-signed certificate is not signed by the old root: %w", err)
	}
	return EncodeCertificate(der), nil
}

// CheckEstablished returns an error unless a provider can sign with what it has established: the root is an authority for
// the trust domain, and the certificates between it and the leaves, the signing one first, are verified by it.
func CheckEstablished(kept *trust.ProviderState, clusterID string, now time.Time) error {
	root, err := ParseCertificate(kept.RootCert)
	if err != nil {
		return fmt.Errorf("error parsing root cert: %w", err)
	}
	if err := CheckAuthority(root, clusterID, now); err != nil {
		return err
	}
	if kept.Intermediate == "" {
		return nil
	}
	chain, err := ParseCertificates(kept.Intermediate)
	if err != nil {
		return fmt.Errorf("error parsing intermediate cert: %w", err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if !chain[0].IsCA {
		return errors.New("the intermediate certificate is not a certificate authority")
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("the intermediate certificate is not one of the root: %w", err)
	}
	return nil
}

// SigningChain returns the certificates that a provider with this state sends along with leaves, each in PEM, the signing
// one first, and the signing one parsed: the root itself when there are none.
func SigningChain(kept *trust.ProviderState) (intermediates []string, issuer *x509.Certificate, err error) {
	if kept.Intermediate == "" {
		issuer, err = ParseCertificate(kept.RootCert)
		return nil, issuer, err
	}
	chain, err := ParseCertificates(kept.Intermediate)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range chain {
		intermediates = append(intermediates, EncodeCertificate(c.Raw))
	}
	return intermediates, chain[0], nil
}

// HalfLifeOver tells whether more than half of the life of a certificate is over, when it is time for another.
func HalfLifeOver(cert *x509.Certificate, now time.Time) bool {
	return now.After(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2))
}

// SameConfig compares settings that may have been through the log.
func SameConfig(a, b map[string]any) bool {
	return maps.EqualFunc(a, b, func(x, y any) bool { return fmt.Sprint(x) == fmt.Sprint(y) })
}
