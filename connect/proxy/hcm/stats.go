package hcm

import "github.com/sarnmesh/sarn/connect/proxy/stats"

// Stats counts what happens at a manager, under http.<prefix>.
type Stats struct {
	CxTotal         stats.Counter   `stat:"downstream_cx_total"`
	CxActive        stats.Gauge     `stat:"downstream_cx_active"`
	CxHTTP1         stats.Counter   `stat:"downstream_cx_http1_total"`
	CxHTTP1Active   stats.Gauge     `stat:"downstream_cx_http1_active"`
	CxHTTP2         stats.Counter   `stat:"downstream_cx_http2_total"`
	CxHTTP2Active   stats.Gauge     `stat:"downstream_cx_http2_active"`
	CxSSL           stats.Counter   `stat:"downstream_cx_ssl_total"`
	CxSSLActive     stats.Gauge     `stat:"downstream_cx_ssl_active"`
	CxUpgrades      stats.Counter   `stat:"downstream_cx_upgrades_total"`
	CxUpgraded      stats.Gauge     `stat:"downstream_cx_upgrades_active"`
	CxProtocolError stats.Counter   `stat:"downstream_cx_protocol_error"`
	CxLength        stats.Histogram `stat:"downstream_cx_length_ms"`
	CxDestroy       stats.Counter   `stat:"downstream_cx_destroy"`
	CxDestroyActive stats.Counter   `stat:"downstream_cx_destroy_active_rq"`
	CxDrainClose    stats.Counter   `stat:"downstream_cx_drain_close"`
	CxIdleTimeout   stats.Counter   `stat:"downstream_cx_idle_timeout"`
	CxMaxDuration   stats.Counter   `stat:"downstream_cx_max_duration_reached"`
	CxMaxRequests   stats.Counter   `stat:"downstream_cx_max_requests_reached"`
	CxRxBytes       stats.Counter   `stat:"downstream_cx_rx_bytes_total"`
	CxTxBytes       stats.Counter   `stat:"downstream_cx_tx_bytes_total"`

	RqTotal         stats.Counter   `stat:"downstream_rq_total"`
	RqActive        stats.Gauge     `stat:"downstream_rq_active"`
	RqHTTP1         stats.Counter   `stat:"downstream_rq_http1_total"`
	RqHTTP2         stats.Counter   `stat:"downstream_rq_http2_total"`
	RqCompleted     stats.Counter   `stat:"downstream_rq_completed"`
	Rq1xx           stats.Counter   `stat:"downstream_rq_1xx"`
	Rq2xx           stats.Counter   `stat:"downstream_rq_2xx"`
	Rq3xx           stats.Counter   `stat:"downstream_rq_3xx"`
	Rq4xx           stats.Counter   `stat:"downstream_rq_4xx"`
	Rq5xx           stats.Counter   `stat:"downstream_rq_5xx"`
	RqTime          stats.Histogram `stat:"downstream_rq_time"`
	RqRxReset       stats.Counter   `stat:"downstream_rq_rx_reset"`
	RqTxReset       stats.Counter   `stat:"downstream_rq_tx_reset"`
	RqTooLarge      stats.Counter   `stat:"downstream_rq_too_large"`
	RqIdleTimeout   stats.Counter   `stat:"downstream_rq_idle_timeout"`
	RqTimeout       stats.Counter   `stat:"downstream_rq_timeout"`
	RqHeaderTimeout stats.Counter   `stat:"downstream_rq_header_timeout"`
	RqMaxDuration   stats.Counter   `stat:"downstream_rq_max_duration_reached"`
	RqUpgradeDenied stats.Counter   `stat:"downstream_rq_ws_on_non_ws_route"`

	NonRelativePath      stats.Counter `stat:"downstream_rq_non_relative_path"`
	FailedNormalization  stats.Counter `stat:"downstream_rq_failed_path_normalization"`
	RedirectedNormalized stats.Counter `stat:"downstream_rq_redirected_with_normalized_path"`

	NoRoute        stats.Counter `stat:"no_route"`
	NoCluster      stats.Counter `stat:"no_cluster"`
	DirectResponse stats.Counter `stat:"rq_direct_response"`
	Redirect       stats.Counter `stat:"rq_redirect"`
	Forwarded      stats.Counter `stat:"rq_total"`
	ResetAfterHead stats.Counter `stat:"rq_reset_after_downstream_response_started"`
	Crashed        stats.Counter `stat:"rq_crashed"` // met a fault of the proxy
	RetrySkipped   stats.Counter `stat:"rq_retry_skipped_request_not_complete"`
}

// rdsStats counts versions of a route configuration that comes by name, under http.<prefix>.rds.<name>.
type rdsStats struct {
	Attempt  stats.Counter `stat:"update_attempt"`
	Success  stats.Counter `stat:"update_success"`
	Rejected stats.Counter `stat:"update_rejected"`
	Reload   stats.Counter `stat:"config_reload"`
}

// http1Stats counts what happens on connections of all managers.
type http1Stats struct {
	Underscores stats.Counter `stat:"http1.requests_rejected_with_underscores_in_headers"`
}

// completed counts a finished exchange by its status.
func (s *Stats) completed(status int) {
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
	case 5:
		s.Rq5xx.Inc()
	}
}
