package http1

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sarnmesh/sarn/connect/proxy/stream"
)

// Buffers come in two sizes. Heads of messages usually fit the small one.
const (
	small = 8 << 10
	large = 32 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([small]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([large]byte) }}
)

// getBuffer returns a buffer of at least n bytes.
func getBuffer(n int) []byte {
	switch {
	case n <= small:
		return smallBuffers.Get().(*[small]byte)[:]
	case n <= large:
		return largeBuffers.Get().(*[large]byte)[:]
	}
	return make([]byte, n)
}

func putBuffer(b []byte) {
	switch cap(b) {
	case small:
		smallBuffers.Put((*[small]byte)(b[:small]))
	case large:
		largeBuffers.Put((*[large]byte)(b[:large]))
	}
}

// An input is the receiving side of a connection. It is used by one goroutine at a time.
type input struct {
	conn     net.Conn
	socket   syscall.RawConn // nil if conn is none, or how to read from it is not known
	secure   *tls.Conn       // nil in plaintext
	deadline deadline
	attempt  func(fd uintptr) bool // reads from the socket
	n        int                   // what attempt has read
	err      error
	first    stream.First  // in TLS
	count    atomic.Uint64 // bytes received

	// buf[r:w] is what was received and not yet used. What is before low must stay as it is. Without a buffer all are
	// 0. It is given back when there is nothing in it to keep.
	buf       []byte
	r, w, low int
	want      int    // size of the next buffer
	head      []byte // a former buffer that strings still point into
}

func (in *input) init(conn net.Conn) {
	conn, ahead := stream.Unwrap(conn)
	in.conn = conn
	in.want = small
	in.deadline.set = conn.SetReadDeadline
	if t, ok := conn.(*tls.Conn); ok {
		in.secure = t
		in.first.Init(t)
	} else if canReadSockets {
		if in.socket = stream.Socket(conn); in.socket != nil {
			in.attempt = in.readSocket
		}
	}
	in.unread(ahead)
}

// unread makes b what is received next. Nothing may have been received before.
func (in *input) unread(b []byte) {
	if len(b) == 0 {
		return
	}
	in.buf = getBuffer(len(b) + 1)
	in.w = copy(in.buf, b)
}

// bytes returns what was received and not yet used.
func (in *input) bytes() []byte { return in.buf[in.r:in.w] }

// more receives at least one more byte and appends it to what was not yet used. What bytes returned before is no
// longer good, but what is before low is.
func (in *input) more() error {
	if in.r == in.w {
		in.r, in.w = in.low, in.low
	}
	in.room()
	for {
		n, err := in.read()
		in.w += n
		in.count.Add(uint64(n))
		switch {
		case n > 0:
			return nil // the error comes again, if it lasts
		case errors.Is(err, os.ErrDeadlineExceeded) && !in.deadline.passed():
		case err != nil:
			in.release()
			return err
		}
	}
}

// room makes sure that there is a byte free behind what was received.
func (in *input) room() {
	if in.buf == nil {
		return // whoever reads gets one
	}
	if in.low > 0 && in.want == large && len(in.buf)-in.w < small/2 {
		// A body goes on beyond the buffer of its head.
		if in.r == in.w {
			in.head, in.buf = in.buf, nil
			in.r, in.w, in.low = 0, 0, 0
			return
		}
		b := getBuffer(max(large, 2*(in.w-in.r)))
		n := copy(b, in.buf[in.r:in.w])
		in.head, in.buf = in.buf, b
		in.r, in.w, in.low = 0, n, 0
		return
	}
	if in.w < len(in.buf) {
		return
	}
	if in.r > in.low {
		in.w = in.low + copy(in.buf[in.low:], in.buf[in.r:in.w])
		in.r = in.low
		return
	}
	b := getBuffer(2 * len(in.buf))
	copy(b, in.buf[:in.w])
	putBuffer(in.buf)
	in.buf = b
}

// read reads behind what was received, waiting for the first byte without a buffer if there is nothing to keep.
func (in *input) read() (int, error) {
	switch {
	case in.socket != nil:
		return in.fromSocket()
	case in.secure != nil && in.w == 0:
		in.release()
		one, err := in.first.Read()
		if err != nil {
			return 0, err
		}
		in.buf = getBuffer(in.want)
		in.buf[0] = one
		// An error comes again when there is nothing else.
		m, _ := stream.ReadDecrypted(in.secure, in.buf[1:])
		return 1 + m, nil
	}
	if in.buf == nil {
		in.buf = getBuffer(in.want)
	}
	return in.conn.Read(in.buf[in.w:])
}

// release gives the buffer back if there is nothing in it to keep.
func (in *input) release() {
	if in.w == 0 && in.buf != nil {
		putBuffer(in.buf)
		in.buf = nil
	}
}

// rewind forgets what was used, with all strings that point there.
func (in *input) rewind() {
	if in.head != nil {
		putBuffer(in.head)
		in.head = nil
	}
	in.want, in.low = small, 0
	if in.r == in.w {
		in.r, in.w = 0, 0
		in.release()
		return
	}
	if in.r > 0 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
}

// drop gives everything back.
func (in *input) drop() {
	in.r, in.w = 0, 0
	in.rewind()
}

// timedOut reports whether err says that a deadline has passed.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
