package rpcwire

import "github.com/sarnmesh/sarn/internal/measure"

// Metrics of this package.
var (
	// metricAccepted counts connections that came to a server's port, metricRaft those of them that are Raft's.
	metricAccepted = measure.NewCounter("rpc.accept_conn")
	metricRaft     = measure.NewCounter("rpc.raft_handoff")
)
