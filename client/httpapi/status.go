package httpapi

import (
	"net/http"

	"github.com/sarnmesh/sarn/catalog/operator"
)

func (s *Server) statusRoutes() []endpoint {
	return []endpoint{
		{"/v1/status/leader", "GET", s.statusLeader},
		{"/v1/status/peers", "GET", s.statusPeers},
	}
}

func (s *Server) statusLeader(w http.ResponseWriter, r *http.Request) (any, error) {
	resp, err := operator.LeaderCall.Call(r.Context(), s.caller, &operator.StatusRequest{Target: s.target(w, r)})
	if err != nil {
		return nil, err
	}
	return resp.Address, nil
}

func (s *Server) statusPeers(w http.ResponseWriter, r *http.Request) (any, error) {
	resp, err := operator.PeersCall.Call(r.Context(), s.caller, &operator.StatusRequest{Target: s.target(w, r)})
	if err != nil {
		return nil, err
	}
	return stringsValue(resp.Peers), nil
}
