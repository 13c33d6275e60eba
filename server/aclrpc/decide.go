package aclrpc

import (
	"context"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/transport"
)

// resources are what rights can be asked about.
var resources = []acl.Resource{
	acl.ACL, acl.Agent, acl.Event, acl.Inten, acl.Key, acl.Keyring, acl.Mesh, acl.Node, acl.Operator, acl.Peering,
	acl.Query, acl.Service, acl.Session,
}

// authorize tells whoever asks what their own token may do.
func (c *Control) authorize(_ context.Context, call *transport.Call, v *state.View, req *access.AuthorizeRequest) (*access.AuthorizeReply, acl.Permit, error) {
	if len(req.Checks) > access.MaxChecks {
		return nil, acl.Permit{}, wireerr.BadRequest("Refusing to process more than %d authorizations at once", access.MaxChecks)
	}
	reply := &access.AuthorizeReply{Checks: make([]access.Check, len(req.Checks))}
	reply.Index = v.ACLIndex()
	z := call.Authorizer
	for i, check := range req.Checks {
		if !slices.Contains(resources, check.Resource) {
			return nil, acl.Permit{}, wireerr.BadRequest("Invalid ACL resource requested: %q", check.Resource)
		}
		a := acl.Access(strings.ToLower(check.Access))
		key := check.Resource == acl.Key
		switch {
		case a == acl.Read, a == acl.Write, a == acl.List && key:
			check.Allow = z.May(check.Resource, a, check.Segment)
		case a == access.WritePrefix && key:
			check.Allow = z.MayPrefix(acl.Key, acl.Write, check.Segment)
		default:
			return nil, acl.Permit{}, wireerr.BadRequest("Invalid access level for %s resource: %s", check.Resource, check.Access)
		}
		reply.Checks[i] = check
	}
	return reply, acl.Open(), nil
}

// replication needs no right.
func (c *Control) replication(context.Context, *transport.Call, *access.ReplicationRequest) (*access.ReplicationStatus, acl.Permit, error) {
	status := c.cfg.Replication()
	return &status, acl.Open(), nil
}

func (c *Control) listTemplates(_ context.Context, call *transport.Call, _ *access.TemplateListRequest) (*access.TemplateListReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &access.TemplateListReply{Templates: acl.Templates()}, permit, nil
}

func (c *Control) readTemplate(_ context.Context, call *transport.Call, req *access.TemplateReadRequest) (*access.TemplateReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	t := acl.TemplateByName(req.Name)
	if t == nil {
		return nil, acl.Permit{}, wireerr.BadRequest("Invalid templated policy Name: %s", req.Name)
	}
	return &access.TemplateReply{Template: t}, permit, nil
}

func (c *Control) previewTemplate(_ context.Context, call *transport.Call, req *access.TemplatePreviewRequest) (*access.PolicyReply, acl.Permit, error) {
	permit, err := mayRead(call)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	t := acl.TemplateByName(req.Name)
	if t == nil {
		return nil, acl.Permit{}, wireerr.BadRequest("templated policy %q does not exist", req.Name)
	}
	p, err := t.Policy(&req.Variables, nil)
	if err != nil {
		return nil, acl.Permit{}, wireerr.BadRequest("validation error for templated policy: %q: %v", req.Name, err)
	}
	return &access.PolicyReply{Policy: p}, permit, nil
}
