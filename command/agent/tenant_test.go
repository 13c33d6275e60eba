package agent

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"

	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// generated returns the whole configuration of a sidecar as text, a piece for each resource, or nil before there is any.
func generated(t *testing.T, s ads.Subscription) map[string]string {
	t.Helper()
	r, _, err := s.Current()
	if err != nil || r == nil {
		return nil
	}
	out := map[string]string{}
	for typ := range xds.Type(xds.NumTypes) {
		for name, x := range r.Of(typ) {
			m, err := x.Body.UnmarshalNew()
			if err != nil {
				t.Fatal(err)
			}
			out[typ.String()+" "+name] = prototext.MarshalOptions{Multiline: true}.Format(m)
		}
	}
	return out
}

// changed lists the resources that differ.
func changed(before, after map[string]string) (names []string) {
	for name, text := range before {
		// Formatted text is not stable in its white space.
		if strings.Join(strings.Fields(after[name]), " ") != strings.Join(strings.Fields(text), " ") {
			names = append(names, name)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Whoever may write one service, and that alone, changes nothing in the configuration of the sidecar of another one,
// except, where that calls the service, what leads there (spec/threats.md, class 19).
func TestThreat19OneServiceConfiguresNoOther(t *testing.T) {
	seed := testkit.Seed(t)
	r := rand.New(rand.NewPCG(seed, 19))
	g := runServer(t)
	token := g.token(`service_prefix "" { policy = "read" } service "a" { policy = "write" } service "a-sidecar-proxy" { policy = "write" }`)
	for _, name := range []string{"a", "b", "c", "d"} {
		g.must("PUT", "/v1/config", fmt.Sprintf(`{"Kind": "service-defaults", "Name": %q, "Protocol": "http"}`, name))
	}
	g.must("PUT", "/v1/config", `{"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "*", "Action": "allow"}]}`)
	g.must("PUT", "/v1/agent/service/register", `{"Name": "a", "Port": 1, "Connect": {"SidecarService": {}}}`)
	upstreams := map[string]string{
		"b": `{"DestinationName": "a", "LocalBindPort": 9001}, {"DestinationName": "d", "LocalBindPort": 9002}`, // calls a
		"c": `{"DestinationName": "d", "LocalBindPort": 9003}`,                                                  // does not
		"d": ``,
	}
	proxies, before := map[string]ads.Subscription{}, map[string]map[string]string{}
	for name, list := range upstreams {
		g.must("PUT", "/v1/agent/service/register", fmt.Sprintf(`{"Name": %q, "Port": 2, "Connect": {"SidecarService": {"Proxy": {"Upstreams": [%s]}}}}`, name, list))
		s, err := g.proxies.Follow(ads.Node{ID: name + "-sidecar-proxy", Flavour: xds.Envoy})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		proxies[name] = s
	}
	// A mark is something that everybody shall see in a sidecar: once it came and went, so did all that was before it.
	barrier := func(name string) map[string]string {
		t.Helper()
		var now map[string]string
		for _, marker := range []string{`, {"Name": "marker", "Action": "deny"}`, ""} {
			g.must("PUT", "/v1/config", fmt.Sprintf(`{"Kind": "service-intentions", "Name": %q, "Sources": [{"Name": "*", "Action": "allow"}%s]}`, name, marker))
			g.eventually("the sidecar of "+name+" has the mark", func() bool {
				now = generated(t, proxies[name])
				text := public(now)
				return text != "" && strings.Contains(text, "/svc/marker") == (marker != "")
			})
		}
		return now
	}
	// What is registered here reaches the catalog a little later.
	for name, to := range map[string][]string{"b": {"a", "d"}, "c": {"d"}} {
		for _, upstream := range to {
			g.eventually("the sidecar of "+name+" knows where "+upstream+" is", func() bool {
				for resource, text := range generated(t, proxies[name]) {
					if strings.HasPrefix(resource, "endpoint "+upstream+".") && strings.Contains(text, "port_value") {
						return true
					}
				}
				return false
			})
		}
	}
	for name := range proxies {
		before[name] = barrier(name)
	}

	script := `function envoy_on_request(h) end`
	patches := []string{"cluster", "cluster-load-assignment", "listener", "route"}
	done, refused := map[string]int{}, 0
	step := func() {
		service := pick(r, []string{"a", "a", "a", "b", "c", "d"})
		extensions := fmt.Sprintf(`"EnvoyExtensions": [{"Name": "builtin/lua", "Arguments": {"ProxyType": "connect-proxy", "Listener": %q, "Script": %q}},
			{"Name": "builtin/property-override", "Arguments": {"ProxyType": "connect-proxy", "Patches": [{"ResourceFilter": {"ResourceType": %q, "TrafficDirection": %q%s}, "Op": "add", "Path": %q, "Value": 7}]}}]`,
			pick(r, []string{"inbound", "outbound"}), script, pick(r, patches[:1]), pick(r, []string{"inbound", "outbound"}),
			pick(r, []string{"", fmt.Sprintf(`, "Services": [{"Name": %q}]`, service)}), "/connect_timeout/seconds")
		bodies := []string{
			fmt.Sprintf(`{"Kind": "service-defaults", "Name": %q, "Protocol": "http", %s}`, service, extensions),
			fmt.Sprintf(`{"Kind": "service-defaults", "Name": %q, "Protocol": %q, "MaxInboundConnections": %d, "UpstreamConfig": {"Defaults": {"ConnectTimeoutMs": %d}}}`, service, pick(r, []string{"http", "grpc", "http2"}), r.IntN(9), r.IntN(9000)),
			fmt.Sprintf(`{"Kind": "service-resolver", "Name": %q, "ConnectTimeout": "%ds", "Failover": {"*": {"Service": %q}}}`, service, 1+r.IntN(50), pick(r, []string{"b", "c", "d"})),
			fmt.Sprintf(`{"Kind": "service-resolver", "Name": %q, "Redirect": {"Service": %q}}`, service, pick(r, []string{"b", "c", "d"})),
			fmt.Sprintf(`{"Kind": "service-splitter", "Name": %q, "Splits": [{"Weight": %d, "Service": "a"}, {"Weight": %d, "Service": "d"}]}`, service, 40, 60),
			fmt.Sprintf(`{"Kind": "service-router", "Name": %q, "Routes": [{"Match": {"HTTP": {"PathPrefix": "/x%d"}}, "Destination": {"Service": "d"}}]}`, service, r.IntN(9)),
			fmt.Sprintf(`{"Kind": "service-intentions", "Name": %q, "Sources": [{"Name": "*", "Action": "deny"}]}`, pick(r, []string{"b", "c", "d", "*"})),
			fmt.Sprintf(`{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "tcp"}, %s}`, extensions),
			`{"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": true}}`,
			fmt.Sprintf(`{"Kind": "exported-services", "Name": "default", "Services": [{"Name": %q, "Consumers": [{"Peer": "p"}]}]}`, service),
		}
		method, target, body := "PUT", "/v1/config", pick(r, bodies)
		switch r.IntN(8) {
		case 0:
			target = "/v1/agent/service/register"
			body = fmt.Sprintf(`{"ID": %q, "Name": %q, "Port": %d, "Meta": {"x": "y"}, "Connect": {"SidecarService": {"Proxy": {"Config": {"envoy_public_listener_json": "{}", "envoy_local_cluster_json": "{}"}, "EnvoyExtensions": []}}}}`,
				pick(r, []string{"a", "a2", "b", "c"}), service, 1+r.IntN(9))
		case 1:
			target = "/v1/agent/service/register"
			body = fmt.Sprintf(`{"ID": %q, "Name": "a-sidecar-proxy", "Kind": "connect-proxy", "Port": 9, "Proxy": {"DestinationServiceName": %q, "DestinationServiceID": %q, "Upstreams": [{"DestinationName": "c", "LocalBindPort": 7}]}}`,
				pick(r, []string{"a-sidecar-proxy", "b-sidecar-proxy", "c-sidecar-proxy", "d-sidecar-proxy"}), service, service)
		case 2:
			method, target, body = "DELETE", fmt.Sprintf("/v1/config/%s/%s", pick(r, []string{"service-resolver", "service-splitter", "service-router", "service-defaults"}), service), ""
		}
		code, answer := g.do(method, target, token, body)
		switch {
		case code == 200:
			done[method+" "+strings.Split(target, "/")[2]]++
		case code == 403 || strings.Contains(answer, "Permission denied"):
			refused++
		}
	}
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	little := func() bool { return done["PUT config"] < 10 || done["PUT agent"] < 1 || refused < 10 }
	for round := 0; round < rounds || round < 10*rounds && little(); round++ {
		for range 25 {
			step()
		}
		for _, name := range []string{"b", "c", "d"} {
			names := changed(before[name], barrier(name))
			if name == "b" { // what leads to a is for a to say
				names = slices.DeleteFunc(names, func(name string) bool {
					return !strings.Contains(name, "public_listener") && !strings.Contains(name, "local_app") && !strings.Contains(name, " d.") && !strings.Contains(name, " d:")
				})
			}
			if len(names) > 0 {
				t.Fatalf("the configuration of %s is another one: %q\n%s", name, names, generated(t, proxies[name])[names[0]])
			}
		}
	}
	if little() {
		t.Errorf("done %v, refused %d: this tests little", done, refused)
	}
}

// public is the listener for others.
func public(resources map[string]string) string {
	for name, text := range resources {
		if strings.HasPrefix(name, "listener public_listener") {
			return text
		}
	}
	return ""
}
