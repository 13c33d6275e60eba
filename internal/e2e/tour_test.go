//go:build unix

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestQuickStart runs what `make run` runs, twice at once so that the second finds the ports taken, and stops both.
func TestQuickStart(t *testing.T) {
	bin := binary(t)
	for _, name := range []string{"first", "second"} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			p := start(t, name, []string{"SARN=" + bin}, "../../examples/quickstart/run")
			eventually(t, time.Minute, "the tour reaches its end", func() bool {
				if code, ended := p.exit(0); ended {
					t.Fatalf("the tour ended with %d:\n%s", code, p.output())
				}
				return strings.Contains(p.output(), "Everything keeps running")
			})
			t.Logf("the tour took %v", time.Since(began))
			out := p.output()
			for _, want := range []string{
				`web .*v1`, `A 127\.0\.0\.1`, `Hello from web`, `spiffe://[0-9a-f-]+\.consul/ns/default/dc/dc1/svc/shop`,
				`curl: \(\d+\)`, `Matched L4 intention: default/shop => default/web \(Precedence: 9, Action: DENY\)`, `(?s)6\. .*Hello from web`,
			} {
				if !regexp.MustCompile(want).MatchString(out) {
					t.Errorf("the output does not match %s:\n%s", want, out)
				}
			}
			if name == "first" {
				t.Cleanup(func() {})
			}
			p.cmd.Process.Signal(syscall.SIGINT)
			if code, ended := p.exit(time.Minute); !ended || code != 0 {
				t.Errorf("ended %v with code %d after an interrupt", ended, code)
			}
		})
	}
}

// TestReadmeTour runs the commands of the README's tour as they stand there.
func TestReadmeTour(t *testing.T) {
	bin := binary(t)
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "<!-- tour:start -->")
	tour, _, ok2 := strings.Cut(rest, "<!-- tour:end -->")
	if !ok || !ok2 {
		t.Fatal("README.md has no tour")
	}
	var script strings.Builder
	script.WriteString("set -eu\n")
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(tour, -1) {
		script.WriteString(block[1])
	}
	dir := t.TempDir()
	link := filepath.Join(dir, "bin")
	if err := os.Mkdir(link, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(bin, filepath.Join(link, "sarn")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", script.String()+"\nwait %1 || true\nkill %2\n")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+link+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
		case <-time.After(90 * time.Second):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	}()
	out, err := cmd.CombinedOutput()
	close(done)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "agent.log"))
		t.Fatalf("%v\n%s\nagent:\n%s", err, tail(string(out), 30), tail(string(log), 30))
	}
	for _, want := range []string{"alive", "Hello from web.", "Denied", "hello"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the tour's output lacks %q:\n%s", want, out)
		}
	}
}
