package state_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// A model is the state in its most naive form: maps, and every consequence searched for.
type model struct {
	index    uint64
	nodes    map[string]string             // address
	services map[[2]string]catalog.Service // node, ID
	checks   map[[2]string]catalog.Check   // node, ID
	keys     map[string]kv.Entry
	sessions map[string]kv.Session
}

func newModel() *model {
	return &model{
		nodes: map[string]string{}, services: map[[2]string]catalog.Service{}, checks: map[[2]string]catalog.Check{},
		keys: map[string]kv.Entry{}, sessions: map[string]kv.Session{},
	}
}

func (m *model) endSessions(dead func(s kv.Session) bool) {
	for id, s := range m.sessions {
		if !dead(s) {
			continue
		}
		delete(m.sessions, id)
		for k, e := range m.keys {
			if e.Session != id {
				continue
			}
			if s.Behavior == kv.Delete {
				delete(m.keys, k)
				continue
			}
			e.Session, e.ModifyIndex = "", m.index
			m.keys[k] = e
		}
	}
}

func (m *model) setCheck(c catalog.Check) {
	if c.ServiceID != "" {
		c.ServiceName = m.services[[2]string{c.Node, c.ServiceID}].Service
	}
	old, ok := m.checks[[2]string{c.Node, c.CheckID}]
	c.Indexes = old.Indexes
	if ok && cmp.Equal(c, old) {
		return
	}
	if !ok {
		c.CreateIndex = m.index
	}
	c.ModifyIndex = m.index
	m.checks[[2]string{c.Node, c.CheckID}] = c
	if c.Status == catalog.Critical {
		m.endSessions(func(s kv.Session) bool { return s.Node == c.Node && slices.Contains(s.NodeChecks, c.CheckID) })
	}
}

func (m *model) deleteCheck(node, id string) {
	if _, ok := m.checks[[2]string{node, id}]; ok {
		delete(m.checks, [2]string{node, id})
		m.endSessions(func(s kv.Session) bool { return s.Node == node && slices.Contains(s.NodeChecks, id) })
	}
}

func (m *model) deleteService(node, id string) {
	if _, ok := m.services[[2]string{node, id}]; !ok {
		return
	}
	for key, c := range maps.Clone(m.checks) {
		if c.Node == node && c.ServiceID == id {
			m.deleteCheck(node, key[1])
		}
	}
	delete(m.services, [2]string{node, id})
}

func (m *model) deleteNode(node string) {
	for key := range maps.Clone(m.services) {
		if key[0] == node {
			m.deleteService(node, key[1])
		}
	}
	for key := range maps.Clone(m.checks) {
		if key[0] == node {
			m.deleteCheck(node, key[1])
		}
	}
	m.endSessions(func(s kv.Session) bool { return s.Node == node })
	delete(m.nodes, node)
}

func (m *model) setService(node string, s catalog.Service) {
	old, ok := m.services[[2]string{node, s.ID}]
	s.Indexes = old.Indexes
	if ok && cmp.Equal(s, old) {
		return
	}
	if !ok {
		s.CreateIndex = m.index
	}
	s.ModifyIndex = m.index
	m.services[[2]string{node, s.ID}] = s
}

func (m *model) applyKey(op kv.Op, e kv.Entry) bool {
	old, exists := m.keys[e.Key]
	put := func(session string, lockIndex uint64) bool {
		next := kv.Entry{LockIndex: lockIndex, Key: e.Key, Flags: e.Flags, Value: e.Value, Session: session, Indexes: old.Indexes}
		if exists && cmp.Equal(next, old) {
			return true
		}
		if !exists {
			next.CreateIndex = m.index
		}
		next.ModifyIndex = m.index
		m.keys[e.Key] = next
		return true
	}
	switch op {
	case kv.OpSet:
		return put(old.Session, old.LockIndex)
	case kv.OpCAS:
		return old.ModifyIndex == e.ModifyIndex && put(old.Session, old.LockIndex)
	case kv.OpLock:
		if _, ok := m.sessions[e.Session]; !ok || old.Session != "" && old.Session != e.Session {
			return false
		}
		if old.Session == e.Session {
			return put(e.Session, old.LockIndex)
		}
		return put(e.Session, old.LockIndex+1)
	case kv.OpUnlock:
		return e.Session != "" && old.Session == e.Session && put("", old.LockIndex)
	case kv.OpDelete:
		delete(m.keys, e.Key)
	case kv.OpDeleteCAS:
		if exists && old.ModifyIndex != e.ModifyIndex {
			return false
		}
		delete(m.keys, e.Key)
	case kv.OpDeleteTree:
		for k := range m.keys {
			if strings.HasPrefix(k, e.Key) {
				delete(m.keys, k)
			}
		}
	}
	return true
}

// instances renders the instances of a service with what counts for them.
func (m *model) instances(service string) (all []string) {
	for _, key := range slices.SortedFunc(maps.Keys(m.services), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		s := m.services[key]
		if s.Service != service {
			continue
		}
		text := fmt.Sprint(key, m.nodes[key[0]], s.Port, s.Indexes)
		for _, own := range []bool{false, true} {
			for _, ck := range slices.SortedFunc(maps.Keys(m.checks), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
				if c := m.checks[ck]; c.Node == key[0] && (own && c.ServiceID == key[1] || !own && c.ServiceID == "") {
					text += fmt.Sprint(" ", c.CheckID, c.Status, c.Output, c.ServiceName, c.Indexes)
				}
			}
		}
		all = append(all, text)
	}
	return all
}

func render(list []*catalog.Instance) (all []string) {
	for _, i := range list {
		text := fmt.Sprint([2]string{i.Node.Node, i.Service.ID}, i.Node.Address, i.Service.Port, i.Service.Indexes)
		for _, c := range i.Checks {
			text += fmt.Sprint(" ", c.CheckID, c.Status, c.Output, c.ServiceName, c.Indexes)
		}
		all = append(all, text)
	}
	return all
}

// A ledger remembers what objects looked like when they were first read: they must stay so.
type ledger map[any][32]byte

func (l ledger) note(t *testing.T, obj any) {
	data, err := rpc.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if old, ok := l[obj]; ok && old != sum {
		t.Fatalf("shared object changed: %+v", obj)
	}
	l[obj] = sum
}

// A reading is a blocking read: its result and its index.
type reading struct {
	name   string
	narrow bool // while the result is not empty, the index moves only with it
	read   func(v *state.View) (index uint64, result string, empty bool)
}

var readings = func() (all []reading) {
	for _, k := range []string{"a", "a/b", "b", "c/1"} {
		all = append(all, reading{"key " + k, true, func(v *state.View) (uint64, string, bool) {
			i, e := v.Key(k)
			if e == nil {
				return i, "", true
			}
			return i, content(e), false
		}})
	}
	for _, p := range []string{"", "a", "a/", "c/"} {
		all = append(all, reading{"prefix " + p, false, func(v *state.View) (uint64, string, bool) {
			i, list := v.KeysUnder(p)
			s := ""
			for _, e := range list {
				s += content(e)
			}
			return i, s, len(list) == 0
		}})
	}
	for _, s := range []string{"web", "db"} {
		all = append(all, reading{"health " + s, true, func(v *state.View) (uint64, string, bool) {
			i, list := v.Instances(s, false)
			return i, fmt.Sprint(render(list)), len(list) == 0
		}})
		all = append(all, reading{"catalog " + s, true, func(v *state.View) (uint64, string, bool) {
			i, list := v.Instances(s, true)
			text := ""
			for _, i := range list {
				text += content(i.Node) + content(i.Service)
			}
			return i, text, len(list) == 0
		}})
		all = append(all, reading{"checks " + s, false, func(v *state.View) (uint64, string, bool) {
			i, list := v.ServiceChecks(s)
			return i, checkList(list), len(list) == 0
		}})
	}
	for _, n := range []string{"n1", "n2"} {
		all = append(all, reading{"node " + n, true, func(v *state.View) (uint64, string, bool) {
			i, node, services := v.NodeServices(n)
			if node == nil {
				return i, "", true
			}
			text := content(node)
			for _, s := range services {
				text += content(s)
			}
			return i, text, false
		}})
		all = append(all, reading{"checks of " + n, false, func(v *state.View) (uint64, string, bool) {
			i, list := v.NodeChecks(n)
			return i, checkList(list), len(list) == 0
		}})
		all = append(all, reading{"sessions of " + n, false, func(v *state.View) (uint64, string, bool) {
			i, list := v.NodeSessions(n)
			return i, fmt.Sprint(len(list)), len(list) == 0
		}})
	}
	all = append(all, reading{"nodes", false, func(v *state.View) (uint64, string, bool) {
		i, list := v.Nodes()
		text := ""
		for _, n := range list {
			text += content(n)
		}
		return i, text, len(list) == 0
	}}, reading{"services", false, func(v *state.View) (uint64, string, bool) {
		index, list := v.AllInstances()
		text := ""
		for i := range list {
			text += content(i.Service)
		}
		return index, text, text == ""
	}}, reading{"critical", false, func(v *state.View) (uint64, string, bool) {
		i, list := v.ChecksInState("critical")
		return i, checkList(list), len(list) == 0
	}}, reading{"sessions", false, func(v *state.View) (uint64, string, bool) {
		i, list := v.Sessions()
		text := ""
		for _, s := range list {
			text += s.ID
		}
		return i, text, len(list) == 0
	}})
	return all
}()

// content renders an object by its content.
func content(obj any) string {
	data, err := json.Marshal(obj)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func checkList(list []*catalog.Check) (s string) {
	for _, c := range list {
		s += content(c)
	}
	return s
}

// TestStateAgreesWithModel makes random changes, one for each log entry, and holds what is read against a naive model.
// With each change: the index of a read never falls; when the result changes, the index is that of the change and a
// waiter is woken; and a narrow read that did not change keeps its index. Objects that were read never change.
func TestStateAgreesWithModel(t *testing.T) {
	seed := testkit.Seed(t)
	for round := range uint64(8) {
		t.Run(fmt.Sprintf("seed=%d,round=%d", seed, round), func(t *testing.T) { runModel(t, rand.New(rand.NewPCG(seed, round))) })
	}
}

func runModel(t *testing.T, r *rand.Rand) {
	s, m, seen := state.New(), newModel(), ledger{}
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	key := func() string { return pick("a", "a/b", "a/c", "b", "c/1", "c/2") }
	node := func() string { return pick("n1", "n2") }
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for step := range 700 {
		m.index += 1 + r.Uint64N(2)
		type before struct {
			v      *state.View
			index  uint64
			result string
			empty  bool
		}
		var reads []before
		for _, rd := range readings {
			b := before{v: s.WatchView()}
			b.index, b.result, b.empty = rd.read(b.v)
			reads = append(reads, b)
		}
		tx := s.Write(m.index)
		what := ""
		switch r.IntN(12) {
		case 0:
			id := fmt.Sprintf("5e551000-0000-0000-0000-%012d", step)
			session := kv.Session{ID: id, Node: node(), NodeChecks: []string{pick("c1", "c2")}, Behavior: kv.Behavior(pick("release", "delete"))}
			what = fmt.Sprintf("create session %+v", session)
			c, ok := m.checks[[2]string{session.Node, session.NodeChecks[0]}]
			allowed := ok && c.Status != catalog.Critical
			own := session
			if err := tx.CreateSession(&own); (err == nil) != allowed {
				t.Fatalf("step %d: %s: got %v", step, what, err)
			}
			if allowed {
				m.sessions[id] = session
			}
		case 1:
			if ids := slices.Sorted(maps.Keys(m.sessions)); len(ids) > 0 {
				id := ids[r.IntN(len(ids))]
				what = "destroy session " + id
				tx.DestroySession(id)
				m.endSessions(func(s kv.Session) bool { return s.ID == id })
			}
		case 2, 3, 4, 5:
			op := kv.Op(pick("set", "set", "cas", "lock", "lock", "unlock", "delete", "delete-cas", "delete-tree"))
			e := kv.Entry{Key: key(), Value: []byte(pick("x", "y")), Flags: uint64(r.IntN(2))}
			if op == kv.OpDeleteTree {
				e.Key = pick("a", "a/", "c/", "zz", "a/b")
			}
			if r.IntN(3) > 0 {
				e.ModifyIndex = m.keys[e.Key].ModifyIndex
			}
			if ids := slices.Sorted(maps.Keys(m.sessions)); len(ids) > 0 {
				e.Session = ids[r.IntN(len(ids))]
			}
			if op == kv.OpSet || op == kv.OpCAS || op == kv.OpDelete {
				e.Session = ""
			}
			what = fmt.Sprintf("%s %+v", op, e)
			own := e
			_, ok, err := tx.ApplyKey(op, &own)
			if want := m.applyKey(op, e); ok != want || err != nil && ok {
				t.Fatalf("step %d: %s: got %v %v, want %v", step, what, ok, err, want)
			}
		case 6:
			n := node()
			what = "delete node " + n
			if r.IntN(3) == 0 {
				tx.DeleteNode(n)
				m.deleteNode(n)
			}
		case 7:
			n, id := node(), pick("i1", "i2")
			what = "delete service " + n + " " + id
			tx.DeleteService(n, id)
			m.deleteService(n, id)
		case 8:
			n, id := node(), pick("c1", "c2", "c3")
			what = "delete check " + n + " " + id
			tx.DeleteCheck(n, id)
			m.deleteCheck(n, id)
		default:
			n := node()
			req := &catalog.RegisterRequest{Node: n, Address: pick("1", "2")}
			next, hadNode := m.nodes[n]
			if r.IntN(2) == 0 && hadNode {
				req.SkipNodeUpdate = true
			} else {
				next = req.Address
			}
			m.nodes[n] = next
			if r.IntN(2) == 0 {
				req.Service = &catalog.Service{ID: pick("i1", "i2"), Service: pick("web", "db"), Port: r.IntN(2), Weights: &catalog.Weights{Passing: 1, Warning: 1}}
				m.setService(n, *req.Service)
			}
			for _, id := range []string{"c1", "c2", "c3"} {
				if r.IntN(3) > 0 {
					continue
				}
				c := catalog.Check{Node: n, CheckID: id, Status: pick("passing", "warning", "critical"), Output: pick("", "o")}
				if c.CheckID == "c3" || r.IntN(3) == 0 {
					if _, ok := m.services[[2]string{n, "i1"}]; ok {
						c.ServiceID = "i1"
					}
				}
				own := c
				req.Checks = append(req.Checks, &own)
				m.setCheck(c)
			}
			what = fmt.Sprintf("register %+v", *req)
			if err := tx.Register(req); err != nil {
				t.Fatalf("step %d: %s: %v", step, what, err)
			}
		}
		tx.Commit()

		v := s.View()
		_, entries := v.KeysUnder("")
		got := map[string]kv.Entry{}
		for _, e := range entries {
			seen.note(t, e)
			got[e.Key] = *e
		}
		if diff := cmp.Diff(m.keys, got); diff != "" {
			t.Fatalf("step %d: keys after %s: %s", step, what, diff)
		}
		_, list := v.Sessions()
		live := map[string]bool{}
		for _, session := range list {
			seen.note(t, session)
			live[session.ID] = true
		}
		if len(live) != len(m.sessions) {
			t.Fatalf("step %d: sessions after %s: %v, want %v", step, what, live, m.sessions)
		}
		for _, service := range []string{"web", "db"} {
			_, instances := v.Instances(service, false)
			if diff := cmp.Diff(m.instances(service), render(instances)); diff != "" {
				t.Fatalf("step %d: %s after %s: %s", step, service, what, diff)
			}
			for _, i := range instances {
				seen.note(t, i)
				seen.note(t, i.Node)
				seen.note(t, i.Service)
				for _, c := range i.Checks {
					seen.note(t, c)
				}
			}
		}
		for i, rd := range readings {
			b := reads[i]
			index, result, _ := rd.read(v)
			woken := b.v.Wait(canceled) == nil
			switch changed := result != b.result; {
			case index < b.index:
				t.Fatalf("step %d: index of %s fell from %d to %d with %s", step, rd.name, b.index, index, what)
			case changed && (index != m.index || !woken):
				t.Fatalf("step %d: %s changed by %s: index %d, want %d, woken %v", step, rd.name, what, index, m.index, woken)
			case !changed && rd.narrow && !b.empty && index != b.index:
				t.Fatalf("step %d: index of %s went from %d to %d with %s", step, rd.name, b.index, index, what)
			}
		}
	}
	for obj := range seen {
		seen.note(t, obj)
	}

	// What comes out of a snapshot reads the same.
	var dump strings.Builder
	if err := s.View().Dump(&dump); err != nil {
		t.Fatal(err)
	}
	other := state.New()
	if err := other.Restore(strings.NewReader(dump.String())); err != nil {
		t.Fatal(err)
	}
	for _, rd := range readings {
		i, a, _ := rd.read(s.View())
		j, b, _ := rd.read(other.View())
		if i != j || a != b {
			t.Errorf("%s restored: index %d %s, want %d %s", rd.name, j, b, i, a)
		}
	}
}
