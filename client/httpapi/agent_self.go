package httpapi

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/internal/hostinfo"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) agentSelf(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.ownAgent(w, r, acl.Read)
	if err != nil {
		return refused(err)
	}
	self, err := a.Agent.Self(r.Context())
	if err != nil {
		return refused(err)
	}
	out := *self
	out.Stats = maps.Clone(self.Stats)
	if out.Stats == nil {
		out.Stats = map[string]map[string]string{}
	}
	counts := maps.Clone(out.Stats["agent"])
	if counts == nil {
		counts = map[string]string{}
	}
	scripts, ttls := a.Local.Counts()
	counts["check_monitors"], counts["check_ttls"] = strconv.Itoa(scripts), strconv.Itoa(ttls)
	counts["checks"], counts["services"] = strconv.Itoa(len(a.Local.Checks())), strconv.Itoa(len(a.Local.Services()))
	out.Stats["agent"] = counts
	return &out, p, nil
}

func (s *Server) agentHost(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.require(w, r, acl.Operator, acl.Read, "")
	if err != nil {
		return refused(err)
	}
	if a.Host != nil {
		return a.Host(), p, nil
	}
	return hostinfo.Collect(""), p, nil
}

func (s *Server) agentVersion(http.ResponseWriter, *http.Request) (any, acl.Permit, error) {
	a, p, err := s.ownFor(acl.Open(), nil)
	return &a.Version, p, err
}

func (s *Server) agentMembers(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	z, err := s.authorizer(w, r)
	if err != nil {
		return refused(err)
	}
	a, p, err := s.ownFor(z.Filtering(), nil)
	if err != nil {
		return refused(err)
	}
	q := query(w)
	wan := q.get("wan") != ""
	if segment := q.get("segment"); segment != "" {
		switch {
		case wan:
			return refused(wireerr.BadRequest("Cannot provide a segment with wan=true"))
		case segment != "_all":
			return refused(fmt.Errorf("network segments are not supported: %q", segment))
		}
	}
	f, err := filter.Compile[AgentMember](q.get("filter"))
	if err != nil {
		return refused(err)
	}
	members, err := a.Agent.Members(wan)
	if err != nil || members == nil && wan {
		return members, p, err
	}
	seen := make([]AgentMember, 0, len(members))
	for _, m := range members {
		if z.May(acl.Node, acl.Read, m.Name) {
			seen = append(seen, m)
		}
	}
	setFiltered(w, len(seen) < len(members))
	return f.Select(seen), p, nil
}

// setFiltered tells a client with a token that ACLs removed something.
func setFiltered(w http.ResponseWriter, filtered bool) {
	if filtered && w.(*response).hasToken {
		w.Header()["X-Consul-Results-Filtered-By-Acls"] = valueTrue
	}
}

func (s *Server) agentReload(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.ownAgent(w, r, acl.Write)
	if err != nil {
		return refused(err)
	}
	return done(p, a.Agent.Reload(r.Context()))
}

func (s *Server) agentJoin(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.ownAgent(w, r, acl.Write)
	if err != nil {
		return refused(err)
	}
	address := argument(w, r)
	err = a.Agent.Join(r.Context(), address, query(w).get("wan") != "")
	if err != nil && !strings.Contains(err.Error(), "Failed to join "+address) {
		err = fmt.Errorf("1 error occurred:\n\t* Failed to join %s: %w\n\n", address, err)
	}
	return done(p, err)
}

func (s *Server) agentLeave(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.ownAgent(w, r, acl.Write)
	if err != nil {
		return refused(err)
	}
	return done(p, a.Agent.Leave(r.Context()))
}

func (s *Server) agentForceLeave(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	a, p, err := s.require(w, r, acl.Operator, acl.Write, "")
	if err != nil {
		return refused(err)
	}
	q := query(w)
	return done(p, a.Agent.ForceLeave(argument(w, r), q.has("prune"), q.has("wan")))
}

// tokenNames maps the names of the token endpoint, with those of old, to tokens.
var tokenNames = map[string]AgentToken{
	"default": TokenDefault, "acl_token": TokenDefault,
	"agent": TokenAgent, "acl_agent_token": TokenAgent,
	"agent_recovery": TokenRecovery, "agent_master": TokenRecovery, "acl_agent_master_token": TokenRecovery,
	"replication": TokenReplication, "acl_replication_token": TokenReplication,
	"dns": TokenDNS, "dns_token": TokenDNS,
	"config_file_service_registration": TokenRegistration,
}

func (s *Server) agentToken(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	if !s.cfg.ACLEnabled {
		return refused(wireerr.ErrACLDisabled)
	}
	a, p, err := s.ownAgent(w, r, acl.Write)
	if err != nil {
		return refused(err)
	}
	var body struct{ Token string }
	if err := s.decode(r, &body, true); err != nil {
		return refused(err)
	}
	name := argument(w, r)
	kind, ok := tokenNames[name]
	if !ok {
		return refused(wireerr.NotFound("Token %q is unknown", name))
	}
	if err := a.Agent.SetToken(kind, body.Token); err != nil {
		return refused(err)
	}
	s.log.Info("agent token changed", "token", string(kind))
	if kind == TokenDefault || kind == TokenAgent {
		a.Local.SyncSoon()
	}
	return done(p, nil)
}
