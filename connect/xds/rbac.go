//lint:file-ignore SA1019 what replaces these matchers is newer than many an Envoy in use

package xds

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/intention"
)

const layer4Policy = "consul-intentions-layer4"

// rules turns intentions, in order of precedence, into role-based access control rules. Rules of action ALLOW refuse who
// is in no policy, rules of action DENY who is in one; which it is depends on what is decided where no intention fits.
//
// An intention decides for the callers that no intention before it decided for, as in connect/intention. Policies have
// no order, so each intention is written with the callers of those before it taken out.
//
// On a connection (layer 4) nothing is known of requests: intentions that ask for something of a request refuse.
func (b *build) rules(layer7 bool) *rbacv3.RBAC { return b.rulesOf(b.intentions(), layer7) }

// rulesOf is rules for the intentions about another service than the proxy's.
func (b *build) rulesOf(intentions []*intention.Intention, layer7 bool) *rbacv3.RBAC {
	defaultAllow := b.s.Proxy.DefaultAllow
	out := &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: map[string]*rbacv3.Policy{}}
	if defaultAllow {
		out.Action = rbacv3.RBAC_DENY
	}
	var before []source // decided for, in order
	var layer4 []*rbacv3.Principal
	n := 0
	for _, x := range intentions {
		from := source{name: x.SourceName, trustDomain: b.trustDomain}
		if x.SourcePeer != "" {
			bundle := b.s.Peer(x.SourcePeer)
			if bundle == nil {
				continue // whose names no certificate that is trusted here carries
			}
			from.peer, from.trustDomain, from.partition = x.SourcePeer, bundle.TrustDomain, bundle.Partition
		}
		if from.covered(before) {
			continue
		}
		from.gateway = ""
		if layer7 && from.peer != "" {
			from.gateway = b.trustDomain
		}
		principal := from.principal(before)
		before = append(before, from)
		asksRequest := len(x.Permissions) > 0 || x.JWT != nil && len(x.JWT.Providers) > 0
		switch {
		case asksRequest && !layer7:
			if defaultAllow {
				layer4 = append(layer4, principal)
			}
		case asksRequest:
			if p := b.requestPolicy(x, principal, defaultAllow); p != nil {
				out.Policies[fmt.Sprintf("consul-intentions-layer7-%d", n)] = p
				n++
			}
		case (x.Action == entry.Allow) != defaultAllow:
			layer4 = append(layer4, principal)
			n++
		}
	}
	if len(layer4) > 0 {
		out.Policies[layer4Policy] = &rbacv3.Policy{Permissions: []*rbacv3.Permission{anyPermission()}, Principals: layer4}
	}
	return out
}

// peerSourcesFrom lists the bundles of the peers that intentions name, for add.
func (b *build) peerSourcesFrom() []any {
	var from []any
	for _, x := range b.intentions() {
		if x.SourcePeer != "" {
			from = append(from, b.s.Peer(x.SourcePeer))
		}
	}
	return from
}

// A source is who an intention is about.
type source struct {
	name, peer  string
	trustDomain string
	partition   string
	// gateway, unless empty, is the trust domain of the mesh gateways that end the TLS of the source's requests and tell in
	// a header who sent them.
	gateway string
}

// covered reports whether every caller that s names is among those decided for already.
func (s source) covered(before []source) bool {
	for _, b := range before {
		if b.peer == s.peer && (b.name == s.name || b.name == entry.Wildcard) {
			return true
		}
	}
	return false
}

// principal matches the callers that s names, save those decided for already.
func (s source) principal(before []source) *rbacv3.Principal {
	and := s.match()
	if s.name == entry.Wildcard {
		for _, b := range before {
			if b.peer == s.peer {
				and = append(and, &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: andPrincipals(b.match())}})
			}
		}
	}
	return andPrincipals(and)
}

// match matches the SPIFFE ID of a service in any datacenter.
func (s source) match() []*rbacv3.Principal {
	name := `[^/]+`
	if s.name != entry.Wildcard {
		name = regexp.QuoteMeta(url.PathEscape(s.name))
	}
	id := `spiffe://` + regexp.QuoteMeta(s.trustDomain)
	if s.partition != "" && s.partition != "default" {
		id += `/ap/` + regexp.QuoteMeta(url.PathEscape(s.partition))
	}
	id += `/ns/default/dc/[^/]+/svc/` + name
	if s.gateway == "" {
		return []*rbacv3.Principal{authenticated(`^` + id + `$`)}
	}
	return []*rbacv3.Principal{
		authenticated(`^spiffe://` + regexp.QuoteMeta(s.gateway) + `/gateway/mesh/dc/[^/]+$`),
		{Identifier: &rbacv3.Principal_Header{
			Header: headerMatcher("x-forwarded-client-cert", false, "", "", "", "", `^[^,]+;URI=`+id+`(?:,.*)?$`, false, false),
		}},
	}
}

func authenticated(pattern string) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{
		PrincipalName: regex(pattern),
	}}}
}

// requestPolicy is the policy of an intention that asks for something of requests, nil when it changes nothing about
// the default.
func (b *build) requestPolicy(x *intention.Intention, principal *rbacv3.Principal, defaultAllow bool) *rbacv3.Policy {
	if x.JWT != nil && len(x.JWT.Providers) > 0 {
		principal = andPrincipals([]*rbacv3.Principal{principal, b.tokenPrincipal(x.JWT)})
	}
	if len(x.Permissions) == 0 {
		if (x.Action == entry.Allow) == defaultAllow {
			return nil
		}
		return &rbacv3.Policy{Permissions: []*rbacv3.Permission{anyPermission()}, Principals: []*rbacv3.Principal{principal}}
	}
	// Among permissions the first that matches decides, too.
	var decided, out []*rbacv3.Permission
	for _, p := range x.Permissions {
		match := b.permission(p)
		if (p.Action == entry.Allow) != defaultAllow {
			and := []*rbacv3.Permission{match}
			for _, d := range decided {
				and = append(and, &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: d}})
			}
			out = append(out, andPermissions(and))
		}
		decided = append(decided, match)
	}
	if len(out) == 0 {
		return nil
	}
	return &rbacv3.Policy{Permissions: out, Principals: []*rbacv3.Principal{principal}}
}

// permission matches the requests a permission is about.
func (b *build) permission(p *entry.IntentionPermission) *rbacv3.Permission {
	var and []*rbacv3.Permission
	if h := p.HTTP; h != nil {
		var path *matcherv3.StringMatcher
		switch {
		case h.PathExact != "":
			path = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: h.PathExact}}
		case h.PathPrefix != "":
			path = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: h.PathPrefix}}
		case h.PathRegex != "":
			path = regex(h.PathRegex)
		}
		if path != nil {
			and = append(and, &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{
				UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: path}},
			}})
		}
		for _, c := range h.Header {
			and = append(and, headerPermission(headerMatcher(c.Name, c.Present, c.Exact, c.Prefix, c.Suffix, c.Contains, c.Regex, c.IgnoreCase, c.Invert)))
		}
		if len(h.Methods) > 0 {
			and = append(and, headerPermission(methodMatcher(h.Methods)))
		}
	}
	if p.JWT != nil && len(p.JWT.Providers) > 0 {
		var or []*rbacv3.Permission
		for _, provider := range p.JWT.Providers {
			var all []*rbacv3.Permission
			for _, m := range b.tokenClaims(provider) {
				all = append(all, &rbacv3.Permission{Rule: &rbacv3.Permission_Metadata{Metadata: m}})
			}
			or = append(or, andPermissions(all))
		}
		if len(or) == 1 {
			and = append(and, or[0])
		} else {
			and = append(and, &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: or}}})
		}
	}
	return andPermissions(and)
}

// tokenPrincipal matches requests with a valid token of one of the providers.
func (b *build) tokenPrincipal(j *entry.IntentionJWT) *rbacv3.Principal {
	var or []*rbacv3.Principal
	for _, provider := range j.Providers {
		var all []*rbacv3.Principal
		for _, m := range b.tokenClaims(provider) {
			all = append(all, &rbacv3.Principal{Identifier: &rbacv3.Principal_Metadata{Metadata: m}})
		}
		or = append(or, andPrincipals(all))
	}
	if len(or) == 1 {
		return or[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: or}}}
}

// tokenClaims match what the token filter leaves behind about a valid token of a provider. Nothing is left behind
// without the filter, so that rules on tokens then match nothing.
func (b *build) tokenClaims(p *entry.IntentionJWTProvider) []*matcherv3.MetadataMatcher {
	payload := tokenPayload + p.Name
	var issuer *string
	if e := b.s.TokenIssuer(p.Name); e != nil && e.Issuer != "" {
		issuer = &e.Issuer
	}
	out := []*matcherv3.MetadataMatcher{claim(payload, []string{"iss"}, issuer)}
	for _, c := range p.VerifyClaims {
		out = append(out, claim(payload, c.Path, &c.Value))
	}
	return out
}

func claim(payload string, path []string, value *string) *matcherv3.MetadataMatcher {
	m := &matcherv3.MetadataMatcher{Filter: filterJWT}
	for _, key := range append([]string{payload}, path...) {
		m.Path = append(m.Path, &matcherv3.MetadataMatcher_PathSegment{
			Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key},
		})
	}
	m.Value = &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
	if value != nil {
		m.Value.MatchPattern = &matcherv3.ValueMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: *value},
		}}
	}
	return m
}

func anyPermission() *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
}

func headerPermission(m *routev3.HeaderMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: m}}
}

func andPermissions(all []*rbacv3.Permission) *rbacv3.Permission {
	switch len(all) {
	case 0:
		return anyPermission()
	case 1:
		return all[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: all}}}
}

func andPrincipals(all []*rbacv3.Principal) *rbacv3.Principal {
	if len(all) == 1 {
		return all[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: all}}}
}

// headerMatcher matches a header; exactly one of present to re is set.
func headerMatcher(name string, present bool, exact, prefix, suffix, contains, re string, ignoreCase, invert bool) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: name, InvertMatch: invert}
	var s *matcherv3.StringMatcher
	switch {
	case exact != "":
		s = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: exact}, IgnoreCase: ignoreCase}
	case prefix != "":
		s = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}, IgnoreCase: ignoreCase}
	case suffix != "":
		s = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: suffix}, IgnoreCase: ignoreCase}
	case contains != "":
		s = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: contains}, IgnoreCase: ignoreCase}
	case re != "":
		s = regex(re)
	default:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return h
	}
	h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: s}
	return h
}

// methodMatcher matches requests with one of the methods.
func methodMatcher(methods []string) *routev3.HeaderMatcher {
	quoted := make([]string, len(methods))
	for i, m := range methods {
		quoted[i] = regexp.QuoteMeta(m)
	}
	return headerMatcher(":method", false, "", "", "", "", strings.Join(quoted, "|"), false, false)
}

func regex(pattern string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: pattern}}}
}
