// Package explain tells what becomes of a request from one service of the mesh to another, and why: whether intentions
// let it through and which of them decides, and which route, split, subset and instances it takes.
//
// It has no rules of its own. The configuration of both sidecars is made by the compilers that make it for proxies
// (packages chain, mesh, xds), decoded as the built-in proxy decodes it, and judged by the proxy's own route tables and
// filters. What decided is found by asking those again with less: one permission at a time. So an explanation can't say
// otherwise than the proxies do. Two things are known to a running proxy only and left out: which instances it has ejected,
// and what filters decide that ask others.
//
// The package is pure, but for the clock that the validity of tokens is held against.
package explain

import (
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// EvaluateCall asks the servers for an explanation. Its handler is in server/explainrpc.
var EvaluateCall = rpc.Read[EvaluateRequest, EvaluateReply]("Explain.Evaluate")

// An EvaluateRequest asks what becomes of a request, as things are and, if there are changes, as they would be.
type EvaluateRequest struct {
	read.Options
	Request Request
	WhatIf  []Change `json:",omitempty"`
}

// A Change is an entry that is written, or one that is deleted.
type Change struct {
	Entry  entry.Any  // the zero Any for a deletion
	Delete *entry.Key `json:",omitempty"`
}

// EvaluateReply is the answer.
type EvaluateReply struct {
	read.Meta
	Now *Explanation
	// WhatIf is set if there were changes; Differences then tells what they change, nothing when all stays as it is.
	WhatIf      *Explanation `json:",omitempty"`
	Differences []string     `json:",omitempty"`
}

// A Request is what is asked about. From and To are required.
type Request struct {
	From, To string
	Method   string   `json:",omitempty"` // default GET
	Path     string   `json:",omitempty"` // with the query; default "/"
	Host     string   `json:",omitempty"` // default the name of the service
	Headers  []Header `json:",omitempty"`
	// JWT is a token, or the claims of one as a JSON object, which then count as those of a valid token.
	JWT string `json:",omitempty"`
	// Port is the local port of the upstream; it only matters where a sidecar has several to the service.
	Port int `json:",omitempty"`
}

// A Header is a field of a request.
type Header struct{ Name, Value string }

// Verdicts.
const (
	Allowed = "allowed"
	Denied  = "denied"
	Depends = "depends" // on which branch of a split the request takes
	Unknown = "unknown" // since a proxy would not accept its configuration, or others decide
)

// An Explanation tells what becomes of a request.
type Explanation struct {
	// Request is what was asked about, with its defaults, but for headers and tokens.
	Request Request
	Verdict string
	// Allowed is true only for the verdict "allowed".
	Allowed bool
	Reason  string

	Datacenter string // in which it was asked
	Source     Side
	Upstream   string // of the source's sidecar
	Protocol   string // as the chain has it
	Route      *Route `json:",omitempty"` // nil unless a service-router has a say
	// Reply is set when the source's sidecar answers by itself; nothing is sent then.
	Reply *Reply `json:",omitempty"`

	Method, Path, Host string      `json:",omitempty"` // as the destination gets them
	Timeouts           *Timeouts   `json:",omitempty"`
	Retries            *Retries    `json:",omitempty"`
	Branches           []*Branch   // one, or those of a split in its order
	Token              *TokenFacts `json:",omitempty"`
	Notes              []string    `json:",omitempty"`
	Problems           []string    `json:",omitempty"`
}

// A Side is the proxy at one end.
type Side struct {
	Service string
	Node    string `json:",omitempty"` // both are empty when no proxy is registered and one was assumed
	Proxy   string `json:",omitempty"` // its ID
	Kind    string // "sidecar", "terminating-gateway", "native"
	Assumed bool   `json:",omitempty"`
}

// A Route is a rule of a service-router.
type Route struct {
	Router string
	// Index is that of the rule, from 0; the last, which sends everything else to the service itself, is not in the entry.
	Index       int
	CatchAll    bool                           `json:",omitempty"`
	Match       string                         // in words
	Destination *entry.ServiceRouteDestination `json:",omitempty"`
}

// A Reply is an answer of a proxy.
type Reply struct {
	Status   int
	Details  string // as in access logs
	Location string `json:",omitempty"`
}

// Timeouts are those in force; 0 and below are none.
type Timeouts struct {
	Request string // of the whole; "none" for none
	PerTry  string `json:",omitempty"`
	Idle    string
	Connect string
}

// Retries say how often and when a request is sent again.
type Retries struct {
	Attempts int
	On       []string `json:",omitempty"`
	Statuses []int    `json:",omitempty"`
}

// A Branch is where a share of the requests goes.
type Branch struct {
	Weight float64 // percent
	Split  string  `json:",omitempty"` // names the splitter
	Target
	LoadBalancer string   `json:",omitempty"` // policy
	Path         string   `json:",omitempty"` // as the application gets it, or as it is sent if it does not
	Timeout      string   `json:",omitempty"` // of the application's answer, by its own sidecar
	Edits        []string `json:",omitempty"` // changes of headers on the way
	Failover     []*Target

	service, subset string // that were asked for
}

// A Target is a set of instances.
type Target struct {
	ID         string
	Service    string
	Subset     string   `json:",omitempty"`
	Datacenter string   `json:",omitempty"`
	Peer       string   `json:",omitempty"`
	Filter     string   `json:",omitempty"` // that selects the subset
	Trail      []string `json:",omitempty"` // redirects and default subsets that led here, from the first
	Cluster    string
	Gateway    string `json:",omitempty"` // mode of mesh gateways on the way
	// Endpoints are in the order of the load assignment. Hidden tells that there may be some that the caller
	// may not see.
	Endpoints []Endpoint
	Hidden    bool `json:",omitempty"`
	Healthy   int
	// Authorization is nil where it is that of the branch.
	Authorization *Authorization `json:",omitempty"`
}

// An Endpoint is an instance.
type Endpoint struct {
	Address string
	Health  string
	Weight  uint32
	Node    string `json:",omitempty"`
	Service string `json:",omitempty"` // ID of the proxy
}

// An Authorization is what the destination's proxy decides.
type Authorization struct {
	Verdict string // Allowed, Denied or Unknown
	Reason  string
	By      Side
	Layer   int // 4 if connections are decided about, 7 if requests are

	Intention *Intention `json:",omitempty"` // nil when no intention is about the source
	// Permission is the one that decided, from 0; nil when none did.
	Permission *Permission `json:",omitempty"`
	Default    string      // "allow" or "deny": what is decided where nothing fits
	ByDefault  bool        // it was decided so

	// Rule and Details are what the destination's access log shows of a refusal.
	Rule    string `json:",omitempty"`
	Details string `json:",omitempty"`
	Status  int    `json:",omitempty"` // that the caller gets, if it speaks HTTP
}

// An Intention names one.
type Intention struct {
	Source, Destination string
	SourcePeer          string `json:",omitempty"`
	Precedence          int
	Action              string `json:",omitempty"`
	Permissions         int    `json:",omitempty"`
	Description         string `json:",omitempty"`
	// Token tells whether the request meets what the intention asks of tokens: "", "met" or "not met".
	Token     string   `json:",omitempty"`
	Providers []string `json:",omitempty"`
}

// A Permission names one.
type Permission struct {
	Index  int
	Action string
	Match  string // in words
}

// TokenFacts tell how a token was looked at.
type TokenFacts struct {
	Provider string `json:",omitempty"` // entry whose issuer it has
	Place    string `json:",omitempty"` // where it was put into the request
	// Verified is false where the claims were taken as valid.
	Verified bool
	Note     string `json:",omitempty"`
}
