package mesh

import (
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
)

// Config are the settings of a sidecar in Proxy.Config (spec/xds.md section 15). Absent numbers are nil where 0 means
// something else.
type Config struct {
	Protocol                  string `mapstructure:"protocol"` // lower case; default tcp
	BindAddress               string `mapstructure:"bind_address"`
	BindPort                  int    `mapstructure:"bind_port"`
	LocalConnectTimeoutMs     int    `mapstructure:"local_connect_timeout_ms"` // default 5000
	LocalRequestTimeoutMs     *int   `mapstructure:"local_request_timeout_ms"`
	LocalIdleTimeoutMs        *int   `mapstructure:"local_idle_timeout_ms"`
	MaxInboundConnections     int    `mapstructure:"max_inbound_connections"` // 0 for no limit
	MaxRequestHeadersKB       int    `mapstructure:"max_request_headers_kb"`  // 0 for the proxy's default
	BalanceInboundConnections string `mapstructure:"balance_inbound_connections"`
	XDSFetchTimeoutMs         *int   `mapstructure:"xds_fetch_timeout_ms"`
	PublicListenerJSON        string `mapstructure:"envoy_public_listener_json"`
	LocalClusterJSON          string `mapstructure:"envoy_local_cluster_json"`
	ListenerTracingJSON       string `mapstructure:"envoy_listener_tracing_json"`
	TelemetrySocketDir        string `mapstructure:"envoy_telemetry_collector_bind_socket_dir"`
	// What Envoy has in its bootstrap, and the built-in proxy gets from the control plane.
	TracingJSON        string `mapstructure:"envoy_tracing_json"`
	StaticClustersJSON string `mapstructure:"envoy_extra_static_clusters_json"`
}

// ExactBalance is the one way of balancing connections that can be asked for.
const ExactBalance = "exact_balance"

// ParseConfig decodes the opaque settings of a proxy. Values of another type are converted where that makes sense. What
// can not be used is reported and takes its default; the result is usable in any case.
func ParseConfig(opaque map[string]any) (Config, error) {
	c := Config{}
	err := decode(opaque, &c)
	c.Protocol = protocol(c.Protocol, "tcp")
	if c.LocalConnectTimeoutMs <= 0 {
		c.LocalConnectTimeoutMs = 5000
	}
	c.BindPort = max(0, c.BindPort)
	c.MaxInboundConnections = max(0, c.MaxInboundConnections)
	c.MaxRequestHeadersKB = min(max(0, c.MaxRequestHeadersKB), 8192) // no proxy takes more
	if c.BalanceInboundConnections != "" && c.BalanceInboundConnections != ExactBalance {
		if err == nil {
			err = fmt.Errorf("balance_inbound_connections: %q is not %q", c.BalanceInboundConnections, ExactBalance)
		}
		c.BalanceInboundConnections = ""
	}
	if err != nil {
		err = fmt.Errorf("proxy config: %w", err)
	}
	return c, err
}

// telemetryCollector is the service that sidecars with a TelemetrySocketDir send their metrics to.
const telemetryCollector = "consul-telemetry-collector"

// telemetryUpstream leads to it from a socket in dir that is named after the proxy.
func telemetryUpstream(dir, proxy string) *Upstream {
	sum := sha1.Sum([]byte("default_" + proxy))
	return newUpstream(&catalog.Upstream{
		DestinationName: telemetryCollector, Config: map[string]any{"protocol": entry.GRPC},
		LocalBindSocketPath: path.Join(dir, base64.RawURLEncoding.EncodeToString(sum[:])+".sock"),
	}, catalog.MeshGateway{}, false)
}

// UpstreamConfig are the settings of an upstream in its Config.
type UpstreamConfig struct {
	Protocol           string              `mapstructure:"protocol"` // lower case; empty when not given
	ConnectTimeoutMs   int                 `mapstructure:"connect_timeout_ms"`
	Limits             *Limits             `mapstructure:"limits"`
	PassiveHealthCheck *PassiveHealthCheck `mapstructure:"passive_health_check"`
	MeshGateway        struct {
		Mode string `mapstructure:"mode"`
	} `mapstructure:"mesh_gateway"`
	BalanceOutboundConnections string `mapstructure:"balance_outbound_connections"`
	ListenerJSON               string `mapstructure:"envoy_listener_json"`
	ClusterJSON                string `mapstructure:"envoy_cluster_json"`
}

// ConnectTimeout bounds connecting to what is not led to by a discovery chain, which has a bound of its own.
func (c *UpstreamConfig) ConnectTimeout() time.Duration {
	if c.ConnectTimeoutMs > 0 {
		return time.Duration(c.ConnectTimeoutMs) * time.Millisecond
	}
	return 5 * time.Second
}

// Limits bound what is open to an upstream; nil means the proxy's default.
type Limits struct {
	MaxConnections        *uint32 `mapstructure:"max_connections"`
	MaxPendingRequests    *uint32 `mapstructure:"max_pending_requests"`
	MaxConcurrentRequests *uint32 `mapstructure:"max_concurrent_requests"`
}

// A PassiveHealthCheck takes instances that fail out of use; nil or 0 means the proxy's default.
type PassiveHealthCheck struct {
	Interval                time.Duration  `mapstructure:"interval"`
	MaxFailures             uint32         `mapstructure:"max_failures"`
	EnforcingConsecutive5xx *uint32        `mapstructure:"enforcing_consecutive_5xx"`
	MaxEjectionPercent      *uint32        `mapstructure:"max_ejection_percent"`
	BaseEjectionTime        *time.Duration `mapstructure:"base_ejection_time"`
}

func parseUpstreamConfig(opaque map[string]any) (UpstreamConfig, error) {
	c := UpstreamConfig{}
	err := decode(opaque, &c)
	c.Protocol = protocol(c.Protocol, "")
	c.ConnectTimeoutMs = max(0, c.ConnectTimeoutMs)
	if b := c.BalanceOutboundConnections; b != "" && b != ExactBalance {
		if err == nil {
			err = fmt.Errorf("balance_outbound_connections: %q is not %q", b, ExactBalance)
		}
		c.BalanceOutboundConnections = ""
	}
	return c, err
}

func protocol(s, def string) string {
	if s == "" {
		return def
	}
	return strings.ToLower(s)
}

// decode fills in what it can and reports the rest.
func decode(opaque map[string]any, into any) error {
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result:           into,
		WeaklyTypedInput: true,
		DecodeHook:       mapstructure.StringToTimeDurationHookFunc(),
		// Users write passive_health_check, central configuration PassiveHealthCheck. Keys this package does not know belong
		// to others.
		MatchName: func(key, field string) bool {
			return strings.EqualFold(strings.ReplaceAll(key, "_", ""), strings.ReplaceAll(field, "_", ""))
		},
	})
	if err != nil {
		return err
	}
	return d.Decode(opaque)
}
