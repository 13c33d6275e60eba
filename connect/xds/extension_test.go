package xds_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/sarnmesh/sarn/connect/xds"
)

// withExtension returns the resources of a proxy with one extension.
func withExtension(t testing.TB, extension map[string]any, protocol string) (*xds.Resources, error) {
	t.Helper()
	proxy, err := json.Marshal(map[string]any{"Service": map[string]any{"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": map[string]any{
		"DestinationServiceName": "web", "Config": map[string]any{"protocol": protocol}, "EnvoyExtensions": []any{extension},
		"Upstreams": []any{map[string]any{"DestinationName": "db", "LocalBindPort": 2}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return xds.Compile(snapshotOf(t, map[string][]byte{"in/proxy.json": proxy, "in/instances.json": []byte(`{"db": []}`)}), xds.Envoy)
}

func TestVersionConstraintsOfExtensions(t *testing.T) {
	lua := map[string]any{"Listener": "inbound", "Script": "x"}
	for constraint, want := range map[string]bool{
		"": true, ">= 1.16.0": true, ">= 1.16.0, < 1.20": false, "= 1.21.0": true, "1.21": true, "!= 1.21": false, "> 1.21.0": false, "<= 1.21.0": true,
		"~> 1.20": true, "~> 1.20.3": false, "~> 1.21.0": true, "~> 2": false, "newest": false, ">> 1": false, "1.2.3.4": false, ">= 1.16.0-beta1": true,
	} {
		r, err := withExtension(t, map[string]any{"Name": "builtin/lua", "Arguments": lua, "ConsulVersion": constraint}, "http")
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(section(t, r, nil, "listener/public_listener:0.0.0.0:1.json"), "filters.http.lua"); got != want {
			t.Errorf("constraint %q: applied %t, want %t", constraint, got, want)
		}
	}
}

// Whatever the arguments of an extension, it is applied as a whole or not at all, and what is not a property override
// leaves the identity and the intentions of the public listener alone.
func FuzzExtensionArguments(f *testing.F) {
	names := []string{"lua", "ext-authz", "property-override", "otel-access-logging", "wasm"}
	for _, text := range []string{
		`{"Listener": "inbound", "Script": "x"}`,
		`{"ListenerType": "outbound", "InsertOptions": {"Location": "AfterLastMatch", "FilterName": "envoy.filters.http.rbac"}, "Config": {"GrpcService": {"Target": {"URI": "127.0.0.1:1"}}}}`,
		`{"Config": {"HttpService": {"Target": {"Service": {"Name": "db"}}, "AuthorizationResponse": {"AllowedClientHeaders": [{"Prefix": "x"}]}}, "StatusOnError": 1}}`,
		`{"Config": {"GrpcService": {"Target": {"URI": "::1:1", "Timeout": "1s"}}, "Attributes": {"a": 1.5}, "Body": true}}`,
		`{"Patches": [{"ResourceFilter": {"ResourceType": "listener", "TrafficDirection": "inbound"}, "Op": "add", "Path": "/socket_options/x", "Value": {"a": [1]}}]}`,
		`{"Patches": [{"ResourceFilter": {"ResourceType": "cluster", "TrafficDirection": "outbound", "Services": [{"Name": "db"}]}, "Op": "remove", "Path": "/transport_socket/typed_config/value"}]}`,
		`{"Protocol": "http", "ListenerType": "inbound", "PluginConfig": {"VmConfig": {"Code": {"Local": {"Filename": "x"}}}}}`,
	} {
		for i := range names {
			f.Add(i, text, "http")
			f.Add(i, text, "tcp")
		}
	}
	f.Fuzz(func(t *testing.T, which int, text, protocol string) {
		var arguments map[string]any
		if json.Unmarshal([]byte(text), &arguments) != nil {
			return
		}
		name := names[uint(which)%uint(len(names))]
		r, err := withExtension(t, map[string]any{"Name": "builtin/" + name, "Arguments": arguments}, protocol)
		if err != nil {
			t.Fatalf("an extension that is not required: %v", err)
		}
		l := new(listenerv3.Listener)
		if err := r.Of(xds.Listener)["public_listener:0.0.0.0:1"].Body.UnmarshalTo(l); err != nil {
			t.Fatal(err)
		}
		if name == "property-override" {
			return
		}
		for _, fc := range l.FilterChains {
			tls := new(tlsv3.DownstreamTlsContext)
			if err := fc.TransportSocket.GetTypedConfig().UnmarshalTo(tls); err != nil || !tls.RequireClientCertificate.GetValue() {
				t.Errorf("a chain without mutual TLS: %v", err)
			}
			if !strings.Contains(fmt.Sprint(fc), "rbac") {
				t.Errorf("a chain without intentions: %v", fc)
			}
		}
	})
}
