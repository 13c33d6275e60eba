package ca

import (
	"time"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls about rotations. Handlers are in server/connectrpc.
var (
	ConfirmCall = rpc.Leader[ConfirmRequest, ConfirmReply]("ConnectCA.Confirm")
	// ConfirmDatacenterCall is made by the leaders of secondary datacenters, to the primary one.
	ConfirmDatacenterCall = rpc.Leader[ConfirmDatacenterRequest, struct{}]("ConnectCA.ConfirmDatacenter")
	RotateCall            = rpc.Write[RotateRequest, struct{}]("ConnectCA.Rotate")
	RotationCall          = rpc.Leader[RotationRequest, Rotation]("ConnectCA.Rotation")
)

// MaxWaiting bounds ConfirmRequest.Waiting.
const MaxWaiting = 32

// A ConfirmRequest tells the leader which roots the proxies and other users of certificates on a node trust. It needs
// node:write. The leader keeps the last of a node in memory.
type ConfirmRequest struct {
	read.Target
	Node      string
	Bundle    string   // name of the roots: see Bundle
	Confirmed int      // how many have accepted them
	Missing   int      // how many have not yet
	Waiting   []string `json:",omitempty"` // the first of those, each with what it waits for
	// Leaves are the certificates that the agent keeps; OldLeaves are those of them that another root has signed than
	// ActiveRoot, the one that the agent knows to be active.
	Leaves, OldLeaves int
	ActiveRoot        string
}

// ConfirmReply tells whether a rotation is under way, so that the call is to be made again after a while.
type ConfirmReply struct{ Again bool }

// A ConfirmDatacenterRequest tells how far the rotation is in a secondary datacenter: Rotation has the same fields. It needs
// operator:write. The leader of the primary one keeps the last of a datacenter in memory for a while.
type ConfirmDatacenterRequest struct {
	read.Target
	FromDatacenter      string
	Phase               string
	NewRootID           string
	Required, Confirmed int
}

// A RotateRequest asks for a new, generated root. It needs operator:write.
type RotateRequest struct {
	read.Target
	PrivateKeyType string // of the new root; empty for that of the configuration
	PrivateKeyBits int    // 0 for that of the configuration, or else the smallest usual one of the type
	// Force makes the new root active without waiting for anybody. Without a type and size, it makes the pending root
	// active if there is one.
	Force bool
}

// A RotationRequest asks how far the rotation is. It needs operator:read.
type RotationRequest struct {
	read.Target
	// MinIndex, unless 0, makes the call wait until the index is another one, at most MaxWait (default and bound 50s).
	MinIndex uint64
	MaxWait  time.Duration
}

// Phases of a rotation.
const (
	PhaseNone      = "none"      // there is but one root
	PhaseSpreading = "spreading" // the new root is being made known; it signs nothing
	PhaseSigning   = "signing"   // the new root signs, and leaves of the old one are replaced
	PhaseRetiring  = "retiring"  // nothing but leaves that nobody keeps can be left of the old root
)

// A Rotation tells how far the last rotation is.
type Rotation struct {
	Phase string
	// NewRootID is the pending root, or the active one when none is. OldRootIDs are the others.
	NewRootID  string
	OldRootIDs []string
	Since      time.Time // when the phase began; zero if that is not known
	// Until is when spreading ends, confirmed or not, or when the last of the old roots is no longer trusted; zero in
	// other phases.
	Until     time.Time
	Required  int             // nodes that have to confirm
	Confirmed int             // those that have
	Nodes     []*RotationNode // in the order of their names; at most MaxRotationNodes, those that are awaited first
	Index     uint64          `json:"-" cbor:"Index"`
}

// MaxRotationNodes bounds Rotation.Nodes.
const MaxRotationNodes = 1000

// A RotationNode is a node with users of certificates, and how far they are with the present phase; or a secondary
// datacenter.
type RotationNode struct {
	Node      string // of a datacenter: "datacenter NAME"
	Confirmed bool
	// Seen is when the node last told, zero if it has not since this leader leads.
	Seen              time.Time
	Proxies           int      // that have accepted the roots
	Missing           int      // that have not yet
	Waiting           []string // the first of those, each with what it waits for
	Leaves, OldLeaves int      // certificates that the agent keeps, and those of the old root among them
}
