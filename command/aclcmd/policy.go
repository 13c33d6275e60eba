package aclcmd

import (
	"flag"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

func policyVerbs() []verb.Verb {
	return []verb.Verb{
		{Path: "acl policy", Synopsis: "Make, show and change policies"},
		{
			Path: "acl policy create", Synopsis: "Make a policy", Setup: createPolicy,
			Help: "Makes a policy. -rules is the text of its rules, @FILE or - for standard input.",
		},
		{Path: "acl policy read", Synopsis: "Show a policy", Setup: readPolicy},
		{
			Path: "acl policy update", Synopsis: "Change a policy", Setup: updatePolicy,
			Help: "Changes a policy. What is not given is kept; with -no-merge it is taken away.",
		},
		{Path: "acl policy delete", Synopsis: "Delete a policy", Setup: deletePolicy},
		{Path: "acl policy list", Synopsis: "List the policies", Setup: listPolicies},
	}
}

// readRules reads the text of rules.
func readRules(c *verb.Call, arg string) (string, error) {
	rules, err := c.Data(arg)
	if err != nil {
		return "", verb.Errorf("Error loading rules: %w", err)
	}
	return rules, nil
}

func createPolicy(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	name := f.String("name", "", "`name` of the policy")
	description := f.String("description", "", "`text` that says what it is for")
	datacenters := verb.Strings(f, "valid-datacenter", "`name` of a datacenter that it is good in; repeatable; default all")
	text := f.String("rules", "", "the `rules`, @FILE, or - for standard input")
	return func(c *verb.Call) error {
		if *name == "" {
			return verb.Usagef("Missing required '-name' flag")
		}
		rules, err := readRules(c, *text)
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		policy, _, err := client.ACL().PolicyCreate(&api.ACLPolicy{
			Name: *name, Description: *description, Datacenters: *datacenters, Rules: rules,
		}, c.Write())
		if err != nil {
			return verb.Errorf("Failed to create new policy: %w", err)
		}
		return v.print(c, policy, func(p *page) { p.policy(policy) })
	}
}

func readPolicy(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	id := f.String("id", "", "`ID` of the policy, or its beginning")
	name := f.String("name", "", "`name` of the policy")
	return func(c *verb.Call) error {
		if *id == "" && *name == "" {
			return verb.Errorf("Must specify either the -id or -name parameters")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if *id == "" {
			policy, _, err := client.ACL().PolicyReadByName(*name, c.Query())
			if err != nil {
				return verb.Errorf("Error reading policy %q: %w", *name, err)
			}
			if policy == nil {
				return verb.Errorf("Error policy not found: %s", *name)
			}
			return v.print(c, policy, func(p *page) { p.policy(policy) })
		}
		whole, err := policyID(c, client.ACL(), *id)
		if err != nil {
			return verb.Errorf("Error determining policy ID: %w", err)
		}
		policy, _, err := client.ACL().PolicyRead(whole, c.Query())
		if err != nil {
			return verb.Errorf("Error reading policy %q: %w", whole, err)
		}
		return v.print(c, policy, func(p *page) { p.policy(policy) })
	}
}

// onePolicy returns the ID of the policy that -id or else -name names.
func onePolicy(c *verb.Call, acl *api.ACL, id, name string) (whole string, err error) {
	if id != "" {
		whole, err = policyID(c, acl, id)
	} else {
		whole, err = policyByName(c, acl, name)
	}
	if err != nil {
		return "", verb.Errorf("Error determining policy ID: %w", err)
	}
	return whole, nil
}

func updatePolicy(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	text := func(name, usage string) *verb.Option[string] {
		return verb.Opt(f, name, usage, func(s string) (string, error) { return s, nil })
	}
	id := f.String("id", "", "`ID` of the policy, or its beginning")
	name := text("name", "new `name`; without -id, the name of the policy")
	description := text("description", "new `text` that says what it is for")
	rules := text("rules", "new `rules`, @FILE, or - for standard input")
	datacenters := verb.Strings(f, "valid-datacenter", "`name` of a datacenter that it is good in; repeatable")
	noMerge := f.Bool("no-merge", false, "take away what is not given")
	return func(c *verb.Call) error {
		if *id == "" && name.Value == "" {
			return verb.Errorf("Must specify either the -id or -name parameters")
		}
		written, err := readRules(c, rules.Value)
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		whole, err := onePolicy(c, client.ACL(), *id, name.Value)
		if err != nil {
			return err
		}
		policy := &api.ACLPolicy{ID: whole}
		if !*noMerge {
			if policy, _, err = client.ACL().PolicyRead(whole, c.Query()); err != nil {
				return verb.Errorf("Error when retrieving current policy: %w", err)
			}
		}
		if name.Given {
			policy.Name = name.Value
		}
		if description.Given || *noMerge {
			policy.Description = description.Value
		}
		if rules.Given || *noMerge {
			policy.Rules = written
		}
		if len(*datacenters) > 0 || *noMerge {
			policy.Datacenters = *datacenters
		}
		policy, _, err = client.ACL().PolicyUpdate(policy, c.Write())
		if err != nil {
			return verb.Errorf("Error updating policy %q: %w", whole, err)
		}
		return v.print(c, policy, func(p *page) { p.policy(policy) })
	}
}

func deletePolicy(f *flag.FlagSet) func(*verb.Call) error {
	id := f.String("id", "", "`ID` of the policy, or its beginning")
	name := f.String("name", "", "`name` of the policy")
	return func(c *verb.Call) error {
		if *id == "" && *name == "" {
			return verb.Errorf("Must specify either the -id or -name parameters")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		whole, err := onePolicy(c, client.ACL(), *id, *name)
		if err != nil {
			return err
		}
		if _, err := client.ACL().PolicyDelete(whole, c.Write()); err != nil {
			return verb.Errorf("Error deleting policy %q: %w", whole, err)
		}
		c.Printf("Policy %q deleted successfully\n", whole)
		return nil
	}
}

func listPolicies(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		list, _, err := client.ACL().PolicyList(c.Query())
		if err != nil {
			return verb.Errorf("Failed to retrieve the policy list: %w", err)
		}
		return v.print(c, list, func(p *page) { p.policies(list) })
	}
}
