package telemetry

import (
	"os"
	"strconv"
	"strings"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/hostinfo"
)

// A Host measures the machine, for enable_host_metrics. The gauges:
//
//	host.memory.{total,available,used,free}    bytes
//	host.memory.used_percent
//	host.cpu.{user,system,idle,iowait,total}   per cent of the time since the last report; label cpu
//	host.disk.{size,used,available}            bytes of the file system of the data folder; label path
//	host.disk.{used_percent,inodes_percent}    label path
//	host.uptime                                seconds
//
// Those of processors are told on Linux only, others where they can be found out.
type Host struct {
	before map[string]cpuTimes
}

// cpuTimes are of one processor since the machine started, in ticks.
type cpuTimes struct{ user, system, idle, iowait, all float64 }

// Report sets the gauges. disk is the folder whose file system is measured, the root if it is empty.
func (h *Host) Report(disk string) {
	info := hostinfo.Collect(disk)
	set := func(v float64, labels []metrics.Label, name ...string) {
		metrics.SetGaugeWithLabels(append([]string{"host"}, name...), float32(v), labels)
	}
	if m := info.Memory; m != nil {
		set(float64(m.Total), nil, "memory", "total")
		set(float64(m.Available), nil, "memory", "available")
		set(float64(m.Used), nil, "memory", "used")
		set(float64(m.Free), nil, "memory", "free")
		set(m.UsedPercent, nil, "memory", "used_percent")
	}
	if d := info.Disk; d != nil {
		path := []metrics.Label{{Name: "path", Value: d.Path}}
		set(float64(d.Total), path, "disk", "size")
		set(float64(d.Used), path, "disk", "used")
		set(float64(d.Free), path, "disk", "available")
		set(d.UsedPercent, path, "disk", "used_percent")
		set(d.InodesUsedPercent, path, "disk", "inodes_percent")
	}
	if info.Host != nil {
		set(float64(info.Host.Uptime), nil, "uptime")
	}
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return
	}
	now := parseStat(string(data))
	for cpu, t := range now {
		b, ok := h.before[cpu]
		all := t.all - b.all
		if !ok || all <= 0 {
			continue
		}
		labels := []metrics.Label{{Name: "cpu", Value: cpu}}
		share := func(v float64) float64 { return min(max(100*v/all, 0), 100) } // iowait may go back a little
		idle := share(t.idle - b.idle)
		set(share(t.user-b.user), labels, "cpu", "user")
		set(share(t.system-b.system), labels, "cpu", "system")
		set(idle, labels, "cpu", "idle")
		set(share(t.iowait-b.iowait), labels, "cpu", "iowait")
		set(100-idle, labels, "cpu", "total")
	}
	h.before = now
}

// parseStat reads the times of each processor from what /proc/stat has (proc_stat(5)). Lines of another form are left out.
func parseStat(text string) map[string]cpuTimes {
	out := map[string]cpuTimes{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasPrefix(f[0], "cpu") || f[0] == "cpu" {
			continue
		}
		var v [8]float64 // user nice system idle iowait irq softirq steal
		good := true
		for i := range min(len(v), len(f)-1) {
			n, err := strconv.ParseUint(f[i+1], 10, 64)
			good = good && err == nil
			v[i] = float64(n)
		}
		if !good {
			continue
		}
		t := cpuTimes{user: v[0] + v[1], system: v[2] + v[5] + v[6], idle: v[3], iowait: v[4]}
		for _, x := range v {
			t.all += x
		}
		out[f[0]] = t
	}
	return out
}
