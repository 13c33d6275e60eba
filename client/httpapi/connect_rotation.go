package httpapi

import (
	"net/http"
	"strconv"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/ca"
)

// connectRotation serves /v1/connect/ca/rotation, which is Sarn's own: how far the rotation of the root is, and the
// start of one.
func (s *Server) connectRotation(w http.ResponseWriter, r *http.Request) (any, error) {
	if r.Method == http.MethodPut {
		var body struct {
			PrivateKeyType string
			PrivateKeyBits int
			Force          bool
		}
		if r.ContentLength != 0 {
			if err := s.decode(r, &body, false); err != nil {
				return nil, err
			}
		}
		_, err := ca.RotateCall.Call(r.Context(), s.caller, &ca.RotateRequest{
			Target: s.target(w, r), PrivateKeyType: body.PrivateKeyType, PrivateKeyBits: body.PrivateKeyBits, Force: body.Force,
		})
		return nil, err
	}
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := ca.RotationCall.Call(r.Context(), s.caller, &ca.RotationRequest{
		Target: read.Target{Datacenter: o.Datacenter, Token: o.Token}, MinIndex: o.MinIndex, MaxWait: o.MaxWait,
	})
	if err != nil {
		return nil, err
	}
	w.Header()["X-Consul-Index"] = []string{strconv.FormatUint(max(resp.Index, 1), 10)}
	return resp, nil
}
