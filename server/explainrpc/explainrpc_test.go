package explainrpc_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/explainrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

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

// newServer has the entries, and sidecars of web, db (versions v1 and v2, of which the latter is critical) and secret,
// registered with the central settings merged in as agents do.
func newServer(t *testing.T, texts ...string) *rpctest.Server {
	t.Helper()
	s := rpctest.New()
	configrpc.Register(&s.Registry, &s.Appliers, configrpc.Config{Datacenter: "dc1"})
	explainrpc.Register(&s.Registry, explainrpc.Config{Default: intention.Default{}})
	for _, text := range texts {
		if _, err := entry.ApplyCall.Call(t.Context(), s.Caller(), &entry.ApplyRequest{Entry: entry.Any{Entry: decode(t, text)}}); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	tx := s.Store.Write(s.Index() + 1)
	for _, i := range []struct{ service, version, node, address, status, upstream string }{
		{"web", "v1", "n1", "10.0.0.1", "passing", "db"},
		{"db", "v1", "n2", "10.0.0.2", "passing", ""},
		{"db", "v2", "n3", "10.0.0.3", "critical", ""},
		{"secret", "v1", "n4", "10.0.0.4", "passing", ""},
	} {
		svc := &catalog.Service{
			Kind: catalog.KindConnectProxy, ID: i.service + "-sidecar-proxy", Service: i.service + "-sidecar-proxy", Port: 21000,
			Meta:  map[string]string{"version": i.version},
			Proxy: catalog.Proxy{DestinationServiceName: i.service, LocalServicePort: 8080},
		}
		if i.upstream != "" {
			svc.Proxy.Upstreams = []catalog.Upstream{{DestinationType: "service", DestinationName: i.upstream, LocalBindPort: 9000}}
		}
		_, central := configrpc.Resolve(&tx.View, definition.CentralRequest(svc))
		err := tx.Register(&catalog.RegisterRequest{
			Node: i.node, Address: i.address, Service: definition.MergeCentral(svc, central),
			Check: &catalog.Check{Node: i.node, CheckID: "c", Status: i.status, ServiceID: svc.ID, ServiceName: svc.Service},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	tx.Commit()
	return s
}

const httpEverywhere = `{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}`

var webToDB = explain.Request{From: "web", To: "db", Path: "/admin"}

func TestStateIsExplained(t *testing.T) {
	s := newServer(t, httpEverywhere,
		`{"Kind": "service-resolver", "Name": "db", "DefaultSubset": "v1", "Subsets": {"v1": {"Filter": "Service.Meta.version == v1"}, "v2": {"Filter": "Service.Meta.version == v2"}}, "Failover": {"v1": {"ServiceSubset": "v2"}}}`,
		`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Action": "allow"}]}`)
	r, err := explain.EvaluateCall.Call(t.Context(), s.Caller(), &explain.EvaluateRequest{Request: webToDB})
	if err != nil {
		t.Fatal(err)
	}
	x := r.Now
	if !x.Allowed || x.Source.Proxy != "web-sidecar-proxy" || x.Source.Node != "n1" || x.Protocol != "http" || len(x.Branches) != 1 || r.Index == 0 {
		t.Fatalf("got %+v at %d", x, r.Index)
	}
	b := x.Branches[0]
	want := []explain.Endpoint{{Address: "10.0.0.2:21000", Health: "healthy", Weight: 1, Node: "n2", Service: "db-sidecar-proxy"}}
	if !slices.Equal(b.Endpoints, want) || b.Subset != "v1" || b.Healthy != 1 {
		t.Errorf("got endpoints %+v of %q, want %+v", b.Endpoints, b.Subset, want)
	}
	if len(b.Failover) != 1 || b.Failover[0].Subset != "v2" || b.Failover[0].Healthy != 0 || len(b.Failover[0].Endpoints) != 1 {
		t.Errorf("failover to %+v", b.Failover)
	}
	if a := b.Authorization; a.Intention == nil || a.Intention.Precedence != 9 || a.By.Node != "n2" {
		t.Errorf("decided by %+v", a)
	}
}

// What is asked about with other entries is evaluated as if they had been written, in whatever order they are given; what
// would be refused is refused, and nothing is written.
func TestWhatIf(t *testing.T) {
	router := `{"Kind": "service-router", "Name": "db", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/admin"}}, "Destination": {"Service": "secret"}}]}`
	tests := []struct {
		name        string
		entries     []string
		changes     []string // "-KIND/NAME" deletes
		want        string   // verdict
		differences []string // some of them
		err         string
	}{
		{
			name: "an intention", entries: []string{httpEverywhere}, changes: []string{`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Action": "allow"}]}`},
			want: explain.Allowed, differences: []string{"verdict: denied -> allowed"},
		},
		{
			name: "a router that needs what comes after it", changes: []string{router, httpEverywhere}, want: explain.Denied,
			differences: []string{"protocol: tcp -> http", `route: none -> 1 of db (path begins with "/admin")`},
		},
		{
			name: "a protocol that registrations carry", entries: []string{httpEverywhere},
			changes: []string{`-proxy-defaults/global`, `{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Action": "allow"}]}`},
			want:    explain.Allowed, differences: []string{"protocol: http -> tcp"},
		},
		{
			name: "a deletion", entries: []string{httpEverywhere, router}, changes: []string{"-service-router/db"}, want: explain.Denied,
			differences: []string{`route: 1 of db (path begins with "/admin") -> none`},
		},
		{name: "nothing new", entries: []string{httpEverywhere, router}, changes: []string{router}, want: explain.Denied},
		{name: "a router without its protocol", changes: []string{router}, err: `service-router "db" would be refused: discovery chain "db" uses a protocol "tcp"`},
		{name: "an entry that is wrong", changes: []string{`{"Kind": "service-splitter", "Name": "db", "Splits": []}`}, err: "no splits configured"},
		{name: "a deletion of what is needed", entries: []string{httpEverywhere, router}, changes: []string{"-proxy-defaults/global"}, err: "does not permit advanced routing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, tt.entries...)
			before := s.Store.View().LastIndex()
			req := &explain.EvaluateRequest{Request: webToDB}
			for _, c := range tt.changes {
				if key, ok := strings.CutPrefix(c, "-"); ok {
					kind, name, _ := strings.Cut(key, "/")
					req.WhatIf = append(req.WhatIf, explain.Change{Delete: &entry.Key{Kind: entry.Kind(kind), Name: name}})
					continue
				}
				req.WhatIf = append(req.WhatIf, explain.Change{Entry: entry.Any{Entry: decode(t, c)}})
			}
			r, err := explain.EvaluateCall.Call(t.Context(), s.Caller(), req)
			if s.Store.View().LastIndex() != before {
				t.Error("something was written")
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.WhatIf.Verdict != tt.want {
				t.Errorf("got %s: %s, want %s", r.WhatIf.Verdict, r.WhatIf.Reason, tt.want)
			}
			for _, d := range tt.differences {
				if !slices.Contains(r.Differences, d) {
					t.Errorf("%q is not among %q", d, r.Differences)
				}
			}
			if tt.differences == nil && len(r.Differences) > 0 {
				t.Errorf("got differences %q, want none", r.Differences)
			}
		})
	}
}

func TestPermissions(t *testing.T) {
	const all = `service_prefix "" { policy = "read" intentions = "read" } node_prefix "" { policy = "read" }`
	const both = `service "web" { policy = "read" } service "db" { policy = "read" intentions = "read" }`
	intentions := explain.Change{Entry: entry.Any{Entry: decode(t, `{"Kind": "service-intentions", "Name": "secret", "Sources": [{"Name": "web", "Action": "allow"}]}`)}}
	misfit := explain.Change{Entry: entry.Any{Entry: decode(t, `{"Kind": "service-defaults", "Name": "secret", "Protocol": "grpc"}`)}}
	tests := []struct {
		name, rules string
		whatIf      []explain.Change
		refused     string // empty answers
		told, kept  []string
	}{
		{name: "nothing", rules: ``, refused: "Permission denied"},
		{name: "not the source", rules: `service "db" { policy = "read" intentions = "read" }`, refused: "Permission denied"},
		{name: "not the destination", rules: `service "web" { policy = "read" }`, refused: "Permission denied"},
		{name: "not its intentions", rules: `service "web" { policy = "read" } service "db" { policy = "read" intentions = "deny" }`, refused: "Permission denied"},
		{name: "all", rules: all, told: []string{"10.0.0.4:21000", "web => secret"}},
		{
			name: "what others are routed to is hidden", rules: both, told: []string{"may not read the intentions of secret"},
			kept: []string{"10.0.0.4", "secret-sidecar-proxy", "n4", "web => secret"},
		},
		{
			name: "instances on nodes that may not be read", rules: `service_prefix "" { policy = "read" intentions = "read" }`,
			told: []string{"web => secret"}, kept: []string{"10.0.0.4", "secret-sidecar-proxy", `"n4"`},
		},
		{name: "trying what may not be read", rules: both, whatIf: []explain.Change{intentions}, refused: "Permission denied"},
		{name: "why a change does not fit", rules: all + ` service "secret" { policy = "write" }`, whatIf: []explain.Change{misfit}, refused: "inconsistent protocols"},
		{name: "nor why to others", rules: all, whatIf: []explain.Change{misfit}, refused: "the right to write it is needed to be told why"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, httpEverywhere,
				`{"Kind": "service-router", "Name": "db", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/admin"}}, "Destination": {"Service": "secret"}}]}`,
				`{"Kind": "service-intentions", "Name": "secret", "Sources": [{"Name": "web", "Action": "allow"}]}`)
			rules, err := acl.Parse(tt.rules)
			if err != nil {
				t.Fatal(err)
			}
			z := acl.New(acl.Compile(false, rules), "tester")
			s.Resolve = func(string) (*acl.Authorizer, error) { return z, nil }
			for range 2 {
				r, err := explain.EvaluateCall.Call(t.Context(), s.Caller(), &explain.EvaluateRequest{
					Options: read.Options{Target: read.Target{Token: "t"}}, Request: webToDB, WhatIf: tt.whatIf,
				})
				if tt.refused != "" {
					if err == nil || !strings.Contains(err.Error(), tt.refused) {
						t.Fatalf("got %v, want an error with %q", err, tt.refused)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				data, err := json.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				text := string(data) + strings.ReplaceAll(r.Now.Reason, "\u003e", ">")
				for _, w := range tt.told {
					if !strings.Contains(text, w) {
						t.Errorf("%q is not told: %s", w, text)
					}
				}
				for _, w := range tt.kept {
					if strings.Contains(text, w) {
						t.Errorf("%q is told: %s", w, text)
					}
				}
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	s := newServer(t)
	for name, r := range map[string]explain.Request{
		"no source":          {To: "db"},
		"no destination":     {From: "web"},
		"a wildcard":         {From: "*", To: "db"},
		"no method":          {From: "web", To: "db", Method: "A B"},
		"a relative path":    {From: "web", To: "db", Path: "x"},
		"a path in two":      {From: "web", To: "db", Path: "/a b\r\n"},
		"a header in two":    {From: "web", To: "db", Headers: []explain.Header{{Name: "a", Value: "b\r\nc: d"}}},
		"no header":          {From: "web", To: "db", Headers: []explain.Header{{Name: "a b", Value: "c"}}},
		"too many headers":   {From: "web", To: "db", Headers: make([]explain.Header, 101)},
		"a long path":        {From: "web", To: "db", Path: "/" + strings.Repeat("a", 9000)},
		"half a token":       {From: "web", To: "db", JWT: "a.b"},
		"claims that are no": {From: "web", To: "db", JWT: "{"},
		"a long token":       {From: "web", To: "db", JWT: "{" + strings.Repeat(" ", 20000) + "}"},
	} {
		if x, err := explain.EvaluateCall.Call(t.Context(), s.Caller(), &explain.EvaluateRequest{Request: r}); err == nil {
			t.Errorf("%s: got %+v", name, x.Now)
		}
	}
	if _, err := explain.EvaluateCall.Call(t.Context(), s.Caller(), &explain.EvaluateRequest{Request: webToDB, WhatIf: []explain.Change{{}}}); err == nil {
		t.Error("an empty change was tried")
	}
}
