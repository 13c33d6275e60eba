package server

import (
	"context"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/gossip"
)

// Metrics of this package, all gauges that are set every few seconds. Those of the state and of members have the label
// datacenter.
//
//	server.isLeader                        1 on the leader, else 0
//	raft.applied_index, raft.last_index    of this server's log
//	autopilot.healthy                      1 while all servers are; on the leader
//	autopilot.failure_tolerance            servers that may fail; on the leader
//	state.nodes, state.services            in the catalog; services by distinct names
//	state.service_instances
//	state.billable_service_instances       those of ordinary kind, without the servers' own
//	state.connect_instances{kind}          proxies, gateways and native instances
//	state.config_entries{kind}
//	members.clients, members.servers       alive members of gossip
//	mesh.active-root-ca.expiry             seconds until the active root of the mesh expires

// reportEvery is the time between two reports.
const reportEvery = 9 * time.Second

// report sets the gauges until ctx ends.
func (s *Server) report(ctx context.Context) error {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.reportOnce()
		}
	}
}

func (s *Server) reportOnce() {
	s.dispatcher.Report()
	leading := float32(0)
	if status, _ := s.raft.Status(); status.Elected {
		leading = 1
		if health, ok := s.membership.Health(); ok {
			healthy := float32(0)
			if health.Healthy {
				healthy = 1
			}
			metrics.SetGauge([]string{"autopilot", "healthy"}, healthy)
			metrics.SetGauge([]string{"autopilot", "failure_tolerance"}, float32(health.FailureTolerance))
		}
	}
	metrics.SetGauge([]string{"server", "isLeader"}, leading)
	metrics.SetGauge([]string{"raft", "applied_index"}, float32(s.fsm.Applied()))
	metrics.SetGauge([]string{"raft", "last_index"}, float32(s.raft.Progress().LastIndex))

	dc := metrics.Label{Name: "datacenter", Value: s.cfg.Datacenter}
	set := func(n int, labels []metrics.Label, name ...string) {
		metrics.SetGaugeWithLabels(name, float32(n), append(labels, dc))
	}
	v := s.store.View()
	_, usage := v.Usage()
	set(usage.Nodes, nil, "state", "nodes")
	set(usage.Services, nil, "state", "services")
	set(usage.ServiceInstances, nil, "state", "service_instances")
	set(usage.BillableServiceInstance, nil, "state", "billable_service_instances")
	for kind, n := range usage.MeshInstances {
		set(n, []metrics.Label{{Name: "kind", Value: kind}}, "state", "connect_instances")
	}
	for _, kind := range entry.Kinds() {
		_, entries := v.Entries(kind)
		set(len(entries), []metrics.Label{{Name: "kind", Value: string(kind)}}, "state", "config_entries")
	}
	clients, servers := 0, 0
	for _, m := range s.pool.Members() {
		switch {
		case m.Status != gossip.Alive:
		case m.Tags["role"] == gossip.RoleServer:
			servers++
		default:
			clients++
		}
	}
	set(clients, nil, "members", "clients")
	set(servers, nil, "members", "servers")
	_, roots := v.CARoots()
	for _, r := range roots {
		if r.Active {
			metrics.SetGauge([]string{"mesh", "active-root-ca", "expiry"}, float32(time.Until(r.NotAfter).Seconds()))
		}
	}
}
