package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
)

func someRoots() *ca.RootsReply {
	return &ca.RootsReply{
		Meta: someMeta, ActiveRootID: "b", TrustDomain: "td.consul",
		Roots: []*ca.Root{{ID: "a", RootCert: "A\n"}, {ID: "b", RootCert: "B", IntermediateCerts: []string{"C\n"}, Active: true}},
	}
}

func TestConnectRoots(t *testing.T) {
	s, f := newServer(t, Config{}, map[string]any{ca.RootsCall.Name: someRoots()})
	w := do(s, "GET", "/v1/connect/ca/roots?index=3&wait=2s", "")
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got) != 3 || got["ActiveRootID"] != "b" || w.Header().Get("X-Consul-Index") != "7" {
		t.Errorf("%v %v %v", got, err, w.Header())
	}
	if req := last[ca.RootsRequest](t, f, ca.RootsCall.Name); req.MinIndex != 3 {
		t.Errorf("asked with %+v", req)
	}
	w = do(s, "GET", "/v1/connect/ca/roots?pem=1", "")
	if w.Body.String() != "A\nB\nC\n" || w.Header().Get("Content-Type") != "application/pem-certificate-chain" {
		t.Errorf("PEM %q as %q", w.Body, w.Header().Get("Content-Type"))
	}
	if w = do(s, "GET", "/v1/connect/ca/roots?pem=x", ""); w.Code != 400 || w.Body.String() != "The 'pem' query parameter must be a boolean value" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestRootsOfAClusterThatHasJustStartedAreWaitedFor(t *testing.T) {
	calls := 0
	s, _ := newServer(t, Config{}, map[string]any{ca.RootsCall.Name: func(req any) (any, error) {
		calls++
		if calls == 1 {
			return &ca.RootsReply{Meta: read.Meta{Index: 1}}, nil
		}
		if r := req.(*ca.RootsRequest); r.MinIndex != 1 || r.MaxWait != firstRootWait {
			t.Errorf("waited with %+v", r)
		}
		return someRoots(), nil
	}})
	if w := do(s, "GET", "/v1/connect/ca/roots", ""); !strings.Contains(w.Body.String(), `"ActiveRootID":"b"`) {
		t.Error(w.Body)
	}
}

// denyAll refuses everything to the token "acc".
func denyAll(context.Context, string) (*acl.Authorizer, error) { return acl.New(nothing{}, "acc"), nil }

type nothing struct{}

func (nothing) Allows(acl.Resource, acl.Access, string) bool { return false }

func TestLeafAndAuthorizeAskForTheRight(t *testing.T) {
	s, f := newServer(t, Config{Authorize: denyAll, Connect: ConnectConfig{Leaf: leaf.New(&fakeCaller{}, leaf.Config{Datacenter: "dc1"})}}, nil)
	want := `Permission denied: token with AccessorID 'acc' lacks permission 'service:write' on "web"`
	for range 2 {
		w := do(s, "GET", "/v1/agent/connect/ca/leaf/web", "")
		if w.Code != 403 || w.Body.String() != want {
			t.Errorf("leaf: %d %q", w.Code, w.Body)
		}
		w = do(s, "POST", "/v1/agent/connect/authorize", `{"Target": "web", "ClientCertURI": "spiffe://td.consul/ns/default/dc/dc1/svc/a"}`)
		if w.Code != 403 || w.Body.String() != want {
			t.Errorf("authorize: %d %q", w.Code, w.Body)
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("the servers were asked: %v", f.calls)
	}
	if w := do(s, "GET", "/v1/agent/connect/ca/leaf/", ""); w.Code != 500 || w.Body.String() != leaf.ErrIdentity.Error() {
		t.Errorf("no name: %d %q", w.Code, w.Body)
	}
	s, _ = newServer(t, Config{}, nil)
	if w := do(s, "GET", "/v1/agent/connect/ca/leaf/web", ""); w.Code != 500 || w.Body.String() != "Connect must be enabled in order to use this endpoint" {
		t.Errorf("disabled: %d %q", w.Code, w.Body)
	}
}

func TestAuthorize(t *testing.T) {
	reply := &intention.MatchReply{Meta: someMeta, Matches: [][]*intention.Intention{{
		{SourceNS: "default", SourceName: "web", DestinationNS: "default", DestinationName: "db", Action: entry.Deny, Precedence: 9},
	}}}
	uri := func(name string) string {
		return `{"Target": "db", "ClientCertURI": "spiffe://any.consul/ns/default/dc/dc9/svc/` + name + `"}`
	}
	tests := []struct {
		name, body string
		cfg        Config
		status     int
		want       string
	}{
		{"an intention", uri("web"), Config{}, 200, `{"Authorized":false,"Reason":"Matched L4 intention: default/web =\u003e default/db (Precedence: 9, Action: DENY)"}`},
		{"ACL default allow", uri("x"), Config{}, 200, `{"Authorized":true,"Reason":"Default behavior configured by ACLs"}`},
		{"ACL default deny", uri("x"), Config{ACLEnabled: true, DefaultPolicy: "deny"}, 200, `{"Authorized":false,"Reason":"Default behavior configured by ACLs"}`},
		{"intention policy", uri("x"), Config{ACLEnabled: true, DefaultPolicy: "deny", Connect: ConnectConfig{IntentionPolicy: "allow"}}, 200, `{"Authorized":true,"Reason":"Default intention policy"}`},
		{"no target", `{}`, Config{}, 400, "Target service must be specified"},
		{"no URI", `{"Target": "db"}`, Config{}, 400, "ClientCertURI not a valid Connect identifier"},
		{"an agent", `{"Target": "db", "ClientCertURI": "spiffe://td/agent/client/dc/dc1/id/n"}`, Config{}, 400, "ClientCertURI not a valid Service identifier"},
		{"nothing", "", Config{}, 400, "Request decode failed: EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := newServer(t, tt.cfg, map[string]any{intention.MatchCall.Name: reply})
			if w := do(s, "POST", "/v1/agent/connect/authorize", tt.body); w.Code != tt.status || w.Body.String() != tt.want {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body, tt.status, tt.want)
			}
		})
	}
}

func TestParseIntentionName(t *testing.T) {
	tests := []struct {
		in    string
		peers bool
		want  intentionName
		err   string
	}{
		{"web", false, intentionName{service: "web"}, ""},
		{"*", false, intentionName{service: "*"}, ""},
		{"default/web", false, intentionName{service: "web"}, ""},
		{"default/default/web", false, intentionName{service: "web"}, ""},
		{"peer:p/web", true, intentionName{service: "web", peer: "p"}, ""},
		{"peer:p/default/web", true, intentionName{service: "web", peer: "p"}, ""},
		{"a/b/c/d", false, intentionName{}, `source "a/b/c/d" is invalid: input can contain at most two '/'`},
		{"peer:p/web", false, intentionName{}, `source "peer:p/web" is invalid: cannot specify a peer here`},
		{"peer:p", true, intentionName{}, `source "peer:p" is invalid: need to specify the service name as well`},
		{"other/web", false, intentionName{}, `Invalid SourceNS "other": Namespaces is a Consul Enterprise feature`},
		{"other/default/web", false, intentionName{}, `Invalid SourcePartition "other": Partitions is a Consul Enterprise feature`},
		{"default/", false, intentionName{}, `source "default/" is invalid: service name is missing`},
	}
	for _, tt := range tests {
		got, err := parseIntentionName("source", "Source", tt.in, tt.peers)
		text := ""
		if err != nil {
			text, got = err.Error(), intentionName{}
		}
		if got != tt.want || text != tt.err {
			t.Errorf("%q: %+v, %q; want %+v, %q", tt.in, got, text, tt.want, tt.err)
		}
	}
}

func TestIntentionRequests(t *testing.T) {
	s, f := newServer(t, Config{}, map[string]any{
		intention.MatchCall.Name: &intention.MatchReply{Meta: someMeta, Matches: [][]*intention.Intention{nil, {{SourceName: "a"}}}},
		intention.CheckCall.Name: &intention.CheckReply{Meta: someMeta, Allowed: true},
	})
	if w := do(s, "PUT", "/v1/connect/intentions/exact?source=default/web&destination=db", `{"action": "allow", "Description": "d"}`); w.Body.String() != "true" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	up := last[intention.UpsertRequest](t, f, intention.UpsertCall.Name)
	if up.Source.Name != "web" || up.Destination != "db" || up.Source.Action != "allow" || up.Source.Description != "d" {
		t.Errorf("asked for %+v", up)
	}
	if w := do(s, "DELETE", "/v1/connect/intentions/exact?source=web&destination=db", ""); w.Body.String() != "true" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if w := do(s, "GET", "/v1/connect/intentions/match?by=destination&name=x&name=default/y", ""); !strings.HasPrefix(w.Body.String(), `{"default/y":[{"SourceNS":""`) || !strings.HasSuffix(w.Body.String(), `"x":[]}`) {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if m := last[intention.MatchRequest](t, f, intention.MatchCall.Name); m.By != intention.ByDestination || len(m.Names) != 2 || m.Names[1] != "y" {
		t.Errorf("asked for %+v", m)
	}
	if w := do(s, "GET", "/v1/connect/intentions/check?source=a&destination=b&source-type=consul", ""); w.Body.String() != `{"Allowed":true}` {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if w := do(s, "GET", "/v1/connect/intentions", ""); w.Body.String() != "[]" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if w := do(s, "GET", "/v1/connect/intentions/exact?source=a&destination=b", ""); w.Code != 404 || w.Body.String() != "Intention not found" || w.Header().Get("X-Consul-Index") != "1" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if w := do(s, "PUT", "/v1/connect/intentions/some-id", `{"ID": "other", "SourceName": "a", "DestinationName": "b", "Action": "deny"}`); w.Code != 200 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if l := last[intention.LegacyRequest](t, f, intention.LegacyCall.Name); l.Op != intention.LegacyUpdate || l.Intention.ID != "some-id" {
		t.Errorf("asked for %+v", l)
	}
}

func TestConfigEntryRequests(t *testing.T) {
	web := &entry.ServiceDefaults{Header: entry.Header{Kind: entry.KindServiceDefaults, Name: "web"}}
	s, f := newServer(t, Config{}, map[string]any{
		entry.ApplyCall.Name:  &entry.ApplyReply{OK: true},
		entry.DeleteCall.Name: &entry.ApplyReply{},
		entry.GetCall.Name: func(req any) (any, error) {
			if req.(*entry.GetRequest).Name == "web" {
				return &entry.GetReply{Meta: someMeta, Entry: entry.Any{Entry: web}}, nil
			}
			return &entry.GetReply{Meta: read.Meta{Index: 5, NotFound: true}}, nil
		},
		entry.ListCall.Name: &entry.ListReply{Meta: someMeta, Entries: []entry.Any{{Entry: web}}},
	})
	const shown = `{"Kind":"service-defaults","Name":"web","Hash":0,"CreateIndex":0,"ModifyIndex":0,"Protocol":"","TransparentProxy":{},"MeshGateway":{},"Expose":{}}`
	tests := []struct {
		method, target, body string
		status               int
		want                 string
	}{
		{"GET", "/v1/config/service-defaults/web", "", 200, shown},
		{"GET", "/v1/config/service-defaults", "", 200, "[" + shown + "]"},
		{"GET", "/v1/config/", "", 200, "[" + shown + "]"},
		{"GET", "/v1/config/service-defaults/none", "", 404, `Config entry not found for "service-defaults" / "none"`},
		{"PUT", "/v1/config", `{"kind": "mesh"}`, 200, "true"},
		{"PUT", "/v1/config?cas=7", `{"kind": "mesh"}`, 200, "true"},
		{"PUT", "/v1/config", `[]`, 400, "Request decoding failed: json: cannot unmarshal array into Go value of type map[string]interface {}"},
		{"PUT", "/v1/config", "", 400, "Request decoding failed: EOF"},
		{"PUT", "/v1/config", `{"kind": "mesh", "x": 1}`, 400, "Request decoding failed: 1 error occurred:\n\t* invalid config key \"x\"\n\n"},
		{"PUT", "/v1/config?cas=x", `{"kind": "mesh"}`, 500, `cannot parse the cas parameter: strconv.ParseUint: parsing "x": invalid syntax`},
		{"DELETE", "/v1/config/service-defaults/web", "", 200, "{}"},
		{"DELETE", "/v1/config/service-defaults/web?cas=3", "", 200, "false"},
		{"DELETE", "/v1/config/service-defaults", "", 404, "Must provide both a kind and name to delete"},
	}
	for _, tt := range tests {
		if w := do(s, tt.method, tt.target, tt.body); w.Code != tt.status || w.Body.String() != tt.want {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.target, w.Code, w.Body, tt.status, tt.want)
		}
	}
	if req := last[entry.DeleteRequest](t, f, entry.DeleteCall.Name); req.CAS == nil || *req.CAS != 3 {
		t.Errorf("asked for %+v", req)
	}
}

func TestExportedServicesAreFiltered(t *testing.T) {
	exported := &entry.ExportedServices{Services: []entry.ExportedService{
		{Name: "web", Consumers: []entry.ServiceConsumer{{Peer: "p2"}, {Peer: "p1"}}},
		{Name: "db", Consumers: []entry.ServiceConsumer{{Peer: "p1"}, {Partition: "q"}}},
		{Name: "inner", Consumers: []entry.ServiceConsumer{{Partition: "q"}}},
	}}
	s, _ := newServer(t, Config{}, map[string]any{entry.GetCall.Name: &entry.GetReply{Meta: someMeta, Entry: entry.Any{Entry: exported}}})
	const db, web = `{"Service":"db","Consumers":{"Peers":["p1"]}}`, `{"Service":"web","Consumers":{"Peers":["p1","p2"]}}`
	for filter, want := range map[string]string{
		"":                          "[" + db + "," + web + "]",
		`Service == "web"`:          "[" + web + "]",
		`p2 in Consumers.Peers`:     "[" + web + "]",
		`p1 not in Consumers.Peers`: "[]",
	} {
		if w := do(s, "GET", "/v1/exported-services?filter="+url.QueryEscape(filter), ""); w.Code != 200 || w.Body.String() != want {
			t.Errorf("filter %s: %d %q, want %q", filter, w.Code, w.Body, want)
		}
	}
	for _, filter := range []string{"Service ==", "Nope == 1"} {
		w := do(s, "GET", "/v1/exported-services?filter="+url.QueryEscape(filter), "")
		if w.Code != 500 || !strings.HasPrefix(w.Body.String(), "Failed to create boolean expression evaluator: ") {
			t.Errorf("filter %s: %d %q", filter, w.Code, w.Body)
		}
	}
}

func TestDiscoveryChainRequests(t *testing.T) {
	s, f := newServer(t, Config{}, map[string]any{chain.GetCall.Name: &chain.GetReply{Meta: someMeta, Chain: &chain.Chain{}}})
	w := do(s, "POST", "/v1/discovery-chain/web?compile-dc=dc2", `{"override_protocol": "GRPC", "OverrideConnectTimeout": "7s", "OverrideMeshGateway": {"Mode": "local"}}`)
	if w.Code != http.StatusOK {
		t.Fatalf("%d %q", w.Code, w.Body)
	}
	got := last[chain.GetRequest](t, f, chain.GetCall.Name)
	if got.Service != "web" || got.EvaluateDatacenter != "dc2" || got.Overrides.Protocol != "grpc" || got.Overrides.ConnectTimeout.String() != "7s" || got.Overrides.MeshGateway.Mode != "local" {
		t.Errorf("asked for %+v", got)
	}
	for body, want := range map[string]string{
		"":                                       "Request decoding failed: EOF",
		`{"OverrideMeshGateway": {"Mode": "x"}}`: "Invalid OverrideMeshGateway.Mode parameter",
		`{"OverrideConnectTimeout": "x"}`:        `Request decoding failed: error decoding 'OverrideConnectTimeout': time: invalid duration "x"`,
		`{"OverrideSomething": 1}`:               "Request decoding failed: 1 error occurred:\n\t* invalid config key \"OverrideSomething\"\n\n",
	} {
		if w := do(s, "POST", "/v1/discovery-chain/web", body); w.Code != 400 || w.Body.String() != want {
			t.Errorf("%s: %d %q, want %q", body, w.Code, w.Body, want)
		}
	}
	if w := do(s, "GET", "/v1/discovery-chain/", ""); w.Code != 400 || w.Body.String() != "Missing chain name" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}
