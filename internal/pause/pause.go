// Package pause waits.
package pause

import (
	"context"
	"time"
)

// For waits for d or until ctx ends, and reports whether ctx has not ended. It does not wait when d is 0 or less.
func For(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
