package workload_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// Unbounded resources: one user of the machine does not take all connections from the others.
func TestConnectionsOfOneUserAreBounded(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the kernel does not tell who connects")
	}
	w := newWorld(t, false)
	const most = 512 // of 1024
	var open []net.Conn
	dial := func() net.Conn {
		c, err := net.Dial("unix", w.path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// served reports whether the server begins to talk HTTP/2.
	served := func(c net.Conn) bool {
		if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
			return false
		}
		c.SetReadDeadline(time.Now().Add(time.Minute))
		_, err := io.ReadFull(c, make([]byte, 9))
		return err == nil
	}
	for range most {
		c := dial()
		if !served(c) {
			t.Fatalf("connection %d is refused", len(open)+1)
		}
		open = append(open, c)
	}
	if served(dial()) {
		t.Fatal("one more is served")
	}
	open[0].Close()
	for until := time.Now().Add(time.Minute); !served(dial()); {
		if time.Now().After(until) {
			t.Fatal("refused after one has ended")
		}
	}
}
