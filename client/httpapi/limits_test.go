package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/internal/rpc"
)

// whole returns a server with every route, whose bodies are small.
func whole(t *testing.T, limit int64) *Server {
	s, _ := newAgent(t, Config{ACLEnabled: true, MaxBodySize: limit, KVMaxValueSize: limit, TxnMaxRequestLength: limit, Caller: noServers{}})
	return s
}

// noServers fails every call, and reads nothing.
type noServers struct{}

func (noServers) Call(context.Context, rpc.Descriptor, any, any) error { return errors.New("refused") }

func (noServers) Stream(context.Context, rpc.Descriptor, any, io.Reader, any) (io.ReadCloser, error) {
	return nil, errors.New("refused")
}

// known lists the methods and paths of a server's routes.
func known(s *Server) (list [][2]string) {
	for _, e := range s.Endpoints() {
		methods, path, _ := strings.Cut(e, " ")
		path = strings.ReplaceAll(path, "*", "x")
		if strings.HasSuffix(path, "/") {
			path += "x"
		}
		for m := range strings.SplitSeq(methods, ",") {
			list = append(list, [2]string{m, path})
		}
	}
	return list
}

// blanks is a body of blanks without end, so that decoders would go on.
type blanks struct{ taken int64 }

func (b *blanks) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	b.taken += int64(len(p))
	return len(p), nil
}

// No route takes a body of any size: who sends more than the limit is told so, and nothing beyond it is read
// (spec/threats.md, class 11).
func TestThreat11EveryBodyIsBounded(t *testing.T) {
	const limit = 1 << 20
	s := whole(t, limit)
	var bounded []string
	for _, rt := range known(s) {
		method, path := rt[0], rt[1]
		for _, told := range []int64{-1, limit + 1, 1 << 60} {
			var body blanks
			r := httptest.NewRequest(method, path+"?enable=true&by=source", &body)
			r.ContentLength = told
			if strings.HasPrefix(path, "/v1/agent/m") && method == "GET" {
				ctx, cancel := context.WithCancel(r.Context())
				cancel()
				r = r.WithContext(ctx)
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if body.taken > 2*limit {
				t.Errorf("%s %s with %d bytes told: %d were read", method, path, told, body.taken)
			}
			switch {
			case w.Code == http.StatusRequestEntityTooLarge, strings.HasPrefix(w.Body.String(), "user event exceeds"):
				if !slices.Contains(bounded, method+" "+path) {
					bounded = append(bounded, method+" "+path)
				}
			case body.taken > 64<<10:
				t.Errorf("%s %s with %d bytes told: %d %s, after %d bytes", method, path, told, w.Code, w.Body, body.taken)
			}
			if told > 0 && w.Code == http.StatusRequestEntityTooLarge && body.taken > 0 {
				t.Errorf("%s %s with %d bytes told: %d were read", method, path, told, body.taken)
			}
		}
	}
	if len(bounded) < 35 { // as many read one
		t.Errorf("%d routes refuse large bodies: %v", len(bounded), bounded)
	}
}

// What is no JSON, or JSON of the wrong kind, is the client's fault wherever it is sent.
func TestBodiesThatAreNoJSON(t *testing.T) {
	s := whole(t, 1<<20)
	bodies := []string{
		"", "{", "nul", "\x00", "\xff", `"`, "1", `"text"`, "[1", "{]", `{"a"}`, `{"":`, strings.Repeat("[", 100_000), strings.Repeat(`{"a":`, 100_000), "[[[]]]", "1e999", "-", strings.Repeat("1", 10_000),
		`{"ID":1,"Name":{},"Node":[]}`, `{"Service":7}`, `{"Check":"x","Checks":{}}`, `{"Kind":[]}`, `[{"KV":7}]`, `[{"KV":{"Value":"not base64"}}]`,
	}
	for _, rt := range known(s) {
		if rt[0] == http.MethodGet || strings.HasPrefix(rt[1], "/v1/kv/") || strings.HasPrefix(rt[1], "/v1/event/") || rt[1] == "/v1/snapshot" {
			continue
		}
		for _, body := range bodies {
			w := do(s, rt[0], rt[1], body)
			// Of intentions, and of what this test's servers know nothing about, the status is the specification's.
			if w.Code >= 500 && !strings.HasPrefix(w.Body.String(), "Failed to decode request body: ") && json.Valid([]byte(body)) == false && strings.Contains(w.Body.String(), "invalid character") {
				t.Errorf("%s %s %.50q: %d %s", rt[0], rt[1], body, w.Code, w.Body)
			}
		}
	}
}

// A few clients that send much leave room for everybody else, and take no more than there is.
func TestThreat11LargeBodiesShareTheirRoom(t *testing.T) {
	s, _ := newServer(t, Config{}, nil)
	const n, others = 4, largeBodies - 9<<20 // where each takes 4 MiB in the end
	s.largeBodies.Store(others)
	var done sync.WaitGroup
	release := make(chan struct{})
	codes := make([]int, n)
	for i := range n { // one after the other, since of those that grow at once more may be refused
		entered := make(chan struct{})
		done.Go(func() {
			once := sync.OnceFunc(func() { close(entered) })
			defer once()
			r := httptest.NewRequest("PUT", "/v1/catalog/register", &stuck{left: 3 << 20, reached: once, release: release})
			r.ContentLength = 60 << 20
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			codes[i] = w.Code
		})
		<-entered
	}
	if w := do(s, "PUT", "/v1/catalog/register", `{"Node":"n","Address":"a"}`); w.Code == http.StatusServiceUnavailable {
		t.Errorf("a small request meanwhile: %d %s", w.Code, w.Body)
	}
	if used := s.largeBodies.Load(); used <= others || used > largeBodies {
		t.Errorf("%d MiB are in use", used>>20)
	}
	close(release)
	done.Wait()
	refused := 0
	for _, code := range codes {
		if code == http.StatusServiceUnavailable {
			refused++
		}
	}
	if refused != n-2 {
		t.Errorf("answers: %v", codes)
	}
	if used := s.largeBodies.Load(); used != others {
		t.Errorf("%d bytes are still in use", used-others)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := httptest.NewRequest("PUT", "/v1/catalog/register", strings.NewReader("{"))
	r.ContentLength = 60 << 20
	s.ServeHTTP(httptest.NewRecorder(), r)
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 8<<20 {
		t.Errorf("a body that did not come took %d MiB", (after.TotalAlloc-before.TotalAlloc)>>20)
	}
}

// A body of tiny values takes many times its size once decoded: there may be only so many, and of bodies that are all
// tiny values only so many at a time.
func TestThreat11ManyValuesShareTheirRoom(t *testing.T) {
	s := whole(t, 8<<20)
	many := func(n int) string {
		return `{"Name":"a","Proxy":{"Config":{"a":[` + strings.Repeat("[],", n) + `0]}}}`
	}
	refused := 0
	for _, rt := range known(s) {
		if rt[0] == http.MethodGet {
			continue
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		w := do(s, rt[0], rt[1]+"?by=source", many(1<<20))
		if w.Body.String() == errValues.Error() {
			refused++
		}
		if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 64<<20 {
			t.Errorf("%s %s: %d %.100s took %d MiB", rt[0], rt[1], w.Code, w.Body, (after.TotalAlloc-before.TotalAlloc)>>20)
		}
	}
	if refused < 30 {
		t.Errorf("%d routes count values", refused)
	}
	s.largeBodies.Store(largeBodies - 1<<20)
	for n, want := range map[int]int{100: 200, 1000: 200, 5000: 503} {
		if w := do(s, "PUT", "/v1/agent/service/register", many(n)); w.Code != want {
			t.Errorf("%d values while there is little room: %d %s", n, w.Code, w.Body)
		}
	}
	if used := s.largeBodies.Load(); used != largeBodies-1<<20 {
		t.Errorf("%d bytes are still in use", used-largeBodies+1<<20)
	}
}

// stuck is a body that waits before its end.
type stuck struct {
	left    int
	reached func()
	release chan struct{}
}

func (b *stuck) Read(p []byte) (int, error) {
	if b.left == 0 {
		b.reached()
		<-b.release
		return 0, io.EOF
	}
	n := min(b.left, len(p))
	clear(p[:n])
	b.left -= n
	return n, nil
}

// A body that does not come in time is told so.
func TestSlowBodies(t *testing.T) {
	s := whole(t, 1<<20)
	r := httptest.NewRequest("PUT", "/v1/agent/service/register", io.MultiReader(strings.NewReader("{"), late{}))
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != http.StatusRequestTimeout || w.Body.String() != "request body was not sent in time" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

type late struct{}

func (late) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
}

// Clients that send byte by byte, or not at all, are sent away, and meanwhile others are answered at once
// (spec/threats.md, class 11).
func TestThreat11SlowClientsStarveNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t, Config{}, nil)
		l := newMemListener()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, l) }()

		var clients sync.WaitGroup
		const kinds = 5
		const each = 60
		open := make(chan int, kinds*each)
		for i := range kinds * each {
			c := l.dial()
			now, slow := "", ""
			switch i % kinds {
			case 0: // nothing at all
			case 1:
				slow = "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("b", 400)
			case 2:
				now, slow = "PUT /v1/catalog/register HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n", strings.Repeat(" ", 500)
			case 3:
				now, slow = "PUT /v1/txn HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", strings.Repeat("1\r\n \r\n", 100)
			case 4: // a body that the handler does not look at
				now, slow = "GET /v1/status/leader HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n", strings.Repeat(" ", 500)
			}
			clients.Go(func() {
				if _, err := io.WriteString(c, now); err != nil {
					return
				}
				for j := range len(slow) {
					if _, err := c.Write([]byte(slow[j : j+1])); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
			clients.Go(func() {
				io.Copy(io.Discard, c)
				open <- i % kinds
				c.Close()
			})
		}
		for range 20 {
			start := time.Now()
			c := l.dial()
			go io.WriteString(c, "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 404") || time.Since(start) > time.Second {
				t.Errorf("%q, %v after %v", answer, err, time.Since(start))
			}
			c.Close()
			time.Sleep(5 * time.Second)
		}
		if gone := len(open); gone != kinds*each {
			t.Errorf("after 100 s, %d of %d are gone", gone, kinds*each)
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		clients.Wait()
	})
}

// memListener is a listener of pipes.
type memListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *memListener) dial() net.Conn {
	near, far := net.Pipe()
	l.conns <- far
	return near
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *memListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// Requests that two programs may take for different ones are refused, and the connection ends (spec/threats.md,
// class 16).
func TestThreat16AmbiguousRequestsAreRefused(t *testing.T) {
	const second = "GET /v1/kv/second HTTP/1.1\r\nHost: x\r\n\r\n"
	tests := []struct{ name, request string }{
		{"two lengths", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n" + second},
		{"a length with a sign", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n" + second},
		{"a length in a list", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n" + second},
		{"a length in hexadecimal", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\n" + second},
		{"an unknown coding", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + second},
		{"two codings", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + second},
		{"a blank before the colon", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length : 1\r\n\r\n" + second},
		{"two hosts", "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + second},
		{"no host", "GET /v1/kv/a HTTP/1.1\r\n\r\n" + second},
		{"a bad size of a chunk", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n" + second},
		{"an endless extension of a chunk", "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("e", 100_000) + "\r\nx\r\n0\r\n\r\n" + second},
		{"a bare CR in a value", "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nX-A: a\rTransfer-Encoding: chunked\r\n\r\n" + second},
		{"a NUL in a value", "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n" + second},
		{"another protocol", "GET /v1/kv/a HTTP/3.0\r\nHost: x\r\n\r\n" + second},
		{"a version with a tail", "GET /v1/kv/a HTTP/1.1x\r\nHost: x\r\n\r\n" + second},
		{"a large head", "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 64<<10) + "\r\n\r\n" + second},
		{"many headers", "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-A: a\r\n", 10_000) + "\r\n" + second},
		{"a long target", "GET /v1/kv/" + strings.Repeat("a", 64<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n" + second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, f := newServer(t, Config{MaxHeaderBytes: 8 << 10}, nil)
				l := newMemListener()
				ctx, cancel := context.WithCancel(t.Context())
				served := make(chan error, 1)
				go func() { served <- s.Serve(ctx, l) }()
				c := l.dial()
				written := make(chan struct{})
				go func() {
					defer close(written)
					io.WriteString(c, tt.request)
				}()
				c.SetReadDeadline(time.Now().Add(time.Minute))
				answer, err := io.ReadAll(c)
				if err != nil && !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is still open: %v", err)
				}
				if n := strings.Count(string(answer), "HTTP/1.1 "); n != 1 || !strings.HasPrefix(string(answer), "HTTP/1.1 4") && !strings.HasPrefix(string(answer), "HTTP/1.1 5") {
					t.Errorf("answered %.300q", answer)
				}
				if strings.Contains(string(answer), "HTTP/1.1 404") || len(f.calls) > 0 {
					t.Errorf("it was taken for a request: %.300q, %v", answer, f.calls)
				}
				c.Close()
				<-written
				cancel()
				if err := <-served; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What a request says and an answer repeats in its header stays one value there (spec/threats.md, class 12).
func TestThreat12RepeatedTextStartsNoHeader(t *testing.T) {
	s, _ := newAgent(t, Config{AllowUnprintable: true, UIEnabled: true})
	for _, target := range []string{
		"/v1/agent/health/service/id/x%0d%0aX-Injected:%201", "/v1/agent/health/service/name/x%0aX-Injected:%201", "/v1/agent/health/service/id/x%00%7f%ff",
		"//x%0d%0aX-Injected:%201/..", "/v1/catalog//x%0d%0aX-Injected:%201", "/ui/../x%0d%0aX-Injected:%201", "//evil.example/..//", "/%2f%2fevil.example//",
	} {
		for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} { // the second is read by net/http
			synctest.Test(t, func(t *testing.T) {
				l := newMemListener()
				ctx, cancel := context.WithCancel(t.Context())
				served := make(chan error, 1)
				go func() { served <- s.Serve(ctx, l) }()
				c := l.dial()
				go io.WriteString(c, "GET "+target+" "+version+"\r\nHost: x\r\nConnection: close\r\n\r\n")
				answer, err := io.ReadAll(c)
				if err != nil {
					t.Error(err)
				}
				head, _, _ := strings.Cut(string(answer), "\r\n\r\n")
				for line := range strings.SplitSeq(head, "\n") {
					name, value, _ := strings.Cut(strings.TrimSuffix(line, "\r"), ":")
					if strings.EqualFold(name, "X-Injected") || !strings.HasSuffix(line, "\r") && line != head[strings.LastIndexByte(head, '\n')+1:] {
						t.Errorf("%s: %q", target, head)
					}
					if name == "Location" && (!strings.HasPrefix(value, " /") || strings.HasPrefix(value, " //")) {
						t.Errorf("%s leads to%s", target, value)
					}
				}
				c.Close()
				cancel()
				if err := <-served; err != nil {
					t.Error(err)
				}
			})
		}
	}
}
