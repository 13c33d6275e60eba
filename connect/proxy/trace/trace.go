// Package trace follows requests over the proxies that they pass: it reads and writes the headers that carry a trace
// on (W3C Trace Context, B3), decides which requests are recorded, and sends spans to a collector.
package trace

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Stats counts decisions and what became of spans, under http.<prefix>.tracing.
type Stats struct {
	RandomSampling stats.Counter `stat:"tracing.random_sampling"`
	ServiceForced  stats.Counter `stat:"tracing.service_forced"`
	ClientEnabled  stats.Counter `stat:"tracing.client_enabled"`
	NotTraceable   stats.Counter `stat:"tracing.not_traceable"`
	HealthCheck    stats.Counter `stat:"tracing.health_check"`
	SpansSent      stats.Counter `stat:"tracing.spans_sent"`
	SpansDropped   stats.Counter `stat:"tracing.spans_dropped"` // no room, or the collector did not take them
}

// Bounds of what waits for the collector.
const (
	maxQueued     = 2048
	maxBatch      = 512
	flushSpans    = 5
	flushInterval = 5 * time.Second
	exportTimeout = 5 * time.Second
	maxPath       = 256
)

// A Tracer records the requests of a connection manager.
type Tracer struct {
	conf    *model.Tracing
	env     *filter.Env
	stats   *Stats
	zipkin  *model.Zipkin // nil: W3C headers
	queue   chan *Span
	waiting atomic.Int64
	kick    chan struct{}
}

// New returns a tracer, or nil if the configuration only passes headers on. Spans are sent until the environment ends.
func New(conf *model.Tracing, env *filter.Env) (*Tracer, error) {
	if conf == nil || conf.Provider == nil {
		return nil, nil
	}
	t := &Tracer{conf: conf, env: env, stats: stats.Struct[Stats](env.Stats), queue: make(chan *Span, maxQueued), kick: make(chan struct{}, 1)}
	var e exporter
	switch p := conf.Provider.(type) {
	case *model.OpenTelemetry:
		e = newOTLP(p, env)
	case *model.Zipkin:
		t.zipkin = p
		e = &zipkin{conf: p, env: env}
	default:
		return nil, fmt.Errorf("trace provider %T is not supported", p)
	}
	env.Go(func(ctx context.Context) { t.export(ctx, e) })
	return t, nil
}

// An exporter sends spans to a collector.
type exporter interface {
	send(ctx context.Context, spans []*Span) error
}

// A Kind says which side of a request a span is.
type Kind uint8

// The kinds.
const (
	Server Kind = iota
	Client
)

// A Span is a piece of work for a request. A nil Span records nothing.
type Span struct {
	t       *Tracer
	trace   [16]byte
	id      [8]byte
	parent  [8]byte // zero: none
	sampled bool
	state   string // tracestate
	kind    Kind
	name    string
	start   time.Time
	end     time.Time
	failed  bool
	tags    []tag
}

type tag struct {
	key, value string
	number     bool
}

// TraceID returns the id of the trace in hex; empty for a nil Span.
func (s *Span) TraceID() string {
	if s == nil {
		return ""
	}
	return hex.EncodeToString(s.trace[:])
}

// Sampled reports whether the span will be sent.
func (s *Span) Sampled() bool { return s != nil && s.sampled }

// parent is where a request comes from.
type parent struct {
	trace   [16]byte
	span    [8]byte
	sampled bool
	decided bool // sampled says something
	state   string
}

// Start begins the span of a request, which is one of gRPC or HTTP at its beginning. It decides whether to record it.
func (t *Tracer) Start(x *filter.Exchange, operation string) *Span {
	if t == nil {
		return nil
	}
	h := &x.Request.Header
	p, known := t.read(h)
	s := &Span{t: t, start: x.Start, kind: Server, name: strings.Clone(cmp.Or(operation, x.Request.Authority))}
	s.sampled = t.decide(x)
	if known {
		s.trace, s.parent, s.state = p.trace, p.span, strings.Clone(p.state)
		if p.decided {
			s.sampled = p.sampled
		}
	} else {
		binary.BigEndian.PutUint64(s.trace[8:], t.id())
		if t.zipkin == nil || t.zipkin.TraceID128 {
			binary.BigEndian.PutUint64(s.trace[:], t.id())
		}
	}
	if t.zipkin != nil && t.zipkin.SharedSpan && known {
		s.id, s.parent = p.span, [8]byte{}
	} else {
		binary.BigEndian.PutUint64(s.id[:], t.id())
	}
	return s
}

func (t *Tracer) id() uint64 {
	for {
		if n := t.env.Rand(); n != 0 {
			return n
		}
	}
}

// reasonAt is where the id of a request says why it is recorded: the digit that tells the version of a UUID.
const reasonAt = 14

// decide says whether a request without a context of its own is recorded, and notes that in its id.
func (t *Tracer) decide(x *filter.Exchange) bool {
	h := &x.Request.Header
	client, random, overall := t.conf.Client, t.conf.Random, t.conf.Overall
	if r := x.Match.Route; r != nil && r.Tracing != nil {
		client, random, overall = r.Tracing.Client, r.Tracing.Random, r.Tracing.Overall
	}
	id := h.Get("x-request-id")
	// One number from the id for all draws, so that all proxies on the way of a request draw alike.
	draw := x.Random
	packed := len(id) == 36
	reason := byte('4')
	if packed {
		if n, err := strconv.ParseUint(id[:8], 16, 64); err == nil {
			draw = n
		}
		if r := id[reasonAt]; r == '9' || r == 'a' || r == 'b' {
			reason = r
		}
	}
	hit := func(percent float64, n uint64) bool { return percent >= 100 || float64(n%10000) < percent*100 }
	if reason == '4' {
		switch {
		case h.Has("x-client-trace-id") && hit(client, x.Random>>16):
			reason = 'b'
		case h.Has("x-envoy-force-trace"):
			reason = 'a'
		case hit(random, draw):
			reason = '9'
		}
	}
	if reason != '4' && !hit(overall, draw) {
		reason = '4'
	}
	t.count(reason)
	if packed && id[reasonAt] != reason && (reason != '4' || id[reasonAt] == '9' || id[reasonAt] == 'a' || id[reasonAt] == 'b') {
		h.Set("x-request-id", x.Request.Arena.Concat(id[:reasonAt], string(rune(reason)), id[reasonAt+1:]))
	}
	return reason != '4'
}

func (t *Tracer) count(reason byte) {
	switch reason {
	case '9':
		t.stats.RandomSampling.Inc()
	case 'a':
		t.stats.ServiceForced.Inc()
	case 'b':
		t.stats.ClientEnabled.Inc()
	default:
		t.stats.NotTraceable.Inc()
	}
}

// read finds the context that a request brings.
func (t *Tracer) read(h *message.Header) (parent, bool) {
	if t.zipkin != nil {
		return readB3(h)
	}
	return readW3C(h)
}

// readW3C parses "traceparent" as https://www.w3.org/TR/trace-context/ has it; what is malformed counts as absent.
func readW3C(h *message.Header) (p parent, ok bool) {
	v := h.Get("traceparent")
	if len(v) < 55 || v[2] != '-' || v[35] != '-' || v[52] != '-' || v[:2] == "ff" || v[:2] == "00" && len(v) != 55 || len(v) > 55 && v[55] != '-' {
		return parent{}, false
	}
	var version, flags [1]byte
	if !unhex(version[:], v[:2]) || !unhex(p.trace[:], v[3:35]) || !unhex(p.span[:], v[36:52]) || !unhex(flags[:], v[53:55]) || p.trace == [16]byte{} || p.span == [8]byte{} {
		return parent{}, false
	}
	p.sampled, p.decided = flags[0]&1 != 0, true
	if h.Has("tracestate") {
		var a message.Arena
		p.state, _ = h.Lookup("tracestate", &a)
	}
	return p, true
}

// readB3 parses the single header "b3", or the several "x-b3-…".
func readB3(h *message.Header) (p parent, ok bool) {
	sampling := func(v string) {
		switch v {
		case "1", "d", "true":
			p.sampled, p.decided = true, true
		case "0", "false":
			p.decided = true
		}
	}
	id := func(trace, span string) bool {
		if len(trace) == 16 {
			return unhex(p.trace[8:], trace) && unhex(p.span[:], span)
		}
		return unhex(p.trace[:], trace) && unhex(p.span[:], span)
	}
	if v := h.Get("b3"); v != "" {
		parts := strings.Split(v, "-")
		if len(parts) < 2 || len(parts) > 4 || !id(parts[0], parts[1]) {
			return parent{}, false
		}
		if len(parts) > 2 {
			sampling(parts[2])
		}
		return p, p.span != [8]byte{}
	}
	if !id(h.Get("x-b3-traceid"), h.Get("x-b3-spanid")) {
		return parent{}, false
	}
	sampling(h.Get("x-b3-sampled"))
	if h.Get("x-b3-flags") == "1" {
		sampling("1")
	}
	return p, p.span != [8]byte{}
}

// unhex decodes exactly the lower-case digits of b.
func unhex(b []byte, s string) bool {
	if len(s) != 2*len(b) || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.Decode(b, []byte(s))
	return err == nil
}

// Child begins the span of sending the request on.
func (s *Span) Child(name string) *Span {
	if s == nil {
		return nil
	}
	c := &Span{t: s.t, trace: s.trace, parent: s.id, sampled: s.sampled, state: s.state, kind: Client, name: strings.Clone(name), start: time.Now()}
	binary.BigEndian.PutUint64(c.id[:], s.t.id())
	return c
}

// Inject makes the span the parent of whatever the request leads to.
func (s *Span) Inject(r *message.Request) {
	if s == nil {
		return
	}
	h, a := &r.Header, &r.Arena
	flag := byte('0')
	if s.sampled {
		flag = '1'
	}
	if s.t.zipkin == nil {
		b := append(a.Begin(), "00-"...)
		b = append(hex.AppendEncode(b, s.trace[:]), '-')
		b = append(hex.AppendEncode(b, s.id[:]), '-', '0', flag)
		h.Set("traceparent", a.End(b))
		return
	}
	h.Del("b3")
	trace := s.trace[:]
	if [8]byte(trace[:8]) == [8]byte{} {
		trace = trace[8:]
	}
	h.Set("x-b3-traceid", a.End(hex.AppendEncode(a.Begin(), trace)))
	h.Set("x-b3-spanid", a.End(hex.AppendEncode(a.Begin(), s.id[:])))
	if s.parent != [8]byte{} {
		h.Set("x-b3-parentspanid", a.End(hex.AppendEncode(a.Begin(), s.parent[:])))
	} else {
		h.Del("x-b3-parentspanid")
	}
	h.Set("x-b3-sampled", a.End(append(a.Begin(), flag)))
}

// Tag adds a tag.
func (s *Span) Tag(key, value string) {
	if s.Sampled() && value != "" {
		s.tags = append(s.tags, tag{key: key, value: strings.Clone(value)})
	}
}

func (s *Span) number(key string, n uint64) {
	s.tags = append(s.tags, tag{key, strconv.FormatUint(n, 10), true})
}

// Finish ends the span of a request and tells what is known of it.
func (s *Span) Finish(x *filter.Exchange) {
	if !s.Sampled() {
		return
	}
	t, r, e := s.t, x.Request, x.Entry
	h := &r.Header
	scheme := cmp.Or(r.Scheme, "http")
	path := cmp.Or(h.Get("x-envoy-original-path"), r.Path)
	limit := int(t.conf.MaxPath)
	if limit == 0 {
		limit = maxPath
	}
	s.Tag("component", "proxy")
	s.Tag("node_id", t.env.NodeID)
	s.Tag("guid:x-request-id", h.Get("x-request-id"))
	s.Tag("http.url", scheme+"://"+r.Authority+path[:min(len(path), limit)])
	s.Tag("http.method", r.Method)
	s.Tag("downstream_cluster", cmp.Or(h.Get("x-envoy-downstream-service-cluster"), "-"))
	s.Tag("user_agent", cmp.Or(h.Get("user-agent"), "-"))
	s.Tag("http.protocol", r.Version.String())
	s.Tag("peer.address", x.Remote.String())
	s.number("request_size", e.BytesReceived)
	s.outcome(x)
	for i := range t.conf.CustomTags {
		s.custom(x, &t.conf.CustomTags[i])
	}
	if rt := x.Match.Route; rt != nil && rt.Tracing != nil {
		for i := range rt.Tracing.CustomTags {
			s.custom(x, &rt.Tracing.CustomTags[i])
		}
	}
	s.done()
}

// FinishChild ends the span of an attempt.
func (s *Span) FinishChild(x *filter.Exchange) {
	if !s.Sampled() {
		return
	}
	s.Tag("component", "proxy")
	s.Tag("http.method", x.Request.Method)
	s.Tag("upstream_address", x.Entry.UpstreamHost)
	if x.Entry.Attempts > 1 {
		s.number("retry.count", uint64(x.Entry.Attempts-1))
	}
	s.outcome(x)
	s.done()
}

// outcome adds what became of the request.
func (s *Span) outcome(x *filter.Exchange) {
	e := x.Entry
	s.number("response_size", e.BytesSent)
	s.number("http.status_code", uint64(max(e.HTTP.Status, 0)))
	s.Tag("response_flags", e.Flags.String())
	s.Tag("upstream_cluster", e.UpstreamCluster)
	s.Tag("upstream_cluster.name", e.UpstreamCluster)
	if status := x.Response.Header.Get("grpc-status"); status != "" {
		s.Tag("grpc.status_code", status)
		s.failed = status != "0"
	}
	if e.HTTP.Status >= 500 || e.HTTP.Status == 0 {
		s.failed = true
	}
	if s.failed {
		s.Tag("error", "true")
	}
}

func (s *Span) custom(x *filter.Exchange, c *model.CustomTag) {
	v := c.Literal
	switch {
	case c.Env != "":
		v = os.Getenv(c.Env)
	case c.RequestHeader != "":
		v = x.Request.Header.Get(strings.ToLower(c.RequestHeader))
	case c.Metadata != nil:
		md := x.Entry.HTTP.Metadata
		switch c.MetadataOf {
		case model.MetadataOfRoute:
			md = x.Entry.HTTP.RouteMetadata
		case model.MetadataOfCluster:
			md = x.Entry.HTTP.ClusterMetadata
		case model.MetadataOfHost:
			md = x.Entry.HTTP.HostMetadata
		}
		var from any = md[c.Metadata.Namespace]
		for _, key := range c.Metadata.Path {
			m, _ := from.(map[string]any)
			from = m[key]
		}
		if from != nil {
			v = fmt.Sprint(from)
		}
	}
	s.Tag(c.Tag, cmp.Or(v, c.Default))
}

// done hands the span to whom sends it.
func (s *Span) done() {
	s.end = time.Now()
	t := s.t
	select {
	case t.queue <- s:
	default:
		t.stats.SpansDropped.Inc()
		return
	}
	if t.waiting.Add(1) == flushSpans {
		select {
		case t.kick <- struct{}{}:
		default:
		}
	}
}

// export sends spans until ctx ends.
func (t *Tracer) export(ctx context.Context, e exporter) {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-t.kick:
			// Those that come at the same time go along.
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
		for {
			batch := t.take()
			if len(batch) == 0 {
				break
			}
			limited, cancel := context.WithTimeout(ctx, exportTimeout)
			err := e.send(limited, batch)
			cancel()
			if err != nil {
				t.stats.SpansDropped.Add(uint64(len(batch)))
				t.env.Logger.Debug("spans not taken by the collector", "spans", len(batch), "error", err)
				continue
			}
			t.stats.SpansSent.Add(uint64(len(batch)))
		}
	}
}

func (t *Tracer) take() []*Span {
	var batch []*Span
	for len(batch) < maxBatch {
		select {
		case s := <-t.queue:
			batch = append(batch, s)
			t.waiting.Add(-1)
			continue
		default:
		}
		break
	}
	return batch
}
