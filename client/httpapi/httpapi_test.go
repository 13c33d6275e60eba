package httpapi

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A fakeCaller answers calls from a table, and remembers them. A call it does not know gets a zero reply.
type fakeCaller struct {
	answer map[string]any // reply, error, or func(req any) (any, error)

	mu    sync.Mutex
	calls []call
}

type call struct {
	name string
	req  any
}

func (f *fakeCaller) Call(_ context.Context, d rpc.Descriptor, req, resp any) error {
	f.mu.Lock()
	f.calls = append(f.calls, call{d.Name, req})
	f.mu.Unlock()
	a := f.answer[d.Name]
	if fn, ok := a.(func(any) (any, error)); ok {
		var err error
		if a, err = fn(req); err != nil {
			return err
		}
	}
	switch a := a.(type) {
	case nil:
		if m, ok := resp.(metered); ok {
			*m.ReadMeta() = read.Meta{Index: 1, KnownLeader: true}
		}
	case error:
		return a
	default:
		reflect.ValueOf(resp).Elem().Set(reflect.ValueOf(a).Elem())
	}
	return nil
}

// last returns the request of the last call of a method.
func last[Req any](t *testing.T, f *fakeCaller, name string) *Req {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range slices.Backward(f.calls) {
		if c.name == name {
			return c.req.(*Req)
		}
	}
	t.Fatalf("%s was not called, but %v", name, f.calls)
	return nil
}

func newServer(t testing.TB, cfg Config, answer map[string]any) (*Server, *fakeCaller) {
	t.Helper()
	f := &fakeCaller{answer: answer}
	if cfg.Caller == nil {
		cfg.Caller = f
	}
	if cfg.Datacenter == "" {
		cfg.Datacenter = "dc1"
	}
	if cfg.NodeName == "" {
		cfg.NodeName = "node1"
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, f
}

// do performs one request. header lists names and values in turn.
func do(s http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, target, rd)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

var someMeta = read.Meta{Index: 7, KnownLeader: true}

func someEntry() *kv.Entry {
	return &kv.Entry{Key: "app/name", Value: []byte("one"), Indexes: catalog.Indexes{CreateIndex: 3, ModifyIndex: 7}}
}

// TestPathsAndMethods pins section 1.1 of spec/registry.md.
func TestPathsAndMethods(t *testing.T) {
	s, _ := newServer(t, Config{UIEnabled: true}, nil)
	const unknown = "Invalid URL path: not a recognized HTTP API endpoint\n"
	const noV1 = "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'\n"
	tests := []struct {
		name, method, target string
		status               int
		body                 string
		allow, location      string
	}{
		{name: "wrong method", method: "DELETE", target: "/v1/catalog/nodes", status: 405, body: "method DELETE not allowed", allow: "OPTIONS,GET"},
		{name: "several methods", method: "POST", target: "/v1/kv/a", status: 405, body: "method POST not allowed", allow: "OPTIONS,GET,PUT,DELETE"},
		{name: "HEAD is wrong on GET paths", method: "HEAD", target: "/v1/catalog/nodes", status: 405, allow: "OPTIONS,GET", body: "method HEAD not allowed"},
		{name: "OPTIONS", method: "OPTIONS", target: "/v1/kv/a", status: 200, allow: "OPTIONS,GET,PUT,DELETE"},
		{name: "OPTIONS on an unknown path", method: "OPTIONS", target: "/v1/nope", status: 404, body: unknown},
		{name: "unknown API path", target: "/v1/nope", status: 404, body: unknown},
		{name: "API path elsewhere", target: "/foo/v1/bar", status: 404, body: unknown},
		{name: "API root", target: "/v1/", status: 404, body: unknown},
		{name: "API root without slash", target: "/v1", status: 404, body: noV1},
		{name: "other path", target: "/nope", status: 404, body: noV1},
		{name: "trailing slash", target: "/v1/catalog/nodes/", status: 404, body: unknown},
		{name: "prefix without slash", target: "/v1/kv?x=1", status: 301, location: "/v1/kv/?x=1"},
		{name: "prefix without slash, write", method: "PUT", target: "/v1/kv", status: 307, location: "/v1/kv/"},
		{name: "console", target: "/", status: 301, location: "/ui/"},
		{name: "console without slash", target: "/ui", status: 301, location: "/ui/"},
		{name: "doubled slash", target: "/v1/kv//a?raw", status: 301, location: "/v1/kv/a?raw"},
		{name: "dots", method: "PUT", target: "/v1/kv/x/../a", status: 307, location: "/v1/kv/a"},
		{name: "dot at the end", target: "/v1/kv/a/.", status: 301, location: "/v1/kv/a"},
		{name: "escaped slash stays", target: "/v1/catalog/service/a%2Fb", status: 200, body: "[]"},
		{name: "escaped doubled slash stays", target: "/v1/catalog/service/%2F%2Fb", status: 200, body: "[]"},
		{name: "newline", target: "/v1/catalog/service/a%0Ab", status: 400},
		{name: "zero byte", target: "/v1/catalog/service/a%00b", status: 400},
		{name: "unprintable beyond ASCII", target: "/v1/catalog/service/a%C2%85", status: 400},
		{name: "printable beyond ASCII", target: "/v1/catalog/service/a%C3%A9", status: 200, body: "[]"},
		{name: "unreadable query", target: "/v1/catalog/nodes?%zz", status: 500},
		{name: "semicolon in query", target: "/v1/catalog/nodes?a;b", status: 500},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			method := tt.method
			if method == "" {
				method = "GET"
			}
			w := do(s, method, tt.target, "")
			if w.Code != tt.status {
				t.Errorf("status = %d, want %d", w.Code, tt.status)
			}
			if tt.location != "" {
				if got := w.Header().Get("Location"); got != tt.location {
					t.Errorf("Location = %q, want %q", got, tt.location)
				}
			} else if got := w.Body.String(); got != tt.body {
				t.Errorf("body = %q, want %q", got, tt.body)
			}
			if got := w.Header().Get("Allow"); got != tt.allow {
				t.Errorf("Allow = %q, want %q", got, tt.allow)
			}
		})
	}
}

func TestConsoleOff(t *testing.T) {
	s, _ := newServer(t, Config{}, nil)
	if w := do(s, "GET", "/", ""); w.Code != 200 || !strings.Contains(w.Body.String(), "ui_config.enabled") {
		t.Errorf("GET / = %d %q", w.Code, w.Body)
	}
	if w := do(s, "GET", "/ui/", ""); w.Code != 404 {
		t.Errorf("GET /ui/ = %d, want 404", w.Code)
	}
}

func TestConsoleIsServedBelowItsPath(t *testing.T) {
	ui := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	s, _ := newServer(t, Config{UIEnabled: true, UI: ui, UIPath: "/console/"}, nil)
	if w := do(s, "GET", "/console/dc1/services", ""); w.Body.String() != "/console/dc1/services" {
		t.Errorf("body = %q", w.Body)
	}
	if w := do(s, "GET", "/", ""); w.Header().Get("Location") != "/console/" {
		t.Errorf("Location = %q", w.Header().Get("Location"))
	}
}

// TestUnprintablePathsMayBeAllowed turns the filter off.
func TestUnprintablePathsMayBeAllowed(t *testing.T) {
	s, f := newServer(t, Config{AllowUnprintable: true}, nil)
	if w := do(s, "GET", "/v1/kv/a%0Ab", ""); w.Code != 404 {
		t.Errorf("status = %d, want 404", w.Code)
	}
	if got := last[kv.GetRequest](t, f, "KV.Get").Key; got != "a\nb" {
		t.Errorf("key = %q", got)
	}
}

// TestHeadersOfEveryAnswer pins sections 1.3 and 1.7.
func TestHeadersOfEveryAnswer(t *testing.T) {
	s, _ := newServer(t, Config{
		ResponseHeaders: map[string]string{"X-Foo": "bar", "access-control-allow-origin": "*"}, TranslateWANAddrs: true, DefaultPolicy: "deny",
	}, map[string]any{"Catalog.Nodes": &catalog.NodesReply{Meta: read.Meta{Index: 7, LastContact: 1500 * time.Millisecond, Filtered: true}}})
	for _, target := range []string{"/v1/catalog/nodes", "/v1/nope", "/nope", "/v1/catalog/register", "/v1/catalog/service/a%0A"} {
		h := do(s, "GET", target, "").Header()
		if h.Get("X-Foo") != "bar" || h.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: response headers missing in %v", target, h)
		}
	}
	got := do(s, "GET", "/v1/catalog/nodes?token=x&stale", "").Header()
	want := http.Header{
		"X-Foo": {"bar"}, "Access-Control-Allow-Origin": {"*"}, "Vary": {"Accept-Encoding"}, "Content-Type": {"application/json"},
		"Content-Length": {"2"}, "X-Consul-Default-Acl-Policy": {"deny"}, "X-Consul-Translate-Addresses": {"true"},
		"X-Consul-Index": {"7"}, "X-Consul-Knownleader": {"false"}, "X-Consul-Lastcontact": {"1500"},
		"X-Consul-Effective-Consistency": {"stale"}, "X-Consul-Query-Backend": {"blocking-query"}, "X-Consul-Results-Filtered-By-Acls": {"true"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("headers (-want +got):\n%s", d)
	}
	if h := do(s, "GET", "/v1/catalog/nodes", "").Header(); h.Get("X-Consul-Results-Filtered-By-ACLs") != "" {
		t.Error("an anonymous request is told of filtering")
	}
	if h := do(s, "GET", "/v1/nope", "").Header(); h.Get("Vary") != "" {
		t.Error("Vary on a 404 page")
	}
}

func TestBlockedEndpointsAndWriters(t *testing.T) {
	s, _ := newServer(t, Config{
		BlockEndpoints: []string{"/v1/health/state"}, AllowWriteFrom: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}, nil)
	if w := do(s, "GET", "/v1/health/state/any", ""); w.Code != 403 || w.Body.String() != "Endpoint is blocked by agent configuration" {
		t.Errorf("blocked = %d %q", w.Code, w.Body)
	}
	if w := do(s, "GET", "/v1/health/service/web", ""); w.Code != 200 {
		t.Errorf("not blocked = %d", w.Code)
	}
	for _, tt := range []struct {
		remote, method string
		status         int
	}{
		{"192.0.2.1:1", "PUT", 403}, {"192.0.2.1:1", "DELETE", 403}, {"192.0.2.1:1", "GET", 404}, {"192.0.2.1:1", "OPTIONS", 200},
		{"10.1.2.3:1", "PUT", 200}, {"[::ffff:10.1.2.3]:1", "PUT", 200}, {"@", "PUT", 403}, {"", "PUT", 403},
	} {
		r := httptest.NewRequest(tt.method, "/v1/kv/a", nil)
		r.RemoteAddr = tt.remote
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != tt.status || w.Code == 403 && w.Body.String() != "Access is restricted" {
			t.Errorf("%s from %q = %d %q, want %d", tt.method, tt.remote, w.Code, w.Body, tt.status)
		}
	}
}

// TestQueryParameterErrors pins section 1.4.
func TestQueryParameterErrors(t *testing.T) {
	c := cache.New(&fakeCaller{}, cache.Config{})
	s, f := newServer(t, Config{Cache: c}, nil)
	noCache, _ := newServer(t, Config{}, nil)
	const ns = `Invalid query parameter: "ns" - namespaces are not supported`
	tests := []struct {
		name, target string
		header       []string
		status       int
		text         string
		s            *Server
	}{
		{name: "wait", target: "/v1/catalog/nodes?wait=abc", status: 400, text: "Invalid wait time"},
		{name: "wait without unit", target: "/v1/kv/a?wait=10", status: 400, text: "Invalid wait time"},
		{name: "index", target: "/v1/health/service/web?index=abc", status: 400, text: "Invalid index"},
		{name: "negative index", target: "/v1/session/list?index=-1", status: 400, text: "Invalid index"},
		{name: "stale and consistent", target: "/v1/kv/a?stale&consistent", status: 400, text: "Cannot specify ?stale with ?consistent, conflicting semantics."},
		{name: "max_stale and consistent", target: "/v1/kv/a?max_stale=1s&consistent", status: 400, text: "Cannot specify ?stale with ?consistent, conflicting semantics."},
		{name: "cached and consistent", target: "/v1/kv/a?cached&consistent", status: 400, text: "Cannot specify ?cached with ?consistent, conflicting semantics."},
		{name: "cached and consistent without a cache", target: "/v1/kv/?keys&cached&consistent", status: 200, text: "[]", s: noCache},
		{name: "max_stale", target: "/v1/health/node/n?max_stale=abc", status: 400, text: `Invalid max_stale value "abc"`},
		{name: "max-age", target: "/v1/health/state/any", header: []string{"Cache-Control", "max-age=abc"}, status: 400, text: "Invalid Cache-Control header."},
		{name: "stale-if-error", target: "/v1/health/state/any", header: []string{"Cache-Control", "no-cache, stale-if-error=x"}, status: 400, text: "Invalid Cache-Control header."},
		{name: "good Cache-Control", target: "/v1/health/state/any", header: []string{"Cache-Control", "no-cache, Max-Age=5"}, status: 200, text: "[]"},
		{name: "ns", target: "/v1/catalog/services?ns=default", status: 400, text: ns},
		{name: "empty ns", target: "/v1/catalog/service/web?ns=", status: 200, text: "[]"},
		{name: "ns on nodes", target: "/v1/catalog/nodes?ns=x", status: 200, text: "[]"},
		{name: "ns on a write", target: "/v1/session/list?ns=x", status: 400, text: ns},
		{name: "partition", target: "/v1/catalog/nodes?partition=default", status: 400, text: `Invalid query parameter: "partition" - partitions are not supported`},
		{name: "namespace header", target: "/v1/catalog/services", header: []string{"X-Consul-Namespace", "default"}, status: 400, text: `Invalid header: "X-Consul-Namespace" - namespaces are not supported`},
		{name: "partition header", target: "/v1/catalog/nodes", header: []string{"X-Consul-Partition", "default"}, status: 400, text: `Invalid header: "X-Consul-Partition" - partitions are not supported`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := s
			if tt.s != nil {
				srv = tt.s
			}
			w := do(srv, "GET", tt.target, "", tt.header...)
			if w.Code != tt.status || w.Body.String() != tt.text {
				t.Errorf("= %d %q, want %d %q", w.Code, w.Body, tt.status, tt.text)
			}
			if ct := w.Header().Get("Content-Type"); tt.status == 400 && ct != "text/plain; charset=utf-8" {
				t.Errorf("Content-Type = %q", ct)
			}
		})
	}
	for _, c := range f.calls {
		if r, ok := c.req.(*kv.GetRequest); ok {
			t.Errorf("a refused request went on: %+v", r)
		}
	}
}

// TestOptionsReachTheServers checks what the parameters mean.
func TestOptionsReachTheServers(t *testing.T) {
	s, f := newServer(t, Config{}, nil)
	do(s, "GET", "/v1/health/service/web?index=5&wait=3s&dc=dc1&datacenter=dc2&consistent=false&filter=a+%3D%3D+b&near=n&node-meta=k:v&node-meta=x&tag=&tag=B&passing&token=t", "")
	want := &catalog.InstancesRequest{
		Options: read.Options{
			Target: read.Target{Datacenter: "dc2", Token: "t"}, Mode: read.Consistent, MinIndex: 5, MaxWait: 3 * time.Second,
			Filter: "a == b", Near: "n", NodeMeta: map[string]string{"k": "v", "x": ""},
		},
		Service: "web", Tags: []string{"", "B"}, PassingOnly: true,
	}
	if d := cmp.Diff(want, last[catalog.InstancesRequest](t, f, "Health.Instances")); d != "" {
		t.Errorf("request (-want +got):\n%s", d)
	}
	do(s, "GET", "/v1/catalog/connect/web?tag=x&near=_agent&merge-central-config&peer=p", "")
	want = &catalog.InstancesRequest{
		Options: read.Options{Near: "node1"}, Service: "web", Connect: true, CatalogOnly: true, MergeCentralConfig: true, Peer: "p",
	}
	if d := cmp.Diff(want, last[catalog.InstancesRequest](t, f, "Health.Instances")); d != "" {
		t.Errorf("request (-want +got):\n%s", d)
	}
	do(s, "GET", "/v1/health/ingress/web", "")
	if r := last[catalog.InstancesRequest](t, f, "Health.Instances"); !r.Ingress {
		t.Errorf("request = %+v", r)
	}
	for target, want := range map[string]catalog.ChecksRequest{
		"/v1/health/node/n?near=x": {Node: "n"}, "/v1/health/checks/web": {Service: "web"}, "/v1/health/state/Any": {State: "Any"},
	} {
		do(s, "GET", target, "")
		if d := cmp.Diff(&want, last[catalog.ChecksRequest](t, f, "Health.Checks")); d != "" {
			t.Errorf("%s (-want +got):\n%s", target, d)
		}
	}
}

func TestTokenSources(t *testing.T) {
	s, f := newServer(t, Config{DefaultToken: func() string { return "agent" }}, nil)
	tests := []struct {
		name, target string
		header       []string
		want         string
	}{
		{name: "default", want: "agent"},
		{name: "header", header: []string{"X-Consul-Token", "h"}, want: "h"},
		{name: "bearer", header: []string{"Authorization", "Bearer b"}, want: "b"},
		{name: "bearer in any case, first word", header: []string{"Authorization", "bearer   b extra"}, want: "b"},
		{name: "another scheme", header: []string{"Authorization", "Basic b"}, want: "agent"},
		{name: "no scheme", header: []string{"Authorization", "b"}, want: "agent"},
		{name: "parameter wins", target: "?token=q", header: []string{"X-Consul-Token", "h"}, want: "q"},
		{name: "empty parameter does not count", target: "?token=", header: []string{"X-Consul-Token", "h"}, want: "h"},
		{name: "header wins over bearer", header: []string{"Authorization", "Bearer b", "X-Consul-Token", "h"}, want: "h"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			do(s, "GET", "/v1/kv/a"+tt.target, "", tt.header...)
			if got := last[kv.GetRequest](t, f, "KV.Get").Token; got != tt.want {
				t.Errorf("token = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestConsistencyModes(t *testing.T) {
	plain, _ := newServer(t, Config{}, nil)
	bounded, f := newServer(t, Config{DiscoveryMaxStale: 10 * time.Second}, nil)
	for target, want := range map[string]string{
		"/v1/catalog/nodes?stale": "stale", "/v1/catalog/nodes?consistent": "consistent", "/v1/catalog/nodes?leader": "leader", "/v1/catalog/nodes": "leader",
		"/v1/catalog/nodes?max_stale=5s": "stale", "/v1/catalog/nodes?max_stale=0s": "leader", "/v1/health/state/any?consistent=false": "consistent",
		"/v1/kv/a?stale": "", "/v1/session/list": "",
	} {
		if got := do(plain, "GET", target, "").Header().Get("X-Consul-Effective-Consistency"); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
	for target, want := range map[string]string{
		"/v1/catalog/nodes": "stale", "/v1/health/service/web": "stale", "/v1/catalog/nodes?leader": "leader", "/v1/catalog/nodes?consistent": "consistent",
	} {
		if got := do(bounded, "GET", target, "").Header().Get("X-Consul-Effective-Consistency"); got != want {
			t.Errorf("discovery_max_stale, %s: %q, want %q", target, got, want)
		}
	}
	do(bounded, "GET", "/v1/kv/a", "")
	if r := last[kv.GetRequest](t, f, "KV.Get"); r.Mode != read.Default || r.MaxStale != 0 {
		t.Errorf("discovery_max_stale applies to keys: %+v", r)
	}
}

// TestStaleAnswersOlderThanAllowedAreAskedForAgain checks max_stale.
func TestStaleAnswersOlderThanAllowedAreAskedForAgain(t *testing.T) {
	s, f := newServer(t, Config{}, map[string]any{"Catalog.Nodes": func(req any) (any, error) {
		if req.(*catalog.NodesRequest).Mode == read.Stale {
			return &catalog.NodesReply{Meta: read.Meta{Index: 2, LastContact: 2 * time.Second}}, nil
		}
		return &catalog.NodesReply{Meta: read.Meta{Index: 9, KnownLeader: true}}, nil
	}})
	if got := do(s, "GET", "/v1/catalog/nodes?max_stale=3s", "").Header().Get("X-Consul-Index"); got != "2" || len(f.calls) != 1 {
		t.Errorf("fresh enough: index %s after %d calls", got, len(f.calls))
	}
	w := do(s, "GET", "/v1/catalog/nodes?max_stale=1s", "")
	if got := w.Header().Get("X-Consul-Index"); got != "9" || len(f.calls) != 3 {
		t.Errorf("too old: index %s after %d calls", got, len(f.calls))
	}
	if r := last[catalog.NodesRequest](t, f, "Catalog.Nodes"); r.Mode != read.Default || r.MaxStale != 0 {
		t.Errorf("repeated as %+v", r)
	}
}

// TestErrorStatuses pins section 1.6.
func TestErrorStatuses(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
	}{
		{wireerr.ErrNoLeader, 500}, {wireerr.ErrNoDatacenter, 500}, {wireerr.ErrPermissionDenied, 403}, {wireerr.ErrTokenNotFound, 403},
		{wireerr.ErrRateLimited, 429}, {wireerr.ErrClientRateLimit, 429}, {wireerr.ErrRateLimitedWrite, 503}, {errors.New("Must provide node"), 500},
		{wireerr.Remote(0, "No path to datacenter"), 500}, {wireerr.BadRequest("x"), 400},
	} {
		s, _ := newServer(t, Config{}, map[string]any{"Catalog.Register": tt.err, "KV.Get": tt.err, "KV.Apply": tt.err})
		for _, w := range []*httptest.ResponseRecorder{
			do(s, "PUT", "/v1/catalog/register", "{}"), do(s, "GET", "/v1/kv/a", ""), do(s, "PUT", "/v1/kv/a", "x"),
		} {
			if w.Code != tt.status || w.Body.String() != tt.err.Error() || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" {
				t.Errorf("%v = %d %q %v", tt.err, w.Code, w.Body, w.Header())
			}
		}
	}
}

func TestJSONIsCompactPrettyOrIndented(t *testing.T) {
	answer := map[string]any{"KV.Keys": &kv.KeysReply{Meta: someMeta, Keys: []string{"a"}}}
	plain, _ := newServer(t, Config{}, answer)
	dev, _ := newServer(t, Config{Dev: true}, answer)
	for _, tt := range []struct {
		s            *Server
		target, want string
	}{
		{plain, "/v1/kv/?keys", `["a"]`}, {plain, "/v1/kv/?keys&pretty", "[\n    \"a\"\n]\n"}, {plain, "/v1/kv/?keys&pretty=false", "[\n    \"a\"\n]\n"},
		{dev, "/v1/kv/?keys", "[\n    \"a\"\n]"}, {dev, "/v1/kv/?keys&pretty", "[\n    \"a\"\n]\n"}, {dev, "/v1/catalog/nodes", "[]"},
	} {
		if w := do(tt.s, "GET", tt.target, ""); w.Body.String() != tt.want {
			t.Errorf("%s = %q, want %q", tt.target, w.Body, tt.want)
		}
	}
}

func TestLargeAnswersAreCompressedOnRequest(t *testing.T) {
	keys := make([]string, 200)
	for i := range keys {
		keys[i] = fmt.Sprintf("key/%03d", i)
	}
	s, _ := newServer(t, Config{}, map[string]any{"KV.Keys": &kv.KeysReply{Meta: someMeta, Keys: keys}})
	plain := do(s, "GET", "/v1/kv/?keys", "")
	if plain.Header().Get("Content-Encoding") != "" {
		t.Error("compressed without being asked")
	}
	for enc, want := range map[string]bool{"gzip": true, "deflate, gzip;q=0.5": true, "*": true, "gzip;q=0": false, "br": false} {
		w := do(s, "GET", "/v1/kv/?keys", "", "Accept-Encoding", enc)
		if got := w.Header().Get("Content-Encoding") == "gzip"; got != want {
			t.Errorf("Accept-Encoding %q: compressed %v, want %v", enc, got, want)
			continue
		}
		if !want {
			continue
		}
		z, err := gzip.NewReader(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); err != nil || string(got) != plain.Body.String() {
			t.Errorf("decompressed to %q, %v", got, err)
		}
	}
	s, _ = newServer(t, Config{}, nil)
	if w := do(s, "GET", "/v1/kv/?keys", "", "Accept-Encoding", "gzip"); w.Header().Get("Content-Encoding") != "" {
		t.Error("a small answer is compressed")
	}
}

// TestKV pins section 2 of spec/state.md.
func TestKV(t *testing.T) {
	s, f := newServer(t, Config{KVMaxValueSize: 10}, map[string]any{
		"KV.Get": func(req any) (any, error) {
			if req.(*kv.GetRequest).Key == "app/name" {
				return &kv.GetReply{Meta: someMeta, Entry: someEntry()}, nil
			}
			return &kv.GetReply{Meta: someMeta}, nil
		},
		"KV.List": func(req any) (any, error) {
			if req.(*kv.ListRequest).Prefix == "app/" {
				return &kv.ListReply{Meta: someMeta, Entries: []*kv.Entry{someEntry(), someEntry()}}, nil
			}
			return &kv.ListReply{Meta: someMeta}, nil
		},
		"KV.Keys": &kv.KeysReply{Meta: someMeta},
		"KV.Apply": func(req any) (any, error) {
			return &kv.ApplyReply{OK: req.(*kv.ApplyRequest).Entry.ModifyIndex != 7}, nil
		},
	})
	const entry = `{"LockIndex":0,"Key":"app/name","Flags":0,"Value":"b25l","CreateIndex":3,"ModifyIndex":7}`
	tests := []struct {
		name, method, target, body string
		status                     int
		want                       string
	}{
		{"get", "GET", "/v1/kv/app/name", "", 200, "[" + entry + "]"},
		{"get raw", "GET", "/v1/kv/app/name?raw", "", 200, "one"},
		{"missing", "GET", "/v1/kv/none", "", 404, ""},
		{"missing raw", "GET", "/v1/kv/none?raw", "", 404, ""},
		{"no key", "GET", "/v1/kv/", "", 400, "Missing key name"},
		{"recurse", "GET", "/v1/kv/app/?recurse", "", 200, "[" + entry + "," + entry + "]"},
		{"recurse ignores raw", "GET", "/v1/kv/app/?recurse&raw", "", 200, "[" + entry + "," + entry + "]"},
		{"recurse finds nothing", "GET", "/v1/kv/?recurse", "", 404, ""},
		{"keys of the root", "GET", "/v1/kv/?keys&recurse", "", 200, "[]"},
		{"keys elsewhere", "GET", "/v1/kv/x?keys", "", 404, ""},
		{"put", "PUT", "/v1/kv/a", "v", 200, "true"},
		{"put no key", "PUT", "/v1/kv/", "v", 400, "Missing key name"},
		{"put cas", "PUT", "/v1/kv/a?cas=7&flags=18446744073709551615", "v", 200, "false"},
		{"put conflict", "PUT", "/v1/kv/a?cas=1&acquire=x", "v", 400, "Conflicting flags: acquire=x&cas=1\n"},
		{"put bad flags", "PUT", "/v1/kv/a?flags=x", "v", 500, `strconv.ParseUint: parsing "x": invalid syntax`},
		{"put empty flags", "PUT", "/v1/kv/a?flags=", "v", 500, `strconv.ParseUint: parsing "": invalid syntax`},
		{"put bad cas", "PUT", "/v1/kv/a?cas=-1", "v", 500, `strconv.ParseUint: parsing "-1": invalid syntax`},
		{"put too large", "PUT", "/v1/kv/a", "0123456789a", 413, "Request body(11 bytes) too large, max size: 10 bytes. See limits.kv_max_value_size in the configuration."},
		{"delete", "DELETE", "/v1/kv/a", "", 200, "true"},
		{"delete no key", "DELETE", "/v1/kv/", "", 400, "Missing key name"},
		{"delete all", "DELETE", "/v1/kv/?recurse", "", 200, "true"},
		{"delete conflict", "DELETE", "/v1/kv/a?recurse&cas=1", "", 400, "Conflicting flags: cas=1&recurse=\n"},
		{"delete bad cas", "DELETE", "/v1/kv/a?cas=x", "", 500, `strconv.ParseUint: parsing "x": invalid syntax`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := do(s, tt.method, tt.target, tt.body)
			if w.Code != tt.status || w.Body.String() != tt.want {
				t.Errorf("= %d %q, want %d %q", w.Code, w.Body, tt.status, tt.want)
			}
			if index := w.Header().Get("X-Consul-Index"); tt.method == "GET" && tt.status != 400 && index != "7" {
				t.Errorf("X-Consul-Index = %q", index)
			}
		})
	}
	h := do(s, "GET", "/v1/kv/app/name?raw", "").Header()
	for name, want := range map[string]string{"Content-Type": "text/plain", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox", "Content-Length": "3"} {
		if h.Get(name) != want {
			t.Errorf("raw: %s = %q, want %q", name, h.Get(name), want)
		}
	}
	// A body whose length is not told is limited too.
	r := httptest.NewRequest("PUT", "/v1/kv/a", io.MultiReader(strings.NewReader("0123456789a")))
	r.ContentLength = -1
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != 413 {
		t.Errorf("chunked body = %d", w.Code)
	}

	requests := []struct {
		method, target, body string
		want                 kv.ApplyRequest
	}{
		{"PUT", "/v1/kv/a/b%2Fc?flags=3", "v", kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "a/b/c", Flags: 3, Value: []byte("v")}}},
		{"PUT", "/v1/kv/a", "", kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "a"}}},
		{"PUT", "/v1/kv/a?cas=0", "v", kv.ApplyRequest{Op: kv.OpCAS, Entry: kv.Entry{Key: "a", Value: []byte("v")}}},
		{"PUT", "/v1/kv/a?acquire=s", "v", kv.ApplyRequest{Op: kv.OpLock, Entry: kv.Entry{Key: "a", Session: "s", Value: []byte("v")}}},
		{"PUT", "/v1/kv/a?release=s", "v", kv.ApplyRequest{Op: kv.OpUnlock, Entry: kv.Entry{Key: "a", Session: "s", Value: []byte("v")}}},
		{"DELETE", "/v1/kv/a?cas=4", "", kv.ApplyRequest{Op: kv.OpDeleteCAS, Entry: kv.Entry{Key: "a", Indexes: catalog.Indexes{ModifyIndex: 4}}}},
		{"DELETE", "/v1/kv/a?recurse", "", kv.ApplyRequest{Op: kv.OpDeleteTree, Entry: kv.Entry{Key: "a"}}},
	}
	for _, tt := range requests {
		do(s, tt.method, tt.target, tt.body)
		if d := cmp.Diff(&tt.want, last[kv.ApplyRequest](t, f, "KV.Apply")); d != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.method, tt.target, d)
		}
	}
	for target, want := range map[string]string{"?keys&separator=/": "/", "?keys&seperator=x": "x", "?keys&seperator=x&separator=": ""} {
		do(s, "GET", "/v1/kv/"+target, "")
		if got := last[kv.KeysRequest](t, f, "KV.Keys").Separator; got != want {
			t.Errorf("%s: separator %q, want %q", target, got, want)
		}
	}
}

// TestSessions pins section 4 of spec/state.md.
func TestSessions(t *testing.T) {
	ses := &kv.Session{ID: "s1", Node: "node1", LockDelay: 15 * time.Second, Behavior: kv.Release, NodeChecks: []string{"serfHealth"}, Indexes: catalog.Indexes{CreateIndex: 4, ModifyIndex: 4}}
	const text = `[{"ID":"s1","Name":"","Node":"node1","LockDelay":15000000000,"Behavior":"release","TTL":"","NodeChecks":["serfHealth"],"ServiceChecks":null,"CreateIndex":4,"ModifyIndex":4}]`
	s, f := newServer(t, Config{}, map[string]any{
		"Session.Create": &kv.SessionCreateReply{ID: "s1"},
		"Session.List":   &kv.SessionsReply{Meta: someMeta, Sessions: []*kv.Session{ses}},
		"Session.Renew": func(req any) (any, error) {
			if req.(*kv.SessionRenewRequest).ID != "s1" {
				return &kv.SessionsReply{}, nil
			}
			return &kv.SessionsReply{Sessions: []*kv.Session{ses}}, nil
		},
	})
	for _, tt := range []struct {
		method, target, body string
		status               int
		want                 string
	}{
		{"PUT", "/v1/session/create", "", 200, `{"ID":"s1"}`},
		{"PUT", "/v1/session/create", "xx", 400, "Request decode failed: invalid character 'x' looking for beginning of value"},
		{"PUT", "/v1/session/create?dc=dc2", "{}", 500, "cross datacenter lock must be created at server agent"},
		{"PUT", "/v1/session/destroy/s1", "", 200, "true"},
		{"PUT", "/v1/session/destroy/", "", 400, "Missing session"},
		{"PUT", "/v1/session/renew/s1", "", 200, text},
		{"PUT", "/v1/session/renew/x", "", 404, "Session id 'x' not found"},
		{"PUT", "/v1/session/renew/", "", 400, "Missing session"},
		{"GET", "/v1/session/info/s1", "", 200, text},
		{"GET", "/v1/session/info/", "", 400, "Missing session"},
		{"GET", "/v1/session/node/node1", "", 200, text},
		{"GET", "/v1/session/node/", "", 400, "Missing node name"},
		{"GET", "/v1/session/list", "", 200, text},
	} {
		if w := do(s, tt.method, tt.target, tt.body); w.Code != tt.status || w.Body.String() != tt.want {
			t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.target, w.Code, w.Body, tt.status, tt.want)
		}
	}
	if h := do(s, "PUT", "/v1/session/renew/s1", "").Header(); h.Get("X-Consul-Index") != "" {
		t.Error("renew carries an index")
	}
	serf := []string{"serfHealth"}
	for body, want := range map[string]kv.Session{
		``:                                      {NodeChecks: serf},
		`{}`:                                    {NodeChecks: serf},
		`{"LockDelay":5,"name":"x"}`:            {NodeChecks: serf, LockDelay: 5 * time.Second, Name: "x"},
		`{"LockDelay":1000}`:                    {NodeChecks: serf, LockDelay: 1000},
		`{"LockDelay":"500ns"}`:                 {NodeChecks: serf, LockDelay: 500 * time.Second},
		`{"LockDelay":"0s","TTL":"20s"}`:        {NodeChecks: serf, LockDelay: -1, TTL: "20s"},
		`{"LockDelay":true}`:                    {NodeChecks: serf},
		`{"Behavior":"","ID":"x","Zap":1}`:      {NodeChecks: serf},
		`{"Behavior":"delete","Node":"other"}`:  {NodeChecks: serf, Behavior: kv.Delete, Node: "other"},
		`{"NodeChecks":["a","b"]}`:              {NodeChecks: []string{"a", "b"}},
		`{"NodeChecks":[]}`:                     {NodeChecks: []string{}},
		`{"ServiceChecks":[{"ID":"c"}]}`:        {NodeChecks: serf, ServiceChecks: []kv.ServiceCheck{{ID: "c"}}},
		`{"Checks":[]}`:                         {},
		`{"Checks":null}`:                       {},
		`{"Checks":["serfHealth"]}`:             {NodeChecks: serf},
		`{"Checks":["mine"]}`:                   {NodeChecks: serf, Checks: []string{"mine"}},
		`{"Checks":["mine"],"NodeChecks":[]}`:   {NodeChecks: []string{}},
		`{"checks":["mine"],"nodechecks":null}`: {},
	} {
		if want.LockDelay == 0 {
			want.LockDelay = 15 * time.Second
		}
		want.LockDelay = max(want.LockDelay, 0)
		if want.Behavior == "" {
			want.Behavior = kv.Release
		}
		if want.Node == "" {
			want.Node = "node1"
		}
		if w := do(s, "PUT", "/v1/session/create", body); w.Code != 200 {
			t.Errorf("%s = %d %s", body, w.Code, w.Body)
		}
		if d := cmp.Diff(want, last[kv.SessionCreateRequest](t, f, "Session.Create").Session); d != "" {
			t.Errorf("%s (-want +got):\n%s", body, d)
		}
	}
	server, _ := newServer(t, Config{Server: true}, map[string]any{"Session.Create": &kv.SessionCreateReply{ID: "s1"}})
	if w := do(server, "PUT", "/v1/session/create?dc=dc2", "{}"); w.Code != 200 {
		t.Errorf("through a server = %d %s", w.Code, w.Body)
	}
}

// TestTransactions pins section 3 of spec/state.md.
func TestTransactions(t *testing.T) {
	s, f := newServer(t, Config{KVMaxValueSize: 10, TxnMaxRequestLength: 16 << 10}, map[string]any{
		"Txn.Apply": func(req any) (any, error) {
			if req.(*kv.TxnRequest).Ops[0].KV != nil {
				return &kv.TxnReply{Errors: []kv.TxnError{{OpIndex: 0, What: `key "a" exists`}}}, nil
			}
			return &kv.TxnReply{Results: []kv.TxnResult{{Node: &catalog.Node{Node: "n"}}}}, nil
		},
		"Txn.Read": &kv.TxnReadReply{Meta: read.Meta{Index: 9, KnownLeader: true}, TxnReply: kv.TxnReply{Results: []kv.TxnResult{{KV: someEntry()}}}},
	})
	many := func(n int) string {
		return "[" + strings.TrimSuffix(strings.Repeat(`{"KV":{"Verb":"get","Key":"a"}},`, n), ",") + "]"
	}
	const readBody = `{"Results":[{"KV":{"LockIndex":0,"Key":"app/name","Flags":0,"Value":"b25l","CreateIndex":3,"ModifyIndex":7}}],"Errors":null,` +
		`"Index":1,"LastContact":0,"KnownLeader":true,"ConsistencyLevel":"","NotModified":false,"Backend":0,"ResultsFilteredByACLs":false}`
	for _, tt := range []struct {
		name, body string
		status     int
		want       string // "…" at its end: only the beginning counts
	}{
		{"read", `[{"KV":{"Verb":"get","Key":"a"}}]`, 200, readBody},
		{"unknown verb is no write", `[{"KV":{"Verb":"zap","Key":"a"}}]`, 200, readBody},
		{"empty operation", `[{}]`, 200, readBody},
		{"null", `null`, 200, readBody},
		{"128 operations", many(128), 200, readBody},
		{"129 operations", many(129), 413, "Transaction contains too many operations (129 > 128)"},
		{"write", `[{"node":{"verb":"set","Node":{"Node":"n"}}}]`, 200,
			`{"Results":[{"Node":{"ID":"","Node":"n","Address":"","Datacenter":"","TaggedAddresses":null,"Meta":null,"CreateIndex":0,"ModifyIndex":0}}],"Errors":null}`},
		{"conflict", `[{"KV":{"Verb":"set","Key":"a"}}]`, 409, `{"Results":null,"Errors":[{"OpIndex":0,"What":"key \"a\" exists"}]}`},
		{"no body", ``, 400, "Failed to parse body: EOF"},
		{"object", `{}`, 400, "Failed to parse body: …"},
		{"base64", `[{"KV":{"Verb":"set","Value":"!!"}}]`, 400, "Failed to parse body: …"},
		{"unknown operation", `[{"Mystery":{}}]`, 400, `Failed to parse body: json: unknown field "Mystery"`},
		{"session", `[{"Session":{"Verb":"delete"}}]`, 400, `Failed to parse body: json: unknown field "Session"`},
		{"unknown field", `[{"Node":{"Verb":"get","Node":{"Zap":1}}}]`, 400, `Failed to parse body: json: unknown field "Zap"`},
		{"value too large", `[{"KV":{"Verb":"set","Key":"k","Value":"MDEyMzQ1Njc4OWE="}}]`, 413, `Value for key "k" is too large (11 > 10 bytes)`},
		{"too long", `[{"KV":{"Key":"` + strings.Repeat("k", 16<<10) + `"}}]`, 413,
			"Request body(16403 bytes) too large, max size: 16384 bytes. See limits.txn_max_req_len in the configuration."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := do(s, "PUT", "/v1/txn", tt.body)
			got := w.Body.String()
			if begin, ok := strings.CutSuffix(tt.want, "…"); w.Code != tt.status || ok && !strings.HasPrefix(got, begin) || !ok && got != tt.want {
				t.Errorf("= %d %q, want %d %q", w.Code, got, tt.status, tt.want)
			}
			if ct := w.Header().Get("Content-Type"); (tt.status == 409) != (ct == "application/json") && tt.status != 200 {
				t.Errorf("Content-Type = %q", ct)
			}
			if w.Header().Get("X-Consul-Index") != "" {
				t.Error("X-Consul-Index is set")
			}
		})
	}
	body := `[{"KV":{"Verb":"cas","Key":"k","Value":"MQ==","Flags":3,"Index":9,"Session":"s"}},
		{"Service":{"Verb":"set","Node":"n","Service":{"ID":"w","Service":"web","Port":1,"Connect":{"Native":true},"ContentHash":"x","ModifyIndex":2,
			"Proxy":{"DestinationServiceName":"d","Config":{"a":1},"Upstreams":[{"DestinationName":"u"}],"Expose":{"Checks":true},"MeshGateway":{"Mode":"local"}}}}},
		{"Check":{"Verb":"set","Check":{"Node":"n","CheckID":"c","Definition":{"HTTP":"h","Interval":"10s","TimeoutDuration":1000000000,"Zap":1}}}},
		{"Check":{"Verb":"delete","Check":{"Node":"n","CheckID":"c"}}}]`
	do(s, "PUT", "/v1/txn?dc=dc3&token=t", body)
	want := &kv.TxnRequest{Target: read.Target{Datacenter: "dc3", Token: "t"}, Ops: []kv.TxnOp{
		{KV: &kv.TxnKV{Verb: kv.OpCAS, Entry: kv.Entry{Key: "k", Value: []byte("1"), Flags: 3, Session: "s", Indexes: catalog.Indexes{ModifyIndex: 9}}}},
		{Service: &kv.TxnService{Verb: kv.OpSet, Node: "n", Service: catalog.Service{ID: "w", Service: "web", Port: 1, Indexes: catalog.Indexes{ModifyIndex: 2},
			Proxy: catalog.Proxy{DestinationServiceName: "d", MeshGateway: catalog.MeshGateway{Mode: "local"}}}}},
		{Check: &kv.TxnCheck{Verb: kv.OpSet, Check: catalog.Check{Node: "n", CheckID: "c",
			Definition: catalog.CheckDefinition{HTTP: "h", Interval: catalog.Duration(10 * time.Second), Timeout: catalog.Duration(time.Second)}}}},
		{Check: &kv.TxnCheck{Verb: kv.OpDelete, Check: catalog.Check{Node: "n", CheckID: "c"}}},
	}}
	if d := cmp.Diff(want, last[kv.TxnRequest](t, f, "Txn.Apply")); d != "" {
		t.Errorf("request (-want +got):\n%s", d)
	}
	h := do(s, "PUT", "/v1/txn?stale", `[]`).Header()
	if h.Get("X-Consul-KnownLeader") != "true" || h.Get("X-Consul-LastContact") != "0" {
		t.Errorf("headers = %v", h)
	}
	if h := do(s, "PUT", "/v1/txn", `[{"Node":{"Verb":"set"}}]`).Header(); h.Get("X-Consul-KnownLeader") != "" {
		t.Errorf("headers of a write = %v", h)
	}
}

// TestRegister pins sections 8.1 and 8.2 as far as the agent decides.
func TestRegister(t *testing.T) {
	s, f := newServer(t, Config{}, nil)
	body := `{"Datacenter":"dc2","ID":"i","node":"ext","Address":"10.1.1.1","NodeMeta":{"k":"v"},"SkipNodeUpdate":true,
		"Service":{"ID":"s1","Service":"s","Tags":["a"],"Weights":{"Passing":5},"TaggedAddresses":{"wan":{"Address":"a","Port":1}},"Proxy":{"Config":{"x":[1,{"y":null}]}}},
		"Check":{"CheckID":"c0","Definition":{"Interval":5000000000,"Whatever":1}},
		"Checks":[{"Name":"c1","Definition":{"HTTP":"h","Timeout":"1s"}},null]}`
	if w := do(s, "PUT", "/v1/catalog/register?token=t&dc=dc9", body); w.Code != 200 || w.Body.String() != "true" {
		t.Fatalf("= %d %q", w.Code, w.Body)
	}
	want := &catalog.RegisterRequest{
		Target: read.Target{Datacenter: "dc2", Token: "t"}, ID: "i", Node: "ext", Address: "10.1.1.1", NodeMeta: map[string]string{"k": "v"}, SkipNodeUpdate: true,
		Service: &catalog.Service{ID: "s1", Service: "s", Tags: []string{"a"}, Weights: &catalog.Weights{Passing: 5},
			TaggedAddresses: map[string]catalog.ServiceAddress{"wan": {Address: "a", Port: 1}},
			Proxy:           catalog.Proxy{Config: map[string]any{"x": []any{1.0, map[string]any{"y": nil}}}}},
		Check:  &catalog.Check{CheckID: "c0", Definition: catalog.CheckDefinition{Interval: catalog.Duration(5 * time.Second)}},
		Checks: []*catalog.Check{{Name: "c1", Definition: catalog.CheckDefinition{HTTP: "h", Timeout: catalog.Duration(time.Second)}}},
	}
	if d := cmp.Diff(want, last[catalog.RegisterRequest](t, f, "Catalog.Register")); d != "" {
		t.Errorf("request (-want +got):\n%s", d)
	}
	for body, want := range map[string]string{
		``:                         "Request decode failed: EOF",
		`{"Bogus":1}`:              `Request decode failed: json: unknown field "Bogus"`,
		`{"Namespace":"x"}`:        `Request decode failed: json: unknown field "Namespace" - namespaces are not supported`,
		`{"Service":{"Name":"s"}}`: `Request decode failed: json: unknown field "Name"`,
		`{"Check":{"Bogus":1}}`:    `Request decode failed: json: unknown field "Bogus"`,
		`{"Checks":[{"Bogus":1}]}`: `Request decode failed: json: unknown field "Bogus"`,
		`{"Token":"x"}`:            `Request decode failed: json: unknown field "Token"`,
		`{"Node":"a"`:              "Request decode failed: unexpected EOF",
		`{"Check":{"Definition":{"Interval":"bad"}}}`: `Request decode failed: time: invalid duration "bad"`,
	} {
		if w := do(s, "PUT", "/v1/catalog/register", body); w.Code != 400 || w.Body.String() != want {
			t.Errorf("%s = %d %q, want 400 %q", body, w.Code, w.Body, want)
		}
	}
	for body, want := range map[string]catalog.DeregisterRequest{
		`{"Node":"n","ServiceID":"s","Address":"old"} trailing`: {Node: "n", ServiceID: "s"},
		`null`:                               {},
		`{"Datacenter":"dc2","CheckID":"c"}`: {Target: read.Target{Datacenter: "dc2"}, CheckID: "c"},
	} {
		if w := do(s, "PUT", "/v1/catalog/deregister", body); w.Code != 200 || w.Body.String() != "true" {
			t.Errorf("%s = %d %q", body, w.Code, w.Body)
		}
		if d := cmp.Diff(&want, last[catalog.DeregisterRequest](t, f, "Catalog.Deregister")); d != "" {
			t.Errorf("%s (-want +got):\n%s", body, d)
		}
	}
	if w := do(s, "PUT", "/v1/catalog/deregister", `{"Bogus":1}`); w.Code != 400 {
		t.Errorf("unknown key = %d", w.Code)
	}
}

func someInstance(i int) *catalog.Instance {
	node := fmt.Sprintf("n%d", i)
	return &catalog.Instance{
		Node:    &catalog.Node{Node: node, Address: "10.0.0.1", Datacenter: "dc1", TaggedAddresses: map[string]string{"wan": "198.51.100.1"}},
		Service: &catalog.Service{ID: "web", Service: "web", Port: 80, Weights: &catalog.Weights{Passing: 1, Warning: 1}, TaggedAddresses: map[string]catalog.ServiceAddress{"wan": {Address: "198.51.100.2", Port: 99}}},
		Checks:  []*catalog.Check{{Node: node, CheckID: "c", Name: "c", Status: "passing", ServiceID: "web", ServiceName: "web"}},
	}
}

func TestShapesOfCatalogAnswers(t *testing.T) {
	in := someInstance(1)
	s, _ := newServer(t, Config{}, map[string]any{
		"Catalog.Services": &catalog.ServicesReply{Meta: someMeta, Services: map[string][]string{"web": {"a"}, "consul": nil}},
		"Catalog.NodeServices": func(req any) (any, error) {
			if req.(*catalog.NodeServicesRequest).Node != "n1" {
				return &catalog.NodeServicesReply{Meta: someMeta}, nil
			}
			return &catalog.NodeServicesReply{Meta: someMeta, Node: in.Node, Services: []*catalog.Service{in.Service}}, nil
		},
		"Health.Checks":    &catalog.ChecksReply{Meta: someMeta, Checks: in.Checks},
		"Health.Instances": &catalog.InstancesReply{Meta: someMeta, Instances: []*catalog.Instance{in}},
	})
	const node = `{"ID":"","Node":"n1","Address":"10.0.0.1","Datacenter":"dc1","TaggedAddresses":{"wan":"198.51.100.1"},"Meta":null,"CreateIndex":0,"ModifyIndex":0}`
	const service = `{"ID":"web","Service":"web","Tags":[],"Address":"","TaggedAddresses":{"wan":{"Address":"198.51.100.2","Port":99}},"Meta":null,"Port":80,` +
		`"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"Mode":"","MeshGateway":{},"Expose":{}},"Connect":{},"PeerName":"","CreateIndex":0,"ModifyIndex":0}`
	const check = `{"Node":"n1","CheckID":"c","Name":"c","Status":"passing","Notes":"","Output":"","ServiceID":"web","ServiceName":"web","ServiceTags":[],"Type":"",` +
		`"Interval":"","Timeout":"","ExposedPort":0,"Definition":{},"CreateIndex":0,"ModifyIndex":0}`
	const serviceNode = `{"ID":"","Node":"n1","Address":"10.0.0.1","Datacenter":"dc1","TaggedAddresses":{"wan":"198.51.100.1"},"NodeMeta":null,"ServiceKind":"","ServiceID":"web",` +
		`"ServiceName":"web","ServiceTags":[],"ServiceAddress":"","ServiceTaggedAddresses":{"wan":{"Address":"198.51.100.2","Port":99}},"ServiceWeights":{"Passing":1,"Warning":1},` +
		`"ServiceMeta":{},"ServicePort":80,"ServiceSocketPath":"","ServiceEnableTagOverride":false,"ServiceProxy":{"Mode":"","MeshGateway":{},"Expose":{}},"ServiceConnect":{},` +
		`"ServiceLocality":null,"CreateIndex":0,"ModifyIndex":0}`
	for target, want := range map[string]string{
		"/v1/catalog/services":           `{"consul":[],"web":["a"]}`,
		"/v1/catalog/node/none":          `null`,
		"/v1/catalog/node-services/none": `{"Node":null,"Services":null}`,
		"/v1/catalog/node/n1":            `{"Node":` + node + `,"Services":{"web":` + service + `}}`,
		"/v1/catalog/node-services/n1":   `{"Node":` + node + `,"Services":[` + service + `]}`,
		"/v1/health/checks/web":          `[` + check + `]`,
		"/v1/health/service/web":         `[{"Node":` + node + `,"Service":` + service + `,"Checks":[` + check + `]}]`,
		"/v1/catalog/service/web":        `[` + serviceNode + `]`,
	} {
		for range 3 { // the first is not remembered, the second is, the third is remembered
			w := do(s, "GET", target, "")
			if w.Body.String() != want {
				t.Errorf("%s:\n got %s\nwant %s", target, w.Body, want)
			}
			if w.Header().Get("X-Consul-Index") != "7" || w.Header().Get("X-Consul-Effective-Consistency") != "leader" {
				t.Errorf("%s: headers %v", target, w.Header())
			}
		}
	}
	for target, want := range map[string]string{
		"/v1/catalog/service/": "Missing service name", "/v1/catalog/connect/": "Missing service name", "/v1/health/ingress/": "Missing service name",
		"/v1/catalog/node/": "Missing node name", "/v1/catalog/node-services/": "Missing node name", "/v1/health/node/": "Missing node name",
		"/v1/health/checks/": "Missing service name", "/v1/health/state/": "Missing check state", "/v1/health/service/web?passing=yes": "Invalid value for ?passing",
		"/v1/health/service/web?peer=a&sg=b": "peer-name and sameness-group are mutually exclusive", "/v1/catalog/gateway-services/": "Missing gateway name",
	} {
		if w := do(s, "GET", target, ""); w.Code != 400 || w.Body.String() != want {
			t.Errorf("%s = %d %q, want 400 %q", target, w.Code, w.Body, want)
		}
	}
}

func TestWANAddressesOfOtherDatacenters(t *testing.T) {
	in := someInstance(1)
	s, _ := newServer(t, Config{TranslateWANAddrs: true}, map[string]any{
		"Health.Instances":     &catalog.InstancesReply{Meta: someMeta, Instances: []*catalog.Instance{in}},
		"Catalog.Nodes":        &catalog.NodesReply{Meta: someMeta, Nodes: []*catalog.Node{in.Node}},
		"Catalog.NodeServices": &catalog.NodeServicesReply{Meta: someMeta, Node: in.Node, Services: []*catalog.Service{in.Service}},
	})
	for target, want := range map[string][]string{
		"/v1/health/service/web":             {`"Address":"10.0.0.1"`, `"Port":80`},
		"/v1/health/service/web?dc=dc2":      {`"Address":"198.51.100.1"`, `"Address":"198.51.100.2"`, `"Port":99`},
		"/v1/catalog/service/web?dc=dc2":     {`"Address":"198.51.100.1"`, `"ServiceAddress":"198.51.100.2"`, `"ServicePort":99`},
		"/v1/catalog/nodes?dc=dc2":           {`"Address":"198.51.100.1"`},
		"/v1/catalog/nodes":                  {`"Address":"10.0.0.1"`},
		"/v1/catalog/node/n1?dc=dc2":         {`"Address":"198.51.100.1"`, `"Port":99`},
		"/v1/catalog/node-services/n?dc=dc1": {`"Address":"10.0.0.1"`},
	} {
		body := do(s, "GET", target, "").Body.String()
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s lacks %s: %s", target, w, body)
			}
		}
	}
	if in.Node.Address != "10.0.0.1" || in.Service.Port != 80 {
		t.Error("the shared objects were changed")
	}
}

// TestRenderedListsFollowTheirObjects checks that remembered bytes are never those of other objects.
func TestRenderedListsFollowTheirObjects(t *testing.T) {
	list := []*catalog.Instance{someInstance(1), someInstance(2)}
	reply := func(any) (any, error) {
		fresh := make([]*catalog.Instance, len(list)) // servers make the triples anew, of shared objects
		for i, in := range list {
			c := *in
			fresh[i] = &c
		}
		return &catalog.InstancesReply{Meta: someMeta, Instances: fresh}, nil
	}
	s, _ := newServer(t, Config{}, map[string]any{"Health.Instances": reply})
	get := func() string {
		t.Helper()
		w := do(s, "GET", "/v1/health/service/web", "", "Accept-Encoding", "gzip")
		z, err := gzip.NewReader(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if plain := do(s, "GET", "/v1/health/service/web", "").Body.String(); plain != string(data) {
			t.Fatalf("plain and compressed differ:\n%s\n%s", plain, data)
		}
		return string(data)
	}
	want := func() string { return string(appendList(nil, list, appendInstance)) }
	for range 3 {
		if got := get(); got != want() {
			t.Fatalf("got %s", got)
		}
	}
	changes := []func(){
		func() {
			c := *list[1].Checks[0]
			c.Status = "critical"
			list[1] = &catalog.Instance{Node: list[1].Node, Service: list[1].Service, Checks: []*catalog.Check{&c}}
		},
		func() {
			c := *list[0].Node
			c.Address = "10.9.9.9"
			list[0] = &catalog.Instance{Node: &c, Service: list[0].Service, Checks: list[0].Checks}
		},
		func() {
			c := *list[0].Service
			c.Port = 1
			list[0] = &catalog.Instance{Node: list[0].Node, Service: &c, Checks: list[0].Checks}
		},
		func() { list = append(list, someInstance(3)) },
		func() { list = list[1:] },
		func() { slices.Reverse(list) },
	}
	for i, change := range changes {
		change()
		if got := get(); got != want() {
			t.Errorf("after change %d: %s", i, got)
		}
	}
	for i := range 2 * maxRenderings { // many lists do not pile up
		s.instances.slot(renderKey{path: fmt.Sprint(i)})
	}
	if n := len(s.instances.lists); n > maxRenderings {
		t.Errorf("%d lists remembered", n)
	}
	s.instances.mu.Lock()
	total := int64(0)
	for _, slot := range s.instances.lists {
		if r := slot.now.Load(); r != nil {
			total += int64(len(r.json) + len(r.gzip))
		}
	}
	if got := s.instances.bytes.Load(); got != total {
		t.Errorf("%d bytes counted, %d there", got, total)
	}
	s.instances.mu.Unlock()
}

// TestCrowdsAreAnsweredAlike answers many watchers at once while the list changes.
func TestCrowdsAreAnsweredAlike(t *testing.T) {
	var mu sync.Mutex
	list := []*catalog.Instance{someInstance(1), someInstance(2), someInstance(3)}
	s, _ := newServer(t, Config{}, map[string]any{"Health.Instances": func(any) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		return &catalog.InstancesReply{Meta: someMeta, Instances: slices.Clone(list)}, nil
	}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				w := do(s, "GET", "/v1/health/service/web", "", "Accept-Encoding", []string{"gzip", "identity"}[i%2])
				var body io.Reader = w.Body
				if w.Header().Get("Content-Encoding") == "gzip" {
					body, _ = gzip.NewReader(w.Body)
				}
				var got []struct{ Service struct{ Port int } }
				if err := json.NewDecoder(body).Decode(&got); err != nil || len(got) != 3 {
					t.Errorf("%v, %d instances", err, len(got))
				}
				mu.Lock()
				in := *list[0]
				svc := *in.Service
				svc.Port++
				in.Service = &svc
				list[0] = &in
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestCachedAnswersSaySo(t *testing.T) {
	f := &fakeCaller{answer: map[string]any{"Health.Instances": func(req any) (any, error) {
		if req.(*catalog.InstancesRequest).MinIndex > 0 {
			return nil, errors.New("no change in this test")
		}
		return &catalog.InstancesReply{Meta: someMeta, Instances: []*catalog.Instance{someInstance(1)}}, nil
	}}}
	c := cache.New(f, cache.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	s, _ := newServer(t, Config{Caller: f, Cache: c}, nil)
	for i, want := range []string{"MISS", "HIT", "HIT"} {
		h := do(s, "GET", "/v1/health/service/web?cached", "").Header()
		if h.Get("X-Cache") != want || (h.Get("Age") != "") != (want == "HIT") {
			t.Errorf("request %d: X-Cache %q, Age %q, want %s", i, h.Get("X-Cache"), h.Get("Age"), want)
		}
	}
	for _, target := range []string{"/v1/catalog/nodes?cached", "/v1/health/node/n?cached", "/v1/session/list?cached", "/v1/health/service/web"} {
		if h := do(s, "GET", target, "").Header(); h.Get("X-Cache") != "" {
			t.Errorf("%s: X-Cache %q", target, h.Get("X-Cache"))
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCoordinates(t *testing.T) {
	coord := &catalog.NodeCoordinate{Node: "n1", Coord: &catalog.Coordinate{Vec: make([]float64, 8), Error: 1.5, Height: 1e-5}}
	answer := map[string]any{"Coordinate.List": func(req any) (any, error) {
		if n := req.(*catalog.CoordinatesRequest).Node; n != "" && !strings.EqualFold(n, "n1") {
			return &catalog.CoordinatesReply{Meta: someMeta}, nil
		}
		return &catalog.CoordinatesReply{Meta: someMeta, Coordinates: []*catalog.NodeCoordinate{coord}}, nil
	}}
	s, f := newServer(t, Config{}, answer)
	text := func(node string) string {
		return `[{"Node":"` + node + `","Segment":"","Coord":{"Vec":[0,0,0,0,0,0,0,0],"Error":1.5,"Adjustment":0,"Height":0.00001}}]`
	}
	for _, tt := range []struct {
		method, target, body string
		status               int
		want                 string
	}{
		{"GET", "/v1/coordinate/nodes", "", 200, text("n1")},
		{"GET", "/v1/coordinate/nodes?segment=", "", 200, text("n1")},
		{"GET", "/v1/coordinate/nodes?segment=alpha", "", 200, "[]"},
		{"GET", "/v1/coordinate/node/N1", "", 200, text("N1")},
		{"GET", "/v1/coordinate/node/none", "", 404, ""},
		{"PUT", "/v1/coordinate/update", `{"Node":"n","Coord":{"Vec":[0,0,0,0,0,0,0,1],"Error":1.5}}`, 200, ""},
		{"PUT", "/v1/coordinate/update", `{"Node":"n","Coord":{"Vec":[1]}}`, 500, "incompatible coordinate"},
		{"PUT", "/v1/coordinate/update", `{"Node":"n"}`, 500, "incompatible coordinate"},
		{"PUT", "/v1/coordinate/update", `x`, 400, "Request decode failed: invalid character 'x' looking for beginning of value"},
	} {
		if w := do(s, tt.method, tt.target, tt.body); w.Code != tt.status || w.Body.String() != tt.want {
			t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.target, w.Code, w.Body, tt.status, tt.want)
		}
	}
	if u := last[catalog.CoordinateUpdate](t, f, "Coordinate.Update").Updates; len(u) != 1 || u[0].Node != "n" || u[0].Coord.Vec[7] != 1 {
		t.Errorf("update = %+v", u)
	}
	off, f := newServer(t, Config{DisableCoordinates: true}, answer)
	for _, target := range []string{"/v1/coordinate/nodes", "/v1/coordinate/node/x", "/v1/coordinate/datacenters"} {
		if w := do(off, "GET", target, ""); w.Code != 401 || w.Body.String() != "Coordinate support disabled" {
			t.Errorf("off: %s = %d %q", target, w.Code, w.Body)
		}
	}
	do(off, "GET", "/v1/catalog/nodes?near=_agent", "")
	if got := last[catalog.NodesRequest](t, f, "Catalog.Nodes").Near; got != "" {
		t.Errorf("near = %q with coordinates off", got)
	}
}

// FuzzParams compares the parser with url.ParseQuery.
func FuzzParams(f *testing.F) {
	for _, seed := range []string{"", "a", "a=b&c", "a=%20+&a=2", "%zz", ";", "a;b=c", "&&", "=x", "a==b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		want, wantErr := url.ParseQuery(raw)
		var p params
		err := p.parse(raw)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("parse(%q) = %v, net/url says %v", raw, err, wantErr)
		}
		if err != nil {
			return
		}
		got := map[string][]string{}
		for _, kv := range p.list {
			got[kv.name] = append(got[kv.name], kv.value)
		}
		if !maps.EqualFunc(want, got, slices.Equal[[]string]) {
			t.Errorf("parse(%q) = %q, want %q", raw, got, want)
		}
		for name, values := range want {
			if p.get(name) != values[0] || !p.has(name) || !slices.Equal(p.all(name), values) {
				t.Errorf("%q: %q reads %q", raw, name, p.all(name))
			}
		}
	})
}
