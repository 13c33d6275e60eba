package proxycmd

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"github.com/sarnmesh/sarn/internal/resident"
)

// smallHeap makes the collector run a little more often than in a program whose
// heap is its purpose: a proxy's is small, and what it costs is per proxy.
func smallHeap() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// When memory is given back: twice soon after the start, which touches the
// tables of the whole program and decodes everything at once, and then now and
// then.
var (
	firstTrims = []time.Duration{400 * time.Millisecond, 3 * time.Second}
	nextTrim   = time.Minute
)

// trimMemory gives memory back that only the start needed, until ctx ends.
func trimMemory(ctx context.Context) error {
	for i := 0; ; i++ {
		wait := nextTrim
		if i < len(firstTrims) {
			wait = firstTrims[i]
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		debug.FreeOSMemory()
		_ = resident.Release() // it stays resident, then
	}
}
