package xds_test

import (
	"encoding/json"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/sarnmesh/sarn/connect/xds"
)

// Whatever public listener a user writes, each of its chains asks for certificates and applies the intentions first; or
// there is no listener.
func FuzzCustomPublicListener(f *testing.F) {
	const kind, tcp = `"@type":"type.googleapis.com/envoy.config.listener.v3.Listener"`,
		`{"name":"envoy.filters.network.tcp_proxy","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"x","cluster":"local_app"}}`
	const hcm = `{"name":"envoy.http_connection_manager","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"x","route_config":{}}}`
	for _, text := range []string{
		`{`, `{}`, `{` + kind + `}`, `{"@type":"type.googleapis.com/envoy.config.cluster.v3.Cluster"}`,
		`{` + kind + `,"filter_chains":[{},{"filters":[` + tcp + `]}]}`,
		`{` + kind + `,"filter_chains":[{"filters":[` + hcm + `]},{"filters":[` + tcp + `]}],"default_filter_chain":{"filters":[` + tcp + `]}}`,
		`{` + kind + `,"default_filter_chain":{"transport_socket":{"name":"raw"},"filters":[` + tcp + `,` + hcm + `]}}`,
	} {
		f.Add(text, "tcp")
		f.Add(text, "http")
	}
	f.Fuzz(func(t *testing.T, text, protocol string) {
		proxy, err := json.Marshal(map[string]any{"Service": map[string]any{
			"Kind": "connect-proxy", "ID": "p", "Port": 1,
			"Proxy": map[string]any{"DestinationServiceName": "web", "Config": map[string]any{"envoy_public_listener_json": text, "protocol": protocol}},
		}})
		if err != nil || text == "" {
			return
		}
		r, err := xds.Compile(snapshotOf(t, map[string][]byte{"in/proxy.json": proxy}), xds.Envoy)
		if err != nil {
			return
		}
		for name, x := range r.Of(xds.Listener) {
			l := new(listenerv3.Listener)
			if err := x.Body.UnmarshalTo(l); err != nil {
				t.Fatal(err)
			}
			if l.Name != name {
				t.Errorf("listener %q goes by the name %q", l.Name, name)
			}
			chains := l.FilterChains
			if l.DefaultFilterChain != nil {
				chains = append(chains, l.DefaultFilterChain)
			}
			if len(chains) == 0 {
				t.Error("a public listener without filter chains")
			}
			for _, fc := range chains {
				tls := new(tlsv3.DownstreamTlsContext)
				if err := fc.TransportSocket.GetTypedConfig().UnmarshalTo(tls); err != nil || !tls.RequireClientCertificate.GetValue() {
					t.Errorf("a chain without mutual TLS: %v, %v", fc.TransportSocket, err)
				}
				if !authorizes(t, fc) {
					t.Errorf("a chain without intentions: %v", fc.Filters)
				}
			}
		}
	})
}

// authorizes reports whether a chain begins with the intentions, or the first connection manager does.
func authorizes(t *testing.T, fc *listenerv3.FilterChain) bool {
	t.Helper()
	if len(fc.Filters) > 0 {
		first := new(netrbacv3.RBAC)
		if fc.Filters[0].GetTypedConfig().MessageIs(first) && fc.Filters[0].GetTypedConfig().UnmarshalTo(first) == nil && first.StatPrefix == "connect_authz" {
			return true
		}
	}
	m := new(hcmv3.HttpConnectionManager)
	if len(fc.Filters) == 0 || !fc.Filters[0].GetTypedConfig().MessageIs(m) {
		return false // what comes before could end the connection on its own
	}
	if err := fc.Filters[0].GetTypedConfig().UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	return len(m.HttpFilters) > 0 && m.HttpFilters[0].Name == "envoy.filters.http.rbac"
}
