// Package testkit gives tests what they would else need machines for: a network in memory with loss, delay and
// partitions, a certificate authority, and disks that survive a crash. All of it works in testing/synctest bubbles.
package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A Link is how packets travel from one host to another.
type Link struct {
	Delay  time.Duration
	Jitter time.Duration // up to this much more
	Loss   float64       // of packets, 0 to 1; streams lose none but take longer
	Cut    bool          // nothing arrives; streams wait
}

// A Network connects hosts.
type Network struct {
	mu     sync.Mutex
	rng    *rand.Rand
	hosts  map[netip.Addr]*Host
	base   Link
	links  map[[2]*Host]Link
	island map[*Host]int // partition a host is in
	healed chan struct{} // closed and replaced when links change
}

// NewNetwork makes a network whose chance comes from seed. Every link is perfect until changed.
func NewNetwork(seed uint64) *Network {
	return &Network{
		rng:   rand.New(rand.NewPCG(seed, 0x5a)),
		hosts: map[netip.Addr]*Host{}, links: map[[2]*Host]Link{}, island: map[*Host]int{}, healed: make(chan struct{}),
	}
}

// A Host is a machine with one address.
type Host struct {
	net *Network

	// All guarded by net.mu.
	addr      netip.Addr
	nextPort  uint16
	listeners map[uint16]*listener
	packets   map[uint16]*packetConn
	conns     map[*conn]struct{}
}

// Host adds a host with an address.
func (n *Network) Host(addr string) *Host {
	a := netip.MustParseAddr(addr)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts[a] != nil {
		panic("testkit: address taken: " + addr)
	}
	h := &Host{
		net: n, addr: a, nextPort: 40000,
		listeners: map[uint16]*listener{}, packets: map[uint16]*packetConn{}, conns: map[*conn]struct{}{},
	}
	n.hosts[a] = h
	return h
}

// SetAll changes every link that was not set by itself.
func (n *Network) SetAll(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.base = l
	n.change()
}

// SetLink changes the way from one host to another; the way back is a link of its own.
func (n *Network) SetLink(from, to *Host, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[[2]*Host{from, to}] = l
	n.change()
}

// Partition splits the network: hosts of different groups cannot reach each other. Hosts in no group form one more.
func (n *Network) Partition(groups ...[]*Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.island)
	for i, g := range groups {
		for _, h := range g {
			n.island[h] = i + 1
		}
	}
	n.change()
}

// Heal ends partitions and gives every link back its common quality.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.island)
	clear(n.links)
	n.change()
}

// change wakes what waits for a link. The lock is held.
func (n *Network) change() {
	close(n.healed)
	n.healed = make(chan struct{})
}

// link returns the way between two hosts. The lock is held.
func (n *Network) link(from, to *Host) Link {
	if from == to {
		return Link{}
	}
	l, ok := n.links[[2]*Host{from, to}]
	if !ok {
		l = n.base
	}
	l.Cut = l.Cut || n.island[from] != n.island[to]
	return l
}

// latency draws a delay. The lock is held.
func (n *Network) latency(l Link) time.Duration {
	d := l.Delay
	if l.Jitter > 0 {
		d += time.Duration(n.rng.Int64N(int64(l.Jitter) + 1))
	}
	return d
}

// retransmission is what a lost segment costs a stream.
const retransmission = 200 * time.Millisecond

// path says when something sent now over a stream arrives; while the link is cut it returns the channel to wait on
// instead.
func (n *Network) path(from, to *Host) (arrives time.Time, cut <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(from, to)
	if l.Cut {
		return time.Time{}, n.healed
	}
	d := n.latency(l)
	for i := 0; i < 6 && l.Loss > 0 && n.rng.Float64() < l.Loss; i++ {
		d += retransmission << i
	}
	return time.Now().Add(d), nil
}

// Addr returns the host's address.
func (h *Host) Addr() netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.addr
}

// Move crashes the host and gives it another address.
func (h *Host) Move(addr string) {
	h.Crash()
	a := netip.MustParseAddr(addr)
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.hosts[a] != nil {
		panic("testkit: address taken: " + addr)
	}
	delete(h.net.hosts, h.addr)
	h.addr = a
	h.net.hosts[a] = h
}

// Crash ends every connection and listener of the host, as when its process is killed. It can listen again at once.
func (h *Host) Crash() {
	h.net.mu.Lock()
	var ends []io.Closer
	for _, l := range h.listeners {
		ends = append(ends, l)
	}
	for _, p := range h.packets {
		ends = append(ends, p)
	}
	conns := slices.Collect(maps.Keys(h.conns))
	h.net.mu.Unlock()
	for _, e := range ends {
		e.Close()
	}
	for _, c := range conns {
		c.reset()
	}
}

func (h *Host) freePort(port uint16) uint16 {
	for port == 0 {
		h.nextPort++
		if h.nextPort < 40000 {
			h.nextPort = 40000
		}
		if h.listeners[h.nextPort] == nil && h.packets[h.nextPort] == nil {
			port = h.nextPort
		}
	}
	return port
}

func opErr(op string, addr net.Addr, err error) error {
	return &net.OpError{Op: op, Net: addr.Network(), Addr: addr, Err: err}
}

// Listen accepts streams on a port, 0 for any.
func (h *Host) Listen(port uint16) (net.Listener, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	port = h.freePort(port)
	addr := net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.addr, port))
	if h.listeners[port] != nil {
		return nil, opErr("listen", addr, os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	l := &listener{host: h, addr: addr, port: port, queue: make(chan *conn, 128), closed: make(chan struct{})}
	h.listeners[port] = l
	return l, nil
}

// ListenPacket receives packets on a port, 0 for any.
func (h *Host) ListenPacket(port uint16) (net.PacketConn, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	port = h.freePort(port)
	addr := net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.addr, port))
	if h.packets[port] != nil {
		return nil, opErr("listen", addr, os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	p := &packetConn{host: h, addr: addr, port: port, queue: make(chan packet, 1024), closed: make(chan struct{}), deadline: newDeadline()}
	h.packets[port] = p
	return p, nil
}

// Dial opens a stream to "ip:port". It waits while the link is cut, until ctx ends.
func (h *Host) Dial(ctx context.Context, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	remote := net.TCPAddrFromAddrPort(to)
	fail := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: remote, Err: err}
	}
	n := h.net
	for {
		n.mu.Lock()
		peer := n.hosts[to.Addr()]
		n.mu.Unlock()
		if peer == nil { // no such machine: like a cut link
			n.mu.Lock()
			healed := n.healed
			n.mu.Unlock()
			select {
			case <-ctx.Done():
				return nil, fail(dialTimeout(ctx))
			case <-healed:
				continue
			case <-time.After(3 * time.Second):
				return nil, fail(os.NewSyscallError("connect", syscall.EHOSTUNREACH))
			}
		}
		there, cut := n.path(h, peer)
		if cut == nil {
			var back time.Time
			if back, cut = n.path(peer, h); cut == nil {
				wait := time.Until(there) + time.Until(back)
				if wait > 0 {
					select {
					case <-ctx.Done():
						return nil, fail(dialTimeout(ctx))
					case <-time.After(wait):
					}
				}
			}
		}
		if cut != nil {
			select {
			case <-ctx.Done():
				return nil, fail(dialTimeout(ctx))
			case <-cut:
				continue
			}
		}
		n.mu.Lock()
		l := peer.listeners[to.Port()]
		if l == nil || n.hosts[to.Addr()] != peer {
			n.mu.Unlock()
			return nil, fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
		}
		local := net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.addr, h.freePort(0)))
		a, b := newConns(h, peer, local, remote)
		select {
		case l.queue <- b:
		default:
			n.mu.Unlock()
			return nil, fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
		}
		h.conns[a], peer.conns[b] = struct{}{}, struct{}{}
		n.mu.Unlock()
		return a, nil
	}
}

func dialTimeout(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return ctx.Err()
}

// A listener queues the far ends of dialled connections.
type listener struct {
	host   *Host
	addr   net.Addr
	port   uint16
	queue  chan *conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, opErr("accept", l.addr, net.ErrClosed)
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, opErr("accept", l.addr, net.ErrClosed)
	}
}

func (l *listener) Close() error {
	err := opErr("close", l.addr, net.ErrClosed)
	l.once.Do(func() {
		err = nil
		l.host.net.mu.Lock()
		if l.host.listeners[l.port] == l {
			delete(l.host.listeners, l.port)
		}
		l.host.net.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.queue:
				c.reset()
			default:
				return
			}
		}
	})
	return err
}

// String describes the host in test output.
func (h *Host) String() string { return fmt.Sprintf("host %s", h.Addr()) }
