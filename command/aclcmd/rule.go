package aclcmd

import (
	"flag"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

func ruleVerbs() []verb.Verb {
	return []verb.Verb{
		{Path: "acl binding-rule", Synopsis: "Say what a login is given"},
		{
			Path: "acl binding-rule create", Synopsis: "Make a binding rule", Setup: createRule,
			Help: "Makes a rule for the logins by an auth method: whoever -selector fits is given what -bind-type and -bind-name say. In the name, ${NAME} stands " +
				"for what the proof of identity says.",
		},
		{Path: "acl binding-rule read", Synopsis: "Show a binding rule", Setup: readRule},
		{
			Path: "acl binding-rule update", Synopsis: "Change a binding rule", Setup: updateRule,
			Help: "Changes a binding rule. What is not given is kept; with -no-merge it is taken away.",
		},
		{Path: "acl binding-rule delete", Synopsis: "Delete a binding rule", Setup: deleteRule},
		{Path: "acl binding-rule list", Synopsis: "List the binding rules", Setup: listRules},
	}
}

const templatedType = "templated-policy"

// bindVars reads the variables of a templated policy.
func bindVars(pairs map[string]string) (*api.ACLTemplatedPolicyVariables, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	v := &api.ACLTemplatedPolicyVariables{}
	for key, value := range pairs {
		if !strings.EqualFold(key, "name") {
			return nil, verb.Errorf("unknown variable %q: templates take the variable \"name\" alone", key)
		}
		v.Name = value
	}
	return v, nil
}

func createRule(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	method := f.String("method", "", "`name` of the auth method")
	kind := f.String("bind-type", "service", "what is given: `service`, node, role, policy or templated-policy")
	name := f.String("bind-name", "", "`name` of what is given")
	pairs := verb.Pairs(f, "bind-vars", "variable of the template, `key=value`; repeatable")
	selector := f.String("selector", "", "`expression` that the proof must fit; default all do")
	description := f.String("description", "", "`text` that says what it is for")
	return func(c *verb.Call) error {
		switch {
		case *method == "":
			return verb.Usagef("Missing required '-method' flag")
		case *kind == "":
			return verb.Usagef("Missing required '-bind-type' flag")
		case *name == "":
			return verb.Usagef("Missing required '-bind-name' flag")
		case len(*pairs) > 0 && *kind != templatedType:
			return verb.Errorf("Cannot specify -bind-vars when -bind-type is not templated-policy")
		}
		vars, err := bindVars(*pairs)
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		rule, _, err := client.ACL().BindingRuleCreate(&api.ACLBindingRule{
			AuthMethod: *method, Description: *description, BindType: api.BindingRuleBindType(*kind), BindName: *name, BindVars: vars, Selector: *selector,
		}, c.Write())
		if err != nil {
			return verb.Errorf("Failed to create new binding rule: %w", err)
		}
		return v.print(c, rule, func(p *page) { p.rule(rule) })
	}
}

// oneRule reads the rule that -id names.
func oneRule(c *verb.Call, acl *api.ACL, id string) (*api.ACLBindingRule, error) {
	if id == "" {
		return nil, verb.Errorf("Must specify the -id parameter")
	}
	whole, err := ruleID(c, acl, id)
	if err != nil {
		return nil, verb.Errorf("Error determining binding rule ID: %w", err)
	}
	rule, _, err := acl.BindingRuleRead(whole, c.Query())
	if err != nil {
		return nil, verb.Errorf("Error reading binding rule %q: %w", whole, err)
	}
	if rule == nil {
		return nil, verb.Errorf("Binding rule not found with ID %q", whole)
	}
	return rule, nil
}

func readRule(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	id := f.String("id", "", "`ID` of the rule, or its beginning")
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		rule, err := oneRule(c, client.ACL(), *id)
		if err != nil {
			return err
		}
		return v.print(c, rule, func(p *page) { p.rule(rule) })
	}
}

func updateRule(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	text := func(name, usage string) *verb.Option[string] {
		return verb.Opt(f, name, usage, func(s string) (string, error) { return s, nil })
	}
	id := f.String("id", "", "`ID` of the rule, or its beginning")
	kind := text("bind-type", "what is given: `service`, node, role, policy or templated-policy")
	name := text("bind-name", "`name` of what is given")
	pairs := verb.Pairs(f, "bind-vars", "variable of the template, `key=value`; repeatable")
	selector := text("selector", "`expression` that the proof must fit")
	description := text("description", "`text` that says what it is for")
	noMerge := f.Bool("no-merge", false, "take away what is not given")
	return func(c *verb.Call) error {
		vars, err := bindVars(*pairs)
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		rule, err := oneRule(c, client.ACL(), *id)
		if err != nil {
			return err
		}
		if *noMerge {
			rule = &api.ACLBindingRule{ID: rule.ID, AuthMethod: rule.AuthMethod, BindType: api.BindingRuleBindTypeService}
		}
		if kind.Given {
			rule.BindType = api.BindingRuleBindType(kind.Value)
		}
		if name.Given {
			rule.BindName = name.Value
		}
		if selector.Given {
			rule.Selector = selector.Value
		}
		if description.Given {
			rule.Description = description.Value
		}
		switch {
		case vars != nil && rule.BindType != templatedType:
			return verb.Errorf("Cannot specify -bind-vars when -bind-type is not templated-policy")
		case vars != nil:
			rule.BindVars = vars
		case rule.BindType != templatedType:
			rule.BindVars = nil
		}
		updated, _, err := client.ACL().BindingRuleUpdate(rule, c.Write())
		if err != nil {
			return verb.Errorf("Error updating binding rule %q: %w", rule.ID, err)
		}
		return v.print(c, updated, func(p *page) { p.rule(updated) })
	}
}

func deleteRule(f *flag.FlagSet) func(*verb.Call) error {
	id := f.String("id", "", "`ID` of the rule, or its beginning")
	return func(c *verb.Call) error {
		if *id == "" {
			return verb.Errorf("Must specify the -id parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		whole, err := ruleID(c, client.ACL(), *id)
		if err != nil {
			return verb.Errorf("Error determining binding rule ID: %w", err)
		}
		if _, err := client.ACL().BindingRuleDelete(whole, c.Write()); err != nil {
			return verb.Errorf("Error deleting binding rule %q: %w", whole, err)
		}
		c.Printf("Binding rule %q deleted successfully\n", whole)
		return nil
	}
}

func listRules(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	method := f.String("method", "", "`name` of an auth method; default all")
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		list, _, err := client.ACL().BindingRuleList(*method, c.Query())
		if err != nil {
			return verb.Errorf("Failed to retrieve the binding rule list: %w", err)
		}
		return v.print(c, list, func(p *page) { p.rules(list) })
	}
}
