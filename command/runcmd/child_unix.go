//go:build unix

package runcmd

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminate is the signal that asks a program to end.
const terminate = syscall.SIGTERM

// listen makes all signals come to the returned channel that can be passed on. Those about the process itself, its
// children and its use of the terminal do what they always do.
func listen() (signals <-chan os.Signal, silence func()) {
	c := make(chan os.Signal, 64)
	signal.Notify(c)
	signal.Reset(syscall.SIGCHLD, syscall.SIGURG, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGPROF)
	return c, func() { signal.Stop(c) }
}

// ends reports whether a signal asks for an end that others are told of first.
func ends(s os.Signal) bool { return s == syscall.SIGTERM || s == syscall.SIGINT }

// number is the number of a signal.
func number(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return int(n)
	}
	return 0
}

// foreground reports whether the terminal sends its signals to this process, and so to the program too, which belongs to
// the same job.
func foreground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// pass gives a signal to the program. What comes from the terminal it has got itself.
func pass(p *os.Process, s os.Signal) {
	n, ok := s.(syscall.Signal)
	if !ok {
		return
	}
	shared := false
	switch n {
	case syscall.SIGPIPE:
		return // about our own output
	case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGWINCH:
		shared = foreground()
	}
	if !shared {
		syscall.Kill(p.Pid, n) // fails only if it has ended
	}
	if n == syscall.SIGTSTP { // stop like the program
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
}

// start starts the program; its exit code comes to the channel. The first process of a machine or container has to see off
// all orphans, so there it does.
func start(cmd *exec.Cmd) (<-chan int, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan int, 1)
	if os.Getpid() == 1 {
		go func() { ended <- reap(cmd.Process.Pid) }()
	} else {
		go func() {
			cmd.Wait() // the state tells what it returns
			ended <- code(cmd.ProcessState)
		}()
	}
	return ended, nil
}

// code is the exit code of a program, by the rule of shells.
func code(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return max(s.ExitCode(), 0)
}

// reap waits for all children until the one with the given ID has ended, and returns its exit code.
func reap(pid int) int {
	for {
		var w syscall.WaitStatus
		got, err := syscall.Wait4(-1, &w, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 1
		case got == pid && w.Signaled():
			return 128 + int(w.Signal())
		case got == pid && w.Exited():
			return w.ExitStatus()
		}
	}
}
