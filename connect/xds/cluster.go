package xds

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
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
	"github.com/sarnmesh/sarn/connect"
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
		if b.http2(cfg.Protocol) {
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

// clusterName returns the name of the cluster of a chain's target.
func clusterName(c *chain.Chain, t *chain.Target) string {
	name := t.Name
	if name == "" {
		name = t.SNI
	}
	if c.CustomizationHash != "" {
		name = c.CustomizationHash + "~" + name
	}
	return name
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
func customCluster(u *mesh.Upstream, c *chain.Chain) (*clusterv3.Cluster, error) {
	if u.Config.ClusterJSON == "" || !c.Default {
		return nil, nil
	}
	own := new(clusterv3.Cluster)
	if err := fromJSON(u.Config.ClusterJSON, own); err != nil {
		return nil, fmt.Errorf("envoy_cluster_json: %w", err)
	}
	switch own.Name {
	case localApp:
		return nil, fmt.Errorf("envoy_cluster_json: the name %q is taken", own.Name)
	case "":
		t, err := primary(c, c.Nodes[c.StartNode])
		if err != nil {
			return nil, err
		}
		own.Name = clusterName(c, t)
	}
	return own, nil
}

// chainClusters makes a cluster, or an aggregate of clusters where there is failover, for each resolver of a chain.
// Targets at peers are left out.
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
		base := clusterName(c, t)
		custom, err := customCluster(u, c)
		if err != nil {
			return err
		}
		if custom != nil {
			base = custom.Name
		}
		if n.Resolver.Failover == nil || len(n.Resolver.Failover.Targets) == 0 {
			if t.Peer != "" {
				return fmt.Errorf("target %s is at a peer", t.ID)
			}
			if err := b.targetCluster(base, u, c, n, t, custom); err != nil {
				return err
			}
			continue
		}
		var members []string
		for i, id := range append([]string{n.Resolver.Target}, n.Resolver.Failover.Targets...) {
			t := c.Targets[id]
			if t == nil || t.Peer != "" {
				continue
			}
			name := fmt.Sprintf("failover-target~%d~%s", i, base)
			if err := b.targetCluster(name, u, c, n, t, nil); err != nil {
				return err
			}
			members = append(members, name)
		}
		if err := b.aggregate(base, c, n, members); err != nil {
			return err
		}
	}
	return nil
}

func (b *build) aggregate(name string, c *chain.Chain, n *chain.Node, members []string) error {
	return b.add(Cluster, name, []any{c}, func() (made, error) {
		uses := make([]ref, len(members))
		for i, m := range members {
			uses[i] = ref{Cluster, m}
		}
		return made{uses: uses, message: &clusterv3.Cluster{
			Name:           name,
			AltStatName:    name,
			ConnectTimeout: durationpb.New(time.Duration(n.Resolver.ConnectTimeout)),
			LbPolicy:       clusterv3.Cluster_CLUSTER_PROVIDED,
			ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
				Name:        "envoy.clusters.aggregate",
				TypedConfig: mustPack(&aggregatev3.ClusterConfig{Clusters: members}),
			}},
		}}, nil
	})
}

// targetCluster makes the cluster of one target, out of a custom one if there is, and its load assignment.
func (b *build) targetCluster(name string, u *mesh.Upstream, c *chain.Chain, n *chain.Node, t *chain.Target, own *clusterv3.Cluster) error {
	err := b.add(Cluster, name, append([]any{u, c}, b.trustFrom()...), func() (made, error) {
		socket, uses, err := b.upstreamTLS(t.SNI, []string{connect.ServiceID(b.trustDomain, t.Datacenter, t.Service).String()})
		if err != nil {
			return made{}, err
		}
		if own != nil {
			own.TransportSocket = socket
			own.TransportSocketMatches = nil
			return made{message: own, children: edsName(own), uses: uses}, nil
		}
		timeout := time.Duration(n.Resolver.ConnectTimeout)
		if timeout <= 0 {
			timeout = 5 * time.Second
		}
		cluster := &clusterv3.Cluster{
			Name:                 name,
			AltStatName:          name,
			ConnectTimeout:       durationpb.New(timeout),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: b.ads()},
			CommonLbConfig:       &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}},
			CircuitBreakers:      breakers(u.Config.Limits),
			OutlierDetection:     b.outliers(u.Config.PassiveHealthCheck),
			TransportSocket:      socket,
		}
		if b.http2(c.Protocol) {
			cluster.TypedExtensionProtocolOptions = http2Options()
		}
		balance(cluster, n.LoadBalancer)
		return made{message: cluster, children: []string{name}, uses: uses}, nil
	})
	if err != nil {
		return err
	}
	children := b.out.byType[Cluster][name].Children
	if len(children) == 0 {
		return nil // a custom cluster with hosts of its own
	}
	assignment := children[0]
	instances := b.s.Instances(t)
	if instances == nil {
		return nil // the proxy waits for it
	}
	return b.add(Endpoint, assignment, []any{instances, t.Subset.OnlyPassing, t.Datacenter == b.s.Proxy.Datacenter}, func() (made, error) {
		return made{message: b.assignment(assignment, t, instances)}, nil
	})
}

// assignment returns the instances of a target as hosts. It has one group even when there are none: a proxy waits for
// an assignment, not for an empty one.
func (b *build) assignment(name string, t *chain.Target, instances *catalog.InstancesReply) *endpointv3.ClusterLoadAssignment {
	group := &endpointv3.LocalityLbEndpoints{}
	for _, i := range instances.Instances {
		addr := b.address(i, t.Datacenter != b.s.Proxy.Datacenter)
		if addr == nil {
			continue
		}
		health, weight := condition(i, t.Subset.OnlyPassing)
		h := host(addr)
		h.HealthStatus = health
		h.LoadBalancingWeight = wrapperspb.UInt32(weight)
		group.LbEndpoints = append(group.LbEndpoints, h)
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{group}}
}

// address returns where an instance is reached, nil if a proxy cannot: hosts of an assignment have addresses, not names.
func (b *build) address(i *catalog.Instance, remote bool) *corev3.Address {
	s, n := i.Service, i.Node
	if s.Port == 0 && s.SocketPath != "" {
		if remote || n.Node != b.s.Proxy.Node {
			return nil
		}
		return pipe(s.SocketPath, 0)
	}
	ip, port := s.Address, s.Port
	if ip == "" {
		ip = n.Address
	}
	if remote {
		if wan, ok := s.TaggedAddresses["wan"]; ok && wan.Address != "" {
			ip, port = wan.Address, wan.Port
		} else if wan := n.TaggedAddresses["wan"]; wan != "" && s.Address == "" {
			ip = wan
		}
	}
	if _, err := netip.ParseAddr(ip); err != nil || port <= 0 || port > math.MaxUint16 {
		return nil
	}
	return socket(ip, port)
}

// condition returns the health and weight of an instance.
func condition(i *catalog.Instance, onlyPassing bool) (corev3.HealthStatus, uint32) {
	healthy, warning := true, false
	for _, c := range i.Checks {
		switch {
		case c.Status == catalog.Critical, onlyPassing && c.Status != catalog.Passing:
			healthy = false
		case c.Status == catalog.Warning:
			warning = true
		}
	}
	weight := 1
	if w := i.Service.Weights; w != nil {
		weight = w.Passing
		if warning {
			weight = w.Warning
		}
	}
	if weight < 1 {
		healthy, weight = false, 1
	}
	if !healthy {
		return corev3.HealthStatus_UNHEALTHY, uint32(min(weight, 128))
	}
	return corev3.HealthStatus_HEALTHY, uint32(min(weight, 128))
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
