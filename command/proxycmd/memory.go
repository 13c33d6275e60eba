package proxycmd

import (
	"context"
	"os"
	"runtime/debug"
	"time"
)

// smallHeap makes the collector run a little more often than in a program whose
// heap is its purpose: a proxy's is small, and what it costs is per proxy.
func smallHeap() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// How often memory is given back: once soon after the start, which reads flags,
// links an agent in and decodes everything at once, and then now and then.
const (
	firstTrim = 3 * time.Second
	nextTrim  = time.Minute
)

// trimMemory gives memory back that only the start needed, until ctx ends.
func trimMemory(ctx context.Context) error {
	for wait := firstTrim; ; wait = nextTrim {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		debug.FreeOSMemory()
		releaseProgram()
	}
}
