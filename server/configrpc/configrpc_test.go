package configrpc_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

func newServer(cfg configrpc.Config) *rpctest.Server {
	s := rpctest.New()
	cfg.Datacenter = "dc1"
	configrpc.Register(&s.Registry, &s.Appliers, cfg)
	return s
}

func decode(t *testing.T, text string) entry.Entry {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	e, err := entry.Decode(doc)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func put(t *testing.T, s *rpctest.Server, text string) error {
	t.Helper()
	_, err := entry.ApplyCall.Call(t.Context(), s.Caller(), &entry.ApplyRequest{Entry: entry.Any{Entry: decode(t, text)}})
	return err
}

func remove(t *testing.T, s *rpctest.Server, kind entry.Kind, name string) error {
	t.Helper()
	_, err := entry.DeleteCall.Call(t.Context(), s.Caller(), &entry.DeleteRequest{Kind: kind, Name: name})
	return err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Steps write entries ("-KIND/NAME" deletes one); each must give its text, and a refusal change nothing.
func TestEntriesMustFitTogether(t *testing.T) {
	type step struct{ do, want string }
	tests := []struct {
		name  string
		steps []step
	}{
		{"a chain far up is checked", []step{
			{`{"Kind": "proxy-defaults", "Config": {"protocol": "http"}}`, ""},
			{`{"Kind": "service-router", "Name": "a", "Routes": [{"Destination": {"Service": "b"}}]}`, ""},
			{`{"Kind": "service-resolver", "Name": "b", "Redirect": {"Service": "c"}}`, ""},
			{`{"Kind": "service-defaults", "Name": "c", "Protocol": "grpc"}`, `discovery chain "a" uses inconsistent protocols; service "c" has "grpc" which is not "http"`},
			{"-proxy-defaults/global", `discovery chain "a" uses a protocol "tcp" that does not permit advanced routing or splitting behavior`},
		}},
		{"a redirect loop made by its second half", []step{
			{`{"Kind": "service-resolver", "Name": "a", "Redirect": {"Service": "b"}}`, ""},
			{`{"Kind": "service-resolver", "Name": "b", "Redirect": {"Service": "a"}}`, "detected circular resolver redirect: [b.default.default.dc1 -> a.default.default.dc1 -> b.default.default.dc1]"},
		}},
		{"ingress listeners follow the protocol", []step{
			{`{"Kind": "ingress-gateway", "Name": "ig", "Listeners": [{"Port": 1, "Services": [{"Name": "db"}]}]}`, ""},
			{`{"Kind": "service-defaults", "Name": "db", "Protocol": "http"}`, `service "db" has protocol "http", which does not match defined listener protocol "tcp"`},
			{`{"Kind": "proxy-defaults", "Config": {"protocol": "http"}}`, `service "db" has protocol "http", which does not match defined listener protocol "tcp"`},
			{"-ingress-gateway/ig", ""},
			{`{"Kind": "service-defaults", "Name": "db", "Protocol": "http"}`, ""},
		}},
		{"rules about requests need requests", []step{
			{`{"Kind": "service-defaults", "Name": "api", "Protocol": "http"}`, ""},
			{`{"Kind": "service-intentions", "Name": "api", "Sources": [{"Name": "web", "Permissions": [{"Action": "allow", "HTTP": {"PathExact": "/"}}]}]}`, ""},
			{"-service-defaults/api", `service "api" has protocol "tcp", which is incompatible with L7 intentions permissions`},
			{"-service-intentions/api", ""},
			{"-service-defaults/api", ""},
		}},
		{"JWT providers in use stay", []step{
			{`{"Kind": "service-intentions", "Name": "api", "JWT": {"Providers": [{"Name": "p"}, {"Name": "q"}]}, "Sources": [{"Name": "a", "Action": "allow"}]}`,
				"2 errors occurred:\n\t* Referenced JWT Provider does not exist. Provider Name: p\n\t* Referenced JWT Provider does not exist. Provider Name: q\n\n"},
			{`{"Kind": "jwt-provider", "Name": "p", "JSONWebKeySet": {"Local": {"JWKS": "e30="}}}`, ""},
			{`{"Kind": "service-intentions", "Name": "api", "JWT": {"Providers": [{"Name": "p"}]}, "Sources": [{"Name": "a", "Action": "allow"}]}`, ""},
			{"-jwt-provider/p", "cannot delete jwt provider config entry referenced by an intention. Provider name: p, intention name: api"},
		}},
		{"gateways have names of their own", []step{
			{`{"Kind": "ingress-gateway", "Name": "gw"}`, ""},
			{`{"Kind": "terminating-gateway", "Name": "gw"}`, `cannot create a "terminating-gateway" config entry with name "gw", a "ingress-gateway" config entry with that name already exists`},
		}},
		{"permissive stays permissive", []step{
			{`{"Kind": "proxy-defaults", "MutualTLSMode": "permissive"}`, "cannot set MutualTLSMode=permissive because AllowEnablingPermissiveMutualTLS=false in the mesh config entry"},
			{`{"Kind": "mesh", "AllowEnablingPermissiveMutualTLS": true}`, ""},
			{`{"Kind": "proxy-defaults", "MutualTLSMode": "permissive"}`, ""},
			{"-mesh/mesh", ""},
			{`{"Kind": "proxy-defaults", "MutualTLSMode": "permissive", "Mode": "direct"}`, ""},
		}},
		{"exported services stay at home", []step{
			{`{"Kind": "exported-services", "Name": "default", "Services": [{"Name": "*", "Consumers": [{"Peer": "p"}]}]}`, ""},
			{`{"Kind": "service-resolver", "Name": "db", "Failover": {"*": {"Datacenters": ["dc2"]}}}`, `peer exported service "db" contains cross-datacenter failover`},
			{`{"Kind": "service-resolver", "Name": "db", "ConnectTimeout": "3s"}`, ""},
		}},
		{"deleting what is not there", []step{{"-service-defaults/none", ""}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(configrpc.Config{})
			for i, st := range tt.steps {
				before := all(t, s)
				var err error
				if key, ok := strings.CutPrefix(st.do, "-"); ok {
					kind, name, _ := strings.Cut(key, "/")
					err = remove(t, s, entry.Kind(kind), name)
				} else {
					err = put(t, s, st.do)
				}
				if text(err) != st.want {
					t.Fatalf("step %d: got %q, want %q", i, text(err), st.want)
				}
				if err != nil {
					if d := cmp.Diff(before, all(t, s)); d != "" {
						t.Fatalf("step %d was refused but changed something: %s", i, d)
					}
				}
			}
		})
	}
}

// all returns every entry in JSON.
func all(t *testing.T, s *rpctest.Server) string {
	t.Helper()
	r, err := entry.ListCall.Call(t.Context(), s.Caller(), &entry.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(r.Entries)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestCheckAndSet(t *testing.T) {
	s := newServer(configrpc.Config{})
	apply := func(protocol string, cas uint64) bool {
		r, err := entry.ApplyCall.Call(t.Context(), s.Caller(), &entry.ApplyRequest{
			Entry: entry.Any{Entry: decode(t, `{"Kind": "service-defaults", "Name": "web", "Protocol": "`+protocol+`"}`)}, CAS: &cas,
		})
		if err != nil {
			t.Fatal(err)
		}
		return r.OK
	}
	del := func(cas uint64) bool {
		r, err := entry.DeleteCall.Call(t.Context(), s.Caller(), &entry.DeleteRequest{Kind: entry.KindServiceDefaults, Name: "web", CAS: &cas})
		if err != nil {
			t.Fatal(err)
		}
		return r.OK
	}
	if apply("http", 1) || !apply("http", 0) || apply("tcp", 0) {
		t.Fatal("0 does not mean only if absent")
	}
	index := s.Index() - 1 // the last attempt was an entry of the log too
	if apply("tcp", index-1) || !apply("tcp", index) {
		t.Fatal("an index does not mean only if unchanged")
	}
	written := s.Index()
	if !apply("tcp", 1) || !apply("TCP", 0) || apply("grpc", 1) {
		t.Fatal("what is there already does not count as written, or something else does")
	}
	if del(index) || !del(written) || del(1) || apply("tcp", written) {
		t.Fatal("an index does not mean only if unchanged, or writing the same has moved it")
	}
}

// The writer's entry is its own: what it does with it later does not reach the store.
func TestWrittenEntriesAreCopies(t *testing.T) {
	s := newServer(configrpc.Config{})
	e := decode(t, `{"Kind": "service-defaults", "Name": "web", "Protocol": "HTTP", "Meta": {"a": "b"}}`).(*entry.ServiceDefaults)
	if _, err := entry.ApplyCall.Call(t.Context(), s.Caller(), &entry.ApplyRequest{Entry: entry.Any{Entry: e}}); err != nil {
		t.Fatal(err)
	}
	if e.Protocol != "HTTP" {
		t.Error("the caller's entry was changed")
	}
	e.Meta["a"] = "changed"
	r, err := entry.GetCall.Call(t.Context(), s.Caller(), &entry.GetRequest{Kind: entry.KindServiceDefaults, Name: "web"})
	if err != nil || r.Entry.Head().Meta["a"] != "b" {
		t.Errorf("got %v, %v", r, err)
	}
}

// rules grant what they list: "resource:access:name".
type rules map[string]bool

func (r rules) Allows(res acl.Resource, a acl.Access, name string) bool {
	return r[string(res)+":"+string(a)+":"+name]
}

func TestRights(t *testing.T) {
	writes := []struct{ entry, needs string }{
		{`{"Kind": "service-defaults", "Name": "web"}`, "service:write:web"},
		{`{"Kind": "service-resolver", "Name": "web"}`, "service:write:web"},
		{`{"Kind": "service-resolver", "Name": "web", "Redirect": {"Service": "db"}}`, "service:write:web service:read:db"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "a", "Action": "allow"}]}`, "intention:write:web"},
		{`{"Kind": "mesh"}`, "mesh:write:"},
		{`{"Kind": "proxy-defaults"}`, "mesh:write:"},
		{`{"Kind": "ingress-gateway", "Name": "web"}`, "mesh:write:"},
		{`{"Kind": "terminating-gateway", "Name": "web"}`, "mesh:write:"},
		{`{"Kind": "exported-services", "Name": "default"}`, "mesh:write:"},
		{`{"Kind": "jwt-provider", "Name": "web", "JSONWebKeySet": {"Local": {"JWKS": "e30="}}}`, "mesh:write:"},
		{`{"Kind": "file-system-certificate", "Name": "web"}`, "mesh:write:"},
	}
	for _, tt := range writes {
		e := decode(t, tt.entry)
		e.Normalize()
		key := entry.KeyOf(e)
		needs := strings.Fields(tt.needs)
		for missing := -1; missing < len(needs); missing++ {
			granted := rules{}
			for i, n := range needs {
				granted[n] = i != missing
			}
			s := newServer(configrpc.Config{})
			s.Resolve = func(string) (*acl.Authorizer, error) { return acl.New(granted, "acc"), nil }
			err := put(t, s, tt.entry)
			_, denied := errors.AsType[*acl.DeniedError](err)
			if missing < 0 && err != nil || missing >= 0 && !denied {
				t.Errorf("%s with %v: %v", tt.entry, granted, err)
			}
			if missing < 0 {
				continue
			}
			if err := remove(t, s, key.Kind, key.Name); missing == 0 && wireerr.Status(err) != 403 {
				t.Errorf("delete %v with %v: %v", key, granted, err)
			}
		}
	}
	// A bad entry is bad whoever writes it; what only the leader writes is refused to everybody.
	s := newServer(configrpc.Config{})
	s.Resolve = func(string) (*acl.Authorizer, error) { return acl.New(rules{}, "acc"), nil }
	if err := put(t, s, `{"Kind": "service-defaults"}`); text(err) != "Name is required" {
		t.Errorf("bad entry: %v", err)
	}
	s = newServer(configrpc.Config{})
	if err := put(t, s, `{"Kind": "bound-api-gateway", "Name": "a"}`); text(err) != "Permission denied: only writeable by controller" || wireerr.Status(err) != 403 {
		t.Errorf("bound gateway: %v", err)
	}
}

func TestListsLeaveOutWhatMayNotBeRead(t *testing.T) {
	s := newServer(configrpc.Config{})
	granted := rules{"service:read:a": true, "intention:read:web": true}
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		if token == "" {
			return acl.Everything(), nil
		}
		return acl.New(granted, token), nil
	}
	for _, e := range []string{
		`{"Kind": "service-defaults", "Name": "a"}`, `{"Kind": "service-defaults", "Name": "b"}`,
		`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "x", "Action": "allow"}]}`,
		`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Action": "allow"}, {"Name": "x", "Action": "allow"}]}`,
	} {
		if err := put(t, s, e); err != nil {
			t.Fatal(err)
		}
	}
	o := read.Options{Target: read.Target{Token: "limited"}}
	list, err := entry.ListCall.Call(t.Context(), s.Caller(), &entry.ListRequest{Options: o, Kind: entry.KindServiceDefaults})
	if err != nil || len(list.Entries) != 1 || !list.Filtered {
		t.Errorf("entries %v, %v", list, err)
	}
	all, err := intention.ListCall.Call(t.Context(), s.Caller(), &intention.ListRequest{Options: o})
	if err != nil || len(all.Intentions) != 2 || !all.Filtered {
		t.Errorf("intentions %v, %v", all, err)
	}
	get := &intention.GetRequest{Options: o, Source: "x", Destination: "db"}
	if _, err := intention.GetCall.Call(t.Context(), s.Caller(), get); !errors.Is(err, wireerr.ErrPermissionDenied) {
		t.Errorf("exact: %v", err)
	}
	match := &intention.MatchRequest{Options: o, By: intention.ByDestination, Names: []string{"web", "db"}}
	if _, err := intention.MatchCall.Call(t.Context(), s.Caller(), match); text(err) != `Permission denied: token with AccessorID 'limited' lacks permission 'intention:read' on "db"` {
		t.Errorf("match: %v", err)
	}
	upsert := &intention.UpsertRequest{Target: o.Target, Destination: "web", Source: entry.IntentionSource{Name: "a", Action: "allow"}}
	if _, err := intention.UpsertCall.Call(t.Context(), s.Caller(), upsert); !errors.Is(err, wireerr.ErrPermissionDenied) {
		t.Errorf("upsert: %v", err)
	}
	if _, err := intention.RemoveCall.Call(t.Context(), s.Caller(), &intention.RemoveRequest{Target: o.Target, Destination: "web", Source: "x"}); !errors.Is(err, wireerr.ErrPermissionDenied) {
		t.Errorf("remove: %v", err)
	}
	if _, err := chain.GetCall.Call(t.Context(), s.Caller(), &chain.GetRequest{Options: o, Service: "b"}); wireerr.Status(err) != 403 {
		t.Errorf("chain: %v", err)
	}
	if _, err := entry.ResolvedCall.Call(t.Context(), s.Caller(), &entry.ResolvedRequest{Options: o, Service: "b"}); wireerr.Status(err) != 403 {
		t.Errorf("resolved: %v", err)
	}
}

func TestIntentionsCannotBeRewrittenThroughLegacyIDs(t *testing.T) {
	s := newServer(configrpc.Config{})
	granted := rules{"intention:write:mine": true}
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		if token == "" {
			return acl.Everything(), nil
		}
		return acl.New(granted, token), nil
	}
	make := func(token string, op intention.LegacyOp, i intention.Intention) (string, error) {
		r, err := intention.LegacyCall.Call(t.Context(), s.Caller(), &intention.LegacyRequest{Target: read.Target{Token: token}, Op: op, Intention: i})
		if err != nil {
			return "", err
		}
		return r.ID, nil
	}
	theirs, err := make("", intention.LegacyCreate, intention.Intention{SourceName: "a", DestinationName: "theirs", Action: "deny"})
	if err != nil {
		t.Fatal(err)
	}
	// The ID of another's intention under one's own destination.
	if _, err := make("limited", intention.LegacyUpdate, intention.Intention{ID: theirs, SourceName: "a", DestinationName: "mine", Action: "allow"}); !errors.Is(err, wireerr.ErrPermissionDenied) {
		t.Errorf("update: %v", err)
	}
	if _, err := make("limited", intention.LegacyDelete, intention.Intention{ID: theirs}); !errors.Is(err, wireerr.ErrPermissionDenied) {
		t.Errorf("delete: %v", err)
	}
	if _, err := make("limited", intention.LegacyCreate, intention.Intention{SourceName: "a", DestinationName: "mine", Action: "allow"}); err != nil {
		t.Errorf("create: %v", err)
	}
}

func TestCheckFollowsTheDefaultPolicy(t *testing.T) {
	tests := []struct {
		name    string
		cfg     configrpc.Config
		asked   string
		allowed bool
		reason  string
	}{
		{"ACLs off", configrpc.Config{}, "", true, "Default behavior configured by ACLs"},
		{"default deny", configrpc.Config{DefaultDeny: true}, "", false, "Default behavior configured by ACLs"},
		{"the intention policy is set apart", configrpc.Config{DefaultDeny: true, IntentionPolicy: entry.Allow}, "", true, "Default intention policy"},
		{"the agent's own", configrpc.Config{}, entry.Deny, false, "Default intention policy"},
	}
	for _, tt := range tests {
		s := newServer(tt.cfg)
		r, err := intention.CheckCall.Call(t.Context(), s.Caller(), &intention.CheckRequest{Source: "a", Destination: "b", DefaultPolicy: tt.asked})
		if err != nil || r.Allowed != tt.allowed || r.Reason != tt.reason {
			t.Errorf("%s: %v, %v", tt.name, r, err)
		}
	}
}

// A blocking read of what concerns one service is not woken by others, and misses nothing.
func TestBlockingReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(configrpc.Config{})
		for _, e := range []string{
			`{"Kind": "service-defaults", "Name": "web", "Protocol": "http"}`,
			`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "a", "Action": "allow"}]}`,
			`{"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "*", "Action": "deny"}]}`,
		} {
			if err := put(t, s, e); err != nil {
				t.Fatal(err)
			}
		}
		match := &intention.MatchRequest{By: intention.ByDestination, Names: []string{"web"}}
		compiled := &chain.GetRequest{Service: "web"}
		first, err := intention.MatchCall.Call(t.Context(), s.Caller(), match)
		if err != nil {
			t.Fatal(err)
		}
		made, err := chain.GetCall.Call(t.Context(), s.Caller(), compiled)
		if err != nil {
			t.Fatal(err)
		}
		match.MinIndex, match.MaxWait = first.Index, time.Hour
		compiled.MinIndex, compiled.MaxWait = made.Index, time.Hour
		intentions, chains := make(chan *intention.MatchReply, 1), make(chan *chain.GetReply, 1)
		go func() {
			r, err := intention.MatchCall.Call(t.Context(), s.Caller(), match)
			if err != nil {
				t.Error(err)
			}
			intentions <- r
		}()
		go func() {
			r, err := chain.GetCall.Call(t.Context(), s.Caller(), compiled)
			if err != nil {
				t.Error(err)
			}
			chains <- r
		}()
		for _, e := range []string{
			`{"Kind": "service-defaults", "Name": "other", "Protocol": "http"}`,
			`{"Kind": "service-intentions", "Name": "other", "Sources": [{"Name": "a", "Action": "allow"}]}`,
		} {
			if err := put(t, s, e); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if len(intentions) != 0 || len(chains) != 0 {
			t.Error("woken by another service")
		}
		if err := remove(t, s, entry.KindServiceIntentions, "web"); err != nil {
			t.Fatal(err)
		}
		if r := <-intentions; len(r.Matches[0]) != 1 || r.Index <= first.Index {
			t.Errorf("after the delete: %d of index %d", len(r.Matches[0]), r.Index)
		}
		if err := put(t, s, `{"Kind": "service-router", "Name": "web", "Routes": []}`); err != nil {
			t.Fatal(err)
		}
		if r := <-chains; r.Chain.StartNode != "router:web.default.default" {
			t.Errorf("start %s", r.Chain.StartNode)
		}
	})
}

func TestNamesHaveNoControlCharacters(t *testing.T) {
	s := newServer(configrpc.Config{})
	if err := put(t, s, `{"Kind": "service-defaults", "Name": "a\u0000b"}`); text(err) != "Name contains control characters" {
		t.Error(err)
	}
	upsert := &intention.UpsertRequest{Destination: "a\x00b", Source: entry.IntentionSource{Name: "a", Action: "allow"}}
	if _, err := intention.UpsertCall.Call(t.Context(), s.Caller(), upsert); text(err) != "Name contains control characters" {
		t.Error(err)
	}
}

func TestDisabledConnect(t *testing.T) {
	s := newServer(configrpc.Config{ConnectDisabled: true})
	if _, err := intention.ListCall.Call(t.Context(), s.Caller(), &intention.ListRequest{}); err != wireerr.ErrConnectDisabled {
		t.Errorf("list: %v", err)
	}
	if err := put(t, s, `{"Kind": "service-defaults", "Name": "web"}`); err != nil {
		t.Errorf("other entries: %v", err)
	}
}
