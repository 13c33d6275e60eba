package query

import (
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Calls to the servers. Handlers are in server/queryrpc.
var (
	ApplyCall   = rpc.Write[ApplyRequest, ApplyReply]("Query.Apply")
	GetCall     = rpc.Read[GetRequest, Reply]("Query.Get")
	ListCall    = rpc.Read[ListRequest, Reply]("Query.List")
	ExplainCall = rpc.Read[ExecuteRequest, ExplainReply]("Query.Explain")
	ExecuteCall = rpc.Read[ExecuteRequest, ExecuteReply]("Query.Execute")
	// RemoteCall is made by the servers of another datacenter that found nothing themselves.
	RemoteCall = rpc.Read[RemoteRequest, ExecuteReply]("Query.ExecuteRemote")
)

// ErrNotFound is the answer about a query that does not exist, with status 404.
var ErrNotFound = wireerr.NotFound("Query not found")

// An Op is a change of one query.
type Op string

// The changes there are.
const (
	Create Op = "create" // the leader chooses the ID
	Update Op = "update" // replaces the whole definition
	Delete Op = "delete" // only the ID counts
)

// An ApplyRequest changes one query.
type ApplyRequest struct {
	read.Target
	Op    Op
	Query Query
}

// ApplyReply carries the ID of the query.
type ApplyReply struct{ ID string }

// A GetRequest asks for one query by ID.
type GetRequest struct {
	read.Options
	ID string
}

// A ListRequest asks for all queries.
type ListRequest struct{ read.Options }

// Reply is ordered by ID; it answers a GetRequest with one query.
type Reply struct {
	read.Meta
	Queries []*Query
}

// An ExecuteRequest names a query to execute, or to explain. Options.Near goes before the query's own, and may be
// NearAgent or NearIP too.
type ExecuteRequest struct {
	read.Options
	Query   string // ID, name, or a name that a template stands for
	Limit   int    // most instances to return; none if not positive
	Connect bool   // mesh-capable instances, whatever the query says
	Origin  Origin
}

// An Origin is where a request comes from.
type Origin struct {
	Node       string // of the agent that was asked
	Datacenter string // of that agent
	IP         string // of whoever asked it
}

// ExplainReply has the query as it would be executed.
type ExplainReply struct {
	read.Meta
	Query *Query
}

// A RemoteRequest executes a query that another datacenter has resolved and rendered.
type RemoteRequest struct {
	read.Options
	Query   Query
	Limit   int
	Connect bool
}

// ExecuteReply has what was found, in the order in which to use it.
type ExecuteReply struct {
	read.Meta
	Service    string
	Instances  []*catalog.Instance
	DNS        DNS
	Datacenter string // that answered last
	PeerName   string // that answered last, empty for a datacenter
	Failovers  int    // how many other places were asked
}
