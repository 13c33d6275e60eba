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

	"github.com/miekg/dns"
)

// TestPeering has a service of one cluster call services of another, which knows nothing of it but what is exported:
// through mesh gateways, with intentions that name the peer, while the other cluster's authority gets a new root and its
// server is killed, until the peering is deleted.
func TestPeering(t *testing.T) {
	binary(t)
	raw, web := echo(t, "raw"), echo(t, "web")
	p := freePorts(10)
	toRaw, toWeb, toEither := p[0], p[1], p[2]
	sidecar := func(port int, proxy map[string]any) map[string]any {
		return map[string]any{"sidecar_service": map[string]any{"port": port, "proxy": proxy}}
	}
	east := newAgent(t, "e1", map[string]any{
		"server": true, "bootstrap": true,
		"services": []any{
			map[string]any{"name": "raw", "port": raw, "connect": sidecar(p[3], nil)},
			map[string]any{"name": "web", "port": web, "connect": sidecar(p[4], nil)},
		},
	})
	west := newAgent(t, "w1", map[string]any{
		"server": true, "bootstrap": true,
		"services": []any{
			map[string]any{"name": "shop", "port": 1, "connect": sidecar(p[5], map[string]any{"upstreams": []any{
				map[string]any{"destination_name": "raw", "destination_peer": "east", "local_bind_port": toRaw},
				map[string]any{"destination_name": "web", "destination_peer": "east", "local_bind_port": toWeb, "mesh_gateway": map[string]any{"mode": "local"}},
				map[string]any{"destination_name": "either", "local_bind_port": toEither},
			}})},
		},
	})
	east.run(t)
	west.run(t)
	for _, a := range []*agent{east, west} {
		eventually(t, 20*time.Second, a.name+" has its sidecars registered", func() bool {
			services, _ := a.get("/v1/catalog/services").(map[string]any)
			return services["raw-sidecar-proxy"] != nil || services["shop-sidecar-proxy"] != nil
		})
	}
	east.must(t, "PUT", "/v1/config", `{"Kind": "service-defaults", "Name": "web", "Protocol": "http"}`)
	east.must(t, "PUT", "/v1/config", `{"Kind": "exported-services", "Name": "default", "Services": [
		{"Name": "raw", "Consumers": [{"Peer": "west"}]}, {"Name": "web", "Consumers": [{"Peer": "west"}]}]}`)
	west.must(t, "PUT", "/v1/config", `{"Kind": "service-resolver", "Name": "either", "Failover": {"*": {"Targets": [{"Service": "raw", "Peer": "east"}]}}}`)

	env := func(a *agent) []string {
		return []string{"CONSUL_HTTP_ADDR=" + a.http(), fmt.Sprintf("CONSUL_GRPC_ADDR=127.0.0.1:%d", a.ports["grpc"])}
	}
	for _, service := range []string{"raw", "web"} {
		start(t, service+"-sidecar", env(east), binary(t), "connect", "proxy", "-sidecar-for", service)
	}
	for i, a := range []*agent{east, west} {
		start(t, a.name+"-gateway", env(a), binary(t), "connect", "proxy", "-gateway", "mesh", "-register", "-admin-socket", "none", "-address",
			fmt.Sprintf("127.0.0.1:%d", p[6+i]))
	}
	start(t, "shop-sidecar", env(west), binary(t), "connect", "proxy", "-sidecar-for", "shop")

	token, code := east.cli(t, "peering", "generate-token", "-name", "west")
	if code != 0 {
		t.Fatal(token)
	}
	if out, code := west.cli(t, "peering", "establish", "-name", "east", "-peering-token", strings.TrimSpace(token)); code != 0 {
		t.Fatal(out)
	}
	state := func(a *agent, peer string) string {
		m, _ := a.get("/v1/peering/" + peer).(map[string]any)
		s, _ := m["State"].(string)
		return s
	}
	active := func() bool { return state(east, "west") == "ACTIVE" && state(west, "east") == "ACTIVE" }
	eventually(t, 20*time.Second, "the peering is active", active)

	call := func(port int, path string) string {
		out, _ := exec.Command("curl", "-sS", "--max-time", "10", fmt.Sprintf("http://127.0.0.1:%d%s", port, path)).CombinedOutput()
		return string(out)
	}
	works := func(port int, service string) func() bool {
		return func() bool { return call(port, "/x") == service+" /x" }
	}
	// A gateway that failed five times, before all was in place, is left out for 30 seconds.
	eventually(t, 75*time.Second, "connections reach the other cluster", works(toRaw, "raw"))
	eventually(t, 75*time.Second, "requests reach the other cluster", works(toWeb, "web"))
	eventually(t, 75*time.Second, "a service without instances here fails over to the other cluster", works(toEither, "raw"))

	// Who calls is known over there by the name of its cluster.
	for _, x := range []struct {
		service string
		port    int
	}{{"raw", toRaw}, {"web", toWeb}} {
		intend := func(action string) {
			east.must(t, "PUT", "/v1/config", fmt.Sprintf(`{"Kind": "service-intentions", "Name": %q, "Sources": [
				{"Name": "shop", "Peer": "west", "Action": %q}, {"Name": "shop", "Action": "allow"}]}`, x.service, action))
		}
		intend("deny")
		eventually(t, 30*time.Second, x.service+" is denied", func() bool { return !works(x.port, x.service)() })
		intend("allow")
		eventually(t, 75*time.Second, x.service+" is allowed again", works(x.port, x.service))
	}
	east.must(t, "PUT", "/v1/config", `{"Kind": "service-intentions", "Name": "web", "Sources": [
		{"Name": "shop", "Peer": "west", "Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/secret"}}, {"Action": "allow", "HTTP": {"PathPrefix": "/"}}]},
		{"Name": "*", "Action": "deny"}]}`)
	eventually(t, 30*time.Second, "requests are told apart", func() bool {
		return works(toWeb, "web")() && !strings.Contains(call(toWeb, "/secret"), "web")
	})

	// DNS knows what is imported by the name of its cluster.
	ask := func(name string, typ uint16) []dns.RR {
		m := new(dns.Msg)
		m.SetQuestion(name, typ)
		r, _, err := (&dns.Client{Timeout: 20 * time.Second}).Exchange(m, fmt.Sprintf("127.0.0.1:%d", west.ports["dns"]))
		if err != nil {
			t.Fatal(err)
		}
		return r.Answer
	}
	if rr := ask("raw.service.east.peer.consul.", dns.TypeSRV); len(rr) != 1 || int(rr[0].(*dns.SRV).Port) != raw {
		t.Errorf("raw.service.east.peer.consul: %v", rr)
	}
	if rr := ask("raw.virtual.east.consul.", dns.TypeA); len(rr) != 1 || !strings.HasPrefix(rr[0].(*dns.A).A.String(), "240.") {
		t.Errorf("raw.virtual.east.consul: %v", rr)
	}
	if rr := ask("raw.service.consul.", dns.TypeA); len(rr) != 0 {
		t.Errorf("raw.service.consul: %v", rr)
	}

	// The other cluster's authority gets a new root while calls go on.
	stop, failed := make(chan struct{}), []string(nil)
	calls := 0
	var calling sync.WaitGroup
	calling.Go(func() {
		for {
			for _, x := range []struct {
				port    int
				service string
			}{{toRaw, "raw"}, {toWeb, "web"}} {
				if got := call(x.port, "/x"); got != x.service+" /x" {
					failed = append(failed, got)
				}
				calls++
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	root := func() string {
		m, _ := east.get("/v1/connect/ca/roots").(map[string]any)
		s, _ := m["ActiveRootID"].(string)
		return s
	}
	before := root()
	east.must(t, "PUT", "/v1/connect/ca/configuration", `{"Provider": "consul", "Config": {"PrivateKeyType": "ec", "PrivateKeyBits": 384}}`)
	eventually(t, 60*time.Second, "the new root signs", func() bool { return root() != before && root() != "" })
	eventually(t, 60*time.Second, "the peer trusts the new root", func() bool {
		m, _ := west.get("/v1/peering/east").(map[string]any)
		pems, _ := m["PeerCAPems"].([]any)
		return len(pems) >= 2
	})
	time.Sleep(3 * time.Second)
	close(stop)
	calling.Wait()
	if len(failed) > 0 {
		t.Errorf("%d of %d calls failed while the root was replaced: %q", len(failed), calls, failed[0])
	}

	// A server that is killed is called again when it is back; what is known stays.
	east.end(syscall.SIGKILL)
	if !works(toRaw, "raw")() {
		t.Error("connections fail without the server of the other cluster")
	}
	east.run(t)
	eventually(t, 30*time.Second, "the server is back", func() bool { return east.leader() != "" })
	east.must(t, "PUT", "/v1/agent/service/register", `{"Name": "late", "Port": 7}`)
	east.must(t, "PUT", "/v1/config", `{"Kind": "exported-services", "Name": "default", "Services": [
		{"Name": "raw", "Consumers": [{"Peer": "west"}]}, {"Name": "web", "Consumers": [{"Peer": "west"}]}, {"Name": "late", "Consumers": [{"Peer": "west"}]}]}`)
	eventually(t, 90*time.Second, "what is exported later arrives", func() bool {
		all, _ := west.get("/v1/health/service/late?peer=east").([]any)
		return len(all) == 1 && active()
	})
	eventually(t, 75*time.Second, "connections arrive", works(toRaw, "raw"))

	// Deleted on one side, it ends on both, with all it brought.
	if out, code := west.cli(t, "peering", "delete", "-name", "east"); code != 0 {
		t.Fatal(out)
	}
	eventually(t, 20*time.Second, "the peering is gone", func() bool {
		code, _, _ := west.call("GET", "/v1/peering/east", "")
		return code == 404 && state(east, "west") == "TERMINATED"
	})
	var left []json.RawMessage
	if err := json.Unmarshal([]byte(west.must(t, "GET", "/v1/health/service/raw?peer=east", "")), &left); err != nil || len(left) != 0 {
		t.Errorf("imports are left: %s, %v", left, err)
	}
	eventually(t, 20*time.Second, "connections are not led there any more", func() bool { return !works(toRaw, "raw")() })
}
