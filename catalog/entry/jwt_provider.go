package entry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"
)

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

// defaultClockSkew is how many seconds clocks may differ.
const defaultClockSkew = 30

// Normalize fills in defaults.
func (e *JWTProvider) Normalize() {
	if e.ClockSkewSeconds == 0 {
		e.ClockSkewSeconds = defaultClockSkew
	}
}

// Validate checks the entry.
func (e *JWTProvider) Validate() error {
	if e.Name == "" {
		return errName
	}
	if e.JSONWebKeySet == nil {
		return errors.New("JSONWebKeySet is required")
	}
	if err := e.JSONWebKeySet.check(); err != nil {
		return err
	}
	var problems errorList
	for _, l := range e.Locations {
		problems.add(l.check())
	}
	if err := problems.err(); err != nil {
		return err
	}
	if e.Forwarding != nil && e.Forwarding.HeaderName == "" {
		return errors.New("Header name required for forwarding config")
	}
	return nil
}

func (s *JSONWebKeySet) check() error {
	if (s.Local == nil) == (s.Remote == nil) {
		return errors.New("must specify exactly one of Local or Remote JSON Web key set")
	}
	if l := s.Local; l != nil {
		if (l.JWKS == "") == (l.Filename == "") {
			return errors.New("must specify exactly one of String or filename for local keyset")
		}
		if _, err := base64.StdEncoding.DecodeString(l.JWKS); err != nil {
			return errors.New("JWKS must be valid base64 encoded string")
		}
		return nil
	}
	return s.Remote.check()
}

// discoveryTypes say how the address of a key server is resolved.
var discoveryTypes = []string{"STRICT_DNS", "STATIC", "LOGICAL_DNS", "EDS", "ORIGINAL_DST"}

func (r *RemoteJWKS) check() error {
	if r.URI == "" {
		return errors.New("Remote JWKS URI is required")
	}
	if _, err := url.ParseRequestURI(r.URI); err != nil {
		return fmt.Errorf("Remote JWKS URI is invalid: %w, uri: %s", err, r.URI)
	}
	if p := r.RetryPolicy; p != nil && p.RetryPolicyBackOff != nil {
		if b := p.RetryPolicyBackOff; b.MaxInterval != 0 && b.MaxInterval < b.BaseInterval {
			return errors.New("retry policy backoff's MaxInterval should be greater or equal to BaseInterval")
		}
	}
	c := r.JWKSCluster
	if c == nil {
		return nil
	}
	if c.DiscoveryType != "" && !slices.Contains(discoveryTypes, c.DiscoveryType) {
		return fmt.Errorf("unsupported jwks cluster discovery type: %q", c.DiscoveryType)
	}
	t := c.TLSCertificates
	if t == nil {
		return nil
	}
	if (t.CaCertificateProviderInstance == nil) == (t.TrustedCA == nil) {
		return errors.New("must specify exactly one of: CaCertificateProviderInstance or TrustedCA for JKWS' TLSCertificates")
	}
	if a := t.TrustedCA; a != nil && count(a.Filename != "", a.EnvironmentVariable != "", a.InlineString != "", len(a.InlineBytes) != 0) != 1 {
		return errors.New("must specify exactly one of: Filename, EnvironmentVariable, InlineString or InlineBytes for JWKS' TrustedCA")
	}
	return nil
}

func (l *JWTLocation) check() error {
	switch {
	case l == nil || count(l.Header != nil, l.QueryParam != nil, l.Cookie != nil) != 1:
		return errors.New("must set exactly one of: JWT location header, query param or cookie")
	case l.Header != nil && l.Header.Name == "":
		return errors.New("JWT location header name must be specified")
	case l.QueryParam != nil && l.QueryParam.Name == "":
		return errors.New("JWT location query param name must be specified")
	case l.Cookie != nil && l.Cookie.Name == "":
		return errors.New("JWT location cookie name must be specified")
	}
	return nil
}
