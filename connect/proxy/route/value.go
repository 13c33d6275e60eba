package route

import (
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Headers reports whether a request fits all matchers.
func Headers(list []model.HeaderMatch, r *message.Request) bool {
	var found values
	return found.headers(list, r)
}

// values remembers what was found of the last header, since many routes ask for the same one.
type values struct {
	name   string
	first  string
	number int
}

func (f *values) headers(list []model.HeaderMatch, r *message.Request) bool {
	for i := range list {
		if m := &list[i]; !f.fits(m, r) {
			return false
		}
	}
	return true
}

func (f *values) fits(m *model.HeaderMatch, r *message.Request) bool {
	if f.name != m.Name || m.Name == "" {
		if p := requestPseudo(m.Name, r); p.is {
			return m.Fits(p.value, p.present)
		}
		f.find(m.Name, &r.Header)
	}
	return f.decide(m, &r.Header)
}

func (f *values) find(name string, h *message.Header) {
	f.name, f.first, f.number = name, "", 0
	for v := range h.Values(name) {
		if f.number++; f.number == 1 {
			f.first = v
		}
	}
}

// ResponseHeaders reports whether a response fits all matchers.
func ResponseHeaders(list []model.HeaderMatch, r *message.Response) bool {
	for i := range list {
		m := &list[i]
		if m.Name == ":status" {
			if !m.Fits(status(r.Status), true) {
				return false
			}
			continue
		}
		var found values
		if found.find(m.Name, &r.Header); !found.decide(m, &r.Header) {
			return false
		}
	}
	return true
}

// pseudo is the value of what does not stand among the fields of a header.
type pseudo struct {
	is      bool // the name is such a one
	present bool
	value   string
}

func requestPseudo(name string, r *message.Request) pseudo {
	switch name {
	case ":method":
		return pseudo{true, true, r.Method}
	case ":path":
		return pseudo{true, r.Path != "", r.Path}
	case ":authority", "host":
		return pseudo{true, r.Authority != "", r.Authority}
	case ":scheme":
		return pseudo{true, r.Scheme != "", r.Scheme}
	case "upgrade":
		return pseudo{true, r.Upgrade != "", r.Upgrade}
	}
	return pseudo{}
}

// First returns the first value of a header of a request, or one of ":method", ":path", ":authority" and ":scheme".
func First(name string, r *message.Request) (string, bool) {
	if p := requestPseudo(name, r); p.is {
		return p.value, p.present
	}
	for v := range r.Header.Values(name) {
		return v, true
	}
	return "", false
}

// status returns a status as text.
func status(n int) string {
	if n >= 100 && n < 100+len(statuses) {
		return statuses[n-100]
	}
	return strconv.Itoa(n)
}

var statuses = func() (s [500]string) {
	for i := range s {
		s[i] = strconv.Itoa(i + 100)
	}
	return s
}()

// decide compares the values that were found. It is enough if one of several fits; they are not joined.
func (f *values) decide(m *model.HeaderMatch, h *message.Header) bool {
	if f.number < 2 || m.Kind == model.HeaderPresent || m.Kind == model.HeaderAbsent {
		return m.Fits(f.first, f.number > 0)
	}
	for v := range h.Values(m.Name) {
		if m.Hits(v) {
			return !m.Invert
		}
	}
	return m.Invert
}

// query returns the first value of a parameter of the query, as it stands in the path.
func query(path, name string) (value string, ok bool) {
	i := strings.IndexByte(path, '?')
	if i < 0 {
		return "", false
	}
	for rest, more := path[i+1:], true; more; {
		var p string
		p, rest, more = strings.Cut(rest, "&")
		if k, v, _ := strings.Cut(p, "="); k == name && p != "" {
			return v, true
		}
	}
	return "", false
}

// cookie returns the first value of a cookie.
func cookie(h *message.Header, name string) (value string, ok bool) {
	for line := range h.Values("cookie") {
		for rest, more := line, true; more; {
			var p string
			p, rest, more = strings.Cut(rest, ";")
			k, v, found := strings.Cut(strings.Trim(p, " \t"), "=")
			if !found || k != name {
				continue
			}
			if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
				v = v[1 : n-1]
			}
			return v, true
		}
	}
	return "", false
}
