package uirpc

import (
	"cmp"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/console"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/transport"
)

// routingKinds are the kinds of entries by which there may be a service that has no instances.
var routingKinds = []entry.Kind{entry.KindServiceRouter, entry.KindServiceSplitter, entry.KindServiceResolver}

func (h *handlers) topology(c *transport.Call, v *state.View, req *console.TopologyRequest) (*console.TopologyReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Service, acl.Read, req.Service)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &console.TopologyReply{Upstreams: []*console.Neighbour{}, Downstreams: []*console.Neighbour{}}
	t := newTopology(c, v, reply, h.cfg.Default)
	reply.Protocol = t.protocol(req.Service, req.Kind)
	if req.Kind != catalog.KindTypical {
		index, links := linkedBy(v, req.Service)
		reply.Index = max(reply.Index, index)
		for _, l := range links {
			t.calls(req.Service, l.Service.Name, console.ByRegistration)
		}
	} else {
		if s := t.mesh[strings.ToLower(req.Service)]; s != nil {
			reply.TransparentProxy = s.proxies > 0 && s.transparent == s.proxies
		}
		t.upstreams(req.Service)
		t.downstreams(req.Service)
	}
	for _, list := range [][]*console.Neighbour{reply.Upstreams, reply.Downstreams} {
		slices.SortFunc(list, func(a, b *console.Neighbour) int { return cmp.Compare(a.Name, b.Name) })
	}
	return reply, permit, nil
}

// A topology is what is known of the mesh while one answer is made.
type topology struct {
	reader
	def   intention.Default
	reply *console.TopologyReply
	mesh  map[string]*meshService // by the lower-case form of the name
	rules map[string]*entry.ServiceIntentions
	up    map[string]bool // neighbours that are in the reply, by the lower-case form of their names
	down  map[string]bool
}

// A meshService is a service that has proxies or native instances.
type meshService struct {
	name                 string
	proxies, transparent int
	native               bool
	upstreams            map[string]string // names that its proxies know, by their lower-case form
	imported             map[imported]bool // those that are services of peers
}

// An imported service is one of a peer.
type imported struct{ peer, name string }

// free reports whether a service can call others without naming them.
func (s *meshService) free() bool { return s.native || s.transparent > 0 }

func newTopology(c *transport.Call, v *state.View, reply *console.TopologyReply, def intention.Default) *topology {
	t := &topology{
		reader: reader{c, v, &reply.Meta}, def: def, reply: reply, mesh: map[string]*meshService{},
		rules: map[string]*entry.ServiceIntentions{}, up: map[string]bool{}, down: map[string]bool{},
	}
	index, all := health(v)
	decided, entries := v.Intentions()
	reply.Index = max(index, decided)
	for _, e := range entries {
		t.rules[e.Name] = e
	}
	for _, i := range all {
		switch s := i.Service; {
		case s.Kind == catalog.KindConnectProxy:
			m := t.service(s.Proxy.DestinationServiceName)
			m.proxies++
			if s.Proxy.Mode == "transparent" {
				m.transparent++
			}
			for _, u := range s.Proxy.Upstreams {
				if u.DestinationPeer != "" {
					m.imported[imported{u.DestinationPeer, u.DestinationName}] = true
				}
				local := u.DestinationPeer == "" && (u.Datacenter == "" || u.Datacenter == c.Datacenter)
				if local && u.DestinationType != "prepared_query" && u.DestinationName != entry.Wildcard {
					m.upstreams[strings.ToLower(u.DestinationName)] = u.DestinationName
				}
			}
		case s.Connect.Native:
			t.service(s.Service).native = true
		}
	}
	return t
}

func (t *topology) service(name string) *meshService {
	key := strings.ToLower(name)
	if t.mesh[key] == nil {
		t.mesh[key] = &meshService{name: name, upstreams: map[string]string{}, imported: map[imported]bool{}}
	}
	return t.mesh[key]
}

// protocol returns what a service speaks; a gateway speaks HTTP when any of its listeners does.
func (t *topology) protocol(service, kind string) string {
	for _, k := range []entry.Kind{entry.KindProxyDefaults, entry.KindServiceDefaults, entry.KindIngressGateway, entry.KindAPIGateway} {
		index, _ := t.v.Entries(k)
		t.meta.Index = max(t.meta.Index, index)
	}
	var protocols []string
	switch kind {
	case catalog.KindIngressGateway:
		if g := state.EntryAs[entry.IngressGateway](t.v, entry.KindIngressGateway, service); g != nil {
			for _, l := range g.Listeners {
				protocols = append(protocols, l.Protocol)
			}
		}
	case catalog.KindAPIGateway:
		if g := state.EntryAs[entry.APIGateway](t.v, entry.KindAPIGateway, service); g != nil {
			for _, l := range g.Listeners {
				protocols = append(protocols, l.Protocol)
			}
		}
	default:
		return chain.Protocol(t.v, service)
	}
	if slices.ContainsFunc(protocols, entry.HTTPLike) {
		return entry.HTTP
	}
	return entry.TCP
}

// upstreams adds what a service calls: what its proxies name, and what it may call if it needs not name it.
func (t *topology) upstreams(service string) {
	own := t.mesh[strings.ToLower(service)]
	if own == nil {
		return
	}
	for _, name := range own.upstreams {
		t.calls(service, name, console.ByRegistration)
	}
	for i := range own.imported {
		t.callsPeer(i)
	}
	if !own.free() {
		return
	}
	addressed, addresses := t.v.VirtualIPs()
	t.meta.Index = max(t.meta.Index, addressed)
	for _, ip := range addresses {
		if ip.Peer != "" || strings.EqualFold(ip.Service, service) {
			continue
		}
		if source, open := console.Open(t.to(ip.Service), service, t.def); open {
			t.calls(service, ip.Service, source)
		}
	}
}

// calls adds an upstream unless it is there.
func (t *topology) calls(service, upstream string, source console.Source) {
	key := strings.ToLower(upstream)
	if t.up[key] || !t.may(upstream) {
		return
	}
	s := t.summary(upstream)
	if s == nil {
		if !t.routed(upstream) {
			return
		}
		s, source = &console.Summary{Name: upstream, Datacenter: t.c.Datacenter}, console.ByRouting
	}
	t.up[key] = true
	t.reply.Upstreams = append(t.reply.Upstreams, &console.Neighbour{
		Summary: *s, Source: source, Intention: console.Judge(t.to(upstream), service, t.def),
	})
}

// callsPeer adds an upstream that is a service of a peer. Its exporter decides who may call it; nothing here forbids it.
func (t *topology) callsPeer(i imported) {
	index, found := t.v.Import(i.peer, i.name)
	t.meta.Index = max(t.meta.Index, index)
	if found == nil {
		return
	}
	in := console.NewSummarizer(t.c.Datacenter)
	for _, instance := range found.Instances {
		if catalogrpc.MayReadInstance(t.c.Authorizer, instance) {
			in.Add(instance)
		} else {
			t.meta.Filtered = !t.c.Authorizer.Anonymous()
		}
	}
	if s := in.Summary(found.Service); s != nil {
		t.reply.Upstreams = append(t.reply.Upstreams, &console.Neighbour{
			Summary: *s, Source: console.ByRegistration, Intention: console.Verdict{Allowed: true, DefaultAllow: t.def.Allow},
		})
	}
}

// routed reports whether an entry says where calls to a service go.
func (t *topology) routed(service string) bool {
	found := false
	for _, k := range routingKinds {
		index, _ := t.v.Entries(k)
		t.meta.Index = max(t.meta.Index, index)
		found = found || t.v.Entry(k, service) != nil
	}
	return found
}

// downstreams adds what calls a service: services whose proxies name it, gateways, and services that may call it and
// need not name it.
func (t *topology) downstreams(service string) {
	key := strings.ToLower(service)
	for _, m := range t.mesh {
		if _, names := m.upstreams[key]; names {
			t.called(service, m.name, console.ByRegistration)
		}
	}
	index, gateways := configrpc.LinkedGateways(t.v, catalog.KindIngressGateway, service)
	bound, entries := t.v.Entries(entry.KindBoundAPIGateway)
	t.meta.Index = max(t.meta.Index, index, bound)
	for _, e := range entries {
		for name := range e.(*entry.BoundAPIGateway).Services {
			if strings.EqualFold(name, service) {
				gateways = append(gateways, e.Head().Name)
			}
		}
	}
	for _, g := range gateways {
		t.called(service, g, console.ByRegistration)
	}
	if t.mesh[key] == nil {
		return
	}
	for other, m := range t.mesh {
		if other == key || !m.free() {
			continue
		}
		if source, open := console.Open(t.to(service), m.name, t.def); open {
			t.called(service, m.name, source)
		}
	}
}

// called adds a downstream, unless it is there or has no instances.
func (t *topology) called(service, downstream string, source console.Source) {
	key := strings.ToLower(downstream)
	if t.down[key] || !t.may(downstream) {
		return
	}
	s := t.summary(downstream)
	if s == nil {
		return
	}
	t.down[key] = true
	t.reply.Downstreams = append(t.reply.Downstreams, &console.Neighbour{
		Summary: *s, Source: source, Intention: console.Judge(t.to(service), downstream, t.def),
	})
}

// to returns what decides about calls to a service.
func (t *topology) to(service string) []*intention.Intention {
	return intention.To(t.rules[service], t.rules[entry.Wildcard])
}
