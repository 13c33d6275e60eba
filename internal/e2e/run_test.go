//go:build unix

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The programs of TestRun are this test binary, told by a variable which to be.
const runProgram = "SARN_TEST_PROGRAM"

func TestRunProgram(t *testing.T) {
	switch os.Getenv(runProgram) {
	case "":
		t.Skip("a program of TestRun")
	case "api":
		runAPI()
	case "caller":
		runCaller()
	}
}

// runAPI answers requests slowly. SIGTERM ends it at once, with code 3; SIGUSR1 is noted in a file.
func runAPI() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM {
				os.Exit(3)
			}
			os.WriteFile(os.Getenv("NOTE"), []byte("got it"), 0o600)
		}
	}()
	http.ListenAndServe("127.0.0.1:"+os.Getenv("SARN_SERVICE_PORT"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(20 * time.Millisecond)
		io.WriteString(w, os.Getenv("SARN_SERVICE_ID"))
	}))
}

// runCaller calls its upstream on a new connection each time until SIGTERM. Its exit code is 1 if a call failed.
func runCaller() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	calls := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	var good, bad atomic.Int64
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for ctx.Err() == nil {
				resp, err := calls.Get("http://" + os.Getenv("SARN_UPSTREAM_API"))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if err != nil {
					bad.Add(1)
					fmt.Println(err)
					time.Sleep(50 * time.Millisecond)
					continue
				}
				if good.Add(1)%50 == 0 {
					os.WriteFile(os.Getenv("NOTE"), []byte(strconv.FormatInt(good.Load(), 10)), 0o600)
				}
			}
		})
	}
	workers.Wait()
	fmt.Println("good", good.Load(), "bad", bad.Load())
	if bad.Load() > 0 {
		os.Exit(1)
	}
	os.Exit(0)
}

// Programs under sarn run call each other through the mesh; one that is told to stop loses no request, nor does the
// restart of the agent; one that is killed does not stay.
func TestRun(t *testing.T) {
	bin := binary(t)
	a := newAgent(t, "one", map[string]any{"server": true, "bootstrap": true, "connect": map[string]any{"enabled": true}})
	a.run(t)
	eventually(t, 30*time.Second, "there is a leader", func() bool { return a.leader() != "" })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(id, program string, flags ...string) (p *process, note string) {
		note = filepath.Join(dir, id)
		argv := append([]string{bin, "run", "-id", id, "-drain", "4s"}, flags...)
		argv = append(argv, "--", self, "-test.run=^TestRunProgram$")
		return start(t, id, []string{"CONSUL_HTTP_ADDR=" + a.http(), runProgram + "=" + program, "NOTE=" + note, "XDG_RUNTIME_DIR=" + dir}, argv...), note
	}
	passing := func(name string) int {
		list, _ := a.get("/v1/health/service/" + name + "?passing").([]any)
		return len(list)
	}
	number := func(file string) int {
		data, _ := os.ReadFile(file)
		n, _ := strconv.Atoi(string(data))
		return n
	}

	ports := freePorts(2)
	first, note := run("api-1", "api", "-name", "api", "-port", strconv.Itoa(ports[0]), "-check", "tcp", "-check-interval", "1s")
	second, _ := run("api-2", "api", "-name", "api", "-port", strconv.Itoa(ports[1]), "-check", "tcp", "-check-interval", "1s")
	eventually(t, 30*time.Second, "both instances are healthy, and their sidecars", func() bool {
		return passing("api") == 2 && passing("api-sidecar-proxy") == 2
	})
	caller, count := run("caller", "caller", "-name", "caller", "-upstream", "api:"+strconv.Itoa(freePorts(1)[0]))
	calling := func(what string) {
		t.Helper()
		n := number(count)
		eventually(t, 30*time.Second, what, func() bool { return number(count) > n+100 })
	}
	calling("the program calls its upstream")

	first.cmd.Process.Signal(syscall.SIGUSR1)
	eventually(t, 20*time.Second, "the signal is passed on", func() bool {
		data, _ := os.ReadFile(note)
		return string(data) == "got it"
	})

	first.cmd.Process.Signal(syscall.SIGTERM)
	if code, ended := first.exit(40 * time.Second); !ended || code != 3 {
		t.Errorf("a program that was told to stop: exit %d, ended %v", code, ended)
	}
	if code, body, _ := a.call("GET", "/v1/agent/service/api-1", ""); code != 404 {
		t.Errorf("the service of a program that has ended: %d %s", code, body)
	}
	if code, body, _ := a.call("GET", "/v1/agent/service/api-1-sidecar-proxy", ""); code != 404 {
		t.Errorf("the sidecar of a program that has ended: %d %s", code, body)
	}
	calling("the other instance goes on")

	a.end(syscall.SIGTERM)
	calling("calls need no agent")
	a.run(t)
	eventually(t, 30*time.Second, "the services are there again", func() bool { return passing("api") == 1 && passing("caller") == 1 })

	caller.cmd.Process.Signal(syscall.SIGTERM)
	if code, ended := caller.exit(40 * time.Second); !ended || code != 0 {
		t.Errorf("the caller: exit %d, ended %v", code, ended)
	}

	// Killed, the command can say nothing. The agent takes the service away a minute after it was last heard of.
	children, _ := exec.Command("pgrep", "-P", strconv.Itoa(second.cmd.Process.Pid)).Output()
	second.cmd.Process.Kill()
	for pid := range strings.FieldsSeq(string(children)) {
		if n, err := strconv.Atoi(pid); err == nil {
			syscall.Kill(n, syscall.SIGKILL)
		}
	}
	eventually(t, 30*time.Second, "a killed instance is not healthy any more", func() bool { return passing("api") == 0 })
}

// The exit code of the command is that of the program.
func TestRunExitCodes(t *testing.T) {
	a := newAgent(t, "one", map[string]any{"server": true, "bootstrap": true})
	a.run(t)
	eventually(t, 30*time.Second, "there is a leader", func() bool { return a.leader() != "" })
	tests := []struct {
		name string
		args []string
		code int
		out  string
	}{
		{"success", []string{"sh", "-c", "echo $SARN_SERVICE_ID"}, 0, "job-1\n"},
		{"failure", []string{"sh", "-c", "exit 42"}, 42, ""},
		{"a signal", []string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{"no such program", []string{"no-such-program"}, 127, "Error starting the program: "},
		{"not a program", []string{os.DevNull}, 126, "Error starting the program: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, code := a.cli(t, append([]string{"run", "-name", "job", "-id", "job-1", "-no-sidecar", "--"}, tt.args...)...)
			if code != tt.code || !strings.HasPrefix(out, tt.out) {
				t.Errorf("exit %d, output %q; want %d, %q", code, out, tt.code, tt.out)
			}
			if status, _, _ := a.call("GET", "/v1/agent/service/job-1", ""); status != 404 {
				t.Errorf("the service is still there: %d", status)
			}
		})
	}
	t.Run("no agent", func(t *testing.T) {
		out, code := runCLI(t, []string{"CONSUL_HTTP_ADDR=127.0.0.1:" + strconv.Itoa(freePorts(1)[0])}, "run", "-name", "job", "-ready-timeout", "1s", "--", "true")
		if code != 1 || !strings.Contains(out, "Error preparing job: not ready within 1s: ") {
			t.Errorf("exit %d, output %q", code, out)
		}
	})
}
