package cache

import (
	"context"
	"errors"

	"github.com/sarnmesh/sarn/internal/rpc"
)

// Streams keep answers up to date without asking for them again: a *subscription.Client. What they do not cover, or cannot
// keep at the time, is asked for.
type Streams interface {
	// Covers reports whether Open would return a stream that is likely to give answers at present.
	Covers(d rpc.Descriptor, req any) bool
	// Open returns a stream of the answers of a call, nil if there is none for it.
	Open(d rpc.Descriptor, req any) Stream
	// Retry has servers tried again that could not be reached.
	Retry()
}

// A Stream gives the answers of one call.
type Stream interface {
	// Next waits for an answer other than the one it has returned last, and returns it with its index; since is the
	// greatest index that was shown. With a since of zero any answer will do that is in touch with the servers. An error
	// is told once; the next Next waits for what comes after it. It is ErrNoStream when the call is to be made instead.
	Next(ctx context.Context, since uint64) (resp any, index uint64, err error)
	Close()
}

// ErrNoStream is returned by streams that cannot be kept at the time.
var ErrNoStream = errors.New("the servers give no stream")

// Streamed reports whether the view of req is, or would be, kept by a stream rather than by asking.
func Streamed[Req, Resp any](c *Cache, m rpc.Method[Req, Resp], req *Req) bool {
	return c != nil && c.cfg.Streams != nil && c.cfg.Streams.Covers(m.Descriptor, req)
}
