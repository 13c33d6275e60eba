// Package tlscontext turns TLS contexts of the model into settings of package
// crypto/tls, checks peers, and follows the rotation of certificates and trust
// bundles: a handshake uses what is current when it begins, and connections
// that are open stay open.
package tlscontext

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// ErrNoSecret reports a context that waits for a secret.
var ErrNoSecret = errors.New("TLS error: Secret is not supplied by SDS")

// Secrets holds the secrets that arrived, by name. It is safe for concurrent use.
type Secrets struct {
	version atomic.Uint64

	mu sync.Mutex
	m  map[string]*model.Secret
}

// NewSecrets returns an empty store.
func NewSecrets() *Secrets {
	s := &Secrets{m: map[string]*model.Secret{}}
	s.version.Store(1)
	return s
}

// Set adds or replaces secrets. Handshakes that begin later use them.
func (s *Secrets) Set(secrets ...*model.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range secrets {
		s.m[x.Name] = x
	}
	s.version.Add(1)
}

// Get returns the secret, or nil if there is none.
func (s *Secrets) Get(name string) *model.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[name]
}

// All returns the secrets sorted by name.
func (s *Secrets) All() []*model.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*model.Secret
	for _, name := range slices.Sorted(maps.Keys(s.m)) {
		out = append(out, s.m[name])
	}
	return out
}

// Has reports whether all the named secrets are there.
func (s *Secrets) Has(names []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if s.m[n] == nil {
			return false
		}
	}
	return true
}

// resolved is a context with its secrets filled in.
type resolved struct {
	certs      []tls.Certificate
	validation *model.Validation
}

func (s *Secrets) resolve(t *model.TLS) (resolved, error) {
	var r resolved
	for _, c := range t.Certificates {
		r.certs = append(r.certs, c.TLS)
	}
	for _, name := range t.CertSecrets {
		sec := s.Get(name)
		if sec == nil || sec.Certificate == nil {
			return r, fmt.Errorf("%w: certificate %q", ErrNoSecret, name)
		}
		r.certs = append(r.certs, sec.Certificate.TLS)
	}
	r.validation = t.Validation
	if t.ValidationSecret != "" {
		sec := s.Get(t.ValidationSecret)
		if sec == nil || sec.Validation == nil {
			return r, fmt.Errorf("%w: validation context %q", ErrNoSecret, t.ValidationSecret)
		}
		r.validation = merge(t.Validation, sec.Validation)
	}
	return r, nil
}

// merge lays the delivered validation context over the configured one, as
// combined_validation_context asks: what is delivered wins, lists add up.
func merge(base, over *model.Validation) *model.Validation {
	if base == nil {
		return over
	}
	m := *over
	if len(m.Roots) == 0 && m.Bundles == nil {
		m.Roots, m.Bundles, m.NoTrust = base.Roots, base.Bundles, base.NoTrust
	}
	m.SANs = slices.Concat(base.SANs, over.SANs)
	m.SPKIHashes = slices.Concat(base.SPKIHashes, over.SPKIHashes)
	m.CertHashes = slices.Concat(base.CertHashes, over.CertHashes)
	m.CRLs = slices.Concat(base.CRLs, over.CRLs)
	m.AllowExpired = base.AllowExpired || over.AllowExpired
	m.CRLOnlyLeaf = base.CRLOnlyLeaf || over.CRLOnlyLeaf
	if m.MaxDepth < 0 {
		m.MaxDepth = base.MaxDepth
	}
	return &m
}

// built is the settings made from one version of the secrets.
type built struct {
	version uint64
	cfg     *tls.Config
	check   *validator
	err     error
}

// context is what servers and clients have in common.
type context struct {
	secrets *Secrets
	build   func(resolved, *validator) *tls.Config
	model   *model.TLS
	usage   x509.ExtKeyUsage

	cur atomic.Pointer[built]
	mu  sync.Mutex // held while building
}

// current returns the settings for a handshake that begins now.
func (c *context) current() *built {
	v := c.secrets.version.Load()
	if b := c.cur.Load(); b != nil && (b.version == v || len(c.model.CertSecrets) == 0 && c.model.ValidationSecret == "") {
		return b
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.cur.Load()
	if b != nil && b.version == v {
		return b
	}
	next := &built{version: v}
	r, err := c.secrets.resolve(c.model)
	switch {
	case err != nil:
		next.err = err
	case b != nil && b.err == nil && sameCerts(b.cfg.Certificates, r.certs) && reflect.DeepEqual(b.check.v, r.validation):
		// Some other secret changed: keep the settings, and with them the
		// keys of session tickets.
		next.cfg, next.check = b.cfg, b.check
	default:
		next.check = newValidator(r.validation, c.usage)
		next.cfg = c.build(r, next.check)
	}
	c.cur.Store(next)
	return next
}

// roots returns the trusted roots of all trust domains.
func (c *context) roots() []*x509.Certificate {
	b := c.current()
	if b.err != nil || b.check.v == nil {
		return nil
	}
	out := slices.Clone(b.check.v.Roots)
	for _, td := range slices.Sorted(maps.Keys(b.check.v.Bundles)) {
		out = append(out, b.check.v.Bundles[td]...)
	}
	return out
}

func sameCerts(a, b []tls.Certificate) bool {
	return slices.EqualFunc(a, b, func(x, y tls.Certificate) bool { return reflect.DeepEqual(x.Certificate, y.Certificate) })
}

func base(t *model.TLS, certs []tls.Certificate) *tls.Config {
	cfg := &tls.Config{
		Certificates:                certs,
		NextProtos:                  t.ALPN,
		MinVersion:                  t.MinVersion,
		MaxVersion:                  t.MaxVersion,
		CipherSuites:                t.Ciphers,
		CurvePreferences:            t.Curves,
		DynamicRecordSizingDisabled: true, // the proxies' streams are long; full records cost least
		Renegotiation:               tls.RenegotiateNever,
	}
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS12
	}
	if cfg.MaxVersion == 0 {
		cfg.MaxVersion = tls.VersionTLS13
	}
	if cfg.CurvePreferences == nil {
		cfg.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256}
	}
	return cfg
}

// A Server is the TLS context of a listener's filter chain.
type Server struct {
	model *model.DownstreamTLS
	ctx   context
}

// NewServer returns the context. It works once the secrets that it names are in the store.
func NewServer(m *model.DownstreamTLS, secrets *Secrets) *Server {
	s := &Server{model: m}
	s.ctx = context{secrets: secrets, model: &m.TLS, usage: x509.ExtKeyUsageClientAuth, build: s.build}
	return s
}

// Model returns what the context was made from.
func (s *Server) Model() *model.DownstreamTLS { return s.model }

// Config returns the settings for a handshake that begins now. Different
// settings have different keys for session tickets, so a session does not
// outlive the trust bundle that it was made under.
func (s *Server) Config() (*tls.Config, error) {
	b := s.ctx.current()
	return b.cfg, b.err
}

// Peer returns the identity that the other side of a finished handshake proved,
// or nil if it showed none.
func (s *Server) Peer(cs *tls.ConnectionState) (*Peer, error) {
	b := s.ctx.current()
	if b.err != nil {
		return nil, b.err
	}
	if len(cs.PeerCertificates) == 0 {
		return nil, nil
	}
	return b.check.identity(cs.PeerCertificates)
}

// Certificates returns the chains in use, for showing.
func (s *Server) Certificates() []tls.Certificate {
	b := s.ctx.current()
	if b.err != nil {
		return nil
	}
	return b.cfg.Certificates
}

// Roots returns the trusted roots in use, for showing.
func (s *Server) Roots() []*x509.Certificate { return s.ctx.roots() }

func (s *Server) build(r resolved, check *validator) *tls.Config {
	cfg := base(&s.model.TLS, r.certs)
	cfg.SessionTicketsDisabled = s.model.DisableResumption
	switch {
	case s.model.RequireClientCertificate:
		cfg.ClientAuth = tls.RequireAnyClientCert
	case r.validation != nil:
		cfg.ClientAuth = tls.RequestClientCert
	}
	require := s.model.RequireClientCertificate
	// Called for full and for resumed handshakes alike.
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 && !require {
			return nil
		}
		if r.validation == nil && !require {
			return nil
		}
		if _, err := check.check(cs.PeerCertificates); err != nil {
			return err
		}
		check.share(cs.PeerCertificates) // the elements are the connection's own, also of a resumed session
		return nil
	}
	if len(r.certs) == 0 {
		cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return nil, errors.New("no certificate configured")
		}
	}
	if protocols := cfg.NextProtos; len(protocols) > 0 {
		// A client that speaks none of them gets a connection without one, not a failure: RFC 7301 leaves the choice.
		without := cfg.Clone()
		without.NextProtos = nil
		cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if len(h.SupportedProtos) == 0 || slices.ContainsFunc(h.SupportedProtos, func(p string) bool { return slices.Contains(protocols, p) }) {
				return nil, nil
			}
			return without, nil
		}
	}
	return cfg
}

// A Client is the TLS context of a cluster.
type Client struct {
	model *model.UpstreamTLS
	ctx   context
}

// NewClient returns the context. It works once the secrets that it names are in the store.
func NewClient(m *model.UpstreamTLS, secrets *Secrets) *Client {
	c := &Client{model: m}
	c.ctx = context{secrets: secrets, model: &m.TLS, usage: x509.ExtKeyUsageServerAuth, build: c.build}
	return c
}

// Model returns what the context was made from.
func (c *Client) Model() *model.UpstreamTLS { return c.model }

// Config returns the settings for a connection that begins now. They hold no
// session cache; see Sessions.
func (c *Client) Config() (*tls.Config, error) {
	b := c.ctx.current()
	return b.cfg, b.err
}

// Certificates returns the chains in use, for showing.
func (c *Client) Certificates() []tls.Certificate {
	b := c.ctx.current()
	if b.err != nil {
		return nil
	}
	return b.cfg.Certificates
}

// Roots returns the trusted roots in use, for showing.
func (c *Client) Roots() []*x509.Certificate { return c.ctx.roots() }

func (c *Client) build(r resolved, check *validator) *tls.Config {
	cfg := base(&c.model.TLS, r.certs)
	cfg.ServerName = c.model.SNI
	// The names of the mesh are not host names: VerifyConnection, which runs
	// for full and for resumed handshakes alike, checks the chain and the
	// SPIFFE ID instead of what this switches off.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if r.validation == nil {
			return nil
		}
		_, err := check.check(cs.PeerCertificates)
		return err
	}
	if len(r.certs) > 0 {
		// Shown whatever issuers the server hints at: during a rotation its
		// hints may be older than its trust.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &r.certs[0], nil
		}
	}
	return cfg
}

// Sessions keeps the settings for the connections to one host, with a session
// to resume. The zero Sessions is ready for use.
type Sessions struct {
	cur atomic.Pointer[hostConfig]
}

type hostConfig struct{ base, cfg *tls.Config }

// Config returns the settings of the client for a connection to the host. When
// those of the client change, sessions made under the old ones are forgotten.
func (s *Sessions) Config(c *Client) (*tls.Config, error) {
	b, err := c.Config()
	if err != nil || c.model.DisableResumption {
		return b, err
	}
	if h := s.cur.Load(); h != nil && h.base == b {
		return h.cfg, nil
	}
	cfg := b.Clone()
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	s.cur.Store(&hostConfig{b, cfg})
	return cfg, nil
}
