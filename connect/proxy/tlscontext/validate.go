package tlscontext

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A Fault says what about a peer's certificate was not good.
type Fault uint8

// The faults.
const (
	FaultNoCert Fault = iota + 1
	FaultChain
	FaultSAN
	FaultHash
)

// A VerifyError reports a peer that was turned away in the handshake.
type VerifyError struct {
	Fault Fault
	Peer  string // the name in the certificate, if one could be read
	Err   error
}

func (e *VerifyError) Error() string {
	if e.Peer != "" {
		return fmt.Sprintf("verify peer %q: %v", e.Peer, e.Err)
	}
	return "verify peer: " + e.Err.Error()
}

func (e *VerifyError) Unwrap() error { return e.Err }

// A validator checks certificate chains against one validation context.
type validator struct {
	v     *model.Validation
	usage x509.ExtKeyUsage
	roots *x509.CertPool
	pools map[string]*x509.CertPool // by trust domain, if v.Bundles is set

	// Chains that were found good need no second look until the first of
	// their certificates expires: a handshake then costs no verification.
	mu   sync.Mutex
	good map[[sha256.Size]byte]verdict
}

type verdict struct {
	peer  *Peer
	chain []*x509.Certificate
	until time.Time
}

// maxVerdicts bounds the memory of verdicts.
const maxVerdicts = 1024

func newValidator(v *model.Validation, usage x509.ExtKeyUsage) *validator {
	vd := &validator{v: v, usage: usage, good: map[[sha256.Size]byte]verdict{}}
	if v == nil {
		return vd
	}
	vd.roots = pool(v.Roots)
	if v.Bundles != nil {
		vd.pools = map[string]*x509.CertPool{}
		for td, roots := range v.Bundles {
			vd.pools[td] = pool(roots)
		}
	}
	return vd
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// share replaces what was parsed of a chain by what was parsed of the same bytes
// before, so that the connections of one peer hold its certificates once. The
// elements of the chain change, which nobody else may look at meanwhile.
func (vd *validator) share(chain []*x509.Certificate) {
	if len(chain) == 0 {
		return
	}
	key := sha256.Sum256(chain[0].Raw)
	vd.mu.Lock()
	known := vd.good[key].chain
	vd.mu.Unlock()
	for i := range min(len(chain), len(known)) {
		if bytes.Equal(chain[i].Raw, known[i].Raw) {
			chain[i] = known[i]
		}
	}
}

// check returns the identity of a peer that showed the chain, leaf first.
func (vd *validator) check(chain []*x509.Certificate) (*Peer, error) {
	if len(chain) == 0 {
		return nil, &VerifyError{Fault: FaultNoCert, Err: errors.New("no certificate")}
	}
	now := time.Now()
	key := sha256.Sum256(chain[0].Raw)
	vd.mu.Lock()
	known, ok := vd.good[key]
	vd.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.peer, nil
	}

	peer, err := NewPeer(chain[0])
	if err != nil {
		return nil, &VerifyError{Fault: FaultChain, Err: err}
	}
	until, bad := vd.examine(peer, chain, now)
	if bad != nil {
		bad.Peer = peer.Principal()
		return nil, bad
	}
	vd.mu.Lock()
	defer vd.mu.Unlock()
	if len(vd.good) >= maxVerdicts {
		for k := range vd.good { // any will do
			delete(vd.good, k)
			break
		}
	}
	vd.good[key] = verdict{peer, slices.Clone(chain), until}
	return peer, nil
}

// identity returns what a chain that was accepted says, without checking it again.
func (vd *validator) identity(chain []*x509.Certificate) (*Peer, error) {
	key := sha256.Sum256(chain[0].Raw)
	vd.mu.Lock()
	known, ok := vd.good[key]
	vd.mu.Unlock()
	if ok {
		return known.peer, nil
	}
	return NewPeer(chain[0])
}

// examine returns how long a good chain stays good.
func (vd *validator) examine(peer *Peer, chain []*x509.Certificate, now time.Time) (time.Time, *VerifyError) {
	v := vd.v
	leaf := chain[0]
	if v == nil {
		return leaf.NotAfter, nil
	}
	until := leaf.NotAfter
	roots := vd.roots
	if vd.pools != nil {
		if len(peer.URIs) != 1 {
			return until, &VerifyError{Fault: FaultSAN, Err: fmt.Errorf("certificate has %d URI names, want one SPIFFE ID", len(peer.URIs))}
		}
		td, ok := trustDomain(peer.URIs[0])
		if !ok {
			return until, &VerifyError{Fault: FaultSAN, Err: errors.New("URI name is no SPIFFE ID")}
		}
		if roots = vd.pools[td]; roots == nil {
			return until, &VerifyError{Fault: FaultChain, Err: fmt.Errorf("no trust bundle for trust domain %q", td)}
		}
		if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
			return until, &VerifyError{Fault: FaultChain, Err: errors.New("a CA certificate is not accepted as a leaf")}
		}
	}
	if !v.NoTrust {
		opts := x509.VerifyOptions{
			Roots:         roots,
			Intermediates: pool(chain[1:]),
			CurrentTime:   now,
			KeyUsages:     []x509.ExtKeyUsage{vd.usage},
		}
		if v.AllowExpired && now.After(leaf.NotAfter) {
			opts.CurrentTime = leaf.NotAfter.Add(-time.Second)
		}
		chains, err := leaf.Verify(opts)
		if err != nil {
			return until, &VerifyError{Fault: FaultChain, Err: err}
		}
		var problem error
		found := false
		for _, c := range chains {
			if v.MaxDepth >= 0 && len(c)-2 > v.MaxDepth {
				problem = fmt.Errorf("chain of %d intermediates, at most %d are allowed", len(c)-2, v.MaxDepth)
				continue
			}
			if problem = revoked(v, c); problem != nil {
				continue
			}
			found = true
			for _, cert := range c[:max(len(c)-1, 1)] {
				if cert.NotAfter.Before(until) {
					until = cert.NotAfter
				}
			}
			break
		}
		if !found {
			return until, &VerifyError{Fault: FaultChain, Err: problem}
		}
	}
	if len(v.CertHashes) > 0 || len(v.SPKIHashes) > 0 {
		cert, key := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		if !hashIn(v.CertHashes, cert[:]) && !hashIn(v.SPKIHashes, key[:]) {
			return until, &VerifyError{Fault: FaultHash, Err: errors.New("hash of certificate or key is not one of those allowed")}
		}
	}
	if len(v.SANs) > 0 && !sanIn(v.SANs, peer) {
		return until, &VerifyError{Fault: FaultSAN, Err: errors.New("no name in the certificate is one of those allowed")}
	}
	return until, nil
}

func hashIn(list [][]byte, h []byte) bool {
	found := 0
	for _, x := range list {
		found |= subtle.ConstantTimeCompare(x, h)
	}
	return found == 1
}

func sanIn(rules []model.SANMatch, p *Peer) bool {
	for _, r := range rules {
		switch r.Type {
		case model.SANURI:
			for _, n := range p.URIs {
				if r.Match.Match(n) {
					return true
				}
			}
		case model.SANDNS:
			for _, n := range p.DNS {
				if r.Match.Match(n) || wildcardCovers(n, r.Match) {
					return true
				}
			}
		case model.SANEmail:
			for _, n := range p.Emails {
				if r.Match.Match(n) {
					return true
				}
			}
		case model.SANIP:
			for _, n := range p.IPs {
				if r.Match.Match(n.String()) {
					return true
				}
			}
		}
	}
	return false
}

// wildcardCovers reports whether a name such as "*.example.com" in a
// certificate stands for the one name that is asked for. The star is exactly
// the left-most label.
func wildcardCovers(name string, m model.StringMatch) bool {
	kind, want := m.Kind()
	suffix, ok := strings.CutPrefix(name, "*.")
	if !ok || kind != model.MatchExact || suffix == "" || strings.Contains(suffix, "*") {
		return false
	}
	first, rest, ok := strings.Cut(want, ".")
	return ok && first != "" && strings.EqualFold(rest, suffix)
}

// revoked returns an error if a CRL lists a certificate of the chain, or if
// there are CRLs and none is for the issuer of one.
func revoked(v *model.Validation, chain []*x509.Certificate) error {
	if len(v.CRLs) == 0 {
		return nil
	}
	for i, c := range chain[:max(len(chain)-1, 0)] {
		if i > 0 && v.CRLOnlyLeaf {
			break
		}
		list := crlOf(v.CRLs, chain[i+1])
		if list == nil {
			return fmt.Errorf("no revocation list of issuer %q", chain[i+1].Subject)
		}
		if serialIn(list, c.SerialNumber) {
			return fmt.Errorf("certificate with serial number %v is revoked", c.SerialNumber)
		}
	}
	return nil
}

func crlOf(lists []*x509.RevocationList, issuer *x509.Certificate) *x509.RevocationList {
	for _, l := range lists {
		if bytes.Equal(l.RawIssuer, issuer.RawSubject) && l.CheckSignatureFrom(issuer) == nil {
			return l
		}
	}
	return nil
}

func serialIn(l *x509.RevocationList, serial *big.Int) bool {
	for _, e := range l.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(serial) == 0 {
			return true
		}
	}
	return false
}
