package http1

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
)

// A ClientConfig tunes a ClientConn. A zero field takes its default.
type ClientConfig struct {
	MaxHeadBytes int  // of a response, and of trailers; default 80 KiB
	MaxFields    int  // of a response, and of trailers; default 100
	Trailers     bool // trailers are passed on, both ways
	Case         Case // PreserveCase also keeps the spellings of responses
}

// A ClientConn is a connection to a host. It carries one stream at a time.
type ClientConn struct {
	cfg    ClientConfig
	conn   net.Conn
	in     input
	out    output
	probe  probe
	parser parser
	stream clientStream
	usable bool // no stream has left the connection in a bad state
	ending Ending
}

// An Ending is what streams have noticed of the end of their connection.
type Ending struct {
	Lost   bool // the host has closed it
	Told   bool // the host has said that it will close it
	Broken bool // a stream was closed before its request and response had ended
}

// NewClientConn speaks HTTP on conn, which may be TLS put on stream.Below.
func NewClientConn(conn net.Conn, cfg ClientConfig) *ClientConn {
	if cfg.MaxHeadBytes == 0 {
		cfg.MaxHeadBytes = 80 << 10
	}
	if cfg.MaxFields == 0 {
		cfg.MaxFields = 100
	}
	c := &ClientConn{cfg: cfg, usable: true}
	c.in.init(conn)
	c.conn = c.in.conn
	c.out.init(c.conn, cfg.Case)
	c.probe.init(c.conn)
	c.parser = parser{maxFields: cfg.MaxFields, spell: cfg.Case == PreserveCase}
	s := &c.stream
	s.c = c
	s.body.keep, s.body.maxTrailer = cfg.Trailers, cfg.MaxHeadBytes
	s.body.parser = parser{maxFields: cfg.MaxFields, spell: c.parser.spell}
	return c
}

// Usable reports whether the connection can carry another stream, as far as is known, without looking whether the
// host has closed it. It is for whom no stream is open.
func (c *ClientConn) Usable() bool { return c.usable }

// Ending returns why the connection is not usable.
func (c *ClientConn) Ending() Ending { return c.ending }

// Quiet reports whether an idle connection is as the last stream left it: the host has neither closed it nor sent
// anything. It looks without waiting, where the system allows that, and else says yes.
func (c *ClientConn) Quiet() bool { return !c.probe.readable() }

// Stream begins a stream. The last one must be closed, and have left the connection usable. The stream is good until
// it is closed.
func (c *ClientConn) Stream() message.ClientStream {
	s := &c.stream
	s.reset()
	c.in.rewind()
	c.in.deadline.to(time.Time{})
	c.out.deadline.to(time.Time{})
	c.usable = false
	return s
}

// WireBytes returns what was received and sent over the connection, TLS not counted.
func (c *ClientConn) WireBytes() (received, sent uint64) {
	return c.in.count.Load(), c.out.count.Load()
}

// Close closes the connection. No stream may be open.
func (c *ClientConn) Close() error {
	c.usable = false
	c.in.drop()
	c.out.drop()
	return c.conn.Close()
}

// A clientStream is a request and its response. Fields of the two sides are not touched by the other, unless they are
// atomic: one goroutine may send while another receives.
type clientStream struct {
	c *ClientConn

	// Sending.
	out     outgoing
	base    uint64       // bytes that former streams have sent
	sending bool         // the head was sent
	sent    atomic.Bool  // all was sent
	method  atomic.Int32 // a methodKind
	upgrade atomic.Bool  // the request asks to switch the protocol
	raw     atomic.Bool  // the protocol was switched

	// Receiving.
	body     incoming
	received bool // the final head was received
	interim  int  // heads with a status of 1xx
	bad      bool // the connection can't be used again
}

type methodKind int32

const (
	otherMethod methodKind = iota
	headMethod
	connectMethod
)

// maxInterim bounds how many heads with a status of 1xx a response may have.
const maxInterim = 32

func (s *clientStream) reset() {
	s.out.reset()
	s.base, s.sending = s.c.out.count.Load(), false
	s.sent.Store(false)
	s.upgrade.Store(false)
	s.raw.Store(false)
	s.body.ended.Store(false)
	s.body.count.Store(0)
	s.body.trailer.Reset()
	s.received, s.interim, s.bad = false, 0, false
}

var errRequest = errors.New("the request can't be sent over HTTP/1")

func (s *clientStream) Send(r *message.Request, end bool) error {
	o := &s.c.out
	target := r.Path
	if r.Method == "CONNECT" {
		target = r.Authority
	}
	if s.sending || !isToken(r.Method) || !isTarget(target) || !isAuthority(r.Authority) || end && r.ContentLength > 0 {
		return s.failed(errRequest)
	}
	s.sending = true
	b := o.begin()
	b = append(append(b, r.Method...), ' ')
	b = append(append(b, target...), " HTTP/1.1\r\n"...)
	b = o.field(b, &r.Header, "host", r.Authority)
	b, ok := o.fields(b, &r.Header)
	if ok && r.Upgrade != "" {
		ok = isValue(r.Upgrade)
		b = o.field(b, &r.Header, "connection", "upgrade")
		b = o.field(b, &r.Header, "upgrade", r.Upgrade)
		s.upgrade.Store(true)
	}
	if !ok {
		o.end(b)
		o.drop()
		return s.failed(errUnsendable)
	}
	kind := otherMethod
	switch r.Method {
	case "HEAD":
		kind = headMethod
	case "CONNECT":
		kind = connectMethod
	}
	s.method.Store(int32(kind))
	s.out.framing = noBody
	switch {
	case kind == connectMethod:
	case r.Upgrade != "" && (r.Version == message.HTTP2 || end || r.ContentLength == 0):
		// What follows an extended CONNECT is for the new protocol.
	case end || r.ContentLength == 0:
		if r.Header.Has("content-length") || expectsBody(r.Method) {
			b = o.length(b, &r.Header, 0)
		}
	case r.ContentLength > 0:
		b = o.length(b, &r.Header, r.ContentLength)
		s.out.framing, s.out.left = byLength, r.ContentLength
	default:
		b = o.field(b, &r.Header, "transfer-encoding", "chunked")
		s.out.framing = byChunks
	}
	o.end(append(b, "\r\n"...))
	if !end {
		return nil
	}
	s.out.ended = true
	if err := s.failed(o.flush()); err != nil {
		return err
	}
	s.sent.Store(true)
	return nil
}

// expectsBody reports whether requests with the method usually have a body, so that one without says so.
func expectsBody(method string) bool { return method == "POST" || method == "PUT" || method == "PATCH" }

func (s *clientStream) Write(p []byte, end bool) error {
	if s.raw.Load() && s.out.framing != tunnel {
		s.out.framing, s.out.ended = tunnel, false
	}
	if s.out.framing == noBody && len(p) > 0 {
		return s.failed(errTooLong)
	}
	return s.wrote(s.out.write(&s.c.out, p, end), end)
}

func (s *clientStream) wrote(err error, end bool) error {
	if err == nil && end {
		if s.out.framing == tunnel {
			err = stream.CloseWrite(s.c.conn)
		}
		s.sent.Store(true)
	}
	return s.failed(err)
}

func (s *clientStream) WriteTrailer(h *message.Header) error {
	if !s.c.cfg.Trailers {
		h = nil
	}
	return s.wrote(s.out.trailer(&s.c.out, h), true)
}

func (s *clientStream) Flush() error { return s.failed(s.c.out.flush()) }

// failed turns an error of sending into that of the stream.
func (s *clientStream) failed(err error) error {
	if err == nil || timedOut(err) {
		return err
	}
	e := &message.StreamError{Reason: message.ConnectionTermination, Sent: s.c.out.count.Load() > s.base, Err: err}
	switch {
	case errors.Is(err, errTooLong), errors.Is(err, errTooShort), errors.Is(err, errUnsendable), errors.Is(err, errRequest):
		e.Reason = message.LocalReset
	}
	return e
}

// Receive puts the next head into r, whose strings are good until the next head is asked for or the stream is closed.
func (s *clientStream) Receive(r *message.Response) (bool, error) {
	r.Reset()
	bad, err := s.head(r)
	switch {
	case bad != nil:
		return false, s.broken(bad, bad.Detail)
	case err != nil:
		return false, s.lost(err)
	}
	return s.received && s.body.ended.Load(), nil
}

// head receives and parses a head.
func (s *clientStream) head(r *message.Response) (*BadRequest, error) {
	c := s.c
	in, p := &c.in, &c.parser
	if s.received {
		return errCodec, nil
	}
	in.low = in.r
	start := in.r
	checked := start
	p.reset(&r.Header, &r.Arena, -1)
	for {
		b := in.buf[:in.w]
		complete := len(b) > 0 && bytes.IndexByte(b[checked:], '\n') >= 0
		if complete && p.spell {
			complete = bytes.Contains(b[start:], []byte("\r\n\r\n"))
		}
		if complete {
			if p.pos < 0 {
				n, bad := statusLine(r, b[start:])
				if bad != nil {
					return bad, nil
				}
				p.pos = start + n
			}
			done, bad := p.fields(b)
			if bad != nil {
				return bad, nil
			}
			if done {
				break
			}
			checked = start
			if !p.spell {
				checked = bytes.LastIndexByte(b, '\n') + 1
			}
		}
		if len(b)-start > c.cfg.MaxHeadBytes {
			return errTooLarge, nil
		}
		if len(b) > start && in.w == len(in.buf) {
			// The strings point into a buffer that is about to be left.
			r.Reset()
			p.reset(&r.Header, &r.Arena, -1)
			checked = start
		}
		if err := in.more(); err != nil {
			if errors.Is(err, io.EOF) && len(b) > start {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	if p.pos-start > c.cfg.MaxHeadBytes {
		return errTooLarge, nil
	}
	in.r = p.pos
	if switched := r.Status == 101 || s.method.Load() == int32(connectMethod) && r.Status/100 == 2; switched && !p.spell {
		// What may become a long quiet connection holds no buffer: see ServerConn.settle.
		b := bytes.Clone(in.buf[start:in.r])
		r.Reset()
		n, bad := statusLine(r, b)
		p.reset(&r.Header, &r.Arena, n)
		if bad == nil {
			_, bad = p.fields(b)
		}
		if bad != nil {
			return bad, nil
		}
		in.rewind()
	}
	bad := s.accept(r)
	p.forget()
	return bad, nil
}

// statusLine reads the first line of a response, which is complete, and returns its length.
func statusLine(r *message.Response, b []byte) (int, *BadRequest) {
	const version = "HTTP/1.1 200"
	if len(b) < len(version)+2 {
		return 0, errCodec
	}
	switch string(b[:9]) {
	case "HTTP/1.1 ":
		r.Version = message.HTTP11
	case "HTTP/1.0 ":
		r.Version = message.HTTP10
	default:
		return 0, errCodec
	}
	for _, c := range b[9:12] {
		if c < '0' || c > '9' {
			return 0, errCodec
		}
		r.Status = 10*r.Status + int(c-'0')
	}
	i := len(version)
	if r.Status < 100 || b[i] != ' ' && b[i] != '\r' {
		return 0, errCodec
	}
	for i = endOfValue(b, i); i < len(b) && b[i] == '\t'; i = endOfValue(b, i+1) {
	}
	if i+1 >= len(b) || b[i] != '\r' || b[i+1] != '\n' {
		return 0, errCharacters
	}
	return i + 2, nil
}

// accept makes what was parsed a response.
func (s *clientStream) accept(r *message.Response) *BadRequest {
	c, p := s.c, &s.c.parser
	kind := methodKind(s.method.Load())
	r.ContentLength = p.length
	interim := r.Status < 200 && r.Status != 101
	switch {
	case p.encodings > 0:
		switch {
		case r.Version == message.HTTP10 || bodilessStatus(r.Status):
			return errNoEncoding
		case p.encodings > 1 || !p.chunked:
			return errEncoding
		case p.length >= 0:
			return errLengthTwice
		}
	case interim && p.length > 0, r.Status == 204 && p.length > 0, r.Status == 101 && p.length > 0:
		return errBody
	case r.Status == 101 && (!s.upgrade.Load() || p.upgrades != 1 || !p.upgrade):
		return errCodec
	}
	p.finish()
	if p.trailers {
		r.Header.Del("te")
	}
	if interim {
		if s.interim++; s.interim > maxInterim {
			return errCodec
		}
		return nil
	}
	s.received = true
	if p.close || r.Version == message.HTTP10 && !p.keepAlive {
		s.bad, c.ending.Told = true, p.close
	}
	f := byClosing
	switch {
	case r.Status == 101, kind == connectMethod && r.Status < 300:
		if r.Status == 101 {
			r.Header.Add("upgrade", p.protocol)
		}
		f = tunnel
		s.bad = true
	case kind == headMethod, bodiless(r.Status):
		f = noBody
	case p.encodings > 0:
		f = byChunks
	case p.length >= 0:
		f = byLength
	default:
		s.bad = true
	}
	s.body.begin(&c.in, f, p.length)
	if f == tunnel {
		s.raw.Store(true)
	}
	return nil
}

// bodilessStatus reports whether a response with the status can't have a field "transfer-encoding".
func bodilessStatus(status int) bool { return status < 200 || status == 204 }

func (s *clientStream) Read() ([]byte, error) {
	if !s.received {
		return nil, s.broken(errCodec, errCodec.Detail)
	}
	p, err := s.body.read(&s.c.in)
	if err == nil || err == io.EOF {
		return p, err
	}
	if bad, ok := errors.AsType[*BadRequest](err); ok {
		return nil, s.broken(bad, bad.Detail)
	}
	return nil, s.lost(err)
}

// broken reports that the host does not speak HTTP as it should.
func (s *clientStream) broken(err error, detail string) error {
	s.bad = true
	return &message.StreamError{Reason: message.ProtocolError, Detail: detail, Sent: true, Err: err}
}

// lost turns an error of receiving into that of the stream.
func (s *clientStream) lost(err error) error {
	if timedOut(err) {
		return err
	}
	s.bad, s.c.ending.Lost = true, true
	return &message.StreamError{Reason: message.ConnectionTermination, Sent: true, Err: err}
}

func (s *clientStream) Ready() bool              { return s.received && s.body.ready(&s.c.in) }
func (s *clientStream) Trailer() *message.Header { return s.body.trailers() }

func (s *clientStream) SetReadDeadline(t time.Time)  { s.c.in.deadline.to(t) }
func (s *clientStream) SetWriteDeadline(t time.Time) { s.c.out.deadline.to(t) }

// Close decides whether the connection can be used again. Whoever sends and receives must be done.
func (s *clientStream) Close() {
	c := s.c
	c.out.drop()
	whole := s.received && s.body.ended.Load() && s.sent.Load()
	c.ending.Broken = !whole
	ok := !s.bad && whole && c.out.err == nil && len(c.in.bytes()) == 0
	c.in.drop()
	if !ok {
		_ = c.conn.Close() // there is nothing to be done about it
	}
	c.usable = ok
}
