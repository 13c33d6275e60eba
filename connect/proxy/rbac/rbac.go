// Package rbac decides whether a set of policies lets a connection or a request through.
//
// It is pure. What cannot be known about a peer matches no rule, and what cannot be decided — a rule of a kind that the
// package does not know, a rule about requests where there is only a connection, a value with bytes that no header may
// have — matches nothing under an allow policy and everything under a deny policy: a doubt never opens a door.
package rbac

import (
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
	"unsafe"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

// Facts are what is known of a connection, and of a request if there is one.
type Facts struct {
	Authenticated bool     // the peer proved a valid certificate
	URIs, DNS     []string // names in it, byte by byte as they stand there
	Subject       string   // its subject, in the form of RFC 2253

	DirectRemote netip.Addr     // the peer of the socket
	Connection   netip.Addr     // the peer of the connection as told by whoever may tell; only of requests
	Remote       netip.Addr     // the same of a connection; the client, by trusted forwarding headers, of a request
	Local        netip.AddrPort // the address the peer connected to
	ServerName   string         // what the peer asked for in TLS, lower case

	Request       *message.Request // nil if only the connection is looked at
	Metadata      model.Metadata   // dynamic
	RouteMetadata model.Metadata
	FilterState   map[string]string
}

// A Decision says whether the connection or the request goes on and which policy decided.
type Decision struct {
	Allowed bool
	Policy  string // the policy that matched; empty if none did
}

// Evaluate applies the rules. Nil rules admit everybody.
func Evaluate(r *model.RBAC, f *Facts) Decision {
	if r == nil {
		return Decision{Allowed: true}
	}
	// What an undecidable rule counts as.
	doubt := r.Action == model.Deny
	for i := range r.Policies {
		p := &r.Policies[i]
		if anyOf(p.Permissions, f, doubt) && anyOf(p.Principals, f, doubt) {
			return Decision{Allowed: r.Action != model.Deny, Policy: p.Name}
		}
	}
	return Decision{Allowed: r.Action != model.Allow}
}

// Detail returns the text that logs and close reasons carry for a refusal.
func (d Decision) Detail() string {
	name := d.Policy
	if name == "" {
		name = "none"
	}
	return "rbac_access_denied_matched_policy[" + name + "]"
}

func anyOf(rules []model.Rule, f *Facts, doubt bool) bool {
	for i := range rules {
		if matches(&rules[i], f, doubt) {
			return true
		}
	}
	return false
}

func matches(r *model.Rule, f *Facts, doubt bool) bool {
	switch r.Kind {
	case model.RuleAny:
		return true
	case model.RuleAnd:
		for i := range r.Rules {
			if !matches(&r.Rules[i], f, doubt) {
				return false
			}
		}
		return true
	case model.RuleOr:
		return anyOf(r.Rules, f, doubt)
	case model.RuleNot:
		// The doubt turns around with the meaning.
		return !matches(&r.Rules[0], f, !doubt)
	case model.RuleAuthenticated:
		return f.Authenticated
	case model.RulePrincipal:
		return f.Authenticated && principal(&r.Match, f)
	case model.RuleDirectRemoteIP:
		return contains(r.Prefix, f.DirectRemote)
	case model.RuleRemoteIP:
		return contains(r.Prefix, f.Remote)
	case model.RuleDestinationIP:
		return contains(r.Prefix, f.Local.Addr())
	case model.RuleDestinationPort:
		p := uint32(f.Local.Port())
		return uint32(r.Port) <= p && p < r.End
	case model.RuleServerName:
		return r.Match.Match(f.ServerName)
	case model.RuleMetadata:
		// A connection has none, whatever is asked about it.
		return f.Request != nil && r.Metadata != nil && r.Metadata.Match(f.Metadata)
	}
	if f.Request == nil {
		return doubt
	}
	switch r.Kind {
	case model.RuleHeader:
		return header(r.Header, f.Request, doubt)
	case model.RulePath:
		path := route.WithoutQuery(f.Request.Path)
		if path == "" || !clean(path) {
			return doubt
		}
		return r.Match.Match(path)
	case model.RuleRouteMetadata:
		return r.Metadata != nil && r.Metadata.Match(f.RouteMetadata)
	case model.RuleFilterState:
		v, ok := f.FilterState[r.Key]
		if !ok {
			return false
		}
		if !r.Prefix.IsValid() {
			return r.Match.Match(v)
		}
		if ap, err := netip.ParseAddrPort(v); err == nil {
			return contains(r.Prefix, ap.Addr())
		}
		a, err := netip.ParseAddr(v)
		if err != nil {
			return doubt
		}
		return contains(r.Prefix, a)
	case model.RuleConnectionIP:
		return contains(r.Prefix, f.Connection)
	}
	return doubt
}

// header compares a header of the request. What would count against the client is looked for in the joined value and
// in each field alone: who gets the request may read only one of them.
func header(m *model.HeaderMatch, r *message.Request, doubt bool) bool {
	value, ok, fields := "", true, 1
	switch m.Name {
	case ":method":
		value = r.Method
	case ":path":
		value, ok = r.Path, r.Path != ""
	case ":authority", "host":
		value, ok = r.Authority, r.Authority != ""
	case ":scheme":
		value, ok = r.Scheme, r.Scheme != ""
	case "upgrade":
		value, ok = r.Upgrade, r.Upgrade != ""
	default:
		if strings.HasPrefix(m.Name, ":") {
			return doubt
		}
		fields = 0
		for v := range r.Header.Values(m.Name) {
			if fields++; fields == 1 {
				value = v
			}
		}
		ok = fields > 0
	}
	switch m.Kind {
	case model.HeaderPresent:
		return ok != m.Invert
	case model.HeaderAbsent:
		return ok == m.Invert
	}
	if !ok && !m.MissingAsEmpty {
		return false
	}
	if fields < 2 {
		return compare(m, value, doubt)
	}
	buf := joined.Get().(*[]byte)
	b := (*buf)[:0]
	hit := doubt
	alone := false
	for v := range r.Header.Values(m.Name) {
		b = append(append(b, v...), ',')
		alone = alone || compare(m, v, doubt) == doubt
	}
	// Fitting the pattern counts against the client in deny policies, and in allow policies when it is inverted.
	if against := doubt != m.Invert; !against || !alone {
		b = b[:len(b)-1]
		// Nobody keeps the string longer than the comparison.
		hit = compare(m, unsafe.String(unsafe.SliceData(b), len(b)), doubt)
	}
	if cap(b) <= keepJoined {
		*buf = b
	}
	joined.Put(buf)
	return hit
}

// joined holds buffers for values that stand in several fields.
var joined = sync.Pool{New: func() any { return new([]byte) }}

const keepJoined = 64 << 10

// compare compares one value.
func compare(m *model.HeaderMatch, value string, doubt bool) bool {
	switch m.Kind {
	case model.HeaderString:
		if !clean(value) {
			return doubt
		}
		return m.Match.Match(value) != m.Invert
	case model.HeaderRange:
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return doubt
		}
		return (m.Start <= n && n < m.End) != m.Invert
	}
	return doubt
}

// clean reports whether a value is text. Matchers do not agree about other bytes with whoever gets the request.
func clean(s string) bool {
	ascii := true
	for i := range len(s) {
		switch c := s[i]; {
		case c >= utf8.RuneSelf:
			ascii = false
		case c < ' ' && c != '\t' || c == 0x7f:
			return false
		}
	}
	return ascii || utf8.ValidString(s)
}

// principal compares the first kind of name that the peer has: URI, DNS, subject.
func principal(m *model.StringMatch, f *Facts) bool {
	names := f.URIs
	if len(names) == 0 {
		names = f.DNS
	}
	if len(names) == 0 {
		return m.Match(f.Subject)
	}
	for _, n := range names {
		if m.Match(n) {
			return true
		}
	}
	return false
}

func contains(p netip.Prefix, a netip.Addr) bool {
	return p.IsValid() && a.IsValid() && p.Contains(a.Unmap())
}
