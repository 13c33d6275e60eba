package resident

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// fromFile returns how many kilobytes of files are in the memory of this process.
func fromFile(t *testing.T) (kb int) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if _, err := fmt.Sscanf(line, "RssFile: %d kB", &kb); err == nil {
			return kb
		}
	}
	t.Skip("the kernel does not tell how much of files is in memory")
	return 0
}

func TestReleaseGivesThePagesOfTheProgramBack(t *testing.T) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	all, err := clean(strings.NewReader(string(smaps)), self)
	if err != nil || len(all) == 0 {
		t.Fatalf("%x, %v", all, err)
	}
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Skip(err)
	}
	defer memory.Close()
	size := 0
	for _, m := range all { // makes all of it resident
		part := make([]byte, m.to-m.from)
		if _, err := memory.ReadAt(part, int64(m.from)); err != nil {
			t.Skip(err)
		}
		size += len(part) / 1024
	}
	before := fromFile(t)
	if before < size {
		t.Skipf("%d KiB of files are in memory after %d KiB were read", before, size)
	}
	if err := Release(); err != nil {
		t.Fatal(err)
	}
	if after := fromFile(t); after > before-size/4 {
		t.Errorf("%d KiB of files are in memory, %d before", after, before)
	}
}

func TestOnlyUnchangedPagesAreGivenBack(t *testing.T) {
	const smaps = `00400000-014c2000 r-xp 00000000 fe:00 10657857                           /usr/bin/a program
Size:              17160 kB
Rss:                9000 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
014c2000-02e2c000 r--p 010c2000 fe:00 10657857                           /usr/bin/a program
Anonymous:             0 kB
02e2c000-02e2d000 r--p 02a2c000 fe:00 10657857                           /usr/bin/a program
Anonymous:             4 kB
02e2d000-02f00000 rw-p 02a2d000 fe:00 10657857                           /usr/bin/a program
Anonymous:             0 kB
02f00000-02f01000 r--s 00000000 fe:00 10657857                           /usr/bin/a program
Anonymous:             0 kB
c000000000-c000800000 rw-p 00000000 00:00 0 
Anonymous:          5876 kB
7f34d2d9e000-7f34d2e9e000 r--p 00000000 fe:00 99                         /usr/lib/libc.so.6
Anonymous:             0 kB
7ffd1b000000-7ffd1b021000 rw-p 00000000 00:00 0                          [stack]
Anonymous:            20 kB
`
	got, err := clean(strings.NewReader(smaps), "/usr/bin/a program")
	if want := []span{{0x400000, 0x14c2000}, {0x14c2000, 0x2e2c000}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %x, %v; want %x", got, err, want)
	}
	if got, err := clean(strings.NewReader("garbage\n"), "/"); err == nil || got != nil {
		t.Errorf("garbage: %x, %v", got, err)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("00400000-014c2000 r-xp 00000000 fe:00 1 /a\nAnonymous: 0 kB\n")
	f.Add("Anonymous: 0 kB\n")
	f.Fuzz(func(t *testing.T, smaps string) {
		all, err := clean(strings.NewReader(smaps), "/a")
		if err == nil && len(all) > strings.Count(smaps, "Anonymous") {
			t.Errorf("%d spans", len(all))
		}
	})
}
