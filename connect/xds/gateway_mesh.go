package xds

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// meshGateway makes everything of a mesh gateway (spec/xds.md section 11): it leads connections between datacenters by the
// names their clients ask for, and cannot look into them.
func (b *build) meshGateway() error {
	resolvers := b.s.Resolvers()
	for _, service := range b.s.Gateway.Services {
		if err := b.localService(service, resolvers[service]); err != nil {
			b.problem("service %s: %w", service, err)
		}
	}
	var elsewhere []string
	for _, dc := range b.s.Gateway.Datacenters {
		name := connect.DatacenterSNI(dc, b.trustDomain)
		gateways := b.s.MeshGateways(dc)
		if gateways == nil {
			continue
		}
		if err := b.passCluster(name, nil, &reach{instances: gateways, remote: true}); err != nil {
			b.problem("datacenter %s: %w", dc, err)
			continue
		}
		elsewhere = append(elsewhere, dc)
	}
	exports, err := b.meshExports()
	if err != nil {
		return err
	}
	imports, err := b.meshImports()
	if err != nil {
		return err
	}
	servers, err := b.serversCluster()
	if err != nil {
		return err
	}
	for _, bind := range b.bindable() {
		name := listenerName(bind.Name, bind.Address, bind.Port)
		from := append([]any{b.s.Proxy, b.trustDomain, servers}, b.exportsFrom(exports)...)
		for _, suffix := range imports {
			from = append(from, suffix)
		}
		for _, dc := range elsewhere {
			from = append(from, dc)
		}
		err := b.add(Listener, name, from, func() (made, error) {
			e := &edge{name: name, ip: bind.Address, port: bind.Port, inspect: true}
			for _, x := range exports {
				if err := b.exportChain(e, x, bind.Name); err != nil {
					return made{}, err
				}
			}
			for _, dc := range elsewhere {
				cluster := connect.DatacenterSNI(dc, b.trustDomain)
				e.chains = append(e.chains, &listenerv3.FilterChain{
					FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: []string{"*." + cluster}},
					Filters:          []*listenerv3.Filter{b.tcpProxy(cluster, statPrefix("mesh_gateway_remote.", bind.Name+"."+dc))},
				})
				e.uses = append(e.uses, ref{Cluster, cluster})
			}
			if len(imports) > 0 {
				e.chains = append(e.chains, b.toServerName(statPrefix("mesh_gateway_remote_peered.", bind.Name), imports...))
			}
			if servers != "" {
				e.chains = append(e.chains, &listenerv3.FilterChain{
					FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: []string{servers}},
					Filters:          []*listenerv3.Filter{b.tcpProxy(servers, statPrefix("mesh_gateway_local_peering_server.", bind.Name))},
				})
				e.uses = append(e.uses, ref{Cluster, servers})
			}
			prefix := statPrefix("mesh_gateway_local.", bind.Name)
			e.chains = append(e.chains, b.toServerName(prefix, "*."+connect.DatacenterSNI(b.s.Proxy.Datacenter, b.trustDomain)), b.notServed(prefix))
			m := b.edge(e)
			m.message.(*listenerv3.Listener).TrafficDirection = corev3.TrafficDirection_UNSPECIFIED
			return m, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// localService makes the clusters of a service here and of its subsets. The default subset stands for the service.
func (b *build) localService(service string, r *entry.ServiceResolver) error {
	all := b.s.Local(service, "")
	if all == nil || len(all.Instances) == 0 {
		return nil // it is not in the mesh
	}
	add := func(subset string, s entry.ServiceSubset) error {
		name := connect.ServiceSNI(subset, service, b.s.Proxy.Datacenter, b.trustDomain)
		return b.passCluster(name, r, &reach{instances: b.s.Local(service, s.Filter), onlyPassing: s.OnlyPassing})
	}
	if r == nil {
		return add("", entry.ServiceSubset{})
	}
	if err := add("", r.Subsets[r.DefaultSubset]); err != nil {
		return err
	}
	for _, name := range sortedKeys(r.Subsets) {
		if err := add(name, r.Subsets[name]); err != nil {
			return err
		}
	}
	return nil
}

// passCluster makes a cluster that connections are passed on to as they are, and its load assignment.
func (b *build) passCluster(name string, r *entry.ServiceResolver, to *reach) error {
	dns := b.dnsHost(to)
	limits := b.gatewayLimits()
	own := b.s.Entry(entry.KindServiceDefaults, b.s.Proxy.Service.Service)
	err := b.add(Cluster, name, []any{b.s.Proxy, r, own, to.remote, dns}, func() (made, error) {
		cfg := &b.s.Gateway.Config
		c := &clusterv3.Cluster{
			Name:                 name,
			ConnectTimeout:       durationpb.New(milliseconds(cfg.ConnectTimeoutMs)),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: b.ads()},
			OutlierDetection:     b.outliers(nil),
		}
		if limits != nil {
			c.CircuitBreakers = breakers(limits)
		}
		if r != nil {
			if t := time.Duration(r.ConnectTimeout); t > 0 {
				c.ConnectTimeout = durationpb.New(t)
			}
			if !r.LoadBalancer.Hashes() { // of a connection there is nothing to hash
				balance(c, r.LoadBalancer)
			}
		}
		if dns != (dnsHost{}) {
			dns.put(c)
			if cfg.DNSDiscovery == mesh.StrictDNS {
				c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
			}
		}
		if to.remote && cfg.Keepalive {
			c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
				KeepaliveTime: positive(cfg.KeepaliveTime), KeepaliveInterval: positive(cfg.KeepaliveInterval), KeepaliveProbes: positive(cfg.KeepaliveProbes),
			}}
		}
		return made{message: c, children: edsName(c)}, nil
	})
	if err != nil || len(b.out.byType[Cluster][name].Children) == 0 {
		return err
	}
	return b.assignment(name, to)
}

func positive(n int) *wrapperspb.UInt32Value {
	if n <= 0 {
		return nil
	}
	return wrapperspb.UInt32(uint32(n))
}

// gatewayLimits returns the limits that the defaults of the gateway's own service set for its upstreams, nil for none.
func (b *build) gatewayLimits() *mesh.Limits {
	d, _ := b.s.Entry(entry.KindServiceDefaults, b.s.Proxy.Service.Service).(*entry.ServiceDefaults)
	if d == nil || d.UpstreamConfig == nil || d.UpstreamConfig.Defaults == nil || d.UpstreamConfig.Defaults.Limits == nil {
		return nil
	}
	l := d.UpstreamConfig.Defaults.Limits
	number := func(n *int) *uint32 {
		if n == nil || *n < 0 {
			return nil
		}
		v := uint32(*n)
		return &v
	}
	return &mesh.Limits{
		MaxConnections: number(l.MaxConnections), MaxPendingRequests: number(l.MaxPendingRequests), MaxConcurrentRequests: number(l.MaxConcurrentRequests),
	}
}
