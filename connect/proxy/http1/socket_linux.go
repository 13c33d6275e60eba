package http1

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sarnmesh/sarn/connect/proxy/stream"
)

const canReadSockets = true

// readSocket reads once there is something to read, and holds no buffer until then if there is nothing to keep in it.
func (in *input) readSocket(fd uintptr) bool {
	if in.buf == nil {
		in.buf = getBuffer(in.want)
	}
	for {
		in.n, in.err = unix.Read(int(fd), in.buf[in.w:])
		if in.err != unix.EINTR {
			break
		}
	}
	if in.err == unix.EAGAIN {
		in.release()
		return false
	}
	return true
}

func (in *input) fromSocket() (int, error) {
	in.n, in.err = 0, nil
	if err := in.socket.Read(in.attempt); err != nil {
		return 0, err
	}
	if in.err != nil {
		return 0, &net.OpError{Op: "read", Net: in.conn.LocalAddr().Network(), Addr: in.conn.RemoteAddr(), Err: os.NewSyscallError("read", in.err)}
	}
	if in.n == 0 {
		return 0, io.EOF
	}
	return in.n, nil
}

// A probe looks at a socket without waiting.
type probe struct {
	socket syscall.RawConn // nil if there is none
	events int16
	found  bool
	look   func(fd uintptr)
	poll   [1]unix.PollFd
}

func (p *probe) init(c net.Conn) {
	p.socket = stream.Socket(c)
	p.look = p.see
}

func (p *probe) see(fd uintptr) {
	p.poll[0] = unix.PollFd{Fd: int32(fd), Events: p.events}
	for {
		n, err := unix.Poll(p.poll[:], 0)
		if err == unix.EINTR {
			continue
		}
		p.found = n > 0 || err != nil
		return
	}
}

// has reports whether the socket shows one of the events, an error, or is closed.
func (p *probe) has(events int16) bool {
	if p.socket == nil {
		return false
	}
	p.events, p.found = events, false
	return p.socket.Control(p.look) != nil || p.found
}

// left reports whether the peer has closed the connection, or its half.
func (p *probe) left() bool { return p.has(unix.POLLRDHUP) }

// readable reports whether there is something to read, the end included.
func (p *probe) readable() bool { return p.has(unix.POLLIN | unix.POLLRDHUP) }
