package xds

import (
	"errors"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	roundrobinv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	wrrlocalityv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/wrr_locality/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// Flavour Proxyless (spec/xds.md section 19): a gRPC client that resolves xds:///web asks for the listener web, and from
// there for routes, clusters and endpoints. It shows the certificate of the service it is registered for, and expects
// that of the destination, just as a proxy does.

// ProxylessCertificates is the name under which the bootstrap of a gRPC client tells where its certificate and the
// trusted roots are.
const ProxylessCertificates = "sarn"

var errProxyless = errors.New("gRPC clients without a proxy can not reach peers, prepared queries and what is outside the mesh")

// proxylessChain makes the listener and the routes of an upstream.
func (b *build) proxylessChain(u *mesh.Upstream, c *chain.Chain) error {
	if m := b.s.Mesh(); m != nil && m.TLS != nil && m.TLS.Outgoing != nil {
		b.problem("upstream %s: gRPC clients choose TLS versions and ciphers by themselves", u.ID)
	}
	if u.Config.ClusterJSON != "" || u.Config.ListenerJSON != "" {
		b.problem("upstream %s: resources of its own are not for gRPC clients", u.ID)
	}
	err := b.add(Route, u.ID, append([]any{u, c}, b.peersFrom(c)...), func() (made, error) {
		r := &chainRouter{b: b, c: c}
		routes, err := r.start()
		if err != nil {
			return made{}, err
		}
		routes = slices.DeleteFunc(routes, func(x *routev3.Route) bool { return !everCalled(x.Match) })
		for _, x := range routes {
			b.proxylessRoute(u, x)
		}
		return made{uses: r.uses, message: &routev3.RouteConfiguration{
			Name: u.ID, VirtualHosts: []*routev3.VirtualHost{{Name: u.ID, Domains: []string{"*"}, Routes: routes}},
		}}, nil
	})
	if err != nil {
		return err
	}
	return b.add(Listener, u.ID, []any{u}, func() (made, error) {
		manager := &hcmv3.HttpConnectionManager{
			StatPrefix:     statPrefix("upstream.", u.ID),
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: u.ID, ConfigSource: b.ads()}},
			HttpFilters:    []*hcmv3.HttpFilter{httpFilter("envoy.filters.http.router", &routerv3.Router{})},
		}
		return made{children: []string{u.ID}, message: &listenerv3.Listener{
			Name: u.ID, ApiListener: &listenerv3.ApiListener{ApiListener: mustPack(manager)},
		}}, nil
	})
}

// proxylessRoute changes a route into one that gRPC executes as it was meant. A call that can not be led as asked fails;
// it is not led somewhere else.
func (b *build) proxylessRoute(u *mesh.Upstream, route *routev3.Route) {
	route.Match.Headers = slices.DeleteFunc(route.Match.Headers, func(h *routev3.HeaderMatcher) bool { return h.Name == methodHeader })
	action := route.GetRoute()
	if action.PrefixRewrite != "" {
		b.problem("upstream %s: gRPC clients can not call another path than they were asked to, so they refuse to", u.ID)
		route.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 501}}
		return
	}
	if len(route.RequestHeadersToAdd)+len(route.RequestHeadersToRemove)+len(route.ResponseHeadersToAdd)+len(route.ResponseHeadersToRemove) > 0 {
		b.problem("upstream %s: gRPC clients change no headers", u.ID)
		route.RequestHeadersToAdd, route.RequestHeadersToRemove = nil, nil
		route.ResponseHeadersToAdd, route.ResponseHeadersToRemove = nil, nil
	}
	for _, w := range action.GetWeightedClusters().GetClusters() {
		if len(w.RequestHeadersToAdd)+len(w.RequestHeadersToRemove)+len(w.ResponseHeadersToAdd)+len(w.ResponseHeadersToRemove) > 0 {
			b.problem("upstream %s: gRPC clients change no headers", u.ID)
			w.RequestHeadersToAdd, w.RequestHeadersToRemove = nil, nil
			w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = nil, nil
		}
	}
	if t := action.Timeout.AsDuration(); t > 0 {
		action.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{
			MaxStreamDuration: durationpb.New(t), GrpcTimeoutHeaderMax: durationpb.New(t),
		}
	}
	action.Timeout, action.IdleTimeout = nil, nil
	action.RetryPolicy = b.proxylessRetry(u, action.RetryPolicy)
	for i, h := range action.HashPolicy {
		if h.GetHeader() == nil {
			// gRPC has no cookies and no downstream: the nearest thing is where the call comes from.
			action.HashPolicy[i] = &routev3.RouteAction_HashPolicy{
				Terminal: h.Terminal,
				PolicySpecifier: &routev3.RouteAction_HashPolicy_FilterState_{
					FilterState: &routev3.RouteAction_HashPolicy_FilterState{Key: "io.grpc.channel_id"},
				},
			}
		}
	}
}

const methodHeader = ":method"

// everCalled reports whether there can be a call that matches: every call is a POST without a query.
func everCalled(m *routev3.RouteMatch) bool {
	if len(m.QueryParameters) > 0 {
		return false
	}
	for _, h := range m.Headers {
		if h.Name != methodHeader || h.GetPresentMatch() {
			continue
		}
		match := h.GetStringMatch()
		is := match.GetExact() == "POST" || slices.Contains(strings.Split(match.GetSafeRegex().GetRegex(), "|"), "POST")
		if is == h.InvertMatch {
			return false
		}
	}
	return true
}

// proxylessConditions are those on which gRPC retries.
var proxylessConditions = []string{"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}

// proxylessRetry returns what of a policy gRPC executes, nil for nothing.
func (b *build) proxylessRetry(u *mesh.Upstream, p *routev3.RetryPolicy) *routev3.RetryPolicy {
	if p == nil {
		return nil
	}
	var on, other []string
	for c := range strings.SplitSeq(p.RetryOn, ",") {
		switch {
		case slices.Contains(proxylessConditions, c):
			on = append(on, c)
		case c != "":
			other = append(other, c)
		}
	}
	if len(other) > 0 {
		b.problem("upstream %s: gRPC clients do not retry on %s", u.ID, strings.Join(other, ", "))
	}
	if len(on) == 0 {
		return nil
	}
	return &routev3.RetryPolicy{RetryOn: strings.Join(on, ","), NumRetries: p.NumRetries}
}

// proxylessCluster makes the cluster of what a resolver leads to.
func (b *build) proxylessCluster(name string, u *mesh.Upstream, n *chain.Node) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(connectTimeout(n)),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: b.ads()},
	}
	if l := u.Config.Limits; l != nil && l.MaxConcurrentRequests != nil {
		c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxRequests: uint32Value(l.MaxConcurrentRequests),
		}}}
	}
	if p := u.Config.PassiveHealthCheck; p != nil {
		// gRPC counts no failures in a row, so instances are judged by how often they fail compared to the others.
		c.OutlierDetection = &clusterv3.OutlierDetection{MaxEjectionPercent: uint32Value(p.MaxEjectionPercent)}
		if p.Interval > 0 {
			c.OutlierDetection.Interval = durationpb.New(p.Interval)
		}
		if p.BaseEjectionTime != nil && *p.BaseEjectionTime > 0 {
			c.OutlierDetection.BaseEjectionTime = durationpb.New(*p.BaseEjectionTime)
		}
	}
	proxylessBalance(c, n.LoadBalancer)
	return c
}

// proxylessBalance sets how instances are chosen, in one of the ways gRPC has.
func proxylessBalance(c *clusterv3.Cluster, lb *entry.LoadBalancer) {
	balance(c, lb)
	switch c.LbPolicy {
	case clusterv3.Cluster_RANDOM:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case clusterv3.Cluster_MAGLEV:
		c.LbPolicy = clusterv3.Cluster_RING_HASH
	case clusterv3.Cluster_LEAST_REQUEST:
		choices := c.GetLeastRequestLbConfig().GetChoiceCount()
		if choices.GetValue() == 1 {
			choices = wrapperspb.UInt32(2) // the least that gRPC takes
		}
		// A client takes the first one it has.
		c.LbPolicy, c.LbConfig = clusterv3.Cluster_ROUND_ROBIN, nil
		c.LoadBalancingPolicy = policies(
			"envoy.load_balancing_policies.least_request", &leastrequestv3.LeastRequest{ChoiceCount: choices},
			"envoy.load_balancing_policies.wrr_locality", &wrrlocalityv3.WrrLocality{
				EndpointPickingPolicy: policies("envoy.load_balancing_policies.round_robin", &roundrobinv3.RoundRobin{}),
			})
	}
}

// policies lists ways to choose instances, the preferred first: names and settings by turns.
func policies(namesAndSettings ...any) *clusterv3.LoadBalancingPolicy {
	out := &clusterv3.LoadBalancingPolicy{}
	for p := range slices.Chunk(namesAndSettings, 2) {
		out.Policies = append(out.Policies, &clusterv3.LoadBalancingPolicy_Policy{TypedExtensionConfig: &corev3.TypedExtensionConfig{
			Name: p[0].(string), TypedConfig: mustPack(p[1].(proto.Message)),
		}})
	}
	return out
}

// proxylessAggregate makes the cluster that stands for several, the first that works. Instances are chosen as it says.
func proxylessAggregate(name string, n *chain.Node, members []string) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name:           name,
		ConnectTimeout: durationpb.New(max(connectTimeout(n), time.Second)),
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.clusters.aggregate", TypedConfig: mustPack(&aggregatev3.ClusterConfig{Clusters: members}),
		}},
	}
	proxylessBalance(c, n.LoadBalancer)
	return c
}

// proxylessTLS returns the transport socket of a cluster: the certificates are those the client's bootstrap tells of.
func proxylessTLS(r *reach) *corev3.TransportSocket {
	provider := &tlsv3.CertificateProviderPluginInstance{InstanceName: ProxylessCertificates}
	validation := &tlsv3.CertificateValidationContext{CaCertificateProviderInstance: provider}
	for _, n := range r.names {
		// gRPC reads this field, and would take anybody if the names were in the one that has replaced it.
		//lint:ignore SA1019 see above
		validation.MatchSubjectAltNames = append(validation.MatchSubjectAltNames, &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n},
		})
	}
	socket := tlsSocket(&tlsv3.UpstreamTlsContext{Sni: r.sni, CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificateProviderInstance: provider,
		ValidationContextType:          &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation},
	}})
	socket.Name = "envoy.transport_sockets.tls" // gRPC knows it by this name only
	return socket
}

// proxylessGroup gives a group of instances what gRPC drops it without.
func proxylessGroup(g *endpointv3.LocalityLbEndpoints) {
	g.Locality, g.LoadBalancingWeight = &corev3.Locality{}, wrapperspb.UInt32(1)
}
