package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	blockCertificate = "CERTIFICATE"
	blockRequest     = "CERTIFICATE REQUEST"
)

// GenerateKey makes a private key with randomness from random.
func GenerateKey(random io.Reader, keyType string, bits int) (crypto.Signer, error) {
	switch keyType {
	case KeyRSA:
		return rsa.GenerateKey(random, bits)
	case KeyEC:
		for _, c := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
			if c.Params().BitSize == bits {
				return ecdsa.GenerateKey(c, random)
			}
		}
	}
	return nil, fmt.Errorf("cannot make a key of type %q with %d bits", keyType, bits)
}

// EncodeKey returns a private key in PEM: an elliptic one as "EC PRIVATE KEY", an RSA one as "RSA PRIVATE KEY".
func EncodeKey(key crypto.Signer) (string, error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return "", err
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})), nil
	case *rsa.PrivateKey:
		return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})), nil
	}
	return "", fmt.Errorf("cannot encode a private key of type %T", key)
}

// ParseKey reads a private key in PEM of any of the usual forms. Its errors never contain the input.
func ParseKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM-encoded data found")
	}
	switch block.Type {
	case "EC PRIVATE KEY":
		k, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("the EC private key cannot be parsed")
		}
		return k, nil
	case "RSA PRIVATE KEY":
		k, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("the RSA private key cannot be parsed")
		}
		return k, nil
	case "PRIVATE KEY":
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("the private key cannot be parsed")
		}
		if s, ok := k.(crypto.Signer); ok {
			return s, nil
		}
	}
	return nil, fmt.Errorf("unknown PEM block type for signing key: %s", block.Type)
}

// KeyInfo tells the type and size of a public key, "" and 0 when it is of no supported type.
func KeyInfo(key crypto.PublicKey) (keyType string, bits int) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return KeyEC, k.Curve.Params().BitSize
	case *rsa.PublicKey:
		return KeyRSA, k.N.BitLen()
	case ed25519.PublicKey:
		return "ed25519", 256
	}
	return "", 0
}

// EncodeCertificate returns a certificate in PEM.
func EncodeCertificate(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: der}))
}

// ParseCertificate reads the first certificate of a PEM text.
func ParseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM-encoded data found")
	}
	if block.Type != blockCertificate {
		return nil, fmt.Errorf("first PEM-block should be %s type", blockCertificate)
	}
	return x509.ParseCertificate(block.Bytes)
}

// maxChain bounds the certificates of one text.
const maxChain = 16

// ParseCertificates reads all certificates of a PEM text that has nothing else, at least one.
func ParseCertificates(text string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := []byte(text); len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("no PEM-encoded data found")
		}
		if block.Type != blockCertificate {
			return nil, fmt.Errorf("a PEM block is of type %s, not %s", block.Type, blockCertificate)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if out = append(out, c); len(out) > maxChain {
			return nil, fmt.Errorf("more than %d certificates", maxChain)
		}
	}
	if out == nil {
		return nil, errors.New("no PEM-encoded data found")
	}
	return out, nil
}

// Hex writes bytes in hexadecimal, separated by colons.
func Hex(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for i, c := range b {
		if i > 0 {
			s.WriteByte(':')
		}
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

// Fingerprint is the ID of a certificate: the SHA-1 of its DER form. It identifies; it is not relied on for security.
func Fingerprint(der []byte) string {
	sum := sha1.Sum(der)
	return Hex(sum[:])
}

// KeyID identifies a public key on certificates.
func KeyID(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// signatureAlgorithm returns the algorithm a key signs with.
func signatureAlgorithm(key crypto.PublicKey) x509.SignatureAlgorithm {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return x509.SHA256WithRSA
	case *ecdsa.PublicKey:
		switch {
		case k.Curve.Params().BitSize > 384:
			return x509.ECDSAWithSHA512
		case k.Curve.Params().BitSize > 256:
			return x509.ECDSAWithSHA384
		}
		return x509.ECDSAWithSHA256
	case ed25519.PublicKey:
		return x509.PureEd25519
	}
	return x509.UnknownSignatureAlgorithm
}
