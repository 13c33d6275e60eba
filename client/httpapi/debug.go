package httpapi

import (
	"net/http"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// serveDebug answers below /debug/pprof/ while that is open to everybody, else those who may see how the cluster is run.
func (s *Server) serveDebug(w http.ResponseWriter, r *http.Request) {
	open := s.cfg.DebugOpen == nil || s.cfg.DebugOpen()
	if !open && (!s.cfg.ACLEnabled || s.cfg.Authorize == nil) {
		notFound(w, "Profiles are off: set enable_debug = true in the agent's configuration to turn them on.\n")
		return
	}
	if !open {
		if err := s.mayDebug(r); err != nil {
			w.Header()["Content-Type"] = typeText
			w.WriteHeader(wireerr.Status(err))
			w.Write([]byte(err.Error()))
			return
		}
	}
	s.cfg.Debug.ServeHTTP(w, r)
}

func (s *Server) mayDebug(r *http.Request) error {
	var q params
	if err := q.parse(r.URL.RawQuery); err != nil {
		return wireerr.BadRequest("%v", err)
	}
	z, err := s.cfg.Authorize(r.Context(), s.ownToken(&q, r))
	if err != nil {
		return err
	}
	_, err = z.Require(acl.Operator, acl.Read, "")
	return err
}

// ownToken returns the secret of a request that the routes of the API do not see.
func (s *Server) ownToken(q *params, r *http.Request) string {
	token := requestToken(q, r.Header)
	if token == "" && s.cfg.DefaultToken != nil {
		token = s.cfg.DefaultToken()
	}
	return token
}
