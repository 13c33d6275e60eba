package membership

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/server/leader"
)

// Reconcile is the leader's duty to keep Raft's members and the catalog's nodes as gossip sees them
// (spec/registry.md section 13).
func (m *Membership) Reconcile() leader.Duty {
	return leader.Duty{Name: "reconcile", Run: func(ctx context.Context, l *leader.Leader) error {
		r := &reconciler{Membership: m, l: l}
		full := time.NewTicker(m.cfg.ReconcileInterval)
		defer full.Stop()
		for everything := true; ; {
			if everything {
				r.all(ctx)
			}
			next := r.changes(ctx)
			var due <-chan time.Time
			if next > 0 {
				due = time.After(next)
			}
			everything = false
			select {
			case <-ctx.Done():
				return nil
			case <-full.C:
				everything = true
			case <-m.wake:
			case <-due:
			}
		}
	}}
}

// A reconciler does the work during one leadership.
type reconciler struct {
	*Membership
	l       *leader.Leader
	missing map[string]bool // nodes without a member at the last full comparison
}

// changes handles what gossip has told of, and returns how long until more is due, 0 for nothing.
func (r *reconciler) changes(ctx context.Context) (next time.Duration) {
	r.mu.Lock()
	var due []change
	now := time.Now()
	for name, c := range r.pending {
		if wait := c.due.Sub(now); wait > 0 {
			if next == 0 || wait < next {
				next = wait
			}
			continue
		}
		due = append(due, c)
		delete(r.pending, name)
	}
	r.mu.Unlock()
	slices.SortFunc(due, func(a, b change) int { return strings.Compare(a.member.Name, b.member.Name) })
	for _, c := range due {
		if err := r.handle(ctx, c.member, c.kind); err != nil && ctx.Err() == nil {
			r.log.Warn("cannot bring the cluster in line with a member, will retry", "member", c.member.Name, "error", err)
			r.mu.Lock()
			if _, newer := r.pending[c.member.Name]; !newer {
				c.due = time.Now().Add(time.Second)
				r.pending[c.member.Name] = c
			}
			r.mu.Unlock()
			if next == 0 || next > time.Second {
				next = time.Second
			}
		}
	}
	return next
}

// all compares every member and every node.
func (r *reconciler) all(ctx context.Context) {
	defer metricReconcile.Since(time.Now())
	members := r.cfg.Members()
	known := map[string]bool{}
	for _, o := range members {
		known[strings.ToLower(o.Name)] = true
		kind := gossip.Joined
		switch o.Status {
		case gossip.Failed:
			kind = gossip.Lost
		case gossip.Left:
			kind = gossip.Departed
		case gossip.Leaving:
			continue
		}
		if err := r.handle(ctx, o, kind); err != nil && ctx.Err() == nil {
			r.log.Warn("cannot bring the cluster in line with a member", "member", o.Name, "error", err)
		}
		if ctx.Err() != nil {
			return
		}
	}
	if err := r.reap(ctx, known); err != nil && ctx.Err() == nil {
		r.log.Warn("cannot reap nodes", "error", err)
	}
}

// reap removes nodes that gossip once knew and has forgotten. A node must be missing at two comparisons in a row: right
// after a start, gossip does not know everybody yet.
func (r *reconciler) reap(ctx context.Context, known map[string]bool) error {
	reply, err := catalog.ChecksCall.Call(ctx, r.l.Calls, &catalog.ChecksRequest{State: "any"})
	if err != nil {
		return err
	}
	missing := map[string]bool{}
	for _, c := range reply.Checks {
		if c.CheckID != catalog.SerfCheckID || c.PeerName != "" || known[strings.ToLower(c.Node)] {
			continue
		}
		missing[c.Node] = true
		if r.missing[c.Node] {
			r.log.Info("removing a node gossip has forgotten", "node", c.Node)
			if err := r.deregister(ctx, c.Node); err != nil {
				return err
			}
		}
	}
	r.missing = missing
	return nil
}

func (r *reconciler) handle(ctx context.Context, o gossip.Member, kind gossip.EventKind) error {
	defer metricMember.Since(time.Now())
	switch kind {
	case gossip.Joined, gossip.Updated:
		return r.alive(ctx, o)
	case gossip.Lost:
		return r.failed(ctx, o)
	default:
		return r.left(ctx, o, kind)
	}
}

func (r *reconciler) node(ctx context.Context, name string) (*catalog.NodeServicesReply, error) {
	return catalog.NodeServicesCall.Call(ctx, r.l.Calls, &catalog.NodeServicesRequest{Node: name, WithChecks: true})
}

// alive sees to it that a member is in Raft, if it is a server, and registered as passing.
func (r *reconciler) alive(ctx context.Context, o gossip.Member) error {
	s, isServer := gossip.ParseServer(o)
	if isServer && s.Datacenter == r.cfg.Datacenter {
		if err := r.addPeer(s); err != nil {
			return err
		}
	}
	now, err := r.node(ctx, o.Name)
	if err != nil {
		return err
	}
	id := strings.ToLower(o.Tags["id"])
	req := &catalog.RegisterRequest{
		Target: read.Target{Datacenter: r.cfg.Datacenter}, Node: o.Name, ID: id, Address: o.Addr.String(),
		Check: &catalog.Check{
			Node: o.Name, CheckID: catalog.SerfCheckID, Name: catalog.SerfCheckName, Status: catalog.Passing, Output: catalog.SerfAliveOutput,
		},
	}
	// An agent's own name is looked up as an ID prefix too: make sure it is the node of this name.
	found := now.Node != nil && strings.EqualFold(now.Node.Node, o.Name)
	switch own := r.cfg.Node; {
	case found:
		req.TaggedAddresses, req.NodeMeta, req.Locality = now.Node.TaggedAddresses, now.Node.Meta, now.Node.Locality
	case own != nil && id == own.ID && o.Name == own.Node:
		req.TaggedAddresses, req.NodeMeta, req.Locality = own.TaggedAddresses, own.Meta, own.Locality
	default:
		if build, _, _ := strings.Cut(o.Tags["build"], ":"); build != "" {
			req.NodeMeta = map[string]string{"consul-version": build}
		}
	}
	// The agent itself may register its node meanwhile, with more than is known here: only an ID or address that is wrong
	// is worth writing over that.
	req.SkipNodeUpdate = !found || now.Node.ID == id && now.Node.Address == req.Address
	if isServer {
		req.Service = serverService(o, s)
	}
	if found && now.Node.ID == id && now.Node.Address == req.Address && isPassing(now.Checks) &&
		(req.Service == nil || slices.ContainsFunc(now.Services, func(have *catalog.Service) bool { return sameServer(have, req.Service) })) {
		return nil
	}
	r.log.Info("member is alive", "member", o.Name, "address", req.Address)
	_, err = catalog.RegisterCall.Call(ctx, r.l.Calls, req)
	return err
}

func isPassing(checks []*catalog.Check) bool {
	return slices.ContainsFunc(checks, func(c *catalog.Check) bool {
		return c.CheckID == catalog.SerfCheckID && c.Status == catalog.Passing && c.Output == catalog.SerfAliveOutput
	})
}

// serverService is the instance every server is registered as.
func serverService(o gossip.Member, s gossip.Server) *catalog.Service {
	meta := map[string]string{
		"non_voter": strconv.FormatBool(s.ReadReplica), "read_replica": strconv.FormatBool(s.ReadReplica), "raft_version": strconv.Itoa(s.RaftVersion), "version": s.Build,
		"serf_protocol_current": strconv.Itoa(int(o.ProtocolCur)), "serf_protocol_min": strconv.Itoa(int(o.ProtocolMin)),
		"serf_protocol_max": strconv.Itoa(int(o.ProtocolMax)),
	}
	if s.GRPCPort > 0 {
		meta["grpc_port"] = strconv.Itoa(s.GRPCPort)
	}
	if s.GRPCTLSPort > 0 {
		meta["grpc_tls_port"] = strconv.Itoa(s.GRPCTLSPort)
	}
	return &catalog.Service{
		ID: catalog.ServerServiceName, Service: catalog.ServerServiceName, Port: int(s.Addr.Port()), Tags: []string{},
		Meta: meta, Weights: &catalog.Weights{Passing: 1, Warning: 1},
	}
}

func sameServer(a, b *catalog.Service) bool {
	return a.ID == b.ID && a.Service == b.Service && a.Port == b.Port && a.Address == b.Address && maps.Equal(a.Meta, b.Meta)
}

// failed makes a member's node critical, unless it is alive again.
func (r *reconciler) failed(ctx context.Context, o gossip.Member) error {
	for _, now := range r.cfg.Members() {
		if now.Name == o.Name && now.Status != gossip.Failed {
			return nil
		}
	}
	now, err := r.node(ctx, o.Name)
	if err != nil {
		return err
	}
	if now.Node == nil || !strings.EqualFold(now.Node.Node, o.Name) {
		return nil
	}
	for _, c := range now.Checks {
		if c.CheckID == catalog.SerfCheckID && c.Status == catalog.Critical {
			return nil
		}
	}
	r.log.Info("member failed", "member", o.Name)
	_, err = catalog.RegisterCall.Call(ctx, r.l.Calls, &catalog.RegisterRequest{
		Target: read.Target{Datacenter: r.cfg.Datacenter}, Node: o.Name, ID: now.Node.ID, Address: now.Node.Address, SkipNodeUpdate: true,
		Check: &catalog.Check{
			Node: o.Name, CheckID: catalog.SerfCheckID, Name: catalog.SerfCheckName, Status: catalog.Critical, Output: catalog.SerfFailedOutput,
		},
	})
	return err
}

// left removes a member from Raft and the catalog.
func (r *reconciler) left(ctx context.Context, o gossip.Member, kind gossip.EventKind) error {
	if o.Name == r.cfg.Name {
		r.log.Debug("not removing this server's own node")
		return nil
	}
	// It may have come back since.
	for _, now := range r.cfg.Members() {
		if now.Name == o.Name && now.Status != gossip.Left {
			return nil
		}
	}
	if s, ok := gossip.ParseServer(o); ok && s.Datacenter == r.cfg.Datacenter {
		members, _, err := r.cfg.Raft.Members()
		if err != nil {
			return err
		}
		for _, p := range members {
			if p.ID == s.ID {
				r.log.Info("removing a server that left", "server", s.Name)
				if err := r.cfg.Raft.Remove(s.ID); err != nil {
					return err
				}
			}
		}
	}
	now, err := r.node(ctx, o.Name)
	if err != nil || now.Node == nil || !strings.EqualFold(now.Node.Node, o.Name) {
		return err
	}
	r.log.Info("member left", "member", o.Name, "forgotten", kind == gossip.Reaped)
	return r.deregister(ctx, o.Name)
}

func (r *reconciler) deregister(ctx context.Context, node string) error {
	_, err := catalog.DeregisterCall.Call(ctx, r.l.Calls, &catalog.DeregisterRequest{
		Target: read.Target{Datacenter: r.cfg.Datacenter}, Node: node,
	})
	return err
}

var errTwoBootstraps = errors.New("two servers are configured with bootstrap")

// addPeer sees to it that a server is a member of Raft, under its present address.
func (r *reconciler) addPeer(s gossip.Server) error {
	if s.Bootstrap && r.cfg.Bootstrap && s.ID != r.cfg.ID {
		r.log.Error("another server makes clusters by itself; it is not added", "server", s.Name)
		return errTwoBootstraps
	}
	members, _, err := r.cfg.Raft.Members()
	if err != nil {
		return err
	}
	address := s.Addr.String()
	for _, p := range members {
		switch {
		case p.ID == s.ID && p.Address == address:
			return nil
		case p.ID == s.ID:
			r.log.Info("server has another address", "server", s.Name, "address", address, "before", p.Address)
			if p.Voter {
				return r.cfg.Raft.AddVoter(s.ID, address)
			}
			return r.cfg.Raft.AddNonvoter(s.ID, address)
		case p.Address == address && r.gone(p.ID):
			r.log.Info("server replaces one at the same address", "server", s.Name, "address", address, "id", s.ID, "before", p.ID)
			if err := r.cfg.Raft.Remove(p.ID); err != nil {
				return err
			}
		}
	}
	r.log.Info("adding a server", "server", s.Name, "address", address)
	return r.cfg.Raft.AddNonvoter(s.ID, address)
}

// gone reports whether a server that Raft has at another's address is really no longer there.
func (r *reconciler) gone(id string) bool {
	if id == r.cfg.ID {
		return false
	}
	for _, o := range r.cfg.Members() {
		if s, ok := gossip.ParseServer(o); ok && s.ID == id && s.Status == gossip.Alive {
			return false // it has moved: its own entry will be corrected
		}
	}
	return true
}
