//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"math"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/extauthz"
	"github.com/sarnmesh/sarn/connect/proxy/filter/unary"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var extAuthzFilter = httpFilter{
	name: "envoy.filters.http.ext_authz", old: "envoy.ext_authz",
	proto: (*extauthzv3.ExtAuthz)(nil), config: with((*run).extAuthz),
	routeProto: (*extauthzv3.ExtAuthzPerRoute)(nil),
	route: with(func(r *run, path string, m *extauthzv3.ExtAuthzPerRoute) model.FilterConfig {
		c := &extauthz.RouteConfig{Disabled: m.GetDisabled()}
		if s := m.GetCheckSettings(); s != nil {
			p := join(path, "check_settings")
			r.only(p, s, "context_extensions disable_request_body_buffering with_request_body", "")
			c.Extensions, c.NoBody = s.GetContextExtensions(), s.GetDisableRequestBodyBuffering()
			c.Body = r.authzBody(join(p, "with_request_body"), s.GetWithRequestBody())
			if c.NoBody && c.Body != nil {
				r.errorf(p, "disable_request_body_buffering and with_request_body can't both be set")
			}
		}
		return c
	}),
}

func (r *run) extAuthz(path string, m *extauthzv3.ExtAuthz) model.FilterConfig {
	r.only(path, m, `grpc_service http_service transport_api_version failure_mode_allow failure_mode_allow_header_add
		with_request_body clear_route_cache status_on_error metadata_context_namespaces route_metadata_context_namespaces
		filter_enabled filter_enabled_metadata deny_at_disable include_peer_certificate stat_prefix allowed_headers
		include_tls_session disallowed_headers encode_raw_headers enable_dynamic_metadata_ingestion
		max_denied_response_body_bytes`,
		// Changes are checked in any case; there are no spans of such requests, and no counters under clusters.
		"validate_mutations emit_client_span charge_cluster_response_stats")
	if v := m.GetTransportApiVersion(); m.GetGrpcService() != nil && v != corev3.ApiVersion_V3 && v != corev3.ApiVersion_AUTO {
		r.errorf(join(path, "transport_api_version"), "%v is not supported", v)
	}
	c := &extauthz.Config{
		AllowOnError:       m.GetFailureModeAllow(),
		AllowOnErrorHeader: m.GetFailureModeAllowHeaderAdd(),
		StatusOnError:      int(m.GetStatusOnError().GetCode()),
		Body:               r.authzBody(join(path, "with_request_body"), m.GetWithRequestBody()),
		Reroute:            m.GetClearRouteCache(),
		Metadata:           m.GetMetadataContextNamespaces(),
		RouteMetadata:      m.GetRouteMetadataContextNamespaces(),
		Enabled:            r.runtimeFraction(join(path, "filter_enabled"), m.GetFilterEnabled()),
		DenyDisabled:       m.GetDenyAtDisable().GetDefaultValue().GetValue(),
		PeerCertificate:    m.GetIncludePeerCertificate(),
		TLSSession:         m.GetIncludeTlsSession(),
		StatPrefix:         m.GetStatPrefix(),
		Allowed:            r.stringMatches(join(path, "allowed_headers"), m.GetAllowedHeaders()),
		Disallowed:         r.stringMatches(join(path, "disallowed_headers"), m.GetDisallowedHeaders()),
		RawHeaders:         m.GetEncodeRawHeaders(),
		IgnoreMetadata:     !boolean(m.GetEnableDynamicMetadataIngestion(), true),
		MaxDeniedBody:      int(min(m.GetMaxDeniedResponseBodyBytes(), math.MaxInt32)),
	}
	if m.GetFilterEnabledMetadata() != nil {
		match := r.metadataMatch(join(path, "filter_enabled_metadata"), m.GetFilterEnabledMetadata())
		c.EnabledMetadata = &match
	}
	switch s := m.GetServices().(type) {
	case *extauthzv3.ExtAuthz_GrpcService:
		g := r.grpcService(join(path, "grpc_service"), s.GrpcService)
		if s.GrpcService.GetTimeout() == nil {
			g.Timeout = extauthz.DefaultTimeout
		}
		c.GRPC = &g
	case *extauthzv3.ExtAuthz_HttpService:
		c.HTTP = r.authzHTTP(join(path, "http_service"), s.HttpService, c)
	default:
		r.errorf(path, "neither grpc_service nor http_service")
	}
	return c
}

func (r *run) authzBody(path string, m *extauthzv3.BufferSettings) *extauthz.Body {
	if m == nil {
		return nil
	}
	r.only(path, m, "max_request_bytes allow_partial_message pack_as_bytes", "")
	return &extauthz.Body{Max: int(min(m.GetMaxRequestBytes(), maxBuffer)), Partial: m.GetAllowPartialMessage(), Raw: m.GetPackAsBytes()}
}

func (r *run) authzHTTP(path string, m *extauthzv3.HttpService, c *extauthz.Config) *extauthz.HTTPService {
	r.only(path, m, "server_uri path_prefix path_override authorization_request authorization_response", "")
	r.httpURI(join(path, "server_uri"), m.GetServerUri())
	s := &extauthz.HTTPService{
		Cluster:      m.GetServerUri().GetCluster(),
		Timeout:      r.duration(join(path, "server_uri.timeout"), m.GetServerUri().GetTimeout(), extauthz.DefaultTimeout),
		PathPrefix:   m.GetPathPrefix(),
		PathOverride: m.GetPathOverride(),
	}
	for field, v := range map[string]string{"path_prefix": s.PathPrefix, "path_override": s.PathOverride} {
		if v != "" && !strings.HasPrefix(v, "/") {
			r.errorf(join(path, field), "must begin with /")
		}
	}
	if s.PathPrefix != "" && s.PathOverride != "" {
		r.errorf(path, "only one of path_prefix or path_override may be set")
	}
	q, qp := m.GetAuthorizationRequest(), join(path, "authorization_request")
	r.only(qp, q, "allowed_headers headers_to_add", "")
	if q.GetAllowedHeaders() != nil {
		c.Allowed = append(c.Allowed, r.stringMatches(join(qp, "allowed_headers"), q.GetAllowedHeaders())...)
	}
	s.Add = r.headerValues(join(qp, "headers_to_add"), q.GetHeadersToAdd())
	a, ap := m.GetAuthorizationResponse(), join(path, "authorization_response")
	r.only(ap, a, `allowed_upstream_headers allowed_upstream_headers_to_append allowed_client_headers
		allowed_client_headers_on_success dynamic_metadata_from_headers`, "")
	s.Upstream = r.stringMatches(join(ap, "allowed_upstream_headers"), a.GetAllowedUpstreamHeaders())
	s.UpstreamAppend = r.stringMatches(join(ap, "allowed_upstream_headers_to_append"), a.GetAllowedUpstreamHeadersToAppend())
	s.Client = r.stringMatches(join(ap, "allowed_client_headers"), a.GetAllowedClientHeaders())
	s.ClientOnSuccess = r.stringMatches(join(ap, "allowed_client_headers_on_success"), a.GetAllowedClientHeadersOnSuccess())
	s.Metadata = r.stringMatches(join(ap, "dynamic_metadata_from_headers"), a.GetDynamicMetadataFromHeaders())
	return s
}

// stringMatches returns the matchers of a list; nil only if there is no list.
func (r *run) stringMatches(path string, m *matcherv3.ListStringMatcher) []model.StringMatch {
	if m == nil {
		return nil
	}
	out := []model.StringMatch{}
	for i, p := range m.GetPatterns() {
		out = append(out, r.stringMatch(index(join(path, "patterns"), i), p))
	}
	return out
}

// headerValues returns headers that are sent as they stand there.
func (r *run) headerValues(path string, list []*corev3.HeaderValue) []message.Field {
	var out []message.Field
	for i, h := range list {
		p := index(path, i)
		r.only(p, h, "key value", "")
		name := strings.ToLower(h.GetKey())
		if !token(name) || framing[name] || name == "host" {
			r.errorf(join(p, "key"), "%q is no header that can be set", h.GetKey())
		}
		if strings.ContainsAny(h.GetValue(), "\r\n\x00") {
			r.errorf(join(p, "value"), "not one line of text")
		}
		if strings.Contains(h.GetValue(), "%") {
			r.errorf(join(p, "value"), "operators are not supported here")
		}
		out = append(out, message.Field{Name: name, Value: h.GetValue()})
	}
	return out
}

// grpcService returns where a gRPC service is found.
func (r *run) grpcService(path string, m *corev3.GrpcService) unary.Service {
	r.only(path, m, "envoy_grpc timeout initial_metadata", "")
	e := m.GetEnvoyGrpc()
	r.only(join(path, "envoy_grpc"), e, "cluster_name authority skip_envoy_headers", "max_receive_message_length")
	if e.GetClusterName() == "" {
		r.errorf(join(path, "envoy_grpc.cluster_name"), "empty")
	}
	return unary.Service{
		Cluster:   e.GetClusterName(),
		Authority: e.GetAuthority(),
		Timeout:   r.duration(join(path, "timeout"), m.GetTimeout(), 0),
		Metadata:  r.headerValues(join(path, "initial_metadata"), m.GetInitialMetadata()),
	}
}
