package xds

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sarnmesh/sarn/catalog"
)

// exposedPrefix begins the names of clusters of other ports of the application's.
const exposedPrefix = "exposed_cluster_"

// exposed makes the listeners for paths of the application that are reachable without mutual TLS.
func (b *build) exposed() error {
	p := &b.s.Proxy.Service.Proxy
	paths := slices.Concat(p.Expose.Paths, b.s.Proxy.Checks)
	for i := range paths {
		path := &paths[i]
		if path.ListenerPort <= 0 || path.ListenerPort > math.MaxUint16 || !strings.HasPrefix(path.Path, "/") {
			b.problem("exposed path %q on port %d is not valid", path.Path, path.ListenerPort)
			continue
		}
		cluster, err := b.exposedCluster(path)
		if err != nil {
			return err
		}
		if err := b.exposedListener(path, cluster); err != nil {
			return err
		}
	}
	return nil
}

// exposedCluster returns the cluster behind an exposed path, made if it is another port of the application's.
func (b *build) exposedCluster(path *catalog.ExposePath) (string, error) {
	p := &b.s.Proxy.Service.Proxy
	if path.LocalPathPort == 0 || path.LocalPathPort == p.LocalServicePort {
		return localApp, nil
	}
	name := exposedPrefix + strconv.Itoa(path.LocalPathPort)
	return name, b.add(Cluster, name, []any{b.s.Proxy, path.Protocol}, func() (made, error) {
		ip := p.LocalServiceAddress
		if ip == "" {
			ip = "127.0.0.1"
		}
		c := &clusterv3.Cluster{
			Name:                 name,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			ConnectTimeout:       durationpb.New(time.Duration(b.s.Config.LocalConnectTimeoutMs) * time.Millisecond),
			LoadAssignment: &endpointv3.ClusterLoadAssignment{
				ClusterName: name,
				Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{host(socket(ip, path.LocalPathPort))}}},
			},
		}
		if path.Protocol == "http2" {
			c.TypedExtensionProtocolOptions = http2Options()
		}
		return made{message: c}, nil
	})
}

func (b *build) exposedListener(path *catalog.ExposePath, cluster string) error {
	ip := b.s.Proxy.Service.Address
	if _, err := netip.ParseAddr(ip); err != nil {
		ip = "0.0.0.0"
	}
	stripped := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, path.Path)
	name := listenerName("exposed_path_"+stripped, ip, path.ListenerPort)
	return b.add(Listener, name, []any{b.s.Proxy, *path, cluster}, func() (made, error) {
		filterName := fmt.Sprintf("exposed_path_filter_%s_%d", stripped, path.ListenerPort)
		rc := inlineRoute(filterName, filterName, &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		})
		rc.VirtualHosts[0].Routes[0].Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: path.Path}}
		protocol := path.Protocol
		if protocol == "" {
			protocol = "http"
		}
		m := b.manager(protocol, statPrefix("", filterName), &routeSource{inline: rc}, nil)
		return made{uses: []ref{{Cluster, cluster}}, message: &listenerv3.Listener{
			Name:             name,
			Address:          socket(ip, path.ListenerPort),
			TrafficDirection: corev3.TrafficDirection_INBOUND,
			AccessLog:        b.listenerLogs(),
			FilterChains: []*listenerv3.FilterChain{{
				FilterChainMatch: b.checkers(path),
				Filters:          []*listenerv3.Filter{filter(filterHCM, m)},
			}},
		}}, nil
	})
}

// checkers matches those who may use a path: for one of a check that is the agent on its machine, otherwise anybody.
func (b *build) checkers(path *catalog.ExposePath) *listenerv3.FilterChainMatch {
	if !path.ParsedFromCheck {
		return nil
	}
	from := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	match := &listenerv3.FilterChainMatch{}
	for _, p := range append(from, hostPrefixes([]string{b.s.Proxy.AgentAddress})...) {
		match.SourcePrefixRanges = append(match.SourcePrefixRanges, cidr(p))
	}
	return match
}
