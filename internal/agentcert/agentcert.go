// Package agentcert makes the certificates that agents and servers show one another: an authority, and what it signs. They
// are made from two files of PEM; the authority of the mesh, which the servers keep, is connect/ca.
package agentcert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

// skew is how long before it is made a certificate is valid, for machines whose clocks are late.
const skew = time.Minute

// An Authority is the certificate of one to be made.
type Authority struct {
	Name     string // empty for one with the serial number
	Validity time.Duration
	Only     []string // domains it may sign for; none for any
	URI      string   // empty for none
}

// Make returns the authority's certificate and key as PEM.
func (a Authority) Make(now time.Time) (cert, key []byte, err error) {
	number, signer, id, err := fresh()
	if err != nil {
		return nil, nil, err
	}
	name := a.Name
	if name == "" {
		name = fmt.Sprintf("Sarn Agent CA %d", number)
	}
	t := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-skew), NotAfter: now.Add(a.Validity),
		BasicConstraintsValid: true, IsCA: true, SubjectKeyId: id, AuthorityKeyId: id,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	if len(a.Only) > 0 {
		t.PermittedDNSDomainsCritical, t.PermittedDNSDomains = true, a.Only
	}
	if a.URI != "" {
		u, err := url.Parse(a.URI)
		if err != nil {
			return nil, nil, err
		}
		t.URIs = []*url.URL{u}
	}
	return sign(t, t, signer, signer)
}

// A Leaf is a certificate of an agent or a command line to be made.
type Leaf struct {
	Name         string
	Hosts, Addrs []string
	Validity     time.Duration
	Peer         bool // it is shown by clients and by servers of TLS
}

// Make returns the certificate, signed by an authority, and its key as PEM.
func (l Leaf) Make(now time.Time, caPEM, caKeyPEM []byte) (cert, key []byte, err error) {
	ca, caKey, err := parseCA(caPEM, caKeyPEM, now)
	if err != nil {
		return nil, nil, err
	}
	number, signer, id, err := fresh()
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: l.Name}, DNSNames: l.Hosts, NotBefore: now.Add(-skew), NotAfter: now.Add(l.Validity),
		BasicConstraintsValid: true, SubjectKeyId: id, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	if l.Peer {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	for _, a := range l.Addrs {
		ip := net.ParseIP(a)
		if ip == nil {
			return nil, nil, fmt.Errorf("%q is not an IP address", a)
		}
		t.IPAddresses = append(t.IPAddresses, ip)
	}
	cert, key, err = sign(t, ca, signer, caKey)
	if err != nil {
		return nil, nil, err
	}
	// An authority that may not sign for a name would make a certificate nobody accepts.
	made, err := x509.ParseCertificate(block(cert).Bytes)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := made.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, nil, fmt.Errorf("the authority may not sign this: %w", err)
	}
	return cert, key, nil
}

// fresh makes what every certificate has of its own: a serial number, a key and the key's ID.
func fresh() (number *big.Int, signer *ecdsa.PrivateKey, id []byte, err error) {
	if number, err = serial(); err != nil {
		return nil, nil, nil, err
	}
	if signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, nil, err
	}
	id, err = keyID(signer.Public())
	return number, signer, id, err
}

// sign makes a certificate of the template for the key, and returns both as PEM.
func sign(t, parent *x509.Certificate, key *ecdsa.PrivateKey, by crypto.Signer) (certPEM, keyPEM []byte, err error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), by)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), nil
}

// block returns the first PEM block, an empty one if there is none.
func block(data []byte) *pem.Block {
	if b, _ := pem.Decode(data); b != nil {
		return b
	}
	return &pem.Block{}
}

// parseCA reads the two files of an authority that is to sign at a time.
func parseCA(certPEM, keyPEM []byte, now time.Time) (*x509.Certificate, crypto.Signer, error) {
	b := block(certPEM)
	if b.Type != "CERTIFICATE" {
		return nil, nil, errors.New("there is no certificate in the file of the authority")
	}
	ca, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate of the authority: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, nil, err
	}
	own, err := x509.MarshalPKIXPublicKey(key.Public())
	switch {
	case err != nil:
		return nil, nil, err
	case !bytes.Equal(own, ca.RawSubjectPublicKeyInfo):
		return nil, nil, errors.New("the key is not that of the authority's certificate")
	case !ca.IsCA:
		return nil, nil, errors.New("the certificate is not that of an authority")
	case now.After(ca.NotAfter):
		return nil, nil, fmt.Errorf("the authority's certificate expired on %s", ca.NotAfter.Format(time.RFC3339))
	}
	return ca, key, nil
}

// parseKey reads a private key in any of its usual forms. Errors do not show any of it.
func parseKey(data []byte) (crypto.Signer, error) {
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return nil, errors.New("there is no private key in the file of the authority's key")
		}
		var key any
		var err error
		switch b.Type {
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		default:
			continue // such as EC PARAMETERS
		}
		if err != nil {
			return nil, errors.New("the authority's key cannot be read")
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, errors.New("the authority's key cannot sign")
		}
		return signer, nil
	}
}

// keyID identifies a public key (RFC 7093, section 2).
func keyID(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}

// serial returns a random positive number of 128 bits at most.
func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}
