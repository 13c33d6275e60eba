package hostinfo

import (
	"bufio"
	"bytes"
	"cmp"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pairs reads a file of lines with a name and a value.
func pairs(path, separator string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, separator); ok {
			m[strings.TrimSpace(k)] = strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return m, nil
}

func memory() (*Memory, error) {
	m, err := pairs("/proc/meminfo", ":")
	if err != nil {
		return nil, err
	}
	bytes := func(name string) uint64 {
		n, _ := strconv.ParseUint(strings.TrimSuffix(m[name], " kB"), 10, 64) // what is missing is 0
		return n * 1024
	}
	mem := &Memory{
		Total: bytes("MemTotal"), Available: bytes("MemAvailable"), Free: bytes("MemFree"), Active: bytes("Active"),
		Inactive: bytes("Inactive"), Buffers: bytes("Buffers"), Cached: bytes("Cached") + bytes("SReclaimable"),
		Shared: bytes("Shmem"), Slab: bytes("Slab"), SwapTotal: bytes("SwapTotal"), SwapFree: bytes("SwapFree"),
	}
	if taken := mem.Free + mem.Buffers + mem.Cached; taken < mem.Total {
		mem.Used = mem.Total - taken
	}
	mem.UsedPercent = percent(mem.Used, mem.Total)
	return mem, nil
}

func cpus() ([]CPU, error) {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	return parseCPUs(data), nil
}

// parseCPUs reads the sections of /proc/cpuinfo, one for each processor.
func parseCPUs(data []byte) []CPU {
	var list []CPU
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		k, v, _ := strings.Cut(lines.Text(), ":")
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		n, _ := strconv.Atoi(strings.TrimSuffix(v, " KB")) // text stays 0
		if k == "processor" {
			list = append(list, CPU{CPU: n, Cores: 1})
		}
		if len(list) == 0 {
			continue
		}
		c := &list[len(list)-1]
		switch k {
		case "vendor_id", "CPU implementer":
			c.VendorID = v
		case "cpu family", "CPU architecture":
			c.Family = v
		case "model", "CPU part":
			c.Model = v
		case "model name":
			c.ModelName = v
		case "stepping", "CPU revision":
			c.Stepping = n
		case "cpu MHz":
			c.MHz, _ = strconv.ParseFloat(v, 64)
		case "cache size":
			c.CacheSize = n
		case "physical id":
			c.PhysicalID = v
		case "core id":
			c.CoreID = v
		case "flags", "Features":
			c.Flags = strings.Fields(v)
		case "microcode":
			c.Microcode = v
		}
	}
	return list
}

func host() (*Host, error) {
	h := &Host{}
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return nil, err
	}
	h.KernelVersion, h.KernelArch = chars(u.Release[:]), chars(u.Machine[:])
	if m, err := pairs("/etc/os-release", "="); err == nil {
		h.Platform, h.PlatformVersion = m["ID"], m["VERSION_ID"]
		h.PlatformFamily, _, _ = strings.Cut(cmp.Or(m["ID_LIKE"], m["ID"]), " ")
	}
	if data, err := os.ReadFile("/proc/uptime"); err == nil {
		text, _, _ := strings.Cut(string(data), " ")
		if up, err := strconv.ParseFloat(text, 64); err == nil {
			h.Uptime = uint64(up)
			h.BootTime = uint64(time.Now().Unix()) - h.Uptime
		}
	}
	if entries, err := os.ReadDir("/proc"); err == nil {
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err == nil {
				h.Procs++
			}
		}
	}
	for _, path := range []string{"/sys/class/dmi/id/product_uuid", "/etc/machine-id", "/proc/sys/kernel/random/boot_id"} {
		if data, err := os.ReadFile(path); err == nil && len(bytes.TrimSpace(data)) > 0 {
			h.HostID = strings.ToLower(string(bytes.TrimSpace(data)))
			break
		}
	}
	return h, nil
}

func chars[T int8 | uint8](list []T) string {
	var b strings.Builder
	for _, c := range list {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}

func disk(path string) (*Disk, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	size := uint64(st.Bsize)
	d := &Disk{
		Path: path, FSType: fsTypes[uint32(st.Type)], Total: st.Blocks * size, Free: st.Bavail * size, Used: (st.Blocks - st.Bfree) * size,
		InodesTotal: st.Files, InodesFree: st.Ffree, InodesUsed: st.Files - st.Ffree,
	}
	d.UsedPercent = percent(d.Used, d.Used+d.Free)
	d.InodesUsedPercent = percent(d.InodesUsed, d.InodesTotal)
	return d, nil
}

// fsTypes names the usual magic numbers of statfs(2).
var fsTypes = map[uint32]string{
	0xef53: "ext2/ext3", 0x01021994: "tmpfs", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x794c7630: "overlayfs", 0x6969: "nfs", 0x2fc12fc1: "zfs",
}
