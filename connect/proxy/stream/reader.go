package stream

import (
	"crypto/tls"
	"net"
)

// A Reader reads from a connection into buffers that it asks for only when there is something to read, where that is
// known: on sockets, and on TLS over Below.
type Reader struct {
	src   net.Conn
	ahead *ahead
	get   func() []byte
	put   func()
	wait  func() ([]byte, error)
	below *below
	first First // if below is not nil
}

// NewReader returns a reader of src. It calls get for the buffer to read into, which must not be empty, and put when
// it waits without one or ends.
func NewReader(src net.Conn, get func() []byte, put func()) *Reader {
	r := &Reader{src: src, get: get, put: put}
	if a, ok := src.(*ahead); ok {
		r.ahead, r.src = a, a.Conn
	}
	if t, ok := r.src.(*tls.Conn); ok {
		if r.below, _ = t.NetConn().(*below); r.below != nil {
			r.first.Init(t)
		}
	} else {
		r.wait = readWhenReady(r.src, get, put)
	}
	return r
}

// Read waits for bytes and returns how many it put into the buffer that it got last.
func (r *Reader) Read() (int, error) {
	if r.below == nil || r.ahead != nil {
		return r.plain()
	}
	r.put()
	one, err := r.first.Read()
	if err != nil {
		return 0, err
	}
	return r.rest(one)
}

// plain reads without TLS, or what comes before it. It is apart from Read so that the stack of an idle connection stays
// small.
//
//go:noinline
func (r *Reader) plain() (int, error) {
	if r.ahead != nil {
		if b := r.ahead.rest(); len(b) > 0 {
			n := copy(r.get(), b)
			r.ahead.bytes = b[n:]
			return n, nil
		}
		r.ahead = nil
	}
	if r.wait != nil {
		b, err := r.wait()
		return len(b), err
	}
	if r.below == nil {
		return r.src.Read(r.get())
	}
	return r.Read()
}

// rest reads what TLS can give at once behind its first byte.
//
//go:noinline
func (r *Reader) rest(one byte) (n int, err error) {
	buf := r.get()
	buf[0] = one
	n = 1
	r.below.eager = true
	for err == nil && n < len(buf) {
		var m int
		m, err = r.src.Read(buf[n:])
		n += m
	}
	r.below.eager = false
	if err == errWouldWait {
		err = nil
	}
	return n, err
}
