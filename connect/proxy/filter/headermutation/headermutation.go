// Package headermutation changes headers, trailers and query parameters.
package headermutation

import (
	"net/url"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.header_mutation"

// Config lists changes, each in its order. Those of the filter come before those of routes.
type Config struct {
	Request, Response, RequestTrailers, ResponseTrailers []Mutation
	Query                                                []QueryMutation
	// MostSpecificWins applies those of the route last, rather than those of the route table.
	MostSpecificWins bool
}

// A Mutation is an edit, or removes the headers whose names match.
type Mutation struct {
	Edit        model.HeaderEdit
	RemoveMatch *model.StringMatch // nil: Edit
}

// A QueryMutation changes a query parameter. The value may have operators of access logs.
type QueryMutation struct {
	Remove      bool
	Name, Value string
	Action      model.AppendAction
}

// FilterType returns "envoy.filters.http.header_mutation".
func (*Config) FilterType() string { return name }

type mutations struct {
	request, response, requestTrailers, responseTrailers list
	query                                                []query
}

type list []mutation

type mutation struct {
	edits route.Edits
	match *model.StringMatch
}

type query struct {
	*QueryMutation
	format *accesslog.Format
}

func compile(c *Config) (*mutations, error) {
	m := &mutations{}
	for _, part := range []struct {
		to   *list
		from []Mutation
	}{{&m.request, c.Request}, {&m.response, c.Response}, {&m.requestTrailers, c.RequestTrailers}, {&m.responseTrailers, c.ResponseTrailers}} {
		for _, x := range part.from {
			one := mutation{match: x.RemoveMatch}
			if x.RemoveMatch == nil {
				var err error
				if one.edits, err = route.NewEdits([]model.HeaderEdit{x.Edit}); err != nil {
					return nil, err
				}
			}
			*part.to = append(*part.to, one)
		}
	}
	for i := range c.Query {
		q := query{QueryMutation: &c.Query[i]}
		if !q.Remove {
			var err error
			if q.format, err = accesslog.ParseFormat(q.Value); err != nil {
				return nil, err
			}
		}
		m.query = append(m.query, q)
	}
	return m, nil
}

type mutationFilter struct {
	name          string
	own           *mutations
	specificFirst bool
}

func newFilter(filterName string, conf model.FilterConfig, _ *filter.Env) (filter.Filter, error) {
	c := conf.(*Config)
	own, err := compile(c)
	return &mutationFilter{filterName, own, !c.MostSpecificWins}, err
}

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return compile(conf.(*Config)) }

// all calls f with everything that concerns an exchange, in order.
func (f *mutationFilter) all(x *filter.Exchange, do func(*mutations)) {
	do(f.own)
	var buf [4]*mutations
	levels := buf[:0]
	x.Match.FilterConfigs(f.name, func(v any) {
		if m, isRoute := v.(*mutations); isRoute {
			levels = append(levels, m)
		}
	})
	if f.specificFirst {
		slices.Reverse(levels)
	}
	for _, m := range levels {
		do(m)
	}
}

func (l list) apply(h *message.Header, a *message.Arena, e *accesslog.Entry) {
	for i := range l {
		if m := l[i].match; m != nil {
			h.DelFunc(func(f message.Field) bool { return m.Match(f.Name) })
			continue
		}
		l[i].edits.Apply(h, a, e)
	}
}

func (f *mutationFilter) Request(x *filter.Exchange) *filter.Reply {
	r := x.Request
	trailers := false
	f.all(x, func(m *mutations) {
		m.request.apply(&r.Header, &r.Arena, x.Entry)
		for i := range m.query {
			r.Path = m.query[i].apply(r.Path, x.Entry)
		}
		trailers = trailers || len(m.requestTrailers) > 0
	})
	if trailers && x.Body != message.NoBody {
		x.Body = &tail{Source: x.Body, change: func(h *message.Header) {
			f.all(x, func(m *mutations) { m.requestTrailers.apply(h, &r.Arena, x.Entry) })
		}}
	}
	return nil
}

func (f *mutationFilter) Response(x *filter.Exchange) *filter.Reply {
	r := x.Response
	trailers := false
	f.all(x, func(m *mutations) {
		m.response.apply(&r.Header, &r.Arena, x.Entry)
		trailers = trailers || len(m.responseTrailers) > 0
	})
	if trailers && x.ResponseBody != message.NoBody {
		x.ResponseBody = &tail{Source: x.ResponseBody, change: func(h *message.Header) {
			f.all(x, func(m *mutations) { m.responseTrailers.apply(h, &r.Arena, x.Entry) })
		}}
	}
	return nil
}

// tail changes the trailers of a body when they have come.
type tail struct {
	message.Source
	change func(*message.Header)
	done   bool
}

func (t *tail) Trailer() *message.Header {
	h := t.Source.Trailer()
	if h != nil && !t.done {
		t.done = true
		t.change(h)
	}
	return h
}

func (q *query) apply(path string, e *accesslog.Entry) string {
	bare, rest, _ := strings.Cut(path, "?")
	var parts []string
	there := false
	value := ""
	if !q.Remove {
		value = q.Name + "=" + url.QueryEscape(string(q.format.Append(nil, e)))
	}
	for p := range strings.SplitSeq(rest, "&") {
		if p == "" {
			continue
		}
		k, _, _ := strings.Cut(p, "=")
		if k != q.Name {
			parts = append(parts, p)
			continue
		}
		overwrite := q.Action == model.OverwriteOrAdd || q.Action == model.OverwriteIfExists
		switch {
		case q.Remove, overwrite && there:
		case overwrite:
			parts = append(parts, value)
		default:
			parts = append(parts, p)
		}
		there = true
	}
	if !q.Remove && (q.Action == model.AppendOrAdd || !there && q.Action != model.OverwriteIfExists) {
		parts = append(parts, value)
	}
	if len(parts) == 0 {
		return bare
	}
	return bare + "?" + strings.Join(parts, "&")
}
