package consensus

import (
	"context"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/fsm"
)

// Bounds of a batch, which is one log entry. A command larger than maxBatchBytes makes a batch of its own.
const (
	maxBatch      = 512
	maxBatchBytes = 1 << 20
	// inFlight is how many batches are under way at once: while one is written by the followers, the leader writes the
	// next.
	inFlight = 3
	// backlog is how many commands wait before their callers do.
	backlog = 4096
)

// A write is a command that waits for its result.
type write struct {
	command fsm.Command
	size    int
	done    chan fsm.Result // of capacity one
}

// A batcher puts commands that arrive together into one log entry. A command that finds nothing under way goes at
// once; those that arrive while entries are under way go together when one of them is done.
type batcher struct{ queue chan *write }

func newBatcher() *batcher { return &batcher{make(chan *write, backlog)} }

// A flight is a batch under way.
type flight struct {
	future raft.ApplyFuture
	writes []*write
}

// run proposes batches until ctx ends. What is queued then fails.
func (b *batcher) run(ctx context.Context, ra *raft.Raft) {
	slots := make(chan struct{}, inFlight)
	flights := make(chan flight, inFlight)
	landed := make(chan struct{})
	go func() {
		defer close(landed)
		for f := range flights { // in the order of the log
			f.land()
			<-slots
		}
	}()
	defer func() {
		close(flights)
		<-landed
		for {
			select {
			case w := <-b.queue:
				w.done <- fsm.Result{Err: ErrStopped}
			default:
				return
			}
		}
	}()
	var carried *write // did not fit the batch before
	for {
		first := carried
		carried = nil
		if first == nil {
			select {
			case <-ctx.Done():
				return
			case first = <-b.queue:
			}
		}
		select {
		case <-ctx.Done():
			first.done <- fsm.Result{Err: ErrStopped}
			return
		case slots <- struct{}{}:
		}
		writes, size := []*write{first}, first.size
	fill:
		for len(writes) < maxBatch {
			select {
			case w := <-b.queue:
				if size+w.size > maxBatchBytes {
					carried = w
					break fill
				}
				writes, size = append(writes, w), size+w.size
			default:
				break fill
			}
		}
		flights <- flight{propose(ra, writes), writes}
	}
}

// propose hands a batch to Raft.
func propose(ra *raft.Raft, writes []*write) raft.ApplyFuture {
	commands := make([]fsm.Command, len(writes))
	for i, w := range writes {
		commands[i] = w.command
	}
	entry, err := fsm.Encode(commands)
	if err != nil {
		return failed{err}
	}
	return ra.Apply(entry, 0)
}

// land gives every caller its own result.
func (f flight) land() {
	if err := f.future.Error(); err != nil {
		err = translate(err)
		for _, w := range f.writes {
			w.done <- fsm.Result{Err: err}
		}
		return
	}
	results, _ := f.future.Response().([]fsm.Result)
	for i, w := range f.writes {
		switch {
		case len(results) == len(f.writes):
			w.done <- results[i]
		case len(results) == 1 && results[0].Err != nil: // the entry as a whole
			w.done <- results[0]
		default:
			w.done <- fsm.Result{Err: fmt.Errorf("log entry gave %d results for %d commands", len(results), len(f.writes))}
		}
	}
}

// failed is the future of an entry that was not proposed.
type failed struct{ err error }

func (f failed) Error() error  { return f.err }
func (f failed) Response() any { return nil }
func (f failed) Index() uint64 { return 0 }

// Apply writes a command to the log and returns its result once it is applied here. When ctx ends first the command
// may still be applied.
func (r *Raft) Apply(ctx context.Context, kind fsm.Kind, req any) (any, error) {
	if s, _ := r.Status(); !s.Elected {
		return nil, ErrNotLeader
	}
	data, err := rpc.Marshal(req) // here rather than in the one goroutine that makes batches
	if err != nil {
		return nil, fmt.Errorf("encode command of kind %d: %w", kind, err)
	}
	w := &write{fsm.Command{Kind: kind, Req: cbor.RawMessage(data)}, len(data), make(chan fsm.Result, 1)}
	select {
	case r.batcher.queue <- w:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.ended:
		return nil, ErrStopped
	}
	select {
	case res := <-w.done:
		return res.Value, res.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.ended:
		// What the batcher took it has answered.
		select {
		case res := <-w.done:
			return res.Value, res.Err
		default:
			return nil, ErrStopped
		}
	}
}
