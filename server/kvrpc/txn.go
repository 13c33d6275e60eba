package kvrpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

func (h *handlers) txn(ctx context.Context, c *transport.Call, req *kv.TxnRequest) (*kv.TxnReply, acl.Permit, error) {
	ops, problems := h.check(c, c.Store.View(), req.Ops)
	permit := c.Authorizer.Filtering() // of what may be read; check asked for everything else
	if len(problems) > 0 {
		return &kv.TxnReply{Errors: problems}, permit, nil
	}
	value, err := c.Apply(ctx, permit, fsm.Txn, &kv.TxnRequest{Ops: ops})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	stored, err := reply[kv.TxnReply](value)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	stored.Results, _ = readable(c.Authorizer, stored.Results)
	return stored, permit, nil
}

func applyTxn(tx *state.Tx, req *kv.TxnRequest) (*kv.TxnReply, error) {
	reply := tx.Txn(req.Ops)
	return &reply, nil
}

func (h *handlers) txnRead(c *transport.Call, v *state.View, req *kv.TxnReadRequest) (*kv.TxnReadReply, acl.Permit, error) {
	resp := &kv.TxnReadReply{}
	for i := range req.Ops {
		if req.Ops[i].Writes() {
			return nil, acl.Permit{}, errors.New("a transaction that only reads has an operation that writes")
		}
	}
	resp.Index = 1
	ops, problems := h.check(c, v, req.Ops)
	if len(problems) > 0 {
		resp.Errors = problems
		return resp, c.Authorizer.Filtering(), nil
	}
	resp.TxnReply = v.Txn(ops)
	var dropped bool
	resp.Results, dropped = readable(c.Authorizer, resp.Results)
	resp.Filtered = dropped && !c.Authorizer.Anonymous()
	return resp, c.Authorizer.Filtering(), nil
}

// check looks at all operations before any is done: verbs, required fields, rights and lock delays. It returns copies
// with their defaults, or every problem found.
func (h *handlers) check(c *transport.Call, v *state.View, ops []kv.TxnOp) ([]kv.TxnOp, []kv.TxnError) {
	checked := make([]kv.TxnOp, len(ops))
	vetter := catalogrpc.NewVetter(c.Authorizer, v)
	var problems []kv.TxnError
	for i := range ops {
		var err error
		if checked[i], err = h.checkOp(c, v, vetter, &ops[i]); err != nil {
			problems = append(problems, kv.TxnError{OpIndex: i, What: err.Error()})
		}
	}
	return checked, problems
}

func (h *handlers) checkOp(c *transport.Call, v *state.View, vetter *catalogrpc.Vetter, op *kv.TxnOp) (kv.TxnOp, error) {
	switch {
	case op.KV != nil:
		return *op, h.checkKey(c.Authorizer, op.KV)
	case op.Node != nil:
		return checkNode(c, vetter, *op.Node)
	case op.Service != nil:
		return checkService(vetter, *op.Service)
	case op.Check != nil:
		return checkCheck(vetter, *op.Check)
	case op.Session != nil:
		if op.Session.Verb != kv.OpDelete {
			return *op, fmt.Errorf("unknown session operation: %s", op.Session.Verb)
		}
		if _, s := v.Session(op.Session.Session.ID); s != nil {
			_, err := c.Authorizer.Require(acl.Session, acl.Write, s.Node)
			return *op, err
		}
	}
	return *op, nil
}

func (h *handlers) checkKey(z *acl.Authorizer, op *kv.TxnKV) error {
	key := op.Entry.Key
	switch op.Verb {
	case kv.OpSet, kv.OpCAS, kv.OpLock, kv.OpUnlock, kv.OpDelete, kv.OpDeleteTree, kv.OpDeleteCAS:
		if key == "" && op.Verb != kv.OpDeleteTree {
			return errNoKey
		}
		if _, err := mayChange(z, op.Verb, key); err != nil {
			return err
		}
		if op.Verb == kv.OpLock && h.cfg.Delays.Active(key) {
			return fmt.Errorf("failed to lock key %q due to lock delay", key)
		}
		return nil
	case kv.OpGet, kv.OpGetOrEmpty, kv.OpGetTree, kv.OpCheckIndex, kv.OpCheckSession, kv.OpCheckNotExists:
		if key == "" {
			return errNoKey
		}
		switch op.Verb {
		case kv.OpCheckIndex, kv.OpCheckSession, kv.OpCheckNotExists:
			// Their failure tells about the key: nothing is left to filter.
			_, err := z.Require(acl.Key, acl.Read, key)
			return err
		case kv.OpGetTree:
			return h.mayGetTree(z, key)
		}
		return nil
	}
	return fmt.Errorf("unknown KV operation: %s", op.Verb)
}

func (h *handlers) mayGetTree(z *acl.Authorizer, prefix string) error {
	if !h.cfg.KeyListPolicy {
		return nil
	}
	_, err := z.Require(acl.Key, acl.List, prefix)
	return err
}

// checkVerb refuses a verb that the objects of the catalog do not have.
func checkVerb(verb kv.Op, kind string) error {
	switch verb {
	case kv.OpGet, kv.OpSet, kv.OpCAS, kv.OpDelete, kv.OpDeleteCAS:
		return nil
	}
	return fmt.Errorf("unknown %s operation: %s", kind, verb)
}

func checkNode(c *transport.Call, vetter *catalogrpc.Vetter, op kv.TxnNode) (kv.TxnOp, error) {
	checked := kv.TxnOp{Node: &op}
	if err := checkVerb(op.Verb, "node"); err != nil {
		return checked, err
	}
	n := &op.Node
	if n.Node == "" {
		return checked, errors.New("Must provide node")
	}
	if n.ID != "" {
		if err := catalog.CheckUUID(n.ID); err != nil {
			return checked, fmt.Errorf("Bad node ID: %w", err)
		}
	}
	if n.Datacenter == "" {
		n.Datacenter = c.Datacenter
	}
	switch op.Verb {
	case kv.OpSet, kv.OpCAS:
		return checked, vetter.SetNode(n)
	case kv.OpDelete, kv.OpDeleteCAS:
		return checked, vetter.DeleteNode(n.Node)
	}
	return checked, nil
}

func checkService(vetter *catalogrpc.Vetter, op kv.TxnService) (kv.TxnOp, error) {
	checked := kv.TxnOp{Service: &op}
	if err := checkVerb(op.Verb, "service"); err != nil {
		return checked, err
	}
	if op.Verb == kv.OpGet {
		return checked, nil
	}
	s := &op.Service
	if err := catalogrpc.PrepareService(s); err != nil {
		return checked, err
	}
	switch op.Verb {
	case kv.OpSet, kv.OpCAS:
		return checked, vetter.SetService(op.Node, s)
	}
	return checked, vetter.DeleteService(op.Node, s.ID)
}

func checkCheck(vetter *catalogrpc.Vetter, op kv.TxnCheck) (kv.TxnOp, error) {
	checked := kv.TxnOp{Check: &op}
	if err := checkVerb(op.Verb, "check"); err != nil {
		return checked, err
	}
	c := &op.Check
	catalogrpc.PrepareCheck(c)
	switch op.Verb {
	case kv.OpSet, kv.OpCAS:
		return checked, vetter.SetCheck(c)
	case kv.OpDelete, kv.OpDeleteCAS:
		return checked, vetter.DeleteCheck(c.Node, c.CheckID)
	}
	return checked, nil
}

// readable leaves out the results that the token may not read, and reports whether there were any.
func readable(z *acl.Authorizer, results []kv.TxnResult) (kept []kv.TxnResult, dropped bool) {
	if results == nil {
		return nil, false
	}
	kept = make([]kv.TxnResult, 0, len(results))
	for _, r := range results {
		may := true
		switch {
		case r.KV != nil:
			may = z.May(acl.Key, acl.Read, r.KV.Key)
		case r.Node != nil:
			may = z.May(acl.Node, acl.Read, r.Node.Node)
		case r.Service != nil:
			may = z.May(acl.Service, acl.Read, r.Service.Service)
		case r.Check != nil:
			may = catalogrpc.MayReadCheck(z, r.Check)
		}
		if may {
			kept = append(kept, r)
		}
	}
	return kept, len(kept) < len(results)
}
