package model

import (
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
	ActiveBias     float64 // exponent of active requests for least request with weights
	LocalityLB     bool    // draw the locality by weight first
	// PanicThreshold is the percentage of usable hosts below which health is
	// ignored; 0 never ignores it.
	PanicThreshold     float64
	FailTrafficOnPanic bool

	MaxConnections uint32 // at a time; 0 allows only the first

	Outlier     *Outlier     // nil ejects nobody
	TLS         *UpstreamTLS // nil connects in plaintext
	BufferLimit int
	Keepalive   *Keepalive // nil leaves the system's default
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
)

// String returns the name that the configuration uses.
func (p LBPolicy) String() string {
	return [...]string{"ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV", "CLUSTER_PROVIDED"}[p]
}

// Outlier tunes the ejection of hosts that fail. Percentages are 0 to 100.
type Outlier struct {
	Consecutive5xx          uint32
	EnforceConsecutive5xx   uint32
	ConsecutiveLocal        uint32
	EnforceConsecutiveLocal uint32
	SplitLocalErrors        bool
	Interval                time.Duration
	BaseEjection            time.Duration
	MaxEjection             time.Duration
	EjectionJitter          time.Duration
	MaxEjectionPercent      uint32
	AlwaysEjectOne          bool
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
	if c.TLS == nil {
		return nil
	}
	return c.TLS.Secrets()
}
