package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// site is a proxy for HTTP with a client and hosts, in virtual time.
type site struct {
	*testing.T
	client, proxy, app *testkit.Host
	p                  *proxy.Proxy
	access             testkit.Log
	log                testkit.Log

	mu    sync.Mutex
	serve map[int]func(net.Conn) // by port
	dials map[int]int
}

// manager is a listener with an HTTP connection manager: %s are settings and routes.
const manager = `
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: 10.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format: {text_format_source: {inline_string: "%%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%%\n"}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
%s
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
%s
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: app
      endpoints: [{lb_endpoints: [
        {endpoint: {address: {socket_address: {address: 10.0.0.3, port_value: 80}}}}]}]
  - name: two
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: two
      endpoints: [{lb_endpoints: [
        {endpoint: {address: {socket_address: {address: 10.0.0.3, port_value: 81}}}},
        {endpoint: {address: {socket_address: {address: 10.0.0.3, port_value: 82}}}}]}]
`

// toApp is the routes that send everything to the cluster "app".
const toApp = `              - {match: {prefix: /}, route: {cluster: app}}`

func indent(s string, n int) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.Repeat(" ", n) + line)
	}
	return b.String()
}

// runHTTP runs f with a proxy that has the settings and routes.
func runHTTP(t *testing.T, settings, routes string, f func(s *site)) {
	testkit.Bubble(t, func(t *testing.T) {
		n := testkit.NewNetwork(1)
		s := &site{T: t, client: n.Host("10.0.0.2"), proxy: n.Host("10.0.0.1"), app: n.Host("10.0.0.3"), serve: map[int]func(net.Conn){}, dials: map[int]int{}}
		yaml := fmt.Sprintf(manager, indent(settings, 10), routes)
		b, err := decode.New(decode.Options{}).Bootstrap("x.yaml", []byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range []int{80, 81, 82} {
			ln, err := s.app.Listen(uint16(port))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			s.handle(port, ok)
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					s.mu.Lock()
					h := s.serve[port]
					s.dials[port]++
					s.mu.Unlock()
					go h(c)
				}
			}()
		}
		s.p, err = proxy.New(proxy.Config{
			Bootstrap: b, Stdout: &s.access, ShutdownTime: time.Second,
			Listen: func(_ context.Context, _ *model.Listener, a model.Address) (net.Listener, error) {
				return s.proxy.Listen(a.Port)
			},
			Dial:   func(ctx context.Context, _, a string) (net.Conn, error) { return s.proxy.Dial(ctx, a) },
			Logger: hclog.New(&hclog.LoggerOptions{Output: &s.log, Level: hclog.Debug, DisableTime: true}),
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- s.p.Run(context.Background()) }()
		synctest.Wait()
		f(s)
		s.p.Quit()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(s.log.String(), s.access.String())
		}
	})
}

// handle makes f serve the connections to a port of the application.
func (s *site) handle(port int, f func(net.Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve[port] = f
}

// each makes a server of a function that answers one request.
func each(answer func(r *http.Request, c net.Conn) bool) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close()
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil || !answer(r, c) {
				return
			}
		}
	}
}

// says answers with a fixed text.
func says(text string) func(net.Conn) {
	return each(func(r *http.Request, c net.Conn) bool {
		io.Copy(io.Discard, r.Body)
		io.WriteString(c, text)
		return true
	})
}

// hang never answers.
func hang(c net.Conn) {
	io.Copy(io.Discard, c)
	c.Close()
}

var ok = says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

// dial connects to the proxy.
func (s *site) dial() net.Conn {
	s.Helper()
	c, err := s.client.Dial(context.Background(), "10.0.0.1:8080")
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// ask sends a request over a connection of its own and returns "status body" of the answer, and how long it took.
func (s *site) ask(raw string) (string, time.Duration) {
	s.Helper()
	defer time.Sleep(time.Millisecond) // for the log
	c := s.dial()
	defer c.Close()
	start := time.Now()
	if _, err := io.WriteString(c, raw); err != nil {
		return "error", 0
	}
	got := answer(bufio.NewReader(c))
	return got, time.Since(start)
}

func answer(br *bufio.Reader) string {
	r, err := http.ReadResponse(br, nil)
	if err != nil {
		return "closed"
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Sprintf("%d %s broken", r.StatusCode, b)
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", r.StatusCode, b))
}

func (s *site) want(raw, want string) time.Duration {
	s.Helper()
	got, took := s.ask(raw)
	if got != want {
		s.Errorf("%.60q: got %q, want %q", raw, got, want)
	}
	return took
}

// wantLog compares the lines of the access log since the last call.
func (s *site) wantLog(want ...string) {
	s.Helper()
	time.Sleep(2 * time.Second)
	got := strings.Split(strings.TrimSpace(s.access.Take()), "\n")
	if strings.Join(got, "|") != strings.Join(want, "|") {
		s.Errorf("access log %q, want %q", got, want)
	}
}

const get = "GET / HTTP/1.1\r\nhost: web\r\n\r\n"

func TestRequestsAreForwarded(t *testing.T) {
	runHTTP(t, "", toApp, func(s *site) {
		s.handle(80, each(func(r *http.Request, c net.Conn) bool {
			b, _ := io.ReadAll(r.Body)
			var names []string
			for _, n := range []string{"X-Forwarded-Proto", "X-Request-Id", "Connection", "X-Hop", "X-Envoy-Expected-Rq-Timeout-Ms"} {
				if r.Header.Get(n) != "" {
					names = append(names, n)
				}
			}
			body := fmt.Sprintf("%s %s %s %q %s", r.Method, r.Host, r.RequestURI, b, strings.Join(names, ","))
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
			return true
		}))
		s.want("GET /a?b=c HTTP/1.1\r\nhost: web\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n", `200 GET web /a?b=c "" X-Forwarded-Proto,X-Request-Id,X-Envoy-Expected-Rq-Timeout-Ms`)
		s.want("POST /p HTTP/1.1\r\nhost: web:80\r\ncontent-length: 5\r\n\r\nhello", `200 POST web:80 /p "hello" X-Forwarded-Proto,X-Request-Id,X-Envoy-Expected-Rq-Timeout-Ms`)
		s.want("POST /p HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", `200 POST web /p "abc" X-Forwarded-Proto,X-Request-Id,X-Envoy-Expected-Rq-Timeout-Ms`)
		s.wantLog("200 - via_upstream", "200 - via_upstream", "200 - via_upstream")
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.dials[80] != 1 {
			t.Errorf("%d connections to the host, want one that is used again", s.dials[80])
		}
	})
}

func TestManyRequestsOverOneConnection(t *testing.T) {
	runHTTP(t, "", toApp, func(s *site) {
		c := s.dial()
		defer c.Close()
		br := bufio.NewReader(c)
		go io.WriteString(c, strings.Repeat(get, 50)) // pipelined
		for i := range 50 {
			if got := answer(br); got != "200 ok" {
				t.Fatalf("answer %d is %q", i, got)
			}
		}
	})
}

func TestLocalAnswers(t *testing.T) {
	runHTTP(t, "", `              - {match: {path: /direct}, direct_response: {status: 418, body: {inline_string: teapot}}}
              - {match: {path: /moved}, redirect: {path_redirect: /new}}
              - {match: {path: /nowhere}, route: {cluster: nobody}}
              - {match: {prefix: /app}, route: {cluster: app}}`, func(s *site) {
		s.want("GET /direct HTTP/1.1\r\nhost: web\r\n\r\n", "418 teapot")
		s.want("GET /moved HTTP/1.1\r\nhost: web\r\n\r\n", "301")
		s.want("GET /nowhere HTTP/1.1\r\nhost: web\r\n\r\n", "503")
		s.want("GET /other HTTP/1.1\r\nhost: web\r\n\r\n", "404")
		s.want("GET /app HTTP/1.1\r\n\r\n", "400")
		s.wantLog("418 - direct_response", "301 - direct_response", "503 NC cluster_not_found", "404 NR route_not_found", "400 - missing_host_header")
	})
}

func TestUnreachableHost(t *testing.T) {
	runHTTP(t, "", toApp, func(s *site) {
		s.handle(80, func(c net.Conn) { c.Close() })
		s.want(get, "503 upstream connect error or disconnect/reset before headers. reset reason: connection termination")
		s.handle(80, each(func(_ *http.Request, c net.Conn) bool {
			io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
			return false
		}))
		s.want(get, "200 half broken")
		s.handle(80, each(func(_ *http.Request, c net.Conn) bool {
			io.WriteString(c, "garbage\r\n\r\n")
			return false
		}))
		s.want(get, "502 upstream connect error or disconnect/reset before headers. reset reason: protocol error")
		s.wantLog("503 UC upstream_reset_before_response_started{connection_termination}", "200 UC upstream_reset_after_response_started{connection_termination}",
			"502 UPE upstream_reset_before_response_started{protocol_error}")
	})
}

func TestTimes(t *testing.T) {
	t.Run("route", func(t *testing.T) {
		runHTTP(t, "", `              - {match: {prefix: /}, route: {cluster: app, timeout: 3s}}`, func(s *site) {
			s.handle(80, hang)
			if took := s.want(get, "504 upstream request timeout"); took != 3*time.Second {
				t.Errorf("after %v, want 3s", took)
			}
			// From the end of the request.
			c := s.dial()
			defer c.Close()
			start := time.Now()
			io.WriteString(c, "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 2\r\n\r\na")
			time.Sleep(5 * time.Second)
			io.WriteString(c, "b")
			if got := answer(bufio.NewReader(c)); got != "504 upstream request timeout" || time.Since(start) != 8*time.Second {
				t.Errorf("slow request: %q after %v, want 8s", got, time.Since(start))
			}
			s.wantLog("504 UT response_timeout", "504 UT response_timeout")
		})
	})
	t.Run("stream idle", func(t *testing.T) {
		runHTTP(t, "stream_idle_timeout: 2s", `              - {match: {prefix: /}, route: {cluster: app, timeout: 0s}}`, func(s *site) {
			s.handle(80, hang)
			if took := s.want(get, "504 stream timeout"); took != 2*time.Second {
				t.Errorf("after %v, want 2s", took)
			}
			// Bytes of the request count.
			c := s.dial()
			defer c.Close()
			start := time.Now()
			io.WriteString(c, "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 100\r\n\r\n")
			for range 5 {
				time.Sleep(1500 * time.Millisecond)
				io.WriteString(c, "a")
			}
			if got := answer(bufio.NewReader(c)); got != "408 stream timeout" || time.Since(start) < 9*time.Second || time.Since(start) > 11*time.Second {
				t.Errorf("slow request: %q after %v, want about 9.5s", got, time.Since(start))
			}
		})
	})
	t.Run("maximum", func(t *testing.T) {
		runHTTP(t, "common_http_protocol_options: {max_stream_duration: 2s}", `              - {match: {prefix: /}, route: {cluster: app, timeout: 0s}}`, func(s *site) {
			s.handle(80, hang)
			if took := s.want(get, "504 downstream duration timeout"); took != 2*time.Second {
				t.Errorf("after %v, want 2s", took)
			}
		})
	})
	t.Run("request", func(t *testing.T) {
		runHTTP(t, "request_timeout: 2s", toApp, func(s *site) {
			if took := s.want("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\n\r\nab", "408 request timeout"); took != 2*time.Second {
				t.Errorf("after %v, want 2s", took)
			}
		})
	})
	t.Run("response", func(t *testing.T) {
		runHTTP(t, "", `              - {match: {prefix: /}, route: {cluster: app, timeout: 3s}}`, func(s *site) {
			s.handle(80, each(func(_ *http.Request, c net.Conn) bool {
				io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
				io.Copy(io.Discard, c)
				return false
			}))
			if took := s.want(get, "200 half broken"); took != 3*time.Second {
				t.Errorf("after %v, want 3s", took)
			}
			s.wantLog("200 UT response_timeout")
		})
	})
}

func TestRetries(t *testing.T) {
	retry := func(policy string) string {
		return `              - {match: {prefix: /}, route: {cluster: two, timeout: 10s, retry_policy: ` + policy + `}}`
	}
	fail := says("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n")
	t.Run("5xx", func(t *testing.T) {
		runHTTP(t, "", retry(`{retry_on: 5xx, num_retries: 1}`), func(s *site) {
			s.handle(81, fail)
			for range 4 {
				s.want(get, "200 ok")
				s.want("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\n\r\nhello", "200 ok")
			}
		})
		runHTTP(t, "", retry(`{retry_on: 5xx, num_retries: 1}`), func(s *site) {
			s.handle(81, fail)
			s.handle(82, fail)
			s.want(get, "503")
			s.wantLog("503 URX via_upstream")
		})
	})
	t.Run("not without a policy", func(t *testing.T) {
		runHTTP(t, "", `              - {match: {prefix: /}, route: {cluster: two}}`, func(s *site) {
			s.handle(81, fail)
			s.handle(82, fail)
			s.want(get, "503")
			if v := s.p.Stats().Value("cluster.two.upstream_rq_total"); v != 1 {
				t.Errorf("%v requests were sent, want 1", v)
			}
		})
	})
	t.Run("connections that fail", func(t *testing.T) {
		runHTTP(t, "", retry(`{retry_on: connect-failure, num_retries: 3}`), func(s *site) {
			s.handle(81, func(c net.Conn) { c.Close() })
			s.handle(82, func(c net.Conn) { c.Close() })
			// The connection came about, so this condition does not cover it.
			s.want(get, "503 upstream connect error or disconnect/reset before headers. reset reason: connection termination")
		})
	})
	t.Run("reset", func(t *testing.T) {
		runHTTP(t, "", retry(`{retry_on: reset, num_retries: 3}`), func(s *site) {
			s.handle(81, func(c net.Conn) { c.Close() })
			s.handle(82, func(c net.Conn) { c.Close() })
			s.want(get, "503 upstream connect error or disconnect/reset before headers. retried and the latest reset reason: connection termination")
			s.wantLog("503 URX,UC upstream_reset_before_response_started{connection_termination}")
			if v := s.p.Stats().Value("cluster.two.upstream_rq_total"); v != 4 {
				t.Errorf("%v requests were sent, want 4", v)
			}
		})
	})
	t.Run("time of a try", func(t *testing.T) {
		runHTTP(t, "", retry(`{retry_on: 5xx, num_retries: 1, per_try_timeout: 1s}`), func(s *site) {
			s.handle(81, hang)
			if took := s.want(get, "200 ok") + s.want(get, "200 ok"); took < time.Second || took > 3*time.Second {
				t.Errorf("two requests, one of which hung, took %v", took)
			}
		})
	})
	t.Run("never after the response began", func(t *testing.T) {
		runHTTP(t, "", retry(`{retry_on: "5xx,reset", num_retries: 3}`), func(s *site) {
			half := each(func(_ *http.Request, c net.Conn) bool {
				io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
				return false
			})
			s.handle(81, half)
			s.handle(82, half)
			s.want(get, "200 half broken")
		})
	})
}

// Only real sockets tell that the other side has left without being read.
func TestClientThatLeavesEndsItsRequest(t *testing.T) {
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	got, ended := make(chan bool), make(chan bool)
	go func() {
		c, err := app.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 1<<10)
		if _, err := c.Read(b); err == nil {
			got <- true
		}
		io.Copy(io.Discard, c)
		c.Close()
		close(ended)
	}()
	yaml := fmt.Sprintf(manager, "", `              - {match: {prefix: /}, route: {cluster: app, timeout: 0s}}`)
	yaml = strings.Replace(yaml, "10.0.0.1, port_value: 8080", "127.0.0.1, port_value: 0", 1)
	yaml = strings.Replace(yaml, "10.0.0.3, port_value: 80}", fmt.Sprintf("127.0.0.1, port_value: %d}", app.Addr().(*net.TCPAddr).Port), 1)
	b, err := decode.New(decode.Options{}).Bootstrap("x.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{Bootstrap: b, ShutdownTime: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.Run(context.Background()) }()
	for !p.Ready() {
		time.Sleep(time.Millisecond)
	}
	c, err := net.Dial("tcp", p.Listeners()[0].Addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, get)
	<-got
	c.Close()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the host still serves a request that nobody waits for")
	}
	p.Quit()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEarlyResponse(t *testing.T) {
	runHTTP(t, "", toApp, func(s *site) {
		s.handle(80, func(c net.Conn) {
			br := bufio.NewReader(c)
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
			c.Close()
		})
		s.want("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 1000000\r\n\r\n"+strings.Repeat("x", 1000), "413 big")
	})
}

func TestLargeBodiesBothWays(t *testing.T) {
	runHTTP(t, "", toApp, func(s *site) {
		s.handle(80, each(func(r *http.Request, c net.Conn) bool {
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
			for len(b) > 0 {
				n := min(len(b), 70000)
				fmt.Fprintf(c, "%x\r\n%s\r\n", n, b[:n])
				b = b[n:]
			}
			io.WriteString(c, "0\r\n\r\n")
			return true
		}))
		body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		c := s.dial()
		defer c.Close()
		go func() {
			fmt.Fprintf(c, "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: %d\r\n\r\n", len(body))
			c.Write(body)
		}()
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes came back, want %d; error %v", len(got), len(body), err)
		}
	})
}

func TestUpgrade(t *testing.T) {
	const ws = "GET /chat HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
	runHTTP(t, "", toApp, func(s *site) { s.want(ws, "403") })
	runHTTP(t, "upgrade_configs: [{upgrade_type: websocket}]", `              - {match: {prefix: /}, route: {cluster: app, timeout: 3s}}`, func(s *site) {
		s.handle(80, func(c net.Conn) {
			br := bufio.NewReader(c)
			r, err := http.ReadRequest(br)
			if err != nil || r.Header.Get("Upgrade") != "websocket" || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
				c.Close()
				return
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
			io.Copy(c, br)
			c.Close()
		})
		c := s.dial()
		defer c.Close()
		io.WriteString(c, ws)
		br := bufio.NewReader(c)
		r, err := http.ReadResponse(br, nil)
		if err != nil || r.StatusCode != 101 || r.Header.Get("Upgrade") != "websocket" {
			t.Fatalf("%v, %v", r, err)
		}
		for i := range 5 {
			time.Sleep(4 * time.Second) // longer than the time of the route
			fmt.Fprintf(c, "message %d\n", i)
			if line, err := br.ReadString('\n'); line != fmt.Sprintf("message %d\n", i) {
				t.Fatalf("%q, %v", line, err)
			}
		}
	})
}

// A request that passes the proxy three times makes one trace: each span's parent is that of the hop before.
func TestTraceOverThreeHops(t *testing.T) {
	const settings = `tracing:
  provider:
    name: envoy.tracers.opentelemetry
    typed_config:
      "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
      service_name: web
      http_service: {http_uri: {uri: http://collector/v1/traces, cluster: two, timeout: 1s}}
`
	runHTTP(t, settings, toApp, func(s *site) {
		s.handle(80, each(func(r *http.Request, c net.Conn) bool {
			body := "end"
			if next := map[string]string{"/1": "/2", "/2": "/3"}[r.URL.Path]; next != "" {
				p, err := s.app.Dial(context.Background(), "10.0.0.1:8080")
				if err != nil {
					return false
				}
				defer p.Close()
				fmt.Fprintf(p, "GET %s HTTP/1.1\r\nhost: web\r\ntraceparent: %s\r\n\r\n", next, r.Header.Get("traceparent"))
				body = answer(bufio.NewReader(p))
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
			return true
		}))
		var mu sync.Mutex
		spans := map[string]*tracev1.Span{} // by parent
		collect := each(func(r *http.Request, c net.Conn) bool {
			b, _ := io.ReadAll(r.Body)
			var d tracev1.TracesData
			if err := proto.Unmarshal(b, &d); err != nil || r.URL.Path != "/v1/traces" {
				t.Errorf("the collector got %s: %v", r.URL.Path, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, sp := range d.ResourceSpans[0].ScopeSpans[0].Spans {
				spans[string(sp.ParentSpanId)] = sp
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
			return true
		})
		s.handle(81, collect)
		s.handle(82, collect)
		s.want("GET /1 HTTP/1.1\r\nhost: web\r\n\r\n", "200 200 200 end")
		time.Sleep(10 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		parent, trace := "", ""
		for hop := range 3 {
			sp := spans[parent]
			if sp == nil {
				t.Fatalf("no span for hop %d among %d", hop+1, len(spans))
			}
			if trace == "" {
				trace = string(sp.TraceId)
			}
			if string(sp.TraceId) != trace || sp.EndTimeUnixNano < sp.StartTimeUnixNano {
				t.Errorf("hop %d: %v", hop+1, sp)
			}
			parent = string(sp.SpanId)
		}
	})
}
