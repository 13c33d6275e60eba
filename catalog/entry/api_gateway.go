package entry

import "time"

// An APIGateway lets callers outside the mesh in, by routes that bind to its listeners (spec/connect.md section 8.11).
type APIGateway struct {
	Header
	Listeners []APIGatewayListener
	Status    Status // written by the leader, ignored on input
}

// An APIGatewayListener is one name on one port.
type APIGatewayListener struct {
	Name     string
	Hostname string
	Port     int
	Protocol string // "http" or "tcp"
	TLS      APIGatewayTLS
}

// APIGatewayTLS is how a listener ends TLS.
type APIGatewayTLS struct {
	Certificates []ResourceReference
	MinVersion   TLSVersion `json:",omitempty"`
	MaxVersion   TLSVersion `json:",omitempty"`
	CipherSuites []string   `json:",omitempty"`
}

// A ResourceReference names an entry, or a section of it.
type ResourceReference struct {
	Kind        Kind
	Name        string
	SectionName string
}

// A Status tells what became of a gateway or route.
type Status struct {
	Conditions []Condition
}

// A Condition is one fact of a Status.
type Condition struct {
	Type               string
	Status             string // "True", "False" or "Unknown"
	Reason             string
	Message            string
	Resource           *ResourceReference `json:",omitempty"`
	LastTransitionTime *time.Time         `json:",omitempty"`
}

// A BoundAPIGateway is what the leader worked out for an APIGateway (spec/connect.md section 8.12).
type BoundAPIGateway struct {
	Header
	Listeners []BoundAPIGatewayListener
	Services  map[string][]ResourceReference
}

// A BoundAPIGatewayListener is a listener with the routes bound to it.
type BoundAPIGatewayListener struct {
	Name         string
	Routes       []ResourceReference
	Certificates []ResourceReference
}
