package decode

import (
	bridgev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_http1_bridge/v3"
	grpcstatsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	grpcwebv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcbridge"
	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcstats"
	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcweb"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var grpcStatsFilter = httpFilter{
	name:  "envoy.filters.http.grpc_stats",
	proto: (*grpcstatsv3.FilterConfig)(nil),
	config: with(func(r *run, path string, m *grpcstatsv3.FilterConfig) model.FilterConfig {
		r.only(path, m, "individual_method_stats_allowlist stats_for_all_methods enable_upstream_stats replace_dots_in_grpc_service_name", "")
		c := &grpcstats.Config{
			All:         m.GetStatsForAllMethods().GetValue(),
			Upstream:    m.GetEnableUpstreamStats(),
			ReplaceDots: m.GetReplaceDotsInGrpcServiceName(),
		}
		if list := m.GetIndividualMethodStatsAllowlist(); list != nil {
			c.Methods = map[string][]string{}
			for _, s := range list.GetServices() {
				c.Methods[s.GetName()] = s.GetMethodNames()
			}
		}
		return c
	}),
}

var grpcBridgeFilter = httpFilter{
	name: "envoy.filters.http.grpc_http1_bridge", old: "envoy.grpc_http1_bridge",
	proto: (*bridgev3.Config)(nil),
	config: with(func(r *run, path string, m *bridgev3.Config) model.FilterConfig {
		r.only(path, m, "", "")
		return &grpcbridge.Config{}
	}),
}

var grpcWebFilter = httpFilter{
	name: "envoy.filters.http.grpc_web", old: "envoy.grpc_web",
	proto: (*grpcwebv3.GrpcWeb)(nil),
	config: with(func(*run, string, *grpcwebv3.GrpcWeb) model.FilterConfig {
		return &grpcweb.Config{}
	}),
}
