package fsm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/kvrpc"
	"github.com/sarnmesh/sarn/server/transport"
)

// appliers returns those of the catalog and of keys, and some that misbehave.
func appliers() *fsm.Appliers {
	a := &fsm.Appliers{}
	r := &transport.Registry{}
	catalogrpc.Register(r, a, catalogrpc.Config{})
	kvrpc.Register(r, a, kvrpc.Config{})
	fsm.Handle(a, failing, func(tx *state.Tx, req *kv.Entry) (*kv.Entry, error) {
		tx.SetKey(*req)
		return req, errors.New("failed")
	})
	fsm.Handle(a, panicking, func(tx *state.Tx, req *kv.Entry) (*kv.Entry, error) {
		tx.SetKey(*req)
		panic("oh")
	})
	return a
}

const (
	failing   fsm.Kind = 1000
	panicking fsm.Kind = 1001
	unknown   fsm.Kind = 1002
)

func encode(t testing.TB, commands ...fsm.Command) []byte {
	t.Helper()
	entry, err := fsm.Encode(commands)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

func set(key string) fsm.Command {
	return fsm.Command{Kind: fsm.KV, Req: &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: key, Value: []byte("v")}}}
}

func dump(t testing.TB, s *state.Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.View().Dump(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func keys(s *state.Store) []string {
	_, names := s.View().KeyNames("", "", nil)
	return names
}

func TestEachCommandOfABatchHasItsOwnResult(t *testing.T) {
	s, a := state.New(), appliers()
	bad := kv.Entry{Key: "bad"}
	results := a.Apply(s, 7, encode(t, set("a"), fsm.Command{Kind: failing, Req: &bad}, set("b"), fsm.Command{Kind: panicking, Req: &bad},
		fsm.Command{Kind: unknown, Req: &bad}, fsm.Command{Kind: fsm.KV, Req: "no request"}, set("c")))
	if len(results) != 7 {
		t.Fatalf("got %d results", len(results))
	}
	for i, want := range []string{"", "failed", "", "command of kind 1001: panic: oh", "command of kind 1002 version 1 is not known to this server", "?", ""} {
		r := results[i]
		switch {
		case want == "" && (r.Err != nil || !r.Value.(*kv.ApplyReply).OK), want != "" && (r.Err == nil || r.Value != nil):
			t.Errorf("%d: got %+v", i, r)
		case want != "" && want != "?" && r.Err.Error() != want:
			t.Errorf("%d: got %v, want %s", i, r.Err, want)
		}
	}
	if got := keys(s); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("keys are %q", got)
	}
	if _, e := s.View().Key("c"); e.ModifyIndex != 7 {
		t.Errorf("got %+v", e)
	}
}

func TestPoisonedEntryChangesNothing(t *testing.T) {
	s, a := state.New(), appliers()
	a.Apply(s, 5, encode(t, set("a")))
	want := dump(t, s)
	for _, entry := range [][]byte{nil, {}, []byte("garbage"), {0x9f}, encode(t, set("b"))[1:], append(encode(t, set("b")), 0)} {
		results := a.Apply(s, 6, entry)
		if len(results) != 1 || results[0].Err == nil {
			t.Errorf("%x: got %v", entry, results)
		}
	}
	if !bytes.Equal(dump(t, s), want) {
		t.Error("something changed")
	}
}

// Raft keeps entries, and gives their memory to others.
func TestStateSharesNoMemoryWithEntries(t *testing.T) {
	s, a := state.New(), appliers()
	entry := encode(t, set("a"), fsm.Command{Kind: fsm.Register, Req: &catalog.RegisterRequest{
		Node: "n", Address: "127.0.0.1", Service: &catalog.Service{ID: "s", Service: "s", Tags: []string{"t"}, Meta: map[string]string{"k": "v"}, Connect: catalog.Connect{PeerMeta: json.RawMessage(`{"a":"b"}`)}},
	}})
	for _, r := range a.Apply(s, 5, entry) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	want := dump(t, s)
	for i := range entry {
		entry[i] = 'x'
	}
	if !bytes.Equal(dump(t, s), want) {
		t.Error("the state changed with the bytes of an entry")
	}
}

func TestUnencodableRequestIsRefused(t *testing.T) {
	if _, err := fsm.Encode([]fsm.Command{{Kind: fsm.KV, Req: func() {}}}); err == nil {
		t.Error("no error")
	}
}

func TestKindsAreTakenOnce(t *testing.T) {
	a := appliers()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	fsm.Handle(a, fsm.KV, func(*state.Tx, *kv.Entry) (*kv.Entry, error) { return nil, nil })
}

func log(index uint64, data []byte) *raft.Log {
	return &raft.Log{Index: index, Type: raft.LogCommand, Data: data, AppendedAt: time.Unix(int64(index), 0)}
}

func TestBatchOfEntriesKeepsTheirIndexes(t *testing.T) {
	s, a := state.New(), appliers()
	var delays []string
	a.OnDelay = func(since time.Time, list []kv.Delay) { delays = append(delays, fmt.Sprint(since.Unix(), list)) }
	f := fsm.New(s, a)
	const id = "aaaaaaaa-0000-0000-0000-000000000001"
	lock := fsm.Command{Kind: fsm.KV, Req: &kv.ApplyRequest{Op: kv.OpLock, Entry: kv.Entry{Key: "l", Session: id}}}
	responses := f.ApplyBatch([]*raft.Log{
		log(5, encode(t, set("a"), fsm.Command{Kind: fsm.Register, Req: &catalog.RegisterRequest{Node: "n1", Address: "1"}})),
		{Index: 6, Type: raft.LogConfiguration},
		log(7, encode(t, fsm.Command{Kind: fsm.SessionCreate, Req: &kv.SessionCreateRequest{Session: kv.Session{ID: id, Node: "n1", LockDelay: time.Second}}}, lock)),
		log(8, []byte("garbage")),
		log(9, encode(t, fsm.Command{Kind: fsm.SessionDestroy, Req: &kv.SessionDestroyRequest{ID: id}})),
	})
	if len(responses) != 5 || responses[1] != nil {
		t.Fatalf("got %v", responses)
	}
	for i, want := range []int{2, 0, 2, 1, 1} {
		a, _ := responses[i].(*fsm.Applied)
		if a == nil {
			a = new(fsm.Applied)
		}
		results := a.Results
		if len(results) != want {
			t.Errorf("entry %d: got %v", i, results)
		}
		for _, r := range results {
			if (r.Err != nil) != (i == 3) {
				t.Errorf("entry %d: got %v", i, r.Err)
			}
		}
	}
	if _, e := s.View().Key("a"); e.ModifyIndex != 5 {
		t.Errorf("got %+v", e)
	}
	if _, e := s.View().Key("l"); e.CreateIndex != 7 || e.ModifyIndex != 9 {
		t.Errorf("got %+v", e)
	}
	if want := []string{"9 [{l 1s}]"}; !slices.Equal(delays, want) {
		t.Errorf("delays are %q, want %q", delays, want)
	}
	if f.Applied() != 9 {
		t.Errorf("applied is %d", f.Applied())
	}
	if r := f.Apply(log(10, encode(t, set("b")))).(*fsm.Applied).Results; len(r) != 1 || r[0].Err != nil {
		t.Errorf("got %v", r)
	}
}

type sink struct {
	bytes.Buffer
	closed, canceled bool
	err              error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.Buffer.Write(p)
}
func (s *sink) ID() string    { return "id" }
func (s *sink) Close() error  { s.closed = true; return nil }
func (s *sink) Cancel() error { s.canceled = true; return nil }

func TestSnapshotIsOfItsMoment(t *testing.T) {
	s, a := state.New(), appliers()
	f := fsm.New(s, a)
	f.Apply(log(5, encode(t, set("a"))))
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(log(6, encode(t, set("b"))))
	bad := &sink{err: errors.New("no space left")}
	if err := snap.Persist(bad); err == nil || !bad.canceled || bad.closed {
		t.Errorf("got %v, canceled %v", err, bad.canceled)
	}
	good := &sink{}
	if err := snap.Persist(good); err != nil || !good.closed || good.canceled {
		t.Errorf("got %v", err)
	}
	snap.Release()
	if err := f.Restore(io.NopCloser(bytes.NewReader(good.Bytes()))); err != nil {
		t.Fatal(err)
	}
	if got := keys(s); !slices.Equal(got, []string{"a"}) {
		t.Errorf("keys are %q", got)
	}
	if err := f.Restore(io.NopCloser(bytes.NewReader(good.Bytes()[:20]))); err == nil {
		t.Error("a cut snapshot was restored")
	}
	if got := keys(s); !slices.Equal(got, []string{"a"}) {
		t.Errorf("keys are %q", got)
	}
}

// FuzzApply applies arbitrary bytes as an entry: nothing may panic, an entry that fails as a whole may change nothing,
// and two servers must make the same of it.
func FuzzApply(f *testing.F) {
	f.Add([]byte("garbage"))
	f.Add(encode(f, set("a"), fsm.Command{Kind: fsm.Deregister, Req: &catalog.DeregisterRequest{Node: "n1"}}))
	f.Add(encode(f, fsm.Command{Kind: fsm.Register, Req: &catalog.RegisterRequest{
		Node: "n1", Address: "1", Service: &catalog.Service{Kind: catalog.KindConnectProxy, ID: "p", Service: "p", Proxy: catalog.Proxy{DestinationServiceName: "w"}},
		Checks: []*catalog.Check{{Node: "n1", CheckID: "c", ServiceID: "p"}},
	}}))
	f.Add(encode(f, fsm.Command{Kind: fsm.Txn, Req: &kv.TxnRequest{Ops: []kv.TxnOp{
		{KV: &kv.TxnKV{Verb: kv.OpDeleteTree}}, {Session: &kv.TxnSession{Verb: kv.OpDelete}}, {Node: &kv.TxnNode{Verb: kv.OpCAS}},
		{Service: &kv.TxnService{Verb: kv.OpSet}}, {Check: &kv.TxnCheck{Verb: kv.OpSet}}, {},
	}}}))
	f.Add(encode(f, fsm.Command{Kind: fsm.SessionCreate, Req: &kv.SessionCreateRequest{Session: kv.Session{ID: "x", Node: "n1"}}}))
	f.Add(encode(f, fsm.Command{Kind: fsm.UpdateCoordinates, Req: &catalog.CoordinateUpdate{Updates: []*catalog.NodeCoordinate{nil, {Node: "n1"}}}}))
	f.Add(encode(f, fsm.Command{Kind: fsm.TombstoneReap, Req: kvrpc.ReapRequest(9)}))
	a := appliers()
	a.OnDelay = nil
	first := seed(f)
	f.Fuzz(func(t *testing.T, entry []byte) { same(t, a, first, entry) })
}

// seed is an entry with something for others to change.
func seed(t testing.TB) []byte {
	return encode(t, set("a/b"), fsm.Command{Kind: fsm.Register, Req: &catalog.RegisterRequest{
		Node: "n1", Address: "1", Service: &catalog.Service{ID: "s", Service: "s"}, Checks: []*catalog.Check{{Node: "n1", CheckID: "c", Status: "passing"}},
	}}, fsm.Command{Kind: fsm.SessionCreate, Req: &kv.SessionCreateRequest{Session: kv.Session{ID: "y", Node: "n1", NodeChecks: []string{"c"}}}})
}

// same applies an entry on two servers.
func same(t *testing.T, a *fsm.Appliers, first, entry []byte) {
	one, two := state.New(), state.New()
	a.Apply(one, 5, first)
	before := dump(t, one)
	results := a.Apply(one, 6, entry)
	failed := true
	for _, r := range results {
		failed = failed && r.Err != nil
	}
	after := dump(t, one)
	if failed && !bytes.Equal(before, after) {
		t.Fatal("what failed changed something")
	}
	a.Apply(two, 5, first)
	a.Apply(two, 6, entry)
	if !bytes.Equal(after, dump(t, two)) {
		t.Fatal("two servers made different states of one entry")
	}
	if err := state.New().Restore(bytes.NewReader(after)); err != nil {
		t.Fatal(err)
	}
}

// FuzzCommand is FuzzApply for one command with arbitrary data.
func FuzzCommand(f *testing.F) {
	add := func(k fsm.Kind, req any) {
		data, err := rpc.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint16(k), data)
	}
	session := kv.Session{ID: "x", Node: "n1", Name: "s", NodeChecks: []string{"c"}, LockDelay: 1, Behavior: kv.Delete}
	add(fsm.KV, &kv.ApplyRequest{Op: kv.OpLock, Entry: kv.Entry{Key: "a\xff", Session: "y", Value: []byte("v")}})
	add(fsm.KV, &kv.ApplyRequest{Op: kv.OpDeleteTree, Entry: kv.Entry{Key: "a"}})
	add(fsm.Register, &catalog.RegisterRequest{
		ID: "40e4a748-2192-161a-0510-9bf59fe950b1", Node: "N1", Address: "2", NodeMeta: map[string]string{"a": "b"},
		Service: &catalog.Service{Kind: catalog.KindConnectProxy, ID: "s", Service: "p", Proxy: catalog.Proxy{DestinationServiceName: "w", Config: map[string]any{"a": []any{1}}}},
		Checks:  []*catalog.Check{nil, {Node: "n1", CheckID: "c", ServiceID: "s", Type: "session", Definition: catalog.CheckDefinition{SessionName: "s"}}},
	})
	add(fsm.Deregister, &catalog.DeregisterRequest{Node: "n1", ServiceID: "s"})
	add(fsm.Deregister, &catalog.DeregisterRequest{Node: "n1"})
	add(fsm.UpdateCoordinates, &catalog.CoordinateUpdate{Updates: []*catalog.NodeCoordinate{nil, {Node: "n1", Coord: &catalog.Coordinate{Vec: []float64{1}}}}})
	add(fsm.Txn, &kv.TxnRequest{Ops: []kv.TxnOp{
		{KV: &kv.TxnKV{Verb: kv.OpGetTree}}, {Session: &kv.TxnSession{Verb: kv.OpDelete, Session: session}},
		{Node: &kv.TxnNode{Verb: kv.OpCAS, Node: catalog.Node{Node: "n2"}}}, {Service: &kv.TxnService{Verb: kv.OpSet, Node: "n2", Service: catalog.Service{ID: "s"}}},
		{Check: &kv.TxnCheck{Verb: kv.OpSet, Check: catalog.Check{Node: "n2", CheckID: "c"}}}, {},
	}})
	add(fsm.SessionCreate, &kv.SessionCreateRequest{Session: session})
	add(fsm.SessionDestroy, &kv.SessionDestroyRequest{ID: "y"})
	add(fsm.TombstoneReap, kvrpc.ReapRequest(9))
	type record struct {
		Kind    uint16 `cbor:"k"`
		Version uint8  `cbor:"v"`
		Data    []byte `cbor:"d"`
	}
	a := appliers()
	a.OnDelay = nil
	first := seed(f)
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		entry, err := rpc.Marshal([]record{{kind, 1, data}})
		if err != nil {
			t.Fatal(err)
		}
		same(t, a, first, entry)
	})
}

// BenchmarkApply measures entries from their bytes on, per command.
func BenchmarkApply(b *testing.B) {
	for _, batch := range []int{1, 64} {
		for name, command := range map[string]func(i int) fsm.Command{
			"put": func(i int) fsm.Command { return set(fmt.Sprintf("bench/key/%05d", i%10000)) },
			"register": func(i int) fsm.Command {
				node, id := fmt.Sprintf("node-%05d", i%10000), fmt.Sprintf("web-%05d", i)
				return fsm.Command{Kind: fsm.Register, Req: &catalog.RegisterRequest{
					Node: node, Address: "10.0.0.1",
					Service: &catalog.Service{ID: id, Service: "web", Port: 80, Tags: []string{"v1"}, Meta: map[string]string{"version": "1"}},
					Checks:  []*catalog.Check{{Node: node, CheckID: "service:" + id, Name: "alive", Status: "passing", ServiceID: id, Output: fmt.Sprint(i)}},
				}}
			},
		} {
			b.Run(fmt.Sprintf("%s/batch=%d", name, batch), func(b *testing.B) {
				s, a := state.New(), appliers()
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					commands := make([]fsm.Command, batch)
					for k := range commands {
						commands[k] = command(i*batch + k)
						if r, ok := commands[k].Req.(*kv.ApplyRequest); ok {
							r.Entry.Flags = uint64(i)
						}
					}
					entry := encode(b, commands...)
					b.StartTimer()
					for _, r := range a.Apply(s, uint64(10+i), entry) {
						if r.Err != nil {
							b.Fatal(r.Err)
						}
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/command")
			})
		}
	}
}
