package membership

import "github.com/sarnmesh/sarn/internal/measure"

// Metrics of this package, summaries of milliseconds on the leader.
var (
	// metricReconcile is of bringing the catalog in line with all members of gossip, metricMember with one.
	metricReconcile = measure.NewTimer("leader.reconcile")
	metricMember    = measure.NewTimer("leader.reconcileMember")
)
