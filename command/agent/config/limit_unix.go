//go:build unix

package config

import "golang.org/x/sys/unix"

// maxFiles is how many files the process may have open.
func maxFiles() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	return uint64(limit.Cur), nil
}
