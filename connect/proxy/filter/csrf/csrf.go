// Package csrf refuses changes that a page of another origin asks for.
package csrf

import (
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.csrf"

// Config says which origins may ask for changes besides the service's own.
type Config struct {
	Enabled model.Fraction
	Shadow  *model.Fraction // of the others: only counted; nil none
	Origins []model.StringMatch
}

// FilterType returns "envoy.filters.http.csrf".
func (*Config) FilterType() string { return name }

type csrfFilter struct {
	name                    string
	conf                    *Config
	env                     *filter.Env
	missing, invalid, valid *stats.Counter
}

func newFilter(filterName string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	s := env.Stats
	return &csrfFilter{filterName, conf.(*Config), env, s.Counter("csrf.missing_source_origin"), s.Counter("csrf.request_invalid"), s.Counter("csrf.request_valid")}, nil
}

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*Config), nil }

func (f *csrfFilter) Request(x *filter.Exchange) *filter.Reply {
	c := f.conf
	if r, isRoute := x.RouteConfig(f.name).(*Config); isRoute {
		c = r
	}
	switch x.Request.Method {
	case "POST", "PUT", "DELETE", "PATCH":
	default:
		return nil
	}
	enforced := c.Enabled.Hit(f.env.Rand())
	if !enforced && (c.Shadow == nil || !c.Shadow.Hit(f.env.Rand())) {
		return nil
	}
	h := &x.Request.Header
	source := origin(h.Get("origin"))
	if source == "" {
		source = origin(h.Get("referer"))
	}
	switch {
	case source == "":
		f.missing.Inc()
	case valid(c, source, x.Request.Authority):
		f.valid.Inc()
		return nil
	default:
		f.invalid.Inc()
	}
	if !enforced {
		return nil
	}
	r := filter.Deny(403, "Invalid origin", "csrf_origin_mismatch", 0)
	r.Rule = name
	return r
}

func valid(c *Config, source, target string) bool {
	if source == target {
		return true
	}
	for i := range c.Origins {
		if c.Origins[i].Match(source) {
			return true
		}
	}
	return false
}

// origin returns the host and port of a URL; empty if it has none, like the origin "null".
func origin(url string) string {
	_, rest, ok := strings.Cut(url, "://")
	if !ok {
		return ""
	}
	host, _, _ := strings.Cut(rest, "/")
	return host
}
