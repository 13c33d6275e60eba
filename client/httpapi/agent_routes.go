package httpapi

// agentRoutes are the endpoints of the files agent_*.go.
func (s *Server) agentRoutes() []endpoint { return nil }

// AgentConfig is what the agent endpoints work with.
type AgentConfig struct{}
