package xds_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// Where instances alone change, what a compiler makes for proxies that share is what each would make by itself.
func TestInstancesAlone(t *testing.T) {
	seed := testkit.Seed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	files := map[string][]byte{
		"in/proxy.json": []byte(`{"Service": {"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": {"DestinationServiceName": "web", "Upstreams": [
			{"DestinationName": "db", "LocalBindPort": 2}, {"DestinationName": "api", "LocalBindPort": 3}, {"DestinationName": "far", "LocalBindPort": 4}]}}}`),
		"in/entries.json": []byte(`[{"Kind": "service-resolver", "Name": "api", "Failover": {"*": {"Service": "db"}}},
			{"Kind": "service-resolver", "Name": "far", "Redirect": {"Service": "db", "Datacenter": "dc2"}}]`),
		"in/instances.json": []byte(`{"db": [], "api": [], "db dc2": []}`),
	}
	for f := range xds.Flavour(xds.NumFlavours) {
		shared := new(xds.Shared)
		compilers := []xds.Compiler{{Flavour: f, Shared: shared}, {Flavour: f, Shared: shared}}
		s := snapshotOf(t, files)
		for step := range 200 {
			for range 1 + random.IntN(2) {
				needs := s.Needs()
				n := needs[random.IntN(len(needs))]
				if n.Kind != mesh.NeedInstances {
					continue
				}
				i := instancesAt("10.0.0.1", "10.0.0.2", "10.0.0.3")
				i.Instances = i.Instances[:random.IntN(4)]
				for _, x := range i.Instances {
					switch random.IntN(5) {
					case 0:
						x.Service.Address = "name.example.com"
					case 1:
						x.Service.Port, x.Service.SocketPath, x.Node.Node = 0, "/run/x", "n1"
					case 2:
						x.Checks = append(x.Checks, &catalog.Check{Status: catalog.Critical})
					}
				}
				s = s.With(map[mesh.Need]any{n: i})
			}
			want, err := xds.Compile(s, f)
			if err != nil {
				t.Fatal(err)
			}
			for i := range compilers {
				if random.IntN(4) == 0 {
					continue // the next time
				}
				got, err := compilers[i].Compile(s)
				if err != nil {
					t.Fatal(err)
				}
				for typ := range xds.Type(xds.NumTypes) {
					if len(got.Of(typ)) != len(want.Of(typ)) {
						t.Fatalf("flavour %d, step %d: %d %ss, want %d", f, step, len(got.Of(typ)), typ, len(want.Of(typ)))
					}
					for name, r := range want.Of(typ) {
						if g := got.Of(typ)[name]; g == nil || g.Version != r.Version {
							t.Fatalf("flavour %d, step %d: %s %q is not\n%s", f, step, typ, name, render(t, r))
						}
					}
				}
				if fmt.Sprint(got.Problems) != fmt.Sprint(want.Problems) {
					t.Fatalf("flavour %d, step %d: problems %v, want %v", f, step, got.Problems, want.Problems)
				}
			}
		}
	}
}
