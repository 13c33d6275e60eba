// Package acl decides who may do what. An Authorizer answers for one token; a denied answer names the missing right.
//
// Access control is off in this version of the package: Everything grants every right. The rule language, tokens and
// policies build on the types here.
package acl

import "fmt"

// A Resource is a kind of thing that rules protect (spec/acl.md section 2).
type Resource string

const (
	ACL      Resource = "acl"
	Agent    Resource = "agent"
	Event    Resource = "event"
	Identity Resource = "identity"
	Inten    Resource = "intention"
	Key      Resource = "key"
	Keyring  Resource = "keyring"
	Mesh     Resource = "mesh"
	Node     Resource = "node"
	Operator Resource = "operator"
	Peering  Resource = "peering"
	Query    Resource = "query"
	Service  Resource = "service"
	Session  Resource = "session"
)

// An Access is what is to be done with a resource.
type Access string

const (
	Read  Access = "read"
	List  Access = "list"
	Write Access = "write"
)

// A Policy answers whether rules grant an access. Name is empty for resources without names.
type Policy interface {
	Allows(r Resource, a Access, name string) bool
}

// A PrefixPolicy is a Policy that also answers whether rules grant an access to every name that begins with a prefix.
type PrefixPolicy interface {
	Policy
	AllowsPrefix(r Resource, a Access, prefix string) bool
}

// An Authorizer answers for the token of one request.
type Authorizer struct {
	policy   Policy
	accessor string // empty for the anonymous token
}

// New returns an authorizer that answers by policy for the token with this accessor ID.
func New(policy Policy, accessor string) *Authorizer { return &Authorizer{policy, accessor} }

// Everything returns an authorizer that grants every right: what every request gets while ACLs are off.
func Everything() *Authorizer { return &Authorizer{policy: all{}} }

type all struct{}

func (all) Allows(Resource, Access, string) bool { return true }

// Anonymous reports whether the request carried no token.
func (z *Authorizer) Anonymous() bool { return z.accessor == "" }

// May reports whether the right is granted; lists use it to leave out what the token may not see.
func (z *Authorizer) May(r Resource, a Access, name string) bool { return z.policy.Allows(r, a, name) }

// Require returns nil when the right is granted, else a *DeniedError.
func (z *Authorizer) Require(r Resource, a Access, name string) error {
	if z.policy.Allows(r, a, name) {
		return nil
	}
	return &DeniedError{Accessor: z.accessor, Resource: r, Access: a, Name: name}
}

// RequirePrefix is Require for every name that begins with prefix. A policy that is no PrefixPolicy has no rules for
// single names: its answer for the prefix counts.
func (z *Authorizer) RequirePrefix(r Resource, a Access, prefix string) error {
	p, ok := z.policy.(PrefixPolicy)
	if !ok {
		return z.Require(r, a, prefix)
	}
	if p.AllowsPrefix(r, a, prefix) {
		return nil
	}
	return &DeniedError{Accessor: z.accessor, Resource: r, Access: a, Name: prefix}
}

// A DeniedError names the right that was missing. Its text is matched by clients (spec/registry.md section 1.5).
type DeniedError struct {
	Accessor string // empty for the anonymous token
	Resource Resource
	Access   Access
	Name     string // empty for resources without names
}

func (e *DeniedError) Error() string {
	on := ""
	if e.Name != "" {
		on = fmt.Sprintf(" on %q", e.Name)
	}
	if e.Accessor == "" {
		return fmt.Sprintf("Permission denied: anonymous token lacks permission '%s:%s'%s. The anonymous token is used implicitly when a request does not specify a token.", e.Resource, e.Access, on)
	}
	return fmt.Sprintf("Permission denied: token with AccessorID '%s' lacks permission '%s:%s'%s", e.Accessor, e.Resource, e.Access, on)
}
