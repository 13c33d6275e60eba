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
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An agent is the process under test.
type agent struct {
	cmd        *exec.Cmd
	dir        string
	http, grpc string
	client     *http.Client
}

// startAgent starts an agent in development mode.
func startAgent(ctx context.Context, sarn string) (_ *agent, err error) {
	a := &agent{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	if a.dir, err = os.MkdirTemp("", "xdsbench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.stop()
		}
	}()
	ports := map[string]int{}
	for _, name := range []string{"http", "grpc", "dns", "server", "serf_lan", "serf_wan"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports[name] = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	ports["grpc_tls"] = -1
	conf, err := json.Marshal(map[string]any{
		"ports": ports, "log_level": "warn", "enable_debug": true, "connect": map[string]any{"enabled": true},
		"limits": map[string]any{"http_max_conns_per_client": 10000},
	})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(a.dir, "agent.json")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		return nil, err
	}
	a.http, a.grpc = fmt.Sprintf("http://127.0.0.1:%d", ports["http"]), fmt.Sprintf("127.0.0.1:%d", ports["grpc"])
	log, err := os.Create(filepath.Join(a.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	a.cmd = exec.Command(sarn, "agent", "-dev", "-config-file", file)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var leader string
		if data, err := a.call(ctx, "GET", "/v1/status/leader", nil); err == nil && json.Unmarshal(data, &leader) == nil && leader != "" {
			return a, nil
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("the agent does not start: %s", text)
		}
	}
}

// stop ends the agent and removes what it wrote.
func (a *agent) stop() {
	if a.cmd != nil && a.cmd.Process != nil {
		a.cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { a.cmd.Process.Kill() })
		a.cmd.Wait()
		kill.Stop()
	}
	os.RemoveAll(a.dir)
}

func (a *agent) call(ctx context.Context, method, path string, body any) ([]byte, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, a.http+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return answer, err
}

// endpoint puts the sidecar of an instance of a service into the catalog.
func (a *agent) endpoint(ctx context.Context, service string, n, port int) error {
	_, err := a.call(ctx, "PUT", "/v1/catalog/register", map[string]any{
		"Node": fmt.Sprintf("node-%d", n), "Address": fmt.Sprintf("10.0.0.%d", n+1),
		"Service": map[string]any{
			"Kind": "connect-proxy", "ID": service + "-proxy", "Service": service + "-proxy", "Port": port,
			"Proxy": map[string]any{"DestinationServiceName": service},
		},
	})
	return err
}

func proxyID(n int) string { return fmt.Sprintf("app-%d-proxy", n) }

// proxy registers a sidecar with the agent.
func (a *agent) proxy(ctx context.Context, n int, uses []string) error {
	var upstreams []any
	for i, u := range uses {
		upstreams = append(upstreams, map[string]any{"DestinationName": u, "LocalBindPort": 9000 + i})
	}
	_, err := a.call(ctx, "PUT", "/v1/agent/service/register", map[string]any{
		"Kind": "connect-proxy", "ID": proxyID(n), "Name": "app-proxy", "Port": 21000,
		"Proxy": map[string]any{"DestinationServiceName": "app", "Upstreams": upstreams},
	})
	return err
}

// registered waits until the catalog has the proxies.
func (a *agent) registered(ctx context.Context, n int) error {
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		var list []json.RawMessage
		data, err := a.call(ctx, "GET", "/v1/catalog/service/app-proxy", nil)
		if err == nil {
			err = json.Unmarshal(data, &list)
		}
		switch {
		case err != nil:
			return err
		case len(list) == n:
			return nil
		case time.Now().After(end):
			return errors.New("the proxies do not get into the catalog")
		}
	}
}

// footprint is how much memory an agent has in use: on heap and stacks, and altogether.
type footprint struct{ live, resident int64 }

func (a *agent) memory(ctx context.Context) (f footprint, err error) {
	var data []byte
	for range 2 { // what one collection finds to be finalized the next one frees
		if data, err = a.call(ctx, "GET", "/debug/pprof/heap?gc=1&debug=1", nil); err != nil {
			return f, err
		}
	}
	for line := range strings.Lines(string(data)) {
		var n, of int64
		if _, err := fmt.Sscanf(line, "# HeapAlloc = %d", &n); err == nil {
			f.live += n
		}
		if _, err := fmt.Sscanf(line, "# Stack = %d / %d", &n, &of); err == nil {
			f.live += n
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", a.cmd.Process.Pid))
	if err != nil {
		return f, err
	}
	fields := strings.Fields(string(status))
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	f.resident = pages * int64(os.Getpagesize())
	return f, err
}

// cpu returns the processor time the agent has used.
func (a *agent) cpu() (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		data, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(data), &ns); err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// profile records how the agent uses its time until the function it returns is called, if there is a file for it.
func (a *agent) profile(ctx context.Context, file, name string) func() error {
	if file == "" {
		return func() error { return nil }
	}
	done := make(chan error, 1)
	go func() {
		data, err := a.call(ctx, "GET", "/debug/pprof/profile?seconds=6", nil)
		if err == nil {
			err = os.WriteFile(file+"-"+name, data, 0o600)
		}
		if err == nil {
			data, err = a.call(ctx, "GET", "/debug/pprof/heap?gc=1", nil)
		}
		if err == nil {
			err = os.WriteFile(file+"-"+name+"-heap", data, 0o600)
		}
		done <- err
	}()
	return func() error { return <-done }
}
