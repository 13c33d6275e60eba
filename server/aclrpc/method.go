package aclrpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/authmethod"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// checkTimeout bounds how long the outside is waited for that a method to be written names.
const checkTimeout = 15 * time.Second

func (c *Control) setMethod(ctx context.Context, call *transport.Call, req *access.AuthMethodSetRequest) (*access.AuthMethodReply, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !c.ownTokens() {
		return nil, acl.Permit{}, errMethodsNeed
	}
	m := req.AuthMethod
	if err := acl.CheckMethodName(m.Name); err != nil {
		return nil, acl.Permit{}, err
	}
	if _, old := call.Store.View().ACLAuthMethod(m.Name); old != nil {
		if m.Type == "" {
			m.Type = old.Type
		}
		if m.Type != old.Type {
			return nil, acl.Permit{}, state.ErrMethodType
		}
		m.Name = old.Name
	}
	if err := m.Check(); err != nil {
		return nil, acl.Permit{}, err
	}
	if m.TokenLocality == acl.LocalityGlobal && !c.primary() {
		return nil, acl.Permit{}, errors.New("creating global tokens via auth methods is only permitted in the primary datacenter")
	}
	if catalog.TooDeep(m.Config) {
		return nil, acl.Permit{}, errors.New("Invalid Auth Method: error decoding config: settings are nested too deeply")
	}
	checking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if _, err := authmethod.New(checking, &m, c.cfg.Methods); err != nil {
		return nil, acl.Permit{}, fmt.Errorf("Invalid Auth Method: %w", err)
	}
	stored, err := set(ctx, call, permit, fsm.ACLAuthMethods, &m, false)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &access.AuthMethodReply{AuthMethod: stored}, permit, nil
}

func (c *Control) deleteMethod(ctx context.Context, call *transport.Call, req *access.DeleteRequest) (*struct{}, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !c.ownTokens() {
		return nil, acl.Permit{}, errMethodsNeed
	}
	_, m := call.Store.View().ACLAuthMethod(req.ID)
	if err := remove(ctx, call, permit, fsm.ACLAuthMethods, "auth method", &change[acl.AuthMethod]{Delete: []string{req.ID}, KeepGlobal: !c.primary()}); err != nil {
		return nil, acl.Permit{}, err
	}
	if m != nil {
		c.methods.Forget(m.Name)
	}
	return nil, permit, nil
}

func (c *Control) readMethod(_ context.Context, call *transport.Call, v *state.View, req *access.ReadRequest) (*access.AuthMethodReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &access.AuthMethodReply{}
	if reply.Index, reply.AuthMethod = v.ACLAuthMethod(req.Name); reply.AuthMethod == nil {
		return nil, acl.Permit{}, errMethodMissing
	}
	if !call.Authorizer.May(acl.ACL, acl.Write, "") {
		reply.AuthMethod = authmethod.Redact(reply.AuthMethod)
	}
	return reply, permit, nil
}

func (c *Control) listMethods(_ context.Context, call *transport.Call, v *state.View, _ *access.ListRequest) (*access.AuthMethodListReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	index, all := v.ACLAuthMethods()
	reply := &access.AuthMethodListReply{AuthMethods: []*acl.AuthMethod{}}
	reply.Index = index
	for _, m := range all {
		shown := *m
		shown.Config = nil
		reply.AuthMethods = append(reply.AuthMethods, &shown)
	}
	return reply, permit, nil
}

func (c *Control) setRule(ctx context.Context, call *transport.Call, req *access.BindingRuleSetRequest) (*access.BindingRuleReply, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !c.ownTokens() {
		return nil, acl.Permit{}, errMethodsNeed
	}
	r := req.BindingRule
	create := r.ID == ""
	v := call.Store.View()
	if create {
		r.ID = uuid.NewString()
	} else {
		if catalog.CheckUUID(r.ID) != nil {
			return nil, acl.Permit{}, errors.New("Binding Rule ID invalid UUID")
		}
		_, old := v.ACLBindingRule(r.ID)
		switch {
		case old == nil:
			return nil, acl.Permit{}, state.ErrNoBindingRule(r.ID)
		case r.AuthMethod == "":
			r.AuthMethod = old.AuthMethod
		case r.AuthMethod != old.AuthMethod:
			return nil, acl.Permit{}, acl.ErrRuleMethod
		}
		r.ID = old.ID
	}
	if err := checkRule(v, &r); err != nil {
		return nil, acl.Permit{}, err
	}
	stored, err := set(ctx, call, permit, fsm.ACLBindingRules, &r, create)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &access.BindingRuleReply{BindingRule: stored}, permit, nil
}

// checkRule checks a binding rule against what its method knows.
func checkRule(v *state.View, r *acl.BindingRule) error {
	var blank *authmethod.Identity
	if r.AuthMethod != "" {
		_, m := v.ACLAuthMethod(r.AuthMethod)
		if m == nil {
			return fmt.Errorf("cannot find auth method with name %q", r.AuthMethod)
		}
		var err error
		if blank, err = authmethod.Blank(m); err != nil {
			return fmt.Errorf("Invalid Auth Method: %w", err)
		}
		if _, err := blank.Matches(r.Selector); err != nil {
			return fmt.Errorf("invalid Binding Rule: Selector is invalid: %w", err)
		}
		return r.Check(slices.Sorted(maps.Keys(blank.Variables)))
	}
	return r.Check(nil)
}

func (c *Control) deleteRule(ctx context.Context, call *transport.Call, req *access.DeleteRequest) (*struct{}, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !c.ownTokens() {
		return nil, acl.Permit{}, errMethodsNeed
	}
	if err := remove(ctx, call, permit, fsm.ACLBindingRules, "binding rule", &change[acl.BindingRule]{Delete: []string{req.ID}}); err != nil {
		return nil, acl.Permit{}, err
	}
	return nil, permit, nil
}

func (c *Control) readRule(_ context.Context, call *transport.Call, v *state.View, req *access.ReadRequest) (*access.BindingRuleReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if err := checkID("binding rule", req.ID); err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &access.BindingRuleReply{}
	if reply.Index, reply.BindingRule = v.ACLBindingRule(req.ID); reply.BindingRule == nil {
		return nil, acl.Permit{}, errRuleMissing
	}
	return reply, permit, nil
}

func (c *Control) listRules(_ context.Context, call *transport.Call, v *state.View, req *access.BindingRuleListRequest) (*access.BindingRuleListReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &access.BindingRuleListReply{}
	if reply.Index, reply.BindingRules = v.ACLBindingRules(req.AuthMethod); reply.BindingRules == nil {
		reply.BindingRules = []*acl.BindingRule{}
	}
	return reply, permit, nil
}
