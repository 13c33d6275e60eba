package kvrpc

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

func (h *handlers) sessionCreate(ctx context.Context, c *transport.Call, req *kv.SessionCreateRequest) (*kv.SessionCreateReply, acl.Permit, error) {
	if req.Session.Node == "" {
		return nil, acl.Permit{}, errors.New("Must provide Node")
	}
	permit, err := c.Authorizer.Require(acl.Session, acl.Write, req.Session.Node)
	if n := c.Store.View().Node(req.Session.Node); err == nil && n != nil && n.Node != req.Session.Node {
		permit, err = c.Authorizer.Require(acl.Session, acl.Write, n.Node) // as the session will be
	}
	if err != nil {
		return nil, acl.Permit{}, err
	}
	command := kv.SessionCreateRequest{Session: req.Session}
	s := &command.Session
	if err := s.Normalize(h.cfg.MinTTL); err != nil {
		return nil, acl.Permit{}, err
	}
	s.ID = uuid.NewString()
	if _, err := c.Apply(ctx, permit, fsm.SessionCreate, &command); err != nil {
		return nil, acl.Permit{}, applyError("apply failed", err)
	}
	if after := s.ExpiresAfter(); after > 0 {
		h.cfg.TTL.Renew(s.ID, after)
	}
	return &kv.SessionCreateReply{ID: s.ID}, permit, nil
}

func applySessionCreate(tx *state.Tx, req *kv.SessionCreateRequest) (*struct{}, error) {
	if err := tx.CreateSession(&req.Session); err != nil {
		return nil, &refusal{err}
	}
	return nil, nil
}

func (h *handlers) sessionDestroy(ctx context.Context, c *transport.Call, req *kv.SessionDestroyRequest) (*struct{}, acl.Permit, error) {
	_, s := c.Store.View().Session(req.ID)
	if s == nil {
		return &struct{}{}, acl.Open(), nil
	}
	permit, err := c.Authorizer.Require(acl.Session, acl.Write, s.Node)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if _, err := c.Apply(ctx, permit, fsm.SessionDestroy, &kv.SessionDestroyRequest{Target: read.Target{}, ID: req.ID}); err != nil {
		return nil, acl.Permit{}, applyError("apply failed", err)
	}
	h.cfg.TTL.Forget(s.ID)
	return &struct{}{}, permit, nil
}

func applySessionDestroy(tx *state.Tx, req *kv.SessionDestroyRequest) (*struct{}, error) {
	tx.DestroySession(req.ID)
	return nil, nil
}

func (h *handlers) sessionRenew(_ context.Context, c *transport.Call, req *kv.SessionRenewRequest) (*kv.SessionsReply, acl.Permit, error) {
	resp := &kv.SessionsReply{Sessions: []*kv.Session{}}
	index, s := c.Store.View().Session(req.ID)
	resp.Index = index
	if s == nil {
		resp.NotFound = true
		return resp, acl.Open(), nil
	}
	permit, err := c.Authorizer.Require(acl.Session, acl.Write, s.Node)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if after := s.ExpiresAfter(); after > 0 {
		h.cfg.TTL.Renew(s.ID, after)
	}
	resp.Sessions = append(resp.Sessions, s)
	return resp, permit, nil
}

func (h *handlers) sessions(c *transport.Call, v *state.View, req *kv.SessionsRequest) (*kv.SessionsReply, acl.Permit, error) {
	resp := &kv.SessionsReply{}
	var all []*kv.Session
	switch {
	case req.ID != "":
		var s *kv.Session
		if resp.Index, s = v.Session(req.ID); s != nil {
			all = []*kv.Session{s}
		}
		resp.NotFound = s == nil
	case req.Node != "":
		resp.Index, all = v.NodeSessions(req.Node)
	default:
		resp.Index, all = v.Sessions()
	}
	resp.Sessions = make([]*kv.Session, 0, len(all))
	for _, s := range all {
		if c.Authorizer.May(acl.Session, acl.Read, s.Node) {
			resp.Sessions = append(resp.Sessions, s)
		}
	}
	resp.Filtered = len(resp.Sessions) < len(all) && !c.Authorizer.Anonymous()
	return resp, c.Authorizer.Filtering(), nil
}
