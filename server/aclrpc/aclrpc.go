// Package aclrpc is a server's part in access control: it answers the calls of catalog/access, and finds what the token
// of a request may do.
package aclrpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/authmethod"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/primary"
	"github.com/sarnmesh/sarn/server/transport"
)

// Defaults of Config, and what else a policy may be.
const (
	Allow       = "allow"
	Deny        = "deny"
	ExtendCache = "extend-cache"
	AsyncCache  = "async-cache"
)

// Config tunes a Control. A zero field takes its default.
type Config struct {
	Enabled       bool   // else every request has every right, and calls of catalog/access are refused
	DefaultPolicy string // where no rule says anything: Allow, the default, or Deny
	// DownPolicy says what holds for tokens that only the primary datacenter knows while that cannot be asked: Allow, Deny,
	// or what was known before, ExtendCache, which is the default, or AsyncCache, which goes by it while asking again.
	DownPolicy string
	TokenTTL   time.Duration // how long what the primary datacenter said of a token is good; default 30s

	// Datacenter and Node are this server's; PrimaryDatacenter, that where global objects are written, is by default the
	// same. The server sets the first two.
	Datacenter, Node  string
	PrimaryDatacenter string
	// Primary makes a call of the primary datacenter; the request names it. Nil reaches none, but a server that is in the
	// WAN pool has its own way.
	Primary func(ctx context.Context, d rpc.Descriptor, req, resp any) error
	// TokenReplication tells that global tokens are copied here from the primary datacenter: tokens of this datacenter's
	// own, and logins, need that. Replication tells how far it is; nil for not at all.
	TokenReplication bool
	Replication      func() access.ReplicationStatus

	// DataDir is where the file acl-bootstrap-reset is looked for; empty for nowhere.
	DataDir string
	// InitialManagement is the secret of the token that a new cluster begins with; empty for none.
	InitialManagement string
	// Local returns what a token may do that is known to this agent alone, such as its recovery token; nil for others. It
	// may be nil.
	Local func(secret string) *acl.Authorizer
	// Methods reaches what auth methods ask.
	Methods authmethod.Env

	Logger hclog.Logger // default discards
}

// A Control answers calls and resolves tokens. Make one with New. It is safe for concurrent use.
type Control struct {
	cfg      Config
	store    *state.Store
	log      hclog.Logger
	methods  *authmethod.Cache
	resolved resolver
}

// New returns the control of access to the state.
func New(cfg Config, store *state.Store) *Control {
	if cfg.DefaultPolicy == "" {
		cfg.DefaultPolicy = Allow
	}
	if cfg.DownPolicy == "" {
		cfg.DownPolicy = ExtendCache
	}
	if cfg.TokenTTL <= 0 {
		cfg.TokenTTL = 30 * time.Second
	}
	if cfg.PrimaryDatacenter == "" {
		cfg.PrimaryDatacenter = cfg.Datacenter
	}
	if cfg.Replication == nil {
		cfg.Replication = func() access.ReplicationStatus { return access.ReplicationStatus{} }
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Methods.Logger == nil {
		cfg.Methods.Logger = cfg.Logger.Named("acl")
	}
	c := &Control{cfg: cfg, store: store, log: cfg.Logger.Named("acl"), methods: authmethod.NewCache(cfg.Methods)}
	c.resolved.init(cfg)
	return c
}

// Register adds the handlers and appliers.
func (c *Control) Register(r *transport.Registry, a *fsm.Appliers) {
	registerAppliers(a)

	onCall(c, r, access.BootstrapCall, c.bootstrap)
	onCall(c, r, access.LoginCall, c.login)
	onCall(c, r, access.LogoutCall, c.logout)

	onCall(c, r, access.TokenSetCall, c.setToken)
	onCall(c, r, access.TokenCloneCall, c.cloneToken)
	onCall(c, r, access.TokenDeleteCall, c.deleteToken)
	onRead(c, r, access.TokenReadCall, c.readToken)
	onRead(c, r, access.TokenListCall, c.listTokens)

	onCall(c, r, access.PolicySetCall, c.setPolicy)
	onCall(c, r, access.PolicyDeleteCall, c.deletePolicy)
	onRead(c, r, access.PolicyReadCall, c.readPolicy)
	onRead(c, r, access.PolicyListCall, c.listPolicies)

	onCall(c, r, access.RoleSetCall, c.setRole)
	onCall(c, r, access.RoleDeleteCall, c.deleteRole)
	onRead(c, r, access.RoleReadCall, c.readRole)
	onRead(c, r, access.RoleListCall, c.listRoles)

	onCall(c, r, access.AuthMethodSetCall, c.setMethod)
	onCall(c, r, access.AuthMethodDeleteCall, c.deleteMethod)
	onRead(c, r, access.AuthMethodReadCall, c.readMethod)
	onRead(c, r, access.AuthMethodListCall, c.listMethods)

	onCall(c, r, access.BindingRuleSetCall, c.setRule)
	onCall(c, r, access.BindingRuleDeleteCall, c.deleteRule)
	onRead(c, r, access.BindingRuleReadCall, c.readRule)
	onRead(c, r, access.BindingRuleListCall, c.listRules)

	onCall(c, r, access.TemplateListCall, c.listTemplates)
	onCall(c, r, access.TemplateReadCall, c.readTemplate)
	onCall(c, r, access.TemplatePreviewCall, c.previewTemplate)

	onRead(c, r, access.ResolveCall, c.tellResolved)
	onRead(c, r, access.AuthorizeCall, c.authorize)
	onCall(c, r, access.ReplicationCall, c.replication)
}

// onRead registers a read that is refused where ACLs are off.
func onRead[Req, Resp any](c *Control, r *transport.Registry, m rpc.Method[Req, Resp], f func(context.Context, *transport.Call, *state.View, *Req) (*Resp, acl.Permit, error)) {
	transport.HandleReadContext(r, m, func(ctx context.Context, call *transport.Call, v *state.View, req *Req) (*Resp, acl.Permit, error) {
		if !c.cfg.Enabled {
			return nil, acl.Permit{}, wireerr.ErrACLDisabled
		}
		return f(ctx, call, v, req)
	})
}

// onCall registers any other call that is refused where ACLs are off.
func onCall[Req, Resp any](c *Control, r *transport.Registry, m rpc.Method[Req, Resp], f func(context.Context, *transport.Call, *Req) (*Resp, acl.Permit, error)) {
	transport.Handle(r, m, func(ctx context.Context, call *transport.Call, req *Req) (*Resp, acl.Permit, error) {
		if !c.cfg.Enabled {
			return nil, acl.Permit{}, wireerr.ErrACLDisabled
		}
		return f(ctx, call, req)
	})
}

// mayWrite and mayRead ask for the rights that nearly every call needs.
func mayWrite(call *transport.Call) (acl.Permit, error) {
	return call.Authorizer.Require(acl.ACL, acl.Write, "")
}

func mayRead(call *transport.Call) (acl.Permit, error) {
	return call.Authorizer.Require(acl.ACL, acl.Read, "")
}

// primary reports whether global objects are written here.
func (c *Control) primary() bool { return c.cfg.Datacenter == c.cfg.PrimaryDatacenter }

// ownTokens reports whether this datacenter has tokens of its own, and logins.
func (c *Control) ownTokens() bool { return c.primary() || c.cfg.TokenReplication }

// Texts that clients match on.
var (
	errLocalTokens   = errors.New("Local tokens are disabled")
	errMethodsNeed   = errors.New("Token replication is required for auth methods to function")
	errTokenMissing  = fmt.Errorf("token does not exist: %w", wireerr.ErrTokenNotFound)
	errAccessorUUID  = errors.New("AccessorID is not a valid UUID")
	errDeleteUUID    = errors.New("Token ID is missing or an invalid UUID")
	errPolicyMissing = wireerr.NotFound("Requested policy does not exist: %s", wireerr.ErrTokenNotFound)
	errRoleMissing   = wireerr.NotFound("Requested role does not exist: %s", wireerr.ErrTokenNotFound)
	errMethodMissing = wireerr.NotFound("Requested auth method does not exist: %s", wireerr.ErrTokenNotFound)
	errRuleMissing   = wireerr.NotFound("Requested binding rule does not exist: %s", wireerr.ErrTokenNotFound)
)

// inPrimary has the primary datacenter do what is asked of this one: it also decides whether the token may.
func inPrimary[Req, Resp any](ctx context.Context, c *Control, m rpc.Method[Req, Resp], req *Req) (*Resp, acl.Permit, error) {
	if c.cfg.Primary == nil {
		return nil, acl.Permit{}, wireerr.ErrNoDatacenter
	}
	return primary.Ask(ctx, c.cfg.Primary, c.cfg.PrimaryDatacenter, m, req)
}

// checkID checks the ID in a lookup.
func checkID(what, id string) error {
	if err := catalog.CheckUUID(id); err != nil {
		return fmt.Errorf("failed acl %s lookup: index error: %w", what, err)
	}
	return nil
}
