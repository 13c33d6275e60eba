package leader_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
)

// A guard notes when it is asked for what.
type guard struct {
	start       time.Time
	failing     int // initializations that fail
	initialized []time.Duration
	reaped      []time.Duration
}

func (g *guard) Initialize(context.Context, *state.Store, func(context.Context, fsm.Kind, any) (any, error)) error {
	g.initialized = append(g.initialized, time.Since(g.start))
	if len(g.initialized) <= g.failing {
		return errors.New("no quorum")
	}
	return nil
}

func (g *guard) Reap(context.Context, *state.Store, func(context.Context, fsm.Kind, any) (any, error)) error {
	g.reaped = append(g.reaped, time.Since(g.start))
	return errors.New("no quorum")
}

func TestACLIsSetUpFirstAndLookedAfterEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &guard{start: time.Now(), failing: 1}
		ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
		defer cancel()
		leader.Run(ctx, lead(nil), []leader.Duty{leader.ACL(g)})
		if want := []time.Duration{0, time.Second}; !slices.Equal(g.initialized, want) {
			t.Errorf("set up at %v, want %v", g.initialized, want)
		}
		if want := []time.Duration{2 * time.Second, 3 * time.Second, 4 * time.Second}; !slices.Equal(g.reaped, want) {
			t.Errorf("reaped at %v, want %v", g.reaped, want)
		}
	})
}
