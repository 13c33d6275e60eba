package stream_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/stream"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// sockets returns two connected sockets of the system.
func sockets(t testing.TB, network string) (a, b net.Conn) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = t.TempDir() + "/s"
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		done <- c
	}()
	if a, err = net.Dial(network, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	b = <-done
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// secured puts TLS on both ends.
func secured(t testing.TB, a, b net.Conn) (net.Conn, net.Conn) {
	t.Helper()
	ca := testkit.NewCA(t, "ca")
	srv := tls.Server(stream.Below(b), &tls.Config{Certificates: []tls.Certificate{*ca.Issue("x")}, DynamicRecordSizingDisabled: true})
	cli := tls.Client(stream.Below(a), &tls.Config{RootCAs: ca.Pool(), ServerName: "x", DynamicRecordSizingDisabled: true})
	errs := make(chan error, 1)
	go func() { errs <- srv.Handshake() }()
	if err := errors.Join(cli.Handshake(), <-errs); err != nil {
		t.Fatal(err)
	}
	return cli, srv
}

// wires are the ways in which a flow's ends can be made.
var wires = map[string]func(t testing.TB) (client, down, up, server net.Conn){
	"sockets": func(t testing.TB) (net.Conn, net.Conn, net.Conn, net.Conn) {
		c, d := sockets(t, "tcp")
		u, s := sockets(t, "unix")
		return c, d, u, s
	},
	"TLS to socket": func(t testing.TB) (net.Conn, net.Conn, net.Conn, net.Conn) {
		c, d := secured2(t)
		u, s := sockets(t, "tcp")
		return c, d, u, s
	},
	"TLS to TLS": func(t testing.TB) (net.Conn, net.Conn, net.Conn, net.Conn) {
		c, d := secured2(t)
		u, s := secured2(t)
		return c, d, u, s
	},
	"socket with bytes ahead": func(t testing.TB) (net.Conn, net.Conn, net.Conn, net.Conn) {
		c, d := sockets(t, "tcp")
		u, s := sockets(t, "tcp")
		return c, stream.Ahead(d, nil), u, s
	},
	"in memory": func(t testing.TB) (net.Conn, net.Conn, net.Conn, net.Conn) {
		n := testkit.NewNetwork(1)
		pair := func(from, to string) (net.Conn, net.Conn) {
			a, b := n.Host(from), n.Host(to)
			ln, err := b.Listen(80)
			if err != nil {
				t.Fatal(err)
			}
			x, err := a.Dial(t.Context(), to+":80")
			if err != nil {
				t.Fatal(err)
			}
			y, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return x, y
		}
		c, d := pair("10.0.0.1", "10.0.0.2")
		u, s := pair("10.0.0.3", "10.0.0.4")
		return c, d, u, s
	},
}

func secured2(t testing.TB) (net.Conn, net.Conn) {
	a, b := sockets(t, "tcp")
	return secured(t, a, b)
}

func TestFlowCarriesBytesBothWays(t *testing.T) {
	for name, make2 := range wires {
		t.Run(name, func(t *testing.T) {
			client, down, up, server := make2(t)
			var received, sent int
			var mu sync.Mutex
			f := &stream.Flow{Down: down, Up: up, Count: func(r, s int) {
				mu.Lock()
				received, sent = received+r, sent+s
				mu.Unlock()
			}}
			done := make(chan stream.End, 1)
			go func() {
				end, _ := f.Run()
				done <- end
			}()
			up1, down1 := make([]byte, 3<<20+17), make([]byte, 2<<20+5)
			rand.Read(up1)
			rand.Read(down1)
			var wg sync.WaitGroup
			send := func(c net.Conn, b []byte) {
				wg.Go(func() {
					c.Write(b[:1]) // alone
					c.Write(b[1:])
					stream.CloseWrite(c)
				})
			}
			receive := func(c net.Conn, want []byte, who string) {
				wg.Go(func() {
					got, err := io.ReadAll(c)
					if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
						t.Errorf("%s got %d bytes, %v; want %d others", who, len(got), err, len(want))
					}
				})
			}
			send(client, up1)
			send(server, down1)
			receive(server, up1, "the server")
			receive(client, down1, "the client")
			wg.Wait()
			if end := <-done; end != stream.Finished {
				t.Errorf("the flow ended as %v, want Finished", end)
			}
			if received != len(up1) || sent != len(down1) || f.Received() != uint64(len(up1)) || f.Sent() != uint64(len(down1)) {
				t.Errorf("counted %d and %d, want %d and %d", received, sent, len(up1), len(down1))
			}
		})
	}
}

func TestSmallMessagesAreNotHeldBack(t *testing.T) {
	for name, make2 := range wires {
		t.Run(name, func(t *testing.T) {
			client, down, up, server := make2(t)
			f := &stream.Flow{Down: down, Up: up}
			done := make(chan struct{})
			go func() {
				f.Run()
				close(done)
			}()
			deadline := time.Now().Add(30 * time.Second)
			client.SetDeadline(deadline)
			server.SetDeadline(deadline)
			b := make([]byte, 100)
			for n := 1; n <= 3; n++ {
				for _, dir := range [][2]net.Conn{{client, server}, {server, client}} {
					if _, err := dir[0].Write(b[:n]); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(dir[1], b[:n]); err != nil {
						t.Fatalf("%d bytes: %v", n, err)
					}
				}
			}
			client.Close()
			server.Close()
			<-done
		})
	}
}

func TestBytesReadAheadComeFirst(t *testing.T) {
	client, down := sockets(t, "tcp")
	up, server := sockets(t, "tcp")
	f := &stream.Flow{Down: stream.Ahead(down, []byte("first ")), Up: up}
	go f.Run()
	io.WriteString(client, "second")
	stream.CloseWrite(client)
	if b, err := io.ReadAll(server); err != nil || string(b) != "first second" {
		t.Errorf("got %q, %v", b, err)
	}
	server.Close()
}

func TestBrokenSideIsNamedAndClosesTheOther(t *testing.T) {
	client, down := sockets(t, "tcp")
	up, server := sockets(t, "tcp")
	server.(*net.TCPConn).SetLinger(0) // closing it is a reset
	f := &stream.Flow{Down: down, Up: up}
	type result struct {
		end  stream.End
		side stream.Side
	}
	done := make(chan result)
	go func() {
		e, s := f.Run()
		done <- result{e, s}
	}()
	server.Close()
	if got := <-done; got != (result{stream.Broken, stream.Up}) {
		t.Errorf("ended as %+v, want broken upstream", got)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("the client's connection is still open")
	}
}

func TestSlowReaderHoldsTheWriterUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, down, up, server := wires["in memory"](t)
		f := &stream.Flow{Down: down, Up: up}
		go f.Run()
		written := make(chan int, 1)
		client.SetWriteDeadline(time.Now().Add(time.Minute))
		go func() {
			n, _ := client.Write(bytes.Repeat([]byte("x"), 16<<20))
			written <- n
		}()
		time.Sleep(2 * time.Minute)
		// What the two streams and the one buffer between hold, not more.
		if n := <-written; n > 1<<20 {
			t.Errorf("%d bytes were taken from the client while the server read none", n)
		}
		client.Close()
		server.Close()
		synctest.Wait()
	})
}

func benchmarkFlow(b *testing.B, wire string) {
	client, down, up, server := wires[wire](b)
	f := &stream.Flow{Down: down, Up: up}
	go f.Run()
	go io.Copy(io.Discard, client)
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	got := make(chan struct{})
	go func() {
		io.CopyN(io.Discard, server, int64(b.N)*int64(len(buf)))
		close(got)
	}()
	b.ResetTimer()
	for range b.N {
		if _, err := client.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	<-got
	b.StopTimer()
	client.Close()
	server.Close()
}

func BenchmarkFlowSockets(b *testing.B)     { benchmarkFlow(b, "sockets") }
func BenchmarkFlowTLSToSocket(b *testing.B) { benchmarkFlow(b, "TLS to socket") }

func TestUnwrapGivesAllThatWasReadAhead(t *testing.T) {
	a, _ := sockets(t, "tcp")
	c, b := stream.Unwrap(stream.Ahead(stream.Ahead(a, []byte(" second")), []byte("first")))
	if c != a || string(b) != "first second" {
		t.Errorf("got %q", b)
	}
	if c, b = stream.Unwrap(a); c != a || b != nil {
		t.Errorf("got %q of a connection that was not wrapped", b)
	}
}
