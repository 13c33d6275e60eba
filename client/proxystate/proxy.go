package proxystate

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/xds"
)

// A proxy is one proxy that is followed. Its goroutine (run) owns the snapshot and the watches; others leave answers
// with it and take what it published.
type proxy struct {
	s   *State
	key key
	log hclog.Logger

	subscribers int // under State.mu

	dirty chan struct{} // holds one token when there is something for run to do

	mu       sync.Mutex
	period   int                // counts the times that everything was begun anew; answers of earlier periods are void
	answers  map[mesh.Need]any  // arrived, not yet in the snapshot
	known    map[mesh.Need]bool // true for what was answered, false for what only failed so far
	snapshot *mesh.Snapshot     // published; nil while there is none
	ended    bool
	changed  chan struct{} // closed and replaced when snapshot or ended changes

	compiling sync.Mutex // guards compiled; held while compiling
	compiled  [xds.NumFlavours]compiled
}

// A compiled is the last compilation of one flavour.
type compiled struct {
	compiler  xds.Compiler
	of        *mesh.Snapshot
	resources *xds.Resources // the last that could be made
	err       error          // of the last compilation
}

func newProxy(s *State, k key) *proxy {
	p := &proxy{
		s: s, key: k, log: s.cfg.Logger.With("proxy", k.id), dirty: make(chan struct{}, 1), changed: make(chan struct{}),
		answers: map[mesh.Need]any{}, known: map[mesh.Need]bool{},
	}
	if k.node != "" {
		p.log = p.log.With("node", k.node)
	}
	for f := range p.compiled {
		p.compiled[f].compiler = xds.Compiler{Flavour: xds.Flavour(f), Shared: &s.shared}
	}
	return p
}

// poke makes run look around.
func (p *proxy) poke() {
	select {
	case p.dirty <- struct{}{}:
	default:
	}
}

// run follows the proxy until ctx ends or nobody has a use for it.
func (p *proxy) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	watches := &watches{p: p, cancels: map[mesh.Need]func(){}}
	defer func() {
		p.end()
		cancel()
		watches.end()
	}()
	source, stop := p.source()
	defer stop()

	var snapshot *mesh.Snapshot
	var watched *mesh.Snapshot // whose needs are watched, nil for none
	var service *catalog.Service
	published := false
	waited := time.NewTimer(0)
	waited.Stop()
	defer waited.Stop()
	overdue := false
	for {
		svc, token, news := source.Proxy(p.key.id)
		switch {
		case svc == nil:
			if snapshot != nil {
				p.log.Debug("proxy deregistered")
			}
			snapshot, watched, service, published = nil, nil, nil, false
			watches.restart("")
			p.publish(nil)
			if p.s.retire(p) {
				return
			}
		case snapshot == nil || token != watches.token:
			// The published snapshot stays until the new one is as complete.
			watches.restart(token)
			watched = nil
			snapshot, service = mesh.New(p.registration(svc)), svc
			published, overdue = false, false
			waited.Reset(p.s.cfg.FirstWait)
		case svc != service && !reflect.DeepEqual(svc, service):
			snapshot, service = snapshot.Register(p.registration(svc)), svc
		}
		if snapshot != nil {
			// Watches may answer while they are being set up, and answers may bring further needs: mostly they do not.
			for {
				if !sameNeeds(snapshot, watched) {
					watches.reconcile(ctx, snapshot.Needs())
				}
				watched = snapshot
				answers := p.take()
				if len(answers) == 0 {
					break
				}
				snapshot = snapshot.With(answers)
			}
			if snapshot.Complete() && (published || overdue || p.settled(snapshot)) {
				published = true
				p.publish(snapshot)
			}
		}
		select {
		case <-p.dirty:
			if p.key.node != "" && p.s.retire(p) {
				return // in the catalog: there may be many, and their proxies ask any server
			}
		case <-news:
		case <-waited.C:
			overdue = true
		case <-ctx.Done():
			return
		}
	}
}

// sameNeeds reports whether what is needed for a snapshot is known to be what was for an older one, nil for none.
func sameNeeds(s, older *mesh.Snapshot) bool {
	if older == nil {
		return false
	}
	_, ok := s.Since(older)
	return ok
}

func (p *proxy) registration(svc *catalog.Service) *mesh.Registration {
	r := &mesh.Registration{
		Node: p.s.cfg.Node, Datacenter: p.s.cfg.Datacenter, Domain: p.s.cfg.Domain, Service: svc, DefaultAllow: p.s.cfg.DefaultAllow,
	}
	if p.key.node != "" {
		r.Node = p.key.node
	}
	return r
}

// take returns the answers that arrived.
func (p *proxy) take() map[mesh.Need]any {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.answers
	if len(a) == 0 {
		return nil
	}
	p.answers = map[mesh.Need]any{}
	return a
}

// answer leaves an answer for run.
func (p *proxy) answer(period int, n mesh.Need, v any) {
	p.mu.Lock()
	if period == p.period {
		p.answers[n], p.known[n] = v, true
	}
	p.mu.Unlock()
	p.poke()
}

// fail notes that something needed cannot be had now. What is known of it stays; the first configuration does not wait
// for what is not known.
func (p *proxy) fail(period int, n mesh.Need, err error) {
	p.mu.Lock()
	_, before := p.known[n]
	first := period == p.period && !before
	if first {
		p.known[n] = false
		if n.Kind == mesh.NeedInstances && n.Datacenter != "" {
			// Of a datacenter that is out of reach no instance can be reached either: those elsewhere stand in.
			p.answers[n] = &catalog.InstancesReply{}
		}
	}
	p.mu.Unlock()
	if first {
		p.log.Warn("proxy goes on without what the servers do not tell", "missing", n.String(), "error", err)
		p.poke()
	}
}

// forget voids what is known about something that is no longer needed.
func (p *proxy) forget(n mesh.Need) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.answers, n)
	delete(p.known, n)
}

// settled reports whether everything needed is known or cannot be had.
func (p *proxy) settled(s *mesh.Snapshot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range s.Needs() {
		// What was answered but is not in the snapshot yet may bring further needs.
		if answered, tried := p.known[n]; !s.Has(n) && (answered || !tried) {
			return false
		}
	}
	return true
}

// publish makes a snapshot the one that subscribers get.
func (p *proxy) publish(s *mesh.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.snapshot == s {
		return
	}
	p.snapshot = s
	p.announceLocked()
}

// end tells subscribers that nothing more will come.
func (p *proxy) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.ended = true
		p.announceLocked()
	}
}

func (p *proxy) announceLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// resources returns what there is of a flavour, compiling it if it has not been.
func (p *proxy) resources(f xds.Flavour) (*xds.Resources, <-chan struct{}, error) {
	p.compiling.Lock()
	defer p.compiling.Unlock()
	p.mu.Lock()
	snapshot, changed, ended := p.snapshot, p.changed, p.ended
	p.mu.Unlock()
	c := &p.compiled[f]
	switch {
	case ended:
		return nil, changed, ads.ErrEnded
	case snapshot == nil:
		c.of, c.resources, c.err = nil, nil, nil
		return nil, changed, nil
	case snapshot != c.of:
		c.of = snapshot
		r, err := c.compiler.Compile(snapshot)
		if err != nil {
			// The last good configuration stays.
			p.log.Error("proxy configuration could not be made", "error", err)
			c.err = err
		} else {
			for _, problem := range r.Problems {
				p.log.Warn("part of the proxy configuration was left out", "error", problem)
			}
			c.resources, c.err = r, nil
		}
	}
	return c.resources, changed, c.err
}

// A subscription implements ads.Subscription.
type subscription struct {
	p       *proxy
	flavour xds.Flavour
	once    sync.Once
}

func (s *subscription) Current() (*xds.Resources, <-chan struct{}, error) {
	return s.p.resources(s.flavour)
}

func (s *subscription) Movable() bool { return s.p.key.node != "" }

func (s *subscription) Close() { s.once.Do(func() { s.p.s.release(s.p) }) }
