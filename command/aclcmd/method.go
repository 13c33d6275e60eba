package aclcmd

import (
	"encoding/json"
	"flag"
	"maps"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

func methodVerbs() []verb.Verb {
	return []verb.Verb{
		{Path: "acl auth-method", Synopsis: "Say which proofs of identity are trusted"},
		{
			Path: "acl auth-method create", Synopsis: "Make an auth method", Setup: createMethod,
			Help: "Makes an auth method: whose proofs of identity are trusted, and how they are checked. -type is jwt, kubernetes or aws-iam. Its settings are " +
				"JSON: -config, or for the type kubernetes the flags that begin with it.",
		},
		{Path: "acl auth-method read", Synopsis: "Show an auth method", Setup: readMethod},
		{
			Path: "acl auth-method update", Synopsis: "Change an auth method", Setup: updateMethod,
			Help: "Changes an auth method. What is not given is kept; with -no-merge it is taken away.",
		},
		{
			Path: "acl auth-method delete", Synopsis: "Delete an auth method", Setup: deleteMethod,
			Help: "Deletes an auth method with its binding rules and every token that was made by it.",
		},
		{Path: "acl auth-method list", Synopsis: "List the auth methods", Setup: listMethods},
	}
}

// methodFlags are what create and update have in common.
type methodFlags struct {
	name, displayName, description, locality, config *string
	kubeHost, kubeCA, kubeJWT                        *string
	ttl                                              *time.Duration
}

func newMethodFlags(f *flag.FlagSet) methodFlags {
	return methodFlags{
		name:        f.String("name", "", "`name` of the method"),
		displayName: f.String("display-name", "", "`name` to show to people"),
		description: f.String("description", "", "`text` that says what it is for"),
		locality:    f.String("token-locality", "", "where its tokens are good: `local`, the default, or global"),
		ttl:         f.Duration("max-token-ttl", 0, "`time` its tokens are good for; 0 for always"),
		config:      f.String("config", "", "settings as `JSON`, @FILE, or - for standard input"),
		kubeHost:    f.String("kubernetes-host", "", "`address` of the Kubernetes API server"),
		kubeCA:      f.String("kubernetes-ca-cert", "", "its authority as `PEM`, @FILE, or - for standard input"),
		kubeJWT:     f.String("kubernetes-service-account-jwt", "", "`token` of the service account that reviews tokens"),
	}
}

func (m methodFlags) kube() bool { return *m.kubeHost != "" || *m.kubeCA != "" || *m.kubeJWT != "" }

// settings returns the configuration that was given, nil for none.
func (m methodFlags) settings(c *verb.Call) (map[string]any, error) {
	if *m.config != "" {
		if m.kube() {
			return nil, verb.Errorf("Cannot use command line arguments with '-config' flags")
		}
		text, err := c.Data(*m.config)
		if err != nil {
			return nil, verb.Errorf("Error loading configuration file: %w", err)
		}
		var config map[string]any
		if err := json.Unmarshal([]byte(text), &config); err != nil {
			return nil, verb.Errorf("Error parsing JSON configuration file: %w", err)
		}
		return config, nil
	}
	if !m.kube() {
		return nil, nil
	}
	config := map[string]any{}
	if *m.kubeHost != "" {
		config["Host"] = *m.kubeHost
	}
	if *m.kubeCA != "" {
		ca, err := c.Data(*m.kubeCA)
		if err != nil {
			return nil, verb.Errorf("Error reading kubernetes CA cert: %w", err)
		}
		if ca == "" {
			return nil, verb.Errorf("Kubernetes CA Cert is empty")
		}
		config["CACert"] = ca
	}
	if *m.kubeJWT != "" {
		config["ServiceAccountJWT"] = *m.kubeJWT
	}
	return config, nil
}

// printMethod shows a method.
func printMethod(v view, c *verb.Call, m *api.ACLAuthMethod) (err error) {
	if shown := v.print(c, m, func(p *page) { err = p.method(m) }); shown != nil {
		return shown
	}
	return err
}

func createMethod(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	kind := f.String("type", "", "`type` of the method: jwt, kubernetes or aws-iam")
	m := newMethodFlags(f)
	return func(c *verb.Call) error {
		if *kind == "" {
			return verb.Usagef("Missing required '-type' flag")
		}
		if *m.name == "" {
			return verb.Usagef("Missing required '-name' flag")
		}
		config, err := m.settings(c)
		if err != nil {
			return err
		}
		if *kind == "kubernetes" && *m.config == "" {
			for _, needed := range []struct{ name, value string }{
				{"kubernetes-host", *m.kubeHost}, {"kubernetes-ca-cert", *m.kubeCA}, {"kubernetes-service-account-jwt", *m.kubeJWT},
			} {
				if needed.value == "" {
					return verb.Usagef("Missing required '-%s' flag", needed.name)
				}
			}
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		method, _, err := client.ACL().AuthMethodCreate(&api.ACLAuthMethod{
			Name: *m.name, Type: *kind, DisplayName: *m.displayName, Description: *m.description, MaxTokenTTL: *m.ttl,
			TokenLocality: *m.locality, Config: config,
		}, c.Write())
		if err != nil {
			return verb.Errorf("Failed to create new auth method: %w", err)
		}
		return printMethod(v, c, method)
	}
}

// oneMethod reads a method that must be there.
func oneMethod(c *verb.Call, acl *api.ACL, name string) (*api.ACLAuthMethod, error) {
	m, _, err := acl.AuthMethodRead(name, c.Query())
	if err != nil {
		return nil, verb.Errorf("Error reading auth method %q: %w", name, err)
	}
	if m == nil {
		return nil, verb.Errorf("Auth method not found with name %q", name)
	}
	return m, nil
}

func readMethod(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	name := f.String("name", "", "`name` of the method")
	return func(c *verb.Call) error {
		if *name == "" {
			return verb.Errorf("Must specify the -name parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		m, err := oneMethod(c, client.ACL(), *name)
		if err != nil {
			return err
		}
		return printMethod(v, c, m)
	}
}

func updateMethod(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	noMerge := f.Bool("no-merge", false, "take away what is not given")
	m := newMethodFlags(f)
	return func(c *verb.Call) error {
		if *m.name == "" {
			return verb.Errorf("Must specify the -name parameter")
		}
		config, err := m.settings(c)
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		old, err := oneMethod(c, client.ACL(), *m.name)
		if err != nil {
			return err
		}
		method := &api.ACLAuthMethod{
			Name: old.Name, Type: old.Type, DisplayName: *m.displayName, Description: *m.description, MaxTokenTTL: *m.ttl,
			TokenLocality: *m.locality, Config: config,
		}
		if !*noMerge {
			keep := func(v *string, old string) {
				if *v == "" {
					*v = old
				}
			}
			keep(&method.DisplayName, old.DisplayName)
			keep(&method.Description, old.Description)
			keep(&method.TokenLocality, old.TokenLocality)
			if method.MaxTokenTTL == 0 {
				method.MaxTokenTTL = old.MaxTokenTTL
			}
			switch {
			case config == nil:
				method.Config = old.Config
			case m.kube(): // one setting after the other
				method.Config = maps.Clone(old.Config)
				maps.Copy(method.Config, config)
			}
		}
		method, _, err = client.ACL().AuthMethodUpdate(method, c.Write())
		if err != nil {
			return verb.Errorf("Error updating auth method %q: %w", *m.name, err)
		}
		return printMethod(v, c, method)
	}
}

func deleteMethod(f *flag.FlagSet) func(*verb.Call) error {
	name := f.String("name", "", "`name` of the method")
	return func(c *verb.Call) error {
		if *name == "" {
			return verb.Errorf("Must specify the -name parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if _, err := client.ACL().AuthMethodDelete(*name, c.Write()); err != nil {
			return verb.Errorf("Error deleting auth method %q: %w", *name, err)
		}
		c.Printf("Auth method %q deleted successfully\n", *name)
		return nil
	}
}

func listMethods(f *flag.FlagSet) func(*verb.Call) error {
	v := showing(f)
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		list, _, err := client.ACL().AuthMethodList(c.Query())
		if err != nil {
			return verb.Errorf("Failed to retrieve the auth method list: %w", err)
		}
		return v.print(c, list, func(p *page) { p.methods(list) })
	}
}
