package agent

import (
	"crypto/tls"
	"errors"
	"strings"

	"github.com/sarnmesh/sarn/catalog/peering"
	peers "github.com/sarnmesh/sarn/server/peering"
)

// calledByPeers reports whether a name is the one by which other clusters call the servers of this one.
func calledByPeers(name string) bool {
	_, err := peering.ServerTrustDomain(name)
	return err == nil
}

// peerTLS is base for everybody but other clusters. These know the servers by another name, whose certificate is one of
// the mesh's authority whatever is configured, and have no certificate that this cluster could verify: what they call
// asks for a secret of its own. See admitPeers.
func (m *material) peerTLS(base *tls.Config, auto func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	out := base.Clone()
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !calledByPeers(hello.ServerName) {
			return base.GetConfigForClient(hello)
		}
		s := m.now.Load().stanza
		return &tls.Config{MinVersion: s.MinTLS(), CipherSuites: s.CipherSuiteIDs(), NextProtos: base.NextProtos, GetCertificate: auto}, nil
	}
	return out
}

var errPeersOnly = errors.New("this name of the servers is for the calls of other clusters")

// admitPeers lets those who call by the peers' name call nothing but what is for peers: their certificates were not asked
// for.
func admitPeers(method string, state tls.ConnectionState) error {
	if calledByPeers(state.ServerName) && !strings.HasPrefix(method, "/"+peers.Service+"/") {
		return errPeersOnly
	}
	return nil
}
