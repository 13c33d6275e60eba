package aclrpc

import (
	"context"
	"errors"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// A change is a command on objects of one kind: all of it is done, or nothing.
type change[T any] struct {
	Set    []*T
	Delete []string // IDs, or names of auth methods
	Create bool     // what is set must not be there yet; else it must be, but for auth methods
	Prune  bool     // links to what does not exist are dropped; else they are errors
	// Replicated objects come from another datacenter: auth methods they are from need not be here.
	Replicated bool
	// Method, when not 0, is the index of the auth method that tokens are from: it must not have changed since.
	Method uint64
	// KeepGlobal tokens when the auth method that they name is deleted: they are of another datacenter's.
	KeepGlobal bool
	// Expired, when not zero, spares the tokens that are good at this time from being deleted.
	Expired time.Time
}

// changed is the answer to a change.
type changed[T any] struct {
	Set     []*T // as stored
	Deleted int
}

// A bootstrapCommand makes the first token, or another one when Reset is the index of the last time.
type bootstrapCommand struct {
	Token *acl.Token
	Reset uint64
}

var errMethodChanged = errors.New("the auth method has changed during the login, try again")

var errEmptyCommand = errors.New("the command has an object that is empty")

func registerAppliers(a *fsm.Appliers) {
	fsm.Handle(a, fsm.ACLBootstrap, func(tx *state.Tx, req *bootstrapCommand) (*acl.Token, error) {
		if req.Token == nil {
			return nil, errEmptyCommand
		}
		if err := tx.BootstrapACL(req.Token, req.Reset); err != nil {
			return nil, err
		}
		return req.Token, nil
	})
	fsm.Handle(a, fsm.ACLTokens, applier(func(tx *state.Tx, k *acl.Token, req *change[acl.Token]) error {
		if req.Method != 0 {
			if _, m := tx.ACLAuthMethod(k.AuthMethod); m != nil && m.ModifyIndex != req.Method {
				return errMethodChanged
			}
		}
		return tx.SetACLToken(k, state.TokenWrite{Create: req.Create, Prune: req.Prune, Replicated: req.Replicated})
	}, func(tx *state.Tx, id string, req *change[acl.Token]) bool {
		if !req.Expired.IsZero() {
			if _, k := tx.ACLToken(id); k == nil || !k.Expired(req.Expired) {
				return false
			}
		}
		return tx.DeleteACLToken(id)
	}))
	fsm.Handle(a, fsm.ACLPolicies, applier(func(tx *state.Tx, p *acl.Policy, req *change[acl.Policy]) error {
		return tx.SetACLPolicy(p, req.Create)
	}, func(tx *state.Tx, id string, _ *change[acl.Policy]) bool { return tx.DeleteACLPolicy(id) }))
	fsm.Handle(a, fsm.ACLRoles, applier(func(tx *state.Tx, r *acl.Role, req *change[acl.Role]) error {
		return tx.SetACLRole(r, state.RoleWrite{Create: req.Create, Prune: req.Prune})
	}, func(tx *state.Tx, id string, _ *change[acl.Role]) bool { return tx.DeleteACLRole(id) }))
	fsm.Handle(a, fsm.ACLAuthMethods, applier(func(tx *state.Tx, m *acl.AuthMethod, _ *change[acl.AuthMethod]) error {
		return tx.SetACLAuthMethod(m)
	}, func(tx *state.Tx, name string, req *change[acl.AuthMethod]) bool {
		return tx.DeleteACLAuthMethod(name, req.KeepGlobal)
	}))
	fsm.Handle(a, fsm.ACLBindingRules, applier(func(tx *state.Tx, r *acl.BindingRule, req *change[acl.BindingRule]) error {
		return tx.SetACLBindingRule(r, req.Create)
	}, func(tx *state.Tx, id string, _ *change[acl.BindingRule]) bool { return tx.DeleteACLBindingRule(id) }))
}

// applier makes the applier of one kind of object.
func applier[T any](set func(*state.Tx, *T, *change[T]) error, remove func(*state.Tx, string, *change[T]) bool) func(*state.Tx, *change[T]) (*changed[T], error) {
	return func(tx *state.Tx, req *change[T]) (*changed[T], error) {
		done := &changed[T]{Set: req.Set}
		for _, obj := range req.Set {
			if obj == nil {
				return nil, errEmptyCommand
			}
			if err := set(tx, obj, req); err != nil {
				return nil, err
			}
		}
		for _, id := range req.Delete {
			if remove(tx, id, req) {
				done.Deleted++
			}
		}
		return done, nil
	}
}

// apply writes a change of objects.
func apply[T any](ctx context.Context, call *transport.Call, p acl.Permit, kind fsm.Kind, req *change[T]) (*changed[T], error) {
	reply, err := call.Apply(ctx, p, kind, req)
	if err != nil {
		return nil, err
	}
	done, ok := reply.(*changed[T])
	if !ok {
		return nil, errors.New("the log gave no answer")
	}
	return done, nil
}

// set writes one object and returns it as stored.
func set[T any](ctx context.Context, call *transport.Call, p acl.Permit, kind fsm.Kind, obj *T, create bool) (*T, error) {
	done, err := apply(ctx, call, p, kind, &change[T]{Set: []*T{obj}, Create: create})
	if err != nil {
		return nil, err
	}
	return done.Set[0], nil
}

// remove writes a change that deletes one object; what names its kind where there is none.
func remove[T any](ctx context.Context, call *transport.Call, p acl.Permit, kind fsm.Kind, what string, req *change[T]) error {
	done, err := apply(ctx, call, p, kind, req)
	if err == nil && done.Deleted == 0 {
		err = wireerr.NotFound("Cannot find %s to delete", what)
	}
	return err
}
