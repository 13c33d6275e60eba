package peering_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/leader"
	engine "github.com/sarnmesh/sarn/server/peering"
	"github.com/sarnmesh/sarn/server/peeringrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// A cluster is one server that leads by itself, with the port that peers call.
type cluster struct {
	*rpctest.Server
	t      *testing.T
	name   string
	host   *testkit.Host
	engine *engine.Engine

	mu   sync.Mutex
	cert *tls.Certificate
	stop func() // ends leadership and the port
}

const peerPort = 8503

func newCluster(t *testing.T, network *testkit.Network, name, address string) *cluster {
	t.Helper()
	return newClusterOf(t, network, name, address, connectrpc.Config{})
}

// newClusterOf is newCluster with settings of the authority.
func newClusterOf(t *testing.T, network *testkit.Network, name, address string, settings connectrpc.Config) *cluster {
	t.Helper()
	c := &cluster{Server: rpctest.New(), t: t, name: name, host: network.Host(address)}
	c.engine = engine.New(engine.Config{Datacenter: "dc1", Store: c.Store, Dial: c.host.Dial})
	authority := connectrpc.New(settings)
	authority.Register(&c.Registry, &c.Appliers)
	catalogrpc.Register(&c.Registry, &c.Appliers, catalogrpc.Config{})
	configrpc.Register(&c.Registry, &c.Appliers, configrpc.Config{Datacenter: "dc1"})
	peeringrpc.Register(&c.Registry, &c.Appliers, peeringrpc.Config{Exchange: c.engine.Exchange, Status: c.engine.Status})
	if err := authority.Initialize(t.Context(), c.Store, c.Apply); err != nil {
		t.Fatal(err)
	}
	c.register(&catalog.RegisterRequest{Node: name + "-server", Address: address, Service: &catalog.Service{
		Service: "consul", Port: 8300, Meta: map[string]string{"grpc_tls_port": fmt.Sprint(peerPort)},
	}})
	c.renew()
	c.lead()
	t.Cleanup(func() { c.stop() })
	return c
}

// renew gets a certificate of the active root for the port.
func (c *cluster) renew() {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	csr, err := ca.NewCSR(connect.ServerID(c.trustDomain(), "dc1"), key, rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := ca.SignCall.Call(c.t.Context(), c.Caller(), &ca.SignRequest{CSR: csr})
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := tls.X509KeyPair([]byte(r.Leaf.CertPEM), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cert = &cert
}

func (c *cluster) trustDomain() string {
	td, _ := peeringrpc.Roots(c.Store.View())
	return td
}

// lead begins to lead and to serve peers.
func (c *cluster) lead() {
	c.t.Helper()
	l, err := c.host.Listen(peerPort)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.cert, nil
	}})))
	c.engine.Register(g)
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(l) })
	wg.Go(func() {
		leader.Run(ctx, &leader.Leader{Calls: c.Caller(), Store: c.Store, Apply: c.Apply, Datacenter: "dc1", Log: hclog.NewNullLogger()}, []leader.Duty{c.engine.Duty()})
	})
	c.stop = func() {
		cancel()
		g.Stop()
		wg.Wait()
	}
}

// follow has a server at another address that does not lead, and returns its address.
func (c *cluster) follow(network *testkit.Network, address string, leader func() string) string {
	c.t.Helper()
	l, err := network.Host(address).Listen(peerPort)
	if err != nil {
		c.t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*c.cert}})))
	engine.New(engine.Config{Datacenter: "dc1", Store: c.Store, Dial: c.host.Dial, LeaderAddress: leader}).Register(g)
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(l) })
	c.t.Cleanup(func() {
		g.Stop()
		wg.Wait()
	})
	return l.Addr().String()
}

func (c *cluster) register(r *catalog.RegisterRequest) {
	c.t.Helper()
	if _, err := catalog.RegisterCall.Call(c.t.Context(), c.Caller(), r); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) put(e entry.Entry) {
	c.t.Helper()
	if _, err := entry.ApplyCall.Call(c.t.Context(), c.Caller(), &entry.ApplyRequest{Entry: entry.Any{Entry: e}}); err != nil {
		c.t.Fatal(err)
	}
}

// export exports services to a peer, and nothing else.
func (c *cluster) export(peer string, services ...string) {
	c.t.Helper()
	e := &entry.ExportedServices{Header: entry.Header{Kind: entry.KindExportedServices, Name: entry.ExportedServicesName}}
	for _, s := range services {
		e.Services = append(e.Services, entry.ExportedService{Name: s, Consumers: []entry.ServiceConsumer{{Peer: peer}}})
	}
	c.put(e)
}

func (c *cluster) token(peer string, addresses ...string) string {
	c.t.Helper()
	r, err := peering.TokenCall.Call(c.t.Context(), c.Caller(), &peering.TokenRequest{Name: peer, Addresses: addresses})
	if err != nil {
		c.t.Fatal(err)
	}
	return r.Token
}

func (c *cluster) establish(peer, token string) error {
	_, err := peering.EstablishCall.Call(c.t.Context(), c.Caller(), &peering.EstablishRequest{Name: peer, Token: token})
	return err
}

func (c *cluster) delete(peer string) {
	c.t.Helper()
	if _, err := peering.DeleteCall.Call(c.t.Context(), c.Caller(), &peering.DeleteRequest{Name: peer}); err != nil {
		c.t.Fatal(err)
	}
}

// state returns the state of a peering, empty when there is none.
func (c *cluster) state(peer string) peering.State {
	if _, p := c.Store.View().Peering(peer); p != nil {
		return p.State
	}
	return ""
}

// imports tells what is imported from a peer: names of services with the nodes and worst status of their instances.
func (c *cluster) imports(peer string) string {
	_, all := c.Store.View().Imports(peer)
	var out []string
	for _, i := range all {
		text := i.Service + "["
		for n, in := range i.Instances {
			if n > 0 {
				text += " "
			}
			text += in.Node.Node
			for _, k := range in.Checks {
				if k.Status != catalog.Passing {
					text += "!" + k.Status
				}
			}
		}
		text += "]"
		if len(i.Gateways) > 0 {
			text += fmt.Sprintf("+%d", len(i.Gateways))
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// soon waits until a condition holds, and until what goes with it has happened.
func soon(t *testing.T, what string, within time.Duration, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", within, what)
		}
	}
	synctest.Wait()
}

// pair returns two clusters of which west dials east: east knows it as "west", and it knows east as "east".
func pair(t *testing.T) (east, west *cluster, network *testkit.Network) {
	t.Helper()
	network = testkit.NewNetwork(1)
	east, west = newCluster(t, network, "e", "10.0.1.1"), newCluster(t, network, "w", "10.0.2.1")
	return east, west, network
}

func established(t *testing.T) (east, west *cluster, network *testkit.Network) {
	t.Helper()
	east, west, network = pair(t)
	if err := west.establish("east", east.token("west")); err != nil {
		t.Fatal(err)
	}
	soon(t, "the peering is active", 10*time.Second, func() bool {
		return east.state("west") == peering.Active && west.state("east") == peering.Active
	})
	return east, west, network
}

func instanceOn(node, service string, status string) *catalog.RegisterRequest {
	return &catalog.RegisterRequest{
		Node: node, Address: "10.9.0.1", Service: &catalog.Service{Service: service, Port: 80},
		Check: &catalog.Check{CheckID: service, Status: status, ServiceID: service},
	}
}

func sidecarOn(node, service string) *catalog.RegisterRequest {
	return &catalog.RegisterRequest{Node: node, Address: "10.9.0.1", Service: &catalog.Service{
		Kind: catalog.KindConnectProxy, Service: service + "-sidecar-proxy", Port: 21000, Proxy: catalog.Proxy{DestinationServiceName: service},
	}}
}

func gatewayOn(node string) *catalog.RegisterRequest {
	return &catalog.RegisterRequest{Node: node, Address: "10.9.0.9", Service: &catalog.Service{
		Kind: catalog.KindMeshGateway, Service: "mesh-gateway", Port: 8443,
		TaggedAddresses: map[string]catalog.ServiceAddress{"wan": {Address: "203.0.113.1", Port: 443}},
	}}
}

// errorIs reports whether an error's text holds another.
func errorIs(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
