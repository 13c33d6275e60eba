package decode

import (
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// InlineRoutes returns the route configurations that stand within a listener, for showing.
func InlineRoutes(listener *anypb.Any) []*anypb.Any {
	var l listenerv3.Listener
	if listener.UnmarshalTo(&l) != nil {
		return nil
	}
	chains := l.GetFilterChains()
	if d := l.GetDefaultFilterChain(); d != nil {
		chains = append(chains, d)
	}
	var out []*anypb.Any
	for _, ch := range chains {
		for _, f := range ch.GetFilters() {
			var m hcmv3.HttpConnectionManager
			if f.GetTypedConfig().UnmarshalTo(&m) != nil || m.GetRouteConfig() == nil {
				continue
			}
			if a, err := anypb.New(m.GetRouteConfig()); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}
