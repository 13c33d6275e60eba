package server_test

import (
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
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
