package kvrpc_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/kvrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

type server struct {
	*rpctest.Server
	t *testing.T
}

// newServer returns a server with one live node n1.
func newServer(t *testing.T, cfg kvrpc.Config) *server {
	t.Helper()
	s := &server{rpctest.New(), t}
	kvrpc.Register(&s.Registry, &s.Appliers, cfg)
	catalogrpc.Register(&s.Registry, &s.Appliers, catalogrpc.Config{})
	s.register(&catalog.RegisterRequest{Node: "n1", Address: "10.0.0.1", Check: &catalog.Check{CheckID: catalog.SerfCheckID, Status: catalog.Passing}})
	return s
}

// register is done with every right, whatever the resolver says.
func (s *server) register(req *catalog.RegisterRequest) {
	s.t.Helper()
	command, err := catalogrpc.Prepare(req, "dc1")
	if err == nil {
		_, err = s.Apply(s.t.Context(), fsm.Register, command)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) session(session kv.Session) string {
	s.t.Helper()
	if session.Node == "" {
		session.Node = "n1"
	}
	r, err := kv.SessionCreateCall.Call(s.t.Context(), s.Caller(), &kv.SessionCreateRequest{Session: session})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.ID
}

func (s *server) apply(op kv.Op, e kv.Entry) bool {
	s.t.Helper()
	r, err := kv.ApplyCall.Call(s.t.Context(), s.Caller(), &kv.ApplyRequest{Op: op, Entry: e})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.OK
}

func (s *server) get(key string) *kv.Entry {
	s.t.Helper()
	r, err := kv.GetCall.Call(s.t.Context(), s.Caller(), &kv.GetRequest{Key: key})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Entry
}

func TestRefusals(t *testing.T) {
	s := newServer(t, kvrpc.Config{})
	s.register(&catalog.RegisterRequest{Node: "n1", Address: "10.0.0.1", Check: &catalog.Check{CheckID: "bad", Status: catalog.Critical}})
	change := func(op kv.Op, key, session string) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			_, err := kv.ApplyCall.Call(ctx, s.Caller(), &kv.ApplyRequest{Op: op, Entry: kv.Entry{Key: key, Session: session}})
			return err
		}
	}
	create := func(session kv.Session) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			_, err := kv.SessionCreateCall.Call(ctx, s.Caller(), &kv.SessionCreateRequest{Session: session})
			return err
		}
	}
	tests := []struct {
		name string
		call func(ctx context.Context) error
		want string
	}{
		{"acquire without session", change(kv.OpLock, "k", ""), "raft apply failed: missing session"},
		{"release without session", change(kv.OpUnlock, "k", ""), "raft apply failed: missing session"},
		{"acquire with unknown session", change(kv.OpLock, "k", "SID"), `raft apply failed: invalid session "SID"`},
		{"no key", change(kv.OpSet, "", ""), "Must provide key"},
		{"unknown verb", change("zap", "k", ""), "unknown KV operation: zap"},
		{"read as a change", change(kv.OpGet, "k", ""), "unknown KV operation: get"},
		{"session without node", create(kv.Session{}), "Must provide Node"},
		{"session on unknown node", create(kv.Session{Node: "x"}), "apply failed: Missing node registration"},
		{"unknown behaviour", create(kv.Session{Node: "n1", Behavior: "explode"}), "Invalid Behavior setting 'explode'"},
		{"unknown check", create(kv.Session{Node: "n1", NodeChecks: []string{"x"}}), "apply failed: Missing check 'x' registration"},
		{"unknown service check", create(kv.Session{Node: "n1", ServiceChecks: []kv.ServiceCheck{{ID: "x"}}}), "apply failed: Missing check 'x' registration"},
		{"critical check", create(kv.Session{Node: "n1", Checks: []string{"bad"}}), "apply failed: Check 'bad' is in critical state"},
		{"short TTL", create(kv.Session{Node: "n1", TTL: "9s"}), "Invalid Session TTL '9000000000', must be between [10s=24h0m0s]"},
		{"long TTL", create(kv.Session{Node: "n1", TTL: "25h"}), "Invalid Session TTL '90000000000000', must be between [10s=24h0m0s]"},
		{"bad TTL", create(kv.Session{Node: "n1", TTL: "x"}), `Session TTL 'x' invalid: time: invalid duration "x"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.call(t.Context()); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestLockDelayBeginsWhenTheSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, kvrpc.Config{})
		a := s.session(kv.Session{LockDelay: 2 * time.Second})
		b := s.session(kv.Session{})
		lock := func(key, session string) bool { return s.apply(kv.OpLock, kv.Entry{Key: key, Session: session}) }
		if !lock("l", a) || !lock("free", a) || !s.apply(kv.OpUnlock, kv.Entry{Key: "free", Session: a}) {
			t.Fatal("not locked")
		}
		if lock("l", b) {
			t.Error("locked by two")
		}
		if _, err := kv.SessionDestroyCall.Call(t.Context(), s.Caller(), &kv.SessionDestroyRequest{ID: a}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2*time.Second - 1)
		if lock("l", b) {
			t.Error("locked within the delay")
		}
		r, err := kv.TxnCall.Call(t.Context(), s.Caller(), &kv.TxnRequest{Ops: []kv.TxnOp{{KV: &kv.TxnKV{Verb: kv.OpLock, Entry: kv.Entry{Key: "l", Session: b}}}}})
		if want := []kv.TxnError{{OpIndex: 0, What: `failed to lock key "l" due to lock delay`}}; err != nil || !slices.Equal(r.Errors, want) {
			t.Errorf("got %v %v, want %v", r, err, want)
		}
		if !lock("free", b) {
			t.Error("an explicit release began a delay")
		}
		if !s.apply(kv.OpSet, kv.Entry{Key: "l", Value: []byte("x")}) {
			t.Error("a plain write was delayed")
		}
		time.Sleep(time.Nanosecond)
		if !lock("l", b) {
			t.Error("not locked after the delay")
		}
	})
}

func TestDelaysCountFromTheLogEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d kvrpc.Delays
		now := time.Now()
		d.Start(now.Add(-time.Minute), []kv.Delay{{Key: "old", For: 59 * time.Second}, {Key: "late", For: 61 * time.Second}})
		d.Start(now.Add(time.Hour), []kv.Delay{{Key: "ahead", For: time.Second}})
		d.Start(time.Time{}, []kv.Delay{{Key: "now", For: time.Second}})
		for key, want := range map[string]bool{"old": false, "late": true, "ahead": true, "now": true, "other": false} {
			if got := d.Active(key); got != want {
				t.Errorf("%s: got %v", key, got)
			}
		}
		time.Sleep(time.Second)
		for _, key := range []string{"late", "ahead", "now"} {
			if d.Active(key) {
				t.Errorf("%s is still delayed", key)
			}
		}
	})
}

type keeper struct{ log []string }

func (k *keeper) Renew(id string, after time.Duration) {
	k.log = append(k.log, "renew "+id+" "+after.String())
}
func (k *keeper) Forget(id string) { k.log = append(k.log, "forget "+id) }

func TestTTLKeeperIsTold(t *testing.T) {
	k := &keeper{}
	s := newServer(t, kvrpc.Config{TTL: k, MinTTL: time.Second})
	a, b := s.session(kv.Session{TTL: "5s"}), s.session(kv.Session{})
	for _, id := range []string{a, b, "unknown"} {
		r, err := kv.SessionRenewCall.Call(t.Context(), s.Caller(), &kv.SessionRenewRequest{ID: id})
		if err != nil || (len(r.Sessions) == 1) != (id != "unknown") {
			t.Errorf("renew %s: got %v, %v", id, r, err)
		}
	}
	for _, id := range []string{a, a} {
		if _, err := kv.SessionDestroyCall.Call(t.Context(), s.Caller(), &kv.SessionDestroyRequest{ID: id}); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"renew " + a + " 10s", "renew " + a + " 10s", "forget " + a}, k.log); diff != "" {
		t.Error(diff)
	}
}

func TestBlockedGetOfMissingKeyIgnoresOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, kvrpc.Config{})
		s.apply(kv.OpSet, kv.Entry{Key: "a"})
		first, err := kv.GetCall.Call(t.Context(), s.Caller(), &kv.GetRequest{Key: "b"})
		if err != nil || !first.NotFound || first.Index == 0 {
			t.Fatalf("got %+v, %v", first, err)
		}
		done := make(chan *kv.GetReply)
		go func() {
			r, err := kv.GetCall.Call(t.Context(), s.Caller(), &kv.GetRequest{
				Options: read.Options{MinIndex: first.Index, MaxWait: time.Minute}, Key: "b",
			})
			if err != nil {
				t.Error(err)
			}
			done <- r
		}()
		synctest.Wait()
		s.apply(kv.OpSet, kv.Entry{Key: "c"})
		s.apply(kv.OpSet, kv.Entry{Key: "ba"})
		synctest.Wait()
		select {
		case r := <-done:
			t.Fatalf("woken by other keys: %+v", r)
		default:
		}
		s.apply(kv.OpSet, kv.Entry{Key: "b", Value: []byte("x")})
		if r := <-done; r.Entry == nil || r.Index <= first.Index {
			t.Errorf("got %+v", r)
		}
	})
}

func TestTxnPrechecksListEveryProblem(t *testing.T) {
	s := newServer(t, kvrpc.Config{})
	r, err := kv.TxnCall.Call(t.Context(), s.Caller(), &kv.TxnRequest{Ops: []kv.TxnOp{
		{KV: &kv.TxnKV{Verb: "zap", Entry: kv.Entry{Key: "a"}}},
		{KV: &kv.TxnKV{Verb: kv.OpSet, Entry: kv.Entry{Key: "good"}}},
		{Node: &kv.TxnNode{Verb: "zap"}},
		{Service: &kv.TxnService{Verb: "zap"}},
		{Check: &kv.TxnCheck{Verb: "zap"}},
		{KV: &kv.TxnKV{Verb: kv.OpGetTree}},
		{KV: &kv.TxnKV{Verb: kv.OpDeleteTree}},
		{Node: &kv.TxnNode{Verb: kv.OpSet}},
		{Node: &kv.TxnNode{Verb: kv.OpSet, Node: catalog.Node{Node: "n", ID: "bad"}}},
		{Service: &kv.TxnService{Verb: kv.OpSet, Node: "n1"}},
		{Service: &kv.TxnService{Verb: kv.OpDelete, Node: "n1", Service: catalog.Service{ID: "w"}}},
		{Service: &kv.TxnService{Verb: kv.OpSet, Node: "n1", Service: catalog.Service{Service: "w", Address: "::"}}},
		{Session: &kv.TxnSession{Verb: kv.OpSet}},
		{},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []kv.TxnError{
		{OpIndex: 0, What: "unknown KV operation: zap"}, {OpIndex: 2, What: "unknown node operation: zap"},
		{OpIndex: 3, What: "unknown service operation: zap"}, {OpIndex: 4, What: "unknown check operation: zap"},
		{OpIndex: 5, What: "Must provide key"}, {OpIndex: 7, What: "Must provide node"},
		{OpIndex: 8, What: "Bad node ID: uuid string is wrong length"},
		{OpIndex: 9, What: "Must provide service name (Service.Service)"},
		{OpIndex: 10, What: "Must provide service name (Service.Service) when service ID is provided"},
		{OpIndex: 11, What: "Invalid service address"}, {OpIndex: 12, What: "unknown session operation: set"},
	}
	if diff := cmp.Diff(want, r.Errors); diff != "" {
		t.Error(diff)
	}
	if r.Results != nil || s.get("good") != nil {
		t.Error("something was done")
	}
}

func TestTxnReadRefusesWrites(t *testing.T) {
	s := newServer(t, kvrpc.Config{})
	s.apply(kv.OpSet, kv.Entry{Key: "a", Value: []byte("x")})
	ops := []kv.TxnOp{{KV: &kv.TxnKV{Verb: kv.OpGet, Entry: kv.Entry{Key: "a"}}}}
	r, err := kv.TxnReadCall.Call(t.Context(), s.Caller(), &kv.TxnReadRequest{Ops: ops})
	if err != nil || len(r.Results) != 1 || string(r.Results[0].KV.Value) != "x" {
		t.Fatalf("got %+v, %v", r, err)
	}
	for _, op := range []kv.TxnOp{
		{KV: &kv.TxnKV{Verb: kv.OpDelete, Entry: kv.Entry{Key: "a"}}},
		{Session: &kv.TxnSession{Verb: kv.OpDelete}},
		{Node: &kv.TxnNode{Verb: kv.OpDelete, Node: catalog.Node{Node: "n1"}}},
	} {
		if _, err := kv.TxnReadCall.Call(t.Context(), s.Caller(), &kv.TxnReadRequest{Ops: append(ops, op)}); err == nil {
			t.Errorf("%s was taken", op.Verb())
		}
	}
}

// A policy grants accesses listed as "resource:access:name"; a name that ends in * stands for a prefix. Write is also
// read. "-" in front denies.
type policy []string

func (p policy) Allows(r acl.Resource, a acl.Access, name string) bool {
	granted, longest := false, -1
	for _, rule := range p {
		deny := strings.HasPrefix(rule, "-")
		parts := strings.SplitN(strings.TrimPrefix(rule, "-"), ":", 3)
		if parts[0] != string(r) || !deny && parts[1] != string(a) && !(parts[1] == "write" && a != acl.Write) {
			continue
		}
		prefix, wild := strings.CutSuffix(parts[2], "*")
		if (name == parts[2] || wild && strings.HasPrefix(name, prefix)) && len(parts[2]) > longest {
			granted, longest = !deny, len(parts[2])
		}
	}
	return granted
}

func (p policy) AllowsAny(acl.Resource, acl.Access) bool { return true }

func (p policy) AllowsPrefix(r acl.Resource, a acl.Access, prefix string) bool {
	for _, rule := range p {
		if parts := strings.SplitN(strings.TrimPrefix(rule, "-"), ":", 3); strings.HasPrefix(rule, "-") && parts[0] == string(r) && strings.HasPrefix(parts[2], prefix) {
			return false
		}
	}
	return p.Allows(r, a, prefix)
}

func TestRights(t *testing.T) {
	s := newServer(t, kvrpc.Config{KeyListPolicy: false})
	s.register(&catalog.RegisterRequest{Node: "n1", Address: "10.0.0.1", Service: &catalog.Service{ID: "w1", Service: "web"}})
	var rules policy
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		if token == "root" {
			return acl.Everything(), nil
		}
		return acl.New(rules, token), nil
	}
	root := read.Target{Token: "root"}
	for _, key := range []string{"foo/a", "foo/b", "secret", "w/a", "w/deny"} {
		if _, err := kv.ApplyCall.Call(t.Context(), s.Caller(), &kv.ApplyRequest{Target: root, Op: kv.OpSet, Entry: kv.Entry{Key: key}}); err != nil {
			t.Fatal(err)
		}
	}
	created, err := kv.SessionCreateCall.Call(t.Context(), s.Caller(), &kv.SessionCreateRequest{Target: root, Session: kv.Session{Node: "n1"}})
	if err != nil {
		t.Fatal(err)
	}
	target := read.Target{Token: "tok"}
	o := read.Options{Target: target}
	rules = policy{"key:read:foo/*", "key:write:w/*", "-key::w/deny"}

	keys, err := kv.KeysCall.Call(t.Context(), s.Caller(), &kv.KeysRequest{Options: o})
	if err != nil || !slices.Equal(keys.Keys, []string{"foo/a", "foo/b", "w/a"}) || !keys.Filtered {
		t.Errorf("keys: got %+v, %v", keys, err)
	}
	list, err := kv.ListCall.Call(t.Context(), s.Caller(), &kv.ListRequest{Options: o, Prefix: "sec"})
	if err != nil || len(list.Entries) != 0 || !list.Filtered {
		t.Errorf("list: got %+v, %v", list, err)
	}
	anonymous, err := kv.ListCall.Call(t.Context(), s.Caller(), &kv.ListRequest{Prefix: "sec"})
	if err != nil || len(anonymous.Entries) != 0 || anonymous.Filtered {
		t.Errorf("anonymous list: got %+v, %v", anonymous, err)
	}
	sessions, err := kv.SessionsCall.Call(t.Context(), s.Caller(), &kv.SessionsRequest{Options: o})
	if err != nil || len(sessions.Sessions) != 0 || !sessions.Filtered {
		t.Errorf("sessions: got %+v, %v", sessions, err)
	}
	txn, err := kv.TxnCall.Call(t.Context(), s.Caller(), &kv.TxnRequest{Target: target, Ops: []kv.TxnOp{
		{KV: &kv.TxnKV{Verb: kv.OpGet, Entry: kv.Entry{Key: "secret"}}},
		{KV: &kv.TxnKV{Verb: kv.OpGet, Entry: kv.Entry{Key: "foo/a"}}},
		{KV: &kv.TxnKV{Verb: kv.OpSet, Entry: kv.Entry{Key: "w/a", Value: []byte("1")}}},
	}})
	if err != nil || len(txn.Results) != 2 || txn.Results[0].KV.Key != "foo/a" {
		t.Errorf("txn: got %+v, %v", txn, err)
	}

	change := func(op kv.Op, key string) error {
		_, err := kv.ApplyCall.Call(t.Context(), s.Caller(), &kv.ApplyRequest{Target: target, Op: op, Entry: kv.Entry{Key: key}})
		return err
	}
	op := func(op kv.TxnOp) error {
		r, err := kv.TxnCall.Call(t.Context(), s.Caller(), &kv.TxnRequest{Target: target, Ops: []kv.TxnOp{op}})
		if err != nil {
			return err
		}
		for _, e := range r.Errors {
			return &acl.DeniedError{Accessor: e.What}
		}
		return nil
	}
	_, get := kv.GetCall.Call(t.Context(), s.Caller(), &kv.GetRequest{Options: o, Key: "secret"})
	_, destroy := kv.SessionDestroyCall.Call(t.Context(), s.Caller(), &kv.SessionDestroyRequest{Target: target, ID: created.ID})
	_, renew := kv.SessionRenewCall.Call(t.Context(), s.Caller(), &kv.SessionRenewRequest{Target: target, ID: created.ID})
	_, create := kv.SessionCreateCall.Call(t.Context(), s.Caller(), &kv.SessionCreateRequest{Target: target, Session: kv.Session{Node: "n1"}})
	tests := []struct {
		name string
		err  error
		want string // part of the text, empty when it is granted
	}{
		{"get", get, "lacks permission 'key:read' on \"secret\""},
		{"set", change(kv.OpSet, "w/z"), ""},
		{"set elsewhere", change(kv.OpSet, "foo/a"), "lacks permission 'key:write' on \"foo/a\""},
		{"delete tree with a denied key", change(kv.OpDeleteTree, "w/"), "lacks permission 'key:write' on \"w/\""},
		{"delete tree", change(kv.OpDeleteTree, "w/a"), ""},
		{"create session", create, "lacks permission 'session:write' on \"n1\""},
		{"destroy session", destroy, "lacks permission 'session:write' on \"n1\""},
		{"renew session", renew, "lacks permission 'session:write' on \"n1\""},
		{"check-index tells about a key", op(kv.TxnOp{KV: &kv.TxnKV{Verb: kv.OpCheckIndex, Entry: kv.Entry{Key: "secret"}}}), "lacks permission 'key:read'"},
		{"check-not-exists tells about a key", op(kv.TxnOp{KV: &kv.TxnKV{Verb: kv.OpCheckNotExists, Entry: kv.Entry{Key: "secret"}}}), "lacks permission 'key:read'"},
		{"session in a transaction", op(kv.TxnOp{Session: &kv.TxnSession{Verb: kv.OpDelete, Session: kv.Session{ID: created.ID}}}), "lacks permission 'session:write'"},
		{"node in a transaction", op(kv.TxnOp{Node: &kv.TxnNode{Verb: kv.OpDelete, Node: catalog.Node{Node: "n1"}}}), "lacks permission 'node:write' on \"n1\""},
		{"service in a transaction", op(kv.TxnOp{Service: &kv.TxnService{Verb: kv.OpSet, Node: "n1", Service: catalog.Service{Service: "db"}}}), "lacks permission 'service:write' on \"db\""},
		{"check of a service by its ID alone", op(kv.TxnOp{Check: &kv.TxnCheck{Verb: kv.OpSet, Check: catalog.Check{Node: "n1", CheckID: "c", ServiceID: "w1", ServiceName: "mine"}}}), "lacks permission 'service:write' on \"web\""},
		{"check of the node", op(kv.TxnOp{Check: &kv.TxnCheck{Verb: kv.OpDelete, Check: catalog.Check{Node: "n1", CheckID: catalog.SerfCheckID}}}), "lacks permission 'node:write' on \"n1\""},
	}
	for _, tt := range tests {
		if (tt.err == nil) != (tt.want == "") || tt.err != nil && !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, tt.err, tt.want)
		}
	}
}

func TestKeyListPolicy(t *testing.T) {
	s := newServer(t, kvrpc.Config{KeyListPolicy: true})
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		return acl.New(policy{"key:read:a*", "key:list:a/*"}, token), nil
	}
	for prefix, allowed := range map[string]bool{"a/": true, "a": false, "": false} {
		_, list := kv.ListCall.Call(t.Context(), s.Caller(), &kv.ListRequest{Prefix: prefix})
		_, keys := kv.KeysCall.Call(t.Context(), s.Caller(), &kv.KeysRequest{Prefix: prefix})
		if (list == nil) != allowed || (keys == nil) != allowed {
			t.Errorf("%q: got %v and %v", prefix, list, keys)
		}
	}
}

func TestReapedTombstonesLetThePrefixIndexFall(t *testing.T) {
	s := newServer(t, kvrpc.Config{})
	s.apply(kv.OpSet, kv.Entry{Key: "p/a"})
	before := s.Index()
	s.apply(kv.OpSet, kv.Entry{Key: "p/b"})
	s.apply(kv.OpDelete, kv.Entry{Key: "p/b"})
	list := func() uint64 {
		r, err := kv.ListCall.Call(t.Context(), s.Caller(), &kv.ListRequest{Prefix: "p/"})
		if err != nil {
			t.Fatal(err)
		}
		return r.Index
	}
	deleted := s.Index()
	if got := list(); got != deleted {
		t.Errorf("after the deletion: got %d, want %d", got, deleted)
	}
	for _, upTo := range []uint64{deleted - 1, deleted} {
		if _, err := s.Apply(t.Context(), fsm.TombstoneReap, kvrpc.ReapRequest(upTo)); err != nil {
			t.Fatal(err)
		}
		want := deleted
		if upTo == deleted {
			want = before
		}
		if got := list(); got != want {
			t.Errorf("reaped up to %d: got %d, want %d", upTo, got, want)
		}
	}
}
