//go:build unix

package proxycmd

import "golang.org/x/sys/unix"

// openFiles returns how many files the process may have open; 0 is not known.
func openFiles() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return uint64(l.Cur) // of another type elsewhere
}
