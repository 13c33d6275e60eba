package ads_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statusv3 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A source has one set of resources for everybody.
type source struct {
	mu      sync.Mutex
	now     *xds.Resources
	err     error
	changed chan struct{}
	nodes   []ads.Node
	open    int
}

func newSource() *source { return &source{changed: make(chan struct{})} }

func (s *source) Follow(n ads.Node) (ads.Subscription, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.ID == "refused" {
		return nil, errors.New("not here")
	}
	s.nodes = append(s.nodes, n)
	s.open++
	return subscription{s, n.Name != ""}, nil
}

type subscription struct {
	s       *source
	movable bool
}

func (x subscription) Current() (*xds.Resources, <-chan struct{}, error) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	return x.s.now, x.s.changed, x.s.err
}

func (x subscription) Movable() bool { return x.movable }

func (x subscription) Close() {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.s.open--
}

func (s *source) set(r *xds.Resources, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now, s.err = r, err
	close(s.changed)
	s.changed = make(chan struct{})
}

// world makes resources out of words: "c:db=1" is version 1 of cluster db, which has endpoints of the same name; "e:db=1"
// are those, "l:in=1" a listener with route "r:in=1" if there is one.
func world(t *testing.T, words string) *xds.Resources {
	t.Helper()
	all := map[xds.Type][]*xds.Resource{}
	for _, w := range strings.Fields(words) {
		kind, rest, _ := strings.Cut(w, ":")
		name, version, _ := strings.Cut(rest, "=")
		var typ xds.Type
		var m proto.Message
		var children []string
		timeout := durationpb.New(time.Duration(len(version))*time.Second + time.Duration(version[0]))
		switch kind {
		case "c":
			typ, children = xds.Cluster, []string{name}
			m = &clusterv3.Cluster{Name: name, ConnectTimeout: timeout}
		case "e":
			typ = xds.Endpoint
			m = &endpointv3.ClusterLoadAssignment{ClusterName: name, Policy: &endpointv3.ClusterLoadAssignment_Policy{EndpointStaleAfter: timeout}}
		case "l":
			typ, children = xds.Listener, []string{name}
			m = &listenerv3.Listener{Name: name, ListenerFiltersTimeout: timeout}
		case "r":
			typ = xds.Route
			m = &routev3.RouteConfiguration{Name: name, RequestHeadersToRemove: []string{"x" + version}}
		}
		r, err := xds.NewResource(name, m, children...)
		if err != nil {
			t.Fatal(err)
		}
		all[typ] = append(all[typ], r)
	}
	return xds.NewResources("web", all)
}

// harness is a server reached over memory.
type harness struct {
	*source
	server *ads.Server
	conn   *grpc.ClientConn
}

func run(t *testing.T, cfg ads.Config, f func(t *testing.T, h *harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &harness{source: newSource()}
		h.server = ads.New(h.source, cfg)
		g := grpc.NewServer()
		h.server.Register(g)
		l := bufconn.Listen(1 << 20)
		go g.Serve(l)
		var err error
		h.conn, err = grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			h.conn.Close()
			g.Stop()
			synctest.Wait()
			if h.open != 0 {
				t.Errorf("%d subscriptions open after the server stopped", h.open)
			}
			if n := len(h.server.Streams()); n != 0 {
				t.Errorf("%d streams open after the server stopped", n)
			}
		}()
		f(t, h)
	})
}

// A client is one delta stream. Everything received is kept until asked for.
type client struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel context.CancelFunc

	mu  sync.Mutex
	in  []*discoveryv3.DeltaDiscoveryResponse
	end error
}

func (h *harness) delta(t *testing.T, token string) *client {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-consul-token", token)
	}
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(h.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, stream: s, cancel: cancel}
	go func() {
		for {
			r, err := s.Recv()
			c.mu.Lock()
			if err != nil {
				c.end = err
				c.mu.Unlock()
				return
			}
			c.in = append(c.in, r)
			c.mu.Unlock()
		}
	}()
	return c
}

var types = map[byte]xds.Type{'S': xds.Secret, 'C': xds.Cluster, 'E': xds.Endpoint, 'L': xds.Listener, 'R': xds.Route}

func (c *client) send(r *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil && !c.ended() {
		c.t.Logf("send: %v", err)
	}
}

// subscribe asks for a type, as web-sidecar-proxy; no names ask for all.
func (c *client) subscribe(typ byte, names ...string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "web-sidecar-proxy"}, TypeUrl: types[typ].URL(), ResourceNamesSubscribe: names,
	})
}

// take waits until nothing happens any more and returns what was received since, such as "C1 +db -api": a response about
// clusters with nonce 1, a cluster new or changed, and one gone.
func (c *client) take() string {
	c.t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, r := range c.in {
		var letter byte
		for l, typ := range types {
			if typ.URL() == r.TypeUrl {
				letter = l
			}
		}
		n, err := strconv.ParseUint(r.Nonce, 16, 32)
		if err != nil || len(r.Nonce) != 8 {
			c.t.Errorf("nonce %q", r.Nonce)
		}
		w := fmt.Sprintf("%c%d", letter, n)
		for _, x := range r.Resources {
			if len(x.Version) != 64 || x.Resource == nil {
				c.t.Errorf("resource %s has version %q", x.Name, x.Version)
			}
			w += " +" + x.Name
		}
		for _, n := range r.RemovedResources {
			w += " -" + n
		}
		out = append(out, w)
	}
	c.in = nil
	return strings.Join(out, ", ")
}

func (c *client) want(what, want string) {
	c.t.Helper()
	if got := c.take(); got != want {
		c.t.Errorf("%s: received %q, want %q", what, got, want)
	}
}

func (c *client) ack(typ byte, nonce int) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types[typ].URL(), ResponseNonce: fmt.Sprintf("%08x", nonce)})
}

func (c *client) nack(typ byte, nonce int) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: types[typ].URL(), ResponseNonce: fmt.Sprintf("%08x", nonce), ErrorDetail: &statusv3.Status{Message: "bad " + string(typ)},
	})
}

func (c *client) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end != nil
}

// wantEnd waits for the end of the stream and checks its status.
func (c *client) wantEnd(code codes.Code, text string) {
	c.t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil {
		c.t.Errorf("the stream is open, want it to end with %v", code)
	} else if s := status.Convert(c.end); s.Code() != code || !strings.Contains(s.Message(), text) {
		c.t.Errorf("the stream ended with %v %q, want %v %q", s.Code(), s.Message(), code, text)
	}
}

func TestDeltaFirstResponses(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:db=1 e:db=1 l:in=1"), nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.want("clusters", "C1 +db")
		c.subscribe('E', "db")
		c.want("endpoints", "E2 +db")
		c.subscribe('L')
		c.want("listeners before clusters and endpoints are accepted", "")
		c.ack('C', 1)
		c.want("still not", "")
		c.ack('E', 2)
		c.want("now", "L3 +in")
		c.ack('L', 3)
		c.want("all accepted", "")
		h.set(world(t, "c:db=1 e:db=1 l:in=1"), nil)
		c.want("the same again", "")
		c.cancel()
	})
}

func TestDeltaOrder(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:db=1 e:db=1 l:db=1"), nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.subscribe('E', "db")
		c.take()
		c.ack('C', 1)
		c.ack('E', 2)
		c.subscribe('L')
		c.want("listeners", "L3 +db")
		c.ack('L', 3)

		h.set(world(t, "c:api=1 c:db=1 e:api=1 e:db=1 l:api=1 l:db=1"), nil)
		c.want("new upstream: its cluster first", "C4 +api")
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['E'].URL(), ResourceNamesSubscribe: []string{"api"}})
		c.want("its endpoints when asked for", "E5 +api")
		c.ack('C', 4)
		c.ack('E', 5)
		c.want("then its listener", "L6 +api")
		c.ack('L', 6)

		h.set(world(t, "c:api=1 e:api=1 l:api=1"), nil)
		c.want("removal: the listener first", "L7 -db")
		c.ack('L', 7)
		c.want("then the cluster", "C8 -db")
		c.ack('C', 8)
		c.want("then endpoints that are still asked for", "E9 -db")
		c.ack('E', 9)
		c.want("no more", "")
		c.cancel()
	})
}

func TestDeltaChildrenFollowTheirParents(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:db=1 e:db=1 l:in=1 r:in=1"), nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.subscribe('E', "db")
		c.take()
		c.ack('C', 1)
		c.ack('E', 2)
		c.subscribe('L')
		c.subscribe('R', "in")
		c.want("listener and route", "L3 +in, R4 +in")
		c.ack('L', 3)
		c.ack('R', 4)
		c.take()

		h.set(world(t, "c:db=2 e:db=1 l:in=1 r:in=1"), nil)
		c.want("a changed cluster takes its endpoints along", "C5 +db, E6 +db")
		c.ack('C', 5)
		c.ack('E', 6)
		h.set(world(t, "c:db=2 e:db=1 l:in=2 r:in=1"), nil)
		c.want("a changed listener takes its routes along", "L7 +in, R8 +in")
		c.ack('L', 7)
		c.ack('R', 8)
		c.want("no more", "")

		// The cluster changes while its endpoints are on their way: they are needed once more.
		h.set(world(t, "c:db=2 e:db=2 l:in=2 r:in=1"), nil)
		c.want("endpoints", "E9 +db")
		h.set(world(t, "c:db=3 e:db=2 l:in=2 r:in=1"), nil)
		c.want("cluster", "C10 +db")
		c.ack('E', 9)
		c.want("endpoints after the cluster", "E11 +db")
		c.cancel()
	})
}

func TestDeltaListenersWaitForEndpointsToBeAskedFor(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:db=1 c:late=1 e:db=1 l:in=1"), nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.subscribe('L')
		c.want("clusters", "C1 +db +late")
		c.ack('C', 1)
		c.want("the client did not ask for endpoints yet", "")
		c.subscribe('E', "db")
		c.want("now it did", "E2 +db")
		c.ack('E', 2)
		c.want("those of the other cluster are not known", "")
		c.subscribe('E', "late")
		h.set(world(t, "c:db=1 c:late=1 e:db=1 e:late=1 l:in=1"), nil)
		c.want("they are", "E3 +late")
		c.ack('E', 3)
		c.want("so that the listener can go", "L4 +in")
		c.cancel()

		h.set(world(t, "c:db=1 c:late=1 e:db=1 l:in=1"), nil)
		c = h.delta(t, "")
		c.subscribe('C')
		c.subscribe('L')
		c.take()
		c.ack('C', 1)
		time.Sleep(900 * time.Millisecond)
		c.want("not yet", "")
		time.Sleep(200 * time.Millisecond)
		c.want("a client that never asks gets its listeners all the same", "L2 +in")
		c.cancel()
	})
}

func TestDeltaReconnect(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		w := world(t, "c:db=1 e:db=1 l:in=1")
		h.set(w, nil)
		versions := func(typ xds.Type, more ...string) map[string]string {
			out := map[string]string{}
			for n, r := range w.Of(typ) {
				out[n] = r.Version
			}
			for _, n := range more {
				out[n] = "old"
			}
			return out
		}
		again := func(c *client, typ byte, v map[string]string, names ...string) {
			c.send(&discoveryv3.DeltaDiscoveryRequest{
				Node: &corev3.Node{Id: "web-sidecar-proxy"}, TypeUrl: types[typ].URL(), ResourceNamesSubscribe: names, InitialResourceVersions: v,
			})
		}
		c := h.delta(t, "")
		again(c, 'C', versions(xds.Cluster))
		c.want("clusters it has", "C1")
		again(c, 'E', versions(xds.Endpoint), "db")
		c.want("endpoints it has", "E2")
		c.ack('C', 1)
		c.ack('E', 2)
		again(c, 'L', versions(xds.Listener, "gone"))
		c.want("a listener that is gone since", "L3 -gone")
		c.cancel()

		c = h.delta(t, "")
		again(c, 'C', map[string]string{"db": "old", "gone": "old"})
		c.want("a changed cluster", "C1 +db")
		again(c, 'E', versions(xds.Endpoint), "db")
		c.want("its endpoints, whatever the client had of the cluster before", "E2 +db")
		c.ack('C', 1)
		c.ack('E', 2)
		c.want("the client may still ask for listeners, which may use the cluster that is gone", "")
		time.Sleep(time.Second)
		c.want("it does not", "C3 -gone")
		c.cancel()
	})
}

func TestDeltaRejection(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:db=1 e:db=1 l:in=1"), nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.subscribe('E', "db")
		c.want("first", "C1 +db, E2 +db")
		c.nack('C', 1)
		c.ack('E', 2)
		c.want("a rejected version is not sent again", "")
		c.subscribe('L')
		c.want("other types go on", "L3 +in")
		c.ack('L', 3)
		for range 20 {
			c.ack('E', 2)
		}
		c.want("whatever the client says", "")
		if st := h.server.Streams(); len(st) != 1 || !slices.Equal(st[0].Types[0].Rejected, []string{"db"}) || st[0].Types[0].Error != "bad C" {
			t.Errorf("status %+v does not tell what was rejected", st)
		}
		h.set(world(t, "c:db=2 e:db=1 l:in=1"), nil)
		c.want("a new version is sent", "C4 +db, E5 +db")
		c.ack('C', 4)
		c.ack('E', 5)
		c.want("and accepted", "")
		if st := h.server.Streams(); len(st[0].Types[0].Rejected) != 0 || st[0].Types[0].Error != "" {
			t.Errorf("status %+v still tells of a rejection", st)
		}
		h.set(world(t, "c:db=1 e:db=1 l:in=1"), nil)
		c.want("the one rejected before is tried again when it comes back", "C6 +db, E7 +db")
		c.cancel()
	})
}

func TestDeltaKeepsClustersOfRejectedListeners(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:old=1 l:in=1"), nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.take()
		c.ack('C', 1)
		c.subscribe('L')
		time.Sleep(time.Second)
		c.take()
		c.ack('L', 2)
		h.set(world(t, "c:new=1 l:in=2"), nil)
		c.want("cluster", "C3 +new")
		c.ack('C', 3)
		time.Sleep(time.Second)
		c.want("listener", "L4 +in")
		c.nack('L', 4)
		c.want("the old listener may still use the old cluster", "")
		h.set(world(t, "c:new=1 l:in=3"), nil)
		c.want("better listener", "L5 +in")
		c.ack('L', 5)
		c.want("old cluster", "C6 -old")
		c.cancel()
	})
}

func TestDeltaSubscriptions(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1 c:b=1 c:late=1 e:a=1 e:b=1"), nil)
		c := h.delta(t, "")
		c.subscribe('E', "late", "nobody")
		c.want("nothing of what was asked for is there", "E1")
		c.ack('E', 1)
		c.want("what no cluster has does not exist; what one has is still to come", "E2 -nobody")
		c.ack('E', 2)
		c.subscribe('E', "a")
		c.want("one more", "E3 +a")
		c.ack('E', 3)
		c.subscribe('E', "a")
		c.want("asked for again", "E4 +a")
		c.ack('E', 4)
		h.set(world(t, "c:a=1 c:b=1 c:late=1 e:a=1 e:b=1 e:late=1"), nil)
		c.want("it came", "E5 +late")
		c.ack('E', 5)
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['E'].URL(), ResourceNamesUnsubscribe: []string{"a"}})
		synctest.Wait()
		h.set(world(t, "c:a=1 c:b=1 c:late=1 e:a=2 e:b=1 e:late=1"), nil)
		c.want("unsubscribed", "")
		c.subscribe('C', "a")
		c.want("clusters by name", "C6 +a")
		c.ack('C', 6)
		c.subscribe('C', "*")
		c.want("and then all", "C7 +b +late, E8 +late")
		c.ack('C', 7)
		c.cancel()
	})
}

func TestUnknownAndMissingTypes(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1"), nil)
		c := h.delta(t, "")
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.service.runtime.v3.Runtime"})
		c.want("unknown type", "")
		c.subscribe('C')
		c.want("goes on", "C1 +a")
		c.ack('C', 1)
		time.Sleep(time.Second)
		c.subscribe('R', "x")
		c.want("a type without any resource", "R2 -x")
		c.send(&discoveryv3.DeltaDiscoveryRequest{})
		c.wantEnd(codes.InvalidArgument, "type URL is required for ADS")
	})
}

func TestStreamWaitsForNodeAndResources(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(nil, nil)
		c := h.delta(t, "tok")
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['C'].URL()})
		c.want("nobody", "")
		meta, _ := structpb.NewStruct(map[string]any{"node_name": "n7", ads.OwnFlavourKey: true})
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['C'].URL(), Node: &corev3.Node{Id: "p", Metadata: meta}})
		c.want("not registered", "")
		time.Sleep(time.Hour)
		h.set(world(t, "c:a=1"), nil)
		c.want("registered", "C1 +a")
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['C'].URL(), Node: &corev3.Node{Id: "another"}})
		c.take()
		refuses, _ := structpb.NewStruct(map[string]any{ads.OwnFlavourKey: false})
		for _, n := range []*corev3.Node{{Id: "q"}, {Id: "r", UserAgentName: "sarn"}, {Id: "s", UserAgentName: "sarn", Metadata: refuses}} {
			c := h.delta(t, "")
			c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['C'].URL(), Node: n})
			c.take()
			c.cancel()
		}
		want := []ads.Node{
			{ID: "p", Name: "n7", Token: "tok", Flavour: xds.Own}, {ID: "q"}, {ID: "r", Flavour: xds.Own}, {ID: "s"},
		}
		if !slices.Equal(h.nodes, want) {
			t.Errorf("followed %+v, want %+v", h.nodes, want)
		}
		c.cancel()
	})
}

func TestEnvoyVersion(t *testing.T) {
	node := func(name string, major, minor uint32) *corev3.Node {
		return &corev3.Node{Id: "p", UserAgentName: name, UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{
			UserAgentBuildVersion: &corev3.BuildVersion{Version: &typev3.SemanticVersion{MajorNumber: major, MinorNumber: minor, Patch: 3}},
		}}
	}
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1"), nil)
		for _, n := range []*corev3.Node{node("envoy", 1, 40), node("envoy", 2, 0), node("other", 0, 1), {Id: "p", UserAgentName: "envoy"}} {
			c := h.delta(t, "")
			c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['C'].URL(), Node: n})
			c.want(n.String(), "C1 +a")
			c.cancel()
		}
		c := h.delta(t, "")
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['C'].URL(), Node: node("envoy", 1, 20)})
		c.wantEnd(codes.InvalidArgument, "Envoy 1.20.3 is too old and is not supported by Sarn")
	})
}

// tokens grant service:write on web to "good" and "other" on other.
type tokens struct {
	mu      sync.Mutex
	revoked bool
	calls   int
}

type grant string

func (g grant) Allows(r acl.Resource, a acl.Access, name string) bool {
	return r == acl.Service && a == acl.Write && name == string(g)
}

func (grant) AllowsPrefix(acl.Resource, acl.Access, string) bool { return false }

func (x *tokens) authorize(_ context.Context, token string) (*acl.Authorizer, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.calls++
	switch {
	case token == "":
		return acl.New(grant("none"), ""), nil
	case token == "good" && !x.revoked:
		return acl.New(grant("web"), "a1"), nil
	case token == "other":
		return acl.New(grant("other"), "a2"), nil
	}
	return nil, wireerr.ErrTokenNotFound
}

func TestPermission(t *testing.T) {
	x := &tokens{}
	run(t, ads.Config{Authorize: x.authorize}, func(t *testing.T, h *harness) {
		h.delta(t, "bad").wantEnd(codes.Unauthenticated, "unauthenticated: ACL not found")
		h.set(world(t, "c:a=1"), nil)
		for token, text := range map[string]string{
			"":      `Permission denied: anonymous token lacks permission 'service:write' on "web"`,
			"other": `Permission denied: token with AccessorID 'a2' lacks permission 'service:write' on "web"`,
		} {
			c := h.delta(t, token)
			c.subscribe('C')
			c.wantEnd(codes.PermissionDenied, text)
			if got := c.take(); got != "" {
				t.Errorf("token %q received %q", token, got)
			}
		}

		c := h.delta(t, "good")
		c.subscribe('C')
		c.want("granted", "C1 +a")
		c.ack('C', 1)
		synctest.Wait()
		x.mu.Lock()
		x.revoked = true
		x.mu.Unlock()
		start := time.Now()
		for !c.ended() && time.Since(start) < time.Hour {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if took := time.Since(start); took > 5*time.Minute+time.Second {
			t.Errorf("a silent stream outlived its token by %v", took)
		}
		c.wantEnd(codes.Unauthenticated, "ACL not found")

		x.mu.Lock()
		x.revoked = false
		x.mu.Unlock()
		c = h.delta(t, "good")
		c.subscribe('C')
		c.want("granted", "C1 +a")
		x.mu.Lock()
		x.revoked = true
		x.mu.Unlock()
		c.ack('C', 1)
		c.wantEnd(codes.Unauthenticated, "ACL not found")
	})
}

func TestSourceErrors(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		c := h.delta(t, "")
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: types['C'].URL(), Node: &corev3.Node{Id: "refused"}})
		c.wantEnd(codes.Internal, "failed to watch proxy: not here")

		h.set(nil, errors.New("no port"))
		c = h.delta(t, "")
		c.subscribe('C')
		c.wantEnd(codes.Unavailable, "failed to generate all xDS resources from the snapshot: no port")

		h.set(world(t, "c:a=1"), nil)
		c = h.delta(t, "")
		c.subscribe('C')
		c.want("fine", "C1 +a")
		c.ack('C', 1)
		h.set(world(t, "c:a=1"), errors.New("no port"))
		c.want("the last good configuration stays", "")
		h.set(nil, fmt.Errorf("gone: %w", ads.ErrEnded))
		c.wantEnd(codes.Aborted, "xDS stream terminated due to an irrecoverable error, please try again")
	})
}

func TestLimits(t *testing.T) {
	run(t, ads.Config{MaxStreams: 2, MaxNames: 3}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1"), nil)
		one, two := h.delta(t, ""), h.delta(t, "")
		one.subscribe('C')
		two.subscribe('C')
		one.take()
		h.delta(t, "").wantEnd(codes.ResourceExhausted, "this server has too many xDS streams open, please try another")
		one.subscribe('E', "1", "2", "3")
		one.subscribe('E', "4")
		one.wantEnd(codes.ResourceExhausted, "too many resource names")
		two.cancel()
	})
}

func TestClientThatDoesNotAnswerStartsOver(t *testing.T) {
	run(t, ads.Config{AckTimeout: time.Minute}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1"), nil)
		c := h.delta(t, "")
		time.Sleep(10 * time.Minute)
		c.subscribe('C')
		c.want("fine", "C1 +a")
		c.ack('C', 1)
		time.Sleep(time.Hour)
		c.want("a silent stream with nothing to answer stays open", "")
		h.set(world(t, "c:a=2"), nil)
		time.Sleep(50 * time.Second)
		if c.ended() {
			t.Error("ended too early")
		}
		time.Sleep(71 * time.Second)
		c.wantEnd(codes.Aborted, "was not answered")
	})
}

// sotwClient is one stream in state-of-the-world form.
type sotwClient struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	mu     sync.Mutex
	in     []*discoveryv3.DiscoveryResponse
	names  map[byte][]string
	last   map[byte]*discoveryv3.DiscoveryResponse
}

func (h *harness) sotw(t *testing.T) *sotwClient {
	t.Helper()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(h.conn).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &sotwClient{t: t, stream: s, names: map[byte][]string{}, last: map[byte]*discoveryv3.DiscoveryResponse{}}
	go func() {
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			c.mu.Lock()
			c.in = append(c.in, r)
			c.mu.Unlock()
		}
	}()
	return c
}

func (c *sotwClient) subscribe(typ byte, names ...string) {
	c.names[typ] = names
	c.stream.Send(&discoveryv3.DiscoveryRequest{
		Node: &corev3.Node{Id: "web-sidecar-proxy"}, TypeUrl: types[typ].URL(), ResourceNames: names,
		ResponseNonce: c.last[typ].GetNonce(), VersionInfo: c.last[typ].GetVersionInfo(),
	})
}

func (c *sotwClient) ack(typ byte) { c.subscribe(typ, c.names[typ]...) }

func (c *sotwClient) nack(typ byte) {
	c.stream.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl: types[typ].URL(), ResourceNames: c.names[typ], ResponseNonce: c.last[typ].Nonce, ErrorDetail: &statusv3.Status{Message: "bad"},
	})
}

func (c *sotwClient) want(what, want string) {
	c.t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, r := range c.in {
		for l, typ := range types {
			if typ.URL() != r.TypeUrl {
				continue
			}
			w := string(l)
			for _, a := range r.Resources {
				m, err := a.UnmarshalNew()
				if err != nil {
					c.t.Fatal(err)
				}
				fields := m.ProtoReflect().Descriptor().Fields()
				f := fields.ByName("name")
				if f == nil {
					f = fields.ByName("cluster_name")
				}
				w += " " + m.ProtoReflect().Get(f).String()
			}
			c.last[l] = r
			out = append(out, w)
		}
	}
	c.in = nil
	if got := strings.Join(out, ", "); got != want {
		c.t.Errorf("%s: received %q, want %q", what, got, want)
	}
}

func TestStateOfTheWorld(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1 c:b=1 e:a=1 e:b=1 l:in=1"), nil)
		c := h.sotw(t)
		c.subscribe('C')
		c.want("clusters", "C a b")
		c.subscribe('E', "a", "b")
		c.want("endpoints", "E a b")
		c.subscribe('L')
		c.want("listeners wait", "")
		c.ack('C')
		c.ack('E')
		c.want("listeners", "L in")
		c.ack('L')
		c.want("all accepted", "")

		h.set(world(t, "c:a=1 c:b=1 e:a=1 e:b=2 l:in=1"), nil)
		c.want("only the changed endpoints", "E b")
		stale := c.last['E']
		c.ack('E')
		h.set(world(t, "c:a=2 c:b=1 e:a=1 e:b=2 l:in=1"), nil)
		c.want("all clusters, and the endpoints of the changed one", "C a b, E a")
		c.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: types['E'].URL(), ResourceNames: []string{}, ResponseNonce: stale.Nonce})
		c.ack('C')
		c.ack('E')
		c.want("a stale nonce is ignored", "")

		h.set(world(t, "c:b=1 c:n=1 e:b=2 e:n=1 l:in=2"), nil)
		c.want("the old cluster stays at first", "C a b n")
		c.ack('C')
		c.want("listener next", "L in")
		c.ack('L')
		c.want("now it goes", "C b n")
		c.ack('C')
		c.subscribe('E', "b", "n")
		c.want("new endpoints", "E n")
		c.ack('E')

		h.set(world(t, "c:b=1 c:n=3 e:b=2 e:n=1 l:in=2"), nil)
		c.want("a change", "C b n, E n")
		c.ack('E')
		c.nack('C')
		c.want("rejected, not sent again", "")
		h.set(world(t, "c:b=1 c:n=4 e:b=2 e:n=1 l:in=2"), nil)
		c.want("a better one", "C b n, E n")
		c.subscribe('E')
		c.want("unsubscribed", "")
		c.stream.CloseSend()
	})
}

func TestStateOfTheWorldMissingNames(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1 l:in=1"), nil)
		c := h.sotw(t)
		c.subscribe('L', "nobody")
		c.want("the answer tells that it does not exist", "L")
		c.ack('L')
		h.set(world(t, "c:a=1 l:in=1 l:nobody=1"), nil)
		c.want("it came", "L nobody")
		c.ack('L')
		c.want("nothing to tell", "")
		c.subscribe('L', "nobody", "in")
		c.want("another one that is there", "L in nobody")
		c.ack('L')
		c.subscribe('L', "nobody", "in", "none")
		c.want("another one that is not", "L in nobody")
		c.ack('L')
		c.want("told once", "")
		c.stream.CloseSend()
	})
}

// Whatever happens, a client never has a listener without its cluster, and in the end has exactly what there is.
func TestDeltaConvergesSafely(t *testing.T) {
	seed := testkit.Seed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		version := 0
		names := []string{"a", "b", "c", "d"}
		anyWorld := func() *xds.Resources {
			var words []string
			for _, n := range names {
				if random.IntN(3) == 0 {
					continue
				}
				for _, kind := range []string{"c", "e", "l"} {
					if kind != "e" || random.IntN(4) > 0 {
						version++
						words = append(words, fmt.Sprintf("%s:%s=%d", kind, n, random.IntN(version/20+2)))
					}
				}
			}
			return world(t, strings.Join(words, " "))
		}
		h.set(anyWorld(), nil)
		have := [xds.NumTypes]map[string]string{{}, {}, {}, {}, {}}
		asked := map[string]bool{}
		var c *client
		connect := func() {
			c = h.delta(t, "")
			clear(asked)
			var of []string
			for n := range have[xds.Cluster] {
				of = append(of, n)
				asked[n] = true
			}
			for _, typ := range []xds.Type{xds.Cluster, xds.Endpoint, xds.Listener} {
				r := &discoveryv3.DeltaDiscoveryRequest{
					Node: &corev3.Node{Id: "p"}, TypeUrl: typ.URL(), InitialResourceVersions: have[typ],
				}
				if typ == xds.Endpoint {
					if len(of) == 0 {
						continue
					}
					r.ResourceNamesSubscribe = of
				}
				c.send(r)
			}
		}
		// step takes one response in, if there is one.
		step := func(refuse bool) bool {
			synctest.Wait()
			c.mu.Lock()
			if len(c.in) == 0 {
				c.mu.Unlock()
				return false
			}
			r := c.in[0]
			c.in = c.in[1:]
			c.mu.Unlock()
			typ, _ := xds.TypeOf(r.TypeUrl)
			if refuse && typ == xds.Listener {
				c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, ErrorDetail: &statusv3.Status{Message: "no"}})
				return true
			}
			var more, less []string
			for _, x := range r.Resources {
				have[typ][x.Name] = x.Version
				if typ == xds.Cluster && !asked[x.Name] {
					more = append(more, x.Name)
					asked[x.Name] = true
				}
			}
			for _, n := range r.RemovedResources {
				delete(have[typ], n)
				if typ == xds.Cluster {
					less = append(less, n)
					delete(asked, n)
					delete(have[xds.Endpoint], n)
				}
			}
			if len(more)+len(less) > 0 {
				c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.Endpoint.URL(), ResourceNamesSubscribe: more, ResourceNamesUnsubscribe: less})
			}
			c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
			for n := range have[xds.Listener] {
				if have[xds.Cluster][n] == "" {
					t.Fatalf("seed %d: the client has listener %s and no cluster %s", seed, n, n)
				}
			}
			return true
		}
		connect()
		for range 60 {
			for range random.IntN(12) {
				switch random.IntN(8) {
				case 0, 1:
					h.set(anyWorld(), nil)
				case 2:
					time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
				case 3:
					if random.IntN(4) == 0 {
						c.cancel()
						synctest.Wait()
						connect()
					}
				default:
					step(random.IntN(6) == 0)
				}
			}
			// A version that was refused is not sent again, so the last word is a new one.
			last := anyWorld()
			h.set(last, nil)
			for quiet := 0; quiet < 3; {
				if step(false) {
					quiet = 0
					continue
				}
				time.Sleep(time.Second)
				quiet++
			}
			refused := map[string]bool{}
			for _, st := range h.server.Streams()[0].Types {
				for _, n := range st.Rejected {
					refused[n] = true
				}
			}
			for _, typ := range []xds.Type{xds.Cluster, xds.Endpoint, xds.Listener} {
				if len(refused) > 0 {
					break // removals wait, as they should
				}
				for n, r := range last.Of(typ) {
					if have[typ][n] != r.Version {
						t.Fatalf("seed %d: the client has another %s %s", seed, typ, n)
					}
				}
				for n := range have[typ] {
					if last.Of(typ)[n] == nil && typ != xds.Endpoint {
						t.Fatalf("seed %d: the client still has %s %s", seed, typ, n)
					}
				}
			}
		}
		c.cancel()
	})
}

// A gateway without any service is told that there is nothing, once; other proxies wait.
func TestDeltaEmptyGateway(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		r := world(t, "")
		r.MayBeEmpty[xds.Cluster], r.MayBeEmpty[xds.Listener] = true, true
		h.set(r, nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.want("no clusters", "C1")
		c.ack('C', 1)
		c.subscribe('L')
		time.Sleep(time.Second)
		c.want("no listeners", "L2")
		c.ack('L', 2)
		c.want("once", "")
		c.cancel()
	})
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, ""), nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.want("no clusters of a sidecar", "")
		c.cancel()
	})
}
