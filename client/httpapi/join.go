package httpapi

import (
	"net/http"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/intro"
)

// joinToken makes a token by which one machine joins.
func (s *Server) joinToken(w http.ResponseWriter, r *http.Request) (any, error) {
	var body struct {
		Server bool
		TTL    catalog.Duration
	}
	if r.ContentLength != 0 {
		if err := s.decode(r, &body, true); err != nil {
			return nil, err
		}
	}
	reply, err := intro.NewJoinTokenCall.Call(r.Context(), s.caller, &intro.NewJoinTokenRequest{
		Target: s.target(w, r), Server: body.Server, TTL: time.Duration(body.TTL),
	})
	if err != nil {
		return nil, err
	}
	w.Header().Set("Cache-Control", "no-store")
	return struct {
		Token     string
		Server    bool
		ExpiresAt time.Time
	}{reply.Text, body.Server, reply.ExpiresAt.UTC()}, nil
}
