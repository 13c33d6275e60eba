package httpapi

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) txnRoutes() []endpoint {
	return []endpoint{{"/v1/txn", "PUT", s.txn}}
}

// maxTxnOps is how many operations one transaction may have.
const maxTxnOps = 128

// The form of transactions over HTTP (spec/state.md section 3), which differs from kv.TxnOp where names and nesting do.
type (
	txnBody struct {
		KV      *txnKV
		Node    *txnNode
		Service *txnService
		Check   *txnCheck
	}
	txnKV struct {
		Verb    kv.Op
		Key     string
		Value   []byte
		Flags   uint64
		Index   uint64
		Session string
	}
	txnNode struct {
		Verb kv.Op
		Node catalog.Node
	}
	txnService struct {
		Verb    kv.Op
		Node    string
		Service txnServiceBody
	}
	// txnServiceBody is an instance as the agent tells it; what transactions do not change is read and dropped.
	txnServiceBody struct {
		catalog.Service
		Connect     json.RawMessage
		Datacenter  json.RawMessage
		ContentHash json.RawMessage
	}
	txnCheck struct {
		Verb  kv.Op
		Check checkBody
	}
	// checkBody is a check whose definition is read leniently.
	checkBody struct {
		catalog.Check
		Definition definitionBody
	}
)

// A definitionBody reads the definition of a check: unknown keys are ignored, and the spellings with a number of
// nanoseconds are understood.
type definitionBody catalog.CheckDefinition

// UnmarshalJSON reads a definition.
func (d *definitionBody) UnmarshalJSON(data []byte) error {
	body := struct {
		*catalog.CheckDefinition
		IntervalDuration                       *time.Duration
		TimeoutDuration                        *time.Duration
		DeregisterCriticalServiceAfterDuration *time.Duration
	}{CheckDefinition: (*catalog.CheckDefinition)(d)}
	if err := json.Unmarshal(data, &body); err != nil {
		return err
	}
	for _, legacy := range []struct {
		from *time.Duration
		into *catalog.Duration
	}{
		{body.IntervalDuration, &d.Interval},
		{body.TimeoutDuration, &d.Timeout},
		{body.DeregisterCriticalServiceAfterDuration, &d.DeregisterCriticalServiceAfter},
	} {
		if legacy.from != nil && *legacy.into == 0 {
			*legacy.into = catalog.Duration(*legacy.from)
		}
	}
	return nil
}

// op returns the operation, and whether it writes. ok is false for an empty one.
func (b *txnBody) op() (op kv.TxnOp, write, ok bool) {
	switch {
	case b.KV != nil:
		k := b.KV
		switch k.Verb {
		case kv.OpSet, kv.OpCAS, kv.OpLock, kv.OpUnlock, kv.OpDelete, kv.OpDeleteTree, kv.OpDeleteCAS:
			write = true
		}
		op.KV = &kv.TxnKV{Verb: k.Verb, Entry: kv.Entry{
			Key: k.Key, Value: k.Value, Flags: k.Flags, Session: k.Session, Indexes: catalog.Indexes{ModifyIndex: k.Index},
		}}
		if len(k.Value) == 0 {
			op.KV.Entry.Value = nil
		}
	case b.Node != nil:
		write = b.Node.Verb != kv.OpGet
		op.Node = &kv.TxnNode{Verb: b.Node.Verb, Node: b.Node.Node}
	case b.Service != nil:
		write = b.Service.Verb != kv.OpGet
		op.Service = &kv.TxnService{Verb: b.Service.Verb, Node: b.Service.Node, Service: b.Service.Service.service()}
	case b.Check != nil:
		write = b.Check.Verb != kv.OpGet
		op.Check = &kv.TxnCheck{Verb: b.Check.Verb, Check: *b.Check.Check.check()}
	default:
		return op, false, false
	}
	return op, write, true
}

// check returns the check.
func (b *checkBody) check() *catalog.Check {
	b.Check.Definition = catalog.CheckDefinition(b.Definition)
	return &b.Check
}

// service returns the instance with only what transactions take.
func (b *txnServiceBody) service() catalog.Service {
	out := b.Service
	out.Connect = catalog.Connect{}
	p := out.Proxy
	out.Proxy = catalog.Proxy{
		DestinationServiceName: p.DestinationServiceName,
		DestinationServiceID:   p.DestinationServiceID,
		LocalServiceAddress:    p.LocalServiceAddress,
		LocalServicePort:       p.LocalServicePort,
		LocalServiceSocketPath: p.LocalServiceSocketPath,
		MeshGateway:            p.MeshGateway,
		TransparentProxy:       p.TransparentProxy,
	}
	return out
}

// txn serves /v1/txn.
func (s *Server) txn(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	ops, writes, err := s.readTxn(r)
	if err != nil {
		return nil, err
	}
	if writes {
		resp, err := kv.TxnCall.Call(r.Context(), s.caller, &kv.TxnRequest{Target: o.Target, Ops: ops})
		if err != nil {
			return nil, err
		}
		if rw := w.(*response); rw.hasToken {
			for _, e := range resp.Errors {
				rw.tellMissingRule(nil, e.What)
			}
		}
		return txnAnswer(resp, nil), nil
	}
	resp, err := ask(s, r, kv.TxnReadCall, &kv.TxnReadRequest{Options: o, Ops: ops})
	if err != nil {
		return nil, err
	}
	w.(*response).setLeader(&resp.Meta)
	return txnAnswer(&resp.TxnReply, &resp.Meta), nil
}

// readTxn reads and checks the body of a transaction.
func (s *Server) readTxn(r *http.Request) (ops []kv.TxnOp, writes bool, err error) {
	limit := max(s.cfg.TxnMaxRequestLength, s.cfg.KVMaxValueSize)
	const see = "See limits.txn_max_req_len in the configuration."
	if r.ContentLength > limit {
		return nil, false, wireerr.Errorf(http.StatusRequestEntityTooLarge,
			"Request body(%d bytes) too large, max size: %d bytes. %s", r.ContentLength, limit, see)
	}
	buf, err := s.readJSON(r, limit)
	if err != nil {
		if wireerr.Status(err) == http.StatusRequestEntityTooLarge && err != errValues {
			err = wireerr.Errorf(http.StatusRequestEntityTooLarge, "Request body too large, max size: %d bytes. %s", limit, see)
		}
		return nil, false, err
	}
	defer putBuffer(buf)
	var bodies []txnBody
	if err := decodeJSON(buf.b, &bodies, true); err != nil {
		return nil, false, wireerr.BadRequest("Failed to parse body: %v", err)
	}
	if len(bodies) > maxTxnOps {
		return nil, false, wireerr.Errorf(http.StatusRequestEntityTooLarge,
			"Transaction contains too many operations (%d > %d)", len(bodies), maxTxnOps)
	}
	for i := range bodies {
		op, write, ok := bodies[i].op()
		if !ok {
			continue
		}
		if k := op.KV; k != nil && int64(len(k.Entry.Value)) > s.cfg.KVMaxValueSize {
			return nil, false, wireerr.Errorf(http.StatusRequestEntityTooLarge,
				"Value for key %q is too large (%d > %d bytes)", k.Entry.Key, len(k.Entry.Value), s.cfg.KVMaxValueSize)
		}
		writes = writes || write
		ops = append(ops, op)
	}
	return ops, writes, nil
}

// txnAnswer is the body of an applied or refused transaction; meta is nil for one that wrote.
func txnAnswer(reply *kv.TxnReply, meta *read.Meta) any {
	body := appendFunc(func(dst []byte) []byte {
		if len(reply.Errors) != 0 {
			dst = append(dst, `{"Results":null,"Errors":`...)
			dst = appendList(dst, reply.Errors, func(dst []byte, e kv.TxnError) []byte {
				o := object{b: append(dst, '{')}
				o.num("OpIndex", e.OpIndex)
				o.str("What", e.What)
				return append(o.b, '}')
			})
		} else {
			dst = append(dst, `{"Results":`...)
			dst = appendList(dst, reply.Results, appendTxnResult)
			dst = append(dst, `,"Errors":null`...)
		}
		if meta != nil && len(reply.Errors) == 0 {
			dst = appendMetaFields(dst, meta, 1)
		}
		return append(dst, '}')
	})
	if len(reply.Errors) != 0 {
		return statusValue{http.StatusConflict, body}
	}
	return body
}

// appendMetaFields appends what some bodies repeat of the headers, as further fields of an object.
func appendMetaFields(dst []byte, m *read.Meta, index uint64) []byte {
	o := object{b: dst, begun: true}
	o.uint("Index", index)
	o.name("LastContact")
	o.b = strconv.AppendInt(o.b, int64(m.LastContact), 10)
	o.bool("KnownLeader", m.KnownLeader)
	o.str("ConsistencyLevel", "")
	o.bool("NotModified", false)
	o.num("Backend", 0)
	o.bool("ResultsFilteredByACLs", m.Filtered)
	return o.b
}

func appendTxnResult(dst []byte, r kv.TxnResult) []byte {
	switch {
	case r.KV != nil:
		dst = appendEntry(append(dst, `{"KV":`...), r.KV)
	case r.Node != nil:
		dst = appendNode(append(dst, `{"Node":`...), r.Node)
	case r.Service != nil:
		dst = appendService(append(dst, `{"Service":`...), r.Service)
	case r.Check != nil:
		dst = appendTxnCheck(append(dst, `{"Check":`...), r.Check)
	default:
		dst = append(dst, '{')
	}
	return append(dst, '}')
}
