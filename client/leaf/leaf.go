// Package leaf keeps the leaf certificates of an agent's services: it makes their keys, which never leave the process
// but to who asked for the leaf, has them signed by the servers, and renews them in time and when the root changes
// (spec/connect.md section 3).
//
// A leaf is kept for each identity and token, and shared by all who watch it. A leaf that cannot be renewed is served
// as long as it is valid.
package leaf

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Config tunes a Keeper. A zero field takes its default.
type Config struct {
	Datacenter string // of this agent; required
	// Authorize tells whether a token may be an identity. It is asked on every Get, so that a leaf once made is given to
	// nobody else and not longer than the right lasts. Nil leaves the check to the servers, when they sign.
	Authorize func(ctx context.Context, token string, id connect.ID) error
	// ServerSecret returns what shows the leader that this agent is a server's; nil on others.
	ServerSecret func() string
	// Chance returns a random number in [0, 1), which spreads renewals. It must be safe for concurrent use. Default
	// math/rand.
	Chance  func() float64
	Entropy io.Reader     // for keys; safe for concurrent use; default crypto/rand
	IdleTTL time.Duration // a leaf nobody asked for in this time is forgotten; default 72h
	Logger  hclog.Logger  // default discards
}

// Bounds of renewal and retries.
const (
	renewFrom       = 0.5              // of the life of a leaf, earliest: it leaves as long to retry as it took
	renewTo         = 0.65             // latest
	rootChangeDelay = 30 * time.Second // new leaves after a root change are spread over this
	minRetry        = time.Second
	maxRetry        = time.Minute
	firstLeafWait   = 10 * time.Second // how long a plain Get waits while the servers are busy or away
	defaultMaxWait  = 10 * time.Minute // of a blocking Get
	rootsPoll       = 10 * time.Minute // one blocking call for roots
)

// A Keeper keeps leaves. Make one with New; it works while Run does. It is safe for concurrent use.
type Keeper struct {
	caller rpc.Caller
	cfg    Config
	log    hclog.Logger

	wake chan struct{} // tells Run that there are entries to start; holds one

	mu        sync.Mutex
	entries   map[key]*entry
	waiting   []*entry // not started yet
	roots     *ca.RootsReply
	rootsErr  error
	rootsNews chan struct{} // closed and replaced when roots or rootsErr change
}

// A key identifies a leaf that is shared.
type key struct{ kind, name, token, hosts string }

// New returns a keeper that reaches the servers through caller. Nothing happens until Run.
func New(caller rpc.Caller, cfg Config) *Keeper {
	if cfg.Chance == nil {
		cfg.Chance = mathrand.Float64
	}
	if cfg.Entropy == nil {
		cfg.Entropy = rand.Reader
	}
	if cfg.IdleTTL <= 0 {
		cfg.IdleTTL = 72 * time.Hour
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Keeper{
		caller: caller, cfg: cfg, log: cfg.Logger.Named("leaf"),
		wake: make(chan struct{}, 1), entries: map[key]*entry{}, rootsNews: make(chan struct{}),
	}
}

// Run keeps leaves until ctx ends, then returns nil. Every goroutine it starts has ended by then.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.watchRoots(ctx) })
	for {
		k.mu.Lock()
		start := k.waiting
		k.waiting = nil
		k.mu.Unlock()
		for _, e := range start {
			wg.Go(func() { k.keep(ctx, e) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		}
	}
}

// A Request says which leaf is wanted. Exactly one of Service, Agent, MeshGateway and Server is set.
type Request struct {
	Service     string
	Agent       string // node name
	MeshGateway bool
	Server      bool
	Token       string
	// Hosts are DNS names that the leaf of an ingress gateway, a service, is to carry.
	Hosts []string
	// MinIndex greater than zero makes Get wait until the index of the leaf passes it, at most MaxWait.
	MinIndex uint64
	MaxWait  time.Duration // default 10 minutes
}

// ErrIdentity reports a request that does not say what the leaf is for. Its text is matched by clients.
var ErrIdentity = errors.New("URI must be either service, agent, server, or kind")

func (r *Request) key() (key, error) {
	switch {
	case r.Service != "":
		return key{"service", r.Service, r.Token, strings.Join(r.Hosts, " ")}, nil
	case r.Agent != "":
		return key{kind: "agent", name: r.Agent, token: r.Token}, nil
	case r.MeshGateway:
		return key{kind: "mesh-gateway", token: r.Token}, nil
	case r.Server:
		return key{kind: "server", token: r.Token}, nil
	}
	return key{}, ErrIdentity
}

// id returns the identity in a trust domain.
func (k key) id(trustDomain, datacenter string) connect.ID {
	switch k.kind {
	case "service":
		return connect.ServiceID(trustDomain, datacenter, k.name)
	case "agent":
		return connect.AgentID(trustDomain, datacenter, k.name)
	case "mesh-gateway":
		return connect.MeshGatewayID(trustDomain, datacenter)
	}
	return connect.ServerID(trustDomain, datacenter)
}

// A Result is a leaf with what is known about its age.
type Result struct {
	Leaf *ca.Leaf // shared; never nil
	// Index rises with every new leaf.
	Index uint64
	// Hit tells that nobody had to wait for the servers.
	Hit bool
	Age time.Duration // since the servers could not be reached for a renewal that is due; else 0
}

// Get returns the leaf asked for, making it if need be. The error is the servers' or that of ctx.
func (k *Keeper) Get(ctx context.Context, r Request) (Result, error) {
	key, err := r.key()
	if err != nil {
		return Result{}, err
	}
	if k.cfg.Authorize != nil {
		k.mu.Lock()
		domain := ""
		if k.roots != nil {
			domain = k.roots.TrustDomain
		}
		k.mu.Unlock()
		if err := k.cfg.Authorize(ctx, r.Token, key.id(domain, k.cfg.Datacenter)); err != nil {
			return Result{}, err
		}
	}
	if r.MaxWait <= 0 {
		r.MaxWait = defaultMaxWait
	}
	wait := time.NewTimer(max(r.MaxWait, 0))
	if r.MinIndex == 0 {
		wait.Reset(firstLeafWait)
	}
	defer wait.Stop()
	// After a failure without a leaf the entry is gone: whoever comes next starts anew.
	e, made := k.enter(key)
	defer e.exit()
	hit := !made // also when the leaf is there before it is looked at
	for {
		s := e.current()
		switch {
		case s.leaf == nil && s.err != nil && !s.busy:
			return Result{}, s.err
		case s.leaf != nil && !time.Now().Before(s.leaf.ValidBefore):
			if s.err != nil {
				return Result{}, fmt.Errorf("the certificate has expired and cannot be renewed: %w", s.err)
			}
		case s.leaf != nil && s.index > r.MinIndex && (r.MinIndex > 0 || k.trusted(&s)):
			return s.result(hit), nil
		case s.leaf != nil && r.MinIndex == 0:
			e.hurry() // its root is gone
		}
		hit = false
		select {
		case <-s.news:
		case <-wait.C:
			switch {
			case s.leaf != nil:
				return s.result(false), nil
			case s.err != nil:
				return Result{}, s.err
			}
			return Result{}, errors.New("no certificate could be had from the servers in time")
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}
}

// enter returns the entry for a key, which is made if there is none, and counts the caller as one who waits for it.
func (k *Keeper) enter(key key) (e *entry, made bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e = k.entries[key]
	if e == nil {
		made = true
		e = &entry{key: key, hurried: make(chan struct{}, 1)}
		e.state.news = make(chan struct{})
		e.used = time.Now()
		k.entries[key] = e
		k.waiting = append(k.waiting, e)
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	e.enter()
	return e, made
}

// Roots returns what is known of the roots, nil before the servers answered, a channel that is closed when that changes,
// and why the last attempt to learn more failed.
func (k *Keeper) Roots() (roots *ca.RootsReply, news <-chan struct{}, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.roots, k.rootsNews, k.rootsErr
}

// trusted reports whether the root a leaf was signed under is still one of the roots, as far as is known.
func (k *Keeper) trusted(s *state) bool {
	roots, _, _ := k.Roots()
	return roots == nil || roots.Index < s.roots ||
		slices.ContainsFunc(roots.Roots, func(r *ca.Root) bool { return r.ID == s.leaf.RootID })
}

// watchRoots follows the roots until ctx ends.
func (k *Keeper) watchRoots(ctx context.Context) {
	var index uint64
	retry := minRetry
	for ctx.Err() == nil {
		req := &ca.RootsRequest{Options: read.Options{MinIndex: index, MaxWait: rootsPoll}}
		roots, err := ca.RootsCall.Call(ctx, k.caller, req)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			k.setRoots(nil, err)
			pause.For(ctx, k.jitter(retry))
			retry = min(2*retry, maxRetry)
			continue
		}
		retry = minRetry
		// An index that went backwards is from servers that were restored: start over.
		if index = roots.Index; index < req.MinIndex {
			index = 0
		}
		if roots.ActiveRootID == "" {
			k.setRoots(nil, errNoRoots)
			if index == 0 {
				pause.For(ctx, minRetry)
			}
			index = max(index, 1)
			continue
		}
		k.setRoots(roots, nil)
	}
}

var errNoRoots = errors.New("the servers have no root certificate yet")

// setRoots publishes roots, or why there are no newer ones.
func (k *Keeper) setRoots(roots *ca.RootsReply, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if roots != nil {
		k.roots = roots
	}
	k.rootsErr = err
	close(k.rootsNews)
	k.rootsNews = make(chan struct{})
}

// jitter returns a random duration between half of d and one and a half of it.
func (k *Keeper) jitter(d time.Duration) time.Duration {
	return time.Duration((0.5 + k.cfg.Chance()) * float64(d))
}

// sign makes a key and has it signed.
func (k *Keeper) sign(ctx context.Context, of key, roots *ca.RootsReply) (*ca.Leaf, error) {
	secret, err := ecdsa.GenerateKey(elliptic.P256(), k.cfg.Entropy)
	if err != nil {
		return nil, fmt.Errorf("make a private key: %w", err)
	}
	id := of.id(roots.TrustDomain, k.cfg.Datacenter)
	csr, err := ca.NewCSR(id, secret, k.cfg.Entropy)
	if err != nil {
		return nil, err
	}
	call, req := ca.SignCall, &ca.SignRequest{Target: read.Target{Token: of.token}, CSR: csr, Hosts: strings.Fields(of.hosts)}
	if of.kind == "server" && k.cfg.ServerSecret != nil {
		call, req.Secret = ca.SignServerCall, k.cfg.ServerSecret()
	}
	reply, err := call.Call(ctx, k.caller, req)
	if err != nil {
		return nil, err
	}
	leaf := reply.Leaf
	cert, err := ca.ParseCertificate(leaf.CertPEM)
	if err != nil {
		return nil, fmt.Errorf("read the signed certificate: %w", err)
	}
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(secret.Public()) || len(cert.URIs) != 1 || cert.URIs[0].String() != id.String() {
		return nil, errors.New("the servers signed another certificate than was asked for")
	}
	leaf.PrivateKeyPEM, err = ca.EncodeKey(secret)
	return &leaf, err
}
