package aclcmd

import (
	"flag"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

func tokenVerbs() []verb.Verb {
	return []verb.Verb{
		{Path: "acl token", Synopsis: "Make, show and change tokens"},
		{
			Path: "acl token create", Synopsis: "Make a token", Setup: createToken,
			Help: "Makes a token that may do what its policies, roles and identities grant. Its secret is shown: keep it.",
		},
		{
			Path: "acl token read", Synopsis: "Show a token", Setup: readToken,
			Help: "Shows the token with -accessor-id, or with -self the one in use. With -expanded it shows the rules of all that the token is linked to.",
		},
		{
			Path: "acl token update", Synopsis: "Change a token", Setup: updateToken,
			Help: "Changes what a token is linked to. Policies and roles that are not mentioned are kept; identities and templated policies that are not " +
				"mentioned are taken away. The forms with append- add to what is there, the others replace it.",
		},
		{Path: "acl token clone", Synopsis: "Make a token like another", Setup: cloneToken},
		{Path: "acl token delete", Synopsis: "Delete a token", Setup: deleteToken},
		{Path: "acl token list", Synopsis: "List the tokens", Setup: listTokens},
	}
}

// accessorFlags adds -accessor-id and the name it had before.
func accessorFlags(f *flag.FlagSet) func(c *verb.Call) string {
	accessor := f.String("accessor-id", "", "accessor `ID` of the token, or its beginning")
	old := f.String("id", "", "the old name of -accessor-id")
	return func(c *verb.Call) string {
		if *accessor == "" && *old != "" {
			c.Warnf("The -id flag is deprecated. Use the -accessor-id flag instead.")
			return *old
		}
		return *accessor
	}
}

func createToken(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	accessor := f.String("accessor", "", "accessor `ID` to give the token, a UUID; default a new one")
	secret := f.String("secret", "", "`secret` to give the token, a UUID; default a new one")
	local := f.Bool("local", false, "good in this datacenter alone")
	description := f.String("description", "", "`text` to remember it by")
	ttl := f.Duration("expires-ttl", 0, "`time` that the token is good for; 0 for always")
	g := linkFlags(f, "", true)
	t := templateFlags(f, "", templateVars(f))
	return func(c *verb.Call) error {
		if !g.any() && !t.any() {
			return verb.Errorf("Cannot create a token without specifying -policy-name, -policy-id, -role-name, -role-id, -service-identity, -node-identity, " +
				"-templated-policy or -templated-policy-file at least once")
		}
		token := &api.ACLToken{AccessorID: *accessor, SecretID: *secret, Local: *local, Description: *description}
		if *ttl > 0 {
			token.ExpirationTTL = *ttl
		}
		var err error
		if token.TemplatedPolicies, err = t.list(); err != nil {
			return err
		}
		if token.ServiceIdentities, err = g.serviceIdentities(); err != nil {
			return err
		}
		if token.NodeIdentities, err = g.nodeIdentities(); err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if token.Policies, err = g.policies(c, client.ACL()); err != nil {
			return err
		}
		if token.Roles, err = g.roles(c, client.ACL()); err != nil {
			return err
		}
		made, _, err := client.ACL().TokenCreate(token, c.Write())
		if err != nil {
			return verb.Errorf("Failed to create new token: %w", err)
		}
		return v.print(c, made, func(p *page) { p.token(made) })
	}
}

func readToken(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	accessor := accessorFlags(f)
	self := f.Bool("self", false, "show the token in use")
	expanded := f.Bool("expanded", false, "show the rules of all that the token is linked to")
	return func(c *verb.Call) error {
		id := accessor(c)
		switch {
		case *self && *expanded:
			return verb.Errorf("Cannot use both -expanded and -self. To expand the token in use, give its -accessor-id")
		case !*self && id == "":
			return verb.Errorf("Must specify the -accessor-id parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if *self {
			token, _, err := client.ACL().TokenReadSelf(c.Query())
			if err != nil {
				return verb.Errorf("Error reading token: %w", err)
			}
			return v.print(c, token, func(p *page) { p.token(token) })
		}
		whole, err := tokenID(c, client.ACL(), id)
		if err != nil {
			return verb.Errorf("Error determining token ID: %w", err)
		}
		if *expanded {
			token, _, err := client.ACL().TokenReadExpanded(whole, c.Query())
			if err != nil {
				return verb.Errorf("Error reading token %q: %w", whole, err)
			}
			return v.print(c, token, func(p *page) { p.expanded(token) })
		}
		token, _, err := client.ACL().TokenRead(whole, c.Query())
		if err != nil {
			return verb.Errorf("Error reading token %q: %w", whole, err)
		}
		return v.print(c, token, func(p *page) { p.token(token) })
	}
}

func updateToken(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	accessor := accessorFlags(f)
	description := f.String("description", "", "new `text` to remember it by; empty keeps the old one")
	set, more := linkFlags(f, "", true), linkFlags(f, "append-", true)
	vars := templateVars(f)
	setTemplated, moreTemplated := templateFlags(f, "replace-", vars), templateFlags(f, "append-", vars)
	// The old way to add: these make the flags without append- add.
	mergePolicies := f.Bool("merge-policies", false, "old; use -append-policy-id and -append-policy-name")
	mergeRoles := f.Bool("merge-roles", false, "old; use -append-role-id and -append-role-name")
	mergeServices := f.Bool("merge-service-identities", false, "old; use -append-service-identity")
	mergeNodes := f.Bool("merge-node-identities", false, "old; use -append-node-identity")
	return func(c *verb.Call) error {
		id := accessor(c)
		if id == "" {
			return verb.Errorf("Cannot update a token without specifying the -accessor-id parameter")
		}
		mixed := func(a, b bool, flags string) error {
			if a && b {
				return verb.Errorf("Cannot combine the use of %s flags with append- variants. To set or overwrite what is there, use the flags without "+
					"append-; to add to it, those with it", flags)
			}
			return nil
		}
		for _, err := range []error{
			mixed(set.anyPolicies(), more.anyPolicies(), "policy-id/policy-name"),
			mixed(set.anyRoles(), more.anyRoles(), "role-id/role-name"),
			mixed(len(*set.services) > 0, len(*more.services) > 0, "service-identity"),
			mixed(len(*set.nodes) > 0, len(*more.nodes) > 0, "node-identity"),
			mixed(setTemplated.any(), moreTemplated.any(), "templated-policy"),
		} {
			if err != nil {
				return err
			}
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		acl := client.ACL()
		whole, err := tokenID(c, acl, id)
		if err != nil {
			return verb.Errorf("Error determining token ID: %w", err)
		}
		token, _, err := acl.TokenRead(whole, c.Query())
		if err != nil {
			return verb.Errorf("Error when retrieving current token: %w", err)
		}
		if *description != "" {
			token.Description = *description
		}
		// links are the policies or roles after the change.
		links := func(have []*api.ACLLink, read func(grants) ([]*api.ACLLink, error), merge bool) ([]*api.ACLLink, error) {
			replaced, err := read(set)
			if err != nil {
				return nil, err
			}
			added, err := read(more)
			if err != nil {
				return nil, err
			}
			if merge {
				replaced, added = nil, append(added, replaced...)
			}
			if len(replaced) > 0 {
				return replaced, nil
			}
			return add(have, added, sameLink), nil
		}
		if token.Policies, err = links(token.Policies, func(g grants) ([]*api.ACLLink, error) { return g.policies(c, acl) }, *mergePolicies); err != nil {
			return err
		}
		if token.Roles, err = links(token.Roles, func(g grants) ([]*api.ACLLink, error) { return g.roles(c, acl) }, *mergeRoles); err != nil {
			return err
		}
		if token.ServiceIdentities, err = change(token.ServiceIdentities, set.serviceIdentities, more.serviceIdentities, *mergeServices, sameService); err != nil {
			return err
		}
		if token.NodeIdentities, err = change(token.NodeIdentities, set.nodeIdentities, more.nodeIdentities, *mergeNodes, sameNode); err != nil {
			return err
		}
		if token.TemplatedPolicies, err = change(token.TemplatedPolicies, setTemplated.list, moreTemplated.list, false, sameTemplate); err != nil {
			return err
		}
		token, _, err = acl.TokenUpdate(token, c.Write())
		if err != nil {
			return verb.Errorf("Failed to update token %s: %w", whole, err)
		}
		return v.print(c, token, func(p *page) { p.token(token) })
	}
}

// change returns identities after a change: what is to replace them, or they with what is to be added. Those of whom
// nothing was said are taken away.
func change[T any](have []T, set, more func() ([]T, error), merge bool, same func(a, b T) bool) ([]T, error) {
	replaced, err := set()
	if err != nil {
		return nil, err
	}
	added, err := more()
	if err != nil {
		return nil, err
	}
	switch {
	case merge:
		return add(have, append(added, replaced...), same), nil
	case len(added) > 0:
		return add(have, added, same), nil
	}
	return replaced, nil
}

func cloneToken(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	accessor := accessorFlags(f)
	description := f.String("description", "", "`text` to remember it by; default that of the other")
	return func(c *verb.Call) error {
		id := accessor(c)
		if id == "" {
			return verb.Errorf("Cannot clone a token without specifying the -accessor-id parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		whole, err := tokenID(c, client.ACL(), id)
		if err != nil {
			return verb.Errorf("Error determining token ID: %w", err)
		}
		token, _, err := client.ACL().TokenClone(whole, *description, c.Write())
		if err != nil {
			return verb.Errorf("Error cloning token: %w", err)
		}
		return v.print(c, token, func(p *page) { p.token(token) })
	}
}

func deleteToken(f *flag.FlagSet) func(*verb.Call) error {
	accessor := accessorFlags(f)
	return func(c *verb.Call) error {
		id := accessor(c)
		if id == "" {
			return verb.Errorf("Must specify the -accessor-id parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		whole, err := tokenID(c, client.ACL(), id)
		if err != nil {
			return verb.Errorf("Error determining token ID: %w", err)
		}
		if _, err := client.ACL().TokenDelete(whole, c.Write()); err != nil {
			return verb.Errorf("Error deleting token %q: %w", whole, err)
		}
		c.Printf("Token %q deleted successfully\n", whole)
		return nil
	}
}

func listTokens(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		list, _, err := client.ACL().TokenList(c.Query())
		if err != nil {
			return verb.Errorf("Failed to retrieve the token list: %w", err)
		}
		return v.print(c, list, func(p *page) { p.tokens(list) })
	}
}
