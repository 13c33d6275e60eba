package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// keys holds the key/value entries by the bytes of their keys. The index "session" has those that are held.
var keys = mvcc.NewTable("kv", func(buf []byte, e *kv.Entry) ([]byte, bool) {
	return append(buf, e.Key...), true
}, mvcc.Index[*kv.Entry]{Name: "session", Key: func(buf []byte, e *kv.Entry) ([]byte, bool) {
	return append(buf, sessionKey(e.Session)...), e.Session != ""
}})

// A tombstone marks a deleted key, or a prefix whose keys were deleted together, so that the index of what it was
// listed under rises. The leader has them reaped after a while.
type tombstone struct {
	Key   string
	Index uint64 // of the deletion
	Tree  bool   `json:",omitempty"` // the keys below were deleted too
}

var tombstones = mvcc.NewTable("tombstone", func(buf []byte, d *tombstone) ([]byte, bool) {
	return append(buf, d.Key...), true
}, mvcc.Index[*tombstone]{Name: "index", Key: func(buf []byte, d *tombstone) ([]byte, bool) {
	return binary.BigEndian.AppendUint64(buf, d.Index), true
}})

// KeyIndex is the index of the last change or deletion of any key. It does not wake.
func (v *View) KeyIndex() uint64 { return v.peeked(keys.Name()) }

// Key returns an entry, nil when there is none. The index is its ModifyIndex, or that of the last change or deletion
// of any key; a waiter is woken by that key alone.
func (v *View) Key(key string) (uint64, *kv.Entry) {
	if e, ok := keys.First(v.tx, "id", []byte(key)); ok {
		return e.ModifyIndex, e
	}
	return v.KeyIndex(), nil
}

// KeysUnder returns the entries whose keys begin with prefix, in the order of their keys. The index is that of the
// last change or deletion under the prefix as far as it is known, else of any key.
func (v *View) KeysUnder(prefix string) (uint64, []*kv.Entry) {
	all := slices.Collect(keys.Prefix(v.tx, "id", []byte(prefix)))
	if prefix == "" {
		return v.KeyIndex(), all
	}
	var index uint64
	for _, e := range all {
		index = max(index, e.ModifyIndex)
	}
	for d := range tombstones.PeekPrefix(v.tx, "id", []byte(prefix)) {
		index = max(index, d.Index)
	}
	for d := range tombstones.Path(v.tx, "id", []byte(prefix)) {
		if d.Tree {
			index = max(index, d.Index)
		}
	}
	if index == 0 {
		index = v.KeyIndex()
	}
	return index, all
}

// KeyNames returns the names of the keys that begin with prefix, each cut behind the first separator after the prefix,
// in order and each once. An empty separator cuts none. May decides which keys count; nil counts all.
func (v *View) KeyNames(prefix, separator string, may func(key string) bool) (index uint64, names []string) {
	index, all := v.KeysUnder(prefix)
	for _, e := range all {
		if may != nil && !may(e.Key) {
			continue
		}
		name := e.Key
		if separator != "" {
			if i := strings.Index(name[len(prefix):], separator); i >= 0 {
				name = name[:len(prefix)+i+len(separator)]
			}
		}
		if len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	return index, names
}

// OldestTombstone returns the index of the oldest deletion mark, 0 when there is none. The leader reaps it by age.
func (v *View) OldestTombstone() uint64 {
	for d := range tombstones.PeekPrefix(v.tx, "index", nil) {
		return d.Index
	}
	return 0
}

// ReapTombstones removes the deletion marks of deletions up to and including an index.
func (t *Tx) ReapTombstones(upTo uint64) {
	var old []*tombstone
	for d := range tombstones.PeekPrefix(t.tx, "index", nil) {
		if d.Index > upTo {
			break
		}
		old = append(old, d)
	}
	for _, d := range old {
		tombstones.Delete(t.tx, d)
	}
}

func (t *Tx) key(key string) *kv.Entry {
	e, _ := keys.Peek(t.tx, "id", []byte(key))
	return e
}

func (t *Tx) putKey(e *kv.Entry) {
	keys.Insert(t.tx, e)
	t.mark(keys.Name())
}

func (t *Tx) deleteKey(e *kv.Entry) {
	keys.Delete(t.tx, e)
	old, ok := tombstones.Peek(t.tx, "id", []byte(e.Key))
	tombstones.Insert(t.tx, &tombstone{e.Key, t.Index, ok && old.Tree})
	t.mark(keys.Name())
}

// Errors of locking. The texts are those of spec/state.md sections 2 and 3.1.
var errNoSession = errors.New("missing session")

func errBadSession(id string) error { return fmt.Errorf("invalid session %q", id) }

// SetKey adds or replaces an entry's value and flags; the holder stays. Content equal to what is there changes
// nothing. It keeps e's value.
func (t *Tx) SetKey(e kv.Entry) { t.set(&e) }

// set stores value and flags of e and returns the stored entry.
func (t *Tx) set(e *kv.Entry) *kv.Entry {
	if old := t.key(e.Key); old != nil {
		return t.replace(old, e, old.Session, old.LockIndex)
	}
	fresh := &kv.Entry{
		Key: e.Key, Flags: e.Flags, Value: value(e),
		Indexes: catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index},
	}
	t.putKey(fresh)
	return fresh
}

// replace stores value and flags of e with this holder in the place of old.
func (t *Tx) replace(old, e *kv.Entry, session string, lockIndex uint64) *kv.Entry {
	if bytes.Equal(old.Value, e.Value) && old.Flags == e.Flags && old.Session == session && old.LockIndex == lockIndex {
		return old
	}
	fresh := &kv.Entry{
		LockIndex: lockIndex, Key: old.Key, Flags: e.Flags, Value: value(e), Session: session,
		Indexes: catalog.Indexes{CreateIndex: old.CreateIndex, ModifyIndex: t.Index},
	}
	t.putKey(fresh)
	return fresh
}

// value returns the value of e, nil when it is empty.
func value(e *kv.Entry) []byte {
	if len(e.Value) == 0 {
		return nil
	}
	return e.Value
}

// ApplyKey makes one change of spec/state.md section 2 and reports whether it was made. The entry's ModifyIndex is the
// index to compare with, its Session the one of a lock. The returned entry is the one stored, nil after a deletion or
// when nothing was done. It keeps e's value.
func (t *Tx) ApplyKey(op kv.Op, e *kv.Entry) (*kv.Entry, bool, error) {
	switch op {
	case kv.OpSet:
		return t.set(e), true, nil
	case kv.OpCAS:
		old := t.key(e.Key)
		if old == nil && e.ModifyIndex != 0 || old != nil && old.ModifyIndex != e.ModifyIndex {
			return nil, false, nil
		}
		return t.set(e), true, nil
	case kv.OpLock:
		return t.lock(e)
	case kv.OpUnlock:
		old := t.key(e.Key)
		switch {
		case e.Session == "":
			return nil, false, errNoSession
		case old == nil || !strings.EqualFold(old.Session, e.Session):
			return nil, false, nil
		}
		return t.replace(old, e, "", old.LockIndex), true, nil
	case kv.OpDelete:
		if old := t.key(e.Key); old != nil {
			t.deleteKey(old)
		}
		return nil, true, nil
	case kv.OpDeleteCAS:
		old := t.key(e.Key)
		if old == nil {
			return nil, true, nil
		}
		if old.ModifyIndex != e.ModifyIndex {
			return nil, false, nil
		}
		t.deleteKey(old)
		return nil, true, nil
	case kv.OpDeleteTree:
		t.deleteTree(e.Key)
		return nil, true, nil
	}
	return nil, false, fmt.Errorf("unknown KV operation: %s", op)
}

func (t *Tx) lock(e *kv.Entry) (*kv.Entry, bool, error) {
	if e.Session == "" {
		return nil, false, errNoSession
	}
	s := t.session(e.Session)
	if s == nil {
		return nil, false, errBadSession(e.Session)
	}
	old := t.key(e.Key)
	switch {
	case old == nil:
		fresh := &kv.Entry{
			LockIndex: 1, Key: e.Key, Flags: e.Flags, Value: value(e), Session: s.ID,
			Indexes: catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index},
		}
		t.putKey(fresh)
		return fresh, true, nil
	case old.Session == s.ID:
		return t.replace(old, e, s.ID, old.LockIndex), true, nil
	case old.Session != "":
		return nil, false, nil
	}
	return t.replace(old, e, s.ID, old.LockIndex+1), true, nil
}

// deleteTree deletes the keys that begin with prefix, and leaves one deletion mark for all, which stands for the older
// ones below too. For the empty prefix the index of the last change of any key does.
func (t *Tx) deleteTree(prefix string) {
	all := slices.Collect(keys.PeekPrefix(t.tx, "id", []byte(prefix)))
	if len(all) == 0 {
		return
	}
	for _, e := range all {
		keys.Delete(t.tx, e)
	}
	for _, d := range slices.Collect(tombstones.PeekPrefix(t.tx, "id", []byte(prefix))) {
		tombstones.Delete(t.tx, d)
	}
	if prefix != "" {
		tombstones.Insert(t.tx, &tombstone{prefix, t.Index, true})
	}
	t.mark(keys.Name())
}
