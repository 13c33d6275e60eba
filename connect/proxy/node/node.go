// Package node runs many proxies in one process: one for each service of a host.
//
// Each is a proxy.Proxy of its own, with its own stream to the control plane,
// identity, listeners, clusters, limits and counters. They share the process:
// its scheduler and heap, the certificates that several of them were sent, and
// a budget of connections and memory that none can use up alone.
package node

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/quota"
	"github.com/sarnmesh/sarn/internal/pause"
)

// A Member is a proxy that should run.
type Member struct {
	ID    string // of the proxy's registration
	Token string // for its stream to the control plane; empty takes that of the process
}

// Config tunes a Node. A zero field takes its default.
type Config struct {
	// Proxy returns what a member runs, without its parts of the budget. The
	// token is what the member has at the time of the call. Required.
	Proxy func(id string, token func() string) (proxy.Config, error)

	Connections    int64 // of all proxies together; 0 does not limit
	MaxConnections int64 // of each; 0 takes its part of Connections only
	Memory         int64 // bytes of bodies that are kept by all proxies together; 0 does not limit

	Logger hclog.Logger // default discards
}

// A Node is the proxies of a host.
type Node struct {
	cfg                 Config
	log                 hclog.Logger
	connections, memory *quota.Pool // nil does not limit
	start               time.Time
	running             sync.WaitGroup
	asked               atomic.Bool // Set was called

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before
	members map[string]*member
	wanted  []Member // given before Run
	leaving int      // members that drain
}

// member is a proxy that runs, or waits to be started again.
type member struct {
	id                  string
	connections, memory *quota.Share
	token               atomic.Pointer[string]
	proxy               atomic.Pointer[proxy.Proxy] // nil while it is being made, or could not be
	failure             atomic.Pointer[string]      // why not; nil if it was
	cancel              context.CancelFunc
}

// New returns a node without proxies. Nothing happens until Run.
func New(cfg Config) *Node {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	n := &Node{cfg: cfg, log: cfg.Logger, start: time.Now(), members: map[string]*member{}}
	if cfg.Connections > 0 {
		n.connections = quota.NewPool(cfg.Connections)
	}
	if cfg.Memory > 0 {
		n.memory = quota.NewPool(cfg.Memory)
	}
	return n
}

// Set makes the proxies those of the list. One that is on it already is not
// touched, but for its token, and one that is not any more drains.
func (n *Node) Set(list []Member) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked.Store(true)
	n.wanted = list
	if n.ctx != nil {
		n.settle()
	}
}

// settle makes the members those wanted. The caller holds n.mu.
func (n *Node) settle() {
	wanted := map[string]Member{}
	for _, w := range n.wanted {
		wanted[w.ID] = w
	}
	for id, m := range n.members {
		if _, ok := wanted[id]; !ok {
			n.log.Info("proxy is not wanted any more, draining it", "proxy", id)
			m.cancel()
			delete(n.members, id)
			n.leaving++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		token := wanted[id].Token
		if m := n.members[id]; m != nil {
			m.token.Store(&token)
			continue
		}
		ctx, cancel := context.WithCancel(n.ctx)
		m := &member{id: id, cancel: cancel}
		m.token.Store(&token)
		if n.connections != nil {
			m.connections = n.connections.Share(n.cfg.MaxConnections)
		}
		if n.memory != nil {
			m.memory = n.memory.Share(0)
		}
		n.members[id] = m
		n.log.Info("proxy added", "proxy", id)
		n.running.Go(func() {
			n.keep(ctx, m)
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.members[id] != m {
				n.leaving--
			}
		})
	}
}

// How long a proxy that failed waits until it is started again.
const (
	firstWait = time.Second
	lastWait  = 30 * time.Second
)

// keep runs a member until ctx ends and it has drained.
func (n *Node) keep(ctx context.Context, m *member) {
	defer m.cancel()
	for wait := firstWait; ctx.Err() == nil; wait = min(2*wait, lastWait) {
		began := time.Now()
		err := n.run(ctx, m)
		if ctx.Err() != nil {
			return
		}
		why := "it was told to stop"
		if err != nil {
			why = err.Error()
		}
		m.failure.Store(&why)
		if time.Since(began) > lastWait {
			wait = firstWait
		}
		n.log.Error("proxy ended, starting it again", "proxy", m.id, "error", why, "wait", wait)
		pause.For(ctx, wait)
	}
}

func (n *Node) run(ctx context.Context, m *member) error {
	cfg, err := n.cfg.Proxy(m.id, func() string { return *m.token.Load() })
	if err != nil {
		return err
	}
	cfg.Connections, cfg.Memory = m.connections, m.memory
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = n.cfg.MaxConnections
	}
	p, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	m.proxy.Store(p)
	m.failure.Store(nil)
	return p.Run(ctx)
}

// Run runs the proxies until ctx ends, and then drains them all.
func (n *Node) Run(ctx context.Context) error {
	n.mu.Lock()
	n.ctx = ctx
	n.settle()
	n.mu.Unlock()
	<-ctx.Done()
	n.mu.Lock() // nobody adds a member from here on
	n.ctx = nil
	n.mu.Unlock()
	n.running.Wait()
	return nil
}

// Get returns the proxy with the ID, or nil if there is none.
func (n *Node) Get(id string) *proxy.Proxy {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m := n.members[id]; m != nil {
		return m.proxy.Load()
	}
	return nil
}

// Ready reports whether it is known which proxies there should be, and all of them are ready.
func (n *Node) Ready() bool {
	if !n.asked.Load() {
		return false
	}
	for _, i := range n.Members() {
		if i.Proxy == nil || !i.Proxy.Ready() {
			return false
		}
	}
	return true
}

// Started returns when the node was made.
func (n *Node) Started() time.Time { return n.start }

// Info is the state of a member, for showing.
type Info struct {
	ID      string
	Proxy   *proxy.Proxy // nil while it is being made, or could not be
	Failure string       // why it does not run; empty if it does

	Connections, ConnectionsRefused int64 // of its part of the budget; 0 without one
	Memory, MemoryRefused           int64
}

// Members returns the state of all proxies, sorted by ID.
func (n *Node) Members() []Info {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Info, 0, len(n.members))
	for _, m := range n.members {
		i := Info{ID: m.id, Proxy: m.proxy.Load()}
		if f := m.failure.Load(); f != nil {
			i.Failure = *f
		}
		used, refused := m.connections.Used()
		i.Connections, i.ConnectionsRefused = used, int64(refused)
		used, refused = m.memory.Used()
		i.Memory, i.MemoryRefused = used, int64(refused)
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Leaving returns how many proxies are not wanted any more and still drain.
func (n *Node) Leaving() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leaving
}
