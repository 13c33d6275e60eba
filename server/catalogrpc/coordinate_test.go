package catalogrpc_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// What a fleet sends in a period is written together, the latest of each node, and no more than the bound.
func TestCoordinatesAreWrittenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rpctest.New()
		kept := catalogrpc.NewCoordinates(5 * time.Second)
		catalogrpc.Register(&s.Registry, &s.Appliers, catalogrpc.Config{Coordinates: kept})
		const nodes = 700
		node := func(n int) string { return fmt.Sprintf("n%03d", n) }
		for n := range nodes {
			if _, err := catalog.RegisterCall.Call(t.Context(), s.Caller(), &catalog.RegisterRequest{Node: node(n), Address: "10.0.0.1"}); err != nil {
				t.Fatal(err)
			}
		}
		send := func(node string, height float64) {
			t.Helper()
			_, err := catalog.UpdateCoordinateCall.Call(t.Context(), s.Caller(), &catalog.CoordinateUpdate{Updates: []*catalog.NodeCoordinate{
				{Node: node, Coord: &catalog.Coordinate{Vec: make([]float64, 8), Error: 1, Height: height}},
			}})
			if err != nil {
				t.Fatal(err)
			}
		}
		known := func(node string) []*catalog.NodeCoordinate {
			t.Helper()
			r, err := catalog.CoordinatesCall.Call(t.Context(), s.Caller(), &catalog.CoordinatesRequest{Node: node})
			if err != nil {
				t.Fatal(err)
			}
			return r.Coordinates
		}

		send(node(0), 1) // nobody leads: at once
		if got := known(node(0)); len(got) != 1 || got[0].Coord.Height != 1 {
			t.Fatalf("without a leader's duty: %v", got)
		}

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		written := 0
		go func() {
			ended <- kept.Duty().Run(ctx, &leader.Leader{
				Log: hclog.NewNullLogger(),
				Apply: func(ctx context.Context, k fsm.Kind, req any) (any, error) {
					written++
					return s.Apply(ctx, k, req)
				},
			})
		}()
		synctest.Wait()
		for n := range 300 {
			send(node(n), 2)
		}
		send("N000", 3) // the same, and later
		send("ghost", 3)
		if got := known(node(1)); len(got) != 0 {
			t.Fatalf("before the period is over: %v", got)
		}
		time.Sleep(5*time.Second + time.Millisecond)
		synctest.Wait()
		if got := known(""); len(got) != 300 || written != 3 {
			t.Errorf("%d coordinates in %d commands, want 300 in 3", len(got), written)
		}
		if got := known(node(0)); len(got) != 1 || got[0].Coord.Height != 3 || got[0].Node != node(0) {
			t.Errorf("the latest of one node: %v", got)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if written != 3 {
			t.Errorf("%d commands though nothing has come", written)
		}

		for n := range nodes {
			send(node(n), 4)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		all := 0
		for _, c := range known("") {
			if c.Coord.Height == 4 {
				all++
			}
		}
		if all != 640 || written != 8 {
			t.Errorf("%d of %d coordinates in %d commands, want 640 in 5", all, nodes, written-3)
		}

		send(node(5), 5)
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		send(node(6), 6)
		if got := known(node(6)); got[0].Coord.Height != 6 {
			t.Errorf("after leadership: %v", got)
		}
	})
}
