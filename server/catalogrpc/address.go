package catalogrpc

import (
	"net/netip"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/transport"
)

// address finds the first node with an address, else the first service whose instance has it.
func (h *handlers) address(c *transport.Call, v *state.View, req *catalog.AddressRequest) (*catalog.AddressReply, acl.Permit, error) {
	want, err := netip.ParseAddr(req.Address)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	want = want.Unmap()
	is := func(s string) bool {
		ip, err := netip.ParseAddr(s)
		return err == nil && ip.Unmap() == want
	}
	reply := &catalog.AddressReply{}
	index, nodes := v.Nodes()
	reply.Index = index
	for _, n := range nodes {
		if is(n.Address) && c.Authorizer.May(acl.Node, acl.Read, n.Node) {
			reply.Node = n
			return reply, c.Authorizer.Filtering(), nil
		}
	}
	index, instances := v.AllInstances()
	reply.Index = max(reply.Index, index)
	for in := range instances {
		if s := in.Service; is(s.Address) && c.Authorizer.May(acl.Service, acl.Read, s.Service) && c.Authorizer.May(acl.Node, acl.Read, in.Node.Node) {
			reply.Service = s.Service
			return reply, c.Authorizer.Filtering(), nil
		}
	}
	return reply, c.Authorizer.Filtering(), nil
}
