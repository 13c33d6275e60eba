package xds

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	bridgev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_http1_bridge/v3"
	grpcstatsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A routeSource is where a connection manager gets its routes: by name from the stream, or in line.
type routeSource struct {
	name   string
	inline *routev3.RouteConfiguration
}

// manager is what every HTTP connection manager has.
func (b *build) manager(protocol, prefix string, routes *routeSource, filters []*hcmv3.HttpFilter) *hcmv3.HttpConnectionManager {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix:     prefix,
		CodecType:      hcmv3.HttpConnectionManager_AUTO,
		AccessLog:      b.filterLogs(),
		Tracing:        &hcmv3.HttpConnectionManager_Tracing{RandomSampling: &typev3.Percent{Value: 0}},
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
	if protocol == "grpc" {
		m.HttpFilters = append(m.HttpFilters,
			httpFilter("envoy.filters.http.grpc_stats", &grpcstatsv3.FilterConfig{
				PerMethodStatSpecifier: &grpcstatsv3.FilterConfig_StatsForAllMethods{StatsForAllMethods: wrapperspb.Bool(true)},
			}),
			httpFilter("envoy.filters.http.grpc_http1_bridge", &bridgev3.Config{}))
		for _, f := range m.HttpFilters {
			f.IsOptional = b.flavour == Own // without which requests are served as safely
		}
	}
	m.HttpFilters = append(m.HttpFilters, filters...)
	m.HttpFilters = append(m.HttpFilters, httpFilter("envoy.filters.http.router", &routerv3.Router{}))
	if isHTTP2(protocol) {
		m.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	}
	if routes.inline != nil {
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes.inline}
	} else {
		m.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: routes.name, ConfigSource: b.ads()}}
	}
	return m
}

// outboundManager serves the application's requests to an upstream.
func (b *build) outboundManager(protocol, prefix string, routes *routeSource) *hcmv3.HttpConnectionManager {
	m := b.manager(protocol, prefix, routes, nil)
	b.trace(m)
	return m
}

// inboundManager serves the requests of other proxies.
func (b *build) inboundManager() (*hcmv3.HttpConnectionManager, []ref, error) {
	cfg, entry := &b.s.Config, b.s.Mesh()
	sanitize := entry != nil && entry.HTTP != nil && entry.HTTP.SanitizeXForwardedClientCert
	filters, uses, err := b.requestAuthorization()
	if err != nil {
		return nil, nil, err
	}
	// Of requests from peers the header says who sent them.
	forward := (cfg.Protocol != "grpc" || len(b.s.Callers()) > 0) && !sanitize
	if forward {
		filters = append(filters, httpFilter("envoy.filters.http.header_to_metadata", callerMetadata()))
	}
	action := &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: localApp}}
	if ms := cfg.LocalRequestTimeoutMs; ms != nil && *ms >= 0 {
		action.Timeout = durationpb.New(milliseconds(*ms))
	}
	if ms := cfg.LocalIdleTimeoutMs; ms != nil && *ms >= 0 {
		action.IdleTimeout = durationpb.New(milliseconds(*ms))
	}
	m := b.manager(cfg.Protocol, statPrefix("", publicListener), &routeSource{
		inline: inlineRoute(publicListener, publicListener, action),
	}, filters)
	if n := cfg.MaxRequestHeadersKB; n > 0 {
		m.MaxRequestHeadersKb = wrapperspb.UInt32(uint32(n))
	}
	if forward {
		m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_APPEND_FORWARD
		m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Cert: true, Chain: true, Dns: true, Uri: true,
		}
	}
	if entry != nil && entry.HTTP != nil && entry.HTTP.Incoming != nil && entry.HTTP.Incoming.RequestNormalization != nil {
		n := entry.HTTP.Incoming.RequestNormalization
		m.NormalizePath = wrapperspb.Bool(!n.InsecureDisablePathNormalization)
		m.MergeSlashes = n.MergeSlashes
		if a := n.PathWithEscapedSlashesAction; a != "" {
			v, ok := hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction_value[a]
			if !ok {
				return nil, nil, fmt.Errorf("unknown action %q for paths with escaped slashes", a)
			}
			m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction(v)
		}
		if a := n.HeadersWithUnderscoresAction; a != "" {
			v, ok := corev3.HttpProtocolOptions_HeadersWithUnderscoresAction_value[a]
			if !ok {
				return nil, nil, fmt.Errorf("unknown action %q for headers with underscores", a)
			}
			m.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{
				HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_HeadersWithUnderscoresAction(v),
			}
		}
	} else {
		m.NormalizePath = wrapperspb.Bool(true)
	}
	b.trace(m)
	return m, uses, nil
}

// requestAuthorization are the filters that apply the intentions to requests.
func (b *build) requestAuthorization() ([]*hcmv3.HttpFilter, []ref, error) {
	tokens, uses, err := b.tokenFilter()
	if err != nil {
		return nil, nil, err
	}
	rbac := httpFilter("envoy.filters.http.rbac", &httprbacv3.RBAC{Rules: b.rules(true)})
	if tokens == nil {
		return []*hcmv3.HttpFilter{rbac}, nil, nil
	}
	return []*hcmv3.HttpFilter{tokens, rbac}, uses, nil
}

// trace replaces how a manager traces by what the proxy's configuration says.
func (b *build) trace(m *hcmv3.HttpConnectionManager) {
	text := b.s.Config.ListenerTracingJSON
	if text == "" {
		m.Tracing.Provider = b.tracer()
		return
	}
	t := new(hcmv3.HttpConnectionManager_Tracing)
	if err := fromJSON(text, t); err != nil {
		b.problem("envoy_listener_tracing_json: %w", err)
		return
	}
	m.Tracing = t
}

// callerMetadata keeps the identity of the last service a request came through.
func callerMetadata() *metadatav3.Config {
	const pattern = `.*URI=spiffe://([^/]+)(?:/ap/([^/]+))?/ns/([^/]+)/dc/([^/]+)/svc/([^/;,]+).*`
	c := &metadatav3.Config{}
	for i, key := range []string{"trust-domain", "partition", "namespace", "datacenter", "service"} {
		c.RequestRules = append(c.RequestRules, &metadatav3.Config_Rule{
			Header: "x-forwarded-client-cert",
			OnHeaderPresent: &metadatav3.Config_KeyValuePair{
				MetadataNamespace: "consul",
				Key:               key,
				Type:              metadatav3.Config_STRING,
				RegexValueRewrite: &matcherv3.RegexMatchAndSubstitute{
					Pattern:      &matcherv3.RegexMatcher{Regex: pattern},
					Substitution: fmt.Sprintf(`\%d`, i+1),
				},
			},
		})
	}
	return c
}

// singleRoute sends every request to a cluster.
func singleRoute(name, host, cluster string) *routev3.RouteConfiguration {
	return inlineRoute(name, host, &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}})
}

func inlineRoute(name, host string, action *routev3.RouteAction) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: name,
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    host,
			Domains: []string{"*"},
			Routes:  []*routev3.Route{{Match: everyPath(), Action: &routev3.Route_Route{Route: action}}},
		}},
	}
}

func everyPath() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

func httpFilter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustPack(config)}}
}
