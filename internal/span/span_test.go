package span_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/sarnmesh/sarn/internal/span"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// recording returns a tracer of everything, and its queue.
func recording(t testing.TB, share float64) (*span.Tracer, *span.Queue) {
	q := span.NewQueue(1000, 1000, func(int) { t.Error("a span was dropped") })
	tracer := span.NewTracer(q)
	tracer.Set(true, share)
	return tracer, q
}

func TestSpansOfARequestAreOneTrace(t *testing.T) {
	tracer, q := recording(t, 0)
	from, _ := span.Parse(parent)
	from.State = "vendor=1"
	ctx, server := tracer.Begin(t.Context(), from, span.Server, "GET /v1/kv/*")
	server.Text("http.request.method", "GET")
	server.Int("http.response.status_code", 200)
	inner, client := span.Start(ctx, span.Client, "sarn/KV.Get")
	client.Fail("unreachable")
	client.Past("wait", time.Unix(1, 0), time.Unix(2, 0))

	// Over the network.
	md, _ := metadata.FromOutgoingContext(client.Outgoing(inner))
	there, remote := tracer.Begin(t.Context(), span.Incoming(metadata.NewIncomingContext(t.Context(), md)), span.Server, "sarn/KV.Get")
	if span.From(there) != remote || remote.TraceID() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("the span of the context is %v", span.From(there))
	}
	for _, s := range []*span.Span{remote, client, server} {
		s.Finish()
		s.Finish() // once is enough
		s.Text("late", "x")
		s.Fail("late")
	}
	got := q.Take()
	if len(got) != 4 {
		t.Fatalf("%d spans", len(got))
	}
	wait, r, c, s := got[0], got[1], got[2], got[3]
	if s.Parent != from.Span || c.Parent != s.Span || r.Parent != c.Span || wait.Parent != c.Span {
		t.Errorf("parents %x of %x, %x of %x, %x of %x, %x", s.Parent, s.Span, c.Parent, c.Span, r.Parent, r.Span, wait.Parent)
	}
	for _, d := range got {
		if d.Trace != from.Trace || d.State != "vendor=1" || d.End.Before(d.Start) || strings.Contains(fmt.Sprint(d.Attributes), "late") {
			t.Errorf("%+v", d)
		}
	}
	data, err := proto.Marshal(span.Encode(map[string]string{"service.name": "sarn", "x\xff": "y\xff"}, "tests", got))
	if err != nil {
		t.Fatal(err)
	}
	var m tracev1.TracesData
	if err := proto.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(fmt.Sprint(&m), "  ", " ")
	for _, want := range []string{
		`key:"service.name" value:{string_value:"sarn"}`, `name:"tests"`, `kind:SPAN_KIND_SERVER`, `kind:SPAN_KIND_CLIENT`, `kind:SPAN_KIND_INTERNAL`,
		`key:"http.response.status_code" value:{int_value:200}`, `key:"error.type" value:{string_value:"unreachable"}`, `status:{code:STATUS_CODE_ERROR}`,
		`trace_state:"vendor=1"`, `start_time_unix_nano:1000000000 end_time_unix_nano:2000000000`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestSampling(t *testing.T) {
	sampled, _ := span.Parse(parent)
	refused := sampled
	refused.Sampled = false
	for _, tt := range []struct {
		name     string
		on       bool
		share    float64
		from     span.Context
		min, max int // of 10000
	}{
		{"off", false, 1, span.Context{}, 0, 0},
		{"off, the caller records", false, 1, sampled, 0, 0},
		{"all", true, 1, span.Context{}, 10000, 10000},
		{"more than all", true, 7, span.Context{}, 10000, 10000},
		{"none", true, 0, span.Context{}, 0, 0},
		{"less than none", true, -1, span.Context{}, 0, 0},
		{"a tenth", true, 0.1, span.Context{}, 800, 1200},
		{"the caller records", true, 0, sampled, 10000, 10000},
		{"the caller does not", true, 1, refused, 0, 0},
	} {
		var dropped atomic.Int64
		tracer := span.NewTracer(span.NewQueue(1, 1, func(n int) { dropped.Add(int64(n)) }))
		tracer.Set(tt.on, tt.share)
		n := 0
		for range 10000 {
			ctx, s := tracer.Begin(t.Context(), tt.from, span.Server, "x")
			if (s == nil) != (span.From(ctx) == nil) {
				t.Fatalf("%s: span %v, that of the context %v", tt.name, s, span.From(ctx))
			}
			if s != nil {
				n++
				if s.Trace == (span.TraceID{}) || s.Span == (span.ID{}) || !s.Sampled {
					t.Fatalf("%s: %+v", tt.name, s.Context)
				}
			}
			s.Finish()
		}
		if n < tt.min || n > tt.max {
			t.Errorf("%s: %d of 10000 were recorded", tt.name, n)
		}
		if tracer.On() != tt.on || int64(max(n-1, 0)) != dropped.Load() {
			t.Errorf("%s: on %v, %d of %d dropped", tt.name, tracer.On(), dropped.Load(), n)
		}
	}
}

// What is not recorded is nil, and may be used all the same.
func TestNothingIsRecordedByNobody(t *testing.T) {
	var none *span.Tracer
	if none.On() {
		t.Error("no tracer is on")
	}
	from, _ := span.Parse(parent)
	for _, from := range []span.Context{{}, from} {
		if _, s := none.Begin(t.Context(), from, span.Server, "x"); s != nil {
			t.Error("no tracer recorded a request")
		}
	}
	ctx, s := span.Start(t.Context(), span.Client, "x")
	s.Text("a", "b")
	s.Int("a", 1)
	s.Fail("x")
	s.Past("x", time.Now(), time.Now())
	s.Finish()
	if s != nil || s.TraceID() != "" || ctx != t.Context() || s.Outgoing(ctx) != ctx {
		t.Errorf("%v", s)
	}
}

func TestParse(t *testing.T) {
	const id, of = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, tt := range []struct {
		name, value string
		ok, sampled bool
	}{
		{"sampled", "00-" + id + "-" + of + "-01", true, true},
		{"not sampled", "00-" + id + "-" + of + "-00", true, false},
		{"with flags to come", "00-" + id + "-" + of + "-fe", true, false},
		{"a later version with more", "cc-" + id + "-" + of + "-01-what", true, true},
		{"a later version with more, not apart", "cc-" + id + "-" + of + "-01what", false, false},
		{"version 00 with more", "00-" + id + "-" + of + "-01-what", false, false},
		{"version ff", "ff-" + id + "-" + of + "-01", false, false},
		{"upper case", "00-0AF7651916CD43DD8448EB211C80319C-" + of + "-01", false, false},
		{"no hexadecimal number", "00-" + id + "-" + of + "-0x", false, false},
		{"no trace", "00-00000000000000000000000000000000-" + of + "-01", false, false},
		{"no span", "00-" + id + "-0000000000000000-01", false, false},
		{"short", "00-" + id, false, false},
		{"empty", "", false, false},
	} {
		c, ok := span.Parse(tt.value)
		if ok != tt.ok || c.Sampled != tt.sampled || !ok && c != (span.Context{}) {
			t.Errorf("%s: %+v, %v", tt.name, c, ok)
		}
	}
}

func TestState(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []string
		want string
	}{
		{"none", nil, ""},
		{"one", []string{"rojo=00f067aa0ba902b7"}, "rojo=00f067aa0ba902b7"},
		{"several", []string{"rojo=1, 0@x/y=a b,,", "congo=t61"}, "rojo=1, 0@x/y=a b,,,congo=t61"},
		{"no value", []string{"rojo"}, ""},
		{"an empty one", []string{"rojo="}, ""},
		{"no key", []string{"=1"}, ""},
		{"upper case", []string{"Rojo=1"}, ""},
		{"two of the signs between", []string{"rojo=1=2"}, ""},
		{"not ASCII", []string{"rojo=é"}, ""},
		{"a line break", []string{"rojo=1\n2"}, ""},
		{"too long", []string{"rojo=" + strings.Repeat("x", 600)}, ""},
		{"too many", []string{strings.Repeat("a=1,", 32) + "a=1"}, ""},
	} {
		if got := span.State(tt.in...); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestHeaders(t *testing.T) {
	want, _ := span.Parse(parent)
	for _, tt := range []struct {
		name   string
		header http.Header
		want   span.Context
	}{
		{"none", http.Header{}, span.Context{}},
		{"one", http.Header{"Traceparent": {parent}}, want},
		{"two", http.Header{"Traceparent": {parent, parent}}, span.Context{}},
		{"malformed", http.Header{"Traceparent": {"x"}, "Tracestate": {"a=1"}}, span.Context{}},
		{"a state that is malformed", http.Header{"Traceparent": {parent}, "Tracestate": {"a"}}, want},
	} {
		if got := span.FromHeader(tt.header); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// A span waits for others, but not for long; one for which there is no room is dropped and holds nobody up.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dropped := 0
		q := span.NewQueue(6, 4, func(n int) { dropped += n })
		ctx, cancel := context.WithCancel(t.Context())
		var sent []string
		start := time.Now()
		block := time.Duration(0)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			q.Run(ctx, func(batch []*span.Data) {
				sent = append(sent, fmt.Sprintf("%d after %v", len(batch), time.Since(start)))
				time.Sleep(block)
			})
		}()
		put := func(n int) {
			for range n {
				q.Put(&span.Data{})
			}
			synctest.Wait()
		}
		check := func(want ...string) {
			t.Helper()
			synctest.Wait()
			if fmt.Sprint(sent) != fmt.Sprint(want) {
				t.Errorf("sent %v, want %v", sent, want)
			}
			sent, start = nil, time.Now()
		}
		synctest.Wait()
		put(3)
		time.Sleep(5 * time.Second)
		check("3 after 5s")
		put(4)
		time.Sleep(time.Second)
		check("4 after 10ms")
		block = time.Minute
		put(4)
		time.Sleep(time.Second)
		put(9)
		if !q.Full() || dropped != 3 {
			t.Errorf("full %v, dropped %d", q.Full(), dropped)
		}
		cancel()
		time.Sleep(time.Minute)
		<-ended
		check("4 after 10ms")
		if n := len(q.Take()); n != 6 || len(q.Take()) != 0 {
			t.Errorf("%d waited at the end", n)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(parent, "a=1,b@c=2")
	f.Add("cc"+parent[2:]+"-x", ",,")
	f.Fuzz(func(t *testing.T, value, state string) {
		c, ok := span.Parse(value)
		if ok {
			again, ok := span.Parse(string(c.Append(nil)))
			if !ok || again != c || c.Trace == (span.TraceID{}) || c.Span == (span.ID{}) {
				t.Errorf("%q is read as %+v, written and read as %+v", value, c, again)
			}
		}
		if s := span.State(state); s != "" && (s != state || len(s) > 512 || span.State(s) != s || strings.ContainsAny(s, "\r\n\x00")) {
			t.Errorf("the state %q is read as %q", state, s)
		}
	})
}

func BenchmarkBegin(b *testing.B) {
	sampled, _ := span.Parse(parent)
	for _, bb := range []struct {
		name  string
		on    bool
		share float64
		from  span.Context
	}{{"off", false, 1, span.Context{}}, {"share=0.01", true, 0.01, span.Context{}}, {"share=1", true, 1, span.Context{}}, {"caller", true, 0, sampled}} {
		b.Run(bb.name, func(b *testing.B) {
			tracer := span.NewTracer(span.NewQueue(1, 2, func(int) {}))
			tracer.Set(bb.on, bb.share)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				_, s := tracer.Begin(ctx, bb.from, span.Server, "x")
				s.Text("a", "b")
				s.Finish()
			}
		})
	}
}
