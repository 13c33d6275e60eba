package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server"
)

func membersOf(o *node) ([]*operator.RaftServer, uint64, error) {
	reply, err := operator.RaftConfigurationStaleCall.Call(o.t.Context(), o.Caller(), &operator.StatusRequest{})
	if err != nil {
		return nil, 0, err
	}
	return reply.Servers, reply.Index, nil
}

func TestOneServerLeadsAtOnce(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		start := time.Now()
		c := newCluster(t, 1, 1, server.Config{})
		s := c.nodes[0]
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("a leader after %v, want at once", took)
		}
		if err := s.put(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		for _, mode := range []read.Mode{read.Default, read.Consistent, read.Stale} {
			if v, err := s.get(t.Context(), "a", mode); v != "1" || err != nil {
				t.Errorf("%v read: %q, %v", mode, v, err)
			}
		}
		c.within(time.Second, "registered itself", func() bool {
			reply, err := catalog.InstancesCall.Call(t.Context(), s.Caller(), &catalog.InstancesRequest{Service: "consul"})
			return err == nil && len(reply.Instances) == 1 && len(reply.Instances[0].Checks) == 1 &&
				reply.Instances[0].Checks[0].Status == catalog.Passing && reply.Instances[0].Service.Port == 8300
		})
		// What is on the disk survives.
		s.crash()
		s.start()
		c.leader()
		if v, err := s.get(t.Context(), "a", read.Consistent); v != "1" || err != nil {
			t.Errorf("after a crash: %q, %v", v, err)
		}
	})
}

func TestThreeServersElectFailOverAndRejoin(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 2, 3, server.Config{})
		lead := c.leader()
		if err := c.follower().put(t.Context(), "a", "1"); err != nil {
			t.Fatalf("through a follower: %v", err)
		}
		for _, o := range c.nodes {
			c.within(time.Second, "replicated", func() bool { v, _ := o.get(t.Context(), "a", read.Stale); return v == "1" })
		}
		lead.crash()
		start := time.Now()
		other := c.follower()
		if err := other.put(t.Context(), "a", "2"); err != nil {
			t.Fatalf("after the leader crashed: %v", err)
		}
		t.Logf("a new leader after %v", time.Since(start))
		c.within(30*time.Second, "the dead server's node critical", func() bool {
			reply, err := catalog.ChecksCall.Call(t.Context(), other.Caller(), &catalog.ChecksRequest{Node: lead.name})
			return err == nil && len(reply.Checks) == 1 && reply.Checks[0].Status == catalog.Critical
		})
		lead.start()
		lead.join(other)
		c.within(time.Minute, "three voters again", func() bool { v, _ := c.leader().members(); return v == 3 })
		c.within(10*time.Second, "caught up", func() bool { v, _ := lead.get(t.Context(), "a", read.Stale); return v == "2" })
	})
}

func TestServerReturnsUnderAnotherAddress(t *testing.T) {
	if raceEnabled {
		t.Skip("raft changes addresses beside a lock")
	}
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, 3, server.Config{})
		moved, other := c.follower(), c.leader()
		moved.crash()
		if err := other.put(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		moved.host.Move("10.0.1.77")
		moved.start()
		moved.join(other)
		c.within(time.Minute, "the new address in the Raft configuration", func() bool {
			servers, _, err := membersOf(other)
			if err != nil || len(servers) != 3 {
				return false
			}
			for _, s := range servers {
				if s.ID == moved.id && s.Address == "10.0.1.77:8300" && s.Voter {
					return true
				}
			}
			return false
		})
		c.within(10*time.Second, "caught up", func() bool { v, _ := moved.get(t.Context(), "a", read.Stale); return v == "1" })
		c.within(10*time.Second, "the node's address in the catalog", func() bool {
			reply, err := catalog.NodeServicesCall.Call(t.Context(), moved.Caller(), &catalog.NodeServicesRequest{Node: moved.name})
			return err == nil && reply.Node != nil && reply.Node.Address == "10.0.1.77"
		})
	})
}

// Every server comes back at once, each with another address: nobody edits a file of peers.
func TestWholeClusterReturnsUnderOtherAddresses(t *testing.T) {
	if raceEnabled {
		t.Skip("raft changes addresses beside a lock")
	}
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 4, 3, server.Config{})
		if err := c.leader().put(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		for _, o := range c.nodes {
			o.crash()
		}
		for i, o := range c.nodes {
			o.host.Move(fmt.Sprintf("10.9.0.%d", i+1))
			o.start()
		}
		for _, o := range c.nodes {
			o.join(c.nodes[0])
		}
		lead := c.leader()
		if v, err := lead.get(t.Context(), "a", read.Consistent); v != "1" || err != nil {
			t.Errorf("read %q, %v", v, err)
		}
		c.within(time.Minute, "three voters at their new addresses", func() bool {
			servers, _, _ := membersOf(lead)
			n := 0
			for _, s := range servers {
				if s.Voter && s.Address[:5] == "10.9." {
					n++
				}
			}
			return n == 3
		})
	})
}

func TestPartitionHeals(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		conf := server.Config{}
		conf.Autopilot = &operator.AutopilotConfig{LastContactThreshold: operator.Duration(200 * time.Millisecond), MaxTrailingLogs: 250}
		c := newCluster(t, 5, 3, conf)
		old := c.leader()
		var rest []*testkit.Host
		for _, o := range c.nodes {
			if o != old {
				rest = append(rest, o.host)
			}
		}
		c.net.Partition([]*testkit.Host{old.host}, rest)
		var now *node
		c.within(20*time.Second, "a leader on the larger side", func() bool {
			for _, o := range c.nodes {
				if s, _ := o.Leadership(); o != old && s.Leading {
					now = o
				}
			}
			s, _ := old.Leadership()
			return now != nil && !s.Leading
		})
		if err := now.put(t.Context(), "a", "new"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := old.put(t.Context(), "a", "lost"); !errors.Is(err, wireerr.ErrNoLeader) {
			t.Errorf("write on the smaller side: %v, want %v", err, wireerr.ErrNoLeader)
		}
		if took := time.Since(start); took < 6*time.Second || took > 9*time.Second {
			t.Errorf("it was held for %v, want about 7s", took)
		}
		if _, err := old.get(t.Context(), "a", read.Consistent); err == nil {
			t.Error("a consistent read on the smaller side was answered")
		}
		reply, err := kv.GetCall.Call(t.Context(), old.Caller(), &kv.GetRequest{Options: read.Options{Mode: read.Stale}, Key: "a"})
		if err != nil || reply.KnownLeader || reply.LastContact < 10*time.Second {
			t.Errorf("a stale read on the smaller side: %+v, %v", reply, err)
		}
		c.net.Heal()
		c.leader()
		c.within(time.Minute, "healed", func() bool {
			v, err := old.get(t.Context(), "a", read.Default)
			return v == "new" && err == nil
		})
		c.within(3*time.Minute, "every node passing", func() bool {
			reply, err := catalog.ChecksCall.Call(t.Context(), now.Caller(), &catalog.ChecksRequest{State: catalog.Passing})
			return err == nil && len(reply.Checks) == 3
		})
	})
}

func TestDeadServersAreCleanedUp(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 6, 3, server.Config{})
		dead := c.follower()
		dead.crash()
		lead := c.leader()
		c.within(time.Minute, "removed from Raft", func() bool { _, all := lead.members(); return all == 2 })
		c.within(time.Minute, "deregistered", func() bool {
			reply, err := catalog.NodesCall.Call(t.Context(), lead.Caller(), &catalog.NodesRequest{})
			return err == nil && len(reply.Nodes) == 2
		})
		// It comes back with its data: first without a vote, then with.
		dead.start()
		dead.join(lead)
		c.within(time.Minute, "back in Raft", func() bool { _, all := lead.members(); return all == 3 })
		c.within(time.Minute, "a voter again", func() bool { v, _ := lead.members(); return v == 3 })
		c.within(10*time.Second, "registered", func() bool {
			reply, err := catalog.NodesCall.Call(t.Context(), lead.Caller(), &catalog.NodesRequest{})
			return err == nil && len(reply.Nodes) == 3
		})
	})
}

func TestGracefulLeave(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 7, 3, server.Config{})
		if err := c.leader().put(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		leaving := c.leader() // hands over first
		start := time.Now()
		if err := leaving.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 8*time.Second || took > 16*time.Second {
			t.Errorf("left in %v", took)
		}
		if err := leaving.put(t.Context(), "a", "x"); !errors.Is(err, wireerr.ErrNoLeader) {
			t.Errorf("a call to a server that left: %v", err)
		}
		leaving.stop()
		lead := c.leader()
		if _, all := lead.members(); all != 2 {
			t.Errorf("%d members of Raft, want 2", all)
		}
		reply, err := catalog.NodesCall.Call(t.Context(), lead.Caller(), &catalog.NodesRequest{})
		if err != nil || len(reply.Nodes) != 2 {
			t.Errorf("%d nodes, %v; want 2", len(reply.Nodes), err)
		}
		leaving.start()
		leaving.join(lead)
		c.within(time.Minute, "a voter again", func() bool { v, _ := lead.members(); return v == 3 })
	})
}

func TestSessionTTLOverAChangeOfLeader(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 8, 3, server.Config{})
		lead := c.leader()
		c.within(10*time.Second, "registered", func() bool {
			reply, err := catalog.NodesCall.Call(t.Context(), lead.Caller(), &catalog.NodesRequest{})
			return err == nil && len(reply.Nodes) == 3
		})
		create := func() string {
			reply, err := kv.SessionCreateCall.Call(t.Context(), c.leader().Caller(), &kv.SessionCreateRequest{
				Session: kv.Session{Node: c.follower().name, TTL: "10s", Behavior: kv.Delete, NodeChecks: []string{}},
			})
			if err != nil {
				t.Fatal(err)
			}
			return reply.ID
		}
		exists := func(id string) bool {
			for _, o := range c.nodes {
				if o.Server == nil {
					continue
				}
				reply, err := kv.SessionsCall.Call(t.Context(), o.Caller(), &kv.SessionsRequest{ID: id})
				return err == nil && len(reply.Sessions) == 1
			}
			return false
		}
		renewed, idle := create(), create()
		for range 3 {
			time.Sleep(8 * time.Second)
			if _, err := kv.SessionRenewCall.Call(t.Context(), c.follower().Caller(), &kv.SessionRenewRequest{ID: renewed}); err != nil {
				t.Fatal(err)
			}
		}
		if !exists(renewed) || exists(idle) {
			t.Errorf("after 24s: the renewed one exists: %v, the idle one: %v", exists(renewed), exists(idle))
		}
		// A new leader gives the full time again.
		time.Sleep(15 * time.Second)
		c.leader().crash()
		c.leader()
		took := time.Now()
		time.Sleep(15 * time.Second)
		if !exists(renewed) {
			t.Error("a session ended early after a change of leader")
		}
		c.within(10*time.Second, "expired", func() bool { return !exists(renewed) })
		if d := time.Since(took); d < 18*time.Second || d > 23*time.Second {
			t.Errorf("expired %v after the change of leader, want about 20s", d)
		}
	})
}

func TestWritesThatArriveTogetherShareEntries(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 9, 1, server.Config{})
		s := c.nodes[0]
		time.Sleep(time.Second)
		s.disk.SetSyncTime(5 * time.Millisecond)
		index := func() uint64 {
			var n uint64
			fmt.Sscan(s.Stats()["raft"]["last_log_index"], &n)
			return n
		}
		before, start := index(), time.Now()
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				if err := s.put(t.Context(), fmt.Sprintf("k%d", i), "v"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if entries := index() - before; entries > 20 {
			t.Errorf("1000 writes that arrived together took %d log entries", entries)
		}
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("they took %v", took)
		}
		reply, err := kv.KeysCall.Call(t.Context(), s.Caller(), &kv.KeysRequest{})
		if err != nil || len(reply.Keys) != 1000 {
			t.Errorf("%d keys, %v", len(reply.Keys), err)
		}
		// One that comes alone does not wait for company.
		start = time.Now()
		if err := s.put(t.Context(), "alone", "v"); err != nil || time.Since(start) > 6*time.Millisecond {
			t.Errorf("a write alone took %v, %v; want one sync of 5ms", time.Since(start), err)
		}
	})
}

// Each write of a shared entry keeps its own result.
func TestSharedEntriesKeepResultsApart(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 10, 1, server.Config{})
		s := c.nodes[0]
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for i := range 50 {
			wg.Go(func() {
				reply, err := kv.ApplyCall.Call(t.Context(), s.Caller(), &kv.ApplyRequest{
					Op: kv.OpCAS, Entry: kv.Entry{Key: "one", Value: []byte{byte(i)}},
				})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if reply.OK {
					won++
				}
			})
			wg.Go(func() {
				_, err := kv.ApplyCall.Call(t.Context(), s.Caller(), &kv.ApplyRequest{
					Op: kv.OpLock, Entry: kv.Entry{Key: "two", Session: "11111111-2222-3333-4444-555555555555"},
				})
				if err == nil {
					t.Error("a lock with an unknown session was granted")
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%d of 50 creations of one key succeeded", won)
		}
	})
}

func TestSnapshotSaveRestoreAndInstall(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 11, 3, server.Config{RaftSnapshotEntries: 50, RaftSnapshotEvery: time.Second, RaftTrailingLogs: 10})
		behind := c.follower()
		behind.crash()
		lead := c.leader()
		for i := range 200 {
			if err := lead.put(t.Context(), fmt.Sprintf("k%d", i), "v"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		behind.start() // can only catch up by a snapshot
		behind.join(lead)
		c.within(time.Minute, "caught up by a snapshot", func() bool { v, _ := behind.get(t.Context(), "k199", read.Stale); return v == "v" })

		// Save through a follower, change, restore through another.
		reply, body, err := operator.SaveSnapshotCall.Stream(t.Context(), c.follower().Caller(), &operator.SnapshotRequest{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		archive, err := io.ReadAll(body)
		if err != nil || reply.Index < 200 || !reply.KnownLeader {
			t.Fatalf("snapshot of %d bytes, %+v, %v", len(archive), reply, err)
		}
		body.Close()
		if err := lead.put(t.Context(), "k0", "changed"); err != nil {
			t.Fatal(err)
		}

		// A blocked read returns when the state is replaced.
		blocked := make(chan error, 1)
		go func() {
			_, err := kv.GetCall.Call(t.Context(), c.follower().Caller(), &kv.GetRequest{Options: read.Options{MinIndex: 1 << 40, Mode: read.Stale}, Key: "k1"})
			blocked <- err
		}()
		time.Sleep(100 * time.Millisecond)
		if _, _, err := operator.RestoreSnapshotCall.Stream(t.Context(), c.follower().Caller(), &operator.StatusRequest{}, bytes.NewReader(archive)); err != nil {
			t.Fatal(err)
		}
		for _, o := range c.nodes {
			c.within(10*time.Second, "restored", func() bool { v, _ := o.get(t.Context(), "k0", read.Stale); return v == "v" })
		}
		if err := <-blocked; err != nil {
			t.Errorf("the blocked read: %v", err)
		}

		for name, bad := range map[string][]byte{
			"failed to decompress snapshot": []byte("nonsense"),
			"failed to read snapshot file":  archive[:len(archive)/2],
		} {
			_, _, err := operator.RestoreSnapshotCall.Stream(t.Context(), c.follower().Caller(), &operator.StatusRequest{}, bytes.NewReader(bad))
			if err == nil || !bytes.Contains([]byte(err.Error()), []byte(name)) {
				t.Errorf("a bad archive: %v, want %q", err, name)
			}
		}
		if err := c.leader().put(t.Context(), "after", "1"); err != nil {
			t.Errorf("a write afterwards: %v", err)
		}
	})
}

func TestTransferLeadership(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 12, 3, server.Config{})
		to := c.follower()
		if _, err := operator.TransferLeaderCall.Call(t.Context(), to.Caller(), &operator.TransferLeaderRequest{ID: to.id}); err != nil {
			t.Fatal(err)
		}
		c.within(5*time.Second, "handed over", func() bool { return c.leader() == to })
		for want, id := range map[string]string{
			"cannot transfer leadership to itself":            to.id,
			"Could not find address for server id nowhere-id": "nowhere-id",
		} {
			_, err := operator.TransferLeaderCall.Call(t.Context(), to.Caller(), &operator.TransferLeaderRequest{ID: id})
			if err == nil || err.Error() != want {
				t.Errorf("transfer to %s: %v, want %q", id, err, want)
			}
		}
	})
}

func TestAutopilotHealth(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 13, 3, server.Config{})
		c.within(30*time.Second, "healthy", func() bool {
			h, err := operator.HealthCall.Call(t.Context(), c.follower().Caller(), &operator.StatusRequest{})
			return err == nil && h.Healthy && h.FailureTolerance == 1 && len(h.Servers) == 3
		})
		set := func(req *operator.SetAutopilotConfigRequest) bool {
			reply, err := operator.SetAutopilotConfigCall.Call(t.Context(), c.follower().Caller(), req)
			if err != nil {
				t.Fatal(err)
			}
			return reply.OK
		}
		get := func() operator.AutopilotConfig {
			reply, err := operator.AutopilotConfigCall.Call(t.Context(), c.leader().Caller(), &operator.AutopilotConfigRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return reply.Config
		}
		conf := get()
		if conf.ModifyIndex == 0 || !conf.CleanupDeadServers || conf.MaxTrailingLogs != 250 {
			t.Errorf("first configuration %+v", conf)
		}
		conf.MinQuorum = 3
		if set(&operator.SetAutopilotConfigRequest{Config: operator.AutopilotConfig{}, CAS: true}) {
			t.Error("index 0 matched a stored configuration")
		}
		if !set(&operator.SetAutopilotConfigRequest{Config: conf, CAS: true}) || get().MinQuorum != 3 {
			t.Error("a check-and-set at the right index failed")
		}
		// With a minimum of three, the one that dies stays.
		c.follower().crash()
		time.Sleep(2 * time.Minute)
		if _, all := c.leader().members(); all != 3 {
			t.Errorf("%d members, want 3: min_quorum", all)
		}
		h, err := operator.HealthCall.Call(t.Context(), c.leader().Caller(), &operator.StatusRequest{})
		if err != nil || h.Healthy || h.FailureTolerance != 0 {
			t.Errorf("health %+v, %v; want unhealthy", h, err)
		}
	})
}

func TestQuorumLost(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 14, 3, server.Config{})
		lead := c.leader()
		if err := lead.put(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		alone := c.follower()
		c.within(time.Second, "replicated", func() bool { v, _ := alone.get(t.Context(), "a", read.Stale); return v == "1" })
		for _, o := range c.nodes {
			if o != alone {
				o.crash()
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		time.Sleep(10 * time.Second)
		if err := alone.put(ctx, "a", "2"); !errors.Is(err, wireerr.ErrNoLeader) {
			t.Errorf("write: %v", err)
		}
		if v, err := alone.get(ctx, "a", read.Stale); v != "1" || err != nil {
			t.Errorf("stale read: %q, %v", v, err)
		}
		if reply, err := operator.LeaderCall.Call(ctx, alone.Caller(), &operator.StatusRequest{}); err != nil || reply.Address != "" {
			t.Errorf("leader %+v, %v", reply, err)
		}
		if reply, err := operator.PeersCall.Call(ctx, alone.Caller(), &operator.StatusRequest{}); err != nil || len(reply.Peers) != 3 {
			t.Errorf("peers %+v, %v", reply, err)
		}
		if _, body, err := operator.SaveSnapshotCall.Stream(ctx, alone.Caller(), &operator.SnapshotRequest{Options: read.Options{Mode: read.Stale}}, nil); err != nil {
			t.Errorf("stale snapshot: %v", err)
		} else {
			io.Copy(io.Discard, body)
			body.Close()
		}
	})
}

func TestUnknownDatacenter(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 15, 1, server.Config{})
		_, err := kv.GetCall.Call(t.Context(), c.nodes[0].Caller(), &kv.GetRequest{Options: read.Options{Target: read.Target{Datacenter: "dc9"}}, Key: "a"})
		if !errors.Is(err, wireerr.ErrNoDatacenter) {
			t.Errorf("got %v, want %v", err, wireerr.ErrNoDatacenter)
		}
	})
}
