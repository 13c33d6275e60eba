package mesh_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
)

func registration(upstreams ...catalog.Upstream) *mesh.Registration {
	s := &catalog.Service{Kind: catalog.KindConnectProxy, ID: "p", Service: "web-sidecar-proxy", Port: 1}
	s.Proxy.DestinationServiceName = "web"
	s.Proxy.Upstreams = upstreams
	return &mesh.Registration{Node: "n", Datacenter: "dc1", Service: s}
}

func upstream(name string) catalog.Upstream {
	return catalog.Upstream{DestinationName: name, LocalBindPort: 1}
}

// chainTo returns a chain of a service that leads to others.
func chainTo(service string, targets ...string) *chain.GetReply {
	c := &chain.Chain{ServiceName: service, Targets: map[string]*chain.Target{}}
	for _, t := range targets {
		id := chain.TargetID(t, "", "dc1", "")
		c.Targets[id] = &chain.Target{ID: id, Service: t, Datacenter: "dc1"}
	}
	return &chain.GetReply{Chain: c}
}

func needs(s *mesh.Snapshot) []string {
	var out []string
	for _, n := range s.Needs() {
		w := n.String()
		if s.Has(n) {
			w += " +"
		}
		out = append(out, w)
	}
	return out
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestNeedsGrowWithAnswers(t *testing.T) {
	s := mesh.New(registration(upstream("db"), upstream("api"),
		catalog.Upstream{DestinationName: "unbound"},
		catalog.Upstream{DestinationName: "q", DestinationType: "prepared_query", LocalBindPort: 2},
		catalog.Upstream{DestinationName: "imported", DestinationPeer: "east", LocalBindPort: 3},
		catalog.Upstream{DestinationName: "*", LocalBindPort: 4}))
	base := []string{"roots", "leaf web", "mesh entry", "intentions web", "trust bundles of peers web"}
	rest := []string{"instances imported east", "trust bundle of peer east", "query q"}
	with := func(more ...string) []string { return slices.Concat(base, more, rest) }
	want(t, "at first", needs(s), with("chain api", "chain db"))
	one := mesh.Need{Kind: mesh.NeedChain, Service: "db"}
	two := s.With(map[mesh.Need]any{one: chainTo("db", "db", "backup")})
	want(t, "with a chain", needs(two), with("chain api", "chain db +", "instances backup", "instances db"))
	want(t, "the first snapshot", needs(s), with("chain api", "chain db"))
	three := two.With(map[mesh.Need]any{
		{Kind: mesh.NeedInstances, Service: "backup"}:    &catalog.InstancesReply{},
		{Kind: mesh.NeedInstances, Service: "something"}: &catalog.InstancesReply{},
	}).With(map[mesh.Need]any{one: chainTo("db", "db")})
	want(t, "what is no longer needed goes, but for a chain in use", needs(three),
		with("chain api", "chain db +", "instances backup +", "instances db"))
	four := three.With(map[mesh.Need]any{{Kind: mesh.NeedInstances, Service: "db"}: &catalog.InstancesReply{}})
	want(t, "and then it goes, too", needs(four), with("chain api", "chain db +", "instances db +"))
}

func TestComplete(t *testing.T) {
	s := mesh.New(registration(upstream("db")))
	for _, step := range []struct {
		n      mesh.Need
		answer any
	}{
		{mesh.Need{Kind: mesh.NeedRoots}, &ca.RootsReply{Roots: []*ca.Root{{}}}},
		{mesh.Need{Kind: mesh.NeedLeaf, Service: "web"}, &ca.Leaf{}},
		{mesh.Need{Kind: mesh.NeedMesh}, &entry.GetReply{}},
		{mesh.Need{Kind: mesh.NeedIntentions, Service: "web"}, &intention.MatchReply{}},
	} {
		if s.Complete() {
			t.Errorf("complete without %s", step.n)
		}
		s = s.With(map[mesh.Need]any{step.n: step.answer})
	}
	if !s.Complete() {
		t.Error("not complete, though only an upstream is missing")
	}
	if s.Mesh() != nil {
		t.Error("there is no mesh entry, but the snapshot has one")
	}
	typical := mesh.New(&mesh.Registration{Service: &catalog.Service{ID: "web"}})
	if typical.Complete() || len(typical.Needs()) != 0 {
		t.Error("a service that is no proxy needs something")
	}
}

// An upstream goes on with the chain it has until all is known about the next one.
func TestChainIsReplacedWhenItsInstancesAreKnown(t *testing.T) {
	s := mesh.New(registration(upstream("db")))
	of := mesh.Need{Kind: mesh.NeedChain, Service: "db"}
	instances := func(name string) map[mesh.Need]any {
		return map[mesh.Need]any{{Kind: mesh.NeedInstances, Service: name}: &catalog.InstancesReply{}}
	}
	first, next := chainTo("db", "db"), chainTo("db", "new")
	s = s.With(map[mesh.Need]any{of: first})
	want(t, "the first chain does not wait", s.Chain(s.Upstreams[0]) == first.Chain, true)
	s = s.With(instances("db")).With(map[mesh.Need]any{of: next})
	want(t, "the next does", s.Chain(s.Upstreams[0]) == first.Chain, true)
	s = s.With(map[mesh.Need]any{{Kind: mesh.NeedRoots}: &ca.RootsReply{}})
	want(t, "also after other answers", s.Chain(s.Upstreams[0]) == first.Chain, true)
	s = s.With(instances("new"))
	want(t, "until its instances are known", s.Chain(s.Upstreams[0]) == next.Chain, true)

	changed := upstream("db")
	changed.Config = map[string]any{"protocol": "http"}
	s = s.Register(registration(changed, upstream("api")))
	want(t, "a changed registration keeps the chain", s.Chain(s.Upstreams[1]) == next.Chain, true)
	if s.Chain(s.Upstreams[0]) != nil {
		t.Error("a new upstream has a chain from nowhere")
	}
	own := chainTo("db", "db")
	s = s.With(map[mesh.Need]any{{Kind: mesh.NeedChain, Service: "db", Overrides: chain.Overrides{Protocol: "http"}}: own}).With(instances("db"))
	want(t, "its own chain takes over", s.Chain(s.Upstreams[1]) == own.Chain, true)
	s = s.Register(registration(upstream("api")))
	if n := needs(s); slices.Contains(n, "instances db +") {
		t.Errorf("needs %q of an upstream that is gone", n)
	}
}

func TestUpstreamID(t *testing.T) {
	tests := []struct {
		want string
		u    catalog.Upstream
	}{
		{"db", catalog.Upstream{DestinationName: "db"}},
		{"db", catalog.Upstream{DestinationName: "db", DestinationType: "service"}},
		{"db?dc=dc2", catalog.Upstream{DestinationName: "db", Datacenter: "dc2"}},
		{"db?peer=east", catalog.Upstream{DestinationName: "db", DestinationPeer: "east"}},
		{"prepared_query:q", catalog.Upstream{DestinationName: "q", DestinationType: "prepared_query"}},
		{"prepared_query:q?dc=dc2", catalog.Upstream{DestinationName: "q", DestinationType: "prepared_query", Datacenter: "dc2"}},
	}
	for _, tt := range tests {
		if got := mesh.UpstreamID(&tt.u); got != tt.want {
			t.Errorf("UpstreamID(%+v) = %q, want %q", tt.u, got, tt.want)
		}
	}
}

func TestParseConfig(t *testing.T) {
	ms := func(n int) *int { return &n }
	defaults := mesh.Config{Protocol: "tcp", LocalConnectTimeoutMs: 5000}
	with := func(f func(*mesh.Config)) mesh.Config {
		c := defaults
		f(&c)
		return c
	}
	tests := []struct {
		name, in string
		want     mesh.Config
		bad      bool
	}{
		{name: "nothing", in: `{}`, want: defaults},
		{name: "keys of others", in: `{"envoy_statsd_url": "x", "foo": {}}`, want: defaults},
		{name: "protocol in lower case", in: `{"protocol": "HTTP2"}`, want: with(func(c *mesh.Config) { c.Protocol = "http2" })},
		{name: "numbers as text", in: `{"bind_port": "21", "local_connect_timeout_ms": "7"}`,
			want: with(func(c *mesh.Config) { c.BindPort, c.LocalConnectTimeoutMs = 21, 7 })},
		{name: "zero is not unset", in: `{"local_idle_timeout_ms": 0, "xds_fetch_timeout_ms": -1}`,
			want: with(func(c *mesh.Config) { c.LocalIdleTimeoutMs, c.XDSFetchTimeoutMs = ms(0), ms(-1) })},
		{name: "bad value, the others stay", in: `{"max_inbound_connections": "many", "bind_address": "::1"}`,
			want: with(func(c *mesh.Config) { c.BindAddress = "::1" }), bad: true},
		{name: "unknown balance", in: `{"balance_inbound_connections": "fair"}`, want: defaults, bad: true},
		{name: "negative", in: `{"bind_port": -1, "max_inbound_connections": -5, "local_connect_timeout_ms": -3}`, want: defaults},
	}
	for _, tt := range tests {
		var opaque map[string]any
		if err := json.Unmarshal([]byte(tt.in), &opaque); err != nil {
			t.Fatal(err)
		}
		got, err := mesh.ParseConfig(opaque)
		if d := cmp.Diff(tt.want, got); d != "" || (err != nil) != tt.bad {
			t.Errorf("%s: error %v (-want +got):\n%s", tt.name, err, d)
		}
	}
}

func TestUpstreamConfig(t *testing.T) {
	u := upstream("db")
	u.Config = map[string]any{
		"protocol": "GRPC", "connect_timeout_ms": 250.0, "limits": map[string]any{"max_connections": 0},
		"passive_health_check": map[string]any{"interval": "2s", "max_failures": 3}, "mesh_gateway": map[string]any{"mode": "local"},
	}
	s := mesh.New(registration(u))
	if err := errors.Join(s.Problems...); err != nil {
		t.Error(err)
	}
	c := s.Upstreams[0].Config
	if c.Protocol != "grpc" || *c.Limits.MaxConnections != 0 || c.Limits.MaxPendingRequests != nil ||
		c.PassiveHealthCheck.Interval != 2*time.Second || c.PassiveHealthCheck.MaxFailures != 3 {
		t.Errorf("config %+v", c)
	}
	last := s.Needs()[len(s.Needs())-1]
	want(t, "overrides", last.Overrides, chain.Overrides{
		Protocol: "grpc", ConnectTimeout: 250 * time.Millisecond, MeshGateway: catalog.MeshGateway{Mode: "local"},
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"protocol": "http", "bind_port": "1"}`))
	f.Add([]byte(`{"bind_port": {"a": []}, "local_request_timeout_ms": null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var opaque map[string]any
		if json.Unmarshal(data, &opaque) != nil {
			return
		}
		c, _ := mesh.ParseConfig(opaque)
		if c.Protocol == "" || c.LocalConnectTimeoutMs <= 0 || c.BindPort < 0 || c.MaxInboundConnections < 0 ||
			c.BalanceInboundConnections != "" && c.BalanceInboundConnections != mesh.ExactBalance {
			t.Errorf("ParseConfig(%s) = %+v", data, c)
		}
	})
}

func TestSinceTellsWhatChanged(t *testing.T) {
	of := mesh.Need{Kind: mesh.NeedChain, Service: "db"}
	instances := mesh.Need{Kind: mesh.NeedInstances, Service: "db"}
	roots := mesh.Need{Kind: mesh.NeedRoots}
	one := mesh.New(registration(upstream("db"))).With(map[mesh.Need]any{of: chainTo("db", "db")})
	two := one.With(map[mesh.Need]any{instances: &catalog.InstancesReply{}})
	if _, ok := two.Since(one); ok {
		t.Error("the first answer to a need is more than a change")
	}
	three := two.With(map[mesh.Need]any{roots: &ca.RootsReply{}})
	three = three.With(map[mesh.Need]any{roots: &ca.RootsReply{Roots: []*ca.Root{{}}}})
	four := three.With(map[mesh.Need]any{instances: &catalog.InstancesReply{}})
	got, ok := four.Since(three)
	want(t, "a newer answer", got, []mesh.Need{instances})
	want(t, "and it is known", ok, true)
	other := three.With(map[mesh.Need]any{roots: &ca.RootsReply{}})
	if _, ok := other.Since(four); ok {
		t.Error("neither snapshot came from the other")
	}
	if got := other.With(map[mesh.Need]any{of: chainTo("db", "x")}); got.Chain(got.Upstreams[0]) == nil {
		t.Error("no chain")
	} else if _, ok := got.Since(other); ok {
		t.Error("a chain brings other needs")
	}
	last := four
	for range 200 {
		last = last.With(map[mesh.Need]any{instances: &catalog.InstancesReply{}})
	}
	if _, ok := last.Since(four); ok {
		t.Error("changes are kept for ever")
	}
	if _, ok := last.Since(last); !ok {
		t.Error("a snapshot does not differ from itself")
	}
}

// In transparent mode a proxy follows what its service may call.
func TestTransparentModeImpliesUpstreams(t *testing.T) {
	r := registration(upstream("db"),
		catalog.Upstream{DestinationName: "*", CentrallyConfigured: true, Config: map[string]any{"protocol": "http", "connect_timeout_ms": 7}},
		catalog.Upstream{DestinationName: "api", CentrallyConfigured: true, Config: map[string]any{"connect_timeout_ms": 8}},
		catalog.Upstream{DestinationName: "hidden"})
	r.Service.Proxy.Mode = "transparent"
	s := mesh.New(r)
	show := func() []string {
		var out []string
		for _, u := range s.Upstreams {
			if u.Kind != mesh.ToNothing {
				out = append(out, fmt.Sprint(u.ID, " ", u.Kind, " ", u.Config.Protocol, u.Config.ConnectTimeoutMs))
			}
		}
		return out
	}
	want(t, "registered", show(), []string{"db 1 0", "hidden 1 0"})
	callable := mesh.Need{Kind: mesh.NeedCallable, Service: "web"}
	if !slices.Contains(s.Needs(), callable) {
		t.Fatalf("needs %q", needs(s))
	}
	outside := func(port int) *entry.ServiceDefaults {
		return &entry.ServiceDefaults{Header: entry.Header{Name: "ext"}, Destination: &entry.Destination{Addresses: []string{"10.0.0.1"}, Port: port}}
	}
	s = s.With(map[mesh.Need]any{callable: &intention.CallableReply{
		Services: []string{"api", "db", "ext", "web", "x"}, Destinations: []*entry.ServiceDefaults{outside(1)},
		Imported: []intention.Imported{{Service: "x", Peer: "east"}},
	}})
	want(t, "implied", show(), []string{"api 1 8", "db 1 0", "ext 4 7", "hidden 1 0", "x 1 7", "x?peer=east 2 7"})
	before := slices.Clone(s.Upstreams)
	s = s.With(map[mesh.Need]any{callable: &intention.CallableReply{Services: []string{"api"}, Destinations: []*entry.ServiceDefaults{outside(1)}}})
	want(t, "less", show(), []string{"api 1 8", "db 1 0", "ext 4 7", "hidden 1 0"})
	for _, u := range s.Upstreams {
		if !slices.Contains(before, u) {
			t.Errorf("%s is another one", u.ID)
		}
	}
	s = s.With(map[mesh.Need]any{callable: &intention.CallableReply{Destinations: []*entry.ServiceDefaults{outside(2)}}})
	want(t, "none but a changed destination", show(), []string{"db 1 0", "ext 4 7", "hidden 1 0"})
	s = s.Register(r)
	want(t, "registered again", show(), []string{"db 1 0", "ext 4 7", "hidden 1 0"})
}

func FuzzUpstreamConfig(f *testing.F) {
	f.Add([]byte(`{"limits": {"max_connections": -1}, "passive_health_check": {"interval": "1s"}}`))
	f.Add([]byte(`{"Limits": {"MaxConnections": "3"}, "connect_timeout_ms": -5, "balance_outbound_connections": "fair", "mesh_gateway": []}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		u := upstream("db")
		if json.Unmarshal(data, &u.Config) != nil {
			return
		}
		c := mesh.New(registration(u)).Upstreams[0].Config
		if c.ConnectTimeout() <= 0 || c.ConnectTimeoutMs < 0 || c.BalanceOutboundConnections != "" && c.BalanceOutboundConnections != mesh.ExactBalance {
			t.Errorf("config of %s is %+v", data, c)
		}
	})
}
