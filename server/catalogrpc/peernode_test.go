package catalogrpc_test

import (
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/server/catalogrpc"
)

// A node of a peer is found by what is imported from there, never in the place of one of this cluster, by who may read
// what is imported.
func TestNodesOfPeersAreFound(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	s.register(&catalog.RegisterRequest{Node: "near", Address: "10.0.0.1"})
	const id = "11111111-2222-3333-4444-555555555555"
	tx := s.Store.Write(s.Index() + 1)
	if err := tx.UpdatePeering(&peering.Update{Fresh: true, Peering: &peering.Peering{ID: id, Name: "east", State: peering.Active}}); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ChangeImports(&peering.Change{ID: id, Import: &peering.Import{Service: "db", Instances: []*catalog.Instance{{
		Node: &catalog.Node{Node: "Far", Address: "10.9.0.1"}, Service: &catalog.Service{ID: "db", Service: "db"},
	}}}}); err != nil {
		t.Fatal(err)
	}
	tx.Commit()
	find := func(peer, node string) string {
		t.Helper()
		r, err := catalog.NodeServicesCall.Call(t.Context(), s.Caller(), &catalog.NodeServicesRequest{Node: node, Peer: peer})
		if err != nil {
			t.Fatal(err)
		}
		if r.Node == nil {
			return ""
		}
		return r.Node.Address + " of " + r.Node.PeerName
	}
	for _, tt := range []struct{ peer, node, want string }{
		{"east", "far", "10.9.0.1 of east"}, {"east", "near", ""}, {"west", "far", ""}, {"", "near", "10.0.0.1 of "}, {"", "far", ""},
	} {
		if got := find(tt.peer, tt.node); got != tt.want {
			t.Errorf("%s of peer %q: %q, want %q", tt.node, tt.peer, got, tt.want)
		}
	}
	s.Resolve = func(token string) (*acl.Authorizer, error) { return acl.New(reader(map[string]bool{}), token), nil }
	if got := find("east", "far"); got != "" {
		t.Errorf("without a right: %q", got)
	}
}
