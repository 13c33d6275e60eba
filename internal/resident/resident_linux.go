package resident

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Release gives the pages of the program's file back that are in memory: its code and its constants. Those that are
// needed come back by themselves, most of them from the kernel's cache and in about a millisecond altogether. Many do not:
// a start runs through much that nothing needs afterwards, and what it has touched stays with the process else.
func Release() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := clean(f, self)
	for _, m := range all {
		if _, _, no := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); no != 0 {
			err = errors.Join(err, fmt.Errorf("give %x-%x back: %w", m.from, m.to, no))
		}
	}
	return err
}

// A span of addresses.
type span struct{ from, to uintptr }

// clean returns where a file is mapped unchanged and read only, by a list in the form of /proc/PID/smaps (proc(5)).
// Pages that differ from the file, as relocated ones do, would be lost.
func clean(smaps io.Reader, file string) (all []span, err error) {
	var here span
	candidate := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		line := lines.Text()
		if key, value, ok := strings.Cut(line, ":"); ok && !strings.Contains(key, " ") {
			if key == "Anonymous" && candidate && strings.TrimSpace(value) == "0 kB" {
				all = append(all, here)
			}
			continue
		}
		var perms string
		var offset, inode uint64
		var device string
		if _, err := fmt.Sscanf(line, "%x-%x %s %x %s %d", &here.from, &here.to, &perms, &offset, &device, &inode); err != nil {
			return nil, fmt.Errorf("memory map %q: %w", line, err)
		}
		_, name, _ := strings.Cut(line, "/")
		candidate = "/"+name == file && (perms == "r-xp" || perms == "r--p")
	}
	return all, lines.Err()
}
