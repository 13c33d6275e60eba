package hcm

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// redirected returns where the response that stands in the exchange sends the request, if the route follows that.
func (e *exchange) redirected() *url.URL {
	f, r := &e.fwd, e.x.Request
	p := f.conf.InternalRedirect
	if p == nil || e.redirects >= p.Max || !slices.Contains(p.Statuses, e.resp.Status) || f.sentAt.Load() == 0 || f.tooLong {
		return nil
	}
	to, err := url.Parse(e.resp.Header.Get("location"))
	if err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Host == "" || to.User != nil {
		return nil
	}
	if to.Scheme != r.Scheme && !p.CrossScheme {
		return nil
	}
	if to.Path == "" {
		to.Path = "/"
	}
	return to
}

// follow sends the request where a host has sent it, as if the client had asked for that.
func (e *exchange) follow(to *url.URL) {
	x, m, f := &e.x, e.m, &e.fwd
	r := x.Request
	status := e.resp.Status
	e.http.Details, e.http.Status, e.http.Response = "internal_redirect", status, &e.resp
	e.entry.Duration = time.Since(x.Start)
	for _, l := range m.logs {
		l.Write(&e.entry)
	}
	f.cluster.Stats().RedirectOK.Inc()
	e.release()
	r.Header.Set("x-envoy-original-url", r.Arena.Concat(r.Scheme, "://", r.Authority, r.Path))
	r.Scheme, r.Authority, r.Path = to.Scheme, to.Host, to.RequestURI()
	if status == 303 && r.Method != "GET" && r.Method != "HEAD" {
		r.Method, r.ContentLength = "GET", 0
		r.Header.Del("content-length")
		x.Body, f.body = message.NoBody, f.body[:0]
	}
	e.redirects++
	e.http.Details, e.http.Status, e.http.Response = "", 0, nil
	e.entry.UpstreamHost, e.entry.UpstreamHostName = "", ""
	// What was kept of the body is sent again.
	f.again, f.left, f.on, f.policy, f.status = nil, 0, 0, nil, nil
	f.choice = upstream.Choice{}
	f.attempt = 0
	f.sentAt.Store(0)
	f.mirrored = false
	e.match()
	if rt := x.Match.Route; rt == nil || rt.Forward == nil {
		e.route()
		return
	}
	e.forward(x.Match.Route.Forward)
}

// terminate makes a CONNECT request a connection to a host.
func (e *exchange) terminate(cluster *upstream.Cluster) {
	x, f := &e.x, &e.fwd
	owner, host, err := cluster.Choose(&f.choice)
	if err != nil {
		e.answer(filter.Deny(503, "no healthy upstream", "no_healthy_upstream", accesslog.NoHealthyUpstream))
		return
	}
	f.cluster, f.host = owner, host
	host.Begin()
	e.entry.UpstreamHost, e.entry.UpstreamHostName = host.String(), host.Hostname()
	f.attempt, e.entry.Attempts = 1, 1
	if !f.breaker.Try(upstream.Connections) {
		reply, _ := e.attemptFailed(&message.StreamError{Reason: message.Overflow}, outcome{connect: true})
		e.answer(reply)
		return
	}
	conn, err := owner.Dial(context.Background(), host, upstream.Request{Breaker: f.breaker})
	if err != nil {
		reason := message.RemoteConnectionFailure
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			reason = message.ConnectionTimeout
		}
		reply, _ := e.attemptFailed(&message.StreamError{Reason: reason, Detail: err.Error()}, outcome{connect: true})
		e.answer(reply)
		return
	}
	f.up = &tunnel{conn: conn, buf: make([]byte, 32<<10)}
	e.http.UpstreamHead = time.Since(x.Start)
	e.sent = true
	e.resp.Reset()
	e.resp.Version, e.resp.Status = x.Request.Version, 200
	f.timeout, f.perTry, f.tryIdle = 0, 0, 0
	e.upgraded = true
	e.finishHead(false)
	e.responded = true
	e.http.Response, e.http.Status = &e.resp, 200
	if err = e.st.Respond(&e.resp, false); err == nil {
		err = e.st.Flush()
	}
	if err != nil {
		e.downstreamFailed(err)
		return
	}
	e.startPump()
	x.ResponseBody = f.up
	e.copyBody(f.up)
}

// A tunnel is a bare connection as a stream.
type tunnel struct {
	conn net.Conn
	buf  []byte
}

func (t *tunnel) Read() ([]byte, error) {
	n, err := t.conn.Read(t.buf)
	if n > 0 {
		return t.buf[:n], nil
	}
	if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = &message.StreamError{Reason: message.ConnectionTermination, Sent: true, Err: err}
	}
	return nil, err
}

func (t *tunnel) Ready() bool              { return false }
func (t *tunnel) Trailer() *message.Header { return nil }

func (t *tunnel) Write(p []byte, end bool) error {
	if len(p) > 0 {
		if _, err := t.conn.Write(p); err != nil {
			return err
		}
	}
	if !end {
		return nil
	}
	c := t.conn
	if u, ok := c.(*upstream.Conn); ok {
		c = u.Conn
	}
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

func (t *tunnel) WriteTrailer(*message.Header) error      { return t.Write(nil, true) }
func (t *tunnel) Flush() error                            { return nil }
func (t *tunnel) Send(*message.Request, bool) error       { return errors.ErrUnsupported }
func (t *tunnel) Receive(*message.Response) (bool, error) { return false, errors.ErrUnsupported }
func (t *tunnel) SetReadDeadline(d time.Time)             { _ = t.conn.SetReadDeadline(d) } // fails once it is closed, as reading does
func (t *tunnel) SetWriteDeadline(d time.Time)            { _ = t.conn.SetWriteDeadline(d) }
func (t *tunnel) Close()                                  { t.conn.Close() }
