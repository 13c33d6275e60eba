package model

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A RouteConfig tells where requests go.
type RouteConfig struct {
	Name         string
	VirtualHosts []VirtualHost
	// IgnorePort compares domains with the authority without its port.
	IgnorePort           bool
	IgnorePathParameters bool   // compare the path up to the first ';'
	HostHeader           string // whose value is compared with domains; empty takes the authority
	ValidateClusters     bool   // clusters that routes name must exist
	MostSpecificWins     bool   // header edits: of the table first, of the route last
	RequestEdits         []HeaderEdit
	ResponseEdits        []HeaderEdit
	MaxDirectBody        int // bytes
	PerFilter            map[string]PerFilter
	InternalOnly         []string // headers that only internal requests may send
	Mirrors              []Mirror // for virtual hosts without
	Metadata             Metadata
}

// PerFilter changes a filter for a virtual host, a route or a weighted cluster.
type PerFilter struct {
	Disabled bool
	Optional bool
	Config   FilterConfig // nil leaves the configuration
}

// A VirtualHost is the routes of some domains.
type VirtualHost struct {
	Name       string
	Domains    []string // lower case; exact, "*suffix", "prefix*" or "*"; a star elsewhere is a byte like others
	Routes     []Route
	RequireTLS TLSRequirement

	RequestEdits  []HeaderEdit
	ResponseEdits []HeaderEdit
	Retry         *RetryPolicy // for routes without one
	Mirrors       []Mirror     // for routes without
	RateLimits    []RateLimit
	PerFilter     map[string]PerFilter
	// AttemptCount adds "x-envoy-attempt-count" to requests, AttemptCountResponse to responses.
	AttemptCount, AttemptCountResponse bool
	// TimeoutRetry adds "x-envoy-is-timeout-retry" to requests that are sent again after a timeout.
	TimeoutRetry bool
	BufferLimit  int // bytes kept for retries; 0 takes the listener's
	Metadata     Metadata
}

// A TLSRequirement redirects plaintext requests to https.
type TLSRequirement uint8

// The requirements.
const (
	TLSNotRequired TLSRequirement = iota
	TLSExternalOnly
	TLSAlways
)

// A Route is what happens to the requests that it matches. Exactly one of Forward, Redirect and Direct is set, unless
// NonForwarding.
type Route struct {
	Name  string
	Match RouteMatch

	Forward       *Forward
	Redirect      *Redirect
	Direct        *DirectResponse
	NonForwarding bool

	RequestEdits  []HeaderEdit
	ResponseEdits []HeaderEdit
	PerFilter     map[string]PerFilter
	Decorator     string        // operation name of traces; may have operators
	Propagate     bool          // the operation name to the host
	StatPrefix    string        // counters of the route; empty keeps none
	BufferLimit   int           // bytes kept for retries; 0 takes the virtual host's
	Tracing       *RouteTracing // nil takes the manager's
	Metadata      Metadata
}

// RouteTracing replaces the sampling of the manager.
type RouteTracing struct {
	Client, Random, Overall float64 // percent
	CustomTags              []CustomTag
}

// Metadata is what the configuration says about a thing for others to use: namespace, key, value. Values are those
// of JSON: string, float64, bool, nil, []any, map[string]any.
type Metadata map[string]map[string]any

// A RouteMatch selects requests. All that is set must match.
type RouteMatch struct {
	Kind       PathKind
	Path       string         // lower case if IgnoreCase; the pattern of a PathRegex
	Regex      *regexp.Regexp // of a PathRegex: Path, made to match the whole path
	IgnoreCase bool
	Headers    []HeaderMatch
	Query      []QueryMatch
	Cookies    []CookieMatch
	GRPC       bool // only requests of gRPC
	Fraction   *Fraction
	// TLS: nil does not look at the client's certificate.
	TLSPresented, TLSValidated *bool
	Metadata                   []MetadataMatcher // dynamic metadata
	FilterState                []FilterStateMatcher
}

// A PathKind is a way to compare the path without its query.
type PathKind uint8

// The kinds.
const (
	PathPrefix PathKind = iota
	PathExact
	PathRegex
	PathSeparatedPrefix // the path itself or anything below it
	PathConnect         // CONNECT requests, whatever their path
)

// A Fraction is a share: Numerator of Denominator.
type Fraction struct{ Numerator, Denominator uint32 }

// Hit reports whether a random number falls into the fraction.
func (f Fraction) Hit(random uint64) bool {
	return f.Denominator > 0 && uint32(random%uint64(f.Denominator)) < f.Numerator
}

// A HeaderMatch is a rule about the values of one name, of which it is enough that one fits; inverted, none may.
type HeaderMatch struct {
	Name  string // lower case; or ":method", ":path", ":authority", ":scheme", ":status"
	Kind  HeaderKind
	Match StringMatch // HeaderString
	// Start and End bound the number of HeaderRange: Start <= n < End.
	Start, End int64
	Invert     bool
	// MissingAsEmpty compares a header that is not there as an empty one; else it does not match, inverted or not,
	// unless Kind asks for presence itself.
	MissingAsEmpty bool
}

// Fits reports whether a header fits by its value, or by not being there.
func (m *HeaderMatch) Fits(value string, present bool) bool {
	switch m.Kind {
	case HeaderPresent, HeaderAbsent:
		return ((present || m.MissingAsEmpty) == (m.Kind == HeaderPresent)) != m.Invert
	}
	if !present && !m.MissingAsEmpty {
		return false
	}
	return m.Hits(value) != m.Invert
}

// Hits compares one value of a HeaderString or HeaderRange, whether inverted or not.
func (m *HeaderMatch) Hits(value string) bool {
	switch m.Kind {
	case HeaderString:
		return m.Match.Match(value)
	case HeaderRange:
		n, err := strconv.ParseInt(strings.Trim(value, " \t"), 10, 64)
		return err == nil && m.Start <= n && n < m.End
	}
	return false
}

// A HeaderKind is a way to look at a header.
type HeaderKind uint8

// The kinds.
const (
	HeaderPresent HeaderKind = iota // it is there
	HeaderAbsent
	HeaderString
	HeaderRange
)

// A QueryMatch is a rule about the first query parameter of a name.
type QueryMatch struct {
	Name    string
	Present bool        // it is enough that it is there
	Absent  bool        // it must not be there
	Match   StringMatch // else
}

// A CookieMatch is a rule about the first cookie of a name. A cookie that is not there does not fit, so it does
// inverted.
type CookieMatch struct {
	Name   string
	Match  StringMatch
	Invert bool
}

// A MetadataMatcher is a rule about a value of metadata, found by its path.
type MetadataMatcher struct {
	Namespace string
	Path      []string
	Value     ValueMatch
	Invert    bool
}

// A FilterStateMatcher is a rule about an object of the filter state.
type FilterStateMatcher struct {
	Key     string
	Match   StringMatch
	Address []netip.Prefix // else: the object is an address in one of them
}

// A ValueMatch is a rule about a value of JSON. Exactly one field is set.
type ValueMatch struct {
	Null    bool
	Number  *NumberMatch
	String  *StringMatch
	Bool    *bool
	Present *bool
	Any     *ValueMatch // of a list: one item
	Or      []ValueMatch
}

// A NumberMatch is an exact number, or a range Start <= n < End.
type NumberMatch struct {
	Exact      bool
	Start, End float64 // Start is the exact one
}

// Forward sends requests to a cluster.
type Forward struct {
	Cluster       string // one of the three says which cluster
	ClusterHeader string // header with its name
	Weighted      []WeightedRoute
	WeightHeader  string // header that has the random number of the choice; empty draws it
	WeightByHash  bool

	NotFoundStatus int // without such a cluster; 503 or what was configured

	PrefixRewrite string // replaces what the match matched; empty keeps it
	RegexRewrite  *RegexRewrite
	HostRewrite   string // one of the four, or none
	AutoHost      bool
	HostHeader    string
	HostPathRegex *RegexRewrite
	AppendXFH     bool // the old authority goes to x-forwarded-host

	Timeout     time.Duration  // 0 never
	IdleTimeout *time.Duration // nil takes the manager's; 0 never
	MaxStream   *MaxStream     // replaces Timeout
	MaxGRPC     *time.Duration // old form: honour grpc-timeout up to it; 0 any
	GRPCOffset  time.Duration

	Retry            *RetryPolicy
	Mirrors          []Mirror
	Hash             []HashPolicy
	Priority         RoutingPriority
	MetadataMatch    map[string]any             // of "envoy.lb": the subset to choose from
	Upgrades         map[string]UpgradeOverride // by lower-case name
	ConnectTerminate bool                       // CONNECT ends here and becomes TCP
	InternalRedirect *InternalRedirect
	RateLimits       []RateLimit
	IncludeVHLimits  bool
}

// MaxStream bounds streams by time.
type MaxStream struct {
	Duration   *time.Duration // nil takes the manager's
	GRPCMax    *time.Duration // nil ignores grpc-timeout; 0 takes it as it is
	GRPCOffset time.Duration
}

// A RoutingPriority picks the circuit breakers.
type RoutingPriority uint8

// The priorities.
const (
	PriorityDefault RoutingPriority = iota
	PriorityHigh
)

// A WeightedRoute is a cluster that gets a share of the requests.
type WeightedRoute struct {
	Cluster       string // or
	ClusterHeader string
	Weight        uint32
	HostRewrite   string
	MetadataMatch map[string]any
	RequestEdits  []HeaderEdit
	ResponseEdits []HeaderEdit
	PerFilter     map[string]PerFilter
}

// A RegexRewrite replaces every match of a pattern. Substitution has the form of package regexp ("${1}").
type RegexRewrite struct {
	Pattern      *regexp.Regexp // not anchored
	Substitution string         // at most 10 groups: "${0}" to "${9}"
}

// UpgradeOverride switches an upgrade on or off for a route.
type UpgradeOverride struct{ Enabled bool }

// A RetryPolicy says when a request is sent again.
type RetryPolicy struct {
	On              RetryOn
	Statuses        []int
	NumRetries      uint32
	PerTry          time.Duration // 0 takes the route's
	PerTryIdle      time.Duration // 0 never
	BaseBackOff     time.Duration
	MaxBackOff      time.Duration
	RateLimited     *RateLimitedBackOff
	Headers         []HeaderMatch // of the response
	RequestHeaders  []HeaderMatch // of the request; empty retries any
	AvoidHosts      bool          // previous hosts
	AvoidMetadata   []Metadata    // hosts that have all of one
	AvoidCanary     bool
	HostAttempts    uint32 // choices to find a host that is not avoided
	AvoidPriorities bool
	PriorityEvery   uint32 // update_frequency
}

// RetryOn is a set of conditions.
type RetryOn uint32

// The conditions; their names are those of the configuration.
const (
	Retry5xx RetryOn = 1 << iota
	RetryGatewayError
	RetryReset
	RetryResetBeforeRequest
	RetryConnectFailure
	RetryEnvoyRateLimited
	Retry4xx
	RetryRefusedStream
	RetryStatusCodes
	RetryHeaders
	RetryHTTP3PostConnect
	RetryGRPCCancelled
	RetryGRPCDeadline
	RetryGRPCInternal
	RetryGRPCExhausted
	RetryGRPCUnavailable
)

// ParseRetryOn returns the set that a comma-separated list names. Unknown names are left out and reported.
func ParseRetryOn(s string) (on RetryOn, unknown []string) { return parseRetryOn(s) }

// RateLimitedBackOff takes the wait from headers of the response.
type RateLimitedBackOff struct {
	Headers []ResetHeader
	Max     time.Duration
}

// A ResetHeader has the seconds to wait, or the UNIX time to wait for.
type ResetHeader struct {
	Name string
	Unix bool
}

// A Mirror sends a copy of requests elsewhere.
type Mirror struct {
	Cluster       string
	ClusterHeader string
	Fraction      *Fraction // nil mirrors all
	TraceSampled  *bool     // nil takes the decision about the request
	NoShadowHost  bool
	HostRewrite   string // replaces the authority; empty keeps it
	RequestEdits  []HeaderEdit
}

// A HashPolicy gives the hash of a request for consistent balancing. Exactly one of its sources is set.
type HashPolicy struct {
	Header        string
	HeaderRewrite *RegexRewrite
	Cookie        *HashCookie
	SourceIP      bool
	Query         string
	FilterState   string
	Terminal      bool // stop if there is a hash by now
}

// A HashCookie is a cookie that holds clients to their host.
type HashCookie struct {
	Name       string
	TTL        *time.Duration // nil makes none; 0 for the session of the client
	Path       string
	Attributes []string // "name=value" or "name"
}

// InternalRedirect follows redirects of the host.
type InternalRedirect struct {
	Max         uint32
	Statuses    []int
	CrossScheme bool
}

// A Redirect answers with another place to go.
type Redirect struct {
	HTTPS      bool
	Scheme     string
	Host       string
	Port       uint16
	Path       string // one of Path, Prefix and Regex, or none
	Prefix     *string
	Regex      *RegexRewrite
	Status     int
	StripQuery bool
}

// A DirectResponse answers at once.
type DirectResponse struct {
	Status      int
	Body        string
	Text        string // format of the body; empty takes Body as it stands
	JSON        any    // format of a JSON body, as in access logs; nil is none
	ContentType string // empty is text/plain
}

// A HeaderEdit changes the fields of one name. Value may have operators of access logs.
type HeaderEdit struct {
	Remove    bool
	Name      string // lower case
	Value     string
	Action    AppendAction
	KeepEmpty bool // an empty value is added, too
}

// An AppendAction is what happens to fields that are there.
type AppendAction uint8

// The actions.
const (
	AppendOrAdd AppendAction = iota
	AddIfAbsent
	OverwriteOrAdd
	OverwriteIfExists
)

// A RateLimit makes a descriptor for rate limiters.
type RateLimit struct {
	Stage      uint32
	DisableKey string
	Actions    []RateLimitAction
}

// A RateLimitAction makes an entry of a descriptor. Exactly one is set.
type RateLimitAction struct {
	SourceCluster, DestinationCluster, RemoteAddress bool
	MaskV4, MaskV6                                   int // prefix lengths of the masked remote address; 0 is not that action
	Header, HeaderKey                                string
	SkipIfAbsent                                     bool
	Generic, GenericKey                              string
	HeaderValue                                      *HeaderValueMatch
	Query                                            string
	Metadata                                         *MetadataKey
}

// HeaderValueMatch makes an entry if headers match.
type HeaderValueMatch struct {
	Key, Value string
	Expect     bool
	Headers    []HeaderMatch
}

// A MetadataKey is a place in dynamic metadata.
type MetadataKey struct {
	Key       string // of the entry
	Namespace string
	Path      []string
	Default   string
}
