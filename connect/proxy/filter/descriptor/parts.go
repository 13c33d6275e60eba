package descriptor

import (
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// EachCookie calls f with the cookies of a value of the header "cookie".
func EachCookie(value string, f func(name, value string)) {
	for value != "" {
		var c string
		c, value, _ = strings.Cut(value, ";")
		if k, v, found := strings.Cut(strings.TrimSpace(c), "="); found {
			if len(v) > 1 && v[0] == '"' && v[len(v)-1] == '"' {
				v = v[1 : len(v)-1]
			}
			f(k, v)
		}
	}
}

// WithoutParameter returns a path without the parameters of a name in its query.
func WithoutParameter(path, name string, a *message.Arena) string {
	bare, query, _ := strings.Cut(path, "?")
	b := append(a.Begin(), bare...)
	sep := byte('?')
	for query != "" {
		var p string
		p, query, _ = strings.Cut(query, "&")
		if k, _, _ := strings.Cut(p, "="); k == name {
			continue
		}
		b = append(append(b, sep), p...)
		sep = '&'
	}
	return a.End(b)
}
