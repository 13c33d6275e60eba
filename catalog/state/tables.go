package state

import (
	"fmt"

	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// subjects is the one list of the tables of the state. To add a table, declare it in its own file
//
//	var entries = mvcc.NewTable("entry", func(buf []byte, e *entry.Entry) ([]byte, bool) { … })
//
// and append a line here:
//
//	stored(20, entries),
//
// The number is the kind of the table's records in a snapshot. It is written to disk: never change or reuse one. The
// objects of a stored table are encoded with rpc.Marshal, so their fields must be exported (or carry a cbor tag).
// A table whose content follows from others is listed with derived, together with what fills it after a restore.
func subjects() []subject {
	return []subject{
		stored(1, indexes),
		stored(2, nodes, (*Tx).shareNode),
		stored(3, checks, (*Tx).shareCheck),
		storedInstances(4), // after nodes and checks
		stored(5, keys),
		stored(6, tombstones),
		stored(7, sessions),
		derived(bindings, fillBindings),
		stored(8, coordinates),
		stored(9, facts),
		storedQueries(10),
		stored(20, aclTokens),
		stored(21, aclPolicies),
		stored(22, aclRoles),
		stored(23, aclMethods),
		stored(24, aclBindingRules),
		stored(25, aclBootstraps),
		derived(aclLinks, fillLinks),
		stored(40, entries),
		stored(41, virtualIPs),
		stored(42, virtualSlots),
		stored(43, caRoots),
		stored(44, caConfigs),
		stored(45, caProviders),
		stored(60, peerings),
		stored(61, peeringSecrets),
		stored(62, peerBundles),
		stored(63, imports),
	}
}

// tables lists every table of the state.
func tables() (all []mvcc.Schema) {
	for _, s := range subjects() {
		all = append(all, s.schema)
	}
	return all
}

// A subject is one table with how it goes into and comes out of a snapshot.
type subject struct {
	schema mvcc.Schema
	name   string
	kind   uint64                                            // of its records; 0 for derived tables
	dump   func(v *View, emit func(data []byte) error) error // nil for derived tables
	load   func(t *Tx, version uint64, data []byte) error
	fill   func(t *Tx) // only of derived tables
}

// stored describes a table whose objects are records of a snapshot. The functions share are called with what is restored.
func stored[T any](kind uint64, t *mvcc.Table[*T], share ...func(*Tx, *T)) subject {
	return subject{
		schema: t, name: t.Name(), kind: kind,
		dump: func(v *View, emit func([]byte) error) error {
			for obj := range t.All(v.tx, "id") {
				data, err := rpc.Marshal(obj)
				if err != nil {
					return fmt.Errorf("encode record of table %s: %w", t.Name(), err)
				}
				if err := emit(data); err != nil {
					return err
				}
			}
			return nil
		},
		load: func(tx *Tx, version uint64, data []byte) error {
			if version != 1 {
				return fmt.Errorf("record of table %s has version %d, not known to this server", t.Name(), version)
			}
			obj := new(T)
			if err := rpc.Unmarshal(data, obj); err != nil {
				return fmt.Errorf("decode record of table %s: %w", t.Name(), err)
			}
			for _, f := range share {
				f(tx, obj)
			}
			t.Insert(tx.tx, obj)
			return nil
		},
	}
}

// derived describes a table that fill makes from the stored ones.
func derived[T any](t *mvcc.Table[*T], fill func(t *Tx)) subject {
	return subject{schema: t, name: t.Name(), fill: fill}
}
