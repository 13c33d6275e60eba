package xds_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// manyUpstreams returns the complete snapshot of a proxy with upstreams s0, s1 and so on.
func manyUpstreams(t testing.TB, n int) *mesh.Snapshot {
	t.Helper()
	var upstreams []map[string]any
	for i := range n {
		upstreams = append(upstreams, map[string]any{"DestinationName": fmt.Sprint("s", i), "LocalBindPort": 1000 + i})
	}
	proxy, err := json.Marshal(map[string]any{"Service": map[string]any{
		"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": map[string]any{"DestinationServiceName": "web", "Upstreams": upstreams},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s := snapshotOf(t, map[string][]byte{"in/proxy.json": proxy})
	answers := map[mesh.Need]any{}
	for _, n := range s.Needs() {
		if n.Kind == mesh.NeedInstances {
			answers[n] = instancesAt("10.0.0.1", "10.0.0.2")
		}
	}
	return s.With(answers)
}

func instancesAt(addresses ...string) *catalog.InstancesReply {
	r := &catalog.InstancesReply{}
	for _, a := range addresses {
		r.Instances = append(r.Instances, &catalog.Instance{Node: &catalog.Node{Node: a, Address: a}, Service: &catalog.Service{ID: a, Port: 8080}})
	}
	return r
}

// Whatever changes, what a compiler makes out of what it made before is what it would make out of nothing.
func TestCompilerForgetsNothing(t *testing.T) {
	seed := testkit.Seed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	files := func(protocol string, upstreams ...string) map[string][]byte {
		list := []map[string]any{{"DestinationName": "twice", "LocalBindPort": 1}, {"DestinationName": "twice", "LocalBindPort": 2}}
		for i, u := range upstreams {
			list = append(list, map[string]any{"DestinationName": u, "LocalBindPort": 1000 + i, "Config": map[string]any{"connect_timeout_ms": 100 + i}})
		}
		proxy, err := json.Marshal(map[string]any{"Service": map[string]any{"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": map[string]any{
			"Mode": "transparent", "DestinationServiceName": "web", "Upstreams": list, "Config": map[string]any{"protocol": protocol},
			"EnvoyExtensions": []map[string]any{{"Name": "builtin/property-override", "Arguments": map[string]any{"Patches": []map[string]any{{
				"ResourceFilter": map[string]any{"ResourceType": "cluster", "TrafficDirection": "outbound"},
				"Op":             "add", "Path": "/outlier_detection/max_ejection_percent", "Value": 7,
			}}}}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		return map[string][]byte{
			"in/proxy.json":       proxy,
			"in/callable.json":    []byte(`{"Services": ["db", "api", "implied"]}`),
			"in/virtual-ips.json": []byte(`{"implied": {"Auto": ["240.0.0.1"]}}`),
			"in/entries.json": []byte(`[{"Kind": "service-resolver", "Name": "alias", "Redirect": {"Service": "db"}},
				{"Kind": "service-resolver", "Name": "api", "Failover": {"*": {"Service": "db"}}}]`),
			"in/instances.json": []byte(`{"db": [], "api": [], "twice": [], "implied": []}`),
		}
	}
	for _, f := range []xds.Flavour{xds.Envoy, xds.Own} {
		c := xds.Compiler{Flavour: f, Shared: new(xds.Shared)}
		s := snapshotOf(t, files("tcp", "db", "api", "alias"))
		for step := range 100 {
			needs := s.Needs()
			more := map[mesh.Need]any{}
			for range 1 + random.IntN(2) {
				n := needs[random.IntN(len(needs))]
				if n.Kind == mesh.NeedInstances {
					i := instancesAt("10.0.0.1", "10.0.0.2", "10.0.0.3")
					i.Instances = i.Instances[:random.IntN(4)]
					for _, x := range i.Instances {
						if random.IntN(3) == 0 {
							x.Service.Address = "name.example.com"
						}
						if random.IntN(3) == 0 {
							x.Service.TaggedAddresses = map[string]catalog.ServiceAddress{"virtual": {Address: fmt.Sprint("10.9.0.", random.IntN(3))}}
						}
					}
					more[n] = i
				}
			}
			switch random.IntN(12) {
			case 0:
				other := snapshotOf(t, files([]string{"tcp", "http"}[random.IntN(2)], []string{"db", "alias", "api"}[:1+random.IntN(3)]...))
				s = s.Register(other.Proxy)
				for _, n := range s.Needs() {
					if !s.Has(n) && other.Has(n) {
						more[n] = other.Answer(n)
					}
				}
			case 1:
				_, leaf := fixtures()
				leaf.CertPEM = fmt.Sprint("LEAF ", step)
				more[mesh.Need{Kind: mesh.NeedLeaf, Service: "web"}] = leaf
			}
			s = s.With(more)
			if random.IntN(3) == 0 {
				continue // several changes at once
			}
			got, err := c.Compile(s)
			if err != nil {
				t.Fatal(err)
			}
			want, err := xds.Compile(s, f)
			if err != nil {
				t.Fatal(err)
			}
			for typ := range xds.Type(xds.NumTypes) {
				a, b := slices.Sorted(maps.Keys(got.Of(typ))), slices.Sorted(maps.Keys(want.Of(typ)))
				if !slices.Equal(a, b) {
					t.Fatalf("step %d: %ss %q, want %q", step, typ, a, b)
				}
				for name, r := range got.Of(typ) {
					if r.Version != want.Of(typ)[name].Version || !slices.Equal(r.Children, want.Of(typ)[name].Children) {
						t.Fatalf("step %d: %s %q is\n%s\nwant\n%s", step, typ, name, render(t, r), render(t, want.Of(typ)[name]))
					}
					if got.Expected(typ, name) != want.Expected(typ, name) {
						t.Fatalf("step %d: %s %q is expected: %t", step, typ, name, got.Expected(typ, name))
					}
				}
			}
			if fmt.Sprint(got.Problems) != fmt.Sprint(want.Problems) {
				t.Fatalf("step %d: problems %v, want %v", step, got.Problems, want.Problems)
			}
		}
	}
}

// What several proxies have is kept once, and for no longer than one of them has it.
func TestProxiesShareResources(t *testing.T) {
	shared := new(xds.Shared)
	compilers := [3]xds.Compiler{{Shared: shared}, {Shared: shared}, {Shared: shared}}
	s := manyUpstreams(t, 3)
	var first *xds.Resources
	for i := range compilers {
		r, err := compilers[i].Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = r
		}
		for typ := range xds.Type(xds.NumTypes) {
			for name, x := range r.Of(typ) {
				if x != first.Of(typ)[name] {
					t.Errorf("%s %s is another one for proxy %d", typ, name, i)
				}
			}
		}
	}
	runtime.KeepAlive(first)
	if shared.Len() == 0 {
		t.Fatal("nothing is shared")
	}
	runtime.KeepAlive(compilers)
	first, compilers = nil, [3]xds.Compiler{}
	for deadline := time.Now().Add(10 * time.Second); shared.Len() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d resources are kept that nobody has", shared.Len())
		}
		runtime.GC()
	}
	runtime.KeepAlive(s)
}

// BenchmarkInstanceChange is a change of the instances of one upstream, from the answer to the resources.
func BenchmarkInstanceChange(b *testing.B) {
	for _, n := range []int{5, 500} {
		b.Run(fmt.Sprint(n, "upstreams"), func(b *testing.B) {
			s := manyUpstreams(b, n)
			c := xds.Compiler{Shared: new(xds.Shared)}
			if _, err := c.Compile(s); err != nil {
				b.Fatal(err)
			}
			one := mesh.Need{Kind: mesh.NeedInstances, Service: "s2"}
			answers := [2]*catalog.InstancesReply{instancesAt("10.0.0.1"), instancesAt("10.0.0.1", "10.0.0.2")}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				reply := *answers[i%2]
				s = s.With(map[mesh.Need]any{one: &reply})
				if _, err := c.Compile(s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkInstanceChangeShared is the same for a thousand proxies that have five upstreams, per proxy.
func BenchmarkInstanceChangeShared(b *testing.B) {
	const proxies = 1000
	shared := new(xds.Shared)
	compilers := make([]xds.Compiler, proxies)
	s := manyUpstreams(b, 5)
	for i := range compilers {
		compilers[i].Shared = shared
		if _, err := compilers[i].Compile(s); err != nil {
			b.Fatal(err)
		}
	}
	one := mesh.Need{Kind: mesh.NeedInstances, Service: "s2"}
	answers := [2]*catalog.InstancesReply{instancesAt("10.0.0.1"), instancesAt("10.0.0.1", "10.0.0.2")}
	i := 0
	var reply catalog.InstancesReply
	b.ReportAllocs()
	for b.Loop() {
		if i%proxies == 0 {
			reply = *answers[i/proxies%2]
			s = s.With(map[mesh.Need]any{one: &reply})
		}
		if _, err := compilers[i%proxies].Compile(s); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
