package transport

// Names of the metrics of this package, all counters.
var (
	// metricLimited counts calls over the request limits. Labels: limit_type, "global/read" or "global/write"; op, the
	// name of the call; mode, "permissive" or "enforcing".
	metricLimited = []string{"rpc", "rate_limit", "exceeded"}
	// metricLimitUnsaid counts those of them that the log does not name.
	metricLimitUnsaid = []string{"rpc", "rate_limit", "log_dropped"}
)
