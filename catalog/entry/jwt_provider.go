package entry

import "time"

// A JWTProvider says whose tokens are trusted and how they are verified (spec/connect.md section 8.16).
type JWTProvider struct {
	Header
	JSONWebKeySet    *JSONWebKeySet `json:",omitempty"`
	Issuer           string         `json:",omitempty"`
	Audiences        []string       `json:",omitempty"`
	Locations        []*JWTLocation `json:",omitempty"`
	Forwarding       *JWTForwarding `json:",omitempty"`
	ClockSkewSeconds int            `json:",omitempty"` // default 30
	CacheConfig      *JWTCache      `json:",omitempty"`
}

// A JSONWebKeySet is local or remote; exactly one is set.
type JSONWebKeySet struct {
	Local  *LocalJWKS  `json:",omitempty"`
	Remote *RemoteJWKS `json:",omitempty"`
}

// A LocalJWKS holds keys, or names a file of the proxy's machine.
type LocalJWKS struct {
	JWKS     string `json:",omitempty"` // base64
	Filename string `json:",omitempty"`
}

// A RemoteJWKS is fetched by the proxies.
type RemoteJWKS struct {
	URI                 string           `json:",omitempty"`
	RequestTimeoutMs    int              `json:",omitempty"`
	CacheDuration       time.Duration    `json:",omitempty"`
	FetchAsynchronously bool             `json:",omitempty"`
	UseSNI              bool             `json:",omitempty"`
	RetryPolicy         *JWKSRetryPolicy `json:",omitempty"`
	JWKSCluster         *JWKSCluster     `json:",omitempty"`
}

// A JWKSRetryPolicy says how often a fetch is tried again.
type JWKSRetryPolicy struct {
	NumRetries         int          `json:",omitempty"`
	RetryPolicyBackOff *JWKSBackOff `json:",omitempty"`
}

// A JWKSBackOff is the wait between tries.
type JWKSBackOff struct {
	BaseInterval time.Duration `json:",omitempty"`
	MaxInterval  time.Duration `json:",omitempty"`
}

// A JWKSCluster says how the server of the keys is reached.
type JWKSCluster struct {
	DiscoveryType   string        `json:",omitempty"`
	TLSCertificates *JWKSTLS      `json:",omitempty"`
	ConnectTimeout  time.Duration `json:",omitempty"`
}

// JWKSTLS says whom to trust for TLS with that server; exactly one is set.
type JWKSTLS struct {
	CaCertificateProviderInstance *JWKSCertificateProvider `json:",omitempty"`
	TrustedCA                     *JWKSTrustedCA           `json:",omitempty"`
}

// A JWKSCertificateProvider names a certificate provider of the proxy.
type JWKSCertificateProvider struct {
	InstanceName    string `json:",omitempty"`
	CertificateName string `json:",omitempty"`
}

// A JWKSTrustedCA holds or names certificates; exactly one is set.
type JWKSTrustedCA struct {
	Filename            string `json:",omitempty"`
	EnvironmentVariable string `json:",omitempty"`
	InlineString        string `json:",omitempty"`
	InlineBytes         []byte `json:",omitempty"`
}

// A JWTLocation says where in a request the token is; exactly one is set.
type JWTLocation struct {
	Header     *JWTHeader     `json:",omitempty"`
	QueryParam *JWTQueryParam `json:",omitempty"`
	Cookie     *JWTCookie     `json:",omitempty"`
}

// A JWTHeader is a token in a header.
type JWTHeader struct {
	Name        string `json:",omitempty"`
	ValuePrefix string `json:",omitempty"`
	Forward     bool   `json:",omitempty"`
}

// A JWTQueryParam is a token in a query parameter.
type JWTQueryParam struct {
	Name string `json:",omitempty"`
}

// A JWTCookie is a token in a cookie.
type JWTCookie struct {
	Name string `json:",omitempty"`
}

// JWTForwarding passes the verified payload on.
type JWTForwarding struct {
	HeaderName              string `json:",omitempty"`
	PadForwardPayloadHeader bool
}

// A JWTCache keeps verified tokens.
type JWTCache struct {
	Size int
}
