package listener

import "github.com/sarnmesh/sarn/connect/proxy/stats"

// listenerStats counts connections, under listener.<address>.
type listenerStats struct {
	CxTotal          stats.Counter   `stat:"downstream_cx_total"`
	CxActive         stats.Gauge     `stat:"downstream_cx_active"`
	CxDestroy        stats.Counter   `stat:"downstream_cx_destroy"`
	CxLength         stats.Histogram `stat:"downstream_cx_length_ms"`
	CxOverflow       stats.Counter   `stat:"downstream_cx_overflow"`        // above the limit of this listener
	GlobalOverflow   stats.Counter   `stat:"downstream_global_cx_overflow"` // above the limit of the proxy
	PreCxActive      stats.Gauge     `stat:"downstream_pre_cx_active"`      // being inspected
	PreCxTimeout     stats.Counter   `stat:"downstream_pre_cx_timeout"`
	SocketTimeout    stats.Counter   `stat:"downstream_cx_transport_socket_connect_timeout"`
	NoChain          stats.Counter   `stat:"no_filter_chain_match"`
	SSLHandshake     stats.Counter   `stat:"ssl.handshake"`
	SSLReused        stats.Counter   `stat:"ssl.session_reused"`
	SSLError         stats.Counter   `stat:"ssl.connection_error"`
	SSLNoCertificate stats.Counter   `stat:"ssl.no_certificate"`
	SSLVerifyNoCert  stats.Counter   `stat:"ssl.fail_verify_no_cert"`
	SSLVerifyError   stats.Counter   `stat:"ssl.fail_verify_error"`
	SSLVerifySAN     stats.Counter   `stat:"ssl.fail_verify_san"`
	SSLVerifyHash    stats.Counter   `stat:"ssl.fail_verify_cert_hash"`
}

// managerStats counts listeners, under listener_manager.
type managerStats struct {
	Added          stats.Counter `stat:"listener_added"`
	Modified       stats.Counter `stat:"listener_modified"`
	Removed        stats.Counter `stat:"listener_removed"`
	Stopped        stats.Counter `stat:"listener_stopped"`
	InPlaceUpdated stats.Counter `stat:"listener_in_place_updated"`
	CreateSuccess  stats.Counter `stat:"listener_create_success"`
	CreateFailure  stats.Counter `stat:"listener_create_failure"`
	Active         stats.Gauge   `stat:"total_listeners_active"`
	Draining       stats.Gauge   `stat:"total_listeners_draining"`
	ChainsDraining stats.Gauge   `stat:"total_filter_chains_draining"` // connections whose chain is gone or changed
	WorkersStarted stats.Gauge   `stat:"workers_started"`
}

// tlsInspectorStats counts what inspection finds, under tls_inspector.
type tlsInspectorStats struct {
	TooLarge     stats.Counter `stat:"client_hello_too_large"`
	Found        stats.Counter `stat:"tls_found"`
	NotFound     stats.Counter `stat:"tls_not_found"`
	ALPNFound    stats.Counter `stat:"alpn_found"`
	ALPNNotFound stats.Counter `stat:"alpn_not_found"`
	SNIFound     stats.Counter `stat:"sni_found"`
	SNINotFound  stats.Counter `stat:"sni_not_found"`
}

// tcpStats counts proxied connections, under tcp.<prefix>.
type tcpStats struct {
	CxTotal     stats.Counter `stat:"downstream_cx_total"`
	NoRoute     stats.Counter `stat:"downstream_cx_no_route"` // the cluster is not known
	RxBytes     stats.Counter `stat:"downstream_cx_rx_bytes_total"`
	TxBytes     stats.Counter `stat:"downstream_cx_tx_bytes_total"`
	IdleTimeout stats.Counter `stat:"idle_timeout"`
	MaxDuration stats.Counter `stat:"max_downstream_connection_duration"`
}

// rbacStats counts decisions, under <prefix>.rbac.
type rbacStats struct {
	Allowed       stats.Counter `stat:"allowed"`
	Denied        stats.Counter `stat:"denied"`
	ShadowAllowed stats.Counter `stat:"shadow_allowed"`
	ShadowDenied  stats.Counter `stat:"shadow_denied"`
}

// limitStats counts refusals, under connection_limit.<prefix>.
type limitStats struct {
	Active  stats.Gauge   `stat:"active_connections"`
	Limited stats.Counter `stat:"limited_connections"`
}
