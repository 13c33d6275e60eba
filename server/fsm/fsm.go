// Package fsm turns committed Raft log entries into transactions on the state. An entry is a batch of commands that
// arrived together; all share the entry's index and one store transaction, each keeps its own result, and one that
// fails leaves no trace.
package fsm

import (
	"fmt"
	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A Kind names what a command does. Kinds are written to disk: never renumber one, and give a changed meaning a new
// Version of its kind.
type Kind uint16

// The kinds. Their appliers are registered by the packages that handle the requests.
const (
	_ Kind = iota
	Register
	Deregister
	UpdateCoordinates
	KV
	Txn
	SessionCreate
	SessionDestroy
	TombstoneReap
	ConfigEntry
	CARoots
	CAConfig
	Autopilot
	System // small facts of the servers themselves, such as the cluster ID
	PreparedQuery
	Peering       // peerings with other clusters, and their secrets
	PeeringChange // what is imported from them
	ACLBootstrap
	ACLTokens
	ACLPolicies
	ACLRoles
	ACLAuthMethods
	ACLBindingRules
	SVIDKeys   // what JWT-SVIDs are signed with
	JoinTokens // by which machines join
)

// A Command is one write: a kind and its request, a pointer to the type its applier takes.
type Command struct {
	Kind Kind
	Req  any
}

// A Result is what applying one command gave.
type Result struct {
	Value any // the applier's reply, a pointer, or nil
	Err   error
}

// An applier applies commands of one kind.
type applier struct {
	version uint8
	apply   func(tx *state.Tx, data []byte) (any, error)
}

// Appliers maps kinds to what applies them.
type Appliers struct {
	byKind map[Kind]applier
	// OnDelay, when not nil, is told the lock delays that a committed entry calls for, and when the entry was made
	// (zero if that is not known). They are not replicated state: each server keeps them in memory (spec/state.md
	// section 4.3). It must return quickly and not read the store.
	OnDelay func(since time.Time, delays []kv.Delay)
}

// Handle registers f for a kind. It panics when the kind is taken. A reply of f must not hold on to its request's
// memory beyond what f stored.
func Handle[Req, Resp any](a *Appliers, k Kind, f func(tx *state.Tx, req *Req) (*Resp, error)) {
	if a.byKind == nil {
		a.byKind = map[Kind]applier{}
	}
	if _, taken := a.byKind[k]; taken {
		panic(fmt.Sprintf("fsm: kind %d registered twice", k))
	}
	f = timed(k, f)
	a.byKind[k] = applier{1, func(tx *state.Tx, data []byte) (any, error) {
		req := new(Req)
		if err := rpc.Unmarshal(data, req); err != nil {
			return nil, fmt.Errorf("decode command of kind %d: %w", k, err)
		}
		resp, err := f(tx, req)
		if err != nil || resp == nil {
			return nil, err
		}
		return resp, nil
	}}
}

// Apply applies the entry in one transaction. An entry that cannot be decoded, or a command that panics, changes
// nothing and is reported in the results: a poisoned entry must not stop the cluster (spec/threats.md, class 9).
func (a *Appliers) Apply(store *state.Store, index uint64, entry []byte) []Result {
	tx := store.Write(index)
	defer tx.Abort()
	results := a.apply(tx, entry)
	tx.Commit()
	a.delayed(time.Time{}, tx.Delays())
	return results
}

// apply applies the entry in an open transaction whose index is the entry's.
func (a *Appliers) apply(tx *state.Tx, entry []byte) []Result {
	records, err := decode(entry)
	if err != nil {
		return []Result{{Err: fmt.Errorf("decode log entry %d: %w", tx.Index, err)}}
	}
	results := make([]Result, len(records))
	for i, r := range records {
		results[i] = a.one(tx, r)
	}
	return results
}

func (a *Appliers) delayed(since time.Time, delays []kv.Delay) {
	if a.OnDelay != nil && len(delays) > 0 {
		a.OnDelay(since, delays)
	}
}

func (a *Appliers) one(tx *state.Tx, r record) (res Result) {
	res.Err = tx.Try(func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("command of kind %d: panic: %v", r.Kind, p)
			}
		}()
		ap, ok := a.byKind[r.Kind]
		if !ok || r.Version > ap.version {
			return fmt.Errorf("command of kind %d version %d is not known to this server", r.Kind, r.Version)
		}
		res.Value, err = ap.apply(tx, r.Data)
		return err
	})
	if res.Err != nil {
		res.Value = nil
	}
	return res
}
