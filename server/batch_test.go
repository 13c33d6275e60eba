package server_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
)

// A leader that loses its followers, or its life, while entries of many commands are under way, answers each caller, and
// what it said is done is there afterwards, on every server.
func TestEachWriteIsAnsweredWhenTheLeaderIsLost(t *testing.T) {
	for name, lose := range map[string]func(c *cluster, lead *node, rest []*testkit.Host){
		"cut off":           func(c *cluster, lead *node, rest []*testkit.Host) { c.net.Partition([]*testkit.Host{lead.host}, rest) },
		"hands the lead on": func(_ *cluster, lead *node, _ []*testkit.Host) { go lead.Leave(lead.t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				c := newCluster(t, 21, 3, server.Config{})
				lead := c.leader()
				var rest []*testkit.Host
				for _, o := range c.nodes {
					o.disk.SetSyncTime(2 * time.Millisecond)
					if o != lead {
						rest = append(rest, o.host)
					}
				}
				const writers = 200
				var wg sync.WaitGroup
				done := make([][]string, writers)
				failed := make([]bool, writers)
				for w := range writers {
					wg.Go(func() {
						for i := range 100 {
							key := fmt.Sprintf("%d/%d", w, i)
							if err := lead.put(t.Context(), key, key); err != nil {
								failed[w] = true
								return
							}
							done[w] = append(done[w], key)
						}
					})
				}
				time.Sleep(30 * time.Millisecond)
				lose(c, lead, rest)
				wg.Wait()
				c.net.Heal()
				lead.stop()
				now := c.leader()
				count := 0
				for w := range writers {
					for _, key := range done[w] {
						count++
						if v, err := now.get(t.Context(), key, read.Consistent); v != key || err != nil {
							t.Fatalf("%s is %q, %v", key, v, err)
						}
					}
				}
				if count == 0 || name == "cut off" && !failed[0] {
					t.Errorf("%d writes were made before the leader was lost, some after", count)
				}
			})
		})
	}
}

// Commands that arrive while an entry is under way on slow disks go out before it is done.
func TestSlowDisksDoNotHoldWritesUp(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 22, 3, server.Config{})
		lead := c.leader()
		time.Sleep(time.Second)
		for _, o := range c.nodes {
			o.disk.SetSyncTime(100 * time.Millisecond)
		}
		var wg sync.WaitGroup
		put := func(n int, prefix string) {
			for i := range n {
				wg.Go(func() {
					if err := lead.put(t.Context(), fmt.Sprint(prefix, i), "v"); err != nil {
						t.Error(err)
					}
				})
			}
		}
		start := time.Now()
		put(50, "first")
		time.Sleep(20 * time.Millisecond)
		put(50, "second")
		wg.Wait()
		// The leader's disk takes later commands while those of the followers take earlier ones: else it would be 500ms.
		if took := time.Since(start); took < 200*time.Millisecond || took > 450*time.Millisecond {
			t.Errorf("the commands took %v, want about 400ms", took)
		}
		reply, err := kv.KeysCall.Call(t.Context(), lead.Caller(), &kv.KeysRequest{})
		if err != nil || len(reply.Keys) != 100 {
			t.Errorf("%d keys, %v", len(reply.Keys), err)
		}
	})
}
