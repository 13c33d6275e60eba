//go:build unix

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The classes of vulnerabilities that concern a proxy or its control plane, and the tests that stand for each:
//
//	certificates for others                           connect/ca TestParseCSRRefuses, FuzzParseCSR
//	client certificate reaches what is the servers'   TestClusterWithTLSKeepsOthersOut
//	certificate checks silently left out              connect/proxy/tlscontext TestPeersAreCheckedAgainstTheValidationContext, connect/proxy/decode TestBadListeners, TestBadClusters,
//	                                                  TestCertificateExpiresWhileNothingRenewsIt
//	malformed configuration ends the process          connect/proxy/decode FuzzListener, FuzzRouteConfig, FuzzCluster, FuzzSecret, connect/xds FuzzExtensionArguments, connect/mesh FuzzGatewayConfig
//	streams and resources without a bound             TestFloodsCostLittle, TestSlowClientsCostLittle, TestHugeHeadsCostLittle, connect/ads TestLimits
//	path and header confusion                         TestDeniedPathsAreNotReachedByOtherSpellings, TestRepeatedHeadersDoNotDeceiveRules
//	negative match fails open                         TestRulesHoldForAnyBytes, connect/proxy/rbac TestEvaluate, connect/intention TestDecisionsAgreeWithTheNaiveModel
//	request smuggling                                 TestAmbiguousRequestsReachNobody, connect/proxy/http1 TestRequestHeads, connect/proxy/http2 TestServerRefusesWhatIsNoRequest
//	HTTP/2 exhaustion                                 TestFloodsCostLittle, connect/proxy/http2 TestAttacksEndTheConnection, TestHeaderBombIsCutOff, TestManyCookiesAreJoinedOnce
//	names in certificates                             connect/proxy/tlscontext TestNamesAreTheBytesOfTheCertificate, FuzzNames
//	one service's settings reach another's proxy      connect/ads TestPermission, connect/xds FuzzExtensionArguments
//	open administration                               connect/proxy/admin TestForeignNamesAndOtherPathsAreRefused, TestSocketFolderMustBeClosedToOthers,
//	                                                  connect/proxy/decode TestDumpHidesSecrets

// costs runs an attack and fails if the proxy used more than that much processor time for it, or grew by more bytes.
func costs(t *testing.T, p *proxy, most time.Duration, bytes int, attack func()) {
	t.Helper()
	before, resident := p.usage()
	done := make(chan struct{})
	var peak int
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, now := p.usage(); now > peak {
				peak = now
			}
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	began := time.Now()
	attack()
	took := time.Since(began)
	close(done)
	wg.Wait()
	after, _ := p.usage()
	t.Logf("%v of processor time in %v, %d KiB of memory", after-before, took.Round(time.Millisecond), (peak-resident)>>10)
	if after-before > most {
		t.Errorf("took %v of processor time, more than %v", after-before, most)
	}
	if peak-resident > bytes {
		t.Errorf("grew by %d KiB, more than %d", (peak-resident)>>10, bytes>>10)
	}
	if code, _, err := request("GET", p.admin+"/ready", ""); err != nil || code != 200 {
		t.Errorf("not ready afterwards: %d %v", code, err)
	}
}

// An h2peer speaks frames, also such as nobody should.
type h2peer struct {
	net.Conn
	*http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
}

func dialH2(t testing.TB, port int) *h2peer {
	t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	p := &h2peer{Conn: c, Framer: http2.NewFramer(c, c)}
	p.AllowIllegalWrites = true
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.buf)
	io.WriteString(c, http2.ClientPreface)
	p.WriteSettings()
	return p
}

func (p *h2peer) block(fields ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *h2peer) open(id uint32, end bool, fields ...string) error {
	return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: end, EndHeaders: true, BlockFragment: p.block(fields...)})
}

// h2get is the head of an ordinary request, followed by more fields.
func h2get(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "a.test", ":path", "/x"}, more...)
}

// answer reads frames until a response, a reset or the end, and returns the status, 0 if there is none.
func (p *h2peer) answer() (status int, body []byte) {
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return status, body
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				p.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			status, _ = strconv.Atoi(f.PseudoValue("status"))
			if f.StreamEnded() {
				return status, body
			}
		case *http2.DataFrame:
			body = append(body, f.Data()...)
			if f.StreamEnded() {
				return status, body
			}
		case *http2.RSTStreamFrame:
			return status, body
		}
	}
}

// TestFloodsCostLittle sends HTTP/2 floods over many connections, each reopened when the proxy has ended it, while an
// ordinary client is served.
func TestFloodsCostLittle(t *testing.T) {
	binary(t)
	var running, most atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer running.Add(-1)
		if r.URL.Path == "/slow" {
			select {
			case <-time.After(2 * time.Second):
			case <-r.Context().Done():
			}
		}
		io.WriteString(w, "fine")
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	big := strings.Repeat("b", 4000)
	floods := []struct {
		name   string
		start  func(p *h2peer)
		frame  func(p *h2peer, i int) error
		polite bool // no reason to end the connection
	}{
		{"rapid reset", nil, func(p *h2peer, i int) error {
			id := uint32(2*i + 1)
			p.open(id, true, h2get()...)
			return p.WriteRSTStream(id, http2.ErrCodeCancel)
		}, false},
		{"rapid reset before a slow upstream", nil, func(p *h2peer, i int) error {
			id := uint32(2*i + 1)
			p.open(id, true, ":method", "GET", ":scheme", "http", ":authority", "a.test", ":path", "/slow")
			return p.WriteRSTStream(id, http2.ErrCodeCancel)
		}, false},
		{"resets provoked", nil, func(p *h2peer, i int) error {
			id := uint32(2*i + 1)
			p.open(id, false, h2get()...)
			return p.WriteWindowUpdate(id, 0)
		}, false},
		{"CONTINUATION without end", func(p *h2peer) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(h2get()...)})
		}, func(p *h2peer, i int) error { return p.WriteContinuation(1, false, p.block("x-a", big)) }, false},
		{"HPACK bomb", func(p *h2peer) { p.open(1, true, h2get("x-a", big)...) }, func(p *h2peer, i int) error {
			// One byte for each of 10000 fields of 4 KB.
			b := append(p.block(h2get()...), bytes.Repeat([]byte{0x80 | 62}, 10000)...)
			return p.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 3), EndStream: true, EndHeaders: true, BlockFragment: b})
		}, true},
		{"cookie expansion", func(p *h2peer) { p.open(1, true, h2get("cookie", big)...) }, func(p *h2peer, i int) error {
			b := append(p.block(h2get()...), bytes.Repeat([]byte{0x80 | 62}, 10000)...)
			return p.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 3), EndStream: true, EndHeaders: true, BlockFragment: b})
		}, true},
		{"pings", nil, func(p *h2peer, i int) error { return p.WritePing(false, [8]byte{}) }, false},
		{"settings", nil, func(p *h2peer, i int) error {
			return p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
		}, false},
		{"empty data", func(p *h2peer) { p.open(1, false, h2get()...) }, func(p *h2peer, i int) error { return p.WriteData(1, false, nil) }, false},
		{"window updates", func(p *h2peer) { p.open(1, false, h2get()...) }, func(p *h2peer, i int) error { return p.WriteWindowUpdate(1, 1) }, false},
		{"streams beyond the limit", nil, func(p *h2peer, i int) error {
			return p.open(uint32(2*i+1), true, ":method", "GET", ":scheme", "http", ":authority", "a.test", ":path", "/slow")
		}, true},
	}
	for _, tt := range floods {
		t.Run(tt.name, func(t *testing.T) {
			port := freePorts(1)[0]
			p := startProxy(t, "proxy", bootstrap{
				listeners: httpListener{port: port, hcm: `codec_type: AUTO, http2_protocol_options: {max_concurrent_streams: 100}`}.String(),
				clusters:  clusterOf("up", `circuit_breakers: {thresholds: [{max_connections: 10000, max_requests: 10000, max_pending_requests: 10000}]}`, portOf(l)),
			})
			url := "http://127.0.0.1:" + strconv.Itoa(port)
			if code, body, err := request("GET", url, ""); code != 200 || err != nil {
				t.Fatalf("%d %s %v", code, body, err)
			}
			most.Store(0)
			costs(t, p, 3*time.Second, 64<<20, func() {
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for range 4 {
							c := dialH2(t, port)
							ended := make(chan struct{})
							go func() {
								io.Copy(io.Discard, c.Conn)
								close(ended)
							}()
							if tt.start != nil {
								tt.start(c)
							}
							frames := 50_000
							if tt.polite {
								frames = 300
							}
							i, err := 0, error(nil)
							for ; err == nil && i < frames; i++ {
								err = tt.frame(c, i)
							}
							if !tt.polite {
								select {
								case <-ended:
								case <-time.After(15 * time.Second):
									t.Errorf("open after %d frames, %v", i, err)
								}
							}
							c.Close()
						}
					})
				}
				for range 5 {
					if code, body, err := request("GET", url, ""); code != 200 || body != "fine" || err != nil {
						t.Errorf("meanwhile: %d %s %v", code, body, err)
					}
				}
				wg.Wait()
			})
			// A request that was reset is noticed within a second. Until then it counts, and a connection has no more
			// than twice its streams.
			if n := most.Load(); n > 4*4*2*100 {
				t.Errorf("the upstream had %d requests at a time", n)
			}
			eventually(t, 30*time.Second, "all requests are over", func() bool { return p.stat("http.in.downstream_rq_active") == 0 && running.Load() == 0 })
		})
	}
}

// TestSlowClientsCostLittle holds connections open in every way that costs the client nothing.
func TestSlowClientsCostLittle(t *testing.T) {
	binary(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/large" {
			for range 1000 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	for _, tt := range []struct {
		name, hcm, send, more string // more is sent every 50 ms
		conns, bytes          int    // bytes of memory for each connection
		stays                 bool
		status                string
	}{
		{name: "heads that do not end", hcm: "request_headers_timeout: 1s", send: "GET / HTTP/1.1\r\nHost: a\r\n", more: "x", conns: 300, bytes: 40 << 10, status: "408"},
		{name: "nothing at all", hcm: "common_http_protocol_options: {idle_timeout: 1s}", conns: 300, bytes: 40 << 10},
		{name: "bodies that do not end", hcm: "request_timeout: 1s", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", more: "x", conns: 200, bytes: 80 << 10, status: "408"},
		{name: "bodies that do not come", hcm: "stream_idle_timeout: 1s", send: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", conns: 200, bytes: 80 << 10, status: "408"},
		// Who gets an error, since the service has not begun in time, may ask again for a while.
		{name: "answers that nobody reads", hcm: "stream_idle_timeout: 4s, common_http_protocol_options: {idle_timeout: 4s}", send: "GET /large HTTP/1.1\r\nHost: a\r\n\r\n", conns: 100, bytes: 400 << 10, status: "200"},
		{name: "idle connections", send: "GET / HTTP/1.1\r\nHost: a\r\n\r\n", conns: 2000, bytes: 24 << 10, stays: true, status: "200"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := freePorts(1)[0]
			p := startProxy(t, "proxy", bootstrap{listeners: httpListener{port: port, hcm: tt.hcm}.String(), clusters: clusterOf("up", "", portOf(l))})
			request("GET", "http://127.0.0.1:"+strconv.Itoa(port), "")
			costs(t, p, 2*time.Second, 16<<20+tt.conns*tt.bytes, func() {
				var conns []net.Conn
				for range tt.conns {
					c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if strings.HasPrefix(tt.name, "answers") {
						c.(*net.TCPConn).SetReadBuffer(4096)
					}
					conns = append(conns, c)
					io.WriteString(c, tt.send)
				}
				for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
					if tt.more != "" {
						for _, c := range conns {
							io.WriteString(c, tt.more)
						}
					}
				}
				if tt.stays {
					eventually(t, 30*time.Second, "all connections are open", func() bool { return p.stat("http.in.downstream_cx_active") >= tt.conns })
					return
				}
				eventually(t, 30*time.Second, "the proxy has closed them", func() bool { return p.stat("http.in.downstream_cx_active") <= 1 })
				if tt.status != "" {
					b := make([]byte, 100)
					conns[0].SetReadDeadline(time.Now().Add(2 * time.Second))
					n, _ := conns[0].Read(b)
					if !strings.HasPrefix(string(b[:n]), "HTTP/1.1 "+tt.status) {
						t.Errorf("got %q, want status %s", b[:n], tt.status)
					}
				}
			})
		})
	}
}

// TestHugeHeadsCostLittle sends heads of megabytes.
func TestHugeHeadsCostLittle(t *testing.T) {
	binary(t)
	port := freePorts(1)[0]
	p := startProxy(t, "proxy", bootstrap{listeners: httpListener{port: port}.String(), clusters: clusterOf("up", "", echo(t, "web"))})
	for name, send := range map[string]func(w *bufio.Writer){
		"a long line":  func(w *bufio.Writer) { w.WriteString("GET /" + strings.Repeat("a", 8<<20)) },
		"a long field": func(w *bufio.Writer) { w.WriteString("GET / HTTP/1.1\r\nHost: a\r\nx: " + strings.Repeat("a", 8<<20)) },
		"many fields": func(w *bufio.Writer) {
			w.WriteString("GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("x: a\r\n", 1<<20))
		},
		"a long name":   func(w *bufio.Writer) { w.WriteString("GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("x", 8<<20)) },
		"a long method": func(w *bufio.Writer) { w.WriteString(strings.Repeat("X", 8<<20)) },
		"a long trailer": func(w *bufio.Writer) {
			w.WriteString("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: " + strings.Repeat("a", 8<<20))
		},
		"a long chunk extension": func(w *bufio.Writer) {
			w.WriteString("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=" + strings.Repeat("a", 8<<20))
		},
	} {
		t.Run(name, func(t *testing.T) {
			costs(t, p, 2*time.Second, 24<<20, func() {
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
						if err != nil {
							t.Error(err)
							return
						}
						defer c.Close()
						c.SetDeadline(time.Now().Add(10 * time.Second))
						w := bufio.NewWriter(c)
						send(w)
						if w.Flush() == nil {
							io.Copy(io.Discard, c)
						}
						// Written in whole and open, it would end with the deadline alone.
						if _, err := c.Write([]byte("x")); err == nil {
							_, err = c.Read(make([]byte, 1))
							if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
								t.Error("still open")
							}
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// A recorder is an upstream that keeps every byte and answers each head it sees, once what it says of a body has come.
type recorder struct {
	net.Listener
	mu   sync.Mutex
	got  bytes.Buffer
	over int // connections that have ended
}

func newRecorder(t *testing.T) *recorder {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &recorder{Listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *recorder) serve(c net.Conn) {
	defer func() {
		c.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.over++
	}()
	b := make([]byte, 64<<10)
	var all []byte
	for answered := false; ; {
		n, err := c.Read(b)
		r.mu.Lock()
		r.got.Write(b[:n])
		r.mu.Unlock()
		if err != nil {
			return
		}
		// Late enough that what follows a head is seen, too.
		if all = append(all, b[:n]...); !answered && whole(all) {
			answered = true
			time.AfterFunc(30*time.Millisecond, func() { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") })
		}
	}
}

// whole reports whether a request has come with as many bytes as it says.
func whole(request []byte) bool {
	head, body, ok := strings.Cut(string(request), "\r\n\r\n")
	_, length, said := strings.Cut(head, "\r\ncontent-length: ")
	length, _, _ = strings.Cut(length, "\r\n")
	n, err := strconv.Atoi(length)
	return ok && (!said || err != nil || len(body) >= n)
}

// await waits until the proxy has begun no connection since begun that has not ended: then all has come. One that was
// given up before it got here never ends.
func (r *recorder) await(p *proxy, begun, over int) {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if b, o := r.connections(p); o-over >= b-begun {
			return
		}
	}
}

// connections returns how many the proxy has begun, and how many have ended here.
func (r *recorder) connections(p *proxy) (begun, over int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return p.stat("cluster.up.upstream_cx_total"), r.over
}

// take returns what has come since the last time.
func (r *recorder) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.got.String()
	r.got.Reset()
	return s
}

// TestAmbiguousRequestsReachNobody sends requests that two readers could take for different ones. The upstream gets the
// bytes of one canonical request, or none.
func TestAmbiguousRequestsReachNobody(t *testing.T) {
	binary(t)
	r := newRecorder(t)
	port := freePorts(1)[0]
	p := startProxy(t, "proxy", bootstrap{listeners: httpListener{
		port: port, hcm: "generate_request_id: false, normalize_path: true, merge_slashes: true, stream_idle_timeout: 1s, delayed_close_timeout: 0.05s",
	}.String(), clusters: clusterOf("up", "", portOf(r))})
	canonical := func(line string, more ...string) string {
		return line + " HTTP/1.1\r\nhost: a.test\r\n" + strings.Join(append(more, ""), "\r\n") + "x-forwarded-proto: http\r\n\r\n"
	}
	const next = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"
	const head = "POST /x HTTP/1.1\r\nHost: a.test\r\n"
	h1 := []struct{ name, send, want string }{
		{"ordinary", "GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n", canonical("GET /x")},
		{"length and chunks", head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, ""},
		{"chunks and length", head + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + next, ""},
		{"two lengths", head + "Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + next, ""},
		{"lengths in a list", head + "Content-Length: 0, 40\r\n\r\n" + next, ""},
		{"length with a sign", head + "Content-Length: +0\r\n\r\n" + next, ""},
		{"negative length", head + "Content-Length: -1\r\n\r\n" + next, ""},
		{"hexadecimal length", head + "Content-Length: 0x10\r\n\r\n" + next, ""},
		{"length that overflows", head + "Content-Length: 18446744073709551616\r\n\r\n" + next, ""},
		{"length of nothing", head + "Content-Length: \r\n\r\n" + next, ""},
		{"length after a tab", head + "Content-Length\t: 40\r\n\r\n" + next, ""},
		{"space before the colon", head + "Content-Length : 40\r\n\r\n" + next, ""},
		{"space before the name", head + " Content-Length: 40\r\n\r\n" + next, ""},
		{"folded line", head + "X-A: b\r\n Content-Length: 40\r\n\r\n" + next, ""},
		{"folded encoding", head + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + next, ""},
		{"identity", head + "Transfer-Encoding: identity\r\nContent-Length: 40\r\n\r\n" + next, ""},
		{"chunked twice", head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, ""},
		{"chunked and more", head + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + next, ""},
		{"more and chunked", head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + next, ""},
		{"encoding with a vertical tab", head + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n" + next, ""},
		{"quoted encoding", head + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + next, ""},
		{"encoding in HTTP/1.0", "POST /x HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next, ""},
		{"bare line feed ends the head", "GET /x HTTP/1.1\nHost: a.test\n\n" + next, ""},
		{"bare line feed in the head", head + "X-A: b\nContent-Length: 40\r\n\r\n" + next, ""},
		{"bare carriage return", head + "X-A: b\rContent-Length: 40\r\n\r\n" + next, ""},
		{"NUL in a value", head + "X-A: b\x00c\r\n\r\n" + next, ""},
		{"NUL in a name", head + "X-A\x00: b\r\n\r\n" + next, ""},
		{"no name", head + ": b\r\n\r\n" + next, ""},
		{"no colon", head + "Content-Length\r\n\r\n" + next, ""},
		{"no host", "GET /x HTTP/1.1\r\n\r\n" + next, ""},
		{"two hosts", "GET /x HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n" + next, ""},
		{"host with a path", "GET /x HTTP/1.1\r\nHost: a.test/y\r\n\r\n" + next, ""},
		{"space in the target", "GET /x /y HTTP/1.1\r\nHost: a.test\r\n\r\n" + next, ""},
		{"no version", "GET /x\r\nHost: a.test\r\n\r\n" + next, ""},
		{"version 1.2", "GET /x HTTP/1.2\r\nHost: a.test\r\n\r\n" + next, ""},
		{"version 2.0", "GET /x HTTP/2.0\r\nHost: a.test\r\n\r\n" + next, ""},
		{"lower-case version", "GET /x http/1.1\r\nHost: a.test\r\n\r\n" + next, ""},
		{"fragment", "GET /x#y HTTP/1.1\r\nHost: a.test\r\n\r\n" + next, ""},
		{"method with a colon", "GE:T /x HTTP/1.1\r\nHost: a.test\r\n\r\n" + next, ""},
		// What is said about a body arrives in one form; a bad chunk ends the request without an end.
		{"chunk without a size", head + "Transfer-Encoding: chunked\r\n\r\n\r\n\r\n" + next, canonical("POST /x", "transfer-encoding: chunked")},
		{"chunk size with a sign", head + "Transfer-Encoding: chunked\r\n\r\n+5\r\nabcde\r\n0\r\n\r\n" + next, canonical("POST /x", "transfer-encoding: chunked")},
		{"chunk size with 0x", head + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n" + next, canonical("POST /x", "transfer-encoding: chunked")},
		{"chunk size that overflows", head + "Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nabcde\r\n0\r\n\r\n" + next, canonical("POST /x", "transfer-encoding: chunked")},
		{"chunk that is longer", head + "Transfer-Encoding: chunked\r\n\r\n2\r\nabcde\r\n0\r\n\r\n" + next, canonical("POST /x", "transfer-encoding: chunked")},
		{"chunk ended by a line feed", head + "Transfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n" + next, canonical("POST /x", "transfer-encoding: chunked")},
		{"chunk with a carriage return in its extension", head + "Transfer-Encoding: chunked\r\n\r\n2;a\rb\r\nab\r\n0\r\n\r\n" + next, canonical("POST /x", "transfer-encoding: chunked")},
		{"hop-by-hop fields", "GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close, x-a\r\nX-A: b\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n\r\n", canonical("GET /x")},
		{"connection names what frames a body", head + "Connection: close, content-length\r\nContent-Length: 3\r\n\r\nabc", ""},
		{"connection names the host", "GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close, host\r\n\r\n", ""},
	}
	one := func(t *testing.T, name, got, want string) {
		// A refused body may have lost its head on the way, as the connection goes with it.
		if got != want && !(got == "" && strings.Contains(name, "chunk")) {
			t.Errorf("the upstream got %q, want %q", got, want)
		}
		if strings.Contains(got, "smuggled") {
			t.Errorf("the upstream got what was smuggled: %q", got)
		}
	}
	for _, tt := range h1 {
		t.Run("HTTP/1 "+tt.name, func(t *testing.T) {
			begun, over := r.connections(p)
			c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, tt.send)
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			answer, err := io.ReadAll(c)
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Errorf("the connection stays open after %q", answer)
			}
			if n := strings.Count(string(answer), "HTTP/1.1 "); n > 1 {
				t.Errorf("%d answers: %q", n, answer)
			}
			if status := string(answer[min(9, len(answer)):min(12, len(answer))]); tt.want == "" && (status < "400" || status > "501") {
				t.Errorf("answered with %q", answer)
			}
			r.await(p, begun, over)
			one(t, tt.name, r.take(), tt.want)
		})
	}
	with := func(name, value string) []string { // the head with one field replaced, or added
		f := h2get()
		for i := 0; i < len(f); i += 2 {
			if f[i] == name {
				f[i+1] = value
				return f
			}
		}
		return append(f, name, value)
	}
	post := func(more ...string) []string { return append(with(":method", "POST"), more...) }
	h2 := []struct {
		name   string
		fields []string
		body   string
		want   string
	}{
		{"ordinary", h2get(), "", canonical("GET /x")},
		{"body", post("content-length", "3"), "abc", "POST /x HTTP/1.1\r\nhost: a.test\r\nx-forwarded-proto: http\r\ncontent-length: 3\r\n\r\nabc"},
		{"transfer-encoding", post("transfer-encoding", "chunked"), "0\r\n\r\n" + next, ""},
		{"connection", with("connection", "close"), "", ""},
		{"upgrade", with("upgrade", "h2c"), "", ""},
		{"te", with("te", "chunked"), "", ""},
		{"upper case", with("X-A", "b"), "", ""},
		{"line end in a value", with("x-a", "b\r\n\r\n"+next), "", ""},
		{"line feed in a value", with("x-a", "b\ntransfer-encoding: chunked"), "", ""},
		{"NUL in a value", with("x-a", "b\x00c"), "", ""},
		{"line end in a name", with("x-a: b\r\nx-b", "c"), "", ""},
		{"colon in a name", with("x-a: b", "c"), "", ""},
		{"space in a name", with("x a", "c"), "", ""},
		{"no name", with("", "c"), "", ""},
		{"line end in the path", with(":path", "/x HTTP/1.1\r\nhost: a.test\r\n\r\n"+next), "", ""},
		{"space in the path", with(":path", "/x HTTP/1.1"), "", ""},
		{"no path", with(":path", ""), "", ""},
		{"path without a slash", with(":path", "x"), "", ""},
		{"fragment", with(":path", "/x#y"), "", ""},
		{"line end in the authority", with(":authority", "a.test\r\nx-a: b"), "", ""},
		{"path in the authority", with(":authority", "a.test/y"), "", ""},
		{"line end in the method", with(":method", "GET /smuggled HTTP/1.1\r\nx: y"), "", ""},
		{"space in the method", with(":method", "GET /y"), "", ""},
		{"no method", with(":method", ""), "", ""},
		{"line end in the scheme", with(":scheme", "http\r\nx: y"), "", ""},
		{"another host", with("host", "b.test"), "", ""},
		{"pseudo-header twice", h2get(":path", "/y"), "", ""},
		{"pseudo-header after others", append([]string{"x-a", "b"}, h2get()...), "", ""},
		{"unknown pseudo-header", append([]string{":a", "b"}, h2get()...), "", ""},
		{"two lengths", post("content-length", "3", "content-length", "4"), "abc", ""},
		{"length that is none", post("content-length", "3x"), "abc", ""},
		{"length and nothing", post("content-length", "5"), "", ""},
	}
	for _, tt := range h2 {
		t.Run("HTTP/2 "+tt.name, func(t *testing.T) {
			begun, over := r.connections(p)
			c := dialH2(t, port)
			c.open(1, tt.body == "", tt.fields...)
			if tt.body != "" {
				c.WriteData(1, true, []byte(tt.body))
			}
			status, _ := c.answer()
			if tt.want == "" && status >= 200 && status < 400 {
				t.Errorf("answered with %d", status)
			}
			c.Close()
			r.await(p, begun, over)
			one(t, tt.name, r.take(), tt.want)
		})
	}
	// A body that is not as long as it was said to be: its request is never complete.
	for name, body := range map[string]string{"longer": "abcdef" + next, "shorter": "ab"} {
		t.Run("HTTP/2 body "+name+" than said", func(t *testing.T) {
			begun, over := r.connections(p)
			c := dialH2(t, port)
			c.open(1, false, post("content-length", "5")...)
			time.Sleep(10 * time.Millisecond)
			c.WriteData(1, true, []byte(body))
			c.answer()
			c.Close()
			r.await(p, begun, over)
			got := r.take()
			if rest, ok := strings.CutPrefix(got, "POST /x HTTP/1.1\r\nhost: a.test\r\nx-forwarded-proto: http\r\ncontent-length: 5\r\n\r\n"); got != "" && (!ok || len(rest) >= 5) {
				t.Errorf("the upstream got %q", got)
			}
		})
	}
}

func rbacFilter(action, policy string) string {
	return fmt.Sprintf(`{name: envoy.filters.http.rbac, typed_config: {"@type": T/filters.http.rbac.v3.RBAC, rules: {action: %s, policies: {p: {principals: [{any: true}], permissions: [%s]}}}}}`, action, policy)
}

// A target is a client of one connection that sends any bytes as a request's target.
type target struct {
	t    *testing.T
	port int
	c    net.Conn
	r    *bufio.Reader
}

// get returns the status, and what the upstream says it has got.
func (x *target) get(uri string, fields ...string) (int, string) {
	if x.c == nil {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(x.port))
		if err != nil {
			x.t.Fatal(err)
		}
		x.c, x.r = c, bufio.NewReader(c)
	}
	x.c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(x.c, "GET %s HTTP/1.1\r\nHost: a.test\r\n%s\r\n", uri, strings.Join(append(fields, ""), "\r\n"))
	resp, err := http.ReadResponse(x.r, nil)
	if err != nil {
		x.t.Fatalf("%q: %v", uri, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		x.t.Fatalf("%q: %v", uri, err)
	}
	if resp.Close {
		x.c.Close()
		x.c = nil
	}
	return resp.StatusCode, string(body)
}

// mirrorPath is an upstream that answers with the path it was asked for, as it came.
func mirrorPath(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) })}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return portOf(l)
}

// TestDeniedPathsAreNotReachedByOtherSpellings denies /admin and asks for it in every spelling. Whatever arrives at the
// upstream is nothing that it could take for /admin: not as it stands, and where slashes are unescaped or refused, not
// when decoded and cleaned either. What is allowed alone, /public, is all that arrives under the opposite rule.
func TestDeniedPathsAreNotReachedByOtherSpellings(t *testing.T) {
	binary(t)
	up := mirrorPath(t)
	spellings := []string{
		"/admin", "/admin/", "/admin?x", "/admin?/../x", "/admin;a=b", "//admin", "///admin//", "/./admin", "/x/../admin", "/x/..//admin", "/../admin", "/x/../../admin",
		"/%61dmin", "/%61%64%6d%69%6e", "/%61%64%6D%69%6E", "/adm%69n", "/%2e/admin", "/x/%2e%2e/admin", "/x/%2E%2E/admin", "/x/.%2e/admin", "/%2fadmin", "/%2Fadmin", "/x/..%2fadmin",
		"/x%2f..%2fadmin", "/%5cadmin", "/x/..%5cadmin", "/x\\..\\admin", "\\admin", "/\\admin", "/x/%252e%252e/admin", "/%2561dmin", "/admin%00", "/admin%20", "/admin%2f", "/admin%2f..%2fpublic",
		"/public/../admin", "/public/%2e%2e/admin", "/public/%2e%2e%2fadmin", "/public/..;/admin", "/public/;/../admin", "http://a.test/admin", "http://a.test//admin", "http://a.test/public/../admin",
		"http://a.test\\admin", "/%c0%ae%c0%ae/admin", "/admin%", "/%zz/../admin", "/admin#x", "/public#/../admin", "/.//admin", "/x/.../admin", "/admin/.", "/admin/..", "/public/x/../../admin/y", "*", "/%", "/%a", "",
	}
	rng := rand.New(rand.NewPCG(1, 2))
	tokens := []string{"/", "/", "/", "//", "admin", "public", "a", "d", "m", "i", "n", "%61", "%64", "%6d", "%6D", "%69", "%6e", "dmin", ".", "..", "%2e", "%2E", "%2e%2e", "%2f", "%2F", "%5c", "%5C", "\\", "x", ";", "?", "%25", "%", "%00", "%20", "~", "%7e", "%c3%a4", "ä", "+", ":", "@", "http://a.test"}
	for range 4000 {
		var b strings.Builder
		if rng.IntN(10) > 0 {
			b.WriteByte('/')
		}
		for range 1 + rng.IntN(8) {
			b.WriteString(tokens[rng.IntN(len(tokens))])
		}
		spellings = append(spellings, b.String())
	}
	under := func(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
	for _, action := range []string{"KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"} {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			ports := freePorts(2)
			hcm := "normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: " + action
			path_ := func(name string) string {
				return fmt.Sprintf(`{or_rules: {rules: [{url_path: {path: {exact: /%s}}}, {url_path: {path: {prefix: /%s/}}}]}}`, name, name)
			}
			startProxy(t, "proxy", bootstrap{
				listeners: httpListener{port: ports[0], hcm: hcm, filters: rbacFilter("DENY", path_("admin"))}.String() + ", " +
					httpListener{port: ports[1], hcm: hcm, filters: rbacFilter("ALLOW", path_("public"))}.String(),
				clusters: clusterOf("up", "", up),
			})
			deny, allow := &target{t: t, port: ports[0]}, &target{t: t, port: ports[1]}
			views := func(uri string) (raw, decoded string) {
				raw, _, _ = strings.Cut(uri, "?")
				decoded, err := url.PathUnescape(raw)
				if err != nil {
					decoded = raw
				}
				return raw, path.Clean("/" + strings.ReplaceAll(decoded, "\\", "/"))
			}
			passed := 0
			for _, s := range spellings {
				if code, got := deny.get(s); code == 200 {
					passed++
					if raw, decoded := views(got); under(raw, "/admin") || under(path.Clean(raw), "/admin") || action != "KEEP_UNCHANGED" && under(decoded, "/admin") {
						t.Errorf("%q passes as %q", s, got)
					}
				}
				if code, got := allow.get(s); code == 200 {
					if raw, decoded := views(got); !under(raw, "/public") || !under(path.Clean(raw), "/public") || action != "KEEP_UNCHANGED" && !under(decoded, "/public") {
						t.Errorf("%q is allowed as %q", s, got)
					}
				}
			}
			if code, got := allow.get("/x/../public/%61"); code != 200 || got != "/public/a" {
				t.Errorf("%d %q", code, got)
			}
			if passed < 500 {
				t.Errorf("only %d paths have passed", passed)
			}
		})
	}
}

// TestRepeatedHeadersDoNotDeceiveRules allows one value of a header. Sent beside others, in any order, case or version,
// it opens nothing.
func TestRepeatedHeadersDoNotDeceiveRules(t *testing.T) {
	binary(t)
	ports := freePorts(1)
	startProxy(t, "proxy", bootstrap{
		listeners: httpListener{port: ports[0], filters: rbacFilter("ALLOW", `{header: {name: x-role, string_match: {exact: admin}}}`)}.String(),
		clusters:  clusterOf("up", "", mirrorPath(t)),
	})
	for _, tt := range []struct {
		fields []string
		code   int
	}{
		{[]string{"X-Role: admin"}, 200},
		{nil, 403},
		{[]string{"x-role: admin", "x-role: guest"}, 403},
		{[]string{"x-role: guest", "X-ROLE: admin"}, 403},
		{[]string{"x-role: admin,guest"}, 403},
		{[]string{"x-role: Admin"}, 403},
		{[]string{"x-role: admin\xff"}, 403},
		{[]string{"x_role: admin"}, 403},
		{[]string{"x-role: admin", "connection: x-role"}, 403},
	} {
		x := &target{t: t, port: ports[0]}
		if code, _ := x.get("/x", tt.fields...); code != tt.code {
			t.Errorf("HTTP/1 %q: %d", tt.fields, code)
		}
		p := dialH2(t, ports[0])
		var fields []string
		for _, f := range tt.fields {
			name, value, _ := strings.Cut(f, ": ")
			if strings.EqualFold(name, "connection") {
				fields = nil // HTTP/2 has no such thing
				break
			}
			fields = append(fields, strings.ToLower(name), value)
		}
		p.open(1, true, h2get(fields...)...)
		if code, _ := p.answer(); code != tt.code {
			t.Errorf("HTTP/2 %q: %d", tt.fields, code)
		}
	}
}

// TestRulesHoldForAnyBytes denies what lacks a property, and what has one, with values that no expression was made for.
func TestRulesHoldForAnyBytes(t *testing.T) {
	binary(t)
	ports := freePorts(2)
	startProxy(t, "proxy", bootstrap{
		listeners: httpListener{port: ports[0], filters: rbacFilter("DENY", `{not_rule: {header: {name: x-a, string_match: {safe_regex: {regex: "[a-z]+"}}}}}`)}.String() + ", " +
			httpListener{port: ports[1], filters: rbacFilter("ALLOW", `{not_rule: {header: {name: x-a, string_match: {contains: evil}, treat_missing_header_as_empty: true}}}`)}.String(),
		clusters: clusterOf("up", "", mirrorPath(t)),
	})
	must, mustNot := &target{t: t, port: ports[0]}, &target{t: t, port: ports[1]}
	for _, v := range []string{"", "A", "a\xff", "\xff\xfe", "a b", "\xc0\xafevil", "evil\xff", "\xffevil", "ev\xc2\xadil", strings.Repeat("a", 20000) + "!"} {
		if code, _ := must.get("/x", "x-a: "+v); code != 403 {
			t.Errorf("%.20q passes where all but letters are denied: %d", v, code)
		}
		if code, _ := mustNot.get("/x", "x-a: "+v); strings.Contains(v, "evil") && code != 403 {
			t.Errorf("%.20q: %d where evil is denied", v, code)
		}
	}
	if code, _ := must.get("/x"); code != 403 {
		t.Errorf("nothing passes where all but letters are denied: %d", code)
	}
	if code, _ := must.get("/x", "x-a: abc"); code != 200 {
		t.Errorf("letters: %d", code)
	}
}
