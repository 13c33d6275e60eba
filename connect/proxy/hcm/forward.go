package hcm

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/pool"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/trace"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// forward is what an exchange knows of sending its request to a host.
type forward struct {
	conf    *model.Forward
	cluster *upstream.Cluster // that the host belongs to
	host    *upstream.Host    // nil between attempts
	up      message.ClientStream
	breaker *upstream.Breaker
	choice  upstream.Choice

	timeout     time.Duration // of the whole, from the end of the request; 0 never
	perTry      time.Duration
	tryIdle     time.Duration
	attempt     int           // from 1
	started     time.Duration // when the attempt began, since the start of the exchange
	failed      bool          // the response broke off
	retrying    bool          // holds one of the cluster's retries
	waiting     bool          // between two attempts
	alternative bool          // a timeout is answered with 204
	again       []string      // headers of a response that ask for another attempt
	bounded     bool          // the cluster bounds the time of the stream, rather than the route or the manager
	span        *trace.Span   // of the attempt; nil: not traced

	on      model.RetryOn
	policy  *model.RetryPolicy
	left    int // retries
	status  []int
	cookie  string
	mirrors []model.Mirror

	// The body of the request. Keep is set if it may be needed again.
	keep     bool
	body     []byte
	trailer  *message.Header
	complete bool  // body and trailer have all of it
	tooLong  bool  // the body was not kept
	charged  int64 // bytes of the body that the proxy's share of memory is charged with
	mirrored bool  // copies of the request were sent
	pumping  bool
	done     chan struct{}

	departed atomic.Bool  // the client has ended what it sends, or left
	sentAt   atomic.Int64 // when the request was complete, since the start, plus one; 0 not yet
	progress atomic.Int64 // the last byte of the request, since the start
	pumpErr  atomic.Pointer[error]
}

func (f *forward) reset() {
	body, avoid := f.body[:0], f.choice.Avoid
	clear(avoid)
	if cap(body) > 64<<10 {
		body = nil
	}
	f.conf, f.cluster, f.host, f.up, f.breaker, f.span = nil, nil, nil, nil, nil, nil
	f.choice = upstream.Choice{Avoid: avoid[:0]}
	f.timeout, f.perTry, f.tryIdle, f.attempt, f.started, f.failed, f.retrying, f.waiting, f.bounded, f.alternative, f.again = 0, 0, 0, 0, 0, false, false, false, false, false, nil
	f.on, f.policy, f.left, f.status, f.cookie, f.mirrors = 0, nil, 0, nil, "", nil
	f.keep, f.body, f.trailer, f.complete, f.tooLong, f.pumping, f.done, f.mirrored = false, body, nil, false, false, false, nil, false
	f.charged = 0
	f.departed.Store(false)
	f.sentAt.Store(0)
	f.progress.Store(0)
	f.pumpErr.Store(nil)
}

// forward sends the request to a host, again if need be, and the response to the client.
func (e *exchange) forward(conf *model.Forward) {
	x, m, f := &e.x, e.m, &e.fwd
	f.conf = conf
	cluster := m.f.cfg.Upstreams.Get(x.Match.Cluster)
	if cluster == nil {
		m.stats.NoCluster.Inc()
		e.answer(filter.Deny(conf.NotFoundStatus, "", "cluster_not_found", accesslog.NoClusterFound))
		return
	}
	f.breaker = cluster.Breaker(conf.Priority)
	if e.noBody() && x.Request.Method != "CONNECT" {
		f.sentAt.Store(int64(time.Since(x.Start)) + 1) // complete, from when its time counts
	}
	e.timeouts()
	if d := cluster.Model().HTTP.MaxStream; d > 0 && (e.deadline.IsZero() || x.Start.Add(d).Before(e.deadline)) {
		e.deadline, f.bounded = x.Start.Add(d), true
	}
	e.retryPolicy()
	e.prepare()
	r := x.Request
	x.Match.EditRequest(r, &e.entry)
	if conf.ConnectTerminate && r.Method == "CONNECT" {
		e.terminate(cluster)
		return
	}
	for {
		f.attempt++
		e.entry.Attempts = f.attempt
		f.started = time.Since(x.Start)
		reply, outcome := e.try(cluster)
		if f.retrying {
			f.retrying = false
			f.breaker.Done(upstream.Retries)
		}
		if outcome.done {
			return
		}
		if !e.wantsRetry(cluster, outcome) {
			if reply != nil {
				e.answer(reply)
				return
			}
			if to := e.redirected(); to != nil {
				e.follow(to)
				return
			}
			e.deliver(outcome.end)
			return
		}
		e.release()
		if !e.backOff(outcome) {
			return
		}
	}
}

// An outcome is how an attempt went.
type outcome struct {
	done    bool // the exchange is over
	got     bool // there is the head of a response
	end     bool // without a body
	reason  message.Reason
	connect bool // no connection came about
	sent    bool // something of the request may have reached the host
	timeout bool // the time of the attempt ran out
	final   bool // not to be tried again, whatever the policy
}

// timeouts works out how long the request may take.
func (e *exchange) timeouts() {
	x, f := &e.x, &e.fwd
	h, c := &x.Request.Header, f.conf
	f.timeout = c.Timeout
	if s := c.MaxStream; s != nil {
		f.timeout = 0
		if s.Duration != nil {
			e.setMax(*s.Duration)
		}
		if s.GRPCMax != nil && e.grpc {
			if d, ok := grpcTimeout(h.Get("grpc-timeout")); ok {
				if *s.GRPCMax > 0 {
					d = min(d, *s.GRPCMax)
				}
				if s.GRPCOffset > 0 && s.GRPCOffset < d {
					d -= s.GRPCOffset
				}
				e.setMax(d)
				e.setGRPCTimeout(d)
			}
		}
	} else if c.MaxGRPC != nil && e.grpc {
		if d, ok := grpcTimeout(h.Get("grpc-timeout")); ok {
			if *c.MaxGRPC > 0 {
				d = min(d, *c.MaxGRPC)
			}
			if c.GRPCOffset > 0 && c.GRPCOffset < d {
				d -= c.GRPCOffset
			}
			f.timeout = d
			e.setGRPCTimeout(d)
		}
	}
	if p := e.x.Match.Retry(); p != nil {
		f.perTry, f.tryIdle = p.PerTry, p.PerTryIdle
	}
	f.alternative = h.Del("x-envoy-upstream-rq-timeout-alt-response")
	if d, ok := millis(h.Get("x-envoy-upstream-rq-timeout-ms")); ok {
		f.timeout = d
	}
	if d, ok := millis(h.Get("x-envoy-upstream-rq-per-try-timeout-ms")); ok {
		f.perTry = d
	}
	h.Del("x-envoy-upstream-rq-timeout-ms")
	h.Del("x-envoy-upstream-rq-per-try-timeout-ms")
	if f.timeout > 0 && f.perTry >= f.timeout {
		f.perTry = 0
	}
	if c.IdleTimeout != nil {
		e.idle = *c.IdleTimeout
	}
	e.tellTimeout(f.timeout)
}

// tellTimeout tells the host how long it has, of what is left of the whole.
func (e *exchange) tellTimeout(left time.Duration) {
	r := e.x.Request
	if p := e.fwd.perTry; p > 0 && (left <= 0 || p < left) {
		left = p
	}
	if left > 0 && !e.m.router.SuppressHeaders {
		r.Header.Set("x-envoy-expected-rq-timeout-ms", integer(&r.Arena, max(left.Milliseconds(), 1)))
	}
}

func (e *exchange) setMax(d time.Duration) {
	e.deadline = time.Time{}
	if d > 0 {
		e.deadline = e.x.Start.Add(d)
	}
}

// setGRPCTimeout tells the host how long the client waits.
func (e *exchange) setGRPCTimeout(d time.Duration) {
	if d <= 0 {
		return
	}
	a := &e.x.Request.Arena
	e.x.Request.Header.Set("grpc-timeout", a.Concat(integer(a, max(d.Milliseconds(), 1)), "m"))
}

// integer makes a number a string of the arena.
func integer(a *message.Arena, n int64) string { return a.End(strconv.AppendInt(a.Begin(), n, 10)) }

func millis(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 31)
	return time.Duration(n) * time.Millisecond, err == nil
}

// grpcTimeout parses "grpc-timeout": up to eight digits and a unit.
func grpcTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}[s[len(s)-1]]
	if !ok || n > uint64(math.MaxInt64/int64(unit)) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// retryPolicy works out when the request is sent again.
func (e *exchange) retryPolicy() {
	f, h := &e.fwd, &e.x.Request.Header
	f.policy = e.x.Match.Retry()
	if p := f.policy; p != nil {
		f.on, f.left, f.status = p.On, int(p.NumRetries), p.Statuses
		if len(p.RequestHeaders) > 0 && !route.Headers(p.RequestHeaders, e.x.Request) {
			f.on = 0
		}
	}
	if f.policy == nil {
		f.left = 1
	}
	for _, name := range [...]string{"x-envoy-retry-on", "x-envoy-retry-grpc-on"} {
		if v := h.Get(name); v != "" {
			on, _ := model.ParseRetryOn(v)
			f.on |= on
			h.Del(name)
		}
	}
	if v := h.Get("x-envoy-retriable-status-codes"); v != "" {
		for s := range strings.SplitSeq(v, ",") {
			if n, err := strconv.Atoi(strings.TrimSpace(s)); err == nil {
				f.status = append(slices.Clip(f.status), n)
			}
		}
		h.Del("x-envoy-retriable-status-codes")
	}
	if v := h.Get("x-envoy-retriable-header-names"); v != "" {
		for name := range strings.SplitSeq(v, ",") {
			f.again = append(f.again, strings.ToLower(strings.TrimSpace(name)))
		}
		h.Del("x-envoy-retriable-header-names")
	}
	if v := h.Get("x-envoy-max-retries"); v != "" {
		if n, err := strconv.ParseUint(v, 10, 31); err == nil {
			f.left = int(n)
		}
		h.Del("x-envoy-max-retries")
	}
	if f.on == 0 {
		f.left = 0
	}
}

// prepare makes what is the same for all attempts.
func (e *exchange) prepare() {
	x, f := &e.x, &e.fwd
	f.mirrors = x.Match.Mirrors()
	f.keep = f.left > 0 || len(f.mirrors) > 0 || f.conf.InternalRedirect != nil
	if len(f.conf.Hash) > 0 {
		f.choice.Hash, f.choice.HasHash, f.cookie = x.Match.Hash(x.Request, x.Remote, e.filterState, e.m.env.Rand)
	}
	f.choice.Destination = x.Conn.Destination
	f.choice.Metadata = subset(x.Match.Subset(), e.http.Metadata["envoy.lb"])
	if p := f.policy; p != nil {
		f.choice.Repicks = max(int(p.HostAttempts), 1)
		f.choice.AvoidCanary, f.choice.AvoidMetadata = p.AvoidCanary, p.AvoidMetadata
		f.choice.AvoidPriorities = p.AvoidPriorities
	}
	if limit := x.Match.BufferLimit(); limit > 0 {
		x.BufferLimit = limit
	}
}

// subset adds what filters have found to what the route wants of hosts. Filters have the last word.
func subset(want []model.MetadataMatch, found map[string]any) []model.MetadataMatch {
	if len(found) == 0 {
		return want
	}
	all := model.NewMetadataMatches(found)
	for _, m := range want {
		if _, ok := found[m.Key]; !ok {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b model.MetadataMatch) int { return strings.Compare(a.Key, b.Key) })
	return all
}

func (e *exchange) filterState(key string) string { return e.http.FilterState[key] }

// try makes one attempt. It returns the reply to send if it failed and is not tried again.
func (e *exchange) try(cluster *upstream.Cluster) (*filter.Reply, outcome) {
	x, f, m := &e.x, &e.fwd, e.m
	owner, host, err := cluster.Choose(&f.choice)
	if err != nil {
		switch {
		case errors.Is(err, upstream.ErrDropped):
			return filter.Deny(503, "drop overload", "drop_overload", accesslog.DropOverload), outcome{final: true}
		default:
			return filter.Deny(503, "no healthy upstream", "no_healthy_upstream", accesslog.NoHealthyUpstream), outcome{final: true}
		}
	}
	f.cluster, f.host = owner, host
	e.entry.UpstreamHost, e.entry.UpstreamHostName = host.String(), host.Hostname()
	e.http.ClusterMetadata, e.http.HostMetadata = owner.Model().Metadata, host.Endpoint().Metadata
	r := x.Request
	if f.attempt == 1 {
		x.Match.Rewrite(r, host.Hostname())
		if m.router.SuppressHeaders {
			r.Header.Del("x-envoy-original-path")
		}
	} else {
		x.Match.AutoHost(r, host.Hostname())
		if sent := time.Duration(f.sentAt.Load()); f.timeout > 0 && sent > 0 {
			e.tellTimeout(f.timeout - (time.Since(x.Start) - sent))
		}
	}
	if x.Match.VirtualHost.AttemptCount {
		r.Header.Set("x-envoy-attempt-count", integer(&r.Arena, int64(f.attempt)))
	}
	if c := m.conf.Tracing; e.span != nil && (c.SpawnUpstreamSpan || m.router.StartChildSpan) {
		f.span = e.span.Child("router " + x.Match.Cluster + " egress")
		f.span.Inject(r)
	}
	host.Begin()
	o := pool.Options{Priority: f.conf.Priority, Downstream: r.Version, Upgrade: r.Upgrade, Deadline: e.connectLimit()}
	if h := owner.Model().HTTP; h.AutoSNI {
		name := r.Authority
		if h.SNIHeader != "" && r.Header.Has(h.SNIHeader) {
			name = r.Header.Get(h.SNIHeader)
		}
		name, _ = splitPort(name)
		o.ServerName, o.VerifyName = strings.Clone(name), h.AutoSAN
	}
	st, info, err := m.f.cfg.Pool.Stream(context.Background(), owner, host, o)
	if err != nil {
		return e.attemptFailed(err, outcome{connect: true})
	}
	f.up = st
	e.http.UpstreamProtocol = info.Version
	if r.Upgrade == "websocket" && r.Version == message.HTTP2 && info.Version != message.HTTP2 && !r.Header.Has("sec-websocket-key") {
		r.Header.Add("sec-websocket-key", m.newKey(&r.Arena))
	}
	if len(m.logs) > 0 {
		e.entry.UpstreamLocal = info.LocalAddress
	}
	e.http.UpstreamStart = time.Since(x.Start)
	if err := e.sendRequest(); err != nil {
		if err == errBody {
			return e.badBody()
		}
		// The host may have said why before it closed; look.
		if out, ok := e.receive(); ok {
			return nil, out
		}
		return e.attemptFailed(err, outcome{sent: true})
	}
	e.sent = true
	return e.awaitHead()
}

// connectLimit bounds waiting for a connection: by the time of the whole, not by that of an attempt.
func (e *exchange) connectLimit() time.Time {
	f, limit := &e.fwd, e.deadline
	if sent := time.Duration(f.sentAt.Load()); sent > 0 && f.timeout > 0 {
		if t := e.x.Start.Add(sent + f.timeout); limit.IsZero() || t.Before(limit) {
			limit = t
		}
	}
	return limit
}

// errBody reports that the request could not be read.
var errBody = errors.New("request body")

// receive reads what has arrived of a head, without waiting for more.
func (e *exchange) receive() (outcome, bool) {
	f := &e.fwd
	f.up.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	e.resp.Reset()
	end, err := f.up.Receive(&e.resp)
	if err != nil || e.resp.Status < 200 {
		return outcome{}, false
	}
	e.gotHead()
	return outcome{got: true, end: end, sent: true}, true
}

// A waker wakes who waits for a host when the client leaves. Streams that are none are looked at from time to time.
type waker interface {
	WakeWhenGone(up message.ClientStream)
}

// awaitHead waits for the head of the response.
func (e *exchange) awaitHead() (*filter.Reply, outcome) {
	x, f, m := &e.x, &e.fwd, e.m
	if w, ok := e.st.(waker); ok {
		w.WakeWhenGone(f.up)
	}
	for {
		quiet := x.Start.Add(max(e.http.UpstreamStart, time.Duration(f.progress.Load())))
		sent := f.sentAt.Load()
		limit, why := e.limit(quiet)
		if passed(limit) {
			return e.timedOut(why)
		}
		f.up.SetReadDeadline(slice(limit))
		if f.sentAt.Load() != sent {
			continue // the request became complete meanwhile, from when times count
		}
		e.resp.Reset()
		end, err := f.up.Receive(&e.resp)
		if err == nil {
			if s := e.resp.Status; s < 200 && s != 101 {
				if s != 103 && (s != 100 || !m.conf.Proxy100Continue) {
					continue
				}
				// A client that can't be told this can't be told the rest either, which shows then.
				if e.st.Respond(&e.resp, false) == nil {
					_ = e.st.Flush()
				}
				continue
			}
			e.gotHead()
			return nil, outcome{got: true, end: end, sent: true}
		}
		if f.pumpErr.Load() != nil {
			return e.badBody()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return e.attemptFailed(err, outcome{sent: true})
		}
		if e.st.Gone() {
			e.cancel()
			e.clientGone()
			return nil, outcome{done: true}
		}
	}
}

// timedOut deals with a time that ran out before the head of a response came.
func (e *exchange) timedOut(why lateness) (*filter.Reply, outcome) {
	f, s := &e.fwd, e.fwd.cluster.Stats()
	if f.host != nil {
		f.cluster.Report(f.host, upstream.Result{Local: upstream.LocalTimeout, Latency: time.Since(e.x.Start) - f.started})
		if why == lateRoute {
			f.host.Stats.RqTimeout.Inc()
		}
	}
	switch why {
	case lateRoute:
		s.RqTimeout.Inc()
		e.cancel()
		return e.gatewayTimeout("response_timeout"), outcome{final: true, sent: true}
	case lateTry:
		s.RqPerTryTimeout.Inc()
		e.cancel()
		return e.gatewayTimeout("upstream_per_try_timeout"), outcome{timeout: true, sent: true, reason: message.LocalReset}
	case lateTryIdle:
		s.RqPerTryIdleTimeout.Inc()
		e.cancel()
		return e.gatewayTimeout("upstream_per_try_idle_timeout"), outcome{timeout: true, sent: true, reason: message.LocalReset}
	case lateStream:
		e.cancel()
		if f.bounded {
			s.RqMaxDuration.Inc()
			return e.late("upstream max stream duration reached", "upstream_max_stream_duration_reached", accesslog.UpstreamMaxStreamDurationReached), outcome{final: true, sent: true}
		}
		e.m.stats.RqMaxDuration.Inc()
		reply := e.late("downstream duration timeout", "max_duration_timeout", 0)
		reply.GRPCStatus = 4
		return reply, outcome{final: true, sent: true}
	}
	e.cancel()
	e.m.stats.RqIdleTimeout.Inc()
	return e.late("stream timeout", "stream_idle_timeout", accesslog.StreamIdleTimeout), outcome{final: true, sent: true}
}

// late makes the reply for a time that ran out: it was the host's if it has the whole request, else the client's.
func (e *exchange) late(body, details string, flags accesslog.Flags) *filter.Reply {
	if e.requestRead() {
		return filter.Deny(504, body, details, flags)
	}
	return filter.Deny(408, body, details, flags)
}

func (e *exchange) gatewayTimeout(details string) *filter.Reply {
	status := 504
	if e.fwd.alternative {
		status = 204
	}
	body := "upstream request timeout"
	if status == 204 {
		body = ""
	}
	return filter.Deny(status, body, details, accesslog.UpstreamRequestTimeout)
}

// attemptFailed makes the reply for an attempt that brought no response.
func (e *exchange) attemptFailed(err error, out outcome) (*filter.Reply, outcome) {
	f := &e.fwd
	s := f.cluster.Stats()
	se, _ := errors.AsType[*message.StreamError](err)
	reason := message.ReasonOf(err)
	if se == nil && errors.Is(err, os.ErrDeadlineExceeded) && out.connect {
		_, why := e.limit(time.Now())
		return e.timedOut(why)
	}
	out.reason = reason
	if se != nil && !se.Sent && !out.connect {
		out.sent = false
	}
	local := upstream.LocalReset
	if out.connect {
		local = upstream.LocalConnectFailure
		if reason == message.ConnectionTimeout {
			local = upstream.LocalTimeout
		}
	} else {
		s.RqRxReset.Inc()
	}
	if reason != message.Overflow {
		f.cluster.Report(f.host, upstream.Result{Local: local, Latency: time.Since(e.x.Start) - f.started})
	}
	text := "upstream connect error or disconnect/reset before headers. "
	if f.attempt > 1 {
		text += "retried and the latest "
	}
	text += "reset reason: " + reason.String()
	details := "upstream_reset_before_response_started{" + strings.ReplaceAll(reason.String(), " ", "_")
	if out.connect && se != nil && se.Detail != "" && reason != message.ConnectionTimeout && reason != message.Overflow {
		details += "|" + strings.ReplaceAll(se.Detail, " ", "_")
		e.entry.UpstreamFailure = se.Detail
	}
	status := 503
	if reason == message.ProtocolError {
		status = 502
	}
	reply := filter.Deny(status, text, details+"}", flagOf(reason))
	if reason == message.Overflow {
		if se != nil && se.Detail != "" {
			e.entry.UpstreamHost, e.entry.UpstreamHostName = "", "" // none came so far as to have a host
		}
		reply.Header = append(reply.Header, message.Field{Name: "x-envoy-overloaded", Value: "true"})
	}
	return reply, out
}

// newKey makes what a client proves with that a host speaks WebSocket (RFC 6455 section 4.1).
func (m *Manager) newKey(a *message.Arena) string {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:], m.env.Rand())
	binary.NativeEndian.PutUint64(b[8:], m.env.Rand())
	return a.End(base64.StdEncoding.AppendEncode(a.Begin(), b[:]))
}

// badBody deals with a request that broke off or was malformed.
func (e *exchange) badBody() (*filter.Reply, outcome) {
	f := &e.fwd
	cause := *f.pumpErr.Load()
	e.cancel()
	if r, ok := errors.AsType[*filter.Refused](cause); ok {
		e.st.CloseAfter()
		return r.Reply, outcome{final: true, sent: true}
	}
	if se, ok := errors.AsType[*message.StreamError](cause); ok && se.Reason == message.ProtocolError {
		e.m.stats.CxProtocolError.Inc()
		e.entry.Flags |= accesslog.DownstreamProtocolError
		e.st.CloseAfter()
		return filter.Deny(400, "Bad Request", se.Detail, accesslog.DownstreamProtocolError), outcome{final: true, sent: true}
	}
	if errors.Is(cause, os.ErrDeadlineExceeded) {
		e.m.stats.RqTimeout.Inc()
		return filter.Deny(408, "request timeout", "request_overall_timeout", 0), outcome{final: true, sent: true}
	}
	e.clientGone()
	return nil, outcome{done: true}
}

// gotHead takes note of the head of a response.
func (e *exchange) gotHead() {
	x, f := &e.x, &e.fwd
	e.http.UpstreamHead = time.Since(x.Start)
	r := &e.resp
	res := upstream.Result{Status: r.Status, Latency: e.http.UpstreamHead - f.started}
	if r.Status == 503 || r.Status == 429 {
		if n, err := strconv.ParseUint(r.Header.Get("retry-after"), 10, 16); err == nil {
			res.RetryAfter = time.Duration(n) * time.Second
		}
	}
	if e.grpc {
		if s := r.Header.Get("grpc-status"); s != "" {
			if n, err := strconv.Atoi(s); err == nil {
				res.GRPCStatus, res.GRPC = n, true
			}
		}
	}
	f.cluster.Report(f.host, res)
	f.cluster.CountResponse(r.Status)
	if r.Header.Has("x-envoy-immediate-health-check-fail") {
		f.cluster.FailHealth(f.host)
	}
}

// wantsRetry decides whether the request is sent again, and takes what that needs.
func (e *exchange) wantsRetry(cluster *upstream.Cluster, out outcome) bool {
	f, s := &e.fwd, cluster.Stats()
	if f.on == 0 || out.final || !e.retriable(out) {
		if f.attempt > 1 && !out.final {
			s.RqRetrySuccess.Inc() // whatever came is not what is tried again
		}
		return false
	}
	if e.x.Request.Upgrade != "" && out.sent {
		return false
	}
	if f.left <= 0 {
		s.RqRetryLimitExceeded.Inc()
		e.entry.Flags |= accesslog.UpstreamRetryLimitExceeded
		return false
	}
	if out.sent && (f.sentAt.Load() == 0 || f.tooLong) {
		e.m.stats.RetrySkipped.Inc()
		return false
	}
	if !f.breaker.Try(upstream.Retries) {
		e.entry.Flags |= accesslog.UpstreamOverflow
		return false
	}
	f.retrying = true
	f.left--
	s.RqRetry.Inc()
	if f.policy != nil && (f.policy.AvoidHosts || f.policy.AvoidPriorities) && f.host != nil {
		f.choice.Avoid = append(f.choice.Avoid, f.host)
	}
	return true
}

// retriable reports whether the policy covers an outcome.
func (e *exchange) retriable(out outcome) bool {
	on := e.fwd.on
	if !out.got {
		switch {
		case out.reason == message.Overflow:
			return false
		case on&(model.Retry5xx|model.RetryGatewayError|model.RetryReset) != 0:
			return true
		case out.connect && on&model.RetryConnectFailure != 0:
			return true
		case on&model.RetryRefusedStream != 0 && out.reason == message.RemoteRefused:
			return true
		case on&model.RetryResetBeforeRequest != 0 && !out.sent:
			return true
		}
		return false
	}
	r := &e.resp
	if r.Header.Has("x-envoy-ratelimited") {
		return on&model.RetryEnvoyRateLimited != 0
	}
	s := r.Status
	switch {
	case on&model.Retry5xx != 0 && s >= 500 && s < 600,
		on&model.RetryGatewayError != 0 && s >= 502 && s <= 504,
		on&model.Retry4xx != 0 && s == 409,
		on&model.RetryStatusCodes != 0 && slices.Contains(e.fwd.status, s):
		return true
	}
	if p := e.fwd.policy; on&model.RetryHeaders != 0 && p != nil {
		for i := range p.Headers {
			if route.ResponseHeaders(p.Headers[i:i+1], r) {
				return true
			}
		}
	}
	if on&model.RetryHeaders != 0 {
		for _, name := range e.fwd.again {
			if r.Header.Has(name) {
				return true
			}
		}
	}
	const grpc = model.RetryGRPCCancelled | model.RetryGRPCDeadline | model.RetryGRPCInternal | model.RetryGRPCExhausted | model.RetryGRPCUnavailable
	if on&grpc != 0 {
		switch r.Header.Get("grpc-status") {
		case "1":
			return on&model.RetryGRPCCancelled != 0
		case "4":
			return on&model.RetryGRPCDeadline != 0
		case "8":
			return on&model.RetryGRPCExhausted != 0
		case "13":
			return on&model.RetryGRPCInternal != 0
		case "14":
			return on&model.RetryGRPCUnavailable != 0
		}
	}
	return false
}

// backOff waits before the next attempt. It reports false if the exchange ended meanwhile.
func (e *exchange) backOff(out outcome) bool {
	e.fwd.waiting = true
	defer func() { e.fwd.waiting = false }()
	until := time.Now().Add(e.waitTime(out))
	for time.Until(until) > 0 {
		limit, why := e.limit(until)
		if passed(limit) {
			reply, _ := e.timedOut(why)
			e.answer(reply)
			return false
		}
		next := slice(limit)
		if until.Before(next) {
			next = until
		}
		time.Sleep(time.Until(next))
		if e.st.Gone() {
			e.clientGone()
			return false
		}
	}
	return true
}

func (e *exchange) waitTime(out outcome) time.Duration {
	f := &e.fwd
	s := f.cluster.Stats()
	if p := f.policy; p != nil && p.RateLimited != nil && out.got {
		for _, rh := range p.RateLimited.Headers {
			v := e.resp.Header.Get(rh.Name)
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < 0 {
				continue
			}
			d := time.Duration(min(n, 1<<32)) * time.Second
			if rh.Unix {
				d = time.Until(time.Unix(n, 0))
			}
			if d > 0 && d <= p.RateLimited.Max {
				s.RqRetryRateLimited.Inc()
				return d + time.Duration(e.m.env.Rand()%uint64(d/2+1))
			}
		}
	}
	s.RqRetryExponential.Inc()
	base, limit := 25*time.Millisecond, 250*time.Millisecond
	if p := f.policy; p != nil && p.BaseBackOff > 0 {
		base, limit = p.BaseBackOff, max(p.MaxBackOff, p.BaseBackOff)
	}
	d := base * time.Duration(1<<min(f.attempt, 20)-1)
	d = min(d, limit)
	return time.Duration(e.m.env.Rand() % uint64(max(d, 1)))
}

// deliver sends the response of the host to the client.
func (e *exchange) deliver(end bool) {
	x, f, m := &e.x, &e.fwd, e.m
	r := &e.resp
	if r.Status == 101 || r.Status == 200 && x.Request.Upgrade != "" {
		e.upgrade()
		return
	}
	if !m.router.SuppressHeaders && e.requestRead() {
		ms := (e.http.UpstreamHead - f.started).Milliseconds()
		r.Header.Set("x-envoy-upstream-service-time", integer(&r.Arena, ms))
	}
	if x.Match.VirtualHost.AttemptCountResponse {
		r.Header.Set("x-envoy-attempt-count", integer(&r.Arena, int64(f.attempt)))
	}
	if f.cookie != "" {
		r.Header.Add("set-cookie", f.cookie)
	}
	x.ResponseBody = message.NoBody
	if !end {
		x.ResponseBody = f.up
	}
	e.respond(false)
	e.http.UpstreamEnd = time.Since(x.Start)
	if !f.failed {
		f.cluster.Stats().RqTime.Record(e.http.UpstreamEnd - f.started)
	}
}

// cancel gives up the attempt in progress.
func (e *exchange) cancel() {
	if e.fwd.up == nil {
		return
	}
	e.fwd.cluster.Stats().RqTxReset.Inc()
	e.release()
}

// release gives the stream of an attempt back.
func (e *exchange) release() {
	f := &e.fwd
	e.stopPump()
	if f.span != nil {
		f.span.FinishChild(&e.x)
		f.span = nil
	}
	if f.up != nil {
		if w, ok := e.st.(waker); ok {
			w.WakeWhenGone(nil)
		}
		f.up.Close()
		f.up = nil
	}
	if f.host != nil {
		f.host.End()
		f.host = nil
	}
}

// finish gives back what the exchange still holds.
func (f *forward) finish(e *exchange) {
	if f.conf == nil {
		return
	}
	e.release()
	if f.retrying {
		f.retrying = false
		f.breaker.Done(upstream.Retries)
	}
}

// sendRequest sends the head, and the body as far as it is there. The rest is sent by a goroutine.
func (e *exchange) sendRequest() error {
	x, f := &e.x, &e.fwd
	r := x.Request
	if x.Body == message.NoBody || f.attempt == 1 && e.noBody() {
		f.complete = true
		if err := f.up.Send(r, true); err != nil {
			return err
		}
		e.requestSent()
		return f.up.Flush()
	}
	if err := f.up.Send(r, false); err != nil {
		return err
	}
	if f.complete {
		if err := e.replay(); err != nil {
			return err
		}
		e.requestSent()
		return f.up.Flush()
	}
	if r.Upgrade != "" {
		return f.up.Flush()
	}
	for x.Body.Ready() {
		end, err := e.moveBody(f.up)
		if err != nil {
			return err
		}
		if end {
			e.requestSent()
			return f.up.Flush()
		}
	}
	if err := f.up.Flush(); err != nil {
		return err
	}
	e.startPump()
	return nil
}

// noBody reports whether the request ended with its head.
func (e *exchange) noBody() bool {
	r := e.x.Request
	return r.ContentLength == 0 && r.Upgrade == "" && e.x.Body == message.Source(e.st)
}

// replay sends the body that was kept.
func (e *exchange) replay() error {
	f := &e.fwd
	if f.trailer != nil && f.trailer.Len() > 0 {
		if len(f.body) > 0 {
			if err := f.up.Write(f.body, false); err != nil {
				return err
			}
		}
		return f.up.WriteTrailer(f.trailer)
	}
	return f.up.Write(f.body, true)
}

// moveBody moves one piece of the request's body.
func (e *exchange) moveBody(to message.Sink) (end bool, err error) {
	x, f := &e.x, &e.fwd
	p, err := x.Body.Read()
	end = errors.Is(err, io.EOF)
	if err != nil {
		f.departed.Store(true)
	}
	if err != nil && !end {
		cause := err
		f.pumpErr.Store(&cause)
		return false, errBody
	}
	f.progress.Store(int64(time.Since(x.Start)))
	if f.keep && !f.tooLong {
		if len(f.body)+len(p) > x.BufferLimit || !e.m.f.cfg.Memory.Take(int64(len(p))) {
			f.tooLong, f.body = true, f.body[:0]
		} else {
			f.charged += int64(len(p))
			f.body = append(f.body, p...)
		}
	}
	if !end {
		return false, to.Write(p, false)
	}
	f.complete = true
	t := x.Body.Trailer()
	if t != nil && t.Len() > 0 {
		f.trailer, e.http.RequestTrailer = t, t
	}
	e.requestComplete(time.Since(x.Start))
	if f.trailer != nil {
		if len(p) > 0 {
			if err := to.Write(p, false); err != nil {
				return true, err
			}
		}
		return true, to.WriteTrailer(t)
	}
	return true, to.Write(p, true)
}

// requestComplete notes that the request is complete, from when its time counts: before the host has all of it and can answer.
func (e *exchange) requestComplete(d time.Duration) {
	if e.http.Received < 0 {
		e.http.Received = d
	}
	if !e.fwd.mirrored {
		e.fwd.mirrored = true
		if e.m.conf.RequestTimeout > 0 {
			e.st.SetReadDeadline(time.Time{})
		}
		e.mirror()
	}
	e.fwd.sentAt.CompareAndSwap(0, int64(d)+1)
}

// requestSent notes that the host has the request, which is complete.
func (e *exchange) requestSent() {
	d := time.Since(e.x.Start)
	e.requestComplete(d)
	e.http.UpstreamSent = d
}

// startPump moves the rest of the body by a goroutine of its own.
func (e *exchange) startPump() {
	f, up := &e.fwd, e.fwd.up
	f.pumping, f.done = true, make(chan struct{})
	go func() {
		defer close(f.done)
		for {
			end, err := e.moveBody(up)
			if err != nil {
				if err == errBody {
					up.SetReadDeadline(time.Unix(1, 0)) // wakes who waits for the response
				}
				return // else the host has closed, which its response or the lack of one tells
			}
			if end {
				break
			}
			if !e.x.Body.Ready() {
				if up.Flush() != nil {
					return
				}
			}
		}
		if up.Flush() != nil {
			return
		}
		e.requestSent()
		up.SetReadDeadline(time.Unix(1, 0)) // the times count from now
	}()
}

// stopPump ends the goroutine that moves the body.
func (e *exchange) stopPump() {
	f := &e.fwd
	if !f.pumping {
		return
	}
	f.pumping = false
	select {
	case <-f.done:
		return
	default:
	}
	e.st.SetReadDeadline(time.Unix(1, 0))
	f.up.SetWriteDeadline(time.Unix(1, 0))
	<-f.done
	e.st.SetReadDeadline(time.Time{})
}

// upgrade carries the bytes of an upgraded stream both ways.
func (e *exchange) upgrade() {
	x, f, m := &e.x, &e.fwd, e.m
	r := &e.resp
	e.upgraded = true
	f.timeout, f.perTry, f.tryIdle = 0, 0, 0
	x.Match.EditResponse(r, &e.entry)
	if x.Request.Upgrade == "websocket" {
		// RFC 6455 section 4 proves to HTTP/1 that the host understood; HTTP/2 (RFC 8441) has no such thing.
		if x.Request.Version == message.HTTP2 {
			r.Header.Del("sec-websocket-accept")
		} else if key := x.Request.Header.Get("sec-websocket-key"); key != "" && e.http.UpstreamProtocol == message.HTTP2 && !r.Header.Has("sec-websocket-accept") {
			sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
			r.Header.Add("sec-websocket-accept", base64.StdEncoding.EncodeToString(sum[:]))
		}
	}
	e.finishHead(false)
	e.responded = true
	e.http.Response, e.http.Status = r, r.Status
	e.armWrite()
	m.stats.CxUpgrades.Inc()
	m.stats.CxUpgraded.Inc()
	defer m.stats.CxUpgraded.Dec()
	if err := e.st.Respond(r, false); err != nil {
		e.downstreamFailed(err)
		return
	}
	if err := e.st.Flush(); err != nil {
		e.downstreamFailed(err)
		return
	}
	e.startPump()
	x.ResponseBody = f.up
	e.copyBody(f.up)
}

// mirror sends copies of the request elsewhere.
func (e *exchange) mirror() {
	f, x := &e.fwd, &e.x
	if len(f.mirrors) == 0 || !f.complete || f.tooLong {
		return
	}
	for i := range f.mirrors {
		c := &f.mirrors[i]
		if c.Fraction != nil && !c.Fraction.Hit(x.Random) {
			continue
		}
		name := c.Cluster
		if c.ClusterHeader != "" {
			name = x.Request.Header.Get(c.ClusterHeader)
		}
		r := &message.Request{Version: x.Request.Version, Method: strings.Clone(x.Request.Method), Scheme: strings.Clone(x.Request.Scheme), Path: strings.Clone(x.Request.Path), ContentLength: int64(len(f.body))}
		r.Authority = strings.Clone(x.Request.Authority)
		if c.HostRewrite != "" {
			r.Authority = c.HostRewrite
		}
		if !c.NoShadowHost {
			host, port := splitPort(r.Authority)
			r.Authority = host + "-shadow" + port
		}
		r.Header.CopyFrom(&x.Request.Header)
		r.Header.CloneStrings()
		appendTo(&r.Header, "x-forwarded-for", x.Conn.Local.Addr().String(), &r.Arena)
		if edits, err := route.NewEdits(c.RequestEdits); err == nil { // checked with the route
			edits.Apply(&r.Header, &r.Arena, &e.entry)
		}
		body := slices.Clone(f.body)
		var trailer *message.Header
		if f.trailer != nil && f.trailer.Len() > 0 {
			trailer = new(message.Header)
			trailer.CopyFrom(f.trailer)
			trailer.CloneStrings()
		}
		timeout := f.conf.Timeout
		if timeout <= 0 {
			timeout = model.DefaultRouteTimeout
		}
		client := e.m.f.client
		e.m.env.Go(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			_, _, _ = client.do(ctx, name, r, body, trailer, -1) // nobody is interested in the answer
		})
	}
}
