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

// whole returns the one of the IDs that begins with a prefix.
func whole(prefix string, ids []string, none, many error) (string, error) {
	found := ""
	for _, id := range ids {
		if strings.HasPrefix(id, prefix) {
			if found != "" {
				return "", many
			}
			found = id
		}
	}
	if found == "" {
		return "", none
	}
	return found, nil
}

// tokenID returns the accessor ID that a user means.
func tokenID(c *verb.Call, acl *api.ACL, id string) (string, error) {
	switch {
	case id == "anonymous":
		return anonymousID, nil
	case len(id) == uuidLength:
		return id, nil
	}
	list, _, err := acl.TokenList(c.Query())
	if err != nil {
		return "", err
	}
	var ids []string
	for _, t := range list {
		ids = append(ids, t.AccessorID)
	}
	return whole(id, ids, verb.Errorf("No such token ID with prefix: %s", id), verb.Errorf("Partial token ID is not unique"))
}

func policyID(c *verb.Call, acl *api.ACL, id string) (string, error) {
	if fixed, ok := builtIn[id]; ok {
		return fixed, nil
	}
	if len(id) == uuidLength {
		return id, nil
	}
	list, _, err := acl.PolicyList(c.Query())
	if err != nil {
		return "", err
	}
	var ids []string
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return whole(id, ids, verb.Errorf("No such policy ID with prefix: %s", id), verb.Errorf("Partial policy ID is not unique"))
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
	if len(id) == uuidLength {
		return id, nil
	}
	list, _, err := acl.RoleList(c.Query())
	if err != nil {
		return "", err
	}
	var ids []string
	for _, r := range list {
		ids = append(ids, r.ID)
	}
	return whole(id, ids, verb.Errorf("No such role ID with prefix: %s", id), verb.Errorf("Partial role ID is not unique"))
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
	if len(id) == uuidLength {
		return id, nil
	}
	list, _, err := acl.BindingRuleList("", c.Query())
	if err != nil {
		return "", err
	}
	var ids []string
	for _, r := range list {
		ids = append(ids, r.ID)
	}
	return whole(id, ids, verb.Errorf("no such rule ID with prefix: %s", id), verb.Errorf("Partial rule ID is not unique"))
}
