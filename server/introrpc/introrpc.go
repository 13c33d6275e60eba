// Package introrpc answers agents that have no certificate yet (spec/config.md section 3.6). A server checks what they
// show; the leader, which signs, acts on its word.
package introrpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/authmethod"
	"github.com/sarnmesh/sarn/server/authmethod/jwt"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config says whom a server introduces.
type Config struct {
	Datacenter string

	// Sign gives certificates to who shows a token that may write the node: auto_encrypt.allow_tls.
	Sign bool
	// Tokens says which web tokens are good, and Assertions what they must say: auto_config.authorization. Nil gives
	// nobody a configuration.
	Tokens     *jwt.Config
	Assertions []string // selectors over value and list, in which ${node} is the name of the node
	Way        fetch.Way
	// Settings are what agents are told of the cluster; the name of the node and its token are filled in.
	Settings func() intro.Settings

	// ServerRoots and VerifyServerHostname are what this server verifies others with.
	ServerRoots          func() []string
	VerifyServerHostname func() bool

	// Join lets machines join by tokens; nil does not.
	Join *Join

	Logger hclog.Logger // default discards
}

// An Introducer answers them. Connect it to its server before the first call.
type Introducer struct {
	cfg    Config
	tokens *jwt.Validator // nil when there is no configuration to be had

	caller   rpc.Caller
	internal rpc.Caller
	secret   func() string
	turns    chan struct{}
	joins    bucket
}

// atOnce bounds the introductions in progress.
const atOnce = 64

// New checks the configuration.
func New(cfg Config) (*Introducer, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	in := &Introducer{cfg: cfg, turns: make(chan struct{}, atOnce)}
	if cfg.Tokens == nil {
		return in, nil
	}
	var err error
	if in.tokens, err = jwt.New(*cfg.Tokens, cfg.Way); err != nil {
		return nil, fmt.Errorf("auto_config.authorization.static has invalid configuration: %w", err)
	}
	blank := in.tokens.Blank()
	for _, a := range cfg.Assertions {
		if _, err := matches(a, "node", blank); err != nil {
			return nil, fmt.Errorf("auto_config.authorization.static.claim_assertions: %q: %w", a, err)
		}
	}
	return in, nil
}

// Connect gives it what its server can do: calls with the rights of the token they carry, calls with every right, answered
// where the server leads, and what the servers know of one another.
func (in *Introducer) Connect(caller, internal rpc.Caller, secret func() string) {
	in.caller, in.internal, in.secret = caller, internal, secret
}

// Register adds the calls of the leader, and what is kept of join tokens.
func (in *Introducer) Register(r *transport.Registry, a *fsm.Appliers) {
	transport.HandleServers(r, intro.AdmitCall, in.admit)
	in.registerJoin(r, a)
}

// Methods are the calls that need no certificate.
func (in *Introducer) Methods() []rpcwire.Method {
	return []rpcwire.Method{
		method(in, intro.HelloName, in.hello), method(in, intro.SignName, in.sign), method(in, intro.ConfigureName, in.configure),
		in.joinMethod(),
	}
}

var errBusy = wireerr.Errorf(http.StatusTooManyRequests, "too many agents are being introduced, try again later")

func method[Req, Resp any](in *Introducer, name string, f func(context.Context, *Req) (*Resp, error)) rpcwire.Method {
	return rpcwire.Method{Name: name, Handle: func(ctx context.Context, p rpcwire.Peer, decode func(any) error) (any, error) {
		req := new(Req)
		if err := decode(req); err != nil {
			return nil, err
		}
		select {
		case in.turns <- struct{}{}:
			defer func() { <-in.turns }()
		default:
			return nil, errBusy
		}
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		reply, err := f(ctx, req)
		if err != nil {
			in.cfg.Logger.Warn("an agent was not introduced", "agent", p.Addr, "call", name, "error", err)
			return nil, err
		}
		return reply, nil
	}}
}

func (in *Introducer) hello(ctx context.Context, _ *intro.HelloRequest) (*intro.HelloReply, error) {
	roots, err := ca.RootsCall.Call(ctx, in.caller, &ca.RootsRequest{})
	if err != nil {
		return nil, err
	}
	if roots.TrustDomain == "" {
		return nil, errors.New("the certificate authority is not ready yet")
	}
	return &intro.HelloReply{TrustDomain: roots.TrustDomain}, nil
}

func (in *Introducer) check(a *intro.Applicant) error {
	if a.Datacenter != in.cfg.Datacenter {
		return wireerr.BadRequest("this is datacenter %q, not %q", in.cfg.Datacenter, a.Datacenter)
	}
	if err := intro.CheckNode(a.Node); err != nil {
		return wireerr.BadRequest("%v", err)
	}
	return nil
}

var (
	errNoSigning = wireerr.Errorf(http.StatusForbidden, "auto_encrypt.allow_tls must be enabled on the servers")
	errNoConfig  = wireerr.Errorf(http.StatusForbidden, "auto_config.authorization must be enabled on the servers")
	errNotNode   = wireerr.BadRequest("the certificate request is not for the agent of the node")
)

// refused is all that somebody is told whose web token is not good; why is in the log of the server.
var refused = wireerr.Errorf(http.StatusForbidden, "Permission denied: the intro token is not accepted")

// sign answers auto_encrypt: the leader asks whether the token may write the node.
func (in *Introducer) sign(ctx context.Context, req *intro.SignRequest) (*intro.Identity, error) {
	if !in.cfg.Sign {
		return nil, errNoSigning
	}
	if err := in.check(&req.Applicant); err != nil {
		return nil, err
	}
	reply, err := ca.SignCall.Call(ctx, in.caller, &ca.SignRequest{
		Target: read.Target{Token: req.Token}, CSR: req.CSR, Hosts: req.DNSNames, IPs: req.IPs,
	})
	if err != nil {
		return nil, err
	}
	l := &reply.Leaf
	if l.Agent != req.Node {
		return nil, errNotNode
	}
	return in.identity(l.CertPEM, l.RootID, l.ValidAfter, l.ValidBefore), nil
}

// identity adds to a certificate how servers are to be verified.
func (in *Introducer) identity(cert, root string, after, before time.Time) *intro.Identity {
	return &intro.Identity{
		CertPEM: cert, RootID: root, ValidAfter: after, ValidBefore: before, ServerRoots: in.cfg.ServerRoots(),
		VerifyServerHostname: in.cfg.VerifyServerHostname(),
	}
}

// configure answers auto_config.
func (in *Introducer) configure(ctx context.Context, req *intro.ConfigureRequest) (*intro.ConfigureReply, error) {
	if in.tokens == nil {
		return nil, errNoConfig
	}
	if err := in.check(&req.Applicant); err != nil {
		return nil, err
	}
	if err := in.proved(ctx, req.JWT, req.Node); err != nil {
		in.cfg.Logger.Warn("an intro token was refused", "node", req.Node, "error", err)
		return nil, refused
	}
	settings := in.cfg.Settings()
	reply, err := intro.AdmitCall.Call(ctx, in.caller, &intro.AdmitRequest{
		Applicant: req.Applicant, Secret: in.secret(), WantToken: settings.ACL.Enabled,
	})
	if err != nil {
		return nil, err
	}
	settings.NodeName, settings.ACL.AgentToken = req.Node, reply.Token
	return &intro.ConfigureReply{
		Identity: *in.identity(reply.CertPEM, reply.RootID, reply.ValidAfter, reply.ValidBefore), Settings: settings,
	}, nil
}

// proved returns nil when a web token says that its bearer is a node.
func (in *Introducer) proved(ctx context.Context, token, node string) error {
	vars, err := in.tokens.Login(ctx, token)
	if err != nil {
		return err
	}
	for _, a := range in.cfg.Assertions {
		ok, err := matches(a, node, vars)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("the token does not meet the assertion %s", a)
		}
	}
	return nil
}

// facts are what assertions see.
type facts struct {
	Value map[string]string   `json:"value"`
	List  map[string][]string `json:"list"`
}

// matches compares what a token says with an assertion. The name of the node has been checked: there is nothing in it
// that could be more than a name (spec/threats.md class 8).
func matches(assertion, node string, v *jwt.Variables) (bool, error) {
	if err := intro.CheckNode(node); err != nil {
		return false, err
	}
	return authmethod.NewIdentity(facts{v.Values, v.Lists}, nil).Matches(strings.ReplaceAll(assertion, "${node}", node))
}

var errNotServer = wireerr.Errorf(http.StatusForbidden, "Permission denied: only servers introduce agents")

// admit is what the leader does on the word of a server.
func (in *Introducer) admit(ctx context.Context, _ *transport.Call, req *intro.AdmitRequest) (*intro.AdmitReply, acl.Permit, error) {
	if !in.fromServer(req.Secret) {
		return nil, acl.Permit{}, errNotServer
	}
	a := &req.Applicant
	if err := in.check(a); err != nil {
		return nil, acl.Permit{}, err
	}
	signed, err := ca.SignCall.Call(ctx, in.internal, &ca.SignRequest{CSR: a.CSR, Hosts: a.DNSNames, IPs: a.IPs})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	l := &signed.Leaf
	if l.Agent != a.Node {
		return nil, acl.Permit{}, errNotNode
	}
	reply := &intro.AdmitReply{CertPEM: l.CertPEM, RootID: l.RootID, ValidAfter: l.ValidAfter, ValidBefore: l.ValidBefore}
	if req.WantToken {
		if reply.Token, err = in.token(ctx, a.Node, fmt.Sprintf("Auto Config Token for Node %q", a.Node)); err != nil {
			return nil, acl.Permit{}, err
		}
	}
	return reply, acl.Open(), nil
}

// token returns the secret of a node's own token: one that was made before under the same description, so that an agent
// that asks again and again leaves no more than one, or a new one.
func (in *Introducer) token(ctx context.Context, node, describe string) (string, error) {
	identity := []acl.NodeIdentity{{NodeName: node, Datacenter: in.cfg.Datacenter}}
	list, err := access.TokenListCall.Call(ctx, in.internal, &access.TokenListRequest{})
	if err != nil {
		return "", err
	}
	for _, t := range list.Tokens {
		if t.Local && t.Description == describe && slices.Equal(t.NodeIdentities, identity) && len(t.Policies)+len(t.Roles)+len(t.ServiceIdentities)+len(t.TemplatedPolicies) == 0 {
			return t.SecretID, nil
		}
	}
	return in.makeToken(ctx, node, describe)
}
