package proxystate_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/client/proxystate"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

const trustDomain = "11111111-2222-3333-4444-555555555555.consul"

// servers answer the calls proxies need, blocking as they do. One index counts all changes.
type servers struct {
	mu        sync.Mutex
	index     uint64
	changed   chan struct{}
	down      error
	hold      map[string]bool // calls, by method, that are not answered
	entries   map[entry.Key]entry.Entry
	instances map[string][]*catalog.Instance // by service, or service@datacenter
	node      []*catalog.Service             // of node "other"
	tokens    map[string]bool                // tokens seen
	inFlight  int
}

func newServers() *servers {
	return &servers{
		index: 1, changed: make(chan struct{}), hold: map[string]bool{}, entries: map[entry.Key]entry.Entry{},
		instances: map[string][]*catalog.Instance{}, tokens: map[string]bool{},
	}
}

// change changes what the servers say.
func (s *servers) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.index++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *servers) put(e entry.Entry) {
	s.change(func() {
		e.Normalize()
		s.entries[entry.KeyOf(e)] = e
	})
}

func (s *servers) Entry(kind entry.Kind, name string) entry.Entry {
	return s.entries[entry.Key{Kind: kind, Name: name}]
}

func (s *servers) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	o := *req.(interface{ ReadOptions() *read.Options }).ReadOptions()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight++
	defer func() { s.inFlight-- }()
	if o.Token != "" {
		s.tokens[o.Token] = true
	}
	limit := time.After(o.MaxWait)
	expired := false
	for s.down == nil && (s.hold[d.Name] || o.MinIndex >= s.index && !expired) {
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-limit:
			expired = true
		case <-ctx.Done():
			s.mu.Lock()
			return ctx.Err()
		}
		s.mu.Lock()
	}
	if s.down != nil {
		return s.down
	}
	meta := read.Meta{Index: s.index}
	switch r := req.(type) {
	case *ca.RootsRequest:
		*resp.(*ca.RootsReply) = ca.RootsReply{Meta: meta, TrustDomain: trustDomain, Roots: []*ca.Root{{ID: "a", RootCert: "ROOT", Active: true}}}
	case *entry.GetRequest:
		*resp.(*entry.GetReply) = entry.GetReply{Meta: meta, Entry: entry.Any{Entry: s.Entry(r.Kind, r.Name)}}
	case *intention.MatchRequest:
		own, _ := s.Entry(entry.KindServiceIntentions, r.Names[0]).(*entry.ServiceIntentions)
		*resp.(*intention.MatchReply) = intention.MatchReply{Meta: meta, Matches: [][]*intention.Intention{intention.To(own, nil)}}
	case *chain.GetRequest:
		dc := r.EvaluateDatacenter
		if dc == "" {
			dc = "dc1"
		}
		c, err := chain.Compile(chain.Request{Service: r.Service, Datacenter: dc, TrustDomain: trustDomain, Overrides: r.Overrides}, s)
		if err != nil {
			return err
		}
		*resp.(*chain.GetReply) = chain.GetReply{Meta: meta, Chain: c}
	case *catalog.InstancesRequest:
		if r.Datacenter == "dead" {
			return wireerr.ErrNoDatacenter
		}
		key := r.Service
		if r.Datacenter != "" {
			key += "@" + r.Datacenter
		}
		*resp.(*catalog.InstancesReply) = catalog.InstancesReply{Meta: meta, Instances: s.instances[key]}
	case *catalog.NodeServicesRequest:
		*resp.(*catalog.NodeServicesReply) = catalog.NodeServicesReply{Meta: meta, Services: s.node}
	default:
		return fmt.Errorf("unexpected call %s", d.Name)
	}
	return nil
}

// leaves have one certificate for all.
type leaves struct {
	mu      sync.Mutex
	index   uint64
	err     error
	changed chan struct{}
}

func (l *leaves) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	l.err = err
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leaves) Get(ctx context.Context, r leaf.Request) (leaf.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil && l.index <= r.MinIndex {
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
			l.mu.Lock()
		case <-ctx.Done():
			l.mu.Lock()
			return leaf.Result{}, ctx.Err()
		}
	}
	if l.err != nil {
		return leaf.Result{}, l.err
	}
	return leaf.Result{Leaf: &ca.Leaf{CertPEM: fmt.Sprintf("LEAF %d", l.index), PrivateKeyPEM: "KEY", Service: r.Service}, Index: l.index}, nil
}

// registrations are those of one agent.
type registrations struct {
	mu      sync.Mutex
	all     map[string]*catalog.Service
	token   string
	changed chan struct{}
}

func (r *registrations) Proxy(id string) (*catalog.Service, string, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[id], r.token, r.changed
}

func (r *registrations) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

// sidecar returns the registration of web's sidecar with upstreams such as "db" or "db@dc2", on ports from 9001.
func sidecar(upstreams ...string) *catalog.Service {
	s := &catalog.Service{Kind: catalog.KindConnectProxy, ID: "web-sidecar-proxy", Service: "web-sidecar-proxy", Port: 21000}
	s.Proxy.DestinationServiceName = "web"
	s.Proxy.LocalServicePort = 8080
	for i, u := range upstreams {
		name, dc, _ := strings.Cut(u, "@")
		s.Proxy.Upstreams = append(s.Proxy.Upstreams, catalog.Upstream{DestinationName: name, Datacenter: dc, LocalBindPort: 9001 + i})
	}
	return s
}

func instance(ip string) *catalog.Instance {
	return &catalog.Instance{Node: &catalog.Node{Node: "n", Address: ip}, Service: &catalog.Service{ID: ip, Port: 1}}
}

type harness struct {
	*servers
	leaves *leaves
	regs   *registrations
	cache  *cache.Cache
	state  *proxystate.State
}

func run(t *testing.T, cfg proxystate.Config, f func(t *testing.T, h *harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &harness{
			servers: newServers(), leaves: &leaves{index: 1, changed: make(chan struct{})},
			regs: &registrations{all: map[string]*catalog.Service{}, token: "tok", changed: make(chan struct{})},
		}
		h.cache = cache.New(h.servers, cache.Config{})
		cfg.Node, cfg.Datacenter, cfg.Registrations, cfg.Cache, cfg.Leaves = "n1", "dc1", h.regs, h.cache, h.leaves
		h.state = proxystate.New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { h.cache.Run(ctx) })
		wg.Go(func() { h.state.Run(ctx) })
		f(t, h)
		cancel()
		wg.Wait()
		if n := h.cache.Stats().Watched; n != 0 {
			t.Errorf("%d views are watched after Run returned", n)
		}
		if h.inFlight != 0 {
			t.Errorf("%d calls in flight after Run returned", h.inFlight)
		}
	})
}

func (h *harness) follow(t *testing.T) ads.Subscription {
	t.Helper()
	s, err := h.state.Follow(ads.Node{ID: "web-sidecar-proxy"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// describe tells what a subscription has: "nothing", or the base names of listeners and the hosts of each cluster.
func describe(t *testing.T, s ads.Subscription) string {
	t.Helper()
	synctest.Wait()
	r, _, err := s.Current()
	if err != nil {
		return err.Error()
	}
	if r == nil {
		return "nothing"
	}
	var out []string
	for _, n := range slices.Sorted(maps.Keys(r.Of(xds.Listener))) {
		out = append(out, strings.SplitN(n, ":", 2)[0])
	}
	for _, n := range slices.Sorted(maps.Keys(r.Of(xds.Endpoint))) {
		cla := new(endpointv3.ClusterLoadAssignment)
		if err := r.Of(xds.Endpoint)[n].Body.UnmarshalTo(cla); err != nil {
			t.Fatal(err)
		}
		w := strings.Join(strings.SplitN(n, ".", 3)[:1], ".") + "="
		if strings.Contains(n, ".dead.") || strings.Contains(n, ".dc2.") {
			w = strings.TrimSuffix(w, "=") + "@" + strings.Split(n, ".")[2] + "="
		}
		for _, e := range cla.Endpoints[0].LbEndpoints {
			w += e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress() + ","
		}
		out = append(out, strings.TrimSuffix(w, ","))
	}
	return strings.Join(out, " ")
}

func want(t *testing.T, what string, s ads.Subscription, want string) {
	t.Helper()
	if got := describe(t, s); got != want {
		t.Errorf("%s: %s; want %s", what, got, want)
	}
}

func TestConfigurationFollowsEverything(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		s := h.follow(t)
		defer s.Close()
		want(t, "not registered", s, "nothing")
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		want(t, "registered", s, "db public_listener db=")
		start := time.Now()
		h.change(func() { h.instances["db"] = []*catalog.Instance{instance("10.0.0.1"), instance("10.0.0.2")} })
		want(t, "instances", s, "db public_listener db=10.0.0.1,10.0.0.2")
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db", "api") })
		want(t, "another upstream", s, "api db public_listener api= db=10.0.0.1,10.0.0.2")
		h.put(&entry.ServiceResolver{Header: entry.Header{Kind: entry.KindServiceResolver, Name: "api"}, Redirect: &entry.ServiceRedirect{Service: "db"}})
		want(t, "a redirect", s, "api db public_listener db=10.0.0.1,10.0.0.2")
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("api") })
		want(t, "one upstream less", s, "api public_listener db=10.0.0.1,10.0.0.2")
		if took := time.Since(start); took != 0 {
			t.Errorf("changes took %v of virtual time, want none", took)
		}
		h.regs.set(func() { delete(h.regs.all, "web-sidecar-proxy") })
		want(t, "deregistered", s, "nothing")
		if n := h.cache.Stats().Watched; n != 0 {
			t.Errorf("%d views are watched for a proxy that is not registered", n)
		}
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar() })
		want(t, "registered again", s, "public_listener")
	})
}

// denies reports whether the public listener refuses a service of the mesh.
func policies(t *testing.T, s ads.Subscription) int {
	t.Helper()
	synctest.Wait()
	r, _, err := s.Current()
	if err != nil || r == nil {
		t.Fatal(r, err)
	}
	for n, x := range r.Of(xds.Listener) {
		if !strings.HasPrefix(n, "public_listener") {
			continue
		}
		l, rbac := new(listenerv3.Listener), new(netrbacv3.RBAC)
		if err := x.Body.UnmarshalTo(l); err != nil {
			t.Fatal(err)
		}
		if err := l.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(rbac); err != nil {
			t.Fatal(err)
		}
		return len(rbac.Rules.Policies)
	}
	t.Fatal("no public listener")
	return 0
}

func TestIntentionsArriveAtOnce(t *testing.T) {
	run(t, proxystate.Config{DefaultAllow: true}, func(t *testing.T, h *harness) {
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar() })
		s := h.follow(t)
		defer s.Close()
		if n := policies(t, s); n != 0 {
			t.Errorf("%d policies before any intention", n)
		}
		_, changed, _ := s.Current()
		start := time.Now()
		h.put(&entry.ServiceIntentions{
			Header:  entry.Header{Kind: entry.KindServiceIntentions, Name: "web"},
			Sources: []*entry.IntentionSource{{Name: "api", Action: entry.Deny}},
		})
		<-changed
		if took := time.Since(start); took != 0 {
			t.Errorf("told of the change after %v", took)
		}
		if n := policies(t, s); n != 1 {
			t.Errorf("%d policies after a deny, want 1", n)
		}
	})
}

func TestNothingBeforeEverythingIsKnown(t *testing.T) {
	for _, method := range []string{"ConnectCA.Roots", "Intention.Match", "ConfigEntry.Get", "DiscoveryChain.Get", "Health.Instances"} {
		run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
			h.hold[method] = true
			h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
			s := h.follow(t)
			defer s.Close()
			want(t, method+" held", s, "nothing")
			time.Sleep(9 * time.Second)
			want(t, method+" held", s, "nothing")
			h.change(func() { delete(h.hold, method) })
			want(t, method+" answered", s, "db public_listener db=")
		})
	}
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		h.leaves.set(errors.New("no"))
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		s := h.follow(t)
		defer s.Close()
		time.Sleep(time.Hour)
		want(t, "no leaf", s, "nothing")
		h.leaves.set(nil)
		time.Sleep(2 * time.Minute)
		want(t, "leaf", s, "db public_listener db=")
	})
}

func TestFirstConfigurationDoesNotWaitForEver(t *testing.T) {
	run(t, proxystate.Config{FirstWait: 5 * time.Second}, func(t *testing.T, h *harness) {
		h.hold["Health.Instances"] = true
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		s := h.follow(t)
		defer s.Close()
		time.Sleep(4 * time.Second)
		want(t, "at first", s, "nothing")
		time.Sleep(2 * time.Second)
		want(t, "overdue", s, "db public_listener")
		h.change(func() { clear(h.hold) })
		want(t, "at last", s, "db public_listener db=")
	})
}

func TestDatacenterOutOfReach(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db@dead", "api") })
		s := h.follow(t)
		defer s.Close()
		want(t, "one datacenter is dead", s, "api db?dc=dead public_listener api= db@dead=")
	})
}

func TestUpstreamWorksWhileItsChainIsReplaced(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		h.instances["db"] = []*catalog.Instance{instance("10.0.0.1")}
		h.instances["new"] = []*catalog.Instance{instance("10.0.0.9")}
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		s := h.follow(t)
		defer s.Close()
		want(t, "before", s, "db public_listener db=10.0.0.1")
		h.change(func() { h.hold["Health.Instances"] = true })
		h.put(&entry.ServiceResolver{Header: entry.Header{Kind: entry.KindServiceResolver, Name: "db"}, Redirect: &entry.ServiceRedirect{Service: "new"}})
		want(t, "the instances of the new target are not known", s, "db public_listener db=10.0.0.1")
		h.change(func() { clear(h.hold) })
		want(t, "they are", s, "db public_listener new=10.0.0.9")

		h.change(func() { h.hold["DiscoveryChain.Get"] = true })
		h.regs.set(func() {
			again := sidecar("db")
			again.Proxy.Upstreams[0].Config = map[string]any{"connect_timeout_ms": 100}
			h.regs.all["web-sidecar-proxy"] = again
		})
		want(t, "the registration changed, the chain for it is not known", s, "db public_listener new=10.0.0.9")
		h.change(func() { clear(h.hold) })
		if got := describe(t, s); !strings.Contains(got, "~new=10.0.0.9") {
			t.Errorf("with the chain: %s; want a cluster of its own", got)
		}
	})
}

func TestLostServersLeaveTheConfiguration(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		h.instances["db"] = []*catalog.Instance{instance("10.0.0.1")}
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		s := h.follow(t)
		defer s.Close()
		want(t, "before", s, "db public_listener db=10.0.0.1")
		for _, err := range []error{wireerr.ErrNoServers, wireerr.ErrTokenNotFound} {
			h.change(func() { h.down = err })
			h.leaves.set(err)
			time.Sleep(time.Hour)
			want(t, err.Error(), s, "db public_listener db=10.0.0.1")
			late := h.follow(t)
			want(t, err.Error()+", a new stream", late, "db public_listener db=10.0.0.1")
			late.Close()
			h.change(func() { h.down = nil })
			h.leaves.set(nil)
			time.Sleep(10 * time.Minute)
		}
		h.change(func() { h.instances["db"] = []*catalog.Instance{instance("10.0.0.2")} })
		want(t, "servers are back", s, "db public_listener db=10.0.0.2")
	})
}

func TestNewTokenStartsOver(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		s := h.follow(t)
		defer s.Close()
		want(t, "before", s, "db public_listener db=")
		h.change(func() { clear(h.tokens); h.hold["DiscoveryChain.Get"] = true })
		h.regs.set(func() { h.regs.token = "next" })
		want(t, "what the old token got serves meanwhile", s, "db public_listener db=")
		h.change(func() { clear(h.hold); h.instances["db"] = []*catalog.Instance{instance("10.0.0.3")} })
		want(t, "with the new one", s, "db public_listener db=10.0.0.3")
		if !h.tokens["next"] {
			t.Error("the new token was not used")
		}
	})
}

func TestLeafRotation(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar() })
		s, err := h.state.Follow(ads.Node{ID: "web-sidecar-proxy", Flavour: xds.Own})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		synctest.Wait()
		before, changed, err := s.Current()
		if err != nil || before == nil {
			t.Fatal(before, err)
		}
		h.leaves.set(nil)
		<-changed
		after, _, _ := s.Current()
		if before.Of(xds.Secret)[xds.LeafSecret].Version == after.Of(xds.Secret)[xds.LeafSecret].Version {
			t.Error("the secret did not change")
		}
		for n, l := range after.Of(xds.Listener) {
			if before.Of(xds.Listener)[n] != l {
				t.Errorf("listener %s changed with the leaf", n)
			}
		}
	})
}

func TestSubscribersShareAProxy(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar("db") })
		a, b := h.follow(t), h.follow(t)
		synctest.Wait()
		one, _, _ := a.Current()
		two, _, _ := b.Current()
		if one != two || one == nil {
			t.Error("two streams of a proxy have resources of their own")
		}
		views := h.cache.Stats().Watched
		c := h.follow(t)
		want(t, "a third", c, "db public_listener db=")
		if n := h.cache.Stats().Watched; n != views {
			t.Errorf("%d views for three streams, %d for two", n, views)
		}
		for _, s := range []ads.Subscription{a, b, c} {
			s.Close()
			s.Close()
		}
		synctest.Wait()
		h.change(func() { h.down = wireerr.ErrNoServers })
		d := h.follow(t)
		want(t, "a proxy that comes back while the servers are away", d, "db public_listener db=")
		d.Close()
	})
}

func TestStrangersLeaveNothingBehind(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		for i := range 100 {
			s, err := h.state.Follow(ads.Node{ID: fmt.Sprint("stranger", i)})
			if err != nil {
				t.Fatal(err)
			}
			want(t, "stranger", s, "nothing")
			s.Close()
		}
		synctest.Wait()
		if n := h.state.Proxies(); n != 0 {
			t.Errorf("%d proxies are kept", n)
		}
	})
}

func TestProxiesOfOtherNodes(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		if _, err := h.state.Follow(ads.Node{ID: "web-sidecar-proxy", Name: "other"}); err == nil {
			t.Error("an agent serves a proxy of another node")
		}
	})
	run(t, proxystate.Config{OtherNodes: true}, func(t *testing.T, h *harness) {
		s, err := h.state.Follow(ads.Node{ID: "web-sidecar-proxy", Name: "other", Token: "stream-token"})
		if err != nil {
			t.Fatal(err)
		}
		want(t, "not registered", s, "nothing")
		h.change(func() { h.node = []*catalog.Service{sidecar("db")} })
		want(t, "registered in the catalog", s, "db public_listener db=")
		if !h.tokens["stream-token"] || h.tokens["tok"] {
			t.Errorf("tokens used: %v; want that of the stream", h.tokens)
		}
		s.Close()
		synctest.Wait()
		if n := h.state.Proxies(); n != 0 {
			t.Errorf("%d proxies are kept", n)
		}
	})
}

func TestBadConfigurationKeepsTheLastGood(t *testing.T) {
	run(t, proxystate.Config{}, func(t *testing.T, h *harness) {
		bad := sidecar()
		bad.Proxy.Config = map[string]any{"envoy_public_listener_json": "{"}
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = bad })
		s := h.follow(t)
		defer s.Close()
		if got := describe(t, s); !strings.Contains(got, "envoy_public_listener_json") {
			t.Errorf("bad from the beginning: %s; want an error", got)
		}
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = sidecar() })
		want(t, "good", s, "public_listener")
		h.regs.set(func() { h.regs.all["web-sidecar-proxy"] = bad })
		synctest.Wait()
		if r, _, err := s.Current(); r == nil || err == nil {
			t.Errorf("bad again: %v, %v; want the last good resources and the error", r, err)
		}
	})
}
