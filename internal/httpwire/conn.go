package httpwire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"
)

const (
	readSize = 4 << 10 // of a connection's buffer, in which a head must fit to be read here
	// maxDrain is how much of a body that the handler left is read so that the connection can be used again.
	maxDrain = 256 << 10
	// lingerTime bounds how long a client may go on sending what nobody reads.
	lingerTime = 5 * time.Second
	// watchDelay is how long a request waits before its connection is watched for the client's going away. Most are
	// done by then, and watching costs more than answering.
	watchDelay = 20 * time.Millisecond
)

var reads = sync.Pool{New: func() any { return new([readSize]byte) }}

// A conn is one connection.
type conn struct {
	f      *front
	raw    net.Conn
	remote string

	buf        []byte // read but not used: buf[start:end]; nil while a watch reads, and when it has found the end
	start, end int

	fresh   bool // no request has begun
	request request
	answer  answer
	reused  http.Header // of requests
	values  []string    // backs the values of reused

	mu     sync.Mutex
	active bool      // a request is being served
	ctx    *lifetime // of that request; changed by serve alone, under mu
	closed bool
}

func newConn(f *front, raw net.Conn) *conn {
	c := &conn{f: f, raw: raw, remote: raw.RemoteAddr().String(), buf: reads.Get().(*[readSize]byte)[:], fresh: true, reused: http.Header{}}
	c.answer.c = c
	c.answer.header = http.Header{}
	return c
}

// serve answers requests until the connection ends or is handed on.
func (c *conn) serve() {
	handed := false
	defer func() {
		c.f.remove(c)
		if !handed {
			c.raw.Close()
		}
	}()
	for {
		head, err := c.readHead()
		if err != nil {
			return
		}
		if head == nil || !c.request.parse(c, head) {
			handed = true
			c.f.rest.put(&prefixed{Conn: c.raw, left: bytes.Clone(c.buf[c.start:c.end])})
			return
		}
		c.start += len(head)
		if !c.begin() {
			return
		}
		again := c.handle()
		watched, open := c.finish()
		again = again && open
		if watched != nil {
			// The watch waits for the next request: to wake it, and wait here, would cost more than a short answer.
			if !again {
				c.raw.Close()
			}
			<-watched
		}
		if !again || c.buf == nil {
			c.linger()
			return
		}
	}
}

// readHead returns the head of the next request, its final empty line included. It is nil when the head is not one to
// be read here, which includes those that do not arrive in one piece.
func (c *conn) readHead() ([]byte, error) {
	if c.start < c.end {
		if head := wholeHead(c.buf[c.start:c.end]); head != nil {
			return head, nil
		}
		if c.end-c.start > 1 {
			return nil, nil
		}
		// A single byte was read by a watch, and the rest is on its way.
		c.end = copy(c.buf, c.buf[c.start:c.end])
		c.raw.SetReadDeadline(time.Now().Add(c.f.s.cfg.HeaderTimeout))
		defer c.raw.SetReadDeadline(time.Time{})
	} else {
		c.end = 0
		if c.fresh { // whoever connects has something to ask
			c.fresh = false
			c.raw.SetReadDeadline(time.Now().Add(c.f.s.cfg.HeaderTimeout))
			defer c.raw.SetReadDeadline(time.Time{})
		}
	}
	c.start = 0
	n, err := c.raw.Read(c.buf[c.end:]) // c.buf is never full: a head that fills it was handed on
	c.end += n
	if n == 0 && err != nil {
		return nil, err
	}
	head := wholeHead(c.buf[:c.end])
	if len(head) > c.f.s.cfg.MaxHeaderBytes {
		head = nil
	}
	return head, nil
}

// wholeHead returns the head that data begins with, nil if there is no whole one or its lines end oddly.
func wholeHead(data []byte) []byte {
	for n := 0; ; {
		i := bytes.IndexByte(data[n:], '\n')
		if i < 1 || data[n+i-1] != '\r' {
			return nil
		}
		first := n == 0
		n += i + 1
		if i == 1 && !first {
			return data[:n]
		}
	}
}

// begin marks a request as in progress; it reports false when the server is closing.
func (c *conn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.active = true
	c.ctx = &lifetime{c: c, base: c.f.base}
	return true
}

// finish ends the request's context, and reports whether the connection may be used for another request. While a watch
// still reads from it, nothing else may, until watched is closed.
func (c *conn) finish() (watched <-chan struct{}, open bool) {
	c.mu.Lock()
	ctx := c.ctx
	c.active, c.ctx = false, nil
	open = !c.closed
	c.mu.Unlock()
	watched, there := ctx.end()
	return watched, there && open
}

// closeIdle closes the connection unless a request is in progress; that will then be the last.
func (c *conn) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if !c.active {
		c.raw.Close()
	}
}

func (c *conn) closing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// cancelRequest ends the context of the request in progress.
func (c *conn) cancelRequest(err error) {
	c.mu.Lock()
	ctx := c.ctx
	c.mu.Unlock()
	if ctx != nil {
		ctx.cancel(err)
	}
}

// handle calls the handler, and reports whether the connection is fit for another request.
func (c *conn) handle() (again bool) {
	w, r := &c.answer, c.request.make(c, c.ctx)
	w.reset(r.Method == http.MethodHead, r.Close)
	defer func() {
		if v := recover(); v != nil {
			again = false
			if v != http.ErrAbortHandler {
				c.f.s.cfg.Logger.Error("handler failed", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			}
		}
	}()
	c.f.s.cfg.Handler.ServeHTTP(w, r)
	return w.finish() && c.request.body.drain() && !r.Close
}

// linger takes what the client is still sending after the last answer: a connection closed with that unread is reset,
// and the client may never see the answer.
func (c *conn) linger() {
	half, ok := c.raw.(interface{ CloseWrite() error })
	if !ok || c.request.body.left == 0 || c.answer.failed != nil || half.CloseWrite() != nil {
		return
	}
	c.raw.SetReadDeadline(time.Now().Add(lingerTime))
	io.Copy(io.Discard, &c.request.body)
}

// A prefixed connection gives again what was read of it.
type prefixed struct {
	net.Conn
	left []byte
}

// Read reads.
func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.left)
	if p.left = p.left[n:]; len(p.left) == 0 {
		p.left = nil
	}
	return n, nil
}

// CloseWrite tells the client that nothing more is coming; net/http does so before it closes a connection it did not
// read to the end.
func (p *prefixed) CloseWrite() error {
	if half, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// A body is the body of a request with a told length.
type body struct {
	c    *conn
	left int64
	err  error // that ended reading early
	pace pace
}

// Read reads.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	var n int
	var err error
	if c := b.c; c.start < c.end {
		n = copy(p, c.buf[c.start:c.end])
		c.start += n
	} else {
		began := time.Now()
		c.raw.SetReadDeadline(b.pace.deadline(began))
		n, err = c.raw.Read(p)
		b.pace.took(n, time.Since(began))
		if b.left == int64(n) {
			c.raw.SetReadDeadline(time.Time{})
		}
	}
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return n, io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		b.err = err
	}
	return n, err
}

// Close does nothing: what is left is dealt with after the handler.
func (b *body) Close() error { return nil }

// drain reads what the handler left, and reports whether that was all.
func (b *body) drain() bool {
	if b.left == 0 {
		return true
	}
	if b.err != nil || b.left > maxDrain {
		return false
	}
	_, err := io.Copy(io.Discard, b)
	return err == nil && b.left == 0
}

// A lifetime is the context of a request. Watching for the client's going away begins when somebody waits for it.
type lifetime struct {
	c    *conn
	base context.Context

	mu       sync.Mutex
	done     chan struct{} // nil until somebody asks for it
	err      error
	after    map[*func()]struct{}
	timer    *time.Timer
	watching chan struct{} // closed when the watch has ended; nil when there is none
	ended    bool          // the request is done
	lost     bool          // the connection ended while watched
}

// Deadline returns none.
func (x *lifetime) Deadline() (time.Time, bool) { return x.base.Deadline() }

// Value returns values of the server's context.
func (x *lifetime) Value(key any) any { return x.base.Value(key) }

// Err returns why the context ended.
func (x *lifetime) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// Done returns a channel that is closed when the client goes away, the server stops or the request is done.
func (x *lifetime) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done == nil {
		x.done = make(chan struct{})
		if x.err != nil {
			close(x.done)
		} else {
			x.timer = time.AfterFunc(watchDelay, x.watch)
		}
	}
	return x.done
}

// AfterFunc makes contexts derived from x cheap: see context.WithCancel.
func (x *lifetime) AfterFunc(f func()) (stop func() bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		go f()
		return func() bool { return false }
	}
	if x.after == nil {
		x.after = map[*func()]struct{}{}
	}
	key := &f
	x.after[key] = struct{}{}
	return func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		_, there := x.after[key]
		delete(x.after, key)
		return there
	}
}

func (x *lifetime) cancel(err error) {
	x.mu.Lock()
	if x.err != nil {
		x.mu.Unlock()
		return
	}
	x.err = err
	if x.done != nil {
		close(x.done)
	}
	after := x.after
	x.after = nil
	x.mu.Unlock()
	for f := range after {
		(*f)()
	}
}

// watch reads from the connection until something arrives or the client goes away, even if the request ends before.
func (x *lifetime) watch() {
	x.mu.Lock()
	c := x.c
	// A body still being read, or a next request that is there already, leaves nothing to watch.
	if x.ended || x.err != nil || c.request.length > 0 || c.start < c.end {
		x.mu.Unlock()
		return
	}
	ended := make(chan struct{})
	x.watching = ended
	// A request that waits needs no buffer, and nobody looks at it before the watch has ended.
	reads.Put((*[readSize]byte)(c.buf))
	c.buf = nil
	x.mu.Unlock()
	defer close(ended)
	var first [1]byte
	n, err := c.raw.Read(first[:])
	x.mu.Lock()
	x.watching = nil
	if n == 1 { // the next request begins: it waits for its turn
		c.buf = reads.Get().(*[readSize]byte)[:]
		c.start, c.end, c.buf[0] = 0, 1, first[0]
	}
	over := x.ended
	x.lost = n == 0 && err != nil
	x.mu.Unlock()
	if !over && n == 0 {
		x.cancel(context.Canceled)
	}
}

// end ends the context with its request. It reports whether the connection is still there, and returns what is closed at
// the end of a watch that still reads from it, else nil.
func (x *lifetime) end() (watched <-chan struct{}, open bool) {
	x.mu.Lock()
	x.ended = true
	if x.timer != nil {
		x.timer.Stop()
	}
	watched, open = x.watching, !x.lost
	x.mu.Unlock()
	x.cancel(context.Canceled)
	return watched, open
}

// writer returns what net.Buffers write to with one system call where there is a socket below.
func (c *conn) writer() net.Conn {
	if u, ok := c.raw.(interface{ NetConn() net.Conn }); ok {
		return u.NetConn()
	}
	return c.raw
}
