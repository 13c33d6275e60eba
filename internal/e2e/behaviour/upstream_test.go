package behaviour

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// An answer is what an upstream does with a request. An early one begins before the request's body is read.
type answer struct {
	early bool
	do    func(exchange)
}

// An exchange is a request at an upstream, whatever its protocol.
type exchange interface {
	head(status int, fields ...string) // without a length: the body is chunked
	body(string)
	end(trailers ...string)
	last(string) // body and end at once: a client that knows the length can be gone when an end comes later
	raw(string)  // bytes as they are, HTTP/1 only
	reset()      // RST of the connection, or of the stream with INTERNAL_ERROR
	refuse()     // REFUSED_STREAM; HTTP/1: close
	hangUp()     // FIN, or GOAWAY and FIN
	conn() (net.Conn, *bufio.Reader)
	readBody()
	gone() <-chan struct{} // closed when the request is
}

// status answers with a status and fields; one that is "body=…" is the body, without it there is "hello".
func status(code int, fields ...string) answer {
	text := "hello"
	fields = slices.Clone(fields)
	fields = slices.DeleteFunc(fields, func(f string) bool {
		b, ok := strings.CutPrefix(f, "body=")
		if ok {
			text = b
		}
		return ok
	})
	return answer{do: func(x exchange) {
		if code == 204 || code == 304 {
			x.head(code, fields...)
			x.end()
			return
		}
		x.head(code, append([]string{"content-length: " + strconv.Itoa(len(text))}, fields...)...)
		x.last(text)
	}}
}

// stream answers in pieces, of unknown length, with trailers.
func stream(code int, fields []string, text string, trailers ...string) answer {
	return answer{do: func(x exchange) {
		x.head(code, fields...)
		if text != "" {
			x.body(text)
		}
		x.end(trailers...)
	}}
}

// headersOnly answers with HEADERS that end the stream.
func headersOnly(code int, fields ...string) answer {
	return answer{do: func(x exchange) { x.head(code, append(fields, "end")...) }}
}

func bytesAs(text string) answer { return answer{do: func(x exchange) { x.raw(text) }} }

func bytesThenClose(text string) answer {
	return answer{do: func(x exchange) { x.raw(text); x.hangUp() }}
}

func after(d time.Duration, a answer) answer {
	return answer{a.early, func(x exchange) {
		select {
		case <-time.After(d):
			a.do(x)
		case <-x.gone():
		}
	}}
}

func early(a answer) answer { return answer{true, a.do} }

// earlyH2 answers when something of the body has come.
func earlyH2(a answer) answer {
	return early(answer{do: func(x exchange) {
		select {
		case <-x.(*h2Exchange).somec:
			a.do(x)
		case <-x.gone():
		}
	}})
}

var (
	ok       = status(200)
	reset    = answer{do: exchange.reset}
	hangUp   = answer{do: exchange.hangUp}
	refuse   = answer{do: exchange.refuse}
	noAnswer = answer{do: func(x exchange) {
		select {
		case <-x.gone():
		case <-time.After(10 * time.Second):
		}
	}}
)

// An upstream is a server that answers as cases say and writes down what it got.
type upstream struct {
	name string
	w    *world
	ln   net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newUpstream(name string, w *world) *upstream {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	u := &upstream{name: name, w: w, ln: ln, conns: map[net.Conn]bool{}}
	u.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			u.conns[c] = true
			u.mu.Unlock()
			u.wg.Go(func() {
				u.serve(c)
				c.Close()
				u.mu.Lock()
				delete(u.conns, c)
				u.mu.Unlock()
			})
		}
	})
	return u
}

func (u *upstream) port() int { return u.ln.Addr().(*net.TCPAddr).Port }

func (u *upstream) close() {
	u.ln.Close()
	u.mu.Lock()
	for c := range u.conns {
		c.Close()
	}
	u.mu.Unlock()
	u.wg.Wait()
}

func (u *upstream) serve(c net.Conn) {
	br := bufio.NewReader(c)
	if b, _ := br.Peek(4); string(b) == "PRI " {
		u.serveH2(c, br)
		return
	}
	for u.serveH1(c, br) {
	}
}

// A received request as it is written down.
type received struct {
	line    string
	fields  []string
	body    bytes.Buffer
	trailer []string
	cut     bool
}

func (r *received) get(name string) string {
	for _, f := range r.fields {
		if v, ok := strings.CutPrefix(f, name+": "); ok {
			return v
		}
	}
	return ""
}

func (r *received) String() string {
	var b strings.Builder
	b.WriteString(r.line + "\n")
	slices.Sort(r.fields)
	for _, f := range r.fields {
		if !strings.HasPrefix(f, "x-case: ") {
			b.WriteString("  " + f + "\n")
		}
	}
	if r.body.Len() > 0 {
		b.WriteString("  " + show(r.body.String()) + "\n")
	}
	for _, t := range r.trailer {
		b.WriteString("  trailer " + t + "\n")
	}
	if r.cut {
		b.WriteString("  (cut off)\n")
	}
	return b.String()
}

// show writes a body on one line.
func show(s string) string {
	if len(s) > 600 {
		return fmt.Sprintf("(%d bytes)", len(s))
	}
	return strconv.Quote(s)
}

func (u *upstream) serveH1(c net.Conn, br *bufio.Reader) bool {
	tp := textproto.NewReader(br)
	line, err := tp.ReadLine()
	if err != nil {
		return false
	}
	r := &received{line: line}
	for {
		l, err := tp.ReadLine()
		if err != nil {
			return false
		}
		if l == "" {
			break
		}
		r.fields = append(r.fields, l)
	}
	x := &h1Exchange{c: c, br: br, r: r, gonec: make(chan struct{})}
	a := u.w.next(r.get("x-case"), u.name)
	if a.early {
		done := make(chan struct{})
		go func() { defer close(done); x.readBody() }()
		a.do(x)
		<-done
	} else {
		x.readBody()
		u.w.record(r.get("x-case"), u.name, r)
		if r.cut {
			return false
		}
		stop := x.watch()
		a.do(x)
		stop()
		return !x.closed
	}
	u.w.record(r.get("x-case"), u.name, r)
	return !x.closed && !r.cut
}

type h1Exchange struct {
	c       net.Conn
	br      *bufio.Reader
	r       *received
	chunked bool
	closed  bool
	once    sync.Once
	gonec   chan struct{}
}

func (x *h1Exchange) gone() <-chan struct{}           { return x.gonec }
func (x *h1Exchange) conn() (net.Conn, *bufio.Reader) { return x.c, x.br }

// watch notices that the connection is gone while an answer waits.
func (x *h1Exchange) watch() (stop func()) {
	if x.r.get("upgrade") != "" || strings.HasPrefix(x.r.line, "CONNECT ") {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := x.br.Peek(1); err != nil {
			if e, ok := err.(net.Error); !ok || !e.Timeout() {
				x.closed = true
				x.once.Do(func() { close(x.gonec) })
			}
		}
	}()
	return func() {
		x.c.SetReadDeadline(time.Unix(1, 0))
		<-done
		x.c.SetReadDeadline(time.Time{})
	}
}

func (x *h1Exchange) readBody() {
	r := x.r
	if te := r.get("transfer-encoding"); te == "chunked" {
		for {
			line, err := textproto.NewReader(x.br).ReadLine()
			if err != nil {
				r.cut = true
				return
			}
			n, err := strconv.ParseInt(strings.TrimSpace(strings.Split(line, ";")[0]), 16, 64)
			if err != nil {
				r.cut = true
				return
			}
			if n == 0 {
				break
			}
			if _, err := io.CopyN(&r.body, x.br, n); err != nil {
				r.cut = true
				return
			}
			x.br.Discard(2)
		}
		for {
			line, err := textproto.NewReader(x.br).ReadLine()
			if err != nil || line == "" {
				return
			}
			r.trailer = append(r.trailer, line)
		}
	}
	if n, _ := strconv.Atoi(r.get("content-length")); n > 0 {
		if _, err := io.CopyN(&r.body, x.br, int64(n)); err != nil {
			r.cut = true
		}
	}
}

func (x *h1Exchange) head(code int, fields ...string) {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", code, "Fine")
	length := code < 200 || code == 204 || code == 304
	for _, f := range fields {
		if f == "end" {
			f, length = "content-length: 0", true
		}
		length = length || strings.HasPrefix(strings.ToLower(f), "content-length:")
		b.WriteString(f + "\r\n")
	}
	if !length {
		x.chunked = true
		b.WriteString("transfer-encoding: chunked\r\n")
	}
	io.WriteString(x.c, b.String()+"\r\n")
}

func (x *h1Exchange) body(s string) {
	if strings.HasPrefix(x.r.line, "HEAD ") {
		return
	}
	if x.chunked {
		s = fmt.Sprintf("%x\r\n%s\r\n", len(s), s)
	}
	io.WriteString(x.c, s)
}

func (x *h1Exchange) end(trailers ...string) {
	if !x.chunked || strings.HasPrefix(x.r.line, "HEAD ") {
		return
	}
	s := "0\r\n"
	for _, t := range trailers {
		s += t + "\r\n"
	}
	io.WriteString(x.c, s+"\r\n")
}

func (x *h1Exchange) last(s string) {
	x.body(s)
	x.end()
}

func (x *h1Exchange) raw(s string) { io.WriteString(x.c, s) }

func (x *h1Exchange) reset() {
	x.c.(*net.TCPConn).SetLinger(0)
	x.hangUp()
}

func (x *h1Exchange) refuse() { x.hangUp() }

func (x *h1Exchange) hangUp() {
	x.closed = true
	x.c.Close()
}

// h2Conn is an HTTP/2 connection at an upstream.
type h2Conn struct {
	u  *upstream
	c  net.Conn
	fr *http2.Framer

	mu  sync.Mutex // guards writes
	enc *hpack.Encoder
	buf bytes.Buffer
}

func (u *upstream) serveH2(c net.Conn, br *bufio.Reader) {
	io.CopyN(io.Discard, br, int64(len(http2.ClientPreface)))
	h := &h2Conn{u: u, c: c, fr: http2.NewFramer(c, br)}
	h.enc = hpack.NewEncoder(&h.buf)
	h.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.fr.MaxHeaderListSize = 1 << 20
	h.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 24})
	h.fr.WriteWindowUpdate(0, 1<<24)
	streams := map[uint32]*h2Exchange{}
	var wg sync.WaitGroup
	defer func() {
		for _, x := range streams {
			x.finish(true)
		}
		wg.Wait()
	}()
	start := func(x *h2Exchange, a answer) {
		wg.Go(func() { a.do(x) })
	}
	for {
		f, err := h.fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				h.mu.Lock()
				h.fr.WriteSettingsAck()
				h.mu.Unlock()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				h.mu.Lock()
				h.fr.WritePing(true, f.Data)
				h.mu.Unlock()
			}
		case *http2.MetaHeadersFrame:
			x := streams[f.StreamID]
			if x == nil {
				x = &h2Exchange{h: h, id: f.StreamID, r: &received{}, gonec: make(chan struct{}), somec: make(chan struct{}), bodyc: make(chan struct{})}
				streams[f.StreamID] = x
				pseudo := map[string]string{}
				for _, hf := range f.Fields {
					if strings.HasPrefix(hf.Name, ":") && hf.Name != ":protocol" && hf.Name != ":scheme" {
						pseudo[hf.Name] = hf.Value
						continue
					}
					x.r.fields = append(x.r.fields, hf.Name+": "+hf.Value)
				}
				x.r.line = pseudo[":method"] + " " + pseudo[":path"] + " HTTP/2"
				x.r.fields = append(x.r.fields, ":authority: "+pseudo[":authority"])
				x.a = u.w.next(x.r.get("x-case"), u.name)
				if x.a.early {
					start(x, x.a)
				}
			} else {
				for _, hf := range f.Fields {
					x.r.trailer = append(x.r.trailer, hf.Name+": "+hf.Value)
				}
			}
			if f.StreamEnded() && x.finish(false) && !x.a.early {
				start(x, x.a)
			}
		case *http2.DataFrame:
			x := streams[f.StreamID]
			if x == nil {
				continue
			}
			x.r.body.Write(f.Data())
			x.some.Do(func() { close(x.somec) })
			if n := len(f.Data()); n > 0 {
				h.mu.Lock()
				h.fr.WriteWindowUpdate(0, uint32(n))
				h.mu.Unlock()
			}
			if f.StreamEnded() && x.finish(false) && !x.a.early {
				start(x, x.a)
			}
		case *http2.RSTStreamFrame:
			if x := streams[f.StreamID]; x != nil {
				x.finish(true)
			}
		}
	}
}

type h2Exchange struct {
	h     *h2Conn
	id    uint32
	r     *received
	a     answer
	done  bool // recorded
	once  sync.Once
	gonec chan struct{}
	some  sync.Once
	somec chan struct{} // closed when there is something of the body
	bodyc chan struct{}
}

// finish records the request once it is whole or cut off.
func (x *h2Exchange) finish(cut bool) bool {
	if cut {
		x.once.Do(func() { close(x.gonec) })
	}
	if x.done {
		return false
	}
	x.done = true
	x.r.cut = cut
	x.h.u.w.record(x.r.get("x-case"), x.h.u.name, x.r)
	close(x.bodyc)
	return true
}

func (x *h2Exchange) headers(end bool, fields ...string) {
	x.h.mu.Lock()
	defer x.h.mu.Unlock()
	x.h.buf.Reset()
	for _, f := range fields {
		k, v, _ := strings.Cut(f, ": ")
		x.h.enc.WriteField(hpack.HeaderField{Name: k, Value: v})
	}
	x.h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: x.id, BlockFragment: x.h.buf.Bytes(), EndStream: end, EndHeaders: true})
}

func (x *h2Exchange) head(code int, fields ...string) {
	end := slices.Contains(fields, "end")
	fields = slices.DeleteFunc(slices.Clone(fields), func(f string) bool { return f == "end" })
	x.headers(end, append([]string{":status: " + strconv.Itoa(code)}, fields...)...)
}

func (x *h2Exchange) body(s string) { x.data(s, false) }
func (x *h2Exchange) last(s string) { x.data(s, true) }

func (x *h2Exchange) data(s string, end bool) {
	x.h.mu.Lock()
	defer x.h.mu.Unlock()
	x.h.fr.WriteData(x.id, end, []byte(s))
}

func (x *h2Exchange) end(trailers ...string) {
	if len(trailers) > 0 {
		x.headers(true, trailers...)
		return
	}
	x.last("")
}

func (x *h2Exchange) raw(string) { panic("raw bytes on HTTP/2") }

func (x *h2Exchange) rst(code http2.ErrCode) {
	x.h.mu.Lock()
	defer x.h.mu.Unlock()
	x.h.fr.WriteRSTStream(x.id, code)
}

func (x *h2Exchange) reset()  { x.rst(http2.ErrCodeInternal) }
func (x *h2Exchange) refuse() { x.rst(http2.ErrCodeRefusedStream) }

func (x *h2Exchange) hangUp() {
	x.h.mu.Lock()
	defer x.h.mu.Unlock()
	x.h.fr.WriteGoAway(x.id, http2.ErrCodeNo, nil)
	x.h.c.Close()
}

func (x *h2Exchange) conn() (net.Conn, *bufio.Reader) { panic("HTTP/2 has no connection of its own") }
func (x *h2Exchange) readBody()                       { <-x.bodyc }
func (x *h2Exchange) gone() <-chan struct{}           { return x.gonec }
