// Package rbac decides whether a set of policies lets a connection through.
//
// It is pure. What cannot be known about a peer matches no rule, and a rule of
// a kind that the package does not know matches nothing under an allow policy
// and everything under a deny policy: a doubt never opens a door.
package rbac

import (
	"net/netip"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Facts are what is known of a connection.
type Facts struct {
	Authenticated bool     // the peer proved a valid certificate
	URIs, DNS     []string // names in it, byte by byte as they stand there
	Subject       string   // its subject, in the form of RFC 2253

	DirectRemote netip.Addr     // the peer of the socket
	Remote       netip.Addr     // the peer as told by whoever may tell
	Local        netip.AddrPort // the address the peer connected to
	ServerName   string         // what the peer asked for in TLS, lower case
}

// A Decision says whether the connection goes on and which policy decided.
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
		return f.Authenticated && principal(r.Match, f)
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
		return false // a connection has none
	}
	return doubt
}

// principal compares the first kind of name that the peer has: URI, DNS, subject.
func principal(m model.StringMatch, f *Facts) bool {
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
