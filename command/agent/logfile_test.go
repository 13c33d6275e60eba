package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/command/agent/config"
)

func logFiles(t *testing.T, dir string) (current string, aside []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if e.Name() == "x.log" {
			current = string(data)
		} else {
			aside = append(aside, string(data))
		}
	}
	return current, aside
}

func TestLogFilesArePutAside(t *testing.T) {
	for _, tt := range []struct {
		name    string
		log     config.Log
		wait    time.Duration // between lines
		current string
		aside   string
	}{
		{"never", config.Log{}, time.Hour, "1\n2\n3\n4\n5\n", "[]"},
		{"by size", config.Log{RotateBytes: 4}, 0, "5\n", "[1\n2\n 3\n4\n]"},
		{"a line larger than the size", config.Log{RotateBytes: 1}, 0, "5\n", "[1\n 2\n 3\n 4\n]"},
		{"by age", config.Log{RotateDuration: 2 * time.Hour}, time.Hour, "5\n", "[1\n2\n 3\n4\n]"},
		{"two are kept", config.Log{RotateBytes: 1, RotateMaxFiles: 2}, 0, "5\n", "[3\n 4\n]"},
		{"none is kept", config.Log{RotateBytes: 1, RotateMaxFiles: -1}, 0, "5\n", "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "logs")
			synctest.Test(t, func(t *testing.T) {
				tt.log.File = filepath.Join(dir, "x")
				f, err := openLogFile(tt.log)
				if err != nil {
					t.Fatal(err)
				}
				// Not one of ours: it stays.
				for i := range 5 {
					if _, err := fmt.Fprintln(f, i+1); err != nil {
						t.Fatal(err)
					}
					time.Sleep(tt.wait + time.Millisecond)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				if _, err := f.Write([]byte("late")); err == nil {
					t.Error("a line was written after the end")
				}
			})
			current, aside := logFiles(t, dir)
			if current != tt.current || fmt.Sprint(aside) != tt.aside {
				t.Errorf("%q, put aside %q; want %q, %q", current, aside, tt.current, tt.aside)
			}
		})
	}
}

func TestLogFilesOfOthersStay(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"x-old.log", "x-1.txt", "y-1.log", "x-.log"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := openLogFile(config.Log{File: filepath.Join(dir, "x.log"), RotateBytes: 1, RotateMaxFiles: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintln(f, "a")
	fmt.Fprintln(f, "b")
	if _, aside := logFiles(t, dir); len(aside) != 4 {
		t.Errorf("%d files of others are left, want 4", len(aside))
	}
	if f, err := openLogFile(config.Log{File: dir + string(filepath.Separator)}); err != nil || filepath.Base(f.path) != "sarn.log" {
		t.Errorf("a folder: %v", err)
	} else {
		f.Close()
	}
}

type syslogLines []string

func (l *syslogLines) Log(level hclog.Level, line string) error {
	*l = append(*l, level.String()+" "+line)
	return nil
}
func (l *syslogLines) Close() error { return nil }

func TestSyslogGetsLinesWithTheirSeverity(t *testing.T) {
	lines := &syslogLines{}
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "agent", Level: hclog.Info, Output: &strings.Builder{}})
	log.RegisterSink(newSyslogSink(lines, log.GetLevel))
	log.Named("x").Warn("one", "key", "a b")
	log.Debug("two")
	log.SetLevel(hclog.Debug)
	log.Debug("three")
	want := `[warn [WARN]  agent.x: one: key="a b" debug [DEBUG] agent: three]`
	if got := fmt.Sprint(*lines); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := openSyslog("LOCAL9"); err == nil {
		t.Error("a facility that does not exist was opened")
	}
}
