// Package configrpc answers the calls about configuration entries, and about what is made of them: intentions,
// discovery chains and central settings. Every change is tried on the state that would result from it (spec/connect.md
// section 9); what does not fit leaves no trace.
package configrpc

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config tunes the handlers. A zero field takes its default.
type Config struct {
	ConnectDisabled bool   // connect.enabled = false: calls about intentions are refused
	DefaultDeny     bool   // ACLs are on and their default policy is deny
	IntentionPolicy string // default_intention_policy: entry.Allow, entry.Deny, or empty to follow DefaultDeny
	Datacenter      string // of this server; used by the checks of chains
	Random          io.Reader
	// PrimaryDatacenter is where entries are written; Primary makes calls of it, and is nil where that is here.
	PrimaryDatacenter string
	Primary           rpc.Caller
}

// Default returns what holds between services that no intention is about.
func (c Config) Default() intention.Default {
	if c.IntentionPolicy != "" {
		return intention.Default{Allow: c.IntentionPolicy == entry.Allow, Explicit: true}
	}
	return intention.Default{Allow: !c.DefaultDeny}
}

// handlers has the methods that answer calls.
type handlers struct{ cfg Config }

// Register adds the handlers and appliers.
func Register(r *transport.Registry, a *fsm.Appliers, cfg Config) {
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	h := &handlers{cfg}
	fsm.Handle(a, fsm.ConfigEntry, h.apply)
	transport.HandleRead(r, entry.GetCall, h.get)
	transport.HandleRead(r, entry.ListCall, h.list)
	transport.Handle(r, entry.ApplyCall, h.set)
	transport.Handle(r, entry.DeleteCall, h.delete)
	transport.HandleRead(r, entry.ResolvedCall, h.resolved)
	transport.HandleRead(r, entry.GatewayServicesCall, h.gatewayServices)
	transport.HandleRead(r, chain.GetCall, h.chain)
	transport.HandleRead(r, intention.ListCall, h.intentions)
	transport.HandleRead(r, intention.GetCall, h.intention)
	transport.HandleRead(r, intention.MatchCall, h.match)
	transport.HandleRead(r, intention.CheckCall, h.check)
	transport.HandleRead(r, intention.CallableCall, h.callable)
	transport.Handle(r, intention.UpsertCall, h.upsert)
	transport.Handle(r, intention.RemoveCall, h.remove)
	transport.Handle(r, intention.LegacyCall, h.legacy)
	transport.HandleRead(r, entry.VirtualIPCall, h.virtualIP)
	transport.Handle(r, entry.SetVirtualIPsCall, h.setVirtualIPs)
}

// errUnknownKind is the answer to a kind that is none; writes have other statuses for it.
func errUnknownKind(status int, k entry.Kind) error {
	return wireerr.Errorf(status, "invalid config entry kind: %s", k)
}

func (h *handlers) get(c *transport.Call, v *state.View, req *entry.GetRequest) (*entry.GetReply, acl.Permit, error) {
	if !req.Kind.Known() {
		return nil, acl.Permit{}, errUnknownKind(http.StatusInternalServerError, req.Kind)
	}
	permit, err := requireRead(c.Authorizer, req.Kind, req.Name)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &entry.GetReply{}
	e := v.Entry(req.Kind, req.Name)
	reply.Index = v.EntryIndex(req.Kind, e)
	if e == nil {
		reply.NotFound = true
		return reply, permit, nil
	}
	reply.Entry = entry.Any{Entry: e}
	return reply, permit, nil
}

func (h *handlers) list(c *transport.Call, v *state.View, req *entry.ListRequest) (*entry.ListReply, acl.Permit, error) {
	kinds := []entry.Kind{req.Kind}
	switch {
	case req.Kind == "":
		kinds = entry.Kinds()
	case !req.Kind.Known():
		return nil, acl.Permit{}, errUnknownKind(http.StatusInternalServerError, req.Kind)
	}
	var keep *filter.Filter[*entry.ServiceDefaults]
	if req.Filter != "" {
		if req.Kind != entry.KindServiceDefaults {
			return nil, acl.Permit{}, fmt.Errorf("filtering not supported for config entry kind=%s", req.Kind)
		}
		var err error
		if keep, err = filter.Compile[*entry.ServiceDefaults](req.Filter); err != nil {
			return nil, acl.Permit{}, err
		}
	}
	reply := &entry.ListReply{Entries: []entry.Any{}}
	for _, k := range kinds {
		index, entries := v.Entries(k)
		reply.Index = max(reply.Index, index)
		for _, e := range entries {
			if _, err := requireRead(c.Authorizer, k, entry.KeyOf(e).Name); err != nil {
				if req.Whole {
					return nil, acl.Permit{}, err
				}
				reply.Filtered = !c.Authorizer.Anonymous()
				continue
			}
			if keep != nil && !keep.Match(e.(*entry.ServiceDefaults)) {
				continue
			}
			reply.Entries = append(reply.Entries, entry.Any{Entry: e})
		}
	}
	return reply, c.Authorizer.Filtering(), nil
}

func (h *handlers) set(ctx context.Context, c *transport.Call, req *entry.ApplyRequest) (*entry.ApplyReply, acl.Permit, error) {
	if h.cfg.Primary != nil {
		return inPrimary(ctx, h, entry.ApplyCall, req)
	}
	e := req.Entry.Entry
	if e == nil {
		return nil, acl.Permit{}, wireerr.BadRequest("config entry is missing")
	}
	// The entry may be shared with the caller.
	e, err := entry.Copy(e)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if i, ok := e.(*entry.ServiceIntentions); ok {
		i.DropLegacy()
	}
	e.Normalize()
	if err := entry.CheckHeader(e); err != nil {
		return nil, acl.Permit{}, err
	}
	if err := e.Validate(); err != nil {
		return nil, acl.Permit{}, err
	}
	permit, err := requireWrite(c.Authorizer, e)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	res, err := h.commit(ctx, c, permit, &command{Op: opSet, Entry: entry.Any{Entry: e}, CAS: req.CAS})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &entry.ApplyReply{OK: res.OK}, permit, nil
}

func (h *handlers) delete(ctx context.Context, c *transport.Call, req *entry.DeleteRequest) (*entry.ApplyReply, acl.Permit, error) {
	if h.cfg.Primary != nil {
		return inPrimary(ctx, h, entry.DeleteCall, req)
	}
	e, err := entry.New(req.Kind)
	if err != nil {
		return nil, acl.Permit{}, errUnknownKind(http.StatusBadRequest, req.Kind)
	}
	if req.Name == "" {
		return nil, acl.Permit{}, wireerr.NotFound("Must provide both a kind and name to delete")
	}
	e.Head().Name = req.Name
	permit, err := requireWrite(c.Authorizer, e)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	res, err := h.commit(ctx, c, permit, &command{Op: opDelete, Kind: req.Kind, Name: req.Name, CAS: req.CAS})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &entry.ApplyReply{OK: res.OK}, permit, nil
}

// commit writes a command to the log and returns what applying it gave.
func (h *handlers) commit(ctx context.Context, c *transport.Call, permit acl.Permit, cmd *command) (*result, error) {
	reply, err := c.Apply(ctx, permit, fsm.ConfigEntry, cmd)
	if err != nil {
		return nil, err
	}
	res, ok := reply.(*result)
	if !ok {
		return nil, fmt.Errorf("applying a config entry gave %T", reply)
	}
	return res, nil
}

func (h *handlers) resolved(c *transport.Call, v *state.View, req *entry.ResolvedRequest) (*entry.ResolvedReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Service, acl.Read, req.Service)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	index, resolved := Resolve(v, req)
	reply := &entry.ResolvedReply{Resolved: *resolved}
	reply.Index = index
	return reply, permit, nil
}

// Resolve returns the central settings of a service as v sees them, with the index of the last change to them.
func Resolve(v *state.View, req *entry.ResolvedRequest) (uint64, *entry.Resolved) {
	r := &recorder{v: v}
	all, _ := r.Entry(entry.KindProxyDefaults, entry.ProxyDefaultsName).(*entry.ProxyDefaults)
	defaults := func(name string) *entry.ServiceDefaults {
		d, _ := r.Entry(entry.KindServiceDefaults, name).(*entry.ServiceDefaults)
		return d
	}
	resolved := entry.Resolve(req, all, defaults(req.Service), defaults)
	return max(r.index, v.EntriesGone(entry.KindProxyDefaults, entry.KindServiceDefaults)), resolved
}

// A recorder finds entries and notes the greatest index of those it found. With a watching view, a read wakes when one
// of those looked for changes, there or not.
type recorder struct {
	v     *state.View
	index uint64
}

// Entry returns an entry, nil when there is none.
func (r *recorder) Entry(kind entry.Kind, name string) entry.Entry {
	e := r.v.Entry(kind, name)
	if e != nil {
		r.index = max(r.index, e.Head().ModifyIndex)
	}
	return e
}

// chainKinds are the kinds chains are made of.
var chainKinds = []entry.Kind{
	entry.KindServiceDefaults, entry.KindProxyDefaults, entry.KindServiceRouter, entry.KindServiceSplitter,
	entry.KindServiceResolver,
}

func (h *handlers) chain(c *transport.Call, v *state.View, req *chain.GetRequest) (*chain.GetReply, acl.Permit, error) {
	if req.Service == "" {
		return nil, acl.Permit{}, wireerr.BadRequest("Missing chain name")
	}
	permit, err := c.Authorizer.Require(acl.Service, acl.Read, req.Service)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	dc := req.EvaluateDatacenter
	if dc == "" {
		dc = c.Datacenter
	}
	r := &recorder{v: v}
	made, err := chain.Compile(chain.Request{
		Service: req.Service, Datacenter: dc, TrustDomain: trustDomain(v), Overrides: req.Overrides,
	}, r)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &chain.GetReply{Chain: made}
	reply.Index = max(r.index, v.EntriesGone(chainKinds...))
	if ip := v.VirtualIP(req.Service, ""); ip != nil {
		made.AutoVirtualIPs = []string{ip.Address()}
		made.ManualVirtualIPs = ip.Manual
		reply.Index = max(reply.Index, ip.ModifyIndex)
	}
	return reply, permit, nil
}
