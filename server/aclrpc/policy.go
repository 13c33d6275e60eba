package aclrpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

func (c *Control) setPolicy(ctx context.Context, call *transport.Call, req *access.PolicySetRequest) (*access.PolicyReply, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !c.primary() {
		return inPrimary(ctx, c, access.PolicySetCall, req)
	}
	p := req.Policy
	if len(p.Datacenters) == 0 {
		p.Datacenters = nil
	}
	create := p.ID == ""
	v := call.Store.View()
	var old *acl.Policy
	if create {
		p.ID = uuid.NewString()
	} else {
		if catalog.CheckUUID(p.ID) != nil {
			return nil, acl.Permit{}, errors.New("Policy ID invalid UUID")
		}
		if _, old = v.ACLPolicy(p.ID); old == nil {
			return nil, acl.Permit{}, state.ErrNoPolicy(p.ID)
		}
		p.ID = old.ID
	}
	if err := p.Check(old); err != nil {
		return nil, acl.Permit{}, err
	}
	if _, other := v.ACLPolicyByName(p.Name); other != nil && other.ID != p.ID {
		return nil, acl.Permit{}, state.ErrPolicyName(p.Name)
	}
	stored, err := set(ctx, call, permit, fsm.ACLPolicies, &p, create)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &access.PolicyReply{Policy: stored}, permit, nil
}

func (c *Control) deletePolicy(ctx context.Context, call *transport.Call, req *access.DeleteRequest) (*struct{}, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !c.primary() {
		return inPrimary(ctx, c, access.PolicyDeleteCall, req)
	}
	if p := acl.BuiltInPolicy(strings.ToLower(req.ID)); p != nil {
		return nil, acl.Permit{}, fmt.Errorf("Delete operation not permitted on the builtin %s policy", p.Name)
	}
	if err := remove(ctx, call, permit, fsm.ACLPolicies, "policy", &change[acl.Policy]{Delete: []string{req.ID}}); err != nil {
		return nil, acl.Permit{}, err
	}
	return nil, permit, nil
}

func (c *Control) readPolicy(_ context.Context, call *transport.Call, v *state.View, req *access.ReadRequest) (*access.PolicyReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &access.PolicyReply{}
	if req.ID != "" {
		if err := checkID("policy", req.ID); err != nil {
			return nil, acl.Permit{}, err
		}
		reply.Index, reply.Policy = v.ACLPolicy(req.ID)
	} else {
		reply.Index, reply.Policy = v.ACLPolicyByName(req.Name)
	}
	if reply.Policy == nil {
		return nil, acl.Permit{}, errPolicyMissing
	}
	return reply, permit, nil
}

func (c *Control) listPolicies(_ context.Context, call *transport.Call, v *state.View, _ *access.ListRequest) (*access.PolicyListReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &access.PolicyListReply{}
	reply.Index, reply.Policies = v.ACLPolicies()
	return reply, permit, nil
}

// linksTo reports whether a link with this ID is among them.
func linksTo(links []acl.Link, id string) bool {
	return slices.ContainsFunc(links, func(l acl.Link) bool { return strings.EqualFold(l.ID, id) })
}
