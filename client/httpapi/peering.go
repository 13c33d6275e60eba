package httpapi

import (
	"errors"
	"net/http"

	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// peeringRoutes are the endpoints of peerings with other clusters (spec/connect.md section 16).
func (s *Server) peeringRoutes() []endpoint {
	return []endpoint{
		{"/v1/peering/token", "POST", s.peeringToken},
		{"/v1/peering/establish", "POST", s.peeringEstablish},
		{"/v1/peering/", "GET,DELETE", s.peering},
		{"/v1/peerings", "GET", s.peerings},
	}
}

// decodePeering reads the body of a request about a peering.
func (s *Server) decodePeering(r *http.Request, v any) error {
	err := s.decodeRaw(r, v, true)
	if err == nil || wireerr.Carried(err) != 0 {
		return err
	}
	return wireerr.BadRequest("Body decoding failed: %v", err)
}

func (s *Server) peeringToken(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkPartition(w, r); err != nil {
		return nil, err
	}
	var body struct {
		PeerName                string
		Partition               string
		Meta                    map[string]string
		ServerExternalAddresses []string
	}
	if err := s.decodePeering(r, &body); err != nil {
		return nil, err
	}
	switch {
	case body.PeerName == "":
		return nil, wireerr.BadRequest("PeerName is required in the payload when generating a new peering token.")
	case body.Partition != "" && body.Partition != "default":
		return nil, errPeeringPartition
	}
	resp, err := peering.TokenCall.Call(r.Context(), s.caller, &peering.TokenRequest{
		Target: s.target(w, r), Name: body.PeerName, Meta: body.Meta, Addresses: body.ServerExternalAddresses,
	})
	if err != nil {
		return nil, err
	}
	return struct{ PeeringToken string }{resp.Token}, nil
}

// errPeeringPartition refuses a partition in a body, with the status that clients know.
var errPeeringPartition = errors.New("partitions are not supported")

func (s *Server) peeringEstablish(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkPartition(w, r); err != nil {
		return nil, err
	}
	var body struct {
		PeerName     string
		PeeringToken string
		Partition    string
		Meta         map[string]string
	}
	if err := s.decodePeering(r, &body); err != nil {
		return nil, err
	}
	switch {
	case body.PeerName == "":
		return nil, wireerr.BadRequest("PeerName is required in the payload when establishing a peering.")
	case body.PeeringToken == "":
		return nil, wireerr.BadRequest("PeeringToken is required in the payload when establishing a peering.")
	case body.Partition != "" && body.Partition != "default":
		return nil, errPeeringPartition
	}
	_, err := peering.EstablishCall.Call(r.Context(), s.caller, &peering.EstablishRequest{
		Target: s.target(w, r), Name: body.PeerName, Token: body.PeeringToken, Meta: body.Meta,
	})
	return struct{}{}, err
}

func (s *Server) peering(w http.ResponseWriter, r *http.Request) (any, error) {
	name := argument(w, r)
	if r.Method == http.MethodDelete {
		if name == "" {
			return nil, wireerr.BadRequest("Must specify a name to delete.")
		}
		_, err := peering.DeleteCall.Call(r.Context(), s.caller, &peering.DeleteRequest{Target: s.target(w, r), Name: name})
		return nil, err
	}
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	if err := s.checkPartition(w, r); err != nil {
		return nil, err
	}
	if name == "" {
		return nil, wireerr.BadRequest("Must specify a name to fetch.")
	}
	resp, err := ask(s, r, peering.GetCall, &peering.GetRequest{Options: o, Name: name})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	if resp.Peering == nil {
		return nil, wireerr.NotFound("Peering not found for %q", name)
	}
	return resp.Peering, nil
}

func (s *Server) peerings(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	if err := s.checkPartition(w, r); err != nil {
		return nil, err
	}
	resp, err := ask(s, r, peering.ListCall, &peering.ListRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	if resp.Peerings == nil {
		return []*peering.Shown{}, nil
	}
	return resp.Peerings, nil
}
