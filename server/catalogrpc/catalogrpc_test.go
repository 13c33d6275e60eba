package catalogrpc_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/kvrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

type server struct {
	*rpctest.Server
	t testing.TB
}

func newServer(t testing.TB, cfg catalogrpc.Config) *server {
	s := &server{rpctest.New(), t}
	catalogrpc.Register(&s.Registry, &s.Appliers, cfg)
	kvrpc.Register(&s.Registry, &s.Appliers, kvrpc.Config{})
	return s
}

func (s *server) register(req *catalog.RegisterRequest) {
	s.t.Helper()
	if _, err := catalog.RegisterCall.Call(s.t.Context(), s.Caller(), req); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) deregister(req *catalog.DeregisterRequest) {
	s.t.Helper()
	if _, err := catalog.DeregisterCall.Call(s.t.Context(), s.Caller(), req); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) instances(req catalog.InstancesRequest) *catalog.InstancesReply {
	s.t.Helper()
	r, err := catalog.InstancesCall.Call(s.t.Context(), s.Caller(), &req)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func ids(list []*catalog.Instance) []string {
	all := []string{}
	for _, i := range list {
		all = append(all, i.Node.Node+"/"+i.Service.ID)
	}
	return all
}

func TestRegisterRefusals(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	s.register(&catalog.RegisterRequest{
		Node: "live", ID: "40e4a748-2192-161a-0510-9bf59fe950b1", Address: "127.0.0.1",
		Check: &catalog.Check{CheckID: catalog.SerfCheckID, Status: catalog.Passing},
	})
	s.register(&catalog.RegisterRequest{Node: "known", ID: "40e4a748-2192-161a-0510-9bf59fe950b2", Address: "127.0.0.1"})
	svc := func(s catalog.Service) *catalog.RegisterRequest {
		return &catalog.RegisterRequest{Node: "ext", Address: "10.1.1.1", Service: &s}
	}
	chk := func(c catalog.Check) *catalog.RegisterRequest {
		return &catalog.RegisterRequest{Node: "ext", Address: "10.1.1.1", Check: &c}
	}
	tests := []struct {
		name string
		req  *catalog.RegisterRequest
		want string
	}{
		{"no node", &catalog.RegisterRequest{Address: "10.1.1.1"}, "Must provide node"},
		{"no address", &catalog.RegisterRequest{Node: "ext"}, "Must provide address if SkipNodeUpdate is not set"},
		{"bad ID", &catalog.RegisterRequest{Node: "ext", Address: "10.1.1.1", ID: "bad"}, "Bad node ID: uuid string is wrong length"},
		{"unknown datacenter", &catalog.RegisterRequest{Target: read.Target{Datacenter: "dc9"}, Node: "ext", Address: "10.1.1.1"}, "No path to datacenter"},
		{"peer of the node", &catalog.RegisterRequest{Node: "ext", Address: "10.1.1.1", PeerName: "p"}, "cannot register requests with PeerName in them"},
		{"peer of the instance", svc(catalog.Service{Service: "s", PeerName: "p"}), "cannot register requests with PeerName in them"},
		{"peer of a check", chk(catalog.Check{Name: "c", PeerName: "p"}), "cannot register requests with PeerName in them"},
		{"instance without name", svc(catalog.Service{}), "Must provide service name (Service.Service)"},
		{"instance with ID alone", svc(catalog.Service{ID: "x"}), "Must provide service name (Service.Service) when service ID is provided"},
		{"any address", svc(catalog.Service{Service: "s", Address: "0.0.0.0"}), "Invalid service address"},
		{"structure", svc(catalog.Service{Service: "p", Kind: catalog.KindConnectProxy, Port: 1}), "1 error occurred:\n\t* Proxy.DestinationServiceName must be non-empty for Connect proxy services\n\n"},
		{"meta", svc(catalog.Service{Service: "s", Meta: map[string]string{"consul-x": "1"}}), "failed inserting service: Invalid Service Meta for node ext and serviceID s: Couldn't load metadata pair ('consul-x', '1'): Key prefix 'consul-' is reserved for internal use"},
		{"unknown instance", chk(catalog.Check{Name: "c", ServiceID: "zz"}), "Unknown service ID 'zz' for check ID 'c'"},
		{"other node", chk(catalog.Check{Name: "c", Node: "other"}), "Node 'other' for check 'c' doesn't match register request node 'ext'"},
		{"name of a live node", &catalog.RegisterRequest{Node: "LIVE", Address: "10.1.1.1", ID: "40e4a748-2192-161a-0510-9bf59fe950b5"}, `failed inserting node: Error while renaming Node ID: "40e4a748-2192-161a-0510-9bf59fe950b5": Node name LIVE is reserved by node 40e4a748-2192-161a-0510-9bf59fe950b1 with name live (127.0.0.1)`},
		{"rename to a live node", &catalog.RegisterRequest{Node: "live", Address: "10.1.1.1", ID: "40e4a748-2192-161a-0510-9bf59fe950b2"}, `failed inserting node: Error while renaming Node ID: "40e4a748-2192-161a-0510-9bf59fe950b2" (10.1.1.1): Node name live is reserved by node 40e4a748-2192-161a-0510-9bf59fe950b1 with name live (127.0.0.1)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := catalog.RegisterCall.Call(t.Context(), s.Caller(), tt.req)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
	if r, err := catalog.NodesCall.Call(t.Context(), s.Caller(), &catalog.NodesRequest{}); err != nil || len(r.Nodes) != 2 {
		t.Errorf("a refused registration left a node: %v, %v", r, err)
	}
}

func TestRegisterDefaults(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	req := &catalog.RegisterRequest{
		Node: "ext", Address: "10.1.1.1", Service: &catalog.Service{Service: "s", Weights: &catalog.Weights{}, Tags: []string{"a"}},
		Checks: []*catalog.Check{{Name: "c1", ServiceID: "s", Definition: catalog.CheckDefinition{HTTP: "http://x/"}}, {Name: "odd", Status: "weird"}},
	}
	before := *req.Service
	s.register(req)
	if diff := cmp.Diff(before, *req.Service); diff != "" {
		t.Error("the request was changed:", diff)
	}
	got := s.instances(catalog.InstancesRequest{Service: "S"}).Instances
	at := catalog.Indexes{CreateIndex: 1, ModifyIndex: 1}
	want := []*catalog.Instance{{
		Node:    &catalog.Node{Node: "ext", Address: "10.1.1.1", Datacenter: "dc1", Indexes: at},
		Service: &catalog.Service{ID: "s", Service: "s", Tags: []string{"a"}, Weights: &catalog.Weights{Passing: 1, Warning: 1}, Indexes: at},
		Checks: []*catalog.Check{
			{Node: "ext", CheckID: "odd", Name: "odd", Status: "weird", Indexes: at},
			{Node: "ext", CheckID: "c1", Name: "c1", Status: "critical", ServiceID: "s", ServiceName: "s", ServiceTags: []string{"a"}, Type: "http", Definition: catalog.CheckDefinition{HTTP: "http://x/"}, Indexes: at},
		},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// three registers w1 and w2 of web on nodes a and b, and a proxy and a native instance of it.
func three(s *server) {
	s.register(&catalog.RegisterRequest{
		Node: "b", Address: "10.0.0.2", NodeMeta: map[string]string{"rack": "r2"}, Service: &catalog.Service{ID: "w2", Service: "web", Port: 81, Tags: []string{"Blue", "v1"}},
		Checks: []*catalog.Check{{Name: "c2", Status: catalog.Warning, ServiceID: "w2"}, {Name: "node", Status: catalog.Passing}},
	})
	s.register(&catalog.RegisterRequest{
		Node: "a", Address: "10.0.0.1", NodeMeta: map[string]string{"rack": "r1"}, Service: &catalog.Service{ID: "w1", Service: "web", Port: 80, Tags: []string{"blue"}},
		Check: &catalog.Check{Name: "c1", Status: catalog.Passing, ServiceID: "w1"},
	})
	s.register(&catalog.RegisterRequest{
		Node: "a", Address: "10.0.0.1", SkipNodeUpdate: true,
		Service: &catalog.Service{Kind: catalog.KindConnectProxy, ID: "px", Service: "any", Port: 5, Proxy: catalog.Proxy{DestinationServiceName: "web"}},
	})
	s.register(&catalog.RegisterRequest{
		Node: "c", Address: "10.0.0.3", Service: &catalog.Service{ID: "n", Service: "web", Port: 6, Connect: catalog.Connect{Native: true}},
	})
}

func TestSelection(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	three(s)
	coord := func(x float64) *catalog.Coordinate {
		return &catalog.Coordinate{Vec: []float64{x, 0, 0, 0, 0, 0, 0, 0}, Height: 1e-5}
	}
	if _, err := catalog.UpdateCoordinateCall.Call(t.Context(), s.Caller(), &catalog.CoordinateUpdate{Updates: []*catalog.NodeCoordinate{
		{Node: "c", Coord: coord(0)}, {Node: "b", Coord: coord(0.1)}, {Node: "unknown", Coord: coord(0)},
	}}); err != nil {
		t.Fatal(err)
	}
	near := read.Options{Near: "C"}
	tests := []struct {
		name string
		req  catalog.InstancesRequest
		want []string
	}{
		{"all", catalog.InstancesRequest{Service: "web"}, []string{"a/w1", "b/w2", "c/n"}},
		{"name in any case", catalog.InstancesRequest{Service: "WEB"}, []string{"a/w1", "b/w2", "c/n"}},
		{"none", catalog.InstancesRequest{Service: "none"}, []string{}},
		{"tag in any case", catalog.InstancesRequest{Service: "web", Tags: []string{"BLUE"}}, []string{"a/w1", "b/w2"}},
		{"all tags", catalog.InstancesRequest{Service: "web", Tags: []string{"blue", "v1"}}, []string{"b/w2"}},
		{"empty tag", catalog.InstancesRequest{Service: "web", Tags: []string{""}}, []string{}},
		{"passing", catalog.InstancesRequest{Service: "web", PassingOnly: true}, []string{"a/w1", "c/n"}},
		{"node meta", catalog.InstancesRequest{Service: "web", Options: read.Options{NodeMeta: map[string]string{"rack": "r2"}}}, []string{"b/w2"}},
		{"mesh", catalog.InstancesRequest{Service: "web", Connect: true}, []string{"a/px", "c/n"}},
		{"mesh by the proxy's name", catalog.InstancesRequest{Service: "any", Connect: true}, []string{}},
		{"peer", catalog.InstancesRequest{Service: "web", Peer: "p"}, []string{}},
		{"ingress", catalog.InstancesRequest{Service: "web", Ingress: true}, []string{}},
		{"filter", catalog.InstancesRequest{Service: "web", Options: read.Options{Filter: `Service.Port == 81 and Checks.Status == warning`}}, []string{"b/w2"}},
		{"filter of the catalog", catalog.InstancesRequest{Service: "web", CatalogOnly: true, Options: read.Options{Filter: `ServicePort == 80 and NodeMeta.rack == r1`}}, []string{"a/w1"}},
		{"near", catalog.InstancesRequest{Service: "web", Options: near}, []string{"c/n", "b/w2", "a/w1"}},
		{"near unknown", catalog.InstancesRequest{Service: "web", Options: read.Options{Near: "a"}}, []string{"a/w1", "b/w2", "c/n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ids(s.instances(tt.req).Instances)); diff != "" {
				t.Error(diff)
			}
		})
	}

	nodes, err := catalog.NodesCall.Call(t.Context(), s.Caller(), &catalog.NodesRequest{Options: near})
	if err != nil || nodes.Nodes[0].Node != "c" || nodes.Nodes[2].Node != "a" {
		t.Errorf("nodes: got %v, %v", nodes, err)
	}
	checks, err := catalog.ChecksCall.Call(t.Context(), s.Caller(), &catalog.ChecksRequest{Options: near, State: "Passing"})
	if err != nil || len(checks.Checks) != 2 || checks.Checks[0].Node != "b" {
		t.Errorf("checks: got %v, %v", checks, err)
	}
	for state, want := range map[string]int{"any": 3, "warning": 1, "critical": 0, "weird": 0} {
		if r, err := catalog.ChecksCall.Call(t.Context(), s.Caller(), &catalog.ChecksRequest{State: state}); err != nil || len(r.Checks) != want {
			t.Errorf("checks in state %s: got %v, %v", state, r, err)
		}
	}
	services := func(o read.Options) map[string][]string {
		r, err := catalog.ServicesCall.Call(t.Context(), s.Caller(), &catalog.ServicesRequest{Options: o})
		if err != nil {
			t.Fatal(err)
		}
		return r.Services
	}
	if diff := cmp.Diff(map[string][]string{"web": {"blue", "Blue", "v1"}, "any": {}}, services(read.Options{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string][]string{"web": {"Blue", "v1"}}, services(read.Options{Filter: "v1 in ServiceTags"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string][]string{"web": {"Blue", "v1"}}, services(read.Options{NodeMeta: map[string]string{"rack": "r2"}})); diff != "" {
		t.Error(diff)
	}
	if got := services(read.Options{NodeMeta: map[string]string{"rack": "r2"}, Filter: "Node == b"}); len(got) != 0 {
		t.Errorf("node fields match beside node-meta: %v", got)
	}
}

func TestFilterErrorsComeBeforeData(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	o := read.Options{Filter: "Nope == a"}
	_, nodes := catalog.NodesCall.Call(t.Context(), s.Caller(), &catalog.NodesRequest{Options: o})
	_, services := catalog.ServicesCall.Call(t.Context(), s.Caller(), &catalog.ServicesRequest{Options: o})
	_, node := catalog.NodeServicesCall.Call(t.Context(), s.Caller(), &catalog.NodeServicesRequest{Options: o, Node: "none"})
	_, flat := catalog.InstancesCall.Call(t.Context(), s.Caller(), &catalog.InstancesRequest{Options: o, CatalogOnly: true})
	_, health := catalog.InstancesCall.Call(t.Context(), s.Caller(), &catalog.InstancesRequest{Options: o})
	_, checks := catalog.ChecksCall.Call(t.Context(), s.Caller(), &catalog.ChecksRequest{Options: o, State: "any"})
	for i, err := range []error{nodes, services, node, flat, health, checks} {
		if err == nil || err.Error() != `Failed to create boolean expression evaluator: Selector "Nope" is not valid` {
			t.Errorf("%d: got %v", i, err)
		}
	}
}

func TestNodeLookup(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	s.register(&catalog.RegisterRequest{Node: "one", Address: "1", ID: "40e4a748-2192-161a-0510-9bf59fe950b1", Service: &catalog.Service{Service: "web", Port: 1}, Check: &catalog.Check{Name: "c"}})
	s.register(&catalog.RegisterRequest{Node: "two", Address: "1", ID: "41e4a748-2192-161a-0510-9bf59fe950b1"})
	for arg, want := range map[string]string{
		"one": "one", "ONE": "one", "40e4a748-2192-161a-0510-9bf59fe950b1": "one", "40": "one", "40E4A": "one", "41e4a748-21": "two",
		"4": "", "41f": "two", "42": "", "none": "", "zz": "", "": "",
	} {
		r, err := catalog.NodeServicesCall.Call(t.Context(), s.Caller(), &catalog.NodeServicesRequest{Node: arg})
		got := ""
		if err == nil && r.Node != nil {
			got = r.Node.Node
		}
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", arg, got, err, want)
		}
	}
	r, err := catalog.NodeServicesCall.Call(t.Context(), s.Caller(), &catalog.NodeServicesRequest{Node: "one", WithChecks: true})
	if err != nil || len(r.Services) != 1 || len(r.Checks) != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestMergedAndLinked(t *testing.T) {
	s := newServer(t, catalogrpc.Config{
		Resolve: func(v *state.View, req *entry.ResolvedRequest) (uint64, *entry.Resolved) {
			return 77, &entry.Resolved{Config: map[string]any{"protocol": "http"}, Mode: req.Service}
		},
		LinkedGateways: func(v *state.View, kind, service string) (uint64, []string) {
			return 88, map[string][]string{catalog.KindTerminatingGateway + "web": {"tgw"}, catalog.KindIngressGateway + "web": {"igw"}}[kind+service]
		},
	})
	three(s)
	for _, g := range []catalog.Service{{Kind: catalog.KindTerminatingGateway, Service: "tgw", Port: 9}, {Kind: catalog.KindIngressGateway, Service: "igw"}} {
		s.register(&catalog.RegisterRequest{Node: "b", Address: "10.0.0.2", Service: &g})
	}
	r := s.instances(catalog.InstancesRequest{Service: "web", Connect: true, MergeCentralConfig: true})
	if diff := cmp.Diff([]string{"a/px", "b/tgw", "c/n"}, ids(r.Instances)); diff != "" || r.Index != 88 {
		t.Error(diff, r.Index)
	}
	if p := r.Instances[0].Service.Proxy; p.Config["protocol"] != "http" || p.Mode != "web" {
		t.Errorf("not merged: %+v", p)
	}
	if p := r.Instances[2].Service.Proxy; p.Config != nil {
		t.Errorf("merged into a typical instance: %+v", p)
	}
	if plain := s.instances(catalog.InstancesRequest{Service: "web", Connect: true}); plain.Instances[0].Service.Proxy.Config != nil {
		t.Error("the stored instance was changed")
	}
	if r := s.instances(catalog.InstancesRequest{Service: "web", Ingress: true}); !slices.Equal(ids(r.Instances), []string{"b/igw"}) {
		t.Errorf("ingress: got %v", ids(r.Instances))
	}
}

func TestCatalogAnswersHaveNoChecks(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	three(s)
	for _, i := range s.instances(catalog.InstancesRequest{Service: "web", CatalogOnly: true}).Instances {
		if i.Checks != nil {
			t.Errorf("%s has checks", i.Service.ID)
		}
	}
}

// blocked starts a call that blocks from the index of the call itself on, and returns whether it has ended yet.
func blocked[Req, Resp any](t *testing.T, call func(ctx context.Context, o read.Options) (*Resp, *read.Meta), _ Req) func() bool {
	_, meta := call(t.Context(), read.Options{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		call(t.Context(), read.Options{MinIndex: meta.Index, MaxWait: 500 * time.Second})
	}()
	return func() bool {
		synctest.Wait()
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
}

func TestBlockedReadsWakeForTheirOwn(t *testing.T) {
	type request = *catalog.RegisterRequest
	web := func(port int, status string) request {
		return &catalog.RegisterRequest{
			Node: "a", Address: "10.0.0.1", Service: &catalog.Service{ID: "w1", Service: "web", Port: port},
			Check: &catalog.Check{Name: "c", ServiceID: "w1", Status: status},
		}
	}
	tests := []struct {
		name    string
		catalog bool // catalog semantics
		change  func(s *server)
		wakes   bool
	}{
		{"same again", false, func(s *server) { s.register(web(80, "passing")) }, false},
		{"the instance", false, func(s *server) { s.register(web(81, "passing")) }, true},
		{"its check", false, func(s *server) { s.register(web(80, "critical")) }, true},
		{"its check, for the catalog", true, func(s *server) { s.register(web(80, "critical")) }, false},
		{"the instance, for the catalog", true, func(s *server) { s.register(web(81, "critical")) }, true},
		{"a check of its node", false, func(s *server) {
			s.register(&catalog.RegisterRequest{Node: "a", Address: "10.0.0.1", Check: &catalog.Check{Name: "n"}})
		}, true},
		{"its node", true, func(s *server) { s.register(&catalog.RegisterRequest{Node: "a", Address: "10.9.9.9"}) }, true},
		{"another instance of it", false, func(s *server) {
			s.register(&catalog.RegisterRequest{Node: "b", Address: "1", Service: &catalog.Service{Service: "web"}})
		}, true},
		{"another service on its node", false, func(s *server) {
			s.register(&catalog.RegisterRequest{Node: "a", Address: "10.0.0.1", Service: &catalog.Service{Service: "db"}})
		}, false},
		{"a service whose name begins with its name", false, func(s *server) {
			s.register(&catalog.RegisterRequest{Node: "b", Address: "1", Service: &catalog.Service{Service: "web2"}, Check: &catalog.Check{Name: "n"}})
		}, false},
		{"another service becomes extinct", false, func(s *server) { s.deregister(&catalog.DeregisterRequest{Node: "x", ServiceID: "other"}) }, false},
		{"another node", false, func(s *server) { s.deregister(&catalog.DeregisterRequest{Node: "x"}) }, false},
		{"a key", false, func(s *server) {
			kv.ApplyCall.Call(s.t.Context(), s.Caller(), &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "k"}})
		}, false},
		{"its last instance goes", false, func(s *server) { s.deregister(&catalog.DeregisterRequest{Node: "a", ServiceID: "w1"}) }, true},
		{"its node goes", true, func(s *server) { s.deregister(&catalog.DeregisterRequest{Node: "a"}) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, catalogrpc.Config{})
				s.register(web(80, "passing"))
				s.register(&catalog.RegisterRequest{Node: "x", Address: "1", Service: &catalog.Service{Service: "other"}})
				call := func(ctx context.Context, o read.Options) (*catalog.InstancesReply, *read.Meta) {
					r, err := catalog.InstancesCall.Call(ctx, s.Caller(), &catalog.InstancesRequest{Options: o, Service: "web", CatalogOnly: tt.catalog})
					if err != nil {
						t.Error(err)
					}
					return r, &r.Meta
				}
				before, _ := call(t.Context(), read.Options{})
				ended := blocked(t, call, 0)
				if ended() {
					t.Fatal("did not block")
				}
				tt.change(s)
				if got := ended(); got != tt.wakes {
					t.Errorf("woken: %v", got)
				}
				after, _ := call(t.Context(), read.Options{})
				if moved := after.Index > before.Index; moved != tt.wakes || after.Index < before.Index {
					t.Errorf("index went from %d to %d", before.Index, after.Index)
				}
				time.Sleep(600 * time.Second)
			})
		})
	}
}

func TestWaiterOnAbsentService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, catalogrpc.Config{})
		s.register(&catalog.RegisterRequest{Node: "x", Address: "1", Service: &catalog.Service{Service: "other"}})
		call := func(ctx context.Context, o read.Options) (*catalog.InstancesReply, *read.Meta) {
			r, err := catalog.InstancesCall.Call(ctx, s.Caller(), &catalog.InstancesRequest{Options: o, Service: "late"})
			if err != nil {
				t.Error(err)
			}
			return r, &r.Meta
		}
		appears := blocked(t, call, 0)
		s.register(&catalog.RegisterRequest{Node: "x", Address: "1", Service: &catalog.Service{Service: "late"}})
		if !appears() {
			t.Error("the first instance woke nobody")
		}
		s.deregister(&catalog.DeregisterRequest{Node: "x", ServiceID: "late"})
		again := blocked(t, call, 0)
		s.deregister(&catalog.DeregisterRequest{Node: "x", ServiceID: "other"})
		if !again() {
			t.Error("another extinction woke nobody")
		}
		time.Sleep(600 * time.Second)
	})
}

// A policy grants write on some nodes and services, and read of everything.
type policy map[string]bool

func (p policy) Allows(r acl.Resource, a acl.Access, name string) bool {
	return a == acl.Read || p[string(r)+":"+strings.ToLower(name)]
}

// content is everything in the catalog, by what names it.
func content(s *state.Store) map[string]any {
	all := map[string]any{}
	v := s.View()
	_, nodes := v.Nodes()
	for _, n := range nodes {
		all["node "+strings.ToLower(n.Node)] = n
	}
	_, instances := v.AllInstances()
	for i := range instances {
		all["service "+i.Node.Node+" "+i.Service.ID] = i
	}
	_, checks := v.ChecksInState("any")
	for _, c := range checks {
		all["check "+c.Node+" "+c.CheckID] = c
	}
	return all
}

// TestNoChangeWithoutRight makes random calls with random rights, and checks that each object that was added, changed
// or removed was the caller's to write (spec/threats.md, class 6).
func TestNoChangeWithoutRight(t *testing.T) {
	seed := testkit.Seed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	s := newServer(t, catalogrpc.Config{})
	var rights policy
	s.Resolve = func(token string) (*acl.Authorizer, error) { return acl.New(rights, token), nil }
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	node := func() string { return pick("n1", "n2", "N3") }
	service := func() string { return pick("web", "db", "api") }
	id := func() string { return pick("i1", "i2", "i3") }
	check := func(n string) *catalog.Check {
		return &catalog.Check{Node: n, CheckID: pick("c1", "c2"), ServiceID: pick("", "i1", "i2"), ServiceName: service(), Status: pick("passing", "critical"), Output: pick("", "x")}
	}
	instance := func() *catalog.Service {
		s := &catalog.Service{ID: id(), Service: service(), Port: 1 + r.IntN(3)}
		if r.IntN(4) == 0 {
			s.Kind, s.Proxy.DestinationServiceName = catalog.KindConnectProxy, service()
		}
		return s
	}
	uuids := []string{"", "40e4a748-2192-161a-0510-9bf59fe950b1", "40e4a748-2192-161a-0510-9bf59fe950b2"}
	changed := 0
	for step := range 3000 {
		rights = policy{}
		for _, res := range []string{"node:n1", "node:n2", "node:n3", "service:web", "service:db", "service:api"} {
			rights[res] = r.IntN(2) == 0
		}
		before := content(s.Store)
		var err error
		target := read.Target{Token: "tok"}
		switch r.IntN(6) {
		case 0, 1, 2:
			req := &catalog.RegisterRequest{Target: target, Node: node(), Address: pick("1", "2"), ID: pick(uuids...), SkipNodeUpdate: r.IntN(2) == 0}
			if r.IntN(2) == 0 {
				req.Service = instance()
			}
			for range r.IntN(3) {
				req.Checks = append(req.Checks, check(req.Node))
			}
			_, err = catalog.RegisterCall.Call(t.Context(), s.Caller(), req)
		case 3:
			_, err = catalog.DeregisterCall.Call(t.Context(), s.Caller(), &catalog.DeregisterRequest{Target: target, Node: node(), ServiceID: pick("", "i1", "i2"), CheckID: pick("", "c1")})
		default:
			req := &kv.TxnRequest{Target: target}
			for range 1 + r.IntN(3) {
				verb := kv.Op(pick("set", "set", "delete"))
				switch r.IntN(3) {
				case 0:
					req.Ops = append(req.Ops, kv.TxnOp{Node: &kv.TxnNode{Verb: verb, Node: catalog.Node{Node: node(), Address: pick("1", "2"), ID: pick(uuids...)}}})
				case 1:
					req.Ops = append(req.Ops, kv.TxnOp{Service: &kv.TxnService{Verb: verb, Node: node(), Service: *instance()}})
				default:
					req.Ops = append(req.Ops, kv.TxnOp{Check: &kv.TxnCheck{Verb: verb, Check: *check(node())}})
				}
			}
			_, err = kv.TxnCall.Call(t.Context(), s.Caller(), req)
		}
		after := content(s.Store)
		if err != nil && !cmp.Equal(before, after) {
			t.Fatalf("seed %d step %d: refused with %v, but something changed", seed, step, err)
		}
		mayNode := func(name string) bool { return rights["node:"+strings.ToLower(name)] }
		mayService := func(name string) bool { return rights["service:"+name] }
		for key := range merge(before, after) {
			was, is := before[key], after[key]
			ok := true
			switch strings.Fields(key)[0] {
			case "node":
				ok = was == is || mayNode(strings.Fields(key)[1])
			case "service":
				a, _ := was.(*catalog.Instance)
				b, _ := is.(*catalog.Instance)
				switch {
				case b == nil:
					ok = mayService(a.Service.Service) || mayNode(a.Node.Node)
				case a == nil:
					ok = mayService(b.Service.Service)
				case a.Service != b.Service:
					// Where its node was removed before, in the same request, the right on that did.
					ok = mayService(b.Service.Service) && (mayService(a.Service.Service) || mayNode(a.Node.Node))
				}
			case "check":
				a, _ := was.(*catalog.Check)
				b, _ := is.(*catalog.Check)
				may := func(c *catalog.Check) bool {
					return c.ServiceID == "" && mayNode(c.Node) || c.ServiceID != "" && mayService(c.ServiceName)
				}
				switch {
				case b == nil:
					ok = may(a) || mayNode(a.Node)
				case a == nil:
					ok = may(b)
				case a != b:
					ok = may(b) && (may(a) || mayNode(a.Node))
				}
				// A service that goes takes its checks along.
				if b == nil && !ok && a.ServiceID != "" {
					if i, _ := before["service "+a.Node+" "+a.ServiceID].(*catalog.Instance); i != nil {
						ok = mayService(i.Service.Service)
					}
				}
			}
			if was != is {
				changed++
			}
			if !ok {
				t.Fatalf("seed %d step %d: %s changed from %v to %v with rights %v", seed, step, key, was, is, rights)
			}
		}
	}
	if changed < 300 {
		t.Errorf("only %d changes happened", changed)
	}
}

func merge(a, b map[string]any) map[string]bool {
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	return keys
}

func TestFilteredLists(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	three(s)
	var rules map[string]bool
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		return acl.New(reader(rules), token), nil
	}
	for _, token := range []string{"", "tok"} {
		o := read.Options{Target: read.Target{Token: token}}
		rules = map[string]bool{"service:web": true}
		r := s.instances(catalog.InstancesRequest{Options: o, Service: "web"})
		if len(r.Instances) != 0 || r.Filtered != (token != "") {
			t.Errorf("token %q: got %v, filtered %v", token, ids(r.Instances), r.Filtered)
		}
		rules = map[string]bool{"service:web": true, "node:a": true}
		r = s.instances(catalog.InstancesRequest{Options: o, Service: "web"})
		if !slices.Equal(ids(r.Instances), []string{"a/w1"}) || r.Filtered != (token != "") {
			t.Errorf("token %q: got %v, filtered %v", token, ids(r.Instances), r.Filtered)
		}
		n, err := catalog.NodeServicesCall.Call(t.Context(), s.Caller(), &catalog.NodeServicesRequest{Options: o, Node: "a"})
		if err != nil || len(n.Services) != 1 || n.Filtered != (token != "") {
			t.Errorf("token %q: got %v, %v", token, n, err)
		}
		n, err = catalog.NodeServicesCall.Call(t.Context(), s.Caller(), &catalog.NodeServicesRequest{Options: o, Node: "b"})
		if err != nil || n.Node != nil || n.Filtered != (token != "") {
			t.Errorf("token %q: got %v, %v", token, n, err)
		}
		c, err := catalog.ChecksCall.Call(t.Context(), s.Caller(), &catalog.ChecksRequest{Options: o, State: "any"})
		if err != nil || len(c.Checks) != 1 || c.Filtered != (token != "") {
			t.Errorf("token %q: got %v, %v", token, c, err)
		}
		rules = map[string]bool{"node:a": true}
		if _, err := catalog.InstancesCall.Call(t.Context(), s.Caller(), &catalog.InstancesRequest{Options: o, Service: "web", Connect: true}); err == nil || err.Error() != "Permission denied" {
			t.Errorf("token %q: got %v", token, err)
		}
		if r := s.instances(catalog.InstancesRequest{Options: o, Service: "web", Connect: true, CatalogOnly: true}); len(r.Instances) != 0 {
			t.Errorf("token %q: got %v", token, ids(r.Instances))
		}
		if _, err := catalog.CoordinatesCall.Call(t.Context(), s.Caller(), &catalog.CoordinatesRequest{Options: o, Node: "b"}); err == nil {
			t.Errorf("token %q: read a coordinate", token)
		}
	}
}

// A reader may read what is listed.
type reader map[string]bool

func (p reader) Allows(r acl.Resource, a acl.Access, name string) bool {
	return a == acl.Read && p[fmt.Sprintf("%s:%s", r, name)]
}

func BenchmarkHealthCall(b *testing.B) {
	s := newServer(b, catalogrpc.Config{})
	for i := range 100 {
		s.register(&catalog.RegisterRequest{
			Node: fmt.Sprintf("n%d", i), Address: "1", Service: &catalog.Service{Service: "web", Port: 80},
			Check: &catalog.Check{Name: "c", ServiceID: "web", Status: catalog.Passing},
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		if r := s.instances(catalog.InstancesRequest{Service: "web", PassingOnly: true}); len(r.Instances) != 100 {
			b.Fatal(len(r.Instances))
		}
	}
}

// BenchmarkRegisterCall measures a registration in process: the call, its rights, the log entry and the state.
func BenchmarkRegisterCall(b *testing.B) {
	s := newServer(b, catalogrpc.Config{})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprintf("web-%d", i)
		s.register(&catalog.RegisterRequest{
			Node: fmt.Sprintf("n%d", i/10), Address: "127.0.0.1",
			Service: &catalog.Service{ID: id, Service: "web", Port: 80, Tags: []string{"a", "b"}, Meta: map[string]string{"version": "1"}},
			Check:   &catalog.Check{CheckID: id, Name: "up", ServiceID: id, Status: catalog.Passing},
		})
	}
}
