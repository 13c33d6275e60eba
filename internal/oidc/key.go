package oidc

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKeys    = 100      // of a set: a token that names no key is tried with each
	maxKeyText = 64 << 10 // of one key
	maxRSA     = 8192     // bits
)

// A Key is a public key that verifies tokens. Make one with ParsePEM or ParseKeys.
type Key struct {
	id, alg string // empty fits any
	value   any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// fits reports whether the key may have signed the token: a key of one kind is never used with another's algorithms.
func (k Key) fits(t *Token) bool {
	if k.id != "" && t.kid != "" && k.id != t.kid || k.alg != "" && k.alg != t.alg {
		return false
	}
	switch v := k.value.(type) {
	case *rsa.PublicKey:
		return t.alg[0] == 'R' || t.alg[0] == 'P'
	case *ecdsa.PublicKey:
		bits := v.Curve.Params().BitSize
		return t.alg == "ES256" && bits == 256 || t.alg == "ES384" && bits == 384 || t.alg == "ES512" && bits == 521
	case ed25519.PublicKey:
		return t.alg == "EdDSA"
	}
	return false
}

func newKey(value any) (Key, error) {
	switch v := value.(type) {
	case *rsa.PublicKey:
		if n := v.N.BitLen(); n > maxRSA {
			return Key{}, fmt.Errorf("an RSA key of %d bits is longer than %d", n, maxRSA)
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return Key{}, errors.New("not an RSA, ECDSA or Ed25519 key")
	}
	return Key{value: value}, nil
}

// ParsePEM reads a public key, or that of a certificate.
func ParsePEM(text string) (Key, error) {
	if len(text) > maxKeyText {
		return Key{}, fmt.Errorf("longer than %d bytes", maxKeyText)
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return Key{}, errors.New("not PEM")
	}
	switch block.Type {
	case "PUBLIC KEY":
		v, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return Key{}, err
		}
		return newKey(v)
	case "RSA PUBLIC KEY":
		v, err := x509.ParsePKCS1PublicKey(block.Bytes)
		if err != nil {
			return Key{}, err
		}
		return newKey(v)
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return Key{}, err
		}
		return newKey(c.PublicKey)
	}
	return Key{}, errors.New("not a public key or a certificate")
}

// ParseKeys reads a JSON Web Key Set. Keys that verify no accepted algorithm, symmetric ones among them, are left out;
// a set without any other is an error.
func ParseKeys(b []byte) ([]Key, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, errors.New("not a JSON Web Key Set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	var keys []Key
	for _, raw := range set.Keys {
		var j jose.JSONWebKey
		if len(raw) > maxKeyText || json.Unmarshal(raw, &j) != nil || j.Use != "" && j.Use != "sig" {
			continue
		}
		if _, symmetric := j.Key.([]byte); symmetric || !j.Valid() {
			continue
		}
		k, err := newKey(j.Public().Key)
		if err != nil {
			continue
		}
		k.id, k.alg = j.KeyID, j.Algorithm
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("no public key that verifies signatures")
	}
	return keys, nil
}
