package http2

import (
	"io"
	"net"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// ServerConfig tells a ServerConn what it needs to know. A zero field takes its default.
type ServerConfig struct {
	Options

	// AllowConnect lets clients ask for other protocols with extended CONNECT: RFC 8441.
	AllowConnect bool
	// PrefaceRead tells that the 24 bytes with which a client begins have been read already.
	PrefaceRead bool

	IdleTimeout  time.Duration // without a request, the connection drains; 0: never
	MaxDuration  time.Duration // of the connection, before it drains; 0: none
	MaxRequests  int           // before the connection drains; 0: any number
	DrainTimeout time.Duration // from the first GOAWAY to the one that refuses requests; default 5s

	// Refused, if not nil, is told why a request never came to the handler. It must not use the connection.
	Refused func(detail string)
}

// A ServerConn is a connection from a client.
type ServerConn struct {
	conn
	cfg     ServerConfig
	handler func(message.ServerStream)

	maxID uint32 // of the client's streams; written by the reader, with mu held

	// Guarded by mu.
	free      []*ServerStream // whose goroutines wait for the next request
	running   int             // handlers
	early     int             // streams that the client reset soon after it opened them
	draining  bool
	final     bool // requests are refused
	finalAt   time.Time
	drainAt   time.Time // because of MaxDuration
	requested int
}

// NewServerConn returns the server's end of a connection. Nothing happens until Serve.
func NewServerConn(nc net.Conn, cfg ServerConfig) *ServerConn {
	c := &ServerConn{cfg: cfg}
	set(&c.cfg.DrainTimeout, 5*time.Second)
	c.init(nc, cfg.Options, c)
	if !cfg.PrefaceRead {
		c.preface = len(preface)
	}
	return c
}

// Serve calls handler, in a goroutine of its own, for each request, until the connection has ended and all handlers
// have returned. It returns nil if the connection ended in good order. It closes the connection.
func (c *ServerConn) Serve(handler func(message.ServerStream)) error {
	c.handler = handler
	set := [][2]uint32{{settingStreams, c.opt.MaxStreams}}
	if c.cfg.AllowConnect {
		set = append(set, [2]uint32{settingConnect, 1})
	}
	c.hello(nil, set...)
	c.mu.Lock()
	if c.cfg.MaxDuration > 0 {
		c.drainAt = time.Now().Add(c.cfg.MaxDuration)
	}
	c.schedule(earlier(c.tick(time.Now()), c.pingAt))
	c.mu.Unlock()
	err := c.receive()
	c.mu.Lock()
	c.trim()
	graceful := c.final
	c.mu.Unlock()
	c.wg.Wait()
	if err == io.EOF || graceful && !isError(err) {
		return nil
	}
	return err
}

func isError(err error) bool {
	_, ok := err.(*Error)
	return ok
}

// Shutdown lets the client know that it should open no more streams, refuses them after drain, and closes the
// connection when all have ended. It does not wait for that.
func (c *ServerConn) Shutdown(drain time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain(time.Now(), drain)
}

// Close ends the connection at once. Streams break off.
func (c *ServerConn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill(net.ErrClosed)
}

// Active returns the number of requests that are being handled.
func (c *ServerConn) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// drain starts draining, or makes it end earlier. The lock is held.
func (c *ServerConn) drain(now time.Time, d time.Duration) {
	if c.err != nil || c.final {
		return
	}
	if !c.draining {
		c.draining = true
		if d > 0 {
			c.goAway(maxStreamID, NoError)
			c.notify()
		}
	}
	if d <= 0 {
		c.refuse()
		return
	}
	if at := now.Add(d); c.finalAt.IsZero() || at.Before(c.finalAt) {
		c.finalAt = at
		c.schedule(at)
	}
}

// refuse ends draining. The lock is held.
func (c *ServerConn) refuse() {
	c.final = true
	c.goAway(c.maxID, NoError)
	c.notify()
	if c.running == 0 {
		c.finish()
	}
}

func (c *ServerConn) tick(now time.Time) time.Time {
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	var idle time.Time
	if c.cfg.IdleTimeout > 0 && !c.idleAt.IsZero() {
		idle = c.idleAt.Add(c.cfg.IdleTimeout)
	}
	switch {
	case c.draining:
	case due(idle), due(c.drainAt):
		c.drain(now, c.cfg.DrainTimeout)
	default:
		return earlier(idle, c.drainAt)
	}
	if !c.final && due(c.finalAt) {
		c.refuse()
	}
	if c.final {
		return time.Time{}
	}
	return c.finalAt
}

func (c *ServerConn) trim() {
	for i, s := range c.free {
		s.quit = true
		s.work.Signal()
		c.free[i] = nil
	}
	c.free = nil
}

func (c *ServerConn) idle(id uint32) bool { return id > c.maxID || id%2 == 0 }

func (c *ServerConn) gone(uint32, Code) {} // the client opens no more streams, and will close the connection

func (c *ServerConn) settings() {}

// countReset watches for clients that open streams only to have them reset. The lock is held.
func (c *ServerConn) countReset(s *ServerStream) {
	if time.Since(s.opened) < time.Second {
		c.early++
	}
}

func (c *ServerConn) headers(id uint32, end, self bool, p []byte) error {
	if id%2 == 0 {
		return protocolError("http2.even_stream")
	}
	if id <= c.maxID {
		return c.trailers(id, end, p)
	}
	c.mu.Lock()
	if c.opened >= 500 && 2*c.early > c.opened {
		c.mu.Unlock()
		c.opt.Counters.ResetFloods.Add(1)
		return &Error{Code: EnhanceYourCalm, Detail: "http2.too_many_premature_resets"}
	}
	c.maxID = id
	refused := c.open >= int(c.opt.MaxStreams) || c.running >= 2*int(c.opt.MaxStreams)
	late := c.final || c.err != nil
	var s *ServerStream
	if !late && !refused {
		s = c.take()
	}
	c.mu.Unlock()
	if s == nil {
		if err := c.skipBlock(p); err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.opened++
		if refused && !late {
			c.recently.add(id, closedByUs)
			c.resetID(id, RefusedStream)
		}
		return nil
	}
	s.req.Reset()
	whole, err := c.decodeBlock(p, &s.req.Header, &s.req.Arena, true, false)
	detail := ""
	if err == nil && whole && !c.blk.many {
		detail = c.blk.head(&s.req, end, c.cfg.AllowConnect)
	}
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.give(s)
		c.refused("http2.header_compression")
		return err
	}
	s.opened = now
	s.start(id)
	s.recvHead = true
	s.expect = c.blk.length
	if c.blk.method == "CONNECT" {
		s.expect = -1
	}
	switch {
	case !whole:
		c.opt.Counters.HeaderOverflows.Add(1)
		c.refused("http2.header_list_size_too_large")
		c.tooLarge(s, end)
	case c.blk.many:
		c.opt.Counters.HeaderOverflows.Add(1)
		c.refused("http2.too_many_headers")
		s.reset(EnhanceYourCalm, message.ProtocolError)
	case self:
		c.refused("http2.violation.of.messaging.rule")
		s.reset(ProtocolError, message.ProtocolError)
	case detail != "":
		c.refused(detail)
		if err := c.malformed(&s.exchange, detail); err != nil {
			s.closed(closedByUs)
			c.give(s)
			return err
		}
	default:
		if end {
			s.recvEnd = true
		}
		c.running++
		if c.requested++; c.requested == c.cfg.MaxRequests {
			c.drain(now, c.cfg.DrainTimeout)
		}
		c.began()
		if !s.live {
			s.live = true
			c.wg.Go(s.run)
		} else {
			s.given = true
			s.work.Signal()
		}
		return nil
	}
	c.dirty = true
	c.give(s)
	return nil
}

func (c *ServerConn) refused(detail string) {
	if c.cfg.Refused != nil {
		c.cfg.Refused(detail)
	}
}

// tooLarge answers a request that has too large a head. The lock is held.
func (c *ServerConn) tooLarge(s *ServerStream, end bool) {
	o, at := c.beginBlock()
	o.b = c.enc.status(o.b, 431)
	o.b = c.enc.field(o.b, "content-length", "0", uint64(staticNames[message.KnownName("content-length")]), false)
	c.endBlock(at, s.id, true)
	s.sentEnd = true
	if end {
		s.ended()
	} else {
		s.reset(NoError, message.LocalReset)
	}
}

// trailers handles a header block on a stream that is not new.
func (c *ServerConn) trailers(id uint32, end bool, p []byte) error {
	whole, err := c.trailerBlock(p)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.table.get(id)
	if s == nil || s.gone {
		how, known := c.recently.find(id)
		switch {
		case how == closedByUs:
			return nil
		case known:
			return &Error{Code: StreamClosed, Detail: "http2.headers_on_closed_stream"}
		case c.recently.lost:
			c.resetID(id, StreamClosed)
			return nil
		}
		return protocolError("http2.stream_number")
	}
	return s.takeTrailers(&c.conn, whole, end)
}

// take returns a stream for a new request. The lock is held.
func (c *ServerConn) take() *ServerStream {
	if n := len(c.free); n > 0 {
		s := c.free[n-1]
		c.free[n-1] = nil
		c.free = c.free[:n-1]
		return s
	}
	s := &ServerStream{c: c}
	s.init(&c.conn)
	s.server = s
	s.work.L = &c.mu
	s.clear()
	return s
}

// give takes a stream back for the next request. The lock is held.
func (c *ServerConn) give(s *ServerStream) {
	s.clear()
	s.continued, s.responded = false, false
	if s.live {
		c.free = append(c.free, s)
	}
}

// A ServerStream is a request from a client.
type ServerStream struct {
	exchange
	c   *ServerConn
	req message.Request

	opened    time.Time
	wake      message.ClientStream // whose reader is woken when the client leaves; nil is nobody's
	continued bool                 // "100 Continue" was sent
	responded bool                 // the head of the response was sent

	live  bool // it has a goroutine
	work  sync.Cond
	given bool // there is a request
	quit  bool
}

// run handles requests until the connection has no more use for the stream.
func (s *ServerStream) run() {
	c := s.c
	for {
		c.handler(s)
		c.mu.Lock()
		s.done()
		for !s.given && !s.quit {
			if c.closed {
				s.quit = true
				break
			}
			s.work.Wait()
		}
		quit := s.quit
		s.given = false
		if quit {
			s.stopTimers()
		}
		c.mu.Unlock()
		if quit {
			return
		}
	}
}

// done ends the stream after its handler. The lock is held.
func (s *ServerStream) done() {
	c := s.c
	switch {
	case !s.sentEnd:
		s.reset(InternalError, message.LocalReset)
		c.notify()
	case !s.recvEnd:
		s.reset(NoError, message.LocalReset)
		c.notify()
	}
	s.uncount()
	s.wake = nil
	c.give(s)
	if c.running--; c.running > 0 {
		return
	}
	if c.final && c.err == nil {
		c.finish()
	}
	c.rested()
	c.schedule(c.tick(c.idleAt))
}

// Request returns the head of the request.
func (s *ServerStream) Request() *message.Request { return &s.req }

// Respond sends the head of a response. Status 101 accepts an extended CONNECT.
func (s *ServerStream) Respond(r *message.Response, end bool) error {
	c := &s.c.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	status := r.Status
	if status == 101 {
		if s.req.Upgrade == "" {
			return errSwitching
		}
		status = 200 // RFC 8441, section 5
	}
	if s.responded && s.sendErr == nil {
		return errEnded
	}
	interim := status < 200
	if err := s.acquire(forHead); err != nil {
		return err
	}
	o, at := c.beginBlock()
	o.b = c.enc.status(o.b, status)
	o.b = c.enc.header(o.b, &r.Header)
	end = end && !interim
	c.endBlock(at, s.id, end)
	s.pending = true
	if status == 100 {
		s.continued = true
	}
	if !interim {
		s.responded, s.sentHead = true, true
	}
	if end {
		s.endSent()
	} else if interim {
		c.notify()
	}
	s.release()
	return nil
}

var errSwitching = &message.StreamError{Reason: message.LocalReset, Detail: "http2.switching_protocols"}

// Continue lets a client go on that waits for "100 Continue".
func (s *ServerStream) Continue() error {
	c := &s.c.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.req.Expect100 || s.continued || s.responded {
		return nil
	}
	if err := s.acquire(forHead); err != nil {
		return err
	}
	s.continued = true
	o, at := c.beginBlock()
	o.b = c.enc.status(o.b, 100)
	c.endBlock(at, s.id, false)
	c.notify()
	s.release()
	return nil
}

// Reset breaks the stream off.
func (s *ServerStream) Reset(reason message.Reason) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	code := InternalError
	switch reason {
	case message.ProtocolError:
		code = ProtocolError
	case message.RemoteRefused:
		code = RefusedStream
	case message.ConnectionFailure, message.LocalConnectionFailure, message.RemoteConnectionFailure, message.ConnectionTimeout:
		if s.req.Method == "CONNECT" {
			code = ConnectError
		}
	}
	s.reset(code, message.LocalReset)
	s.c.notify()
}

// Gone reports whether the client has left.
func (s *ServerStream) Gone() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.sendErr != nil
}

// WakeWhenGone makes reading from up run into its deadline once the client has left, so that who waits there looks up.
// Nil makes that end. What it is given must not use this connection.
func (s *ServerStream) WakeWhenGone(up message.ClientStream) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.wake = up
}

// CloseAfter makes the connection drain.
func (s *ServerStream) CloseAfter() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.drain(time.Now(), s.c.cfg.DrainTimeout)
}

var _ message.ServerStream = (*ServerStream)(nil)
