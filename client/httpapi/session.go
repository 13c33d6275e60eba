package httpapi

import (
	"net/http"
	"slices"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) sessionRoutes() []endpoint {
	return []endpoint{
		{"/v1/session/create", "PUT", s.sessionCreate},
		{"/v1/session/destroy/", "PUT", s.sessionDestroy},
		{"/v1/session/renew/", "PUT", s.sessionRenew},
		{"/v1/session/info/", "GET", s.sessionInfo},
		{"/v1/session/node/", "GET", s.sessionNode},
		{"/v1/session/list", "GET", s.sessionList},
	}
}

var errMissingSession = wireerr.BadRequest("Missing session")

// A sessionBody is what session/create takes (spec/state.md section 4.1).
type sessionBody struct {
	Name          string
	Node          string
	LockDelay     lockDelay
	Behavior      kv.Behavior
	TTL           string
	NodeChecks    []string
	ServiceChecks []kv.ServiceCheck
	Checks        []string
}

const defaultLockDelay = lockDelay(15 * time.Second)

// A lockDelay is a duration, or a number of nanoseconds; below a thousand of these, it is one of seconds.
type lockDelay time.Duration

// UnmarshalJSON reads either form.
func (d *lockDelay) UnmarshalJSON(data []byte) error {
	v := catalog.Duration(*d)
	if err := v.UnmarshalJSON(data); err != nil {
		return err
	}
	*d = lockDelay(v)
	if *d < 1000 {
		*d *= lockDelay(time.Second)
	}
	return nil
}

func (s *Server) sessionCreate(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	t := s.target(w, r)
	if s.remote(t.Datacenter) && !s.cfg.Server {
		// Only servers know the nodes of another datacenter's sessions.
		return nil, wireerr.Errorf(http.StatusInternalServerError, "cross datacenter lock must be created at server agent")
	}
	usual := []string{catalog.SerfCheckID}
	body := sessionBody{Node: s.cfg.NodeName, LockDelay: defaultLockDelay, Behavior: kv.Release, NodeChecks: usual, Checks: usual}
	buf, err := s.readJSON(r, s.cfg.MaxBodySize)
	if err != nil {
		return nil, err
	}
	defer putBuffer(buf)
	if len(buf.b) != 0 {
		// Decoding into the defaults writes into their arrays.
		body.NodeChecks, body.Checks = slices.Clone(usual), slices.Clone(usual)
		if err := decodeJSON(buf.b, &body, false); err != nil {
			return nil, decodeFailed(err)
		}
	}
	resp, err := kv.SessionCreateCall.Call(r.Context(), s.caller, &kv.SessionCreateRequest{Target: t, Session: body.session()})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// session applies the rules of the deprecated list of checks.
func (b *sessionBody) session() kv.Session {
	out := kv.Session{
		Name: b.Name, Node: b.Node, LockDelay: time.Duration(b.LockDelay), Behavior: b.Behavior, TTL: b.TTL,
		NodeChecks: b.NodeChecks, ServiceChecks: b.ServiceChecks, Checks: b.Checks,
	}
	if out.Behavior == "" {
		out.Behavior = kv.Release
	}
	switch {
	case len(b.Checks) == 0:
		out.NodeChecks, out.Checks = nil, nil
	case len(b.Checks) == 1 && b.Checks[0] == catalog.SerfCheckID, len(b.NodeChecks) == 0:
		out.Checks = nil
	}
	return out
}

func (s *Server) sessionDestroy(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	id := argument(w, r)
	if id == "" {
		return nil, errMissingSession
	}
	if _, err := kv.SessionDestroyCall.Call(r.Context(), s.caller, &kv.SessionDestroyRequest{Target: s.target(w, r), ID: id}); err != nil {
		return nil, err
	}
	return true, nil
}

func (s *Server) sessionRenew(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	id := argument(w, r)
	if id == "" {
		return nil, errMissingSession
	}
	resp, err := kv.SessionRenewCall.Call(r.Context(), s.caller, &kv.SessionRenewRequest{Target: o.Target, ID: id})
	if err != nil {
		return nil, err
	}
	if len(resp.Sessions) == 0 {
		return nil, wireerr.NotFound("Session id '%s' not found", id)
	}
	return listValue[*kv.Session]{resp.Sessions, appendSession}, nil
}

func (s *Server) sessionInfo(w http.ResponseWriter, r *http.Request) (any, error) {
	id := argument(w, r)
	return s.sessions(w, r, &kv.SessionsRequest{ID: id}, id == "", errMissingSession)
}

func (s *Server) sessionNode(w http.ResponseWriter, r *http.Request) (any, error) {
	node := argument(w, r)
	return s.sessions(w, r, &kv.SessionsRequest{Node: node}, node == "", errMissingNode)
}

func (s *Server) sessionList(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.sessions(w, r, &kv.SessionsRequest{}, false, nil)
}

func (s *Server) sessions(w http.ResponseWriter, r *http.Request, req *kv.SessionsRequest, missing bool, refusal error) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	if missing {
		return nil, refusal
	}
	req.Options = o
	resp, err := ask(s, r, kv.SessionsCall, req)
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return listValue[*kv.Session]{resp.Sessions, appendSession}, nil
}
