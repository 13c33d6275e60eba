//go:build unix

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/testkit"
)

var builtOnce struct {
	sync.Once
	path string
	err  error
}

// binary returns the binary under test.
func binary(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes")
	}
	if bin := os.Getenv("SARN_BIN"); bin != "" {
		return bin
	}
	builtOnce.Do(func() {
		dir, err := os.MkdirTemp("", "sarn-e2e-")
		if err != nil {
			builtOnce.err = err
			return
		}
		builtOnce.path = filepath.Join(dir, "sarn")
		cmd := exec.Command("go", "build", "-o", builtOnce.path, "github.com/sarnmesh/sarn")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			builtOnce.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if builtOnce.err != nil {
		t.Fatal(builtOnce.err)
	}
	return builtOnce.path
}

// freePorts returns ports that nobody else has.
func freePorts(n int) []int {
	ports, err := testkit.FreePorts(n)
	if err != nil {
		panic(err)
	}
	return ports
}

// A process is a child that ends with its test.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// start runs a command, its output going to a file of the test.
func start(t testing.TB, name string, env []string, argv ...string) *process {
	t.Helper()
	log := filepath.Join(t.TempDir(), name+".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &process{t: t, cmd: exec.Command(argv[0], argv[1:]...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Env = append(os.Environ(), env...)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.end(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("%s:\n%s", name, tail(p.output(), 40))
		}
	})
	return p
}

func (p *process) output() string {
	data, _ := os.ReadFile(p.log)
	return string(data)
}

func tail(s string, lines int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(l[max(0, len(l)-lines):], "\n")
}

// end signals the process and waits for it, killing it after fifteen seconds.
func (p *process) end(sig os.Signal) {
	p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

func (p *process) exit(within time.Duration) (int, bool) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), true
	case <-time.After(within):
		return 0, false
	}
}

// An agent is a running `sarn agent` with its own folder and ports.
type agent struct {
	*process
	name  string
	dir   string
	ports map[string]int
	conf  string // its configuration file
}

var portNames = []string{"http", "dns", "grpc", "grpc_tls", "server", "serf_lan", "serf_wan"}

// newAgent writes an agent's configuration; run starts it.
func newAgent(t testing.TB, name string, settings map[string]any) *agent {
	t.Helper()
	a := &agent{name: name, dir: t.TempDir(), ports: map[string]int{}}
	for i, p := range freePorts(len(portNames)) {
		a.ports[portNames[i]] = p
	}
	conf := map[string]any{
		"node_name": name, "datacenter": "dc1", "bind_addr": "127.0.0.1", "data_dir": filepath.Join(a.dir, "data"), "log_level": "debug",
		"disable_update_check": true, "ports": maps.Clone(a.ports), "performance": map[string]any{"raft_multiplier": 1},
		"retry_interval": "200ms",
	}
	maps.Copy(conf, settings)
	if more, ok := settings["ports"].(map[string]int); ok {
		all := maps.Clone(a.ports)
		maps.Copy(all, more)
		conf["ports"] = all
	}
	data, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	a.conf = filepath.Join(a.dir, "agent.json")
	if err := os.WriteFile(a.conf, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *agent) run(t testing.TB) {
	t.Helper()
	a.process = start(t, a.name, nil, binary(t), "agent", "-config-file", a.conf)
}

func (a *agent) lan() string  { return "127.0.0.1:" + strconv.Itoa(a.ports["serf_lan"]) }
func (a *agent) http() string { return "http://127.0.0.1:" + strconv.Itoa(a.ports["http"]) }

var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 5 * time.Second}}

// call makes a request; the body of the answer is returned with its status.
func (a *agent) call(method, path, body string) (int, string, error) {
	return request(method, a.http()+path, body)
}

func request(method, url, body string) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// get decodes a JSON answer; it returns nil when there is none with status 200.
func (a *agent) get(path string) any {
	code, body, err := a.call("GET", path, "")
	var v any
	if err != nil || code != 200 || json.Unmarshal([]byte(body), &v) != nil {
		return nil
	}
	return v
}

func (a *agent) must(t testing.TB, method, path, body string) string {
	t.Helper()
	code, answer, err := a.call(method, path, body)
	if err != nil || code != 200 {
		t.Fatalf("%s %s: %d %s %v", method, path, code, answer, err)
	}
	return answer
}

func (a *agent) leader() string {
	s, _ := a.get("/v1/status/leader").(string)
	return s
}

// eventually waits until ok holds.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// cli runs the binary against an agent.
func (a *agent) cli(t testing.TB, args ...string) (string, int) {
	t.Helper()
	return runCLI(t, []string{"CONSUL_HTTP_ADDR=" + a.http(), "CONSUL_GRPC_ADDR=127.0.0.1:" + strconv.Itoa(a.ports["grpc"])}, args...)
}

func runCLI(t testing.TB, env []string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t), args...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// echo is an ordinary HTTP service: it answers with its name and the request's path.
func echo(t testing.TB, name string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", name, r.URL.Path) })}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).Port
}
