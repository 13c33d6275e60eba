package newcomer_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/client/newcomer"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// shown makes a server show these certificates beside its own.
func shown(cert *tls.Certificate, more ...*x509.Certificate) *tls.Certificate {
	c := *cert
	c.Certificate = slices.Clone(cert.Certificate[:1])
	for _, m := range more {
		c.Certificate = append(c.Certificate, m.Raw)
	}
	return &c
}

// answering serves ProtoIntro at 10.0.0.1:8300 and counts the tokens it sees.
func answering(t *testing.T, n *testkit.Network, cert *tls.Certificate, answer func(*intro.JoinRequest) (*intro.JoinReply, error)) *atomic.Int32 {
	t.Helper()
	l, err := n.Host("10.0.0.1").Listen(8300)
	if err != nil {
		t.Fatal(err)
	}
	port := rpcwire.NewPort(rpcwire.PortConfig{Listener: l, Security: &rpcwire.Security{Certificate: func() *tls.Certificate { return cert }, Introduce: true}})
	seen := &atomic.Int32{}
	srv := rpcwire.NewServer([]rpcwire.Method{{Name: intro.JoinName, Handle: func(_ context.Context, _ rpcwire.Peer, decode func(any) error) (any, error) {
		seen.Add(1)
		var req intro.JoinRequest
		if err := decode(&req); err != nil {
			return nil, err
		}
		return answer(&req)
	}}}, nil, 0)
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return port.Run(ctx) })
	g.Go(func() error { return srv.Serve(port.Listener(rpcwire.ProtoIntro)) })
	t.Cleanup(func() { cancel(); srv.Stop(); g.Wait() })
	return seen
}

func reply(ca *x509.Certificate, node string) *intro.JoinReply {
	return &intro.JoinReply{
		Domain: "consul", Authorities: []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))},
		Settings: intro.Settings{
			Datacenter: "dc1", PrimaryDatacenter: "dc1", NodeName: node,
			Gossip: intro.Gossip{Key: base64.StdEncoding.EncodeToString(make([]byte, 32)), RetryJoin: []string{"10.0.0.1:8301"}},
			ACL:    intro.ACL{Enabled: true, AgentToken: "11111111-2222-3333-4444-555555555555"},
		},
	}
}

func join(t *testing.T, n *testkit.Network, token *intro.JoinToken) (*intro.JoinReply, string, error) {
	host := n.Host("10.0.0.2")
	r, from, err := newcomer.Join(t.Context(), token, "n1", func(ctx context.Context, address string) (net.Conn, error) {
		return host.Dial(ctx, address)
	})
	return r, from.String(), err
}

func tokenOf(ca *testkit.CA) *intro.JoinToken {
	return &intro.JoinToken{
		Pin: sha256.Sum256(ca.Certificate().Raw), Datacenter: "dc1", Domain: "consul", Addresses: []string{"10.0.0.1:8300"},
	}
}

// Who is in between sees no secret, whatever he shows.
func TestJoinShowsItsTokenToTheClusterAlone(t *testing.T) {
	const name = "server.dc1.consul"
	for what, tt := range map[string]struct {
		cert func(t *testing.T, ours, theirs *testkit.CA) *tls.Certificate
		err  string // empty: joins
	}{
		"the cluster": {func(_ *testing.T, ours, _ *testkit.CA) *tls.Certificate {
			return shown(ours.Issue(name), ours.Certificate())
		}, ""},
		"another cluster": {func(_ *testing.T, _, theirs *testkit.CA) *tls.Certificate {
			return shown(theirs.Issue(name), theirs.Certificate())
		}, "somebody is in between"},
		"another cluster beside": {func(_ *testing.T, ours, theirs *testkit.CA) *tls.Certificate {
			return shown(theirs.Issue(name), theirs.Certificate(), ours.Certificate())
		}, "signed by unknown authority"},
		"a client of the cluster": {func(_ *testing.T, ours, _ *testkit.CA) *tls.Certificate {
			return shown(ours.Issue("client.dc1.consul"), ours.Certificate())
		}, "not server.dc1.consul"},
		"a server of another datacenter": {func(_ *testing.T, ours, _ *testkit.CA) *tls.Certificate {
			return shown(ours.Issue("server.dc2.consul"), ours.Certificate())
		}, "not server.dc1.consul"},
		"a server without its authority": {func(_ *testing.T, ours, _ *testkit.CA) *tls.Certificate {
			return shown(ours.Issue(name))
		}, "somebody is in between"},
		"a leaf in place of the authority": {func(t *testing.T, ours, theirs *testkit.CA) *tls.Certificate {
			return shown(theirs.Issue(name), theirs.Certificate(), parsed(t, ours.Issue(name)))
		}, "somebody is in between"},
	} {
		t.Run(what, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				ours, theirs := testkit.NewCA(t, "servers"), testkit.NewCA(t, "servers")
				n := testkit.NewNetwork(1)
				seen := answering(t, n, tt.cert(t, ours, theirs), func(req *intro.JoinRequest) (*intro.JoinReply, error) {
					return reply(ours.Certificate(), req.Node), nil
				})
				got, from, err := join(t, n, tokenOf(ours))
				if tt.err == "" {
					if err != nil || seen.Load() != 1 || from != "10.0.0.2" || got.Settings.NodeName != "n1" {
						t.Errorf("%v, seen by %d, from %s: %+v", err, seen.Load(), from, got)
					}
					return
				}
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				if seen.Load() != 0 {
					t.Error("the token was shown")
				}
			})
		})
	}
}

func parsed(t *testing.T, cert *tls.Certificate) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A refusal is final: the token is not carried on to other servers.
func TestJoinStopsAtARefusal(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		ours := testkit.NewCA(t, "servers")
		n := testkit.NewNetwork(1)
		seen := answering(t, n, shown(ours.Issue("server.dc1.consul"), ours.Certificate()), func(*intro.JoinRequest) (*intro.JoinReply, error) {
			return nil, wireerr.Errorf(403, "the join token is not accepted")
		})
		token := tokenOf(ours)
		token.Addresses = []string{"10.0.0.1:8300", "10.0.0.1:8300"}
		_, _, err := join(t, n, token)
		if err == nil || !strings.Contains(err.Error(), "not accepted") || seen.Load() != 1 {
			t.Errorf("%v, shown %d times", err, seen.Load())
		}
	})
}

// A server that is away is left out.
func TestJoinAsksTheNextServer(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		ours := testkit.NewCA(t, "servers")
		n := testkit.NewNetwork(1)
		answering(t, n, shown(ours.Issue("server.dc1.consul"), ours.Certificate()), func(req *intro.JoinRequest) (*intro.JoinReply, error) {
			return reply(ours.Certificate(), req.Node), nil
		})
		token := tokenOf(ours)
		token.Addresses = []string{"10.0.0.9:8300", "10.0.0.1:8300"}
		if _, _, err := join(t, n, token); err != nil {
			t.Error(err)
		}
	})
}

// What a server answers becomes a configuration file: it is looked at first.
func TestJoinChecksTheAnswer(t *testing.T) {
	theirs := testkit.NewCA(t, "servers")
	for what, change := range map[string]func(*intro.JoinReply){
		"datacenter":         func(r *intro.JoinReply) { r.Settings.Datacenter = "dc2" },
		"primary datacenter": func(r *intro.JoinReply) { r.Settings.PrimaryDatacenter = "dc1\"\nserver = true" },
		"domain":             func(r *intro.JoinReply) { r.Domain = "x" },
		"node":               func(r *intro.JoinReply) { r.Settings.NodeName = "n2" },
		"a key for a client": func(r *intro.JoinReply) { r.AuthorityKey = "k" },
		"no servers":         func(r *intro.JoinReply) { r.Settings.Gossip.RetryJoin = nil },
		"odd server":         func(r *intro.JoinReply) { r.Settings.Gossip.RetryJoin = []string{"a b:1"} },
		"gossip key":         func(r *intro.JoinReply) { r.Settings.Gossip.Key = "AAAA" },
		"agent's token":      func(r *intro.JoinReply) { r.Settings.ACL.AgentToken = "${x}" },
		"no authority":       func(r *intro.JoinReply) { r.Authorities = nil },
		"other authority":    func(r *intro.JoinReply) { r.Authorities = reply(theirs.Certificate(), "").Authorities },
		"odd authority":      func(r *intro.JoinReply) { r.Authorities = append(r.Authorities, "x") },
	} {
		t.Run(what, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				ours := testkit.NewCA(t, "servers")
				n := testkit.NewNetwork(1)
				answering(t, n, shown(ours.Issue("server.dc1.consul"), ours.Certificate()), func(req *intro.JoinRequest) (*intro.JoinReply, error) {
					r := reply(ours.Certificate(), req.Node)
					change(r)
					return r, nil
				})
				if _, _, err := join(t, n, tokenOf(ours)); err == nil || !strings.Contains(err.Error(), "is of no use") {
					t.Errorf("taken: %v", err)
				}
			})
		})
	}
}
