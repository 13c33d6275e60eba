// Package aclcmd holds the commands of access control: tokens, policies, roles, auth methods and binding rules.
package aclcmd

import (
	"flag"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	list := []verb.Verb{
		{Path: "acl", Synopsis: "Say who may do what", Help: "Tokens are credentials. What a token may do is written in policies; roles bundle policies. " +
			"Auth methods and binding rules let others' proofs of identity be traded for tokens, with the login command."},
		{
			Path: "acl bootstrap", Args: "[FILE]", Synopsis: "Make the first token", Setup: bootstrap, Client: true, Server: true,
			Help: "Makes the first token of a cluster, which may do everything. That works once. FILE, - for standard input, holds the secret that the " +
				"token is to have, a UUID; else one is chosen.",
		},
		{
			Path: "acl set-agent-token", Args: "TYPE TOKEN", Synopsis: "Give an agent a token to use itself", Setup: setAgentToken, Client: true, Server: true,
			Help: "Changes one of the tokens that an agent uses itself. TYPE is default, agent, recovery, replication, " +
				"config_file_service_registration or dns. TOKEN is the secret, @FILE or - for standard input; an empty one takes the token away.",
		},
	}
	for _, family := range [][]verb.Verb{tokenVerbs(), policyVerbs(), roleVerbs(), methodVerbs(), ruleVerbs(), templateVerbs()} {
		for _, v := range family {
			if v.Setup != nil {
				v.Client, v.Server, v.Tenancy = true, true, true
			}
			list = append(list, v)
		}
	}
	return list
}

// A view is how an object is shown: the flags that say so.
type view struct {
	format *string
	meta   *bool
}

func showing(f *flag.FlagSet) view {
	return view{
		f.String("format", "pretty", "pretty or json"),
		f.Bool("meta", false, "show also what only programs look at, such as indexes"),
	}
}

// print shows an object, or a list.
func (v view) print(c *verb.Call, obj any, pretty func(*page)) error {
	switch *v.format {
	case "pretty":
		p := &page{meta: *v.meta}
		pretty(p)
		c.Println(p.String())
	case "json":
		return c.PrintJSON(obj)
	default:
		return verb.Errorf("Unknown format: %s", *v.format)
	}
	return nil
}

func bootstrap(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	return func(c *verb.Call) error {
		secret := ""
		switch len(c.Args) {
		case 0:
		case 1:
			data, err := c.File(c.Args[0])
			if err != nil {
				return verb.Errorf("Error reading provided token: %w", err)
			}
			secret = strings.TrimSpace(data)
		default:
			return verb.Errorf("This command takes up to one argument")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		var token *api.ACLToken
		if secret == "" {
			token, _, err = client.ACL().Bootstrap()
		} else {
			token, _, err = client.ACL().BootstrapWithToken(secret)
		}
		if err != nil {
			return verb.Errorf("Failed ACL bootstrapping: %w", err)
		}
		return v.print(c, token, func(p *page) { p.token(token) })
	}
}

func setAgentToken(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		switch len(c.Args) {
		case 0:
			return verb.Errorf("Error! Missing TYPE and TOKEN arguments")
		case 1:
			return verb.Errorf("Error! Missing TOKEN argument")
		case 2:
		default:
			return verb.Errorf("Error! Too many arguments: expected 2 got %d", len(c.Args))
		}
		secret, err := c.Data(c.Args[1])
		if err != nil {
			return verb.Errorf("Error! %w", err)
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		agent := client.Agent()
		set, ok := map[string]func(string, *api.WriteOptions) (*api.WriteMeta, error){
			"default": agent.UpdateDefaultACLToken, "agent": agent.UpdateAgentACLToken, "recovery": agent.UpdateAgentRecoveryACLToken,
			"master": agent.UpdateAgentRecoveryACLToken, "replication": agent.UpdateReplicationACLToken,
			"config_file_service_registration": agent.UpdateConfigFileRegistrationToken, "dns": agent.UpdateDNSToken,
		}[c.Args[0]]
		if !ok {
			return verb.Errorf("Unknown token type")
		}
		if _, err := set(strings.TrimSpace(secret), c.Write()); err != nil {
			return verb.Errorf("Failed to set ACL token %q: %w", c.Args[0], err)
		}
		c.Printf("ACL token %q set successfully\n", c.Args[0])
		return nil
	}
}
