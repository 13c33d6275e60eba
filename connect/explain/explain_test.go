package explain_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/explain"
)

const (
	httpEverywhere = `{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}`
	webMay         = `{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Action": "allow"}]}`
	remoteKeys     = `{"Kind": "jwt-provider", "Name": "okta", "Issuer": "okta", "Audiences": ["us"], "JSONWebKeySet": {"Remote": {"URI": "https://okta.example.com/keys"}}}`
	adminsMay      = `{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"},
		"JWT": {"Providers": [{"Name": "okta", "VerifyClaims": [{"Path": ["role"], "Value": "admin"}]}]}}]}]}`
)

// Each case says what the text of an explanation has, and what it does not have.
func TestExplanations(t *testing.T) {
	sidecars := func(w *world) {
		w.sidecar("web", "v1", "passing", "db")
		w.sidecar("db", "v1", "passing")
		w.sidecar("db", "v2", "critical")
	}
	tests := []struct {
		name     string
		entries  []string
		register func(w *world)
		request  explain.Request
		allow    bool
		verdict  string
		want     []string
		not      []string
	}{
		{
			name: "an intention about connections", entries: []string{webMay}, register: sidecars, verdict: explain.Allowed,
			want: []string{"the intention web => db (precedence 9) says allow", "protocol tcp", "10.0.0.3:21000 unhealthy db-3 on n3", "2 instances, 1 healthy"},
			not:  []string{"note:", "problem:", "access log"},
		},
		{
			name: "the default", register: sidecars, verdict: explain.Denied,
			want: []string{"no intention to db is about web, so the default decides: deny", "connection_termination_details=rbac_access_denied_matched_policy[none]"},
		},
		{name: "the default allows", register: sidecars, allow: true, verdict: explain.Allowed, want: []string{"so the default decides: allow"}},
		{
			name: "permissions have no meaning for connections", register: sidecars, allow: true, verdict: explain.Denied,
			entries: []string{`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}]}`},
			want:    []string{"asks for something of requests, which a connection can not show", "rbac_access_denied_matched_policy[consul-intentions-layer4]"},
		},
		{
			name: "a wider intention", register: sidecars, verdict: explain.Denied, allow: true,
			entries: []string{`{"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "*", "Action": "deny"}, {"Name": "other", "Action": "allow"}]}`},
			want:    []string{"the intention * => * (precedence 5) says deny"},
		},
		{
			name: "permissions see the path that was rewritten", register: sidecars, verdict: explain.Denied, request: explain.Request{Path: "/admin/x?q=1"},
			entries: []string{
				httpEverywhere, `{"Kind": "service-router", "Name": "db", "Routes": [{"Match": {"HTTP": {"PathExact": "/"}}},
					{"Match": {"HTTP": {"PathPrefix": "/admin", "Header": [{"Name": "x", "Present": true, "Invert": true}], "Methods": ["get"]}},
					 "Destination": {"PrefixRewrite": "/secret", "RequestTimeout": "7s", "NumRetries": 3, "RetryOnConnectFailure": true, "RequestHeaders": {"Set": {"a": "b"}, "Remove": ["c"]}}}]}`,
				`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/secret"}}, {"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}]}`,
			},
			want: []string{
				`route 2 of the service-router db matches: path begins with "/admin", not (header x is there), method GET`, "the path becomes /secret/x?q=1",
				"timeouts: request 7s, idle 5m0s, connect 5s", "up to 3 retries, on connect-failure", "request: set a: b", "request: remove c",
				`says deny by its permission 1 of 2: path begins with "/secret"`, "rule=default response_code_details=rbac_access_denied_matched_policy[none]",
			},
		},
		{
			name: "branches that decide differently", register: sidecars, verdict: explain.Depends,
			entries: []string{
				httpEverywhere, webMay, `{"Kind": "service-splitter", "Name": "db", "Splits": [{"Weight": 90}, {"Weight": 10, "Service": "old"}]}`,
				`{"Kind": "service-resolver", "Name": "old", "Redirect": {"Service": "older"}}`,
			},
			want: []string{
				"the branches of the split decide differently", "the requests are split 2 ways", "90.00 % by the service-splitter db: db in dc1", "10.00 % by the service-splitter db: older in dc1",
				"by redirects and default subsets: old.default.default.dc1 -> older.default.default.dc1", "0 instances, 0 healthy", "no proxy of older is registered",
			},
		},
		{
			name: "failover, subsets and load balancing", register: sidecars, verdict: explain.Allowed,
			entries: []string{
				httpEverywhere, webMay, `{"Kind": "service-resolver", "Name": "db", "DefaultSubset": "v2", "Subsets": {"v2": {"Filter": "Service.Meta.version == v2"}, "v1": {"Filter": "Service.Meta.version == v1"}},
					"LoadBalancer": {"Policy": "maglev"}, "Failover": {"*": {"Targets": [{"ServiceSubset": "v1"}, {"Service": "cache"}, {"Datacenter": "dc2"}]}}}`,
			},
			want: []string{
				"db (subset v2) in dc1", "subset v2: Service.Meta.version == v2", "load balancer: maglev", "1 instances, 0 healthy", "failover 1: db (subset v1) in dc1",
				"failover 2: cache in dc1", "failover 3: db (subset v2) in dc2", "note: instances of other datacenters are not known here",
			},
		},
		{
			name: "the service of a peer", register: sidecars, verdict: explain.Unknown,
			entries: []string{`{"Kind": "service-resolver", "Name": "db", "Redirect": {"Service": "db", "Peer": "p"}}`},
			want:    []string{"whom to trust for peer p is not known"},
		},
		{
			name: "nothing is registered", verdict: explain.Allowed, entries: []string{webMay},
			want: []string{"web has no sidecar registered; one with the central settings is assumed", "no proxy of db is registered", "0 instances"},
		},
		{
			name: "an upstream that is not there", verdict: explain.Allowed, entries: []string{webMay},
			register: func(w *world) { w.sidecar("web", "", "passing", "api"); w.sidecar("db", "", "passing") },
			want:     []string{"the sidecar of web has no upstream db: the application can not reach it there"},
		},
		{
			name: "a transparent proxy needs no upstream", verdict: explain.Allowed, entries: []string{webMay},
			register: func(w *world) {
				w.sidecar("web", "", "passing")
				w.sidecars[0].Service.Proxy.Mode = "transparent"
				w.sidecar("db", "", "passing")
			},
			not: []string{"has no upstream"},
		},
		{
			name: "a native application", verdict: explain.Allowed, entries: []string{webMay},
			register: func(w *world) {
				w.sidecar("web", "", "passing", "db")
				w.sidecar("db", "", "passing")
				s := w.sidecars[1].Service
				s.Kind, s.Service, s.Connect.Native = "", "db", true
			},
			want: []string{"the application itself asks: Matched L4 intention: default/web => default/db (Precedence: 9, Action: ALLOW)"},
		},
		{
			name: "the proxy answers before intentions", register: sidecars, verdict: explain.Denied, request: explain.Request{Path: "/a%2fb"},
			entries: []string{httpEverywhere, webMay, `{"Kind": "mesh", "HTTP": {"Incoming": {"RequestNormalization": {"PathWithEscapedSlashesAction": "REJECT_REQUEST"}}}}`},
			want:    []string{"the proxy of db answers 400 before intentions are asked: path_normalization_failed"},
		},
		{
			name: "the time that the application has", register: sidecars, verdict: explain.Allowed,
			entries: []string{webMay, `{"Kind": "service-defaults", "Name": "db", "Protocol": "http", "LocalRequestTimeoutMs": 4000}`},
			want:    []string{"timeouts: request 15s", "the application has 4s to answer"},
		},
		{
			name: "filters that ask others are noted", register: sidecars, verdict: explain.Allowed,
			entries: []string{webMay, `{"Kind": "service-defaults", "Name": "db", "Protocol": "http", "EnvoyExtensions": [{"Name": "builtin/ext-authz",
				"Arguments": {"Config": {"GrpcService": {"Target": {"URI": "127.0.0.1:9191"}}}}}]}`},
			want: []string{"note: the proxy of db also asks the filter"},
		},
		{
			name: "a claim that is met", register: sidecars, verdict: explain.Allowed, request: explain.Request{JWT: `{"role": "admin"}`},
			entries: []string{httpEverywhere, remoteKeys, adminsMay},
			want:    []string{"token of okta in header authorization: the claims count as those of a valid token", `by its permission 1 of 1: path begins with "/", a token of okta`},
		},
		{
			name: "a claim that is not met", register: sidecars, verdict: explain.Denied, request: explain.Request{JWT: `{"role": "user"}`},
			entries: []string{httpEverywhere, remoteKeys, adminsMay},
			want:    []string{"none of the 1 permissions of the intention web => db (precedence 9) fits the request, so the default decides: deny"},
		},
		{
			name: "claims of another issuer", register: sidecars, verdict: explain.Denied, request: explain.Request{JWT: `{"iss": "other", "role": "admin"}`},
			entries: []string{httpEverywhere, remoteKeys, adminsMay}, want: []string{"no jwt-provider has the token's issuer"},
		},
		{
			name: "claims that have expired", register: sidecars, verdict: explain.Denied, request: explain.Request{JWT: `{"role": "admin", "exp": 1}`},
			entries: []string{httpEverywhere, remoteKeys, adminsMay},
		},
		{
			name: "a token whose keys are elsewhere", register: sidecars, verdict: explain.Allowed, request: explain.Request{JWT: token(`{"iss": "okta", "aud": "us", "role": "admin"}`)},
			entries: []string{httpEverywhere, remoteKeys, adminsMay}, want: []string{"the signature was not verified, since the keys of okta are not in its entry"},
		},
		{
			name: "a token that is verified", register: sidecars, verdict: explain.Allowed, request: explain.Request{JWT: token(`{"iss": "okta", "role": "admin"}`)},
			entries: []string{httpEverywhere, providerText(), adminsMay}, not: []string{"not verified"},
		},
		{
			name: "a token that was changed", register: sidecars, verdict: explain.Denied, request: explain.Request{JWT: strings.Replace(token(`{"iss": "okta", "role": "admin"}`), ".", "x.", 1)},
			entries: []string{httpEverywhere, providerText(), adminsMay},
		},
		{
			name: "a token that is required of all", register: sidecars, verdict: explain.Denied,
			entries: []string{httpEverywhere, remoteKeys, `{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Action": "allow"}], "JWT": {"Providers": [{"Name": "okta"}]}}`},
			want:    []string{"asks for a token of okta, and the request has no valid one that says what it must"},
		},
		{
			name: "a token in the query is not shown", register: sidecars, verdict: explain.Allowed, request: explain.Request{Path: "/a?b=c", JWT: token(`{"iss": "okta", "role": "admin"}`)},
			entries: []string{
				httpEverywhere, strings.Replace(providerText(), `"Issuer"`, `"Locations": [{"QueryParam": {"Name": "t"}}], "Issuer"`, 1), adminsMay,
				`{"Kind": "service-router", "Name": "db", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/a", "QueryParam": [{"Name": "t", "Present": true}]}}, "Destination": {"PrefixRewrite": "/b"}}]}`,
			},
			want: []string{"query parameter t", "the path becomes /b?b=c&t=TOKEN"}, not: []string{"eyJ"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.entries...)
			if tt.register != nil {
				tt.register(w)
			}
			r := tt.request
			r.From, r.To = "web", "db"
			x, err := explain.Explain(config(tt.allow), w, r)
			if err != nil {
				t.Fatal(err)
			}
			got := text(x)
			if x.Verdict != tt.verdict || x.Allowed != (tt.verdict == explain.Allowed) {
				t.Errorf("got %s (allowed: %t), want %s:\n%s", x.Verdict, x.Allowed, tt.verdict, got)
			}
			for _, s := range tt.want {
				if !strings.Contains(got, s) {
					t.Errorf("%q is not in\n%s", s, got)
				}
			}
			for _, s := range append(tt.not, "decides so, not its intentions", "could not be found") {
				if strings.Contains(got, s) {
					t.Errorf("%q is in\n%s", s, got)
				}
			}
			all := fmt.Sprintf("%+v", x)
			if tt.request.JWT != "" && !strings.HasPrefix(tt.request.JWT, "{") && strings.Contains(all, tt.request.JWT) {
				t.Errorf("the token is told: %s", all)
			}
			if d := explain.Diff(x, x); d != nil {
				t.Errorf("it differs from itself: %q", d)
			}
		})
	}
}

// Which upstream is meant can be said by its port.
func TestPortChoosesTheUpstream(t *testing.T) {
	w := newWorld(t, webMay)
	w.sidecar("web", "", "passing", "db")
	p := &w.sidecars[0].Service.Proxy
	p.Upstreams = append(p.Upstreams, catalog.Upstream{DestinationName: "db", Datacenter: "dc2", LocalBindPort: 9100})
	for port, want := range map[int]string{0: "db", 9000: "db", 9100: "db?dc=dc2"} {
		x, err := explain.Explain(config(false), w, explain.Request{From: "web", To: "db", Port: port})
		if err != nil || x.Upstream != want {
			t.Errorf("port %d leads to %+v, %v; want %s", port, x, err, want)
		}
	}
	x, err := explain.Explain(config(false), w, explain.Request{From: "web", To: "db", Port: 1})
	if err != nil || x.Verdict != explain.Unknown || !slices.Contains(x.Problems, "the sidecar of web has no upstream db at port 1") {
		t.Errorf("got %+v, %v", x, err)
	}
}

func TestDifferences(t *testing.T) {
	explained := func(texts ...string) *explain.Explanation {
		w := newWorld(t, texts...)
		w.sidecar("db", "v1", "passing")
		x, err := explain.Explain(config(false), w, explain.Request{From: "web", To: "db"})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	got := explain.Diff(explained(httpEverywhere), explained(httpEverywhere, webMay,
		`{"Kind": "service-resolver", "Name": "db", "RequestTimeout": "3s", "Failover": {"*": {"Service": "cache"}}}`))
	want := []string{
		"verdict: denied -> allowed",
		"reason: no intention to db is about web, so the default decides: deny -> the intention web => db (precedence 9) says allow",
		`timeouts: {"Request":"15s","Idle":"5m0s","Connect":"5s"} -> {"Request":"3s","Idle":"5m0s","Connect":"5s"}`,
		"db in dc1: decision: denied: no intention to db is about web, so the default decides: deny -> allowed: the intention web => db (precedence 9) says allow",
		"db in dc1: time of the application: none -> 15s",
		"db in dc1: failover to cache in dc1: instances: none -> 0, 0 healthy",
		"db in dc1: failover to cache in dc1: decision: none -> denied: no intention to cache is about web, so the default decides: deny",
		"db in dc1: failover: none -> cache in dc1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Whatever is asked, there is an explanation or a reason why not, the same each time, and no token in it.
func FuzzExplain(f *testing.F) {
	f.Add("GET", "/a?b=c", "x", "1", `{"role": "admin"}`)
	f.Add("CONNECT", "/%00/../", "host", "::1", token(`{"iss": "okta"}`))
	f.Add("OPTIONS", "//", "connection", "close, x", "a.b.c")
	f.Add("PUT", "/a;b", "authorization", "Bearer x", `{"iss": 3, "aud": {}, "exp": "x"}`)
	w := newWorld(f, httpEverywhere, remoteKeys, adminsMay,
		`{"Kind": "service-router", "Name": "db", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/a", "Header": [{"Name": "x", "Exact": "1"}]}}, "Destination": {"PrefixRewrite": "/"}}]}`)
	w.sidecar("web", "v1", "passing", "db")
	w.sidecar("db", "v1", "passing")
	f.Fuzz(func(t *testing.T, method, path, name, value, jwt string) {
		r := explain.Request{From: "web", To: "db", Method: method, Path: path, Headers: []explain.Header{{Name: name, Value: value}}, JWT: jwt}
		x, err := explain.Explain(config(false), w, r)
		again, _ := explain.Explain(config(false), w, r)
		if err != nil {
			if x != nil {
				t.Fatalf("both %+v and %v", x, err)
			}
			return
		}
		if x.Allowed != (x.Verdict == explain.Allowed) || x.Reason == "" {
			t.Fatalf("%+v", x)
		}
		if d := explain.Diff(x, again); d != nil {
			t.Fatalf("another explanation: %q", d)
		}
		if strings.Count(jwt, ".") == 2 && !strings.HasPrefix(strings.TrimSpace(jwt), "{") && !strings.Contains(path+name+value, jwt) && strings.Contains(text(x), jwt) {
			t.Fatalf("the token is told: %s", text(x))
		}
	})
}
