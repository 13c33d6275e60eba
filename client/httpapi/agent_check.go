package httpapi

import (
	"bytes"
	"errors"
	"net/http"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// checkMap is written as an object with a member for each check.
type checkMap []*catalog.Check

func (m checkMap) appendJSON(dst []byte) []byte {
	dst = append(dst, '{')
	for i, c := range m {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, c.CheckID), ':')
		dst = appendCheck(dst, c)
	}
	return append(dst, '}')
}

func (s *Server) agentChecks(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return nil, err
	}
	all := s.cfg.Agent.Local.Checks()
	seen := make([]*catalog.Check, 0, len(all))
	for _, c := range all {
		if s.checkRight(c.Record, func(res acl.Resource, name string) bool { return z.May(res, acl.Read, name) }) {
			seen = append(seen, c.Record)
		}
	}
	setFiltered(w, len(seen) < len(all))
	if len(seen) == 0 {
		return checkMap{}, nil // a filter is looked at only where there is something to filter
	}
	f, err := filter.Compile[*catalog.Check](query(w).get("filter"))
	if err != nil {
		if fe, ok := errors.AsType[*filter.Error](err); ok {
			return nil, errors.New(fe.Text)
		}
		return nil, err
	}
	return checkMap(f.Select(seen)), nil
}

// checkRight calls ask with what rights on a check are asked for: its service, or the node.
func (s *Server) checkRight(c *catalog.Check, ask func(acl.Resource, string) bool) bool {
	if c.ServiceID != "" {
		return ask(acl.Service, c.ServiceName)
	}
	return ask(acl.Node, s.cfg.NodeName)
}

func (s *Server) mayWriteCheck(z *acl.Authorizer, c *catalog.Check) (err error) {
	s.checkRight(c, func(res acl.Resource, name string) bool {
		_, err = z.Require(res, acl.Write, name)
		return err == nil
	})
	return err
}

func (s *Server) agentRegisterCheck(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	body, err := s.readBody(r, s.cfg.MaxBodySize)
	if err != nil {
		return nil, err
	}
	def, err := definition.DecodeCheck(bytes.NewReader(body.b))
	putBuffer(body)
	if err != nil {
		return nil, decodeFailed(err)
	}
	def.Token = "" // the request's is used
	if err := def.ValidateRegistration(); err != nil {
		return nil, err
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return nil, err
	}
	var owner *catalog.Service
	if def.ServiceID != "" {
		svc := s.cfg.Agent.Local.Service(def.ServiceID)
		if svc == nil {
			return nil, wireerr.NotFound("ServiceID %q does not exist", def.ServiceID)
		}
		owner = svc.Given
	}
	rec := def.Record(s.cfg.NodeName, owner, false)
	if err := s.mayWriteCheck(z, rec); err != nil {
		return nil, err
	}
	if old := s.cfg.Agent.Local.Check(rec.CheckID); old != nil {
		if err := s.mayWriteCheck(z, old.Record); err != nil {
			return nil, err
		}
	}
	return nil, s.cfg.Agent.Local.RegisterCheck(r.Context(), def, local.Options{Token: requestToken(query(w), r.Header)})
}

// ownCheck asks for the right to change a registered check.
func (s *Server) ownCheck(w http.ResponseWriter, r *http.Request, id string) error {
	if err := s.checkTenancy(w, r); err != nil {
		return err
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return err
	}
	c := s.cfg.Agent.Local.Check(id)
	if c == nil {
		return wireerr.NotFound("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)
	}
	return s.mayWriteCheck(z, c.Record)
}

func (s *Server) agentDeregisterCheck(w http.ResponseWriter, r *http.Request) (any, error) {
	id := argument(w, r)
	if err := s.ownCheck(w, r, id); err != nil {
		return nil, err
	}
	return nil, s.cfg.Agent.Local.DeregisterCheck(r.Context(), id)
}

// agentSetCheck returns the handler that sets one status.
func (s *Server) agentSetCheck(status string) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		id := argument(w, r)
		if err := s.ownCheck(w, r, id); err != nil {
			return nil, err
		}
		return nil, s.cfg.Agent.Local.UpdateTTL(r.Context(), id, status, query(w).get("note"))
	}
}

func (s *Server) agentUpdateCheck(w http.ResponseWriter, r *http.Request) (any, error) {
	var body struct{ Status, Output string }
	if err := s.decode(r, &body, true); err != nil {
		return nil, err
	}
	if body.Status == "" || !definition.ValidStatus(body.Status) {
		return nil, wireerr.BadRequest("Invalid check status: '%s'", body.Status)
	}
	id := argument(w, r)
	if err := s.ownCheck(w, r, id); err != nil {
		return nil, err
	}
	return nil, s.cfg.Agent.Local.UpdateTTL(r.Context(), id, body.Status, body.Output)
}
