package state

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
)

// errTxn tells Try that some operations have failed.
var errTxn = errors.New("transaction failed")

// Txn applies all operations, each on top of those before it, or none: then the errors of all that fail are returned.
// It keeps the objects of the operations.
func (t *Tx) Txn(ops []kv.TxnOp) kv.TxnReply {
	var reply kv.TxnReply
	err := t.Try(func() error {
		reply = runTxn(ops, func(op *kv.TxnOp) ([]kv.TxnResult, error) {
			results, done, err := t.txnRead(op)
			if done {
				return results, err
			}
			return t.txnWrite(op)
		})
		if len(reply.Errors) > 0 {
			return errTxn
		}
		return nil
	})
	if err != nil {
		reply.Results = nil
	}
	return reply
}

// Txn runs operations that only read.
func (v *View) Txn(ops []kv.TxnOp) kv.TxnReply {
	return runTxn(ops, func(op *kv.TxnOp) ([]kv.TxnResult, error) {
		results, done, err := v.txnRead(op)
		if !done {
			return nil, fmt.Errorf("unknown KV operation: %s", op.Verb())
		}
		return results, err
	})
}

func runTxn(ops []kv.TxnOp, run func(op *kv.TxnOp) ([]kv.TxnResult, error)) kv.TxnReply {
	reply := kv.TxnReply{Results: []kv.TxnResult{}}
	for i := range ops {
		results, err := run(&ops[i])
		if err != nil {
			reply.Errors = append(reply.Errors, kv.TxnError{OpIndex: i, What: err.Error()})
			continue
		}
		reply.Results = append(reply.Results, results...)
	}
	if len(reply.Errors) > 0 {
		reply.Results = nil
	}
	return reply
}

// bare returns a result that shows an entry without its value.
func bare(e *kv.Entry) []kv.TxnResult {
	shown := *e
	shown.Value = nil
	return []kv.TxnResult{{KV: &shown}}
}

// txnRead runs an operation that reads; done is false for any other.
func (v *View) txnRead(op *kv.TxnOp) (results []kv.TxnResult, done bool, err error) {
	switch {
	case op.KV != nil:
		return v.txnReadKey(op.KV)
	case op.Node != nil && op.Node.Verb == kv.OpGet:
		n := v.txnNode(&op.Node.Node)
		if n == nil {
			return nil, true, fmt.Errorf("node %q doesn't exist", op.Node.Node.Node)
		}
		return []kv.TxnResult{{Node: n}}, true, nil
	case op.Service != nil && op.Service.Verb == kv.OpGet:
		i := v.instance(op.Service.Node, op.Service.Service.ID)
		if i == nil {
			return nil, true, fmt.Errorf("service %q on node %q doesn't exist", op.Service.Service.ID, op.Service.Node)
		}
		return []kv.TxnResult{{Service: i.Service}}, true, nil
	case op.Check != nil && op.Check.Verb == kv.OpGet:
		c := v.check(op.Check.Check.Node, op.Check.Check.CheckID)
		if c == nil {
			return nil, true, fmt.Errorf("check %q on node %q doesn't exist", op.Check.Check.CheckID, op.Check.Check.Node)
		}
		return []kv.TxnResult{{Check: c}}, true, nil
	case op.Node == nil && op.Service == nil && op.Check == nil && op.Session == nil:
		return nil, true, nil // an empty operation does nothing
	}
	return nil, false, nil
}

// txnNode finds a node by ID if one is given, else by name.
func (v *View) txnNode(n *catalog.Node) *catalog.Node {
	if n.ID != "" {
		return v.nodeByID(n.ID)
	}
	found, _ := nodes.Peek(v.tx, "id", nameKey(n.Node))
	return found
}

func (v *View) txnReadKey(op *kv.TxnKV) (results []kv.TxnResult, done bool, err error) {
	want := &op.Entry
	e, ok := keys.Peek(v.tx, "id", []byte(want.Key))
	switch op.Verb {
	case kv.OpGet:
		if !ok {
			return nil, true, fmt.Errorf("key %q doesn't exist", want.Key)
		}
		return []kv.TxnResult{{KV: e}}, true, nil
	case kv.OpGetOrEmpty:
		if !ok {
			e = &kv.Entry{Key: want.Key}
		}
		return []kv.TxnResult{{KV: e}}, true, nil
	case kv.OpGetTree:
		for e := range keys.PeekPrefix(v.tx, "id", []byte(want.Key)) {
			results = append(results, kv.TxnResult{KV: e})
		}
		return results, true, nil
	case kv.OpCheckIndex:
		switch {
		case !ok:
			return nil, true, fmt.Errorf("failed to check index, key %q doesn't exist", want.Key)
		case e.ModifyIndex != want.ModifyIndex:
			return nil, true, fmt.Errorf("failed index check for key %q, current modify index %d != %d", want.Key, e.ModifyIndex, want.ModifyIndex)
		}
		return bare(e), true, nil
	case kv.OpCheckSession:
		switch {
		case !ok:
			return nil, true, fmt.Errorf("failed to check session, key %q doesn't exist", want.Key)
		case !strings.EqualFold(e.Session, want.Session):
			return nil, true, fmt.Errorf("failed session check for key %q, current session %q != %q", want.Key, e.Session, want.Session)
		}
		return bare(e), true, nil
	case kv.OpCheckNotExists:
		if ok {
			return nil, true, fmt.Errorf("key %q exists", want.Key)
		}
		return nil, true, nil
	}
	return nil, false, nil
}

// txnWrite runs an operation that writes.
func (t *Tx) txnWrite(op *kv.TxnOp) ([]kv.TxnResult, error) {
	switch {
	case op.KV != nil:
		return t.txnKey(op.KV)
	case op.Node != nil:
		return t.txnSetNode(op.Node)
	case op.Service != nil:
		return t.txnSetService(op.Service)
	case op.Check != nil:
		return t.txnSetCheck(op.Check)
	}
	if op.Session.Verb != kv.OpDelete {
		return nil, fmt.Errorf("unknown session operation: %s", op.Session.Verb)
	}
	t.DestroySession(op.Session.Session.ID)
	return nil, nil
}

func (t *Tx) txnKey(op *kv.TxnKV) ([]kv.TxnResult, error) {
	stored, ok, err := t.ApplyKey(op.Verb, &op.Entry)
	if err != nil {
		return nil, err
	}
	if !ok {
		switch op.Verb {
		case kv.OpLock:
			return nil, fmt.Errorf("failed to lock key %q, lock is already held", op.Entry.Key)
		case kv.OpUnlock:
			return nil, fmt.Errorf("failed to unlock key %q, lock isn't held, or is held by another session", op.Entry.Key)
		case kv.OpDeleteCAS:
			return nil, fmt.Errorf("failed to delete key %q, index is stale", op.Entry.Key)
		}
		return nil, fmt.Errorf("failed to set key %q, index is stale", op.Entry.Key)
	}
	if stored == nil {
		return nil, nil
	}
	return bare(stored), nil
}

// fresh reports whether a compare-and-set of an object whose ModifyIndex is at (0 when it is absent) may proceed.
func fresh(at, want uint64) bool { return at == want }

func (t *Tx) txnSetNode(op *kv.TxnNode) ([]kv.TxnResult, error) {
	n := op.Node
	old, _ := nodes.Peek(t.tx, "id", nameKey(n.Node))
	var at uint64
	if old != nil {
		at = old.ModifyIndex
	}
	switch op.Verb {
	case kv.OpCAS:
		if !fresh(at, n.ModifyIndex) {
			return nil, fmt.Errorf("failed to set node %q, index is stale", n.Node)
		}
	case kv.OpDeleteCAS:
		if old != nil && !fresh(at, n.ModifyIndex) {
			return nil, fmt.Errorf("failed to delete node %q, index is stale", n.Node)
		}
	}
	switch op.Verb {
	case kv.OpSet, kv.OpCAS:
		stored, err := t.SetNode(&n)
		if err != nil {
			return nil, err
		}
		return []kv.TxnResult{{Node: stored}}, nil
	case kv.OpDelete, kv.OpDeleteCAS:
		t.DeleteNode(n.Node)
		return nil, nil
	}
	return nil, fmt.Errorf("unknown node operation: %s", op.Verb)
}

func (t *Tx) txnSetService(op *kv.TxnService) ([]kv.TxnResult, error) {
	s := op.Service
	old := t.instance(op.Node, s.ID)
	var at uint64
	if old != nil {
		at = old.Service.ModifyIndex
	}
	switch op.Verb {
	case kv.OpCAS:
		if !fresh(at, s.ModifyIndex) {
			return nil, fmt.Errorf("failed to set service %q on node %q, index is stale", s.ID, op.Node)
		}
	case kv.OpDeleteCAS:
		if old != nil && !fresh(at, s.ModifyIndex) {
			return nil, fmt.Errorf("failed to delete service %q on node %q, index is stale", s.ID, op.Node)
		}
	}
	switch op.Verb {
	case kv.OpSet, kv.OpCAS:
		stored, err := t.SetService(op.Node, &s)
		if err != nil {
			return nil, err
		}
		return []kv.TxnResult{{Service: stored}}, nil
	case kv.OpDelete, kv.OpDeleteCAS:
		t.DeleteService(op.Node, s.ID)
		return nil, nil
	}
	return nil, fmt.Errorf("unknown service operation: %s", op.Verb)
}

func (t *Tx) txnSetCheck(op *kv.TxnCheck) ([]kv.TxnResult, error) {
	c := op.Check
	old := t.check(c.Node, c.CheckID)
	var at uint64
	if old != nil {
		at = old.ModifyIndex
	}
	switch op.Verb {
	case kv.OpCAS:
		if !fresh(at, c.ModifyIndex) {
			return nil, fmt.Errorf("failed to set check %q on node %q, index is stale", c.CheckID, c.Node)
		}
	case kv.OpDeleteCAS:
		if old != nil && !fresh(at, c.ModifyIndex) {
			return nil, fmt.Errorf("failed to delete check %q on node %q, index is stale", c.CheckID, c.Node)
		}
	}
	switch op.Verb {
	case kv.OpSet, kv.OpCAS:
		stored, err := t.SetCheck(&c)
		if err != nil {
			return nil, err
		}
		return []kv.TxnResult{{Check: stored}}, nil
	case kv.OpDelete, kv.OpDeleteCAS:
		t.DeleteCheck(c.Node, c.CheckID)
		return nil, nil
	}
	return nil, fmt.Errorf("unknown check operation: %s", op.Verb)
}
