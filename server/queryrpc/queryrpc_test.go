package queryrpc_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/kvrpc"
	"github.com/sarnmesh/sarn/server/queryrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

type server struct {
	*rpctest.Server
	t *testing.T
}

func newServer(t *testing.T, cfg queryrpc.Config) *server {
	t.Helper()
	s := &server{rpctest.New(), t}
	queryrpc.Register(&s.Registry, &s.Appliers, cfg)
	catalogrpc.Register(&s.Registry, &s.Appliers, catalogrpc.Config{})
	kvrpc.Register(&s.Registry, &s.Appliers, kvrpc.Config{})
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

// instances registers one instance of a service on each node, with addresses 10.0.0.1 and so on.
func (s *server) instances(service string, nodes ...string) {
	s.t.Helper()
	for i, n := range nodes {
		s.register(&catalog.RegisterRequest{Node: n, Address: fmt.Sprintf("10.0.0.%d", i+1), Service: &catalog.Service{Service: service, Port: 80}})
	}
}

// place puts a node somewhere on a line.
func (s *server) place(node string, at float64) {
	s.t.Helper()
	_, err := s.Apply(s.t.Context(), fsm.UpdateCoordinates, &catalog.CoordinateUpdate{Updates: []*catalog.NodeCoordinate{
		{Node: node, Coord: &catalog.Coordinate{Vec: []float64{at, 0, 0, 0, 0, 0, 0, 0}, Error: 1.5, Height: 1e-5}},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) apply(op query.Op, q query.Query, token string) (string, error) {
	req := &query.ApplyRequest{Op: op, Query: q}
	req.Token = token
	r, err := query.ApplyCall.Call(s.t.Context(), s.Caller(), req)
	if err != nil {
		return "", err
	}
	return r.ID, nil
}

func (s *server) create(q query.Query) string {
	s.t.Helper()
	id, err := s.apply(query.Create, q, "")
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

func (s *server) execute(req query.ExecuteRequest) *query.ExecuteReply {
	s.t.Helper()
	r, err := query.ExecuteCall.Call(s.t.Context(), s.Caller(), &req)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func nodes(list []*catalog.Instance) string {
	var all []string
	for _, i := range list {
		all = append(all, i.Node.Node)
	}
	return strings.Join(all, " ")
}

func sorted(list []*catalog.Instance) string {
	all := strings.Fields(nodes(list))
	slices.Sort(all)
	return strings.Join(all, " ")
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func web(name string) query.Query {
	return query.Query{Name: name, Service: query.Service{Service: "web"}}
}

const missing = "11111111-2222-3333-4444-555555555555"

func TestDefinitions(t *testing.T) {
	s := newServer(t, queryrpc.Config{})
	id := s.create(web("q"))
	get := func(id string) (*query.Query, error) {
		r, err := query.GetCall.Call(t.Context(), s.Caller(), &query.GetRequest{ID: id})
		if err != nil {
			return nil, err
		}
		return r.Queries[0], nil
	}
	first, err := get(id)
	if err != nil || first.ID != id || first.CreateIndex == 0 || first.CreateIndex != first.ModifyIndex {
		t.Errorf("%+v, %v", first, err)
	}
	changed := web("q")
	changed.ID, changed.Service.Tags = strings.ToUpper(id), []string{"v1"}
	if got, err := s.apply(query.Update, changed, ""); got != id || err != nil {
		t.Errorf("updated %q, %v", got, err)
	}
	second, err := get(id)
	if err != nil || second.CreateIndex != first.CreateIndex || second.ModifyIndex <= first.ModifyIndex || !slices.Equal(second.Service.Tags, []string{"v1"}) {
		t.Errorf("%+v, %v", second, err)
	}
	s.create(web("other"))
	list, err := query.ListCall.Call(t.Context(), s.Caller(), &query.ListRequest{})
	if err != nil || len(list.Queries) != 2 || list.Queries[0].ID >= list.Queries[1].ID || list.Index == 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := s.apply(query.Delete, query.Query{ID: id}, ""); err != nil {
		t.Error(err)
	}
	if _, err := get(id); wireerr.Status(err) != 404 || text(err) != "Query not found" {
		t.Errorf("deleted: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	s := newServer(t, queryrpc.Config{})
	s.create(web("taken"))
	template := func(kind, re, service string) query.Query {
		return query.Query{Name: "t", Template: query.Template{Type: kind, Regexp: re}, Service: query.Service{Service: service}}
	}
	with := func(q query.Query, f func(q *query.Query)) query.Query { f(&q); return q }
	tests := []struct {
		name string
		op   query.Op
		q    query.Query
		want string
	}{
		{"an ID on create", query.Create, with(web("x"), func(q *query.Query) { q.ID = "abc" }), "ID must be empty when creating a new prepared query"},
		{"an invalid definition", query.Create, query.Query{Name: "x"}, "Invalid prepared query: Must provide a Service name to query"},
		{"a name that is taken", query.Create, web("Taken"), "raft apply failed: name 'Taken' aliases an existing query name"},
		{"an unknown session", query.Create, with(web(""), func(q *query.Query) { q.Session = missing }), `raft apply failed: invalid session "` + missing + `"`},
		{"a template's type", query.Create, template("other", "", "x"), "raft apply failed: failed compiling template: Bad Template.Type 'other'"},
		{"a template's expression", query.Create, template(query.NamePrefixMatch, "", "${nope}"),
			"raft apply failed: failed compiling template: Bad evaluation for '${nope}' in Service.Service: unknown variable accessed: nope"},
		{"too large", query.Create, with(web("x"), func(q *query.Query) { q.Service.Tags = []string{strings.Repeat("x", query.MaxSize)} }),
			"Query definition is larger than 524288 bytes"},
		{"update of none", query.Update, with(web("x"), func(q *query.Query) { q.ID = missing }), "Cannot modify non-existent prepared query: '" + missing + "'"},
		{"delete of none", query.Delete, query.Query{ID: missing}, "Cannot modify non-existent prepared query: '" + missing + "'"},
		{"delete by name", query.Delete, query.Query{ID: "taken"},
			"Prepared Query lookup failed: failed prepared query lookup: index error: UUID must be 36 characters"},
		{"no operation", "", web("x"), "Unknown prepared query operation: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := s.apply(tt.op, tt.q, ""); text(err) != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	for id, want := range map[string]string{
		"not-a-uuid":                           "failed prepared query lookup: index error: UUID must be 36 characters",
		"11111111-2222-3333-4444-55555555555x": `failed prepared query lookup: index error: invalid UUID: "11111111-2222-3333-4444-55555555555x"`,
	} {
		if _, err := query.GetCall.Call(t.Context(), s.Caller(), &query.GetRequest{ID: id}); text(err) != want {
			t.Errorf("get %s: %v, want %s", id, err, want)
		}
	}
	if _, err := query.ExecuteCall.Call(t.Context(), s.Caller(), &query.ExecuteRequest{Query: "none"}); wireerr.Status(err) != 404 {
		t.Errorf("execute: %v", err)
	}
	if _, err := query.ExplainCall.Call(t.Context(), s.Caller(), &query.ExecuteRequest{Query: "none"}); wireerr.Status(err) != 404 {
		t.Errorf("explain: %v", err)
	}
}

func TestExecute(t *testing.T) {
	s := newServer(t, queryrpc.Config{})
	s.instances("web", "n1", "n2", "n3", "n4")
	s.register(&catalog.RegisterRequest{Node: "n4", Address: "10.0.0.4", Check: &catalog.Check{CheckID: "c", Status: catalog.Critical}})
	s.register(&catalog.RegisterRequest{Node: "n1", Address: "10.0.0.1", Service: &catalog.Service{
		Service: "web-proxy", Kind: catalog.KindConnectProxy, Port: 1, Proxy: catalog.Proxy{DestinationServiceName: "web"},
	}})
	q := web("q")
	q.DNS.TTL = "5s"
	id := s.create(q)
	got := s.execute(query.ExecuteRequest{Query: "Q"})
	if got.Service != "web" || got.DNS.TTL != "5s" || got.Datacenter != "dc1" || got.Failovers != 0 || got.PeerName != "" || sorted(got.Instances) != "n1 n2 n3" {
		t.Errorf("%+v", got)
	}
	if len(got.Instances[0].Checks) != 0 || got.Index != 1 {
		t.Errorf("checks %v, index %d", got.Instances[0].Checks, got.Index)
	}
	if got := s.execute(query.ExecuteRequest{Query: id, Limit: 2}); len(got.Instances) != 2 {
		t.Errorf("limit: %s", nodes(got.Instances))
	}
	if got := s.execute(query.ExecuteRequest{Query: id, Connect: true}); len(got.Instances) != 1 || got.Instances[0].Service.Service != "web-proxy" {
		t.Errorf("connect: %s", nodes(got.Instances))
	}
	q = web("peered")
	q.Service.Peer = "p"
	s.create(q)
	if got := s.execute(query.ExecuteRequest{Query: "peered"}); got.Instances == nil || len(got.Instances) != 0 || got.PeerName != "p" {
		t.Errorf("peer: %+v", got)
	}
	// Every order comes up: the chance that one of six does not is below one in a million.
	orders := map[string]bool{}
	for range 100 {
		orders[nodes(s.execute(query.ExecuteRequest{Query: id}).Instances)] = true
	}
	if len(orders) != 6 {
		t.Errorf("%d orders of three instances", len(orders))
	}
}

func TestNear(t *testing.T) {
	s := newServer(t, queryrpc.Config{})
	s.instances("web", "n1", "n2", "n3", "n4")
	s.place("n1", 0)
	s.place("n2", 0.1)
	s.place("n3", 0.5)
	s.register(&catalog.RegisterRequest{Node: "bystander", Address: "10.0.0.9"})
	s.place("bystander", 0.4)
	for _, near := range []string{"", "n3", query.NearIP, query.NearAgent} {
		q := web("near" + near)
		q.Service.Near = near
		s.create(q)
	}
	agent := query.Origin{Node: "bystander", Datacenter: "dc1", IP: "10.0.0.2"}
	tests := []struct {
		name, query, near string
		origin            query.Origin
		limit             int
		want              string // empty for any order
	}{
		{"that of the query", "nearn3", "", agent, 0, "n3 n2 n1 n4"},
		{"the request's wins", "nearn3", "n1", agent, 0, "n1 n2 n3 n4"},
		{"in any case", "near", "N1", agent, 0, "n1 n2 n3 n4"},
		{"the limit comes last", "near", "n3", agent, 2, "n3 n2"},
		{"a node without instances", "near", "bystander", agent, 0, "n3 n2 n1 n4"},
		{"the agent", "near_agent", "", agent, 0, "n3 n2 n1 n4"},
		{"the agent, by the request", "near", "_agent", agent, 0, "n3 n2 n1 n4"},
		{"an agent elsewhere", "near_agent", "", query.Origin{Node: "bystander", Datacenter: "dc2"}, 0, ""},
		{"an address", "near_ip", "", agent, 0, "n2 n1 n3 n4"},
		{"an unknown address", "near_ip", "", query.Origin{IP: "10.9.9.9"}, 0, ""},
		{"no address", "near_ip", "", query.Origin{}, 0, ""},
		{"no such node", "near", "nobody", agent, 0, ""},
		{"no wish", "near", "", agent, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := query.ExecuteRequest{Query: tt.query, Limit: tt.limit, Origin: tt.origin}
			req.Near = tt.near
			got := s.execute(req)
			if tt.want == "" {
				tt.want = "n1 n2 n3 n4"
				slices.SortFunc(got.Instances, func(a, b *catalog.Instance) int { return strings.Compare(a.Node.Node, b.Node.Node) })
			}
			if nodes(got.Instances) != tt.want {
				t.Errorf("got %s, want %s", nodes(got.Instances), tt.want)
			}
		})
	}
	// Not placed itself, the source is first all the same; the others come in any order.
	for range 20 {
		req := query.ExecuteRequest{Query: "near"}
		req.Near = "n4"
		if got := s.execute(req); got.Instances[0].Node.Node != "n4" || sorted(got.Instances) != "n1 n2 n3 n4" {
			t.Fatalf("near n4: %s", nodes(got.Instances))
		}
	}
}

func TestTemplates(t *testing.T) {
	s := newServer(t, queryrpc.Config{})
	s.instances("web", "n1")
	id := s.create(query.Query{
		Name: "geo-", Template: query.Template{Type: query.NamePrefixMatch}, Service: query.Service{Service: "${name.suffix}"},
	})
	if got := s.execute(query.ExecuteRequest{Query: "geo-web"}); got.Service != "web" || nodes(got.Instances) != "n1" {
		t.Errorf("%+v", got)
	}
	r, err := query.ExplainCall.Call(t.Context(), s.Caller(), &query.ExecuteRequest{Query: "geo-web"})
	if err != nil || r.Query.ID != id || r.Query.Name != "geo-" || r.Query.Service.Service != "web" || r.Index != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := query.ExecuteCall.Call(t.Context(), s.Caller(), &query.ExecuteRequest{Query: id}); text(err) != "prepared query templates can only be resolved up by name, not by ID" {
		t.Error(err)
	}
}

// elsewhere answers for other places.
type elsewhere struct {
	answers map[query.Target]string // node with an instance, "error", or empty for none
	asked   []query.Target
	last    *query.RemoteRequest
}

func (e *elsewhere) Datacenters() []string { return []string{"dc2", "dc3", "dc4"} }

func (e *elsewhere) Execute(_ context.Context, to query.Target, req *query.RemoteRequest) (*query.ExecuteReply, error) {
	e.asked, e.last = append(e.asked, to), req
	r := &query.ExecuteReply{Datacenter: to.Datacenter, PeerName: to.Peer}
	switch node := e.answers[to]; node {
	case "error":
		return nil, errors.New("no answer")
	case "":
	default:
		r.Instances = []*catalog.Instance{{Node: &catalog.Node{Node: node}, Service: &catalog.Service{}}}
	}
	return r, nil
}

func TestFailover(t *testing.T) {
	dc := func(name string) query.Target { return query.Target{Datacenter: name} }
	tests := []struct {
		name      string
		failover  query.Failover
		answers   map[query.Target]string
		asked     []query.Target
		want      string // nodes, datacenter, peer
		failovers int
	}{
		{"nothing configured", query.Failover{}, nil, nil, "[] dc1 ", 0},
		{"unknown places do not count", query.Failover{Datacenters: []string{"dc9", "dc1"}}, nil, nil, "[] dc1 ", 0},
		{"the first that has any", query.Failover{NearestN: 2}, map[query.Target]string{dc("dc3"): "far"}, []query.Target{dc("dc2"), dc("dc3")}, "[far] dc3 ", 2},
		{"the next is not asked", query.Failover{NearestN: 3}, map[query.Target]string{dc("dc2"): "near"}, []query.Target{dc("dc2")}, "[near] dc2 ", 1},
		{"errors count and are passed over", query.Failover{Datacenters: []string{"dc4", "dc2"}},
			map[query.Target]string{dc("dc4"): "error", dc("dc2"): "near"}, []query.Target{dc("dc4"), dc("dc2")}, "[near] dc2 ", 2},
		{"the last that answered", query.Failover{Datacenters: []string{"dc4", "dc2"}},
			map[query.Target]string{dc("dc2"): "error"}, []query.Target{dc("dc4"), dc("dc2")}, "[] dc4 ", 2},
		{"what a peer exports is known here", query.Failover{Targets: []query.Target{{Peer: "o"}, {Peer: "p"}, {Datacenter: "dc2"}}},
			nil, nil, "[theirs]  p", 2},
		{"no peer has any", query.Failover{Targets: []query.Target{{Peer: "o"}, {Datacenter: "dc2"}}},
			map[query.Target]string{dc("dc2"): "near"}, []query.Target{dc("dc2")}, "[near] dc2 ", 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := &elsewhere{answers: tt.answers}
			s := newServer(t, queryrpc.Config{Elsewhere: e, Instances: func(v *state.View, req *catalog.InstancesRequest) (uint64, []*catalog.Instance) {
				if req.Peer != "p" {
					return catalogrpc.Config{}.Candidates(v, req)
				}
				return 1, []*catalog.Instance{{Node: &catalog.Node{Node: "theirs", PeerName: "p"}, Service: &catalog.Service{PeerName: "p"}}}
			}})
			q := query.Query{Name: "q", Token: "own", Service: query.Service{Service: "ghost", Failover: tt.failover}}
			s.create(q)
			r := s.execute(query.ExecuteRequest{Query: "q", Limit: 3, Options: read.Options{Mode: read.Stale, Target: read.Target{Token: "callers"}}})
			if got := fmt.Sprintf("[%s] %s %s", nodes(r.Instances), r.Datacenter, r.PeerName); got != tt.want || r.Failovers != tt.failovers {
				t.Errorf("got %s after %d, want %s after %d", got, r.Failovers, tt.want, tt.failovers)
			}
			if diff := cmp.Diff(tt.asked, e.asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			if e.last != nil && (e.last.Token != "own" || e.last.Query.Token != "" || e.last.Limit != 3 || e.last.Mode != read.Stale) {
				t.Errorf("request %+v", e.last)
			}
			s.instances("ghost", "here")
			if r := s.execute(query.ExecuteRequest{Query: "q"}); nodes(r.Instances) != "here" || r.Failovers != 0 {
				t.Errorf("found here: %+v", r)
			}
		})
	}
}

func TestExecuteForAnotherDatacenter(t *testing.T) {
	s := newServer(t, queryrpc.Config{})
	s.instances("web", "n1", "n2", "n3")
	r, err := query.RemoteCall.Call(t.Context(), s.Caller(), &query.RemoteRequest{Query: web("any"), Limit: 2})
	if err != nil || len(r.Instances) != 2 || r.Datacenter != "dc1" || r.Failovers != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// rights are what a token may do: "resource:access:prefix".
type rights []string

func (l rights) Allows(r acl.Resource, a acl.Access, name string) bool {
	return slices.ContainsFunc(l, func(right string) bool {
		p := strings.SplitN(right, ":", 3)
		return p[0] == string(r) && (p[1] == string(a) || p[1] == "write") && strings.HasPrefix(name, p[2])
	})
}

func TestRights(t *testing.T) {
	s := newServer(t, queryrpc.Config{})
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		switch token {
		case "":
			return acl.New(rights{}, ""), nil
		case "root":
			return acl.Everything(), nil
		case "gone":
			return nil, wireerr.ErrTokenNotFound
		}
		return acl.New(rights(strings.Fields(token)), "someone"), nil
	}
	const (
		sees    = "service:read: node:read:"
		queries = "query:read:my"
		writes  = "query:write:my"
	)
	s.instances("web", "n1")
	if _, err := s.Apply(t.Context(), fsm.SessionCreate, &kv.SessionCreateRequest{Session: kv.Session{ID: missing, Node: "n1", Behavior: kv.Release}}); err != nil {
		t.Fatal(err)
	}
	must := func(q query.Query, token string) string {
		t.Helper()
		id, err := s.apply(query.Create, q, token)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	with := func(name, token, session string) query.Query {
		q := web(name)
		q.Token, q.Session = token, session
		return q
	}
	captured := must(with("my-a", sees, ""), writes)
	must(with("my-b", "", ""), writes)
	must(with("your", "gone", ""), "root")
	nameless := must(with("", "secret", missing), "") // needs no right
	denied := func(right, name string) string {
		return fmt.Sprintf("Permission denied: token with AccessorID 'someone' lacks permission 'query:%s' on %q", right, name)
	}

	t.Run("write", func(t *testing.T) {
		rename := with("my-c", "", "")
		rename.ID = captured
		take := with("your", "", "")
		take.ID = captured
		catchAll := query.Query{Template: query.Template{Type: query.NamePrefixMatch}, Service: query.Service{Service: "x"}}
		for _, tt := range []struct {
			name  string
			op    query.Op
			q     query.Query
			token string
			want  string
		}{
			{"create", query.Create, web("z"), queries, denied("write", "z")},
			{"a template for all", query.Create, catchAll, writes, "Permission denied: token with AccessorID 'someone' lacks permission 'query:write'"},
			{"away from a name", query.Update, rename, "query:write:my-c", denied("write", "my-a")},
			{"to another name", query.Update, take, writes, denied("write", "your")},
			{"delete", query.Delete, query.Query{ID: captured}, queries, denied("write", "my-a")},
		} {
			if _, err := s.apply(tt.op, tt.q, tt.token); text(err) != tt.want {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
			}
		}
	})
	t.Run("read", func(t *testing.T) {
		get := func(id, token string) (string, error) {
			req := &query.GetRequest{ID: id}
			req.Token = token
			r, err := query.GetCall.Call(t.Context(), s.Caller(), req)
			if err != nil {
				return "", err
			}
			return r.Queries[0].Token, nil
		}
		for _, tt := range []struct{ id, token, want, err string }{
			{captured, "root", sees, ""},
			{captured, queries, query.Redacted, ""},
			{captured, sees, "", denied("read", "my-a")},
			{nameless, sees, query.Redacted, ""},
			{nameless, "root", "secret", ""},
		} {
			if got, err := get(tt.id, tt.token); got != tt.want || text(err) != tt.err {
				t.Errorf("get with %q: %q, %v; want %q, %s", tt.token, got, err, tt.want, tt.err)
			}
		}
	})
	t.Run("list", func(t *testing.T) {
		for _, tt := range []struct {
			token, want string
			filtered    bool
		}{
			{"root", " my-a my-b your", false},
			{queries, "my-a my-b", true},
			{"acl:write:", " my-a my-b your", false},
			{sees, "", true},
			{"", "", false},
		} {
			req := &query.ListRequest{}
			req.Token = tt.token
			r, err := query.ListCall.Call(t.Context(), s.Caller(), req)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, q := range r.Queries {
				names = append(names, q.Name)
				if tt.token == queries && q.Token != "" && q.Token != query.Redacted {
					t.Errorf("token of %s shown", q.Name)
				}
			}
			slices.Sort(names)
			if got := strings.Join(names, " "); got != tt.want || r.Filtered != tt.filtered || r.Queries == nil {
				t.Errorf("with %q: %q, filtered %v; want %q, %v", tt.token, got, r.Filtered, tt.want, tt.filtered)
			}
		}
	})
	t.Run("explain", func(t *testing.T) {
		for _, tt := range []struct{ query, token, want, err string }{
			{"my-a", queries, query.Redacted, ""},
			{"my-a", sees, "", denied("read", "my-a")},
			{nameless, sees, query.Redacted, ""},
		} {
			req := &query.ExecuteRequest{Query: tt.query}
			req.Token = tt.token
			r, err := query.ExplainCall.Call(t.Context(), s.Caller(), req)
			if text(err) != tt.err || err == nil && r.Query.Token != tt.want {
				t.Errorf("%s with %q: %+v, %v", tt.query, tt.token, r, err)
			}
		}
	})
	t.Run("execute", func(t *testing.T) {
		for _, tt := range []struct {
			query, token, want string
			filtered           bool
			err                string
		}{
			{"my-a", "", "n1", false, ""}, // with the query's token
			{"my-b", "", "", false, ""},
			{"my-b", sees, "n1", false, ""},
			{"my-b", "service:read:", "", true, ""},
			{"your", sees, "", false, "ACL not found"},
		} {
			req := &query.ExecuteRequest{Query: tt.query}
			req.Token = tt.token
			r, err := query.ExecuteCall.Call(t.Context(), s.Caller(), req)
			if text(err) != tt.err || err == nil && (nodes(r.Instances) != tt.want || r.Filtered != tt.filtered) {
				t.Errorf("%s with %q: %+v, %v", tt.query, tt.token, r, err)
			}
		}
	})
}

// A list waits for any change; one query for its own, and its end is told at once.
func TestBlocking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, queryrpc.Config{})
		id := s.create(web("q"))
		wait := func(f func(o read.Options) (uint64, error)) <-chan string {
			done, start := make(chan string, 1), time.Now()
			index := s.Index()
			go func() {
				got, err := f(read.Options{MinIndex: index, MaxWait: time.Minute})
				done <- fmt.Sprintf("%v: %d %s", time.Since(start).Truncate(time.Second), int(got-index), text(err))
			}()
			synctest.Wait()
			return done
		}
		list := func() <-chan string {
			return wait(func(o read.Options) (uint64, error) {
				r, err := query.ListCall.Call(t.Context(), s.Caller(), &query.ListRequest{Options: o})
				if err != nil {
					return o.MinIndex, err
				}
				return r.Index, nil
			})
		}
		get := func() <-chan string {
			return wait(func(o read.Options) (uint64, error) {
				r, err := query.GetCall.Call(t.Context(), s.Caller(), &query.GetRequest{Options: o, ID: id})
				if err != nil {
					return o.MinIndex, err
				}
				return r.Index, nil
			})
		}
		one, all := get(), list()
		time.Sleep(2 * time.Second)
		s.create(web("other"))
		if got := <-all; got != "2s: 1 " {
			t.Errorf("list: %s", got)
		}
		time.Sleep(3 * time.Second)
		changed := web("q2")
		changed.ID = id
		if _, err := s.apply(query.Update, changed, ""); err != nil {
			t.Fatal(err)
		}
		if got := <-one; got != "5s: 2 " {
			t.Errorf("get: %s", got)
		}
		one, all = get(), list()
		time.Sleep(time.Second)
		if _, err := s.apply(query.Delete, query.Query{ID: id}, ""); err != nil {
			t.Fatal(err)
		}
		if got := <-one; got != "1s: 0 Query not found" {
			t.Errorf("get of what was deleted: %s", got)
		}
		if got := <-all; got != "1s: 1 " {
			t.Errorf("list: %s", got)
		}
	})
}
