package agent

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/access"
	"github.com/sarnmesh/sarn/client/bundle"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/check"
	"github.com/sarnmesh/sarn/client/check/osservice"
	"github.com/sarnmesh/sarn/client/dns"
	"github.com/sarnmesh/sarn/client/grpcapi"
	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/client/job"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/client/newcomer"
	"github.com/sarnmesh/sarn/client/proxystate"
	"github.com/sarnmesh/sarn/client/router"
	"github.com/sarnmesh/sarn/client/subscription"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/command/agent/telemetry"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/resident"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/version"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/introrpc"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/transport"
)

// An Agent is one running agent: what every node runs and, on a server, the server.
type Agent struct {
	sources config.Sources
	log     hclog.InterceptLogger
	node    catalog.Node
	tokens  *tokens
	sockets *sockets
	started time.Time

	lookEvery time.Duration // 0 for defaultLookEvery

	server *server.Server // nil on clients
	router *router.Router // nil on servers
	caller rpc.Streamer
	pool   *gossip.Pool

	access *access.Resolver // nil while access control is off
	local  *local.State
	cache  *cache.Cache
	feeds  *subscription.Client // nil on servers, which watch their own state, and when off
	leaves *leaf.Keeper
	// ownLeaves keeps the certificate of a server that has none configured.
	ownLeaves *leaf.Keeper
	proxies   *proxystate.State
	bundles   *bundle.Reporter
	dns       *dns.Server
	http      *httpapi.Server
	grpc      *grpcapi.Server
	xds       *ads.Server
	events    event.Log
	jobs      *job.Runner // nil when remote execution is off
	watches   *watches
	conns     httpapi.ConnLimit
	rate      router.Rate // of calls that a server's own API makes
	metrics   *measures
	traces    *telemetry.Traces
	given     *newcomer.Keeper // keeps the certificate that the servers gave; nil without
	rpcTLS    material
	httpTLS   material
	grpcTLS   material

	mu       sync.Mutex
	settings *config.Settings // in force; replaced by Reload
	begun    *config.Settings // that the agent began with

	owned chan struct{} // closed when the leader has told this server the token of its agent
	seeds chan struct{} // tells of a reload to who writes config_entries.bootstrap; holds one

	ready chan struct{}   // closed when all that is configured is served
	stop  chan stopReason // receives why the agent is to end
}

// A stopReason says how an agent ends.
type stopReason int

const (
	stopNow   stopReason = iota // without a word to the others
	leftByAPI                   // it has left already
)

// unsupported lists what a configuration may ask for and this version does not do. To go on without it would do less
// than was asked for, most of all about security.
func unsupported(s *config.Settings) error {
	var errs []error
	if s.Server && s.Connect.Enabled {
		if err := connectrpc.CheckSettings(s.Connect.CAProvider, s.Connect.CAConfig); err != nil {
			errs = append(errs, fmt.Errorf("connect.ca_provider: %w", err))
		}
	}
	for _, addr := range append(slices.Clone(s.Join.LAN), s.Join.WAN...) {
		for word := range strings.FieldsSeq(addr) { // others may be secrets
			if strings.HasPrefix(word, "provider=") {
				errs = append(errs, fmt.Errorf("retry_join with %s is not supported by this version: name the servers by address, "+
					"or by a DNS name that has the addresses of all of them", word))
			}
		}
	}
	if t := &s.Telemetry; t.CirconusAPIToken != "" || t.CirconusSubmissionURL != "" {
		errs = append(errs, errors.New("telemetry.circonus_*: metrics are not sent to Circonus by this version: use telemetry.otlp, statsd_address, "+
			"dogstatsd_addr, statsite_address or prometheus_retention_time"))
	}
	return errors.Join(errs...)
}

// newAgent opens the sockets and puts the parts together. Nothing runs before Run.
func newAgent(src config.Sources, s *config.Settings, log hclog.InterceptLogger) (*Agent, error) {
	return newMember(src, s, log, nil)
}

// newMember is newAgent with the certificate that the servers gave; nil for none.
func newMember(src config.Sources, s *config.Settings, log hclog.InterceptLogger, given *newcomer.Keeper) (_ *Agent, err error) {
	if err := unsupported(s); err != nil {
		return nil, err
	}
	id, err := nodeID(s)
	if err != nil {
		return nil, err
	}
	a := &Agent{sources: src, log: log, settings: s, begun: s, node: node(s, id), ready: make(chan struct{}), stop: make(chan stopReason, 1), seeds: make(chan struct{}, 1), owned: make(chan struct{}), given: given}
	if a.tokens, err = newTokens(s, log.Named("tokens")); err != nil {
		return nil, err
	}
	if given != nil {
		given.Follow(a.tokens.Agent)
		for _, m := range []*material{&a.rpcTLS, &a.httpTLS, &a.grpcTLS} {
			m.auto = given.Admission
		}
	}
	if _, err := keepOwnCert(s, log, time.Now()); err != nil {
		return nil, err
	}
	if err := a.loadTLS(s); err != nil {
		return nil, err
	}
	if a.metrics, err = newMeasures(s, dialOut, log.Named("telemetry")); err != nil {
		return nil, err
	}
	if a.traces, err = newTraces(s, dialOut, log.Named("telemetry")); err != nil {
		return nil, err
	}
	if s.TLS.GRPC.CertFile == "" && (!s.Server || !s.Connect.Enabled) && (given == nil || !s.TLS.GRPC.UseAutoCert) {
		s.Addresses.GRPCTLS = nil // there is nothing to serve TLS with
	}
	if a.sockets, err = listen(s); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.sockets.close()
		}
	}()
	if s.Server {
		err = a.newServer(s)
	} else {
		err = a.newClient(s)
	}
	if err != nil {
		return nil, err
	}
	return a, a.newParts(s)
}

// gossip describes the LAN pool.
func (a *Agent) gossip(s *config.Settings) (gossip.Config, error) {
	c := gossip.Config{
		Listener: a.sockets.lan, Packets: a.sockets.lanUDP, Advertise: s.Addresses.SerfLANAdvertise,
		ReconnectTimeout: s.Gossip.ReconnectTimeout, OwnReconnectTimeout: s.Gossip.AdvertiseReconnectTimeout, Logger: a.log.Named("gossip"),
	}
	return a.pooled(c, s, s.Gossip.LAN, s.Addresses.SerfLANAllowed, "local")
}

// wan describes the pool of the servers of all datacenters, nil when this server is in none.
func (a *Agent) wan(s *config.Settings) (*gossip.Config, error) {
	if a.sockets.wan == nil {
		return nil, nil
	}
	c, err := a.pooled(gossip.Config{
		Listener: a.sockets.wan, Packets: a.sockets.wanUDP, Advertise: s.Addresses.SerfWANAdvertise,
		ReconnectTimeout: s.Gossip.ReconnectTimeoutWAN, Logger: a.log.Named("wan"),
	}, s, s.Gossip.WAN, s.Addresses.SerfWANAllowed, "remote")
	return &c, err
}

// pooled completes a pool's description with what all pools have; name is that of its files.
func (a *Agent) pooled(c gossip.Config, s *config.Settings, g config.GossipPool, allowed []netip.Prefix, name string) (gossip.Config, error) {
	c.Name, c.Dial, c.Protocol = s.Node.Name, dial, s.Protocol
	c.Timing = gossip.Timing{
		GossipNodes: g.Nodes, GossipInterval: g.Interval, ProbeInterval: g.ProbeInterval, ProbeTimeout: g.ProbeTimeout,
		SuspicionMult: g.SuspicionMult, RetransmitMult: g.RetransmitMult,
	}
	c.PlainIncoming, c.PlainOutgoing = !s.Gossip.VerifyIncoming, !s.Gossip.VerifyOutgoing
	c.RejoinAfterLeave, c.NoCoordinates = s.RejoinAfterLeave, s.DisableCoordinates
	for _, p := range allowed {
		c.Allowed = append(c.Allowed, net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
	}
	if s.Gossip.Key != "" {
		key, err := base64.StdEncoding.DecodeString(s.Gossip.Key)
		if err != nil {
			return c, fmt.Errorf("encrypt has invalid key: %w", err)
		}
		c.Key = key
	}
	if s.DataDir != "" {
		c.SnapshotPath = filepath.Join(s.DataDir, "serf", name+".snapshot")
		ring := filepath.Join(s.DataDir, "serf", name+".keyring")
		if !s.Gossip.DisableKeyringFile && (len(c.Key) > 0 || exists(ring)) {
			c.KeyringPath = ring
		}
	}
	return c, nil
}

func (a *Agent) newServer(s *config.Settings) error {
	pool, err := a.gossip(s)
	if err != nil {
		return err
	}
	wan, err := a.wan(s)
	if err != nil {
		return err
	}
	wanPort := 0
	if wan != nil {
		wanPort = int(s.Addresses.SerfWANAdvertise.Port())
	}
	autopilot := operator.DefaultAutopilot()
	autopilot.CleanupDeadServers = s.Autopilot.CleanupDeadServers
	autopilot.LastContactThreshold = operator.Duration(s.Autopilot.LastContactThreshold)
	autopilot.MaxTrailingLogs = uint64(s.Autopilot.MaxTrailingLogs)
	autopilot.MinQuorum = uint(s.Autopilot.MinQuorum)
	autopilot.ServerStabilizationTime = operator.Duration(s.Autopilot.ServerStabilizationTime)
	autopilot.RedundancyZoneTag = s.Autopilot.RedundancyZoneTag
	autopilot.DisableUpgradeMigration = s.Autopilot.DisableUpgradeMigration
	autopilot.UpgradeVersionTag = s.Autopilot.UpgradeVersionTag
	introducer, err := a.introducer(s)
	if err != nil {
		return err
	}
	a.server, err = server.New(server.Config{
		Introduce: introducer.Methods(), Handlers: []func(*transport.Registry, *fsm.Appliers){introducer.Register},
		First: []leader.Duty{a.seedEntries()}, Duties: []leader.Duty{introrpc.SweepJoinTokens()},
		Datacenter: s.Node.Datacenter, NodeName: s.Node.Name, NodeID: a.node.ID, Node: &a.node, Build: version.Build(), DataDir: s.DataDir, Dev: s.Dev,
		Bootstrap: s.Bootstrap, BootstrapExpect: s.BootstrapExpect, ReadReplica: s.ReadReplica, Listener: a.sockets.server, Advertise: s.Addresses.ServerAdvertise,
		Dial: dial, Security: a.security(s), Gossip: pool, OnEvent: a.observe, WAN: wan, WANPort: wanPort, GRPCPort: s.Ports.GRPC,
		GRPCTLSPort: port(s.Addresses.GRPCTLS, s.Ports.GRPCTLS), RaftMultiplier: s.Performance.RaftMultiplier, RaftSnapshotEntries: uint64(s.Raft.SnapshotThreshold),
		RaftSnapshotEvery: s.Raft.SnapshotInterval, RaftTrailingLogs: uint64(s.Raft.TrailingLogs), RaftSegmentBytes: s.Raft.SegmentSizeMB << 20,
		RaftPreVoteDisabled: s.Raft.PrevoteDisabled, RaftCacheDisabled: s.Raft.DisableLogCache,
		RaftVerify: s.Raft.VerificationEnabled, RaftVerifyEvery: s.Raft.VerificationInterval, Autopilot: &autopilot, SessionTTLMin: s.Query.SessionTTLMin,
		HoldTimeout: s.Performance.RPCHoldTimeout, LeaveDrain: s.Performance.LeaveDrainTime, DefaultQueryTime: s.Query.DefaultTime,
		MaxQueryTime: s.Query.MaxTime, ClientTimeout: s.Limits.RPCClientTimeout, HandshakeTimeout: s.Limits.RPCHandshakeTimeout,
		MaxConnsPerIP: s.Limits.RPCMaxConnsPerClient, RejoinAgeMax: s.ServerRejoinAgeMax,
		ReplicationToken: func() string { return a.tokens.get(httpapi.TokenReplication) }, PeeringDisabled: !s.PeeringEnabled || !s.Connect.Enabled,
		Connect: connectrpc.Config{Disabled: !s.Connect.Enabled, Provider: s.Connect.CAProvider, Settings: s.Connect.CAConfig},
		Entries: configrpc.Config{ConnectDisabled: !s.Connect.Enabled, DefaultDeny: denies(s), IntentionPolicy: s.DefaultIntentionPolicy},
		ACL:     a.control(s), KeyListPolicy: s.ACL.EnableKeyListPolicy,
		Limits: requestLimits(s), FeedsDisabled: !s.EnableRPCStreaming,
		Tracer: a.traces.Tracer, Logger: a.log,
	})
	if err != nil {
		return err
	}
	a.caller, a.pool = a.server.Caller(), a.server.Gossip()
	introducer.Connect(a.caller, a.server.Internal(), a.server.Secret)
	return nil
}

// port is the port told to others when something listens.
func port(listeners []config.Listen, n int) int {
	if len(listeners) == 0 {
		return 0
	}
	return n
}

func (a *Agent) newClient(s *config.Settings) error {
	pool, err := a.gossip(s)
	if err != nil {
		return err
	}
	guard := gossip.NewGuard(s.Node.Datacenter, s.Node.Name, a.node.ID)
	pool.Tags = gossip.ClientTags(s.Node.Datacenter, a.node.ID, version.Build())
	pool.Refuse = guard.Refuse
	pool.OnEvent = func(e gossip.Event) {
		guard.Observe(e)
		a.router.Observe(e)
		a.observe(e)
	}
	a.router = router.New(router.Config{
		Datacenter: s.Node.Datacenter, Dial: dial, Security: a.security(s), HoldTimeout: s.Performance.RPCHoldTimeout,
		ClientTimeout: s.Limits.RPCClientTimeout, DefaultQueryTime: s.Query.DefaultTime, MaxQueryTime: s.Query.MaxTime,
		Rate: s.Limits.RPCRate, Burst: s.Limits.RPCMaxBurst, Logger: a.log.Named("router"),
	})
	a.caller = a.router
	a.pool, err = gossip.New(pool)
	return err
}

// newParts makes what every agent has.
func (a *Agent) newParts(s *config.Settings) (err error) {
	dialer := &net.Dialer{}
	checks := check.Config{Dial: dialer.DialContext, DialDocker: dialDocker, OSService: osservice.Manager(dialer.DialContext), OutputMaxSize: s.Check.OutputMaxSize}
	if s.Check.AgentTLS {
		checks.TLS = func() *tls.Config {
			c := &tls.Config{RootCAs: a.rpcTLS.roots(), ServerName: s.TLS.ServerName}
			if cert := a.rpcTLS.cert(); cert != nil {
				c.Certificates = []tls.Certificate{*cert}
			}
			return c
		}
	}
	interval := s.Check.UpdateInterval
	if interval == 0 {
		interval = -1
	}
	dataDir := s.DataDir
	if s.Dev {
		dataDir = ""
	}
	a.local, err = local.New(local.Config{
		Node: a.node, Caller: a.caller, Tokens: a.tokens, DataDir: dataDir, Check: checks, RemoteScripts: s.Check.EnableScripts,
		LocalScripts: s.Check.EnableLocalScripts, NoCentralConfig: !s.EnableCentralConfig,
		SidecarPorts:        local.Ports{Low: s.Ports.SidecarMin, High: s.Ports.SidecarMax},
		ExposePorts:         local.Ports{Low: s.Ports.ExposeMin, High: s.Ports.ExposeMax},
		CheckUpdateInterval: interval, DiscardCheckOutput: s.Check.DiscardOutput,
		ClusterSize: func() int { return len(a.pool.Members()) }, Logger: a.log.Named("local"),
	})
	if err != nil {
		return err
	}
	var streams cache.Streams
	if a.router != nil && s.UseStreamingBackend {
		a.feeds = subscription.New(a.router, subscription.Config{Datacenter: s.Node.Datacenter, Logger: a.log.Named("feed")})
		streams = a.feeds
	}
	a.cache = cache.New(a.caller, cache.Config{
		Streams: streams, FetchRate: s.Cache.EntryFetchRate, FetchBurst: s.Cache.EntryFetchMaxBurst, DefaultWait: s.Query.DefaultTime,
		WaitLimit: s.Query.MaxTime, Logger: a.log.Named("cache"),
	})
	a.newAccess(s)
	a.leaves = leaf.New(a.caller, leaf.Config{Datacenter: s.Node.Datacenter, Authorize: a.mayBe, Logger: a.log.Named("leaf")})
	a.proxies = proxystate.New(proxystate.Config{
		Node: s.Node.Name, Datacenter: s.Node.Datacenter, Domain: s.DNS.Domain, Registrations: proxystate.Local(a.local, a.tokens.Default), Cache: a.cache, Leaves: a.leaves,
		DefaultAllow: callersAllowed(s), OtherNodes: s.Server, Logger: a.log.Named("proxystate"),
	})
	// The server's own certificate needs no right of a token.
	own := leaf.Config{Datacenter: s.Node.Datacenter, Logger: a.log.Named("leaf")}
	if a.server != nil {
		own.ServerSecret = a.server.Secret
	}
	a.ownLeaves = leaf.New(a.caller, own)
	auto := (&autoCert{leaves: a.ownLeaves}).get
	if !s.Server {
		auto = a.grpcTLS.givenCert
	}
	var listeners []grpcapi.Listener
	for _, l := range a.sockets.grpc {
		listeners = append(listeners, grpcapi.Listener{Listener: l})
	}
	for _, l := range a.sockets.grpcTLS {
		listeners = append(listeners, grpcapi.Listener{
			Listener: l, TLS: a.grpcTLS.peerTLS(a.grpcTLS.serverTLS(auto, "h2"), auto), Admit: admitPeers,
		})
	}
	a.xds = ads.New(a.proxies, ads.Config{Authorize: a.authorize, Recheck: tokenTTL(s), UpdateRate: s.XDS.UpdateMaxPerSecond, Logger: a.log.Named("xds")})
	a.bundles = bundle.New(bundle.Config{
		Node: s.Node.Name, Caller: a.caller, Leaves: a.leaves, Proxies: a.xds, Services: a.local, Token: a.tokens.Agent,
		ClusterSize: func() int { return len(a.pool.Members()) }, Logger: a.log.Named("bundle"),
	})
	services := []grpcapi.Service{a.xds}
	if a.server != nil && s.PeeringEnabled && s.Connect.Enabled {
		services = append(services, a.server.Peering())
	}
	source := &dnsSource{caller: a.caller, origin: query.Origin{Node: s.Node.Name, Datacenter: s.Node.Datacenter}}
	if f, ok := a.caller.(follower); ok {
		source.follow = f.Follow
	} else {
		source.views = newDNSViews(a.cache)
	}
	a.dns = dns.New(dns.Config{
		Domain: s.DNS.Domain, AltDomain: s.DNS.AltDomain, Datacenter: s.Node.Datacenter, Node: s.Node.Name, Source: source, Token: a.tokens.dns,
		Tracer: a.traces.Tracer, Logger: a.log.Named("dns"), Settings: dnsSettings(s),
	})
	if a.server != nil {
		services = append(services, a.dns)
	}
	a.grpc = grpcapi.New(listeners, services, grpcapi.Config{
		KeepAlive: s.Performance.GRPCKeepaliveInterval, Timeout: s.Performance.GRPCKeepaliveTimeout,
		Tracer: a.traces.Tracer, Logger: a.log.Named("grpc"),
	})
	return a.newHTTP(s)
}

func (a *Agent) newHTTP(s *config.Settings) (err error) {
	a.conns.SetMax(s.Limits.HTTPMaxConnsPerClient)
	caller := a.caller
	if a.server != nil {
		a.rate.Set(s.Limits.RPCRate, s.Limits.RPCMaxBurst)
		caller = router.Limited(caller, &a.rate)
	}
	conf := httpapi.Config{
		Caller: caller, Tracer: a.traces.Tracer, Logger: a.log.Named("http"), Datacenter: s.Node.Datacenter, NodeName: s.Node.Name, Server: s.Server, Dev: s.Dev,
		DefaultToken: a.tokens.Default, DefaultPolicy: s.ACL.DefaultPolicy, ACLEnabled: s.ACL.Enabled, Authorize: a.authorize,
		ResponseHeaders: s.HTTP.ResponseHeaders, BlockEndpoints: s.HTTP.BlockEndpoints, AllowWriteFrom: s.HTTP.AllowWriteFrom,
		AllowUnprintable: s.HTTP.DisableUnprintableFilter, TranslateWANAddrs: s.TranslateWANAddrs,
		DiscoveryMaxStale: s.Query.DiscoveryMaxStale, DisableCoordinates: s.DisableCoordinates, UIEnabled: s.UI.Enabled || s.UI.Dir != "", UI: consoleOf(s),
		UIPath: s.UI.ContentPath, UIMetrics: uiMetrics(s), Domain: s.DNS.Domain, MaxHeaderBytes: s.HTTP.MaxHeaderBytes, KVMaxValueSize: int64(s.Limits.KVMaxValueSize),
		TxnMaxRequestLength: int64(s.Limits.TxnMaxReqLen), Events: &a.events,
		Agent: httpapi.AgentConfig{
			Local: a.local, Agent: a, Metrics: a.metrics.store, Prometheus: a.metrics.prometheus, Logs: a.log,
			Version: httpapi.AgentVersion{SHA: version.Commit, BuildDate: version.BuildDate, HumanVersion: version.Compat},
		},
		Connect: httpapi.ConnectConfig{Leaf: a.leaves, IntentionPolicy: s.DefaultIntentionPolicy},
	}
	if s.HTTP.UseCache {
		conf.Cache = a.cache
	}
	conf.Debug, conf.DebugOpen = profiles(), func() bool { return a.current().EnableDebug }
	if a.http, err = httpapi.New(conf); err != nil {
		return err
	}
	if !s.DisableRemoteExec {
		a.jobs = job.New(job.Config{Node: s.Node.Name, Caller: a.caller, Token: a.tokens.Agent, Logger: a.log.Named("exec")})
	}
	a.watches = newWatches(a.http.Serve, a.log)
	return a.watches.set(s.Watches)
}

// observe sees every event of the gossip pool.
func (a *Agent) observe(e gossip.Event) {
	switch e.Kind {
	case gossip.Joined:
		for _, m := range e.Members {
			if _, ok := gossip.ParseServer(m); ok {
				a.local.SyncSoon()
				a.cache.Retry()
			}
		}
	case gossip.Fired:
		ev, ok := event.Decode(e.Name, e.Payload, e.LTime)
		if !ok {
			return
		}
		services := map[string][]string{}
		for _, s := range a.local.Services() {
			services[s.Instance.Service] = append(services[s.Instance.Service], s.Instance.Tags...)
		}
		switch {
		case !ev.Concerns(a.node.Node, services):
		case ev.Name != job.EventName:
			a.events.Add(ev)
		case a.jobs != nil:
			a.jobs.Offer(ev)
		}
	}
}

// Run runs the agent until ctx ends or it has left by the API. It returns nil when it ended gracefully.
func (a *Agent) Run(ctx context.Context) error {
	a.started = time.Now()
	defer a.sockets.close()
	s := a.current()
	// Spans are sent until there are no more.
	tracing, traced := context.WithCancel(context.WithoutCancel(ctx))
	sent := make(chan error, 1)
	go func() { sent <- a.traces.Run(tracing) }()
	defer func() { traced(); <-sent }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	run := func(what string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	if a.server != nil {
		run("server", a.server.Run)
	} else {
		run("gossip", a.pool.Run)
		run("router", a.router.Run)
	}
	run("cache", a.cache.Run)
	if a.feeds != nil {
		run("feed", a.feeds.Run)
	}
	run("leaf certificates", a.leaves.Run)
	if a.given != nil {
		run("the agent's certificate", func(ctx context.Context) error { return a.given.Run(ctx, a.caller, a.leaves.Roots) })
	}
	if s.JoinTokens.CAKeyFile != "" {
		run("this server's certificate", a.renewOwnCert)
		run("this server's token", a.takeOwnToken)
	}
	if len(a.sockets.grpcTLS) > 0 {
		run("own certificate", a.ownLeaves.Run)
	}
	if a.access != nil {
		run("access control", a.access.Run)
	}
	run("proxy configuration", a.proxies.Run)
	run("reports of trusted roots", a.bundles.Run)
	if a.server != nil {
		resume := a.local.Pause()
		run("own node", func(ctx context.Context) error {
			defer resume()
			a.awaitOwnNode(ctx)
			return nil
		})
	}
	run("local state", func(ctx context.Context) error {
		a.awaitOwnToken(ctx, s)
		return a.local.Run(ctx)
	})
	run("join", func(ctx context.Context) error {
		return a.join(ctx, a.pool, withPort(s.Join.LAN, s.Ports.SerfLAN), s.Join.Interval, s.Join.Max)
	})
	if a.server != nil {
		run("join over the WAN", func(ctx context.Context) error {
			return a.join(ctx, a.server.WAN(), withPort(s.Join.WAN, s.Ports.SerfWAN), s.Join.IntervalWAN, s.Join.MaxWAN)
		})
	}
	if !s.DisableCoordinates {
		run("coordinates", a.sendCoordinates)
	}
	services, checks := definitions(s)
	if err := a.local.Load(ctx, services, checks); errors.Is(err, local.ErrSaved) {
		run("saved registrations", func(context.Context) error { return err })
	} else if err != nil {
		a.log.Error("some registrations were left out", "error", err)
	}
	run("DNS", func(ctx context.Context) error { return a.dns.Run(ctx, a.sockets.dnsUDP, a.sockets.dnsTCP) })
	run("gRPC", a.grpc.Run)
	if a.server != nil && s.Performance.EnableXDSLoadBalancing {
		run("spreading of proxies", a.spread)
	}
	a.serveHTTP(run, s)
	run("watches", a.watches.run)
	if s.AutoReload {
		known := fingerprint(a.watched()) // before anybody is told that the agent runs
		run("files of the configuration", func(ctx context.Context) error { return a.watchFiles(ctx, known) })
	}
	run("telemetry", func(ctx context.Context) error {
		return a.metrics.run(ctx, s.Telemetry.EnableHostMetrics, s.DataDir, a.tell)
	})
	if a.jobs != nil {
		run("remote execution", a.jobs.Run)
	}
	if a.sockets.workload != nil {
		run("workload API", a.serveWorkloads)
	}
	if s.Connect.Sidecars || s.Connect.NodeProxy {
		run("sidecars", a.superviseSidecars)
	}
	if a.server != nil {
		run("config entries", a.seedOtherEntries)
	}
	run("memory", a.settle)
	run("readiness", func(ctx context.Context) error {
		select {
		case <-a.pool.Ready():
			close(a.ready)
		case <-ctx.Done():
		}
		return nil
	})
	return g.Wait()
}

// responsive returns if the agent can still do its work: at once, or never if something holds one of the locks that all
// requests take.
func (a *Agent) responsive() {
	a.current()
	a.local.Services()
}

// settled is how long after its start an agent does nothing any more that it does only once.
const settled = time.Minute

// settle gives memory back that only the start has needed: most of the program's file, at once, and what the agent's
// first calls have touched, when it has settled.
func (a *Agent) settle(ctx context.Context) error {
	for _, wait := range []time.Duration{0, settled} {
		if !pause.For(ctx, wait) {
			break
		}
		if err := resident.Release(); err != nil {
			a.log.Debug("the program stays in memory", "error", err)
		}
	}
	return nil
}

// serveHTTP serves the API on the HTTP and HTTPS listeners.
func (a *Agent) serveHTTP(run func(string, func(context.Context) error), s *config.Settings) {
	for _, l := range a.sockets.http {
		run("HTTP", func(ctx context.Context) error { return a.http.Serve(ctx, httpapi.LimitConns(l, &a.conns, true)) })
	}
	for _, l := range a.sockets.https {
		l = handshakes{httpapi.LimitConns(l, &a.conns, false), s.Limits.HTTPSHandshakeTimeout}
		secure := tls.NewListener(l, finishes(a.httpTLS.serverTLS(nil, "h2", "http/1.1")))
		run("HTTPS", func(ctx context.Context) error { return a.http.Serve(ctx, secure) })
	}
}

// current returns the settings in force.
func (a *Agent) current() *config.Settings {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.settings
}

// definitions are the services and checks of a configuration.
func definitions(s *config.Settings) (services []*definition.Service, checks []*definition.Check) {
	for _, svc := range s.Services {
		services = append(services, svc.Service)
	}
	for _, c := range s.Checks {
		checks = append(checks, c.Check)
	}
	return services, checks
}

// join contacts the configured members of a pool until one answers. It fails when the attempts are used up.
func (a *Agent) join(ctx context.Context, pool *gossip.Pool, addrs []string, every time.Duration, most int) error {
	if pool == nil || len(addrs) == 0 {
		return nil
	}
	select {
	case <-pool.Ready():
	case <-ctx.Done():
		return nil
	}
	for try := 1; ; try++ {
		n, err := pool.Join(addrs)
		if err == nil {
			a.log.Info("joined the cluster", "as", pool.Name(), "members_contacted", n)
			return nil
		}
		if most > 0 && try >= most {
			return fmt.Errorf("max join retry exhausted after %d attempts: %w", try, err)
		}
		a.log.Warn("join failed, will retry", "as", pool.Name(), "wait", every, "error", err)
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
	}
}

// withPort adds the gossip port to addresses that name none.
func withPort(addrs []string, port int) (list []string) {
	for _, addr := range addrs {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			if ip, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil {
				addr = netip.AddrPortFrom(ip, uint16(port)).String()
			} else {
				addr = fmt.Sprintf("%s:%d", addr, port)
			}
		}
		list = append(list, addr)
	}
	return list
}

// sendCoordinates tells the servers where this node is in the space of round-trip times.
func (a *Agent) sendCoordinates(ctx context.Context) error {
	s := a.current()
	period := max(s.Gossip.CoordinateUpdatePeriod, 15*time.Second)
	soon := s.Dev // a server for trying things out has its first coordinate at once
	// A server handles so many of these per second; a large fleet sends less often.
	const rate = 64
	for {
		wait := max(period, time.Duration(len(a.pool.Members()))*time.Second/rate)
		if soon {
			wait = max(s.Gossip.CoordinateUpdatePeriod, 100*time.Millisecond)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		c := a.pool.Coordinate()
		if c == nil {
			continue
		}
		_, err := catalog.UpdateCoordinateCall.Call(ctx, a.caller, &catalog.CoordinateUpdate{
			Target: read.Target{Token: a.tokens.Agent()},
			Updates: []*catalog.NodeCoordinate{{Node: a.node.Node, Coord: &catalog.Coordinate{
				Vec: c.Vec, Error: c.Error, Adjustment: c.Adjustment, Height: c.Height,
			}}},
		})
		if err != nil && ctx.Err() == nil {
			a.log.Debug("coordinate not sent", "error", err)
		}
		soon = soon && err != nil
	}
}

// Leave leaves the cluster gracefully. The process goes on; its owner ends it.
func (a *Agent) leave(ctx context.Context) error {
	if a.server != nil {
		return a.server.Leave(ctx)
	}
	if err := a.pool.Leave(); err != nil {
		return err
	}
	select {
	case <-time.After(a.current().Performance.LeaveDrainTime):
	case <-ctx.Done():
	}
	return nil
}
