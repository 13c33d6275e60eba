package agent

import (
	"context"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/leader"
)

// seedEntries writes the configuration entries of config_entries.bootstrap that are absent, each time this server
// becomes the leader.
func (a *Agent) seedEntries() leader.Duty {
	return leader.Duty{Name: "config-entries", Run: func(ctx context.Context, l *leader.Leader) error {
		a.writeSeeds(ctx, l.Calls)
		return nil
	}}
}

// seedOtherEntries writes them when others are configured while this server is the leader.
func (a *Agent) seedOtherEntries(ctx context.Context) error {
	for {
		select {
		case <-a.seeds:
			if status, _ := a.server.Leadership(); status.Leading {
				a.writeSeeds(ctx, a.server.Internal())
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// writeSeeds writes them on behalf of the server itself: no token is asked.
func (a *Agent) writeSeeds(ctx context.Context, calls rpc.Caller) {
	absent := uint64(0)
	for _, e := range a.current().ConfigEntries {
		_, err := entry.ApplyCall.Call(ctx, calls, &entry.ApplyRequest{Entry: entry.Any{Entry: e}, CAS: &absent})
		if err != nil && ctx.Err() == nil {
			a.log.Error("configuration entry not written", "entry", entry.KeyOf(e), "error", err)
		}
	}
}
