package server_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
)

// Who waits for a change is not woken by the checkpoints of a verified log, and is by what comes after them; reads of
// all kinds go on.
func TestBlockingQueriesDoNotSeeCheckpoints(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 71, 3, server.Config{RaftVerify: true, RaftVerifyEvery: 50 * time.Millisecond})
		lead, follower := c.leader(), c.follower()
		if err := lead.put(t.Context(), "k", "1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		for _, o := range []*node{lead, follower} {
			wait := func(index uint64, mode read.Mode) (uint64, time.Duration) {
				t.Helper()
				began := time.Now()
				reply, err := kv.GetCall.Call(t.Context(), o.Caller(), &kv.GetRequest{
					Options: read.Options{Mode: mode, MinIndex: index, MaxWait: 30 * time.Second}, Key: "k",
				})
				if err != nil {
					t.Fatal(err)
				}
				return reply.Index, time.Since(began)
			}
			for _, mode := range []read.Mode{read.Default, read.Consistent, read.Stale} {
				time.Sleep(time.Second) // for followers to have the last change
				index, _ := wait(0, mode)
				if now, took := wait(index, mode); now != index || took < 30*time.Second {
					t.Errorf("%s, mode %v: returned index %d after %v; was %d", o.name, mode, now, took, index)
				}
				written := make(chan error, 1)
				go func() {
					time.Sleep(5 * time.Second)
					written <- lead.put(t.Context(), "k", fmt.Sprint(mode, o.name))
				}()
				if now, took := wait(index, mode); now <= index || took < 5*time.Second || took > 6*time.Second {
					t.Errorf("%s, mode %v: returned index %d after %v for a change; was %d", o.name, mode, now, took, index)
				}
				if err := <-written; err != nil {
					t.Error(err)
				}
			}
		}
	})
}
