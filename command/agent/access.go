package agent

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/client/access"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/server/aclrpc"
	"github.com/sarnmesh/sarn/server/authmethod"
)

// denies reports whether what no rule mentions is refused.
func denies(s *config.Settings) bool { return s.ACL.Enabled && s.ACL.DefaultPolicy == aclrpc.Deny }

// callersAllowed reports whether callers that no intention mentions are let in.
func callersAllowed(s *config.Settings) bool {
	if s.DefaultIntentionPolicy != "" {
		return s.DefaultIntentionPolicy != aclrpc.Deny
	}
	return !denies(s)
}

// control is a server's part in access control.
func (a *Agent) control(s *config.Settings) aclrpc.Config {
	return aclrpc.Config{
		Local:   func(secret string) *acl.Authorizer { return a.access.Local(secret) },
		Enabled: s.ACL.Enabled, DefaultPolicy: s.ACL.DefaultPolicy, DownPolicy: s.ACL.DownPolicy, TokenTTL: s.ACL.TokenTTL,
		PrimaryDatacenter: s.Node.PrimaryDatacenter, TokenReplication: s.ACL.EnableTokenReplication,
		InitialManagement: s.ACL.Tokens.InitialManagement,
		Methods:           authmethod.Env{Dial: (&net.Dialer{}).DialContext, Proxy: http.ProxyFromEnvironment},
	}
}

// tokenTTL is how long an answer about a token is good for. Policies and roles come with their token.
func tokenTTL(s *config.Settings) time.Duration {
	ttl := min(s.ACL.TokenTTL, s.ACL.PolicyTTL)
	if s.ACL.RoleTTL > 0 {
		ttl = min(ttl, s.ACL.RoleTTL)
	}
	return ttl
}

// newAccess makes what answers for tokens on this agent, where access control is on.
func (a *Agent) newAccess(s *config.Settings) {
	if !s.ACL.Enabled {
		return
	}
	conf := access.Config{
		Caller: a.caller, NodeName: s.Node.Name, Recovery: a.tokens.recovery, DefaultDeny: denies(s), Down: access.DownPolicy(s.ACL.DownPolicy),
		TTL: tokenTTL(s), Logger: a.log.Named("acl"),
	}
	if a.server != nil {
		conf.Server = a.server.Resolve
	}
	a.access = access.New(conf)
}

// authorize returns what answers for a token.
func (a *Agent) authorize(ctx context.Context, token string) (*acl.Authorizer, error) {
	if a.access == nil {
		return acl.Everything(), nil
	}
	return a.access.Resolve(ctx, token)
}

// mayBe reports whether a token may have the certificate of an identity.
func (a *Agent) mayBe(ctx context.Context, token string, id connect.ID) error {
	z, err := a.authorize(ctx, token)
	if err != nil {
		return err
	}
	_, err = ca.Authorize(z, id)
	return err
}
