package entry

import (
	"errors"
	"fmt"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
)

// A ServiceRouter sends the HTTP requests for a service to services and subsets by what they ask for (spec/connect.md
// section 8.4).
type ServiceRouter struct {
	Header
	Routes []ServiceRoute // the first that matches is taken
}

// A ServiceRoute is one rule; no Match means every request, no Destination the service itself.
type ServiceRoute struct {
	Match       *ServiceRouteMatch       `json:",omitempty"`
	Destination *ServiceRouteDestination `json:",omitempty"`
}

// A ServiceRouteMatch says which requests a rule is for.
type ServiceRouteMatch struct {
	HTTP *ServiceRouteHTTPMatch `json:",omitempty"`
}

// A ServiceRouteHTTPMatch holds conditions that must all be true. At most one of the paths is set.
type ServiceRouteHTTPMatch struct {
	PathExact       string                   `json:",omitempty"`
	PathPrefix      string                   `json:",omitempty"`
	PathRegex       string                   `json:",omitempty"`
	CaseInsensitive bool                     `json:",omitempty"` // of the path
	Header          []ServiceRouteHeader     `json:",omitempty"`
	QueryParam      []ServiceRouteQueryParam `json:",omitempty"`
	Methods         []string                 `json:",omitempty"` // upper case; none means any
}

// A ServiceRouteHeader is a condition on a header; exactly one of Present to Regex is set.
type ServiceRouteHeader struct {
	Name    string
	Present bool   `json:",omitempty"`
	Exact   string `json:",omitempty"`
	Prefix  string `json:",omitempty"`
	Suffix  string `json:",omitempty"`
	Regex   string `json:",omitempty"`
	Invert  bool   `json:",omitempty"`
}

// A ServiceRouteQueryParam is a condition on a query parameter; exactly one of Present to Regex is set.
type ServiceRouteQueryParam struct {
	Name    string
	Present bool   `json:",omitempty"`
	Exact   string `json:",omitempty"`
	Regex   string `json:",omitempty"`
}

// A ServiceRouteDestination says where a rule leads and how requests are changed and retried on the way.
type ServiceRouteDestination struct {
	Service               string           `json:",omitempty"` // empty means the router's own
	ServiceSubset         string           `json:",omitempty"`
	Namespace             string           `json:",omitempty"`
	Partition             string           `json:",omitempty"`
	PrefixRewrite         string           `json:",omitempty"`
	RequestTimeout        catalog.Duration `json:",omitempty"`
	IdleTimeout           catalog.Duration `json:",omitempty"`
	NumRetries            uint32           `json:",omitempty"`
	RetryOnConnectFailure bool             `json:",omitempty"`
	RetryOn               []string         `json:",omitempty"`
	RetryOnStatusCodes    []uint32         `json:",omitempty"`
	RequestHeaders        *HeaderEdit      `json:",omitempty"`
	ResponseHeaders       *HeaderEdit      `json:",omitempty"`
}

// A HeaderEdit changes headers.
type HeaderEdit struct {
	Add    map[string]string `json:",omitempty"`
	Set    map[string]string `json:",omitempty"`
	Remove []string          `json:",omitempty"`
}

// Normalize fills in defaults.
func (e *ServiceRouter) Normalize() {
	for i := range e.Routes {
		r := &e.Routes[i]
		if r.Match != nil && r.Match.HTTP != nil {
			upperAll(r.Match.HTTP.Methods)
		}
	}
}

// retryConditions are what requests may be retried on.
var retryConditions = []string{
	"5xx", "gateway-error", "reset", "connect-failure", "envoy-ratelimited", "retriable-4xx", "refused-stream",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// Validate checks the entry.
func (e *ServiceRouter) Validate() error {
	if e.Name == "" {
		return errName
	}
	for i := range e.Routes {
		if err := e.Routes[i].check(); err != nil {
			return fmt.Errorf("Route[%d] %w", i, err)
		}
	}
	return nil
}

func (r *ServiceRoute) check() error {
	pathMatch := false
	if r.Match != nil && r.Match.HTTP != nil {
		m := r.Match.HTTP
		pathMatch = m.PathExact != "" || m.PathPrefix != ""
		switch {
		case m.PathExact != "" && m.PathExact[0] != '/':
			return fmt.Errorf("PathExact doesn't start with '/': %q", m.PathExact)
		case m.PathPrefix != "" && m.PathPrefix[0] != '/':
			return fmt.Errorf("PathPrefix doesn't start with '/': %q", m.PathPrefix)
		case count(m.PathExact != "", m.PathPrefix != "", m.PathRegex != "") > 1:
			return errors.New("should only contain at most one of PathExact, PathPrefix, or PathRegex")
		}
		for i, h := range m.Header {
			if h.Name == "" {
				return fmt.Errorf("Header[%d] missing required Name field", i)
			}
			if count(h.Present, h.Exact != "", h.Prefix != "", h.Suffix != "", h.Regex != "") != 1 {
				return fmt.Errorf("Header[%d] should only contain one of Present, Exact, Prefix, Suffix, or Regex", i)
			}
		}
		for i, q := range m.QueryParam {
			if q.Name == "" {
				return fmt.Errorf("QueryParam[%d] missing required Name field", i)
			}
			if count(q.Present, q.Exact != "", q.Regex != "") != 1 {
				return fmt.Errorf("QueryParam[%d] should only contain one of Present, Exact, or Regex", i)
			}
		}
		if err := checkMethods("Methods", m.Methods); err != nil {
			return err
		}
	}
	d := r.Destination
	if d == nil {
		return nil
	}
	if err := checkTenancy("Destination", d.Namespace, d.Partition, ""); err != nil {
		return err
	}
	if d.PrefixRewrite != "" && !pathMatch {
		return errors.New("cannot make use of PrefixRewrite without configuring either PathExact or PathPrefix")
	}
	for _, c := range d.RetryOn {
		if !slices.Contains(retryConditions, c) {
			return fmt.Errorf("contains an invalid retry condition: %q", c)
		}
	}
	return nil
}

// checkTenancy refuses what only other editions have.
func checkTenancy(where, namespace, partition, group string) error {
	if where != "" {
		where += "."
	}
	for _, f := range []struct{ name, value string }{
		{"Namespace", namespace}, {"Partition", partition}, {"SamenessGroup", group},
	} {
		if f.value != "" && (f.value != "default" || f.name == "SamenessGroup") {
			return fmt.Errorf("%s%s: setting %s is a consul enterprise feature", where, f.name, f.name)
		}
	}
	return nil
}
