package aclcmd

import (
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Fixed objects that have names of their own.
const (
	anonymousID = "00000000-0000-0000-0000-000000000002"
	uuidLength  = 36
)

// builtIn are the policies every cluster has.
var builtIn = map[string]string{
	"global-management":        "00000000-0000-0000-0000-000000000001",
	"builtin/global-read-only": "00000000-0000-0000-0000-000000000002",
}

// whole returns the ID that a user means by its beginning: the one in a list, unless id is whole already. Errors begin with
// none, "No such …", or name the kind.
func whole[T any](c *verb.Call, id, none, kind string, list func(*api.QueryOptions) ([]T, *api.QueryMeta, error), idOf func(T) string) (string, error) {
	if len(id) == uuidLength {
		return id, nil
	}
	all, _, err := list(c.Query())
	if err != nil {
		return "", err
	}
	found := ""
	for _, o := range all {
		if strings.HasPrefix(idOf(o), id) {
			if found != "" {
				return "", verb.Errorf("Partial %s ID is not unique", kind)
			}
			found = idOf(o)
		}
	}
	if found == "" {
		return "", verb.Errorf("%s ID with prefix: %s", none, id)
	}
	return found, nil
}

// tokenID returns the accessor ID that a user means.
func tokenID(c *verb.Call, acl *api.ACL, id string) (string, error) {
	if id == "anonymous" {
		return anonymousID, nil
	}
	return whole(c, id, "No such token", "token", acl.TokenList, func(t *api.ACLTokenListEntry) string { return t.AccessorID })
}

func policyID(c *verb.Call, acl *api.ACL, id string) (string, error) {
	if fixed, ok := builtIn[id]; ok {
		return fixed, nil
	}
	return whole(c, id, "No such policy", "policy", acl.PolicyList, func(p *api.ACLPolicyListEntry) string { return p.ID })
}

func policyByName(c *verb.Call, acl *api.ACL, name string) (string, error) {
	if fixed, ok := builtIn[name]; ok {
		return fixed, nil
	}
	list, _, err := acl.PolicyList(c.Query())
	if err != nil {
		return "", err
	}
	for _, p := range list {
		if p.Name == name {
			return p.ID, nil
		}
	}
	return "", verb.Errorf("No such policy with name: %s", name)
}

func roleID(c *verb.Call, acl *api.ACL, id string) (string, error) {
	return whole(c, id, "No such role", "role", acl.RoleList, func(r *api.ACLRole) string { return r.ID })
}

func roleByName(c *verb.Call, acl *api.ACL, name string) (string, error) {
	list, _, err := acl.RoleList(c.Query())
	if err != nil {
		return "", err
	}
	for _, r := range list {
		if r.Name == name {
			return r.ID, nil
		}
	}
	return "", verb.Errorf("No such role with name %s", name)
}

func ruleID(c *verb.Call, acl *api.ACL, id string) (string, error) {
	list := func(q *api.QueryOptions) ([]*api.ACLBindingRule, *api.QueryMeta, error) {
		return acl.BindingRuleList("", q)
	}
	return whole(c, id, "no such rule", "rule", list, func(r *api.ACLBindingRule) string { return r.ID })
}
