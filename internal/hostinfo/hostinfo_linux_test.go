package hostinfo

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCollect(t *testing.T) {
	i := Collect(t.TempDir())
	if len(i.Errors) > 0 {
		t.Fatalf("errors %q", i.Errors)
	}
	if i.Memory.Total == 0 || i.Memory.Used == 0 || len(i.CPU) == 0 || i.Host.OS != "linux" || i.Host.KernelVersion == "" || i.Host.Procs == 0 || i.Disk.Total == 0 {
		t.Errorf("memory %+v, %d processors, host %+v, disk %+v", i.Memory, len(i.CPU), i.Host, i.Disk)
	}
	if i := Collect("/does/not/exist"); i.Disk != nil || len(i.Errors) != 1 {
		t.Errorf("unknown folder: %+v, %q", i.Disk, i.Errors)
	}
}

func TestParseCPUs(t *testing.T) {
	got := parseCPUs([]byte("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon\nstepping\t: 7\ncpu MHz\t\t: 2500.5\ncache size\t: 36608 KB\nflags\t\t: fpu vme\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\n"))
	want := []CPU{
		{CPU: 0, VendorID: "GenuineIntel", Family: "6", Model: "85", ModelName: "Xeon", Stepping: 7, MHz: 2500.5, CacheSize: 36608, Cores: 1, Flags: []string{"fpu", "vme"}},
		{CPU: 1, VendorID: "GenuineIntel", Cores: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
