package pool_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/pool"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// requester returns a function that makes a request over a socket.
func requester(tb testing.TB) func() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ln.Close() })
	go func() {
		var r message.Response
		r.Reset()
		r.Status, r.ContentLength = 200, 0
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			sc := http1.NewServerConn(c, http1.ServerConfig{})
			for {
				s, err := sc.Next()
				if err != nil {
					break
				}
				s.Respond(&r, true)
			}
			sc.Close()
		}
	}()
	m := upstream.NewManager(upstream.Config{})
	addr := ln.Addr().(*net.TCPAddr)
	m.Set(&model.Cluster{Name: "c", ConnectTimeout: time.Second, Choices: 2, Breakers: [2]model.Breaker{model.DefaultBreaker},
		HTTP: model.UpstreamHTTP{IdleTimeout: time.Hour},
		Endpoints: &model.LoadAssignment{Cluster: "c", Localities: []model.Locality{{}}, Endpoints: []model.Endpoint{
			{Address: model.Address{Host: "127.0.0.1", Port: uint16(addr.Port)}, Weight: 1}}}}, true)
	p := pool.New()
	tb.Cleanup(func() { p.Close() })
	c := m.Get("c")
	var req message.Request
	var resp message.Response
	req.Reset()
	req.Method, req.Authority, req.Path, req.ContentLength = "GET", "c", "/", 0
	return func() {
		var ch upstream.Choice
		owner, h, err := c.Choose(&ch)
		if err != nil {
			tb.Fatal(err)
		}
		s, _, err := p.Stream(context.Background(), owner, h, pool.Options{})
		if err != nil {
			tb.Fatal(err)
		}
		if err := s.Send(&req, true); err != nil {
			tb.Fatal(err)
		}
		if _, err := s.Receive(&resp); err != nil && err != io.EOF {
			tb.Fatal(err)
		}
		s.Close()
	}
}

func TestRequestsOverKeptConnectionsCostNoMemory(t *testing.T) {
	if raced {
		t.Skip("not under the race detector")
	}
	request := requester(t)
	for range 100 {
		request()
	}
	if n := testing.AllocsPerRun(300, request); n != 0 {
		t.Errorf("%v allocations for a request", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	request := requester(b)
	request()
	b.ReportAllocs()
	for b.Loop() {
		request()
	}
}

// BenchmarkStream is what the pool itself takes.
func BenchmarkStream(b *testing.B) {
	m := upstream.NewManager(upstream.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return echo{}, nil }})
	m.Set(&model.Cluster{Name: "c", ConnectTimeout: time.Second, Choices: 2, Breakers: [2]model.Breaker{model.DefaultBreaker},
		HTTP:      model.UpstreamHTTP{IdleTimeout: time.Hour},
		Endpoints: &model.LoadAssignment{Cluster: "c", Localities: []model.Locality{{}}, Endpoints: []model.Endpoint{{Address: model.Address{Host: "127.0.0.1", Port: 80}, Weight: 1}}}}, true)
	p := pool.New()
	c := m.Get("c")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var req message.Request
		var resp message.Response
		req.Reset()
		req.Method, req.Authority, req.Path, req.ContentLength = "GET", "c", "/", 0
		for pb.Next() {
			owner, h, _ := c.Choose(&upstream.Choice{})
			s, _, err := p.Stream(context.Background(), owner, h, pool.Options{})
			if err != nil {
				b.Error(err)
				return
			}
			s.Send(&req, true)
			s.Receive(&resp)
			s.Close()
		}
	})
}

// An echo is a connection that answers everything with the same.
type echo struct{ net.Conn }

func (echo) Read(p []byte) (int, error) { return copy(p, "HTTP/1.1 204 No Content\r\n\r\n"), nil }

func (echo) Write(p []byte) (int, error)      { return len(p), nil }
func (echo) Close() error                     { return nil }
func (echo) LocalAddr() net.Addr              { return nil }
func (echo) SetReadDeadline(time.Time) error  { return nil }
func (echo) SetWriteDeadline(time.Time) error { return nil }
