package fsm

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/catalog/state"
)

// An FSM is what Raft drives: it applies committed entries to a Store, and saves and restores the Store as a whole. The
// response of an entry is an *Applied.
type FSM struct {
	store    *state.Store
	appliers *Appliers
	applied  atomic.Uint64
}

var _ raft.BatchingFSM = (*FSM)(nil)

// Applied is what became of an entry.
type Applied struct {
	Results []Result // of its commands, in their order
	// Began and Ended tell when the entries were applied that were committed together with it.
	Began, Ended time.Time
}

// New returns an FSM over the store. The appliers must be complete before Raft starts.
func New(store *state.Store, appliers *Appliers) *FSM {
	return &FSM{store: store, appliers: appliers}
}

// Applied returns the index of the last entry whose changes readers of the store can see. Entries that Raft keeps for
// itself, and those in a snapshot that was restored, do not count.
func (f *FSM) Applied() uint64 { return f.applied.Load() }

// Apply applies one entry.
func (f *FSM) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies entries that were committed together in one transaction on the store; each keeps its own index.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	if len(logs) == 0 {
		return responses
	}
	began := time.Now()
	applied := make([]Applied, len(logs))
	tx := f.store.Write(logs[0].Index)
	defer tx.Abort()
	ends := make([]int, len(logs)) // of each entry's lock delays
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			tx.Index = l.Index
			applied[i].Results = f.appliers.apply(tx, l.Data)
			responses[i] = &applied[i]
		}
		ends[i] = len(tx.Delays())
	}
	tx.Commit()
	f.applied.Store(logs[len(logs)-1].Index)
	ended := time.Now()
	for i := range applied {
		applied[i].Began, applied[i].Ended = began, ended
	}
	from := 0
	for i, l := range logs {
		f.appliers.delayed(l.AppendedAt, tx.Delays()[from:ends[i]])
		from = ends[i]
	}
	return responses
}

// Snapshot captures the state as it is; writing it out does not hold up later entries.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) { return &snapshot{f.store.View()}, nil }

// Restore replaces the state by a snapshot and closes it. A damaged one changes nothing.
func (f *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	if err := f.store.Restore(r); err != nil {
		return err
	}
	// Raft may restore an older state than there was, when a copy of a snapshot arrives late, and then applies again
	// what follows it.
	f.applied.Store(f.store.View().LastIndex())
	return nil
}

type snapshot struct{ view *state.View }

// Persist writes the state as it was when the snapshot was taken.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	defer metricPersist.Since(time.Now())
	if err := s.view.Dump(sink); err != nil {
		sink.Cancel()
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

func (s *snapshot) Release() { s.view = nil }
