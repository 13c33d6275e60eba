package httpapi

import (
	"net/http"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// tokenBody is a token as clients write it.
type tokenBody struct {
	acl.Token
	ExpirationTTL operator.Duration
}

const tokenDecoding = "Token decoding failed"

func (s *Server) aclCreateToken(w http.ResponseWriter, r *http.Request) (any, error) {
	var body tokenBody
	if err := s.aclDecode(r, &body, tokenDecoding); err != nil {
		return nil, err
	}
	return s.aclSetToken(w, r, &body, true)
}

func (s *Server) aclSetToken(w http.ResponseWriter, r *http.Request, body *tokenBody, create bool) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	reply, err := access.TokenSetCall.Call(r.Context(), s.caller, &access.TokenSetRequest{
		Target: s.target(w, r), Create: create, Token: body.Token, TTL: time.Duration(body.ExpirationTTL),
	})
	if err != nil {
		return nil, err
	}
	return reply.Token, nil
}

// aclToken serves /v1/acl/token/:accessor.
func (s *Server) aclToken(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := aclID(w, r, "Missing token AccessorID")
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case http.MethodPut:
		var body tokenBody
		if err := s.aclDecode(r, &body, tokenDecoding); err != nil {
			return nil, err
		}
		if err := sameID("Token Accessor ID", id, &body.AccessorID); err != nil {
			return nil, err
		}
		return s.aclSetToken(w, r, &body, false)
	case http.MethodDelete:
		return s.aclDelete(w, r, access.TokenDeleteCall, id)
	}
	return s.aclReadToken(w, r, &access.TokenReadRequest{AccessorID: id, Expanded: query(w).has("expanded")})
}

func (s *Server) aclTokenSelf(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.aclReadToken(w, r, &access.TokenReadRequest{Self: true, Expanded: query(w).has("expanded")})
}

// expandedToken is a token with what it is linked to (spec/acl.md section 5).
type expandedToken struct {
	*acl.Token
	ExpandedPolicies          []*acl.Policy
	ExpandedRoles             []*acl.Role
	NamespaceDefaultPolicyIDs []string
	NamespaceDefaultRoleIDs   []string
	AgentACLDefaultPolicy     string
	AgentACLDownPolicy        string
	ResolvedByAgent           string
}

func (s *Server) aclReadToken(w http.ResponseWriter, r *http.Request, req *access.TokenReadRequest) (any, error) {
	var err error
	if req.Options, err = s.parseQuery(w, r); err != nil {
		return nil, err
	}
	reply, err := ask(s, r, access.TokenReadCall, req)
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &reply.Meta)
	switch e := reply.Expanded; {
	case reply.Token == nil:
		return nil, errTokenGone
	case e == nil:
		return reply.Token, nil
	default:
		return &expandedToken{
			Token: reply.Token, ExpandedPolicies: orEmpty(e.Policies), ExpandedRoles: orEmpty(e.Roles),
			AgentACLDefaultPolicy: e.DefaultPolicy, AgentACLDownPolicy: e.DownPolicy, ResolvedByAgent: e.Node,
		}, nil
	}
}

func (s *Server) aclTokens(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	q := query(w)
	reply, err := ask(s, r, access.TokenListCall, &access.TokenListRequest{
		Options: o, Policy: q.get("policy"), Role: q.get("role"), AuthMethod: q.get("authmethod"), ServiceName: q.get("servicename"),
	})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &reply.Meta)
	return orEmpty(reply.Tokens), nil
}

func (s *Server) aclCloneToken(w http.ResponseWriter, r *http.Request) (any, error) {
	var body tokenBody
	if err := s.aclDecode(r, &body, tokenDecoding); err != nil {
		return nil, err
	}
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	reply, err := access.TokenCloneCall.Call(r.Context(), s.caller, &access.TokenCloneRequest{
		Target: s.target(w, r), AccessorID: argument(w, r), Description: body.Description,
	})
	if err != nil {
		return nil, err
	}
	return reply.Token, nil
}

// aclBootstrap serves /v1/acl/bootstrap. No token is sent along: there is none yet.
func (s *Server) aclBootstrap(w http.ResponseWriter, r *http.Request) (any, error) {
	var body struct{ BootstrapSecret string }
	if err := s.aclDecodeOptional(r, &body, "Request decoding failed"); err != nil {
		return nil, err
	}
	reply, err := access.BootstrapCall.Call(r.Context(), s.caller, &access.BootstrapRequest{
		Target: read.Target{Datacenter: s.datacenter(w)}, Secret: body.BootstrapSecret,
	})
	if err != nil {
		return nil, err
	}
	return struct {
		ID string
		*acl.Token
	}{reply.Token.SecretID, reply.Token}, nil
}

const requestDecoding = "Failed to decode request body"

// aclLogin serves /v1/acl/login. No token is sent along: it is what a login is for.
func (s *Server) aclLogin(w http.ResponseWriter, r *http.Request) (any, error) {
	var body struct {
		AuthMethod  string
		BearerToken string
		Meta        map[string]string
	}
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	if err := s.aclDecode(r, &body, requestDecoding); err != nil {
		return nil, err
	}
	reply, err := access.LoginCall.Call(r.Context(), s.caller, &access.LoginRequest{
		Target: read.Target{Datacenter: s.datacenter(w)}, AuthMethod: body.AuthMethod, BearerToken: body.BearerToken, Meta: body.Meta,
	})
	if err != nil {
		return nil, err
	}
	return reply.Token, nil
}

var errNoToken = wireerr.Errorf(http.StatusUnauthorized, "Supplied token does not exist")

func (s *Server) aclLogout(w http.ResponseWriter, r *http.Request) (any, error) {
	t := s.target(w, r)
	if t.Token == "" {
		return nil, errNoToken
	}
	if _, err := access.LogoutCall.Call(r.Context(), s.caller, &access.LogoutRequest{Target: t}); err != nil {
		return nil, err
	}
	return true, nil
}

func (s *Server) aclReplication(w http.ResponseWriter, r *http.Request) (any, error) {
	return access.ReplicationCall.Call(r.Context(), s.caller, &access.ReplicationRequest{Target: s.target(w, r)})
}

// aclAuthorize serves /v1/internal/acl/authorize: what the token may do, for consoles.
func (s *Server) aclAuthorize(w http.ResponseWriter, r *http.Request) (any, error) {
	var checks []access.Check
	if err := s.aclDecode(r, &checks, requestDecoding); err != nil {
		return nil, err
	}
	if len(checks) > access.MaxChecks {
		return nil, wireerr.BadRequest("Refusing to process more than %d authorizations at once", access.MaxChecks)
	}
	if len(checks) == 0 {
		return []access.Check{}, nil
	}
	reply, err := access.AuthorizeCall.Call(r.Context(), s.caller, &access.AuthorizeRequest{
		Options: read.Options{Target: s.target(w, r)}, Checks: checks,
	})
	if err != nil {
		return nil, err
	}
	return orEmpty(reply.Checks), nil
}
