// Package rbac admits requests by who the caller is and what it asks for. The decision itself is made by
// connect/proxy/rbac; in doubt it is a refusal.
package rbac

import (
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/rbac"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.rbac"

// Config says who may do what.
type Config struct {
	Rules  *model.RBAC // nil admits all
	Shadow *model.RBAC // only counted and told in dynamic metadata; nil is not evaluated

	RulesPrefix  string // before the names of counters
	ShadowPrefix string // before the names of the shadow counters and metadata
	PerPolicy    bool   // count for each policy
}

// FilterType returns "envoy.filters.http.rbac".
func (*Config) FilterType() string { return name }

type rbacFilter struct {
	name   string
	engine *engine
}

func newFilter(name string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	return &rbacFilter{name: name, engine: newEngine(conf.(*Config), env)}, nil
}

func newRoute(conf model.FilterConfig, env *filter.Env) (any, error) {
	return newEngine(conf.(*Config), env), nil
}

func (f *rbacFilter) Request(x *filter.Exchange) *filter.Reply {
	e := f.engine
	if r, ok := x.RouteConfig(f.name).(*engine); ok {
		e = r
	}
	return e.check(x, f.engine)
}

// An engine is a configuration with its counters.
type engine struct {
	conf          *Config
	rules, shadow counters
}

type counters struct {
	allowed, denied *stats.Counter
	policies        map[string]*counters // nil unless they are counted
}

func newEngine(conf *Config, env *filter.Env) *engine {
	count := func(rules *model.RBAC, prefix, shadow string) counters {
		base := "rbac."
		if prefix != "" {
			base += strings.TrimSuffix(prefix, ".") + "."
		}
		c := counters{allowed: env.Stats.Counter(base + shadow + "allowed"), denied: env.Stats.Counter(base + shadow + "denied")}
		if conf.PerPolicy && rules != nil {
			c.policies = map[string]*counters{}
			for i := range rules.Policies {
				p := base + "policy." + rules.Policies[i].Name + "." + shadow
				c.policies[rules.Policies[i].Name] = &counters{allowed: env.Stats.Counter(p + "allowed"), denied: env.Stats.Counter(p + "denied")}
			}
		}
		return c
	}
	return &engine{
		conf:   conf,
		rules:  count(conf.Rules, conf.RulesPrefix, ""),
		shadow: count(conf.Shadow, conf.ShadowPrefix, "shadow_"),
	}
}

// count counts a decision, for its policy and in all.
func (c *counters) count(d rbac.Decision, all *counters) {
	all.inc(d.Allowed)
	if p := c.policies[d.Policy]; p != nil {
		p.inc(d.Allowed)
	}
}

func (c *counters) inc(allowed bool) {
	if allowed {
		c.allowed.Inc()
	} else {
		c.denied.Inc()
	}
}

// check decides. What the rules of a route decide counts for the filter's own.
func (e *engine) check(x *filter.Exchange, own *engine) *filter.Reply {
	f := factsOf(x)
	if s := e.conf.Shadow; s != nil {
		d := rbac.Evaluate(s, &f)
		e.shadow.count(d, &own.shadow)
		result := "denied"
		if d.Allowed {
			result = "allowed"
		}
		if d.Policy != "" {
			x.SetMetadata(name, e.conf.ShadowPrefix+"shadow_effective_policy_id", d.Policy)
		}
		x.SetMetadata(name, e.conf.ShadowPrefix+"shadow_engine_result", result)
		f.Metadata = x.Entry.HTTP.Metadata
	}
	rules := e.conf.Rules
	if rules == nil {
		return nil
	}
	d := rbac.Evaluate(rules, &f)
	e.rules.count(d, &own.rules)
	if rules.Action == model.LogAll {
		x.SetMetadata("envoy.common", "access_log_hint", d.Policy != "")
	}
	if d.Allowed {
		return nil
	}
	// Whitespace would split the details in logs.
	r := filter.Deny(403, "RBAC: access denied", strings.Join(strings.Fields(d.Detail()), "_"), 0)
	if r.Rule = d.Policy; r.Rule == "" {
		r.Rule = "default"
	}
	return r
}

func factsOf(x *filter.Exchange) rbac.Facts {
	c := x.Conn
	f := rbac.Facts{
		DirectRemote: c.Direct.Addr(),
		Connection:   c.Remote.Addr(),
		Remote:       x.Remote,
		Local:        c.Local,
		ServerName:   c.ServerName,
		Request:      x.Request,
		Metadata:     x.Entry.HTTP.Metadata,
		FilterState:  x.Entry.HTTP.FilterState,
	}
	if r := x.Match.Route; r != nil {
		f.RouteMetadata = r.Metadata
	}
	if p := c.Peer; p != nil {
		f.Authenticated = true
		f.URIs, f.DNS, f.Subject = p.URIs, p.DNS, p.Subject
	}
	return f
}
