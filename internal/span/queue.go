package span

import (
	"context"
	"time"
)

// MaxBatch is how many spans are sent at once.
const MaxBatch = 512

const (
	flushEvery = 5 * time.Second
	gather     = 10 * time.Millisecond // of those that come at the same time
)

// A Queue holds spans that wait for being sent. It is safe for concurrent use, and keeps nobody waiting: spans for which
// there is no room are dropped.
type Queue struct {
	spans   chan *Data
	kick    chan struct{}
	ready   int
	dropped func(n int)
}

// NewQueue returns a queue with room for a number of spans. They are sent when so many wait as ready says, and every few
// seconds. How many had no room is told to dropped.
func NewQueue(size, ready int, dropped func(n int)) *Queue {
	return &Queue{spans: make(chan *Data, size), kick: make(chan struct{}, 1), ready: ready, dropped: dropped}
}

// Put adds a span that has ended. It must not be changed any more.
func (q *Queue) Put(d *Data) {
	select {
	case q.spans <- d:
	default:
		q.dropped(1)
		return
	}
	if len(q.spans) >= q.ready {
		select {
		case q.kick <- struct{}{}:
		default:
		}
	}
}

// Full reports whether there is no room.
func (q *Queue) Full() bool { return len(q.spans) == cap(q.spans) }

// Take returns the next spans, none if none wait.
func (q *Queue) Take() (batch []*Data) {
	for len(batch) < MaxBatch {
		select {
		case d := <-q.spans:
			batch = append(batch, d)
			continue
		default:
		}
		break
	}
	return batch
}

// Run gives spans to send, until ctx ends.
func (q *Queue) Run(ctx context.Context, send func(batch []*Data)) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-q.kick:
			select {
			case <-ctx.Done():
				return
			case <-time.After(gather):
			}
		}
		for ctx.Err() == nil {
			batch := q.Take()
			if len(batch) == 0 {
				break
			}
			send(batch)
		}
	}
}
