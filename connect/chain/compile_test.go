package chain_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// set is a set of entries.
type set map[entry.Key]entry.Entry

func (s set) Entry(kind entry.Kind, name string) entry.Entry {
	return s[entry.Key{Kind: kind, Name: name}]
}

// entries reads entries from JSON.
func entries(t testing.TB, texts ...string) set {
	t.Helper()
	s := set{}
	for _, text := range texts {
		var doc map[string]any
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatal(err)
		}
		e, err := entry.Decode(doc)
		if err != nil {
			t.Fatal(err)
		}
		e.Normalize()
		if err := e.Validate(); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		s[entry.KeyOf(e)] = e
	}
	return s
}

func compile(service string, s set, o chain.Overrides) (*chain.Chain, error) {
	return chain.Compile(chain.Request{Service: service, Datacenter: "dc1", TrustDomain: "td.consul", Overrides: o}, s)
}

const httpEverywhere = `{"Kind": "proxy-defaults", "Config": {"protocol": "http"}}`

func TestDefaultChain(t *testing.T) {
	got, err := compile("web", nil, chain.Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	five := catalog.Duration(5 * time.Second)
	want := &chain.Chain{
		ServiceName: "web", Namespace: "default", Partition: "default", Datacenter: "dc1", Default: true, Protocol: "tcp",
		StartNode: "resolver:web.default.default.dc1",
		Nodes: map[string]*chain.Node{"resolver:web.default.default.dc1": {
			Type: "resolver", Name: "web.default.default.dc1",
			Resolver: &chain.Resolution{Default: true, ConnectTimeout: five, Target: "web.default.default.dc1"},
		}},
		Targets: map[string]*chain.Target{"web.default.default.dc1": {
			ID: "web.default.default.dc1", Service: "web", Namespace: "default", Partition: "default", Datacenter: "dc1",
			ConnectTimeout: five, SNI: "web.default.dc1.internal.td.consul", Name: "web.default.dc1.internal.td.consul",
		}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestProtocolSources(t *testing.T) {
	tests := []struct {
		name    string
		entries set
		want    string
	}{
		{"nothing", nil, "tcp"},
		{"proxy-defaults", entries(t, httpEverywhere), "http"},
		{"service-defaults without one mean tcp", entries(t, httpEverywhere, `{"Kind": "service-defaults", "Name": "web"}`), "tcp"},
		{"service-defaults", entries(t, httpEverywhere, `{"Kind": "service-defaults", "Name": "web", "Protocol": "grpc"}`), "grpc"},
	}
	for _, tt := range tests {
		c, err := compile("web", tt.entries, chain.Overrides{})
		if err != nil || c.Protocol != tt.want {
			t.Errorf("%s: %v, %v; want %s", tt.name, c, err, tt.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name, service, want string
		entries             []string
	}{
		{"router on tcp", "web", `discovery chain "web" uses a protocol "tcp" that does not permit advanced routing or splitting behavior`,
			[]string{`{"Kind": "service-router", "Name": "web", "Routes": []}`}},
		{"protocols differ", "web", `discovery chain "web" uses inconsistent protocols; service "db" has "tcp" which is not "http"`,
			[]string{httpEverywhere, `{"Kind": "service-defaults", "Name": "db"}`, `{"Kind": "service-router", "Name": "web", "Routes": [{"Destination": {"Service": "db"}}]}`}},
		{"no such subset", "web", `service "db" does not have a subset named "v9"`,
			[]string{httpEverywhere, `{"Kind": "service-router", "Name": "web", "Routes": [{"Destination": {"Service": "db", "ServiceSubset": "v9"}}]}`}},
		{"redirect loop", "a", `detected circular resolver redirect: [a.default.default.dc1 -> b.default.default.dc1 -> a.default.default.dc1]`,
			[]string{`{"Kind": "service-resolver", "Name": "a", "Redirect": {"Service": "b"}}`, `{"Kind": "service-resolver", "Name": "b", "Redirect": {"Service": "a"}}`}},
		{"splitter loop", "a", `detected circular reference: [splitter:a.default.default -> splitter:b.default.default -> splitter:a.default.default]`,
			[]string{httpEverywhere, `{"Kind": "service-splitter", "Name": "a", "Splits": [{"Weight": 100, "Service": "b"}]}`, `{"Kind": "service-splitter", "Name": "b", "Splits": [{"Weight": 100, "Service": "a"}]}`}},
		{"external with subsets", "web", `service "web" has an external SNI set; cannot define subsets for external services`,
			[]string{`{"Kind": "service-defaults", "Name": "web", "ExternalSNI": "x"}`, `{"Kind": "service-resolver", "Name": "web", "Subsets": {"v1": {}}}`}},
		{"external with redirect", "web", `service "web" has an external SNI set; cannot define redirects for external services`,
			[]string{`{"Kind": "service-defaults", "Name": "web", "ExternalSNI": "x"}`, `{"Kind": "service-resolver", "Name": "web", "Redirect": {"Service": "b"}}`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if c, err := compile(tt.service, entries(t, tt.entries...), chain.Overrides{}); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, %v; want %q", c, err, tt.want)
			}
		})
	}
}

func TestFailoverTargets(t *testing.T) {
	s := entries(t,
		`{"Kind": "service-resolver", "Name": "web", "DefaultSubset": "v1", "Subsets": {"v1": {"Filter": "Service.Meta.v == 1"}, "v2": {}},
		  "Failover": {"v1": {"Targets": [{"ServiceSubset": "v2"}, {"Service": "other"}, {"Datacenter": "dc2"}, {"Peer": "p"}, {}]}, "*": {"Service": "last"}}, "ConnectTimeout": "9s"}`,
		`{"Kind": "service-resolver", "Name": "other", "Redirect": {"Service": "end", "Datacenter": "dc3"}}`)
	c, err := compile("web", s, chain.Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	n := c.Nodes[c.StartNode]
	want := []string{
		"v2.web.default.default.dc1", "end.default.default.dc3", "v1.web.default.default.dc2", "v1.web.default.default.external.p",
	}
	if d := cmp.Diff(want, n.Resolver.Failover.Targets); d != "" {
		t.Error(d)
	}
	first := c.Targets["v1.web.default.default.dc1"]
	if first.Subset.Filter == "" || first.ConnectTimeout != catalog.Duration(9*time.Second) || first.SNI != "v1.web.default.dc1.internal.td.consul" {
		t.Errorf("first target %+v", first)
	}
	if p := c.Targets["v1.web.default.default.external.p"]; p.SNI != "" || p.Datacenter != "" || p.Peer != "p" {
		t.Errorf("peer's target %+v", p)
	}
}

func TestOverridesThatChangeNothingLeaveNoMark(t *testing.T) {
	s := entries(t, httpEverywhere, `{"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "15s"}`)
	same := chain.Overrides{Protocol: "http", ConnectTimeout: 15 * time.Second}
	if c, err := compile("web", s, same); err != nil || c.CustomizationHash != "" {
		t.Errorf("hash %q, %v", c.CustomizationHash, err)
	}
	seen := map[string]bool{}
	for _, o := range []chain.Overrides{
		{Protocol: "grpc"}, {Protocol: "tcp"}, {ConnectTimeout: time.Second}, {MeshGateway: catalog.MeshGateway{Mode: "local"}},
	} {
		c, err := compile("web", s, o)
		if err != nil || len(c.CustomizationHash) != 8 || seen[c.CustomizationHash] {
			t.Errorf("%+v: hash %q, %v", o, c.CustomizationHash, err)
		}
		seen[c.CustomizationHash] = true
	}
}

func TestNestedSplitsMultiply(t *testing.T) {
	s := entries(t, httpEverywhere,
		`{"Kind": "service-splitter", "Name": "a", "Splits": [{"Weight": 40, "Service": "b", "RequestHeaders": {"Set": {"h": "outer", "o": "1"}}, "ResponseHeaders": {"Set": {"h": "outer"}}}, {"Weight": 60}]}`,
		`{"Kind": "service-splitter", "Name": "b", "Splits": [{"Weight": 33.33, "Service": "x", "RequestHeaders": {"Set": {"h": "inner"}}, "ResponseHeaders": {"Set": {"h": "inner"}}}, {"Weight": 66.67, "Service": "y"}]}`,
		`{"Kind": "service-resolver", "Name": "y", "LoadBalancer": {"Policy": "maglev"}}`)
	c, err := compile("a", s, chain.Overrides{})
	if err != nil {
		t.Fatal(err)
	}
	node := c.Nodes["splitter:a.default.default"]
	var got []string
	for _, s := range node.Splits {
		got = append(got, fmt.Sprintf("%.2f %s", s.Weight, s.NextNode))
	}
	want := []string{"13.33 resolver:x.default.default.dc1", "26.67 resolver:y.default.default.dc1", "60.00 resolver:a.default.default.dc1"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	x := node.Splits[0].Definition
	if x.RequestHeaders.Set["h"] != "inner" || x.RequestHeaders.Set["o"] != "1" || x.ResponseHeaders.Set["h"] != "outer" {
		t.Errorf("headers %v %v", x.RequestHeaders, x.ResponseHeaders)
	}
	if !node.LoadBalancer.Hashes() || len(c.Nodes) != 4 {
		t.Errorf("load balancer %v, %d nodes", node.LoadBalancer, len(c.Nodes))
	}
}

// Chains of random entries are closed: every reference leads to a node or target that is there, and nothing else is;
// the weights of a splitter sum up; compiling changes no entry and gives the same chain again.
func TestRandomChainsAreClosed(t *testing.T) {
	seed := testkit.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	names := []string{"a", "b", "c", "d"}
	pick := func() string { return names[rng.IntN(len(names))] }
	compiled := 0
	for range 1500 {
		texts := []string{httpEverywhere}
		for _, n := range names {
			switch rng.IntN(5) {
			case 0:
				texts = append(texts, fmt.Sprintf(`{"Kind": "service-splitter", "Name": %q, "Splits": [{"Weight": 30, "Service": %q}, {"Weight": 70, "ServiceSubset": "s"}]}`, n, pick()))
				texts = append(texts, fmt.Sprintf(`{"Kind": "service-resolver", "Name": %q, "Subsets": {"s": {}}}`, n))
			case 1:
				texts = append(texts, fmt.Sprintf(`{"Kind": "service-router", "Name": %q, "Routes": [{"Destination": {"Service": %q}}]}`, n, pick()))
			case 2:
				texts = append(texts, fmt.Sprintf(`{"Kind": "service-resolver", "Name": %q, "Redirect": {"Service": %q, "Datacenter": "dc2"}}`, n, pick()))
			case 3:
				texts = append(texts, fmt.Sprintf(`{"Kind": "service-resolver", "Name": %q, "Failover": {"*": {"Targets": [{"Service": %q}, {"Datacenter": "dc2"}]}}}`, n, pick()))
			}
		}
		s := entries(t, texts...)
		before, _ := json.Marshal(sorted(s))
		for _, n := range names {
			c, err := compile(n, s, chain.Overrides{})
			if err != nil {
				continue
			}
			compiled++
			checkClosed(t, c)
			again, err := compile(n, s, chain.Overrides{})
			if d := cmp.Diff(c, again); err != nil || d != "" {
				t.Fatalf("compiled again: %v %s", err, d)
			}
		}
		if after, _ := json.Marshal(sorted(s)); string(after) != string(before) {
			t.Fatalf("entries were changed: %s", after)
		}
	}
	if compiled < 100 {
		t.Errorf("only %d chains compiled", compiled)
	}
}

func sorted(s set) map[string]entry.Entry {
	out := map[string]entry.Entry{}
	for k, e := range s {
		out[string(k.Kind)+"/"+k.Name] = e
	}
	return out
}

func checkClosed(t *testing.T, c *chain.Chain) {
	t.Helper()
	nodes, targets := map[string]bool{c.StartNode: true}, map[string]bool{}
	for key, n := range c.Nodes {
		if n.Key() != key {
			t.Fatalf("node %s under %s", n.Key(), key)
		}
		sum := 0.0
		for _, r := range n.Routes {
			nodes[r.NextNode] = true
		}
		for _, s := range n.Splits {
			nodes[s.NextNode] = true
			sum += s.Weight
			if next := c.Nodes[s.NextNode]; next == nil || next.Type == chain.Splitter {
				t.Fatalf("split to %s", s.NextNode)
			}
		}
		if n.Type == chain.Splitter && (sum < 99 || sum > 101) {
			t.Fatalf("weights of %s sum up to %f", key, sum)
		}
		if n.Resolver != nil {
			targets[n.Resolver.Target] = true
			if n.Resolver.Failover != nil {
				for _, id := range n.Resolver.Failover.Targets {
					targets[id] = true
				}
			}
		}
	}
	for key := range nodes {
		if c.Nodes[key] == nil {
			t.Fatalf("no node %s", key)
		}
	}
	for id := range targets {
		if c.Targets[id] == nil {
			t.Fatalf("no target %s", id)
		}
	}
	if len(nodes) != len(c.Nodes) || len(targets) != len(c.Targets) {
		t.Fatalf("%d of %d nodes and %d of %d targets in use", len(nodes), len(c.Nodes), len(targets), len(c.Targets))
	}
}
