package entry

import (
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// ServiceDefaults are the central settings of one service (spec/connect.md section 8.1).
type ServiceDefaults struct {
	Header
	// Protocol is tcp, http, http2 or grpc. Empty means tcp, whatever proxy-defaults say.
	Protocol                  string
	Mode                      string                   `json:",omitempty"` // "", "direct" or "transparent"
	TransparentProxy          catalog.TransparentProxy `json:""`
	MutualTLSMode             string                   `json:",omitempty"` // "", "strict" or "permissive"
	MeshGateway               catalog.MeshGateway      `json:""`
	Expose                    catalog.Expose           `json:""`
	ExternalSNI               string                   `json:",omitempty"`
	UpstreamConfig            *UpstreamConfiguration   `json:",omitempty"`
	Destination               *Destination             `json:",omitempty"`
	MaxInboundConnections     int                      `json:",omitempty"` // 0 means no limit
	LocalConnectTimeoutMs     int                      `json:",omitempty"` // 0 means the proxy's default
	LocalRequestTimeoutMs     int                      `json:",omitempty"`
	BalanceInboundConnections string                   `json:",omitempty"` // "" or "exact_balance"
	RateLimits                map[string]any           `json:",omitempty"` // always refused
	EnvoyExtensions           []catalog.EnvoyExtension `json:",omitempty"`
}

// UpstreamConfiguration says how a service calls others: defaults for all, and overrides by name.
type UpstreamConfiguration struct {
	Overrides []*UpstreamSettings `json:",omitempty"`
	Defaults  *UpstreamSettings   `json:",omitempty"`
}

// UpstreamSettings are how to call one upstream, or any.
type UpstreamSettings struct {
	Name                       string              `json:",omitempty"` // only in overrides
	Peer                       string              `json:",omitempty"` // only in overrides
	EnvoyListenerJSON          string              `json:",omitempty"`
	EnvoyClusterJSON           string              `json:",omitempty"`
	Protocol                   string              `json:",omitempty"`
	ConnectTimeoutMs           int                 `json:",omitempty"`
	Limits                     *UpstreamLimits     `json:",omitempty"`
	PassiveHealthCheck         *PassiveHealthCheck `json:",omitempty"`
	MeshGateway                catalog.MeshGateway `json:""`
	BalanceOutboundConnections string              `json:",omitempty"` // "" or "exact_balance"
}

// UpstreamLimits bound what is open to an upstream at once; nil means the proxy's default.
type UpstreamLimits struct {
	MaxConnections        *int `json:",omitempty"`
	MaxPendingRequests    *int `json:",omitempty"`
	MaxConcurrentRequests *int `json:",omitempty"`
}

// A PassiveHealthCheck takes instances that fail requests out of use for a while.
type PassiveHealthCheck struct {
	Interval                time.Duration  `json:",omitempty"`
	MaxFailures             uint32         `json:",omitempty"`
	EnforcingConsecutive5xx *uint32        `json:",omitempty"` // percent, nil means 100
	MaxEjectionPercent      *uint32        `json:",omitempty"` // nil means 10
	BaseEjectionTime        *time.Duration `json:",omitempty"` // nil means 30s
}

// A Destination makes the entry stand for something outside the mesh.
type Destination struct {
	Addresses []string `json:",omitempty"`
	Port      int      `json:",omitempty"`
}
