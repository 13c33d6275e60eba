package server_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Three datacenters: dc2 is far from dc1 and dc3 near it. Lists, failover and the loss of one go by that.
func TestThreeDatacentersByDistance(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		dcs := newFederation(t, 1, 1, 1)
		one, far, near := dcs[0], dcs[1], dcs[2]
		for i, d := range map[*cluster]time.Duration{far: 80 * time.Millisecond, near: 10 * time.Millisecond} {
			a, b := one.nodes[0].host, i.nodes[0].host
			one.net.SetLink(a, b, testkit.Link{Delay: d})
			one.net.SetLink(b, a, testkit.Link{Delay: d})
		}
		o := one.nodes[0]
		want := []string{"dc1", "dc3", "dc2"}
		one.within(10*time.Minute, "the near one before the far one", func() bool { return slices.Equal(datacenters(o), want) })

		// What is asked of another datacenter is answered there.
		in := func(dc string) read.Target { return read.Target{Datacenter: dc} }
		for _, dc := range want {
			if _, err := kv.ApplyCall.Call(t.Context(), o.Caller(), &kv.ApplyRequest{Target: in(dc), Op: kv.OpSet, Entry: kv.Entry{Key: "where", Value: []byte(dc)}}); err != nil {
				t.Fatal(err)
			}
			txn, err := kv.TxnReadCall.Call(t.Context(), o.Caller(), &kv.TxnReadRequest{Options: read.Options{Target: in(dc)}, Ops: []kv.TxnOp{{KV: &kv.TxnKV{Verb: kv.OpGet, Entry: kv.Entry{Key: "where"}}}}})
			if err != nil || len(txn.Results) != 1 || string(txn.Results[0].KV.Value) != dc {
				t.Errorf("transaction in %s: %+v, %v", dc, txn, err)
			}
			leader, err := operator.LeaderCall.Call(t.Context(), o.Caller(), &operator.StatusRequest{Target: in(dc)})
			if wantAt := fmt.Sprintf("10.0.%s.1:8300", dc[2:]); err != nil || leader.Address != wantAt {
				t.Errorf("leader of %s: %+v, %v; want %s", dc, leader, err, wantAt)
			}
			conf, err := operator.RaftConfigurationCall.Call(t.Context(), o.Caller(), &operator.StatusRequest{Target: in(dc)})
			if err != nil || len(conf.Servers) != 1 || !strings.HasPrefix(conf.Servers[0].Address, "10.0."+dc[2:]) {
				t.Errorf("members of %s: %+v, %v", dc, conf, err)
			}
			reply, body, err := operator.SaveSnapshotCall.Stream(t.Context(), o.Caller(), &operator.SnapshotRequest{Options: read.Options{Target: in(dc)}}, nil)
			if err != nil || reply.Index == 0 {
				t.Errorf("snapshot of %s: %+v, %v", dc, reply, err)
			} else {
				body.Close()
			}
			if _, err := event.FireCall.Call(t.Context(), o.Caller(), &event.FireRequest{Target: in(dc), Event: event.Event{ID: "8995b8f0-2d4e-4e52-8b5d-26dd958767f0", Name: "e", Version: 1}}); err != nil {
				t.Errorf("event in %s: %v", dc, err)
			}
		}

		// Failover: by distance, then those named, the unknown and this one skipped without being counted.
		offer := func(c *cluster) {
			t.Helper()
			if _, err := catalog.RegisterCall.Call(t.Context(), c.nodes[0].Caller(), &catalog.RegisterRequest{
				Node: "n-" + c.nodes[0].conf.Datacenter, Address: "10.9.9.9", Service: &catalog.Service{Service: "db", Port: 1},
			}); err != nil {
				t.Fatal(err)
			}
		}
		ask := func(f query.Failover) *query.ExecuteReply {
			t.Helper()
			made, err := query.ApplyCall.Call(t.Context(), o.Caller(), &query.ApplyRequest{Op: query.Create, Query: query.Query{Name: "q", Service: query.Service{Service: "db", Failover: f}}})
			if err != nil {
				t.Fatal(err)
			}
			r, err := query.ExecuteCall.Call(t.Context(), o.Caller(), &query.ExecuteRequest{Query: "q"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := query.ApplyCall.Call(t.Context(), o.Caller(), &query.ApplyRequest{Op: query.Delete, Query: query.Query{ID: made.ID}}); err != nil {
				t.Fatal(err)
			}
			return r
		}
		check := func(what string, r *query.ExecuteReply, dc string, tried, found int) {
			t.Helper()
			if r.Datacenter != dc || r.Failovers != tried || len(r.Instances) != found {
				t.Errorf("%s: %d instances of %s after %d tries, want %d of %s after %d", what, len(r.Instances), r.Datacenter, r.Failovers, found, dc, tried)
			}
		}
		check("nobody has it", ask(query.Failover{}), "dc1", 0, 0)
		offer(far)
		check("the far one alone", ask(query.Failover{NearestN: 2}), "dc2", 2, 1)
		check("only the nearest", ask(query.Failover{NearestN: 1}), "dc3", 1, 0)
		check("the nearest, then the one named", ask(query.Failover{NearestN: 1, Datacenters: []string{"dc9", "dc1", "dc3", "dc2"}}), "dc2", 2, 1)
		offer(near)
		check("both", ask(query.Failover{NearestN: 2}), "dc3", 1, 1)
		check("in the order named", ask(query.Failover{Datacenters: []string{"dc2", "dc3"}}), "dc2", 1, 1)
		check("targets", ask(query.Failover{Targets: []query.Target{{Datacenter: "dc9"}, {Datacenter: "dc2"}}}), "dc2", 1, 1)
		offer(one)
		check("this one", ask(query.Failover{NearestN: 2}), "dc1", 0, 1)

		// One is lost: the others go on with one another; it is listed until it is made to leave.
		lost := near.nodes[0]
		lost.crash()
		if _, err := kv.GetCall.Call(t.Context(), o.Caller(), &kv.GetRequest{Options: read.Options{Target: in("dc3")}, Key: "where"}); err == nil || errors.Is(err, wireerr.ErrNoDatacenter) {
			t.Errorf("a lost datacenter: %v, want that it cannot be reached", err)
		}
		time.Sleep(2 * time.Minute)
		began := time.Now()
		for _, dc := range []string{"dc1", "dc2"} {
			r, err := kv.GetCall.Call(t.Context(), o.Caller(), &kv.GetRequest{Options: read.Options{Target: in(dc)}, Key: "where"})
			if err != nil || string(r.Entry.Value) != dc {
				t.Errorf("%s: %+v, %v", dc, r, err)
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the others took %v", took)
		}
		if got := datacenters(o); len(got) != 3 {
			t.Errorf("listed: %v, want the lost one too", got)
		}
		if err := o.WAN().ForceLeave("s1.dc3", false); err != nil {
			t.Fatal(err)
		}
		one.within(time.Minute, "no longer listed", func() bool { return slices.Equal(datacenters(o), []string{"dc1", "dc2"}) })
		if _, err := kv.GetCall.Call(t.Context(), o.Caller(), &kv.GetRequest{Options: read.Options{Target: in("dc3")}, Key: "where"}); !errors.Is(err, wireerr.ErrNoDatacenter) {
			t.Errorf("a datacenter that left: %v", err)
		}
		far.within(time.Minute, "nor elsewhere", func() bool { return slices.Equal(datacenters(far.nodes[0]), []string{"dc2", "dc1"}) })
	})
}
