package mesh

import (
	"fmt"
)

// GatewayConfig are the settings of a gateway in Proxy.Config (spec/xds.md section 15).
type GatewayConfig struct {
	ConnectTimeoutMs    int                    `mapstructure:"connect_timeout_ms"` // default 5000
	NoDefaultBind       bool                   `mapstructure:"envoy_gateway_no_default_bind"`
	BindTaggedAddresses bool                   `mapstructure:"envoy_gateway_bind_tagged_addresses"`
	BindAddresses       map[string]BindAddress `mapstructure:"envoy_gateway_bind_addresses"`
	DNSDiscovery        string                 `mapstructure:"envoy_dns_discovery_type"` // StrictDNS, or LogicalDNS, the default
	// Keepalive, in seconds but for the probes, of connections to gateways elsewhere; 0 means the system's default.
	Keepalive         bool `mapstructure:"envoy_gateway_remote_tcp_enable_keepalive"`
	KeepaliveTime     int  `mapstructure:"envoy_gateway_remote_tcp_keepalive_time"`
	KeepaliveInterval int  `mapstructure:"envoy_gateway_remote_tcp_keepalive_interval"`
	KeepaliveProbes   int  `mapstructure:"envoy_gateway_remote_tcp_keepalive_probes"`
}

// A BindAddress is an address to listen at.
type BindAddress struct {
	Address string `mapstructure:"address"`
	Port    int    `mapstructure:"port"`
}

// Ways of using the addresses behind a host name.
const (
	LogicalDNS = "logical_dns" // one at a time
	StrictDNS  = "strict_dns"  // all
)

// oldGatewayConfig are settings under the names they had.
type oldGatewayConfig struct {
	NoDefaultBind       *bool                  `mapstructure:"envoy_mesh_gateway_no_default_bind"`
	BindTaggedAddresses *bool                  `mapstructure:"envoy_mesh_gateway_bind_tagged_addresses"`
	BindAddresses       map[string]BindAddress `mapstructure:"envoy_mesh_gateway_bind_addresses"`
}

// parseGatewayConfig decodes the settings of a gateway. What can not be used is reported and takes its default.
func parseGatewayConfig(opaque map[string]any) (GatewayConfig, error) {
	c := GatewayConfig{}
	err := decode(opaque, &c)
	var old oldGatewayConfig
	if e := decode(opaque, &old); err == nil {
		err = e
	}
	if old.NoDefaultBind != nil {
		c.NoDefaultBind = c.NoDefaultBind || *old.NoDefaultBind
	}
	if old.BindTaggedAddresses != nil {
		c.BindTaggedAddresses = c.BindTaggedAddresses || *old.BindTaggedAddresses
	}
	for name, a := range old.BindAddresses {
		if _, ok := c.BindAddresses[name]; !ok {
			if c.BindAddresses == nil {
				c.BindAddresses = map[string]BindAddress{}
			}
			c.BindAddresses[name] = a
		}
	}
	if c.ConnectTimeoutMs <= 0 {
		c.ConnectTimeoutMs = 5000
	}
	switch c.DNSDiscovery = protocol(c.DNSDiscovery, LogicalDNS); c.DNSDiscovery {
	case LogicalDNS, StrictDNS:
	default:
		if err == nil {
			err = fmt.Errorf("envoy_dns_discovery_type: %q is neither %s nor %s", c.DNSDiscovery, LogicalDNS, StrictDNS)
		}
		c.DNSDiscovery = LogicalDNS
	}
	c.KeepaliveTime, c.KeepaliveInterval, c.KeepaliveProbes = max(0, c.KeepaliveTime), max(0, c.KeepaliveInterval), max(0, c.KeepaliveProbes)
	if err != nil {
		err = fmt.Errorf("gateway config: %w", err)
	}
	return c, err
}
