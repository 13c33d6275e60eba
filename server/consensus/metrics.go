package consensus

import (
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
)

// metricBarrier is a summary of the milliseconds that a new leader needs to have applied all that was committed before.
// The library measures the rest, as raft.*.
var metricBarrier = measure.NewTimer("leader.barrier")

// metricVerifier begins the names of counters of what a verified log finds.
const metricVerifier = "raft.logstore.verifier."

// walMetrics tells what the log on disk counts, as raft.wal.*: entries and bytes written and read, segments begun.
type walMetrics struct{}

// IncrementCounter implements the collector of the log.
func (walMetrics) IncrementCounter(name string, delta uint64) {
	measure.NewCounter("raft.wal." + name).Add(int64(delta))
}

// SetGauge implements the collector of the log.
func (walMetrics) SetGauge(name string, v uint64) {
	metrics.SetGauge([]string{"raft", "wal", name}, float32(v))
}
