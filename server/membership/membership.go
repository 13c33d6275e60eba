// Package membership makes the cluster what gossip says it is: it forms a new cluster once enough servers are there,
// and on the leader keeps Raft's members and the catalog's nodes as gossip sees them.
package membership

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/server/consensus"
)

// A Config describes this server. A zero field takes its default.
type Config struct {
	Datacenter string
	ID         string // node ID
	Name       string // of the node
	Address    string // of the server port, as told to others

	// Bootstrap makes a cluster of this server alone if it has none yet; Expect waits for so many servers.
	Bootstrap bool
	Expect    int
	// ReadReplica keeps this server from voting: it makes no cluster and waits to be added to one.
	ReadReplica bool

	Raft *consensus.Raft
	// Members returns the gossip pool as it is.
	Members func() []gossip.Member
	// ForceLeave makes gossip treat a failed member as one that left.
	ForceLeave func(name string, prune bool) error
	// Rejoin makes gossip contact a member at its gossip address.
	Rejoin func(address string) error
	// Peers asks another server for its Raft members.
	Peers func(ctx context.Context, address string) ([]string, error)
	// Stats asks another server how far it is.
	Stats func(ctx context.Context, address string) (Stats, error)
	// Autopilot returns the present configuration.
	Autopilot func() operator.AutopilotConfig
	// NodeMeta returns the metadata of a node, by name; nil for none.
	NodeMeta func(name string) map[string]string
	// Node is what this server's agent will say of its node, so that the leader registers its own with all of it; nil
	// for what gossip says.
	Node *catalog.Node

	// ReconcileInterval is the time between full comparisons; default 60s.
	ReconcileInterval time.Duration
	// ConfirmFailure is how long a member must stay failed before its node is; default 1s. A member accused wrongly
	// refutes within that time.
	ConfirmFailure time.Duration

	Logger hclog.Logger // default discards
}

// Stats tells how far a server is.
type Stats struct {
	LastContact time.Duration // since it heard from the leader; 0 on the leader, negative when never
	LastTerm    uint64
	LastIndex   uint64
}

// A Membership follows gossip. Feed it the pool's events with Observe.
type Membership struct {
	cfg Config
	log hclog.Logger

	mu      sync.Mutex
	servers map[string]gossip.Server // by ID: this datacenter's, as last heard of
	pending map[string]change        // by name: what the leader has not looked at yet
	wake    chan struct{}            // of capacity one: pending or servers changed
	joined  chan struct{}            // of capacity one: for bootstrapping
	health  *health                  // of autopilot's last look; nil when not leading
}

// A change is what last happened to a member.
type change struct {
	member gossip.Member
	kind   gossip.EventKind
	due    time.Time
}

// New returns a membership that knows nobody.
func New(cfg Config) *Membership {
	if cfg.ReconcileInterval == 0 {
		cfg.ReconcileInterval = time.Minute
	}
	if cfg.ConfirmFailure == 0 {
		cfg.ConfirmFailure = time.Second
	}
	if cfg.Autopilot == nil {
		cfg.Autopilot = operator.DefaultAutopilot
	}
	if cfg.NodeMeta == nil {
		cfg.NodeMeta = func(string) map[string]string { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Membership{
		cfg: cfg, log: cfg.Logger.Named("membership"), servers: map[string]gossip.Server{}, pending: map[string]change{},
		wake: make(chan struct{}, 1), joined: make(chan struct{}, 1),
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Observe learns of members.
func (m *Membership) Observe(e gossip.Event) {
	if e.Kind == gossip.Fired {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range e.Members {
		if s, ok := gossip.ParseServer(o); ok && s.Datacenter == m.cfg.Datacenter {
			switch e.Kind {
			case gossip.Joined, gossip.Updated, gossip.Lost:
				m.servers[s.ID] = s
			case gossip.Departed, gossip.Reaped:
				if m.servers[s.ID].Name == s.Name {
					delete(m.servers, s.ID)
				}
			}
		}
		c := change{member: o, kind: e.Kind, due: time.Now()}
		if e.Kind == gossip.Lost {
			c.due = c.due.Add(m.cfg.ConfirmFailure)
		}
		m.pending[o.Name] = c
	}
	poke(m.wake)
	poke(m.joined)
}

// AddressOf returns the address of a server's port by node ID.
func (m *Membership) AddressOf(id string) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.servers[id]
	if !ok {
		return "", false
	}
	return s.Addr.String(), true
}

// Servers returns the servers of this datacenter that have not left, ordered by ID.
func (m *Membership) Servers() []gossip.Server {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]gossip.Server, 0, len(m.servers))
	for _, s := range m.servers {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b gossip.Server) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// bootstrapEvery is how often a server without a cluster looks for one.
const bootstrapEvery = time.Second

// RunBootstrap makes a new cluster if this server is to and has none. It returns when there is one.
func (m *Membership) RunBootstrap(ctx context.Context) error {
	select {
	case <-m.cfg.Raft.Ready():
	case <-ctx.Done():
		return nil
	}
	if !m.cfg.Raft.Empty() {
		return nil
	}
	if m.cfg.Bootstrap || m.cfg.Expect == 1 && !m.cfg.ReadReplica {
		m.log.Info("making a new cluster of this server")
		if err := m.cfg.Raft.Bootstrap([]consensus.Server{{ID: m.cfg.ID, Address: m.cfg.Address}}); err != nil {
			return err
		}
		m.cfg.Raft.StandForElection()
		return nil
	}
	if m.cfg.Expect == 0 || m.cfg.ReadReplica {
		return nil // it waits to be added by a leader
	}
	tick := time.NewTicker(bootstrapEvery)
	defer tick.Stop()
	for m.cfg.Raft.Empty() {
		voters, decided := m.assemble(ctx)
		if decided {
			if voters == nil {
				return nil
			}
			m.log.Info("making a new cluster", "servers", len(voters))
			if err := m.cfg.Raft.Bootstrap(voters); err != nil {
				return err
			}
			if voters[0].ID == m.cfg.ID { // one of them, so that nobody waits for a timeout
				m.cfg.Raft.StandForElection()
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.joined:
		case <-tick.C:
		}
	}
	return nil
}

// assemble decides on a new cluster: the servers to make it of, or nil when there is a cluster already that will add
// this server. Not decided means to look again later.
func (m *Membership) assemble(ctx context.Context) (voters []consensus.Server, decided bool) {
	var found []gossip.Server
	for _, o := range m.cfg.Members() {
		s, ok := gossip.ParseServer(o)
		if !ok || s.Datacenter != m.cfg.Datacenter || s.Status != gossip.Alive {
			continue
		}
		if s.Bootstrap {
			m.log.Error("a server makes clusters by itself; bootstrap_expect has no effect beside it", "server", s.Name)
			return nil, true
		}
		if s.Expect != 0 && s.Expect != m.cfg.Expect {
			m.log.Error("servers differ in bootstrap_expect, no cluster is made", "server", s.Name, "expects", s.Expect)
			return nil, false
		}
		if s.Expect == m.cfg.Expect && !s.ReadReplica {
			found = append(found, s)
		}
	}
	if len(found) < m.cfg.Expect {
		return nil, false
	}
	for _, s := range found {
		if s.ID == m.cfg.ID {
			continue
		}
		qctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		peers, err := m.cfg.Peers(qctx, s.Addr.String())
		cancel()
		if err != nil {
			m.log.Warn("cannot ask a server for its peers, will retry", "server", s.Name, "error", err)
			return nil, false
		}
		if len(peers) > 0 {
			m.log.Info("there is a cluster already, waiting to be added", "server", s.Name)
			return nil, true
		}
	}
	slices.SortFunc(found, func(a, b gossip.Server) int { return strings.Compare(a.ID, b.ID) })
	for _, s := range found {
		voters = append(voters, consensus.Server{ID: s.ID, Address: s.Addr.String()})
	}
	return voters, true
}
