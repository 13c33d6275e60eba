package aclcmd

import (
	"flag"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

func roleVerbs() []verb.Verb {
	return []verb.Verb{
		{Path: "acl role", Synopsis: "Make, show and change roles"},
		{Path: "acl role create", Synopsis: "Make a role", Setup: createRole},
		{Path: "acl role read", Synopsis: "Show a role", Setup: readRole},
		{
			Path: "acl role update", Synopsis: "Change a role", Setup: updateRole,
			Help: "Changes a role. What is given is added to what it is linked to; with -no-merge it takes its place.",
		},
		{Path: "acl role delete", Synopsis: "Delete a role", Setup: deleteRole},
		{Path: "acl role list", Synopsis: "List the roles", Setup: listRoles},
	}
}

// fillRole adds to a role what flags grant.
func fillRole(c *verb.Call, acl *api.ACL, role *api.ACLRole, g grants, templates []*api.ACLTemplatedPolicy) error {
	services, err := g.serviceIdentities()
	if err != nil {
		return err
	}
	nodes, err := g.nodeIdentities()
	if err != nil {
		return err
	}
	policies, err := g.policies(c, acl)
	if err != nil {
		return err
	}
	role.Policies = add(role.Policies, policies, sameLink)
	role.ServiceIdentities = add(role.ServiceIdentities, services, sameService)
	role.NodeIdentities = add(role.NodeIdentities, nodes, sameNode)
	role.TemplatedPolicies = add(role.TemplatedPolicies, templates, sameTemplate)
	return nil
}

func createRole(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	name := f.String("name", "", "`name` of the role")
	description := f.String("description", "", "`text` that says what it is for")
	g := linkFlags(f, "", false)
	t := templateFlags(f, "", templateVars(f))
	return func(c *verb.Call) error {
		if *name == "" {
			return verb.Usagef("Missing required '-name' flag")
		}
		if !g.any() && !t.any() {
			return verb.Errorf("Cannot create a role without specifying -policy-name, -policy-id, -service-identity, -node-identity, -templated-policy or " +
				"-templated-policy-file at least once")
		}
		templates, err := t.list()
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		role := &api.ACLRole{Name: *name, Description: *description}
		if err := fillRole(c, client.ACL(), role, g, templates); err != nil {
			return err
		}
		made, _, err := client.ACL().RoleCreate(role, c.Write())
		if err != nil {
			return verb.Errorf("Failed to create new role: %w", err)
		}
		return v.print(c, made, func(p *page) { p.role(made) })
	}
}

func readRole(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	id := f.String("id", "", "`ID` of the role, or its beginning")
	name := f.String("name", "", "`name` of the role")
	return func(c *verb.Call) error {
		if *id == "" && *name == "" {
			return verb.Errorf("Must specify either the -id or -name parameters")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		var role *api.ACLRole
		if *id != "" {
			whole, err := roleID(c, client.ACL(), *id)
			if err != nil {
				return verb.Errorf("Error determining role ID: %w", err)
			}
			if role, _, err = client.ACL().RoleRead(whole, c.Query()); err != nil {
				return verb.Errorf("Error reading role %q: %w", whole, err)
			}
			if role == nil {
				return verb.Errorf("Role not found with ID %q", whole)
			}
		} else {
			if role, _, err = client.ACL().RoleReadByName(*name, c.Query()); err != nil {
				return verb.Errorf("Error reading role %q: %w", *name, err)
			}
			if role == nil {
				return verb.Errorf("Role not found with name %q", *name)
			}
		}
		return v.print(c, role, func(p *page) { p.role(role) })
	}
}

func updateRole(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	id := f.String("id", "", "`ID` of the role, or its beginning")
	name := f.String("name", "", "new `name`")
	description := f.String("description", "", "new `text` that says what it is for")
	noMerge := f.Bool("no-merge", false, "take away what is not given")
	g := linkFlags(f, "", false)
	vars := templateVars(f)
	replace, more := templateFlags(f, "replace-", vars), templateFlags(f, "append-", vars)
	return func(c *verb.Call) error {
		if *id == "" {
			return verb.Errorf("Cannot update a role without specifying the -id parameter")
		}
		if replace.any() && more.any() {
			return verb.Errorf("Cannot combine the use of templated-policy flags with append- variants. To set or overwrite what is there, use those with " +
				"replace-; to add to it, those with append-")
		}
		replaced, err := replace.list()
		if err != nil {
			return err
		}
		added, err := more.list()
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		whole, err := roleID(c, client.ACL(), *id)
		if err != nil {
			return verb.Errorf("Error determining role ID: %w", err)
		}
		old, _, err := client.ACL().RoleRead(whole, c.Query())
		if err != nil {
			return verb.Errorf("Error when retrieving current role: %w", err)
		}
		if old == nil {
			return verb.Errorf("Role not found with ID %q", whole)
		}
		role := old
		if *noMerge {
			role = &api.ACLRole{ID: whole, Name: old.Name, Description: *description}
		} else if *description != "" {
			role.Description = *description
		}
		if *name != "" {
			role.Name = *name
		}
		if len(replaced) > 0 {
			role.TemplatedPolicies = nil
		}
		if err := fillRole(c, client.ACL(), role, g, append(replaced, added...)); err != nil {
			return err
		}
		role, _, err = client.ACL().RoleUpdate(role, c.Write())
		if err != nil {
			return verb.Errorf("Error updating role %q: %w", whole, err)
		}
		return v.print(c, role, func(p *page) { p.role(role) })
	}
}

func deleteRole(f *flag.FlagSet) func(*verb.Call) error {
	id := f.String("id", "", "`ID` of the role, or its beginning")
	name := f.String("name", "", "`name` of the role")
	return func(c *verb.Call) error {
		if *id == "" && *name == "" {
			return verb.Errorf("Must specify the -id or -name parameters")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		var whole string
		if *id != "" {
			whole, err = roleID(c, client.ACL(), *id)
		} else {
			whole, err = roleByName(c, client.ACL(), *name)
		}
		if err != nil {
			return verb.Errorf("Error determining role ID: %w", err)
		}
		if _, err := client.ACL().RoleDelete(whole, c.Write()); err != nil {
			return verb.Errorf("Error deleting role %q: %w", whole, err)
		}
		c.Printf("Role %q deleted successfully\n", whole)
		return nil
	}
}

func listRoles(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		list, _, err := client.ACL().RoleList(c.Query())
		if err != nil {
			return verb.Errorf("Failed to retrieve the role list: %w", err)
		}
		return v.print(c, list, func(p *page) { p.roles(list) })
	}
}
