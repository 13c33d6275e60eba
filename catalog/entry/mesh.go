package entry

import (
	"fmt"
	"slices"
	"strings"
)

// Mesh are the settings of the whole mesh (spec/connect.md section 8.3). There is one entry; its name is fixed.
type Mesh struct {
	Header
	TransparentProxy                 MeshTransparentProxy `json:""`
	AllowEnablingPermissiveMutualTLS bool                 `json:",omitempty"`
	ValidateClusters                 bool                 `json:",omitempty"`
	TLS                              *MeshTLS             `json:",omitempty"`
	HTTP                             *MeshHTTP            `json:",omitempty"`
	Peering                          *MeshPeering         `json:",omitempty"`
}

// MeshTransparentProxy applies to proxies in transparent mode.
type MeshTransparentProxy struct {
	MeshDestinationsOnly bool `json:",omitempty"` // refuse traffic to what is not in the mesh
}

// MeshTLS bounds TLS inside the mesh, by direction as the proxy sees it.
type MeshTLS struct {
	Incoming *TLSParameters `json:",omitempty"`
	Outgoing *TLSParameters `json:",omitempty"`
}

// TLSParameters bound TLS versions and ciphers.
type TLSParameters struct {
	TLSMinVersion TLSVersion `json:",omitempty"`
	TLSMaxVersion TLSVersion `json:",omitempty"`
	CipherSuites  []string   `json:",omitempty"` // IANA names
}

// A TLSVersion is the name of one, empty for the default.
type TLSVersion string

// MeshHTTP applies to HTTP inside the mesh.
type MeshHTTP struct {
	SanitizeXForwardedClientCert bool              `json:",omitempty"`
	Incoming                     *MeshHTTPIncoming `json:",omitempty"`
}

// MeshHTTPIncoming applies to requests that arrive at proxies.
type MeshHTTPIncoming struct {
	RequestNormalization *RequestNormalization `json:",omitempty"`
}

// RequestNormalization says which form of a request rules see.
type RequestNormalization struct {
	InsecureDisablePathNormalization bool
	MergeSlashes                     bool
	PathWithEscapedSlashesAction     string
	HeadersWithUnderscoresAction     string
}

// MeshPeering applies to peerings.
type MeshPeering struct {
	PeerThroughMeshGateways bool `json:",omitempty"`
}

// TLSVersions are the names of TLS versions, ascending.
var TLSVersions = []TLSVersion{"TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"}

// cipherSuites are the suites of TLS 1.2 and earlier that may be configured.
var cipherSuites = []string{
	"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
	"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
	"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
	"TLS_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA",
	"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
	"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
	"TLS_RSA_WITH_AES_256_GCM_SHA384", "TLS_RSA_WITH_AES_256_CBC_SHA",
}

// checkTLS checks versions and ciphers.
func checkTLS(low, high TLSVersion, suites []string) error {
	at := func(v TLSVersion) (int, error) {
		if v == "" {
			return 0, nil
		}
		if i := slices.Index(TLSVersions, v); i >= 0 {
			return i, nil
		}
		names := make([]string, len(TLSVersions))
		for i, v := range TLSVersions {
			names[i] = string(v)
		}
		return 0, fmt.Errorf("no matching TLS version found for %s, please specify one of [%s]", v, strings.Join(names, ", "))
	}
	from, err := at(low)
	if err != nil {
		return err
	}
	to, err := at(high)
	if err != nil {
		return err
	}
	if from > 0 && to > 0 && to < from {
		return fmt.Errorf("configuring max version %s less than the configured min version %s is invalid", high, low)
	}
	if len(suites) == 0 {
		return nil
	}
	if low == "TLSv1_3" {
		return fmt.Errorf("configuring CipherSuites is only applicable to connections negotiated with TLS 1.2 or earlier, TLSMinVersion is set to %s", low)
	}
	for _, s := range suites {
		if !slices.Contains(cipherSuites, s) {
			return fmt.Errorf("no matching Envoy TLS cipher suite found for %s", s)
		}
	}
	return nil
}

// What may be done with slashes that are escaped in paths, and with underscores in header names.
var (
	escapedSlashes = []string{
		"IMPLEMENTATION_SPECIFIC_DEFAULT", "KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD",
	}
	underscores = []string{"ALLOW", "REJECT_REQUEST", "DROP_HEADER"}
)

// Validate checks the entry.
func (e *Mesh) Validate() error {
	if e.TLS != nil {
		for _, side := range []struct {
			name string
			p    *TLSParameters
		}{{"incoming", e.TLS.Incoming}, {"outgoing", e.TLS.Outgoing}} {
			if side.p == nil {
				continue
			}
			if err := checkTLS(side.p.TLSMinVersion, side.p.TLSMaxVersion, side.p.CipherSuites); err != nil {
				return fmt.Errorf("error in %s TLS configuration: %w", side.name, err)
			}
		}
	}
	if e.HTTP != nil && e.HTTP.Incoming != nil && e.HTTP.Incoming.RequestNormalization != nil {
		if err := e.HTTP.Incoming.RequestNormalization.check(); err != nil {
			return fmt.Errorf("error in HTTP incoming request normalization configuration: %w", err)
		}
	}
	return nil
}

func (n *RequestNormalization) check() error {
	for _, f := range []struct {
		name, value string
		known       []string
	}{
		{"PathWithEscapedSlashesAction", n.PathWithEscapedSlashesAction, escapedSlashes},
		{"HeadersWithUnderscoresAction", n.HeadersWithUnderscoresAction, underscores},
	} {
		if f.value != "" && !slices.Contains(f.known, f.value) {
			return fmt.Errorf("no matching %s value found for %s, please specify one of [%s]", f.name, f.value, strings.Join(f.known, ", "))
		}
	}
	return nil
}
