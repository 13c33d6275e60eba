package local

import (
	"context"
	"reflect"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/pause"
)

const (
	// centralWait bounds how long a registration waits for central configuration.
	centralWait     = 2 * time.Second
	centralRetry    = time.Second // doubled with every failure up to centralRetryMax
	centralRetryMax = 30 * time.Second
)

// central is the central configuration of one service: the question and the latest answer. It is never changed.
type central struct {
	request  *entry.ResolvedRequest
	resolved *entry.Resolved
	index    uint64 // of the answer, 0 when it comes from disk
}

// merge returns given with central configuration. The mutex is held.
func (s *State) merge(given *catalog.Service) *catalog.Service {
	c := s.central[given.ID]
	if c == nil {
		return given
	}
	return definition.MergeCentral(given, c.resolved)
}

// wakeCentral makes runCentral look at the services again. The mutex is held.
func (s *State) wakeCentral() { signal(s.centralWake) }

func (s *State) hasCentral(svc *catalog.Service) bool {
	return definition.Central(svc.Kind) && !s.cfg.NoCentralConfig && s.cfg.Caller != nil
}

func (s *State) centralRequest(svc *catalog.Service, token string, src Source) *entry.ResolvedRequest {
	req := definition.CentralRequest(svc)
	req.Datacenter, req.Token = s.cfg.Node.Datacenter, s.token(token, src)
	req.Options.Mode = read.Stale
	return req
}

// prepareCentral reads the central configuration of a service that is about to be registered, once and for no longer
// than centralWait; without an answer it is registered as it is, and merged later.
func (s *State) prepareCentral(ctx context.Context, svc *catalog.Service, token string, src Source) *central {
	if !s.hasCentral(svc) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, centralWait)
	defer cancel()
	req := s.centralRequest(svc, token, src)
	reply, err := entry.ResolvedCall.Call(ctx, s.cfg.Caller, req)
	if err != nil {
		s.log.Warn("central configuration is not available, registering without", "service", svc.ID, "error", err)
		return nil
	}
	return &central{req, &reply.Resolved, max(reply.Index, 1)}
}

// setCentral stores an answer, unless there already is a newer one to the same question. The mutex is held.
func (s *State) setCentral(id string, c *central) {
	if c == nil {
		return
	}
	if old := s.central[id]; old != nil && sameQuestion(old.request, c.request) && old.index > c.index {
		return
	}
	s.central[id] = c
}

func sameQuestion(a, b *entry.ResolvedRequest) bool {
	x, y := *a, *b
	x.MinIndex, y.MinIndex = 0, 0
	return reflect.DeepEqual(x, y)
}

// A centralWatch follows the central configuration of one service.
type centralWatch struct {
	request *entry.ResolvedRequest
	cancel  context.CancelFunc
	done    chan struct{}
}

// runCentral keeps a watch for every service with central configuration.
func (s *State) runCentral(ctx context.Context) error {
	watches := map[string]*centralWatch{}
	defer func() {
		for _, w := range watches {
			w.cancel()
		}
		for _, w := range watches {
			<-w.done
		}
	}()
	for {
		s.reconcileCentral(ctx, watches)
		select {
		case <-ctx.Done():
			return nil
		case <-s.centralWake:
		}
	}
}

// reconcileCentral makes the watches those that are wanted.
func (s *State) reconcileCentral(ctx context.Context, watches map[string]*centralWatch) {
	want := map[string]*entry.ResolvedRequest{}
	s.mu.RLock()
	for id, svc := range s.services {
		if s.hasCentral(svc.Given) {
			want[id] = s.centralRequest(svc.Given, svc.Token, svc.Source)
		}
	}
	s.mu.RUnlock()
	for id, w := range watches {
		if req := want[id]; req == nil || !sameQuestion(req, w.request) {
			w.cancel()
			<-w.done
			delete(watches, id)
		}
	}
	for id, req := range want {
		if watches[id] != nil {
			continue
		}
		wctx, cancel := context.WithCancel(ctx)
		w := &centralWatch{req, cancel, make(chan struct{})}
		watches[id] = w
		go func() {
			defer close(w.done)
			s.watchCentral(wctx, id, *req)
		}()
	}
}

// watchCentral takes every new answer for one service until ctx ends.
func (s *State) watchCentral(ctx context.Context, id string, req entry.ResolvedRequest) {
	s.mu.RLock()
	if c := s.central[id]; c != nil && sameQuestion(c.request, &req) {
		req.MinIndex = c.index
	}
	s.mu.RUnlock()
	for wait := centralRetry; ; {
		began := time.Now()
		ask := req
		reply, err := entry.ResolvedCall.Call(ctx, s.cfg.Caller, &ask)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
			s.log.Debug("cannot read central configuration, will retry", "service", id, "wait", wait, "error", err)
			req.MinIndex = 0
			pause.For(ctx, wait)
			wait = min(2*wait, centralRetryMax)
			continue
		case reply.Index < req.MinIndex:
			req.MinIndex = 0 // the state was replaced: take what there is now
			continue
		case reply.Index == req.MinIndex && time.Since(began) < centralRetry:
			pause.For(ctx, centralRetry) // it should have waited
		}
		wait = centralRetry
		req.MinIndex = max(reply.Index, 1)
		asked := req
		s.takeCentral(id, &central{&asked, &reply.Resolved, req.MinIndex})
	}
}

// takeCentral merges a new answer into a registered service.
func (s *State) takeCentral(id string, c *central) {
	s.mu.Lock()
	svc := s.services[id]
	if svc == nil {
		s.mu.Unlock()
		return
	}
	old := s.central[id]
	s.central[id] = c
	same := old != nil && reflect.DeepEqual(old.resolved, c.resolved)
	if !same {
		next := *svc
		if next.Instance = s.merge(next.Given); !sameInstance(next.Instance, svc.Instance) {
			s.services[id] = &next
			s.dirtyService(id)
			s.notifyService(id)
			s.refreshExposed(next.Given.Proxy.DestinationServiceID)
		}
	}
	s.mu.Unlock()
	if s.disk != nil && !same {
		s.persistCentral(id)
	}
}
