package httpapi

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestThreat11ConnectionsOfOneClientAreLimited uses loopback: the limit is about TCP addresses.
func TestThreat11ConnectionsOfOneClientAreLimited(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var limit ConnLimit
	limit.SetMax(2)
	s, _ := newServer(t, Config{MaxHeaderBytes: 4096}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, LimitConns(l, &limit, true)) }()
	ask := func(c net.Conn, request string) (*http.Response, string) {
		t.Helper()
		c.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(c, request)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		return resp, string(body)
	}
	const get = "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\n\r\n"
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := dial(), dial()
	for _, c := range []net.Conn{a, b} {
		if resp, _ := ask(c, get); resp.StatusCode != 404 {
			t.Errorf("within the limit: %s", resp.Status)
		}
	}
	c := dial()
	resp, body := ask(c, get)
	if resp.StatusCode != 429 || resp.Header.Get("Content-Type") != "text/plain" || !resp.Close ||
		body != "Your IP is issuing too many concurrent connections, please rate limit your calls\n" {
		t.Errorf("over the limit: %s %v %q", resp.Status, resp.Header, body)
	}
	c.Close()
	limit.SetMax(3)
	c = dial()
	if resp, _ := ask(c, get); resp.StatusCode != 404 {
		t.Errorf("under a new limit: %s", resp.Status)
	}
	c.Close()
	a.Close()
	limit.SetMax(2)
	for deadline := time.Now().Add(time.Minute); ; { // until the server has seen the connections end
		c = dial()
		if resp, _ := ask(c, get); resp.StatusCode == 404 {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("a closed connection still counts")
		}
	}
	if resp, _ := ask(c, "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nX-Big: "+strings.Repeat("x", 16<<10)+"\r\n\r\n"); resp.StatusCode != 431 {
		t.Errorf("large header: %s", resp.Status)
	}
	if _, err := io.ReadAll(c); err != nil { // reset, if closed without saying so first
		t.Errorf("after a large header: %v", err)
	}
	c.Close()
	b.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	limit.mu.Lock()
	defer limit.mu.Unlock()
	if limit.lingering != 0 || len(limit.count) != 0 {
		t.Errorf("%d lingering, %v open", limit.lingering, limit.count)
	}
}

func TestConnectionsBelowTLSAreClosedAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var limit ConnLimit
	limit.SetMax(1)
	limited := LimitConns(l, &limit, false)
	go func() {
		for {
			if _, err := limited.Accept(); err != nil {
				return
			}
		}
	}()
	defer limited.Close()
	var last net.Conn
	for range 2 {
		if last, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer last.Close()
	}
	last.SetDeadline(time.Now().Add(time.Minute))
	if data, err := io.ReadAll(last); len(data) != 0 {
		t.Errorf("read %q, %v", data, err)
	}
}
