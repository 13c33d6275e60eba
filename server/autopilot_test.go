package server_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/consensus"
)

// autopilot returns what the leader's autopilot tells; its zero value while there is none.
func (c *cluster) autopilot() *operator.State {
	st, err := operator.StateCall.Call(context.Background(), c.leader().Caller(), &operator.StatusRequest{})
	if err != nil {
		return &operator.State{}
	}
	return st
}

// voting returns the names of the servers that vote, ordered.
func (c *cluster) voting() string {
	members, _, err := membersOf(c.leader())
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, m := range members {
		if m.Voter {
			names = append(names, m.Node)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// settles waits until exactly these servers vote, and sees to it that it stays so.
func (c *cluster) settles(want string) {
	c.t.Helper()
	c.within(5*time.Minute, "voting: "+want, func() bool { return c.voting() == want })
	for range 30 {
		time.Sleep(2 * time.Second)
		if got := c.voting(); got != want {
			c.t.Fatalf("voting after a while: %s, want %s", got, want)
		}
	}
}

// tag gives a server's node metadata, as its agent would.
func (o *node) tag(c *cluster, key, value string) {
	o.t.Helper()
	c.within(time.Minute, "registered: "+o.name, func() bool {
		_, err := catalog.RegisterCall.Call(o.t.Context(), c.leader().Caller(), &catalog.RegisterRequest{
			Node: o.name, ID: o.id, Address: o.host.Addr().String(), NodeMeta: map[string]string{key: value},
		})
		return err == nil
	})
}

// more starts another server and joins it.
func (c *cluster) more(conf server.Config) *node {
	c.t.Helper()
	lead := c.leader()
	o := c.add(conf)
	o.start()
	o.join(lead)
	return o
}

func (c *cluster) setAutopilot(change func(*operator.AutopilotConfig)) {
	c.t.Helper()
	conf := operator.DefaultAutopilot()
	change(&conf)
	if _, err := operator.SetAutopilotConfigCall.Call(c.t.Context(), c.leader().Caller(), &operator.SetAutopilotConfigRequest{Config: conf}); err != nil {
		c.t.Fatal(err)
	}
}

func TestReadReplicasNeverVote(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 41, 3, server.Config{})
		replica := c.more(server.Config{ReadReplica: true})
		c.within(time.Minute, "four members", func() bool { _, all := c.leader().members(); return all == 4 })
		c.settles("s1 s2 s3")
		if err := c.leader().put(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		c.within(10*time.Second, "read from the replica", func() bool {
			v, err := replica.get(t.Context(), "a", read.Stale)
			return err == nil && v == "1"
		})
		st := c.autopilot()
		if s := st.Servers[replica.id]; !slices.Equal(st.ReadReplicas, []string{replica.id}) || s == nil || !s.ReadReplica ||
			s.Type != operator.TypeReadReplica || s.Status != operator.StatusNonVoter || st.FailureTolerance != 1 {
			t.Errorf("state %+v, replica %+v", st, s)
		}
		reply, err := catalog.InstancesCall.Call(t.Context(), c.leader().Caller(), &catalog.InstancesRequest{Service: catalog.ServerServiceName})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range reply.Instances {
			if want := fmt.Sprint(i.Node.Node == replica.name); i.Service.Meta["read_replica"] != want || i.Service.Meta["non_voter"] != want {
				t.Errorf("%s: meta %v, want read_replica and non_voter %s", i.Node.Node, i.Service.Meta, want)
			}
		}
		// A voter that returns as a replica loses its vote; a dead replica is removed like any other.
		voter := c.follower()
		for voter == replica {
			t.Fatal("a replica is not among the first followers")
		}
		voter.stop()
		voter.conf.ReadReplica = true
		lead := c.leader()
		voter.start()
		voter.join(lead)
		c.within(2*time.Minute, "two voters", func() bool { v, all := c.leader().members(); return v == 2 && all == 4 })
		replica.crash()
		c.within(2*time.Minute, "the dead replica removed", func() bool { _, all := c.leader().members(); return all == 3 })
	})
}

func TestReadReplicasMakeNoCluster(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		network := testkit.NewNetwork(42)
		network.SetAll(testkit.Link{Delay: time.Millisecond})
		c := &cluster{t: t, net: network, subnet: "10.0.0"}
		for i := range 4 {
			o := c.add(server.Config{BootstrapExpect: 3, ReadReplica: i == 0})
			o.start()
			o.join(c.nodes[0])
			if i == 2 { // three servers, but only two that vote
				time.Sleep(20 * time.Second)
				for _, o := range c.nodes {
					if s, _ := o.Leadership(); s.Known() {
						t.Fatalf("%s knows a leader of too small a cluster", o.name)
					}
				}
			}
		}
		c.settles("s2 s3 s4")
		if _, all := c.leader().members(); all != 4 {
			t.Errorf("%d members, want the replica too", all)
		}
	})
}

func TestOneServerOfEachZoneVotes(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 43, 3, server.Config{})
		for range 3 {
			c.more(server.Config{})
		}
		for i, o := range c.nodes { // zones a b c a b c
			o.tag(c, "zone", string(rune('a'+i%3)))
		}
		c.setAutopilot(func(conf *operator.AutopilotConfig) { conf.RedundancyZoneTag = "zone" })
		c.within(2*time.Minute, "three voters", func() bool { return len(c.autopilot().Voters) == 3 && len(c.autopilot().Servers) == 6 })
		first := c.voting()
		c.settles(first)
		c.within(time.Minute, "all healthy", func() bool { return c.autopilot().OptimisticFailureTolerance == 4 })
		st := c.autopilot()
		if len(st.RedundancyZones) != 3 || st.FailureTolerance != 1 || st.Upgrade != nil {
			t.Errorf("state %+v", st)
		}
		byName := map[string]*operator.ServerState{}
		for _, s := range st.Servers {
			byName[s.Name] = s
			want := operator.TypeZoneStandby
			if s.Voter {
				want = operator.TypeZoneVoter
			}
			if s.Type != want || s.RedundancyZone == "" {
				t.Errorf("%s in zone %q is a %s, want %s", s.Name, s.RedundancyZone, s.Type, want)
			}
		}
		for name, z := range st.RedundancyZones {
			if len(z.Servers) != 2 || len(z.Voters) != 1 || z.FailureTolerance != 1 {
				t.Errorf("zone %s: %+v", name, z)
			}
		}

		// The one that stands by takes over from a voter that fails.
		zone := func(o *node) string { return byName[o.name].RedundancyZone }
		lead := c.leader()
		var fails, standby *node
		for _, o := range c.nodes {
			switch {
			case o == lead || zone(o) == zone(lead):
			case fails == nil && byName[o.name].Voter:
				fails = o
			}
		}
		for _, o := range c.nodes {
			if o != fails && zone(o) == zone(fails) {
				standby = o
			}
		}
		fails.crash()
		c.within(2*time.Minute, "the standby votes", func() bool {
			v := strings.Fields(c.voting())
			return len(v) == 3 && slices.Contains(v, standby.name) && !slices.Contains(v, fails.name)
		})

		// With the whole zone gone another server of a zone votes too, until it is back.
		standby.crash()
		c.within(3*time.Minute, "an extra voter", func() bool {
			extra := 0
			st := c.autopilot()
			for _, s := range st.Servers {
				if s.Type == operator.TypeZoneExtraVoter && s.Voter {
					extra++
				}
			}
			return extra == 1 && len(st.Voters) == 3 && st.FailureTolerance == 1
		})
		lead = c.leader()
		standby.start()
		standby.join(lead)
		standby.tag(c, "zone", zone(standby))
		c.within(3*time.Minute, "one of each zone again", func() bool {
			st := c.autopilot()
			for _, z := range st.RedundancyZones {
				if len(z.Voters) != 1 {
					return false
				}
			}
			return len(st.RedundancyZones) == 3 && len(st.Voters) == 3
		})
	})
}

func TestServersOfANewVersionTakeOver(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 44, 3, server.Config{})
		for _, o := range c.nodes {
			o.tag(c, "version", "1.2.0")
		}
		c.setAutopilot(func(conf *operator.AutopilotConfig) { conf.UpgradeVersionTag = "version" })
		status := func(want operator.UpgradeStatus) func() bool {
			return func() bool { u := c.autopilot().Upgrade; return u != nil && u.Status == want }
		}
		c.within(time.Minute, "idle", status(operator.UpgradeIdle))
		if err := c.leader().put(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			c.more(server.Config{}).tag(c, "version", "1.10.0-rc.1")
		}
		c.within(time.Minute, "waiting for more", status(operator.UpgradeAwaitNewVoters))
		c.settles("s1 s2 s3")
		u := c.autopilot().Upgrade
		if u.TargetVersion != "1.10.0-rc.1" || len(u.TargetVersionNonVoters) != 2 || len(u.OtherVersionVoters) != 3 {
			t.Errorf("upgrade %+v", u)
		}

		c.more(server.Config{}).tag(c, "version", "1.10.0-rc.1")
		c.settles("s4 s5 s6")
		if lead := c.leader().name; lead < "s4" {
			t.Errorf("%s leads, which does not vote", lead)
		}
		if u := c.autopilot().Upgrade; u.Status != operator.UpgradeAwaitRemoval || len(u.OtherVersionNonVoters) != 3 || len(u.TargetVersionVoters) != 3 {
			t.Errorf("upgrade %+v", u)
		}
		for _, o := range c.nodes[:3] {
			if err := o.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			o.stop()
		}
		c.within(time.Minute, "idle again", status(operator.UpgradeIdle))
		c.settles("s4 s5 s6")
		if v, err := c.leader().get(t.Context(), "a", read.Consistent); err != nil || v != "1" {
			t.Errorf("what was written before: %q, %v", v, err)
		}
	})
}

func TestUpgradeInPlaceTakesNoVotes(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 45, 3, server.Config{})
		for _, o := range c.nodes {
			o.tag(c, "version", "1.2.0")
		}
		c.setAutopilot(func(conf *operator.AutopilotConfig) { conf.UpgradeVersionTag = "version" })
		for _, o := range slices.Clone(c.nodes) {
			o.tag(c, "version", "1.3.0")
			c.settles("s1 s2 s3")
		}
		// Switched off, versions do not count at all.
		c.setAutopilot(func(conf *operator.AutopilotConfig) {
			conf.UpgradeVersionTag, conf.DisableUpgradeMigration = "version", true
		})
		c.more(server.Config{}).tag(c, "version", "1.4.0")
		c.settles("s1 s2 s3 s4")
		if u := c.autopilot().Upgrade; u == nil || u.Status != operator.UpgradeDisabled {
			t.Errorf("upgrade %+v", u)
		}
	})
}

func TestAServerRecoversWithoutTheOthers(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 46, 3, server.Config{RaftSnapshotEntries: 20, RaftSnapshotEvery: time.Second, RaftTrailingLogs: 10})
		for i := range 60 {
			if err := c.leader().put(t.Context(), fmt.Sprintf("k%d", i), "v"); err != nil {
				t.Fatal(err)
			}
		}
		left := c.follower()
		c.within(10*time.Second, "copied", func() bool { v, _ := left.get(t.Context(), "k59", read.Stale); return v == "v" })
		for _, o := range c.nodes {
			o.stop() // for good, but for one
		}
		left.recovery = []consensus.Server{{ID: left.id, Address: left.host.Addr().String() + ":8300", Voter: true}}
		left.start()
		c.within(30*time.Second, "it leads alone", func() bool { s, _ := left.Leadership(); return s.Leading })
		if left.recovery != nil {
			t.Error("recovery is asked for again")
		}
		for _, key := range []string{"k0", "k59"} {
			if v, err := left.get(t.Context(), key, read.Consistent); v != "v" || err != nil {
				t.Errorf("%s: %q, %v", key, v, err)
			}
		}
		if err := left.put(t.Context(), "after", "1"); err != nil {
			t.Error(err)
		}
		// Once more with what it has now, and a new server joins.
		left.stop()
		left.start()
		c.within(30*time.Second, "it leads again", func() bool { s, _ := left.Leadership(); return s.Leading })
		fresh := c.add(server.Config{})
		fresh.start()
		fresh.join(left)
		c.within(2*time.Minute, "two voters", func() bool { v, all := left.members(); return v == 2 && all == 2 })
		c.within(10*time.Second, "copied", func() bool { v, _ := fresh.get(t.Context(), "after", read.Stale); return v == "1" })
	})
}
