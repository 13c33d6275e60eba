//go:build !linux

package proxycmd

// releaseProgram is only known how to be done on Linux.
func releaseProgram() {}
