//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/explain"
)

// TestExplanationsAreTrue asks a running mesh, with the built-in proxy and with Envoy as sidecars, what becomes of requests,
// sends them, and tries a change before it makes it.
func TestExplanationsAreTrue(t *testing.T) {
	binary(t)
	for _, by := range []string{"sarn", "envoy"} {
		t.Run(by, func(t *testing.T) {
			if by == "envoy" {
				tool(t, "envoy")
			}
			m := &mesh{TB: t, by: by, ports: map[string]int{}, sidecars: map[string]*process{}}
			free := freePorts(4)
			m.ports["web"] = free[0]
			service := func(name, id string, port, sidecar int, version string, proxy map[string]any) map[string]any {
				return map[string]any{
					"name": name, "id": id, "port": port, "meta": map[string]string{"version": version},
					"connect": map[string]any{"sidecar_service": map[string]any{"port": sidecar, "proxy": proxy}},
				}
			}
			m.agent = newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true, "default_intention_policy": "deny", "services": []any{
				service("web", "web-1", teller(t, "v1"), free[1], "1", nil), service("web", "web-2", teller(t, "v2"), free[2], "2", nil),
				service("shop", "shop", 1, free[3], "1", map[string]any{"upstreams": []any{map[string]any{"destination_name": "web", "local_bind_port": m.ports["web"]}}}),
			}})
			m.run(t)
			eventually(t, 20*time.Second, "the services are registered", func() bool {
				known, _ := m.get("/v1/catalog/services").(map[string]any)
				return known["shop-sidecar-proxy"] != nil && known["web-sidecar-proxy"] != nil
			})
			sign := newSigner(t)
			m.write(
				`{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}`,
				`{"Kind": "service-resolver", "Name": "web", "DefaultSubset": "v1", "Subsets": {"v1": {"Filter": "Service.Meta.version == 1"}, "v2": {"Filter": "Service.Meta.version == 2"}}}`,
				`{"Kind": "service-router", "Name": "web", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/new/"}}, "Destination": {"ServiceSubset": "v2", "PrefixRewrite": "/", "RequestHeaders": {"Set": {"x-test-new": "1"}}}}]}`,
				fmt.Sprintf(`{"Kind": "jwt-provider", "Name": "us", "Issuer": "us", "JSONWebKeySet": {"Local": {"JWKS": %q}}}`, sign.keys(t)),
				`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "shop", "Permissions": [
					{"Action": "deny", "HTTP": {"PathPrefix": "/closed"}}, {"Action": "allow", "HTTP": {"PathPrefix": "/", "Methods": ["GET"]}},
					{"Action": "allow", "HTTP": {"Header": [{"Name": "x-test-a", "Exact": "1"}]}},
					{"Action": "allow", "HTTP": {"PathPrefix": "/"}, "JWT": {"Providers": [{"Name": "us", "VerifyClaims": [{"Path": ["role"], "Value": "admin"}]}]}}]}]}`)
			for _, id := range []string{"web-1", "web-2", "shop"} {
				m.sidecar(t, id)
			}
			eventually(t, 40*time.Second, "the mesh carries requests", func() bool {
				return m.ask("web", "GET", "/").code == 200 && m.ask("web", "GET", "/new/").code == 200 && m.ask("web", "PUT", "/").code == 403 && m.ask("web", "PUT", "/new/").code == 403
			})
			check := func(method, path, jwt string, header ...string) {
				t.Helper()
				asked := explain.Request{From: "shop", To: "web", Method: method, Path: path, JWT: jwt}
				for i := 0; i < len(header); i += 2 {
					asked.Headers = append(asked.Headers, explain.Header{Name: header[i], Value: header[i+1]})
				}
				if jwt != "" {
					header = append(header, "Authorization", "Bearer "+jwt)
				}
				body, err := json.Marshal(asked)
				if err != nil {
					t.Fatal(err)
				}
				out := m.must(t, "POST", "/v1/explain", string(body))
				var x explain.Explanation
				if err := json.Unmarshal([]byte(out), &x); err != nil || len(x.Branches) != 1 || len(x.Problems) > 0 {
					t.Fatalf("%s %s: %v\n%s", method, path, err, out)
				}
				b, got := x.Branches[0], m.ask("web", method, path, header...)
				if b.Authorization.Verdict == explain.Denied {
					if x.Allowed || got.code != b.Authorization.Status {
						t.Errorf("%s %s: the request gives %s, but:\n%s", method, path, got, out)
					}
					return
				}
				where, _, _ := strings.Cut(b.Path, "?")
				if !x.Allowed || got.code != 200 || !strings.HasPrefix(got.body, b.Subset+" HTTP/1.1 "+method+" "+where) ||
					strings.Contains(got.body, "x-test-new=1") != (len(b.Edits) > 0) {
					t.Errorf("%s %s: the request gives %s, but:\n%s", method, path, got, out)
				}
			}
			all := func() {
				t.Helper()
				for _, path := range []string{"/", "/a?b=c", "/new/x", "/closed", "/new/closed/x", "/a/../closed", "/%63losed"} {
					for _, method := range []string{"GET", "PUT"} {
						check(method, path, "")
						check(method, path, "", "x-test-a", "1")
						check(method, path, sign.token(t, map[string]any{"iss": "us", "role": "admin"}))
						check(method, path, sign.token(t, map[string]any{"iss": "us", "role": "user"}))
					}
				}
			}
			all()
			for path, want := range map[string]int{"/": 0, "/closed": 1} {
				if out, code := m.cli(t, "explain", "-from", "shop", "-to", "web", "-path", path); code != want || !strings.Contains(out, "the intention shop => web") {
					t.Errorf("explain %s: exit %d, want %d:\n%s", path, code, want, out)
				}
			}

			// What is tried comes true once it is written.
			change := map[string]any{"Kind": "service-intentions", "Name": "web", "Sources": []any{map[string]any{"Name": "*", "Action": "allow"}}}
			body, err := json.Marshal(map[string]any{"From": "shop", "To": "web", "Path": "/closed", "WhatIf": []any{change}})
			if err != nil {
				t.Fatal(err)
			}
			var tried struct {
				explain.Explanation
				WhatIf *explain.Explanation
			}
			if err := json.Unmarshal([]byte(m.must(t, "POST", "/v1/explain", string(body))), &tried); err != nil || tried.Allowed || tried.WhatIf == nil || !tried.WhatIf.Allowed {
				t.Fatalf("got %+v, %v", tried, err)
			}
			if got := m.ask("web", "GET", "/closed"); got.code != 403 {
				t.Errorf("before the change is made: %s", got)
			}
			entry, err := json.Marshal(change)
			if err != nil {
				t.Fatal(err)
			}
			m.write(string(entry))
			eventually(t, 20*time.Second, "the change is in force at both instances", func() bool {
				return m.ask("web", "GET", "/closed").code == 200 && m.ask("web", "PUT", "/new/").code == 200
			})
			all()
		})
	}
}
