// Package proxystate keeps the configuration of proxies current: for each proxy that a stream asked for it follows the
// registration and whatever that makes necessary (connect/mesh), and compiles the result (connect/xds) when somebody
// wants it. It is the ads.Source of an agent.
//
// A change is passed on at once. Several changes become one only when they arrive while an earlier one is being worked
// on. Nothing is passed on before everything a proxy needs is known for the first time, so that an agent that was
// restarted does not take from its proxies what it has not learnt yet; and what is known stays when servers are lost.
package proxystate

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/xds"
)

// Registrations are the proxies this package is to serve. Local makes them of those of an agent.
type Registrations interface {
	// Proxy returns the instance with this ID, merged with the central configuration of its service, and the token to
	// act with on its behalf; nil if there is none. The instance is never changed. The channel is closed when the answer
	// may no longer hold.
	Proxy(id string) (svc *catalog.Service, token string, changed <-chan struct{})
}

// Leaves are certificates, kept by client/leaf.
type Leaves interface {
	Get(ctx context.Context, r leaf.Request) (leaf.Result, error)
}

// Config tells a State where it is and where to look. Node, Datacenter, Registrations, Cache and Leaves are required.
type Config struct {
	Node          string // of this agent
	Datacenter    string
	Domain        string // of DNS; default consul
	Registrations Registrations
	Cache         *cache.Cache
	Leaves        Leaves
	// DefaultAllow is what is decided about callers that no intention mentions.
	DefaultAllow bool
	// OtherNodes tells that proxies registered on other nodes, straight in the catalog, are served too: what servers do.
	OtherNodes bool
	// FirstWait bounds how long the first configuration of a proxy waits for everything about its upstreams; default 10s.
	FirstWait time.Duration
	Logger    hclog.Logger // default discards
}

// A State keeps configurations. Make one with New; it works while Run does. It is safe for concurrent use.
type State struct {
	cfg  Config
	wake chan struct{} // holds one token while starting is not empty

	shared xds.Shared // what proxies have in common

	mu       sync.Mutex
	proxies  map[key]*proxy
	starting []*proxy
	stopped  bool
}

// A key identifies a proxy. What is in the catalog is read with the token of the stream, so it is part of the key.
type key struct{ node, id, token string }

// New returns a state that follows nothing yet.
func New(cfg Config) *State {
	if cfg.FirstWait <= 0 {
		cfg.FirstWait = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &State{cfg: cfg, wake: make(chan struct{}, 1), proxies: map[key]*proxy{}}
}

// Run keeps configurations until ctx ends, then returns nil. Every goroutine it starts has ended by then.
func (s *State) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		s.mu.Lock()
		starting := s.starting
		s.starting = nil
		s.mu.Unlock()
		for _, p := range starting {
			wg.Go(func() { p.run(ctx) })
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			s.stopped = true
			for _, p := range s.proxies {
				p.end()
			}
			return nil
		}
	}
}

var (
	errStopped    = errors.New("the agent is shutting down")
	errOtherNodes = errors.New("this agent serves only the proxies registered on its own node")
)

// Follow returns a subscription to the configuration of a proxy. It implements ads.Source.
func (s *State) Follow(n ads.Node) (ads.Subscription, error) {
	k := key{id: n.ID}
	if n.Name != "" && n.Name != s.cfg.Node {
		if !s.cfg.OtherNodes {
			return nil, errOtherNodes
		}
		k.node, k.token = n.Name, n.Token
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errStopped
	}
	p := s.proxies[k]
	if p == nil {
		p = newProxy(s, k)
		s.proxies[k] = p
		s.starting = append(s.starting, p)
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	p.subscribers++
	return &subscription{p: p, flavour: n.Flavour}, nil
}

// release gives up a subscription.
func (s *State) release(p *proxy) {
	s.mu.Lock()
	p.subscribers--
	s.mu.Unlock()
	p.poke()
}

// retire takes a proxy out that nobody subscribes to. It reports false if somebody does.
func (s *State) retire(p *proxy) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.subscribers > 0 {
		return false
	}
	if s.proxies[p.key] == p {
		delete(s.proxies, p.key)
	}
	return true
}

// Proxies returns how many proxies are followed.
func (s *State) Proxies() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.proxies)
}
