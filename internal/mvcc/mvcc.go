// Package mvcc gives typed tables over an immutable, multi-version in-memory database (go-memdb). Readers see a
// snapshot and never block writers; each read can be watched for change; a write transaction can be rolled back to a
// savepoint, which lets many writes share one transaction while each keeps its own result.
//
// Objects in a table are shared and immutable: copy one before changing it.
package mvcc

import (
	"context"
	"errors"
	"iter"

	"github.com/hashicorp/go-memdb"
)

// An Index finds objects by a key made of them.
type Index[T any] struct {
	Name   string
	Unique bool
	// Key appends the key of obj to buf, and returns false when obj is not in this index. Make keys with String and
	// Uint64 so that no key is a prefix of another's.
	Key func(buf []byte, obj T) ([]byte, bool)
}

// String appends s to a key, ended by a zero byte.
func String(buf []byte, s string) []byte { return append(append(buf, s...), 0) }

// A Table is one table of objects of pointer type T. Its first index is unique and called "id".
type Table[T any] struct {
	name    string
	indexes []Index[T]
}

// NewTable describes a table; id is the key of its unique primary index.
func NewTable[T any](name string, id func(buf []byte, obj T) ([]byte, bool), more ...Index[T]) *Table[T] {
	return &Table[T]{name, append([]Index[T]{{Name: "id", Unique: true, Key: id}}, more...)}
}

// Name returns the table's name.
func (t *Table[T]) Name() string { return t.name }

// A Schema is anything NewDB can make a table of: a *Table.
type Schema interface{ schema() *memdb.TableSchema }

func (t *Table[T]) schema() *memdb.TableSchema {
	s := &memdb.TableSchema{Name: t.name, Indexes: map[string]*memdb.IndexSchema{}}
	for _, ix := range t.indexes {
		s.Indexes[ix.Name] = &memdb.IndexSchema{
			Name: ix.Name, Unique: ix.Unique, AllowMissing: ix.Name != "id", Indexer: indexer[T]{ix.Key},
		}
	}
	return s
}

type indexer[T any] struct {
	key func([]byte, T) ([]byte, bool)
}

func (x indexer[T]) FromObject(raw any) (bool, []byte, error) {
	key, ok := x.key(nil, raw.(T))
	return ok, key, nil
}

var errKeyType = errors.New("mvcc: a key is []byte")

func (indexer[T]) FromArgs(args ...any) ([]byte, error) {
	if key, ok := args[0].([]byte); ok {
		return key, nil
	}
	return nil, errKeyType
}

func (x indexer[T]) PrefixFromArgs(args ...any) ([]byte, error) { return x.FromArgs(args...) }

// A DB is a set of tables.
type DB struct{ db *memdb.MemDB }

// NewDB makes an empty database. It panics on an invalid schema, which is a programming error.
func NewDB(tables ...Schema) *DB {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range tables {
		ts := t.schema()
		s.Tables[ts.Name] = ts
	}
	db, err := memdb.NewMemDB(s)
	if err != nil {
		panic(err)
	}
	return &DB{db}
}

// A Txn is a snapshot that reads, or the one open transaction that writes. It is not safe for concurrent use, except
// that any number of goroutines may read from one read-only Txn that records no watches.
type Txn struct {
	txn  *memdb.Txn
	ws   memdb.WatchSet // nil unless watching
	undo []func()
	skip bool // while rolling back or loading: changes are not recorded
}

// Read opens a snapshot. With watch set, what is read through it can be waited for with Wait.
func (db *DB) Read(watch bool) *Txn {
	t := &Txn{txn: db.db.Txn(false)}
	if watch {
		t.ws = memdb.NewWatchSet()
	}
	return t
}

// Write opens the write transaction; it blocks while another is open.
func (db *DB) Write() *Txn { return &Txn{txn: db.db.Txn(true)} }

// Load opens a write transaction that has no savepoints: for filling a database nobody else uses yet.
func (db *DB) Load() *Txn { return &Txn{txn: db.db.Txn(true), skip: true} }

// Commit makes the transaction's changes visible and wakes those who watch them.
func (t *Txn) Commit() { t.txn.Commit() }

// Abort gives up the transaction; after Commit it does nothing.
func (t *Txn) Abort() { t.txn.Abort() }

// Savepoint returns a mark for RollbackTo.
func (t *Txn) Savepoint() int { return len(t.undo) }

// RollbackTo undoes the changes made since the savepoint.
func (t *Txn) RollbackTo(savepoint int) {
	t.skip = true
	for i := len(t.undo) - 1; i >= savepoint; i-- {
		t.undo[i]()
	}
	t.skip = false
	t.undo = t.undo[:savepoint]
}

// Watch adds a channel whose closing ends Wait.
func (t *Txn) Watch(ch <-chan struct{}) {
	if t.ws != nil {
		t.ws.Add(ch)
	}
}

// Wait blocks until something read through t has changed and returns nil, or until ctx ends and returns its error.
func (t *Txn) Wait(ctx context.Context) error { return t.ws.WatchCtx(ctx) }

// First returns the object with exactly this key, the first if the index is not unique.
func (t *Table[T]) First(tx *Txn, index string, key []byte) (obj T, ok bool) {
	ch, raw, err := tx.txn.FirstWatch(t.name, index, key)
	if err != nil {
		panic(err)
	}
	tx.Watch(ch)
	if raw == nil {
		return obj, false
	}
	return raw.(T), true
}

// Peek is First without recording a watch.
func (t *Table[T]) Peek(tx *Txn, index string, key []byte) (obj T, ok bool) {
	raw, err := tx.txn.First(t.name, index, key)
	if err != nil {
		panic(err)
	}
	if raw == nil {
		return obj, false
	}
	return raw.(T), true
}

// Longest returns the object whose key is the longest prefix of the given one. It records no watch.
func (t *Table[T]) Longest(tx *Txn, index string, key []byte) (obj T, ok bool) {
	raw, err := tx.txn.LongestPrefix(t.name, index+"_prefix", key)
	if err != nil {
		panic(err)
	}
	if raw == nil {
		return obj, false
	}
	return raw.(T), true
}

// All returns every object in the order of the index.
func (t *Table[T]) All(tx *Txn, index string) iter.Seq[T] { return t.Prefix(tx, index, nil) }

// Get returns the objects with exactly this key.
func (t *Table[T]) Get(tx *Txn, index string, key []byte) iter.Seq[T] {
	return t.iterate(tx, index, key)
}

// Prefix returns the objects whose key begins with prefix, in the order of the index. The watch is set when Prefix is
// called, the objects are read as the sequence is used.
func (t *Table[T]) Prefix(tx *Txn, index string, prefix []byte) iter.Seq[T] {
	if prefix == nil {
		prefix = []byte{}
	}
	return t.iterate(tx, index+"_prefix", prefix)
}

func (t *Table[T]) iterate(tx *Txn, index string, key []byte) iter.Seq[T] {
	it, err := tx.txn.Get(t.name, index, key)
	if err != nil {
		panic(err)
	}
	tx.Watch(it.WatchCh())
	return t.walk(tx, index, key)
}

// PeekGet is Get without recording a watch.
func (t *Table[T]) PeekGet(tx *Txn, index string, key []byte) iter.Seq[T] {
	return t.walk(tx, index, key)
}

// PeekPrefix is Prefix without recording a watch.
func (t *Table[T]) PeekPrefix(tx *Txn, index string, prefix []byte) iter.Seq[T] {
	if prefix == nil {
		prefix = []byte{}
	}
	return t.walk(tx, index+"_prefix", prefix)
}

func (t *Table[T]) walk(tx *Txn, index string, key []byte) iter.Seq[T] {
	return func(yield func(T) bool) {
		it, err := tx.txn.Get(t.name, index, key)
		if err != nil {
			panic(err)
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(raw.(T)) {
				return
			}
		}
	}
}

// Insert adds obj or replaces the object with its primary key.
func (t *Table[T]) Insert(tx *Txn, obj T) {
	t.record(tx, obj)
	if err := tx.txn.Insert(t.name, obj); err != nil {
		panic(err)
	}
}

// Delete removes the object with obj's primary key and reports whether there was one. Never delete from a table while
// iterating over it in the same transaction: collect first.
func (t *Table[T]) Delete(tx *Txn, obj T) bool {
	if !t.record(tx, obj) {
		return false
	}
	if err := tx.txn.Delete(t.name, obj); err != nil {
		panic(err)
	}
	return true
}

// record notes how to undo a change of the object with obj's key; it reports whether there is such an object.
func (t *Table[T]) record(tx *Txn, obj T) bool {
	key, _ := t.indexes[0].Key(nil, obj)
	raw, err := tx.txn.First(t.name, "id", key)
	if err != nil {
		panic(err)
	}
	if !tx.skip {
		if raw != nil {
			tx.undo = append(tx.undo, func() { t.Insert(tx, raw.(T)) })
		} else {
			tx.undo = append(tx.undo, func() { t.Delete(tx, obj) })
		}
	}
	return raw != nil
}
