//go:build !unix

package program

import "os/exec"

func ownGroup(*exec.Cmd) {}

// killGroup kills the program; what it started is not reached here.
func killGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }
