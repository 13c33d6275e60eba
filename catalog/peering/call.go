package peering

import (
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls to the servers. Handlers are in server/peeringrpc.
var (
	TokenCall     = rpc.Write[TokenRequest, TokenReply]("Peering.Token")
	EstablishCall = rpc.Write[EstablishRequest, struct{}]("Peering.Establish")
	GetCall       = rpc.Read[GetRequest, GetReply]("Peering.Get")
	ListCall      = rpc.Read[ListRequest, ListReply]("Peering.List")
	DeleteCall    = rpc.Write[DeleteRequest, struct{}]("Peering.Delete")
	BundleCall    = rpc.Read[BundleRequest, BundleReply]("Peering.Bundle")
	BundlesCall   = rpc.Read[BundlesRequest, BundlesReply]("Peering.Bundles")
	ImportsCall   = rpc.Read[ImportsRequest, ImportsReply]("Peering.Imports")
	ExportsCall   = rpc.Read[ExportsRequest, ExportsReply]("Peering.Exports")
)

// A TokenRequest asks for a token with which another cluster can begin a peering of this name. It voids the token that
// was made for the name before.
type TokenRequest struct {
	read.Target
	Name      string
	Meta      map[string]string
	Addresses []string // to offer in place of the servers' own
}

// TokenReply has the token. It holds a secret.
type TokenReply struct{ Token string }

// An EstablishRequest begins a peering with the cluster that made the token.
type EstablishRequest struct {
	read.Target
	Name  string
	Token string
	Meta  map[string]string
}

// A GetRequest asks for one peering.
type GetRequest struct {
	read.Options
	Name string
}

// GetReply has a nil Peering when there is none.
type GetReply struct {
	read.Meta
	Peering *Shown
}

// A ListRequest asks for all peerings.
type ListRequest struct{ read.Options }

// ListReply is ordered by name.
type ListReply struct {
	read.Meta
	Peerings []*Shown
}

// A DeleteRequest ends a peering. There need be none.
type DeleteRequest struct {
	read.Target
	Name string
}

// A BundleRequest asks whom to trust for a peer.
type BundleRequest struct {
	read.Options
	Peer string
}

// BundleReply has a nil Bundle while none is known.
type BundleReply struct {
	read.Meta
	Bundle *Bundle
}

// A BundlesRequest asks whom to trust for the peers that a service is exported to, for all peers when Service is empty.
type BundlesRequest struct {
	read.Options
	Service string
}

// BundlesReply is ordered by peer.
type BundlesReply struct {
	read.Meta
	Bundles []*Bundle
}

// An ExportsRequest asks which services are exported to which peers, to those only that are known and to one when Peer
// is set.
type ExportsRequest struct {
	read.Options
	Peer string
}

// ExportsReply is ordered by service.
type ExportsReply struct {
	read.Meta
	Exports []Export
}

// An Export is a service with the peers that see it, in order.
type Export struct {
	Service  string
	Protocol string // of its discovery chain
	Peers    []string
}

// An ImportsRequest asks which services are imported.
type ImportsRequest struct{ read.Options }

// ImportsReply is ordered by peer and service.
type ImportsReply struct {
	read.Meta
	Imports []Key
}

// A Key names an import.
type Key struct{ Peer, Service string }

// An Update changes what is replicated about a peering, all or nothing. It is written to the log.
type Update struct {
	// Peering replaces what is known under its name; Secrets, when set too, those of it. When Fresh is set there must be
	// none of the name yet, else it must be there as it was, with the same ID and ModifyIndex.
	Peering *Peering
	Secrets *Secrets
	Fresh   bool
	// Exchange, when set, has Secrets replace those with its ID, of a peering that is wanted, only while the establishment
	// secret's digest is the one in it: the token was not used or replaced in the meantime.
	Exchange []byte

	// Status sets the state, and what the other side told about itself, of the peering with this ID, if it is there and
	// wanted.
	Status *StatusUpdate
	// Promote, an ID, makes the pending secret of a peering its active one.
	Promote string

	// Forget, an ID, removes a peering with everything it brought.
	Forget string
}

// A StatusUpdate is what changes about a peering in the course of its life. Empty fields are left as they are.
type StatusUpdate struct {
	ID        string
	State     State
	Remote    *Remote
	Roots     []string
	Addresses []string
}

// A Change is of what is imported through the peering with an ID, which must be wanted: its import, bundle and removals
// can only be those of the peering's name. It is written to the log.
type Change struct {
	ID     string
	Import *Import
	Bundle *Bundle
	// Remove are services that are imported no longer; RemoveAll removes up to so many, whichever, also of a peering that
	// is not wanted.
	Remove    []string
	RemoveAll int
}

// ChangeReply tells how many imports are left.
type ChangeReply struct{ Left int }

// Checks of imported instances.
const overallCheck = "overall-check"

// Overall returns the check that stands for all checks of a node, or of an instance on it.
func Overall(peer, node, id, service, status string) *catalog.Check {
	of := node
	if id != "" {
		of = id
	}
	return &catalog.Check{
		Node: node, CheckID: of + ":" + overallCheck, Name: overallCheck, Status: status, ServiceID: id, ServiceName: service, PeerName: peer,
	}
}
