package http2

import "github.com/sarnmesh/sarn/connect/proxy/message"

// A kind tells fields apart that mean something to the codec.
type kind uint8

const (
	kindPlain kind = iota
	kindMethod
	kindScheme
	kindAuthority
	kindPath
	kindProtocol
	kindStatus
	kindConnection // a field that speaks of a connection and must not appear: RFC 9113, section 8.2.2
	kindTE
	kindHost
	kindLength
	kindCookie
	kindExpect
	kindBad // not a name that a field may have
)

// kindOf classifies the name of a field.
func kindOf(name string) kind {
	if len(name) > 0 && name[0] == ':' {
		switch name {
		case ":method":
			return kindMethod
		case ":scheme":
			return kindScheme
		case ":authority":
			return kindAuthority
		case ":path":
			return kindPath
		case ":protocol":
			return kindProtocol
		case ":status":
			return kindStatus
		}
		return kindBad
	}
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return kindConnection
	case "te":
		return kindTE
	case "host":
		return kindHost
	case "content-length":
		return kindLength
	case "cookie":
		return kindCookie
	case "expect":
		return kindExpect
	}
	if message.KnownName(name) != 0 {
		return kindPlain
	}
	if name == "" {
		return kindBad
	}
	for i := range len(name) {
		if classes[name[i]]&className == 0 {
			return kindBad
		}
	}
	return kindPlain
}

// The classes of bytes.
const (
	className      = 1 << iota // tokens without upper-case letters
	classMethod                // tokens
	classValue                 // what may stand in a value
	classPath                  // what may stand in a path: visible
	classAuthority             // what may stand in an authority: RFC 3986 without user information
	classScheme
)

// classes is made before what is made with it, as an init function would not be.
var classes = func() (classes [256]uint8) {
	for i := range classes {
		c := byte(i)
		lower, upper, digit := c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9'
		in := func(set string) bool {
			for i := range len(set) {
				if set[i] == c {
					return true
				}
			}
			return false
		}
		token := lower || upper || digit || in("!#$%&'*+-.^_`|~")
		for _, k := range []struct {
			is    bool
			class uint8
		}{
			{token && !upper, className},
			{token, classMethod},
			{c >= ' ' && c != 0x7f || c == '\t', classValue},
			{c > ' ' && c != 0x7f, classPath},
			{lower || upper || digit || in("-._~!$&'()*+,;=:[]%"), classAuthority},
			{lower || upper || digit || in("+-."), classScheme},
		} {
			if k.is {
				classes[i] |= k.class
			}
		}
	}
	return classes
}()

// all reports whether every byte of s is of a class.
func all(s string, class uint8) bool {
	for i := range len(s) {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

// trim removes white space around a value. RFC 9113, section 8.2.1, wants such a field refused; but clients send it,
// and without it every hop sees the same.
func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// number parses what consists of digits alone and fits.
func number(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	n := int64(0)
	for i := range len(s) {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + int64(c)
	}
	return n, true
}

// lower returns s in lower case, from the arena if that differs.
func lower(s string, a *message.Arena) string {
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' {
			b := append(a.Begin(), s...)
			for j := range b {
				if c := b[j]; c >= 'A' && c <= 'Z' {
					b[j] = c + 'a' - 'A'
				}
			}
			return a.End(b)
		}
	}
	return s
}

// equalFold compares without regard to the case of ASCII letters.
func equalFold(s, t string) bool {
	if len(s) != len(t) {
		return false
	}
	for i := range len(s) {
		a, b := s[i], t[i]
		if a >= 'A' && a <= 'Z' {
			a += 'a' - 'A'
		}
		if b >= 'A' && b <= 'Z' {
			b += 'a' - 'A'
		}
		if a != b {
			return false
		}
	}
	return true
}
