package leader

import (
	"context"
	"time"

	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
)

// A Guard is the server's part in access control.
type Guard interface {
	// Initialize makes what every cluster has.
	Initialize(ctx context.Context, store *state.Store, apply func(ctx context.Context, k fsm.Kind, req any) (any, error)) error
	// Reap deletes the tokens that have expired.
	Reap(ctx context.Context, store *state.Store, apply func(ctx context.Context, k fsm.Kind, req any) (any, error)) error
}

// reapEvery is how often expired tokens are looked for. They are refused before that.
const reapEvery = time.Second

// FirstACL makes the tokens and policies of a new cluster before other duties begin. Where that fails, ACL tries again.
func FirstACL(g Guard) Duty {
	return Duty{Name: "acl", Run: func(ctx context.Context, l *Leader) error {
		if err := g.Initialize(ctx, l.Store, l.Apply); err != nil && ctx.Err() == nil {
			l.Log.Warn("access control is not set up yet, will retry", "error", err)
		}
		return nil
	}}
}

// ACL makes the tokens and policies of a new cluster, and deletes tokens that have expired.
func ACL(g Guard) Duty {
	return Duty{Name: "acl", Run: func(ctx context.Context, l *Leader) error {
		if err := g.Initialize(ctx, l.Store, l.Apply); err != nil {
			return err
		}
		tick := time.NewTicker(reapEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			if err := g.Reap(ctx, l.Store, l.Apply); err != nil && ctx.Err() == nil {
				l.Log.Warn("cannot delete expired tokens, will retry", "error", err)
			}
		}
	}}
}
