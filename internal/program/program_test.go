//go:build unix

package program_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/program"
)

func TestWhatAProgramStartedEndsWithIt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cmd := program.Command(ctx, "/bin/sh", "-c", "sleep 60 & echo started; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 8)
	if _, err := out.Read(line); err != nil || string(line) != "started\n" {
		t.Fatalf("%q, %v", line, err)
	}
	began := time.Now()
	cancel()
	if _, err := out.Read(line); err == nil { // its child has the other end too
		t.Error("the pipe is still open")
	}
	if err := cmd.Wait(); err == nil || time.Since(began) > 40*time.Second {
		t.Errorf("ended after %s: %v", time.Since(began), err)
	}
}

func TestShell(t *testing.T) {
	t.Setenv("SHELL", "")
	if got := strings.Join(program.Shell("a b"), "|"); got != "/bin/sh|-c|a b" {
		t.Errorf("got %q", got)
	}
	t.Setenv("SHELL", "/bin/other")
	if got := strings.Join(program.Shell("a b"), "|"); got != "/bin/other|-c|a b" {
		t.Errorf("got %q", got)
	}
}
