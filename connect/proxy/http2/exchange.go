package http2

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// An exchange is what the two ends' streams have in common. All but the counters is guarded by the connection's mutex.
type exchange struct {
	c  *conn
	id uint32 // 0 while it is not open

	server *ServerStream
	client *ClientStream

	recvHead bool // the head of what we receive has come
	recvEnd  bool // and the end
	sentHead bool
	sentEnd  bool
	counted  bool  // in conn.open
	gone     bool  // the stream is closed for the protocol
	sendErr  error // why nothing can be sent any more
	keep     bool  // what came before recvErr can still be read
	recvErr  error // why nothing will come any more

	sendWindow int64
	recvWindow int64
	unacked    uint32
	expect     int64 // bytes of the body that are still to come; -1 if it was not said

	first, last *chunk
	lent        int // bytes of first that the caller of Read has; they end at lentEnd
	lentEnd     int
	trailer     message.Response // its header and arena
	hasTrailer  bool

	rcond, wcond sync.Cond
	rdl, wdl     deadline
	pending      bool // something was sent that nobody may have told the writer of

	queue      *queue // that it stands in
	prev, next *exchange

	received, sent atomic.Uint64
}

func (s *exchange) init(c *conn) {
	s.c = c
	s.rcond.L, s.wcond.L = &c.mu, &c.mu
}

// start makes the exchange that of a new stream. The lock is held.
func (s *exchange) start(id uint32) {
	c := s.c
	s.id = id
	s.sendWindow, s.recvWindow = c.peerWindow, int64(c.opt.StreamWindow)
	if !c.agreed {
		s.recvWindow = max(s.recvWindow, initialWindow)
	}
	s.counted = true
	c.open++
	c.opened++
	c.table.put(s)
}

// clear makes the exchange ready for its next stream. The lock is held, and nobody else has the exchange any more.
func (s *exchange) clear() {
	s.keep = false
	c := s.c
	s.drop()
	if s.lent > 0 || s.first != nil {
		s.takeBack()
		s.drop()
	}
	if s.id != 0 {
		c.table.del(s)
	}
	s.id = 0
	s.recvHead, s.recvEnd, s.sentHead, s.sentEnd, s.counted, s.gone = false, false, false, false, false, false
	s.sendErr, s.recvErr = nil, nil
	s.unacked, s.expect = 0, -1
	if s.hasTrailer {
		s.hasTrailer = false
		s.trailer.Reset()
	}
	s.rdl.at, s.wdl.at = time.Time{}, time.Time{}
	s.pending = false
	s.received.Store(0)
	s.sent.Store(0)
}

// closed makes the stream closed for the protocol. The lock is held.
func (s *exchange) closed(how uint8) {
	if s.gone {
		return
	}
	s.gone = true
	s.c.recently.add(s.id, how)
	s.uncount()
}

func (s *exchange) uncount() {
	if s.counted {
		s.counted = false
		s.c.open--
	}
}

// settle sees whether both sides have ended. The lock is held.
func (s *exchange) settle() {
	if s.recvEnd && s.sentEnd {
		s.closed(closedByPeer)
	}
}

// breakOff ends the stream because of what happened to the connection. The lock is held.
func (s *exchange) breakOff(reason message.Reason, detail string, cause error) {
	if s.gone && s.recvErr != nil {
		return
	}
	err := &message.StreamError{Reason: reason, Detail: detail, Sent: s.wasSent(), Err: cause}
	s.broken(err)
	s.uncount()
}

// broken makes whoever waits for the stream fail. What came in full can still be read. The lock is held.
func (s *exchange) broken(err error) {
	if s.sendErr == nil {
		s.sendErr = err
	}
	if !s.recvEnd && s.recvErr == nil {
		s.recvErr = err
		if !s.keep {
			s.drop()
		}
	}
	s.rcond.Signal()
	s.wcond.Signal()
	if s.server != nil && s.server.wake != nil {
		s.server.wake.SetReadDeadline(time.Unix(1, 0))
	}
}

// wasSent reports whether the request may have reached the peer. The lock is held.
func (s *exchange) wasSent() bool {
	return s.client == nil || s.sentHead && s.c.taken >= s.client.headAt
}

// reset tells the peer that the stream ends early. The lock is held.
func (s *exchange) reset(code Code, reason message.Reason) { s.resetDetail(code, reason, "") }

func (s *exchange) resetDetail(code Code, reason message.Reason, detail string) {
	if s.gone || s.c.err != nil {
		return
	}
	s.closed(closedByUs)
	if s.server != nil && reason == message.ProtocolError {
		s.server.c.countReset(s.server) // the client could as well have reset it
	}
	s.c.resetID(s.id, code)
	s.broken(&message.StreamError{Reason: reason, Detail: detail, Sent: s.wasSent()})
}

// resetByPeer handles RST_STREAM. The lock is held.
func (s *exchange) resetByPeer(code Code) {
	s.closed(closedByPeer)
	if s.server != nil {
		s.server.c.countReset(s.server)
	}
	reason := message.RemoteReset
	if code == RefusedStream {
		reason = message.RemoteRefused
	}
	s.broken(&message.StreamError{Reason: reason, Detail: "http2.remote_reset", Sent: s.wasSent(), Err: &ResetError{code}})
}

// A ResetError is the cause of a stream's end if the peer reset it.
type ResetError struct{ Code Code }

func (e *ResetError) Error() string { return "stream reset: " + e.Code.String() }

// Chunks hold bodies.
type chunk struct {
	next *chunk
	r, w int
	buf  []byte
}

const (
	smallChunk = 2 << 10
	largeChunk = 16 << 10
)

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, largeChunk)} }}
)

func newChunk(n int) *chunk {
	if n <= smallChunk {
		return smallChunks.Get().(*chunk)
	}
	return largeChunks.Get().(*chunk)
}

func (c *chunk) free() {
	c.next, c.r, c.w = nil, 0, 0
	if len(c.buf) == smallChunk {
		smallChunks.Put(c)
	} else {
		largeChunks.Put(c)
	}
}

// receive queues a piece of the body. The lock is held.
func (s *exchange) receive(p []byte) {
	s.received.Add(uint64(len(p)))
	for len(p) > 0 {
		t := s.last
		if t == nil || t.w == len(t.buf) {
			t = newChunk(len(p))
			if s.last == nil {
				s.first = t
			} else {
				s.last.next = t
			}
			s.last = t
		}
		n := copy(t.buf[t.w:], p)
		t.w += n
		p = p[n:]
	}
}

// ended marks the end of what we receive. The lock is held.
func (s *exchange) ended() {
	s.recvEnd = true
	s.settle()
}

// takeBack gives up what Read returned last. The lock is held.
func (s *exchange) takeBack() {
	if s.lent == 0 {
		return
	}
	f := s.first
	f.r = s.lentEnd
	n := s.lent
	s.lent = 0
	if f.r == f.w {
		if s.first = f.next; s.first == nil {
			s.last = nil
		}
		f.free()
	}
	s.c.giveBack(s, n)
}

// drop frees the body that nobody will read, except what the caller of Read has. The lock is held.
func (s *exchange) drop() {
	f := s.first
	n := 0
	if s.lent > 0 {
		n += f.w - s.lentEnd
		f.w = s.lentEnd
		f, f.next = f.next, nil
		s.last = s.first
	} else {
		s.first, s.last = nil, nil
	}
	for f != nil {
		next := f.next
		n += f.w - f.r
		f.free()
		f = next
	}
	if n > 0 {
		s.c.giveBack(nil, n)
	}
}

// Read returns the next piece of the body.
func (s *exchange) Read() ([]byte, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.takeBack()
	for {
		if f := s.first; f != nil {
			s.lent, s.lentEnd = f.w-f.r, f.w
			p := f.buf[f.r:f.w:f.w]
			if s.recvEnd && f.next == nil {
				return p, io.EOF
			}
			return p, nil
		}
		switch {
		case s.recvErr != nil:
			return nil, s.recvErr
		case s.recvEnd:
			return nil, io.EOF
		}
		if err := s.wait(&s.rcond, &s.rdl); err != nil {
			return nil, err
		}
	}
}

// Ready reports whether Read would return without waiting.
func (s *exchange) Ready() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.recvEnd || s.recvErr != nil || s.first != nil && (s.lent == 0 || s.first.w > s.lentEnd || s.first.next != nil)
}

// Trailer returns the trailers after io.EOF.
func (s *exchange) Trailer() *message.Header {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.hasTrailer || !s.recvEnd {
		return nil
	}
	return &s.trailer.Header
}

// BytesReceived counts the bytes of the body that came.
func (s *exchange) BytesReceived() uint64 { return s.received.Load() }

// BytesSent counts the bytes of the body that were sent.
func (s *exchange) BytesSent() uint64 { return s.sent.Load() }

// The two queues for room in the buffer for writing.
const (
	forHead = iota
	forBody
)

// acquire waits until the stream may put something into the buffer for writing; release follows. The lock is held.
func (s *exchange) acquire(kind int) error {
	c := s.c
	for {
		if s.sendErr != nil {
			s.release()
			return s.sendErr
		}
		if s.sentEnd {
			s.release()
			return errEnded
		}
		open := kind == forHead || s.sendWindow > 0
		if mine := c.turn == s; open && (mine || c.waiting[kind].first == nil) {
			if c.buffered() < outSize && (kind == forHead || c.sendWindow > 0) {
				return nil
			}
		}
		s.release()
		if open {
			c.waiting[kind].push(s)
			if c.pass(); c.turn == s {
				continue
			}
		}
		err := s.wait(&s.wcond, &s.wdl)
		if s.queue != nil {
			s.queue.remove(s)
		}
		if err != nil {
			s.release()
			return err
		}
	}
}

// release lets the next have the turn if this stream had it.
func (s *exchange) release() {
	if c := s.c; c.turn == s {
		c.turn = nil
		c.pass()
	}
}

var (
	errEnded  = &message.StreamError{Reason: message.LocalReset, Detail: "http2.write_after_end", Sent: true}
	errNoHead = &message.StreamError{Reason: message.LocalReset, Detail: "http2.write_before_head"}
)

// Write sends a piece of the body.
func (s *exchange) Write(p []byte, end bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.sentHead && s.sendErr == nil {
		return errNoHead
	}
	for len(p) > 0 {
		if err := s.acquire(forBody); err != nil {
			return err
		}
		n := int(min(int64(len(p)), int64(c.peerFrame), s.sendWindow, c.sendWindow))
		last := end && n == len(p)
		o := c.outbuf()
		before := len(o.b)
		o.b = append(appendFrame(o.b, n, typeData, endFlag(last), s.id), p[:n]...)
		p = p[n:]
		s.sendWindow -= int64(n)
		c.sendWindow -= int64(n)
		c.dataSent++
		s.sent.Add(uint64(n))
		c.put(before, false)
		s.pending = true
		if c.buffered() >= maxFrame {
			c.notify()
		}
		if last {
			s.endSent()
		}
		s.release()
		if last {
			return nil
		}
	}
	if end {
		if err := s.acquire(forHead); err != nil {
			return err
		}
		o := c.outbuf()
		before := len(o.b)
		o.b = appendFrame(o.b, 0, typeData, flagEnd, s.id)
		c.dataSent++
		c.put(before, false)
		s.endSent()
		s.release()
		return nil
	}
	return s.sendErr
}

func endFlag(end bool) byte {
	if end {
		return flagEnd
	}
	return 0
}

// endSent follows the last frame that is sent. The lock is held.
func (s *exchange) endSent() {
	s.sentEnd = true
	s.settle()
	s.pending = false
	s.c.notify()
}

// WriteTrailer ends the message with trailers.
func (s *exchange) WriteTrailer(h *message.Header) error {
	if h == nil || h.Len() == 0 {
		return s.Write(nil, true)
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.sentHead && s.sendErr == nil {
		return errNoHead
	}
	if err := s.acquire(forHead); err != nil {
		return err
	}
	o, at := c.beginBlock()
	o.b = c.enc.header(o.b, h)
	c.endBlock(at, s.id, true)
	s.endSent()
	s.release()
	return nil
}

// Flush sends what is in buffers.
func (s *exchange) Flush() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.pending {
		s.pending = false
		if c.out != nil {
			c.notify()
		}
	}
	return s.sendErr
}

// beginBlock starts a header block. The lock is held until endBlock.
func (c *conn) beginBlock() (o *buffer, at int) {
	o = c.outbuf()
	at = len(o.b)
	o.b = appendFrame(o.b, 0, typeHeaders, 0, 0)
	o.b = c.enc.begin(o.b)
	return o, at
}

// endBlock makes what was appended since beginBlock frames.
func (c *conn) endBlock(at int, id uint32, end bool) {
	o := c.out
	n := len(o.b) - at - frameHeader
	if n <= c.peerFrame {
		appendFrame(o.b[:at], n, typeHeaders, flagEndHeaders|endFlag(end), id)
		c.put(at, false)
		return
	}
	rest := append([]byte(nil), o.b[at+frameHeader+c.peerFrame:]...)
	o.b = o.b[:at+frameHeader+c.peerFrame]
	appendFrame(o.b[:at], c.peerFrame, typeHeaders, endFlag(end), id)
	for len(rest) > 0 {
		n := min(len(rest), c.peerFrame)
		flags := byte(0)
		if n == len(rest) {
			flags = flagEndHeaders
		}
		o.b = append(appendFrame(o.b, n, typeContinuation, flags, id), rest[:n]...)
		rest = rest[n:]
	}
	c.put(at, false)
}

// A deadline bounds waiting.
type deadline struct {
	at      time.Time
	timer   *time.Timer
	fires   time.Time // when the timer does; zero if it does not
	waiting bool
}

// wait waits for a signal, or until the deadline. The lock is held.
func (s *exchange) wait(cond *sync.Cond, d *deadline) error {
	if s.pending {
		s.pending = false
		s.c.notify()
	}
	if !d.at.IsZero() {
		now := time.Now()
		if !now.Before(d.at) {
			return os.ErrDeadlineExceeded
		}
		// A timer that fires early does no harm, so it is not stopped after waiting.
		if d.fires.IsZero() || d.at.Before(d.fires) {
			d.fires = d.at
			if d.timer == nil {
				d.timer = time.AfterFunc(d.at.Sub(now), func() {
					s.c.mu.Lock()
					d.fires = time.Time{}
					cond.Signal()
					s.c.mu.Unlock()
				})
			} else {
				d.timer.Reset(d.at.Sub(now))
			}
		}
	}
	d.waiting = true
	cond.Wait()
	d.waiting = false
	return nil
}

func (s *exchange) setDeadline(cond *sync.Cond, d *deadline, t time.Time) {
	s.c.mu.Lock()
	d.at = t
	if d.waiting && !t.IsZero() && (d.fires.IsZero() || t.Before(d.fires)) {
		cond.Signal()
	}
	s.c.mu.Unlock()
}

// SetReadDeadline bounds waiting for what the peer sends.
func (s *exchange) SetReadDeadline(t time.Time) { s.setDeadline(&s.rcond, &s.rdl, t) }

// SetWriteDeadline bounds waiting for a peer that is slow to take what is sent.
func (s *exchange) SetWriteDeadline(t time.Time) { s.setDeadline(&s.wcond, &s.wdl, t) }

// stopTimers lets go of an exchange for good. The lock is held.
func (s *exchange) stopTimers() {
	for _, d := range []*deadline{&s.rdl, &s.wdl} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
}

// A queue is streams in the order in which they came.
type queue struct{ first, last *exchange }

func (q *queue) push(s *exchange) {
	s.queue, s.prev = q, q.last
	if q.last == nil {
		q.first = s
	} else {
		q.last.next = s
	}
	q.last = s
}

func (q *queue) pop() *exchange {
	s := q.first
	if s != nil {
		q.remove(s)
	}
	return s
}

func (q *queue) remove(s *exchange) {
	if s.prev == nil {
		q.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		q.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.queue, s.prev, s.next = nil, nil, nil
}

// trailerBlock decodes a block that may be trailers into c.scratch.
func (c *conn) trailerBlock(p []byte) (whole bool, err error) {
	c.scratch.Reset()
	return c.decodeBlock(p, &c.scratch.Header, &c.scratch.Arena, c.server(), true)
}

// takeTrailers ends what is received with the block that was decoded last. The lock is held.
func (s *exchange) takeTrailers(c *conn, whole, end bool) error {
	switch {
	case s.recvEnd:
		s.reset(StreamClosed, message.ProtocolError)
		c.dirty = true
		return nil
	case !whole || c.blk.many:
		c.opt.Counters.HeaderOverflows.Add(1)
		s.reset(EnhanceYourCalm, message.ProtocolError)
		c.dirty = true
		return nil
	}
	detail := c.blk.bad
	switch {
	case detail != "":
	case !end:
		detail = "http2.trailers_without_end"
	case s.expect > 0:
		c.wrongLength(s)
		return nil
	}
	if detail != "" {
		if err := c.malformed(s, detail); err != nil {
			return err
		}
		return nil
	}
	c.opt.Counters.Trailers.Add(1)
	if c.scratch.Header.Len() > 0 {
		s.trailer, c.scratch = c.scratch, s.trailer
		s.hasTrailer = true
	}
	s.ended()
	s.rcond.Signal()
	return nil
}
