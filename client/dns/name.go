package dns

import (
	"encoding/hex"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// A kind is what a name in the zone asks about.
type kind string

const (
	kindNone    kind = ""
	kindService kind = "service"
	kindConnect kind = "connect"
	kindVirtual kind = "virtual"
	kindIngress kind = "ingress"
	kindNode    kind = "node"
	kindQuery   kind = "query"
	kindAddr    kind = "addr"
)

// A subject is a parsed name: spec/dns.md section 2.
type subject struct {
	kind  kind
	parts []string // lower case, left of the kind
	dc    string   // empty means the agent's
	peer  string
}

// parseName parses a name with its zone removed, for a question of type qtype. It reports whether the form is valid.
func parseName(name string, qtype uint16) (subject, bool) {
	name = strings.ToLower(name)
	if name == "" {
		return subject{}, false
	}
	labels := split(name)
	for i := len(labels) - 1; i >= 0; i-- {
		k, parts := kindNone, labels[:i]
		switch label := kind(labels[i]); label {
		case kindService, kindConnect, kindVirtual, kindIngress, kindNode, kindQuery, kindAddr:
			k = label
		default:
			if qtype == dns.TypeSRV && strings.HasPrefix(labels[i], "_") {
				k, parts = kindService, labels[:i+1]
			}
		}
		if k == kindNone {
			continue
		}
		s := subject{kind: k, parts: parts}
		if len(parts) == 0 || !s.suffix(labels[i+1:]) {
			return subject{}, false
		}
		return s, true
	}
	return subject{}, false
}

// suffix reads what stands right of the kind and reports whether it is valid.
func (s *subject) suffix(labels []string) bool {
	switch {
	case s.kind == kindAddr || len(labels) == 0:
		return true
	case s.kind == kindQuery:
		s.dc = labels[0]
		return len(labels) == 1
	case len(labels) == 1 && s.kind == kindVirtual:
		s.peer = labels[0]
		return true
	case len(labels) == 1:
		s.dc = labels[0]
		return true
	case len(labels) != 2 && len(labels) != 4:
		return false
	}
	for ; len(labels) > 0; labels = labels[2:] { // the last pair of a kind counts
		switch labels[1] {
		case "dc":
			s.dc = labels[0]
		case "peer":
			s.peer = labels[0]
		default:
			return false
		}
	}
	return s.dc == "" || s.peer == ""
}

// service returns the service name and the one tag of a service question; the tag is empty for none.
func (s subject) service() (name, tag string) {
	if n := len(s.parts); n == 2 && strings.HasPrefix(s.parts[0], "_") && strings.HasPrefix(s.parts[1], "_") {
		if tag = s.parts[1][1:]; tag == "tcp" {
			tag = ""
		}
		return s.parts[0][1:], tag
	}
	last := len(s.parts) - 1
	return s.parts[last], strings.Join(s.parts[:last], ".")
}

// query returns the name or ID of a query question. In the form of RFC 2782 the last part, a protocol, does not count.
func (s subject) query() string {
	parts := s.parts
	if n := len(parts); n >= 2 && strings.HasPrefix(parts[0], "_") && strings.HasPrefix(parts[n-1], "_") {
		return strings.Join(parts[:n-1], ".")[1:]
	}
	return strings.Join(parts, ".")
}

// encodeAddr writes an address as the label that decodeAddr reads.
func encodeAddr(ip netip.Addr) string { return hex.EncodeToString(ip.AsSlice()) }

func decodeAddr(label string) (netip.Addr, bool) {
	raw, err := hex.DecodeString(label)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(raw)
}

func isReverse(name string) bool {
	n := strings.ToLower(name)
	return strings.HasSuffix(n, ".arpa.") || n == "arpa."
}

// reverseAddr returns the address a name under in-addr.arpa or ip6.arpa stands for.
func reverseAddr(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return ip, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var digits [32]byte
	for i := range digits {
		if i > 0 && rest[62-2*i+1] != '.' {
			return netip.Addr{}, false
		}
		digits[i] = rest[62-2*i]
	}
	return decodeAddr(string(digits[:]))
}

// txtForm is how a pair of node meta stands in a TXT record: RFC 1464, except that keys beginning rfc1035- give the
// value alone.
func txtForm(key, value string) string {
	if len(key) >= 8 && strings.EqualFold(key[:8], "rfc1035-") {
		return value
	}
	var b strings.Builder
	lead := len(key) - len(strings.TrimLeft(key, " "))
	trail := len(strings.TrimRight(key, " "))
	for i := range len(key) {
		switch c := key[i]; {
		case c == '`' || c == '=', c == ' ' && (i < lead || i >= trail):
			b.WriteByte('`')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('=')
	b.WriteString(strings.ReplaceAll(value, "`", "``"))
	return b.String()
}

// label reports whether s can stand as one label of a host name.
func label(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// escaped reports whether the byte at i of a name in its written form is escaped.
func escaped(name string, i int) bool {
	n := 0
	for i--; i >= 0 && name[i] == '\\'; i-- {
		n++
	}
	return n%2 == 1
}

// split returns the labels of a name in its written form, as they are meant: \. and the like are one byte, as is \DDD.
func split(name string) []string {
	if !strings.Contains(name, `\`) {
		return strings.Split(name, ".")
	}
	var labels []string
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '.':
			labels = append(labels, b.String())
			b.Reset()
		case c == '\\' && i+3 < len(name) && digits(name[i+1:i+4]):
			b.WriteByte((name[i+1]-'0')*100 + (name[i+2]-'0')*10 + name[i+3] - '0')
			i += 3
		case c == '\\' && i+1 < len(name):
			i++
			b.WriteByte(name[i])
		default:
			b.WriteByte(c)
		}
	}
	return append(labels, b.String())
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// written returns what the catalog has in the form that names and texts are written in. Dots stand between labels.
func written(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }

// isName reports whether s can be the name in a record.
func isName(s string) bool {
	_, ok := dns.IsDomainName(s)
	return ok
}
