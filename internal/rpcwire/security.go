// Package rpcwire is what a server's port speaks: one port carries Raft and RPC, told apart by ALPN under TLS and by a
// short preface without; RPC is gRPC with the codec of package rpc. It knows connections, not calls: which server a
// call goes to is decided by its users.
package rpcwire

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// Protocols of a server's port, by their ALPN names.
const (
	ProtoRaft = "sarn-raft/1"
	ProtoRPC  = "sarn-rpc/1"
	// ProtoIntro is for agents that have no certificate yet: TLS in which only the server shows one, and calls of its
	// own. It is never spoken in plain text.
	ProtoIntro = "sarn-intro/1"
)

// Security is the TLS of server ports, both to serve and to call. The functions are called at each handshake, so that
// files may be read again while in use. The zero Security is plain text.
type Security struct {
	// Certificate returns this agent's certificate; a nil function or result means there is none. A server with one
	// accepts TLS.
	Certificate func() *tls.Certificate
	// Roots returns the authorities trusted; a nil function or result trusts nobody.
	Roots func() *x509.CertPool

	MinVersion   uint16 // default TLS 1.2
	CipherSuites []uint16

	// VerifyIncoming refuses plain text, and callers without a certificate signed by Roots.
	VerifyIncoming bool
	// VerifyOutgoing makes calls use TLS and verify the server's certificate against Roots.
	VerifyOutgoing bool
	// VerifyServerHostname asks the server's certificate for the name ServerName gives; it implies VerifyOutgoing. With
	// VerifyIncoming, Raft and calls between servers then ask the same of the caller.
	VerifyServerHostname bool
	// Domain ends the names of servers; default "consul".
	Domain string

	// Agents returns authorities that are trusted about agents alone: of what they signed, VerifyIncoming accepts what
	// IsAgent says is an agent's, and never takes it for a server. A nil function or result adds nobody.
	Agents  func() []*x509.Certificate
	IsAgent func(*x509.Certificate) bool
	// Introduce accepts ProtoIntro.
	Introduce bool
	// Pin, when not nil, makes calls over ProtoIntro trust the authority whose certificate has this SHA-256, and nobody
	// else. The server shows that certificate with its own, and must have the name ServerName gives.
	Pin []byte

	// Live returns what holds now, where that may change: then everything else in this Security is left out. Nil means
	// that nothing changes.
	Live func() *Security
}

// now returns what holds now.
func (s *Security) now() *Security {
	if s.Live == nil {
		return s
	}
	return s.Live()
}

// ServerName returns the name that the certificate of a datacenter's servers must have.
func (s *Security) ServerName(datacenter string) string {
	s = s.now()
	domain := strings.Trim(s.Domain, ".")
	if domain == "" {
		domain = "consul"
	}
	return "server." + datacenter + "." + domain
}

// RestrictsServers reports whether a caller must prove to be a server where only servers may call.
func (s *Security) RestrictsServers() bool {
	s = s.now()
	return s.VerifyIncoming && s.VerifyServerHostname
}

// UsesTLS reports whether calls go out over TLS.
func (s *Security) UsesTLS() bool {
	s = s.now()
	return s.VerifyOutgoing || s.VerifyServerHostname
}

func (s *Security) certificate() *tls.Certificate {
	if s.Certificate == nil {
		return nil
	}
	return s.Certificate()
}

func (s *Security) roots() *x509.CertPool {
	if s.Roots == nil {
		return nil
	}
	return s.Roots()
}

func (s *Security) minVersion() uint16 {
	if s.MinVersion == 0 {
		return tls.VersionTLS12
	}
	return s.MinVersion
}

// incoming returns the configuration for one accepted connection, nil when TLS is not served. peer learns who calls.
func (s *Security) incoming(peer *Peer) *tls.Config {
	cert := s.certificate()
	if cert == nil {
		return nil
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{*cert}, MinVersion: s.minVersion(), CipherSuites: s.CipherSuites,
		NextProtos: []string{ProtoRaft, ProtoRPC}, SessionTicketsDisabled: true,
	}
	if s.VerifyIncoming {
		roots := s.roots()
		if roots == nil {
			roots = x509.NewCertPool() // nobody, rather than the system's roots
		}
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, roots
		if agents := s.agents(); len(agents) > 0 {
			c.ClientCAs = roots.Clone()
			for _, a := range agents {
				c.ClientCAs.AddCert(a)
			}
			c.VerifyConnection = func(cs tls.ConnectionState) error { return s.tellApart(cs, roots, peer) }
		}
	}
	if s.Introduce {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if !slices.Equal(hello.SupportedProtos, []string{ProtoIntro}) {
				return nil, nil
			}
			return &tls.Config{
				Certificates: []tls.Certificate{*cert}, MinVersion: s.minVersion(), CipherSuites: s.CipherSuites,
				NextProtos: []string{ProtoIntro}, SessionTicketsDisabled: true,
			}, nil
		}
	}
	return c
}

func (s *Security) agents() []*x509.Certificate {
	if s.Agents == nil || s.IsAgent == nil {
		return nil
	}
	return s.Agents()
}

var errNotAgent = errors.New("the certificate is neither of a trusted authority nor an agent's")

// tellApart looks at a verified certificate again: what only the authorities of agents vouch for must be an agent's, and
// is not more.
func (s *Security) tellApart(cs tls.ConnectionState, roots *x509.CertPool, peer *Peer) error {
	leaf := cs.PeerCertificates[0]
	if verify(cs, roots, x509.ExtKeyUsageClientAuth) == nil {
		return nil
	}
	if !s.IsAgent(leaf) {
		return errNotAgent
	}
	peer.onlyAgent = true
	return nil
}

// verify verifies the chain the other side has shown.
func verify(cs tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage) error {
	inter := x509.NewCertPool()
	for _, cert := range cs.PeerCertificates[1:] {
		inter.AddCert(cert)
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

// outgoing returns the configuration for one call to a server of the datacenter, nil for plain text.
func (s *Security) outgoing(protocol, datacenter string) *tls.Config {
	if !s.UsesTLS() {
		return nil
	}
	roots := s.roots()
	if roots == nil {
		roots = x509.NewCertPool()
	}
	c := &tls.Config{
		RootCAs: roots, MinVersion: s.minVersion(), CipherSuites: s.CipherSuites,
		NextProtos: []string{protocol}, ServerName: s.ServerName(datacenter),
	}
	if cert := s.certificate(); cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	if !s.VerifyServerHostname {
		// Verify the chain but not the name: server certificates need not carry one.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(cs tls.ConnectionState) error { return verify(cs, roots, x509.ExtKeyUsageServerAuth) }
	}
	return c
}

// introducing returns the configuration of an agent that asks for a certificate. Where no authority is configured, the
// server is verified with those of the system if outgoing calls are to be verified, and else not at all.
func (s *Security) introducing(datacenter string) *tls.Config {
	if s.Pin != nil {
		return s.pinned(datacenter)
	}
	out := *s
	out.Certificate = nil
	if roots := s.roots(); roots != nil {
		out.VerifyOutgoing = true
		return out.outgoing(ProtoIntro, datacenter)
	}
	verifies := s.UsesTLS()
	out.VerifyOutgoing = true
	if !verifies {
		c := out.outgoing(ProtoIntro, datacenter)
		c.VerifyConnection = nil
		return c
	}
	system, err := x509.SystemCertPool()
	if err != nil {
		system = x509.NewCertPool()
	}
	out.Roots = func() *x509.CertPool { return system }
	return out.outgoing(ProtoIntro, datacenter)
}

var errPin = errors.New("the server does not show the authority that is expected: it is of another cluster, or somebody is in between")

// pinned returns the configuration of who knows nothing of a cluster but the hash of its authority.
func (s *Security) pinned(datacenter string) *tls.Config {
	name := s.ServerName(datacenter)
	return &tls.Config{
		MinVersion: s.minVersion(), NextProtos: []string{ProtoIntro}, ServerName: name,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, cert := range cs.PeerCertificates[1:] {
				sum := sha256.Sum256(cert.Raw)
				if !cert.IsCA || subtle.ConstantTimeCompare(sum[:], s.Pin) != 1 {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(cert)
				if err := verify(cs, roots, x509.ExtKeyUsageServerAuth); err != nil {
					return err
				}
				return cs.PeerCertificates[0].VerifyHostname(name)
			}
			return errPin
		},
	}
}

// Secure makes a fresh connection to a server's port speak the protocol. It closes conn when it fails.
func (s *Security) Secure(ctx context.Context, conn net.Conn, protocol, datacenter string) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	out, err := s.greet(ctx, conn, protocol, datacenter)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return out, nil
}

func (s *Security) greet(ctx context.Context, conn net.Conn, protocol, datacenter string) (net.Conn, error) {
	s = s.now()
	conf := s.outgoing(protocol, datacenter)
	if protocol == ProtoIntro {
		conf = s.introducing(datacenter)
	}
	if conf == nil {
		_, err := conn.Write(append([]byte{byte(len(protocol))}, protocol...))
		return conn, err
	}
	tc := tls.Client(conn, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake with %s: %w", conn.RemoteAddr(), err)
	}
	if got := tc.ConnectionState().NegotiatedProtocol; got != protocol {
		return nil, fmt.Errorf("TLS handshake with %s: it speaks %q instead of %q", conn.RemoteAddr(), got, protocol)
	}
	return tc, nil
}

// A Peer is who made a connection.
type Peer struct {
	Addr net.Addr // nil for calls in process
	TLS  *tls.ConnectionState

	onlyAgent bool // vouched for by nobody but the authorities of agents
}

// Is reports whether the peer's verified certificate has the name.
func (p Peer) Is(name string) bool {
	return p.TLS != nil && !p.onlyAgent && len(p.TLS.VerifiedChains) > 0 && slices.Contains(p.TLS.PeerCertificates[0].DNSNames, name)
}

// tlsRecord is the first byte of a TLS handshake. No preface begins with it: protocol names are shorter.
const tlsRecord = 0x16

var errPlain = errors.New("plain text is refused here")

// accept finds out what an accepted connection speaks.
func (s *Security) accept(ctx context.Context, conn net.Conn) (c *Conn, protocol string, err error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s = s.now()
	peer := Peer{Addr: conn.RemoteAddr()}
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return nil, "", err
	}
	if first[0] == tlsRecord {
		conf := s.incoming(&peer)
		if conf == nil {
			return nil, "", errors.New("TLS is not configured here")
		}
		tc := tls.Server(&prefixed{Conn: conn, prefix: first[:]}, conf)
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, "", err
		}
		state := tc.ConnectionState()
		peer.TLS = &state
		return &Conn{Conn: tc, peer: peer}, state.NegotiatedProtocol, nil
	}
	if s.VerifyIncoming {
		return nil, "", errPlain
	}
	name := make([]byte, first[0])
	if _, err := io.ReadFull(conn, name); err != nil {
		return nil, "", err
	}
	if string(name) == ProtoIntro {
		return nil, "", errPlain
	}
	return &Conn{Conn: conn, peer: peer}, string(name), nil
}

// prefixed gives back a byte that was read too early.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}
