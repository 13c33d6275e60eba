package config

import (
	"math"
	"time"
)

// defaults are the settings before any source was read. Defaults that depend on other settings are filled in by derive.
func defaults(dev bool) *Settings {
	s := &Settings{
		Protocol:            2,
		DisableRemoteExec:   true,
		EnableCentralConfig: true,
		ServerRejoinAgeMax:  168 * time.Hour,
		UseStreamingBackend: true,
		PeeringEnabled:      true,
		Node:                Node{DisableHostID: true, Datacenter: "dc1"},
		Check:               Check{UpdateInterval: 5 * time.Minute, OutputMaxSize: 4096},
		Query:               Query{DefaultTime: 300 * time.Second, MaxTime: 600 * time.Second, SessionTTLMin: 10 * time.Second},
		Join:                Join{Interval: 30 * time.Second, IntervalWAN: 30 * time.Second, GatewayInterval: 30 * time.Second},
		Ports: Ports{
			DNS: 8600, HTTP: 8500, HTTPS: -1, GRPC: -1, GRPCTLS: -1, Server: 8300, SerfLAN: 8301, SerfWAN: 8302,
			SidecarMin: 21000, SidecarMax: 21255, ExposeMin: 21500, ExposeMax: 21755, ProxyMin: 20000, ProxyMax: 20255,
		},
		ACL: ACL{DefaultPolicy: "allow", DownPolicy: "extend-cache", TokenTTL: 30 * time.Second, PolicyTTL: 30 * time.Second},
		Gossip: Gossip{
			VerifyIncoming: true, VerifyOutgoing: true,
			LAN: GossipPool{
				Nodes: 3, Interval: 200 * time.Millisecond, ProbeInterval: time.Second, ProbeTimeout: 500 * time.Millisecond,
				SuspicionMult: 4, RetransmitMult: 4,
			},
			WAN: GossipPool{
				Nodes: 3, Interval: 500 * time.Millisecond, ProbeInterval: 5 * time.Second, ProbeTimeout: 3 * time.Second,
				SuspicionMult: 6, RetransmitMult: 4,
			},
			ReconnectTimeout: 72 * time.Hour, ReconnectTimeoutWAN: 72 * time.Hour,
			CoordinateUpdatePeriod: 5 * time.Second,
		},
		TLS:     TLS{Defaults: TLSStanza{MinVersion: "TLSv1_2"}},
		Connect: Connect{Enabled: true, CAProvider: "consul"},
		DNS: DNS{
			Domain: "consul.", AltDomain: "sarn.", AllowStale: true, MaxStale: 87600 * time.Hour, UDPAnswerLimit: 3, UDPAnswerRate: 200,
			RecursorStrategy: "sequential", RecursorTimeout: 2 * time.Second, NodeMetaTXT: true,
			SOARefresh: 3600, SOARetry: 600, SOAExpire: 86400,
		},
		HTTP: HTTP{UseCache: true},
		Limits: Limits{
			HTTPMaxConnsPerClient: 200, HTTPSHandshakeTimeout: 5 * time.Second, RPCHandshakeTimeout: 5 * time.Second,
			RPCClientTimeout: 60 * time.Second, RPCRate: -1, RPCMaxBurst: 1000, RPCMaxConnsPerClient: 100,
			RequestMode: "disabled", RequestReadRate: -1, RequestWriteRate: -1,
			KVMaxValueSize: 512 << 10, TxnMaxReqLen: 512 << 10,
		},
		Performance: Performance{
			RaftMultiplier: 5, LeaveDrainTime: 5 * time.Second, RPCHoldTimeout: 7 * time.Second,
			GRPCKeepaliveInterval: 30 * time.Second, GRPCKeepaliveTimeout: 20 * time.Second, EnableXDSLoadBalancing: true,
		},
		Raft: Raft{
			ProtocolVersion: 3, SnapshotThreshold: 16384, SnapshotInterval: 30 * time.Second, TrailingLogs: 10240,
			SegmentSizeMB: 64, HeartbeatTimeout: time.Second, ElectionTimeout: time.Second, LeaderLeaseTimeout: 500 * time.Millisecond,
		},
		Autopilot: Autopilot{
			CleanupDeadServers: true, LastContactThreshold: 200 * time.Millisecond, MaxTrailingLogs: 250,
			ServerStabilizationTime: 10 * time.Second,
		},
		UI:        UI{ContentPath: "/ui/"},
		Telemetry: Telemetry{Prefix: "consul", FilterDefault: true, RetryFailedConnection: true, OTLPMetrics: true, OTLPTraceSampling: 0.01},
		Log:       Log{Level: "INFO", RotateDuration: 24 * time.Hour, SyslogFacility: "LOCAL0"},
		XDS:       XDS{UpdateMaxPerSecond: 250},
		Cache:     Cache{EntryFetchMaxBurst: 2, EntryFetchRate: math.Inf(1)},
	}
	if dev {
		s.dev()
	}
	return s
}

// dev changes the defaults to those of dev mode: one server in memory that is ready at once.
func (s *Settings) dev() {
	s.Dev = true
	s.Server = true
	s.EnableDebug = true
	s.DisableAnonymousSignature = true
	s.UI.Enabled = true
	s.Log.Level = "DEBUG"
	s.Gossip.DisableKeyringFile = true
	s.Gossip.CoordinateUpdatePeriod = 100 * time.Millisecond
	for _, pool := range []*GossipPool{&s.Gossip.LAN, &s.Gossip.WAN} {
		pool.Interval = 100 * time.Millisecond
		pool.ProbeInterval = 100 * time.Millisecond
		pool.ProbeTimeout = 100 * time.Millisecond
		pool.SuspicionMult = 3
	}
	s.Ports.GRPC = 8502
	s.Performance.RaftMultiplier = 1
	s.Raft.HeartbeatTimeout = 35 * time.Millisecond
	s.Raft.ElectionTimeout = 52 * time.Millisecond
	s.Raft.LeaderLeaseTimeout = 20 * time.Millisecond
}
