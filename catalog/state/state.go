// Package state holds the replicated tables and the transactions on them. A table gets a file; so does each subject's
// transactions. Reads go through a View, writes through a Tx. What is written depends on the arguments alone: no clock,
// no randomness, no map order.
package state

import (
	"context"
	"sync/atomic"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// A Store is the whole replicated state. One goroutine writes; any number read.
type Store struct {
	data       atomic.Pointer[data]
	aclVersion atomic.Uint64
}

// data is what a restore replaces as a whole.
type data struct {
	db       *mvcc.DB
	replaced chan struct{} // closed when a restore has put other data in its place
}

// New returns an empty store.
func New() *Store {
	s := &Store{}
	s.data.Store(&data{db: mvcc.NewDB(tables()...), replaced: make(chan struct{})})
	return s
}

// ACLVersion returns a number that is another one after every change of what tokens may do has become visible. It is
// this process's own and no part of the state.
func (s *Store) ACLVersion() uint64 { return s.aclVersion.Load() }

// A View reads one snapshot of the state. Its methods are in the files of their tables; each returns, with the result,
// the index of the last change that touched it.
type View struct {
	tx       *mvcc.Txn
	replaced <-chan struct{}
}

// View opens a snapshot that records no watches.
func (s *Store) View() *View {
	d := s.data.Load()
	return &View{d.db.Read(false), d.replaced}
}

// WatchView opens a snapshot whose reads can be waited for.
func (s *Store) WatchView() *View {
	d := s.data.Load()
	v := &View{d.db.Read(true), d.replaced}
	v.tx.Watch(d.replaced)
	return v
}

// Wait blocks until something read through v has changed, or the whole state was replaced, and returns nil; or until
// ctx ends, and returns its error. The view must be a WatchView.
func (v *View) Wait(ctx context.Context) error { return v.tx.Wait(ctx) }

// Waiter returns what is told when something read through v so far changes, the whole state is replaced, or one of the
// other channels is closed. It does not keep the snapshot. The view must be a WatchView.
func (v *View) Waiter(others ...<-chan struct{}) *mvcc.Waiter {
	for _, ch := range others {
		v.tx.Watch(ch)
	}
	return v.tx.Waiter()
}

// Replaces returns the channel that is closed when Replaced begins to report true.
func (v *View) Replaces() <-chan struct{} { return v.replaced }

// Replaced reports whether a restore has put other data in the place of what v reads; a blocked read then answers with
// what it has (spec/state.md section 1.3).
func (v *View) Replaced() bool {
	select {
	case <-v.replaced:
		return true
	default:
		return false
	}
}

// A Tx is the one open write transaction. It reads what it has written. All its changes carry Index.
type Tx struct {
	View
	Index uint64 // of the Raft log entry

	// delays are of the keys whose holders' sessions ended in this transaction, in the order in which they ended.
	delays []kv.Delay

	// stale are instances that wait to be reassembled while waiting is set; see together.
	waiting bool
	stale   []catalog.Instance

	store *Store // nil while a snapshot is loaded
	acl   bool   // access control has changed
}

// Write opens the write transaction for the log entry with this index.
func (s *Store) Write(index uint64) *Tx {
	d := s.data.Load()
	return &Tx{View: View{d.db.Write(), d.replaced}, Index: index, store: s}
}

// Fork opens a transaction that changes, for itself alone, what v reads: to see what a change would lead to. It can not be
// committed.
func (v *View) Fork() *Tx { return &Tx{View: View{v.tx.Fork(), v.replaced}, Index: v.LastIndex() + 1} }

// Commit makes the changes visible.
func (t *Tx) Commit() {
	t.tx.Commit()
	if t.acl && t.store != nil {
		t.store.aclVersion.Add(1)
	}
}

// Abort gives up what was not committed.
func (t *Tx) Abort() { t.tx.Abort() }

// Delays returns the lock delays that the transaction's changes call for: those of keys that were held by a session
// that ended. It is not part of the replicated state; the leader keeps it in memory (spec/state.md section 4.3).
func (t *Tx) Delays() []kv.Delay { return t.delays }

// Try runs f; when it returns an error, what f changed is undone and the error returned.
func (t *Tx) Try(f func() error) error {
	mark, delays := t.tx.Savepoint(), len(t.delays)
	err := f()
	if err != nil {
		t.tx.RollbackTo(mark)
		t.delays = t.delays[:delays]
	}
	return err
}

// An indexMark is the Raft index of the last change under some name: a table, or a narrower subject of it such as one
// service's instances.
type indexMark struct {
	Name  string
	Value uint64
}

var indexes = mvcc.NewTable("index", func(buf []byte, m *indexMark) ([]byte, bool) { return mvcc.String(buf, m.Name), true })

// LastIndex returns the index of the last change of anything, 0 for an empty state.
func (v *View) LastIndex() (last uint64) {
	for m := range indexes.PeekPrefix(v.tx, "id", nil) {
		last = max(last, m.Value)
	}
	return last
}

// mark raises the mark to the transaction's index.
func (t *Tx) mark(name string) {
	// Commands that share a log entry raise the same marks; once is enough.
	if m, ok := indexes.Peek(t.tx, "id", mvcc.String(nil, name)); ok && m.Value == t.Index {
		return
	}
	indexes.Insert(t.tx, &indexMark{name, t.Index})
}

// unmark removes a mark.
func (t *Tx) unmark(name string) { indexes.Delete(t.tx, &indexMark{Name: name}) }

// marked returns the greatest of the marks, 0 when none is set. Reads of a watching view wake when one changes.
func (v *View) marked(names ...string) (index uint64) {
	for _, name := range names {
		if m, ok := indexes.First(v.tx, "id", mvcc.String(nil, name)); ok {
			index = max(index, m.Value)
		}
	}
	return index
}

// peeked is marked without the wish to be woken.
func (v *View) peeked(names ...string) (index uint64) {
	for _, name := range names {
		if m, ok := indexes.Peek(v.tx, "id", mvcc.String(nil, name)); ok {
			index = max(index, m.Value)
		}
	}
	return index
}
