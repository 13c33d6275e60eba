package hcm

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
)

// A Link is a connection whose requests are to be served.
type Link struct {
	Conn  net.Conn        // what requests are read from
	Info  *filter.Conn    // who the client is
	Entry accesslog.Entry // what logs tell of the connection
	ALPN  string          // the protocol that TLS settled on; empty if none

	BufferLimit int  // bytes of a body that may be kept
	Outbound    bool // the client is the service that the proxy stands beside

	// Current returns the manager for the next request. What concerns the connection itself is taken from the first.
	Current func() *Manager
	// Leaving reports whether the client should be told to use another connection; nil never. It may change to and fro.
	Leaving func() bool
}

// A Session serves the requests of one connection.
type Session struct {
	conn        net.Conn
	info        *filter.Conn
	entry       accesslog.Entry
	alpn        string
	element     string // of x-forwarded-client-cert
	source      string // who calls, for counting
	service     string // who is called; empty: the cluster of the request
	bufferLimit int
	current     func() *Manager
	start       time.Time
	limit       *time.Timer // ends the connection's life; nil if that is not bounded
	leaving     atomic.Bool
	asked       func() bool  // nil: never
	turn        atomic.Int32 // on an HTTP/1 connection

	mu sync.Mutex
	h2 *http2.ServerConn // nil unless the connection speaks HTTP/2
}

// NewSession returns a session for the connection. Serve does the work.
func NewSession(l *Link) *Session {
	s := &Session{
		conn: l.Conn, info: l.Info, entry: l.Entry, alpn: l.ALPN, current: l.Current, asked: l.Leaving,
		bufferLimit: cmp.Or(l.BufferLimit, model.DefaultBufferLimit), source: source(l, l.Current().env.NodeCluster),
	}
	if l.Info.Peer != nil {
		s.service = service(l.Info.LocalURIs)
	}
	return s
}

// Drain makes the connection end soon: clients are told to use another, and the requests they have begun are served.
func (s *Session) Drain() {
	if s.leaving.Swap(true) {
		return
	}
	s.mu.Lock()
	h2 := s.h2
	s.mu.Unlock()
	if h2 != nil {
		h2.Shutdown(s.current().conf.DrainTimeout)
		return
	}
	s.closeIdle()
}

// Whose turn it is on an HTTP/1 connection.
const (
	idleTurn int32 = iota // the client's
	busyTurn              // ours: a request is being served
	noTurn                // nobody's
)

// closeIdle ends an HTTP/1 connection on which there was no request for the drain timeout. A client that makes one is
// told to use another with the response. Those that stay silent would never know.
func (s *Session) closeIdle() {
	time.AfterFunc(max(s.current().conf.DrainTimeout, time.Second), func() {
		switch {
		case s.turn.CompareAndSwap(idleTurn, noTurn):
			s.conn.Close()
		case s.turn.Load() == busyTurn:
			s.closeIdle()
		}
	})
}

func (s *Session) draining() bool { return s.leaving.Load() || s.asked != nil && s.asked() }

// Serve serves requests until the connection ends, and tells why it ended.
func (s *Session) Serve() string {
	m := s.current()
	s.begin(m)
	defer s.end(m)
	conn, two, err := s.choose(m)
	switch {
	case err != nil:
		return "http_inspect_error"
	case two:
		return s.serveHTTP2(m, conn)
	}
	return s.serveHTTP1(m, conn)
}

// begin counts the connection and bounds its life. It is apart from Serve so that the stack of an idle connection stays
// small.
//
//go:noinline
func (s *Session) begin(m *Manager) {
	st := m.stats
	s.start = time.Now()
	st.CxTotal.Inc()
	st.CxActive.Inc()
	if s.info.TLS != nil {
		st.CxSSL.Inc()
		st.CxSSLActive.Inc()
	}
	if d := m.conf.MaxDuration; d > 0 {
		s.limit = time.AfterFunc(d, func() {
			st.CxMaxDuration.Inc()
			s.Drain()
		})
	}
}

// end is the other end of begin.
func (s *Session) end(m *Manager) {
	st := m.stats
	s.turn.Store(noTurn)
	if s.limit != nil {
		s.limit.Stop()
	}
	st.CxActive.Dec()
	st.CxDestroy.Inc()
	st.CxLength.Record(time.Since(s.start))
	if s.info.TLS != nil {
		st.CxSSLActive.Dec()
	}
}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// choose finds out which protocol the client speaks.
func (s *Session) choose(m *Manager) (net.Conn, bool, error) {
	switch m.conf.Codec {
	case model.CodecHTTP1:
		return s.conn, false, nil
	case model.CodecHTTP2:
		return s.conn, true, nil
	}
	switch s.alpn {
	case "h2":
		return s.conn, true, nil
	case "http/1.1", "http/1.0":
		return s.conn, false, nil
	}
	if t := m.conf.HeadersTimeout; t > 0 {
		s.conn.SetReadDeadline(time.Now().Add(t))
		defer s.conn.SetReadDeadline(time.Time{})
	} else if t := m.conf.IdleTimeout; t > 0 {
		s.conn.SetReadDeadline(time.Now().Add(t))
		defer s.conn.SetReadDeadline(time.Time{})
	}
	// No more is read than tells the two apart.
	seen := make([]byte, 0, len(preface))
	for len(seen) < len(preface) {
		n, err := s.conn.Read(seen[len(seen):cap(seen)])
		seen = seen[:len(seen)+n]
		if !bytes.HasPrefix([]byte(preface), seen) {
			return stream.Ahead(s.conn, seen), false, nil
		}
		if err != nil {
			if len(seen) > 0 && errors.Is(err, io.EOF) {
				break
			}
			return nil, false, err
		}
	}
	return stream.Ahead(s.conn, seen), len(seen) == len(preface), nil
}

// http1Conn makes the codec. It is apart from serveHTTP1 so that the stack of an idle connection stays small.
//
//go:noinline
func (s *Session) http1Conn(m *Manager, conn net.Conn) *http1.ServerConn {
	c := m.conf
	m.stats.CxHTTP1.Inc()
	m.stats.CxHTTP1Active.Inc()
	linger := c.DelayedClose
	if linger == 0 {
		linger = -1 // the codec's zero is its default
	}
	return http1.NewServerConn(conn, http1.ServerConfig{
		MaxHeadBytes: c.MaxHeaderBytes, MaxFields: c.MaxHeaders, IdleTimeout: c.IdleTimeout, HeaderTimeout: c.HeadersTimeout,
		DelayedClose: linger, MaxRequests: int(c.MaxRequests), Secure: s.info.TLS != nil,
		AllowChunkedLength: c.HTTP1.AllowChunkedLength, RefuseAbsoluteURL: c.HTTP1.DenyAbsoluteURL,
		AcceptHTTP10: c.HTTP1.AcceptHTTP10, DefaultHost: c.HTTP1.DefaultHost, Trailers: c.HTTP1.EnableTrailers,
		Underscores: http1.Underscores(c.Underscores), Case: headerCase(c.HTTP1),
	})
}

func (s *Session) serveHTTP1(m *Manager, conn net.Conn) string {
	sc := s.http1Conn(m, conn)
	defer func() {
		sc.Close()
		m.stats.CxHTTP1Active.Dec()
	}()
	for {
		st, err := sc.Next()
		if err != nil {
			return s.ended(m, sc, err)
		}
		if !s.turn.CompareAndSwap(idleTurn, busyTurn) {
			return "drained"
		}
		s.current().serve(s, st)
		s.turn.Store(idleTurn)
	}
}

func headerCase(o model.HTTP1Options) http1.Case {
	switch {
	case o.ProperCase:
		return http1.ProperCase
	case o.PreserveCase:
		return http1.PreserveCase
	}
	return http1.LowerCase
}

// ended deals with the end of an HTTP/1 connection.
func (s *Session) ended(m *Manager, sc *http1.ServerConn, err error) string {
	if bad, ok := errors.AsType[*http1.BadRequest](err); ok {
		m.refuse(s, sc, bad)
		return "http1_protocol_error"
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		m.stats.CxIdleTimeout.Inc()
		return "idle_timeout"
	case errors.Is(err, io.EOF):
		return ""
	}
	return "downstream_connection_termination"
}

// refuse answers a request that could not be understood, which is the last thing that happens on its connection.
func (m *Manager) refuse(s *Session, sc *http1.ServerConn, bad *http1.BadRequest) {
	m.stats.RqTotal.Inc()
	m.stats.RqHTTP1.Inc()
	switch bad.Status {
	case 431:
		m.stats.RqTooLarge.Inc()
		m.stats.CxProtocolError.Inc()
	case 408:
		m.stats.RqHeaderTimeout.Inc()
	default:
		m.stats.CxProtocolError.Inc()
	}
	if bad.Detail == "http1.unexpected_underscore" {
		m.f.http1.Underscores.Inc()
	}
	e := exchanges.Get().(*exchange)
	e.m, e.s = m, s
	e.entry = s.entry
	e.entry.HTTP = &e.http
	e.entry.Start = time.Now()
	var r message.Request
	r.Reset()
	r.Version = message.HTTP11
	e.http = accesslog.HTTP{Request: &r, Details: bad.Detail, Status: bad.Status, Received: -1, UpstreamStart: -1, UpstreamSent: -1, UpstreamHead: -1, UpstreamEnd: -1, Head: -1}
	if strings.HasPrefix(bad.Detail, "http1.") || bad.Status == 431 || bad.Status == 426 {
		e.entry.Flags |= accesslog.DownstreamProtocolError
	}
	e.x.Request, e.x.Conn, e.x.Entry, e.x.Response = &r, s.info, &e.entry, &e.resp
	e.resp.Reset()
	e.resp.Status, e.resp.Version = bad.Status, message.HTTP11
	body, contentType := bad.Body, "text/plain"
	if m.reply != nil {
		body, contentType = m.reply.apply(e, body, contentType)
	}
	if body != "" {
		e.resp.Header.Add("content-type", contentType)
	}
	e.finishHead(true)
	e.http.Response, e.http.LocalBody = &e.resp, body
	sc.Refuse(&e.resp, []byte(body))
	m.stats.completed(e.resp.Status)
	e.entry.BytesSent = uint64(len(body))
	for _, l := range m.logs {
		l.Write(&e.entry)
	}
	e.recycle()
}

// refused logs a request of HTTP/2 that could not be understood, which the codec has dealt with.
func (m *Manager) refused(s *Session, detail string) {
	m.stats.RqTotal.Inc()
	m.stats.RqHTTP2.Inc()
	m.stats.CxProtocolError.Inc()
	if len(m.logs) == 0 {
		return
	}
	e := exchanges.Get().(*exchange)
	e.m, e.s = m, s
	e.entry = s.entry
	e.entry.HTTP, e.entry.Start = &e.http, time.Now()
	e.entry.Flags |= accesslog.DownstreamProtocolError
	var r message.Request
	r.Reset()
	r.Version = message.HTTP2
	e.http = accesslog.HTTP{Request: &r, Details: detail, Received: -1, UpstreamStart: -1, UpstreamSent: -1, UpstreamHead: -1, UpstreamEnd: -1, Head: -1}
	for _, l := range m.logs {
		l.Write(&e.entry)
	}
	e.recycle()
}

// http2Conn makes the codec. It is apart from serveHTTP2 so that the stack of an idle connection stays small.
//
//go:noinline
func (s *Session) http2Conn(m *Manager, conn net.Conn) *http2.ServerConn {
	c := m.conf
	m.stats.CxHTTP2.Inc()
	m.stats.CxHTTP2Active.Inc()
	cfg := http2ServerConfig(c, m.f.http2)
	cfg.Refused = func(detail string) { s.current().refused(s, detail) }
	sc := http2.NewServerConn(conn, cfg)
	s.mu.Lock()
	s.h2 = sc
	s.mu.Unlock()
	s.turn.Store(busyTurn)
	if s.leaving.Load() {
		sc.Shutdown(c.DrainTimeout)
	}
	return sc
}

func (s *Session) serveHTTP2(m *Manager, conn net.Conn) string {
	sc := s.http2Conn(m, conn)
	defer func() {
		sc.Close()
		m.stats.CxHTTP2Active.Dec()
	}()
	err := sc.Serve(func(st message.ServerStream) { s.current().serve(s, st) })
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return ""
	case errors.Is(err, os.ErrDeadlineExceeded):
		m.stats.CxIdleTimeout.Inc()
		return "idle_timeout"
	}
	if message.ReasonOf(err) == message.ProtocolError {
		m.stats.CxProtocolError.Inc()
		return "http2_protocol_error"
	}
	return "downstream_connection_termination"
}
