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

func (s *Server) agentChecks(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return refused(err)
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return refused(err)
	}
	all := s.registered.Checks()
	seen := make([]*catalog.Check, 0, len(all))
	for _, c := range all {
		if s.checkRight(c.Record, func(res acl.Resource, name string) bool { return z.May(res, acl.Read, name) }) {
			seen = append(seen, c.Record)
		}
	}
	setFiltered(w, len(seen) < len(all))
	if len(seen) == 0 {
		return checkMap{}, z.Filtering(), nil // a filter is looked at only where there is something to filter
	}
	f, err := filter.Compile[*catalog.Check](query(w).get("filter"))
	if err != nil {
		if fe, ok := errors.AsType[*filter.Error](err); ok {
			return refused(errors.New(fe.Text))
		}
		return refused(err)
	}
	return checkMap(f.Select(seen)), z.Filtering(), nil
}

// checkRight calls ask with what rights on a check are asked for: its service, or the node.
func (s *Server) checkRight(c *catalog.Check, ask func(acl.Resource, string) bool) bool {
	if c.ServiceID != "" {
		return ask(acl.Service, c.ServiceName)
	}
	return ask(acl.Node, s.cfg.NodeName)
}

func (s *Server) mayWriteCheck(z *acl.Authorizer, c *catalog.Check) (p acl.Permit, err error) {
	s.checkRight(c, func(res acl.Resource, name string) bool {
		p, err = z.Require(res, acl.Write, name)
		return err == nil
	})
	return p, err
}

func (s *Server) agentRegisterCheck(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return refused(err)
	}
	body, err := s.readJSON(r, s.cfg.MaxBodySize)
	if err != nil {
		return refused(err)
	}
	def, err := definition.DecodeCheck(bytes.NewReader(body.b))
	putBuffer(body)
	if err != nil {
		return refused(decodeFailed(err))
	}
	def.Token = "" // the request's is used
	if err := def.ValidateRegistration(); err != nil {
		return refused(err)
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return refused(err)
	}
	var owner *catalog.Service
	if def.ServiceID != "" {
		svc := s.registered.Service(def.ServiceID)
		if svc == nil {
			return refused(wireerr.NotFound("ServiceID %q does not exist", def.ServiceID))
		}
		owner = svc.Given
	}
	rec := def.Record(s.cfg.NodeName, owner, false)
	p, err := s.mayWriteCheck(z, rec)
	if err != nil {
		return refused(err)
	}
	if old := s.registered.Check(rec.CheckID); old != nil {
		if p, err = s.mayWriteCheck(z, old.Record); err != nil {
			return refused(err)
		}
	}
	a, err := s.own.With(p)
	if err != nil {
		return refused(err)
	}
	return done(p, a.Local.RegisterCheck(r.Context(), def, local.Options{Token: requestToken(query(w), r.Header)}))
}

// ownCheck asks for the right to change a registered check.
func (s *Server) ownCheck(w http.ResponseWriter, r *http.Request, id string) (AgentConfig, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return AgentConfig{}, acl.Permit{}, err
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return AgentConfig{}, acl.Permit{}, err
	}
	c := s.registered.Check(id)
	if c == nil {
		return AgentConfig{}, acl.Permit{}, wireerr.NotFound("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)
	}
	return s.ownFor(s.mayWriteCheck(z, c.Record))
}

func (s *Server) agentDeregisterCheck(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	id := argument(w, r)
	a, p, err := s.ownCheck(w, r, id)
	if err != nil {
		return refused(err)
	}
	return done(p, a.Local.DeregisterCheck(r.Context(), id))
}

// agentSetCheck returns the handler that sets one status.
func (s *Server) agentSetCheck(status string) guarded {
	return func(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
		id := argument(w, r)
		a, p, err := s.ownCheck(w, r, id)
		if err != nil {
			return refused(err)
		}
		return done(p, a.Local.UpdateTTL(r.Context(), id, status, query(w).get("note")))
	}
}

func (s *Server) agentUpdateCheck(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	var body struct{ Status, Output string }
	if err := s.decode(r, &body, true); err != nil {
		return refused(err)
	}
	if body.Status == "" || !definition.ValidStatus(body.Status) {
		return refused(wireerr.BadRequest("Invalid check status: '%s'", body.Status))
	}
	id := argument(w, r)
	a, p, err := s.ownCheck(w, r, id)
	if err != nil {
		return refused(err)
	}
	return done(p, a.Local.UpdateTTL(r.Context(), id, body.Status, body.Output))
}
