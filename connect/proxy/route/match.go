package route

import (
	"net/netip"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Facts are what a table looks at.
type Facts struct {
	Request      *message.Request
	Random       uint64
	TLSPresented bool // the client showed a certificate
	TLSValidated bool // and it was good
	Internal     bool
	Metadata     model.Metadata // dynamic
	FilterState  map[string]string
	SourceIP     netip.Addr // of the client, for weighted clusters that are chosen by hash
}

// A Match is where a request goes.
type Match struct {
	VirtualHost *model.VirtualHost   // nil: no virtual host has the domain
	Route       *model.Route         // nil: no route matches
	Weighted    *model.WeightedRoute // nil unless the route draws a cluster
	Cluster     string               // where Route.Forward sends; may name no cluster, or be empty
	TLSRedirect bool                 // the virtual host demands TLS: Location tells where to go

	table    *Table // nil: never matched
	host     *host
	route    *route
	weighted *weighted
	levels   [4]perFilter // of the table, the virtual host, the route and the weighted cluster
}

// perFilter is what one level says about filters, by their names.
type perFilter map[string]*filterConfig

type filterConfig struct {
	disabled bool
	value    any // nil: not changed
}

// FilterConfig returns what the most specific level says about a filter; nil if none does.
func (m *Match) FilterConfig(name string) any {
	for i := len(m.levels) - 1; i >= 0; i-- {
		if c := m.levels[i][name]; c != nil && c.value != nil {
			return c.value
		}
	}
	return nil
}

// FilterConfigs calls f with what each level says about a filter, the least specific first.
func (m *Match) FilterConfigs(name string, f func(any)) {
	for i := range m.levels {
		if c := m.levels[i][name]; c != nil && c.value != nil {
			f(c.value)
		}
	}
}

// Disabled reports whether a filter is switched off, for one that is off or on by itself.
func (m *Match) Disabled(name string, off bool) bool {
	for i := len(m.levels) - 1; i >= 0; i-- {
		if c := m.levels[i][name]; c != nil {
			return c.disabled
		}
	}
	return off
}

// Retry returns the retry policy of the route or else of its virtual host; nil if there is none.
func (m *Match) Retry() *model.RetryPolicy {
	if m.route == nil {
		return nil
	}
	return m.route.retry
}

// Mirrors returns where copies of the request go: as the route says, or else its virtual host, or else the table.
func (m *Match) Mirrors() []model.Mirror {
	if m.route == nil {
		return nil
	}
	return m.route.mirrors
}

// BufferLimit returns how many bytes of a body are kept to send it again; 0 takes the listener's.
func (m *Match) BufferLimit() int {
	if m.route == nil {
		return 0
	}
	return m.route.limit
}

// Subset returns the metadata of the hosts to choose from: that of the route, and that of the weighted cluster, which
// goes before; nil for all.
func (m *Match) Subset() []model.MetadataMatch {
	switch {
	case m.weighted != nil:
		return m.weighted.subset
	case m.route != nil:
		return m.route.subset
	}
	return nil
}

// RateLimits returns what makes the descriptors of a request: that of the route, and that of the virtual host as far
// as it counts.
func (m *Match) RateLimits() (route, host []model.RateLimit) {
	if m.Route != nil && m.Route.Forward != nil {
		route = m.Route.Forward.RateLimits
	}
	if m.VirtualHost != nil && (len(route) == 0 || m.Route.Forward.IncludeVHLimits) {
		host = m.VirtualHost.RateLimits
	}
	return route, host
}
