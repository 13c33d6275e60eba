package acl

import (
	"errors"
	"fmt"
	"strings"
)

// Texts about binding rules that clients match on.
var (
	ErrRuleMethod   = errors.New("the AuthMethod field of an Binding Rule is immutable")
	errRuleBindVars = errors.New("invalid Binding Rule: BindVars cannot be set when bind type is not templated-policy.")
)

// maxBound bounds a name that was filled in; longer ones are valid for nothing.
const maxBound = 512

// Check checks a binding rule for a method that knows these variables. The selector is not looked at.
func (r *BindingRule) Check(variables []string) error {
	switch {
	case r.AuthMethod == "":
		return errors.New("Invalid Binding Rule: no AuthMethod is set")
	case r.BindType == "":
		return errors.New("Invalid Binding Rule: no BindType is set")
	case r.BindName == "":
		return errors.New("Invalid Binding Rule: no BindName is set")
	case r.BindVars != nil && r.BindType != BindTemplatedPolicy:
		return errRuleBindVars
	}
	known := make(map[string]string, len(variables))
	for _, v := range variables {
		known[v] = "fake" // as good as any value
	}
	var b Bound
	if err := r.bind(known, "dc", &b); err != nil {
		return fmt.Errorf("Invalid Binding Rule: invalid BindName or BindVars: %w", err)
	}
	return nil
}

// Bound is what the binding rules give one login. Policies and roles are named; they need not exist.
type Bound struct {
	Policies, Roles   []string
	ServiceIdentities []ServiceIdentity
	NodeIdentities    []NodeIdentity
	TemplatedPolicies []TemplatedPolicy
}

// Bind adds what the rule gives a login with these variables in this datacenter. The rule is one that Check accepts;
// a value that makes no valid name is an error.
func (r *BindingRule) Bind(variables map[string]string, datacenter string, b *Bound) error {
	if err := r.bind(variables, datacenter, b); err != nil {
		return fmt.Errorf("binding rule %s: %w", r.ID, err)
	}
	return nil
}

func (r *BindingRule) bind(variables map[string]string, datacenter string, b *Bound) error {
	text := r.BindName
	switch r.BindType {
	case BindService, BindNode, BindRole, BindPolicy:
	case BindTemplatedPolicy:
		text = ""
		if r.BindVars != nil {
			text = r.BindVars.Name
		}
	default:
		return fmt.Errorf("invalid Binding Rule: unknown BindType %q", r.BindType)
	}
	failed := func(err error) error { return fmt.Errorf("failed to validate bindType %q: %w", r.BindType, err) }
	name, err := interpolate(text, variables)
	if err != nil {
		return failed(fmt.Errorf("error interpreting template: %w", err))
	}
	valid := ValidIdentityName(name)
	switch r.BindType {
	case BindTemplatedPolicy:
		t := TemplateByName(r.BindName)
		if t == nil {
			return failed(fmt.Errorf("Bind name for templated-policy bind type does not match existing template name: %s", r.BindName))
		}
		p := TemplatedPolicy{TemplateName: r.BindName}
		if r.BindVars != nil {
			p.TemplateVariables = &TemplateVariables{Name: name}
		}
		if _, err := t.Rules(p.TemplateVariables); err != nil {
			return failed(err)
		}
		b.TemplatedPolicies = append(b.TemplatedPolicies, p)
		return nil
	case BindRole:
		valid = len(name) <= maxRoleName && validName(name)
	case BindPolicy:
		valid = name == ReadOnlyName || CheckPolicyName(name) == nil
	}
	if !valid {
		return failed(fmt.Errorf("invalid bind name: %q", name))
	}
	switch r.BindType {
	case BindService:
		b.ServiceIdentities = append(b.ServiceIdentities, ServiceIdentity{ServiceName: name})
	case BindNode:
		b.NodeIdentities = append(b.NodeIdentities, NodeIdentity{NodeName: name, Datacenter: datacenter})
	case BindRole:
		b.Roles = append(b.Roles, name)
	case BindPolicy:
		b.Policies = append(b.Policies, name)
	}
	return nil
}

// interpolate puts the lower-cased values of variables in the places of ${name}; $${ stands for ${ itself. A value is
// put in as it is: what looks like a variable in it is none.
func interpolate(text string, variables map[string]string) (string, error) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${")
		if escaped := strings.HasSuffix(before, "$"); found && escaped {
			b.WriteString(before[:len(before)-1] + "${")
			text = rest
			continue
		}
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", errors.New("expected } after a variable")
		}
		name = strings.Trim(name, " \t")
		if !validVariable(name) {
			return "", fmt.Errorf("%q is no variable", name)
		}
		value, known := variables[name]
		if !known {
			return "", fmt.Errorf("unknown variable accessed: %s", name)
		}
		if b.Len()+len(value) > maxBound {
			return "", fmt.Errorf("value of %s is too long", name)
		}
		b.WriteString(strings.Map(lower, value))
		text = after
	}
}

// lower returns an ASCII letter in lower case, and others as they are: the Kelvin sign is no k, and so no part of a name.
func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + ('a' - 'A')
	}
	return r
}

// validVariable reports whether a text has the form of a variable's name.
func validVariable(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '.' && !validName(string(c)) {
			return false
		}
	}
	return s != ""
}
