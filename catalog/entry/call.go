package entry

import (
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls to the servers. Handlers are in server/configrpc.
var (
	GetCall      = rpc.Read[GetRequest, GetReply]("ConfigEntry.Get")
	ListCall     = rpc.Read[ListRequest, ListReply]("ConfigEntry.List")
	ApplyCall    = rpc.Write[ApplyRequest, ApplyReply]("ConfigEntry.Apply")
	DeleteCall   = rpc.Write[DeleteRequest, ApplyReply]("ConfigEntry.Delete")
	ResolvedCall = rpc.Read[ResolvedRequest, ResolvedReply]("ConfigEntry.Resolved")
)

// A GetRequest asks for one entry.
type GetRequest struct {
	read.Options
	Kind Kind
	Name string
}

// GetReply has an empty Entry, and NotFound set, when there is none.
type GetReply struct {
	read.Meta
	Entry Any
}

// A ListRequest asks for the entries of a kind, or of every kind when Kind is empty.
type ListRequest struct {
	read.Options
	Kind Kind
	// Whole asks for a refusal where the token may not read an entry, which is left out otherwise: who copies the list takes
	// what is not in it for deleted.
	Whole bool
}

// ListReply is ordered by kind, then name.
type ListReply struct {
	read.Meta
	Entries []Any
}

// An ApplyRequest writes an entry.
type ApplyRequest struct {
	read.Target
	Entry Any
	// CAS is the ModifyIndex the present entry must have, 0 that there must be none. Nil writes in any case.
	CAS *uint64 `json:",omitempty"`
}

// ApplyReply tells whether the change was made.
type ApplyReply struct{ OK bool }

// A DeleteRequest removes an entry; it need not exist.
type DeleteRequest struct {
	read.Target
	Kind Kind
	Name string
	CAS  *uint64 `json:",omitempty"` // as in ApplyRequest
}

// A ResolvedRequest asks for the central settings of a service (spec/connect.md section 11.1).
type ResolvedRequest struct {
	read.Options
	// Service is the service, for a proxy its destination.
	Service string
	// ProxyMode and MeshGateway are those of the proxy's registration, if any.
	ProxyMode   string
	MeshGateway catalog.MeshGateway
	// Upstreams are the services (and their peers) the registration names.
	Upstreams []UpstreamID
}

// An UpstreamID names an upstream service.
type UpstreamID struct {
	Name string
	Peer string `json:",omitempty"`
}

// ResolvedReply carries the settings.
type ResolvedReply struct {
	read.Meta
	Resolved Resolved
}

// Resolved are the central settings of one service, to be merged into a registration.
type Resolved struct {
	Config           map[string]any
	Upstreams        []ResolvedUpstream // ordered by name and peer, "*" first
	Mode             string
	MeshGateway      catalog.MeshGateway
	MutualTLSMode    string
	TransparentProxy catalog.TransparentProxy
	Expose           catalog.Expose
	AccessLogs       catalog.AccessLogs
	EnvoyExtensions  []catalog.EnvoyExtension
	Meta             map[string]string // of service-defaults
	Destination      *Destination
}

// A ResolvedUpstream holds the settings for one upstream, or for any under the name "*".
type ResolvedUpstream struct {
	UpstreamID
	Config map[string]any
}
