package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// An apiCall is a request of any shape.
type apiCall struct {
	method, path, query, body string
	header                    [2]string
}

func (c *apiCall) String() string {
	return fmt.Sprintf("%s %q?%s %v %.2000q", c.method, c.path, c.query, c.header, c.body)
}

// A requester makes random requests of every route: such as calls are made of, with some of it spoilt.
type requester struct {
	g      *guardedAgent
	routes []string // as "PUT /v1/kv/", from the table of the server
	seeds  map[string][]apiCall
	keys   []string // of objects in bodies
	texts  []string // in bodies, in the order in which they first stand there: some are others each time
}

// moreSeeds are bodies with what the calls of the matrix leave out.
var moreSeeds = map[string][]string{
	"PUT /v1/agent/service/register": {
		`{"ID": "r1", "Name": "random", "Port": 8080, "SocketPath": "", "Tags": ["a", "b"], "Address": "127.0.0.1", "TaggedAddresses": {"lan": {"Address": "127.0.0.1", "Port": 1}, "wan_ipv6": {"Address": "::1", "Port": 2}},
		  "Meta": {"k": "v"}, "Weights": {"Passing": 3, "Warning": 1}, "EnableTagOverride": true, "Locality": {"Region": "r", "Zone": "z"}, "Token": "x",
		  "Check": {"TTL": "1h", "Status": "warning", "SuccessBeforePassing": 2}, "Checks": [{"HTTP": "http://127.0.0.1:1/", "Method": "POST", "Header": {"A": ["b"]}, "Interval": "1h", "Timeout": "1s", "DeregisterCriticalServiceAfter": "90m"},
		  {"TCP": "127.0.0.1:1", "Interval": "1h"}, {"UDP": "127.0.0.1:1", "Interval": "1h"}, {"GRPC": "127.0.0.1:1/x", "GRPCUseTLS": true, "Interval": "1h"}, {"H2PING": "127.0.0.1:1", "Interval": "1h"}, {"AliasService": "zqx-localid"}],
		  "Connect": {"SidecarService": {"Port": 0, "Proxy": {"Upstreams": [{"DestinationName": "zqx-svc", "LocalBindPort": 1234, "Config": {"a": {"b": [1]}}}], "Config": {"protocol": "http"}, "MeshGateway": {"Mode": "local"}, "Expose": {"Checks": true, "Paths": [{"Path": "/h", "ListenerPort": 21500, "LocalPathPort": 80, "Protocol": "http2"}]}}}}}`,
		`{"Name": "gw", "Kind": "mesh-gateway", "Port": 443, "Proxy": {"Config": {"x": 1}}}`,
		`{"Name": "p", "Kind": "connect-proxy", "Port": 1, "Proxy": {"destination_service_name": "zqx-svc", "transparent_proxy": {"OutboundListenerPort": 15001}, "Mode": "transparent", "access_logs": {"Enabled": true}, "EnvoyExtensions": [{"Name": "builtin/lua", "Arguments": {"Script": "x"}}]}}`,
	},
	"PUT /v1/agent/check/register": {
		`{"ID": "c1", "Name": "c1", "ServiceID": "zqx-localid", "TTL": "1h", "Notes": "n", "Status": "passing", "OutputMaxSize": 10}`,
		`{"Name": "c2", "HTTP": "http://127.0.0.1:1", "tls_skip_verify": true, "Interval": "1h", "FailuresBeforeWarning": 1, "FailuresBeforeCritical": 2}`,
		`{"Name": "c3", "OSService": "x", "Interval": "1h"}`, `{"Name": "c4", "AliasNode": "zqx-node", "AliasService": "zqx-id"}`,
	},
	"PUT /v1/catalog/register": {
		`{"Datacenter": "dc1", "ID": "40e4a748-2192-161a-0510-9bf59fe950b5", "Node": "random-node", "Address": "10.1.2.3", "TaggedAddresses": {"lan": "10.1.2.3"}, "NodeMeta": {"a": "b"}, "Locality": {"Region": "r"},
		  "Service": {"ID": "random-id", "Service": "random", "Tags": ["t"], "Address": "10.1.2.4", "TaggedAddresses": {"wan": {"Address": "1.2.3.4", "Port": 9}}, "Meta": {"k": "v"}, "Port": 80, "Weights": {"Passing": 1, "Warning": 1}, "Kind": "", "Proxy": {}, "Connect": {"Native": true}},
		  "Check": {"Node": "random-node", "CheckID": "x", "Name": "n", "Status": "passing", "ServiceID": "random-id", "Definition": {"TCP": "127.0.0.1:1", "Interval": "5s", "Timeout": 1000}}, "Checks": [{"Name": "o", "Type": "session", "Definition": {"SessionName": "s"}}]}`,
	},
	"PUT /v1/session/create": {`{"Node": "zqx-node", "Name": "n", "LockDelay": "15s", "TTL": "1h", "Behavior": "delete", "NodeChecks": ["zqx-nodecheck"], "ServiceChecks": [{"ID": "zqx-svccheck"}]}`},
	"POST /v1/query": {
		`{"Name": "geo-", "Session": "", "Token": "", "Template": {"Type": "name_prefix_match", "Regexp": "^geo-(.*?)-([^\\-]+?)$", "RemoveEmptyTags": true}, "Service": {"Service": "${match(1)}", "Failover": {"NearestN": 3, "Datacenters": ["dc2"], "Targets": [{"Peer": "p"}]},
		  "OnlyPassing": true, "Near": "_agent", "Tags": ["${match(2)}", "!b"], "NodeMeta": {"a": "${agent.segment}"}, "ServiceMeta": {"k": "v"}, "Connect": true, "IgnoreCheckIDs": ["x"]}, "DNS": {"TTL": "10s"}}`,
	},
	"PUT /v1/config": {
		`{"Kind": "service-router", "Name": "zqx-svc", "Routes": [{"Match": {"HTTP": {"PathRegex": "^/a(b", "Header": [{"Name": "x", "Regex": "y", "Invert": true}], "QueryParam": [{"Name": "q", "Exact": "1"}], "Methods": ["GET"]}}, "Destination": {"Service": "zqx-src", "PrefixRewrite": "/", "RequestTimeout": "10s", "NumRetries": 3, "RetryOnStatusCodes": [503], "RequestHeaders": {"Add": {"a": "b"}}}}]}`,
		`{"Kind": "service-resolver", "Name": "zqx-src", "ConnectTimeout": "1s", "DefaultSubset": "v1", "Subsets": {"v1": {"Filter": "Service.Meta.v == 1", "OnlyPassing": true}}, "Failover": {"*": {"Datacenters": ["dc2"]}, "v1": {"Targets": [{"Peer": "zqx-peer"}]}}, "LoadBalancer": {"Policy": "ring_hash", "RingHashConfig": {"MinimumRingSize": 1}, "HashPolicies": [{"Field": "header", "FieldValue": "x"}]}}`,
		`{"Kind": "service-intentions", "Name": "zqx-src", "Sources": [{"Name": "zqx-svc", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/", "Header": [{"Name": "a", "Present": true}], "Methods": ["GET"]}, "JWT": {"Providers": [{"Name": "zqx-jwt", "VerifyClaims": [{"Path": ["a"], "Value": "b"}]}]}}]}]}`,
		`{"Kind": "service-defaults", "Name": "zqx-src", "Protocol": "grpc", "MeshGateway": {"Mode": "remote"}, "UpstreamConfig": {"Defaults": {"ConnectTimeoutMs": 5, "Limits": {"MaxConnections": 1}, "PassiveHealthCheck": {"Interval": "1s", "MaxFailures": 2}}, "Overrides": [{"Name": "zqx-svc", "Protocol": "http"}]}, "MaxInboundConnections": 7, "Destination": {"Addresses": ["x.test"], "Port": 80}, "RateLimits": {"InstanceLevel": {"RequestsPerSecond": 1, "Routes": [{"PathPrefix": "/", "RequestsPerSecond": 2}]}}}`,
		`{"Kind": "inline-certificate", "Name": "zqx-cert", "Certificate": "x", "PrivateKey": "y"}`, `{"Kind": "tcp-route", "Name": "zqx-tcp", "Parents": [{"Kind": "api-gateway", "Name": "zqx-agw"}], "Services": [{"Name": "zqx-svc"}]}`,
		`{"Kind": "sameness-group", "Name": "x", "Members": [{"Peer": "p"}]}`, `{"Kind": "control-plane-request-limit", "Name": "x", "Mode": "permissive", "ReadRate": 1}`,
	},
	"PUT /v1/acl/token":  {`{"Description": "d", "Local": true, "ExpirationTTL": "1h", "Policies": [{"Name": "zqx-policy"}], "Roles": [{"Name": "zqx-role"}], "ServiceIdentities": [{"ServiceName": "a", "Datacenters": ["dc1"]}], "NodeIdentities": [{"NodeName": "n", "Datacenter": "dc1"}], "TemplatedPolicies": [{"TemplateName": "builtin/service", "TemplateVariables": {"Name": "x"}}]}`},
	"PUT /v1/acl/policy": {`{"Name": "rp", "Description": "d", "Rules": "service_prefix \"\" { policy = \"write\" intentions = \"read\" } operator = \"read\"", "Datacenters": ["dc1"]}`},
}

// values spoil a parameter, a name in a path or a member of a body.
var values = []any{
	nil, true, false, 0, 1, -1, 1.5, 1e300, 65536, 1 << 31, uint64(1<<64 - 1), json.Number("1" + strings.Repeat("0", 400)), "", " ", "0", "-1", "x", "*", "..", "a/b", "%2F", "\x00", "a\nb", "a\r\nX-Injected: 1", "\xff\xfe", "\ufffd",
	"ünï", "<script>", `"`, "'; --", "${match(0)}", "{{.X}}", "1ns", "-5s", "1h", "9999999h", "99999999999999999999", "127.0.0.1", "::1", "0.0.0.0", "[::]", "dc1", "dc2", "any", "zqx-svc", "zqx-id", "zqx-node", "zqx-key", "zqx-localid", "zqx-peer", "builtin/service",
	"00000000-0000-0000-0000-000000000000", "40e4a748-2192-161a-0510-9bf59fe950b5", "e30=", strings.Repeat("a", 200), strings.Repeat("x", 5000), strings.Repeat("é", 300), strings.Repeat("(", 3000), strings.Repeat("not ", 3000),
	`Service.Meta.k == "v"`, `ServiceName matches "("`, "a is empty", `Tags contains`, []any{}, []any{nil}, []any{1, "a", nil}, map[string]any{}, map[string]any{"": nil}, map[string]any{"a": map[string]any{"b": []any{}}},
}

var params = []string{
	"dc", "datacenter", "stale", "consistent", "leader", "max_stale", "cached", "index", "wait", "filter", "near", "node-meta", "pretty", "ns", "partition", "tag", "passing", "peer", "sg", "merge-central-config", "replace-existing-checks",
	"enable", "reason", "note", "hash", "format", "wan", "segment", "prune", "recurse", "keys", "separator", "raw", "cas", "flags", "acquire", "release", "name", "node", "service", "limit", "connect", "by", "source", "destination", "source-type",
	"kind", "id", "address", "relay-factor", "local-only", "loglevel", "logjson", "expanded", "policy", "role", "authmethod", "compile-dc", "expand", "from", "to", "path", "method", "header", "gateway", "%zz", "a;b",
}

func newRequester(t testing.TB) *requester {
	g := runServer(t)
	f := newFixture(t)
	f.put(g)
	q := &requester{g: g, seeds: map[string][]apiCall{}}
	for _, e := range g.http.Endpoints() {
		methods, path, _ := strings.Cut(e, " ")
		for m := range strings.SplitSeq(methods, ",") {
			q.routes = append(q.routes, m+" "+path)
		}
	}
	calls := httpCalls(f)
	for _, c := range calls {
		method, _, _ := strings.Cut(c.route, " ")
		path, query, _ := strings.Cut(c.at(f), "?")
		body := c.fill(f, c.body)
		q.seeds[c.route] = append(q.seeds[c.route], apiCall{method: method, path: path, query: query, body: body})
		q.learn(body)
	}
	for _, route := range q.routes {
		for _, body := range moreSeeds[route] {
			seed := q.seeds[route][0]
			seed.body = body
			q.seeds[route] = append(q.seeds[route], seed)
			q.learn(body)
		}
	}
	slices.Sort(q.keys)
	q.keys = slices.Compact(q.keys)
	return q
}

// learn keeps the names and texts of a body.
func (q *requester) learn(body string) {
	var v any
	if json.Unmarshal([]byte(body), &v) != nil {
		return
	}
	q.walk(v)
}

func (q *requester) walk(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			q.keys = append(q.keys, k)
			q.walk(v[k])
		}
	case []any:
		for _, e := range v {
			q.walk(e)
		}
	case string:
		if !slices.Contains(q.texts, v) {
			q.texts = append(q.texts, v)
		}
	}
}

// random returns the next request.
func (q *requester) random(r *rand.Rand) apiCall {
	route := pick(r, q.routes)
	method, path, _ := strings.Cut(route, " ")
	c := apiCall{method: method, path: strings.ReplaceAll(path, "*", "x")}
	if seeds := q.seeds[route]; len(seeds) > 0 {
		c = pick(r, seeds)
	}
	if r.IntN(12) == 0 {
		c.method = pick(r, []string{"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "BREW"})
	}
	if r.IntN(3) == 0 {
		if i := strings.LastIndexByte(c.path, '/'); strings.HasSuffix(path, "/") {
			c.path = c.path[:i+1] + q.text(r)
		} else if r.IntN(8) == 0 {
			c.path += "/" + q.text(r)
		}
	}
	for range r.IntN(3) {
		name := pick(r, params)
		c.query += "&" + name
		if r.IntN(4) > 0 {
			c.query += "=" + url.QueryEscape(q.text(r))
		}
	}
	if r.IntN(10) == 0 {
		c.header = [2]string{pick(r, []string{"Cache-Control", "X-Consul-Namespace", "X-Consul-Partition", "Accept", "Accept-Encoding", "Authorization"}), q.text(r)}
	}
	c.body = q.spoil(r, c.body)
	return c
}

func (q *requester) text(r *rand.Rand) string {
	if r.IntN(3) == 0 {
		return pick(r, q.texts)
	}
	return fmt.Sprint(pick(r, values))
}

// spoil changes a body, most often in its members and now and then in its bytes.
func (q *requester) spoil(r *rand.Rand, body string) string {
	var v any
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	if d.Decode(&v) != nil {
		v = map[string]any{}
	}
	for range r.IntN(4) {
		v = q.change(r, v)
	}
	var out bytes.Buffer
	q.write(r, &out, v)
	data := out.Bytes()
	for range max(0, r.IntN(12)-9) {
		switch at := r.IntN(len(data) + 1); r.IntN(5) {
		case 0:
			data = data[:at]
		case 1:
			data = slices.Insert(slices.Clone(data), at, []byte(pick(r, []string{"{", "}", "[", "]", ",", ":", `"`, `\`, `\u0000`, `\ud800`, "\x00", "\xff", "0x1", "1e999", "nul"}))...)
		case 2:
			data = append([]byte(strings.Repeat(pick(r, []string{"[", `{"a":`, `{"Proxy":{"Config":`, `{"Service":{"Proxy":{"Config":`}), 1+r.IntN(12000))), data...)
		case 3:
			data = append(slices.Clone(data), data...)
		case 4:
			if at < len(data) {
				data = slices.Clone(data)
				data[at] ^= byte(1 << r.IntN(8))
			}
		}
	}
	return string(data)
}

// change replaces, adds or removes something somewhere in a value.
func (q *requester) change(r *rand.Rand, v any) any {
	if r.IntN(6) == 0 {
		if r.IntN(3) == 0 {
			return pick(r, q.texts)
		}
		return pick(r, values)
	}
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		names := make([]string, 0, len(v))
		for k, e := range v {
			out[k] = e
			names = append(names, k)
		}
		slices.Sort(names)
		switch {
		case len(names) == 0 || r.IntN(5) == 0:
			out[pick(r, q.keys)] = pick(r, values)
		case r.IntN(5) == 0:
			delete(out, pick(r, names))
		case r.IntN(5) == 0:
			k := pick(r, names)
			out[strings.ToLower(k)] = q.change(r, v[k])
		default:
			k := pick(r, names)
			out[k] = q.change(r, v[k])
		}
		return out
	case []any:
		out := slices.Clone(v)
		if len(out) == 0 || r.IntN(4) == 0 {
			return append(out, pick(r, values))
		}
		i := r.IntN(len(out))
		if r.IntN(5) == 0 {
			return append(out, out[i])
		}
		out[i] = q.change(r, out[i])
		return out
	}
	return pick(r, values)
}

// write writes a value as JSON, strings byte by byte, and now and then a member twice.
func (q *requester) write(r *rand.Rand, out *bytes.Buffer, v any) {
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for k := range v {
			names = append(names, k)
		}
		slices.Sort(names)
		out.WriteByte('{')
		for i, k := range names {
			if i > 0 {
				out.WriteByte(',')
			}
			q.write(r, out, k)
			out.WriteByte(':')
			q.write(r, out, v[k])
			if r.IntN(60) == 0 {
				out.WriteByte(',')
				q.write(r, out, k)
				out.WriteByte(':')
				q.write(r, out, pick(r, values))
			}
		}
		out.WriteByte('}')
	case []any:
		out.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				out.WriteByte(',')
			}
			q.write(r, out, e)
		}
		out.WriteByte(']')
	case string:
		if !utf8.ValidString(v) {
			out.WriteString(`"` + v + `"`)
			return
		}
		data, _ := json.Marshal(v)
		out.Write(data)
	default:
		data, err := json.Marshal(v)
		if err != nil {
			data = []byte("1e400")
		}
		out.Write(data)
	}
}

// harmless reports whether a request may be made: not those that end the agent, or that reach out of it.
func (c *apiCall) harmless() bool {
	p := strings.ToLower(c.path)
	for _, bad := range []string{"/v1/agent/leave", "/v1/agent/join/", "/v1/agent/reload", "/v1/agent/force-leave/own"} {
		if strings.HasPrefix(p, bad) && c.method == http.MethodPut {
			return false
		}
	}
	return !strings.Contains(c.path+c.query+c.body, "own-node")
}

// faults are the words of a program that did not expect what it got. Refusals by the servers are told with status 500
// too (spec/registry.md section 1.6), but they say what is wrong with the request.
var faults = regexp.MustCompile(`runtime error|nil pointer|out of range \[|panic|cbor: |unsupported (type|value)|reflect[.:]|goroutine \d|deadline exceeded|failed unexpectedly|EOF$`)

// undecoded begins the texts of what cannot be read that are told with status 500 (spec/connect.md section 6, spec/state.md
// section 8).
var undecoded = regexp.MustCompile(`^(Failed to decode request body|failed to decode token|failed to decompress snapshot|error parsing token)`)

// try makes a request. What no request may bring about fails the test.
func (q *requester) try(t testing.TB, c apiCall) {
	t.Helper()
	if !c.harmless() {
		return
	}
	limit := 20 * time.Second
	waits := strings.Contains(c.query, "index") || strings.Contains(c.query, "hash")
	if waits || strings.HasPrefix(c.path, "/v1/agent/mo") || strings.HasPrefix(c.path, "/v1/agent/metrics/") {
		limit = 30 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, "GET", "/", strings.NewReader(c.body))
	r.Method, r.RemoteAddr = c.method, "127.0.0.1:999"
	r.URL.Path, r.URL.RawPath, r.URL.RawQuery = c.path, "", strings.TrimPrefix(c.query, "&")
	r.Header.Set("X-Consul-Token", managementSecret)
	if c.header[0] != "" {
		r.Header.Set(c.header[0], c.header[1])
	}
	w := httptest.NewRecorder()
	began := time.Now()
	func() {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				t.Errorf("%v: panic: %v\n%s", &c, p, debug.Stack())
			}
		}()
		q.g.http.ServeHTTP(w, r)
	}()
	text := w.Body.String()
	kind := w.Header().Get("Content-Type")
	_, unread := url.ParseQuery(r.URL.RawQuery)
	failed := w.Code >= 500 && ctx.Err() == nil
	switch {
	case failed && faults.MatchString(text) && !undecoded.MatchString(text):
		t.Errorf("%v: %d %.500q", &c, w.Code, text)
	case failed && text == "" && unread == nil:
		t.Errorf("%v: %d without a word", &c, w.Code)
	case failed && strings.Contains(text, "invalid character") && !undecoded.MatchString(text):
		t.Errorf("%v: %d %.500q, of what is no JSON", &c, w.Code, text)
	case time.Since(began) > time.Minute:
		t.Errorf("%v: answered after %v", &c, time.Since(began))
	case w.Code == http.StatusOK && kind == "application/json" && w.Body.Len() > 0 && w.Header().Get("Content-Encoding") == "" &&
		!strings.HasPrefix(c.path, "/v1/agent/metrics") && (!json.Valid(w.Body.Bytes()) || !utf8.ValidString(text)):
		t.Errorf("%v: no JSON: %.500q", &c, text)
	case w.Header().Get("X-Injected") != "":
		t.Errorf("%v: %v", &c, w.Header())
	}
}

// readable fails the test unless everything there is can still be read.
func (q *requester) readable(t testing.TB) {
	t.Helper()
	for _, route := range q.routes {
		path, ok := strings.CutPrefix(route, "GET ")
		if !ok || strings.HasSuffix(path, "/") || strings.Contains(path, "*") {
			continue
		}
		switch path {
		case "/v1/agent/monitor", "/v1/agent/metrics/stream", "/v1/connect/intentions/exact", "/v1/connect/intentions/match", "/v1/connect/intentions/check", "/v1/explain", "/v1/internal/ui/exported-services", "/v1/operator/autopilot/health":
			continue // these take parameters, do not end, or tell by their status how the cluster is
		}
		w := q.g.answer("GET", path, managementSecret, "")
		if w.Code != http.StatusOK {
			t.Errorf("afterwards, %s: %d %.500s", path, w.Code, w.Body)
		}
	}
	for _, path := range []string{"/v1/kv/?recurse", "/v1/kv/?keys", "/v1/health/state/any", "/v1/health/service/zqx-svc", "/v1/catalog/node/zqx-node", "/v1/config/service-defaults", "/v1/config/service-intentions", "/v1/config/proxy-defaults"} {
		if w := q.g.answer("GET", path, managementSecret, ""); w.Code != http.StatusOK && w.Code != http.StatusNotFound {
			t.Errorf("afterwards, %s: %d %.500s", path, w.Code, w.Body)
		}
	}
	if w := q.g.answer("PUT", "/v1/kv/afterwards", managementSecret, "x"); w.Code != http.StatusOK {
		t.Errorf("afterwards, a write: %d %.500s", w.Code, w.Body)
	}
	if strings.Contains(q.g.log.String(), "call panicked") {
		t.Errorf("a call panicked: %s", q.g.log)
	}
}

// Requests without sense, to every route, are answered in time as the specification says, and do no harm
// (spec/threats.md, classes 9 and 11).
func TestThreat11RandomRequestsDoNoHarm(t *testing.T) {
	q := newRequester(t)
	r := rand.New(rand.NewPCG(1, 2))
	n := 2000
	if testing.Short() {
		n = 500
	}
	for range n {
		q.try(t, q.random(r))
	}
	q.readable(t)
}

// FuzzAPI makes requests of every route. The seed chooses the route and what is spoilt of a request that makes sense; a
// body that is not empty stands instead of the request's.
func FuzzAPI(f *testing.F) {
	q := newRequester(f)
	for i := range uint64(50) {
		f.Add(i, "", "")
	}
	for route, seeds := range q.seeds {
		n := slices.Index(q.routes, route)
		for _, c := range seeds {
			f.Add(uint64(n)<<32, c.query, c.body)
		}
	}
	f.Fuzz(func(t *testing.T, seed uint64, query, body string) {
		c := q.random(rand.New(rand.NewPCG(seed, 1)))
		if n := int(seed >> 32); n > 0 && n < len(q.routes) {
			if seeds := q.seeds[q.routes[n]]; len(seeds) > 0 {
				c = seeds[int(seed%uint64(len(seeds)))]
			}
		}
		if query != "" {
			c.query = query
		}
		if body != "" {
			c.body = body
		}
		q.try(t, c)
		if seed%512 == 0 {
			q.readable(t)
		}
	})
}
