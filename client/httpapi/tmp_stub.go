package httpapi

import "net/http"

type Events any
type Datacenters any
type Keyring any
type Snapshots any

func (s *Server) statusRoutes() []endpoint   { return nil }
func (s *Server) operatorRoutes() []endpoint { return nil }
func (s *Server) snapshotRoutes() []endpoint { return nil }
func (s *Server) eventRoutes() []endpoint    { return nil }
func (s *Server) uiRoutes() []endpoint       { return nil }
func (s *Server) catalogDatacenters(w http.ResponseWriter, r *http.Request) (any, error) {
	return []string{s.cfg.Datacenter}, nil
}
func (s *Server) coordinateDatacenters(w http.ResponseWriter, r *http.Request) (any, error) {
	return []string{}, nil
}
func (s *Server) catalogGatewayServices(w http.ResponseWriter, r *http.Request) (any, error) {
	return []string{}, nil
}
