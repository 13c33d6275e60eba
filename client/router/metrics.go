package router

// Names of the metrics of this package, all counters: calls to the servers, those over the agent's own rate, and those
// that failed.
var (
	metricCalls    = []string{"client", "rpc"}
	metricExceeded = []string{"client", "rpc", "exceeded"}
	metricFailed   = []string{"client", "rpc", "failed"}
)
