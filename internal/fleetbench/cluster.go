package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process is a server or an agent that was started.
type process struct {
	name string
	cmd  *exec.Cmd
	dir  string
	http string         // the URL of its API
	rpc  netip.AddrPort // of servers
	lan  string
}

var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

// ports are those that a process listens at; they are chosen by the system.
func ports() (map[string]int, error) {
	list := map[string]int{"grpc": -1, "grpc_tls": -1, "https": -1}
	for _, name := range []string{"http", "dns", "server", "serf_lan", "serf_wan"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // not before all are chosen
		list[name] = l.Addr().(*net.TCPAddr).Port
	}
	return list, nil
}

// start starts a process with settings beside those that all have.
func start(sarn, dir, name string, more map[string]any) (*process, error) {
	p := &process{name: name, dir: filepath.Join(dir, name)}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	port, err := ports()
	if err != nil {
		return nil, err
	}
	settings := map[string]any{
		"node_name": name, "bind_addr": "127.0.0.1", "data_dir": filepath.Join(p.dir, "data"), "ports": port, "log_level": "warn", "enable_debug": true,
		"limits": map[string]any{"http_max_conns_per_client": 1000, "rpc_max_conns_per_client": 15000},
	}
	for k, v := range more {
		settings[k] = v
	}
	conf, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(p.dir, "agent.json")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		return nil, err
	}
	p.http = fmt.Sprintf("http://127.0.0.1:%d", port["http"])
	p.rpc = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port["server"]))
	p.lan = fmt.Sprintf("127.0.0.1:%d", port["serf_lan"])
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(sarn, "agent", "-config-file", file)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	return p, p.cmd.Start()
}

// stop ends the process with a signal, and at last without asking.
func (p *process) stop(s os.Signal) {
	if p.cmd.ProcessState != nil {
		return
	}
	p.cmd.Process.Signal(s)
	kill := time.AfterFunc(10*time.Second, func() { p.cmd.Process.Kill() })
	p.cmd.Wait()
	kill.Stop()
}

func (p *process) running() bool { return p.cmd.ProcessState == nil }

// call makes a request of the API and decodes the answer into out, unless that is nil.
func (p *process) call(ctx context.Context, method, path string, body, out any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, p.http+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != 200:
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*out = answer
		return nil
	}
	return json.Unmarshal(answer, out)
}

// A cluster is three servers.
type cluster struct {
	dir     string
	servers []*process
}

// servers is how many there are.
const servers = 3

// startCluster starts the servers and waits for a leader.
func startCluster(ctx context.Context, o options) (_ *cluster, err error) {
	c := &cluster{}
	if c.dir, err = os.MkdirTemp("", "fleetbench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	var join []string
	for i := range servers {
		p, err := start(o.sarn, c.dir, fmt.Sprint("server-", i), map[string]any{
			"server": true, "bootstrap_expect": servers, "retry_join": join, "performance": map[string]any{"raft_multiplier": o.multiplier},
		})
		if err != nil {
			return nil, err
		}
		c.servers, join = append(c.servers, p), append(join, p.lan)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var members []any
		ready := true
		for _, p := range c.servers {
			var leader string
			ready = ready && p.call(ctx, "GET", "/v1/status/leader", nil, &leader) == nil && leader != ""
			ready = ready && p.call(ctx, "GET", "/v1/agent/members", nil, &members) == nil && len(members) == servers
		}
		if ready {
			return c, nil
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(filepath.Join(c.servers[0].dir, "log"))
			return nil, fmt.Errorf("the servers do not start: %s", text)
		}
	}
}

func (c *cluster) stop() {
	var wg sync.WaitGroup
	for _, p := range c.servers {
		wg.Go(func() { p.stop(syscall.SIGKILL) })
	}
	wg.Wait()
	os.RemoveAll(c.dir)
}

// leader returns the server that leads.
func (c *cluster) leader(ctx context.Context) (*process, error) {
	for _, p := range c.servers {
		if !p.running() {
			continue
		}
		if s, err := p.self(ctx); err == nil && s.leads {
			return p, nil
		}
	}
	return nil, errors.New("no server leads")
}

// live returns the servers that run.
func (c *cluster) live() (list []*process) {
	for _, p := range c.servers {
		if p.running() {
			list = append(list, p)
		}
	}
	return list
}

// A sample is what a process has used and holds.
type sample struct {
	leads       bool
	cpu         time.Duration
	resident    int64
	connections int
	goroutines  int
	index       int // of the log
}

// self asks a server about itself.
func (p *process) self(ctx context.Context) (s sample, err error) {
	var self struct {
		Stats map[string]map[string]string
	}
	if err := p.call(ctx, "GET", "/v1/agent/self", nil, &self); err != nil {
		return s, err
	}
	s.leads = self.Stats["consul"]["leader"] == "true"
	s.goroutines, _ = strconv.Atoi(self.Stats["runtime"]["goroutines"])
	s.index, _ = strconv.Atoi(self.Stats["raft"]["last_log_index"])
	return s, nil
}

// sample looks at a process.
func (p *process) sample(ctx context.Context) (sample, error) {
	s, err := p.self(ctx)
	if err != nil {
		return s, err
	}
	pid := p.cmd.Process.Pid
	s.cpu, s.resident = used(pid)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:") {
			s.connections++
		}
	}
	return s, err
}

// used returns the processor time that a process has used, and how much memory it has.
func used(pid int) (cpu time.Duration, resident int64) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, t := range tasks {
		var ns int64
		if data, err := os.ReadFile(t); err == nil { // else the thread has ended
			fmt.Sscan(string(data), &ns)
		}
		cpu += time.Duration(ns)
	}
	var size, pages int64
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		fmt.Sscan(string(data), &size, &pages)
	}
	return cpu, pages * int64(os.Getpagesize())
}

// used returns the processor time that the servers have used which run.
func (c *cluster) used() (sum time.Duration) {
	for _, p := range c.live() {
		cpu, _ := used(p.cmd.Process.Pid)
		sum += cpu
	}
	return sum
}

// profile writes profiles of all servers, and what they log, while f runs.
func (c *cluster) profile(ctx context.Context, prefix, name string, seconds int, f func() error) error {
	if prefix == "" {
		return f()
	}
	var wg sync.WaitGroup
	for _, p := range c.live() {
		wg.Go(func() {
			s, _ := p.self(ctx)
			role := "follower"
			if s.leads {
				role = "leader"
			}
			for kind, path := range map[string]string{
				"cpu": fmt.Sprint("/debug/pprof/profile?seconds=", seconds), "heap": "/debug/pprof/heap", "goroutine": "/debug/pprof/goroutine",
			} {
				var data []byte
				if err := p.call(ctx, "GET", path, nil, &data); err == nil {
					os.WriteFile(strings.Join([]string{prefix, name, p.name, role, kind}, "-"), data, 0o600)
				}
			}
		})
	}
	err := f()
	wg.Wait()
	return err
}
