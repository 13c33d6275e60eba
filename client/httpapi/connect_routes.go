package httpapi

import "github.com/sarnmesh/sarn/client/leaf"

// connectRoutes are the endpoints of the files connect_*.go.
func (s *Server) connectRoutes() []endpoint {
	return []endpoint{
		{"/v1/connect/ca/roots", "GET", s.connectRoots},
		{"/v1/connect/ca/configuration", "GET,PUT", s.connectConfiguration},
		{"/v1/connect/ca/rotation", "GET,PUT", s.connectRotation},
		{"/v1/connect/intentions", "GET,POST", s.intentions},
		{"/v1/connect/intentions/exact", "GET,PUT,DELETE", s.intentionExact},
		{"/v1/connect/intentions/match", "GET", s.intentionMatch},
		{"/v1/connect/intentions/check", "GET", s.intentionCheck},
		{"/v1/connect/intentions/", "GET,PUT,DELETE", s.intentionByID},
		{"/v1/agent/connect/ca/roots", "GET", s.agentRoots},
		{"/v1/agent/connect/ca/leaf/", "GET", permitted(s.agentLeaf)},
		{"/v1/agent/connect/authorize", "POST", permitted(s.agentAuthorize)},
		{"/v1/discovery-chain/", "GET,POST", s.discoveryChain},
		{"/v1/internal/service-virtual-ip", "PUT", s.serviceVirtualIP},
	}
}

// ConnectConfig is what the connect and configuration endpoints work with.
type ConnectConfig struct {
	// Leaf keeps the certificates of local services. Nil answers calls about them as if connect were not enabled.
	Leaf *leaf.Keeper
	// IntentionPolicy is default_intention_policy: "allow", "deny", or empty to follow Config.DefaultPolicy.
	IntentionPolicy string
}
