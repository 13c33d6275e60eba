//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// An httpFilter decodes the configurations of one type of HTTP filter.
type httpFilter struct {
	name string // "envoy.filters.http.router"
	old  string // name before there were types: "envoy.router"; may be empty
	// config decodes what stands in the list of filters, which is a message like proto.
	proto  proto.Message
	config func(r *run, path string, m proto.Message) model.FilterConfig
	// route decodes what stands at a virtual host or a route, which is a message like routeProto. Nil: it is only
	// possible to switch the filter off there.
	routeProto proto.Message
	route      func(r *run, path string, m proto.Message) model.FilterConfig
}

// with makes a decoder of one that takes its message as what it is.
func with[M proto.Message](f func(r *run, path string, m M) model.FilterConfig) func(*run, string, proto.Message) model.FilterConfig {
	return func(r *run, path string, m proto.Message) model.FilterConfig { return f(r, path, m.(M)) }
}

// httpFilters are the filters that the proxy has. Each has its file, filter_<name>.go.
var httpFilters = []httpFilter{
	{
		name: "envoy.filters.http.router", old: "envoy.router",
		proto: (*routerv3.Router)(nil), config: with((*run).router),
	},
	rbacFilter,
	faultFilter,
	localRateLimitFilter,
	jwtFilter,
	extAuthzFilter,
	healthCheckFilter,
	headerToMetadataFilter,
	setMetadataFilter,
	bufferFilter,
	corsFilter,
	headerMutationFilter,
	compressorFilter,
	grpcStatsFilter,
	grpcBridgeFilter,
	grpcWebFilter,
	rateLimitFilter,
	basicAuthFilter,
	csrfFilter,
	admissionFilter,
}

// httpFilterOf returns the filter whose list entry, or whose route entry, is a message of the name.
func httpFilterOf(message string, route bool) *httpFilter {
	for i := range httpFilters {
		f := &httpFilters[i]
		m := f.proto
		if route {
			m = f.routeProto
		}
		if m != nil && string(m.ProtoReflect().Descriptor().FullName()) == message {
			return f
		}
	}
	return nil
}

// httpFilterNamed returns the filter with a name, which may be an old one.
func httpFilterNamed(name string) *httpFilter {
	for i := range httpFilters {
		if f := &httpFilters[i]; f.name == name || f.old != "" && f.old == name {
			return f
		}
	}
	return nil
}

// filterConfig decodes the configuration of a filter in the list of a manager; ok is false if there is none that
// could be used.
func (r *run) filterConfig(path, name string, a *anypb.Any) (c model.FilterConfig, ok bool) {
	if a == nil {
		// The form of old: only a name, and all defaults.
		if f := httpFilterNamed(name); f != nil {
			return f.config(r, path, f.proto.ProtoReflect().New().Interface()), true
		}
		r.errorf(path, "HTTP filter %q has no typed_config", name)
		return nil, false
	}
	f := httpFilterOf(typeOf(a), false)
	if f == nil {
		r.errorf(path, "HTTP filter %q of type %q is not supported", name, a.GetTypeUrl())
		return nil, false
	}
	m := f.proto.ProtoReflect().New().Interface()
	if !r.extension(path, a, m) {
		return nil, false
	}
	return f.config(r, path, m), true
}

// knownFilter reports whether the type of a filter's configuration is one that the proxy has.
func knownFilter(a *anypb.Any, route bool) bool { return httpFilterOf(typeOf(a), route) != nil }

// httpFilters decodes the filters of a manager or of an upgrade.
func (r *run) httpFilters(path string, list []*hcmv3.HttpFilter) []model.HTTPFilter {
	var out []model.HTTPFilter
	for i, f := range list {
		p := index(path, i)
		r.only(p, f, "name typed_config is_optional disabled", "")
		if f.GetConfigDiscovery() != nil {
			continue // reported as not supported
		}
		last := i == len(list)-1
		// No route can switch on what it can't name.
		if (f.GetIsOptional() || f.GetDisabled()) && f.GetTypedConfig() != nil && !knownFilter(f.GetTypedConfig(), false) {
			if last {
				r.errorf(p, "the last filter must be the router")
			}
			continue
		}
		c, ok := r.filterConfig(join(p, "typed_config"), f.GetName(), f.GetTypedConfig())
		if !ok {
			continue
		}
		_, router := c.(*model.Router)
		switch {
		case router && !last:
			r.errorf(p, "the router must be the last filter")
		case !router && last:
			r.errorf(p, "the last filter must be the router")
		case router && f.GetDisabled():
			r.errorf(join(p, "disabled"), "the router can't be disabled")
		}
		out = append(out, model.HTTPFilter{Name: f.GetName(), Disabled: f.GetDisabled(), Config: c})
	}
	if len(list) == 0 {
		r.errorf(path, "no filters: the last one must be the router")
	}
	return out
}

// perFilter decodes typed_per_filter_config.
func (r *run) perFilter(path string, m map[string]*anypb.Any) map[string]model.PerFilter {
	if len(m) == 0 {
		return nil
	}
	path = join(path, "typed_per_filter_config")
	out := make(map[string]model.PerFilter, len(m))
	for name, a := range m {
		p := fmt.Sprintf("%s[%s]", path, name)
		var pf model.PerFilter
		if typeOf(a) == "envoy.config.route.v3.FilterConfig" {
			var w routev3.FilterConfig
			if !r.extension(p, a, &w) {
				continue
			}
			r.only(p, &w, "config is_optional disabled", "")
			pf.Disabled, pf.Optional = w.GetDisabled(), w.GetIsOptional()
			if a, p = w.GetConfig(), join(p, "config"); a.GetTypeUrl() == "" {
				if a == nil && !pf.Disabled {
					r.errorf(p, "neither a configuration nor disabled")
				}
				out[name] = pf
				continue
			}
		}
		f := httpFilterOf(typeOf(a), true)
		if f == nil {
			if !pf.Optional {
				r.errorf(p, "configuration of type %q for filter %q is not supported here", a.GetTypeUrl(), name)
			} else if pf.Disabled {
				out[name] = pf
			}
			continue
		}
		c := f.routeProto.ProtoReflect().New().Interface()
		if r.extension(p, a, c) {
			pf.Config = f.route(r, p, c)
			out[name] = pf
		}
	}
	return out
}

func (r *run) router(path string, m *routerv3.Router) model.FilterConfig {
	r.only(path, m, `dynamic_stats start_child_span upstream_log suppress_envoy_headers strict_check_headers
		respect_expected_rq_timeout suppress_grpc_request_failure_code_stats`, "")
	return &model.Router{
		NoDynamicStats:      !boolean(m.GetDynamicStats(), true),
		StartChildSpan:      m.GetStartChildSpan(),
		UpstreamLogs:        r.accessLogs(join(path, "upstream_log"), m.GetUpstreamLog()),
		SuppressHeaders:     m.GetSuppressEnvoyHeaders(),
		StrictHeaders:       m.GetStrictCheckHeaders(),
		RespectExpected:     m.GetRespectExpectedRqTimeout(),
		SuppressGRPCFailure: m.GetSuppressGrpcRequestFailureCodeStats(),
	}
}
