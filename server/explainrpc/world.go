package explainrpc

import (
	"maps"
	"reflect"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
)

// lookups find instances as the calls about them do.
var lookups = catalogrpc.Config{Resolve: configrpc.Resolve, LinkedGateways: configrpc.LinkedGateways}

// NewWorld returns the state that v reads as package explain sees it. Proxies that were registered had the central settings
// of registered merged in, which may be v itself.
func NewWorld(v, registered *state.View) explain.World { return &world{v, registered} }

type world struct{ v, registered *state.View }

func (w *world) Entry(kind entry.Kind, name string) entry.Entry { return w.v.Entry(kind, name) }

func (w *world) List(kind entry.Kind) []entry.Entry {
	_, all := w.v.Entries(kind)
	return all
}

func (w *world) Mesh(service string) []*catalog.Instance {
	_, all := lookups.Candidates(w.v, &catalog.InstancesRequest{Service: service, Connect: true})
	return all
}

// Central returns a proxy with the central settings of now: agents register proxies with those of then, so what is equal
// to them is taken for theirs.
func (w *world) Central(svc *catalog.Service) *catalog.Service {
	if w.v != w.registered {
		_, then := configrpc.Resolve(w.registered, definition.CentralRequest(svc))
		svc = without(svc, then)
	}
	_, now := configrpc.Resolve(w.v, definition.CentralRequest(svc))
	return definition.MergeCentral(svc, now)
}

// without returns a proxy without the settings that are equal to central ones.
func without(svc *catalog.Service, r *entry.Resolved) *catalog.Service {
	s := *svc
	p := &s.Proxy
	p.Config = withoutEqual(p.Config, r.Config)
	if p.Mode == r.Mode {
		p.Mode = ""
	}
	if p.MeshGateway == r.MeshGateway {
		p.MeshGateway = catalog.MeshGateway{}
	}
	if reflect.DeepEqual(p.Expose, r.Expose) {
		p.Expose = catalog.Expose{}
	}
	if p.TransparentProxy != nil && *p.TransparentProxy == r.TransparentProxy {
		p.TransparentProxy = nil
	}
	if p.AccessLogs != nil && *p.AccessLogs == r.AccessLogs {
		p.AccessLogs = nil
	}
	central := map[entry.UpstreamID]map[string]any{}
	for _, u := range r.Upstreams {
		central[u.UpstreamID] = u.Config
	}
	p.Upstreams = nil
	for _, u := range svc.Proxy.Upstreams {
		if u.CentrallyConfigured {
			continue // those of now are put in again
		}
		config, ok := central[entry.UpstreamID{Name: u.DestinationName, Peer: u.DestinationPeer}]
		if !ok {
			config = central[entry.UpstreamID{Name: entry.Wildcard}]
		}
		u.Config = withoutEqual(u.Config, config)
		if g, _ := config["mesh_gateway"].(map[string]any); g != nil && g["mode"] == u.MeshGateway.Mode {
			u.MeshGateway = catalog.MeshGateway{}
		}
		p.Upstreams = append(p.Upstreams, u)
	}
	return &s
}

// withoutEqual returns a copy of a map without what another has, too. Numbers are equal whatever their type.
func withoutEqual(m, other map[string]any) map[string]any {
	out := maps.Clone(m)
	maps.DeleteFunc(out, func(k string, v any) bool {
		o, ok := other[k]
		return ok && (reflect.DeepEqual(v, o) || sameNumber(v, o))
	})
	return out
}

func sameNumber(a, b any) bool {
	x, ok := number(a)
	y, too := number(b)
	return ok && too && x == y
}

func number(v any) (float64, bool) {
	switch n := reflect.ValueOf(v); {
	case n.CanInt():
		return float64(n.Int()), true
	case n.CanUint():
		return float64(n.Uint()), true
	case n.CanFloat():
		return n.Float(), true
	}
	return 0, false
}

func (w *world) Answer(n mesh.Need) any {
	if n.Datacenter != "" || n.Peer != "" {
		return nil
	}
	switch n.Kind {
	case mesh.NeedInstances:
		return instances(w.Mesh(n.Service), n.Filter)
	case mesh.NeedPlain:
		_, all := w.v.Instances(n.Service, false)
		return instances(all, n.Filter)
	case mesh.NeedGateways:
		_, all := w.v.InstancesOfKind(catalog.KindMeshGateway)
		return instances(all, n.Filter)
	case mesh.NeedLinks:
		_, links := configrpc.LinkedServices(w.v, n.Service)
		return &entry.GatewayServicesReply{Services: links}
	case mesh.NeedServices:
		r := &catalog.ServicesReply{Services: map[string][]string{}}
		_, all := w.v.AllInstances()
		for i := range all {
			r.Services[i.Service.Service] = i.Service.Tags
		}
		return r
	}
	return nil
}

// instances returns those that a filter keeps; one that can not be compiled keeps none.
func instances(all []*catalog.Instance, expression string) any {
	keep, err := filter.Compile[*catalog.Instance](expression)
	if err != nil {
		return &catalog.InstancesReply{Instances: []*catalog.Instance{}}
	}
	return &catalog.InstancesReply{Instances: keep.Select(all)}
}
