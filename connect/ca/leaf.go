package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/connect"
)

// maxCSR bounds the text of a certificate request. One with an RSA key of 4096 bits takes 2 KiB.
const maxCSR = 16 << 10

// NewCSR makes a certificate request for an identity, in PEM: its key and its one URI, nothing else.
func NewCSR(id connect.ID, key crypto.Signer, random io.Reader) (string, error) {
	template := &x509.CertificateRequest{
		URIs:               []*url.URL{id.URL()},
		SignatureAlgorithm: signatureAlgorithm(key.Public()),
	}
	der, err := x509.CreateCertificateRequest(random, template, key)
	if err != nil {
		return "", fmt.Errorf("sign certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: der})), nil
}

// A Request is a certificate request that passed ParseCSR: an identity, and the key it is to be bound to.
type Request struct {
	id  connect.ID
	csr *x509.CertificateRequest
}

// ID returns the identity asked for.
func (r *Request) ID() connect.ID { return r.id }

// ErrCSR is wrapped by the errors of ParseCSR.
var ErrCSR = errors.New("invalid certificate request")

// ParseCSR reads a certificate request and checks everything about it but the right to the identity: it is signed with
// its own key, which is strong enough, and names exactly one SPIFFE ID, of a service, agent, mesh gateway or server of
// this trust domain and datacenter, and nothing else. Whatever more it may say is never looked at again.
func ParseCSR(text, trustDomain, datacenter string) (*Request, error) {
	csr, err := readCSR(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if err := wantsAuthority(csr); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	id, err := connect.ParseID(csr.URIs[0].String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCSR, err)
	}
	if id.Kind() == connect.CA {
		return nil, fmt.Errorf("%w: SPIFFE ID in CSR must be a service, agent, server, or mesh gateway ID", ErrCSR)
	}
	if !connect.SameTrustDomain(id.TrustDomain(), trustDomain) {
		return nil, fmt.Errorf("%w: SPIFFE ID in CSR from a different trust domain: %s, we are %s", ErrCSR, id.TrustDomain(), trustDomain)
	}
	if id.Datacenter() != datacenter {
		return nil, fmt.Errorf("%w: SPIFFE ID in CSR from a different datacenter: %s, we are %s", ErrCSR, id.Datacenter(), datacenter)
	}
	return &Request{id, csr}, nil
}

// readCSR reads a request that is signed with its own key, which is strong enough, and that asks for one URI.
func readCSR(text string) (*x509.CertificateRequest, error) {
	if len(text) > maxCSR {
		return nil, fmt.Errorf("it is larger than %d bytes", maxCSR)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != blockRequest || len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("it is not one PEM block of type %s", blockRequest)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	switch {
	case len(csr.URIs) != 1:
		return nil, fmt.Errorf("CSR SAN contains an invalid number of URIs: %d", len(csr.URIs))
	case len(csr.EmailAddresses) != 0:
		return nil, errors.New("CSR SAN does not allow specifying email addresses")
	case len(csr.DNSNames) != 0 || len(csr.IPAddresses) != 0:
		return nil, errors.New("CSR SAN does not allow specifying DNS names or IP addresses")
	}
	// Names of kinds that the standard library passes over are counted too.
	names, err := alternativeNames(csr.Extensions)
	if err != nil || len(names) != 1 {
		return nil, errors.New("CSR SAN does not allow specifying names other than one URI")
	}
	return csr, nil
}

// checkKey refuses keys that are weak or that peers may not know.
func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return errors.New("EC keys must have at least 256 bits")
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 || k.N.BitLen() > 8192 {
			return errors.New("RSA keys must have 2048 to 8192 bits")
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("keys of type %T are not supported", key)
	}
	return nil
}

// Authorize returns nil when a token may be the identity (spec/acl.md section 19), else the denial.
func Authorize(z *acl.Authorizer, id connect.ID) (acl.Permit, error) {
	switch id.Kind() {
	case connect.Service:
		return z.Require(acl.Service, acl.Write, id.Name())
	case connect.Agent:
		return z.Require(acl.Node, acl.Write, id.Name())
	case connect.MeshGateway:
		return z.Require(acl.Mesh, acl.Write, "")
	case connect.Server:
		return z.Require(acl.ACL, acl.Write, "")
	}
	return acl.New(nobody{}, "").Require(acl.ACL, acl.Write, "")
}

type nobody struct{}

func (nobody) Allows(acl.Resource, acl.Access, string) bool { return false }

// LeafParams are what a leaf is made of beside the request.
type LeafParams struct {
	Provider Provider
	// Root is the active root; intermediates of it that are still valid are sent along with the leaf.
	Root   *Root
	Serial []byte // random, 8 to 20 bytes, the first bit not set
	Now    time.Time
	TTL    time.Duration
	Hosts  []string // DNS names it carries, found to be the service's or agent's
	IPs    []string // addresses that of an agent carries, found to be its
}

// SignLeaf makes the certificate for a request from the request's identity and key alone.
func SignLeaf(ctx context.Context, r *Request, p LeafParams) (*Leaf, error) {
	issuer := p.Provider.Issuer()
	keyID, err := KeyID(r.csr.PublicKey)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(p.Serial),
		URIs:                  []*url.URL{r.id.URL()},
		SignatureAlgorithm:    signatureAlgorithm(issuer.PublicKey),
		BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment |
			x509.KeyUsageDataEncipherment | x509.KeyUsageKeyAgreement,
		ExtKeyUsage:    []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:      p.Now.Add(-backdate),
		NotAfter:       earlier(p.Now.Add(p.TTL), issuer.NotAfter),
		AuthorityKeyId: issuer.SubjectKeyId,
		SubjectKeyId:   keyID,
	}
	switch r.id.Kind() {
	case connect.Service:
		template.DNSNames = p.Hosts
	case connect.Agent:
		template.DNSNames = p.Hosts
		template.IPAddresses = addresses(p.Provider, p.IPs)
	case connect.Server:
		template.DNSNames = []string{connect.PeeringServerSNI(r.id.Datacenter(), r.id.TrustDomain())}
	}
	if !template.NotAfter.After(p.Now) {
		return nil, errors.New("the signing certificate has expired")
	}
	der, err := p.Provider.Sign(ctx, template, r.csr)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read signed certificate: %w", err)
	}
	if err := checkSigned(cert, template, r.csr.PublicKey, issuer); err != nil {
		return nil, fmt.Errorf("the CA provider signed something else than it was asked for: %w", err)
	}
	var chain strings.Builder
	chain.WriteString(EncodeCertificate(der))
	intermediates := p.Provider.Intermediates()
	for _, text := range intermediates {
		chain.WriteString(withNewline(text))
	}
	for _, text := range p.Root.IntermediateCerts {
		if c, err := ParseCertificate(text); err == nil && p.Now.Before(c.NotAfter) && !hasCertificate(intermediates, c) {
			chain.WriteString(withNewline(text))
		}
	}
	leaf := &Leaf{
		SerialNumber: Hex(cert.SerialNumber.Bytes()),
		CertPEM:      chain.String(),
		ValidAfter:   cert.NotBefore,
		ValidBefore:  cert.NotAfter,
		RootID:       p.Root.ID,
	}
	switch uri := r.id.String(); r.id.Kind() {
	case connect.Service:
		leaf.Service, leaf.ServiceURI = r.id.Name(), uri
	case connect.Agent:
		leaf.Agent, leaf.AgentURI = r.id.Name(), uri
	case connect.MeshGateway:
		leaf.Kind, leaf.KindURI = "mesh-gateway", uri
	case connect.Server:
		leaf.ServerURI = uri
	}
	return leaf, nil
}

// addresses are those that a provider puts on certificates.
func addresses(p Provider, texts []string) (ips []net.IP) {
	switch p.(type) {
	case *builtIn, *secondary:
		for _, text := range texts {
			ips = append(ips, net.ParseIP(text))
		}
	}
	return ips
}

// hasCertificate tells whether one of several certificates in PEM is c.
func hasCertificate(texts []string, c *x509.Certificate) bool {
	return slices.ContainsFunc(texts, func(text string) bool {
		other, err := ParseCertificate(text)
		return err == nil && other.Equal(c)
	})
}

func withNewline(text string) string {
	if strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}
