package xds

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// An outlet is one cluster of a terminating gateway: a service or a subset of it, or one address outside.
type outlet struct {
	name        string // of the cluster, and the server name clients ask for
	link        *entry.GatewayService
	protocol    string
	resolver    *entry.ServiceResolver // nil for none
	instances   *catalog.InstancesReply
	onlyPassing bool
	address     string // outside, in place of instances
	port        int
}

// terminating makes everything of a terminating gateway (spec/xds.md section 12). A service is served when everything
// about it is known: above all who may call it.
func (b *build) terminating() error {
	var outlets []*outlet
	for i := range b.s.Gateway.Links {
		link := &b.s.Gateway.Links[i]
		if !b.s.Linked(link.Service.Name) {
			continue
		}
		for _, o := range b.outlets(link) {
			if err := b.outletCluster(o); err != nil {
				b.problem("service %s: %w", link.Service.Name, err)
				continue
			}
			if err := b.outletRoute(o); err != nil {
				b.problem("service %s: %w", link.Service.Name, err)
				continue
			}
			outlets = append(outlets, o)
		}
	}
	slices.SortFunc(outlets, func(x, y *outlet) int { return strings.Compare(x.name, y.name) })
	for _, bind := range b.bindable() {
		if err := b.terminatingListener(bind, outlets); err != nil {
			return err
		}
	}
	return nil
}

// outlets lists the clusters for a linked service, ordered by name but for the service itself, which is first.
func (b *build) outlets(link *entry.GatewayService) []*outlet {
	service, dc := link.Service.Name, b.s.Proxy.Datacenter
	protocol := chain.Protocol(b.s, service)
	if link.ServiceKind == entry.GatewayToDestination {
		d, _ := b.s.Entry(entry.KindServiceDefaults, service).(*entry.ServiceDefaults)
		if d == nil || d.Destination == nil {
			return nil
		}
		var out []*outlet
		for _, a := range d.Destination.Addresses {
			out = append(out, &outlet{
				name: connect.DestinationSNI(a, service, dc, b.trustDomain), link: link, protocol: protocol, address: a, port: d.Destination.Port,
			})
		}
		return out
	}
	var out []*outlet
	r := b.s.Resolver(service)
	add := func(subset string, s entry.ServiceSubset) {
		out = append(out, &outlet{
			name: connect.ServiceSNI(subset, service, dc, b.trustDomain), link: link, protocol: protocol, resolver: r,
			instances: b.s.Plain(service, s.Filter), onlyPassing: s.OnlyPassing,
		})
	}
	if r == nil {
		add("", entry.ServiceSubset{})
		return out
	}
	add("", r.Subsets[r.DefaultSubset])
	for _, name := range sortedKeys(r.Subsets) {
		add(name, r.Subsets[name])
	}
	return out
}

// outletCluster makes the cluster of an outlet and its load assignment.
func (b *build) outletCluster(o *outlet) error {
	r := &reach{instances: o.instances, onlyPassing: o.onlyPassing}
	dns := b.dnsHost(r)
	l := o.link
	from := []any{b.s.Proxy, b.s.Mesh(), o.resolver, o.protocol, o.address, o.port, l.CAFile, l.CertFile, l.KeyFile, l.SNI, dns}
	err := b.add(Cluster, o.name, from, func() (made, error) {
		cfg := &b.s.Gateway.Config
		c := &clusterv3.Cluster{
			Name:             o.name,
			ConnectTimeout:   durationpb.New(milliseconds(cfg.ConnectTimeoutMs)),
			OutlierDetection: b.outliers(nil),
		}
		if o.resolver != nil {
			if t := time.Duration(o.resolver.ConnectTimeout); t > 0 {
				c.ConnectTimeout = durationpb.New(t)
			}
			balance(c, o.resolver.LoadBalancer)
		}
		switch {
		case o.address != "":
			if !validPort(o.port) {
				return made{}, fmt.Errorf("%s has no port", o.address)
			}
			if _, err := netip.ParseAddr(o.address); err != nil {
				dnsHost{name: o.address, port: o.port}.put(c)
				break
			}
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
			c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: o.name, Endpoints: []*endpointv3.LocalityLbEndpoints{
				{LbEndpoints: []*endpointv3.LbEndpoint{host(socket(o.address, o.port))}},
			}}
		case dns != (dnsHost{}):
			dns.put(c)
			if cfg.DNSDiscovery == mesh.StrictDNS {
				c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
			}
		default:
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
			c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: b.ads()}
		}
		if isHTTP2(o.protocol) {
			c.TypedExtensionProtocolOptions = http2Options()
		}
		if l.CAFile != "" {
			var err error
			if c.TransportSocket, err = b.originate(l); err != nil {
				return made{}, err
			}
		}
		return made{message: c, children: edsName(c)}, nil
	})
	if err != nil || len(b.out.byType[Cluster][o.name].Children) == 0 {
		return err
	}
	return b.assignment(o.name, r)
}

// originate returns the transport socket for TLS to a service outside the mesh, by the files of its link.
func (b *build) originate(l *entry.GatewayService) (*corev3.TransportSocket, error) {
	var params *entry.TLSParameters
	if m := b.s.Mesh(); m != nil && m.TLS != nil {
		params = m.TLS.Outgoing
	}
	p, err := tlsParameters(params)
	if err != nil {
		return nil, fmt.Errorf("outgoing TLS parameters: %w", err)
	}
	validation := &tlsv3.CertificateValidationContext{TrustedCa: file(l.CAFile)}
	if l.SNI != "" {
		for _, t := range []tlsv3.SubjectAltNameMatcher_SanType{
			tlsv3.SubjectAltNameMatcher_URI, tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_EMAIL, tlsv3.SubjectAltNameMatcher_IP_ADDRESS,
		} {
			validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
				SanType: t, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: l.SNI}},
			})
		}
	}
	common := &tlsv3.CommonTlsContext{
		TlsParams: p, ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation},
	}
	if l.CertFile != "" {
		common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: file(l.CertFile), PrivateKey: file(l.KeyFile)}}
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: l.SNI}), nil
}

// outletRoute makes the route configuration of an outlet for requests.
func (b *build) outletRoute(o *outlet) error {
	if !isHTTP(o.protocol) {
		return nil
	}
	rewrite := o.link.AutoHostRewrite && o.address == ""
	return b.add(Route, o.name, []any{o.resolver, rewrite}, func() (made, error) {
		action := &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: o.name}}
		if rewrite {
			action.HostRewriteSpecifier = &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: wrapperspb.Bool(true)}
		}
		if r := o.resolver; r != nil {
			if t := time.Duration(r.RequestTimeout); t > 0 {
				action.Timeout = durationpb.New(t)
			}
			action.HashPolicy = hashPolicies(r.LoadBalancer)
		}
		return made{message: inlineRoute(o.name, o.name, action), uses: []ref{{Cluster, o.name}}}, nil
	})
}

// terminatingListener makes the listener that proxies of the mesh connect to, with a filter chain for each outlet.
func (b *build) terminatingListener(bind mesh.Bind, outlets []*outlet) error {
	name := listenerName(bind.Name, bind.Address, bind.Port)
	from := []any{b.s.Proxy, b.s.Mesh(), b.s.Roots()}
	for _, o := range outlets {
		service := o.link.Service.Name
		from = append(from, o.name, o.protocol, b.s.LinkIntentions(service))
		if b.flavour != Own {
			from = append(from, b.s.LinkLeaf(service))
		}
	}
	shownBy := map[string]shown{}
	for _, o := range outlets {
		service := o.link.Service.Name
		certificate, err := b.showLeaf(LeafSecret+"~"+service, b.s.LinkLeaf(service))
		if err != nil {
			return err
		}
		shownBy[service] = certificate
	}
	return b.add(Listener, name, from, func() (made, error) {
		e := &edge{name: name, ip: bind.Address, port: bind.Port, inspect: true}
		for _, o := range outlets {
			c, err := b.outletChain(o, shownBy[o.link.Service.Name])
			if err != nil {
				return made{}, err
			}
			e.chains = append(e.chains, c)
			e.uses = append(e.uses, ref{Cluster, o.name})
			e.uses = append(e.uses, shownBy[o.link.Service.Name].uses...)
			if isHTTP(o.protocol) {
				e.routes = append(e.routes, o.name)
			}
		}
		if b.flavour == Own && len(outlets) > 0 {
			e.uses = append(e.uses, ref{Secret, RootsSecret})
		}
		e.chains = append(e.chains, b.notServed(statPrefix("terminating_gateway.", bind.Name)))
		m := b.edge(e)
		m.message.(*listenerv3.Listener).TrafficDirection = corev3.TrafficDirection_INBOUND
		return m, nil
	})
}

// outletChain is the filter chain of an outlet: with the certificate of its service, and what its intentions allow.
func (b *build) outletChain(o *outlet, certificate shown) (*listenerv3.FilterChain, error) {
	m := b.s.Mesh()
	var params *entry.TLSParameters
	if m != nil && m.TLS != nil {
		params = m.TLS.Incoming
	}
	p, err := tlsParameters(params)
	if err != nil {
		return nil, fmt.Errorf("incoming TLS parameters: %w", err)
	}
	common := &tlsv3.CommonTlsContext{
		TlsParams: p, TlsCertificates: certificate.inline, TlsCertificateSdsSecretConfigs: certificate.sds, AlpnProtocols: b.alpn(o.protocol),
	}
	if b.flavour == Own {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: b.sds(RootsSecret)}
	} else {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: b.trustedCA()},
		}
	}
	fc := &listenerv3.FilterChain{
		FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: []string{o.name}},
		TransportSocket: tlsSocket(&tlsv3.DownstreamTlsContext{
			CommonTlsContext: common, RequireClientCertificate: wrapperspb.Bool(true),
		}),
	}
	service := o.link.Service.Name
	prefix := statPrefix("upstream.", service+".default.default."+b.s.Proxy.Datacenter)
	var list []*intention.Intention
	if match := b.s.LinkIntentions(service); match != nil && len(match.Matches) > 0 {
		list = match.Matches[0]
	}
	if !isHTTP(o.protocol) {
		fc.Filters = []*listenerv3.Filter{
			filter(filterRBAC, &netrbacv3.RBAC{StatPrefix: statPrefixRBAC, Rules: b.rulesOf(list, false)}),
			b.tcpProxy(o.name, prefix),
		}
		return fc, nil
	}
	manager := b.manager(o.protocol, prefix, &routeSource{name: o.name}, []*hcmv3.HttpFilter{
		httpFilter("envoy.filters.http.rbac", &httprbacv3.RBAC{Rules: b.rulesOf(list, true)}),
	})
	// The rules see the path in one form, and so does what they protect.
	manager.NormalizePath = wrapperspb.Bool(true)
	if m == nil || m.HTTP == nil || !m.HTTP.SanitizeXForwardedClientCert {
		manager.ForwardClientCertDetails = hcmv3.HttpConnectionManager_APPEND_FORWARD
		manager.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Cert: true, Chain: true, Dns: true, Uri: true,
		}
	}
	b.trace(manager)
	fc.Filters = []*listenerv3.Filter{filter(filterHCM, manager)}
	return fc, nil
}
