package model

import (
	"crypto/tls"
	"crypto/x509"
)

// TLS is what the contexts of both sides have in common.
type TLS struct {
	Certificates []Certificate
	CertSecrets  []string // SDS names of further certificates

	Validation       *Validation // nil checks nothing
	ValidationSecret string      // SDS name of a validation context that Validation, if set, is merged over

	ALPN       []string
	MinVersion uint16 // of package crypto/tls; 0 takes the default
	MaxVersion uint16
	Ciphers    []uint16 // TLS 1.2 only; nil takes the default
	Curves     []tls.CurveID
}

// Secrets returns the SDS names that the context needs.
func (t *TLS) Secrets() []string {
	names := t.CertSecrets
	if t.ValidationSecret != "" {
		names = append(names[:len(names):len(names)], t.ValidationSecret)
	}
	return names
}

// DownstreamTLS is the TLS context of a server.
type DownstreamTLS struct {
	TLS
	RequireClientCertificate bool
	DisableResumption        bool
}

// UpstreamTLS is the TLS context of a client.
type UpstreamTLS struct {
	TLS
	SNI               string // server name to ask for; empty asks for none
	DisableResumption bool
}

// A Certificate is a chain with its private key. Name and place are for humans.
type Certificate struct {
	TLS tls.Certificate // with Leaf parsed
}

// A Validation says which peer certificates are good.
type Validation struct {
	Roots []*x509.Certificate // any of them may anchor a chain; empty trusts nobody, unless NoTrust
	// NoTrust accepts chains from anybody; hashes, if any, still must match.
	NoTrust bool

	// Bundles, if not nil, holds the roots of each trust domain and replaces
	// Roots: the peer must show exactly one URI SAN, a SPIFFE ID whose trust
	// domain picks the bundle.
	Bundles map[string][]*x509.Certificate

	SANs         []SANMatch // any must match; empty accepts all names
	SPKIHashes   [][]byte   // SHA-256 of the public key of the leaf, any of them
	CertHashes   [][]byte   // SHA-256 of the leaf, any of them
	AllowExpired bool
	MaxDepth     int // intermediates allowed; -1 unlimited
	CRLs         []*x509.RevocationList
	CRLOnlyLeaf  bool
}

// A SANMatch is a rule about one type of subject alternative name.
type SANMatch struct {
	Type  SANType
	Match StringMatch
}

// A SANType is a type of subject alternative name.
type SANType uint8

// The types of names.
const (
	SANURI SANType = iota + 1
	SANDNS
	SANEmail
	SANIP
)

// A Secret is what SDS delivers under a name: certificates or a validation context.
type Secret struct {
	Name        string
	Certificate *Certificate
	Validation  *Validation
}
