// Package mvcc gives typed tables over an immutable, multi-version in-memory database: a radix tree for each index.
// Readers see a snapshot and never block or are blocked; each read can be watched for change; a write transaction can
// be rolled back to a savepoint, which lets many writes share one transaction while each keeps its own result.
//
// Compared with go-memdb, of which it has the model, objects are typed, a watch costs nothing until somebody waits for
// it, and an entry of an index takes about a third of the memory. A watch is of one key or of all that begin with a
// prefix, and a write of other keys wakes nobody.
//
// Objects in a table are shared and immutable: copy one before changing it.
package mvcc

import (
	"iter"
	"slices"
	"sync"
	"sync/atomic"
)

// An Index finds objects by a key made of them.
type Index[T any] struct {
	Name   string
	Unique bool
	// Key appends the key of obj to buf, and returns false when obj is not in this index. Make keys of indexes that are
	// not unique with String, so that no key is a prefix of another's.
	Key func(buf []byte, obj T) ([]byte, bool)
}

// String appends s to a key, ended by a zero byte.
func String(buf []byte, s string) []byte { return append(append(buf, s...), 0) }

// A Table describes a table of objects of pointer type T. Its first index is unique and called "id".
type Table[T any] struct {
	name    string
	id      int64
	indexes []Index[T]
}

var lastTable atomic.Int64

// NewTable describes a table; id is the key of its unique primary index.
func NewTable[T any](name string, id func(buf []byte, obj T) ([]byte, bool), more ...Index[T]) *Table[T] {
	return &Table[T]{name, lastTable.Add(1), append([]Index[T]{{Name: "id", Unique: true, Key: id}}, more...)}
}

// Name returns the table's name.
func (t *Table[T]) Name() string { return t.name }

// A Schema is anything NewDB can make a table of: a *Table.
type Schema interface {
	schema() (name string, id int64, indexes int)
}

func (t *Table[T]) schema() (string, int64, int) { return t.name, t.id, len(t.indexes) }

// A DB is a set of tables.
type DB struct {
	roots atomic.Pointer[[]*node] // of the trees of all indexes of all tables
	first map[int64]int           // position of the root of each table's first index

	writing sync.Mutex // held by the write transaction
	lastTx  uint64     // guarded by writing
	forks   atomic.Uint64

	watches watches
	spare   atomic.Pointer[dirty] // to be used again
}

// NewDB makes an empty database. It panics when a table is listed twice, which is a programming error.
func NewDB(tables ...Schema) *DB {
	db := &DB{first: make(map[int64]int, len(tables))}
	var roots []*node
	names := map[string]bool{}
	for _, t := range tables {
		name, id, indexes := t.schema()
		if names[name] {
			panic("mvcc: table " + name + " is listed twice")
		}
		names[name] = true
		db.first[id] = len(roots)
		for range indexes {
			roots = append(roots, &node{})
		}
	}
	db.roots.Store(&roots)
	return db
}

// A Txn is a snapshot that reads, or the one open transaction that writes. It is not safe for concurrent use, except
// that any number of goroutines may read from one read-only Txn that records no watches.
type Txn struct {
	db    *DB
	roots []*node

	watching bool
	watched  []<-chan struct{} // of the caller's
	places   []place
	seen     map[string]struct{} // the names of places, once they are many

	// Only of a transaction that writes.
	write bool // until Commit or Abort
	fork  bool // it is never committed
	edits edits
	undo  []change
	skip  bool // while rolling back or loading: changes are not recorded
	keys  [2][]byte
	quiet bool  // nobody is told of its changes
	dirty dirty // what Commit tells the watches
}

// A change can be undone.
type change struct {
	table undoer
	obj   any
	was   bool // obj was there before, as opposed to added
}

type undoer interface {
	undo(tx *Txn, obj any, was bool)
}

// Read opens a snapshot. With watch set, what is read through it can be waited for with Wait.
func (db *DB) Read(watch bool) *Txn {
	return &Txn{db: db, roots: *db.roots.Load(), watching: watch}
}

// Write opens the write transaction; it blocks while another is open.
func (db *DB) Write() *Txn {
	db.writing.Lock()
	db.lastTx++
	t := &Txn{db: db, roots: slices.Clone(*db.roots.Load()), write: true, edits: edits{id: db.lastTx}}
	if d := db.spare.Swap(nil); d != nil {
		t.dirty = *d
	}
	return t
}

// Load opens a write transaction that has no savepoints: for filling a database nobody else uses yet.
func (db *DB) Load() *Txn {
	t := db.Write()
	t.skip, t.quiet = true, true
	return t
}

// Fork opens a transaction that changes, for itself alone, what t reads. It keeps no other waiting and can not be
// committed.
func (t *Txn) Fork() *Txn {
	if t.write {
		t.edits.id = 1<<63 | t.db.forks.Add(1) // what it owned is shared from now on
	}
	return &Txn{db: t.db, roots: slices.Clone(t.roots), write: true, fork: true, quiet: true, edits: edits{id: 1<<63 | t.db.forks.Add(1)}}
}

// Commit makes the transaction's changes visible and wakes those who watch them.
func (t *Txn) Commit() {
	if !t.write || t.fork {
		return
	}
	t.write = false
	roots := t.roots
	t.db.roots.Store(&roots)
	t.db.writing.Unlock()
	t.db.watches.fire(&t.dirty)
	if t.dirty.reset() {
		t.db.spare.Store(&t.dirty)
	}
	t.undo = nil
}

// Abort gives up the transaction; after Commit it does nothing.
func (t *Txn) Abort() {
	if !t.write || t.fork {
		return
	}
	t.write = false
	t.roots, t.undo = nil, nil
	t.db.writing.Unlock()
}

// Savepoint returns a mark for RollbackTo.
func (t *Txn) Savepoint() int { return len(t.undo) }

// RollbackTo undoes the changes made since the savepoint.
func (t *Txn) RollbackTo(savepoint int) {
	t.skip = true
	for i := len(t.undo) - 1; i >= savepoint; i-- {
		c := t.undo[i]
		c.table.undo(t, c.obj, c.was)
	}
	t.skip = false
	clear(t.undo[savepoint:])
	t.undo = t.undo[:savepoint]
}

// slot returns the position of the root of an index.
func (t *Table[T]) slot(tx *Txn, index string) (slot int, unique bool) {
	first, ok := tx.db.first[t.id]
	if !ok {
		panic("mvcc: no table " + t.name)
	}
	for i := range t.indexes {
		if t.indexes[i].Name == index {
			return first + i, t.indexes[i].Unique
		}
	}
	panic("mvcc: table " + t.name + " has no index " + index)
}

// First returns the object with exactly this key, the first if the index is not unique.
func (t *Table[T]) First(tx *Txn, index string, key []byte) (obj T, ok bool) {
	if tx.watching {
		slot, unique := t.slot(tx, index)
		tx.watch(slot, key, unique)
	}
	return t.Peek(tx, index, key)
}

// Peek is First without recording a watch.
func (t *Table[T]) Peek(tx *Txn, index string, key []byte) (obj T, ok bool) {
	slot, unique := t.slot(tx, index)
	var l *leaf
	if unique {
		l, _ = tx.roots[slot].get(key)
	} else if n, _ := tx.roots[slot].under(key); n != nil {
		l = n.first()
	}
	if l == nil {
		return obj, false
	}
	return l.value.(T), true
}

// Longest returns the object whose key is the longest prefix of the given one. It records no watch.
func (t *Table[T]) Longest(tx *Txn, index string, key []byte) (obj T, ok bool) {
	slot, _ := t.slot(tx, index)
	var l *leaf
	tx.roots[slot].path(key, func(longer *leaf) bool {
		l = longer
		return true
	})
	if l == nil {
		return obj, false
	}
	return l.value.(T), true
}

// Path returns the objects whose keys the given one begins with, from the shortest on. It records no watch.
func (t *Table[T]) Path(tx *Txn, index string, key []byte) iter.Seq[T] {
	slot, _ := t.slot(tx, index)
	return func(yield func(T) bool) {
		tx.roots[slot].path(key, func(l *leaf) bool { return yield(l.value.(T)) })
	}
}

// All returns every object in the order of the index.
func (t *Table[T]) All(tx *Txn, index string) iter.Seq[T] { return t.Prefix(tx, index, nil) }

// Get returns the objects with exactly this key. The watch is set when Get is called, the objects are read as the
// sequence is used.
func (t *Table[T]) Get(tx *Txn, index string, key []byte) iter.Seq[T] {
	if tx.watching {
		slot, unique := t.slot(tx, index)
		tx.watch(slot, key, unique)
	}
	return t.PeekGet(tx, index, key)
}

// PeekGet is Get without recording a watch.
func (t *Table[T]) PeekGet(tx *Txn, index string, key []byte) iter.Seq[T] {
	if _, unique := t.slot(tx, index); !unique {
		return t.PeekPrefix(tx, index, key)
	}
	return func(yield func(T) bool) {
		if obj, ok := t.Peek(tx, index, key); ok {
			yield(obj)
		}
	}
}

// Prefix returns the objects whose key begins with prefix, in the order of the index. The watch is set when Prefix is
// called, the objects are read as the sequence is used.
func (t *Table[T]) Prefix(tx *Txn, index string, prefix []byte) iter.Seq[T] {
	if tx.watching {
		slot, _ := t.slot(tx, index)
		tx.watch(slot, prefix, false)
	}
	return t.PeekPrefix(tx, index, prefix)
}

// PeekPrefix is Prefix without recording a watch.
func (t *Table[T]) PeekPrefix(tx *Txn, index string, prefix []byte) iter.Seq[T] {
	slot, _ := t.slot(tx, index)
	return func(yield func(T) bool) {
		if n, _ := tx.roots[slot].under(prefix); n != nil {
			walk(n, yield)
		}
	}
}

// Insert adds obj or replaces the object with its primary key. Never insert into a table while iterating over it in the
// same transaction: collect first.
func (t *Table[T]) Insert(tx *Txn, obj T) {
	old, was := t.put(tx, obj)
	if tx.skip {
		return
	}
	if was {
		tx.undo = append(tx.undo, change{t, old, true})
	} else {
		tx.undo = append(tx.undo, change{t, obj, false})
	}
}

// Delete removes the object with obj's primary key and reports whether there was one. Never delete from a table while
// iterating over it in the same transaction: collect first.
func (t *Table[T]) Delete(tx *Txn, obj T) bool {
	old, was := t.remove(tx, obj)
	if was && !tx.skip {
		tx.undo = append(tx.undo, change{t, old, true})
	}
	return was
}

func (t *Table[T]) undo(tx *Txn, obj any, was bool) {
	if was {
		t.put(tx, obj.(T))
	} else {
		t.remove(tx, obj.(T))
	}
}

func (tx *Txn) mustWrite() {
	if !tx.write {
		panic("mvcc: change outside of an open write transaction")
	}
}

// keyOf returns the key that an index has for obj in its tree; that of an index that is not unique ends with the
// primary key. The key is valid until the next call with the same buffer.
func (t *Table[T]) keyOf(tx *Txn, buffer, i int, obj T) ([]byte, bool) {
	ix := &t.indexes[i]
	key, ok := ix.Key(tx.keys[buffer][:0], obj)
	if ok && !ix.Unique {
		key, ok = t.indexes[0].Key(key, obj)
	}
	tx.keys[buffer] = key
	return key, ok
}

// put sets obj in all indexes and returns the object it replaces.
func (t *Table[T]) put(tx *Txn, obj T) (old T, was bool) {
	tx.mustWrite()
	first, _ := t.slot(tx, "id")
	key, ok := t.keyOf(tx, 0, 0, obj)
	if !ok {
		panic("mvcc: object without a primary key in table " + t.name)
	}
	var value any
	tx.roots[first], value = tx.edits.insert(tx.roots[first], key, obj)
	tx.touched(first, key)
	old, was = value.(T)
	for i := 1; i < len(t.indexes); i++ {
		slot := first + i
		key, in := t.keyOf(tx, 0, i, obj)
		if was {
			oldKey, wasIn := t.keyOf(tx, 1, i, old)
			if wasIn && (!in || string(oldKey) != string(key)) {
				tx.roots[slot], _ = tx.edits.remove(tx.roots[slot], oldKey, true)
				tx.touched(slot, oldKey)
			}
		}
		if in {
			tx.roots[slot], _ = tx.edits.insert(tx.roots[slot], key, obj)
			tx.touched(slot, key)
		}
	}
	return old, was
}

// remove removes the object with obj's primary key from all indexes.
func (t *Table[T]) remove(tx *Txn, obj T) (old T, was bool) {
	tx.mustWrite()
	first, _ := t.slot(tx, "id")
	key, _ := t.keyOf(tx, 0, 0, obj)
	var value any
	tx.roots[first], value = tx.edits.remove(tx.roots[first], key, true)
	if old, was = value.(T); !was {
		return old, false
	}
	tx.touched(first, key)
	for i := 1; i < len(t.indexes); i++ {
		if key, in := t.keyOf(tx, 0, i, old); in {
			tx.roots[first+i], _ = tx.edits.remove(tx.roots[first+i], key, true)
			tx.touched(first+i, key)
		}
	}
	return old, true
}
