// Package waiters measures what blocking queries cost a server while they wait and when they are woken: the HTTP server,
// the routes, the dispatcher and the state in one process, over connections that take no memory of the system.
package waiters

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/kvrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// A conn is the server's side of a connection whose client sends what send is given and counts the answers.
type conn struct {
	f *fleet

	mu      sync.Mutex
	in      []byte
	expired bool
	closed  bool
	wake    chan struct{}
}

func (c *conn) set(do func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	do()
	if c.wake != nil {
		close(c.wake)
		c.wake = nil
	}
}

func (c *conn) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		switch {
		case c.closed:
			c.mu.Unlock()
			return 0, io.EOF
		case c.expired:
			c.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(c.in) > 0:
			n := copy(p, c.in)
			c.in = c.in[n:]
			c.mu.Unlock()
			return n, nil
		}
		if c.wake == nil {
			c.wake = make(chan struct{})
		}
		wake := c.wake
		c.mu.Unlock()
		<-wake
	}
}

func (c *conn) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("HTTP/1.1 ")) {
		if !bytes.HasPrefix(p, []byte("HTTP/1.1 200 ")) {
			c.f.failed.Store(true)
		}
		c.f.answered <- struct{}{}
	}
	return len(p), nil
}

func (c *conn) Close() error                     { c.set(func() { c.closed = true }); return nil }
func (c *conn) LocalAddr() net.Addr              { return address{} }
func (c *conn) RemoteAddr() net.Addr             { return address{} }
func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
func (c *conn) SetReadDeadline(t time.Time) error {
	c.set(func() { c.expired = !t.IsZero() && t.Before(time.Now()) })
	return nil
}

type address struct{}

func (address) Network() string { return "tcp" }
func (address) String() string  { return "10.0.0.1:1" }

// A fleet is a server with many clients. It is the listener of both.
type fleet struct {
	t        testing.TB
	rpc      *rpctest.Server
	conns    []*conn
	accept   chan *conn
	done     chan struct{}
	answered chan struct{}
	failed   atomic.Bool
}

func (f *fleet) Accept() (net.Conn, error) {
	select {
	case c := <-f.accept:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *fleet) Close() error   { return nil }
func (f *fleet) Addr() net.Addr { return address{} }

func newFleet(t testing.TB, clients int) *fleet {
	f := &fleet{t: t, rpc: rpctest.New(), accept: make(chan *conn), done: make(chan struct{}), answered: make(chan struct{}, clients)}
	catalogrpc.Register(&f.rpc.Registry, &f.rpc.Appliers, catalogrpc.Config{})
	kvrpc.Register(&f.rpc.Registry, &f.rpc.Appliers, kvrpc.Config{})
	s, err := httpapi.New(httpapi.Config{Caller: f.rpc.Caller(), Datacenter: "dc1", NodeName: "node1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, f) }()
	t.Cleanup(func() {
		cancel()
		close(f.done)
		f.each(func(_ int, c *conn) { c.Close() })
		<-ended
	})
	for range clients {
		c := &conn{f: f}
		f.conns = append(f.conns, c)
		f.accept <- c
	}
	return f
}

func (f *fleet) each(do func(i int, c *conn)) {
	for i, c := range f.conns {
		do(i, c)
	}
}

// register changes the instance of a service.
func (f *fleet) register(service string, port int) {
	req := &catalog.RegisterRequest{
		Node: "n1", Address: "10.0.0.9", Service: &catalog.Service{ID: service, Service: service, Port: port},
		Checks: []*catalog.Check{{CheckID: service, ServiceID: service, Name: "up", Status: catalog.Passing}},
	}
	if _, err := catalog.RegisterCall.Call(f.t.Context(), f.rpc.Caller(), req); err != nil {
		f.t.Fatal(err)
	}
}

// putKey sets a key.
func putKey(f *fleet, key string, value []byte) {
	req := &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: key, Value: value}}
	if _, err := kv.ApplyCall.Call(f.t.Context(), f.rpc.Caller(), req); err != nil {
		f.t.Fatal(err)
	}
}

// registerOn registers a healthy instance.
func registerOn(f *fleet, node, service string) {
	req := &catalog.RegisterRequest{
		Node: node, Address: "10.0.0.1", Service: &catalog.Service{ID: service, Service: service, Port: 80},
		Checks: []*catalog.Check{{CheckID: service, ServiceID: service, Name: "up", Status: catalog.Passing}},
	}
	if _, err := catalog.RegisterCall.Call(f.t.Context(), f.rpc.Caller(), req); err != nil {
		f.t.Fatal(err)
	}
}

// ask has every client ask for the next change of the service that service gives it, and waits until all wait.
func (f *fleet) ask(service func(i int) string) {
	index := f.rpc.Index()
	f.each(func(i int, c *conn) {
		text := fmt.Sprintf("GET /v1/health/service/%s?wait=300s&index=%d HTTP/1.1\r\nHost: 127.0.0.1:8500\r\nUser-Agent: Go-http-client/1.1\r\n"+
			"Accept-Encoding: gzip\r\n\r\n", service(i), index)
		c.set(func() { c.in = append(c.in[:0], text...) })
	})
	for f.rpc.Caller().Blocked() != len(f.conns) {
		if f.failed.Load() {
			f.t.Fatal("a query was refused")
		}
		time.Sleep(time.Millisecond)
	}
}

// answers waits for so many.
func (f *fleet) answers(n int) {
	for range n {
		<-f.answered
	}
	if f.failed.Load() {
		f.t.Fatal("an answer was not 200")
	}
}

// used is the memory of heap and stacks.
func used() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// BenchmarkWaiters holds 20,000 blocking queries, a hundred of which are for each of 200 services, and changes one after
// the other. It tells the bytes that a connection costs and a waiting query on it; a change counts as one operation, its
// hundred new queries included.
func BenchmarkWaiters(b *testing.B) {
	const clients, services = 20000, 200
	empty := used()
	f := newFleet(b, clients)
	for i := range services {
		f.register(fmt.Sprint("web", i), 1)
	}
	idle := used()
	f.ask(func(i int) string { return fmt.Sprint("web", i%services) })
	time.Sleep(100 * time.Millisecond) // the connections are watched
	waiting := used()
	b.ReportAllocs()
	changed := 0
	for b.Loop() {
		f.register(fmt.Sprint("web", changed%services), 2+changed)
		f.answers(clients / services)
		changed++
		if changed%services == 0 {
			b.StopTimer()
			f.ask(func(i int) string { return fmt.Sprint("web", i%services) })
			b.StartTimer()
		}
	}
	b.ReportMetric(float64(idle-empty)/clients, "B/conn")
	b.ReportMetric(float64(waiting-idle)/clients, "B/waiter")
}

// BenchmarkFanOut changes one service that 2,000 clients watch. An operation is one change until the last of them has it.
func BenchmarkFanOut(b *testing.B) {
	f := newFleet(b, 2000)
	f.register("web", 1)
	b.ReportAllocs()
	for i := 2; b.Loop(); i++ {
		b.StopTimer()
		f.ask(func(int) string { return "web" })
		b.StartTimer()
		f.register("web", i)
		f.answers(2000)
	}
}

// BenchmarkRead measures whole requests in one process, one after another.
func BenchmarkRead(b *testing.B) {
	for _, bench := range []struct{ name, path string }{
		{"kv", "/v1/kv/one"}, {"health", "/v1/health/service/web?passing"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			f := newFleet(b, 1)
			putKey(f, "one", bytes.Repeat([]byte("x"), 512))
			for i := range 100 {
				registerOn(f, fmt.Sprint("h", i), "web")
			}
			text := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:8500\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n", bench.path)
			b.ReportAllocs()
			for b.Loop() {
				f.conns[0].set(func() { f.conns[0].in = text })
				f.answers(1)
			}
		})
	}
}

// A query that waits holds no more than its goroutines and what it asked for.
func TestWaitersAreCheap(t *testing.T) {
	const clients, most = 2000, 24 << 10
	empty := used()
	f := newFleet(t, clients)
	f.register("web", 1)
	f.ask(func(int) string { return "web" })
	per := (int64(used()) - int64(empty)) / clients
	for end := time.Now().Add(20 * time.Second); per > most && !raceEnabled; per = (int64(used()) - int64(empty)) / clients {
		if time.Now().After(end) { // not all may have given their stacks back when they begin to wait
			t.Fatalf("a connection with a blocking query takes %d bytes, want at most %d", per, most)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("%d bytes for a connection with a blocking query", per)
	f.register("other", 1)
	f.register("web", 2)
	f.answers(clients)
	if n := len(f.answered); n != 0 {
		t.Errorf("%d answers too many", n)
	}
}
