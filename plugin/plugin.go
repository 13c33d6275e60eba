// Package plugin is the contract between Sarn's servers and programs that are certificate authorities for the mesh, and
// what such a program needs to keep it.
//
// A program implements Provider and calls Serve in its main function:
//
//	func main() { plugin.Serve(&authority{}) }
//
// A server whose own configuration names the program starts it while it is the leader, checks its SHA-256 first, speaks to
// it over a local socket with mutual TLS, starts it again when it dies, and ends it with its own end. Every call brings all
// that the program has said it wants to keep, so a program needs no memory of its own: the servers replicate what it keeps,
// and the next leader's program goes on with it.
//
// A provider does not decide who is who. The servers check a request for a certificate, say what the certificate is to
// contain, and compare what they get with that: a certificate with other names, another key or a later end goes nowhere.
//
// On the wire it is gRPC, service sarn.ca.v1.Provider, a unary method for each of Provider's, with messages in JSON
// (content-type application/grpc+json): the types of this package as encoding/json writes them. A program in another
// language keeps to that and to the handshake of github.com/hashicorp/go-plugin.
package plugin

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// MaxMessage bounds a request and an answer, in bytes.
const MaxMessage = 1 << 20

// A Provider is a certificate authority. Its methods may be called at the same time, and are to end with their context. An
// error's text is shown to operators; no secret may be in it.
type Provider interface {
	// Establish makes the root that the settings ask for, and what signs under it, or finds what is there. With Current
	// given and New not, it is to return the same root if the settings allow that.
	Establish(ctx context.Context, r *EstablishRequest) (*Kept, error)
	// Sign makes the certificate of a leaf, signed by the first of the intermediates, or by the root if there are none.
	Sign(ctx context.Context, r *SignRequest) (*Certificate, error)
	// SignIntermediate makes the signing certificate of another datacenter, signed by the root.
	SignIntermediate(ctx context.Context, r *SignRequest) (*Certificate, error)
	// CrossSign signs another root's name and key with this root. It is not called unless Kept.CrossSigns is set.
	CrossSign(ctx context.Context, r *CrossSignRequest) (*Certificate, error)
	// Renew makes another intermediate under the same root. It is not called where there is none.
	Renew(ctx context.Context, r *RenewRequest) (*Kept, error)
	// Cleanup removes what only this root needed. It signs nothing any more.
	Cleanup(ctx context.Context, r *CleanupRequest) (*CleanupReply, error)
}

// Kept is what the servers replicate of a provider.
type Kept struct {
	Root          string   // PEM, self-signed
	Intermediates []string `json:",omitempty"` // PEM: what signs leaves, then those between it and the root
	// State is shown to operators: no secrets.
	State map[string]string `json:",omitempty"`
	// Secret is part of the servers' log and snapshots, and is shown to nobody.
	Secret     string `json:",omitempty"`
	CrossSigns bool
}

// Settings are what an operator wants of a provider.
type Settings struct {
	// Config is the ca_config block, without the program. Keys are as the operator wrote them.
	Config              map[string]any
	TrustDomain         string // of the cluster
	PrivateKeyType      string // "ec" or "rsa"
	PrivateKeyBits      int
	RootCertTTL         time.Duration // in nanoseconds, as all durations
	IntermediateCertTTL time.Duration
	LeafCertTTL         time.Duration
}

// An EstablishRequest says what is wanted.
type EstablishRequest struct {
	Settings
	Current *Kept `json:",omitempty"` // what there is now, nil when another provider was in use
	New     bool  // another root is wanted, even if the settings did not change
}

// A SignRequest asks for a certificate.
type SignRequest struct {
	Settings
	Kept Kept
	// CSR is what the requester has signed, PEM. Its names are not to be used: those below are.
	CSR        string
	PublicKey  string   // PEM, of type PUBLIC KEY
	Serial     string   // hexadecimal; an authority that counts itself may use another
	CommonName string   `json:",omitempty"` // empty for leaves: they have no subject
	URIs       []string // alternative names
	DNSNames   []string `json:",omitempty"`
	NotBefore  time.Time
	NotAfter   time.Time
	IsCA       bool // an authority for leaves only: with a path length of 0
}

// A CrossSignRequest asks for a certificate with the name and key of another root.
type CrossSignRequest struct {
	Settings
	Kept      Kept
	Root      string // PEM, the other root
	Serial    string // hexadecimal
	NotBefore time.Time
	NotAfter  time.Time
}

// A RenewRequest asks for another intermediate.
type RenewRequest struct {
	Settings
	Kept Kept
}

// A CleanupRequest asks to tidy up.
type CleanupRequest struct {
	Settings
	Kept Kept
	// Next is what is in use now if it is of the same provider: what that needs is to stay.
	Next *Kept `json:",omitempty"`
}

// CleanupReply has nothing to say.
type CleanupReply struct{}

// A Certificate is one in PEM.
type Certificate struct{ PEM string }

// Template returns what is asked for as x509.CreateCertificate takes it, and the key that it is for.
func (r *SignRequest) Template() (*x509.Certificate, crypto.PublicKey, error) {
	block, _ := pem.Decode([]byte(r.PublicKey))
	if block == nil {
		return nil, nil, errors.New("there is no public key in the request")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	serial, err := parseSerial(r.Serial)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, DNSNames: r.DNSNames, NotBefore: r.NotBefore, NotAfter: r.NotAfter, BasicConstraintsValid: true,
		IsCA: r.IsCA, MaxPathLenZero: r.IsCA,
	}
	if r.CommonName != "" {
		t.Subject = pkix.Name{CommonName: r.CommonName}
	}
	for _, text := range r.URIs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, nil, err
		}
		t.URIs = append(t.URIs, u)
	}
	if r.IsCA {
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
		return t, key, nil
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment | x509.KeyUsageKeyAgreement
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	return t, key, nil
}

// Template returns what is asked for as x509.CreateCertificate takes it, and the key that it is for.
func (r *CrossSignRequest) Template() (*x509.Certificate, crypto.PublicKey, error) {
	root, err := ParseCertificate(r.Root)
	if err != nil {
		return nil, nil, err
	}
	serial, err := parseSerial(r.Serial)
	if err != nil {
		return nil, nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial, RawSubject: root.RawSubject, URIs: root.URIs, NotBefore: r.NotBefore, NotAfter: r.NotAfter,
		BasicConstraintsValid: true, IsCA: true, KeyUsage: root.KeyUsage, SubjectKeyId: root.SubjectKeyId,
	}, root.PublicKey, nil
}

func parseSerial(text string) (*big.Int, error) {
	serial, ok := new(big.Int).SetString(text, 16)
	if !ok || serial.Sign() <= 0 {
		return nil, errors.New("the serial number of the request cannot be read")
	}
	return serial, nil
}

// ParseCertificate reads the first certificate of a PEM text.
func ParseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("there is no certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	return cert, nil
}

// EncodeCertificate returns a certificate in PEM.
func EncodeCertificate(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
