package httpapi

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) operatorRoutes() []endpoint {
	return []endpoint{
		{"/v1/operator/raft/configuration", "GET", s.raftConfiguration},
		{"/v1/operator/raft/peer", "DELETE", s.raftPeer},
		{"/v1/operator/raft/transfer-leader", "POST", s.raftTransferLeader},
		{"/v1/operator/autopilot/configuration", "GET,PUT", s.autopilotConfiguration},
		{"/v1/operator/autopilot/health", "GET", s.autopilotHealth},
		{"/v1/operator/autopilot/state", "GET", s.autopilotState},
		{"/v1/operator/keyring", "GET,POST,PUT,DELETE", s.keyring},
		{"/v1/operator/join-token", "PUT", s.joinToken},
		{"/v1/operator/usage", "GET", s.usage},
	}
}

func (s *Server) raftConfiguration(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := operator.RaftConfigurationOf(r.Context(), s.caller, &operator.StatusRequest{Target: o.Target}, query(w).has("stale"))
	if err != nil {
		return nil, err
	}
	if resp.Servers == nil {
		return &operator.RaftConfiguration{Servers: []*operator.RaftServer{}, Index: resp.Index}, nil
	}
	return resp, nil
}

func (s *Server) raftPeer(w http.ResponseWriter, r *http.Request) (any, error) {
	q := query(w)
	id, hasID := q.lookup("id")
	address, hasAddress := q.lookup("address")
	switch {
	case !hasID && !hasAddress:
		return nil, wireerr.BadRequest("Must specify either ?id with the server's ID or ?address with IP:port of peer to remove")
	case hasID && hasAddress:
		return nil, wireerr.BadRequest("Must specify only one of ?id or ?address")
	}
	_, err := operator.RemovePeerCall.Call(r.Context(), s.caller,
		&operator.RemovePeerRequest{Target: s.target(w, r), ID: id, Address: address})
	return nil, err
}

func (s *Server) raftTransferLeader(w http.ResponseWriter, r *http.Request) (any, error) {
	req := &operator.TransferLeaderRequest{ID: query(w).get("id")}
	req.Token = s.token(w, r) // it knows no other datacenter
	if _, err := operator.TransferLeaderCall.Call(r.Context(), s.caller, req); err != nil {
		return nil, err
	}
	return struct{ Success bool }{true}, nil
}

func (s *Server) autopilotConfiguration(w http.ResponseWriter, r *http.Request) (any, error) {
	if r.Method == http.MethodPut {
		return s.setAutopilotConfiguration(w, r)
	}
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	o.MinIndex = 0 // it does not block
	resp, err := ask(s, r, operator.AutopilotConfigCall, &operator.AutopilotConfigRequest{Options: o})
	if err != nil {
		return nil, err
	}
	return resp.Config, nil
}

func (s *Server) setAutopilotConfiguration(w http.ResponseWriter, r *http.Request) (any, error) {
	req := &operator.SetAutopilotConfigRequest{Target: s.target(w, r), Config: operator.DefaultAutopilot()}
	if err := s.decodeRaw(r, &req.Config, true); err != nil {
		if wireerr.Carried(err) != 0 {
			return nil, err
		}
		return nil, wireerr.BadRequest("Error parsing autopilot config: %v", err)
	}
	req.Config.CreateIndex, req.Config.ModifyIndex = 0, 0
	index, cas, err := uintParam(query(w), "cas")
	if err != nil {
		return nil, wireerr.BadRequest("Error parsing cas value: %v", err)
	}
	req.CAS, req.Config.ModifyIndex = cas, index
	resp, err := operator.SetAutopilotConfigCall.Call(r.Context(), s.caller, req)
	if err != nil {
		return nil, err
	}
	return resp.OK || !cas, nil
}

// autopilotServer is the form of a server in autopilot/health.
type autopilotServer struct {
	ID, Name, Address, SerfStatus, Version string
	Leader                                 bool
	LastContact                            string
	LastTerm, LastIndex                    uint64
	Healthy, Voter                         bool
	StableSince                            string // RFC 3339, whole seconds
}

func (s *Server) autopilotHealth(w http.ResponseWriter, r *http.Request) (any, error) {
	resp, err := operator.HealthCall.Call(r.Context(), s.caller, &operator.StatusRequest{Target: s.target(w, r)})
	if err != nil {
		return nil, err
	}
	out := struct {
		Healthy          bool
		FailureTolerance int
		Servers          []autopilotServer
	}{Healthy: resp.Healthy, FailureTolerance: resp.FailureTolerance}
	for _, h := range resp.Servers {
		out.Servers = append(out.Servers, autopilotServer{
			h.ID, h.Name, h.Address, h.SerfStatus, h.Version, h.Leader, h.LastContact.String(), h.LastTerm, h.LastIndex,
			h.Healthy, h.Voter, h.StableSince.UTC().Format(time.RFC3339),
		})
	}
	if !resp.Healthy {
		return statusValue{http.StatusTooManyRequests, out}, nil
	}
	return out, nil
}

// autopilotMember is the form of a server in autopilot/state.
type autopilotMember struct {
	ID, Name, Address, NodeStatus, Version string
	LastContact                            string
	LastTerm, LastIndex                    uint64
	Healthy                                bool
	StableSince                            time.Time
	RedundancyZone                         string `json:",omitempty"`
	UpgradeVersion                         string `json:",omitempty"`
	ReadReplica                            bool
	Status                                 operator.ServerStatus
	Meta                                   map[string]string
	NodeType                               operator.ServerType
}

func (s *Server) autopilotState(w http.ResponseWriter, r *http.Request) (any, error) {
	resp, err := operator.StateCall.Call(r.Context(), s.caller, &operator.StatusRequest{Target: s.target(w, r)})
	if err != nil {
		return nil, err
	}
	out := struct {
		Healthy                    bool
		FailureTolerance           int
		OptimisticFailureTolerance int
		Servers                    map[string]autopilotMember
		Leader                     string
		Voters                     []string
		ReadReplicas               []string                  `json:",omitempty"`
		RedundancyZones            map[string]*operator.Zone `json:",omitempty"`
		Upgrade                    *operator.Upgrade         `json:",omitempty"`
	}{
		resp.Healthy, resp.FailureTolerance, resp.OptimisticFailureTolerance, map[string]autopilotMember{}, resp.Leader, resp.Voters,
		resp.ReadReplicas, resp.RedundancyZones, resp.Upgrade,
	}
	for id, m := range resp.Servers {
		version := ""
		if resp.Upgrade != nil {
			version = m.UpgradeVersion
		}
		out.Servers[id] = autopilotMember{
			ID: m.ID, Name: m.Name, Address: m.Address, NodeStatus: m.SerfStatus, Version: m.Version, LastContact: m.LastContact.String(),
			LastTerm: m.LastTerm, LastIndex: m.LastIndex, Healthy: m.Healthy, StableSince: m.StableSince.UTC(), Status: m.Status,
			RedundancyZone: m.RedundancyZone, UpgradeVersion: version, ReadReplica: m.ReadReplica, Meta: m.Meta, NodeType: cmp.Or(m.Type, operator.TypeVoter),
		}
	}
	return out, nil
}

// maxRelayFactor is how many members may relay the answers to a keyring request.
const maxRelayFactor = 5

var keyringOps = map[string]operator.KeyringOp{
	http.MethodGet: operator.KeyringList, http.MethodPost: operator.KeyringInstall, http.MethodPut: operator.KeyringUse,
	http.MethodDelete: operator.KeyringRemove,
}

func (s *Server) keyring(w http.ResponseWriter, r *http.Request) (any, error) {
	q := query(w)
	req := &operator.KeyringRequest{Op: keyringOps[r.Method]}
	req.Token = s.token(w, r)
	if v := q.get("relay-factor"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, wireerr.BadRequest("Error parsing relay factor: %v", err)
		}
		if n < 0 || n > maxRelayFactor {
			return nil, wireerr.BadRequest("Invalid relay-factor: Relay factor must be in range: [0, %d]", maxRelayFactor)
		}
		req.RelayFactor = uint8(n)
	}
	if v := q.get("local-only"); v != "" {
		local, err := strconv.ParseBool(v)
		if err != nil {
			return nil, wireerr.BadRequest("Error parsing local-only: %v", err)
		}
		if local && req.Op != operator.KeyringList {
			return nil, wireerr.BadRequest("Invalid use of local-only: local-only can only be set for list requests")
		}
		req.LocalOnly = local
	}
	if req.Op != operator.KeyringList {
		var body struct{ Key string }
		if err := s.decode(r, &body, false); err != nil {
			return nil, err
		}
		req.Key = body.Key
	}
	resp, err := operator.KeyringCall.Call(r.Context(), s.caller, req)
	if err != nil {
		return nil, err
	}
	if err := keyringError(resp.Responses); err != nil {
		return nil, err
	}
	if req.Op != operator.KeyringList {
		return nil, nil
	}
	if resp.Responses == nil {
		return []*operator.KeyringResponse{}, nil
	}
	return resp.Responses, nil
}

// keyringError tells of all pools and members that failed at once, nil if none did.
func keyringError(responses []*operator.KeyringResponse) error {
	var faults []string
	for _, resp := range responses {
		if resp.Error == "" {
			continue
		}
		pool := resp.Datacenter + " (LAN)"
		if resp.WAN {
			pool = "WAN"
		}
		faults = append(faults, pool+" error: "+resp.Error)
		sortedKeys(resp.Messages, func(member, message string) { faults = append(faults, member+": "+message) })
	}
	return manyErrors(faults)
}

// manyErrors is the form several errors are told in at once.
func manyErrors(faults []string) error {
	if len(faults) == 0 {
		return nil
	}
	noun := "errors"
	if len(faults) == 1 {
		noun = "error"
	}
	return wireerr.Errorf(http.StatusInternalServerError, "%d %s occurred:\n\t* %s\n\n", len(faults), noun, strings.Join(faults, "\n\t* "))
}

// usageKinds are the kinds of instances that usage counts one by one, the plain ones aside.
var usageKinds = []string{"api-gateway", "connect-native", "connect-proxy", "ingress-gateway", "mesh-gateway", "terminating-gateway"}

func (s *Server) usage(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	o.Datacenter = "" // it knows no other, but all with global
	resp, err := ask(s, r, operator.UsageCall, &operator.UsageRequest{Options: o})
	if err != nil {
		return nil, err
	}
	if query(w).has("global") {
		if resp, err = s.usageElsewhere(r.Context(), resp, o.Token); err != nil {
			return nil, err
		}
	}
	s.setQueryMeta(w, &resp.Meta)
	return appendFunc(func(dst []byte) []byte {
		o := object{b: append(dst, `{"Usage":{`...)}
		sortedKeys(resp.Usage, func(dc string, u operator.Usage) {
			if o.begun {
				o.b = append(o.b, ',')
			}
			o.begun = true
			o.b = appendUsage(append(appendString(o.b, dc), ':'), &u)
		})
		return append(appendMetaFields(append(o.b, '}'), &resp.Meta, max(resp.Index, 1)), '}')
	}), nil
}

// usageElsewhere adds the counts of every other datacenter that answers.
func (s *Server) usageElsewhere(ctx context.Context, here *operator.UsageReply, token string) (*operator.UsageReply, error) {
	known, err := catalog.DatacentersCall.Call(ctx, s.caller, &catalog.DatacentersRequest{})
	if err != nil {
		return nil, err
	}
	all := *here
	all.Usage = maps.Clone(here.Usage)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, dc := range known.Datacenters {
		if _, own := here.Usage[dc]; own {
			continue
		}
		wg.Go(func() {
			req := &operator.UsageRequest{Options: read.Options{Target: read.Target{Datacenter: dc, Token: token}}}
			there, err := operator.UsageCall.Call(ctx, s.caller, req)
			if err != nil {
				s.log.Debug("a datacenter does not tell its usage", "datacenter", dc, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(all.Usage, there.Usage)
		})
	}
	wg.Wait()
	return &all, nil
}

func appendUsage(dst []byte, u *operator.Usage) []byte {
	o := object{b: append(dst, '{')}
	o.num("Nodes", u.Nodes)
	o.num("Services", u.Services)
	o.num("ServiceInstances", u.ServiceInstances)
	o.name("ConnectServiceInstances")
	kinds := object{b: append(o.b, '{')}
	for _, kind := range usageKinds {
		kinds.num(kind, u.ConnectServiceInstances[kind])
	}
	sortedKeys(u.ConnectServiceInstances, func(kind string, n int) {
		if !slices.Contains(usageKinds, kind) {
			kinds.num(kind, n)
		}
	})
	o.b = append(kinds.b, '}')
	o.num("BillableServiceInstances", u.BillableServiceInstances)
	return append(o.b, '}')
}
