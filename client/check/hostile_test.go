package check_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/check"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// addressed is a connection to an address.
type addressed struct {
	net.Conn
	to net.Addr
}

func (c addressed) RemoteAddr() net.Addr { return c.to }

func TestThreat13RedirectsReachNothingInside(t *testing.T) {
	const inside = "redirected to an address that is not for others to choose"
	names := map[string]string{"web.example": "10.0.0.1", "other.example": "10.0.0.2", "metadata.example": "169.254.169.254", "here.example": "127.0.0.1"}
	secret := map[string][]string{"X-Secret": {"s"}, "User-Agent": {"me"}}
	for _, tt := range []struct {
		name, want string
		def        definition.Check
		asked      string // requests that arrived
	}{
		{name: "to the same host", def: definition.Check{HTTP: "http://web.example/to?/ok", Header: secret},
			want: "passing HTTP GET http://web.example/to?/ok: 200 OK Output: ", asked: "GET web.example/to me s; GET web.example/ok me s"},
		{name: "to another host, which is not told what the first was", def: definition.Check{HTTP: "http://web.example/to?http://other.example/ok", Header: secret},
			want: "passing HTTP GET http://web.example/to?http://other.example/ok: 200 OK Output: ", asked: "GET web.example/to me s; GET other.example/ok Consul Health Check "},
		{name: "to another port", def: definition.Check{HTTP: "http://web.example/to?http://web.example:81/ok", Header: secret},
			want: "passing HTTP GET http://web.example/to?http://web.example:81/ok: 200 OK Output: ", asked: "GET web.example/to me s; GET web.example:81/ok Consul Health Check "},
		{name: "in circles", def: definition.Check{HTTP: "http://web.example/loop"},
			want: `critical Get "/loop": stopped after 10 redirects`, asked: strings.TrimSuffix(strings.Repeat("GET web.example/loop Consul Health Check ; ", 10), "; ")},
		{name: "to an address of the link", def: definition.Check{HTTP: "http://web.example/to?http://169.254.169.254/latest"},
			want: `critical Get "http://169.254.169.254/latest": ` + inside, asked: "GET web.example/to Consul Health Check "},
		{name: "to a name for an address of the link", def: definition.Check{HTTP: "http://web.example/to?http://metadata.example/latest"},
			want: `critical Get "http://metadata.example/latest": ` + inside, asked: "GET web.example/to Consul Health Check "},
		{name: "to a mapped address of the link", def: definition.Check{HTTP: "http://web.example/to?http://[::ffff:169.254.169.254]/latest"},
			want: `critical Get "http://[::ffff:169.254.169.254]/latest": ` + inside, asked: "GET web.example/to Consul Health Check "},
		{name: "to an IPv6 address of the link", def: definition.Check{HTTP: "http://web.example/to?http://[fe80::1]/latest"},
			want: `critical Get "http://[fe80::1]/latest": ` + inside, asked: "GET web.example/to Consul Health Check "},
		{name: "to metadata over IPv6", def: definition.Check{HTTP: "http://web.example/to?http://[fd00:ec2::254]/latest"},
			want: `critical Get "http://[fd00:ec2::254]/latest": ` + inside, asked: "GET web.example/to Consul Health Check "},
		{name: "from another machine to this one", def: definition.Check{HTTP: "http://web.example/to?http://here.example:8500/v1/agent/self"},
			want: `critical Get "http://here.example:8500/v1/agent/self": ` + inside, asked: "GET web.example/to Consul Health Check "},
		{name: "by way of a third", def: definition.Check{HTTP: "http://web.example/to?http://other.example/to?http://127.0.0.1/"},
			want: `critical Get "http://127.0.0.1/": ` + inside, asked: "GET web.example/to Consul Health Check ; GET other.example/to Consul Health Check "},
		{name: "on this machine", def: definition.Check{HTTP: "http://here.example/to?http://127.0.0.1:81/ok"},
			want: "passing HTTP GET http://here.example/to?http://127.0.0.1:81/ok: 200 OK Output: ", asked: "GET here.example/to Consul Health Check ; GET 127.0.0.1:81/ok Consul Health Check "},
		{name: "on this machine, to an address of the link", def: definition.Check{HTTP: "http://here.example/to?http://169.254.169.254/"},
			want: `critical Get "http://169.254.169.254/": ` + inside, asked: "GET here.example/to Consul Health Check "},
		{name: "none, and a check of an address of the link", def: definition.Check{HTTP: "http://169.254.1.1/ok"},
			want: "passing HTTP GET http://169.254.1.1/ok: 200 OK Output: ", asked: "GET 169.254.1.1/ok Consul Health Check "},
		{name: "that repeats a POST here", def: definition.Check{HTTP: "http://web.example/again?/ok", Method: "POST", Body: "b"},
			want: "passing HTTP POST http://web.example/again?/ok: 200 OK Output: b", asked: "POST web.example/again Consul Health Check ; POST web.example/ok Consul Health Check "},
		{name: "that would repeat a POST elsewhere", def: definition.Check{HTTP: "http://web.example/again?http://other.example/ok", Method: "POST", Body: "b"},
			want: `critical Post "http://other.example/ok": POST is not repeated at other.example, to where it is redirected`, asked: "POST web.example/again Consul Health Check "},
		{name: "judged, not followed", def: definition.Check{HTTP: "http://web.example/to?http://169.254.169.254/", DisableRedirects: true},
			want: "critical HTTP GET http://web.example/to?http://169.254.169.254/: 302 Found Output: ", asked: "GET web.example/to Consul Health Check "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("HTTP_PROXY", "http://proxy.example:3128") // nobody asks it
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var asked []string
				l := bufconn.Listen(1024)
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					asked = append(asked, fmt.Sprintf("%s %s%s %s %s", r.Method, r.Host, r.URL.Path, r.UserAgent(), r.Header.Get("X-Secret")))
					mu.Unlock()
					switch r.URL.Path {
					case "/to":
						w.Header().Set("Location", r.URL.RawQuery)
						w.WriteHeader(302)
					case "/again":
						w.Header().Set("Location", r.URL.RawQuery)
						w.WriteHeader(307)
					case "/loop":
						w.Header().Set("Location", "/loop")
						w.WriteHeader(302)
					default:
						io.Copy(w, r.Body)
					}
				})}
				go srv.Serve(l)
				defer srv.Close()
				s, log := newScheduler(t, check.Config{Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
					host, _, err := net.SplitHostPort(address)
					if err != nil {
						return nil, err
					}
					if ip := names[host]; ip != "" {
						host = ip
					}
					ip := net.ParseIP(host)
					if ip == nil {
						return nil, fmt.Errorf("nobody is called %s", host)
					}
					conn, err := l.DialContext(ctx)
					return addressed{conn, &net.TCPAddr{IP: ip, Port: 80}}, err
				}})
				tt.def.Interval = time.Minute
				add(t, s, "a", tt.def)
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if got := log.last(t); got != "a "+tt.want {
					t.Errorf("got  %q\nwant %q", got, "a "+tt.want)
				}
				mu.Lock()
				defer mu.Unlock()
				if got := strings.Join(asked, "; "); got != tt.asked {
					t.Errorf("asked %q\nwant  %q", got, tt.asked)
				}
			})
		})
	}
}

// peer runs one check against a target that behaves as talk does, for half a minute, and returns the last report with
// the time it came at and the bytes the target could send.
func peer(t *testing.T, def definition.Check, talk func(conn net.Conn)) (report string, sent int64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var total atomic.Int64
		s, log := newScheduler(t, check.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				talk(counted{theirs, &total})
			}()
			return ours, nil
		}})
		def.Interval = time.Hour
		add(t, s, "a", def)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		lines := log.take()
		if len(lines) != 1 {
			t.Fatalf("reported %q, want one result", lines)
		}
		report, sent = lines[0], total.Load()
	})
	return report, sent
}

// counted counts what is written.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// forever writes text again and again, with a pause in between, until that fails.
func forever(w io.Writer, pause time.Duration, text string) {
	for {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
		time.Sleep(pause)
	}
}

// heard reads an HTTP request.
func heard(conn net.Conn) {
	if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
		r.Body.Close()
	}
}

func TestWhatATargetSendsIsBounded(t *testing.T) {
	web := definition.Check{HTTP: "http://x/"}
	block := strings.Repeat("x", 4096)
	for _, tt := range []struct {
		name string
		def  definition.Check
		talk func(conn net.Conn)
		want string // beginning of the report
		most int64  // bytes sent
		size int    // of the report
	}{
		{"an endless body", web, func(c net.Conn) {
			heard(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			forever(c, 0, block)
		}, "0s a passing HTTP GET http://x/: 200 OK Output: xxx", 1<<20 + 16<<10, 4200},
		{"an endless chunk", web, func(c net.Conn) {
			heard(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n")
			forever(c, 0, block)
		}, "0s a passing HTTP GET http://x/: 200 OK Output: xxx", 1<<20 + 16<<10, 4200},
		{"a body that never ends, byte by byte", web, func(c net.Conn) {
			heard(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			forever(c, time.Second, "y")
		}, "10s a passing HTTP GET http://x/: 200 OK Output: yyyyyyyyyy", 100, 200},
		{"an endless header", web, func(c net.Conn) {
			heard(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			forever(c, 0, "X-A: "+block+"\r\n")
		}, `0s a critical Get "http://x/": net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded 65536 bytes`, 80 << 10, 200},
		{"an endless line of the header", web, func(c net.Conn) {
			heard(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX-A: ")
			forever(c, 0, block)
		}, `0s a critical Get "http://x/": net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded 65536 bytes`, 80 << 10, 200},
		{"answers that are not the last", web, func(c net.Conn) {
			heard(c)
			forever(c, 0, "HTTP/1.1 103 Early Hints\r\nX-A: "+block+"\r\n\r\n")
		}, `0s a critical Get "http://x/": net/http: `, 256 << 10, 200},
		{"a header that never ends, byte by byte", web, func(c net.Conn) {
			heard(c)
			forever(c, time.Second, "H")
		}, `10s a critical Get "http://x/": `, 100, 200},
		{"a long status line", web, func(c net.Conn) {
			heard(c)
			io.WriteString(c, "HTTP/1.1 200 "+strings.Repeat("k", 50_000)+"\r\nContent-Length: 0\r\n\r\n")
		}, "0s a passing HTTP GET http://x/: 200 kkk", 80 << 10, 300},
		{"nonsense that is repeated in the error", web, func(c net.Conn) {
			heard(c)
			io.WriteString(c, strings.Repeat("z", 50_000)+"\r\n\r\n")
		}, `0s a critical Get "http://x/": net/http: HTTP/1.x transport connection broken: malformed HTTP `, 80 << 10, 4200},
		{"silence", web, func(c net.Conn) { heard(c); io.Copy(io.Discard, c) }, `10s a critical Get "http://x/": context deadline exceeded`, 0, 200},
		{"no handshake", definition.Check{HTTP: "https://x/"}, func(c net.Conn) { io.Copy(io.Discard, c) }, `10s a critical Get "https://x/": context deadline exceeded`, 0, 200},
		{"no handshake for TCP", definition.Check{TCP: "x:1", TCPUseTLS: true, Timeout: 3 * time.Second}, func(c net.Conn) { io.Copy(io.Discard, c) }, "3s a critical ", 0, 200},
		{"a handshake byte by byte", definition.Check{TCP: "x:1", TCPUseTLS: true}, func(c net.Conn) {
			go io.Copy(io.Discard, c)
			io.WriteString(c, "\x16\x03\x03\x40\x00")
			forever(c, time.Second, "x")
		}, "10s a critical ", 100, 200},
		{"settings without end", definition.Check{H2PING: "x:1"}, func(c net.Conn) {
			go io.Copy(io.Discard, c)
			f := http2.NewFramer(c, nil)
			for f.WriteSettings() == nil {
			}
		}, "0s a critical HTTP2 ping failed: no answer within 1000 frames", 16 << 10, 200},
		{"a frame that is too long", definition.Check{H2PING: "x:1"}, func(c net.Conn) {
			go io.Copy(io.Discard, c)
			forever(c, 0, "\xff\xff\xff\x00\x00\x00\x00\x00\x00")
		}, "0s a critical HTTP2 ping failed: http2: frame too large", 100, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, sent := peer(t, tt.def, tt.talk)
			if !strings.HasPrefix(got, tt.want) || len(got) > tt.size || sent > tt.most {
				t.Errorf("%.300q of %d bytes after %d bytes, want %q in %d after %d", got, len(got), sent, tt.want, tt.size, tt.most)
			}
		})
	}
}

func TestGRPCAnswersAreBounded(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		answer     func() (*grpc_health_v1.HealthCheckResponse, error)
	}{
		{"a long error", "a critical rpc error: code = Internal desc = xxx", func() (*grpc_health_v1.HealthCheckResponse, error) {
			return nil, status.Error(codes.Internal, strings.Repeat("x", 20_000))
		}},
		{"an error beyond the limit of headers", "a critical rpc error: code = ", func() (*grpc_health_v1.HealthCheckResponse, error) {
			return nil, status.Error(codes.Internal, strings.Repeat("x", 500_000))
		}},
		{"a long message", "a critical rpc error: code = ResourceExhausted", func() (*grpc_health_v1.HealthCheckResponse, error) {
			r := &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}
			r.ProtoReflect().SetUnknown(append([]byte{0x12, 0x80, 0x80, 0x08}, make([]byte, 128<<10)...)) // field 2, bytes
			return r, nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := bufconn.Listen(1 << 16)
				srv := grpc.NewServer(grpc.MaxHeaderListSize(1 << 20))
				grpc_health_v1.RegisterHealthServer(srv, answerer{answer: tt.answer})
				go srv.Serve(l)
				defer srv.Stop()
				s, log := newScheduler(t, check.Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) }})
				add(t, s, "a", definition.Check{GRPC: "x:1", Interval: time.Hour})
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if got := log.last(t); !strings.HasPrefix(got, tt.want) || len(got) > 5000 {
					t.Errorf("%.200q of %d bytes, want %q", got, len(got), tt.want)
				}
				s.Remove("a")
			})
		})
	}
}

type answerer struct {
	grpc_health_v1.UnimplementedHealthServer
	answer func() (*grpc_health_v1.HealthCheckResponse, error)
}

func (a answerer) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return a.answer()
}

// FuzzHTTP has a target answer anything. Whatever it is, there is one report, in time and within the limit.
func FuzzHTTP(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
	f.Add([]byte("HTTP/1.1 429 Slow down\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b"))
	f.Add([]byte("HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		got, _ := peer(t, definition.Check{HTTP: "http://x/"}, func(c net.Conn) {
			heard(c)
			c.Write(answer)
		})
		words := strings.SplitN(got, " ", 4)
		if len(words) != 4 || len(got) > 4096+1100 || !slices.Contains([]string{"passing", "warning", "critical"}, words[2]) {
			t.Fatalf("reported %.200q", got)
		}
		if !strings.Contains(string(answer), " 2") && words[2] == "passing" {
			t.Errorf("passing after %q", answer)
		}
	})
}

func TestAHungDialEndsWithItsTimeout(t *testing.T) {
	for _, def := range []definition.Check{
		{HTTP: "http://x/"}, {HTTP: "https://x/"}, {TCP: "x:1"}, {UDP: "x:1"}, {GRPC: "x:1"}, {H2PING: "x:1"}, {H2PING: "x:1", H2PingUseTLS: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			var ended atomic.Int64
			s, log := newScheduler(t, check.Config{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				start := time.Now()
				<-ctx.Done()
				ended.Store(int64(time.Since(start)))
				return nil, ctx.Err()
			}})
			def.Interval, def.Timeout = time.Hour, 4*time.Second
			add(t, s, "a", def)
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if got := log.take(); len(got) != 1 || !strings.HasPrefix(got[0], "4s a critical ") || time.Duration(ended.Load()) != 4*time.Second {
				t.Errorf("%s: %q, the dial ended after %s", def.CheckType(), got, time.Duration(ended.Load()))
			}
		})
	}
}

func TestSlowTargetsHoldUpOnlyEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		last, gap := map[string]time.Time{}, time.Duration(0)
		measure := false
		s, _ := newScheduler(t, check.Config{MaxRunning: 100,
			Jitter: func(max time.Duration) time.Duration { return time.Duration(time.Now().UnixNano()*7919) % max },
			Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				if strings.HasPrefix(address, "hangs") {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				mu.Lock()
				defer mu.Unlock()
				if at, ok := last[address]; ok && measure {
					gap = max(gap, time.Since(at))
				}
				last[address] = time.Now()
				return nil, io.EOF
			}})
		for i := range 900 {
			add(t, s, fmt.Sprint("h", i), definition.Check{TCP: fmt.Sprint("hangs", i), Interval: 10 * time.Second})
		}
		for i := range 100 {
			add(t, s, fmt.Sprint("q", i), definition.Check{TCP: fmt.Sprint("quick", i), Interval: 10 * time.Second})
		}
		time.Sleep(3 * time.Minute) // by then every target is known
		mu.Lock()
		measure = true
		clear(last)
		mu.Unlock()
		time.Sleep(3 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if len(last) != 100 || gap > 10*time.Second+time.Millisecond {
			t.Errorf("%d targets that answer were asked, with up to %s in between; want 100 and 10s", len(last), gap)
		}
	})
}

func TestTLS(t *testing.T) {
	for _, tt := range []struct {
		name    string
		adjust  func(c *definition.Check)
		noRoots bool
		base    string // server name of the agent's configuration
		fails   string // part of the output, empty for passing
	}{
		{name: "verified"},
		{name: "unknown authority", noRoots: true, fails: "certificate"},
		{name: "not verified", noRoots: true, adjust: func(c *definition.Check) { c.TLSSkipVerify = true }},
		{name: "another name", adjust: func(c *definition.Check) { c.TLSServerName = "alias.example" }},
		{name: "a wrong name", adjust: func(c *definition.Check) { c.TLSServerName = "wrong.example" }, fails: "wrong.example"},
		{name: "the agent's name for what it checks", base: "wrong.example", fails: "wrong.example"},
		{name: "the check's name before the agent's", base: "wrong.example", adjust: func(c *definition.Check) { c.TLSServerName = "alias.example" }},
	} {
		for kind, def := range map[string]definition.Check{
			"http": {HTTP: "https://up.example/"}, "tcp": {TCP: "up.example:443", TCPUseTLS: true},
			"grpc": {GRPC: "up.example:443", GRPCUseTLS: true}, "h2ping": {H2PING: "up.example:443", H2PingUseTLS: true},
		} {
			t.Run(tt.name+" "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ca := testkit.NewCA(t, "test")
					cert := *ca.Issue("up.example", "alias.example")
					l := bufconn.Listen(1 << 16)
					health := health.NewServer()
					g := grpc.NewServer()
					grpc_health_v1.RegisterHealthServer(g, health)
					var clients atomic.Int32 // that came with a certificate
					srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if len(r.TLS.PeerCertificates) > 0 {
							clients.Add(1)
						}
						if r.ProtoMajor == 2 {
							g.ServeHTTP(w, r)
						}
					}), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}}}
					srv.ErrorLog = stdlog.New(io.Discard, "", 0)
					go srv.ServeTLS(l, "", "")
					defer srv.Close()
					s, log := newScheduler(t, check.Config{
						Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) },
						TLS: func() *tls.Config {
							c := &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{cert}, ServerName: tt.base}
							if tt.noRoots {
								c.RootCAs = x509.NewCertPool()
							}
							return c
						}})
					def.Interval = time.Hour
					if tt.adjust != nil {
						tt.adjust(&def)
					}
					add(t, s, "a", def)
					time.Sleep(20 * time.Second)
					synctest.Wait()
					got := log.last(t)
					if passes := strings.HasPrefix(got, "a passing "); passes != (tt.fails == "") || !strings.Contains(got, tt.fails) {
						t.Errorf("got %q, want a failure with %q", got, tt.fails)
					}
					if kind == "http" && tt.fails == "" && clients.Load() != 1 {
						t.Error("the agent's certificate was not shown")
					}
					s.Remove("a")
				})
			})
		}
	}
}
