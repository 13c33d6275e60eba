// Package hostinfo tells about the machine: memory, processors, system and the disk below a folder. JSON names are
// those of the host endpoint of the agent (spec/registry.md section 7).
package hostinfo

import (
	"os"
	"runtime"
	"time"
)

// Info is what is known of the machine at one moment.
type Info struct {
	Memory         *Memory
	CPU            []CPU
	Host           *Host
	Disk           *Disk
	CollectionTime int64    // nanoseconds since 1970
	Errors         []string // what could not be found out; null when nothing
}

// Memory is in bytes.
type Memory struct {
	Total       uint64  `json:"total"`
	Available   uint64  `json:"available"`
	Used        uint64  `json:"used"`
	UsedPercent float64 `json:"usedPercent"`
	Free        uint64  `json:"free"`
	Active      uint64  `json:"active"`
	Inactive    uint64  `json:"inactive"`
	Buffers     uint64  `json:"buffers"`
	Cached      uint64  `json:"cached"`
	Shared      uint64  `json:"shared"`
	Slab        uint64  `json:"slab"`
	SwapTotal   uint64  `json:"swapTotal"`
	SwapFree    uint64  `json:"swapFree"`
}

// A CPU is one logical processor.
type CPU struct {
	CPU        int      `json:"cpu"`
	VendorID   string   `json:"vendorId"`
	Family     string   `json:"family"`
	Model      string   `json:"model"`
	Stepping   int      `json:"stepping"`
	PhysicalID string   `json:"physicalId"`
	CoreID     string   `json:"coreId"`
	Cores      int      `json:"cores"`
	ModelName  string   `json:"modelName"`
	MHz        float64  `json:"mhz"`
	CacheSize  int      `json:"cacheSize"` // KiB
	Flags      []string `json:"flags"`
	Microcode  string   `json:"microcode"`
}

// Host is the operating system.
type Host struct {
	Hostname             string `json:"hostname"`
	Uptime               uint64 `json:"uptime"`   // seconds
	BootTime             uint64 `json:"bootTime"` // seconds since 1970
	Procs                uint64 `json:"procs"`
	OS                   string `json:"os"`
	Platform             string `json:"platform"`
	PlatformFamily       string `json:"platformFamily"`
	PlatformVersion      string `json:"platformVersion"`
	KernelVersion        string `json:"kernelVersion"`
	KernelArch           string `json:"kernelArch"`
	VirtualizationSystem string `json:"virtualizationSystem"`
	VirtualizationRole   string `json:"virtualizationRole"`
	HostID               string `json:"hostId"`
}

// A Disk is a file system, in bytes.
type Disk struct {
	Path              string  `json:"path"`
	FSType            string  `json:"fstype"`
	Total             uint64  `json:"total"`
	Free              uint64  `json:"free"`
	Used              uint64  `json:"used"`
	UsedPercent       float64 `json:"usedPercent"`
	InodesTotal       uint64  `json:"inodesTotal"`
	InodesUsed        uint64  `json:"inodesUsed"`
	InodesFree        uint64  `json:"inodesFree"`
	InodesUsedPercent float64 `json:"inodesUsedPercent"`
}

// Collect finds out what it can. path is the folder whose disk is meant; empty means the root.
func Collect(path string) *Info {
	if path == "" {
		path = string(os.PathSeparator)
	}
	info := &Info{CollectionTime: time.Now().UnixNano()}
	fail := func(err error) {
		if err != nil {
			info.Errors = append(info.Errors, err.Error())
		}
	}
	var err error
	info.Memory, err = memory()
	fail(err)
	info.CPU, err = cpus()
	fail(err)
	info.Host, err = host()
	fail(err)
	info.Disk, err = disk(path)
	fail(err)
	if name, err := os.Hostname(); info.Host != nil && err == nil {
		info.Host.Hostname = name
	}
	if info.Host != nil {
		info.Host.OS = runtime.GOOS
	}
	return info
}

func percent(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}
