package xds

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	connlimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/connection_limit/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
)

const (
	publicListener = "public_listener"

	filterRBAC     = "envoy.filters.network.rbac"
	filterTCPProxy = "envoy.filters.network.tcp_proxy"
	filterHCM      = "envoy.filters.network.http_connection_manager"
	filterLimit    = "envoy.filters.network.connection_limit"
	statPrefixRBAC = "connect_authz"
)

// listenerName is part of a listener's identity together with its address: at another address it is another listener.
func listenerName(base, ip string, port int) string { return fmt.Sprintf("%s:%s:%d", base, ip, port) }

func statPrefix(class, name string) string { return class + strings.ReplaceAll(name, ":", "_") }

// publicListener makes the listener that other proxies of the mesh connect to.
func (b *build) publicListener() error {
	cfg, svc := &b.s.Config, b.s.Proxy.Service
	var addr *corev3.Address
	var name string
	ip, port := cfg.BindAddress, cfg.BindPort
	if port == 0 {
		port = svc.Port
	}
	if ip == "" {
		ip = svc.Address
	}
	if _, err := netip.ParseAddr(ip); err != nil {
		if ip != "" {
			b.problem("bind address %q is no IP address, listening on all", ip)
		}
		ip = "0.0.0.0"
	}
	switch {
	case port > 0 && port <= math.MaxUint16:
		addr, name = socket(ip, port), listenerName(publicListener, ip, port)
	case svc.SocketPath != "":
		addr, name = pipe(svc.SocketPath, 0), publicListener+":"+svc.SocketPath
	default:
		return fmt.Errorf("proxy %s has no port to listen on", svc.ID)
	}
	from := slices.Concat([]any{b.s.Proxy, b.s.Intentions()}, b.trustFrom(), b.tokensFrom(), b.peerSourcesFrom(), b.callersFrom())
	return b.add(Listener, name, from, func() (made, error) {
		if cfg.PublicListenerJSON != "" {
			return b.customPublicListener(name, addr)
		}
		chain, uses, err := b.publicChain()
		if err != nil {
			return made{}, err
		}
		l := &listenerv3.Listener{
			Name:                    name,
			Address:                 addr,
			TrafficDirection:        corev3.TrafficDirection_INBOUND,
			ConnectionBalanceConfig: connectionBalance(cfg.BalanceInboundConnections),
			AccessLog:               b.listenerLogs(),
			FilterChains:            []*listenerv3.FilterChain{chain},
		}
		b.permit(l)
		return made{uses: append(uses, ref{Cluster, localApp}), message: l}, nil
	})
}

// permit lets callers without mutual TLS in, where that mode is permissive: those that were redirected on their way to the
// application's own port.
func (b *build) permit(l *listenerv3.Listener) {
	p := &b.s.Proxy.Service.Proxy
	if p.MutualTLSMode != entry.MutualTLSPermissive || !b.s.Transparent() || !validPort(p.LocalServicePort) {
		return
	}
	l.ListenerFilters = append(l.ListenerFilters, listenerFilter(filterOriginalDst, &originaldstv3.OriginalDst{}))
	l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{
		FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(p.LocalServicePort))},
		Filters:          []*listenerv3.Filter{b.tcpProxy(localApp, statPrefix("permissive_", publicListener))},
	})
}

// publicChain is the one filter chain of the public listener.
func (b *build) publicChain() (*listenerv3.FilterChain, []ref, error) {
	cfg := &b.s.Config
	socket, uses, err := b.downstreamTLS(cfg.Protocol)
	if err != nil {
		return nil, nil, err
	}
	fc := &listenerv3.FilterChain{TransportSocket: socket}
	if !isHTTP(cfg.Protocol) {
		fc.Filters = append(fc.Filters, b.authorization())
	}
	if n := cfg.MaxInboundConnections; n > 0 {
		fc.Filters = append(fc.Filters, filter(filterLimit, &connlimitv3.ConnectionLimit{
			StatPrefix:     "inbound_connection_limit",
			MaxConnections: wrapperspb.UInt64(uint64(n)),
		}))
	}
	if isHTTP(cfg.Protocol) {
		m, more, err := b.inboundManager()
		if err != nil {
			return nil, nil, err
		}
		uses = append(uses, more...)
		fc.Filters = append(fc.Filters, filter(filterHCM, m))
	} else {
		fc.Filters = append(fc.Filters, b.tcpProxy(localApp, statPrefix("", publicListener)))
	}
	return fc, uses, nil
}

// authorization is the filter that applies the intentions to connections.
func (b *build) authorization() *listenerv3.Filter {
	return filter(filterRBAC, &netrbacv3.RBAC{
		StatPrefix: statPrefixRBAC,
		Rules:      b.rules(false),
	})
}

func (b *build) intentions() []*intention.Intention {
	if m := b.s.Intentions(); m != nil && len(m.Matches) > 0 {
		return m.Matches[0]
	}
	return nil
}

// A lead is the filter that leads connections to an upstream, with what it refers to.
type lead struct {
	filter *listenerv3.Filter
	routes []string // route configurations
	uses   []ref
}

// upstreamListener makes the listener for the application's connections to an upstream. The filter is made from the
// upstream and from what besides is given, nil for nothing.
func (b *build) upstreamListener(u *mesh.Upstream, from any, make func() (*lead, error)) error {
	var addr *corev3.Address
	var name string
	if port := u.Spec.LocalBindPort; port > 0 {
		ip := u.Spec.LocalBindAddress
		if ip == "" {
			ip = "127.0.0.1"
		}
		if _, err := netip.ParseAddr(ip); err != nil || port > math.MaxUint16 {
			return fmt.Errorf("can not listen on %s:%d", ip, port)
		}
		addr, name = socket(ip, port), listenerName(u.ID, ip, port)
	} else {
		mode, err := socketMode(u.Spec.LocalBindSocketMode)
		if err != nil {
			return err
		}
		addr, name = pipe(u.Spec.LocalBindSocketPath, mode), u.ID+":"+u.Spec.LocalBindSocketPath
	}
	c, _ := from.(*chain.Chain)
	if u.Config.ListenerJSON != "" && c != nil && !c.Default {
		b.problem("upstream %s: envoy_listener_json is ignored, since a discovery chain is configured", u.ID)
	}
	return b.add(Listener, name, []any{u, from, b.s.Proxy, b.s.Mesh()}, func() (made, error) {
		if u.Config.ListenerJSON != "" && (c == nil || c.Default) {
			l := new(listenerv3.Listener)
			if err := fromJSON(u.Config.ListenerJSON, l); err != nil {
				return made{}, fmt.Errorf("envoy_listener_json: %w", err)
			}
			l.Name = name
			if l.Address == nil {
				l.Address = addr
			}
			return made{message: l}, nil
		}
		to, err := make()
		if err != nil {
			return made{}, err
		}
		return made{uses: to.uses, children: to.routes, message: &listenerv3.Listener{
			Name:                    name,
			Address:                 addr,
			TrafficDirection:        corev3.TrafficDirection_OUTBOUND,
			ConnectionBalanceConfig: connectionBalance(u.Config.BalanceOutboundConnections),
			AccessLog:               b.listenerLogs(),
			FilterChains:            []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{to.filter}}},
		}}, nil
	})
}

// chainLead leads to the start of a chain.
func (b *build) chainLead(u *mesh.Upstream, c *chain.Chain) (*lead, error) {
	protocol := u.Config.Protocol
	if protocol == "" {
		protocol = c.Protocol
	}
	filterName := c.ServiceName + "." + c.Namespace + "." + c.Partition + "." + c.Datacenter
	prefix := statPrefix("upstream.", filterName)
	if b.usesRoutes(c) {
		return &lead{filter: filter(filterHCM, b.outboundManager(protocol, prefix, &routeSource{name: u.ID})), routes: []string{u.ID}}, nil
	}
	cluster, err := b.startCluster(u, c)
	if err != nil {
		return nil, err
	}
	return b.clusterLead(u.ID, protocol, prefix, filterName, cluster), nil
}

// clusterLead leads straight to a cluster.
func (b *build) clusterLead(name, protocol, prefix, host, cluster string) *lead {
	to := &lead{uses: []ref{{Cluster, cluster}}}
	if isHTTP(protocol) {
		to.filter = filter(filterHCM, b.outboundManager(protocol, prefix, &routeSource{inline: singleRoute(name, host, cluster)}))
	} else {
		to.filter = b.tcpProxy(cluster, prefix)
	}
	return to
}

// startCluster returns the cluster of a chain that starts with a resolver.
func (b *build) startCluster(u *mesh.Upstream, c *chain.Chain) (string, error) {
	if custom, err := b.customCluster(u, c); err != nil || custom != nil {
		return custom.GetName(), err
	}
	t, err := primary(c, connectionNode(c))
	if err != nil {
		return "", err
	}
	return b.clusterName(c, t)
}

// connectionNode returns the resolver that connections are led to: the last route of a router, which matches everything,
// and the largest share of a splitter.
func connectionNode(c *chain.Chain) *chain.Node {
	n := c.Nodes[c.StartNode]
	for range len(c.Nodes) {
		switch {
		case n != nil && len(n.Routes) > 0:
			n = c.Nodes[n.Routes[len(n.Routes)-1].NextNode]
		case n != nil && len(n.Splits) > 0:
			largest := n.Splits[0]
			for _, s := range n.Splits {
				if s.Weight > largest.Weight {
					largest = s
				}
			}
			n = c.Nodes[largest.NextNode]
		default:
			return n
		}
	}
	return n
}

// usesRoutes reports whether a chain needs a route configuration.
func (b *build) usesRoutes(c *chain.Chain) bool { return isHTTP(c.Protocol) && !c.Default }

func (b *build) tcpProxy(cluster, prefix string) *listenerv3.Filter {
	return filter(filterTCPProxy, &tcpproxyv3.TcpProxy{
		StatPrefix:       prefix,
		AccessLog:        b.filterLogs(),
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
	})
}

func filter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustPack(config)}}
}

func connectionBalance(how string) *listenerv3.Listener_ConnectionBalanceConfig {
	if how != mesh.ExactBalance {
		return nil
	}
	return &listenerv3.Listener_ConnectionBalanceConfig{
		BalanceType: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance_{
			ExactBalance: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance{},
		},
	}
}

// milliseconds returns a duration for a setting in milliseconds.
func milliseconds(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }
