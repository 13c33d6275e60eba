package httpapi

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	prepared "github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
)

const someQueryID = "8f246b77-f3e1-ff88-5b48-8ec93abf3e05"

func TestQueryPathsAndMethods(t *testing.T) {
	s, f := newServer(t, Config{}, map[string]any{
		"Query.Get":  &prepared.Reply{Meta: someMeta, Queries: []*prepared.Query{{ID: "x"}}},
		"Query.List": prepared.ErrNotFound,
	})
	for _, tt := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"PUT", "/v1/query", 405, "OPTIONS,GET,POST"},
		{"OPTIONS", "/v1/query", 200, "OPTIONS,GET,POST"},
		{"PATCH", "/v1/query/x", 405, "GET,PUT,DELETE"},
		{"OPTIONS", "/v1/query/x", 200, "OPTIONS,GET,PUT,DELETE"},
		{"POST", "/v1/query/x/execute", 405, "GET"},
		{"OPTIONS", "/v1/query/x/explain", 200, "OPTIONS,GET"},
		{"GET", "/v1/query/execute", 200, ""}, // an item
		{"GET", "/v1/query/", 200, ""},
		{"GET", "/v1/query", 404, ""},
	} {
		w := do(s, tt.method, tt.path, "")
		if w.Code != tt.status || w.Header().Get("Allow") != tt.allow {
			t.Errorf("%s %s = %d, Allow %q; want %d, %q", tt.method, tt.path, w.Code, w.Header().Get("Allow"), tt.status, tt.allow)
		}
	}
	for path, want := range map[string]string{
		"/v1/query/a/execute": "a", "/v1/query/a/b/execute": "a/b", "/v1/query/a%2Fexplain/execute": "a/explain", "/v1/query/with.dots/execute": "with.dots",
	} {
		do(s, "GET", path, "")
		if got := last[prepared.ExecuteRequest](t, f, "Query.Execute").Query; got != want {
			t.Errorf("%s executes %q, want %q", path, got, want)
		}
	}
}

func TestQueryDefinitions(t *testing.T) {
	s, f := newServer(t, Config{}, map[string]any{
		"Query.Apply": &prepared.ApplyReply{ID: someQueryID},
		"Query.Get":   &prepared.Reply{Meta: someMeta, Queries: []*prepared.Query{{ID: someQueryID, Name: "q"}}},
	})
	full := prepared.Query{
		Name: "q", Session: "s", Token: "t", Template: prepared.Template{Type: "name_prefix_match", Regexp: "r", RemoveEmptyTags: true},
		Service: prepared.Service{
			Service:  "web",
			Failover: prepared.Failover{NearestN: 1, Datacenters: []string{"dc2"}, Targets: []prepared.Target{{Peer: "p"}, {Datacenter: "dc3"}}}, OnlyPassing: true,
			IgnoreCheckIDs: []string{"c"}, Near: "_agent", Tags: []string{"a", "!b"}, NodeMeta: map[string]string{"k": "v"},
			ServiceMeta: map[string]string{"x": "y"}, Connect: true, Peer: "p",
		},
		DNS: prepared.DNS{TTL: "10s"},
	}
	const body = `{"name": "q", "Session": "s", "Token": "t", "Template": {"Type": "name_prefix_match", "Regexp": "r", "RemoveEmptyTags": true},
		"Service": {"Service": "web", "Failover": {"NearestN": 1, "Datacenters": ["dc2"], "Targets": [{"Peer": "p"}, {"Datacenter": "dc3"}]},
		"OnlyPassing": true, "IgnoreCheckIDs": ["c"], "Near": "_agent", "Tags": ["a", "!b"], "NodeMeta": {"k": "v"}, "ServiceMeta": {"x": "y"},
		"Connect": true, "Peer": "p", "SamenessGroup": ""}, "DNS": {"TTL": "10s"}, "ID": "ignored", "CreateIndex": 1, "ModifyIndex": 2}`
	applied := func(op prepared.Op, id string, want prepared.Query) {
		t.Helper()
		req := last[prepared.ApplyRequest](t, f, "Query.Apply")
		got := req.Query
		got.Indexes = catalog.Indexes{} // the servers' own
		want.ID = id
		if diff := cmp.Diff(want, got); diff != "" || req.Op != op || req.Token != "secret" || req.Datacenter != "dc2" {
			t.Errorf("op %q, target %+v (-want +got):\n%s", req.Op, req.Target, diff)
		}
	}
	w := do(s, "POST", "/v1/query?dc=dc2", strings.Replace(body, "ignored", "", 1), "X-Consul-Token", "secret")
	if w.Code != 200 || w.Body.String() != `{"ID":"`+someQueryID+`"}` {
		t.Errorf("create = %d %s", w.Code, w.Body)
	}
	applied(prepared.Create, "", full)
	if w := do(s, "PUT", "/v1/query/"+someQueryID+"?dc=dc2", body, "X-Consul-Token", "secret"); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("update = %d %s", w.Code, w.Body)
	}
	applied(prepared.Update, someQueryID, full)
	do(s, "PUT", "/v1/query/"+someQueryID+"?dc=dc2", "", "X-Consul-Token", "secret")
	applied(prepared.Update, someQueryID, prepared.Query{})
	if w := do(s, "DELETE", "/v1/query/"+someQueryID+"?dc=dc2", "", "X-Consul-Token", "secret"); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("delete = %d %s", w.Code, w.Body)
	}
	applied(prepared.Delete, someQueryID, prepared.Query{})

	w = do(s, "GET", "/v1/query/"+someQueryID+"?stale&index=3&ns=ignored", "")
	if w.Code != 200 || !strings.HasPrefix(w.Body.String(), `[{"ID":"`+someQueryID+`","Name":"q","Session":"",`) {
		t.Errorf("get = %d %s", w.Code, w.Body)
	}
	if h := w.Header(); h.Get("X-Consul-Index") != "7" || h.Get("X-Consul-Effective-Consistency") != "stale" {
		t.Errorf("headers %v", h)
	}
	if req := last[prepared.GetRequest](t, f, "Query.Get"); req.MinIndex != 3 || req.Mode != read.Stale || req.ID != someQueryID {
		t.Errorf("%+v", req)
	}
	if w := do(s, "GET", "/v1/query", ""); w.Code != 200 || w.Body.String() != "[]" {
		t.Errorf("empty list = %d %s", w.Code, w.Body)
	}
}

func TestQueryRequestErrors(t *testing.T) {
	s, _ := newServer(t, Config{}, map[string]any{"Query.Execute": prepared.ErrNotFound})
	for _, tt := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/v1/query", "", 400, "Request decode failed: EOF"},
		{"POST", "/v1/query", `{"Nope": 1}`, 400, `Request decode failed: json: unknown field "Nope"`},
		{"PUT", "/v1/query/x", `{"Service": {"Nope": 1}}`, 400, `Request decode failed: json: unknown field "Nope"`},
		{"POST", "/v1/query", strings.Repeat(" ", maxQueryBody+1), 413, "Request body too large, max size: 1048576 bytes."},
		{"GET", "/v1/query/x?index=x", "", 400, "Invalid index"},
		{"GET", "/v1/query/x/execute?limit=x", "", 500, `Bad limit: strconv.Atoi: parsing "x": invalid syntax`},
		{"GET", "/v1/query/x/execute?connect=x", "", 500, `Error parsing 'connect' value: strconv.ParseBool: parsing "x": invalid syntax`},
		{"GET", "/v1/query/x/execute", "", 404, "Query not found"},
	} {
		if w := do(s, tt.method, tt.path, tt.body); w.Code != tt.status || w.Body.String() != tt.text {
			t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.path, w.Code, w.Body, tt.status, tt.text)
		}
	}
}

func TestQueryExecution(t *testing.T) {
	far := someInstance(1)
	far.Node.TaggedAddresses = map[string]string{"wan": "192.0.2.7"}
	s, f := newServer(t, Config{TranslateWANAddrs: true}, map[string]any{
		"Query.Execute": &prepared.ExecuteReply{
			Meta: read.Meta{Index: 1, KnownLeader: true, Filtered: true}, Service: "web", Instances: []*catalog.Instance{far}, DNS: prepared.DNS{TTL: "5s"},
			Datacenter: "dc2", PeerName: "p", Failovers: 2,
		},
		"Query.Explain": &prepared.ExplainReply{Meta: read.Meta{Index: 1}, Query: &prepared.Query{Name: "geo-", Service: prepared.Service{Service: "web"}}},
	})
	w := do(s, "GET", "/v1/query/q/execute?limit=3&connect=true&near=n1&stale&max_stale=5s&index=9&wait=1m&token=x", "", "X-Forwarded-For", "10.0.0.2, 10.9.9.9")
	const head, tail = `{"Service":"web","Nodes":[{"Node":`,
		`"DNS":{"TTL":"5s"},"Datacenter":"dc2","PeerName":"p","Failovers":2,"Index":1,"LastContact":0,"KnownLeader":true,"ConsistencyLevel":"",` +
			`"NotModified":false,"Backend":0,"ResultsFilteredByACLs":true}`
	if b := w.Body.String(); !strings.HasPrefix(b, head) || !strings.HasSuffix(b, tail) || !strings.Contains(b, `"Address":"192.0.2.7"`) {
		t.Errorf("body %s", b)
	}
	if h := w.Header(); h.Get("X-Consul-Index") != "1" || h.Get("X-Consul-Effective-Consistency") != "stale" || h.Get("X-Consul-Results-Filtered-By-Acls") != "true" {
		t.Errorf("headers %v", h)
	}
	want := &prepared.ExecuteRequest{
		Options: read.Options{Target: read.Target{Token: "x"}, Mode: read.Stale, MaxStale: 5 * time.Second, Near: "n1"}, Query: "q", Limit: 3, Connect: true,
		Origin: prepared.Origin{Node: "node1", Datacenter: "dc1", IP: "10.0.0.2"},
	}
	if diff := cmp.Diff(want, last[prepared.ExecuteRequest](t, f, "Query.Execute")); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	do(s, "GET", "/v1/query/q/execute", "", "X-Forwarded-For", "unknown")
	if ip := last[prepared.ExecuteRequest](t, f, "Query.Execute").Origin.IP; ip != "192.0.2.1" { // httptest's
		t.Errorf("origin %s, want the peer's address", ip)
	}
	off, f2 := newServer(t, Config{DisableCoordinates: true}, nil)
	do(off, "GET", "/v1/query/q/execute?near=n1", "")
	if near := last[prepared.ExecuteRequest](t, f2, "Query.Execute").Near; near != "" {
		t.Errorf("near %q without coordinates", near)
	}

	w = do(s, "GET", "/v1/query/geo-web/explain", "")
	if b := w.Body.String(); w.Code != 200 || !strings.HasPrefix(b, `{"Query":{"ID":"","Name":"geo-",`) || !strings.HasSuffix(b, `,"ResultsFilteredByACLs":false}`) {
		t.Errorf("explain = %d %s", w.Code, b)
	}
}

// TestQueryExecutionIsKept follows an answer that nothing refreshes but requests.
func TestQueryExecutionIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		executed := 0
		f := &fakeCaller{answer: map[string]any{"Query.Execute": func(any) (any, error) {
			executed++
			return &prepared.ExecuteReply{Meta: read.Meta{Index: 1, KnownLeader: true}, Failovers: executed}, nil
		}}}
		s, _ := newServer(t, Config{Caller: f, Cache: cache.New(f, cache.Config{})}, nil)
		ask := func(what, query, control, wantCache, wantAge string, wantExecuted int) {
			t.Helper()
			var header []string
			if control != "" {
				header = []string{"Cache-Control", control}
			}
			h := do(s, "GET", "/v1/query/q/execute"+query, "", header...).Header()
			if h.Get("X-Cache") != wantCache || h.Get("Age") != wantAge || executed != wantExecuted {
				t.Errorf("%s: X-Cache %q, Age %q after %d executions; want %q, %q after %d", what, h.Get("X-Cache"), h.Get("Age"), executed, wantCache, wantAge, wantExecuted)
			}
		}
		ask("not asked for", "", "", "", "", 1)
		ask("first", "?cached", "", "MISS", "", 2)
		ask("again", "?cached", "", "HIT", "0", 2)
		time.Sleep(90 * time.Second)
		ask("later", "?cached", "", "HIT", "90", 2)
		ask("old enough", "?cached", "max-age=100", "HIT", "90", 2)
		ask("too old", "?cached", "max-age=60", "MISS", "", 3)
		ask("new", "?cached", "", "HIT", "0", 3)
		ask("must revalidate", "?cached", "must-revalidate", "MISS", "", 4)
		ask("max-age zero", "?cached", "max-age=0", "MISS", "", 5)
		ask("another limit", "?cached&limit=1", "", "MISS", "", 6)
		ask("another token", "?cached&token=x", "", "MISS", "", 7)
	})
}
