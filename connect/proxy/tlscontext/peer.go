package tlscontext

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// A Peer is what a certificate says about whoever holds its key. Names are the
// bytes of the certificate: nothing is parsed, decoded or normalized on the
// way, so that comparing them can't be tricked by two spellings of one name.
type Peer struct {
	URIs, DNS, Emails []string
	IPs               []netip.Addr
	Subject, Issuer   string // RFC 2253
	Fingerprint       string // SHA-256 of the certificate, in hex
	Leaf              *x509.Certificate
}

// Principal returns the name that the peer goes by: the first URI, DNS name or
// else the subject.
func (p *Peer) Principal() string {
	switch {
	case p == nil:
		return ""
	case len(p.URIs) > 0:
		return p.URIs[0]
	case len(p.DNS) > 0:
		return p.DNS[0]
	}
	return p.Subject
}

// NewPeer reads the names of a certificate.
func NewPeer(cert *x509.Certificate) (*Peer, error) {
	sum := sha256.Sum256(cert.Raw)
	p := &Peer{
		Subject:     cert.Subject.String(),
		Issuer:      cert.Issuer.String(),
		Fingerprint: hex.EncodeToString(sum[:]),
		Leaf:        cert,
	}
	for _, ext := range cert.Extensions {
		if ext.Id.Equal(oidSubjectAltName) {
			if err := p.readNames(ext.Value); err != nil {
				return nil, fmt.Errorf("subject alternative names: %w", err)
			}
		}
	}
	return p, nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// Tags of GeneralName, RFC 5280 section 4.2.1.6.
const (
	tagEmail = 1
	tagDNS   = 2
	tagURI   = 6
	tagIP    = 7
)

func (p *Peer) readNames(der []byte) error {
	var seq asn1.RawValue
	rest, err := asn1.Unmarshal(der, &seq)
	if err != nil {
		return err
	}
	if len(rest) > 0 || !seq.IsCompound || seq.Tag != asn1.TagSequence || seq.Class != asn1.ClassUniversal {
		return errors.New("not one sequence")
	}
	for rest = seq.Bytes; len(rest) > 0; {
		var v asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return err
		}
		if v.Class != asn1.ClassContextSpecific {
			continue
		}
		switch v.Tag {
		case tagEmail:
			p.Emails = append(p.Emails, string(v.Bytes))
		case tagDNS:
			p.DNS = append(p.DNS, string(v.Bytes))
		case tagURI:
			p.URIs = append(p.URIs, string(v.Bytes))
		case tagIP:
			ip, ok := netip.AddrFromSlice(v.Bytes)
			if !ok {
				return errors.New("IP address of an odd length")
			}
			p.IPs = append(p.IPs, ip)
		}
	}
	return nil
}

// trustDomain returns the trust domain of a SPIFFE ID.
func trustDomain(id string) (string, bool) {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		return "", false
	}
	td, _, _ := strings.Cut(rest, "/")
	return td, td != ""
}
