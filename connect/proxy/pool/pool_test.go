package pool_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/pool"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// raced is whether the race detector looks on, under which pools of buffers forget some.
var raced bool

// A world is a cluster "c" of one host, in a bubble.
type world struct {
	*testing.T
	host    *testkit.Host // where the host runs
	manager *upstream.Manager
	pool    *pool.Pool

	mu        sync.Mutex
	accepted  []net.Conn
	h2        []*http2.ServerConn
	dial      func(ctx context.Context) error // goes before each dial; nil does nothing
	tls       *tls.Config                     // of the host; nil for plaintext
	protocol2 bool                            // the host speaks HTTP/2 in plaintext
	streams   uint32                          // of an HTTP/2 connection
	running   sync.WaitGroup
}

// run tests with a cluster that edit has tuned.
func run(t *testing.T, edit func(c *model.Cluster), f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		n := testkit.NewNetwork(1)
		w := &world{T: t, host: n.Host("10.0.0.2"), pool: pool.New()}
		me := n.Host("10.0.0.1")
		w.manager = upstream.NewManager(upstream.Config{Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			w.mu.Lock()
			hook := w.dial
			w.mu.Unlock()
			if hook != nil {
				if err := hook(ctx); err != nil {
					return nil, err
				}
			}
			c, err := me.Dial(ctx, address)
			if err == nil && w.tls != nil {
				return tlsless{c}, nil
			}
			return c, err
		}})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- w.manager.Run(ctx) }()
		ln, err := w.host.Listen(80)
		if err != nil {
			t.Fatal(err)
		}
		w.running.Go(func() { w.accept(ln) })
		w.set(edit)
		f(w)
		if err := w.pool.Close(); err != nil {
			t.Error(err)
		}
		ln.Close()
		w.hangUp()
		cancel()
		<-done
		w.running.Wait()
		synctest.Wait()
		b := w.cluster().Breaker(model.PriorityDefault)
		for r, name := range map[upstream.Resource]string{upstream.Connections: "connections", upstream.Pending: "pending", upstream.Requests: "requests"} {
			if n := b.Used(r); n != 0 {
				t.Errorf("%d %s are in use after all has ended", n, name)
			}
		}
		s := w.cluster().Stats()
		if n := s.CxActive.Value(); n != 0 {
			t.Errorf("%d connections are active after all has ended", n)
		}
		if n := s.RqPendingActive.Value(); n != 0 {
			t.Errorf("%d requests are pending after all has ended", n)
		}
	})
}

// tlsless hides everything but net.Conn.
type tlsless struct{ net.Conn }

func (w *world) set(edit func(c *model.Cluster)) {
	c := &model.Cluster{Name: "c", ConnectTimeout: 5 * time.Second, Choices: 2, Breakers: [2]model.Breaker{model.DefaultBreaker, model.DefaultBreaker}}
	c.Endpoints = &model.LoadAssignment{Cluster: "c", Localities: []model.Locality{{}}, Endpoints: []model.Endpoint{{Address: model.Address{Host: "10.0.0.2", Port: 80}, Weight: 1}}}
	if edit != nil {
		edit(c)
	}
	w.manager.Set(c, false)
}

// dialing makes f go before each dial.
func (w *world) dialing(f func(context.Context) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dial = f
}

func (w *world) cluster() *upstream.Cluster { return w.manager.Get("c") }

// accept answers requests: with their path; never for "/hang"; and closes the connection with it for "/close".
func (w *world) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		w.accepted = append(w.accepted, c)
		w.mu.Unlock()
		w.running.Go(func() {
			protocol := ""
			if w.protocol2 {
				protocol = "h2"
			}
			if w.tls != nil {
				t := tls.Server(stream.Below(c), w.tls)
				if t.Handshake() != nil {
					c.Close()
					return
				}
				protocol = t.ConnectionState().NegotiatedProtocol
				c = t
			}
			if protocol == "h2" {
				sc := http2.NewServerConn(c, http2.ServerConfig{Options: http2.Options{MaxStreams: w.streams}})
				w.mu.Lock()
				w.h2 = append(w.h2, sc)
				w.mu.Unlock()
				_ = sc.Serve(func(s message.ServerStream) { answer(s) })
				return
			}
			sc := http1.NewServerConn(c, http1.ServerConfig{DelayedClose: -1})
			defer sc.Close()
			for {
				s, err := sc.Next()
				if err != nil {
					return
				}
				if !answer(s) {
					return
				}
			}
		})
	}
}

func answer(s message.ServerStream) bool {
	path := s.Request().Path
	switch {
	case path == "/hang":
		_, err := s.Read() // nothing comes
		for err == nil || errors.Is(err, io.EOF) {
			if s.Gone() {
				break
			}
			time.Sleep(100 * time.Millisecond)
			if _, err = s.Read(); errors.Is(err, io.EOF) {
				break
			}
		}
		time.Sleep(time.Hour)
		return false
	case strings.HasPrefix(path, "/sleep"):
		time.Sleep(time.Minute)
	case path == "/close":
		s.CloseAfter()
	}
	var r message.Response
	r.Reset()
	r.Status, r.ContentLength = 200, int64(len(path))
	if s.Respond(&r, false) != nil {
		return false
	}
	return s.Write([]byte(path), true) == nil
}

// connections returns how many were made.
func (w *world) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.accepted)
}

// hangUp closes what the host has accepted.
func (w *world) hangUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.accepted {
		c.Close()
	}
}

func (w *world) stream(o pool.Options) (message.ClientStream, pool.Info, error) {
	c := w.cluster()
	owner, h, err := c.Choose(&upstream.Choice{})
	if err != nil {
		return nil, pool.Info{}, err
	}
	return w.pool.Stream(context.Background(), owner, h, o)
}

// must opens a stream.
func (w *world) must(o pool.Options) (message.ClientStream, pool.Info) {
	w.Helper()
	s, i, err := w.stream(o)
	if err != nil {
		w.Fatal(err)
	}
	return s, i
}

// ask sends a request on a stream and returns the body of the response.
func ask(s message.ClientStream, path string) (string, error) {
	defer s.Close()
	var r message.Request
	r.Reset()
	r.Method, r.Scheme, r.Authority, r.Path, r.ContentLength = "GET", "http", "c", path, 0
	if err := s.Send(&r, true); err != nil {
		return "", err
	}
	if err := s.Flush(); err != nil {
		return "", err
	}
	var resp message.Response
	resp.Reset()
	end, err := s.Receive(&resp)
	var body strings.Builder
	for err == nil && !end {
		var p []byte
		p, err = s.Read()
		body.Write(p)
	}
	if err != nil && err != io.EOF {
		return body.String(), err
	}
	return body.String(), nil
}

// get makes a request from beginning to end.
func (w *world) get(path string) (string, error) {
	s, _, err := w.stream(pool.Options{})
	if err != nil {
		return "", err
	}
	return ask(s, path)
}

func (w *world) mustGet(path string) {
	w.Helper()
	if body, err := w.get(path); err != nil || body != path {
		w.Fatalf("got %q, %v, want %q", body, err, path)
	}
}

func (w *world) wantConnections(n int) {
	w.Helper()
	synctest.Wait()
	if got := w.connections(); got != n {
		w.Errorf("%d connections were made, want %d", got, n)
	}
}

// wantOpen checks how many connections are open.
func (w *world) wantOpen(n int64) {
	w.Helper()
	synctest.Wait()
	if got := w.cluster().Stats().CxActive.Value(); got != n {
		w.Errorf("%d connections are open, want %d", got, n)
	}
}

func TestConnectionsAreUsedAgainLastOneFirst(t *testing.T) {
	run(t, nil, func(w *world) {
		a, ia := w.must(pool.Options{})
		b, ib := w.must(pool.Options{})
		if ia.Reused || ib.Reused || ia.LocalAddress == ib.LocalAddress || ia.RemoteAddress != "10.0.0.2:80" || ia.Version != message.HTTP11 {
			t.Errorf("two at a time: %+v and %+v", ia, ib)
		}
		for _, s := range []message.ClientStream{a, b} {
			if _, err := ask(s, "/"); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			s, i := w.must(pool.Options{})
			if !i.Reused || i.LocalAddress != ib.LocalAddress {
				t.Errorf("got %+v, want the connection that was used last", i)
			}
			ask(s, "/")
		}
		w.wantConnections(2)
		hi, ii := w.must(pool.Options{Priority: model.PriorityHigh})
		if ii.Reused {
			t.Error("priorities share a connection")
		}
		ask(hi, "/")
		w.mustGet("/close")
		w.wantOpen(2)
		if n := w.cluster().Stats().CxCloseNotify.Value(); n != 1 {
			t.Errorf("counted %d connections that the host closed after it had said so", n)
		}
	})
}

func TestStreamThatBreaksOffClosesItsConnection(t *testing.T) {
	run(t, nil, func(w *world) {
		w.mustGet("/")
		s, _ := w.must(pool.Options{})
		s.Close() // without a request
		w.wantOpen(0)
		if n := w.cluster().Stats().CxDestroyLocalWithRequest.Value(); n != 1 {
			t.Errorf("counted %d", n)
		}
		s, _ = w.must(pool.Options{})
		synctest.Wait()
		w.hangUp()
		if _, err := ask(s, "/"); err == nil {
			t.Error("a request over a connection that is closed succeeded")
		}
		w.wantOpen(0)
		if n := w.cluster().Stats().CxDestroyRemoteWithRequest.Value(); n != 1 {
			t.Errorf("counted %d that the host has closed", n)
		}
	})
}

func TestRequestsWaitForConnectionsInOrder(t *testing.T) {
	run(t, func(c *model.Cluster) {
		c.Breakers[0].MaxConnections, c.Breakers[0].MaxPending = 1, 3
	}, func(w *world) {
		a, _ := w.must(pool.Options{})
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				s, info, err := w.stream(pool.Options{})
				if err != nil || !info.Reused {
					t.Errorf("waiting: reused %v, %v", info.Reused, err)
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				if _, err := ask(s, "/"); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		st := w.cluster().Stats()
		if n := st.RqPendingActive.Value(); n != 3 {
			t.Errorf("%d requests are pending, want 3", n)
		}
		if _, _, err := w.stream(pool.Options{}); message.ReasonOf(err) != message.Overflow {
			t.Errorf("a fourth one gets %v, want an overflow", err)
		}
		if n := st.RqPendingOverflow.Value(); n != 1 {
			t.Errorf("counted %d overflows", n)
		}
		ask(a, "/")
		wg.Wait()
		if fmt.Sprint(order) != "[0 1 2]" {
			t.Errorf("served in the order %v", order)
		}
		w.wantConnections(1)
	})
}

func TestConnectionThatEndsMakesPlaceForAnother(t *testing.T) {
	run(t, func(c *model.Cluster) { c.Breakers[0].MaxConnections = 1 }, func(w *world) {
		a, _ := w.must(pool.Options{})
		done := make(chan error)
		go func() {
			_, err := w.get("/")
			done <- err
		}()
		synctest.Wait()
		a.Close() // unused, so the connection is closed
		if err := <-done; err != nil {
			t.Error(err)
		}
		w.wantConnections(2)
	})
}

func TestOneConnectionIsAlwaysAllowed(t *testing.T) {
	run(t, func(c *model.Cluster) { c.Breakers[0].MaxConnections = 0 }, func(w *world) {
		w.mustGet("/")
		w.mustGet("/")
		w.wantConnections(1)
	})
}

func TestRequestLimit(t *testing.T) {
	run(t, func(c *model.Cluster) { c.Breakers[0].MaxRequests = 2 }, func(w *world) {
		a, _ := w.must(pool.Options{})
		b, _ := w.must(pool.Options{})
		if _, _, err := w.stream(pool.Options{}); message.ReasonOf(err) != message.Overflow {
			t.Errorf("a third one gets %v, want an overflow", err)
		}
		c, _ := w.must(pool.Options{Priority: model.PriorityHigh})
		for _, s := range []message.ClientStream{a, b, c} {
			ask(s, "/")
		}
		w.mustGet("/")
	})
}

func TestHostConnectionLimit(t *testing.T) {
	run(t, func(c *model.Cluster) { c.Breakers[0].MaxHostConnections = 1 }, func(w *world) {
		a, _ := w.must(pool.Options{})
		if _, _, err := w.stream(pool.Options{Deadline: time.Now().Add(time.Second)}); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a second one gets %v, want to wait", err)
		}
		ask(a, "/")
		w.mustGet("/")
		w.wantConnections(1)
	})
}

func TestIdleConnectionsEnd(t *testing.T) {
	run(t, func(c *model.Cluster) { c.HTTP.IdleTimeout = time.Minute }, func(w *world) {
		a, _ := w.must(pool.Options{})
		b, _ := w.must(pool.Options{})
		ask(a, "/")
		ask(b, "/")
		for range 4 {
			time.Sleep(20 * time.Second)
			w.mustGet("/") // on b
		}
		w.wantOpen(1)
		time.Sleep(59 * time.Second)
		w.wantOpen(1)
		time.Sleep(time.Second)
		w.wantOpen(0)
		if n := w.cluster().Stats().CxIdleTimeout.Value(); n != 2 {
			t.Errorf("counted %d idle timeouts, want 2", n)
		}
	})
}

func TestConnectionsHaveLimitedLives(t *testing.T) {
	run(t, func(c *model.Cluster) { c.HTTP.MaxRequests = 2 }, func(w *world) {
		for range 4 {
			w.mustGet("/")
		}
		w.wantConnections(2)
		w.wantOpen(0)
	})
	run(t, func(c *model.Cluster) { c.HTTP.MaxDuration = time.Minute }, func(w *world) {
		s, _ := w.must(pool.Options{})
		w.mustGet("/")
		time.Sleep(59 * time.Second)
		w.wantOpen(2)
		time.Sleep(time.Second)
		w.wantOpen(1)
		ask(s, "/")
		w.wantOpen(0)
	})
}

func TestHostThatLeaves(t *testing.T) {
	run(t, nil, func(w *world) {
		owner, h, err := w.cluster().Choose(&upstream.Choice{})
		if err != nil {
			t.Fatal(err)
		}
		s, _ := w.must(pool.Options{})
		w.mustGet("/")
		w.set(func(c *model.Cluster) { c.Endpoints.Endpoints = nil })
		w.wantOpen(1)
		late, _, err := w.pool.Stream(context.Background(), owner, h, pool.Options{})
		if err != nil {
			t.Errorf("a request that was on its way: %v", err)
		}
		for _, s := range []message.ClientStream{s, late} {
			if body, err := ask(s, "/x"); body != "/x" || err != nil {
				t.Errorf("got %q, %v", body, err)
			}
		}
		w.wantOpen(0)
	})
}

func TestFailuresToConnect(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	tests := []struct {
		name string
		dial func(context.Context) error
		want message.Reason
		text string
		took time.Duration
	}{
		{"refused", func(context.Context) error { return errors.New("connection refused") }, message.RemoteConnectionFailure, "connection refused", 0},
		{"too slow", hang, message.ConnectionTimeout, "deadline exceeded", 5 * time.Second},
		{"no files left", func(context.Context) error { return os.NewSyscallError("socket", syscall.EMFILE) }, message.LocalConnectionFailure, "too many open files", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, nil, func(w *world) {
				w.dialing(tt.dial)
				start := time.Now()
				_, _, err := w.stream(pool.Options{})
				se, ok := errors.AsType[*message.StreamError](err)
				if !ok || se.Reason != tt.want || se.Sent || !strings.Contains(se.Detail, tt.text) || time.Since(start) != tt.took {
					t.Errorf("got %#v after %v", err, time.Since(start))
				}
				if n := w.cluster().Stats().RqPendingFailure.Value(); n != 1 {
					t.Errorf("counted %d", n)
				}
				w.dialing(nil)
				w.mustGet("/")
			})
		})
	}
}

func TestConnectionThatComesTooLateIsForTheNext(t *testing.T) {
	run(t, nil, func(w *world) {
		w.dialing(func(context.Context) error { time.Sleep(2 * time.Second); return nil })
		start := time.Now()
		if _, _, err := w.stream(pool.Options{Deadline: start.Add(time.Second)}); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(w.Context(), time.Second/2)
		defer cancel()
		owner, h, _ := w.cluster().Choose(&upstream.Choice{})
		if _, _, err := w.pool.Stream(ctx, owner, h, pool.Options{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.Sleep(2 * time.Second)
		w.dialing(func(context.Context) error { return errors.New("no more") })
		w.mustGet("/")
	})
}

func TestStreamsShareAnHTTP2Connection(t *testing.T) {
	run(t, func(c *model.Cluster) { c.HTTP.Protocol = model.UpstreamHTTP2 }, func(w *world) {
		w.protocol2, w.streams = true, 4
		w.dialing(func(context.Context) error { time.Sleep(time.Second); return nil })
		var wg sync.WaitGroup
		for range 3 { // which find that a connection is being made
			wg.Go(func() { w.mustGet("/") })
		}
		wg.Wait()
		w.wantConnections(1)
		var open []message.ClientStream
		for range 4 {
			s, i := w.must(pool.Options{})
			if i.Version != message.HTTP2 || !i.Reused {
				t.Errorf("%+v", i)
			}
			open = append(open, s)
		}
		more, i := w.must(pool.Options{})
		if i.Reused {
			t.Error("a fifth stream was opened on a connection for four")
		}
		w.wantConnections(2)
		for _, s := range append(open, more) {
			if _, err := ask(s, "/"); err != nil {
				t.Error(err)
			}
		}
		w.wantOpen(2)
	})
}

func TestRequestsWaitForStreams(t *testing.T) {
	run(t, func(c *model.Cluster) {
		c.HTTP.Protocol = model.UpstreamHTTP2
		c.Breakers[0].MaxConnections = 1
	}, func(w *world) {
		w.protocol2, w.streams = true, 2
		w.mustGet("/")
		a, _ := w.must(pool.Options{})
		b, _ := w.must(pool.Options{})
		got := make(chan error)
		go func() {
			_, err := w.get("/")
			got <- err
		}()
		synctest.Wait()
		if n := w.cluster().Stats().RqPendingActive.Value(); n != 1 {
			t.Errorf("%d requests are pending", n)
		}
		a.Close()
		if err := <-got; err != nil {
			t.Error(err)
		}
		b.Close()
		w.wantConnections(1)
	})
}

func TestConnectionThatDrainsGetsNoMoreStreams(t *testing.T) {
	run(t, func(c *model.Cluster) { c.HTTP.Protocol = model.UpstreamHTTP2 }, func(w *world) {
		w.protocol2 = true
		w.mustGet("/")
		got := make(chan error)
		go func() {
			_, err := w.get("/sleep")
			got <- err
		}()
		synctest.Wait()
		w.h2[0].Shutdown(time.Minute)
		synctest.Wait()
		s, i := w.must(pool.Options{})
		if i.Reused {
			t.Error("a stream was opened on a connection that drains")
		}
		ask(s, "/")
		if err := <-got; err != nil {
			t.Errorf("the request that was in progress: %v", err)
		}
		w.wantConnections(2)
		time.Sleep(time.Minute)
		w.wantOpen(1)
	})
}

func TestHTTP2ConnectionsEnd(t *testing.T) {
	run(t, func(c *model.Cluster) {
		c.HTTP.Protocol, c.HTTP.IdleTimeout = model.UpstreamHTTP2, time.Minute
	}, func(w *world) {
		w.protocol2 = true
		w.mustGet("/")
		time.Sleep(50 * time.Second)
		w.mustGet("/")
		time.Sleep(59 * time.Second)
		w.wantOpen(1)
		time.Sleep(time.Second)
		w.wantOpen(0)
		w.mustGet("/")
		w.hangUp()
		w.wantOpen(0)
		w.mustGet("/")
		w.wantConnections(3)
	})
	run(t, func(c *model.Cluster) { c.HTTP.Protocol, c.HTTP.MaxRequests = model.UpstreamHTTP2, 2 }, func(w *world) {
		w.protocol2 = true
		for range 4 {
			w.mustGet("/")
		}
		w.wantConnections(2)
		w.wantOpen(0)
	})
	run(t, func(c *model.Cluster) { c.HTTP.Protocol, c.HTTP.MaxDuration = model.UpstreamHTTP2, time.Minute }, func(w *world) {
		w.protocol2 = true
		s, _ := w.must(pool.Options{})
		time.Sleep(time.Minute)
		synctest.Wait()
		w.mustGet("/")
		w.wantConnections(2)
		if _, err := ask(s, "/"); err != nil && message.ReasonOf(err) != message.RemoteRefused {
			t.Error(err)
		}
		w.wantOpen(1)
	})
}

func TestAllWhoWaitLearnOfAFailure(t *testing.T) {
	run(t, func(c *model.Cluster) { c.HTTP.Protocol = model.UpstreamHTTP2 }, func(w *world) {
		dials := 0
		w.dialing(func(context.Context) error { dials++; time.Sleep(time.Second); return errors.New("refused") })
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, _, err := w.stream(pool.Options{}); message.ReasonOf(err) != message.RemoteConnectionFailure {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if dials != 1 {
			t.Errorf("%d dials", dials)
		}
	})
}

func TestProtocolOfTheClient(t *testing.T) {
	run(t, func(c *model.Cluster) { c.HTTP.Protocol = model.UpstreamAsClient }, func(w *world) {
		a, i := w.must(pool.Options{Downstream: message.HTTP11})
		if i.Version != message.HTTP11 {
			t.Errorf("got %v", i.Version)
		}
		ask(a, "/")
		synctest.Wait()
		w.protocol2 = true
		b, i := w.must(pool.Options{Downstream: message.HTTP2})
		if i.Version != message.HTTP2 || i.Reused {
			t.Errorf("got %v", i.Version)
		}
		if body, err := ask(b, "/x"); body != "/x" || err != nil {
			t.Errorf("%q, %v", body, err)
		}
	})
}

func TestProtocolThatTheHostChooses(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1", ""} {
		t.Run(protocol, func(t *testing.T) {
			var ca *testkit.CA
			run(t, func(c *model.Cluster) {
				ca = testkit.NewCA(t, "ca")
				c.HTTP.Protocol = model.UpstreamALPN
				c.TLS = &model.UpstreamTLS{}
			}, func(w *world) {
				w.tls = &tls.Config{Certificates: []tls.Certificate{*ca.Issue("x")}}
				if protocol != "" {
					w.tls.NextProtos = []string{protocol}
				}
				w.dialing(func(context.Context) error { time.Sleep(time.Second); return nil })
				want := message.HTTP11
				if protocol == "h2" {
					want = message.HTTP2
				}
				s, i := w.must(pool.Options{})
				if i.Version != want || i.State == nil {
					t.Errorf("got %v, TLS %v", i.Version, i.State != nil)
				}
				if body, err := ask(s, "/x"); body != "/x" || err != nil {
					t.Errorf("%q, %v", body, err)
				}
				start := time.Now()
				var open []message.ClientStream
				var mu sync.Mutex
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						s, _ := w.must(pool.Options{})
						mu.Lock()
						open = append(open, s)
						mu.Unlock()
					})
				}
				wg.Wait()
				// Two more connections are made at once if they are needed.
				if d := time.Since(start); protocol == "h2" && d != 0 || protocol != "h2" && d != time.Second {
					t.Errorf("three streams took %v", d)
				}
				for _, s := range open {
					ask(s, "/")
				}
			})
		})
	}
}

func TestUpgradeIsDoneOverHTTP1(t *testing.T) {
	var ca *testkit.CA
	run(t, func(c *model.Cluster) {
		ca = testkit.NewCA(t, "ca")
		c.HTTP.Protocol = model.UpstreamALPN
		c.TLS = &model.UpstreamTLS{}
	}, func(w *world) {
		w.tls = &tls.Config{Certificates: []tls.Certificate{*ca.Issue("x")}, NextProtos: []string{"h2", "http/1.1"}}
		a, i := w.must(pool.Options{})
		b, j := w.must(pool.Options{Upgrade: "websocket"})
		if i.Version != message.HTTP2 || j.Version != message.HTTP11 {
			t.Errorf("got %v, and %v to upgrade", i.Version, j.Version)
		}
		ask(a, "/")
		ask(b, "/")
	})
}

func TestProtocolThatTLSSettledOnIsSpoken(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		for _, want := range []model.UpstreamProtocol{model.UpstreamHTTP1, model.UpstreamHTTP2} {
			var ca *testkit.CA
			run(t, func(c *model.Cluster) {
				ca = testkit.NewCA(t, "ca")
				c.HTTP.Protocol = want
				c.TLS = &model.UpstreamTLS{TLS: model.TLS{ALPN: []string{"h2", "http/1.1"}}}
			}, func(w *world) {
				w.tls = &tls.Config{Certificates: []tls.Certificate{*ca.Issue("x")}, NextProtos: []string{protocol}}
				w.mustGet("/")
				w.mustGet("/")
				w.wantConnections(1)
			})
		}
	}
}

func TestManyRequestsAtATime(t *testing.T) {
	for _, p := range []model.UpstreamProtocol{model.UpstreamHTTP1, model.UpstreamHTTP2} {
		run(t, func(c *model.Cluster) {
			c.HTTP.Protocol, c.HTTP.MaxRequests = p, 7
			c.Breakers[0] = model.Breaker{MaxConnections: 5, MaxPending: 8, MaxRequests: 20}
		}, func(w *world) {
			w.protocol2, w.streams = p == model.UpstreamHTTP2, 3
			var wg sync.WaitGroup
			var mu sync.Mutex
			good, full, late := 0, 0, 0
			b := w.cluster().Breaker(model.PriorityDefault)
			for i := range 30 {
				r := rand.New(rand.NewPCG(1, uint64(i)))
				wg.Go(func() {
					for range 30 {
						s, _, err := w.stream(pool.Options{Deadline: time.Now().Add(time.Duration(r.IntN(20)) * time.Millisecond)})
						if n := b.Used(upstream.Connections); n > 5 {
							t.Errorf("%d connections", n)
						}
						if err == nil {
							time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
							if r.IntN(4) == 0 {
								s.Close()
							} else if _, err = ask(s, "/"); err != nil && message.ReasonOf(err) != message.RemoteRefused {
								t.Error(err)
							}
						}
						mu.Lock()
						switch {
						case err == nil:
							good++
						case message.ReasonOf(err) == message.Overflow:
							full++
						case errors.Is(err, os.ErrDeadlineExceeded):
							late++
						}
						mu.Unlock()
						time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
					}
				})
			}
			wg.Wait()
			if good == 0 || full == 0 || late == 0 {
				t.Errorf("%v: %d good, %d overflows, %d late: this tests little", p, good, full, late)
			}
		})
	}
}
