//go:build !unix

package runcmd

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// terminate is the signal that asks a program to end.
const terminate = syscall.SIGTERM

// listen makes the wishes to end come to the returned channel: Ctrl+C, and the end of the console or of the machine.
func listen() (signals <-chan os.Signal, silence func()) {
	c := make(chan os.Signal, 64)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	return c, func() { signal.Stop(c) }
}

// ends reports whether a signal asks for an end that others are told of first.
func ends(os.Signal) bool { return true }

// number is the number of a signal.
func number(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return int(n)
	}
	return 0
}

// pass does nothing for Ctrl+C, which the console has sent to the program too; otherwise it ends the program, since there
// is no way to ask.
func pass(p *os.Process, s os.Signal) {
	if s != os.Interrupt {
		p.Kill() // fails only if it has ended
	}
}

// start starts the program; its exit code comes to the channel.
func start(cmd *exec.Cmd) (<-chan int, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan int, 1)
	go func() {
		cmd.Wait() // the state tells what it returns
		ended <- max(cmd.ProcessState.ExitCode(), 0)
	}()
	return ended, nil
}
