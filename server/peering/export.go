package peering

import (
	"cmp"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/peeringrpc"
)

// exports returns everything that a peer is to know, in the order in which it is sent. The nonces are not set.
func exports(v *state.View, datacenter string, p *peering.Peering) ([]*resource, error) {
	var out []*resource
	add := func(kind resourceKind, name string, data any) error {
		encoded, err := rpc.Marshal(data)
		if err != nil {
			return err
		}
		out = append(out, &resource{Kind: kind, Name: name, Data: encoded})
		return nil
	}
	trustDomain, roots := peeringrpc.Roots(v)
	if len(roots) > 0 {
		if err := add(bundleResource, "", &bundleData{TrustDomain: trustDomain, Roots: roots}); err != nil {
			return nil, err
		}
	}
	if !p.Dials() {
		if addresses, err := peeringrpc.Addresses(v); err == nil {
			if err := add(serversResource, "", addresses); err != nil {
				return nil, err
			}
		}
	}
	_, names := v.Exports(p.Name)
	if len(names) > maxServices {
		names = names[:maxServices]
	}
	if names == nil {
		names = []string{}
	}
	if err := add(servicesResource, "", names); err != nil {
		return nil, err
	}
	_, gateways := v.InstancesOfKind(catalog.KindMeshGateway)
	for _, name := range names {
		s := exported(v, datacenter, trustDomain, p.Name, name, gateways)
		if err := add(serviceResource, name, s); err != nil {
			return nil, err
		}
		// A service of very many instances is told in part rather than not at all.
		for last := out[len(out)-1]; len(last.Data) > maxData && len(s.Instances)+len(s.Gateways) > 0; {
			s.Instances, s.Gateways = s.Instances[:len(s.Instances)/2], s.Gateways[:len(s.Gateways)/2]
			encoded, err := rpc.Marshal(s)
			if err != nil {
				return nil, err
			}
			last.Data = encoded
		}
	}
	return out, nil
}

// exported returns one service as a peer is to know it.
func exported(v *state.View, datacenter, trustDomain, peer, name string, gateways []*catalog.Instance) *serviceData {
	s := &serviceData{}
	_, instances := v.Instances(name, false)
	for _, i := range instances {
		if i.Service.Kind == catalog.KindTypical && len(s.Instances) < maxInstances {
			s.Instances = append(s.Instances, told(i))
		}
	}
	made, err := chain.Compile(chain.Request{Service: name, Datacenter: datacenter}, v)
	if err != nil || trustDomain == "" {
		return s // it is not reached through the mesh until its chain is right
	}
	_, linked := configrpc.LinkedGateways(v, catalog.KindTerminatingGateway, name)
	if made.Default && !v.MeshMember(name) && len(linked) == 0 {
		v.MeshInstances(name, true) // wake when it has one
		return s
	}
	v.MeshInstances(name, true)
	s.Protocol = cmp.Or(made.Protocol, "tcp")
	s.SNI = []string{connect.PeeredServiceSNI(name, peer, trustDomain)}
	s.SpiffeID = []string{
		connect.ServiceID(trustDomain, datacenter, name).String(), connect.MeshGatewayID(trustDomain, datacenter).String(),
	}
	for _, t := range made.Targets {
		if id := connect.ServiceID(trustDomain, datacenter, t.Service).String(); t.Peer == "" && !slices.Contains(s.SpiffeID, id) {
			s.SpiffeID = append(s.SpiffeID, id)
		}
	}
	slices.Sort(s.SpiffeID[2:])
	for _, g := range gateways {
		if len(s.Gateways) == maxInstances {
			break
		}
		d := told(g)
		d.Address, d.Port = peeringrpc.GatewayAddress(g)
		d.Addresses, d.Tags, d.Meta, d.NodeMeta = nil, nil, nil, nil
		s.Gateways = append(s.Gateways, d)
	}
	return s
}

// told returns what a peer is told of an instance.
func told(i *catalog.Instance) *instanceData {
	n, s := i.Node, i.Service
	d := &instanceData{
		Node: n.Node, NodeID: n.ID, NodeAddress: n.Address, NodeAddresses: n.TaggedAddresses, NodeMeta: n.Meta, Datacenter: n.Datacenter,
		ID: s.ID, Address: s.Address, Port: s.Port, Tags: s.Tags, Meta: s.Meta, Weights: s.Weights,
		Locality: cmp.Or(s.Locality, n.Locality),
	}
	for tag, a := range s.TaggedAddresses {
		if tag != catalog.VirtualAddressTag {
			if d.Addresses == nil {
				d.Addresses = map[string]catalog.ServiceAddress{}
			}
			d.Addresses[tag] = a
		}
	}
	for _, c := range i.Checks {
		if c.ServiceID == "" {
			d.NodeStatus = worse(d.NodeStatus, c.Status)
		} else {
			d.Status = worse(d.Status, c.Status)
		}
	}
	return d
}

// worse returns the worse of two statuses; empty is better than any.
func worse(a, b string) string {
	rank := func(s string) int {
		switch s {
		case "":
			return 0
		case catalog.Passing:
			return 1
		case catalog.Warning:
			return 2
		case catalog.Critical:
			return 4
		}
		return 3
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}
