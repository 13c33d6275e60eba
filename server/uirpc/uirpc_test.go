package uirpc_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/console"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
	"github.com/sarnmesh/sarn/server/uirpc"
)

// rules grant what they name, as "resource:access:name".
type rules map[string]bool

func (r rules) Allows(res acl.Resource, a acl.Access, name string) bool {
	return r[fmt.Sprintf("%s:%s:%s", res, a, name)]
}

// newServer returns a server with web and its transparent proxy, db with a proxy, native, and two gateways.
func newServer(t *testing.T, def intention.Default) *rpctest.Server {
	s := rpctest.New()
	catalogrpc.Register(&s.Registry, &s.Appliers, catalogrpc.Config{})
	configrpc.Register(&s.Registry, &s.Appliers, configrpc.Config{Datacenter: "dc1", DefaultDeny: !def.Allow})
	uirpc.Register(&s.Registry, uirpc.Config{Default: def, Builds: func() map[string]string { return map[string]string{"n2": "9.9"} }})
	check := func(id, service, status string) *catalog.Check {
		return &catalog.Check{CheckID: id, Name: id, ServiceID: service, Status: status}
	}
	for _, r := range []*catalog.RegisterRequest{
		{Node: "n1", Address: "10.0.0.1", NodeMeta: map[string]string{"consul-version": "1"}, Check: check("serf", "", "passing"),
			Service: &catalog.Service{Service: "web", Port: 80, Tags: []string{"b", "a"}}},
		{Node: "n1", Address: "10.0.0.1", SkipNodeUpdate: true, Check: check("slow", "web", "warning"),
			Service: &catalog.Service{Service: "web-proxy", Kind: catalog.KindConnectProxy, Port: 81,
				Proxy: catalog.Proxy{DestinationServiceName: "web", Mode: "transparent", Upstreams: []catalog.Upstream{
					{DestinationName: "db", LocalBindPort: 1}, {DestinationName: "elsewhere", Datacenter: "dc2", LocalBindPort: 2},
					{DestinationName: "routed", LocalBindPort: 3}, {DestinationName: "nowhere", LocalBindPort: 4},
				}}}},
		{Node: "n2", Address: "10.0.0.2", Check: check("serf", "", "critical"), Service: &catalog.Service{Service: "db", Port: 90}},
		{Node: "n2", Address: "10.0.0.2", Service: &catalog.Service{Service: "db-proxy", Kind: catalog.KindConnectProxy, Port: 91,
			Proxy: catalog.Proxy{DestinationServiceName: "db"}}},
		{Node: "n2", Address: "10.0.0.2", Service: &catalog.Service{Service: "native", Port: 70, Connect: catalog.Connect{Native: true}}},
		{Node: "n2", Address: "10.0.0.2", Service: &catalog.Service{Service: "in", Kind: catalog.KindIngressGateway, Port: 60}},
		{Node: "n2", Address: "10.0.0.2", Service: &catalog.Service{Service: "out", Kind: catalog.KindTerminatingGateway, Port: 61}},
	} {
		if _, err := catalog.RegisterCall.Call(t.Context(), s.Caller(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{
		`{"Kind": "service-resolver", "Name": "routed", "ConnectTimeout": "3s"}`,
		`{"Kind": "ingress-gateway", "Name": "in", "Listeners": [{"Port": 8080, "Protocol": "tcp", "Services": [{"Name": "db"}]}]}`,
		`{"Kind": "terminating-gateway", "Name": "out", "Services": [{"Name": "old"}]}`,
		`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Action": "deny"}, {"Name": "*", "Action": "allow"}]}`,
	} {
		var doc map[string]any
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatal(err)
		}
		e, err := entry.Decode(doc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := entry.ApplyCall.Call(t.Context(), s.Caller(), &entry.ApplyRequest{Entry: entry.Any{Entry: e}}); err != nil {
			t.Fatal(text, err)
		}
	}
	return s
}

func options(token string) read.Options { return read.Options{Target: read.Target{Token: token}} }

func neighbours(list []*console.Neighbour) string {
	var out []string
	for _, n := range list {
		out = append(out, fmt.Sprintf("%s/%s/%v", n.Name, n.Source, n.Intention.Allowed))
	}
	return strings.Join(out, " ")
}

func TestTopology(t *testing.T) {
	for _, tt := range []struct {
		service, kind string
		allow         bool
		up, down      string
	}{
		{"web", "", true, "db/proxy-registration/false native/default-allow/true routed/routing-config/true", "native/default-allow/true"},
		{"web", "", false, "db/proxy-registration/false routed/routing-config/false", ""},
		{"db", "", true, "", "in/proxy-registration/true native/wildcard-intention/true web/proxy-registration/false"},
		{"db", "", false, "", "in/proxy-registration/true native/wildcard-intention/true web/proxy-registration/false"},
		{"in", catalog.KindIngressGateway, true, "db/proxy-registration/true", ""},
		{"none", "", true, "", ""},
	} {
		s := newServer(t, intention.Default{Allow: tt.allow})
		got, err := console.TopologyCall.Call(t.Context(), s.Caller(), &console.TopologyRequest{Service: tt.service, Kind: tt.kind})
		if err != nil {
			t.Fatal(err)
		}
		if up, down := neighbours(got.Upstreams), neighbours(got.Downstreams); up != tt.up || down != tt.down {
			t.Errorf("%s, allow %v: upstreams %q, downstreams %q; want %q, %q", tt.service, tt.allow, up, down, tt.up, tt.down)
		}
		if got.TransparentProxy != (tt.service == "web") || got.Protocol != "tcp" || got.Index == 0 {
			t.Errorf("%s: transparent %v, protocol %q, index %d", tt.service, got.TransparentProxy, got.Protocol, got.Index)
		}
	}
}

func TestServicesAreSummarized(t *testing.T) {
	s := newServer(t, intention.Default{Allow: true})
	got, err := console.ServicesCall.Call(t.Context(), s.Caller(), &console.ServicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range got.Services {
		out = append(out, fmt.Sprintf("%s %d/%d/%d proxy %v gateway %v links %d", l.Name, l.ChecksPassing, l.ChecksWarning, l.ChecksCritical,
			l.ConnectedWithProxy, l.ConnectedWithGateway, l.GatewayConfig.AssociatedServiceCount))
	}
	want := []string{
		"db 0/0/1 proxy true gateway true links 0", "db-proxy 0/0/1 proxy false gateway false links 0", "in 0/0/1 proxy false gateway false links 1",
		"native 0/0/1 proxy false gateway false links 0", "out 0/0/1 proxy false gateway false links 1",
		"web 1/1/0 proxy true gateway false links 0", "web-proxy 1/0/0 proxy false gateway false links 0",
	}
	if strings.Join(out, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(out, "\n"), strings.Join(want, "\n"))
	}
	if web := got.Services[5]; fmt.Sprint(web.Tags, web.Nodes, web.TransparentProxy) != "[a b] [n1] true" {
		t.Errorf("web is %+v", web)
	}
}

func TestOverviewCountsTheWorst(t *testing.T) {
	s := newServer(t, intention.Default{Allow: true})
	got, err := console.OverviewCall.Call(t.Context(), s.Caller(), &console.OverviewRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if want := (console.Health{Total: 2, Passing: 1, Critical: 1}); len(got.Nodes) != 1 || got.Nodes[0] != want {
		t.Errorf("nodes %+v, want %+v", got.Nodes, want)
	}
	for _, h := range got.Services {
		if want := (console.Health{Total: 1, Passing: 1}); h.Name == "db" && h.Health != want {
			t.Errorf("a node's check counts for db: %+v", h)
		}
		if want := (console.Health{Total: 1, Warning: 1}); h.Name == "web" && h.Health != want {
			t.Errorf("web %+v, want %+v", h.Health, want)
		}
	}
	if len(got.Services) != 7 || len(got.Checks) != 2 {
		t.Errorf("%d services, %d names of checks", len(got.Services), len(got.Checks))
	}
}

func TestNothingIsShownUnasked(t *testing.T) {
	s := newServer(t, intention.Default{Allow: true})
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		return acl.New(map[string]rules{
			"web": {"node:read:n1": true, "service:read:web": true, "service:read:web-proxy": true},
		}[token], "x"), nil
	}
	nodes, err := console.NodesCall.Call(t.Context(), s.Caller(), &console.NodesRequest{Options: options("web")})
	if err != nil || len(nodes.Nodes) != 1 || len(nodes.Nodes[0].Services) != 2 || len(nodes.Nodes[0].Checks) != 2 || !nodes.Filtered {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	services, err := console.ServicesCall.Call(t.Context(), s.Caller(), &console.ServicesRequest{Options: options("web")})
	if err != nil || len(services.Services) != 2 || !services.Filtered {
		t.Errorf("services: %+v, %v", services, err)
	}
	topology, err := console.TopologyCall.Call(t.Context(), s.Caller(), &console.TopologyRequest{Options: options("web"), Service: "web"})
	if err != nil || len(topology.Upstreams)+len(topology.Downstreams) != 0 || !topology.Filtered {
		t.Errorf("topology: %+v, %v", topology, err)
	}
	for _, token := range []string{"web", "nobody"} {
		if _, err := console.TopologyCall.Call(t.Context(), s.Caller(), &console.TopologyRequest{Options: options(token), Service: "db"}); err == nil {
			t.Errorf("token %s sees the topology of db", token)
		}
		if _, err := console.OverviewCall.Call(t.Context(), s.Caller(), &console.OverviewRequest{Options: options(token)}); err == nil {
			t.Errorf("token %s sees the overview", token)
		}
		for _, ask := range []func() error{
			func() error {
				_, err := console.GatewayServicesCall.Call(t.Context(), s.Caller(), &console.GatewayRequest{Options: options(token), Gateway: "in"})
				return err
			},
			func() error {
				_, err := console.GatewayIntentionsCall.Call(t.Context(), s.Caller(), &console.GatewayRequest{Options: options(token), Gateway: "in"})
				return err
			},
		} {
			if ask() == nil {
				t.Errorf("token %s sees what is behind a gateway", token)
			}
		}
	}
}

func TestMembersWithoutVersionShowThatOfGossip(t *testing.T) {
	s := newServer(t, intention.Default{Allow: true})
	got, err := console.NodesCall.Call(t.Context(), s.Caller(), &console.NodesRequest{})
	if err != nil || len(got.Nodes) != 2 || got.Nodes[0].Meta["consul-version"] != "1" || got.Nodes[1].Meta["consul-version"] != "9.9" {
		t.Errorf("%+v, %v", got, err)
	}
	missing, err := console.NodesCall.Call(t.Context(), s.Caller(), &console.NodesRequest{Node: "n3"})
	if err != nil || len(missing.Nodes) != 0 || !missing.NotFound {
		t.Errorf("%+v, %v", missing, err)
	}
}

func TestWhatIsImportedFollows(t *testing.T) {
	s := newServer(t, intention.Default{Allow: true})
	tx := s.Store.Write(s.Index() + 1)
	const id = "11111111-2222-3333-4444-555555555555"
	if err := tx.UpdatePeering(&peering.Update{Fresh: true, Peering: &peering.Peering{ID: id, Name: "east", State: peering.Active}}); err != nil {
		t.Fatal(err)
	}
	imported := &peering.Import{Service: "db", Instances: []*catalog.Instance{{
		Node: &catalog.Node{Node: "far", Address: "10.9.0.1"}, Service: &catalog.Service{ID: "db", Service: "db", Tags: []string{"eastern"}},
		Checks: []*catalog.Check{{Node: "far", CheckID: "c", Status: catalog.Warning}},
	}}}
	if _, err := tx.ChangeImports(&peering.Change{ID: id, Import: imported}); err != nil {
		t.Fatal(err)
	}
	web := &catalog.Service{ID: "web-proxy", Service: "web-proxy", Kind: catalog.KindConnectProxy, Port: 81, Proxy: catalog.Proxy{
		DestinationServiceName: "web", Upstreams: []catalog.Upstream{{DestinationName: "db", DestinationPeer: "east", LocalBindPort: 1}},
	}}
	if err := tx.Register(&catalog.RegisterRequest{Node: "n1", SkipNodeUpdate: true, Service: web}); err != nil {
		t.Fatal(err)
	}
	tx.Commit()

	services, err := console.ServicesCall.Call(t.Context(), s.Caller(), &console.ServicesRequest{})
	if err != nil || len(services.Services) != 8 || services.Services[0].PeerName != "" || services.Services[1].Name != "db" || services.Services[1].PeerName != "east" {
		t.Fatalf("services: %+v, %v", services, err)
	}
	services, err = console.ServicesCall.Call(t.Context(), s.Caller(), &console.ServicesRequest{Peer: "east"})
	if err != nil || len(services.Services) != 1 || services.Services[0].ChecksWarning != 1 || fmt.Sprint(services.Services[0].Tags) != "[eastern]" {
		t.Errorf("services of the peer: %+v, %v", services, err)
	}
	nodes, err := console.NodesCall.Call(t.Context(), s.Caller(), &console.NodesRequest{})
	if err != nil || len(nodes.Nodes) != 3 || nodes.Nodes[2].Node != "far" || nodes.Nodes[2].PeerName != "east" || len(nodes.Nodes[2].Checks) != 1 {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	one, err := console.NodesCall.Call(t.Context(), s.Caller(), &console.NodesRequest{Node: "far", Peer: "east"})
	if err != nil || len(one.Nodes) != 1 || one.NotFound {
		t.Errorf("node of the peer: %+v, %v", one, err)
	}
	topology, err := console.TopologyCall.Call(t.Context(), s.Caller(), &console.TopologyRequest{Service: "web"})
	if err != nil || len(topology.Upstreams) != 1 || topology.Upstreams[0].PeerName != "east" {
		t.Errorf("topology: %+v, %v", topology, err)
	}

	s.Resolve = func(token string) (*acl.Authorizer, error) {
		return acl.New(rules{"node:read:n1": true, "service:read:db": true, "service:read:web": true}, "x"), nil
	}
	services, err = console.ServicesCall.Call(t.Context(), s.Caller(), &console.ServicesRequest{Options: options("x"), Peer: "east"})
	if err != nil || len(services.Services) != 0 || !services.Filtered {
		t.Errorf("services of the peer for a token that may not see them: %+v, %v", services, err)
	}
}
