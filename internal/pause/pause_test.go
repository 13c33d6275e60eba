package pause_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/internal/pause"
)

func TestForWaitsOrEndsWithContext(t *testing.T) {
	for name, test := range map[string]struct {
		d, end time.Duration
		took   time.Duration
		whole  bool
	}{
		"waited":          {time.Second, time.Minute, time.Second, true},
		"nothing to wait": {0, time.Minute, 0, true},
		"less than that":  {-time.Second, time.Minute, 0, true},
		"ended before":    {time.Minute, time.Second, time.Second, false},
		"ended already":   {time.Minute, 0, 0, false},
		"ended, no pause": {0, 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), test.end)
				defer cancel()
				began := time.Now()
				if whole, took := pause.For(ctx, test.d), time.Since(began); whole != test.whole || took != test.took {
					t.Errorf("For(%v) = %v after %v, want %v after %v", test.d, whole, took, test.whole, test.took)
				}
			})
		})
	}
}
