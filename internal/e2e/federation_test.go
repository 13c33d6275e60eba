//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestServicesOfAnotherDatacenter has a service of the primary datacenter call one of a secondary, and back: directly, and
// through mesh gateways of either, with intentions that are written in either and kept by the primary, while the root is
// replaced and while the primary is away.
func TestServicesOfAnotherDatacenter(t *testing.T) {
	binary(t)
	web, shop := echo(t, "web"), echo(t, "shop")
	p := freePorts(11)
	toWeb := map[string]int{"none": p[0], "local": p[1], "remote": p[2]}
	toShop := p[3]
	sidecar := func(port int, upstreams ...any) map[string]any {
		return map[string]any{"sidecar_service": map[string]any{"port": port, "proxy": map[string]any{"upstreams": upstreams}}}
	}
	local := []any{map[string]any{"name": "shop", "port": shop, "connect": sidecar(p[4])}}
	callers := []string{"shop"} // in the primary, one for each mode beside it
	for i, mode := range []string{"none", "local", "remote"} {
		callers = append(callers, mode)
		local = append(local, map[string]any{"name": mode, "port": 1, "connect": sidecar(p[8+i], map[string]any{
			"destination_name": "web", "datacenter": "dc2", "local_bind_port": toWeb[mode], "mesh_gateway": map[string]any{"mode": mode},
		})})
	}
	settings := func(dc string, services ...any) map[string]any {
		return map[string]any{
			"server": true, "bootstrap": true, "datacenter": dc, "primary_datacenter": "dc1", "default_intention_policy": "deny", "services": services,
		}
	}
	near := newAgent(t, "n1", settings("dc1", local...))
	conf := settings("dc2", map[string]any{"name": "web", "port": web, "connect": sidecar(p[5],
		map[string]any{"destination_name": "shop", "datacenter": "dc1", "local_bind_port": toShop})})
	conf["retry_join_wan"] = []string{fmt.Sprintf("127.0.0.1:%d", near.ports["serf_wan"])}
	conf["retry_interval_wan"] = "200ms"
	far := newAgent(t, "f1", conf)

	type roots struct {
		ActiveRootID, TrustDomain string
		Roots                     []struct{ ID string }
	}
	rootsOf := func(a *agent) (r roots) {
		if code, body, err := a.call("GET", "/v1/connect/ca/roots", ""); err == nil && code == 200 {
			json.Unmarshal([]byte(body), &r)
		}
		return r
	}
	// The secondary waits for the primary, and makes no authority of its own.
	far.run(t)
	eventually(t, 20*time.Second, "the secondary has a leader", func() bool { return far.leader() != "" })
	eventually(t, 20*time.Second, "the secondary says that it waits", func() bool {
		return strings.Contains(far.output(), "the certificate authority waits for the primary datacenter")
	})
	if r := rootsOf(far); len(r.Roots) != 0 {
		t.Errorf("roots before the primary was reached: %+v", r)
	}
	near.run(t)
	eventually(t, 60*time.Second, "both have the same root", func() bool {
		a, b := rootsOf(near), rootsOf(far)
		return a.ActiveRootID != "" && a.ActiveRootID == b.ActiveRootID && a.TrustDomain == b.TrustDomain
	})

	env := func(a *agent) []string {
		return []string{"CONSUL_HTTP_ADDR=" + a.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", a.ports["grpc"])}
	}
	for _, x := range []struct {
		a        *agent
		services []string
		gateway  int
	}{{near, callers, p[6]}, {far, []string{"web"}, p[7]}} {
		for _, service := range x.services {
			eventually(t, 20*time.Second, service+" is registered", func() bool {
				all, _ := x.a.get("/v1/catalog/services").(map[string]any)
				return all[service+"-sidecar-proxy"] != nil
			})
			start(t, service+"-sidecar", env(x.a), binary(t), "connect", "proxy", "-sidecar-for", service)
		}
		address := fmt.Sprintf("127.0.0.1:%d", x.gateway)
		start(t, x.a.name+"-gateway", env(x.a), binary(t), "connect", "proxy", "-gateway", "mesh", "-service", x.a.name+"-gateway",
			"-register", "-address", address, "-wan-address", address)
	}
	call := func(port int) string {
		out, _ := exec.Command("curl", "-sS", "--max-time", "10", fmt.Sprintf("http://127.0.0.1:%d/x", port)).CombinedOutput()
		return string(out)
	}
	works := func(port int, service string) func() bool {
		return func() bool { return call(port) == service+" /x" }
	}
	intend := func(a *agent, destination, action string, from ...string) {
		t.Helper()
		var list []string
		for _, source := range from {
			list = append(list, fmt.Sprintf(`{"Name": %q, "Action": %q}`, source, action))
		}
		a.must(t, "PUT", "/v1/config", fmt.Sprintf(`{"Kind": "service-intentions", "Name": %q, "Sources": [%s]}`, destination, strings.Join(list, ", ")))
	}
	intend(near, "web", "allow", callers...)
	for mode, port := range toWeb {
		eventually(t, 60*time.Second, "calls reach the other datacenter with mesh gateway mode "+mode, works(port, "web"))
	}
	if works(toShop, "shop")() {
		t.Error("what nobody allowed is let through")
	}
	intend(far, "shop", "allow", "web") // written in the primary all the same
	eventually(t, 60*time.Second, "calls reach the primary datacenter", works(toShop, "shop"))
	intend(near, "web", "deny", callers...)
	for mode, port := range toWeb {
		eventually(t, 20*time.Second, "an intention of the primary is enforced in the other with mesh gateway mode "+mode, func() bool { return !works(port, "web")() })
	}
	intend(near, "web", "allow", callers...)
	for mode, port := range toWeb {
		eventually(t, 75*time.Second, "calls are allowed again with mesh gateway mode "+mode, works(port, "web"))
	}

	// The root is replaced while calls go on.
	stop, calls, failed := make(chan struct{}), 0, []string(nil)
	var calling sync.WaitGroup
	calling.Go(func() {
		for {
			for mode, port := range toWeb {
				if got := call(port); got != "web /x" {
					failed = append(failed, mode+": "+got)
				}
			}
			if got := call(toShop); got != "shop /x" {
				failed = append(failed, "back: "+got)
			}
			calls += 4
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	before := rootsOf(near).ActiveRootID
	if out, code := far.cli(t, "connect", "ca", "rotate"); code != 0 {
		t.Error(out)
	}
	eventually(t, 90*time.Second, "the new root signs in both", func() bool {
		a, b := rootsOf(near), rootsOf(far)
		return a.ActiveRootID != "" && a.ActiveRootID != before && a.ActiveRootID == b.ActiveRootID
	})
	eventually(t, 90*time.Second, "all leaves are replaced", func() bool {
		var r struct{ Phase string }
		_, body, _ := far.call("GET", "/v1/connect/ca/rotation", "")
		json.Unmarshal([]byte(body), &r)
		return r.Phase == "retiring"
	})
	close(stop)
	calling.Wait()
	if len(failed) > 0 {
		t.Errorf("%d of %d calls failed while the root was replaced: %q", len(failed), calls, failed[0])
	}

	// Without the primary, the other goes on and signs.
	near.end(syscall.SIGKILL)
	far.must(t, "GET", "/v1/agent/connect/ca/leaf/another", "")
	for _, mode := range []string{"none", "local", "remote"} {
		if got := call(toWeb[mode]); got != "web /x" {
			t.Errorf("without the servers of the primary, with mesh gateway mode %s: %s", mode, got)
		}
	}
}
