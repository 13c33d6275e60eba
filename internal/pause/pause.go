// Package pause waits.
package pause

import (
	"context"
	"time"
)

// For waits for d or until ctx ends, and reports whether ctx has not ended. It does not wait when d is 0 or less.
func For(ctx context.Context, d time.Duration) bool { return Until(ctx, d, nil) }

// Until is For that waits no longer than until early can be received from; nil is never early.
func Until(ctx context.Context, d time.Duration, early <-chan struct{}) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
