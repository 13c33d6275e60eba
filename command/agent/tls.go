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
	"github.com/sarnmesh/sarn/client/newcomer"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/server"
)

// A material is what one kind of connection is secured with. It is looked at again for each connection.
type material struct {
	now  atomic.Pointer[keys]
	auto func() *newcomer.Admission // what the servers gave this agent; nil when that is not asked for
}

// keys are one TLS stanza and what was in its files.
type keys struct {
	stanza config.TLSStanza
	cert   *tls.Certificate // nil when none is configured
	roots  *x509.CertPool   // nil when none is configured
	pem    []string         // the same authorities
}

// readKeys reads the files of a stanza.
func readKeys(s config.TLSStanza) (*keys, error) {
	k := &keys{stanza: s}
	if s.CertFile != "" || s.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load certificate %s: %w", s.CertFile, err)
		}
		k.cert = &pair
	}
	var files []string
	if s.CAFile != "" {
		files = append(files, s.CAFile)
	}
	if s.CAPath != "" {
		entries, err := os.ReadDir(s.CAPath)
		if err != nil {
			return nil, fmt.Errorf("read ca_path: %w", err)
		}
		for _, e := range entries {
			if !e.IsDir() {
				files = append(files, filepath.Join(s.CAPath, e.Name()))
			}
		}
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read authority: %w", err)
		}
		if k.roots == nil {
			k.roots = x509.NewCertPool()
		}
		if k.roots.AppendCertsFromPEM(data) {
			k.pem = append(k.pem, string(data))
		} else if s.CAPath == "" {
			return nil, fmt.Errorf("read authority: %s holds no certificate", file)
		}
	}
	return k, nil
}

// loadTLS reads all files, and changes nothing when there is anything wrong with one.
func (a *Agent) loadTLS(s *config.Settings) error {
	var errs []error
	var all []*keys
	for _, stanza := range []config.TLSStanza{s.TLS.InternalRPC, s.TLS.HTTPS, s.TLS.GRPC} {
		k, err := readKeys(stanza)
		all, errs = append(all, k), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for i, m := range []*material{&a.rpcTLS, &a.httpTLS, &a.grpcTLS} {
		m.now.Store(all[i])
	}
	return nil
}

// admission is what the servers gave this agent, nil if nothing.
func (m *material) admission() *newcomer.Admission {
	if m.auto == nil {
		return nil
	}
	return m.auto()
}

// cert is the certificate to show, nil for none.
func (m *material) cert() *tls.Certificate {
	if k := m.now.Load(); k.cert != nil {
		return k.cert
	}
	if given := m.admission(); given != nil {
		return given.Certificate()
	}
	return nil
}

// roots are the authorities to verify others with, nil for none. What is configured comes before what servers say.
func (m *material) roots() *x509.CertPool {
	if k := m.now.Load(); k.roots != nil {
		return k.roots
	}
	if given := m.admission(); given != nil {
		return given.Roots()
	}
	return nil
}

// serverTLS is the configuration of a listener; everything is looked up at each handshake. auto gives the certificate
// where none is configured; it may be nil.
func (m *material) serverTLS(auto func(*tls.ClientHelloInfo) (*tls.Certificate, error), protocols ...string) *tls.Config {
	base := &tls.Config{NextProtos: protocols, MinVersion: tls.VersionTLS12}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		k := m.now.Load()
		c := &tls.Config{
			MinVersion: k.stanza.MinTLS(), CipherSuites: k.stanza.CipherSuiteIDs(), NextProtos: protocols,
			GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				if k.cert != nil {
					return k.cert, nil
				}
				if auto != nil {
					return auto(hello)
				}
				return nil, errors.New("no certificate is configured")
			},
		}
		if k.stanza.VerifyIncoming {
			// A session that is resumed would not be verified by what holds now.
			c.SessionTicketsDisabled = true
			c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, m.roots()
			if c.ClientCAs == nil {
				return nil, errors.New("verify_incoming is on, and no authority is configured")
			}
		}
		return c, nil
	}
	return base
}

// givenCert is the certificate of an agent that the servers gave it, for tls.grpc.use_auto_cert.
func (m *material) givenCert(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if given := m.admission(); given != nil {
		return given.Certificate(), nil
	}
	return nil, errors.New("the servers gave this agent no certificate")
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
func (a *Agent) security(s *config.Settings) *rpcwire.Security {
	domain, datacenter := s.DNS.Domain, s.Node.Datacenter
	introduces := s.Server && (s.AutoEncrypt.AllowTLS || s.AutoConfig.Authorization || s.JoinTokens.CAKeyFile != "")
	agents := &agentRoots{}
	return &rpcwire.Security{Live: func() *rpcwire.Security {
		t := a.rpcTLS.now.Load().stanza
		sec := &rpcwire.Security{
			Certificate: a.rpcTLS.cert, Roots: a.rpcTLS.roots, MinVersion: t.MinTLS(), CipherSuites: t.CipherSuiteIDs(),
			VerifyIncoming: t.VerifyIncoming, VerifyOutgoing: t.VerifyOutgoing, VerifyServerHostname: t.VerifyServerHostname,
			Domain: domain, Introduce: introduces,
		}
		if given := a.rpcTLS.admission(); given != nil {
			sec.VerifyOutgoing = true
			sec.VerifyServerHostname = t.VerifyServerHostname || given.VerifyServerHostname
		}
		if introduces {
			sec.Agents = func() []*x509.Certificate { return agents.list(a.server) }
			sec.IsAgent = func(c *x509.Certificate) bool { return isAgent(c, datacenter) }
		}
		return sec
	}}
}

// isAgent reports whether a certificate of the mesh's authority is that of an agent of the datacenter.
func isAgent(c *x509.Certificate, datacenter string) bool {
	if len(c.URIs) != 1 {
		return false
	}
	id, err := connect.ParseID(c.URIs[0].String())
	return err == nil && id.Kind() == connect.Agent && id.Datacenter() == datacenter
}

// agentRoots are the roots of the mesh's authority, which signs the certificates of agents.
type agentRoots struct {
	mu    sync.Mutex
	index uint64
	certs []*x509.Certificate
}

func (r *agentRoots) list(s *server.Server) []*x509.Certificate {
	if s == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	index, roots := s.Store().View().CARoots()
	if index == r.index && r.certs != nil {
		return r.certs
	}
	r.index, r.certs = index, nil
	for _, root := range roots {
		if c, err := ca.ParseCertificate(root.RootCert); err == nil {
			r.certs = append(r.certs, c)
		}
	}
	return r.certs
}
