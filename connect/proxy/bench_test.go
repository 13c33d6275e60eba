package proxy_test

import (
	"context"
	"crypto/x509"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// start runs a proxy with one listener and one cluster and returns where it listens.
func start(b *testing.B, server *model.DownstreamTLS, client *model.UpstreamTLS, rules *model.RBAC, to string) string {
	b.Helper()
	ap := netip.MustParseAddrPort(to)
	chain := &model.FilterChain{TLS: server, HandshakeTimeout: time.Minute, Terminal: &model.TCPProxy{StatPrefix: "x", Cluster: "c", IdleTimeout: time.Hour}}
	if rules != nil {
		chain.Filters = []model.NetworkFilter{&model.NetworkRBAC{StatPrefix: "r", Rules: rules}}
	}
	p, err := proxy.New(proxy.Config{Bootstrap: &decode.Bootstrap{
		Listeners: []*model.Listener{{Name: "l", Address: model.Address{Host: "127.0.0.1"}, BindToPort: true, Chains: []*model.FilterChain{chain}}},
		Clusters: []*model.Cluster{{
			Name: "c", ConnectTimeout: time.Minute, Breakers: [2]model.Breaker{{MaxConnections: 1 << 20}}, TLS: client, LB: model.LeastRequest, Choices: 2, ActiveBias: 1,
			Endpoints: &model.LoadAssignment{Endpoints: []model.Endpoint{{Address: model.Address{Host: ap.Addr().String(), Port: ap.Port()}, Weight: 1}}, Localities: []model.Locality{{}}},
		}},
	}, ShutdownTime: time.Millisecond})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.Run(context.Background()) }()
	b.Cleanup(func() {
		p.Quit()
		<-done
	})
	for !p.Ready() {
		time.Sleep(time.Millisecond)
	}
	return p.Listeners()[0].Addresses[0]
}

// mesh runs two proxies with mutual TLS between them, in front of an
// application, and returns where to connect.
func mesh(b *testing.B, serve func(net.Conn)) string {
	b.Helper()
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { app.Close() })
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	ca := testkit.NewCA(b, "ca")
	const webID, dbID = "spiffe://td/svc/web", "spiffe://td/svc/db"
	id := func(name string) model.TLS {
		return model.TLS{Certificates: []model.Certificate{{TLS: *ca.Issue(name)}}, Validation: &model.Validation{Roots: []*x509.Certificate{ca.Certificate()}, MaxDepth: -1}}
	}
	is := func(name string) model.StringMatch {
		m, err := model.NewStringMatch(model.MatchExact, name, false)
		if err != nil {
			b.Fatal(err)
		}
		return m
	}
	public := start(b, &model.DownstreamTLS{TLS: id(dbID), RequireClientCertificate: true}, nil, &model.RBAC{Policies: []model.Policy{{
		Name: "web", Permissions: []model.Rule{{Kind: model.RuleAny}}, Principals: []model.Rule{{Kind: model.RulePrincipal, Match: is(webID)}},
	}}}, app.Addr().String())
	client := &model.UpstreamTLS{TLS: id(webID), SNI: "db"}
	client.Validation.SANs = []model.SANMatch{{Type: model.SANURI, Match: is(dbID)}}
	return start(b, nil, client, nil, public)
}

// BenchmarkMeshBytes sends bytes through two proxies, one way.
func BenchmarkMeshBytes(b *testing.B) {
	got := make(chan int64, 1)
	addr := mesh(b, func(c net.Conn) {
		n, _ := io.Copy(io.Discard, c)
		c.Close()
		got <- n
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	if n := <-got; n != int64(b.N*len(buf)) {
		b.Fatalf("%d bytes arrived of %d", n, b.N*len(buf))
	}
}

// BenchmarkMeshRoundTrip sends a byte through two proxies and back.
func BenchmarkMeshRoundTrip(b *testing.B) {
	addr := mesh(b, func(c net.Conn) { io.Copy(c, c); c.Close() })
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 1)
	trip := func() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	trip()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		trip()
	}
}

// BenchmarkMeshConnections makes a connection through two proxies, with a
// resumed handshake between them, uses it once and closes it.
func BenchmarkMeshConnections(b *testing.B) {
	addr := mesh(b, func(c net.Conn) { io.Copy(c, c); c.Close() })
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 1)
		for pb.Next() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Error(err)
			}
			c.Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
}
