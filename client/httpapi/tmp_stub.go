package httpapi

import ("context";"time";"github.com/sarnmesh/sarn/internal/rpc")
type Cache interface { Get(ctx context.Context, d rpc.Descriptor, req, resp any) (hit bool, age time.Duration, err error) }
type Events any
type Datacenters any
type Keyring any
type Snapshots any
type instanceCache struct{}
func (s *Server) catalogRoutes() []endpoint { return nil }
func (s *Server) healthRoutes() []endpoint { return nil }
func (s *Server) kvRoutes() []endpoint { return nil }
func (s *Server) sessionRoutes() []endpoint { return nil }
func (s *Server) txnRoutes() []endpoint { return nil }
func (s *Server) statusRoutes() []endpoint { return nil }
func (s *Server) operatorRoutes() []endpoint { return nil }
func (s *Server) snapshotRoutes() []endpoint { return nil }
func (s *Server) eventRoutes() []endpoint { return nil }
func (s *Server) coordinateRoutes() []endpoint { return nil }
func (s *Server) uiRoutes() []endpoint { return nil }
