package dns

import (
	"net"
	"net/netip"
	"sync"
)

// A connLimit bounds connections.
type connLimit struct {
	total, perIP int

	mu   sync.Mutex
	open map[netip.Addr]int
	all  int
}

func (c *connLimit) take(ip netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= c.total || c.open[ip] >= c.perIP {
		return false
	}
	if c.open == nil {
		c.open = map[netip.Addr]int{}
	}
	c.all++
	c.open[ip]++
	return true
}

func (c *connLimit) give(ip netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.open[ip]--; c.open[ip] == 0 {
		delete(c.open, ip)
	}
}

// A limitedListener closes connections beyond a limit as they come.
type limitedListener struct {
	net.Listener
	limit *connLimit
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		ip := from.Addr().Unmap()
		if l.limit.take(ip) {
			return &limitedConn{Conn: c, done: sync.OnceFunc(func() { l.limit.give(ip) })}, nil
		}
		c.Close()
	}
}

type limitedConn struct {
	net.Conn
	done func()
}

func (c *limitedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
