// Package definition holds service and check definitions as users write them, over HTTP and in configuration files:
// decoding, defaults, validation, the expansion of nested sidecars, the merge of central configuration, and the
// conversion to the instances and checks of the catalog (spec/registry.md sections 4 to 6).
//
// The package is pure. What it cannot know, such as which ports are free, callers pass in.
package definition

import (
	"net/netip"
	"reflect"
	"strconv"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// A Service is a service definition. The zero value of each field means it was not given.
type Service struct {
	Kind              string
	ID                string // default Name
	Name              string
	Tags              []string
	Address           string // empty means the node's address
	TaggedAddresses   map[string]catalog.ServiceAddress
	Meta              map[string]string
	Port              int
	SocketPath        string
	EnableTagOverride bool
	Weights           *catalog.Weights  // nil means 1 and 1
	Locality          *catalog.Locality // nil when unset
	Check             Check             // empty is no check
	Checks            []Check
	Proxy             *catalog.Proxy // nil when not given
	Connect           *Connect       // nil when not given
	Token             string         // secret to register with; files and nested sidecars only
}

// Connect is the mesh block of a definition.
type Connect struct {
	Native         bool
	SidecarService *Service // nil when there is none
}

// A Check is a check definition. Field names are those of the HTTP API and of the files that keep registrations.
type Check struct {
	ID        string `json:",omitempty"` // default in the comments of CheckType and Service.NestedChecks
	Name      string `json:",omitempty"`
	Notes     string `json:",omitempty"`
	Status    string `json:",omitempty"` // initial status; empty means critical
	ServiceID string `json:",omitempty"` // the service a stand-alone check belongs to, empty for the node
	Token     string `json:"-"`          // secret to register with; files only

	ScriptArgs        []string            `json:",omitempty"`
	HTTP              string              `json:",omitempty"` // URL
	Method            string              `json:",omitempty"` // default GET
	Header            map[string][]string `json:",omitempty"`
	Body              string              `json:",omitempty"`
	DisableRedirects  bool                `json:",omitempty"`
	TCP               string              `json:",omitempty"`
	TCPUseTLS         bool                `json:",omitempty"`
	UDP               string              `json:",omitempty"`
	GRPC              string              `json:",omitempty"` // host:port[/service]
	GRPCUseTLS        bool                `json:",omitempty"`
	H2PING            string              `json:",omitempty"`
	H2PingUseTLS      bool                `json:",omitempty"` // defaults to true where H2PING is decoded
	DockerContainerID string              `json:",omitempty"`
	Shell             string              `json:",omitempty"`
	OSService         string              `json:",omitempty"`
	AliasNode         string              `json:",omitempty"`
	AliasService      string              `json:",omitempty"` // a service ID
	TTL               time.Duration       `json:",omitempty"`
	Interval          time.Duration       `json:",omitempty"`
	Timeout           time.Duration       `json:",omitempty"` // zero means the type's default
	TLSServerName     string              `json:",omitempty"`
	TLSSkipVerify     bool                `json:",omitempty"`

	// Thresholds count results in a row; zero means the first one counts.
	SuccessBeforePassing   int `json:",omitempty"`
	FailuresBeforeWarning  int `json:",omitempty"` // default FailuresBeforeCritical
	FailuresBeforeCritical int `json:",omitempty"`

	// DeregisterCriticalServiceAfter greater than zero removes the service once the check has been critical so long.
	DeregisterCriticalServiceAfter time.Duration `json:",omitempty"`
	OutputMaxSize                  int           `json:",omitempty"` // bytes; can only lower the agent's limit

	// ProxyHTTP and ProxyGRPC are accepted and without effect.
	ProxyHTTP string `json:",omitempty"`
	ProxyGRPC string `json:",omitempty"`
}

// Check types, as shown in a check's Type.
const (
	TypeHTTP        = "http"
	TypeTCP         = "tcp"
	TypeUDP         = "udp"
	TypeGRPC        = "grpc"
	TypeTTL         = "ttl"
	TypeAlias       = "alias"
	TypeDocker      = "docker"
	TypeScript      = "script"
	TypeH2PING      = "h2ping"
	TypeOSService   = "os_service"
	TypeMaintenance = "maintenance" // made by the agent, never by a definition
)

// Empty reports whether nothing of the check was given: then it is no check.
func (c *Check) Empty() bool { return reflect.ValueOf(*c).IsZero() }

// CheckType returns what kind of check c is, empty for none: the first match in the order of spec/registry.md
// section 6.2.
func (c *Check) CheckType() string {
	periodic := c.Interval > 0
	switch {
	case c.GRPC != "" && periodic:
		return TypeGRPC
	case c.HTTP != "" && periodic:
		return TypeHTTP
	case c.TTL > 0:
		return TypeTTL
	case c.TCP != "" && periodic:
		return TypeTCP
	case c.UDP != "" && periodic:
		return TypeUDP
	case c.alias():
		return TypeAlias
	case c.docker() && periodic:
		return TypeDocker
	case c.script() && periodic:
		return TypeScript
	case c.H2PING != "" && periodic:
		return TypeH2PING
	case c.OSService != "" && periodic:
		return TypeOSService
	}
	return ""
}

func (c *Check) alias() bool  { return c.AliasNode != "" || c.AliasService != "" }
func (c *Check) script() bool { return len(c.ScriptArgs) > 0 }
func (c *Check) docker() bool { return c.DockerContainerID != "" && c.script() }

// RunsCommands reports whether c starts a program on the host or in a container, which the agent must have been
// configured to allow.
func (c *Check) RunsCommands() bool { return c.script() }

// ServiceID returns the ID s is registered under.
func (s *Service) ServiceID() string {
	if s.ID != "" {
		return s.ID
	}
	return s.Name
}

// NestedChecks returns the checks of s, Check first, with their IDs and names filled in: "service:ID" for a single one,
// "service:ID:1", "service:ID:2" … for several. An explicit ID is kept, and counted.
func (s *Service) NestedChecks() []Check {
	var checks []Check
	if !s.Check.Empty() {
		checks = append(checks, s.Check)
	}
	checks = append(checks, s.Checks...)
	id := s.ServiceID()
	for i := range checks {
		c := &checks[i]
		c.ServiceID = id
		if c.ID == "" {
			c.ID = "service:" + id
			if len(checks) > 1 {
				c.ID += ":" + strconv.Itoa(i+1)
			}
		}
		if c.Name == "" {
			c.Name = "Service '" + s.Name + "' check"
		}
	}
	return checks
}

// Instance returns the catalog instance that s defines, with defaults filled in: ID, weights, upstream types, and
// tagged addresses where Address is an IP literal. It shares no memory with s that either could change.
func (s *Service) Instance() *catalog.Service {
	inst := &catalog.Service{
		Kind: s.Kind, ID: s.ServiceID(), Service: s.Name, Address: s.Address, Port: s.Port, SocketPath: s.SocketPath,
		Tags: append([]string(nil), s.Tags...), Meta: cloneMap(s.Meta), TaggedAddresses: cloneMap(s.TaggedAddresses),
		Weights: &catalog.Weights{Passing: 1, Warning: 1}, EnableTagOverride: s.EnableTagOverride,
	}
	if s.Weights != nil {
		*inst.Weights = *s.Weights
	}
	if s.Locality != nil {
		l := *s.Locality
		inst.Locality = &l
	}
	if s.Connect != nil {
		inst.Connect.Native = s.Connect.Native
	}
	if s.Proxy != nil {
		inst.Proxy = cloneProxy(*s.Proxy)
		for i := range inst.Proxy.Upstreams {
			if u := &inst.Proxy.Upstreams[i]; u.DestinationType == "" {
				u.DestinationType = "service"
			}
		}
	}
	if ip, err := netip.ParseAddr(s.Address); err == nil {
		family := "_ipv4"
		if ip.Is6() {
			family = "_ipv6"
		}
		for _, scope := range []string{"lan", "wan"} {
			if _, given := inst.TaggedAddresses[scope+family]; !given {
				if inst.TaggedAddresses == nil {
					inst.TaggedAddresses = map[string]catalog.ServiceAddress{}
				}
				inst.TaggedAddresses[scope+family] = catalog.ServiceAddress{Address: s.Address, Port: s.Port}
			}
		}
	}
	return inst
}

// Record returns the catalog check that c defines on node, bound to svc when that is not nil. Interval and Timeout
// appear as text: those of a check nested in a service are empty when unset, those of a stand-alone check are "0s".
func (c *Check) Record(node string, svc *catalog.Service, nested bool) *catalog.Check {
	rec := &catalog.Check{
		Node: node, CheckID: c.ID, Name: c.Name, Status: c.Status, Notes: c.Notes, Type: c.CheckType(),
		Interval: intervalText(c.Interval, nested), Timeout: intervalText(c.Timeout, nested),
	}
	if rec.CheckID == "" {
		rec.CheckID = c.Name
	}
	if rec.Status == "" {
		rec.Status = catalog.Critical
	}
	if svc != nil {
		rec.ServiceID, rec.ServiceName, rec.ServiceTags = svc.ID, svc.Service, svc.Tags
	}
	return rec
}

func intervalText(d time.Duration, nested bool) string {
	if d == 0 && nested {
		return ""
	}
	return d.String()
}

func cloneMap[V any](m map[string]V) map[string]V {
	if m == nil {
		return nil
	}
	c := make(map[string]V, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// cloneProxy copies what is changed afterwards; opaque values are shared and never changed.
func cloneProxy(p catalog.Proxy) catalog.Proxy {
	p.Config = cloneMap(p.Config)
	p.EnvoyExtensions = append([]catalog.EnvoyExtension(nil), p.EnvoyExtensions...)
	p.Expose.Paths = append([]catalog.ExposePath(nil), p.Expose.Paths...)
	p.Upstreams = append([]catalog.Upstream(nil), p.Upstreams...)
	for i := range p.Upstreams {
		p.Upstreams[i].Config = cloneMap(p.Upstreams[i].Config)
	}
	if p.TransparentProxy != nil {
		t := *p.TransparentProxy
		p.TransparentProxy = &t
	}
	if p.AccessLogs != nil {
		a := *p.AccessLogs
		p.AccessLogs = &a
	}
	return p
}
