package decode

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	basicauthv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/basic_auth/v3"
	csrfv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/csrf/v3"
	httplimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/basicauth"
	"github.com/sarnmesh/sarn/connect/proxy/filter/csrf"
	"github.com/sarnmesh/sarn/connect/proxy/filter/descriptor"
	"github.com/sarnmesh/sarn/connect/proxy/filter/ratelimit"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var rateLimitFilter = httpFilter{
	name: "envoy.filters.http.ratelimit", old: "envoy.rate_limit",
	proto: (*httplimitv3.RateLimit)(nil), config: with((*run).rateLimit),
	routeProto: (*httplimitv3.RateLimitPerRoute)(nil),
	route: with(func(r *run, path string, m *httplimitv3.RateLimitPerRoute) model.FilterConfig {
		r.only(path, m, "vh_rate_limits rate_limits domain", "")
		c := &ratelimit.RouteConfig{Domain: m.GetDomain(), RateLimits: r.rateLimits(path, m.GetRateLimits())}
		switch m.GetVhRateLimits() {
		case httplimitv3.RateLimitPerRoute_OVERRIDE:
		case httplimitv3.RateLimitPerRoute_INCLUDE:
			c.VirtualHosts = descriptor.Include
		case httplimitv3.RateLimitPerRoute_IGNORE:
			c.VirtualHosts = descriptor.Ignore
		}
		return c
	}),
}

func (r *run) rateLimit(path string, m *httplimitv3.RateLimit) model.FilterConfig {
	r.only(path, m, `domain stage request_type timeout failure_mode_deny rate_limited_as_resource_exhausted
		rate_limit_service enable_x_ratelimit_headers disable_x_envoy_ratelimited_header rate_limited_status
		response_headers_to_add status_on_error stat_prefix filter_enabled filter_enforced rate_limits`, "")
	p := join(path, "rate_limit_service")
	if v := m.GetRateLimitService().GetTransportApiVersion(); v != corev3.ApiVersion_V3 {
		r.errorf(join(p, "transport_api_version"), "%v is not supported", v)
	}
	c := &ratelimit.Config{
		Service:     r.grpcService(join(p, "grpc_service"), m.GetRateLimitService().GetGrpcService()),
		Domain:      m.GetDomain(),
		Stage:       m.GetStage(),
		DenyOnError: m.GetFailureModeDeny(),
		ErrorStatus: int(m.GetStatusOnError().GetCode()),
		Status:      int(m.GetRateLimitedStatus().GetCode()),
		Exhausted:   m.GetRateLimitedAsResourceExhausted(),
		Headers:     m.GetEnableXRatelimitHeaders() == httplimitv3.RateLimit_DRAFT_VERSION_03,
		NoHeader:    m.GetDisableXEnvoyRatelimitedHeader(),
		Edits:       r.additions(join(path, "response_headers_to_add"), m.GetResponseHeadersToAdd()),
		RateLimits:  r.rateLimits(path, m.GetRateLimits()),
		StatPrefix:  m.GetStatPrefix(),
		Enabled:     r.runtimeFraction(join(path, "filter_enabled"), m.GetFilterEnabled()),
		Enforced:    r.runtimeFraction(join(path, "filter_enforced"), m.GetFilterEnforced()),
	}
	c.Service.Timeout = r.duration(join(path, "timeout"), m.GetTimeout(), ratelimit.DefaultTimeout)
	switch t := m.GetRequestType(); t {
	case "", "both":
	case "internal":
		c.Requests = ratelimit.Internal
	case "external":
		c.Requests = ratelimit.External
	default:
		r.errorf(join(path, "request_type"), "%q is unknown", t)
	}
	return c
}

var basicAuthFilter = httpFilter{
	name:  "envoy.filters.http.basic_auth",
	proto: (*basicauthv3.BasicAuth)(nil),
	config: with(func(r *run, path string, m *basicauthv3.BasicAuth) model.FilterConfig {
		r.only(path, m, "users forward_username_header authentication_header realm", "")
		return &basicauth.Config{
			Users:         r.users(join(path, "users"), m.GetUsers()),
			ForwardHeader: r.ownHeader(join(path, "forward_username_header"), m.GetForwardUsernameHeader()),
			Header:        strings.ToLower(m.GetAuthenticationHeader()),
			Realm:         m.GetRealm(),
		}
	}),
	routeProto: (*basicauthv3.BasicAuthPerRoute)(nil),
	route: with(func(r *run, path string, m *basicauthv3.BasicAuthPerRoute) model.FilterConfig {
		return &basicauth.Config{Users: r.users(join(path, "users"), m.GetUsers()), Realm: m.GetRealm()}
	}),
}

func (r *run) users(path string, m *corev3.DataSource) basicauth.Users {
	b, set := r.source(path, m)
	u, err := basicauth.ParseUsers(string(b))
	if err != nil && (set || m == nil) {
		r.errorf(path, "%w", err)
	}
	return u
}

var csrfFilter = httpFilter{
	name: "envoy.filters.http.csrf", old: "envoy.csrf",
	proto: (*csrfv3.CsrfPolicy)(nil), config: with((*run).csrf),
	routeProto: (*csrfv3.CsrfPolicy)(nil), route: with((*run).csrf),
}

func (r *run) csrf(path string, m *csrfv3.CsrfPolicy) model.FilterConfig {
	r.only(path, m, "filter_enabled shadow_enabled additional_origins", "")
	c := &csrf.Config{Shadow: r.runtimeFraction(join(path, "shadow_enabled"), m.GetShadowEnabled())}
	if f := r.runtimeFraction(join(path, "filter_enabled"), m.GetFilterEnabled()); f != nil {
		c.Enabled = *f
	}
	for i, s := range m.GetAdditionalOrigins() {
		c.Origins = append(c.Origins, r.stringMatch(index(join(path, "additional_origins"), i), s))
	}
	return c
}
