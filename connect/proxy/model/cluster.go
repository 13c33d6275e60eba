package model

import (
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// A Cluster is a named set of hosts that connections are balanced over.
type Cluster struct {
	Name        string
	AltStatName string // replaces the name in statistics; may be empty
	Type        ClusterType

	// EDSName is the name of the load assignment of an EDS cluster.
	EDSName      string
	FetchTimeout time.Duration // how long to wait for it; 0 for ever

	Endpoints *LoadAssignment // of STATIC and DNS clusters; else nil
	Members   []string        // of an aggregate, first choice first

	DNS DNS

	ConnectTimeout time.Duration // TCP and TLS together; always positive
	LB             LBPolicy
	Choices        int     // hosts that least request compares; at least 2
	FullScan       bool    // least request compares all hosts
	ActiveBias     float64 // exponent of active requests for least request with weights
	LocalityLB     bool    // draw the locality by weight first
	// PanicThreshold is the percentage of usable hosts below which health is
	// ignored; 0 never ignores it.
	PanicThreshold     float64
	FailTrafficOnPanic bool
	SlowStart          *SlowStart // nil gives new hosts their full share at once
	Ring               Ring       // of RingHash
	MaglevTable        uint64     // entries, a prime; 0 takes the default
	HashHostname       bool       // hash host names rather than addresses
	HashBalance        uint32     // percent of the average load that a hashed host may have; 0 any
	PeakEWMA           PeakEWMA
	Subsets            *Subsets // nil chooses from all hosts

	Breakers [2]Breaker // by RoutingPriority

	HTTP        UpstreamHTTP
	HealthCheck *HealthCheck // nil checks nobody
	// Hosts stay out until they passed their first health check.
	IgnoreNewUntilChecked bool
	// CloseOnFailure closes connections to hosts that health checks find unhealthy.
	CloseOnFailure bool
	// ForgetAtOnce drops hosts that left at once, even if they pass their health checks.
	ForgetAtOnce bool

	Outlier     *Outlier     // nil ejects nobody
	TLS         *UpstreamTLS // nil connects in plaintext
	TLSMatches  []TLSMatch   // replace TLS for endpoints with the metadata; the first that matches counts
	BufferLimit int
	Keepalive   *Keepalive // nil leaves the system's default
	OriginalDst OriginalDestination
	Metadata    Metadata
}

// SlowStart raises the weight of new hosts over time.
type SlowStart struct {
	Window     time.Duration
	Aggression float64 // 1 is linear; above faster at first
	MinPercent float64 // of the weight, at the start
}

// A Ring tunes RingHash.
type Ring struct {
	Min, Max uint64 // points; at least 1
	Murmur   bool   // MurmurHash 2 rather than xxHash
}

// PeakEWMA tunes the policy of that name. A zero field takes its default.
type PeakEWMA struct {
	Decay time.Duration // of what was measured; default 10 s
	Start time.Duration // assumed of a host that was not measured; default 30 ms
}

// Subsets divides hosts by their metadata under "envoy.lb".
type Subsets struct {
	Fallback      SubsetFallback // when no subset fits; never FallbackSelector
	Default       []MetadataMatch
	Selectors     []SubsetSelector
	LocalityAware bool // localities keep their weights within a subset
	ScaleLocality bool
	PanicAny      bool // choose from all hosts if the fallback has none
	ListAsAny     bool // a list in an endpoint's metadata stands for each of its items
}

// A SubsetSelector makes a subset of the hosts that have the same values under its keys.
type SubsetSelector struct {
	Keys         []string // sorted
	Single       bool     // one host in each subset
	Fallback     SubsetFallback
	FallbackKeys []string // of FallbackKeySubset; sorted
}

// A SubsetFallback says what happens when no subset fits.
type SubsetFallback uint8

// The fallbacks.
const (
	FallbackNone SubsetFallback = iota
	FallbackAny
	FallbackDefault
	FallbackKeySubset // try again with fewer keys
	FallbackCluster   // what the cluster says; of selectors only
)

// A MetadataMatch is a value that an endpoint must have under a key.
type MetadataMatch struct {
	Key   string
	Value string // canonical JSON
}

// NewMetadataMatches returns what selects endpoints with the values, sorted by key.
func NewMetadataMatches(values map[string]any) []MetadataMatch {
	var out []MetadataMatch
	for _, k := range slices.Sorted(maps.Keys(values)) {
		out = append(out, MetadataMatch{k, CanonicalValue(values[k])})
	}
	return out
}

// CanonicalValue returns a value of metadata as JSON that is the same for equal values.
func CanonicalValue(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // NaN; equals nothing that an endpoint may have
		return ""
	}
	return string(b)
}

// A Breaker limits what is in progress at a time. Limits are exact.
type Breaker struct {
	MaxConnections uint32 // 0 allows only the first
	MaxPending     uint32
	MaxRequests    uint32
	MaxRetries     uint32       // unless there is a budget
	MaxPools       uint32       // 0 is unlimited
	Budget         *RetryBudget // nil limits retries by MaxRetries
	TrackRemaining bool         // show how much is left
	// MaxHostConnections limits the connections of each host; 0 is unlimited.
	MaxHostConnections uint32
}

// DefaultBreaker are the limits of a cluster that sets none.
var DefaultBreaker = Breaker{MaxConnections: 1024, MaxPending: 1024, MaxRequests: 1024, MaxRetries: 3}

// A RetryBudget limits retries by what is in progress.
type RetryBudget struct {
	Percent float64 // of active and pending requests
	Min     uint32  // retries that are always allowed
}

// UpstreamHTTP is how HTTP is spoken with hosts.
type UpstreamHTTP struct {
	Protocol    UpstreamProtocol
	HTTP1       HTTP1Options
	HTTP2       HTTP2Options
	IdleTimeout time.Duration // of a connection without requests; 0 never
	MaxDuration time.Duration // of a connection; 0 any
	MaxRequests uint32        // of a connection; 0 any
	MaxHeaders  int           // of a response; 0 takes DefaultMaxHeaders
	// MaxHeaderBytes bounds the header of a response; 0 takes 60 KiB for HTTP/2 and 80 KiB for HTTP/1.
	MaxHeaderBytes int
	MaxStream      time.Duration // of a request with its response; 0 any
	Underscores    UnderscoreAction
	AutoSNI        bool   // the server name is the host of the request
	SNIHeader      string // with AutoSNI: take it from this header; empty takes :authority
	AutoSAN        bool   // the certificate must be for that name
	Filters        []HTTPFilter
}

// An UpstreamProtocol says which version of HTTP is spoken.
type UpstreamProtocol uint8

// The choices.
const (
	UpstreamHTTP1    UpstreamProtocol = iota
	UpstreamHTTP2                     // with prior knowledge, or by ALPN under TLS
	UpstreamAsClient                  // what the client speaks
	UpstreamALPN                      // HTTP/2 if the host agrees, else HTTP/1
)

// A TLSMatch is a TLS context for some endpoints.
type TLSMatch struct {
	Name  string
	Match []MetadataMatch // under "envoy.transport_socket_match"; empty fits all
	TLS   *UpstreamTLS    // nil connects in plaintext
}

// OriginalDestination tunes clusters of that type.
type OriginalDestination struct {
	Header  string // of the request, with the address; empty uses the connection's destination only
	Port    uint16 // replaces the destination's; 0 keeps it
	Cleanup time.Duration
}

// A HealthCheck probes each host again and again. Exactly one of HTTP, TCP and GRPC is set.
type HealthCheck struct {
	Timeout, Interval    time.Duration // positive
	InitialJitter        time.Duration
	Jitter               time.Duration
	JitterPercent        uint32
	NoTraffic            time.Duration // interval while the cluster was never used
	NoTrafficHealthy     time.Duration // of healthy hosts in that time
	UnhealthyInterval    time.Duration
	UnhealthyEdge        time.Duration // after the check that changed a host to unhealthy
	HealthyEdge          time.Duration
	Unhealthy, Healthy   uint32 // results in a row that change a host; at least 1
	NoReuse              bool   // a connection for each check
	AltPort              uint16
	ALPN                 []string
	TLSMatch             map[string]any // picks among TLSMatches; nil takes the endpoint's metadata
	LogFailures, LogGood bool

	HTTP *HTTPCheck
	TCP  *TCPCheck
	GRPC *GRPCCheck
}

// HTTPCheck asks by HTTP.
type HTTPCheck struct {
	Method   string
	Host     string // empty takes the endpoint's host name, else the cluster's name
	Path     string
	Body     []byte
	Receive  [][]byte // pieces that the body must have in order
	Edits    []HeaderEdit
	Expected []StatusRange // good; empty is 200
	Retry    []StatusRange // bad, but counted against the threshold
	HTTP2    bool
	Service  *StringMatch // of x-envoy-upstream-healthchecked-cluster; nil does not look
	MaxBody  uint64       // read for Receive; 0 takes the default
}

// A StatusRange is Start <= status < End.
type StatusRange struct{ Start, End int }

// TCPCheck connects, sends and waits for the pieces in order.
type TCPCheck struct {
	Send    []byte
	Receive [][]byte
}

// GRPCCheck asks grpc.health.v1.Health.
type GRPCCheck struct {
	Service   string
	Authority string // empty takes the cluster's name
	Metadata  []HeaderEdit
}

// A ClusterType says where the hosts come from.
type ClusterType uint8

// The cluster types.
const (
	Static ClusterType = iota
	StrictDNS
	LogicalDNS
	EDS
	OriginalDst
	Aggregate
)

// String returns the name that the configuration uses.
func (t ClusterType) String() string {
	return [...]string{"STATIC", "STRICT_DNS", "LOGICAL_DNS", "EDS", "ORIGINAL_DST", "AGGREGATE"}[t]
}

// DNS tunes the lookups of a DNS cluster.
type DNS struct {
	Refresh time.Duration
	Family  LookupFamily
}

// A LookupFamily says which addresses of a name count.
type LookupFamily uint8

// The families.
const (
	FamilyAuto LookupFamily = iota // IPv6 if there is any, else IPv4
	FamilyV4
	FamilyV6
	FamilyPreferV4
	FamilyAll
)

// An LBPolicy is a way to choose a host.
type LBPolicy uint8

// The policies. The hashing ones choose at random when there is no hash.
const (
	RoundRobin LBPolicy = iota
	LeastRequest
	Random
	RingHash
	Maglev
	ProvidedByCluster
	PeakEWMAPolicy
)

// String returns the name that the configuration uses.
func (p LBPolicy) String() string {
	return [...]string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV", "CLUSTER_PROVIDED", "PEAK_EWMA"}[p]
}

// Outlier tunes the ejection of hosts that fail. Percentages are 0 to 100.
type Outlier struct {
	Consecutive5xx          uint32
	EnforceConsecutive5xx   uint32
	ConsecutiveGateway      uint32
	EnforceGateway          uint32
	ConsecutiveLocal        uint32
	EnforceConsecutiveLocal uint32
	SplitLocalErrors        bool
	Interval                time.Duration
	BaseEjection            time.Duration
	MaxEjection             time.Duration
	EjectionJitter          time.Duration
	MaxEjectionPercent      uint32
	AlwaysEjectOne          bool
	KeepDespiteCheck        bool // a good health check does not end an ejection

	SuccessRate       OutlierRate // ejects below mean − Factor × deviation
	FailurePercentage OutlierRate // ejects from Factor percent of failures on
}

// An OutlierRate tunes the ejection of hosts by their share of good answers in an interval.
type OutlierRate struct {
	MinHosts, MinRequests uint32 // of those hosts that had as many requests
	Factor                float64
	Enforce, EnforceLocal uint32
}

// Keepalive tunes TCP keepalive. A zero field leaves the system's default.
type Keepalive struct {
	Probes         int
	Time, Interval time.Duration
}

// A LoadAssignment is the hosts of a cluster.
type LoadAssignment struct {
	Cluster          string // the name it answers to
	Endpoints        []Endpoint
	Localities       []Locality
	Overprovisioning uint32 // percent
	Drops            []DropOverload
	// PriorityByWeight measures the health of priorities by the weights of hosts rather than their number.
	PriorityByWeight bool
	StaleAfter       time.Duration // hosts are dropped unless a new assignment came; 0 never
}

// A DropOverload refuses a share of requests.
type DropOverload struct {
	Category string
	Fraction Fraction
}

// A Locality is a group of endpoints in one place.
type Locality struct {
	Region, Zone, SubZone string
	Priority              uint32
	Weight                uint32 // 0 gets no traffic where localities are weighted
}

// An Endpoint is one host.
type Endpoint struct {
	Address  Address
	Hostname string
	Health   Health
	Weight   uint32 // at least 1
	Priority uint32 // 0 is the first choice
	Locality int    // index into the Localities of the assignment
	Metadata Metadata
	// Additional are further addresses of the host, tried when connecting takes long.
	Additional []Address
	Check      EndpointCheck
}

// An EndpointCheck changes the health checks of an endpoint.
type EndpointCheck struct {
	Address  Address // zero takes the endpoint's
	Port     uint16  // 0 takes the address's
	Hostname string
	Disabled bool
}

// A Health says whether a host may be used.
type Health uint8

// The states of health.
const (
	Healthy Health = iota
	Degraded
	Unhealthy
)

// String returns the name in lower case.
func (h Health) String() string {
	return [...]string{"healthy", "degraded", "unhealthy"}[h]
}

// Secrets returns the SDS names that the cluster needs.
func (c *Cluster) Secrets() []string {
	var names []string
	if c.TLS != nil {
		names = append(names, c.TLS.Secrets()...)
	}
	for _, m := range c.TLSMatches {
		if m.TLS != nil {
			names = append(names, m.TLS.Secrets()...)
		}
	}
	return names
}
