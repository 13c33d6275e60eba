package entry

// An IngressGateway lets callers outside the mesh in (spec/connect.md section 8.7).
type IngressGateway struct {
	Header
	TLS       GatewayTLS        `json:""`
	Defaults  *IngressLimits    `json:",omitempty"`
	Listeners []IngressListener `json:""`
}

// GatewayTLS is how a gateway's listeners end TLS.
type GatewayTLS struct {
	Enabled       bool
	SDS           *GatewaySDS `json:",omitempty"`
	TLSMinVersion TLSVersion  `json:",omitempty"`
	TLSMaxVersion TLSVersion  `json:",omitempty"`
	CipherSuites  []string    `json:",omitempty"`
}

// A GatewaySDS names a certificate served by another xDS cluster.
type GatewaySDS struct {
	ClusterName  string `json:",omitempty"`
	CertResource string `json:",omitempty"`
}

// IngressLimits bound what a gateway has open to a service; 0 means the proxy's default.
type IngressLimits struct {
	MaxConnections        uint32              `json:",omitempty"`
	MaxPendingRequests    uint32              `json:",omitempty"`
	MaxConcurrentRequests uint32              `json:",omitempty"`
	PassiveHealthCheck    *PassiveHealthCheck `json:",omitempty"`
}

// An IngressListener is one port.
type IngressListener struct {
	Port     int
	Protocol string      // default tcp
	TLS      *GatewayTLS `json:",omitempty"`
	Services []IngressService
}

// An IngressService is a service behind a listener; the name may be the wildcard.
type IngressService struct {
	Name            string
	Hosts           []string
	TLS             *IngressServiceTLS `json:",omitempty"`
	RequestHeaders  *HeaderEdit        `json:",omitempty"`
	ResponseHeaders *HeaderEdit        `json:",omitempty"`
	IngressLimits
}

// IngressServiceTLS is the certificate for one service.
type IngressServiceTLS struct {
	SDS *GatewaySDS `json:",omitempty"`
}
