package xds_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// versionsOf compiles the files of a case and returns the versions of all resources, nil when there are none.
func versionsOf(t *testing.T, files map[string][]byte) map[string]string {
	t.Helper()
	flavour := xds.Envoy
	if _, own := files["in/own"]; own {
		flavour = xds.Own
	}
	r, err := xds.Compile(snapshotOf(t, files), flavour)
	if err != nil {
		return nil
	}
	out := map[string]string{}
	for typ := range xds.Type(xds.NumTypes) {
		for name, x := range r.Of(typ) {
			out[typ.String()+" "+name] = x.Version
		}
	}
	return out
}

func sameVersions(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s: %s has another version", what, name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d resources, want %d", what, len(got), len(want))
	}
}

// Equal configuration has equal resources to the byte, whenever it is compiled: a proxy drains connections for each
// difference.
func TestOutputHasOneOrder(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string][]byte{}
		for _, f := range archive.Files {
			files[f.Name] = f.Data
		}
		want := versionsOf(t, files)
		for range 3 {
			sameVersions(t, path, versionsOf(t, files), want)
		}
	}
}

// The order in which upstreams and what may be called are listed does not show.
func TestOutputDoesNotDependOnOrder(t *testing.T) {
	seed := testkit.Seed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	var upstreams, services, destinations []any
	vips := map[string]any{}
	instances := map[string]any{}
	for i := range 8 {
		name := fmt.Sprint("s", i)
		upstreams = append(upstreams, map[string]any{"DestinationName": fmt.Sprint("u", i), "LocalBindPort": 1000 + i})
		services = append(services, name)
		vips[name] = map[string]any{"Auto": []string{fmt.Sprint("240.0.0.", i)}, "Manual": []string{fmt.Sprint("10.0.0.", 100-i), "10.0.1.1"}}
		destinations = append(destinations, map[string]any{"Name": fmt.Sprint("d", i), "Protocol": []string{"http", "tcp"}[i%2],
			"Destination": map[string]any{"Addresses": []string{fmt.Sprint("h", i, ".example.com"), fmt.Sprint("g", i/4, ".example.com")}, "Port": 80 + i%2}})
		instances[name], instances[fmt.Sprint("d", i)] = []any{}, []any{}
	}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	compile := func() map[string]string {
		return versionsOf(t, map[string][]byte{
			"in/proxy.json": encode(map[string]any{"Service": map[string]any{"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": map[string]any{
				"Mode": "transparent", "DestinationServiceName": "web", "Upstreams": upstreams,
			}}}),
			"in/callable.json":    encode(map[string]any{"Services": services, "Destinations": destinations}),
			"in/virtual-ips.json": encode(vips),
			"in/instances.json":   encode(instances),
		})
	}
	want := compile()
	if want == nil {
		t.Fatal("nothing was compiled")
	}
	for range 10 {
		for _, list := range [][]any{upstreams, services, destinations} {
			random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		}
		sameVersions(t, "shuffled", compile(), want)
	}
}

// Whoever serves resources tells a required extension that can not be applied from other failures.
func TestRequiredExtensionIsToldApart(t *testing.T) {
	for arguments, want := range map[string]bool{
		`{"Patches": [{"ResourceFilter": {"ResourceType": "cluster", "TrafficDirection": "inbound"}, "Op": "add", "Path": "/name", "Value": "x"}]}`: true,
		`{"Patches": []}`: true,
		`{"Patches": [{"ResourceFilter": {"ResourceType": "cluster", "TrafficDirection": "inbound"}, "Op": "add", "Path": "/alt_stat_name", "Value": "x"}]}`: false,
	} {
		proxy := fmt.Appendf(nil, `{"Service": {"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": {"DestinationServiceName": "web",
			"EnvoyExtensions": [{"Name": "builtin/property-override", "Required": true, "Arguments": %s}]}}}`, arguments)
		if _, err := xds.Compile(snapshotOf(t, map[string][]byte{"in/proxy.json": proxy}), xds.Envoy); errors.Is(err, xds.ErrExtension) != want || (err != nil) != want {
			t.Errorf("%s: %v", arguments, err)
		}
	}
}
