// Package explainrpc answers what becomes of a request in the mesh, out of one view of the state, as it is and as it would
// be after changes of entries (package connect/explain).
package explainrpc

import (
	"errors"
	"fmt"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config tells what is decided where no intention fits, and whether there is a mesh at all.
type Config struct {
	Default         intention.Default
	ConnectDisabled bool
}

// Register adds the handler.
func Register(r *transport.Registry, cfg Config) {
	h := &handlers{cfg}
	transport.HandleRead(r, explain.EvaluateCall, h.evaluate)
}

type handlers struct{ cfg Config }

// maxChanges bounds what one call may ask to be tried.
const maxChanges = 256

func (h *handlers) evaluate(c *transport.Call, v *state.View, req *explain.EvaluateRequest) (*explain.EvaluateReply, acl.Permit, error) {
	none := acl.Permit{}
	if h.cfg.ConnectDisabled {
		return nil, none, wireerr.ErrConnectDisabled
	}
	z, r := c.Authorizer, req.Request
	if err := r.Check(); err != nil {
		return nil, none, wireerr.BadRequest("%v", err)
	}
	if _, err := z.Require(acl.Service, acl.Read, r.From); err != nil {
		return nil, none, err
	}
	if _, err := z.Require(acl.Service, acl.Read, r.To); err != nil {
		return nil, none, err
	}
	permit, err := z.Require(acl.Inten, acl.Read, r.To)
	if err != nil {
		return nil, none, err
	}
	cfg := &explain.Config{
		Datacenter: c.Datacenter, TrustDomain: trustDomain(v), Default: h.cfg.Default,
		MaySee:  func(service string) bool { return z.May(acl.Service, acl.Read, service) },
		MayRead: func(service string) bool { return z.May(acl.Inten, acl.Read, service) },
		MayShow: func(i *catalog.Instance) bool { return catalogrpc.MayReadInstance(z, i) },
	}
	reply := &explain.EvaluateReply{}
	reply.Index = v.LastIndex()
	if reply.Now, err = explain.Explain(cfg, NewWorld(v, v), req.Request); err != nil {
		return nil, none, wireerr.BadRequest("%v", err)
	}
	if len(req.WhatIf) == 0 {
		return reply, permit, nil
	}
	changed, err := h.try(c, v, req.WhatIf)
	if err != nil {
		return nil, none, err
	}
	if reply.WhatIf, err = explain.Explain(cfg, NewWorld(changed, v), req.Request); err != nil {
		return nil, none, wireerr.BadRequest("%v", err)
	}
	reply.Differences = explain.Diff(reply.Now, reply.WhatIf)
	return reply, permit, nil
}

// try returns the state after changes. Who tries one must be allowed to read what it changes; why entries do not fit
// together is told to who may write them.
func (h *handlers) try(c *transport.Call, v *state.View, changes []explain.Change) (*state.View, error) {
	if len(changes) > maxChanges {
		return nil, wireerr.BadRequest("there are more than %d changes", maxChanges)
	}
	for _, change := range changes {
		key, err := KeyOf(change)
		if err != nil {
			return nil, wireerr.BadRequest("%v", err)
		}
		if _, err := configrpc.RequireRead(c.Authorizer, key); err != nil {
			return nil, err
		}
	}
	tx := v.Fork()
	at, err := Apply(tx, c.Datacenter, changes)
	if err == nil {
		return &tx.View, nil
	}
	key, _ := KeyOf(changes[at])
	e := changes[at].Entry.Entry
	if e == nil {
		if e, _ = entry.New(key.Kind); e != nil {
			e.Head().Name = key.Name
		}
	}
	if _, refused := configrpc.RequireWrite(c.Authorizer, e); refused != nil {
		return nil, wireerr.BadRequest("%s %q would be refused; the right to write it is needed to be told why", key.Kind, key.Name)
	}
	return nil, wireerr.BadRequest("%s %q would be refused: %v", key.Kind, key.Name, err)
}

// KeyOf returns the key of the entry that a change is about.
func KeyOf(c explain.Change) (entry.Key, error) {
	switch {
	case c.Entry.Entry != nil && c.Delete != nil:
		return entry.Key{}, errors.New("a change writes an entry or deletes one, not both")
	case c.Entry.Entry != nil:
		return entry.KeyOf(c.Entry.Entry), nil
	case c.Delete == nil:
		return entry.Key{}, errors.New("a change is empty")
	case !c.Delete.Kind.Known():
		return entry.Key{}, fmt.Errorf("invalid config entry kind: %s", c.Delete.Kind)
	}
	return *c.Delete, nil
}

// Apply makes changes in a transaction with the checks that writing them has. They may be in any order: what does not fit
// is tried again after the others. On failure it returns the place of the first change that fits in no order.
func Apply(tx *state.Tx, datacenter string, changes []explain.Change) (at int, err error) {
	left := make([]int, len(changes))
	for i := range left {
		left[i] = i
	}
	for len(left) > 0 {
		var again []int
		var first error
		for _, i := range left {
			if err := one(tx, datacenter, changes[i]); err != nil {
				if first == nil {
					first = err
				}
				again = append(again, i)
			}
		}
		if len(again) == len(left) {
			return again[0], first
		}
		left = again
	}
	return 0, nil
}

func one(tx *state.Tx, datacenter string, c explain.Change) error {
	if c.Entry.Entry == nil && c.Delete != nil {
		return configrpc.TryDelete(tx, datacenter, *c.Delete)
	}
	return configrpc.Try(tx, datacenter, c.Entry.Entry)
}

// trustDomain returns the trust domain; before the first leader has made one, a name stands for it.
func trustDomain(v *state.View) string {
	if _, config := v.CAConfig(); config != nil {
		return connect.TrustDomain(config.ClusterID)
	}
	return connect.TrustDomain("00000000-0000-0000-0000-000000000000")
}
