package aclcmd

import (
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/hcl"

	"github.com/sarnmesh/sarn/command/verb"
)

// grants are the flags that say what a token or role is linked to.
type grants struct {
	policyIDs, policyNames, roleIDs, roleNames, services, nodes *[]string
}

// linkFlags adds the flags, each name after a prefix such as "append-".
func linkFlags(f *flag.FlagSet, prefix string, roles bool) grants {
	list := func(name, usage string) *[]string { return verb.Strings(f, prefix+name, usage+"; repeatable") }
	g := grants{
		policyIDs: list("policy-id", "`ID` of a policy, or its beginning"), policyNames: list("policy-name", "`name` of a policy"),
		services: list("service-identity", "rights of a service: `NAME` or NAME:DATACENTER,DATACENTER"),
		nodes:    list("node-identity", "rights of an agent: `NODE:DATACENTER`"),
		roleIDs:  new([]string), roleNames: new([]string),
	}
	if roles {
		g.roleIDs, g.roleNames = list("role-id", "`ID` of a role, or its beginning"), list("role-name", "`name` of a role")
	}
	return g
}

func (g grants) anyPolicies() bool { return len(*g.policyIDs) > 0 || len(*g.policyNames) > 0 }
func (g grants) anyRoles() bool    { return len(*g.roleIDs) > 0 || len(*g.roleNames) > 0 }
func (g grants) any() bool {
	return g.anyPolicies() || g.anyRoles() || len(*g.services) > 0 || len(*g.nodes) > 0
}

// policies returns links to the policies named.
func (g grants) policies(c *verb.Call, acl *api.ACL) ([]*api.ACLLink, error) {
	var links []*api.ACLLink
	for _, name := range *g.policyNames {
		links = append(links, &api.ACLLink{Name: name})
	}
	for _, id := range *g.policyIDs {
		whole, err := policyID(c, acl, id)
		if err != nil {
			return nil, verb.Errorf("Error resolving policy ID %s: %w", id, err)
		}
		links = append(links, &api.ACLLink{ID: whole})
	}
	return links, nil
}

// roles returns links to the roles named.
func (g grants) roles(c *verb.Call, acl *api.ACL) ([]*api.ACLLink, error) {
	var links []*api.ACLLink
	for _, name := range *g.roleNames {
		links = append(links, &api.ACLLink{Name: name})
	}
	for _, id := range *g.roleIDs {
		whole, err := roleID(c, acl, id)
		if err != nil {
			return nil, verb.Errorf("Error resolving role ID %s: %w", id, err)
		}
		links = append(links, &api.ACLLink{ID: whole})
	}
	return links, nil
}

func (g grants) serviceIdentities() ([]*api.ACLServiceIdentity, error) {
	var list []*api.ACLServiceIdentity
	for _, s := range *g.services {
		name, datacenters, scoped := strings.Cut(s, ":")
		if strings.Contains(datacenters, ":") || name == "" || scoped && datacenters == "" {
			return nil, verb.Errorf("Malformed -service-identity argument: %q", s)
		}
		id := &api.ACLServiceIdentity{ServiceName: name}
		if scoped {
			id.Datacenters = strings.Split(datacenters, ",")
		}
		list = append(list, id)
	}
	return list, nil
}

func (g grants) nodeIdentities() ([]*api.ACLNodeIdentity, error) {
	var list []*api.ACLNodeIdentity
	for _, s := range *g.nodes {
		name, datacenter, ok := strings.Cut(s, ":")
		if !ok || name == "" || datacenter == "" || strings.Contains(datacenter, ":") {
			return nil, verb.Errorf("Malformed -node-identity argument: %q", s)
		}
		list = append(list, &api.ACLNodeIdentity{NodeName: name, Datacenter: datacenter})
	}
	return list, nil
}

// templated are the flags that name templated policies.
type templated struct {
	name, file *string
	vars       *[]string
}

// templateFlags adds the flags; with a prefix, the variables are those of another set.
func templateFlags(f *flag.FlagSet, prefix string, vars *[]string) templated {
	return templated{
		name: f.String(prefix+"templated-policy", "", "`name` of a template; see -var"),
		file: f.String(prefix+"templated-policy-file", "", "`file` with templated policies"),
		vars: vars,
	}
}

func templateVars(f *flag.FlagSet) *[]string {
	return verb.Strings(f, "var", "variable of the template, `name:value`; repeatable")
}

func (t templated) any() bool { return *t.name != "" || *t.file != "" }

// list returns what the flags name.
func (t templated) list() ([]*api.ACLTemplatedPolicy, error) {
	switch {
	case *t.name != "" && *t.file != "":
		return nil, verb.Errorf("Cannot combine the use of templated-policy flag with templated-policy-file. " +
			"To use one templated policy with few variables, give templated-policy; for several, or for more, give templated-policy-file")
	case *t.name != "":
		vars, err := parseVars(*t.vars)
		if err != nil {
			return nil, err
		}
		return []*api.ACLTemplatedPolicy{{TemplateName: *t.name, TemplateVariables: vars}}, nil
	case *t.file != "":
		return readTemplated(*t.file)
	}
	return nil, nil
}

func parseVars(vars []string) (*api.ACLTemplatedPolicyVariables, error) {
	if len(vars) == 0 {
		return nil, nil
	}
	v := &api.ACLTemplatedPolicyVariables{}
	for _, s := range vars {
		name, value, ok := strings.Cut(s, ":")
		switch {
		case !ok:
			return nil, verb.Errorf("malformed -var argument: %q, expecting VariableName:Value", s)
		case !strings.EqualFold(name, "name"):
			return nil, verb.Errorf("unknown variable %q: templates take the variable \"name\" alone", name)
		}
		v.Name = value
	}
	return v, nil
}

// readTemplated reads a file of blocks such as TemplatedPolicy "builtin/service" { Name = "web" }, or the same in JSON.
func readTemplated(path string) ([]*api.ACLTemplatedPolicy, error) {
	text, err := (&verb.Call{}).Data("@" + path)
	if err != nil {
		return nil, err
	}
	return parseTemplated(text)
}

func parseTemplated(text string) ([]*api.ACLTemplatedPolicy, error) {
	var doc struct {
		TemplatedPolicy []map[string][]struct {
			Name        string
			Datacenters []string
		}
	}
	if err := hcl.Decode(&doc, text); err != nil {
		return nil, fmt.Errorf("error parsing the templated policies: %w", err)
	}
	var list []*api.ACLTemplatedPolicy
	for _, block := range doc.TemplatedPolicy {
		names := make([]string, 0, len(block))
		for name := range block {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			for _, use := range block[name] {
				t := &api.ACLTemplatedPolicy{TemplateName: name, Datacenters: use.Datacenters}
				if use.Name != "" {
					t.TemplateVariables = &api.ACLTemplatedPolicyVariables{Name: use.Name}
				}
				list = append(list, t)
			}
		}
	}
	if len(list) == 0 {
		return nil, verb.Errorf("the file names no templated policy")
	}
	return list, nil
}

// add appends what is not in a list yet.
func add[T any](list []T, more []T, same func(a, b T) bool) []T {
	for _, m := range more {
		if !slices.ContainsFunc(list, func(have T) bool { return same(have, m) }) {
			list = append(list, m)
		}
	}
	return list
}

func sameLink(a, b *api.ACLLink) bool {
	return a.ID != "" && a.ID == b.ID || a.Name != "" && a.Name == b.Name
}
func sameService(a, b *api.ACLServiceIdentity) bool { return a.ServiceName == b.ServiceName }
func sameNode(a, b *api.ACLNodeIdentity) bool       { return *a == *b }
func sameTemplate(a, b *api.ACLTemplatedPolicy) bool {
	name := func(t *api.ACLTemplatedPolicy) string {
		if t.TemplateVariables == nil {
			return ""
		}
		return t.TemplateVariables.Name
	}
	return a.TemplateName == b.TemplateName && name(a) == name(b)
}
