package hcm

import (
	"errors"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/trace"
)

// An exchange is one request and its response, with all that serving it needs, so that it is one piece of memory
// which the next can use.
type exchange struct {
	x       filter.Exchange
	entry   accesslog.Entry
	http    accesslog.HTTP
	resp    message.Response
	s       *Session
	m       *Manager
	routes  *route.Table
	st      message.ServerStream
	filters []entry
	ran     int // filters whose Request was called
	unseen  int // filters that have not seen the response yet: the first of them

	grpc      bool
	head      bool // the method is HEAD
	responded bool // the final head went downstream
	reset     bool // the stream was broken off
	upgraded  bool
	sent      bool   // something of the request went to a host
	redirects uint32 // that were followed

	idle     time.Duration // how long nothing may happen; 0 for ever
	deadline time.Time     // when the stream must be over; zero never
	armed    time.Time     // when sending to the client was bounded last

	span *trace.Span // nil: not traced

	fwd forward
}

var exchanges = sync.Pool{New: func() any {
	e := new(exchange)
	e.x.Reroute = e.match
	return e
}}

// serve carries an exchange to its end.
func (m *Manager) serve(s *Session, st message.ServerStream) {
	e := exchanges.Get().(*exchange)
	defer func() {
		if r := recover(); r != nil {
			e.crashed(r)
		}
	}()
	e.begin(m, s, st)
	e.run()
	e.end()
	e.recycle()
}

// crashed ends an exchange that met a fault of the program, which must not end those of others.
func (e *exchange) crashed(fault any) {
	m := e.m
	m.env.Logger.Error("a request met a fault of the proxy and was broken off", "fault", fault, "stack", string(debug.Stack()))
	m.stats.Crashed.Inc()
	m.stats.RqActive.Dec()
	m.f.cfg.Memory.Give(e.fwd.charged)
	e.st.Reset(message.LocalReset)
	defer func() {
		_ = recover() // what is left behind belongs to nobody else
	}()
	e.fwd.finish(e)
}

// recycle gives the memory of the exchange to the next.
func (e *exchange) recycle() {
	reroute := e.x.Reroute
	if e.m != nil {
		e.m.f.cfg.Memory.Give(e.fwd.charged)
	}
	e.x.Reset()
	e.x.Reroute = reroute
	e.resp.Reset()
	e.fwd.reset()
	e.entry, e.http = accesslog.Entry{}, accesslog.HTTP{}
	e.s, e.m, e.routes, e.st, e.filters, e.ran, e.unseen = nil, nil, nil, nil, nil, 0, 0
	e.grpc, e.head, e.responded, e.reset, e.upgraded, e.sent = false, false, false, false, false, false
	e.idle, e.deadline, e.span, e.redirects = 0, time.Time{}, nil, 0
	e.armed = time.Time{}
	exchanges.Put(e)
}

func (e *exchange) begin(m *Manager, s *Session, st message.ServerStream) {
	e.m, e.s, e.st = m, s, st
	e.entry = s.entry
	e.entry.HTTP = &e.http
	x := &e.x
	x.Conn, x.Request, x.Response, x.Entry = s.info, st.Request(), &e.resp, &e.entry
	x.Start = time.Now()
	x.Random = m.env.Rand()
	x.Body, x.ResponseBody = st, message.NoBody
	x.BufferLimit = s.bufferLimit
	e.entry.Start = x.Start
	e.http = accesslog.HTTP{Request: x.Request, Received: -1, UpstreamStart: -1, UpstreamSent: -1, UpstreamHead: -1, UpstreamEnd: -1, Head: -1, StreamID: x.Random}
	e.filters = m.filters
	e.idle = m.conf.StreamIdleTimeout
	st2 := m.stats
	st2.RqTotal.Inc()
	st2.RqActive.Inc()
	if x.Request.Version == message.HTTP2 {
		st2.RqHTTP2.Inc()
	} else {
		st2.RqHTTP1.Inc()
	}
}

// run is the life of the exchange.
func (e *exchange) run() {
	x, m := &e.x, e.m
	r := x.Request
	e.head = r.Method == "HEAD"
	if d := m.conf.MaxStreamDuration; d > 0 {
		e.deadline = x.Start.Add(d)
	}
	if d := m.conf.RequestTimeout; d > 0 {
		e.st.SetReadDeadline(x.Start.Add(d))
	}
	e.grpc = x.GRPC()
	if reply := m.canonical(x); reply != nil {
		if reply.Status == 400 {
			e.st.CloseAfter()
		}
		e.answer(reply)
		return
	}
	if r.Expect100 && !m.conf.Proxy100Continue {
		r.Header.Del("expect")
		if err := e.st.Continue(); err != nil {
			e.downstreamFailed(err)
			return
		}
	}
	m.originate(x, &e.s.element)
	e.routes = m.routes.Load()
	e.match()
	if m.tracer != nil {
		e.trace()
	}
	if r.Upgrade != "" && !e.acceptUpgrade() {
		m.stats.RqUpgradeDenied.Inc()
		e.answer(filter.Deny(403, "", "upgrade_failed", 0))
		return
	}
	for i := range e.filters {
		f := &e.filters[i]
		e.ran, e.unseen = i+1, i+1
		if x.Match.Disabled(f.name, f.disabled) {
			continue
		}
		reply := f.f.Request(x)
		if (reply != nil || x.Waited()) && e.st.Gone() {
			e.clientGone()
			return
		}
		if reply != nil {
			if reply.Status >= 400 {
				e.http.Rule = f.name // unless it tells better
			}
			e.answer(reply)
			return
		}
	}
	e.route()
}

// trace begins to record the request, if it is to be recorded.
func (e *exchange) trace() {
	operation := ""
	if r := e.x.Match.Route; r != nil {
		operation = r.Decorator
	}
	e.span = e.m.tracer.Start(&e.x, operation)
	e.span.Inject(e.x.Request)
	e.http.TraceID, e.http.Traced = e.span.TraceID(), e.span.Sampled()
}

// match finds the route of the request as it is now.
func (e *exchange) match() {
	x := &e.x
	if e.routes == nil {
		x.Match = route.Match{}
		return
	}
	x.Match = e.routes.Match(&route.Facts{
		Request: x.Request, Random: x.Random, TLSPresented: x.Conn.Peer != nil, TLSValidated: x.Conn.Peer != nil,
		Internal: x.Internal, Metadata: e.http.Metadata, FilterState: e.http.FilterState, SourceIP: x.Remote,
	})
	e.entry.RouteName, e.http.RouteMetadata = "", nil
	if r := x.Match.Route; r != nil {
		e.entry.RouteName, e.http.RouteMetadata = r.Name, r.Metadata
		e.entry.UpstreamCluster = ""
		if r.Forward != nil && e.m.f.cfg.Upstreams.Get(x.Match.Cluster) != nil {
			e.entry.UpstreamCluster = x.Match.Cluster
		}
	}
	if v := x.Match.VirtualHost; v != nil {
		e.http.VirtualHost = v.Name
	}
}

// acceptUpgrade reports whether the client may switch protocols.
func (e *exchange) acceptUpgrade() bool {
	name := e.x.Request.Upgrade
	u := e.m.upgrades[name]
	on := u != nil && u.enabled
	if r := e.x.Match.Route; r != nil && r.Forward != nil {
		if o, ok := r.Forward.Upgrades[name]; ok {
			on = o.Enabled
		}
	}
	if on && u != nil && u.filters != nil {
		e.filters = u.filters
	}
	return on
}

// route does what the route says.
func (e *exchange) route() {
	x, m := &e.x, e.m
	r := x.Match.Route
	switch {
	case x.Match.TLSRedirect:
		m.stats.Redirect.Inc()
		reply := filter.Deny(301, "", "direct_response", 0)
		reply.Header = []message.Field{{Name: "location", Value: x.Match.Location(x.Request, false)}}
		e.answer(reply)
	case r != nil && r.NonForwarding:
		m.stats.NoCluster.Inc()
		e.answer(filter.Deny(503, "", "cluster_not_found", accesslog.NoClusterFound))
	case r == nil:
		m.stats.NoRoute.Inc()
		e.answer(filter.Deny(404, "", "route_not_found", accesslog.NoRouteFound))
	case r.Redirect != nil:
		m.stats.Redirect.Inc()
		reply := filter.Deny(r.Redirect.Status, "", "direct_response", 0)
		reply.Header = []message.Field{{Name: "location", Value: x.Match.Location(x.Request, x.Conn.TLS != nil)}}
		e.answer(reply)
	case r.Direct != nil:
		m.stats.DirectResponse.Inc()
		e.answer(e.direct(r.Direct))
	default:
		m.stats.Forwarded.Inc()
		e.forward(r.Forward)
	}
}

// direct makes the reply of a route that answers itself.
func (e *exchange) direct(d *model.DirectResponse) *filter.Reply {
	reply := filter.Deny(d.Status, d.Body, "direct_response", 0)
	if d.Status == 201 || d.Status/100 == 3 {
		r := e.x.Request
		reply.Header = append(reply.Header, message.Field{Name: "location", Value: strings.Clone(r.Scheme + "://" + r.Authority + r.Path)})
	}
	if d.Text != "" || d.JSON != nil {
		b, err := newBodyFormat(d.Text, d.JSON, d.ContentType)
		if err != nil {
			return filter.Deny(500, "", "direct_response_format", 0)
		}
		reply.Body = b.render(&e.entry)
		reply.Header = append(reply.Header, message.Field{Name: "content-type", Value: b.contentType})
	} else if d.ContentType != "" {
		reply.Header = append(reply.Header, message.Field{Name: "content-type", Value: d.ContentType})
	}
	return reply
}

// clientGone ends an exchange whose client has left.
func (e *exchange) clientGone() {
	e.noteGone()
	e.breakOff(message.LocalReset)
}

// noteGone notes that the client has left, or reset its stream.
func (e *exchange) noteGone() {
	e.m.stats.RqRxReset.Inc()
	if e.x.Request.Version == message.HTTP2 {
		e.entry.Flags |= accesslog.DownstreamRemoteReset
		e.http.Details = "http2.remote_reset"
		return
	}
	e.entry.Flags |= accesslog.DownstreamConnectionTermination
	e.http.Details = "downstream_remote_disconnect"
}

// breakOff breaks the stream off.
func (e *exchange) breakOff(reason message.Reason) {
	if !e.reset {
		e.reset = true
		e.m.stats.RqTxReset.Inc()
		e.st.Reset(reason)
	}
}

// answer sends a reply of the proxy's own. After the head of a response was sent, it breaks the stream off instead.
func (e *exchange) answer(reply *filter.Reply) {
	x := &e.x
	e.entry.Flags |= reply.Flags
	if reply.Rule != "" {
		e.http.Rule = reply.Rule
	}
	if reply.Details != "" {
		e.http.Details = reply.Details
	}
	if e.responded || reply.Reset {
		e.breakOff(message.LocalReset)
		return
	}
	r := &e.resp
	r.Reset()
	r.Version, r.Status = x.Request.Version, reply.Status
	body, contentType := reply.Body, "text/plain"
	for _, f := range reply.Header {
		if f.Name == "content-type" {
			contentType = f.Value
		}
	}
	if e.grpc {
		// RFC-less but universal: gRPC wants its own status in the only header block.
		status := reply.GRPCStatus
		if status < 0 {
			status = grpcStatus(reply.Status)
		}
		r.Status = 200
		r.Header.Add("content-type", "application/grpc")
		r.Header.Add("grpc-status", strconv.Itoa(status))
		if body != "" {
			r.Header.Add("grpc-message", percentEncode(&r.Arena, body))
		}
		e.http.LocalBody, body = body, ""
	} else {
		if e.m.reply != nil {
			body, contentType = e.m.reply.apply(e, body, contentType)
		}
		e.http.LocalBody = body
		if body != "" {
			r.Header.Add("content-length", integer(&r.Arena, int64(len(body))))
			r.Header.Add("content-type", contentType)
			r.ContentLength = int64(len(body))
		} else if contentType != "text/plain" {
			r.Header.Add("content-type", contentType)
		}
	}
	for _, f := range reply.Header {
		if f.Name != "content-type" {
			r.Header.Add(f.Name, f.Value)
		}
	}
	if e.sent || reply.Flags != 0 || e.http.Rule != "" {
		e.http.Decision = strconv.FormatUint(x.Random, 36)
		r.Header.Add(decisionHeader, e.http.Decision)
	}
	if e.grpc || body == "" {
		x.ResponseBody, r.ContentLength = message.NoBody, 0
	} else {
		x.ResponseBody = &text{body: body}
	}
	e.respond(true)
}

// decisionHeader carries the id of a decision of the proxy; it stands in the access log, too.
const decisionHeader = "x-sarn-decision"

// text is a body that is there.
type text struct{ body string }

func (t *text) Read() ([]byte, error) {
	b := []byte(t.body)
	t.body = ""
	return b, io.EOF
}
func (t *text) Ready() bool              { return true }
func (t *text) Trailer() *message.Header { return nil }

var errEnd = io.EOF

// grpcStatus is the status of gRPC for a status of HTTP.
func grpcStatus(status int) int {
	switch status {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}

// percentEncode encodes a message as gRPC wants it in a header.
func percentEncode(a *message.Arena, s string) string {
	const digits = "0123456789ABCDEF"
	b := a.Begin()
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			b = append(b, '%', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return a.End(b)
}

// respond sends the response that stands in x.Response and x.ResponseBody, after the filters have seen it.
func (e *exchange) respond(local bool) {
	x, m, r := &e.x, e.m, &e.resp
	e.http.Response, e.http.Status = r, r.Status
	for e.unseen > 0 {
		e.unseen--
		f := &e.filters[e.unseen]
		if f.respond == nil || x.Match.Disabled(f.name, f.disabled) {
			continue
		}
		if reply := f.respond.Response(x); reply != nil {
			if reply.Status >= 400 {
				e.http.Rule = f.name
			}
			e.answer(reply)
			return
		}
	}
	if !local && e.http.Details == "" {
		e.http.Details = "via_upstream"
	}
	if r.Status >= 200 {
		x.Match.EditResponse(r, &e.entry)
		e.finishHead(local)
	}
	e.responded = true
	e.http.Response, e.http.Status = r, r.Status
	body := x.ResponseBody
	end := body == message.NoBody
	e.http.Head = time.Since(x.Start)
	if e.s.draining() {
		e.st.CloseAfter()
		m.stats.CxDrainClose.Inc()
	} else if x.Request.Version != message.HTTP2 && !e.requestRead() {
		e.st.CloseAfter() // what is left of the request is not worth waiting for
	}
	e.armWrite()
	if err := e.st.Respond(r, end); err != nil {
		e.downstreamFailed(err)
		return
	}
	if end {
		if err := e.st.Flush(); err != nil {
			e.downstreamFailed(err)
		}
		return
	}
	e.copyBody(body)
}

// requestRead reports whether the client has nothing left to send.
func (e *exchange) requestRead() bool {
	return e.fwd.sentAt.Load() != 0 || e.noBody() && e.x.Request.Method != "CONNECT"
}

// appendTo adds a value to the one that is there.
func appendTo(h *message.Header, name, value string, a *message.Arena) {
	if old, ok := h.Lookup(name, a); ok {
		value = a.Concat(old, ", ", value)
	}
	h.Set(name, value)
}

// finishHead adds what every response gets.
func (e *exchange) finishHead(local bool) {
	m, h := e.m, &e.resp.Header
	c := m.conf
	switch c.ServerHeader {
	case model.ServerOverwrite:
		h.Set("server", c.ServerName)
	case model.ServerIfAbsent:
		if !h.Has("server") {
			h.Add("server", c.ServerName)
		}
	}
	if !h.Has("date") {
		h.Add("date", date())
	}
	if c.Via != "" {
		appendTo(h, "via", c.Via, &e.resp.Arena)
	}
	if c.AlwaysSetRequestID {
		if id := e.x.Request.Header.Get("x-request-id"); id != "" {
			h.Set("x-request-id", id)
		}
	}
}

// copyBody sends the body of the response as it comes.
func (e *exchange) copyBody(body message.Source) {
	up := e.fwd.up
	for {
		p, err := e.readBody(body)
		e.armWrite()
		switch {
		case err == nil:
			if len(p) > 0 {
				if err := e.st.Write(p, false); err != nil {
					e.downstreamFailed(err)
					return
				}
			}
			if !body.Ready() {
				if err := e.st.Flush(); err != nil {
					e.downstreamFailed(err)
					return
				}
			}
		case errors.Is(err, io.EOF):
			if e.upgraded && up != nil {
				e.ended()
			}
			t := body.Trailer()
			e.http.ResponseTrailer = t
			if t != nil && t.Len() > 0 {
				if len(p) > 0 {
					if err := e.st.Write(p, false); err != nil {
						e.downstreamFailed(err)
						return
					}
				}
				err = e.st.WriteTrailer(t)
			} else {
				err = e.st.Write(p, true)
			}
			if err == nil {
				err = e.st.Flush()
			}
			if err != nil {
				e.downstreamFailed(err)
			}
			return
		default:
			if up != nil {
				e.upstreamBroke(err)
			}
			e.breakOff(message.LocalReset)
			return
		}
	}
}

// ended notes which side of an upgraded stream left first.
func (e *exchange) ended() {
	if e.fwd.departed.Load() {
		e.noteGone()
	} else {
		e.entry.Flags |= accesslog.UpstreamConnectionTermination
		e.http.Details = "upstream_reset_after_response_started{connection_termination}"
	}
}

// armWrite bounds how long the client may take to receive what is sent next, as waiting for the host is bounded.
func (e *exchange) armWrite() {
	now := time.Now()
	if now.Sub(e.armed) < pollTime {
		return
	}
	e.armed = now
	limit, _ := e.limit(now)
	if least := now.Add(writeTime); !limit.IsZero() && limit.Before(least) {
		limit = least // the answer may be that the time ran out
	}
	e.st.SetWriteDeadline(limit)
}

// writeTime is what a client has at least to receive what is sent next.
const writeTime = 2 * time.Second

// readBody reads a piece of the response, looking from time to time whether that still makes sense.
func (e *exchange) readBody(body message.Source) ([]byte, error) {
	if e.fwd.up == nil || body.Ready() {
		return body.Read()
	}
	began := time.Since(e.x.Start)
	for {
		limit, why := e.limit(e.x.Start.Add(max(began, time.Duration(e.fwd.progress.Load()))))
		if passed(limit) {
			return nil, e.tooLate(why)
		}
		e.fwd.up.SetReadDeadline(slice(limit))
		p, err := body.Read()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return p, err
		}
		if e.st.Gone() {
			return nil, errGone
		}
	}
}

// passed reports whether a limit has passed.
func passed(limit time.Time) bool { return !limit.IsZero() && !time.Now().Before(limit) }

var errGone = errors.New("the client has left")

// pollTime is how often a wait looks whether the client is still there.
const pollTime = time.Second

// slice is the next time to look up while waiting until limit.
func slice(limit time.Time) time.Time {
	next := time.Now().Add(pollTime)
	if !limit.IsZero() && limit.Before(next) {
		return limit
	}
	return next
}

// A lateness is which of the times has run out.
type lateness uint8

const (
	lateNever lateness = iota
	lateRoute
	lateTry
	lateTryIdle
	lateIdle
	lateStream
)

// limit returns the nearest of the times that bound waiting since quiet.
func (e *exchange) limit(quiet time.Time) (time.Time, lateness) {
	var limit time.Time
	why := lateNever
	nearer := func(t time.Time, w lateness) {
		if !t.IsZero() && (limit.IsZero() || t.Before(limit)) {
			limit, why = t, w
		}
	}
	nearer(e.deadline, lateStream)
	f := &e.fwd
	if sent := time.Duration(f.sentAt.Load()) - 1; sent >= 0 {
		if f.timeout > 0 {
			nearer(e.x.Start.Add(sent+f.timeout), lateRoute)
		}
		if f.perTry > 0 && !e.responded && !f.waiting {
			nearer(e.x.Start.Add(max(sent, f.started)+f.perTry), lateTry)
		}
	}
	if d := f.tryIdle; d > 0 && !f.waiting {
		nearer(quiet.Add(d), lateTryIdle)
	}
	if e.idle > 0 {
		nearer(quiet.Add(e.idle), lateIdle)
	}
	return limit, why
}

// tooLate notes that a time ran out after the response had begun.
func (e *exchange) tooLate(why lateness) error {
	switch why {
	case lateRoute:
		e.entry.Flags |= accesslog.UpstreamRequestTimeout
		e.http.Details = "response_timeout"
		e.fwd.cluster.Stats().RqTimeout.Inc()
	case lateTryIdle:
		e.entry.Flags |= accesslog.UpstreamRequestTimeout
		e.http.Details = "upstream_per_try_idle_timeout"
		e.fwd.cluster.Stats().RqPerTryIdleTimeout.Inc()
	case lateIdle:
		e.entry.Flags |= accesslog.StreamIdleTimeout
		e.http.Details = "stream_idle_timeout"
		e.m.stats.RqIdleTimeout.Inc()
	case lateStream:
		e.http.Details = "max_duration_timeout"
		e.m.stats.RqMaxDuration.Inc()
	}
	return errLate
}

var errLate = errors.New("too late")

// upstreamBroke notes that a host broke its response off.
func (e *exchange) upstreamBroke(err error) {
	if errors.Is(err, errLate) {
		return
	}
	if errors.Is(err, errGone) {
		e.noteGone()
		return
	}
	e.m.stats.ResetAfterHead.Inc()
	e.entry.Flags |= flagOf(message.ReasonOf(err))
	e.http.Details = "upstream_reset_after_response_started{" + message.ReasonOf(err).String() + "}"
	e.fwd.failed = true
	if e.fwd.cluster != nil {
		e.fwd.cluster.Stats().RqRxReset.Inc()
	}
}

func flagOf(r message.Reason) accesslog.Flags {
	switch r {
	case message.ConnectionFailure, message.LocalConnectionFailure, message.RemoteConnectionFailure, message.ConnectionTimeout:
		return accesslog.UpstreamConnectionFailure
	case message.ConnectionTermination:
		return accesslog.UpstreamConnectionTermination
	case message.Overflow:
		return accesslog.UpstreamOverflow
	case message.LocalReset:
		return accesslog.LocalReset
	case message.RemoteReset, message.RemoteRefused:
		return accesslog.UpstreamRemoteReset
	case message.ProtocolError:
		return accesslog.UpstreamProtocolError
	}
	return 0
}

// downstreamFailed notes that the response can't be delivered.
func (e *exchange) downstreamFailed(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		e.entry.Flags |= accesslog.StreamIdleTimeout
		e.http.Details = "stream_idle_timeout"
		e.m.stats.RqIdleTimeout.Inc()
	} else {
		e.noteGone()
	}
	e.breakOff(message.LocalReset)
}

// end counts and logs the exchange.
func (e *exchange) end() {
	x, m := &e.x, e.m
	e.stopPump()
	e.st.SetWriteDeadline(time.Time{})
	for i := range e.filters[:e.ran] {
		if f := e.filters[i].finish; f != nil {
			f.Finish(x)
		}
	}
	s := m.stats
	s.RqActive.Dec()
	if e.http.Status > 0 {
		s.completed(e.http.Status)
	}
	d := time.Since(x.Start)
	s.RqTime.Record(d)
	e.count(d)
	e.entry.Duration = d
	e.entry.BytesReceived, e.entry.BytesSent = e.st.BytesReceived(), e.st.BytesSent()
	e.span.Finish(x)
	if len(m.logs) > 0 {
		if e.http.Details == "" && e.sent {
			e.http.Details = "via_upstream"
		}
		for _, l := range m.logs {
			l.Write(&e.entry)
		}
	}
	e.fwd.finish(e) // the response's strings are no longer good
}

// date returns the value of "date", which is made once a second.
func date() string {
	now := time.Now()
	if d := lastDate.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	d := &dateText{now.Unix(), now.UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")}
	lastDate.Store(d)
	return d.text
}

type dateText struct {
	second int64
	text   string
}

var lastDate atomic.Pointer[dateText]
