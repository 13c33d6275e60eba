package entry

import (
	"errors"
	"net/netip"
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
	MaxRequestHeadersKB       *uint32                  `json:",omitempty"` // of the headers of a request, in KiB; nil means the proxy's default
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

// Normalize fills in defaults.
func (e *ServiceDefaults) Normalize() {
	e.Protocol = lower(e.Protocol)
	normalizeExpose(&e.Expose)
	if e.UpstreamConfig != nil {
		for _, o := range e.UpstreamConfig.Overrides {
			o.normalize()
		}
		if e.UpstreamConfig.Defaults != nil {
			e.UpstreamConfig.Defaults.normalize()
		}
	}
}

func (u *UpstreamSettings) normalize() {
	u.Protocol = lower(u.Protocol)
	u.ConnectTimeoutMs = max(u.ConnectTimeoutMs, 0)
}

// Validate checks the entry.
func (e *ServiceDefaults) Validate() error {
	switch {
	case e.Name == "":
		return errName
	case e.Name == Wildcard:
		return errors.New("service-defaults name must be the name of a service, and not a wildcard")
	case len(e.RateLimits) != 0:
		return errors.New("invalid rate_limits config. Rate limiting is a consul enterprise feature")
	}
	if err := checkMutualTLS(e.MutualTLSMode); err != nil {
		return err
	}
	var problems errorList
	problems.add(checkProtocol(e.Protocol))
	problems.add(checkMode(e.Mode))
	problems.add(checkHeaders(e.MaxRequestHeadersKB))
	problems.add(checkMeshGateway(e.MeshGateway))
	if !validBalance(e.BalanceInboundConnections) {
		problems.addf("invalid value for balance_inbound_connections: %s", e.BalanceInboundConnections)
	}
	if e.UpstreamConfig != nil {
		if e.Destination != nil {
			problems.addf("UpstreamConfig and Destination are mutually exclusive for service defaults")
		}
		for _, o := range e.UpstreamConfig.Overrides {
			for _, err := range o.problems(true) {
				problems.addf("error in upstream override for %s: %w", o.Name, err)
			}
		}
		if d := e.UpstreamConfig.Defaults; d != nil {
			for _, err := range d.problems(false) {
				problems.addf("error in upstream defaults: %w", err)
			}
		}
	}
	if e.Destination != nil {
		problems = append(problems, e.Destination.problems()...)
	}
	if err := checkExpose(e.Expose); err != nil {
		problems.add(err)
	}
	if err := checkExtensions(e.EnvoyExtensions); err != nil {
		problems = append(problems, err.(errorList)...)
	}
	return problems.err()
}

func validBalance(s string) bool { return s == "" || s == "exact_balance" }

// problems checks the settings of one upstream (override) or of all.
func (u *UpstreamSettings) problems(override bool) (list errorList) {
	switch {
	case override && u.Name == "":
		list.add(errName)
	case override && u.Name == Wildcard:
		list.addf("Wildcard name is not supported")
	case !override && u.Name != "":
		list.addf("Name must be empty")
	}
	if !override && u.Peer != "" {
		list.addf("Peer must be empty")
	}
	list.add(checkProtocol(u.Protocol))
	list.add(checkMeshGateway(u.MeshGateway))
	if l := u.Limits; l != nil {
		for _, limit := range []struct {
			name string
			n    *int
		}{
			{"max connections", l.MaxConnections}, {"max pending requests", l.MaxPendingRequests},
			{"max concurrent requests", l.MaxConcurrentRequests},
		} {
			if limit.n != nil && *limit.n < 0 {
				list.addf("%s cannot be negative", limit.name)
			}
		}
	}
	if u.PassiveHealthCheck != nil {
		list.add(u.PassiveHealthCheck.check())
	}
	if !validBalance(u.BalanceOutboundConnections) {
		list.addf("invalid value for balance_outbound_connections: %s", u.BalanceOutboundConnections)
	}
	return list
}

func (c *PassiveHealthCheck) check() error {
	switch {
	case c.Interval < 0:
		return errors.New("passive health check interval cannot be negative")
	case c.EnforcingConsecutive5xx != nil && *c.EnforcingConsecutive5xx > 100:
		return errors.New("passive health check enforcing_consecutive_5xx must be a percentage between 0 and 100")
	case c.MaxEjectionPercent != nil && *c.MaxEjectionPercent > 100:
		return errors.New("passive health check max_ejection_percent must be a percentage between 0 and 100")
	case c.BaseEjectionTime != nil && *c.BaseEjectionTime < 0:
		return errors.New("passive health check base_ejection_time cannot be negative")
	}
	return nil
}

func (d *Destination) problems() (list errorList) {
	if len(d.Addresses) == 0 {
		list.addf("Destination must contain at least one valid address")
	}
	seen := map[string]bool{}
	for _, a := range d.Addresses {
		if seen[a] {
			list.addf("Duplicate address '%s' is not allowed", a)
		}
		seen[a] = true
		if _, err := netip.ParseAddr(a); err != nil && !isHostname(a) {
			list.addf("Destination address '%s' is invalid Could not validate address %s as an IP or Hostname", a, a)
		}
	}
	if d.Port < 1 || d.Port > 65535 {
		list.addf("Invalid Port number %d", d.Port)
	}
	return list
}
