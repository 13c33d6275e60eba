package http1_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// response sends a request over a connection that gives in, and describes what comes back and whether the connection
// can be used again.
func response(in string, piece int, req *message.Request) string {
	c := http1.NewClientConn(&feed{in: in, piece: piece}, http1.ClientConfig{Trailers: true})
	s := c.Stream()
	if err := s.Send(req, true); err != nil {
		return "send: " + err.Error()
	}
	var b strings.Builder
	var r message.Response
	fail := func(err error) string {
		s.Close()
		if c.Usable() {
			b.WriteString(" usable!")
		}
		e, _ := errors.AsType[*message.StreamError](err)
		return b.String() + e.Reason.String() + " " + e.Detail
	}
	for {
		end, err := s.Receive(&r)
		if err != nil {
			return fail(err)
		}
		b.WriteString(itoa(r.Status))
		for i := range r.Header.Len() {
			b.WriteString(" [" + r.Header.At(i).Name + ": " + r.Header.At(i).Value + "]")
		}
		b.WriteByte(' ')
		if end {
			b.WriteString("end ")
		}
		if r.Status >= 200 || r.Status == 101 {
			break
		}
	}
	body, err := readAll(s)
	b.WriteString(body + " ")
	if err != nil {
		return fail(err)
	}
	if h := s.Trailer(); h != nil {
		b.WriteString("trailer=" + h.At(0).Name + ":" + h.At(0).Value + " ")
	}
	s.Close()
	if c.Usable() {
		b.WriteString("again")
	}
	return strings.TrimSpace(b.String())
}

func TestResponseHeads(t *testing.T) {
	long := strings.Repeat("x", 90<<10)
	tests := []struct {
		name, in, method, want string
	}{
		{name: "plain", in: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: b\r\n\r\nab", want: "200 [content-length: 2] [a: b] ab again"},
		{name: "no reason", in: "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", want: "200 [content-length: 0] end  again"},
		{name: "odd reason", in: "HTTP/1.1 200 \xc3\xbc\tx \r\nContent-Length: 0\r\n\r\n", want: "200 [content-length: 0] end  again"},
		{name: "chunks", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nT: 1\r\n\r\n", want: "200 a trailer=t:1 again"},
		{name: "until the connection closes", in: "HTTP/1.1 200 OK\r\n\r\nabc", want: "200 abc"},
		{name: "HTTP/1.0", in: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", want: "200 [content-length: 1] a"},
		{name: "HTTP/1.0 that keeps alive", in: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\na", want: "200 [content-length: 1] a again"},
		{name: "close", in: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: foo, close\r\nFoo: 1\r\n\r\na", want: "200 [content-length: 1] a"},
		{name: "HEAD", method: "HEAD", in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", want: "200 [content-length: 5] end  again"},
		{name: "HEAD with chunks", method: "HEAD", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", want: "200 end  again"},
		{name: "204", in: "HTTP/1.1 204 No Content\r\n\r\n", want: "204 end  again"},
		{name: "304", in: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", want: "304 [content-length: 5] end  again"},
		{name: "before the final one", in: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", want: "100 103 [link: x] 200 [content-length: 1] a again"},
		{name: "fields for the connection alone", in: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Connection: x\r\nTE: trailers\r\n\r\n", want: "200 [content-length: 0] end  again"},
		{name: "more than was asked for", in: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", want: "200 [content-length: 0] end"},

		{name: "length and chunks", in: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", want: "protocol error http1.content_length_and_chunked_not_allowed"},
		{name: "two lengths", in: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", want: "protocol error http1.invalid_content_length"},
		{name: "bad length", in: "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\na", want: "protocol error http1.invalid_content_length"},
		{name: "gzip", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\na", want: "protocol error http1.invalid_transfer_encoding"},
		{name: "two encodings", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\na", want: "protocol error http1.invalid_transfer_encoding"},
		{name: "chunks of HTTP/1.0", in: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", want: "protocol error http1.transfer_encoding_not_allowed"},
		{name: "204 with chunks", in: "HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", want: "protocol error http1.transfer_encoding_not_allowed"},
		{name: "204 with a length", in: "HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\nabc", want: "protocol error http1.body_disallowed"},
		{name: "100 with a length", in: "HTTP/1.1 100 Continue\r\nContent-Length: 3\r\n\r\nabc", want: "protocol error http1.body_disallowed"},
		{name: "101 that nobody asked for", in: "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", want: "protocol error http1.codec_error"},
		{name: "endlessly going on", in: strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 40), want: strings.Repeat("100 ", 32) + "protocol error http1.codec_error"},
		{name: "bare LF", in: "HTTP/1.1 200 OK\nContent-Length: 0\n\n", want: "protocol error http1.invalid_characters"},
		{name: "bare CR", in: "HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", want: "protocol error http1.invalid_characters"},
		{name: "fold", in: "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", want: "protocol error http1.invalid_characters"},
		{name: "space before the colon", in: "HTTP/1.1 200 OK\r\nA : b\r\n\r\n", want: "protocol error http1.invalid_characters"},
		{name: "NUL", in: "HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", want: "protocol error http1.invalid_characters"},
		{name: "HTTP/2", in: "HTTP/2.0 200 OK\r\n\r\n", want: "protocol error http1.codec_error"},
		{name: "HTTP/0.9", in: "<html>hello world</html>\n", want: "protocol error http1.codec_error"},
		{name: "two digits", in: "HTTP/1.1 20 OK\r\n\r\n", want: "protocol error http1.codec_error"},
		{name: "four digits", in: "HTTP/1.1 2000 OK\r\n\r\n", want: "protocol error http1.codec_error"},
		{name: "status below 100", in: "HTTP/1.1 099 OK\r\n\r\n", want: "protocol error http1.codec_error"},
		{name: "empty line before", in: "\r\nHTTP/1.1 200 OK\r\n\r\n", want: "protocol error http1.codec_error"},
		{name: "large", in: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: " + long[:70<<10] + "\r\n\r\n", want: "200 [content-length: 0] [a: " + long[:70<<10] + "] end  again"},
		{name: "too large", in: "HTTP/1.1 200 OK\r\nA: " + long + "\r\n\r\n", want: "protocol error http1.headers_too_large"},
		{name: "too many fields", in: "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 101) + "\r\n", want: "protocol error http1.too_many_headers"},

		{name: "nothing", in: "", want: "connection termination"},
		{name: "half a head", in: "HTTP/1.1 200 OK\r\nA", want: "connection termination"},
		{name: "half a body", in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", want: "200 [content-length: 5] ab connection termination"},
		{name: "half a chunk", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", want: "200 ab connection termination"},
		{name: "bad chunk", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nabcde\r\n0\r\n\r\n", want: "200  protocol error http1.invalid_chunk"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var req message.Request
			req.Reset()
			req.Method, req.Authority, req.Path, req.ContentLength = "GET", "x", "/", 0
			if tt.method != "" {
				req.Method = tt.method
			}
			for _, piece := range []int{0, 1, 7} {
				if piece == 1 && (len(tt.in) > 10000 || tt.name == "more than was asked for") {
					continue
				}
				if got := strings.TrimSpace(response(tt.in, piece, &req)); got != tt.want {
					t.Errorf("in pieces of %d: got %.200q\nwant %.200q", piece, got, tt.want)
				}
			}
		})
	}
}

func TestRequestFraming(t *testing.T) {
	tests := []struct {
		name   string
		make   func(*message.Request)
		body   []string // nil ends with the head
		want   string   // empty: it is not sent
		method string
	}{
		{name: "GET", want: "GET /p HTTP/1.1\r\nhost: h\r\na: b\r\n\r\n"},
		{name: "GET that says it has no body", make: func(r *message.Request) { r.Header.Add("content-length", "0") }, want: "GET /p HTTP/1.1\r\nhost: h\r\na: b\r\ncontent-length: 0\r\n\r\n"},
		{name: "POST without body", method: "POST", want: "POST /p HTTP/1.1\r\nhost: h\r\na: b\r\ncontent-length: 0\r\n\r\n"},
		{name: "known length", method: "POST", make: func(r *message.Request) { r.ContentLength = 2 }, body: []string{"a", "b"}, want: "POST /p HTTP/1.1\r\nhost: h\r\na: b\r\ncontent-length: 2\r\n\r\nab"},
		{name: "unknown length", method: "POST", make: func(r *message.Request) { r.ContentLength = -1 }, body: []string{"a", "b"}, want: "POST /p HTTP/1.1\r\nhost: h\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"},
		{name: "upgrade", make: func(r *message.Request) { r.Upgrade = "websocket" }, want: "GET /p HTTP/1.1\r\nhost: h\r\na: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"},
		{name: "extended CONNECT", make: func(r *message.Request) {
			r.Upgrade, r.Version, r.ContentLength = "websocket", message.HTTP2, -1
		}, want: "GET /p HTTP/1.1\r\nhost: h\r\na: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"},
		{name: "CONNECT", method: "CONNECT", make: func(r *message.Request) { r.Path = "" }, want: "CONNECT h HTTP/1.1\r\nhost: h\r\na: b\r\n\r\n"},
		{name: "framing is not taken from the header", make: func(r *message.Request) {
			r.Header.Add("transfer-encoding", "gzip")
			r.Header.Add("connection", "x")
			r.Header.Add("host", "other")
		}, want: "GET /p HTTP/1.1\r\nhost: h\r\na: b\r\n\r\n"},
		{name: "body of more", method: "POST", make: func(r *message.Request) { r.ContentLength = 2 }, body: []string{"abc"}},
		{name: "body of less", method: "POST", make: func(r *message.Request) { r.ContentLength = 2 }, body: []string{"a"}},
		{name: "split path", make: func(r *message.Request) { r.Path = "/ HTTP/1.1\r\na: b" }},
		{name: "split method", method: "GET / HTTP/1.1\r\n"},
		{name: "split authority", make: func(r *message.Request) { r.Authority = "x\r\na: b" }},
		{name: "empty path", make: func(r *message.Request) { r.Path = "" }},
		{name: "split value", make: func(r *message.Request) { r.Header.Add("x", "a\r\nb: c") }},
		{name: "split known value", make: func(r *message.Request) { r.Header.Add("user-agent", "a\nb: c") }},
		{name: "split name", make: func(r *message.Request) { r.Header.Add("x: y\r\nb", "c") }},
		{name: "name in upper case", make: func(r *message.Request) { r.Header.Add("Transfer-Encoding", "chunked") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r message.Request
			r.Reset()
			r.Version, r.Method, r.Authority, r.Path, r.ContentLength = message.HTTP11, "GET", "h", "/p", 0
			if tt.method != "" {
				r.Method = tt.method
			}
			r.Header.Add("a", "b")
			if tt.make != nil {
				tt.make(&r)
			}
			f := &feed{}
			c := http1.NewClientConn(f, http1.ClientConfig{})
			s := c.Stream()
			err := s.Send(&r, tt.body == nil)
			for i, p := range tt.body {
				if err == nil {
					err = s.Write([]byte(p), i == len(tt.body)-1)
				}
			}
			if tt.want == "" {
				if message.ReasonOf(err) != message.LocalReset || f.out.Len() > 0 {
					t.Errorf("sent %q, %v", f.out.String(), err)
				}
				return
			}
			if err != nil || f.out.String() != tt.want {
				t.Errorf("got %q, %v\nwant %q", f.out.String(), err, tt.want)
			}
		})
	}
}

func TestHostThatClosedAnIdleConnectionIsNoticed(t *testing.T) {
	for _, name := range []string{"sockets", "TLS"} {
		for what, do := range map[string]func(net.Conn){
			"closed": func(c net.Conn) { c.Close() },
			"spoke":  func(c net.Conn) { io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\n\r\n") },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				a, b := wires[name](t)
				cc, sc := http1.NewClientConn(a, http1.ClientConfig{}), http1.NewServerConn(b, http1.ServerConfig{})
				exchanger(t, cc, sc)()
				if !cc.Usable() || !cc.Quiet() {
					t.Fatalf("usable %v, quiet %v after a good exchange", cc.Usable(), cc.Quiet())
				}
				do(b)
				for end := time.Now().Add(time.Minute); cc.Quiet(); {
					if time.Now().After(end) {
						t.Fatal("it still seems quiet")
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
	}
}

func TestErrorsTellWhetherTheRequestWasSent(t *testing.T) {
	a, b := sockets(t)
	b.(*net.TCPConn).SetLinger(0)
	b.Close()
	c := http1.NewClientConn(a, http1.ClientConfig{})
	for c.Quiet() {
		time.Sleep(time.Millisecond)
	}
	var r message.Request
	r.Reset()
	r.Method, r.Authority, r.Path, r.ContentLength = "GET", "h", "/", 0
	s := c.Stream()
	err := s.Send(&r, true)
	e, ok := errors.AsType[*message.StreamError](err)
	if !ok || e.Sent || e.Reason != message.ConnectionTermination {
		t.Errorf("over a connection that was reset: %#v", err)
	}
	s.Close()
	if c.Usable() {
		t.Error("the connection could be used again")
	}

	a, b = sockets(t)
	c = http1.NewClientConn(a, http1.ClientConfig{})
	s = c.Stream()
	if err := s.Send(&r, true); err != nil {
		t.Fatal(err)
	}
	b.Close() // with the request unread
	var resp message.Response
	_, err = s.Receive(&resp)
	if e, ok := errors.AsType[*message.StreamError](err); !ok || !e.Sent || e.Reason != message.ConnectionTermination {
		t.Errorf("over a connection that was reset: %#v", err)
	}
}

func TestEarlyResponseWhileTheRequestIsSent(t *testing.T) {
	client, server := sockets(t)
	go func() {
		b := make([]byte, 100)
		server.Read(b)
		io.WriteString(server, "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nlong")
	}()
	c := http1.NewClientConn(client, http1.ClientConfig{})
	var r message.Request
	r.Reset()
	r.Method, r.Authority, r.Path, r.ContentLength = "POST", "h", "/", 1<<30
	s := c.Stream()
	if err := s.Send(&r, false); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		p := make([]byte, 64<<10)
		for {
			if err := s.Write(p, false); err != nil {
				wrote <- err
				return
			}
		}
	}()
	var resp message.Response
	if _, err := s.Receive(&resp); err != nil || resp.Status != 413 {
		t.Fatalf("got %d, %v", resp.Status, err)
	}
	if got, err := readAll(s); got != "long" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	s.SetWriteDeadline(time.Unix(1, 0))
	if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writing ended with %v", err)
	}
	s.Close()
	if c.Usable() {
		t.Error("the connection could be used again")
	}
}

func TestWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := pair(t)
		c := http1.NewClientConn(client, http1.ClientConfig{})
		var r message.Request
		r.Reset()
		r.Method, r.Authority, r.Path, r.ContentLength = "POST", "h", "/", -1
		s := c.Stream()
		s.SetWriteDeadline(time.Now().Add(time.Second))
		s.SetWriteDeadline(time.Now().Add(time.Minute))
		if err := s.Send(&r, false); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var err error
		for p := make([]byte, 64<<10); err == nil; {
			err = s.Write(p, false)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("ended with %v after %v, want a timeout after a minute", err, time.Since(start))
		}
		s.Close()
	})
}
