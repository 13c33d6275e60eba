package testkit

import (
	"testing"
	"testing/synctest"
	"time"
)

// Bubble runs f in a synctest bubble. When f and its cleanups are over, the clock runs on for two minutes, so that
// goroutines of libraries that stop only at their next tick can end.
func Bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(2 * time.Minute) })
		f(t)
	})
}
