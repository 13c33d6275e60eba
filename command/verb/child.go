package verb

import (
	"os"
	"os/exec"
	"strings"
)

// Child prepares a program that a command runs: the words themselves, or joined for the shell. Its output is the
// command's; env is added to the environment.
func (c *Call) Child(words []string, shell bool, env ...string) *exec.Cmd {
	if shell {
		sh := os.Getenv("SHELL")
		if sh == "" {
			sh = "/bin/sh"
		}
		words = []string{sh, "-c", strings.Join(words, " ")}
	}
	cmd := exec.Command(words[0], words[1:]...) //nolint:gosec // running what the user names is the purpose
	cmd.Stdout, cmd.Stderr = c.Out, c.Err
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// Stale reports whether -stale was given.
func (c *Call) Stale() bool { return c.opt.stale }
