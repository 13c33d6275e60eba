package http2

import (
	"errors"
	"net"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// ClientConfig tells a ClientConn what it needs to know. A zero field takes its default.
type ClientConfig struct {
	Options
	// OnSpare, if not nil, is called without locks when streams can be opened again or no longer, and when one ends:
	// who waits for a connection may look again.
	OnSpare func()
}

// A ClientConn is a connection to a host.
type ClientConn struct {
	conn
	cfg ClientConfig

	// Guarded by mu.
	free     []*ClientStream
	active   int    // streams that were opened and not closed
	nextID   uint32 // of the next stream
	draining bool   // no more streams
	known    bool   // the host's settings have come
	ended    chan struct{}
}

// firstStreams is how many streams may be opened before the host has said how many it takes.
const firstStreams = 100

// NewClientConn begins HTTP/2 on a connection and starts the goroutines that serve it. They end, and the connection
// is closed, when the host or Close ends it, or when the last stream has ended after Drain or a GOAWAY; Closed tells
// when.
func NewClientConn(nc net.Conn, cfg ClientConfig) (*ClientConn, error) {
	c := &ClientConn{cfg: cfg, nextID: 1, ended: make(chan struct{})}
	c.init(nc, cfg.Options, c)
	c.hello([]byte(preface), [2]uint32{settingPush, 0})
	c.mu.Lock()
	c.schedule(c.pingAt)
	c.mu.Unlock()
	go func() {
		_ = c.receive()
		c.wg.Wait()
		c.mu.Lock()
		c.trim()
		c.mu.Unlock()
		close(c.ended)
		c.spareChanged()
	}()
	return c, nil
}

// spareChanged is called without the lock.
func (c *ClientConn) spareChanged() {
	if c.cfg.OnSpare != nil {
		c.cfg.OnSpare()
	}
}

// errNoStream is the cause when a connection takes no stream.
var errNoStream = errors.New("no stream can be opened")

// canOpen is called with the lock held.
func (c *ClientConn) canOpen() bool {
	most := min(c.peerStreams, c.opt.MaxStreams)
	if !c.known {
		most = min(most, firstStreams)
	}
	return c.err == nil && !c.draining && c.active < int(most) && c.nextID <= maxStreamID
}

// CanOpen reports whether Open would succeed.
func (c *ClientConn) CanOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.canOpen()
}

// Open returns a stream for one request. Nothing is sent before Send.
func (c *ClientConn) Open() (message.ClientStream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.canOpen() {
		reason := message.Overflow
		if c.err != nil {
			reason = message.ConnectionTermination
		} else if c.draining {
			reason = message.RemoteRefused
		}
		return nil, &message.StreamError{Reason: reason, Err: errNoStream}
	}
	c.active++
	c.began()
	if k := c.opt.Keepalive; k.Idle > 0 {
		if now := time.Now(); now.Sub(c.read) > k.Idle {
			c.ping(now)
			c.schedule(c.pongBy)
		}
	}
	if n := len(c.free); n > 0 {
		s := c.free[n-1]
		c.free[n-1] = nil
		c.free = c.free[:n-1]
		s.inUse = true
		return s, nil
	}
	s := &ClientStream{c: c, inUse: true}
	s.init(&c.conn)
	s.client = s
	s.clear()
	return s, nil
}

// Active returns the number of streams that were opened and not closed.
func (c *ClientConn) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.active
}

// CanUpgrade reports whether the host takes extended CONNECT: RFC 8441. It is not known before the first response.
func (c *ClientConn) CanUpgrade() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peerConnect
}

// Draining reports whether the connection takes no more streams, although it has not ended.
func (c *ClientConn) Draining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining || c.err != nil
}

// Closed is closed when the connection has ended and its goroutines with it.
func (c *ClientConn) Closed() <-chan struct{} { return c.ended }

// Err returns why the connection ended; nil while it has not.
func (c *ClientConn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection at once. Streams break off.
func (c *ClientConn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill(net.ErrClosed)
}

// Drain closes the connection when its last stream has ended, and lets none be opened any more.
func (c *ClientConn) Drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	c.drained()
}

// drained closes a connection that is of no use any more. The lock is held.
func (c *ClientConn) drained() {
	if c.draining && c.active == 0 && c.err == nil {
		c.goAway(0, NoError)
		c.finish()
	}
}

func (c *ClientConn) idle(id uint32) bool { return id >= c.nextID || id%2 == 0 }

func (c *ClientConn) gone(last uint32, code Code) {
	c.draining = true
	for _, s := range c.table.slots {
		if s == nil || s.id <= last || s.gone {
			continue
		}
		s.closed(closedByUs)
		s.broken(&message.StreamError{Reason: message.RemoteRefused, Detail: "http2.goaway", Err: &Error{Code: code, Remote: true}})
	}
	c.drained()
	if c.cfg.OnSpare != nil {
		go c.cfg.OnSpare()
	}
}

func (c *ClientConn) settings() {
	c.known = true
	if c.cfg.OnSpare != nil {
		go c.cfg.OnSpare()
	}
}

func (c *ClientConn) tick(time.Time) time.Time { return time.Time{} }

func (c *ClientConn) trim() {
	for _, s := range c.free {
		s.stopTimers()
	}
	c.free = nil
}

func (c *ClientConn) headers(id uint32, end, _ bool, p []byte) error {
	c.mu.Lock()
	idle := c.idle(id)
	s := c.table.get(id)
	head := s != nil && !s.recvHead
	upgrade, tunnel, noBody := false, false, false
	if s != nil {
		upgrade, tunnel, noBody = s.client.upgrade, s.client.tunnel, s.client.noBody
	}
	c.mu.Unlock()
	switch {
	case idle:
		return protocolError("http2.headers_on_idle_stream")
	case s == nil:
		return c.skipBlock(p)
	case !head:
		whole, err := c.trailerBlock(p)
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if s.id != id || s.gone && !s.recvEnd {
			return nil
		}
		return s.takeTrailers(&c.conn, whole, end)
	}
	c.scratch.Reset()
	whole, err := c.decodeBlock(p, &c.scratch.Header, &c.scratch.Arena, false, false)
	if err != nil {
		return err
	}
	detail, interim := "", false
	r := &c.scratch
	if whole && !c.blk.many {
		detail = c.blk.reply(r)
		interim = r.Status < 200
		switch {
		case detail != "":
		case interim && end:
			detail = "http2.end_after_interim"
		case end && r.ContentLength > 0 && !noBody && r.Status != 304 && !(tunnel && r.Status/100 == 2):
			detail = "http2.content_length"
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.id != id || s.gone {
		return nil // it was closed in the meantime
	}
	cs := s.client
	switch {
	case !whole || c.blk.many:
		c.opt.Counters.HeaderOverflows.Add(1)
		s.resetDetail(EnhanceYourCalm, message.ProtocolError, "http2.response_headers_too_large")
		c.dirty = true
		return nil
	case detail != "":
		if err := c.malformed(s, detail); err != nil {
			return err
		}
		return nil
	case len(cs.heads)-cs.nextHead >= maxHeads:
		s.resetDetail(EnhanceYourCalm, message.ProtocolError, "http2.too_many_responses")
		c.dirty = true
		return nil
	}
	if !interim {
		s.recvHead = true
		s.expect = r.ContentLength
		switch {
		case tunnel && r.Status/100 == 2:
			s.expect = -1
			if upgrade {
				r.Status = 101
			}
		case noBody || r.Status == 204 || r.Status == 304:
			s.expect = 0
		}
		if end {
			r.ContentLength = max(r.ContentLength, 0)
			if !noBody && r.Status != 304 {
				r.ContentLength = 0
			}
			s.ended()
		}
	}
	cs.push(r)
	s.rcond.Signal()
	return nil
}

// maxHeads bounds the responses to one request that nobody has taken yet.
const maxHeads = 8

// A ClientStream is a request to a host.
type ClientStream struct {
	exchange
	c      *ClientConn
	inUse  bool
	headAt uint64 // the connection's bytes when the head was sent

	upgrade bool // the request asks for another protocol
	tunnel  bool // that, or a plain CONNECT
	noBody  bool // no response to it has a body

	heads    []message.Response // those before nextHead were taken
	nextHead int
}

// push queues a head, and puts memory for the next one in its place. The lock is held.
func (s *ClientStream) push(r *message.Response) {
	if s.nextHead == len(s.heads) {
		s.heads, s.nextHead = s.heads[:0], 0
	}
	if n := len(s.heads); n < cap(s.heads) {
		s.heads = s.heads[:n+1]
	} else {
		s.heads = append(s.heads, message.Response{})
	}
	h := &s.heads[len(s.heads)-1]
	*h, *r = *r, *h
}

// Send sends the head of the request.
func (s *ClientStream) Send(r *message.Request, end bool) error {
	c := &s.c.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.sentHead {
		return errEnded
	}
	if s.id == 0 {
		if s.c.draining || c.err != nil || s.c.nextID > maxStreamID {
			reason := message.RemoteRefused
			if c.err != nil {
				reason = message.ConnectionTermination
			}
			s.broken(&message.StreamError{Reason: reason, Err: c.err})
		}
		if r.Upgrade != "" && s.c.known && !c.peerConnect {
			return &message.StreamError{Reason: message.ProtocolError, Detail: "http2.extended_connect", Err: errNoConnect}
		}
	}
	if err := s.acquire(forHead); err != nil {
		return err
	}
	if s.c.draining { // while it waited
		s.broken(&message.StreamError{Reason: message.RemoteRefused})
		s.release()
		return s.sendErr
	}
	s.start(s.c.nextID)
	s.c.nextID += 2
	s.upgrade, s.noBody = r.Upgrade != "", r.Method == "HEAD"
	s.tunnel = s.upgrade || r.Method == "CONNECT"
	s.expect = -1
	end = end && r.Upgrade == ""
	o, at := c.beginBlock()
	o.b = c.enc.request(o.b, r)
	o.b = c.enc.header(o.b, &r.Header)
	c.endBlock(at, s.id, end)
	s.headAt = c.added
	s.sentHead = true
	s.pending = true
	if end {
		s.endSent()
	}
	s.release()
	return nil
}

var errNoConnect = errors.New("the host takes no extended CONNECT")

// Receive waits for the next head of the response. That the host has switched to the protocol that an extended CONNECT
// asked for is status 101, as in HTTP/1.1.
func (s *ClientStream) Receive(r *message.Response) (end bool, err error) {
	c := &s.c.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.nextHead == len(s.heads) {
		if s.recvErr != nil {
			return false, s.recvErr
		}
		if s.recvHead {
			return false, errEnded
		}
		if err := s.wait(&s.rcond, &s.rdl); err != nil {
			return false, err
		}
	}
	h := &s.heads[s.nextHead]
	s.nextHead++
	*r, *h = *h, *r
	h.Reset()
	return (r.Status >= 200 || r.Status == 101) && s.recvEnd && s.first == nil && !s.hasTrailer, nil
}

// Close gives the stream back.
func (s *ClientStream) Close() {
	c := s.c
	c.mu.Lock()
	if !s.inUse {
		c.mu.Unlock()
		return
	}
	s.inUse = false
	if s.id != 0 && !s.gone && c.err == nil {
		code := Cancel
		if s.recvEnd {
			code = NoError
		}
		s.reset(code, message.LocalReset)
		c.notify()
	}
	s.uncount()
	s.clear()
	s.upgrade, s.tunnel, s.noBody, s.headAt = false, false, false, 0
	for i := s.nextHead; i < len(s.heads); i++ {
		s.heads[i].Reset()
	}
	s.heads, s.nextHead = s.heads[:0], 0
	if c.err == nil {
		c.free = append(c.free, s)
	} else {
		s.stopTimers()
	}
	if c.active--; c.active == 0 {
		c.drained()
		c.rested()
	}
	c.mu.Unlock()
	c.spareChanged()
}

var _ message.ClientStream = (*ClientStream)(nil)
