package aclrpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/transport"
)

// Bounds of what the resolver keeps. What goes beyond them is found again.
const (
	maxResolved = 1 << 12 // tokens in a shard
	maxRulesets = 1 << 12
	maxParsed   = 1 << 14
	maxRemote   = 1 << 16
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
	rulesets  map[string]*acl.Ruleset // by the IDs and digests of all policies; guarded by mu
	compiling singleflight.Group

	begun  chan struct{} // closed when Initialize has run
	begin  sync.Once
	leader atomic.Pointer[leaderLink]
	asking chan struct{}
	joined singleflight.Group
	// background has the refreshes that nobody waits for.
	background singleflight.Group
	down       *acl.Authorizer // for tokens that are not known while the primary datacenter cannot be asked
	missing    sync.Mutex
	misses     map[[sha256.Size]byte]time.Time // when it was known that there is no such token; guarded by missing

	failing  atomic.Bool // the primary datacenter could not be asked the last time
	remoteMu sync.Mutex
	remote   map[[sha256.Size]byte]*remoteToken // what the primary datacenter knows; guarded by remoteMu
	tried    time.Time                          // when it was last asked while failing; guarded by remoteMu
}

// unresolved stands for the accessor ID of a token that nobody could be asked about.
const unresolved = "unresolved"

// A remoteToken is what the primary datacenter said of a token.
type remoteToken struct {
	at         time.Time
	key        string // of the ruleset
	reply      *access.ResolveReply
	authorizer *acl.Authorizer
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
	hash  []byte // of the policy
	rules *acl.Rules
}

// A leaderLink reaches the leader.
type leaderLink struct {
	caller  rpc.Caller
	leading func() bool
}

func (r *resolver) init(cfg Config) {
	r.everything = acl.Everything()
	switch cfg.DownPolicy {
	case Allow:
		r.down = r.everything
	case Deny:
		r.down = acl.New(acl.Compile(false), unresolved)
	default:
		r.down = acl.New(acl.Compile(cfg.DefaultPolicy != Deny), unresolved)
	}
	r.remote = map[[sha256.Size]byte]*remoteToken{}
	r.begun = make(chan struct{})
	for i := range r.shards {
		r.shards[i].tokens = map[[sha256.Size]byte]*resolution{}
	}
	r.parsed, r.rulesets = map[string]parsedRules{}, map[string]*acl.Ruleset{}
	r.asking = make(chan struct{}, maxAsking)
	r.misses = map[[sha256.Size]byte]time.Time{}
}

// AskLeader has tokens that are not known here looked up with the leader, before they are refused, unless leading says
// that this server leads.
func (c *Control) AskLeader(caller rpc.Caller, leading func() bool) {
	c.resolved.leader.Store(&leaderLink{caller, leading})
}

// errRootACL refuses words that once stood for fixed rights.
var errRootACL = errors.New("Cannot resolve root ACL")

// resolved is a summary of the milliseconds that it takes to find out what a token may do.
var resolved = measure.NewTimer("acl.ResolveToken")

// Resolve returns what the token with this secret may do: that of the anonymous one when the secret is empty. It does
// so by the state as it is; an expired token is unknown. While nothing changes, the result is the same pointer.
func (c *Control) Resolve(ctx context.Context, secret string) (*acl.Authorizer, error) {
	r := &c.resolved
	if !c.cfg.Enabled {
		return r.everything, nil
	}
	defer resolved.Since(time.Now())
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
	if k == nil && (secret != acl.AnonymousSecret || !c.primary()) {
		r.shards[sum[0]%16].forget(sum)
		if known := c.cfg.Local; known != nil {
			if z := known(secret); z != nil {
				return z, nil
			}
		}
		if c.beginning(v) && r.awaitBegun(ctx) {
			return c.Resolve(ctx, secret)
		}
		z, err := c.ask(ctx, v, secret, sum)
		if secret != acl.AnonymousSecret || !errors.Is(err, wireerr.ErrTokenNotFound) {
			return z, err
		}
	}
	return c.resolve(v, k, sum, version, known)
}

// beginWait is how long a token that is not known waits for the leader of a new cluster to make the first ones.
const beginWait = 5 * time.Second

// beginning reports whether this server leads a cluster whose first tokens are yet to be made.
func (c *Control) beginning(v *state.View) bool {
	link := c.resolved.leader.Load()
	if link == nil || !link.leading() || !c.primary() {
		return false
	}
	_, anonymous := v.ACLToken(acl.AnonymousID)
	return anonymous == nil || c.cfg.InitialManagement != "" && v.ACLBootstrapped() == 0
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
	policies, err := policiesOf(v, k, c.cfg.Datacenter)
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

// policiesOf returns the policies that are in force in a datacenter for a token, nil for none, each once: its own, those
// of its roles, and those that identities and templates stand for.
func policiesOf(v *state.View, k *acl.Token, datacenter string) ([]*acl.Policy, error) {
	if k == nil {
		return nil, nil
	}
	var out []*acl.Policy
	add := func(p *acl.Policy) {
		if p != nil && p.In(datacenter) && !slices.ContainsFunc(out, func(o *acl.Policy) bool { return o.ID == p.ID }) {
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
	roles := rolesOf(v, k)
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

// rolesOf returns the roles of a token.
func rolesOf(v *state.View, k *acl.Token) []*acl.Role {
	var out []*acl.Role
	for _, l := range k.Roles {
		if _, r := v.ACLRole(l.ID); r != nil {
			out = append(out, r)
		}
	}
	return out
}

// rulesetKey is equal for the same policies with the same content. It goes by digests, since indexes are of one
// datacenter, and policies can come from another.
func rulesetKey(policies []*acl.Policy) string {
	var key []byte
	for _, p := range policies {
		key = append(append(append(key, p.ID...), 0), p.Hash...)
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
	if ok && bytes.Equal(have.hash, p.Hash) {
		return have.rules, nil
	}
	rules, err := acl.Parse(p.Rules)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	makeRoom(r.parsed, maxParsed)
	r.parsed[p.ID] = parsedRules{p.Hash, rules}
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

// ask looks a token up that is not in the state here: with the leader, since this state may be behind, and from the leader
// of another datacenter with the primary one.
func (c *Control) ask(ctx context.Context, v *state.View, secret string, sum [sha256.Size]byte) (*acl.Authorizer, error) {
	r := &c.resolved
	if ctx.Value(askedKey{}) != nil {
		return nil, c.notFound(v)
	}
	req := &access.ResolveRequest{}
	req.Token = secret
	var call func(context.Context) (*access.ResolveReply, error)
	switch link := r.leader.Load(); {
	case link != nil && !link.leading():
		call = func(ctx context.Context) (*access.ResolveReply, error) {
			return access.ResolveCall.Call(ctx, link.caller, req)
		}
	case !c.primary() && c.cfg.Primary != nil:
		req.For, req.Datacenter = c.cfg.Datacenter, c.cfg.PrimaryDatacenter
		call = func(ctx context.Context) (*access.ResolveReply, error) {
			reply := &access.ResolveReply{}
			return reply, c.cfg.Primary(ctx, access.ResolveCall.Descriptor, req, reply)
		}
	default:
		return nil, c.notFound(v)
	}
	if c.primary() {
		reply, err := r.join(ctx, sum, call)
		if err != nil {
			return nil, c.answered(v, err)
		}
		return c.authorizer(v, reply, nil)
	}
	return c.askRemote(ctx, v, sum, call)
}

// askRemote goes by what the primary datacenter said of a token, for a while, and by the down policy while it says
// nothing.
func (c *Control) askRemote(ctx context.Context, v *state.View, sum [sha256.Size]byte, call func(context.Context) (*access.ResolveReply, error)) (*acl.Authorizer, error) {
	r := &c.resolved
	have := r.heard(sum)
	if have != nil && have.reply.Token.Expired(time.Now()) {
		r.unheard(sum)
		have = nil
	}
	if have != nil && time.Since(have.at) < c.cfg.TokenTTL {
		return have.authorizer, nil
	}
	down := func() *acl.Authorizer {
		if have != nil && c.cfg.DownPolicy != Allow && c.cfg.DownPolicy != Deny {
			return have.authorizer
		}
		return r.down
	}
	refresh := func(ctx context.Context) (*acl.Authorizer, error) {
		reply, err := r.join(ctx, sum, call)
		refused := err != nil && wireerr.Status(err) == http.StatusForbidden // as an unknown token is, too
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && !refused:
			if !r.failing.Swap(true) {
				c.log.Warn("cannot ask about a token, going by the down policy", "error", err)
			}
			return down(), nil
		}
		if r.failing.Swap(false) {
			c.log.Info("tokens can be asked about again")
		}
		if refused {
			r.unheard(sum)
			return nil, c.answered(v, err)
		}
		z, err := c.authorizer(v, reply, have)
		if err == nil {
			age := min(reply.Age, c.cfg.TokenTTL-retryDown) // what is older is asked for again soon, but not at once
			r.hear(sum, &remoteToken{time.Now().Add(-max(age, 0)), rulesetKey(reply.Policies), reply, z})
		}
		return z, err
	}
	later := func() {
		ctx := context.WithoutCancel(ctx)
		r.background.DoChan(string(sum[:]), func() (any, error) { return refresh(ctx) })
	}
	switch {
	case r.failing.Load(): // nobody waits for an answer that did not come a moment ago
		if r.retry() {
			later()
		}
		return down(), nil
	case have != nil && c.cfg.DownPolicy == AsyncCache:
		later()
		return have.authorizer, nil
	}
	return refresh(ctx)
}

// answered is the error of a request whose token was asked about.
func (c *Control) answered(v *state.View, err error) error {
	switch {
	case errors.Is(err, wireerr.ErrTokenNotFound):
		return c.notFound(v)
	case wireerr.Status(err) == http.StatusForbidden:
		return err
	}
	return fmt.Errorf("ask the leader about a token: %w", err)
}

// authorizer decides by what another server said, with the authorizer there was if that is the same.
func (c *Control) authorizer(v *state.View, reply *access.ResolveReply, have *remoteToken) (*acl.Authorizer, error) {
	if reply.Token == nil || reply.Token.Expired(time.Now()) {
		return nil, c.notFound(v)
	}
	key := rulesetKey(reply.Policies)
	if have != nil && have.key == key && have.reply.Token.AccessorID == reply.Token.AccessorID {
		return have.authorizer, nil
	}
	rules, err := c.ruleset(key, reply.Policies)
	if err != nil {
		return nil, err
	}
	return acl.New(rules, reply.Token.AccessorID), nil
}

// join asks once for all who want to know the same.
func (r *resolver) join(ctx context.Context, sum [sha256.Size]byte, call func(context.Context) (*access.ResolveReply, error)) (*access.ResolveReply, error) {
	if r.missed(sum) {
		return nil, wireerr.ErrTokenNotFound
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
		reply, err := call(actx)
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
		if got.Err != nil {
			return nil, got.Err
		}
		return got.Val.(*access.ResolveReply), nil
	}
}

// retryDown is how often the primary datacenter is asked while it does not answer.
const retryDown = time.Second

// retry reports whether it is time to ask the primary datacenter again, which did not answer.
func (r *resolver) retry() bool {
	r.remoteMu.Lock()
	defer r.remoteMu.Unlock()
	if time.Since(r.tried) < retryDown {
		return false
	}
	r.tried = time.Now()
	return true
}

func (r *resolver) heard(sum [sha256.Size]byte) *remoteToken {
	r.remoteMu.Lock()
	defer r.remoteMu.Unlock()
	return r.remote[sum]
}

func (r *resolver) hear(sum [sha256.Size]byte, x *remoteToken) {
	r.remoteMu.Lock()
	defer r.remoteMu.Unlock()
	makeRoom(r.remote, maxRemote)
	r.remote[sum] = x
}

func (r *resolver) unheard(sum [sha256.Size]byte) {
	r.remoteMu.Lock()
	defer r.remoteMu.Unlock()
	delete(r.remote, sum)
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

var errCannotAsk = errors.New("the primary datacenter cannot be asked about the token")

// tellResolved tells an agent, or a server of another datacenter, what the token of its request may do.
func (c *Control) tellResolved(_ context.Context, call *transport.Call, v *state.View, req *access.ResolveRequest) (*access.ResolveReply, acl.Permit, error) {
	reply := &access.ResolveReply{DefaultPolicy: c.cfg.DefaultPolicy}
	reply.Index = v.ACLIndex() // what is linked is part of the answer
	datacenter := req.For
	if datacenter == "" {
		datacenter = c.cfg.Datacenter
	}
	nobody := req.Token == "" || req.Token == acl.AnonymousSecret
	_, k := ownToken(call, v)
	if !nobody && call.Authorizer.Anonymous() {
		k = nil // the down policy grants everything
	}
	switch {
	case k == nil && !c.primary():
		token := req.Token
		if nobody {
			token = acl.AnonymousSecret
		}
		have := c.resolved.heard(state.HashSecret(token))
		stale := have != nil && c.cfg.DownPolicy == Deny && time.Since(have.at) >= c.cfg.TokenTTL
		if have != nil && !stale && datacenter == c.cfg.Datacenter {
			reply.Token, reply.Policies, reply.Age = have.reply.Token, have.reply.Policies, time.Since(have.at)
			return reply, acl.Open(), nil
		}
		if !nobody {
			return nil, acl.Permit{}, errCannotAsk
		}
	case k == nil && !nobody: // it has just gone
		return nil, acl.Permit{}, c.notFound(v)
	case k != nil && k.Local && datacenter != c.cfg.Datacenter:
		return nil, acl.Permit{}, fmt.Errorf("%w: This is a local token in datacenter %q", wireerr.ErrPermissionDenied, c.cfg.Datacenter)
	}
	var err error
	if reply.Policies, err = policiesOf(v, k, datacenter); err != nil {
		return nil, acl.Permit{}, err
	}
	if k != nil {
		own := *v.Named(k)
		own.SecretID = ""
		reply.Token = &own
	}
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
