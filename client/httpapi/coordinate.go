package httpapi

import (
	"math"
	"net/http"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) coordinateRoutes() []endpoint {
	list := []endpoint{
		{"/v1/coordinate/nodes", "GET", s.coordinateNodes},
		{"/v1/coordinate/node/", "GET", s.coordinateNode},
		{"/v1/coordinate/datacenters", "GET", s.coordinateDatacenters},
		{"/v1/coordinate/update", "PUT", s.coordinateUpdate},
	}
	if s.cfg.DisableCoordinates {
		for i := range list {
			list[i].handle = func(http.ResponseWriter, *http.Request) (any, error) {
				return nil, wireerr.Errorf(http.StatusUnauthorized, "Coordinate support disabled")
			}
		}
	}
	return list
}

func (s *Server) coordinateNodes(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkPartition(w, r); err != nil {
		return nil, err
	}
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := ask(s, r, catalog.CoordinatesCall, &catalog.CoordinatesRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return inSegment(resp.Coordinates, query(w)), nil
}

// inSegment returns the coordinates of the segment asked for, all of them by default. Agents of this product are all
// in the segment with the empty name.
func inSegment(list []*catalog.NodeCoordinate, q *params) []*catalog.NodeCoordinate {
	segment, ok := q.lookup("segment")
	out := make([]*catalog.NodeCoordinate, 0, len(list))
	for _, c := range list {
		if !ok || c.Segment == segment {
			out = append(out, c)
		}
	}
	return out
}

func (s *Server) coordinateNode(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkPartition(w, r); err != nil {
		return nil, err
	}
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	node := argument(w, r)
	if node == "" {
		return nil, errMissingNode
	}
	resp, err := ask(s, r, catalog.CoordinatesCall, &catalog.CoordinatesRequest{Options: o, Node: node})
	if err != nil {
		return nil, err
	}
	list := inSegment(resp.Coordinates, query(w))
	if len(list) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return nil, nil
	}
	for i, c := range list { // the name is told as it was asked for
		named := *c
		named.Node = node
		list[i] = &named
	}
	s.setMeta(w, &resp.Meta)
	return list, nil
}

// coordinateDimensions is the size of coordinate vectors.
const coordinateDimensions = 8

func (s *Server) coordinateUpdate(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkPartition(w, r); err != nil {
		return nil, err
	}
	var body struct {
		Datacenter string
		catalog.NodeCoordinate
	}
	if err := s.decode(r, &body, false); err != nil {
		return nil, err
	}
	t := s.target(w, r)
	if body.Datacenter != "" {
		t.Datacenter = body.Datacenter
	}
	if err := checkCoordinate(body.Coord); err != nil {
		return nil, err
	}
	_, err := catalog.UpdateCoordinateCall.Call(r.Context(), s.caller,
		&catalog.CoordinateUpdate{Target: t, Updates: []*catalog.NodeCoordinate{&body.NodeCoordinate}})
	return nil, err
}

// checkCoordinate refuses what cannot be a position. The servers check again; JSON cannot carry a value that is not
// finite, so only the shape is left to see here.
func checkCoordinate(c *catalog.Coordinate) error {
	if c == nil || len(c.Vec) != coordinateDimensions {
		return wireerr.Errorf(http.StatusInternalServerError, "incompatible coordinate")
	}
	for _, v := range append([]float64{c.Error, c.Adjustment, c.Height}, c.Vec...) {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return wireerr.Errorf(http.StatusInternalServerError, "invalid coordinate")
		}
	}
	return nil
}
