package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/span"
)

// A behaviour answers a request on a connection. It returns false to keep silent from then on.
type behaviour func(conn net.Conn) bool

// A collector answers over connections in memory, and keeps the names of the spans it took.
type collector struct {
	mu     sync.Mutex
	answer behaviour // nil takes no connection
	names  []string
	paths  []string
	auth   []string
}

func (c *collector) behave(b behaviour) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = b
}

func (c *collector) dial(context.Context, string, string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answer == nil {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	go c.serve(theirs)
	return ours, nil
}

func (c *collector) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		c.mu.Lock()
		answer := c.answer
		c.mu.Unlock()
		if !answer(conn) {
			io.Copy(io.Discard, in) // until the other side gives up
			return
		}
		var m tracev1.TracesData
		if err := proto.Unmarshal(body, &m); err != nil {
			panic(err)
		}
		c.mu.Lock()
		c.paths, c.auth = append(c.paths, r.URL.Path), append(c.auth, r.Header.Get("Authorization"))
		for _, s := range m.ResourceSpans[0].ScopeSpans[0].Spans {
			c.names = append(c.names, s.Name)
		}
		c.mu.Unlock()
	}
}

func (c *collector) took() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.names...)
}

func status(code int) behaviour {
	return func(conn net.Conn) bool {
		fmt.Fprintf(conn, "HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", code)
		return code == 200
	}
}

// counts notes the metrics of spans from now on.
func counts(t *testing.T) func() (sent, dropped int) {
	store := NewStore(time.Hour)
	conf := metrics.DefaultConfig("")
	conf.EnableHostname, conf.EnableRuntimeMetrics = false, false
	measure.Report()
	if _, err := metrics.NewGlobal(conf, store); err != nil {
		t.Fatal(err)
	}
	return func() (sent, dropped int) {
		measure.Report()
		w := httptest.NewRecorder()
		store.Prometheus().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		for line := range strings.Lines(w.Body.String()) {
			fmt.Sscanf(line, "telemetry_spans_sent %d", &sent)
			fmt.Sscanf(line, "telemetry_spans_dropped %d", &dropped)
		}
		return sent, dropped
	}
}

// run starts sending to a collector; the function returned ends it, and tells how long that took.
func run(t *testing.T, c *collector) (*Traces, func() time.Duration) {
	tr := NewTraces(c.dial, hclog.NewNullLogger())
	tr.Set(&OTLP{Endpoint: "http://collector:4318/x/", Headers: map[string]string{"Authorization": "Bearer 1"}}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- tr.Run(ctx) }()
	return tr, func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		return time.Since(began)
	}
}

func request(tr *Traces, name string) {
	_, s := tr.Tracer.Begin(context.Background(), span.Context{}, span.Server, name)
	s.Finish()
}

// Spans go to the collector soon, and those of the last moment too.
func TestSpansAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := counts(t)
		c := &collector{answer: status(200)}
		tr, end := run(t, c)
		request(tr, "a")
		request(tr, "b")
		time.Sleep(6 * time.Second)
		request(tr, "c")
		if took := end(); took > flushLimit {
			t.Errorf("ended after %v", took)
		}
		synctest.Wait()
		if got := fmt.Sprint(c.took(), c.paths, c.auth); got != "[a b c] [/x/v1/traces /x/v1/traces] [Bearer 1 Bearer 1]" {
			t.Error(got)
		}
		if sent, dropped := count(); sent != 3 || dropped != 0 {
			t.Errorf("%d sent, %d dropped", sent, dropped)
		}
	})
}

// A collector that is away, silent, refuses or answers without end costs a bounded number of spans, and no request a
// moment.
func TestBadCollectorHarmsNobody(t *testing.T) {
	forever := func(head, part string) behaviour {
		return func(conn net.Conn) bool {
			io.WriteString(conn, head)
			for {
				if _, err := io.WriteString(conn, part); err != nil {
					return false
				}
			}
		}
	}
	for _, tt := range []struct {
		name   string
		answer behaviour
		taken  bool // as far as the status tells
	}{
		{"away", nil, false},
		{"silent", func(net.Conn) bool { return false }, false},
		{"busy", status(503), false},
		{"refusing", status(400), false},
		{"an endless body", forever("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1000\r\n"+strings.Repeat("x", 0x1000)+"\r\n"), true},
		{"an endless header", forever("HTTP/1.1 200 OK\r\n", "X: "+strings.Repeat("x", 1000)+"\r\n"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				count := counts(t)
				tr, end := run(t, &collector{answer: tt.answer})
				const all = 3 * maxSpans
				for i := range all {
					began := time.Now()
					request(tr, "x")
					if took := time.Since(began); took > 0 {
						t.Fatalf("a request waited %v", took)
					}
					if i%100 == 0 {
						time.Sleep(time.Second)
					}
				}
				time.Sleep(time.Second)
				if took := end(); took > flushLimit {
					t.Errorf("ended after %v", took)
				}
				if sent, dropped := count(); sent+dropped != all || tt.taken != (sent > 0) {
					t.Errorf("%d sent and %d dropped of %d", sent, dropped, all)
				}
			})
		})
	}
}

// What waits for a collector that was away is sent when it is there.
func TestSpansWaitForTheCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &collector{}
		tr, end := run(t, c)
		request(tr, "early")
		time.Sleep(20 * time.Second)
		c.behave(status(200))
		time.Sleep(20 * time.Second)
		request(tr, "late")
		end()
		synctest.Wait()
		if got := fmt.Sprint(c.took()); got != "[early late]" {
			t.Error(got)
		}
	})
}

// Where spans go changes while they are recorded; without a collector nothing is.
func TestTracesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &collector{answer: status(200)}, &collector{answer: status(200)}
		tr := NewTraces(func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "a:80" {
				return a.dial(ctx, network, address)
			}
			return b.dial(ctx, network, address)
		}, hclog.NewNullLogger())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- tr.Run(ctx) }()
		step := func(name string, to *OTLP, share float64) {
			tr.Set(to, share)
			request(tr, name)
			time.Sleep(6 * time.Second)
		}
		step("1", nil, 1)
		step("2", &OTLP{Endpoint: "http://a"}, 1)
		step("3", &OTLP{Endpoint: "http://a"}, 0)
		step("4", &OTLP{Endpoint: "http://b"}, 1)
		step("5", nil, 1)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(a.took(), b.took()); got != "[2] [4]" {
			t.Error(got)
		}
	})
}

// A collector that other authorities vouch for than before is another collector.
func TestAuthoritiesOfACollectorChange(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	good := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for _, tt := range []struct {
		name string
		ca   []byte
		ok   bool
	}{{"the system's", nil, false}, {"its own", good, true}} {
		p := newPoster(&OTLP{Endpoint: s.URL, CA: tt.ca}, "/v1/traces", new(net.Dialer).DialContext)
		if err := p.post(t.Context(), span.Encode(nil, "", nil)); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
		p.close()
	}
	one, two := &OTLP{Endpoint: s.URL, CA: good}, &OTLP{Endpoint: s.URL, CA: bytes.ToLower(good)}
	target := func(o *OTLP) *Target { return &Target{Protocol: OTLPMetric, Address: o.Endpoint, OTLP: o} }
	if one.same(two) || target(one).same(target(two)) || !one.same(&OTLP{Endpoint: s.URL, CA: bytes.Clone(good)}) {
		t.Error("the authorities make no difference")
	}
}
