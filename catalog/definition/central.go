package definition

import (
	"maps"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
)

// Central reports whether central configuration is merged into instances of this kind.
func Central(kind string) bool { return kind == catalog.KindConnectProxy || catalog.IsGateway(kind) }

// CentralRequest returns the request for the central settings of svc (spec/connect.md section 11.1).
func CentralRequest(svc *catalog.Service) *entry.ResolvedRequest {
	req := &entry.ResolvedRequest{Service: svc.Service, ProxyMode: svc.Proxy.Mode, MeshGateway: svc.Proxy.MeshGateway}
	if svc.Kind == catalog.KindConnectProxy {
		req.Service = svc.Proxy.DestinationServiceName
	}
	for i := range svc.Proxy.Upstreams {
		if u := &svc.Proxy.Upstreams[i]; u.DestinationType != "prepared_query" {
			req.Upstreams = append(req.Upstreams, entry.UpstreamID{Name: u.DestinationName, Peer: u.DestinationPeer})
		}
	}
	return req
}

// MergeCentral returns svc with central settings merged in; what svc sets itself wins, except that extensions and the mode
// of mutual TLS are always the central ones (spec/connect.md section 11.2). It changes neither argument. Instances of other kinds than
// proxies and gateways come back as they are.
func MergeCentral(svc *catalog.Service, r *entry.Resolved) *catalog.Service {
	if r == nil || !Central(svc.Kind) {
		return svc
	}
	merged := *svc
	p := cloneProxy(svc.Proxy)
	p.Config = overlay(r.Config, p.Config)
	if p.Mode == "" {
		p.Mode = r.Mode
	}
	p.MutualTLSMode = r.MutualTLSMode
	if p.MeshGateway.Mode == "" {
		p.MeshGateway = r.MeshGateway
	}
	p.Expose.Checks = p.Expose.Checks || r.Expose.Checks
	if len(p.Expose.Paths) == 0 {
		p.Expose.Paths = slices.Clone(r.Expose.Paths)
	}
	if r.TransparentProxy != (catalog.TransparentProxy{}) {
		t := r.TransparentProxy
		if own := p.TransparentProxy; own != nil {
			if own.OutboundListenerPort != 0 {
				t.OutboundListenerPort = own.OutboundListenerPort
			}
			t.DialedDirectly = t.DialedDirectly || own.DialedDirectly
		}
		p.TransparentProxy = &t
	}
	if p.AccessLogs == nil && r.AccessLogs != (catalog.AccessLogs{}) {
		a := r.AccessLogs
		p.AccessLogs = &a
	}
	p.EnvoyExtensions = slices.Clone(r.EnvoyExtensions)
	mergeUpstreams(&p, r.Upstreams)
	merged.Proxy = p
	return &merged
}

const anyUpstream = "*"

func mergeUpstreams(p *catalog.Proxy, central []entry.ResolvedUpstream) {
	settings := make(map[entry.UpstreamID]map[string]any, len(central))
	for _, c := range central {
		settings[c.UpstreamID] = c.Config
	}
	registered := map[entry.UpstreamID]bool{}
	for i := range p.Upstreams {
		u := &p.Upstreams[i]
		if u.DestinationType == "prepared_query" {
			continue
		}
		id := entry.UpstreamID{Name: u.DestinationName, Peer: u.DestinationPeer}
		registered[id] = true
		config, ok := settings[id]
		if !ok {
			if config, ok = settings[entry.UpstreamID{Name: anyUpstream}]; !ok {
				continue
			}
		}
		config, gateway := splitGateway(config)
		own, ownGateway := splitGateway(u.Config)
		if u.DestinationPeer != "" {
			delete(config, "protocol")
		}
		u.Config = overlay(config, own)
		for _, m := range []string{ownGateway, gateway} {
			if u.MeshGateway.Mode == "" {
				u.MeshGateway.Mode = m
			}
		}
	}
	if p.Mode != "transparent" {
		return
	}
	for _, c := range central {
		if registered[c.UpstreamID] {
			continue
		}
		config, gateway := splitGateway(c.Config)
		p.Upstreams = append(p.Upstreams, catalog.Upstream{
			DestinationNamespace: "default", DestinationPartition: "default",
			DestinationName: c.Name, DestinationPeer: c.Peer, Config: overlay(config, nil),
			MeshGateway: catalog.MeshGateway{Mode: gateway}, CentrallyConfigured: true,
		})
	}
}

// splitGateway returns a copy of an upstream's settings without the mesh gateway mode, and that mode.
func splitGateway(config map[string]any) (rest map[string]any, mode string) {
	rest = maps.Clone(config)
	switch v := rest["mesh_gateway"].(type) {
	case map[string]any:
		for _, k := range []string{"mode", "Mode"} {
			if s, ok := v[k].(string); ok {
				mode = s
			}
		}
	case catalog.MeshGateway:
		mode = v.Mode
	case string:
		mode = v
	}
	delete(rest, "mesh_gateway")
	return rest, mode
}

// overlay returns the entries of both maps, those of top winning; nil when there are none.
func overlay(bottom, top map[string]any) map[string]any {
	if len(bottom)+len(top) == 0 {
		return nil
	}
	m := make(map[string]any, len(bottom)+len(top))
	maps.Copy(m, bottom)
	maps.Copy(m, top)
	return m
}
