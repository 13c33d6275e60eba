package entry

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
