package entry_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/rpc"
)

func decode(t testing.TB, text string) (entry.Entry, error) {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	return entry.Decode(doc)
}

// checked decodes, normalizes and checks an entry.
func checked(t testing.TB, text string) (entry.Entry, error) {
	t.Helper()
	e, err := decode(t, text)
	if err != nil {
		return nil, err
	}
	e.Normalize()
	if err := entry.CheckHeader(e); err != nil {
		return nil, err
	}
	return e, e.Validate()
}

func TestDecodeForms(t *testing.T) {
	want, err := checked(t, `{"Kind": "service-defaults", "Name": "web", "Protocol": "http", "ExternalSNI": "s", "LocalConnectTimeoutMs": 5,
		"MeshGateway": {"Mode": "local"}, "UpstreamConfig": {"Overrides": [{"Name": "db", "PassiveHealthCheck": {"Interval": "10s", "EnforcingConsecutive5xx": 50}}]},
		"Expose": {"Paths": [{"Path": "/h", "Protocol": "http", "ListenerPort": 1}]}, "Meta": {"some_key": "v"}}`)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, in string }{
		{"snake case", `{"kind": "service-defaults", "name": "web", "protocol": "http", "external_sni": "s", "local_connect_timeout_ms": 5,
			"mesh_gateway": {"mode": "local"}, "upstream_config": {"overrides": [{"name": "db", "passive_health_check": {"interval": "10s", "enforcing_consecutive_5xx": 50}}]},
			"expose": {"paths": [{"path": "/h", "listener_port": 1}]}, "meta": {"some_key": "v"}}`},
		{"any letter case", `{"KIND": "service-defaults", "nAME": "web", "PROTOCOL": "HTTP", "externalsni": "s", "LOCALCONNECTTIMEOUTMS": 5,
			"meshgateway": {"MODE": "local"}, "upstreamConfig": {"overrides": [{"name": "db", "passivehealthcheck": {"interval": 10000000000, "enforcingconsecutive5XX": 50}}]},
			"expose": {"paths": [{"path": "/h", "listenerport": 1}]}, "meta": {"some_key": "v"}}`},
		{"single blocks as lists and lists as single blocks", `{"Kind": "service-defaults", "Name": "web", "Protocol": "http", "ExternalSNI": "s", "LocalConnectTimeoutMs": "5",
			"MeshGateway": [{"Mode": "local"}], "UpstreamConfig": [{"Overrides": {"Name": "db", "PassiveHealthCheck": [{"Interval": "10s", "EnforcingConsecutive5xx": "50"}]}}],
			"Expose": {"Paths": {"Path": "/h", "ListenerPort": 1}}, "Meta": [{"some_key": "v"}]}`},
		{"what a read returns", `{"Kind": "service-defaults", "Name": "web", "Protocol": "http", "ExternalSNI": "s", "LocalConnectTimeoutMs": 5, "TransparentProxy": {}, "EnvoyExtensions": null,
			"MeshGateway": {"Mode": "local"}, "UpstreamConfig": {"Overrides": [{"Name": "db", "MeshGateway": {}, "PassiveHealthCheck": {"Interval": 10000000000, "EnforcingConsecutive5xx": 50}}]},
			"Expose": {"Paths": [{"Path": "/h", "Protocol": "http", "ListenerPort": 1}]}, "Meta": {"some_key": "v"}, "Hash": 17446744073709551615, "CreateIndex": 3, "Modify_Index": 4}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := checked(t, tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDecodeErrors(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"no kind", `{"Name": "x"}`, "Payload does not contain a kind/Kind key at the top level"},
		{"kind of another type", `{"Kind": 5}`, "Kind value in payload is not a string"},
		{"unknown kind", `{"Kind": "x"}`, "invalid config entry kind: x"},
		{"unknown key", `{"Kind": "service-defaults", "Bogus": 1}`, "1 error occurred:\n\t* invalid config key \"Bogus\"\n\n"},
		{"unknown keys", `{"Kind": "service-defaults", "B": 1, "MeshGateway": {"A": 1}}`, "2 errors occurred:\n\t* invalid config key \"B\"\n\t* invalid config key \"MeshGateway.A\"\n\n"},
		{"in a list", `{"Kind": "service-router", "Routes": [{"X": 1}]}`, "1 error occurred:\n\t* invalid config key \"Routes[0].X\"\n\n"},
		{"partition", `{"Kind": "service-defaults", "Partition": "p"}`, "1 error occurred:\n\t* invalid config key \"Partition\"\n\n"},
		{"mesh has no name", `{"Kind": "mesh", "Name": "x"}`, "1 error occurred:\n\t* invalid config key \"Name\"\n\n"},
		{"bad duration", `{"Kind": "service-resolver", "ConnectTimeout": "soon"}`, `error decoding 'ConnectTimeout': time: invalid duration "soon"`},
		{"bad number", `{"Kind": "service-defaults", "MaxInboundConnections": "many"}`, `error decoding 'MaxInboundConnections': cannot parse "many" as a number`},
		{"fraction", `{"Kind": "service-defaults", "MaxInboundConnections": 1.5}`, `error decoding 'MaxInboundConnections': 1.5 is not a whole number`},
		{"negative", `{"Kind": "service-router", "Routes": [{"Destination": {"NumRetries": -1}}]}`, `error decoding 'Routes[0].Destination.NumRetries': -1 is out of range`},
		{"text for a block", `{"Kind": "service-defaults", "MeshGateway": "x"}`, `error decoding 'MeshGateway': expected type 'map', got string`},
		{"null in a list of blocks", `{"Kind": "service-intentions", "Sources": [null]}`, `error decoding 'Sources[0]': expected type 'map', got <nil>`},
		{"deep", `{"Kind": "proxy-defaults", "Config": ` + strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40) + `}`, `error decoding 'Config.a': nested too deeply`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if e, err := decode(t, tt.in); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, %v; want %q", e, err, tt.want)
			}
		})
	}
}

// What the conformance cases do not reach; those pin the rest of the texts.
func TestValidate(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"size of headers", `{"Kind": "service-defaults", "Name": "web", "MaxRequestHeadersKB": 8193}`, "1 error occurred:\n\t* MaxRequestHeadersKB 8193 not in the range 1-8192\n\n"},
		{"no headers", `{"Kind": "api-gateway", "Name": "gw", "Listeners": [{"Name": "a", "Port": 1, "Protocol": "http", "MaxRequestHeadersKB": 0}]}`, `MaxRequestHeadersKB 0 not in the range 1-8192`},
		{"sizes of headers on one port", `{"Kind": "api-gateway", "Name": "gw", "Listeners": [{"Name": "a", "Port": 1, "Protocol": "http", "MaxRequestHeadersKB": 1}, {"Name": "b", "Port": 1, "Protocol": "http"}]}`, `listeners "a" and "b" cannot be merged`},
		{"several problems at once", `{"Kind": "service-defaults", "Name": "x", "Protocol": "a", "UpstreamConfig": {"Overrides": [{"Name": "u", "Limits": {"MaxPendingRequests": -1}}], "Defaults": {"Peer": "p"}}}`,
			"3 errors occurred:\n\t* invalid value for protocol: a\n\t* error in upstream override for u: max pending requests cannot be negative\n\t* error in upstream defaults: Peer must be empty\n\n"},
		{"rate limits", `{"Kind": "service-defaults", "Name": "x", "RateLimits": {"InstanceLevel": {}}}`, "invalid rate_limits config. Rate limiting is a consul enterprise feature"},
		{"redirect to no subset of its own", `{"Kind": "service-resolver", "Name": "x", "Redirect": {"Service": "x", "ServiceSubset": "v"}}`, `Redirect.ServiceSubset "v" is not a valid subset of "x"`},
		{"failover namespace", `{"Kind": "service-resolver", "Name": "x", "Failover": {"*": {"Service": "y", "Namespace": "n"}}}`, `Bad Failover["*"]: Namespace: setting Namespace is a consul enterprise feature`},
		{"the default namespace is one's own", `{"Kind": "service-resolver", "Name": "x", "Redirect": {"Service": "y", "Namespace": "default"}}`, ""},
		{"splits in hundredths", `{"Kind": "service-splitter", "Name": "x", "Splits": [{"Weight": 33.33}, {"Weight": 33.33, "Service": "b"}, {"Weight": 33.34, "Service": "c"}]}`, ""},
		{"a hundredth missing", `{"Kind": "service-splitter", "Name": "x", "Splits": [{"Weight": 33.33}, {"Weight": 33.33, "Service": "b"}, {"Weight": 33.33, "Service": "c"}]}`, "the sum of all split weights must be 100, not 99.990000"},
		{"negative weight", `{"Kind": "service-splitter", "Name": "x", "Splits": [{"Weight": 150}, {"Weight": -50, "Service": "b"}]}`, "the weight of a split must be between 0 and 100, not 150.000000"},
		{"permission by JWT alone", `{"Kind": "service-intentions", "Name": "x", "Sources": [{"Name": "a", "Permissions": [{"Action": "allow", "JWT": {"Providers": [{"Name": "p"}]}}]}]}`, ""},
		{"sources of a peer and at home", `{"Kind": "service-intentions", "Name": "x", "Sources": [{"Name": "a", "Action": "allow"}, {"Name": "a", "Peer": "p", "Action": "deny"}]}`, ""},
		{"long socket folder", `{"Kind": "proxy-defaults", "Config": {"envoy_hcp_metrics_bind_socket_dir": "` + strings.Repeat("x", 71) + `"}}`, "Config: envoy_hcp_metrics_bind_socket_dir length 71 exceeds max 70"},
		{"half of TLS origination", `{"Kind": "terminating-gateway", "Name": "t", "Services": [{"Name": "a", "CAFile": "c", "KeyFile": "k"}]}`, `Service "a" must have a CertFile, CAFile, and KeyFile specified for TLS origination`},
		{"CA alone", `{"Kind": "terminating-gateway", "Name": "t", "Services": [{"Name": "a", "CAFile": "c"}]}`, ""},
		{"sameness group", `{"Kind": "sameness-group", "Name": "s"}`, "sameness-groups are an enterprise-only feature"},
		{"host that is none", `{"Kind": "ingress-gateway", "Name": "i", "Listeners": [{"Port": 1, "Protocol": "http", "Services": [{"Name": "a", "Hosts": ["a b"]}]}]}`, `Host "a b" must be a valid DNS hostname`},
		{"host with port", `{"Kind": "ingress-gateway", "Name": "i", "Listeners": [{"Port": 1, "Protocol": "http", "Services": [{"Name": "a", "Hosts": ["a.b:8080"]}]}]}`, ""},
		{"label too long", `{"Kind": "http-route", "Name": "h", "Hostnames": ["` + strings.Repeat("x", 64) + `.com"]}`, `host "` + strings.Repeat("x", 64) + `.com" must be a valid DNS hostname`},
		{"consumers that are two things", `{"Kind": "exported-services", "Name": "default", "Services": [{"Name": "a", "Consumers": [{"Peer": "p", "Partition": "q"}]}]}`, "Services[0].Consumers[0]: must define at most one of Peer, Partition, or SamenessGroup"},
		{"another partition", `{"Kind": "exported-services", "Name": "default", "Services": [{"Name": "a", "Consumers": [{"Partition": "q"}]}]}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := checked(t, tt.in)
			if got := text(err); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestIntentionsAreOrderedByPrecedence(t *testing.T) {
	e, err := checked(t, `{"Kind": "service-intentions", "Name": "api", "Sources": [{"Name": "*", "Action": "deny"}, {"Name": "z", "Action": "allow"}, {"Name": "a", "Action": "allow"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range e.(*entry.ServiceIntentions).Sources {
		got = append(got, s.Name)
	}
	if want := []string{"z", "a", "*"}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

func TestResolveOrder(t *testing.T) {
	all, err := checked(t, `{"Kind": "proxy-defaults", "Config": {"protocol": "http", "x": 1}, "MeshGateway": {"Mode": "none"}, "Mode": "transparent"}`)
	if err != nil {
		t.Fatal(err)
	}
	own, err := checked(t, `{"Kind": "service-defaults", "Name": "web", "MaxInboundConnections": 7, "MaxRequestHeadersKB": 96, "MeshGateway": {"Mode": "local"}, "UpstreamConfig":
		{"Defaults": {"ConnectTimeoutMs": 3, "MeshGateway": {"Mode": "remote"}, "Limits": {"MaxConnections": 5}}, "Overrides": [{"Name": "db", "ConnectTimeoutMs": 4, "Protocol": "tcp"}]}}`)
	if err != nil {
		t.Fatal(err)
	}
	other, err := checked(t, `{"Kind": "service-defaults", "Name": "api", "Protocol": "grpc"}`)
	if err != nil {
		t.Fatal(err)
	}
	req := &entry.ResolvedRequest{Service: "web", Upstreams: []entry.UpstreamID{{Name: "api"}, {Name: "far", Peer: "p"}}}
	got := entry.Resolve(req, all.(*entry.ProxyDefaults), own.(*entry.ServiceDefaults), func(name string) *entry.ServiceDefaults {
		if name == "api" {
			return other.(*entry.ServiceDefaults)
		}
		return nil
	})
	gateway, limits := map[string]any{"mode": "remote"}, map[string]any{"MaxConnections": 5.0}
	want := &entry.Resolved{
		Config: map[string]any{"protocol": "http", "x": 1.0, "max_inbound_connections": 7, "max_request_headers_kb": 96}, Mode: "transparent",
		Upstreams: []entry.ResolvedUpstream{
			{UpstreamID: entry.UpstreamID{Name: "*"}, Config: map[string]any{"protocol": "http", "connect_timeout_ms": 3, "limits": limits, "mesh_gateway": gateway}},
			{UpstreamID: entry.UpstreamID{Name: "api"}, Config: map[string]any{"protocol": "grpc", "connect_timeout_ms": 3, "limits": limits, "mesh_gateway": gateway}},
			{UpstreamID: entry.UpstreamID{Name: "db"}, Config: map[string]any{"protocol": "tcp", "connect_timeout_ms": 4, "limits": limits, "mesh_gateway": gateway}},
			{UpstreamID: entry.UpstreamID{Name: "far", Peer: "p"}, Config: map[string]any{"protocol": "http", "connect_timeout_ms": 3, "limits": limits, "mesh_gateway": gateway}},
		},
	}
	want.MeshGateway.Mode = "local"
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if all.(*entry.ProxyDefaults).Config["max_inbound_connections"] != nil {
		t.Error("resolving changed the entry")
	}
	// Neither upstreams nor transparent mode: nothing about upstreams.
	req = &entry.ResolvedRequest{Service: "web", ProxyMode: "direct"}
	if got := entry.Resolve(req, all.(*entry.ProxyDefaults), own.(*entry.ServiceDefaults), nil); got.Upstreams != nil {
		t.Errorf("upstreams %v", got.Upstreams)
	}
}

func TestEveryKindHasAnEntry(t *testing.T) {
	for _, k := range entry.Kinds() {
		e, err := entry.New(k)
		if err != nil || e.Head().Kind != k || !k.Known() {
			t.Errorf("New(%s) = %v, %v", k, e, err)
		}
		e.Normalize() // of an empty entry
		if err := e.Validate(); err == nil && k != entry.KindProxyDefaults && k != entry.KindMesh && k != entry.KindBoundAPIGateway {
			t.Errorf("an empty %s is valid", k)
		}
	}
}

func TestNilInListsIsRefused(t *testing.T) {
	e := &entry.ServiceIntentions{Header: entry.Header{Kind: entry.KindServiceIntentions}, Sources: []*entry.IntentionSource{{Name: "a"}, nil}}
	if _, err := entry.Copy(e); err == nil {
		t.Error("an entry with an empty source passed")
	}
}

// An entry that decodes survives the log, can be written out and read again, and normalizing it twice is doing it once.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"Kind": "service-defaults", "Name": "web", "UpstreamConfig": {"Defaults": {"Limits": {"MaxConnections": 0}}}}`,
		`{"kind": "proxy-defaults", "config": {"a": [1, {"b": null}], "c": 1e300}}`,
		`{"Kind": "mesh", "TLS": {"Incoming": {"TLSMinVersion": "TLSv1_2"}}, "HTTP": {"Incoming": {"RequestNormalization": {}}}}`,
		`{"Kind": "service-intentions", "Name": "x", "Sources": [{"Name": "a", "Permissions": [{"Action": "allow", "HTTP": {"Methods": ["get"]}}]}]}`,
		`{"Kind": "service-router", "Name": "x", "Routes": [{"Match": {"HTTP": {"Header": {"Name": "h", "Present": true}}}, "Destination": {"RequestTimeout": "3s"}}]}`,
		`{"Kind": "service-resolver", "Name": "x", "Subsets": {"v1": {"Filter": "Service.Meta.v == 1"}}, "Failover": {"*": {"Targets": [{}]}}}`,
		`{"Kind": "jwt-provider", "Name": "j", "JSONWebKeySet": {"Remote": {"URI": "http://a", "JWKSCluster": {"TLSCertificates": {"TrustedCA": {"InlineBytes": "e30="}}}}}}`,
		`{"Kind": "ingress-gateway", "Name": "i", "Listeners": [{"Port": 1, "Services": [{"Name": "a"}]}]}`,
		`{"Kind": "http-route", "Name": "h", "Rules": [{"Services": [{"Name": "a"}]}]}`,
		`{"Kind": "api-gateway", "Name": "g", "Listeners": [{"Name": "l", "Port": 1, "Protocol": "http"}], "Status": {"Conditions": [{"LastTransitionTime": "2020-01-01T00:00:00Z"}]}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var doc map[string]any
		if json.Unmarshal([]byte(s), &doc) != nil {
			return
		}
		e, err := entry.Decode(doc)
		if err != nil {
			return
		}
		e.Normalize()
		once, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		e.Normalize()
		if twice, _ := json.Marshal(e); string(twice) != string(once) {
			t.Fatalf("normalized once %s, twice %s", once, twice)
		}
		invalid := errors.Join(entry.CheckHeader(e), e.Validate())

		copied, err := entry.Copy(e)
		if err != nil {
			t.Fatalf("copy %s: %v", once, err)
		}
		if got, _ := json.Marshal(copied); string(got) != string(once) {
			t.Fatalf("copied %s to %s", once, got)
		}
		if again := errors.Join(entry.CheckHeader(copied), copied.Validate()); text(again) != text(invalid) {
			t.Fatalf("%s: %v, copied %v", once, invalid, again)
		}
		var shown map[string]any
		if err := json.Unmarshal(once, &shown); err != nil {
			t.Fatal(err)
		}
		read, err := entry.Decode(shown)
		if err != nil {
			t.Fatalf("what is shown cannot be written: %s: %v", once, err)
		}
		read.Normalize()
		if got, _ := json.Marshal(read); string(got) != string(once) {
			t.Fatalf("shown as %s, written back as %s", once, got)
		}
	})
}

func FuzzUnmarshalAny(f *testing.F) {
	e, err := entry.New(entry.KindServiceDefaults)
	if err != nil {
		f.Fatal(err)
	}
	data, err := rpc.Marshal(entry.Any{Entry: e})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{0xa0})
	for _, e := range []entry.Entry{
		&entry.ServiceIntentions{Header: entry.Header{Kind: entry.KindServiceIntentions}, Sources: []*entry.IntentionSource{nil}},
		&entry.ServiceIntentions{Header: entry.Header{Kind: entry.KindServiceIntentions}, Sources: []*entry.IntentionSource{{Permissions: []*entry.IntentionPermission{nil}}}},
		&entry.JWTProvider{Header: entry.Header{Kind: entry.KindJWTProvider}, Locations: []*entry.JWTLocation{nil}},
	} {
		data, err := rpc.Marshal(entry.Any{Entry: e})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var a entry.Any
		if rpc.Unmarshal(data, &a) != nil || a.Entry == nil {
			return
		}
		if !a.Head().Kind.Known() {
			t.Fatalf("kind %q", a.Head().Kind)
		}
		a.Normalize() // whatever is in it
		a.Validate()
	})
}
