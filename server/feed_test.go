package server_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/router"
	"github.com/sarnmesh/sarn/client/subscription"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

// A fedAgent is what of an agent keeps views by a feed.
type fedAgent struct {
	host   *testkit.Host
	router *router.Router
	cache  *cache.Cache
}

// newFedAgent starts one that knows the servers of a cluster, and ends it with the test.
func newFedAgent(t *testing.T, c *cluster, address string) *fedAgent {
	a := &fedAgent{host: c.net.Host(address)}
	a.router = router.New(router.Config{Datacenter: "dc1", Dial: a.host.Dial, Logger: logger("agent")})
	var members []gossip.Member
	for _, o := range c.nodes {
		members = append(members, gossip.Member{Name: o.name, Addr: o.host.Addr(), Status: gossip.Alive, Tags: map[string]string{
			"role": gossip.RoleServer, "dc": "dc1", "id": o.id, "port": "8300",
		}})
	}
	a.router.Observe(gossip.Event{Kind: gossip.Joined, Members: members})
	feeds := subscription.New(a.router, subscription.Config{Datacenter: "dc1", Logger: logger("feed")})
	a.cache = cache.New(a.router, cache.Config{Streams: feeds})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{a.router.Run, feeds.Run, a.cache.Run} {
		wg.Go(func() { run(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return a
}

func registerAt(ctx context.Context, o *node, n, port int, token string) error {
	_, err := catalog.RegisterCall.Call(ctx, o.Caller(), &catalog.RegisterRequest{
		Target: read.Target{Token: token}, Node: fmt.Sprintf("n%d", n), Address: "10.1.1.1", Service: &catalog.Service{ID: "web", Service: "web", Port: port},
	})
	return err
}

// A view that a feed keeps is right whatever becomes of the servers: another leads, the one that the agent has asked
// crashes, all are cut off for a while, an older state is restored.
func TestFeedsOutliveWhatServersGoThrough(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 71, 3, server.Config{})
		a := newFedAgent(t, c, "10.0.0.77")
		req := catalog.InstancesRequest{Service: "web"}
		var mu sync.Mutex
		var last uint64
		backwards := 0
		defer cache.Watch(a.cache, catalog.InstancesCall, &req, func(r *catalog.InstancesReply, err error) {
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if r.Index < last {
				backwards++
			}
			last = r.Index
		})()
		// ports are those of the nodes' instances, as the view has them.
		ports := func() string {
			r, info, err := cache.Get(t.Context(), a.cache, catalog.InstancesCall, &req)
			if err != nil {
				return err.Error()
			}
			text := fmt.Sprintf("streamed %v:", info.Streamed)
			for _, i := range r.Instances {
				text += fmt.Sprintf(" %s=%d", i.Node.Node, i.Service.Port)
			}
			return text
		}
		set := func(n, port int) {
			t.Helper()
			c.within(30*time.Second, "registered", func() bool { return registerAt(t.Context(), c.leader(), n, port, "") == nil })
		}
		shows := func(when, want string) {
			t.Helper()
			var got string
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				if got = ports(); got == "streamed true: "+want {
					return
				}
			}
			t.Fatalf("%s: the view shows %s, want %s", when, got, want)
		}
		set(1, 1)
		shows("at first", "n1=1")

		archive, err := c.leader().save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		set(2, 1)
		shows("after a change", "n1=1 n2=1")

		old := c.leader()
		old.crash()
		set(1, 2)
		shows("after the leader has crashed", "n1=2 n2=1")
		old.start()
		old.join(c.leader())
		c.leader()

		var servers []*testkit.Host
		for _, o := range c.nodes {
			servers = append(servers, o.host)
		}
		c.net.Partition(servers, []*testkit.Host{a.host})
		set(2, 2)
		time.Sleep(time.Minute)
		if _, info, err := cache.Get(t.Context(), a.cache, catalog.InstancesCall, &req); err != nil || info.Age < 15*time.Second {
			t.Errorf("cut off: age %v, %v", info.Age, err)
		}
		c.net.Heal()
		shows("after it was cut off", "n1=2 n2=2")

		for range 3 { // whoever gives the feed goes
			for _, o := range c.nodes {
				o.stop()
				o.start()
				for _, other := range c.nodes {
					if other.Server != nil {
						o.join(other)
					}
				}
				c.leader()
			}
		}
		set(3, 1)
		shows("after every server has begun anew", "n1=2 n2=2 n3=1")
		mu.Lock()
		if backwards > 0 {
			t.Errorf("the index went back %d times", backwards)
		}
		mu.Unlock()

		if err := c.follower().restore(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
		shows("after an older state was restored", "n1=1")
		set(4, 4)
		shows("after a change of that", "n1=1 n4=4")
	})
}

// A server that stops tells its agents; what its feeds had has ended when it has.
func TestFeedsEndWithTheirServer(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 72, 1, server.Config{})
		a := newFedAgent(t, c, "10.0.0.77")
		if err := registerAt(t.Context(), c.nodes[0], 1, 1, ""); err != nil {
			t.Fatal(err)
		}
		req := catalog.InstancesRequest{Service: "web", Connect: true}
		for i := range 50 {
			req := req
			req.Service = fmt.Sprint("web-", i)
			defer cache.Watch(a.cache, catalog.InstancesCall, &req, func(*catalog.InstancesReply, error) {})()
		}
		c.within(10*time.Second, "streamed", func() bool { return cache.Streamed(a.cache, catalog.InstancesCall, &req) })
		time.Sleep(time.Second)
		c.nodes[0].stop() // Run returns only when all it has begun has ended
	})
}

// Where servers give no feeds, views ask.
func TestAgentsAskServersThatGiveNoFeeds(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 73, 1, server.Config{FeedsDisabled: true})
		a := newFedAgent(t, c, "10.0.0.77")
		req := catalog.InstancesRequest{Service: "web"}
		for port := range 3 {
			if err := registerAt(t.Context(), c.nodes[0], 1, 1+port, ""); err != nil {
				t.Fatal(err)
			}
			c.within(10*time.Second, "shown", func() bool {
				r, info, err := cache.Get(t.Context(), a.cache, catalog.InstancesCall, &req)
				return err == nil && !info.Streamed && len(r.Instances) == 1 && r.Instances[0].Service.Port == 1+port
			})
		}
	})
}

// A token's rights count as they are: what it may not read any more goes from the view, and everything goes with the token.
func TestFeedsGoByTheTokensRights(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		const management = "8d2c6b64-0c7e-4a55-9f0e-3d1f1fd6e7a1"
		c := newCluster(t, 74, 3, server.Config{ACL: aclrpc.Config{Enabled: true, DefaultPolicy: "deny", InitialManagement: management}})
		for n := range 3 {
			c.within(30*time.Second, "registered", func() bool { return registerAt(t.Context(), c.leader(), n, 1, management) == nil })
		}
		target := read.Target{Token: management}
		policy := func(rules string) {
			t.Helper()
			req := &access.PolicySetRequest{Target: target, Policy: acl.Policy{Name: "readers", Rules: rules}}
			if old, err := access.PolicyReadCall.Call(t.Context(), c.leader().Caller(), &access.ReadRequest{Options: read.Options{Target: target}, Name: "readers"}); err == nil && old.Policy != nil {
				req.Policy.ID = old.Policy.ID
			}
			if _, err := access.PolicySetCall.Call(t.Context(), c.leader().Caller(), req); err != nil {
				t.Fatal(err)
			}
		}
		const everything = `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`
		policy(everything)
		token, err := access.TokenSetCall.Call(t.Context(), c.leader().Caller(), &access.TokenSetRequest{
			Target: target, Create: true, Token: acl.Token{Policies: []acl.Link{{Name: "readers"}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		a := newFedAgent(t, c, "10.0.0.77")
		req := catalog.InstancesRequest{Service: "web"}
		req.Token = token.Token.SecretID
		defer cache.Watch(a.cache, catalog.InstancesCall, &req, func(*catalog.InstancesReply, error) {})()
		sees := func(want string) func() bool {
			return func() bool {
				r, info, err := cache.Get(t.Context(), a.cache, catalog.InstancesCall, &req)
				if err != nil {
					return want == "refused"
				}
				text := fmt.Sprintf("%v", r.Filtered)
				for _, i := range r.Instances {
					text += " " + i.Node.Node
				}
				return info.Streamed && text == want
			}
		}
		c.within(20*time.Second, "all seen", sees("false n0 n1 n2"))
		policy(everything + ` node "n1" { policy = "deny" }`)
		c.within(3*time.Second, "what is denied gone", sees("true n0 n2"))
		policy(`node_prefix "" { policy = "read" }`)
		c.within(3*time.Second, "all gone", sees("true"))
		policy(everything)
		c.within(3*time.Second, "all seen again", sees("false n0 n1 n2"))
		if _, err := access.TokenDeleteCall.Call(t.Context(), c.leader().Caller(), &access.DeleteRequest{Target: target, ID: token.Token.AccessorID}); err != nil {
			t.Fatal(err)
		}
		c.within(5*time.Second, "refused", sees("refused"))
	})
}
