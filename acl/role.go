package acl

import (
	"errors"
	"fmt"
)

// Normalize brings what the role is linked to into its stored form: each once, and complete. It fails when something
// is not valid (spec/acl.md sections 7 and 8). Policies are not looked at.
func (r *Role) Normalize() error {
	switch {
	case r.Name == "":
		return errors.New("Invalid Role: no Name is set")
	case len(r.Name) > maxRoleName || !validName(r.Name):
		return errors.New("Invalid Role: invalid Name. Only alphanumeric characters, '-' and '_' are allowed")
	}
	for _, s := range r.ServiceIdentities {
		switch {
		case s.ServiceName == "":
			return errors.New("Service identity is missing the service name field on this role")
		case !ValidIdentityName(s.ServiceName):
			return errors.New("Service identity has an invalid name. " + identityNames)
		}
	}
	if err := checkNodeIdentities(r.NodeIdentities, "role"); err != nil {
		return err
	}
	for _, p := range r.TemplatedPolicies {
		template := TemplateByName(p.TemplateName)
		switch {
		case p.TemplateName == "":
			return errors.New("templated policy is missing the template name field on this role")
		case template == nil:
			return fmt.Errorf("templated policy with an invalid templated name: %s for this role", p.TemplateName)
		}
		if _, err := template.Rules(p.TemplateVariables); err != nil {
			return fmt.Errorf("encountered role with invalid templated policy: %w", err)
		}
	}
	r.ServiceIdentities = mergeServices(r.ServiceIdentities)
	r.NodeIdentities = mergeNodes(r.NodeIdentities)
	r.TemplatedPolicies = mergeTemplates(r.TemplatedPolicies)
	return nil
}

// SetHash sets Hash to the digest of what users may set.
func (r *Role) SetHash() {
	r.Hash = digest(r.Name, r.Description, linkIDs(r.Policies), r.ServiceIdentities, r.NodeIdentities, r.TemplatedPolicies)
}
