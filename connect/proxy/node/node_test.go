package node_test

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
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/node"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// host is a machine with services, whose proxies stand in front of applications that echo.
type host struct {
	*testing.T
	ca                 *testkit.CA
	client, proxy, app *testkit.Host
	ports              map[string]uint16 // of the proxies, by ID
	mu                 sync.Mutex        // proxies are made at the same time
	fail               map[string]error  // what making a proxy ends with
	tokens             map[string]func() string
	n                  *node.Node
}

const echo = 7

func run(t *testing.T, cfg node.Config, f func(h *host)) {
	testkit.Bubble(t, func(t *testing.T) {
		net := testkit.NewNetwork(1)
		h := &host{
			T: t, ca: testkit.NewCA(t, "ca"), client: net.Host("10.0.0.2"), proxy: net.Host("10.0.0.1"), app: net.Host("10.0.0.3"),
			ports: map[string]uint16{"web": 8001, "db": 8002, "new": 8003}, fail: map[string]error{}, tokens: map[string]func() string{},
		}
		ln, err := h.app.Listen(echo)
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
				go func() {
					io.Copy(c, c)
					c.Close()
				}()
			}
		}()
		cfg.Proxy = h.config
		h.n = node.New(cfg)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.n.Run(ctx) }()
		f(h)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// config is what a member runs: a listener of its own, with its own certificate.
func (h *host) config(id string, token func() string) (proxy.Config, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.fail[id]; err != nil {
		return proxy.Config{}, err
	}
	h.tokens[id] = token
	return proxy.Config{
		ShutdownTime: time.Second,
		Listen: func(_ context.Context, _ *model.Listener, a model.Address) (net.Listener, error) {
			return h.proxy.Listen(a.Port)
		},
		Dial: func(ctx context.Context, _, a string) (net.Conn, error) { return h.proxy.Dial(ctx, a) },
		Bootstrap: &decode.Bootstrap{
			Node: decode.Node{ID: id},
			Listeners: []*model.Listener{{
				Name: "public", Address: model.Address{Host: "10.0.0.1", Port: h.ports[id]}, BindToPort: true,
				Chains: []*model.FilterChain{{
					TLS: &model.DownstreamTLS{TLS: model.TLS{
						Certificates: []model.Certificate{{TLS: *h.ca.Issue("spiffe://td/svc/" + id)}},
						Validation:   &model.Validation{Roots: []*x509.Certificate{h.ca.Certificate()}, MaxDepth: -1},
					}, RequireClientCertificate: true},
					HandshakeTimeout: time.Minute, Terminal: &model.TCPProxy{StatPrefix: "public", Cluster: "app", IdleTimeout: time.Hour},
				}},
			}},
			Clusters: []*model.Cluster{{
				Name: "app", ConnectTimeout: time.Minute, Breakers: [2]model.Breaker{{MaxConnections: 1 << 20}},
				Endpoints: &model.LoadAssignment{Endpoints: []model.Endpoint{{Address: model.Address{Host: "10.0.0.3", Port: echo}, Weight: 1}}, Localities: []model.Locality{{}}},
			}},
		},
	}, nil
}

func (h *host) set(ids ...string) {
	var list []node.Member
	for _, id := range ids {
		list = append(list, node.Member{ID: id, Token: "token of " + id})
	}
	h.n.Set(list)
	synctest.Wait()
}

// dial connects to a proxy and returns the identity that it showed.
func (h *host) dial(id string) (net.Conn, string, error) {
	raw, err := h.client.Dial(context.Background(), fmt.Sprintf("10.0.0.1:%d", h.ports[id]))
	if err != nil {
		return nil, "", err
	}
	c := tls.Client(raw, &tls.Config{
		Certificates: []tls.Certificate{*h.ca.Issue("spiffe://td/svc/caller")}, InsecureSkipVerify: true, // the identity is what the test looks at
	})
	if err := h.talk(c); err != nil {
		raw.Close()
		return nil, "", err
	}
	return c, c.ConnectionState().PeerCertificates[0].URIs[0].String(), nil
}

// talk sends a word and reads it back.
func (h *host) talk(c net.Conn) error {
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	b := make([]byte, 5)
	_, err := io.ReadFull(c, b)
	return err
}

func (h *host) ids() (ids []string) {
	for _, i := range h.n.Members() {
		ids = append(ids, i.ID)
	}
	return ids
}

func TestProxiesComeAndGoWithoutTouchingOthers(t *testing.T) {
	run(t, node.Config{}, func(h *host) {
		if h.n.Ready() {
			t.Error("ready before it is known which proxies there should be")
		}
		h.set("web", "db")
		if !h.n.Ready() {
			t.Error("not ready")
		}
		conns := map[string]net.Conn{}
		for _, id := range []string{"web", "db"} {
			c, identity, err := h.dial(id)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if want := "spiffe://td/svc/" + id; identity != want {
				t.Errorf("%s shows itself as %s, want %s", id, identity, want)
			}
			conns[id] = c
		}
		web := h.n.Get("web")
		h.set("web", "new")
		if got := h.ids(); !slices.Equal(got, []string{"new", "web"}) || h.n.Leaving() != 1 {
			t.Errorf("runs %v, %d leave; want new and web, 1", got, h.n.Leaving())
		}
		time.Sleep(5 * time.Second)
		if h.n.Leaving() != 0 {
			t.Error("the removed proxy does not end")
		}
		if err := h.talk(conns["db"]); err == nil {
			t.Error("the removed proxy still carries its connection")
		}
		if _, _, err := h.dial("db"); err == nil {
			t.Error("the removed proxy still listens")
		}
		if err := h.talk(conns["web"]); err != nil || h.n.Get("web") != web {
			t.Errorf("the other proxy was touched: %v", err)
		}
		c, identity, err := h.dial("new")
		if err != nil || identity != "spiffe://td/svc/new" {
			t.Fatalf("the new proxy shows itself as %q, %v", identity, err)
		}
		c.Close()
	})
}

func TestTokenChangesInPlace(t *testing.T) {
	run(t, node.Config{}, func(h *host) {
		h.set("web")
		p, token := h.n.Get("web"), h.tokens["web"]
		if got := token(); got != "token of web" {
			t.Errorf("token %q", got)
		}
		h.n.Set([]node.Member{{ID: "web", Token: "another"}})
		if got := token(); got != "another" || h.n.Get("web") != p {
			t.Errorf("token %q; same proxy: %v", got, h.n.Get("web") == p)
		}
	})
}

func TestProxyThatFailsIsTriedAgain(t *testing.T) {
	run(t, node.Config{}, func(h *host) {
		h.mu.Lock()
		h.fail["db"] = errors.New("no such thing")
		h.mu.Unlock()
		h.set("web", "db")
		if m := h.n.Members(); m[0].Failure != "no such thing" || m[0].Proxy != nil || m[1].Failure != "" || h.n.Ready() {
			t.Errorf("members %+v, ready %v", m, h.n.Ready())
		}
		h.mu.Lock()
		delete(h.fail, "db")
		h.mu.Unlock()
		h.n.Get("web").Quit() // as one does through its admin server
		time.Sleep(3 * time.Second)
		for _, id := range []string{"web", "db"} {
			c, _, err := h.dial(id)
			if err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			c.Close()
		}
	})
}

func TestOneProxyCannotTakeAllConnections(t *testing.T) {
	run(t, node.Config{Connections: 30}, func(h *host) {
		h.set("web", "db")
		var held []net.Conn
		defer func() {
			for _, c := range held {
				c.Close()
			}
		}()
		open := func(id string) (n int) {
			for range 30 {
				c, _, err := h.dial(id)
				if err != nil {
					break
				}
				held = append(held, c)
				n++
			}
			return n
		}
		if n := open("web"); n != 15 {
			t.Errorf("one proxy took %d connections of 30, want half", n)
		}
		if n := open("db"); n != 8 {
			t.Errorf("another took %d of the 15 that are left, want half", n)
		}
		m := h.n.Members()
		if m[0].Connections != 8 || m[1].Connections != 15 || m[0].ConnectionsRefused != 1 || m[1].ConnectionsRefused != 1 {
			t.Errorf("members %+v", m)
		}
		for _, c := range held {
			c.Close()
		}
		held = nil
		time.Sleep(time.Second)
		if n := open("db"); n != 15 {
			t.Errorf("took %d connections once all were given back, want 15", n)
		}
	})
	run(t, node.Config{Connections: 30, MaxConnections: 3}, func(h *host) {
		h.set("web")
		for i := range 4 {
			c, _, err := h.dial("web")
			if (err == nil) != (i < 3) {
				t.Errorf("connection %d of at most 3: %v", i+1, err)
			}
			if c != nil {
				defer c.Close()
			}
		}
	})
}

func TestNothingIsLeftAfterRun(t *testing.T) {
	run(t, node.Config{}, func(h *host) {
		h.set("web", "db")
		c, _, err := h.dial("web")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// That the bubble ends shows that all goroutines did.
	})
	if s := strings.Join((&host{n: node.New(node.Config{})}).ids(), ","); s != "" {
		t.Errorf("a node that was not run has proxies %s", s)
	}
}
