//go:build unix

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestGateways sends calls into the mesh and out of it through gateways of every kind, run by real Envoy and by the
// built-in proxy, with intentions that deny and allow.
func TestGateways(t *testing.T) {
	binary(t)
	for _, by := range []string{"sarn", "envoy"} {
		t.Run(by, func(t *testing.T) {
			if by == "envoy" {
				tool(t, "envoy")
			}
			web, raw, legacy := echo(t, "web"), echo(t, "raw"), echo(t, "legacy")
			p := freePorts(16)
			sidecar := func(port int, proxy map[string]any) map[string]any {
				return map[string]any{"sidecar_service": map[string]any{"port": port, "proxy": proxy}}
			}
			toLegacy := p[3]
			a := newAgent(t, "s1", map[string]any{
				"server": true, "bootstrap": true,
				"services": []any{
					map[string]any{"name": "web", "port": web, "connect": sidecar(p[0], nil)},
					map[string]any{"name": "raw", "port": raw, "connect": sidecar(p[1], nil)},
					map[string]any{"name": "legacy", "address": "127.0.0.1", "port": legacy},
					map[string]any{"name": "shop", "port": 1, "connect": sidecar(p[2], map[string]any{
						"upstreams": []any{map[string]any{"destination_name": "legacy", "local_bind_port": toLegacy}},
					})},
				},
			})
			a.run(t)
			eventually(t, 20*time.Second, "the sidecars are registered", func() bool {
				services, _ := a.get("/v1/catalog/services").(map[string]any)
				return services["web-sidecar-proxy"] != nil && services["shop-sidecar-proxy"] != nil
			})
			ingressTCP, ingressHTTP, apiTCP, apiHTTP := p[4], p[5], p[6], p[7]
			for _, e := range []string{
				`{"Kind": "service-defaults", "Name": "web", "Protocol": "http"}`,
				`{"Kind": "terminating-gateway", "Name": "terminating-gateway", "Services": [{"Name": "legacy"}]}`,
				fmt.Sprintf(`{"Kind": "ingress-gateway", "Name": "ingress-gateway", "Listeners": [
					{"Port": %d, "Protocol": "tcp", "Services": [{"Name": "raw"}]},
					{"Port": %d, "Protocol": "http", "Services": [{"Name": "web", "Hosts": ["web.example.com"]}]}]}`, ingressTCP, ingressHTTP),
				fmt.Sprintf(`{"Kind": "api-gateway", "Name": "api-gateway", "Listeners": [
					{"Name": "tcp", "Port": %d, "Protocol": "tcp"}, {"Name": "http", "Port": %d, "Protocol": "http"}]}`, apiTCP, apiHTTP),
				`{"Kind": "tcp-route", "Name": "t", "Parents": [{"Name": "api-gateway", "SectionName": "tcp"}], "Services": [{"Name": "raw"}]}`,
				`{"Kind": "http-route", "Name": "h", "Parents": [{"Name": "api-gateway", "SectionName": "http"}], "Rules": [
					{"Matches": [{"Path": {"Match": "prefix", "Value": "/old"}}], "Filters": {"URLRewrite": {"Path": "/new"}}, "Services": [{"Name": "web"}]}]}`,
			} {
				a.must(t, "PUT", "/v1/config", e)
			}
			env := []string{"CONSUL_HTTP_ADDR=" + a.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", a.ports["grpc"])}
			for _, service := range []string{"web", "raw", "shop"} {
				start(t, service+"-sidecar", env, binary(t), "connect", "proxy", "-sidecar-for", service)
			}
			for i, kind := range []string{"terminating", "ingress", "api", "mesh"} {
				flags := []string{"-gateway", kind, "-register", "-address", fmt.Sprintf("127.0.0.1:%d", p[8+i])}
				if by == "sarn" {
					start(t, kind, env, append([]string{binary(t), "connect", "proxy"}, flags...)...)
					continue
				}
				flags = append([]string{"connect", "envoy", "-bootstrap", "-admin-bind", fmt.Sprintf("127.0.0.1:%d", p[12+i])}, flags...)
				out, code := a.cli(t, flags...)
				if code != 0 {
					t.Fatalf("bootstrap: %s", out)
				}
				file := filepath.Join(t.TempDir(), kind+".json")
				if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
					t.Fatal(err)
				}
				start(t, kind+"-envoy", nil, tool(t, "envoy"), "-c", file, "--disable-hot-restart", "--concurrency", "1", "--base-id", fmt.Sprint(p[12+i]))
			}
			call := func(port int, path string, more ...string) string {
				args := append([]string{"-sS", "--max-time", "10", fmt.Sprintf("http://127.0.0.1:%d%s", port, path)}, more...)
				out, _ := exec.Command("curl", args...).CombinedOutput()
				return string(out)
			}
			type check struct {
				name, from, to, path, want string
				port                       int
				more                       []string
			}
			checks := []check{
				{"terminating", "shop", "legacy", "/x", "legacy /x", toLegacy, nil},
				{"ingress, TCP", "ingress-gateway", "raw", "/x", "raw /x", ingressTCP, nil},
				{"API, TCP", "api-gateway", "raw", "/x", "raw /x", apiTCP, nil},
				{"ingress, HTTP", "ingress-gateway", "web", "/x", "web /x", ingressHTTP, []string{"-H", "Host: web.example.com"}},
				{"API, HTTP", "api-gateway", "web", "/old/x", "web /new/x", apiHTTP, nil},
			}
			for _, c := range checks {
				works := func() bool { return call(c.port, c.path, c.more...) == c.want }
				eventually(t, 30*time.Second, c.name+": the call arrives", works)
				if out, code := a.cli(t, "intention", "create", "-deny", c.from, c.to); code != 0 {
					t.Fatal(out)
				}
				eventually(t, 30*time.Second, c.name+": the call is refused", func() bool { return !works() })
				if out, code := a.cli(t, "intention", "create", "-replace", "-allow", c.from, c.to); code != 0 {
					t.Fatal(out)
				}
				eventually(t, 30*time.Second, c.name+": the call arrives again", works)
			}
			if by == "envoy" {
				if out := call(ingressHTTP, "/x"); strings.Contains(out, "web") {
					t.Errorf("a host nobody serves gets %q", out)
				}
				// Every gateway has taken all it was given, as Envoy tells.
				for i, kind := range []string{"terminating", "ingress", "api", "mesh"} {
					if dump := call(p[12+i], "/config_dump"); !strings.Contains(dump, "dynamic_listeners") || strings.Contains(dump, "error_state") {
						t.Errorf("%s gateway: Envoy has refused something: %s", kind, dump)
					}
				}
			}
			eventually(t, 20*time.Second, "the mesh gateway is healthy", func() bool {
				all, _ := a.get("/v1/health/service/mesh-gateway?passing").([]any)
				return len(all) == 1
			})
		})
	}
}
