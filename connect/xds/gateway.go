package xds

import (
	"math"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	sniclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

const filterSNICluster = "envoy.filters.network.sni_cluster"

// gateway makes what a gateway has besides what belongs to its upstreams, which are there already.
func (b *build) gateway() error {
	b.out.Problems = append(b.out.Problems, b.s.Gateway.Problems...)
	b.out.MayBeEmpty[Cluster] = true
	switch b.s.Proxy.Service.Kind {
	case catalog.KindIngressGateway, catalog.KindAPIGateway:
		b.out.MayBeEmpty[Listener], b.out.MayBeEmpty[Route] = true, true
	}
	if err := b.gatewaySecrets(); err != nil {
		return err
	}
	switch b.s.Proxy.Service.Kind {
	case catalog.KindTerminatingGateway:
		return b.terminating()
	case catalog.KindIngressGateway:
		return b.ingress()
	case catalog.KindAPIGateway:
		return b.api()
	case catalog.KindMeshGateway:
		return b.meshGateway()
	}
	return ErrKind
}

// gatewaySecrets makes the secrets of flavour Own that there are: a terminating gateway has no certificate of its own.
func (b *build) gatewaySecrets() error {
	if b.flavour != Own {
		return nil
	}
	if b.s.Leaf() != nil {
		return b.secrets()
	}
	return b.add(Secret, RootsSecret, []any{b.s.Roots()}, func() (made, error) {
		return made{message: &tlsv3.Secret{
			Name: RootsSecret,
			Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: b.trustedCA()}},
		}}, nil
	})
}

// A shown is the certificates a listener shows, in the form a TLS context has them.
type shown struct {
	inline []*tlsv3.TlsCertificate
	sds    []*tlsv3.SdsSecretConfig
	uses   []ref
}

func (s *shown) add(o shown) {
	s.inline = append(s.inline, o.inline...)
	s.sds = append(s.sds, o.sds...)
	s.uses = append(s.uses, o.uses...)
}

// showLeaf shows a certificate of the mesh, which flavour Own has as a secret with this name.
func (b *build) showLeaf(name string, l *ca.Leaf) (shown, error) {
	certificate := &tlsv3.TlsCertificate{CertificateChain: inline(line(l.CertPEM)), PrivateKey: inline(line(l.PrivateKeyPEM))}
	if b.flavour != Own {
		return shown{inline: []*tlsv3.TlsCertificate{certificate}}, nil
	}
	return b.showSecret(name, []any{l}, certificate)
}

// showSecret makes a certificate a resource of its own, and shows it by its name.
func (b *build) showSecret(name string, from []any, certificate *tlsv3.TlsCertificate) (shown, error) {
	err := b.add(Secret, name, from, func() (made, error) {
		return made{message: &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: certificate}}}, nil
	})
	return shown{sds: []*tlsv3.SdsSecretConfig{b.sds(name)}, uses: []ref{{Secret, name}}}, err
}

// edgeTLS returns the transport socket of a listener for callers outside the mesh, who need no certificate.
func (b *build) edgeTLS(params *entry.TLSParameters, protocol string, certificates shown) (*corev3.TransportSocket, error) {
	p, err := tlsParameters(params)
	if err != nil {
		return nil, err
	}
	return tlsSocket(&tlsv3.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(false),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams: p, TlsCertificates: certificates.inline, TlsCertificateSdsSecretConfigs: certificates.sds, AlpnProtocols: b.alpn(protocol),
		},
	}), nil
}

// alpn returns the protocols offered inside TLS.
func (b *build) alpn(protocol string) []string {
	switch {
	case isHTTP2(protocol):
		return []string{"h2", "http/1.1"}
	case isHTTP(protocol):
		return []string{"http/1.1"}
	}
	return nil
}

// An edge is a listener of a gateway while it is put together.
type edge struct {
	name, ip string
	port     int
	inspect  bool // look at the server name that clients ask for
	chains   []*listenerv3.FilterChain
	routes   []string
	uses     []ref
}

// made puts the listener together.
func (b *build) edge(e *edge) made {
	l := &listenerv3.Listener{
		Name:             e.name,
		Address:          socket(e.ip, e.port),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		AccessLog:        b.listenerLogs(),
		FilterChains:     e.chains,
	}
	if e.inspect {
		l.ListenerFilters = []*listenerv3.ListenerFilter{{
			Name:       filterTLSInspector,
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: mustPack(&tlsinspectorv3.TlsInspector{})},
		}}
	}
	return made{message: l, children: e.routes, uses: e.uses}
}

// addresses lists the IP addresses an ingress or API gateway listens at; its entry says at which ports.
func (b *build) addresses() []string {
	var out []string
	for _, bind := range b.s.Gateway.Binds {
		if !slices.Contains(out, bind.Address) {
			out = append(out, bind.Address)
		}
	}
	// All addresses of the machine include the others.
	for _, any := range []string{"0.0.0.0", "::"} {
		if slices.Contains(out, any) {
			same := netip.MustParseAddr(any).Is4()
			out = slices.DeleteFunc(out, func(ip string) bool { return ip != any && netip.MustParseAddr(ip).Is4() == same })
		}
	}
	return out
}

// bindable lists the addresses a mesh or terminating gateway listens at.
func (b *build) bindable() []mesh.Bind {
	var out []mesh.Bind
	for _, bind := range b.s.Gateway.Binds {
		if bind.Port <= 0 || bind.Port > math.MaxUint16 {
			b.problem("bind address %s has no port from 1 to 65535", bind.Name)
			continue
		}
		out = append(out, bind)
	}
	return out
}

// noCluster is the name of a cluster that never exists.
const noCluster = "none.invalid"

// notServed is the filter chain for connections that no other chain wants: they are accepted, so that a health check sees
// that somebody listens, and closed.
func (b *build) notServed(prefix string) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{Filters: []*listenerv3.Filter{b.tcpProxy(noCluster, prefix)}}
}

// toServerName is the filter chain that leads connections to the clusters their clients name. Suffixes bound which these
// can be: the proxy has clusters of its own, too.
func (b *build) toServerName(prefix string, suffixes ...string) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: suffixes},
		Filters:          []*listenerv3.Filter{filter(filterSNICluster, &sniclusterv3.SniCluster{}), b.tcpProxy("", prefix)},
	}
}

// A fronted is a service behind a listener of an ingress or API gateway that can be served.
type fronted struct {
	upstream *mesh.Upstream
	chain    *chain.Chain
}

// front returns a service that can be served with a protocol, false while something about it is missing.
func (b *build) front(u *mesh.Upstream, protocol string) (fronted, bool) {
	c := b.s.Chain(u)
	if c == nil {
		return fronted{}, false
	}
	if isHTTP(protocol) && !isHTTP(c.Protocol) {
		b.problem("service %s: its protocol is %s, that of the listener %s", u.ID, c.Protocol, protocol)
		return fronted{}, false
	}
	// What could not be made of a service was told already.
	for _, n := range c.Nodes {
		if n == nil || n.Type != chain.Resolver {
			continue
		}
		t, err := primary(c, n)
		if err != nil {
			return fronted{}, false
		}
		name, err := b.clusterName(c, t)
		if err != nil || b.out.byType[Cluster][name] == nil {
			return fronted{}, false
		}
	}
	return fronted{u, c}, true
}

// from lists what is made from the service, for add.
func (f fronted) from(b *build) []any {
	return append([]any{f.upstream, f.chain}, b.peersFrom(f.chain)...)
}

// lead returns the filter that leads connections to a service.
func (b *build) frontLead(f fronted) (*lead, error) {
	c := f.chain
	cluster, err := b.startCluster(f.upstream, c)
	if err != nil {
		return nil, err
	}
	prefix := statPrefix("upstream.", c.ServiceName+"."+c.Namespace+"."+c.Partition+"."+c.Datacenter)
	return &lead{filter: b.tcpProxy(cluster, prefix), uses: []ref{{Cluster, cluster}}}, nil
}

// edgeManager serves requests from outside the mesh.
func (b *build) edgeManager(protocol, prefix, routes string) *hcmv3.HttpConnectionManager {
	return b.outboundManager(protocol, prefix, &routeSource{name: routes})
}

// domains returns the forms in which clients may ask for hosts on a port. Each is in one virtual host at most: taken has
// those that are in another one.
func domains(hosts []string, port string, taken map[string]bool) []string {
	var out []string
	add := func(d string) {
		if key := strings.ToLower(d); !taken[key] {
			taken[key] = true
			out = append(out, d)
		}
	}
	for _, h := range hosts {
		add(h)
		if h != entry.Wildcard && !strings.Contains(h, ":") {
			add(h + ":" + port)
		}
	}
	return out
}
