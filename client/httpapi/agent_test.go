package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/check"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/internal/hostinfo"
)

// fakeAgent is the rest of a process.
type fakeAgent struct {
	mu    sync.Mutex
	did   []string
	fail  error
	lan   []AgentMember
	wan   []AgentMember
	stats map[string]map[string]string
}

func (a *fakeAgent) note(parts ...string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.did = append(a.did, strings.Join(parts, " "))
	return a.fail
}

func (a *fakeAgent) take() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	did := strings.Join(a.did, "; ")
	a.did = nil
	return did
}

func (a *fakeAgent) Self(context.Context) (*AgentSelf, error) {
	return &AgentSelf{Config: AgentSummary{NodeName: "node1"}, DebugConfig: map[string]string{"EncryptKey": "hidden"}, Stats: a.stats,
		XDS: &AgentXDS{SupportedProxies: map[string][]string{"envoy": {"1.34.0"}}, Port: 8503, Ports: AgentXDSPorts{8502, 8503}}}, nil
}

func (a *fakeAgent) Members(wan bool) ([]AgentMember, error) {
	if wan {
		return a.wan, a.fail
	}
	return a.lan, a.fail
}

func yes(b bool, s string) string {
	if b {
		return s
	}
	return ""
}

func (a *fakeAgent) Join(_ context.Context, address string, wan bool) error {
	return a.note("join", address, yes(wan, "wan"))
}
func (a *fakeAgent) ForceLeave(name string, prune, wan bool) error {
	return a.note("force-leave", name, yes(prune, "prune"), yes(wan, "wan"))
}
func (a *fakeAgent) Leave(context.Context) error  { return a.note("leave") }
func (a *fakeAgent) Reload(context.Context) error { return a.note("reload") }
func (a *fakeAgent) SetToken(kind AgentToken, secret string) error {
	return a.note("token", string(kind), secret)
}

// newAgent returns a server with an agent without servers; nothing runs but TTL bookkeeping.
func newAgent(t *testing.T, cfg Config) (*Server, *fakeAgent) {
	t.Helper()
	state, err := local.New(local.Config{
		Node: catalog.Node{Node: "node1", Datacenter: "dc1"}, SidecarPorts: local.Ports{Low: 21000, High: 21255},
		Check: check.Config{Jitter: func(time.Duration) time.Duration { return 0 }},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := &fakeAgent{}
	cfg.Agent.Local, cfg.Agent.Agent = state, a
	s, _ := newServer(t, cfg, nil)
	return s, a
}

const (
	webJSON = `{"ID":"web","Service":"web","Tags":[],"Meta":{},"Port":0,"Address":"","Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Datacenter":"dc1"}`
	noCheck = `Unknown check ID "nope". Ensure that the check ID is passed, not the check name.`
	noSvc   = `Unknown service ID "nope". Ensure that the service ID is passed, not the service name.`
)

func TestAgentServices(t *testing.T) {
	s, _ := newAgent(t, Config{})
	run(t, s, []step{
		{"GET", "/v1/agent/services", "", 200, `{}`},
		{"PUT", "/v1/agent/service/register", `{"Name":"web"}`, 200, ""},
		{"GET", "/v1/agent/services", "", 200, `{"web":` + webJSON + `}`},
		{"GET", "/v1/agent/services?filter=Service==other", "", 200, `{}`},
		{"GET", "/v1/agent/services?filter=Nope==1", "", 500, `Failed to create boolean expression evaluator: Selector "Nope" is not valid`},
		{"GET", "/v1/agent/services?ns=default", "", 400, `Invalid query parameter: "ns" - …`},
		{"GET", "/v1/agent/service/nope", "", 404, "unknown service ID: nope"},
		{"GET", "/v1/agent/service/WEB", "", 404, "unknown service ID: WEB"},
		{"GET", "/v1/agent/service/web?wait=x", "", 400, "Invalid wait time"},
		{"GET", "/v1/agent/service/web?index=9&wait=10s", "", 200, `{"ID":"web",…`},
		{"POST", "/v1/agent/service/register", `{}`, 405, "method POST not allowed"},
		{"PUT", "/v1/agent/service/deregister/nope", "", 404, noSvc},
		{"PUT", "/v1/agent/service/deregister/", "", 404, `Unknown service ID "". Ensure…`},
		{"PUT", "/v1/agent/service/deregister/web", "", 200, ""},
		{"GET", "/v1/agent/services", "", 200, `{}`},
	})
}

func TestAgentRegisterServiceErrors(t *testing.T) {
	s, _ := newAgent(t, Config{})
	const path = "/v1/agent/service/register"
	run(t, s, []step{
		{"PUT", path, ``, 400, "Request decode failed: EOF"},
		{"PUT", path, `null`, 400, "Missing service name"},
		{"PUT", path, `{"Bogus":1}`, 400, `Request decode failed: json: unknown field "Bogus"`},
		{"PUT", path + "?partition=x", `{"Name":"web"}`, 400, `Invalid query parameter: "partition" …`},
		{"PUT", path, `{"Name":"web","Address":"0.0.0.0"}`, 400, "Invalid service address"},
		{"PUT", path, `{"Name":"web","Weights":{"Passing":1,"Warning":-1}}`, 400, "Invalid Weights: Warning must be greater or equal than 0"},
		{"PUT", path, `{"Name":"web","Kind":"connect-proxy"}`, 400, "Validation failed: 2 errors occurred:\n\t* …"},
		{"PUT", path, `{"Name":"web","Check":{"TTL":"1s","Status":"zz"}}`, 400, "Status for checks must 'passing', 'warning', 'critical'"},
		{"PUT", path, `{"Name":"web","Connect":{"SidecarService":{"Meta":{"consul-x":"1"}}}}`, 400, "Invalid SidecarService: …"},
		{"PUT", path, `{"Name":"web","TaggedAddresses":{"lan_ipv6":{"Address":"1.2.3.4"}}}`, 500, `Service tagged address "lan_ipv6" must be a valid ipv6 address`},
		{"PUT", path, `{"Name":"web","Check":{"Args":["x"],"Interval":"1s"}}`, 500, "Scripts are disabled on this agent from remote calls; …"},
		{"GET", "/v1/agent/services", "", 200, `{}`},
	})
}

func TestAgentServiceForm(t *testing.T) {
	s, _ := newAgent(t, Config{})
	run(t, s, []step{{"PUT", "/v1/agent/service/register", `{"ID":"w","Name":"web","Port":80,"SocketPath":"/s","Tags":["a"],"Meta":{"k":"v"},"Address":"10.0.0.1",
		"Locality":{"Region":"r"},"Token":"secret","Connect":{"Native":true,"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"db","LocalBindPort":1}]}}}}`, 200, ""}})
	w := do(s, "GET", "/v1/agent/service/w", "")
	hash := w.Header().Get("X-Consul-ContentHash")
	want := `{"ID":"w","Service":"web","Tags":["a"],"Meta":{"k":"v"},"Port":80,"Address":"10.0.0.1","SocketPath":"/s","TaggedAddresses":{"lan_ipv4":{"Address":"10.0.0.1","Port":80},"wan_ipv4":{"Address":"10.0.0.1","Port":80}},` +
		`"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"ContentHash":"` + hash + `","Connect":{"Native":true},"Datacenter":"dc1","Locality":{"Region":"r","Zone":""}}`
	if got := w.Body.String(); got != want || len(hash) != 16 {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var side struct {
		Kind  string
		Proxy map[string]any
		Port  int
	}
	if err := json.Unmarshal(do(s, "GET", "/v1/agent/service/w-sidecar-proxy", "").Body.Bytes(), &side); err != nil {
		t.Fatal(err)
	}
	wantProxy := map[string]any{"DestinationServiceName": "web", "DestinationServiceID": "w", "LocalServiceSocketPath": "/s", "MeshGateway": map[string]any{}, "Expose": map[string]any{},
		"Upstreams": []any{map[string]any{"DestinationType": "service", "DestinationName": "db", "LocalBindPort": 1.0, "MeshGateway": map[string]any{}}}}
	if diff := cmp.Diff(wantProxy, side.Proxy); diff != "" || side.Port != 21000 || side.Kind != "connect-proxy" {
		t.Errorf("%+v (-want +got):\n%s", side, diff)
	}
}

func TestAgentServiceHashBlocking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newAgent(t, Config{})
		run(t, s, []step{{"PUT", "/v1/agent/service/register", `{"Name":"web","Port":1}`, 200, ""}})
		hash := func() string { return do(s, "GET", "/v1/agent/service/web", "").Header().Get("X-Consul-ContentHash") }
		begin := func(wait string) <-chan *httptest.ResponseRecorder {
			ch, target := make(chan *httptest.ResponseRecorder, 1), "/v1/agent/service/web?hash="+hash()+"&wait="+wait
			go func() { ch <- do(s, "GET", target, "") }()
			return ch
		}
		start := time.Now()
		<-begin("10s")
		if d := time.Since(start); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("waited %v", d)
		}
		<-begin("2h")
		if d := time.Since(start); d < 10*time.Minute || d > 12*time.Minute {
			t.Errorf("waited %v in spite of the maximum", d)
		}
		answer := begin("1m")
		synctest.Wait()
		run(t, s, []step{{"PUT", "/v1/agent/service/register", `{"Name":"web","Port":1,"Check":{"TTL":"1s"}}`, 200, ""}})
		time.Sleep(time.Second)
		select {
		case w := <-answer:
			t.Errorf("an unchanged definition woke the reader: %s", w.Body)
		default:
		}
		run(t, s, []step{{"PUT", "/v1/agent/service/register", `{"Name":"web","Port":2}`, 200, ""}})
		if w := <-answer; w.Code != 200 || !strings.Contains(w.Body.String(), `"Port":2`) {
			t.Errorf("after a change: %d %s", w.Code, w.Body)
		}
		answer = begin("1m")
		synctest.Wait()
		run(t, s, []step{{"PUT", "/v1/agent/service/deregister/web", "", 200, ""}})
		if w := <-answer; w.Code != 404 || w.Body.String() != "unknown service ID: web" {
			t.Errorf("after deregistration: %d %s", w.Code, w.Body)
		}
	})
}

func TestAgentChecks(t *testing.T) {
	s, _ := newAgent(t, Config{})
	const reg = "/v1/agent/check/register"
	run(t, s, []step{
		{"GET", "/v1/agent/checks?filter=Nope==1", "", 200, `{}`},
		{"PUT", reg, `{`, 400, "Request decode failed: unexpected EOF"},
		{"PUT", reg, `{}`, 400, "Missing check name"},
		{"PUT", reg, `{"Name":"x","TTL":"10s","Status":"bogus"}`, 400, "Bad check status"},
		{"PUT", reg, `{"Name":"x"}`, 400, "Invalid check: TTL must be > 0 for TTL checks"},
		{"PUT", reg, `{"Name":"x","TTL":"10s","ServiceID":"nope"}`, 404, `ServiceID "nope" does not exist`},
		{"PUT", reg, `{"Name":"x","OSService":"x","Interval":"10s"}`, 500, `not implemented: this system has no service manager that os_service checks could ask`},
		{"PUT", reg, `{"Name":"x y","TTL":"10s","Token":"ignored"}`, 200, ""},
		{"GET", "/v1/agent/checks", "", 200, `{"x y":{"Node":"node1","CheckID":"x y","Name":"x y","Status":"critical","Notes":"","Output":"","ServiceID":"","ServiceName":"","ServiceTags":[],` +
			`"Type":"ttl","Interval":"0s","Timeout":"0s","ExposedPort":0,"Definition":{},"CreateIndex":0,"ModifyIndex":0}}`},
		{"GET", "/v1/agent/checks?filter=Status==passing", "", 200, `{}`},
		{"GET", "/v1/agent/checks?filter=Nope==1", "", 500, `Selector "Nope" is not valid`},
		{"PUT", "/v1/agent/check/pass/x%20y?note=slow%20%26%20sure", "", 200, ""},
		{"GET", "/v1/agent/checks?filter=Output==%22slow+%26+sure%22", "", 200, `{"x y":…`},
		{"PUT", "/v1/agent/check/update/x%20y", `{"status":"warning","output":"lower"}`, 200, ""},
		{"PUT", "/v1/agent/check/update/x%20y", `{"Status":"bogus"}`, 400, "Invalid check status: 'bogus'"},
		{"PUT", "/v1/agent/check/update/x%20y", `{}`, 400, "Invalid check status: ''"},
		{"PUT", "/v1/agent/check/update/x%20y", `{"Note":1}`, 400, `Request decode failed: json: unknown field "Note"`},
		{"PUT", "/v1/agent/check/update/nope", `{"Status":"passing"}`, 404, noCheck},
		{"PUT", "/v1/agent/check/fail/nope", "", 404, noCheck},
		{"PUT", reg, `{"Name":"h","HTTP":"http://x","Interval":"60s"}`, 200, ""},
		{"PUT", "/v1/agent/check/warn/h", "", 500, `CheckID "h" does not have associated TTL`},
		{"PUT", "/v1/agent/check/deregister/x%20y", "", 200, ""},
		{"PUT", "/v1/agent/check/deregister/nope", "", 404, noCheck},
	})
}

func TestAgentMaintenance(t *testing.T) {
	s, _ := newAgent(t, Config{})
	run(t, s, []step{
		{"PUT", "/v1/agent/service/register", `{"Name":"web"}`, 200, ""},
		{"PUT", "/v1/agent/service/maintenance/", "", 400, "Missing service ID"},
		{"PUT", "/v1/agent/service/maintenance/nope", "", 400, "Missing value for enable"},
		{"PUT", "/v1/agent/service/maintenance/nope?enable=zz", "", 400, `Invalid value for enable: "zz"`},
		{"PUT", "/v1/agent/service/maintenance/nope?enable=1", "", 404, noSvc},
		{"PUT", "/v1/agent/service/maintenance/web?enable=TRUE&reason=disk", "", 200, ""},
		{"GET", "/v1/agent/health/service/id/web?format=text", "", 503, "maintenance"},
		{"PUT", "/v1/agent/service/maintenance/web?enable=0", "", 200, ""},
		{"PUT", "/v1/agent/maintenance", "", 400, "Missing value for enable"},
		{"PUT", "/v1/agent/maintenance?enable=", "", 400, `Invalid value for enable: ""`},
		{"PUT", "/v1/agent/maintenance?enable=t", "", 200, ""},
		{"GET", "/v1/agent/health/service/id/web?format=text", "", 503, "maintenance"},
		{"PUT", "/v1/agent/check/deregister/_node_maintenance", "", 200, ""},
		{"GET", "/v1/agent/checks", "", 200, `{}`},
	})
}

func TestAgentHealth(t *testing.T) {
	s, _ := newAgent(t, Config{})
	run(t, s, []step{
		{"PUT", "/v1/agent/service/register", `{"ID":"w1","Name":"web","Check":{"CheckID":"c1","TTL":"1h","Status":"passing"}}`, 200, ""},
		{"PUT", "/v1/agent/service/register", `{"ID":"w2","Name":"web","Check":{"CheckID":"c2","TTL":"1h","Status":"warning"}}`, 200, ""},
		{"PUT", "/v1/agent/service/register", `{"Name":"web3"}`, 200, ""},
		{"GET", "/v1/agent/health/service/id/", "", 500, "Missing serviceID"},
		{"GET", "/v1/agent/health/service/name/", "", 500, "Missing service Name"},
		{"GET", "/v1/agent/health/service/id/nope", "", 404, `{"AggregatedStatus":"critical","Service":null,"Checks":null}`},
		{"GET", "/v1/agent/health/service/id/nope?format=text", "", 404, `ServiceId nope not found`},
		{"GET", "/v1/agent/health/service/name/nope", "", 404, `[]`},
		{"GET", "/v1/agent/health/service/name/nope?format=text", "", 404, `ServiceName nope Not Found`},
		{"GET", "/v1/agent/health/service/name/WEB", "", 404, `[]`},
		{"GET", "/v1/agent/health/service/id/web3", "", 200, `{"AggregatedStatus":"passing","Service":` + strings.ReplaceAll(webJSON, `"web"`, `"web3"`) + `,"Checks":[]}`},
		{"GET", "/v1/agent/health/service/name/web", "", 429, `[{"AggregatedStatus":"passing",…`},
		{"GET", "/v1/agent/health/service/id/w2?format=text", "", 429, `warning`},
	})
	w := do(s, "GET", "/v1/agent/health/service/id/w1", "")
	var got struct{ Checks []json.RawMessage }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Checks) != 1 {
		t.Fatalf("%s: %v", w.Body, err)
	}
	want := `{"Node":"node1","CheckID":"c1","Name":"Service 'web' check","Status":"passing","Notes":"","Output":"","ServiceID":"w1","ServiceName":"web","ServiceTags":[],"Type":"","ExposedPort":0,"Definition":` +
		emptyDefinition + `,"CreateIndex":0,"ModifyIndex":0}`
	if string(got.Checks[0]) != want {
		t.Errorf("check %s\nwant  %s", got.Checks[0], want)
	}
	w = do(s, "GET", "/v1/agent/health/service/id/w1", "", "Accept", "text/plain")
	if w.Body.String() != "passing" || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") || w.Header().Get("X-Consul-Reason") != "passing" {
		t.Errorf("text form: %s, %v", w.Body, w.Header())
	}
}

func TestAgentProcessCalls(t *testing.T) {
	s, a := newAgent(t, Config{})
	for _, tt := range []struct {
		method, target, body string
		status               int
		want, did            string
		fail                 error
	}{
		{method: "PUT", target: "/v1/agent/reload", status: 200, did: "reload"},
		{method: "PUT", target: "/v1/agent/reload", status: 500, did: "reload", fail: errors.New("bad file"), want: "bad file"},
		{method: "PUT", target: "/v1/agent/leave", status: 200, did: "leave"},
		{method: "PUT", target: "/v1/agent/join/10.0.0.1:8301", status: 200, did: "join 10.0.0.1:8301 "},
		{method: "PUT", target: "/v1/agent/join/10.0.0.1?wan=1", status: 500, did: "join 10.0.0.1 wan", fail: errors.New("refused"), want: "1 error occurred:\n\t* Failed to join 10.0.0.1: refused\n\n"},
		{method: "PUT", target: "/v1/agent/force-leave/n?prune&wan", status: 200, did: "force-leave n prune wan"},
		{method: "PUT", target: "/v1/agent/force-leave/n", status: 500, did: "force-leave n  ", fail: errors.New("agent: No node found with name 'n'"), want: "agent: No node found with name 'n'"},
		{method: "PUT", target: "/v1/agent/token/bogus", body: `{"Token":"x"}`, status: 401, want: "ACL support disabled"},
	} {
		a.fail = tt.fail
		w := do(s, tt.method, tt.target, tt.body)
		if did := a.take(); w.Code != tt.status || w.Body.String() != tt.want || did != tt.did {
			t.Errorf("%s: %d %q, did %q; want %d %q, %q", tt.target, w.Code, w.Body, did, tt.status, tt.want, tt.did)
		}
	}
}

func TestAgentTokenNames(t *testing.T) {
	s, a := newAgent(t, Config{ACLEnabled: true})
	for name, want := range map[string]string{
		"default": "default", "acl_token": "default", "agent": "agent", "acl_agent_token": "agent", "agent_recovery": "agent_recovery",
		"agent_master": "agent_recovery", "acl_agent_master_token": "agent_recovery", "replication": "replication",
		"acl_replication_token": "replication", "dns": "dns", "dns_token": "dns", "config_file_service_registration": "config_file_service_registration",
	} {
		w := do(s, "PUT", "/v1/agent/token/"+name, `{"Token":"s"}`)
		if did := a.take(); w.Code != 200 || w.Body.Len() != 0 || did != "token "+want+" s" {
			t.Errorf("%s: %d %s, did %q", name, w.Code, w.Body, did)
		}
	}
	run(t, s, []step{
		{"PUT", "/v1/agent/token/bogus", `{"Token":"x"}`, 404, `Token "bogus" is unknown`},
		{"PUT", "/v1/agent/token/default", `{`, 400, "Request decode failed: unexpected EOF"},
		{"PUT", "/v1/agent/token/default", `{"Bogus":"x"}`, 400, `Request decode failed: json: unknown field "Bogus"`},
	})
}

func TestAgentSelfHostVersionAndMembers(t *testing.T) {
	s, a := newAgent(t, Config{Agent: AgentConfig{
		Version: AgentVersion{HumanVersion: "1.2.3", BuildDate: "2026-01-02T03:04:05Z"},
		Host:    func() *hostinfo.Info { return &hostinfo.Info{CollectionTime: 5} },
	}})
	a.stats = map[string]map[string]string{"consul": {"server": "true"}}
	a.lan = []AgentMember{{Name: "node1", Addr: "10.0.0.1", Port: 8301, Tags: map[string]string{"role": "consul"}, Status: 1}, {Name: "other", Status: 4}}
	run(t, s, []step{
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"1m"}}`, 200, ""},
		{"GET", "/v1/agent/version", "", 200, `{"SHA":"","BuildDate":"2026-01-02T03:04:05Z","HumanVersion":"1.2.3","FIPS":""}`},
		{"GET", "/v1/agent/host", "", 200, `{"Memory":null,"CPU":null,"Host":null,"Disk":null,"CollectionTime":5,"Errors":null}`},
		{"GET", "/v1/agent/members?filter=Name==node1", "", 200, `[{"Name":"node1","Addr":"10.0.0.1","Port":8301,"Tags":{"role":"consul"},"Status":1,"ProtocolMin":0,"ProtocolMax":0,"ProtocolCur":0,"DelegateMin":0,"DelegateMax":0,"DelegateCur":0}]`},
		{"GET", "/v1/agent/members?filter=Status==1+and+Tags.role==consul&wan=", "", 200, `[{"Name":"node1",…`},
		{"GET", "/v1/agent/members?filter=Name==nope", "", 200, `[]`},
		{"GET", "/v1/agent/members?wan=1", "", 200, `null`},
		{"GET", "/v1/agent/members?segment=x&wan=1", "", 400, `Cannot provide a segment with wan=true`},
		{"GET", "/v1/agent/members?segment=x", "", 500, `network segments are not supported: "x"`},
		{"GET", "/v1/agent/members?segment=_all&filter=Name==nope", "", 200, `[]`},
		{"GET", "/v1/agent/members?filter=Foo==x", "", 500, `Failed to create boolean expression evaluator: Selector "Foo" is not valid`},
	})
	var self struct {
		Stats map[string]map[string]string
		XDS   *AgentXDS `json:"xDS"`
	}
	if err := json.Unmarshal(do(s, "GET", "/v1/agent/self", "").Body.Bytes(), &self); err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{"consul": {"server": "true"}, "agent": {"services": "1", "checks": "1", "check_ttls": "1", "check_monitors": "0"}}
	if diff := cmp.Diff(want, self.Stats); diff != "" || self.XDS.Ports.TLS != 8503 {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// rights grants what is in the set, written "resource:access name".
type rights map[string]bool

func (g rights) Allows(r acl.Resource, a acl.Access, name string) bool {
	return g[string(r)+":"+string(a)+" "+name]
}

func TestAgentRights(t *testing.T) {
	granted := rights{}
	s, a := newAgent(t, Config{ACLEnabled: true, Authorize: func(context.Context, string) (*acl.Authorizer, error) { return acl.New(granted, "id"), nil }})
	a.lan = []AgentMember{{Name: "node1"}}
	put := func(target, body string) step { return step{method: "PUT", target: target, body: body} }
	get := func(target string) step { return step{method: "GET", target: target} }
	register := put("/v1/agent/service/register", `{"Name":"web","Port":1,"Check":{"CheckID":"c","TTL":"1h"},"Connect":{"SidecarService":{}}}`)
	// Each request needs its rights one after the other; the last one makes it succeed.
	for _, tt := range []struct {
		step
		need []string
	}{
		{register, []string{"service:write web", "service:write web-sidecar-proxy"}},
		{put("/v1/agent/service/register", `{"Name":"db","ID":"web"}`), []string{"service:write db", "service:write web"}},
		{put("/v1/agent/service/register", `{"Name":"web","ID":"web"}`), []string{"service:write web", "service:write db"}},
		{put("/v1/agent/service/register", `{"Name":"px","Kind":"connect-proxy","Port":3,"Proxy":{"DestinationServiceName":"far"}}`), []string{"service:write px", "service:write far"}},
		{put("/v1/agent/check/register", `{"Name":"sc","ServiceID":"web","TTL":"1h"}`), []string{"service:write web"}},
		{put("/v1/agent/check/register", `{"ID":"sc","Name":"sc","TTL":"1h"}`), []string{"node:write node1", "service:write web"}},
		{put("/v1/agent/check/pass/c", ""), []string{"service:write web"}},
		{put("/v1/agent/check/update/sc", `{"Status":"passing"}`), []string{"node:write node1"}},
		{put("/v1/agent/check/deregister/sc", ""), []string{"node:write node1"}},
		{put("/v1/agent/service/maintenance/web?enable=true", ""), []string{"service:write web"}},
		{put("/v1/agent/maintenance?enable=false", ""), []string{"node:write node1"}},
		{get("/v1/agent/service/web"), []string{"service:read web"}},
		{get("/v1/agent/health/service/name/nope"), []string{"service:read nope"}},
		{get("/v1/agent/self"), []string{"agent:read node1"}},
		{get("/v1/agent/host"), []string{"operator:read "}},
		{get("/v1/agent/version"), nil},
		{put("/v1/agent/reload", ""), []string{"agent:write node1"}},
		{put("/v1/agent/leave", ""), []string{"agent:write node1"}},
		{put("/v1/agent/join/x", ""), []string{"agent:write node1"}},
		{put("/v1/agent/force-leave/x", ""), []string{"operator:write "}},
		{put("/v1/agent/token/dns", `{"Token":""}`), []string{"agent:write node1"}},
		{put("/v1/agent/service/deregister/web", ""), []string{"service:write web"}},
	} {
		clear(granted)
		for _, n := range tt.need {
			w := do(s, tt.method, tt.target, tt.body)
			right, _, _ := strings.Cut(n, " ")
			if w.Code != 403 || !strings.Contains(w.Body.String(), "lacks permission '"+right+"'") {
				t.Errorf("%s %s without %q: %d %s", tt.target, tt.body, n, w.Code, w.Body)
			}
			granted[n] = true
		}
		if w := do(s, tt.method, tt.target, tt.body); w.Code == 403 || w.Code == 500 {
			t.Errorf("%s %s with %v: %d %s", tt.target, tt.body, tt.need, w.Code, w.Body)
		}
	}
	clear(granted)
	for _, target := range []string{"/v1/agent/metrics", "/v1/agent/metrics/stream", "/v1/agent/monitor"} {
		if w := do(s, "GET", target, ""); w.Code != 403 {
			t.Errorf("%s: %d", target, w.Code)
		}
	}
	if w := do(s, "PUT", "/v1/agent/service/deregister/nope", ""); w.Code != 404 {
		t.Errorf("an unknown ID is not told to everybody: %d", w.Code)
	}
	granted["service:write hidden"] = true
	if w := do(s, "PUT", "/v1/agent/service/register", `{"Name":"hidden","Check":{"TTL":"1h"}}`); w.Code != 200 {
		t.Fatal(w.Body)
	}
	granted["service:read px"] = true
	for target, want := range map[string]string{"/v1/agent/services": `{"px":`, "/v1/agent/checks": `{}`, "/v1/agent/members": `[]`} {
		for token, filtered := range map[string]string{"": "", "secret": "true"} {
			w := do(s, "GET", target, "", "X-Consul-Token", token)
			if !strings.HasPrefix(w.Body.String(), want) || strings.Contains(w.Body.String(), "hidden") || w.Header().Get("X-Consul-Results-Filtered-By-ACLs") != filtered {
				t.Errorf("%s with token %q: %s, filtered %q", target, token, w.Body, w.Header().Get("X-Consul-Results-Filtered-By-ACLs"))
			}
		}
	}
}

func TestAgentMetrics(t *testing.T) {
	sink := metrics.NewInmemSink(time.Hour, time.Hour)
	sink.SetGauge([]string{"consul", "runtime", "num_goroutines"}, 5)
	sink.IncrCounter([]string{"a"}, 2)
	s, _ := newAgent(t, Config{Agent: AgentConfig{Metrics: sink}})
	var got struct {
		Timestamp string
		Gauges    []map[string]any
		Points    []any
		Counters  []map[string]any
		Samples   []any
	}
	w := do(s, "GET", "/v1/agent/metrics", "")
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || strings.Contains(w.Body.String(), "Precision") {
		t.Fatalf("%v: %s", err, w.Body)
	}
	wantGauge := map[string]any{"Name": "consul.runtime.num_goroutines", "Value": 5.0, "Labels": map[string]any{}}
	if diff := cmp.Diff(wantGauge, got.Gauges[0]); diff != "" || got.Points == nil || got.Samples == nil || got.Counters[0]["Count"] != 1.0 || !strings.HasSuffix(got.Timestamp, "+0000 UTC") {
		t.Errorf("%s\n(-want +got):\n%s", w.Body, diff)
	}
	w = do(s, "GET", "/v1/agent/metrics?format=prometheus", "")
	if w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("X-Consul-Reason") != "Prometheus is not enabled since its retention time is not positive" {
		t.Errorf("prometheus off: %d %s %v", w.Code, w.Body, w.Header())
	}
	s, _ = newAgent(t, Config{Agent: AgentConfig{Prometheus: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("# TYPE " + r.Header.Get("Accept"))) })}})
	for _, accept := range []string{"application/openmetrics-text", "text/html, application/openmetrics-text; version=1", "text/plain;version=0.4.0"} {
		if w := do(s, "GET", "/v1/agent/metrics", "", "Accept", accept); w.Body.String() != "# TYPE " {
			t.Errorf("Accept %s: %d %s", accept, w.Code, w.Body)
		}
	}
	for _, accept := range []string{"*/*", "text/plain", "text/plain; charset=utf-8; version=0.4.0"} {
		if w := do(s, "GET", "/v1/agent/metrics", "", "Accept", accept); w.Code != 501 {
			t.Errorf("Accept %s: %d %s", accept, w.Code, w.Body)
		}
	}
}

func TestAgentMetricsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := metrics.NewInmemSink(10*time.Second, time.Minute)
		s, _ := newAgent(t, Config{Agent: AgentConfig{Metrics: sink}})
		ctx, cancel := context.WithCancel(t.Context())
		w := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/v1/agent/metrics/stream", nil))
		}()
		for range 25 {
			time.Sleep(time.Second)
			sink.IncrCounter([]string{"x"}, 1)
		}
		cancel()
		<-done
		if n := strings.Count(w.Body.String(), `"Timestamp"`); n < 2 || n > 3 {
			t.Errorf("%d documents in 25s: %s", n, w.Body)
		}
	})
}

func TestAgentMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Error, Output: httptest.NewRecorder().Body})
		s, _ := newAgent(t, Config{Agent: AgentConfig{Logs: logger}})
		run(t, s, []step{
			{"GET", "/v1/agent/monitor?loglevel=bogus", "", 400, "Unknown log level: bogus"},
			{"GET", "/v1/agent/monitor?loglevel=off", "", 400, "Unknown log level: off"},
		})
		for target, want := range map[string]string{
			"/v1/agent/monitor":                        "[INFO]  hello: a=1\n",
			"/v1/agent/monitor?loglevel=warn":          "",
			"/v1/agent/monitor?loglevel=DEBUG&logjson": `"@message":"hello"`,
		} {
			ctx, cancel := context.WithCancel(t.Context())
			w := httptest.NewRecorder()
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", target, nil))
			}()
			synctest.Wait()
			logger.Info("hello", "a", 1)
			time.Sleep(time.Second)
			cancel()
			<-done
			if got := w.Body.String(); w.Code != 200 || !w.Flushed || !strings.Contains(got, want) || want == "" && got != "" {
				t.Errorf("%s: %d %q", target, w.Code, got)
			}
		}
	})
}
