// Package program runs the programs that users name: checks, handlers of watches, remote jobs.
package program

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// grace is how long output may still come from programs that a killed one has started.
const grace = time.Second

// Command prepares a program and its arguments. It leads a process group of its own, which is killed as a whole when
// ctx ends. Wait returns exec.ErrWaitDelay when what the program started keeps its output open after it has ended.
func Command(ctx context.Context, words ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, words[0], words[1:]...) //nolint:gosec // running what the user names is the purpose
	ownGroup(cmd)
	cmd.Cancel = func() error { return killGroup(cmd) }
	cmd.WaitDelay = grace
	return cmd
}

// Shell returns the words that make the user's shell run a line.
func Shell(line string) []string {
	if runtime.GOOS == "windows" {
		return []string{"cmd", "/C", line}
	}
	if sh := os.Getenv("SHELL"); sh != "" {
		return []string{sh, "-c", line}
	}
	return []string{"/bin/sh", "-c", line}
}
