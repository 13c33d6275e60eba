package jwtauthn

import (
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/descriptor"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

func field(name, value string) message.Field { return message.Field{Name: name, Value: value} }

// A place is where tokens stand.
type place struct {
	kind   placeKind
	name   string
	prefix string // of headers
}

type placeKind uint8

const (
	inHeader placeKind = iota
	inParam
	inCookie
)

// An extracted is a token in a request. The value is good as long as the request.
type extracted struct {
	place place
	value string
	of    []*provider // that look for tokens at this place
}

// maxTokens bounds the tokens of a request that are looked at; any more are bad ones.
const maxTokens = 16

func (p *provider) places() []place {
	var out []place
	for _, h := range p.Headers {
		out = append(out, place{inHeader, h.Name, h.Prefix})
	}
	for _, n := range p.Params {
		out = append(out, place{inParam, n, ""})
	}
	for _, n := range p.Cookies {
		out = append(out, place{inCookie, n, ""})
	}
	if out == nil {
		return defaultPlaces
	}
	return out
}

var defaultPlaces = []place{{inHeader, "authorization", "Bearer "}, {inParam, "access_token", ""}}

// extract finds the tokens of a request at the places of providers, in the order of headers, parameters, cookies.
func extract(x *filter.Exchange, providers []*provider) []extracted {
	var out []extracted
	add := func(pl place, of *provider, value string) {
		for i := range out {
			if e := &out[i]; e.place == pl && e.value == value {
				if !slices.Contains(e.of, of) {
					e.of = append(e.of, of)
				}
				return
			}
		}
		if len(out) <= maxTokens {
			out = append(out, extracted{pl, value, []*provider{of}})
		}
	}
	for _, kind := range []placeKind{inHeader, inParam, inCookie} {
		for _, p := range providers {
			for _, pl := range p.places() {
				if pl.kind == kind {
					find(x, pl, func(value string) { add(pl, p, value) })
				}
			}
		}
	}
	if len(out) > maxTokens {
		out[maxTokens].value = "" // which no token is
	}
	return out
}

func find(x *filter.Exchange, pl place, f func(string)) {
	h := &x.Request.Header
	switch pl.kind {
	case inHeader:
		for v := range h.Values(pl.name) {
			_, after, found := strings.Cut(v, pl.prefix)
			if found {
				f(tokenIn(after))
			}
		}
	case inParam:
		_, query, _ := strings.Cut(x.Request.Path, "?")
		for query != "" {
			var p string
			p, query, _ = strings.Cut(query, "&")
			if k, v, _ := strings.Cut(p, "="); k == pl.name {
				f(v)
			}
		}
	case inCookie:
		for v := range h.Values("cookie") {
			descriptor.EachCookie(v, func(k, v string) {
				if k == pl.name {
					f(v)
				}
			})
		}
	}
}

// tokenIn cuts off what can't be part of a token before and after it.
func tokenIn(s string) string {
	other := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.=+/", r)
	}
	s = strings.TrimLeftFunc(s, other)
	if i := strings.IndexFunc(s, other); i >= 0 {
		s = s[:i]
	}
	return s
}

// remove takes the token, and all others at its place, out of the request.
func (e *extracted) remove(x *filter.Exchange) {
	r := x.Request
	switch e.place.kind {
	case inHeader:
		r.Header.Del(e.place.name)
	case inParam:
		r.Path = descriptor.WithoutParameter(r.Path, e.place.name, &r.Arena)
	case inCookie:
		kept := ""
		for v := range r.Header.Values("cookie") {
			descriptor.EachCookie(v, func(k, v string) {
				if k == e.place.name {
					return
				}
				if kept != "" {
					kept += "; "
				}
				kept += k + "=" + v
			})
		}
		if r.Header.Del("cookie"); kept != "" {
			r.Header.Add("cookie", kept)
		}
	}
}
