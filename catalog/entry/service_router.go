package entry

import "github.com/sarnmesh/sarn/catalog"

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
