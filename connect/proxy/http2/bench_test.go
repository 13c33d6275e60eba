package http2_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

var small = []byte(strings.Repeat("x", 64))

// respond sends 64 bytes.
func respond(s message.ServerStream, resp *message.Response) {
	resp.Header.Add("content-type", "text/plain")
	resp.Header.Add("content-length", "64")
	resp.Header.Add("server", "test")
	if s.Respond(resp, false) == nil {
		s.Write(small, true)
	}
}

const (
	benchConns   = 8
	benchStreams = 16
)

// each runs b.N calls of f spread over goroutines, each of which makes its own f.
func each(b *testing.B, conns, streams int, worker func(conn int) func()) {
	b.ReportAllocs()
	var wg sync.WaitGroup
	next := make(chan int, conns*streams)
	for i := range conns * streams {
		n := b.N / (conns * streams)
		if i < b.N%(conns*streams) {
			n++
		}
		next <- n
	}
	fs := make([]func(), conns*streams)
	for i := range fs {
		fs[i] = worker(i / streams)
		fs[i]()
	}
	b.ResetTimer()
	for _, f := range fs {
		n := <-next
		wg.Go(func() {
			for range n {
				f()
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}

func BenchmarkRequests(b *testing.B) {
	heads := sync.Pool{New: func() any { return new(message.Response) }}
	handler := func(s message.ServerStream) {
		r := heads.Get().(*message.Response)
		r.Reset()
		r.Status = 200
		respond(s, r)
		heads.Put(r)
	}
	var conns [benchConns]*http2.ClientConn
	for i := range conns {
		conns[i], _ = pair(b, handler, http2.ServerConfig{}, http2.ClientConfig{})
	}
	each(b, benchConns, benchStreams, func(i int) func() {
		req := request("GET", "/some/path", "user-agent", "bench", "accept", "*/*")
		var resp message.Response
		return func() {
			s, err := conns[i].Open()
			if err != nil {
				b.Error(err)
				return
			}
			defer s.Close()
			resp.Reset()
			if err := s.Send(req, true); err != nil {
				b.Error(err)
			}
			if _, err := s.Receive(&resp); err != nil {
				b.Error(err)
				return
			}
			for {
				if _, err := s.Read(); err != nil {
					if err != io.EOF {
						b.Error(err)
					}
					break
				}
			}
		}
	})
}

// BenchmarkRequestsOfNetHTTP does the same with net/http, whose HTTP/2 is that of golang.org/x/net.
func BenchmarkRequestsOfNetHTTP(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Length", "64")
		w.Header().Set("Server", "test")
		w.Write(small)
	})}
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(ln)
	b.Cleanup(func() { srv.Close() })
	var clients [benchConns]*http.Client // one connection each
	for i := range clients {
		clients[i] = netHTTPClient(b)
	}
	each(b, benchConns, benchStreams, func(i int) func() {
		return func() {
			req, _ := http.NewRequest("GET", "http://"+ln.Addr().String()+"/some/path", nil)
			req.Header.Set("User-Agent", "bench")
			req.Header.Set("Accept", "*/*")
			resp, err := clients[i].Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}

// BenchmarkBodies carries bodies of 1 MiB from server to client.
func BenchmarkBodies(b *testing.B) {
	piece := make([]byte, 64<<10)
	cli, _ := pair(b, func(s message.ServerStream) {
		var r message.Response
		r.Status = 200
		if s.Respond(&r, false) != nil {
			return
		}
		for i := range 16 {
			s.Write(piece, i == 15)
		}
	}, http2.ServerConfig{}, http2.ClientConfig{})
	b.SetBytes(1 << 20)
	each(b, 1, 4, func(int) func() {
		req := request("GET", "/")
		return func() {
			s, err := cli.Open()
			if err != nil {
				b.Error(err)
				return
			}
			defer s.Close()
			var resp message.Response
			s.Send(req, true)
			s.Receive(&resp)
			n := 0
			for err == nil {
				var p []byte
				p, err = s.Read()
				n += len(p)
			}
			if n != 1<<20 || err != io.EOF {
				b.Errorf("%d bytes, %v", n, err)
			}
		}
	})
}
