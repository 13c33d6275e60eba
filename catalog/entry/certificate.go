package entry

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// An InlineCertificate is a certificate for gateways, kept in the entry (spec/connect.md section 8.15).
type InlineCertificate struct {
	Header
	Certificate string // PEM chain
	PrivateKey  string // PEM
}

// A FileSystemCertificate is a certificate for gateways, kept in files of the gateway's machine.
type FileSystemCertificate struct {
	Header
	Certificate string // path
	PrivateKey  string // path
}

// minRSABits is the least size of an RSA key.
const minRSABits = 2048

// Validate checks that the certificate and the key can be used, and belong together. Its errors never contain the key.
func (e *InlineCertificate) Validate() error {
	if e.Name == "" {
		return errName
	}
	key, _ := pem.Decode([]byte(e.PrivateKey))
	if key == nil {
		return errors.New("failed to parse private key PEM")
	}
	block, _ := pem.Decode([]byte(e.Certificate))
	if block == nil {
		return errors.New("failed to parse certificate PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("failed to parse certificate: %w", err)
	}
	for _, key := range []any{cert.PublicKey, publicKey(key.Bytes)} {
		if k, ok := key.(*rsa.PublicKey); ok && k.N.BitLen() < minRSABits {
			return fmt.Errorf("key length must be at least %d bits", minRSABits)
		}
	}
	for _, name := range cert.DNSNames {
		if plain, _ := strings.CutPrefix(name, "*."); !isHostname(plain) {
			return fmt.Errorf("host %q must be a valid DNS hostname", name)
		}
	}
	if _, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.PrivateKey)); err != nil {
		return errors.New("the private key does not belong to the certificate")
	}
	return nil
}

// publicKey returns the public part of an RSA key, nil for keys of other kinds.
func publicKey(der []byte) any {
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return &k.PublicKey
	}
	if k, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		if k, ok := k.(*rsa.PrivateKey); ok {
			return &k.PublicKey
		}
	}
	return nil
}

// Validate checks the entry; the files are the gateway's.
func (e *FileSystemCertificate) Validate() error {
	if e.Name == "" {
		return errName
	}
	return nil
}
