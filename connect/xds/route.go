package xds

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// chainRoutes makes the route configuration of a chain that needs one (spec/xds.md section 6.4).
func (b *build) chainRoutes(u *mesh.Upstream, c *chain.Chain) error {
	if !b.usesRoutes(c) {
		return nil
	}
	return b.add(Route, u.ID, append([]any{u, c, b.s.Mesh()}, b.peersFrom(c)...), func() (made, error) {
		r := &chainRouter{b: b, c: c}
		routes, err := r.start()
		if err != nil {
			return made{}, err
		}
		rc := &routev3.RouteConfiguration{
			Name:         u.ID,
			VirtualHosts: []*routev3.VirtualHost{{Name: u.ID, Domains: []string{"*"}, Routes: routes}},
		}
		if m := b.s.Mesh(); m != nil && m.ValidateClusters {
			rc.ValidateClusters = wrapperspb.Bool(true)
		}
		return made{message: rc, uses: r.uses}, nil
	})
}

type chainRouter struct {
	b    *build
	c    *chain.Chain
	uses []ref
}

func (r *chainRouter) node(key string) (*chain.Node, error) {
	n := r.c.Nodes[key]
	if n == nil {
		return nil, fmt.Errorf("the chain of %s lacks node %q", r.c.ServiceName, key)
	}
	return n, nil
}

func (r *chainRouter) start() ([]*routev3.Route, error) {
	n, err := r.node(r.c.StartNode)
	if err != nil {
		return nil, err
	}
	if n.Type != chain.Router {
		action, err := r.action(n)
		if err != nil {
			return nil, err
		}
		if n.Type == chain.Resolver && n.Resolver.RequestTimeout > 0 {
			action.Timeout = durationpb.New(n.Resolver.RequestTimeout)
		}
		return []*routev3.Route{{Match: everyPath(), Action: &routev3.Route_Route{Route: action}}}, nil
	}
	var out []*routev3.Route
	for _, rule := range n.Routes {
		next, err := r.node(rule.NextNode)
		if err != nil {
			return nil, err
		}
		action, err := r.action(next)
		if err != nil {
			return nil, err
		}
		route := &routev3.Route{Match: routeMatch(rule.Definition), Action: &routev3.Route_Route{Route: action}}
		if rule.Definition != nil && rule.Definition.Destination != nil {
			d := rule.Definition.Destination
			if d.PrefixRewrite != "" {
				action.PrefixRewrite = d.PrefixRewrite
			}
			action.Timeout = timeout(time.Duration(d.RequestTimeout), action.Timeout)
			action.IdleTimeout = timeout(time.Duration(d.IdleTimeout), action.IdleTimeout)
			action.RetryPolicy = r.b.retryPolicy(d)
			route.RequestHeadersToAdd, route.RequestHeadersToRemove = headerEdits(d.RequestHeaders)
			route.ResponseHeadersToAdd, route.ResponseHeadersToRemove = headerEdits(d.ResponseHeaders)
		}
		out = append(out, route)
	}
	return out, nil
}

// timeout reads a setting where 0 means unset and less switches the limit off.
func timeout(d time.Duration, unset *durationpb.Duration) *durationpb.Duration {
	switch {
	case d > 0:
		return durationpb.New(d)
	case d < 0:
		return durationpb.New(0)
	}
	return unset
}

// action sends requests to what a splitter or resolver leads to.
func (r *chainRouter) action(n *chain.Node) (*routev3.RouteAction, error) {
	switch n.Type {
	case chain.Resolver:
		cluster, err := r.cluster(n)
		if err != nil {
			return nil, err
		}
		return &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
			HashPolicy:       hashPolicies(n.LoadBalancer),
		}, nil
	case chain.Splitter:
		weighted := &routev3.WeightedCluster{}
		for _, s := range n.Splits {
			next, err := r.node(s.NextNode)
			if err != nil {
				return nil, err
			}
			cluster, err := r.cluster(next)
			if err != nil {
				return nil, err
			}
			w := &routev3.WeightedCluster_ClusterWeight{
				Name: cluster,
				// Weights are kept to two decimals of a percent.
				Weight: wrapperspb.UInt32(uint32(math.Round(s.Weight * 100))),
			}
			if d := s.Definition; d != nil {
				w.RequestHeadersToAdd, w.RequestHeadersToRemove = headerEdits(d.RequestHeaders)
				w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = headerEdits(d.ResponseHeaders)
			}
			weighted.Clusters = append(weighted.Clusters, w)
		}
		return &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted},
			HashPolicy:       hashPolicies(n.LoadBalancer),
		}, nil
	}
	return nil, fmt.Errorf("the chain of %s leads to node %q of type %q", r.c.ServiceName, n.Name, n.Type)
}

func (r *chainRouter) cluster(n *chain.Node) (string, error) {
	t, err := primary(r.c, n)
	if err != nil {
		return "", err
	}
	name, err := r.b.clusterName(r.c, t)
	if err != nil {
		return "", err
	}
	r.uses = append(r.uses, ref{Cluster, name})
	return name, nil
}

func routeMatch(def *entry.ServiceRoute) *routev3.RouteMatch {
	if def == nil || def.Match == nil || def.Match.HTTP == nil {
		return everyPath()
	}
	h := def.Match.HTTP
	m := everyPath()
	switch {
	case h.PathExact != "":
		m.PathSpecifier = &routev3.RouteMatch_Path{Path: h.PathExact}
	case h.PathPrefix != "":
		m.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: h.PathPrefix}
	case h.PathRegex != "":
		m.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: h.PathRegex}}
	}
	if h.CaseInsensitive {
		m.CaseSensitive = wrapperspb.Bool(false)
	}
	for _, x := range h.Header {
		m.Headers = append(m.Headers, headerMatcher(x.Name, x.Present, x.Exact, x.Prefix, x.Suffix, "", x.Regex, false, x.Invert))
	}
	if len(h.Methods) > 0 {
		m.Headers = append(m.Headers, methodMatcher(h.Methods))
	}
	for _, q := range h.QueryParam {
		p := &routev3.QueryParameterMatcher{Name: q.Name}
		switch {
		case q.Exact != "":
			p.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Exact{Exact: q.Exact},
			}}
		case q.Regex != "":
			p.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: regex(q.Regex)}
		default:
			p.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		}
		m.QueryParameters = append(m.QueryParameters, p)
	}
	return m
}

// retryPolicy says when a request is sent again. In flavour Own it then goes to an instance that did not fail it, if there
// is another.
func (b *build) retryPolicy(d *entry.ServiceRouteDestination) *routev3.RetryPolicy {
	if d.NumRetries == 0 && !d.RetryOnConnectFailure && len(d.RetryOn) == 0 && len(d.RetryOnStatusCodes) == 0 {
		return nil
	}
	p := &routev3.RetryPolicy{}
	if d.NumRetries > 0 {
		p.NumRetries = wrapperspb.UInt32(d.NumRetries)
	}
	on := slices.Clone(d.RetryOn)
	add := func(condition string) {
		if !slices.Contains(on, condition) {
			on = append(on, condition)
		}
	}
	if d.RetryOnConnectFailure {
		add("connect-failure")
	}
	if len(d.RetryOnStatusCodes) > 0 {
		add("retriable-status-codes")
		p.RetriableStatusCodes = d.RetryOnStatusCodes
	}
	p.RetryOn = strings.Join(on, ",")
	if b.flavour == Own {
		p.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: mustPack(&previoushostsv3.PreviousHostsPredicate{}),
			},
		}}
		p.HostSelectionRetryMaxAttempts = 5
	}
	return p
}

// headerEdits returns changes of headers in an order that does not change.
func headerEdits(e *entry.HeaderEdit) ([]*corev3.HeaderValueOption, []string) {
	if e == nil {
		return nil, nil
	}
	var out []*corev3.HeaderValueOption
	for _, k := range sortedKeys(e.Add) {
		out = append(out, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: k, Value: e.Add[k]},
			AppendAction: corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
		})
	}
	for _, k := range sortedKeys(e.Set) {
		out = append(out, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: k, Value: e.Set[k]},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return out, e.Remove
}

func hashPolicies(lb *entry.LoadBalancer) []*routev3.RouteAction_HashPolicy {
	if !lb.Hashes() {
		return nil
	}
	var out []*routev3.RouteAction_HashPolicy
	for _, h := range lb.HashPolicies {
		p := &routev3.RouteAction_HashPolicy{Terminal: h.Terminal}
		switch {
		case h.SourceIP:
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
				ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
			}
		case h.Field == "header":
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{
				Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h.FieldValue},
			}
		case h.Field == "cookie":
			cookie := &routev3.RouteAction_HashPolicy_Cookie{Name: h.FieldValue}
			if cc := h.CookieConfig; cc != nil {
				cookie.Path = cc.Path
				if cc.Session {
					cookie.Ttl = durationpb.New(0)
				} else if cc.TTL > 0 {
					cookie.Ttl = durationpb.New(cc.TTL)
				}
			}
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}
		case h.Field == "query_parameter":
			p.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{
				QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: h.FieldValue},
			}
		default:
			continue
		}
		out = append(out, p)
	}
	return out
}
