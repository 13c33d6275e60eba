package httpapi

import (
	"net/http"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// aclDelete removes one object.
func (s *Server) aclDelete(w http.ResponseWriter, r *http.Request, m rpc.Method[access.DeleteRequest, struct{}], id string) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	if _, err := m.Call(r.Context(), s.caller, &access.DeleteRequest{Target: s.target(w, r), ID: id}); err != nil {
		return nil, err
	}
	return true, nil
}

// aclRead reads one object, by ID or by name.
func aclRead[Resp any](s *Server, w http.ResponseWriter, r *http.Request, m rpc.Method[access.ReadRequest, Resp], id, name string) (*Resp, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	reply, err := ask(s, r, m, &access.ReadRequest{Options: o, ID: id, Name: name})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, any(reply).(metered).ReadMeta())
	return reply, nil
}

const policyDecoding = "Policy decoding failed"

func (s *Server) aclCreatePolicy(w http.ResponseWriter, r *http.Request) (any, error) {
	var body acl.Policy
	if err := s.aclDecode(r, &body, policyDecoding); err != nil {
		return nil, err
	}
	if body.ID != "" {
		return nil, wireerr.BadRequest("Cannot specify the ID when creating a new policy")
	}
	return s.aclSetPolicy(w, r, &body)
}

func (s *Server) aclSetPolicy(w http.ResponseWriter, r *http.Request, p *acl.Policy) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	reply, err := access.PolicySetCall.Call(r.Context(), s.caller, &access.PolicySetRequest{Target: s.target(w, r), Policy: *p})
	if err != nil {
		return nil, err
	}
	return reply.Policy, nil
}

// aclPolicy serves /v1/acl/policy/:id.
func (s *Server) aclPolicy(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := aclID(w, r, "Missing policy ID")
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case http.MethodPut:
		var body acl.Policy
		if err := s.aclDecode(r, &body, policyDecoding); err != nil {
			return nil, err
		}
		if err := sameID("Policy ID", id, &body.ID); err != nil {
			return nil, err
		}
		return s.aclSetPolicy(w, r, &body)
	case http.MethodDelete:
		return s.aclDelete(w, r, access.PolicyDeleteCall, id)
	}
	return s.aclReadPolicy(w, r, id, "")
}

func (s *Server) aclPolicyByName(w http.ResponseWriter, r *http.Request) (any, error) {
	name, err := aclID(w, r, "Missing policy Name")
	if err != nil {
		return nil, err
	}
	return s.aclReadPolicy(w, r, "", name)
}

func (s *Server) aclReadPolicy(w http.ResponseWriter, r *http.Request, id, name string) (any, error) {
	reply, err := aclRead(s, w, r, access.PolicyReadCall, id, name)
	if err != nil {
		return nil, err
	}
	if reply.Policy == nil {
		return nil, missingObject("policy")
	}
	return reply.Policy, nil
}

// listedPolicy is a policy in a list, without its rules.
type listedPolicy struct {
	ID          string
	Name        string
	Description string
	Datacenters []string
	Hash        []byte
	CreateIndex uint64
	ModifyIndex uint64
}

func (s *Server) aclPolicies(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	reply, err := ask(s, r, access.PolicyListCall, &access.ListRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &reply.Meta)
	list := make([]listedPolicy, 0, len(reply.Policies))
	for _, p := range reply.Policies {
		list = append(list, listedPolicy{p.ID, p.Name, p.Description, p.Datacenters, p.Hash, p.CreateIndex, p.ModifyIndex})
	}
	return list, nil
}

const roleDecoding = "Role decoding failed"

func (s *Server) aclCreateRole(w http.ResponseWriter, r *http.Request) (any, error) {
	var body acl.Role
	if err := s.aclDecode(r, &body, roleDecoding); err != nil {
		return nil, err
	}
	if body.ID != "" {
		return nil, wireerr.BadRequest("Cannot specify the ID when creating a new role")
	}
	return s.aclSetRole(w, r, &body)
}

func (s *Server) aclSetRole(w http.ResponseWriter, r *http.Request, role *acl.Role) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	reply, err := access.RoleSetCall.Call(r.Context(), s.caller, &access.RoleSetRequest{Target: s.target(w, r), Role: *role})
	if err != nil {
		return nil, err
	}
	return reply.Role, nil
}

// aclRole serves /v1/acl/role/:id.
func (s *Server) aclRole(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := aclID(w, r, "Missing role ID")
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case http.MethodPut:
		var body acl.Role
		if err := s.aclDecode(r, &body, roleDecoding); err != nil {
			return nil, err
		}
		if err := sameID("Role ID", id, &body.ID); err != nil {
			return nil, err
		}
		return s.aclSetRole(w, r, &body)
	case http.MethodDelete:
		return s.aclDelete(w, r, access.RoleDeleteCall, id)
	}
	return s.aclReadRole(w, r, id, "")
}

func (s *Server) aclRoleByName(w http.ResponseWriter, r *http.Request) (any, error) {
	name, err := aclID(w, r, "Missing role Name")
	if err != nil {
		return nil, err
	}
	return s.aclReadRole(w, r, "", name)
}

func (s *Server) aclReadRole(w http.ResponseWriter, r *http.Request, id, name string) (any, error) {
	reply, err := aclRead(s, w, r, access.RoleReadCall, id, name)
	if err != nil {
		return nil, err
	}
	if reply.Role == nil {
		return nil, missingObject("role")
	}
	return reply.Role, nil
}

func (s *Server) aclRoles(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	reply, err := ask(s, r, access.RoleListCall, &access.RoleListRequest{Options: o, Policy: query(w).get("policy")})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &reply.Meta)
	return orEmpty(reply.Roles), nil
}

// methodBody is an auth method as clients write and read it.
type methodBody struct {
	Name          string
	Type          string
	DisplayName   string            `json:",omitempty"`
	Description   string            `json:",omitempty"`
	MaxTokenTTL   operator.Duration `json:",omitzero"`
	TokenLocality string            `json:",omitempty"`
	Config        map[string]any    `json:",omitempty"` // not in lists
	CreateIndex   uint64
	ModifyIndex   uint64
}

func showMethod(m *acl.AuthMethod) *methodBody {
	return &methodBody{
		m.Name, m.Type, m.DisplayName, m.Description, operator.Duration(m.MaxTokenTTL), m.TokenLocality, m.Config, m.CreateIndex, m.ModifyIndex,
	}
}

const methodDecoding = "AuthMethod decoding failed"

func (s *Server) aclCreateAuthMethod(w http.ResponseWriter, r *http.Request) (any, error) {
	var body methodBody
	if err := s.aclDecode(r, &body, methodDecoding); err != nil {
		return nil, err
	}
	return s.aclSetAuthMethod(w, r, &body)
}

func (s *Server) aclSetAuthMethod(w http.ResponseWriter, r *http.Request, m *methodBody) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	reply, err := access.AuthMethodSetCall.Call(r.Context(), s.caller, &access.AuthMethodSetRequest{
		Target: s.target(w, r),
		AuthMethod: acl.AuthMethod{
			Name: m.Name, Type: m.Type, DisplayName: m.DisplayName, Description: m.Description, MaxTokenTTL: time.Duration(m.MaxTokenTTL),
			TokenLocality: m.TokenLocality, Config: m.Config,
		},
	})
	if err != nil {
		return nil, err
	}
	return showMethod(reply.AuthMethod), nil
}

// aclAuthMethod serves /v1/acl/auth-method/:name.
func (s *Server) aclAuthMethod(w http.ResponseWriter, r *http.Request) (any, error) {
	name, err := aclID(w, r, "Missing auth method name")
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case http.MethodPut:
		var body methodBody
		if err := s.aclDecode(r, &body, methodDecoding); err != nil {
			return nil, err
		}
		if err := sameID("AuthMethod Name", name, &body.Name); err != nil {
			return nil, err
		}
		return s.aclSetAuthMethod(w, r, &body)
	case http.MethodDelete:
		return s.aclDelete(w, r, access.AuthMethodDeleteCall, name)
	}
	reply, err := aclRead(s, w, r, access.AuthMethodReadCall, "", name)
	if err != nil {
		return nil, err
	}
	if reply.AuthMethod == nil {
		return nil, missingObject("auth method")
	}
	return showMethod(reply.AuthMethod), nil
}

func (s *Server) aclAuthMethods(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	reply, err := ask(s, r, access.AuthMethodListCall, &access.ListRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &reply.Meta)
	list := make([]*methodBody, 0, len(reply.AuthMethods))
	for _, m := range reply.AuthMethods {
		listed := showMethod(m)
		listed.Config = nil // it may hold secrets
		list = append(list, listed)
	}
	return list, nil
}

const ruleDecoding = "BindingRule decoding failed"

func (s *Server) aclCreateBindingRule(w http.ResponseWriter, r *http.Request) (any, error) {
	var body acl.BindingRule
	if err := s.aclDecode(r, &body, ruleDecoding); err != nil {
		return nil, err
	}
	if err := sameID("BindingRule ID", "", &body.ID); err != nil {
		return nil, err
	}
	return s.aclSetBindingRule(w, r, &body)
}

func (s *Server) aclSetBindingRule(w http.ResponseWriter, r *http.Request, b *acl.BindingRule) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	reply, err := access.BindingRuleSetCall.Call(r.Context(), s.caller, &access.BindingRuleSetRequest{Target: s.target(w, r), BindingRule: *b})
	if err != nil {
		return nil, err
	}
	return reply.BindingRule, nil
}

// aclBindingRule serves /v1/acl/binding-rule/:id.
func (s *Server) aclBindingRule(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := aclID(w, r, "Missing binding rule ID")
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case http.MethodPut:
		var body acl.BindingRule
		if err := s.aclDecode(r, &body, ruleDecoding); err != nil {
			return nil, err
		}
		if err := sameID("BindingRule ID", id, &body.ID); err != nil {
			return nil, err
		}
		return s.aclSetBindingRule(w, r, &body)
	case http.MethodDelete:
		return s.aclDelete(w, r, access.BindingRuleDeleteCall, id)
	}
	reply, err := aclRead(s, w, r, access.BindingRuleReadCall, id, "")
	if err != nil {
		return nil, err
	}
	if reply.BindingRule == nil {
		return nil, missingObject("binding rule")
	}
	return reply.BindingRule, nil
}

func (s *Server) aclBindingRules(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	reply, err := ask(s, r, access.BindingRuleListCall, &access.BindingRuleListRequest{Options: o, AuthMethod: query(w).get("authmethod")})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &reply.Meta)
	return orEmpty(reply.BindingRules), nil
}

// aclTemplates serves /v1/acl/templated-policies: an object by name.
func (s *Server) aclTemplates(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	reply, err := access.TemplateListCall.Call(r.Context(), s.caller, &access.TemplateListRequest{Target: s.target(w, r)})
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*acl.Template, len(reply.Templates))
	for _, t := range reply.Templates {
		byName[t.TemplateName] = t
	}
	return byName, nil
}

func (s *Server) aclTemplate(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	name, err := aclID(w, r, "Missing templated policy Name")
	if err != nil {
		return nil, err
	}
	reply, err := access.TemplateReadCall.Call(r.Context(), s.caller, &access.TemplateReadRequest{Target: s.target(w, r), Name: name})
	if err != nil {
		return nil, err
	}
	if reply.Template == nil {
		return nil, wireerr.BadRequest("Invalid templated policy Name: %s", name)
	}
	return reply.Template, nil
}

func (s *Server) aclPreviewTemplate(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return nil, err
	}
	name, err := aclID(w, r, "Missing templated policy Name")
	if err != nil {
		return nil, err
	}
	req := &access.TemplatePreviewRequest{Target: s.target(w, r), Name: name}
	if err := s.aclDecode(r, &req.Variables, requestDecoding); err != nil {
		return nil, err
	}
	reply, err := access.TemplatePreviewCall.Call(r.Context(), s.caller, req)
	if err != nil {
		return nil, err
	}
	return reply.Policy, nil
}
