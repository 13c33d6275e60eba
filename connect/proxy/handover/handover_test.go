//go:build linux

package handover_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/handover"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// old is a process that can be succeeded, in this one.
type old struct {
	t       *testing.T
	path    string
	sockets map[string]net.Listener
	left    atomic.Int32
	done    chan error
	stop    context.CancelFunc
}

func newOld(t *testing.T, sockets map[string]net.Listener) *old {
	t.Helper()
	dir, err := os.MkdirTemp("", "ho") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := &old{t: t, path: filepath.Join(dir, "x.handover"), sockets: sockets, done: make(chan error, 1)}
	ln, err := net.Listen(handover.Network, o.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.stop = cancel
	t.Cleanup(cancel)
	go func() {
		o.done <- handover.Serve(ctx, ln.(*net.UnixListener), handover.Config{
			Node:    "web",
			Sockets: func() map[string]net.Listener { return sockets },
			Leave: func() {
				o.left.Add(1)
				for _, ln := range sockets {
					if u, ok := ln.(*net.UnixListener); ok {
						u.SetUnlinkOnClose(false)
					}
					ln.Close()
				}
			},
		})
	}()
	return o
}

func (o *old) dial() *net.UnixConn {
	o.t.Helper()
	c, err := net.Dial(handover.Network, o.path)
	if err != nil {
		o.t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func failing(context.Context, *model.Listener, model.Address) (net.Listener, error) {
	return nil, errors.New("not handed over")
}

// echo accepts one connection and sends back what comes.
func echo(ln net.Listener) {
	c, err := ln.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	io.Copy(c, c)
}

func say(t *testing.T, c net.Conn, word string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write([]byte(word)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(word))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != word {
		t.Fatalf("got %q, %v; want %q", b, err, word)
	}
}

func TestSuccession(t *testing.T) {
	tcp, unix := listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", filepath.Join(t.TempDir(), "s"))
	gone := listen(t, "tcp", "127.0.0.1:0")
	o := newOld(t, map[string]net.Listener{tcp.Addr().String(): tcp, unix.Addr().String(): unix, gone.Addr().String(): gone})
	// One connection waits to be accepted all the while.
	queued, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer queued.Close()

	p, err := handover.Take(o.dial(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if p.Len() != 3 {
		t.Fatalf("%d sockets came, want 3", p.Len())
	}
	open := p.Listen(failing)
	port := tcp.Addr().(*net.TCPAddr).Port
	ln, err := open(t.Context(), &model.Listener{}, model.Address{Host: "127.0.0.1", Port: uint16(port)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := open(t.Context(), &model.Listener{}, model.Address{Host: "127.0.0.1", Port: uint16(port)}); err == nil {
		t.Error("a socket was given twice")
	}
	uln, err := open(t.Context(), &model.Listener{}, model.Address{Path: unix.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer uln.Close()
	if o.left.Load() != 0 {
		t.Error("the old process left before the new one was ready")
	}
	if err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	if o.left.Load() != 1 {
		t.Error("the old process has not left")
	}
	if err := <-o.done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(o.path); err == nil {
		t.Error("the path is not free")
	}
	go echo(ln)
	say(t, queued, "queued")
	c, err := net.Dial("unix", unix.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go echo(uln)
	say(t, c, "unix")
	if c, err := net.Dial("tcp", gone.Addr().String()); err == nil {
		c.Close()
		t.Error("a socket that nobody wants any more is open")
	}
}

func TestSuccessorThatFailsChangesNothing(t *testing.T) {
	tcp := listen(t, "tcp", "127.0.0.1:0")
	o := newOld(t, map[string]net.Listener{tcp.Addr().String(): tcp})
	for range 3 {
		conn := o.dial()
		var p *handover.Predecessor
		var err error
		for end := time.Now().Add(30 * time.Second); ; conn = o.dial() {
			// The one before may not be seen to be gone yet.
			if p, err = handover.Take(conn, "web"); err == nil || time.Now().After(end) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if o.left.Load() != 0 {
		t.Error("the old process left")
	}
	go echo(tcp)
	c, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say(t, c, "still here")
	o.stop()
	if err := <-o.done; err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	o := newOld(t, nil)
	if _, err := handover.Take(o.dial(), "other"); !errors.Is(err, handover.ErrRefused) {
		t.Errorf("another proxy got %v", err)
	}
	if _, err := handover.Take(o.dial(), ""); err == nil {
		t.Error("a proxy without a name got sockets")
	}
	first, err := handover.Take(o.dial(), "web")
	for end := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(end); first, err = handover.Take(o.dial(), "web") {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := handover.Take(o.dial(), "web"); !errors.Is(err, handover.ErrRefused) {
		t.Errorf("a second successor got %v", err)
	}
	if o.left.Load() != 0 {
		t.Error("the old process left")
	}
}

// TestNonsense sends what no successor sends.
func TestNonsense(t *testing.T) {
	o := newOld(t, nil)
	for _, text := range []string{"", "null", "{}", "[]", `{"ready":true}`, string(make([]byte, 8<<10))} {
		c := o.dial()
		if text != "" {
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(30 * time.Second))
			for {
				if n, err := c.Read(make([]byte, 4096)); n == 0 || err != nil {
					if errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("%.20q: the connection stays", text)
					}
					break
				}
			}
		}
		c.Close()
	}
	if o.left.Load() != 0 {
		t.Error("the old process left")
	}
}

func TestFromEnvironment(t *testing.T) {
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	if s, err := handover.FromEnvironment(env(map[string]string{"LISTEN_PID": "1", "LISTEN_FDS": "5"}), 2); err != nil || s.Len() != 0 {
		t.Errorf("sockets for another process: %d, %v", s.Len(), err)
	}
	for _, n := range []string{"", "x", "-1", "100000"} {
		if _, err := handover.FromEnvironment(env(map[string]string{"LISTEN_PID": "2", "LISTEN_FDS": n}), 2); err == nil {
			t.Errorf("LISTEN_FDS=%q was accepted", n)
		}
	}
}

// TestServiceManager runs this test's own program with two sockets, as a service manager does.
func TestServiceManager(t *testing.T) {
	if os.Getenv("HANDOVER_TEST_CHILD") != "" {
		s, err := handover.FromEnvironment(os.Getenv, os.Getpid())
		if err != nil || s.Len() != 2 {
			fmt.Println("FAILED", s.Len(), err)
			os.Exit(1)
		}
		port, _ := strconv.Atoi(os.Getenv("HANDOVER_TEST_PORT"))
		open := s.Listen(failing)
		a, err1 := open(context.Background(), &model.Listener{Name: "by name"}, model.Address{Host: "10.1.2.3", Port: 1})
		b, err2 := open(context.Background(), &model.Listener{Name: "other"}, model.Address{Host: "0.0.0.0", Port: uint16(port)})
		fmt.Println(a != nil, b != nil, err1, err2)
		os.Exit(0)
	}
	one, all := listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", ":0")
	out := runWithSockets(t, one, all)
	if want := "true true <nil> <nil>\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}
