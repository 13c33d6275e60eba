package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// sessions holds the sessions by ID, compared without regard to case.
var sessions = mvcc.NewTable("session", func(buf []byte, s *kv.Session) ([]byte, bool) {
	return appendName(buf, s.ID), true
}, mvcc.Index[*kv.Session]{Name: "node", Key: func(buf []byte, s *kv.Session) ([]byte, bool) {
	return appendName(buf, s.Node), true
}})

// A binding is a check that a session depends on.
type binding struct{ node, check, session string }

// bindings follows from sessions.
var bindings = mvcc.NewTable("session-check", func(buf []byte, b *binding) ([]byte, bool) {
	return mvcc.String(mvcc.String(appendName(buf, b.node), b.check), b.session), true
})

// checkType of a check that follows the sessions of a name (spec/registry.md section 3.4).
const sessionCheckType = "session"

// maxLockDelay bounds how long a lock delay acts; longer ones are stored as they are.
const maxLockDelay = time.Minute

// session returns a session, nil when there is none. It records no watch.
func (v *View) session(id string) *kv.Session {
	s, _ := sessions.Peek(v.tx, "id", nameKey(id))
	return s
}

// Session returns a session, nil when there is none, with the index of the last change of any; a waiter is woken by
// that one alone.
func (v *View) Session(id string) (uint64, *kv.Session) {
	s, _ := sessions.First(v.tx, "id", nameKey(id))
	return v.peeked(sessions.Name()), s
}

// Sessions returns all sessions, ordered by ID.
func (v *View) Sessions() (uint64, []*kv.Session) {
	return v.peeked(sessions.Name()), slices.Collect(sessions.All(v.tx, "id"))
}

// NodeSessions returns the sessions of a node, ordered by ID.
func (v *View) NodeSessions(node string) (uint64, []*kv.Session) {
	return v.peeked(sessions.Name()), slices.Collect(sessions.Get(v.tx, "node", nameKey(node)))
}

func (t *Tx) sessionsOn(node string) []*kv.Session {
	return slices.Collect(sessions.PeekGet(t.tx, "node", nameKey(node)))
}

// CreateSession adds a session, with the defaults and within the bounds that kv.Session.Normalize sees to. It keeps s.
// Its node must exist, and its checks must exist there and not be critical.
func (t *Tx) CreateSession(s *kv.Session) error {
	if s.ID == "" {
		return errors.New("Missing Session ID")
	}
	if t.session(s.ID) != nil {
		return fmt.Errorf("session %q exists", s.ID)
	}
	n, ok := nodes.Peek(t.tx, "id", nameKey(s.Node))
	if !ok {
		return errNoNode
	}
	bound := boundChecks(s)
	for _, id := range bound {
		c := t.check(n.Node, id)
		switch {
		case c == nil:
			return fmt.Errorf("Missing check '%s' registration", id)
		case c.Status == catalog.Critical && c.Type != sessionCheckType:
			return fmt.Errorf("Check '%s' is in %s state", id, c.Status)
		}
	}
	s.Node = n.Node
	s.Indexes = catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index}
	sessions.Insert(t.tx, s)
	t.mark(sessions.Name())
	for _, id := range bound {
		bindings.Insert(t.tx, &binding{n.Node, id, s.ID})
	}
	t.setSessionChecks(s, catalog.Passing, fmt.Sprintf("Session '%s' in force", s.ID))
	return nil
}

// boundChecks returns the IDs of the checks that a session depends on, each once.
func boundChecks(s *kv.Session) []string {
	var ids []string
	add := func(id string) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, id := range s.NodeChecks {
		add(id)
	}
	for _, c := range s.ServiceChecks {
		add(c.ID)
	}
	for _, id := range s.Checks {
		add(id)
	}
	return ids
}

// fillBindings makes the bindings of all sessions.
func fillBindings(t *Tx) {
	for s := range sessions.PeekPrefix(t.tx, "id", nil) {
		for _, id := range boundChecks(s) {
			bindings.Insert(t.tx, &binding{s.Node, id, s.ID})
		}
	}
}

// setSessionChecks gives the checks that follow a session's name their status.
func (t *Tx) setSessionChecks(s *kv.Session, status, output string) {
	if s.Name == "" {
		return
	}
	for _, c := range slices.Collect(t.checksOf(s.Node)) {
		if c.Type != sessionCheckType || c.Definition.SessionName != s.Name {
			continue
		}
		changed := *c
		changed.Status, changed.Output = status, output
		// The node is there, and a check of an instance that is not cannot be.
		if _, err := t.SetCheck(&changed); err != nil {
			panic(fmt.Sprintf("state: session check %s: %v", c.CheckID, err))
		}
	}
}

// DestroySession ends a session; it reports whether there was one.
func (t *Tx) DestroySession(id string) bool {
	s := t.session(id)
	if s == nil {
		return false
	}
	t.endSession(s)
	return true
}

// endSessionsBoundTo ends the sessions that depend on a check.
func (t *Tx) endSessionsBoundTo(node, check string) {
	key := mvcc.String(nameKey(node), check)
	for _, b := range slices.Collect(bindings.PeekPrefix(t.tx, "id", key)) {
		t.DestroySession(b.session)
	}
}

// endSession removes a session and the queries bound to it, and releases or deletes the keys it holds (spec/state.md
// section 4.2).
func (t *Tx) endSession(s *kv.Session) {
	if t.session(s.ID) == nil {
		return // ended by what it led to
	}
	sessions.Delete(t.tx, s)
	t.mark(sessions.Name())
	for _, id := range boundChecks(s) {
		bindings.Delete(t.tx, &binding{s.Node, id, s.ID})
	}
	t.deleteQueriesOf(s.ID)
	delay := min(s.LockDelay, maxLockDelay)
	for _, e := range slices.Collect(keys.PeekGet(t.tx, "session", sessionKey(s.ID))) {
		if s.Behavior == kv.Delete {
			t.deleteKey(e)
		} else {
			free := *e
			free.Session = ""
			free.ModifyIndex = t.Index
			t.putKey(&free)
		}
		if delay > 0 {
			t.delays = append(t.delays, kv.Delay{Key: e.Key, For: delay})
		}
	}
	t.setSessionChecks(s, catalog.Critical, fmt.Sprintf("Session '%s' is invalid", s.ID))
}

func sessionKey(id string) []byte { return mvcc.String(nil, strings.ToLower(id)) }
