package feedrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A subscriber is an agent with its feed. A goroutine sends while there is something to send, and only then; there is one
// more that reads what the agent asks.
type subscriber struct {
	h       *Hub
	ctx     context.Context // of the call
	resolve func(ctx context.Context, token string) (*acl.Authorizer, error)
	out     io.Writer

	mu      sync.Mutex
	all     map[uint64]*subscription
	woken   []*subscription // to be looked at
	gone    []*subscription // that are over, to leave their topics
	waiting int             // subscriptions that are not answered yet
	sending bool
	idle    sync.Cond // sending has become false; its L is &mu
	check   bool      // all are to be looked at
	leaving bool      // the agent is to be told to go
	ended   bool
}

// A subscription is of one subject, for one token.
type subscription struct {
	of    *subscriber
	id    uint64
	ask   feed.Ask
	began time.Time

	woken bool // it is in of.woken, whose lock guards it
	over  bool // nothing is sent any more; guarded likewise

	// The rest is of the sender alone; of told, others read under the lock.
	refusal    error  // of what was asked for; nil for none
	topic      *topic // nil before the first
	authorizer *acl.Authorizer
	permit     acl.Permit
	have       feed.Version
	told       bool // it has had an answer
}

// maxSubscriptions is how many a feed may have.
const maxSubscriptions = 16 << 10

var (
	errTooMany = wireerr.Errorf(503, "too many subscriptions on one feed")
	errTwice   = errors.New("a subscription's number is in use")
	// errNoPermit reports a fault of this package: it asked nobody.
	errNoPermit  = errors.New("the subscription was not authorized")
	errUnsettled = errors.New("what the token may do changes all the time")
	errPanicked  = errors.New("the feed failed unexpectedly")
)

// ask begins or ends a subscription.
func (f *subscriber) ask(a *feed.Ask) error {
	if a.End {
		f.mu.Lock()
		s := f.all[a.ID]
		f.mu.Unlock()
		if s != nil {
			f.remove(s)
		}
		return nil
	}
	err := f.h.desk.Admit(catalog.InstancesCall.Descriptor)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.all[a.ID] != nil:
		return errTwice
	case err == nil && len(f.all) >= maxSubscriptions:
		err = errTooMany
	}
	s := &subscription{of: f, id: a.ID, ask: *a, began: time.Now(), have: a.Have, refusal: err}
	f.all[a.ID] = s
	f.waiting++
	f.wakeLocked(s)
	return nil
}

// wake has a subscription looked at.
func (f *subscriber) wake(s *subscription) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakeLocked(s)
}

func (f *subscriber) wakeLocked(s *subscription) {
	if s.over || s.woken {
		return
	}
	s.woken = true
	f.woken = append(f.woken, s)
	f.startLocked()
}

func (f *subscriber) startLocked() {
	if !f.sending && !f.ended {
		f.sending = true
		go f.run()
	}
}

// recheck has all subscriptions looked at, or if there are any those that have no answer yet.
func (f *subscriber) recheck(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if all && len(f.all) > 0 || f.waiting > 0 {
		f.check = true
		f.startLocked()
	}
}

// leave tells the agent to go to another server.
func (f *subscriber) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaving = true
	f.startLocked()
}

// end ends everything once the agent has gone; cancel ends what is being sent.
func (f *subscriber) end(cancel func()) {
	f.h.mu.Lock()
	delete(f.h.feeds, f)
	f.h.mu.Unlock()
	cancel()
	f.mu.Lock()
	f.ended = true
	for f.sending {
		f.idle.Wait()
	}
	all, gone := f.all, f.gone
	f.all, f.gone = nil, nil
	f.mu.Unlock()
	for _, s := range all {
		s.quit()
	}
	for _, s := range gone {
		s.quit()
	}
}

// remove ends a subscription. Its topic is left by who sends, who may be about to join one for it.
func (f *subscriber) remove(s *subscription) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.over || f.all == nil {
		return
	}
	s.over = true
	delete(f.all, s.id)
	if !s.told {
		f.waiting--
	}
	f.gone = append(f.gone, s)
	f.startLocked()
}

// quit leaves the topic.
func (s *subscription) quit() {
	if s.topic != nil {
		s.topic.leave(s)
		s.topic = nil
	}
}

// maxMessage is the size from which on what is to be sent waits for the next message.
const maxMessage = 256 << 10

// run sends until there is nothing to send.
func (f *subscriber) run() {
	for {
		f.mu.Lock()
		woken, gone, leaving := f.woken, f.gone, f.leaving
		f.woken, f.gone, f.leaving = nil, nil, false
		for _, s := range woken {
			s.woken = false
		}
		if f.check {
			f.check = false
			woken = woken[:0]
			for _, s := range f.all {
				woken = append(woken, s)
			}
		}
		if f.ended || !leaving && len(woken) == 0 && len(gone) == 0 {
			f.gone = gone
			f.sending = false
			f.idle.Broadcast()
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		for _, s := range gone {
			s.quit()
		}
		if err := f.send(woken, leaving); err != nil { // the agent has gone, or is about to
			f.mu.Lock()
			f.ended = true
			f.mu.Unlock()
		}
	}
}

// send sends what there is about subscriptions.
func (f *subscriber) send(woken []*subscription, leaving bool) error {
	m := message{f: f}
	for _, s := range woken {
		f.mu.Lock()
		over := s.over
		f.mu.Unlock()
		if over {
			continue
		}
		if err := s.add(&m); err != nil {
			return err
		}
	}
	if leaving {
		m.frame(&feed.Frame{Kind: feed.Goodbye})
	}
	return m.flush()
}

// A message is frames that are sent together.
type message struct {
	f     *subscriber
	heads []byte // of frames; parts are slices of it
	parts [][]byte
	size  int

	events int // among the frames
}

// frame adds a frame.
func (m *message) frame(x *feed.Frame) {
	begin := len(m.heads)
	m.heads = x.AppendHead(m.heads)
	m.parts = append(m.parts, m.heads[begin:len(m.heads):len(m.heads)])
	if len(x.Event) > 0 {
		m.parts = append(m.parts, x.Event)
	}
	m.size += len(m.heads) - begin + len(x.Event)
}

func (m *message) flush() error {
	if len(m.parts) == 0 {
		return nil
	}
	parts, events := m.parts, m.events
	m.heads, m.parts, m.size, m.events = nil, nil, 0, 0
	if err := send(m.f.out, parts); err != nil {
		return err
	}
	metricEvents.Add(int64(events))
	return nil
}

// add adds what there is about a subscription. An error is of sending.
func (s *subscription) add(m *message) error {
	events, ok, refusal := s.take()
	switch {
	case refusal != nil && s.of.ctx.Err() != nil:
		return s.of.ctx.Err()
	case refusal != nil:
		s.of.remove(s)
		m.frame(&feed.Frame{Kind: feed.Refused, ID: s.id, Status: wireerr.Carried(refusal), Text: refusal.Error()})
		return nil
	case !ok || s.told && len(events) == 0:
		return nil
	}
	meta, _ := s.of.h.desk.Stale()
	if len(events) == 0 {
		m.frame(&feed.Frame{Kind: feed.Current, ID: s.id, KnownLeader: meta.KnownLeader, Contact: meta.LastContact})
	}
	for i, e := range events {
		m.frame(&feed.Frame{
			Kind: feed.Event, ID: s.id, Last: i == len(events)-1, KnownLeader: meta.KnownLeader, Contact: meta.LastContact, Event: e,
		})
	}
	m.events += len(events)
	if !s.told {
		s.of.mu.Lock()
		if s.told = true; !s.over {
			s.of.waiting--
		}
		s.of.mu.Unlock()
	}
	if m.size >= maxMessage {
		return m.flush()
	}
	return nil
}

// maxSettle is how often in a row what a token may do can change while its subscription is looked at.
const maxSettle = 10

// take returns the events that a subscription is to be sent, and notes that it has them; ok is false while there is no
// answer for it. An error, which a panic is, ends the subscription.
func (s *subscription) take() (events [][]byte, ok bool, err error) {
	f := s.of
	defer func() {
		if p := recover(); p != nil {
			f.h.log.Error("feed panicked", "subject", fmt.Sprintf("%+v", s.ask.Subject), "panic", p, "stack", string(debug.Stack()))
			events, ok, err = nil, false, errPanicked
		}
	}()
	if s.refusal != nil {
		return nil, false, s.refusal
	}
	for range maxSettle {
		if s.topic == nil {
			z, err := f.resolve(f.ctx, s.ask.Token)
			if err != nil {
				return nil, false, err
			}
			if err := s.join(z); err != nil {
				return nil, false, err
			}
		}
		floor := s.ask.Floor
		if s.told {
			floor = 0
		}
		events, now, ready, err := s.topic.take(s.have, floor, s.began)
		if err != nil {
			return nil, false, err
		}
		// What the token may do is asked for after the events were taken: nothing in them is newer than that.
		z, err := f.resolve(f.ctx, s.ask.Token)
		if err != nil {
			return nil, false, err
		}
		if z != s.authorizer {
			if err := s.join(z); err != nil {
				return nil, false, err
			}
			continue
		}
		waited := time.Since(s.began)
		switch {
		case !ready && !s.told && waited > readyWait:
			return nil, false, wireerr.ErrNoLeader
		case !ready:
			return nil, false, nil
		case now.Index < floor && f.h.desk.Applied() < floor && waited < floorWait:
			return nil, false, nil
		case !s.permit.Given():
			return nil, false, errNoPermit
		}
		s.have = now
		return events, true, nil
	}
	return nil, false, errUnsettled
}

// join subscribes to the topic of what an authorizer may see.
func (s *subscription) join(z *acl.Authorizer) error {
	subject := s.ask.Subject
	permit := z.Filtering()
	if subject.Connect || subject.Ingress {
		var err error
		if permit, err = z.Require(acl.Service, acl.Read, subject.Service); err != nil {
			return wireerr.ErrPermissionDenied // as the call says it that this stands for
		}
	}
	key := topicKey{subject: subject, authorizer: z}
	if z.MayPrefix(acl.Node, acl.Read, "") && z.MayPrefix(acl.Service, acl.Read, "") {
		key.authorizer = nil
	}
	if s.topic == nil || s.topic.key != key {
		s.quit()
		t, err := s.of.h.join(s, key)
		if err != nil {
			return err
		}
		s.topic = t
	}
	s.authorizer, s.permit = z, permit
	return nil
}
