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
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/internal/span"
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
	flushSpans    = 5
	exportTimeout = 5 * time.Second
	maxPath       = 256
)

// A Tracer records the requests of a connection manager.
type Tracer struct {
	conf   *model.Tracing
	env    *filter.Env
	stats  *Stats
	zipkin *model.Zipkin // nil: W3C headers
	queue  *span.Queue
}

// New returns a tracer, or nil if the configuration only passes headers on. Spans are sent until the environment ends.
func New(conf *model.Tracing, env *filter.Env) (*Tracer, error) {
	if conf == nil || conf.Provider == nil {
		return nil, nil
	}
	t := &Tracer{conf: conf, env: env, stats: stats.Struct[Stats](env.Stats)}
	t.queue = span.NewQueue(maxQueued, flushSpans, func(n int) { t.stats.SpansDropped.Add(uint64(n)) })
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
	send(ctx context.Context, spans []*span.Data) error
}

// A Span is a piece of work for a request. A nil Span records nothing.
type Span struct {
	span.Data
	t *Tracer
}

// TraceID returns the id of the trace in hex; empty for a nil Span.
func (s *Span) TraceID() string {
	if s == nil {
		return ""
	}
	return s.Trace.String()
}

// Sampled reports whether the span will be sent.
func (s *Span) Sampled() bool { return s != nil && s.Context.Sampled }

// parent is where a request comes from.
type parent struct {
	span.Context
	decided bool // Sampled says something
}

// Start begins the span of a request, which is one of gRPC or HTTP at its beginning. It decides whether to record it.
func (t *Tracer) Start(x *filter.Exchange, operation string) *Span {
	if t == nil {
		return nil
	}
	h := &x.Request.Header
	p, known := t.read(h)
	s := &Span{t: t, Data: span.Data{Start: x.Start, Kind: span.Server, Name: strings.Clone(cmp.Or(operation, x.Request.Authority))}}
	sampled := t.decide(x)
	if known {
		s.Context, s.Parent = p.Context, p.Span
		if p.decided {
			sampled = p.Sampled
		}
	} else {
		binary.BigEndian.PutUint64(s.Trace[8:], t.id())
		if t.zipkin == nil || t.zipkin.TraceID128 {
			binary.BigEndian.PutUint64(s.Trace[:], t.id())
		}
	}
	s.Context.Sampled = sampled
	if t.zipkin != nil && t.zipkin.SharedSpan && known {
		s.Parent = span.ID{}
	} else {
		binary.BigEndian.PutUint64(s.Span[:], t.id())
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
	if p.Context, ok = span.Parse(h.Get("traceparent")); !ok {
		return parent{}, false
	}
	p.decided = true
	if h.Has("tracestate") {
		var a message.Arena
		state, _ := h.Lookup("tracestate", &a)
		p.State = strings.Clone(state)
	}
	return p, true
}

// readB3 parses the single header "b3", or the several "x-b3-…".
func readB3(h *message.Header) (p parent, ok bool) {
	sampling := func(v string) {
		switch v {
		case "1", "d", "true":
			p.Sampled, p.decided = true, true
		case "0", "false":
			p.decided = true
		}
	}
	ids := func(trace, id string) bool {
		if len(trace) == 16 {
			return unhex(p.Trace[8:], trace) && unhex(p.Span[:], id)
		}
		return unhex(p.Trace[:], trace) && unhex(p.Span[:], id)
	}
	if v := h.Get("b3"); v != "" {
		parts := strings.Split(v, "-")
		if len(parts) < 2 || len(parts) > 4 || !ids(parts[0], parts[1]) {
			return parent{}, false
		}
		if len(parts) > 2 {
			sampling(parts[2])
		}
		return p, p.Span != span.ID{}
	}
	if !ids(h.Get("x-b3-traceid"), h.Get("x-b3-spanid")) {
		return parent{}, false
	}
	sampling(h.Get("x-b3-sampled"))
	if h.Get("x-b3-flags") == "1" {
		sampling("1")
	}
	return p, p.Span != span.ID{}
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
	c := &Span{t: s.t, Data: span.Data{Context: s.Context, Parent: s.Span, Kind: span.Client, Name: strings.Clone(name), Start: time.Now()}}
	binary.BigEndian.PutUint64(c.Span[:], s.t.id())
	return c
}

// Inject makes the span the parent of whatever the request leads to.
func (s *Span) Inject(r *message.Request) {
	if s == nil {
		return
	}
	h, a := &r.Header, &r.Arena
	if s.t.zipkin == nil {
		h.Set("traceparent", a.End(s.Append(a.Begin())))
		return
	}
	flag := byte('0')
	if s.Context.Sampled {
		flag = '1'
	}
	h.Del("b3")
	trace := s.Trace[:]
	if [8]byte(trace[:8]) == [8]byte{} {
		trace = trace[8:]
	}
	h.Set("x-b3-traceid", a.End(hex.AppendEncode(a.Begin(), trace)))
	h.Set("x-b3-spanid", a.End(hex.AppendEncode(a.Begin(), s.Span[:])))
	if s.Parent != (span.ID{}) {
		h.Set("x-b3-parentspanid", a.End(hex.AppendEncode(a.Begin(), s.Parent[:])))
	} else {
		h.Del("x-b3-parentspanid")
	}
	h.Set("x-b3-sampled", a.End(append(a.Begin(), flag)))
}

// Tag adds a tag.
func (s *Span) Tag(key, value string) {
	if s.Sampled() && value != "" {
		s.Attributes = append(s.Attributes, span.Attribute{Key: key, Text: strings.Clone(value)})
	}
}

func (s *Span) number(key string, n uint64) {
	s.Attributes = append(s.Attributes, span.Attribute{Key: key, Text: strconv.FormatUint(n, 10)})
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
		s.Failed = status != "0"
	}
	if e.HTTP.Status >= 500 || e.HTTP.Status == 0 {
		s.Failed = true
	}
	if s.Failed {
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
	s.End = time.Now()
	s.t.queue.Put(&s.Data)
}

// export sends spans until ctx ends.
func (t *Tracer) export(ctx context.Context, e exporter) {
	t.queue.Run(ctx, func(batch []*span.Data) {
		limited, cancel := context.WithTimeout(ctx, exportTimeout)
		err := e.send(limited, batch)
		cancel()
		if err != nil {
			t.stats.SpansDropped.Add(uint64(len(batch)))
			t.env.Logger.Debug("spans not taken by the collector", "spans", len(batch), "error", err)
			return
		}
		t.stats.SpansSent.Add(uint64(len(batch)))
	})
}
