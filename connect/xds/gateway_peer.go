package xds

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// exportedPrefix begins the names of the clusters of services that a mesh gateway serves to peers itself.
const exportedPrefix = "exported~"

// A meshExport is a service that peers reach through a mesh gateway.
type meshExport struct {
	*mesh.ExportedService
	names   []string // server names that the peers ask for
	cluster string   // that connections are passed on to, empty where requests are served
	fronted          // where requests are served
	// trust has the authorities of the peers that may send requests, by their trust domains.
	trust map[string]*corev3.DataSource
}

// meshExports lists the services that can be led to, and makes their clusters and routes. Connections are passed on as they
// are; requests are served with the gateway's own certificate, which says in a header who sent them.
func (b *build) meshExports() ([]*meshExport, error) {
	var out []*meshExport
	for i := range b.s.Gateway.Exports {
		x := &meshExport{ExportedService: &b.s.Gateway.Exports[i]}
		for _, peer := range x.Peers {
			x.names = append(x.names, connect.PeeredServiceSNI(x.Service, peer, b.trustDomain))
		}
		if x.Upstream == nil {
			x.cluster = connect.ServiceSNI("", x.Service, b.s.Proxy.Datacenter, b.trustDomain)
			if b.out.byType[Cluster][x.cluster] != nil {
				out = append(out, x)
			}
			continue
		}
		x.trust = map[string]*corev3.DataSource{}
		for _, p := range b.s.Callers() {
			if slices.Contains(x.Peers, p.Peer) {
				x.trust[strings.ToLower(p.TrustDomain)] = peerCA(p)
			}
		}
		f, ok := b.front(x.Upstream, x.Protocol)
		if !ok || b.s.Leaf() == nil || len(x.trust) == 0 {
			continue
		}
		x.fronted = f
		if err := b.exportRoutes(x); err != nil {
			b.problem("exported service %s: %w", x.Service, err)
			continue
		}
		out = append(out, x)
	}
	return out, nil
}

// exportRoutes makes the routes of a service that peers send requests to.
func (b *build) exportRoutes(x *meshExport) error {
	return b.add(Route, x.Service, x.from(b), func() (made, error) {
		r := &chainRouter{b: b, c: x.chain}
		routes, err := r.start()
		if err != nil {
			return made{}, err
		}
		return made{uses: r.uses, message: &routev3.RouteConfiguration{
			Name:         x.Service,
			VirtualHosts: []*routev3.VirtualHost{{Name: x.Service, Domains: []string{"*"}, Routes: routes}},
		}}, nil
	})
}

// exportsFrom lists what the chains of exports are made from, for add.
func (b *build) exportsFrom(exports []*meshExport) []any {
	var from []any
	requests := false
	for _, x := range exports {
		from = append(from, x.Service, x.Protocol, x.cluster)
		for _, n := range x.names {
			from = append(from, n)
		}
		requests = requests || x.cluster == ""
	}
	if requests {
		from = append(append(from, b.trustFrom()...), b.callersFrom()...)
	}
	return from
}

// exportChain adds the filter chain of an export to a listener.
func (b *build) exportChain(e *edge, x *meshExport, bind string) error {
	c := &listenerv3.FilterChain{FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: x.names}}
	prefix := statPrefix("mesh_gateway_local_peered.", x.Service+".default.default."+b.s.Proxy.Datacenter)
	e.chains = append(e.chains, c)
	if x.cluster != "" {
		c.Filters = []*listenerv3.Filter{b.tcpProxy(x.cluster, prefix)}
		e.uses = append(e.uses, ref{Cluster, x.cluster})
		return nil
	}
	var uses []ref
	var err error
	if c.TransportSocket, uses, err = b.downstreamTLSFor(x.Protocol, x.trust); err != nil {
		return fmt.Errorf("exported service %s: %w", x.Service, err)
	}
	e.uses = append(e.uses, uses...)
	e.routes = append(e.routes, x.Service)
	m := b.outboundManager(x.Protocol, prefix, &routeSource{name: x.Service})
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: wrapperspb.Bool(true), Cert: true, Chain: true, Dns: true, Uri: true,
	}
	c.Filters = []*listenerv3.Filter{filter(filterHCM, m)}
	return nil
}

// meshImports makes the clusters of services of peers, named as their callers ask for them, and returns the suffixes of
// those names, in order. Connections are passed on to the peers' gateways as they are.
func (b *build) meshImports() ([]string, error) {
	var suffixes []string
	for _, i := range b.s.Gateway.Imports {
		instances := b.s.Imported(i.Service, i.Peer)
		m := metaOf(instances)
		if m == nil {
			continue
		}
		rest, ok := strings.CutPrefix(m.SNI[0], i.Service+".")
		if !ok || strings.HasSuffix(strings.ToLower(rest), "."+b.trustDomain) {
			continue
		}
		if err := b.passCluster(m.SNI[0], nil, &reach{instances: instances, remote: true}); err != nil {
			b.problem("service %s of peer %s: %w", i.Service, i.Peer, err)
			continue
		}
		if suffix := "*." + rest; !slices.Contains(suffixes, suffix) {
			suffixes = append(suffixes, suffix)
		}
	}
	slices.Sort(suffixes)
	return suffixes, nil
}

// serversCluster makes the cluster of the servers, for peers that call through mesh gateways, and returns its name, which
// is the server name they ask for; empty when they do not.
func (b *build) serversCluster() (string, error) {
	servers := b.s.Servers()
	if servers == nil {
		return "", nil
	}
	name := connect.PeeringServerSNI(b.s.Proxy.Datacenter, b.trustDomain)
	group := &endpointv3.LocalityLbEndpoints{}
	from := []any{b.s.Proxy}
	for _, i := range servers.Instances {
		ip, _ := addressOf(i, false)
		port, err := strconv.Atoi(i.Service.Meta["grpc_tls_port"])
		if _, aerr := netip.ParseAddr(ip); err != nil || aerr != nil || !validPort(port) || i.Service.Meta["read_replica"] == "true" {
			continue
		}
		from = append(from, ip, port)
		group.LbEndpoints = append(group.LbEndpoints, host(socket(ip, port)))
	}
	if len(group.LbEndpoints) == 0 {
		return "", nil
	}
	return name, b.add(Cluster, name, from, func() (made, error) {
		return made{message: &clusterv3.Cluster{
			Name: name, ConnectTimeout: durationpb.New(milliseconds(b.s.Gateway.Config.ConnectTimeoutMs)),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, OutlierDetection: b.outliers(nil),
			LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{group}},
		}}, nil
	})
}
