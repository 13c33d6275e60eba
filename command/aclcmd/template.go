package aclcmd

import (
	"flag"
	"maps"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

func templateVerbs() []verb.Verb {
	return []verb.Verb{
		{Path: "acl templated-policy", Synopsis: "Show the templates of policies"},
		{Path: "acl templated-policy list", Synopsis: "List the templates", Setup: listTemplates},
		{Path: "acl templated-policy read", Synopsis: "Show a template", Setup: readTemplate},
		{
			Path: "acl templated-policy preview", Synopsis: "Show the policy a template stands for", Setup: previewTemplate,
			Help: "Shows the policy that a template stands for, with the variables that are given.",
		},
	}
}

func listTemplates(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		all, _, err := client.ACL().TemplatedPolicyList(c.Query())
		if err != nil {
			return verb.Errorf("Failed to retrieve the templated policies list: %w", err)
		}
		return v.print(c, all, func(p *page) {
			for _, name := range slices.Sorted(maps.Keys(all)) {
				p.line("%s", name)
			}
			p.unended()
		})
	}
}

func readTemplate(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	name := f.String("name", "", "`name` of the template")
	return func(c *verb.Call) error {
		if *name == "" {
			return verb.Errorf("Must specify the -name parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		t, _, err := client.ACL().TemplatedPolicyReadByName(*name, c.Query())
		if err != nil {
			return verb.Errorf("Error reading templated policy %q: %w", *name, err)
		}
		if t == nil {
			return verb.Errorf("Error templated policy not found: %s", *name)
		}
		return v.print(c, t, func(p *page) {
			p.line("Name:            %s", t.TemplateName)
			p.line("Description:     %s", t.Description)
			use := "sarn acl token create -templated-policy " + t.TemplateName
			if t.Schema == "" {
				p.line("Input variables: None")
			} else {
				p.line("Input variables:")
				p.line("\tName: String - Required - The name that the rules are about.")
				use += " -var name:web"
			}
			p.line("Example usage:")
			p.line("\t%s", use)
			if p.meta {
				p.line("Schema:")
				p.line("%s", t.Schema)
				p.line("Raw Template:")
				p.line("%s", t.Template)
			}
			p.unended()
		})
	}
}

func previewTemplate(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	name := f.String("name", "", "`name` of the template")
	file := f.String("file", "", "`file` with one templated policy")
	vars := templateVars(f)
	return func(c *verb.Call) error {
		var one *api.ACLTemplatedPolicy
		switch {
		case *name == "" && *file == "":
			return verb.Errorf("Cannot preview a templated policy without specifying -name or -file")
		case *name != "" && *file != "":
			return verb.Errorf("Cannot preview a templated policy with both -name and -file")
		case *file != "":
			list, err := readTemplated(*file)
			if err != nil {
				return err
			}
			if len(list) != 1 {
				return verb.Errorf("Can only preview a single templated policy at a time.")
			}
			one = list[0]
		default:
			v, err := parseVars(*vars)
			if err != nil {
				return err
			}
			one = &api.ACLTemplatedPolicy{TemplateName: *name, TemplateVariables: v}
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		policy, _, err := client.ACL().TemplatedPolicyPreview(one, c.Write())
		if err != nil {
			return verb.Errorf("Failed to generate the templated policy preview: %w", err)
		}
		return v.print(c, policy, func(p *page) { p.policy(policy) })
	}
}
