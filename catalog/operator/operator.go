// Package operator holds what those who run a cluster ask of its servers: status, Raft membership, autopilot, gossip
// keys, usage and snapshots (spec/state.md sections 9 to 11). Handlers are in server/statusrpc.
package operator

import (
	"context"
	"encoding/json"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls to the servers.
var (
	LeaderCall = rpc.Local[StatusRequest, LeaderReply]("Status.Leader")
	PeersCall  = rpc.Local[StatusRequest, PeersReply]("Status.Peers")

	RaftConfigurationCall      = rpc.Leader[StatusRequest, RaftConfiguration]("Operator.RaftConfiguration")
	RaftConfigurationStaleCall = rpc.Local[StatusRequest, RaftConfiguration]("Operator.RaftConfigurationStale")
	RemovePeerCall             = rpc.Leader[RemovePeerRequest, struct{}]("Operator.RemovePeer")
	TransferLeaderCall         = rpc.Leader[TransferLeaderRequest, struct{}]("Operator.TransferLeader")

	AutopilotConfigCall    = rpc.Read[AutopilotConfigRequest, AutopilotConfigReply]("Operator.AutopilotConfig")
	SetAutopilotConfigCall = rpc.Write[SetAutopilotConfigRequest, SetAutopilotConfigReply]("Operator.SetAutopilotConfig")
	HealthCall             = rpc.Leader[StatusRequest, Health]("Operator.Health")
	StateCall              = rpc.Leader[StatusRequest, State]("Operator.State")

	KeyringCall = rpc.Local[KeyringRequest, KeyringReply]("Operator.Keyring")
	UsageCall   = rpc.Read[UsageRequest, UsageReply]("Operator.Usage")

	// SaveSnapshotCall is followed by the archive; in Stale mode any server makes it.
	SaveSnapshotCall = rpc.Read[SnapshotRequest, SnapshotReply]("Snapshot.Save")
	// RestoreSnapshotCall takes the archive.
	RestoreSnapshotCall = rpc.Leader[StatusRequest, struct{}]("Snapshot.Restore")
)

// A StatusRequest asks a datacenter's servers about themselves.
type StatusRequest struct{ read.Target }

// LeaderReply has the address of the leader's server port, empty when there is none.
type LeaderReply struct{ Address string }

// PeersReply has the addresses of the Raft members, in any order.
type PeersReply struct{ Peers []string }

// A RaftServer is one member of the Raft configuration.
type RaftServer struct {
	ID              string
	Node            string // "(unknown)" when gossip does not know it
	Address         string
	Leader          bool
	ProtocolVersion string
	Voter           bool
	LastIndex       uint64
}

// A RaftConfiguration is the members and the index of the log entry that made them so.
type RaftConfiguration struct {
	Servers []*RaftServer
	Index   uint64
}

// A RemovePeerRequest removes a member by ID or by address; exactly one is set.
type RemovePeerRequest struct {
	read.Target
	ID      string
	Address string
}

// A TransferLeaderRequest makes another server the leader; an empty ID lets the leader choose.
type TransferLeaderRequest struct {
	read.Target
	ID string
}

// AutopilotConfig says how autopilot looks after the servers. The zero value is not the default: see
// DefaultAutopilot.
type AutopilotConfig struct {
	CleanupDeadServers      bool
	LastContactThreshold    Duration
	MaxTrailingLogs         uint64
	MinQuorum               uint
	ServerStabilizationTime Duration
	// RedundancyZoneTag is the key of node metadata that says in which zone a server is: one server of each zone votes,
	// the others stand by. Empty for none.
	RedundancyZoneTag string
	// DisableUpgradeMigration lets servers of all versions vote alike; otherwise those of the newest take over once there
	// are as many of them as of the others.
	DisableUpgradeMigration bool
	// UpgradeVersionTag is the key of node metadata that says which version a server is of; empty for that of its build.
	UpgradeVersionTag string
	catalog.Indexes
}

// DefaultAutopilot returns the configuration of a new cluster.
func DefaultAutopilot() AutopilotConfig {
	return AutopilotConfig{
		CleanupDeadServers: true, LastContactThreshold: Duration(200 * time.Millisecond), MaxTrailingLogs: 250,
		ServerStabilizationTime: Duration(10 * time.Second),
	}
}

// A Duration is written in JSON as text such as "200ms", and read from text or from a number of nanoseconds. Other
// JSON is an error.
type Duration time.Duration

// String returns the text form.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes the text form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads either form.
func (d *Duration) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil // what clients send for a setting they leave out
	}
	var text string
	if json.Unmarshal(data, &text) != nil {
		return json.Unmarshal(data, (*int64)(d))
	}
	v, err := time.ParseDuration(text)
	*d = Duration(v)
	return err
}

// An AutopilotConfigRequest asks for the configuration.
type AutopilotConfigRequest struct{ read.Options }

// AutopilotConfigReply holds it.
type AutopilotConfigReply struct {
	read.Meta
	Config AutopilotConfig
}

// A SetAutopilotConfigRequest replaces the configuration; with CAS only if its ModifyIndex is that of Config.
type SetAutopilotConfigRequest struct {
	read.Target
	Config AutopilotConfig
	CAS    bool
}

// SetAutopilotConfigReply tells whether it was replaced.
type SetAutopilotConfigReply struct{ OK bool }

// A ServerHealth is what autopilot knows of one server.
type ServerHealth struct {
	ID          string
	Name        string
	Address     string
	SerfStatus  string // "alive", "left", "failed", "none"
	Version     string
	Leader      bool
	LastContact time.Duration // 0 on the leader, negative when never
	LastTerm    uint64
	LastIndex   uint64
	Healthy     bool
	Voter       bool
	StableSince time.Time
	Meta        map[string]string // of its node
}

// Health is what autopilot knows of all servers.
type Health struct {
	Healthy          bool
	FailureTolerance int
	Servers          []*ServerHealth // nil before autopilot's first look
}

// A ServerStatus is the role of a server in Raft.
type ServerStatus string

const (
	StatusNone     ServerStatus = "none"
	StatusLeader   ServerStatus = "leader"
	StatusVoter    ServerStatus = "voter"
	StatusNonVoter ServerStatus = "non-voter"
	StatusStaging  ServerStatus = "staging"
)

// A ServerType is what a server is for.
type ServerType string

const (
	TypeVoter          ServerType = "voter"
	TypeReadReplica    ServerType = "read-replica"
	TypeZoneVoter      ServerType = "zone-voter"
	TypeZoneExtraVoter ServerType = "zone-extra-voter" // votes in place of a zone without a voter
	TypeZoneStandby    ServerType = "zone-standby"
)

// A ServerState is a server in State.
type ServerState struct {
	ServerHealth
	Status         ServerStatus
	Type           ServerType
	ReadReplica    bool   // it never votes
	RedundancyZone string // empty without zones, and when it tells none
	UpgradeVersion string // what autopilot takes for its version
}

// State is Health with roles.
type State struct {
	Healthy          bool
	FailureTolerance int
	// OptimisticFailureTolerance counts in those that stand by: how many may fail one after the other.
	OptimisticFailureTolerance int

	Servers         map[string]*ServerState // by ID
	Leader          string                  // ID
	Voters          []string                // IDs, the leader first
	ReadReplicas    []string                // IDs
	RedundancyZones map[string]*Zone        // nil without zones
	Upgrade         *Upgrade                // nil when all servers are of one version and no UpgradeVersionTag is set
}

// A Zone is the servers of one redundancy zone.
type Zone struct {
	Servers          []string // IDs
	Voters           []string
	FailureTolerance int // how many of its servers may fail before it has none
}

// An UpgradeStatus is how far a migration to servers of a newer version is.
type UpgradeStatus string

const (
	UpgradeIdle           UpgradeStatus = "idle"
	UpgradeAwaitNewVoters UpgradeStatus = "await-new-voters" // more servers of the newest version are needed
	UpgradePromoting      UpgradeStatus = "promoting"
	UpgradeDemoting       UpgradeStatus = "demoting"
	UpgradeLeaderTransfer UpgradeStatus = "leader-transfer"
	UpgradeAwaitRemoval   UpgradeStatus = "await-server-removal" // servers of other versions are needed no longer
	UpgradeDisabled       UpgradeStatus = "disabled"
)

// Versions lists servers, by ID, by version and vote.
type Versions struct {
	TargetVersionVoters    []string `json:",omitempty"`
	TargetVersionNonVoters []string `json:",omitempty"`
	OtherVersionVoters     []string `json:",omitempty"`
	OtherVersionNonVoters  []string `json:",omitempty"`
}

// An Upgrade tells of a migration to servers of the newest version, the target.
type Upgrade struct {
	Status        UpgradeStatus
	TargetVersion string `json:",omitempty"`
	Versions
	TargetVersionReadReplicas []string             `json:",omitempty"`
	OtherVersionReadReplicas  []string             `json:",omitempty"`
	RedundancyZones           map[string]*Versions `json:",omitempty"`
}

// A KeyringOp is something to do with the gossip keys.
type KeyringOp string

const (
	KeyringList    KeyringOp = "list"
	KeyringInstall KeyringOp = "install"
	KeyringUse     KeyringOp = "use"
	KeyringRemove  KeyringOp = "remove"
)

// A KeyringRequest works on the gossip keys of every pool, or of this datacenter's alone.
type KeyringRequest struct {
	read.Target
	Op          KeyringOp
	Key         string // base64
	RelayFactor uint8
	LocalOnly   bool
}

// A KeyringResponse is the answer of one gossip pool.
type KeyringResponse struct {
	WAN         bool
	Datacenter  string
	Segment     string
	Messages    map[string]string `json:",omitempty"` // by member, of those that had one
	Keys        map[string]int
	PrimaryKeys map[string]int
	NumNodes    int
	Error       string `json:",omitempty"`
}

// KeyringReply holds the pools' answers, the WAN first.
type KeyringReply struct{ Responses []*KeyringResponse }

// A UsageRequest counts what is in the catalog.
type UsageRequest struct{ read.Options }

// Usage counts one datacenter's catalog.
type Usage struct {
	Nodes                    int
	Services                 int
	ServiceInstances         int
	ConnectServiceInstances  map[string]int
	BillableServiceInstances int
}

// UsageReply holds the counts by datacenter.
type UsageReply struct {
	read.Meta
	Usage map[string]Usage
}

// A SnapshotRequest asks for a snapshot of the state.
type SnapshotRequest struct{ read.Options }

// SnapshotReply comes before the archive. Its Index is the last one included.
type SnapshotReply struct{ read.Meta }

// RaftConfigurationOf asks the leader, or with stale whichever server is asked.
func RaftConfigurationOf(ctx context.Context, c rpc.Caller, req *StatusRequest, stale bool) (*RaftConfiguration, error) {
	if stale {
		return RaftConfigurationStaleCall.Call(ctx, c, req)
	}
	return RaftConfigurationCall.Call(ctx, c, req)
}
