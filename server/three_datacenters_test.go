package server_test

import (
	"bytes"
	"encoding/base64"
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
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server"
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

// Keys are changed in the pools of all datacenters by one request, without a break.
func TestGossipKeysChangeInAllDatacenters(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		network := testkit.NewNetwork(61)
		network.SetAll(testkit.Link{Delay: time.Millisecond})
		text := func(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }
		old, fresh := text(1), text(2)
		conf := func(dc string, key byte) server.Config {
			k := bytes.Repeat([]byte{key}, 32)
			return server.Config{Datacenter: dc, Gossip: gossip.Config{Key: k}, WAN: &gossip.Config{Key: k}}
		}
		one := newClusterIn(t, network, "10.0.1", 3, conf("dc1", 1))
		two := newClusterIn(t, network, "10.0.2", 1, conf("dc2", 1))
		o := one.nodes[0]
		if _, err := two.nodes[0].WAN().Join([]string{"10.0.1.1:8302"}); err != nil {
			t.Fatal(err)
		}
		one.within(2*time.Minute, "one WAN pool", func() bool { return len(o.WAN().Members()) == 4 && len(datacenters(o)) == 2 })
		do := func(op operator.KeyringOp, key string, local bool) string {
			t.Helper()
			reply, err := operator.KeyringCall.Call(t.Context(), o.Caller(), &operator.KeyringRequest{Op: op, Key: key, RelayFactor: 2, LocalOnly: local})
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, r := range reply.Responses {
				pool := "lan"
				if r.WAN {
					pool = "wan"
				}
				line := fmt.Sprintf("%s %s of %d: old %d fresh %d, primary %d %d", pool, r.Datacenter, r.NumNodes, r.Keys[old], r.Keys[fresh], r.PrimaryKeys[old], r.PrimaryKeys[fresh])
				if r.Error != "" {
					line = fmt.Sprintf("%s %s: %s", pool, r.Datacenter, r.Error)
				}
				out = append(out, line)
			}
			return strings.Join(out, "\n")
		}
		lists := func(when, want string) {
			t.Helper()
			if got := do(operator.KeyringList, "", false); got != want {
				t.Errorf("%s:\n%s\nwant\n%s", when, got, want)
			}
		}
		all := func(keys string) string {
			var lines []string
			for _, pool := range []struct {
				name string
				n    int
			}{{"wan dc1", 4}, {"lan dc1", 3}, {"lan dc2", 1}} {
				lines = append(lines, pool.name+fmt.Sprintf(" of %d: ", pool.n)+strings.ReplaceAll(keys, "N", fmt.Sprint(pool.n)))
			}
			return strings.Join(lines, "\n")
		}
		lists("at first", all("old N fresh 0, primary N 0"))
		do(operator.KeyringInstall, fresh, false)
		lists("installed", all("old N fresh N, primary N 0"))
		do(operator.KeyringUse, fresh, false)
		lists("used", all("old N fresh N, primary 0 N"))
		if got := do(operator.KeyringRemove, fresh, false); strings.Count(got, "nodes reported failure") != 3 {
			t.Errorf("removing the primary key: %s", got)
		}
		do(operator.KeyringRemove, old, false)
		lists("removed", all("old 0 fresh N, primary 0 N"))
		if got, want := do(operator.KeyringList, "", true), "lan dc1 of 3: old 0 fresh 3, primary 0 3"; got != want {
			t.Errorf("here alone: %s, want %s", got, want)
		}
		// Who has the key joins, who has the old one does not.
		late := one.add(conf("dc1", 2))
		late.start()
		late.join(o)
		one.within(2*time.Minute, "four voters", func() bool { v, _ := o.members(); return v == 4 })
		stale := one.add(conf("dc1", 1))
		stale.start()
		if n, err := stale.Gossip().Join([]string{"10.0.1.1:8301"}); n != 0 || err == nil {
			t.Errorf("a server with the old key joined")
		}
		// A datacenter that cannot be reached is told of.
		two.nodes[0].crash()
		if got := do(operator.KeyringList, "", false); !strings.Contains(got, "\nlan dc2: ") || !strings.Contains(got, "lan dc1 of 4: old 0 fresh 4") {
			t.Errorf("with dc2 lost: %s", got)
		}
	})
}
