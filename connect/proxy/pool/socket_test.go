package pool_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/pool"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

func TestConnectionThatTheHostHasClosedIsNotUsed(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("how to look without waiting is not known here")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"+r.URL.Path)
			}
			c.Close() // without having said so
			closed <- struct{}{}
		}
	}()
	var dialled net.Conn
	m := upstream.NewManager(upstream.Config{Dial: func(ctx context.Context, network, address string) (c net.Conn, err error) {
		dialled, err = new(net.Dialer).DialContext(ctx, network, address)
		return dialled, err
	}})
	m.Set(&model.Cluster{Name: "c", ConnectTimeout: time.Minute, Choices: 2, Breakers: [2]model.Breaker{model.DefaultBreaker},
		Endpoints: &model.LoadAssignment{Cluster: "c", Localities: []model.Locality{{}}, Endpoints: []model.Endpoint{
			{Address: model.Address{Host: "127.0.0.1", Port: uint16(ln.Addr().(*net.TCPAddr).Port)}, Weight: 1}}}}, true)
	p := pool.New()
	c := m.Get("c")
	for i := range 3 {
		_, h, err := c.Choose(&upstream.Choice{})
		if err != nil {
			t.Fatal(err)
		}
		s, info, err := p.Stream(context.Background(), c, h, pool.Options{})
		if err != nil || info.Reused {
			t.Fatalf("request %d: reused %v, %v", i, info.Reused, err)
		}
		if body, err := ask(s, "/"); body != "/" || err != nil {
			t.Fatalf("request %d: %q, %v", i, body, err)
		}
		<-closed
		for look := http1.NewClientConn(dialled, http1.ClientConfig{}); look.Quiet(); { // the end travels over the loopback
			time.Sleep(time.Millisecond)
		}
	}
	p.Close()
	ln.Close()
	<-done
	if n := c.Stats().CxDestroyRemote.Value(); n != 2 {
		t.Errorf("counted %d connections that the host has closed, want 2", n)
	}
}
