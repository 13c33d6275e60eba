package route

import (
	"net/netip"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A Table finds the route of a request. It is safe for concurrent use.
type Table struct {
	conf *model.RouteConfig
}

// Compile prepares a table. The function prepares what the table says about a filter; its result comes back from
// Match.FilterConfig.
func Compile(conf *model.RouteConfig, filterConfig func(filter string, c model.FilterConfig) (any, error)) (*Table, error) {
	return &Table{conf: conf}, nil
}

// Config returns what the table was made of.
func (t *Table) Config() *model.RouteConfig { return t.conf }

// Match finds the route of a request.
func (t *Table) Match(f *Facts) Match { return Match{} }

// EditRequest changes the header of a request on its way to a host as the levels of the configuration say.
func (m *Match) EditRequest(r *message.Request, e *accesslog.Entry) {}

// EditResponse changes the header of a response on its way to the client.
func (m *Match) EditResponse(r *message.Response, e *accesslog.Entry) {}

// Rewrite changes path and authority of a request that is forwarded. Hostname is that of the chosen host; empty if it
// has none.
func (m *Match) Rewrite(r *message.Request, hostname string) {}

// Location returns where a redirect leads.
func (m *Match) Location(r *message.Request, https bool) string { return "" }

// Hash returns the hash of a request for consistent balancing; ok is false if the route gives none. A cookie is to be
// set in the response unless it is empty.
func (m *Match) Hash(r *message.Request, sourceIP netip.Addr, filterState func(string) string, random func() uint64) (hash uint64, ok bool, cookie string) {
	return 0, false, ""
}

// Headers reports whether a request fits all matchers.
func Headers(list []model.HeaderMatch, r *message.Request) bool { return false }

// ResponseHeaders reports whether a response fits all matchers.
func ResponseHeaders(list []model.HeaderMatch, r *message.Response) bool { return false }
