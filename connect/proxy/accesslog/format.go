package accesslog

import (
	"fmt"
	"os"
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
	op   func(*Entry) any // nil: text as it stands
	max  int              // bytes to keep; 0 keeps all
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
	if n := len(f.parts); n > 0 && f.parts[n-1].op == nil {
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
	op, err := operator(name, arg)
	if err != nil {
		return part{}, "", err
	}
	p.op = op
	return p, rest[1:], nil
}

func clip(s string) string { return s[:min(len(s), 20)] }

func none(*Entry) any { return nil }

func str(f func(*Entry) string) func(*Entry) any {
	return func(e *Entry) any {
		if s := f(e); s != "" {
			return s
		}
		return nil
	}
}

func num[T int | uint64 | int64](f func(*Entry) T) func(*Entry) any {
	return func(e *Entry) any { return int64(f(e)) }
}

func withoutPort(addr string) string {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 || strings.HasPrefix(addr, "/") {
		return addr
	}
	return strings.Trim(addr[:i], "[]")
}

func onlyPort(addr string) any {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 {
		return nil
	}
	n, err := strconv.ParseUint(addr[i+1:], 10, 16)
	if err != nil {
		return nil
	}
	return int64(n)
}

// simple are the operators that take no argument and are known of connections.
var simple = map[string]func(*Entry) any{
	"BYTES_RECEIVED":                 num(func(e *Entry) uint64 { return e.BytesReceived }),
	"BYTES_SENT":                     num(func(e *Entry) uint64 { return e.BytesSent }),
	"UPSTREAM_WIRE_BYTES_RECEIVED":   num(func(e *Entry) uint64 { return e.UpstreamReceived }),
	"UPSTREAM_WIRE_BYTES_SENT":       num(func(e *Entry) uint64 { return e.UpstreamSent }),
	"DOWNSTREAM_WIRE_BYTES_RECEIVED": num(func(e *Entry) uint64 { return e.BytesReceived }),
	"DOWNSTREAM_WIRE_BYTES_SENT":     num(func(e *Entry) uint64 { return e.BytesSent }),
	"DURATION":                       num(func(e *Entry) int64 { return e.Duration.Milliseconds() }),
	"CONNECTION_ID":                  num(func(e *Entry) uint64 { return e.ConnectionID }),
	"RESPONSE_CODE":                  func(*Entry) any { return int64(0) },
	"UPSTREAM_REQUEST_ATTEMPT_COUNT": num(func(e *Entry) int { return e.Attempts }),

	"RESPONSE_FLAGS":                       func(e *Entry) any { return e.Flags.String() },
	"RESPONSE_FLAGS_LONG":                  func(e *Entry) any { return e.Flags.Long() },
	"CONNECTION_TERMINATION_DETAILS":       str(func(e *Entry) string { return e.CloseDetails }),
	"UPSTREAM_HOST":                        str(func(e *Entry) string { return e.UpstreamHost }),
	"UPSTREAM_HOST_NAME":                   str(func(e *Entry) string { return e.UpstreamHostName }),
	"UPSTREAM_CLUSTER":                     str(func(e *Entry) string { return e.UpstreamCluster }),
	"UPSTREAM_CLUSTER_RAW":                 str(func(e *Entry) string { return e.UpstreamCluster }),
	"UPSTREAM_LOCAL_ADDRESS":               str(func(e *Entry) string { return e.UpstreamLocal }),
	"UPSTREAM_REMOTE_ADDRESS":              str(func(e *Entry) string { return e.UpstreamHost }),
	"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": str(func(e *Entry) string { return withoutPort(e.UpstreamHost) }),
	"UPSTREAM_TRANSPORT_FAILURE_REASON":    str(func(e *Entry) string { return e.UpstreamFailure }),

	"DOWNSTREAM_LOCAL_ADDRESS":                      str(func(e *Entry) string { return e.DownstreamLocal }),
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         str(func(e *Entry) string { return withoutPort(e.DownstreamLocal) }),
	"DOWNSTREAM_LOCAL_PORT":                         func(e *Entry) any { return onlyPort(e.DownstreamLocal) },
	"DOWNSTREAM_REMOTE_ADDRESS":                     str(func(e *Entry) string { return e.DownstreamRemote }),
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        str(func(e *Entry) string { return withoutPort(e.DownstreamRemote) }),
	"DOWNSTREAM_REMOTE_PORT":                        func(e *Entry) any { return onlyPort(e.DownstreamRemote) },
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              str(func(e *Entry) string { return e.DownstreamDirect }),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": str(func(e *Entry) string { return withoutPort(e.DownstreamDirect) }),
	"DOWNSTREAM_DIRECT_REMOTE_PORT":                 func(e *Entry) any { return onlyPort(e.DownstreamDirect) },
	"DOWNSTREAM_TRANSPORT_FAILURE_REASON":           str(func(e *Entry) string { return e.DownstreamFailure }),
	"REQUESTED_SERVER_NAME":                         str(func(e *Entry) string { return e.ServerName }),
	"ROUTE_NAME":                                    str(func(e *Entry) string { return e.RouteName }),
	"FILTER_CHAIN_NAME":                             str(func(e *Entry) string { return e.FilterChain }),

	"DOWNSTREAM_PEER_URI_SAN":         str(func(e *Entry) string { return strings.Join(e.PeerURIs, ",") }),
	"DOWNSTREAM_PEER_DNS_SAN":         str(func(e *Entry) string { return strings.Join(e.PeerDNS, ",") }),
	"DOWNSTREAM_PEER_SUBJECT":         str(func(e *Entry) string { return e.PeerSubject }),
	"DOWNSTREAM_PEER_ISSUER":          str(func(e *Entry) string { return e.PeerIssuer }),
	"DOWNSTREAM_PEER_SERIAL":          str(func(e *Entry) string { return e.PeerSerial }),
	"DOWNSTREAM_PEER_FINGERPRINT_256": str(func(e *Entry) string { return e.PeerFingerprint }),
	"DOWNSTREAM_LOCAL_URI_SAN":        str(func(e *Entry) string { return strings.Join(e.LocalURIs, ",") }),
	"DOWNSTREAM_TLS_VERSION":          str(func(e *Entry) string { return e.TLSVersion }),
	"DOWNSTREAM_TLS_CIPHER":           str(func(e *Entry) string { return e.TLSCipher }),
	"ACCESS_LOG_TYPE":                 func(*Entry) any { return "TcpConnectionEnd" },

	// Known of requests only.
	"PROTOCOL": none, "UPSTREAM_PROTOCOL": none, "RESPONSE_CODE_DETAILS": none,
	"REQUEST_HEADERS_BYTES": none, "RESPONSE_HEADERS_BYTES": none, "RESPONSE_TRAILERS_BYTES": none,
	"REQUEST_DURATION": none, "RESPONSE_DURATION": none, "RESPONSE_TX_DURATION": none, "REQUEST_TX_DURATION": none,
	"VIRTUAL_CLUSTER_NAME": none, "LOCAL_REPLY_BODY": none, "STREAM_ID": none, "TRACE_ID": none,
	"GRPC_STATUS": none, "GRPC_STATUS_NUMBER": none,
	"DOWNSTREAM_TLS_SESSION_ID": none, "DOWNSTREAM_PEER_CERT": none,
}

// withArgument are operators that need an argument and are known of requests only.
var withArgument = map[string]bool{
	"REQ": true, "RESP": true, "TRAILER": true, "DYNAMIC_METADATA": true, "CLUSTER_METADATA": true,
	"UPSTREAM_METADATA": true, "ROUTE_METADATA": true, "FILTER_STATE": true, "COMMON_DURATION": true,
}

func operator(name, arg string) (func(*Entry) any, error) {
	switch name {
	case "START_TIME", "EMIT_TIME", "START_TIME_LOCAL":
		layout, err := parseTime(arg)
		if err != nil {
			return nil, fmt.Errorf("operator %s: %w", name, err)
		}
		return func(e *Entry) any {
			t := e.Start
			if name == "EMIT_TIME" {
				t = t.Add(e.Duration)
			}
			if name == "START_TIME_LOCAL" {
				t = t.Local()
			} else {
				t = t.UTC()
			}
			return layout(t)
		}, nil
	case "ENVIRONMENT":
		if arg == "" {
			return nil, fmt.Errorf("operator %s needs an argument", name)
		}
		value := os.Getenv(arg)
		return str(func(*Entry) string { return value }), nil
	case "HOSTNAME":
		host, _ := os.Hostname()
		return str(func(*Entry) string { return host }), nil
	case "UNIQUE_ID":
		return none, nil
	case "DOWNSTREAM_PEER_CERT_V_START", "DOWNSTREAM_PEER_CERT_V_END":
		return none, nil
	}
	if withArgument[name] {
		if arg == "" {
			return nil, fmt.Errorf("operator %s needs an argument", name)
		}
		return none, nil
	}
	op, ok := simple[name]
	if !ok {
		return nil, fmt.Errorf("unknown operator %s", name)
	}
	if arg != "" {
		return nil, fmt.Errorf("operator %s takes no argument", name)
	}
	return op, nil
}

// parseTime compiles a strftime format with the fractions %f, %3f and %E3S.
func parseTime(format string) (func(time.Time) string, error) {
	if format == "" {
		return func(t time.Time) string { return t.Format("2006-01-02T15:04:05.000Z") }, nil
	}
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'y': "06", 'b': "Jan", 'B': "January",
		'a': "Mon", 'A': "Monday", 'e': "_2", 'I': "03", 'p': "PM", 'j': "002", 'Z': "MST", 'z': "-0700",
		'T': "15:04:05", 'F': "2006-01-02", 'R': "15:04", 'D': "01/02/06", 'h': "Jan",
	}
	var parts []func(time.Time) string
	fraction := func(digits int) func(time.Time) string {
		return func(t time.Time) string { return fmt.Sprintf("%09d", t.Nanosecond())[:digits] }
	}
	for i := 0; i < len(format); i++ {
		c := format[i]
		if c != '%' {
			text := string(c)
			parts = append(parts, func(time.Time) string { return text })
			continue
		}
		if i++; i == len(format) {
			return nil, fmt.Errorf("time format %q ends in %%", format)
		}
		switch c = format[i]; {
		case c == '%':
			parts = append(parts, func(time.Time) string { return "%" })
		case c == 's':
			parts = append(parts, func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) })
		case c == 'f':
			parts = append(parts, fraction(9))
		case c >= '1' && c <= '9' && i+1 < len(format) && format[i+1] == 'f':
			parts = append(parts, fraction(int(c-'0')))
			i++
		case c == 'E' && i+2 < len(format) && format[i+1] >= '1' && format[i+1] <= '9' && format[i+2] == 'S':
			f := fraction(int(format[i+1] - '0'))
			parts = append(parts, func(t time.Time) string { return t.Format("05") + "." + f(t) })
			i += 2
		case layouts[c] != "":
			layout := layouts[c]
			parts = append(parts, func(t time.Time) string { return t.Format(layout) })
		default:
			return nil, fmt.Errorf("time format %q: unknown %%%c", format, c)
		}
	}
	return func(t time.Time) string {
		var b strings.Builder
		for _, p := range parts {
			b.WriteString(p(t))
		}
		return b.String()
	}, nil
}

// Append adds the rendered entry to b. Line ends and other control characters
// within values are escaped, so that a peer can't forge lines.
func (f *Format) Append(b []byte, e *Entry) []byte {
	for _, p := range f.parts {
		if p.op == nil {
			b = append(b, p.text...)
			continue
		}
		b = append(b, escape(p.string(e))...)
	}
	return b
}

func (p *part) string(e *Entry) string {
	var s string
	switch v := p.op(e).(type) {
	case nil:
		s = "-"
	case string:
		s = v
	case int64:
		s = strconv.FormatInt(v, 10)
	}
	if p.max > 0 && len(s) > p.max {
		s = s[:p.max]
	}
	return s
}

// value returns the rendered entry as JSON has it: a number if the format is
// one operator that gives a number, nil if it is one that gives nothing.
func (f *Format) value(e *Entry) any {
	if len(f.parts) == 1 && f.parts[0].op != nil {
		v := f.parts[0].op(e)
		if s, ok := v.(string); ok && f.parts[0].max > 0 && len(s) > f.parts[0].max {
			return s[:f.parts[0].max]
		}
		return v
	}
	var b strings.Builder
	for _, p := range f.parts {
		if p.op == nil {
			b.WriteString(p.text)
		} else {
			b.WriteString(p.string(e))
		}
	}
	return b.String()
}

func escape(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) < 0 {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c < 0x20 || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
