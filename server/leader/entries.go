package leader

import (
	"context"
	"fmt"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// BootstrapEntries writes the configuration entries of this server's own configuration that do not exist yet.
func BootstrapEntries(entries []entry.Entry) Duty {
	return Duty{Name: "config-entries", Run: func(ctx context.Context, l *Leader) error {
		absent := uint64(0)
		for _, e := range entries {
			key := entry.KeyOf(e)
			reply, err := entry.ApplyCall.Call(ctx, l.Calls, &entry.ApplyRequest{Entry: entry.Any{Entry: e}, CAS: &absent})
			if err != nil {
				return fmt.Errorf("write config entry %s/%s: %w", key.Kind, key.Name, err)
			}
			if reply.OK {
				l.Log.Info("wrote config entry", "kind", key.Kind, "name", key.Name)
			}
		}
		return nil
	}}
}
