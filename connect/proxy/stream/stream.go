// Package stream carries bytes between two connections, both ways, until both
// directions have ended: within the kernel where both are plain sockets, with
// buffers from a pool where not. An idle connection holds no buffer, and a slow
// reader slows the writer down.
package stream

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// copySize is the size of the buffers that bytes are copied with.
const copySize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// A Flow is the bytes between two connections. Fill in the exported fields and
// call Run.
type Flow struct {
	Down, Up net.Conn

	IdleTimeout time.Duration // no byte either way; 0 never
	MaxDuration time.Duration // 0 unlimited

	// Count, if not nil, is told of bytes as they flow, from either direction.
	Count func(received, sent int)

	received, sent atomic.Uint64
	start          time.Time
	last           atomic.Int64 // time of the last byte, since start
	end            atomic.Uint32
	broken         atomic.Uint32
}

// An End is why a flow ended.
type End uint32

// The ends. A flow that was closed from outside ends as Broken.
const (
	Finished End = iota // both directions ended by themselves
	Broken              // a connection broke off
	Idle                // IdleTimeout
	TooLong             // MaxDuration
)

// A Side is one of the two connections.
type Side uint32

// The sides.
const (
	Neither Side = iota
	Down
	Up
)

// Received returns the bytes that came from downstream so far.
func (f *Flow) Received() uint64 { return f.received.Load() }

// Sent returns the bytes that went downstream so far.
func (f *Flow) Sent() uint64 { return f.sent.Load() }

// Run copies until both directions have ended or something else ends the flow,
// and then closes both connections. It also tells which side broke first.
func (f *Flow) Run() (End, Side) {
	f.start = time.Now()
	if f.IdleTimeout > 0 {
		stop := f.watchIdle()
		defer stop()
	}
	if f.MaxDuration > 0 {
		t := time.AfterFunc(f.MaxDuration, func() { f.stop(TooLong) })
		defer t.Stop()
	}
	back := make(chan struct{})
	go func() {
		f.half(f.Down, f.Up, false)
		close(back)
	}()
	f.half(f.Up, f.Down, true)
	<-back
	f.Up.Close()
	f.Down.Close()
	return End(f.end.Load()), Side(f.broken.Load())
}

// watchIdle ends the flow when it is idle for too long, and returns a function
// that stops watching.
func (f *Flow) watchIdle() (stop func()) {
	var mu sync.Mutex // the timer may fire before it is assigned
	var t *time.Timer
	done := false
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(f.IdleTimeout, func() {
		quiet := time.Since(f.start) - time.Duration(f.last.Load())
		if quiet >= f.IdleTimeout {
			f.stop(Idle)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if !done {
			t.Reset(f.IdleTimeout - quiet)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		done = true
		t.Stop()
	}
}

// stop closes both connections for a reason, unless there was another before.
func (f *Flow) stop(e End) {
	f.end.CompareAndSwap(uint32(Finished), uint32(e))
	f.Up.Close()
	f.Down.Close()
}

// half copies one direction until src ends; dst is then half-closed, so that
// the other direction can go on. If a side breaks, both are closed.
func (f *Flow) half(dst, src net.Conn, received bool) {
	readErr, writeErr := f.copy(dst, src, received)
	if readErr == nil && writeErr == nil {
		// If the peer is gone already, the other direction finds out.
		_ = CloseWrite(dst)
		return
	}
	side := Down
	if (writeErr != nil) == received {
		side = Up
	}
	f.broken.CompareAndSwap(uint32(Neither), uint32(side))
	f.stop(Broken)
}

func (f *Flow) count(n int, received bool) {
	if n <= 0 {
		return
	}
	f.last.Store(int64(time.Since(f.start)))
	if received {
		f.received.Add(uint64(n))
	} else {
		f.sent.Add(uint64(n))
	}
	if f.Count == nil {
		return
	}
	if received {
		f.Count(n, 0)
	} else {
		f.Count(0, n)
	}
}

// copy returns no error once src has ended.
func (f *Flow) copy(dst, src net.Conn, received bool) (readErr, writeErr error) {
	if p, ok := src.(*ahead); ok {
		if b := p.rest(); len(b) > 0 {
			n, err := dst.Write(b)
			f.count(n, received)
			if err != nil {
				return nil, err
			}
		}
		src = p.Conn
	}
	if p, ok := dst.(*ahead); ok {
		dst = p.Conn
	}
	if handled, err := splice(dst, src, func(n int) { f.count(n, received) }); handled {
		return err, nil
	}
	r := newReader(src)
	defer r.done()
	for {
		b, err := r.next()
		if len(b) > 0 {
			f.count(len(b), received)
			_, werr := dst.Write(b)
			r.done()
			if werr != nil {
				return nil, werr
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil, nil
			}
			return err, nil
		}
	}
}

// A reader reads into a buffer that it has only while there is something to
// read.
type reader struct {
	src   net.Conn
	wait  func() ([]byte, error) // reads once there is something; nil: not known how
	below *below                 // under src, if src is TLS over one
	first First                  // if below is not nil
	buf   *[copySize]byte
}

func newReader(src net.Conn) *reader {
	r := &reader{src: src}
	if t, ok := src.(*tls.Conn); ok {
		if r.below, _ = t.NetConn().(*below); r.below != nil {
			r.first.Init(t)
		}
		return r
	}
	r.wait = readWhenReady(src, r.take, r.done)
	return r
}

func (r *reader) take() []byte {
	if r.buf == nil {
		r.buf = buffers.Get().(*[copySize]byte)
	}
	return r.buf[:]
}

// done gives the buffer back.
func (r *reader) done() {
	if r.buf != nil {
		buffers.Put(r.buf)
		r.buf = nil
	}
}

// next returns what was read, in a buffer that is valid until done is called.
func (r *reader) next() ([]byte, error) {
	if r.wait != nil {
		return r.wait()
	}
	if r.below == nil {
		n, err := r.src.Read(r.take())
		return r.buf[:n], err
	}
	// The first byte is waited for with a buffer of one. What else TLS has
	// decrypted, or can without waiting, goes along.
	one, err := r.first.Read()
	if err != nil {
		return nil, err
	}
	buf := r.take()
	buf[0] = one
	n := 1
	r.below.eager = true
	defer func() { r.below.eager = false }()
	for err == nil && n < len(buf) {
		var m int
		m, err = r.src.Read(buf[n:])
		n += m
	}
	if err == errWouldWait {
		err = nil
	}
	return buf[:n], err
}

// ahead gives back bytes that were read ahead before it reads on.
type ahead struct {
	net.Conn
	bytes []byte
}

// Ahead returns a connection that reads the bytes before those of c.
func Ahead(c net.Conn, bytes []byte) net.Conn { return &ahead{c, bytes} }

func (a *ahead) Read(b []byte) (int, error) {
	if len(a.bytes) > 0 {
		n := copy(b, a.bytes)
		if a.bytes = a.bytes[n:]; len(a.bytes) == 0 {
			a.bytes = nil
		}
		return n, nil
	}
	return a.Conn.Read(b)
}

func (a *ahead) rest() []byte {
	b := a.bytes
	a.bytes = nil
	return b
}

// CloseWrite half-closes the connection below.
func (a *ahead) CloseWrite() error { return CloseWrite(a.Conn) }

// below is what a TLS connection stands on, so that reading from it can be told
// not to wait.
type below struct {
	net.Conn
	eager bool // set and read by the goroutine that reads from the TLS connection
}

// Below returns the connection to put TLS on. A Flow over TLS on anything else
// works too, but holds a buffer while it is idle.
func Below(c net.Conn) net.Conn { return &below{Conn: c} }

// errWouldWait is temporary for package crypto/tls, which then keeps the
// connection usable.
var errWouldWait = &wouldWait{}

type wouldWait struct{}

func (*wouldWait) Error() string   { return "nothing to read yet" }
func (*wouldWait) Timeout() bool   { return true }
func (*wouldWait) Temporary() bool { return true }

func (b *below) Read(p []byte) (int, error) {
	if b.eager {
		return 0, errWouldWait
	}
	return b.Conn.Read(p)
}

// CloseWrite half-closes the connection below.
func (b *below) CloseWrite() error { return CloseWrite(b.Conn) }

// CloseWrite tells the peer of c that nothing more will be sent. A connection
// that can't be half-closed is closed.
func CloseWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
