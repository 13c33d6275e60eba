package consensus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/span"
	"github.com/sarnmesh/sarn/server/fsm"
)

// Bounds of a batch, which is one log entry. A command larger than maxBatchBytes makes a batch of its own.
const (
	maxBatch      = 512
	maxBatchBytes = 1 << 20
	// maxFlights is how many batches are under way at once: while one is written by the followers, the leader writes the
	// next.
	maxFlights = 3
	// few commands under way do not make others wait.
	few = 4
	// patience is how long commands wait for those under way. Where disks and networks are slower than that, overlapping
	// batches is worth more than large ones.
	patience = 10 * time.Millisecond
	// backlog is how many commands wait before their callers do.
	backlog = 4096
)

// A write is a command that waits for its result.
type write struct {
	command fsm.Command
	size    int
	done    chan fsm.Result // of capacity one
	steps   *steps          // noted when not nil; read once there is a result
}

// steps tell when what happened to a command.
type steps struct {
	queued, proposed, began, ended time.Time
	commands                       int // of its entry
}

// tell records the steps below the span of the command.
func (st *steps) tell(s *span.Span) {
	if st == nil || st.proposed.IsZero() {
		return
	}
	s.Int("sarn.raft.commands", st.commands)
	s.Past("raft queue", st.queued, st.proposed)
	if !st.began.IsZero() {
		s.Past("raft commit", st.proposed, st.began)
		s.Past("fsm apply", st.began, st.ended)
	}
}

// A batcher puts commands that arrive together into one log entry. A command that finds few under way goes at once. Those
// that find more wait until they are done, for a short while, and then go together: many share what an entry costs, here
// and on the disks.
type batcher struct {
	more chan struct{} // tells run that a batch may go; of capacity one
	free sync.Pool     // of writes whose result was received, to be used again

	mu                sync.Mutex
	waiting           waiting
	entries, commands int           // under way
	room              chan struct{} // closed when there is room for more to wait; nil while nobody asks
	stopped           bool
}

func newBatcher() *batcher {
	b := &batcher{more: make(chan struct{}, 1)}
	b.free.New = func() any { return &write{done: make(chan fsm.Result, 1)} }
	return b
}

// add has a write wait for its batch. While too many wait, so does the caller.
func (b *batcher) add(ctx context.Context, w *write) error {
	for {
		b.mu.Lock()
		switch {
		case b.stopped:
			b.mu.Unlock()
			return ErrStopped
		case len(b.waiting.writes) < backlog:
			b.waiting.add(w)
			goes := b.waiting.mayGo(b.entries, b.commands)
			b.mu.Unlock()
			if goes {
				b.tell()
			}
			return nil
		}
		if b.room == nil {
			b.room = make(chan struct{})
		}
		room := b.room
		b.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *batcher) tell() {
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// next returns the next batch, which is then under way; nil when none may go.
func (b *batcher) next() []*write {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.waiting.mayGo(b.entries, b.commands) {
		return nil
	}
	batch := b.waiting.take()
	b.entries, b.commands = b.entries+1, b.commands+len(batch)
	b.makeRoom()
	return batch
}

func (b *batcher) makeRoom() {
	if b.room != nil {
		close(b.room)
		b.room = nil
	}
}

// landed notes that a batch is no longer under way.
func (b *batcher) landed(commands int) {
	b.mu.Lock()
	b.entries, b.commands = b.entries-1, b.commands-commands
	b.mu.Unlock()
	b.tell()
}

// stop returns what waits; nothing is added any more.
func (b *batcher) stop() []*write {
	b.mu.Lock()
	defer b.mu.Unlock()
	left := b.waiting.writes
	b.waiting, b.stopped = waiting{}, true
	b.makeRoom()
	return left
}

// A flight is a batch under way.
type flight struct {
	future raft.ApplyFuture
	writes []*write
}

// run proposes batches until ctx ends. What waits then fails.
func (b *batcher) run(ctx context.Context, ra *raft.Raft) {
	flights := make(chan flight, maxFlights)
	var landing sync.WaitGroup
	landing.Go(func() {
		for f := range flights { // in the order of the log
			f.land()
			b.landed(len(f.writes))
		}
	})
	defer func() {
		close(flights)
		landing.Wait()
		for _, w := range b.stop() {
			w.done <- fsm.Result{Err: ErrStopped}
		}
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	for ctx.Err() == nil {
		if batch := b.next(); batch != nil {
			late.Reset(patience)
			flights <- flight{propose(ra, batch), batch}
			continue
		}
		select {
		case <-ctx.Done():
		case <-b.more:
		case <-late.C:
			b.mu.Lock()
			b.waiting.late = true
			b.mu.Unlock()
		}
	}
}

// waiting are writes that are not under way.
type waiting struct {
	writes []*write
	size   int
	late   bool // those under way have taken long
}

func (q *waiting) add(w *write) { q.writes, q.size = append(q.writes, w), q.size+w.size }

// full reports whether there are enough for a batch.
func (q *waiting) full() bool { return len(q.writes) >= maxBatch || q.size >= maxBatchBytes }

// mayGo reports whether it is time for another entry while so many entries and commands are under way.
func (q *waiting) mayGo(entries, commands int) bool {
	if len(q.writes) == 0 || entries == maxFlights {
		return false
	}
	return commands < few || q.late || q.full()
}

// take returns the next batch.
func (q *waiting) take() []*write {
	n, size := 0, 0
	for n < min(len(q.writes), maxBatch) && (n == 0 || size+q.writes[n].size <= maxBatchBytes) {
		size += q.writes[n].size
		n++
	}
	batch := q.writes[:n:n]
	if q.writes, q.size = q.writes[n:], q.size-size; len(q.writes) == 0 {
		q.writes = nil
	}
	q.late = false
	return batch
}

// propose hands a batch to Raft.
func propose(ra *raft.Raft, batch []*write) raft.ApplyFuture {
	commands := make([]fsm.Command, len(batch))
	for i, w := range batch {
		commands[i] = w.command
		if w.steps != nil {
			w.steps.proposed, w.steps.commands = time.Now(), len(batch)
		}
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
	var results []fsm.Result
	applied, _ := f.future.Response().(*fsm.Applied)
	if applied != nil {
		results = applied.Results
	}
	for i, w := range f.writes {
		if w.steps != nil && applied != nil {
			w.steps.began, w.steps.ended = applied.Began, applied.Ended
		}
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
	_, s := span.Start(ctx, span.Internal, "raft apply")
	if s == nil {
		return r.apply(ctx, kind, req, nil)
	}
	st := &steps{queued: time.Now()}
	reply, err := r.apply(ctx, kind, req, st)
	if ctx.Err() == nil { // else they may still be noted
		st.tell(s)
	}
	s.Finish()
	return reply, err
}

func (r *Raft) apply(ctx context.Context, kind fsm.Kind, req any, st *steps) (any, error) {
	data, err := rpc.Marshal(req) // here rather than in the one goroutine that makes batches
	if err != nil {
		return nil, fmt.Errorf("encode command of kind %d: %w", kind, err)
	}
	w := r.batcher.free.Get().(*write)
	w.command, w.size = fsm.Command{Kind: kind, Req: cbor.RawMessage(data)}, len(data)
	w.steps = st
	if err := r.batcher.add(ctx, w); err != nil {
		return nil, err
	}
	select {
	case res := <-w.done:
		w.command, w.steps = fsm.Command{}, nil
		r.batcher.free.Put(w)
		return res.Value, res.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
