package server

import (
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/peering"
	"github.com/sarnmesh/sarn/server/peeringrpc"
)

// Peering answers the servers of other clusters, on the gRPC-TLS port.
func (s *Server) Peering() *peering.Engine { return s.peers }

// leaderForPeers returns where peers reach the leader, empty when that is not known or not the way they come.
func (s *Server) leaderForPeers() string {
	v := s.store.View()
	if m := state.EntryAs[entry.Mesh](v, entry.KindMesh, entry.MeshName); m != nil && m.Peering != nil && m.Peering.PeerThroughMeshGateways {
		return ""
	}
	status, _ := s.raft.Status()
	_, servers := v.Instances(catalog.ServerServiceName, true)
	for _, i := range servers {
		if i.Node.ID == status.LeaderID && status.LeaderID != "" {
			return peeringrpc.ServerAddress(i)
		}
	}
	return ""
}
