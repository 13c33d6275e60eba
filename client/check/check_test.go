package check_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/check"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A log collects what a scheduler reports.
type log struct {
	start time.Time
	mu    sync.Mutex
	lines []string
}

func (l *log) UpdateCheck(id, status, output string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf("%v %s %s %s", time.Since(l.start), id, status, output))
}

func (l *log) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

// last returns the last report about any check, without its time.
func (l *log) last(t *testing.T) string {
	t.Helper()
	lines := l.take()
	if len(lines) == 0 {
		t.Fatal("nothing was reported")
	}
	_, rest, _ := strings.Cut(lines[len(lines)-1], " ")
	return rest
}

func newScheduler(t *testing.T, cfg check.Config) (*check.Scheduler, *log) {
	t.Helper()
	l := &log{start: time.Now()}
	cfg.Sink = l
	if cfg.Jitter == nil {
		cfg.Jitter = func(time.Duration) time.Duration { return 0 }
	}
	s, err := check.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s, l
}

func add(t *testing.T, s *check.Scheduler, id string, def definition.Check) {
	t.Helper()
	if err := s.Add(id, &def, ""); err != nil {
		t.Fatalf("Add(%s): %v", id, err)
	}
}

// refuse is a dial function that counts and refuses.
func refuse(context.Context, string, string) (net.Conn, error) { return nil, errors.New("refused") }

func TestRunsAfterJitterThenAnIntervalAfterEachEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := newScheduler(t, check.Config{
			Jitter: func(max time.Duration) time.Duration { return max / 2 },
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				time.Sleep(3 * time.Second)
				return nil, errors.New("refused")
			},
		})
		add(t, s, "a", definition.Check{TCP: "x:1", Interval: 10 * time.Second})
		time.Sleep(35 * time.Second)
		synctest.Wait()
		want := []string{"8s a critical refused", "21s a critical refused", "34s a critical refused"}
		if got := l.take(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestRunNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := newScheduler(t, check.Config{
			Jitter: func(max time.Duration) time.Duration { return max / 2 },
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				time.Sleep(3 * time.Second)
				return nil, errors.New("refused")
			},
		})
		add(t, s, "a", definition.Check{TCP: "x:1", Interval: time.Minute})
		add(t, s, "b", definition.Check{TCP: "x:1", Interval: time.Hour})
		add(t, s, "ttl", definition.Check{TTL: time.Hour})
		time.Sleep(time.Second)
		s.RunNow("a")
		s.RunNow("ttl") // would expire it
		s.RunNow("nobody")
		time.Sleep(time.Second)
		s.RunNow("a") // runs already
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if got, want := l.take(), []string{"4s a critical refused"}; !slices.Equal(got, want) {
			t.Errorf("within a minute: %q, want %q", got, want)
		}
		time.Sleep(10 * time.Second) // the next run is an interval after the end of that one
		synctest.Wait()
		if got, want := l.take(), []string{"1m7s a critical refused"}; !slices.Equal(got, want) {
			t.Errorf("then: %q, want %q", got, want)
		}
	})
}

func TestShortIntervalsAreRaised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := newScheduler(t, check.Config{Dial: refuse})
		add(t, s, "a", definition.Check{TCP: "x:1", Interval: time.Millisecond})
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		if got := len(l.take()); got != 3 {
			t.Errorf("%d runs, want 3", got)
		}
	})
}

func TestRemoveCancelsTheRunAndDropsItsResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cancelled := make(chan struct{})
		s, l := newScheduler(t, check.Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			close(cancelled)
			return nil, ctx.Err()
		}})
		add(t, s, "a", definition.Check{TCP: "x:1", Interval: time.Second})
		time.Sleep(time.Second)
		s.Remove("a")
		<-cancelled
		time.Sleep(time.Minute)
		if got := l.take(); len(got) != 0 || s.Has("a") {
			t.Errorf("reported %q", got)
		}
	})
}

func TestTenThousandHungChecksShareTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most, runs := 0, 0, 0
		s, _ := newScheduler(t, check.Config{MaxRunning: 500, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			mu.Lock()
			running++
			runs++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			running--
			mu.Unlock()
			return nil, errors.New("refused")
		}})
		for i := range 10_000 {
			add(t, s, fmt.Sprint(i), definition.Check{TCP: "x:1", Interval: 10 * time.Second})
		}
		time.Sleep(20*time.Second + time.Millisecond)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if most != 500 || runs < 10_000 {
			t.Errorf("at most %d ran at once, %d runs; want 500 and every check once", most, runs)
		}
	})
}

func TestThresholds(t *testing.T) {
	// Each step is a result, p or w or c, and after the colon the status then reported, "-" for none.
	for _, tt := range []struct {
		name  string
		def   definition.Check
		steps string
	}{
		{"none", definition.Check{}, "p:p c:c p:p w:w c:c"},
		{"first result counts", definition.Check{SuccessBeforePassing: 3, FailuresBeforeCritical: 3}, "p:p c:- c:- c:c p:- p:- p:p"},
		{"first failure counts", definition.Check{FailuresBeforeCritical: 3}, "c:c p:p c:- c:- c:c"},
		{"warning before critical", definition.Check{FailuresBeforeWarning: 1, FailuresBeforeCritical: 3}, "p:p c:w c:w c:c w:w"},
		{"success breaks the row", definition.Check{FailuresBeforeCritical: 2}, "p:p c:- p:p c:- c:c"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now atomic.Int32
				l := bufconn.Listen(1024)
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(int(now.Load()))
				})}
				go srv.Serve(l)
				defer srv.Close()
				s, log := newScheduler(t, check.Config{
					Jitter: func(max time.Duration) time.Duration { return max / 2 },
					Dial:   func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) },
				})
				tt.def.HTTP, tt.def.Interval = "http://x/", 10*time.Second
				add(t, s, "a", tt.def)
				for i, step := range strings.Fields(tt.steps) {
					result, want, _ := strings.Cut(step, ":")
					now.Store(map[string]int32{"p": 200, "w": 429, "c": 500}[result])
					time.Sleep(10 * time.Second)
					synctest.Wait()
					got := "-"
					if lines := log.take(); len(lines) > 0 {
						got = strings.Fields(lines[0])[2][:1]
					}
					if got != want {
						t.Errorf("step %d (%s): reported %s", i, step, got)
					}
				}
			})
		})
	}
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := newScheduler(t, check.Config{OutputMaxSize: 10})
		add(t, s, "silent", definition.Check{TTL: time.Second})
		add(t, s, "spoke", definition.Check{TTL: 2 * time.Second})
		time.Sleep(500 * time.Millisecond)
		kept, expires, err := s.SetTTL("spoke", "0123456789abcdef")
		if want := "0123456789 ... (captured 10 of 16 bytes)"; err != nil || kept != want || time.Until(expires) != 2*time.Second {
			t.Errorf("SetTTL = %q, %v, %v", kept, expires, err)
		}
		s.SetTTL("spoke", "fine")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		want := []string{"1s silent critical TTL expired", "2.5s spoke critical TTL expired (last output before timeout follows): fine"}
		if got := l.take(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		s.SetTTL("spoke", "")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got, want := l.last(t), "spoke critical TTL expired"; got != want {
			t.Errorf("an update did not start the clock again: %q", got)
		}
		if _, _, err := s.SetTTL("nope", ""); !errors.Is(err, check.ErrNotTTL) {
			t.Errorf("SetTTL of an unknown check: %v", err)
		}
		if scripts, ttls := s.Counts(); scripts != 0 || ttls != 2 {
			t.Errorf("Counts = %d, %d", scripts, ttls)
		}
	})
}

func TestHTTP(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		def        definition.Check
	}{
		{"passing", "a passing HTTP GET http://x/ok: 200 OK Output: GET x|Consul Health Check|text/plain, text/*, */*|", definition.Check{HTTP: "http://x/ok"}},
		{"output keeps its end", "a passing HTTP GET http://x/ok: 200 OK Output: , */*|", definition.Check{HTTP: "http://x/ok", OutputMaxSize: 6}},
		{"request", "a passing HTTP POST http://x/ok: 200 OK Output: POST other|me|b|body",
			definition.Check{HTTP: "http://x/ok", Method: "POST", Body: "body", Header: map[string][]string{"Host": {"other"}, "User-Agent": {"me"}, "Accept": {"b"}}}},
		{"warning", "a warning HTTP GET http://x/429: 429 Too Many Requests Output: ", definition.Check{HTTP: "http://x/429"}},
		{"critical", "a critical HTTP GET http://x/503: 503 Service Unavailable Output: ", definition.Check{HTTP: "http://x/503"}},
		{"redirects are followed", "a warning HTTP GET http://x/301: 429 Too Many Requests Output: ", definition.Check{HTTP: "http://x/301"}},
		{"redirects are judged", "a critical HTTP GET http://x/301: 301 Moved Permanently Output: ", definition.Check{HTTP: "http://x/301", Method: "GET", DisableRedirects: true}},
		{"timeout", `a critical Get "http://x/hang": context deadline exceeded`, definition.Check{HTTP: "http://x/hang", Timeout: time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := bufconn.Listen(1024)
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch r.URL.Path {
					case "/429":
						w.WriteHeader(429)
					case "/503":
						w.WriteHeader(503)
					case "/301":
						w.Header().Set("Location", "/429")
						w.WriteHeader(301)
					case "/hang":
						<-r.Context().Done()
					default:
						body, _ := io.ReadAll(r.Body)
						fmt.Fprintf(w, "%s %s|%s|%s|%s", r.Method, r.Host, r.UserAgent(), r.Header.Get("Accept"), body)
					}
				})}
				go srv.Serve(l)
				defer srv.Close()
				s, log := newScheduler(t, check.Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) }})
				tt.def.Interval = time.Minute
				add(t, s, "a", tt.def)
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if got := log.last(t); got != tt.want {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
			})
		})
	}
}

func TestTCPAndH2PINGAndGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := bufconn.Listen(1 << 16)
		srv := grpc.NewServer()
		hs := health.NewServer()
		hs.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
		grpc_health_v1.RegisterHealthServer(srv, hs)
		go srv.Serve(l)
		defer srv.Stop()
		s, log := newScheduler(t, check.Config{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if network != "tcp" || address != "up:1" {
				return nil, fmt.Errorf("dial %s %s: connection refused", network, address)
			}
			return l.DialContext(ctx)
		}})
		for _, tt := range []struct {
			def  definition.Check
			want string
		}{
			{definition.Check{TCP: "up:1"}, "a passing TCP connect up:1: Success"},
			{definition.Check{TCP: "down:1"}, "a critical dial tcp down:1: connection refused"},
			{definition.Check{TCP: "unix:///tmp/x"}, "a critical dial unix /tmp/x: connection refused"},
			{definition.Check{H2PING: "up:1"}, "a passing HTTP2 ping was successful"},
			{definition.Check{H2PING: "down:1"}, "a critical Failed to dial to down:1: dial tcp down:1: connection refused"},
			{definition.Check{H2PING: "up:1", H2PingUseTLS: true, Timeout: time.Second}, "a critical Failed to dial to up:1: "},
			{definition.Check{TCP: "up:1", TCPUseTLS: true, Timeout: time.Second}, "a critical "},
			{definition.Check{GRPC: "up:1"}, "a passing gRPC check up:1: success"},
			{definition.Check{GRPC: "up:1/down"}, "a critical gRPC up:1/down serving status: NOT_SERVING"},
			{definition.Check{GRPC: "up:1/unknown"}, "a critical rpc error: code = NotFound"},
			{definition.Check{GRPC: "down:1", Timeout: time.Second}, "a critical rpc error: code = Unavailable"},
		} {
			tt.def.Interval = time.Hour
			add(t, s, "a", tt.def)
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := log.last(t); !strings.HasPrefix(got, tt.want) {
				t.Errorf("%+v: %q, want %q", tt.def, got, tt.want)
			}
		}
		s.Remove("a")
	})
}

func TestH2PINGReportsAPeerThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := newScheduler(t, check.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				io.CopyN(io.Discard, theirs, int64(len(http2.ClientPreface)))
				f := http2.NewFramer(theirs, theirs)
				for {
					if _, err := f.ReadFrame(); err != nil {
						return
					}
				}
			}()
			return ours, nil
		}})
		add(t, s, "a", definition.Check{H2PING: "x:1", Interval: time.Minute})
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if got, want := log.last(t), "a critical HTTP2 ping failed: context deadline exceeded"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestUDP(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		answer     error // what the read meets; nil for a byte
	}{
		{"answer", "a passing UDP connect x:1: Success", nil},
		{"silence", "a passing UDP connect x:1: Success", os.ErrDeadlineExceeded},
		{"refused", "a critical connection refused", errors.New("connection refused")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := &packetConn{answer: tt.answer, expired: make(chan struct{})}
				s, log := newScheduler(t, check.Config{Dial: func(_ context.Context, network, address string) (net.Conn, error) {
					if network != "udp" {
						t.Errorf("dialled %s", network)
					}
					return conn, nil
				}})
				add(t, s, "a", definition.Check{UDP: "x:1", Interval: time.Minute})
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if got := log.last(t); got != tt.want || conn.sent != 1 {
					t.Errorf("got %q after %d datagrams, want %q", got, conn.sent, tt.want)
				}
			})
		})
	}
}

// A packetConn answers a datagram as told.
type packetConn struct {
	net.Conn
	answer  error
	sent    int
	expired chan struct{}
}

func (c *packetConn) Write(p []byte) (int, error) { c.sent++; return len(p), nil }
func (c *packetConn) Read(p []byte) (int, error) {
	if errors.Is(c.answer, os.ErrDeadlineExceeded) {
		<-c.expired
		return 0, &net.OpError{Op: "read", Err: c.answer}
	}
	return 1, c.answer
}
func (c *packetConn) SetDeadline(time.Time) error { close(c.expired); return nil }
func (c *packetConn) Close() error                { return nil }

func TestTLSBeginsWithTheAgentsConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		var name string
		s, log := newScheduler(t, check.Config{
			TLS: func() *tls.Config { asked++; return &tls.Config{MinVersion: tls.VersionTLS13} },
			Dial: func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer theirs.Close()
					tls.Server(theirs, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
						name = h.ServerName
						return nil, errors.New("no")
					}}).Handshake()
				}()
				return ours, nil
			}})
		add(t, s, "a", definition.Check{TCP: "x:1", TCPUseTLS: true, TLSServerName: "other.example", Interval: time.Minute})
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := log.last(t); !strings.HasPrefix(got, "a critical") || asked != 1 || name != "other.example" {
			t.Errorf("%q, asked %d times, server name %q", got, asked, name)
		}
	})
}

func TestScript(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("needs a shell")
	}
	for _, tt := range []struct {
		name, script, want string
		limit              int
	}{
		{name: "passing", script: "echo out; echo err >&2", want: "a passing out\nerr\n"},
		{name: "warning", script: "echo w; exit 1", want: "a warning w\n"},
		{name: "critical", script: "echo c; exit 2", want: "a critical c\n"},
		{name: "killed", script: "kill -9 $$", want: "a critical "},
		{name: "tail", script: "for i in 1 2 3 4 5 6 7 8; do printf 0123456789; done", limit: 20, want: "a passing Captured 20 of 80 bytes\n...\n01234567890123456789"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := "a " + once(t, check.Config{}, definition.Check{ScriptArgs: []string{"sh", "-c", tt.script}, Interval: time.Hour, OutputMaxSize: tt.limit})
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("timeout kills the group", func(t *testing.T) {
		t.Parallel()
		timedOut(t, check.Config{}, definition.Check{ScriptArgs: []string{"sh", "-c", "echo hi; sleep 60 & sleep 60"}}, "hi\n")
	})
}

// timedOut runs a check that hangs once it has said something, and wants a report of that which begins with want. Where
// the machine is too busy for it to have said anything in time, it gets more.
func timedOut(t *testing.T, cfg check.Config, def definition.Check, want string) {
	t.Helper()
	def.Interval = time.Hour
	for def.Timeout = 300 * time.Millisecond; ; def.Timeout *= 10 {
		got := once(t, cfg, def)
		said, ok := strings.CutPrefix(got, fmt.Sprintf("critical Timed out (%s) running check\n\n", def.Timeout))
		if ok && strings.HasPrefix(said, want) {
			return
		}
		if !ok || said != "" || def.Timeout > time.Minute {
			t.Fatalf("got %q, want what says %q", got, want)
		}
	}
}

type sinkFunc func(id, status, output string)

func (f sinkFunc) UpdateCheck(id, status, output string) { f(id, status, output) }

// engine is a stand-in for the Docker engine on a unix socket. start answers the request that runs the program, ended is
// what the engine says about it afterwards.
func engine(t *testing.T, start http.HandlerFunc, ended string) func(context.Context) (net.Conn, error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "docker") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /containers/web/exec", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if want := `{"AttachStderr":true,"AttachStdout":true,"Cmd":["check","-v"]}`; string(body) != want || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("asked for %s, want %s", body, want)
		}
		w.WriteHeader(201)
		io.WriteString(w, `{"Id":"e1"}`)
	})
	mux.HandleFunc("POST /exec/e1/start", start)
	mux.HandleFunc("GET /exec/e1/json", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, ended) })
	mux.HandleFunc("POST /containers/elsewhere/exec", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/containers/web/exec", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("POST /containers/stopped/exec", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(409)
		io.WriteString(w, `{"message":"container stopped is not running"}`)
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", path) }
}

// frames writes output as the engine does, a part to a stream each.
func frames(w io.Writer, parts ...string) {
	for i, part := range parts {
		head := [8]byte{byte(i%2 + 1)}
		binary.BigEndian.PutUint32(head[4:], uint32(len(part)))
		w.Write(append(head[:], part...))
	}
}

func TestDocker(t *testing.T) {
	says := func(parts ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { frames(w, parts...) }
	}
	for _, tt := range []struct {
		name, container string
		start           http.HandlerFunc
		ended, want     string
	}{
		{name: "passing", start: says("o", "ut"), ended: `{"ExitCode":0}`, want: "passing out"},
		{name: "warning", start: says("o", "ut"), ended: `{"ExitCode":1}`, want: "warning out"},
		{name: "critical", start: says("o", "ut"), ended: `{"ExitCode":126}`, want: "critical out"},
		{name: "silent", start: says(), ended: `{"ExitCode":0}`, want: "passing "},
		{name: "the end of the output is kept", start: says(strings.Repeat("x", 5000), "end"), ended: `{"ExitCode":0}`,
			want: "passing Captured 10 of 5003 bytes\n...\nxxxxxxxend"},
		{name: "not ended", start: says("o"), ended: `{"Running":true,"ExitCode":null}`, want: "critical docker: the engine stopped sending output before the program had ended"},
		{name: "nonsense", start: says("o"), ended: `]`, want: "critical docker: read the answer to /exec/e1/json: invalid character ']' looking for beginning of value"},
		{name: "a frame cut short", start: func(w http.ResponseWriter, r *http.Request) { w.Write([]byte{1, 0, 0, 0, 0, 0, 1, 0, 'x'}) },
			want: "critical docker: read output: EOF"},
		{name: "unknown", container: "gone", want: "critical docker: POST /containers/gone/exec: 404 Not Found: 404 page not found"},
		{name: "stopped", container: "stopped", want: `critical docker: POST /containers/stopped/exec: 409 Conflict: {"message":"container stopped is not running"}`},
		{name: "redirected", container: "elsewhere", want: "critical docker: POST /containers/elsewhere/exec: 307 Temporary Redirect: "},
		{name: "a name that is a path", container: "../../info?", want: "critical docker: POST /containers/..%2F..%2Finfo%3F/exec: 404"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.start == nil {
				tt.start = says()
			}
			dial := engine(t, tt.start, tt.ended)
			container := tt.container
			if container == "" {
				container = "web"
			}
			got := once(t, check.Config{DialDocker: dial}, definition.Check{DockerContainerID: container, ScriptArgs: []string{"check", "-v"},
				Interval: time.Hour, OutputMaxSize: 10})
			if !strings.HasPrefix(got, tt.want) || !strings.HasSuffix(got, tt.want) && !strings.Contains(tt.want, ": 404") && tt.container != "elsewhere" {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	t.Run("endless", func(t *testing.T) {
		t.Parallel()
		dial := engine(t, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				frames(w, strings.Repeat("x", 5000))
			}
		}, "")
		timedOut(t, check.Config{DialDocker: dial}, definition.Check{DockerContainerID: "web", ScriptArgs: []string{"check", "-v"}, OutputMaxSize: 10}, "Captured 10 of ")
	})
}

func TestDockerWithoutAnEngine(t *testing.T) {
	def := definition.Check{DockerContainerID: "web", ScriptArgs: []string{"x"}, Interval: time.Hour}
	if got, want := once(t, check.Config{}, def), "critical docker checks are not available"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	dial := func(context.Context) (net.Conn, error) { return nil, errors.New("nobody listens") }
	if got := once(t, check.Config{DialDocker: dial}, def); !strings.HasSuffix(got, "nobody listens") || !strings.HasPrefix(got, "critical docker: ") {
		t.Errorf("%q", got)
	}
}

// once runs a check in real time and returns its first result.
func once(t *testing.T, cfg check.Config, def definition.Check) string {
	t.Helper()
	reported := make(chan string, 1)
	cfg.Sink = sinkFunc(func(_, status, output string) { reported <- status + " " + output })
	cfg.Jitter = func(time.Duration) time.Duration { return 0 }
	s, err := check.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	add(t, s, "a", def)
	got := <-reported
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	return got
}

func TestProgramsTakeNoPlacesOfNetworkChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, l := newScheduler(t, check.Config{MaxRunning: 1, MaxScripts: 2, Dial: refuse, DialDocker: func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		for i := range 5 {
			add(t, s, fmt.Sprint("docker", i), definition.Check{DockerContainerID: "x", ScriptArgs: []string{"x"}, Interval: time.Second})
		}
		add(t, s, "tcp", definition.Check{TCP: "x:1", Interval: time.Minute})
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		tcp, docker := 0, map[string]int{}
		for _, line := range l.take() {
			if _, rest, _ := strings.Cut(line, " "); rest == "tcp critical refused" {
				tcp++
			} else if strings.HasSuffix(rest, " critical Timed out (5m0s) running check\n\n") {
				docker[line[:strings.Index(line, " ")]]++
			}
		}
		if want := map[string]int{"5m0s": 2, "10m0s": 2}; tcp != 13 || !maps.Equal(docker, want) {
			t.Errorf("%d runs of the network check, docker checks ended %v; want 13 and %v", tcp, docker, want)
		}
	})
}

func TestOSService(t *testing.T) {
	for _, tt := range []struct {
		name  string
		state check.ServiceState
		err   error
		want  string
	}{
		{"running", check.ServiceState{Name: "active", Running: true}, nil, `passing Service "nginx" is healthy`},
		{"on its way", check.ServiceState{Name: "activating"}, nil, `warning Service "nginx" is activating`},
		{"stopped", check.ServiceState{Name: "failed", Stopped: true}, nil, `critical Service "nginx" is failed`},
		{"unknown", check.ServiceState{}, errors.New("no bus"), `critical Service "nginx": no bus`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ask := func(_ context.Context, name string) (check.ServiceState, error) {
					if name != "nginx" {
						t.Errorf("asked for %s", name)
					}
					return tt.state, tt.err
				}
				if got := once(t, check.Config{OSService: ask}, definition.Check{OSService: "nginx", Interval: time.Hour}); got != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		for timeout, want := range map[time.Duration]time.Duration{0: 30 * time.Second, 5 * time.Second: 5 * time.Second} {
			start := time.Now()
			silent := func(ctx context.Context, _ string) (check.ServiceState, error) {
				<-ctx.Done()
				return check.ServiceState{}, ctx.Err()
			}
			got := once(t, check.Config{OSService: silent}, definition.Check{OSService: "nginx", Interval: time.Hour, Timeout: timeout})
			if got != `critical Service "nginx": context deadline exceeded` || time.Since(start) != want {
				t.Errorf("%q after %s, want %s", got, time.Since(start), want)
			}
		}
	})
}

// checks is what alias checks of the agent see.
type checks struct {
	mu     sync.Mutex
	list   []*catalog.Check
	exists bool
}

func (c *checks) AliasChecks(string) ([]*catalog.Check, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list, c.exists
}

func TestAlias(t *testing.T) {
	one := func(id, service, status, output string) *catalog.Check {
		return &catalog.Check{CheckID: id, Name: "n" + id, ServiceID: service, Status: status, Output: output}
	}
	synctest.Test(t, func(t *testing.T) {
		src := &checks{}
		s, log := newScheduler(t, check.Config{Aliases: src})
		add(t, s, "al", definition.Check{AliasService: "web"})
		for _, tt := range []struct {
			list   []*catalog.Check
			exists bool
			want   string
		}{
			{nil, false, "al critical Service web could not be found on node "},
			{nil, true, "al passing No checks found."},
			{[]*catalog.Check{one("al", "", "critical", "self")}, true, "al passing No checks found."},
			{[]*catalog.Check{one("1", "web", "passing", "")}, true, "al passing All checks passing."},
			{[]*catalog.Check{one("1", "web", "warning", "slow"), one("2", "web", "passing", "")}, true, `al warning Aliased check "n1" failing: slow`},
			{[]*catalog.Check{one("1", "web", "warning", "slow"), one("2", "web", "critical", "down")}, true, `al critical Aliased check "n2" failing: down`},
			{[]*catalog.Check{one("1", "web", "passing", ""), one("2", "", "critical", "node")}, true, `al critical Aliased check "n2" failing: node`},
			{[]*catalog.Check{one("1", "other", "critical", "")}, true, "al passing No checks found."},
		} {
			synctest.Wait()
			log.take()
			src.mu.Lock()
			src.list, src.exists = tt.list, tt.exists
			src.mu.Unlock()
			s.Trigger("al")
			synctest.Wait()
			if got := log.last(t); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(log.take()) != 1 {
			t.Error("an alias is not judged again after a minute")
		}
	})
}

// catalogCaller answers the calls of an alias check that names a node.
type catalogCaller struct {
	mu      sync.Mutex
	index   uint64
	changed chan struct{}
	checks  []*catalog.Check
	fail    error
}

func (c *catalogCaller) set(fail error, list ...*catalog.Check) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index++
	c.checks, c.fail = list, fail
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *catalogCaller) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	switch req := req.(type) {
	case *catalog.ChecksRequest:
		c.mu.Lock()
		for c.index <= req.MinIndex && c.fail == nil {
			changed := c.changed
			c.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(req.MaxWait):
				req.MinIndex = 0
			}
			c.mu.Lock()
		}
		defer c.mu.Unlock()
		r := resp.(*catalog.ChecksReply)
		r.Index, r.Checks = c.index, c.checks
		return c.fail
	case *catalog.NodeServicesRequest:
		r := resp.(*catalog.NodeServicesReply)
		r.Node, r.Services = &catalog.Node{Node: req.Node}, []*catalog.Service{{ID: "web"}}
		return nil
	}
	return fmt.Errorf("unexpected call of %s", d.Name)
}

func TestAliasOfANodeFollowsTheCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &catalogCaller{index: 5, changed: make(chan struct{})}
		s, log := newScheduler(t, check.Config{Caller: c})
		add(t, s, "al", definition.Check{AliasNode: "n2", AliasService: "web"})
		synctest.Wait()
		if got, want := log.last(t), "al passing No checks found."; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		c.set(nil, &catalog.Check{CheckID: "c", Name: "main", ServiceID: "web", Status: "warning", Output: "slow"})
		synctest.Wait()
		if got, want := log.last(t), `al warning Aliased check "main" failing: slow`; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		c.set(errors.New("no leader"))
		synctest.Wait()
		if got := log.take(); len(got) != 0 {
			t.Errorf("one failure was reported: %q", got)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got, want := log.last(t), "al critical Failure checking aliased node or service: no leader"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		add(t, s, "gone", definition.Check{AliasNode: "n2", AliasService: "nope"})
		c.set(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := log.take(); !slices.ContainsFunc(got, func(l string) bool {
			return strings.HasSuffix(l, "gone critical Service nope could not be found on node n2")
		}) {
			t.Errorf("reported %q", got)
		}
	})
}

func TestAddRefusesWhatItCannotRun(t *testing.T) {
	s, err := check.New(check.Config{Sink: &log{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Add("a", &definition.Check{OSService: "x", Interval: time.Second}, ""); err == nil || wireerr.Status(err) != 500 || !strings.HasPrefix(err.Error(), "not implemented: this system has no service manager") {
		t.Errorf("OS service: %v", err)
	}
	if err := s.Add("a", &definition.Check{HTTP: "x"}, ""); err == nil {
		t.Error("a check without an interval was accepted")
	}
	if s.Has("a") {
		t.Error("a refused check is run")
	}
}
