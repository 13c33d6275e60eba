// Package redirectcmd is the command "connect redirect-traffic", which makes the kernel hand the connections of a machine
// or a network namespace to a sidecar in transparent mode.
package redirectcmd

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os/user"
	"strconv"

	"github.com/go-viper/mapstructure/v2"
	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "connect redirect-traffic", Synopsis: "Redirect connections through a sidecar in transparent mode", Setup: redirect,
		Client: true, Tenancy: true,
		Help: "Adds nftables rules by which connections that the applications of this machine open go through its sidecar, and " +
			"connections to them, too. Rules that an earlier run added are replaced in one step; -remove takes them away. Needs " +
			"Linux, the program nft and the right to administer the network.\n\n" +
			"Give the ports with -proxy-id, which reads them from the agent, or with -proxy-inbound-port. The sidecar must run as a " +
			"user of its own, given with -proxy-uid, whose connections are left alone.",
	}}
}

// flags are the values of the command's own flags.
type flags struct {
	proxyUID, proxyID, nodeName, netns string
	inbound, outbound                  int
	inboundPorts, outboundPorts        *[]string
	cidrs, uids                        *[]string
	dnsIP                              string
	dnsPort                            int
	remove                             bool
}

func redirect(f *flag.FlagSet) func(*verb.Call) error {
	x := new(flags)
	f.StringVar(&x.proxyUID, "proxy-uid", "", "`user` the sidecar runs as, by number or name; its connections are not redirected")
	f.StringVar(&x.proxyID, "proxy-id", "", "`ID` of the sidecar's registration, to read its ports from")
	f.IntVar(&x.inbound, "proxy-inbound-port", 0, "`port` at which the sidecar takes connections from others; not with -proxy-id")
	f.IntVar(&x.outbound, "proxy-outbound-port", 0, "`port` at which the sidecar takes connections of applications; default 15001; not with -proxy-id")
	x.inboundPorts = verb.Strings(f, "exclude-inbound-port", "`port` whose connections from others are left alone; repeatable")
	x.outboundPorts = verb.Strings(f, "exclude-outbound-port", "`port` elsewhere to which connections are left alone; repeatable")
	x.cidrs = verb.Strings(f, "exclude-outbound-cidr", "`addresses`, as a CIDR block or one alone, to which connections are left alone; repeatable")
	x.uids = verb.Strings(f, "exclude-uid", "`user` whose connections are left alone, by number or name; repeatable")
	f.StringVar(&x.dnsIP, "consul-dns-ip", "", "`IP` address that DNS queries are redirected to; default 127.0.0.1 if -consul-dns-port is given")
	f.IntVar(&x.dnsPort, "consul-dns-port", 0, "`port` that DNS queries are redirected to; default 53 if -consul-dns-ip is given")
	f.StringVar(&x.netns, "netns", "", "`path` of the network namespace to put the rules in, such as /var/run/netns/web; default this one's")
	f.StringVar(&x.nodeName, "node-name", "", "`node` of the catalog the sidecar is registered on, where there is no agent; needs -proxy-id")
	f.BoolVar(&x.remove, "remove", false, "take the rules away")
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return fmt.Errorf("==> %w", err)
		}
		if err := x.run(c); err != nil {
			return fmt.Errorf("==> %w", err)
		}
		return nil
	}
}

func (x *flags) run(c *verb.Call) error {
	if x.remove {
		if err := apply(c.Context, x.netns, removal); err != nil {
			return fmt.Errorf("Error removing traffic redirection rules: %w", err) //nolint:staticcheck // shown as it is
		}
		c.Println("==> Removed traffic redirection rules")
		return nil
	}
	if err := x.check(); err != nil {
		return err
	}
	r, err := x.rules()
	if err != nil {
		return err
	}
	if x.proxyID != "" {
		client, err := c.API()
		if err != nil {
			return err
		}
		if err := x.ask(c, client, r); err != nil {
			return err
		}
	}
	if err := apply(c.Context, x.netns, r.Script()); err != nil {
		return fmt.Errorf("Error applying traffic redirection rules: %w", err) //nolint:staticcheck // shown as it is
	}
	c.Println("==> Successfully applied traffic redirection rules")
	c.Printf("    inbound to port %d, outbound to port %d\n", r.InboundPort, r.OutboundPort)
	if r.DNS.IsValid() {
		c.Printf("    DNS to %s\n", r.DNS)
	}
	return nil
}

// check finds what is wrong with the flags together. The texts are a contract with scripts.
func (x *flags) check() error {
	switch {
	case x.proxyUID == "":
		return verb.Errorf("-proxy-uid is required")
	case x.proxyID == "" && x.inbound == 0:
		return verb.Errorf("either -proxy-id or -proxy-inbound-port are required")
	case x.proxyID != "" && (x.inbound != 0 || x.outbound != 0):
		return verb.Errorf("-proxy-inbound-port or -proxy-outbound-port cannot be provided together with -proxy-id")
	case x.nodeName != "" && x.proxyID == "":
		return verb.Errorf("-node-name requires -proxy-id")
	}
	return nil
}

// defaultOutboundPort is where a sidecar takes the connections of applications.
const defaultOutboundPort = 15001

// rules are those that the flags ask for.
func (x *flags) rules() (*Rules, error) {
	r := &Rules{OutboundPort: defaultOutboundPort}
	var err error
	if r.ProxyUID, err = uid(x.proxyUID); err != nil {
		return nil, fmt.Errorf("-proxy-uid: %w", err)
	}
	for _, p := range []struct {
		flag string
		n    int
		to   *uint16
	}{{"-proxy-inbound-port", x.inbound, &r.InboundPort}, {"-proxy-outbound-port", x.outbound, &r.OutboundPort}} {
		if p.n == 0 {
			continue
		}
		if *p.to, err = port(p.n); err != nil {
			return nil, fmt.Errorf("%s: %w", p.flag, err)
		}
	}
	for _, l := range []struct {
		flag string
		from []string
		to   *[]uint16
	}{{"-exclude-inbound-port", *x.inboundPorts, &r.ExcludeInboundPorts}, {"-exclude-outbound-port", *x.outboundPorts, &r.ExcludeOutboundPorts}} {
		for _, text := range l.from {
			p, err := parsePort(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.flag, err)
			}
			*l.to = append(*l.to, p)
		}
	}
	for _, text := range *x.cidrs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			ip, err2 := netip.ParseAddr(text)
			if err2 != nil || ip.Zone() != "" {
				return nil, fmt.Errorf("-exclude-outbound-cidr: %q is neither a CIDR block nor an IP address", text)
			}
			ip = ip.Unmap()
			p = netip.PrefixFrom(ip, ip.BitLen())
		}
		r.ExcludeOutbound = append(r.ExcludeOutbound, p)
	}
	for _, text := range *x.uids {
		u, err := uid(text)
		if err != nil {
			return nil, fmt.Errorf("-exclude-uid: %w", err)
		}
		r.ExcludeUIDs = append(r.ExcludeUIDs, u)
	}
	if x.dnsIP == "" && x.dnsPort == 0 {
		return r, nil
	}
	ip, p := netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(53)
	if x.dnsIP != "" {
		if ip, err = netip.ParseAddr(x.dnsIP); err != nil || ip.Zone() != "" {
			return nil, fmt.Errorf("-consul-dns-ip: %q is no IP address", x.dnsIP)
		}
	}
	if x.dnsPort != 0 {
		if p, err = port(x.dnsPort); err != nil {
			return nil, fmt.Errorf("-consul-dns-port: %w", err)
		}
	}
	r.DNS = netip.AddrPortFrom(ip.Unmap(), p)
	return r, nil
}

func port(n int) (uint16, error) {
	if n <= 0 || n > 65535 {
		return 0, fmt.Errorf("%d is no port", n)
	}
	return uint16(n), nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%q is no port", text)
	}
	return port(n)
}

// uid returns the number of a user.
func uid(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(text)
	if err != nil {
		return 0, err
	}
	n, err = strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err
}

// ask completes the rules by what is registered of the sidecar: its ports, and those that are open to callers outside of
// the mesh.
func (x *flags) ask(c *verb.Call, client *api.Client, r *Rules) error {
	s, checks, err := x.service(c, client)
	if err != nil {
		return fmt.Errorf("failed to fetch proxy service from Consul Agent: %w", err)
	}
	if s.Proxy == nil {
		return fmt.Errorf("service %s is not a proxy service", x.proxyID)
	}
	var conf struct {
		BindPort       int    `mapstructure:"bind_port"`
		StatsAddr      string `mapstructure:"envoy_stats_bind_addr"`
		PrometheusAddr string `mapstructure:"envoy_prometheus_bind_addr"`
	}
	if err := mapstructure.WeakDecode(s.Proxy.Config, &conf); err != nil {
		return fmt.Errorf("failed parsing Proxy.Config: %w", err)
	}
	inbound := s.Port
	if conf.BindPort != 0 {
		inbound = conf.BindPort
	}
	if r.InboundPort, err = port(inbound); err != nil {
		return fmt.Errorf("the proxy's own port: %w", err)
	}
	if t := s.Proxy.TransparentProxy; t != nil && t.OutboundListenerPort != 0 {
		if r.OutboundPort, err = port(t.OutboundListenerPort); err != nil {
			return fmt.Errorf("OutboundListenerPort: %w", err)
		}
	}
	open := checks
	for _, p := range s.Proxy.Expose.Paths {
		open = append(open, p.ListenerPort)
	}
	for _, n := range open {
		if p, err := port(n); err == nil {
			r.ExcludeInboundPorts = append(r.ExcludeInboundPorts, p)
		}
	}
	for _, addr := range []string{conf.StatsAddr, conf.PrometheusAddr} {
		if addr == "" {
			continue
		}
		_, text, err := net.SplitHostPort(addr)
		if err != nil {
			return fmt.Errorf("failed parsing host and port from %q: %w", addr, err)
		}
		p, err := parsePort(text)
		if err != nil {
			return fmt.Errorf("address %q: %w", addr, err)
		}
		r.ExcludeInboundPorts = append(r.ExcludeInboundPorts, p)
	}
	return nil
}

// service returns the sidecar as it is registered, central settings included, with the ports of exposed checks.
func (x *flags) service(c *verb.Call, client *api.Client) (*api.AgentService, []int, error) {
	if x.nodeName != "" {
		o := c.Query()
		o.Filter = fmt.Sprintf("ID == %q", x.proxyID)
		o.MergeCentralConfig = true
		list, _, err := client.Catalog().NodeServiceList(x.nodeName, o)
		if err != nil {
			return nil, nil, err
		}
		if list == nil || len(list.Services) != 1 {
			return nil, nil, fmt.Errorf("no proxy %q on node %q", x.proxyID, x.nodeName)
		}
		return list.Services[0], nil, nil
	}
	s, _, err := client.Agent().Service(x.proxyID, c.Query())
	if err != nil {
		return nil, nil, err
	}
	var ports []int
	if s.Proxy != nil && s.Proxy.Expose.Checks {
		checks, err := client.Agent().ChecksWithFilterOpts(fmt.Sprintf("ServiceID == %q", s.Proxy.DestinationServiceID), c.Query())
		if err != nil {
			return nil, nil, err
		}
		for _, check := range checks {
			if check.ExposedPort != 0 {
				ports = append(ports, check.ExposedPort)
			}
		}
	}
	return s, ports, nil
}
