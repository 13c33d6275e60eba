package catalog_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
)

func TestServiceStructureRules(t *testing.T) {
	sidecar := func(change func(*catalog.Service)) *catalog.Service {
		s := &catalog.Service{Kind: catalog.KindConnectProxy, Service: "p", Port: 1, Proxy: catalog.Proxy{DestinationServiceName: "web"}}
		change(s)
		return s
	}
	upstreams := func(u ...catalog.Upstream) *catalog.Service {
		return sidecar(func(s *catalog.Service) { s.Proxy.Upstreams = u })
	}
	expose := func(p ...catalog.ExposePath) *catalog.Service {
		return sidecar(func(s *catalog.Service) { s.Proxy.Expose.Paths = p })
	}
	tests := []struct {
		name string
		in   *catalog.Service
		want []string
	}{
		{"typical", &catalog.Service{Service: "web"}, nil},
		{"unknown kind", &catalog.Service{Kind: "odd"}, nil},
		{"zone without region", &catalog.Service{Locality: &catalog.Locality{Zone: "z"}}, []string{"zone cannot be set without region"}},
		{"sidecar", sidecar(func(*catalog.Service) {}), nil},
		{"sidecar on a socket", sidecar(func(s *catalog.Service) { s.Port, s.SocketPath = 0, "/s" }), nil},
		{"all problems at once", &catalog.Service{Kind: catalog.KindConnectProxy}, []string{"Port or SocketPath must be set for a connect-proxy", "Proxy.DestinationServiceName must be non-empty for Connect proxy services"}},
		{"wildcard destination", sidecar(func(s *catalog.Service) { s.Proxy.DestinationServiceName = "*" }), []string{"Proxy.DestinationServiceName must not be a wildcard for Connect proxy services"}},
		{"native sidecar", sidecar(func(s *catalog.Service) { s.Connect.Native = true }), []string{"A Proxy cannot also be Connect Native, only typical services"}},
		{"native without port", &catalog.Service{Connect: catalog.Connect{Native: true}}, []string{"Port or SocketPath must be set for a Connect native service."}},
		{"upstream type", upstreams(catalog.Upstream{DestinationType: "x", DestinationName: "a", LocalBindPort: 1}), []string{`unknown upstream destination type: "x"`}},
		{"upstream without name", upstreams(catalog.Upstream{LocalBindPort: 1}), []string{"upstream destination name cannot be empty"}},
		{"upstream wildcard", upstreams(catalog.Upstream{DestinationName: "*", LocalBindPort: 1}), []string{"upstream destination name cannot be a wildcard"}},
		{"upstream peer and datacenter", upstreams(catalog.Upstream{DestinationName: "a", DestinationPeer: "p", Datacenter: "d", LocalBindPort: 1}), []string{"upstream cannot specify both destination peer and datacenter"}},
		{"upstream without port", upstreams(catalog.Upstream{DestinationName: "a"}), []string{"upstream local bind port or local socket path must be defined and nonzero"}},
		{"upstream port and socket", upstreams(catalog.Upstream{DestinationName: "a", LocalBindPort: 1, LocalBindSocketPath: "/s"}), []string{"only one of upstream local bind port or local socket path can be defined and nonzero"}},
		{"upstream twice", upstreams(catalog.Upstream{DestinationName: "a", LocalBindPort: 1}, catalog.Upstream{DestinationType: "service", DestinationName: "a", LocalBindPort: 2}), []string{`upstreams cannot contain duplicates of [type="service", name="a", partition="", namespace="", peer="", datacenter=""]`}},
		{"port twice", upstreams(catalog.Upstream{DestinationName: "a", LocalBindPort: 1}, catalog.Upstream{DestinationName: "b", LocalBindAddress: "127.0.0.1", LocalBindPort: 1}), []string{`upstreams cannot contain duplicates by local bind address and port or unix path; "127.0.0.1:1" is specified twice`}},
		{"same port, other address", upstreams(catalog.Upstream{DestinationName: "a", LocalBindPort: 1}, catalog.Upstream{DestinationName: "b", LocalBindAddress: "127.0.0.2", LocalBindPort: 1}), nil},
		{"expose without path and port", expose(catalog.ExposePath{}), []string{"expose.paths: empty path exposed", "expose.paths: invalid listener port: 0"}},
		{"expose port twice", expose(catalog.ExposePath{Path: "/a", ListenerPort: 1}, catalog.ExposePath{Path: "/b", ListenerPort: 1}), []string{"expose.paths: duplicate listener ports exposed"}},
		{"expose protocol", expose(catalog.ExposePath{Path: "/a", ListenerPort: 1, Protocol: "tcp"}), []string{"protocol 'tcp' not supported for path: /a, must be in: [http http2]"}},
		{"settings as deep as may be", sidecar(func(s *catalog.Service) { s.Proxy.Config = deep(catalog.MaxDepth) }), nil},
		{"deep settings", &catalog.Service{Proxy: catalog.Proxy{Config: deep(catalog.MaxDepth + 1)}}, []string{"Proxy.Config is nested too deeply"}},
		{"deep settings of an upstream", upstreams(catalog.Upstream{DestinationName: "a", LocalBindPort: 1, Config: deep(1000)}), []string{`Config of the upstream "a" is nested too deeply`}},
		{"deep settings of an extension", sidecar(func(s *catalog.Service) {
			s.Proxy.EnvoyExtensions = []catalog.EnvoyExtension{{Name: "x", Arguments: map[string]any{"l": []any{[]any{}, []any{deep(catalog.MaxDepth)}}}}}
		}), []string{`Arguments of the Envoy extension "x" are nested too deeply`}},
		{"mesh gateway without port", &catalog.Service{Kind: catalog.KindMeshGateway}, []string{"Port must be non-zero for a mesh-gateway"}},
		{"ingress gateway needs no port", &catalog.Service{Kind: catalog.KindIngressGateway}, nil},
		{"gateway with upstreams", &catalog.Service{Kind: catalog.KindIngressGateway, Proxy: catalog.Proxy{Upstreams: []catalog.Upstream{{}}}}, []string{"The Proxy.Upstreams configuration is invalid for a ingress-gateway"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := tt.in.Validate(); err != nil {
				got = err.Error()
			}
			want := ""
			if len(tt.want) > 0 {
				plural := "s"
				if len(tt.want) == 1 {
					plural = ""
				}
				want = fmt.Sprintf("%d error%s occurred:\n\t* %s\n\n", len(tt.want), plural, strings.Join(tt.want, "\n\t* "))
			}
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	if err := (&catalog.Service{Kind: catalog.KindConnectProxy}).ValidateNested(); err != nil {
		t.Errorf("a nested sidecar needs no port: %v", err)
	}
}

// deep returns a setting with n levels of maps below it.
func deep(n int) map[string]any {
	m := map[string]any{}
	for range n {
		m = map[string]any{"a": m}
	}
	return m
}

func TestMetaRules(t *testing.T) {
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprint("k", i)] = ""
	}
	tests := []struct {
		name string
		meta map[string]string
		kind string
		want string // end of the error's text, empty for none
	}{
		{"none", nil, "", ""},
		{"plain", map[string]string{"A-b_9": "anything at all"}, "", ""},
		{"too many", many, "", "Node metadata cannot contain more than 64 key/value pairs"},
		{"blank", map[string]string{"": "v"}, "", "Couldn't load metadata pair ('', 'v'): Key cannot be blank"},
		{"characters", map[string]string{"a b": "v"}, "", "Key contains invalid characters"},
		{"longest key", map[string]string{strings.Repeat("k", 128): ""}, "", ""},
		{"long key", map[string]string{strings.Repeat("k", 129): ""}, "", "Key is too long (limit: 128 characters)"},
		{"reserved", map[string]string{"consul-x": ""}, "", "Key prefix 'consul-' is reserved for internal use"},
		{"federation flag", map[string]string{"consul-wan-federation": "1"}, catalog.KindMeshGateway, ""},
		{"federation flag elsewhere", map[string]string{"consul-wan-federation": "1"}, "", "Key prefix 'consul-' is reserved for internal use"},
		{"long value", map[string]string{"k": strings.Repeat("v", 513)}, "", "Value is too long (limit: 512 characters)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := catalog.ValidateMeta(tt.meta, tt.kind)
			if (err == nil) != (tt.want == "") || err != nil && !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestWeightRules(t *testing.T) {
	for _, tt := range []struct {
		w    catalog.Weights
		want string
	}{
		{catalog.Weights{Passing: 1}, ""},
		{catalog.Weights{Passing: 65535, Warning: 65535}, ""},
		{catalog.Weights{}, "Passing must be greater than 0"},
		{catalog.Weights{Passing: 1, Warning: -1}, "Warning must be greater or equal than 0"},
		{catalog.Weights{Passing: 65536}, "DNS Weight must be between 0 and 65535"},
	} {
		if err := tt.w.Validate(); (err == nil) != (tt.want == "") || err != nil && err.Error() != tt.want {
			t.Errorf("%+v: got %v, want %q", tt.w, err, tt.want)
		}
	}
}
