// Package setmetadata gives requests dynamic metadata.
package setmetadata

import (
	"maps"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: func(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*Config), nil }}

const name = "envoy.filters.http.set_metadata"

// Config lists what is set.
type Config struct{ Entries []Entry }

// An Entry sets values of a namespace.
type Entry struct {
	Namespace string
	Values    map[string]any
	Keep      bool // does nothing if the namespace has values
}

// FilterType returns "envoy.filters.http.set_metadata".
func (*Config) FilterType() string { return name }

type setFilter struct {
	name   string
	conf   *Config
	denied *stats.Counter
}

func newFilter(filterName string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	return &setFilter{filterName, conf.(*Config), env.Stats.Counter("set_metadata.overwrite_denied")}, nil
}

func (f *setFilter) Request(x *filter.Exchange) *filter.Reply {
	c := f.conf
	if r, isRoute := x.RouteConfig(f.name).(*Config); isRoute {
		c = r
	}
	for i := range c.Entries {
		e := &c.Entries[i]
		if old := x.Entry.HTTP.Metadata[e.Namespace]; e.Keep && len(old) > 0 {
			f.denied.Inc()
			continue
		}
		for k, v := range e.Values {
			x.SetMetadata(e.Namespace, k, merged(x.Entry.HTTP.Metadata[e.Namespace][k], v))
		}
	}
	return nil
}

// merged puts the keys of new into old if both are objects; else new is the value.
func merged(old, new any) any {
	o, both := old.(map[string]any)
	n, isMap := new.(map[string]any)
	if !both || !isMap {
		return new
	}
	out := maps.Clone(o)
	for k, v := range n {
		out[k] = merged(out[k], v)
	}
	return out
}
