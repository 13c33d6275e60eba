// Package chain compiles discovery chains: from the entries about a service, the graph of routes, splits and resolvers
// that requests for it go through, and the targets they end at (spec/connect.md section 10).
//
// The package is pure functions.
package chain

import (
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A Chain is a compiled discovery chain: nodes, of which StartNode is entered first, and targets. Chains are shared;
// never change one.
type Chain struct {
	ServiceName       string
	Namespace         string // "default"
	Partition         string // "default"
	Datacenter        string // in which it was evaluated
	CustomizationHash string `json:",omitempty"` // set when overrides changed something
	// Default tells that nothing is configured: the start is a resolver of the service itself.
	Default          bool `json:",omitempty"`
	Protocol         string
	ServiceMeta      map[string]string        `json:",omitempty"`
	EnvoyExtensions  []catalog.EnvoyExtension `json:",omitempty"`
	StartNode        string
	Nodes            map[string]*Node
	Targets          map[string]*Target
	AutoVirtualIPs   []string // null when there are none
	ManualVirtualIPs []string
}

// Types of nodes.
const (
	Router   = "router"
	Splitter = "splitter"
	Resolver = "resolver"
)

// A Node is a router, a splitter or a resolver; what it is decides which fields are set. It is found under "TYPE:NAME".
type Node struct {
	Type         string
	Name         string
	Routes       []*Route            `json:",omitempty"` // router
	Splits       []*Split            `json:",omitempty"` // splitter
	Resolver     *Resolution         `json:",omitempty"` // resolver
	LoadBalancer *entry.LoadBalancer `json:",omitempty"` // splitter, resolver
}

// Key returns the key of the node in Chain.Nodes.
func (n *Node) Key() string { return n.Type + ":" + n.Name }

// A Route is one rule of a router, the first that matches is taken; the last matches everything.
type Route struct {
	Definition *entry.ServiceRoute `json:",omitempty"`
	NextNode   string
}

// A Split is one share of a splitter.
type Split struct {
	Definition *entry.ServiceSplit `json:",omitempty"`
	Weight     float64             // percent, of the whole
	NextNode   string
}

// A Resolution is where a resolver leads.
type Resolution struct {
	Default        bool `json:",omitempty"` // no entry says anything about it
	ConnectTimeout catalog.Duration
	RequestTimeout time.Duration `json:",omitempty"`
	Target         string        // ID
	Failover       *Failover     `json:",omitempty"`
}

// A Failover lists the targets tried in turn after the resolver's own.
type Failover struct {
	Targets []string              `json:",omitempty"` // IDs
	Policy  *entry.FailoverPolicy `json:",omitempty"`
}

// A Target is a set of instances.
type Target struct {
	ID               string
	Service          string
	ServiceSubset    string `json:",omitempty"`
	Namespace        string
	Partition        string
	Datacenter       string                   `json:",omitempty"` // empty for those of a peer
	Peer             string                   `json:",omitempty"`
	MeshGateway      catalog.MeshGateway      `json:""`
	Subset           entry.ServiceSubset      `json:""`
	TransparentProxy catalog.TransparentProxy `json:""`
	ConnectTimeout   catalog.Duration
	External         bool              `json:",omitempty"` // outside the mesh, see ExternalSNI of service-defaults
	SNI              string            `json:",omitempty"`
	Name             string            `json:",omitempty"` // the SNI, before ExternalSNI replaced it
	Locality         *catalog.Locality `json:",omitempty"`
}

// TargetID returns the ID of a target.
func TargetID(service, subset, datacenter, peer string) string {
	id := service + ".default.default."
	if peer != "" {
		id += "external." + peer
	} else {
		id += datacenter
	}
	if subset != "" {
		id = subset + "." + id
	}
	return id
}

// GetCall asks the servers for a chain. Its handler is in server/configrpc.
var GetCall = rpc.Read[GetRequest, GetReply]("DiscoveryChain.Get")

// A GetRequest asks for the chain of a service.
type GetRequest struct {
	read.Options
	Service string
	// EvaluateDatacenter is where the chain is used; empty means the datacenter of the server asked.
	EvaluateDatacenter string
	Overrides          Overrides
}

// GetReply carries the chain, never nil.
type GetReply struct {
	read.Meta
	Chain *Chain
}

// Overrides are what one caller wants to be different. The zero value changes nothing.
type Overrides struct {
	MeshGateway    catalog.MeshGateway
	Protocol       string
	ConnectTimeout time.Duration
}
