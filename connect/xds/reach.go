//lint:file-ignore SA1019 older Envoys know only the older fields

package xds

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// A reach is how instances are reached: who they must turn out to be, and where they are.
type reach struct {
	sni   string
	names []string         // SPIFFE IDs, one of which the other side must have
	peer  *mesh.PeerBundle // whose roots are trusted, nil for the proxy's own

	instances   *catalog.InstancesReply // nil while they are not known
	onlyPassing bool                    // instances with warnings are not fit
	remote      bool                    // they are reached from outside their network
	// via is set when mesh gateways stand for the instances; then gateways are those, nil while they are not known.
	via           bool
	gateways      *catalog.InstancesReply
	gatewayRemote bool
}

// reachTarget returns how a target of a chain is reached. It fails while too little is known of a peer.
func (b *build) reachTarget(t *chain.Target) (*reach, error) {
	if t.Peer != "" {
		return b.reachPeer(t.Service, t.Peer, t.MeshGateway.Mode)
	}
	r := &reach{
		sni: t.SNI, names: []string{connect.ServiceID(b.trustDomain, t.Datacenter, t.Service).String()},
		instances: b.s.Instances(t), onlyPassing: t.Subset.OnlyPassing, remote: t.Datacenter != b.s.Proxy.Datacenter,
	}
	if r.gateways, r.via = b.s.Gateways(t); r.via {
		r.gatewayRemote = t.MeshGateway.Mode != mesh.GatewayLocal
	}
	return r, nil
}

// peerMeta is what a peer tells about a service with each of its instances.
type peerMeta struct {
	SNI      []string
	SpiffeID []string
	Protocol string
}

// metaOf returns what a peer tells about a service, nil if nothing of use.
func metaOf(instances *catalog.InstancesReply) *peerMeta {
	if instances == nil {
		return nil
	}
	for _, i := range instances.Instances {
		m := new(peerMeta)
		if len(i.Service.Connect.PeerMeta) > 0 && json.Unmarshal(i.Service.Connect.PeerMeta, m) == nil && len(m.SNI) > 0 && len(m.SpiffeID) > 0 {
			return m
		}
	}
	return nil
}

var errPeerUnknown = errors.New("its trust bundle or its instances are not known")

// reachPeer returns how a service imported from a peer is reached: its instances are the mesh gateways of the peer.
func (b *build) reachPeer(service, peer, mode string) (*reach, error) {
	bundle, instances := b.s.Peer(peer), b.s.Imported(service, peer)
	m := metaOf(instances)
	if bundle == nil || len(bundle.RootPEMs) == 0 || m == nil {
		return nil, fmt.Errorf("peer %s: %w", peer, errPeerUnknown)
	}
	r := &reach{sni: m.SNI[0], names: m.SpiffeID, peer: bundle, instances: instances, remote: true}
	if gateways := b.s.MeshGateways(""); mode == mesh.GatewayLocal && gateways != nil {
		r.via, r.gateways = true, gateways
	}
	return r, nil
}

// peerCluster returns the name of the cluster of an imported service.
func peerCluster(service string, bundle *mesh.PeerBundle) string {
	return service + ".default." + bundle.Peer + ".external." + bundle.TrustDomain
}

// A place is where an instance, or the gateway that stands for it, is.
type place struct {
	instance *catalog.Instance
	remote   bool
	health   corev3.HealthStatus
	weight   uint32
}

// places lists the places of all instances; nil while they are not known.
func (r *reach) places() []place {
	if r.instances == nil || r.via && r.gateways == nil {
		return nil
	}
	if !r.via {
		out := make([]place, len(r.instances.Instances))
		for n, i := range r.instances.Instances {
			health, weight := condition(i, r.onlyPassing)
			out[n] = place{i, r.remote, health, weight}
		}
		return out
	}
	// The gateways are as fit as the best instance behind them.
	fit := corev3.HealthStatus_UNHEALTHY
	for _, i := range r.instances.Instances {
		if h, _ := condition(i, r.onlyPassing); h == corev3.HealthStatus_HEALTHY {
			fit = h
			break
		}
	}
	out := make([]place, len(r.gateways.Instances))
	for n, i := range r.gateways.Instances {
		_, weight := condition(i, false)
		out[n] = place{i, r.gatewayRemote, fit, weight}
	}
	return out
}

// assignment makes the load assignment of what is reached, once its places are known. It has one group even when there
// are none: a proxy waits for an assignment, not for an empty one.
func (b *build) assignment(name string, r *reach) error {
	if r.instances == nil || r.via && r.gateways == nil {
		return nil
	}
	key := assignmentKey{
		name: name, instances: r.instances, gateways: r.gateways, onlyPassing: r.onlyPassing, remote: r.remote, gatewayRemote: r.gatewayRemote,
		proxyless: b.flavour == Proxyless, node: b.socketNode(r),
	}
	if b.shared == nil || !b.extensions.empty() {
		return b.add(Endpoint, name, []any{key}, func() (made, error) { return made{message: b.places(key, r)}, nil })
	}
	return b.addResource(Endpoint, name, []any{key}, func() (*Resource, error) { return b.sharedAssignment(key, r) })
}

// sharedAssignment returns the load assignment that all proxies share whose assignments are made from the same things.
func (b *build) sharedAssignment(key assignmentKey, r *reach) (*Resource, error) {
	return b.shared.assignment(key, func() (*Resource, error) { return NewResource(key.name, b.places(key, r)) })
}

// places makes a load assignment.
func (b *build) places(key assignmentKey, r *reach) *endpointv3.ClusterLoadAssignment {
	group := &endpointv3.LocalityLbEndpoints{}
	if key.proxyless {
		proxylessGroup(group)
	}
	for _, p := range r.places() {
		addr := b.address(p.instance, p.remote)
		if addr == nil || key.proxyless && addr.GetSocketAddress() == nil {
			continue
		}
		h := host(addr)
		h.HealthStatus, h.LoadBalancingWeight = p.health, wrapperspb.UInt32(p.weight)
		group.LbEndpoints = append(group.LbEndpoints, h)
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: key.name, Endpoints: []*endpointv3.LocalityLbEndpoints{group}}
}

// socketNode returns the node whose sockets can be reached among instances, empty when there are none.
func (b *build) socketNode(r *reach) string {
	if !r.remote && slices.ContainsFunc(r.instances.Instances, onSocket) {
		return b.s.Proxy.Node
	}
	return ""
}

// onSocket reports whether an instance listens on a socket that only its own node sees.
func onSocket(i *catalog.Instance) bool { return i.Service.Port == 0 && i.Service.SocketPath != "" }

// An assignmentKey is everything a load assignment is made from.
type assignmentKey struct {
	name                               string
	instances, gateways                *catalog.InstancesReply
	onlyPassing, remote, gatewayRemote bool
	proxyless                          bool   // for flavour Proxyless
	node                               string // whose sockets can be reached, empty when there are none
}

// reach returns how what an assignment was made from is reached, as far as the assignment depends on it.
func (k *assignmentKey) reach() *reach {
	return &reach{
		instances: k.instances, gateways: k.gateways, via: k.gateways != nil, onlyPassing: k.onlyPassing, remote: k.remote,
		gatewayRemote: k.gatewayRemote,
	}
}

// addressOf returns the address and port of an instance, of which the address may be a name or empty.
func addressOf(i *catalog.Instance, remote bool) (string, int) {
	s, n := i.Service, i.Node
	addr, port := s.Address, s.Port
	if addr == "" {
		addr = n.Address
	}
	if remote {
		if wan, ok := s.TaggedAddresses["wan"]; ok && wan.Address != "" {
			return wan.Address, wan.Port
		}
		if wan := n.TaggedAddresses["wan"]; wan != "" && s.Address == "" {
			addr = wan
		}
	}
	return addr, port
}

func validPort(port int) bool { return port > 0 && port <= math.MaxUint16 }

// address returns where an instance is reached, nil if a proxy cannot: hosts of an assignment have addresses, not names.
func (b *build) address(i *catalog.Instance, remote bool) *corev3.Address {
	if onSocket(i) {
		if remote || i.Node.Node != b.s.Proxy.Node {
			return nil
		}
		return pipe(i.Service.SocketPath, 0)
	}
	ip, port := addressOf(i, remote)
	if _, err := netip.ParseAddr(ip); err != nil || !validPort(port) {
		return nil
	}
	return socket(ip, port)
}

// A dnsHost is a host by its name.
type dnsHost struct {
	name   string
	port   int
	health corev3.HealthStatus
}

// dnsHost returns the host that stands for all places when none has an address, but some have names: the first that is
// healthy, else the last. The zero value means that an assignment can be made.
func (b *build) dnsHost(r *reach) dnsHost {
	var found dnsHost
	for _, p := range r.places() {
		if b.address(p.instance, p.remote) != nil {
			return dnsHost{}
		}
		name, port := addressOf(p.instance, p.remote)
		if found.health == corev3.HealthStatus_HEALTHY || !isHostname(name) || !validPort(port) {
			continue
		}
		found = dnsHost{name, port, p.health}
	}
	return found
}

// put makes the host that of a cluster.
func (d dnsHost) put(c *clusterv3.Cluster) {
	h := host(socket(d.name, d.port))
	h.HealthStatus = d.health
	c.EdsClusterConfig = nil
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS}
	c.DnsLookupFamily = clusterv3.Cluster_V4_ONLY
	c.DnsRefreshRate = durationpb.New(10 * time.Second)
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{
		ClusterName: c.Name, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{h}}},
	}
}

// isHostname reports whether s could be a DNS name.
func isHostname(s string) bool {
	if s == "" || len(s) > 253 || strings.HasPrefix(s, ".") || strings.HasPrefix(s, "-") {
		return false
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	})
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

// peerUpstream makes everything for an upstream imported from a peer, once enough is known of it.
func (b *build) peerUpstream(u *mesh.Upstream) error {
	peer, service := u.Spec.DestinationPeer, u.Spec.DestinationName
	r, err := b.reachPeer(service, peer, u.Gateway)
	if errors.Is(err, errPeerUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	protocol := cmp.Or(metaOf(r.instances).Protocol, "tcp")
	name := peerCluster(service, r.peer)
	err = b.cluster(name, []any{u, protocol}, r, func() (*clusterv3.Cluster, error) {
		if u.Config.ClusterJSON != "" {
			return customHatch(u, name)
		}
		c := b.edsCluster(name, u, u.Config.ConnectTimeout())
		c.OutlierDetection = b.outliers(u.Config.PassiveHealthCheck)
		c.OutlierDetection.MaxEjectionPercent = wrapperspb.UInt32(100)
		if isHTTP2(protocol) {
			c.TypedExtensionProtocolOptions = http2Options()
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	filterName := service + ".default." + peer
	lead := func() (*lead, error) {
		return b.clusterLead(u.ID, protocol, statPrefix("upstream_peered.", filterName), filterName, name), nil
	}
	if u.Bound() {
		return b.upstreamListener(u, name+" "+protocol, lead)
	}
	return b.virtual(virtualAddresses(r.instances, ""), lead)
}

// queryUpstream makes everything for an upstream that is a prepared query.
func (b *build) queryUpstream(u *mesh.Upstream) error {
	found := b.s.Found(u)
	dc := cmp.Or(u.Spec.Datacenter, b.s.Proxy.Datacenter)
	sni := connect.QuerySNI(u.Spec.DestinationName, dc, b.trustDomain)
	protocol := cmp.Or(u.Config.Protocol, "tcp")
	if found == nil {
		return nil
	}
	r := &reach{sni: sni}
	r.remote = found.Datacenter != "" && found.Datacenter != b.s.Proxy.Datacenter
	r.instances = &catalog.InstancesReply{Instances: found.Instances}
	for _, i := range found.Instances {
		service := i.Service.Service
		if i.Service.Kind == catalog.KindConnectProxy {
			service = i.Service.Proxy.DestinationServiceName
		}
		r.names = append(r.names, connect.ServiceID(b.trustDomain, cmp.Or(i.Node.Datacenter, found.Datacenter, dc), service).String())
	}
	slices.Sort(r.names)
	r.names = slices.Compact(r.names)
	if len(r.names) == 0 {
		r.names = []string{connect.ServiceID(b.trustDomain, dc, found.Service).String()}
	}
	err := b.cluster(sni, []any{u}, r, func() (*clusterv3.Cluster, error) {
		if u.Config.ClusterJSON != "" {
			return customHatch(u, sni)
		}
		c := b.edsCluster(sni, u, u.Config.ConnectTimeout())
		c.CommonLbConfig = nil
		c.OutlierDetection = b.outliers(u.Config.PassiveHealthCheck)
		if isHTTP2(protocol) {
			c.TypedExtensionProtocolOptions = http2Options()
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	return b.upstreamListener(u, nil, func() (*lead, error) {
		return b.clusterLead(u.ID, protocol, statPrefix("upstream.", u.ID), u.ID, sni), nil
	})
}
