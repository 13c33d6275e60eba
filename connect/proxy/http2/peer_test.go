package http2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// A peer speaks frames.
type peer struct {
	t testing.TB
	net.Conn
	*xhttp2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
	dec *hpack.Decoder
}

func newPeer(t testing.TB, c net.Conn) *peer {
	p := &peer{t: t, Conn: c, Framer: xhttp2.NewFramer(c, c)}
	p.AllowIllegalWrites, p.AllowIllegalReads = true, true
	p.enc = hpack.NewEncoder(&p.buf)
	p.dec = hpack.NewDecoder(4096, func(hpack.HeaderField) {})
	c.SetReadDeadline(time.Now().Add(time.Minute))
	return p
}

// client begins as a client does.
func client(t testing.TB, c net.Conn, settings ...xhttp2.Setting) *peer {
	p := newPeer(t, c)
	io.WriteString(c, xhttp2.ClientPreface)
	p.WriteSettings(settings...)
	return p
}

func (p *peer) block(fields ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *peer) headers(id uint32, end bool, fields ...string) {
	p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, EndStream: end, EndHeaders: true, BlockFragment: p.block(fields...)})
}

// get is the pseudo-headers of a request, and then more.
func get(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "example.com", ":path", "/"}, more...)
}

func (p *peer) get(id uint32, more ...string) { p.headers(id, true, get(more...)...) }

// fields decodes a frame.
func (p *peer) fields(f *xhttp2.HeadersFrame) string {
	fs, err := p.dec.DecodeFull(f.HeaderBlockFragment())
	if err != nil {
		p.t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "%s=%s ", f.Name, f.Value)
	}
	return strings.TrimSpace(b.String())
}

// next tells of the next frame that is not about windows, settings or pings; "closed" if there is none.
func (p *peer) next() string {
	for {
		f, err := p.ReadFrame()
		if err != nil {
			if errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "timeout") {
				return "closed"
			}
			p.t.Fatal(err)
		}
		end := func(e bool) string {
			if e {
				return " end"
			}
			return ""
		}
		switch f := f.(type) {
		case *xhttp2.HeadersFrame:
			return fmt.Sprintf("HEADERS %d %s%s", f.StreamID, p.fields(f), end(f.StreamEnded()))
		case *xhttp2.DataFrame:
			return fmt.Sprintf("DATA %d %d%s", f.StreamID, len(f.Data()), end(f.StreamEnded()))
		case *xhttp2.RSTStreamFrame:
			return fmt.Sprintf("RST_STREAM %d %v", f.StreamID, f.ErrCode)
		case *xhttp2.GoAwayFrame:
			return fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, f.ErrCode)
		}
	}
}

// expect compares the next frames with what they should be.
func (p *peer) expect(want ...string) {
	p.t.Helper()
	for _, w := range want {
		if got := p.next(); got != w {
			p.t.Fatalf("got %q, want %q", got, w)
		}
	}
}

// serve serves the other end of a connection.
func serve(t testing.TB, handler func(message.ServerStream), cfg http2.ServerConfig) (net.Conn, *http2.ServerConn, chan error) {
	a, b := sockets(t)
	srv := http2.NewServerConn(b, cfg)
	ended := make(chan error, 1)
	go func() {
		ended <- srv.Serve(handler)
		close(ended)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})
	return a, srv, ended
}

func ok(s message.ServerStream) {
	var r message.Response
	r.Status = 200
	s.Respond(&r, true)
}

// TestServerRefusesWhatIsNoRequest sends what RFC 9113, section 8, forbids.
func TestServerRefusesWhatIsNoRequest(t *testing.T) {
	without := func(name string) []string {
		f := get()
		for i := 0; i < len(f); i += 2 {
			if f[i] == name {
				return append(f[:i:i], f[i+2:]...)
			}
		}
		return f
	}
	with := func(name, value string) []string {
		f := get()
		for i := 0; i < len(f); i += 2 {
			if f[i] == name {
				f[i+1] = value
			}
		}
		return f
	}
	for name, fields := range map[string][]string{
		"upper case":              get("X-A", "b"),
		"space in a name":         get("x a", "b"),
		"colon in a name":         get("x:a", "b"),
		"empty name":              get("", "b"),
		"line feed in a value":    get("x-a", "b\nc: d"),
		"carriage return":         get("x-a", "b\r"),
		"NUL in a value":          get("x-a", "b\x00"),
		"control character":       get("x-a", "b\x01c"),
		"connection":              get("connection", "close"),
		"keep-alive":              get("keep-alive", "1"),
		"proxy-connection":        get("proxy-connection", "close"),
		"transfer-encoding":       get("transfer-encoding", "chunked"),
		"upgrade":                 get("upgrade", "h2c"),
		"te that is no trailers":  get("te", "trailers, gzip"),
		"pseudo-header late":      {":method", "GET", ":scheme", "http", ":authority", "a", "x-a", "b", ":path", "/"},
		"pseudo-header twice":     get(":path", "/"),
		"unknown pseudo-header":   get(":x", "b"),
		"that of responses":       get(":status", "200"),
		"no method":               without(":method"),
		"no scheme":               without(":scheme"),
		"no path":                 without(":path"),
		"empty path":              with(":path", ""),
		"path without slash":      with(":path", "a"),
		"asterisk with GET":       with(":path", "*"),
		"space in the path":       with(":path", "/a b"),
		"line feed in the path":   with(":path", "/a\n"),
		"space in the method":     with(":method", "GET /x"),
		"slash in the authority":  with(":authority", "a/b"),
		"user information":        with(":authority", "user@a"),
		"space in the scheme":     with(":scheme", "ht tp"),
		"other host":              get("host", "evil.example.com"),
		"two hosts":               get("host", "example.com", "host", "example.com"),
		"length that is none":     get("content-length", "x"),
		"negative length":         get("content-length", "-1"),
		"two lengths":             get("content-length", "0", "content-length", "1"),
		"length without body":     get("content-length", "5"),
		"CONNECT with a path":     {":method", "CONNECT", ":authority", "a:1", ":path", "/"},
		"CONNECT to nobody":       {":method", "CONNECT"},
		"extended CONNECT":        {":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "a", ":path", "/"},
		"protocol with GET":       get(":protocol", "websocket"),
		"length with list syntax": get("content-length", "0, 0"),
	} {
		for _, streamErrors := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", name, streamErrors), func(t *testing.T) {
				called := make(chan string, 9)
				c, _, _ := serve(t, func(s message.ServerStream) {
					called <- s.Request().Path
					ok(s)
				}, http2.ServerConfig{Options: http2.Options{StreamErrors: streamErrors}})
				p := client(t, c)
				p.headers(1, true, fields...)
				p.get(3)
				if !streamErrors {
					p.expect("GOAWAY 1 PROTOCOL_ERROR", "closed")
					if len(called) > 0 {
						t.Error("a request was handled")
					}
					return
				}
				p.expect("RST_STREAM 1 PROTOCOL_ERROR", "HEADERS 3 :status=200 end")
				if len(called) != 1 {
					t.Errorf("%d requests were handled, want one", len(called))
				}
			})
		}
	}
}

// TestRequestsHaveOneForm checks what the handler sees.
func TestRequestsHaveOneForm(t *testing.T) {
	seen := make(chan string, 1)
	c, _, _ := serve(t, func(s message.ServerStream) {
		r := s.Request()
		var b strings.Builder
		fmt.Fprintf(&b, "%s %s %s %s %q %d %v:", r.Method, r.Scheme, r.Authority, r.Path, r.Upgrade, r.ContentLength, r.Expect100)
		for i := range r.Header.Len() {
			fmt.Fprintf(&b, " %s=%s", r.Header.At(i).Name, r.Header.At(i).Value)
		}
		seen <- b.String()
		ok(s)
	}, http2.ServerConfig{AllowConnect: true})
	p := client(t, c)
	id := uint32(1)
	for _, tt := range []struct {
		name   string
		end    bool
		fields []string
		want   string
	}{
		{"plain", true, get("x-a", "b"), `GET http example.com / "" 0 false: x-a=b`},
		{"space around values", true, get("x-a", " b\t", "content-length", " 0 ", "te", "\ttrailers"), `GET http example.com / "" 0 false: x-a=b content-length=0 te=trailers`},
		{"cookies in crumbs", true, get("cookie", "a=b", "x-a", "b", "cookie", "c=d", "cookie", "e=f"), `GET http example.com / "" 0 false: cookie=a=b; c=d; e=f x-a=b`},
		{"host beside the authority", true, get("host", "Example.com"), `GET http example.com / "" 0 false:`},
		{"host alone", true, []string{":method", "GET", ":scheme", "HTTP", ":path", "/x?y", "host", "a:80"}, `GET http a:80 /x?y "" 0 false:`},
		{"body of unknown length", false, get(), `GET http example.com / "" -1 false:`},
		{"body of known length", false, get("content-length", "5", "content-length", "5", "expect", "100-Continue"), `GET http example.com / "" 5 true: content-length=5 expect=100-Continue`},
		{"te", true, get("te", "trailers"), `GET http example.com / "" 0 false: te=trailers`},
		{"CONNECT", false, []string{":method", "CONNECT", ":authority", "a:1"}, `CONNECT  a:1  "" -1 false:`},
		{"extended CONNECT", false, []string{":method", "CONNECT", ":protocol", "WebSocket", ":scheme", "https", ":path", "/chat", ":authority", "a"}, `GET https a /chat "websocket" -1 false:`},
		{"OPTIONS of all", true, []string{":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "a"}, `OPTIONS http a * "" 0 false:`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p.headers(id, tt.end, tt.fields...)
			if got := <-seen; got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			id += 2
		})
	}
}

func TestBodyMustHaveTheSaidLength(t *testing.T) {
	for name, send := range map[string]func(p *peer){
		"longer":             func(p *peer) { p.WriteData(1, false, []byte("123456")) },
		"longer in the end":  func(p *peer) { p.WriteData(1, false, []byte("12345")); p.WriteData(1, true, []byte("6")) },
		"shorter":            func(p *peer) { p.WriteData(1, true, []byte("1234")) },
		"none":               func(p *peer) { p.WriteData(1, true, nil) },
		"shorter, trailers":  func(p *peer) { p.WriteData(1, false, []byte("1234")); p.headers(1, true, "x-a", "b") },
		"trailers, no end":   func(p *peer) { p.WriteData(1, false, []byte("12345")); p.headers(1, false, "x-a", "b") },
		"pseudo in trailers": func(p *peer) { p.WriteData(1, false, []byte("12345")); p.headers(1, true, ":path", "/") },
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan error, 1)
			c, _, _ := serve(t, func(s message.ServerStream) {
				_, err := body(s)
				got <- err
			}, http2.ServerConfig{Options: http2.Options{StreamErrors: true}})
			p := client(t, c)
			p.headers(1, false, get("content-length", "5")...)
			send(p)
			p.expect("RST_STREAM 1 PROTOCOL_ERROR")
			if err := <-got; message.ReasonOf(err) != message.ProtocolError {
				t.Errorf("the handler got %v", err)
			}
		})
	}
}

func TestTooLargeHeadsAreAnswered(t *testing.T) {
	c, _, _ := serve(t, ok, http2.ServerConfig{Options: http2.Options{MaxHeaderBytes: 2000, MaxHeaders: 20}})
	p := client(t, c)
	p.get(1, "x-a", strings.Repeat("a", 1800))
	p.expect("HEADERS 1 :status=200 end")
	p.get(3, "x-a", strings.Repeat("a", 2000))
	p.expect("HEADERS 3 :status=431 content-length=0 end")
	p.headers(5, false, get("x-a", strings.Repeat("a", 2000))...)
	p.expect("HEADERS 5 :status=431 content-length=0 end", "RST_STREAM 5 NO_ERROR")
	var many []string
	for i := range 20 {
		many = append(many, "x-"+string(rune('a'+i)), "b")
	}
	p.get(7, many...)
	p.expect("RST_STREAM 7 ENHANCE_YOUR_CALM")
	p.get(9)
	p.expect("HEADERS 9 :status=200 end")
}

// TestClientRefusesWhatIsNoResponse lets a host do what it may not.
func TestClientRefusesWhatIsNoResponse(t *testing.T) {
	ok := []string{":status", "200"}
	const malformed = "stream PROTOCOL_ERROR"
	for _, tt := range []struct {
		name, want string
		send       func(p *peer)
	}{
		{"no status", malformed, func(p *peer) { p.headers(1, true, "x-a", "b") }},
		{"short status", malformed, func(p *peer) { p.headers(1, true, ":status", "20") }},
		{"status below 100", malformed, func(p *peer) { p.headers(1, true, ":status", "099") }},
		{"switching protocols", malformed, func(p *peer) { p.headers(1, true, ":status", "101") }},
		{"status twice", malformed, func(p *peer) { p.headers(1, true, ":status", "200", ":status", "200") }},
		{"status late", malformed, func(p *peer) { p.headers(1, true, "x-a", "b", ":status", "200") }},
		{"that of requests", malformed, func(p *peer) { p.headers(1, true, ":status", "200", ":path", "/") }},
		{"upper case", malformed, func(p *peer) { p.headers(1, true, ":status", "200", "X-A", "b") }},
		{"line feed", malformed, func(p *peer) { p.headers(1, true, ":status", "200", "x-a", "b\nc") }},
		{"connection", malformed, func(p *peer) { p.headers(1, true, ":status", "200", "connection", "close") }},
		{"transfer-encoding", malformed, func(p *peer) { p.headers(1, true, ":status", "200", "transfer-encoding", "chunked") }},
		{"two lengths", malformed, func(p *peer) { p.headers(1, false, ":status", "200", "content-length", "1", "content-length", "2") }},
		{"length without body", malformed, func(p *peer) { p.headers(1, true, ":status", "200", "content-length", "1") }},
		{"body longer than said", malformed, func(p *peer) {
			p.headers(1, false, ":status", "200", "content-length", "1")
			p.WriteData(1, true, []byte("12"))
		}},
		{"body shorter than said", malformed, func(p *peer) {
			p.headers(1, false, ":status", "200", "content-length", "2")
			p.WriteData(1, true, []byte("1"))
		}},
		{"body of 204", malformed, func(p *peer) {
			p.headers(1, false, ":status", "204")
			p.WriteData(1, true, []byte("1"))
		}},
		{"interim that ends", malformed, func(p *peer) { p.headers(1, true, ":status", "103") }},
		{"body before the head", malformed, func(p *peer) { p.WriteData(1, false, []byte("1")) }},
		{"body before the final head", malformed, func(p *peer) {
			p.headers(1, false, ":status", "103")
			p.WriteData(1, false, []byte("1"))
		}},
		{"trailers that do not end", malformed, func(p *peer) { p.headers(1, false, ok...); p.headers(1, false, "x-a", "b") }},
		{"pseudo-header in trailers", malformed, func(p *peer) { p.headers(1, false, ok...); p.headers(1, true, ":status", "200") }},
		{"interim without end", "stream ENHANCE_YOUR_CALM", func(p *peer) {
			for range 9 {
				p.headers(1, false, ":status", "103")
			}
		}},
		{"head too large", "stream ENHANCE_YOUR_CALM", func(p *peer) {
			p.headers(1, true, ":status", "200", "a", strings.Repeat("x", 16000), "b", strings.Repeat("y", 10))
		}},
		{"window update of zero", malformed, func(p *peer) { p.WriteWindowUpdate(1, 0) }},
		{"window overflow", "stream FLOW_CONTROL_ERROR", func(p *peer) { p.WriteWindowUpdate(1, 1<<31-1) }},
		{"more than the stream's window", "stream FLOW_CONTROL_ERROR", func(p *peer) {
			p.headers(1, false, ok...)
			for range 3 {
				p.WriteData(1, false, make([]byte, 8000))
			}
		}},

		{"push", "connection PROTOCOL_ERROR", func(p *peer) {
			p.WritePushPromise(xhttp2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true, BlockFragment: p.block(get()...)})
		}},
		{"settings that allow push", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingEnablePush, Val: 1}) }},
		{"settings on a stream", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FrameSettings, 0, 1, nil) }},
		{"settings of odd size", "connection FRAME_SIZE_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FrameSettings, 0, 0, make([]byte, 5)) }},
		{"acknowledgement with content", "connection FRAME_SIZE_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FrameSettings, xhttp2.FlagSettingsAck, 0, make([]byte, 6)) }},
		{"initial window too large", "connection FLOW_CONTROL_ERROR", func(p *peer) {
			p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1 << 31})
		}},
		{"initial window overflows a stream's", "connection FLOW_CONTROL_ERROR", func(p *peer) {
			p.WriteWindowUpdate(1, 1<<31-1-65535)
			p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 65536})
		}},
		{"frame size too small", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingMaxFrameSize, Val: 100}) }},
		{"frame too large", "connection FRAME_SIZE_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FrameData, 0, 1, make([]byte, 16385)) }},
		{"ping of odd size", "connection FRAME_SIZE_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FramePing, 0, 0, make([]byte, 7)) }},
		{"ping on a stream", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FramePing, 0, 1, make([]byte, 8)) }},
		{"goaway on a stream", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FrameGoAway, 0, 1, make([]byte, 8)) }},
		{"goaway too short", "connection FRAME_SIZE_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FrameGoAway, 0, 0, make([]byte, 7)) }},
		{"reset of odd size", "connection FRAME_SIZE_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FrameRSTStream, 0, 1, make([]byte, 5)) }},
		{"reset of an idle stream", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteRSTStream(3, 0) }},
		{"window update of odd size", "connection FRAME_SIZE_ERROR", func(p *peer) { p.WriteRawFrame(xhttp2.FrameWindowUpdate, 0, 1, make([]byte, 3)) }},
		{"window update of zero on the connection", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteWindowUpdate(0, 0) }},
		{"window overflow on the connection", "connection FLOW_CONTROL_ERROR", func(p *peer) { p.WriteWindowUpdate(0, 1<<31-1) }},
		{"window update on an idle stream", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteWindowUpdate(3, 1) }},
		{"data on the connection", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteData(0, false, []byte("1")) }},
		{"data on an idle stream", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteData(3, false, []byte("1")) }},
		{"data on an even stream", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteData(2, false, []byte("1")) }},
		{"headers on the connection", "connection PROTOCOL_ERROR", func(p *peer) { p.headers(0, true, ok...) }},
		{"headers on an idle stream", "connection PROTOCOL_ERROR", func(p *peer) { p.headers(3, true, ok...) }},
		{"headers on an even stream", "connection PROTOCOL_ERROR", func(p *peer) { p.headers(2, true, ok...) }},
		{"padding longer than the frame", "connection PROTOCOL_ERROR", func(p *peer) {
			p.WriteRawFrame(xhttp2.FrameHeaders, xhttp2.FlagHeadersPadded|xhttp2.FlagHeadersEndHeaders, 1, []byte{9, 0x88})
		}},
		{"continuation out of the blue", "connection PROTOCOL_ERROR", func(p *peer) { p.WriteContinuation(1, true, p.block(ok...)) }},
		{"continuation missing", "connection PROTOCOL_ERROR", func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(ok...)})
			p.WritePing(false, [8]byte{})
		}},
		{"continuation of another stream", "connection PROTOCOL_ERROR", func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(ok...)})
			p.WriteContinuation(3, true, nil)
		}},
		{"broken compression", "connection COMPRESSION_ERROR", func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0x80}})
		}},
		{"broken compression on a closed stream", "connection COMPRESSION_ERROR", func(p *peer) {
			p.WriteRSTStream(1, 0)
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0xff, 0xff}})
		}},
		{"more than the connection's window", "connection FLOW_CONTROL_ERROR", func(p *peer) {
			p.headers(1, false, ok...)
			for range 9 {
				p.WriteData(1, false, make([]byte, 16000))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := sockets(t)
			window := uint32(20000)
			if tt.name == "more than the connection's window" {
				window = 1 << 20
			}
			cli, err := http2.NewClientConn(a, http2.ClientConfig{Options: http2.Options{StreamErrors: true, StreamWindow: window, ConnWindow: 100000, MaxHeaderBytes: 16000}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				cli.Close()
				<-cli.Closed()
			}()
			got, refused := make(chan error, 1), make(chan struct{})
			go func() {
				s, err := cli.Open()
				if err != nil {
					got <- err
					return
				}
				defer s.Close()
				s.Send(request("GET", "/"), false)
				s.Flush()
				if strings.HasPrefix(tt.name, "interim without") {
					<-refused // what waits is not taken before
				}
				var r message.Response
				for r.Status < 200 {
					if _, err := s.Receive(&r); err != nil {
						got <- err
						return
					}
				}
				if strings.HasPrefix(tt.name, "more than") {
					// Nothing is taken, so nothing is given back.
					for s.Write(nil, false) == nil {
						time.Sleep(time.Millisecond)
					}
				}
				_, err = body(s)
				got <- err
			}()
			p := newPeer(t, b)
			preface := make([]byte, len(xhttp2.ClientPreface))
			io.ReadFull(b, preface)
			p.WriteSettings()
			p.WriteSettingsAck()
			if f := p.next(); !strings.HasPrefix(f, "HEADERS 1 ") {
				t.Fatalf("got %s, want a request", f)
			}
			tt.send(p)
			var codes string
			if code, ok := strings.CutPrefix(tt.want, "stream "); ok {
				codes = "RST_STREAM 1 " + code
			} else {
				codes = "GOAWAY 0 " + strings.TrimPrefix(tt.want, "connection ")
			}
			for f := p.next(); f != codes; f = p.next() {
				if f == "closed" || strings.HasPrefix(f, "GOAWAY") || strings.HasPrefix(f, "RST_STREAM") && !strings.HasSuffix(f, "CANCEL") {
					t.Fatalf("got %q, want %q", f, codes)
				}
			}
			close(refused)
			if err := <-got; err == nil || tt.want[0] == 's' && message.ReasonOf(err) != message.ProtocolError {
				t.Errorf("the caller got %v", err)
			}
		})
	}
}

// A client that does not know our small window yet may use the usual one: RFC 9113, section 6.9.2.
func TestSmallWindowCountsOnceItIsKnown(t *testing.T) {
	sums := make(chan int, 2)
	c, _, _ := serve(t, func(s message.ServerStream) {
		time.Sleep(20 * time.Millisecond)
		b, err := body(s)
		if err == nil {
			sums <- len(b)
			ok(s)
		}
	}, http2.ServerConfig{Options: http2.Options{StreamWindow: 1000}})
	p := client(t, c)
	p.headers(1, false, get()...)
	for range 6 {
		p.WriteData(1, false, make([]byte, 10000))
	}
	p.WriteData(1, true, nil)
	p.WriteSettingsAck()
	p.expect("HEADERS 1 :status=200 end")
	p.headers(3, false, get()...)
	p.WriteData(3, false, make([]byte, 1001))
	p.expect("RST_STREAM 3 FLOW_CONTROL_ERROR")
	if n := <-sums; n != 60000 {
		t.Errorf("%d bytes arrived", n)
	}
}
