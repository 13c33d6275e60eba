package acl

import (
	"errors"
	"fmt"
	"strings"
)

// Longest names of objects.
const (
	maxPolicyName = 128
	maxRoleName   = 256
	maxMethodName = 128
)

// CheckPolicyName checks the name of a policy that is no built-in one.
func CheckPolicyName(name string) error {
	switch {
	case name == "":
		return errors.New("Invalid Policy: no Name is set")
	case strings.HasPrefix(name, "/") || strings.HasPrefix(name, "builtin/"):
		return errors.New("Invalid Policy: invalid Name. Names cannot be prefixed with '/' or 'builtin/'")
	case len(name) > maxPolicyName:
		return fmt.Errorf("Invalid Policy: invalid Name. Length must be greater than 0 and less than %d", maxPolicyName)
	case strings.Count(name, "/") > 1 || !validName(strings.Replace(name, "/", "_", 1)):
		return errors.New("Invalid Policy: invalid Name. Only alphanumeric characters, a single '/', '-' and '_' are allowed")
	}
	return nil
}

// Check checks a policy that takes the place of old, nil for none.
func (p *Policy) Check(old *Policy) error {
	if old == nil || p.Name != old.Name {
		if err := CheckPolicyName(p.Name); err != nil {
			return err
		}
	}
	if builtIn := BuiltInPolicy(p.ID); builtIn != nil {
		switch {
		case p.Rules != builtIn.Rules:
			return fmt.Errorf("Changing the Rules for the builtin %s policy is not permitted", builtIn.Name)
		case len(p.Datacenters) > 0:
			return fmt.Errorf("Changing the Datacenters of the builtin %s policy is not permitted", builtIn.Name)
		}
	}
	_, err := Parse(p.Rules)
	return err
}

// BuiltInPolicy returns a new copy of the policy with this ID that every cluster has, nil when there is none.
func BuiltInPolicy(id string) *Policy {
	for _, p := range BuiltInPolicies() {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// SetHash sets Hash to the digest of what users may set.
func (p *Policy) SetHash() {
	p.Hash = digest(p.Name, p.Description, p.Rules, append([]string{}, p.Datacenters...))
}
