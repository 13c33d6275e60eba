package aclrpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/authmethod"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// Bounds of a login.
const (
	maxBearer = 256 << 10
	maxMeta   = 16 << 10
)

// login needs no right: the proof is what gives some.
func (c *Control) login(ctx context.Context, call *transport.Call, req *access.LoginRequest) (*access.TokenReply, acl.Permit, error) {
	if !c.ownTokens() {
		return nil, acl.Permit{}, errMethodsNeed
	}
	_, m := call.Store.View().ACLAuthMethod(req.AuthMethod)
	if m == nil {
		return nil, acl.Permit{}, state.ErrNoAuthMethod(req.AuthMethod)
	}
	if len(req.BearerToken) > maxBearer {
		return nil, acl.Permit{}, wireerr.BadRequest("Bearer token is larger than %d bytes", maxBearer)
	}
	description, err := describeLogin(req.Meta)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	validator, err := c.methods.Get(m)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	who, err := validator.Login(ctx, req.BearerToken)
	if err != nil {
		return nil, acl.Permit{}, err
	}

	// The rules as they are now: the proof may have taken a while.
	v := call.Store.View()
	bound, err := c.bind(v, m, who)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	now := time.Now()
	k := &acl.Token{
		AccessorID: uuid.NewString(), SecretID: uuid.NewString(), Description: description, AuthMethod: m.Name,
		Local: m.TokenLocality != acl.LocalityGlobal, CreateTime: now,
		ServiceIdentities: bound.ServiceIdentities, NodeIdentities: bound.NodeIdentities, TemplatedPolicies: bound.TemplatedPolicies,
	}
	for _, name := range bound.Policies {
		if _, p := v.ACLPolicyByName(name); p != nil {
			k.Policies = append(k.Policies, acl.Link{ID: p.ID})
		}
	}
	for _, name := range bound.Roles {
		if _, r := v.ACLRoleByName(name); r != nil {
			k.Roles = append(k.Roles, acl.Link{ID: r.ID})
		}
	}
	if len(k.Policies)+len(k.Roles)+len(k.ServiceIdentities)+len(k.NodeIdentities)+len(k.TemplatedPolicies) == 0 {
		return nil, acl.Permit{}, wireerr.ErrPermissionDenied
	}
	if m.MaxTokenTTL > 0 {
		end := now.Add(m.MaxTokenTTL)
		k.ExpirationTime = &end
	}
	if err := k.Normalize(); err != nil {
		return nil, acl.Permit{}, err
	}
	// What it is bound to may be deleted meanwhile; the method may be, too, or changed, and then there is no token.
	done, err := apply(ctx, call, acl.Open(), fsm.ACLTokens, &change[acl.Token]{Set: []*acl.Token{k}, Create: true, Prune: true, Method: m.ModifyIndex})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &access.TokenReply{Token: call.Store.View().Named(done.Set[0])}, acl.Open(), nil
}

// bind returns what the binding rules of a method give somebody: all that select them add up.
func (c *Control) bind(v *state.View, m *acl.AuthMethod, who *authmethod.Identity) (*acl.Bound, error) {
	bound := &acl.Bound{}
	_, rules := v.ACLBindingRules(m.Name)
	for _, r := range rules {
		selected, err := who.Matches(r.Selector)
		if err != nil {
			return nil, fmt.Errorf("binding rule %s: %w", r.ID, err)
		}
		if !selected {
			continue
		}
		if err := r.Bind(who.Variables, c.cfg.Datacenter, bound); err != nil {
			return nil, err
		}
	}
	return bound, nil
}

// describeLogin returns the description of a token made by a login.
func describeLogin(meta map[string]string) (string, error) {
	const text = "token created via login"
	if len(meta) == 0 {
		return text, nil
	}
	data, err := json.Marshal(meta)
	if err != nil {
		return "", err
	}
	if len(data) > maxMeta {
		return "", wireerr.BadRequest("Meta is larger than %d bytes", maxMeta)
	}
	return text + ": " + string(data), nil
}

var errNotLogin = fmt.Errorf("%w: token wasn't created via login", wireerr.ErrPermissionDenied)

// logout needs no right: everybody may give up what a login gave.
func (c *Control) logout(ctx context.Context, call *transport.Call, req *access.LogoutRequest) (*struct{}, acl.Permit, error) {
	if call.Authorizer.Anonymous() {
		return nil, acl.Permit{}, wireerr.Errorf(http.StatusUnauthorized, "Supplied token does not exist")
	}
	v := call.Store.View()
	_, k := ownToken(call, v)
	switch {
	case !c.primary() && (k == nil || !k.Local): // what is here of a global token is a copy
		return inPrimary(ctx, c, access.LogoutCall, req)
	case k == nil:
		return nil, acl.Permit{}, c.notFound(v)
	case k.AuthMethod == "":
		return nil, acl.Permit{}, errNotLogin
	case !c.ownTokens():
		return nil, acl.Permit{}, errMethodsNeed
	}
	done, err := apply(ctx, call, acl.Open(), fsm.ACLTokens, &change[acl.Token]{Delete: []string{k.AccessorID}})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if done.Deleted == 0 {
		return nil, acl.Permit{}, c.notFound(v)
	}
	return nil, acl.Open(), nil
}

var errNoToken = errors.New("the log gave no token")
