package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/agentcert"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/server/introrpc"
)

// ownCertLife is the validity of the certificate that a server signs for itself; it is replaced when half of it is over.
const ownCertLife = 90 * 24 * time.Hour

// ownCertEvery is how often a server looks whether that is so.
const ownCertEvery = time.Hour

// keepOwnCert signs a new certificate for a server that has the key of its authority, when there is none, when half of
// the old one's life is over, or when it does not fit any more. It needs no other server: a cluster that was off for a
// year finds together again. It reports whether there is a new one.
func keepOwnCert(s *config.Settings, log hclog.Logger, now time.Time) (bool, error) {
	t := s.TLS.InternalRPC
	if s.JoinTokens.CAKeyFile == "" {
		return false, nil
	}
	ca, key, err := authority(s)
	if err != nil {
		return false, err
	}
	name := serverName(s)
	spec := agentcert.Leaf{
		Name: name, Hosts: []string{name, s.Node.Name + "." + name, "localhost"}, Addrs: []string{"127.0.0.1", "::1"},
		Validity: ownCertLife, Peer: true,
	}
	if a := s.Addresses.Advertise; a.IsValid() && !slices.Contains(spec.Addrs, a.String()) {
		spec.Addrs = append(spec.Addrs, a.String())
	}
	why := ownCertFault(t.CertFile, ca, spec, now)
	if why == "" {
		return false, nil
	}
	cert, private, err := spec.Make(now, []byte(ca), []byte(key))
	if err != nil {
		return false, fmt.Errorf("sign the server's own certificate: %w", err)
	}
	// The authority goes along for machines that join, which know no more of it than its hash.
	data := slices.Concat(cert, []byte(ca), private)
	if err := os.MkdirAll(filepath.Dir(t.CertFile), 0o700); err != nil {
		return false, err
	}
	if err := writeFile(t.CertFile, data); err != nil {
		return false, fmt.Errorf("save the server's own certificate: %w", err)
	}
	log.Info("signed a new certificate for this server", "file", t.CertFile, "because", why, "until", now.Add(ownCertLife))
	return true, nil
}

// serverName is the name that the certificates of servers have.
func serverName(s *config.Settings) string {
	return "server." + s.Node.Datacenter + "." + strings.Trim(s.DNS.Domain, ".")
}

// ownCertFault tells why a server's certificate is to be replaced, empty when it is not.
func ownCertFault(file, ca string, want agentcert.Leaf, now time.Time) string {
	pair, err := tls.LoadX509KeyPair(file, file)
	if errors.Is(err, fs.ErrNotExist) {
		return "there is none"
	}
	if err != nil {
		return "it cannot be read"
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return "it cannot be read"
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	block, _ := pem.Decode([]byte(ca))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil ||
		!slices.ContainsFunc(pair.Certificate[1:], func(der []byte) bool { return string(der) == string(block.Bytes) }) {
		return "it is of another authority"
	}
	for _, host := range slices.Concat(want.Hosts, want.Addrs) {
		if leaf.VerifyHostname(host) != nil {
			return "it does not have the name " + host
		}
	}
	if !now.Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)) {
		return "half of its life is over"
	}
	return ""
}

// authority reads the certificate and the key, PEM, of the authority that this server signs with.
func authority(s *config.Settings) (cert, key string, err error) {
	data, err := os.ReadFile(s.TLS.InternalRPC.CAFile)
	if err != nil {
		return "", "", fmt.Errorf("read authority: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", "", fmt.Errorf("read authority: %s does not begin with a certificate", s.TLS.InternalRPC.CAFile)
	}
	private, err := os.ReadFile(s.JoinTokens.CAKeyFile)
	if err != nil {
		return "", "", fmt.Errorf("join_tokens.ca_key_file: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})), string(private), nil
}

// renewOwnCert keeps the certificate of a running server until ctx ends.
func (a *Agent) renewOwnCert(ctx context.Context) error {
	for pause.For(ctx, ownCertEvery) {
		s := a.current()
		made, err := keepOwnCert(s, a.log, time.Now())
		if err == nil && made {
			err = a.loadTLS(s)
		}
		if err != nil {
			a.log.Error("the certificate of this server was not renewed, will retry", "wait", ownCertEvery, "error", err)
		}
	}
	return nil
}

// joining is what machines that join by tokens are told; nil when they cannot.
func (a *Agent) joining(s *config.Settings) *introrpc.Join {
	if s.JoinTokens.CAKeyFile == "" {
		return nil
	}
	return &introrpc.Join{
		Domain:    strings.Trim(s.DNS.Domain, "."),
		Authority: func() (string, string, error) { return authority(s) },
		Servers: func() (ports, lan []string) {
			ports, lan = []string{s.Addresses.ServerAdvertise.String()}, []string{s.Addresses.SerfLANAdvertise.String()}
			for _, m := range a.pool.Members() {
				if srv, ok := gossip.ParseServer(m); ok && m.Status == gossip.Alive && m.Name != s.Node.Name {
					ports, lan = append(ports, srv.Addr.String()), append(lan, srv.Gossip.String())
				}
			}
			return ports, lan
		},
	}
}

// takeOwnToken asks the leader, until it answers, for the ACL token of this server's agent, where none is configured.
func (a *Agent) takeOwnToken(ctx context.Context) error {
	retry := 100 * time.Millisecond
	for ctx.Err() == nil && a.tokens.Agent() == "" {
		reply, err := intro.OwnTokenCall.Call(ctx, a.caller, &intro.OwnTokenRequest{Node: a.node.Node, Secret: a.server.Secret()})
		if err == nil {
			err = a.tokens.put(httpapi.TokenAgent, reply.AgentToken)
		}
		if err == nil {
			close(a.owned)
			a.local.SyncSoon()
			return nil
		}
		a.log.Debug("this server's agent has no token yet, will retry", "wait", retry, "error", err)
		pause.For(ctx, retry)
		retry = min(2*retry, 15*time.Second)
	}
	return nil
}

// firstTokenWait is how long a server that starts for the first time registers nothing, since it would be refused.
const firstTokenWait = 15 * time.Second

// awaitOwnToken waits for the token of a server that has none yet.
func (a *Agent) awaitOwnToken(ctx context.Context, s *config.Settings) {
	if s.JoinTokens.CAKeyFile == "" || a.tokens.Agent() != "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, firstTokenWait)
	defer cancel()
	select {
	case <-a.owned:
	case <-ctx.Done():
	}
}
