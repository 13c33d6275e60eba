package server

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/trust"
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
//	state.kv_entries, state.peerings
//	session_ttl.active                     sessions that end unless they are renewed; on the leader
//	mesh.active-root-ca.expiry             seconds until the active root of the mesh expires
//	mesh.active-signing-ca.expiry          the same of the certificate that leaves are signed with

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
	if index := v.KeyIndex(); index != s.keysAt || index == 0 {
		s.keysAt, s.keys = index, v.CountKeys()
	}
	set(s.keys, nil, "state", "kv_entries")
	_, peerings := v.Peerings()
	set(len(peerings), nil, "state", "peerings")
	metrics.SetGauge([]string{"session_ttl", "active"}, float32(s.sessions.Active()))
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
			left := float32(time.Until(r.NotAfter).Seconds())
			metrics.SetGauge([]string{"mesh", "active-root-ca", "expiry"}, left)
			if end, ok := signerEnds(r); ok {
				left = float32(time.Until(end).Seconds())
			}
			metrics.SetGauge([]string{"mesh", "active-signing-ca", "expiry"}, left)
		}
	}
}

// signerEnds returns when the certificate that leaves are signed with ends, if it is not the root itself.
func signerEnds(r *trust.Root) (time.Time, bool) {
	if len(r.IntermediateCerts) == 0 {
		return time.Time{}, false
	}
	block, _ := pem.Decode([]byte(r.IntermediateCerts[len(r.IntermediateCerts)-1]))
	if block == nil {
		return time.Time{}, false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, false
	}
	return cert.NotAfter, true
}
