package agent

import (
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/command/agent/telemetry"
)

// Names of metrics that the Prometheus form has from the start, with 0 or NaN, so that dashboards find them before
// anything has happened; parts of a name are separated by dots. Whoever measures declares what they mean.
const (
	knownGauges = `version runtime.num_goroutines runtime.alloc_bytes runtime.sys_bytes runtime.malloc_count runtime.free_count
		runtime.heap_objects runtime.total_gc_pause_ns runtime.total_gc_runs
		raft.commitNumLogs raft.peers raft.applied_index raft.last_index raft.fsm.lastRestoreDuration raft.leader.dispatchNumLogs
		raft.leader.oldestLogAge server.isLeader autopilot.healthy autopilot.failure_tolerance rpc.queries_blocking
		state.nodes state.services state.service_instances state.billable_service_instances state.connect_instances state.config_entries
		members.clients members.servers mesh.active-root-ca.expiry memberlist.health.score
		xds.server.streams xds.server.streamsUnauthenticated xds.server.idealStreamsMax agent.tls.cert.expiry cache.entries_count
		leaf-certs.entries_count state.kv_entries state.peerings session_ttl.active mesh.active-signing-ca.expiry
		grpc.server.connections grpc.server.streams feed.server.subscriptions feed.server.topics feed.client.subscriptions
		feed.client.open`
	knownCounters = `client.rpc client.rpc.exceeded client.rpc.failed rpc.request rpc.request_error rpc.query rpc.rate_limit.exceeded
		rpc.rate_limit.log_dropped raft.apply raft.barrier raft.verify_leader raft.restore raft.state.leader raft.state.candidate raft.state.follower
		raft.logstore.verifier.checkpoints_written raft.logstore.verifier.dropped_reports raft.logstore.verifier.ranges_verified
		raft.logstore.verifier.read_checksum_failures raft.logstore.verifier.write_checksum_failures
		raft.transition.heartbeat_timeout memberlist.msg.alive memberlist.msg.dead memberlist.msg.suspect memberlist.tcp.connect
		memberlist.tcp.accept memberlist.tcp.sent memberlist.udp.sent memberlist.udp.received memberlist.degraded.probe
		serf.member.join serf.member.left serf.member.failed serf.member.flap serf.events xds.server.streamDrained acl.token.cache_hit acl.token.cache_miss acl.blocked.node.registration
		acl.blocked.service.registration acl.blocked.check.registration acl.blocked.service.deregistration acl.blocked.check.deregistration
		dns.stale_queries cache.bypass cache.evict_expired cache.fetch_success cache.fetch_error catalog.service.query catalog.connect.query
		health.service.query rpc.accept_conn rpc.raft_handoff rpc.cross-dc grpc.server.request.count grpc.server.connection.count
		grpc.server.stream.count client.api.catalog_register client.api.success.catalog_register client.rpc.error.catalog_register
		telemetry.spans.sent telemetry.spans.dropped client.api.catalog_deregister client.api.success.catalog_deregister client.rpc.error.catalog_deregister
		client.api.catalog_datacenters client.api.success.catalog_datacenters client.rpc.error.catalog_datacenters
		client.api.catalog_nodes client.api.success.catalog_nodes client.rpc.error.catalog_nodes client.api.catalog_services
		client.api.success.catalog_services client.rpc.error.catalog_services client.api.catalog_service_nodes
		client.api.success.catalog_service_nodes client.rpc.error.catalog_service_nodes client.api.catalog_node_services
		client.api.success.catalog_node_services client.rpc.error.catalog_node_services client.api.catalog_node_service_list
		client.api.success.catalog_node_service_list client.rpc.error.catalog_node_service_list
		client.api.catalog_gateway_services client.api.success.catalog_gateway_services client.rpc.error.catalog_gateway_services
		feed.server.events feed.client.opened`
	knownSummaries = `runtime.gc_pause_ns acl.ResolveToken api.http catalog.register catalog.deregister kvs.apply txn.apply txn.read session.apply session.renew
		prepared-query.apply prepared-query.explain prepared-query.execute prepared-query.execute_remote intention.apply
		config_entry.apply config_entry.delete config_entry.get config_entry.list
		raft.commitTime raft.fsm.apply raft.fsm.enqueue raft.fsm.snapshot raft.fsm.restore raft.leader.dispatchLog raft.leader.lastContact
		raft.replication.appendEntries.rpc raft.replication.appendEntries.logs raft.replication.heartbeat raft.rpc.appendEntries
		raft.rpc.appendEntries.storeLogs raft.rpc.appendEntries.processLogs raft.rpc.requestVote raft.rpc.processHeartbeat
		raft.rpc.installSnapshot raft.snapshot.create raft.snapshot.takeSnapshot raft.snapshot.persist raft.thread.main.saturation
		raft.thread.fsm.saturation memberlist.gossip memberlist.probeNode memberlist.pushPullNode memberlist.queue.broadcasts
		serf.queue.Intent serf.queue.Event serf.queue.Query serf.snapshot.appendLine serf.snapshot.compact xds.server.streamStart
		dns.domain_query dns.ptr_query dns.query acl.token.upsert acl.token.delete acl.token.clone acl.policy.upsert acl.policy.delete
		acl.role.upsert acl.role.delete acl.bindingrule.upsert acl.bindingrule.delete acl.authmethod.upsert acl.authmethod.delete acl.login
		acl.logout session_ttl.invalidate fsm.register fsm.deregister fsm.kvs fsm.session fsm.acl fsm.acl.token fsm.acl.policy fsm.acl.role
		fsm.acl.bindingrule fsm.acl.authmethod fsm.tombstone fsm.coordinate.batch-update fsm.prepared-query fsm.txn fsm.autopilot
		fsm.config_entry fsm.ca fsm.system_metadata fsm.peering fsm.persist leader.barrier leader.reconcile leader.reconcileMember
		leader.reapTombstones rpc.consistentRead`
)

// known has a store show the metrics above from the start. Gauges carry the host's name unless it is empty.
func known(store *telemetry.Store, prefix, host string) {
	for _, k := range []struct {
		names  string
		before []string
		add    func(name string)
	}{{knownGauges, []string{prefix, host}, store.KnownGauge}, {knownCounters, []string{prefix}, store.KnownCounter}, {knownSummaries, []string{prefix}, store.KnownSummary}} {
		before := strings.Join(slices.DeleteFunc(k.before, func(s string) bool { return s == "" }), ".")
		for name := range strings.FieldsSeq(k.names) {
			if before != "" {
				name = before + "." + name
			}
			k.add(name)
		}
	}
}
