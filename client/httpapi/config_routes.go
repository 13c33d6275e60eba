package httpapi

// configRoutes are the endpoints of the files config_*.go.
func (s *Server) configRoutes() []endpoint {
	return []endpoint{
		{"/v1/config", "PUT", s.configPut},
		{"/v1/config/", "GET,DELETE", s.config},
		{"/v1/exported-services", "GET", s.exportedServices},
	}
}
