package server_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server"
)

// newFederation starts datacenters dc1, dc2 …, each of so many servers, and joins one server of each to dc1.
func newFederation(t *testing.T, sizes ...int) (list []*cluster) {
	t.Helper()
	network := testkit.NewNetwork(7)
	network.SetAll(testkit.Link{Delay: time.Millisecond, Jitter: time.Millisecond})
	for i, n := range sizes {
		dc := string('1' + byte(i))
		list = append(list, newClusterIn(t, network, "10.0."+dc, n, server.Config{Datacenter: "dc" + dc, WAN: &gossip.Config{}}))
	}
	for i, c := range list {
		if i > 0 {
			if _, err := c.nodes[0].WAN().Join([]string{list[0].nodes[0].host.Addr().String() + ":8302"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return list
}

func datacenters(o *node) []string {
	r, err := catalog.DatacentersCall.Call(o.t.Context(), o.Caller(), &catalog.DatacentersRequest{})
	if err != nil {
		o.t.Fatal(err)
	}
	return r.Datacenters
}

func TestDatacentersFindEachOther(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		dcs := newFederation(t, 3, 1, 1)
		// One server of each has joined: all find one another.
		for _, c := range dcs {
			for _, o := range c.nodes {
				c.within(2*time.Minute, o.name+" knows all", func() bool {
					return len(datacenters(o)) == 3 && datacenters(o)[0] == o.conf.Datacenter && len(o.WAN().Members()) == 5
				})
			}
		}
		away := func(o *node, dc, key string) (*kv.GetReply, error) {
			return kv.GetCall.Call(t.Context(), o.Caller(), &kv.GetRequest{Options: read.Options{Target: read.Target{Datacenter: dc}}, Key: key})
		}
		put := func(o *node, dc, key, value string) {
			t.Helper()
			r, err := kv.ApplyCall.Call(t.Context(), o.Caller(), &kv.ApplyRequest{Target: read.Target{Datacenter: dc}, Op: kv.OpSet, Entry: kv.Entry{Key: key, Value: []byte(value)}})
			if err != nil || !r.OK {
				t.Fatalf("put in %s: %v, %v", dc, r, err)
			}
		}
		// From a follower of one to the leader of another, in both directions.
		far, near := dcs[1].nodes[0], dcs[0].follower()
		put(far, "dc1", "a", "1")
		put(near, "dc2", "b", "2")
		if r, err := away(far, "dc1", "a"); err != nil || r.Entry == nil || string(r.Entry.Value) != "1" {
			t.Errorf("read from afar: %+v, %v", r, err)
		}
		if r, err := away(near, "dc2", "b"); err != nil || r.Entry == nil || string(r.Entry.Value) != "2" {
			t.Errorf("read from afar: %+v, %v", r, err)
		}
		if v, err := near.get(t.Context(), "b", read.Default); err != nil || v != "" {
			t.Errorf("datacenters share keys: %q, %v", v, err)
		}
		// A blocking read of another datacenter wakes.
		first, err := away(far, "dc1", "a")
		if err != nil {
			t.Fatal(err)
		}
		woken := make(chan *kv.GetReply, 1)
		go func() {
			r, err := kv.GetCall.Call(t.Context(), far.Caller(), &kv.GetRequest{
				Options: read.Options{Target: read.Target{Datacenter: "dc1"}, MinIndex: first.Index, MaxWait: 5 * time.Minute}, Key: "a"})
			if err != nil {
				t.Error(err)
			}
			woken <- r
		}()
		time.Sleep(3 * time.Minute)
		began := time.Now()
		put(near, "", "a", "3")
		if r := <-woken; r == nil || string(r.Entry.Value) != "3" || time.Since(began) > time.Second {
			t.Errorf("woken after %v with %+v", time.Since(began), r)
		}
		if _, err := away(far, "dc9", "a"); !errors.Is(err, wireerr.ErrNoDatacenter) {
			t.Errorf("an unknown datacenter: %v", err)
		}
	})
}

func TestLossOfADatacenterHarmsNoOther(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		dcs := newFederation(t, 3, 1)
		near, far := dcs[0].nodes[0], dcs[1].nodes[0]
		dcs[0].within(2*time.Minute, "both are known", func() bool { return len(datacenters(near)) == 2 && len(datacenters(far)) == 2 })
		// A query finds in the other datacenter what is not here.
		register := &catalog.RegisterRequest{Node: "n", Address: "10.9.9.9", Service: &catalog.Service{Service: "db", Port: 1}}
		if _, err := catalog.RegisterCall.Call(t.Context(), far.Caller(), register); err != nil {
			t.Fatal(err)
		}
		made, err := query.ApplyCall.Call(t.Context(), near.Caller(), &query.ApplyRequest{Op: query.Create, Query: query.Query{
			Name: "q", Service: query.Service{Service: "db", Failover: query.Failover{NearestN: 3}}}})
		if err != nil {
			t.Fatal(err)
		}
		r, err := query.ExecuteCall.Call(t.Context(), near.Caller(), &query.ExecuteRequest{Query: made.ID})
		if err != nil || r.Datacenter != "dc2" || len(r.Instances) != 1 {
			t.Errorf("failover: %+v, %v", r, err)
		}
		far.crash()
		for i := range 20 {
			began := time.Now()
			if err := near.put(t.Context(), "k", string('a'+byte(i))); err != nil || time.Since(began) > time.Second {
				t.Fatalf("write %d after %v: %v", i, time.Since(began), err)
			}
			time.Sleep(10 * time.Second)
		}
		if _, err := kv.GetCall.Call(t.Context(), near.Caller(), &kv.GetRequest{Options: read.Options{Target: read.Target{Datacenter: "dc2"}}, Key: "a"}); err == nil {
			t.Error("a lost datacenter answered")
		}
		if r, err := query.ExecuteCall.Call(t.Context(), near.Caller(), &query.ExecuteRequest{Query: made.ID}); err != nil || len(r.Instances) != 0 {
			t.Errorf("a query while the other is lost: %+v, %v", r, err)
		}
		far.start()
		dcs[0].within(3*time.Minute, "it is back", func() bool {
			r, err := query.ExecuteCall.Call(t.Context(), near.Caller(), &query.ExecuteRequest{Query: made.ID})
			return err == nil && r.Datacenter == "dc2" && len(r.Instances) == 1
		})
		if !slices.Equal(datacenters(near), []string{"dc1", "dc2"}) {
			t.Error(datacenters(near))
		}
	})
}
