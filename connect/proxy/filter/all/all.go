// Package all lists every filter that the proxy has.
package all

import (
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/admission"
	"github.com/sarnmesh/sarn/connect/proxy/filter/basicauth"
	"github.com/sarnmesh/sarn/connect/proxy/filter/buffer"
	"github.com/sarnmesh/sarn/connect/proxy/filter/compressor"
	"github.com/sarnmesh/sarn/connect/proxy/filter/cors"
	"github.com/sarnmesh/sarn/connect/proxy/filter/csrf"
	"github.com/sarnmesh/sarn/connect/proxy/filter/extauthz"
	"github.com/sarnmesh/sarn/connect/proxy/filter/fault"
	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcbridge"
	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcstats"
	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcweb"
	"github.com/sarnmesh/sarn/connect/proxy/filter/headermutation"
	"github.com/sarnmesh/sarn/connect/proxy/filter/headertometadata"
	"github.com/sarnmesh/sarn/connect/proxy/filter/healthcheck"
	"github.com/sarnmesh/sarn/connect/proxy/filter/jwtauthn"
	"github.com/sarnmesh/sarn/connect/proxy/filter/localratelimit"
	"github.com/sarnmesh/sarn/connect/proxy/filter/ratelimit"
	"github.com/sarnmesh/sarn/connect/proxy/filter/rbac"
	"github.com/sarnmesh/sarn/connect/proxy/filter/setmetadata"
)

// Types returns the filters by their type, which is what model.FilterConfig.FilterType returns.
func Types() map[string]filter.Type {
	types := map[string]filter.Type{}
	for _, t := range []filter.Type{
		admission.Type,
		basicauth.Type,
		buffer.Type,
		compressor.Type,
		cors.Type,
		csrf.Type,
		extauthz.Type,
		fault.Type,
		grpcbridge.Type,
		grpcstats.Type,
		grpcweb.Type,
		headermutation.Type,
		headertometadata.Type,
		healthcheck.Type,
		jwtauthn.Type,
		localratelimit.Type,
		ratelimit.Type,
		rbac.Type,
		setmetadata.Type,
	} {
		types[t.Name] = t
	}
	return types
}
