//lint:file-ignore SA1019 a server for one connection

package healthcheck

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// ask makes n checks of a host that handles each connection, and returns the reports.
func ask(t *testing.T, conf model.HealthCheck, n int, handle func(net.Conn)) (out []Report, dials int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if conf.Timeout == 0 {
			conf.Timeout = time.Second
		}
		conf.Interval, conf.NoTraffic, conf.UnhealthyInterval = 10*time.Second, 10*time.Second, 10*time.Second
		conf.Healthy, conf.Unhealthy = max(conf.Healthy, 1), max(conf.Unhealthy, 1)
		var open []net.Conn
		var handlers sync.WaitGroup
		to := Target{Cluster: "web", Dial: func(context.Context, []string) (net.Conn, bool, error) {
			dials++
			if handle == nil {
				return nil, false, errors.New("connection refused")
			}
			l := bufconn.Listen(64 << 10)
			handlers.Go(func() {
				if c, err := l.Accept(); err == nil {
					handle(c)
					c.Close()
				}
			})
			c, err := l.Dial()
			open = append(open, c)
			return c, false, err
		}}
		ctx, cancel := context.WithCancel(t.Context())
		c := New(&conf, to, func() bool { return true }, func() uint64 { return 0 })
		done := make(chan error)
		go func() {
			done <- c.Run(ctx, func(r Report) {
				if out = append(out, r); len(out) == n {
					cancel()
				}
			})
		}()
		if err := <-done; err != nil {
			t.Error(err)
		}
		cancel()
		for _, c := range open {
			c.Close()
		}
		handlers.Wait()
	})
	return out, dials
}

// answers serves HTTP/1.1 with responses as they are, one a request.
func answers(got *[]string, responses ...string) func(net.Conn) {
	return func(c net.Conn) {
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(r.Body)
			if got != nil {
				*got = append(*got, r.Method+" "+r.RequestURI+" "+r.Host+" "+r.UserAgent()+" "+r.Header.Get("x-a")+" "+string(body))
			}
			resp := responses[0]
			if len(responses) > 1 {
				responses = responses[1:]
			}
			if resp == "" {
				return
			}
			io.WriteString(c, resp)
		}
	}
}

func httpCheck(h model.HTTPCheck) model.HealthCheck {
	if h.Method == "" {
		h.Method, h.Path = "GET", "/healthz?full=1"
	}
	return model.HealthCheck{HTTP: &h}
}

const good = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestHTTP(t *testing.T) {
	service, err := model.NewStringMatch(model.MatchPrefix, "web", false)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		check    model.HTTPCheck
		response string
		want     Result
		degraded bool
	}{
		{"good", model.HTTPCheck{}, good, Passed, false},
		{"chunked", model.HTTPCheck{Receive: [][]byte{[]byte("ok")}}, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Passed, false},
		{"after an interim response", model.HTTPCheck{}, "HTTP/1.1 103 Early Hints\r\n\r\n" + good, Passed, false},
		{"until the end of the connection", model.HTTPCheck{}, "HTTP/1.0 200 OK\r\n\r\nok", NetworkFailure, false}, // it stays open
		{"bad status", model.HTTPCheck{}, "HTTP/1.1 204 No\r\n\r\n", Failed, false},
		{"expected status", model.HTTPCheck{Expected: []model.StatusRange{{Start: 200, End: 205}}}, "HTTP/1.1 204 No\r\n\r\n", Passed, false},
		{"200 is not expected", model.HTTPCheck{Expected: []model.StatusRange{{Start: 201, End: 205}}}, good, Failed, false},
		{"degraded", model.HTTPCheck{}, "HTTP/1.1 200 OK\r\nX-Envoy-Degraded: yes\r\nContent-Length: 0\r\n\r\n", Passed, true},
		{"wants out", model.HTTPCheck{}, "HTTP/1.1 200 OK\r\nX-Envoy-Immediate-Health-Check-Fail: yes\r\nContent-Length: 0\r\n\r\n", Failed, false},
		{"another service", model.HTTPCheck{Service: &service}, "HTTP/1.1 200 OK\r\nX-Envoy-Upstream-Healthchecked-Cluster: db\r\nContent-Length: 0\r\n\r\n", WrongService, false},
		{"the service", model.HTTPCheck{Service: &service}, "HTTP/1.1 200 OK\r\nX-Envoy-Upstream-Healthchecked-Cluster: web-1\r\nContent-Length: 0\r\n\r\n", Passed, false},
		{"body in order", model.HTTPCheck{Receive: [][]byte{[]byte("a"), []byte("b")}}, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\naxb", Passed, false},
		{"body out of order", model.HTTPCheck{Receive: [][]byte{[]byte("b"), []byte("a")}}, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\naxb", Failed, false},
		{"garbage", model.HTTPCheck{}, "SSH-2.0-x\r\n", NetworkFailure, false},
		{"endless header", model.HTTPCheck{}, "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: "+strings.Repeat("x", 1000)+"\r\n", 100), NetworkFailure, false},
		{"closed", model.HTTPCheck{}, "", NetworkFailure, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := ask(t, httpCheck(tt.check), 1, answers(nil, tt.response))
			r := got[0]
			if r.Result != tt.want || r.Degraded != tt.degraded || (r.Err == nil) != (tt.want == Passed) || !r.First || r.Healthy != (tt.want == Passed) {
				t.Errorf("got %+v, want result %v", r, tt.want)
			}
		})
	}
}

func TestHTTPRequestAndConnections(t *testing.T) {
	var got []string
	h := model.HTTPCheck{Method: "POST", Path: "/a%20b?c", Host: "h.example", Body: []byte("hi"), Edits: []model.HeaderEdit{{Name: "x-a", Value: "1"}, {Name: "user-agent", Value: "probe", Action: model.OverwriteOrAdd}}}
	_, dials := ask(t, httpCheck(h), 3, answers(&got, good))
	if want := "POST /a%20b?c h.example probe 1 hi"; len(got) != 3 || got[0] != want || dials != 1 {
		t.Errorf("over %d connections %q, want three times %q over one", dials, got, want)
	}
	c := httpCheck(model.HTTPCheck{})
	c.NoReuse = true
	if r, dials := ask(t, c, 3, answers(nil, good)); dials != 3 || r[2].Result != Passed {
		t.Errorf("without reuse: %d connections, %+v", dials, r[2])
	}
	// A host may close a connection between two checks.
	if r, dials := ask(t, httpCheck(model.HTTPCheck{}), 3, func(c net.Conn) { answers(nil, good, "")(c) }); dials != 3 || r[1].Result != Passed || r[2].Result != Passed {
		t.Errorf("closed in between: %d connections, %+v", dials, r)
	}
	if r, _ := ask(t, httpCheck(model.HTTPCheck{}), 1, nil); r[0].Result != NetworkFailure {
		t.Errorf("refused: %+v", r[0])
	}
}

func TestSilentHostTimesOut(t *testing.T) {
	r, _ := ask(t, httpCheck(model.HTTPCheck{}), 1, func(c net.Conn) { io.Copy(io.Discard, c) })
	if r[0].Result != NetworkFailure || !errors.Is(r[0].Err, errLate) {
		t.Errorf("got %+v", r[0])
	}
	// One that drips a byte at a time does not get more time.
	drip := func(c net.Conn) {
		for {
			if _, err := io.WriteString(c, "H"); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	if r, _ := ask(t, httpCheck(model.HTTPCheck{}), 1, drip); r[0].Result != NetworkFailure {
		t.Errorf("got %+v", r[0])
	}
}

func TestThresholdsCountInARow(t *testing.T) {
	bad := "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
	c := httpCheck(model.HTTPCheck{Retry: []model.StatusRange{{Start: 500, End: 501}}})
	c.Unhealthy, c.Healthy = 2, 3
	r, _ := ask(t, c, 10, answers(nil, good, bad, good, bad, bad, good, good, bad, good, good))
	var healthy []bool
	var changed []int
	for i, x := range r {
		healthy = append(healthy, x.Healthy)
		if x.Changed {
			changed = append(changed, i)
		}
	}
	if want := []bool{true, true, true, true, false, false, false, false, false, false}; !slices.Equal(healthy, want) || !slices.Equal(changed, []int{0, 4}) {
		t.Errorf("healthy %v, changed at %v; want %v", healthy, changed, want)
	}
}

func TestHTTP2(t *testing.T) {
	n := 0
	s := &http2.Server{}
	serve := func(c net.Conn) {
		s.ServeConn(c, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n++; r.ProtoMajor != 2 || r.URL.Path != "/healthz" || r.Host != "web" || n == 2 {
				w.WriteHeader(503)
			}
		})})
	}
	r, dials := ask(t, httpCheck(model.HTTPCheck{HTTP2: true}), 3, serve)
	if dials != 1 || r[0].Result != Passed || r[1].Result != Failed || r[2].Result != Passed {
		t.Errorf("%d connections, %+v", dials, r)
	}
	if r, _ := ask(t, httpCheck(model.HTTPCheck{HTTP2: true}), 1, answers(nil, good)); r[0].Result != NetworkFailure {
		t.Errorf("HTTP/1 host: %+v", r[0])
	}
}

func TestGRPC(t *testing.T) {
	for _, tt := range []struct {
		name, service string
		status        healthpb.HealthCheckResponse_ServingStatus
		want          Result
	}{
		{"serving", "a.b", healthpb.HealthCheckResponse_SERVING, Passed},
		{"not serving", "a.b", healthpb.HealthCheckResponse_NOT_SERVING, Failed},
		{"unknown service", "x", healthpb.HealthCheckResponse_SERVING, Failed},
		{"server as a whole", "", healthpb.HealthCheckResponse_NOT_SERVING, Passed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hs := health.NewServer()
			hs.SetServingStatus("a.b", tt.status)
			serve := func(c net.Conn) {
				s := grpc.NewServer()
				healthpb.RegisterHealthServer(s, hs)
				l := &oneConn{c: c, done: make(chan struct{})}
				s.Serve(l)
			}
			r, dials := ask(t, model.HealthCheck{GRPC: &model.GRPCCheck{Service: tt.service, Metadata: []model.HeaderEdit{{Name: "x-a", Value: "1"}}}}, 2, serve)
			if r[0].Result != tt.want || r[1].Result != tt.want || dials != 1 {
				t.Errorf("%d connections, %+v, want %v", dials, r, tt.want)
			}
		})
	}
}

// oneConn is a listener with one connection, which ends with it.
type oneConn struct {
	c    net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.c; c != nil {
		l.c = nil
		return &watched{c, l.done}, nil
	}
	<-l.done
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

type watched struct {
	net.Conn
	done chan struct{}
}

func (w *watched) Close() error {
	select {
	case <-w.done:
	default:
		close(w.done)
	}
	return w.Conn.Close()
}

func TestTCP(t *testing.T) {
	ping := model.HealthCheck{TCP: &model.TCPCheck{Send: []byte("PING"), Receive: [][]byte{[]byte("PO"), []byte("NG")}}}
	echo := func(say string) func(net.Conn) {
		return func(c net.Conn) {
			b := make([]byte, 4)
			for {
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				for _, x := range []byte(say) {
					c.Write([]byte{x})
				}
			}
		}
	}
	if r, dials := ask(t, ping, 3, echo("POxNG")); r[0].Result != Passed || r[2].Result != Passed || dials != 1 {
		t.Errorf("%d connections, %+v", dials, r)
	}
	if r, _ := ask(t, ping, 1, echo("NGPO")); r[0].Result != NetworkFailure {
		t.Errorf("out of order: %+v", r[0])
	}
	flood := func(c net.Conn) {
		for {
			if _, err := c.Write(bytes.Repeat([]byte("x"), 4096)); err != nil {
				return
			}
		}
	}
	if r, _ := ask(t, ping, 1, flood); r[0].Result != NetworkFailure {
		t.Errorf("flood: %+v", r[0])
	}
	connect := model.HealthCheck{TCP: &model.TCPCheck{}}
	if r, dials := ask(t, connect, 2, func(c net.Conn) { io.Copy(io.Discard, c) }); r[1].Result != Passed || dials != 2 {
		t.Errorf("connecting alone: %d connections, %+v", dials, r)
	}
	if r, _ := ask(t, connect, 1, nil); r[0].Result != NetworkFailure {
		t.Errorf("refused: %+v", r[0])
	}
}

func TestIntervals(t *testing.T) {
	conf := &model.HealthCheck{Interval: 10, NoTraffic: 60, NoTrafficHealthy: 70, UnhealthyInterval: 20, UnhealthyEdge: 30, HealthyEdge: 40}
	used := true
	c := New(conf, Target{}, func() bool { return used }, func() uint64 { return 3 })
	for _, tt := range []struct {
		r    Report
		used bool
		want time.Duration
	}{
		{Report{Result: Passed, Healthy: true}, true, 10}, {Report{Result: Passed, Healthy: true, Changed: true}, true, 40},
		{Report{Result: Failed}, true, 20}, {Report{Result: Failed, Changed: true}, true, 30}, {Report{Result: Failed, Healthy: true}, true, 20},
		{Report{Result: Passed, Healthy: true}, false, 70}, {Report{Result: Failed}, false, 60},
	} {
		if used = tt.used; c.interval(tt.r) != tt.want {
			t.Errorf("%+v, used %v: %d, want %d", tt.r, tt.used, c.interval(tt.r), tt.want)
		}
	}
	used, conf.JitterPercent, conf.Jitter = true, 40, 2
	if d := c.interval(Report{Result: Passed}); d != 10+3%4+3%2 {
		t.Errorf("with jitter: %d", d)
	}
}

func FuzzCheckResponse(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 4, 0x12, 1, 'x', 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		serving, err := checkResponse(b)
		if serving && (err != nil || !bytes.Contains(b, []byte{1})) {
			t.Errorf("%x is taken for SERVING, error %v", b, err)
		}
		if err == nil && len(b) < 5 {
			t.Errorf("%x has no frame", b)
		}
	})
}

func FuzzHTTPAnswer(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		conf := httpCheck(model.HTTPCheck{})
		conf.Timeout = time.Second
		to := Target{Dial: func(context.Context, []string) (net.Conn, bool, error) {
			return &canned{r: bytes.NewReader(b)}, false, nil
		}}
		p := New(&conf, to, nil, nil).prober()
		a := p.probe(context.Background())
		p.close()
		if a.err == nil && !bytes.Contains(b, []byte(" 200")) {
			t.Errorf("%q passes", b)
		}
	})
}

// canned is a connection on which everything to read is there already.
type canned struct {
	net.Conn
	r io.Reader
}

func (c *canned) Read(b []byte) (int, error)  { return c.r.Read(b) }
func (c *canned) Write(b []byte) (int, error) { return len(b), nil }
func (c *canned) Close() error                { return nil }
func (c *canned) SetDeadline(time.Time) error { return nil }
