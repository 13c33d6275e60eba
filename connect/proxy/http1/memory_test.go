package http1_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// heap returns the bytes in use after the garbage and what pools keep are gone.
func heap() int {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func TestQuietConnectionsHoldNoBuffers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("how to wait without a buffer is not known here")
	}
	const pairs = 100
	for _, name := range []string{"sockets", "TLS"} {
		for _, upgraded := range []bool{false, true} {
			what := "idle"
			if upgraded {
				what = "upgraded"
			}
			t.Run(name+" "+what, func(t *testing.T) {
				type wire struct{ a, b net.Conn }
				var all []wire
				for range pairs {
					a, b := wires[name](t)
					io.WriteString(a, "x") // what TLS allocates once
					io.ReadFull(b, make([]byte, 1))
					io.WriteString(b, "x")
					io.ReadFull(a, make([]byte, 1))
					all = append(all, wire{a, b})
				}
				before := heap()
				done := make(chan struct{}, 2*pairs)
				var keep []any
				for _, w := range all {
					cc, sc := http1.NewClientConn(w.a, http1.ClientConfig{}), http1.NewServerConn(w.b, http1.ServerConfig{DelayedClose: -1})
					keep = append(keep, cc, sc)
					exchanger(t, cc, sc)()
					if upgraded {
						cs, ss := upgrade(t, cc, sc)
						go func() { cs.Read(); done <- struct{}{} }()
						go func() { ss.Read(); done <- struct{}{} }()
					} else {
						go func() { sc.Next(); done <- struct{}{} }()
						go func() { done <- struct{}{} }()
					}
				}
				const limit = 6 << 10 // one buffer is 8 KiB
				each := limit + 1
				for end := time.Now().Add(time.Minute); each > limit && time.Now().Before(end); { // until all wait, and pools have forgotten
					time.Sleep(10 * time.Millisecond)
					each = (heap() - before) / pairs
				}
				if each > limit {
					t.Errorf("a pair holds %d bytes, want at most %d", each, limit)
				}
				for _, w := range all {
					w.a.Close()
					w.b.Close()
				}
				for range 2 * pairs {
					<-done
				}
				runtime.KeepAlive(keep)
			})
		}
	}
}

// upgrade makes a stream between two connections a WebSocket.
func upgrade(t testing.TB, cc *http1.ClientConn, sc *http1.ServerConn) (message.ClientStream, message.ServerStream) {
	t.Helper()
	var req message.Request
	req.Reset()
	req.Method, req.Authority, req.Path, req.ContentLength, req.Upgrade = "GET", "x", "/chat", 0, "websocket"
	cs := cc.Stream()
	if err := cs.Send(&req, true); err != nil {
		t.Fatal(err)
	}
	ss, err := sc.Next()
	if err != nil {
		t.Fatal(err)
	}
	var resp, got message.Response
	resp.Reset()
	resp.Status = 101
	if err := ss.Respond(&resp, false); err != nil {
		t.Fatal(err)
	}
	if _, err := cs.Receive(&got); err != nil || got.Status != 101 {
		t.Fatalf("%d, %v", got.Status, err)
	}
	return cs, ss
}
