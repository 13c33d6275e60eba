// Package httpapi serves the HTTP API of an agent: routing, request parameters, tokens, the headers every answer
// carries, JSON in its several forms, and the endpoints themselves. The contract is spec/registry.md sections 1, 3 and
// 8 to 11 and spec/state.md.
//
// The package opens no sockets: a Server is an http.Handler that its owner serves, with Serve or otherwise, on
// listeners made by LimitConns.
package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/client/access"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/span"
)

// Config tunes a Server. A zero field takes its default.
type Config struct {
	// Caller performs the calls to the servers. Required.
	Caller rpc.Caller
	// Cache answers requests with ?cached. Nil means that ?cached is ignored, as with use_cache=false.
	Cache *cache.Cache
	// Logger receives refused and odd requests. Never tokens. Default discards.
	Logger hclog.Logger
	// Tracer records requests. Nil records none.
	Tracer *span.Tracer

	Datacenter string // of this agent; required
	NodeName   string // of this agent, what ?near=_agent means; required
	Server     bool   // this agent is a server
	Dev        bool   // every JSON answer is indented

	// DefaultToken returns the secret used for requests that bring none; it is asked per request because the token can
	// change while the agent runs. Nil means the anonymous token.
	DefaultToken func() string
	// DefaultPolicy is told in the X-Consul-Default-Acl-Policy header: "allow" (the default) or "deny".
	DefaultPolicy string
	// ACLEnabled tells whether tokens are looked at.
	ACLEnabled bool

	ResponseHeaders     map[string]string // added to every answer
	BlockEndpoints      []string          // path prefixes that answer 403
	AllowWriteFrom      []netip.Prefix    // where writes may come from; empty means anywhere
	AllowUnprintable    bool              // accept control characters in paths
	TranslateWANAddrs   bool              // show WAN addresses of other datacenters
	DiscoveryMaxStale   time.Duration     // makes plain catalog and health reads stale, with this bound; 0 is off
	DisableCoordinates  bool              // coordinate endpoints answer 401
	UIEnabled           bool              // / redirects to the console
	UI                  http.Handler      // the console, served below UIPath; nil answers 404 there
	UIPath              string            // default "/ui/"
	UIMetrics           *MetricsProxy     // what the console reads metrics through; nil answers 404
	Domain              string            // of DNS, for host names that the console shows; default "consul."
	MaxHeaderBytes      int               // of request line and headers; default 1 MiB
	KVMaxValueSize      int64             // default 512 KiB
	TxnMaxRequestLength int64             // default 512 KiB; the effective limit is the greater of this and KVMaxValueSize
	MaxBodySize         int64             // of any other request; default 64 MiB

	// Debug answers below /debug/pprof/. Nil answers 404 there.
	Debug http.Handler
	// DebugOpen tells whether everybody may use Debug; else it takes a token with operator:read. Nil means everybody.
	DebugOpen func() bool
	// Authorize returns what decides for a token about data of the agent itself. Nil grants everything, as with ACLs
	// off.
	Authorize func(ctx context.Context, token string) (*acl.Authorizer, error)
	// Events is the list of events this agent accepted. Nil answers /v1/event/list with 501.
	Events *event.Log
	// Streamer carries snapshots. Nil takes Caller if it is one, else answers /v1/snapshot with 501.
	Streamer rpc.Streamer
	// Agent holds what the agent endpoints work with.
	Agent AgentConfig
	// Connect holds what the connect endpoints work with.
	Connect ConnectConfig
}

const (
	defaultMaxHeaderBytes = 1 << 20
	defaultKVMaxValueSize = 512 << 10
	defaultMaxBodySize    = 64 << 20
)

// A Server answers the HTTP API. Make one with New. It is safe for concurrent use.
type Server struct {
	cfg    Config
	caller rpc.Caller
	log    hclog.Logger

	exact    map[string]*route
	prefixes map[string]*route // keys end in "/"; the longest that begins a path wins
	deepest  int               // most slashes in a prefix

	headers       []header // http_config.response_headers
	blocked       []string
	defaultPolicy []string
	instances     instanceCache
	monitors      atomic.Int32 // how many follow the log
	largeBodies   atomic.Int64 // bytes that large bodies take

	// What belongs to the agent itself is out of reach of handlers that did not ask: cfg has none of it.
	registered registrations // nil without agent endpoints
	own        access.Guarded[AgentConfig]
	events     access.Guarded[*event.Log] // holds nil when Config.Events was
	leaves     access.Guarded[*leaf.Keeper]
	connect    bool // leaves holds a keeper
}

type header struct {
	name  string
	value []string
}

// New returns a server for cfg.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Caller == nil:
		return nil, fmt.Errorf("httpapi: no caller")
	case cfg.Datacenter == "":
		return nil, fmt.Errorf("httpapi: no datacenter")
	case cfg.NodeName == "":
		return nil, fmt.Errorf("httpapi: no node name")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Streamer == nil {
		cfg.Streamer, _ = cfg.Caller.(rpc.Streamer)
	}
	if cfg.DefaultPolicy == "" {
		cfg.DefaultPolicy = "allow"
	}
	if cfg.UIPath == "" {
		cfg.UIPath = "/ui/"
	}
	cfg.MaxHeaderBytes = orDefault(cfg.MaxHeaderBytes, defaultMaxHeaderBytes)
	cfg.KVMaxValueSize = orDefault(cfg.KVMaxValueSize, defaultKVMaxValueSize)
	cfg.TxnMaxRequestLength = orDefault(cfg.TxnMaxRequestLength, defaultKVMaxValueSize)
	cfg.MaxBodySize = orDefault(cfg.MaxBodySize, defaultMaxBodySize)
	s := &Server{
		cfg: cfg, caller: cfg.Caller, log: cfg.Logger,
		exact: map[string]*route{}, prefixes: map[string]*route{},
		blocked:       slices.Clone(cfg.BlockEndpoints),
		defaultPolicy: []string{cfg.DefaultPolicy},
		own:           access.Guard(cfg.Agent), events: access.Guard(cfg.Events), leaves: access.Guard(cfg.Connect.Leaf),
		connect: cfg.Connect.Leaf != nil,
	}
	if cfg.Agent.Local != nil {
		s.registered = cfg.Agent.Local
	}
	s.cfg.Agent, s.cfg.Events, s.cfg.Connect.Leaf = AgentConfig{}, nil, nil
	for name, value := range cfg.ResponseHeaders {
		s.headers = append(s.headers, header{http.CanonicalHeaderKey(name), []string{value}})
	}
	slices.SortFunc(s.headers, func(a, b header) int { return strings.Compare(a.name, b.name) })

	for _, group := range [][]endpoint{
		s.catalogRoutes(), s.healthRoutes(), s.kvRoutes(), s.sessionRoutes(), s.txnRoutes(), s.queryRoutes(), s.statusRoutes(),
		s.operatorRoutes(), s.snapshotRoutes(), s.eventRoutes(), s.coordinateRoutes(),
		s.aclRoutes(), s.agentRoutes(), s.connectRoutes(), s.configRoutes(), s.uiRoutes(), s.explainRoutes(),
		s.peeringRoutes(),
	} {
		for _, e := range group {
			if err := s.add(e); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func orDefault[T int | int64](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}
