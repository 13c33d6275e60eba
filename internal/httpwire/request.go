package httpwire

import (
	"context"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
)

// A request is the request being served on a connection, its parts reused from one to the next.
type request struct {
	method string
	target string
	host   string
	url    url.URL
	close  bool // the client wants the connection closed after the answer
	length int64
	body   body
}

// methods are those read here, so that their names need no copy.
var methods = map[string]string{"GET": "GET", "PUT": "PUT", "POST": "POST", "DELETE": "DELETE", "HEAD": "HEAD", "OPTIONS": "OPTIONS", "PATCH": "PATCH"}

// names are headers that clients send, in the form a header map has them, by the forms they send.
var names = func() map[string]string {
	m := map[string]string{}
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control", "Connection", "Content-Length",
		"Content-Type", "Cookie", "Host", "If-None-Match", "Origin", "Pragma", "Referer", "User-Agent", "X-Consul-Token",
		"X-Forwarded-For", "X-Requested-With",
	} {
		m[name], m[strings.ToLower(name)] = name, name
	}
	return m
}()

// Bytes of the parts of a head (RFC 9110 section 5.6.2, RFC 3986).
var (
	tokenByte  = table("!#$%&'*+-.^_`|~", true)
	pathByte   = table("-._~/:@&=+$,", true) // those that url.URL keeps as they are
	queryByte  = rangeTable(0x21, 0x7e)
	valueByte  = func() [256]bool { t := rangeTable(0x20, 0xff); t['\t'], t[0x7f] = true, false; return t }()
	hostByte   = table("-._:[]", true)
	digitsOnly = table("0123456789", false)
)

func table(punctuation string, alnum bool) (t [256]bool) {
	for i := range punctuation {
		t[punctuation[i]] = true
	}
	for c := range 128 {
		if alnum && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
			t[c] = true
		}
	}
	return t
}

func rangeTable(from, to int) (t [256]bool) {
	for c := from; c <= to; c++ {
		t[c] = true
	}
	return t
}

func all(s string, t *[256]bool) bool {
	for i := range len(s) {
		if !t[s[i]] {
			return false
		}
	}
	return true
}

// parse reads a head. It reports false for one that is net/http's business, leaving nothing behind.
func (q *request) parse(c *conn, head []byte) bool {
	text := string(head[:len(head)-2]) // every line ends in CRLF; the empty one is left out
	line, text, _ := strings.Cut(text, "\r\n")
	method, line, ok := strings.Cut(line, " ")
	if !ok {
		return false
	}
	target, version, ok := strings.Cut(line, " ")
	if !ok || version != "HTTP/1.1" || target == "" || target[0] != '/' {
		return false
	}
	if q.method, ok = methods[method]; !ok {
		return false
	}
	q.target = target
	if !q.parseTarget() {
		return false
	}
	clear(c.reused)
	c.values = c.values[:0]
	q.host, q.close, q.length = "", false, 0
	hasHost, hasLength := false, false
	for text != "" {
		line, text, _ = strings.Cut(text, "\r\n")
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" {
			return false
		}
		value = trim(value)
		if !all(value, &valueByte) {
			return false
		}
		known, ok := names[name]
		if !ok {
			if !all(name, &tokenByte) {
				return false
			}
			known = textproto.CanonicalMIMEHeaderKey(name)
		}
		switch known {
		case "Host":
			if hasHost || value == "" || !all(value, &hostByte) {
				return false
			}
			q.host, hasHost = value, true
			continue
		case "Content-Length":
			n, err := strconv.ParseInt(value, 10, 63)
			if hasLength || value == "" || !all(value, &digitsOnly) || err != nil {
				return false
			}
			q.length, hasLength = n, true
		case "Connection":
			switch strings.ToLower(value) {
			case "keep-alive":
			case "close":
				q.close = true
			default:
				return false
			}
		case "Transfer-Encoding", "Expect", "Upgrade", "Trailer", "Te", "Http2-Settings", "Proxy-Connection":
			return false
		case "Pragma":
			return false // net/http derives Cache-Control from it
		}
		c.values = append(c.values, value)
		if old := c.reused[known]; old != nil {
			c.reused[known] = append(old, value)
			continue
		}
		n := len(c.values)
		c.reused[known] = c.values[n-1 : n : n]
	}
	return hasHost
}

// parseTarget reads the target of a request into the URL.
func (q *request) parseTarget() bool {
	p, raw, _ := strings.Cut(q.target, "?")
	if all(p, &pathByte) && all(raw, &queryByte) {
		q.url = url.URL{Path: p, RawQuery: raw}
		q.url.ForceQuery = raw == "" && len(p) < len(q.target)
		return true
	}
	u, err := url.ParseRequestURI(q.target)
	if err != nil {
		return false
	}
	q.url = *u
	return true
}

// trim removes the blanks around a header's value.
func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// make returns the request for the handler. It and its URL are new each time: handlers hand them on.
func (q *request) make(c *conn, ctx context.Context) *http.Request {
	u := new(url.URL)
	*u = q.url
	r := http.Request{
		Method: q.method, URL: u, RequestURI: q.target, Host: q.host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: c.reused, ContentLength: q.length, Close: q.close, RemoteAddr: c.remote, Body: http.NoBody,
	}
	q.body = body{c: c, left: q.length, pace: pace{timeout: c.f.s.cfg.BodyTimeout}}
	if q.length > 0 {
		r.Body = &q.body
	}
	return r.WithContext(ctx)
}
