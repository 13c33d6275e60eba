// Package leader holds what only the leader of the servers does: a file for each duty. Duties start when a server has
// gained leadership and applied everything committed before, and have ended before it acts as a follower again.
package leader

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/fsm"
)

// A Leader is what a duty may use.
type Leader struct {
	// Calls reaches every handler of this server in process, with every right.
	Calls rpc.Caller
	// Store is the local state. It holds everything that was committed before this leadership began.
	Store *state.Store
	// Apply writes a command to the Raft log and returns its applier's reply once it is applied here. It fails once
	// leadership is lost.
	Apply func(ctx context.Context, k fsm.Kind, req any) (any, error)

	Datacenter string
	Node       string // name of this server's node
	NodeID     string
	Log        hclog.Logger
}

// A Duty is one thing the leader does.
type Duty struct {
	Name string
	// Run works until ctx ends, which is when leadership ends, and then returns nil; or returns earlier when there is
	// nothing left to do. When it returns an error it is started again after a while, as long as leadership lasts.
	// Duties run beside each other and must not count on an order.
	Run func(ctx context.Context, l *Leader) error
}

// Times between attempts of a duty that fails.
const (
	minRetry = time.Second
	maxRetry = 30 * time.Second
)

// Run performs duties until ctx ends. All of them have ended when it returns.
func Run(ctx context.Context, l *Leader, duties []Duty) {
	var wg sync.WaitGroup
	for _, d := range duties {
		wg.Go(func() { keep(ctx, l, d) })
	}
	wg.Wait()
}

// keep runs a duty, again and again while it fails.
func keep(ctx context.Context, l *Leader, d Duty) {
	own := *l
	own.Log = l.Log.Named(d.Name)
	for wait := minRetry; ; wait = min(2*wait, maxRetry) {
		began := time.Now()
		err := d.Run(ctx, &own)
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxRetry {
			wait = minRetry
		}
		own.Log.Warn("duty failed, will retry", "wait", wait, "error", err)
		if !pause.For(ctx, wait) {
			return
		}
	}
}
