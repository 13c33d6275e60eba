// Package queryrpc answers the calls on prepared queries (catalog/query): it keeps definitions, resolves names to them,
// and executes them here and, when nothing is found, elsewhere.
package queryrpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config tunes the handlers. A zero field takes its default.
type Config struct {
	// Instances returns the instances that a request is about, before anything is left out. The default knows no
	// gateways.
	Instances func(v *state.View, req *catalog.InstancesRequest) (uint64, []*catalog.Instance)
	// Elsewhere reaches other datacenters and peers. The default knows none.
	Elsewhere Elsewhere
	Logger    hclog.Logger // default discards
}

// Elsewhere is where queries are executed that find nothing here. It is safe for concurrent use.
type Elsewhere interface {
	// Datacenters returns the other datacenters that can be asked, nearest first.
	Datacenters() []string
	// Execute makes a RemoteCall to the target.
	Execute(ctx context.Context, to query.Target, req *query.RemoteRequest) (*query.ExecuteReply, error)
}

// handlers has the methods that answer calls.
type handlers struct{ cfg Config }

// Register adds the handlers and appliers.
func Register(r *transport.Registry, a *fsm.Appliers, cfg Config) {
	if cfg.Instances == nil {
		cfg.Instances = catalogrpc.Config{}.Candidates
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	h := &handlers{cfg}
	fsm.Handle(a, fsm.PreparedQuery, apply)
	transport.Handle(r, query.ApplyCall, h.apply)
	transport.HandleRead(r, query.GetCall, h.get)
	transport.HandleRead(r, query.ListCall, h.list)
	transport.HandleRead(r, query.ExplainCall, h.explain)
	transport.HandleReadContext(r, query.ExecuteCall, h.execute)
	transport.HandleRead(r, query.RemoteCall, h.remote)
}

// A refusal is an error of an applier: a rule of the state, as opposed to a failure to write the log.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// Texts that clients match on.
const applyFailed = "raft apply failed: "

func errUnknown(id string) error {
	return fmt.Errorf("Cannot modify non-existent prepared query: '%s'", id)
}

var errNewID = errors.New("ID must be empty when creating a new prepared query")

func (h *handlers) apply(ctx context.Context, c *transport.Call, req *query.ApplyRequest) (*query.ApplyReply, acl.Permit, error) {
	command := &query.ApplyRequest{Op: req.Op, Query: req.Query}
	q := &command.Query
	switch req.Op {
	case query.Create:
		if q.ID != "" {
			return nil, acl.Permit{}, errNewID
		}
		q.ID = uuid.NewString()
	case query.Update:
	case query.Delete:
		command.Query = query.Query{ID: q.ID}
	default:
		return nil, acl.Permit{}, fmt.Errorf("Unknown prepared query operation: %s", req.Op)
	}
	permit, err := requireWrite(c.Authorizer, q)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if req.Op != query.Create {
		if err := checkID(q.ID); err != nil {
			return nil, acl.Permit{}, fmt.Errorf("Prepared Query lookup failed: %w", err)
		}
		_, old := c.Store.View().Query(q.ID)
		if old == nil {
			return nil, acl.Permit{}, errUnknown(q.ID)
		}
		if _, err := requireWrite(c.Authorizer, old); err != nil {
			return nil, acl.Permit{}, err
		}
		q.ID = old.ID
	}
	if req.Op != query.Delete {
		if err := check(q); err != nil {
			return nil, acl.Permit{}, err
		}
	}
	if _, err := c.Apply(ctx, permit, fsm.PreparedQuery, command); err != nil {
		if r, ok := errors.AsType[*refusal](err); ok {
			err = fmt.Errorf(applyFailed+"%w", r.error)
		}
		return nil, acl.Permit{}, err
	}
	return &query.ApplyReply{ID: q.ID}, permit, nil
}

// check checks a definition before it enters the log.
func check(q *query.Query) error {
	if err := q.Validate(); err != nil {
		return fmt.Errorf("Invalid prepared query: %w", err)
	}
	data, err := rpc.Marshal(q)
	if err != nil {
		return err
	}
	if len(data) > query.MaxSize {
		return wireerr.Errorf(http.StatusRequestEntityTooLarge, "Query definition is larger than %d bytes", query.MaxSize)
	}
	if q.IsTemplate() {
		// Checked here alone: what an applier refuses must not depend on the version of this program.
		if _, err := query.Compile(q); err != nil {
			return fmt.Errorf(applyFailed+"failed compiling template: %w", err)
		}
	}
	return nil
}

func apply(tx *state.Tx, req *query.ApplyRequest) (*struct{}, error) {
	if req.Op == query.Create {
		return nil, refused(tx.SetQuery(&req.Query))
	}
	// It may have gone since it was looked up.
	if _, old := tx.Query(req.Query.ID); old == nil {
		return nil, &refusal{errUnknown(req.Query.ID)}
	}
	if req.Op == query.Delete {
		tx.DeleteQuery(req.Query.ID)
		return nil, nil
	}
	return nil, refused(tx.SetQuery(&req.Query))
}

func refused(err error) error {
	if err == nil {
		return nil
	}
	return &refusal{err}
}

// requireWrite asks for the right to make or change a query. One that has no name lives no longer than its session, and
// is everybody's who knows its ID.
func requireWrite(z *acl.Authorizer, q *query.Query) (acl.Permit, error) {
	if name, ok := q.RightName(); ok {
		return z.Require(acl.Query, acl.Write, name)
	}
	return acl.Open(), nil
}

// requireRead asks for the right to see a query whose ID is known.
func requireRead(z *acl.Authorizer, q *query.Query) (acl.Permit, error) {
	if name, ok := q.RightName(); ok {
		return z.Require(acl.Query, acl.Read, name)
	}
	return acl.Open(), nil
}

// seesAll reports whether a token may see the tokens in queries, and the queries without a name.
func seesAll(z *acl.Authorizer) bool { return z.May(acl.ACL, acl.Write, "") }

// shown returns a query as the token may see it.
func shown(z *acl.Authorizer, q *query.Query) *query.Query {
	if seesAll(z) {
		return q
	}
	return q.Redact()
}

// uuidLength is that of the text form.
const uuidLength = 36

func checkID(id string) error {
	err := catalog.CheckUUID(id)
	if len(id) != uuidLength {
		err = errors.New("UUID must be 36 characters")
	}
	if err != nil {
		return fmt.Errorf("failed prepared query lookup: index error: %w", err)
	}
	return nil
}

func (h *handlers) get(c *transport.Call, v *state.View, req *query.GetRequest) (*query.Reply, acl.Permit, error) {
	if err := checkID(req.ID); err != nil {
		return nil, acl.Permit{}, err
	}
	index, q := v.Query(req.ID)
	if q == nil {
		return nil, acl.Permit{}, query.ErrNotFound // at once, also when the request would block
	}
	permit, err := requireRead(c.Authorizer, q)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &query.Reply{Queries: []*query.Query{shown(c.Authorizer, q)}}
	reply.Index = index
	return reply, permit, nil
}

func (h *handlers) list(c *transport.Call, v *state.View, req *query.ListRequest) (*query.Reply, acl.Permit, error) {
	index, all := v.Queries()
	reply := &query.Reply{Queries: make([]*query.Query, 0, len(all))}
	reply.Index = index
	everything := seesAll(c.Authorizer)
	for _, q := range all {
		name, named := q.RightName()
		if !everything && (!named || !c.Authorizer.May(acl.Query, acl.Read, name)) {
			reply.Filtered = !c.Authorizer.Anonymous()
			continue
		}
		reply.Queries = append(reply.Queries, shown(c.Authorizer, q))
	}
	return reply, c.Authorizer.Filtering(), nil
}

func (h *handlers) explain(c *transport.Call, v *state.View, req *query.ExecuteRequest) (*query.ExplainReply, acl.Permit, error) {
	q, err := resolve(v, req.Query)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	permit, err := requireRead(c.Authorizer, q)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &query.ExplainReply{Query: shown(c.Authorizer, q)}, permit, nil
}

func resolve(v *state.View, idOrName string) (*query.Query, error) {
	q, err := v.ResolveQuery(idOrName)
	if err == nil && q == nil {
		err = query.ErrNotFound
	}
	return q, err
}
