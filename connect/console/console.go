// Package console holds what the web console asks of the servers: nodes and services with their health, and how services
// hang together in the mesh. The contract is spec/registry.md section 10.
package console

import (
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls to the servers. Handlers are in server/uirpc.
var (
	NodesCall             = rpc.Read[NodesRequest, NodesReply]("Console.Nodes")
	ServicesCall          = rpc.Read[ServicesRequest, ServicesReply]("Console.Services")
	OverviewCall          = rpc.Read[OverviewRequest, OverviewReply]("Console.Overview")
	GatewayServicesCall   = rpc.Read[GatewayRequest, SummariesReply]("Console.GatewayServices")
	GatewayIntentionsCall = rpc.Read[GatewayRequest, IntentionsReply]("Console.GatewayIntentions")
	ExportedCall          = rpc.Read[ExportedRequest, SummariesReply]("Console.Exported")
	TopologyCall          = rpc.Read[TopologyRequest, TopologyReply]("Console.Topology")
)

// A NodesRequest asks for every node, or for one when Node is set. The filter is about Node values.
type NodesRequest struct {
	read.Options
	Node string
	Peer string // whose nodes, with Node; empty for the cluster's own
}

// NodesReply is ordered by name, what is imported last.
type NodesReply struct {
	read.Meta
	Nodes []*Node
}

// A Node is a node with all that is on it.
type Node struct {
	ID              string
	Node            string
	Address         string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Services        []*catalog.Service // ordered by ID
	Checks          []*catalog.Check   // ordered by CheckID
	PeerName        string             `json:",omitempty"`
}

// A ServicesRequest asks for a summary of every service. The filter is about instances.
type ServicesRequest struct {
	read.Options
	Peer string // whose services; empty for the cluster's own
}

// ServicesReply is ordered by name.
type ServicesReply struct {
	read.Meta
	Services []*Listing
}

// A Listing is a service in the list of all.
type Listing struct {
	Summary
	ConnectedWithProxy   bool // a proxy has it as destination
	ConnectedWithGateway bool // a registered gateway links it
}

// A Summary tells of a service as a whole.
type Summary struct {
	Kind            string `json:",omitempty"`
	Name            string
	Datacenter      string
	Tags            []string // sorted; nil for none
	Nodes           []string // sorted
	ExternalSources []string // what registered the instances, sorted; nil for none
	InstanceCount   int
	// Checks of its instances and of the proxies before it, those of a node once however many instances it has.
	ChecksPassing    int
	ChecksWarning    int
	ChecksCritical   int
	GatewayConfig    GatewayConfig
	TransparentProxy bool   // it has proxies, and all are transparent
	ConnectNative    bool   // an instance speaks mTLS itself
	PeerName         string `json:",omitempty"`
}

// GatewayConfig tells of a gateway how much it links, and of a service behind one how it is reached.
type GatewayConfig struct {
	AssociatedServiceCount int      `json:",omitempty"`
	Addresses              []string `json:",omitempty"` // host and port
}

// An OverviewRequest asks for counts of everything.
type OverviewRequest struct{ read.Options }

// OverviewReply has counts by health; lists are ordered by name. There is one count of nodes.
type OverviewReply struct {
	read.Meta
	Nodes    []Health
	Services []NamedHealth
	Checks   []NamedHealth
}

// Health counts things by their health.
type Health struct{ Total, Passing, Warning, Critical int }

// NamedHealth is the health of what has one name.
type NamedHealth struct {
	Name string
	Health
}

// A GatewayRequest names a gateway.
type GatewayRequest struct {
	read.Options
	Gateway string
	Domain  string // of DNS, for default host names; without the final dot
}

// SummariesReply is ordered by name.
type SummariesReply struct {
	read.Meta
	Services []*Summary
}

// IntentionsReply is in the order of intention.Sort.
type IntentionsReply struct {
	read.Meta
	Intentions []*intention.Intention
}

// An ExportedRequest asks what is exported to a peer.
type ExportedRequest struct {
	read.Options
	Peer string
}

// A TopologyRequest asks what a service calls and what calls it.
type TopologyRequest struct {
	read.Options
	Service string
	Kind    string // catalog.KindTypical, KindIngressGateway or KindAPIGateway
}

// TopologyReply has lists ordered by name; neither has the proxies themselves.
type TopologyReply struct {
	read.Meta
	Protocol         string
	TransparentProxy bool // it has proxies, and all are transparent
	Upstreams        []*Neighbour
	Downstreams      []*Neighbour
}

// A Source is how it is known that one service calls another.
type Source string

const (
	ByRegistration Source = "proxy-registration" // a proxy, or a gateway, names it
	ByIntention    Source = "specific-intention"
	ByWildcard     Source = "wildcard-intention"
	ByDefault      Source = "default-allow"
	ByRouting      Source = "routing-config" // there are rules for it, but no instances
)

// A Neighbour is a service that another calls, or is called by.
type Neighbour struct {
	Summary
	Source    Source
	Intention Verdict
}

// A Verdict is what intentions say about a pair of services.
type Verdict struct {
	Allowed        bool
	HasPermissions bool   // it depends on the request
	ExternalSource string // of the intention
	HasExact       bool   // an intention names both services
	DefaultAllow   bool
}
