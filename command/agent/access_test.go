package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
)

// managementSecret is that of the token that test servers begin with, agentSecret that of the agent's own.
const (
	managementSecret = "e95b599e-166e-7d80-08ad-aee76e7ddf19"
	agentSecret      = "aaaaaaaa-166e-7d80-08ad-aee76e7ddf19"
	unknownSecret    = "11111111-2222-3333-4444-555555555555"
	gossipKey        = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s="
)

// logBuffer keeps a log.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A guarded agent is a server in this process with access control, where what no rule mentions is refused.
type guardedAgent struct {
	*Agent
	t   testing.TB
	log *logBuffer // at trace level
	dir string     // its data folder

	mu     sync.Mutex
	tokens map[string]string // secrets by rules
}

const serverSettings = `
node_name = "own-node"
bind_addr = "127.0.0.1"
server = true
encrypt = "` + gossipKey + `"
ui_config { enabled = true }
connect { enabled = true }
performance { raft_multiplier = 1 }
limits { request_limits { mode = "disabled" } }
acl { enabled = true
  default_policy = "deny"
  tokens { initial_management = "` + managementSecret + `"
    agent = "` + agentSecret + `" } }
`

// runServer starts a server that ends with the test.
func runServer(t testing.TB, settings ...string) *guardedAgent {
	t.Helper()
	return startServer(t, true, settings...)
}

// runServerWith starts one that reads files, too.
func runServerWith(t testing.TB, paths []string, settings ...string) *guardedAgent {
	t.Helper()
	return startServerWith(t, true, paths, settings...)
}

// startServer keeps everything in memory or, unless dev is set, in g.dir.
func startServer(t testing.TB, dev bool, settings ...string) *guardedAgent {
	t.Helper()
	return startServerWith(t, dev, nil, settings...)
}

func startServerWith(t testing.TB, dev bool, paths []string, settings ...string) *guardedAgent {
	t.Helper()
	g := &guardedAgent{t: t, log: &logBuffer{}, dir: filepath.Join(t.TempDir(), "data"), tokens: map[string]string{}}
	ports := freePorts(t, 7)
	src := sources(append([]string{serverSettings, fmt.Sprintf(`ports { http = %d
 dns = %d
 grpc = %d
 grpc_tls = %d
 server = %d
 serf_lan = %d
 serf_wan = %d }`, ports[0], ports[1], ports[2], ports[3], ports[4], ports[5], ports[6])}, settings...)...)
	src.Paths = paths
	if src.Dev = dev; !dev {
		src.Fragments = append(src.Fragments, fmt.Sprintf("bootstrap = true\ndata_dir = %q", g.dir))
	}
	s := load(t, src)
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckStart(); err != nil {
		t.Fatal(err)
	}
	var err error
	g.Agent, err = newAgent(src, s, hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "agent", Level: hclog.Trace, Output: g.log}))
	if err != nil {
		t.Fatal(err)
	}
	g.lookEvery = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	g.eventually("the server is ready", func() bool {
		code, body := g.do("GET", "/v1/catalog/nodes", managementSecret, "")
		_, roots := g.do("GET", "/v1/connect/ca/roots", "", "")
		return code == 200 && strings.Contains(body, "own-node") && strings.Contains(roots, "BEGIN CERTIFICATE")
	})
	g.must("PUT", "/v1/acl/token", `{"SecretID": "`+agentSecret+`", "NodeIdentities": [{"NodeName": "own-node", "Datacenter": "dc1"}]}`)
	return g
}

func (g *guardedAgent) eventually(what string, ok func() bool) {
	g.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("not in time: %s\n%s", what, g.log)
		}
	}
}

// do makes a request of the agent with a token, or none.
func (g *guardedAgent) do(method, target, token, body string) (int, string) {
	w := g.answer(method, target, token, body)
	return w.Code, w.Body.String()
}

func (g *guardedAgent) answer(method, target, token, body string) *httptest.ResponseRecorder {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:999"
	if token != "" {
		r.Header.Set("X-Consul-Token", token)
	}
	w := httptest.NewRecorder()
	if strings.HasPrefix(target, "/v1/agent/monitor") || strings.HasPrefix(target, "/v1/agent/metrics/stream") {
		g.http.ServeHTTP(&curtailed{w, cancel}, r)
	} else {
		g.http.ServeHTTP(w, r)
	}
	return w
}

// An curtailed ends an answer that has no end, a little after it began.
type curtailed struct {
	*httptest.ResponseRecorder
	end context.CancelFunc
}

func (w *curtailed) WriteHeader(code int) {
	w.ResponseRecorder.WriteHeader(code)
	time.AfterFunc(30*time.Millisecond, w.end)
}

// must makes a request with every right, and returns the answer.
func (g *guardedAgent) must(method, target, body string) string {
	g.t.Helper()
	code, answer := g.do(method, target, managementSecret, body)
	if code != http.StatusOK {
		g.t.Fatalf("%s %s: %d %s", method, target, code, answer)
	}
	return answer
}

func field(t testing.TB, answer, name string) string {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(answer), &v); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
	s, _ := v[name].(string)
	return s
}

// token returns the secret of a token with these rules.
func (g *guardedAgent) token(rules string) string {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if secret := g.tokens[rules]; secret != "" {
		return secret
	}
	body := map[string]any{"Description": "of a test"}
	if rules != "" {
		policy, _ := json.Marshal(map[string]any{"Name": fmt.Sprintf("test-%d", len(g.tokens)), "Rules": rules})
		body["Policies"] = []any{map[string]any{"ID": field(g.t, g.must("PUT", "/v1/acl/policy", string(policy)), "ID")}}
	}
	data, _ := json.Marshal(body)
	g.tokens[rules] = field(g.t, g.must("PUT", "/v1/acl/token", string(data)), "SecretID")
	return g.tokens[rules]
}

// A need is a right that a call asks for.
type need struct {
	resource acl.Resource
	access   acl.Access
	name     string // empty for resources without names
	prefix   bool   // every name that begins with name
}

func may(r acl.Resource, a acl.Access, name string) need { return need{r, a, name, false} }

// scalar are the resources without names.
var scalar = []acl.Resource{acl.ACL, acl.Operator, acl.Keyring, acl.Mesh, acl.Peering}

// named are those with names; intentions are part of the rules on services.
var named = []acl.Resource{acl.Agent, acl.Event, acl.Identity, acl.Key, acl.Node, acl.Query, acl.Service, acl.Session}

// A rulesText is a set of rules in the making: levels by what they are about.
type rulesText map[need]string

func (r rulesText) set(n need, level string) { r[need{n.resource, "", n.name, n.prefix}] = level }

func (r rulesText) String() string {
	var lines []string
	intentions := func(of need) string {
		if level := r[need{acl.Inten, "", of.name, of.prefix}]; level != "" {
			return fmt.Sprintf("\n  intentions = %q", level)
		}
		return ""
	}
	for n, level := range r {
		kind := string(n.resource)
		if n.prefix {
			kind += "_prefix"
		}
		switch {
		case slices.Contains(scalar, n.resource):
			lines = append(lines, fmt.Sprintf("%s = %q", n.resource, level))
		case n.resource == acl.Inten:
			of := need{acl.Service, "", n.name, n.prefix}
			if r[of] == "" {
				kind := strings.Replace(kind, "intention", "service", 1)
				lines = append(lines, fmt.Sprintf("%s %q { policy = \"deny\"%s }", kind, n.name, intentions(of)))
			}
		case n.resource == acl.Service:
			lines = append(lines, fmt.Sprintf("%s %q { policy = %q%s }", kind, n.name, level, intentions(n)))
		default:
			lines = append(lines, fmt.Sprintf("%s %q { policy = %q }", kind, n.name, level))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// exactly returns rules that grant these rights, at most of this level, and no other.
func exactly(needs []need, most acl.Access) string {
	r := rulesText{}
	rank := map[string]int{"": 0, "read": 1, "list": 2, "write": 3}
	for _, n := range needs {
		level := n.access
		if rank[string(level)] > rank[string(most)] {
			level = most
		}
		if had := r[need{n.resource, "", n.name, n.prefix}]; rank[had] < rank[string(level)] {
			r.set(n, string(level))
		}
	}
	return r.String()
}

// allBut returns rules that grant everything but these rights.
func allBut(needs []need) string {
	r := rulesText{}
	for _, res := range scalar {
		r.set(need{resource: res}, "write")
	}
	for _, res := range named {
		r.set(need{resource: res, prefix: true}, "write")
	}
	r.set(need{resource: acl.Inten, prefix: true}, "write")
	for _, n := range needs {
		level := "deny"
		if n.access != acl.Read && !n.prefix {
			level = "read"
		}
		r.set(n, level)
		if n.resource == acl.Service && r[need{acl.Inten, "", n.name, n.prefix}] == "" {
			r.set(need{acl.Inten, "", n.name, n.prefix}, "write") // else that follows
		}
		if n.resource == acl.Inten && r[need{acl.Service, "", n.name, n.prefix}] == "" {
			r.set(need{acl.Service, "", n.name, n.prefix}, "write")
		}
	}
	return r.String()
}

// A caller is a token to try, and whether it has the rights that a call needs.
type caller struct {
	who    string
	secret string
	may    bool
	more   bool // it has other rights
	in     bool // it is answered, without what it may not see
}

// callers returns the tokens to try a call with, those without the right between two with every right.
func (g *guardedAgent) callers(c *matrixCall) []caller {
	management := caller{who: "management", secret: managementSecret, may: true, more: true}
	all := []caller{management}
	open := len(c.needs) == 0
	refused := []caller{{who: "nobody", may: open}, {who: "a token without rights", secret: g.token(""), may: open}}
	if open {
		return append(all, refused...)
	}
	reads := func(list []need) bool {
		return !slices.ContainsFunc(list, func(n need) bool { return n.access != acl.Read })
	}
	sets := [][]need{c.needs}
	if c.any {
		sets = nil
		for _, n := range c.needs {
			sets = append(sets, []need{n})
		}
		refused = append(refused, caller{who: "a token with every other right", secret: g.token(allBut(slices.Concat(c.needs, c.plus))), more: true})
	} else {
		for i, n := range c.needs {
			refused = append(refused, caller{
				who:    fmt.Sprintf("a token with every right but %s:%s on %q", n.resource, n.access, n.name),
				secret: g.token(allBut(append([]need{n}, c.plus...))), more: true, in: c.first > 0 && i >= c.first,
			})
		}
	}
	for _, set := range sets {
		k := caller{who: "a token that may read it", secret: g.token(exactly(set, acl.Read)), may: reads(set)}
		if k.may {
			all = append(all, k)
		} else {
			refused = append(refused, k)
		}
		all = append(all, caller{who: "a token with just the right", secret: g.token(exactly(set, acl.Write)), may: true})
	}
	return append(append(all, refused...), management)
}

// leaks returns the texts of an answer that stand in objects of the fixture and not in the
// request.
func leaks(answer, request string) (found []string) {
	for rest := answer; ; {
		i := strings.Index(rest, "zqx-")
		if i < 0 {
			return found
		}
		end := i
		for end < len(rest) && (rest[end] == '-' || rest[end] >= 'a' && rest[end] <= 'z') {
			end++
		}
		word := rest[i:end]
		rest = rest[end:]
		if !strings.Contains(request, word) && !slices.Contains(found, word) {
			found = append(found, word)
		}
	}
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	return &fixture{jwtKey: string(text)}
}
