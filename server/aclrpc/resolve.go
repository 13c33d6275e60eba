package aclrpc

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/transport"
)

// Bounds of what the resolver keeps. What goes beyond them is found again.
const (
	maxResolved = 1 << 12 // tokens in a shard
	maxRulesets = 1 << 12
	maxParsed   = 1 << 14
	maxMisses   = 1 << 14
)

// missLife is how long a server that does not lead remembers that the leader does not know a token.
const missLife = time.Second

// maxAsking bounds how many tokens a server asks the leader about at the same time.
const maxAsking = 64

// askTimeout bounds one question.
const askTimeout = 5 * time.Second

// A resolver finds what tokens may do, and keeps it until access control changes. A token that is known is found without
// allocating.
type resolver struct {
	everything *acl.Authorizer
	shards     [16]shard

	mu        sync.Mutex
	parsed    map[string]parsedRules  // by policy ID; guarded by mu
	rulesets  map[string]*acl.Ruleset // by the IDs and indexes of all policies; guarded by mu
	compiling singleflight.Group

	begun   chan struct{} // closed when Initialize has run
	begin   sync.Once
	leader  atomic.Pointer[leaderLink]
	asking  chan struct{}
	joined  singleflight.Group
	missing sync.Mutex
	misses  map[[sha256.Size]byte]time.Time // when it was known that there is no such token; guarded by missing
}

// A shard has part of the tokens, by the digests of their secrets.
type shard struct {
	mu     sync.RWMutex
	tokens map[[sha256.Size]byte]*resolution
}

// A resolution is what one token may do.
type resolution struct {
	version    uint64     // of the store, up to which it is known to be so
	token      *acl.Token // nil for the anonymous one while there is none
	key        string     // of the ruleset
	authorizer *acl.Authorizer
}

type parsedRules struct {
	index uint64 // ModifyIndex of the policy
	rules *acl.Rules
}

// A leaderLink reaches the leader.
type leaderLink struct {
	caller  rpc.Caller
	leading func() bool
}

func (r *resolver) init() {
	r.everything = acl.Everything()
	r.begun = make(chan struct{})
	for i := range r.shards {
		r.shards[i].tokens = map[[sha256.Size]byte]*resolution{}
	}
	r.parsed, r.rulesets = map[string]parsedRules{}, map[string]*acl.Ruleset{}
	r.asking = make(chan struct{}, maxAsking)
	r.misses = map[[sha256.Size]byte]time.Time{}
}

// AskLeader has tokens that are not known here looked up with the leader, before they are refused. Without it, or while
// leading says that this server leads, what is known here counts.
func (c *Control) AskLeader(caller rpc.Caller, leading func() bool) {
	c.resolved.leader.Store(&leaderLink{caller, leading})
}

// errRootACL refuses words that once stood for fixed rights.
var errRootACL = errors.New("Cannot resolve root ACL")

// Resolve returns what the token with this secret may do: that of the anonymous one when the secret is empty. It does
// so by the state as it is; an expired token is unknown. While nothing changes, the result is the same pointer.
func (c *Control) Resolve(ctx context.Context, secret string) (*acl.Authorizer, error) {
	r := &c.resolved
	if !c.cfg.Enabled {
		return r.everything, nil
	}
	switch secret {
	case Allow, Deny, "manage":
		return nil, errRootACL
	case "":
		secret = acl.AnonymousSecret
	}
	sum := state.HashSecret(secret)
	version := c.store.ACLVersion()
	known := r.shards[sum[0]%16].get(sum)
	if known != nil && known.version == version && !known.expired() {
		return known.authorizer, nil
	}
	v := c.store.View()
	k := v.ACLTokenBySecret(sum)
	if k != nil && k.Expired(time.Now()) {
		k = nil
	}
	if k == nil && secret != acl.AnonymousSecret {
		r.shards[sum[0]%16].forget(sum)
		if known := c.cfg.Local; known != nil {
			if z := known(secret); z != nil {
				return z, nil
			}
		}
		if c.beginning(v) && r.awaitBegun(ctx) {
			return c.Resolve(ctx, secret)
		}
		return c.ask(ctx, v, secret, sum)
	}
	return c.resolve(v, k, sum, version, known)
}

// beginWait is how long a token that is not known waits for the leader of a new cluster to make the first ones.
const beginWait = 5 * time.Second

// beginning reports whether this server leads a cluster whose first tokens are yet to be made.
func (c *Control) beginning(v *state.View) bool {
	link := c.resolved.leader.Load()
	if link == nil || !link.leading() {
		return false
	}
	_, anonymous := v.ACLToken(acl.AnonymousID)
	return anonymous == nil || c.cfg.InitialManagement != "" && c.primary() && v.ACLBootstrapped() == 0
}

// awaitBegun waits until Initialize has run. It reports false when that was so before, or took too long.
func (r *resolver) awaitBegun(ctx context.Context) bool {
	select {
	case <-r.begun:
		return false
	default:
	}
	limit := time.NewTimer(beginWait)
	defer limit.Stop()
	select {
	case <-r.begun:
		return true
	case <-limit.C:
	case <-ctx.Done():
	}
	return false
}

func (x *resolution) expired() bool {
	return x.token != nil && x.token.ExpirationTime != nil && x.token.Expired(time.Now())
}

// resolve compiles the rules of a token and remembers them.
func (c *Control) resolve(v *state.View, k *acl.Token, sum [sha256.Size]byte, version uint64, known *resolution) (*acl.Authorizer, error) {
	policies, err := c.policies(v, k)
	if err != nil {
		return nil, err
	}
	accessor := ""
	if k != nil {
		accessor = k.AccessorID
	}
	now := &resolution{version: version, token: k, key: rulesetKey(policies)}
	if known != nil && known.key == now.key && known.token != nil && k != nil && known.token.AccessorID == accessor {
		now.authorizer = known.authorizer
	} else {
		rules, err := c.ruleset(now.key, policies)
		if err != nil {
			return nil, err
		}
		now.authorizer = acl.New(rules, accessor)
	}
	c.resolved.shards[sum[0]%16].put(sum, now)
	return now.authorizer, nil
}

func (s *shard) get(sum [sha256.Size]byte) *resolution {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tokens[sum]
}

func (s *shard) put(sum [sha256.Size]byte, x *resolution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	makeRoom(s.tokens, maxResolved)
	s.tokens[sum] = x
}

func (s *shard) forget(sum [sha256.Size]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, sum)
}

// makeRoom removes an entry, whichever, from a map that is full.
func makeRoom[K comparable, V any](m map[K]V, most int) {
	if len(m) < most {
		return
	}
	for k := range m {
		delete(m, k)
		return
	}
}

// policies returns the policies that are in force here for a token, nil for none, each once: its own, those of its
// roles, and those that identities and templates stand for.
func (c *Control) policies(v *state.View, k *acl.Token) ([]*acl.Policy, error) {
	if k == nil {
		return nil, nil
	}
	var out []*acl.Policy
	add := func(p *acl.Policy) {
		if p != nil && p.In(c.cfg.Datacenter) && !slices.ContainsFunc(out, func(o *acl.Policy) bool { return o.ID == p.ID }) {
			out = append(out, p)
		}
	}
	linked := func(links []acl.Link) {
		for _, l := range links {
			_, p := v.ACLPolicy(l.ID)
			add(p)
		}
	}
	standsFor := func(services []acl.ServiceIdentity, nodes []acl.NodeIdentity, templates []acl.TemplatedPolicy) error {
		for i := range services {
			add(services[i].Policy())
		}
		for i := range nodes {
			add(nodes[i].Policy())
		}
		for i := range templates {
			p, err := templates[i].Policy()
			if err != nil {
				return err
			}
			add(p)
		}
		return nil
	}
	linked(k.Policies)
	roles := c.roles(v, k)
	for _, r := range roles {
		linked(r.Policies)
	}
	if err := standsFor(k.ServiceIdentities, k.NodeIdentities, k.TemplatedPolicies); err != nil {
		return nil, fmt.Errorf("token %s: %w", k.AccessorID, err)
	}
	for _, r := range roles {
		if err := standsFor(r.ServiceIdentities, r.NodeIdentities, r.TemplatedPolicies); err != nil {
			return nil, fmt.Errorf("role %s: %w", r.ID, err)
		}
	}
	return out, nil
}

// roles returns the roles of a token.
func (c *Control) roles(v *state.View, k *acl.Token) []*acl.Role {
	var out []*acl.Role
	for _, l := range k.Roles {
		if _, r := v.ACLRole(l.ID); r != nil {
			out = append(out, r)
		}
	}
	return out
}

// rulesetKey is equal for the same policies in the same versions.
func rulesetKey(policies []*acl.Policy) string {
	var key []byte
	for _, p := range policies {
		key = append(append(key, p.ID...), 0)
		key = binary.BigEndian.AppendUint64(key, p.ModifyIndex)
	}
	return string(key)
}

// ruleset compiles policies. Rules that cannot be read are an error, so that the request is refused.
func (c *Control) ruleset(key string, policies []*acl.Policy) (*acl.Ruleset, error) {
	r := &c.resolved
	r.mu.Lock()
	have := r.rulesets[key]
	r.mu.Unlock()
	if have != nil {
		return have, nil
	}
	// Long rules take a while: those who need the same wait, nobody else does.
	made, err, _ := r.compiling.Do(key, func() (any, error) {
		all := make([]*acl.Rules, len(policies))
		for i, p := range policies {
			var err error
			if all[i], err = r.parse(p); err != nil {
				return nil, fmt.Errorf("policy %s cannot be used: %w", p.ID, err)
			}
		}
		rules := acl.Compile(c.cfg.DefaultPolicy != Deny, all...)
		r.mu.Lock()
		defer r.mu.Unlock()
		makeRoom(r.rulesets, maxRulesets)
		r.rulesets[key] = rules
		return rules, nil
	})
	if err != nil {
		return nil, err
	}
	return made.(*acl.Ruleset), nil
}

// parse reads the rules of a policy, once for each of its versions.
func (r *resolver) parse(p *acl.Policy) (*acl.Rules, error) {
	r.mu.Lock()
	have, ok := r.parsed[p.ID]
	r.mu.Unlock()
	if ok && have.index == p.ModifyIndex {
		return have.rules, nil
	}
	rules, err := acl.Parse(p.Rules)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	makeRoom(r.parsed, maxParsed)
	r.parsed[p.ID] = parsedRules{p.ModifyIndex, rules}
	return rules, nil
}

// notFound is the error about an unknown token.
func (c *Control) notFound(v *state.View) error {
	if c.primary() && v.ACLBootstrapped() == 0 {
		return fmt.Errorf("ACL system must be bootstrapped before making any requests that require authorization: %w", wireerr.ErrTokenNotFound)
	}
	return wireerr.ErrTokenNotFound
}

type askedKey struct{}

// ask looks a token up with the leader that is not in the state here, which may be behind.
func (c *Control) ask(ctx context.Context, v *state.View, secret string, sum [sha256.Size]byte) (*acl.Authorizer, error) {
	r := &c.resolved
	link := r.leader.Load()
	if link == nil || link.leading() || ctx.Value(askedKey{}) != nil {
		return nil, c.notFound(v)
	}
	if r.missed(sum) {
		return nil, c.notFound(v)
	}
	result := r.joined.DoChan(string(sum[:]), func() (any, error) {
		// Whoever asked first may go; the others wait on.
		actx, cancel := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), askedKey{}, true), askTimeout)
		defer cancel()
		select {
		case r.asking <- struct{}{}:
			defer func() { <-r.asking }()
		case <-actx.Done():
			return nil, wireerr.ErrNoLeader
		}
		req := &access.ResolveRequest{}
		req.Token = secret
		reply, err := access.ResolveCall.Call(actx, link.caller, req)
		if errors.Is(err, wireerr.ErrTokenNotFound) {
			r.miss(sum)
			return nil, wireerr.ErrTokenNotFound
		}
		return reply, err
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case got := <-result:
		switch {
		case errors.Is(got.Err, wireerr.ErrTokenNotFound):
			return nil, c.notFound(v)
		case got.Err != nil:
			return nil, fmt.Errorf("ask the leader about a token: %w", got.Err)
		}
		reply := got.Val.(*access.ResolveReply)
		if reply.Token == nil || reply.Token.Expired(time.Now()) {
			return nil, c.notFound(v)
		}
		rules, err := c.ruleset(rulesetKey(reply.Policies), reply.Policies)
		if err != nil {
			return nil, err
		}
		return acl.New(rules, reply.Token.AccessorID), nil
	}
}

// missed reports whether the leader said a moment ago that there is no such token.
func (r *resolver) missed(sum [sha256.Size]byte) bool {
	r.missing.Lock()
	defer r.missing.Unlock()
	at, ok := r.misses[sum]
	if ok && time.Since(at) >= missLife {
		delete(r.misses, sum)
		return false
	}
	return ok
}

func (r *resolver) miss(sum [sha256.Size]byte) {
	r.missing.Lock()
	defer r.missing.Unlock()
	makeRoom(r.misses, maxMisses)
	r.misses[sum] = time.Now()
}

// tellResolved tells an agent what the token of its request may do.
func (c *Control) tellResolved(call *transport.Call, v *state.View, _ *access.ResolveRequest) (*access.ResolveReply, acl.Permit, error) {
	reply := &access.ResolveReply{DefaultPolicy: c.cfg.DefaultPolicy}
	_, k := ownToken(call, v)
	if k == nil && !call.Authorizer.Anonymous() {
		return nil, acl.Permit{}, c.notFound(v) // it has gone since the request was admitted
	}
	policies, err := c.policies(v, k)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if k != nil {
		own := *v.Named(k)
		own.SecretID = ""
		reply.Token = &own
	}
	reply.Policies = policies
	reply.Index = v.ACLIndex() // what is linked is part of the answer
	return reply, acl.Open(), nil
}

// ownToken returns the token of the request, nil when there is none.
func ownToken(call *transport.Call, v *state.View) (uint64, *acl.Token) {
	accessor := call.Authorizer.Accessor()
	if accessor == "" {
		accessor = acl.AnonymousID
	}
	index, k := v.ACLToken(accessor)
	if k != nil && k.Expired(time.Now()) {
		k = nil
	}
	return index, k
}
