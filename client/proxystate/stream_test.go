package proxystate_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/grpcapi"
	"github.com/sarnmesh/sarn/client/proxystate"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/xds"
)

// A proxy is a client that does what a proxy does: it takes all clusters and listeners, asks for the endpoints of the
// clusters it gets, accepts everything, and remembers it.
type proxy struct {
	mu     sync.Mutex
	have   [xds.NumTypes]map[string]string // versions by name
	events []string                        // such as "+listener db" and "-cluster db"
	ended  bool
}

func newProxy() *proxy {
	p := &proxy{}
	for i := range p.have {
		p.have[i] = map[string]string{}
	}
	return p
}

// connect opens a stream, telling what the proxy has, and serves it until it ends.
func (p *proxy) connect(ctx context.Context, t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *discoveryv3.DeltaDiscoveryRequest) { s.Send(r) }
	for _, typ := range []xds.Type{xds.Cluster, xds.Endpoint, xds.Listener} {
		r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ.URL(), InitialResourceVersions: p.have[typ]}
		if typ == xds.Cluster {
			r.Node = &corev3.Node{Id: "web-sidecar-proxy"}
		}
		if typ == xds.Endpoint {
			if len(p.have[typ]) == 0 {
				continue
			}
			for n := range p.have[typ] {
				r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, n)
			}
		}
		send(r)
	}
	go func() {
		for {
			resp, err := s.Recv()
			p.mu.Lock()
			if err != nil {
				p.ended = true
				p.mu.Unlock()
				return
			}
			typ, _ := xds.TypeOf(resp.TypeUrl)
			var fresh []string
			for _, r := range resp.Resources {
				if _, ok := p.have[typ][r.Name]; !ok && typ == xds.Cluster && r.Name != "local_app" {
					fresh = append(fresh, r.Name)
				}
				p.have[typ][r.Name] = r.Version
				p.events = append(p.events, "+"+typ.String()+" "+short(r.Name))
			}
			for _, n := range resp.RemovedResources {
				delete(p.have[typ], n)
				p.events = append(p.events, "-"+typ.String()+" "+short(n))
				if typ == xds.Cluster {
					delete(p.have[xds.Endpoint], n)
				}
			}
			p.mu.Unlock()
			for _, n := range resp.RemovedResources {
				if typ == xds.Cluster {
					send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.Endpoint.URL(), ResourceNamesUnsubscribe: []string{n}})
				}
			}
			send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce})
			if len(fresh) > 0 {
				send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.Endpoint.URL(), ResourceNamesSubscribe: fresh})
			}
		}
	}()
}

func short(name string) string {
	name, _, _ = strings.Cut(name, ".")
	name, _, _ = strings.Cut(name, ":")
	return name
}

// want waits until nothing happens and compares the events since the last time.
func (p *proxy) want(t *testing.T, what string, want ...string) {
	t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.events, want) {
		t.Errorf("%s: %q, want %q", what, p.events, want)
	}
	p.events = nil
}

// serve runs an agent's gRPC server and returns a connection to it.
func serve(t *testing.T, state *proxystate.State) (conn *grpc.ClientConn, stop func()) {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	g := grpcapi.New([]grpcapi.Listener{{Listener: l}}, []grpcapi.Service{ads.New(state, ads.Config{})}, grpcapi.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	return conn, func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the gRPC server ended with %v", err)
		}
	}
}

func TestStream(t *testing.T) {
	run(t, proxystate.Config{DefaultAllow: true}, func(t *testing.T, h *harness) {
		conn, stop := serve(t, h.state)
		defer stop()
		p := newProxy()
		ctx, cancel := context.WithCancel(t.Context())
		p.connect(ctx, t, conn)
		p.want(t, "not registered")
		h.instances["db"] = []*catalog.Instance{instance("10.0.0.1")}
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		p.want(t, "registered", "+cluster db", "+cluster local_app", "+endpoint db", "+listener db", "+listener public_listener")

		start := time.Now()
		h.change(func() { h.instances["db"] = []*catalog.Instance{instance("10.0.0.2")} })
		p.want(t, "an instance", "+endpoint db")
		h.put(&entry.ServiceIntentions{
			Header:  entry.Header{Kind: entry.KindServiceIntentions, Name: "web"},
			Sources: []*entry.IntentionSource{{Name: "api", Action: entry.Deny}},
		})
		p.want(t, "a deny", "+listener public_listener")
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db", "api") })
		p.want(t, "an upstream more", "+cluster api", "+endpoint api", "+listener api")
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		p.want(t, "an upstream less", "-listener api", "-cluster api")
		h.leaves.set(nil)
		p.want(t, "a new leaf", "+cluster db", "+endpoint db", "+listener public_listener")
		if took := time.Since(start); took != 0 {
			t.Errorf("the changes took %v of virtual time", took)
		}

		// The proxy loses the agent, and comes back after a change.
		cancel()
		synctest.Wait()
		if !p.ended {
			t.Error("the stream is still open")
		}
		h.change(func() { h.instances["db"] = []*catalog.Instance{instance("10.0.0.3")} })
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		p.connect(ctx, t, conn)
		p.want(t, "only what changed", "+endpoint db")

		// The servers go away; the proxy comes back once more.
		h.change(func() { h.down = context.DeadlineExceeded })
		p.connect(ctx, t, conn)
		time.Sleep(time.Hour)
		p.want(t, "nothing changed")
	})
}

// An agent that was restarted takes nothing from its proxies that it has not learnt yet.
func TestAgentRestart(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db", "api") })
		conn, stop := serve(t, h.state)
		p := newProxy()
		p.connect(t.Context(), t, conn)
		p.want(t, "first", "+cluster api", "+cluster db", "+cluster local_app", "+endpoint api", "+endpoint db",
			"+listener api", "+listener db", "+listener public_listener")
		stop()

		again := cache.New(h.servers, cache.Config{})
		state := proxystate.New(proxystate.Config{
			Node: "n1", Datacenter: "dc1", Registrations: h.regs, Cache: again, Leaves: h.leaves,
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { again.Run(ctx) })
		wg.Go(func() { state.Run(ctx) })
		conn, stop = serve(t, state)
		h.change(func() { h.hold["DiscoveryChain.Get"] = true })
		p.connect(t.Context(), t, conn)
		p.want(t, "chains are not known")
		h.change(func() { clear(h.hold); h.hold["Health.Instances"] = true })
		p.want(t, "instances are not known")
		h.change(func() { clear(h.hold) })
		p.want(t, "all is known, nothing changed")
		stop()
		cancel()
		wg.Wait()
	})
}
