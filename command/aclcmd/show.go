package aclcmd

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// A page is text for people to read.
type page struct {
	strings.Builder
	meta   bool
	indent string // of every line
}

// line writes one line.
func (p *page) line(format string, args ...any) {
	p.WriteString(p.indent)
	fmt.Fprintf(p, format, args...)
	p.WriteByte('\n')
}

// in writes below a heading.
func (p *page) in(heading string, f func()) {
	p.line("%s", heading)
	before := p.indent
	p.indent += "   "
	f()
	p.indent = before
}

// unended takes the end of the last line away: whoever prints the page adds it.
func (p *page) unended() {
	text := strings.TrimSuffix(p.String(), "\n")
	p.Reset()
	p.WriteString(text)
}

func shownTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.999999999 -0700 MST") }

func (p *page) tokenHead(t *api.ACLToken) {
	p.line("AccessorID:       %s", t.AccessorID)
	p.line("SecretID:         %s", t.SecretID)
	if t.Namespace != "" {
		p.line("Namespace:        %s", t.Namespace)
	}
	p.line("Description:      %s", t.Description)
	p.line("Local:            %t", t.Local)
	if t.AuthMethod != "" {
		p.line("Auth Method:      %s", t.AuthMethod)
	}
	p.line("Create Time:      %s", shownTime(t.CreateTime))
	if t.ExpirationTime != nil && !t.ExpirationTime.IsZero() {
		p.line("Expiration Time:  %s", shownTime(*t.ExpirationTime))
	}
	if p.meta {
		p.line("Hash:             %s", hex.EncodeToString(t.Hash))
		p.line("Create Index:     %d", t.CreateIndex)
		p.line("Modify Index:     %d", t.ModifyIndex)
	}
}

func (p *page) token(t *api.ACLToken) {
	p.tokenHead(t)
	p.links("Policies:", t.Policies)
	p.links("Roles:", t.Roles)
	p.identities(t.ServiceIdentities, t.NodeIdentities, t.TemplatedPolicies)
}

func (p *page) tokens(list []*api.ACLTokenListEntry) {
	for i, t := range list {
		if i > 0 {
			p.WriteByte('\n')
		}
		p.token(listed(t))
	}
}

// listed is a token of a list.
func listed(t *api.ACLTokenListEntry) *api.ACLToken {
	return &api.ACLToken{
		CreateIndex: t.CreateIndex, ModifyIndex: t.ModifyIndex, AccessorID: t.AccessorID, SecretID: t.SecretID, Description: t.Description,
		Policies: t.Policies, Roles: t.Roles, ServiceIdentities: t.ServiceIdentities, NodeIdentities: t.NodeIdentities,
		TemplatedPolicies: t.TemplatedPolicies, Local: t.Local, AuthMethod: t.AuthMethod, ExpirationTime: t.ExpirationTime,
		CreateTime: t.CreateTime, Hash: t.Hash, Namespace: t.Namespace, Partition: t.Partition,
	}
}

func (p *page) links(heading string, links []*api.ACLLink) {
	if len(links) == 0 {
		return
	}
	p.in(heading, func() {
		for _, l := range links {
			p.line("%s - %s", l.ID, l.Name)
		}
	})
}

// everywhere shows where something is good.
func everywhere(datacenters []string) string {
	if len(datacenters) == 0 {
		return "all"
	}
	return strings.Join(datacenters, ", ")
}

func (p *page) identities(services []*api.ACLServiceIdentity, nodes []*api.ACLNodeIdentity, templates []*api.ACLTemplatedPolicy) {
	if len(services) > 0 {
		p.in("Service Identities:", func() {
			for _, s := range services {
				p.line("%s (Datacenters: %s)", s.ServiceName, everywhere(s.Datacenters))
			}
		})
	}
	if len(nodes) > 0 {
		p.in("Node Identities:", func() {
			for _, n := range nodes {
				p.line("%s (Datacenter: %s)", n.NodeName, n.Datacenter)
			}
		})
	}
	if len(templates) > 0 {
		p.in("Templated Policies:", func() {
			for _, t := range templates {
				p.in(t.TemplateName, func() {
					if t.TemplateVariables != nil && t.TemplateVariables.Name != "" {
						p.line("Name: %s", t.TemplateVariables.Name)
					}
					p.line("Datacenters: %s", everywhere(t.Datacenters))
				})
			}
		})
	}
}

// expanded shows a token with all that it is linked to.
func (p *page) expanded(t *api.ACLTokenExpanded) {
	p.tokenHead(&t.ACLToken)
	byID := map[string]api.ACLPolicy{}
	for _, policy := range t.ExpandedPolicies {
		byID[policy.ID] = policy
	}
	shown := map[string]bool{}
	p.fullPolicies("", t.Policies, byID, shown)
	p.identities(t.ServiceIdentities, t.NodeIdentities, t.TemplatedPolicies)
	if len(t.ExpandedRoles) > 0 {
		p.line("Roles:")
		for _, r := range t.ExpandedRoles {
			p.line("\tRole Name: %s", r.Name)
			p.line("\t\tID: %s", r.ID)
			p.line("\t\tDescription: %s", r.Description)
			p.fullPolicies("\t\t", r.Policies, byID, shown)
			before := p.indent
			p.indent += "\t\t"
			p.identities(r.ServiceIdentities, r.NodeIdentities, r.TemplatedPolicies)
			p.indent = before
		}
	}
	var rest []*api.ACLLink
	for _, policy := range t.ExpandedPolicies {
		if !shown[policy.ID] {
			rest = append(rest, &api.ACLLink{ID: policy.ID, Name: policy.Name})
		}
	}
	if len(rest) > 0 {
		p.line("Policies That Identities And Templates Stand For:")
		p.policyList("", rest, byID, shown)
	}
	p.line("=== End of Authorizer Layer 0: Token ===")
	p.line("=== Start of Authorizer Layer 2: Agent Configuration Defaults (Inherited) ===")
	p.line("Description: What the agent that answers is configured with; others may decide otherwise")
	p.line("Resolved By Agent: %q", t.ResolvedByAgent)
	p.line("")
	p.line("Default Policy: %s", t.AgentACLDefaultPolicy)
	p.line("\tDescription: What is decided where no rule applies (default_policy)")
	p.line("")
	p.line("Down Policy: %s", t.AgentACLDownPolicy)
	p.line("\tDescription: What is done while the servers cannot be asked about the token (down_policy)")
}

func (p *page) fullPolicies(by string, links []*api.ACLLink, all map[string]api.ACLPolicy, shown map[string]bool) {
	if len(links) > 0 {
		p.line("%sPolicies:", by)
		p.policyList(by, links, all, shown)
	}
}

func (p *page) policyList(by string, links []*api.ACLLink, all map[string]api.ACLPolicy, shown map[string]bool) {
	for _, l := range links {
		policy, ok := all[l.ID]
		p.line("%s\tPolicy Name: %s", by, l.Name)
		p.line("%s\t\tID: %s", by, l.ID)
		if !ok {
			p.line("%s\t\tNot in force in this datacenter", by)
			continue
		}
		shown[l.ID] = true
		p.line("%s\t\tDescription: %s", by, policy.Description)
		p.line("%s\t\tRules:", by)
		for l := range strings.Lines(policy.Rules) {
			p.line("%s\t\t\t%s", by, strings.TrimRight(l, "\n"))
		}
		p.line("")
	}
}

func (p *page) objectMeta(hash []byte, create, modify uint64) {
	if p.meta {
		p.line("Hash:         %s", hex.EncodeToString(hash))
		p.line("Create Index: %d", create)
		p.line("Modify Index: %d", modify)
	}
}

func (p *page) policy(policy *api.ACLPolicy) {
	p.line("ID:           %s", policy.ID)
	p.line("Name:         %s", policy.Name)
	if policy.Namespace != "" {
		p.line("Namespace:    %s", policy.Namespace)
	}
	p.line("Description:  %s", policy.Description)
	p.line("Datacenters:  %s", strings.Join(policy.Datacenters, ", "))
	p.objectMeta(policy.Hash, policy.CreateIndex, policy.ModifyIndex)
	p.line("Rules:")
	p.WriteString(policy.Rules)
}

func (p *page) policies(list []*api.ACLPolicyListEntry) {
	for _, policy := range list {
		p.in(policy.Name+":", func() {
			p.line("ID:           %s", policy.ID)
			if policy.Namespace != "" {
				p.line("Namespace:    %s", policy.Namespace)
			}
			p.line("Description:  %s", policy.Description)
			p.line("Datacenters:  %s", strings.Join(policy.Datacenters, ", "))
			p.objectMeta(policy.Hash, policy.CreateIndex, policy.ModifyIndex)
		})
	}
	p.unended()
}

func (p *page) role(r *api.ACLRole) {
	p.line("ID:           %s", r.ID)
	p.line("Name:         %s", r.Name)
	p.roleBody(r)
}

func (p *page) roleBody(r *api.ACLRole) {
	if r.Namespace != "" {
		p.line("Namespace:    %s", r.Namespace)
	}
	p.line("Description:  %s", r.Description)
	p.objectMeta(r.Hash, r.CreateIndex, r.ModifyIndex)
	p.links("Policies:", r.Policies)
	p.identities(r.ServiceIdentities, r.NodeIdentities, r.TemplatedPolicies)
}

func (p *page) roles(list []*api.ACLRole) {
	for _, r := range list {
		p.in(r.Name+":", func() {
			p.line("ID:           %s", r.ID)
			p.roleBody(r)
		})
	}
}

func (p *page) method(m *api.ACLAuthMethod) error {
	p.line("Name:          %s", m.Name)
	p.line("Type:          %s", m.Type)
	if m.Namespace != "" {
		p.line("Namespace:     %s", m.Namespace)
	}
	if m.DisplayName != "" {
		p.line("DisplayName:   %s", m.DisplayName)
	}
	p.line("Description:   %s", m.Description)
	if m.MaxTokenTTL > 0 {
		p.line("MaxTokenTTL:   %s", m.MaxTokenTTL)
	}
	if m.TokenLocality != "" {
		p.line("TokenLocality: %s", m.TokenLocality)
	}
	if p.meta {
		p.line("Create Index:  %d", m.CreateIndex)
		p.line("Modify Index:  %d", m.ModifyIndex)
	}
	p.line("Config:")
	data, err := json.MarshalIndent(m.Config, "", "    ")
	if err != nil {
		return err
	}
	p.Write(data)
	return nil
}

func (p *page) methods(list []*api.ACLAuthMethodListEntry) {
	for _, m := range list {
		p.in(m.Name+":", func() {
			p.line("Type:         %s", m.Type)
			if m.DisplayName != "" {
				p.line("DisplayName:  %s", m.DisplayName)
			}
			p.line("Description:  %s", m.Description)
			if p.meta {
				p.line("Create Index: %d", m.CreateIndex)
				p.line("Modify Index: %d", m.ModifyIndex)
			}
		})
	}
	p.unended()
}

func (p *page) rule(r *api.ACLBindingRule) {
	p.line("ID:           %s", r.ID)
	p.ruleBody(r)
	p.unended()
}

func (p *page) ruleBody(r *api.ACLBindingRule) {
	if r.Namespace != "" {
		p.line("Namespace:    %s", r.Namespace)
	}
	p.line("AuthMethod:   %s", r.AuthMethod)
	p.line("Description:  %s", r.Description)
	p.line("BindType:     %s", r.BindType)
	p.line("BindName:     %s", r.BindName)
	if r.BindVars != nil {
		p.line("BindVars:     ")
		if r.BindVars.Name != "" {
			p.line("     - Name: %s", r.BindVars.Name)
		}
	}
	p.line("Selector:     %s", r.Selector)
	if p.meta {
		p.line("Create Index: %d", r.CreateIndex)
		p.line("Modify Index: %d", r.ModifyIndex)
	}
}

func (p *page) rules(list []*api.ACLBindingRule) {
	for _, r := range list {
		p.in(r.ID+":", func() { p.ruleBody(r) })
	}
	p.unended()
}
