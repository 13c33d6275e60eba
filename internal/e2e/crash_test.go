//go:build unix

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/testkit"
)

// TestKilledServerKeepsEveryAcknowledgedWrite kills a writing server at random moments and starts it again on the same
// folder, many times; each write that was answered true must be there.
func TestKilledServerKeepsEveryAcknowledgedWrite(t *testing.T) {
	a := newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true, "log_level": "warn"})
	seed := testkit.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const rounds, writers = 100, 8
	acked := map[string]string{}
	var mu sync.Mutex
	for round := range rounds {
		a.run(t)
		eventually(t, 20*time.Second, fmt.Sprintf("a leader in round %d", round), func() bool {
			if code, ended := a.exit(0); ended {
				t.Fatalf("round %d: the server ended with %d:\n%s", round, code, tail(a.output(), 20))
			}
			return a.leader() != "" && a.get("/v1/catalog/nodes") != nil
		})
		if round > 0 {
			// A sample each time, everything at the end.
			n := 0
			for k, v := range acked {
				if n++; n > 200 && round < rounds-1 {
					break
				}
				if _, got, err := a.call("GET", "/v1/kv/"+k+"?raw", ""); err != nil || got != v {
					t.Fatalf("round %d: %s is %q (%v), want %q", round, k, got, err, v)
				}
			}
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					key, value := fmt.Sprintf("w%d/%d", w, i%50), fmt.Sprintf("%d-%d", round, i)
					mu.Lock()
					old, had := acked[key]
					delete(acked, key) // unknown until answered
					mu.Unlock()
					code, body, err := a.call("PUT", "/v1/kv/"+key, value)
					if err == nil && code == 200 && strings.TrimSpace(body) == "true" {
						mu.Lock()
						acked[key] = value
						mu.Unlock()
						continue
					}
					_, _ = old, had // neither the old nor the new value is certain
					return
				}
			})
		}
		eventually(t, 30*time.Second, "a write is acknowledged", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(acked) > 0
		})
		time.Sleep(time.Duration(20+rnd.IntN(200)) * time.Millisecond)
		a.cmd.Process.Signal(syscall.SIGKILL)
		<-a.done
		close(stop)
		wg.Wait()
		if len(acked) == 0 {
			t.Fatalf("round %d: nothing was acknowledged", round)
		}
	}
}

// TestBadStartsSayWhy starts agents that cannot work: each ends with code 1, says what is wrong and damages nothing.
func TestBadStartsSayWhy(t *testing.T) {
	bin := binary(t)
	write := func(t *testing.T, path, text string) string {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name  string
		setup func(t *testing.T, a *agent) []string // more arguments
		want  []string
	}{
		{name: "a broken HCL file", setup: func(t *testing.T, a *agent) []string {
			return []string{"-config-file", write(t, filepath.Join(a.dir, "bad.hcl"), "service {\n  name = \"web\"\n  prot = 80\n}\n")}
		}, want: []string{"bad.hcl", "3", "prot"}},
		{name: "HCL that does not parse", setup: func(t *testing.T, a *agent) []string {
			return []string{"-config-file", write(t, filepath.Join(a.dir, "bad.hcl"), "service {\n  name = \n}\n")}
		}, want: []string{"bad.hcl", "line 4"}},
		{name: "a taken port", setup: func(t *testing.T, a *agent) []string {
			p := start(t, "holder", nil, "python3", "-m", "http.server", "--bind", "127.0.0.1", fmt.Sprint(a.ports["http"]))
			eventually(t, 30*time.Second, "the port is taken", func() bool { _, _, err := request("GET", a.http(), ""); return err == nil })
			_ = p
			return nil
		}, want: []string{"address already in use"}},
		{name: "a gossip key of the wrong size", setup: func(t *testing.T, a *agent) []string {
			return []string{"-encrypt", "c2hvcnQ="}
		}, want: []string{"encrypt"}},
		{name: "a data directory that is a file", setup: func(t *testing.T, a *agent) []string {
			return []string{"-data-dir", write(t, filepath.Join(a.dir, "file"), "x")}
		}, want: []string{"file"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAgent(t, "bad", map[string]any{"server": true, "bootstrap": true})
			args := append([]string{bin, "agent", "-config-file", a.conf}, tt.setup(t, a)...)
			p := start(t, "bad", nil, args...)
			code, ended := p.exit(15 * time.Second)
			if !ended || code != 1 {
				t.Errorf("ended %v with code %d, want 1", ended, code)
			}
			for _, want := range tt.want {
				if !strings.Contains(p.output(), want) {
					t.Errorf("the output lacks %q:\n%s", want, tail(p.output(), 10))
				}
			}
		})
	}
}

// TestFullDiskLosesNothing fills the file system under a server: writes fail with an error instead of being
// acknowledged, and what was acknowledged before is there when there is room again.
func TestFullDiskLosesNothing(t *testing.T) {
	binary(t)
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	a := newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true, "data_dir": filepath.Join(dir, "data"), "log_level": "warn"})
	a.run(t)
	eventually(t, 20*time.Second, "a leader", func() bool { return a.leader() != "" })
	a.must(t, "PUT", "/v1/kv/before", "kept")
	filler := filepath.Join(dir, "filler")
	exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=64k").Run()
	value := strings.Repeat("x", 400<<10)
	acked := map[string]bool{}
	failed := false
	for i := 0; i < 600 && !failed; i++ {
		key := fmt.Sprintf("full/%d", i)
		code, _, err := a.call("PUT", "/v1/kv/"+key, value)
		if failed = err != nil || code != 200; !failed {
			acked[key] = true
		}
	}
	if !failed {
		t.Error("every write on the full disk was acknowledged")
	}
	os.Remove(filler)
	a.end(syscall.SIGKILL)
	a.run(t)
	eventually(t, 30*time.Second, "a leader after the disk has room", func() bool { return a.leader() != "" })
	if _, got, err := a.call("GET", "/v1/kv/before?raw", ""); err != nil || got != "kept" {
		t.Errorf("the first write is %q, %v", got, err)
	}
	for key := range acked {
		if code, _, err := a.call("GET", "/v1/kv/"+key, ""); err != nil || code != 200 {
			t.Errorf("%s: %d %v", key, code, err)
		}
	}
}

// TestCutSnapshotRestoresNothing sends a snapshot cut short.
func TestCutSnapshotRestoresNothing(t *testing.T) {
	a := newAgent(t, "s1", map[string]any{"server": true, "bootstrap": true})
	a.run(t)
	eventually(t, 20*time.Second, "a leader", func() bool { return a.leader() != "" })
	a.must(t, "PUT", "/v1/kv/a", "1")
	file := filepath.Join(a.dir, "backup.snap")
	if out, code := a.cli(t, "snapshot", "save", file); code != 0 {
		t.Fatalf("save: %s", out)
	}
	a.must(t, "PUT", "/v1/kv/a", "2")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(a.dir, "cut.snap")
	if err := os.WriteFile(cut, data[:len(data)*2/3], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := a.cli(t, "snapshot", "restore", cut); code != 1 {
		t.Errorf("restoring a cut snapshot: code %d, %s", code, out)
	}
	if _, got, _ := a.call("GET", "/v1/kv/a?raw", ""); got != "2" {
		t.Errorf("a is %q after a failed restore", got)
	}
	if out, code := a.cli(t, "snapshot", "restore", file); code != 0 {
		t.Errorf("restore: %s", out)
	}
	eventually(t, 30*time.Second, "the restored value", func() bool { _, got, _ := a.call("GET", "/v1/kv/a?raw", ""); return got == "1" })
}
