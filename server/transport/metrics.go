package transport

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-metrics"
)

// Names of the metrics of this package.
var (
	// metricRequests counts calls that came over the network, metricErrors those of them that failed.
	metricRequests = []string{"rpc", "request"}
	metricErrors   = []string{"rpc", "request_error"}
	// metricQueries counts reads answered here. metricBlocking is a gauge: how many wait for a change.
	metricQueries  = []string{"rpc", "query"}
	metricBlocking = []string{"rpc", "queries_blocking"}
	// metricLimited counts calls over the request limits. Labels: limit_type, "global/read" or "global/write"; op, the
	// name of the call; mode, "permissive" or "enforcing".
	metricLimited = []string{"rpc", "rate_limit", "exceeded"}
	// metricLimitUnsaid counts those of them that the log does not name.
	metricLimitUnsaid = []string{"rpc", "rate_limit", "log_dropped"}
)

// measured are the summaries, in milliseconds, of the time that calls of these names take on the server that does them.
var measured = map[string][]string{
	"Catalog.Register": {"catalog", "register"}, "Catalog.Deregister": {"catalog", "deregister"},
	"KV.Apply": {"kvs", "apply"}, "Txn.Apply": {"txn", "apply"}, "Txn.Read": {"txn", "read"},
	"Session.Create": {"session", "apply"}, "Session.Destroy": {"session", "apply"}, "Session.Renew": {"session", "renew"},
	"Query.Apply": {"prepared-query", "apply"}, "Query.Explain": {"prepared-query", "explain"},
	"Query.Execute": {"prepared-query", "execute"}, "Query.ExecuteRemote": {"prepared-query", "execute_remote"},
	"Intention.Upsert": {"intention", "apply"}, "Intention.Remove": {"intention", "apply"}, "Intention.Legacy": {"intention", "apply"},
	"ConfigEntry.Apply": {"config_entry", "apply"}, "ConfigEntry.Delete": {"config_entry", "delete"},
	"ConfigEntry.Get": {"config_entry", "get"}, "ConfigEntry.List": {"config_entry", "list"},
}

// measure notes how long a call has taken, if that is measured.
func measure(name string, began time.Time) {
	if key := measured[name]; key != nil {
		metrics.MeasureSince(key, began)
	}
}

// counts are kept here and told now and then: a call takes less time than telling of it.
type counts struct {
	requests, errors, queries atomic.Int64 // since they were last told
	blocking                  atomic.Int64
}

// Report tells the metrics that are counted. Call it every few seconds.
func (d *Dispatcher) Report() {
	for _, c := range []struct {
		name  []string
		since *atomic.Int64
	}{{metricRequests, &d.counts.requests}, {metricErrors, &d.counts.errors}, {metricQueries, &d.counts.queries}} {
		if n := c.since.Swap(0); n > 0 {
			metrics.IncrCounter(c.name, float32(n))
		}
	}
	metrics.SetGauge(metricBlocking, float32(d.counts.blocking.Load()))
}

// Blocked returns how many reads wait for a change at present.
func (d *Dispatcher) Blocked() int { return int(d.counts.blocking.Load()) }
