package http1

import (
	"crypto/tls"
	"net"
	"strconv"
	"sync/atomic"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// An output is the sending side of a connection. It is used by one goroutine at a time. What is appended waits in a
// buffer, which is held only while there is something in it.
type output struct {
	conn     net.Conn
	vector   bool // conn sends several slices in one call
	deadline deadline
	names    Case
	buf      []byte // nil while there is nothing
	slices   [2][]byte
	list     net.Buffers
	err      error         // after which nothing is sent
	count    atomic.Uint64 // bytes sent
}

func (o *output) init(conn net.Conn, names Case) {
	o.conn, o.names = conn, names
	o.deadline.set = conn.SetWriteDeadline
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		o.vector = true
	case *tls.Conn:
		o.deadline.exact = true // TLS does not survive one that passes
	}
}

// begin returns the buffer to append to; end stores it again.
func (o *output) begin() []byte {
	if o.buf == nil {
		o.buf = getBuffer(large)[:0]
	}
	return o.buf
}

func (o *output) end(b []byte) { o.buf = b }

// body sends p after what waits. It goes along with that if both fit.
func (o *output) body(p []byte) error {
	if o.err != nil {
		return o.err
	}
	free := large - len(o.buf)
	switch {
	case len(p) <= free/2 || len(p) <= free && len(o.buf) > 0:
		o.buf = append(o.begin(), p...)
		return nil
	case len(o.buf) == 0:
		return o.send(p)
	case o.vector:
		o.slices = [2][]byte{o.buf, p}
		o.list = o.slices[:]
		for len(o.list) > 0 {
			n, err := o.list.WriteTo(o.conn)
			o.count.Add(uint64(n))
			if err != nil && !o.again(err) {
				o.err = err
				break
			}
		}
		o.slices = [2][]byte{}
		o.release()
		return o.err
	}
	if free > 0 {
		o.buf = append(o.buf, p[:free]...)
		p = p[free:]
	}
	if err := o.flush(); err != nil {
		return err
	}
	if len(p) <= large/2 {
		o.buf = append(o.begin(), p...)
		return nil
	}
	return o.send(p)
}

// flush sends what waits.
func (o *output) flush() error {
	if o.err != nil {
		o.release()
		return o.err
	}
	if len(o.buf) == 0 {
		return nil
	}
	err := o.send(o.buf)
	o.release()
	return err
}

func (o *output) send(p []byte) error {
	for len(p) > 0 {
		n, err := o.conn.Write(p)
		o.count.Add(uint64(n))
		p = p[n:]
		if err != nil && !o.again(err) {
			o.err = err
			return err
		}
	}
	return nil
}

// again reports whether writing can go on after an error.
func (o *output) again(err error) bool { return timedOut(err) && !o.deadline.passed() }

func (o *output) release() {
	if o.buf != nil {
		putBuffer(o.buf)
		o.buf = nil
	}
}

// drop forgets what waits.
func (o *output) drop() { o.release() }

// A framing says how the body of a message ends.
type framing uint8

const (
	noBody    framing = iota
	byLength          // after a number of bytes
	byChunks          // with a last chunk
	byClosing         // when the connection does
	tunnel            // there are no messages any more
)

// field appends a field whose name is in lower case and known to be good.
func (o *output) field(b []byte, h *message.Header, name, value string) []byte {
	b = o.name(b, h, name)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

func (o *output) name(b []byte, h *message.Header, name string) []byte {
	switch o.names {
	case LowerCase, PreserveCase:
		return append(b, h.Spelling(name)...)
	}
	start := true
	for i := range len(name) {
		c := name[i]
		if start && 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		start = c == '-'
		b = append(b, c)
	}
	return b
}

// fields appends all fields but those that frame the message. It reports whether they can be sent: a name or a value
// that would mean something else on the wire than it does here can't.
func (o *output) fields(b []byte, h *message.Header) ([]byte, bool) {
	for i := range h.Len() {
		f := h.At(i)
		if f.Framing() {
			continue
		}
		if !f.Known() && !isName(f.Name) || !isValue(f.Value) {
			return b, false
		}
		b = o.field(b, h, f.Name, f.Value)
	}
	return b, true
}

// length appends the field content-length.
func (o *output) length(b []byte, h *message.Header, n int64) []byte {
	b = o.name(b, h, "content-length")
	b = append(b, ": "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, "\r\n"...)
}

// An outgoing is what remains to be sent of the body of a message.
type outgoing struct {
	framing framing
	left    int64 // of byLength
	ended   bool
	count   atomic.Uint64 // bytes of the body sent
}

func (w *outgoing) reset() {
	w.framing, w.left, w.ended = noBody, 0, false
	w.count.Store(0)
}

// write sends a piece of the body.
func (w *outgoing) write(o *output, p []byte, end bool) error {
	if w.ended {
		if len(p) == 0 {
			return nil
		}
		return errTooLong
	}
	switch w.framing {
	case noBody:
		// The body of a response to HEAD, for instance.
		p = nil
	case byLength:
		if int64(len(p)) > w.left {
			return errTooLong
		}
		w.left -= int64(len(p))
		if end && w.left > 0 {
			return errTooShort
		}
	case byChunks:
		if len(p) == 0 {
			break
		}
		b := o.begin()
		b = strconv.AppendInt(b, int64(len(p)), 16)
		o.end(append(b, "\r\n"...))
	}
	if len(p) > 0 {
		if err := o.body(p); err != nil {
			return err
		}
		w.count.Add(uint64(len(p)))
		if w.framing == byChunks {
			o.end(append(o.begin(), "\r\n"...))
		}
	}
	if !end {
		return nil
	}
	w.ended = true
	if w.framing == byChunks {
		o.end(append(o.begin(), "0\r\n\r\n"...))
	}
	return o.flush()
}

// trailer ends the body with trailers, if they can be sent.
func (w *outgoing) trailer(o *output, h *message.Header) error {
	if w.framing != byChunks || h == nil || h.Len() == 0 || w.ended {
		return w.write(o, nil, true)
	}
	b, ok := o.fields(append(o.begin(), "0\r\n"...), h)
	o.end(append(b, "\r\n"...))
	if !ok {
		return errUnsendable
	}
	w.ended = true
	return o.flush()
}
