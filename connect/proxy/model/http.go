package model

import (
	"net/netip"
	"strings"
	"time"
)

// Defaults of HTTP.
const (
	DefaultMaxRequestHeaders = 60 << 10
	DefaultMaxHeaders        = 100
	DefaultStreamIdleTimeout = 5 * time.Minute
	DefaultHTTPIdleTimeout   = time.Hour
	DefaultDrainTimeout      = 5 * time.Second
	DefaultDelayedClose      = time.Second
	DefaultRouteTimeout      = 15 * time.Second
	DefaultServerName        = "envoy"
	DefaultMaxDirectBody     = 4096
	DefaultConcurrentStreams = 1024
	DefaultStreamWindow      = 16 << 20
	DefaultConnectionWindow  = 24 << 20
)

// A ClientHeader is a field of requests that tells the client's address.
type ClientHeader struct {
	Name    string
	Trusted bool // the address may make a request internal
}

// An HTTPManager serves the requests of a connection.
type HTTPManager struct {
	StatPrefix string
	Codec      Codec
	HTTP1      HTTP1Options
	HTTP2      HTTP2Options

	// Exactly one says where requests go.
	Routes    *RouteConfig
	RouteName string // of a route configuration that comes from the control plane

	Filters []HTTPFilter // the last is *Router

	MaxHeaderBytes    int
	MaxHeaders        int
	IdleTimeout       time.Duration // of a connection without requests; 0 never
	MaxDuration       time.Duration // of a connection; 0 never
	MaxRequests       uint32        // of a connection; 0 any
	MaxStreamDuration time.Duration // 0 never
	StreamIdleTimeout time.Duration // 0 never
	RequestTimeout    time.Duration // 0 never
	HeadersTimeout    time.Duration // 0 never
	DrainTimeout      time.Duration
	DelayedClose      time.Duration
	Underscores       UnderscoreAction

	ServerName   string
	ServerHeader ServerHeader
	Via          string

	UseRemoteAddress                                   bool
	TrustedHops                                        uint32
	ClientHeaders                                      []ClientHeader // in place of x-forwarded-for
	SkipXFF                                            bool
	Internal                                           []netip.Prefix // addresses whose requests are internal
	InternalUnix                                       bool           // requests over UNIX sockets are, too
	AppendXFPort                                       bool
	XFCC                                               XFCCMode
	XFCCSubject, XFCCCert, XFCCChain, XFCCDNS, XFCCURI bool // what SANITIZE_SET and APPEND_FORWARD tell

	NormalizePath       bool
	MergeSlashes        bool
	EscapedSlashes      EscapedSlashAction
	StripPort           PortStrip
	StripTrailingDot    bool
	SchemeOverwrite     string // "http", "https" or empty
	SchemeMatchUpstream bool

	GenerateRequestID         bool
	PreserveExternalRequestID bool
	AlwaysSetRequestID        bool // in responses
	PackTraceReason           bool
	TraceReasonForSampling    bool

	Proxy100Continue bool
	Upgrades         []Upgrade
	AddUserAgent     bool

	AccessLogs          []AccessLog
	Tracing             *Tracing // nil traces nothing
	LocalReply          *LocalReply
	AppendLocalOverload bool
}

func (*HTTPManager) terminal() {}

// A Codec is which protocol a manager or a cluster speaks.
type Codec uint8

// The codecs.
const (
	CodecAuto Codec = iota
	CodecHTTP1
	CodecHTTP2
)

// HTTP1Options tune HTTP/1.
type HTTP1Options struct {
	AcceptHTTP10       bool
	DefaultHost        string // of HTTP/1.0 requests without one
	EnableTrailers     bool
	AllowChunkedLength bool // content-length beside chunked is dropped rather than refused
	DenyAbsoluteURL    bool
	ProperCase         bool // field names are sent Like-This
	PreserveCase       bool
	// OverrideError keeps a connection open after a bad message if that is possible.
	OverrideError bool
}

// HTTP2Options tune HTTP/2. A zero field takes the default.
type HTTP2Options struct {
	HPACKTable          *uint32
	ConcurrentStreams   uint32
	StreamWindow        uint32
	ConnectionWindow    uint32
	AllowConnect        bool // extended CONNECT
	MaxOutbound         uint32
	MaxOutboundControl  uint32
	EmptyFrames         *uint32
	PriorityPerStream   *uint32
	WindowUpdatePerData *uint32
	Keepalive           *HTTP2Keepalive
	OverrideError       bool // a bad message ends its stream only
}

// HTTP2Keepalive sends pings.
type HTTP2Keepalive struct {
	Interval     time.Duration // 0 none
	Timeout      time.Duration
	Jitter       float64       // percent
	IdleInterval time.Duration // ping before use after such a silence; 0 none
}

// An UnderscoreAction is what happens to headers with underscores.
type UnderscoreAction uint8

// The actions.
const (
	UnderscoreAllow UnderscoreAction = iota
	UnderscoreReject
	UnderscoreDrop
)

// A ServerHeader says what happens to the header "server" of responses.
type ServerHeader uint8

// The choices.
const (
	ServerOverwrite ServerHeader = iota
	ServerIfAbsent
	ServerPassThrough
)

// An XFCCMode says what happens to x-forwarded-client-cert.
type XFCCMode uint8

// The modes.
const (
	XFCCSanitize XFCCMode = iota
	XFCCForwardOnly
	XFCCAppendForward
	XFCCSanitizeSet
	XFCCAlwaysForwardOnly
)

// An EscapedSlashAction is what happens to %2F and %5C in paths.
type EscapedSlashAction uint8

// The actions.
const (
	EscapedKeep EscapedSlashAction = iota
	EscapedReject
	EscapedRedirect
	EscapedForward
)

// A PortStrip says which ports are cut from the authority.
type PortStrip uint8

// The choices.
const (
	PortKeep PortStrip = iota
	PortMatching
	PortAny
)

// An Upgrade is a protocol that clients may switch to.
type Upgrade struct {
	Name    string // lower case
	Enabled bool
	Filters []HTTPFilter // nil takes those of the manager
}

// Tracing says which requests are traced and where spans go.
type Tracing struct {
	Provider                TraceProvider // nil only passes headers on
	Client, Random, Overall float64       // percent
	Verbose                 bool
	MaxPath                 uint32 // bytes of the path in spans
	CustomTags              []CustomTag
	SpawnUpstreamSpan       bool
}

// A TraceProvider is one of *OpenTelemetry and *Zipkin.
type TraceProvider interface{ traceProvider() }

// OpenTelemetry exports spans by OTLP.
type OpenTelemetry struct {
	Cluster   string // of the collector
	HTTPPath  string // of OTLP over HTTP; empty speaks gRPC
	Authority string
	Headers   []HeaderEdit
	Timeout   time.Duration
	Service   string // service.name
	Resource  map[string]string
}

// Zipkin exports spans as JSON v2.
type Zipkin struct {
	Cluster    string
	Endpoint   string // path
	Host       string
	TraceID128 bool
	SharedSpan bool
	SplitSpans bool
}

func (*OpenTelemetry) traceProvider() {}
func (*Zipkin) traceProvider()        {}

// A CustomTag adds a tag to spans. Exactly one of the sources is set.
type CustomTag struct {
	Tag           string
	Literal       string
	Env           string
	RequestHeader string
	Metadata      *MetadataKey
	MetadataOf    MetadataOf
	Default       string
}

// MetadataOf says whose metadata is meant.
type MetadataOf uint8

// The choices.
const (
	MetadataOfRequest MetadataOf = iota // dynamic
	MetadataOfRoute
	MetadataOfCluster
	MetadataOfHost
)

// LocalReply changes what the proxy answers itself.
type LocalReply struct {
	Mappers     []ReplyMapper
	Text        string // format of the body; empty takes the reply's
	JSON        any
	ContentType string
}

// A ReplyMapper changes the replies that its filter lets through. A zero field changes nothing.
type ReplyMapper struct {
	Filter      *LogFilter
	Status      int
	Body        *string
	Text        string
	JSON        any
	ContentType string
	Edits       []HeaderEdit
}

// An HTTPFilter is a filter of a manager.
type HTTPFilter struct {
	Name     string // by which routes change it
	Disabled bool   // unless a route switches it on
	Config   FilterConfig
}

// A FilterConfig is the configuration of one type of filter: the pointer types with the method.
type FilterConfig interface{ FilterType() string }

// Router is the last filter of every manager.
type Router struct {
	NoDynamicStats      bool
	StartChildSpan      bool
	UpstreamLogs        []AccessLog
	SuppressHeaders     bool // x-envoy- headers
	StrictHeaders       []string
	RespectExpected     bool
	SuppressGRPCFailure bool
}

// FilterType returns "envoy.filters.http.router".
func (*Router) FilterType() string { return "envoy.filters.http.router" }

func parseRetryOn(s string) (on RetryOn, unknown []string) {
	for _, name := range strings.Split(s, ",") {
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		bit, ok := retryNames[name]
		if !ok {
			unknown = append(unknown, name)
		}
		on |= bit
	}
	return on, unknown
}

var retryNames = map[string]RetryOn{
	"5xx": Retry5xx, "gateway-error": RetryGatewayError, "reset": RetryReset, "reset-before-request": RetryResetBeforeRequest,
	"connect-failure": RetryConnectFailure, "envoy-ratelimited": RetryEnvoyRateLimited, "retriable-4xx": Retry4xx,
	"refused-stream": RetryRefusedStream, "retriable-status-codes": RetryStatusCodes, "retriable-headers": RetryHeaders,
	"http3-post-connect-failure": RetryHTTP3PostConnect,
	"cancelled":                  RetryGRPCCancelled, "deadline-exceeded": RetryGRPCDeadline, "internal": RetryGRPCInternal,
	"resource-exhausted": RetryGRPCExhausted, "unavailable": RetryGRPCUnavailable,
}
