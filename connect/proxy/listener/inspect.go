package listener

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
)

// maxHello bounds the bytes of a ClientHello, records included.
const maxHello = 16 << 10

var (
	errHelloTooLarge = errors.New("ClientHello is too large")
	errNotHello      = errors.New("not a ClientHello")
	errMore          = errors.New("more bytes are needed")
)

// A hello is what a ClientHello tells.
type hello struct {
	server    string // lower case
	protocols []string
}

// inspectTLS reads from conn until it is clear whether the peer speaks TLS and,
// if so, what it asks for. The bytes read come back, to be read again.
func inspectTLS(conn net.Conn) (h *hello, seen []byte, err error) {
	buf := make([]byte, 0, 1024)
	for {
		h, err = parseHello(buf)
		if !errors.Is(err, errMore) {
			break
		}
		if len(buf) == maxHello {
			return nil, buf, errHelloTooLarge
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(4*cap(buf), maxHello)), buf...)
		}
		n, rerr := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n == 0 && rerr != nil {
			return nil, buf, rerr
		}
	}
	if err != nil {
		return nil, buf, err
	}
	return h, buf, nil
}

// parseHello parses the records at the start of a TLS connection. It returns
// errMore if b is the beginning of a ClientHello, and errNotHello if it is not.
func parseHello(b []byte) (*hello, error) {
	// Records are joined: a ClientHello may span several. RFC 8446 section 5.1.
	var msg []byte
	for rest := b; ; {
		if len(rest) > 0 && rest[0] != 22 || len(rest) > 1 && rest[1] != 3 {
			return nil, errNotHello
		}
		if len(rest) < 5 {
			return nil, errMore
		}
		n := int(binary.BigEndian.Uint16(rest[3:]))
		if n == 0 || n > 16<<10 {
			return nil, errNotHello
		}
		body := rest[5:]
		part := body[:min(n, len(body))]
		if msg == nil && n <= len(body) {
			msg = part // one record, the usual case, needs no copy
		} else {
			msg = append(msg[:len(msg):len(msg)], part...)
		}
		if len(msg) > 0 && msg[0] != 1 {
			return nil, errNotHello
		}
		if len(msg) >= 4 {
			size := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
			if size > maxHello {
				return nil, errHelloTooLarge
			}
			if len(msg) >= 4+size {
				return parseHelloBody(msg[4 : 4+size])
			}
		}
		if n > len(body) {
			return nil, errMore
		}
		rest = body[n:]
	}
}

// A cursor takes fields off a message. Once a field is missing all are.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	x := c.b[:n]
	c.b = c.b[n:]
	return x
}

// vector takes a length of the given number of bytes and that many bytes.
func (c *cursor) vector(size int) cursor {
	n := 0
	for _, x := range c.take(size) {
		n = n<<8 | int(x)
	}
	return cursor{b: c.take(n), bad: c.bad}
}

func (c *cursor) uint16() int {
	b := c.take(2)
	if b == nil {
		return 0
	}
	return int(binary.BigEndian.Uint16(b))
}

// parseHelloBody parses the body of RFC 8446 section 4.1.2.
func parseHelloBody(b []byte) (*hello, error) {
	c := cursor{b: b}
	c.take(2 + 32) // version, random
	c.vector(1)    // session
	c.vector(2)    // cipher suites
	c.vector(1)    // compression
	h := &hello{}
	if !c.bad && len(c.b) == 0 {
		return h, nil // no extensions
	}
	for ext := c.vector(2); !c.bad && len(ext.b) > 0; {
		kind := ext.uint16()
		data := ext.vector(2)
		if ext.bad {
			return nil, errNotHello
		}
		switch kind {
		case 0: // server_name, RFC 6066 section 3
			for list := data.vector(2); len(list.b) > 0; {
				t := list.take(1)
				name := list.vector(2)
				if list.bad {
					return nil, errNotHello
				}
				if t[0] == 0 && h.server == "" {
					h.server = strings.ToLower(string(name.b))
				}
			}
		case 16: // ALPN, RFC 7301
			for list := data.vector(2); len(list.b) > 0; {
				name := list.vector(1)
				if list.bad {
					return nil, errNotHello
				}
				h.protocols = append(h.protocols, string(name.b))
			}
		}
		if data.bad {
			return nil, errNotHello
		}
	}
	if c.bad {
		return nil, errNotHello
	}
	return h, nil
}

// sniffHTTP tells the version of HTTP that the first bytes are of, or "".
func sniffHTTP(b []byte) string {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	if strings.HasPrefix(preface, string(b)) || strings.HasPrefix(string(b), preface) {
		if len(b) >= len(preface) {
			return "h2c"
		}
		return ""
	}
	line, _, ok := strings.Cut(string(b), "\r\n")
	if !ok {
		return ""
	}
	switch {
	case strings.HasSuffix(line, " HTTP/1.1"):
		return "http/1.1"
	case strings.HasSuffix(line, " HTTP/1.0"):
		return "http/1.0"
	}
	return ""
}

// inspectHTTP reads on until a request line or the preface of HTTP/2 is
// complete, or it is clear that there is none.
func inspectHTTP(conn net.Conn, seen []byte) (string, []byte, error) {
	const most = 8 << 10
	for {
		if v := sniffHTTP(seen); v != "" {
			return v, seen, nil
		}
		if len(seen) >= most || len(seen) > 0 && !plausibleHTTP(seen) {
			return "", seen, nil
		}
		chunk := make([]byte, 1024)
		n, err := conn.Read(chunk)
		seen = append(seen, chunk[:n]...)
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				return "", seen, nil
			}
			return "", seen, err
		}
	}
}

// plausibleHTTP reports whether b may be the start of a request line.
func plausibleHTTP(b []byte) bool {
	for _, c := range b[:min(len(b), 24)] {
		if c == ' ' {
			break
		}
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '_' {
			return false
		}
	}
	line, _, ended := strings.Cut(string(b), "\r\n")
	return !ended || strings.Contains(line, " HTTP/")
}
