package decode

import (
	"cmp"
	"net/url"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/jwtauthn"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var jwtFilter = httpFilter{
	name:  "envoy.filters.http.jwt_authn",
	proto: (*jwtv3.JwtAuthentication)(nil), config: with((*run).jwt),
	routeProto: (*jwtv3.PerRouteConfig)(nil),
	route: with(func(r *run, path string, m *jwtv3.PerRouteConfig) model.FilterConfig {
		r.only(path, m, "disabled requirement_name", "")
		return &jwtauthn.RouteConfig{Disabled: m.GetDisabled(), Requirement: m.GetRequirementName()}
	}),
}

func (r *run) jwt(path string, m *jwtv3.JwtAuthentication) model.FilterConfig {
	r.only(path, m, "providers rules filter_state_rules bypass_cors_preflight requirement_map strip_failure_response stat_prefix", "")
	c := &jwtauthn.Config{
		Providers:       map[string]*jwtauthn.Provider{},
		Named:           map[string]*jwtauthn.Requirement{},
		BypassPreflight: m.GetBypassCorsPreflight(),
		Strip:           m.GetStripFailureResponse(),
		StatPrefix:      m.GetStatPrefix(),
	}
	for name, p := range m.GetProviders() {
		c.Providers[name] = r.jwtProvider(path+".providers["+name+"]", p)
	}
	for name, q := range m.GetRequirementMap() {
		c.Named[name] = r.jwtRequirement(path+".requirement_map["+name+"]", q, c, 0)
	}
	for i, rule := range m.GetRules() {
		p := index(join(path, "rules"), i)
		r.only(p, rule, "match requires requirement_name", "")
		out := jwtauthn.Rule{Match: r.routeMatch(join(p, "match"), rule.GetMatch())}
		switch q := rule.GetRequirementType().(type) {
		case *jwtv3.RequirementRule_Requires:
			out.Requirement = r.jwtRequirement(join(p, "requires"), q.Requires, c, 0)
		case *jwtv3.RequirementRule_RequirementName:
			var there bool
			if out.Requirement, there = c.Named[q.RequirementName]; !there {
				r.errorf(join(p, "requirement_name"), "no requirement %q", q.RequirementName)
			}
		}
		c.Rules = append(c.Rules, out)
	}
	if s := m.GetFilterStateRules(); s != nil {
		c.State, c.ByState = s.GetName(), map[string]*jwtauthn.Requirement{}
		for value, q := range s.GetRequires() {
			c.ByState[value] = r.jwtRequirement(path+".filter_state_rules.requires["+value+"]", q, c, 0)
		}
	}
	return c
}

// maxRequirements bounds how deep requirements nest.
const maxRequirements = 16

func (r *run) jwtRequirement(path string, m *jwtv3.JwtRequirement, c *jwtauthn.Config, depth int) *jwtauthn.Requirement {
	if depth > maxRequirements {
		r.errorf(path, "nests too deep")
		return nil
	}
	group := func(kind jwtauthn.RequirementKind, field string, list []*jwtv3.JwtRequirement) *jwtauthn.Requirement {
		out := &jwtauthn.Requirement{Kind: kind}
		for i, q := range list {
			p := index(join(path, field+".requirements"), i)
			of := r.jwtRequirement(p, q, c, depth+1)
			if of == nil {
				r.errorf(p, "requires nothing")
				continue
			}
			out.Of = append(out.Of, of)
		}
		return out
	}
	provider := func(name string) string {
		if c.Providers[name] == nil {
			r.errorf(path, "no provider %q", name)
		}
		return name
	}
	switch q := m.GetRequiresType().(type) {
	case nil:
		return nil
	case *jwtv3.JwtRequirement_ProviderName:
		return &jwtauthn.Requirement{Provider: provider(q.ProviderName)}
	case *jwtv3.JwtRequirement_ProviderAndAudiences:
		return &jwtauthn.Requirement{Provider: provider(q.ProviderAndAudiences.GetProviderName()), Audiences: q.ProviderAndAudiences.GetAudiences()}
	case *jwtv3.JwtRequirement_RequiresAny:
		return group(jwtauthn.Any, "requires_any", q.RequiresAny.GetRequirements())
	case *jwtv3.JwtRequirement_RequiresAll:
		return group(jwtauthn.All, "requires_all", q.RequiresAll.GetRequirements())
	case *jwtv3.JwtRequirement_AllowMissing:
		return &jwtauthn.Requirement{Kind: jwtauthn.AllowMissing}
	case *jwtv3.JwtRequirement_AllowMissingOrFailed:
		return &jwtauthn.Requirement{Kind: jwtauthn.AllowMissingOrFailed}
	}
	r.errorf(path, "requirement %T is not supported", m.GetRequiresType())
	return nil
}

func (r *run) jwtProvider(path string, m *jwtv3.JwtProvider) *jwtauthn.Provider {
	r.only(path, m, `issuer audiences subjects require_expiration max_lifetime remote_jwks local_jwks forward from_headers
		from_params from_cookies forward_payload_header pad_forward_payload_header payload_in_metadata
		normalize_payload_in_metadata header_in_metadata clock_skew_seconds jwt_cache_config claim_to_headers clear_route_cache`, "")
	p := &jwtauthn.Provider{
		Issuer:            m.GetIssuer(),
		Audiences:         m.GetAudiences(),
		RequireExpiration: m.GetRequireExpiration(),
		MaxLifetime:       r.duration(join(path, "max_lifetime"), m.GetMaxLifetime(), 0),
		Skew:              time.Duration(cmp.Or(m.GetClockSkewSeconds(), 60)) * time.Second,
		Params:            m.GetFromParams(),
		Cookies:           m.GetFromCookies(),
		Forward:           m.GetForward(),
		PayloadHeader:     r.ownHeader(join(path, "forward_payload_header"), m.GetForwardPayloadHeader()),
		PadPayload:        m.GetPadForwardPayloadHeader(),
		PayloadMetadata:   m.GetPayloadInMetadata(),
		SplitClaims:       m.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims(),
		HeaderMetadata:    m.GetHeaderInMetadata(),
		Reroute:           m.GetClearRouteCache(),
		CacheSize:         int(min(m.GetJwtCacheConfig().GetJwtCacheSize(), 100_000)),
	}
	if m.GetSubjects() != nil {
		s := r.stringMatch(join(path, "subjects"), m.GetSubjects())
		p.Subject = &s
	}
	for _, h := range m.GetFromHeaders() {
		p.Headers = append(p.Headers, jwtauthn.HeaderPlace{Name: strings.ToLower(h.GetName()), Prefix: h.GetValuePrefix()})
	}
	for i, h := range m.GetClaimToHeaders() {
		hp := index(join(path, "claim_to_headers"), i)
		claim := strings.Split(h.GetClaimName(), ".")
		if len(h.GetClaimPath()) > 0 {
			claim = nil
			for _, s := range h.GetClaimPath() {
				claim = append(claim, s.GetKey())
			}
		}
		p.ClaimHeaders = append(p.ClaimHeaders, jwtauthn.ClaimHeader{Name: r.ownHeader(join(hp, "header_name"), h.GetHeaderName()), Claim: claim})
	}
	switch s := m.GetJwksSourceSpecifier().(type) {
	case *jwtv3.JwtProvider_LocalJwks:
		b, _ := r.source(join(path, "local_jwks"), s.LocalJwks)
		keys, err := jwtauthn.ParseKeys(b)
		if err != nil {
			r.errorf(join(path, "local_jwks"), "%w", err)
		}
		p.Keys = keys
	case *jwtv3.JwtProvider_RemoteJwks:
		p.Remote = r.remoteKeys(join(path, "remote_jwks"), s.RemoteJwks)
	default:
		r.errorf(path, "neither local_jwks nor remote_jwks")
	}
	return p
}

// ownHeader returns the name of a header that a filter sets; empty if none is.
func (r *run) ownHeader(path, name string) string {
	lower := strings.ToLower(name)
	if name != "" && (!token(lower) || framing[lower] || lower == "host") {
		r.errorf(path, "%q is no header that can be set", name)
	}
	return lower
}

func (r *run) remoteKeys(path string, m *jwtv3.RemoteJwks) *jwtauthn.Remote {
	r.only(path, m, "http_uri cache_duration async_fetch retry_policy", "")
	authority, target := r.httpURI(join(path, "http_uri"), m.GetHttpUri())
	out := &jwtauthn.Remote{
		Cluster:   m.GetHttpUri().GetCluster(),
		Authority: authority,
		Path:      target,
		Timeout:   r.duration(join(path, "http_uri.timeout"), m.GetHttpUri().GetTimeout(), 0),
		Cache:     r.duration(join(path, "cache_duration"), m.GetCacheDuration(), 0),
		Async:     m.GetAsyncFetch() != nil,
		Refetch:   r.duration(join(path, "async_fetch.failed_refetch_duration"), m.GetAsyncFetch().GetFailedRefetchDuration(), 0),
	}
	r.only(join(path, "async_fetch"), m.GetAsyncFetch(), "failed_refetch_duration",
		// Listeners never wait for keys; requests do.
		"fast_listener")
	if p := m.GetRetryPolicy(); p != nil {
		pp := join(path, "retry_policy")
		r.only(pp, p, "retry_back_off num_retries", "")
		out.Retries = min(u32(p.GetNumRetries(), 1), 100)
		out.BackOff = r.duration(join(pp, "retry_back_off.base_interval"), p.GetRetryBackOff().GetBaseInterval(), 0)
		out.MaxOff = r.duration(join(pp, "retry_back_off.max_interval"), p.GetRetryBackOff().GetMaxInterval(), 0)
	}
	return out
}

// httpURI returns the authority and the path that a URI is asked with.
func (r *run) httpURI(path string, m *corev3.HttpUri) (authority, target string) {
	r.only(path, m, "uri cluster timeout", "")
	if m.GetCluster() == "" {
		r.errorf(join(path, "cluster"), "empty")
	}
	u, err := url.Parse(m.GetUri())
	if err != nil {
		r.errorf(join(path, "uri"), "%q is no URI", m.GetUri())
		return "", "/"
	}
	if u.Host == "" { // "host/path"
		if u, err = url.Parse("http://" + m.GetUri()); err != nil || u.Host == "" {
			r.errorf(join(path, "uri"), "%q has no host", m.GetUri())
			return "", "/"
		}
	}
	target = u.RequestURI()
	if !strings.HasPrefix(target, "/") {
		target = "/"
	}
	return u.Host, target
}
