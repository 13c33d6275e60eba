package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/server/transport"
)

// Writing what is there already changes nothing: whoever writes the same over and over does not fill the log of changes
// (spec/threats.md, class 10).
func TestThreat10EqualWritesChangeNothing(t *testing.T) {
	g := runServer(t)
	f := newFixture(t)
	f.put(g)
	g.eventually("the gateway and its route are told how they are", func() bool {
		return strings.Contains(g.must("GET", "/v1/config/api-gateway/zqx-agw", ""), "listener has no route conflict") && strings.Contains(g.must("GET", "/v1/config/http-route/zqx-route", ""), "successfully bound")
	})
	again := []step{
		{"PUT", "/v1/acl/policy/" + f.policy, `{"Name": "zqx-policy", "Rules": "key \"zqx-ruled\" { policy = \"read\" }"}`},
		{"PUT", "/v1/acl/role/" + f.role, `{"Name": "zqx-role", "Policies": [{"Name": "zqx-policy"}]}`},
		{"PUT", "/v1/acl/token/" + f.token, `{"Description": "zqx-token", "Policies": [{"Name": "zqx-policy"}]}`},
		{"PUT", "/v1/acl/auth-method/zqx-method", `{"Type": "jwt", "Config": {"JWTValidationPubKeys": [` + f.jwtKey + `], "BoundIssuer": "zqx-iss"}}`},
		{"PUT", "/v1/acl/binding-rule/" + f.rule, `{"BindType": "service", "BindName": "zqx-bound"}`},
		{"PUT", "/v1/connect/intentions/exact?source=zqx-src&destination=zqx-svc", `{"Action": "allow", "Description": "zqx-reason"}`},
		{"PUT", "/v1/catalog/register", `{"Node": "zqx-node", "Address": "10.9.9.9", "NodeMeta": {"k": "zqx-nodemeta"}}`},
		{"PUT", "/v1/catalog/register", `{"Node": "zqx-node", "Address": "10.9.9.9", "NodeMeta": {"k": "zqx-nodemeta"}, "Service": {"ID": "zqx-id", "Service": "zqx-svc", "Port": 80, "Tags": ["zqx-tag"], "Meta": {"k": "zqx-svcmeta"}}}`},
	}
	for _, kind := range []string{"proxy-defaults", "mesh", "service-defaults", "service-resolver", "service-splitter", "service-router", "service-intentions", "exported-services", "terminating-gateway", "ingress-gateway", "api-gateway", "http-route", "jwt-provider"} {
		var entries []map[string]any
		if err := json.Unmarshal([]byte(g.must("GET", "/v1/config/"+kind, "")), &entries); err != nil || len(entries) == 0 {
			t.Fatalf("%s: %v", kind, err)
		}
		for _, e := range entries {
			data, _ := json.Marshal(e)
			again = append(again, step{"PUT", "/v1/config", string(data)})
		}
	}
	for _, path := range []string{"/v1/connect/ca/configuration", "/v1/operator/autopilot/configuration"} {
		again = append(again, step{"PUT", path, g.must("GET", path, "")})
	}
	for _, s := range again {
		g.must(s.method, s.target, s.body) // brings it into its form
		before := g.snapshot()
		for range 3 {
			g.must(s.method, s.target, s.body)
		}
		for id, o := range g.snapshot() {
			if o.data != before[id].data {
				t.Errorf("%s %s changed %s:\n%q\n%q", s.method, s.target, id, before[id].data, o.data)
			}
		}
	}
}

// heap returns how much is in use.
func heap() uint64 {
	var m runtime.MemStats
	for range 3 { // what lies in pools takes two
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// A reader without end, that counts what is taken.
type endless struct{ taken int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.taken += int64(len(p))
	return len(p), nil
}

// What one caller sends takes no more than there is room for (spec/threats.md, class 11).
func TestThreat11RequestsAreBounded(t *testing.T) {
	g := runServer(t)
	put := func(method, target string, size int64) (int, int64) {
		body := &endless{}
		r := httptest.NewRequestWithContext(t.Context(), method, target, body)
		r.ContentLength = size
		r.RemoteAddr = "127.0.0.1:999"
		r.Header.Set("X-Consul-Token", managementSecret)
		w := httptest.NewRecorder()
		g.http.ServeHTTP(w, r)
		return w.Code, body.taken
	}
	before := heap()
	for _, target := range []string{"/v1/kv/a", "/v1/txn", "/v1/config", "/v1/agent/service/register", "/v1/catalog/register", "/v1/acl/policy", "/v1/event/fire/x", "/v1/explain", "/v1/connect/ca/configuration"} {
		for _, size := range []int64{1 << 50, -1} {
			if code, taken := put("PUT", target, size); code < 400 || taken > 80<<20 {
				t.Errorf("%s with a body of %d bytes: %d, %d bytes read", target, size, code, taken)
			}
		}
	}
	if grown := int64(heap()) - int64(before); grown > 64<<20 {
		t.Errorf("%d MiB are kept", grown>>20)
	}

	n := 10000
	if testing.Short() {
		n = 2000
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g.must("PUT", "/v1/kv/a", "x")
	index := g.answer("GET", "/v1/kv/a", managementSecret, "").Header().Get("X-Consul-Index")
	before, routines := heap(), runtime.NumGoroutine()
	var wg sync.WaitGroup
	codes := make([]int, n)
	for i := range n {
		wg.Go(func() {
			r := httptest.NewRequestWithContext(ctx, "GET", "/v1/kv/a?wait=5m&index="+index, nil)
			r.Header.Set("X-Consul-Token", managementSecret)
			w := httptest.NewRecorder()
			g.http.ServeHTTP(w, r)
			codes[i] = w.Code
		})
	}
	dispatcher := g.server.Caller().(*transport.Dispatcher)
	g.eventually("all wait", func() bool { return dispatcher.Blocked() >= n })
	each := int64(0)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) { // what they took on their way is given back
		if each = (int64(heap()) - int64(before)) / int64(n); each <= 40<<10 || time.Now().After(end) {
			break
		}
	}
	t.Logf("a blocking read takes %d bytes", each)
	if each > 40<<10 {
		t.Errorf("a blocking read takes %d bytes", each)
	}
	g.must("PUT", "/v1/kv/a", "y")
	wg.Wait()
	for i, code := range codes {
		if code != 200 {
			t.Fatalf("read %d: %d", i, code)
		}
	}
	g.eventually("nothing is left of them", func() bool { return runtime.NumGoroutine() < routines+50 })
}

// Paths are decoded once, values are never run by a browser, and rights are asked for on the key that is meant
// (spec/threats.md, class 12).
func TestThreat12PathsAndValuesAreTakenAsTheyAre(t *testing.T) {
	g := runServer(t)
	below := g.token("key_prefix \"mine/\" { policy = \"write\" }")
	g.must("PUT", "/v1/kv/other", "zqx-other")
	for _, p := range []string{"/v1/kv/mine/..%2fother", "/v1/kv/mine%2f..%2fother", "/v1/kv/mine/%2e%2e/other", "/v1/kv/mine/%252e%252e%252fother", "/v1/kv/mine/../other", "/v1/kv/mine/..%2f..%2facl%2ftokens", "/v1/kv/mine//../other"} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			w := g.answer(method, p, below, "<script>")
			if strings.Contains(w.Body.String(), "zqx-other") || strings.Contains(w.Body.String(), "SecretID") {
				t.Errorf("%s %s: %d %s", method, p, w.Code, w.Body)
			}
			if w.Code == 301 || w.Code == 307 {
				// Whoever follows is asked again.
				to := w.Header().Get("Location")
				if code, body := g.do(method, to, below, "<script>"); code != 403 && !strings.HasPrefix(to, "/v1/kv/mine") {
					t.Errorf("%s %s leads to %s: %d %s", method, p, to, code, body)
				}
			}
		}
	}
	if got := g.must("GET", "/v1/kv/other?raw", ""); got != "zqx-other" {
		t.Errorf("the other key has become %q", got)
	}
	for _, key := range g.keys() {
		if key != "other" && !strings.HasPrefix(key, "mine/") {
			t.Errorf("there is a key %q", key)
		}
	}
	g.must("PUT", "/v1/kv/page", "<script>alert(1)</script>")
	w := g.answer("GET", "/v1/kv/page?raw", managementSecret, "")
	if h := w.Header(); h.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(h.Get("Content-Type"), "text/plain") || !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("a raw value comes with %v", h)
	}
	for _, p := range []string{"/v1/catalog/service/%3Cscript%3Ealert(1)%3C%2Fscript%3E", "/v1/%3Cscript%3E", "/%3Cscript%3E", "/ui/..%2f..%2f..%2fetc%2fpasswd", "/ui/%2e%2e/%2e%2e/etc/passwd", "/debug/pprof/%3Cscript%3E"} {
		w := g.answer("GET", p, managementSecret, "")
		kind, body := w.Header().Get("Content-Type"), w.Body.String()
		if strings.Contains(body, "root:") || strings.Contains(body, "<script>alert") && strings.Contains(kind, "html") || strings.Contains(body, "<script>") && kind == "" {
			t.Errorf("%s: %d %s %s", p, w.Code, kind, body)
		}
	}
}

// keys lists the names of keys.
func (g *guardedAgent) keys() (names []string) {
	g.t.Helper()
	_, body := g.do("GET", "/v1/kv/?keys", managementSecret, "")
	if err := json.Unmarshal([]byte(body), &names); err != nil {
		g.t.Fatalf("%v: %s", err, body)
	}
	return names
}

// What the API is given names no program to run and no file to read on the machine, whoever asks (spec/threats.md,
// classes 13 and 20).
func TestThreat13ProgramsAndFilesAreNamedByTheConfigurationAlone(t *testing.T) {
	g := runServer(t)
	for _, s := range []step{
		{"PUT", "/v1/agent/check/register", `{"ID": "x", "Name": "x", "Args": ["/bin/true"], "Interval": "1s"}`},
		{"PUT", "/v1/agent/check/register", `{"ID": "x", "Name": "x", "Args": ["/bin/true"], "DockerContainerID": "c", "Interval": "1s"}`},
		{"PUT", "/v1/agent/service/register", `{"Name": "x", "Check": {"Args": ["/bin/true"], "Interval": "1s"}}`},
		{"PUT", "/v1/agent/service/register", `{"Name": "x", "Checks": [{"TTL": "1s"}, {"Args": ["/bin/true"], "Interval": "1s"}]}`},
		{"PUT", "/v1/agent/service/register", `{"Name": "x", "Connect": {"SidecarService": {"Check": {"Args": ["/bin/true"], "Interval": "1s"}}}}`},
		{"PUT", "/v1/connect/ca/configuration", `{"Provider": "plugin:x", "Config": {"plugin": {"path": "/bin/true", "sha256": "00"}}}`},
		{"PUT", "/v1/connect/ca/configuration", `{"Provider": "vault", "Config": {"Address": "http://127.0.0.1:1", "Token": "x", "RootPKIPath": "a", "IntermediatePKIPath": "b", "CAFile": "/etc/passwd"}}`},
		{"PUT", "/v1/connect/ca/configuration", `{"Provider": "vault", "Config": {"Address": "http://127.0.0.1:1", "Token": "x", "RootPKIPath": "a", "IntermediatePKIPath": "b", "CertFile": "/etc/passwd", "KeyFile": "/etc/passwd"}}`},
	} {
		code, body := g.do(s.method, s.target, managementSecret, s.body)
		if code < 400 || strings.Contains(body, "root:") {
			t.Errorf("%s %s: %d %s", s.target, s.body, code, body)
		}
	}
	if found := g.local.Services(); len(found) > 0 {
		t.Errorf("registered: %v", found)
	}
	for _, c := range g.local.Checks() {
		if strings.Contains(c.Record.CheckID, "x") {
			t.Errorf("registered: %v", c.Record)
		}
	}
	if g.jobs != nil {
		t.Error("commands of others are run unless that is turned off")
	}
}

// Each request stands for itself: the token of one says nothing about the next on the same connection
// (spec/threats.md, class 20). Profiles take a right.
func TestThreat20NoTokenStaysWithAConnection(t *testing.T) {
	g := runServer(t, "enable_debug = false")
	g.must("PUT", "/v1/kv/a", "zqx-value")
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", g.current().Ports.HTTP))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReader(conn)
	ask := func(header, value, path string) (int, string) {
		req, err := http.NewRequest("GET", "http://agent"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			req.Header.Set(header, value)
		}
		if err := req.Write(conn); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for range 3 {
		for _, with := range [][2]string{{"X-Consul-Token", managementSecret}, {"Authorization", "Bearer " + managementSecret}} {
			if code, body := ask(with[0], with[1], "/v1/kv/a?raw"); code != 200 || body != "zqx-value" {
				t.Fatalf("with %s: %d %s", with[0], code, body)
			}
			if code, body := ask("", "", "/v1/kv/a?raw"); code != 403 || strings.Contains(body, "zqx-value") {
				t.Errorf("without a token, after %s: %d %s", with[0], code, body)
			}
			if code, _ := ask("", "", "/v1/agent/connect/ca/leaf/web"); code != 403 {
				t.Errorf("a certificate without a token: %d", code)
			}
		}
	}
	for _, p := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline"} {
		all := slices.Concat(opRead, one(may(acl.Agent, acl.Read, "own-node")))
		for _, token := range []string{"", unknownSecret, g.token(""), g.token(allBut(all[:1]))} {
			if code, body := g.do("GET", p, token, ""); code != 403 || len(body) > 500 {
				t.Errorf("%s: %d %.200s", p, code, body)
			}
		}
		if code, body := g.do("GET", p, g.token(exactly(opRead, acl.Read)), ""); code != 200 {
			t.Errorf("%s with the right: %d %.200s", p, code, body)
		}
	}
}

// A token that is deleted while a read waits with it, and one whose rights are taken away, see nothing when the read
// returns (spec/threats.md, classes 5 and 7).
func TestThreat07RightsAreLookedAtWhenAReadReturns(t *testing.T) {
	g := runServer(t)
	f := newFixture(t)
	f.put(g)
	round := 0
	// refused tells how a waiting read of a token is answered after the token went, when it changes what is read; nil if
	// something else changed before.
	refused := func(path string) *httptest.ResponseRecorder {
		round++
		created := g.must("PUT", "/v1/acl/token", `{"Policies": [{"Name": "global-management"}]}`)
		secret, accessor := field(t, created, "SecretID"), field(t, created, "AccessorID")
		index := g.answer("GET", path, secret, "").Header().Get("X-Consul-Index")
		done := make(chan *httptest.ResponseRecorder)
		go func() { done <- g.answer("GET", withQuery(path, "wait=40s&index="+index), secret, "") }()
		time.Sleep(20 * time.Millisecond) // it waits, mostly
		g.must("DELETE", "/v1/acl/token/"+accessor, "")
		gone := indexOf(t, g.answer("GET", "/v1/acl/tokens", managementSecret, ""))
		// Something of each changes.
		g.must("PUT", "/v1/kv/zqx-key", fmt.Sprintf("zqx-%d", round))
		g.must("PUT", "/v1/catalog/register", fmt.Sprintf(`{"Node": "zqx-more%d", "Address": "10.1.1.1", "Service": {"Service": "zqx-svc", "Port": 1}}`, round))
		g.must("PUT", "/v1/config", fmt.Sprintf(`{"Kind": "service-defaults", "Name": "zqx-svc", "Protocol": "http", "Meta": {"k": "zqx-%d"}}`, round))
		g.must("PUT", "/v1/connect/intentions/exact?source=x"+fmt.Sprint(round)+"&destination=zqx-svc", `{"Action": "deny"}`)
		g.must("PUT", "/v1/session/create", `{"Node": "zqx-node", "NodeChecks": []}`)
		w := <-done
		if w.Code == 200 && indexOf(t, w) < gone {
			return nil
		}
		return w
	}
	for _, path := range []string{"/v1/kv/zqx-key?raw", "/v1/kv/?recurse", "/v1/health/service/zqx-svc", "/v1/catalog/nodes", "/v1/config/service-defaults/zqx-svc", "/v1/internal/ui/services", "/v1/connect/intentions", "/v1/session/list"} {
		w := refused(path)
		for range 100 {
			if w != nil {
				break
			}
			w = refused(path)
		}
		if w == nil {
			t.Fatalf("%s changes all the time", path)
		}
		if w.Code != 403 || len(leaks(w.Body.String(), "")) > 0 {
			t.Errorf("%s with a token that is gone: %d %s", path, w.Code, w.Body)
		}
	}
}

// indexOf returns the index of an answer.
func indexOf(t *testing.T, w *httptest.ResponseRecorder) uint64 {
	t.Helper()
	index, err := strconv.ParseUint(w.Header().Get("X-Consul-Index"), 10, 64)
	if err != nil {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	return index
}
