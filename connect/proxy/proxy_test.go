package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/adsclient"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// plane is a control plane that the test speaks for.
type plane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t       *testing.T
	host    *testkit.Host
	srv     *grpc.Server
	mu      sync.Mutex
	streams int
	cur     discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	sotw    discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
	tokens  []string
	reqs    []*discoveryv3.DeltaDiscoveryRequest
	sotwReq []*discoveryv3.DiscoveryRequest
	nonce   int
	fail    error // what new streams end with; nil serves them
}

func (p *plane) start() {
	p.t.Helper()
	ln, err := p.host.Listen(8502)
	if err != nil {
		p.t.Fatal(err)
	}
	p.srv = grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(p.srv, p)
	go p.srv.Serve(ln)
}

func (p *plane) stop() { p.srv.Stop() }

func (p *plane) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	p.mu.Lock()
	p.streams++
	p.cur, p.reqs = s, nil
	md, _ := metadata.FromIncomingContext(s.Context())
	p.tokens = md.Get("x-consul-token")
	err := p.fail
	p.mu.Unlock()
	if err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.reqs = append(p.reqs, r)
		p.mu.Unlock()
	}
}

func (p *plane) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	p.mu.Lock()
	p.streams++
	p.sotw = s
	p.mu.Unlock()
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.sotwReq = append(p.sotwReq, r)
		p.mu.Unlock()
	}
}

// take returns the requests since the last call, one line each.
func (p *plane) take() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	short := func(url string) string { return url[strings.LastIndexByte(url, '.')+1:] }
	for _, r := range p.reqs {
		s := short(r.TypeUrl)
		if r.Node != nil {
			s += " node=" + r.Node.Id
		}
		if r.ResponseNonce != "" {
			s += " ack"
		}
		if len(r.ResourceNamesSubscribe) > 0 {
			s += " +" + strings.Join(r.ResourceNamesSubscribe, ",")
		}
		if len(r.ResourceNamesUnsubscribe) > 0 {
			s += " -" + strings.Join(r.ResourceNamesUnsubscribe, ",")
		}
		var have []string
		for n, v := range r.InitialResourceVersions {
			have = append(have, n+"="+v)
		}
		slices.Sort(have)
		if len(have) > 0 {
			s += " have " + strings.Join(have, ",")
		}
		if r.ErrorDetail != nil {
			s += " error: " + r.ErrorDetail.Message
		}
		out = append(out, s)
	}
	p.reqs = nil
	return out
}

func (p *plane) want(lines ...string) {
	p.t.Helper()
	if got := p.take(); !slices.Equal(got, lines) {
		p.t.Errorf("requests:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(lines, "\n  "))
	}
}

// resource is a resource by its JSON.
func (p *plane) resource(typeURL, version, j string) *discoveryv3.Resource {
	p.t.Helper()
	var m proto.Message
	switch typeURL {
	case decode.TypeCluster:
		m = new(clusterv3.Cluster)
	case decode.TypeEndpoints:
		m = new(endpointv3.ClusterLoadAssignment)
	case decode.TypeListener:
		m = new(listenerv3.Listener)
	}
	if err := protojson.Unmarshal([]byte(j), m); err != nil {
		p.t.Fatalf("%v in %s", err, j)
	}
	a, err := anypb.New(m)
	if err != nil {
		p.t.Fatal(err)
	}
	name, _ := decode.NameOf(a)
	return &discoveryv3.Resource{Name: name, Version: version, Resource: a}
}

func (p *plane) send(typeURL string, removed []string, res ...*discoveryv3.Resource) {
	p.t.Helper()
	synctest.Wait()
	p.mu.Lock()
	p.nonce++
	s, nonce := p.cur, fmt.Sprintf("%08x", p.nonce)
	p.mu.Unlock()
	if s == nil {
		p.t.Fatal("no stream")
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, Resources: res, RemovedResources: removed}); err != nil {
		p.t.Fatal(err)
	}
	synctest.Wait()
}

const (
	edsCluster = `{"name":"%s","type":"EDS","connect_timeout":"1s","eds_cluster_config":{"eds_config":{"ads":{}%s}}}`
	endpoint   = `{"cluster_name":"%s","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"10.0.0.3","port_value":%d}}}}]}]}`
	listen     = `{"name":"%s","address":{"socket_address":{"address":"10.0.0.1","port_value":%d}},"filter_chains":[{"filters":[{"name":"t","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"x","cluster":"%s"}}]}]}`
)

func (p *plane) cluster(version, name string) *discoveryv3.Resource {
	return p.resource(decode.TypeCluster, version, fmt.Sprintf(edsCluster, name, ""))
}

func (p *plane) endpoint(version, name string, port int) *discoveryv3.Resource {
	return p.resource(decode.TypeEndpoints, version, fmt.Sprintf(endpoint, name, port))
}

func (p *plane) listener(version, name string, port int, cluster string) *discoveryv3.Resource {
	return p.resource(decode.TypeListener, version, fmt.Sprintf(listen, name, port, cluster))
}

// world is a machine with a proxy, one with the control plane, and one with an application.
type world struct {
	*testing.T
	proxy, app *testkit.Host
	plane      *plane
	p          *proxy.Proxy
	stop       func()
	state      string
	log        *testkit.Log
	sotw       bool
}

func run(t *testing.T, f func(w *world)) {
	testkit.Bubble(t, func(t *testing.T) {
		n := testkit.NewNetwork(1)
		w := &world{T: t, proxy: n.Host("10.0.0.1"), app: n.Host("10.0.0.3"), log: &testkit.Log{}}
		w.plane = &plane{t: t, host: n.Host("10.0.0.2")}
		w.plane.start()
		for _, port := range []uint16{80, 81} {
			ln, err := w.app.Listen(port)
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
						fmt.Fprintf(c, "port %d\n", port)
						io.Copy(c, c)
						c.Close()
					}()
				}
			}()
		}
		f(w)
		if w.stop != nil {
			w.stop()
		}
		w.plane.stop()
		if t.Failed() {
			t.Log(w.log)
		}
	})
}

// begin starts a proxy.
func (w *world) begin() {
	w.Helper()
	p, err := proxy.New(proxy.Config{
		Bootstrap: &decode.Bootstrap{
			Node: decode.Node{ID: "web-sidecar-proxy"}, LDS: true, CDS: true,
			ADS: &decode.ADS{SotW: w.sotw, Metadata: []decode.Header{{Key: "x-consul-token", Value: "secret"}}},
		},
		Targets: []adsclient.Target{{Name: "plane", Dial: func(ctx context.Context) (net.Conn, error) { return w.proxy.Dial(ctx, "10.0.0.2:8502") }}},
		Listen: func(_ context.Context, _ *model.Listener, a model.Address) (net.Listener, error) {
			return w.proxy.Listen(a.Port)
		},
		Dial:         func(ctx context.Context, _, a string) (net.Conn, error) { return w.proxy.Dial(ctx, a) },
		StateFile:    w.state,
		ShutdownTime: time.Second,
		Logger:       hclog.New(&hclog.LoggerOptions{Output: w.log, Level: hclog.Debug, DisableTime: true}),
	})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	w.p = p
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("Run: %v", err)
		}
		w.stop = nil
	}
	synctest.Wait()
}

// get returns the first line that whoever is behind the port says, or why not.
func (w *world) get(port int) string {
	c, err := w.proxy.Dial(context.Background(), fmt.Sprintf("10.0.0.1:%d", port))
	if err != nil {
		return "refused"
	}
	defer c.Close()
	b := make([]byte, 8)
	if n, err := io.ReadFull(c, b); err != nil {
		return fmt.Sprintf("closed after %d bytes", n)
	}
	return strings.TrimSpace(string(b))
}

func (w *world) wantGet(port int, want string) {
	w.Helper()
	if got := w.get(port); got != want {
		w.Errorf("port %d says %q, want %q", port, got, want)
	}
}

// serve brings a proxy to where it serves port 9000 by the application's port 80.
func (w *world) serve() {
	w.Helper()
	p := w.plane
	p.send(decode.TypeCluster, nil, p.cluster("c1", "db"))
	p.send(decode.TypeEndpoints, nil, p.endpoint("e1", "db", 80))
	p.send(decode.TypeListener, nil, p.listener("l1", "in", 9000, "db"))
	w.wantGet(9000, "port 80")
}

func TestSubscriptionsFollowWhatIsReferredTo(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		p := w.plane
		p.want("Cluster node=web-sidecar-proxy", "Listener")
		if !slices.Equal(p.tokens, []string{"secret"}) {
			t.Errorf("the stream carries tokens %q", p.tokens)
		}
		p.send(decode.TypeCluster, nil, p.cluster("c1", "db"), p.cluster("c2", "cache"))
		p.want("Cluster ack", "ClusterLoadAssignment +cache,db")
		p.send(decode.TypeEndpoints, nil, p.endpoint("e1", "db", 80))
		p.want("ClusterLoadAssignment ack")
		p.send(decode.TypeCluster, []string{"cache"})
		p.want("Cluster ack", "ClusterLoadAssignment -cache")
	})
}

func TestListenerOpensOnceItsClusterIsWarm(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		p := w.plane
		p.send(decode.TypeCluster, nil, p.cluster("c1", "db"))
		p.send(decode.TypeListener, nil, p.listener("l1", "in", 9000, "db"))
		w.wantGet(9000, "refused")
		if w.p.Ready() || w.p.State() != "INITIALIZING" {
			t.Errorf("ready %v, state %s, before anything is served", w.p.Ready(), w.p.State())
		}
		p.send(decode.TypeEndpoints, nil, p.endpoint("e1", "db", 80))
		w.wantGet(9000, "port 80")
		if !w.p.Ready() || w.p.State() != "LIVE" {
			t.Errorf("ready %v, state %s, once all is served", w.p.Ready(), w.p.State())
		}
	})
}

func TestMissingEndpointsDoNotHoldAListenerBackForEver(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		p := w.plane
		p.send(decode.TypeCluster, nil, p.cluster("c1", "db"))
		p.send(decode.TypeListener, nil, p.listener("l1", "in", 9000, "db"))
		time.Sleep(14 * time.Second)
		w.wantGet(9000, "refused")
		time.Sleep(2 * time.Second)
		w.wantGet(9000, "closed after 0 bytes")
		p.send(decode.TypeEndpoints, nil, p.endpoint("e1", "db", 80))
		w.wantGet(9000, "port 80")
	})
}

func TestEndpointsAndClustersChangeUnderTraffic(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		w.serve()
		p := w.plane
		p.send(decode.TypeEndpoints, nil, p.endpoint("e2", "db", 81))
		w.wantGet(9000, "port 81")
		// The cluster changes; its endpoints are known, so it never stops.
		p.send(decode.TypeCluster, nil, p.resource(decode.TypeCluster, "c9", fmt.Sprintf(edsCluster, "db", `,"initial_fetch_timeout":"0s"`)))
		w.wantGet(9000, "port 81")
		// The listener goes to another cluster, which is not warm yet: the old way stays.
		p.send(decode.TypeCluster, nil, p.cluster("c3", "other"))
		p.send(decode.TypeListener, nil, p.listener("l2", "in", 9000, "other"))
		w.wantGet(9000, "port 81")
		p.send(decode.TypeEndpoints, nil, p.endpoint("e3", "other", 80))
		w.wantGet(9000, "port 80")
		p.send(decode.TypeListener, []string{"in"})
		w.wantGet(9000, "refused")
	})
}

func TestRenamedListenerTakesTheAddressOverWhenItIsWarm(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		w.serve()
		p := w.plane
		p.send(decode.TypeCluster, nil, p.cluster("c3", "other"))
		p.send(decode.TypeListener, []string{"in"}, p.listener("l2", "renamed", 9000, "other"))
		w.wantGet(9000, "port 80")
		p.send(decode.TypeEndpoints, nil, p.endpoint("e3", "other", 81))
		w.wantGet(9000, "port 81")
		if got := len(w.p.Listeners()); got != 1 {
			t.Errorf("%d listeners, want 1", got)
		}
	})
}

func TestRefusedResourcesAreNamedAndTheOthersApply(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		w.serve()
		p := w.plane
		p.take()
		bad := p.resource(decode.TypeListener, "l2", strings.Replace(fmt.Sprintf(listen, "in", 9000, "db"), `"name":"in",`, `"name":"in","transparent":true,`, 1))
		p.send(decode.TypeListener, nil, bad, p.listener("l3", "second", 9001, "db"))
		p.want("Listener ack error: Error adding/updating listener(s) in: transparent: not supported")
		w.wantGet(9000, "port 80")
		w.wantGet(9001, "port 80")
		if got := w.p.Stats().Value("listener_manager.lds.update_rejected"); got != 1 {
			t.Errorf("update_rejected is %v, want 1", got)
		}
		for _, d := range w.p.Resources(decode.TypeListener) {
			if (d.Name == "in") != (d.Failure != "") || d.Name == "in" && d.Version != "l1" {
				t.Errorf("%s has version %s and failure %q", d.Name, d.Version, d.Failure)
			}
		}
		// The version that was refused is not what a new stream says it has.
		p.stop()
		p.start()
		time.Sleep(time.Minute)
		p.want("Cluster node=web-sidecar-proxy have db=c1", "ClusterLoadAssignment +db have db=e1", "Listener have in=l1,second=l3")
	})
}

func TestTakenPortIsReportedAndTriedAgain(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		w.serve()
		p := w.plane
		p.take()
		ln, err := w.proxy.Listen(9001)
		if err != nil {
			t.Fatal(err)
		}
		p.send(decode.TypeListener, nil, p.listener("l2", "second", 9001, "db"))
		if got := p.take(); len(got) != 1 || !strings.Contains(got[0], "error: Error adding/updating listener(s) second: listen on 10.0.0.1:9001: ") {
			t.Errorf("requests: %q", got)
		}
		w.wantGet(9000, "port 80")
		ln.Close()
		time.Sleep(time.Minute)
		w.wantGet(9001, "port 80")
	})
}

func TestConfigurationOutlivesTheControlPlane(t *testing.T) {
	run(t, func(w *world) {
		w.begin()
		w.serve()
		w.plane.stop()
		time.Sleep(6 * time.Hour)
		w.wantGet(9000, "port 80")
		if got := w.p.Stats().Value("control_plane.connected_state"); got != 0 {
			t.Errorf("connected_state is %v without a control plane", got)
		}
		w.plane.start()
		time.Sleep(time.Minute)
		w.plane.want("Cluster node=web-sidecar-proxy have db=c1", "ClusterLoadAssignment +db have db=e1", "Listener have in=l1")
		// The control plane says what changed, and what is gone.
		w.plane.send(decode.TypeCluster, nil)
		w.plane.send(decode.TypeListener, []string{"in"})
		w.wantGet(9000, "refused")
	})
}

func TestRefusedStreamsAreRetriedWithBackOff(t *testing.T) {
	run(t, func(w *world) {
		w.plane.fail = status.Error(codes.PermissionDenied, "no right")
		w.begin()
		time.Sleep(10 * time.Minute)
		w.plane.mu.Lock()
		n := w.plane.streams
		w.plane.fail = nil
		w.plane.mu.Unlock()
		// At most 30 s apart, 15 on average.
		if n < 20 || n > 100 {
			t.Errorf("%d streams in ten minutes", n)
		}
		if !strings.Contains(w.log.String(), "PermissionDenied: no right") {
			t.Error("the log does not say why")
		}
		if strings.Contains(w.log.String(), "secret") {
			t.Error("the log shows the token")
		}
		time.Sleep(time.Minute)
		w.serve()
	})
}

func TestStateFileLetsAProxyStartAlone(t *testing.T) {
	run(t, func(w *world) {
		w.state = filepath.Join(t.TempDir(), "state")
		w.begin()
		w.serve()
		time.Sleep(2 * time.Second)
		w.stop()
		if fi, err := os.Stat(w.state); err != nil || fi.Mode().Perm() != 0o600 {
			t.Fatalf("state file: %v, %v", fi, err)
		}
		w.plane.stop()
		w.begin()
		w.wantGet(9000, "port 80")
		if !w.p.Ready() {
			t.Error("not ready though it serves")
		}
		w.plane.start()
		time.Sleep(time.Minute)
		w.plane.want("Cluster node=web-sidecar-proxy have db=c1", "ClusterLoadAssignment +db have db=e1", "Listener have in=l1")
		w.stop()

		// A damaged file is as good as none.
		b, err := os.ReadFile(w.state)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1
		if err := os.WriteFile(w.state, b, 0o600); err != nil {
			t.Fatal(err)
		}
		w.begin()
		w.wantGet(9000, "refused")
		if !strings.Contains(w.log.String(), "saved configuration is damaged") {
			t.Error("the log does not say that the file is damaged")
		}
	})
}

func TestStateOfTheWorld(t *testing.T) {
	run(t, func(w *world) {
		w.sotw = true
		w.begin()
		p := w.plane
		last := func() string {
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			r := p.sotwReq[len(p.sotwReq)-1]
			return fmt.Sprintf("%s version %q nonce %q names %v error %v", r.TypeUrl[strings.LastIndexByte(r.TypeUrl, '.')+1:], r.VersionInfo, r.ResponseNonce, r.ResourceNames, r.ErrorDetail != nil)
		}
		send := func(typeURL, version string, res ...*discoveryv3.Resource) {
			r := &discoveryv3.DiscoveryResponse{TypeUrl: typeURL, VersionInfo: version, Nonce: "n" + version}
			for _, x := range res {
				r.Resources = append(r.Resources, x.Resource)
			}
			synctest.Wait()
			if err := p.sotw.Send(r); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		send(decode.TypeCluster, "1", p.cluster("", "db"))
		if got, want := last(), `ClusterLoadAssignment version "" nonce "" names [db] error false`; got != want {
			t.Errorf("last request: %s, want %s", got, want)
		}
		send(decode.TypeEndpoints, "1", p.endpoint("", "db", 80))
		send(decode.TypeListener, "1", p.listener("", "in", 9000, "db"), p.listener("", "second", 9001, "db"))
		if got, want := last(), `Listener version "1" nonce "n1" names [] error false`; got != want {
			t.Errorf("last request: %s, want %s", got, want)
		}
		w.wantGet(9000, "port 80")
		w.wantGet(9001, "port 80")
		send(decode.TypeListener, "2", p.listener("", "in", 9000, "db"))
		w.wantGet(9001, "refused")
		send(decode.TypeListener, "3", p.listener("", "in", 9000, "db"), p.resource(decode.TypeListener, "", `{"name":"bad"}`))
		if got, want := last(), `Listener version "2" nonce "n3" names [] error true`; got != want {
			t.Errorf("last request: %s, want %s", got, want)
		}
		w.wantGet(9000, "port 80")
	})
}

func TestStaticConfigurationNeedsNoControlPlane(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := testkit.NewNetwork(1)
		h := n.Host("10.0.0.1")
		b, err := decode.New(decode.Options{}).Bootstrap("x.json", []byte(`{"static_resources":{
			"listeners":[`+fmt.Sprintf(listen, "in", 9000, "app")+`],
			"clusters":[{"name":"app","type":"STATIC","connect_timeout":"1s","load_assignment":`+fmt.Sprintf(endpoint, "app", 80)+`}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		p, err := proxy.New(proxy.Config{
			Bootstrap: b,
			Listen: func(_ context.Context, _ *model.Listener, a model.Address) (net.Listener, error) {
				return h.Listen(a.Port)
			},
			Dial: func(ctx context.Context, _, a string) (net.Conn, error) { return h.Dial(ctx, a) },
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- p.Run(context.Background()) }()
		synctest.Wait()
		if !p.Ready() || len(p.Listeners()) != 1 {
			t.Errorf("ready %v with %d listeners", p.Ready(), len(p.Listeners()))
		}
		p.Quit()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if p.State() != "DRAINING" {
			t.Errorf("state after quitting is %s", p.State())
		}
	})
}

func FuzzSavedState(f *testing.F) {
	a, err := anypb.New(&clusterv3.Cluster{Name: "c"})
	if err != nil {
		f.Fatal(err)
	}
	b, err := adsclient.Encode("p", map[string][]adsclient.Resource{decode.TypeCluster: {{Name: "c", Version: "1", Any: a}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := adsclient.Decode(b, "p")
		if err != nil {
			return
		}
		again, err := adsclient.Encode("p", got)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := adsclient.Decode(again, "p"); err != nil || len(back) != len(got) {
			t.Errorf("%d types came back as %d, %v", len(got), len(back), err)
		}
	})
}
