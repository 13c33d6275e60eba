package upstream

import "github.com/sarnmesh/sarn/connect/proxy/stats"

// Stats counts what happens with a cluster, under cluster.<name>.
type Stats struct {
	CxTotal            stats.Counter   `stat:"upstream_cx_total"`           // connections that were begun
	CxActive           stats.Gauge     `stat:"upstream_cx_active"`          // connections that are open
	CxConnectFail      stats.Counter   `stat:"upstream_cx_connect_fail"`    // refused, unreachable, bad certificate, too slow
	CxConnectTimeout   stats.Counter   `stat:"upstream_cx_connect_timeout"` // those of them that were too slow
	CxAttemptsExceeded stats.Counter   `stat:"upstream_cx_connect_attempts_exceeded"`
	CxOverflow         stats.Counter   `stat:"upstream_cx_overflow"`     // refused by the circuit breaker
	CxNoneHealthy      stats.Counter   `stat:"upstream_cx_none_healthy"` // no host to connect to
	CxConnect          stats.Histogram `stat:"upstream_cx_connect_ms"`
	CxLength           stats.Histogram `stat:"upstream_cx_length_ms"`
	CxDestroy          stats.Counter   `stat:"upstream_cx_destroy"`
	CxDestroyLocal     stats.Counter   `stat:"upstream_cx_destroy_local"`
	CxDestroyRemote    stats.Counter   `stat:"upstream_cx_destroy_remote"`
	CxRxBytes          stats.Counter   `stat:"upstream_cx_rx_bytes_total"`
	CxTxBytes          stats.Counter   `stat:"upstream_cx_tx_bytes_total"`
	CxIdleTimeout      stats.Counter   `stat:"upstream_cx_idle_timeout"`

	MembershipChange   stats.Counter `stat:"membership_change"`
	MembershipTotal    stats.Gauge   `stat:"membership_total"`
	MembershipHealthy  stats.Gauge   `stat:"membership_healthy"`
	MembershipDegraded stats.Gauge   `stat:"membership_degraded"`

	UpdateAttempt stats.Counter `stat:"update_attempt"` // of DNS
	UpdateSuccess stats.Counter `stat:"update_success"`
	UpdateFailure stats.Counter `stat:"update_failure"`
	UpdateEmpty   stats.Counter `stat:"update_empty"`

	LBPanic         stats.Counter `stat:"lb_healthy_panic"` // choices that ignored health
	BreakerOpen     stats.Gauge   `stat:"circuit_breakers.default.cx_open"`
	SSLHandshake    stats.Counter `stat:"ssl.handshake"`
	SSLReused       stats.Counter `stat:"ssl.session_reused"`
	SSLError        stats.Counter `stat:"ssl.connection_error"`
	SSLVerifyNoCert stats.Counter `stat:"ssl.fail_verify_no_cert"`
	SSLVerifyError  stats.Counter `stat:"ssl.fail_verify_error"`
	SSLVerifySAN    stats.Counter `stat:"ssl.fail_verify_san"`
	SSLVerifyHash   stats.Counter `stat:"ssl.fail_verify_cert_hash"`

	EjectionsTotal       stats.Counter `stat:"outlier_detection.ejections_enforced_total"`
	EjectionsActive      stats.Gauge   `stat:"outlier_detection.ejections_active"`
	EjectionsOverflow    stats.Counter `stat:"outlier_detection.ejections_overflow"`
	Detected5xx          stats.Counter `stat:"outlier_detection.ejections_detected_consecutive_5xx"`
	Enforced5xx          stats.Counter `stat:"outlier_detection.ejections_enforced_consecutive_5xx"`
	DetectedLocalFailure stats.Counter `stat:"outlier_detection.ejections_detected_consecutive_local_origin_failure"`
	EnforcedLocalFailure stats.Counter `stat:"outlier_detection.ejections_enforced_consecutive_local_origin_failure"`
}

// managerStats counts clusters, under cluster_manager.
type managerStats struct {
	Added    stats.Counter `stat:"cluster_added"`
	Modified stats.Counter `stat:"cluster_modified"`
	Removed  stats.Counter `stat:"cluster_removed"`
	Active   stats.Gauge   `stat:"active_clusters"`
	Warming  stats.Gauge   `stat:"warming_clusters"`
}

// HostStats counts what happens with one host.
type HostStats struct {
	CxTotal, CxConnectFail stats.Counter
	CxActive               stats.Gauge
}
