package behaviour

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// patience is how long a client waits for anything.
const patience = 6 * time.Second

// An action is what a client does.
type action func(*client)

// A client talks to a proxy for one case and writes down what it gets.
type client struct {
	c    *testCase
	w    *world
	port int
	tls  *tls.Config
	out  strings.Builder
	gzip bool // chunked bodies are decompressed before they are shown

	conn net.Conn
	br   *bufio.Reader
	h2   *h2Client
}

func (c *client) say(format string, args ...any) { fmt.Fprintf(&c.out, format+"\n", args...) }

// fill replaces {p}, the case's path, {c}, its slug, and what the world knows by name.
func (c *client) fill(s string) string {
	return c.w.expand(c.c.names().Replace(s))
}

func (c *client) dial() {
	if c.conn != nil {
		return
	}
	conn, err := dialAnew("127.0.0.1:" + strconv.Itoa(c.port))
	if err != nil {
		c.say("< no connection: %v", err)
		return
	}
	c.w.mine(conn.LocalAddr().String(), c.c.slug())
	c.conn = conn
	if c.tls != nil {
		t := tls.Client(conn, c.tls)
		t.SetDeadline(time.Now().Add(patience))
		if err := t.Handshake(); err != nil {
			c.say("< handshake failed")
			c.hangUp()
			return
		}
		c.conn = t
	}
	c.conn.SetDeadline(time.Now().Add(patience))
	c.br = bufio.NewReader(c.conn)
}

// clientPort is the port that was used last. Ports are taken in turn, so that those in a log tell whose a line is.
var clientPort atomic.Uint32

func dialAnew(to string) (net.Conn, error) {
	const low, high = 61000, 65536 // above what the system hands out
	var err error
	for range 100 {
		var conn net.Conn
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: low + int(clientPort.Add(1)%(high-low))},
			Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
			}}
		if conn, err = d.Dial("tcp", to); !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return conn, err
		}
	}
	return nil, err
}

func (c *client) hangUp() {
	if c.conn != nil {
		c.conn.Close()
	}
	c.conn, c.h2 = nil, nil
}

// steps does one thing after the other, on the same connection while it is open.
func steps(list ...action) action {
	return func(c *client) {
		for _, a := range list {
			a(c)
		}
	}
}

// repeat does a thing n times.
func repeat(n int, a action) action {
	return func(c *client) {
		for range n {
			a(c)
		}
	}
}

// calmly does a thing n times and leaves Envoy, which judges hosts in another thread, time for that.
func calmly(n int, a action) action { return repeat(n, steps(a, wait(60*ms))) }

func wait(d time.Duration) action { return func(*client) { time.Sleep(d) } }

// anew closes the connection, so that the next request opens another.
func anew(c *client) { c.hangUp() }

// over sends what follows over TLS.
func over(conf func(*world) *tls.Config, a action) action {
	return func(c *client) {
		c.hangUp()
		c.tls = conf(c.w)
		a(c)
		c.hangUp()
		c.tls = nil
	}
}

// atOnce does things at the same time, each with a connection of its own; what they get is told in sorted order.
func atOnce(list ...action) action {
	return func(c *client) {
		texts := make([]string, len(list))
		done := make(chan int)
		for i, a := range list {
			sub := &client{c: c.c, w: c.w, port: c.port, tls: c.tls}
			go func() {
				a(sub)
				sub.hangUp()
				texts[i] = sub.out.String()
				done <- i
			}()
		}
		for range list {
			<-done
		}
		slices.Sort(texts)
		c.out.WriteString(strings.Join(texts, ""))
	}
}

// took tells when an action took less or more time than it may.
func took(atLeast, atMost time.Duration, a action) action {
	return func(c *client) {
		start := time.Now()
		a(c)
		if d := time.Since(start); d < atLeast || d > atMost {
			c.say("not within %v to %v", atLeast, atMost)
			fmt.Fprintf(os.Stderr, "%s %s took %v, not %v to %v\n", c.w.kind, c.c.slug(), d, atLeast, atMost)
		}
	}
}

// head makes the bytes of a request: "GET {p}" and fields, where "body=…" is the body. host and x-case are added.
func (c *client) head(line string, fields []string) string {
	var b strings.Builder
	b.WriteString(line + " HTTP/1.1\r\n")
	body, host := "", false
	for _, f := range fields {
		if t, ok := strings.CutPrefix(f, "body="); ok {
			body = t
			fmt.Fprintf(&b, "content-length: %d\r\n", len(t))
			continue
		}
		host = host || strings.HasPrefix(strings.ToLower(f), "host:")
		b.WriteString(f + "\r\n")
	}
	if !host {
		b.WriteString("host: " + c.host() + "\r\n")
	}
	b.WriteString("x-case: {c}\r\n\r\n" + body)
	return c.fill(b.String())
}

func (c *client) host() string {
	if c.c.vhost != "" {
		return c.c.slug() + ".test"
	}
	return "test"
}

// gunzip decompresses what an action gets.
func gunzip(a action) action {
	return func(c *client) {
		c.gzip = true
		a(c)
	}
}

// h1 sends a request and reads the answer.
func h1(line string, fields ...string) action {
	return func(c *client) {
		if c.dial(); c.conn == nil {
			return
		}
		io.WriteString(c.conn, c.head(line, fields))
		c.response(strings.HasPrefix(line, "HEAD "))
	}
}

// send sends a request, or bytes if the line has an end, and reads no answer.
func send(line string, fields ...string) action {
	return func(c *client) {
		if c.dial(); c.conn == nil {
			return
		}
		if strings.Contains(line, "\n") || len(fields) == 0 {
			io.WriteString(c.conn, c.fill(line))
			return
		}
		io.WriteString(c.conn, c.head(line, fields))
	}
}

// receive reads an answer.
func receive(c *client) { c.response(false) }

// raw sends bytes, reads one answer and waits whether the connection is closed then.
func raw(text string) action {
	return func(c *client) {
		if c.dial(); c.conn == nil {
			return
		}
		io.WriteString(c.conn, c.fill(text))
		c.response(false)
		c.closed(150 * time.Millisecond)
	}
}

// eof waits until the proxy closes.
func eof(c *client) { c.closed(patience) }

// closed tells whether the proxy closes within some time.
func (c *client) closed(within time.Duration) {
	if c.conn == nil {
		return
	}
	c.conn.SetReadDeadline(time.Now().Add(within))
	b, err := io.ReadAll(c.br)
	if len(b) > 0 {
		c.say("< more bytes")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.say("< open")
		c.conn.SetReadDeadline(time.Now().Add(patience))
		return
	}
	c.say("< closed")
	c.hangUp()
}

// halfClose sends FIN.
func halfClose(c *client) {
	if t, ok := c.conn.(*net.TCPConn); ok {
		t.CloseWrite()
	}
}

// response reads one answer, with those of status 1xx before it.
func (c *client) response(toHead bool) {
	if c.conn == nil {
		return
	}
	tp := textproto.NewReader(c.br)
	line, err := tp.ReadLine()
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.say("< nothing")
		} else { // by FIN or RST, which may overtake it
			c.say("< closed without an answer")
		}
		c.hangUp()
		return
	}
	var fields []string
	for {
		l, err := tp.ReadLine()
		if err != nil {
			c.say("< %s\n< (cut off in the head)", line)
			c.hangUp()
			return
		}
		if l == "" {
			break
		}
		fields = append(fields, l)
	}
	slices.Sort(fields)
	c.say("< %s", line)
	length, chunked, closing := -1, false, strings.HasPrefix(line, "HTTP/1.0")
	for _, f := range fields {
		if strings.HasPrefix(strings.ToLower(f), "date: ") {
			continue
		}
		c.say("<   %s", f)
		switch k, v, _ := strings.Cut(strings.ToLower(f), ": "); k {
		case "content-length":
			length, _ = strconv.Atoi(v)
		case "transfer-encoding":
			chunked = strings.HasSuffix(v, "chunked")
		case "connection":
			closing = closing || v == "close"
		}
	}
	code := strings.Fields(line + " 0 0")[1]
	switch {
	case code == "101":
		return
	case code[0] == '1':
		c.response(toHead)
		return
	case toHead, code == "204", code == "304":
	case chunked:
		c.chunks()
	case length >= 0:
		b := make([]byte, length)
		n, err := io.ReadFull(c.br, b)
		if n > 0 {
			c.say("< %s", show(string(b[:n])))
		}
		if err != nil {
			c.say("< (cut off)")
			c.hangUp()
		}
	default:
		b, err := io.ReadAll(c.br)
		if len(b) > 0 {
			c.say("< %s", show(string(b)))
		}
		c.say("< closed%s", map[bool]string{true: " late", false: ""}[errors.Is(err, os.ErrDeadlineExceeded)])
		c.hangUp()
	}
	if closing && c.conn != nil {
		c.closed(2 * time.Second)
	}
}

func (c *client) chunks() {
	tp := textproto.NewReader(c.br)
	var body bytes.Buffer
	defer func() {
		if c.conn == nil {
			c.say("< %s (cut off)", show(body.String()))
		}
	}()
	for {
		line, err := tp.ReadLine()
		if err != nil {
			c.hangUp()
			return
		}
		n, err := strconv.ParseInt(line, 16, 64)
		if err != nil {
			c.hangUp()
			return
		}
		if n == 0 {
			break
		}
		if _, err := io.CopyN(&body, c.br, n); err != nil {
			c.hangUp()
			return
		}
		tp.ReadLine()
	}
	text := body.String()
	if c.gzip {
		r, err := gzip.NewReader(&body)
		if err != nil {
			c.say("< no gzip: %v", err)
			return
		}
		b, err := io.ReadAll(r)
		text = fmt.Sprintf("gzip %d bytes %v", len(b), err)
	}
	c.say("< chunked %s", show(text))
	for {
		line, err := tp.ReadLine()
		if err != nil || line == "" {
			return
		}
		c.say("< trailer %s", line)
	}
}

// talk sends bytes on what is a tunnel by now and reads as many as are expected.
func talk(text string, n int) action {
	return func(c *client) {
		if c.conn == nil {
			return
		}
		io.WriteString(c.conn, text)
		b := make([]byte, n)
		n, err := io.ReadFull(c.br, b)
		c.say("< %s", show(string(b[:n])))
		if err != nil {
			c.say("< (cut off)")
		}
	}
}

// An h2Client is the client's end of an HTTP/2 connection.
type h2Client struct {
	fr   *http2.Framer
	enc  *hpack.Encoder
	buf  bytes.Buffer
	next uint32
}

func (c *client) dialH2() *h2Client {
	if c.dial(); c.conn == nil || c.h2 != nil {
		return c.h2
	}
	h := &h2Client{fr: http2.NewFramer(c.conn, c.br), next: 1}
	h.fr.AllowIllegalWrites = true
	h.enc = hpack.NewEncoder(&h.buf)
	h.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	io.WriteString(c.conn, http2.ClientPreface)
	h.fr.WriteSettings()
	c.h2 = h
	return h
}

// block encodes fields as "name: value".
func (h *h2Client) block(fields []string) []byte {
	h.buf.Reset()
	for _, f := range fields {
		i := strings.Index(f[1:], ":") + 1
		v := strings.TrimPrefix(f[i+1:], " ")
		h.enc.WriteField(hpack.HeaderField{Name: f[:i], Value: v})
	}
	return h.buf.Bytes()
}

// h2 sends a request, "GET {p}" and fields, and reads the answer. "body=…" is data, "trailer=name: value" a trailer.
func h2(line string, fields ...string) action {
	return func(c *client) {
		method, path, _ := strings.Cut(line, " ")
		list := []string{":method: " + method, ":scheme: http", ":path: " + path, ":authority: " + c.host()}
		list = slices.DeleteFunc(list, func(f string) bool {
			name := f[:strings.Index(f[1:], ":")+2]
			return slices.ContainsFunc(fields, func(g string) bool { return strings.HasPrefix(g, name+" ") }) || strings.HasSuffix(f, ": -")
		})
		h2Fields(append(append(list, fields...), "x-case: {c}")...)(c)
	}
}

// h2Fields sends a request with exactly these fields, in this order.
func h2Fields(fields ...string) action {
	return func(c *client) {
		h := c.dialH2()
		if h == nil {
			return
		}
		id := h.open(c, fields)
		h.answer(c, id)
	}
}

// open sends a request.
func (h *h2Client) open(c *client, fields []string) uint32 {
	id := h.next
	h.next += 2
	var head, trailer, data []string
	unfinished := false
	for _, f := range fields {
		f = c.fill(f)
		if t, ok := strings.CutPrefix(f, "trailer="); ok {
			trailer = append(trailer, t)
		} else if b, ok := strings.CutPrefix(f, "body="); ok {
			data = append(data, b)
		} else if f == "unfinished" {
			unfinished = true
		} else {
			// Pseudo-header fields that a case gives go first.
			if strings.HasPrefix(f, ":") && !slices.Contains(fields, "as it is") {
				i := slices.IndexFunc(head, func(s string) bool { return !strings.HasPrefix(s, ":") })
				if i < 0 {
					i = len(head)
				}
				head = slices.Insert(head, i, f)
			} else if f != "as it is" {
				head = append(head, f)
			}
		}
	}
	h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block(head), EndHeaders: true, EndStream: len(data)+len(trailer) == 0 && !unfinished})
	for i, d := range data {
		h.fr.WriteData(id, i == len(data)-1 && len(trailer) == 0 && !unfinished, []byte(d))
	}
	if len(trailer) > 0 {
		h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block(trailer), EndHeaders: true, EndStream: true})
	}
	return id
}

// answer reads frames until the stream ends.
func (h *h2Client) answer(c *client, id uint32) {
	var body bytes.Buffer
	flush := func() {
		if body.Len() > 0 {
			c.say("< %s", show(body.String()))
		}
		body.Reset()
	}
	c.conn.SetDeadline(time.Now().Add(patience))
	for {
		f, err := h.fr.ReadFrame()
		if err != nil {
			flush()
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				c.say("< nothing more")
			default:
				c.say("< connection closed")
			}
			c.hangUp()
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				h.fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				h.fr.WritePing(true, f.Data)
			}
		case *http2.GoAwayFrame:
			c.say("< GOAWAY %v", f.ErrCode)
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				flush()
				c.say("< RST_STREAM %v", f.ErrCode)
				return
			}
		case *http2.DataFrame:
			if f.StreamID != id {
				continue
			}
			body.Write(f.Data())
			if n := len(f.Data()); n > 0 {
				h.fr.WriteWindowUpdate(0, uint32(n))
				if !f.StreamEnded() {
					h.fr.WriteWindowUpdate(id, uint32(n))
				}
			}
			if f.StreamEnded() {
				flush()
				c.say("< end")
				return
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID != id {
				continue
			}
			flush()
			kind := "trailer "
			st := f.PseudoValue("status")
			if st != "" {
				c.say("< HTTP/2 %s", st)
				kind = "  "
			}
			var list []string
			for _, hf := range f.RegularFields() {
				if hf.Name != "date" {
					list = append(list, hf.Name+": "+hf.Value)
				}
			}
			slices.Sort(list)
			for _, l := range list {
				c.say("< %s%s", kind, l)
			}
			if f.StreamEnded() {
				c.say("< end")
				return
			}
		}
	}
}

// h2Start sends a request and does not wait for the answer; h2Rest waits.
func h2Start(line string, fields ...string) action {
	return func(c *client) {
		h := c.dialH2()
		if h == nil {
			return
		}
		method, path, _ := strings.Cut(line, " ")
		h.open(c, append([]string{":method: " + method, ":scheme: http", ":path: " + path, ":authority: " + c.host(), "x-case: {c}"}, fields...))
	}
}

// h2Rest reads the answer to the stream opened last.
func h2Rest(c *client) {
	if c.h2 != nil {
		c.h2.answer(c, c.h2.next-2)
	}
}

// h2Reset cancels the stream opened last.
func h2Reset(c *client) {
	if c.h2 != nil {
		c.h2.fr.WriteRSTStream(c.h2.next-2, http2.ErrCodeCancel)
	}
}

// h2Data sends data on the stream opened last.
func h2Data(text string, end bool) action {
	return func(c *client) {
		if c.h2 != nil {
			c.h2.fr.WriteData(c.h2.next-2, end, []byte(text))
		}
	}
}

// h2Raw does something with the framer and reads until the connection ends.
func h2Raw(f func(*h2Client)) action {
	return func(c *client) {
		if h := c.dialH2(); h != nil {
			f(h)
			h.answer(c, 1<<31-1)
		}
	}
}
