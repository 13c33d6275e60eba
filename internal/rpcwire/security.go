// Package rpcwire is what a server's port speaks: one port carries Raft and RPC, told apart by ALPN under TLS and by a
// short preface without; RPC is gRPC with the codec of package rpc. It knows connections, not calls: which server a
// call goes to is decided by its users.
package rpcwire

import (
	"context"
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
}

// ServerName returns the name that the certificate of a datacenter's servers must have.
func (s *Security) ServerName(datacenter string) string {
	domain := strings.Trim(s.Domain, ".")
	if domain == "" {
		domain = "consul"
	}
	return "server." + datacenter + "." + domain
}

// RestrictsServers reports whether a caller must prove to be a server where only servers may call.
func (s *Security) RestrictsServers() bool { return s.VerifyIncoming && s.VerifyServerHostname }

// UsesTLS reports whether calls go out over TLS.
func (s *Security) UsesTLS() bool { return s.VerifyOutgoing || s.VerifyServerHostname }

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

// incoming returns the configuration for one accepted connection, nil when TLS is not served.
func (s *Security) incoming() *tls.Config {
	cert := s.certificate()
	if cert == nil {
		return nil
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{*cert}, MinVersion: s.minVersion(), CipherSuites: s.CipherSuites,
		NextProtos: []string{ProtoRaft, ProtoRPC},
	}
	if s.VerifyIncoming {
		c.ClientAuth = tls.RequireAndVerifyClientCert
		if c.ClientCAs = s.roots(); c.ClientCAs == nil {
			c.ClientCAs = x509.NewCertPool() // nobody, rather than the system's roots
		}
	}
	return c
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
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			inter := x509.NewCertPool()
			for _, cert := range cs.PeerCertificates[1:] {
				inter.AddCert(cert)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter})
			return err
		}
	}
	return c
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
	conf := s.outgoing(protocol, datacenter)
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
}

// Is reports whether the peer's verified certificate has the name.
func (p Peer) Is(name string) bool {
	return p.TLS != nil && len(p.TLS.VerifiedChains) > 0 && slices.Contains(p.TLS.PeerCertificates[0].DNSNames, name)
}

// tlsRecord is the first byte of a TLS handshake. No preface begins with it: protocol names are shorter.
const tlsRecord = 0x16

var errPlain = errors.New("plain text is refused here")

// accept finds out what an accepted connection speaks.
func (s *Security) accept(ctx context.Context, conn net.Conn) (c *Conn, protocol string, err error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	peer := Peer{Addr: conn.RemoteAddr()}
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return nil, "", err
	}
	if first[0] == tlsRecord {
		conf := s.incoming()
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
