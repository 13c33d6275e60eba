// Package server assembles a server: the replicated log and the state it drives, the gossip pool, the port that serves
// agents and other servers, and what the leader does.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/span"
	"github.com/sarnmesh/sarn/server/aclrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/transport"
)

// A Config describes a server. A zero field takes its default.
type Config struct {
	Datacenter string // default "dc1"
	NodeName   string
	NodeID     string // lower-case UUID
	Build      string // version told to others

	// DataDir holds the log, snapshots and small files, each in its place below; empty keeps everything in memory.
	DataDir string
	// Storage opens the storage of the log; default below DataDir, or in memory.
	Storage func() (*consensus.Storage, error)
	// Dev makes a cluster of this server alone, and shortens the times that a developer would wait for.
	Dev bool

	// Bootstrap makes a cluster of this server alone if it has none yet; BootstrapExpect waits for so many servers.
	Bootstrap       bool
	BootstrapExpect int
	// ReadReplica keeps this server from voting: it copies the state, and answers reads that may be stale.
	ReadReplica bool

	// Listener is the server port. The server closes it.
	Listener net.Listener
	// Advertise is the address of the server port told to others; default that of Listener.
	Advertise netip.AddrPort
	// Dial opens connections to other servers' ports.
	Dial     func(ctx context.Context, address string) (net.Conn, error)
	Security *rpcwire.Security  // default plain text
	Resolver transport.Resolver // default resolves as ACL says

	// Gossip is the LAN pool. The server sets Name, Tags and Refuse, listens to its events, and runs it.
	Gossip gossip.Config
	// Node is what this server's agent registers its node as; nil when there is none. A server that leads before its node
	// is registered registers all of that.
	Node *catalog.Node
	// OnEvent is called with every event of the pool after the server has seen it, one at a time. It should return
	// soon.
	OnEvent                        func(gossip.Event)
	GRPCPort, GRPCTLSPort, WANPort int // told to others when positive
	// WAN is the pool of the servers of all datacenters; nil when this server is in none. The server sets Name, Tags and
	// Refuse, listens to its events, and runs it.
	WAN *gossip.Config

	RaftMultiplier      int           // performance.raft_multiplier; default 5, in Dev 1
	RaftSnapshotEntries uint64        // raft_snapshot_threshold; default 16384
	RaftSnapshotEvery   time.Duration // raft_snapshot_interval; default 30s
	RaftTrailingLogs    uint64        // default 10240
	RaftSegmentBytes    int           // raft_logstore.wal.segment_size_mb; default 64 MiB
	RaftPreVoteDisabled bool
	RaftCacheDisabled   bool          // raft_logstore.disable_log_cache
	RaftVerify          bool          // raft_logstore.verification.enabled
	RaftVerifyEvery     time.Duration // raft_logstore.verification.interval; default 60s
	// Autopilot is used until a configuration is stored; nil for the default.
	Autopilot *operator.AutopilotConfig

	SessionTTLMin    time.Duration // default 10s
	PeeringDisabled  bool          // peering.enabled = false
	KeyListPolicy    bool          // acl.enable_key_list_policy
	HoldTimeout      time.Duration // performance.rpc_hold_timeout; default 7s
	LeaveDrain       time.Duration // performance.leave_drain_time; default 5s
	DefaultQueryTime time.Duration // default 300s
	MaxQueryTime     time.Duration // default 600s
	ClientTimeout    time.Duration // limits.rpc_client_timeout; default 60s
	HandshakeTimeout time.Duration // limits.rpc_handshake_timeout; default 5s
	MaxConnsPerIP    int           // limits.rpc_max_conns_per_client; default 100, negative for no bound
	RejoinAgeMax     time.Duration // server_rejoin_age_max; default 168h
	ConfirmFailure   time.Duration // how long a member stays failed before its node is; default 1s, in Dev 200ms

	Limits transport.Limits // limits.request_limits

	ACL     aclrpc.Config     // access control; Datacenter, Node and DataDir are set by the server
	Connect connectrpc.Config // the mesh's certificate authority
	Entries configrpc.Config  // configuration entries; Datacenter is set by the server

	// ReplicationToken returns the secret that is shown to the primary datacenter by who copies from it; nil for none.
	ReplicationToken func() string

	// Introduce answers agents that have no certificate yet, over rpcwire.ProtoIntro; nil answers none. Security must
	// accept them, too.
	Introduce []rpcwire.Method

	FeedsDisabled bool // rpc.enable_streaming is false: agents ask for what they watch

	// Handlers adds calls beside those every server answers, Duties what else the leader does. Duties of First end, and in
	// the primary datacenter have ended before others begin: there, who finds a server in the catalog finds what they made.
	Handlers      []func(*transport.Registry, *fsm.Appliers)
	First, Duties []leader.Duty

	Tracer *span.Tracer // records calls of requests that are recorded where they come from; nil records none
	Logger hclog.Logger // default discards
}

// complete checks the configuration and fills in defaults.
func (c *Config) complete() error {
	if c.Datacenter == "" {
		c.Datacenter = "dc1"
	}
	if c.NodeName == "" || c.Listener == nil || c.Dial == nil {
		return errors.New("server: node name, listener and dialer are needed")
	}
	if err := catalog.CheckUUID(c.NodeID); err != nil {
		return fmt.Errorf("server: node ID: %w", err)
	}
	if c.Bootstrap && c.BootstrapExpect > 0 {
		return errors.New("'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive")
	}
	if c.Bootstrap && c.ReadReplica {
		return errors.New("'bootstrap = true' and 'read_replica = true' are mutually exclusive")
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Security == nil {
		c.Security = &rpcwire.Security{}
	}
	if !c.Advertise.IsValid() {
		a, err := netip.ParseAddrPort(c.Listener.Addr().String())
		if err != nil {
			return fmt.Errorf("server: advertised address: %w", err)
		}
		c.Advertise = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	if c.Dev {
		c.Bootstrap = c.BootstrapExpect == 0
		def(&c.RaftMultiplier, 1)
		def(&c.ConfirmFailure, 200*time.Millisecond)
		def(&c.Gossip.Timing.ProbeInterval, 100*time.Millisecond)
		def(&c.Gossip.Timing.ProbeTimeout, 100*time.Millisecond)
		def(&c.Gossip.Timing.GossipInterval, 100*time.Millisecond)
		def(&c.Gossip.Timing.SuspicionMult, 3)
	}
	def(&c.LeaveDrain, 5*time.Second)
	def(&c.RejoinAgeMax, 168*time.Hour)
	if c.Autopilot == nil {
		conf := operator.DefaultAutopilot()
		c.Autopilot = &conf
	}
	if c.Storage == nil {
		if c.DataDir == "" {
			c.Storage = consensus.Memory
		} else {
			disk := consensus.DiskConfig{Dir: filepath.Join(c.DataDir, "raft"), SegmentBytes: c.RaftSegmentBytes, Logger: c.Logger}
			c.Storage = func() (*consensus.Storage, error) { return consensus.Disk(disk) }
		}
	}
	c.Entries.Datacenter = c.Datacenter
	c.ACL.Datacenter, c.ACL.Node, c.ACL.DataDir = c.Datacenter, c.NodeName, c.DataDir
	if c.ACL.Logger == nil {
		c.ACL.Logger = c.Logger
	}
	if c.Connect.Logger == nil {
		c.Connect.Logger = c.Logger
	}
	return nil
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
