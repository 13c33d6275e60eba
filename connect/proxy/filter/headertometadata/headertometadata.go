// Package headertometadata copies headers into dynamic metadata.
package headertometadata

import (
	"encoding/base64"
	"strconv"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/descriptor"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.header_to_metadata"

// maxValue bounds the bytes of a value that is copied.
const maxValue = 8 << 10

// Config lists what is copied.
type Config struct{ Request, Response []Rule }

// A Rule copies a header or a cookie.
type Rule struct {
	Header, Cookie string // one of the two
	Present        *Value // nil does nothing
	Missing        *Value // its Value is what is stored
	Remove         bool   // the header, after all rules
}

// A Value is what is stored where.
type Value struct {
	Namespace string // empty is that of the filter
	Key       string
	Value     string              // replaces the header's if it is not empty
	Rewrite   *model.RegexRewrite // changes the header's
	Number    bool
	Base64    bool // it is decoded first
}

// FilterType returns "envoy.filters.http.header_to_metadata".
func (*Config) FilterType() string { return name }

type metadataFilter struct {
	name string
	conf *Config
}

func newFilter(filterName string, conf model.FilterConfig, _ *filter.Env) (filter.Filter, error) {
	return &metadataFilter{filterName, conf.(*Config)}, nil
}

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*Config), nil }

func (f *metadataFilter) config(x *filter.Exchange) *Config {
	if c, isRoute := x.RouteConfig(f.name).(*Config); isRoute {
		return c
	}
	return f.conf
}

func (f *metadataFilter) Request(x *filter.Exchange) *filter.Reply {
	rules := f.config(x).Request
	for i := range rules {
		r := &rules[i]
		var v string
		var there bool
		if r.Cookie != "" {
			for c := range x.Request.Header.Values("cookie") {
				descriptor.EachCookie(c, func(name, value string) {
					if name == r.Cookie && !there {
						v, there = value, true
					}
				})
			}
		} else {
			v, there = descriptor.Header(x, r.Header)
		}
		store(x, r, v, there)
	}
	remove(rules, &x.Request.Header)
	return nil
}

func (f *metadataFilter) Response(x *filter.Exchange) *filter.Reply {
	rules := f.config(x).Response
	for i := range rules {
		if r := &rules[i]; r.Cookie == "" {
			v, there := x.Response.Header.Lookup(r.Header, &x.Response.Arena)
			store(x, r, v, there)
		}
	}
	remove(rules, &x.Response.Header)
	return nil
}

func remove(rules []Rule, h *message.Header) {
	for i := range rules {
		if r := &rules[i]; r.Remove && r.Header != "" {
			h.Del(r.Header)
		}
	}
}

func store(x *filter.Exchange, r *Rule, v string, there bool) {
	to := r.Missing
	if there {
		to = r.Present
	}
	if to == nil {
		return
	}
	switch {
	case !there, to.Value != "":
		v = to.Value
	case to.Rewrite != nil:
		v = to.Rewrite.Pattern.ReplaceAllString(v, to.Rewrite.Substitution)
	}
	if v == "" || len(v) > maxValue {
		return
	}
	if to.Base64 {
		b, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			return
		}
		v = string(b)
	}
	ns := to.Namespace
	if ns == "" {
		ns = name
	}
	if !to.Number {
		x.SetMetadata(ns, to.Key, v)
	} else if n, err := strconv.ParseFloat(v, 64); err == nil && n-n == 0 { // JSON has no infinities
		x.SetMetadata(ns, to.Key, n)
	}
}
