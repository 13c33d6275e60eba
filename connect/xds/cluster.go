package xds

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

const localApp = "local_app"

// localApp makes the cluster of the application itself.
func (b *build) localApp() error {
	return b.add(Cluster, localApp, []any{b.s.Proxy}, func() (made, error) {
		cfg := &b.s.Config
		if cfg.LocalClusterJSON != "" {
			c := new(clusterv3.Cluster)
			if err := fromJSON(cfg.LocalClusterJSON, c); err != nil {
				return made{}, fmt.Errorf("envoy_local_cluster_json: %w", err)
			}
			c.Name = localApp // what the public listener refers to
			return made{message: c, children: edsName(c)}, nil
		}
		p := &b.s.Proxy.Service.Proxy
		var addr *corev3.Address
		if p.LocalServiceSocketPath != "" {
			addr = pipe(p.LocalServiceSocketPath, 0)
		} else {
			host := p.LocalServiceAddress
			if host == "" {
				host = "127.0.0.1"
			}
			addr = socket(host, p.LocalServicePort)
		}
		c := &clusterv3.Cluster{
			Name:                 localApp,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			ConnectTimeout:       durationpb.New(time.Duration(cfg.LocalConnectTimeoutMs) * time.Millisecond),
			LoadAssignment: &endpointv3.ClusterLoadAssignment{
				ClusterName: localApp,
				Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{host(addr)}}},
			},
		}
		if isHTTP2(cfg.Protocol) {
			c.TypedExtensionProtocolOptions = httpOptions(&httpv3.HttpProtocolOptions{
				UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
					UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
						HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
						Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
					},
				},
			})
		}
		if n := cfg.MaxInboundConnections; n > 0 {
			c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
				MaxConnections: wrapperspb.UInt32(uint32(min(n, math.MaxUint32))),
			}}}
		}
		return made{message: c}, nil
	})
}

// clusterName returns the name of the cluster of a chain's target. That of a target at a peer is known once its bundle is.
func (b *build) clusterName(c *chain.Chain, t *chain.Target) (string, error) {
	name := t.Name
	if name == "" {
		name = t.SNI
	}
	if t.Peer != "" {
		bundle := b.s.Peer(t.Peer)
		if bundle == nil {
			return "", fmt.Errorf("whom to trust for peer %s is not known", t.Peer)
		}
		name = peerCluster(t.Service, bundle)
	}
	if c.CustomizationHash != "" {
		name = c.CustomizationHash + "~" + name
	}
	if b.s.Proxy.Service.Kind == catalog.KindMeshGateway {
		name = exportedPrefix + name // those without it pass connections on as they are
	}
	return name, nil
}

// peersFrom lists the bundles that clusterName depends on, for add.
func (b *build) peersFrom(c *chain.Chain) []any {
	var from []any
	for _, id := range sortedKeys(c.Targets) {
		if t := c.Targets[id]; t != nil && t.Peer != "" {
			from = append(from, b.s.Peer(t.Peer))
		}
	}
	return from
}

// primary returns the target of a resolver node.
func primary(c *chain.Chain, n *chain.Node) (*chain.Target, error) {
	if n == nil || n.Resolver == nil {
		return nil, fmt.Errorf("the chain of %s lacks a resolver", c.ServiceName)
	}
	t := c.Targets[n.Resolver.Target]
	if t == nil {
		return nil, fmt.Errorf("the chain of %s lacks target %q", c.ServiceName, n.Resolver.Target)
	}
	return t, nil
}

// customCluster returns the cluster an upstream brings along, nil if it brings none. It counts only where no chain is
// configured.
func (b *build) customCluster(u *mesh.Upstream, c *chain.Chain) (*clusterv3.Cluster, error) {
	if u.Config.ClusterJSON == "" || !c.Default || b.flavour == Proxyless {
		return nil, nil
	}
	t, err := primary(c, c.Nodes[c.StartNode])
	if err != nil {
		return nil, err
	}
	name, err := b.clusterName(c, t)
	if err != nil {
		return nil, err
	}
	own := new(clusterv3.Cluster)
	if err := fromJSON(u.Config.ClusterJSON, own); err != nil {
		return nil, fmt.Errorf("envoy_cluster_json: %w", err)
	}
	switch {
	case own.Name == "":
		own.Name = name
	case own.Name == localApp || strings.HasPrefix(own.Name, exposedPrefix) || strings.HasPrefix(own.Name, tokenPrefix):
		return nil, fmt.Errorf("envoy_cluster_json: the name %q is taken", own.Name)
	}
	return own, nil
}

// chainClusters makes a cluster, or an aggregate of clusters where there is failover, for each resolver of a chain.
// Targets to fail over to of which not enough is known are left out.
func (b *build) chainClusters(u *mesh.Upstream, c *chain.Chain) error {
	for _, key := range sortedKeys(c.Nodes) {
		n := c.Nodes[key]
		if n == nil || n.Type != chain.Resolver {
			continue
		}
		t, err := primary(c, n)
		if err != nil {
			return err
		}
		base, err := b.clusterName(c, t)
		if err != nil {
			return err
		}
		custom, err := b.customCluster(u, c)
		if err != nil {
			return err
		}
		if custom != nil {
			base = custom.Name
		}
		if n.Resolver.Failover == nil || len(n.Resolver.Failover.Targets) == 0 {
			r, err := b.reachTarget(t)
			if err != nil {
				return err
			}
			if r.peer != nil && b.flavour == Proxyless {
				return errProxyless
			}
			if err := b.reachedCluster(base, u, c, n, r, custom); err != nil {
				return err
			}
			continue
		}
		var members []string
		for i, id := range append([]string{n.Resolver.Target}, n.Resolver.Failover.Targets...) {
			t := c.Targets[id]
			if t == nil {
				continue
			}
			r, err := b.reachTarget(t)
			if err == nil && r.peer != nil && b.flavour == Proxyless {
				err = errProxyless
			}
			if err != nil {
				b.problem("upstream %s: failover: %w", u.ID, err)
				continue
			}
			name := fmt.Sprintf("failover-target~%d~%s", i, base)
			if err := b.reachedCluster(name, u, c, n, r, nil); err != nil {
				return err
			}
			members = append(members, name)
		}
		if len(members) == 0 {
			return fmt.Errorf("nothing is known of the targets of %s", c.ServiceName)
		}
		if err := b.aggregate(base, c, n, members); err != nil {
			return err
		}
	}
	return nil
}

func (b *build) aggregate(name string, c *chain.Chain, n *chain.Node, members []string) error {
	return b.add(Cluster, name, []any{c, strings.Join(members, " ")}, func() (made, error) {
		uses := make([]ref, len(members))
		for i, m := range members {
			uses[i] = ref{Cluster, m}
		}
		if b.flavour == Proxyless {
			return made{uses: uses, message: proxylessAggregate(name, n, members)}, nil
		}
		return made{uses: uses, message: &clusterv3.Cluster{
			Name:           name,
			AltStatName:    name,
			ConnectTimeout: durationpb.New(connectTimeout(n)),
			LbPolicy:       clusterv3.Cluster_CLUSTER_PROVIDED,
			ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
				Name:        "envoy.clusters.aggregate",
				TypedConfig: mustPack(&aggregatev3.ClusterConfig{Clusters: members}),
			}},
		}}, nil
	})
}

// reachedCluster makes the cluster of what a resolver of a chain leads to, out of a custom one if there is, and its load
// assignment.
func (b *build) reachedCluster(name string, u *mesh.Upstream, c *chain.Chain, n *chain.Node, r *reach, own *clusterv3.Cluster) error {
	return b.cluster(name, []any{u, c}, r, func() (*clusterv3.Cluster, error) {
		if own != nil {
			own.TransportSocketMatches = nil
			return own, nil
		}
		if b.flavour == Proxyless {
			return b.proxylessCluster(name, u, n), nil
		}
		cluster := b.edsCluster(name, u, connectTimeout(n))
		cluster.AltStatName = name
		cluster.OutlierDetection = b.outliers(u.Config.PassiveHealthCheck)
		if isHTTP2(c.Protocol) {
			cluster.TypedExtensionProtocolOptions = http2Options()
		}
		balance(cluster, n.LoadBalancer)
		return cluster, nil
	})
}

const defaultConnectTimeout = 5 * time.Second

// connectTimeout bounds connecting to what a resolver leads to.
func connectTimeout(n *chain.Node) time.Duration {
	if t := time.Duration(n.Resolver.ConnectTimeout); t > 0 {
		return t
	}
	return defaultConnectTimeout
}

// edsCluster returns what the clusters of all upstreams have in common.
func (b *build) edsCluster(name string, u *mesh.Upstream, timeout time.Duration) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(timeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: b.ads()},
		CommonLbConfig:       &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}},
		CircuitBreakers:      breakers(u.Config.Limits),
	}
}

// cluster makes a cluster with what is needed to reach its hosts: mutual TLS, and the load assignment or the one name
// that stands for it.
func (b *build) cluster(name string, from []any, r *reach, make func() (*clusterv3.Cluster, error)) error {
	if err := b.peerRoots(r.peer); err != nil {
		return err
	}
	dns := b.dnsHost(r)
	from = append(slices.Clip(from), dns, r.sni, strings.Join(r.names, " "), r.peer)
	err := b.add(Cluster, name, append(from, b.trustFrom()...), func() (made, error) {
		c, err := make()
		if err != nil {
			return made{}, err
		}
		var uses []ref
		if c.TransportSocket, uses, err = b.upstreamTLS(r); err != nil {
			return made{}, err
		}
		if dns != (dnsHost{}) && c.GetType() == clusterv3.Cluster_EDS {
			dns.put(c)
		}
		return made{message: c, children: edsName(c), uses: uses}, nil
	})
	if err != nil {
		return err
	}
	children := b.out.byType[Cluster][name].Children
	if len(children) == 0 {
		return nil // it has hosts of its own
	}
	return b.assignment(children[0], r)
}

// customHatch returns the cluster an upstream without a chain brings along.
func customHatch(u *mesh.Upstream, name string) (*clusterv3.Cluster, error) {
	own := new(clusterv3.Cluster)
	if err := fromJSON(u.Config.ClusterJSON, own); err != nil {
		return nil, fmt.Errorf("envoy_cluster_json: %w", err)
	}
	own.Name, own.TransportSocketMatches = name, nil
	return own, nil
}

// breakers returns the limits of an upstream. It is always present.
func breakers(l *mesh.Limits) *clusterv3.CircuitBreakers {
	cb := &clusterv3.CircuitBreakers{}
	if l == nil || l.MaxConnections == nil && l.MaxPendingRequests == nil && l.MaxConcurrentRequests == nil {
		return cb
	}
	cb.Thresholds = []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     uint32Value(l.MaxConnections),
		MaxPendingRequests: uint32Value(l.MaxPendingRequests),
		MaxRequests:        uint32Value(l.MaxConcurrentRequests),
	}}
	return cb
}

// outliers returns how failing instances are found. It is always present.
func (b *build) outliers(p *mesh.PassiveHealthCheck) *clusterv3.OutlierDetection {
	od := &clusterv3.OutlierDetection{}
	if b.flavour == Own {
		od.AlwaysEjectOneHost = wrapperspb.Bool(true)
	}
	if p == nil {
		return od
	}
	if p.Interval > 0 {
		od.Interval = durationpb.New(p.Interval)
	}
	if p.MaxFailures > 0 {
		od.Consecutive_5Xx = wrapperspb.UInt32(p.MaxFailures)
	}
	od.EnforcingConsecutive_5Xx = uint32Value(p.EnforcingConsecutive5xx)
	od.MaxEjectionPercent = uint32Value(p.MaxEjectionPercent)
	if p.BaseEjectionTime != nil && *p.BaseEjectionTime > 0 {
		od.BaseEjectionTime = durationpb.New(*p.BaseEjectionTime)
	}
	return od
}

// balance sets how instances are chosen.
func balance(c *clusterv3.Cluster, lb *entry.LoadBalancer) {
	if lb == nil {
		return
	}
	switch lb.Policy {
	case entry.PolicyRoundRobin:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case entry.PolicyRandom:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case entry.PolicyMaglev:
		c.LbPolicy = clusterv3.Cluster_MAGLEV
	case entry.PolicyLeastRequest:
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		if lb.LeastRequestConfig != nil && lb.LeastRequestConfig.ChoiceCount > 0 {
			c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{
				ChoiceCount: wrapperspb.UInt32(lb.LeastRequestConfig.ChoiceCount),
			}}
		}
	case entry.PolicyRingHash:
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		if rh := lb.RingHashConfig; rh != nil {
			out := &clusterv3.Cluster_RingHashLbConfig{}
			if rh.MinimumRingSize > 0 {
				out.MinimumRingSize = wrapperspb.UInt64(rh.MinimumRingSize)
			}
			if rh.MaximumRingSize > 0 {
				out.MaximumRingSize = wrapperspb.UInt64(rh.MaximumRingSize)
			}
			c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: out}
		}
	}
}

// ads returns the source of everything that is not in line: the stream the proxy has.
func (b *build) ads() *corev3.ConfigSource {
	s := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
	if ms := b.s.Config.XDSFetchTimeoutMs; ms != nil && *ms >= 0 {
		s.InitialFetchTimeout = durationpb.New(time.Duration(*ms) * time.Millisecond)
	}
	return s
}

// edsName returns the name under which a cluster given by the user asks for its hosts, none if it has them itself.
func edsName(c *clusterv3.Cluster) []string {
	if c.GetType() != clusterv3.Cluster_EDS {
		return nil
	}
	if n := c.GetEdsClusterConfig().GetServiceName(); n != "" {
		return []string{n}
	}
	return []string{c.Name}
}

const httpOptionsName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func httpOptions(o *httpv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{httpOptionsName: mustPack(o)}
}

func http2Options() map[string]*anypb.Any {
	return httpOptions(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
				},
			},
		},
	})
}

func host(a *corev3.Address) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}}}
}

func socket(ip string, port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// pipe returns the address of a UNIX socket, with the permissions it is made with unless they are 0.
func pipe(path string, mode uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path, Mode: mode}}}
}

// socketMode reads permissions written in octal; empty is 0.
func socketMode(s string) (uint32, error) {
	if s == "" {
		return 0, nil
	}
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || m > 0o777 {
		return 0, fmt.Errorf("socket mode %q is not in octal from 0 to 777", s)
	}
	return uint32(m), nil
}

func uint32Value(v *uint32) *wrapperspb.UInt32Value {
	if v == nil {
		return nil
	}
	return wrapperspb.UInt32(*v)
}
