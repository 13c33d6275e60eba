package leader

import (
	"context"
	"time"

	"github.com/sarnmesh/sarn/server/fsm"
)

// Deletion marks are kept this long, give or take the step (spec/state.md section 1.4).
const (
	tombstoneAge  = 15 * time.Minute
	tombstoneStep = 30 * time.Second
)

// Tombstones removes old deletion marks. Applied returns the index of the last entry in the state, request makes the
// request of a command of kind fsm.TombstoneReap. Ages count from the beginning of a leadership at the earliest.
func Tombstones(applied func() uint64, request func(upTo uint64) any) Duty {
	return Duty{Name: "tombstones", Run: func(ctx context.Context, l *Leader) error {
		type sample struct {
			at    time.Time
			index uint64
		}
		var samples []sample // oldest first
		tick := time.NewTicker(tombstoneStep)
		defer tick.Stop()
		for {
			// Marks made until now will be old enough when this sample is.
			now := time.Now()
			samples = append(samples, sample{now, applied()})
			var upTo uint64
			for len(samples) > 0 && now.Sub(samples[0].at) >= tombstoneAge {
				upTo = samples[0].index
				samples = samples[1:]
			}
			if oldest := l.Store.View().OldestTombstone(); oldest > 0 && oldest <= upTo {
				began := time.Now()
				_, err := l.Apply(ctx, fsm.TombstoneReap, request(upTo))
				metricReap.Since(began)
				if err != nil && ctx.Err() == nil {
					l.Log.Warn("cannot reap deletion marks, will retry", "error", err)
					samples = append([]sample{{now.Add(-tombstoneAge), upTo}}, samples...)
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}}
}
