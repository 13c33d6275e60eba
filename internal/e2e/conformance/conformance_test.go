package conformance

import (
	"bufio"
	"flag"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var (
	binary = flag.String("bin", "", "the binary to test; built from this module when empty")
	only   = flag.String("only", "", "run the cases whose name matches this glob, pending ones too")
)

// pending reads the list of cases that do not pass yet.
func pending(t *testing.T) map[string]bool {
	f, err := os.Open("pending.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name := strings.TrimSpace(lines.Text()); name != "" && !strings.HasPrefix(name, "#") {
			list[name] = true
		}
	}
	return list
}

// files returns the files of the cases by their names: those of the contract, and this project's own.
func files(t *testing.T) map[string]string {
	list := map[string]string{}
	for _, dir := range []string{"cases", "own"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if name, ok := strings.CutSuffix(filepath.ToSlash(path), ".json"); ok {
				name = strings.TrimPrefix(name, dir+"/")
				if list[name] != "" {
					t.Errorf("two cases are named %s", name)
				}
				list[name] = path
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// hurried are cases that leave agents, programs or the runner about a second for a step, or for several.
var hurried = map[string]bool{
	"cli/lock-session-and-key":          true, // the lock is held for six, while others are tried for
	"cli/watch-handler":                 true, // the watch is to wait a second after its start
	"registry/check-failure-thresholds": true, // each status lasts for some runs of a program every second
	"registry/check-ttl-expiry":         true,
	"state/cached-cache-control":        true,
	"state/http-connection-limit":       true,
	"state/session-lock-delay":          true,
	"state/session-ttl-expiry":          true,
}

// hurries reports whether a case is to have the machine for itself: it is one of hurried, or expects an answer within
// three seconds.
func hurries(t *testing.T, name, path string) bool {
	file, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	return hurried[name] || slices.ContainsFunc(file.Steps, func(step map[string]any) bool {
		want, _ := step["expect"].(map[string]any)
		return number(want["max_seconds"], 60) <= 3
	})
}

// TestCases replays every case that is not pending. A pending case that passes fails the run: it has to leave the list.
func TestCases(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an agent for each case")
	}
	bin := *binary
	if bin == "" {
		bin = filepath.Join(t.TempDir(), "sarn")
		if out, err := exec.Command("go", "build", "-o", bin, "github.com/sarnmesh/sarn").CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	late := pending(t)
	all := files(t)
	if len(all) == 0 {
		t.Fatal("there are no cases")
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if ok, err := filepath.Match(*only, name); err != nil {
			t.Fatal(err)
		} else if *only != "" && !ok {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if !hurries(t, name, all[name]) {
				t.Parallel()
			}
			err := replay(bin, all[name])
			switch {
			case err != nil && late[name] && *only == "":
				t.Skipf("pending: %v", err)
			case err != nil:
				t.Error(err)
			case late[name]:
				t.Errorf("%s passes now: take it off pending.txt", name)
			}
		})
	}
}

// TestPendingListOnlyShrinks compares the list with its last committed version.
func TestPendingListOnlyShrinks(t *testing.T) {
	now := pending(t)
	known := files(t)
	for name := range now {
		if known[name] == "" {
			t.Errorf("pending.txt names %s, which is no case", name)
		}
	}
	out, err := exec.Command("git", "log", "--format=%H", "-n", "2", "--", "pending.txt").Output()
	if err != nil {
		t.Skipf("no history to compare with: %v", err)
	}
	for commit := range strings.FieldsSeq(string(out)) {
		old, err := exec.Command("git", "show", commit+":./pending.txt").Output()
		if err != nil {
			continue
		}
		had := map[string]bool{}
		for line := range strings.Lines(string(old)) {
			had[strings.TrimSpace(line)] = true
		}
		for name := range now {
			if !had[name] {
				t.Errorf("%s was added to pending.txt since %.8s: the list may only shrink", name, commit)
			}
		}
	}
}
