// Package intention decides who may call whom: the order in which intentions are looked at, which of them fits a source
// and a destination, and what the first that fits says (spec/connect.md sections 5 and 6).
//
// The package is pure functions. Intentions are kept as service-intentions entries.
package intention

import (
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// An Intention is one source and destination with what is decided about them: the form the API shows. Intentions read
// from a view are shared.
type Intention struct {
	ID              string `json:",omitempty"` // only legacy ones have one
	Description     string `json:",omitempty"`
	SourceNS        string // "default"
	SourceName      string
	SourcePeer      string `json:",omitempty"`
	DestinationNS   string // "default"
	DestinationName string
	SourceType      string // "consul"
	// Exactly one of Action and Permissions is set.
	Action      string                       `json:",omitempty"`
	Permissions []*entry.IntentionPermission `json:",omitempty"`
	JWT         *entry.IntentionJWT          `json:",omitempty"` // of the destination
	Meta        map[string]string            `json:",omitempty"`
	Precedence  int
	CreatedAt   *time.Time `json:",omitempty"` // only of legacy ones; so for the next two
	UpdatedAt   *time.Time `json:",omitempty"`
	Hash        []byte     `json:",omitempty"`
	catalog.Indexes
}

// Calls to the servers. Handlers are in server/configrpc.
var (
	ListCall   = rpc.Read[ListRequest, ListReply]("Intention.List")
	GetCall    = rpc.Read[GetRequest, GetReply]("Intention.Get")
	MatchCall  = rpc.Read[MatchRequest, MatchReply]("Intention.Match")
	CheckCall  = rpc.Read[CheckRequest, CheckReply]("Intention.Check")
	UpsertCall = rpc.Write[UpsertRequest, struct{}]("Intention.Upsert")
	RemoveCall = rpc.Write[RemoveRequest, struct{}]("Intention.Remove")
	LegacyCall = rpc.Write[LegacyRequest, LegacyReply]("Intention.Legacy")
	// CallableCall is for proxies in transparent mode, whose upstreams nobody lists.
	CallableCall = rpc.Read[CallableRequest, CallableReply]("Intention.Callable")
)

// A ListRequest lists intentions.
type ListRequest struct{ read.Options }

// ListReply is in the order of Sort.
type ListReply struct {
	read.Meta
	Intentions []*Intention
}

// A GetRequest asks for one intention, by ID or by source and destination.
type GetRequest struct {
	read.Options
	ID          string
	Source      string
	SourcePeer  string
	Destination string
}

// GetReply has a nil Intention, and NotFound set, when there is none.
type GetReply struct {
	read.Meta
	Intention *Intention
}

// A Side is an end of an intention.
type Side string

// The sides.
const (
	BySource      Side = "source"
	ByDestination Side = "destination"
)

// A MatchRequest asks for all intentions that could apply to services.
type MatchRequest struct {
	read.Options
	By    Side
	Names []string
}

// MatchReply has a list for each name asked for, in that order, each in the order of Sort.
type MatchReply struct {
	read.Meta
	Matches [][]*Intention
}

// A CheckRequest asks whether a source may call a destination.
type CheckRequest struct {
	read.Options
	Source      string
	SourcePeer  string
	Destination string
	// DefaultPolicy is entry.Allow or entry.Deny: what is decided when no intention fits. Empty means that of the
	// servers.
	DefaultPolicy string
}

// CheckReply is the answer; the reason is in the words of spec/connect.md section 5.
type CheckReply struct {
	read.Meta
	Allowed bool
	Reason  string
}

// A CallableRequest asks what a service may call.
type CallableRequest struct {
	read.Options
	Source string
}

// CallableReply has what a service may call: each list is ordered by name.
type CallableReply struct {
	read.Meta
	Services []string // of the mesh, in the datacenter of the servers
	// Destinations are services outside the mesh; each has a Destination.
	Destinations []*entry.ServiceDefaults
	Imported     []Imported // whose intentions their exporters apply
}

// An Imported service is one of a peer.
type Imported struct{ Service, Peer string }

// An UpsertRequest creates or replaces the intention of a source and a destination.
type UpsertRequest struct {
	read.Target
	Destination string
	Source      entry.IntentionSource
	// Meta is that of the destination's entry. It must not be set on a new one, and not change.
	Meta map[string]string
}

// A RemoveRequest removes an intention; it need not exist.
type RemoveRequest struct {
	read.Target
	Source      string
	SourcePeer  string
	Destination string
}

// A LegacyOp is a change through the API that names intentions by ID.
type LegacyOp string

// The changes.
const (
	LegacyCreate LegacyOp = "create"
	LegacyUpdate LegacyOp = "update"
	LegacyDelete LegacyOp = "delete"
)

// A LegacyRequest changes an intention by ID.
type LegacyRequest struct {
	read.Target
	Op        LegacyOp
	Intention Intention
}

// LegacyReply carries the ID, which the leader chose if it was new.
type LegacyReply struct{ ID string }
