package configrpc

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/server/transport"
)

// gatewayKinds are the kinds of gateways that link services.
var gatewayKinds = []entry.Kind{entry.KindTerminatingGateway, entry.KindIngressGateway}

func (h *handlers) gatewayServices(c *transport.Call, v *state.View, req *entry.GatewayServicesRequest) (*entry.GatewayServicesReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Service, acl.Read, req.Gateway)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &entry.GatewayServicesReply{Services: []entry.GatewayService{}}
	index, links := LinkedServices(v, req.Gateway)
	reply.Index = index
	for _, l := range links {
		if !c.Authorizer.May(acl.Service, acl.Read, l.Service.Name) {
			reply.Filtered = !c.Authorizer.Anonymous()
			continue
		}
		reply.Services = append(reply.Services, l)
	}
	return reply, permit, nil
}

// LinkedServices returns what the entries of a gateway link, ordered by service, then port, and the index of the last
// change to that.
func LinkedServices(v *state.View, gateway string) (uint64, []entry.GatewayService) {
	own := recorder{v: v}
	var links []entry.GatewayService
	for _, kind := range gatewayKinds {
		if e := own.Entry(kind, gateway); e != nil {
			links = append(links, entry.GatewayServices(e)...)
		}
	}
	index, links := expand(v, links)
	return max(index, own.index, v.EntriesGone(gatewayKinds...)), links
}

// expand puts the services there are in the place of wildcards, but for those that the same gateway or listener names
// itself, and tells what stands behind terminating gateways. The index is that of the last change to any of that.
func expand(v *state.View, links []entry.GatewayService) (uint64, []entry.GatewayService) {
	var in facts = &narrow{recorder{v: v}}
	if slices.ContainsFunc(links, isWildcard) {
		in = newBroad(v)
	}
	var out []entry.GatewayService
	for _, l := range links {
		if !isWildcard(l) {
			out = append(out, describe(in, l))
			continue
		}
		for _, name := range in.(*broad).names {
			one := l
			one.Service.Name, one.FromWildcard = name, true
			named := func(o entry.GatewayService) bool {
				return o.GatewayKind == l.GatewayKind && o.Port == l.Port && strings.EqualFold(o.Service.Name, name)
			}
			if covers(in, l, name) && !slices.ContainsFunc(links, named) {
				out = append(out, describe(in, one))
			}
		}
	}
	slices.SortStableFunc(out, func(a, b entry.GatewayService) int {
		return cmp.Or(strings.Compare(a.Service.Name, b.Service.Name), cmp.Compare(a.Port, b.Port))
	})
	return in.since(), out
}

func isWildcard(l entry.GatewayService) bool { return l.Service.Name == entry.Wildcard }

// describe adds what stands behind a terminating gateway.
func describe(in facts, l entry.GatewayService) entry.GatewayService {
	if l.GatewayKind == catalog.KindTerminatingGateway {
		l.ServiceKind = behind(in, l.Service.Name)
	}
	return l
}

// LinkedGateways returns the names of the gateways of a kind that entries link a service to, in order, and the index of
// the last change to that.
func LinkedGateways(v *state.View, kind, service string) (uint64, []string) {
	index, gateways := v.Entries(entry.Kind(kind))
	in := &narrow{recorder{v: v}}
	var names []string
	for _, g := range gateways {
		if slices.ContainsFunc(entry.GatewayServices(g), func(l entry.GatewayService) bool {
			return strings.EqualFold(l.Service.Name, service) || isWildcard(l) && covers(in, l, service)
		}) {
			names = append(names, g.Head().Name)
		}
	}
	return max(index, in.since()), names
}

// facts are what decides which services a wildcard stands for.
type facts interface {
	chain.Entries
	// meshed reports whether the mesh has a way to a service.
	meshed(service string) bool
	// plain reports whether a service has an instance that is reached without the mesh.
	plain(service string) bool
	// since returns the index of the last change to the facts that were asked for.
	since() uint64
}

// covers reports whether a wildcard stands for a service: one of the mesh with the listener's protocol for an ingress
// gateway, one that can be reached without the mesh for a terminating gateway.
func covers(in facts, l entry.GatewayService, service string) bool {
	if l.GatewayKind == catalog.KindIngressGateway {
		return in.meshed(service) && chain.Protocol(in, service) == l.Protocol
	}
	return behind(in, service) != ""
}

// behind returns what a terminating gateway reaches under a name, empty for nothing.
func behind(in facts, service string) string {
	if in.plain(service) {
		return entry.GatewayToService
	}
	if d, _ := in.Entry(entry.KindServiceDefaults, service).(*entry.ServiceDefaults); d != nil && d.Destination != nil {
		return entry.GatewayToDestination
	}
	return ""
}

// isPlain reports whether an instance is reached without the mesh: it is an application that speaks no mTLS itself.
func isPlain(s *catalog.Service) bool {
	return s.Kind == catalog.KindTypical && !s.Connect.Native && s.Service != catalog.ServerServiceName
}

// narrow reads the facts about few services one by one, so that nothing else wakes a waiter.
type narrow struct{ recorder }

func (n *narrow) meshed(service string) bool {
	index, members := n.v.MeshInstances(service, true)
	n.index = max(n.index, index)
	return len(members) > 0
}

func (n *narrow) plain(service string) bool {
	index, instances := n.v.Instances(service, true)
	n.index = max(n.index, index)
	return slices.ContainsFunc(instances, func(i *catalog.Instance) bool { return isPlain(i.Service) })
}

func (n *narrow) since() uint64 {
	return max(n.index, n.v.EntriesGone(entry.KindServiceDefaults, entry.KindProxyDefaults))
}

// broad knows the facts about every service, read at once.
type broad struct {
	names    []string // of every service and destination, in order
	members  map[string]bool
	plains   map[string]bool
	defaults map[string]entry.Entry // service-defaults
	all      entry.Entry            // proxy-defaults, nil for none
	index    uint64
}

func newBroad(v *state.View) *broad {
	b := &broad{members: map[string]bool{}, plains: map[string]bool{}, defaults: map[string]entry.Entry{}}
	names := map[string]string{} // by their lower-case form
	index, instances := v.AllInstances()
	for i := range instances {
		name := i.Service.Service
		if i.Service.Kind == catalog.KindConnectProxy {
			name = i.Service.Proxy.DestinationServiceName
		}
		key := strings.ToLower(name)
		names[key] = cmp.Or(names[key], name)
		if i.Service.Kind == catalog.KindConnectProxy || i.Service.Connect.Native {
			b.members[key] = true
		}
		if isPlain(i.Service) {
			b.plains[key] = true
		}
	}
	defaultsIndex, defaults := v.Entries(entry.KindServiceDefaults)
	for _, e := range defaults {
		name := e.Head().Name
		b.defaults[name] = e
		if key := strings.ToLower(name); e.(*entry.ServiceDefaults).Destination != nil {
			names[key] = cmp.Or(names[key], name)
		}
	}
	allIndex, all := v.Entries(entry.KindProxyDefaults)
	if len(all) > 0 {
		b.all = all[0]
	}
	b.names = slices.Sorted(maps.Values(names))
	b.index = max(index, defaultsIndex, allIndex)
	return b
}

// Entry implements chain.Entries.
func (b *broad) Entry(kind entry.Kind, name string) entry.Entry {
	switch kind {
	case entry.KindServiceDefaults:
		return b.defaults[name]
	case entry.KindProxyDefaults:
		return b.all
	}
	return nil
}

func (b *broad) meshed(service string) bool { return b.members[strings.ToLower(service)] }
func (b *broad) plain(service string) bool  { return b.plains[strings.ToLower(service)] }
func (b *broad) since() uint64              { return b.index }
