package configrpc

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/transport"
)

func (h *handlers) virtualIP(c *transport.Call, v *state.View, req *entry.VirtualIPRequest) (*entry.VirtualIPReply, acl.Permit, error) {
	permit, err := mayKnowAddress(c.Authorizer, req)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &entry.VirtualIPReply{}
	ip := v.VirtualIP(req.Service, req.Peer)
	if ip == nil {
		reply.NotFound = true
		reply.Index, _ = v.VirtualIPs()
		return reply, permit, nil
	}
	reply.Index, reply.Address, reply.Manual = ip.ModifyIndex, ip.Address(), ip.Manual
	return reply, permit, nil
}

// mayKnowAddress asks for what reading the virtual IP of a service needs.
func mayKnowAddress(z *acl.Authorizer, req *entry.VirtualIPRequest) (acl.Permit, error) {
	switch {
	case req.Peer == "":
		return z.Require(acl.Service, acl.Read, req.Service)
	case z.MayReadImported(acl.Service):
		return z.Filtering(), nil
	}
	return z.RequireAny(acl.Service, acl.Write)
}

func (h *handlers) setVirtualIPs(ctx context.Context, c *transport.Call, req *entry.SetVirtualIPsRequest) (*entry.SetVirtualIPsReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Mesh, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if len(req.Addresses) > entry.MaxManualVirtualIPs {
		return nil, acl.Permit{}, fmt.Errorf("cannot associate more than %d manual virtual IPs with the same service", entry.MaxManualVirtualIPs)
	}
	var addresses []string
	for _, text := range req.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || !a.Is4() {
			return nil, acl.Permit{}, fmt.Errorf("%q is not a valid IPv4 address", text)
		}
		if text := a.String(); !slices.Contains(addresses, text) {
			addresses = append(addresses, text)
		}
	}
	res, err := h.commit(ctx, c, permit, &command{Op: opVirtualIPs, Name: req.Service, Peer: req.Peer, Addresses: addresses})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &entry.SetVirtualIPsReply{Found: res.OK}
	for _, o := range res.From {
		owner := entry.AddressOwner{Peer: o.Peer}
		owner.ServiceName.Name = o.Service
		reply.UnassignedFrom = append(reply.UnassignedFrom, owner)
	}
	return reply, permit, nil
}
