package http2

import (
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// A block is a header block while it is decoded.
type block struct {
	header   *message.Header
	arena    *message.Arena
	request  bool
	trailers bool

	method, scheme, authority, path, protocol, status string

	seen    uint16 // kinds of pseudo-headers
	host    string
	hosts   int
	length  int64 // -1: not said
	cookies int
	expect  bool
	fields  int
	max     int
	many    bool   // there are more than max
	bad     string // why the message is malformed
}

// decodeBlock decodes a block into c.blk. Whole is false if it is longer than may be.
func (c *conn) decodeBlock(p []byte, h *message.Header, a *message.Arena, request, trailers bool) (whole bool, err error) {
	c.blk = block{header: h, arena: a, request: request, trailers: trailers, length: -1, max: c.opt.MaxHeaders}
	whole, err = c.dec.decode(p, a, c.opt.MaxHeaderBytes, c.emitFn)
	if err == nil && c.blk.cookies > 1 && c.blk.bad == "" {
		c.blk.joinCookies()
	}
	return whole, err
}

// skipBlock decodes a block for the sake of the table alone.
func (c *conn) skipBlock(p []byte) error {
	var a message.Arena
	_, err := c.dec.decode(p, &a, 0, func(*field) {})
	return err
}

// emit takes a decoded field.
func (c *conn) emit(f *field) {
	b := &c.blk
	if b.bad != "" {
		return
	}
	if b.fields++; b.fields > b.max {
		b.many = true
		return
	}
	if f.bad {
		b.bad = "http2.invalid_header_value"
		return
	}
	value := trim(f.value)
	switch f.kind {
	case kindPlain:
	case kindMethod:
		b.pseudo(f, &b.method, true)
		return
	case kindScheme:
		b.pseudo(f, &b.scheme, true)
		return
	case kindAuthority:
		b.pseudo(f, &b.authority, true)
		return
	case kindPath:
		b.pseudo(f, &b.path, true)
		return
	case kindProtocol:
		b.pseudo(f, &b.protocol, true)
		return
	case kindStatus:
		b.pseudo(f, &b.status, false)
		return
	case kindConnection:
		b.bad = "http2.connection_header"
		return
	case kindTE:
		if value != "trailers" {
			b.bad = "http2.te"
			return
		}
		if b.trailers {
			return
		}
	case kindHost:
		if !b.trailers && b.request {
			b.host = value
			b.hosts++
		}
		if b.request || b.trailers {
			return
		}
	case kindLength:
		if b.trailers {
			return // what it says would come too late to be true
		}
		n, ok := number(value)
		if !ok || b.length >= 0 && b.length != n {
			b.bad = "http2.content_length"
			return
		}
		if b.length >= 0 {
			return
		}
		b.length = n
	case kindCookie:
		b.cookies++
	case kindExpect:
		if b.trailers {
			return
		}
		b.expect = b.expect || equalFold(value, "100-continue")
	case kindBad:
		b.bad = "http2.invalid_header_name"
		return
	}
	b.seen |= 1 // pseudo-headers may not follow
	b.header.Add(f.name, value)
}

func (b *block) pseudo(f *field, to *string, request bool) {
	bit := uint16(1) << f.kind
	if b.trailers || b.request != request || b.seen&(bit|1) != 0 {
		b.bad = "http2.pseudo_header"
		return
	}
	b.seen |= bit
	*to = f.value
}

func (b *block) has(k kind) bool { return b.seen&(1<<k) != 0 }

// joinCookies makes one field of several: RFC 9113, section 8.2.3.
func (b *block) joinCookies() {
	v := b.arena.Begin()
	first := true
	for s := range b.header.Values("cookie") {
		if !first {
			v = append(v, "; "...)
		}
		first = false
		v = append(v, s...)
	}
	b.header.Set("cookie", b.arena.End(v))
}

// head makes a request of the block and reports why that is none; empty if it is one.
func (b *block) head(r *message.Request, end, connect bool) string {
	if b.bad != "" {
		return b.bad
	}
	const required = 1<<kindScheme | 1<<kindPath
	switch {
	case b.method == "" || !all(b.method, classMethod):
		return "http2.method"
	case b.method == "CONNECT" && !b.has(kindProtocol):
		if b.seen&required != 0 || b.authority == "" {
			return "http2.connect"
		}
	case b.has(kindProtocol) && (b.method != "CONNECT" || !connect || b.authority == "" || b.protocol == "" || !all(b.protocol, classMethod)):
		return "http2.protocol"
	case b.seen&required != required || b.scheme == "" || b.path == "":
		return "http2.missing_pseudo_header"
	case !all(b.scheme, classScheme) || !all(b.path, classPath):
		return "http2.invalid_pseudo_header"
	case b.path[0] != '/' && !(b.path == "*" && b.method == "OPTIONS"):
		return "http2.path"
	}
	if !all(b.authority, classAuthority) {
		return "http2.authority"
	}
	if b.hosts > 0 {
		if b.hosts > 1 || !all(b.host, classAuthority) || b.authority != "" && !equalFold(b.authority, b.host) {
			return "http2.host"
		}
		if b.authority == "" {
			b.authority = b.host
		}
	}
	if end && b.length > 0 {
		return "http2.content_length"
	}
	r.Version = message.HTTP2
	r.Method, r.Scheme, r.Authority, r.Path = b.method, lower(b.scheme, b.arena), b.authority, b.path
	r.ContentLength, r.Expect100 = b.length, b.expect
	if end {
		r.ContentLength = 0
	}
	if b.has(kindProtocol) {
		r.Method, r.Upgrade = "GET", lower(b.protocol, b.arena)
	}
	return ""
}

// reply makes the head of a response of the block and reports why that is none.
func (b *block) reply(r *message.Response) string {
	if b.bad != "" {
		return b.bad
	}
	code, ok := number(b.status)
	if !ok || len(b.status) != 3 || code < 100 || code == 101 || code > 999 {
		return "http2.status"
	}
	r.Version, r.Status, r.ContentLength = message.HTTP2, int(code), b.length
	return ""
}
