package proxycmd

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// releaseProgram lets go of the pages of the program's own file. The program is
// server, agent and proxy in one; what a proxy runs is a small part of it and
// comes back from the page cache by itself, the rest does not.
//
// Only mappings that are read-only and that nothing was ever written to are
// released: a page of those is the same as in the file.
func releaseProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	type span struct{ from, to uint64 }
	var cur span
	clean := false // cur is a mapping that may be released, as far as is known
	var release []span
	s := bufio.NewScanner(f)
	done := func() {
		if clean {
			release = append(release, cur)
		}
		clean = false
	}
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) == 0 {
			continue
		}
		if from, to, ok := strings.Cut(fields[0], "-"); ok && !strings.HasSuffix(fields[0], ":") {
			done()
			a, err1 := strconv.ParseUint(from, 16, 64)
			b, err2 := strconv.ParseUint(to, 16, 64)
			if err1 != nil || err2 != nil || len(fields) < 6 {
				continue
			}
			cur = span{a, b}
			clean = (fields[1] == "r-xp" || fields[1] == "r--p") && fields[5] == exe
			continue
		}
		switch fields[0] {
		case "Anonymous:", "Swap:", "Locked:":
			if len(fields) < 2 || fields[1] != "0" {
				clean = false
			}
		}
	}
	done()
	if s.Err() != nil {
		return
	}
	for _, r := range release {
		// Memory that is not the collector's: the program's own text and constants.
		b := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&r.from))), r.to-r.from)
		_ = unix.Madvise(b, unix.MADV_DONTNEED) // it stays resident, then
	}
}
