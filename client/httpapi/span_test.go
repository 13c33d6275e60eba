package httpapi

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/span"
)

// recorder returns a tracer of all requests, and what tells the spans that have ended.
func recorder(t testing.TB) (*span.Tracer, func() []string) {
	q := span.NewQueue(100, 100, func(int) { t.Error("a span was dropped") })
	tracer := span.NewTracer(q)
	tracer.Set(true, 1)
	return tracer, func() (list []string) {
		for _, d := range q.Take() {
			text := fmt.Sprint(d.Name, ", failed ", d.Failed)
			for _, a := range d.Attributes {
				text += " " + a.Key + "=" + a.Text
				if a.Text == "" {
					text += fmt.Sprint(a.Number)
				}
			}
			list = append(list, text)
		}
		return list
	}
}

func TestSpansOfRequests(t *testing.T) {
	tracer, spans := recorder(t)
	s, caller := newServer(t, Config{Tracer: tracer}, nil)
	for _, tt := range []struct {
		name, method, target, host string
		tls                        bool
		answer                     any
		want                       string
	}{
		{"a read", "GET", "/v1/kv/secret/key?token=t", "agent:8500", false, &kv.GetReply{Entry: &kv.Entry{Key: "k"}},
			"GET /v1/kv/*, failed false http.request.method=GET http.route=/v1/kv/* url.scheme=http server.address=agent server.port=8500 client.address=192.0.2.1 http.response.status_code=200"},
		{"over TLS, to an address", "GET", "/v1/kv/a", "[::1]:8501", true, &kv.GetReply{},
			"GET /v1/kv/*, failed false http.request.method=GET http.route=/v1/kv/* url.scheme=https server.address=::1 server.port=8501 client.address=192.0.2.1 http.response.status_code=404"},
		{"an odd host", "GET", "/v1/kv/a", "user:pass@x", false, &kv.GetReply{},
			"GET /v1/kv/*, failed false http.request.method=GET http.route=/v1/kv/* url.scheme=http client.address=192.0.2.1 http.response.status_code=404"},
		{"inside of another", "GET", "/v1/query/my-query/execute", "agent", false, errors.New("the text of an error"),
			"GET /v1/query/*/execute, failed true http.request.method=GET http.route=/v1/query/*/execute url.scheme=http server.address=agent client.address=192.0.2.1 http.response.status_code=500 error.type=500"},
		{"a method that is none", "SECRET", "/v1/kv/a", "agent", false, nil,
			"HTTP /v1/kv/*, failed false http.request.method=_OTHER http.route=/v1/kv/* url.scheme=http server.address=agent client.address=192.0.2.1 http.response.status_code=405"},
		{"no endpoint", "GET", "/v1/secret", "agent", false, nil, ""},
	} {
		caller.answer = map[string]any{"KV.Get": tt.answer, "Query.Execute": tt.answer}
		r := httptest.NewRequest(tt.method, tt.target, nil)
		r.Host = tt.host
		if r.TLS = nil; tt.tls {
			r.TLS = new(tls.ConnectionState)
		}
		s.ServeHTTP(httptest.NewRecorder(), r)
		if got := strings.Join(spans(), "\n"); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
	caller.answer = map[string]any{"KV.Get": func(any) (any, error) { panic("on purpose") }}
	func() {
		defer func() { recover() }()
		s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/v1/kv/a", nil))
	}()
	if got := spans(); len(got) != 1 || !strings.Contains(got[0], "failed true") || !strings.Contains(got[0], "error.type=panic") {
		t.Errorf("a panic: %q", got)
	}
}

// A tracer that records nothing of a request costs it no memory.
func TestUnrecordedRequestsTakeNoMemory(t *testing.T) {
	tracer, spans := recorder(t)
	tracer.Set(true, 0)
	run := func(tracer *span.Tracer) float64 {
		s, _ := newServer(t, Config{Caller: newFixedCaller(), Tracer: tracer}, nil)
		r, w := httptest.NewRequest("GET", "/v1/kv/one", nil), &discard{header: http.Header{}}
		return testing.AllocsPerRun(1000, func() {
			clear(w.header)
			s.ServeHTTP(w, r)
		})
	}
	off := span.NewTracer(nil)
	if none, off, zero := run(nil), run(off), run(tracer); none != off || off != zero || len(spans()) > 0 {
		t.Errorf("%v allocations without a tracer, %v with one that is off, %v with one of no request", none, off, zero)
	}
}

// BenchmarkTraced measures requests with a tracer that records no, some and all of them.
func BenchmarkTraced(b *testing.B) {
	for _, bb := range []struct {
		name  string
		on    bool
		share float64
	}{{"off", false, 0}, {"share=0.01", true, 0.01}, {"share=1", true, 1}} {
		b.Run(bb.name, func(b *testing.B) {
			tracer := span.NewTracer(span.NewQueue(1, 2, func(int) {}))
			tracer.Set(bb.on, bb.share)
			s, _ := newServer(b, Config{Caller: newFixedCaller(), Tracer: tracer}, nil)
			r, w := httptest.NewRequest("GET", "/v1/kv/one", nil), &discard{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				s.ServeHTTP(w, r)
			}
		})
	}
}
