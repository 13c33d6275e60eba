package http1_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// urlError reports whether net/http refused a request for reasons that have nothing to do with where messages begin
// and end: it parses the target as a URL, with all its escapes.
func urlError(err error) bool {
	return strings.Contains(err.Error(), "URL") || strings.Contains(err.Error(), "parse ")
}

// FuzzRequest feeds bytes to the server. What it takes for requests, net/http must take for the same ones, one after
// the other; and it must not matter in which pieces they came.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		typicalRequest,
		"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-T: 1\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://y:80?q HTTP/1.1\r\nHost: x\r\nConnection: close, X-A\r\nX-A: 1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nraw",
		"CONNECT y:443 HTTP/1.1\r\nHost: y:443\r\n\r\n",
		"\r\nHEAD / HTTP/1.0\r\nConnection: keep-alive\r\nHost: [::1]:8\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\nHost: x\n\n",
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(compare)
}

// FuzzChunks does the same for what follows the head of a request with a chunked body.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "3;a=\"b\"\r\nabc\r\n0\r\nT: 1\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "A\r\n0123456789\r\n00\r\n\r\n", "1\na\r\n0\r\n\r\n"} {
		f.Add([]byte(s), uint8(2))
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		compare(t, append([]byte("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"), in...), piece)
	})
}

func compare(t *testing.T, in []byte, piece uint8) {
	cfg := http1.ServerConfig{AcceptHTTP10: true, Trailers: true, DelayedClose: -1}
	whole := requests(string(in), 0, cfg)
	if parts := requests(string(in), int(piece), cfg); strings.Join(parts, "\n") != strings.Join(whole, "\n") {
		t.Fatalf("in one piece:\n%s\nin pieces of %d:\n%s", strings.Join(whole, "\n"), piece, strings.Join(parts, "\n"))
	}
	br := bufio.NewReader(bytes.NewReader(in))
	for i, w := range whole {
		if b, err := br.Peek(2); err == nil && string(b) == "\r\n" {
			br.Discard(2)
		}
		r, err := http.ReadRequest(br)
		if err != nil {
			if urlError(err) {
				return
			}
			t.Fatalf("net/http refuses request %d, %q: %v", i, w, err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatalf("net/http refuses the body of request %d, %q: %v", i, w, err)
		}
		if got := r.Method + " " + r.Host + " " + target(r) + " " + string(body); got != w {
			t.Fatalf("request %d is %q, for net/http %q", i, w, got)
		}
	}
}

// target returns the path and query as they were sent.
func target(r *http.Request) string {
	t := r.RequestURI
	if r.Method == "CONNECT" {
		return ""
	}
	if i := strings.Index(t, "://"); i >= 0 && t[0] != '/' {
		t = t[i+3:]
		if i = strings.IndexAny(t, "/?"); i < 0 {
			return "/"
		} else if t[i] == '?' {
			return "/" + t[i:]
		}
		return t[i:]
	}
	return t
}

// requests returns what the server takes for whole requests: method, authority, path and body of each.
func requests(in string, piece int, cfg http1.ServerConfig) (all []string) {
	c := http1.NewServerConn(&feed{in: in, piece: piece}, cfg)
	defer c.Close()
	var resp message.Response
	for {
		s, err := c.Next()
		if err != nil {
			return all
		}
		r := s.Request()
		text := r.Method + " " + r.Authority + " " + r.Path + " "
		for i := range r.Header.Len() {
			if f := r.Header.At(i); f.Name != strings.ToLower(f.Name) || strings.ContainsAny(f.Value, "\r\n\x00") || f.Framing() && f.Name != "content-length" {
				panic("field " + f.Name + ": " + f.Value)
			}
		}
		upgrade := r.Upgrade != ""
		body, err := readAll(s)
		if err != nil {
			return all
		}
		all = append(all, text+body)
		if upgrade || r.Method == "CONNECT" {
			return all
		}
		resp.Reset()
		resp.Status = 200
		if s.Respond(&resp, true) != nil {
			return all
		}
	}
}

// FuzzResponse feeds bytes to the client. What it takes for a response, net/http must take for the same one.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		typicalResponse,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nT: 1\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.0 200 OK\r\n\r\nuntil the end",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 200\r\nContent-Length: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab",
	} {
		f.Add([]byte(s), uint8(3), false)
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint8, head bool) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		status, body, ok := theirs(string(in), 0, method)
		status2, body2, ok2 := theirs(string(in), int(piece), method)
		if ok != ok2 || ok && (status != status2 || body != body2) {
			t.Fatalf("in one piece: %d %q %v, in pieces: %d %q %v", status, body, ok, status2, body2, ok2)
		}
		if !ok {
			return
		}
		br := bufio.NewReader(bytes.NewReader(in))
		for {
			r, err := http.ReadResponse(br, &http.Request{Method: method})
			if err != nil {
				t.Fatalf("net/http refuses %q: %v", in, err)
			}
			if r.StatusCode < 200 && r.StatusCode != 101 {
				continue
			}
			got, err := io.ReadAll(r.Body)
			if err != nil || r.StatusCode != status || string(got) != body {
				t.Fatalf("it is %d %q, for net/http %d %q, %v", status, body, r.StatusCode, got, err)
			}
			return
		}
	})
}

// theirs returns what the client takes for a whole response.
func theirs(in string, piece int, method string) (status int, body string, ok bool) {
	c := http1.NewClientConn(&feed{in: in, piece: piece}, http1.ClientConfig{Trailers: true})
	defer c.Close()
	var req message.Request
	req.Reset()
	req.Method, req.Authority, req.Path, req.ContentLength = method, "x", "/", 0
	s := c.Stream()
	defer s.Close()
	if err := s.Send(&req, true); err != nil {
		panic(err)
	}
	var r message.Response
	for r.Status < 200 {
		if _, err := s.Receive(&r); err != nil {
			return 0, "", false
		}
	}
	body, err := readAll(s)
	return r.Status, body, err == nil
}

// FuzzSend sends what may stand in a request and a response from HTTP/2: what gets through must be read on the other
// side as it was meant.
func FuzzSend(f *testing.F) {
	f.Add("GET", "/a?b", "x:80", "x-a", "b", "body")
	f.Add("POST", "/ HTTP/1.1\r\n", "x\r\ny", "a: b", "c\r\nd: e", "0\r\n\r\n")
	f.Add("PUT", "/", "y", "transfer-encoding", "chunked", "")
	f.Fuzz(func(t *testing.T, method, path, authority, name, value, body string) {
		var req message.Request
		req.Reset()
		req.Method, req.Path, req.Authority, req.ContentLength = method, path, authority, -1
		if method == "CONNECT" {
			return
		}
		req.Header.Add(name, value)
		fd := &feed{}
		s := http1.NewClientConn(fd, http1.ClientConfig{}).Stream()
		err := s.Send(&req, false)
		if err == nil {
			err = s.Write([]byte(body), true)
		}
		if err != nil {
			if fd.out.Len() > 0 {
				t.Fatalf("%v after %q was sent", err, fd.out.String())
			}
			return
		}
		sent := fd.out.String()
		c := http1.NewServerConn(&feed{in: sent}, http1.ServerConfig{Secure: true, DelayedClose: -1})
		defer c.Close()
		ss, err := c.Next()
		if bad, ok := errors.AsType[*http1.BadRequest](err); ok {
			if !strings.Contains(bad.Detail, "url") && !strings.Contains(bad.Detail, "scheme") && bad.Status != 404 && bad.Status != 431 {
				t.Fatalf("sent %q, which is refused: %v", sent, err)
			}
			return
		}
		if err != nil {
			t.Fatalf("sent %q: %v", sent, err)
		}
		r := ss.Request()
		got, err := readAll(ss)
		if err != nil || got != body || r.Method != method || r.Path != path && path[0] == '/' || r.Header.Len() > 1 {
			t.Fatalf("sent %q, %v", sent, err)
		}
		if r.Header.Len() == 1 && r.Header.At(0).Name != "te" && (r.Header.At(0).Name != name || r.Header.At(0).Value != strings.Trim(value, " \t")) {
			t.Fatalf("sent %q for %q: %q", sent, name, value)
		}
	})
}
