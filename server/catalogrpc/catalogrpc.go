// Package catalogrpc answers the calls on nodes, instances, checks and coordinates (package catalog): it asks what the
// token may do, checks registrations before they enter the log, applies them to the state when they leave it, and
// selects and sorts what is read.
package catalogrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config tunes the handlers. A zero field takes its default.
type Config struct {
	// Resolve returns the central settings of a service and their index, for reads that merge them into proxies and
	// gateways. The default merges nothing.
	Resolve func(v *state.View, req *entry.ResolvedRequest) (uint64, *entry.Resolved)
	// LinkedGateways returns the names of the gateways of a kind that a service is linked to by configuration, and the
	// index of that. The default knows none.
	LinkedGateways func(v *state.View, kind, service string) (uint64, []string)
	// Federation tells of other datacenters. The default knows none.
	Federation Federation
	// Coordinates writes what nodes send of their places; nil writes each for itself.
	Coordinates *Coordinates
}

// A Federation tells of datacenters, this one among them and first.
type Federation interface {
	Datacenters() []string
	Coordinates() []catalog.DatacenterCoordinates
}

// handlers has the methods that answer calls.
type handlers struct{ cfg Config }

// Register adds the handlers and appliers.
func Register(r *transport.Registry, a *fsm.Appliers, cfg Config) {
	h := &handlers{cfg}
	fsm.Handle(a, fsm.Register, func(tx *state.Tx, req *catalog.RegisterRequest) (*struct{}, error) {
		return nil, tx.Register(req)
	})
	fsm.Handle(a, fsm.Deregister, func(tx *state.Tx, req *catalog.DeregisterRequest) (*struct{}, error) {
		tx.Deregister(req)
		return nil, nil
	})
	fsm.Handle(a, fsm.UpdateCoordinates, applyCoordinates)
	transport.Handle(r, catalog.RegisterCall, h.register)
	transport.Handle(r, catalog.DeregisterCall, h.deregister)
	transport.Handle(r, catalog.UpdateCoordinateCall, h.updateCoordinates)
	transport.HandleStateRead(r, catalog.NodesCall, h.nodes)
	transport.HandleStateRead(r, catalog.ServicesCall, h.services)
	transport.HandleStateRead(r, catalog.NodeServicesCall, h.nodeServices)
	transport.HandleStateRead(r, catalog.InstancesCall, h.instances)
	transport.HandleStateRead(r, catalog.ChecksCall, h.checks)
	transport.HandleStateRead(r, catalog.CoordinatesCall, h.coordinates)
	transport.HandleRead(r, catalog.AddressCall, h.address)
	registerDatacenters(r, cfg.Federation)
}

var done = &struct{}{}

func (h *handlers) register(ctx context.Context, c *transport.Call, req *catalog.RegisterRequest) (*struct{}, acl.Permit, error) {
	command, err := Prepare(req, c.Datacenter)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	vetter := NewVetter(c.Authorizer, c.Store.View())
	if err := vetRegister(vetter, command); err != nil {
		return nil, acl.Permit{}, err
	}
	if _, err := c.Apply(ctx, vetter.Permit(), fsm.Register, command); err != nil {
		return nil, acl.Permit{}, err
	}
	return done, vetter.Permit(), nil
}

// Prepare checks a registration as far as that needs no state, and returns a copy with its defaults, ready for the log
// (spec/registry.md section 8.1).
func Prepare(req *catalog.RegisterRequest, datacenter string) (*catalog.RegisterRequest, error) {
	r := *req
	r.Target = read.Target{Datacenter: datacenter}
	r.Check, r.Checks = nil, make([]*catalog.Check, 0, len(req.Checks)+1)
	for _, c := range append([]*catalog.Check{req.Check}, req.Checks...) {
		if c != nil {
			own := *c
			r.Checks = append(r.Checks, &own)
		}
	}
	imported := r.PeerName != "" || r.Service != nil && r.Service.PeerName != ""
	for _, c := range r.Checks {
		imported = imported || c.PeerName != ""
	}
	switch {
	case imported:
		return nil, errors.New("cannot register requests with PeerName in them")
	case r.Node == "":
		return nil, errNoNode
	case r.Address == "" && !r.SkipNodeUpdate:
		return nil, errors.New("Must provide address if SkipNodeUpdate is not set")
	}
	if r.ID != "" {
		if err := catalog.CheckUUID(r.ID); err != nil {
			return nil, fmt.Errorf("Bad node ID: %w", err)
		}
	}
	if r.Service != nil {
		own := *r.Service
		r.Service = &own
		if err := PrepareService(r.Service); err != nil {
			return nil, err
		}
	}
	for _, c := range r.Checks {
		if c.Node == "" {
			c.Node = r.Node
		}
		PrepareCheck(c)
		if !strings.EqualFold(c.Node, r.Node) {
			return nil, fmt.Errorf("Node '%s' for check '%s' doesn't match register request node '%s'", c.Node, c.CheckID, r.Node)
		}
	}
	return &r, nil
}

var errNoNode = errors.New("Must provide node")

// PrepareService checks an instance as far as that needs no state, and gives it its defaults.
func PrepareService(s *catalog.Service) error {
	switch {
	case s.ID == "" && s.Service == "":
		return errors.New("Must provide service name (Service.Service)")
	case s.Service == "":
		return errors.New("Must provide service name (Service.Service) when service ID is provided")
	case s.ID == "":
		s.ID = s.Service
	}
	if catalog.AnyAddress(s.Address) {
		return errors.New("Invalid service address")
	}
	return s.Validate()
}

// PrepareCheck gives a check its defaults.
func PrepareCheck(c *catalog.Check) {
	if c.CheckID == "" {
		c.CheckID = c.Name
	}
	if c.Type == "" {
		c.Type = c.Definition.CheckType()
	}
	if c.Status == "" {
		c.Status = catalog.Critical
	}
}

func vetRegister(t *Vetter, r *catalog.RegisterRequest) error {
	if !r.SkipNodeUpdate || t.view.Node(r.Node) == nil {
		if err := t.SetNode(&catalog.Node{
			ID: r.ID, Node: r.Node, Address: r.Address, Datacenter: r.Datacenter, TaggedAddresses: r.TaggedAddresses,
			Meta: r.NodeMeta, Locality: r.Locality,
		}); err != nil {
			return err
		}
	}
	if r.Service != nil {
		if err := t.SetService(r.Node, r.Service); err != nil {
			return err
		}
	}
	for _, c := range r.Checks {
		if err := t.SetCheck(c); err != nil {
			return err
		}
	}
	return nil
}

func (h *handlers) deregister(ctx context.Context, c *transport.Call, req *catalog.DeregisterRequest) (*struct{}, acl.Permit, error) {
	if req.Node == "" {
		return nil, acl.Permit{}, errNoNode
	}
	t := NewVetter(c.Authorizer, c.Store.View())
	var err error
	switch {
	case req.ServiceID != "":
		err = t.DeleteService(req.Node, req.ServiceID)
	case req.CheckID != "":
		err = t.DeleteCheck(req.Node, req.CheckID)
	default:
		err = t.DeleteNode(req.Node)
	}
	if err != nil {
		return nil, acl.Permit{}, err
	}
	command := &catalog.DeregisterRequest{Node: req.Node, ServiceID: req.ServiceID, CheckID: req.CheckID}
	if _, err := c.Apply(ctx, t.Permit(), fsm.Deregister, command); err != nil {
		return nil, acl.Permit{}, err
	}
	return done, t.Permit(), nil
}
