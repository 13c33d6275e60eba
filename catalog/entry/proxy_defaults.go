package entry

import "github.com/sarnmesh/sarn/catalog"

// ProxyDefaults are the settings of every proxy (spec/connect.md section 8.2). There is one entry, named "global".
type ProxyDefaults struct {
	Header
	Config               map[string]any           // opaque, spec/connect.md section 13
	Mode                 string                   `json:",omitempty"`
	TransparentProxy     catalog.TransparentProxy `json:""`
	MutualTLSMode        string                   `json:",omitempty"`
	MeshGateway          catalog.MeshGateway      `json:""`
	Expose               catalog.Expose           `json:""`
	AccessLogs           catalog.AccessLogs       `json:""`
	EnvoyExtensions      []catalog.EnvoyExtension `json:",omitempty"`
	FailoverPolicy       *FailoverPolicy          `json:",omitempty"`
	PrioritizeByLocality *LocalityPriority        `json:",omitempty"` // always refused
}

// A FailoverPolicy says in which order the targets of a failover are tried.
type FailoverPolicy struct {
	Mode    string   `json:",omitempty"` // "", "sequential" or "order-by-locality"
	Regions []string `json:",omitempty"`
}

// A LocalityPriority prefers near instances.
type LocalityPriority struct {
	Mode string `json:",omitempty"`
}
