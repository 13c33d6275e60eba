package http1_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

func BenchmarkExchange(b *testing.B) {
	for name, wire := range map[string]func(testing.TB) (net.Conn, net.Conn){"sockets": sockets, "TLS": secured} {
		b.Run(name, func(b *testing.B) {
			x, y := wire(b)
			exchange := exchanger(b, http1.NewClientConn(x, http1.ClientConfig{}), http1.NewServerConn(y, http1.ServerConfig{IdleTimeout: time.Hour}))
			b.ReportAllocs()
			for b.Loop() {
				exchange()
			}
		})
	}
}

// A script is a connection that gives the same bytes again and again and takes any.
type script struct {
	net.Conn
	bytes []byte
}

func (s *script) Read(p []byte) (int, error)       { return copy(p, s.bytes), nil }
func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

const typicalRequest = "GET /api/v1/things?limit=10 HTTP/1.1\r\nHost: web.example:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.5\r\n" +
	"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\nX-Request-Id: 8d3e9fe1-0a83-4a8c-9d7e-1a8d1f1cb0ff\r\nConnection: keep-alive\r\n\r\n"

const typicalResponse = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\nServer: nginx\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\n" +
	"Cache-Control: no-store\r\nETag: \"0123456789\"\r\n\r\n{\"hello\":\"world\"}"

func BenchmarkServer(b *testing.B) {
	c := http1.NewServerConn(&script{bytes: []byte(typicalRequest)}, http1.ServerConfig{})
	var resp message.Response
	resp.Reset()
	resp.Status, resp.ContentLength = 200, 17
	resp.Header.Add("content-type", "application/json")
	resp.Header.Add("server", "sarn")
	resp.Header.Add("date", "Sun, 22 Nov 2026 00:00:00 GMT")
	body := []byte(`{"hello":"world"}`)
	b.ReportAllocs()
	for b.Loop() {
		s, err := c.Next()
		if err != nil {
			b.Fatal(err)
		}
		s.Respond(&resp, false)
		if err := s.Write(body, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkClient(b *testing.B) {
	c := http1.NewClientConn(&script{bytes: []byte(typicalResponse)}, http1.ClientConfig{})
	var req message.Request
	req.Reset()
	req.Method, req.Authority, req.Path, req.ContentLength = "GET", "web.example:8080", "/api/v1/things?limit=10", 0
	req.Header.Add("user-agent", "curl/8.5.0")
	req.Header.Add("accept", "application/json")
	var resp message.Response
	b.ReportAllocs()
	for b.Loop() {
		s := c.Stream()
		if err := s.Send(&req, true); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Receive(&resp); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Read(); err != io.EOF {
			b.Fatal(err)
		}
		s.Close()
		if !c.Usable() {
			b.Fatal("not usable")
		}
	}
}

func BenchmarkBody(b *testing.B) {
	for _, chunked := range []bool{false, true} {
		name := "length"
		if chunked {
			name = "chunked"
		}
		b.Run(name, func(b *testing.B) {
			x, y := sockets(b)
			const size = 1 << 20
			cc, sc := http1.NewClientConn(x, http1.ClientConfig{}), http1.NewServerConn(y, http1.ServerConfig{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				var resp message.Response
				piece := make([]byte, 32<<10)
				for {
					s, err := sc.Next()
					if err != nil {
						return
					}
					resp.Reset()
					resp.Status = 200
					if !chunked {
						resp.ContentLength = size
					}
					s.Respond(&resp, false)
					for n := 0; n < size; n += len(piece) {
						s.Write(piece, n+len(piece) == size)
					}
				}
			}()
			var req message.Request
			var resp message.Response
			req.Reset()
			req.Method, req.Authority, req.Path, req.ContentLength = "GET", "a", "/", 0
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				s := cc.Stream()
				s.Send(&req, true)
				if _, err := s.Receive(&resp); err != nil {
					b.Fatal(err)
				}
				for {
					if _, err := s.Read(); err == io.EOF {
						break
					} else if err != nil {
						b.Fatal(err)
					}
				}
				s.Close()
			}
			cc.Close()
			<-done
		})
	}
}
