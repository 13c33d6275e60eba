package aclrpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/primary"
)

// A Replicator copies policies and roles, and global tokens where that is asked for, from the primary datacenter to this
// one (spec/acl.md section 15). It runs on the leader.
type Replicator struct {
	Datacenter string     // the primary one
	Primary    rpc.Caller // of it
	Tokens     bool       // copy tokens too
	Token      func() string
	Store      *state.Store
	Apply      applyFunc
	Log        hclog.Logger

	status *ReplicationProgress
}

// ReplicationProgress tells how far replication is. The zero value tells that it does not run.
type ReplicationProgress struct {
	mu sync.Mutex
	s  access.ReplicationStatus
}

// Status returns it.
func (p *ReplicationProgress) Status() access.ReplicationStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.s
}

func (p *ReplicationProgress) change(f func(*access.ReplicationStatus)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.s)
}

// replicateBatch is how many objects one log entry has.
const replicateBatch = 64

// Run copies until ctx ends.
func (r *Replicator) Run(ctx context.Context, progress *ReplicationProgress) error {
	r.status = progress
	r.status.change(func(s *access.ReplicationStatus) {
		s.Enabled, s.Running, s.SourceDatacenter, s.ReplicationType = true, true, r.Datacenter, "policies"
		if r.Tokens {
			s.ReplicationType = "tokens"
		}
	})
	defer r.status.change(func(s *access.ReplicationStatus) { s.Running = false })
	var since *replicated // nil at first, and after a failure
	primary.Copy(ctx, func(ctx context.Context) error {
		if since != nil {
			last := *since
			since = nil
			if err := r.await(ctx, last); err != nil {
				return err
			}
		}
		done, err := r.round(ctx)
		if err != nil {
			return err
		}
		since = &done
		r.status.change(func(s *access.ReplicationStatus) {
			s.LastSuccess = time.Now().UTC().Truncate(time.Second)
			s.ReplicatedIndex, s.ReplicatedRoleIndex, s.ReplicatedTokenIndex = done.policies, done.roles, done.tokens
		})
		return nil
	}, func(err error, wait time.Duration) {
		r.Log.Warn("ACLs were not copied from the primary datacenter, will retry", "wait", wait, "error", err)
		r.status.change(func(s *access.ReplicationStatus) {
			s.LastError, s.LastErrorMessage = time.Now().UTC().Truncate(time.Second), err.Error()
		})
	})
	return nil
}

// replicated are the indexes of the primary datacenter that a round has copied up to.
type replicated struct{ policies, roles, tokens uint64 }

func (r *Replicator) options(index uint64) read.Options {
	return primary.Options(r.Datacenter, r.Token(), index)
}

// round makes what is here equal to what is there. What links to others is read before them, so that all it links to is
// found.
func (r *Replicator) round(ctx context.Context) (done replicated, err error) {
	tokens := &access.TokenListReply{}
	if r.Tokens {
		if tokens, err = access.TokenListCall.Call(ctx, r.Primary, &access.TokenListRequest{Options: r.options(0), GlobalOnly: true}); err != nil {
			return done, fmt.Errorf("list tokens: %w", err)
		}
	}
	roles, err := access.RoleListCall.Call(ctx, r.Primary, &access.RoleListRequest{Options: r.options(0)})
	if err != nil {
		return done, fmt.Errorf("list roles: %w", err)
	}
	policies, err := access.PolicyListCall.Call(ctx, r.Primary, &access.ListRequest{Options: r.options(0)})
	if err != nil {
		return done, fmt.Errorf("list policies: %w", err)
	}
	v := r.Store.View()
	_, ownPolicies := v.ACLPolicies()
	if err := copyAll(ctx, r, fsm.ACLPolicies, policies.Policies, ownPolicies, func(p *acl.Policy) (string, []byte) { return p.ID, p.Hash }); err != nil {
		return done, fmt.Errorf("copy policies: %w", err)
	}
	_, ownRoles := v.ACLRoles()
	if err := copyAll(ctx, r, fsm.ACLRoles, roles.Roles, ownRoles, func(o *acl.Role) (string, []byte) { return o.ID, o.Hash }); err != nil {
		return done, fmt.Errorf("copy roles: %w", err)
	}
	if r.Tokens {
		there := map[string]*acl.Token{}
		for _, k := range tokens.Tokens {
			if k.SecretID == acl.Hidden {
				return done, errors.New("the replication token needs acl:write, without which tokens are shown without their secrets")
			}
			there[k.AccessorID] = k
		}
		var own []*acl.Token
		_, all := v.ACLTokens()
		for _, k := range all {
			if k.Local {
				continue
			}
			if now := there[k.AccessorID]; now != nil && !sameToken(k, now) {
				if _, err := r.Apply(ctx, fsm.ACLTokens, &change[acl.Token]{Delete: []string{k.AccessorID}}); err != nil {
					return done, fmt.Errorf("copy tokens: %w", err)
				}
				continue // made anew
			}
			own = append(own, k)
		}
		if err := copyAll(ctx, r, fsm.ACLTokens, tokens.Tokens, own, func(k *acl.Token) (string, []byte) { return k.AccessorID, k.Hash }); err != nil {
			return done, fmt.Errorf("copy tokens: %w", err)
		}
	}
	return replicated{policies.Index, roles.Index, tokens.Index}, nil
}

// sameToken reports whether two tokens with the same accessor ID are one, which may have changed: what cannot change about
// a token is no part of its digest.
func sameToken(a, b *acl.Token) bool {
	ends := a.ExpirationTime == nil && b.ExpirationTime == nil ||
		a.ExpirationTime != nil && b.ExpirationTime != nil && a.ExpirationTime.Equal(*b.ExpirationTime)
	return ends && a.SecretID == b.SecretID && a.AuthMethod == b.AuthMethod
}

// await returns when something there has changed.
func (r *Replicator) await(ctx context.Context, since replicated) error {
	calls := []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := access.PolicyListCall.Call(ctx, r.Primary, &access.ListRequest{Options: r.options(max(since.policies, 1))})
			return err
		},
		func(ctx context.Context) error {
			_, err := access.RoleListCall.Call(ctx, r.Primary, &access.RoleListRequest{Options: r.options(max(since.roles, 1))})
			return err
		},
	}
	if r.Tokens {
		calls = append(calls, func(ctx context.Context) error {
			_, err := access.TokenListCall.Call(ctx, r.Primary, &access.TokenListRequest{Options: r.options(max(since.tokens, 1)), GlobalOnly: true})
			return err
		})
	}
	return primary.First(ctx, calls...)
}

// copyAll makes the objects of one kind here what they are there; identify returns their ID and the digest of their
// content. What another holds the name of is left for the next round, which the other's new name or end makes way for.
func copyAll[T any](ctx context.Context, r *Replicator, kind fsm.Kind, there, here []*T, identify func(*T) (string, []byte)) error {
	own := map[string][]byte{}
	for _, o := range here {
		id, hash := identify(o)
		own[id] = hash
	}
	var create, update []*T
	for _, o := range there {
		id, hash := identify(o)
		old, exists := own[id]
		switch {
		case !exists:
			create = append(create, o)
		case !bytes.Equal(old, hash):
			update = append(update, o)
		}
		delete(own, id)
	}
	var gone []string
	for id := range own {
		gone = append(gone, id)
	}
	// First what goes, so that its name is free.
	for len(gone) > 0 {
		n := min(len(gone), replicateBatch)
		if _, err := r.Apply(ctx, kind, &change[T]{Delete: gone[:n]}); err != nil {
			return err
		}
		gone = gone[n:]
	}
	for _, set := range []struct {
		list   []*T
		create bool
	}{{update, false}, {create, true}} {
		for len(set.list) > 0 {
			n := min(len(set.list), replicateBatch)
			_, err := r.Apply(ctx, kind, &change[T]{Set: set.list[:n], Create: set.create, Prune: true, Replicated: true})
			if err != nil && ctx.Err() == nil {
				err = r.oneByOne(ctx, kind, func(i int) any {
					if i >= n {
						return nil
					}
					return &change[T]{Set: set.list[i : i+1], Create: set.create, Prune: true, Replicated: true}
				})
			}
			if err != nil {
				return err
			}
			set.list = set.list[n:]
		}
	}
	return nil
}

// oneByOne applies commands one after another and returns the first error, after all of them were tried.
func (r *Replicator) oneByOne(ctx context.Context, kind fsm.Kind, command func(i int) any) (first error) {
	for i := 0; ; i++ {
		cmd := command(i)
		if cmd == nil || ctx.Err() != nil {
			return first
		}
		if _, err := r.Apply(ctx, kind, cmd); err != nil && first == nil {
			first = err
		}
	}
}
