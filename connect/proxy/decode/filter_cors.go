package decode

import (
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/cors"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var corsFilter = httpFilter{
	name: "envoy.filters.http.cors", old: "envoy.cors",
	proto: (*corsv3.Cors)(nil),
	config: with(func(*run, string, *corsv3.Cors) model.FilterConfig {
		return &cors.Config{}
	}),
	routeProto: (*corsv3.CorsPolicy)(nil),
	route: with(func(r *run, path string, m *corsv3.CorsPolicy) model.FilterConfig {
		r.only(path, m, `allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials
			filter_enabled shadow_enabled allow_private_network_access forward_not_matching_preflights`, "")
		p := &cors.Policy{
			Methods: m.GetAllowMethods(), Headers: m.GetAllowHeaders(), Expose: m.GetExposeHeaders(), MaxAge: m.GetMaxAge(),
			Credentials:        optionalBool(m.GetAllowCredentials()),
			PrivateNetwork:     optionalBool(m.GetAllowPrivateNetworkAccess()),
			ForwardNotMatching: optionalBool(m.GetForwardNotMatchingPreflights()),
			Enabled:            r.runtimeFraction(join(path, "filter_enabled"), m.GetFilterEnabled()),
			Shadow:             r.runtimeFraction(join(path, "shadow_enabled"), m.GetShadowEnabled()),
		}
		for i, s := range m.GetAllowOriginStringMatch() {
			p.Origins = append(p.Origins, r.stringMatch(index(join(path, "allow_origin_string_match"), i), s))
		}
		for field, v := range map[string]string{"allow_methods": p.Methods, "allow_headers": p.Headers, "expose_headers": p.Expose, "max_age": p.MaxAge} {
			r.printable(join(path, field), v)
		}
		return p
	}),
}
