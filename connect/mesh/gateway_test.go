package mesh_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
)

func gateway(kind string) *mesh.Snapshot {
	return mesh.New(&mesh.Registration{Node: "n", Datacenter: "dc1", Service: &catalog.Service{Kind: kind, ID: "g", Service: "gw", Address: "10.0.0.1", Port: 8443}})
}

func one(e entry.Entry) *entry.GetReply {
	r := &entry.GetReply{}
	r.Entry.Entry = e
	return r
}

var (
	rootsKnown = map[mesh.Need]any{{Kind: mesh.NeedRoots}: &ca.RootsReply{Roots: []*ca.Root{{}}}, {Kind: mesh.NeedMesh}: &entry.GetReply{}}
	links      = mesh.Need{Kind: mesh.NeedLinks, Service: "gw"}
)

func TestTerminatingGatewayNeeds(t *testing.T) {
	s := gateway(catalog.KindTerminatingGateway)
	want(t, "at first", needs(s), []string{"roots", "mesh entry", "links gw", "entry proxy-defaults global"})
	if s = s.With(rootsKnown); s.Complete() {
		t.Error("complete without links")
	}
	s = s.With(map[mesh.Need]any{links: &entry.GatewayServicesReply{Services: []entry.GatewayService{
		{Service: entry.GatewayName{Name: "db"}, GatewayKind: catalog.KindTerminatingGateway, ServiceKind: entry.GatewayToService},
		{Service: entry.GatewayName{Name: "out"}, GatewayKind: catalog.KindTerminatingGateway, ServiceKind: entry.GatewayToDestination},
		{Service: entry.GatewayName{Name: "web"}, GatewayKind: catalog.KindIngressGateway, Port: 1},
	}}})
	if !s.Complete() {
		t.Error("not complete, though only services are missing")
	}
	rest := func(service string) []string {
		return []string{"leaf " + service, "intentions " + service, "entry service-resolver " + service, "entry service-defaults " + service}
	}
	base := []string{"roots +", "mesh entry +", "links gw +", "entry proxy-defaults global"}
	want(t, "with links", needs(s), slices.Concat(base, rest("db"), []string{"plain instances db"}, rest("out")))
	resolver := &entry.ServiceResolver{Subsets: map[string]entry.ServiceSubset{"v2": {Filter: "x == 2"}, "v1": {Filter: "x == 1"}}}
	s = s.With(map[mesh.Need]any{{Kind: mesh.NeedEntry, Entry: entry.KindServiceResolver, Service: "db"}: one(resolver)})
	if n := needs(s); !slices.Contains(n, "plain instances db x == 1") || !slices.Contains(n, "plain instances db x == 2") {
		t.Errorf("needs no instances of subsets: %q", n)
	}
	if s.Linked("db") {
		t.Error("db is linked without a certificate and intentions")
	}
	s = s.With(map[mesh.Need]any{
		{Kind: mesh.NeedLeaf, Service: "db"}: &ca.Leaf{}, {Kind: mesh.NeedIntentions, Service: "db"}: &intention.MatchReply{},
		{Kind: mesh.NeedEntry, Entry: entry.KindServiceDefaults, Service: "db"}:                  one(nil),
		{Kind: mesh.NeedEntry, Entry: entry.KindProxyDefaults, Service: entry.ProxyDefaultsName}: one(nil),
		{Kind: mesh.NeedPlain, Service: "db"}:                                                    &catalog.InstancesReply{},
	})
	if !s.Linked("db") || s.Linked("out") || s.Plain("db", "") == nil {
		t.Error("db is not linked, though all is known")
	}
	s = s.With(map[mesh.Need]any{links: &entry.GatewayServicesReply{}})
	want(t, "with nothing linked", needs(s), []string{"roots +", "mesh entry +", "links gw +", "entry proxy-defaults global +"})
}

func TestIngressGatewayNeeds(t *testing.T) {
	s := gateway(catalog.KindIngressGateway).With(rootsKnown)
	own := mesh.Need{Kind: mesh.NeedEntry, Entry: entry.KindIngressGateway, Service: "gw"}
	want(t, "at first", needs(s), []string{"roots +", "mesh entry +", "entry ingress-gateway gw", "links gw", "leaf gw"})
	if empty := s.With(map[mesh.Need]any{own: one(nil), links: &entry.GatewayServicesReply{}}); !empty.Complete() {
		t.Error("a gateway without an entry waits for something")
	}
	e := &entry.IngressGateway{Listeners: []entry.IngressListener{
		{Port: 80, Protocol: "http", Services: []entry.IngressService{{Name: "*"}, {Name: "web", Hosts: []string{"web.example.com"}}}},
		{Port: 90, Protocol: "tcp", Services: []entry.IngressService{{Name: "db", IngressLimits: entry.IngressLimits{MaxConnections: 9}}}},
	}, Defaults: &entry.IngressDefaults{MaxConnections: 5, MaxPendingRequests: 6}}
	linked := &entry.GatewayServicesReply{Services: []entry.GatewayService{
		{Service: entry.GatewayName{Name: "blog"}, GatewayKind: catalog.KindIngressGateway, Port: 80, FromWildcard: true},
		{Service: entry.GatewayName{Name: "web"}, GatewayKind: catalog.KindIngressGateway, Port: 80},
	}}
	s = s.With(map[mesh.Need]any{own: one(e), links: linked})
	want(t, "with services", needs(s)[5:], []string{"chain blog", "chain db", "chain web"})
	if s.Complete() {
		t.Error("complete without a certificate to call services with")
	}
	db := s.Upstreams[1]
	if l := db.Config.Limits; *l.MaxConnections != 9 || *l.MaxPendingRequests != 6 || l.MaxConcurrentRequests != nil {
		t.Errorf("limits %+v", l)
	}
	var names []string
	for _, o := range s.Gateway.Listeners[0].Services {
		names = append(names, o.Name)
	}
	want(t, "services of a wildcard", names, []string{"web", "blog"})
	s = s.With(map[mesh.Need]any{links: linked})
	want(t, "an upstream that is as before stays the same", s.Upstreams[1] == db, true)

	tls := *e
	tls.TLS.Enabled = true
	s = s.With(map[mesh.Need]any{own: one(&tls)})
	want(t, "names on the certificate", s.Needs()[4].Hosts, "*.ingress.consul *.ingress.dc1.consul web.example.com")
}

func TestAPIGatewayNeeds(t *testing.T) {
	s := gateway(catalog.KindAPIGateway).With(rootsKnown)
	want(t, "at first", needs(s), []string{"roots +", "mesh entry +", "entry api-gateway gw", "entry bound-api-gateway gw", "leaf gw"})
	e := &entry.APIGateway{Listeners: []entry.APIGatewayListener{
		{Name: "a", Port: 1, Protocol: "tcp", TLS: entry.APIGatewayTLS{Certificates: []entry.ResourceReference{{Kind: entry.KindInlineCertificate, Name: "c"}}}},
		{Name: "b", Port: 2, Protocol: "tcp"},
	}}
	route := entry.ResourceReference{Kind: entry.KindTCPRoute, Name: "r"}
	bound := &entry.BoundAPIGateway{Listeners: []entry.BoundAPIGatewayListener{
		{Name: "a", Routes: []entry.ResourceReference{route}}, {Name: "b", Routes: []entry.ResourceReference{route}},
	}}
	entryOf := func(kind entry.Kind, name string) mesh.Need {
		return mesh.Need{Kind: mesh.NeedEntry, Entry: kind, Service: name}
	}
	s = s.With(map[mesh.Need]any{entryOf(entry.KindAPIGateway, "gw"): one(e), entryOf(entry.KindBoundAPIGateway, "gw"): one(bound)})
	want(t, "with a gateway", needs(s)[5:], []string{"entry tcp-route r", "entry inline-certificate c"})
	s = s.With(map[mesh.Need]any{entryOf(entry.KindTCPRoute, "r"): one(&entry.TCPRoute{Services: []entry.TCPService{{Name: "db"}}})})
	want(t, "with a route", needs(s)[7:], []string{"chain db"})
	if p := s.Gateway.Ports; len(p) != 1 || p[0].Listener.Name != "b" {
		t.Errorf("ports %+v, want only the one that needs no certificate", p)
	}
	s = s.With(map[mesh.Need]any{entryOf(entry.KindInlineCertificate, "c"): one(&entry.InlineCertificate{})})
	want(t, "ports with the certificate", len(s.Gateway.Ports), 2)
	bad := *e
	bad.Status.Conditions = []entry.Condition{{Type: "Conflicted", Status: "True", Resource: &entry.ResourceReference{SectionName: "b"}}}
	s = s.With(map[mesh.Need]any{entryOf(entry.KindAPIGateway, "gw"): one(&bad)})
	if p := s.Gateway.Ports; len(p) != 1 || p[0].Listener.Name != "a" {
		t.Errorf("ports %+v, want none with a conflict", p)
	}
}

func TestMeshGatewayNeeds(t *testing.T) {
	s := gateway(catalog.KindMeshGateway).With(rootsKnown)
	want(t, "at first", needs(s), []string{"roots +", "mesh entry +", "services", "datacenters", "entries service-resolver", "entry service-defaults gw", "exports", "imports"})
	s = s.With(map[mesh.Need]any{
		{Kind: mesh.NeedServices}:                                  &catalog.ServicesReply{Services: map[string][]string{"web": nil, "consul": nil}},
		{Kind: mesh.NeedDatacenters}:                               &catalog.DatacentersReply{Datacenters: []string{"dc1", "dc2"}},
		{Kind: mesh.NeedEntries, Entry: entry.KindServiceResolver}: &entry.ListReply{},
	})
	want(t, "with services", needs(s)[6:], []string{"exports", "imports", "instances web", "mesh gateways dc2"})
	if !s.Complete() {
		t.Error("not complete")
	}
}

func TestGatewayBinds(t *testing.T) {
	tests := []struct {
		name, config string
		want         []mesh.Bind
		problems     int
	}{
		{"default", `{}`, []mesh.Bind{{Name: "default", Address: "10.0.0.1", Port: 8443}}, 0},
		{"tagged", `{"envoy_gateway_bind_tagged_addresses": "true"}`,
			[]mesh.Bind{{Name: "default", Address: "10.0.0.1", Port: 8443}, {Name: "wan", Address: "192.0.2.1", Port: 443}}, 0},
		{"none but given, under the old name", `{"envoy_mesh_gateway_no_default_bind": true, "envoy_gateway_bind_addresses": {"a": {"address": "::1", "port": 5}}}`,
			[]mesh.Bind{{Name: "a", Address: "::1", Port: 5}}, 0},
		{"the same twice", `{"envoy_gateway_bind_addresses": {"a": {"address": "10.0.0.1", "port": 8443}}}`, []mesh.Bind{{Name: "a", Address: "10.0.0.1", Port: 8443}}, 0},
		{"a name", `{"envoy_gateway_no_default_bind": true, "envoy_gateway_bind_addresses": {"a": {"address": "host", "port": 5}}}`, nil, 1},
		{"nonsense", `{"envoy_dns_discovery_type": "magic"}`, []mesh.Bind{{Name: "default", Address: "10.0.0.1", Port: 8443}}, 1},
	}
	for _, tt := range tests {
		svc := &catalog.Service{
			Kind: catalog.KindMeshGateway, ID: "g", Service: "gw", Address: "10.0.0.1", Port: 8443,
			TaggedAddresses: map[string]catalog.ServiceAddress{
				"lan": {Address: "10.0.0.1", Port: 8443}, "wan": {Address: "192.0.2.1", Port: 443}, "consul-virtual:db": {Address: "240.0.0.1", Port: 1},
			},
		}
		if err := json.Unmarshal([]byte(tt.config), &svc.Proxy.Config); err != nil {
			t.Fatal(err)
		}
		s := mesh.New(&mesh.Registration{Service: svc})
		want(t, tt.name, s.Gateway.Binds, tt.want)
		want(t, tt.name+": problems", len(s.Gateway.Problems), tt.problems)
	}
}

func FuzzGatewayConfig(f *testing.F) {
	f.Add([]byte(`{"envoy_gateway_bind_addresses": {"a": {"address": "::1", "port": "5"}}, "connect_timeout_ms": -1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var opaque map[string]any
		if json.Unmarshal(data, &opaque) != nil {
			return
		}
		svc := &catalog.Service{Kind: catalog.KindMeshGateway, Port: 1}
		svc.Proxy.Config = opaque
		g := mesh.New(&mesh.Registration{Service: svc}).Gateway
		if g.Config.ConnectTimeoutMs <= 0 || g.Config.DNSDiscovery != mesh.LogicalDNS && g.Config.DNSDiscovery != mesh.StrictDNS || g.Config.KeepaliveTime < 0 {
			t.Errorf("config %+v of %s", g.Config, data)
		}
	})
}
