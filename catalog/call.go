package catalog

import (
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls to the servers. Handlers are in server/catalogrpc.
var (
	RegisterCall         = rpc.Write[RegisterRequest, struct{}]("Catalog.Register")
	DeregisterCall       = rpc.Write[DeregisterRequest, struct{}]("Catalog.Deregister")
	NodesCall            = rpc.Read[NodesRequest, NodesReply]("Catalog.Nodes")
	ServicesCall         = rpc.Read[ServicesRequest, ServicesReply]("Catalog.Services")
	NodeServicesCall     = rpc.Read[NodeServicesRequest, NodeServicesReply]("Catalog.NodeServices")
	InstancesCall        = rpc.Read[InstancesRequest, InstancesReply]("Health.Instances")
	ChecksCall           = rpc.Read[ChecksRequest, ChecksReply]("Health.Checks")
	CoordinatesCall      = rpc.Read[CoordinatesRequest, CoordinatesReply]("Coordinate.List")
	UpdateCoordinateCall = rpc.Write[CoordinateUpdate, struct{}]("Coordinate.Update")
)

// A RegisterRequest adds or replaces a node, one instance on it and any number of checks in one atomic write
// (spec/registry.md section 8.1).
type RegisterRequest struct {
	read.Target
	ID              string
	Node            string
	Address         string
	TaggedAddresses map[string]string
	NodeMeta        map[string]string
	Locality        *Locality `json:",omitempty"`
	Service         *Service  // nil registers no instance
	Check           *Check
	Checks          []*Check
	SkipNodeUpdate  bool // leave an existing node's fields as they are
	PeerName        string
}

// A DeregisterRequest removes an instance with its checks, else a check, else a node with all it holds
// (spec/registry.md section 8.2).
type DeregisterRequest struct {
	read.Target
	Node      string
	ServiceID string
	CheckID   string
}

// A NodesRequest lists nodes.
type NodesRequest struct{ read.Options }

// NodesReply is ordered by name.
type NodesReply struct {
	read.Meta
	Nodes []*Node
}

// A ServicesRequest lists service names.
type ServicesRequest struct {
	read.Options
	Kind string // only instances of this kind, empty for all
}

// ServicesReply maps each name to the union of its instances' tags.
type ServicesReply struct {
	read.Meta
	Services map[string][]string
}

// A NodeServicesRequest asks for one node, by name or (a prefix of) its ID, and its instances.
type NodeServicesRequest struct {
	read.Options
	Node               string
	MergeCentralConfig bool
	// WithChecks also returns the node's checks: what anti-entropy compares with.
	WithChecks bool
	// Peer asks for a node of a peer, known by the services that are imported from there; only the node is returned.
	Peer string
}

// NodeServicesReply has a nil Node when there is none.
type NodeServicesReply struct {
	read.Meta
	Node     *Node
	Services []*Service // ordered by ID
	Checks   []*Check   // ordered by CheckID, only when asked for
}

// An InstancesRequest asks for the instances of a service.
type InstancesRequest struct {
	read.Options
	Service            string
	Tags               []string // an instance must have all, compared without regard to case
	Connect            bool     // mesh-capable instances: proxies for the service, native ones, gateways linked to it
	Ingress            bool     // ingress gateways that expose the service
	PassingOnly        bool     // only instances all of whose checks pass
	MergeCentralConfig bool
	Peer               string
	// Kind, when set, asks for the instances of this kind, whatever their service; then Service is empty.
	Kind string `json:",omitempty"`
	// CatalogOnly asks for catalog semantics: no checks in the reply, and check changes do not wake the call.
	CatalogOnly bool
}

// InstancesReply is ordered by node name, then service ID.
type InstancesReply struct {
	read.Meta
	Instances []*Instance
}

// A ChecksRequest lists checks. Exactly one of Node, Service and State is set.
type ChecksRequest struct {
	read.Options
	Node    string
	Service string
	State   string // "any", Passing, Warning or Critical
}

// ChecksReply is ordered by node, then CheckID.
type ChecksReply struct {
	read.Meta
	Checks []*Check
}

// A CoordinatesRequest lists coordinates, of one node when Node is set.
type CoordinatesRequest struct {
	read.Options
	Node string
}

// CoordinatesReply is ordered by node.
type CoordinatesReply struct {
	read.Meta
	Coordinates []*NodeCoordinate
}

// A CoordinateUpdate stores node coordinates; those of unknown nodes are dropped.
type CoordinateUpdate struct {
	read.Target
	Updates []*NodeCoordinate
}

// AddressCall finds who has an IP address.
var AddressCall = rpc.Read[AddressRequest, AddressReply]("Catalog.Address")

// An AddressRequest asks who has an IP address: for reverse DNS.
type AddressRequest struct {
	read.Options
	Address string // in its canonical form
}

// AddressReply has the first node with that address, else the name of the first service whose instance has it as its
// own address, else neither.
type AddressReply struct {
	read.Meta
	Node    *Node
	Service string
}
