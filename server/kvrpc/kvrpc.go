// Package kvrpc answers the calls on keys, sessions and transactions (catalog/kv): it asks what the token may do,
// checks requests before they enter the log, and applies them to the state when they leave it.
package kvrpc

import (
	"fmt"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// A TTLKeeper ends sessions that are not renewed. Only the leader's does anything. It is safe for concurrent use.
type TTLKeeper interface {
	// Renew makes the session end after this time, counted from now, unless it is renewed again.
	Renew(id string, after time.Duration)
	// Forget tells that the session has ended.
	Forget(id string)
}

// Config tunes the handlers. A zero field takes its default.
type Config struct {
	TTL           TTLKeeper     // default keeps no time: sessions never expire
	MinTTL        time.Duration // setting session_ttl_min; default kv.MinTTL
	KeyListPolicy bool          // setting acl.enable_key_list_policy: listing keys needs key:list on the prefix
	Delays        *Delays       // default a new one
}

// handlers has the methods that answer calls.
type handlers struct{ cfg Config }

// A reap asks for the removal of deletion marks.
type reap struct{ UpTo uint64 }

// ReapRequest returns the request of a command of kind fsm.TombstoneReap, which removes the marks of deletions up to an
// index (spec/state.md section 1.4). The leader writes it some time after the deletions.
func ReapRequest(upTo uint64) any { return &reap{upTo} }

// Register adds the handlers and appliers. The appliers' OnDelay feeds the lock delays.
func Register(r *transport.Registry, a *fsm.Appliers, cfg Config) {
	if cfg.TTL == nil {
		cfg.TTL = noTTL{}
	}
	if cfg.Delays == nil {
		cfg.Delays = &Delays{}
	}
	h := &handlers{cfg}
	a.OnDelay = cfg.Delays.Start
	fsm.Handle(a, fsm.KV, applyKey)
	fsm.Handle(a, fsm.Txn, applyTxn)
	fsm.Handle(a, fsm.SessionCreate, applySessionCreate)
	fsm.Handle(a, fsm.SessionDestroy, applySessionDestroy)
	fsm.Handle(a, fsm.TombstoneReap, func(tx *state.Tx, req *reap) (*struct{}, error) {
		tx.ReapTombstones(req.UpTo)
		return nil, nil
	})
	transport.HandleStateRead(r, kv.GetCall, h.get)
	transport.HandleStateRead(r, kv.ListCall, h.list)
	transport.HandleStateRead(r, kv.KeysCall, h.keys)
	transport.Handle(r, kv.ApplyCall, h.apply)
	transport.Handle(r, kv.TxnCall, h.txn)
	transport.HandleRead(r, kv.TxnReadCall, h.txnRead)
	transport.Handle(r, kv.SessionCreateCall, h.sessionCreate)
	transport.Handle(r, kv.SessionDestroyCall, h.sessionDestroy)
	transport.Handle(r, kv.SessionRenewCall, h.sessionRenew)
	transport.HandleStateRead(r, kv.SessionsCall, h.sessions)
}

type noTTL struct{}

func (noTTL) Renew(string, time.Duration) {}
func (noTTL) Forget(string)               {}

// reply gives the result of Apply its type.
func reply[T any](value any) (*T, error) {
	if v, ok := value.(*T); ok {
		return v, nil
	}
	return nil, fmt.Errorf("applier returned %T", value)
}

// Delays remembers which keys refuse new holders because the session of their last one ended (spec/state.md section
// 4.3). It is not replicated: every server learns the delays from the log entries, with the time at which they were
// made, so that a new leader knows those of the old one. The zero Delays is ready for use, and safe for concurrent use.
type Delays struct {
	mu    sync.Mutex
	until map[string]time.Time
	sweep int // size at which what has passed is removed
}

// Start begins delays that count from since, or from now when since is zero or lies ahead.
func (d *Delays) Start(since time.Time, delays []kv.Delay) {
	now := time.Now()
	if since.IsZero() || since.After(now) {
		since = now
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.until == nil {
		d.until = map[string]time.Time{}
	}
	for _, k := range delays {
		if end := since.Add(k.For); end.After(now) && end.After(d.until[k.Key]) {
			d.until[k.Key] = end
		}
	}
	if len(d.until) > d.sweep {
		for key, end := range d.until {
			if !end.After(now) {
				delete(d.until, key)
			}
		}
		d.sweep = max(64, 2*len(d.until))
	}
}

// Active reports whether the key refuses new holders now.
func (d *Delays) Active(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.until[key].After(time.Now())
}
