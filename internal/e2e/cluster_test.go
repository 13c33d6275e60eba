//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// servers starts n servers that elect a leader. They wait for one as long as an election takes on a busy machine.
func servers(t *testing.T, n int) []*agent {
	var list []*agent
	var join []string
	for i := range n {
		a := newAgent(t, fmt.Sprintf("s%d", i+1), map[string]any{
			"server": true, "bootstrap_expect": n, "retry_join": join,
			"performance": map[string]any{"raft_multiplier": 1, "rpc_hold_timeout": "15s"},
		})
		join = append(join, a.lan())
		list = append(list, a)
		a.run(t)
	}
	for _, a := range list {
		eventually(t, 30*time.Second, a.name+" knows a leader and "+strconv.Itoa(n)+" peers", func() bool {
			peers, _ := a.get("/v1/status/peers").([]any)
			return a.leader() != "" && len(peers) == n
		})
	}
	return list
}

func (a *agent) serverAddr() string { return "127.0.0.1:" + strconv.Itoa(a.ports["server"]) }

// leaderOf returns the server that leads, as the others see it.
func leaderOf(t *testing.T, list []*agent) *agent {
	t.Helper()
	var found *agent
	eventually(t, 20*time.Second, "a leader", func() bool {
		for _, asked := range list {
			addr := asked.leader()
			for _, a := range list {
				if addr != "" && a.serverAddr() == addr && a.leader() == addr {
					found = a
					return true
				}
			}
		}
		return false
	})
	return found
}

func passing(a *agent, service string) int {
	list, _ := a.get("/v1/health/service/" + service + "?passing").([]any)
	return len(list)
}

// TestClusterRidesOutKills runs three servers, two client agents and two meshed services under steady load, and kills
// the leader, each agent and each sidecar in turn. No acknowledged write may be lost, no request may fail but those in
// flight on what was killed, and all has to be healthy again with no help.
func TestClusterRidesOutKills(t *testing.T) {
	list := servers(t, 3)
	join := []string{list[0].lan(), list[1].lan(), list[2].lan()}
	web, shop := echo(t, "web"), echo(t, "shop")
	ports := freePorts(3)
	upstream := ports[2]
	client := func(name, service string, port, sidecar int, proxy map[string]any) *agent {
		a := newAgent(t, name, map[string]any{
			"retry_join": join, "connect": map[string]any{"enabled": true, "sidecars": true},
			"services": []any{map[string]any{
				"name": service, "port": port,
				"check":   map[string]any{"http": fmt.Sprintf("http://127.0.0.1:%d/", port), "interval": "1s"},
				"connect": map[string]any{"sidecar_service": map[string]any{"port": sidecar, "proxy": proxy}},
			}},
		})
		a.run(t)
		return a
	}
	webAgent := client("c1", "web", web, ports[0], map[string]any{})
	shopAgent := client("c2", "shop", shop, ports[1], map[string]any{
		"upstreams": []any{map[string]any{"destination_name": "web", "local_bind_port": upstream}},
	})
	agents := []*agent{webAgent, shopAgent}
	t.Cleanup(func() { endSidecars(agents) })
	call := func() error {
		cmd := exec.Command("curl", "-sS", "--max-time", "5", fmt.Sprintf("http://127.0.0.1:%d/hi", upstream))
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "web /hi" {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	eventually(t, 30*time.Second, "shop reaches web", func() bool { return call() == nil })
	eventually(t, 20*time.Second, "all instances pass", func() bool {
		return passing(list[0], "web") == 1 && passing(list[0], "shop") == 1 && passing(list[0], "web-sidecar-proxy") == 1
	})

	// The load: writes through the client agents, requests through the mesh.
	var failedWrites, failedCalls, calls, writes atomic.Int64
	var killed atomic.Pointer[agent] // the server killed, whose clients see it
	var lastError atomic.Value
	acked := map[string]bool{}
	var mu sync.Mutex
	stop := make(chan struct{})
	var wg sync.WaitGroup
	const writers = 2
	for w := range writers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("load/%d/%d", w, i)
				before := killed.Load()
				code, body, err := list[i%3].call("PUT", "/v1/kv/"+key, key)
				writes.Add(1)
				if err != nil || code != 200 || strings.TrimSpace(body) != "true" {
					if list[i%3] != before && list[i%3] != killed.Load() {
						failedWrites.Add(1)
					}
					lastError.Store(fmt.Sprintf("write: %d %s %v", code, body, err))
					time.Sleep(20 * time.Millisecond)
				} else {
					mu.Lock()
					acked[key] = true
					mu.Unlock()
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			calls.Add(1)
			if err := call(); err != nil {
				failedCalls.Add(1)
				lastError.Store("call: " + err.Error())
			}
		}
	})
	settle := func(what string, allowedCalls int64) {
		t.Helper()
		healthy := func() bool {
			for _, a := range list {
				if _, ended := a.exit(0); !ended && (a.leader() == "" || passing(a, "web") != 1 || passing(a, "shop") != 1 || passing(a, "web-sidecar-proxy") != 1) {
					return false
				}
			}
			return call() == nil
		}
		eventually(t, 40*time.Second, "everything healthy after "+what, healthy)
		if n := failedCalls.Swap(0); n > allowedCalls {
			t.Errorf("%s: %d requests through the mesh failed, %d were allowed; last: %v", what, n, allowedCalls, lastError.Load())
		}
	}
	settle("the start", 0)

	leader := leaderOf(t, list)
	killed.Store(leader)
	leader.cmd.Process.Signal(syscall.SIGKILL)
	<-leader.done
	settle("the leader's death", 0)
	leader.run(t)
	eventually(t, 30*time.Second, "the killed server follows again", func() bool { return leader.leader() != "" })
	killed.Store(nil)
	settle("the killed leader's return", 0)

	for _, a := range agents {
		a.cmd.Process.Signal(syscall.SIGKILL)
		<-a.done
		time.Sleep(time.Second)
		a.run(t)
		eventually(t, 30*time.Second, a.name+" answers", func() bool { return a.get("/v1/agent/self") != nil })
		settle("the death of agent "+a.name, 0)
	}
	for _, a := range agents {
		pids := sidecarPIDs(a)
		if len(pids) != 1 {
			t.Fatalf("%s has sidecars %v, want one", a.name, pids)
		}
		syscall.Kill(pids[0], syscall.SIGKILL)
		eventually(t, 20*time.Second, "another sidecar", func() bool {
			now := sidecarPIDs(a)
			return len(now) == 1 && now[0] != pids[0]
		})
		// While nothing listens, requests fail, some fifty in a second: what was killed is the only way there. The agent starts
		// another within a second, which takes its time to be there on a busy machine.
		settle("the death of the sidecar of "+a.name, 500)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d writes, %d refused by servers that live; %d calls; last error %v", writes.Load(), failedWrites.Load(), calls.Load(), lastError.Load())
	// What a living server had passed on to the leader when it died is in flight on what was killed.
	if n := failedWrites.Load(); n > writers {
		t.Errorf("%d writes to living servers failed; %d could be in flight on the leader; last: %v", n, writers, lastError.Load())
	}
	lost := 0
	mu.Lock()
	defer mu.Unlock()
	have := map[string]bool{}
	var keys []string
	if err := json.Unmarshal([]byte(list[1].must(t, "GET", "/v1/kv/load/?keys", "")), &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		have[k] = true
	}
	for k := range acked {
		if !have[k] {
			lost++
		}
	}
	if lost > 0 || len(acked) == 0 {
		t.Errorf("%d of %d acknowledged writes are lost", lost, len(acked))
	}
}

// sidecarPIDs finds the sidecars an agent supervises by their command lines.
func sidecarPIDs(a *agent) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		args := strings.Split(string(cmdline), "\x00")
		joined := strings.Join(args, " ")
		if strings.Contains(joined, "connect proxy") && strings.Contains(joined, strconv.Itoa(a.ports["grpc"])) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func endSidecars(agents []*agent) {
	for _, a := range agents {
		for _, pid := range sidecarPIDs(a) {
			syscall.Kill(pid, syscall.SIGTERM)
		}
	}
}

// TestServersComeBackWithNewAddresses stops all three servers and starts them again with other ports: identity is the
// node ID, addresses are learned from gossip.
func TestServersComeBackWithNewAddresses(t *testing.T) {
	list := servers(t, 3)
	list[0].must(t, "PUT", "/v1/kv/kept", "yes")
	for _, a := range list {
		a.end(syscall.SIGTERM)
	}
	var join []string
	for _, a := range list {
		data, err := os.ReadFile(a.conf)
		if err != nil {
			t.Fatal(err)
		}
		var conf map[string]any
		if err := json.Unmarshal(data, &conf); err != nil {
			t.Fatal(err)
		}
		for i, p := range freePorts(len(portNames)) {
			a.ports[portNames[i]] = p
		}
		conf["ports"], conf["retry_join"] = a.ports, join
		join = append(join, a.lan())
		if data, err = json.Marshal(conf); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(a.conf, data, 0o600); err != nil {
			t.Fatal(err)
		}
		a.run(t)
	}
	leaderOf(t, list)
	for _, a := range list {
		eventually(t, 30*time.Second, a.name+" reads what was written before", func() bool {
			_, body, err := a.call("GET", "/v1/kv/kept?raw", "")
			return err == nil && body == "yes"
		})
	}
}
