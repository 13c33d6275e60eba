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

// requireAgent asks for a right on this agent.
func (s *Server) requireAgent(w http.ResponseWriter, r *http.Request, a acl.Access) error {
	z, err := s.authorizer(w, r)
	if err != nil {
		return err
	}
	_, err = z.Require(acl.Agent, a, s.cfg.NodeName)
	return err
}

func (s *Server) agentSelf(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.requireAgent(w, r, acl.Read); err != nil {
		return nil, err
	}
	self, err := s.cfg.Agent.Agent.Self(r.Context())
	if err != nil {
		return nil, err
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
	scripts, ttls := s.cfg.Agent.Local.Counts()
	counts["check_monitors"], counts["check_ttls"] = strconv.Itoa(scripts), strconv.Itoa(ttls)
	counts["checks"], counts["services"] = strconv.Itoa(len(s.cfg.Agent.Local.Checks())), strconv.Itoa(len(s.cfg.Agent.Local.Services()))
	out.Stats["agent"] = counts
	return &out, nil
}

func (s *Server) agentHost(w http.ResponseWriter, r *http.Request) (any, error) {
	z, err := s.authorizer(w, r)
	if err != nil {
		return nil, err
	}
	if _, err := z.Require(acl.Operator, acl.Read, ""); err != nil {
		return nil, err
	}
	if s.cfg.Agent.Host != nil {
		return s.cfg.Agent.Host(), nil
	}
	return hostinfo.Collect(""), nil
}

func (s *Server) agentVersion(http.ResponseWriter, *http.Request) (any, error) {
	return &s.cfg.Agent.Version, nil
}

func (s *Server) agentMembers(w http.ResponseWriter, r *http.Request) (any, error) {
	z, err := s.authorizer(w, r)
	if err != nil {
		return nil, err
	}
	q := query(w)
	wan := q.get("wan") != ""
	if segment := q.get("segment"); segment != "" {
		switch {
		case wan:
			return nil, wireerr.BadRequest("Cannot provide a segment with wan=true")
		case segment != "_all":
			return nil, fmt.Errorf("network segments are not supported: %q", segment)
		}
	}
	f, err := filter.Compile[AgentMember](q.get("filter"))
	if err != nil {
		return nil, err
	}
	members, err := s.cfg.Agent.Agent.Members(wan)
	if err != nil || members == nil && wan {
		return members, err
	}
	seen := make([]AgentMember, 0, len(members))
	for _, m := range members {
		if z.May(acl.Node, acl.Read, m.Name) {
			seen = append(seen, m)
		}
	}
	setFiltered(w, len(seen) < len(members))
	return f.Select(seen), nil
}

// setFiltered tells a client with a token that ACLs removed something.
func setFiltered(w http.ResponseWriter, filtered bool) {
	if filtered && w.(*response).hasToken {
		w.Header()["X-Consul-Results-Filtered-By-Acls"] = valueTrue
	}
}

func (s *Server) agentReload(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.requireAgent(w, r, acl.Write); err != nil {
		return nil, err
	}
	return nil, s.cfg.Agent.Agent.Reload(r.Context())
}

func (s *Server) agentJoin(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.requireAgent(w, r, acl.Write); err != nil {
		return nil, err
	}
	address := argument(w, r)
	err := s.cfg.Agent.Agent.Join(r.Context(), address, query(w).get("wan") != "")
	if err != nil && !strings.Contains(err.Error(), "Failed to join "+address) {
		return nil, fmt.Errorf("1 error occurred:\n\t* Failed to join %s: %w\n\n", address, err)
	}
	return nil, err
}

func (s *Server) agentLeave(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.requireAgent(w, r, acl.Write); err != nil {
		return nil, err
	}
	return nil, s.cfg.Agent.Agent.Leave(r.Context())
}

func (s *Server) agentForceLeave(w http.ResponseWriter, r *http.Request) (any, error) {
	z, err := s.authorizer(w, r)
	if err != nil {
		return nil, err
	}
	if _, err := z.Require(acl.Operator, acl.Write, ""); err != nil {
		return nil, err
	}
	q := query(w)
	return nil, s.cfg.Agent.Agent.ForceLeave(argument(w, r), q.has("prune"), q.has("wan"))
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

func (s *Server) agentToken(w http.ResponseWriter, r *http.Request) (any, error) {
	if !s.cfg.ACLEnabled {
		return nil, wireerr.ErrACLDisabled
	}
	if err := s.requireAgent(w, r, acl.Write); err != nil {
		return nil, err
	}
	var body struct{ Token string }
	if err := s.decode(r, &body, true); err != nil {
		return nil, err
	}
	name := argument(w, r)
	kind, ok := tokenNames[name]
	if !ok {
		return nil, wireerr.NotFound("Token %q is unknown", name)
	}
	if err := s.cfg.Agent.Agent.SetToken(kind, body.Token); err != nil {
		return nil, err
	}
	s.log.Info("agent token changed", "token", string(kind))
	if kind == TokenDefault || kind == TokenAgent {
		s.cfg.Agent.Local.SyncSoon()
	}
	return nil, nil
}
