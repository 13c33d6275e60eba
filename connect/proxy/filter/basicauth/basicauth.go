// Package basicauth lets users in who show a name and a password.
package basicauth

import (
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.basic_auth"

// Config says who may come in.
type Config struct {
	Users         Users
	ForwardHeader string // gets the name of the user; empty none
	Header        string // that holds the credentials; empty is "authorization"
	Realm         string // empty is the URL that was asked for
}

// FilterType returns "envoy.filters.http.basic_auth".
func (*Config) FilterType() string { return name }

// Users are the hashes of passwords by names.
type Users map[string][sha1.Size]byte

// ParseUsers reads lines of the form "name:{SHA}hash", as htpasswd -s writes them.
func ParseUsers(text string) (Users, error) {
	out := Users{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		user, hash, _ := strings.Cut(line, ":")
		rest, ok := strings.CutPrefix(hash, "{SHA}")
		b, err := base64.StdEncoding.DecodeString(rest)
		switch {
		case user == "":
			return nil, fmt.Errorf("line %d: no name", n)
		case !ok || err != nil || len(b) != sha1.Size:
			return nil, fmt.Errorf("line %d: not a SHA hash", n)
		}
		if _, twice := out[user]; twice {
			return nil, fmt.Errorf("line %d: a user for the second time", n)
		}
		out[user] = [sha1.Size]byte(b)
	}
	if len(out) == 0 {
		return nil, errors.New("no users")
	}
	return out, nil
}

type authFilter struct {
	name            string
	conf            *Config
	allowed, denied *stats.Counter
}

func newFilter(filterName string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	return &authFilter{filterName, conf.(*Config), env.Stats.Counter("basic_auth.allowed"), env.Stats.Counter("basic_auth.denied")}, nil
}

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*Config), nil }

func (f *authFilter) Request(x *filter.Exchange) *filter.Reply {
	users, realm := f.conf.Users, f.conf.Realm
	if r, isRoute := x.RouteConfig(f.name).(*Config); isRoute {
		users = r.Users
		if r.Realm != "" {
			realm = r.Realm
		}
	}
	h := &x.Request.Header
	if f.conf.ForwardHeader != "" {
		h.Del(f.conf.ForwardHeader)
	}
	header := f.conf.Header
	if header == "" {
		header = "authorization"
	}
	user, why, details := check(h, header, users)
	if why != "" {
		f.denied.Inc()
		r := filter.Deny(401, "User authentication failed. "+why, details, 0)
		if realm == "" {
			scheme := x.Request.Scheme
			if p := h.Get("x-forwarded-proto"); p != "" {
				scheme = p
			}
			realm = scheme + "://" + x.Request.Authority + x.Path()
		}
		r.Header = append(r.Header, message.Field{Name: "www-authenticate", Value: `Basic realm="` + strings.ReplaceAll(realm, `"`, "%22") + `"`})
		r.Rule = name
		return r
	}
	f.allowed.Inc()
	if f.conf.ForwardHeader != "" {
		h.Set(f.conf.ForwardHeader, user)
	}
	return nil
}

func check(h *message.Header, header string, users Users) (user, why, details string) {
	v, n := "", 0
	for field := range h.Values(header) {
		v = field
		n++
	}
	if n == 0 {
		return "", "Missing username and password.", "no_credential_for_basic_auth"
	}
	scheme, rest, _ := strings.Cut(v, " ")
	if n > 1 || !strings.EqualFold(scheme, "basic") {
		return "", "Expected 'Basic' authentication scheme.", "invalid_scheme_for_basic_auth"
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
	user, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return "", "Invalid basic credential format.", "invalid_format_for_basic_auth"
	}
	// A user that is not there costs the same as a wrong password.
	want, there := users[user]
	got := sha1.Sum([]byte(password))
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 || !there {
		return "", "Invalid username/password combination.", "invalid_credential_for_basic_auth"
	}
	return user, "", ""
}
