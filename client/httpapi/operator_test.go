package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A step is a request and its whole answer. An answer that ends in "…" counts up to there.
type step struct {
	method, target, body string
	status               int
	want                 string
}

func run(t *testing.T, s http.Handler, steps []step) {
	t.Helper()
	for _, st := range steps {
		w := do(s, st.method, st.target, st.body)
		got := w.Body.String()
		begin, cut := strings.CutSuffix(st.want, "…")
		if w.Code != st.status || cut && !strings.HasPrefix(got, begin) || !cut && got != st.want {
			t.Errorf("%s %s %s\n got %d %q\nwant %d %q", st.method, st.target, st.body, w.Code, got, st.status, st.want)
		}
	}
}

func TestStatusAndDatacenters(t *testing.T) {
	s, f := newServer(t, Config{}, map[string]any{
		"Status.Leader":       &operator.LeaderReply{Address: "10.0.0.1:8300"},
		"Status.Peers":        &operator.PeersReply{},
		"Catalog.Datacenters": &catalog.DatacentersReply{Datacenters: []string{"dc1", "dc2"}},
		"Coordinate.Datacenters": &catalog.DatacenterCoordinatesReply{Datacenters: []catalog.DatacenterCoordinates{
			{Datacenter: "dc1", AreaID: "wan", Coordinates: []catalog.NodeCoordinate{{Node: "n", Coord: &catalog.Coordinate{Vec: []float64{0}}}}},
			{Datacenter: "dc2", AreaID: "wan"},
		}},
	})
	run(t, s, []step{
		{"GET", "/v1/status/leader?dc=dc2", "", 200, `"10.0.0.1:8300"`},
		{"GET", "/v1/status/peers", "", 200, `[]`},
		{"GET", "/v1/catalog/datacenters", "", 200, `["dc1","dc2"]`},
		{"GET", "/v1/catalog/datacenters?stale&consistent", "", 400, `Cannot specify ?stale with ?consistent, conflicting semantics.["dc1","dc2"]`},
		{"GET", "/v1/coordinate/datacenters", "", 200,
			`[{"Datacenter":"dc1","AreaID":"wan","Coordinates":[{"Node":"n","Segment":"","Coord":{"Vec":[0],"Error":0,"Adjustment":0,"Height":0}}]},{"Datacenter":"dc2","AreaID":"wan","Coordinates":[]}]`},
	})
	if got := last[operator.StatusRequest](t, f, "Status.Leader").Datacenter; got != "dc2" {
		t.Errorf("datacenter %q", got)
	}
	if h := do(s, "GET", "/v1/status/leader", "").Header(); h.Get("X-Consul-Index") != "" || h.Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", h)
	}
}

// TestOperator pins section 11 of spec/state.md.
func TestOperator(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	h := operator.ServerHealth{ID: "i", Name: "n", Address: "a", SerfStatus: "alive", Version: "1", Leader: true, LastTerm: 2, LastIndex: 3, Healthy: true, Voter: true, StableSince: since}
	healthy := &operator.Health{Healthy: true, Servers: []*operator.ServerHealth{&h}}
	s, f := newServer(t, Config{}, map[string]any{
		"Operator.RaftConfiguration":      &operator.RaftConfiguration{Servers: []*operator.RaftServer{{ID: "i", Node: "n", Address: "a", Leader: true, ProtocolVersion: "3", Voter: true, LastIndex: 9}}, Index: 1},
		"Operator.RaftConfigurationStale": &operator.RaftConfiguration{},
		"Operator.AutopilotConfig":        &operator.AutopilotConfigReply{Meta: someMeta, Config: operator.DefaultAutopilot()},
		"Operator.SetAutopilotConfig": func(req any) (any, error) {
			return &operator.SetAutopilotConfigReply{OK: !req.(*operator.SetAutopilotConfigRequest).CAS}, nil
		},
		"Operator.Health": func(any) (any, error) { return healthy, nil },
		"Operator.State": &operator.State{Healthy: true, Servers: map[string]*operator.ServerState{"i": {ServerHealth: h, Status: operator.StatusLeader}},
			Leader: "i", Voters: []string{"i"}},
		"Operator.Usage": &operator.UsageReply{Meta: someMeta, Usage: map[string]operator.Usage{"dc1": {Nodes: 1, Services: 2, ServiceInstances: 3, ConnectServiceInstances: map[string]int{"connect-proxy": 1}, BillableServiceInstances: 1}}},
	})
	run(t, s, []step{
		{"GET", "/v1/operator/raft/configuration", "", 200, `{"Servers":[{"ID":"i","Node":"n","Address":"a","Leader":true,"ProtocolVersion":"3","Voter":true,"LastIndex":9}],"Index":1}`},
		{"GET", "/v1/operator/raft/configuration?stale", "", 200, `{"Servers":[],"Index":0}`},
		{"DELETE", "/v1/operator/raft/peer", "", 400, "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove"},
		{"DELETE", "/v1/operator/raft/peer?id=x&address=y", "", 400, "Must specify only one of ?id or ?address"},
		{"DELETE", "/v1/operator/raft/peer?id=x", "", 200, ""},
		{"POST", "/v1/operator/raft/transfer-leader?id=x&dc=dc2", "", 200, `{"Success":true}`},
		{"PUT", "/v1/operator/raft/transfer-leader", "", 405, "method PUT not allowed"},
		{"GET", "/v1/operator/autopilot/configuration", "", 200, `{"CleanupDeadServers":true,"LastContactThreshold":"200ms","MaxTrailingLogs":250,"MinQuorum":0,"ServerStabilizationTime":"10s",` +
			`"RedundancyZoneTag":"","DisableUpgradeMigration":false,"UpgradeVersionTag":"","CreateIndex":0,"ModifyIndex":0}`},
		{"PUT", "/v1/operator/autopilot/configuration", `{"Zap":1}`, 400, `Error parsing autopilot config: json: unknown field "Zap"`},
		{"PUT", "/v1/operator/autopilot/configuration", ``, 400, `Error parsing autopilot config: EOF`},
		{"PUT", "/v1/operator/autopilot/configuration", `{"LastContactThreshold":"zz"}`, 400, `Error parsing autopilot config: …`},
		{"PUT", "/v1/operator/autopilot/configuration?cas=x", `{}`, 400, `Error parsing cas value: …`},
		{"PUT", "/v1/operator/autopilot/configuration?cas=3", `{}`, 200, `false`},
		{"PUT", "/v1/operator/autopilot/configuration?cas=3", `{"LastContactThreshold":null}`, 200, `false`},
		{"PUT", "/v1/operator/autopilot/configuration", `{"LastContactThreshold":5,"minquorum":3,"CreateIndex":7,"ModifyIndex":8}`, 200, `true`},
		{"GET", "/v1/operator/autopilot/health", "", 200, `{"Healthy":true,"FailureTolerance":0,"Servers":[{"ID":"i","Name":"n","Address":"a","SerfStatus":"alive","Version":"1","Leader":true,` +
			`"LastContact":"0s","LastTerm":2,"LastIndex":3,"Healthy":true,"Voter":true,"StableSince":"2026-01-02T02:04:05Z"}]}`},
		{"GET", "/v1/operator/autopilot/state", "", 200, `{"Healthy":true,"FailureTolerance":0,"OptimisticFailureTolerance":0,"Servers":{"i":{"ID":"i","Name":"n","Address":"a","NodeStatus":"alive",` +
			`"Version":"1","LastContact":"0s","LastTerm":2,"LastIndex":3,"Healthy":true,"StableSince":"2026-01-02T02:04:05.000000006Z","ReadReplica":false,"Status":"leader","Meta":null,"NodeType":"voter"}},"Leader":"i","Voters":["i"]}`},
		{"GET", "/v1/operator/usage", "", 200, `{"Usage":{"dc1":{"Nodes":1,"Services":2,"ServiceInstances":3,"ConnectServiceInstances":{"api-gateway":0,"connect-native":0,"connect-proxy":1,` +
			`"ingress-gateway":0,"mesh-gateway":0,"terminating-gateway":0},"BillableServiceInstances":1}},"Index":7,"LastContact":0,"KnownLeader":true,"ConsistencyLevel":"","NotModified":false,"Backend":0,"ResultsFilteredByACLs":false}`},
		{"GET", "/v1/operator/license", "", 404, "Invalid URL path: not a recognized HTTP API endpoint\n"},
	})
	want := operator.DefaultAutopilot()
	want.LastContactThreshold, want.MinQuorum = 5, 3
	if d := cmp.Diff(want, last[operator.SetAutopilotConfigRequest](t, f, "Operator.SetAutopilotConfig").Config); d != "" {
		t.Errorf("configuration (-want +got):\n%s", d)
	}
	if dc := last[operator.TransferLeaderRequest](t, f, "Operator.TransferLeader").Datacenter; dc != "" {
		t.Errorf("leadership is transferred in %q", dc)
	}
	healthy = &operator.Health{}
	run(t, s, []step{{"GET", "/v1/operator/autopilot/health", "", 429, `{"Healthy":false,"FailureTolerance":0,"Servers":null}`}})
}

func TestKeyring(t *testing.T) {
	failed := false
	s, f := newServer(t, Config{}, map[string]any{"Operator.Keyring": func(any) (any, error) {
		r := []*operator.KeyringResponse{{WAN: true, Datacenter: "dc1", Keys: map[string]int{"k": 1}, PrimaryKeys: map[string]int{"k": 1}, NumNodes: 1}, {Datacenter: "dc1", NumNodes: 1}}
		if failed {
			r[0].Error, r[0].Messages = "1/1 nodes reported failure", map[string]string{"node1.dc1": "Keyring is empty (encryption not enabled)"}
			r[1].Error, r[1].Messages = "1/1 nodes reported failure", map[string]string{"node1": "Keyring is empty (encryption not enabled)"}
		}
		return &operator.KeyringReply{Responses: r}, nil
	}})
	run(t, s, []step{
		{"GET", "/v1/operator/keyring", "", 200, `[{"WAN":true,"Datacenter":"dc1","Segment":"","Keys":{"k":1},"PrimaryKeys":{"k":1},"NumNodes":1},{"WAN":false,"Datacenter":"dc1","Segment":"","Keys":null,"PrimaryKeys":null,"NumNodes":1}]`},
		{"GET", "/v1/operator/keyring?relay-factor=9", "", 400, "Invalid relay-factor: Relay factor must be in range: [0, 5]"},
		{"GET", "/v1/operator/keyring?relay-factor=x", "", 400, "Error parsing relay factor: …"},
		{"GET", "/v1/operator/keyring?local-only=x", "", 400, "Error parsing local-only: …"},
		{"PUT", "/v1/operator/keyring?local-only=true", `{"Key":"k"}`, 400, "Invalid use of local-only: local-only can only be set for list requests"},
		{"POST", "/v1/operator/keyring", "", 400, "Request decode failed: EOF"},
		{"DELETE", "/v1/operator/keyring?relay-factor=5", `{"Key":"k"}`, 200, ""},
	})
	if r := last[operator.KeyringRequest](t, f, "Operator.Keyring"); r.Op != operator.KeyringRemove || r.Key != "k" || r.RelayFactor != 5 {
		t.Errorf("request %+v", r)
	}
	failed = true
	run(t, s, []step{{"GET", "/v1/operator/keyring", "", 500, "4 errors occurred:\n\t* WAN error: 1/1 nodes reported failure\n\t* node1.dc1: Keyring is empty (encryption not enabled)\n" +
		"\t* dc1 (LAN) error: 1/1 nodes reported failure\n\t* node1: Keyring is empty (encryption not enabled)\n\n"}})
}

type fakeStreamer struct {
	rpc.Caller
	archive io.ReadCloser
	got     []byte
	err     error
}

func (f *fakeStreamer) Stream(_ context.Context, _ rpc.Descriptor, _ any, in io.Reader, resp any) (io.ReadCloser, error) {
	if in != nil {
		f.got, _ = io.ReadAll(in)
	}
	if r, ok := resp.(*operator.SnapshotReply); ok {
		r.Meta = someMeta
	}
	return f.archive, f.err
}

func TestSnapshots(t *testing.T) {
	f := &fakeStreamer{archive: io.NopCloser(strings.NewReader("archive"))}
	s, _ := newServer(t, Config{Streamer: f}, nil)
	w := do(s, "GET", "/v1/snapshot", "")
	if w.Code != 200 || w.Body.String() != "archive" || w.Header().Get("Content-Type") != "application/x-gzip" || w.Header().Get("X-Consul-Index") != "7" {
		t.Errorf("save = %d %q %v", w.Code, w.Body, w.Header())
	}
	run(t, s, []step{
		{"PUT", "/v1/snapshot", "bytes", 200, ""},
		{"PUT", "/v1/snapshot?stale", "bytes", 500, "stale not allowed for restore"},
		{"POST", "/v1/snapshot", "", 405, "method POST not allowed"},
	})
	if string(f.got) != "bytes" {
		t.Errorf("restored %q", f.got)
	}
	f.archive, f.err = nil, errors.New("failed to decompress snapshot: EOF")
	run(t, s, []step{{"PUT", "/v1/snapshot", "", 500, "failed to decompress snapshot: EOF"}})

	// An archive that ends early must not look whole.
	f.err, f.archive = nil, io.NopCloser(io.MultiReader(strings.NewReader("arch"), brokenReader{}))
	srv := httptest.NewServer(s)
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/v1/snapshot")
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("a broken archive was read without an error")
	}
	none, _ := newServer(t, Config{}, nil)
	run(t, none, []step{{"GET", "/v1/snapshot", "", 501, "snapshots are not available on this agent"}})
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

// TestEvents pins section 7 of spec/state.md.
func TestEvents(t *testing.T) {
	var log event.Log
	s, f := newServer(t, Config{Events: &log}, nil)
	run(t, s, []step{
		{"GET", "/v1/event/list", "", 200, "[]"},
		{"PUT", "/v1/event/fire/", "", 400, "Missing name"},
		{"PUT", "/v1/event/fire/x?tag=a", "", 500, "Cannot provide tag filter without service filter"},
		{"PUT", "/v1/event/fire/x?node=(", "", 500, "Invalid node filter: …"},
		{"PUT", "/v1/event/fire/x", strings.Repeat("x", 513), 500, "error broadcasting event: user event exceeds configured limit of 512 bytes before encoding"},
		{"GET", "/v1/event/list?index=x", "", 400, "Invalid index"},
	})
	w := do(s, "PUT", "/v1/event/fire/a/b?node=n&service=s&tag=t&dc=dc2", "pay")
	fired := last[event.FireRequest](t, f, "Event.Fire")
	if catalog.CheckUUID(fired.Event.ID) != nil || fired.Datacenter != "dc2" {
		t.Errorf("fired %+v", fired)
	}
	if want := `{"ID":"` + fired.Event.ID + `","Name":"a/b","Payload":"cGF5","NodeFilter":"n","ServiceFilter":"s","TagFilter":"t","Version":1,"LTime":0}`; w.Body.String() != want {
		t.Errorf("fire = %s, want %s", w.Body, want)
	}
	a, b := fired.Event, event.Event{ID: newUUID(), Name: "other", Version: 1, LTime: 2}
	a.LTime = 1
	log.Add(&a)
	log.Add(&b)
	w = do(s, "GET", "/v1/event/list?name=other", "")
	if want := `[{"ID":"` + b.ID + `","Name":"other","Payload":null,"NodeFilter":"","ServiceFilter":"","TagFilter":"","Version":1,"LTime":2}]`; w.Body.String() != want {
		t.Errorf("list = %s, want %s", w.Body, want)
	}
	if h := w.Header(); h.Get("X-Consul-Index") != uitoa(b.Index()) || h.Get("X-Consul-KnownLeader") != "" {
		t.Errorf("headers %v", h)
	}
}

func uitoa(n uint64) string { return string(appendUint(nil, n)) }

func TestEventListWaitsForAnotherIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log event.Log
		s, _ := newServer(t, Config{Events: &log}, nil)
		get := func(target string) (time.Duration, string) {
			start := time.Now()
			w := do(s, "GET", target, "")
			return time.Since(start), w.Header().Get("X-Consul-Index")
		}
		if took, _ := get("/v1/event/list?index=2"); took != 0 {
			t.Errorf("another index waited %v", took)
		}
		if took, index := get("/v1/event/list?index=1&wait=3s"); took != 3*time.Second || index != "1" {
			t.Errorf("answered %s after %v", index, took)
		}
		if took, _ := get("/v1/event/list?index=1&wait=30m"); took != 10*time.Minute {
			t.Errorf("the longest wait is %v", took)
		}
		go func() {
			time.Sleep(time.Second)
			log.Add(&event.Event{ID: newUUID(), Name: "hidden"})
			time.Sleep(time.Second)
			log.Add(&event.Event{ID: newUUID(), Name: "shown"})
		}()
		if took, index := get("/v1/event/list?index=1&name=shown"); took != 2*time.Second || index == "1" {
			t.Errorf("answered %s after %v", index, took)
		}
	})
}

type only string

func (o only) Allows(_ acl.Resource, _ acl.Access, name string) bool { return name == string(o) }

func TestEventListLeavesOutWhatTheTokenMayNotSee(t *testing.T) {
	var log event.Log
	log.Add(&event.Event{ID: newUUID(), Name: "open"})
	log.Add(&event.Event{ID: newUUID(), Name: "secret"})
	s, _ := newServer(t, Config{Events: &log, Authorize: func(context.Context, string) (*acl.Authorizer, error) {
		return acl.New(only("open"), "someone"), nil
	}}, nil)
	w := do(s, "GET", "/v1/event/list?token=t", "")
	if strings.Contains(w.Body.String(), "secret") || !strings.Contains(w.Body.String(), "open") || w.Header().Get("X-Consul-Results-Filtered-By-ACLs") != "true" {
		t.Errorf("list = %s %v", w.Body, w.Header())
	}
}

func TestGatewayServices(t *testing.T) {
	s, f := newServer(t, Config{}, map[string]any{
		"ConfigEntry.GatewayServices": func(req any) (any, error) {
			reply := &entry.GatewayServicesReply{Meta: read.Meta{Index: 9, KnownLeader: true}}
			if req.(*entry.GatewayServicesRequest).Gateway == "gw" {
				reply.Services = []entry.GatewayService{
					{Gateway: entry.GatewayName{Name: "gw"}, Service: entry.GatewayName{Name: "web"}, GatewayKind: "ingress-gateway", Port: 8888, Protocol: "http", Hosts: []string{"h.example"}},
					{Gateway: entry.GatewayName{Name: "gw"}, Service: entry.GatewayName{Name: "old"}, GatewayKind: "terminating-gateway", CAFile: "/ca", SNI: "s", FromWildcard: true,
						ServiceKind: "service", Indexes: catalog.Indexes{CreateIndex: 5, ModifyIndex: 6}},
				}
			}
			return reply, nil
		},
	})
	run(t, s, []step{
		{"GET", "/v1/catalog/gateway-services/none", "", 200, "[]"},
		{"GET", "/v1/catalog/gateway-services/gw?index=3", "", 200,
			`[{"Gateway":{"Name":"gw"},"Service":{"Name":"web"},"GatewayKind":"ingress-gateway","Port":8888,"Protocol":"http","Hosts":["h.example"],"CreateIndex":0,"ModifyIndex":0},` +
				`{"Gateway":{"Name":"gw"},"Service":{"Name":"old"},"GatewayKind":"terminating-gateway","CAFile":"/ca","SNI":"s","FromWildcard":true,"ServiceKind":"service","CreateIndex":5,"ModifyIndex":6}]`},
	})
	if req := last[entry.GatewayServicesRequest](t, f, "ConfigEntry.GatewayServices"); req.MinIndex != 3 {
		t.Errorf("%+v", req)
	}
	if got := do(s, "GET", "/v1/catalog/gateway-services/gw", "").Header().Get("X-Consul-Index"); got != "9" {
		t.Errorf("index %s", got)
	}
}

// FuzzRequests throws random requests at every route. None may panic; what the agent itself can see is wrong with a
// request is the client's fault, so nothing is answered with a 5xx but what the specification answers so.
func FuzzRequests(f *testing.F) {
	var log event.Log
	s, _ := newServer(f, Config{Events: &log, Streamer: &fakeStreamer{archive: io.NopCloser(bytes.NewReader(nil))}}, nil)
	var paths []string
	for p := range s.exact {
		paths = append(paths, p)
	}
	for p, rt := range s.prefixes {
		paths = append(paths, p)
		for _, n := range rt.nested {
			paths = append(paths, n.prefix+"x"+n.suffix)
		}
	}
	paths = sorted(paths)
	methods := []string{"GET", "PUT", "DELETE", "POST", "OPTIONS", "HEAD", "PATCH"}
	for i := range paths {
		f.Add(i, 0, "x", "", "")
		f.Add(i, 1, "x", "token=a", `{"Node":"n"}`)
		f.Add(i, 1, "", "cas=1&flags=2", `[{"KV":{"Verb":"set"}}]`)
		f.Add(i, 2, "%zz", "recurse&index=-1&wait=x", `{"Key":"k"`)
		f.Add(i, 3, "//..", "dc=x&stale&cached", `null`)
	}
	f.Fuzz(func(t *testing.T, path, method int, rest, rawQuery, body string) {
		p := paths[uint(path)%uint(len(paths))]
		r := httptest.NewRequest(methods[uint(method)%uint(len(methods))], "/", strings.NewReader(body))
		r.URL.Path, r.URL.RawPath, r.URL.RawQuery = p, "", rawQuery
		if strings.HasSuffix(p, "/") {
			r.URL.Path += rest
		}
		if strings.HasPrefix(p, "/v1/event/list") || strings.HasPrefix(p, "/v1/agent/m") {
			ctx, cancel := context.WithCancel(r.Context())
			cancel() // nobody waits for a wait
			r = r.WithContext(ctx)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		text := w.Body.String()
		if w.Code >= 500 && !mayFail(r, text) {
			t.Errorf("%s %s?%s %q = %d %q", r.Method, r.URL.Path, rawQuery, body, w.Code, text)
		}
	})
}

func sorted(list []string) []string { slices.Sort(list); return list }

// mayFail lists the faults of a request that the specification answers with a 5xx.
func mayFail(r *http.Request, text string) bool {
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		return text == ""
	}
	for _, known := range []string{
		"strconv.ParseUint: ", "incompatible coordinate", "sameness groups are not supported", "Invalid node filter: ", "Invalid service filter: ",
		"Invalid tag filter: ", "Cannot provide tag filter", "stale not allowed for restore", "cross datacenter lock", "user event exceeds", "context canceled",
		"Bad limit: ", "Error parsing 'connect' value: ",
	} {
		if strings.Contains(text, known) {
			return true
		}
	}
	// Endpoints about the agent need an agent.
	return strings.HasPrefix(r.URL.Path, "/v1/agent/") || strings.HasPrefix(r.URL.Path, "/v1/connect/") || strings.HasPrefix(r.URL.Path, "/v1/config")
}

// usages answers as the servers of several datacenters would; dc3 cannot be reached.
type usages struct{ asked sync.Map }

func (u *usages) Call(_ context.Context, d rpc.Descriptor, req, resp any) error {
	switch r := resp.(type) {
	case *catalog.DatacentersReply:
		r.Datacenters = []string{"dc1", "dc2", "dc3"}
	case *operator.UsageReply:
		o := req.(*operator.UsageRequest)
		u.asked.Store(o.Datacenter, o.Token)
		switch o.Datacenter {
		case "":
			r.Index, r.Usage = 7, map[string]operator.Usage{"dc1": {Nodes: 1}}
		case "dc2":
			r.Index, r.Usage = 99, map[string]operator.Usage{"dc2": {Nodes: 2}}
		default:
			return wireerr.ErrNoLeader
		}
	}
	return nil
}

func (u *usages) Stream(context.Context, rpc.Descriptor, any, io.Reader, any) (io.ReadCloser, error) {
	return nil, wireerr.ErrNoLeader
}

func TestUsageOfAllDatacentersThatAnswer(t *testing.T) {
	u := &usages{}
	s, _ := newServer(t, Config{Caller: u}, nil)
	for target, want := range map[string][]string{
		"/v1/operator/usage":               {"dc1"},
		"/v1/operator/usage?dc=dc2":        {"dc1"},
		"/v1/operator/usage?global&dc=dc2": {"dc1", "dc2"},
	} {
		w := do(s, "GET", target, "", "X-Consul-Token", "secret")
		var body struct{ Usage map[string]operator.Usage }
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != 200 || w.Header().Get("X-Consul-Index") != "7" {
			t.Errorf("%s: %d %s, %v", target, w.Code, w.Body, err)
		}
		if got := slices.Sorted(maps.Keys(body.Usage)); !slices.Equal(got, want) {
			t.Errorf("%s: counts of %v, want %v", target, got, want)
		}
	}
	if token, ok := u.asked.Load("dc3"); !ok || token != "secret" {
		t.Errorf("dc3 was asked %v with %v", ok, token)
	}
}
