// Package query holds prepared queries: named searches for the instances of a service, kept by the servers, with what
// to do when none is found. A query may be a template that stands for every name with a prefix. The rules are in
// spec/state.md section 6.
//
// The package is pure: what needs a clock, randomness or other datacenters is chosen by its callers.
package query

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// A Query is one definition. Queries read from a store are shared; copy one with Clone before changing it.
type Query struct {
	ID       string // UUID
	Name     string // compared without regard to case; may be empty
	Session  string // ID of the session with which the query ends, empty for none
	Token    string // secret the query is executed with, empty for that of whoever asks
	Template Template
	Service  Service
	DNS      DNS
	catalog.Indexes
}

// NamePrefixMatch is the one type of template: it stands for the names that begin with its own.
const NamePrefixMatch = "name_prefix_match"

// A Template makes its query stand for many names; see Compile.
type Template struct {
	Type            string // NamePrefixMatch, or empty for a query that is no template
	Regexp          string // what match(n) takes its groups from; empty for none
	RemoveEmptyTags bool   // drop tags that are empty once rendered
}

// A Service says which instances are searched for.
type Service struct {
	Service        string
	Failover       Failover
	OnlyPassing    bool     // leave out instances with a warning too
	IgnoreCheckIDs []string // these checks do not count
	Near           string   // sort by round-trip time from this node; Agent and IP have a meaning of their own
	Tags           []string // all are needed, in any case; one that begins with '!' is forbidden
	NodeMeta       map[string]string
	ServiceMeta    map[string]string
	Connect        bool   // mesh-capable instances
	Peer           string // instances imported from this peer
	SamenessGroup  string // always empty
}

// Nodes to sort near of that are known only when a query is executed.
const (
	NearAgent = "_agent" // that of the agent that was asked
	NearIP    = "_ip"    // the one with the address of whoever asks
)

// A Failover says where to search when nothing is found here.
type Failover struct {
	NearestN    int // so many of the nearest other datacenters first
	Datacenters []string
	Targets     []Target
}

// A Target is one other place to search: a datacenter, or a peer.
type Target struct {
	Peer       string `json:",omitempty"`
	Datacenter string `json:",omitempty"`
}

// DNS says how results are told over DNS.
type DNS struct {
	TTL string // a duration; empty means that of the service
}

// Redacted stands in the place of a token that the reader may not see.
const Redacted = "<hidden>"

// Limits that keep the execution of a query cheap, in bytes.
const (
	MaxSize     = 512 << 10 // of a whole definition as it is sent to the servers
	MaxName     = 1 << 10   // of its name, and of a name that a template stands for
	MaxRegexp   = 4 << 10
	MaxRendered = 1 << 20 // of the strings of a rendered template
)

var (
	errUnbound     = errors.New("Must be bound to a session")
	errNoService   = errors.New("Must provide a Service name to query")
	errTargets     = errors.New("Targets cannot be populated with NearestN or Datacenters")
	errSameness    = errors.New("sameness-groups are an enterprise-only feature")
	errNameLimit   = fmt.Errorf("Name is longer than %d bytes", MaxName)
	errRegexpLimit = fmt.Errorf("Bad Regexp: longer than %d bytes", MaxRegexp)
	errRendered    = fmt.Errorf("rendered query is longer than %d bytes", MaxRendered)
)

// Validate checks the fields of a definition, save for what Compile checks. The error is the first rule it breaks.
func (q *Query) Validate() error {
	switch s := &q.Service; {
	case q.Name == "" && q.Session == "" && !q.IsTemplate():
		return errUnbound
	case len(q.Name) > MaxName:
		return errNameLimit
	case q.Token == Redacted:
		return fmt.Errorf("Bad Token '%s', it looks like a query definition with a redacted token was submitted", Redacted)
	case s.Service == "":
		return errNoService
	case s.SamenessGroup != "":
		return errSameness
	case s.Failover.NearestN < 0:
		return fmt.Errorf("Bad NearestN '%d', must be >= 0", s.Failover.NearestN)
	case len(s.Failover.Targets) > 0 && (s.Failover.NearestN > 0 || len(s.Failover.Datacenters) > 0):
		return errTargets
	}
	if err := catalog.ValidateMeta(q.Service.NodeMeta, ""); err != nil {
		return fmt.Errorf("Invalid Service.NodeMeta: %w", err)
	}
	return q.DNS.validate()
}

func (d DNS) validate() error {
	if d.TTL == "" {
		return nil
	}
	ttl, err := time.ParseDuration(d.TTL)
	if err != nil {
		return fmt.Errorf("Bad DNS TTL '%s': %w", d.TTL, err)
	}
	if ttl < 0 {
		return fmt.Errorf("DNS TTL '%d', must be >=0", ttl)
	}
	return nil
}

// Duration returns the TTL; ok is false when the query says none.
func (d DNS) Duration() (ttl time.Duration, ok bool) {
	ttl, err := time.ParseDuration(d.TTL)
	return ttl, err == nil && ttl >= 0
}

// IsTemplate reports whether the query stands for names with a prefix.
func (q *Query) IsTemplate() bool { return q.Template.Type != "" }

// RightName returns the name that rights on the query are asked for. ok is false for a query that has none, which
// whoever knows its ID may use: it lives no longer than its session.
func (q *Query) RightName() (name string, ok bool) { return q.Name, q.Name != "" || q.IsTemplate() }

// Redact returns the query without its token, if it has one.
func (q *Query) Redact() *Query {
	if q.Token == "" {
		return q
	}
	c := *q
	c.Token = Redacted
	return &c
}

// Same reports whether the two differ in their indexes at most.
func (q *Query) Same(o *Query) bool {
	return q.ID == o.ID && q.Name == o.Name && q.Session == o.Session && q.Token == o.Token && q.Template == o.Template &&
		q.DNS == o.DNS && q.Service.same(&o.Service)
}

func (s *Service) same(o *Service) bool {
	return s.Service == o.Service && s.Failover.NearestN == o.Failover.NearestN && s.OnlyPassing == o.OnlyPassing &&
		s.Near == o.Near && s.Connect == o.Connect && s.Peer == o.Peer && s.SamenessGroup == o.SamenessGroup &&
		sameList(s.Failover.Datacenters, o.Failover.Datacenters) && sameList(s.Failover.Targets, o.Failover.Targets) &&
		sameList(s.IgnoreCheckIDs, o.IgnoreCheckIDs) && sameList(s.Tags, o.Tags) &&
		sameMap(s.NodeMeta, o.NodeMeta) && sameMap(s.ServiceMeta, o.ServiceMeta)
}

// sameList tells nil and empty apart, since readers see the difference.
func sameList[T comparable](a, b []T) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

func sameMap(a, b map[string]string) bool { return (a == nil) == (b == nil) && maps.Equal(a, b) }

// clone returns a deep copy.
func (s *Service) clone() Service {
	c := *s
	c.Failover.Datacenters = slices.Clone(s.Failover.Datacenters)
	c.Failover.Targets = slices.Clone(s.Failover.Targets)
	c.IgnoreCheckIDs = slices.Clone(s.IgnoreCheckIDs)
	c.Tags = slices.Clone(s.Tags)
	c.NodeMeta, c.ServiceMeta = maps.Clone(s.NodeMeta), maps.Clone(s.ServiceMeta)
	return c
}
