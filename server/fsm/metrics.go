package fsm

import (
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/measure"
)

// names are those of the summaries of the milliseconds that commands take to be applied, by kind, without "fsm.". Those
// of one name have the label op.
var names = map[Kind][2]string{
	Register: {"register"}, Deregister: {"deregister"}, UpdateCoordinates: {"coordinate.batch-update"},
	KV: {"kvs", "other"}, Txn: {"txn"}, SessionCreate: {"session", "create"}, SessionDestroy: {"session", "destroy"},
	TombstoneReap: {"tombstone", "reap"}, ConfigEntry: {"config_entry"}, CARoots: {"ca", "roots"}, CAConfig: {"ca", "config"},
	Autopilot: {"autopilot"}, System: {"system_metadata"}, PreparedQuery: {"prepared-query"}, Peering: {"peering"}, PeeringChange: {"peering.change"},
	ACLBootstrap: {"acl", "bootstrap"}, ACLTokens: {"acl.token"}, ACLPolicies: {"acl.policy"}, ACLRoles: {"acl.role"},
	ACLAuthMethods: {"acl.authmethod"}, ACLBindingRules: {"acl.bindingrule"}, SVIDKeys: {"svid_keys"}, JoinTokens: {"join_tokens"},
}

var (
	timers = map[Kind]*measure.Timer{}
	// keyTimers are those of writes of keys, by what they do.
	keyTimers = map[kv.Op]*measure.Timer{}
	// metricPersist is a summary of the milliseconds that writing a snapshot takes.
	metricPersist = measure.NewTimer("fsm.persist")
)

func init() {
	for k, n := range names {
		if n[1] == "" {
			timers[k] = measure.NewTimer("fsm." + n[0])
		} else {
			timers[k] = measure.NewTimer("fsm."+n[0], metrics.Label{Name: "op", Value: n[1]})
		}
	}
	for _, v := range []kv.Op{kv.OpSet, kv.OpCAS, kv.OpLock, kv.OpUnlock, kv.OpDelete, kv.OpDeleteTree, kv.OpDeleteCAS} {
		keyTimers[v] = measure.NewTimer("fsm.kvs", metrics.Label{Name: "op", Value: string(v)})
	}
}

// timed measures how commands of a kind are applied.
func timed[Req, Resp any](k Kind, f func(tx *state.Tx, req *Req) (*Resp, error)) func(tx *state.Tx, req *Req) (*Resp, error) {
	timer := timers[k]
	if timer == nil {
		return f
	}
	return func(tx *state.Tx, req *Req) (*Resp, error) {
		t := timer
		if r, ok := any(req).(*kv.ApplyRequest); ok && keyTimers[r.Op] != nil {
			t = keyTimers[r.Op]
		}
		defer t.Since(time.Now())
		return f(tx, req)
	}
}
