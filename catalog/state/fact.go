package state

import (
	"bytes"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// A Fact is a small thing that the servers themselves need to agree on, such as the cluster's ID or the configuration
// of autopilot, in an encoding that its reader knows.
type Fact struct {
	Name string
	Data []byte
	catalog.Indexes
}

var facts = mvcc.NewTable("fact", func(buf []byte, f *Fact) ([]byte, bool) { return mvcc.String(buf, f.Name), true })

// Fact returns a fact, nil when there is none.
func (v *View) Fact(name string) *Fact {
	f, _ := facts.First(v.tx, "id", mvcc.String(nil, name))
	return f
}

// SetFact adds or replaces a fact and keeps data. Equal data changes nothing.
func (t *Tx) SetFact(name string, data []byte) {
	old, ok := facts.Peek(t.tx, "id", mvcc.String(nil, name))
	created := t.Index
	if ok {
		if bytes.Equal(old.Data, data) {
			return
		}
		created = old.CreateIndex
	}
	facts.Insert(t.tx, &Fact{name, data, catalog.Indexes{CreateIndex: created, ModifyIndex: t.Index}})
	t.mark(facts.Name())
}

// CompareAndSetFact is SetFact if the fact's ModifyIndex is index, and reports whether it is. An absent fact matches
// no index.
func (t *Tx) CompareAndSetFact(name string, data []byte, index uint64) bool {
	old, ok := facts.Peek(t.tx, "id", mvcc.String(nil, name))
	if !ok || old.ModifyIndex != index {
		return false
	}
	t.SetFact(name, data)
	return true
}
