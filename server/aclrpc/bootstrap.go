package aclrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// resetFile allows another bootstrap: it holds the index that the refusal of one names.
const resetFile = "acl-bootstrap-reset"

// bootstrap needs no right: it is how the first token is made, once.
func (c *Control) bootstrap(ctx context.Context, call *transport.Call, req *access.BootstrapRequest) (*access.TokenReply, acl.Permit, error) {
	if !c.primary() {
		return inPrimary(ctx, c, access.BootstrapCall, req)
	}
	write := func(ctx context.Context, kind fsm.Kind, command any) (any, error) {
		return call.Apply(ctx, acl.Open(), kind, command)
	}
	v := call.Store.View()
	var reset uint64
	if at := v.ACLBootstrapped(); at != 0 {
		given := c.resetIndex()
		switch {
		case given == 0:
			return nil, acl.Permit{}, state.ErrBootstrapped(at)
		case given != at:
			return nil, acl.Permit{}, fmt.Errorf("Invalid bootstrap reset index (specified %d, reset index: %d)", given, at)
		}
		reset = at
	}
	secret := req.Secret
	if secret != "" {
		if catalog.CheckUUID(secret) != nil {
			return nil, acl.Permit{}, errors.New("Invalid Token: SecretID - not a valid UUID")
		}
		var err error
		if secret, err = chooseID(v, "SecretID", secret); err != nil {
			return nil, acl.Permit{}, err
		}
	} else {
		secret = uuid.NewString()
	}
	if err := c.setBuiltIn(ctx, v, write); err != nil {
		return nil, acl.Permit{}, err
	}
	k := acl.ManagementToken(uuid.NewString(), secret, "Bootstrap Token (Global Management)", time.Now())
	reply, err := write(ctx, fsm.ACLBootstrap, &bootstrapCommand{Token: k, Reset: reset})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if reset != 0 {
		if err := os.Remove(filepath.Join(c.cfg.DataDir, resetFile)); err != nil {
			// The index in it is no longer that of the last time: it allows nothing.
			c.log.Warn("cannot remove the file that allowed another ACL bootstrap", "error", err)
		}
		c.log.Warn("ACL bootstrap was reset: another management token was made")
	}
	stored, ok := reply.(*acl.Token)
	if !ok {
		return nil, acl.Permit{}, errNoToken
	}
	return &access.TokenReply{Token: call.Store.View().Named(stored)}, acl.Open(), nil
}

// resetIndex returns the number in the reset file, 0 when there is none.
func (c *Control) resetIndex() uint64 {
	if c.cfg.DataDir == "" {
		return 0
	}
	f, err := os.Open(filepath.Join(c.cfg.DataDir, resetFile))
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.log.Warn("cannot read the file that allows another ACL bootstrap", "error", err)
		}
		return 0
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		c.log.Warn("cannot read the file that allows another ACL bootstrap", "error", err)
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		c.log.Warn("the file that allows another ACL bootstrap holds no number", "file", resetFile)
		return 0
	}
	return n
}

// An applyFunc writes a command to the log.
type applyFunc = func(ctx context.Context, k fsm.Kind, req any) (any, error)

// Initialize makes what every cluster has: the built-in policies and the anonymous token; and in a new one the token
// that the configuration tells. It is for the leader.
func (c *Control) Initialize(ctx context.Context, store *state.Store, write applyFunc) error {
	if !c.cfg.Enabled {
		return nil
	}
	if !c.primary() {
		return nil // they come from there
	}
	v := store.View()
	if err := c.setBuiltIn(ctx, v, write); err != nil {
		return err
	}
	if _, k := v.ACLToken(acl.AnonymousID); k == nil {
		k := acl.AnonymousToken(time.Now())
		if _, err := write(ctx, fsm.ACLTokens, &change[acl.Token]{Set: []*acl.Token{k}, Create: true}); err != nil {
			return fmt.Errorf("make the anonymous token: %w", err)
		}
		c.log.Info("made the anonymous token")
	}
	if err := c.setInitial(ctx, v, write); err != nil {
		return err
	}
	c.resolved.begin.Do(func() { close(c.resolved.begun) })
	return nil
}

// setInitial makes the token that the configuration tells, in a cluster that has had no first token yet.
func (c *Control) setInitial(ctx context.Context, v *state.View, write applyFunc) error {
	secret := c.cfg.InitialManagement
	if secret == "" || v.ACLTokenBySecret(state.HashSecret(secret)) != nil {
		return nil
	}
	if v.ACLBootstrapped() != 0 {
		c.log.Warn("the configured initial management token is not made: ACLs are bootstrapped, and it is not among the tokens")
		return nil
	}
	if catalog.CheckUUID(secret) != nil {
		c.log.Warn("the configured initial management token is no UUID")
	}
	if secret == Allow || secret == Deny || secret == "manage" {
		c.log.Error("the configured initial management token is a word that cannot be a token")
		return nil
	}
	k := acl.ManagementToken(uuid.NewString(), secret, "Initial Management Token", time.Now())
	if _, err := write(ctx, fsm.ACLBootstrap, &bootstrapCommand{Token: k}); err != nil {
		return fmt.Errorf("make the initial management token: %w", err)
	}
	c.log.Info("made the initial management token", "accessor", k.AccessorID)
	return nil
}

// setBuiltIn makes the built-in policies, and gives those of an older version their present rules.
func (c *Control) setBuiltIn(ctx context.Context, v *state.View, write applyFunc) error {
	for _, p := range acl.BuiltInPolicies() {
		_, old := v.ACLPolicy(p.ID)
		if old != nil {
			if old.Rules == p.Rules {
				continue
			}
			p.Name, p.Description = old.Name, old.Description
		}
		if _, err := write(ctx, fsm.ACLPolicies, &change[acl.Policy]{Set: []*acl.Policy{p}, Create: old == nil}); err != nil {
			return fmt.Errorf("make the policy %s: %w", p.Name, err)
		}
	}
	return nil
}

// reapBatch bounds how many tokens one command deletes.
const reapBatch = 256

// Reap deletes the tokens that have expired: those of this datacenter, and in the primary one the global ones. It is for
// the leader.
func (c *Control) Reap(ctx context.Context, store *state.Store, write applyFunc) error {
	if !c.cfg.Enabled {
		return nil
	}
	for _, local := range []bool{true, false} {
		if !local && !c.primary() {
			continue
		}
		for {
			now := time.Now()
			ids := store.View().ExpiredACLTokens(local, now, reapBatch)
			if len(ids) == 0 {
				break
			}
			if _, err := write(ctx, fsm.ACLTokens, &change[acl.Token]{Delete: ids, Expired: now}); err != nil {
				return fmt.Errorf("delete expired tokens: %w", err)
			}
			c.log.Debug("deleted expired tokens", "count", len(ids))
		}
	}
	return nil
}
