package http1

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"unsafe"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// nameTable has the characters of tokens, in lower case.
var nameTable = func() (t [256]byte) {
	for c := '0'; c <= '9'; c++ {
		t[c] = byte(c)
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c] = byte(c)
		t[c-'a'+'A'] = byte(c)
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = byte(c)
	}
	return t
}()

// authorityTable has the characters that hosts and ports are made of.
var authorityTable = func() (t [256]bool) {
	for c := range t {
		t[c] = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("-._~%!$&'()*+;=:[]", byte(c)) >= 0
	}
	return t
}()

// isName reports whether s is a name in lower case.
func isName(s string) bool {
	for i := range len(s) {
		if c := s[i]; nameTable[c] != c || c == 0 {
			return false
		}
	}
	return s != ""
}

// isToken reports whether s is a token, such as a method.
func isToken(s string) bool {
	for i := range len(s) {
		if nameTable[s[i]] == 0 {
			return false
		}
	}
	return s != ""
}

// isValue reports whether s can be the value of a field.
func isValue(s string) bool {
	b := unsafe.Slice(unsafe.StringData(s), len(s)) // is only read
	for i := 0; ; i++ {
		if i = endOfValue(b, i); i == len(b) {
			return true
		}
		if b[i] != '\t' {
			return false
		}
	}
}

// isTarget reports whether s can stand in a request line.
func isTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}

// isAuthority reports whether s is a host with or without a port.
func isAuthority(s string) bool {
	for i := range len(s) {
		if !authorityTable[s[i]] {
			return false
		}
	}
	host, port := s, ""
	if strings.HasPrefix(s, "[") {
		i := strings.IndexByte(s, ']')
		if i < 0 {
			return false
		}
		host, port = s[1:i], s[i+1:]
		if port != "" && port[0] != ':' {
			return false
		}
		for i := range len(host) {
			if c := host[i]; nameTable[c] == 0 && c != ':' {
				return false
			}
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i:]
	}
	if host == "" || strings.ContainsAny(host, "[]") {
		return false
	}
	if port != "" {
		port = port[1:]
	}
	for i := range len(port) {
		if port[i] < '0' || port[i] > '9' {
			return false
		}
	}
	return true
}

// endOfValue returns the index of the first control character of b from i on, or len(b).
func endOfValue(b []byte, i int) int {
	const ones = 0x0101010101010101
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		del := x ^ 0x7f*ones
		// The lowest bit that is set belongs to the first byte that is below 0x20 or is 0x7f.
		if m := ((x-0x20*ones)&^x | (del-ones)&^del) & (0x80 * ones); m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for i < len(b) && b[i] >= 0x20 && b[i] != 0x7f {
		i++
	}
	return i
}

// text returns b as a string that is good as long as b is.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// trim removes white space around s.
func trim(s string) string {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// A parser reads the fields of a head or of trailers and takes out what concerns the connection alone.
type parser struct {
	maxFields   int
	underscores Underscores
	spell       bool // keep spellings

	header *message.Header
	arena  *message.Arena
	pos    int // where to go on in the buffer
	lines  int // fields read
	parsed

	named []string // names that "connection" lists
}

// parsed is what a parser found.
type parsed struct {
	hosts     int
	host      string
	length    int64 // -1: not said
	encodings int   // fields "transfer-encoding"
	chunked   bool  // one of which was just "chunked"
	close     bool  // options of the connection
	keepAlive bool
	upgrade   bool
	upgrades  int
	protocol  string // of "upgrade"
	trailers  bool   // "te" has trailers
}

func (p *parser) reset(h *message.Header, a *message.Arena, pos int) {
	p.forget()
	p.header, p.arena, p.pos, p.lines = h, a, pos, 0
}

// forget drops what was found, which would keep the buffer that it was found in.
func (p *parser) forget() {
	p.header, p.arena = nil, nil
	p.parsed = parsed{length: -1}
	clear(p.named)
	p.named = p.named[:0]
}

// fields reads fields from b, whose strings will point there, until the line that ends them. Without that it reports
// that it is not done, and goes on with a longer b when it is called again.
func (p *parser) fields(b []byte) (done bool, bad *BadRequest) {
	for i := p.pos; ; p.pos = i {
		if i+1 >= len(b) {
			if i < len(b) && b[i] == '\n' {
				return false, errCharacters
			}
			return false, nil
		}
		if b[i] == '\r' {
			if b[i+1] != '\n' {
				return false, errCharacters
			}
			p.pos = i + 2
			return true, nil
		}
		j := i
		var spelling string
		if p.spell {
			spelling = p.spelling(b[i:])
		}
		for ; j < len(b); j++ {
			c := nameTable[b[j]]
			if c == 0 {
				break
			}
			b[j] = c
		}
		if j == len(b) {
			return false, nil
		}
		if b[j] != ':' || i == j {
			return false, errCharacters // obs-fold and space before the colon, too
		}
		name := b[i:j]
		for j++; j < len(b) && (b[j] == ' ' || b[j] == '\t'); j++ {
		}
		k := endOfValue(b, j)
		for k < len(b) && b[k] == '\t' {
			k = endOfValue(b, k+1)
		}
		if k+1 >= len(b) && (k == len(b) || b[k] == '\r') {
			return false, nil
		}
		if b[k] != '\r' || b[k+1] != '\n' {
			return false, errCharacters
		}
		i = k + 2
		for k > j && (b[k-1] == ' ' || b[k-1] == '\t') {
			k--
		}
		if p.lines++; p.lines > p.maxFields {
			return false, errTooMany
		}
		if spelling != "" {
			p.header.KeepSpelling(spelling)
		}
		if bad := p.field(text(name), text(b[j:k])); bad != nil {
			return false, bad
		}
	}
}

// spelling returns a copy of the name at the start of b, if it has letters in upper case.
func (p *parser) spelling(b []byte) string {
	upper := false
	for i, c := range b {
		l := nameTable[c]
		if l == 0 {
			if upper {
				return p.arena.Bytes(b[:i])
			}
			break
		}
		upper = upper || l != c
	}
	return ""
}

func (p *parser) field(name, value string) *BadRequest {
	switch name {
	case "host":
		p.hosts++
		p.host = value
	case "content-length":
		n, ok := decimal(value)
		if !ok || p.length >= 0 {
			return errLength
		}
		p.header.Add(name, value)
		p.length = n
	case "transfer-encoding":
		p.encodings++
		p.chunked = strings.EqualFold(value, "chunked")
	case "connection":
		return p.connection(value)
	case "keep-alive", "proxy-connection":
	case "upgrade":
		p.upgrades++
		p.protocol = value
	case "te":
		p.trailers = p.trailers || hasTrailers(value)
	default:
		if p.underscores != AllowUnderscores && strings.IndexByte(name, '_') >= 0 {
			if p.underscores == RejectUnderscores {
				return errUnderscore
			}
			return nil
		}
		p.header.Add(name, value)
	}
	return nil
}

// connection reads the options of a connection.
func (p *parser) connection(value string) *BadRequest {
	for value != "" {
		option, rest, _ := strings.Cut(value, ",")
		value = rest
		option = trim(option)
		switch {
		case option == "":
		case equal(option, "keep-alive"):
			p.keepAlive = true
		case equal(option, "close"):
			p.close = true
		case equal(option, "upgrade"):
			p.upgrade = true
		case equal(option, "te"), equal(option, "proxy-connection"), equal(option, "transfer-encoding"):
			// are dealt with anyway
		case !isToken(option), forbidden(option):
			return errConnection
		default:
			p.named = append(p.named, option)
		}
	}
	return nil
}

// forbidden reports whether a peer must not have a field removed: those say what the request is or where it came from.
func forbidden(option string) bool {
	for _, name := range [...]string{"host", "content-length", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-client-cert"} {
		if equal(option, name) {
			return true
		}
	}
	return false
}

// equal compares without regard to case. The second is in lower case.
func equal(s, lower string) bool {
	return len(s) == len(lower) && strings.EqualFold(s, lower)
}

func hasTrailers(te string) bool {
	for te != "" {
		coding, rest, _ := strings.Cut(te, ",")
		te = rest
		coding, _, _ = strings.Cut(coding, ";")
		if equal(trim(coding), "trailers") {
			return true
		}
	}
	return false
}

// finish removes what was for the connection alone.
func (p *parser) finish() {
	for _, name := range p.named {
		p.header.DelFunc(func(f message.Field) bool { return equal(name, f.Name) })
	}
	if p.trailers {
		p.header.Add("te", "trailers")
	}
}

// decimal reads a length.
func decimal(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = 10*n + int64(c)
	}
	return n, true
}
