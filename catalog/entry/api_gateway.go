package entry

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

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
	// MaxRequestHeadersKB bounds the headers of a request, in KiB; nil means the proxy's default.
	MaxRequestHeadersKB *uint32 `json:",omitempty"`
}

// APIGatewayTLS is how a listener ends TLS.
type APIGatewayTLS struct {
	Certificates []ResourceReference
	MaxVersion   TLSVersion
	MinVersion   TLSVersion
	CipherSuites []string
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

// Normalize fills in defaults.
func (e *APIGateway) Normalize() {
	for i := range e.Listeners {
		l := &e.Listeners[i]
		l.Protocol = lower(l.Protocol)
		for j := range l.TLS.Certificates {
			if c := &l.TLS.Certificates[j]; c.Kind == "" {
				c.Kind = KindInlineCertificate
			}
		}
	}
}

// Validate checks the entry.
func (e *APIGateway) Validate() error {
	if e.Name == "" {
		return errName
	}
	if len(e.Listeners) == 0 {
		return errors.New("api gateway must have at least one listener")
	}
	names := map[string]bool{}
	ports := map[int]*APIGatewayListener{}
	for i := range e.Listeners {
		l := &e.Listeners[i]
		if !validListener(l.Name) {
			return fmt.Errorf("listener name %q is invalid, must be at least 1 character and contain only letters, numbers, or dashes", l.Name)
		}
		if names[l.Name] {
			return fmt.Errorf("found multiple listeners with the name %q", l.Name)
		}
		names[l.Name] = true
		if other := ports[l.Port]; other != nil && (other.Hostname != l.Hostname || other.Protocol != l.Protocol || valueOf(other.MaxRequestHeadersKB) != valueOf(l.MaxRequestHeadersKB)) {
			return fmt.Errorf("listeners %q and %q cannot be merged", other.Name, l.Name)
		}
		ports[l.Port] = l
		if err := l.check(); err != nil {
			return err
		}
	}
	return nil
}

// maxHeadersKB is the most that proxies take for the headers of a request, in KiB.
const maxHeadersKB = 8192

// checkHeaders checks a bound of the headers of a request.
func checkHeaders(kb *uint32) error {
	if kb != nil && (*kb == 0 || *kb > maxHeadersKB) {
		return fmt.Errorf("MaxRequestHeadersKB %d not in the range 1-%d", *kb, maxHeadersKB)
	}
	return nil
}

// valueOf returns 0 for nil.
func valueOf(n *uint32) uint32 {
	if n == nil {
		return 0
	}
	return *n
}

func validListener(name string) bool {
	for part := range strings.SplitSeq(name, ".") {
		if part == "" || !validSubset(part) {
			return false
		}
	}
	return true
}

func (l *APIGatewayListener) check() error {
	switch {
	case l.Protocol != TCP && l.Protocol != HTTP:
		return fmt.Errorf("unsupported listener protocol %q, must be one of 'tcp', or 'http'", l.Protocol)
	case l.Protocol == TCP && l.Hostname != "":
		return errors.New("hostname specification is not supported when using TCP")
	case l.Port < 1 || l.Port > 65535:
		return fmt.Errorf("listener port %d not in the range 1-65535", l.Port)
	}
	if h := l.Hostname; h != "" && h != Wildcard {
		rest, _ := strings.CutPrefix(h, "*.")
		if strings.Contains(rest, Wildcard) {
			return fmt.Errorf("host %q is not valid, a wildcard specifier is only allowed as the left-most label", h)
		}
		if !isHostname(rest) {
			return fmt.Errorf("host %q must be a valid DNS hostname", h)
		}
	}
	for _, c := range l.TLS.Certificates {
		if c.Kind != KindInlineCertificate && c.Kind != KindFileSystemCertificate {
			return fmt.Errorf("unsupported certificate kind: %q, must be 'file-system-certificate' or 'inline-certificate'", c.Kind)
		}
		if c.Name == "" {
			return errors.New("certificate reference must have a name")
		}
	}
	if err := checkHeaders(l.MaxRequestHeadersKB); err != nil {
		return err
	}
	return checkTLS(l.TLS.MinVersion, l.TLS.MaxVersion, l.TLS.CipherSuites)
}

// ListenerHosts returns the hosts that a listener for a host serves of a route: those of the route that fit the
// listener's, or the listener's when the route names none. "*" stands for any host.
func ListenerHosts(listener string, route []string) []string {
	if listener == "" {
		listener = Wildcard
	}
	if len(route) == 0 {
		return []string{listener}
	}
	var out []string
	for _, h := range route {
		suffix, wild := strings.CutPrefix(listener, Wildcard)
		if h == listener || wild && len(h) > len(suffix) && strings.HasSuffix(h, suffix) {
			out = append(out, h)
		}
	}
	return out
}
