package server_test

import (
	"fmt"
	"testing"

	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
)

// A follower answers reads in default mode from its own state once it knows that this is the leader's, and shows every
// write that was acknowledged before.
func TestFollowersAnswerAsTheLeaderDoes(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 7, 3, server.Config{})
		f := c.follower()
		read := func() *kv.Entry {
			reply, err := kv.GetCall.Call(t.Context(), f.Caller(), &kv.GetRequest{Key: "a"})
			if err != nil {
				t.Fatal(err)
			}
			if !reply.KnownLeader || reply.LastContact != 0 {
				t.Fatalf("the answer is not the leader's: %+v", reply.Meta)
			}
			return reply.Entry
		}
		for i := range 50 {
			want := fmt.Sprint(i)
			if err := c.nodes[i%3].put(t.Context(), "a", want); err != nil {
				t.Fatal(err)
			}
			for range i % 4 {
				if e := read(); e == nil || string(e.Value) != want {
					t.Fatalf("after the write of %s: %+v", want, e)
				}
			}
		}
		time.Sleep(time.Second)
		// What is sent over the network is another object each time.
		if first, second := read(), read(); first != second {
			t.Error("the leader was asked for an answer that the follower has")
		}
	})
}
