package leader

import (
	"context"
	"time"

	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
)

// APIGateways keeps statuses of API gateways and their routes, and what is bound to which listener, up to date. Bind
// works out the requests of kind fsm.ConfigEntry that this takes.
func APIGateways(bind func(v *state.View, datacenter string, now time.Time) []any) Duty {
	return Duty{Name: "api-gateways", Run: func(ctx context.Context, l *Leader) error {
		for {
			v := l.Store.WatchView()
			for _, request := range bind(v, l.Datacenter, time.Now()) {
				if _, err := l.Apply(ctx, fsm.ConfigEntry, request); err != nil {
					return err
				}
			}
			if v.Wait(ctx) != nil {
				return nil
			}
		}
	}}
}
