package xds

import (
	"fmt"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// An offered is a service that an ingress gateway's listener can serve.
type offered struct {
	fronted
	service *mesh.IngressService
}

// ingress makes the listeners and routes of an ingress gateway (spec/xds.md section 13).
func (b *build) ingress() error {
	for _, l := range b.s.Gateway.Listeners {
		var services []offered
		for i := range l.Services {
			if f, ok := b.front(l.Services[i].Upstream, l.Protocol); ok {
				services = append(services, offered{f, &l.Services[i]})
			}
		}
		if len(services) == 0 {
			continue
		}
		var err error
		if isHTTP(l.Protocol) {
			err = b.ingressHTTP(l, services)
		} else {
			err = b.ingressTCP(l, services[0])
		}
		if err != nil {
			b.problem("listener on port %d: %w", l.Port, err)
		}
	}
	return nil
}

// ingressFrom lists what a listener is made from, for add.
func (b *build) ingressFrom(l *mesh.IngressListener, services ...offered) []any {
	from := append([]any{b.s.Proxy, b.s.GatewayEntry(), l.Port}, b.trustFrom()...)
	for _, s := range services {
		from = append(from, s.from(b)...)
	}
	return from
}

func (b *build) ingressTCP(l *mesh.IngressListener, s offered) error {
	for _, ip := range b.addresses() {
		name := listenerName(s.upstream.ID, ip, l.Port)
		err := b.add(Listener, name, b.ingressFrom(l, s), func() (made, error) {
			to, err := b.frontLead(s.fronted)
			if err != nil {
				return made{}, err
			}
			e := &edge{name: name, ip: ip, port: l.Port, uses: to.uses}
			c := &listenerv3.FilterChain{Filters: []*listenerv3.Filter{to.filter}}
			if err := b.ingressTLS(e, c, l, l.TLS.SDS); err != nil {
				return made{}, err
			}
			e.chains = []*listenerv3.FilterChain{c}
			return b.edge(e), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ingressTLS gives a chain of a listener its certificate, if it is to have one: that named by SDS, else the gateway's.
func (b *build) ingressTLS(e *edge, c *listenerv3.FilterChain, l *mesh.IngressListener, sds *entry.GatewaySDS) error {
	var certificates shown
	switch {
	case sds != nil && sds.CertResource != "":
		certificates.sds = []*tlsv3.SdsSecretConfig{foreignSecret(sds)}
	case l.TLS.Enabled:
		var err error
		if certificates, err = b.showLeaf(LeafSecret, b.s.Leaf()); err != nil {
			return err
		}
	default:
		return nil
	}
	params := &entry.TLSParameters{TLSMinVersion: l.TLS.TLSMinVersion, TLSMaxVersion: l.TLS.TLSMaxVersion, CipherSuites: l.TLS.CipherSuites}
	var err error
	c.TransportSocket, err = b.edgeTLS(params, l.Protocol, certificates)
	e.uses = append(e.uses, certificates.uses...)
	e.inspect = true
	return err
}

// foreignSecret is a certificate served by another control plane, behind a cluster of the bootstrap.
func foreignSecret(s *entry.GatewaySDS) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{
		Name: s.CertResource,
		SdsConfig: &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3,
			ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
				ApiType: corev3.ApiConfigSource_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
				GrpcServices: []*corev3.GrpcService{{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: s.ClusterName}},
					Timeout:         durationpb.New(5 * time.Second),
				}},
			}},
		},
	}
}

// ownCertificate returns the certificate that a service has for itself, nil for that of the listener.
func (s *offered) ownCertificate() *entry.GatewaySDS {
	if t := s.service.TLS; t != nil && t.SDS != nil && t.SDS.CertResource != "" && len(s.service.Hosts) > 0 {
		return t.SDS
	}
	return nil
}

// ingressHTTP makes a listener that tells services apart by the host of a request.
func (b *build) ingressHTTP(l *mesh.IngressListener, services []offered) error {
	port := strconv.Itoa(l.Port)
	var common []offered // without a certificate of their own
	type own struct {
		offered
		routes string
	}
	var alone []own
	for _, s := range services {
		if s.ownCertificate() == nil {
			common = append(common, s)
			continue
		}
		alone = append(alone, own{s, port + "_" + s.service.Name})
	}
	for _, s := range alone {
		if err := b.ingressRoutes(s.routes, l, []offered{s.offered}); err != nil {
			return err
		}
	}
	if len(common) > 0 {
		if err := b.ingressRoutes(port, l, common); err != nil {
			return err
		}
	}
	for _, ip := range b.addresses() {
		name := listenerName(l.Protocol, ip, l.Port)
		err := b.add(Listener, name, b.ingressFrom(l, services...), func() (made, error) {
			e := &edge{name: name, ip: ip, port: l.Port}
			add := func(hosts []string, routes string, sds *entry.GatewaySDS) error {
				manager := b.edgeManager(l.Protocol, "ingress_upstream_"+routes, routes)
				c := &listenerv3.FilterChain{Filters: []*listenerv3.Filter{filter(filterHCM, manager)}}
				if len(hosts) > 0 {
					c.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: hosts}
				}
				e.chains, e.routes = append(e.chains, c), append(e.routes, routes)
				return b.ingressTLS(e, c, l, sds)
			}
			for _, s := range alone {
				if err := add(s.service.Hosts, s.routes, s.ownCertificate()); err != nil {
					return made{}, err
				}
			}
			if len(common) > 0 {
				if err := add(nil, port, l.TLS.SDS); err != nil {
					return made{}, err
				}
			}
			return b.edge(e), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ingressRoutes makes a route configuration with a virtual host for each service.
func (b *build) ingressRoutes(name string, l *mesh.IngressListener, services []offered) error {
	return b.add(Route, name, b.ingressFrom(l, services...), func() (made, error) {
		rc := &routev3.RouteConfiguration{Name: name}
		if m := b.s.Mesh(); m != nil && m.ValidateClusters {
			rc.ValidateClusters = wrapperspb.Bool(true)
		}
		taken := map[string]bool{}
		var uses []ref
		for _, s := range services {
			hosts := s.service.Hosts
			if len(hosts) == 0 {
				hosts = []string{s.service.Name + ".ingress.*"}
			}
			named := domains(hosts, strconv.Itoa(l.Port), taken)
			if len(named) == 0 {
				continue
			}
			r := &chainRouter{b: b, c: s.chain}
			routes, err := r.start()
			if err != nil {
				return made{}, fmt.Errorf("service %s: %w", s.service.Name, err)
			}
			uses = append(uses, r.uses...)
			host := &routev3.VirtualHost{Name: s.upstream.ID, Domains: named, Routes: routes}
			host.RequestHeadersToAdd, host.RequestHeadersToRemove = headerEdits(s.service.RequestHeaders)
			host.ResponseHeadersToAdd, host.ResponseHeadersToRemove = headerEdits(s.service.ResponseHeaders)
			rc.VirtualHosts = append(rc.VirtualHosts, host)
		}
		return made{message: rc, uses: uses}, nil
	})
}
