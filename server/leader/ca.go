package leader

import (
	"context"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
)

// An Authority is the server's part in the mesh's certificate authority.
type Authority interface {
	// Initialize makes a root in a new cluster, and applies changed settings of this server in an old one.
	Initialize(ctx context.Context, store *state.Store, apply func(ctx context.Context, k fsm.Kind, req any) (any, error)) error
	// Maintain prunes old roots and replaces the present one before it expires.
	Maintain(ctx context.Context, store *state.Store, apply func(ctx context.Context, k fsm.Kind, req any) (any, error)) error
	// Rotate lets new roots sign once they are known to be trusted, until ctx ends.
	Rotate(ctx context.Context, store *state.Store, apply func(ctx context.Context, k fsm.Kind, req any) (any, error))
	// Stop ends what the authority runs for a leader.
	Stop()
}

// maintainCAEvery is how often roots are looked after.
const maintainCAEvery = time.Hour

// FirstCA makes the first root of an authority that needs nobody outside, before other duties begin. Where that fails, CA
// tries again.
func FirstCA(a Authority) Duty {
	return Duty{Name: "ca", Run: func(ctx context.Context, l *Leader) error {
		if _, roots := l.Store.View().CARoots(); len(roots) > 0 {
			return nil // what is changed in an old cluster can need who was the authority before
		}
		if err := a.Initialize(ctx, l.Store, l.Apply); err != nil && ctx.Err() == nil {
			l.Log.Warn("the certificate authority is not ready yet, will retry", "error", err)
		}
		return nil
	}}
}

// CA keeps the certificate authority going.
func CA(a Authority) Duty {
	return Duty{Name: "ca", Run: func(ctx context.Context, l *Leader) error {
		defer a.Stop()
		if err := a.Initialize(ctx, l.Store, l.Apply); err != nil {
			return err
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { a.Rotate(ctx, l.Store, l.Apply) })
		tick := time.NewTicker(maintainCAEvery)
		defer tick.Stop()
		for {
			if err := a.Maintain(ctx, l.Store, l.Apply); err != nil && ctx.Err() == nil {
				l.Log.Warn("looking after the CA roots failed, will retry", "error", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}}
}
