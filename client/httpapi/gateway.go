package httpapi

import (
	"net/http"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// catalogGatewayServices serves /v1/catalog/gateway-services/:gateway.
func (s *Server) catalogGatewayServices(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	gateway := argument(w, r)
	if gateway == "" {
		return nil, errMissingGateway
	}
	resp, err := ask(s, r, entry.GatewayServicesCall, &entry.GatewayServicesRequest{Options: o, Gateway: gateway})
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	if resp.Services == nil {
		return []entry.GatewayService{}, nil
	}
	return resp.Services, nil
}
