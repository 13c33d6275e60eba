// Package buffer sends requests on when they are complete.
package buffer

import (
	"strconv"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/held"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.buffer"

// Config says how much a request may bring.
type Config struct {
	Max      int  // bytes
	Disabled bool // of routes
}

// FilterType returns "envoy.filters.http.buffer".
func (*Config) FilterType() string { return name }

type bufferFilter struct {
	name string
	conf *Config
}

func newFilter(filterName string, conf model.FilterConfig, _ *filter.Env) (filter.Filter, error) {
	return &bufferFilter{filterName, conf.(*Config)}, nil
}

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*Config), nil }

func (f *bufferFilter) Request(x *filter.Exchange) *filter.Reply {
	c := f.conf
	if r, isRoute := x.RouteConfig(f.name).(*Config); isRoute {
		c = r
	}
	r := x.Request
	if c.Disabled || x.Body == message.NoBody || r.Upgrade != "" || r.Method == "CONNECT" {
		return nil
	}
	if r.ContentLength > int64(c.Max) {
		return held.TooLarge()
	}
	b, err := held.Read(x.Body, c.Max)
	switch {
	case err != nil:
		return held.Failed(err)
	case len(b.Bytes) > c.Max:
		return held.TooLarge()
	}
	x.Body = b.Source()
	// Trailers need a body without a length where there are such.
	if r.ContentLength < 0 && x.Body.Trailer() == nil {
		r.ContentLength = int64(len(b.Bytes))
		r.Header.Set("content-length", r.Arena.End(strconv.AppendInt(r.Arena.Begin(), r.ContentLength, 10)))
	}
	return nil
}
