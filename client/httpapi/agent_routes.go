package httpapi

import (
	"context"
	"net/http"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/internal/hostinfo"
)

// An Agent is the rest of the process, as its endpoints need it.
type Agent interface {
	// Self tells about the agent. The counts of services and checks are added to its Stats here.
	Self(ctx context.Context) (*AgentSelf, error)
	// Members lists the members of the LAN pool, or of the WAN pool, where the agent of a client is in none: then nil.
	Members(wan bool) ([]AgentMember, error)
	// Join contacts one address.
	Join(ctx context.Context, address string, wan bool) error
	// ForceLeave makes a failed member count as left, and forgets it at once with prune. The error for a name that is
	// not known is "agent: No node found with name 'x'".
	ForceLeave(name string, prune, wan bool) error
	// Leave leaves the cluster and then, without waiting for it, stops the process.
	Leave(ctx context.Context) error
	// Reload reads the configuration again.
	Reload(ctx context.Context) error
	// SetToken changes one of the agent's tokens and, if tokens are persisted, saves it.
	SetToken(kind AgentToken, secret string) error
}

// An AgentToken is one of the tokens an agent uses itself.
type AgentToken string

// The tokens, by the names of their configuration keys.
const (
	TokenDefault      AgentToken = "default"
	TokenAgent        AgentToken = "agent"
	TokenRecovery     AgentToken = "agent_recovery"
	TokenReplication  AgentToken = "replication"
	TokenDNS          AgentToken = "dns"
	TokenRegistration AgentToken = "config_file_service_registration"
)

// AgentSelf is what an agent tells about itself (spec/registry.md section 7.1).
type AgentSelf struct {
	Config      AgentSummary
	DebugConfig any // the whole configuration, without secrets
	Coord       *catalog.Coordinate
	Member      AgentMember
	Stats       map[string]map[string]string
	Meta        map[string]string
	XDS         *AgentXDS `json:"xDS,omitempty"` // nil when gRPC is off
}

// AgentSummary is the part of the configuration that clients look at.
type AgentSummary struct {
	Datacenter        string
	PrimaryDatacenter string
	NodeName          string
	NodeID            string
	Revision          string
	Server            bool
	Version           string
	BuildDate         string // RFC 3339
}

// AgentXDS says where proxies find their configuration.
type AgentXDS struct {
	SupportedProxies map[string][]string
	Port             int // that with TLS if there is one
	Ports            AgentXDSPorts
}

// AgentXDSPorts are negative or 0 when off.
type AgentXDSPorts struct {
	Plaintext int
	TLS       int
}

// An AgentMember is a member of a gossip pool.
type AgentMember struct {
	Name        string
	Addr        string
	Port        uint16
	Tags        map[string]string
	Status      int // 1 alive, 2 leaving, 3 left, 4 failed
	ProtocolMin uint8
	ProtocolMax uint8
	ProtocolCur uint8
	DelegateMin uint8
	DelegateMax uint8
	DelegateCur uint8
}

// AgentVersion is the answer of the version endpoint.
type AgentVersion struct {
	SHA          string
	BuildDate    string
	HumanVersion string
	FIPS         string
}

// AgentMetrics are the metrics of the last intervals. A *telemetry.Store is one, and so is a *metrics.InmemSink.
type AgentMetrics interface {
	DisplayMetrics(w http.ResponseWriter, r *http.Request) (any, error)
	Stream(ctx context.Context, e metrics.Encoder)
}

// AgentLogs copies the log to sinks. An hclog.InterceptLogger is one.
type AgentLogs interface {
	RegisterSink(hclog.SinkAdapter)
	DeregisterSink(hclog.SinkAdapter)
}

// AgentConfig is what the agent endpoints work with.
type AgentConfig struct {
	// Local holds the registrations. Nil means that there are no agent endpoints.
	Local *local.State
	// Agent is the rest of the process. Required with Local.
	Agent Agent
	// Version is told to everybody.
	Version AgentVersion
	// Metrics answers the metrics endpoints. Nil answers them with 501.
	Metrics AgentMetrics
	// Prometheus answers in that form, as "text/plain; version=0.0.4". Nil means it is off.
	Prometheus http.Handler
	// Logs is what the monitor endpoint shows. Nil answers it with 501.
	Logs AgentLogs
	// Host tells about the machine. Nil collects it, with the disk of the root folder.
	Host func() *hostinfo.Info
}

// agentRoutes are the endpoints of the files agent_*.go.
func (s *Server) agentRoutes() []endpoint {
	if s.registered == nil {
		return nil
	}
	return []endpoint{
		{"/v1/agent/self", "GET", permitted(s.agentSelf)},
		{"/v1/agent/host", "GET", permitted(s.agentHost)},
		{"/v1/agent/version", "GET", permitted(s.agentVersion)},
		{"/v1/agent/members", "GET", permitted(s.agentMembers)},
		{"/v1/agent/services", "GET", permitted(s.agentServices)},
		{"/v1/agent/service/", "GET", permitted(s.agentService)},
		{"/v1/agent/checks", "GET", permitted(s.agentChecks)},
		{"/v1/agent/health/service/id/", "GET", permitted(s.agentHealthByID)},
		{"/v1/agent/health/service/name/", "GET", permitted(s.agentHealthByName)},
		{"/v1/agent/service/register", "PUT", permitted(s.agentRegisterService)},
		{"/v1/agent/service/deregister/", "PUT", permitted(s.agentDeregisterService)},
		{"/v1/agent/service/maintenance/", "PUT", permitted(s.agentServiceMaintenance)},
		{"/v1/agent/maintenance", "PUT", permitted(s.agentNodeMaintenance)},
		{"/v1/agent/check/register", "PUT", permitted(s.agentRegisterCheck)},
		{"/v1/agent/check/deregister/", "PUT", permitted(s.agentDeregisterCheck)},
		{"/v1/agent/check/pass/", "PUT", permitted(s.agentSetCheck(catalog.Passing))},
		{"/v1/agent/check/warn/", "PUT", permitted(s.agentSetCheck(catalog.Warning))},
		{"/v1/agent/check/fail/", "PUT", permitted(s.agentSetCheck(catalog.Critical))},
		{"/v1/agent/check/update/", "PUT", permitted(s.agentUpdateCheck)},
		{"/v1/agent/reload", "PUT", permitted(s.agentReload)},
		{"/v1/agent/join/", "PUT", permitted(s.agentJoin)},
		{"/v1/agent/leave", "PUT", permitted(s.agentLeave)},
		{"/v1/agent/force-leave/", "PUT", permitted(s.agentForceLeave)},
		{"/v1/agent/metrics", "GET", permitted(s.agentMetrics)},
		{"/v1/agent/metrics/stream", "GET", permitted(s.agentMetricsStream)},
		{"/v1/agent/monitor", "GET", permitted(s.agentMonitor)},
		{"/v1/agent/token/", "PUT", permitted(s.agentToken)},
	}
}
