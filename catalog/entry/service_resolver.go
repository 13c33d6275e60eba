package entry

import (
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// A ServiceResolver says which instances stand for a service: subsets, redirects, failover and load balancing
// (spec/connect.md section 8.6).
type ServiceResolver struct {
	Header
	DefaultSubset        string                     `json:",omitempty"`
	Subsets              map[string]ServiceSubset   `json:",omitempty"`
	Redirect             *ServiceRedirect           `json:",omitempty"`
	Failover             map[string]ServiceFailover `json:",omitempty"` // by subset, or "*"
	ConnectTimeout       catalog.Duration           `json:",omitempty"` // 0 means 5s
	RequestTimeout       catalog.Duration           `json:",omitempty"` // 0 means the proxy's default
	LoadBalancer         *LoadBalancer              `json:",omitempty"`
	PrioritizeByLocality *LocalityPriority          `json:",omitempty"` // always refused
}

// A ServiceSubset is a named part of a service's instances.
type ServiceSubset struct {
	Filter      string `json:",omitempty"` // of instances, spec/registry.md section 2; empty for all
	OnlyPassing bool   `json:",omitempty"`
}

// A ServiceRedirect replaces what is asked for by something else.
type ServiceRedirect struct {
	Service       string `json:",omitempty"` // empty means the same
	ServiceSubset string `json:",omitempty"`
	Namespace     string `json:",omitempty"`
	Partition     string `json:",omitempty"`
	Datacenter    string `json:",omitempty"`
	Peer          string `json:",omitempty"`
	SamenessGroup string `json:",omitempty"`
}

// A ServiceFailover says where to go when no instance is healthy.
type ServiceFailover struct {
	Service       string          `json:",omitempty"`
	ServiceSubset string          `json:",omitempty"`
	Namespace     string          `json:",omitempty"`
	Datacenters   []string        `json:",omitempty"`
	Targets       []FailoverTo    `json:",omitempty"`
	Policy        *FailoverPolicy `json:",omitempty"`
	SamenessGroup string          `json:",omitempty"`
}

// A FailoverTo is one target of a failover.
type FailoverTo struct {
	Service       string `json:",omitempty"`
	ServiceSubset string `json:",omitempty"`
	Namespace     string `json:",omitempty"`
	Partition     string `json:",omitempty"`
	Datacenter    string `json:",omitempty"`
	Peer          string `json:",omitempty"`
}

// Policies of load balancing that choose by a hash of the request.
const (
	PolicyRingHash     = "ring_hash"
	PolicyMaglev       = "maglev"
	PolicyLeastRequest = "least_request"
	PolicyRoundRobin   = "round_robin"
	PolicyRandom       = "random"
)

// A LoadBalancer says how instances are chosen.
type LoadBalancer struct {
	Policy             string              `json:",omitempty"`
	RingHashConfig     *RingHashConfig     `json:",omitempty"`
	LeastRequestConfig *LeastRequestConfig `json:",omitempty"`
	HashPolicies       []HashPolicy        `json:",omitempty"`
}

// Hashes reports whether the policy chooses by a hash.
func (lb *LoadBalancer) Hashes() bool {
	return lb != nil && (lb.Policy == PolicyMaglev || lb.Policy == PolicyRingHash)
}

// RingHashConfig tunes PolicyRingHash.
type RingHashConfig struct {
	MinimumRingSize uint64 `json:",omitempty"`
	MaximumRingSize uint64 `json:",omitempty"`
}

// LeastRequestConfig tunes PolicyLeastRequest.
type LeastRequestConfig struct {
	ChoiceCount uint32 `json:",omitempty"`
}

// A HashPolicy adds something of the request to the hash.
type HashPolicy struct {
	Field        string        `json:",omitempty"` // "header", "cookie" or "query_parameter"
	FieldValue   string        `json:",omitempty"` // its name
	CookieConfig *CookieConfig `json:",omitempty"`
	SourceIP     bool          `json:",omitempty"`
	Terminal     bool          `json:",omitempty"`
}

// A CookieConfig describes the cookie made where the request has none.
type CookieConfig struct {
	Session bool          `json:",omitempty"`
	TTL     time.Duration `json:",omitempty"`
	Path    string        `json:",omitempty"`
}
