package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/server/aclrpc"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/explainrpc"
	"github.com/sarnmesh/sarn/server/federation"
	"github.com/sarnmesh/sarn/server/feedrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/kvrpc"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/membership"
	"github.com/sarnmesh/sarn/server/peering"
	"github.com/sarnmesh/sarn/server/peeringrpc"
	"github.com/sarnmesh/sarn/server/queryrpc"
	"github.com/sarnmesh/sarn/server/statusrpc"
	"github.com/sarnmesh/sarn/server/svidrpc"
	"github.com/sarnmesh/sarn/server/transport"
	"github.com/sarnmesh/sarn/server/uirpc"
)

// A Server is one member of the cluster. Make one with New.
type Server struct {
	cfg        Config
	log        hclog.Logger
	store      *state.Store
	fsm        *fsm.FSM
	pool       *gossip.Pool
	wan        *gossip.Pool           // nil when this server is in none
	federation *federation.Federation // nil with it
	port       *rpcwire.Port
	remote     *rpcwire.Client
	raft       *consensus.Raft
	membership *membership.Membership
	dispatcher *transport.Dispatcher
	sessions   *leader.Sessions
	keys       int // how many there were when the last change of any had this index; of report
	keysAt     uint64
	grpc       *rpcwire.Server
	intro      *rpcwire.Server
	peers      *peering.Engine
	feeds      *feedrpc.Hub  // nil when agents are given none
	first      []leader.Duty // have ended before duties begin
	duties     []leader.Duty
}

// New prepares a server. Nothing starts until Run.
func New(cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Logger.Named("server"), store: state.New()}

	var registry transport.Registry
	var appliers fsm.Appliers
	s.fsm = fsm.New(s.store, &appliers)

	if err := s.newPool(); err != nil {
		return nil, err
	}
	s.port = rpcwire.NewPort(rpcwire.PortConfig{
		Listener: cfg.Listener, Security: cfg.Security, HandshakeTimeout: cfg.HandshakeTimeout,
		MaxConnsPerClient: cfg.MaxConnsPerIP, Logger: s.log,
	})
	s.remote = rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
		return s.dial(ctx, address, rpcwire.ProtoRPC, cfg.Datacenter)
	})
	var err error
	s.raft, err = consensus.New(consensus.Config{
		ID: cfg.NodeID, Address: cfg.Advertise.String(), FSM: s.fsm, Storage: cfg.Storage,
		Listener: raftListener{s.port.Listener(rpcwire.ProtoRaft), s},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return s.dial(ctx, address, rpcwire.ProtoRaft, cfg.Datacenter)
		},
		AddressOf: func(id string) (string, bool) { return s.membership.AddressOf(id) },
		Lead:      s.lead, Multiplier: cfg.RaftMultiplier, SnapshotThreshold: cfg.RaftSnapshotEntries,
		SnapshotInterval: cfg.RaftSnapshotEvery, TrailingLogs: cfg.RaftTrailingLogs, PreVoteDisabled: cfg.RaftPreVoteDisabled,
		CacheDisabled: cfg.RaftCacheDisabled, Verify: cfg.RaftVerify, VerifyInterval: cfg.RaftVerifyEvery, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	s.membership = membership.New(membership.Config{
		Datacenter: cfg.Datacenter, ID: cfg.NodeID, Name: cfg.NodeName, Address: cfg.Advertise.String(),
		Bootstrap: cfg.Bootstrap, Expect: cfg.BootstrapExpect, ReadReplica: cfg.ReadReplica, Raft: s.raft,
		Members: s.pool.Members, ForceLeave: s.pool.ForceLeave,
		Rejoin: func(address string) error {
			_, err := s.pool.Join([]string{address})
			return err
		},
		Peers: func(ctx context.Context, address string) ([]string, error) {
			reply := new(operator.PeersReply)
			err := s.remote.Call(ctx, address, operator.PeersCall.Name, &operator.StatusRequest{}, reply)
			return reply.Peers, err
		},
		Stats: func(ctx context.Context, address string) (membership.Stats, error) {
			var reply membership.Stats
			err := s.remote.Call(ctx, address, statusrpc.StatsCall.Name, &statusrpc.StatsRequest{}, &reply)
			return reply, err
		},
		NodeMeta: func(name string) map[string]string {
			if n := s.store.View().Node(name); n != nil {
				return n.Meta
			}
			return nil
		},
		Autopilot: s.autopilot, ConfirmFailure: cfg.ConfirmFailure, Node: cfg.Node, Logger: cfg.Logger,
	})

	sessions := leader.NewSessions()
	s.sessions = sessions
	cfg.Connect.Datacenter = cfg.Datacenter
	if s.secondary() {
		primary := cfg.ACL.PrimaryDatacenter
		cfg.Connect.Primary = connectrpc.Primary{Datacenter: primary, Caller: s.federation.Caller(primary), Token: s.replicationToken}
	}
	authority := connectrpc.New(cfg.Connect)
	coordinates := catalogrpc.NewCoordinates(coordinatePeriod)
	if cfg.Dev {
		coordinates = catalogrpc.NewCoordinates(coordinatePeriodDev)
	}
	lookups := catalogrpc.Config{Resolve: configrpc.Resolve, LinkedGateways: configrpc.LinkedGateways, Coordinates: coordinates}
	queries := queryrpc.Config{Instances: lookups.Candidates, Logger: s.log}
	var elsewhere transport.Elsewhere
	if s.federation != nil {
		elsewhere, lookups.Federation, queries.Elsewhere = s.federation, s.federation, distant{s.federation}
	}
	catalogrpc.Register(&registry, &appliers, lookups)
	if !cfg.FeedsDisabled {
		s.feeds = feedrpc.New(feedrpc.Config{Store: s.store, Candidates: lookups.Candidates, Logger: s.log})
		s.feeds.Register(&registry)
	}
	queryrpc.Register(&registry, &appliers, queries)
	kvrpc.Register(&registry, &appliers, kvrpc.Config{TTL: sessions, MinTTL: cfg.SessionTTLMin, KeyListPolicy: cfg.KeyListPolicy})
	authority.Register(&registry, &appliers)
	if elsewhere != nil && cfg.ACL.Primary == nil {
		cfg.ACL.Primary = func(ctx context.Context, d rpc.Descriptor, req, resp any) error {
			return elsewhere.Call(ctx, cfg.ACL.PrimaryDatacenter, d.Name, req, resp)
		}
	}
	replication := &aclrpc.ReplicationProgress{}
	if cfg.ACL.Replication == nil {
		cfg.ACL.Replication = replication.Status
	}
	control := aclrpc.New(cfg.ACL, s.store)
	control.Register(&registry, &appliers)
	if cfg.Resolver == nil {
		cfg.Resolver = control
	}
	s.cfg.Resolver = cfg.Resolver
	tokens := svidrpc.Config{Disabled: cfg.Connect.Disabled}
	svidrpc.Register(&registry, &appliers, tokens)
	if s.secondary() {
		cfg.Entries.PrimaryDatacenter, cfg.Entries.Primary = cfg.ACL.PrimaryDatacenter, s.federation.Caller(cfg.ACL.PrimaryDatacenter)
	}
	configrpc.Register(&registry, &appliers, cfg.Entries)
	explainrpc.Register(&registry, explainrpc.Config{Default: cfg.Entries.Default(), ConnectDisabled: cfg.Entries.ConnectDisabled})
	status := statusrpc.Config{
		ID: cfg.NodeID, Raft: s.raft, Pool: s.pool, WAN: s.wan, Membership: func() *membership.Membership { return s.membership },
		Autopilot: *cfg.Autopilot, TempDir: cfg.DataDir, Logger: s.log,
	}
	if s.federation != nil {
		status.Elsewhere = s.federation
	}
	statusrpc.Register(&registry, &appliers, status)
	uirpc.Register(&registry, uirpc.Config{Default: cfg.Entries.Default(), Builds: s.builds})
	s.peers = peering.New(peering.Config{
		Datacenter: cfg.Datacenter, Store: s.store, Dial: cfg.Dial, LeaderAddress: s.leaderForPeers, Logger: cfg.Logger,
	})
	peeringrpc.Register(&registry, &appliers, peeringrpc.Config{
		Disabled: cfg.PeeringDisabled, Exchange: s.peers.Exchange, Status: s.peers.Status,
	})
	for _, add := range cfg.Handlers {
		add(&registry, &appliers)
	}
	s.first = []leader.Duty{s.firstAutopilot()}
	if cfg.Connect.BuiltIn() {
		s.first = append(s.first, leader.FirstCA(authority))
	}
	s.duties = append([]leader.Duty{
		s.membership.Reconcile(), s.membership.Autopilot(), sessions.Duty(), leader.Tombstones(s.fsm.Applied, kvrpc.ReapRequest),
		leader.CA(authority), svidrpc.Duty(tokens), leader.APIGateways(configrpc.Bind),
		coordinates.Duty(),
	}, cfg.Duties...)
	if !cfg.PeeringDisabled {
		s.duties = append(s.duties, s.peers.Duty())
	}
	if cfg.ACL.Enabled {
		s.first = append(s.first, leader.FirstACL(control))
		s.duties = append(s.duties, leader.ACL(control))
		if s.secondary() {
			s.duties = append(s.duties, s.replicateACLs(replication))
		}
	}
	if s.secondary() {
		s.duties = append(s.duties, s.replicateEntries(), replicateAuthority(authority))
		s.duties = append(s.duties, cfg.First...)
	} else {
		s.first = append(s.first, cfg.First...)
	}

	s.dispatcher = transport.NewDispatcher(transport.Config{
		Datacenter: cfg.Datacenter, Registry: &registry, Store: s.store, Log: s.raft, Applied: s.fsm.Applied,
		AddressOf: s.membership.AddressOf,
		Remote:    s.remote, Elsewhere: elsewhere, Security: cfg.Security, Resolver: cfg.Resolver, HoldTimeout: cfg.HoldTimeout,
		DefaultQueryTime: cfg.DefaultQueryTime, MaxQueryTime: cfg.MaxQueryTime, ClientTimeout: cfg.ClientTimeout,
		Limits: cfg.Limits, Logger: cfg.Logger,
	})
	if s.feeds != nil {
		s.feeds.Connect(s.dispatcher)
	}
	control.AskLeader(s.dispatcher, func() bool { status, _ := s.raft.Status(); return status.Leading })
	methods, streams := s.dispatcher.Methods()
	s.grpc = rpcwire.NewServer(methods, streams, 0)
	s.grpc.Trace(cfg.Tracer)
	s.intro = rpcwire.NewServer(cfg.Introduce, nil, maxIntroduction)
	return s, nil
}

// maxIntroduction bounds what somebody says who is not known yet.
const maxIntroduction = 64 << 10

// How often the leader writes the coordinates that have come; the second in development mode.
const (
	coordinatePeriod    = 5 * time.Second
	coordinatePeriodDev = 100 * time.Millisecond
)

// newPool prepares the gossip pool.
func (s *Server) newPool() error {
	cfg := s.cfg.Gossip
	guard := gossip.NewGuard(s.cfg.Datacenter, s.cfg.NodeName, s.cfg.NodeID)
	cfg.Name = s.cfg.NodeName
	tags := gossip.Server{
		ID: s.cfg.NodeID, Datacenter: s.cfg.Datacenter, Addr: s.cfg.Advertise, Bootstrap: s.cfg.Bootstrap && !s.cfg.Dev, Expect: s.cfg.BootstrapExpect,
		Build: s.cfg.Build, GRPCPort: s.cfg.GRPCPort, GRPCTLSPort: s.cfg.GRPCTLSPort, WANPort: s.cfg.WANPort,
		UseTLS: s.cfg.Security.UsesTLS(), ReadReplica: s.cfg.ReadReplica,
	}.Tags()
	maps.Copy(tags, cfg.Tags)
	cfg.Tags = tags
	cfg.Refuse = guard.Refuse
	cfg.OnEvent = func(e gossip.Event) {
		guard.Observe(e)
		s.membership.Observe(e)
		if s.cfg.OnEvent != nil {
			s.cfg.OnEvent(e)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = s.cfg.Logger.Named("gossip")
	}
	var err error
	if s.pool, err = gossip.New(cfg); err != nil || s.cfg.WAN == nil {
		return err
	}
	return s.newWAN(tags)
}

// newWAN prepares the pool of the servers of all datacenters.
func (s *Server) newWAN(tags map[string]string) error {
	cfg := *s.cfg.WAN
	cfg.WAN, cfg.Name, cfg.Tags, cfg.Refuse = true, federation.Name(s.cfg.NodeName, s.cfg.Datacenter), tags, federation.Refuse
	cfg.OnEvent = func(e gossip.Event) { s.federation.Observe(e) }
	if cfg.Logger == nil {
		cfg.Logger = s.cfg.Logger.Named("wan")
	}
	var err error
	if s.wan, err = gossip.New(cfg); err != nil {
		return err
	}
	s.federation = federation.New(federation.Config{
		Datacenter: s.cfg.Datacenter, Pool: s.wan, Logger: s.cfg.Logger,
		Dial: func(ctx context.Context, address, datacenter string) (net.Conn, error) {
			return s.dial(ctx, address, rpcwire.ProtoRPC, datacenter)
		},
		LAN: func() []gossip.Server { return s.membership.Servers() },
	})
	return nil
}

// secondary reports whether another datacenter is the primary one, and can be reached.
func (s *Server) secondary() bool {
	primary := s.cfg.ACL.PrimaryDatacenter
	return s.federation != nil && primary != "" && primary != s.cfg.Datacenter
}

// replicationToken is what is shown to the primary datacenter.
func (s *Server) replicationToken() string {
	if s.cfg.ReplicationToken == nil {
		return ""
	}
	return s.cfg.ReplicationToken()
}

// replicateEntries copies the configuration entries of the primary datacenter.
func (s *Server) replicateEntries() leader.Duty {
	return leader.Duty{Name: "config-replication", Run: func(ctx context.Context, l *leader.Leader) error {
		primary := s.cfg.ACL.PrimaryDatacenter
		r := configrpc.Replicator{
			Datacenter: primary, Primary: s.federation.Caller(primary), Token: s.replicationToken, Store: l.Store, Apply: l.Apply, Log: l.Log,
		}
		return r.Run(ctx)
	}}
}

// replicateAuthority keeps the certificate authority part of the primary datacenter's.
func replicateAuthority(a *connectrpc.Authority) leader.Duty {
	return leader.Duty{Name: "ca-replication", Run: func(ctx context.Context, l *leader.Leader) error {
		a.Replicate(ctx, l.Store, l.Apply)
		return nil
	}}
}

// replicateACLs copies what the primary datacenter has.
func (s *Server) replicateACLs(progress *aclrpc.ReplicationProgress) leader.Duty {
	return leader.Duty{Name: "acl-replication", Run: func(ctx context.Context, l *leader.Leader) error {
		primary := s.cfg.ACL.PrimaryDatacenter
		r := aclrpc.Replicator{
			Datacenter: primary, Primary: s.federation.Caller(primary), Tokens: s.cfg.ACL.TokenReplication, Token: s.replicationToken,
			Store: l.Store, Apply: l.Apply, Log: l.Log,
		}
		return r.Run(ctx, progress)
	}}
}

// distant executes prepared queries in other datacenters.
type distant struct{ *federation.Federation }

func (d distant) Execute(ctx context.Context, to query.Target, req *query.RemoteRequest) (*query.ExecuteReply, error) {
	return query.RemoteCall.Call(ctx, d.Caller(to.Datacenter), req)
}

func (d distant) Datacenters() []string { return d.Federation.Datacenters()[1:] }

// builds returns the version that each member runs.
func (s *Server) builds() map[string]string {
	builds := map[string]string{}
	for _, m := range s.pool.Members() {
		builds[m.Name], _, _ = strings.Cut(m.Tags["build"], ":")
	}
	return builds
}

// dial opens a connection to the port of another server, of a datacenter.
func (s *Server) dial(ctx context.Context, address, protocol, datacenter string) (net.Conn, error) {
	conn, err := s.cfg.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	return s.cfg.Security.Secure(ctx, conn, protocol, datacenter)
}

// raftListener keeps everybody but servers out of the log, where certificates tell them apart.
type raftListener struct {
	net.Listener
	s *Server
}

func (l raftListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		sec := l.s.cfg.Security
		pc, ok := c.(*rpcwire.Conn)
		if !sec.RestrictsServers() || ok && pc.Peer().Is(sec.ServerName(l.s.cfg.Datacenter)) {
			return c, nil
		}
		l.s.log.Warn("refused Raft to a caller whose certificate is not a server's", "caller", c.RemoteAddr())
		c.Close()
	}
}

// Run serves until ctx ends or something fails that cannot be done without. It does not leave the cluster; see Leave.
func (s *Server) Run(ctx context.Context) error {
	seen, err := s.checkAge()
	if err != nil {
		s.cfg.Listener.Close()
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.pool.Run(ctx) })
	if s.wan != nil {
		g.Go(func() error { return s.wan.Run(ctx) })
		g.Go(func() error { return s.federation.Run(ctx) })
	}
	g.Go(func() error { return s.port.Run(ctx) })
	g.Go(func() error { return s.raft.Run(ctx) })
	g.Go(func() error { return s.grpc.Serve(s.port.Listener(rpcwire.ProtoRPC)) })
	g.Go(func() error { return s.intro.Serve(s.port.Listener(rpcwire.ProtoIntro)) })
	g.Go(func() error { return s.membership.RunBootstrap(ctx) })
	g.Go(func() error { return seen(ctx) })
	g.Go(func() error { return s.report(ctx) })
	if s.feeds != nil {
		g.Go(func() error { return s.feeds.Run(ctx) })
	}
	g.Go(func() error {
		<-ctx.Done()
		s.dispatcher.Refuse()
		s.grpc.Stop()
		s.intro.Stop()
		return s.remote.Close()
	})
	return g.Wait()
}

// lead is what the leader does.
func (s *Server) lead(ctx context.Context) {
	l := &leader.Leader{
		Calls: s.dispatcher.Internal(), Store: s.store, Apply: s.raft.Apply, Datacenter: s.cfg.Datacenter, Node: s.cfg.NodeName,
		NodeID: s.cfg.NodeID, Log: s.cfg.Logger.Named("leader"),
	}
	leader.Run(ctx, l, s.first)
	leader.Run(ctx, l, s.duties)
}

// autopilot returns the configuration in use.
func (s *Server) autopilot() operator.AutopilotConfig {
	if conf, ok := statusrpc.StoredAutopilot(s.store.View()); ok {
		return conf
	}
	return *s.cfg.Autopilot
}

// firstAutopilot stores the configuration that a new cluster starts with.
func (s *Server) firstAutopilot() leader.Duty {
	return leader.Duty{Name: "autopilot-config", Run: func(ctx context.Context, l *leader.Leader) error {
		return statusrpc.StoreAutopilot(ctx, l.Store, *s.cfg.Autopilot, l.Apply)
	}}
}

// Caller answers calls of this process.
func (s *Server) Caller() rpc.Streamer { return s.dispatcher }

// Secret returns what servers alone know of one another, empty before the first leader has made it.
func (s *Server) Secret() string { return connectrpc.Secret(s.store.View()) }

// Internal answers calls of this process with every right, from this server alone.
func (s *Server) Internal() rpc.Caller { return s.dispatcher.Internal() }

// Resolve returns what a token may do, by the state of this server.
func (s *Server) Resolve(ctx context.Context, token string) (*acl.Authorizer, error) {
	return s.cfg.Resolver.Resolve(ctx, token)
}

// WAN returns the pool of the servers of all datacenters, nil when this server is in none.
func (s *Server) WAN() *gossip.Pool { return s.wan }

// Gossip returns the LAN pool.
func (s *Server) Gossip() *gossip.Pool { return s.pool }

// Store returns the local state.
func (s *Server) Store() *state.Store { return s.store }

// Leadership returns what is known of the leader, and a channel that is closed when that changes.
func (s *Server) Leadership() (consensus.Status, <-chan struct{}) { return s.raft.Status() }

// Times of a graceful leave.
const (
	startTime    = 5 * time.Second
	transferTime = 5 * time.Second
	removalTime  = 5 * time.Second
)

// Leave takes this server out of the cluster: it hands leadership over, leaves gossip, waits until the leader has taken
// it out of Raft, and goes on a while refusing calls, so that callers find another server. Then end Run.
func (s *Server) Leave(ctx context.Context) error {
	s.waitFor(ctx, startTime, func() bool { // it may be asked to as soon as it has begun
		select {
		case <-s.raft.Ready():
			return true
		default:
			return false
		}
	})
	members, _, err := s.raft.Members()
	if err != nil {
		return err
	}
	others := 0
	for _, m := range members {
		if m.Voter && m.ID != s.cfg.NodeID {
			others++
		}
	}
	status, _ := s.raft.Status()
	if status.Elected && others > 0 {
		if err := s.raft.Transfer(""); err != nil {
			s.log.Warn("cannot hand leadership over, leaving anyway", "error", err)
		} else {
			s.waitFor(ctx, transferTime, func() bool { st, _ := s.raft.Status(); return !st.Elected && st.Known() })
		}
	}
	if s.wan != nil {
		if err := s.wan.Leave(); err != nil {
			s.log.Warn("cannot leave the WAN pool", "error", err)
		}
	}
	if err := s.pool.Leave(); err != nil {
		s.log.Warn("cannot leave gossip", "error", err)
	}
	if others > 0 {
		removed := s.waitFor(ctx, removalTime, func() bool {
			members, _, err := s.raft.Members()
			if err != nil {
				return true
			}
			for _, m := range members {
				if m.ID == s.cfg.NodeID {
					return false
				}
			}
			return true
		})
		if !removed {
			s.log.Warn("the leader has not taken this server out of Raft in time")
		}
	}
	s.dispatcher.Refuse()
	s.waitFor(ctx, s.cfg.LeaveDrain, func() bool { return false })
	return ctx.Err()
}

// waitFor waits until done holds, at most for this time.
func (s *Server) waitFor(ctx context.Context, most time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return done()
		case <-tick.C:
		}
	}
	return true
}

// A Reload changes settings of a running server; a zero field leaves its setting as it is.
type Reload struct {
	ClientTimeout       time.Duration
	MaxConnsPerIP       int
	RaftMultiplier      int
	RaftSnapshotEntries uint64
	RaftSnapshotEvery   time.Duration
	RaftTrailingLogs    uint64
	Limits              *transport.Limits
}

// Reload changes settings while the server runs.
func (s *Server) Reload(r Reload) error {
	if r.MaxConnsPerIP != 0 {
		s.port.SetMaxConnsPerClient(r.MaxConnsPerIP)
	}
	s.dispatcher.SetClientTimeout(r.ClientTimeout)
	if r.Limits != nil {
		s.dispatcher.SetLimits(*r.Limits)
	}
	err := s.raft.Reload(r.RaftMultiplier, r.RaftSnapshotEntries, r.RaftSnapshotEvery, r.RaftTrailingLogs)
	if errors.Is(err, consensus.ErrStopped) {
		return nil
	}
	return err
}

// Stats returns figures for operators, by part.
func (s *Server) Stats() map[string]map[string]string {
	status, _ := s.raft.Status()
	address := status.LeaderAddress
	if a, ok := s.membership.AddressOf(status.LeaderID); ok {
		address = a
	}
	known := 1
	if s.federation != nil {
		known = len(s.federation.Datacenters())
	}
	stats := map[string]map[string]string{
		"consul": {
			"server": "true", "leader": strconv.FormatBool(status.Elected), "leader_addr": address,
			"bootstrap": strconv.FormatBool(s.cfg.Bootstrap && !s.cfg.Dev), "known_datacenters": strconv.Itoa(known),
		},
		"raft":     s.raft.Stats(),
		"serf_lan": s.pool.Stats(),
	}
	if s.wan != nil {
		stats["serf_wan"] = s.wan.Stats()
	}
	return stats
}

// String names the server in logs.
func (s *Server) String() string {
	return fmt.Sprintf("server %s (%s)", s.cfg.NodeName, s.cfg.Advertise)
}
