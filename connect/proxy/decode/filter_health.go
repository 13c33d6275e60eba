package decode

import (
	"cmp"
	"slices"

	healthcheckv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/healthcheck"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var healthCheckFilter = httpFilter{
	name: "envoy.filters.http.health_check", old: "envoy.health_check",
	proto: (*healthcheckv3.HealthCheck)(nil),
	config: with(func(r *run, path string, m *healthcheckv3.HealthCheck) model.FilterConfig {
		r.only(path, m, "pass_through_mode cache_time cluster_min_healthy_percentages headers", "")
		c := &healthcheck.Config{
			PassThrough: m.GetPassThroughMode().GetValue(),
			CacheTime:   r.duration(join(path, "cache_time"), m.GetCacheTime(), 0),
			Headers:     r.headerMatches(join(path, "headers"), m.GetHeaders()),
		}
		if !c.PassThrough && c.CacheTime > 0 {
			r.errorf(join(path, "cache_time"), "cache_time_ms must not be set when pass_through_mode is disabled")
		}
		for name, p := range m.GetClusterMinHealthyPercentages() {
			c.MinHealthy = append(c.MinHealthy, healthcheck.Cluster{Name: name, Percent: p.GetValue()})
		}
		if c.PassThrough && len(c.MinHealthy) > 0 {
			r.errorf(join(path, "cluster_min_healthy_percentages"), "has no meaning in pass_through_mode")
		}
		slices.SortFunc(c.MinHealthy, func(a, b healthcheck.Cluster) int { return cmp.Compare(a.Name, b.Name) })
		return c
	}),
}
