package xds

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// What transparent mode is made of (spec/xds.md section 7).
const (
	outboundListener    = "outbound_listener"
	outboundPort        = 15001 // unless the registration says otherwise
	originalDestination = "original-destination"

	filterOriginalDst   = "envoy.filters.listener.original_dst"
	filterTLSInspector  = "envoy.filters.listener.tls_inspector"
	filterHTTPInspector = "envoy.filters.listener.http_inspector"
)

// An outbound is where the outbound listener leads some of the application's connections: those to one of the prefixes,
// or to one of the names, and to the port, unless it is 0. It is never changed.
type outbound struct {
	prefixes []netip.Prefix
	names    []string
	port     int
	to       *lead
	// host is set instead of to when connections of the port are told apart by their requests' host.
	host *outboundHost
}

type outboundHost struct{ address, protocol, cluster string }

func (o *outbound) equal(p *outbound) bool {
	if o.port != p.port || !slices.Equal(o.prefixes, p.prefixes) || !slices.Equal(o.names, p.names) || (o.host == nil) != (p.host == nil) {
		return false
	}
	if o.host != nil {
		return *o.host == *p.host
	}
	return slices.Equal(o.to.routes, p.to.routes) && slices.Equal(o.to.uses, p.to.uses) && proto.Equal(o.to.filter, p.to.filter)
}

// keep takes those of before that are equal, so that equal pointers mean equal content.
func (p *part) keep(before []*outbound) {
	for i, o := range p.outbound {
		if i < len(before) && before[i].equal(o) {
			p.outbound[i] = before[i]
		}
	}
}

// hostPrefixes returns the addresses among texts as prefixes, in order. Loopback is never redirected.
func hostPrefixes(texts []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		ip, err := netip.ParseAddr(text)
		if err != nil || ip.IsUnspecified() || ip.IsLoopback() || ip.Zone() != "" {
			continue
		}
		ip = ip.Unmap()
		out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}

func comparePrefixes(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }

// virtualAddresses returns the addresses that stand for a service, as its instances tell. Of a terminating gateway that
// is the one of the service alone.
func virtualAddresses(instances *catalog.InstancesReply, service string) []string {
	if instances == nil {
		return nil
	}
	var out []string
	for _, i := range instances.Instances {
		tags := []string{catalog.VirtualAddressTag, "virtual"}
		if i.Service.Kind == catalog.KindTerminatingGateway {
			tags = []string{catalog.VirtualAddressTag + ":" + service}
		}
		for _, tag := range tags {
			out = append(out, i.Service.TaggedAddresses[tag].Address)
		}
	}
	return out
}

// virtual leads what goes to the addresses that stand for an upstream. Without any it cannot be reached.
func (b *build) virtual(addresses []string, make func() (*lead, error)) error {
	prefixes := hostPrefixes(addresses)
	if len(prefixes) == 0 || !b.s.Transparent() {
		return nil
	}
	to, err := make()
	if err != nil {
		return err
	}
	b.outbound = append(b.outbound, &outbound{prefixes: prefixes, to: to})
	return nil
}

// virtualChain leads what goes to the virtual addresses of an upstream that has no address to listen on through its
// chain, and, where that is allowed, what goes to the addresses of instances straight to them.
func (b *build) virtualChain(u *mesh.Upstream, c *chain.Chain, make func() (*lead, error)) error {
	addresses := slices.Concat(c.AutoVirtualIPs, c.ManualVirtualIPs)
	for _, id := range sortedKeys(c.Targets) {
		if t := c.Targets[id]; t != nil && t.Peer == "" && t.Service == c.ServiceName {
			addresses = append(addresses, virtualAddresses(b.s.Instances(t), t.Service)...)
		}
	}
	if len(hostPrefixes(addresses)) > 0 && b.s.Transparent() {
		if err := b.chainRoutes(u, c); err != nil {
			return err
		}
	}
	if err := b.virtual(addresses, make); err != nil {
		return err
	}
	for _, id := range sortedKeys(c.Targets) {
		if t := c.Targets[id]; t != nil && t.Peer == "" && t.TransparentProxy.DialedDirectly && t.Datacenter == b.s.Proxy.Datacenter {
			if err := b.passthrough(u, c, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// passthrough leads connections to instances of a target where they wanted to go, over mutual TLS.
func (b *build) passthrough(u *mesh.Upstream, c *chain.Chain, t *chain.Target) error {
	instances := b.s.Instances(t)
	if instances == nil {
		return nil
	}
	var addresses []string
	for _, i := range instances.Instances {
		ip, _ := addressOf(i, false)
		addresses = append(addresses, ip)
	}
	prefixes := hostPrefixes(addresses)
	if len(prefixes) == 0 {
		return nil
	}
	name := "passthrough~" + t.SNI
	r := &reach{sni: t.SNI, names: []string{connect.ServiceID(b.trustDomain, t.Datacenter, t.Service).String()}}
	err := b.add(Cluster, name, append([]any{u, c}, b.trustFrom()...), func() (made, error) {
		socket, uses, err := b.upstreamTLS(r)
		if err != nil {
			return made{}, err
		}
		cluster := originalDst(name)
		if t.ConnectTimeout > 0 {
			cluster.ConnectTimeout = durationpb.New(time.Duration(t.ConnectTimeout))
		}
		cluster.TransportSocket = socket
		return made{message: cluster, uses: uses}, nil
	})
	if err != nil {
		return err
	}
	prefix := statPrefix("upstream.", t.Service+".default.default."+t.Datacenter)
	b.outbound = append(b.outbound, &outbound{prefixes: prefixes, to: b.clusterLead("", "tcp", prefix, "", name)})
	return nil
}

// originalDst returns a cluster that leads where connections wanted to go.
func originalDst(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(defaultConnectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
	}
}

// destinationName returns the name of the cluster of an address outside the mesh.
func (b *build) destinationName(address, service string) string {
	return "destination." + strings.NewReplacer(".", "-", ":", "-").Replace(strings.ToLower(address)) + "." +
		connect.ServiceSNI("", service, b.s.Proxy.Datacenter, b.trustDomain)
}

// destinationUpstream makes everything for something outside the mesh that is reached through terminating gateways.
func (b *build) destinationUpstream(u *mesh.Upstream) error {
	if !b.s.Transparent() {
		return nil
	}
	service, d := u.Spec.DestinationName, u.Destination.Destination
	protocol := cmp.Or(u.Destination.Protocol, "tcp")
	for _, address := range d.Addresses {
		name := b.destinationName(address, service)
		r := &reach{
			sni: name, names: []string{connect.ServiceID(b.trustDomain, b.s.Proxy.Datacenter, service).String()}, instances: b.s.Behind(service),
		}
		err := b.cluster(name, []any{u}, r, func() (*clusterv3.Cluster, error) {
			c := b.edsCluster(name, u, u.Config.ConnectTimeout())
			c.AltStatName = name
			c.OutlierDetection = b.outliers(u.Config.PassiveHealthCheck)
			if isHTTP2(protocol) {
				c.TypedExtensionProtocolOptions = http2Options()
			}
			return c, nil
		})
		if err != nil {
			return err
		}
		o := &outbound{port: d.Port}
		switch ip, err := netip.ParseAddr(address); {
		case isHTTP(protocol):
			o.host = &outboundHost{address, protocol, name}
			if err == nil && ip.Is6() {
				o.host.address = "[" + address + "]"
			}
		case err == nil:
			o.prefixes = hostPrefixes([]string{address})
		default:
			o.names = []string{strings.ToLower(address)}
		}
		if o.host == nil {
			o.to = b.clusterLead("", "tcp", statPrefix("upstream.", service+".default.default."+b.s.Proxy.Datacenter), "", name)
		}
		b.outbound = append(b.outbound, o)
	}
	return nil
}

// outboundListener makes the listener that all connections of the application are redirected to in transparent mode.
func (b *build) outboundListener() error {
	if !b.s.Transparent() {
		return nil
	}
	open := true // to what is not in the mesh
	if m := b.s.Mesh(); m != nil {
		open = !m.TransparentProxy.MeshDestinationsOnly
	}
	if open {
		err := b.add(Cluster, originalDestination, nil, func() (made, error) {
			return made{message: originalDst(originalDestination)}, nil
		})
		if err != nil {
			return err
		}
	}
	hosts := map[int][]*outbound{} // by port
	var leading []*outbound
	for _, o := range b.outbound {
		if o.host != nil {
			hosts[o.port] = append(hosts[o.port], o)
		} else {
			leading = append(leading, o)
		}
	}
	for _, port := range sortedKeys(hosts) {
		o, err := b.destinationRoutes(port, hosts[port])
		if err != nil {
			return err
		}
		leading = append(leading, o)
	}
	if len(leading) == 0 && !open {
		return nil
	}
	port := outboundPort
	if t := b.s.Proxy.Service.Proxy.TransparentProxy; t != nil && validPort(t.OutboundListenerPort) {
		port = t.OutboundListenerPort
	}
	name := listenerName(outboundListener, "127.0.0.1", port)
	from := []any{b.s.Proxy, open}
	for _, o := range b.outbound {
		from = append(from, o)
	}
	return b.add(Listener, name, from, func() (made, error) {
		l := &listenerv3.Listener{
			Name:             name,
			Address:          socket("127.0.0.1", port),
			TrafficDirection: corev3.TrafficDirection_OUTBOUND,
			AccessLog:        b.listenerLogs(),
			ListenerFilters:  []*listenerv3.ListenerFilter{listenerFilter(filterOriginalDst, &originaldstv3.OriginalDst{})},
		}
		m := made{message: l}
		chains := b.outboundChains(leading)
		if slices.ContainsFunc(chains, func(o *outbound) bool { return len(o.names) > 0 }) {
			l.ListenerFilters = append(l.ListenerFilters, listenerFilter(filterTLSInspector, &tlsinspectorv3.TlsInspector{}))
		}
		if len(hosts) > 0 {
			l.ListenerFilters = append(l.ListenerFilters, listenerFilter(filterHTTPInspector, &httpinspectorv3.HttpInspector{}))
		}
		for _, o := range chains {
			fc := &listenerv3.FilterChain{FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: o.names}, Filters: []*listenerv3.Filter{o.to.filter}}
			if o.port != 0 {
				fc.FilterChainMatch.DestinationPort = wrapperspb.UInt32(uint32(o.port))
			}
			for _, p := range o.prefixes {
				fc.FilterChainMatch.PrefixRanges = append(fc.FilterChainMatch.PrefixRanges, cidr(p))
			}
			l.FilterChains = append(l.FilterChains, fc)
			m.uses = append(m.uses, o.to.uses...)
		}
		for _, o := range leading { // whether or not something is left of it
			m.children = append(m.children, o.to.routes...)
		}
		if open {
			l.DefaultFilterChain = &listenerv3.FilterChain{
				Filters: []*listenerv3.Filter{b.tcpProxy(originalDestination, statPrefix("upstream.", originalDestination))},
			}
			m.uses = append(m.uses, ref{Cluster, originalDestination})
		}
		slices.Sort(m.children)
		m.children = slices.Compact(m.children)
		return m, nil
	})
}

// outboundChains returns the chains in an order that does not depend on that of upstreams. No two match the same: what
// several lay claim to is the first one's.
//
// A proxy looks at ports first, and among the chains for a port it looks at no chain for every port. So those for every
// port are repeated for each port that has some.
func (b *build) outboundChains(leading []*outbound) []*outbound {
	ports := map[int]bool{0: true}
	for _, o := range leading {
		ports[o.port] = true
	}
	type match struct {
		port   int
		prefix netip.Prefix
		name   string
	}
	taken := map[match]bool{}
	var out []*outbound
	add := func(o *outbound, port int, repeated bool) {
		c := &outbound{port: port, to: o.to}
		free := func(m match) bool {
			if taken[m] {
				if !repeated {
					b.problem("outbound listener: %s is claimed twice, what comes later is left out", strings.TrimSpace(fmt.Sprint(m.name, " ", m.prefix.Addr())))
				}
				return false
			}
			taken[m] = true
			return true
		}
		for _, p := range o.prefixes {
			if free(match{port, p, ""}) {
				c.prefixes = append(c.prefixes, p)
			}
		}
		for _, n := range o.names {
			if free(match{port, netip.Prefix{}, n}) {
				c.names = append(c.names, n)
			}
		}
		if len(c.prefixes)+len(c.names) > 0 || len(o.prefixes)+len(o.names) == 0 && free(match{port: port}) {
			out = append(out, c)
		}
	}
	for _, o := range leading {
		add(o, o.port, false)
	}
	for _, port := range sortedKeys(ports) {
		for _, o := range leading {
			if o.port == 0 && port != 0 {
				add(o, port, true)
			}
		}
	}
	slices.SortStableFunc(out, func(x, y *outbound) int {
		return cmp.Or(cmp.Compare(x.port, y.port), slices.CompareFunc(x.prefixes, y.prefixes, comparePrefixes), slices.Compare(x.names, y.names))
	})
	return out
}

// destinationRoutes makes the routes for requests to what is outside the mesh at one port, and leads to them.
func (b *build) destinationRoutes(port int, hosts []*outbound) (*outbound, error) {
	name := b.destinationName(strconv.Itoa(port), "~http")
	protocol := hosts[0].host.protocol
	var from []any
	for _, o := range hosts {
		from = append(from, o)
		if o.host.protocol != protocol {
			protocol = "http"
		}
	}
	err := b.add(Route, name, from, func() (made, error) {
		rc := &routev3.RouteConfiguration{Name: name, IgnorePortInHostMatching: true}
		m := made{message: rc}
		seen := map[string]bool{}
		for _, o := range hosts {
			domain := strings.ToLower(o.host.address)
			if seen[domain] {
				b.problem("outbound listener: %s:%d is claimed twice, what comes later is left out", domain, port)
				continue
			}
			seen[domain] = true
			rc.VirtualHosts = append(rc.VirtualHosts, &routev3.VirtualHost{
				Name: o.host.cluster, Domains: []string{domain},
				Routes: []*routev3.Route{{Match: everyPath(), Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: o.host.cluster},
				}}}},
			})
			m.uses = append(m.uses, ref{Cluster, o.host.cluster})
		}
		slices.SortFunc(rc.VirtualHosts, func(x, y *routev3.VirtualHost) int { return strings.Compare(x.Name, y.Name) })
		return m, nil
	})
	if err != nil {
		return nil, err
	}
	manager := b.outboundManager(protocol, statPrefix("upstream.", name), &routeSource{name: name})
	return &outbound{port: port, to: &lead{filter: filter(filterHCM, manager), routes: []string{name}}}, nil
}

func cidr(p netip.Prefix) *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}

func listenerFilter(name string, config proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: mustPack(config)}}
}
