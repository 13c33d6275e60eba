// Package access decides what a token may do with what an agent has itself: its registrations, its events, its
// certificates. It asks the servers what a token stands for and keeps the answer a while (spec/acl.md sections 13 and
// 14).
//
// A token that was found is good until its TTL is over or it expires, so one that was deleted is refused within the TTL.
// A token that was not found is asked for again after a second at most, and of the leader, so one that was just made is
// good at once. What callers make up cannot take more memory or more calls than Config allows.
package access

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/acl"
	calls "github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A DownPolicy says what is done about tokens while the servers cannot be asked.
type DownPolicy string

const (
	DownAllow  DownPolicy = "allow"        // everything is granted
	DownDeny   DownPolicy = "deny"         // nothing is
	DownExtend DownPolicy = "extend-cache" // what was known counts on; else the default policy
	DownAsync  DownPolicy = "async-cache"  // the same, and what was known is always used at once and asked again in the background
)

// Config tunes a Resolver. A zero field takes its default.
type Config struct {
	// Caller reaches the servers. Required, unless Server is set.
	Caller rpc.Caller
	// Server resolves tokens from the state of this process, which is a server. Nothing is kept then.
	Server func(ctx context.Context, token string) (*acl.Authorizer, error)
	// NodeName is this agent's.
	NodeName string
	// Recovery returns the agent recovery token, empty for none. Nil means none.
	Recovery func() string
	// DefaultDeny is acl.default_policy = deny. What the servers say counts too: who denies, prevails.
	DefaultDeny bool
	Down        DownPolicy    // default DownExtend
	TTL         time.Duration // acl.token_ttl; default 30s

	MaxTokens   int          // kept at a time; beyond, the least recently used go; default 65536
	UnknownRate float64      // how many tokens nobody knows are asked for each second; default 256
	Logger      hclog.Logger // default discards
}

// Bounds that are not for tuning.
const (
	maxSecret    = 1024             // bytes; a longer text is no token
	unknownTTL   = time.Second      // an unknown token is asked for again after this
	maxUnknown   = 4096             // unknown tokens remembered
	maxQueued    = 2 * time.Second  // how long a token nobody knows may wait for its turn
	disabledTTL  = 30 * time.Second // after servers said that ACLs are off
	maxRulesets  = 1024             // compiled sets of policies, shared among tokens
	askTimeout   = 15 * time.Second // of one question in the background
	askers       = 8                // questions in the background at a time
	refreshQueue = 1024             // tokens waiting for that
)

// A Resolver finds what tokens may do. Make one with New. It is safe for concurrent use.
type Resolver struct {
	cfg       Config
	log       hclog.Logger
	recovery  *acl.Ruleset
	unknown   pace
	disabled  atomic.Int64 // until when ACLs count as off, by the clock of start
	start     time.Time    // times are kept relative to it
	refreshes chan string  // tokens to ask for in the background
	byDefault *acl.Ruleset // the default policy alone
	denyAll   *acl.Ruleset // grants nothing
	everybody *acl.Authorizer
	hits      atomic.Int64 // not yet told as metrics
	misses    atomic.Int64

	mu     sync.RWMutex
	tokens map[string]*entry  // by secret
	none   map[string]refusal // unknown secrets
	asking map[string]*flight // by secret

	rules struct {
		sync.Mutex
		compiled map[string]*acl.Ruleset
	}
}

// An entry is what a token may do, as it was last told. It does not change, but for when it was used.
type entry struct {
	authorizer *acl.Authorizer
	until      time.Duration // asked again afterwards
	end        time.Time     // of the token, the zero time for never
	used       atomic.Int64
	// queued tells that it waits to be asked for in the background.
	queued atomic.Bool
	// down tells that the servers could not be asked: the entry is used at once, and asked for in the background.
	down bool
}

// A refusal is the servers' answer to a token that is good for nothing.
type refusal struct {
	err   error
	until time.Duration
}

// A flight is a question on its way. Whoever asks the same waits for it.
type flight struct {
	done       chan struct{}
	authorizer *acl.Authorizer
	err        error
	cancelled  bool // its asker went away: the next one asks
}

// New returns a resolver. What it refreshes in the background is refreshed while Run does.
func New(cfg Config) *Resolver {
	if cfg.Down == "" {
		cfg.Down = DownExtend
	}
	if cfg.TTL <= 0 {
		cfg.TTL = 30 * time.Second
	}
	if cfg.MaxTokens <= 0 {
		cfg.MaxTokens = 65536
	}
	if cfg.UnknownRate <= 0 {
		cfg.UnknownRate = 256
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Recovery == nil {
		cfg.Recovery = func() string { return "" }
	}
	r := &Resolver{
		cfg: cfg, log: cfg.Logger, start: time.Now(), refreshes: make(chan string, refreshQueue),
		unknown: pace{every: time.Duration(float64(time.Second) / cfg.UnknownRate), burst: 32},
		recovery: acl.Compile(false, &acl.Rules{List: []acl.Rule{
			{Resource: acl.Node, Prefix: true, Level: acl.ReadLevel}, {Resource: acl.Agent, Name: cfg.NodeName, Level: acl.WriteLevel},
		}}),
		byDefault: acl.Compile(!cfg.DefaultDeny), denyAll: acl.Compile(false), everybody: acl.Everything(),
		tokens: map[string]*entry{}, none: map[string]refusal{}, asking: map[string]*flight{},
	}
	r.rules.compiled = map[string]*acl.Ruleset{}
	return r
}

var errRootACL = errors.New("Cannot resolve root ACL")

// Resolve returns what answers for a token, empty for the anonymous one. A token that nobody knows is
// wireerr.ErrTokenNotFound.
func (r *Resolver) Resolve(ctx context.Context, token string) (*acl.Authorizer, error) {
	switch token {
	case "allow", "deny", "manage":
		return nil, errRootACL
	}
	if z := r.Local(token); z != nil {
		return z, nil
	}
	if r.cfg.Server != nil {
		return r.cfg.Server(ctx, token)
	}
	if len(token) > maxSecret {
		return nil, wireerr.ErrTokenNotFound
	}
	now := time.Since(r.start)
	if int64(now) < r.disabled.Load() {
		return r.everybody, nil
	}
	r.mu.RLock()
	e := r.tokens[token]
	r.mu.RUnlock()
	if e != nil && !e.end.IsZero() && !time.Now().Before(e.end) {
		return nil, wireerr.ErrTokenNotFound
	}
	if e != nil && (now < e.until || r.cfg.Down == DownAsync || e.down) {
		e.used.Store(int64(now))
		if now >= e.until {
			r.refreshSoon(token, e)
		}
		r.hits.Add(1)
		return e.authorizer, nil
	}
	r.misses.Add(1)
	return r.miss(ctx, token, e)
}

// Local returns what a token may do that is known to this agent alone, nil for others.
func (r *Resolver) Local(token string) *acl.Authorizer {
	if recovery := r.cfg.Recovery(); recovery != "" && equal(token, recovery) {
		return acl.New(r.recovery, "agent-recovery:"+r.cfg.NodeName)
	}
	return nil
}

// Names of the metrics.
var (
	cacheHit  = []string{"acl", "token", "cache_hit"}
	cacheMiss = []string{"acl", "token", "cache_miss"}
	resolved  = []string{"acl", "ResolveToken"}
)

// equal compares secrets in a time that does not tell where they differ.
func equal(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}

// miss asks for a token, or waits for who asks already. known is what was known before, nil if nothing was.
func (r *Resolver) miss(ctx context.Context, token string, known *entry) (*acl.Authorizer, error) {
	for {
		r.mu.Lock()
		if no, ok := r.none[token]; ok {
			if time.Since(r.start) < no.until {
				r.mu.Unlock()
				return nil, no.err
			}
			delete(r.none, token)
		}
		f := r.asking[token]
		if f == nil {
			f = &flight{done: make(chan struct{})}
			r.asking[token] = f
			r.mu.Unlock()
			f.authorizer, f.err = r.ask(ctx, token, known)
			f.cancelled = ctx.Err() != nil
			r.mu.Lock()
			delete(r.asking, token)
			r.mu.Unlock()
			close(f.done)
			return f.authorizer, f.err
		}
		r.mu.Unlock()
		select {
		case <-f.done:
			if !f.cancelled {
				return f.authorizer, f.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ask asks the servers for a token and remembers the answer.
func (r *Resolver) ask(ctx context.Context, token string, known *entry) (*acl.Authorizer, error) {
	defer metrics.MeasureSince(resolved, time.Now())
	giveBack := func() {}
	if known == nil {
		var err error
		if giveBack, err = r.unknown.wait(ctx); err != nil {
			return nil, err
		}
	}
	reply, err := r.call(ctx, token)
	switch {
	case err == nil:
		giveBack()
		return r.learn(token, reply)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, wireerr.ErrACLDisabled):
		giveBack()
		r.disabled.Store(int64(time.Since(r.start) + disabledTTL))
		return r.everybody, nil
	case errors.Is(err, wireerr.ErrTokenNotFound) || wireerr.Status(err) == http.StatusForbidden:
		return nil, r.refuse(token, err)
	}
	giveBack()
	r.log.Warn("cannot ask the servers about a token", "down_policy", string(r.cfg.Down), "error", err)
	return r.whenDown(token, known), nil
}

// call performs the call. Any server may answer, but only the leader that there is no such token.
func (r *Resolver) call(ctx context.Context, token string) (*calls.ResolveReply, error) {
	req := &calls.ResolveRequest{Options: read.Options{Target: read.Target{Token: token}, Mode: read.Stale}}
	reply, err := calls.ResolveCall.Call(ctx, r.cfg.Caller, req)
	if err == nil || !errors.Is(err, wireerr.ErrTokenNotFound) {
		return reply, err
	}
	again := &calls.ResolveRequest{Options: read.Options{Target: req.Target}}
	reply, late := calls.ResolveCall.Call(ctx, r.cfg.Caller, again)
	if late != nil && !errors.Is(late, wireerr.ErrACLDisabled) {
		return nil, err // the leader agrees, or there is none: a server has said no
	}
	return reply, late
}

// learn remembers what a token may do.
func (r *Resolver) learn(token string, reply *calls.ResolveReply) (*acl.Authorizer, error) {
	rules, err := r.compile(reply)
	if err != nil {
		// What cannot be understood grants nothing.
		r.log.Error("policies of a token cannot be read", "accessor", accessorOf(reply), "error", err)
		return nil, r.refuse(token, wireerr.Errorf(http.StatusForbidden, "Permission denied: the policies of the token cannot be read: %v", err))
	}
	now := time.Since(r.start)
	e := &entry{authorizer: acl.New(rules, accessorOf(reply)), until: now + max(r.cfg.TTL-reply.Age, unknownTTL)}
	if reply.Token != nil && reply.Token.ExpirationTime != nil {
		e.end = *reply.Token.ExpirationTime
		if !time.Now().Before(e.end) {
			return nil, r.refuse(token, wireerr.ErrTokenNotFound)
		}
	}
	e.used.Store(int64(now))
	r.keep(token, e)
	return e.authorizer, nil
}

func accessorOf(reply *calls.ResolveReply) string {
	if reply.Token == nil {
		return ""
	}
	return reply.Token.AccessorID
}

// compile returns the rules of a reply. Tokens with the same policies share them.
func (r *Resolver) compile(reply *calls.ResolveReply) (*acl.Ruleset, error) {
	allow := !r.cfg.DefaultDeny && reply.DefaultPolicy != "deny"
	key := []byte(strconv.FormatBool(allow))
	for _, p := range reply.Policies {
		key = fmt.Appendf(key, " %s %x %d", p.ID, p.Hash, p.ModifyIndex) // indexes may be of another datacenter
	}
	r.rules.Lock()
	rules := r.rules.compiled[string(key)]
	r.rules.Unlock()
	if rules != nil {
		return rules, nil
	}
	var all []*acl.Rules
	for _, p := range reply.Policies {
		one, err := acl.Parse(p.Rules)
		if err != nil {
			return nil, fmt.Errorf("policy %q: %w", p.Name, err)
		}
		all = append(all, one)
	}
	rules = acl.Compile(allow, all...)
	r.rules.Lock()
	defer r.rules.Unlock()
	if len(r.rules.compiled) >= maxRulesets {
		clear(r.rules.compiled)
	}
	r.rules.compiled[string(key)] = rules
	return rules, nil
}

// keep stores an entry, and makes room for it.
func (r *Resolver) keep(token string, e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.none, token)
	if _, ok := r.tokens[token]; !ok && len(r.tokens) >= r.cfg.MaxTokens {
		type candidate struct {
			used  int64
			token string
		}
		all := make([]candidate, 0, len(r.tokens))
		for t, e := range r.tokens {
			all = append(all, candidate{e.used.Load(), t})
		}
		slices.SortFunc(all, func(a, b candidate) int { return int(min(1, max(-1, a.used-b.used))) })
		for _, c := range all[:max(1, len(all)/16)] {
			delete(r.tokens, c.token)
		}
	}
	r.tokens[strings.Clone(token)] = e // not with the request it is part of
}

// refuse remembers that a token is good for nothing, and returns the error for it.
func (r *Resolver) refuse(token string, err error) error {
	if text, remote := strings.CutPrefix(err.Error(), wireerr.RemotePrefix); remote {
		err = told{text, err} // as a server says it
	}
	now := time.Since(r.start)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tokens, token)
	if len(r.none) >= maxUnknown {
		for t, no := range r.none {
			if now >= no.until {
				delete(r.none, t)
			}
		}
		if len(r.none) >= maxUnknown {
			clear(r.none)
		}
	}
	r.none[strings.Clone(token)] = refusal{err, now + unknownTTL}
	return err
}

// told is an error of a server without the words on how it got here.
type told struct {
	text string
	err  error
}

func (e told) Error() string { return e.text }
func (e told) Unwrap() error { return e.err }

// whenDown answers for a token while the servers cannot be asked.
func (r *Resolver) whenDown(token string, known *entry) *acl.Authorizer {
	switch {
	case r.cfg.Down == DownAllow:
		return r.everybody
	case r.cfg.Down == DownDeny:
		if known != nil {
			return acl.New(r.denyAll, known.authorizer.Accessor())
		}
		return acl.New(r.denyAll, "")
	case known == nil:
		return acl.New(r.byDefault, "")
	}
	// Not everybody waits for servers that do not answer: from now on the entry is used at once.
	e := &entry{authorizer: known.authorizer, until: time.Since(r.start) + unknownTTL, end: known.end, down: true}
	e.used.Store(int64(time.Since(r.start)))
	r.keep(token, e)
	return e.authorizer
}

// refreshSoon has a token asked for in the background. When too many wait already, its next use tries again.
func (r *Resolver) refreshSoon(token string, e *entry) {
	if !e.queued.CompareAndSwap(false, true) {
		return
	}
	select {
	case r.refreshes <- token:
	default:
		e.queued.Store(false)
	}
}

// Run asks for tokens in the background until ctx ends, then returns nil.
func (r *Resolver) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() {
			for {
				select {
				case token := <-r.refreshes:
					r.refresh(ctx, token)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		count(cacheHit, &r.hits)
		count(cacheMiss, &r.misses)
	}
	wg.Wait()
	return nil
}

// count tells a counter what has come up.
func count(name []string, n *atomic.Int64) {
	if n := n.Swap(0); n > 0 {
		metrics.IncrCounter(name, float32(n))
	}
}

func (r *Resolver) refresh(ctx context.Context, token string) {
	r.mu.RLock()
	e := r.tokens[token]
	r.mu.RUnlock()
	if e == nil {
		return // it has gone since
	}
	defer e.queued.Store(false)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if _, err := r.miss(ctx, token, e); err != nil && ctx.Err() != nil {
		r.log.Debug("token not asked for again", "error", err)
	}
}
