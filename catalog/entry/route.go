package entry

import "time"

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
