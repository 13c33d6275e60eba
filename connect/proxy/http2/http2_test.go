package http2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// sockets returns two connected sockets of the system.
func sockets(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		done <- c
	}()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	b = <-done
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// echo answers with what it is sent, head, body and trailers.
func echo(s message.ServerStream) {
	r := s.Request()
	var resp message.Response
	resp.Reset()
	resp.Status = 200
	resp.Header.Add("x-method", r.Method)
	resp.Header.Add("x-path", r.Path)
	for i := range r.Header.Len() {
		if f := r.Header.At(i); f.Name != "content-length" && f.Name != "te" && f.Name != "expect" {
			resp.Header.Add(f.Name, f.Value)
		}
	}
	if s.Respond(&resp, false) != nil {
		return
	}
	for {
		p, err := s.Read()
		if err != nil && err != io.EOF {
			return
		}
		if s.Write(p, false) != nil {
			return
		}
		if err == io.EOF {
			break
		}
		if !s.Ready() {
			s.Flush()
		}
	}
	s.WriteTrailer(s.Trailer())
}

// pair serves one end of a connection and returns a client for the other.
func pair(t testing.TB, handler func(message.ServerStream), sc http2.ServerConfig, cc http2.ClientConfig) (*http2.ClientConn, *http2.ServerConn) {
	t.Helper()
	a, b := sockets(t)
	return over(t, a, b, handler, sc, cc)
}

func over(t testing.TB, a, b net.Conn, handler func(message.ServerStream), sc http2.ServerConfig, cc http2.ClientConfig) (*http2.ClientConn, *http2.ServerConn) {
	t.Helper()
	srv := http2.NewServerConn(b, sc)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(handler) }()
	cli, err := http2.NewClientConn(a, cc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cli.Close()
		srv.Close()
		<-cli.Closed()
		<-done
	})
	return cli, srv
}

// body reads a body to its end.
func body(s message.Source) ([]byte, error) {
	var b []byte
	for {
		p, err := s.Read()
		b = append(b, p...)
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}

func request(method, path string, fields ...string) *message.Request {
	var r message.Request
	r.Reset()
	r.Method, r.Scheme, r.Authority, r.Path = method, "http", "example.com", path
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	return &r
}

// exchange sends a request and returns the response with its body and trailers.
func exchange(c *http2.ClientConn, r *message.Request, b []byte, trailers *message.Header) (*message.Response, []byte, *message.Header, error) {
	s, err := c.Open()
	if err != nil {
		return nil, nil, nil, err
	}
	defer s.Close()
	if err := s.Send(r, b == nil && trailers == nil); err != nil {
		return nil, nil, nil, err
	}
	sent := make(chan error, 1)
	go func() {
		if b == nil && trailers == nil {
			sent <- nil
			return
		}
		err := s.Write(b, trailers == nil)
		if err == nil && trailers != nil {
			err = s.WriteTrailer(trailers)
		}
		sent <- err
	}()
	var resp message.Response
	end, err := s.Receive(&resp)
	if err != nil {
		return nil, nil, nil, errors.Join(err, <-sent)
	}
	var got []byte
	if !end {
		got, err = body(s)
	}
	var tr *message.Header
	if h := s.Trailer(); h != nil {
		tr = new(message.Header)
		tr.CopyFrom(h)
		tr.CloneStrings()
	}
	return &resp, got, tr, errors.Join(err, <-sent)
}

func TestRequestsAndResponsesInFull(t *testing.T) {
	cli, _ := pair(t, echo, http2.ServerConfig{}, http2.ClientConfig{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			var in []byte
			if i%3 > 0 {
				in = bytes.Repeat([]byte(strconv.Itoa(i)), 20_000*(i%7))
			}
			var tr *message.Header
			if i%2 > 0 {
				tr = new(message.Header)
				tr.Add("x-sum", strconv.Itoa(i))
			}
			path := fmt.Sprintf("/%d", i)
			resp, out, got, err := exchange(cli, request("POST", path, "x-a", "b", "x-n", strconv.Itoa(i)), in, tr)
			if err != nil {
				t.Error(err)
				return
			}
			if resp.Status != 200 || resp.Header.Get("x-path") != path || resp.Header.Get("x-n") != strconv.Itoa(i) {
				t.Errorf("%d: status %d, path %q", i, resp.Status, resp.Header.Get("x-path"))
			}
			if !bytes.Equal(in, out) {
				t.Errorf("%d: %d bytes became %d", i, len(in), len(out))
			}
			if (tr != nil) != (got != nil) || tr != nil && got.Get("x-sum") != strconv.Itoa(i) {
				t.Errorf("%d: trailers %v", i, got)
			}
		})
	}
	wg.Wait()
}
