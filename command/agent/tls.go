package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/rpcwire"
)

// A material is the certificate and the authorities of one TLS stanza, read again on reload.
type material struct {
	cert  atomic.Pointer[tls.Certificate] // nil when none is configured
	roots atomic.Pointer[x509.CertPool]   // nil when none is configured
}

// load reads the files of a stanza.
func (m *material) load(s config.TLSStanza) error {
	var cert *tls.Certificate
	if s.CertFile != "" || s.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return fmt.Errorf("load certificate %s: %w", s.CertFile, err)
		}
		cert = &pair
	}
	var files []string
	if s.CAFile != "" {
		files = append(files, s.CAFile)
	}
	if s.CAPath != "" {
		entries, err := os.ReadDir(s.CAPath)
		if err != nil {
			return fmt.Errorf("read ca_path: %w", err)
		}
		for _, e := range entries {
			if !e.IsDir() {
				files = append(files, filepath.Join(s.CAPath, e.Name()))
			}
		}
	}
	var roots *x509.CertPool
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read authority: %w", err)
		}
		if roots == nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(data) && s.CAPath == "" {
			return fmt.Errorf("read authority: %s holds no certificate", file)
		}
	}
	m.cert.Store(cert)
	m.roots.Store(roots)
	return nil
}

// serverTLS is the configuration of a listener; the certificate and authorities are looked up at each handshake. auto
// gives the certificate where none is configured; it may be nil.
func (m *material) serverTLS(s config.TLSStanza, auto func(*tls.ClientHelloInfo) (*tls.Certificate, error), protocols ...string) *tls.Config {
	base := &tls.Config{
		MinVersion: s.MinTLS(), CipherSuites: s.CipherSuiteIDs(), NextProtos: protocols,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if cert := m.cert.Load(); cert != nil {
				return cert, nil
			}
			if auto != nil {
				return auto(hello)
			}
			return nil, errors.New("no certificate is configured")
		},
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.GetConfigForClient = nil
		if s.VerifyIncoming {
			c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, m.roots.Load()
			if c.ClientCAs == nil {
				return nil, errors.New("verify_incoming is on, and no authority is configured")
			}
		}
		return c, nil
	}
	return base
}

// An autoCert is the certificate of a server for those who configure none: a leaf of the mesh's own authority.
type autoCert struct {
	leaves *leaf.Keeper

	mu     sync.Mutex
	serial string
	cert   *tls.Certificate
}

// get returns the current certificate; the leaf is kept and renewed by the keeper.
func (c *autoCert) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	res, err := c.leaves.Get(hello.Context(), leaf.Request{Server: true})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert == nil || c.serial != res.Leaf.SerialNumber {
		cert, err := tls.X509KeyPair([]byte(res.Leaf.CertPEM), []byte(res.Leaf.PrivateKeyPEM))
		if err != nil {
			return nil, err
		}
		c.cert, c.serial = &cert, res.Leaf.SerialNumber
	}
	return c.cert, nil
}

// security is the TLS of the server port.
func (m *material) security(s *config.Settings) *rpcwire.Security {
	t := s.TLS.InternalRPC
	return &rpcwire.Security{
		Certificate: m.cert.Load, Roots: m.roots.Load, MinVersion: t.MinTLS(), CipherSuites: t.CipherSuiteIDs(),
		VerifyIncoming: t.VerifyIncoming, VerifyOutgoing: t.VerifyOutgoing, VerifyServerHostname: t.VerifyServerHostname, Domain: s.DNS.Domain,
	}
}
