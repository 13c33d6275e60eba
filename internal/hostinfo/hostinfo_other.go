//go:build !linux

package hostinfo

import (
	"errors"
	"runtime"
	"time"
)

var started = time.Now()

var errUnknown = errors.New("not known on " + runtime.GOOS)

func memory() (*Memory, error) { return nil, errUnknown }

func cpus() ([]CPU, error) {
	list := make([]CPU, runtime.NumCPU())
	for i := range list {
		list[i] = CPU{CPU: i, Cores: 1}
	}
	return list, nil
}

func host() (*Host, error) {
	return &Host{KernelArch: runtime.GOARCH, Uptime: uint64(time.Since(started).Seconds()), BootTime: uint64(started.Unix())}, nil
}

func disk(string) (*Disk, error) { return nil, errUnknown }
