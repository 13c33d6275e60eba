package agent

import (
	"context"
	"errors"
	"time"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// seedEntries writes the configuration entries of config_entries.bootstrap that are absent, once there is a leader.
func (a *Agent) seedEntries(ctx context.Context) error {
	for _, e := range a.current().ConfigEntries {
		absent := uint64(0)
		for {
			_, err := entry.ApplyCall.Call(ctx, a.server.Internal(), &entry.ApplyRequest{Entry: entry.Any{Entry: e}, CAS: &absent})
			if err == nil || ctx.Err() != nil {
				break
			}
			if !errors.Is(err, wireerr.ErrNoLeader) && !errors.Is(err, wireerr.ErrNotReady) {
				a.log.Error("configuration entry not written", "entry", entry.KeyOf(e), "error", err)
				break
			}
			a.log.Warn("configuration entry not written, will retry", "entry", entry.KeyOf(e), "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}
