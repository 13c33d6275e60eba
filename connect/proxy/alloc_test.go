package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
)

// loop is a proxy for HTTP/1 on real sockets between a client and a host that both cost no memory. It returns a
// function that sends a request and waits for the response.
func loop(tb testing.TB) func() {
	tb.Helper()
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { app.Close() })
	reply := []byte("HTTP/1.1 200 OK\r\nserver: app\r\ncontent-type: text/plain\r\ncontent-length: 64\r\n\r\n" + strings.Repeat("x", 64))
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			go func() {
				b := make([]byte, 4<<10)
				for {
					if n, err := c.Read(b); n == 0 || err != nil {
						return
					}
					c.Write(reply)
				}
			}()
		}
	}()
	yaml := fmt.Sprintf(manager, "", toApp)
	yaml = strings.Replace(yaml, "10.0.0.1, port_value: 8080", "127.0.0.1, port_value: 0", 1)
	yaml = strings.Replace(yaml, "10.0.0.3, port_value: 80}", fmt.Sprintf("127.0.0.1, port_value: %d}", app.Addr().(*net.TCPAddr).Port), 1)
	b, err := decode.New(decode.Options{}).Bootstrap("x.yaml", []byte(yaml))
	if err != nil {
		tb.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{Bootstrap: b, ShutdownTime: time.Millisecond, Stdout: io.Discard})
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.Run(context.Background()) }()
	tb.Cleanup(func() {
		p.Quit()
		<-done
	})
	for !p.Ready() {
		time.Sleep(time.Millisecond)
	}
	c, err := net.Dial("tcp", p.Listeners()[0].Addresses[0])
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	request := []byte("GET /index.html?a=b HTTP/1.1\r\nhost: web.example.com\r\nuser-agent: test/1.0\r\naccept: */*\r\n\r\n")
	buf := make([]byte, 4<<10)
	return func() {
		if _, err := c.Write(request); err != nil {
			tb.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || n < 200 || string(buf[:12]) != "HTTP/1.1 200" {
			tb.Fatalf("%q, %v", buf[:n], err)
		}
	}
}

// In the steady state a request costs no memory, access log included.
func TestRequestsCostNoMemory(t *testing.T) {
	ask := loop(t)
	for range 200 {
		ask()
	}
	// What runs beside it, such as collections that empty the pools, makes some.
	if n := testing.AllocsPerRun(2000, ask); n > 0.5 && !raceEnabled {
		t.Errorf("%v allocations for each request, want none", n)
	}
}

func BenchmarkHTTP1(b *testing.B) {
	ask := loop(b)
	b.ReportAllocs()
	for b.Loop() {
		ask()
	}
}
