package xds_test

import (
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/xds"
)

// A change of the instances of a peer's service, or of what is known of the peer, leaves nothing that refers to what is not
// there.
func TestPeerChanges(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/peer-upstream-own.txtar")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range archive.Files {
		files[f.Name] = f.Data
	}
	for _, flavour := range []xds.Flavour{xds.Envoy, xds.Own} {
		s := snapshotOf(t, files)
		c := xds.Compiler{Flavour: flavour}
		compile := func(what string) *xds.Resources {
			t.Helper()
			r, err := c.Compile(s)
			if err != nil || len(r.Problems) > 0 {
				t.Fatalf("%s: %v, %v", what, err, r)
			}
			return r
		}
		first := compile("first")
		need := mesh.Need{Kind: mesh.NeedInstances, Service: "db", Peer: "east"}
		old := s.Imported("db", "east")
		more := &catalog.InstancesReply{Instances: slices.Clone(old.Instances)}
		other := *more.Instances[0]
		node := *other.Node
		node.Node = "another"
		other.Node = &node
		more.Instances = append(more.Instances, &other)
		s = s.With(map[mesh.Need]any{need: more})
		if again := compile("another instance"); len(again.Of(xds.Secret)) != len(first.Of(xds.Secret)) {
			t.Errorf("%d secrets after %d", len(again.Of(xds.Secret)), len(first.Of(xds.Secret)))
		}
		bundle := *s.Peer("east")
		bundle.RootPEMs = append(slices.Clone(bundle.RootPEMs), "ANOTHER ROOT")
		s = s.With(map[mesh.Need]any{{Kind: mesh.NeedPeer, Peer: "east"}: &bundle})
		compile("another root")
		s = s.With(map[mesh.Need]any{need: old})
		compile("the instances as they were")
	}
}
