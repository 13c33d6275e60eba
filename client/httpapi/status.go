package httpapi

import (
	"net/http"

	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
)

func (s *Server) statusRoutes() []endpoint {
	return []endpoint{
		{"/v1/status/leader", "GET", s.statusLeader},
		{"/v1/status/peers", "GET", s.statusPeers},
	}
}

// withoutToken is a target without a token: everybody may know who leads, also while the agent's own token is not known yet.
func (s *Server) withoutToken(w http.ResponseWriter) read.Target {
	return read.Target{Datacenter: s.datacenter(w)}
}

func (s *Server) statusLeader(w http.ResponseWriter, r *http.Request) (any, error) {
	resp, err := operator.LeaderCall.Call(r.Context(), s.caller, &operator.StatusRequest{Target: s.withoutToken(w)})
	if err != nil {
		return nil, err
	}
	return resp.Address, nil
}

func (s *Server) statusPeers(w http.ResponseWriter, r *http.Request) (any, error) {
	resp, err := operator.PeersCall.Call(r.Context(), s.caller, &operator.StatusRequest{Target: s.withoutToken(w)})
	if err != nil {
		return nil, err
	}
	return stringsValue(resp.Peers), nil
}
