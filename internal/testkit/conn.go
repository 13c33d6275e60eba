package testkit

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how many bytes one direction of a stream holds before its writer waits.
const window = 256 << 10

// A conn is one end of a stream.
type conn struct {
	host          *Host
	local, remote net.Addr
	in, out       *pipe
	read, write   *deadline
	once          sync.Once
}

// newConns makes both ends of a stream.
func newConns(a, b *Host, addrA, addrB net.Addr) (*conn, *conn) {
	ab, ba := newPipe(a, b), newPipe(b, a)
	return &conn{host: a, local: addrA, remote: addrB, in: ba, out: ab, read: newDeadline(), write: newDeadline()},
		&conn{host: b, local: addrB, remote: addrA, in: ab, out: ba, read: newDeadline(), write: newDeadline()}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b, c.read)
	if err != nil && err != io.EOF {
		err = &net.OpError{Op: "read", Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b, c.write)
	if err != nil {
		err = &net.OpError{Op: "write", Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
	}
	return n, err
}

// CloseWrite ends the outgoing direction alone.
func (c *conn) CloseWrite() error {
	c.out.finish()
	return nil
}

func (c *conn) forget() {
	c.host.net.mu.Lock()
	delete(c.host.conns, c)
	c.host.net.mu.Unlock()
}

// Close ends the stream: what was written still arrives.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.forget()
		c.in.discard(net.ErrClosed)
		c.out.finish()
		c.out.abortWriter(net.ErrClosed)
		c.read.set(time.Time{})
		c.write.set(time.Time{})
	})
	return nil
}

// reset ends the stream at both ends at once: what is under way is lost.
func (c *conn) reset() {
	c.once.Do(func() {
		c.forget()
		c.in.abort(net.ErrClosed, syscall.ECONNRESET)
		c.out.abort(syscall.ECONNRESET, net.ErrClosed)
		c.read.set(time.Time{})
		c.write.set(time.Time{})
	})
}

func (c *conn) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.read.set(t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.write.set(t)
	return nil
}

// A segment is a piece of a stream and when it arrives.
type segment struct {
	data []byte
	at   time.Time // zero while the link is cut
}

// A pipe is one direction of a stream.
type pipe struct {
	from, to *Host

	mu       sync.Mutex
	queue    []segment
	size     int
	last     time.Time     // arrival of the latest segment: nothing overtakes
	finished bool          // no more is written
	finAt    time.Time     // when the reader learns of it
	readErr  error         // what the reader gets at once
	writeErr error         // what the writer gets at once
	deaf     bool          // nobody reads any more
	changed  chan struct{} // closed and replaced at each change
}

func newPipe(from, to *Host) *pipe { return &pipe{from: from, to: to, changed: make(chan struct{})} }

func (p *pipe) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) abort(reader, writer error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readErr == nil {
		p.readErr = reader
	}
	if p.writeErr == nil {
		p.writeErr = writer
	}
	p.change()
}

// discard ends the reading side. The other end goes on writing in vain until it has read that the stream is over: never
// does a write fail while a read would not.
func (p *pipe) discard(reader error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readErr == nil {
		p.readErr = reader
	}
	p.deaf, p.queue, p.size = true, nil, 0
	p.change()
}

func (p *pipe) abortWriter(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writeErr == nil {
		p.writeErr = err
	}
	p.change()
}

func (p *pipe) finish() {
	at, _ := p.from.net.path(p.from, p.to)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.finished {
		p.finished = true
		if at.Before(p.last) {
			at = p.last
		}
		p.finAt = at
		p.change()
	}
}

func (p *pipe) write(b []byte, d *deadline) (n int, err error) {
	for len(b) > 0 {
		over := d.wait()
		p.mu.Lock()
		switch {
		case p.writeErr != nil:
			defer p.mu.Unlock()
			return n, p.writeErr
		case p.finished:
			defer p.mu.Unlock()
			return n, syscall.EPIPE
		case d.passed():
			defer p.mu.Unlock()
			return n, os.ErrDeadlineExceeded
		case p.deaf:
			p.mu.Unlock()
			return n + len(b), nil
		}
		if room := window - p.size; room > 0 {
			k := min(room, len(b))
			p.mu.Unlock()
			at, cut := p.from.net.path(p.from, p.to)
			p.mu.Lock()
			if p.deaf || p.writeErr != nil {
				p.mu.Unlock()
				continue
			}
			if cut != nil {
				at = time.Time{}
			} else if at.Before(p.last) {
				at = p.last
			}
			if !at.IsZero() {
				p.last = at
			}
			p.queue = append(p.queue, segment{append([]byte(nil), b[:k]...), at})
			p.size += k
			n, b = n+k, b[k:]
			p.change()
			p.mu.Unlock()
			continue
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-over:
		}
	}
	return n, nil
}

func (p *pipe) read(b []byte, d *deadline) (int, error) {
	for {
		over := d.wait()
		p.mu.Lock()
		if p.readErr != nil {
			defer p.mu.Unlock()
			return 0, p.readErr
		}
		if d.passed() {
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
		now := time.Now()
		var wait time.Duration = -1
		var cut <-chan struct{}
		if len(p.queue) > 0 || p.finished {
			// A link that is cut now holds back also what was sent before.
			var at time.Time
			p.mu.Unlock()
			at, cut = p.from.net.path(p.from, p.to)
			p.mu.Lock()
			if p.readErr != nil {
				defer p.mu.Unlock()
				return 0, p.readErr
			}
			switch {
			case cut != nil:
			case len(p.queue) > 0:
				s := &p.queue[0]
				if s.at.IsZero() { // sent while the link was cut: arrives now that it is not
					s.at = at
				}
				if wait = s.at.Sub(now); wait <= 0 {
					n := 0
					for n < len(b) && len(p.queue) > 0 && !p.queue[0].at.IsZero() && !p.queue[0].at.After(now) {
						s := &p.queue[0]
						k := copy(b[n:], s.data)
						n += k
						if s.data = s.data[k:]; len(s.data) == 0 {
							p.queue[0] = segment{}
							p.queue = p.queue[1:]
						}
					}
					p.size -= n
					p.change()
					p.mu.Unlock()
					return n, nil
				}
			case p.finished:
				if p.finAt.IsZero() {
					p.finAt = at
				}
				if wait = p.finAt.Sub(now); wait <= 0 {
					p.mu.Unlock()
					return 0, io.EOF
				}
			}
		}
		changed := p.changed
		p.mu.Unlock()
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-changed:
		case <-cut:
		case <-timer:
		case <-over:
		}
	}
}

// A deadline ends waits, and can be moved while they last.
type deadline struct {
	mu    sync.Mutex
	at    time.Time
	timer *time.Timer
	over  chan struct{} // closed when the deadline passes or is moved
}

func newDeadline() *deadline { return &deadline{over: make(chan struct{})} }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	close(d.over)
	d.over = make(chan struct{})
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		over := d.over
		d.timer = time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.over == over {
				close(d.over)
				d.over = make(chan struct{})
			}
		})
	}
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

// A packet is a datagram on its way.
type packet struct {
	data []byte
	from net.Addr
}

// A packetConn sends and receives datagrams.
type packetConn struct {
	host     *Host
	addr     net.Addr
	port     uint16
	queue    chan packet
	deadline *deadline
	once     sync.Once
	closed   chan struct{}
}

func (p *packetConn) LocalAddr() net.Addr { return p.addr }

func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		over := p.deadline.wait()
		if p.deadline.passed() {
			return 0, nil, opErr("read", p.addr, os.ErrDeadlineExceeded)
		}
		select {
		case <-p.closed:
			return 0, nil, opErr("read", p.addr, net.ErrClosed)
		case pk := <-p.queue:
			return copy(b, pk.data), pk.from, nil
		case <-over:
		}
	}
}

// maxPacket is what a packet can carry.
const maxPacket = 65507

func (p *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-p.closed:
		return 0, opErr("write", p.addr, net.ErrClosed)
	default:
	}
	if len(b) > maxPacket {
		return 0, opErr("write", p.addr, os.NewSyscallError("sendto", syscall.EMSGSIZE))
	}
	dst, err := netip.ParseAddrPort(to.String())
	if err != nil {
		return 0, opErr("write", p.addr, err)
	}
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	peer := n.hosts[dst.Addr()]
	if peer == nil {
		return len(b), nil
	}
	l := n.link(p.host, peer)
	if l.Cut || l.Loss > 0 && n.rng.Float64() < l.Loss {
		return len(b), nil
	}
	pk := packet{append([]byte(nil), b...), p.addr}
	if d := n.latency(l); d > 0 {
		time.AfterFunc(d, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			peer.deliver(dst, pk)
		})
	} else {
		peer.deliver(dst, pk)
	}
	return len(b), nil
}

// deliver queues a packet that has arrived, if somebody listens. The network's lock is held.
func (h *Host) deliver(dst netip.AddrPort, pk packet) {
	if q := h.packets[dst.Port()]; q != nil && h.addr == dst.Addr() {
		select {
		case q.queue <- pk:
		default: // a full queue drops, as a socket does
		}
	}
}

func (p *packetConn) Close() error {
	err := opErr("close", p.addr, net.ErrClosed)
	p.once.Do(func() {
		err = nil
		p.host.net.mu.Lock()
		if p.host.packets[p.port] == p {
			delete(p.host.packets, p.port)
		}
		p.host.net.mu.Unlock()
		p.deadline.set(time.Time{})
		close(p.closed)
	})
	return err
}

func (p *packetConn) SetDeadline(t time.Time) error {
	p.deadline.set(t)
	return nil
}
func (p *packetConn) SetReadDeadline(t time.Time) error {
	p.deadline.set(t)
	return nil
}
func (p *packetConn) SetWriteDeadline(time.Time) error { return nil }
