package httpapi

// connectRoutes are the endpoints of the files connect_*.go.
func (s *Server) connectRoutes() []endpoint { return nil }

// ConnectConfig is what the connect and configuration endpoints work with.
type ConnectConfig struct{}
