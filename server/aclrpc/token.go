package aclrpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

func (c *Control) setToken(ctx context.Context, call *transport.Call, req *access.TokenSetRequest) (*access.TokenReply, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	k := req.Token
	v, now := call.Store.View(), time.Now()
	if req.Create {
		if elsewhere, err := c.locality(k.Local); err != nil {
			return nil, acl.Permit{}, err
		} else if elsewhere {
			return inPrimary(ctx, c, access.TokenSetCall, req)
		}
		if k.AuthMethod != "" {
			return nil, acl.Permit{}, errors.New("AuthMethod field is disallowed outside of login")
		}
		if k.ExpirationTime, err = acl.Expiry(now, req.TTL, k.ExpirationTime); err != nil {
			return nil, acl.Permit{}, err
		}
		k.CreateTime = now
	} else {
		if catalog.CheckUUID(k.AccessorID) != nil {
			return nil, acl.Permit{}, errAccessorUUID
		}
		old := c.live(v, k.AccessorID)
		if !c.primary() && (old == nil || !old.Local) {
			return inPrimary(ctx, c, access.TokenSetCall, req)
		}
		if err := keepFixed(&k, req.TTL, old); err != nil {
			return nil, acl.Permit{}, err
		}
	}
	return c.writeToken(ctx, call, permit, v, k, req.Create)
}

// locality tells whether a token of this locality is to be made in the primary datacenter.
func (c *Control) locality(local bool) (elsewhere bool, err error) {
	if local && !c.ownTokens() {
		return false, errLocalTokens
	}
	return !local && !c.primary(), nil
}

// live returns the token with this accessor ID, nil when there is none that has not expired.
func (c *Control) live(v *state.View, accessor string) *acl.Token {
	_, k := v.ACLToken(accessor)
	if k == nil || k.Expired(time.Now()) {
		return nil
	}
	return k
}

// keepFixed checks that an update changes nothing that cannot change, and fills that in.
func keepFixed(k *acl.Token, ttl time.Duration, old *acl.Token) error {
	switch {
	case old == nil:
		return fmt.Errorf("Cannot find token %q", k.AccessorID)
	case k.SecretID != "" && k.SecretID != old.SecretID:
		return errors.New("Changing a token's SecretID is not permitted")
	case k.Local != old.Local:
		return fmt.Errorf("Cannot toggle local mode of %s", k.AccessorID)
	case k.AuthMethod != "" && k.AuthMethod != old.AuthMethod:
		return fmt.Errorf("Cannot change AuthMethod of %s", k.AccessorID)
	case ttl != 0 || k.ExpirationTime != nil && !k.ExpirationTime.IsZero() && (old.ExpirationTime == nil || !k.ExpirationTime.Equal(*old.ExpirationTime)):
		return fmt.Errorf("Cannot change expiration time of %s", k.AccessorID)
	}
	k.AccessorID, k.SecretID, k.AuthMethod = old.AccessorID, old.SecretID, old.AuthMethod
	k.ExpirationTime, k.CreateTime = old.ExpirationTime, old.CreateTime
	return nil
}

// writeToken completes a token that the caller may write, and writes it.
func (c *Control) writeToken(ctx context.Context, call *transport.Call, permit acl.Permit, v *state.View, k acl.Token, create bool) (*access.TokenReply, acl.Permit, error) {
	var err error
	if create {
		if k.AccessorID, err = chooseID(v, "AccessorID", k.AccessorID); err != nil {
			return nil, acl.Permit{}, err
		}
		if k.SecretID, err = chooseID(v, "SecretID", k.SecretID); err != nil {
			return nil, acl.Permit{}, err
		}
		if k.AccessorID == k.SecretID {
			return nil, acl.Permit{}, errors.New("Invalid Token: SecretID is already in use")
		}
	}
	if k.Policies, err = policyLinks(v, k.Policies, func(id string) error { return fmt.Errorf("No such ACL policy with ID %q", id) }); err != nil {
		return nil, acl.Permit{}, err
	}
	if k.Roles, err = roleLinks(v, k.Roles); err != nil {
		return nil, acl.Permit{}, err
	}
	if err := k.Normalize(); err != nil {
		return nil, acl.Permit{}, err
	}
	stored, err := set(ctx, call, permit, fsm.ACLTokens, &k, create)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &access.TokenReply{Token: call.Store.View().Named(stored)}, permit, nil
}

// chooseID checks an ID of a new token, and makes one when it is empty.
func chooseID(v *state.View, field, id string) (string, error) {
	if id == "" {
		return uuid.NewString(), nil
	}
	if catalog.CheckUUID(id) != nil {
		return "", fmt.Errorf("Invalid Token: %s - not a valid UUID", field)
	}
	if acl.ReservedID(id) {
		return "", fmt.Errorf("Invalid Token: %s - UUIDs with the prefix %q are reserved", field, acl.ReservedPrefix)
	}
	if _, k := v.ACLToken(id); k != nil || v.ACLTokenBySecret(state.HashSecret(id)) != nil {
		return "", fmt.Errorf("Invalid Token: %s is already in use", field)
	}
	return id, nil
}

// policyLinks turns links by ID or name into links by ID.
func policyLinks(v *state.View, links []acl.Link, missing func(id string) error) ([]acl.Link, error) {
	return byID(links, func(l acl.Link) (string, error) {
		if l.ID != "" {
			_, p := v.ACLPolicy(l.ID)
			if p == nil {
				return "", missing(l.ID)
			}
			return p.ID, nil
		}
		_, p := v.ACLPolicyByName(l.Name)
		if p == nil {
			return "", fmt.Errorf("No such ACL policy with name %q", l.Name)
		}
		return p.ID, nil
	})
}

func roleLinks(v *state.View, links []acl.Link) ([]acl.Link, error) {
	return byID(links, func(l acl.Link) (string, error) {
		if l.ID != "" {
			_, r := v.ACLRole(l.ID)
			if r == nil {
				return "", fmt.Errorf("No such ACL role with ID %q", l.ID)
			}
			return r.ID, nil
		}
		_, r := v.ACLRoleByName(l.Name)
		if r == nil {
			return "", fmt.Errorf("No such ACL role with name %q", l.Name)
		}
		return r.ID, nil
	})
}

func byID(links []acl.Link, find func(acl.Link) (string, error)) ([]acl.Link, error) {
	var out []acl.Link
	for _, l := range links {
		id, err := find(l)
		if err != nil {
			return nil, err
		}
		if link := (acl.Link{ID: id}); !slices.Contains(out, link) {
			out = append(out, link)
		}
	}
	return out, nil
}

func (c *Control) cloneToken(ctx context.Context, call *transport.Call, req *access.TokenCloneRequest) (*access.TokenReply, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if catalog.CheckUUID(req.AccessorID) != nil {
		return nil, acl.Permit{}, errAccessorUUID
	}
	v, now := call.Store.View(), time.Now()
	of := c.live(v, req.AccessorID)
	switch {
	case !c.primary() && (of == nil || !of.Local):
		return inPrimary(ctx, c, access.TokenCloneCall, req)
	case of == nil:
		return nil, acl.Permit{}, errTokenMissing
	case of.AuthMethod != "":
		return nil, acl.Permit{}, errors.New("Cannot clone a token created from an auth method")
	}
	k := *of
	k.AccessorID, k.SecretID, k.CreateTime = "", "", now
	if req.Description != "" {
		k.Description = req.Description
	}
	if k.ExpirationTime, err = acl.Expiry(now, 0, of.ExpirationTime); err != nil {
		return nil, acl.Permit{}, err
	}
	return c.writeToken(ctx, call, permit, v, k, true)
}

func (c *Control) deleteToken(ctx context.Context, call *transport.Call, req *access.DeleteRequest) (*struct{}, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if catalog.CheckUUID(req.ID) != nil {
		return nil, acl.Permit{}, errDeleteUUID
	}
	if req.ID == acl.AnonymousID {
		return nil, acl.Permit{}, errors.New("Delete operation not permitted on the anonymous token")
	}
	_, k := call.Store.View().ACLToken(req.ID)
	switch {
	case k != nil && k.AccessorID == call.Authorizer.Accessor():
		return nil, acl.Permit{}, errors.New("Deletion of the request's authorization token is not permitted")
	case !c.primary() && (k == nil || !k.Local):
		return inPrimary(ctx, c, access.TokenDeleteCall, req)
	}
	if err := remove(ctx, call, permit, fsm.ACLTokens, "token", &change[acl.Token]{Delete: []string{req.ID}}); err != nil {
		return nil, acl.Permit{}, err
	}
	return nil, permit, nil
}

// shownTo returns a token as a caller may see it.
func shownTo(call *transport.Call, v *state.View, k *acl.Token) *acl.Token {
	k = v.Named(k)
	if !call.Authorizer.May(acl.ACL, acl.Write, "") {
		return k.Redact()
	}
	return k
}

func (c *Control) readToken(ctx context.Context, call *transport.Call, v *state.View, req *access.TokenReadRequest) (*access.TokenReply, acl.Permit, error) {
	reply := &access.TokenReply{}
	permit := acl.Open() // one's own
	var k *acl.Token
	if req.Self {
		if call.Authorizer.Anonymous() {
			return nil, acl.Permit{}, errTokenMissing
		}
		if reply.Index, k = ownToken(call, v); k == nil {
			if !c.primary() {
				return inPrimary(ctx, c, access.TokenReadCall, req)
			}
			return nil, acl.Permit{}, errTokenMissing
		}
		reply.Token = v.Named(k)
	} else {
		var err error
		if permit, err = mayRead(call); err != nil {
			return nil, acl.Permit{}, err
		}
		if err := checkID("token", req.AccessorID); err != nil {
			return nil, acl.Permit{}, err
		}
		if reply.Index, k = v.ACLToken(req.AccessorID); k == nil || k.Expired(time.Now()) {
			if !c.ownTokens() {
				return inPrimary(ctx, c, access.TokenReadCall, req)
			}
			return nil, acl.Permit{}, errTokenMissing
		}
		reply.Token = shownTo(call, v, k)
	}
	if req.Expanded {
		policies, err := policiesOf(v, k, c.cfg.Datacenter)
		if err != nil {
			return nil, acl.Permit{}, err
		}
		reply.Expanded = &access.Expanded{
			Policies: policies, DefaultPolicy: c.cfg.DefaultPolicy, DownPolicy: c.cfg.DownPolicy, Node: c.cfg.Node,
		}
		for _, r := range rolesOf(v, k) {
			reply.Expanded.Roles = append(reply.Expanded.Roles, v.NamedRole(r))
		}
	}
	return reply, permit, nil
}

func (c *Control) listTokens(ctx context.Context, call *transport.Call, v *state.View, req *access.TokenListRequest) (*access.TokenListReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	given := 0
	for _, by := range []string{req.Policy, req.Role, req.AuthMethod, req.ServiceName} {
		if by != "" {
			given++
		}
	}
	if given > 1 {
		return nil, acl.Permit{}, errors.New("can only filter by one of policy, role, auth method and service name at a time")
	}
	for what, id := range map[string]string{"policy": req.Policy, "role": req.Role} {
		if id != "" {
			if err := checkID(what, id); err != nil {
				return nil, acl.Permit{}, err
			}
		}
	}
	if !c.ownTokens() {
		return inPrimary(ctx, c, access.TokenListCall, req)
	}
	now := time.Now()
	index, all := v.ACLTokens()
	reply := &access.TokenListReply{Tokens: []*acl.Token{}}
	reply.Index = index
	for _, k := range all {
		if k.Expired(now) || !fits(k, req) {
			continue
		}
		reply.Tokens = append(reply.Tokens, shownTo(call, v, k))
	}
	return reply, permit, nil
}

// fits reports whether a token is among those that a list asks for.
func fits(k *acl.Token, req *access.TokenListRequest) bool {
	switch {
	case req.GlobalOnly && k.Local:
		return false
	case req.Policy != "" && !linksTo(k.Policies, req.Policy):
		return false
	case req.Role != "" && !linksTo(k.Roles, req.Role):
		return false
	case req.AuthMethod != "" && k.AuthMethod != req.AuthMethod:
		return false
	}
	return req.ServiceName == "" || slices.ContainsFunc(k.ServiceIdentities, func(s acl.ServiceIdentity) bool { return s.ServiceName == req.ServiceName })
}
