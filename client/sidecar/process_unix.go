//go:build unix && !linux

package sidecar

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// detached makes a child that the terminal's signals to this process don't
// reach, and that outlives it.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func terminate(p *os.Process) error { return p.Signal(syscall.SIGTERM) }

// startTime returns when a process began, as ps tells it.
func startTime(pid int) (string, error) {
	out, err := exec.Command("ps", "-o", "lstart=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return "", os.ErrProcessDone
	}
	s := strings.TrimSpace(string(out))
	if s == "" {
		return "", fmt.Errorf("process %d: no start time", pid)
	}
	return s, nil
}
