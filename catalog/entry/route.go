package entry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// An HTTPRoute sends the requests of gateway listeners to services (spec/connect.md section 8.13).
type HTTPRoute struct {
	Header
	Parents   []ResourceReference
	Hostnames []string
	Rules     []HTTPRouteRule
	Status    Status
}

// An HTTPRouteRule is taken by requests that fit any of its matches.
type HTTPRouteRule struct {
	Filters         HTTPFilters
	ResponseFilters HTTPResponseFilters
	Matches         []HTTPMatch
	Services        []HTTPService
}

// HTTPFilters change a request.
type HTTPFilters struct {
	Headers       []HTTPHeaderFilter
	URLRewrite    *URLRewrite    `json:",omitempty"`
	RetryFilter   *RetryFilter   `json:",omitempty"`
	TimeoutFilter *TimeoutFilter `json:",omitempty"`
	JWT           map[string]any `json:",omitempty"` // always refused
}

// HTTPResponseFilters change a response.
type HTTPResponseFilters struct {
	Headers []HTTPHeaderFilter
}

// An HTTPHeaderFilter changes headers.
type HTTPHeaderFilter struct {
	Add    map[string]string
	Remove []string
	Set    map[string]string
}

// A URLRewrite replaces the matched prefix of the path.
type URLRewrite struct{ Path string }

// A RetryFilter says when a request is sent again.
type RetryFilter struct {
	NumRetries            uint32
	RetryOn               []string
	RetryOnStatusCodes    []uint32
	RetryOnConnectFailure bool
}

// A TimeoutFilter bounds requests.
type TimeoutFilter struct {
	RequestTimeout time.Duration
	IdleTimeout    time.Duration
}

// An HTTPMatch holds conditions that must all be true.
type HTTPMatch struct {
	Headers []HTTPHeaderMatch
	Method  string
	Path    HTTPPathMatch
	Query   []HTTPQueryMatch
}

// An HTTPHeaderMatch is a condition on a header.
type HTTPHeaderMatch struct {
	Match string // exact, prefix, suffix, present or regex
	Name  string
	Value string
}

// An HTTPPathMatch is a condition on the path.
type HTTPPathMatch struct {
	Match string // exact, prefix or regex
	Value string
}

// An HTTPQueryMatch is a condition on a query parameter.
type HTTPQueryMatch struct {
	Match string // exact, present or regex
	Name  string
	Value string
}

// An HTTPService is a destination with its share.
type HTTPService struct {
	Name            string
	Weight          int // at least 1
	Filters         HTTPFilters
	ResponseFilters HTTPResponseFilters
}

// A TCPRoute sends the connections of gateway listeners to a service (spec/connect.md section 8.14).
type TCPRoute struct {
	Header
	Parents  []ResourceReference
	Services []TCPService
	Status   Status
}

// A TCPService is the destination of a TCPRoute.
type TCPService struct{ Name string }

// Normalize fills in defaults.
func (e *HTTPRoute) Normalize() {
	normalizeParents(e.Parents)
	for i := range e.Rules {
		r := &e.Rules[i]
		if len(r.Matches) == 0 {
			r.Matches = []HTTPMatch{{}}
		}
		for j := range r.Matches {
			m := &r.Matches[j]
			m.Method = strings.ToUpper(m.Method)
			if m.Path == (HTTPPathMatch{}) {
				m.Path = HTTPPathMatch{Match: "prefix", Value: "/"}
			}
		}
		for j := range r.Services {
			r.Services[j].Weight = max(r.Services[j].Weight, 1)
		}
	}
}

func normalizeParents(parents []ResourceReference) {
	for i := range parents {
		if parents[i].Kind == "" {
			parents[i].Kind = KindAPIGateway
		}
	}
}

func checkParents(parents []ResourceReference) error {
	for i, p := range parents {
		if p.Kind != KindAPIGateway {
			return fmt.Errorf("unsupported parent kind: %q, must be 'api-gateway'", p.Kind)
		}
		if slices.Contains(parents[:i], p) {
			return errors.New("route parents must be unique")
		}
	}
	return nil
}

// Validate checks the entry.
func (e *HTTPRoute) Validate() error {
	if e.Name == "" {
		return errName
	}
	for _, h := range e.Hostnames {
		if strings.HasPrefix(h, "*") {
			return fmt.Errorf("host %q must not be a wildcard", h)
		}
		if !isHostname(h) {
			return fmt.Errorf("host %q must be a valid DNS hostname", h)
		}
	}
	if err := checkParents(e.Parents); err != nil {
		return err
	}
	for i := range e.Rules {
		for j := range e.Rules[i].Matches {
			if err := e.Rules[i].Matches[j].check(); err != nil {
				return fmt.Errorf("Rule[%d], Match[%d], %w", i, j, err)
			}
		}
		if e.Rules[i].Filters.JWT != nil {
			return fmt.Errorf("Rule[%d], JWT filters are a consul enterprise feature", i)
		}
	}
	return nil
}

func (m *HTTPMatch) check() error {
	if m.Method != "" && !slices.Contains(methods, m.Method) {
		return fmt.Errorf("Method contains an invalid method %q", m.Method)
	}
	switch m.Path.Match {
	case "exact", "prefix":
		if !strings.HasPrefix(m.Path.Value, "/") {
			return fmt.Errorf("Path, %s type match doesn't start with '/': %q", m.Path.Match, m.Path.Value)
		}
	case "regex":
	default:
		return errors.New("Path, match type should be one of exact, prefix, or regex")
	}
	for i, h := range m.Headers {
		if h.Name == "" {
			return fmt.Errorf("Headers[%d], missing required Name field", i)
		}
		switch h.Match {
		case "exact", "prefix", "suffix", "present", "regex":
		default:
			return fmt.Errorf("Headers[%d], match type should be one of present, exact, prefix, suffix, or regex", i)
		}
	}
	for i, q := range m.Query {
		if q.Name == "" {
			return fmt.Errorf("Query[%d], missing required Name field", i)
		}
		switch q.Match {
		case "exact", "present", "regex":
		default:
			return fmt.Errorf("Query[%d], match type should be one of present, exact, or regex", i)
		}
	}
	return nil
}

// Normalize fills in defaults.
func (e *TCPRoute) Normalize() { normalizeParents(e.Parents) }

// Validate checks the entry.
func (e *TCPRoute) Validate() error {
	if e.Name == "" {
		return errName
	}
	if len(e.Services) > 1 {
		return errors.New("tcp-route currently only supports one service")
	}
	return checkParents(e.Parents)
}
