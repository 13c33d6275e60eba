//go:build unix

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A grpcCaller is a program that calls when it is told to.
type grpcCaller struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

// outcome is how some calls ended: how many were answered, by the server that did, and how many failed, by the status.
type outcome struct{ Answers, Failures map[string]int }

func (o outcome) failed() (n int) {
	for _, f := range o.Failures {
		n += f
	}
	return n
}

func newGRPCCaller(t *testing.T, env []string, argv ...string) *grpcCaller {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	log, err := os.Create(filepath.Join(t.TempDir(), "caller.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		kill := time.AfterFunc(15*time.Second, func() { cmd.Process.Kill() })
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		kill.Stop()
		log.Close()
		if t.Failed() {
			data, _ := os.ReadFile(log.Name())
			t.Logf("caller:\n%s", tail(string(data), 40))
		}
	})
	return &grpcCaller{t, in, bufio.NewReader(out)}
}

// call makes some calls.
func (c *grpcCaller) call(n int, method string) (o outcome) {
	c.t.Helper()
	fmt.Fprintln(c.in, n, method)
	line, err := c.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &o)
	}
	if err != nil {
		c.t.Fatalf("the caller ended: %v", err)
	}
	return o
}

// TestGRPCWithoutProxy has gRPC clients call through the mesh by themselves: what they know is what the agent tells them,
// their certificate is that of the service they belong to, and the sidecars of the service they call check it.
func TestGRPCWithoutProxy(t *testing.T) {
	binary(t)
	grpcxds := tool(t, "grpcxds")
	clients := map[string][]string{"go": {grpcxds, "call", "xds:///web"}}
	if node, err := exec.LookPath("node"); err == nil || os.Getenv("CI") != "" {
		clients["js"] = []string{node, filepath.Join(tool(t, "grpcjs"), "call.js"), "xds:///web"}
	}
	ports := freePorts(6)
	sidecar := func(port int, proxy map[string]any) map[string]any {
		return map[string]any{"sidecar_service": map[string]any{"port": port, "proxy": proxy}}
	}
	var services []any
	for i, name := range []string{"v1", "v2"} {
		services = append(services, map[string]any{
			"id": "web-" + name, "name": "web", "port": ports[i], "meta": map[string]any{"version": name}, "connect": map[string]any{
				"sidecar_service": map[string]any{"port": ports[2+i], "meta": map[string]any{"version": name}},
			},
		})
		start(t, "web-"+name, nil, grpcxds, "serve", fmt.Sprintf("127.0.0.1:%d", ports[i]), name)
	}
	services = append(services, map[string]any{"name": "shop", "port": 1, "connect": sidecar(ports[4], map[string]any{
		"upstreams": []any{map[string]any{"destination_name": "web", "local_bind_port": ports[5]}},
	})})
	a := newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true, "services": services})
	a.run(t)
	eventually(t, 20*time.Second, "the sidecars are registered", func() bool {
		list, _ := a.get("/v1/catalog/service/web-sidecar-proxy").([]any)
		return len(list) == 2
	})
	config := func(entry string) { a.must(t, "PUT", "/v1/config", entry) }
	split := func(v1, v2 int) {
		config(fmt.Sprintf(`{"Kind": "service-splitter", "Name": "web", "Splits": [
			{"Weight": %d, "ServiceSubset": "v1"}, {"Weight": %d, "ServiceSubset": "v2"}]}`, v1, v2))
	}
	config(`{"Kind": "service-defaults", "Name": "web", "Protocol": "grpc"}`)
	config(`{"Kind": "service-resolver", "Name": "web", "LoadBalancer": {"Policy": "least_request"}, "Subsets": {
		"v1": {"Filter": "Service.Meta.version == v1"}, "v2": {"Filter": "Service.Meta.version == v2"}},
		"Failover": {"v2": {"ServiceSubset": "v1"}}}`)
	split(50, 50)
	config(`{"Kind": "service-router", "Name": "web", "Routes": [{
		"Match": {"HTTP": {"PathExact": "/grpc.testing.TestService/EmptyCall"}},
		"Destination": {"ServiceSubset": "v1", "NumRetries": 2, "RetryOn": ["unavailable"]}}]}`)
	env := []string{"CONSUL_HTTP_ADDR=" + a.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", a.ports["grpc"])}
	for _, name := range []string{"v1", "v2"} {
		start(t, "sidecar-"+name, env, binary(t), "connect", "proxy", "-sidecar-for", "web-"+name)
	}

	for name, words := range clients {
		t.Run(name, func(t *testing.T) {
			split(50, 50)
			c := newGRPCCaller(t, env, append([]string{binary(t), "connect", "grpc", "-sidecar-for", "shop", "--"}, words...)...)
			eventually(t, 30*time.Second, "calls reach both versions", func() bool {
				o := c.call(20, "who")
				return o.failed() == 0 && o.Answers["v1"] > 0 && o.Answers["v2"] > 0
			})
			o := c.call(200, "who")
			if o.failed() > 0 || o.Answers["v1"] < 60 || o.Answers["v2"] < 60 {
				t.Errorf("calls that are split evenly: %v", o)
			}
			split(0, 100)
			lost := 0
			eventually(t, 30*time.Second, "all calls go to v2", func() bool {
				o := c.call(20, "who")
				lost += o.failed()
				return o.Answers["v2"] == 20
			})
			if lost > 0 {
				t.Errorf("%d calls failed while the split changed", lost)
			}
			if o := c.call(30, "retried"); o.failed() > 0 {
				t.Errorf("calls that fail twice and are retried twice: %v", o)
			}

			maintenance := func(on bool) {
				a.must(t, "PUT", fmt.Sprintf("/v1/agent/service/maintenance/web-v2-sidecar-proxy?enable=%t", on), "")
			}
			maintenance(true)
			eventually(t, 30*time.Second, "calls for v2 go to v1 while v2 is out of use", func() bool { return c.call(20, "who").Answers["v1"] == 20 })
			maintenance(false)
			eventually(t, 30*time.Second, "calls for v2 go to v2 again", func() bool { return c.call(20, "who").Answers["v2"] == 20 })

			if out, code := a.cli(t, "intention", "create", "-replace", "-deny", "shop", "web"); code != 0 {
				t.Fatal(out)
			}
			eventually(t, 30*time.Second, "calls are refused", func() bool { return c.call(1, "who").failed() == 1 })
			if out, code := a.cli(t, "intention", "create", "-replace", "-allow", "shop", "web"); code != 0 {
				t.Fatal(out)
			}
			eventually(t, 30*time.Second, "calls are allowed again", func() bool { return c.call(1, "who").failed() == 0 })
		})
	}
}
