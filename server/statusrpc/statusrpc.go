// Package statusrpc answers the calls of those who run a cluster (catalog/operator) and fires user events
// (catalog/event): what is asked of the servers themselves rather than of the replicated state.
package statusrpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/membership"
	"github.com/sarnmesh/sarn/server/transport"
)

// StatsCall asks a server how far it is; only servers may.
var StatsCall = rpc.Local[StatsRequest, membership.Stats]("Status.Stats")

// A StatsRequest asks for Stats.
type StatsRequest struct{}

// A Config is what the handlers work with.
type Config struct {
	ID         string // node ID of this server
	Raft       *consensus.Raft
	Pool       *gossip.Pool
	WAN        *gossip.Pool // nil when this server is in none
	Elsewhere  Elsewhere    // nil with it
	Membership func() *membership.Membership
	// Autopilot is the configuration used until one is stored.
	Autopilot operator.AutopilotConfig
	// TempDir holds snapshots while they are checked; empty for the system's.
	TempDir string
	Logger  hclog.Logger
}

// Elsewhere makes calls to other datacenters.
type Elsewhere interface {
	// Datacenters returns those known, this one first.
	Datacenters() []string
	Call(ctx context.Context, datacenter, method string, req, resp any) error
}

type handlers struct{ cfg Config }

// Register adds the handlers and appliers.
func Register(r *transport.Registry, a *fsm.Appliers, cfg Config) {
	h := &handlers{cfg}
	fsm.Handle(a, fsm.Autopilot, applyAutopilot)
	transport.Handle(r, operator.LeaderCall, h.leader)
	transport.Handle(r, operator.PeersCall, h.peers)
	transport.HandleServers(r, StatsCall, h.stats)
	transport.Handle(r, operator.RaftConfigurationCall, h.configuration)
	transport.Handle(r, operator.RaftConfigurationStaleCall, h.configuration)
	transport.Handle(r, operator.RemovePeerCall, h.removePeer)
	transport.Handle(r, operator.TransferLeaderCall, h.transferLeader)
	transport.HandleRead(r, operator.AutopilotConfigCall, h.autopilot)
	transport.Handle(r, operator.SetAutopilotConfigCall, h.setAutopilot)
	transport.Handle(r, operator.HealthCall, h.health)
	transport.Handle(r, operator.StateCall, h.state)
	transport.Handle(r, operator.KeyringCall, h.keyring)
	transport.HandleRead(r, operator.UsageCall, h.usage)
	transport.HandleStream(r, operator.SaveSnapshotCall, h.save)
	transport.HandleStream(r, operator.RestoreSnapshotCall, h.restore)
	transport.Handle(r, event.FireCall, h.fire)
}

func (h *handlers) leader(context.Context, *transport.Call, *operator.StatusRequest) (*operator.LeaderReply, acl.Permit, error) {
	s, _ := h.cfg.Raft.Status()
	address := s.LeaderAddress
	if a, ok := h.cfg.Membership().AddressOf(s.LeaderID); ok {
		address = a
	}
	return &operator.LeaderReply{Address: address}, acl.Open(), nil
}

func (h *handlers) peers(context.Context, *transport.Call, *operator.StatusRequest) (*operator.PeersReply, acl.Permit, error) {
	reply := &operator.PeersReply{Peers: []string{}}
	members, _, err := h.cfg.Raft.Members()
	if err != nil {
		return reply, acl.Open(), nil // not started yet: it has none
	}
	for _, p := range members {
		reply.Peers = append(reply.Peers, h.addressOf(p))
	}
	return reply, acl.Open(), nil
}

// addressOf returns where a member is now.
func (h *handlers) addressOf(p consensus.Server) string {
	if a, ok := h.cfg.Membership().AddressOf(p.ID); ok {
		return a
	}
	return p.Address
}

func (h *handlers) stats(context.Context, *transport.Call, *StatsRequest) (*membership.Stats, acl.Permit, error) {
	p := h.cfg.Raft.Progress()
	s := &membership.Stats{LastContact: -1, LastTerm: p.LastTerm, LastIndex: p.LastIndex}
	if since, heard := h.cfg.Raft.LastContact(); heard {
		s.LastContact = since
	}
	return s, acl.Open(), nil
}

func (h *handlers) configuration(_ context.Context, c *transport.Call, _ *operator.StatusRequest) (*operator.RaftConfiguration, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Read, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	members, index, err := h.cfg.Raft.Members()
	if err != nil {
		return nil, acl.Permit{}, err
	}
	known := map[string]gossip.Server{}
	for _, o := range h.cfg.Pool.Members() {
		if s, ok := gossip.ParseServer(o); ok && s.Datacenter == c.Datacenter {
			known[s.ID] = s
		}
	}
	status, _ := h.cfg.Raft.Status()
	health, _ := h.cfg.Membership().Health()
	reply := &operator.RaftConfiguration{Index: index, Servers: []*operator.RaftServer{}}
	for _, p := range members {
		s := &operator.RaftServer{
			ID: p.ID, Node: "(unknown)", Address: h.addressOf(p), Leader: p.ID == status.LeaderID, ProtocolVersion: "unknown", Voter: p.Voter,
		}
		if g, ok := known[p.ID]; ok {
			s.Node, s.ProtocolVersion = g.Name, strconv.Itoa(g.RaftVersion)
		}
		if seen := health.Servers[p.ID]; seen != nil {
			s.LastIndex = seen.LastIndex
		}
		reply.Servers = append(reply.Servers, s)
	}
	return reply, permit, nil
}

func (h *handlers) removePeer(_ context.Context, c *transport.Call, req *operator.RemovePeerRequest) (*struct{}, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	members, _, err := h.cfg.Raft.Members()
	if err != nil {
		return nil, acl.Permit{}, err
	}
	for _, p := range members {
		if req.ID != "" && p.ID == req.ID || req.ID == "" && (p.Address == req.Address || h.addressOf(p) == req.Address) {
			h.cfg.Logger.Warn("removing a Raft member by an operator's request", "id", p.ID, "address", p.Address)
			return nil, permit, h.cfg.Raft.Remove(p.ID)
		}
	}
	if req.ID != "" {
		return nil, acl.Permit{}, fmt.Errorf("id %q was not found in the Raft configuration", req.ID)
	}
	return nil, acl.Permit{}, fmt.Errorf("address %q was not found in the Raft configuration", req.Address)
}

func (h *handlers) transferLeader(_ context.Context, c *transport.Call, req *operator.TransferLeaderRequest) (*struct{}, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if req.ID != "" {
		members, _, err := h.cfg.Raft.Members()
		if err != nil {
			return nil, acl.Permit{}, err
		}
		if !slices.ContainsFunc(members, func(p consensus.Server) bool { return p.ID == req.ID }) {
			return nil, acl.Permit{}, fmt.Errorf("Could not find address for server id %s", req.ID)
		}
		if req.ID == h.cfg.ID {
			return nil, acl.Permit{}, errors.New("cannot transfer leadership to itself")
		}
	}
	return nil, permit, h.cfg.Raft.Transfer(req.ID)
}

func (h *handlers) health(_ context.Context, c *transport.Call, _ *operator.StatusRequest) (*operator.Health, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Read, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	st, ok := h.cfg.Membership().Health()
	if !ok {
		return &operator.Health{}, permit, nil
	}
	reply := &operator.Health{Healthy: st.Healthy, FailureTolerance: st.FailureTolerance}
	for _, s := range h.withMeta(c, st.Servers) {
		reply.Servers = append(reply.Servers, &s.ServerHealth)
	}
	return reply, permit, nil
}

func (h *handlers) state(_ context.Context, c *transport.Call, _ *operator.StatusRequest) (*operator.State, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Read, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	st, _ := h.cfg.Membership().Health()
	servers := map[string]*operator.ServerState{}
	for _, s := range h.withMeta(c, st.Servers) {
		servers[s.ID] = s
	}
	st.Servers = servers
	return &st, permit, nil
}

// withMeta returns copies of the servers with the meta of their nodes, ordered by name.
func (h *handlers) withMeta(c *transport.Call, servers map[string]*operator.ServerState) []*operator.ServerState {
	var all []*operator.ServerState
	v := c.Store.View()
	for _, s := range servers {
		own := *s
		if n := v.Node(s.Name); n != nil {
			own.Meta = n.Meta
		}
		all = append(all, &own)
	}
	slices.SortFunc(all, func(a, b *operator.ServerState) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (h *handlers) usage(c *transport.Call, v *state.View, _ *operator.UsageRequest) (*operator.UsageReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Read, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	index, u := v.Usage()
	reply := &operator.UsageReply{Usage: map[string]operator.Usage{c.Datacenter: {
		Nodes: u.Nodes, Services: u.Services, ServiceInstances: u.ServiceInstances, ConnectServiceInstances: u.MeshInstances,
		BillableServiceInstances: u.BillableServiceInstance,
	}}}
	reply.Index = index
	return reply, permit, nil
}

func (h *handlers) fire(_ context.Context, c *transport.Call, req *event.FireRequest) (*struct{}, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Event, acl.Write, req.Event.Name)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if err := req.Event.Check(); err != nil {
		return nil, acl.Permit{}, err
	}
	name, payload, err := req.Event.Encode()
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if err := h.cfg.Pool.Fire(name, payload); err != nil {
		return nil, acl.Permit{}, fmt.Errorf("error broadcasting event: %w", err)
	}
	return nil, permit, nil
}

var keyOps = map[operator.KeyringOp]gossip.KeyOp{
	operator.KeyringList: gossip.ListKeys, operator.KeyringInstall: gossip.InstallKey,
	operator.KeyringUse: gossip.UseKey, operator.KeyringRemove: gossip.RemoveKey,
}

func (h *handlers) keyring(ctx context.Context, c *transport.Call, req *operator.KeyringRequest) (*operator.KeyringReply, acl.Permit, error) {
	access := acl.Write
	if req.Op == operator.KeyringList {
		access = acl.Read
	}
	permit, err := c.Authorizer.Require(acl.Keyring, access, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	op, ok := keyOps[req.Op]
	if !ok {
		return nil, acl.Permit{}, wireerr.BadRequest("unknown keyring operation %q", req.Op)
	}
	reply := &operator.KeyringReply{}
	if h.cfg.WAN != nil && !req.LocalOnly {
		wan := keysOf(h.cfg.WAN, op, req)
		wan.WAN, wan.Datacenter = true, c.Datacenter
		reply.Responses = append(reply.Responses, wan)
	}
	lan := keysOf(h.cfg.Pool, op, req)
	lan.Datacenter = c.Datacenter
	reply.Responses = append(reply.Responses, lan)
	if h.cfg.Elsewhere == nil || req.LocalOnly {
		return reply, permit, nil
	}
	for _, dc := range h.cfg.Elsewhere.Datacenters()[1:] {
		there := *req
		there.Datacenter, there.LocalOnly = dc, true
		var got operator.KeyringReply
		if err := h.cfg.Elsewhere.Call(ctx, dc, operator.KeyringCall.Name, &there, &got); err != nil {
			reply.Responses = append(reply.Responses, &operator.KeyringResponse{Datacenter: dc, Keys: map[string]int{}, PrimaryKeys: map[string]int{}, Error: err.Error()})
			continue
		}
		reply.Responses = append(reply.Responses, got.Responses...)
	}
	return reply, permit, nil
}

// keysOf has a pool's members do something about their keys.
func keysOf(pool *gossip.Pool, op gossip.KeyOp, req *operator.KeyringRequest) *operator.KeyringResponse {
	resp := &operator.KeyringResponse{Keys: map[string]int{}, PrimaryKeys: map[string]int{}}
	report, err := pool.Keys(op, req.Key, req.RelayFactor)
	if report != nil {
		resp.Messages, resp.NumNodes = report.Messages, report.Nodes
		if report.Keys != nil {
			resp.Keys = report.Keys
		}
		if report.PrimaryKeys != nil {
			resp.PrimaryKeys = report.PrimaryKeys
		}
	}
	if err != nil {
		resp.Error = err.Error()
	}
	return resp
}

// autopilotFact is the name under which the configuration is stored.
const autopilotFact = "autopilot"

// A setAutopilot command replaces the configuration; with CAS only at that index, where 0 matches no stored one; with
// First only where none is stored.
type setAutopilot struct {
	Config operator.AutopilotConfig
	CAS    bool
	Index  uint64
	First  bool
}

func applyAutopilot(tx *state.Tx, cmd *setAutopilot) (*operator.SetAutopilotConfigReply, error) {
	conf := cmd.Config
	conf.Indexes = catalog.Indexes{}
	data, err := rpc.Marshal(&conf)
	if err != nil {
		return nil, err
	}
	if cmd.First && tx.Fact(autopilotFact) != nil {
		return &operator.SetAutopilotConfigReply{}, nil
	}
	if cmd.CAS {
		return &operator.SetAutopilotConfigReply{OK: tx.CompareAndSetFact(autopilotFact, data, cmd.Index)}, nil
	}
	tx.SetFact(autopilotFact, data)
	return &operator.SetAutopilotConfigReply{OK: true}, nil
}

// StoredAutopilot returns the stored configuration, false when there is none.
func StoredAutopilot(v *state.View) (conf operator.AutopilotConfig, ok bool) {
	f := v.Fact(autopilotFact)
	if f == nil || rpc.Unmarshal(f.Data, &conf) != nil {
		return conf, false
	}
	conf.Indexes = f.Indexes
	return conf, true
}

func (h *handlers) autopilot(c *transport.Call, v *state.View, _ *operator.AutopilotConfigRequest) (*operator.AutopilotConfigReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Read, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	conf, ok := StoredAutopilot(v)
	if !ok {
		conf = h.cfg.Autopilot
	}
	reply := &operator.AutopilotConfigReply{Config: conf}
	reply.Index = conf.ModifyIndex
	return reply, permit, nil
}

func (h *handlers) setAutopilot(ctx context.Context, c *transport.Call, req *operator.SetAutopilotConfigRequest) (*operator.SetAutopilotConfigReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	value, err := c.Apply(ctx, permit, fsm.Autopilot, &setAutopilot{Config: req.Config, CAS: req.CAS, Index: req.Config.ModifyIndex})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return value.(*operator.SetAutopilotConfigReply), permit, nil
}

// StoreAutopilot stores the first configuration of a cluster, unless there is one.
func StoreAutopilot(ctx context.Context, store *state.Store, conf operator.AutopilotConfig,
	apply func(ctx context.Context, k fsm.Kind, req any) (any, error)) error {
	if _, ok := StoredAutopilot(store.View()); ok {
		return nil
	}
	_, err := apply(ctx, fsm.Autopilot, &setAutopilot{Config: conf, First: true})
	return err
}
