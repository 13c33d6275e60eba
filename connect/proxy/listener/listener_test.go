package listener_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/listener"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
	"github.com/sarnmesh/sarn/internal/testkit"
)

const (
	webID = "spiffe://td.consul/ns/default/dc/dc1/svc/web"
	dbID  = "spiffe://td.consul/ns/default/dc/dc1/svc/db"
)

// world is two machines with a proxy each: web's dials the cluster "db", db's
// has a public listener in front of an application.
type world struct {
	*testing.T
	ca        *testkit.CA
	net       *testkit.Network
	web, db   *testkit.Host
	webP, dbP *side
	app       *app
	log       bytes.Buffer
	logMu     sync.Mutex
	ctx       context.Context
	cancel    context.CancelFunc
	running   sync.WaitGroup
	cluster   *model.Cluster
	public    *model.Listener
}

type side struct {
	up      *upstream.Manager
	ln      *listener.Manager
	secrets *tlscontext.Secrets
	stats   *stats.Store
}

// app is an application that serves connections by a function.
type app struct {
	mu    sync.Mutex
	serve func(net.Conn)
	conns int
}

func echo(c net.Conn) {
	io.Copy(c, c)
	c.Close()
}

func (a *app) set(f func(net.Conn)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.serve = f
}

func (a *app) run(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		a.mu.Lock()
		f := a.serve
		a.conns++
		a.mu.Unlock()
		go f(c)
	}
}

func (w *world) side(h *testkit.Host, drain time.Duration, limit int64) *side {
	s := &side{secrets: tlscontext.NewSecrets(), stats: stats.NewStore(nil)}
	log := hclog.New(&hclog.LoggerOptions{Output: writer{w}, Level: hclog.Debug, DisableTime: true})
	s.up = upstream.NewManager(upstream.Config{Dial: dialer(h), Secrets: s.secrets, Stats: s.stats, Logger: log})
	s.ln = listener.NewManager(listener.Config{
		Listen: func(_ context.Context, _ *model.Listener, a model.Address) (net.Listener, error) {
			return h.Listen(a.Port)
		},
		Upstreams: s.up, Secrets: s.secrets, Stats: s.stats, DrainTime: drain, MaxConnections: limit, Logger: log,
	})
	w.running.Go(func() { s.up.Run(w.ctx) })
	return s
}

func dialer(h *testkit.Host) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) { return h.Dial(ctx, address) }
}

type writer struct{ w *world }

func (x writer) Write(b []byte) (int, error) {
	x.w.logMu.Lock()
	defer x.w.logMu.Unlock()
	return x.w.log.Write(b)
}

func addr(s string) model.Address {
	host, port, _ := net.SplitHostPort(s)
	var p uint16
	fmt.Sscan(port, &p)
	return model.Address{Host: host, Port: p}
}

func exact(t testing.TB, s string) model.StringMatch {
	m, err := model.NewStringMatch(model.MatchExact, s, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// identity is the TLS settings of a service that trusts the given roots.
func identity(cert *tls.Certificate, roots ...*x509.Certificate) model.TLS {
	return model.TLS{Certificates: []model.Certificate{{TLS: *cert}}, Validation: &model.Validation{Roots: roots, MaxDepth: -1}}
}

func allow(t testing.TB, ids ...string) *model.RBAC {
	r := &model.RBAC{}
	for _, id := range ids {
		r.Policies = append(r.Policies, model.Policy{Name: "allow " + id, Permissions: []model.Rule{{Kind: model.RuleAny}},
			Principals: []model.Rule{{Kind: model.RulePrincipal, Match: exact(t, id)}}})
	}
	return r
}

func hosts(addrs ...string) *model.LoadAssignment {
	la := &model.LoadAssignment{Localities: []model.Locality{{}}}
	for _, a := range addrs {
		la.Endpoints = append(la.Endpoints, model.Endpoint{Address: addr(a), Weight: 1})
	}
	return la
}

// publicListener is db's listener as it is configured now; change it and call set.
func (w *world) publicListener(rules *model.RBAC) *model.Listener {
	return &model.Listener{
		Name: "public", Address: addr("10.0.0.2:20000"), BindToPort: true, Direction: model.Inbound,
		Chains: []*model.FilterChain{{
			TLS:              &model.DownstreamTLS{TLS: identity(w.ca.Issue(dbID), w.ca.Certificate()), RequireClientCertificate: true},
			HandshakeTimeout: 15 * time.Second,
			Filters:          []model.NetworkFilter{&model.NetworkRBAC{StatPrefix: "connect_authz", Rules: rules}},
			Terminal:         &model.TCPProxy{StatPrefix: "public", Cluster: "local_app", IdleTimeout: time.Hour},
		}},
	}
}

func (w *world) dbCluster(addrs ...string) *model.Cluster {
	id := identity(w.ca.Issue(webID), w.ca.Certificate())
	id.Validation.SANs = []model.SANMatch{{Type: model.SANURI, Match: exact(w, dbID)}}
	return &model.Cluster{
		Name: "db", Type: model.Static, Endpoints: hosts(addrs...), ConnectTimeout: 5 * time.Second, Breakers: [2]model.Breaker{{MaxConnections: 1024}},
		Choices: 2, ActiveBias: 1, LB: model.LeastRequest, TLS: &model.UpstreamTLS{TLS: id, SNI: "db.default.dc1.internal.td.consul"},
	}
}

func upstreamListener(t *model.TCPProxy) *model.Listener {
	return &model.Listener{
		Name: "db", Address: addr("10.0.0.1:9191"), BindToPort: true, Direction: model.Outbound,
		Chains: []*model.FilterChain{{HandshakeTimeout: time.Second, Terminal: t}},
	}
}

// mesh runs f in a bubble with both proxies up and web allowed to call db.
func mesh(t *testing.T, f func(w *world)) {
	testkit.Bubble(t, func(t *testing.T) {
		n := testkit.NewNetwork(1)
		w := &world{T: t, ca: testkit.NewCA(t, "root"), net: n, web: n.Host("10.0.0.1"), db: n.Host("10.0.0.2"), app: &app{serve: echo}}
		w.ctx, w.cancel = context.WithCancel(context.Background())
		w.webP, w.dbP = w.side(w.web, time.Minute, 0), w.side(w.db, time.Minute, 0)

		ln, err := w.db.Listen(8080)
		if err != nil {
			t.Fatal(err)
		}
		go w.app.run(ln)
		w.dbP.up.Set(&model.Cluster{Name: "local_app", Endpoints: hosts("10.0.0.2:8080"), ConnectTimeout: 5 * time.Second, Breakers: [2]model.Breaker{{MaxConnections: 1024}}, Choices: 2}, true)
		w.public = w.publicListener(allow(t, webID))
		w.set(w.dbP, w.public)
		w.cluster = w.dbCluster("10.0.0.2:20000")
		w.webP.up.Set(w.cluster, true)
		w.set(w.webP, upstreamListener(&model.TCPProxy{StatPrefix: "upstream", Cluster: "db", IdleTimeout: time.Hour}))

		f(w)

		w.cancel()
		for _, s := range []*side{w.webP, w.dbP} {
			done, cancel := context.WithCancel(context.Background())
			cancel()
			s.ln.Shutdown(done)
		}
		ln.Close()
		w.running.Wait()
		if t.Failed() {
			t.Log(w.logged())
		}
	})
}

func (w *world) logged() string {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.String()
}

func (w *world) set(s *side, l *model.Listener) {
	w.Helper()
	if err := s.ln.Set(l); err != nil {
		w.Fatal(err)
	}
}

func (w *world) dial() net.Conn {
	w.Helper()
	c, err := w.web.Dial(context.Background(), "10.0.0.1:9191")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(24 * time.Hour))
	return c
}

func (w *world) talk(c net.Conn, s string) error {
	if _, err := io.WriteString(c, s); err != nil {
		return err
	}
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != s {
		return fmt.Errorf("got %q back, want %q", b, s)
	}
	return nil
}

func (w *world) mustTalk(c net.Conn) {
	w.Helper()
	if err := w.talk(c, "hello"); err != nil {
		w.Fatalf("talking through the mesh: %v\n%s", err, w.logged())
	}
}

func (w *world) closed(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Second))
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func (w *world) stat(s *side, name string, want float64) {
	w.Helper()
	synctest.Wait()
	if got := s.stats.Value(name); got != want {
		w.Errorf("%s is %v, want %v", name, got, want)
	}
}

func TestAllowedServiceTalks(t *testing.T) {
	mesh(t, func(w *world) {
		c := w.dial()
		w.mustTalk(c)
		w.stat(w.dbP, "connect_authz.rbac.allowed", 1)
		w.stat(w.dbP, "listener.10.0.0.2_20000.ssl.handshake", 1)
		w.stat(w.webP, "cluster.db.upstream_cx_active", 1)
		w.stat(w.webP, "tcp.upstream.downstream_cx_rx_bytes_total", 5)
		w.stat(w.webP, "tcp.upstream.downstream_cx_tx_bytes_total", 5)
		c.Close()
		w.stat(w.webP, "cluster.db.upstream_cx_active", 0)
		w.stat(w.dbP, "listener.10.0.0.2_20000.downstream_cx_active", 0)
	})
}

func TestManyBytesArriveWhole(t *testing.T) {
	mesh(t, func(w *world) {
		c := w.dial()
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		go func() {
			c.Write(want)
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back, %v; want the same %d", len(got), err, len(want))
		}
	})
}

func TestDeniedServiceIsRefused(t *testing.T) {
	mesh(t, func(w *world) {
		w.set(w.dbP, w.publicListener(allow(t, dbID)))
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("a denied service was served")
		}
		w.stat(w.dbP, "connect_authz.rbac.denied", 1)
		if w.app.conns != 0 {
			t.Error("a denied connection reached the application")
		}
		if !strings.Contains(w.logged(), webID) || !strings.Contains(w.logged(), "policy=default") {
			t.Errorf("the log does not say who was denied by what:\n%s", w.logged())
		}
	})
}

func TestNewDenyClosesOpenConnectionsWithinASecond(t *testing.T) {
	mesh(t, func(w *world) {
		c := w.dial()
		w.mustTalk(c)
		other := w.publicListener(allow(t, webID, dbID)) // still allowed, by other rules
		w.set(w.dbP, other)
		w.mustTalk(c)
		w.set(w.dbP, w.publicListener(&model.RBAC{}))
		start := time.Now()
		if !w.closed(c) {
			t.Error("the connection is open after a deny")
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v to close", d)
		}
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("a new connection is served after a deny")
		}
		w.set(w.dbP, w.publicListener(allow(t, webID)))
		w.mustTalk(w.dial())
	})
}

func TestRotationKeepsConnectionsOpen(t *testing.T) {
	mesh(t, func(w *world) {
		c := w.dial()
		w.mustTalk(c)
		// New leaves by the same authority on both sides.
		w.set(w.dbP, w.publicListener(allow(t, webID)))
		w.webP.up.Set(w.dbCluster("10.0.0.2:20000"), true)
		w.mustTalk(c)
		w.mustTalk(w.dial())
		w.stat(w.dbP, "listener_manager.total_filter_chains_draining", 0)

		// A new authority, trusted by both before anybody uses it.
		newCA := testkit.NewCA(t, "new root")
		both := []*x509.Certificate{w.ca.Certificate(), newCA.Certificate()}
		rotate := func(dbCert, webCert *tls.Certificate, roots ...*x509.Certificate) {
			l := w.publicListener(allow(t, webID))
			l.Chains[0].TLS.TLS = identity(dbCert, roots...)
			w.set(w.dbP, l)
			cl := w.dbCluster("10.0.0.2:20000")
			sans := cl.TLS.Validation.SANs
			cl.TLS.TLS = identity(webCert, roots...)
			cl.TLS.Validation.SANs = sans
			w.webP.up.Set(cl, true)
			w.mustTalk(c)
			w.mustTalk(w.dial())
		}
		oldDB, oldWeb, newDB, newWeb := w.ca.Issue(dbID), w.ca.Issue(webID), newCA.Issue(dbID), newCA.Issue(webID)
		rotate(oldDB, oldWeb, both...)
		rotate(newDB, oldWeb, both...)
		rotate(newDB, newWeb, both...)
		rotate(newDB, newWeb, newCA.Certificate())

		// The old authority is not trusted any more, not even with a session.
		cl := w.dbCluster("10.0.0.2:20000")
		cl.TLS.Validation.Roots = both
		cl.TLS.Certificates = []model.Certificate{{TLS: *oldWeb}}
		w.webP.up.Set(cl, true)
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("a leaf of the retired authority was accepted")
		}
		w.mustTalk(c)
		w.stat(w.dbP, "listener.10.0.0.2_20000.ssl.fail_verify_error", 1)
	})
}

func TestSecretsRotateWithoutTouchingListeners(t *testing.T) {
	mesh(t, func(w *world) {
		secret := func(s *side, id string, roots ...*x509.Certificate) {
			s.secrets.Set(&model.Secret{Name: "leaf", Certificate: &model.Certificate{TLS: *w.ca.Issue(id)}},
				&model.Secret{Name: "roots", Validation: &model.Validation{Roots: roots, MaxDepth: -1}})
		}
		l := w.publicListener(allow(t, webID))
		l.Chains[0].TLS.TLS = model.TLS{CertSecrets: []string{"leaf"}, ValidationSecret: "roots"}
		w.set(w.dbP, l)
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("a listener without its secrets served a connection")
		}
		secret(w.dbP, dbID, w.ca.Certificate())
		c := w.dial()
		w.mustTalk(c)
		secret(w.dbP, dbID, w.ca.Certificate())
		w.mustTalk(c)
		w.mustTalk(w.dial())
		secret(w.dbP, dbID, testkit.NewCA(t, "other").Certificate())
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("a peer of an authority that is not trusted any more was served")
		}
		w.mustTalk(c)
	})
}

func TestServerMustBeTheExpectedService(t *testing.T) {
	mesh(t, func(w *world) {
		l := w.publicListener(allow(t, webID))
		l.Chains[0].TLS.TLS = identity(w.ca.Issue(dbID+"2"), w.ca.Certificate())
		w.set(w.dbP, l)
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("a server with another identity was talked to")
		}
		w.stat(w.webP, "cluster.db.ssl.fail_verify_san", 1)
		w.stat(w.webP, "cluster.db.upstream_cx_connect_fail", 1)
	})
}

func TestSessionsAreResumedAndForgottenWithTheTrustBundle(t *testing.T) {
	mesh(t, func(w *world) {
		for range 3 {
			c := w.dial()
			w.mustTalk(c)
			c.Close()
			synctest.Wait()
		}
		w.stat(w.dbP, "listener.10.0.0.2_20000.ssl.session_reused", 2)
		w.set(w.dbP, w.publicListener(allow(t, webID)))
		w.mustTalk(w.dial())
		w.stat(w.dbP, "listener.10.0.0.2_20000.ssl.session_reused", 2)
	})
}

func TestHalfCloseGoesThroughBothWays(t *testing.T) {
	mesh(t, func(w *world) {
		// The application answers only once it has seen the end of the request.
		w.app.set(func(c net.Conn) {
			b, _ := io.ReadAll(c)
			time.Sleep(time.Minute)
			fmt.Fprintf(c, "%d bytes", len(b))
			c.Close()
		})
		c := w.dial()
		io.WriteString(c, "request")
		c.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "7 bytes" {
			t.Errorf("got %q, %v", b, err)
		}

		// And the other way: the application ends first and then listens.
		got := make(chan string, 1)
		w.app.set(func(c net.Conn) {
			io.WriteString(c, "banner")
			c.(interface{ CloseWrite() error }).CloseWrite()
			b, _ := io.ReadAll(c)
			got <- string(b)
			c.Close()
		})
		c = w.dial()
		if b, err := io.ReadAll(c); err != nil || string(b) != "banner" {
			t.Errorf("got %q, %v", b, err)
		}
		time.Sleep(time.Minute)
		io.WriteString(c, "late")
		c.Close()
		if s := <-got; s != "late" {
			t.Errorf("the application got %q after it had ended its side", s)
		}
	})
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	mesh(t, func(w *world) {
		w.set(w.webP, upstreamListener(&model.TCPProxy{StatPrefix: "upstream", Cluster: "db", IdleTimeout: 10 * time.Second}))
		c := w.dial()
		for range 5 {
			time.Sleep(9 * time.Second)
			w.mustTalk(c)
		}
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("an idle connection stayed")
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("closed after %v, want 10s", d)
		}
		w.stat(w.webP, "tcp.upstream.idle_timeout", 1)
	})
}

func TestConnectionsEndAtTheirMaximumDuration(t *testing.T) {
	mesh(t, func(w *world) {
		w.set(w.webP, upstreamListener(&model.TCPProxy{StatPrefix: "upstream", Cluster: "db", MaxDuration: 10 * time.Second}))
		c := w.dial()
		time.Sleep(9 * time.Second)
		w.mustTalk(c)
		time.Sleep(2 * time.Second)
		if !w.closed(c) {
			t.Error("the connection outlived its maximum")
		}
	})
}

func TestConnectFailureTriesAnotherHost(t *testing.T) {
	mesh(t, func(w *world) {
		w.webP.up.Set(w.dbCluster("10.0.0.2:1", "10.0.0.2:2", "10.0.0.2:20000"), true)
		for range 20 {
			w.mustTalk(w.dial())
		}
		// One attempt, as configured: some connections fail.
		w.set(w.webP, upstreamListener(&model.TCPProxy{StatPrefix: "upstream", Cluster: "db", MaxConnectAttempts: 1}))
		failed := 0
		for range 40 {
			if w.talk(w.dial(), "x") != nil {
				failed++
			}
		}
		if failed == 0 {
			t.Error("no connection failed with one attempt and two dead hosts of three")
		}
	})
}

func TestConnectTimeoutCoversTLS(t *testing.T) {
	mesh(t, func(w *world) {
		// Something accepts and then says nothing.
		ln, err := w.db.Listen(7)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				defer c.Close()
			}
		}()
		w.webP.up.Set(w.dbCluster("10.0.0.2:7"), true)
		start := time.Now()
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("talked to a mute server")
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("gave up after %v, want 5s", d)
		}
		w.stat(w.webP, "cluster.db.upstream_cx_connect_timeout", 1)
	})
}

func TestSilentClientOfThePublicListenerIsDropped(t *testing.T) {
	mesh(t, func(w *world) {
		c, err := w.web.Dial(context.Background(), "10.0.0.2:20000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("got a byte without a handshake")
		}
		if d := time.Since(start); d != 15*time.Second {
			t.Errorf("dropped after %v, want 15s", d)
		}
	})
}

func TestClientsWithoutAGoodCertificateAreRefused(t *testing.T) {
	mesh(t, func(w *world) {
		other := testkit.NewCA(t, "other")
		for name, cert := range map[string]*tls.Certificate{"none": nil, "other authority": other.Issue(webID), "good": w.ca.Issue(webID)} {
			raw, err := w.web.Dial(context.Background(), "10.0.0.2:20000")
			if err != nil {
				t.Fatal(err)
			}
			cfg := &tls.Config{InsecureSkipVerify: true}
			if cert != nil {
				cfg.Certificates = []tls.Certificate{*cert}
			}
			c := tls.Client(raw, cfg)
			err = w.talk(c, "x")
			if (err == nil) != (name == "good") {
				t.Errorf("%s: %v", name, err)
			}
			c.Close()
		}
		w.stat(w.dbP, "listener.10.0.0.2_20000.ssl.fail_verify_error", 1)
	})
}

func TestExpiredLeafIsRefusedThoughItWasGoodBefore(t *testing.T) {
	mesh(t, func(w *world) {
		w.mustTalk(w.dial())
		time.Sleep(11 * 365 * 24 * time.Hour) // leaves of the test authority are good for ten years
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("an expired leaf was accepted")
		}
	})
}

func TestChangedChainDrains(t *testing.T) {
	mesh(t, func(w *world) {
		c := w.dial()
		w.mustTalk(c)
		l := w.publicListener(allow(t, webID))
		l.Chains[0].Terminal = &model.TCPProxy{StatPrefix: "public", Cluster: "elsewhere"}
		w.set(w.dbP, l)
		w.stat(w.dbP, "listener_manager.total_filter_chains_draining", 1)
		time.Sleep(59 * time.Second)
		w.mustTalk(c)
		time.Sleep(2 * time.Second)
		if !w.closed(c) {
			t.Error("the connection outlived the drain time")
		}
		w.stat(w.dbP, "listener_manager.total_filter_chains_draining", 0)
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("a new connection was served by the old chain")
		}
		w.stat(w.dbP, "tcp.public.downstream_cx_no_route", 1)
	})
}

func TestRemovedListenerDrainsAndAnotherTakesItsAddress(t *testing.T) {
	mesh(t, func(w *world) {
		c := w.dial()
		w.mustTalk(c)
		l := w.publicListener(allow(t, webID))
		l.Name = "renamed"
		if err := w.dbP.ln.Set(l); err == nil {
			t.Fatal("two listeners have one address")
		}
		if err := w.dbP.ln.Set(l, "public"); err != nil {
			t.Fatal(err)
		}
		w.dbP.ln.Remove("public")
		w.mustTalk(w.dial())
		w.mustTalk(c)
		time.Sleep(61 * time.Second)
		if !w.closed(c) {
			t.Error("a connection of the removed listener outlived the drain time")
		}
	})
}

func TestShutdownWaitsForConnectionsAndThenEndsThem(t *testing.T) {
	mesh(t, func(w *world) {
		short, long := w.dial(), w.dial()
		w.mustTalk(short)
		w.mustTalk(long)
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done := make(chan time.Duration)
		go func() {
			w.webP.ln.Shutdown(ctx)
			done <- time.Since(start)
		}()
		synctest.Wait()
		if _, err := w.web.Dial(context.Background(), "10.0.0.1:9191"); err == nil {
			t.Error("a new connection was taken")
		}
		time.Sleep(5 * time.Second)
		w.mustTalk(short)
		short.Close()
		if d := <-done; d != 10*time.Second {
			t.Errorf("shut down after %v, want 10s", d)
		}
		if !w.closed(long) {
			t.Error("a connection outlived the shutdown")
		}
	})
}

func TestGlobalConnectionLimit(t *testing.T) {
	mesh(t, func(w *world) {
		limited := w.side(w.web, time.Minute, 2)
		limited.up.Set(w.cluster, true)
		l := upstreamListener(&model.TCPProxy{StatPrefix: "upstream", Cluster: "db"})
		l.Address = addr("10.0.0.1:9292")
		w.set(limited, l)
		dial := func() net.Conn {
			c, err := w.web.Dial(context.Background(), "10.0.0.1:9292")
			if err != nil {
				t.Fatal(err)
			}
			w.Cleanup(func() { c.Close() })
			return c
		}
		a, b := dial(), dial()
		w.mustTalk(a)
		w.mustTalk(b)
		if err := w.talk(dial(), "x"); err == nil {
			t.Error("a connection above the limit was served")
		}
		a.Close()
		synctest.Wait()
		w.mustTalk(dial())
		w.stat(limited, "listener.10.0.0.1_9292.downstream_global_cx_overflow", 1)
		limited.ln.Shutdown(canceled())
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestConnectionLimitFilter(t *testing.T) {
	mesh(t, func(w *world) {
		l := w.publicListener(allow(t, webID))
		l.Chains[0].Filters = append(l.Chains[0].Filters, &model.ConnectionLimit{StatPrefix: "in", Max: 1})
		w.set(w.dbP, l)
		a := w.dial()
		w.mustTalk(a)
		if err := w.talk(w.dial(), "x"); err == nil {
			t.Error("a connection above the limit was served")
		}
		a.Close()
		time.Sleep(time.Second)
		w.mustTalk(w.dial())
		w.stat(w.dbP, "connection_limit.in.limited_connections", 1)
	})
}

func TestServerNamePicksTheChainAndTheCluster(t *testing.T) {
	mesh(t, func(w *world) {
		// A gateway that passes TLS on by its server name, unopened.
		w.webP.up.Set(&model.Cluster{Name: "db.example", Endpoints: hosts("10.0.0.2:20000"), ConnectTimeout: time.Second, Breakers: [2]model.Breaker{{MaxConnections: 10}}, Choices: 2}, true)
		w.set(w.webP, &model.Listener{
			Name: "gateway", Address: addr("10.0.0.1:8443"), BindToPort: true, Inspectors: []model.Inspector{model.InspectTLS}, InspectTimeout: time.Second,
			Chains: []*model.FilterChain{{
				Match: model.ChainMatch{ServerNames: []string{"*.example"}}, HandshakeTimeout: time.Second,
				Filters:  []model.NetworkFilter{&model.SNICluster{}},
				Terminal: &model.TCPProxy{StatPrefix: "gateway"},
			}},
		})
		for name, want := range map[string]bool{"DB.example": true, "other.example": false, "db.elsewhere": false} {
			raw, err := w.web.Dial(context.Background(), "10.0.0.1:8443")
			if err != nil {
				t.Fatal(err)
			}
			c := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true, Certificates: []tls.Certificate{*w.ca.Issue(webID)}})
			if err := w.talk(c, "hello"); (err == nil) != want {
				t.Errorf("%s: %v, want it to work: %v", name, err, want)
			}
			c.Close()
		}
		w.stat(w.webP, "listener.10.0.0.1_8443.no_filter_chain_match", 1)

		// A client that does not speak is not waited for.
		start := time.Now()
		raw, err := w.web.Dial(context.Background(), "10.0.0.1:8443")
		if err != nil {
			t.Fatal(err)
		}
		raw.Read(make([]byte, 1))
		if d := time.Since(start); d != time.Second {
			t.Errorf("a silent client was closed after %v, want 1s", d)
		}
		raw.Close()
	})
}

func TestAccessLogTellsWhoAndWhy(t *testing.T) {
	mesh(t, func(w *world) {
		var out testkit.Log
		sinks := accesslog.NewSinks(&out, nil, nil)
		w.dbP.ln.Shutdown(canceled())
		w.dbP.ln = listener.NewManager(listener.Config{
			Listen: func(_ context.Context, _ *model.Listener, a model.Address) (net.Listener, error) {
				return w.db.Listen(20001)
			},
			Upstreams: w.dbP.up, Logs: sinks,
		})
		l := w.publicListener(allow(t, webID))
		l.AccessLogs = []model.AccessLog{{Sink: model.SinkStdout, Text: "listener %RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS% %DOWNSTREAM_PEER_URI_SAN%\n"}}
		l.Chains[0].Terminal = &model.TCPProxy{StatPrefix: "x", Cluster: "local_app",
			AccessLogs: []model.AccessLog{{Sink: model.SinkStdout, Text: "tcp %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_HOST% %UPSTREAM_CLUSTER% %DURATION%\n"}}}
		w.set(w.dbP, l)
		w.webP.up.Set(w.dbCluster("10.0.0.2:20001"), true)
		c := w.dial()
		w.mustTalk(c)
		time.Sleep(2 * time.Second)
		c.Close()
		synctest.Wait()
		l2 := *l
		ch := *l.Chains[0]
		ch.Filters = []model.NetworkFilter{&model.NetworkRBAC{StatPrefix: "connect_authz", Rules: allow(t)}}
		l2.Chains = []*model.FilterChain{&ch}
		w.set(w.dbP, &l2)
		w.talk(w.dial(), "x")
		synctest.Wait()
		sinks.Flush()
		want := "tcp 5 5 10.0.0.2:8080 local_app 2000\n" +
			"listener - - " + webID + "\n" +
			"listener - rbac_access_denied_matched_policy[none] " + webID + "\n"
		if out.String() != want {
			t.Errorf("logged\n%swant\n%s", out.String(), want)
		}
	})
}
