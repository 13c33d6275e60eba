package http2_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// wire returns a connection in memory, for bubbles.
func wire(t testing.TB) (a, b net.Conn) {
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
	ln.Close()
	return a, b
}

// bubble runs f against a server whose other end is a peer that speaks frames.
func bubble(t *testing.T, cfg http2.ServerConfig, handler func(message.ServerStream), f func(t *testing.T, p *peer, srv *http2.ServerConn, since func() time.Duration)) {
	synctest.Test(t, func(t *testing.T) {
		a, b := wire(t)
		srv := http2.NewServerConn(b, cfg)
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- srv.Serve(handler) }()
		p := client(t, a)
		a.SetReadDeadline(time.Time{})
		f(t, p, srv, func() time.Duration { return time.Since(start) })
		srv.Close()
		a.Close()
		<-done
	})
}

func TestIdleConnectionDrains(t *testing.T) {
	bubble(t, http2.ServerConfig{IdleTimeout: time.Minute}, ok, func(t *testing.T, p *peer, srv *http2.ServerConn, since func() time.Duration) {
		time.Sleep(50 * time.Second)
		p.get(1)
		p.expect("HEADERS 1 :status=200 end", "GOAWAY 2147483647 NO_ERROR")
		if d := since(); d != 110*time.Second {
			t.Errorf("began to drain after %v, want a minute after the request", d)
		}
		time.Sleep(time.Second)
		p.get(3) // it was under way
		p.expect("HEADERS 3 :status=200 end", "GOAWAY 3 NO_ERROR", "closed")
		if d := since(); d != 115*time.Second {
			t.Errorf("closed after %v, want five seconds later", d)
		}
	})
}

func TestConnectionDrainsAfterItsDuration(t *testing.T) {
	bubble(t, http2.ServerConfig{MaxDuration: time.Minute, DrainTimeout: 2 * time.Second}, func(s message.ServerStream) {
		time.Sleep(2 * time.Minute)
		ok(s)
	}, func(t *testing.T, p *peer, srv *http2.ServerConn, since func() time.Duration) {
		p.get(1)
		p.expect("GOAWAY 2147483647 NO_ERROR")
		if d := since(); d != time.Minute {
			t.Errorf("began to drain after %v", d)
		}
		p.expect("GOAWAY 1 NO_ERROR")
		if d := since(); d != 62*time.Second {
			t.Errorf("refused requests after %v", d)
		}
		p.get(3) // nobody handles it
		p.expect("HEADERS 1 :status=200 end", "closed")
		if d := since(); d != 2*time.Minute {
			t.Errorf("closed after %v, want when the request was done", d)
		}
	})
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	bubble(t, http2.ServerConfig{}, func(s message.ServerStream) {
		time.Sleep(time.Second)
		ok(s)
	}, func(t *testing.T, p *peer, srv *http2.ServerConn, since func() time.Duration) {
		p.get(1)
		synctest.Wait()
		srv.Shutdown(10 * time.Second)
		srv.Shutdown(5 * time.Second)
		p.expect("GOAWAY 2147483647 NO_ERROR", "HEADERS 1 :status=200 end", "GOAWAY 1 NO_ERROR", "closed")
		if d := since(); d != 5*time.Second {
			t.Errorf("closed after %v", d)
		}
	})
	bubble(t, http2.ServerConfig{}, ok, func(t *testing.T, p *peer, srv *http2.ServerConn, since func() time.Duration) {
		synctest.Wait()
		srv.Shutdown(0)
		p.expect("GOAWAY 0 NO_ERROR", "closed")
		if d := since(); d != 0 {
			t.Errorf("closed after %v, want at once", d)
		}
	})
}

func TestLastRequestOfAConnection(t *testing.T) {
	for name, cfg := range map[string]http2.ServerConfig{"by number": {MaxRequests: 2}, "by handler": {}} {
		t.Run(name, func(t *testing.T) {
			n := 0
			bubble(t, cfg, func(s message.ServerStream) {
				if n++; n == 2 && name == "by handler" {
					s.CloseAfter()
				}
				ok(s)
			}, func(t *testing.T, p *peer, srv *http2.ServerConn, since func() time.Duration) {
				p.get(1)
				p.expect("HEADERS 1 :status=200 end")
				p.get(3)
				p.expect("GOAWAY 2147483647 NO_ERROR", "HEADERS 3 :status=200 end", "GOAWAY 3 NO_ERROR", "closed")
			})
		})
	}
}

func TestKeepalive(t *testing.T) {
	cfg := http2.ServerConfig{Options: http2.Options{Keepalive: http2.Keepalive{Interval: 10 * time.Second, Timeout: 3 * time.Second}}}
	bubble(t, cfg, ok, func(t *testing.T, p *peer, srv *http2.ServerConn, since func() time.Duration) {
		last := time.Duration(0)
		for range 3 {
			for {
				f, err := p.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if ping, ok := f.(*xhttp2.PingFrame); ok {
					p.WritePing(true, ping.Data)
					break
				}
			}
			if d := since() - last; d < 10*time.Second || d > 11500*time.Millisecond {
				t.Errorf("a ping after %v, want 10 to 11.5 s", d)
			}
			last = since()
		}
		p.expect("closed") // the next is not answered
		if d := since() - last; d < 13*time.Second || d > 14500*time.Millisecond {
			t.Errorf("closed after %v, want 3 s after the ping", d)
		}
	})
}

func TestClientFindsOutThatTheHostIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := wire(t)
		cli, err := http2.NewClientConn(a, http2.ClientConfig{Options: http2.Options{Keepalive: http2.Keepalive{Idle: time.Minute, Timeout: 5 * time.Second}}})
		if err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, b)
		newPeer(t, b).WriteSettings()
		b.SetReadDeadline(time.Time{})
		time.Sleep(2 * time.Minute)
		start := time.Now()
		_, _, _, err = exchange(cli, request("GET", "/"), nil, nil)
		if message.ReasonOf(err) != message.ConnectionTermination || time.Since(start) != 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		<-cli.Closed()
		b.Close()
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := wire(t)
		got := make(chan error, 1)
		srv := http2.NewServerConn(b, http2.ServerConfig{})
		done := make(chan error, 1)
		go func() {
			done <- srv.Serve(func(s message.ServerStream) {
				start := time.Now()
				check := func(what string, want time.Duration, err error) {
					if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != want {
						t.Errorf("%s: %v after %v, want %v", what, err, time.Since(start), want)
					}
				}
				s.SetReadDeadline(start.Add(time.Minute))
				_, err := s.Read()
				check("read", time.Minute, err)
				_, err = s.Read()
				check("read again", time.Minute, err)
				// From elsewhere, while it waits: later, then earlier than before.
				s.SetReadDeadline(start.Add(3 * time.Minute))
				go func() {
					time.Sleep(10 * time.Second)
					s.SetReadDeadline(start.Add(10 * time.Minute))
					time.Sleep(10 * time.Second)
					s.SetReadDeadline(start.Add(2 * time.Minute))
				}()
				_, err = s.Read()
				check("read with a deadline that changes", 2*time.Minute, err)
				var none time.Time
				s.SetReadDeadline(start.Add(3 * time.Minute))
				go func() {
					time.Sleep(10 * time.Second)
					s.SetReadDeadline(none)
					time.Sleep(2 * time.Minute)
					s.SetReadDeadline(time.Now())
				}()
				_, err = s.Read()
				check("read until the deadline has passed", 4*time.Minute+10*time.Second, err)
				var r message.Response
				r.Status = 200
				s.Respond(&r, false)
				s.SetWriteDeadline(start.Add(5 * time.Minute))
				err = s.Write(make([]byte, 100<<10), false)
				check("write beyond the window", 5*time.Minute, err)
				got <- nil
			})
		}()
		p := client(t, a)
		a.SetReadDeadline(time.Time{})
		p.headers(1, false, get()...)
		<-got
		srv.Close()
		a.Close()
		<-done
	})
}

func TestGoAwayTellsWhatWasNotHandled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := wire(t)
		spare := make(chan struct{}, 100)
		cli, err := http2.NewClientConn(a, http2.ClientConfig{OnSpare: func() { spare <- struct{}{} }})
		if err != nil {
			t.Fatal(err)
		}
		p := newPeer(t, b)
		io.ReadFull(b, make([]byte, len(xhttp2.ClientPreface)))
		p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingMaxConcurrentStreams, Val: 3})
		var errs [3]chan error
		for i := range errs {
			errs[i] = make(chan error, 1)
			go func() {
				_, _, _, err := exchange(cli, request("GET", "/"), nil, nil)
				errs[i] <- err
			}()
			synctest.Wait()
			if f := p.next(); !strings.HasPrefix(f, "HEADERS") {
				t.Fatal(f)
			}
		}
		if _, err := cli.Open(); cli.CanOpen() || cli.Active() != 3 || message.ReasonOf(err) != message.Overflow {
			t.Errorf("%d streams, and one more: %v", cli.Active(), err)
		}
		p.WriteGoAway(3, xhttp2.ErrCodeNo, nil)
		e, _ := errors.AsType[*message.StreamError](<-errs[2])
		if e == nil || e.Reason != message.RemoteRefused || e.Sent {
			t.Errorf("the request above the last: %v", e)
		}
		synctest.Wait()
		if _, err := cli.Open(); cli.CanOpen() || message.ReasonOf(err) != message.RemoteRefused {
			t.Errorf("opened after GOAWAY: %v", err)
		}
		p.headers(1, true, ":status", "200")
		if err := <-errs[0]; err != nil {
			t.Error(err)
		}
		p.WriteRSTStream(3, xhttp2.ErrCodeRefusedStream)
		if err := <-errs[1]; message.ReasonOf(err) != message.RemoteRefused {
			t.Error(err)
		}
		p.expect("GOAWAY 0 NO_ERROR", "closed")
		b.Close()
		<-cli.Closed()
		if len(spare) < 3 {
			t.Errorf("was told %d times to look again", len(spare))
		}
	})
}

func TestLostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := wire(t)
		cli, err := http2.NewClientConn(a, http2.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		p := newPeer(t, b)
		io.ReadFull(b, make([]byte, len(xhttp2.ClientPreface)))
		p.WriteSettings()
		got := make(chan error, 2)
		go func() {
			_, _, _, err := exchange(cli, request("GET", "/"), nil, nil)
			got <- err
		}()
		p.next()
		unsent, _ := cli.Open()
		b.Close()
		e, _ := errors.AsType[*message.StreamError](<-got)
		if e == nil || e.Reason != message.ConnectionTermination || !e.Sent {
			t.Errorf("a request that was sent: %v", e)
		}
		e, _ = errors.AsType[*message.StreamError](unsent.Send(request("GET", "/"), true))
		if e == nil || e.Reason != message.ConnectionTermination || e.Sent {
			t.Errorf("a request that was not: %v", e)
		}
		unsent.Close()
		unsent.Close()
		<-cli.Closed()
		if cli.Active() != 0 || cli.CanOpen() || cli.Err() == nil {
			t.Errorf("%d streams on a closed connection, %v", cli.Active(), cli.Err())
		}
	})
}

func TestDrainEndsAnIdleClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := wire(t)
		cli, _ := over(t, a, b, func(s message.ServerStream) {
			time.Sleep(time.Minute)
			ok(s)
		}, http2.ServerConfig{}, http2.ClientConfig{})
		got := make(chan error, 1)
		go func() {
			_, _, _, err := exchange(cli, request("GET", "/"), nil, nil)
			got <- err
		}()
		synctest.Wait()
		start := time.Now()
		cli.Drain()
		if cli.CanOpen() || !cli.Draining() {
			t.Error("takes requests while it drains")
		}
		if err := <-got; err != nil {
			t.Error(err)
		}
		<-cli.Closed()
		if d := time.Since(start); d < time.Minute || d > time.Minute+2*time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}
