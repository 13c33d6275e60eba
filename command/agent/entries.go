package agent

import (
	"context"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// seedEntries writes the configuration entries of config_entries.bootstrap that are absent, each time this server
// becomes the leader, and when others are configured.
func (a *Agent) seedEntries(ctx context.Context) error {
	for {
		status, changed := a.server.Leadership()
		if status.Leading {
			a.writeSeeds(ctx)
		}
		select {
		case <-changed:
		case <-a.seeds: // others are configured
		case <-ctx.Done():
			return nil
		}
	}
}

// writeSeeds writes them on behalf of the server itself: no token is asked.
func (a *Agent) writeSeeds(ctx context.Context) {
	absent := uint64(0)
	for _, e := range a.current().ConfigEntries {
		_, err := entry.ApplyCall.Call(ctx, a.server.Internal(), &entry.ApplyRequest{Entry: entry.Any{Entry: e}, CAS: &absent})
		if err != nil && ctx.Err() == nil {
			a.log.Error("configuration entry not written", "entry", entry.KeyOf(e), "error", err)
		}
	}
}
