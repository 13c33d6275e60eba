//go:build unix

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestEnvoyAndBuiltInProxyWorkTogether puts real Envoy on one side of a connection and the built-in proxy on the
// other, both ways round, with an intention denied and allowed.
func TestEnvoyAndBuiltInProxyWorkTogether(t *testing.T) {
	binary(t)
	envoy := tool(t, "envoy")
	for _, tt := range []struct{ caller, callee string }{{"envoy", "sarn"}, {"sarn", "envoy"}, {"envoy", "envoy"}, {"sarn", "sarn"}} {
		t.Run(tt.caller+" calls "+tt.callee, func(t *testing.T) {
			web := echo(t, "web")
			ports := freePorts(5)
			upstream := ports[2]
			sidecar := func(port int, proxy map[string]any) map[string]any {
				return map[string]any{"sidecar_service": map[string]any{"port": port, "proxy": proxy}}
			}
			a := newAgent(t, "s1", map[string]any{
				"server": true, "bootstrap": true,
				"services": []any{
					map[string]any{"name": "web", "port": web, "connect": sidecar(ports[0], map[string]any{})},
					map[string]any{"name": "shop", "port": 1, "connect": sidecar(ports[1], map[string]any{
						"upstreams": []any{map[string]any{"destination_name": "web", "local_bind_port": upstream}},
					})},
				},
			})
			a.run(t)
			eventually(t, 20*time.Second, "both sidecars are registered", func() bool {
				services, _ := a.get("/v1/catalog/services").(map[string]any)
				return services["shop-sidecar-proxy"] != nil && services["web-sidecar-proxy"] != nil
			})
			run := func(kind, service string, admin int) {
				env := []string{"CONSUL_HTTP_ADDR=" + a.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", a.ports["grpc"])}
				if kind == "sarn" {
					start(t, service+"-sidecar", env, binary(t), "connect", "proxy", "-sidecar-for", service)
					return
				}
				out, code := a.cli(t, "connect", "envoy", "-sidecar-for", service, "-bootstrap", "-admin-bind", fmt.Sprintf("127.0.0.1:%d", admin))
				if code != 0 {
					t.Fatalf("bootstrap: %s", out)
				}
				file := filepath.Join(t.TempDir(), service+".json")
				if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
					t.Fatal(err)
				}
				start(t, service+"-envoy", nil, envoy, "-c", file, "--disable-hot-restart", "--concurrency", "1")
			}
			run(tt.callee, "web", ports[3])
			run(tt.caller, "shop", ports[4])
			call := func() string {
				out, _ := exec.Command("curl", "-sS", "--max-time", "3", fmt.Sprintf("http://127.0.0.1:%d/x", upstream)).CombinedOutput()
				return string(out)
			}
			works := func() bool { return call() == "web /x" }
			eventually(t, 30*time.Second, "the call arrives", works)
			if out, code := a.cli(t, "intention", "create", "-deny", "shop", "web"); code != 0 {
				t.Fatal(out)
			}
			eventually(t, 30*time.Second, "the call is refused", func() bool { return !works() })
			if out, code := a.cli(t, "intention", "create", "-replace", "-allow", "shop", "web"); code != 0 {
				t.Fatal(out)
			}
			eventually(t, 30*time.Second, "the call arrives again", works)

			// Whatever protocol a service is said to speak, a deny holds.
			a.must(t, "PUT", "/v1/config", `{"Kind": "service-defaults", "Name": "web", "Protocol": "http"}`)
			time.Sleep(time.Second) // for the listeners to change; there is nothing else to see it by
			eventually(t, 30*time.Second, "the call arrives with protocol http", works)
			if out, code := a.cli(t, "intention", "create", "-replace", "-deny", "shop", "web"); code != 0 {
				t.Fatal(out)
			}
			eventually(t, 30*time.Second, "the call is refused with protocol http", func() bool { return !works() })
		})
	}
}
