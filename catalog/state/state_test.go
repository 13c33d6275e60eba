package state_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
)

// A store writes each change as the next log entry.
type store struct {
	*state.Store
	t     testing.TB
	index uint64
}

func newStore(t testing.TB) *store { return &store{state.New(), t, 10} }

func (s *store) write(f func(tx *state.Tx)) *state.Tx {
	s.t.Helper()
	s.index++
	tx := s.Write(s.index)
	f(tx)
	tx.Commit()
	return tx
}

func (s *store) register(r catalog.RegisterRequest) {
	s.t.Helper()
	s.write(func(tx *state.Tx) {
		if err := tx.Register(&r); err != nil {
			s.t.Fatal(err)
		}
	})
}

func (s *store) session(session kv.Session) {
	s.t.Helper()
	s.write(func(tx *state.Tx) {
		if err := tx.CreateSession(&session); err != nil {
			s.t.Fatal(err)
		}
	})
}

func (s *store) key(op kv.Op, e kv.Entry) (ok bool, tx *state.Tx) {
	s.t.Helper()
	tx = s.write(func(tx *state.Tx) {
		var err error
		if _, ok, err = tx.ApplyKey(op, &e); err != nil {
			s.t.Fatal(err)
		}
	})
	return ok, tx
}

const (
	sessionA = "aaaaaaaa-0000-0000-0000-000000000001"
	sessionB = "bbbbbbbb-0000-0000-0000-000000000002"
)

func TestLocks(t *testing.T) {
	s := newStore(t)
	s.register(catalog.RegisterRequest{Node: "n1", Address: "1"})
	s.session(kv.Session{ID: sessionA, Node: "n1"})
	s.session(kv.Session{ID: sessionB, Node: "N1"})
	steps := []struct {
		name  string
		op    kv.Op
		entry kv.Entry
		ok    bool
		want  string // session, lock index, flags and value; empty for none
		moved bool   // the ModifyIndex
	}{
		{"release of an absent key", kv.OpUnlock, kv.Entry{Session: sessionA}, false, "", false},
		{"acquire creates", kv.OpLock, kv.Entry{Session: sessionA, Value: []byte("1"), Flags: 7}, true, "a 1 7 1", true},
		{"another cannot acquire", kv.OpLock, kv.Entry{Session: sessionB, Value: []byte("2")}, false, "a 1 7 1", false},
		{"the same again, in another case", kv.OpLock, kv.Entry{Session: strings.ToUpper(sessionA), Value: []byte("1"), Flags: 7}, true, "a 1 7 1", false},
		{"the holder changes the value", kv.OpLock, kv.Entry{Session: sessionA, Value: []byte("3")}, true, "a 1 0 3", true},
		{"a plain write keeps the holder", kv.OpSet, kv.Entry{Value: []byte("4")}, true, "a 1 0 4", true},
		{"another cannot release", kv.OpUnlock, kv.Entry{Session: sessionB}, false, "a 1 0 4", false},
		{"release replaces value and flags", kv.OpUnlock, kv.Entry{Session: sessionA, Value: []byte("5"), Flags: 9}, true, " 1 9 5", true},
		{"nobody holds it", kv.OpUnlock, kv.Entry{Session: sessionA}, false, " 1 9 5", false},
		{"acquisitions are counted", kv.OpLock, kv.Entry{Session: sessionB}, true, "b 2 0 ", true},
		{"a held key can be deleted", kv.OpDelete, kv.Entry{}, true, "", true},
		{"counting begins anew", kv.OpLock, kv.Entry{Session: sessionB}, true, "b 1 0 ", true},
	}
	for _, st := range steps {
		var before uint64
		if _, e := s.View().Key("k"); e != nil {
			before = e.ModifyIndex
		}
		st.entry.Key = "k"
		ok, _ := s.key(st.op, st.entry)
		_, e := s.View().Key("k")
		got, moved := "", before != 0
		if e != nil {
			got = fmt.Sprintf("%.1s %d %d %s", e.Session, e.LockIndex, e.Flags, e.Value)
			moved = e.ModifyIndex != before
		}
		if ok != st.ok || got != st.want || moved != st.moved {
			t.Errorf("%s: got %v %q moved %v, want %v %q moved %v", st.name, ok, got, moved, st.ok, st.want, st.moved)
		}
	}
	tx := s.Write(1000)
	defer tx.Abort()
	for session, want := range map[string]string{"": "missing session", "x": `invalid session "x"`} {
		if _, ok, err := tx.ApplyKey(kv.OpLock, &kv.Entry{Key: "k", Session: session}); ok || err == nil || err.Error() != want {
			t.Errorf("session %q: got %v, %v", session, ok, err)
		}
	}
}

func TestSessionEndsWithItsChecksAndNode(t *testing.T) {
	tests := []struct {
		name string
		end  func(tx *state.Tx)
		ends bool
	}{
		{"warning", func(tx *state.Tx) { tx.SetCheck(&catalog.Check{Node: "n1", CheckID: "c", Status: catalog.Warning}) }, false},
		{"critical", func(tx *state.Tx) { tx.SetCheck(&catalog.Check{Node: "n1", CheckID: "c", Status: catalog.Critical}) }, true},
		{"service check critical", func(tx *state.Tx) {
			tx.SetCheck(&catalog.Check{Node: "n1", CheckID: "s", ServiceID: "web", Status: catalog.Critical})
		}, true},
		{"deprecated field critical", func(tx *state.Tx) {
			tx.SetCheck(&catalog.Check{Node: "n1", CheckID: "d", Status: catalog.Critical})
		}, true},
		{"check of another node", func(tx *state.Tx) {
			tx.SetCheck(&catalog.Check{Node: "n2", CheckID: "c", Status: catalog.Critical})
		}, false},
		{"check removed", func(tx *state.Tx) { tx.DeleteCheck("N1", "c") }, true},
		{"service removed", func(tx *state.Tx) { tx.DeleteService("n1", "web") }, true},
		{"node removed", func(tx *state.Tx) { tx.DeleteNode("n1") }, true},
		{"node renamed", func(tx *state.Tx) {
			if _, err := tx.SetNode(&catalog.Node{Node: "new", ID: "40e4a748-2192-161a-0510-9bf59fe950b5"}); err != nil {
				panic(err)
			}
		}, true},
		{"destroyed", func(tx *state.Tx) { tx.DestroySession(strings.ToUpper(sessionA)) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			s.register(catalog.RegisterRequest{Node: "n2", Address: "2"})
			s.register(catalog.RegisterRequest{
				Node: "n1", Address: "1", ID: "40e4a748-2192-161a-0510-9bf59fe950b5", Service: &catalog.Service{ID: "web", Service: "web"},
				Checks: []*catalog.Check{
					{Node: "n1", CheckID: "c", Status: catalog.Passing}, {Node: "n1", CheckID: "d", Status: catalog.Passing},
					{Node: "n1", CheckID: "s", ServiceID: "web", Status: catalog.Passing},
				},
			})
			bound := kv.Session{NodeChecks: []string{"c"}, ServiceChecks: []kv.ServiceCheck{{ID: "s"}}, Checks: []string{"d"}, Node: "n1"}
			a, b := bound, bound
			a.ID, a.Behavior, a.LockDelay = sessionA, kv.Release, 90*time.Second
			b.ID, b.Behavior, b.LockDelay = sessionB, kv.Delete, time.Second
			s.session(a)
			s.session(b)
			s.key(kv.OpLock, kv.Entry{Key: "a", Session: sessionA, Value: []byte("v")})
			s.key(kv.OpLock, kv.Entry{Key: "b", Session: sessionB})
			tx := s.write(func(tx *state.Tx) {
				tt.end(tx)
				if tt.name == "destroyed" {
					tx.DestroySession(sessionB)
				}
			})
			v := s.View()
			_, left := v.Sessions()
			_, ka := v.Key("a")
			_, kb := v.Key("b")
			if !tt.ends {
				if len(left) != 2 || ka.Session == "" || kb == nil || tx.Delays() != nil {
					t.Errorf("ended: %v %v %v", left, ka, kb)
				}
				return
			}
			if len(left) != 0 {
				t.Errorf("sessions are left: %v", left)
			}
			if ka == nil || ka.Session != "" || ka.LockIndex != 1 || string(ka.Value) != "v" || ka.ModifyIndex != tx.Index {
				t.Errorf("not released: %+v", ka)
			}
			if kb != nil {
				t.Errorf("not deleted: %+v", kb)
			}
			delays := slices.SortedFunc(slices.Values(tx.Delays()), func(a, b kv.Delay) int { return strings.Compare(a.Key, b.Key) })
			if want := []kv.Delay{{Key: "a", For: time.Minute}, {Key: "b", For: time.Second}}; !slices.Equal(delays, want) {
				t.Errorf("delays are %v, want %v", delays, want)
			}
		})
	}
}

func TestSessionChecksFollowTheSession(t *testing.T) {
	s := newStore(t)
	s.register(catalog.RegisterRequest{Node: "n1", Address: "1", Check: &catalog.Check{
		Node: "n1", CheckID: "leader", Type: "session", Definition: catalog.CheckDefinition{SessionName: "lead"}, Status: catalog.Critical,
	}})
	check := func() string {
		_, list := s.View().NodeChecks("n1")
		return list[0].Status + ": " + list[0].Output
	}
	s.session(kv.Session{ID: sessionB, Node: "n1", Name: "other"})
	if got := check(); got != "critical: " {
		t.Errorf("after a session of another name: %s", got)
	}
	// A check of type session may be critical when a session is bound to it.
	s.session(kv.Session{ID: sessionA, Node: "n1", Name: "lead", NodeChecks: []string{"leader"}})
	if got, want := check(), "passing: Session '"+sessionA+"' in force"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.write(func(tx *state.Tx) { tx.DestroySession(sessionA) })
	if got, want := check(), "critical: Session '"+sessionA+"' is invalid"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestNodeIdentity(t *testing.T) {
	const x, y, z = "40e4a748-2192-161a-0510-9bf59fe950b1", "40e4a748-2192-161a-0510-9bf59fe950b2", "40E4A748-2192-161A-0510-9BF59FE950B3"
	tests := []struct {
		name     string
		serf     string // status of the serfHealth check of node a, which has ID x
		node, id string
		ok       bool
		nodes    string
	}{
		{"new name and ID", catalog.Passing, "c", z, true, "a:b1 b:b2 c:b3 d:"},
		{"same again", catalog.Passing, "A", x, true, "A:b1 b:b2 d:"},
		{"without ID", catalog.Passing, "a", "", true, "a: b:b2 d:"},
		{"new ID for a live node", catalog.Passing, "a", z, false, "a:b1 b:b2 d:"},
		{"new ID for a warned node", catalog.Warning, "a", z, false, "a:b1 b:b2 d:"},
		{"new ID for a dead node", catalog.Critical, "a", z, true, "a:b3 b:b2 d:"},
		{"new ID for a node without a check", "", "a", z, true, "a:b3 b:b2 d:"},
		{"new ID for a node without ID", catalog.Passing, "d", z, true, "a:b1 b:b2 d:b3"},
		{"rename", catalog.Passing, "c", y, true, "a:b1 c:b2 d:"},
		{"rename to a live node", catalog.Passing, "a", y, false, "a:b1 b:b2 d:"},
		{"rename to a dead node", catalog.Critical, "a", y, true, "a:b2 d:"},
		{"rename to a node without ID", catalog.Passing, "d", y, true, "a:b1 d:b2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			a := catalog.RegisterRequest{Node: "a", Address: "1", ID: x}
			if tt.serf != "" {
				a.Check = &catalog.Check{Node: "a", CheckID: catalog.SerfCheckID, Status: tt.serf}
			}
			s.register(a)
			s.register(catalog.RegisterRequest{Node: "b", Address: "1", ID: y, Service: &catalog.Service{ID: "s", Service: "s"}})
			created := s.index
			s.register(catalog.RegisterRequest{Node: "d", Address: "1"})
			s.write(func(tx *state.Tx) {
				err := tx.Try(func() error {
					n, err := tx.SetNode(&catalog.Node{Node: tt.node, Address: "1", ID: tt.id})
					if err == nil && tt.id == y && tt.node == "c" && n.CreateIndex != created {
						t.Errorf("renamed node was created at %d, want %d", n.CreateIndex, created)
					}
					return err
				})
				if (err == nil) != tt.ok {
					t.Errorf("got %v", err)
				}
			})
			var got []string
			_, nodes := s.View().Nodes()
			for _, n := range nodes {
				got = append(got, n.Node+":"+strings.TrimPrefix(n.ID, "40e4a748-2192-161a-0510-9bf59fe950"))
			}
			if got := strings.Join(got, " "); got != tt.nodes {
				t.Errorf("got %s, want %s", got, tt.nodes)
			}
			_, services := s.View().Instances("s", true)
			if renamed := tt.ok && tt.id == y && tt.node != "b"; (len(services) == 0) != renamed {
				t.Errorf("services of the renamed node: %v", services)
			}
		})
	}
}

func TestTransactionsApplyWhollyOrNotAtAll(t *testing.T) {
	s := newStore(t)
	s.register(catalog.RegisterRequest{Node: "n1", Address: "1"})
	s.key(kv.OpSet, kv.Entry{Key: "keep", Value: []byte("old")})
	run := func(ops ...kv.TxnOp) (reply kv.TxnReply) {
		s.write(func(tx *state.Tx) { reply = tx.Txn(ops) })
		return reply
	}
	key := func(verb kv.Op, key, value string, index uint64, session string) kv.TxnOp {
		return kv.TxnOp{KV: &kv.TxnKV{Verb: verb, Entry: kv.Entry{Key: key, Value: []byte(value), Session: session, Indexes: catalog.Indexes{ModifyIndex: index}}}}
	}
	service := func(verb kv.Op, node string, svc catalog.Service) kv.TxnOp {
		return kv.TxnOp{Service: &kv.TxnService{Verb: verb, Node: node, Service: svc}}
	}
	check := func(verb kv.Op, c catalog.Check) kv.TxnOp {
		return kv.TxnOp{Check: &kv.TxnCheck{Verb: verb, Check: c}}
	}
	node := func(verb kv.Op, n catalog.Node) kv.TxnOp { return kv.TxnOp{Node: &kv.TxnNode{Verb: verb, Node: n}} }
	stale := catalog.Indexes{ModifyIndex: 1}
	got := run(
		key(kv.OpSet, "keep", "new", 0, ""), key(kv.OpSet, "fresh", "x", 0, ""), key(kv.OpGet, "none", "", 0, ""),
		key(kv.OpCAS, "keep", "x", 1, ""), key(kv.OpLock, "k", "", 0, ""), key(kv.OpLock, "k", "", 0, "sid"),
		key(kv.OpUnlock, "keep", "", 0, sessionA), key(kv.OpCheckIndex, "keep", "", 1, ""), key(kv.OpCheckIndex, "none", "", 1, ""),
		key(kv.OpCheckSession, "keep", "", 0, "b"), key(kv.OpCheckSession, "none", "", 0, "b"), key(kv.OpCheckNotExists, "fresh", "", 0, ""),
		key(kv.OpDeleteCAS, "keep", "", 1, ""),
		node(kv.OpGet, catalog.Node{Node: "nx"}), node(kv.OpCAS, catalog.Node{Node: "n1", Indexes: stale}), node(kv.OpDeleteCAS, catalog.Node{Node: "n1", Indexes: stale}),
		service(kv.OpGet, "n1", catalog.Service{ID: "w"}), service(kv.OpSet, "nx", catalog.Service{ID: "w", Service: "w"}),
		service(kv.OpCAS, "n1", catalog.Service{ID: "w", Service: "w", Indexes: stale}),
		check(kv.OpGet, catalog.Check{Node: "n1", CheckID: "c"}), check(kv.OpSet, catalog.Check{Node: "nx", CheckID: "c"}),
		check(kv.OpSet, catalog.Check{Node: "n1", CheckID: "c", ServiceID: "nope"}), check(kv.OpCAS, catalog.Check{Node: "n1", CheckID: "c", Indexes: stale}),
	)
	var texts []string
	for _, e := range got.Errors {
		texts = append(texts, fmt.Sprint(e.OpIndex, " ", e.What))
	}
	want := []string{
		`2 key "none" doesn't exist`, `3 failed to set key "keep", index is stale`, `4 missing session`, `5 invalid session "sid"`,
		`6 failed to unlock key "keep", lock isn't held, or is held by another session`,
		`7 failed index check for key "keep", current modify index 13 != 1`, `8 failed to check index, key "none" doesn't exist`,
		`9 failed session check for key "keep", current session "" != "b"`, `10 failed to check session, key "none" doesn't exist`,
		`11 key "fresh" exists`, `12 failed to delete key "keep", index is stale`, `13 node "nx" doesn't exist`,
		`14 failed to set node "n1", index is stale`, `15 failed to delete node "n1", index is stale`,
		`16 service "w" on node "n1" doesn't exist`, `17 Missing node registration`, `18 failed to set service "w" on node "n1", index is stale`,
		`19 check "c" on node "n1" doesn't exist`, `20 Missing node registration`, `21 Missing service registration`,
		`22 failed to set check "c" on node "n1", index is stale`,
	}
	if diff := cmp.Diff(want, texts); diff != "" || got.Results != nil {
		t.Error(diff, got.Results)
	}
	if _, e := s.View().Key("keep"); string(e.Value) != "old" {
		t.Errorf("a failed transaction left %q", e.Value)
	}
	if _, e := s.View().Key("fresh"); e != nil {
		t.Error("a failed transaction left a key")
	}

	got = run(
		key(kv.OpSet, "a", "1", 0, ""), key(kv.OpGet, "a", "", 0, ""), key(kv.OpGetOrEmpty, "none", "", 0, ""), key(kv.OpDeleteCAS, "none", "", 9, ""),
		key(kv.OpGetTree, "", "", 0, ""), key(kv.OpDeleteTree, "a", "", 0, ""), key(kv.OpCheckNotExists, "a", "", 0, ""),
		node(kv.OpSet, catalog.Node{Node: "n2"}), service(kv.OpSet, "n2", catalog.Service{ID: "w", Service: "web"}),
		check(kv.OpSet, catalog.Check{Node: "n2", CheckID: "c", ServiceID: "w"}), check(kv.OpGet, catalog.Check{Node: "n2", CheckID: "c"}), kv.TxnOp{},
		service(kv.OpDelete, "n2", catalog.Service{ID: "w"}), node(kv.OpDelete, catalog.Node{Node: "n2"}), node(kv.OpDelete, catalog.Node{Node: "n2"}),
	)
	if got.Errors != nil {
		t.Fatal(got.Errors)
	}
	texts = nil
	for _, r := range got.Results {
		switch {
		case r.KV != nil:
			texts = append(texts, fmt.Sprintf("%s=%s", r.KV.Key, r.KV.Value))
		case r.Node != nil:
			texts = append(texts, "node "+r.Node.Node)
		case r.Service != nil:
			texts = append(texts, "service "+r.Service.ID)
		case r.Check != nil:
			texts = append(texts, "check "+r.Check.ServiceName+" "+r.Check.Status)
		}
	}
	if diff := cmp.Diff([]string{"a=", "a=1", "none=", "a=1", "keep=old", "node n2", "service w", "check web critical", "check web critical"}, texts); diff != "" {
		t.Error(diff)
	}
}

func TestIdenticalRegistrationIsInvisible(t *testing.T) {
	s := filled(t, "web", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v := s.WatchView()
	v.Nodes()
	v.AllInstances()
	v.Instances("web", false)
	v.NodeServices("node-00000")
	v.ChecksInState("any")
	tx := s.Write(1000)
	if err := tx.Register(registration("web", 0)); err != nil {
		t.Fatal(err)
	}
	tx.Commit()
	if v.Wait(ctx) == nil {
		t.Fatal("woken")
	}
	if i, _ := s.View().Nodes(); i >= 1000 {
		t.Errorf("index is %d", i)
	}
}

func TestVirtualIPOfMeshMembers(t *testing.T) {
	s := newStore(t)
	proxy := catalog.Service{ID: "px", Service: "px", Kind: catalog.KindConnectProxy, Port: 5, Proxy: catalog.Proxy{DestinationServiceName: "web"}}
	reg := func(svc catalog.Service) {
		s.register(catalog.RegisterRequest{Node: "n1", Address: "1", Service: &svc})
	}
	reg(proxy)
	_, all := s.View().MeshInstances("web", true)
	if got := all[0].Service.TaggedAddresses[catalog.VirtualAddressTag]; got.Address != "240.0.0.1" || got.Port != 5 {
		t.Errorf("got %+v", got)
	}
	index, _ := s.View().AllInstances()
	reg(proxy)
	if again, _ := s.View().AllInstances(); again != index {
		t.Error("an identical registration of a proxy moved the index")
	}
	reg(catalog.Service{ID: "n", Service: "native", Connect: catalog.Connect{Native: true}, Port: 1})
	s.write(func(tx *state.Tx) { tx.DeleteService("n1", "px") })
	if ip := s.View().VirtualIP("web", ""); ip != nil {
		t.Errorf("web still has %s", ip.Address())
	}
	if ip := s.View().VirtualIP("native", ""); ip == nil || ip.Address() != "240.0.0.2" {
		t.Errorf("native has %v", ip)
	}
}

func TestTerminatingGatewayShowsVirtualIPsOfItsServices(t *testing.T) {
	s := newStore(t)
	tags := func() string {
		_, all := s.View().Instances("tg", true)
		return strings.Join(slices.Sorted(maps.Keys(all[0].Service.TaggedAddresses)), " ")
	}
	link := func(services ...string) {
		g := &entry.TerminatingGateway{}
		g.Kind, g.Name = entry.KindTerminatingGateway, "tg"
		for _, name := range services {
			g.Services = append(g.Services, entry.LinkedService{Name: name})
		}
		s.write(func(tx *state.Tx) {
			if _, err := tx.SetEntry(g); err != nil {
				t.Fatal(err)
			}
		})
	}
	link("db", "*")
	s.register(catalog.RegisterRequest{Node: "n1", Address: "1", Service: &catalog.Service{
		ID: "tg", Service: "tg", Kind: catalog.KindTerminatingGateway, Port: 8443,
		TaggedAddresses: map[string]catalog.ServiceAddress{"lan": {Address: "10.0.0.5", Port: 8443}, "consul-virtual:old": {Address: "240.0.0.9"}},
	}})
	if got := tags(); got != "consul-virtual:db lan" {
		t.Errorf("registered: %s", got)
	}
	link("db", "ext")
	if got := tags(); got != "consul-virtual:db consul-virtual:ext lan" {
		t.Errorf("linked: %s", got)
	}
	link("ext")
	if got := tags(); got != "consul-virtual:ext lan" || s.View().VirtualIP("db", "") != nil {
		t.Errorf("unlinked: %s", got)
	}
	s.write(func(tx *state.Tx) { tx.DeleteEntry(entry.KindTerminatingGateway, "tg") })
	if got := tags(); got != "lan" {
		t.Errorf("deleted: %s", got)
	}
}

func TestUsageCounts(t *testing.T) {
	s := newStore(t)
	for _, svc := range []catalog.Service{
		{ID: "1", Service: "web"}, {ID: "2", Service: "web", Connect: catalog.Connect{Native: true}}, {ID: "3", Service: "consul"},
		{ID: "4", Service: "px", Kind: catalog.KindConnectProxy, Proxy: catalog.Proxy{DestinationServiceName: "web"}},
	} {
		s.register(catalog.RegisterRequest{Node: "n1", Address: "1", Service: &svc})
	}
	_, u := s.View().Usage()
	if u.Nodes != 1 || u.Services != 3 || u.ServiceInstances != 4 || u.BillableServiceInstance != 2 || u.MeshInstances["connect-native"] != 1 || u.MeshInstances[catalog.KindConnectProxy] != 1 {
		t.Errorf("got %+v", u)
	}
}

func TestFacts(t *testing.T) {
	s := newStore(t)
	s.write(func(tx *state.Tx) {
		if tx.CompareAndSetFact("f", []byte("x"), 0) {
			t.Error("set an absent fact by comparing")
		}
		tx.SetFact("f", []byte("1"))
	})
	first := s.index
	s.write(func(tx *state.Tx) { tx.SetFact("f", []byte("1")) })
	if f := s.View().Fact("f"); f.ModifyIndex != first {
		t.Errorf("equal data moved the index: %+v", f)
	}
	s.write(func(tx *state.Tx) {
		if tx.CompareAndSetFact("f", []byte("2"), first-1) || !tx.CompareAndSetFact("f", []byte("3"), first) {
			t.Error("compared wrongly")
		}
	})
	if f := s.View().Fact("f"); string(f.Data) != "3" || f.CreateIndex != first || f.ModifyIndex != s.index {
		t.Errorf("got %+v", f)
	}
}

// everything has a record of each kind that this file can make.
func everything(t testing.TB) *store {
	s := newStore(t)
	s.register(*registration("web", 1))
	s.register(catalog.RegisterRequest{Node: "n1", Address: "1", Service: &catalog.Service{
		ID: "px", Service: "px", Kind: catalog.KindConnectProxy, Port: 5,
		Proxy: catalog.Proxy{DestinationServiceName: "web", Config: map[string]any{"a": []any{int64(1), "x", 1.5, nil, true}}},
	}, Check: &catalog.Check{Node: "n1", CheckID: "c", Status: catalog.Passing, Definition: catalog.CheckDefinition{Interval: catalog.Duration(time.Second)}}})
	s.session(kv.Session{ID: sessionA, Node: "n1", NodeChecks: []string{"c"}, Behavior: kv.Delete})
	s.key(kv.OpLock, kv.Entry{Key: "held", Session: sessionA, Value: []byte{0, 1, 255}})
	s.key(kv.OpSet, kv.Entry{Key: "p/gone"})
	s.key(kv.OpDelete, kv.Entry{Key: "p/gone"})
	s.write(func(tx *state.Tx) {
		tx.SetCoordinates([]*catalog.NodeCoordinate{{Node: "n1", Coord: &catalog.Coordinate{Vec: make([]float64, 8), Error: 1.5}}})
		tx.SetFact("f", []byte("x"))
	})
	return s
}

func dump(t testing.TB, s *state.Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.View().Dump(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRestoreReplacesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := everything(t)
		data := dump(t, from.Store)
		to := newStore(t)
		to.key(kv.OpSet, kv.Entry{Key: "other"})
		old := to.WatchView()
		old.Key("other")
		waited := make(chan error)
		go func() { waited <- old.Wait(t.Context()) }()
		synctest.Wait()
		if err := to.Restore(bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if err := <-waited; err != nil || !old.Replaced() {
			t.Errorf("a blocked read did not end: %v", err)
		}
		if _, e := old.Key("other"); e == nil {
			t.Error("an old view changed")
		}
		if again := dump(t, to.Store); !bytes.Equal(data, again) {
			t.Error("the restored state dumps differently")
		}
		if v := to.View(); v.Replaced() {
			t.Error("a new view counts as replaced")
		}
		// Derived tables are there: the session still ends with its check, and deletes its key.
		tx := to.Write(1000)
		tx.DeleteCheck("n1", "c")
		tx.Commit()
		if i, e := to.View().Key("held"); e != nil || i != 1000 {
			t.Errorf("index %d, %+v", i, e)
		}
		if i, _ := to.View().KeysUnder("p/"); i != from.index-1 {
			t.Errorf("the deletion mark is lost: %d, want %d", i, from.index-1)
		}
		_, list := to.View().MeshInstances("web", false)
		if diff := cmp.Diff(map[string]any{"a": []any{int64(1), "x", 1.5, nil, true}}, list[0].Service.Proxy.Config); diff != "" {
			t.Error(diff)
		}
	})
}

func TestDumpIsOneMoment(t *testing.T) {
	s := everything(t)
	v := s.View()
	s.key(kv.OpSet, kv.Entry{Key: "later"})
	s.write(func(tx *state.Tx) { tx.DeleteNode("n1") })
	var b bytes.Buffer
	if err := v.Dump(&b); err != nil {
		t.Fatal(err)
	}
	tables := map[string]int{}
	if err := state.Records(bytes.NewReader(b.Bytes()), func(table string, data []byte) error {
		tables[table]++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if tables["kv"] != 1 || tables["node"] != 2 || tables["session"] != 1 {
		t.Errorf("got %v", tables)
	}
	stop := errors.New("stop")
	if err := state.Records(bytes.NewReader(b.Bytes()), func(string, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func TestDamagedSnapshotChangesNothing(t *testing.T) {
	data := dump(t, everything(t).Store)
	to := newStore(t)
	to.key(kv.OpSet, kv.Entry{Key: "mine"})
	want := dump(t, to.Store)
	try := func(what string, data []byte) {
		t.Helper()
		v := to.View()
		if err := to.Restore(bytes.NewReader(data)); err == nil {
			t.Fatalf("%s was restored", what)
		}
		if v.Replaced() || !bytes.Equal(dump(t, to.Store), want) {
			t.Fatalf("%s changed something", what)
		}
	}
	for n := range data {
		try(fmt.Sprint("cut at ", n), data[:n])
		bad := bytes.Clone(data)
		bad[n] ^= 0x10
		try(fmt.Sprint("damaged at ", n), bad)
	}
	if err := to.Restore(io.MultiReader(bytes.NewReader(data[:10]), failing{})); err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("got %v", err)
	}
	if err := to.Restore(bytes.NewReader(data)); err != nil {
		t.Error(err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

func TestDumpReportsAFailedWrite(t *testing.T) {
	s := everything(t)
	if err := s.View().Dump(full{}); err == nil {
		t.Error("no error")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// FuzzRestore checks that arbitrary bytes change nothing or restore a state that dumps and restores again.
func FuzzRestore(f *testing.F) {
	f.Add(dump(f, everything(f).Store))
	f.Add(dump(f, state.New()))
	f.Add([]byte("sarn state 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := state.New()
		empty := dump(t, s)
		if err := s.Restore(bytes.NewReader(data)); err != nil {
			if !bytes.Equal(dump(t, s), empty) {
				t.Fatal("a refused snapshot changed something")
			}
			return
		}
		if err := state.New().Restore(bytes.NewReader(dump(t, s))); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRestoreRecord checks that a sound snapshot with an arbitrary record is refused without a trace, or gives a state
// that can be read and dumped.
func FuzzRestoreRecord(f *testing.F) {
	const header = "sarn state 1\n"
	valid := dump(f, everything(f).Store)[len(header):]
	var count uint64
	body := valid
	for {
		kind, n := binary.Uvarint(valid)
		if kind == 0 {
			body = body[:len(body)-len(valid)]
			break
		}
		size, m := binary.Uvarint(valid[n+1:])
		f.Add(kind, valid[n+1+m:][:size])
		valid = valid[n+1+m+int(size):]
		count++
	}
	f.Fuzz(func(t *testing.T, kind uint64, record []byte) {
		data := append([]byte(header), body...)
		data = append(binary.AppendUvarint(data, kind), 1)
		data = append(binary.AppendUvarint(data, uint64(len(record))), record...)
		end := binary.BigEndian.AppendUint32(binary.AppendUvarint(nil, count+1), crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
		data = append(append(data, 0, 1, byte(len(end))), end...)
		s := state.New()
		if err := s.Restore(bytes.NewReader(data)); err != nil {
			return
		}
		for _, rd := range readings {
			rd.read(s.View())
		}
		if err := state.New().Restore(bytes.NewReader(dump(t, s))); err != nil {
			t.Fatal(err)
		}
	})
}
