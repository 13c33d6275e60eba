package http2_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// listen serves every connection that comes.
func listen(t testing.TB, handler func(message.ServerStream), cfg http2.ServerConfig) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	accepting := make(chan struct{})
	var open []net.Conn
	go func() {
		defer close(accepting)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			open = append(open, c)
			wg.Go(func() { http2.NewServerConn(c, cfg).Serve(handler) })
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-accepting
		for _, c := range open { // clients may keep them
			c.Close()
		}
		wg.Wait()
	})
	return ln.Addr().String()
}

// netHTTPClient returns net/http's client, which speaks HTTP/2 alone, without TLS too.
func netHTTPClient(t testing.TB) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestNetHTTPClientTalksToServer(t *testing.T) {
	addr := listen(t, echo, http2.ServerConfig{Options: http2.Options{StreamWindow: 100_000, ConnWindow: 200_000}})
	cli := netHTTPClient(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			in := make([]byte, 100_000*(i%9))
			rand.Read(in)
			req, _ := http.NewRequest("POST", "http://"+addr+"/"+strconv.Itoa(i), io.NopCloser(bytes.NewReader(in)))
			req.Header.Set("X-N", strconv.Itoa(i))
			req.Header.Set("X-Long", strings.Repeat("long ", 1+1000*(i%8)))
			req.Trailer = http.Header{"X-Sum": {strconv.Itoa(i)}}
			resp, err := cli.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			out, err := io.ReadAll(resp.Body)
			if err != nil || sha256.Sum256(in) != sha256.Sum256(out) {
				t.Errorf("%d: %d bytes became %d, %v", i, len(in), len(out), err)
			}
			if resp.Header.Get("X-N") != strconv.Itoa(i) || resp.Trailer.Get("X-Sum") != strconv.Itoa(i) || len(resp.Header.Get("X-Long")) < 4 {
				t.Errorf("%d: header %v, trailer %v", i, resp.Header, resp.Trailer)
			}
		})
	}
	wg.Wait()
}

// netHTTPServer returns the address of net/http's server, speaking HTTP/2 over TLS, and a way to connect to it.
func netHTTPServer(t testing.TB, h http.Handler) func() net.Conn {
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return func() net.Conn {
		raw, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(stream.Below(raw), &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com", NextProtos: []string{"h2"}})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return c
	}
}

func TestClientTalksToNetHTTPServer(t *testing.T) {
	dial := netHTTPServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-N", r.Header.Get("X-N"))
		w.Header().Set("X-Path", r.URL.Path)
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, r.Body)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
	}))
	cli, err := http2.NewClientConn(dial(), http2.ClientConfig{Options: http2.Options{StreamWindow: 100_000, ConnWindow: 200_000}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			in := make([]byte, 100_000*(i%9))
			rand.Read(in)
			n := strconv.Itoa(i)
			tr := new(message.Header)
			tr.Add("x-sum", n)
			r := request("POST", "/"+n, "x-n", n, "trailer", "x-sum", "x-long", strings.Repeat("long ", 1+1000*(i%8)))
			r.Scheme = "https"
			resp, out, trailer, err := exchange(cli, r, in, tr)
			if err != nil || sha256.Sum256(in) != sha256.Sum256(out) {
				t.Errorf("%d: %d bytes became %d, %v", i, len(in), len(out), err)
				return
			}
			if resp.Status != 200 || resp.Header.Get("x-n") != n || resp.Header.Get("x-path") != "/"+n || trailer == nil || trailer.Get("x-sum") != n {
				t.Errorf("%d: %d, trailer %v", i, resp.Status, trailer)
			}
		})
	}
	wg.Wait()
	cli.Close()
	<-cli.Closed()
}

func TestInterimResponsesAndContinue(t *testing.T) {
	cli, _ := pair(t, func(s message.ServerStream) {
		var r message.Response
		r.Status = 103
		r.Header.Add("link", "</style>")
		s.Respond(&r, false)
		s.Continue()
		s.Continue()
		b, _ := body(s)
		r.Reset()
		r.Status = 200
		r.Header.Add("x-body", string(b))
		s.Respond(&r, true)
	}, http2.ServerConfig{}, http2.ClientConfig{})
	s, err := cli.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Send(request("PUT", "/", "expect", "100-continue"), false); err != nil {
		t.Fatal(err)
	}
	var r message.Response
	for _, want := range []int{103, 100} {
		if end, err := s.Receive(&r); err != nil || end || r.Status != want {
			t.Fatalf("%d, %v, %v; want %d", r.Status, end, err, want)
		}
		if want == 103 && r.Header.Get("link") != "</style>" {
			t.Error("the early hint has lost its link")
		}
	}
	s.Write([]byte("the body"), true)
	if end, err := s.Receive(&r); err != nil || !end || r.Status != 200 || r.Header.Get("x-body") != "the body" {
		t.Fatalf("%d, %v, %v, %q", r.Status, end, err, r.Header.Get("x-body"))
	}
}

func TestExtendedConnectCarriesAnotherProtocol(t *testing.T) {
	cli, _ := pair(t, func(s message.ServerStream) {
		r := s.Request()
		var resp message.Response
		if r.Method != "GET" || r.Upgrade != "websocket" || r.Path != "/chat" {
			resp.Status = 400
			s.Respond(&resp, true)
			return
		}
		resp.Status = 101
		s.Respond(&resp, false)
		for {
			s.Flush()
			p, err := s.Read()
			s.Write(bytes.ToUpper(p), err != nil)
			if err != nil {
				return
			}
		}
	}, http2.ServerConfig{AllowConnect: true}, http2.ClientConfig{})
	if _, _, _, err := exchange(cli, request("GET", "/"), nil, nil); err != nil || !cli.CanUpgrade() {
		t.Fatalf("the server takes no extended CONNECT, %v", err)
	}
	s, err := cli.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	req := request("GET", "/chat")
	req.Upgrade = "websocket"
	if err := s.Send(req, true); err != nil {
		t.Fatal(err)
	}
	var r message.Response
	if end, err := s.Receive(&r); err != nil || end || r.Status != 101 {
		t.Fatalf("%d, %v, %v", r.Status, end, err)
	}
	for _, w := range []string{"one", "two"} {
		s.Write([]byte(w), false)
		s.Flush()
		if p, err := s.Read(); string(p) != strings.ToUpper(w) || err != nil {
			t.Errorf("got %q, %v", p, err)
		}
	}
	s.Write(nil, true)
	if p, err := s.Read(); err != io.EOF {
		t.Errorf("got %q, %v in the end", p, err)
	}
}

func TestServerWithoutExtendedConnectIsNotAsked(t *testing.T) {
	cli, _ := pair(t, ok, http2.ServerConfig{}, http2.ClientConfig{})
	exchange(cli, request("GET", "/"), nil, nil)
	req := request("GET", "/chat")
	req.Upgrade = "websocket"
	if _, _, _, err := exchange(cli, req, nil, nil); err == nil || cli.CanUpgrade() {
		t.Errorf("was sent all the same: %v", err)
	}
}

// TestSlowStreamBlocksOnlyItself leaves one body unread while others pass.
func TestSlowStreamBlocksOnlyItself(t *testing.T) {
	piece := make([]byte, 64<<10)
	cli, _ := pair(t, func(s message.ServerStream) {
		var r message.Response
		r.Status = 200
		s.Respond(&r, false)
		for range 64 { // 4 MiB
			if s.Write(piece, false) != nil {
				return
			}
		}
		s.Write(nil, true)
	}, http2.ServerConfig{}, http2.ClientConfig{Options: http2.Options{StreamWindow: 256 << 10, ConnWindow: 1 << 20}})
	slow, err := cli.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	slow.Send(request("GET", "/slow"), true)
	var r message.Response
	slow.Receive(&r)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, b, _, err := exchange(cli, request("GET", "/"), nil, nil); err != nil || len(b) != 4<<20 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	if b, err := body(slow); err != nil || len(b) != 4<<20 {
		t.Errorf("the slow one: %d bytes, %v", len(b), err)
	}
}

// TestStreamsShareTheConnection looks at the order in which bodies arrive: none may run far ahead.
func TestStreamsShareTheConnection(t *testing.T) {
	c, _, _ := serve(t, func(s message.ServerStream) {
		var r message.Response
		r.Status = 200
		s.Respond(&r, false)
		s.Write(make([]byte, 1<<20), true)
	}, http2.ServerConfig{})
	p := client(t, c, xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1<<31 - 1})
	const streams = 8
	for i := range streams {
		p.get(uint32(2*i + 1))
	}
	var got, begun [streams]int // begun is what there was when all had begun
	done, all := 0, false
	for window := 65535; done < streams; {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		d, ok := f.(*xhttp2.DataFrame)
		if !ok {
			continue
		}
		got[d.StreamID/2] += len(d.Data())
		if d.StreamEnded() {
			done++
		}
		if window -= len(d.Data()); window <= 32768 {
			p.WriteWindowUpdate(0, 65536)
			window += 65536
		}
		least, most := 1<<30, 0
		for i := range got {
			least, most = min(least, got[i]-begun[i]), max(most, got[i]-begun[i])
		}
		if !all && least > 0 {
			all, begun = true, got
		} else if all && most-least > 100<<10 && done == 0 {
			t.Fatalf("one stream has sent %d KiB, another %d", most>>10, least>>10)
		}
	}
}

func TestResetReachesTheOtherSide(t *testing.T) {
	gone := make(chan bool, 1)
	cli, srv := pair(t, func(s message.ServerStream) {
		switch s.Request().Path {
		case "/reset":
			s.Reset(message.LocalReset)
		case "/half":
			var r message.Response
			r.Status = 200
			s.Respond(&r, false)
		default:
			_, err := s.Read()
			gone <- s.Gone() && message.ReasonOf(err) == message.RemoteReset
		}
	}, http2.ServerConfig{}, http2.ClientConfig{})
	for _, path := range []string{"/reset", "/half"} {
		if _, _, _, err := exchange(cli, request("GET", path), nil, nil); message.ReasonOf(err) != message.RemoteReset {
			t.Errorf("%s: %v", path, err)
		}
	}
	s, err := cli.Open()
	if err != nil {
		t.Fatal(err)
	}
	s.Send(request("POST", "/"), false)
	s.Flush()
	for srv.Active() == 0 {
		time.Sleep(time.Millisecond)
	}
	s.Close()
	if !<-gone {
		t.Error("the handler was not told")
	}
}

// TestEarlyAnswerEndsTheRequest answers before the body has come: the rest of it is of no interest.
func TestEarlyAnswerEndsTheRequest(t *testing.T) {
	cli, _ := pair(t, ok, http2.ServerConfig{}, http2.ClientConfig{})
	for range 100 {
		s, err := cli.Open()
		if err != nil {
			t.Fatal(err)
		}
		s.Send(request("POST", "/"), false)
		for s.Write(make([]byte, 10000), false) == nil {
		}
		var r message.Response
		if end, err := s.Receive(&r); !end || err != nil || r.Status != 200 {
			t.Fatalf("%v, %v, %d", end, err, r.Status)
		}
		s.Close()
	}
}

// heap returns the memory that is in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// TestIdleConnectionsAreSmall measures connections with TLS that have carried a request.
func TestIdleConnectionsAreSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for memory to be given back")
	}
	const conns = 100
	ca := testkit.NewCA(t, "ca")
	scfg := &tls.Config{Certificates: []tls.Certificate{*ca.Issue("x")}}
	ccfg := &tls.Config{RootCAs: ca.Pool(), ServerName: "x"}
	var srvs, clis [conns]*tls.Conn
	clients := make([]*http2.ClientConn, conns)
	settled := func() int {
		for range 4 { // what lies in pools takes two rounds, and stacks shrink by half in each
			heap()
		}
		return int(heap())
	}
	start := settled()
	for i := range clients {
		a, b := sockets(t)
		srvs[i], clis[i] = tls.Server(stream.Below(b), scfg), tls.Client(stream.Below(a), ccfg)
		go srvs[i].Handshake()
		if err := clis[i].Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	secured := settled()
	for i := range clients {
		clients[i], _ = over(t, clis[i], srvs[i], echo, http2.ServerConfig{}, http2.ClientConfig{})
		in := bytes.Repeat([]byte("x"), 500)
		if _, out, _, err := exchange(clients[i], request("POST", "/", "x-a", strings.Repeat("b", 300)), in, nil); err != nil || len(out) != len(in) {
			t.Fatal(err)
		}
	}
	time.Sleep(6 * time.Second) // connections are trimmed after five
	per := 0
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		if per = (settled() - secured) / (2 * conns); per <= 16<<10 || time.Now().After(end) {
			break
		}
	}
	t.Logf("an end of an idle connection holds %d bytes beside the %d of TLS", per, (secured-start)/(2*conns))
	if per > 16<<10 {
		t.Errorf("an end of an idle connection holds %d bytes, more than 16 KiB", per)
	}
	runtime.KeepAlive(clients)
}
