package server_test

import (
	"context"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/transport"
)

type follower interface {
	Follow(ctx context.Context, m rpc.Descriptor, req, resp any) (*transport.Standing, error)
}

func TestFollowedReadsTellOfChanges(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 31, 3, server.Config{})
		s := c.follower()
		register := func(service, address string) {
			t.Helper()
			_, err := catalog.RegisterCall.Call(t.Context(), s.Caller(), &catalog.RegisterRequest{
				Node: "n1", Address: "10.0.0.9", Service: &catalog.Service{ID: service, Service: service, Address: address},
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // until it is here too
		}
		follow := func(service string, o read.Options) (int, *transport.Standing) {
			t.Helper()
			var reply catalog.InstancesReply
			standing, err := s.Caller().(follower).Follow(t.Context(), catalog.InstancesCall.Descriptor, &catalog.InstancesRequest{Options: o, Service: service}, &reply)
			if err != nil {
				t.Fatal(err)
			}
			return len(reply.Instances), standing
		}
		stale := read.Options{Mode: read.Stale}
		register("web", "10.1.1.1")
		n, web := follow("web", stale)
		none, db := follow("db", stale)
		if n != 1 || none != 0 || !web.Current() || !db.Current() {
			t.Fatalf("%d and %d instances, current %v and %v", n, none, web.Current(), db.Current())
		}
		register("other", "10.1.1.2")
		if !web.Current() {
			t.Error("another service is a change of this one")
		}
		register("db", "10.1.1.3")
		if !web.Current() || db.Current() {
			t.Errorf("after db came: web is current %v, db %v", web.Current(), db.Current())
		}
		register("web", "10.1.1.4")
		if web.Current() {
			t.Error("the change of an address is none")
		}
		web.Close()
		db.Close()

		if _, standing := follow("web", read.Options{}); standing != nil {
			t.Error("an answer of the leader stands here")
		}
		if _, standing := follow("web", read.Options{Mode: read.Stale, Target: read.Target{Datacenter: "dc1"}}); standing == nil {
			t.Error("this datacenter by its name is another")
		}

		// Out of touch with the leader it is to be asked every time.
		_, web = follow("web", stale)
		defer web.Close()
		for _, o := range c.nodes {
			if o != s {
				o.crash()
			}
		}
		time.Sleep(10 * time.Second)
		if web.Current() {
			t.Error("still current without the leader")
		}
	})
}
