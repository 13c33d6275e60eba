package introrpc

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/transport"
)

// Join says what machines that join by a token are told.
type Join struct {
	Domain string // of DNS
	// Authority returns the certificate, PEM, of the authority that vouches for servers, and its key.
	Authority func() (cert, key string, err error)
	// Servers returns the addresses, host:port, of the servers' ports and of their gossip, this server's first.
	Servers func() (ports, gossip []string)
}

// A joinToken is what is kept of a token until it expires. The one use that it is good for is noted in it, so that the
// name of a machine that has joined, and is not in the catalog yet, is not given away again.
type joinToken struct {
	Hash    []byte // SHA-256 of the secret
	Server  bool   `cbor:",omitempty"`
	Expires time.Time
	Node    string `cbor:",omitempty"` // who has used it; empty while nobody has
}

// A joinChange is a command about tokens; with nothing but Now it removes those that have expired.
type joinChange struct {
	Now  time.Time // by the leader's clock
	Make *joinToken
	Use  *joinUse
}

// A joinUse uses a token.
type joinUse struct {
	Hash   []byte
	Server bool
	Node   string
}

// joinFact is the name under which the tokens are stored.
const joinFact = "join-tokens"

// maxJoinTokens bounds the tokens that have not expired.
const maxJoinTokens = 256

var (
	errJoinOff = wireerr.BadRequest("join tokens are off on the server, join_tokens.ca_key_file is not set")
	// errJoinToken is all that somebody is told whose token is not good.
	errJoinToken = wireerr.Errorf(http.StatusForbidden, "the join token is not accepted: it has expired, was used before, or is of another cluster")
	errJoinKind  = wireerr.Errorf(http.StatusForbidden, "the join token is for another kind of agent")
	errManyJoins = wireerr.Errorf(http.StatusTooManyRequests, "too many join tokens have been made that have not expired yet: %d", maxJoinTokens)
	errJoinRate  = wireerr.Errorf(http.StatusTooManyRequests, "too many machines are joining, try again later")
)

// joinTokens reads the tokens.
func joinTokens(v *state.View) (list []joinToken, err error) {
	if f := v.Fact(joinFact); f != nil {
		err = rpc.Unmarshal(f.Data, &list)
	}
	return list, err
}

// findJoin returns the token with a hash that has not expired, nil if there is none.
func findJoin(list []joinToken, hash []byte, now time.Time) *joinToken {
	var found *joinToken
	for i := range list {
		if t := &list[i]; subtle.ConstantTimeCompare(t.Hash, hash) == 1 && now.Before(t.Expires) {
			found = t
		}
	}
	return found
}

// vetJoin reports what is wrong about a use. A name is anybody's who has it, in whatever case.
func vetJoin(v *state.View, list []joinToken, use *joinUse, now time.Time) (*joinToken, error) {
	t := findJoin(list, use.Hash, now)
	switch {
	case t == nil || t.Node != "":
		return nil, errJoinToken
	case t.Server != use.Server:
		return nil, errJoinKind
	case v.Node(use.Node) != nil:
		return nil, wireerr.Errorf(http.StatusConflict, "there is a node %q already: choose another name, or remove that node first", use.Node)
	}
	for i := range list {
		if strings.EqualFold(list[i].Node, use.Node) && now.Before(list[i].Expires) {
			return nil, wireerr.Errorf(http.StatusConflict, "a node %q has just joined: choose another name, or wait until %s",
				use.Node, list[i].Expires.UTC().Format(time.RFC3339))
		}
	}
	return t, nil
}

// applyJoin changes the tokens. Of two uses of one, the second fails.
func applyJoin(tx *state.Tx, cmd *joinChange) (*struct{}, error) {
	list, err := joinTokens(&tx.View)
	if err != nil {
		return nil, err
	}
	kept := list[:0:0]
	for _, t := range list {
		if cmd.Now.Before(t.Expires) {
			kept = append(kept, t)
		}
	}
	if m := cmd.Make; m != nil {
		switch {
		case len(m.Hash) != sha256.Size || m.Node != "":
			return nil, errors.New("a join token without a hash")
		case len(kept) >= maxJoinTokens:
			return nil, errManyJoins
		}
		kept = append(kept, *m)
	}
	if u := cmd.Use; u != nil {
		if err := intro.CheckNode(u.Node); err != nil {
			return nil, err
		}
		t, err := vetJoin(&tx.View, kept, u, cmd.Now)
		if err != nil {
			return nil, err
		}
		t.Node = u.Node
	}
	if len(kept) == 0 && len(list) == 0 {
		return nil, nil
	}
	data, err := rpc.Marshal(kept)
	if err != nil {
		return nil, err
	}
	tx.SetFact(joinFact, data)
	return nil, nil
}

// registerJoin adds the calls and the applier.
func (in *Introducer) registerJoin(r *transport.Registry, a *fsm.Appliers) {
	fsm.Handle(a, fsm.JoinTokens, applyJoin)
	transport.Handle(r, intro.NewJoinTokenCall, in.newJoinToken)
	transport.HandleServers(r, intro.RedeemCall, in.redeem)
	transport.HandleServers(r, intro.OwnTokenCall, in.ownToken)
}

// sweepEvery is how often tokens that have expired are removed.
const sweepEvery = time.Minute

// SweepJoinTokens is the duty of the leader to remove tokens that have expired.
func SweepJoinTokens() leader.Duty {
	return leader.Duty{Name: "join-tokens", Run: func(ctx context.Context, l *leader.Leader) error {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			list, err := joinTokens(l.Store.View())
			if err != nil {
				return err
			}
			now := time.Now()
			for _, t := range list {
				if now.Before(t.Expires) {
					continue
				}
				if _, err := l.Apply(ctx, fsm.JoinTokens, &joinChange{Now: now}); err != nil {
					return err
				}
				break
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}}
}

// newJoinToken makes a token on the leader.
func (in *Introducer) newJoinToken(ctx context.Context, c *transport.Call, req *intro.NewJoinTokenRequest) (*intro.NewJoinTokenReply, acl.Permit, error) {
	if _, err := c.Authorizer.Require(acl.ACL, acl.Write, ""); err != nil {
		return nil, acl.Permit{}, err
	}
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if in.cfg.Join == nil {
		return nil, acl.Permit{}, errJoinOff
	}
	ttl := req.TTL
	if ttl == 0 {
		ttl = intro.DefaultJoinTTL
	}
	if ttl < intro.MinJoinTTL || ttl > intro.MaxJoinTTL {
		return nil, acl.Permit{}, wireerr.BadRequest("TTL %v is not in [%v, %v]", ttl, intro.MinJoinTTL, intro.MaxJoinTTL)
	}
	cert, _, err := in.cfg.Join.Authority()
	if err != nil {
		return nil, acl.Permit{}, fmt.Errorf("read the authority of the servers: %w", err)
	}
	block, _ := pem.Decode([]byte(cert))
	if block == nil {
		return nil, acl.Permit{}, errors.New("read the authority of the servers: there is no certificate")
	}
	t := &intro.JoinToken{Server: req.Server, Pin: sha256.Sum256(block.Bytes), Datacenter: in.cfg.Datacenter, Domain: in.cfg.Join.Domain}
	t.Addresses, _ = in.cfg.Join.Servers()
	if len(t.Addresses) > maxTokenServers {
		t.Addresses = t.Addresses[:maxTokenServers]
	}
	if err := t.Check(); err != nil {
		return nil, acl.Permit{}, err
	}
	rand.Read(t.Secret[:])
	hash := sha256.Sum256(t.Secret[:])
	now := time.Now()
	made := &joinToken{Hash: hash[:], Server: req.Server, Expires: now.Add(ttl)}
	if _, err := c.Apply(ctx, permit, fsm.JoinTokens, &joinChange{Now: now, Make: made}); err != nil {
		return nil, acl.Permit{}, err
	}
	return &intro.NewJoinTokenReply{Text: t.Text(), ExpiresAt: made.Expires}, permit, nil
}

// maxTokenServers is how many servers a token names: enough for some of them to be there in minutes.
const maxTokenServers = 5

// joined is the use that a request makes of a token.
func joined(req *intro.JoinRequest) *joinUse {
	hash := sha256.Sum256(req.Secret)
	return &joinUse{Hash: hash[:], Server: req.Server, Node: req.Node}
}

// join answers a machine that shows a token. What it will be told is put together first, so that a token is not used up
// for nothing.
func (in *Introducer) join(ctx context.Context, req *intro.JoinRequest) (*intro.JoinReply, error) {
	if in.cfg.Join == nil {
		return nil, errJoinOff
	}
	if !in.joins.admit(time.Now()) {
		return nil, errJoinRate
	}
	if len(req.Secret) != intro.SecretSize {
		return nil, errJoinToken
	}
	if err := intro.CheckNode(req.Node); err != nil {
		return nil, wireerr.BadRequest("%v", err)
	}
	reply := &intro.JoinReply{Settings: in.cfg.Settings(), Domain: in.cfg.Join.Domain}
	cert, key, err := in.cfg.Join.Authority()
	if err != nil {
		in.cfg.Logger.Error("no machine can join: the authority of the servers cannot be read", "error", err)
		return nil, errors.New("the server cannot read the authority of the servers")
	}
	// The authority that signs comes first, as servers that are configured by this look for it.
	reply.Authorities = []string{cert}
	for _, root := range in.cfg.ServerRoots() {
		for rest := []byte(root); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if text := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}); block.Type == "CERTIFICATE" && !bytes.Equal(text, []byte(cert)) {
				reply.Authorities = append(reply.Authorities, string(text))
			}
		}
	}
	_, reply.Settings.Gossip.RetryJoin = in.cfg.Join.Servers()
	got, err := intro.RedeemCall.Call(ctx, in.caller, &intro.RedeemRequest{Join: *req, WantToken: reply.Settings.ACL.Enabled, Secret: in.secret()})
	if err != nil {
		return nil, err
	}
	reply.Settings.NodeName, reply.Settings.ACL.AgentToken = req.Node, got.AgentToken
	if req.Server {
		reply.AuthorityKey = key
	}
	in.cfg.Logger.Info("a machine joins by a token", "node", req.Node, "server", req.Server)
	return reply, nil
}

// fromServer reports whether a secret is that of the servers.
func (in *Introducer) fromServer(given string) bool {
	secret := in.secret()
	return secret != "" && subtle.ConstantTimeCompare([]byte(secret), []byte(given)) == 1
}

// redeem is what the leader does on the word of a server to which a token was shown.
func (in *Introducer) redeem(ctx context.Context, c *transport.Call, req *intro.RedeemRequest) (*intro.RedeemReply, acl.Permit, error) {
	if !in.fromServer(req.Secret) {
		return nil, acl.Permit{}, errNotServer
	}
	if err := intro.CheckNode(req.Join.Node); err != nil || len(req.Join.Secret) != intro.SecretSize {
		return nil, acl.Permit{}, errJoinToken
	}
	// Who shows what is not good puts nothing into the log.
	use, now, v := joined(&req.Join), time.Now(), c.Store.View()
	list, err := joinTokens(v)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if _, err := vetJoin(v, list, use, now); err != nil {
		return nil, acl.Permit{}, err
	}
	if _, err := c.Apply(ctx, acl.Open(), fsm.JoinTokens, &joinChange{Now: now, Use: use}); err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &intro.RedeemReply{}
	if req.WantToken && !req.Join.Server {
		made, err := in.makeToken(ctx, req.Join.Node, fmt.Sprintf("Agent of node %q, which joined by a token", req.Join.Node))
		if err != nil {
			return nil, acl.Permit{}, err
		}
		reply.AgentToken = made
	}
	return reply, acl.Open(), nil
}

// ownToken tells a server the token of its agent.
func (in *Introducer) ownToken(ctx context.Context, _ *transport.Call, req *intro.OwnTokenRequest) (*intro.OwnTokenReply, acl.Permit, error) {
	if !in.fromServer(req.Secret) {
		return nil, acl.Permit{}, errNotServer
	}
	if err := intro.CheckNode(req.Node); err != nil {
		return nil, acl.Permit{}, wireerr.BadRequest("%v", err)
	}
	secret, err := in.token(ctx, req.Node, fmt.Sprintf("Agent of server %q", req.Node))
	return &intro.OwnTokenReply{AgentToken: secret}, acl.Open(), err
}

// makeToken makes a token with a node's identity and returns its secret.
func (in *Introducer) makeToken(ctx context.Context, node, describe string) (string, error) {
	made, err := access.TokenSetCall.Call(ctx, in.internal, &access.TokenSetRequest{
		Create: true, Token: acl.Token{
			Description: describe, Local: true, NodeIdentities: []acl.NodeIdentity{{NodeName: node, Datacenter: in.cfg.Datacenter}},
		},
	})
	if err != nil {
		return "", err
	}
	return made.Token.SecretID, nil
}

// Machines may join a server so often: a secret is not guessed, but looking for one asks the leader.
const (
	joinsPerSecond = 10
	joinsAtOnce    = 50
)

// A bucket bounds how often something is done. The zero bucket is full.
type bucket struct {
	mu   sync.Mutex
	used float64
	seen time.Time
}

func (b *bucket) admit(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used = max(0, b.used-max(0, now.Sub(b.seen).Seconds())*joinsPerSecond)
	b.seen = now
	if b.used+1 > joinsAtOnce {
		return false
	}
	b.used++
	return true
}

// joinMethod is the call of machines that join.
func (in *Introducer) joinMethod() rpcwire.Method { return method(in, intro.JoinName, in.join) }
