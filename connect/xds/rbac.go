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
func rules(intentions []*intention.Intention, defaultAllow bool, trustDomain string, layer7 bool) *rbacv3.RBAC {
	out := &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: map[string]*rbacv3.Policy{}}
	if defaultAllow {
		out.Action = rbacv3.RBAC_DENY
	}
	var before []string // sources decided for, in order
	var layer4 []*rbacv3.Principal
	n := 0
	for _, x := range intentions {
		if x.SourcePeer != "" {
			continue // whose names no certificate that is trusted here carries
		}
		if covered(x.SourceName, before) {
			continue
		}
		principal := sourcePrincipal(x.SourceName, before, trustDomain)
		before = append(before, x.SourceName)
		asksRequest := len(x.Permissions) > 0 || x.JWT != nil && len(x.JWT.Providers) > 0
		switch {
		case asksRequest && !layer7:
			if defaultAllow {
				layer4 = append(layer4, principal)
			}
		case asksRequest:
			if p := requestPolicy(x, principal, defaultAllow); p != nil {
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

// covered reports whether every caller named by source is among those decided for already.
func covered(source string, before []string) bool {
	for _, b := range before {
		if b == source || b == entry.Wildcard {
			return true
		}
	}
	return false
}

// sourcePrincipal matches the callers named by a source, save those decided for already.
func sourcePrincipal(source string, before []string, trustDomain string) *rbacv3.Principal {
	p := principalOf(source, trustDomain)
	if source != entry.Wildcard {
		return p
	}
	and := []*rbacv3.Principal{p}
	for _, b := range before {
		and = append(and, &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: principalOf(b, trustDomain)}})
	}
	return andPrincipals(and)
}

// principalOf matches the SPIFFE ID of a service in any datacenter.
func principalOf(source, trustDomain string) *rbacv3.Principal {
	name := `[^/]+`
	if source != entry.Wildcard {
		name = regexp.QuoteMeta(url.PathEscape(source))
	}
	pattern := `^spiffe://` + regexp.QuoteMeta(trustDomain) + `/ns/default/dc/[^/]+/svc/` + name + `$`
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{
		PrincipalName: regex(pattern),
	}}}
}

// requestPolicy is the policy of an intention that asks for something of requests, nil when it changes nothing about
// the default.
func requestPolicy(x *intention.Intention, principal *rbacv3.Principal, defaultAllow bool) *rbacv3.Policy {
	if x.JWT != nil && len(x.JWT.Providers) > 0 {
		principal = andPrincipals([]*rbacv3.Principal{principal, tokenPrincipal(x.JWT)})
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
		match := permission(p)
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
func permission(p *entry.IntentionPermission) *rbacv3.Permission {
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
			for _, m := range tokenClaims(provider) {
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
func tokenPrincipal(j *entry.IntentionJWT) *rbacv3.Principal {
	var or []*rbacv3.Principal
	for _, provider := range j.Providers {
		var all []*rbacv3.Principal
		for _, m := range tokenClaims(provider) {
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
func tokenClaims(p *entry.IntentionJWTProvider) []*matcherv3.MetadataMatcher {
	payload := "jwt_payload_" + p.Name
	out := []*matcherv3.MetadataMatcher{claim(payload, []string{"iss"}, nil)}
	for _, c := range p.VerifyClaims {
		out = append(out, claim(payload, c.Path, &c.Value))
	}
	return out
}

func claim(payload string, path []string, value *string) *matcherv3.MetadataMatcher {
	m := &matcherv3.MetadataMatcher{Filter: "envoy.filters.http.jwt_authn"}
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
