package acl

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/blake2b"
)

// AnonymousSecret is the secret of the token of requests that bring none.
const AnonymousSecret = "anonymous"

// ReservedPrefix begins the IDs that users may not choose.
const ReservedPrefix = reservedID

// Hidden stands in place of a secret that the reader may not see.
const Hidden = "<hidden>"

// MinTTL is the shortest life of a token that expires.
const MinTTL = time.Minute

// AnonymousToken returns a new copy of the token of requests that bring none.
func AnonymousToken(now time.Time) *Token {
	return &Token{AccessorID: AnonymousID, SecretID: AnonymousSecret, Description: "Anonymous Token", CreateTime: now}
}

// ManagementToken returns a token that may do everything.
func ManagementToken(accessor, secret, description string, now time.Time) *Token {
	return &Token{
		AccessorID: accessor, SecretID: secret, Description: description, Policies: []Link{{ID: ManagementID}}, CreateTime: now,
	}
}

// Expired reports whether the token is no longer good.
func (t *Token) Expired(now time.Time) bool {
	return t.ExpirationTime != nil && !now.Before(*t.ExpirationTime)
}

// Redact returns the token without its secret.
func (t *Token) Redact() *Token {
	shown := *t
	shown.SecretID = Hidden
	return &shown
}

// Normalize brings what the token is linked to into its stored form: each once, and complete. It fails when something
// is not valid (spec/acl.md section 8). Policies and roles are not looked at.
func (t *Token) Normalize() error {
	for i := range t.ServiceIdentities {
		s := &t.ServiceIdentities[i]
		switch {
		case s.ServiceName == "":
			return errors.New("Service identity is missing the service name field on this token")
		case t.Local && len(s.Datacenters) > 0:
			return fmt.Errorf("Service identity %q cannot specify a list of datacenters on a local token", s.ServiceName)
		case !ValidIdentityName(s.ServiceName):
			return fmt.Errorf("Service identity %q has an invalid name. %s", s.ServiceName, identityNames)
		}
	}
	if err := checkNodeIdentities(t.NodeIdentities, "token"); err != nil {
		return err
	}
	for i := range t.TemplatedPolicies {
		p := &t.TemplatedPolicies[i]
		template := TemplateByName(p.TemplateName)
		switch {
		case p.TemplateName == "":
			return errors.New("templated policy is missing the template name field on this token")
		case template == nil:
			return fmt.Errorf("no such ACL templated policy with Name %q", p.TemplateName)
		}
		if _, err := template.Rules(p.TemplateVariables); err != nil {
			return fmt.Errorf("validation error for templated policy %q: %w", p.TemplateName, err)
		}
	}
	t.ServiceIdentities = mergeServices(t.ServiceIdentities)
	t.NodeIdentities = mergeNodes(t.NodeIdentities)
	t.TemplatedPolicies = mergeTemplates(t.TemplatedPolicies)
	return nil
}

const identityNames = "Only lowercase alphanumeric characters, '-' and '_' are allowed"

// checkNodeIdentities checks those on a token or role.
func checkNodeIdentities(all []NodeIdentity, on string) error {
	for _, n := range all {
		switch {
		case n.NodeName == "":
			return fmt.Errorf("Node identity is missing the node name field on this %s", on)
		case n.Datacenter == "":
			return fmt.Errorf("Node identity is missing the datacenter field on this %s", on)
		case !ValidIdentityName(n.NodeName):
			return errors.New("Node identity has an invalid name. " + identityNames)
		}
	}
	return nil
}

// merge returns the elements with those that are alike merged into the first of them.
func merge[T any](all []T, alike func(a, b *T) bool, into func(a, b *T)) []T {
	var out []T
	for i := range all {
		b := &all[i]
		if at := slices.IndexFunc(out, func(a T) bool { return alike(&a, b) }); at >= 0 {
			into(&out[at], b)
			continue
		}
		out = append(out, *b)
	}
	return out
}

// mergeDatacenters returns where either list is good, sorted; a list that is empty is good everywhere.
func mergeDatacenters(a, b []string) []string {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	both := slices.Concat(a, b)
	slices.Sort(both)
	return slices.Compact(both)
}

func mergeServices(all []ServiceIdentity) []ServiceIdentity {
	all = slices.Clone(all)
	for i := range all {
		all[i].Datacenters = mergeDatacenters(all[i].Datacenters, all[i].Datacenters)
	}
	return merge(all, func(a, b *ServiceIdentity) bool { return a.ServiceName == b.ServiceName }, func(a, b *ServiceIdentity) {
		a.Datacenters = mergeDatacenters(a.Datacenters, b.Datacenters)
	})
}

func mergeNodes(all []NodeIdentity) []NodeIdentity {
	return merge(all, func(a, b *NodeIdentity) bool { return *a == *b }, func(_, _ *NodeIdentity) {})
}

// mergeTemplates also completes the templates' IDs; they must exist. Variables that a template does not take are
// dropped.
func mergeTemplates(all []TemplatedPolicy) []TemplatedPolicy {
	all = slices.Clone(all)
	for i := range all {
		p := &all[i]
		t := TemplateByName(p.TemplateName)
		p.TemplateID = t.ID
		if t.check == nil {
			p.TemplateVariables = nil
		}
		p.Datacenters = mergeDatacenters(p.Datacenters, p.Datacenters)
	}
	return merge(all, func(a, b *TemplatedPolicy) bool {
		return a.TemplateName == b.TemplateName && a.name() == b.name()
	}, func(a, b *TemplatedPolicy) {
		a.Datacenters = mergeDatacenters(a.Datacenters, b.Datacenters)
	})
}

func (p *TemplatedPolicy) name() string {
	if p.TemplateVariables == nil {
		return ""
	}
	return p.TemplateVariables.Name
}

// SetHash sets Hash to the digest of what users may set.
func (t *Token) SetHash() {
	t.Hash = digest(t.Description, linkIDs(t.Policies), linkIDs(t.Roles), t.ServiceIdentities, t.NodeIdentities, t.TemplatedPolicies, t.Local)
}

func linkIDs(links []Link) []string {
	ids := make([]string, len(links))
	for i, l := range links {
		ids[i] = l.ID
	}
	return ids
}

// digest is equal for equal parts.
func digest(parts ...any) []byte {
	data, err := json.Marshal(parts)
	if err != nil {
		panic(fmt.Sprintf("acl: digest: %v", err)) // strings, lists and booleans can be encoded
	}
	sum := blake2b.Sum256(data)
	return sum[:]
}

// Expiry returns when a token made now is to expire, by its lifetime or the time given, of which one at most is set;
// nil for never.
func Expiry(now time.Time, ttl time.Duration, at *time.Time) (*time.Time, error) {
	switch {
	case ttl != 0 && at != nil:
		return nil, errors.New("Token Expiration TTL and Expiration Time cannot both be set")
	case ttl < 0:
		return nil, fmt.Errorf("Token Expiration TTL '%s' should be > 0", ttl)
	case ttl > 0:
		end := now.Add(ttl)
		at = &end
	case at == nil || at.IsZero():
		return nil, nil
	}
	switch {
	case at.Before(now):
		return nil, errors.New("ExpirationTime cannot be before CreateTime")
	case at.Sub(now) < MinTTL:
		return nil, fmt.Errorf("ExpirationTime cannot be less than %s in the future (was %s)", MinTTL, at.Sub(now))
	}
	return at, nil
}
