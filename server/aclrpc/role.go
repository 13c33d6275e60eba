package aclrpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

func (c *Control) setRole(ctx context.Context, call *transport.Call, req *access.RoleSetRequest) (*access.RoleReply, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !c.primary() {
		return inPrimary(ctx, c, access.RoleSetCall, req)
	}
	r := req.Role
	create := r.ID == ""
	v := call.Store.View()
	if create {
		r.ID = uuid.NewString()
	} else {
		if catalog.CheckUUID(r.ID) != nil {
			return nil, acl.Permit{}, errors.New("Role ID invalid UUID")
		}
		_, old := v.ACLRole(r.ID)
		if old == nil {
			return nil, acl.Permit{}, state.ErrNoRole(r.ID)
		}
		r.ID = old.ID
	}
	if err := r.Normalize(); err != nil {
		return nil, acl.Permit{}, err
	}
	if _, other := v.ACLRoleByName(r.Name); other != nil && other.ID != r.ID {
		return nil, acl.Permit{}, state.ErrRoleName(r.Name)
	}
	if r.Policies, err = policyLinks(v, r.Policies, func(id string) error { return fmt.Errorf("No such policy with ID: %s", id) }); err != nil {
		return nil, acl.Permit{}, err
	}
	stored, err := set(ctx, call, permit, fsm.ACLRoles, &r, create)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &access.RoleReply{Role: call.Store.View().NamedRole(stored)}, permit, nil
}

func (c *Control) deleteRole(ctx context.Context, call *transport.Call, req *access.DeleteRequest) (*struct{}, acl.Permit, error) {
	permit, err := mayWrite(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !c.primary() {
		return inPrimary(ctx, c, access.RoleDeleteCall, req)
	}
	if err := remove(ctx, call, permit, fsm.ACLRoles, "role", &change[acl.Role]{Delete: []string{req.ID}}); err != nil {
		return nil, acl.Permit{}, err
	}
	return nil, permit, nil
}

func (c *Control) readRole(_ context.Context, call *transport.Call, v *state.View, req *access.ReadRequest) (*access.RoleReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &access.RoleReply{}
	if req.ID != "" {
		if err := checkID("role", req.ID); err != nil {
			return nil, acl.Permit{}, err
		}
		reply.Index, reply.Role = v.ACLRole(req.ID)
	} else {
		reply.Index, reply.Role = v.ACLRoleByName(req.Name)
	}
	if reply.Role == nil {
		return nil, acl.Permit{}, errRoleMissing
	}
	reply.Role = v.NamedRole(reply.Role)
	return reply, permit, nil
}

func (c *Control) listRoles(_ context.Context, call *transport.Call, v *state.View, req *access.RoleListRequest) (*access.RoleListReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if req.Policy != "" {
		if err := checkID("policy", req.Policy); err != nil {
			return nil, acl.Permit{}, err
		}
	}
	index, all := v.ACLRoles()
	reply := &access.RoleListReply{Roles: []*acl.Role{}}
	reply.Index = index
	for _, r := range all {
		if req.Policy == "" || linksTo(r.Policies, req.Policy) {
			reply.Roles = append(reply.Roles, v.NamedRole(r))
		}
	}
	return reply, permit, nil
}
