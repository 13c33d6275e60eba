// Package cors tells browsers which other origins may use a service.
package cors

import (
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.cors"

// Config is the filter; policies come from routes.
type Config struct{}

// FilterType returns "envoy.filters.http.cors".
func (*Config) FilterType() string { return name }

// A Policy is what a virtual host or a route allows. What a more specific one leaves empty is taken from the others.
type Policy struct {
	Origins                                         []model.StringMatch
	Methods, Headers, Expose, MaxAge                string
	Credentials, PrivateNetwork, ForwardNotMatching *bool
	Enabled, Shadow                                 *model.Fraction // shadow only counts
}

// FilterType returns "envoy.filters.http.cors".
func (*Policy) FilterType() string { return name }

type corsFilter struct {
	name           string
	env            *filter.Env
	valid, invalid *stats.Counter
}

func newFilter(filterName string, _ model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	return &corsFilter{filterName, env, env.Stats.Counter("cors.origin_valid"), env.Stats.Counter("cors.origin_invalid")}, nil
}

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*Policy), nil }

// policy returns what counts for a request; ok is false if nothing is said.
func (f *corsFilter) policy(x *filter.Exchange) (p Policy, ok bool) {
	add := func(v any) {
		q, isPolicy := v.(*Policy)
		if !isPolicy {
			return
		}
		ok = true
		if len(q.Origins) > 0 {
			p.Origins = q.Origins
		}
		for _, s := range []struct{ to, from *string }{{&p.Methods, &q.Methods}, {&p.Headers, &q.Headers}, {&p.Expose, &q.Expose}, {&p.MaxAge, &q.MaxAge}} {
			if *s.from != "" {
				*s.to = *s.from
			}
		}
		for _, b := range []struct{ to, from **bool }{{&p.Credentials, &q.Credentials}, {&p.PrivateNetwork, &q.PrivateNetwork}, {&p.ForwardNotMatching, &q.ForwardNotMatching}} {
			if *b.from != nil {
				*b.to = *b.from
			}
		}
		if q.Enabled != nil {
			p.Enabled = q.Enabled
		}
		if q.Shadow != nil {
			p.Shadow = q.Shadow
		}
	}
	x.Match.FilterConfigs(f.name, add)
	return p, ok
}

// An allowed is what the response to an allowed origin says.
type allowed struct {
	origin      string
	expose      string
	credentials bool
}

func (f *corsFilter) Request(x *filter.Exchange) *filter.Reply {
	h := &x.Request.Header
	origin := h.Get("origin")
	if origin == "" {
		return nil
	}
	p, ok := f.policy(x)
	if !ok {
		return nil
	}
	enabled := p.Enabled == nil || p.Enabled.Hit(f.env.Rand())
	if !enabled && (p.Shadow == nil || !p.Shadow.Hit(f.env.Rand())) {
		return nil
	}
	good := false
	for i := range p.Origins {
		good = good || p.Origins[i].Match("*") || p.Origins[i].Match(origin)
	}
	if good {
		f.valid.Inc()
	} else {
		f.invalid.Inc()
	}
	if !enabled {
		return nil
	}
	preflight := x.Request.Method == "OPTIONS" && h.Get("access-control-request-method") != ""
	if !good {
		if preflight && p.ForwardNotMatching != nil && !*p.ForwardNotMatching {
			return filter.Deny(200, "", "cors_response", 0)
		}
		return nil
	}
	credentials := p.Credentials != nil && *p.Credentials
	if !preflight {
		x.SetState(f, &allowed{origin, p.Expose, credentials})
		return nil
	}
	r := filter.Deny(200, "", "cors_response", 0)
	add := func(name, value string) {
		if value != "" {
			r.Header = append(r.Header, message.Field{Name: name, Value: value})
		}
	}
	add("access-control-allow-origin", origin)
	if credentials {
		add("access-control-allow-credentials", "true")
	}
	add("access-control-allow-methods", p.Methods)
	add("access-control-allow-headers", p.Headers)
	add("access-control-expose-headers", p.Expose)
	add("access-control-max-age", p.MaxAge)
	if p.PrivateNetwork != nil && *p.PrivateNetwork && h.Get("access-control-request-private-network") == "true" {
		add("access-control-allow-private-network", "true")
	}
	return r
}

func (f *corsFilter) Response(x *filter.Exchange) *filter.Reply {
	a, ok := x.State(f).(*allowed)
	if !ok {
		return nil
	}
	h := &x.Response.Header
	h.Set("access-control-allow-origin", a.origin)
	if a.credentials {
		h.Set("access-control-allow-credentials", "true")
	}
	if a.expose != "" {
		h.Set("access-control-expose-headers", a.expose)
	}
	return nil
}
