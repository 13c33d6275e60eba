package stream

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// readWhenReady returns a function that reads from a socket into the buffer
// that get returns, which is asked for only when there may be something to
// read and given back with put when there is not. It returns nil if c is not
// a socket.
func readWhenReady(c net.Conn, get func() []byte, put func()) func() ([]byte, error) {
	rc := rawConn(c)
	if rc == nil {
		return nil
	}
	var buf []byte
	var n int
	var rerr error
	attempt := func(fd uintptr) bool {
		buf = get()
		for {
			n, rerr = unix.Read(int(fd), buf)
			if rerr != unix.EINTR {
				break
			}
		}
		if rerr == unix.EAGAIN {
			put()
			return false
		}
		return true
	}
	return func() ([]byte, error) {
		if err := rc.Read(attempt); err != nil {
			put()
			return nil, err
		}
		if rerr != nil {
			put()
			return nil, &net.OpError{Op: "read", Net: c.LocalAddr().Network(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("read", rerr)}
		}
		if n == 0 {
			put()
			return nil, io.EOF
		}
		return buf[:n], nil
	}
}

const canLook = true

// lookAt looks once, and takes it that there is something when it is called again, since the system has said so then.
func (f *First) lookAt(fd uintptr) bool {
	if f.looked {
		return true
	}
	f.looked = true
	_, _, err := unix.Recvfrom(int(fd), f.one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err != unix.EAGAIN
}

func rawConn(c net.Conn) syscall.RawConn {
	switch c := c.(type) {
	case *net.TCPConn:
		rc, _ := c.SyscallConn()
		return rc
	case *net.UnixConn:
		rc, _ := c.SyscallConn()
		return rc
	}
	return nil
}

// A pipe carries bytes from socket to socket without copying them.
type pipe struct{ r, w int }

// pipes keeps some that are empty for the next who needs one.
var pipes = make(chan *pipe, 32)

func getPipe() (*pipe, error) {
	select {
	case p := <-pipes:
		return p, nil
	default:
	}
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	// Larger pipes mean fewer calls; the system may refuse, which is fine.
	_, _ = unix.FcntlInt(uintptr(fd[0]), unix.F_SETPIPE_SZ, spliceSize)
	return &pipe{fd[0], fd[1]}, nil
}

func (p *pipe) put() {
	select {
	case pipes <- p:
	default:
		p.close()
	}
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

const spliceSize = 256 << 10

// splice moves bytes from socket to socket within the kernel until src ends. It
// reports whether it did: false means that copying must go on from here. A
// pipe is held only while there are bytes in it.
func splice(dst, src net.Conn, count func(int)) (handled bool, err error) {
	from, to := rawConn(src), rawConn(dst)
	if from == nil || to == nil {
		return false, nil
	}
	var p *pipe // nil while none is held
	var n int64 // bytes in it
	var serr error
	drop := func() {
		if p != nil {
			p.close()
			p = nil
		}
	}
	in := func(fd uintptr) bool {
		if p, serr = getPipe(); serr != nil {
			return true
		}
		for {
			n, serr = unix.Splice(int(fd), nil, p.w, nil, spliceSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			if serr != unix.EINTR {
				break
			}
		}
		if serr == unix.EAGAIN {
			p.put()
			p = nil
			return false
		}
		return true
	}
	out := func(fd uintptr) bool {
		for n > 0 {
			var m int64
			m, serr = unix.Splice(p.r, nil, int(fd), nil, int(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			switch {
			case serr == unix.EINTR:
			case serr == unix.EAGAIN:
				return false
			case serr != nil:
				return true
			case m == 0:
				serr = io.ErrNoProgress
				return true
			default:
				n -= m
				count(int(m))
			}
		}
		serr = nil
		return true
	}
	defer drop()
	for {
		if err := from.Read(in); err != nil {
			return true, err
		}
		switch {
		case p == nil: // no pipe to be had
			return false, nil
		case serr == unix.EINVAL: // not for this kind of socket
			return false, nil
		case serr != nil:
			return true, os.NewSyscallError("splice", serr)
		case n == 0:
			p.put()
			p = nil
			return true, nil
		}
		if err := to.Write(out); err != nil {
			return true, err // bytes may be left in the pipe, which is dropped
		}
		if serr != nil {
			return true, os.NewSyscallError("splice", serr)
		}
		p.put()
		p = nil
	}
}
