package explain

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/basicauth"
	"github.com/sarnmesh/sarn/connect/proxy/filter/cors"
	"github.com/sarnmesh/sarn/connect/proxy/filter/csrf"
	"github.com/sarnmesh/sarn/connect/proxy/filter/headermutation"
	"github.com/sarnmesh/sarn/connect/proxy/filter/headertometadata"
	"github.com/sarnmesh/sarn/connect/proxy/filter/jwtauthn"
	httprbac "github.com/sarnmesh/sarn/connect/proxy/filter/rbac"
	"github.com/sarnmesh/sarn/connect/proxy/filter/setmetadata"
	"github.com/sarnmesh/sarn/connect/proxy/hcm"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/rbac"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
	"github.com/sarnmesh/sarn/connect/xds"
)

// asked are the filters that decide by what they are given alone.
var asked = func() map[string]filter.Type {
	out := map[string]filter.Type{}
	for _, t := range []filter.Type{
		basicauth.Type, cors.Type, csrf.Type, headermutation.Type, headertometadata.Type, httprbac.Type, jwtauthn.Type, setmetadata.Type,
	} {
		out[t.Name] = t
	}
	return out
}()

// harmless are filters that every sidecar may have and that refuse nothing.
var harmless = []string{"envoy.filters.http.grpc_stats", "envoy.filters.http.grpc_http1_bridge"}

// A destination is the proxy that decides about requests for a service.
type destination struct {
	side  Side
	proxy *mesh.Registration // nil for native instances
	// name is what the caller asks for in TLS, where that chooses who decides.
	name string
}

// destination finds the proxy in front of a target, one of its instances if there are any.
func (e *evaluation) destination(t *chain.Target, instances *catalog.InstancesReply) *destination {
	if d := e.sides[t.ID]; d != nil {
		return d
	}
	d := &destination{name: t.SNI}
	e.sides[t.ID] = d
	register := func(node string, svc *catalog.Service) *mesh.Registration {
		return &mesh.Registration{Node: node, Datacenter: e.cfg.Datacenter, Service: svc, DefaultAllow: e.cfg.Default.Allow}
	}
	if t.Datacenter == e.cfg.Datacenter {
		var native *catalog.Instance
		candidates := e.world.Mesh(t.Service)
		if instances != nil && len(instances.Instances) > 0 {
			candidates = instances.Instances
		}
		for _, i := range candidates {
			switch {
			case i.Service.Kind == catalog.KindConnectProxy:
				d.side, d.proxy = e.cfg.side(t.Service, kindSidecar, i), register(i.Node.Node, quiet(e.world.Central(i.Service)))
				return d
			case i.Service.Kind == catalog.KindTerminatingGateway && d.proxy == nil:
				d.side, d.proxy = e.cfg.side(t.Service, catalog.KindTerminatingGateway, i), register(i.Node.Node, e.world.Central(i.Service))
			case i.Service.Connect.Native && native == nil:
				native = i
			}
		}
		if d.proxy != nil {
			return d
		}
		if native != nil {
			d.side = e.cfg.side(t.Service, kindNative, native)
			return d
		}
	}
	svc := e.world.Central(&catalog.Service{
		Kind: catalog.KindConnectProxy, ID: t.Service + "-sidecar-proxy", Service: t.Service + "-sidecar-proxy", Port: assumedPort,
		Proxy: catalog.Proxy{DestinationServiceName: t.Service, LocalServicePort: assumedPort + 1},
	})
	d.side, d.proxy = Side{Service: t.Service, Kind: kindSidecar, Assumed: true}, register("", quiet(svc))
	return d
}

// decided is what was decided about a request, with the path that the application gets and the time it has.
type decided struct {
	by            *Authorization
	path, timeout string
}

// key is the same for requests about which the same is decided: branches of a split often lead to one service.
func (d *destination) key(r *message.Request, http bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %q %t %q %q %q", d.proxy.Node, d.proxy.Service.ID, d.name, http, r.Method, r.Path, r.Authority)
	for i := range r.Header.Len() {
		f := r.Header.At(i)
		fmt.Fprintf(&b, " %q %q", f.Name, f.Value)
	}
	return b.String()
}

// quiet returns a sidecar without what decides nothing about its callers: its own upstreams.
func quiet(s *catalog.Service) *catalog.Service {
	c := *s
	c.Proxy.Upstreams, c.Proxy.Mode = nil, ""
	return &c
}

// An outcome is what a destination's proxy does with a request.
type outcome struct {
	allowed bool
	layer   int
	rule    string
	details string
	status  int
	path    string // as the application gets it
	timeout string // of the application's answer; empty for connections
	passed  []string
}

var (
	errNoChain = errors.New("no filter chain of the proxy is for the service")
	errTooMuch = errors.New("there are too many permissions and branches to look at")
)

// maxAsked bounds how often proxies are asked for one explanation.
const maxAsked = 5000

// ask has the destination's proxy decide, with other intentions in place of those there are unless they are nil; then
// nothing is allowed by default.
func (e *evaluation) ask(d *destination, r *message.Request, instead []*intention.Intention) (outcome, error) {
	if e.asked++; e.asked > maxAsked {
		return outcome{}, errTooMuch
	}
	e.behind = d.side.Service
	reg := d.proxy
	if instead != nil {
		c := *reg
		c.DefaultAllow = false
		reg = &c
	}
	_, resources, err := e.compile(reg, instead)
	if err != nil {
		return outcome{}, err
	}
	fc, err := e.inbound(resources, d)
	if err != nil {
		return outcome{}, err
	}
	caller := connect.ServiceID(e.cfg.TrustDomain, e.cfg.Datacenter, e.req.From).String()
	peer := &tlscontext.Peer{URIs: []string{caller}}
	for _, f := range fc.Filters {
		n, ok := f.(*model.NetworkRBAC)
		if !ok {
			continue
		}
		v := rbac.Evaluate(n.Rules, &rbac.Facts{
			Authenticated: true, URIs: peer.URIs, DirectRemote: loopback.Addr(), Remote: loopback.Addr(), Local: loopback, ServerName: d.name,
		})
		if !v.Allowed {
			rule := v.Policy
			if rule == "" {
				rule = "none"
			}
			return outcome{layer: 4, rule: rule, details: v.Detail()}, nil
		}
	}
	m, ok := fc.Terminal.(*model.HTTPManager)
	if !ok {
		return outcome{allowed: true, layer: 4}, nil
	}
	// The certificate itself is not told on: there is none.
	conf := *m
	conf.XFCCCert, conf.XFCCChain = false, false
	routes := conf.Routes
	if conf.RouteName != "" {
		x := resources.Of(xds.Route)[conf.RouteName]
		if x == nil {
			return outcome{}, fmt.Errorf("there are no routes %s", conf.RouteName)
		}
		if routes, err = e.decode.RouteConfig(x.Body); err != nil {
			return outcome{}, err
		}
	}
	judged := copyOf(r)
	v, err := hcm.Judge(hcm.Case{
		Manager: &conf, Routes: routes, Filters: asked, Request: judged,
		Conn: &filter.Conn{Listener: "public_listener", Remote: loopback, Direct: loopback, Local: loopback, ServerName: d.name, Peer: peer},
	})
	if err != nil {
		return outcome{}, err
	}
	if v.Reply == nil {
		return outcome{allowed: true, layer: 7, path: judged.Path, timeout: duration(v.Timeout), passed: v.Passed}, nil
	}
	return outcome{layer: 7, rule: v.Rule, details: v.Reply.Details, status: v.Reply.Status, passed: v.Passed}, nil
}

// inbound finds the filter chain that connections for the service are given to.
func (e *evaluation) inbound(resources *xds.Resources, d *destination) (*model.FilterChain, error) {
	for _, name := range sortedNames(resources.Of(xds.Listener)) {
		if d.side.Kind == kindSidecar && !strings.HasPrefix(name, "public_listener:") {
			continue
		}
		l, err := e.decode.Listener(resources.Of(xds.Listener)[name].Body)
		if err != nil {
			return nil, fmt.Errorf("the built-in proxy would refuse the listener %s: %w", name, err)
		}
		for _, c := range l.AllChains() {
			if c.TLS == nil {
				continue
			}
			if d.side.Kind == kindSidecar || slices.Contains(c.Match.ServerNames, strings.ToLower(d.name)) {
				return c, nil
			}
		}
	}
	return nil, errNoChain
}

func sortedNames(m map[string]*xds.Resource) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// authorize tells what is decided about a request at a target, and by what.
func (o *outbound) authorize(b *Branch, t *chain.Target, r *message.Request, http bool) *Authorization {
	e, x := o.e, o.x
	switch {
	case t.Peer != "":
		return &Authorization{Verdict: Unknown, Reason: fmt.Sprintf("the intentions of peer %s decide", t.Peer), By: Side{Service: t.Service}}
	case !e.cfg.mayRead(t.Service):
		return &Authorization{Verdict: Unknown, Reason: fmt.Sprintf("the token may not read the intentions of %s", t.Service), By: Side{Service: t.Service}}
	}
	d := e.destination(t, o.s.Instances(t))
	a := &Authorization{Verdict: Unknown, By: d.side, Default: entry.Deny}
	if e.cfg.Default.Allow {
		a.Default = entry.Allow
	}
	list := e.intentions(t.Service)
	if d.proxy == nil {
		// A native application asks whether a connection may be.
		v := intention.Decide(list, e.req.From, "", e.cfg.Default)
		a.Layer, a.Reason = 4, "the application itself asks: "+v.Reason
		a.name(v.By)
		a.ByDefault = v.By == nil
		a.Verdict = verdict(v.Allowed)
		return a
	}
	if d.side.Assumed && t.Datacenter == e.cfg.Datacenter {
		x.note("no proxy of %s is registered; a sidecar with the central settings is assumed", t.Service)
	}
	if t.External && d.side.Kind == kindSidecar && d.side.Assumed {
		a.Reason = t.Service + " is outside the mesh: nobody asks intentions"
		return a
	}
	key := d.key(r, http)
	if known := e.decided[key]; known != nil {
		b.Path, b.Timeout = known.path, known.timeout
		return known.by
	}
	defer func() { e.decided[key] = &decided{a, b.Path, b.Timeout} }()
	out, err := e.ask(d, r, nil)
	if err != nil {
		a.Reason = fmt.Sprintf("the proxy of %s can not be configured: %v", t.Service, err)
		x.problem("%s", a.Reason)
		return a
	}
	if out.details == "http2.unexpected_underscore" && x.Protocol != entry.HTTP2 && x.Protocol != entry.GRPC {
		out.details = "http1.unexpected_underscore" // the codec refuses by itself
	}
	x.passed("the proxy of "+t.Service, out.passed)
	a.Verdict, a.Layer = verdict(out.allowed), out.layer
	if !out.allowed {
		a.Rule, a.Details, a.Status = out.rule, out.details, out.status
	}
	if http && out.layer == 4 && !out.allowed {
		a.Status = 503 // the caller's sidecar tells that the connection was closed
	}
	if out.path != "" {
		b.Path, b.Timeout = e.tokens.hide(out.path), out.timeout
	}
	if out.layer == 7 && !out.allowed && !strings.HasPrefix(out.details, "rbac_access_denied") {
		a.Reason = fmt.Sprintf("the proxy of %s answers %d before intentions are asked: %s", t.Service, out.status, out.details)
		return a
	}
	expected, err := e.find(a, d, list, r)
	switch {
	case err != nil:
		a.Reason = "what decided could not be found: " + err.Error()
		x.problem("%s", a.Reason)
	case expected != out.allowed:
		a.Intention, a.Permission, a.ByDefault = nil, nil, false
		a.Reason = fmt.Sprintf("the proxy of %s decides so, not its intentions: %s", t.Service, out.details)
	}
	return a
}

func verdict(allowed bool) string {
	if allowed {
		return Allowed
	}
	return Denied
}

// name fills in the intention, nil for none.
func (a *Authorization) name(n *intention.Intention) {
	if n == nil {
		return
	}
	a.Intention = &Intention{
		Source: n.SourceName, SourcePeer: n.SourcePeer, Destination: n.DestinationName, Precedence: n.Precedence,
		Action: n.Action, Permissions: len(n.Permissions), Description: n.Description,
	}
	if n.JWT != nil {
		for _, p := range n.JWT.Providers {
			a.Intention.Providers = append(a.Intention.Providers, p.Name)
		}
	}
}

// pair names source and destination of an intention.
func (n *Intention) pair() string { return n.Source + " => " + n.Destination }

// find tells which intention and which of its permissions decide, and returns what follows from them. Whether a permission
// or a requirement of tokens fits the request is asked of the proxy, one at a time.
func (e *evaluation) find(a *Authorization, d *destination, list []*intention.Intention, r *message.Request) (allowed bool, err error) {
	def := e.cfg.Default.Allow
	byDefault := func(why string) (bool, error) {
		a.ByDefault = true
		a.Reason = why + ", so the default decides: " + a.Default
		return def, nil
	}
	i := slices.IndexFunc(list, func(n *intention.Intention) bool { return n.Fits(e.req.From, "") })
	if i < 0 {
		return byDefault(fmt.Sprintf("no intention to %s is about %s", d.side.Service, e.req.From))
	}
	n := list[i]
	a.name(n)
	which := fmt.Sprintf("the intention %s (precedence %d)", a.Intention.pair(), n.Precedence)
	asksToken := n.JWT != nil && len(n.JWT.Providers) > 0
	if a.Layer == 4 {
		if len(n.Permissions) > 0 || asksToken {
			a.Reason = which + " asks for something of requests, which a connection can not show"
			return false, nil
		}
		a.Reason = fmt.Sprintf("%s says %s", which, n.Action)
		return n.Action == entry.Allow, nil
	}
	probe := func(p *entry.IntentionPermission, jwt *entry.IntentionJWT) (bool, error) {
		one := &intention.Intention{
			SourceNS: "default", SourceName: n.SourceName, DestinationNS: "default", DestinationName: n.DestinationName,
			SourceType: entry.SourceTypeConsul, Precedence: n.Precedence, JWT: jwt,
		}
		if p == nil {
			one.Action = entry.Allow
		} else {
			c := *p
			c.Action = entry.Allow
			one.Permissions = []*entry.IntentionPermission{&c}
		}
		o, err := e.ask(d, r, []*intention.Intention{one})
		return o.allowed, err
	}
	if asksToken {
		met, err := probe(nil, n.JWT)
		if err != nil {
			return false, err
		}
		if a.Intention.Token = "met"; !met {
			a.Intention.Token = "not met"
			return byDefault(fmt.Sprintf("%s asks for a token of %s, and the request has no valid one that says what it must",
				which, strings.Join(a.Intention.Providers, " or ")))
		}
	}
	if len(n.Permissions) == 0 {
		a.Reason = fmt.Sprintf("%s says %s", which, n.Action)
		return n.Action == entry.Allow, nil
	}
	for i, p := range n.Permissions {
		fits, err := probe(p, nil)
		if err != nil {
			return false, err
		}
		if fits {
			a.Permission = &Permission{Index: i, Action: p.Action, Match: permissionText(p)}
			a.Reason = fmt.Sprintf("%s says %s by its permission %d of %d: %s", which, p.Action, i+1, len(n.Permissions), a.Permission.Match)
			return p.Action == entry.Allow, nil
		}
	}
	return byDefault(fmt.Sprintf("none of the %d permissions of %s fits the request", len(n.Permissions), which))
}
