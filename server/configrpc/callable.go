package configrpc

import (
	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/server/transport"
)

// callable tells what a service may call, of all that has a virtual address: what is in the mesh or spoken of in entries.
func (h *handlers) callable(c *transport.Call, v *state.View, req *intention.CallableRequest) (*intention.CallableReply, acl.Permit, error) {
	if err := h.enabled(); err != nil {
		return nil, acl.Permit{}, err
	}
	permit, err := c.Authorizer.Require(acl.Service, acl.Read, req.Source)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	def := h.cfg.Default()
	reply := &intention.CallableReply{}
	addressed, addresses := v.VirtualIPs()
	decided, intentions := v.Intentions()
	described, defaults := v.Entries(entry.KindServiceDefaults)
	reply.Index = max(addressed, decided, described)
	var names []string
	for _, ip := range addresses {
		switch {
		case ip.Peer == "" && !c.Authorizer.May(acl.Service, acl.Read, ip.Service), ip.Peer != "" && !c.Authorizer.MayReadImported(acl.Service):
			reply.Filtered = !c.Authorizer.Anonymous()
		case ip.Peer != "":
			reply.Imported = append(reply.Imported, intention.Imported{Service: ip.Service, Peer: ip.Peer})
		default:
			names = append(names, ip.Service)
		}
	}
	reply.Services = intention.Callable(req.Source, names, intentions, def)
	may := map[string]bool{}
	for _, name := range reply.Services {
		may[name] = true
	}
	for _, e := range defaults {
		if d := e.(*entry.ServiceDefaults); d.Destination != nil && may[d.Name] {
			reply.Destinations = append(reply.Destinations, d)
		}
	}
	return reply, permit, nil
}
