package httpapi

// configRoutes are the endpoints of the files config_*.go.
func (s *Server) configRoutes() []endpoint { return nil }
