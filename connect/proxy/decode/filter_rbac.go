//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"cmp"
	"math"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/rbac"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var rbacFilter = httpFilter{
	name:  "envoy.filters.http.rbac",
	proto: (*httprbacv3.RBAC)(nil), config: with((*run).httpRBAC),
	routeProto: (*httprbacv3.RBACPerRoute)(nil),
	route: with(func(r *run, path string, m *httprbacv3.RBACPerRoute) model.FilterConfig {
		r.only(path, m, "rbac", "")
		return r.httpRBAC(join(path, "rbac"), m.GetRbac())
	}),
}

func (r *run) httpRBAC(path string, m *httprbacv3.RBAC) model.FilterConfig {
	r.only(path, m, "rules rules_stat_prefix shadow_rules shadow_rules_stat_prefix track_per_rule_stats", "")
	c := &rbac.Config{
		RulesPrefix:  m.GetRulesStatPrefix(),
		ShadowPrefix: m.GetShadowRulesStatPrefix(),
		PerPolicy:    m.GetTrackPerRuleStats(),
	}
	if m.GetRules() != nil {
		c.Rules = r.rbac(join(path, "rules"), m.GetRules(), true)
	}
	if m.GetShadowRules() != nil {
		c.Shadow = r.rbac(join(path, "shadow_rules"), m.GetShadowRules(), true)
	}
	return c
}

// rbac decodes rules, about requests or about connections.
func (r *run) rbac(path string, m *rbacv3.RBAC, requests bool) *model.RBAC {
	r.only(path, m, "action policies audit_logging_options", "")
	if o := m.GetAuditLoggingOptions(); len(o.GetLoggerConfigs()) > 0 || o.GetAuditCondition() != rbacv3.RBAC_AuditLoggingOptions_NONE {
		r.errorf(join(path, "audit_logging_options"), "not supported")
	}
	rules := &model.RBAC{}
	switch m.GetAction() {
	case rbacv3.RBAC_ALLOW:
	case rbacv3.RBAC_DENY:
		rules.Action = model.Deny
	case rbacv3.RBAC_LOG:
		rules.Action = model.LogAll
	default:
		r.errorf(join(path, "action"), "%d is unknown", m.GetAction())
	}
	d := ruleDecoder{r, requests}
	for name, p := range m.GetPolicies() {
		pp := path + ".policies[" + name + "]"
		r.only(pp, p, "permissions principals", "")
		policy := model.Policy{Name: name}
		for i, x := range p.GetPermissions() {
			policy.Permissions = append(policy.Permissions, d.permission(index(join(pp, "permissions"), i), x))
		}
		for i, x := range p.GetPrincipals() {
			policy.Principals = append(policy.Principals, d.principal(index(join(pp, "principals"), i), x))
		}
		rules.Policies = append(rules.Policies, policy)
	}
	slices.SortFunc(rules.Policies, func(a, b model.Policy) int { return cmp.Compare(a.Name, b.Name) })
	return rules
}

// A ruleDecoder decodes the conditions of policies.
type ruleDecoder struct {
	*run
	requests bool // conditions on requests make sense
}

func (d ruleDecoder) permission(path string, m *rbacv3.Permission) model.Rule {
	switch p := m.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return model.Rule{Kind: model.RuleAny}
	case *rbacv3.Permission_AndRules:
		return ruleSet(path, model.RuleAnd, p.AndRules.GetRules(), d.permission)
	case *rbacv3.Permission_OrRules:
		return ruleSet(path, model.RuleOr, p.OrRules.GetRules(), d.permission)
	case *rbacv3.Permission_NotRule:
		return model.Rule{Kind: model.RuleNot, Rules: []model.Rule{d.permission(join(path, "not_rule"), p.NotRule)}}
	case *rbacv3.Permission_DestinationIp:
		return model.Rule{Kind: model.RuleDestinationIP, Prefix: d.prefix(join(path, "destination_ip"), p.DestinationIp)}
	case *rbacv3.Permission_DestinationPort:
		if p.DestinationPort > math.MaxUint16 {
			d.errorf(join(path, "destination_port"), "%d is no port", p.DestinationPort)
		}
		return model.Rule{Kind: model.RuleDestinationPort, Port: uint16(p.DestinationPort), End: p.DestinationPort + 1}
	case *rbacv3.Permission_DestinationPortRange:
		s, e := p.DestinationPortRange.GetStart(), p.DestinationPortRange.GetEnd()
		if s < 0 || e > math.MaxUint16+1 || s >= e {
			d.errorf(join(path, "destination_port_range"), "[%d, %d) is no range of ports", s, e)
			return model.Rule{}
		}
		return model.Rule{Kind: model.RuleDestinationPort, Port: uint16(s), End: uint32(e)}
	case *rbacv3.Permission_RequestedServerName:
		return model.Rule{Kind: model.RuleServerName, Match: d.stringMatch(join(path, "requested_server_name"), p.RequestedServerName)}
	case *rbacv3.Permission_Metadata:
		if rule, ok := d.metadata(join(path, "metadata"), p.Metadata, rbacv3.MetadataSource_DYNAMIC); ok {
			return rule
		}
	case *rbacv3.Permission_SourcedMetadata:
		if rule, ok := d.sourced(join(path, "sourced_metadata"), p.SourcedMetadata); ok {
			return rule
		}
	case *rbacv3.Permission_Header:
		if d.requests {
			return d.header(join(path, "header"), p.Header)
		}
	case *rbacv3.Permission_UrlPath:
		if d.requests {
			return d.urlPath(join(path, "url_path"), p.UrlPath)
		}
	}
	d.errorf(path, "permission %T is not supported%s", m.GetRule(), d.about())
	return model.Rule{}
}

func (d ruleDecoder) principal(path string, m *rbacv3.Principal) model.Rule {
	switch p := m.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return model.Rule{Kind: model.RuleAny}
	case *rbacv3.Principal_AndIds:
		return ruleSet(path, model.RuleAnd, p.AndIds.GetIds(), d.principal)
	case *rbacv3.Principal_OrIds:
		return ruleSet(path, model.RuleOr, p.OrIds.GetIds(), d.principal)
	case *rbacv3.Principal_NotId:
		return model.Rule{Kind: model.RuleNot, Rules: []model.Rule{d.principal(join(path, "not_id"), p.NotId)}}
	case *rbacv3.Principal_Authenticated_:
		if p.Authenticated.GetPrincipalName() == nil {
			return model.Rule{Kind: model.RuleAuthenticated}
		}
		return model.Rule{Kind: model.RulePrincipal, Match: d.stringMatch(join(path, "authenticated.principal_name"), p.Authenticated.GetPrincipalName())}
	case *rbacv3.Principal_SourceIp:
		kind := model.RuleRemoteIP
		if d.requests {
			kind = model.RuleConnectionIP
		}
		return model.Rule{Kind: kind, Prefix: d.prefix(join(path, "source_ip"), p.SourceIp)}
	case *rbacv3.Principal_DirectRemoteIp:
		return model.Rule{Kind: model.RuleDirectRemoteIP, Prefix: d.prefix(join(path, "direct_remote_ip"), p.DirectRemoteIp)}
	case *rbacv3.Principal_RemoteIp:
		return model.Rule{Kind: model.RuleRemoteIP, Prefix: d.prefix(join(path, "remote_ip"), p.RemoteIp)}
	case *rbacv3.Principal_Metadata:
		if rule, ok := d.metadata(join(path, "metadata"), p.Metadata, rbacv3.MetadataSource_DYNAMIC); ok {
			return rule
		}
	case *rbacv3.Principal_SourcedMetadata:
		if rule, ok := d.sourced(join(path, "sourced_metadata"), p.SourcedMetadata); ok {
			return rule
		}
	case *rbacv3.Principal_Header:
		if d.requests {
			return d.header(join(path, "header"), p.Header)
		}
	case *rbacv3.Principal_UrlPath:
		if d.requests {
			return d.urlPath(join(path, "url_path"), p.UrlPath)
		}
	case *rbacv3.Principal_FilterState:
		if d.requests {
			return d.filterState(join(path, "filter_state"), p.FilterState)
		}
	}
	d.errorf(path, "principal %T is not supported%s", m.GetIdentifier(), d.about())
	return model.Rule{}
}

// ruleSet decodes a list of permissions or principals.
func ruleSet[T any](path string, kind model.RuleKind, list []*T, decode func(path string, m *T) model.Rule) model.Rule {
	rule := model.Rule{Kind: kind}
	for i, x := range list {
		rule.Rules = append(rule.Rules, decode(index(path, i), x))
	}
	return rule
}

func (d ruleDecoder) header(path string, m *routev3.HeaderMatcher) model.Rule {
	h := d.headerMatch(path, m)
	return model.Rule{Kind: model.RuleHeader, Header: &h}
}

func (d ruleDecoder) urlPath(path string, m *matcherv3.PathMatcher) model.Rule {
	return model.Rule{Kind: model.RulePath, Match: d.stringMatch(join(path, "path"), m.GetPath())}
}

func (d ruleDecoder) about() string {
	if d.requests {
		return ""
	}
	return " for connections"
}

func (d ruleDecoder) sourced(path string, m *rbacv3.SourcedMetadata) (model.Rule, bool) {
	return d.metadata(join(path, "metadata_matcher"), m.GetMetadataMatcher(), m.GetMetadataSource())
}

// metadata decodes a condition on metadata. Of a connection it may not be one that holds where there is none.
func (d ruleDecoder) metadata(path string, m *matcherv3.MetadataMatcher, source rbacv3.MetadataSource) (model.Rule, bool) {
	rule := model.Rule{Kind: model.RuleMetadata}
	switch source {
	case rbacv3.MetadataSource_DYNAMIC:
	case rbacv3.MetadataSource_ROUTE:
		rule.Kind = model.RuleRouteMetadata
	default:
		return rule, false
	}
	if !d.requests && (m.GetInvert() || rule.Kind == model.RuleRouteMetadata) {
		return rule, false
	}
	match := d.metadataMatch(path, m)
	rule.Metadata = &match
	return rule, true
}

func (d ruleDecoder) filterState(path string, m *matcherv3.FilterStateMatcher) model.Rule {
	d.only(path, m, "key string_match address_match", "")
	a := m.GetAddressMatch()
	if a == nil {
		return model.Rule{Kind: model.RuleFilterState, Key: m.GetKey(), Match: d.stringMatch(join(path, "string_match"), m.GetStringMatch())}
	}
	d.only(join(path, "address_match"), a, "ranges invert_match", "")
	or := model.Rule{Kind: model.RuleOr}
	for i, c := range a.GetRanges() {
		if p := d.prefix(index(join(path, "address_match.ranges"), i), &corev3.CidrRange{AddressPrefix: c.GetAddressPrefix(), PrefixLen: c.GetPrefixLen()}); p != (netip.Prefix{}) {
			or.Rules = append(or.Rules, model.Rule{Kind: model.RuleFilterState, Key: m.GetKey(), Prefix: p})
		}
	}
	if a.GetInvertMatch() {
		return model.Rule{Kind: model.RuleNot, Rules: []model.Rule{or}}
	}
	return or
}
