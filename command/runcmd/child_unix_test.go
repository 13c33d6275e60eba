//go:build unix

package runcmd

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// The first process of a container waits for every child, and tells how the program ended.
func TestReapWaitsForAllChildren(t *testing.T) {
	orphan, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "exit 1"}, new(os.ProcAttr))
	if err != nil {
		t.Fatal(err)
	}
	program := exec.Command("/bin/sh", "-c", "sleep 0.2; exit 7")
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	// What the program's exit waits for, no one else does.
	if err := syscall.Kill(orphan.Pid, 0); err != nil {
		t.Fatalf("the orphan is not there: %v", err)
	}
	if got := reap(program.Process.Pid); got != 7 {
		t.Errorf("the program ended with %d, want 7", got)
	}
	for err := syscall.Kill(orphan.Pid, 0); err == nil; err = syscall.Kill(orphan.Pid, 0) {
		if got := reap(orphan.Pid); got != 1 {
			t.Fatalf("the orphan ended with %d, want 1", got)
		}
	}
}

func TestCodeOfSignal(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "kill -TERM $$")
	ended, err := start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-ended; got != 128+int(syscall.SIGTERM) {
		t.Errorf("exit code %d, want 143", got)
	}
}
