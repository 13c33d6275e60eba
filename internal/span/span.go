// Package span records how long the parts of a request take, on its way through the program and over the network: spans in
// the sense of OpenTelemetry. A span belongs to a context.Context, goes over the network as W3C Trace Context has it, and
// waits in a Queue, once it has ended, for who sends it to a collector.
//
// What is not recorded costs next to nothing: there is no span then, and all methods of a nil *Span do nothing.
package span

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

type (
	// A TraceID names a trace: all that becomes of one request.
	TraceID [16]byte
	// An ID names a span in its trace.
	ID [8]byte
)

func (id TraceID) String() string { return hex.EncodeToString(id[:]) }

// A Context is the place of a span in its trace: what goes over the network.
type Context struct {
	Trace   TraceID // zero for no context
	Span    ID
	Sampled bool   // the trace is recorded
	State   string // tracestate, for the vendors in it; it is passed on as it came
}

// A Kind says which side of a call a span is.
type Kind uint8

// The kinds.
const (
	Internal Kind = iota
	Server
	Client
)

// An Attribute tells something about a span: a text or, where that is empty, a number.
type Attribute struct {
	Key, Text string
	Number    int64
}

// Data is what is sent of a span. The attributes must not be secrets, nor anything that users keep to themselves.
type Data struct {
	Context
	Parent     ID // zero for none
	Kind       Kind
	Name       string
	Start, End time.Time
	Failed     bool
	Attributes []Attribute
}

// A Span is a piece of work that is recorded. It is for one goroutine at a time. A nil Span records nothing.
type Span struct {
	Data
	tracer *Tracer
	ended  bool
	room   [8]Attribute // of most spans
}

// A Tracer decides which requests are recorded. It is safe for concurrent use. A nil Tracer records none.
type Tracer struct {
	queue *Queue
	share atomic.Uint64 // 0 while off, else one more than the share of requests in parts of whole
}

// whole is how many values there are of the random part of a trace's id, by which other programs may decide too.
const whole = 1 << 56

// NewTracer returns a tracer that is off. What it records goes to the queue.
func NewTracer(q *Queue) *Tracer { return &Tracer{queue: q} }

// Set turns the tracer on or off. Of the requests that come without a decision of their caller, a share between 0 and 1 is
// recorded.
func (t *Tracer) Set(on bool, share float64) {
	n := uint64(0)
	if on {
		n = 1 + uint64(math.Round(min(max(share, 0), 1)*whole))
	}
	t.share.Store(n)
}

// On reports whether anything may be recorded.
func (t *Tracer) On() bool { return t != nil && t.share.Load() != 0 }

// Begin begins the span of a request that came with a context, the zero Context for none. It returns ctx and nil if the
// request is not to be recorded: its caller says so, or chance if nobody has decided.
func (t *Tracer) Begin(ctx context.Context, from Context, kind Kind, name string) (context.Context, *Span) {
	if from.Trace != (TraceID{}) {
		if !from.Sampled || !t.On() {
			return ctx, nil
		}
		return t.begin(ctx, from, kind, name)
	}
	if !t.On() {
		return ctx, nil
	}
	// Those whose random part is at least a threshold: https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/
	n := rand.Uint64()
	if n%whole < whole-(t.share.Load()-1) {
		return ctx, nil
	}
	from.Sampled = true
	binary.BigEndian.PutUint64(from.Trace[:], rand.Uint64())
	binary.BigEndian.PutUint64(from.Trace[8:], n|1<<63) // the zero id is none
	return t.begin(ctx, from, kind, name)
}

type key struct{}

// begin begins a span below from.
func (t *Tracer) begin(ctx context.Context, from Context, kind Kind, name string) (context.Context, *Span) {
	s := t.below(from, kind, name)
	s.Start = time.Now()
	return context.WithValue(ctx, key{}, s), s
}

func (t *Tracer) below(from Context, kind Kind, name string) *Span {
	s := &Span{tracer: t, Data: Data{Context: from, Parent: from.Span, Kind: kind, Name: name}}
	s.Attributes = s.room[:0]
	for s.Span = (ID{}); s.Span == (ID{}); {
		binary.BigEndian.PutUint64(s.Span[:], rand.Uint64())
	}
	return s
}

// From returns the span that a context belongs to, nil for none.
func From(ctx context.Context) *Span {
	s, _ := ctx.Value(key{}).(*Span)
	return s
}

// Start begins a span below that of the context. It returns ctx and nil if that belongs to none.
func Start(ctx context.Context, kind Kind, name string) (context.Context, *Span) {
	p := From(ctx)
	if p == nil {
		return ctx, nil
	}
	return p.tracer.begin(ctx, p.Context, kind, name)
}

// Past records a span of this program, below s, that was over before it was known of.
func (s *Span) Past(name string, start, end time.Time) {
	if s == nil {
		return
	}
	c := s.tracer.below(s.Context, Internal, name)
	c.Start, c.End = start, end
	c.tracer.queue.Put(&c.Data)
}

// Text adds an attribute. Texts are for collectors to see: no secrets, nothing of what users keep.
func (s *Span) Text(key, value string) {
	if s != nil && !s.ended && value != "" {
		s.Attributes = append(s.Attributes, Attribute{Key: key, Text: value})
	}
}

// Int adds an attribute that is a number.
func (s *Span) Int(key string, n int) {
	if s != nil && !s.ended {
		s.Attributes = append(s.Attributes, Attribute{Key: key, Number: int64(n)})
	}
}

// Fail says that the work failed and in which way, in one of few words: errors tell what users keep.
func (s *Span) Fail(how string) {
	if s != nil && !s.ended {
		s.Failed = true
		s.Text("error.type", how)
	}
}

// TraceID returns the id of the span's trace as text, empty for a nil Span.
func (s *Span) TraceID() string {
	if s == nil {
		return ""
	}
	return s.Trace.String()
}

// Finish ends the span; what comes after that is not recorded.
func (s *Span) Finish() {
	if s == nil || s.ended {
		return
	}
	s.ended, s.End = true, time.Now()
	s.tracer.queue.Put(&s.Data)
}
