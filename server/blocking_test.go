package server_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
)

// The rules of spec/state.md section 1.3, at a follower, so that the wait crosses the network too.
func TestBlockingReads(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 30, 3, server.Config{})
		s := c.follower()
		put := func(key, value string) {
			t.Helper()
			if err := s.put(t.Context(), key, value); err != nil {
				t.Fatal(err)
			}
		}
		get := func(key string, index uint64, wait time.Duration) (*kv.GetReply, time.Duration) {
			t.Helper()
			start := time.Now()
			reply, err := kv.GetCall.Call(t.Context(), s.Caller(), &kv.GetRequest{Options: read.Options{MinIndex: index, MaxWait: wait}, Key: key})
			if err != nil {
				t.Fatal(err)
			}
			return reply, time.Since(start)
		}
		after := func(d time.Duration, f func()) chan struct{} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				time.Sleep(d)
				f()
			}()
			return done
		}
		between := func(what string, took, low, high time.Duration) {
			t.Helper()
			if took < low || took > high {
				t.Errorf("%s took %v, want %v to %v", what, took, low, high)
			}
		}

		put("a", "1")
		first, took := get("a", 0, 10*time.Minute)
		between("a read without an index", took, 0, 20*time.Millisecond)
		if first.Index != first.Entry.ModifyIndex || !first.KnownLeader {
			t.Errorf("meta %+v, entry %+v", first.Meta, first.Entry)
		}

		done := after(time.Second, func() { put("a", "2") })
		reply, took := get("a", first.Index, time.Minute)
		between("a read until the change", took, time.Second, 1100*time.Millisecond)
		if string(reply.Entry.Value) != "2" || reply.Index <= first.Index {
			t.Errorf("woke with %q at %d", reply.Entry.Value, reply.Index)
		}
		<-done

		same, took := get("a", reply.Index, 16*time.Second)
		between("a read to its limit", took, 16*time.Second, 17*time.Second+100*time.Millisecond)
		if same.Index != reply.Index {
			t.Errorf("at the limit the index is %d, want %d", same.Index, reply.Index)
		}
		_, took = get("a", reply.Index, 0)
		between("a read to the default limit", took, 300*time.Second, 320*time.Second)
		_, took = get("a", reply.Index, time.Hour)
		between("a read to the greatest limit", took, 600*time.Second, 640*time.Second)
		high, took := get("a", 1<<40, 16*time.Second)
		between("a read from an index that does not exist", took, 16*time.Second, 17*time.Second+100*time.Millisecond)
		if high.Index != reply.Index {
			t.Errorf("it got index %d, want the real %d", high.Index, reply.Index)
		}

		// Other keys neither end a wait for a key nor one for a missing key.
		other := after(time.Second, func() { put("other", "1") })
		_, took = get("a", reply.Index, 4*time.Second)
		between("a read beside other keys", took, 4*time.Second, 5*time.Second)
		<-other
		missing, _ := get("missing", 0, 0)
		if missing.Entry != nil || !missing.NotFound || missing.Index < 1 {
			t.Errorf("a missing key: %+v", missing)
		}
		other = after(time.Second, func() { put("other", "2") })
		created := after(3*time.Second, func() { put("missing", "here") })
		found, took := get("missing", missing.Index, time.Minute)
		between("a read of a missing key", took, 3*time.Second, 3100*time.Millisecond)
		if found.Entry == nil || string(found.Entry.Value) != "here" {
			t.Errorf("it got %+v", found.Entry)
		}
		<-other
		<-created

		// Writing the same again wakes nobody.
		again := after(time.Second, func() { put("a", "2") })
		_, took = get("a", reply.Index, 4*time.Second)
		between("a read beside the same write", took, 4*time.Second, 5*time.Second)
		<-again

		// The caller may give up.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := kv.GetCall.Call(ctx, s.Caller(), &kv.GetRequest{Options: read.Options{MinIndex: reply.Index}, Key: "a"})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 1100*time.Millisecond {
			t.Errorf("a caller that gives up: %v after %v", err, time.Since(start))
		}
	})
}

// A change wakes every reader that waits for it, and they see it.
func TestManyWatchersWake(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 31, 1, server.Config{})
		s := c.nodes[0]
		c.within(time.Second, "registered", func() bool {
			reply, err := catalog.NodesCall.Call(t.Context(), s.Caller(), &catalog.NodesRequest{})
			return err == nil && len(reply.Nodes) == 1
		})
		register := func(service string, port int) {
			t.Helper()
			_, err := catalog.RegisterCall.Call(t.Context(), s.Caller(), &catalog.RegisterRequest{
				Node: "s1", Address: "10.0.0.1", ID: s.id, SkipNodeUpdate: true, Service: &catalog.Service{ID: service, Service: service, Port: port},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		register("web", 80)
		register("db", 90)
		web, err := catalog.InstancesCall.Call(t.Context(), s.Caller(), &catalog.InstancesRequest{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		woke := make(chan string, 500)
		for range 500 {
			go func() {
				reply, err := catalog.InstancesCall.Call(context.Background(), s.Caller(), &catalog.InstancesRequest{
					Options: read.Options{MinIndex: web.Index, MaxWait: time.Minute}, Service: "web",
				})
				if err != nil {
					woke <- err.Error()
					return
				}
				woke <- fmt.Sprint(reply.Instances[0].Service.Port)
			}()
		}
		time.Sleep(time.Second)
		register("db", 91)
		time.Sleep(time.Second)
		if len(woke) > 0 {
			t.Errorf("%d readers woke for another service", len(woke))
		}
		register("web", 81)
		for range 500 {
			if got := <-woke; got != "81" {
				t.Fatalf("a reader woke with %s", got)
			}
		}
	})
}

// A server that takes up reading again after it lost the lead has its waiting readers served by the new leader.
func TestBlockedReadSurvivesAChangeOfLeader(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 32, 3, server.Config{})
		old := c.leader()
		if err := old.put(t.Context(), "a", "1"); err != nil {
			t.Fatal(err)
		}
		first, err := kv.GetCall.Call(t.Context(), old.Caller(), &kv.GetRequest{Key: "a"})
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 1)
		go func() {
			reply, err := kv.GetCall.Call(context.Background(), old.Caller(), &kv.GetRequest{Options: read.Options{MinIndex: first.Index, MaxWait: time.Minute}, Key: "a"})
			if err != nil {
				got <- err.Error()
				return
			}
			got <- string(reply.Entry.Value)
		}()
		time.Sleep(time.Second)
		var others []*testkit.Host
		for _, o := range c.nodes {
			if o != old {
				others = append(others, o.host)
			}
		}
		c.net.Partition(others)
		var now *node
		c.within(10*time.Second, "another leader", func() bool {
			for _, o := range c.nodes {
				if s, _ := o.Leadership(); s.Leading && o != old {
					now = o
				}
			}
			return now != nil
		})
		if err := now.put(t.Context(), "a", "2"); err != nil {
			t.Fatal(err)
		}
		c.net.Heal()
		start := time.Now()
		if v := <-got; v != "2" || time.Since(start) > 15*time.Second {
			t.Errorf("the blocked read got %q %v after the network healed", v, time.Since(start))
		}
	})
}
