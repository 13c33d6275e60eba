package workload

import (
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// processOf asks the kernel who has connected. Path and control group are read from its process; where that cannot be,
// they stay empty, and rules that name them do not fit. It is looked twice whether the process is the same, so that
// another which got its number meanwhile is not taken for it.
func processOf(c *net.UnixConn) (*Process, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, fmt.Errorf("ask who has connected: %w", credErr)
	}
	p := &Process{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}
	before, ok := startOf(p.PID)
	if !ok {
		return p, nil
	}
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if after, ok := startOf(p.PID); ok && after == before {
		p.Path, p.Cgroup = path, cgroupOf(string(groups))
	}
	return p, nil
}

// startOf returns when a process began, in the kernel's ticks.
func startOf(pid int32) (string, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", false
	}
	// The name, in parentheses, may hold anything.
	i := strings.LastIndexByte(string(stat), ')')
	if i < 0 {
		return "", false
	}
	fields := strings.Fields(string(stat[i+1:]))
	if len(fields) < 20 {
		return "", false
	}
	return fields[19], true
}

// cgroupOf returns the path in the unified hierarchy, or in the first one where there is none.
func cgroupOf(text string) string {
	first := ""
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[0] == "0" {
			return parts[2]
		}
		if first == "" {
			first = parts[2]
		}
	}
	return first
}
