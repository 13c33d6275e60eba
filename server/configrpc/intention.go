package configrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/transport"
)

// enabled returns the error for calls about the mesh when there is none.
func (h *handlers) enabled() error {
	if h.cfg.ConnectDisabled {
		return wireerr.ErrConnectDisabled
	}
	return nil
}

func (h *handlers) intentions(c *transport.Call, v *state.View, req *intention.ListRequest) (*intention.ListReply, acl.Permit, error) {
	if err := h.enabled(); err != nil {
		return nil, acl.Permit{}, err
	}
	keep, err := filter.Compile[*intention.Intention](req.Filter)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &intention.ListReply{Intentions: []*intention.Intention{}}
	index, entries := v.Intentions()
	reply.Index = index
	for _, e := range entries {
		for _, n := range intention.FromEntry(e) {
			if !MayReadIntention(c.Authorizer, n) {
				reply.Filtered = !c.Authorizer.Anonymous()
				continue
			}
			if keep.Match(n) {
				reply.Intentions = append(reply.Intentions, n)
			}
		}
	}
	intention.Sort(reply.Intentions)
	return reply, c.Authorizer.Filtering(), nil
}

// MayReadIntention reports whether a token may see an intention.
func MayReadIntention(z *acl.Authorizer, n *intention.Intention) bool {
	_, err := mayRead(z, n)
	return err == nil
}

// mayRead asks for the right to see an intention, on its source or its destination; the refusal tells no more.
func mayRead(z *acl.Authorizer, n *intention.Intention) (acl.Permit, error) {
	permit, err := z.Require(acl.Inten, acl.Read, n.DestinationName)
	if err != nil && n.SourcePeer == "" {
		permit, err = z.Require(acl.Inten, acl.Read, n.SourceName)
	}
	if err != nil {
		return acl.Permit{}, wireerr.ErrPermissionDenied
	}
	return permit, nil
}

func (h *handlers) intention(c *transport.Call, v *state.View, req *intention.GetRequest) (*intention.GetReply, acl.Permit, error) {
	if err := h.enabled(); err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &intention.GetReply{}
	var e *entry.ServiceIntentions
	fits := func(n *intention.Intention) bool { return n.SourceName == req.Source && n.SourcePeer == req.SourcePeer }
	if req.ID != "" {
		if err := catalog.CheckUUID(req.ID); err != nil {
			return nil, acl.Permit{}, wireerr.BadRequest("Failed intention lookup: index error: UUID: %v", err)
		}
		reply.Index, _ = v.Intentions()
		e = legacyEntry(v, req.ID)
		fits = func(n *intention.Intention) bool { return n.ID == req.ID }
	} else {
		e = state.EntryAs[entry.ServiceIntentions](v, entry.KindServiceIntentions, req.Destination)
		reply.Index = v.EntriesGone(entry.KindServiceIntentions)
		if e != nil {
			reply.Index = max(reply.Index, e.ModifyIndex)
		}
	}
	for _, n := range intention.FromEntry(e) {
		if !fits(n) {
			continue
		}
		permit, err := mayRead(c.Authorizer, n)
		if err != nil {
			return nil, acl.Permit{}, err
		}
		reply.Intention = n
		return reply, permit, nil
	}
	reply.NotFound = true
	if req.ID != "" {
		return reply, acl.Open(), nil
	}
	permit, err := mayRead(c.Authorizer, &intention.Intention{SourceName: req.Source, SourcePeer: req.SourcePeer, DestinationName: req.Destination})
	return reply, permit, err
}

func (h *handlers) match(c *transport.Call, v *state.View, req *intention.MatchRequest) (*intention.MatchReply, acl.Permit, error) {
	if err := h.enabled(); err != nil {
		return nil, acl.Permit{}, err
	}
	permit := acl.Open() // of no names
	for _, name := range req.Names {
		var err error
		if permit, err = c.Authorizer.Require(acl.Inten, acl.Read, name); err != nil {
			return nil, acl.Permit{}, err
		}
	}
	reply := &intention.MatchReply{Matches: [][]*intention.Intention{}}
	for _, name := range req.Names {
		if req.By == intention.BySource {
			index, entries := v.Intentions()
			reply.Index = max(reply.Index, index)
			reply.Matches = append(reply.Matches, intention.From(name, entries))
			continue
		}
		index, own, all := v.IntentionsTo(name)
		reply.Index = max(reply.Index, index)
		list := intention.To(own, all)
		if list == nil {
			list = []*intention.Intention{}
		}
		reply.Matches = append(reply.Matches, list)
	}
	return reply, permit, nil
}

func (h *handlers) check(c *transport.Call, v *state.View, req *intention.CheckRequest) (*intention.CheckReply, acl.Permit, error) {
	if err := h.enabled(); err != nil {
		return nil, acl.Permit{}, err
	}
	permit, err := c.Authorizer.Require(acl.Service, acl.Read, req.Destination)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	def := intention.Default{Allow: !h.cfg.DefaultDeny}
	policy := req.DefaultPolicy
	if policy == "" {
		policy = h.cfg.IntentionPolicy
	}
	if policy != "" {
		def = intention.Default{Allow: policy == entry.Allow, Explicit: true}
	}
	index, own, all := v.IntentionsTo(req.Destination)
	d := intention.Decide(intention.To(own, all), req.Source, req.SourcePeer, def)
	reply := &intention.CheckReply{Allowed: d.Allowed, Reason: d.Reason}
	reply.Index = index
	return reply, permit, nil
}

// mayWrite asks for the right to change the intentions of a destination; the refusal tells no more.
func mayWrite(z *acl.Authorizer, destination string) (acl.Permit, error) {
	permit, err := z.Require(acl.Inten, acl.Write, destination)
	if err != nil {
		return acl.Permit{}, wireerr.ErrPermissionDenied
	}
	return permit, nil
}

func (h *handlers) upsert(ctx context.Context, c *transport.Call, req *intention.UpsertRequest) (*struct{}, acl.Permit, error) {
	if h.cfg.Primary != nil {
		return inPrimary(ctx, h, intention.UpsertCall, req)
	}
	if err := h.enabled(); err != nil {
		return nil, acl.Permit{}, err
	}
	permit, err := mayWrite(c.Authorizer, req.Destination)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	source := req.Source
	source.LegacyID, source.LegacyMeta, source.LegacyCreateTime, source.LegacyUpdateTime = "", nil, nil, nil
	// What is wrong with this source is told as if it were the only one.
	alone := &entry.ServiceIntentions{}
	alone.Kind, alone.Name, alone.Sources = entry.KindServiceIntentions, req.Destination, []*entry.IntentionSource{&source}
	copied, err := entry.Copy(alone)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	copied.Normalize()
	if err := entry.CheckHeader(copied); err != nil {
		return nil, acl.Permit{}, err
	}
	if err := copied.Validate(); err != nil {
		return nil, acl.Permit{}, err
	}
	_, err = h.commit(ctx, c, permit, &command{
		Op: opSetSource, Kind: entry.KindServiceIntentions, Name: req.Destination, Meta: req.Meta,
		Source: copied.(*entry.ServiceIntentions).Sources[0],
	})
	return &struct{}{}, permit, err
}

func (h *handlers) remove(ctx context.Context, c *transport.Call, req *intention.RemoveRequest) (*struct{}, acl.Permit, error) {
	if h.cfg.Primary != nil {
		return inPrimary(ctx, h, intention.RemoveCall, req)
	}
	if err := h.enabled(); err != nil {
		return nil, acl.Permit{}, err
	}
	permit, err := mayWrite(c.Authorizer, req.Destination)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	_, err = h.commit(ctx, c, permit, &command{
		Op: opDeleteSource, Kind: entry.KindServiceIntentions, Name: req.Destination,
		Source: &entry.IntentionSource{Name: req.Source, Peer: req.SourcePeer},
	})
	return &struct{}{}, permit, err
}

func (h *handlers) legacy(ctx context.Context, c *transport.Call, req *intention.LegacyRequest) (*intention.LegacyReply, acl.Permit, error) {
	if h.cfg.Primary != nil {
		return inPrimary(ctx, h, intention.LegacyCall, req)
	}
	if err := h.enabled(); err != nil {
		return nil, acl.Permit{}, err
	}
	n := req.Intention
	var permit acl.Permit
	now := time.Now().UTC()
	switch req.Op {
	case intention.LegacyCreate:
		if n.ID != "" {
			return nil, acl.Permit{}, errors.New("ID must be empty when creating a new intention")
		}
		id, err := uuid.NewRandomFromReader(h.cfg.Random)
		if err != nil {
			return nil, acl.Permit{}, err
		}
		n.ID = id.String()
	case intention.LegacyUpdate, intention.LegacyDelete:
		if err := catalog.CheckUUID(n.ID); err != nil {
			return nil, acl.Permit{}, wireerr.BadRequest("Failed intention lookup: index error: UUID: %v", err)
		}
		e := legacyEntry(c.Store.View(), n.ID)
		switch {
		case e == nil && req.Op == intention.LegacyUpdate:
			return nil, acl.Permit{}, fmt.Errorf("Cannot modify non-existent intention: '%s'", n.ID)
		case e == nil:
			return nil, acl.Permit{}, fmt.Errorf("Cannot delete non-existent intention: '%s'", n.ID)
		}
		var err error
		if permit, err = mayWrite(c.Authorizer, e.Name); err != nil {
			return nil, acl.Permit{}, err
		}
	default:
		return nil, acl.Permit{}, fmt.Errorf("unknown intention operation %q", req.Op)
	}
	if req.Op != intention.LegacyDelete {
		// Nothing to permit is nothing permitted.
		if n.DestinationName == "" {
			return nil, acl.Permit{}, wireerr.ErrPermissionDenied
		}
		var err error
		if permit, err = mayWrite(c.Authorizer, n.DestinationName); err != nil {
			return nil, acl.Permit{}, err
		}
		if err := checkLegacy(&n); err != nil {
			return nil, acl.Permit{}, err
		}
	}
	_, err := h.commit(ctx, c, permit, &command{
		Op: legacyOps[req.Op], Kind: entry.KindServiceIntentions, Name: n.DestinationName,
		Source: &entry.IntentionSource{
			Name: n.SourceName, Action: n.Action, Type: n.SourceType, Description: n.Description,
			LegacyID: n.ID, LegacyMeta: n.Meta, LegacyCreateTime: &now, LegacyUpdateTime: &now,
		},
	})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &intention.LegacyReply{ID: n.ID}, permit, nil
}

// checkLegacy checks what the legacy API may write.
func checkLegacy(n *intention.Intention) error {
	if n.SourceType == "" {
		n.SourceType = entry.SourceTypeConsul
	}
	var problems []string
	if n.SourceName == "" {
		problems = append(problems, "SourceName must be set")
	}
	for _, f := range []struct{ name, value string }{{"SourceName", n.SourceName}, {"DestinationName", n.DestinationName}} {
		if f.value != entry.Wildcard && strings.Contains(f.value, entry.Wildcard) {
			problems = append(problems, f.name+": wildcard character '*' cannot be used with partial values")
		}
	}
	if n.Action != entry.Allow && n.Action != entry.Deny {
		problems = append(problems, "Action must be set to 'allow' or 'deny'")
	}
	if len(n.Permissions) != 0 {
		problems = append(problems, "Permissions must not be set when using the legacy APIs")
	}
	if n.SourceType != entry.SourceTypeConsul {
		problems = append(problems, "SourceType must be set to 'consul'")
	}
	return entry.Problems(problems)
}
