package local

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Times of anti-entropy (spec/registry.md section 12). Those that grow with the cluster are for a small one.
const (
	fullSyncInterval = time.Minute
	fullSyncRetry    = 15 * time.Second
	fullSyncStagger  = 3 * time.Second // after a trigger
	fullSyncMaxStale = 2 * time.Second
	pushesAtOnce     = 16
	nodeUnits        = 16 // over which the checks of the node are spread
	checksAtOnce     = 64 // in one call
	// hopeless is after how many failures, with no success, a sync gives up for now.
	hopeless = 32
)

// A unit is what is pushed to the catalog in order: a service with its checks, or some of the checks of the node. Those
// that change while a push is under way share the next.
// It exists while something of it is pending or it is being pushed.
type unit struct {
	key  string
	busy chan struct{} // holds a value while somebody pushes it
	refs int           // of those who push or wait to

	service *pending // nil when the catalog has it as it is
	checks  map[string]*pending
}

// pending is one thing the catalog does not have as it is.
type pending struct {
	gone bool
	gen  uint64 // grows with every change, so that a push settles only what it has sent
}

// syncState is guarded by the mutex of State.
type syncState struct {
	units    map[string]*unit
	gen      uint64
	node     *pending // nil when the node record is as it should be
	compared bool     // a full sync has seen the catalog once, or was not allowed to
	pushed   bool     // something was pushed once
	paused   int      // how many want nothing to be pushed

	// deferred holds the checks whose output alone has changed, until the time given; queue has them by time, with
	// entries that are no longer true.
	deferred map[string]time.Time
	queue    deferrals

	wake chan struct{} // holds one value when something is pending
	full chan struct{} // holds one value when a full sync is wanted soon
	// The node is pushed by whoever holds nodeBusy.
	nodeBusy chan struct{}
}

func newSyncState() syncState {
	return syncState{
		units: map[string]*unit{}, deferred: map[string]time.Time{}, node: &pending{},
		paused: 1, // until Load has run: what is not loaded yet would be taken for gone
		wake:   make(chan struct{}, 1), full: make(chan struct{}, 1), nodeBusy: make(chan struct{}, 1),
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// serviceUnit and checkUnit return keys of units. A check of a service belongs to the service's unit, one of the node to
// a unit that its ID chooses.
func serviceUnit(id string) string { return "s" + id }

func checkUnit(id, serviceID string) string {
	if serviceID != "" {
		return serviceUnit(serviceID)
	}
	h := fnv.New32a()
	io.WriteString(h, id)
	return "c" + strconv.Itoa(int(h.Sum32()%nodeUnits))
}

// The functions up to scale are called with the mutex held.

func (s *State) unit(key string) *unit {
	u := s.sync.units[key]
	if u == nil {
		u = &unit{key: key, busy: make(chan struct{}, 1), checks: map[string]*pending{}}
		s.sync.units[key] = u
	}
	return u
}

// tidy forgets a unit of which nothing is pending.
func (s *State) tidy(u *unit) {
	if u.refs == 0 && u.service == nil && len(u.checks) == 0 {
		delete(s.sync.units, u.key)
	}
}

func (s *State) pend(gone bool) *pending {
	s.sync.gen++
	signal(s.sync.wake)
	return &pending{gone, s.sync.gen}
}

func (s *State) dirtyNode() { s.sync.node = s.pend(false) }

func (s *State) dirtyService(id string) { s.unit(serviceUnit(id)).service = s.pend(false) }
func (s *State) goneService(id string)  { s.unit(serviceUnit(id)).service = s.pend(true) }

func (s *State) dirtyCheck(id, serviceID string) {
	delete(s.sync.deferred, id)
	s.unit(checkUnit(id, serviceID)).checks[id] = s.pend(false)
}

func (s *State) goneCheck(id, serviceID string) {
	delete(s.sync.deferred, id)
	s.unit(checkUnit(id, serviceID)).checks[id] = s.pend(true)
}

// deferCheck puts off telling the catalog about a change of output alone, unless the check is to be sent anyway.
func (s *State) deferCheck(id, serviceID string) {
	if u := s.sync.units[checkUnit(id, serviceID)]; u != nil && u.checks[id] != nil {
		u.checks[id] = s.pend(false)
		return
	}
	if _, ok := s.sync.deferred[id]; ok {
		return
	}
	at := time.Now().Add(s.cfg.CheckUpdateInterval/2 + s.cfg.Jitter(s.cfg.CheckUpdateInterval))
	s.sync.deferred[id] = at
	heap.Push(&s.sync.queue, deferral{at, id})
	if s.sync.queue[0].id == id {
		signal(s.sync.wake)
	}
}

// promote makes the deferred checks whose time has come dirty, and returns how long the next has, 0 if there is none.
func (s *State) promote() time.Duration {
	q := &s.sync.queue
	for len(*q) > 0 {
		first := (*q)[0]
		at, ok := s.sync.deferred[first.id]
		if ok && at.Equal(first.at) {
			if wait := time.Until(at); wait > 0 {
				return wait
			}
			if c := s.checks[first.id]; c != nil {
				s.dirtyCheck(first.id, c.Record.ServiceID)
			}
			delete(s.sync.deferred, first.id)
		}
		heap.Pop(q)
	}
	return 0
}

type deferral struct {
	at time.Time
	id string
}

type deferrals []deferral

func (q deferrals) Len() int           { return len(q) }
func (q deferrals) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q deferrals) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }

// Push adds x, for package heap.
func (q *deferrals) Push(x any) { *q = append(*q, x.(deferral)) }

// Pop takes the last element, for package heap.
func (q *deferrals) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// scale returns d multiplied for a cluster of n members.
func scale(d time.Duration, n int) time.Duration {
	if n <= 128 {
		return d
	}
	return d * time.Duration(1+math.Ceil(math.Log2(float64(n))-7))
}

// SyncSoon asks for a full sync within seconds: after a server has joined, or a token was changed.
func (s *State) SyncSoon() { signal(s.sync.full) }

// Pause keeps changes from being pushed until the function it returns is called, once.
func (s *State) Pause() (resume func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sync.paused++
	return s.resume
}

func (s *State) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sync.paused--
	signal(s.sync.wake)
}

func (s *State) paused() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.sync.paused > 0
}

// runSync pushes changes as they come, and compares everything from time to time.
func (s *State) runSync(ctx context.Context) error {
	full := time.NewTimer(0)
	defer full.Stop()
	deferred := time.NewTimer(time.Hour)
	defer deferred.Stop()
	owed := false // a full sync fell into a pause
	for {
		partial := false
		select {
		case <-ctx.Done():
			return nil
		case <-s.sync.full:
			wait := s.cfg.Jitter(scale(fullSyncStagger, s.cfg.ClusterSize()))
			if !s.hasCompared() {
				wait = 0 // everything waits for the first
			}
			full.Reset(wait)
		case <-full.C:
			if owed = s.paused(); owed {
				continue
			}
			n := s.cfg.ClusterSize()
			wait := fullSyncInterval + s.cfg.Jitter(scale(fullSyncInterval, n))
			if err := s.syncFull(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				wait = fullSyncRetry + s.cfg.Jitter(scale(fullSyncRetry, n))
				s.log.Warn("cannot compare registrations with the catalog, will retry", "wait", wait, "error", err)
			}
			full.Reset(wait)
			partial = true
		case <-deferred.C:
			partial = true
		case <-s.sync.wake:
			partial = !owed
			if owed && !s.paused() {
				full.Reset(0) // the pending changes follow it
			}
		}
		if partial && s.compareFirst(ctx) {
			if wait := s.syncPending(ctx); wait > 0 {
				deferred.Reset(wait)
			}
		}
	}
}

func (s *State) hasCompared() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.sync.compared
}

// compareFirst makes sure that a full sync came before the first push: what the catalog knows of checks that nobody has
// looked at since the agent started is better than "critical", see takeOver. It reports false when that must wait.
func (s *State) compareFirst(ctx context.Context) bool {
	if s.hasCompared() || s.cfg.Caller == nil || s.paused() {
		return true
	}
	return s.syncFull(ctx) == nil || s.hasCompared()
}

// syncPending pushes everything that is pending. It returns when the next deferred check is due, 0 if there is none.
func (s *State) syncPending(ctx context.Context) (next time.Duration) {
	s.mu.Lock()
	if s.sync.paused > 0 {
		s.mu.Unlock()
		return 0
	}
	next = s.promote()
	keys := make([]string, 0, len(s.sync.units))
	for key := range s.sync.units {
		keys = append(keys, key)
	}
	node := s.sync.node != nil
	s.mu.Unlock()
	if len(keys) == 0 && !node || s.cfg.Caller == nil {
		return next
	}
	slices.Sort(keys)
	if err := s.pushNode(ctx); errors.Is(err, wireerr.ErrNoServers) {
		return next // nothing else would get through
	}
	var g errgroup.Group
	g.SetLimit(pushesAtOnce)
	var succeeded, failed atomic.Int32
	for _, key := range keys {
		if succeeded.Load() == 0 && failed.Load() >= hopeless {
			break
		}
		g.Go(func() error {
			if s.push(ctx, key) {
				succeeded.Add(1)
			} else {
				failed.Add(1)
			}
			return nil
		})
	}
	g.Wait()
	if failed.Load() > 0 {
		retry := fullSyncRetry + s.cfg.Jitter(scale(fullSyncRetry, s.cfg.ClusterSize()))
		if next == 0 || retry < next {
			next = retry
		}
	}
	return next
}

// pushNow is the attempt at the end of an agent call to have the catalog show what the call has changed. A failure is
// logged; the next sync tries again.
func (s *State) pushNow(ctx context.Context, keys ...string) {
	if s.cfg.Caller == nil || s.paused() || !s.compareFirst(ctx) {
		return
	}
	if err := s.pushNode(ctx); errors.Is(err, wireerr.ErrNoServers) {
		return
	}
	for _, key := range keys {
		s.push(ctx, key)
	}
}

// acquire takes the place in ch; it reports false when ctx ends first.
func acquire(ctx context.Context, ch chan struct{}) bool {
	select {
	case ch <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// pushNode sends the node record if that is pending.
func (s *State) pushNode(ctx context.Context) error {
	s.mu.RLock()
	clean := s.sync.node == nil
	s.mu.RUnlock()
	if clean {
		return nil
	}
	if !acquire(ctx, s.sync.nodeBusy) {
		return ctx.Err()
	}
	defer func() { <-s.sync.nodeBusy }()
	s.mu.RLock()
	p := s.sync.node
	req := s.nodeRequest(s.cfg.Tokens.Agent())
	s.mu.RUnlock()
	if p == nil {
		return nil
	}
	req.SkipNodeUpdate = false
	_, err := catalog.RegisterCall.Call(ctx, s.cfg.Caller, req)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settled(err, "node", s.node.Node) {
		if s.sync.node == p {
			s.sync.node = nil
		}
		return nil
	}
	return err
}

// nodeRequest returns a registration with the fields of the node. The mutex is held.
func (s *State) nodeRequest(token string) *catalog.RegisterRequest {
	n := &s.node
	return &catalog.RegisterRequest{
		Target: read.Target{Datacenter: s.cfg.Node.Datacenter, Token: token},
		ID:     n.ID, Node: n.Node, Address: n.Address, TaggedAddresses: n.TaggedAddresses, NodeMeta: n.Meta, Locality: n.Locality,
		SkipNodeUpdate: s.sync.node == nil,
	}
}

// settled reports whether a push is done with: it succeeded, or will not until something else changes. The mutex is
// held.
func (s *State) settled(err error, kind, id string) bool {
	switch {
	case err == nil:
		s.log.Debug("pushed to the catalog", "kind", kind, "id", id)
		return true
	case wireerr.Status(err) == http.StatusForbidden:
		countRefused(kind)
		facts := []any{"kind", kind, "id", id, "error", err}
		if denied, ok := acl.ParseDenied(err.Error()); ok {
			facts = append(facts, "missing_rule", denied.Rule())
		}
		s.log.Warn("the catalog refuses a change, will retry with the next full sync", facts...)
		return true
	case strings.Contains(err.Error(), "Unknown service ID"), strings.Contains(err.Error(), "Unknown check ID"):
		return kind == "deregistered service" || kind == "deregistered check"
	}
	level := hclog.Warn
	if errors.Is(err, wireerr.ErrNoServers) {
		level = hclog.Debug // whoever looks for servers says so
	}
	s.log.Log(level, "cannot push a change to the catalog, will retry", "kind", kind, "id", id, "error", err)
	return false
}

// push sends what is pending of a unit; it reports false when that has failed. Calls for one unit follow one another.
func (s *State) push(ctx context.Context, key string) bool {
	s.mu.Lock()
	u := s.sync.units[key]
	if u == nil {
		s.mu.Unlock()
		return true
	}
	u.refs++
	s.sync.pushed = true
	s.mu.Unlock()
	done := acquire(ctx, u.busy)
	if done {
		for _, op := range s.plan(u) {
			err := op.do(ctx, s)
			s.mu.Lock()
			done = s.settled(err, op.kind, op.id)
			if done {
				op.settle(u)
			}
			s.mu.Unlock()
			if !done {
				break
			}
		}
		<-u.busy
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u.refs--
	s.tidy(u)
	return done
}

// An op is one call of a push, with what it settles.
type op struct {
	kind, id   string // for the log
	register   *catalog.RegisterRequest
	deregister *catalog.DeregisterRequest
	service    *pending
	checks     map[string]*pending
}

func (o *op) do(ctx context.Context, s *State) error {
	var err error
	if o.register != nil {
		_, err = catalog.RegisterCall.Call(ctx, s.cfg.Caller, o.register)
	} else {
		_, err = catalog.DeregisterCall.Call(ctx, s.cfg.Caller, o.deregister)
	}
	return err
}

// settle strikes off what the call has sent, unless it has changed since. The mutex is held.
func (o *op) settle(u *unit) {
	if o.service != nil && u.service == o.service {
		u.service = nil
	}
	for id, p := range o.checks {
		if u.checks[id] == p {
			delete(u.checks, id)
		}
	}
}

// plan returns the calls that bring a unit up to date.
func (s *State) plan(u *unit) []*op {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ops []*op
	target := read.Target{Datacenter: s.cfg.Node.Datacenter, Token: s.cfg.Tokens.Agent()}
	left := maps.Clone(u.checks)
	if u.service != nil {
		id := u.key[1:]
		svc := s.services[id]
		switch {
		case u.service.gone && svc == nil:
			o := &op{kind: "deregistered service", id: id, service: u.service, checks: map[string]*pending{},
				deregister: &catalog.DeregisterRequest{Target: target, Node: s.node.Node, ServiceID: id}}
			for cid, p := range left {
				if p.gone { // they go with it
					o.checks[cid] = p
					delete(left, cid)
				}
			}
			ops = append(ops, o)
		case svc == nil:
			u.service = nil
		default:
			token := s.token(svc.Token, svc.Source)
			inst := *svc.Instance
			inst.TaggedAddresses = OwnAddresses(inst.TaggedAddresses)
			o := &op{kind: "service", id: id, service: u.service, checks: map[string]*pending{}, register: s.nodeRequest(token)}
			o.register.Service = &inst
			for _, cid := range slices.Sorted(maps.Keys(left)) {
				if c := s.checks[cid]; c != nil && s.token(c.Token, c.Source) == token {
					rec := *c.Record
					o.register.Checks = append(o.register.Checks, &rec)
					o.checks[cid] = left[cid]
					delete(left, cid)
				}
			}
			ops = append(ops, o)
		}
	}
	together := map[string]*op{} // the last call for checks, by token
	for _, cid := range slices.Sorted(maps.Keys(left)) {
		p, c := left[cid], s.checks[cid]
		switch {
		case p.gone && (c == nil || checkUnit(cid, c.Record.ServiceID) != u.key):
			if c != nil {
				// It has moved to another service: its registration there replaces this one.
				delete(u.checks, cid)
				continue
			}
			ops = append(ops, &op{kind: "deregistered check", id: cid, checks: map[string]*pending{cid: p},
				deregister: &catalog.DeregisterRequest{Target: target, Node: s.node.Node, CheckID: cid}})
		case c == nil:
			delete(u.checks, cid)
		default:
			token := s.token(c.Token, c.Source)
			o := together[token]
			if o == nil || len(o.checks) == checksAtOnce {
				o = &op{kind: "check", id: cid, checks: map[string]*pending{}, register: s.nodeRequest(token)}
				together[token] = o
				ops = append(ops, o)
			}
			rec := *c.Record
			o.register.Checks = append(o.register.Checks, &rec)
			o.checks[cid] = p
		}
	}
	for _, o := range ops {
		if n := len(o.checks); n > 1 && o.kind == "check" {
			o.id = fmt.Sprintf("%s and %d more", o.id, n-1)
		}
	}
	return ops
}

// token returns the secret a registration is made with.
func (s *State) token(own string, src Source) string {
	if own == "" && src == File {
		own = s.cfg.Tokens.Registration()
	}
	return cmp.Or(own, s.cfg.Tokens.Default())
}

// syncFull compares what the catalog has of the node with what it should have, and marks the differences. What an agent
// that has just started is about to push, but the catalog has already, is struck off; later that would not be safe, as
// the answer may be older than the latest push.
func (s *State) syncFull(ctx context.Context) error {
	if s.cfg.Caller == nil {
		return nil
	}
	req := &catalog.NodeServicesRequest{
		Options: read.Options{
			Target: read.Target{Datacenter: s.cfg.Node.Datacenter, Token: s.cfg.Tokens.Agent()},
			Mode:   read.Stale, MaxStale: fullSyncMaxStale,
		},
		Node: s.cfg.Node.Node, WithChecks: true,
	}
	reply, err := catalog.NodeServicesCall.Call(ctx, s.cfg.Caller, req)
	if err == nil && reply.LastContact > fullSyncMaxStale {
		req.Mode = read.Default
		reply, err = catalog.NodeServicesCall.Call(ctx, s.cfg.Caller, req)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		// Who may not read may still be allowed to write.
		s.sync.compared = s.sync.compared || wireerr.Status(err) == http.StatusForbidden
		return err
	}
	first := !s.sync.compared
	s.sync.compared = true
	if n := reply.Node; n == nil || !s.sameNode(n) {
		s.dirtyNode()
	}
	remote := make(map[string]bool, len(reply.Services))
	for _, r := range reply.Services {
		remote[r.ID] = true
		svc := s.services[r.ID]
		switch {
		case svc != nil:
			s.compareService(svc, r)
		case r.ID != catalog.ServerServiceName:
			s.goneService(r.ID)
		}
	}
	for id := range s.services {
		if !remote[id] {
			s.dirtyService(id)
		}
	}
	found := make(map[string]bool, len(reply.Checks))
	for _, r := range reply.Checks {
		found[r.CheckID] = true
		c := s.checks[r.CheckID]
		switch {
		case c != nil:
			if first {
				c = s.takeOver(c, r)
			}
			rec := c.Record
			if _, held := s.sync.deferred[r.CheckID]; held {
				same := *rec
				same.Output = r.Output
				rec = &same
			}
			if !sameCheck(rec, r) {
				s.dirtyCheck(r.CheckID, c.Record.ServiceID)
			} else if u := s.sync.units[checkUnit(r.CheckID, c.Record.ServiceID)]; u != nil && !s.sync.pushed {
				delete(u.checks, r.CheckID)
				s.tidy(u)
			}
		case r.CheckID != catalog.SerfCheckID:
			// The checks of a service that goes go with it.
			if r.ServiceID == "" || s.services[r.ServiceID] != nil {
				s.goneCheck(r.CheckID, r.ServiceID)
			}
		}
	}
	for id, c := range s.checks {
		if !found[id] {
			s.dirtyCheck(id, c.Record.ServiceID)
		}
	}
	return nil
}

// takeOver gives a check that nobody has looked at since the agent started the status it has in the catalog, until its
// first result: an agent that was restarted must not take healthy services away for as long as an interval is. TTL checks
// and those registered with a status have their own rule. The mutex is held.
func (s *State) takeOver(c *Check, remote *catalog.Check) *Check {
	unseen := c.CriticalSince.IsZero() || c.Def != nil && c.Def.CheckType() == definition.TypeAlias
	if c.Def == nil || c.Def.TTL > 0 || c.Def.Status != "" || !unseen || c.Record.Status != catalog.Critical ||
		remote.Status != catalog.Passing && remote.Status != catalog.Warning || remote.ServiceID != c.Record.ServiceID {
		return c
	}
	next, rec := *c, *c.Record
	rec.Status, rec.Output = remote.Status, remote.Output
	next.Record, next.CriticalSince = &rec, time.Time{}
	s.checks[rec.CheckID] = &next
	s.runner.Trigger(rec.CheckID) // an alias is judged again at once, by what its checks are now
	s.triggerAliases(rec.ServiceID)
	s.notify()
	return &next
}

func (s *State) sameNode(n *catalog.Node) bool {
	return strings.EqualFold(n.ID, s.node.ID) && n.Address == s.node.Address && sameLocality(n.Locality, s.node.Locality) &&
		maps.Equal(n.TaggedAddresses, s.node.TaggedAddresses) && maps.Equal(n.Meta, s.node.Meta)
}

// compareService takes over what belongs to the catalog and marks the service when the rest differs. The mutex is held.
func (s *State) compareService(svc *Service, remote *catalog.Service) {
	next := *svc
	given := *svc.Given
	given.TaggedAddresses = OwnAddresses(given.TaggedAddresses)
	for tag, a := range remote.TaggedAddresses {
		if serverTag(tag) {
			given.TaggedAddresses[tag] = a
		}
	}
	if len(given.TaggedAddresses) == 0 {
		given.TaggedAddresses = nil
	}
	if given.EnableTagOverride {
		given.Tags = slices.Clone(remote.Tags)
	}
	if !maps.Equal(given.TaggedAddresses, svc.Given.TaggedAddresses) || !slices.Equal(given.Tags, svc.Given.Tags) {
		next.Given = &given
		next.Instance = s.merge(&given)
		s.services[given.ID] = &next
		s.notifyService(given.ID)
	}
	if !sameInstance(next.Instance, remote) {
		s.dirtyService(given.ID)
	} else if u := s.sync.units[serviceUnit(given.ID)]; u != nil && !s.sync.pushed {
		u.service = nil
		s.tidy(u)
	}
}
