package state

import (
	"encoding/json"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// entries holds the configuration entries, ordered by kind, then name.
var entries = mvcc.NewTable("entry", func(buf []byte, a *entry.Any) ([]byte, bool) {
	k := entry.KeyOf(a.Entry)
	return mvcc.String(mvcc.String(buf, string(k.Kind)), k.Name), true
})

func entryKey(kind entry.Kind, name string) []byte {
	return mvcc.String(mvcc.String(nil, string(kind)), name)
}

// Names of marks: the last change of an entry of a kind, and the last removal of one.
func entryMark(kind entry.Kind) string { return "entry." + string(kind) }
func entryGone(kind entry.Kind) string { return "entry-gone." + string(kind) }

// Entry returns an entry, nil when there is none.
func (v *View) Entry(kind entry.Kind, name string) entry.Entry {
	if a, ok := entries.First(v.tx, "id", entryKey(kind, name)); ok {
		return a.Entry
	}
	return nil
}

// EntryAs returns the entry of the kind that T is a struct of, nil when there is none.
func EntryAs[T any](v *View, kind entry.Kind, name string) *T {
	e, _ := any(v.Entry(kind, name)).(*T)
	return e
}

// EntryIndex is the index of a read of one entry: its own, or when it is absent that of the last change of its kind.
func (v *View) EntryIndex(kind entry.Kind, e entry.Entry) uint64 {
	if e != nil {
		return e.Head().ModifyIndex
	}
	return v.marked(entryMark(kind))
}

// EntriesGone is the index of the last removal of an entry of any of the kinds. With the ModifyIndex of every entry a
// read has used, it makes the index of that read. It records no wish to be woken.
func (v *View) EntriesGone(kinds ...entry.Kind) (index uint64) {
	for _, k := range kinds {
		index = max(index, v.peeked(entryGone(k)))
	}
	return index
}

// Entries returns the entries of a kind in the order of their names, with the index of the last change of one.
func (v *View) Entries(kind entry.Kind) (uint64, []entry.Entry) {
	var out []entry.Entry
	for a := range entries.Prefix(v.tx, "id", mvcc.String(nil, string(kind))) {
		out = append(out, a.Entry)
	}
	// The mark changes with the entries, and waiting for one that is not there would be waiting for any.
	return v.peeked(entryMark(kind)), out
}

// SetEntry adds or replaces an entry, which is normalized and valid, and keeps it. Content equal to what is there
// changes nothing. It reports whether anything changed.
func (t *Tx) SetEntry(e entry.Entry) (changed bool, err error) {
	h, key := e.Head(), entry.KeyOf(e)
	h.Hash, h.Indexes = 0, catalog.Indexes{}
	if h.Hash, err = contentHash(e); err != nil {
		return false, err
	}
	h.CreateIndex = t.Index
	if old := t.Entry(key.Kind, key.Name); old != nil {
		if old.Head().Hash == h.Hash {
			h.Indexes = old.Head().Indexes
			return false, nil
		}
		h.CreateIndex = old.Head().CreateIndex
		// What the old one named may be named no longer.
		defer t.releaseNamed(named(old))
	}
	h.ModifyIndex = t.Index
	entries.Insert(t.tx, &entry.Any{Entry: e})
	t.mark(entryMark(key.Kind))
	for _, service := range named(e) {
		if err := t.assignVirtualIP(service, ""); err != nil {
			return false, err
		}
	}
	if key.Kind == entry.KindTerminatingGateway {
		return true, t.retagGateway(key.Name)
	}
	return true, nil
}

// HasEntry reports whether there is an entry with the content of this one, so that SetEntry would change nothing.
func (t *Tx) HasEntry(e entry.Entry) (bool, error) {
	key := entry.KeyOf(e)
	old := t.Entry(key.Kind, key.Name)
	if old == nil {
		return false, nil
	}
	e.Head().Hash, e.Head().Indexes = 0, catalog.Indexes{}
	hash, err := contentHash(e)
	return err == nil && old.Head().Hash == hash, err
}

// DeleteEntry removes an entry and reports whether there was one.
func (t *Tx) DeleteEntry(kind entry.Kind, name string) bool {
	a, ok := entries.First(t.tx, "id", entryKey(kind, name))
	if !ok {
		return false
	}
	entries.Delete(t.tx, a)
	t.mark(entryMark(kind))
	t.mark(entryGone(kind))
	if kind == entry.KindTerminatingGateway {
		if err := t.retagGateway(name); err != nil {
			panic(err) // what is stored can be stored again
		}
	}
	t.releaseNamed(named(a.Entry))
	return true
}

// contentHash is equal for entries with equal content. Its input is JSON because that orders the keys of maps.
func contentHash(e entry.Entry) (uint64, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return 0, err
	}
	h := fnv.New64a()
	h.Write(data)
	// Zero means no hash.
	return max(h.Sum64(), 1), nil
}

// named lists the services that have a virtual IP because of an entry, in order (spec/connect.md section 14).
func named(e entry.Entry) []string {
	switch e := e.(type) {
	case *entry.ServiceDefaults, *entry.ServiceRouter, *entry.ServiceSplitter, *entry.ServiceResolver:
		return []string{e.Head().Name}
	case *entry.ServiceIntentions:
		if e.Name != entry.Wildcard {
			return []string{e.Name}
		}
	case *entry.TerminatingGateway:
		names := map[string]bool{}
		for _, s := range e.Services {
			if s.Name != entry.Wildcard {
				names[s.Name] = true
			}
		}
		return slices.Sorted(maps.Keys(names))
	}
	return nil
}
