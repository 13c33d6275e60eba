package membership

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/leader"
)

// Times of autopilot.
const (
	lookEvery = 2 * time.Second  // at the servers' health; who is ready for a vote gets it
	actEvery  = 10 * time.Second // on it otherwise
	// strayFor is how long Raft may have a member that gossip does not know before it counts as dead: after a start,
	// gossip learns of members only by and by.
	strayFor = time.Minute
)

// health is what autopilot knows; it is replaced, never changed.
type health struct {
	state operator.State
}

// Autopilot is the leader's duty to watch the servers: it makes healthy ones voters and removes dead ones
// (spec/state.md sections 11.2 and 12).
func (m *Membership) Autopilot() leader.Duty {
	return leader.Duty{Name: "autopilot", Run: func(ctx context.Context, l *leader.Leader) error {
		a := &autopilot{Membership: m, l: l, began: time.Now(), strays: map[string]time.Time{}}
		defer m.setHealth(nil)
		look, act := time.NewTicker(lookEvery), time.NewTicker(actEvery)
		defer look.Stop()
		defer act.Stop()
		a.look(ctx)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-look.C:
				a.look(ctx)
				if st, ok := a.Health(); ok && ctx.Err() == nil {
					a.promote(st, a.cfg.Autopilot())
				}
			case <-act.C:
				a.act(ctx)
			}
		}
	}}
}

func (m *Membership) setHealth(h *health) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.health = h
}

// Health returns what autopilot saw at its last look; false when this server does not lead or has not looked yet.
// The state is shared and must not be changed.
func (m *Membership) Health() (operator.State, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.health == nil {
		return operator.State{}, false
	}
	return m.health.state, true
}

type autopilot struct {
	*Membership
	l      *leader.Leader
	began  time.Time
	strays map[string]time.Time // members of Raft that gossip does not know, since when
	plan   plan                 // of the last look
}

// look asks every server how it is.
func (a *autopilot) look(ctx context.Context) {
	members, _, err := a.cfg.Raft.Members()
	if err != nil {
		return
	}
	conf := a.cfg.Autopilot()
	byID := map[string]gossip.Server{}
	for _, o := range a.cfg.Members() {
		if s, ok := gossip.ParseServer(o); ok && s.Datacenter == a.cfg.Datacenter {
			byID[s.ID] = s
		}
	}

	qctx, cancel := context.WithTimeout(ctx, lookEvery/2)
	defer cancel()
	var mu sync.Mutex
	stats := map[string]Stats{}
	var wg sync.WaitGroup
	for _, p := range members {
		s, known := byID[p.ID]
		if p.ID == a.cfg.ID || !known || s.Status != gossip.Alive {
			continue
		}
		wg.Go(func() {
			got, err := a.cfg.Stats(qctx, s.Addr.String())
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			stats[p.ID] = got
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	own := a.cfg.Raft.Progress()
	stats[a.cfg.ID] = Stats{LastTerm: own.LastTerm, LastIndex: own.LastIndex}

	before, _ := a.Health()
	now := time.Now()
	st := assess(members, byID, stats, own, conf, a.cfg.ID, before, now)
	for _, s := range st.Servers {
		describe(s, byID[s.ID], conf, a.cfg.NodeMeta(s.Name))
	}
	a.plan = arrange(&st, conf, a.ready(conf, now))
	a.setHealth(&health{st})
	for _, p := range members {
		if _, known := byID[p.ID]; known {
			delete(a.strays, p.ID)
		} else if a.strays[p.ID].IsZero() {
			a.strays[p.ID] = time.Now()
		}
	}
}

// assess judges the servers.
func assess(members []consensus.Server, byID map[string]gossip.Server, stats map[string]Stats, own consensus.Progress,
	conf operator.AutopilotConfig, self string, before operator.State, now time.Time) operator.State {
	st := operator.State{Healthy: true, Servers: map[string]*operator.ServerState{}}
	voters, healthyVoters := 0, 0
	for _, p := range members {
		s, known := byID[p.ID]
		got, answered := stats[p.ID]
		h := operator.ServerHealth{
			ID: p.ID, Name: s.Name, Address: p.Address, SerfStatus: s.Status.String(), Version: s.Build, Leader: p.ID == self,
			LastContact: got.LastContact, LastTerm: got.LastTerm, LastIndex: got.LastIndex, Voter: p.Voter, StableSince: now,
		}
		if known {
			h.Address = s.Addr.String()
		}
		if s.Status == gossip.Leaving {
			h.SerfStatus = gossip.Left.String()
		}
		h.Healthy = known && s.Status == gossip.Alive && answered && got.LastContact >= 0 &&
			got.LastContact <= time.Duration(conf.LastContactThreshold) &&
			got.LastTerm == own.LastTerm && got.LastIndex+conf.MaxTrailingLogs >= own.LastIndex
		if old, ok := before.Servers[p.ID]; ok && old.Healthy == h.Healthy {
			h.StableSince = old.StableSince
		}
		status := operator.StatusNonVoter
		switch {
		case p.ID == self:
			status = operator.StatusLeader
		case p.Voter:
			status = operator.StatusVoter
		}
		st.Servers[p.ID] = &operator.ServerState{ServerHealth: h, Status: status}
		st.Healthy = st.Healthy && h.Healthy
		if p.Voter {
			voters++
			st.Voters = append(st.Voters, p.ID)
			if h.Healthy {
				healthyVoters++
			}
		}
	}
	st.Leader = self
	slices.SortFunc(st.Voters, func(x, y string) int {
		switch {
		case x == self:
			return -1
		case y == self:
			return 1
		}
		return strings.Compare(x, y)
	})
	st.FailureTolerance = max(0, healthyVoters-(voters/2+1))
	return st
}

// act gives votes and takes them as planned, and removes dead servers.
func (a *autopilot) act(ctx context.Context) {
	st, ok := a.Health()
	if !ok {
		return
	}
	conf := a.cfg.Autopilot()
	a.carryOut(st, conf)
	if conf.CleanupDeadServers && ctx.Err() == nil {
		a.clean(ctx, conf)
	}
}

// ready tells of a server without a vote whether it has been healthy for long enough to be given one.
func (a *autopilot) ready(conf operator.AutopilotConfig, now time.Time) func(*operator.ServerState) bool {
	stable := time.Duration(conf.ServerStabilizationTime)
	if now.Sub(a.began) < stable {
		stable = 0 // this leader knows nobody for so long
	}
	return func(s *operator.ServerState) bool { return s.Healthy && now.Sub(s.StableSince) >= stable }
}

// promote gives votes to the servers that are to have one and are ready. It reports whether there are any without.
func (a *autopilot) promote(st operator.State, conf operator.AutopilotConfig) (lacking bool) {
	ready := a.ready(conf, time.Now())
	for _, id := range sortedKeys(st.Servers) {
		s := st.Servers[id]
		if !a.plan.vote[id] || s.Voter {
			continue
		}
		lacking = true
		if !ready(s) {
			continue
		}
		a.log.Info("making a server a voter", "server", s.Name, "id", id)
		if err := a.cfg.Raft.AddVoter(id, s.Address); err != nil {
			a.log.Warn("cannot make a server a voter, will retry", "server", s.Name, "error", err)
		}
	}
	return lacking
}

// carryOut takes the next step of the plan. Votes are taken only after those who are to vote do, and most of them are
// well; the leader goes last, by making another one the leader.
func (a *autopilot) carryOut(st operator.State, conf operator.AutopilotConfig) {
	wanted, well := 0, 0
	for id := range a.plan.vote {
		s := st.Servers[id]
		if s == nil || !a.plan.vote[id] {
			continue
		}
		if wanted++; s.Voter && s.Healthy {
			well++
		}
	}
	if a.promote(st, conf) || well < wanted/2+1 {
		return
	}
	voters, demoted := len(st.Voters), false
	for _, id := range st.Voters {
		if a.plan.vote[id] || id == a.cfg.ID || voters-1 < int(conf.MinQuorum) {
			continue
		}
		a.log.Info("taking a server's vote", "server", st.Servers[id].Name, "id", id)
		if err := a.cfg.Raft.Demote(id); err != nil {
			a.log.Warn("cannot take a server's vote, will retry", "server", st.Servers[id].Name, "error", err)
			return
		}
		voters, demoted = voters-1, true
	}
	if demoted || a.plan.vote[a.cfg.ID] {
		return
	}
	for _, id := range st.Voters {
		if s := st.Servers[id]; a.plan.vote[id] && s.Healthy {
			a.log.Info("making another server the leader, since this one is not to vote", "server", s.Name, "id", id)
			if err := a.cfg.Raft.Transfer(id); err != nil {
				a.log.Warn("cannot make another server the leader, will retry", "server", s.Name, "error", err)
				continue
			}
			return
		}
	}
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// answers reports whether a server can be reached by another way than gossip.
func (a *autopilot) answers(ctx context.Context, s gossip.Server) bool {
	ctx, cancel := context.WithTimeout(ctx, lookEvery/2)
	defer cancel()
	_, err := a.cfg.Stats(ctx, s.Addr.String())
	return err == nil
}

// clean removes servers that failed, and members of Raft that gossip has long not known: those without a vote first,
// and of the voters only so many that the others are a majority.
func (a *autopilot) clean(ctx context.Context, conf operator.AutopilotConfig) {
	members, _, err := a.cfg.Raft.Members()
	if err != nil {
		return
	}
	voter, voters := map[string]bool{}, 0
	for _, p := range members {
		if voter[p.ID] = p.Voter; p.Voter {
			voters++
		}
	}
	type dead struct {
		id, name string // without a name gossip does not know it
		voter    bool
		server   gossip.Server
	}
	var found []dead
	inGossip := map[string]bool{}
	for _, o := range a.cfg.Members() {
		s, ok := gossip.ParseServer(o)
		if !ok || s.Datacenter != a.cfg.Datacenter {
			continue
		}
		inGossip[s.ID] = true
		if s.Status == gossip.Failed && s.ID != a.cfg.ID {
			found = append(found, dead{s.ID, s.Name, voter[s.ID], s})
		}
	}
	for _, p := range members {
		since := a.strays[p.ID]
		if !inGossip[p.ID] && p.ID != a.cfg.ID && !since.IsZero() && time.Since(since) >= strayFor {
			found = append(found, dead{p.ID, "", p.Voter, gossip.Server{}})
		}
	}
	slices.SortStableFunc(found, func(x, y dead) int {
		switch {
		case x.voter == y.voter:
			return strings.Compare(x.id, y.id)
		case y.voter:
			return -1
		}
		return 1
	})
	most := (voters - 1) / 2
	for _, d := range found {
		if d.name != "" && a.answers(ctx, d.server) {
			// Gossip lags behind, as after a partition: help it along rather than remove a server that works.
			a.log.Info("gossip holds a server for failed that answers, joining it again", "server", d.name)
			if err := a.cfg.Rejoin(d.server.Gossip.String()); err != nil {
				a.log.Debug("cannot join a server again", "server", d.name, "error", err)
			}
			continue
		}
		if d.voter {
			if most == 0 || voters-1 < int(conf.MinQuorum) {
				a.log.Debug("not removing a dead server: too few would remain", "id", d.id)
				continue
			}
			most--
			voters--
		}
		a.log.Info("removing a dead server", "server", d.name, "id", d.id)
		// Raft first: forcing it to leave takes a while, in which it may come back and be added again.
		if _, member := voter[d.id]; member {
			if err := a.cfg.Raft.Remove(d.id); err != nil {
				a.log.Warn("cannot remove a dead server, will retry", "id", d.id, "error", err)
				continue
			}
		}
		if d.name != "" {
			if err := a.cfg.ForceLeave(d.name, false); err != nil {
				a.log.Warn("cannot make a dead server leave, will retry", "server", d.name, "error", err)
			}
		}
	}
}
