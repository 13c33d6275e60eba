package decode

import (
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	locallimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/descriptor"
	"github.com/sarnmesh/sarn/connect/proxy/filter/localratelimit"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var localRateLimitFilter = httpFilter{
	name:  "envoy.filters.http.local_ratelimit",
	proto: (*locallimitv3.LocalRateLimit)(nil),
	config: with(func(r *run, path string, m *locallimitv3.LocalRateLimit) model.FilterConfig {
		return r.localRateLimit(path, m)
	}),
	routeProto: (*locallimitv3.LocalRateLimit)(nil),
	route: with(func(r *run, path string, m *locallimitv3.LocalRateLimit) model.FilterConfig {
		if m.GetTokenBucket() == nil {
			r.errorf(join(path, "token_bucket"), "local rate limit token bucket must be set for per filter configs")
		}
		return r.localRateLimit(path, m)
	}),
}

func (r *run) localRateLimit(path string, m *locallimitv3.LocalRateLimit) model.FilterConfig {
	r.only(path, m, `stat_prefix status token_bucket filter_enabled filter_enforced request_headers_to_add_when_not_enforced
		response_headers_to_add descriptors stage local_rate_limit_per_downstream_connection enable_x_ratelimit_headers
		vh_rate_limits always_consume_default_token_bucket rate_limited_as_resource_exhausted rate_limits
		max_dynamic_descriptors enable_retry_after_header`, "")
	c := &localratelimit.Config{
		StatPrefix:      m.GetStatPrefix(),
		PerConnection:   m.GetLocalRateLimitPerDownstreamConnection(),
		Status:          int(m.GetStatus().GetCode()),
		Exhausted:       m.GetRateLimitedAsResourceExhausted(),
		ResponseEdits:   r.additions(join(path, "response_headers_to_add"), m.GetResponseHeadersToAdd()),
		RequestEdits:    r.additions(join(path, "request_headers_to_add_when_not_enforced"), m.GetRequestHeadersToAddWhenNotEnforced()),
		Headers:         m.GetEnableXRatelimitHeaders() == ratelimitv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03,
		RetryAfter:      m.GetEnableRetryAfterHeader(),
		RateLimits:      r.rateLimits(path, m.GetRateLimits()),
		Stage:           m.GetStage(),
		VirtualHosts:    r.virtualHostLimits(join(path, "vh_rate_limits"), m.GetVhRateLimits()),
		OnlyDescriptors: !boolean(m.GetAlwaysConsumeDefaultTokenBucket(), true),
		MaxDynamic:      int(min(u32(m.GetMaxDynamicDescriptors(), 20), 1<<20)),
	}
	if b := m.GetTokenBucket(); b != nil {
		t := r.tokenBucket(join(path, "token_bucket"), b)
		c.Bucket = &t
	}
	if f := r.runtimeFraction(join(path, "filter_enabled"), m.GetFilterEnabled()); f != nil {
		c.Enabled = *f
	}
	if f := r.runtimeFraction(join(path, "filter_enforced"), m.GetFilterEnforced()); f != nil {
		c.Enforced = *f
	}
	for i, d := range m.GetDescriptors() {
		p := index(join(path, "descriptors"), i)
		r.only(p, d, "entries token_bucket shadow_mode", "")
		x := localratelimit.Descriptor{Bucket: r.tokenBucket(join(p, "token_bucket"), d.GetTokenBucket()), Shadow: d.GetShadowMode()}
		for _, e := range d.GetEntries() {
			x.Entries = append(x.Entries, descriptor.Entry{Key: e.GetKey(), Value: e.GetValue()})
		}
		c.Descriptors = append(c.Descriptors, x)
	}
	return c
}

func (r *run) virtualHostLimits(path string, o ratelimitv3.VhRateLimitsOptions) descriptor.VirtualHostUse {
	switch o {
	case ratelimitv3.VhRateLimitsOptions_OVERRIDE:
	case ratelimitv3.VhRateLimitsOptions_INCLUDE:
		return descriptor.Include
	case ratelimitv3.VhRateLimitsOptions_IGNORE:
		return descriptor.Ignore
	default:
		r.errorf(path, "%d is unknown", o)
	}
	return descriptor.Override
}

// minFill is the shortest interval in which a bucket may fill.
const minFill = 50 * time.Millisecond

func (r *run) tokenBucket(path string, m *typev3.TokenBucket) localratelimit.Bucket {
	r.only(path, m, "max_tokens tokens_per_fill fill_interval", "")
	b := localratelimit.Bucket{
		Max:          max(1, m.GetMaxTokens()),
		PerFill:      max(1, u32(m.GetTokensPerFill(), 1)),
		FillInterval: r.duration(join(path, "fill_interval"), m.GetFillInterval(), 0),
	}
	if b.FillInterval < minFill {
		r.errorf(join(path, "fill_interval"), "local rate limit token bucket fill timer must be >= 50ms")
		b.FillInterval = minFill
	}
	return b
}
