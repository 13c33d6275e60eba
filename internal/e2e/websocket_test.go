//lint:file-ignore SA1019 extended CONNECT is not to be had from net/http

//go:build unix

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
)

// serveWebSockets echoes messages. The message "close N" makes it close with that code, "wait D" answer after D.
func serveWebSockets(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 {
		w = &tunnel{ResponseWriter: w, r: r}
		r.Method, r.ProtoMajor, r.ProtoMinor = "GET", 1, 1
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", r.Header.Get(":protocol"))
		r.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
	}
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}, CompressionMode: websocket.CompressionContextTakeover})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(16 << 20)
	ctx := r.Context()
	for {
		kind, m, err := c.Read(ctx)
		if err != nil {
			return
		}
		if s, ok := strings.CutPrefix(string(m), "close "); ok {
			code, _ := strconv.Atoi(s)
			c.Close(websocket.StatusCode(code), "as told")
			return
		}
		if s, ok := strings.CutPrefix(string(m), "wait "); ok {
			d, _ := time.ParseDuration(s)
			time.Sleep(d)
		}
		if c.Write(ctx, kind, m) != nil {
			return
		}
	}
}

// A tunnel makes of a stream that extended CONNECT has opened what a WebSocket server knows.
type tunnel struct {
	http.ResponseWriter
	r *http.Request
}

func (x *tunnel) WriteHeader(status int) {
	if status == http.StatusSwitchingProtocols {
		for _, name := range []string{"Connection", "Upgrade", "Sec-Websocket-Accept"} {
			x.Header().Del(name)
		}
		status = 200
	}
	x.ResponseWriter.WriteHeader(status)
	x.ResponseWriter.(http.Flusher).Flush()
}

func (x *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c := &tunnelConn{r: x.r.Body, w: x.ResponseWriter, flush: x.ResponseWriter.(http.Flusher).Flush}
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}

type tunnelConn struct {
	net.Conn // nil: the rest is not called
	r        io.ReadCloser
	w        io.Writer
	flush    func()
}

func (c *tunnelConn) Read(b []byte) (int, error) { return c.r.Read(b) }
func (c *tunnelConn) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.flush()
	return n, err
}
func (c *tunnelConn) Close() error                { return c.r.Close() }
func (c *tunnelConn) SetDeadline(time.Time) error { return nil }

// extendedConnect sends a WebSocket's handshake over HTTP/2 (RFC 8441).
type extendedConnect struct{ t *http2.Transport }

func (x extendedConnect) RoundTrip(r *http.Request) (*http.Response, error) {
	key := r.Header.Get("Sec-WebSocket-Key")
	up, send := io.Pipe()
	r = r.Clone(r.Context())
	r.Method, r.Body, r.ContentLength = "CONNECT", up, -1
	for _, name := range []string{"Connection", "Upgrade", "Sec-Websocket-Key"} {
		r.Header.Del(name)
	}
	r.Header[":protocol"] = []string{"websocket"}
	resp, err := x.t.RoundTrip(r)
	if err != nil || resp.StatusCode != 200 {
		return resp, err
	}
	if resp.Header.Get("Sec-WebSocket-Accept") != "" {
		return nil, errors.New("sec-websocket-accept over HTTP/2")
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	resp.StatusCode = 101
	resp.Header.Set("Connection", "Upgrade")
	resp.Header.Set("Upgrade", "websocket")
	resp.Header.Set("Sec-WebSocket-Accept", base64.StdEncoding.EncodeToString(sum[:]))
	resp.Body = struct {
		io.Reader
		io.WriteCloser
	}{resp.Body, send}
	return resp, nil
}

// TestMain makes the test binary a server when told so: of WebSockets over HTTP/2, as x/net takes extended CONNECT only
// in processes that were started with GODEBUG=http2xconnect=1, or of a zone, which has a network namespace of its own.
// Otherwise it runs the tests, with a folder of this run for the sockets of proxies.
func TestMain(m *testing.M) {
	if addr := os.Getenv("SARN_TEST_HTTP"); addr != "" {
		fmt.Println(serveZone(addr))
		os.Exit(1)
	}
	if port := os.Getenv("SARN_TEST_WEBSOCKETS"); port != "" {
		srv := &http.Server{Addr: "127.0.0.1:" + port, Handler: h2c.NewHandler(http.HandlerFunc(serveWebSockets), &http2.Server{})}
		fmt.Println(srv.ListenAndServe())
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "sarn-e2e-")
	if err == nil {
		err = os.Setenv("XDG_RUNTIME_DIR", dir)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// webSocketServer returns the port of a server over HTTP/1, or over HTTP/2.
func webSocketServer(t *testing.T, h2 bool) int {
	if !h2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(serveWebSockets)}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
		return portOf(l)
	}
	port := freePorts(1)[0]
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start(t, "websockets", []string{"GODEBUG=http2xconnect=1", "SARN_TEST_WEBSOCKETS=" + strconv.Itoa(port)}, self)
	eventually(t, 30*time.Second, "the server listens", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return port
}

const webSocketHCM = `upgrade_configs: [{upgrade_type: websocket}], http2_protocol_options: {allow_connect: true}, stream_idle_timeout: 6s`

// TestWebSocket speaks to a server through one proxy and two, over HTTP/1 and extended CONNECT on either side.
func TestWebSocket(t *testing.T) {
	binary(t)
	for way, through := range httpWays {
		for _, clientH2 := range []bool{false, true} {
			for _, serverH2 := range []bool{false, true} {
				name := func(h2 bool) string { return map[bool]string{false: "HTTP/1", true: "HTTP/2"}[h2] }
				t.Run(way+", "+name(clientH2)+" to "+name(serverH2), func(t *testing.T) {
					t.Parallel()
					cluster := ""
					if serverH2 {
						cluster = speaksH2
					}
					// A route's timeout ends with the handshake.
					port := through(t, webSocketServer(t, serverH2), httpListener{hcm: webSocketHCM, routes: `{match: {prefix: /}, route: {cluster: up, timeout: 2s}}`}, cluster)
					webSockets(t, port, clientH2)
				})
			}
		}
	}
}

func webSockets(t *testing.T, port int, h2 bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	hc := &http.Client{Transport: &http.Transport{}}
	if h2 {
		hc.Transport = extendedConnect{&http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}}}
	}
	dial := func(t *testing.T, o websocket.DialOptions) *websocket.Conn {
		t.Helper()
		o.HTTPClient = hc
		c, _, err := websocket.Dial(ctx, fmt.Sprintf("http://127.0.0.1:%d/chat", port), &o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.CloseNow() })
		c.SetReadLimit(16 << 20)
		return c
	}
	say := func(t *testing.T, c *websocket.Conn, kind websocket.MessageType, m []byte) {
		t.Helper()
		go c.Write(ctx, kind, m)
		got, b, err := c.Read(ctx)
		if err != nil || got != kind || !bytes.Equal(b, m) {
			t.Fatalf("%d bytes came back as %d, %v", len(m), len(b), err)
		}
	}
	t.Run("messages of all sizes", func(t *testing.T) {
		c := dial(t, websocket.DialOptions{Subprotocols: []string{"echo"}})
		if c.Subprotocol() != "echo" {
			t.Errorf("subprotocol %q", c.Subprotocol())
		}
		for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
			m := make([]byte, n)
			for i := range m {
				m[i] = byte(rand.Uint32())
			}
			say(t, c, websocket.MessageBinary, m)
		}
		say(t, c, websocket.MessageText, []byte("grüß dich"))
		if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Run("compression", func(t *testing.T) {
		c := dial(t, websocket.DialOptions{CompressionMode: websocket.CompressionContextTakeover})
		for range 3 {
			say(t, c, websocket.MessageText, bytes.Repeat([]byte("again and "), 10000))
		}
	})
	t.Run("fragments with pings between them", func(t *testing.T) {
		c := dial(t, websocket.DialOptions{})
		type message struct {
			b   []byte
			err error
		}
		got := make(chan message, 1)
		go func() {
			_, b, err := c.Read(ctx)
			got <- message{b, err}
		}()
		w, err := c.Writer(ctx, websocket.MessageText)
		if err != nil {
			t.Fatal(err)
		}
		var want []byte
		for i := range 20 {
			piece := bytes.Repeat([]byte{byte('a' + i)}, 5000*i)
			want = append(want, piece...)
			if _, err := w.Write(piece); err != nil {
				t.Fatal(err)
			}
			if i%5 == 4 {
				if err := c.Ping(ctx); err != nil {
					t.Fatalf("ping: %v", err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if m := <-got; m.err != nil || !bytes.Equal(m.b, want) {
			t.Errorf("got %d bytes of %d, %v", len(m.b), len(want), m.err)
		}
	})
	t.Run("the server closes", func(t *testing.T) {
		for _, code := range []int{1000, 1008, 4001} {
			c := dial(t, websocket.DialOptions{})
			c.Write(ctx, websocket.MessageText, []byte("close "+strconv.Itoa(code)))
			_, _, err := c.Read(ctx)
			e, ok := errors.AsType[websocket.CloseError](err)
			if !ok || int(e.Code) != code || e.Reason != "as told" {
				t.Errorf("%d: got %v", code, err)
			}
		}
	})
	t.Run("longer than the route's timeout", func(t *testing.T) {
		c := dial(t, websocket.DialOptions{})
		say(t, c, websocket.MessageText, []byte("wait 3s"))
		say(t, c, websocket.MessageText, []byte("still here"))
	})
	t.Run("pings keep it longer than the idle timeout", func(t *testing.T) {
		c := dial(t, websocket.DialOptions{})
		gone := c.CloseRead(ctx)
		for range 10 {
			time.Sleep(700 * time.Millisecond)
			if err := c.Ping(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if gone.Err() != nil {
			t.Error("closed")
		}
	})
	t.Run("silence ends it at the idle timeout", func(t *testing.T) {
		c := dial(t, websocket.DialOptions{})
		say(t, c, websocket.MessageText, []byte("last words"))
		began := time.Now()
		_, _, err := c.Read(ctx)
		if d := time.Since(began); err == nil || d < 5800*time.Millisecond || d > 30*time.Second {
			t.Errorf("ended after %v with %v", d, err)
		}
	})
}
