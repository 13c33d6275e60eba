package local

import (
	"context"
	"errors"
	"regexp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/check"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Answers to definitions that cannot be run here.
var (
	errRemoteScripts = wireerr.Errorf(500, "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true")
	errScripts       = wireerr.Errorf(500, "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' or 'enable_local_script_checks' to true")
)

// Maintenance checks (spec/registry.md section 6.7).
const (
	NodeMaintenanceID    = "_node_maintenance"
	ServiceMaintenanceID = "_service_maintenance:" // followed by the service ID
	nodeReason           = "Maintenance mode is enabled for this node, but no reason was provided. This is a default message."
	serviceReason        = "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."
)

// Options say how a registration is made.
type Options struct {
	Token  string // secret to register with, empty for the agent's own
	Source Source // default API
	// ReplaceChecks removes checks of the service that the definition does not have.
	ReplaceChecks bool
}

// A batch is everything one service definition registers.
type batch struct {
	def, side         *definition.Service // side is nil without a nested sidecar
	inst, sideInst    *catalog.Service    // the sidecar's without its port
	central, sideConf *central
}

// runnable returns an error when the checks cannot be run on this agent.
func (s *State) runnable(checks []definition.Check, src Source) error {
	for i := range checks {
		c := &checks[i]
		if err := s.runner.Supports(c); err != nil {
			return err
		}
		switch {
		case !c.RunsCommands(), s.cfg.RemoteScripts, src == File && s.cfg.LocalScripts:
		case src == File:
			return errScripts
		default:
			return errRemoteScripts
		}
	}
	return nil
}

// prepare checks a definition and works out all that needs no lock.
func (s *State) prepare(def *definition.Service, src Source) (*batch, error) {
	b := &batch{def: def, inst: def.Instance()}
	if err := definition.ValidateTaggedAddresses(b.inst.TaggedAddresses); err != nil {
		return nil, err
	}
	var err error
	if b.side, err = def.ExpandSidecar(); err != nil {
		return nil, err
	}
	if err := s.runnable(def.NestedChecks(), src); err != nil {
		return nil, err
	}
	if b.side == nil {
		return b, nil
	}
	b.sideInst = b.side.Instance()
	if err := definition.ValidateTaggedAddresses(b.sideInst.TaggedAddresses); err != nil {
		return nil, err
	}
	return b, s.runnable(b.side.NestedChecks(), src)
}

// RegisterService registers a service, its checks, and its nested sidecar if it has one, in place of what has their
// IDs (spec/registry.md sections 4.3 and 5). The definition must have passed ValidateIdentity and
// ValidateRegistration. Before it returns it tries to push the change to the catalog; that may fail without being an
// error. Errors carry the status they are answered with; after one nothing new is registered.
func (s *State) RegisterService(ctx context.Context, def *definition.Service, opts Options) error {
	if opts.Source == "" {
		opts.Source = API
	}
	b, err := s.prepare(def, opts.Source)
	if err != nil {
		return err
	}
	token := opts.Token
	b.central = s.prepareCentral(ctx, b.inst, token, opts.Source)
	if b.side != nil {
		b.sideConf = s.prepareCentral(ctx, b.sideInst, sideToken(b.side, token), opts.Source)
	}
	removed, err := s.apply(b, opts)
	if err != nil {
		return err
	}
	if !fitForDNS.MatchString(def.Name) {
		s.log.Warn("service name cannot be looked up over DNS: it should have letters, digits and dashes only, at most 63 of them", "service", def.Name)
	}
	for _, tag := range def.Tags {
		if !fitForDNS.MatchString(tag) {
			s.log.Debug("service tag cannot be looked up over DNS", "service", def.Name, "tag", tag)
		}
	}
	ids := []string{b.inst.ID}
	if b.side != nil {
		ids = append(ids, b.side.ID)
	}
	var errs []error
	keys := make([]string, 0, len(ids))
	for _, id := range ids {
		errs = append(errs, s.persistService(id))
		for _, c := range s.ownChecks(id) {
			errs = append(errs, s.persistCheck(c))
		}
		keys = append(keys, serviceUnit(id))
	}
	for _, id := range removed {
		errs = append(errs, s.persistCheck(id))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.pushNow(ctx, keys...)
	return nil
}

var fitForDNS = regexp.MustCompile(`^[A-Za-z0-9-]{1,63}$`)

func sideToken(side *definition.Service, token string) string {
	if side.Token != "" {
		return side.Token
	}
	return token
}

// ownChecks returns the IDs of the checks of a service.
func (s *State) ownChecks(serviceID string) (ids []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id := range s.byService[serviceID] {
		ids = append(ids, id)
	}
	return ids
}

// apply makes a batch the present state, all or nothing. It returns the IDs of checks it has removed.
func (s *State) apply(b *batch, opts Options) (removed []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.side != nil {
		if err := b.side.ExpandSidecarPort(b.inst.ID, s.assignPort); err != nil {
			return nil, err
		}
		b.sideInst = b.side.Instance()
	}
	removed = s.applyOne(b.def, b.inst, b.central, opts.Token, opts, false)
	if b.side != nil {
		removed = append(removed, s.applyOne(b.side, b.sideInst, b.sideConf, sideToken(b.side, opts.Token), opts, true)...)
	}
	return removed, nil
}

func (s *State) applyOne(def *definition.Service, inst *catalog.Service, conf *central, token string, opts Options, nested bool) (removed []string) {
	s.setCentral(inst.ID, conf)
	s.putService(&Service{Given: inst, Token: token, Source: opts.Source, Nested: nested})
	keep := map[string]bool{}
	checks := def.NestedChecks()
	for i := range checks {
		c := &checks[i]
		keep[c.ID] = true
		if err := s.putCheck(&Check{Record: c.Record(s.node.Node, inst, true), Def: c, Token: token, Source: opts.Source, Nested: true}); err != nil {
			s.log.Error("check cannot be run", "check", c.ID, "error", err) // prepare has seen to it that it can
		}
	}
	for id := range s.byService[inst.ID] {
		c := s.checks[id]
		drop := opts.ReplaceChecks && !nested
		if opts.Source == File {
			drop = c.Nested // from an earlier version of the file, or from a registration that gives way to it
		}
		if drop && !keep[id] {
			s.dropCheck(id)
			removed = append(removed, id)
		}
	}
	s.refreshExposed(inst.ID)
	if inst.Kind == catalog.KindConnectProxy {
		s.refreshExposed(inst.Proxy.DestinationServiceID)
	}
	return removed
}

// assignPort returns a port for a nested sidecar. The mutex is held.
func (s *State) assignPort(id string) (int, error) {
	current := 0
	used := make(map[int]bool, len(s.services))
	for other, svc := range s.services {
		used[svc.Given.Port] = true
		if other == id {
			current = svc.Given.Port
		}
	}
	return definition.AssignPort(s.cfg.SidecarPorts.Low, s.cfg.SidecarPorts.High, current, used)
}

// DeregisterService removes a service with its checks, and the sidecar that was nested in its definition.
func (s *State) DeregisterService(ctx context.Context, id string) error {
	s.mu.Lock()
	svc := s.services[id]
	if svc == nil {
		s.mu.Unlock()
		return unknownService(id)
	}
	gone := []string{id}
	if side := s.services[definition.SidecarID(id)]; side != nil && side.Nested {
		gone = append(gone, side.Given.ID)
	}
	var checks, keys []string
	for _, id := range gone {
		for cid := range s.byService[id] {
			checks = append(checks, cid)
		}
		destination := s.services[id].Given.Proxy.DestinationServiceID
		s.dropService(id)
		s.refreshExposed(destination)
		keys = append(keys, serviceUnit(id))
	}
	s.mu.Unlock()
	var errs []error
	for _, id := range gone {
		errs = append(errs, s.persistService(id))
	}
	for _, id := range checks {
		errs = append(errs, s.persistCheck(id))
	}
	s.pushNow(ctx, keys...)
	return errors.Join(errs...)
}

// RegisterCheck registers a stand-alone check in place of the one with its ID, whose status it keeps. The definition
// must have passed ValidateRegistration.
func (s *State) RegisterCheck(ctx context.Context, def *definition.Check, opts Options) error {
	if opts.Source == "" {
		opts.Source = API
	}
	id, err := s.applyCheck(def, opts)
	if err != nil {
		return err
	}
	if err := s.persistCheck(id); err != nil {
		return err
	}
	s.pushNow(ctx, checkUnit(id, def.ServiceID))
	return nil
}

func (s *State) applyCheck(def *definition.Check, opts Options) (id string, err error) {
	if err := s.runnable([]definition.Check{*def}, opts.Source); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var svc *catalog.Service
	if def.ServiceID != "" {
		owner := s.services[def.ServiceID]
		if owner == nil {
			return "", wireerr.NotFound("ServiceID %q does not exist", def.ServiceID)
		}
		svc = owner.Given
	}
	own := *def
	rec := own.Record(s.node.Node, svc, false)
	own.ID = rec.CheckID
	if opts.Source == File {
		rec.Type = "" // as the reference shows checks at the top level of a file
	}
	if err := s.putCheck(&Check{Record: rec, Def: &own, Token: opts.Token, Source: opts.Source}); err != nil {
		return "", err
	}
	s.refreshExposed(def.ServiceID)
	return rec.CheckID, nil
}

// DeregisterCheck removes a check.
func (s *State) DeregisterCheck(ctx context.Context, id string) error {
	s.mu.Lock()
	c := s.checks[id]
	if c == nil {
		s.mu.Unlock()
		return unknownCheck(id)
	}
	s.dropCheck(id)
	s.mu.Unlock()
	err := s.persistCheck(id)
	s.pushNow(ctx, checkUnit(id, c.Record.ServiceID))
	return err
}

// UpdateTTL sets the status and output of a TTL check, and starts its clock again.
func (s *State) UpdateTTL(ctx context.Context, id, status, output string) error {
	s.mu.Lock()
	c := s.checks[id]
	if c == nil {
		s.mu.Unlock()
		return unknownCheck(id)
	}
	output, expires, err := s.runner.SetTTL(id, output)
	if errors.Is(err, check.ErrNotTTL) {
		s.mu.Unlock()
		return wireerr.Errorf(500, "CheckID %q does not have associated TTL", id)
	}
	s.setCheck(c, status, output)
	s.mu.Unlock()
	s.persistTTL(id, status, output, expires)
	s.pushNow(ctx, checkUnit(id, c.Record.ServiceID))
	return nil
}

// SetServiceMaintenance puts a service into maintenance, or takes it out. Doing so twice changes nothing.
func (s *State) SetServiceMaintenance(ctx context.Context, serviceID string, on bool, reason, token string) error {
	s.mu.RLock()
	svc := s.services[serviceID]
	s.mu.RUnlock()
	if svc == nil {
		return unknownService(serviceID)
	}
	rec := &catalog.Check{CheckID: ServiceMaintenanceID + serviceID, Name: "Service Maintenance Mode", Notes: reason,
		ServiceID: serviceID, ServiceName: svc.Given.Service, ServiceTags: svc.Given.Tags}
	if rec.Notes == "" {
		rec.Notes = serviceReason
	}
	return s.setMaintenance(ctx, rec, on, token)
}

// SetNodeMaintenance puts the node into maintenance, or takes it out.
func (s *State) SetNodeMaintenance(ctx context.Context, on bool, reason, token string) error {
	rec := &catalog.Check{CheckID: NodeMaintenanceID, Name: "Node Maintenance Mode", Notes: reason}
	if rec.Notes == "" {
		rec.Notes = nodeReason
	}
	return s.setMaintenance(ctx, rec, on, token)
}

func (s *State) setMaintenance(ctx context.Context, rec *catalog.Check, on bool, token string) error {
	rec.Node, rec.Status, rec.Type = s.cfg.Node.Node, catalog.Critical, definition.TypeMaintenance
	s.mu.Lock()
	is := s.checks[rec.CheckID] != nil
	gone := rec.ServiceID != "" && s.services[rec.ServiceID] == nil
	var err error
	switch {
	case is == on:
	case gone:
		err = unknownService(rec.ServiceID)
	case on:
		err = s.putCheck(&Check{Record: rec, Token: token, Source: API})
	default:
		s.dropCheck(rec.CheckID)
	}
	s.mu.Unlock()
	if is == on || err != nil {
		return err
	}
	s.log.Info("maintenance mode changed", "service", rec.ServiceID, "on", on)
	if err := s.persistCheck(rec.CheckID); err != nil {
		return err
	}
	s.pushNow(ctx, checkUnit(rec.CheckID, rec.ServiceID))
	return nil
}
