package xds

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// api makes the listeners and routes of an API gateway (spec/xds.md section 14).
func (b *build) api() error {
	for _, p := range b.s.Gateway.Ports {
		var err error
		if p.TCP != nil {
			err = b.apiTCP(p)
		} else {
			err = b.apiHTTP(p)
		}
		if err != nil {
			b.problem("listener %s: %w", p.Listener.Name, err)
		}
	}
	return nil
}

// behind returns a service that routes lead to, false while it cannot be served.
func (b *build) behind(service, protocol string) (fronted, bool) {
	i := slices.IndexFunc(b.s.Upstreams, func(u *mesh.Upstream) bool { return u.ID == service })
	if i < 0 {
		return fronted{}, false
	}
	return b.front(b.s.Upstreams[i], protocol)
}

func (b *build) apiFrom(p *mesh.APIPort, services []fronted) []any {
	from := append([]any{b.s.Proxy, b.s.GatewayEntry(), p.Listener.Port, p.TCP}, b.trustFrom()...)
	for _, r := range p.HTTP {
		from = append(from, r)
	}
	for _, c := range p.Certificates {
		from = append(from, c)
	}
	for _, s := range services {
		from = append(from, s.from(b)...)
	}
	return from
}

func (b *build) apiTCP(p *mesh.APIPort) error {
	s, ok := b.behind(p.TCP.Services[0].Name, entry.TCP)
	if !ok {
		return nil
	}
	for _, ip := range b.addresses() {
		name := listenerName(s.upstream.ID, ip, p.Listener.Port)
		err := b.add(Listener, name, b.apiFrom(p, []fronted{s}), func() (made, error) {
			to, err := b.frontLead(s)
			if err != nil {
				return made{}, err
			}
			e := &edge{name: name, ip: ip, port: p.Listener.Port, uses: to.uses}
			return b.apiListener(e, p, to.filter)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *build) apiHTTP(p *mesh.APIPort) error {
	var services []fronted
	usable := map[string]fronted{}
	for _, r := range p.HTTP {
		for i := range r.Rules {
			for j := range r.Rules[i].Services {
				name := r.Rules[i].Services[j].Name
				if _, done := usable[name]; done {
					continue
				}
				if s, ok := b.behind(name, entry.HTTP); ok {
					usable[name] = s
					services = append(services, s)
				}
			}
		}
	}
	routes := strconv.Itoa(p.Listener.Port)
	from := b.apiFrom(p, services)
	if err := b.apiRoutes(routes, p, from, usable); err != nil {
		return err
	}
	for _, ip := range b.addresses() {
		name := listenerName(p.Listener.Protocol, ip, p.Listener.Port)
		err := b.add(Listener, name, from, func() (made, error) {
			e := &edge{name: name, ip: ip, port: p.Listener.Port, routes: []string{routes}}
			manager := b.edgeManager(p.Listener.Protocol, "ingress_upstream_"+routes, routes)
			if n := p.Listener.MaxRequestHeadersKB; n != nil {
				manager.MaxRequestHeadersKb = wrapperspb.UInt32(*n)
			}
			return b.apiListener(e, p, filter(filterHCM, manager))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// apiListener finishes a listener whose chains all end in one filter and differ in the certificate they show.
func (b *build) apiListener(e *edge, p *mesh.APIPort, last *listenerv3.Filter) (made, error) {
	add := func(names []string, certificates shown) error {
		socket, err := b.edgeTLS(&entry.TLSParameters{
			TLSMinVersion: p.Listener.TLS.MinVersion, TLSMaxVersion: p.Listener.TLS.MaxVersion, CipherSuites: p.Listener.TLS.CipherSuites,
		}, p.Listener.Protocol, certificates)
		c := &listenerv3.FilterChain{Filters: []*listenerv3.Filter{last}, TransportSocket: socket}
		if len(names) > 0 {
			c.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: names}
		}
		e.chains = append(e.chains, c)
		e.uses = append(e.uses, certificates.uses...)
		return err
	}
	if len(p.Certificates) == 0 {
		e.chains = []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{last}}}
		return b.edge(e), nil
	}
	e.inspect = true
	var other shown // for clients that ask for no name that is known here
	owners := map[string]int{}
	names := make([][]string, len(p.Certificates))
	for i, c := range p.Certificates {
		names[i] = certificateNames(c)
		for _, n := range names[i] {
			owners[n]++
		}
	}
	for i, c := range p.Certificates {
		certificate, err := b.showEntry(c)
		if err != nil {
			return made{}, err
		}
		_, inline := c.(*entry.InlineCertificate)
		switch own := slices.DeleteFunc(names[i], func(n string) bool { return owners[n] > 1 }); {
		case len(p.Certificates) == 1, !inline:
			// What is in files is not known here: the proxy chooses among them.
			other.add(certificate)
		case len(own) > 0:
			if err := add(own, certificate); err != nil {
				return made{}, err
			}
		}
	}
	if len(other.inline)+len(other.sds) == 0 {
		var err error
		if other, err = b.showLeaf(LeafSecret, b.s.Leaf()); err != nil {
			return made{}, err
		}
	}
	if err := add(nil, other); err != nil {
		return made{}, err
	}
	return b.edge(e), nil
}

// showEntry shows the certificate of an entry. One in files is a secret, so that the proxy watches the files.
func (b *build) showEntry(e entry.Entry) (shown, error) {
	switch e := e.(type) {
	case *entry.InlineCertificate:
		return shown{inline: []*tlsv3.TlsCertificate{{
			CertificateChain: inline(line(e.Certificate)), PrivateKey: inline(line(e.PrivateKey)),
		}}}, nil
	case *entry.FileSystemCertificate:
		name := e.Name
		if b.flavour == Own {
			name = "file~" + name // apart from its other secrets
		}
		return b.showSecret(name, []any{e}, &tlsv3.TlsCertificate{CertificateChain: file(e.Certificate), PrivateKey: file(e.PrivateKey)})
	}
	return shown{}, fmt.Errorf("entry %s is no certificate", e.Head().Name)
}

func file(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

// certificateNames returns the names that an inline certificate is for, in order.
func certificateNames(e entry.Entry) []string {
	c, ok := e.(*entry.InlineCertificate)
	if !ok {
		return nil
	}
	block, _ := pem.Decode([]byte(c.Certificate))
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	var names []string
	for _, n := range append([]string{cert.Subject.CommonName}, cert.DNSNames...) {
		if isHostname(strings.TrimPrefix(n, "*.")) {
			names = append(names, strings.ToLower(n))
		}
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// A rule is one match of a route's rule, for one host.
type rule struct {
	match *entry.HTTPMatch
	of    *entry.HTTPRouteRule
}

// apiRoutes makes the route configuration of a port: a virtual host for each host, with the rules of all routes for it.
func (b *build) apiRoutes(name string, p *mesh.APIPort, from []any, usable map[string]fronted) error {
	return b.add(Route, name, from, func() (made, error) {
		hosts := map[string][]rule{}
		for _, r := range p.HTTP {
			for _, host := range entry.ListenerHosts(p.Listener.Hostname, r.Hostnames) {
				for i := range r.Rules {
					for j := range r.Rules[i].Matches {
						hosts[host] = append(hosts[host], rule{&r.Rules[i].Matches[j], &r.Rules[i]})
					}
				}
			}
		}
		rc := &routev3.RouteConfiguration{Name: name}
		if m := b.s.Mesh(); m != nil && m.ValidateClusters {
			rc.ValidateClusters = wrapperspb.Bool(true)
		}
		var uses []ref
		taken := map[string]bool{}
		for _, host := range sortedKeys(hosts) {
			rules := hosts[host]
			// The most specific first; among equals in the order of routes and rules.
			slices.SortStableFunc(rules, func(x, y rule) int {
				return cmp.Or(cmp.Compare(len(y.match.Path.Value), len(x.match.Path.Value)),
					cmp.Compare(len(y.match.Headers), len(x.match.Headers)), cmp.Compare(len(y.match.Query), len(x.match.Query)))
			})
			named := domains([]string{host}, name, taken)
			if len(named) == 0 {
				continue
			}
			vh := &routev3.VirtualHost{
				Name:    fmt.Sprintf("%s-%s-%x", b.s.Proxy.Service.Service, p.Listener.Name, crc32.ChecksumIEEE([]byte(host))),
				Domains: named,
			}
			for _, x := range rules {
				route, used, err := b.apiRoute(x, usable)
				if err != nil {
					return made{}, err
				}
				vh.Routes = append(vh.Routes, route)
				uses = append(uses, used...)
			}
			rc.VirtualHosts = append(rc.VirtualHosts, vh)
		}
		return made{message: rc, uses: uses}, nil
	})
}

// apiRoute makes the route for one match.
func (b *build) apiRoute(x rule, usable map[string]fronted) (*routev3.Route, []ref, error) {
	route := &routev3.Route{Match: apiMatch(x.match)}
	request, response := headerFilters(x.of.Filters.Headers), headerFilters(x.of.ResponseFilters.Headers)
	filters := x.of.Filters
	action, uses, err := b.apiAction(x.of.Services, usable)
	if err != nil {
		return nil, nil, err
	}
	if len(x.of.Services) == 1 {
		s := &x.of.Services[0]
		filters.URLRewrite = cmp.Or(s.Filters.URLRewrite, filters.URLRewrite)
		filters.RetryFilter = cmp.Or(s.Filters.RetryFilter, filters.RetryFilter)
		filters.TimeoutFilter = cmp.Or(s.Filters.TimeoutFilter, filters.TimeoutFilter)
		request.over(headerFilters(s.Filters.Headers))
		response.over(headerFilters(s.ResponseFilters.Headers))
	}
	if action == nil {
		// Nothing behind it can be reached: the answer is that of a cluster without instances.
		route.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 503}}
		return route, nil, nil
	}
	if f := filters.URLRewrite; f != nil {
		action.PrefixRewrite = f.Path
	}
	if f := filters.TimeoutFilter; f != nil {
		action.Timeout = timeout(f.RequestTimeout, action.Timeout)
		action.IdleTimeout = timeout(f.IdleTimeout, action.IdleTimeout)
	}
	if f := filters.RetryFilter; f != nil {
		action.RetryPolicy = b.retryPolicy(&entry.ServiceRouteDestination{
			NumRetries: f.NumRetries, RetryOn: f.RetryOn, RetryOnStatusCodes: f.RetryOnStatusCodes, RetryOnConnectFailure: f.RetryOnConnectFailure,
		})
	}
	route.Action = &routev3.Route_Route{Route: action}
	route.RequestHeadersToAdd, route.RequestHeadersToRemove = headerEdits(&request.HeaderEdit)
	route.ResponseHeadersToAdd, route.ResponseHeadersToRemove = headerEdits(&response.HeaderEdit)
	return route, uses, nil
}

// apiAction sends requests to services by their weights, nil when none of them can be reached. Routers of the services
// do not count: the gateway has its own routes.
func (b *build) apiAction(services []entry.HTTPService, usable map[string]fronted) (*routev3.RouteAction, []ref, error) {
	total := 0
	for i := range services {
		total += services[i].Weight
	}
	weighted := &routev3.WeightedCluster{}
	var uses []ref
	for i := range services {
		s := &services[i]
		f, ok := usable[s.Name]
		if !ok || s.Weight <= 0 {
			continue
		}
		r := &chainRouter{b: b, c: f.chain}
		node, err := serviceNode(r)
		if err != nil {
			return nil, nil, err
		}
		action, err := r.action(node)
		if err != nil {
			return nil, nil, err
		}
		if node.Type == chain.Resolver && node.Resolver.RequestTimeout > 0 {
			action.Timeout = durationpb.New(node.Resolver.RequestTimeout)
		}
		uses = append(uses, r.uses...)
		if len(services) == 1 {
			return action, uses, nil
		}
		request, response := headerFilters(s.Filters.Headers), headerFilters(s.ResponseFilters.Headers)
		share := float64(s.Weight) / float64(total)
		for _, w := range clusterWeights(action) {
			w.Weight = wrapperspb.UInt32(max(1, uint32(math.Round(float64(w.Weight.GetValue())*share))))
			requestAdd, requestRemove := headerEdits(&request.HeaderEdit)
			responseAdd, responseRemove := headerEdits(&response.HeaderEdit)
			w.RequestHeadersToAdd, w.RequestHeadersToRemove = append(requestAdd, w.RequestHeadersToAdd...), append(requestRemove, w.RequestHeadersToRemove...)
			w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = append(responseAdd, w.ResponseHeadersToAdd...), append(responseRemove, w.ResponseHeadersToRemove...)
			weighted.Clusters = append(weighted.Clusters, w)
		}
	}
	if len(weighted.Clusters) == 0 {
		return nil, nil, nil
	}
	return &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}}, uses, nil
}

// serviceNode returns the splitter or resolver of the service itself.
func serviceNode(r *chainRouter) (*chain.Node, error) {
	n, err := r.node(r.c.StartNode)
	if err == nil && n.Type == chain.Router && len(n.Routes) > 0 {
		n, err = r.node(n.Routes[len(n.Routes)-1].NextNode)
	}
	return n, err
}

// clusterWeights returns what an action leads to with weights in hundredths of a percent.
func clusterWeights(a *routev3.RouteAction) []*routev3.WeightedCluster_ClusterWeight {
	if w := a.GetWeightedClusters(); w != nil {
		return w.Clusters
	}
	return []*routev3.WeightedCluster_ClusterWeight{{Name: a.GetCluster(), Weight: wrapperspb.UInt32(10000)}}
}

// An edits is a list of header filters made one.
type edits struct{ entry.HeaderEdit }

func headerFilters(filters []entry.HTTPHeaderFilter) edits {
	var e edits
	for _, f := range filters {
		e.over(edits{entry.HeaderEdit{Add: f.Add, Set: f.Set, Remove: f.Remove}})
	}
	return e
}

// over puts further edits over those there are.
func (e *edits) over(o edits) {
	e.Add, e.Set = merged(e.Add, o.Add), merged(e.Set, o.Set)
	for _, name := range o.Remove {
		if !slices.Contains(e.Remove, name) {
			e.Remove = append(slices.Clip(e.Remove), name)
		}
	}
}

func merged(a, b map[string]string) map[string]string {
	if len(a) == 0 {
		return b
	}
	out := make(map[string]string, len(a)+len(b))
	for _, m := range []map[string]string{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func apiMatch(m *entry.HTTPMatch) *routev3.RouteMatch {
	out := everyPath()
	switch m.Path.Match {
	case "exact":
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Path.Value}
	case "prefix":
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.Path.Value}
	case "regex":
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: m.Path.Value}}
	}
	value := func(match, want, v string) string {
		if match == want {
			return v
		}
		return ""
	}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, headerMatcher(h.Name, h.Match == "present", value(h.Match, "exact", h.Value),
			value(h.Match, "prefix", h.Value), value(h.Match, "suffix", h.Value), "", value(h.Match, "regex", h.Value), false, false))
	}
	if m.Method != "" {
		out.Headers = append(out.Headers, methodMatcher([]string{m.Method}))
	}
	for _, q := range m.Query {
		p := &routev3.QueryParameterMatcher{Name: q.Name}
		switch q.Match {
		case "exact":
			p.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Exact{Exact: q.Value},
			}}
		case "regex":
			p.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: regex(q.Value)}
		default:
			p.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		}
		out.QueryParameters = append(out.QueryParameters, p)
	}
	return out
}
