package http1

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
)

// A ServerConfig tunes a ServerConn. A zero field takes its default.
type ServerConfig struct {
	MaxHeadBytes int // of a request, and of trailers; default 60 KiB
	MaxFields    int // of a request, and of trailers; default 100

	IdleTimeout   time.Duration // between requests; 0 never
	HeaderTimeout time.Duration // from the first byte of a head to its last; 0 never
	// DelayedClose is how long Close waits for the client to close first; default 1s, negative not at all.
	DelayedClose time.Duration
	// MaxRequests is how many requests a connection may carry; 0 is no limit.
	MaxRequests int

	// Secure says that the connection is encrypted, which is known without for *tls.Conn.
	Secure bool

	AllowChunkedLength bool   // "content-length" beside "transfer-encoding" is ignored, not refused
	RefuseAbsoluteURL  bool   // a target that names scheme and host is not split, but stands in the path, where it is none
	AcceptHTTP10       bool   // HTTP/1.0 is not refused
	DefaultHost        string // of HTTP/1.0 requests that name none; empty refuses those
	Trailers           bool   // trailers are passed on, both ways
	Underscores        Underscores
	Case               Case // PreserveCase also keeps the spellings of requests
}

// A ServerConn is a connection from a client. One goroutine calls Next and uses the stream that it returns; the
// body of a request may be read by another one than that which answers. All of them must be done with a stream
// before Next is called again.
type ServerConn struct {
	cfg    ServerConfig
	conn   net.Conn
	in     input
	out    output
	probe  probe
	parser parser
	stream serverStream
	count  int
	drain  atomic.Bool
	linger bool // the client may still read what was sent
}

// NewServerConn speaks HTTP on conn, which may be TLS put on stream.Below, or come from stream.Ahead.
func NewServerConn(conn net.Conn, cfg ServerConfig) *ServerConn {
	if cfg.MaxHeadBytes == 0 {
		cfg.MaxHeadBytes = 60 << 10
	}
	if cfg.MaxFields == 0 {
		cfg.MaxFields = 100
	}
	if cfg.DelayedClose == 0 {
		cfg.DelayedClose = time.Second
	}
	c := &ServerConn{cfg: cfg}
	c.in.init(conn)
	c.conn = c.in.conn
	if _, ok := c.conn.(*tls.Conn); ok {
		c.cfg.Secure = true
	}
	c.out.init(c.conn, cfg.Case)
	c.probe.init(c.conn)
	c.parser = parser{maxFields: cfg.MaxFields, underscores: cfg.Underscores, spell: cfg.Case == PreserveCase}
	s := &c.stream
	s.c = c
	s.body.keep, s.body.maxTrailer = cfg.Trailers, cfg.MaxHeadBytes
	s.body.parser = parser{maxFields: cfg.MaxFields, underscores: cfg.Underscores, spell: c.parser.spell}
	s.body.ended.Store(true)
	s.state = ended
	return c
}

// Bytes of requests that nobody read are received up to maxDiscard and drainTime, so that the connection can be used
// again.
const (
	maxDiscard = 64 << 10
	maxLinger  = 16 << 20 // before a connection is closed: a client that still sends may not see the answer else
	drainTime  = time.Second
)

// maxEmpty bounds the empty lines before a request, in bytes.
const maxEmpty = 64

// errUnfinished reports that a stream was left without a complete response.
var errUnfinished = errors.New("the response is not complete")

// Next returns the next request. It returns io.EOF when the connection ends as it should: because either side wanted
// it to, or the client left. A *BadRequest is to be answered with Refuse. An idle connection whose time is over is
// os.ErrDeadlineExceeded. After an error only Refuse, if it was a *BadRequest, and Close may be called.
//
// The stream is good until Next or Close is called.
func (c *ServerConn) Next() (message.ServerStream, error) {
	if err := c.finish(); err != nil {
		return nil, err
	}
	c.in.rewind()
	s := &c.stream
	s.reset()
	var deadline time.Time
	if c.in.w == 0 {
		if c.cfg.IdleTimeout > 0 {
			deadline = time.Now().Add(c.cfg.IdleTimeout)
		}
		c.in.deadline.to(deadline)
		if err := c.in.more(); err != nil {
			return nil, err
		}
	}
	if err := c.head(); err != nil {
		c.linger = true
		return nil, err
	}
	c.parser.forget()
	c.in.deadline.to(time.Time{})
	c.linger = true
	c.count++
	if c.cfg.MaxRequests > 0 && c.count >= c.cfg.MaxRequests {
		s.closing.Store(true)
	}
	s.state = open
	return s, nil
}

// finish ends what the last request has left.
func (c *ServerConn) finish() error {
	s := &c.stream
	switch {
	case s.broken.Load():
		return io.EOF
	case s.state != ended:
		return errUnfinished
	case s.closing.Load() || s.out.framing == tunnel:
		return io.EOF
	case s.body.ended.Load():
		return nil
	}
	from := c.in.count.Load()
	c.in.deadline.to(time.Now().Add(drainTime))
	for {
		switch _, err := s.body.read(&c.in); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil || c.in.count.Load()-from > maxDiscard:
			return io.EOF
		}
	}
}

// head receives and parses the head of a request.
func (c *ServerConn) head() error {
	p, r := &c.parser, &c.stream.req
	in := &c.in
	start, begun := 0, false // the request line is read from start
	checked := 0             // there is no complete line that was not parsed before here
	p.reset(&r.Header, &r.Arena, -1)
	for {
		b := in.buf[:in.w]
		for p.pos < 0 && len(b)-start >= 2 && b[start] == '\r' && b[start+1] == '\n' && start < maxEmpty {
			start += 2 // RFC 9112 section 2.2 asks to overlook empty lines
		}
		complete := bytes.IndexByte(b[checked:], '\n') >= 0
		if complete && p.spell {
			complete = bytes.Contains(b, []byte("\r\n\r\n"))
		}
		if complete {
			if p.pos < 0 && len(b) > start && string(b[start:]) != "\r" {
				n, bad := c.requestLine(b[start:])
				if bad != nil {
					return bad
				}
				if n > 0 {
					p.pos = start + n
				}
			}
			if p.pos >= 0 {
				done, bad := p.fields(b)
				if bad != nil {
					return bad
				}
				if done {
					break
				}
			}
			checked = 0
			if !p.spell {
				checked = bytes.LastIndexByte(b, '\n') + 1
			}
		}
		if len(b)-start > c.cfg.MaxHeadBytes {
			if p.pos < 0 {
				return errLineTooLong
			}
			return errTooLarge
		}
		if !begun {
			begun = true
			var deadline time.Time
			if c.cfg.HeaderTimeout > 0 {
				deadline = time.Now().Add(c.cfg.HeaderTimeout)
			}
			in.deadline.to(deadline)
		}
		if in.w == len(in.buf) {
			// The strings point into a buffer that is about to be left.
			r.Reset()
			p.reset(&r.Header, &r.Arena, -1)
			checked = 0
		}
		if err := in.more(); err != nil {
			if timedOut(err) {
				return errHeaderTimeout
			}
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	if p.pos-start > c.cfg.MaxHeadBytes {
		return errTooLarge
	}
	in.r = p.pos
	if err := c.accept(); err != nil {
		return err
	}
	if (r.Upgrade != "" || r.Method == "CONNECT") && !p.spell {
		return c.settle(start)
	}
	return nil
}

// settle parses the head again from memory of its size, so that what may become a long quiet connection holds no
// buffer.
func (c *ServerConn) settle(start int) error {
	p, r := &c.parser, &c.stream.req
	b := bytes.Clone(c.in.buf[start:c.in.r])
	r.Reset()
	n, bad := c.requestLine(b)
	p.reset(&r.Header, &r.Arena, n)
	if bad == nil {
		_, bad = p.fields(b)
	}
	if bad != nil {
		return bad
	}
	c.in.rewind()
	return c.accept()
}

// requestLine reads the request line, and returns its length; 0 if it is not complete.
func (c *ServerConn) requestLine(b []byte) (int, *BadRequest) {
	r := &c.stream.req
	i := 0
	for i < len(b) && nameTable[b[i]] != 0 {
		i++
	}
	if i == len(b) {
		return 0, nil
	}
	if b[i] != ' ' || i == 0 {
		return 0, errCodec
	}
	t := i + 1
	j := t
	for j < len(b) && b[j] > ' ' && b[j] < 0x7f {
		j++
	}
	if j == len(b) {
		return 0, nil
	}
	if b[j] != ' ' {
		switch {
		case b[j] >= 0x7f:
			return 0, errURL
		case b[j] == '\r' && j+1 == len(b):
			return 0, nil
		case b[j] == '\r' && b[j+1] == '\n' && j > t:
			return 0, errVersion // 0.9
		}
		return 0, errCodec
	}
	if j == t {
		return 0, errURL
	}
	if string(b[:i]) == "PRI" {
		return 0, errCodec // HTTP/2 begins so (RFC 9113 section 11.6)
	}
	const version = " HTTP/1.1\r\n"
	if len(b)-j < len(version) {
		if bytes.IndexByte(b[j:], '\n') >= 0 {
			return 0, errCodec
		}
		return 0, nil
	}
	switch string(b[j : j+len(version)]) {
	case version:
		r.Version = message.HTTP11
	case " HTTP/1.0\r\n":
		r.Version = message.HTTP10
	default:
		if v := b[j:]; string(v[:6]) == " HTTP/" && isDigit(v[6]) && v[7] == '.' && isDigit(v[8]) && v[9] == '\r' && v[10] == '\n' {
			return 0, errVersion
		}
		return 0, errCodec
	}
	r.Method, r.Path = text(b[:i]), text(b[t:j])
	return j + len(version), nil
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// accept makes what was parsed a request.
func (c *ServerConn) accept() error {
	s, p := &c.stream, &c.parser
	r := &s.req
	old := r.Version == message.HTTP10
	if old && !c.cfg.AcceptHTTP10 {
		return errVersion
	}
	switch {
	case p.hosts > 1:
		return errHost
	case p.host != "":
		if !isAuthority(p.host) {
			return errHost
		}
	case !old || p.hosts > 0 || c.cfg.DefaultHost == "":
		return errMissingHost
	default:
		p.host = c.cfg.DefaultHost
	}
	r.Authority = p.host
	if err := c.target(); err != nil {
		return err
	}
	f := byLength
	if p.encodings > 0 {
		switch {
		case old:
			return errNoEncoding
		case p.length >= 0 && !c.cfg.AllowChunkedLength:
			return errLengthTwice
		case p.encodings > 1 || !p.chunked:
			return errEncoding
		}
		r.Header.Del("content-length")
		p.length, f = -1, byChunks
	} else if p.length < 0 {
		p.length = 0
	}
	if r.Method == "CONNECT" && p.length != 0 {
		return errBody
	}
	r.ContentLength = p.length
	if p.upgrade && p.upgrades > 0 && !old && r.Method != "CONNECT" {
		if p.upgrades > 1 {
			return errCodec
		}
		r.Upgrade = protocol(p.protocol, &r.Arena)
	}
	p.finish()
	if p.upgrades > 0 {
		r.Header.Del("http2-settings") // of h2c, which is not offered
	}
	r.Expect100 = !old && strings.EqualFold(r.Header.Get("expect"), "100-continue") && p.length != 0
	if p.close || old && !p.keepAlive {
		s.closing.Store(true)
	}
	s.head, s.connect = r.Method == "HEAD", r.Method == "CONNECT"
	s.body.begin(&c.in, f, p.length)
	return nil
}

// target splits the target of a request. One that names neither host nor path is left to whoever routes.
func (c *ServerConn) target() error {
	r := &c.stream.req
	t := r.Path
	switch {
	case r.Method == "CONNECT":
		if !isAuthority(t) {
			return errURL
		}
		r.Authority, r.Path = t, ""
		return nil
	case t[0] == '/', t == "*" && r.Method == "OPTIONS":
		return nil
	}
	i := strings.Index(t, "://")
	switch {
	case i < 0:
		return errURL
	case c.cfg.RefuseAbsoluteURL:
		return nil
	}
	switch scheme := t[:i]; {
	case equal(scheme, "http"):
		r.Scheme = "http"
	case equal(scheme, "https"):
		if !c.cfg.Secure {
			return errScheme
		}
		r.Scheme = "https"
	default:
		return errScheme
	}
	t = t[i+len("://"):]
	i = strings.IndexAny(t, "/?#")
	if i < 0 {
		i = len(t)
	}
	r.Authority, r.Path = t[:i], t[i:]
	if !isAuthority(r.Authority) {
		return errURL
	}
	switch {
	case r.Path == "":
		r.Path = "/"
	case r.Path[0] != '/':
		r.Path = r.Arena.Concat("/", r.Path)
	}
	return nil
}

// protocol returns the protocols to upgrade to in lower case, without h2c.
func protocol(s string, a *message.Arena) string {
	b := a.Begin()
	for s != "" {
		p, rest, _ := strings.Cut(s, ",")
		s = rest
		if p = trim(p); p == "" || equal(p, "h2c") {
			continue
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		for i := range len(p) {
			c := p[i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			b = append(b, c)
		}
	}
	return a.End(b)
}

// Refuse answers a request that Next did not accept. Only Close may be called then.
func (c *ServerConn) Refuse(r *message.Response, body []byte) error {
	s := &c.stream
	s.head, s.connect = false, false
	s.closing.Store(true)
	s.req.Version = message.HTTP11
	s.state = open
	r.ContentLength = int64(len(body))
	if err := s.Respond(r, len(body) == 0); err != nil || len(body) == 0 {
		return err
	}
	return s.Write(body, true)
}

// Drain makes the connection close after the response whose head is sent next. It may be called at any time from any
// goroutine.
func (c *ServerConn) Drain() { c.drain.Store(true) }

// WireBytes returns what was received and sent over the connection, TLS not counted.
func (c *ServerConn) WireBytes() (received, sent uint64) {
	return c.in.count.Load(), c.out.count.Load()
}

// Close closes the connection. So that what was sent last is not lost, it closes one direction at first and waits a
// little for the client to close the other.
func (c *ServerConn) Close() error {
	c.out.drop()
	if c.linger && c.cfg.DelayedClose > 0 && c.out.err == nil && !c.probe.left() {
		if stream.CloseWrite(c.conn) == nil {
			c.in.deadline.to(time.Now().Add(c.cfg.DelayedClose))
			from := c.in.count.Load()
			for c.in.count.Load()-from < maxLinger {
				c.in.drop()
				if c.in.more() != nil {
					break
				}
			}
		}
	}
	c.in.drop()
	return c.conn.Close()
}

// A streamState is how far a response has come.
type streamState uint8

const (
	open  streamState = iota // nothing was sent but heads with a status of 1xx
	begun                    // the head was sent
	ended                    // all was sent
)

// A serverStream is a request and its response.
type serverStream struct {
	c       *ServerConn
	req     message.Request
	body    incoming
	out     outgoing
	state   streamState
	head    bool // the request's method is HEAD
	connect bool // the request's method is CONNECT

	continued bool        // 100 was sent
	raw       atomic.Bool // the protocol was switched
	tunnelled bool        // and the reader knows
	closing   atomic.Bool // the connection ends with the response
	broken    atomic.Bool // it was reset
}

func (s *serverStream) reset() {
	s.req.Reset()
	s.out.reset()
	s.state, s.head, s.connect, s.continued, s.tunnelled = open, false, false, false, false
	s.raw.Store(false)
	s.closing.Store(false)
}

func (s *serverStream) Request() *message.Request { return &s.req }

// Read returns io.EOF at the end of the request's body. If the protocol is switched after that, it goes on with what
// comes then.
func (s *serverStream) Read() ([]byte, error) {
	if s.broken.Load() {
		return nil, &message.StreamError{Reason: message.LocalReset, Sent: true}
	}
	if !s.tunnelled && s.body.ended.Load() && s.raw.Load() {
		s.tunnelled = true
		s.body.framing = tunnel
		s.body.ended.Store(false)
	}
	p, err := s.body.read(&s.c.in)
	switch {
	case err == nil || err == io.EOF:
		return p, err
	case s.broken.Load():
		return nil, &message.StreamError{Reason: message.LocalReset, Sent: true, Err: err}
	case timedOut(err):
		return nil, err
	}
	s.closing.Store(true)
	if bad, ok := errors.AsType[*BadRequest](err); ok {
		return nil, &message.StreamError{Reason: message.ProtocolError, Detail: bad.Detail, Sent: true, Err: err}
	}
	return nil, &message.StreamError{Reason: message.RemoteReset, Sent: true, Err: err}
}

func (s *serverStream) Ready() bool {
	if !s.tunnelled && s.body.ended.Load() && s.raw.Load() {
		return len(s.c.in.bytes()) > 0
	}
	return s.body.ready(&s.c.in)
}

func (s *serverStream) Trailer() *message.Header { return s.body.trailers() }

// failed turns an error of sending into that of a stream.
func (s *serverStream) failed(err error) error {
	if err == nil || timedOut(err) {
		return err
	}
	s.closing.Store(true)
	reason := message.RemoteReset
	if errors.Is(err, errTooLong) || errors.Is(err, errTooShort) || errors.Is(err, errUnsendable) {
		reason = message.LocalReset
	}
	return &message.StreamError{Reason: reason, Sent: true, Err: err}
}

var errOrder = errors.New("the response has begun already")

func (s *serverStream) Respond(r *message.Response, end bool) error {
	if s.broken.Load() {
		return s.failed(net.ErrClosed)
	}
	if s.state != open {
		return s.failed(errOrder)
	}
	if r.Status < 200 && r.Status != 101 {
		if s.req.Version == message.HTTP10 {
			return nil // knows no such thing
		}
		s.continued = s.continued || r.Status == 100
		return s.failed(s.interim(r))
	}
	f, length := s.framing(r, end)
	if f == byClosing || s.req.Expect100 && !s.continued && !s.body.ended.Load() || s.c.drain.Load() {
		// A client that waits for 100 may send the body or not.
		s.closing.Store(true)
	}
	o := &s.c.out
	b := s.statusLine(o.begin(), r.Status)
	b, ok := o.fields(b, &r.Header)
	if !ok {
		o.end(b)
		o.drop()
		return s.failed(errUnsendable)
	}
	switch {
	case length >= 0:
		b = o.length(b, &r.Header, length)
	case f == byChunks:
		b = o.field(b, &r.Header, "transfer-encoding", "chunked")
	}
	switch {
	case r.Status == 101:
		b = o.field(b, &r.Header, "connection", "upgrade")
		up := r.Header.Get("upgrade")
		if up == "" || !isValue(up) {
			up = s.req.Upgrade
		}
		b = o.field(b, &r.Header, "upgrade", up)
	case f == tunnel:
	case s.closing.Load():
		b = o.field(b, &r.Header, "connection", "close")
	case s.req.Version == message.HTTP10:
		b = o.field(b, &r.Header, "connection", "keep-alive")
	}
	o.end(append(b, "\r\n"...))
	s.state = begun
	s.out.framing, s.out.left = f, max(length, 0)
	if f == tunnel {
		s.raw.Store(true)
		return s.failed(o.flush())
	}
	if !end {
		return nil
	}
	if f == byLength && length > 0 {
		return s.failed(errTooShort)
	}
	s.state = ended
	s.out.ended = true
	return s.failed(o.flush())
}

// framing decides how the body of the response ends, and the length to tell; -1 tells none.
func (s *serverStream) framing(r *message.Response, end bool) (framing, int64) {
	switch {
	case r.Status == 101, s.connect && r.Status < 300:
		return tunnel, -1
	case r.Status == 204:
		return noBody, -1
	case s.head, r.Status == 304:
		return noBody, r.ContentLength
	case r.ContentLength >= 0:
		return byLength, r.ContentLength
	case end:
		return byLength, 0
	case s.req.Version == message.HTTP10:
		return byClosing, -1
	}
	return byChunks, -1
}

func (s *serverStream) statusLine(b []byte, status int) []byte {
	if s.req.Version == message.HTTP10 {
		b = append(b, "HTTP/1.0 "...)
	} else {
		b = append(b, "HTTP/1.1 "...)
	}
	return appendStatus(b, status)
}

// interim sends a head with a status of 1xx.
func (s *serverStream) interim(r *message.Response) error {
	o := &s.c.out
	b, ok := o.fields(s.statusLine(o.begin(), r.Status), &r.Header)
	o.end(append(b, "\r\n"...))
	if !ok {
		o.drop()
		return errUnsendable
	}
	return o.flush()
}

func (s *serverStream) Continue() error {
	if !s.req.Expect100 || s.continued || s.state != open {
		return nil
	}
	s.continued = true
	o := &s.c.out
	o.end(append(o.begin(), "HTTP/1.1 100 Continue\r\n\r\n"...))
	return s.failed(o.flush())
}

func (s *serverStream) Write(p []byte, end bool) error {
	if s.broken.Load() {
		return s.failed(net.ErrClosed)
	}
	err := s.out.write(&s.c.out, p, end)
	return s.wrote(err, end)
}

func (s *serverStream) wrote(err error, end bool) error {
	if err == nil && end {
		s.state = ended
		if s.out.framing == tunnel {
			err = stream.CloseWrite(s.c.conn)
		}
	}
	return s.failed(err)
}

func (s *serverStream) WriteTrailer(h *message.Header) error {
	if !s.c.cfg.Trailers {
		h = nil
	}
	return s.wrote(s.out.trailer(&s.c.out, h), true)
}

func (s *serverStream) Flush() error { return s.failed(s.c.out.flush()) }

// Reset is called by whoever sends.
func (s *serverStream) Reset(message.Reason) {
	if s.broken.Swap(true) {
		return
	}
	_ = s.c.out.flush() // the client may have left
	_ = stream.CloseWrite(s.c.conn)
	s.c.in.deadline.to(time.Unix(1, 0)) // wakes who reads
}

func (s *serverStream) Gone() bool { return s.c.probe.left() }

func (s *serverStream) SetReadDeadline(t time.Time)  { s.c.in.deadline.to(t) }
func (s *serverStream) SetWriteDeadline(t time.Time) { s.c.out.deadline.to(t) }

func (s *serverStream) CloseAfter() { s.closing.Store(true) }

func (s *serverStream) BytesReceived() uint64 { return s.body.count.Load() }
func (s *serverStream) BytesSent() uint64     { return s.out.count.Load() }
