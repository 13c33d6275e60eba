//go:build unix

package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
)

// TestGoClient uses a server as programs in Go do, with the client they have.
func TestGoClient(t *testing.T) {
	binary(t)
	a := single(t, nil)
	c, err := api.NewClient(&api.Config{Address: a.http()})
	if err != nil {
		t.Fatal(err)
	}
	// ok fails the test at the first call that does.
	ok := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("keys and values", func(t *testing.T) {
		kv := c.KV()
		if pair, meta, err := kv.Get("go/none", nil); err != nil || pair != nil || meta.LastIndex == 0 || !meta.KnownLeader {
			t.Errorf("%v %+v %v", pair, meta, err)
		}
		_, err := kv.Put(&api.KVPair{Key: "go/a", Value: []byte{0, 255}, Flags: 1 << 63}, nil)
		ok(t, err)
		pair, meta, err := kv.Get("go/a", nil)
		if err != nil || !bytes.Equal(pair.Value, []byte{0, 255}) || pair.Flags != 1<<63 {
			t.Fatalf("%+v %v", pair, err)
		}
		if done, _, err := kv.CAS(&api.KVPair{Key: "go/a", ModifyIndex: pair.ModifyIndex - 1}, nil); err != nil || done {
			t.Errorf("a stale write: %v %v", done, err)
		}
		woken := make(chan *api.KVPair, 1)
		go func() {
			pair, _, _ := kv.Get("go/a", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 30 * time.Second})
			woken <- pair
		}()
		_, err = kv.Put(&api.KVPair{Key: "elsewhere"}, nil)
		ok(t, err)
		done, _, err := kv.CAS(&api.KVPair{Key: "go/a", Value: []byte("b"), ModifyIndex: pair.ModifyIndex}, nil)
		if err != nil || !done {
			t.Errorf("%v %v", done, err)
		}
		if pair := <-woken; pair == nil || string(pair.Value) != "b" {
			t.Errorf("woken with %+v", pair)
		}
		if keys, _, err := kv.Keys("go/", "/", &api.QueryOptions{RequireConsistent: true}); err != nil || len(keys) != 1 {
			t.Errorf("%v %v", keys, err)
		}
		_, err = kv.DeleteTree("go/", nil)
		ok(t, err)
		if list, _, err := kv.List("go/", nil); err != nil || len(list) != 0 {
			t.Errorf("%v %v", list, err)
		}
	})

	t.Run("locks and semaphores", func(t *testing.T) {
		first, err := c.LockOpts(&api.LockOptions{Key: "go/lock", SessionTTL: "10s"})
		ok(t, err)
		second, err := c.LockKey("go/lock")
		ok(t, err)
		lost, err := first.Lock(nil)
		if err != nil || lost == nil {
			t.Fatal(lost, err)
		}
		got := make(chan error, 1)
		go func() { _, err := second.Lock(nil); got <- err }()
		if err := second.Destroy(); err == nil {
			t.Error("a lock that is held was destroyed")
		}
		ok(t, first.Unlock())
		ok(t, <-got)
		if err := first.Destroy(); !errors.Is(err, api.ErrLockInUse) {
			t.Errorf("destroying a lock in use: %v", err)
		}
		ok(t, second.Unlock())
		ok(t, second.Destroy())

		var slots []*api.Semaphore
		for range 2 {
			s, err := c.SemaphorePrefix("go/semaphore", 2)
			ok(t, err)
			lost, err := s.Acquire(nil)
			if err != nil || lost == nil {
				t.Fatal(lost, err)
			}
			slots = append(slots, s)
		}
		third, err := c.SemaphoreOpts(&api.SemaphoreOptions{Prefix: "go/semaphore", Limit: 2, SemaphoreTryOnce: true, SemaphoreWaitTime: 200 * time.Millisecond})
		ok(t, err)
		if lost, err := third.Acquire(nil); err != nil || lost != nil {
			t.Errorf("a third holder of two: %v", err)
		}
		ok(t, slots[0].Release())
		eventually(t, 20*time.Second, "the slot is free", func() bool { lost, err := third.Acquire(nil); return err == nil && lost != nil })
		ok(t, third.Release())
		ok(t, slots[1].Release())
	})

	t.Run("sessions", func(t *testing.T) {
		id, _, err := c.Session().Create(&api.SessionEntry{Name: "s", TTL: "10s", Behavior: api.SessionBehaviorDelete, LockDelay: time.Millisecond}, nil)
		ok(t, err)
		if done, _, err := c.KV().Acquire(&api.KVPair{Key: "go/held", Session: id}, nil); err != nil || !done {
			t.Fatal(done, err)
		}
		if e, _, err := c.Session().Renew(id, nil); err != nil || e.TTL != "10s" {
			t.Errorf("%+v %v", e, err)
		}
		_, err = c.Session().Destroy(id, nil)
		ok(t, err)
		if pair, _, err := c.KV().Get("go/held", nil); err != nil || pair != nil {
			t.Errorf("%+v %v", pair, err)
		}
		if e, _, err := c.Session().Renew(id, nil); err != nil || e != nil {
			t.Errorf("renewing what is gone: %+v %v", e, err)
		}
	})

	t.Run("transactions", func(t *testing.T) {
		ops := api.TxnOps{
			{KV: &api.KVTxnOp{Verb: api.KVSet, Key: "go/t", Value: []byte("x")}},
			{Node: &api.NodeTxnOp{Verb: api.NodeSet, Node: api.Node{Node: "outside", Address: "127.0.0.8"}}},
			{Service: &api.ServiceTxnOp{Verb: api.ServiceSet, Node: "outside", Service: api.AgentService{ID: "d", Service: "db", Port: 1}}},
			{Check: &api.CheckTxnOp{Verb: api.CheckSet, Check: api.HealthCheck{Node: "outside", CheckID: "up", Name: "up", Status: api.HealthPassing}}},
		}
		if done, answer, _, err := c.Txn().Txn(ops, nil); err != nil || !done || len(answer.Results) != 4 {
			t.Fatalf("%v %+v %v", done, answer, err)
		}
		bad := api.TxnOps{{KV: &api.KVTxnOp{Verb: api.KVDelete, Key: "go/t"}}, {KV: &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: "elsewhere"}}}
		if done, answer, _, err := c.Txn().Txn(bad, nil); err != nil || done || len(answer.Errors) != 1 || answer.Errors[0].OpIndex != 1 {
			t.Errorf("%v %+v %v", done, answer, err)
		}
		if pair, _, err := c.KV().Get("go/t", nil); err != nil || pair == nil {
			t.Errorf("a transaction that failed wrote: %v %v", pair, err)
		}
	})

	t.Run("services and watches", func(t *testing.T) {
		var seen atomic.Pointer[[]*api.ServiceEntry]
		plan, err := watch.Parse(map[string]any{"type": "service", "service": "goweb", "passingonly": true})
		ok(t, err)
		plan.Handler = func(_ uint64, v any) { list := v.([]*api.ServiceEntry); seen.Store(&list) }
		ended := make(chan error, 1)
		go func() { ended <- plan.RunWithClientAndHclog(c, nil) }()
		shows := func(n int) func() bool {
			return func() bool { list := seen.Load(); return list != nil && len(*list) == n }
		}
		eventually(t, 20*time.Second, "nothing is seen", shows(0))
		agent := c.Agent()
		ok(t, agent.ServiceRegister(&api.AgentServiceRegistration{
			ID: "goweb-1", Name: "goweb", Port: 80, Tags: []string{"a"}, Meta: map[string]string{"m": "1"}, Weights: &api.AgentWeights{Passing: 3, Warning: 1},
			Check: &api.AgentServiceCheck{CheckID: "alive", TTL: "1m"},
		}))
		ok(t, agent.UpdateTTL("alive", "fine", api.HealthPassing))
		eventually(t, 20*time.Second, "it is seen", shows(1))
		if e := (*seen.Load())[0]; e.Service.Weights.Passing != 3 || e.Checks.AggregatedStatus() != api.HealthPassing {
			t.Errorf("%+v", e)
		}
		if status, info, err := agent.AgentHealthServiceByID("goweb-1"); err != nil || status != api.HealthPassing || info.Service.Meta["m"] != "1" {
			t.Errorf("%s %+v %v", status, info, err)
		}
		if list, err := agent.ServicesWithFilter(`"a" in Tags and Meta.m == "1"`); err != nil || len(list) != 1 {
			t.Errorf("%v %v", list, err)
		}
		_, hash, err := agent.Service("goweb-1", nil)
		if err != nil || hash.LastContentHash == "" {
			t.Errorf("%+v %v", hash, err)
		}
		if list, _, err := c.Catalog().Service("goweb", "a", &api.QueryOptions{Filter: "ServicePort == 80"}); err != nil || len(list) != 1 {
			t.Errorf("%v %v", list, err)
		}
		if list, meta, err := c.Health().Service("goweb", "", true, &api.QueryOptions{UseCache: true, MaxAge: time.Minute}); err != nil || len(list) != 1 || !meta.CacheHit && meta.LastIndex == 0 {
			t.Errorf("%v %+v %v", list, meta, err)
		}
		if def, _, err := c.PreparedQuery().Create(&api.PreparedQueryDefinition{Name: "goquery", Service: api.ServiceQuery{Service: "goweb", OnlyPassing: true}}, nil); err != nil {
			t.Error(err)
		} else if found, _, err := c.PreparedQuery().Execute(def, nil); err != nil || len(found.Nodes) != 1 {
			t.Errorf("%+v %v", found, err)
		}
		ok(t, agent.EnableServiceMaintenance("goweb-1", "work"))
		eventually(t, 20*time.Second, "maintenance hides it", shows(0))
		ok(t, agent.DisableServiceMaintenance("goweb-1"))
		eventually(t, 20*time.Second, "it is seen again", shows(1))
		ok(t, agent.ServiceDeregister("goweb-1"))
		eventually(t, 20*time.Second, "it is gone", shows(0))
		plan.Stop()
		ok(t, <-ended)
	})

	t.Run("operating", func(t *testing.T) {
		ok(t, c.Operator().AutopilotSetConfiguration(&api.AutopilotConfiguration{CleanupDeadServers: true, MaxTrailingLogs: 300}, nil))
		if conf, err := c.Operator().AutopilotGetConfiguration(nil); err != nil || conf.MaxTrailingLogs != 300 {
			t.Errorf("%+v %v", conf, err)
		}
		pending := uint32(9)
		_, _, err := c.ConfigEntries().Set(&api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: "front", Defaults: &api.IngressServiceConfig{MaxPendingRequests: &pending}}, nil)
		ok(t, err)
		entry, _, err := c.ConfigEntries().Get(api.IngressGateway, "front", nil)
		ok(t, err)
		if d := entry.(*api.IngressGatewayConfigEntry).Defaults; d == nil || *d.MaxPendingRequests != 9 || d.MaxConcurrentRequests == nil {
			t.Errorf("%+v", d)
		}
		if raft, err := c.Operator().RaftGetConfiguration(nil); err != nil || len(raft.Servers) != 1 || !raft.Servers[0].Leader {
			t.Errorf("%+v %v", raft, err)
		}
		archive, _, err := c.Snapshot().Save(nil)
		ok(t, err)
		data, err := io.ReadAll(archive)
		archive.Close()
		ok(t, err)
		_, err = c.KV().Put(&api.KVPair{Key: "after"}, nil)
		ok(t, err)
		ok(t, c.Snapshot().Restore(nil, bytes.NewReader(data)))
		eventually(t, 20*time.Second, "what came after is gone, what was before is there", func() bool {
			after, _, err := c.KV().Get("after", nil)
			before, _, err2 := c.KV().Get("elsewhere", nil)
			return err == nil && err2 == nil && after == nil && before != nil
		})
		if err := c.Snapshot().Restore(nil, bytes.NewReader(data[:len(data)/2])); err == nil {
			t.Error("half an archive was restored")
		}
		if id, _, err := c.Event().Fire(&api.UserEvent{Name: "deploy", Payload: []byte("1")}, nil); err != nil || id == "" {
			t.Error(id, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		lines, err := c.Agent().Monitor("debug", ctx.Done(), nil)
		ok(t, err)
		_, err = c.Agent().Self()
		ok(t, err)
		if line := <-lines; line == "" {
			t.Error("no line of the log")
		}
	})
}

// TestGoClientWithTokens makes tokens as programs in Go do, and uses them.
func TestGoClientWithTokens(t *testing.T) {
	binary(t)
	a := newAgent(t, "one", map[string]any{"server": true, "bootstrap": true, "acl": map[string]any{"enabled": true, "default_policy": "deny"}})
	a.run(t)
	c, err := api.NewClient(&api.Config{Address: a.http()})
	if err != nil {
		t.Fatal(err)
	}
	var first *api.ACLToken
	eventually(t, 30*time.Second, "the first token is made", func() bool { first, _, err = c.ACL().Bootstrap(); return err == nil })
	if _, _, err := c.ACL().Bootstrap(); err == nil {
		t.Error("a second first token was made")
	}
	all := &api.WriteOptions{Token: first.SecretID}
	policy, _, err := c.ACL().PolicyCreate(&api.ACLPolicy{Name: "app", Rules: `key_prefix "app/" { policy = "write" } session_prefix "" { policy = "write" }`}, all)
	if err != nil {
		t.Fatal(err)
	}
	role, _, err := c.ACL().RoleCreate(&api.ACLRole{Name: "app", Policies: []*api.ACLRolePolicyLink{{ID: policy.ID}}}, all)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := c.ACL().TokenCreate(&api.ACLToken{Roles: []*api.ACLTokenRoleLink{{ID: role.ID}}, ExpirationTTL: time.Hour, Local: true}, all)
	if err != nil {
		t.Fatal(err)
	}
	app, err := api.NewClient(&api.Config{Address: a.http(), Token: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := app.KV().Put(&api.KVPair{Key: "app/a"}, nil); err != nil {
		t.Error(err)
	}
	var refused api.StatusError
	if _, err := app.KV().Put(&api.KVPair{Key: "other"}, nil); !errors.As(err, &refused) || refused.Code != 403 {
		t.Errorf("writing what is another's: %v", err)
	}
	if lock, err := app.LockKey("app/lock"); err != nil {
		t.Error(err)
	} else if lost, err := lock.Lock(nil); err != nil || lost == nil {
		t.Errorf("a lock: %v", err)
	} else if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
	if self, _, err := app.ACL().TokenReadSelf(nil); err != nil || self.AccessorID != token.AccessorID {
		t.Errorf("%+v %v", self, err)
	}
	if list, _, err := c.ACL().TokenList(&api.QueryOptions{Token: first.SecretID}); err != nil || !slices.ContainsFunc(list, func(e *api.ACLTokenListEntry) bool { return e.AccessorID == token.AccessorID && e.Local }) {
		t.Errorf("%d tokens without that of the application, %v", len(list), err)
	}
	if _, err := c.ACL().TokenDelete(token.AccessorID, all); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the token is refused", func() bool {
		_, _, err := app.KV().Get("app/a", nil)
		return errors.As(err, &refused) && refused.Code == 403
	})
}
