package entry

import (
	"errors"
	"fmt"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/filter"
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

// IsDefault reports whether the entry says nothing.
func (e *ServiceResolver) IsDefault() bool {
	return e.DefaultSubset == "" && len(e.Subsets) == 0 && e.Redirect == nil && len(e.Failover) == 0 &&
		e.ConnectTimeout == 0 && e.RequestTimeout == 0 && e.LoadBalancer == nil
}

func (e *ServiceResolver) hasSubset(name string) bool {
	if name == "" {
		return true
	}
	_, ok := e.Subsets[name]
	return ok
}

// Validate checks the entry.
func (e *ServiceResolver) Validate() error {
	if e.Name == "" {
		return errName
	}
	if e.PrioritizeByLocality != nil {
		return errors.New("Prioritize-by-locality is a consul enterprise feature")
	}
	for _, name := range sortedKeys(e.Subsets) {
		if name == "" {
			return errors.New("Subset defined with empty name")
		}
		if !validSubset(name) {
			return fmt.Errorf("Subset %q is invalid: must be 63 characters or fewer, begin or end with lower case alphanumeric characters, and contain lower case alphanumeric characters or '-' in between", name)
		}
		if _, err := filter.Compile[*catalog.Instance](e.Subsets[name].Filter); err != nil {
			return fmt.Errorf("Filter for subset %q is not a valid expression: %w", name, err)
		}
	}
	if !e.hasSubset(e.DefaultSubset) {
		return fmt.Errorf("DefaultSubset %q is not a valid subset", e.DefaultSubset)
	}
	if e.Redirect != nil {
		if err := e.checkRedirect(); err != nil {
			return err
		}
	}
	for _, subset := range sortedKeys(e.Failover) {
		f := e.Failover[subset]
		if err := e.checkFailover(subset, &f); err != nil {
			return fmt.Errorf("Bad Failover[%q]%w", subset, err)
		}
	}
	switch {
	case e.ConnectTimeout < 0:
		return fmt.Errorf("Bad ConnectTimeout '%s', must be >= 0", e.ConnectTimeout)
	case e.RequestTimeout < 0:
		return fmt.Errorf("Bad RequestTimeout '%s', must be >= 0", e.RequestTimeout)
	}
	return e.LoadBalancer.check()
}

func validSubset(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func (e *ServiceResolver) checkRedirect() error {
	r := e.Redirect
	if *r == (ServiceRedirect{}) {
		return errors.New("Redirect is empty")
	}
	if err := checkTenancy("Redirect", r.Namespace, r.Partition, r.SamenessGroup); err != nil {
		return err
	}
	switch {
	case len(e.Failover) != 0:
		return errors.New("Redirect and Failover cannot both be set")
	case r.Peer != "" && r.Datacenter != "":
		return errors.New("Redirect.Peer cannot be set with Redirect.Datacenter")
	case r.Peer != "" && r.ServiceSubset != "":
		return errors.New("Redirect.Peer cannot be set with Redirect.ServiceSubset")
	case r.Service == "" && r.ServiceSubset != "":
		return errors.New("Redirect.ServiceSubset defined without Redirect.Service")
	case r.Service == "" && r.Peer != "":
		return errors.New("Redirect.Peer defined without Redirect.Service")
	case r.Service == e.Name && !e.hasSubset(r.ServiceSubset):
		return fmt.Errorf("Redirect.ServiceSubset %q is not a valid subset of %q", r.ServiceSubset, r.Service)
	}
	return nil
}

// checkFailover checks one failover. Its errors begin with what goes between the subset and the problem.
func (e *ServiceResolver) checkFailover(subset string, f *ServiceFailover) error {
	if subset != Wildcard && !e.hasSubset(subset) {
		return errors.New(": not a valid subset subset")
	}
	if err := checkTenancy("", f.Namespace, "", f.SamenessGroup); err != nil {
		return fmt.Errorf(": %w", err)
	}
	if f.Policy != nil {
		return errors.New(": Setting failover policies is a consul enterprise feature")
	}
	switch {
	case f.Service == "" && f.ServiceSubset == "" && len(f.Datacenters) == 0 && len(f.Targets) == 0:
		return errors.New(": one of Service, ServiceSubset, Namespace, Targets, SamenessGroup, or Datacenters is required")
	case len(f.Targets) != 0 && len(f.Datacenters) != 0:
		return errors.New(": Targets cannot be set with Datacenters")
	case len(f.Targets) != 0 && f.ServiceSubset != "":
		return errors.New(": Targets cannot be set with ServiceSubset")
	case len(f.Targets) != 0 && f.Service != "":
		return errors.New(": Targets cannot be set with Service")
	case f.ServiceSubset != "" && (f.Service == "" || f.Service == e.Name) && !e.hasSubset(f.ServiceSubset):
		return fmt.Errorf(".ServiceSubset %q is not a valid subset of %q", f.ServiceSubset, e.Name)
	}
	for _, dc := range f.Datacenters {
		if dc == "" {
			return errors.New(".Datacenters: found empty datacenter")
		}
	}
	for i, t := range f.Targets {
		var err error
		switch {
		case t.Peer != "" && t.Datacenter != "":
			err = errors.New("Peer cannot be set with Datacenter")
		case t.Peer != "" && t.ServiceSubset != "":
			err = errors.New("Peer cannot be set with ServiceSubset")
		case t.ServiceSubset != "" && (t.Service == "" || t.Service == e.Name) && !e.hasSubset(t.ServiceSubset):
			err = fmt.Errorf("ServiceSubset %q is not a valid subset of %q", t.ServiceSubset, e.Name)
		default:
			err = checkTenancy("", t.Namespace, t.Partition, "")
		}
		if err != nil {
			return fmt.Errorf(".Targets[%d]: %w", i, err)
		}
	}
	return nil
}

func (lb *LoadBalancer) check() error {
	if lb == nil {
		return nil
	}
	switch lb.Policy {
	case "", PolicyRandom, PolicyRoundRobin, PolicyLeastRequest, PolicyRingHash, PolicyMaglev:
	default:
		return fmt.Errorf("Bad LoadBalancer policy: %q is not supported", lb.Policy)
	}
	switch {
	case lb.RingHashConfig != nil && lb.Policy != PolicyRingHash:
		return fmt.Errorf("Bad LoadBalancer configuration. RingHashConfig specified for incompatible load balancing policy %q", lb.Policy)
	case lb.LeastRequestConfig != nil && lb.Policy != PolicyLeastRequest:
		return fmt.Errorf("Bad LoadBalancer configuration. LeastRequestConfig specified for incompatible load balancing policy %q", lb.Policy)
	case len(lb.HashPolicies) != 0 && !lb.Hashes():
		return fmt.Errorf("Bad LoadBalancer configuration: HashPolicies specified for non-hash-based Policy: %q", lb.Policy)
	}
	for i, p := range lb.HashPolicies {
		if err := p.check(); err != nil {
			return fmt.Errorf("Bad LoadBalancer HashPolicy[%d]: %w", i, err)
		}
	}
	return nil
}

func (p *HashPolicy) check() error {
	switch p.Field {
	case "", "header", "cookie", "query_parameter":
	default:
		return fmt.Errorf("%q is not a supported field", p.Field)
	}
	switch {
	case p.SourceIP && p.Field != "":
		return fmt.Errorf("A single hash policy cannot hash both a source address and a %q", p.Field)
	case p.SourceIP && p.FieldValue != "":
		return errors.New("A FieldValue cannot be specified when hashing SourceIP")
	case p.Field != "" && p.FieldValue == "":
		return fmt.Errorf("Field %q was specified without a FieldValue", p.Field)
	case p.Field == "" && p.FieldValue != "":
		return errors.New("FieldValue requires a Field to apply to")
	case p.CookieConfig != nil && p.Field != "cookie":
		return fmt.Errorf("cookie_config provided for %q", p.Field)
	case p.CookieConfig != nil && p.CookieConfig.Session && p.CookieConfig.TTL != 0:
		return errors.New("a session cookie cannot have an associated TTL")
	}
	return nil
}
