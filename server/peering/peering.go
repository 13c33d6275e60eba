// Package peering keeps the streams between this cluster and its peers. The leader dials the clusters whose tokens were
// taken here and is dialed by those that took a token of its own; over each stream either side tells the other, as long
// as the peering lasts, which services it exports to it, where they are and whom to trust for them. What arrives is
// checked, bounded, and stored as an import of that peer alone.
package peering

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
)

// Config tunes an Engine. A zero field takes its default.
type Config struct {
	Datacenter string
	Store      *state.Store
	// Dial opens connections to the servers of peers.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// LeaderAddress returns where the gRPC-TLS port of the leader is, empty when that is not known.
	LeaderAddress func() string

	Heartbeat  time.Duration // between signs of life; default 15s
	Silence    time.Duration // after which a stream without any is down; default 2m
	MaxBackoff time.Duration // between attempts to dial; default 64s
	Random     io.Reader     // default crypto/rand
	Logger     hclog.Logger  // default discards
}

// An Engine keeps the streams. Make one with New; it works while its Duty runs, and answers peers that it does not lead
// otherwise.
type Engine struct {
	cfg       Config
	log       hclog.Logger
	greetings chan struct{} // bounds streams that are not open yet

	mu     sync.Mutex // guards what follows
	lead   *leading   // nil while another server leads
	status map[string]*peering.Status
}

// leading is what there is while this server leads.
type leading struct {
	ctx   context.Context //nolint:containedctx // of the leadership, which streams of the gRPC server are to end with
	l     *leader.Leader
	tasks sync.WaitGroup
	// Guarded by the engine's mu.
	streams map[string]*stream // by peering ID, those that are up
	workers map[string]*worker // by peering ID
}

// Causes of the end of a stream.
var (
	errDeleted   = errors.New("the peering was deleted here")
	errReplaced  = errors.New("the peer has opened another stream")
	errEnded     = errors.New("the peer has deleted the peering")
	errSilent    = errors.New("the peer has not given a sign of life")
	errRenewed   = errors.New("a new token was taken")
	errNotLeader = errors.New("another server leads")
)

// New returns an engine.
func New(cfg Config) *Engine {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.Heartbeat, 15 * time.Second}, {&cfg.Silence, 2 * time.Minute}, {&cfg.MaxBackoff, 64 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if cfg.LeaderAddress == nil {
		cfg.LeaderAddress = func() string { return "" }
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Engine{
		cfg: cfg, log: cfg.Logger.Named("peering"), greetings: make(chan struct{}, 64), status: map[string]*peering.Status{},
	}
}

// Status returns what is known of the stream of a peering.
func (e *Engine) Status(id string) peering.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.status[id]; s != nil {
		return *s
	}
	return peering.Status{}
}

// note changes what is known of a stream.
func (e *Engine) note(id string, change func(s *peering.Status, now time.Time)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status[id]
	if s == nil {
		s = &peering.Status{}
		e.status[id] = s
	}
	change(s, time.Now())
}

// Duty is what the leader does for peerings.
func (e *Engine) Duty() leader.Duty { return leader.Duty{Name: "peering", Run: e.run} }

// run keeps the streams of this leadership.
func (e *Engine) run(ctx context.Context, l *leader.Leader) error {
	ctx, cancel := context.WithCancel(ctx)
	now := &leading{ctx: ctx, l: l, streams: map[string]*stream{}, workers: map[string]*worker{}}
	e.mu.Lock()
	e.lead = now
	clear(e.status)
	e.mu.Unlock()
	defer func() {
		cancel()
		e.mu.Lock()
		e.lead = nil
		e.mu.Unlock()
		now.tasks.Wait()
	}()
	now.tasks.Go(func() { e.watchSilence(now) })
	for {
		v := l.Store.WatchView()
		_, all := v.Peerings()
		secrets := make(map[string]string, len(all))
		for _, p := range all {
			if s := v.PeeringSecrets(p.ID); s != nil {
				secrets[p.ID] = s.Stream
			}
		}
		e.reconcile(now, all, secrets)
		if v.Wait(ctx) != nil {
			return nil
		}
	}
}

// A worker does what a peering needs in its present role.
type worker struct {
	role   role
	secret string // that streams are opened with
	cancel context.CancelCauseFunc
}

// A role is what there is to do for a peering.
type role uint8

const (
	noRole role = iota // it waits to be called
	dialing
	removing // what it brought
	deleting // it, with what it brought
)

func roleOf(p *peering.Peering) role {
	switch {
	case p.State == peering.Deleting:
		return deleting
	case !p.Open():
		return removing
	case p.Dials():
		return dialing
	}
	return noRole
}

// reconcile makes the workers those that the peerings need, given the secrets that streams are opened with by ID.
func (e *Engine) reconcile(now *leading, all []*peering.Peering, secrets map[string]string) {
	wanted := map[string]*peering.Peering{}
	for _, p := range all {
		wanted[p.ID] = p
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, w := range now.workers {
		switch p := wanted[id]; {
		case p == nil || roleOf(p) != w.role:
			w.cancel(errDeleted)
			delete(now.workers, id)
		case secrets[id] != w.secret:
			w.cancel(errRenewed)
			delete(now.workers, id)
		}
	}
	for id, s := range now.streams {
		if p := wanted[id]; p == nil || !p.Open() {
			s.cancel(errDeleted)
		}
	}
	for id := range e.status {
		if wanted[id] == nil {
			delete(e.status, id)
		}
	}
	for _, p := range all {
		r := roleOf(p)
		if r == noRole || now.workers[p.ID] != nil {
			continue
		}
		ctx, cancel := context.WithCancelCause(now.ctx)
		now.workers[p.ID] = &worker{role: r, secret: secrets[p.ID], cancel: cancel}
		now.tasks.Go(func() {
			defer cancel(nil)
			if r == dialing {
				e.keepDialing(ctx, now, p.ID)
			} else {
				e.remove(ctx, now, p)
			}
		})
	}
}

// removeAtOnce is how many imports one command removes.
const removeAtOnce = 200

// remove takes away what a peering that has ended brought, and the peering too if it was deleted here.
func (e *Engine) remove(ctx context.Context, now *leading, p *peering.Peering) {
	e.mu.Lock()
	s := now.streams[p.ID]
	e.mu.Unlock()
	if s != nil { // it says goodbye
		select {
		case <-s.done:
		case <-ctx.Done():
			return
		}
	} else if p.State == peering.Deleting && p.Dials() {
		e.sayGoodbye(ctx, p)
	}
	for retry := time.Second; ; retry = min(2*retry, 30*time.Second) {
		err := e.removeOnce(ctx, now, p)
		if err == nil || ctx.Err() != nil {
			return
		}
		e.log.Warn("cannot remove what a peering brought, will retry", "peer", p.Name, "wait", retry, "error", err)
		if !pause.For(ctx, retry) {
			return
		}
	}
}

func (e *Engine) removeOnce(ctx context.Context, now *leading, p *peering.Peering) error {
	for {
		reply, err := now.l.Apply(ctx, fsm.PeeringChange, &peering.Change{ID: p.ID, RemoveAll: removeAtOnce})
		if err != nil {
			return err
		}
		if r, ok := reply.(*peering.ChangeReply); ok && r.Left > 0 {
			continue
		}
		break
	}
	if p.State != peering.Deleting {
		return nil
	}
	_, err := now.l.Apply(ctx, fsm.Peering, &peering.Update{Forget: p.ID})
	if err == nil {
		e.log.Info("a deleted peering is gone", "peer", p.Name)
	}
	return err
}

// watchSilence notices that peers that were there have not called for a while, or that they are there again.
func (e *Engine) watchSilence(now *leading) {
	since := map[string]time.Time{} // when their streams were last seen
	tick := time.NewTicker(e.cfg.Heartbeat)
	defer tick.Stop()
	for {
		_, all := now.l.Store.View().Peerings()
		for _, p := range all {
			e.mu.Lock()
			up := now.streams[p.ID] != nil
			e.mu.Unlock()
			if _, known := since[p.ID]; up || !known {
				since[p.ID] = time.Now()
			}
			switch {
			case p.State == peering.Active && !up && time.Since(since[p.ID]) >= e.cfg.Silence:
				e.setState(now.ctx, now, p, peering.Failing)
			case up && p.Open():
				e.setState(now.ctx, now, p, peering.Active)
			}
		}
		select {
		case <-tick.C:
		case <-now.ctx.Done():
			return
		}
	}
}

// setState records the state of a peering.
func (e *Engine) setState(ctx context.Context, now *leading, p *peering.Peering, s peering.State) {
	if p.State == s {
		return
	}
	if _, err := now.l.Apply(ctx, fsm.Peering, &peering.Update{Status: &peering.StatusUpdate{ID: p.ID, State: s}}); err != nil {
		if ctx.Err() == nil {
			e.log.Debug("cannot record the state of a peering", "peer", p.Name, "state", s, "error", err)
		}
		return
	}
	e.log.Info("a peering has changed", "peer", p.Name, "state", s)
}
