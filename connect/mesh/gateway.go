package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/intention"
)

// A Gateway is what the registration of a gateway, and the entries about it that are known so far, come to.
type Gateway struct {
	Config GatewayConfig
	Binds  []Bind // ordered by name
	// Listeners are the ports of an ingress gateway, in the order of its entry.
	Listeners []*IngressListener
	// Ports are the ports of an API gateway that have routes, in the order of its entry.
	Ports []*APIPort
	// Links are the services behind a terminating gateway, ordered by name.
	Links []entry.GatewayService
	// Services are the names a mesh gateway is a way to, in order; not all of them need be in the mesh.
	Services []string
	// Exports are the services that a mesh gateway leads peers to, ordered by name.
	Exports []ExportedService
	// Imports are the services of peers that a mesh gateway leads callers here to, ordered by peer and name.
	Imports []peering.Key
	// Datacenters are those a mesh gateway is a way to, other than its own, in order.
	Datacenters []string
	// Problems are what was left out.
	Problems []error
}

// An ExportedService is a service that peers reach through a mesh gateway.
type ExportedService struct {
	peering.Export
	// Upstream is set where the gateway serves requests; connections it passes on as they are.
	Upstream *Upstream
}

// A Bind is an address to listen at.
type Bind struct {
	Name    string // "default", of a tagged address, or chosen by the user
	Address string // IP
	Port    int
}

// An IngressListener is a port of an ingress gateway.
type IngressListener struct {
	Port     int
	Protocol string
	TLS      entry.GatewayTLS // of the listener, over that of the gateway
	Services []IngressService // wildcards expanded; ordered as given, then by name
}

// An IngressService is a service behind a listener.
type IngressService struct {
	*entry.IngressService
	Name     string
	Upstream *Upstream
}

// An APIPort is a port of an API gateway: the listeners that share it, merged.
type APIPort struct {
	Listener     *entry.APIGatewayListener // the first of them
	HTTP         []*entry.HTTPRoute        // bound to them, ordered by name
	TCP          *entry.TCPRoute           // bound to it, if its protocol is tcp
	Certificates []entry.Entry             // inline or in files, in the order given
}

// gatewayKinds are the kinds of registrations that are gateways.
var gatewayKinds = []string{
	catalog.KindTerminatingGateway, catalog.KindIngressGateway, catalog.KindMeshGateway, catalog.KindAPIGateway,
}

// isGateway reports whether the proxy is a gateway.
func (s *Snapshot) isGateway() bool { return slices.Contains(gatewayKinds, s.Proxy.Service.Kind) }

// deriveGateway works out Gateway and Upstreams of a gateway from the answers. Upstreams that are as they were before
// stay the same ones.
func (s *Snapshot) deriveGateway() {
	if !s.isGateway() {
		return
	}
	g := &Gateway{}
	var err error
	if g.Config, err = parseGatewayConfig(s.Proxy.Service.Proxy.Config); err != nil {
		g.Problems = append(g.Problems, err)
	}
	g.bind(s.Proxy.Service)
	d := &derivation{s: s, g: g, upstreams: map[string]*Upstream{}}
	switch s.Proxy.Service.Kind {
	case catalog.KindTerminatingGateway:
		d.terminating()
	case catalog.KindIngressGateway:
		d.ingress()
	case catalog.KindMeshGateway:
		d.mesh()
	case catalog.KindAPIGateway:
		d.api()
	}
	s.Gateway = g
	s.Upstreams = slices.SortedFunc(mapValues(d.upstreams), func(a, b *Upstream) int { return strings.Compare(a.ID, b.ID) })
}

func mapValues[K comparable, V any](m map[K]V) func(yield func(V) bool) {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// bind finds the addresses to listen at. Of two names for one address the first stays.
func (g *Gateway) bind(svc *catalog.Service) {
	all := map[string]catalog.ServiceAddress{}
	if !g.Config.NoDefaultBind {
		all["default"] = catalog.ServiceAddress{Address: cmp.Or(svc.Address, "0.0.0.0"), Port: svc.Port}
	}
	if g.Config.BindTaggedAddresses {
		for name, a := range svc.TaggedAddresses {
			if name != "virtual" && !strings.HasPrefix(name, "consul-virtual") {
				all[name] = a
			}
		}
	}
	for name, a := range g.Config.BindAddresses {
		all[name] = catalog.ServiceAddress{Address: a.Address, Port: a.Port}
	}
	type place struct {
		address string
		port    int
	}
	taken := map[place]bool{}
	for _, name := range sortedNames(all) {
		a := all[name]
		ip, err := netip.ParseAddr(a.Address)
		if err != nil {
			g.Problems = append(g.Problems, fmt.Errorf("bind address %s: %q is no IP address", name, a.Address))
			continue
		}
		if p := (place{ip.String(), a.Port}); !taken[p] {
			taken[p] = true
			g.Binds = append(g.Binds, Bind{name, p.address, p.port})
		}
	}
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// A derivation is one run of deriveGateway.
type derivation struct {
	s         *Snapshot
	g         *Gateway
	upstreams map[string]*Upstream // by ID
}

// upstream returns the upstream for a service. The settings of the first who asks for it hold.
func (d *derivation) upstream(service string, limits *entry.IngressLimits) *Upstream {
	spec := &catalog.Upstream{DestinationName: service, DestinationType: DestinationService}
	u := newUpstream(spec, d.s.Proxy.Service.Proxy.MeshGateway, true)
	u.Key = u.ID
	if limits != nil {
		u.Config.Limits, u.Config.PassiveHealthCheck = ingressLimits(limits)
	}
	if first := d.upstreams[u.ID]; first != nil {
		return first
	}
	for _, old := range d.s.Upstreams {
		if old.ID == u.ID && reflect.DeepEqual(old, u) {
			u = old
		}
	}
	d.upstreams[u.ID] = u
	return u
}

func (d *derivation) links() []entry.GatewayService {
	r, _ := d.s.Answer(d.s.linksNeed()).(*entry.GatewayServicesReply)
	if r == nil {
		return nil
	}
	return r.Services
}

func (d *derivation) terminating() {
	for _, l := range d.links() {
		if l.GatewayKind == catalog.KindTerminatingGateway {
			d.g.Links = append(d.g.Links, l)
		}
	}
}

func (d *derivation) ingress() {
	e, _ := d.s.GatewayEntry().(*entry.IngressGateway)
	if e == nil {
		return
	}
	links := d.links()
	for i := range e.Listeners {
		from := &e.Listeners[i]
		l := &IngressListener{Port: from.Port, Protocol: from.Protocol, TLS: overTLS(e.TLS, from.TLS)}
		add := func(s *entry.IngressService, name string) {
			if slices.ContainsFunc(l.Services, func(o IngressService) bool { return o.Name == name }) {
				return
			}
			limits := overLimits((*entry.IngressLimits)(e.Defaults), &s.IngressLimits)
			l.Services = append(l.Services, IngressService{s, name, d.upstream(name, limits)})
		}
		for j := range from.Services {
			if s := &from.Services[j]; s.Name != entry.Wildcard {
				add(s, s.Name)
			}
		}
		for j := range from.Services {
			s := &from.Services[j]
			if s.Name != entry.Wildcard {
				continue
			}
			for _, link := range links {
				if link.GatewayKind == catalog.KindIngressGateway && link.Port == from.Port && link.FromWildcard {
					add(s, link.Service.Name)
				}
			}
		}
		d.g.Listeners = append(d.g.Listeners, l)
	}
}

// overTLS returns the settings of a gateway with those of a listener put over them.
func overTLS(gateway entry.GatewayTLS, listener *entry.GatewayTLS) entry.GatewayTLS {
	out := gateway
	if listener == nil {
		return out
	}
	out.Enabled = out.Enabled || listener.Enabled
	if s := listener.SDS; s != nil {
		sds := entry.GatewaySDS{}
		if gateway.SDS != nil {
			sds = *gateway.SDS
		}
		sds.ClusterName = cmp.Or(s.ClusterName, sds.ClusterName)
		sds.CertResource = cmp.Or(s.CertResource, sds.CertResource)
		out.SDS = &sds
	}
	out.TLSMinVersion = cmp.Or(listener.TLSMinVersion, out.TLSMinVersion)
	out.TLSMaxVersion = cmp.Or(listener.TLSMaxVersion, out.TLSMaxVersion)
	switch {
	case len(listener.CipherSuites) > 0:
		out.CipherSuites = listener.CipherSuites
	case listener.TLSMinVersion == "TLSv1_3":
		out.CipherSuites = nil // which are for older versions
	}
	return out
}

// overLimits returns the limits of a gateway with those of a service put over them.
func overLimits(gateway, service *entry.IngressLimits) *entry.IngressLimits {
	var out entry.IngressLimits
	if gateway != nil {
		out = *gateway
	}
	out.MaxConnections = cmp.Or(service.MaxConnections, out.MaxConnections)
	out.MaxPendingRequests = cmp.Or(service.MaxPendingRequests, out.MaxPendingRequests)
	out.MaxConcurrentRequests = cmp.Or(service.MaxConcurrentRequests, out.MaxConcurrentRequests)
	if s := service.PassiveHealthCheck; s != nil {
		var p entry.PassiveHealthCheck
		if out.PassiveHealthCheck != nil {
			p = *out.PassiveHealthCheck
		}
		p.Interval = cmp.Or(s.Interval, p.Interval)
		p.MaxFailures = cmp.Or(s.MaxFailures, p.MaxFailures)
		p.EnforcingConsecutive5xx = cmp.Or(s.EnforcingConsecutive5xx, p.EnforcingConsecutive5xx)
		p.MaxEjectionPercent = cmp.Or(s.MaxEjectionPercent, p.MaxEjectionPercent)
		p.BaseEjectionTime = cmp.Or(s.BaseEjectionTime, p.BaseEjectionTime)
		out.PassiveHealthCheck = &p
	}
	return &out
}

// ingressLimits returns limits in the form upstreams have them.
func ingressLimits(l *entry.IngressLimits) (*Limits, *PassiveHealthCheck) {
	positive := func(n uint32) *uint32 {
		if n == 0 {
			return nil
		}
		return &n
	}
	limits := &Limits{positive(l.MaxConnections), positive(l.MaxPendingRequests), positive(l.MaxConcurrentRequests)}
	if *limits == (Limits{}) {
		limits = nil
	}
	p := l.PassiveHealthCheck
	if p == nil {
		return limits, nil
	}
	check := &PassiveHealthCheck{
		Interval: p.Interval, MaxFailures: p.MaxFailures, EnforcingConsecutive5xx: p.EnforcingConsecutive5xx,
		MaxEjectionPercent: p.MaxEjectionPercent, BaseEjectionTime: p.BaseEjectionTime,
	}
	if n := check.EnforcingConsecutive5xx; n != nil && *n == 0 {
		check.EnforcingConsecutive5xx = nil // ignored for gateways
	}
	return limits, check
}

func (d *derivation) api() {
	e, _ := d.s.GatewayEntry().(*entry.APIGateway)
	bound := d.s.BoundGateway()
	if e == nil || bound == nil {
		return
	}
	ports := map[int]*APIPort{}
	for i := range e.Listeners {
		l := &e.Listeners[i]
		at := slices.IndexFunc(bound.Listeners, func(b entry.BoundAPIGatewayListener) bool { return b.Name == l.Name })
		if at < 0 || len(bound.Listeners[at].Routes) == 0 || !ready(e, l.Name) {
			continue
		}
		var certificates []entry.Entry
		for _, ref := range l.TLS.Certificates {
			if c := d.s.entry(entryNeed(ref.Kind, ref.Name)); c != nil {
				certificates = append(certificates, c)
			}
		}
		if len(certificates) < len(l.TLS.Certificates) {
			continue // plaintext or another certificate in its place would be worse than nothing
		}
		p := ports[l.Port]
		if p == nil {
			p = &APIPort{Listener: l}
		}
		for _, ref := range bound.Listeners[at].Routes {
			switch r := d.s.entry(entryNeed(ref.Kind, ref.Name)).(type) {
			case *entry.HTTPRoute:
				if l.Protocol == entry.HTTP && !slices.Contains(p.HTTP, r) {
					p.HTTP = append(p.HTTP, r)
					for _, rule := range r.Rules {
						for _, s := range rule.Services {
							d.upstream(s.Name, nil)
						}
					}
				}
			case *entry.TCPRoute:
				if l.Protocol == entry.TCP && p.TCP == nil && len(r.Services) == 1 {
					p.TCP = r
					d.upstream(r.Services[0].Name, nil)
				}
			}
		}
		for _, c := range certificates {
			if !slices.Contains(p.Certificates, c) {
				p.Certificates = append(p.Certificates, c)
			}
		}
		if (len(p.HTTP) > 0 || p.TCP != nil) && ports[l.Port] == nil {
			ports[l.Port] = p
			d.g.Ports = append(d.g.Ports, p)
		}
	}
	for _, p := range d.g.Ports {
		slices.SortFunc(p.HTTP, func(a, b *entry.HTTPRoute) int { return strings.Compare(a.Name, b.Name) })
	}
}

// ready reports whether the leader found nothing wrong with a listener.
func ready(e *entry.APIGateway, listener string) bool {
	for _, c := range e.Status.Conditions {
		if c.Resource != nil && c.Resource.SectionName != "" && c.Resource.SectionName != listener {
			continue
		}
		if c.Type == "Conflicted" && c.Status != "False" || c.Type != "Conflicted" && c.Status != "True" {
			return false
		}
	}
	return true
}

func (d *derivation) mesh() {
	if r, ok := d.s.Answer(Need{Kind: NeedServices}).(*catalog.ServicesReply); ok {
		for name := range r.Services {
			if name != catalog.ServerServiceName {
				d.g.Services = append(d.g.Services, name)
			}
		}
		slices.Sort(d.g.Services)
	}
	if r, ok := d.s.Answer(Need{Kind: NeedDatacenters}).(*catalog.DatacentersReply); ok {
		for _, dc := range r.Datacenters {
			if dc != d.s.Proxy.Datacenter {
				d.g.Datacenters = append(d.g.Datacenters, dc)
			}
		}
		slices.Sort(d.g.Datacenters)
	}
	if r, ok := d.s.Answer(Need{Kind: NeedImports}).(*peering.ImportsReply); ok {
		d.g.Imports = r.Imports
	}
	if r, ok := d.s.Answer(Need{Kind: NeedExports}).(*peering.ExportsReply); ok {
		for _, x := range r.Exports {
			e := ExportedService{Export: x}
			if entry.HTTPLike(x.Protocol) {
				e.Upstream = d.upstream(x.Service, nil)
			}
			d.g.Exports = append(d.g.Exports, e)
		}
	}
}

// gatewayNeeds returns what a gateway needs, as far as the answers so far tell.
func (s *Snapshot) gatewayNeeds() []Need {
	g := s.Gateway
	if g == nil {
		return nil
	}
	needs := []Need{{Kind: NeedRoots}, {Kind: NeedMesh}}
	seen := map[Need]bool{}
	add := func(all ...Need) {
		for _, n := range all {
			if !seen[n] {
				seen[n] = true
				needs = append(needs, n)
			}
		}
	}
	switch s.Proxy.Service.Kind {
	case catalog.KindTerminatingGateway:
		add(s.linksNeed(), entryNeed(entry.KindProxyDefaults, entry.ProxyDefaultsName))
		for i := range g.Links {
			name := g.Links[i].Service.Name
			add(linkLeafNeed(name), Need{Kind: NeedIntentions, Service: name},
				entryNeed(entry.KindServiceResolver, name), entryNeed(entry.KindServiceDefaults, name))
			if g.Links[i].ServiceKind != entry.GatewayToDestination {
				add(s.subsetNeeds(NeedPlain, name, s.Resolver(name))...)
			}
		}
	case catalog.KindMeshGateway:
		add(Need{Kind: NeedServices}, Need{Kind: NeedDatacenters}, resolversNeed,
			entryNeed(entry.KindServiceDefaults, s.Proxy.Service.Service), Need{Kind: NeedExports}, Need{Kind: NeedImports})
		for _, i := range g.Imports {
			add(s.importedNeed(i.Service, i.Peer))
		}
		if len(s.Upstreams) > 0 {
			add(s.leafNeed(), s.bundlesNeed())
		}
		if s.forServers() {
			add(serversNeed)
		}
		resolvers := s.Resolvers()
		for _, name := range g.Services {
			add(s.subsetNeeds(NeedInstances, name, resolvers[name])...)
		}
		for _, dc := range g.Datacenters {
			add(s.GatewaysNeed(dc))
		}
	case catalog.KindIngressGateway:
		add(s.gatewayEntryNeed(), s.linksNeed(), s.leafNeed())
	case catalog.KindAPIGateway:
		add(s.gatewayEntryNeed(), s.boundNeed(), s.leafNeed())
		if b := s.BoundGateway(); b != nil {
			for _, l := range b.Listeners {
				for _, ref := range l.Routes {
					add(entryNeed(ref.Kind, ref.Name))
				}
			}
		}
		if e, ok := s.GatewayEntry().(*entry.APIGateway); ok {
			for i := range e.Listeners {
				for _, ref := range e.Listeners[i].TLS.Certificates {
					add(entryNeed(ref.Kind, ref.Name))
				}
			}
		}
	}
	for _, u := range s.Upstreams {
		add(s.UpstreamNeeds(u)...)
		if c := s.ownChain(u); c != nil && c != s.Chain(u) {
			add(s.chainNeeds(c)...)
		}
	}
	return needs
}

// gatewayComplete reports whether enough is known to configure a gateway (spec/xds.md section 1.5).
func (s *Snapshot) gatewayComplete() bool {
	if s.Gateway == nil || len(s.Roots().Roots) == 0 || !s.Has(Need{Kind: NeedMesh}) {
		return false
	}
	switch s.Proxy.Service.Kind {
	case catalog.KindTerminatingGateway:
		return s.Has(s.linksNeed())
	case catalog.KindMeshGateway:
		return s.Has(Need{Kind: NeedServices}) && s.Has(resolversNeed)
	case catalog.KindIngressGateway:
		return s.Has(s.gatewayEntryNeed()) && s.Has(s.linksNeed()) && (s.Leaf() != nil || len(s.Upstreams) == 0)
	case catalog.KindAPIGateway:
		return s.Has(s.gatewayEntryNeed()) && s.Has(s.boundNeed()) && (s.Leaf() != nil || len(s.Upstreams) == 0)
	}
	return false
}

// forServers reports whether a mesh gateway leads peers to the servers.
func (s *Snapshot) forServers() bool {
	m := s.Mesh()
	return m != nil && m.Peering != nil && m.Peering.PeerThroughMeshGateways
}

// serversNeed is the need of this cluster's servers.
var serversNeed = Need{Kind: NeedPlain, Service: catalog.ServerServiceName}

// Servers returns the servers that a mesh gateway leads peers to, nil when it leads to none.
func (s *Snapshot) Servers() *catalog.InstancesReply {
	if !s.forServers() {
		return nil
	}
	r, _ := s.Answer(serversNeed).(*catalog.InstancesReply)
	return r
}

var resolversNeed = Need{Kind: NeedEntries, Entry: entry.KindServiceResolver}

func entryNeed(kind entry.Kind, name string) Need {
	return Need{Kind: NeedEntry, Entry: kind, Service: name}
}

func linkLeafNeed(service string) Need { return Need{Kind: NeedLeaf, Service: service} }

func (s *Snapshot) linksNeed() Need { return Need{Kind: NeedLinks, Service: s.Proxy.Service.Service} }

func (s *Snapshot) gatewayEntryNeed() Need {
	return entryNeed(entry.Kind(s.Proxy.Service.Kind), s.Proxy.Service.Service)
}

func (s *Snapshot) boundNeed() Need {
	return entryNeed(entry.KindBoundAPIGateway, s.Proxy.Service.Service)
}

// subsetNeeds returns the needs of the instances of a service and of its subsets, of kind NeedInstances or NeedPlain.
func (s *Snapshot) subsetNeeds(kind NeedKind, service string, r *entry.ServiceResolver) []Need {
	needs := []Need{{Kind: kind, Service: service}}
	if r != nil {
		for _, name := range sortedNames(r.Subsets) {
			needs = append(needs, Need{Kind: kind, Service: service, Filter: r.Subsets[name].Filter})
		}
	}
	return needs
}

// leafHosts returns the DNS names the certificate of an ingress gateway is to carry, separated by spaces; none unless
// one of its listeners shows that certificate.
func (s *Snapshot) leafHosts() string {
	e, _ := s.GatewayEntry().(*entry.IngressGateway)
	if e == nil {
		return ""
	}
	uses := e.TLS.Enabled
	for i := range e.Listeners {
		uses = uses || e.Listeners[i].TLS != nil && e.Listeners[i].TLS.Enabled
	}
	if !uses {
		return ""
	}
	domain := strings.Trim(cmp.Or(s.Proxy.Domain, "consul."), ".")
	hosts := append([]string{"*.ingress." + domain, "*.ingress." + s.Proxy.Datacenter + "." + domain}, e.Hosts()...)
	return strings.Join(hosts, " ")
}

// GatewayEntry returns the entry of a gateway's own kind and name, nil when there is none.
func (s *Snapshot) GatewayEntry() entry.Entry {
	if !s.isGateway() {
		return nil
	}
	return s.entry(s.gatewayEntryNeed())
}

// BoundGateway returns what the leader found out about an API gateway, nil when there is nothing.
func (s *Snapshot) BoundGateway() *entry.BoundAPIGateway {
	e, _ := s.entry(s.boundNeed()).(*entry.BoundAPIGateway)
	return e
}

// LinkLeaf returns the certificate of a service behind a terminating gateway, nil while it is not known.
func (s *Snapshot) LinkLeaf(service string) *ca.Leaf {
	l, _ := s.Answer(linkLeafNeed(service)).(*ca.Leaf)
	return l
}

// LinkIntentions returns the intentions about a service behind a terminating gateway, nil while they are not known.
func (s *Snapshot) LinkIntentions(service string) *intention.MatchReply {
	m, _ := s.Answer(Need{Kind: NeedIntentions, Service: service}).(*intention.MatchReply)
	return m
}

// Linked reports whether everything is known that a service behind a terminating gateway is served by.
func (s *Snapshot) Linked(service string) bool {
	return s.LinkLeaf(service) != nil && s.LinkIntentions(service) != nil && s.Has(entryNeed(entry.KindServiceResolver, service)) &&
		s.Has(entryNeed(entry.KindServiceDefaults, service)) && s.Has(entryNeed(entry.KindProxyDefaults, entry.ProxyDefaultsName))
}

// Resolver returns the resolver of a service behind a terminating gateway, nil when there is none.
func (s *Snapshot) Resolver(service string) *entry.ServiceResolver {
	e, _ := s.entry(entryNeed(entry.KindServiceResolver, service)).(*entry.ServiceResolver)
	return e
}

// Resolvers returns all resolvers by name, for a mesh gateway.
func (s *Snapshot) Resolvers() map[string]*entry.ServiceResolver {
	r, _ := s.Answer(resolversNeed).(*entry.ListReply)
	if r == nil {
		return nil
	}
	out := make(map[string]*entry.ServiceResolver, len(r.Entries))
	for _, a := range r.Entries {
		if e, ok := a.Entry.(*entry.ServiceResolver); ok {
			out[e.Name] = e
		}
	}
	return out
}

// Entry implements chain.Entries for the defaults of services and proxies that the snapshot knows.
func (s *Snapshot) Entry(kind entry.Kind, name string) entry.Entry {
	return s.entry(entryNeed(kind, name))
}

// Plain returns the instances of a service, those that a filter keeps, whether they are in the mesh or not; nil while
// they are not known.
func (s *Snapshot) Plain(service, filter string) *catalog.InstancesReply {
	r, _ := s.Answer(Need{Kind: NeedPlain, Service: service, Filter: filter}).(*catalog.InstancesReply)
	return r
}

// Local returns the mesh-capable instances of a service here, those that a filter keeps; nil while they are not known.
func (s *Snapshot) Local(service, filter string) *catalog.InstancesReply {
	r, _ := s.Answer(Need{Kind: NeedInstances, Service: service, Filter: filter}).(*catalog.InstancesReply)
	return r
}
