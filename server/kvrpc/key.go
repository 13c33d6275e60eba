package kvrpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

func (h *handlers) get(c *transport.Call, v *state.View, req *kv.GetRequest) (*kv.GetReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Key, acl.Read, req.Key)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	resp := &kv.GetReply{}
	resp.Index, resp.Entry = v.Key(req.Key)
	resp.NotFound = resp.Entry == nil
	return resp, permit, nil
}

// mayList asks for the right to list a prefix where the setting wants that.
func (h *handlers) mayList(c *transport.Call, prefix string) (acl.Permit, error) {
	if !h.cfg.KeyListPolicy {
		return c.Authorizer.Filtering(), nil
	}
	return c.Authorizer.Require(acl.Key, acl.List, prefix)
}

func (h *handlers) list(c *transport.Call, v *state.View, req *kv.ListRequest) (*kv.ListReply, acl.Permit, error) {
	permit, err := h.mayList(c, req.Prefix)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	resp := &kv.ListReply{}
	index, all := v.KeysUnder(req.Prefix)
	resp.Index = index
	resp.Entries = make([]*kv.Entry, 0, len(all))
	for _, e := range all {
		if c.Authorizer.May(acl.Key, acl.Read, e.Key) {
			resp.Entries = append(resp.Entries, e)
		}
	}
	resp.Filtered = len(resp.Entries) < len(all) && !c.Authorizer.Anonymous()
	return resp, permit, nil
}

func (h *handlers) keys(c *transport.Call, v *state.View, req *kv.KeysRequest) (*kv.KeysReply, acl.Permit, error) {
	permit, err := h.mayList(c, req.Prefix)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	resp := &kv.KeysReply{}
	resp.Index, resp.Keys = v.KeyNames(req.Prefix, req.Separator, func(key string) bool {
		if c.Authorizer.May(acl.Key, acl.Read, key) {
			return true
		}
		resp.Filtered = !c.Authorizer.Anonymous()
		return false
	})
	return resp, permit, nil
}

// errNoKey is answered to a change that names no key.
var errNoKey = errors.New("Must provide key")

// mayChange asks for the right to make a change of a key.
func mayChange(z *acl.Authorizer, op kv.Op, key string) (acl.Permit, error) {
	if op == kv.OpDeleteTree {
		return z.RequirePrefix(acl.Key, acl.Write, key)
	}
	return z.Require(acl.Key, acl.Write, key)
}

func (h *handlers) apply(ctx context.Context, c *transport.Call, req *kv.ApplyRequest) (*kv.ApplyReply, acl.Permit, error) {
	switch req.Op {
	case kv.OpSet, kv.OpCAS, kv.OpLock, kv.OpUnlock, kv.OpDelete, kv.OpDeleteTree, kv.OpDeleteCAS:
	default:
		return nil, acl.Permit{}, fmt.Errorf("unknown KV operation: %s", req.Op)
	}
	if req.Entry.Key == "" && req.Op != kv.OpDeleteTree {
		return nil, acl.Permit{}, errNoKey
	}
	permit, err := mayChange(c.Authorizer, req.Op, req.Entry.Key)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	// Looked at before the entry is written: delays are in this server's memory, and every server must make the same
	// of an entry.
	if req.Op == kv.OpLock && h.cfg.Delays.Active(req.Entry.Key) {
		return &kv.ApplyReply{OK: false}, permit, nil
	}
	command := *req
	command.Target = read.Target{}
	value, err := c.Apply(ctx, permit, fsm.KV, &command)
	if err != nil {
		return nil, acl.Permit{}, applyError("raft apply failed", err)
	}
	resp, err := reply[kv.ApplyReply](value)
	return resp, permit, err
}

func applyKey(tx *state.Tx, req *kv.ApplyRequest) (*kv.ApplyReply, error) {
	_, ok, err := tx.ApplyKey(req.Op, &req.Entry)
	if err != nil {
		return nil, &refusal{err}
	}
	return &kv.ApplyReply{OK: ok}, nil
}

// A refusal is an error of an applier: a rule of the state, as opposed to a failure to write the log.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// applyError puts a prefix before the text of a refusal; other errors tell what failed by themselves.
func applyError(prefix string, err error) error {
	if r, ok := errors.AsType[*refusal](err); ok {
		return fmt.Errorf("%s: %w", prefix, r.error)
	}
	return err
}
