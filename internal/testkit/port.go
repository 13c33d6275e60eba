package testkit

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// The ports that FreePorts hands out: below those that the system gives to connections. Those where sidecars are put by
// themselves are left out.
const (
	lowPort, highPort       = 10000, 32000
	portBlock               = 100 // ports that a process takes at a time
	lowSidecar, highSidecar = 21000, 21300
)

// ports are those of this process.
var ports struct {
	sync.Mutex
	guards []net.Listener // on the first port of each block taken, which tells other processes
	free   []int
}

// FreePorts returns n ports on which nothing listens, over TCP or UDP, for programs that must be told their ports. None
// is returned twice, or to two processes that run at a time.
func FreePorts(n int) ([]int, error) {
	ports.Lock()
	defer ports.Unlock()
	var found []int
	for len(found) < n {
		if len(ports.free) == 0 && !takeBlock() {
			return nil, errors.New("no free ports")
		}
		p := ports.free[0]
		ports.free = ports.free[1:]
		if unused(p) {
			found = append(found, p)
		}
	}
	return found, nil
}

// takeBlock takes a block of ports that no other process has. It reports whether there was one.
func takeBlock() bool {
	for _, i := range rand.Perm((highPort - lowPort) / portBlock) {
		first := lowPort + i*portBlock
		if first >= lowSidecar && first < highSidecar {
			continue
		}
		guard, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(first))
		if err != nil {
			continue
		}
		ports.guards = append(ports.guards, guard)
		for p := first + 1; p < first+portBlock; p++ {
			ports.free = append(ports.free, p)
		}
		return true
	}
	return false
}

func unused(port int) bool {
	var held []io.Closer
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port)) // fails where somebody has it at one address
	if err != nil {
		return false
	}
	held = append(held, l)
	u, err := net.ListenPacket("udp", ":"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	held = append(held, u)
	return true
}
