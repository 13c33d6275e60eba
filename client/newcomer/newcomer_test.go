package newcomer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/client/newcomer"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
)

const domain = "11111111-2222-3333-4444-555555555555.consul"

// An authority signs for servers and for agents, and counts.
type authority struct {
	provider ca.Provider
	root     *ca.Root

	mu      sync.Mutex
	intros  int
	renewed int
	away    bool   // calls fail
	sign    string // root ID told
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.NewRoot(ca.RootParams{
		ClusterID: strings.TrimSuffix(domain, ".consul"), Key: key, Serial: 1, Now: time.Now(), TTL: 10 * 365 * 24 * time.Hour, Random: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := ca.NewBuiltIn(text, key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{provider: p, root: &ca.Root{ID: "r1"}, sign: "r1"}
}

var errAway = errors.New("the servers are away")

func (a *authority) leaf(ctx context.Context, csr string, dns, ips []string) (*ca.Leaf, error) {
	req, err := ca.ParseCSR(csr, domain, "dc1")
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] = 1
	return ca.SignLeaf(ctx, req, ca.LeafParams{
		Provider: a.provider, Root: &ca.Root{ID: a.sign}, Serial: serial, Now: time.Now(), TTL: 72 * time.Hour, Hosts: dns, IPs: ips,
	})
}

// Call answers renewals.
func (a *authority) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	sign, ok := req.(*ca.SignRequest)
	if !ok || a.away {
		return errAway
	}
	if sign.Token != "renewal" {
		return errors.New("Permission denied")
	}
	l, err := a.leaf(ctx, sign.CSR, sign.Hosts, sign.IPs)
	if err != nil {
		return err
	}
	a.renewed++
	resp.(*ca.SignReply).Leaf = *l
	return nil
}

func (a *authority) set(f func()) { a.mu.Lock(); defer a.mu.Unlock(); f() }

func (a *authority) counts() (intros, renewed int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.intros, a.renewed
}

// serve answers newcomers at 10.0.0.1:8300.
func (a *authority) serve(t *testing.T, n *testkit.Network) (trusted *testkit.CA) {
	t.Helper()
	trusted = testkit.NewCA(t, "servers")
	cert := trusted.Issue("server.dc1.consul")
	l, err := n.Host("10.0.0.1").Listen(8300)
	if err != nil {
		t.Fatal(err)
	}
	port := rpcwire.NewPort(rpcwire.PortConfig{Listener: l, Security: &rpcwire.Security{
		Certificate: func() *tls.Certificate { return cert }, Roots: trusted.Pool, VerifyIncoming: true, Introduce: true,
	}})
	srv := rpcwire.NewServer([]rpcwire.Method{
		{Name: intro.HelloName, Handle: func(context.Context, rpcwire.Peer, func(any) error) (any, error) {
			return &intro.HelloReply{TrustDomain: domain}, nil
		}},
		{Name: intro.SignName, Handle: func(ctx context.Context, _ rpcwire.Peer, decode func(any) error) (any, error) {
			var req intro.SignRequest
			if err := decode(&req); err != nil {
				return nil, err
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.away {
				return nil, errAway
			}
			l, err := a.leaf(ctx, req.CSR, req.DNSNames, req.IPs)
			if err != nil {
				return nil, err
			}
			a.intros++
			return &intro.Identity{CertPEM: l.CertPEM, RootID: l.RootID, VerifyServerHostname: true}, nil
		}},
	}, nil, 0)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- port.Run(ctx) }()
	go func() { done <- srv.Serve(port.Listener(rpcwire.ProtoIntro)) }()
	t.Cleanup(func() {
		srv.Stop()
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return trusted
}

var hosts int // in use so far

func config(n *testkit.Network, sec *rpcwire.Security) newcomer.Config {
	hosts++
	host := n.Host(fmt.Sprintf("10.0.%d.%d", 1+hosts/250, 1+hosts%250))
	return newcomer.Config{
		Datacenter: "dc1", Node: "n1", Servers: []string{"10.0.0.9:8300", "10.0.0.1:8300"},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return host.Dial(ctx, address)
		},
		Security: sec, DNSNames: []string{"localhost"}, IPs: []string{"127.0.0.1"},
		Token: func() string { return "renewal" }, Chance: func() float64 { return 0.5 },
	}
}

// The certificate is renewed in time, over ordinary calls; when it ran out, the agent is a newcomer again; when another
// root signs, it is renewed at once.
func TestCertificateIsKeptCurrent(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := testkit.NewNetwork(1)
		a := newAuthority(t)
		trusted := a.serve(t, n)
		k := newcomer.New(config(n, &rpcwire.Security{Roots: trusted.Pool, VerifyServerHostname: true}))
		if err := k.Admit(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := k.Admission()
		if !first.VerifyServerHostname || first.Certificate() == nil || time.Until(first.ValidBefore) < 71*time.Hour {
			t.Fatalf("%+v", first)
		}
		var mu sync.Mutex
		news := make(chan struct{})
		active := "r1"
		roots := func() (*ca.RootsReply, <-chan struct{}, error) {
			mu.Lock()
			defer mu.Unlock()
			return &ca.RootsReply{ActiveRootID: active}, news, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx, a, roots) }()
		defer func() { cancel(); <-done }()

		want := func(what string, intros, renewed int) {
			t.Helper()
			if i, r := a.counts(); i != intros || r != renewed {
				t.Errorf("%s: %d introductions and %d renewals, want %d and %d", what, i, r, intros, renewed)
			}
			if now := k.Admission(); time.Now().After(now.ValidBefore) {
				t.Errorf("%s: the certificate has expired", what)
			}
		}
		time.Sleep(30 * time.Hour)
		want("before half of its life", 1, 0)
		time.Sleep(18 * time.Hour)
		want("after it", 1, 1)
		for range 40 {
			time.Sleep(24 * time.Hour)
			if time.Until(k.Admission().ValidBefore) < 24*time.Hour {
				t.Fatal("a certificate was left to its last day")
			}
		}
		intros, renewed := a.counts()
		if intros != 1 || renewed < 20 || renewed > 40 {
			t.Errorf("in forty days: %d introductions, %d renewals", intros, renewed)
		}

		a.set(func() { a.away = true })
		time.Sleep(time.Until(k.Admission().ValidBefore) + time.Minute)
		if time.Now().Before(k.Admission().ValidBefore) {
			t.Error("the certificate is good though nobody signed it")
		}
		a.set(func() { a.away = false })
		time.Sleep(15 * time.Minute)
		want("after the servers were away", 2, renewed)

		a.set(func() { a.sign = "r2" })
		mu.Lock()
		active = "r2"
		close(news)
		news = make(chan struct{})
		mu.Unlock()
		time.Sleep(time.Minute)
		want("after a change of roots", 2, renewed+1)
		if k.Admission().RootID != "r2" {
			t.Errorf("signed by %s", k.Admission().RootID)
		}
	})
}

// Servers must prove who they are before the token is shown, as far as the agent can tell.
func TestServersAreVerifiedFirst(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := testkit.NewNetwork(2)
		a := newAuthority(t)
		trusted := a.serve(t, n)
		others := testkit.NewCA(t, "others")
		for _, tt := range []struct {
			name string
			sec  *rpcwire.Security
			ok   bool
		}{
			{"verified", &rpcwire.Security{Roots: trusted.Pool}, true},
			{"verified with the name", &rpcwire.Security{Roots: trusted.Pool, VerifyServerHostname: true}, true},
			{"another name", &rpcwire.Security{Roots: trusted.Pool, VerifyServerHostname: true, Domain: "other"}, false},
			{"another authority, though nothing is to be verified", &rpcwire.Security{Roots: others.Pool}, false},
			{"the system's authorities", &rpcwire.Security{VerifyOutgoing: true}, false},
			{"nothing to verify with", &rpcwire.Security{}, true},
		} {
			shown := false
			conf := config(n, tt.sec)
			conf.Token = func() string { shown = true; return "" }
			err := newcomer.New(conf).Admit(t.Context())
			if (err == nil) != tt.ok || shown != tt.ok {
				t.Errorf("%s: %v, token shown: %v", tt.name, err, shown)
			}
		}
	})
}

// What was kept is good only as long as its certificate, and only with its own key.
func TestResume(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := testkit.NewNetwork(3)
		a := newAuthority(t)
		trusted := a.serve(t, n)
		conf := config(n, &rpcwire.Security{Roots: trusted.Pool})
		k := newcomer.New(conf)
		if err := k.Admit(t.Context()); err != nil {
			t.Fatal(err)
		}
		kept := *k.Admission()
		other := newcomer.New(conf)
		if err := other.Resume(&kept); err != nil || other.Admission().Certificate() == nil {
			t.Error(err)
		}
		broken := kept
		broken.PrivateKeyPEM = fmt.Sprint("x", broken.PrivateKeyPEM[1:])
		if err := newcomer.New(conf).Resume(&broken); err == nil || strings.Contains(err.Error(), broken.PrivateKeyPEM[40:80]) {
			t.Errorf("a broken key: %v", err)
		}
		time.Sleep(73 * time.Hour)
		if err := newcomer.New(conf).Resume(&kept); err == nil {
			t.Error("an expired certificate was taken")
		}
	})
}
