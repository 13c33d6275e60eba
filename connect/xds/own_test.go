package xds_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/xds"
)

// refusedByOwn are cases with something that the built-in proxy refuses, and why.
var refusedByOwn = map[string]string{
	"gateway-ingress-tls":          "secrets come from other sources than the stream",
	"gateway-terminating":          "names files that are not there",
	"jwt":                          "the fixture's authority is no certificate",
	"exported-service":             "the fixture's authorities are no certificates",
	"own-flavour-exported-service": "the fixture's authorities are no certificates",
	"gateway-mesh-exports":         "the fixture's authorities are no certificates",
}

// The built-in proxy accepts what it is given. What it refused would leave an older version, with older rules, in force.
func TestBuiltInProxyAccepts(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string][]byte{}
		for _, f := range archive.Files {
			files[f.Name] = f.Data
		}
		r, err := xds.Compile(snapshotOf(t, files), xds.Own)
		if err != nil {
			continue
		}
		d := decode.New(decode.Options{})
		for typ, accept := range map[xds.Type]func(*anypb.Any) error{
			xds.Cluster:  func(a *anypb.Any) error { _, err := d.Cluster(a); return err },
			xds.Endpoint: func(a *anypb.Any) error { _, err := d.LoadAssignment(a); return err },
			xds.Listener: func(a *anypb.Any) error { _, err := d.Listener(a); return err },
			xds.Route:    func(a *anypb.Any) error { _, err := d.RouteConfig(a); return err },
		} {
			for n, x := range r.Of(typ) {
				if err := accept(x.Body); err != nil && refusedByOwn[name] == "" {
					t.Errorf("%s: %s %s: %v", name, typ, n, err)
				}
			}
		}
	}
}
