package entry

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sarnmesh/sarn/catalog"
)

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

// Normalize fills in defaults.
func (e *ProxyDefaults) Normalize() {
	if e.Name == "" {
		e.Name = ProxyDefaultsName
	}
	normalizeExpose(&e.Expose)
}

// maxSocketDir bounds a folder in which a socket with a long name is made.
const maxSocketDir = 70

// Validate checks the entry.
func (e *ProxyDefaults) Validate() error {
	if e.Name != ProxyDefaultsName {
		return fmt.Errorf("invalid name (%q), only %q is supported", e.Name, ProxyDefaultsName)
	}
	if e.PrioritizeByLocality != nil {
		return errors.New("Prioritize-by-locality is a consul enterprise feature")
	}
	if err := checkMutualTLS(e.MutualTLSMode); err != nil {
		return err
	}
	if p := e.FailoverPolicy; p != nil && p.Mode != "" && p.Mode != "sequential" && p.Mode != "order-by-locality" {
		return errors.New("Failover-policy mode must be one of '', 'sequential', or 'order-by-locality'")
	}
	if dir, ok := e.Config["envoy_hcp_metrics_bind_socket_dir"].(string); ok && len(dir) > maxSocketDir {
		return fmt.Errorf("Config: envoy_hcp_metrics_bind_socket_dir length %d exceeds max %d", len(dir), maxSocketDir)
	}
	if err := checkAccessLogs(e.AccessLogs); err != nil {
		return err
	}
	var problems errorList
	problems.add(checkMode(e.Mode))
	problems.add(checkMeshGateway(e.MeshGateway))
	problems.add(checkExpose(e.Expose))
	if err := checkExtensions(e.EnvoyExtensions); err != nil {
		problems = append(problems, err.(errorList)...)
	}
	return problems.err()
}

// Protocol is the mesh-wide default protocol, empty when none is set.
func (e *ProxyDefaults) Protocol() string {
	p, _ := e.Config["protocol"].(string)
	return lower(p)
}

func checkAccessLogs(l catalog.AccessLogs) error {
	switch l.Type {
	case "", "stdout", "stderr":
		if l.Path != "" {
			return errors.New("path is only valid for file type access logs")
		}
	case "file":
		if l.Path == "" {
			return errors.New("path must be specified when using file type access logs")
		}
	default:
		return fmt.Errorf("invalid access log type: %s", l.Type)
	}
	if l.JSONFormat != "" && l.TextFormat != "" {
		return errors.New("cannot specify both access log JSONFormat and TextFormat")
	}
	if l.JSONFormat != "" {
		var format map[string]any
		if err := json.Unmarshal([]byte(l.JSONFormat), &format); err != nil {
			return fmt.Errorf("invalid access log json for JSON format: %w", err)
		}
	}
	return nil
}
