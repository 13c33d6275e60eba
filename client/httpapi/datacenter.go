package httpapi

import (
	"errors"
	"net/http"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// catalogDatacenters serves /v1/catalog/datacenters. A consistency parameter that cannot be is told before the answer,
// which comes all the same: clients of old rely on getting one.
func (s *Server) catalogDatacenters(w http.ResponseWriter, r *http.Request) (any, error) {
	_, refusal := s.parseOptions(w, r)
	req := &catalog.DatacentersRequest{}
	req.Token = s.token(w, r)
	resp, err := askKept(s, w, r, catalog.DatacentersCall, req)
	if err != nil {
		return nil, err
	}
	list := stringsValue(resp.Datacenters)
	if refusal == nil {
		return list, nil
	}
	if e, ok := errors.AsType[*wireerr.Error](refusal); ok {
		body := append([]byte(e.Text), list.appendJSON(nil)...)
		return statusValue{e.Status, rawValue{typeText, body}}, nil
	}
	return nil, refusal
}

func (s *Server) coordinateDatacenters(w http.ResponseWriter, r *http.Request) (any, error) {
	req := &catalog.DatacentersRequest{}
	req.Token = s.token(w, r)
	resp, err := catalog.DatacenterCoordinatesCall.Call(r.Context(), s.caller, req)
	if err != nil {
		return nil, err
	}
	out := make([]catalog.DatacenterCoordinates, 0, len(resp.Datacenters))
	for _, dc := range resp.Datacenters {
		if dc.Coordinates == nil {
			dc.Coordinates = []catalog.NodeCoordinate{}
		}
		out = append(out, dc)
	}
	return out, nil
}
