package entry

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
)

// Resolve computes the central settings of a service (spec/connect.md section 11.1): those of every proxy, which may be
// nil, and over them those of the service, which may be nil. upstream returns the service-defaults of another service,
// nil when there are none.
func Resolve(req *ResolvedRequest, all *ProxyDefaults, own *ServiceDefaults, upstream func(name string) *ServiceDefaults) *Resolved {
	r := &Resolved{}
	if all != nil {
		r.Config = maps.Clone(all.Config)
		r.Mode, r.MeshGateway, r.MutualTLSMode = all.Mode, all.MeshGateway, all.MutualTLSMode
		r.TransparentProxy, r.Expose, r.AccessLogs = all.TransparentProxy, all.Expose, all.AccessLogs
		r.EnvoyExtensions = slices.Clone(all.EnvoyExtensions)
	}
	if own != nil {
		r.overlay(own)
	}
	var names []UpstreamID
	var settings *UpstreamConfiguration
	if own != nil {
		settings = own.UpstreamConfig
	}
	mode := cmp.Or(req.ProxyMode, r.Mode)
	if len(req.Upstreams) == 0 && mode != ModeTransparent {
		return r
	}
	names = append(names, req.Upstreams...)
	if settings != nil {
		for _, o := range settings.Overrides {
			names = append(names, UpstreamID{o.Name, o.Peer})
		}
		if settings.Defaults != nil {
			names = append(names, UpstreamID{Name: Wildcard})
		}
	}
	slices.SortFunc(names, func(a, b UpstreamID) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Peer, b.Peer))
	})
	for _, id := range slices.Compact(names) {
		if config := resolveUpstream(id, req, all, settings, upstream); len(config) != 0 {
			r.Upstreams = append(r.Upstreams, ResolvedUpstream{id, config})
		}
	}
	return r
}

// overlay puts the settings of a service over those of every proxy.
func (r *Resolved) overlay(own *ServiceDefaults) {
	set := func(key string, value any) {
		if r.Config == nil {
			r.Config = map[string]any{}
		}
		r.Config[key] = value
	}
	if own.Protocol != "" {
		set("protocol", own.Protocol)
	}
	if own.BalanceInboundConnections != "" {
		set("balance_inbound_connections", own.BalanceInboundConnections)
	}
	for _, n := range []struct {
		key   string
		value int
	}{
		{"max_inbound_connections", own.MaxInboundConnections},
		{"local_connect_timeout_ms", own.LocalConnectTimeoutMs},
		{"local_request_timeout_ms", own.LocalRequestTimeoutMs},
		{"max_request_headers_kb", int(valueOf(own.MaxRequestHeadersKB))},
	} {
		if n.value > 0 {
			set(n.key, n.value)
		}
	}
	r.Mode = cmp.Or(own.Mode, r.Mode)
	r.MutualTLSMode = cmp.Or(own.MutualTLSMode, r.MutualTLSMode)
	r.MeshGateway.Mode = cmp.Or(own.MeshGateway.Mode, r.MeshGateway.Mode)
	r.TransparentProxy.OutboundListenerPort = cmp.Or(own.TransparentProxy.OutboundListenerPort, r.TransparentProxy.OutboundListenerPort)
	r.TransparentProxy.DialedDirectly = own.TransparentProxy.DialedDirectly || r.TransparentProxy.DialedDirectly
	r.Expose.Checks = own.Expose.Checks || r.Expose.Checks
	if len(own.Expose.Paths) != 0 {
		r.Expose.Paths = own.Expose.Paths
	}
	r.EnvoyExtensions = append(r.EnvoyExtensions, own.EnvoyExtensions...)
	r.Meta, r.Destination = own.Meta, own.Destination
}

// resolveUpstream computes the settings for one upstream.
func resolveUpstream(id UpstreamID, req *ResolvedRequest, all *ProxyDefaults, settings *UpstreamConfiguration, upstream func(string) *ServiceDefaults) map[string]any {
	config := map[string]any{}
	gateway := func(g catalog.MeshGateway) {
		if g.Mode != "" {
			config["mesh_gateway"] = map[string]any{"mode": g.Mode}
		}
	}
	if all != nil {
		if p := all.Protocol(); p != "" {
			config["protocol"] = p
		}
		gateway(all.MeshGateway)
	}
	if id.Peer == "" && id.Name != Wildcard {
		if d := upstream(id.Name); d != nil {
			if d.Protocol != "" {
				config["protocol"] = d.Protocol
			}
			gateway(d.MeshGateway)
		}
	}
	if settings != nil && settings.Defaults != nil {
		settings.Defaults.into(config)
		gateway(settings.Defaults.MeshGateway)
	}
	gateway(req.MeshGateway)
	if settings != nil {
		for _, o := range settings.Overrides {
			if o.Name == id.Name && o.Peer == id.Peer {
				o.into(config)
				gateway(o.MeshGateway)
			}
		}
	}
	return config
}

// into writes the settings that are set, but for the mesh gateway, in the opaque form proxies know.
func (u *UpstreamSettings) into(config map[string]any) {
	for _, s := range []struct{ key, value string }{
		{"envoy_listener_json", u.EnvoyListenerJSON}, {"envoy_cluster_json", u.EnvoyClusterJSON}, {"protocol", u.Protocol},
		{"balance_outbound_connections", u.BalanceOutboundConnections},
	} {
		if s.value != "" {
			config[s.key] = s.value
		}
	}
	if u.ConnectTimeoutMs > 0 {
		config["connect_timeout_ms"] = u.ConnectTimeoutMs
	}
	if u.Limits != nil {
		config["limits"] = opaque(u.Limits)
	}
	if u.PassiveHealthCheck != nil {
		config["passive_health_check"] = opaque(u.PassiveHealthCheck)
	}
}

// opaque returns a struct in free form: what a client that reads its JSON sees.
func opaque(v any) map[string]any {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain numbers only
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		panic(err)
	}
	return m
}
