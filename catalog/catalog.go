// Package catalog holds what a registry knows: nodes, the service instances on them, and the health checks of both.
//
// The package is pure: types and rules, standard library only beside the RPC descriptors. JSON tags give the form of
// the catalog and health endpoints (spec/registry.md section 3); the same names are used in the Raft log.
package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// Kinds of service instances. Any other text is accepted and treated as typical.
const (
	KindTypical            = ""
	KindConnectProxy       = "connect-proxy"
	KindMeshGateway        = "mesh-gateway"
	KindTerminatingGateway = "terminating-gateway"
	KindIngressGateway     = "ingress-gateway"
	KindAPIGateway         = "api-gateway"
)

// Health statuses. A check registered in the catalog may carry any other text.
const (
	Passing     = "passing"
	Warning     = "warning"
	Critical    = "critical"
	Maintenance = "maintenance" // only in aggregates
)

// Names and IDs the servers own.
const (
	ServerServiceName = "consul"         // service under which every server is registered
	VirtualAddressTag = "consul-virtual" // tagged address of an instance's virtual IP
	SerfCheckID       = "serfHealth"     // node check driven by gossip
	SerfCheckName     = "Serf Health Status"
	SerfAliveOutput   = "Agent alive and reachable"
	SerfFailedOutput  = "Agent not live or unreachable"
)

// Raft indexes of an object's creation and last change.
type Indexes struct {
	CreateIndex uint64
	ModifyIndex uint64
}

// A Locality is where a node or instance runs.
type Locality struct {
	Region string
	Zone   string
}

// A Node is a machine, or an external host, that instances run on. Nodes read from a store are shared; copy one
// before changing it.
type Node struct {
	ID              string // lower-case UUID, empty for external nodes
	Node            string // name, compared without regard to case
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string // "lan", "wan", "lan_ipv4", …; may be nil
	Meta            map[string]string // may be nil
	Locality        *Locality         `json:",omitempty"` // nil when unset
	PeerName        string            `json:",omitempty"` // empty unless imported
	Indexes
}

// A ServiceAddress is an address and port of an instance under some tag.
type ServiceAddress struct {
	Address string
	Port    int
}

// Weights are the DNS SRV weights of an instance by its health, 0 to 65535, Passing at least 1.
type Weights struct {
	Passing int
	Warning int
}

// A Service is one instance of a service on a node. Services read from a store are shared; copy one before changing it.
type Service struct {
	Kind              string `json:",omitempty"`
	ID                string // unique on its node, compared byte by byte
	Service           string // name
	Tags              []string
	Address           string                    // empty means the node's address
	TaggedAddresses   map[string]ServiceAddress `json:",omitempty"`
	Meta              map[string]string
	Port              int    `json:",omitempty"`
	SocketPath        string `json:",omitempty"`
	Weights           *Weights
	EnableTagOverride bool
	Locality          *Locality `json:",omitempty"`
	Proxy             Proxy
	Connect           Connect
	PeerName          string
	Indexes
}

// Connect is the mesh block of a registered instance.
type Connect struct {
	Native   bool            `json:",omitempty"` // the application speaks mTLS itself
	PeerMeta json.RawMessage `json:",omitempty"` // only on imported instances
}

// Proxy is the proxy block of sidecars and gateways.
type Proxy struct {
	Mode                   string            `json:",omitempty"` // "", "direct" or "transparent"; the catalog form always shows it
	EnvoyExtensions        []EnvoyExtension  `json:",omitempty"`
	DestinationServiceName string            `json:",omitempty"`
	DestinationServiceID   string            `json:",omitempty"`
	LocalServiceAddress    string            `json:",omitempty"`
	LocalServicePort       int               `json:",omitempty"`
	LocalServiceSocketPath string            `json:",omitempty"`
	Config                 map[string]any    `json:",omitempty"` // opaque settings, spec/connect.md section 13
	Upstreams              []Upstream        `json:",omitempty"`
	MeshGateway            MeshGateway       `json:""`
	Expose                 Expose            `json:""`
	TransparentProxy       *TransparentProxy `json:",omitempty"`
	AccessLogs             *AccessLogs       `json:",omitempty"`
	MutualTLSMode          string            `json:",omitempty"` // "", "strict" or "permissive"; only from central configuration
}

// An EnvoyExtension changes the compiled configuration of a proxy.
type EnvoyExtension struct {
	Name          string
	Required      bool           `json:",omitempty"`
	Arguments     map[string]any `json:",omitempty"`
	ConsulVersion string         `json:",omitempty"`
	EnvoyVersion  string         `json:",omitempty"`
}

// An Upstream is a destination a proxy listens for on behalf of its application.
type Upstream struct {
	DestinationType      string // "service" (default) or "prepared_query"
	DestinationNamespace string `json:",omitempty"`
	DestinationPartition string `json:",omitempty"`
	DestinationPeer      string `json:",omitempty"`
	DestinationName      string
	Datacenter           string         // empty means that of the proxy
	LocalBindAddress     string         `json:",omitempty"` // default 127.0.0.1
	LocalBindPort        int            `json:",omitempty"`
	LocalBindSocketPath  string         `json:",omitempty"`
	LocalBindSocketMode  string         `json:",omitempty"`
	Config               map[string]any `json:",omitempty"`
	MeshGateway          MeshGateway    `json:""`
	CentrallyConfigured  bool           `json:",omitempty"`
}

// MeshGateway says how traffic reaches other datacenters: "", "none", "local" or "remote".
type MeshGateway struct {
	Mode string `json:",omitempty"`
}

// Expose lists paths reachable without mTLS.
type Expose struct {
	Checks bool         `json:",omitempty"`
	Paths  []ExposePath `json:",omitempty"`
}

// An ExposePath is one path served in plaintext on its own port.
type ExposePath struct {
	ListenerPort    int    `json:",omitempty"`
	Path            string `json:",omitempty"`
	LocalPathPort   int    `json:",omitempty"`
	Protocol        string `json:",omitempty"`
	ParsedFromCheck bool   `json:",omitempty"`
}

// TransparentProxy configures mode "transparent".
type TransparentProxy struct {
	OutboundListenerPort int  `json:",omitempty"`
	DialedDirectly       bool `json:",omitempty"`
}

// AccessLogs configures the access logs of a proxy.
type AccessLogs struct {
	Enabled             bool   `json:",omitempty"`
	DisableListenerLogs bool   `json:",omitempty"`
	Type                string `json:",omitempty"` // "", "file", "stderr", "stdout"
	Path                string `json:",omitempty"`
	JSONFormat          string `json:",omitempty"`
	TextFormat          string `json:",omitempty"`
}

// A Check is the state of one health check of a node, or of a service instance when ServiceID is set. Checks read from
// a store are shared; copy one before changing it.
type Check struct {
	Node        string
	CheckID     string // unique on its node
	Name        string
	Status      string // Passing, Warning, Critical; other text is kept as it is
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string // as it was given, "" or "0s" when unset
	Timeout     string
	ExposedPort int
	PeerName    string          `json:",omitempty"`
	Definition  CheckDefinition `json:""`
	Indexes
}

// A CheckDefinition is what a catalog check says about how it is run. The servers store it and do not run it.
type CheckDefinition struct {
	HTTP                           string              `json:",omitempty"`
	TLSServerName                  string              `json:",omitempty"`
	TLSSkipVerify                  bool                `json:",omitempty"`
	Header                         map[string][]string `json:",omitempty"`
	Method                         string              `json:",omitempty"`
	Body                           string              `json:",omitempty"`
	DisableRedirects               bool                `json:",omitempty"`
	TCP                            string              `json:",omitempty"`
	TCPUseTLS                      bool                `json:",omitempty"`
	UDP                            string              `json:",omitempty"`
	H2PING                         string              `json:",omitempty"`
	OSService                      string              `json:",omitempty"`
	H2PingUseTLS                   bool                `json:",omitempty"`
	Interval                       Duration            `json:",omitempty"`
	OutputMaxSize                  uint                `json:",omitempty"`
	Timeout                        Duration            `json:",omitempty"`
	DeregisterCriticalServiceAfter Duration            `json:",omitempty"`
	ScriptArgs                     []string            `json:",omitempty"`
	DockerContainerID              string              `json:",omitempty"`
	Shell                          string              `json:",omitempty"`
	GRPC                           string              `json:",omitempty"`
	GRPCUseTLS                     bool                `json:",omitempty"`
	AliasNode                      string              `json:",omitempty"`
	AliasService                   string              `json:",omitempty"`
	SessionName                    string              `json:",omitempty"`
	TTL                            Duration            `json:",omitempty"`
}

// A Duration is written in JSON as text such as "1m0s" and read from text or from a number of nanoseconds.
type Duration time.Duration

// MarshalJSON writes the text form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON reads text with a unit or a number of nanoseconds. Other JSON types leave d as it is
// (spec/registry.md section 1.2).
func (d *Duration) UnmarshalJSON(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		if v == "" {
			*d = 0
			return nil
		}
		p, err := time.ParseDuration(v)
		if err != nil {
			return err
		}
		*d = Duration(p)
	case float64:
		n, err := Nanoseconds(v)
		if err != nil {
			return err
		}
		*d = n
	}
	return nil
}

// Nanoseconds returns the duration of so many, without their fraction. More than there are in 292 years is an error.
func Nanoseconds(n float64) (Duration, error) {
	if n >= -1<<63 && n < 1<<63 {
		return Duration(n), nil
	}
	return 0, fmt.Errorf("time: invalid duration %q", strconv.FormatFloat(n, 'g', -1, 64))
}

// String returns the text form.
func (d Duration) String() string { return time.Duration(d).String() }

// An Instance is a service instance with its node and the checks that count for it: the node's first, then its own,
// each ordered by CheckID.
type Instance struct {
	Node    *Node
	Service *Service
	Checks  []*Check
}

// A Coordinate is a position in the network coordinate space (Vivaldi with height), in seconds.
type Coordinate struct {
	Vec        []float64 // 8 dimensions
	Error      float64
	Adjustment float64
	Height     float64
}

// Validate checks the dimensions and numbers of a coordinate.
func (c *Coordinate) Validate() error {
	if len(c.Vec) != 8 {
		return errors.New("incompatible coordinate")
	}
	for _, x := range append([]float64{c.Error, c.Adjustment, c.Height}, c.Vec...) {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return errors.New("invalid coordinate")
		}
	}
	return nil
}

// Distance estimates the round-trip time between two coordinates of the same dimension, in seconds.
func (c *Coordinate) Distance(other *Coordinate) float64 {
	sum := 0.0
	for i, x := range c.Vec {
		d := x - other.Vec[i]
		sum += d * d
	}
	rtt := math.Sqrt(sum) + c.Height + other.Height
	if adjusted := rtt + c.Adjustment + other.Adjustment; adjusted > 0 {
		return adjusted
	}
	return rtt
}

// A NodeCoordinate is the coordinate of one node.
type NodeCoordinate struct {
	Node    string
	Segment string
	Coord   *Coordinate
}

// A NodeID or similar UUID in its lower-case text form is expected wherever a field is documented as one.
// CheckUUID returns an error when s is not 8-4-4-4-12 hexadecimal digits.
func CheckUUID(s string) error {
	if len(s) != 36 {
		return fmt.Errorf("uuid string is wrong length")
	}
	for i, c := range []byte(s) {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return fmt.Errorf("uuid is improperly formatted")
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F'):
			return fmt.Errorf("invalid UUID: %q", s)
		}
	}
	return nil
}
