package trace_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/trace"
)

// tracer returns one whose ids count from 1, and its counters.
func tracer(t *testing.T, conf *model.Tracing) (*trace.Tracer, *stats.Store) {
	t.Helper()
	st := stats.NewStore(nil)
	n := uint64(0)
	tr, err := trace.New(conf, &filter.Env{
		Stats: st.Scope(stats.Text("http"), stats.Text("in")), Logger: hclog.NewNullLogger(),
		Rand: func() uint64 { n++; return n }, Go: func(func(context.Context)) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr, st
}

// exchange returns a request with header lines.
func exchange(lines ...string) *filter.Exchange {
	r := &message.Request{Version: message.HTTP11, Method: "GET", Path: "/", Authority: "db"}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		r.Header.Add(name, value)
	}
	return &filter.Exchange{Start: time.Now(), Request: r, Response: new(message.Response), Entry: &accesslog.Entry{HTTP: &accesslog.HTTP{}}}
}

func TestContextsOfB3AreCarriedOn(t *testing.T) {
	const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	tests := []struct {
		name   string
		zipkin model.Zipkin
		in     []string
		want   map[string]string // of the request that goes on; empty: it must not be there
	}{
		{"several headers", model.Zipkin{}, []string{"x-b3-traceid: " + id, "x-b3-spanid: " + parent, "x-b3-sampled: 1"},
			map[string]string{"x-b3-traceid": id, "x-b3-spanid": "0000000000000001", "x-b3-parentspanid": parent, "x-b3-sampled": "1"}},
		{"the single header", model.Zipkin{}, []string{"b3: " + id + "-" + parent + "-0"},
			map[string]string{"x-b3-traceid": id, "x-b3-spanid": "0000000000000001", "x-b3-parentspanid": parent, "x-b3-sampled": "0", "b3": ""}},
		{"debug counts as sampled", model.Zipkin{}, []string{"x-b3-traceid: " + parent, "x-b3-spanid: " + parent, "x-b3-flags: 1"},
			map[string]string{"x-b3-traceid": parent, "x-b3-parentspanid": parent, "x-b3-sampled": "1"}},
		{"a shared span keeps its id", model.Zipkin{SharedSpan: true}, []string{"x-b3-traceid: " + id, "x-b3-spanid: " + parent, "x-b3-sampled: 1"},
			map[string]string{"x-b3-traceid": id, "x-b3-spanid": parent, "x-b3-parentspanid": ""}},
		{"a new trace of 64 bits", model.Zipkin{}, nil,
			map[string]string{"x-b3-traceid": "0000000000000001", "x-b3-spanid": "0000000000000002", "x-b3-parentspanid": "", "x-b3-sampled": "1"}},
		{"a new trace of 128 bits", model.Zipkin{TraceID128: true}, nil,
			map[string]string{"x-b3-traceid": "00000000000000020000000000000001", "x-b3-spanid": "0000000000000003"}},
		{"what is malformed is replaced", model.Zipkin{}, []string{"x-b3-traceid: zz", "x-b3-spanid: " + parent},
			map[string]string{"x-b3-traceid": "0000000000000001", "x-b3-parentspanid": ""}},
		{"W3C is not looked at", model.Zipkin{}, []string{"traceparent: 00-" + id + "-" + parent + "-01"},
			map[string]string{"x-b3-traceid": "0000000000000001", "traceparent": "00-" + id + "-" + parent + "-01"}},
	}
	for _, tt := range tests {
		tr, _ := tracer(t, &model.Tracing{Provider: &tt.zipkin, Client: 100, Random: 100, Overall: 100})
		x := exchange(tt.in...)
		tr.Start(x, "").Inject(x.Request)
		for name, want := range tt.want {
			if got := x.Request.Header.Get(name); got != want || want == "" && x.Request.Header.Has(name) {
				t.Errorf("%s: %s is %q, want %q", tt.name, name, got, want)
			}
		}
	}
}

func TestSampling(t *testing.T) {
	const low, high = "00000000-0000-4000-8000-000000000000", "0000270f-0000-4000-8000-000000000000" // draws 0 and 9999 of 10000
	tests := []struct {
		name                    string
		client, random, overall float64
		in                      []string
		sampled                 bool
		id, counter             string
	}{
		{"by chance", 100, 1, 100, []string{"x-request-id: " + low}, true, "00000000-0000-9000-8000-000000000000", "random_sampling"},
		{"not by chance", 100, 99.9, 100, []string{"x-request-id: " + high}, false, high, "not_traceable"},
		{"the client wants it", 100, 0, 100, []string{"x-request-id: " + high, "x-client-trace-id: 1"}, true, "0000270f-0000-b000-8000-000000000000", "client_enabled"},
		{"the client may not want it", 0, 0, 100, []string{"x-request-id: " + high, "x-client-trace-id: 1"}, false, high, "not_traceable"},
		{"forced", 100, 0, 100, []string{"x-request-id: " + high, "x-envoy-force-trace: true"}, true, "0000270f-0000-a000-8000-000000000000", "service_forced"},
		{"decided by a proxy before", 0, 0, 100, []string{"x-request-id: 0000270f-0000-9000-8000-000000000000"}, true, "0000270f-0000-9000-8000-000000000000", "random_sampling"},
		{"overall limits what is forced", 100, 100, 50, []string{"x-request-id: " + high, "x-envoy-force-trace: true"}, false, high, "not_traceable"},
		{"overall limits what was decided before", 100, 100, 50, []string{"x-request-id: 0000270f-0000-9000-8000-000000000000"}, false, high, "not_traceable"},
		{"one draw for both limits", 100, 1, 1, []string{"x-request-id: " + low}, true, "00000000-0000-9000-8000-000000000000", "random_sampling"},
	}
	for _, tt := range tests {
		tr, st := tracer(t, &model.Tracing{Provider: &model.OpenTelemetry{}, Client: tt.client, Random: tt.random, Overall: tt.overall})
		x := exchange(tt.in...)
		if got := tr.Start(x, "").Sampled(); got != tt.sampled {
			t.Errorf("%s: sampled %v, want %v", tt.name, got, tt.sampled)
		}
		if got := x.Request.Header.Get("x-request-id"); got != tt.id {
			t.Errorf("%s: the id became %s, want %s", tt.name, got, tt.id)
		}
		if st.Value("http.in.tracing."+tt.counter) != 1 {
			t.Errorf("%s: not counted as %s", tt.name, tt.counter)
		}
	}
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for flag, want := range map[string]bool{"00": false, "01": true} {
		tr, _ := tracer(t, &model.Tracing{Provider: &model.OpenTelemetry{}, Overall: 100})
		x := exchange("traceparent: 00-" + id + "-" + span + "-" + flag)
		s := tr.Start(x, "")
		if s.Sampled() != want || s.TraceID() != id {
			t.Errorf("a parent with flags %s: sampled %v, trace %s", flag, s.Sampled(), s.TraceID())
		}
	}
}
