// Package acl decides who may do what. An Authorizer answers for one token; a denied answer names the missing right.
//
// Rules are written in policies (Parse), put together for a token (Compile), and asked through an Authorizer.
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

// A Decider answers whether rules grant an access. Name is empty for resources without names.
type Decider interface {
	Allows(r Resource, a Access, name string) bool
}

// A RangeDecider is a Decider that also answers for many names at once (spec/acl.md section 3, rules 7 and 9).
type RangeDecider interface {
	Decider
	// AllowsPrefix reports whether the access is granted to every name that begins with prefix.
	AllowsPrefix(r Resource, a Access, prefix string) bool
	// AllowsAny reports whether it is granted to some name.
	AllowsAny(r Resource, a Access) bool
}

// An Authorizer answers for the token of one request.
type Authorizer struct {
	decider  Decider
	accessor string // empty for the anonymous token
}

// AnonymousID is the accessor ID of the token of requests that bring none.
const AnonymousID = "00000000-0000-0000-0000-000000000002"

// New returns an authorizer that answers by d for the token with this accessor ID; empty for the anonymous token.
func New(d Decider, accessor string) *Authorizer {
	if accessor == AnonymousID {
		accessor = ""
	}
	return &Authorizer{d, accessor}
}

// Everything returns an authorizer that grants every right: what every request gets while ACLs are off, and what
// servers do by themselves.
func Everything() *Authorizer { return &Authorizer{decider: all{}} }

type all struct{}

func (all) Allows(Resource, Access, string) bool       { return true }
func (all) AllowsPrefix(Resource, Access, string) bool { return true }
func (all) AllowsAny(Resource, Access) bool            { return true }

// A Permit shows that an Authorizer was asked and agreed. Only this package makes one: what must not happen unasked
// takes a Permit, so that code which forgets to ask does not compile. The zero Permit is none.
type Permit struct{ given bool }

// Given reports whether the permit is one.
func (p Permit) Given() bool { return p.given }

// Open returns the permit for what everybody may know or do, whatever their token.
func Open() Permit { return Permit{true} }

// Filtering returns the permit for a list each of whose items May is asked about.
func (z *Authorizer) Filtering() Permit { return Permit{true} }

// Anonymous reports whether the request carried no token.
func (z *Authorizer) Anonymous() bool { return z.accessor == "" }

// Accessor returns the accessor ID of the token, empty for the anonymous one.
func (z *Authorizer) Accessor() string { return z.accessor }

// May reports whether the right is granted; lists use it to leave out what the token may not see.
func (z *Authorizer) May(r Resource, a Access, name string) bool { return z.decider.Allows(r, a, name) }

// MayPrefix is May for every name that begins with prefix. A decider that is no RangeDecider has no rules for single
// names: its answer for the prefix counts.
func (z *Authorizer) MayPrefix(r Resource, a Access, prefix string) bool {
	if d, ok := z.decider.(RangeDecider); ok {
		return d.AllowsPrefix(r, a, prefix)
	}
	return z.decider.Allows(r, a, prefix)
}

// MayAny is May for some name, whichever.
func (z *Authorizer) MayAny(r Resource, a Access) bool {
	if d, ok := z.decider.(RangeDecider); ok {
		return d.AllowsAny(r, a)
	}
	return z.decider.Allows(r, a, "")
}

// MayReadImported reports whether nodes (acl.Node) or services (acl.Service) that a peer exports to this cluster may be
// seen: by who may write any service, or read all (spec/acl.md section 3, rule 9).
func (z *Authorizer) MayReadImported(r Resource) bool {
	return z.MayAny(Service, Write) || z.MayPrefix(r, Read, "")
}

// Require returns a permit when the right is granted, else a *DeniedError.
func (z *Authorizer) Require(r Resource, a Access, name string) (Permit, error) {
	return z.permit(z.May(r, a, name), r, a, name)
}

// RequirePrefix is Require for every name that begins with prefix.
func (z *Authorizer) RequirePrefix(r Resource, a Access, prefix string) (Permit, error) {
	p, err := z.permit(z.MayPrefix(r, a, prefix), r, a, prefix)
	if denied, ok := err.(*DeniedError); ok {
		denied.Prefix = true
	}
	return p, err
}

// RequireAny is Require for some name, whichever.
func (z *Authorizer) RequireAny(r Resource, a Access) (Permit, error) {
	return z.permit(z.MayAny(r, a), r, a, "")
}

func (z *Authorizer) permit(granted bool, r Resource, a Access, name string) (Permit, error) {
	if granted {
		return Permit{true}, nil
	}
	return Permit{}, &DeniedError{Accessor: z.accessor, Resource: r, Access: a, Name: name}
}

// A DeniedError names the right that was missing. Its text is matched by clients (spec/registry.md section 1.5).
type DeniedError struct {
	Accessor string // empty for the anonymous token
	Resource Resource
	Access   Access
	Name     string // empty for resources without names
	Prefix   bool   // the right was asked for every name that begins with Name; the text does not tell
}

// anonymousNote ends what is said to who presented no token.
const anonymousNote = ". The anonymous token is used implicitly when a request does not specify a token."

func (e *DeniedError) Error() string {
	on := ""
	if e.Name != "" {
		on = fmt.Sprintf(" on %q", e.Name)
	}
	if e.Accessor == "" {
		return fmt.Sprintf("Permission denied: anonymous token lacks permission '%s:%s'%s%s", e.Resource, e.Access, on, anonymousNote)
	}
	return fmt.Sprintf("Permission denied: token with AccessorID '%s' lacks permission '%s:%s'%s", e.Accessor, e.Resource, e.Access, on)
}
