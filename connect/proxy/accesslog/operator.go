package accesslog

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// An operator gives a piece of what is known of an entry.
type operator struct {
	// append adds the value to b; false: it is not known.
	append func(b []byte, e *Entry) ([]byte, bool)
	number bool // JSON keeps it as it is
}

func text(f func(*Entry) string) operator {
	return operator{append: func(b []byte, e *Entry) ([]byte, bool) {
		s := f(e)
		return append(b, s...), s != ""
	}}
}

func list(f func(*Entry) []string) operator {
	return operator{append: func(b []byte, e *Entry) ([]byte, bool) {
		l := f(e)
		for i, s := range l {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, s...)
		}
		return b, len(l) > 0
	}}
}

func number[T int | int64 | uint64](f func(*Entry) T) operator {
	return operator{number: true, append: func(b []byte, e *Entry) ([]byte, bool) {
		return strconv.AppendInt(b, int64(f(e)), 10), true
	}}
}

// ofHTTP is a text that only requests have.
func ofHTTP(f func(*HTTP) string) operator {
	return text(func(e *Entry) string {
		if e.HTTP == nil {
			return ""
		}
		return f(e.HTTP)
	})
}

// since is a time of a request in milliseconds.
func since(f func(*Entry, *HTTP) time.Duration) operator {
	return operator{number: true, append: func(b []byte, e *Entry) ([]byte, bool) {
		if e.HTTP == nil {
			return b, false
		}
		d := f(e, e.HTTP)
		return strconv.AppendInt(b, d.Milliseconds(), 10), d >= 0
	}}
}

// size is the bytes of a head or of trailers.
func size(f func(*HTTP) *message.Header) operator {
	return operator{number: true, append: func(b []byte, e *Entry) ([]byte, bool) {
		n := 0
		if e.HTTP != nil {
			if h := f(e.HTTP); h != nil {
				n = h.Size()
			}
		}
		return strconv.AppendInt(b, int64(n), 10), true
	}}
}

func requestHeader(h *HTTP) *message.Header {
	if h.Request == nil {
		return nil
	}
	return &h.Request.Header
}

func responseHeader(h *HTTP) *message.Header {
	if h.Response == nil {
		return nil
	}
	return &h.Response.Header
}

func withoutPort(addr string) string {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 || strings.HasPrefix(addr, "/") {
		return addr
	}
	return strings.Trim(addr[:i], "[]")
}

func onlyPort(f func(*Entry) string) operator {
	return operator{number: true, append: func(b []byte, e *Entry) ([]byte, bool) {
		addr := f(e)
		n, err := strconv.ParseUint(addr[strings.LastIndexByte(addr, ':')+1:], 10, 16)
		return strconv.AppendUint(b, n, 10), err == nil
	}}
}

func underscored(s string) string { return strings.ReplaceAll(s, " ", "_") }

// simple are the operators that take no argument.
var simple = map[string]operator{
	"BYTES_RECEIVED":                 number(func(e *Entry) uint64 { return e.BytesReceived }),
	"BYTES_SENT":                     number(func(e *Entry) uint64 { return e.BytesSent }),
	"UPSTREAM_WIRE_BYTES_RECEIVED":   number(func(e *Entry) uint64 { return e.UpstreamReceived }),
	"UPSTREAM_WIRE_BYTES_SENT":       number(func(e *Entry) uint64 { return e.UpstreamSent }),
	"DOWNSTREAM_WIRE_BYTES_RECEIVED": number(func(e *Entry) uint64 { return e.BytesReceived }),
	"DOWNSTREAM_WIRE_BYTES_SENT":     number(func(e *Entry) uint64 { return e.BytesSent }),
	"DURATION":                       number(func(e *Entry) int64 { return e.Duration.Milliseconds() }),
	"CONNECTION_ID":                  number(func(e *Entry) uint64 { return e.ConnectionID }),
	"UPSTREAM_REQUEST_ATTEMPT_COUNT": number(func(e *Entry) int { return e.Attempts }),
	"RESPONSE_CODE": number(func(e *Entry) int {
		if e.HTTP == nil {
			return 0
		}
		return e.HTTP.Status
	}),

	"RESPONSE_FLAGS":                       {append: func(b []byte, e *Entry) ([]byte, bool) { return e.Flags.append(b, false), true }},
	"RESPONSE_FLAGS_LONG":                  {append: func(b []byte, e *Entry) ([]byte, bool) { return e.Flags.append(b, true), true }},
	"CONNECTION_TERMINATION_DETAILS":       text(func(e *Entry) string { return e.CloseDetails }),
	"UPSTREAM_HOST":                        text(func(e *Entry) string { return e.UpstreamHost }),
	"UPSTREAM_HOST_NAME":                   text(func(e *Entry) string { return e.UpstreamHostName }),
	"UPSTREAM_CLUSTER":                     text(func(e *Entry) string { return e.UpstreamCluster }),
	"UPSTREAM_CLUSTER_RAW":                 text(func(e *Entry) string { return e.UpstreamCluster }),
	"UPSTREAM_LOCAL_ADDRESS":               text(func(e *Entry) string { return e.UpstreamLocal }),
	"UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":  text(func(e *Entry) string { return withoutPort(e.UpstreamLocal) }),
	"UPSTREAM_REMOTE_ADDRESS":              text(func(e *Entry) string { return e.UpstreamHost }),
	"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": text(func(e *Entry) string { return withoutPort(e.UpstreamHost) }),
	"UPSTREAM_REMOTE_PORT":                 onlyPort(func(e *Entry) string { return e.UpstreamHost }),
	"UPSTREAM_TRANSPORT_FAILURE_REASON":    text(func(e *Entry) string { return underscored(e.UpstreamFailure) }),

	"DOWNSTREAM_LOCAL_ADDRESS":                      text(func(e *Entry) string { return e.DownstreamLocal }),
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         text(func(e *Entry) string { return withoutPort(e.DownstreamLocal) }),
	"DOWNSTREAM_LOCAL_PORT":                         onlyPort(func(e *Entry) string { return e.DownstreamLocal }),
	"DOWNSTREAM_REMOTE_ADDRESS":                     text(func(e *Entry) string { return e.DownstreamRemote }),
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        text(func(e *Entry) string { return withoutPort(e.DownstreamRemote) }),
	"DOWNSTREAM_REMOTE_PORT":                        onlyPort(func(e *Entry) string { return e.DownstreamRemote }),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              text(func(e *Entry) string { return e.DownstreamDirect }),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": text(func(e *Entry) string { return withoutPort(e.DownstreamDirect) }),
	"DOWNSTREAM_DIRECT_REMOTE_PORT":                 onlyPort(func(e *Entry) string { return e.DownstreamDirect }),
	"DOWNSTREAM_TRANSPORT_FAILURE_REASON":           text(func(e *Entry) string { return underscored(e.DownstreamFailure) }),
	"REQUESTED_SERVER_NAME":                         text(func(e *Entry) string { return e.ServerName }),
	"ROUTE_NAME":                                    text(func(e *Entry) string { return e.RouteName }),
	"FILTER_CHAIN_NAME":                             text(func(e *Entry) string { return e.FilterChain }),

	"DOWNSTREAM_PEER_URI_SAN":         list(func(e *Entry) []string { return e.PeerURIs }),
	"DOWNSTREAM_PEER_DNS_SAN":         list(func(e *Entry) []string { return e.PeerDNS }),
	"DOWNSTREAM_PEER_SUBJECT":         text(func(e *Entry) string { return e.PeerSubject }),
	"DOWNSTREAM_PEER_ISSUER":          text(func(e *Entry) string { return e.PeerIssuer }),
	"DOWNSTREAM_PEER_SERIAL":          text(func(e *Entry) string { return e.PeerSerial }),
	"DOWNSTREAM_PEER_FINGERPRINT_256": text(func(e *Entry) string { return e.PeerFingerprint }),
	"DOWNSTREAM_LOCAL_URI_SAN":        list(func(e *Entry) []string { return e.LocalURIs }),
	"DOWNSTREAM_TLS_VERSION":          text(func(e *Entry) string { return e.TLSVersion }),
	"DOWNSTREAM_TLS_CIPHER":           text(func(e *Entry) string { return e.TLSCipher }),
	"ACCESS_LOG_TYPE":                 text(logType),

	"PROTOCOL": ofHTTP(func(h *HTTP) string {
		if h.Request == nil {
			return ""
		}
		return h.Request.Version.String()
	}),
	"UPSTREAM_PROTOCOL":       ofHTTP(func(h *HTTP) string { return h.UpstreamProtocol.String() }),
	"RESPONSE_CODE_DETAILS":   ofHTTP(func(h *HTTP) string { return underscored(h.Details) }),
	"REQUEST_HEADERS_BYTES":   size(requestHeader),
	"RESPONSE_HEADERS_BYTES":  size(responseHeader),
	"RESPONSE_TRAILERS_BYTES": size(func(h *HTTP) *message.Header { return h.ResponseTrailer }),
	"REQUEST_DURATION":        since(func(_ *Entry, h *HTTP) time.Duration { return h.Received }),
	"REQUEST_TX_DURATION":     since(func(_ *Entry, h *HTTP) time.Duration { return h.UpstreamSent }),
	"RESPONSE_DURATION":       since(func(_ *Entry, h *HTTP) time.Duration { return h.UpstreamHead }),
	"RESPONSE_TX_DURATION": since(func(e *Entry, h *HTTP) time.Duration {
		if h.UpstreamHead < 0 {
			return -1
		}
		return e.Duration - h.UpstreamHead
	}),
	"VIRTUAL_CLUSTER_NAME": ofHTTP(func(h *HTTP) string { return h.VirtualCluster }),
	"LOCAL_REPLY_BODY":     ofHTTP(func(h *HTTP) string { return h.LocalBody }),
	"STREAM_ID": ofHTTP(func(h *HTTP) string {
		if h.Request == nil {
			return ""
		}
		return h.Request.Header.Get("x-request-id")
	}),
	"TRACE_ID":              ofHTTP(func(h *HTTP) string { return h.TraceID }),
	"GRPC_STATUS_NUMBER":    grpcOnly(true, appendNumber),
	"UPSTREAM_TLS_VERSION":  ofHTTP(func(h *HTTP) string { return h.UpstreamTLSVersion }),
	"UPSTREAM_TLS_CIPHER":   ofHTTP(func(h *HTTP) string { return h.UpstreamTLSCipher }),
	"UPSTREAM_PEER_URI_SAN": ofHTTP(func(h *HTTP) string { return strings.Join(h.UpstreamPeerURIs, ",") }),

	// Sarn's own: the policy that decided about the request, and the id that its client got.
	"SARN_RULE":     ofHTTP(func(h *HTTP) string { return h.Rule }),
	"SARN_DECISION": ofHTTP(func(h *HTTP) string { return h.Decision }),

	// Never known here.
	"DOWNSTREAM_TLS_SESSION_ID": nothing, "DOWNSTREAM_PEER_CERT": nothing, "DOWNSTREAM_PEER_CERT_V_START": nothing,
	"DOWNSTREAM_PEER_CERT_V_END": nothing, "UNIQUE_ID": nothing,
}

var nothing = operator{append: func(b []byte, _ *Entry) ([]byte, bool) { return b, false }}

// grpcUnknown is the status of gRPC that says nothing.
const grpcUnknown = 2

// grpcStatus returns the status of gRPC of a response: what its trailers say, or its head, or else what its status of
// HTTP means to clients of gRPC.
func grpcStatus(e *Entry) (int, bool) {
	h := e.HTTP
	if h == nil {
		return 0, false
	}
	for _, hd := range [...]*message.Header{h.ResponseTrailer, responseHeader(h)} {
		if hd == nil {
			continue
		}
		if v := hd.Get("grpc-status"); v != "" {
			n, err := strconv.Atoi(v)
			return n, err == nil && n >= 0
		}
	}
	switch h.Status {
	case 0:
		return 0, false
	case 400:
		return 13, true
	case 401:
		return 16, true
	case 403:
		return 7, true
	case 404:
		return 12, true
	case 429, 502, 503, 504:
		return 14, true
	}
	return grpcUnknown, true
}

// grpcOnly is an operator about the status of requests of gRPC.
func grpcOnly(number bool, f func(b []byte, status int) []byte) operator {
	return operator{number: number, append: func(b []byte, e *Entry) ([]byte, bool) {
		if e.HTTP == nil || e.HTTP.Request == nil || !isGRPC(e.HTTP.Request.Header.Get("content-type")) {
			return b, false
		}
		n, ok := grpcStatus(e)
		return f(b, n), ok
	}}
}

func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(contentType, "application/grpc")
	return ok && (rest == "" || rest[0] == '+')
}

func appendNumber(b []byte, n int) []byte { return strconv.AppendInt(b, int64(n), 10) }

// grpcNames are the statuses of gRPC by their numbers.
var grpcNames = [...]string{"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
	"PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal",
	"Unavailable", "DataLoss", "Unauthenticated"}

// snakeNames are the same as gRPC's documents spell them.
var snakeNames = [...]string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
	"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

// field gives a header by its name, or by the second if the first is not there.
func field(arg string, header func(*HTTP) *message.Header) operator {
	first, second, _ := strings.Cut(strings.ToLower(arg), "?")
	get := func(h *HTTP, name string) string {
		if name == "" {
			return ""
		}
		if name == ":status" && h.Response != nil {
			return strconv.Itoa(h.Response.Status)
		}
		if v, ok := pseudo(h, name); ok {
			return v
		}
		if hd := header(h); hd != nil {
			return hd.Get(name)
		}
		return ""
	}
	return ofHTTP(func(h *HTTP) string {
		if v := get(h, first); v != "" {
			return v
		}
		return get(h, second)
	})
}

// pseudo returns what does not stand among the fields of a request; ok is false if the name is of no such thing.
func pseudo(h *HTTP, name string) (value string, ok bool) {
	if name == "" || name[0] != ':' && name != "host" {
		return "", false
	}
	r := h.Request
	switch {
	case r == nil:
	case name == ":method":
		return r.Method, true
	case name == ":path":
		return r.Path, true
	case name == ":authority", name == "host":
		return r.Authority, true
	case name == ":scheme":
		return r.Scheme, true
	}
	return "", true
}

// metadata gives a value by its path of names, joined with colons.
func metadata(arg string, of func(*HTTP) model.Metadata) operator {
	path := strings.Split(arg, ":")
	return operator{append: func(b []byte, e *Entry) ([]byte, bool) {
		if e.HTTP == nil {
			return b, false
		}
		ns, ok := of(e.HTTP)[path[0]]
		if !ok {
			return b, false
		}
		var v any = ns
		for _, key := range path[1:] {
			m, _ := v.(map[string]any)
			if v, ok = m[key]; !ok {
				return b, false
			}
		}
		switch v := v.(type) {
		case string:
			return append(b, v...), true
		case float64:
			return strconv.AppendFloat(b, v, 'f', -1, 64), true
		case bool:
			return strconv.AppendBool(b, v), true
		}
		out, err := json.Marshal(v)
		return append(b, out...), err == nil
	}}
}

// points are the times that COMMON_DURATION names.
var points = map[string]func(*Entry, *HTTP) time.Duration{
	"DS_RX_BEG": func(*Entry, *HTTP) time.Duration { return 0 },
	"DS_RX_END": func(_ *Entry, h *HTTP) time.Duration { return h.Received },
	"US_TX_BEG": func(_ *Entry, h *HTTP) time.Duration { return h.UpstreamStart },
	"US_TX_END": func(_ *Entry, h *HTTP) time.Duration { return h.UpstreamSent },
	"US_RX_BEG": func(_ *Entry, h *HTTP) time.Duration { return h.UpstreamHead },
	"US_RX_END": func(_ *Entry, h *HTTP) time.Duration { return h.UpstreamEnd },
	"DS_TX_BEG": func(_ *Entry, h *HTTP) time.Duration { return h.Head },
	"DS_TX_END": func(e *Entry, _ *HTTP) time.Duration { return e.Duration },
}

func commonDuration(arg string) (operator, error) {
	p := strings.Split(arg, ":")
	if len(p) != 2 && len(p) != 3 {
		return operator{}, fmt.Errorf("operator COMMON_DURATION: %q is not START:END:PRECISION", arg)
	}
	from, ok1 := points[p[0]]
	to, ok2 := points[p[1]]
	unit := time.Millisecond
	if len(p) == 3 {
		var ok bool
		if unit, ok = map[string]time.Duration{"ms": time.Millisecond, "us": time.Microsecond, "ns": time.Nanosecond}[p[2]]; !ok {
			return operator{}, fmt.Errorf("operator COMMON_DURATION: unknown precision %q", p[2])
		}
	}
	if !ok1 || !ok2 {
		return operator{}, fmt.Errorf("operator COMMON_DURATION: unknown time point in %q", arg)
	}
	return operator{number: true, append: func(b []byte, e *Entry) ([]byte, bool) {
		if e.HTTP == nil {
			return b, false
		}
		x, y := from(e, e.HTTP), to(e, e.HTTP)
		return strconv.AppendInt(b, int64((y-x)/unit), 10), x >= 0 && y >= x
	}}, nil
}

func parseOp(name, arg string) (operator, error) {
	if op, ok := simple[name]; ok {
		if arg != "" && !strings.HasPrefix(name, "DOWNSTREAM_PEER_CERT_V_") {
			return operator{}, fmt.Errorf("operator %s takes no argument", name)
		}
		return op, nil
	}
	switch name {
	case "START_TIME", "EMIT_TIME", "START_TIME_LOCAL":
		layout, err := parseTime(arg)
		if err != nil {
			return operator{}, fmt.Errorf("operator %s: %w", name, err)
		}
		return operator{append: func(b []byte, e *Entry) ([]byte, bool) {
			t := e.Start
			if name == "EMIT_TIME" {
				t = t.Add(e.Duration)
			}
			if name == "START_TIME_LOCAL" {
				t = t.Local()
			} else {
				t = t.UTC()
			}
			return layout(b, t), true
		}}, nil
	case "HOSTNAME":
		host, _ := os.Hostname()
		return text(func(*Entry) string { return host }), nil
	case "GRPC_STATUS":
		return grpcStatusOp(arg)
	}
	if name == "PATH" {
		return pathOp(arg)
	}
	if !withArgument[name] {
		return operator{}, fmt.Errorf("unknown operator %s", name)
	}
	if arg == "" {
		return operator{}, fmt.Errorf("operator %s needs an argument", name)
	}
	switch name {
	case "ENVIRONMENT":
		value := os.Getenv(arg)
		return text(func(*Entry) string { return value }), nil
	case "REQ":
		return field(arg, requestHeader), nil
	case "RESP":
		return field(arg, responseHeader), nil
	case "TRAILER":
		return field(arg, func(h *HTTP) *message.Header { return h.ResponseTrailer }), nil
	case "METADATA":
		kind, rest, _ := strings.Cut(arg, ":")
		of := metadataOf[kind]
		if of == nil {
			return operator{}, fmt.Errorf("operator METADATA: metadata of %q is not known here", kind)
		}
		return metadata(rest, of), nil
	case "DYNAMIC_METADATA":
		return metadata(arg, func(h *HTTP) model.Metadata { return h.Metadata }), nil
	case "CLUSTER_METADATA":
		return metadata(arg, func(h *HTTP) model.Metadata { return h.ClusterMetadata }), nil
	case "UPSTREAM_METADATA":
		return metadata(arg, func(h *HTTP) model.Metadata { return h.HostMetadata }), nil
	case "ROUTE_METADATA":
		return metadata(arg, func(h *HTTP) model.Metadata { return h.RouteMetadata }), nil
	case "FILTER_STATE":
		key, _, _ := strings.Cut(arg, ":")
		return ofHTTP(func(h *HTTP) string { return h.FilterState[key] }), nil
	case "COMMON_DURATION":
		return commonDuration(arg)
	}
	return operator{}, fmt.Errorf("unknown operator %s", name)
}

// withArgument are the operators that need an argument.
var withArgument = map[string]bool{
	"METADATA": true, "REQ": true, "RESP": true, "TRAILER": true, "DYNAMIC_METADATA": true, "CLUSTER_METADATA": true, "ENVIRONMENT": true,
	"UPSTREAM_METADATA": true, "ROUTE_METADATA": true, "FILTER_STATE": true, "COMMON_DURATION": true,
}

// metadataOf gives the metadata that METADATA names.
var metadataOf = map[string]func(*HTTP) model.Metadata{
	"DYNAMIC":       func(h *HTTP) model.Metadata { return h.Metadata },
	"CLUSTER":       func(h *HTTP) model.Metadata { return h.ClusterMetadata },
	"UPSTREAM_HOST": func(h *HTTP) model.Metadata { return h.HostMetadata },
	"ROUTE":         func(h *HTTP) model.Metadata { return h.RouteMetadata },
}

// pathOp gives the path of a request: with its query (WQ, the default) or without (NQ), and before it was rewritten
// (ORIG), after (PATH), or before if it was (ORIG_OR_PATH, the default).
func pathOp(arg string) (operator, error) {
	query, which, _ := strings.Cut(arg, ":")
	if query != "" && query != "WQ" && query != "NQ" {
		return operator{}, fmt.Errorf("operator PATH: %q is neither WQ nor NQ", query)
	}
	if which != "" && which != "ORIG" && which != "PATH" && which != "ORIG_OR_PATH" {
		return operator{}, fmt.Errorf("operator PATH: %q is none of ORIG, PATH and ORIG_OR_PATH", which)
	}
	return ofHTTP(func(h *HTTP) string {
		if h.Request == nil {
			return ""
		}
		p := h.Request.Header.Get("x-envoy-original-path")
		if which == "PATH" || p == "" && which != "ORIG" {
			p = h.Request.Path
		}
		if query == "NQ" {
			p, _, _ = strings.Cut(p, "?")
		}
		return p
	}), nil
}

func grpcStatusOp(arg string) (operator, error) {
	names := &grpcNames
	switch arg {
	case "NUMBER":
		return grpcOnly(true, appendNumber), nil
	case "SNAKE_STRING":
		names = &snakeNames
	case "", "CAMEL_STRING":
	default:
		return operator{}, fmt.Errorf("operator GRPC_STATUS: unknown form %q", arg)
	}
	return grpcOnly(false, func(b []byte, n int) []byte {
		if n >= len(names) {
			return appendNumber(b, n)
		}
		return append(b, names[n]...)
	}), nil
}
