package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// pair returns two connected ends in memory.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	n := testkit.NewNetwork(1)
	x, y := n.Host("10.0.0.1"), n.Host("10.0.0.2")
	ln, err := y.Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = x.Dial(t.Context(), "10.0.0.2:80"); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close(); ln.Close() })
	return a, b
}

// sockets returns two connected sockets of the system.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// secured returns sockets with TLS on them.
func secured(t testing.TB) (a, b net.Conn) {
	t.Helper()
	x, y := sockets(t)
	ca := testkit.NewCA(t, "ca")
	srv := tls.Server(stream.Below(y), &tls.Config{Certificates: []tls.Certificate{*ca.Issue("x")}})
	cli := tls.Client(stream.Below(x), &tls.Config{RootCAs: ca.Pool(), ServerName: "x"})
	errs := make(chan error, 1)
	go func() { errs <- srv.Handshake() }()
	if err := errors.Join(cli.Handshake(), <-errs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close(); srv.Close() })
	return cli, srv
}

// wires are the ways in which two ends can be connected.
var wires = map[string]func(testing.TB) (net.Conn, net.Conn){"memory": pair, "sockets": sockets, "TLS": secured}

// readAll reads a body to its end.
func readAll(s message.Source) (string, error) {
	var b bytes.Buffer
	for {
		p, err := s.Read()
		b.Write(p)
		if err == io.EOF {
			return b.String(), nil
		}
		if err != nil {
			return b.String(), err
		}
	}
}

// show writes what a request says in one line.
func show(r *message.Request) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", r.Method, r.Authority, r.Path)
	if r.Scheme != "" {
		fmt.Fprintf(&b, " scheme=%s", r.Scheme)
	}
	if r.Upgrade != "" {
		fmt.Fprintf(&b, " upgrade=%s", r.Upgrade)
	}
	if r.ContentLength != 0 {
		fmt.Fprintf(&b, " length=%d", r.ContentLength)
	}
	for i := range r.Header.Len() {
		fmt.Fprintf(&b, " [%s: %s]", r.Header.At(i).Name, r.Header.At(i).Value)
	}
	return b.String()
}

// serve answers every request with its method and path, its body and its trailers.
func serve(t testing.TB, c *http1.ServerConn) error {
	defer c.Close()
	var resp message.Response
	for {
		s, err := c.Next()
		if bad, ok := errors.AsType[*http1.BadRequest](err); ok {
			resp.Reset()
			resp.Status = bad.Status
			c.Refuse(&resp, []byte(bad.Body))
		}
		if err != nil {
			return err
		}
		if err := s.Continue(); err != nil {
			return err
		}
		body, err := readAll(s)
		if err != nil {
			return err
		}
		resp.Reset()
		resp.Status = 200
		resp.Header.Add("x-request", s.Request().Method+" "+s.Request().Path)
		trailer := s.Trailer()
		if trailer == nil {
			resp.ContentLength = int64(len(body))
		}
		if err := s.Respond(&resp, false); err != nil {
			return err
		}
		if trailer != nil {
			if err = s.Write([]byte(body), false); err == nil {
				err = s.WriteTrailer(trailer)
			}
		} else {
			err = s.Write([]byte(body), true)
		}
		if err != nil {
			return err
		}
	}
}

func TestServerAnswersOrdinaryClients(t *testing.T) {
	for name, wire := range wires {
		t.Run(name, func(t *testing.T) {
			client, server := wire(t)
			done := make(chan error, 1)
			go func() { done <- serve(t, http1.NewServerConn(server, http1.ServerConfig{Trailers: true})) }()
			tr := &http.Transport{
				DialContext:    func(ctx context.Context, _, _ string) (net.Conn, error) { return client, nil },
				DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return client, nil },
			}
			for i, size := range []int{0, 1, 5000, 20000, 300000, 2 << 20} {
				for _, chunked := range []bool{false, true} {
					body := strings.Repeat("0123456789", size/10+1)[:size]
					req, _ := http.NewRequest("POST", fmt.Sprintf("http://a.example/p%d?q", i), strings.NewReader(body))
					if chunked {
						req.ContentLength = -1
						req.Trailer = http.Header{"X-After": {"t"}}
						if size == 0 {
							continue
						}
					}
					resp, err := tr.RoundTrip(req)
					if err != nil {
						t.Fatal(err)
					}
					got, err := io.ReadAll(resp.Body)
					if err != nil || string(got) != body {
						t.Fatalf("size %d, chunked %v: got %d bytes back, %v", size, chunked, len(got), err)
					}
					if chunked && resp.Trailer.Get("X-After") != "t" {
						t.Errorf("size %d: trailers %v", size, resp.Trailer)
					}
					if want := fmt.Sprintf("POST /p%d?q", i); resp.Header.Get("X-Request") != want {
						t.Errorf("got %q, want %q", resp.Header.Get("X-Request"), want)
					}
				}
			}
			tr.CloseIdleConnections()
			if err := <-done; err != io.EOF {
				t.Errorf("the connection ended with %v", err)
			}
		})
	}
}

func TestClientTalksToOrdinaryServers(t *testing.T) {
	for name, wire := range wires {
		t.Run(name, func(t *testing.T) {
			client, server := wire(t)
			go func() {
				br := bufio.NewReader(server)
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					body, _ := io.ReadAll(r.Body)
					resp := &http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
						Header: http.Header{"X-Request": {r.Method + " " + r.Host + r.RequestURI}}}
					if r.ContentLength < 0 {
						resp.ContentLength, resp.TransferEncoding = -1, []string{"chunked"}
						resp.Trailer = r.Trailer
					}
					if r.Method == "HEAD" {
						resp.Body = http.NoBody
						resp.ContentLength = 77
						resp.Request = r
					}
					resp.Write(server)
				}
			}()
			c := http1.NewClientConn(client, http1.ClientConfig{Trailers: true})
			defer c.Close()
			var req message.Request
			var resp message.Response
			for _, size := range []int{0, 1, 5000, 20000, 300000} {
				for _, length := range []int64{int64(size), -1} {
					body := strings.Repeat("0123456789", size/10+1)[:size]
					req.Reset()
					req.Method, req.Authority, req.Path, req.ContentLength = "PUT", "b.example", "/x", length
					s := c.Stream()
					if err := s.Send(&req, false); err != nil {
						t.Fatal(err)
					}
					wrote := make(chan error, 1)
					go func() {
						half := len(body) / 2
						err := s.Write([]byte(body[:half]), false)
						if err == nil {
							err = s.Write([]byte(body[half:]), true)
						}
						wrote <- err
					}()
					if end, err := s.Receive(&resp); err != nil || resp.Status != 200 || end != (size == 0 && length == 0) {
						t.Fatalf("size %d: got %d, end %v, %v", size, resp.Status, end, err)
					}
					if got := resp.Header.Get("x-request"); got != "PUT b.example/x" {
						t.Errorf("the server saw %q", got)
					}
					if got, err := readAll(s); err != nil || got != body {
						t.Fatalf("size %d: got %d bytes back, %v", size, len(got), err)
					}
					if err := <-wrote; err != nil {
						t.Fatal(err)
					}
					s.Close()
					if !c.Usable() || !c.Quiet() {
						t.Fatalf("size %d: usable %v, quiet %v", size, c.Usable(), c.Quiet())
					}
				}
			}
			req.Reset()
			req.Method, req.Authority, req.Path, req.ContentLength = "HEAD", "b.example", "/x", 0
			s := c.Stream()
			if err := s.Send(&req, true); err != nil {
				t.Fatal(err)
			}
			if end, err := s.Receive(&resp); err != nil || !end || resp.ContentLength != 77 {
				t.Errorf("HEAD: end %v, length %d, %v", end, resp.ContentLength, err)
			}
			s.Close()
		})
	}
}

// raced is whether the race detector looks on, under which pools of buffers forget some.
var raced bool

func TestKeepAliveCostsNoMemory(t *testing.T) {
	if raced {
		t.Skip("not under the race detector")
	}
	a, b := sockets(t) // what TLS takes is not ours
	sc := http1.NewServerConn(b, http1.ServerConfig{IdleTimeout: time.Hour})
	exchange := exchanger(t, http1.NewClientConn(a, http1.ClientConfig{}), sc)
	for range 10 {
		exchange()
	}
	if n := testing.AllocsPerRun(200, exchange); n != 0 {
		t.Errorf("%v allocations for a request and its response", n)
	}
}

// exchanger returns a function that sends a request over one connection and answers it on the other.
func exchanger(t testing.TB, cc *http1.ClientConn, sc *http1.ServerConn) func() {
	var req message.Request
	var resp, got message.Response
	body := []byte(`{"hello":"world"}`)
	req.Reset()
	req.Method, req.Authority, req.Path, req.ContentLength = "GET", "web.example:8080", "/api/v1/things?limit=10", 0
	req.Header.Add("user-agent", "curl/8.5.0")
	req.Header.Add("accept", "application/json")
	req.Header.Add("x-forwarded-for", "10.1.2.3")
	req.Header.Add("x-request-id", "8d3e9fe1-0a83-4a8c-9d7e-1a8d1f1cb0ff")
	resp.Reset()
	resp.Status, resp.ContentLength = 200, int64(len(body))
	resp.Header.Add("content-type", "application/json")
	resp.Header.Add("server", "sarn")
	resp.Header.Add("date", "Sun, 22 Nov 2026 00:00:00 GMT")
	return func() {
		cs := cc.Stream()
		if err := cs.Send(&req, true); err != nil {
			t.Fatal(err)
		}
		ss, err := sc.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := ss.Respond(&resp, false); err != nil {
			t.Fatal(err)
		}
		if err := ss.Write(body, true); err != nil {
			t.Fatal(err)
		}
		if _, err := cs.Receive(&got); err != nil {
			t.Fatal(err)
		}
		if p, err := cs.Read(); err != io.EOF || len(p) != len(body) {
			t.Fatalf("%q, %v", p, err)
		}
		cs.Close()
	}
}
