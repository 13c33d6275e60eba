package httpapi

import (
	"net/http"

	"github.com/sarnmesh/sarn/internal/wireerr"
)

// aclRoutes are the endpoints of access control (spec/acl.md section 16). An agent does not start with ACLs on yet, so
// each says that they are off.
func (s *Server) aclRoutes() []endpoint {
	off := func(http.ResponseWriter, *http.Request) (any, error) { return nil, wireerr.ErrACLDisabled }
	var list []endpoint
	for _, e := range []struct{ path, methods string }{
		{"/v1/acl/bootstrap", "PUT"}, {"/v1/acl/login", "POST"}, {"/v1/acl/logout", "POST"}, {"/v1/acl/replication", "GET"},
		{"/v1/acl/tokens", "GET"}, {"/v1/acl/token", "PUT"}, {"/v1/acl/token/self", "GET"}, {"/v1/acl/token/", "GET,PUT,DELETE"},
		{"/v1/acl/policies", "GET"}, {"/v1/acl/policy", "PUT"}, {"/v1/acl/policy/", "GET,PUT,DELETE"}, {"/v1/acl/policy/name/", "GET"},
		{"/v1/acl/roles", "GET"}, {"/v1/acl/role", "PUT"}, {"/v1/acl/role/", "GET,PUT,DELETE"}, {"/v1/acl/role/name/", "GET"},
		{"/v1/acl/auth-methods", "GET"}, {"/v1/acl/auth-method", "PUT"}, {"/v1/acl/auth-method/", "GET,PUT,DELETE"},
		{"/v1/acl/binding-rules", "GET"}, {"/v1/acl/binding-rule", "PUT"}, {"/v1/acl/binding-rule/", "GET,PUT,DELETE"},
		{"/v1/acl/templated-policies", "GET"}, {"/v1/acl/templated-policy/name/", "GET"}, {"/v1/acl/templated-policy/preview/", "POST"},
		{"/v1/internal/acl/authorize", "POST"},
	} {
		list = append(list, endpoint{e.path, e.methods, off})
	}
	return list
}
