package acl

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// IDs of what every cluster has (spec/acl.md section 4).
const (
	ManagementID = "00000000-0000-0000-0000-000000000001"
	ReadOnlyID   = "00000000-0000-0000-0000-000000000002"
	reservedID   = "00000000-0000-0000-0000-0000000000"
)

// Names of the built-in policies.
const (
	ManagementName = "global-management"
	ReadOnlyName   = "builtin/global-read-only"
)

// ReservedID reports whether an ID is of those that users may not choose.
func ReservedID(id string) bool { return strings.HasPrefix(id, reservedID) }

// BuiltInPolicies returns new copies of the policies every cluster has.
func BuiltInPolicies() []*Policy {
	return []*Policy{
		{ID: ManagementID, Name: ManagementName, Description: "Grants everything", Rules: everywhere("write")},
		{ID: ReadOnlyID, Name: ReadOnlyName, Description: "Grants reading everything", Rules: everywhere("read")},
	}
}

// everywhere returns the rules that give a level on every resource.
func everywhere(level string) string {
	var b strings.Builder
	for _, name := range []string{"acl", "keyring", "mesh", "operator", "peering"} {
		fmt.Fprintf(&b, "%s = %q\n", name, level)
	}
	for _, name := range []string{"agent", "event", "key", "node", "query", "service", "session"} {
		intentions := ""
		if name == "service" {
			intentions = fmt.Sprintf("\n\tintentions = %q", level)
		}
		fmt.Fprintf(&b, "%s_prefix \"\" {\n\tpolicy = %q%s\n}\n", name, level, intentions)
	}
	return b.String()
}

// ValidIdentityName reports whether a name may be that of a service or node identity.
func ValidIdentityName(s string) bool {
	edge := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	if len(s) == 0 || len(s) > 256 || !edge(s[0]) || !edge(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !edge(c) && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// validName reports whether a name has letters, digits, "-" and "_" alone.
func validName(s string) bool {
	for i := range len(s) {
		if c := s[i] | 0x20; !('a' <= c && c <= 'z' || '0' <= s[i] && s[i] <= '9' || s[i] == '-' || s[i] == '_') {
			return false
		}
	}
	return s != ""
}

// A Template makes the rules of a policy from variables (spec/acl.md section 8).
type Template struct {
	ID           string `json:"-"`
	TemplateName string
	Schema       string // of the variables, as JSON schema; empty when it takes none
	Template     string // the rules; {{.Name}} stands for the name
	Description  string
	check        func(name string) error
}

const nameSchema = `{
	"type": "object",
	"properties": {
		"name": { "type": "string" }
	},
	"required": [ "name" ]
}`

func grant(resource, name, level string) string {
	return fmt.Sprintf("\n%s %q {\n\tpolicy = %q\n}", resource, name, level)
}

// grantSpaced is grant with the indentation of the template for Nomad's servers.
func grantSpaced(resource, name, level string) string {
	return fmt.Sprintf("\n%s %q {\n  policy = %q\n}", resource, name, level)
}

const templateName = "{{.Name}}"

func checkServiceName(name string) error {
	return checkIdentity("service identity", name)
}

func checkIdentity(what, name string) error {
	switch {
	case name == "":
		return errors.New("name is required")
	case !ValidIdentityName(name):
		return fmt.Errorf("%s %q has an invalid name. Only lowercase alphanumeric characters, '-' and '_' are allowed", what, name)
	}
	return nil
}

var templates = []*Template{
	{
		ID: reservedID + "03", TemplateName: "builtin/service", Schema: nameSchema, check: checkServiceName,
		Template:    grant("service", templateName, "write") + grant("service", templateName+"-sidecar-proxy", "write") + grant("service_prefix", "", "read") + grant("node_prefix", "", "read"),
		Description: "What a service and its sidecar need: to register themselves and to find every other service",
	},
	{
		ID: reservedID + "04", TemplateName: "builtin/node", Schema: nameSchema,
		check:       func(name string) error { return checkIdentity("node identity", name) },
		Template:    grant("node", templateName, "write") + grant("service_prefix", "", "read"),
		Description: "What an agent needs for its own node: to register it and to find every service",
	},
	{
		ID: reservedID + "05", TemplateName: "builtin/dns",
		Template:    grant("node_prefix", "", "read") + grant("service_prefix", "", "read") + grant("query_prefix", "", "read"),
		Description: "What answering questions over DNS needs",
	},
	{
		ID: reservedID + "06", TemplateName: "builtin/nomad-server",
		Template: "\nacl = \"write\"" + grantSpaced("agent_prefix", "", "read") + grantSpaced("node_prefix", "", "read") + grantSpaced("service_prefix", "", "write"),

		Description: "What a Nomad server needs",
	},
	{
		ID: reservedID + "08", TemplateName: "builtin/api-gateway", Schema: nameSchema, check: checkServiceName,
		Template: "mesh = \"read\"" + grant("node_prefix", "", "read") + grant("service_prefix", "", "read") + grant("service", templateName, "write"),

		Description: "What an API gateway needs",
	},
	{
		ID: reservedID + "09", TemplateName: "builtin/nomad-client",
		Template: grantSpaced("agent_prefix", "", "read") + grantSpaced("node_prefix", "", "read") + grantSpaced("service_prefix", "", "write") + grantSpaced("key_prefix", "", "read"),

		Description: "What a Nomad client needs",
	},
}

// Templates returns the built-in templates, which must not be changed.
func Templates() []*Template { return templates }

// TemplateByName returns a built-in template, nil when there is none.
func TemplateByName(name string) *Template {
	for _, t := range templates {
		if t.TemplateName == name {
			return t
		}
	}
	return nil
}

// Rules fills a template in. The variables are checked; nil stands for none.
func (t *Template) Rules(vars *TemplateVariables) (string, error) {
	name := ""
	if vars != nil {
		name = vars.Name
	}
	if t.check == nil {
		return t.Template, nil
	}
	if err := t.check(name); err != nil {
		return "", err
	}
	return strings.ReplaceAll(t.Template, templateName, name), nil
}

// Policy returns the policy that a template with these variables stands for.
func (t *Template) Policy(vars *TemplateVariables, datacenters []string) (*Policy, error) {
	rules, err := t.Rules(vars)
	if err != nil {
		return nil, err
	}
	return synthetic(rules, "synthetic policy generated from templated policy: "+t.TemplateName, datacenters), nil
}

// Policy returns the policy that the use of a template stands for. It fails for unknown templates and bad variables.
func (p *TemplatedPolicy) Policy() (*Policy, error) {
	t := TemplateByName(p.TemplateName)
	if t == nil {
		return nil, fmt.Errorf("templated policy %q does not exist", p.TemplateName)
	}
	return t.Policy(p.TemplateVariables, p.Datacenters)
}

// Policy returns the policy that a service identity stands for. The name must be valid.
func (s *ServiceIdentity) Policy() *Policy {
	rules := strings.ReplaceAll(TemplateByName("builtin/service").Template, templateName, s.ServiceName)
	return synthetic(rules, "synthetic policy for the service identity of "+s.ServiceName, s.Datacenters)
}

// Policy returns the policy that a node identity stands for. The name must be valid.
func (n *NodeIdentity) Policy() *Policy {
	rules := strings.ReplaceAll(TemplateByName("builtin/node").Template, templateName, n.NodeName)
	return synthetic(rules, "synthetic policy for the node identity of "+n.NodeName, []string{n.Datacenter})
}

// synthetic makes a policy that is stored nowhere. Equal ones have equal IDs.
func synthetic(rules, description string, datacenters []string) *Policy {
	h := sha256.Sum256([]byte(rules + "\x00" + strings.Join(datacenters, "\x00")))
	id := "synthetic-policy-" + hex.EncodeToString(h[:16])
	return &Policy{ID: id, Name: id, Description: description, Rules: rules, Datacenters: slices.Clone(datacenters), Hash: h[:]}
}

// In reports whether a policy is in force in a datacenter.
func (p *Policy) In(datacenter string) bool {
	return len(p.Datacenters) == 0 || slices.Contains(p.Datacenters, datacenter)
}
