package httpapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/sarnmesh/sarn/internal/wireerr"
)

// aclRoutes are the endpoints of the files acl_*.go (spec/acl.md section 16).
func (s *Server) aclRoutes() []endpoint {
	list := []endpoint{
		{"/v1/acl/bootstrap", "PUT", s.aclBootstrap},
		{"/v1/acl/login", "POST", s.aclLogin},
		{"/v1/acl/logout", "POST", s.aclLogout},
		{"/v1/acl/replication", "GET", s.aclReplication},
		{"/v1/acl/tokens", "GET", s.aclTokens},
		{"/v1/acl/token", "PUT", s.aclCreateToken},
		{"/v1/acl/token/self", "GET", s.aclTokenSelf},
		{"/v1/acl/token/", "GET,PUT,DELETE", s.aclToken},
		{"/v1/acl/token/*/clone", "PUT", s.aclCloneToken},
		{"/v1/acl/policies", "GET", s.aclPolicies},
		{"/v1/acl/policy", "PUT", s.aclCreatePolicy},
		{"/v1/acl/policy/", "GET,PUT,DELETE", s.aclPolicy},
		{"/v1/acl/policy/name/", "GET", s.aclPolicyByName},
		{"/v1/acl/roles", "GET", s.aclRoles},
		{"/v1/acl/role", "PUT", s.aclCreateRole},
		{"/v1/acl/role/", "GET,PUT,DELETE", s.aclRole},
		{"/v1/acl/role/name/", "GET", s.aclRoleByName},
		{"/v1/acl/auth-methods", "GET", s.aclAuthMethods},
		{"/v1/acl/auth-method", "PUT", s.aclCreateAuthMethod},
		{"/v1/acl/auth-method/", "GET,PUT,DELETE", s.aclAuthMethod},
		{"/v1/acl/binding-rules", "GET", s.aclBindingRules},
		{"/v1/acl/binding-rule", "PUT", s.aclCreateBindingRule},
		{"/v1/acl/binding-rule/", "GET,PUT,DELETE", s.aclBindingRule},
		{"/v1/acl/templated-policies", "GET", s.aclTemplates},
		{"/v1/acl/templated-policy/name/", "GET", s.aclTemplate},
		{"/v1/acl/templated-policy/preview/", "POST", s.aclPreviewTemplate},
		{"/v1/internal/acl/authorize", "POST", s.aclAuthorize},
	}
	if !s.cfg.ACLEnabled {
		for i := range list {
			list[i].handle = func(http.ResponseWriter, *http.Request) (any, error) { return nil, wireerr.ErrACLDisabled }
		}
	}
	return list
}

// aclDecode reads a body, and says what could not be read of which object.
func (s *Server) aclDecode(r *http.Request, v any, what string) error {
	if err := s.decodeRaw(r, v, true); err != nil {
		return unreadable(what, err)
	}
	return nil
}

// aclDecodeOptional is aclDecode for a body that may be missing.
func (s *Server) aclDecodeOptional(r *http.Request, v any, what string) error {
	if err := s.decodeRaw(r, v, true); err != nil && !errors.Is(err, io.EOF) {
		return unreadable(what, err)
	}
	return nil
}

// aclID returns the ID in a path, which must agree with that in a body.
func aclID(w http.ResponseWriter, r *http.Request, missing string) (string, error) {
	id := argument(w, r)
	if id == "" {
		return "", wireerr.BadRequest("%s", missing)
	}
	return id, nil
}

// sameID refuses a body that is about another object than the path.
func sameID(what, path string, body *string) error {
	if *body != "" && *body != path {
		return wireerr.BadRequest("%s in URL and payload do not match", what)
	}
	*body = path
	return nil
}

// missingObject is the answer to an object that is not there, where the servers do not say so themselves.
func missingObject(what string) error {
	return wireerr.NotFound("Requested %s does not exist: %s", what, wireerr.ErrTokenNotFound)
}

var errTokenGone = fmt.Errorf("token does not exist: %w", wireerr.ErrTokenNotFound)
