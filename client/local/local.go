// Package local holds an agent's own registrations: the services and checks of its node, which it owns. It keeps them on
// disk, runs their checks, and makes the catalog match them in both directions (spec/registry.md sections 4 to 6, 12
// and 15). Without servers it goes on serving what it has, and repairs the catalog when they return.
package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/check"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A Source is where a registration comes from.
type Source string

const (
	// API registrations are kept on disk.
	API Source = "remote"
	// File registrations come from the configuration, and go when they are no longer in it.
	File Source = "local"
)

// A Service is a registered service as it is at one moment. It is never changed.
type Service struct {
	// Instance is what the catalog gets: the registration with central configuration merged in.
	Instance *catalog.Service
	// Given is the registration before the merge.
	Given *catalog.Service
	// Token is the secret to register it with, empty for the agent's own.
	Token  string
	Source Source
	// Nested tells that the agent made it from a nested sidecar definition: it goes with its parent.
	Nested bool
}

// A Check is a registered check as it is at one moment. It is never changed.
type Check struct {
	Record *catalog.Check
	// Def is how it is run, nil for maintenance.
	Def    *definition.Check
	Token  string
	Source Source
	// Nested tells that it was registered inside its service's definition.
	Nested bool
	// CriticalSince is when a result last made it critical, zero while none has.
	CriticalSince time.Time
}

// Tokens are the agent's own ACL tokens. Secrets are empty where none is set.
type Tokens interface {
	Default() string
	Agent() string        // falls back to Default
	Registration() string // for services and checks of configuration files; empty means Default
}

// Ports is a range of ports the agent gives out, with its ends. The zero range gives out none.
type Ports struct{ Low, High int }

// Config tunes a State. A zero field takes its default.
type Config struct {
	// Node is this agent's node: ID, name, addresses, meta and locality. Required.
	Node catalog.Node
	// Caller reaches the servers. Nil means there are none.
	Caller rpc.Caller
	// Tokens are asked whenever one is needed; they must not call the State. Nil means none.
	Tokens Tokens
	// DataDir is where registrations are kept. Empty keeps nothing: a reload drops what came over the API.
	DataDir string
	// Check configures the runners. Its Sink, Aliases, Caller, Token and Logger are set by New.
	Check check.Config

	RemoteScripts bool // scripts may be registered over the API, and in files
	LocalScripts  bool // scripts may be registered in files
	// NoCentralConfig registers proxies and gateways as they are given.
	NoCentralConfig bool
	SidecarPorts    Ports // for nested sidecars without a port
	ExposePorts     Ports // for checks exposed through a proxy
	// CheckUpdateInterval is how long a change of output alone is held back, about; default 5 minutes. Negative sends it
	// at once.
	CheckUpdateInterval time.Duration
	// DiscardCheckOutput keeps no output of checks. See SetDiscardCheckOutput.
	DiscardCheckOutput bool
	// ClusterSize returns the number of members, by which intervals grow. Nil means 1.
	ClusterSize func() int
	// Jitter returns a duration in [0, max); default uniformly random.
	Jitter func(max time.Duration) time.Duration
	Logger hclog.Logger // default discards
}

const (
	defaultCheckUpdateInterval = 5 * time.Minute
	reapInterval               = 30 * time.Second
	minDeregisterAfter         = time.Minute
)

// A State is the agent's registrations. Make one with New; Run keeps the catalog in step. It is safe for concurrent
// use.
type State struct {
	cfg    Config
	log    hclog.Logger
	runner *check.Scheduler
	disk   *disk // nil without a data folder

	mu       sync.RWMutex
	node     catalog.Node
	services map[string]*Service
	checks   map[string]*Check
	// byService indexes checks by service ID, "" for those of the node; aliases indexes local alias checks by the
	// service they follow.
	byService, aliases map[string]map[string]bool
	proxies            map[string]map[string]bool // proxies by the ID of the service they stand for
	central            map[string]*central        // by service ID
	discard            bool
	loaded             bool                     // Load has run once
	orphans            []*Check                 // read from disk, until the services of the configuration are there
	changed            chan struct{}            // closed at the next change
	watched            map[string]chan struct{} // by service ID, closed when it changes

	sync syncState
	// centralWake holds one value when the set of services with central configuration may have changed.
	centralWake chan struct{}
}

// New returns a state without registrations. Nothing runs until Run; Load brings in what is on disk and in the
// configuration.
func New(cfg Config) (*State, error) {
	if cfg.Node.Node == "" {
		return nil, errors.New("local: no node name")
	}
	if cfg.CheckUpdateInterval == 0 {
		cfg.CheckUpdateInterval = defaultCheckUpdateInterval
	}
	if cfg.ClusterSize == nil {
		cfg.ClusterSize = func() int { return 1 }
	}
	if cfg.Jitter == nil {
		cfg.Jitter = func(max time.Duration) time.Duration {
			if max <= 0 {
				return 0
			}
			return rand.N(max)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Tokens == nil {
		cfg.Tokens = noTokens{}
	}
	s := &State{
		cfg: cfg, log: cfg.Logger, node: cfg.Node,
		services: map[string]*Service{}, checks: map[string]*Check{},
		byService: map[string]map[string]bool{}, aliases: map[string]map[string]bool{}, proxies: map[string]map[string]bool{},
		central: map[string]*central{}, discard: cfg.DiscardCheckOutput,
		changed: make(chan struct{}), watched: map[string]chan struct{}{},
		sync: newSyncState(), centralWake: make(chan struct{}, 1),
	}
	if cfg.DataDir != "" {
		d, err := openDisk(cfg.DataDir, cfg.Logger)
		if err != nil {
			return nil, err
		}
		s.disk = d
	}
	cc := cfg.Check
	cc.Sink, cc.Aliases, cc.Caller, cc.Token, cc.Logger = s, s, cfg.Caller, s.checkToken, cfg.Logger.Named("check")
	runner, err := check.New(cc)
	if err != nil {
		return nil, err
	}
	s.runner = runner
	return s, nil
}

type noTokens struct{}

func (noTokens) Default() string      { return "" }
func (noTokens) Agent() string        { return "" }
func (noTokens) Registration() string { return "" }

// Run runs the checks and keeps the catalog in step until ctx ends, then returns nil.
func (s *State) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.runner.Run(ctx) })
	g.Go(func() error { return s.runSync(ctx) })
	g.Go(func() error { return s.runReaper(ctx) })
	g.Go(func() error { return s.runCentral(ctx) })
	return g.Wait()
}

// NodeName returns the name of the agent's node.
func (s *State) NodeName() string { return s.cfg.Node.Node }

// Node returns the agent's node as it is registered.
func (s *State) Node() *catalog.Node {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := s.node
	return &n
}

// SetNodeMeta replaces the meta of the node, and tells the catalog.
func (s *State) SetNodeMeta(meta map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maps.Equal(meta, s.node.Meta) {
		return
	}
	s.node.Meta = maps.Clone(meta)
	s.dirtyNode()
}

// SetDiscardCheckOutput turns the keeping of check output off or on, for results to come.
func (s *State) SetDiscardCheckOutput(discard bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discard = discard
}

// Services returns the registered services, ordered by ID.
func (s *State) Services() []*Service {
	s.mu.RLock()
	list := slices.Collect(maps.Values(s.services))
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b *Service) int { return strings.Compare(a.Given.ID, b.Given.ID) })
	return list
}

// Service returns the service with this ID, nil if there is none.
func (s *State) Service(id string) *Service {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.services[id]
}

// WatchService returns the service with this ID and a channel that is closed when it has changed or gone. It returns
// nil and nil if there is none.
func (s *State) WatchService(id string) (*Service, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := s.services[id]
	if svc == nil {
		return nil, nil
	}
	ch := s.watched[id]
	if ch == nil {
		ch = make(chan struct{})
		s.watched[id] = ch
	}
	return svc, ch
}

// Checks returns the registered checks, ordered by ID.
func (s *State) Checks() []*Check {
	s.mu.RLock()
	list := slices.Collect(maps.Values(s.checks))
	s.mu.RUnlock()
	sortChecks(list)
	return list
}

func sortChecks(list []*Check) {
	slices.SortFunc(list, func(a, b *Check) int { return strings.Compare(a.Record.CheckID, b.Record.CheckID) })
}

// Check returns the check with this ID, nil if there is none.
func (s *State) Check(id string) *Check {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.checks[id]
}

// ChecksFor returns the checks that count for the service with this ID: its own and those of the node, each ordered by
// ID.
func (s *State) ChecksFor(serviceID string) []*Check {
	s.mu.RLock()
	var own, node []*Check
	for id := range s.byService[serviceID] {
		own = append(own, s.checks[id])
	}
	if serviceID != "" {
		for id := range s.byService[""] {
			node = append(node, s.checks[id])
		}
	}
	s.mu.RUnlock()
	sortChecks(own)
	sortChecks(node)
	return append(own, node...)
}

// AliasChecks tells alias checks what they consider; it is part of check.Aliases.
func (s *State) AliasChecks(serviceID string) (checks []*catalog.Check, exists bool) {
	for _, c := range s.ChecksFor(serviceID) {
		checks = append(checks, c.Record)
	}
	return checks, s.Service(serviceID) != nil
}

// checkToken returns the secret a check asks the servers with.
func (s *State) checkToken(id string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.checks[id]
	if c == nil {
		return ""
	}
	return s.token(c.Token, c.Source)
}

// Changed returns a channel that is closed at the next change of a service or check, whatever it is.
func (s *State) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

// RunChecks runs the checks of a service now: for whoever knows that its health has changed.
func (s *State) RunChecks(serviceID string) {
	for _, c := range s.ChecksFor(serviceID) {
		s.runner.RunNow(c.Record.CheckID)
	}
}

// Counts returns how many script checks and how many TTL checks are run.
func (s *State) Counts() (scripts, ttls int) { return s.runner.Counts() }

// notify tells those who wait for any change. The mutex is held.
func (s *State) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// notifyService tells also those who wait for a service, and the alias checks that follow it. The mutex is held.
func (s *State) notifyService(id string) {
	if ch := s.watched[id]; ch != nil {
		close(ch)
		delete(s.watched, id)
	}
	s.triggerAliases(id)
	s.notify()
}

func (s *State) triggerAliases(serviceID string) {
	for id := range s.aliases[serviceID] {
		s.runner.Trigger(id)
	}
}

// putService stores a service in place of the one with its ID, and marks what has to go to the catalog. The mutex is
// held.
func (s *State) putService(svc *Service) {
	id := svc.Given.ID
	old := s.services[id]
	if old != nil && sameInstance(old.Given, svc.Given) {
		svc.Given = old.Given // with the addresses the servers added
	}
	svc.Instance = s.merge(svc.Given)
	if old != nil && sameInstance(old.Instance, svc.Instance) {
		svc.Instance = old.Instance
		same := *old
		s.services[id] = svc
		if same.Token != svc.Token {
			s.dirtyService(id)
		}
		if same != *svc {
			s.notify()
		}
		return
	}
	if old != nil {
		remove(s.proxies, old.Given.Proxy.DestinationServiceID, id)
	}
	if dest := svc.Given.Proxy.DestinationServiceID; dest != "" && svc.Given.Kind == catalog.KindConnectProxy {
		insert(s.proxies, dest, id)
	}
	s.services[id] = svc
	// What the checks say about their service follows it. The servers derive the same, so there is nothing to send.
	for cid := range s.byService[id] {
		c := *s.checks[cid]
		rec := *c.Record
		rec.ServiceName, rec.ServiceTags = svc.Given.Service, svc.Given.Tags
		c.Record = &rec
		s.checks[cid] = &c
	}
	s.dirtyService(id)
	s.notifyService(id)
	if definition.Central(svc.Given.Kind) || s.central[id] != nil {
		s.wakeCentral()
	}
}

// dropService removes a service with its checks. The mutex is held.
func (s *State) dropService(id string) {
	for cid := range s.byService[id] {
		s.dropCheck(cid)
	}
	if given := s.services[id].Given; definition.Central(given.Kind) {
		s.wakeCentral()
		remove(s.proxies, given.Proxy.DestinationServiceID, id)
	}
	delete(s.services, id)
	delete(s.central, id)
	s.goneService(id)
	s.notifyService(id)
}

// putCheck stores a check in place of the one with its ID, whose status and output it keeps, and runs it. The mutex is
// held.
func (s *State) putCheck(c *Check) error {
	id := c.Record.CheckID
	old := s.checks[id]
	if old != nil {
		rec := *c.Record
		rec.Status, rec.Output, rec.ExposedPort = old.Record.Status, old.Record.Output, old.Record.ExposedPort
		c.Record = &rec
	}
	running := old != nil && c.Def != nil && old.Def != nil && sameDef(c.Def, old.Def) && s.runner.Has(id)
	if running {
		c.CriticalSince = old.CriticalSince
	}
	if c.Def != nil && (!running || c.Def.TTL > 0 && c.Source == API) {
		// A TTL counts from the registration, so a TTL check starts again even when nothing has changed.
		if err := s.runner.Add(id, s.runDef(c), c.Record.Output); err != nil {
			return err
		}
	}
	if old != nil {
		s.unindex(old)
	}
	s.checks[id] = c
	s.index(c)
	if old == nil || !sameCheck(old.Record, c.Record) || old.Token != c.Token {
		if old != nil && old.Record.ServiceID != c.Record.ServiceID {
			s.goneCheck(id, old.Record.ServiceID)
			s.triggerAliases(old.Record.ServiceID)
		}
		s.dirtyCheck(id, c.Record.ServiceID)
	}
	s.triggerAliases(c.Record.ServiceID)
	s.notify()
	return nil
}

// dropCheck removes a check. The mutex is held.
func (s *State) dropCheck(id string) {
	c := s.checks[id]
	s.runner.Remove(id)
	s.unindex(c)
	delete(s.checks, id)
	s.goneCheck(id, c.Record.ServiceID)
	s.triggerAliases(c.Record.ServiceID)
	s.notify()
}

func (s *State) index(c *Check) {
	insert(s.byService, c.Record.ServiceID, c.Record.CheckID)
	if c.Def != nil && c.Def.CheckType() == definition.TypeAlias && c.Def.AliasNode == "" {
		insert(s.aliases, c.Def.AliasService, c.Record.CheckID)
	}
}

func (s *State) unindex(c *Check) {
	remove(s.byService, c.Record.ServiceID, c.Record.CheckID)
	if c.Def != nil {
		remove(s.aliases, c.Def.AliasService, c.Record.CheckID)
	}
}

func insert(m map[string]map[string]bool, key, id string) {
	if m[key] == nil {
		m[key] = map[string]bool{}
	}
	m[key][id] = true
}

func remove(m map[string]map[string]bool, key, id string) {
	delete(m[key], id)
	if len(m[key]) == 0 {
		delete(m, key)
	}
}

// setCheck changes the status and output of a check. The mutex is held.
func (s *State) setCheck(c *Check, status, output string) {
	id := c.Record.CheckID
	if s.discard {
		output = ""
	}
	next := *c
	switch {
	case status != catalog.Critical:
		next.CriticalSince = time.Time{}
	case next.CriticalSince.IsZero():
		next.CriticalSince = time.Now()
	}
	if status == c.Record.Status && output == c.Record.Output {
		s.checks[id] = &next
		return
	}
	rec := *c.Record
	rec.Status, rec.Output = status, output
	next.Record = &rec
	s.checks[id] = &next
	if status == c.Record.Status && s.cfg.CheckUpdateInterval > 0 {
		s.deferCheck(id, rec.ServiceID)
	} else {
		s.dirtyCheck(id, rec.ServiceID)
	}
	s.triggerAliases(rec.ServiceID)
	s.notify()
}

// UpdateCheck takes a result; it is part of check.Sink.
func (s *State) UpdateCheck(id, status, output string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.checks[id]; c != nil {
		s.setCheck(c, status, output)
	}
}

// unknownService and unknownCheck are the answers to IDs that are not registered.
func unknownService(id string) error {
	return wireerr.NotFound("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)
}

func unknownCheck(id string) error {
	return wireerr.NotFound("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)
}

// runReaper removes services that have been critical for too long.
func (s *State) runReaper(ctx context.Context) error {
	tick := time.NewTicker(reapInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.reap(ctx)
		}
	}
}

func (s *State) reap(ctx context.Context) {
	now := time.Now()
	due := map[string]string{} // service ID to check ID
	s.mu.RLock()
	for id, c := range s.checks {
		if c.Def == nil || c.Def.DeregisterCriticalServiceAfter <= 0 || c.Record.ServiceID == "" || c.CriticalSince.IsZero() {
			continue
		}
		if now.Sub(c.CriticalSince) > max(c.Def.DeregisterCriticalServiceAfter, minDeregisterAfter) {
			due[c.Record.ServiceID] = id
		}
	}
	s.mu.RUnlock()
	for _, id := range slices.Sorted(maps.Keys(due)) {
		s.log.Info("check has been critical for too long, deregistering its service", "service", id, "check", due[id])
		if err := s.DeregisterService(ctx, id); err != nil && wireerr.Status(err) != 404 {
			s.log.Error("deregistering a critical service", "service", id, "error", err)
		}
	}
}

// openFolder makes a folder only the agent can look into.
func openFolder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make folder for registrations: %w", err)
	}
	return nil
}
