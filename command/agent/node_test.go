package agent

import (
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
)

// Who finds a server's node in the catalog finds all that belongs to it and to a cluster, and the agent's own
// registrations change nothing of it later: nobody is woken who waits for a change.
func TestNodeOfServerIsCompleteAtOnce(t *testing.T) {
	g := runServer(t, `acl { tokens { agent = "`+managementSecret+`" } }
node_meta { rack = "7" }
advertise_addr_wan = "10.1.2.3"`)
	g.must("PUT", "/v1/agent/service/register", `{"Name": "web"}`)
	g.eventually("the service is in the catalog", func() bool {
		_, _, services := g.server.Store().View().NodeServices("own-node")
		return len(services) == 2
	})
	v := g.server.Store().View()
	n := v.Node("own-node")
	if n.CreateIndex != n.ModifyIndex {
		t.Errorf("the node was made at %d and changed at %d", n.CreateIndex, n.ModifyIndex)
	}
	if n.Meta["rack"] != "7" || n.TaggedAddresses["wan"] != "10.1.2.3" || n.ID != g.node.ID {
		t.Errorf("the node is %+v", n)
	}
	c := v.Check("own-node", catalog.SerfCheckID)
	if c == nil || c.CreateIndex != n.CreateIndex || c.ModifyIndex != n.CreateIndex {
		t.Errorf("the node was made at %d, its health is %+v", n.CreateIndex, c)
	}
	_, _, services := v.NodeServices("own-node")
	if s := services[0]; s.Service != catalog.ServerServiceName || s.CreateIndex != n.CreateIndex || s.ModifyIndex != n.CreateIndex {
		t.Errorf("the node was made at %d, the server's instance is %+v", n.CreateIndex, s)
	}
	if index, roots := v.CARoots(); len(roots) != 1 || index > n.CreateIndex {
		t.Errorf("the node was made at %d, %d CA roots at %d", n.CreateIndex, len(roots), index)
	}
	if at := v.ACLBootstrapped(); at == 0 || at > n.CreateIndex {
		t.Errorf("the node was made at %d, the first token at %d", n.CreateIndex, at)
	}
	if _, k := v.ACLToken(acl.AnonymousID); k == nil || k.CreateIndex > n.CreateIndex {
		t.Errorf("the node was made at %d, the anonymous token is %+v", n.CreateIndex, k)
	}
}
