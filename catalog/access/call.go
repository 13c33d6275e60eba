// Package access holds the calls on access control: tokens, policies, roles, auth methods, binding rules, logins, and
// what a token may do. The objects and their rules are in package acl.
package access

import (
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls to the servers. Handlers are in server/aclrpc. All answer wireerr.ErrACLDisabled where ACLs are off. Writes of
// what is global are passed on to the primary datacenter.
var (
	BootstrapCall = rpc.Write[BootstrapRequest, TokenReply]("ACL.Bootstrap")
	// LoginCall and LogoutCall: a login carries no token.
	LoginCall  = rpc.Write[LoginRequest, TokenReply]("ACL.Login")
	LogoutCall = rpc.Write[LogoutRequest, struct{}]("ACL.Logout")

	TokenSetCall    = rpc.Write[TokenSetRequest, TokenReply]("ACL.TokenSet")
	TokenCloneCall  = rpc.Write[TokenCloneRequest, TokenReply]("ACL.TokenClone")
	TokenDeleteCall = rpc.Write[DeleteRequest, struct{}]("ACL.TokenDelete")
	TokenReadCall   = rpc.Read[TokenReadRequest, TokenReply]("ACL.TokenRead")
	TokenListCall   = rpc.Read[TokenListRequest, TokenListReply]("ACL.TokenList")

	PolicySetCall    = rpc.Write[PolicySetRequest, PolicyReply]("ACL.PolicySet")
	PolicyDeleteCall = rpc.Write[DeleteRequest, struct{}]("ACL.PolicyDelete")
	PolicyReadCall   = rpc.Read[ReadRequest, PolicyReply]("ACL.PolicyRead")
	PolicyListCall   = rpc.Read[ListRequest, PolicyListReply]("ACL.PolicyList")

	RoleSetCall    = rpc.Write[RoleSetRequest, RoleReply]("ACL.RoleSet")
	RoleDeleteCall = rpc.Write[DeleteRequest, struct{}]("ACL.RoleDelete")
	RoleReadCall   = rpc.Read[ReadRequest, RoleReply]("ACL.RoleRead")
	RoleListCall   = rpc.Read[RoleListRequest, RoleListReply]("ACL.RoleList")

	AuthMethodSetCall    = rpc.Write[AuthMethodSetRequest, AuthMethodReply]("ACL.AuthMethodSet")
	AuthMethodDeleteCall = rpc.Write[DeleteRequest, struct{}]("ACL.AuthMethodDelete") // by name
	AuthMethodReadCall   = rpc.Read[ReadRequest, AuthMethodReply]("ACL.AuthMethodRead")
	AuthMethodListCall   = rpc.Read[ListRequest, AuthMethodListReply]("ACL.AuthMethodList")

	BindingRuleSetCall    = rpc.Write[BindingRuleSetRequest, BindingRuleReply]("ACL.BindingRuleSet")
	BindingRuleDeleteCall = rpc.Write[DeleteRequest, struct{}]("ACL.BindingRuleDelete")
	BindingRuleReadCall   = rpc.Read[ReadRequest, BindingRuleReply]("ACL.BindingRuleRead")
	BindingRuleListCall   = rpc.Read[BindingRuleListRequest, BindingRuleListReply]("ACL.BindingRuleList")

	TemplateListCall    = rpc.Local[TemplateListRequest, TemplateListReply]("ACL.TemplateList")
	TemplateReadCall    = rpc.Local[TemplateReadRequest, TemplateReply]("ACL.TemplateRead")
	TemplatePreviewCall = rpc.Local[TemplatePreviewRequest, PolicyReply]("ACL.TemplatePreview")

	// ResolveCall tells what the token that it carries may do: agents decide by that themselves.
	ResolveCall   = rpc.Read[ResolveRequest, ResolveReply]("ACL.Resolve")
	AuthorizeCall = rpc.Read[AuthorizeRequest, AuthorizeReply]("ACL.Authorize")

	ReplicationCall = rpc.Leader[ReplicationRequest, ReplicationStatus]("ACL.Replication")
)

// A BootstrapRequest asks for the first token.
type BootstrapRequest struct {
	read.Target
	Secret string // a UUID; chosen by the leader when empty
}

// A LoginRequest trades an outside proof of identity for a token.
type LoginRequest struct {
	read.Target
	AuthMethod  string
	BearerToken string
	Meta        map[string]string // noted in the description of the token
}

// A LogoutRequest ends the token that it carries, which must come from a login.
type LogoutRequest struct{ read.Target }

// A TokenSetRequest makes a token, or replaces the description and links of one.
type TokenSetRequest struct {
	read.Target
	// Create makes a token; IDs that are empty are chosen. Else AccessorID names the one to replace, and what else is
	// set of what cannot change must be as it is.
	Create bool
	Token  acl.Token // links by ID or by name; hash, times of creation and indexes are not looked at
	TTL    time.Duration
}

// A TokenCloneRequest makes a token with the links, locality and expiration of another.
type TokenCloneRequest struct {
	read.Target
	AccessorID  string
	Description string // that of the other when empty
}

// A DeleteRequest removes the object with this ID, or name for an auth method.
type DeleteRequest struct {
	read.Target
	ID string
}

// A TokenReadRequest asks for one token: by accessor ID, or for the one that it carries.
type TokenReadRequest struct {
	read.Options
	AccessorID string
	Self       bool
	Expanded   bool // with what it is linked to
}

// A TokenReply has one token. Its secret is hidden from those who may not write tokens, unless it is their own.
type TokenReply struct {
	read.Meta
	Token    *acl.Token
	Expanded *Expanded // nil unless asked for
}

// Expanded is what a token is linked to, here and now.
type Expanded struct {
	Policies      []*acl.Policy // in force in this datacenter, also those that identities and templates stand for
	Roles         []*acl.Role
	DefaultPolicy string // of the server
	DownPolicy    string
	Node          string // name of the server's node
}

// A TokenListRequest asks for the tokens that fit everything that is set.
type TokenListRequest struct {
	read.Options
	Policy      string // ID of a policy that they are linked to
	Role        string // ID of a role
	AuthMethod  string
	ServiceName string // of a service identity
	GlobalOnly  bool
}

// TokenListReply is ordered by accessor ID. It has no tokens that have expired.
type TokenListReply struct {
	read.Meta
	Tokens []*acl.Token
}

// A PolicySetRequest makes a policy when it has no ID, else replaces the one with it.
type PolicySetRequest struct {
	read.Target
	Policy acl.Policy
}

// A ReadRequest asks for one object by ID, or when that is empty by name.
type ReadRequest struct {
	read.Options
	ID   string
	Name string
}

// A PolicyReply has one policy.
type PolicyReply struct {
	read.Meta
	Policy *acl.Policy
}

// A ListRequest asks for all objects of a kind.
type ListRequest struct{ read.Options }

// PolicyListReply is ordered by ID.
type PolicyListReply struct {
	read.Meta
	Policies []*acl.Policy
}

// A RoleSetRequest makes a role when it has no ID, else replaces the one with it. Policies are linked by ID or name.
type RoleSetRequest struct {
	read.Target
	Role acl.Role
}

// A RoleReply has one role.
type RoleReply struct {
	read.Meta
	Role *acl.Role
}

// A RoleListRequest asks for the roles that fit what is set.
type RoleListRequest struct {
	read.Options
	Policy string // ID of a policy that they are linked to
}

// RoleListReply is ordered by ID.
type RoleListReply struct {
	read.Meta
	Roles []*acl.Role
}

// An AuthMethodSetRequest makes or replaces the method of that name. An empty type stands for the one it has.
type AuthMethodSetRequest struct {
	read.Target
	AuthMethod acl.AuthMethod
}

// An AuthMethodReply has one auth method.
type AuthMethodReply struct {
	read.Meta
	AuthMethod *acl.AuthMethod
}

// AuthMethodListReply is ordered by name. The methods have no Config.
type AuthMethodListReply struct {
	read.Meta
	AuthMethods []*acl.AuthMethod
}

// A BindingRuleSetRequest makes a rule when it has no ID, else replaces the one with it. An empty AuthMethod then stands
// for the one it has.
type BindingRuleSetRequest struct {
	read.Target
	BindingRule acl.BindingRule
}

// A BindingRuleReply has one binding rule.
type BindingRuleReply struct {
	read.Meta
	BindingRule *acl.BindingRule
}

// A BindingRuleListRequest asks for the rules of a method, or all.
type BindingRuleListRequest struct {
	read.Options
	AuthMethod string
}

// BindingRuleListReply is ordered by ID.
type BindingRuleListReply struct {
	read.Meta
	BindingRules []*acl.BindingRule
}

// A TemplateListRequest asks for the templates of policies.
type TemplateListRequest struct{ read.Target }

// TemplateListReply is ordered by ID.
type TemplateListReply struct{ Templates []*acl.Template }

// A TemplateReadRequest asks for one template.
type TemplateReadRequest struct {
	read.Target
	Name string
}

// A TemplateReply has one template.
type TemplateReply struct{ Template *acl.Template }

// A TemplatePreviewRequest asks for the policy that a template stands for.
type TemplatePreviewRequest struct {
	read.Target
	Name      string
	Variables acl.TemplateVariables
}

// A ResolveRequest asks what the token that it carries may do.
type ResolveRequest struct {
	read.Options
	// For is the datacenter that it is to be done in; empty for that of the server. A token of another datacenter's own is
	// refused.
	For string
}

// ResolveReply is what a token may do in a datacenter.
type ResolveReply struct {
	read.Meta
	// Token is without its secret. It is nil where nobody has made the anonymous token yet.
	Token *acl.Token
	// Policies are all that are in force for the token: its own, those of its roles, and those that identities and
	// templates stand for. Those with equal IDs and Hash are equal; indexes may be
	// of another datacenter.
	Policies      []*acl.Policy
	DefaultPolicy string // "allow" or "deny": what holds where no rule says anything
	// Age is how long ago the primary datacenter said so, 0 for what is known from the state: who remembers the answer for a
	// while counts from then, so that a token that is deleted is refused in time however many remember it.
	Age time.Duration
}

// An AuthorizeRequest asks whether the token that it carries may do things.
type AuthorizeRequest struct {
	read.Options
	Checks []Check
}

// A Check is one thing to be done. Access may also be WritePrefix, for keys.
type Check struct {
	Resource acl.Resource
	Segment  string `json:",omitempty"` // the name
	Access   string // in lower or upper case
	Allow    bool   // the answer
}

// WritePrefix is the access that writes every key that begins with the name.
const WritePrefix = "write-prefix"

// MaxChecks bounds an AuthorizeRequest.
const MaxChecks = 64

// AuthorizeReply has the checks with their answers, in the order of the request.
type AuthorizeReply struct {
	read.Meta
	Checks []Check
}

// A ReplicationRequest asks how far what is kept in the primary datacenter has been copied to this one.
type ReplicationRequest struct{ read.Target }

// A ReplicationStatus tells how far what is kept in the primary datacenter has been copied to this one.
type ReplicationStatus struct {
	Enabled              bool
	Running              bool
	SourceDatacenter     string
	ReplicationType      string // "policies", "tokens" or empty
	ReplicatedIndex      uint64
	ReplicatedRoleIndex  uint64
	ReplicatedTokenIndex uint64
	LastSuccess          time.Time
	LastError            time.Time
	LastErrorMessage     string
}
