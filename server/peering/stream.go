package peering

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/server/fsm"
)

// Bounds of a stream.
const (
	window      = 32                     // resources that were sent and not answered yet
	settle      = 200 * time.Millisecond // changes that come so soon after each other are sent together
	farewell    = 2 * time.Second        // to tell the other side that the peering was deleted
	messageRate = 1000                   // messages a second that are read
	changeRate  = 100                    // changes a second that are made of them
)

// A stream is one that is up.
type stream struct {
	e   *Engine
	now *leading
	p   *peering.Peering // as it was when the stream was opened
	c   carrier
	log hclog.Logger

	cancel context.CancelCauseFunc
	done   chan struct{} // closed when nothing more is sent or taken
	heard  chan struct{} // closed when the other side is not listened to any more

	out     chan *message
	sending sync.Mutex // held while something is sent
	// importing is held while something is stored, so that nothing is after the stream is over.
	importing sync.Mutex
	over      bool            // guarded by importing
	listed    map[string]bool // services exported to this cluster; nil until they were told. Only the reader uses it

	mu      sync.Mutex // guards what follows
	waiting map[uint64]*resource
	slots   chan struct{}
}

// converse talks over a stream that was opened until it ends, and returns why. The caller then ends what carries the
// stream; only then do the last goroutines end, which the leadership waits for.
func (e *Engine) converse(ctx context.Context, now *leading, p *peering.Peering, c carrier, other hello) error {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stream{
		e: e, now: now, p: p, c: c, log: e.log.With("peer", p.Name), cancel: cancel, done: make(chan struct{}),
		heard: make(chan struct{}), out: make(chan *message), waiting: map[uint64]*resource{}, slots: make(chan struct{}, window),
	}
	defer close(s.done)
	defer cancel(nil)
	if err := e.enter(ctx, s); err != nil {
		return err
	}
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if now.streams[p.ID] == s {
			delete(now.streams, p.ID)
		}
	}()
	status := &peering.StatusUpdate{ID: p.ID, State: peering.Active, Remote: &peering.Remote{Datacenter: other.Datacenter, Partition: p.Remote.Partition}}
	if checkText("a datacenter", other.Datacenter) != nil {
		status.Remote = nil
	}
	if _, err := now.l.Apply(ctx, fsm.Peering, &peering.Update{Status: status}); err != nil {
		return fmt.Errorf("record that the stream is up: %w", err)
	}
	s.log.Info("the stream to the peer is up")
	e.note(p.ID, func(st *peering.Status, at time.Time) { st.LastHeartbeat = at })

	failed := make(chan error, 4)
	beaten := make(chan struct{}, 1)
	now.tasks.Go(func() { failed <- s.read(ctx, beaten) })
	now.tasks.Go(func() { failed <- s.write(ctx) })
	now.tasks.Go(func() { failed <- s.export(ctx) })
	err := s.beat(ctx, beaten, failed)
	s.importing.Lock()
	s.over = true
	s.importing.Unlock()
	cancel(err)
	if errors.Is(err, errDeleted) {
		s.goodbye()
	}
	return err
}

// enter makes s the stream of its peering, in the place of one before.
func (e *Engine) enter(ctx context.Context, s *stream) error {
	for {
		e.mu.Lock()
		old := s.now.streams[s.p.ID]
		if old == nil {
			s.now.streams[s.p.ID] = s
			e.mu.Unlock()
			return nil
		}
		e.mu.Unlock()
		old.cancel(errReplaced)
		select {
		case <-old.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// beat gives signs of life, and waits until those of the other side stop or something else ends the stream.
func (s *stream) beat(ctx context.Context, beaten <-chan struct{}, failed <-chan error) error {
	tick := time.NewTicker(s.e.cfg.Heartbeat)
	defer tick.Stop()
	silence := time.NewTimer(s.e.cfg.Silence)
	defer silence.Stop()
	var out chan *message
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-failed:
			return err
		case <-silence.C:
			return errSilent
		case <-beaten:
			silence.Reset(s.e.cfg.Silence)
		case <-tick.C:
			out = s.out
		case out <- &message{Beat: true}:
			out = nil
		}
	}
}

// write sends what is to be sent.
func (s *stream) write(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case m := <-s.out:
			s.sending.Lock()
			err := send(s.c, m)
			s.sending.Unlock()
			if err != nil {
				return fmt.Errorf("send: %w", err)
			}
			s.e.note(s.p.ID, func(st *peering.Status, now time.Time) { st.LastSend = now })
		}
	}
}

// say hands a message to write.
func (s *stream) say(ctx context.Context, m *message) error {
	select {
	case s.out <- m:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// goodbye tells the other side that the peering is no more, and waits, but not for long, until it has ended the stream.
func (s *stream) goodbye() {
	s.now.tasks.Go(func() {
		s.sending.Lock() // what is being sent may take its time
		defer s.sending.Unlock()
		_ = send(s.c, &message{End: true}) // the other side will notice otherwise
	})
	t := time.NewTimer(farewell)
	defer t.Stop()
	select {
	case <-s.heard:
	case <-t.C:
	}
}

// read takes what the other side says until the stream ends. After a goodbye it waits for the end without listening.
func (s *stream) read(ctx context.Context, beaten chan<- struct{}) error {
	defer close(s.heard)
	err := s.listen(ctx, beaten)
	for errors.Is(context.Cause(ctx), errDeleted) {
		if _, err := receive(s.c); err != nil {
			break
		}
	}
	return err
}

// listen takes what the other side says.
func (s *stream) listen(ctx context.Context, beaten chan<- struct{}) error {
	messages, changes := newLimit(messageRate, 5*messageRate), newLimit(changeRate, 10*changeRate)
	for {
		m, err := receive(s.c)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if !messages.wait(ctx) {
			return context.Cause(ctx)
		}
		s.e.note(s.p.ID, func(st *peering.Status, now time.Time) {
			st.LastReceive = now
			if m.Beat {
				st.LastHeartbeat = now
			}
		})
		switch {
		case m.Beat:
			select {
			case beaten <- struct{}{}:
			default:
			}
		case m.End:
			return errEnded
		case m.Ack != nil:
			s.answered(m.Ack)
		case m.Put != nil:
			answer := &ack{Nonce: m.Put.Nonce}
			if err := s.take(ctx, m.Put, changes); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				s.log.Warn("refused what the peer sent", "kind", fmt.Sprintf("%.20q", m.Put.Kind), "name", fmt.Sprintf("%.80q", m.Put.Name), "error", err)
				answer.Error = err.Error()
			}
			if err := s.say(ctx, &message{Ack: answer}); err != nil {
				return err
			}
		default:
			return errors.New("the peer said nothing that is known here")
		}
	}
}

// A limit lets so many events pass in a second, and some more at once after a pause.
type limit struct {
	rate, burst, left float64
	last              time.Time
}

func newLimit(rate, burst float64) *limit {
	return &limit{rate: rate, burst: burst, left: burst, last: time.Now()}
}

// wait waits until another event may pass, and reports whether ctx has not ended before.
func (l *limit) wait(ctx context.Context) bool {
	now := time.Now()
	l.left = min(l.burst, l.left+now.Sub(l.last).Seconds()*l.rate)
	l.last = now
	l.left--
	if l.left >= 0 {
		return true
	}
	return pause.For(ctx, time.Duration(-l.left/l.rate*float64(time.Second)))
}

// answered notes what the other side says about a resource it was sent.
func (s *stream) answered(a *ack) {
	s.mu.Lock()
	r := s.waiting[a.Nonce]
	delete(s.waiting, a.Nonce)
	s.mu.Unlock()
	if r == nil {
		return
	}
	<-s.slots
	if a.Error != "" {
		s.log.Warn("the peer refused what it was sent", "kind", r.Kind, "name", r.Name, "error", fmt.Sprintf("%.*q", maxError, a.Error))
	}
}

// export keeps the other side's knowledge of this cluster current.
func (s *stream) export(ctx context.Context) error {
	type key struct {
		kind resourceKind
		name string
	}
	sent := map[key]uint64{} // hashes of what was sent
	nonce := uint64(0)
	for {
		v := s.now.l.Store.WatchView()
		p := v.PeeringByID(s.p.ID)
		if p == nil || !p.Open() {
			return errDeleted
		}
		all, err := exports(v, s.e.cfg.Datacenter, p)
		if err != nil {
			return err
		}
		present := make(map[key]bool, len(all))
		for _, r := range all {
			k := key{r.Kind, r.Name}
			present[k] = true
			h := fnv.New64a()
			h.Write(r.Data)
			sum := h.Sum64()
			if old, ok := sent[k]; ok && old == sum {
				continue
			}
			select {
			case s.slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			nonce++
			r.Nonce = nonce
			s.mu.Lock()
			s.waiting[nonce] = &resource{Kind: r.Kind, Name: r.Name}
			s.mu.Unlock()
			if err := s.say(ctx, &message{Put: r}); err != nil {
				return err
			}
			sent[k] = sum
		}
		for k := range sent {
			if !present[k] {
				delete(sent, k)
			}
		}
		if v.Wait(ctx) != nil || !pause.For(ctx, settle) {
			return context.Cause(ctx)
		}
	}
}

// take stores what the other side sent. What cannot be made sense of must not stop a server.
func (s *stream) take(ctx context.Context, r *resource, changes *limit) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("what the peer sent could not be taken", "panic", p, "stack", string(debug.Stack()))
			err = errors.New("it could not be taken")
		}
	}()
	v := s.now.l.Store.View()
	switch r.Kind {
	case bundleResource:
		return s.takeBundle(ctx, r, changes)
	case serversResource:
		if !s.p.Dials() {
			return errors.New("only the side that dials needs addresses")
		}
		var list []string
		if err := decode(r.Data, &list); err != nil {
			return err
		}
		if err := peering.CheckAddresses(list); err != nil || len(list) == 0 {
			return errors.New("the addresses are not valid")
		}
		return s.update(ctx, changes, &peering.StatusUpdate{ID: s.p.ID, Addresses: list})
	case servicesResource:
		listed, err := serviceNames(r.Data)
		if err != nil {
			return err
		}
		s.listed = listed
		_, all := v.Imports(s.p.Name)
		var gone []string
		for _, i := range all {
			if !listed[lower(i.Service)] {
				gone = append(gone, i.Service)
			}
		}
		if len(gone) == 0 {
			return nil
		}
		return s.change(ctx, changes, &peering.Change{ID: s.p.ID, Remove: gone})
	case serviceResource:
		if !s.listed[lower(r.Name)] {
			return errors.New("the service is not one of those that are exported to this cluster")
		}
		var d serviceData
		if err := decode(r.Data, &d); err != nil {
			return err
		}
		trustDomain := ""
		if _, b := v.PeerBundle(s.p.Name); b != nil {
			trustDomain = b.TrustDomain
		}
		i, err := imported(s.p.Name, r.Name, &d, trustDomain)
		if err != nil {
			return err
		}
		if _, old := v.Import(s.p.Name, r.Name); old != nil && sameImport(old, i) {
			return nil
		}
		return s.change(ctx, changes, &peering.Change{ID: s.p.ID, Import: i})
	}
	return errors.New("a resource of this kind is not known here")
}

func (s *stream) takeBundle(ctx context.Context, r *resource, changes *limit) error {
	var d bundleData
	if err := decode(r.Data, &d); err != nil {
		return err
	}
	expected := ""
	if s.p.Dials() {
		expected, _ = peering.ServerTrustDomain(s.p.PeerServerName) // it was checked with the token
	}
	b, err := bundle(&d, expected)
	if err != nil {
		return err
	}
	if _, old := s.now.l.Store.View().PeerBundle(s.p.Name); old == nil || !sameBundle(old, b) {
		if err := s.change(ctx, changes, &peering.Change{ID: s.p.ID, Bundle: b}); err != nil {
			return err
		}
	}
	if !s.p.Dials() {
		return nil
	}
	return s.update(ctx, changes, &peering.StatusUpdate{ID: s.p.ID, Roots: b.RootPEMs})
}

// change makes a change of what is imported.
func (s *stream) change(ctx context.Context, changes *limit, c *peering.Change) error {
	return s.apply(ctx, changes, fsm.PeeringChange, c)
}

// update notes what the other side says about itself.
func (s *stream) update(ctx context.Context, changes *limit, u *peering.StatusUpdate) error {
	p := s.now.l.Store.View().PeeringByID(u.ID)
	if p != nil && (len(u.Roots) == 0 || equal(u.Roots, p.PeerCAPems)) && (len(u.Addresses) == 0 || p.Fixed || equal(u.Addresses, p.PeerServerAddresses)) {
		return nil
	}
	return s.apply(ctx, changes, fsm.Peering, &peering.Update{Status: u})
}

func (s *stream) apply(ctx context.Context, changes *limit, kind fsm.Kind, req any) error {
	if !changes.wait(ctx) {
		return context.Cause(ctx)
	}
	s.importing.Lock()
	defer s.importing.Unlock()
	if s.over {
		return errors.New("the stream is over")
	}
	_, err := s.now.l.Apply(ctx, kind, req)
	return err
}
