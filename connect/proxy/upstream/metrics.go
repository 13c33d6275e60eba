package upstream

import (
	"strconv"
	"sync/atomic"

	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Stats counts what happens with a cluster, under cluster.<name>. The comments
// say who counts what this package can't see.
type Stats struct {
	CxTotal            stats.Counter   `stat:"upstream_cx_total"`  // connections that were begun
	CxActive           stats.Gauge     `stat:"upstream_cx_active"` // connections that are open
	CxHTTP1            stats.Counter   `stat:"upstream_cx_http1_total"`
	CxHTTP2            stats.Counter   `stat:"upstream_cx_http2_total"`
	CxConnectFail      stats.Counter   `stat:"upstream_cx_connect_fail"`    // refused, unreachable, bad certificate, too slow
	CxConnectTimeout   stats.Counter   `stat:"upstream_cx_connect_timeout"` // those of them that were too slow
	CxAttemptsExceeded stats.Counter   `stat:"upstream_cx_connect_attempts_exceeded"`
	CxOverflow         stats.Counter   `stat:"upstream_cx_overflow"`     // refused by the circuit breaker
	CxNoneHealthy      stats.Counter   `stat:"upstream_cx_none_healthy"` // no host to connect to
	CxConnect          stats.Histogram `stat:"upstream_cx_connect_ms"`
	CxLength           stats.Histogram `stat:"upstream_cx_length_ms"`
	CxDestroy          stats.Counter   `stat:"upstream_cx_destroy"`
	// Who reads a connection knows which side ended it, and counts these.
	CxDestroyLocal             stats.Counter `stat:"upstream_cx_destroy_local"`
	CxDestroyRemote            stats.Counter `stat:"upstream_cx_destroy_remote"`
	CxDestroyWithRequest       stats.Counter `stat:"upstream_cx_destroy_with_active_rq"`
	CxDestroyLocalWithRequest  stats.Counter `stat:"upstream_cx_destroy_local_with_active_rq"`
	CxDestroyRemoteWithRequest stats.Counter `stat:"upstream_cx_destroy_remote_with_active_rq"`
	CxCloseNotify              stats.Counter `stat:"upstream_cx_close_notify"`
	CxRxBytes                  stats.Counter `stat:"upstream_cx_rx_bytes_total"`
	CxRxBuffered               stats.Gauge   `stat:"upstream_cx_rx_bytes_buffered"`
	CxTxBytes                  stats.Counter `stat:"upstream_cx_tx_bytes_total"`
	CxTxBuffered               stats.Gauge   `stat:"upstream_cx_tx_bytes_buffered"`
	CxPoolOverflow             stats.Counter `stat:"upstream_cx_pool_overflow"`
	CxProtocolError            stats.Counter `stat:"upstream_cx_protocol_error"`
	CxMaxRequests              stats.Counter `stat:"upstream_cx_max_requests"`
	CxMaxDuration              stats.Counter `stat:"upstream_cx_max_duration_reached"`
	CxIdleTimeout              stats.Counter `stat:"upstream_cx_idle_timeout"`

	RqTotal  stats.Counter `stat:"upstream_rq_total"`  // counted by Host.Begin
	RqActive stats.Gauge   `stat:"upstream_rq_active"` // counted by Host.Begin and End
	// The pool counts these; overflow is counted by the Breaker.
	RqPendingTotal    stats.Counter `stat:"upstream_rq_pending_total"`
	RqPendingOverflow stats.Counter `stat:"upstream_rq_pending_overflow"`
	RqPendingFailure  stats.Counter `stat:"upstream_rq_pending_failure_eject"`
	RqPendingActive   stats.Gauge   `stat:"upstream_rq_pending_active"`
	// The router counts these; RqCompleted and codes by Cluster.CountResponse.
	RqCancelled          stats.Counter   `stat:"upstream_rq_cancelled"`
	RqMaintenance        stats.Counter   `stat:"upstream_rq_maintenance_mode"`
	RqTimeout            stats.Counter   `stat:"upstream_rq_timeout"`
	RqMaxDuration        stats.Counter   `stat:"upstream_rq_max_duration_reached"`
	RqPerTryTimeout      stats.Counter   `stat:"upstream_rq_per_try_timeout"`
	RqPerTryIdleTimeout  stats.Counter   `stat:"upstream_rq_per_try_idle_timeout"`
	RqRxReset            stats.Counter   `stat:"upstream_rq_rx_reset"`
	RqTxReset            stats.Counter   `stat:"upstream_rq_tx_reset"`
	RqRetry              stats.Counter   `stat:"upstream_rq_retry"`
	RqRetryExponential   stats.Counter   `stat:"upstream_rq_retry_backoff_exponential"`
	RqRetryRateLimited   stats.Counter   `stat:"upstream_rq_retry_backoff_ratelimited"`
	RqRetryLimitExceeded stats.Counter   `stat:"upstream_rq_retry_limit_exceeded"`
	RqRetrySuccess       stats.Counter   `stat:"upstream_rq_retry_success"`
	RqRetryOverflow      stats.Counter   `stat:"upstream_rq_retry_overflow"` // counted by the Breaker
	RqTime               stats.Histogram `stat:"upstream_rq_time"`
	RqCompleted          stats.Counter   `stat:"upstream_rq_completed"`
	Rq1xx                stats.Counter   `stat:"upstream_rq_1xx"`
	Rq2xx                stats.Counter   `stat:"upstream_rq_2xx"`
	Rq3xx                stats.Counter   `stat:"upstream_rq_3xx"`
	Rq4xx                stats.Counter   `stat:"upstream_rq_4xx"`
	Rq5xx                stats.Counter   `stat:"upstream_rq_5xx"`
	RqDropOverload       stats.Counter   `stat:"upstream_rq_drop_overload"`
	RetryOrShadowGiven   stats.Counter   `stat:"retry_or_shadow_abandoned"`
	RedirectOK           stats.Counter   `stat:"upstream_internal_redirect_succeeded_total"`
	RedirectFailed       stats.Counter   `stat:"upstream_internal_redirect_failed_total"`
	FlowPaused           stats.Counter   `stat:"upstream_flow_control_paused_reading_total"`
	FlowResumed          stats.Counter   `stat:"upstream_flow_control_resumed_reading_total"`
	FlowBackedUp         stats.Counter   `stat:"upstream_flow_control_backed_up_total"`
	FlowDrained          stats.Counter   `stat:"upstream_flow_control_drained_total"`

	MembershipChange   stats.Counter `stat:"membership_change"`
	MembershipTotal    stats.Gauge   `stat:"membership_total"`
	MembershipHealthy  stats.Gauge   `stat:"membership_healthy"`
	MembershipDegraded stats.Gauge   `stat:"membership_degraded"`
	MembershipExcluded stats.Gauge   `stat:"membership_excluded"` // not checked for the first time yet
	MaxHostWeight      stats.Gauge   `stat:"max_host_weight"`
	AssignmentStale    stats.Counter `stat:"assignment_stale"`

	UpdateAttempt   stats.Counter `stat:"update_attempt"` // of DNS
	UpdateSuccess   stats.Counter `stat:"update_success"`
	UpdateFailure   stats.Counter `stat:"update_failure"`
	UpdateEmpty     stats.Counter `stat:"update_empty"`
	UpdateNoRebuild stats.Counter `stat:"update_no_rebuild"`

	LBPanic          stats.Counter `stat:"lb_healthy_panic"` // choices that ignored health
	LBSubsetsActive  stats.Gauge   `stat:"lb_subsets_active"`
	LBSubsetSelected stats.Counter `stat:"lb_subsets_selected"`
	LBSubsetFallback stats.Counter `stat:"lb_subsets_fallback"`
	LBSubsetPanic    stats.Counter `stat:"lb_subsets_fallback_panic"`
	RingSize         stats.Gauge   `stat:"ring_hash_lb.size"`
	RingMin          stats.Gauge   `stat:"ring_hash_lb.min_hashes_per_host"`
	RingMax          stats.Gauge   `stat:"ring_hash_lb.max_hashes_per_host"`
	MaglevMin        stats.Gauge   `stat:"maglev_lb.min_entries_per_host"`
	MaglevMax        stats.Gauge   `stat:"maglev_lb.max_entries_per_host"`

	SSLHandshake    stats.Counter `stat:"ssl.handshake"`
	SSLReused       stats.Counter `stat:"ssl.session_reused"`
	SSLError        stats.Counter `stat:"ssl.connection_error"`
	SSLVerifyNoCert stats.Counter `stat:"ssl.fail_verify_no_cert"`
	SSLVerifyError  stats.Counter `stat:"ssl.fail_verify_error"`
	SSLVerifySAN    stats.Counter `stat:"ssl.fail_verify_san"`
	SSLVerifyHash   stats.Counter `stat:"ssl.fail_verify_cert_hash"`

	CheckAttempt   stats.Counter `stat:"health_check.attempt"`
	CheckSuccess   stats.Counter `stat:"health_check.success"`
	CheckFailure   stats.Counter `stat:"health_check.failure"`
	CheckPassive   stats.Counter `stat:"health_check.passive_failure"`
	CheckNetwork   stats.Counter `stat:"health_check.network_failure"`
	CheckCluster   stats.Counter `stat:"health_check.verify_cluster"`
	CheckHealthy   stats.Gauge   `stat:"health_check.healthy"`
	CheckDegradedN stats.Gauge   `stat:"health_check.degraded"`

	EjectionsTotal       stats.Counter `stat:"outlier_detection.ejections_enforced_total"`
	EjectionsActive      stats.Gauge   `stat:"outlier_detection.ejections_active"`
	EjectionsOverflow    stats.Counter `stat:"outlier_detection.ejections_overflow"`
	Detected5xx          stats.Counter `stat:"outlier_detection.ejections_detected_consecutive_5xx"`
	Enforced5xx          stats.Counter `stat:"outlier_detection.ejections_enforced_consecutive_5xx"`
	DetectedGateway      stats.Counter `stat:"outlier_detection.ejections_detected_consecutive_gateway_failure"`
	EnforcedGateway      stats.Counter `stat:"outlier_detection.ejections_enforced_consecutive_gateway_failure"`
	DetectedLocalFailure stats.Counter `stat:"outlier_detection.ejections_detected_consecutive_local_origin_failure"`
	EnforcedLocalFailure stats.Counter `stat:"outlier_detection.ejections_enforced_consecutive_local_origin_failure"`
	DetectedRate         stats.Counter `stat:"outlier_detection.ejections_detected_success_rate"`
	EnforcedRate         stats.Counter `stat:"outlier_detection.ejections_enforced_success_rate"`
	DetectedRateLocal    stats.Counter `stat:"outlier_detection.ejections_detected_local_origin_success_rate"`
	EnforcedRateLocal    stats.Counter `stat:"outlier_detection.ejections_enforced_local_origin_success_rate"`
	DetectedPercent      stats.Counter `stat:"outlier_detection.ejections_detected_failure_percentage"`
	EnforcedPercent      stats.Counter `stat:"outlier_detection.ejections_enforced_failure_percentage"`
	DetectedPercentLocal stats.Counter `stat:"outlier_detection.ejections_detected_local_origin_failure_percentage"`
	EnforcedPercentLocal stats.Counter `stat:"outlier_detection.ejections_enforced_local_origin_failure_percentage"`
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
	CxTotal, CxConnectFail      stats.Counter
	CxActive                    stats.Gauge
	RqTotal, RqError, RqSuccess stats.Counter
	RqTimeout                   stats.Counter // counted by the router
	RqActive                    stats.Gauge
}

// codes are the counters of single status codes, made when they are first needed.
type codes [5]atomic.Pointer[[100]atomic.Pointer[stats.Counter]]

// CountResponse counts a response by its status, which may be the proxy's own.
func (c *Cluster) CountResponse(status int) {
	if status < 100 || status > 599 {
		return
	}
	s := c.stats
	s.RqCompleted.Inc()
	switch status / 100 {
	case 1:
		s.Rq1xx.Inc()
	case 2:
		s.Rq2xx.Inc()
	case 3:
		s.Rq3xx.Inc()
	case 4:
		s.Rq4xx.Inc()
	default:
		s.Rq5xx.Inc()
	}
	class := &c.codes[status/100-1]
	page := class.Load()
	if page == nil {
		class.CompareAndSwap(nil, new([100]atomic.Pointer[stats.Counter]))
		page = class.Load()
	}
	n := page[status%100].Load()
	if n == nil {
		n = c.scope.Counter("upstream_rq_" + strconv.Itoa(status))
		page[status%100].Store(n)
	}
	n.Inc()
}
