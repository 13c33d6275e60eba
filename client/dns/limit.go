package dns

import (
	"io"
	"net/netip"
	"sync"
)

// A connLimit bounds connections, in all and of one client: an address of IPv4, a network of 64 bits of IPv6.
type connLimit struct {
	total, perIP int

	mu   sync.Mutex
	open map[netip.Addr]map[io.Closer]bool
	all  int
}

// take takes a place for a connection, to be released at its end. When all are taken a client with more connections than
// this one has loses one of them.
func (c *connLimit) take(ip netip.Addr, conn io.Closer) (release func(), ok bool) {
	if ip.Is6() {
		p, _ := ip.WithZone("").Prefix(64)
		ip = p.Addr()
	}
	instead, ok := c.place(ip, conn)
	if instead != nil {
		instead.Close()
	}
	return func() { c.give(ip, conn) }, ok
}

// place notes a connection, perhaps instead of another one.
func (c *connLimit) place(ip netip.Addr, conn io.Closer) (instead io.Closer, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own := c.open[ip]
	if len(own) >= c.perIP {
		return nil, false
	}
	if c.all >= c.total {
		var most map[io.Closer]bool
		for _, conns := range c.open {
			if len(conns) > len(most) {
				most = conns
			}
		}
		if len(most) <= len(own)+1 {
			return nil, false
		}
		for instead = range most { // any one
			break
		}
		delete(most, instead)
		c.all--
	}
	if own == nil {
		if c.open == nil {
			c.open = map[netip.Addr]map[io.Closer]bool{}
		}
		own = map[io.Closer]bool{}
		c.open[ip] = own
	}
	own[conn] = true
	c.all++
	return instead, true
}

func (c *connLimit) give(ip netip.Addr, conn io.Closer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own := c.open[ip]
	if own[conn] {
		delete(own, conn)
		c.all--
	}
	if len(own) == 0 {
		delete(c.open, ip)
	}
}
