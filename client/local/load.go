package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
)

// ErrSaved reports that registrations on disk cannot be read.
var ErrSaved = errors.New("saved registrations cannot be read")

// Load makes the registrations those of the configuration and, the first time, adds those on disk. Called again, on a
// reload, it changes only what is different: what stays keeps its status and goes on being run. Registrations over the
// API stay if they are kept on disk. One whose ID the configuration has too gives way to it. Pushing to the catalog
// waits until Load is done.
//
// Definitions are checked first: an error about them changes nothing. Definitions that cannot be registered for other
// reasons are left out, and the error names them. Nothing is compared with the catalog or pushed to it until Load has
// run once. When it then fails with ErrSaved, what is on disk cannot be read, and the agent should not go on.
func (s *State) Load(ctx context.Context, services []*definition.Service, checks []*definition.Check) error {
	resume := s.Pause()
	defer resume()
	s.mu.Lock()
	first := !s.loaded
	s.mu.Unlock()
	if first {
		if s.disk != nil {
			if err := s.loadSaved(); err != nil {
				return fmt.Errorf("%w: %w", ErrSaved, err)
			}
		}
		s.mu.Lock()
		s.loaded = true
		s.mu.Unlock()
		defer s.resume() // for the pause that New begins with
	}
	if err := validate(services, checks); err != nil {
		return err
	}
	if !first && s.disk == nil {
		s.dropSource(API, nil, nil)
	}
	var errs []error
	haveServices, haveChecks := map[string]bool{}, map[string]bool{}
	for _, def := range services {
		haveServices[def.ServiceID()] = true
		if def.Sidecar() != nil {
			haveServices[definition.SidecarID(def.ServiceID())] = true
		}
		if err := s.loadService(def); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", def.Name, err))
		}
	}
	s.adoptSaved()
	for _, def := range checks {
		id, err := s.applyCheck(def, Options{Token: def.Token, Source: File})
		if err == nil {
			haveChecks[id] = true
			err = s.persistCheck(id) // it takes the place of a saved one
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("check %q: %w", def.Name, err))
		}
	}
	s.dropSource(File, haveServices, haveChecks)
	if first && s.disk != nil {
		s.restoreTTLs()
	}
	return errors.Join(errs...)
}

// validate returns all that is wrong with definitions themselves.
func validate(services []*definition.Service, checks []*definition.Check) error {
	var errs []error
	for _, def := range services {
		if def.Name == "" {
			errs = append(errs, errors.New("Service name missing"))
			continue
		}
		if err := errors.Join(def.ValidateIdentity(), def.ValidateRegistration()); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", def.Name, err))
		}
	}
	for _, def := range checks {
		if err := def.ValidateRegistration(); err != nil {
			errs = append(errs, fmt.Errorf("check %q: %w", def.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *State) loadService(def *definition.Service) error {
	b, err := s.prepare(def, File)
	if err != nil {
		return err
	}
	removed, err := s.apply(b, Options{Token: def.Token, Source: File})
	if err != nil {
		return err
	}
	// What was saved under these IDs gives way.
	var errs []error
	for _, id := range []string{b.inst.ID, definition.SidecarID(b.inst.ID)} {
		if s.Service(id) == nil {
			continue
		}
		errs = append(errs, s.persistService(id))
		for _, cid := range s.ownChecks(id) {
			errs = append(errs, s.persistCheck(cid))
		}
	}
	for _, id := range removed {
		errs = append(errs, s.persistCheck(id))
	}
	return errors.Join(errs...)
}

// dropSource removes registrations of a source, except those named and the maintenance of what stays.
func (s *State) dropSource(src Source, keepServices, keepChecks map[string]bool) {
	s.mu.Lock()
	var gone []string
	for id, svc := range s.services {
		if svc.Source == src && !keepServices[id] {
			for cid := range s.byService[id] {
				gone = append(gone, cid)
			}
			destination := svc.Given.Proxy.DestinationServiceID
			s.dropService(id)
			s.refreshExposed(destination)
		}
	}
	for id, c := range s.checks {
		if c.Source == src && !c.Nested && c.Def != nil && !keepChecks[id] {
			s.dropCheck(id)
			gone = append(gone, id)
		}
	}
	s.mu.Unlock()
	for _, id := range gone {
		if err := s.persistCheck(id); err != nil {
			s.log.Error("removing a saved check", "check", id, "error", err)
		}
	}
}

// loadSaved reads what was registered over the API before the agent was started.
func (s *State) loadSaved() error {
	err := s.disk.read(configsFolder, func(data []byte) error {
		var f savedCentral
		if err := json.Unmarshal(data, &f); err != nil {
			return err
		}
		if f.ServiceID == "" || f.Resolved == nil {
			return errors.New("no service in it")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.cfg.NoCentralConfig {
			s.central[f.ServiceID] = &central{&entry.ResolvedRequest{}, f.Resolved, 0}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = s.disk.read(servicesFolder, func(data []byte) error {
		var f savedService
		if err := json.Unmarshal(data, &f); err != nil {
			return err
		}
		if f.Service == nil || f.Service.ID == "" || f.Service.Service == "" {
			return errors.New("no service in it")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		f.Service.Indexes = catalog.Indexes{}
		s.putService(&Service{Given: f.Service, Token: f.Token, Source: API, Nested: f.LocallyRegisteredAsSidecar})
		return nil
	})
	if err != nil {
		return err
	}
	err = s.disk.read(checksFolder, func(data []byte) error {
		var f savedCheck
		if err := json.Unmarshal(data, &f); err != nil {
			return err
		}
		if f.Check == nil || f.Check.CheckID == "" || f.ChkType == nil && f.Check.Type != definition.TypeMaintenance {
			return errors.New("no check in it")
		}
		if f.ChkType != nil {
			if err := s.runnable([]definition.Check{*f.ChkType}, API); err != nil {
				s.log.Warn("saved check is not run", "check", f.Check.CheckID, "error", err)
				return nil
			}
			// Nobody has looked since the agent ended.
			f.Check.Status, f.Check.Output = catalog.Critical, ""
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		f.Check.Node, f.Check.Indexes, f.Check.ExposedPort = s.node.Node, catalog.Indexes{}, 0
		c := &Check{Record: f.Check, Def: f.ChkType, Token: f.Token, Source: API, Nested: f.Nested}
		if id := f.Check.ServiceID; id != "" && s.services[id] == nil {
			s.orphans = append(s.orphans, c) // the configuration may have the service
			return nil
		}
		return s.putCheck(c)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.services {
		s.refreshExposed(id)
	}
	return nil
}

// adoptSaved gives services of the configuration the checks that were registered for them over the API before the
// agent was started. Saved checks whose service is not there are removed.
func (s *State) adoptSaved() {
	s.mu.Lock()
	orphans := s.orphans
	s.orphans = nil
	var gone []string
	for _, c := range orphans {
		id, svc := c.Record.CheckID, s.services[c.Record.ServiceID]
		switch {
		case s.checks[id] != nil: // the configuration has one with this ID
			gone = append(gone, id)
		case svc == nil, c.Nested: // or nested in a definition that gave way
			s.log.Warn("saved check belongs to a service that is not there, removing it", "check", id)
			gone = append(gone, id)
		default:
			c.Record.ServiceName, c.Record.ServiceTags = svc.Given.Service, svc.Given.Tags
			if err := s.putCheck(c); err != nil {
				s.log.Error("saved check is not run", "check", id, "error", err)
			}
			s.refreshExposed(c.Record.ServiceID)
		}
	}
	s.mu.Unlock()
	for _, id := range gone {
		if err := s.persistCheck(id); err != nil {
			s.log.Error("removing a saved check", "check", id, "error", err)
		}
	}
}

// restoreTTLs gives TTL checks the status they had when the agent ended, unless that has run out.
func (s *State) restoreTTLs() {
	var stale []string
	err := s.disk.read(statesFolder, func(data []byte) error {
		var f savedTTL
		if err := json.Unmarshal(data, &f); err != nil {
			return err
		}
		if f.CheckID == "" {
			return errors.New("no check in it")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		c := s.checks[f.CheckID]
		if c == nil || c.Def == nil || c.Def.TTL <= 0 || f.Expires <= time.Now().Unix() {
			stale = append(stale, f.CheckID)
			return nil
		}
		output, _, err := s.runner.SetTTL(f.CheckID, f.Output)
		if err != nil {
			return err
		}
		s.setCheck(c, f.Status, output)
		return nil
	})
	if err != nil {
		s.log.Error("reading the state of TTL checks", "error", err)
	}
	for _, id := range stale {
		if err := s.disk.update(statesFolder, id, over, func() (any, bool) { return nil, false }); err != nil {
			s.log.Error("removing the state of a TTL check", "check", id, "error", err)
		}
	}
}
