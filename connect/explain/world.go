package explain

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/xds"
)

// A World is the state that requests are explained in. All its answers are of one moment, and shared.
type World interface {
	// Entry returns a configuration entry, nil when there is none.
	Entry(kind entry.Kind, name string) entry.Entry
	// List returns the entries of a kind, ordered by name.
	List(kind entry.Kind) []entry.Entry
	// Mesh returns the instances through which the mesh reaches a service: sidecars, native instances, terminating gateways.
	Mesh(service string) []*catalog.Instance
	// Central returns a proxy with the central settings of its service.
	Central(*catalog.Service) *catalog.Service
	// Answer answers needs about instances, links of gateways, names and prepared queries; nil for what is not known.
	Answer(mesh.Need) any
}

// Config is what does not change with the state.
type Config struct {
	Datacenter  string
	TrustDomain string
	Default     intention.Default // of intentions
	// MaySee reports whether the caller may read a service, and MayRead whether it may read the intentions of one. Nil
	// hides nothing.
	MaySee, MayRead func(service string) bool
	// MayShow reports whether the caller may see an instance. Nil hides none.
	MayShow func(*catalog.Instance) bool
}

func (c *Config) mayShow(i *catalog.Instance) bool { return c.MayShow == nil || c.MayShow(i) }

// side tells which instance decides, as far as the caller may know.
func (c *Config) side(service, kind string, i *catalog.Instance) Side {
	s := Side{Service: service, Kind: kind}
	if c.mayShow(i) {
		s.Node, s.Proxy = i.Node.Node, i.Service.ID
	}
	return s
}

func (c *Config) maySee(service string) bool  { return c.MaySee == nil || c.MaySee(service) }
func (c *Config) mayRead(service string) bool { return c.MayRead == nil || c.MayRead(service) }

// errIncomplete reports that too little is known of a proxy to configure it.
var errIncomplete = errors.New("too little is known to configure the proxy")

// fill answers what a snapshot needs, until it needs no more. The intentions given, unless nil, take the place of those
// about the proxy's service.
func (e *evaluation) fill(s *mesh.Snapshot, instead []*intention.Intention) (*mesh.Snapshot, error) {
	for {
		answers := map[mesh.Need]any{}
		for _, n := range s.Needs() {
			if s.Has(n) {
				continue
			}
			v, err := e.answer(n, s.Proxy, instead)
			if err != nil {
				return nil, err
			}
			if v != nil {
				answers[n] = v
			}
		}
		if len(answers) == 0 {
			return s, nil
		}
		s = s.With(answers)
	}
}

// answer answers a need, with nil for what is not known.
func (e *evaluation) answer(n mesh.Need, proxy *mesh.Registration, instead []*intention.Intention) (any, error) {
	switch n.Kind {
	case mesh.NeedRoots:
		// Certificates decide nothing here; the built-in proxy gets them as secrets.
		return &ca.RootsReply{TrustDomain: e.cfg.TrustDomain, ActiveRootID: "root", Roots: []*ca.Root{{ID: "root", RootCert: "ROOT", Active: true}}}, nil
	case mesh.NeedLeaf:
		return &ca.Leaf{CertPEM: "LEAF", PrivateKeyPEM: "KEY", Service: n.Service}, nil
	case mesh.NeedMesh:
		return e.entryReply(entry.KindMesh, entry.MeshName), nil
	case mesh.NeedEntry:
		return e.entryReply(n.Entry, n.Service), nil
	case mesh.NeedEntries:
		r := &entry.ListReply{}
		for _, x := range e.world.List(n.Entry) {
			r.Entries = append(r.Entries, entry.Any{Entry: x})
		}
		return r, nil
	case mesh.NeedIntentions:
		list := e.intentions(n.Service)
		if instead != nil && (n.Service == proxy.Identity() || proxy.Service.Kind != catalog.KindConnectProxy) {
			list = instead
		}
		return &intention.MatchReply{Matches: [][]*intention.Intention{list}}, nil
	case mesh.NeedChain:
		dc := n.Datacenter
		if dc == "" {
			dc = e.cfg.Datacenter
		}
		c, err := chain.Compile(chain.Request{Service: n.Service, Datacenter: dc, TrustDomain: e.cfg.TrustDomain, Overrides: n.Overrides}, e.world)
		if err != nil {
			return nil, err
		}
		return &chain.GetReply{Chain: c}, nil
	case mesh.NeedCallable:
		return &intention.CallableReply{}, nil // the upstream in question is listed
	case mesh.NeedDatacenters:
		return &catalog.DatacentersReply{Datacenters: []string{e.cfg.Datacenter}}, nil
	case mesh.NeedLinks:
		// Other services behind the gateway decide nothing about this one.
		all, _ := e.world.Answer(n).(*entry.GatewayServicesReply)
		one := &entry.GatewayServicesReply{}
		for _, l := range allLinks(all) {
			if strings.EqualFold(l.Service.Name, e.behind) {
				one.Services = append(one.Services, l)
			}
		}
		return one, nil
	case mesh.NeedInstances, mesh.NeedGateways:
		if v := e.world.Answer(n); v != nil {
			return v, nil
		}
		return &catalog.InstancesReply{}, nil
	}
	return e.world.Answer(n), nil
}

func allLinks(r *entry.GatewayServicesReply) []entry.GatewayService {
	if r == nil {
		return nil
	}
	return r.Services
}

func (e *evaluation) intentions(service string) []*intention.Intention {
	own, _ := e.world.Entry(entry.KindServiceIntentions, service).(*entry.ServiceIntentions)
	all, _ := e.world.Entry(entry.KindServiceIntentions, entry.Wildcard).(*entry.ServiceIntentions)
	return intention.To(own, all)
}

func (e *evaluation) entryReply(kind entry.Kind, name string) *entry.GetReply {
	r := &entry.GetReply{}
	x := e.world.Entry(kind, name)
	if p, ok := x.(*entry.JWTProvider); ok {
		x = e.tokens.provider(p)
	}
	if x == nil {
		r.NotFound = true
	} else {
		r.Entry = entry.Any{Entry: x}
	}
	return r
}

// compile makes what a proxy would be told.
func (e *evaluation) compile(r *mesh.Registration, instead []*intention.Intention) (*mesh.Snapshot, *xds.Resources, error) {
	s, err := e.fill(mesh.New(r), instead)
	if err != nil {
		return nil, nil, err
	}
	if !s.Complete() {
		return nil, nil, errIncomplete
	}
	out, err := xds.Compile(s, xds.Own)
	return s, out, err
}

// sidecar returns the registration of a service's proxy, with its central settings, and which one it is. Without any, one
// is assumed.
func (e *evaluation) sidecar(service string) (svc *catalog.Service, node string, side Side) {
	for _, i := range e.world.Mesh(service) {
		if i.Service.Kind == catalog.KindConnectProxy {
			return e.world.Central(i.Service), i.Node.Node, e.cfg.side(service, kindSidecar, i)
		}
	}
	return e.world.Central(&catalog.Service{
		Kind: catalog.KindConnectProxy, ID: service + "-sidecar-proxy", Service: service + "-sidecar-proxy", Port: assumedPort,
		Proxy: catalog.Proxy{DestinationServiceName: service, LocalServicePort: assumedPort + 1},
	}), "", Side{Service: service, Kind: kindSidecar, Assumed: true}
}

const (
	kindSidecar = "sidecar"
	kindNative  = "native"
	assumedPort = 20000
)

// source returns the registration of the source's sidecar with an upstream to the destination that has an address to
// listen at, and the ID of the upstream.
func (e *evaluation) source(x *Explanation) (*mesh.Registration, string, error) {
	r := &e.req
	svc, node, side := e.sidecar(r.From)
	x.Source = side
	switch {
	case e.world.Entry(entry.KindIngressGateway, r.From) != nil || e.world.Entry(entry.KindAPIGateway, r.From) != nil:
		x.note("%s is a gateway: which of its listeners, hosts and routes leads to %s is not looked at", r.From, r.To)
	case side.Assumed:
		x.note("%s has no sidecar registered; one with the central settings is assumed", r.From)
	}
	svc = clone(svc)
	p := &svc.Proxy
	at := slices.IndexFunc(p.Upstreams, func(u catalog.Upstream) bool {
		return isTo(&u, r.To) && bound(&u) && (r.Port == 0 || u.LocalBindPort == r.Port)
	})
	if at < 0 && r.Port != 0 {
		return nil, "", fmt.Errorf("the sidecar of %s has no upstream %s at port %d", r.From, r.To, r.Port)
	}
	if at < 0 {
		// The settings are those that the central configuration has for the service, or for every one.
		u := catalog.Upstream{DestinationName: r.To}
		find := func(name string) int {
			return slices.IndexFunc(p.Upstreams, func(u catalog.Upstream) bool { return isTo(&u, name) })
		}
		switch i := find(r.To); {
		case i >= 0:
			u = p.Upstreams[i]
			p.Upstreams = slices.Delete(p.Upstreams, i, i+1)
		default:
			if i := find(entry.Wildcard); i >= 0 {
				u.MeshGateway = p.Upstreams[i].MeshGateway
				u.Config = map[string]any{}
				for k, v := range p.Upstreams[i].Config {
					if k != "protocol" {
						u.Config[k] = v
					}
				}
			}
		}
		u.LocalBindPort = assumedPort + 2
		p.Upstreams = append(p.Upstreams, u)
		at = len(p.Upstreams) - 1
		if p.Mode != entry.ModeTransparent {
			if !side.Assumed {
				x.note("the sidecar of %s has no upstream %s: the application can not reach it there; one is assumed", r.From, r.To)
			}
			svc = e.world.Central(svc)
			p = &svc.Proxy
		}
	}
	// Other upstreams decide nothing about this one.
	p.Upstreams = []catalog.Upstream{p.Upstreams[at]}
	p.Upstreams[0].CentrallyConfigured = false
	return &mesh.Registration{
		Node: node, Datacenter: e.cfg.Datacenter, Service: svc, DefaultAllow: e.cfg.Default.Allow,
	}, mesh.UpstreamID(&p.Upstreams[0]), nil
}

func isTo(u *catalog.Upstream, service string) bool {
	return u.DestinationName == service && u.DestinationPeer == "" && (u.DestinationType == "" || u.DestinationType == mesh.DestinationService)
}

func bound(u *catalog.Upstream) bool { return u.LocalBindPort > 0 || u.LocalBindSocketPath != "" }

// clone returns a copy whose list of upstreams is its own.
func clone(s *catalog.Service) *catalog.Service {
	c := *s
	c.Proxy.Upstreams = slices.Clone(s.Proxy.Upstreams)
	return &c
}

func (x *Explanation) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(x.Notes, text) {
		x.Notes = append(x.Notes, text)
	}
}

func (x *Explanation) problem(format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	if !slices.Contains(x.Problems, text) {
		x.Problems = append(x.Problems, text)
	}
}
