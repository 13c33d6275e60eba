package accesslog

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// An Entry is what a log line can tell about a connection. A field that is
// empty was not known, and shows as "-" in text and null in JSON.
type Entry struct {
	Start                   time.Time
	Duration                time.Duration
	BytesReceived           uint64 // from downstream
	BytesSent               uint64 // to downstream
	UpstreamReceived        uint64
	UpstreamSent            uint64
	Flags                   Flags
	CloseDetails            string // why the proxy closed the connection
	ConnectionID            uint64
	UpstreamHost            string // address of the chosen host
	UpstreamHostName        string
	UpstreamCluster         string
	UpstreamLocal           string
	UpstreamFailure         string // text of the transport failure
	Attempts                int
	DownstreamLocal         string
	DownstreamRemote        string
	DownstreamDirect        string
	DownstreamFailure       string
	ServerName              string
	RouteName               string
	FilterChain             string
	PeerURIs, PeerDNS       []string
	PeerSubject, PeerIssuer string
	PeerSerial              string
	PeerFingerprint         string
	LocalURIs               []string
	TLSVersion, TLSCipher   string

	HTTP *HTTP // nil if the line is about a connection
}

// HTTP is what a log line can tell about a request besides what it tells about its connection. Times are since
// Entry.Start; -1 means that it did not happen.
type HTTP struct {
	Request         *message.Request
	Response        *message.Response // nil if there was none
	RequestTrailer  *message.Header   // nil if there were none
	ResponseTrailer *message.Header

	Status           int    // sent downstream; 0 if nothing was
	Details          string // why this status: "via_upstream", "route_not_found"
	UpstreamProtocol message.Version
	ClusterMetadata  model.Metadata
	RouteMetadata    model.Metadata
	HostMetadata     model.Metadata
	VirtualHost      string
	VirtualCluster   string
	LocalBody        string // body of a reply of the proxy's own
	StreamID         uint64
	Rule             string // policy that decided about the request; empty if none did
	TraceID          string
	Traced           bool   // the request is recorded
	HealthCheck      bool   // the request is one of a health check, which the proxy answered
	Decision         string // id of a reply of the proxy's own, which the client got, too

	Received, UpstreamStart, UpstreamSent, UpstreamHead, UpstreamEnd, Head time.Duration // of: request complete, first and last byte to upstream, head and last byte from upstream, first byte downstream

	UpstreamTLSVersion, UpstreamTLSCipher string
	UpstreamPeerURIs                      []string

	Metadata    model.Metadata // dynamic
	FilterState map[string]string
}

// A Format renders entries. Make one with ParseFormat.
type Format struct {
	parts []part
}

type part struct {
	text string
	op   operator // without append: text as it stands
	max  int      // bytes to keep; 0 keeps all
}

// DefaultFormat is the format of text logs that name none.
const DefaultFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"` + "\n"

// maxFormat bounds the length of a format.
const maxFormat = 64 << 10

// ParseFormat parses text with operators such as %DURATION% or %REQ(:PATH):20%.
func ParseFormat(s string) (*Format, error) {
	if len(s) > maxFormat {
		return nil, fmt.Errorf("format of %d bytes; at most %d are allowed", len(s), maxFormat)
	}
	f := &Format{}
	for s != "" {
		i := strings.IndexByte(s, '%')
		if i < 0 {
			f.text(s)
			break
		}
		f.text(s[:i])
		s = s[i+1:]
		if strings.HasPrefix(s, "%") {
			f.text("%")
			s = s[1:]
			continue
		}
		p, rest, err := parseOperator(s)
		if err != nil {
			return nil, err
		}
		f.parts = append(f.parts, p)
		s = rest
	}
	return f, nil
}

func (f *Format) text(s string) {
	if s == "" {
		return
	}
	if n := len(f.parts); n > 0 && f.parts[n-1].op.append == nil {
		f.parts[n-1].text += s
		return
	}
	f.parts = append(f.parts, part{text: s})
}

// parseOperator parses NAME, NAME(ARG), NAME:MAX or NAME(ARG):MAX and the
// percent sign that ends it.
func parseOperator(s string) (part, string, error) {
	n := 0
	for n < len(s) && (s[n] >= 'A' && s[n] <= 'Z' || s[n] >= '0' && s[n] <= '9' || s[n] == '_') {
		n++
	}
	name, rest := s[:n], s[n:]
	if name == "" {
		return part{}, "", fmt.Errorf("no operator after %% at %q", clip(s))
	}
	arg := ""
	if strings.HasPrefix(rest, "(") {
		end := strings.IndexByte(rest, ')')
		if end < 0 {
			return part{}, "", fmt.Errorf("operator %s: no closing bracket", name)
		}
		arg, rest = rest[1:end], rest[end+1:]
	}
	p := part{}
	if strings.HasPrefix(rest, ":") {
		end := strings.IndexByte(rest, '%')
		if end < 0 {
			return part{}, "", fmt.Errorf("operator %s: no closing %%", name)
		}
		max, err := strconv.ParseUint(rest[1:end], 10, 31)
		if err != nil || max == 0 {
			return part{}, "", fmt.Errorf("operator %s: length %q is no positive number", name, rest[1:end])
		}
		p.max, rest = int(max), rest[end:]
	}
	if !strings.HasPrefix(rest, "%") {
		return part{}, "", fmt.Errorf("operator %s: no closing %%", name)
	}
	op, err := parseOp(name, arg)
	if err != nil {
		return part{}, "", err
	}
	p.op = op
	return p, rest[1:], nil
}

func clip(s string) string { return s[:min(len(s), 20)] }

// parseTime compiles a strftime format with the fractions %f, %3f and %E3S.
func parseTime(format string) (func([]byte, time.Time) []byte, error) {
	if format == "" {
		return func(b []byte, t time.Time) []byte { return t.AppendFormat(b, "2006-01-02T15:04:05.000Z") }, nil
	}
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'y': "06", 'b': "Jan", 'B': "January",
		'a': "Mon", 'A': "Monday", 'e': "_2", 'I': "03", 'p': "PM", 'j': "002", 'Z': "MST", 'z': "-0700",
		'T': "15:04:05", 'F': "2006-01-02", 'R': "15:04", 'D': "01/02/06", 'h': "Jan",
	}
	type piece = func([]byte, time.Time) []byte
	var parts []piece
	fraction := func(digits int) piece {
		return func(b []byte, t time.Time) []byte {
			for i, d := 0, 100_000_000; i < digits; i, d = i+1, d/10 {
				b = append(b, byte('0'+t.Nanosecond()/d%10))
			}
			return b
		}
	}
	for i := 0; i < len(format); i++ {
		c := format[i]
		if c != '%' {
			parts = append(parts, func(b []byte, _ time.Time) []byte { return append(b, c) })
			continue
		}
		if i++; i == len(format) {
			return nil, fmt.Errorf("time format %q ends in %%", format)
		}
		switch c = format[i]; {
		case c == '%':
			parts = append(parts, func(b []byte, _ time.Time) []byte { return append(b, '%') })
		case c == 's':
			parts = append(parts, func(b []byte, t time.Time) []byte { return strconv.AppendInt(b, t.Unix(), 10) })
		case c == 'f':
			parts = append(parts, fraction(9))
		case c >= '1' && c <= '9' && i+1 < len(format) && format[i+1] == 'f':
			parts = append(parts, fraction(int(c-'0')))
			i++
		case c == 'E' && i+2 < len(format) && format[i+1] >= '1' && format[i+1] <= '9' && format[i+2] == 'S':
			f := fraction(int(format[i+1] - '0'))
			parts = append(parts, func(b []byte, t time.Time) []byte { return f(append(t.AppendFormat(b, "05"), '.'), t) })
			i += 2
		case layouts[c] != "":
			layout := layouts[c]
			parts = append(parts, func(b []byte, t time.Time) []byte { return t.AppendFormat(b, layout) })
		default:
			return nil, fmt.Errorf("time format %q: unknown %%%c", format, c)
		}
	}
	return func(b []byte, t time.Time) []byte {
		for _, p := range parts {
			b = p(b, t)
		}
		return b
	}, nil
}

// Append adds the rendered entry to b. Line ends and other control characters within values are escaped, so that a
// peer can't forge lines. What is not known shows as "-".
func (f *Format) Append(b []byte, e *Entry) []byte { return f.render(b, e, "-", true) }

// AppendValue is like Append, but what is not known leaves no trace: an operator alone gives an empty value.
func (f *Format) AppendValue(b []byte, e *Entry) []byte { return f.render(b, e, "", true) }

// AppendRaw is like Append, but values stay as they are.
func (f *Format) AppendRaw(b []byte, e *Entry) []byte { return f.render(b, e, "-", false) }

// Literal returns the text of a format without operators; ok is false if it has some.
func (f *Format) Literal() (text string, ok bool) {
	for _, p := range f.parts {
		if p.op.append != nil {
			return "", false
		}
		text += p.text
	}
	return text, true
}

func (f *Format) render(b []byte, e *Entry, unknown string, safe bool) []byte {
	for i := range f.parts {
		p := &f.parts[i]
		if p.op.append == nil {
			b = append(b, p.text...)
			continue
		}
		var ok bool
		if b, ok = p.value(b, e, safe); !ok {
			b = append(b, unknown...)
		}
	}
	return b
}

// value appends what the operator gives.
func (p *part) value(b []byte, e *Entry, safe bool) ([]byte, bool) {
	n := len(b)
	b, ok := p.op.append(b, e)
	if !ok {
		return b[:n], false
	}
	if p.max > 0 && len(b)-n > p.max {
		b = b[:n+p.max]
	}
	if safe && !p.op.number {
		b = escape(b, n)
	}
	return b, true
}

// escape escapes control characters in b[from:].
func escape(b []byte, from int) []byte {
	clean := true
	for _, c := range b[from:] {
		if c < 0x20 || c == 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return b
	}
	value := string(b[from:])
	b = b[:from]
	for i := range len(value) {
		switch c := value[i]; {
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

const hexDigits = "0123456789abcdef"
